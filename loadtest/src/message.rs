//! The messages of PostgreSQL's frontend/backend protocol, version 3.0, as bytes: what a client writes and how
//! it reads what comes back. Pure: no socket here. (Documentation of PostgreSQL 17, chapter 53.7.)

use thiserror::Error;

/// The largest message accepted from a server, in bytes. The protocol would allow 2 GiB; nothing that is timed
/// or tested here comes near this.
pub const MESSAGE_MAX: usize = 64 << 20;

const PROTOCOL_3_0: u32 = 196_608;
const CANCEL_CODE: u32 = 80_877_102;
const SSL_REQUEST_CODE: u32 = 80_877_103;

/// Why bytes from a server make no sense.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum DecodeError {
    #[error("message {tag:?} says it is {length} bytes long")]
    Length { tag: char, length: usize },
    #[error("message {tag:?} ends in the middle of a field")]
    Truncated { tag: char },
    #[error("authentication request {0} is not supported")]
    Authentication(u32),
}

/// One message from the server: its type byte and what follows the length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    pub tag: u8,
    pub body: Vec<u8>,
}

/// Cuts a stream of bytes into messages, however they arrive.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    read: usize,
}

impl Decoder {
    pub fn feed(&mut self, bytes: &[u8]) {
        if self.read == self.buffer.len() {
            self.buffer.clear();
            self.read = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole message, or `None` until more bytes come.
    pub fn pop(&mut self) -> Result<Option<Message>, DecodeError> {
        let rest = &self.buffer[self.read..];
        let Some((head, _)) = rest.split_first_chunk::<5>() else {
            return Ok(None);
        };
        let tag = head[0];
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
        if !(4..=MESSAGE_MAX).contains(&length) {
            return Err(DecodeError::Length {
                tag: char::from(tag),
                length,
            });
        }
        let Some(body) = rest.get(5..1 + length) else {
            return Ok(None);
        };
        let message = Message {
            tag,
            body: body.to_vec(),
        };
        self.read += 1 + length;
        Ok(Some(message))
    }
}

/// What the server asks for after the startup packet.
#[derive(Debug, PartialEq, Eq)]
pub enum Authentication<'a> {
    Ok,
    /// SASL mechanisms on offer.
    Sasl(Vec<&'a str>),
    SaslContinue(&'a [u8]),
    SaslFinal(&'a [u8]),
}

/// An ErrorResponse or NoticeResponse, the three fields a person needs.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{severity} {code}: {message}")]
pub struct ServerError {
    pub severity: String,
    /// SQLSTATE.
    pub code: String,
    pub message: String,
}

impl Message {
    fn truncated(&self) -> DecodeError {
        DecodeError::Truncated {
            tag: char::from(self.tag),
        }
    }

    /// Reads an `R` message.
    pub fn authentication(&self) -> Result<Authentication<'_>, DecodeError> {
        let (kind, rest) = self
            .body
            .split_first_chunk::<4>()
            .ok_or_else(|| self.truncated())?;
        match u32::from_be_bytes(*kind) {
            0 => Ok(Authentication::Ok),
            10 => {
                let names = rest
                    .split(|byte| *byte == 0)
                    .filter(|name| !name.is_empty());
                let names = names.map(std::str::from_utf8).collect::<Result<_, _>>();
                Ok(Authentication::Sasl(names.map_err(|_| self.truncated())?))
            }
            11 => Ok(Authentication::SaslContinue(rest)),
            12 => Ok(Authentication::SaslFinal(rest)),
            other => Err(DecodeError::Authentication(other)),
        }
    }

    /// Reads an `E` or `N` message.
    pub fn error(&self) -> ServerError {
        let mut error = ServerError {
            severity: String::new(),
            code: String::new(),
            message: String::new(),
        };
        for field in self.body.split(|byte| *byte == 0) {
            let Some((kind, text)) = field.split_first() else {
                continue;
            };
            let text = String::from_utf8_lossy(text).into_owned();
            match kind {
                b'V' => error.severity = text,
                b'C' => error.code = text,
                b'M' => error.message = text,
                _ => {}
            }
        }
        error
    }

    /// Reads a `D` message: one value per column, `None` for NULL.
    pub fn data_row(&self) -> Result<Vec<Option<Vec<u8>>>, DecodeError> {
        let (count, mut rest) = self
            .body
            .split_first_chunk::<2>()
            .ok_or_else(|| self.truncated())?;
        let mut values = Vec::new();
        for _ in 0..u16::from_be_bytes(*count) {
            let (length, after) = rest
                .split_first_chunk::<4>()
                .ok_or_else(|| self.truncated())?;
            match u32::from_be_bytes(*length) {
                u32::MAX => {
                    values.push(None);
                    rest = after;
                }
                length => {
                    let (value, after) = after
                        .split_at_checked(length as usize)
                        .ok_or_else(|| self.truncated())?;
                    values.push(Some(value.to_vec()));
                    rest = after;
                }
            }
        }
        Ok(values)
    }

    /// Reads a `K` message: process id and secret key, as needed to cancel.
    pub fn key_data(&self) -> Result<(u32, Vec<u8>), DecodeError> {
        let (pid, key) = self
            .body
            .split_first_chunk::<4>()
            .ok_or_else(|| self.truncated())?;
        Ok((u32::from_be_bytes(*pid), key.to_vec()))
    }
}

/// A message with a type byte. The length counts itself but not the type.
fn tagged(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let mut out = vec![tag];
    out.extend_from_slice(&untagged(parts));
    out
}

fn untagged(parts: &[&[u8]]) -> Vec<u8> {
    let body: usize = parts.iter().map(|part| part.len()).sum();
    let mut out = Vec::with_capacity(body + 5);
    out.extend_from_slice(&(body as u32 + 4).to_be_bytes());
    for part in parts {
        out.extend_from_slice(part);
    }
    out
}

/// The first packet of a session.
pub fn startup(user: &str, database: &str) -> Vec<u8> {
    let mut body = PROTOCOL_3_0.to_be_bytes().to_vec();
    for text in [
        "user",
        user,
        "database",
        database,
        "application_name",
        "dormouse-loadtest",
    ] {
        body.extend_from_slice(text.as_bytes());
        body.push(0);
    }
    body.push(0);
    untagged(&[&body])
}

pub fn cancel(pid: u32, key: &[u8]) -> Vec<u8> {
    untagged(&[&CANCEL_CODE.to_be_bytes(), &pid.to_be_bytes(), key])
}

/// Asks whether the server would go on under TLS; it answers with one byte, `S` or `N`.
pub fn ssl_request() -> Vec<u8> {
    untagged(&[&SSL_REQUEST_CODE.to_be_bytes()])
}

pub fn query(sql: &str) -> Vec<u8> {
    tagged(b'Q', &[sql.as_bytes(), &[0]])
}

pub fn sasl_initial(mechanism: &str, data: &[u8]) -> Vec<u8> {
    tagged(
        b'p',
        &[
            mechanism.as_bytes(),
            &[0],
            &(data.len() as u32).to_be_bytes(),
            data,
        ],
    )
}

pub fn sasl_response(data: &[u8]) -> Vec<u8> {
    tagged(b'p', &[data])
}

pub fn terminate() -> Vec<u8> {
    tagged(b'X', &[])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(tag: u8, body: &[u8]) -> Message {
        Message {
            tag,
            body: body.to_vec(),
        }
    }

    #[test]
    fn encodes_what_the_protocol_page_shows() {
        assert_eq!(query("select 1"), b"Q\x00\x00\x00\x0dselect 1\x00");
        assert_eq!(terminate(), b"X\x00\x00\x00\x04");
        assert_eq!(
            cancel(7, &[0, 0, 0, 9]),
            b"\x00\x00\x00\x10\x04\xd2\x16\x2e\x00\x00\x00\x07\x00\x00\x00\x09"
        );
        assert_eq!(
            sasl_initial("SCRAM-SHA-256", b"n,,"),
            b"p\x00\x00\x00\x19SCRAM-SHA-256\x00\x00\x00\x00\x03n,,"
        );
        let packet = startup("ada.db_1", "postgres");
        assert_eq!(
            packet.len(),
            u32::from_be_bytes([packet[0], packet[1], packet[2], packet[3]]) as usize
        );
        assert_eq!(&packet[4..8], [0, 3, 0, 0]);
        assert!(packet[8..].starts_with(b"user\0ada.db_1\0database\0postgres\0"));
        assert!(packet.ends_with(b"\0\0"));
    }

    #[test]
    fn decodes_messages_that_arrive_a_byte_at_a_time() {
        let mut bytes = tagged(b'Z', &[b"I"]);
        bytes.extend(tagged(b'C', &[b"SELECT 1\0"]));
        let mut decoder = Decoder::default();
        let mut seen = Vec::new();
        for byte in bytes {
            decoder.feed(&[byte]);
            while let Some(next) = decoder.pop().unwrap() {
                seen.push(next);
            }
        }
        assert_eq!(seen, [message(b'Z', b"I"), message(b'C', b"SELECT 1\0")]);
    }

    #[test]
    fn refuses_lengths_that_cannot_be() {
        for length in [0u32, 3, MESSAGE_MAX as u32 + 1, u32::MAX] {
            let mut decoder = Decoder::default();
            decoder.feed(b"D");
            decoder.feed(&length.to_be_bytes());
            assert_eq!(
                decoder.pop(),
                Err(DecodeError::Length {
                    tag: 'D',
                    length: length as usize
                })
            );
        }
    }

    #[test]
    fn reads_rows_with_nulls_and_refuses_short_ones() {
        let row = message(b'D', b"\x00\x02\x00\x00\x00\x03abc\xff\xff\xff\xff");
        assert_eq!(row.data_row(), Ok(vec![Some(b"abc".to_vec()), None]));
        for cut in 0..row.body.len() {
            let short = message(b'D', &row.body[..cut]);
            assert_eq!(
                short.data_row(),
                Err(DecodeError::Truncated { tag: 'D' }),
                "cut at {cut}"
            );
        }
    }

    #[test]
    fn reads_errors_by_field() {
        let error = message(b'E', b"SFATAL\0VFATAL\0C57P01\0Mterminating\0\0").error();
        assert_eq!(error.to_string(), "FATAL 57P01: terminating");
    }

    #[test]
    fn reads_authentication_requests() {
        let sasl = message(b'R', b"\0\0\0\x0aSCRAM-SHA-256\0\0");
        assert_eq!(
            sasl.authentication(),
            Ok(Authentication::Sasl(vec!["SCRAM-SHA-256"]))
        );
        assert_eq!(
            message(b'R', b"\0\0\0\0").authentication(),
            Ok(Authentication::Ok)
        );
        let md5 = message(b'R', b"\0\0\0\x05salt");
        assert_eq!(md5.authentication(), Err(DecodeError::Authentication(5)));
        assert_eq!(
            message(b'R', b"\0").authentication(),
            Err(DecodeError::Truncated { tag: 'R' })
        );
    }
}
