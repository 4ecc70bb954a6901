//! A control group (version 2) for each VMM: bounds of its memory and processes that the host keeps, and a share of the
//! processors.
//!
//! ```text
//!  host.cgroup ─┬─ server          this process, where it was in that group: one with groups below it has no processes
//!               └─ dormouse-HOME   one for each home ─┬─ PID   a VMM
//!                                                     └─ …
//! ```
//!
//! Of the controllers those are used that the group has and lets its groups have; which are not is told. A group is made with its VMM, before that is claimed, and removed
//! once it has ended.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sha2::{Digest, Sha256};

use super::shelves::Kind;
use crate::host::layout::Home;

/// The value of `host.cgroup` that stands for the server's own group.
pub const OWN: &str = "own";
/// Of each group's VMM; it is as many as its own jail lets it have.
const PROCESSES: u32 = 64;
/// What a VMM may have beside the guest's memory, in MiB, and as a share of it: itself, page tables of the host and of KVM, and
/// what the page cache holds of its files while they are written.
const BESIDE_MIB: u64 = 64;
const BESIDE_SHARE: u64 = 8;
/// The weight of a VMM of 512 MiB is the usual one.
const USUAL: (u64, u64) = (100, 512);
const CONTROLLERS: [&str; 3] = ["memory", "pids", "cpu"];

/// The controllers that can be switched on; each of the others is told of.
fn switch_on(switch: impl Fn(&str) -> io::Result<()>) -> Vec<&'static str> {
    let is_on = |name: &&'static str| {
        let switched = switch(name);
        if let Err(why) = &switched {
            tracing::warn!(controller = name, %why, "VMMs do without a controller of their control groups: of that they have no bounds but the host's");
        }
        switched.is_ok()
    };
    CONTROLLERS.into_iter().filter(is_on).collect()
}

/// The groups of a home's VMMs.
#[derive(Clone, Debug)]
pub struct Groups(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    folder: PathBuf,
    controllers: Vec<&'static str>,
    /// Those whose VMM had been told to end and was still there.
    left: Mutex<Vec<PathBuf>>,
    /// Bounds that a group did not take; each is told of once.
    refused: Mutex<BTreeSet<&'static str>>,
}

/// A VMM's.
#[derive(Debug)]
pub struct Group {
    folder: PathBuf,
    groups: Groups,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn said(what: &Path) -> impl Fn(io::Error) -> io::Error {
    move |error| io::Error::new(error.kind(), format!("{}: {error}", what.display()))
}

/// Without making the file: a control group has those that it has.
fn write(folder: &Path, file: &str, text: &str) -> io::Result<()> {
    let path = folder.join(file);
    let opened = fs::File::options().write(true).open(&path);
    opened.and_then(|mut file| io::Write::write_all(&mut file, text.as_bytes())).map_err(said(&path))
}

/// Where the hierarchy is mounted, and which group of it is this process'.
fn own() -> io::Result<(PathBuf, PathBuf)> {
    let none = || io::Error::new(io::ErrorKind::NotFound, "no control groups of version 2 are mounted");
    let (mounts, groups) = (fs::read_to_string("/proc/self/mountinfo")?, fs::read_to_string("/proc/self/cgroup")?);
    let (root, mount) = hierarchy(&mounts).ok_or_else(none)?;
    let group = groups.lines().find_map(|line| line.strip_prefix("0::")).ok_or_else(none)?;
    let below = Path::new(group).strip_prefix(root).map_err(|_| none())?;
    Ok((mount.into(), Path::new("/").join(below)))
}

/// Of `/proc/self/mountinfo`: the group that is the mount's root, and where it is mounted.
fn hierarchy(mounts: &str) -> Option<(&str, &str)> {
    mounts.lines().find_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(3);
        let (root, at) = (fields.next()?, fields.next()?);
        kind.starts_with("cgroup2 ").then_some((root, at))
    })
}

