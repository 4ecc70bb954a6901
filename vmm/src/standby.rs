//! A VMM made beforehand: it has done all that does not depend on the database, and waits to be told which it is for.
//!
//! ```text
//!  exec ─▶ image, VM, slot, vCPU, golden memory mapped ─▶ pages are touched ─▶ "ready" ─▶ {"database":…} ─▶ as any other VMM
//!                                          [`HURRY`] ends that ┘
//! ```
//!
//! It speaks with whoever started it over its standard input, a stream socket: a line each way, and from then on what is said
//! over `VMM.ctl`. A server that dies before closes it, and the process ends.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde::Deserialize;

use crate::jail::{Apart, folders};
use crate::settings::Task;
use crate::sockets::Listeners;

/// What is said when all is ready.
pub const READY: [u8; 6] = *b"ready\n";
/// What is said instead by one that is apart (`docs/jail.md`): it wants the database's folder with the claim,
/// and sends who their files are to belong to, if that can be.
pub const APART: [u8; 6] = *b"apart\n";
/// Said to one that is not ready yet: it is wanted now, with less than all done beforehand.
pub const HURRY: &[u8] = b"\n";
/// The longest claim, bytes.
const LONGEST: usize = 4096;

/// What a VMM is told when it is taken.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Claim {
    pub database: String,
    /// The most bytes of disk that its layer may take.
    #[serde(default)]
    pub storage_bytes: Option<u64>,
    /// Its layer was written: an empty one has lost its data.
    #[serde(default)]
    pub written: bool,
    /// What to do instead of running it.
    #[serde(default)]
    pub task: Option<Task>,
}

/// A VMM that stands by.
pub struct Standby {
    stream: UnixStream,
    name: Name,
}

impl Standby {
    /// `placeholder` is the database's name until it has one.
    pub fn new(placeholder: &str) -> io::Result<Self> {
        let stream = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
        // It is to be closed when it is dropped.
        replace(libc::STDIN_FILENO, &File::open("/dev/null")?)?;
        Ok(Self { stream, name: Name::find(placeholder)? })
    }

    /// Says that it is ready.
    pub fn say_ready(&self, apart: Option<Apart>) -> io::Result<()> {
        match apart {
            None => folders::send(&self.stream, &READY, None)?,
            Some(apart) => folders::send(&self.stream, &APART, apart.owner.map(OwnedFd::from).as_ref())?,
        };
        Ok(())
    }

    /// Whether it is told to hurry, or whoever could have claimed it is gone.
    pub fn is_wanted(&self) -> bool {
        self.polled(libc::POLLIN)
    }

    /// Listens in the folder. `None`, and no socket is left: whoever could have claimed it is gone, and may have removed what there is
    /// of this process before there were any.
    pub fn listen(&self, folder: &Path) -> io::Result<Option<Listeners>> {
        let listeners = Listeners::new(folder)?;
        match self.polled(libc::POLLRDHUP) {
            true => listeners.end(folder).map(|()| None),
            false => Ok(Some(listeners)),
        }
    }

    fn polled(&self, events: i16) -> bool {
        let mut event = libc::pollfd { fd: self.stream.as_raw_fd(), events, revents: 0 };
        // SAFETY: one pollfd, alive during the call, which does not wait.
        unsafe { libc::poll(&mut event, 1, 0) != 0 }
    }

    /// Waits for the claim, from which on the command line names its database, and for what comes with it; and gives the socket, for
    /// what is said later. `None`: whoever could have claimed it is gone.
    pub fn wait(self) -> io::Result<Option<(Claim, Option<OwnedFd>, UnixStream)>> {
        let (mut line, mut descriptor) = (Vec::new(), None);
        while line == HURRY || !line.ends_with(b"\n") {
            let mut part = [0; LONGEST];
            let (len, came) = folders::receive(&self.stream, &mut part)?;
            if len == 0 {
                return Ok(None);
            }
            line.extend_from_slice(&part[..len]);
            descriptor = came.or(descriptor);
            if line.len() > LONGEST {
                return Err(io::Error::other("the claim is too long"));
            }
        }
        let claim: Claim = serde_json::from_slice(&line)?;
        self.name.write(&claim.database)?;
        Ok(Some((claim, descriptor, self.stream)))
    }
}

/// The database's name in the command line that `ps` and the next server see.
struct Name {
    start: usize,
    len: usize,
}

impl Name {
    fn find(placeholder: &str) -> io::Result<Self> {
        let stat = fs::read_to_string("/proc/self/stat")?;
        let (start, end) = arguments(&stat).ok_or(io::ErrorKind::InvalidData)?;
        // SAFETY: what the kernel calls this process' arguments is its own initial stack, mapped for as long as it lives.
        let bytes = unsafe { std::slice::from_raw_parts(start as *const u8, end - start) };
        let at = bytes.split(|byte| *byte == 0).find(|word| *word == placeholder.as_bytes());
        let at = at.ok_or_else(|| io::Error::other("the command line does not name the database as a word of its own"))?;
        Ok(Self { start: at.as_ptr() as usize, len: at.len() })
    }

    fn write(&self, database: &str) -> io::Result<()> {
        if database.len() != self.len {
            return Err(io::Error::other(format!("the placeholder is {} bytes, {database:?} is not", self.len)));
        }
        // SAFETY: as in `find`; writable, and read by the standard library only when arguments are asked for, which
        // nothing does any more.
        unsafe { std::ptr::copy_nonoverlapping(database.as_ptr(), self.start as *mut u8, self.len) };
        Ok(())
    }
}

/// Where the arguments lie: fields 48 and 49 of `/proc/self/stat`, of which the second may hold spaces and brackets.
fn arguments(stat: &str) -> Option<(usize, usize)> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace().skip(48 - 3);
    let (start, end) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    (0 < start && start < end).then_some((start, end))
}

/// From now on what is written to standard output and error is the database's.
pub fn log_to(path: &Path) -> io::Result<()> {
    let log = File::options().create(true).append(true).open(path)?;
    replace(libc::STDOUT_FILENO, &log)?;
    replace(libc::STDERR_FILENO, &log)
}

fn replace(descriptor: RawFd, by: &File) -> io::Result<()> {
    // SAFETY: two open descriptors; the first is replaced in one step.
    if unsafe { libc::dup2(by.as_raw_fd(), descriptor) } < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_found_behind_any_name() {
        let mut fields: Vec<String> = (4..=52).map(|n| n.to_string()).collect();
        fields[48 - 4] = "4096".into();
        fields[49 - 4] = "8192".into();
        let stat = format!("17 (a ) b) S {}", fields.join(" "));
        assert_eq!(arguments(&stat), Some((4096, 8192)));
        assert_eq!(arguments("17 (x) S 1"), None);
        let own = fs::read_to_string("/proc/self/stat").unwrap();
        assert!(arguments(&own).is_some());
    }

    #[test]
    fn a_claim_names_a_database_and_nothing_unknown() {
        let claim: Claim = serde_json::from_str(r#"{"database":"db_x"}"#).unwrap();
        assert_eq!(claim, Claim { database: "db_x".into(), storage_bytes: None, written: false, task: None });
        let claim: Claim = serde_json::from_str(r#"{"database":"db_x","task":"pack"}"#).unwrap();
        assert_eq!(claim.task, Some(Task::Pack));
        assert!(serde_json::from_str::<Claim>(r#"{"database":"db_x","image":"y"}"#).is_err());
    }
}
