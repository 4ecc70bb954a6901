//! A VMM in its jail: what it gave up, and what becomes of it when it tries more.

#![allow(clippy::unwrap_used)]

mod guest;

use std::fs;
use std::time::{Duration, Instant};

use guest::{Home, Vmm, has_kvm};

/// A field of `/proc/PID/task/TID/status` of every thread, by the thread's name.
fn of_threads(vmm: &Vmm, field: &str) -> Vec<(String, String)> {
    let tasks = fs::read_dir(format!("/proc/{}/task", vmm.pid())).unwrap();
    tasks
        .map(|task| {
            let status = fs::read_to_string(task.unwrap().path().join("status")).unwrap();
            let value = |name: &str| {
                let line = status.lines().find_map(|line| line.strip_prefix(&format!("{name}:")));
                line.unwrap_or_else(|| panic!("no {name} in {status}")).trim().to_owned()
            };
            (value("Name"), value(field))
        })
        .collect()
}

fn all(vmm: &Vmm, field: &str, expected: &str) {
    for (name, value) in of_threads(vmm, field) {
        assert_eq!(value, expected, "{field} of {name}");
    }
}

#[test]
fn every_thread_has_given_up_its_powers_and_has_a_filter_of_its_own() {
    if !has_kvm("jail") {
        return;
    }
    let home = Home::new();
    let vmm = home.start("s", &[]);
    vmm.control().event("ready");
    let mut filters = of_threads(&vmm, "Seccomp_filters");
    // KVM's own never leaves the kernel.
    filters.retain(|(name, _)| !name.starts_with("kvm-"));
    filters.sort();
    // The third marks snapshots as spent; here there is none.
    let names: Vec<&str> = filters.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["dormouse-vmm", "io", "spend"]);
    let counts: Vec<&str> = filters.iter().map(|(_, count)| count.as_str()).collect();
    assert_eq!(counts, ["2", "3", "3"]);
    all(&vmm, "Seccomp", "2");
    all(&vmm, "NoNewPrivs", "1");
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        all(&vmm, set, "0000000000000000");
    }
    // SAFETY: takes nothing.
    if unsafe { libc::geteuid() } == 0 {
        all(&vmm, "CapBnd", "0000000000000000");
    }
    let limits = fs::read_to_string(format!("/proc/{}/limits", vmm.pid())).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert!(core.split_whitespace().filter(|word| *word == "0").count() == 2, "{core}");
}

#[test]
fn without_a_jail_it_says_so() {
    if !has_kvm("no jail") {
        return;
    }
    let home = Home::new();
    let vmm = home.start("s", &["--no-jail"]);
    vmm.control().event("ready");
    all(&vmm, "Seccomp", "0");
    vmm.control().ask(r#"{"op":"stop"}"#);
    assert!(vmm.end().1.contains("THE JAIL IS OFF"));
}

#[test]
fn a_profile_is_taken_all_the_same() {
    if !has_kvm("profile in a jail") {
        return;
    }
    let home = Home::new();
    let vmm = home.start("h", &["--watchdog-ms", "0"]);
    let mut control = vmm.control();
    control.event("ready");
    assert_eq!(control.ask(r#"{"op":"profile","hz":1000}"#)["ok"], true);
    let until = Instant::now() + Duration::from_secs(10);
    while control.ask(r#"{"op":"status"}"#)["exits"]["signal"] == 0 {
        assert!(Instant::now() < until, "no timer took the guest out");
    }
    assert!(control.ask(r#"{"op":"profile","hz":0}"#)["samples"].as_u64().unwrap() > 0);
}

/// The main thread serves the control socket while the guest is halted, the I/O thread while it computes.
#[cfg(feature = "crash-points")]
mod taken_over {
    use super::*;
    use std::io::{BufRead, BufReader, Write};

    /// What the VMM answers, `None` if it died first; and its end.
    fn attempt(behaviour: &str, more: &[&str], what: &str) -> (Option<serde_json::Value>, Option<i32>, String) {
        let home = Home::new();
        let vmm = home.start(behaviour, &[&["--watchdog-ms", "0"], more].concat());
        vmm.control().event("ready");
        let mut control = BufReader::new(vmm.connect("vm.ctl"));
        writeln!(control.get_mut(), r#"{{"op":"attempt","what":"{what}"}}"#).unwrap();
        let answer = control.lines().map_while(Result::ok).find_map(|line| {
            let value: serde_json::Value = serde_json::from_str(&line).unwrap();
            value.get("ok").is_some().then_some(value)
        });
        if answer.is_some() {
            vmm.signal(libc::SIGKILL);
        }
        let (status, log) = vmm.end();
        (answer, status.code(), log)
    }

    #[test]
    fn what_is_not_in_the_table_ends_the_process_and_is_told() {
        if !has_kvm("attempts") {
            return;
        }
        for (behaviour, thread) in [("s", "dormouse-vmm"), ("h", "io")] {
            let (answer, ..) = attempt(behaviour, &[], "nothing");
            assert_eq!(answer.unwrap()["ok"], true, "what is allowed is done");
            for (what, call) in [
                ("execve", libc::SYS_execve),
                ("fork", libc::SYS_clone),
                ("internet", libc::SYS_socket),
                ("connect", libc::SYS_connect),
                ("kill", libc::SYS_kill),
                ("ptrace", libc::SYS_ptrace),
                ("unshare", libc::SYS_unshare),
                ("executable", libc::SYS_mmap),
                ("io_uring", libc::SYS_io_uring_setup),
                ("other ioctl", libc::SYS_ioctl),
                ("x32", 0x4000_0000 + libc::SYS_getpid),
            ] {
                let (answer, status, log) = attempt(behaviour, &[], what);
                assert_eq!((&answer, status), (&None, Some(76)), "{what} by {thread}: {log}");
                let told = format!("call {call} (");
                assert!(log.contains(&told) && log.contains(&format!("of thread {thread}\"")), "{what}: {log}");
            }
        }
    }

    /// That the test above can fail.
    #[test]
    fn without_a_jail_the_same_is_done() {
        if !has_kvm("attempts without a jail") {
            return;
        }
        for what in ["internet", "executable", "kill"] {
            let (answer, ..) = attempt("s", &["--no-jail"], what);
            assert_eq!(answer.unwrap()["ok"], true, "{what}");
        }
    }
}
