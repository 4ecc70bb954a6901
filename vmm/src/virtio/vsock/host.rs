//! The host's end of a connection: a unix stream, read and written straight from guest memory.

use std::collections::VecDeque;
use std::io;
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use vm_memory::VolatileSlice;

use crate::reactor::{Event, INPUT, Reactor, STREAM};

/// A stream watched edge-triggered: what epoll said last, until a call finds otherwise.
#[derive(Debug)]
pub struct HostEnd {
    stream: UnixStream,
    /// What it is watched under.
    token: u64,
    /// It is watched for room too.
    awaits_room: bool,
    pub readable: bool,
    pub writable: bool,
    /// The other side is gone in both directions.
    pub hung_up: bool,
    /// The other side will send no more: the end is behind what there is to read. Epoll says so once.
    pub ending: bool,
    write_closed: bool,
}

/// What a read found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    Bytes(usize),
    Nothing,
    Ended,
}

fn vectors(slices: &[VolatileSlice], mut most: usize) -> Vec<libc::iovec> {
    let mut vectors = Vec::with_capacity(slices.len());
    for slice in slices {
        let len = slice.len().min(most);
        if len > 0 {
            vectors.push(libc::iovec { iov_base: slice.ptr_guard_mut().as_ptr().cast(), iov_len: len });
            most -= len;
        }
    }
    vectors
}

impl HostEnd {
    /// Takes a stream that is non-blocking and watched for input under `token`.
    pub fn new(stream: UnixStream, token: u64) -> Self {
        Self {
            stream,
            token,
            // So that the first `watch` has told again what others were told before, such as an end behind the first bytes.
            awaits_room: true,
            readable: true,
            writable: true,
            hung_up: false,
            ending: false,
            write_closed: false,
        }
    }

    /// Epoll said something of it.
    pub fn told(&mut self, event: Event) {
        self.readable |= event.readable();
        self.writable |= event.writable();
        self.ending |= event.ending();
        self.hung_up |= event.hung_up();
    }

    /// Has the stream watched for room while it has none, and only then. Room that came in between is told.
    pub fn watch(&mut self, reactor: &Reactor) {
        if self.awaits_room == self.writable {
            match reactor.change(&self.stream, self.token, if self.writable { INPUT } else { STREAM }) {
                Ok(()) => self.awaits_room = !self.writable,
                Err(error) => tracing::error!(%error, "cannot watch a session's stream"),
            }
        }
    }

    /// Reads at most `most` bytes into guest memory.
    pub fn read(&mut self, slices: &[VolatileSlice], most: usize) -> Read {
        let vectors = vectors(slices, most);
        let room: usize = vectors.iter().map(|vector| vector.iov_len).sum();
        if room == 0 {
            return Read::Nothing;
        }
        // SAFETY: the vectors point into guest memory that the slices keep mapped; the guest may change it at any
        // time, which is why nothing here forms a reference to it.
        let got = unsafe { libc::readv(self.stream.as_raw_fd(), vectors.as_ptr(), vectors.len() as libc::c_int) };
        self.judge_read(got, room)
    }

    /// Reads at most `most` bytes into a buffer of the VMM's.
    pub fn read_buffered(&mut self, buffer: &mut VecDeque<u8>, most: usize) -> Read {
        let mut bytes = vec![0u8; most.min(64 << 10)];
        // SAFETY: pointer and length are those of `bytes`.
        let got = unsafe { libc::read(self.stream.as_raw_fd(), bytes.as_mut_ptr().cast(), bytes.len()) };
        let read = self.judge_read(got, bytes.len());
        if let Read::Bytes(count) = read {
            buffer.extend(&bytes[..count]);
        }
        read
    }

    fn judge_read(&mut self, got: isize, room: usize) -> Read {
        match got {
            0 => {
                self.readable = false;
                Read::Ended
            }
            got if got > 0 => {
                // A short read has emptied the stream, unless its end is behind it: then the next read says so.
                self.readable = got as usize == room || self.ending || self.hung_up;
                Read::Bytes(got as usize)
            }
            _ => match io::Error::last_os_error().kind() {
                io::ErrorKind::Interrupted => Read::Nothing,
                io::ErrorKind::WouldBlock => {
                    self.readable = false;
                    Read::Nothing
                }
                _ => {
                    self.readable = false;
                    self.hung_up = true;
                    Read::Ended
                }
            },
        }
    }

    /// Writes guest memory to the stream; returns how many bytes it took.
    pub fn write(&mut self, slices: &[VolatileSlice], most: usize) -> usize {
        let vectors = vectors(slices, most);
        let len: usize = vectors.iter().map(|vector| vector.iov_len).sum();
        if len == 0 || !self.writable {
            return 0;
        }
        let message = libc::msghdr {
            msg_name: std::ptr::null_mut(),
            msg_namelen: 0,
            msg_iov: vectors.as_ptr().cast_mut(),
            msg_iovlen: vectors.len(),
            msg_control: std::ptr::null_mut(),
            msg_controllen: 0,
            msg_flags: 0,
        };
        // SAFETY: as in `read`; the message and its vectors outlive the call.
        let put = unsafe { libc::sendmsg(self.stream.as_raw_fd(), &message, libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT) };
        self.judge_write(put, len)
    }

