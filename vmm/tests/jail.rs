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
        .filter_map(|task| {
            // One that has ended meanwhile has none.
            let status = fs::read_to_string(task.unwrap().path().join("status")).ok()?;
            let value = |name: &str| {
                let line = status.lines().find_map(|line| line.strip_prefix(&format!("{name}:")));
                line.unwrap_or_else(|| panic!("no {name} in {status}")).trim().to_owned()
            };
            Some((value("Name"), value(field)))
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
    let filters = || {
        let mut filters = of_threads(&vmm, "Seccomp_filters");
        // KVM's own never leaves the kernel.
        filters.retain(|(name, _)| !name.starts_with("kvm-"));
        filters.sort();
        filters
    };
    // The one that would mark a snapshot as spent ends: here there is none.
    let until = Instant::now() + Duration::from_secs(10);
    while filters().iter().any(|(name, _)| name == "spend") {
        assert!(Instant::now() < until, "a thread that nobody needs is left");
    }
    let pair = |name: &str, count: &str| (name.to_owned(), count.to_owned());
    assert_eq!(filters(), [pair("dormouse-vmm", "2"), pair("io", "3")]);
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

/// In the environment of a VMM for tests: it does as on a kernel without Landlock.
#[cfg_attr(not(feature = "crash-points"), allow(dead_code))]
const WITHOUT_LANDLOCK: (&str, &str) = ("DORMOUSE_WITHOUT_LANDLOCK", "1");

#[cfg(feature = "crash-points")]
fn has_landlock(test: &str) -> bool {
    let there = dormouse_vmm::jail::landlock::version() > 0;
    if !there {
        eprintln!("{test}: skipped, this kernel has no Landlock");
    }
    there
}

/// A VMM that stands by apart from the host, claimed for a database; as a server that is root does it.
mod apart {
    use super::*;
    use dormouse_vmm::jail::folders::{self, Owner};
    use dormouse_vmm::standby::APART;
    use guest::DATABASE;
    use std::io::Write;
    use std::os::fd::OwnedFd;
    use std::os::unix::fs::MetadataExt;
    use std::os::unix::net::UnixStream;
    use std::path::{Path, PathBuf};
    use std::process::Stdio;

    const UIDS: u32 = 1_879_048_192;

    fn is_root(test: &str) -> bool {
        // SAFETY: takes nothing.
        let root = unsafe { libc::geteuid() } == 0;
        if !root {
            assert!(std::env::var_os("CI").is_none(), "{test}: not root");
            eprintln!("{test}: skipped, not root");
        }
        root
    }

    struct Place {
        home: Home,
        image: String,
    }

    impl Place {
        fn new() -> Self {
            let home = Home::new();
            let image = home.make_image();
            fs::create_dir_all(home.database_dir()).unwrap();
            Self { home, image }
        }

        /// One that stands by, who may claim it, and who its files are to belong to.
        fn ready(&self, more: &[&str]) -> (Vmm, UnixStream, Option<Owner>) {
            self.ready_with(more, true)
        }

        /// The same, with Landlock or as of a kernel that has none: of a build for tests.
        fn ready_with(&self, more: &[&str], landlock: bool) -> (Vmm, UnixStream, Option<Owner>) {
            let (own, theirs) = UnixStream::pair().unwrap();
            let mut command = self.home.image_command(&self.image, &"p".repeat(DATABASE.len()), &["--standby"]);
            command.args(["--jail-root", "--jail-uids", &UIDS.to_string(), "--postgres-arg", "s"]).args(more);
            command.stdin(Stdio::from(OwnedFd::from(theirs))).envs((!landlock).then_some(WITHOUT_LANDLOCK));
            let vmm = Vmm::new(command, &self.home);
            let mut said = [0; APART.len()];
            let (len, descriptor) = folders::receive(&own, &mut said).unwrap();
            if len == 0 {
                panic!("{}", vmm.end().1);
            }
            assert_eq!(said, APART);
            (vmm, own, descriptor.map(Owner::from))
        }

        fn claim(&self, stream: &UnixStream, owner: Option<&Owner>) {
            let lent = folders::lend(&self.home.database_dir(), owner, false).unwrap();
            let claim = format!("{{\"database\":\"{DATABASE}\"}}\n");
            folders::send(stream, claim.as_bytes(), Some(&lent)).unwrap();
        }

        /// Claimed and running.
        fn run(&self, more: &[&str]) -> Vmm {
            let (vmm, stream, owner) = self.ready(more);
            self.claim(&stream, owner.as_ref());
            vmm
        }
    }

    fn names(folder: &Path) -> Vec<String> {
        guest::files(folder)
    }

    #[test]
    fn it_sees_its_image_and_its_database_and_nothing_else_and_is_nobody() {
        if !has_kvm("apart") || !is_root("apart") {
            return;
        }
        let place = Place::new();
        let (vmm, stream, owner) = place.ready(&[]);
        assert!(owner.is_some(), "this file system can show its files as another's");
        let of = |what: &str| PathBuf::from(format!("/proc/{}/{what}", vmm.pid()));
        // Before it is claimed.
        let user = UIDS + vmm.pid();
        all(&vmm, "Uid", &[user.to_string().as_str(); 4].join("\t"));
        all(&vmm, "Gid", &[user.to_string().as_str(); 4].join("\t"));
        all(&vmm, "Groups", "");
        all(&vmm, "CapEff", "0000000000000000");
        all(&vmm, "Seccomp", "2");
        assert_eq!(names(&of("root")), ["images", "templates"]);
        assert_eq!(names(&of("root/images")), [place.image.as_str()]);
        assert!(fs::write(of("root/images/x"), "").is_err() && fs::write(of("root/templates/x"), "").is_err());
        for namespace in ["mnt", "ipc", "uts", "cgroup"] {
            let own = Path::new("/proc/self/ns").join(namespace);
            assert_ne!(fs::read_link(own).unwrap(), fs::read_link(of("ns").join(namespace)).unwrap(), "{namespace}");
        }
        let mounts = fs::read_to_string(of("mountinfo")).unwrap();
        assert_eq!(mounts.lines().count(), 3, "{mounts}");
        place.claim(&stream, owner.as_ref());
        vmm.control().event("ready");
        assert_eq!(names(&of("cwd")), names(&place.home.database_dir()));
        assert!(names(&of("cwd")).contains(&"layer".to_owned()));
        // What it makes is the host's root's.
        for file in ["layer/lock", "vmm.log"] {
            assert_eq!(fs::metadata(place.home.database_dir().join(file)).unwrap().uid(), 0, "{file}");
        }
        // It sleeps and wakes as any other.
        assert_eq!(vmm.control().ask(r#"{"op":"suspend"}"#)["ok"], true);
        assert_eq!(vmm.end().0.code(), Some(0));
        let vmm = place.run(&[]);
        assert_eq!(vmm.control().event("ready")["cold"], false);
        assert_eq!(vmm.control().ask(r#"{"op":"stop"}"#)["ok"], true);
        let (status, log) = vmm.end();
        assert_eq!(status.code(), Some(0), "{log}");
    }

    #[test]
    fn a_claim_without_the_folders_ends_it() {
        if !has_kvm("no folders") || !is_root("no folders") {
            return;
        }
        let place = Place::new();
        let (vmm, mut stream, _) = place.ready(&[]);
        writeln!(stream, r#"{{"database":"{DATABASE}"}}"#).unwrap();
        let (status, log) = vmm.end();
        assert_ne!(status.code(), Some(0));
        assert!(log.contains("without the database's folder"), "{log}");
    }

    #[cfg(feature = "crash-points")]
    #[test]
    fn what_is_outside_cannot_be_opened_by_any_path() {
        if !has_kvm("outside") || !is_root("outside") {
            return;
        }
        let place = Place::new();
        let other = place.home.path("databases/db_bbbbbbbbbbbbbbbbbbbb");
        fs::create_dir_all(&other).unwrap();
        fs::write(other.join("secret"), "x").unwrap();
        let vmm = place.run(&[]);
        let mut control = vmm.control();
        control.event("ready");
        let mut open = |path: &str| control.ask(&format!(r#"{{"op":"attempt","what":"open {path}"}}"#))["ok"] == true;
        assert!(open("layer/lock") && open(&format!("/images/{}/kernel.elf", place.image)), "its own");
        for path in [
            "/etc/passwd",
            "../../../../../../../etc/passwd",
            "../db_bbbbbbbbbbbbbbbbbbbb/secret",
            "/proc/self/mem",
            "/dev/kvm",
            other.join("secret").to_str().unwrap(),
            place.home.path("kernel.elf").to_str().unwrap(),
        ] {
            assert!(!open(path), "{path}");
        }
        // The same, where there is no jail.
        let home = Home::new();
        let vmm = home.start("s", &["--no-jail"]);
        let mut control = vmm.control();
        control.event("ready");
        assert_eq!(control.ask(r#"{"op":"attempt","what":"open /etc/passwd"}"#)["ok"], true);
    }

    /// Its database's folder is its own to write in, and its user may: nothing but Landlock is against moving a file out of its folder.
    #[cfg(feature = "crash-points")]
    #[test]
    fn it_moves_no_file_from_one_folder_to_another() {
        if !has_kvm("moving") || !is_root("moving") || !has_landlock("moving") {
            return;
        }
        for (landlock, moved) in [(true, false), (false, true)] {
            let place = Place::new();
            // The I/O thread, which moves nothing at all, ends the process instead where it serves the request.
            let (vmm, mut control) = (0..20)
                .find_map(|_| {
                    let (vmm, stream, owner) = place.ready_with(&[], landlock);
                    place.claim(&stream, owner.as_ref());
                    let mut control = vmm.control();
                    control.event("ready");
                    fs::write(place.home.database_dir().join("layer/x"), "").unwrap();
                    match control.try_ask(r#"{"op":"attempt","what":"move layer/x x"}"#) {
                        Some(answer) => {
                            assert_eq!(answer["ok"], moved, "Landlock: {landlock}");
                            Some((vmm, control))
                        }
                        None => {
                            let status = vmm.end().0;
                            let log = fs::read_to_string(place.home.database_dir().join("vmm.log")).unwrap();
                            assert!(status.code() == Some(76) && log.contains("of thread io"), "{log}");
                            None
                        }
                    }
                })
                .expect("served by the main thread, sooner or later");
            assert_eq!(control.ask(r#"{"op":"attempt","what":"write layer/y"}"#)["ok"], true);
            // It sleeps and wakes either way.
            assert_eq!(control.ask(r#"{"op":"suspend"}"#)["ok"], true);
            assert_eq!(vmm.end().0.code(), Some(0));
            assert_eq!(place.run(&[]).control().event("ready")["cold"], false);
        }
    }
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
    let mut signals = || control.ask(r#"{"op":"status"}"#)["exits"]["signal"].as_u64().unwrap();
    // A kick takes the guest out too, and one may be on its way: the second signal from here is the timer's.
    let wanted = signals() + 2;
    let until = Instant::now() + Duration::from_secs(10);
    while signals() < wanted {
        assert!(Instant::now() < until, "no timer took the guest out");
    }
    assert!(control.ask(r#"{"op":"profile","hz":0}"#)["samples"].as_u64().unwrap() > 0);
}

/// The main thread serves the control socket while the guest is halted, the I/O thread while it computes and for a
/// moment after.
#[cfg(feature = "crash-points")]
mod taken_over {
    use super::*;
    use std::io::{BufRead, BufReader, Write};

    /// What the VMM answers, `None` if it died first; and its end.
    fn attempt(behaviour: &str, more: &[&str], what: &str) -> (Option<serde_json::Value>, Option<i32>, String) {
        let home = Home::new();
        let vmm = home.start(behaviour, &[&["--watchdog-ms", "0"], more].concat());
        vmm.control().event("ready");
        let mut control = BufReader::new(vmm.connect("ctl"));
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

    /// Of files, where it has no root folder of its own, nor another user than who started it.
    #[test]
    fn only_landlock_keeps_it_from_the_files_of_its_user() {
        if !has_kvm("files") || !has_landlock("files") {
            return;
        }
        for (behaviour, thread) in [("s", "main"), ("h", "io")] {
            for landlock in [true, false] {
                let home = Home::new();
                fs::create_dir_all(home.path("databases/other")).unwrap();
                fs::write(home.path("databases/other/secret"), "x").unwrap();
                let mut command = home.command(behaviour);
                command.args(["--watchdog-ms", "0"]).envs((!landlock).then_some(WITHOUT_LANDLOCK));
                let vmm = Vmm::new(command, &home);
                let mut control = vmm.control();
                control.event("ready");
                let mut done = |what: &str, path: &std::path::Path| {
                    control.ask(&format!(r#"{{"op":"attempt","what":"{what} {}"}}"#, path.display()))["ok"] == true
                };
                assert!(done("open", &home.path("kernel.elf")) && done("open", &home.path("template/PG_VERSION")), "its own");
                assert!(done("open", &home.database_dir().join("console.log")));
                for path in ["/etc/passwd".into(), home.path("databases/other/secret")] {
                    assert_eq!(done("open", &path), !landlock, "{} by {thread}, Landlock: {landlock}", path.display());
                }
                if behaviour == "s" {
                    assert!(done("write", &home.database_dir().join("layer/x")));
                    for path in ["kernel.elf", "template/PG_VERSION", "databases/other/x", "run/x"] {
                        assert_eq!(done("write", &home.path(path)), !landlock, "{path}, Landlock: {landlock}");
                    }
                }
            }
        }
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
                ("socket", libc::SYS_socket),
                ("listen", libc::SYS_listen),
                ("connect", libc::SYS_connect),
                ("kill", libc::SYS_kill),
                ("ptrace", libc::SYS_ptrace),
                ("unshare", libc::SYS_unshare),
                ("executable", libc::SYS_mmap),
                ("handler", libc::SYS_rt_sigaction),
                ("moved over", libc::SYS_mremap),
                ("io_uring", libc::SYS_io_uring_setup),
                ("other ioctl", libc::SYS_ioctl),
                ("x32", 0x4000_0000 + libc::SYS_getpid),
            ] {
                let by_it = (0..20).any(|_| {
                    let (answer, status, log) = attempt(behaviour, &[], what);
                    assert_eq!((&answer, status), (&None, Some(76)), "{what} by {thread}: {log}");
                    assert!(log.contains(&format!("call {call} (")), "{what}: {log}");
                    log.contains(&format!("of thread {thread}\""))
                });
                assert!(by_it, "{what}: never taken by {thread}");
            }
        }
    }

    /// That the test above can fail.
    #[test]
    fn without_a_jail_the_same_is_done() {
        if !has_kvm("attempts without a jail") {
            return;
        }
        for what in ["internet", "executable", "kill", "handler"] {
            let (answer, ..) = attempt("s", &["--no-jail"], what);
            assert_eq!(answer.unwrap()["ok"], true, "{what}");
        }
    }
}
