//! A VMM's process: knowing when it is gone, killing it, and adopting one left by another server.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use tokio::io::unix::AsyncFd;
use tokio::process::Child;

use super::layout::Home;
use super::pool::{Group, Pool};
use super::record::Record;
use crate::identity::DatabaseId;

/// What a VMM is told of its database.
#[derive(Clone, Debug)]
pub struct Spec {
    pub id: DatabaseId,
    pub image: String,
    pub memory_mib: u64,
    /// Most bytes of the layer, in MiB.
    pub storage_mib: u64,
    /// Its layer was written: an empty one has lost its data.
    pub written: bool,
}

/// Exit statuses of a VMM (`docs/interfaces.md`).
pub mod status {
    pub const NO_KVM: i32 = 69;
    /// It cannot be packed, now or later.
    pub const UNFIT: i32 = 77;
    pub const HUNG: i32 = 75;
}

/// What there is of a VMM beside its process, and goes with it.
#[derive(Debug, Default)]
pub struct Kept {
    pub record: Option<Record>,
    pub group: Option<Group>,
    out_of_memory: bool,
}

impl Kept {
    pub fn new(record: Option<Record>, group: Option<Group>) -> Kept {
        Kept { record, group, out_of_memory: false }
    }

    pub fn remove(&mut self) {
        if let Some(group) = self.group.take() {
            self.out_of_memory = group.ran_out_of_memory();
            group.remove();
        }
        if let Some(record) = self.record.take() {
            record.remove();
        }
    }
}

/// The paths of a VMM's two sockets.
#[derive(Clone, Debug)]
pub struct Sockets {
    pub sessions: PathBuf,
    pub control: PathBuf,
}

enum Handle {
    Child(Child),
    Adopted { pid: u32, pidfd: AsyncFd<OwnedFd> },
}

/// A VMM's process, ours or adopted. Dropped, it goes on, and another server finds it.
pub struct Process {
    handle: Handle,
    kept: Kept,
}

impl Process {
    pub fn child(child: Child, kept: Kept) -> Process {
        Process { handle: Handle::Child(child), kept }
    }

    /// One that another server left.
    pub fn adopt(record: Record, pool: &Pool) -> io::Result<Process> {
        let pid = record.pid;
        // SAFETY: pidfd_open takes two integers.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid as libc::pid_t, libc::PIDFD_NONBLOCK) };
        if fd < 0 {
            let error = io::Error::last_os_error();
            record.forget();
            return Err(error);
        }
        // SAFETY: the descriptor is new and owned by nobody else.
        let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
        // Looked at once the descriptor is there: the number cannot have passed to another process in between.
        if !record.runs() {
            record.forget();
            return Err(io::ErrorKind::NotFound.into());
        }
        // SAFETY: the descriptor is owned by the AsyncFd and never replaced while registered.
        let pidfd = unsafe { AsyncFd::register(fd)? };
        // The other server may have ended in the middle of a suspend.
        let _ = set_idle(pid, false);
        Ok(Process { handle: Handle::Adopted { pid, pidfd }, kept: Kept::new(Some(record), pool.group_of(pid)) })
    }

    /// Where it takes sessions and where it takes requests, as long as it runs.
    pub fn sockets(&self) -> Option<Sockets> {
        let record = self.kept.record.as_ref()?;
        Some(Sockets { sessions: record.session_socket(), control: record.control_socket() })
    }

    pub fn pid(&self) -> Option<u32> {
        match &self.handle {
            Handle::Child(child) => child.id(),
            Handle::Adopted { pid, .. } => Some(*pid),
        }
    }

    /// Waits until the process is gone. The exit status of one that is not our child is not known. Cancel-safe.
    pub async fn gone(&mut self) -> Option<std::process::ExitStatus> {
        let status = match &mut self.handle {
            Handle::Child(child) => child.wait().await.ok(),
            Handle::Adopted { pidfd, .. } => {
                // Readable once the process has ended; an error means that it cannot be watched any more.
                let _ = pidfd.readable().await;
                None
            }
        };
        self.kept.remove();
        status
    }

