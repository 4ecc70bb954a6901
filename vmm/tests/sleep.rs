//! Suspend, restore, clone: what comes back, what is refused, what is called off.

#![allow(clippy::unwrap_used)]

mod guest;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use dormouse_abi::{KERNEL, LARGE_PAGE, PAGE};
use dormouse_vmm::snapshot::read::Snapshot;
use guest::{DATABASE, Home, SHARED, Vmm, files, has_kvm, hello, hello_in};
use serde_json::json;

fn echo(stream: &mut UnixStream, text: &[u8]) {
    stream.write_all(text).unwrap();
    let mut answer = vec![0; text.len()];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(answer, text);
}

/// Suspends; the process must end well.
fn suspend(vmm: Vmm, request: &str) -> String {
    let mut control = vmm.control();
    control.event("ready");
    // That a client has just gone may be heard only now, and calls it off, as anything from a client does.
    let heard_of = |answer: &serde_json::Value| answer["error"] == "cancelled";
    let answer = (0..10).map(|_| control.ask(request)).find(|answer| !heard_of(answer));
    assert_eq!(answer, Some(json!({"ok": true})));
    let (status, log) = vmm.end();
    assert_eq!(status.code(), Some(0), "{log}");
    log
}

const SUSPEND: &str = r#"{"op":"suspend"}"#;

