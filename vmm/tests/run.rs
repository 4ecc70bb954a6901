//! A guest that runs: doorbell, clock, interrupts, sockets, and how it ends.

#![allow(clippy::unwrap_used)]

mod guest;

use std::io::{Read, Write};
use std::net::Shutdown;
use std::time::{Duration, Instant};

use dormouse_abi::{SLOT_BASE, SLOT_STRIDE};
use guest::{Home, has_kvm, hello, hello_in};

#[test]
fn a_guest_writes_to_its_console_and_ends_with_its_code() {
    if !has_kvm("doorbell") {
        return;
    }
    let home = Home::new();
    let (status, log) = home.start("d", &[]).end();
    assert_eq!(status.code(), Some(17), "{log}");
    assert_eq!(home.console(), "hi\n");
}

#[test]
fn a_halt_ends_at_its_deadline() {
    if !has_kvm("deadline") {
        return;
    }
    let home = Home::new();
    let vmm = home.start("t", &[]);
    let mut control = vmm.control();
    let (status, log) = vmm.end();
    assert_eq!(status.code(), Some(0), "{log}");
    assert_eq!(control.event("ready")["cold"], true);
}

#[test]
fn a_computing_guest_is_interrupted() {
    if !has_kvm("interrupt") {
        return;
    }
    let home = Home::new();
    let began = Instant::now();
    let (status, log) = home.start("i", &[]).end();
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(began.elapsed() < Duration::from_secs(5));
}