/// Leaves a group whose controllers groups below it are to have, for one of those.
fn make_room(group: &Path) -> io::Result<()> {
    // The host's root group, which has no type, may have processes all the same.
    if !group.join("cgroup.type").exists() {
        return Ok(());
    }
    let list = group.join("cgroup.procs");
    let all = fs::read_to_string(&list).map_err(said(&list))?;
    let own = std::process::id().to_string();
    if !all.lines().any(|pid| pid == own) {
        return Ok(());
    }
    if all.lines().any(|pid| pid != own) {
        return Err(io::Error::other(format!("{} has other processes, too", group.display())));
    }
    let server = group.join("server");
    make(&server)?;
    write(&server, "cgroup.procs", &own)
}

/// Whether systemd leaves a group to who runs in it: else it is systemd's to change.
fn is_delegated(group: &Path) -> bool {
    let Ok(path) = CString::new(group.as_os_str().as_bytes()) else { return false };
    [c"trusted.delegate", c"user.delegate"].into_iter().any(|name| {
        let mut value = [0u8; 2];
        // SAFETY: both names end with a zero, and the value has the length that is told.
        let len = unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
        len == 1 && value[0] == b'1'
    })
}

fn make(folder: &Path) -> io::Result<()> {
    match fs::create_dir(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(said(folder)(error)),
        _ => Ok(()),
    }
}

impl Groups {
    /// As the setting says: none of "", and none where the server's own group was not asked for and will not do.
    pub fn new(setting: &str, home: &Home) -> io::Result<Option<Groups>> {
        if setting.is_empty() {
            return Ok(None);
        }
        let made = own().and_then(|(mount, own)| {
            let group = if setting == OWN { own } else { setting.into() };
            let base = mount.join(group.strip_prefix("/").unwrap_or(&group));
            if setting == OWN && base != mount && ![Some(&*base), base.parent()].into_iter().flatten().any(is_delegated) {
                return Err(io::Error::other(format!("{} is not delegated to the server (Delegate=yes)", base.display())));
            }
            Groups::below(&base, home)
        });
        let why = match made {
            Ok(groups) if !groups.0.controllers.is_empty() => {
                tracing::info!(folder = %groups.0.folder.display(), controllers = groups.0.controllers.join(" "), "VMMs have control groups");
                return Ok(Some(groups));
            }
            Ok(groups) => {
                let _ = fs::remove_dir(&groups.0.folder);
                io::Error::other(format!("it has none of {} for them", CONTROLLERS.join(", ")))
            }
            Err(error) => error,
        };
        if setting != OWN {
            return Err(io::Error::new(why.kind(), format!("host.cgroup = {setting:?} cannot be used: {why}")));
        }
        tracing::info!(%why, "VMMs have no control groups of their own: memory and processors have no bounds but the host's (setting host.cgroup)");
        Ok(None)
    }

    /// Below a group; those that were left there are removed, but where a VMM runs.
    fn below(base: &Path, home: &Home) -> io::Result<Groups> {
        let name: String = Sha256::digest(home.root().as_os_str().as_bytes())
            .iter()
            .take(4)
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let folder = base.join(format!("dormouse-{name}"));
        make(&folder)?;
        for entry in fs::read_dir(&folder).map_err(said(&folder))?.flatten() {
            // Not of one that runs, nor the files that are the group's own.
            let _ = fs::remove_dir(entry.path());
        }
        let there = fs::read_to_string(base.join("cgroup.controllers")).map_err(said(base))?;
        let has = |name: &str| there.split_ascii_whitespace().any(|found| found == name);
        if CONTROLLERS.into_iter().any(has) {
            make_room(base)?;
        }
        let controllers = switch_on(|name| match has(name) {
            true => [base, &folder].into_iter().try_for_each(|folder| write(folder, "cgroup.subtree_control", &format!("+{name}"))),
            false => Err(io::Error::other(format!("{} does not have it", base.display()))),
        });
        Ok(Groups(Arc::new(Inner { folder, controllers, left: Mutex::default(), refused: Mutex::default() })))
    }

