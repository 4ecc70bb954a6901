//! A VMM that stands by: claimed, not claimed, claimed by mistake.

#![allow(clippy::unwrap_used)]

mod guest;

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use dormouse_vmm::standby::HURRY;
use guest::{DATABASE, Home, Vmm, has_kvm};

/// One that has said that it is ready, and who may claim it.
fn ready(home: &Home) -> (Vmm, UnixStream) {
    let mut command = home.command("s");
    command.args(["--database", &placeholder(), "--standby"]);
    ready_by(command, home)
}

fn placeholder() -> String {
    "p".repeat(DATABASE.len())
}

/// The same of a command.
fn ready_by(command: Command, home: &Home) -> (Vmm, UnixStream) {
    ready_over(UnixStream::pair().unwrap(), command, home)
}

/// The same over two sockets that are a pair.
fn ready_over((mut own, theirs): (UnixStream, UnixStream), mut command: Command, home: &Home) -> (Vmm, UnixStream) {
    std::fs::create_dir_all(home.database_dir()).unwrap();
    command.stdin(Stdio::from(OwnedFd::from(theirs)));
    let vmm = Vmm::new(command, home);
    let mut said = [0; dormouse_vmm::standby::READY.len()];
    own.read_exact(&mut said).unwrap();
    assert_eq!(said, dormouse_vmm::standby::READY);
    (vmm, own)
}

/// The last database that its command line names: of a repeated flag the last counts.
fn named(vmm: &Vmm) -> String {
    let line = std::fs::read_to_string(format!("/proc/{}/cmdline", vmm.pid())).unwrap();
    let words: Vec<&str> = line.split('\0').collect();
    words.windows(2).rfind(|words| words[0] == "--database").unwrap()[1].to_owned()
}

