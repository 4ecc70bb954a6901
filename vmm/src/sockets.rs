//! Unix sockets in the run folder, whatever the length of its path.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::path::Path;

/// Listens, non-blocking, at `folder/name`, replacing what an earlier VMM left there.
///
/// The caller holds the layer's lock, so no other VMM of this database can be listening.
pub fn listen(folder: &Path, name: &str) -> io::Result<UnixListener> {
    let directory = std::fs::File::open(folder)?;
    match std::fs::remove_file(folder.join(name)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // Socket addresses hold 107 bytes; the folder's descriptor makes any path short.
    let listener = UnixListener::bind(format!("/proc/self/fd/{}/{name}", directory.as_raw_fd()))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}