    /// The bounds of a VMM.
    fn limits(&self, kind: &Kind) -> Vec<(&'static str, String)> {
        let mut limits = Vec::new();
        for controller in &self.0.controllers {
            match *controller {
                "memory" => {
                    let most = kind.memory_mib + kind.memory_mib / BESIDE_SHARE + BESIDE_MIB;
                    limits.push(("memory.max", (most << 20).to_string()));
                    limits.push(("memory.oom.group", "1".to_owned()));
                    // A kernel without swap does not have it.
                    if self.0.folder.join("memory.swap.max").exists() {
                        limits.push(("memory.swap.max", "0".to_owned()));
                    }
                }
                "pids" => limits.push(("pids.max", PROCESSES.to_string())),
                _ => limits.push(("cpu.weight", (kind.memory_mib * USUAL.0 / USUAL.1).clamp(1, 10_000).to_string())),
            }
        }
        limits
    }

    /// Puts a VMM that was just started in a group of its own.
    pub fn add(&self, pid: u32, kind: &Kind) -> io::Result<Group> {
        self.tidy();
        let group = self.group(pid);
        make(&group.folder)?;
        for (file, text) in self.limits(kind) {
            // One bound less is no reason for none.
            if let Err(why) = write(&group.folder, file, &text)
                && locked(&self.0.refused).insert(file)
            {
                tracing::warn!(%why, "VMMs have a bound less: their control groups do not take it");
            }
        }
        match write(&group.folder, "cgroup.procs", &pid.to_string()) {
            Ok(()) => Ok(group),
            Err(error) => {
                group.remove();
                Err(error)
            }
        }
    }

    /// Removes the groups of those that have ended since they were told to.
    pub fn tidy(&self) {
        self.left().retain(|folder| fs::remove_dir(folder).is_err_and(|error| error.kind() != io::ErrorKind::NotFound));
    }

    /// The group of a VMM that runs already, if it has one.
    pub fn find(&self, pid: u32) -> Option<Group> {
        let group = self.group(pid);
        group.folder.is_dir().then_some(group)
    }

    fn group(&self, pid: u32) -> Group {
        Group { folder: self.0.folder.join(pid.to_string()), groups: self.clone() }
    }

    fn left(&self) -> MutexGuard<'_, Vec<PathBuf>> {
        locked(&self.0.left)
    }
}

impl Group {
    /// The host ended it, because it wanted more memory than it may have.
    pub fn ran_out_of_memory(&self) -> bool {
        let events = fs::read_to_string(self.folder.join("memory.events")).unwrap_or_default();
        let kills = events.lines().find_map(|line| line.strip_prefix("oom_kill "));
        kills.is_some_and(|kills| kills != "0")
    }

