//! `VMM.sock`: one connection a session, begun by 32 bytes each way (`docs/interfaces.md`).

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};

use crate::codec::{Reader, Writer};
use crate::reactor::{Event, INPUT, Reactor};
use crate::virtio::vsock::{Counts, Outcome, Unbound, Vsock};

/// First word of both messages: "DMS1".
pub const MAGIC: u32 = u32::from_le_bytes(*b"DMS1");
/// Bytes of both messages.
pub const HELLO_LEN: usize = 32;
/// Bytes of the epoch behind a hello that has one.
const EPOCH_LEN: usize = 32;
/// Connections that may be waiting to say hello or for the guest's answer.
const MOST_WAITING: usize = 1024;

/// What the VMM answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Status {
    Done = 0,
    UnknownSession = 1,
    CountsDiffer = 2,
    Refused = 3,
}

/// What a client asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hello {
    New,
    Bind { session: u64, sent: u64, received: u64 },
    /// The same, if the guest is in the epoch that follows.
    BindIn { session: u64, sent: u64, received: u64 },
}

impl Hello {
    /// Reads the 32 bytes; `None` if they are not a hello.
    pub fn decode(bytes: &[u8; HELLO_LEN]) -> Option<Self> {
        let mut reader = Reader::new(bytes);
        if reader.u32().ok()? != MAGIC {
            return None;
        }
        let operation = reader.u32().ok()?;
        let (session, sent, received) = (reader.u64().ok()?, reader.u64().ok()?, reader.u64().ok()?);
        match operation {
            1 => Some(Self::New),
            2 => Some(Self::Bind { session, sent, received }),
            3 => Some(Self::BindIn { session, sent, received }),
            _ => None,
        }
    }

    /// Bytes of a message that begins so; nonsense has no more.
    fn length(bytes: &[u8]) -> usize {
        let head = bytes.get(..HELLO_LEN).and_then(|head| head.try_into().ok());
        match head.and_then(Self::decode) {
            Some(Self::BindIn { .. }) => HELLO_LEN + EPOCH_LEN,
            _ => HELLO_LEN,
        }
    }
}

fn answer(status: Status, counts: Counts) -> Vec<u8> {
    let mut out = Writer::default();
    out.u32(MAGIC);
    out.u32(status as u32);
    out.u64(counts.session);
    out.u64(counts.sent);
    out.u64(counts.received);
    out.into_bytes()
}

/// The listener and the connections that are not sessions yet.
pub struct Sessions {
    listener: UnixListener,
    /// The guest's, filled up with zeroes.
    epoch: [u8; EPOCH_LEN],
    greeting: HashMap<u64, (UnixStream, Vec<u8>)>,
    connecting: HashMap<u32, (u64, UnixStream)>,
}

impl Sessions {
    pub fn new(listener: UnixListener, epoch: &str) -> Self {
        let mut padded = [0; EPOCH_LEN];
        for (to, from) in padded.iter_mut().zip(epoch.bytes()) {
            *to = from;
        }
        Self { listener, epoch: padded, greeting: HashMap::new(), connecting: HashMap::new() }
    }

    /// The listener is readable.
    pub fn accept(&mut self, reactor: &Reactor, token: &mut impl FnMut() -> u64, vsock: &mut Vsock) {
        while let Ok((stream, _)) = self.listener.accept() {
            if self.greeting.len() + self.connecting.len() >= MOST_WAITING {
                tracing::warn!("too many connections wait for a session; one is closed");
                continue;
            }
            let token = token();
            if stream.set_nonblocking(true).and_then(|()| reactor.add(&stream, token, INPUT)).is_err() {
                continue;
            }
            self.greeting.insert(token, (stream, Vec::with_capacity(HELLO_LEN)));
            // A client on this host has mostly written its hello before it is accepted.
            self.greet(token, vsock);
        }
    }

    /// Whether the token is a connection's that has not said yet what it wants.
    pub fn greets(&self, token: u64) -> bool {
        self.greeting.contains_key(&token)
    }

