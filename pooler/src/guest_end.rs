//! The guest's end of a session: a unix stream, watched for input alone.
//!
//! tokio's own stream is watched for room too, and a unix stream has news of that each time its peer has read something:
//! a worker is woken for nothing with every query. This one is watched for room only while it has none.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::task::{Context, Poll, ready};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

pub(crate) struct GuestEnd {
    stream: AsyncFd<UnixStream>,
    /// The same stream once more, which has not taken all.
    full: Option<Box<AsyncFd<UnixStream>>>,
}

impl GuestEnd {
    pub fn new(stream: tokio::net::UnixStream) -> io::Result<GuestEnd> {
        Ok(GuestEnd { stream: watched(stream.into_std()?, Interest::READABLE)?, full: None })
    }

    /// Reads into `room`; 0 bytes is the end.
    pub fn poll_read(&mut self, cx: &mut Context<'_>, room: &mut [u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut ready = ready!(self.stream.poll_read_ready(cx))?;
            match ready.try_io(|stream| stream.get_ref().read(room)) {
                Ok(Ok(n)) => {
                    if 0 < n && n < room.len() {
                        // It is empty now: no second read to find that out. An end is remembered all the same.
                        ready.clear_ready();
                    }
                    return Poll::Ready(Ok(n));
                }
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_) => {}
            }
        }
    }

    /// Writes some of `bytes`.
    pub fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            if let Some(full) = &self.full {
                ready!(full.poll_write_ready(cx))?.clear_ready();
            }
            match self.stream.get_ref().write(bytes) {
                Ok(n) => {
                    self.full = None;
                    return Poll::Ready(Ok(n));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if self.full.is_none() {
                        let again = self.stream.get_ref().try_clone()?;
                        self.full = Some(Box::new(watched(again, Interest::WRITABLE)?));
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    /// Tells the guest that there will be no more bytes.
    pub fn end_writing(&self) {
        let _ = self.stream.get_ref().shutdown(Shutdown::Write);
    }
}

fn watched(stream: UnixStream, interest: Interest) -> io::Result<AsyncFd<UnixStream>> {
    // SAFETY: a `UnixStream` has one descriptor, open for its whole life, and nothing here takes it out.
    unsafe { AsyncFd::register_with_interest(stream, interest) }.map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn a_guest_that_reads_late_gets_every_byte() {
        let (near, mut far) = tokio::net::UnixStream::pair().unwrap();
        let mut guest = GuestEnd::new(near).unwrap();
        let sent: Vec<u8> = (0..4_000_000u32).map(|n| n as u8).collect();
        let wanted = sent.clone();
        let reader = tokio::spawn(async move {
            let mut received = Vec::new();
            far.read_to_end(&mut received).await.unwrap();
            received
        });
        let mut at = 0;
        let mut was_full = false;
        while at < sent.len() {
            let end = sent.len().min(at + 16384);
            at += poll_fn(|cx| {
                let written = guest.poll_write(cx, &sent[at..end]);
                was_full |= written.is_pending();
                written
            })
            .await
            .unwrap();
        }
        guest.end_writing();
        assert!(was_full && guest.full.is_none());
        assert!(reader.await.unwrap() == wanted);
    }

    #[tokio::test]
    async fn what_comes_in_pieces_is_read_and_then_its_end() {
        let (near, mut far) = tokio::net::UnixStream::pair().unwrap();
        let mut guest = GuestEnd::new(near).unwrap();
        let writer = tokio::spawn(async move {
            for piece in [&b"one"[..], b"two", b"three"] {
                far.write_all(piece).await.unwrap();
                tokio::task::yield_now().await;
            }
        });
        let mut received = Vec::new();
        loop {
            let mut room = [0; 4];
            match poll_fn(|cx| guest.poll_read(cx, &mut room)).await.unwrap() {
                0 => break,
                n => received.extend_from_slice(&room[..n]),
            }
        }
        assert_eq!(received, b"onetwothree");
        writer.await.unwrap();
    }
}
