//! Unix sockets in the run folder, whatever the length of its path.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixListener;
use std::sync::{Mutex, PoisonError};

/// A process has one current folder.
static CURRENT_FOLDER: Mutex<()> = Mutex::new(());

/// Makes the folder the current one.
pub fn go_to(folder: impl AsFd) -> io::Result<()> {
    // SAFETY: takes an integer.
    if unsafe { libc::fchdir(folder.as_fd().as_raw_fd()) } < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Listens, non-blocking, at `name` in the folder, replacing what an earlier VMM left there. For a moment the folder is the
/// current one: socket addresses hold 107 bytes, a jail has no `/proc` to name a descriptor by, and `bind` takes none.
///
/// The caller holds the layer's lock, so no other VMM of this database can be listening; and no other thread uses relative
/// paths meanwhile.
pub fn listen(folder: impl AsFd, name: &str) -> io::Result<UnixListener> {
    let _current = CURRENT_FOLDER.lock().unwrap_or_else(PoisonError::into_inner);
    let before = File::options().read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY).open(".")?;
    go_to(folder)?;
    let listener = replace(name);
    go_to(before)?;
    let listener = listener?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn replace(name: &str) -> io::Result<UnixListener> {
    match std::fs::remove_file(name) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    UnixListener::bind(name)
}