    /// Something happened to a connection. False if it is none of these.
    pub fn event(&mut self, event: Event, vsock: &mut Vsock) -> bool {
        if self.greeting.contains_key(&event.token) {
            self.greet(event.token, vsock);
            return true;
        }
        let left = event.hung_up();
        if let Some(port) = self.connecting.iter().find(|(_, (token, _))| *token == event.token).map(|(port, _)| *port)
        {
            if left {
                // The guest's answer, when it comes, finds no host and parks the connection.
                self.connecting.remove(&port);
            }
            return true;
        }
        false
    }

    fn greet(&mut self, token: u64, vsock: &mut Vsock) {
        let Some((stream, bytes)) = self.greeting.get_mut(&token) else { return };
        while bytes.len() < Hello::length(bytes) {
            let mut buffer = [0; HELLO_LEN + EPOCH_LEN];
            match stream.read(&mut buffer[..Hello::length(bytes) - bytes.len()]) {
                Ok(0) => {
                    self.greeting.remove(&token);
                    return;
                }
                Ok(len) => bytes.extend_from_slice(&buffer[..len]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    self.greeting.remove(&token);
                    return;
                }
            }
        }
        let Some((mut stream, bytes)) = self.greeting.remove(&token) else { return };
        let (hello, epoch) = bytes.split_at(HELLO_LEN);
        match hello.try_into().ok().and_then(Hello::decode) {
            None => tracing::warn!("a connection for a session did not begin with a hello"),
            Some(Hello::New) => match vsock.parked() {
                Some(port) => begin(vsock, port, stream, token),
                None => {
                    let port = vsock.connect();
                    self.connecting.insert(port, (token, stream));
                }
            },
            Some(Hello::BindIn { session, .. }) if epoch != self.epoch => {
                let nothing = Counts { session, received: 0, sent: 0 };
                let _ = stream.write_all(&answer(Status::UnknownSession, nothing));
            }
            Some(Hello::Bind { session, sent, received } | Hello::BindIn { session, sent, received }) => match vsock
                .bind(session, sent, received)
            {
                Ok((port, counts)) => {
                    if stream.write_all(&answer(Status::Done, counts)).is_ok() {
                        vsock.attach(port, stream, token);
                    }
                }
                Err((why, counts)) => {
                    let status = match why {
                        Unbound::Unknown => Status::UnknownSession,
                        Unbound::CountsDiffer => Status::CountsDiffer,
                    };
                    let _ = stream.write_all(&answer(status, counts));
                }
            },
        }
    }

    /// The guest has answered requests to connect.
    pub fn outcomes(&mut self, vsock: &mut Vsock) {
        for (port, outcome) in vsock.outcomes() {
            let Some((token, mut stream)) = self.connecting.remove(&port) else { continue };
            match outcome {
                Outcome::Opened => begin(vsock, port, stream, token),
                Outcome::Refused => {
                    let none = Counts { session: 0, received: 0, sent: 0 };
                    let _ = stream.write_all(&answer(Status::Refused, none));
                }
            }
        }
    }

    /// A client waits for the guest's answer.
    pub fn waiting(&self) -> bool {
        !self.connecting.is_empty()
    }
}

fn begin(vsock: &mut Vsock, port: u32, mut stream: UnixStream, token: u64) {
    // The answer has to be the first thing in the stream: it goes before the host end is joined.
    let Some(session) = vsock.name(port) else { return };
    let counts = Counts { session, received: 0, sent: 0 };
    if stream.write_all(&answer(Status::Done, counts)).is_ok() {
        vsock.attach(port, stream, token);
    } else {
        vsock.abandon(port);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hello_is_read_as_written_and_nonsense_is_refused() {
        let mut out = Writer::default();
        out.u32(MAGIC);
        out.u32(2);
        out.u64(7);
        out.u64(100);
        out.u64(200);
        let bytes: [u8; HELLO_LEN] = out.into_bytes().try_into().unwrap();
        assert_eq!(Hello::decode(&bytes), Some(Hello::Bind { session: 7, sent: 100, received: 200 }));
        let mut wrong = bytes;
        wrong[0] ^= 1;
        assert_eq!(Hello::decode(&wrong), None);
        let mut wrong = bytes;
        wrong[4] = 9;
        assert_eq!(Hello::decode(&wrong), None);
    }
}
