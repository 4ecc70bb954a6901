//! The guest's end at the start of a session: its startup packet, and what it answers until it is ready.
//!
//! The guest belongs to its tenant and may be hostile: lengths are bounded before anything is kept.

use std::path::Path;

use bytes::{Buf, BytesMut};
use pgwire::messages::startup::{BackendKeyData, SecretKey};
use pgwire::messages::{DecodeContext, Message, ProtocolVersion};
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;

use crate::bind::{ConnectError, connect_and_say};
use crate::registry::SessionCounts;
use crate::wire::hello::Hello;
use crate::wire::walker::{self, BadLength};

/// The longest message a guest may send before it is ready, and the most of them all together, in bytes.
const MAX_MESSAGE: u32 = 64 << 10;
const MAX_GREETING: usize = 256 << 10;

/// A session that the guest has let in.
pub(crate) struct Begun {
    pub stream: UnixStream,
    /// Bytes so far, the hello not among them.
    pub counts: SessionCounts,
    /// Messages for the client before its key, as they came.
    pub before_key: BytesMut,
    /// Messages after it: the ReadyForQuery, last.
    pub after_key: BytesMut,
    /// What the guest said beyond that.
    pub rest: BytesMut,
    pub process: i32,
    pub secret: SecretKey,
}

/// Why the guest did not let a session in.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BeginError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The guest's own ErrorResponse, to be passed on.
    #[error("the guest refused the session")]
    Refused(BytesMut),
    /// Postgres had no process for the session.
    #[error("the guest cannot start a process for the session")]
    NoProcess,
    #[error("the guest closed the connection")]
    Closed,
    #[error("the guest asks for authentication (request {0})")]
    Authentication(u32),
    #[error("the guest sent a message of type {0:#04x} before it was ready")]
    Unexpected(u8),
    #[error("the guest sent too much before it was ready")]
    TooMuch,
    #[error("the guest's BackendKeyData is malformed or absent")]
    Key,
    #[error(transparent)]
    Length(#[from] BadLength),
}

impl From<std::io::Error> for BeginError {
    fn from(error: std::io::Error) -> BeginError {
        BeginError::Connect(ConnectError::Unreachable(error))
    }
}

/// Begins a session with this startup packet.
pub(crate) async fn begin(socket: &Path, packet: &[u8]) -> Result<Begun, BeginError> {
    let (mut stream, answer) = connect_and_say(socket, Hello::New, packet).await?;
    let mut greeting = Greeting::default();
    let mut buffer = BytesMut::with_capacity(1024);
    let mut received = 0;
    loop {
        match stream.read_buf(&mut buffer).await? {
            0 => return Err(BeginError::Closed),
            n => received += n,
        }
        if received > MAX_GREETING {
            return Err(BeginError::TooMuch);
        }
        if greeting.take(&mut buffer)? {
            let (process, secret) = greeting.key.ok_or(BeginError::Key)?;
            let counts =
                SessionCounts { session: answer.session, sent: packet.len() as u64, received: received as u64 };
            return Ok(Begun {
                stream,
                counts,
                before_key: greeting.before_key,
                after_key: greeting.after_key,
                rest: buffer,
                process,
                secret,
            });
        }
    }
}

#[derive(Default)]
struct Greeting {
    authenticated: bool,
    before_key: BytesMut,
    after_key: BytesMut,
    key: Option<(i32, SecretKey)>,
}

/// How the postmaster begins to say "could not fork new process for connection": as protocol 2 did, without a length, since
/// it is not the one who knows the client's version.
const NO_FORK: &[u8] = b"Ecoul";