    /// Writes what is buffered; returns how many bytes the stream took, which are gone from the buffer.
    pub fn write_buffered(&mut self, buffer: &mut VecDeque<u8>) -> usize {
        let mut total = 0;
        while self.writable && !buffer.is_empty() {
            let bytes = buffer.as_slices().0;
            // SAFETY: pointer and length are those of `bytes`.
            let put = unsafe {
                libc::send(
                    self.stream.as_raw_fd(),
                    bytes.as_ptr().cast(),
                    bytes.len(),
                    libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT,
                )
            };
            let put = self.judge_write(put, bytes.len());
            buffer.drain(..put);
            total += put;
        }
        total
    }

    fn judge_write(&mut self, put: isize, len: usize) -> usize {
        if put >= 0 {
            self.writable = put as usize == len;
            return put as usize;
        }
        match io::Error::last_os_error().kind() {
            io::ErrorKind::Interrupted => {}
            io::ErrorKind::WouldBlock => self.writable = false,
            _ => {
                self.writable = false;
                self.hung_up = true;
                self.readable = true;
            }
        }
        0
    }

    /// Tells the other side that the guest will send no more.
    pub fn end_writing(&mut self) {
        if !self.write_closed {
            self.write_closed = true;
            let _ = self.stream.shutdown(Shutdown::Write);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::time::Duration;

    use super::*;
    use crate::reactor::Events;

    /// The two ends of a stream, the near one watched for input.
    fn watched() -> (UnixStream, UnixStream, Reactor) {
        let (near, far) = UnixStream::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        let reactor = Reactor::new().unwrap();
        reactor.add(&near, 7, INPUT).unwrap();
        (near, far, reactor)
    }

    /// A stream whose far end has written and will write no more, and the one event of both.
    fn spoken_and_ended() -> (UnixStream, UnixStream, Reactor, Events) {
        let (near, mut far, reactor) = watched();
        let mut events = Events::default();
        std::io::Write::write_all(&mut far, b"query").unwrap();
        far.shutdown(Shutdown::Write).unwrap();
        reactor.wait(&mut events, Some(Duration::from_secs(10))).unwrap();
        (near, far, reactor, events)
    }

    /// A backend waited for ever, and its database never slept again, when a client's last bytes and its end came at once.
    #[test]
    fn an_end_that_comes_with_the_last_bytes_is_read() {
        let (near, _far, _reactor, events) = spoken_and_ended();
        let mut host = HostEnd::new(near, 7);
        events.iter().for_each(|event| host.told(event));

        let mut buffer = VecDeque::new();
        assert_eq!(host.read_buffered(&mut buffer, 4096), Read::Bytes(5));
        assert!(host.readable, "nothing will say it again");
        assert_eq!(host.read_buffered(&mut buffer, 4096), Read::Ended);
        assert!(host.writable && !host.hung_up, "the answer can still be sent");
    }

    #[test]
    fn an_end_that_came_before_the_stream_was_joined_is_told_again() {
        let (near, _far, reactor, mut events) = spoken_and_ended();
        let mut host = HostEnd::new(near, 7);
        assert_eq!(host.read_buffered(&mut VecDeque::new(), 4096), Read::Bytes(5));
        assert!(!host.readable);
        host.watch(&reactor);
        reactor.wait(&mut events, Some(Duration::ZERO)).unwrap();
        events.iter().for_each(|event| host.told(event));
        assert!(host.readable && host.ending);
    }

    #[test]
    fn a_stream_tells_of_room_only_while_it_has_none() {
        let (near, mut far, reactor) = watched();
        let mut events = Events::default();
        let mut host = HostEnd::new(near, 7);
        let mut found = |within| {
            reactor.wait(&mut events, Some(within)).unwrap();
            events.iter().map(|event| (event.token, event.writable())).collect::<Vec<_>>()
        };

        let mut answer = VecDeque::from(*b"answer");
        host.write_buffered(&mut answer);
        host.watch(&reactor);
        far.read_exact(&mut [0; 6]).unwrap();
        assert_eq!(found(Duration::ZERO), [], "an answer that was read is no news");

        let mut much = VecDeque::from(vec![1; 4 << 20]);
        let taken = host.write_buffered(&mut much);
        assert!(!host.writable && taken > 0);
        host.watch(&reactor);
        assert_eq!(found(Duration::ZERO), []);
        far.read_exact(&mut vec![0; taken]).unwrap();
        assert_eq!(found(Duration::from_secs(10)), [(7, true)]);
        host.writable = true;
        host.watch(&reactor);
        assert!(!host.awaits_room);
    }
}
