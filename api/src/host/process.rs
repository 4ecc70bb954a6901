//! A VMM's process: knowing when it is gone, killing it, and adopting one left by another server.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;
use tokio::process::Child;

use super::layout::Home;
use crate::identity::DatabaseId;

/// What a VMM is told of its database.
#[derive(Clone, Debug)]
pub struct Spec {
    pub id: DatabaseId,
    pub image: String,
    pub memory_mib: u64,
    /// Most bytes of the layer, in MiB.
    pub storage_mib: u64,
}

/// Exit statuses of a VMM (`docs/interfaces.md`).
pub mod status {
    pub const NO_KVM: i32 = 69;
    pub const LOCKED: i32 = 73;
    pub const HUNG: i32 = 75;
}

/// A VMM's process, ours or adopted.
pub enum Process {
    Child(Child),
    Adopted { pid: u32, pidfd: AsyncFd<OwnedFd> },
}

impl Process {
    /// The process behind a control socket, if it is the VMM of this database.
    pub fn adopt(stream: &UnixStream, id: &DatabaseId) -> io::Result<Process> {
        let pid = stream.peer_cred()?.pid().ok_or_else(|| io::Error::other("the peer has no process id"))?;
        Process::adopt_pid(pid as u32, id)
    }

    /// Likewise, by its number. The descriptor is taken before the look at the command line, so the number
    /// cannot have passed to another process in between.
    pub fn adopt_pid(pid: u32, id: &DatabaseId) -> io::Result<Process> {
        // SAFETY: pidfd_open takes two integers.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid as libc::pid_t, libc::PIDFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and owned by nobody else.
        let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
        let words = command_line(pid)?;
        let names_it = words.windows(2).any(|w| w[0] == "--database" && w[1] == id.as_str());
        if !names_it {
            return Err(io::Error::other(format!("process {pid} is not the VMM of {id}")));
        }
        // SAFETY: the descriptor is owned by the AsyncFd and never replaced while registered.
        let pidfd = unsafe { AsyncFd::register(fd)? };
        Ok(Process::Adopted { pid, pidfd })
    }

    pub fn pid(&self) -> Option<u32> {
        match self {
            Process::Child(child) => child.id(),
            Process::Adopted { pid, .. } => Some(*pid),
        }
    }

    /// Waits until the process is gone. The exit status of one that is not our child is not known. Cancel-safe.
    pub async fn gone(&mut self) -> Option<std::process::ExitStatus> {
        match self {
            Process::Child(child) => child.wait().await.ok(),
            Process::Adopted { pidfd, .. } => {
                // Readable once the process has ended; an error means that it cannot be watched any more.
                let _ = pidfd.readable().await;
                None
            }
        }
    }

    /// Kills it at once. Nothing committed is lost: the data directory is what Postgres flushed.
    pub fn kill(&mut self) {
        match self {
            // An error means that it has already ended.
            Process::Child(child) => drop(child.start_kill()),
            Process::Adopted { pidfd, .. } => {
                let fd = pidfd.get_ref().as_raw_fd();
                // SAFETY: a descriptor we own, a signal number, no siginfo, no flags.
                unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, libc::SIGKILL, std::ptr::null::<libc::siginfo_t>(), 0) };
            }
        }
    }
}

fn command_line(pid: u32) -> io::Result<Vec<String>> {
    let bytes = fs::read(format!("/proc/{pid}/cmdline"))?;
    Ok(bytes.split(|b| *b == 0).map(|w| String::from_utf8_lossy(w).into_owned()).collect())
}

/// All VMMs of this home that run, by `/proc`: also those whose sockets are not there (yet).
pub fn running(home: &Home) -> Vec<(u32, DatabaseId)> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let root = home.root().to_string_lossy();
    entries
        .flatten()
        .filter_map(|entry| {
            let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
            let words = command_line(pid).ok()?;
            if words.get(1).map(String::as_str) != Some("vmm") {
                return None;
            }
            let value = |flag: &str| words.windows(2).find(|w| w[0] == flag).map(|w| w[1].as_str());
            (value("--home")? == root).then_some(())?;
            Some((pid, DatabaseId::parse(value("--database")?)?))
        })
        .collect()
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

#[cfg(test)]
mod tests {
    use super::{cry, tail, words};

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