#[test]
fn a_claimed_one_is_the_databases_in_name_and_log_and_outlives_who_claimed_it() {
    if !has_kvm("claim") {
        return;
    }
    let home = Home::new();
    let (vmm, mut owner) = ready(&home);
    assert_ne!(named(&vmm), DATABASE);
    writeln!(owner, r#"{{"database":"{DATABASE}","storage_bytes":1000000000}}"#).unwrap();
    drop(owner);
    let mut control = vmm.control();
    control.event("ready");
    assert_eq!(named(&vmm), DATABASE);
    assert_eq!(control.ask(r#"{"op":"suspend"}"#), serde_json::json!({"ok": true}));
    let (status, before) = vmm.end();
    assert_eq!(status.code(), Some(0), "{before}");
    let log = std::fs::read_to_string(home.database_dir().join("vmm.log")).unwrap();
    assert!(log.contains("guest begins") && !before.contains("guest begins"), "{log}\n{before}");
    // The next one goes on from the snapshot.
    let (vmm, mut owner) = ready(&home);
    writeln!(owner, r#"{{"database":"{DATABASE}"}}"#).unwrap();
    assert_eq!(vmm.control().event("ready")["cold"], false);
}

/// Whoever made it may have removed what there is of it before it came to make its sockets.
#[test]
fn one_that_nobody_can_claim_leaves_no_sockets() {
    if !has_kvm("forsaken") {
        return;
    }
    let home = Home::new();
    let image = home.make_image();
    let (own, theirs) = UnixStream::pair().unwrap();
    drop(own);
    let mut command = home.image_command(&image, &placeholder(), &["--standby"]);
    command.stdin(Stdio::from(OwnedFd::from(theirs)));
    let (status, log) = Vmm::new(command, &home).end();
    assert_eq!(status.code(), Some(0), "{log}");
    assert_eq!(std::fs::read_dir(home.sockets()).unwrap().count(), 0);
}

#[test]
fn whoever_claimed_it_goes_on_with_it_over_the_same_socket() {
    if !has_kvm("control") {
        return;
    }
    let home = Home::new();
    let (vmm, mut owner) = ready(&home);
    writeln!(owner, r#"{{"database":"{DATABASE}"}}"#).unwrap();
    let mut lines = BufReader::new(owner.try_clone().unwrap()).lines().map(|line| {
        serde_json::from_str::<serde_json::Value>(&line.unwrap()).unwrap()
    });
    assert_eq!(lines.next().unwrap(), serde_json::json!({"event": "listening"}));
    // The next server, if there is one, may connect too.
    vmm.connect("ctl");
    let ready = lines.next().unwrap();
    assert_eq!(ready["event"], "ready", "{ready}");
    writeln!(owner, r#"{{"op":"suspend"}}"#).unwrap();
    let answer = lines.find(|line| line.get("ok").is_some()).unwrap();
    assert_eq!(answer, serde_json::json!({"ok": true}));
    assert_eq!(vmm.end().0.code(), Some(0));
    assert!(lines.next().is_none(), "it is closed with the process");
}

#[test]
fn its_guest_touches_what_is_listed_and_if_it_cannot_a_database_still_begins() {
    if !has_kvm("touch") {
        return;
    }
    let home = Home::new();
    let image = home.make_image();
    let golden = home.bake(&image, &[]);
    // Where there is nothing a read leaves the guest otherwise.
    for (list, fails) in [(vec![dormouse_abi::KERNEL], false), (vec![dormouse_abi::KERNEL, dormouse_abi::DOORBELL], true)] {
        let bytes: Vec<u8> = list.iter().flat_map(|address| address.to_le_bytes()).collect();
        std::fs::write(golden.join("touched"), bytes).unwrap();
        let (vmm, mut owner) = ready_by(home.image_command(&image, &placeholder(), &["--standby"]), &home);
        writeln!(owner, r#"{{"database":"{DATABASE}"}}"#).unwrap();
        let mut control = vmm.control();
        assert_eq!(control.event("ready")["cold"], false);
        assert_eq!(control.ask(r#"{"op":"suspend"}"#), serde_json::json!({"ok": true}));
        let (status, log) = vmm.end();
        assert_eq!(status.code(), Some(0), "{log}");
        assert_eq!(log.contains("its guest does not run"), fails, "{log}");
        std::fs::remove_dir_all(home.database_dir()).unwrap();
    }
}

#[test]
fn one_that_is_told_to_hurry_touches_nothing_and_is_claimed_as_any_other() {
    if !has_kvm("hurry") {
        return;
    }
    let home = Home::new();
    let image = home.make_image();
    let golden = home.bake(&image, &[]);
    // It would not get over this.
    std::fs::write(golden.join("touched"), dormouse_abi::DOORBELL.to_le_bytes()).unwrap();
    for together in [false, true] {
        let (mut own, theirs) = UnixStream::pair().unwrap();
        own.write_all(HURRY).unwrap();
        let claim = format!("{{\"database\":\"{DATABASE}\"}}\n");
        if together {
            own.write_all(claim.as_bytes()).unwrap();
        }
        let (vmm, mut owner) = ready_over((own, theirs), home.image_command(&image, &placeholder(), &["--standby"]), &home);
        if !together {
            owner.write_all(claim.as_bytes()).unwrap();
        }
        let mut control = vmm.control();
        assert_eq!(control.event("ready")["cold"], false);
        assert_eq!(control.ask(r#"{"op":"stop"}"#), serde_json::json!({"ok": true}));
        let (_, log) = vmm.end();
        assert!(!log.contains("its guest does not run"), "{log}");
        std::fs::remove_dir_all(home.database_dir()).unwrap();
    }
}

#[test]
fn one_that_nobody_can_claim_any_more_ends_well() {
    if !has_kvm("unclaimed") {
        return;
    }
    let home = Home::new();
    let (vmm, owner) = ready(&home);
    drop(owner);
    let (status, log) = vmm.end();
    assert_eq!(status.code(), Some(0), "{log}");
    assert_eq!(guest::files(&home.database_dir()), [""; 0]);
}

#[test]
fn a_claim_that_makes_no_sense_ends_it_before_it_touches_anything() {
    if !has_kvm("nonsense") {
        return;
    }
    let climbing = "../".repeat(DATABASE.len()).split_at(DATABASE.len()).0.to_owned();
    for (claim, why) in [
        (r#"{"database":"short"}"#.to_owned(), "the placeholder is"),
        (format!(r#"{{"database":"{climbing}"}}"#), "is not a database id"),
        (r#"{"image":"x"}"#.to_owned(), "unknown field"),
    ] {
        let home = Home::new();
        let (vmm, mut owner) = ready(&home);
        writeln!(owner, "{claim}").unwrap();
        let (status, log) = vmm.end();
        assert_ne!(status.code(), Some(0));
        assert!(log.contains(why), "{why}: {log}");
        assert_eq!(guest::files(&home.database_dir()), [""; 0]);
    }
}
