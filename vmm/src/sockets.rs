//! The two sockets of a VMM, `run/vmms/VMM.sock` and `run/vmms/VMM.ctl`: made before its jail is closed, in which no socket can be.
//!
//! `VMM` is the process' number and when it was started, which no other process ever has: whoever is late for this one does not come to
//! another database's.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::path::Path;

use crate::settings::remove_if_there;

/// What sessions connect to, and what requests come over.
#[derive(Debug)]
pub struct Listeners {
    pub sessions: UnixListener,
    pub control: UnixListener,
}

/// When a process was started, in the clock's ticks since the host's boot; `None` of one that has ended. An error says neither.
pub fn started(pid: u32) -> io::Result<Option<u64>> {
    let stat = match fs::read_to_string(format!("/proc/{pid}/stat")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
        stat => stat?,
    };
    let parsed = || {
        let mut fields = stat.rsplit_once(") ")?.1.split_ascii_whitespace();
        let ended = matches!(fields.next()?, "Z" | "X");
        // The state is field 3, the start is field 22.
        Some((fields.nth(22 - 4)?.parse().ok()?, ended))
    };
    let (started, ended) = parsed().ok_or(io::ErrorKind::InvalidData)?;
    Ok((!ended).then_some(started))
}

/// The name of a process that is a VMM.
pub fn name(pid: u32, started: u64) -> String {
    format!("{pid}-{started}")
}

impl Listeners {
    /// The names of both in their folder.
    fn names() -> io::Result<[String; 2]> {
        let pid = std::process::id();
        let name = name(pid, started(pid)?.ok_or(io::ErrorKind::NotFound)?);
        Ok([format!("{name}.sock"), format!("{name}.ctl")])
    }

    /// Listens, non-blocking, in the folder, replacing what a process of this name left there before the host's last boot.
    pub fn new(folder: &Path) -> io::Result<Self> {
        let open = File::open(folder)?;
        let listen = |name: &str| -> io::Result<UnixListener> {
            remove_if_there(&folder.join(name))?;
            // A socket's address holds 107 bytes, whatever the length of the folder's path.
            let listener = UnixListener::bind(format!("/proc/self/fd/{}/{name}", open.as_raw_fd()))?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        };
        let [sessions, control] = Self::names()?;
        Ok(Self { sessions: listen(&sessions)?, control: listen(&control)? })
    }

    /// Ends listening, and removes the sockets.
    pub fn end(self, folder: &Path) -> io::Result<()> {
        Self::names()?.iter().try_for_each(|name| remove_if_there(&folder.join(name)))
    }
}