    /// Of one that is gone: the host ended it, for it wanted more memory than it may have.
    pub fn ran_out_of_memory(&self) -> bool {
        self.kept.out_of_memory
    }

    /// Kills it at once. Nothing committed is lost: the data directory is what Postgres flushed.
    pub fn kill(&mut self) {
        match &mut self.handle {
            // An error means that it has already ended.
            Handle::Child(child) => drop(child.start_kill()),
            Handle::Adopted { pidfd, .. } => {
                let fd = pidfd.get_ref().as_raw_fd();
                // SAFETY: a descriptor we own, a signal number, no siginfo, no flags.
                unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, libc::SIGKILL, std::ptr::null::<libc::siginfo_t>(), 0) };
            }
        }
    }
}

/// Has a process give way to all others, or no longer.
pub fn set_background(process: &Process, background: bool) {
    let Some(pid) = process.pid() else { return };
    // SAFETY: three integers. That it cannot be done, without root, only makes it a little less welcome.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, pid, if background { 19 } else { 0 }) };
}

/// Has a process' first thread, and those that it makes from then on, run only when a processor has nothing else to do; or all of
/// its threads as any others. They give way at once, as those of the lowest priority do not. Where this server could not undo it, it
/// is not done.
pub fn set_idle(pid: u32, idle: bool) -> io::Result<()> {
    static CAN_BE_UNDONE: OnceLock<bool> = OnceLock::new();
    const SELF: u32 = 0;
    let there_and_back = || set_policy(SELF, libc::SCHED_IDLE).and_then(|()| set_policy(SELF, libc::SCHED_OTHER)).is_ok();
    let on_a_thread = || std::thread::Builder::new().spawn(there_and_back).is_ok_and(|tried| tried.join().unwrap_or(false));
    match *CAN_BE_UNDONE.get_or_init(on_a_thread) {
        true if idle => set_policy(pid, libc::SCHED_IDLE),
        true => {
            // First the one that makes the others.
            set_policy(pid, libc::SCHED_OTHER)?;
            // Twice: one that was just being made is listed a moment later.
            for _ in 0..2 {
                for thread in fs::read_dir(format!("/proc/{pid}/task"))?.flatten() {
                    if let Some(thread) = thread.file_name().to_str().and_then(|number| number.parse().ok()) {
                        // An error means that it has ended.
                        let _ = set_policy(thread, libc::SCHED_OTHER);
                    }
                }
            }
            Ok(())
        }
        false => Err(io::ErrorKind::PermissionDenied.into()),
    }
}