impl Greeting {
    /// Takes whole messages; true once the guest is ready.
    fn take(&mut self, buffer: &mut BytesMut) -> Result<bool, BeginError> {
        if !self.authenticated && buffer.starts_with(NO_FORK) {
            return Err(BeginError::NoProcess);
        }
        while let Some(header) = walker::header(buffer, MAX_MESSAGE)? {
            let length = 5 + header.body as usize;
            if buffer.len() < length {
                return Ok(false);
            }
            let message = buffer.split_to(length);
            match header.kind {
                b'E' => return Err(BeginError::Refused(message)),
                b'N' => self.keep(&message),
                b'R' if !self.authenticated => {
                    // pg_hba.conf says trust: whatever else is asked for, the guest is not as it was built.
                    match message[5..].first_chunk::<4>().map(|code| u32::from_be_bytes(*code)) {
                        Some(0) if header.body == 4 => self.authenticated = true,
                        code => return Err(BeginError::Authentication(code.unwrap_or(u32::MAX))),
                    }
                }
                b'S' if self.authenticated => self.keep(&message),
                b'K' if self.authenticated && self.key.is_none() => self.key = Some(key(message)?),
                b'Z' if self.authenticated && header.body == 1 => {
                    self.keep(&message);
                    return Ok(true);
                }
                kind => return Err(BeginError::Unexpected(kind)),
            }
        }
        Ok(false)
    }

    fn keep(&mut self, message: &[u8]) {
        let part = if self.key.is_none() { &mut self.before_key } else { &mut self.after_key };
        part.extend_from_slice(message);
    }
}

fn key(mut message: BytesMut) -> Result<(i32, SecretKey), BeginError> {
    let body = message.len() - 5;
    if !(8..=4 + 256).contains(&body) {
        return Err(BeginError::Key);
    }
    message.advance(5);
    let context = DecodeContext::new(ProtocolVersion::PROTOCOL3_2);
    let data = BackendKeyData::decode_body(&mut message, body + 4, &context).map_err(|_| BeginError::Key)?;
    Ok((data.pid, data.secret_key))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u8, body: &[u8]) -> Vec<u8> {
        let mut m = vec![kind];
        m.extend_from_slice(&(body.len() as u32 + 4).to_be_bytes());
        m.extend_from_slice(body);
        m
    }

    fn take(parts: &[Vec<u8>]) -> Result<(bool, Greeting, BytesMut), BeginError> {
        let mut greeting = Greeting::default();
        let mut buffer = BytesMut::from(&parts.concat()[..]);
        greeting.take(&mut buffer).map(|ready| (ready, greeting, buffer))
    }

    fn ok() -> Vec<u8> {
        message(b'R', &[0; 4])
    }

    #[test]
    fn an_ordinary_greeting() {
        let status = message(b'S', b"a\0b\0");
        let ready = message(b'Z', b"I");
        let (done, greeting, rest) =
            take(&[ok(), status.clone(), message(b'K', &[0, 0, 0, 7, 1, 2, 3, 4]), ready.clone(), b"more".to_vec()]).unwrap();
        assert!(done);
        assert_eq!((&greeting.before_key[..], &greeting.after_key[..]), (&status[..], &ready[..]));
        assert_eq!(greeting.key.unwrap().0, 7);
        assert_eq!(&rest[..], b"more");
    }

    #[test]
    fn hostile_greetings() {
        use BeginError::*;
        assert!(matches!(take(&[message(b'R', &[0, 0, 0, 3])]), Err(Authentication(3))));
        assert!(matches!(take(&[message(b'R', &[0, 0, 0])]), Err(Authentication(u32::MAX))));
        assert!(matches!(take(&[message(b'R', &[0, 0, 0, 0, 0])]), Err(Authentication(0))));
        assert!(matches!(take(&[ok(), ok()]), Err(Unexpected(b'R'))));
        assert!(matches!(take(&[message(b'Z', b"I")]), Err(Unexpected(b'Z'))));
        assert!(matches!(take(&[message(b'T', b"")]), Err(Unexpected(b'T'))));
        assert!(matches!(take(&[ok(), message(b'K', &[0; 7])]), Err(Key)));
        assert!(matches!(take(&[ok(), message(b'K', &[0; 261])]), Err(Key)));
        assert!(matches!(take(&[b"N\0\0\0\x01".to_vec()]), Err(Length(_))));
        assert!(matches!(take(&[b"N\xff\xff\xff\xff".to_vec()]), Err(Length(_))));
        assert!(matches!(take(&[message(b'E', b"x\0")]), Err(Refused(_))));
        assert!(matches!(take(&[b"Ecould not fork new process for connection: no\n\0".to_vec()]), Err(NoProcess)));
        assert!(!take(&[ok(), b"S\0\0\0\x09".to_vec()]).unwrap().0);
    }
}
