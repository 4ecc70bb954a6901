//! The two sockets of a VMM, `run/vmms/PID.sock` and `run/vmms/PID.ctl`: made before its jail is closed, in which no socket can be.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::path::Path;

/// What sessions connect to, and what requests come over.
#[derive(Debug)]
pub struct Listeners {
    pub sessions: UnixListener,
    pub control: UnixListener,
}

impl Listeners {
    /// Listens, non-blocking, in the folder, replacing what an earlier process of this number left there.
    pub fn new(folder: &Path) -> io::Result<Self> {
        let open = File::open(folder)?;
        let listen = |name: &str| {
            let name = format!("{}.{name}", std::process::id());
            match fs::remove_file(folder.join(&name)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            // A socket's address holds 107 bytes, whatever the length of the folder's path.
            let listener = UnixListener::bind(format!("/proc/self/fd/{}/{name}", open.as_raw_fd()))?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        };
        Ok(Self { sessions: listen("sock")?, control: listen("ctl")? })
    }
}