    /// Removes it, now or once its VMM has ended.
    pub fn remove(&self) {
        if fs::remove_dir(&self.folder).is_err_and(|error| error.kind() != io::ErrorKind::NotFound) {
            self.groups.left().push(self.folder.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    const KIND: fn(u64) -> Kind = |memory_mib| Kind { image: "i".into(), memory_mib };

    /// A folder that stands in for a group, with these controllers; and one for a VMM, as the kernel would make it.
    fn stand_in(controllers: &str, pid: u32) -> (tempfile::TempDir, Home, Groups) {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::new("/home".into());
        let fill = |folder: &Path| {
            fs::create_dir(folder).unwrap();
            for file in [
                "cgroup.procs",
                "cgroup.subtree_control",
                "memory.max",
                "memory.oom.group",
                "memory.swap.max",
                "pids.max",
                "cpu.weight",
            ] {
                fs::write(folder.join(file), "").unwrap();
            }
        };
        let base = dir.path().join("base");
        fill(&base);
        fs::write(base.join("cgroup.controllers"), controllers).unwrap();
        fs::write(base.join("cgroup.type"), "domain\n").unwrap();
        fs::write(base.join("cgroup.procs"), format!("{}\n", std::process::id())).unwrap();
        fill(&base.join("server"));
        fill(&base.join("dormouse-2cc974af"));
        fill(&base.join("dormouse-2cc974af").join(pid.to_string()));
        let groups = Groups::below(&base, &home).unwrap();
        (dir, home, groups)
    }

    fn read(path: PathBuf) -> String {
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    #[test]
    fn a_vmm_is_bounded_by_what_its_guest_may_have_and_by_the_controllers_that_there_are() {
        let (dir, _, groups) = stand_in("cpuset cpu io memory pids\n", 42);
        let base = dir.path().join("base");
        assert_eq!(read(base.join("server/cgroup.procs")), std::process::id().to_string());
        let group = groups.add(42, &KIND(512)).unwrap();
        let of = |file: &str| read(group.folder.join(file));
        assert_eq!(of("memory.max"), (640u64 << 20).to_string());
        assert_eq!(
            [of("memory.oom.group"), of("memory.swap.max"), of("pids.max"), of("cpu.weight")],
            ["1", "0", "64", "100"]
        );
        assert_eq!(of("cgroup.procs"), "42");
        let (_dir, _, groups) = stand_in("pids\n", 42);
        let group = groups.add(42, &KIND(512)).unwrap();
        assert_eq!(read(group.folder.join("pids.max")), "64");
        for folder in [&groups.0.folder, groups.0.folder.parent().unwrap()] {
            assert_eq!(read(folder.join("cgroup.subtree_control")), "+pids");
        }
        assert_eq!(read(group.folder.join("memory.max")) + &read(group.folder.join("cpu.weight")), "");
    }

    #[test]
    fn a_controller_or_a_bound_that_is_refused_leaves_the_others() {
        let refused = |name: &str| if name == "memory" { Err(io::ErrorKind::ResourceBusy.into()) } else { Ok(()) };
        assert_eq!(switch_on(refused), ["pids", "cpu"]);
        let (_dir, _, groups) = stand_in("cpu memory pids\n", 42);
        let folder = groups.group(42).folder;
        fs::remove_file(folder.join("memory.max")).unwrap();
        groups.add(42, &KIND(512)).unwrap();
        assert_eq!([read(folder.join("pids.max")), read(folder.join("cpu.weight")), read(folder.join("cgroup.procs"))], ["64", "100", "42"]);
        assert_eq!(*locked(&groups.0.refused), BTreeSet::from(["memory.max"]));
    }

    #[test]
    fn a_group_with_other_processes_is_not_used() {
        let (dir, home, _) = stand_in("memory\n", 42);
        let base = dir.path().join("base");
        fs::write(base.join("cgroup.procs"), format!("1\n{}\n", std::process::id())).unwrap();
        let error = Groups::below(&base, &home).unwrap_err().to_string();
        assert!(error.contains("has other processes"), "{error}");
    }

    #[test]
    fn that_the_host_ended_a_vmm_for_its_memory_is_seen() {
        let (_dir, _, groups) = stand_in("memory\n", 42);
        let group = groups.find(42).unwrap();
        for (events, expected) in
            [("", false), ("low 0\noom 3\noom_kill 0\n", false), ("oom 1\noom_kill 2\noom_group_kill 1\n", true)]
        {
            fs::write(group.folder.join("memory.events"), events).unwrap();
            assert_eq!(group.ran_out_of_memory(), expected, "{events}");
        }
        assert!(groups.find(43).is_none());
    }

    #[tokio::test]
    async fn of_a_process_that_is_gone_it_is_known_and_its_group_is_removed() {
        use crate::host::process::{Kept, Process};
        for (events, expected) in [("oom_kill 1\n", true), ("oom_kill 0\n", false)] {
            let child = tokio::process::Command::new("sleep").arg("60").spawn().unwrap();
            let (_dir, _, groups) = stand_in("memory\n", child.id().unwrap());
            let group = groups.find(child.id().unwrap()).unwrap();
            fs::write(group.folder.join("memory.events"), events).unwrap();
            let folder = group.folder.clone();
            let mut process = Process::child(child, Kept::new(None, Some(group)));
            assert!(!process.ran_out_of_memory());
            process.kill();
            process.gone().await;
            assert_eq!(process.ran_out_of_memory(), expected);
            // A stand-in has files, which a control group's removal takes along.
            assert_eq!(*groups.left(), [folder]);
        }
    }

    #[test]
    fn the_hierarchy_is_found_among_other_mounts() {
        let mounts = "24 1 0:2 / /proc rw - proc proc rw\n30 24 0:9 /a /sys/fs/cgroup/unified rw,relatime shared:3 - cgroup2 none rw\n";
        assert_eq!(hierarchy(mounts), Some(("/a", "/sys/fs/cgroup/unified")));
        assert_eq!(hierarchy("24 1 0:2 / /proc rw - cgroup cgroup rw,memory\n"), None);
    }

    #[test]
    fn nothing_is_used_where_none_is_named_and_what_is_named_must_do() {
        let home = Home::new("/home".into());
        assert!(Groups::new("", &home).unwrap().is_none());
        let error = Groups::new("/of-nobody/at-all", &home).unwrap_err().to_string();
        assert!(error.contains("host.cgroup = \"/of-nobody/at-all\" cannot be used"), "{error}");
    }

    /// In the host's own hierarchy.
    #[test]
    fn a_process_is_put_in_a_real_group_which_goes_once_it_has_ended() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::new(dir.path().into());
        // In this process' group, without controllers: those are not to be switched on for all of the host.
        let made = own().and_then(|(mount, own)| {
            let base = mount.join(own.strip_prefix("/").unwrap_or(&own)).join(format!("test-{}", std::process::id()));
            make(&base)?;
            Ok((Groups::below(&base, &home)?, base))
        });
        let (groups, base) = match made {
            Ok(made) => made,
            Err(error) => return eprintln!("skipped: no groups can be made here: {error}"),
        };
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let group = groups.add(child.id(), &KIND(512)).unwrap();
        assert!(
            read(format!("/proc/{}/cgroup", child.id()).into())
                .contains(group.folder.file_name().unwrap().to_str().unwrap())
        );
        // Let go while it runs: what is left goes when the next is made.
        group.remove();
        assert!(group.folder.exists() && groups.find(child.id()).is_some());
        child.kill().unwrap();
        child.wait().unwrap();
        let mut next = Command::new("sleep").arg("60").spawn().unwrap();
        let second = groups.add(next.id(), &KIND(512)).unwrap();
        assert!(!group.folder.exists() && second.folder.exists());
        next.kill().unwrap();
        next.wait().unwrap();
        // A server that is killed removes none; its next one does.
        assert!(Groups::below(&base, &home).unwrap().find(next.id()).is_none());
        fs::remove_dir(&groups.0.folder).unwrap();
        fs::remove_dir(&base).unwrap();
    }

    /// The bounds themselves, where this process may have them.
    #[test]
    fn a_process_that_wants_more_memory_than_its_vmm_may_have_is_ended_and_it_is_known() {
        use std::os::unix::process::ExitStatusExt;
        let dir = tempfile::tempdir().unwrap();
        let home = Home::new(dir.path().into());
        let groups = Groups::new(OWN, &home).unwrap().filter(|groups| groups.0.controllers.contains(&"memory"));
        let Some(groups) = groups else {
            return eprintln!(
                "skipped: no bounds of memory can be set here (in a service with Delegate=yes they could)"
            );
        };
        let hungry = "read go; head -c 209715200 /dev/zero | tail -c 209715200 > /dev/null";
        let mut child = Command::new("sh").args(["-c", hungry]).stdin(std::process::Stdio::piped()).spawn().unwrap();
        let group = groups.add(child.id(), &KIND(8)).unwrap();
        assert_eq!(read(group.folder.join("memory.max")).trim(), (73u64 << 20).to_string());
        drop(child.stdin.take());
        assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL), "as a whole");
        assert!(group.ran_out_of_memory());
        group.remove();
        // A VMM is one process; of these three the others may still be on their way.
        let until = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while group.folder.exists() {
            assert!(std::time::Instant::now() < until, "its group is still there");
            groups.tidy();
        }
        fs::remove_dir(&groups.0.folder).unwrap();
    }
}
