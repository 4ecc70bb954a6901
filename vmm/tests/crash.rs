//! A kill at each named step of suspend and restore: the next start finds the one state or the other, never both.
//!
//! `cargo test -p dormouse-vmm --features crash-points --test crash`
#![cfg(feature = "crash-points")]
#![allow(clippy::unwrap_used)]

mod guest;

use guest::{Home, Vmm, files, has_kvm};

fn start_crashing(home: &Home, step: &str) -> Vmm {
    let mut command = home.command("s");
    command.env("DORMOUSE_CRASH_AT", step);
    Vmm::new(command, home)
}

/// Starts without crashing; says whether cold, and stops.
fn start(home: &Home) -> bool {
    start_and_stop(home, home.start("s", &[]))
}

fn start_stalling(home: &Home, step: &str) -> Vmm {
    let mut command = home.command("s");
    command.env("DORMOUSE_STALL_AT", step);
    Vmm::new(command, home)
}

fn start_and_stop(home: &Home, vmm: Vmm) -> bool {
    let (cold, mut left) = stopped(home, vmm);
    left.retain(|name| name != "snapshot.refused");
    assert_eq!(left, ["layer"], "no half snapshot is left");
    cold
}

/// Of one that is stopped as soon as it is ready: whether it was a cold start, and what is left beside its log.
fn stopped(home: &Home, vmm: Vmm) -> (bool, Vec<String>) {
    let mut control = vmm.control();
    let cold = control.event("ready")["cold"].as_bool().unwrap();
    assert_eq!(control.ask(r#"{"op":"stop"}"#)["ok"], true);
    let (status, log) = vmm.end();
    assert_eq!(status.code(), Some(0), "{log}");
    (cold, files_beside_the_log(home))
}

fn files_beside_the_log(home: &Home) -> Vec<String> {
    let mut left = files(&home.database_dir());
    left.retain(|name| name != "console.log");
    left
}

/// Puts it to sleep as soon as it is ready.
fn suspended(vmm: Vmm) {
    let mut control = vmm.control();
    control.event("ready");
    assert_eq!(control.ask(r#"{"op":"suspend"}"#)["ok"], true);
    let (status, log) = vmm.end();
    assert_eq!(status.code(), Some(0), "{log}");
}

fn assert_killed(vmm: Vmm, step: &str) {
    use std::os::unix::process::ExitStatusExt;
    let (status, log) = vmm.end();
    assert_eq!(status.signal(), Some(libc::SIGKILL), "{step}: {log}");
}

#[test]
fn a_kill_in_suspend_leaves_a_whole_snapshot_or_none() {
    if !has_kvm("crash in suspend") {
        return;
    }
    for (step, survives) in [
        ("suspend-begun", false),
        ("suspend-flushed", false),
        ("suspend-written", false),
        ("suspend-synced", false),
        ("suspend-renamed", true),
        ("suspend-committed", true),
    ] {
        let home = Home::new();
        let vmm = start_crashing(&home, step);
        let mut control = vmm.control();
        control.event("ready");
        control.say(r#"{"op":"suspend"}"#);
        assert_killed(vmm, step);
        assert_eq!(start(&home), !survives, "{step}");
        assert!(start(&home), "{step}: used once");
    }
}

#[test]
fn a_kill_in_restore_leaves_an_unused_snapshot_or_none() {
    if !has_kvm("crash in restore") {
        return;
    }
    for (step, survives) in [
        ("restore-begun", Some(true)),
        ("restore-loaded", Some(true)),
        ("spent-renamed", Some(false)),
        ("spent", Some(false)),
        // The mark is made beside the restore: both are right, as the guest has not run.
        ("restore-entered", None),
    ] {
        let home = Home::new();
        suspended(home.start("s", &[]));
        assert_killed(start_crashing(&home, step), step);
        let cold = start(&home);
        if let Some(survives) = survives {
            assert_eq!(cold, !survives, "{step}");
        }
        assert!(start(&home), "{step}: used once");
    }
}

fn carry_out(home: &Home, task: &str, crash: Option<&str>) -> (std::process::ExitStatus, String) {
    let mut command = home.command("s");
    command.args(["--task", task]);
    if let Some(step) = crash {
        command.env("DORMOUSE_CRASH_AT", step);
    }
    Vmm::new(command, home).end()
}

/// A database that sleeps, with a file of its own in its layer; its content.
fn asleep_with_a_file(home: &Home) -> Vec<u8> {
    suspended(home.start("s", &[]));
    // The tiny guests write nothing. A file of nobody is packed like any other, and removed at the first change.
    let content = b"of the layer".repeat(1000);
    let files = home.database_dir().join("layer/files");
    std::fs::create_dir_all(&files).unwrap();
    std::fs::write(files.join("7"), &content).unwrap();
    content
}

fn assert_unpacked(home: &Home, content: &[u8], step: &str) {
    assert_eq!(std::fs::read(home.database_dir().join("layer/files/7")).unwrap(), content, "{step}");
}

/// Starts without crashing; says whether cold, and stops.
fn start_packed(home: &Home) -> bool {
    let (cold, mut left) = stopped(home, home.start("s", &[]));
    left.retain(|name| cold || name != "packed.tmp");
    assert_eq!(left, ["layer"], "neither packed nor a snapshot is left");
    cold
}

#[test]
fn a_kill_while_packing_leaves_it_asleep_as_it_was_or_packed() {
    if !has_kvm("crash in packing") {
        return;
    }
    for (step, packed) in
        [("pack-written", false), ("pack-renamed", true), ("pack-snapshot-gone", true), ("pack-layer-gone", true)]
    {
        use std::os::unix::process::ExitStatusExt;
        let home = Home::new();
        let content = asleep_with_a_file(&home);
        let (status, log) = carry_out(&home, "pack", Some(step));
        assert_eq!(status.signal(), Some(libc::SIGKILL), "{step}: {log}");
        assert_eq!(home.database_dir().join("packed").exists(), packed, "{step}");
        assert_eq!(home.database_dir().join("snapshot").exists(), !packed || step == "pack-renamed", "{step}");
        assert!(!start_packed(&home), "{step}: it goes on");
        assert_unpacked(&home, &content, step);
        assert!(start_packed(&home), "{step}: used once");
        // Another packing finishes what one left, or begins anew.
        let home = Home::new();
        let content = asleep_with_a_file(&home);
        carry_out(&home, "pack", Some(step));
        let (status, log) = carry_out(&home, "pack", None);
        assert_eq!(status.code(), Some(0), "{step}: {log}");
        assert_eq!(files_beside_the_log(&home), ["layer", "packed"], "{step}");
        assert_eq!(files(&home.database_dir().join("layer")), ["journal", "lock"], "{step}");
        assert!(!start_packed(&home), "{step}");
        assert_unpacked(&home, &content, step);
    }
}

#[test]
fn a_packed_file_of_another_state_of_the_layer_or_a_damaged_one_removes_nothing() {
    if !has_kvm("packing beside another packed file") {
        return;
    }
    for (name, at) in [("layer/journal", None), ("packed", Some(1024))] {
        let home = Home::new();
        let content = asleep_with_a_file(&home);
        carry_out(&home, "pack", Some("pack-renamed"));
        let path = home.database_dir().join(name);
        let mut bytes = std::fs::read(&path).unwrap();
        match at {
            None => bytes.push(0),
            Some(at) => bytes[at] ^= 1,
        }
        std::fs::write(&path, bytes).unwrap();
        let (status, log) = carry_out(&home, "pack", None);
        assert_eq!(status.code(), Some(74), "{name}: {log}");
        assert!(home.database_dir().join("snapshot").exists(), "{name}: {log}");
        assert_unpacked(&home, &content, name);
    }
}

#[test]
fn a_kill_in_a_wake_from_packed_leaves_it_packed_or_used() {
    if !has_kvm("crash in unpacking") {
        return;
    }
    for (step, packed) in
        [("unpack-begun", true), ("unpack-files", true), ("unpack-synced", true), ("unpack-spent", false)]
    {
        let home = Home::new();
        let content = asleep_with_a_file(&home);
        assert_eq!(carry_out(&home, "pack", None).0.code(), Some(0));
        assert_killed(start_crashing(&home, step), step);
        assert_eq!(home.database_dir().join("packed").exists(), packed, "{step}");
        if packed {
            // What the killed one left of the layer is nothing.
            let files = home.database_dir().join("layer/files");
            std::fs::create_dir_all(&files).unwrap();
            std::fs::write(files.join("7"), b"half").unwrap();
            std::fs::write(files.join("8"), b"of nobody").unwrap();
            assert!(!start_packed(&home), "{step}: it goes on");
            assert!(!files.join("8").exists(), "{step}");
            assert_unpacked(&home, &content, step);
        }
        assert!(start(&home), "{step}: used once");
    }
}

/// Sessions ended with 57P01 for no visible reason: the thread that spends the old snapshot, held up on a loaded
/// machine, had taken the new one.
#[test]
fn a_database_that_sleeps_again_at_once_keeps_its_snapshot() {
    if !has_kvm("sleeps again") {
        return;
    }
    let home = Home::new();
    suspended(home.start("s", &[]));
    for step in ["spend-begun", "spent-renamed", "spent"] {
        suspended(start_stalling(&home, step));
        assert!(home.database_dir().join("snapshot").exists(), "{step}");
    }
    assert!(!start(&home));
}

/// A file of a spent snapshot was left in the folder when a guest was stopped as soon as it had been restored.
#[test]
fn a_database_that_is_stopped_at_once_leaves_no_spent_snapshot() {
    if !has_kvm("stopped at once") {
        return;
    }
    let home = Home::new();
    for step in ["spend-begun", "spent-renamed", "spent"] {
        suspended(home.start("s", &[]));
        assert!(!start_and_stop(&home, start_stalling(&home, step)), "{step}");
    }
}