#[test]
fn what_a_guest_sends_is_taken_while_it_runs_on() {
    if !has_kvm("send") {
        return;
    }
    let home = Home::new();
    let vmm = home.start("n", &[]);
    let mut control = vmm.control();
    control.event("ready");
    let (mut stream, _) = vmm.session();
    for round in 0..200u32 {
        stream.write_all(&round.to_le_bytes()).unwrap();
        let mut answer = [0; 4];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(u32::from_le_bytes(answer), round);
    }
    let exits = &control.ask(r#"{"op":"status"}"#)["exits"];
    assert_eq!((&exits["halt"], &exits["sockets"]), (&0.into(), &0.into()), "{exits}");
}

#[test]
fn a_session_is_echoed_and_its_end_reaches_the_guest() {
    if !has_kvm("echo") {
        return;
    }
    let home = Home::new();
    let vmm = home.start("e", &[]);
    let mut control = vmm.control();
    control.event("ready");
    let mut stream = vmm.connect("sock");
    // What is said in one breath with the hello are the session's first bytes.
    let (status, session, ..) = hello_in(&mut stream, 1, 0, (0, 0), b"hello");
    assert_eq!(status, 0);
    let mut answer = [0; 5];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"hello");

    // More than the window, in both directions at once.
    let sent: Vec<u8> = (0..3_000_000u32).map(|i| ((i * 7) >> 3) as u8).collect();
    let mut writer = stream.try_clone().unwrap();
    let copy = sent.clone();
    let writing = std::thread::spawn(move || writer.write_all(&copy).unwrap());
    let mut received = vec![0; sent.len()];
    stream.read_exact(&mut received).unwrap();
    writing.join().unwrap();
    assert!(sent == received, "the echo differs");

    let status = control.ask(r#"{"op":"status"}"#);
    let total = 5 + sent.len() as u64;
    assert_eq!(
        status["sessions"],
        serde_json::json!([{"session": session, "received": total, "sent": total}]),
        "{status}"
    );
    stream.shutdown(Shutdown::Both).unwrap();
    drop(stream);
    let until = Instant::now() + Duration::from_secs(5);
    while control.ask(r#"{"op":"status"}"#)["sessions"] != serde_json::json!([]) {
        assert!(Instant::now() < until, "the session is still there");
    }
    assert_eq!(control.ask(r#"{"op":"stop"}"#)["ok"], true);
    assert_eq!(vmm.end().0.code(), Some(0));
}

#[test]
fn an_unknown_session_and_a_bad_hello_are_refused() {
    if !has_kvm("hello") {
        return;
    }
    let home = Home::new();
    let vmm = home.start("e", &[]);
    vmm.control().event("ready");
    let mut stream = vmm.connect("sock");
    assert_eq!(hello(&mut stream, 2, 99, 0, 0).0, 1);
    let mut stream = vmm.connect("sock");
    stream.write_all(&[0xff; 32]).unwrap();
    assert_eq!(stream.read(&mut [0; 32]).unwrap(), 0);
}

#[test]
fn a_guest_that_reads_where_nothing_is_ends_with_its_registers_in_the_log() {
    if !has_kvm("read") {
        return;
    }
    let (status, log) = Home::new().start("r", &[]).end();
    assert_eq!(status.code(), Some(74), "{log}");
    assert!(log.contains("rbx=0xabcdef") && log.contains("rip=0x4"), "{log}");
}

#[test]
fn page_zero_faults() {
    if !has_kvm("page zero") {
        return;
    }
    let (status, log) = Home::new().start("x", &[]).end();
    assert_eq!(status.code(), Some(74), "{log}");
    assert!(log.contains("cr2=0x8 "), "{log}");
}

#[test]
fn a_stack_that_overflows_meets_its_guard_and_not_its_neighbour() {
    if !has_kvm("guard") {
        return;
    }
    let (status, log) = Home::new().start("g", &[]).end();
    assert_eq!(status.code(), Some(74), "{log}");
    let guard = SLOT_BASE + SLOT_STRIDE + guest::HOT - 8;
    assert!(log.contains(&format!("cr2={guard:#x} ")), "the first word below the stack faults: {log}");
    assert!(log.contains("rbp=0x2 "), "and the last two of the stack did not: {log}");
    // What lies below that page in memory is the end of slot 0's, and it is as it was.
    assert!(log.contains("r14=0x123456789abcdef "), "{log}");
}

#[test]
fn a_second_vmm_on_one_layer_is_refused() {
    if !has_kvm("second") {
        return;
    }
    let home = Home::new();
    let first = home.start("e", &[]);
    first.control().event("ready");
    let (status, log) = home.start("e", &[]).end();
    assert_eq!(status.code(), Some(73), "{log}");
}

#[test]
fn wrong_arguments_are_usage_errors() {
    let home = Home::new();
    for wrong in [&["--memory-mib", "x"][..], &["--park", "3"], &["--image", "../../etc"], &["--database", "a/b"]] {
        let (status, log) = home.start("d", wrong).end();
        assert_eq!(status.code(), Some(64), "{wrong:?}: {log}");
    }
}

#[test]
fn a_log_that_cannot_be_written_ends_nothing() {
    let full = || std::fs::File::options().write(true).open("/dev/full").unwrap();
    let home = Home::new();
    let mut usage = home.command("d");
    assert_eq!(usage.args(["--park", "3"]).stderr(full()).status().unwrap().code(), Some(64));
    let mut broken = home.command("d");
    let broken = broken.args(["--template", "/nonexistent"]).env("DORMOUSE_LOG", "trace").stderr(full());
    let code = broken.status().unwrap().code();
    assert!(matches!(code, Some(69 | 74)), "{code:?}");
    if has_kvm("log") {
        let status = home.command("d").env("DORMOUSE_LOG", "trace").stderr(full()).status().unwrap();
        assert_eq!(status.code(), Some(17));
        assert_eq!(home.console(), "hi\n");
    }
}

/// Hides `/dev/kvm` from one child by a mount namespace of its own, which only root may make.
#[test]
fn without_kvm_the_exit_status_says_so() {
    use std::os::unix::process::CommandExt;
    // SAFETY: getuid has no preconditions.
    if unsafe { libc::getuid() } != 0 {
        eprintln!("without KVM: skipped, not root");
        return;
    }
    let home = Home::new();
    let mut command = home.command("d");
    // SAFETY: only system calls between fork and exec, with constant strings.
    unsafe {
        command.pre_exec(|| {
            let done = libc::unshare(libc::CLONE_NEWNS) == 0
                && libc::mount(
                    c"none".as_ptr(),
                    c"/".as_ptr(),
                    std::ptr::null(),
                    libc::MS_REC | libc::MS_PRIVATE,
                    std::ptr::null(),
                ) == 0
                && libc::mount(
                    c"/dev/null".as_ptr(),
                    c"/dev/kvm".as_ptr(),
                    std::ptr::null(),
                    libc::MS_BIND,
                    std::ptr::null(),
                ) == 0;
            if done { Ok(()) } else { Err(std::io::Error::last_os_error()) }
        });
    }
    match guest::Vmm::try_new(command, &home) {
        Ok(vmm) => {
            let (status, log) = vmm.end();
            assert_eq!(status.code(), Some(69), "{log}");
            assert!(log.contains("/dev/kvm"), "{log}");
        }
        Err(error) => eprintln!("without KVM: skipped, no mount namespace here: {error}"),
    }
}

#[test]
fn a_guest_that_never_looks_up_is_ended_and_the_console_tells_where_it_was() {
    if !has_kvm("watchdog") {
        return;
    }
    let home = Home::new();
    let (status, log) = home.start("h", &["--watchdog-ms", "200"]).end();
    assert_eq!(status.code(), Some(75), "{log}");
    assert!(log.contains("no progress"), "{log}");
    let console = home.console();
    assert!(console.contains("watchdog: no progress") && console.contains("  at kernel 0x4"), "{console}");
}

#[test]
fn a_guest_that_computes_and_looks_up_is_left_alone() {
    if !has_kvm("watchdog, progress") {
        return;
    }
    let home = Home::new();
    // Ten times the limit: it is asked four times in each.
    let (status, log) = home.start("p", &["--watchdog-ms", "200"]).end();
    assert_eq!(status.code(), Some(0), "{log}");
}

#[test]
fn the_time_in_which_a_vmm_is_stopped_does_not_count() {
    if !has_kvm("watchdog, stopped") {
        return;
    }
    let home = Home::new();
    let limit = Duration::from_secs(2);
    let vmm = home.start("h", &["--watchdog-ms", &limit.as_millis().to_string()]);
    vmm.control().event("ready");
    vmm.signal(libc::SIGSTOP);
    // Longer than the limit, which is all that this waits for.
    std::thread::sleep(limit + Duration::from_secs(1));
    vmm.signal(libc::SIGCONT);
    let (status, used) = vmm.end_and_time();
    assert_eq!(status.code(), Some(75));
    assert!(used > limit, "ended after {used:?} of processor time");
}

#[test]
fn a_live_guest_tells_where_it_is_and_goes_on() {
    if !has_kvm("tasks") {
        return;
    }
    let home = Home::new();
    for behaviour in ["e", "h"] {
        let vmm = home.start(behaviour, &[]);
        let mut control = vmm.control();
        control.event("ready");
        for _ in 0..2 {
            let report = control.ask(r#"{"op":"tasks"}"#)["report"].as_str().unwrap().to_owned();
            assert!(report.contains("vCPU: rip 00000000004"), "{report}");
        }
    }
}
