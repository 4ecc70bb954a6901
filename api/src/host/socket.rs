//! Connecting to a VMM's control socket: by short paths, and as soon as it is there.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;

/// Longest path a unix socket's address takes, in bytes.
const PATH_MAX: usize = 107;

/// Connects to `folder/name`, through `/proc/self/fd` where the path is too long for an address.
pub async fn connect(folder: &Path, name: &str) -> io::Result<UnixStream> {
    let path = folder.join(name);
    if path.as_os_str().len() <= PATH_MAX {
        return UnixStream::connect(path).await;
    }
    let folder = std::fs::File::open(folder)?;
    UnixStream::connect(format!("/proc/self/fd/{}/{name}", folder.as_raw_fd())).await
}

/// Whether the other end is still open. A process that ends closes it before its number is another's.
pub fn is_open(stream: &UnixStream) -> bool {
    let mut poll = libc::pollfd { fd: stream.as_raw_fd(), events: libc::POLLRDHUP, revents: 0 };
    // SAFETY: one entry, writable for the call, and no waiting.
    let told = unsafe { libc::poll(&raw mut poll, 1, 0) };
    told == 0
}

/// Connects to `folder/name` once something listens there. `folder` must exist.
pub async fn connect_when_there(folder: &Path, name: &str) -> io::Result<UnixStream> {
    // The watch comes before the first try, so no creation falls between the two.
    let watch = Watch::new(folder)?;
    loop {
        match connect(folder, name).await {
            Ok(stream) => return Ok(stream),
            Err(e) if e.kind() == io::ErrorKind::NotFound => watch.changed().await?,
            // Bound and not yet listening (or left by a dead one, to be replaced): no event tells of listen(),
            // which follows bind() by microseconds.
            Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
                let _ = tokio::time::timeout(Duration::from_micros(500), watch.changed()).await;
            }
            Err(e) => return Err(e),
        }
    }
}

/// An inotify watch on the entries of a folder.
struct Watch {
    /// There until it is dropped.
    inotify: Option<AsyncFd<OwnedFd>>,
}

impl Drop for Watch {
    /// Closing an inotify descriptor waits for a grace period of the kernel's, 18 ms here: twice a whole wake. So
    /// it is done elsewhere.
    fn drop(&mut self) {
        let inotify = self.inotify.take();
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn_blocking(move || drop(inotify));
        }
    }
}

impl Watch {
    fn new(folder: &Path) -> io::Result<Watch> {
        let path = CString::new(folder.as_os_str().as_bytes()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        // SAFETY: inotify_init1 takes no pointer.
        let fd = unsafe { libc::inotify_init1(libc::IN_CLOEXEC | libc::IN_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and owned by nobody else.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: `path` is a NUL-terminated string that lives through the call.
        let watch = unsafe { libc::inotify_add_watch(fd.as_raw_fd(), path.as_ptr(), libc::IN_CREATE | libc::IN_MOVED_TO) };
        if watch < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is owned by the AsyncFd and never replaced while registered.
        let inotify = unsafe { AsyncFd::register(fd)? };
        Ok(Watch { inotify: Some(inotify) })
    }

    /// Completes when an entry has come since the last call.
    async fn changed(&self) -> io::Result<()> {
        let mut buffer = [0_u8; 4096];
        let Some(inotify) = &self.inotify else { return Ok(()) };
        loop {
            let mut ready = inotify.readable().await?;
            let result = ready.try_io(|fd| {
                // SAFETY: the buffer is writable for the length passed.
                let n = unsafe { libc::read(fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) };
                if n < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
            });
            if let Ok(result) = result {
                return result;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_end_is_seen_before_all_that_was_said_is_read() {
        use tokio::io::AsyncWriteExt;
        let dir = tempfile::tempdir().unwrap();
        let listener = tokio::net::UnixListener::bind(dir.path().join("vm.ctl")).unwrap();
        let stream = connect(dir.path(), "vm.ctl").await.unwrap();
        let mut accepted = listener.accept().await.unwrap().0;
        accepted.write_all(b"ready").await.unwrap();
        assert!(is_open(&stream));
        drop(accepted);
        assert!(!is_open(&stream));
        // Of one that is never accepted.
        let waiting = connect(dir.path(), "vm.ctl").await.unwrap();
        assert!(is_open(&waiting));
        drop(listener);
        assert!(!is_open(&waiting));
    }

    #[tokio::test]
    async fn connects_as_soon_as_someone_listens_also_at_a_long_path() {
        for depth in [1, 6] {
            let dir = tempfile::tempdir().unwrap();
            let folder = dir.path().join(vec!["twenty-characters-dir"; depth].join("/"));
            std::fs::create_dir_all(&folder).unwrap();
            let waiting = tokio::spawn({
                let folder = folder.clone();
                async move { connect_when_there(&folder, "vm.ctl").await }
            });
            std::fs::write(folder.join("other"), "").unwrap();
            let handle = std::fs::File::open(&folder).unwrap();
            let listener = tokio::net::UnixListener::bind(format!("/proc/self/fd/{}/vm.ctl", handle.as_raw_fd())).unwrap();
            let (accepted, connected) = tokio::join!(listener.accept(), waiting);
            accepted.unwrap();
            connected.unwrap().unwrap();
        }
    }
}