#[test]
fn registers_and_memory_come_back_ten_times() {
    if !has_kvm("registers") {
        return;
    }
    let home = Home::new();
    let snapshot = home.database_dir().join("snapshot");
    suspend(home.start("s", &[]), SUSPEND);
    assert!(snapshot.exists());
    let size = snapshot.metadata().unwrap().len();
    assert!(size < 1 << 20, "{size} bytes for a tiny guest");
    let mut epochs = std::collections::HashSet::new();
    for _ in 0..10 {
        let vmm = home.start("s", &[]);
        let mut control = vmm.control();
        let ready = control.event("ready");
        assert_eq!(ready["cold"], false, "{ready}");
        epochs.insert(ready["epoch"].to_string());
        // The guest looks at its registers and memory before it halts again, and suspends only when it has halted.
        suspend(vmm, SUSPEND);
    }
    assert_eq!(epochs.len(), 1, "one life, one epoch");
    let checked = home.console().matches("w\n").count();
    assert_eq!(checked, 10, "{}", home.console());
    let vmm = home.start("s", &[]);
    let mut control = vmm.control();
    control.event("ready");
    let wait = std::time::Instant::now();
    let spent = snapshot.with_file_name("snapshot.spent");
    while snapshot.exists() || spent.exists() {
        assert!(wait.elapsed().as_secs() < 5, "the snapshot is not spent");
    }
    assert_eq!(control.ask(r#"{"op":"stop"}"#)["ok"], true);
    assert_eq!(vmm.end().0.code(), Some(0));
    assert_eq!(files(&home.database_dir()), ["console.log", "layer"], "nothing of a snapshot is left");
}

#[test]
fn a_session_goes_on_after_the_sleep() {
    if !has_kvm("session") {
        return;
    }
    let home = Home::new();
    let vmm = home.start("e", &[]);
    vmm.control().event("ready");
    let (mut stream, session) = vmm.session();
    echo(&mut stream, b"before");
    suspend(vmm, &format!(r#"{{"op":"suspend","sessions":[{{"session":{session},"sent":6,"received":6}}]}}"#));
    assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);

    let vmm = home.start("e", &[]);
    vmm.control().event("ready");
    let mut wrong = vmm.connect("sock");
    assert_eq!(hello(&mut wrong, 2, session, 7, 6), (2, session, 6, 6));
    let mut stream = vmm.connect("sock");
    assert_eq!(hello(&mut stream, 2, session, 6, 6), (0, session, 6, 6));
    echo(&mut stream, b"after");
    let mut second = vmm.connect("sock");
    assert_eq!(hello(&mut second, 2, session, 11, 11).0, 1, "it is bound");
    let (mut other, number) = vmm.session();
    assert_ne!(number, session);
    drop(other.write_all(b"x"));
    drop(vmm);
}

#[test]
fn bytes_under_way_call_a_suspend_off_and_the_guest_goes_on() {
    if !has_kvm("in flight") {
        return;
    }
    let home = Home::new();
    let vmm = home.start("e", &[]);
    let mut control = vmm.control();
    control.event("ready");
    let (mut stream, session) = vmm.session();
    echo(&mut stream, b"abc");
    let ask =
        |sent: u64| format!(r#"{{"op":"suspend","sessions":[{{"session":{session},"sent":{sent},"received":3}}]}}"#);
    assert_eq!(control.ask(&ask(4)), json!({"ok": false, "error": "bytes_in_flight"}));
    echo(&mut stream, b"d");
    assert_eq!(control.ask(&ask(3))["ok"], false);
    assert_eq!(control.ask(r#"{"op":"cancel"}"#), json!({"ok": true}), "nothing to call off");
    assert!(!home.database_dir().join("snapshot").exists());
}

#[test]
fn a_suspend_that_is_called_off_leaves_the_guest_running() {
    if !has_kvm("called off") {
        return;
    }
    let home = Home::new();
    let vmm = home.start("e", &[]);
    let mut control = vmm.control();
    control.event("ready");
    let (mut stream, session) = vmm.session();
    // Both in one write, so that the second finds the first not yet done.
    control.say("{\"op\":\"suspend\"}\n{\"op\":\"cancel\"}");
    let answers = [control.line(), control.line()];
    assert!(answers.contains(&json!({"ok": true})), "{answers:?}");
    assert!(answers.contains(&json!({"ok": false, "error": "cancelled"})), "{answers:?}");
    echo(&mut stream, b"still here");

    // A snapshot that can't be written is called off too.
    std::fs::create_dir(home.database_dir().join("snapshot.tmp")).unwrap();
    let ask = |count: usize| {
        json!({"op": "suspend", "sessions": [{"session": session, "sent": count, "received": count}]}).to_string()
    };
    let answer = control.ask(&ask(10));
    assert!(answer["error"].as_str().unwrap().contains("cannot create the snapshot"), "{answer}");
    echo(&mut stream, b"and here");
    std::fs::remove_dir(home.database_dir().join("snapshot.tmp")).unwrap();
    let answer = control.ask(SUSPEND);
    assert!(answer["error"].as_str().unwrap().contains("not in the request"), "{answer}");
    assert_eq!(control.ask(&ask(18)), json!({"ok": true}));
}

#[test]
fn a_terminated_vmm_suspends_its_guest() {
    if !has_kvm("terminated") {
        return;
    }
    let home = Home::new();
    let vmm = home.start("s", &[]);
    vmm.control().event("ready");
    for signal in [libc::SIGINT, libc::SIGHUP, libc::SIGTERM] {
        // SAFETY: signals the child that this test has started and not yet waited for.
        assert_eq!(unsafe { libc::kill(vmm.child.id() as libc::pid_t, signal) }, 0);
    }
    let (status, log) = vmm.end();
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(home.database_dir().join("snapshot").exists());
}

#[test]
fn a_damaged_snapshot_is_refused_and_the_database_starts_cold() {
    if !has_kvm("damaged") {
        return;
    }
    let home = Home::new();
    suspend(home.start("s", &[]), SUSPEND);
    let path = home.database_dir().join("snapshot");
    let good = std::fs::read(&path).unwrap();
    // A byte of each part, and cuts.
    let spots = [0, 20, 4096 + 100, good.len() / 2, good.len() - 3];
    let damaged: Vec<Vec<u8>> = spots
        .iter()
        .map(|at| {
            let mut bytes = good.clone();
            bytes[*at] ^= 0x10;
            bytes
        })
        .chain([good[..good.len() - 1].to_vec(), good[..100].to_vec(), Vec::new()])
        .collect();
    for (case, bytes) in damaged.into_iter().enumerate() {
        std::fs::write(&path, bytes).unwrap();
        let vmm = home.start("s", &[]);
        let mut control = vmm.control();
        assert_eq!(control.event("ready")["cold"], true, "case {case}");
        assert_eq!(control.ask(r#"{"op":"stop"}"#)["ok"], true);
        let (_, log) = vmm.end();
        assert!(log.contains("the snapshot cannot be used"), "{log}");
        assert!(!path.exists() && path.with_file_name("snapshot.refused").exists());
    }
}

#[test]
fn a_snapshot_of_another_database_or_size_is_refused() {
    if !has_kvm("other") {
        return;
    }
    let home = Home::new();
    suspend(home.start("s", &[]), SUSPEND);
    let other = "db_bbbbbbbbbbbbbbbbbbbb";
    let theirs = home.path("databases").join(other);
    std::fs::create_dir_all(&theirs).unwrap();
    std::fs::copy(home.database_dir().join("snapshot"), theirs.join("snapshot")).unwrap();
    let vmm = home.start("d", &["--database", other]);
    let (_, log) = vmm.end();
    assert!(log.contains("it was made for database"), "{log}");
    let (_, log) = home.start("d", &["--memory-mib", "128"]).end();
    assert!(log.contains("it was made for memory size"), "{log}");
}

#[test]
fn a_kill_after_the_wake_means_a_cold_start() {
    if !has_kvm("kill") {
        return;
    }
    let home = Home::new();
    suspend(home.start("s", &[]), SUSPEND);
    let mut vmm = home.start("s", &[]);
    let first = vmm.control().event("ready");
    let snapshot = home.database_dir().join("snapshot");
    let wait = std::time::Instant::now();
    while snapshot.exists() {
        assert!(wait.elapsed().as_secs() < 5, "the snapshot is not spent");
    }
    vmm.child.kill().unwrap();
    drop(vmm);
    let vmm = home.start("s", &[]);
    let second = vmm.control().event("ready");
    assert_eq!((first["cold"].as_bool(), second["cold"].as_bool()), (Some(false), Some(true)));
    assert_ne!(first["epoch"], second["epoch"]);
}

#[test]
fn a_guest_that_nobody_attends_suspends_itself() {
    if !has_kvm("unattended") {
        return;
    }
    let home = Home::new();
    let (status, log) = home.start("s", &["--unattended-s", "1"]).end();
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(home.database_dir().join("snapshot").exists());
}

#[test]
fn an_idle_guest_says_so_after_its_cool_down() {
    if !has_kvm("idle") {
        return;
    }
    let home = Home::new();
    let vmm = home.start("e", &[]);
    let mut control = vmm.control();
    control.event("ready");
    control.ask(r#"{"op":"cool_down","ms":200}"#);
    let idle = control.event("idle");
    assert!(idle["for_ms"].as_u64().unwrap() >= 200, "{idle}");
    let (mut stream, _) = vmm.session();
    echo(&mut stream, b"awake");
    assert!(control.ask(r#"{"op":"status"}"#)["idle_ms"].as_u64().unwrap() < 200);
    let again = control.event("idle");
    assert!(again["for_ms"].as_u64().unwrap() >= 200, "{again}");
}

#[test]
fn clones_of_the_golden_guest_are_apart_and_sleep_against_it() {
    if !has_kvm("golden") {
        return;
    }
    let home = Home::new();
    let image = home.make_image();
    let golden = home.bake(&image, &["--park", "2"]);
    assert_eq!(files(&golden), ["memory", "state"]);

    let mut epochs = std::collections::HashSet::new();
    for database in ["db_1", "db_2"] {
        let vmm = home.start_image(&image, database, &[]);
        let mut control = vmm.control();
        let ready = control.event("ready");
        assert_eq!(ready["cold"], false, "{ready}");
        epochs.insert(ready["epoch"].to_string());
        // Two parked, one more asked for.
        let mut streams: Vec<_> = (0..3).map(|_| vmm.session()).collect();
        for (stream, _) in &mut streams {
            echo(stream, database.as_bytes());
        }
        let sessions: Vec<_> =
            streams.iter().map(|(_, session)| json!({"session": session, "sent": 4, "received": 4})).collect();
        let request = json!({"op": "suspend", "sessions": sessions}).to_string();
        let log = suspend(vmm, &request);
        let changed: usize = log.split_once("\"pages\":").unwrap().1.split_once(',').unwrap().0.parse().unwrap();
        let size = home.path("databases").join(database).join("snapshot").metadata().unwrap().len();
        assert!(size < 64 << 10, "{size} bytes of difference");
        let noted = home.path("databases").join(database).join("noted");
        let vmm = home.start_image(&image, database, &["--note-pages", noted.to_str().unwrap()]);
        let ready = vmm.control().event("ready");
        let mut epoch = ready["epoch"].as_str().unwrap().as_bytes().to_vec();
        epoch.resize(32, 0);
        for (at, (_, session)) in streams.into_iter().enumerate() {
            let mut stream = vmm.connect("sock");
            if at == 0 {
                assert_eq!(hello(&mut stream, 2, session, 4, 4).0, 0);
            } else {
                // What is said behind the epoch is the guest's if it is the right one, and nobody's if not.
                let said = |epoch: &[u8]| [epoch, b"words"].concat();
                let another = hello_in(&mut vmm.connect("sock"), 3, session, (4, 4), &said(&[b'x'; 32]));
                assert_eq!(another.0, 1, "a session of another life is not known");
                assert_eq!(hello_in(&mut stream, 3, session, (4, 4), &said(&epoch)).0, 0);
                let mut heard = [0; 5];
                stream.read_exact(&mut heard).unwrap();
                assert_eq!(&heard, b"words");
            }
            echo(&mut stream, b"once more");
        }
        // Asleep again: a snapshot of a guest that was itself restored.
        suspend(vmm, SUSPEND);
        let pages = std::fs::read(noted.join("hot")).unwrap();
        let pages: Vec<u64> = pages.chunks_exact(4).map(|page| u32::from_le_bytes(page.try_into().unwrap()).into()).collect();
        // All that it had changed before, what its neighbours need for one fault to map them, and what it has written to.
        assert!(pages.is_sorted() && pages.len() >= changed, "{changed} {pages:?}");
        let touched = std::fs::read(noted.join("touched")).unwrap();
        let touched: Vec<u64> = touched.chunks_exact(8).map(|page| u64::from_le_bytes(page.try_into().unwrap())).collect();
        assert!(touched.is_sorted(), "{touched:?}");
        // It reads its code, and writes where it says how it is; of the page tables, which are others now, nobody hears.
        let code = touched.iter().find(|address| (KERNEL..KERNEL + 16 * PAGE).contains(address)).unwrap();
        assert!(!pages.contains(&(code / PAGE)), "{touched:?} {pages:?}");
        assert!(touched.contains(&SHARED) && pages.contains(&(SHARED / PAGE)), "{touched:?} {pages:?}");
        assert!(pages[0] * PAGE >= LARGE_PAGE, "{pages:?}");
    }
    assert_eq!(epochs.len(), 2);

    // Without its golden memory the snapshot is nothing; the database still starts.
    std::fs::remove_dir_all(&golden).unwrap();
    let vmm = home.start_image(&image, "db_1", &[]);
    assert_eq!(vmm.control().event("ready")["cold"], true);
    let _ = DATABASE;
}

#[test]
fn a_guest_that_is_booted_shares_the_golden_memory_and_sleeps_against_it() {
    if !has_kvm("booted") {
        return;
    }
    let home = Home::new();
    let image = home.make_image();
    home.bake(&image, &[]);
    let snapshot = home.path("databases").join("db_1").join("snapshot");
    let base = || Snapshot::open(&snapshot).unwrap().unwrap().header.base;
    suspend(home.start_image(&image, "db_1", &[]), SUSPEND);
    let golden = base();
    assert!(golden.starts_with("golden-"), "{golden}");
    for more in [&[][..], &["--cold"]] {
        // What lies there is no snapshot any more.
        std::fs::write(&snapshot, b"damaged").unwrap();
        let vmm = home.start_image(&image, "db_1", more);
        assert_eq!(vmm.control().event("ready")["cold"], true);
        // Its code, or what it compares itself with, is that of the golden guest.
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", vmm.child.id())).unwrap();
        let writable = maps.lines().filter(|line| line.contains("rw-p") && line.ends_with("/golden/64/memory")).count();
        assert_eq!(writable > 0, more.is_empty(), "{maps}");
        let (mut stream, _) = vmm.session();
        echo(&mut stream, b"booted");
        drop(stream);
        suspend(vmm, SUSPEND);
        assert_eq!(base(), golden);
        let vmm = home.start_image(&image, "db_1", &[]);
        assert_eq!(vmm.control().event("ready")["cold"], false);
        let (mut stream, _) = vmm.session();
        echo(&mut stream, b"woken");
        drop(stream);
        suspend(vmm, SUSPEND);
    }
}