fn set_policy(pid: u32, policy: libc::c_int) -> io::Result<()> {
    // SAFETY: an all-zero parameter is a valid one, of both policies in use.
    let done = unsafe { libc::sched_setscheduler(pid as libc::pid_t, policy, &std::mem::zeroed()) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The reason a VMM left in its log past `mark` (the log's length when it was started): its last complaint, or
/// else, if `any`, its last line.
pub fn last_words(home: &Home, id: &DatabaseId, mark: u64, any: bool) -> Option<String> {
    words(&String::from_utf8_lossy(&tail(&home.vmm_log(id), mark, 4096)?), any)
}

/// The last grave line of the guest's console past `mark` (the log's length when it was started): a kernel's or
/// Postgres' panic, else a FATAL.
pub fn last_cry(home: &Home, id: &DatabaseId, mark: u64) -> Option<String> {
    cry(&String::from_utf8_lossy(&tail(&home.console_log(id), mark, 64 << 10)?))
}

/// The end of a log, at most `most` bytes and nothing before `mark`.
fn tail(path: &Path, mark: u64, most: u64) -> Option<Vec<u8>> {
    use std::io::{Read, Seek, SeekFrom};
    let mut file = fs::File::open(path).ok()?;
    let length = file.metadata().ok()?.len();
    // Started anew meanwhile: all of it is of this life.
    let mark = if mark > length { 0 } else { mark };
    file.seek(SeekFrom::Start(mark.max(length.saturating_sub(most)))).ok()?;
    let mut text = Vec::new();
    file.take(most).read_to_end(&mut text).ok()?;
    Some(text)
}

/// Longest line quoted from a console, in characters.
const CRY: usize = 300;

fn cry(text: &str) -> Option<String> {
    // A panic explains more than the FATALs that follow from it, or that clients have every day.
    let line = [&["PANIC:", "kernel panic", "kernel fault"][..], &["FATAL:"]]
        .iter()
        .find_map(|words| text.lines().rev().find(|line| words.iter().any(|word| line.contains(word))))?;
    Some(line.trim().chars().filter(|c| !c.is_control()).take(CRY).collect())
}

/// The line that explains, as a sentence.
fn words(text: &str, any: bool) -> Option<String> {
    let lines = || text.lines().rev().map(str::trim).filter(|line| !line.is_empty());
    let grave = |line: &&str| {
        let level = serde_json::from_str::<serde_json::Value>(line).ok();
        level.is_none_or(|v| matches!(v["level"].as_str(), Some("WARN" | "ERROR")))
    };
    let line = lines().find(grave).or_else(|| lines().next().filter(|_| any))?;
    let Ok(value) = serde_json::from_str::<serde_json::Value>(line) else { return Some(line.to_string()) };
    let fields = if value["fields"].is_object() { &value["fields"] } else { &value };
    match (fields["message"].as_str(), fields["error"].as_str()) {
        (Some(message), Some(error)) => Some(format!("{message}: {error}")),
        (Some(message), None) => Some(message.to_string()),
        _ => Some(line.to_string()),
    }
}

/// Starts a log anew when it has grown past its limit, keeping one old file.
pub fn rotate(path: &Path, limit: u64) {
    if fs::metadata(path).is_ok_and(|m| m.len() > limit) {
        let old = path.with_extension("log.1");
        if let Err(error) = fs::rename(path, &old) {
            tracing::warn!(path = %path.display(), %error, "log could not be rotated");
        }
    }
}

/// Leaves of a log and its old file the last `keep` bytes, from a line's beginning. Whoever writes to it must have ended. The
/// folder may have been a VMM's that was taken over: nothing is followed, and what is not a file stays.
pub fn shorten(path: &Path, keep: u64) {
    if let Err(error) = try_to_shorten(path, keep) {
        tracing::warn!(path = %path.display(), %error, "log could not be shortened");
    }
}

fn try_to_shorten(path: &Path, keep: u64) -> io::Result<()> {
    use std::io::{Read, Seek, SeekFrom, Write};
    let old = path.with_extension("log.1");
    let (mut text, mut whole) = (Vec::new(), 0);
    for path in [&old, path] {
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let mut file = match std::os::unix::fs::OpenOptionsExt::custom_flags(fs::File::options().read(true), flags).open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            file => file?,
        };
        let found = file.metadata()?;
        if !found.is_file() {
            return Err(io::Error::other("it is not a file"));
        }
        whole += found.len();
        file.seek(SeekFrom::Start(found.len().saturating_sub(keep)))?;
        file.take(keep).read_to_end(&mut text)?;
    }
    if whole <= keep {
        return Ok(());
    }
    let cut = text.len().saturating_sub(keep as usize);
    // Of a line that is longer its end is kept.
    let line = text[cut..].iter().position(|byte| *byte == b'\n').map_or(cut, |end| cut + end + 1);
    let aside = path.with_extension("log.new");
    let _ = fs::remove_file(&aside);
    let mut file = std::os::unix::fs::OpenOptionsExt::mode(fs::File::options().write(true).create_new(true), 0o600).open(&aside)?;
    file.write_all(&text[line..])?;
    fs::rename(&aside, path)?;
    match fs::remove_file(&old) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::{cry, set_idle, shorten, tail, words};

    #[test]
    fn what_gave_way_has_its_priority_back_with_all_its_threads() {
        // SAFETY: neither has an effect on memory.
        let me = || unsafe { libc::gettid() } as u32;
        let policy = |thread: u32| unsafe { libc::sched_getscheduler(thread as libc::pid_t) };
        let (told, made) = channel();
        let (end, ended) = channel::<()>();
        let one = std::thread::spawn(move || {
            if let Err(error) = set_idle(me(), true) {
                return assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied);
            }
            let other = std::thread::spawn(move || {
                told.send((me(), policy(me()))).unwrap();
                let _ = ended.recv();
            });
            other.join().unwrap();
        });
        let Ok((other, first)) = made.recv() else {
            one.join().unwrap();
            return eprintln!("skipped: priorities cannot be given back (no CAP_SYS_NICE)");
        };
        assert_eq!(first, libc::SCHED_IDLE, "it is inherited");
        set_idle(me(), false).unwrap();
        assert_eq!(policy(other), libc::SCHED_OTHER);
        drop(end);
        one.join().unwrap();
    }

    #[test]
    fn a_log_is_shortened_to_its_last_lines_and_no_link_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (log, old) = (dir.path().join("console.log"), dir.path().join("console.log.1"));
        let write = |path: &std::path::Path, from: u32, to: u32| {
            std::fs::write(path, (from..to).map(|n| format!("line {n:04}\n")).collect::<String>()).unwrap();
        };
        write(&old, 0, 100);
        write(&log, 100, 103);
        shorten(&log, 55);
        assert_eq!(std::fs::read_to_string(&log).unwrap(), "line 0098\nline 0099\nline 0100\nline 0101\nline 0102\n");
        assert!(!old.exists());
        shorten(&log, 55);
        assert_eq!(std::fs::read_to_string(&log).unwrap().len(), 50);
        // Rotated a moment ago.
        std::fs::rename(&log, &old).unwrap();
        shorten(&log, 20);
        assert_eq!(std::fs::read_to_string(&log).unwrap(), "line 0102\n");
        let other = dir.path().join("other");
        write(&other, 0, 100);
        std::fs::remove_file(&log).unwrap();
        std::os::unix::fs::symlink(&other, &log).unwrap();
        shorten(&log, 20);
        assert_eq!((log.is_symlink(), std::fs::read_to_string(&other).unwrap().len()), (true, 1000));
    }

    #[test]
    fn the_last_cry_is_a_panic_before_a_fatal_and_of_this_life() {
        let log = "FATAL:  role \"x\" does not exist\n12:00 PANIC:  could not write\u{7} to file\r\nFATAL:  the database system is shutting down\nLOG:  bye\n";
        assert_eq!(cry(log).as_deref(), Some("12:00 PANIC:  could not write to file"));
        assert_eq!(cry("LOG:  a\nFATAL:  b\nLOG:  c").as_deref(), Some("FATAL:  b"));
        assert_eq!(cry("LOG:  all is well\n"), None);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        std::fs::write(&path, "before|after").unwrap();
        assert_eq!(tail(&path, 7, 4096).unwrap(), b"after");
        assert_eq!(tail(&path, 7, 3).unwrap(), b"ter");
        // Rotated: shorter than it was.
        assert_eq!(tail(&path, 100, 4096).unwrap(), b"before|after");
    }

    #[test]
    fn the_last_words_are_the_gravest_as_a_sentence() {
        let json = concat!(
            r#"{"level":"WARN","fields":{"message":"the snapshot cannot be used","error":"checksum"}}"#,
            "\n",
            r#"{"level":"INFO","fields":{"message":"guest begins"}}"#,
            "\n"
        );
        assert_eq!(words(json, false).as_deref(), Some("the snapshot cannot be used: checksum"));
        assert_eq!(words("one\nerror: bad flag\n\n", false).as_deref(), Some("error: bad flag"));
        let info = r#"{"level":"INFO","fields":{"message":"the guest has left"}}"#;
        assert_eq!(words(info, true).as_deref(), Some("the guest has left"));
        assert_eq!(words(info, false), None);
        assert_eq!(words(" \n", true), None);
    }
}
