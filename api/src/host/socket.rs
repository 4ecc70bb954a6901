//! Connecting to a VMM's control socket.

use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use dormouse_pooler::socket::short_path;
use tokio::io::Interest;
use tokio::net::UnixStream;

/// Connects to a socket, whatever the length of its path.
pub async fn connect(path: &Path) -> io::Result<UnixStream> {
    // Kept open until connected: the path may go through it.
    let (path, _folder) = short_path(path)?;
    UnixStream::connect(path).await
}

/// Whether the other end is still open. A process that ends closes it before its number is another's.
pub fn is_open(stream: &UnixStream) -> bool {
    let mut poll = libc::pollfd { fd: stream.as_raw_fd(), events: libc::POLLRDHUP, revents: 0 };
    // SAFETY: one entry, writable for the call, and no waiting.
    let told = unsafe { libc::poll(&raw mut poll, 1, 0) };
    // Below 0: interrupted.
    told <= 0
}

/// Completes once the other end is closed. Nothing of what it says is read.
pub async fn closed(stream: &UnixStream) {
    let still_open = || if is_open(stream) { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) };
    while stream.readable().await.is_ok() && stream.try_io(Interest::READABLE, still_open).is_err() {}
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn an_end_is_seen_before_all_that_was_said_is_read() {
        use tokio::io::AsyncWriteExt;
        let dir = tempfile::tempdir().unwrap();
        let listener = tokio::net::UnixListener::bind(dir.path().join("vm.ctl")).unwrap();
        let stream = connect(&dir.path().join("vm.ctl")).await.unwrap();
        let mut accepted = listener.accept().await.unwrap().0;
        accepted.write_all(b"ready").await.unwrap();
        assert!(is_open(&stream));
        let mut ended = std::pin::pin!(closed(&stream));
        assert!(tokio::time::timeout(Duration::from_millis(5), &mut ended).await.is_err());
        drop(accepted);
        assert!(!is_open(&stream));
        ended.await;
        let mut said = [0; 8];
        assert_eq!(stream.try_read(&mut said).unwrap(), 5, "it is left to be read");
        // Of one that is never accepted.
        let waiting = connect(&dir.path().join("vm.ctl")).await.unwrap();
        assert!(is_open(&waiting));
        drop(listener);
        assert!(!is_open(&waiting));
    }

    #[tokio::test]
    async fn connects_at_any_length_of_path() {
        for depth in [1, 6] {
            let dir = tempfile::tempdir().unwrap();
            let folder = dir.path().join(vec!["twenty-characters-dir"; depth].join("/"));
            std::fs::create_dir_all(&folder).unwrap();
            let (handle, path) = (std::fs::File::open(&folder).unwrap(), folder.join("vm.ctl"));
            let listener = tokio::net::UnixListener::bind(format!("/proc/self/fd/{}/vm.ctl", handle.as_raw_fd())).unwrap();
            let (accepted, connected) = tokio::join!(listener.accept(), connect(&path));
            accepted.unwrap();
            connected.unwrap();
        }
    }
}
