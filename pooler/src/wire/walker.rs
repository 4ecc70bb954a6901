//! Finds the messages in a stream of bytes, however it is cut into reads, without keeping any of it.

/// The largest length a message may state: Postgres' own limit for a long message.
pub const MAX_LENGTH: u32 = 0x3fff_ffff;

/// A length field that no message can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("message of type {kind:#04x} states a length of {length}")]
pub struct BadLength {
    pub kind: u8,
    pub length: u32,
}

/// Where one direction of a session stands: between messages, in a header, or in a body. 16 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Walker {
    head: [u8; 5],
    head_len: u8,
    body_left: u32,
}

/// One message's header, seen whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub kind: u8,
    /// Bytes of the body.
    pub body: u32,
}

impl Walker {
    /// Between two messages: nothing of one has been seen that is not complete.
    pub fn at_boundary(&self) -> bool {
        self.head_len == 0 && self.body_left == 0
    }

    /// Walks over `bytes`; `seen` is called with the header of each message once its last byte has been, and with what
    /// of its body is in `bytes`: nearly always all, else its end.
    pub fn walk(&mut self, mut bytes: &[u8], mut seen: impl FnMut(Header, &[u8])) -> Result<(), BadLength> {
        while !bytes.is_empty() {
            if self.head_len < 5 {
                // The whole header is there nearly always: then nothing is copied twice.
                let take = bytes.len().min(5 - usize::from(self.head_len));
                let from = usize::from(self.head_len);
                self.head[from..from + take].copy_from_slice(&bytes[..take]);
                self.head_len += take as u8;
                bytes = &bytes[take..];
                if self.head_len < 5 {
                    return Ok(());
                }
                let length = u32::from_be_bytes([self.head[1], self.head[2], self.head[3], self.head[4]]);
                if !(4..=MAX_LENGTH).contains(&length) {
                    return Err(BadLength { kind: self.head[0], length });
                }
                self.body_left = length - 4;
            }
            let (body, rest) = bytes.split_at(bytes.len().min(self.body_left as usize));
            self.body_left -= body.len() as u32;
            bytes = rest;
            if self.body_left == 0 {
                self.head_len = 0;
                let [kind, length @ ..] = self.head;
                seen(Header { kind, body: u32::from_be_bytes(length) - 4 }, body);
            }
        }
        Ok(())
    }
}

/// The header at the start of `bytes`: `None` while there are fewer than 5.
pub fn header(bytes: &[u8], max_length: u32) -> Result<Option<Header>, BadLength> {
    let Some(&[kind, a, b, c, d]) = bytes.first_chunk::<5>() else { return Ok(None) };
    let length = u32::from_be_bytes([a, b, c, d]);
    if !(4..=max_length).contains(&length) {
        return Err(BadLength { kind, length });
    }
    Ok(Some(Header { kind, body: length - 4 }))
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

    #[test]
    fn finds_the_same_messages_however_they_are_cut() {
        let stream = [message(b'Q', b"select 1\0"), message(b'S', b""), message(b'd', &[0x5a; 300])].concat();
        for cut in 1..=stream.len() {
            let mut walker = Walker::default();
            let mut kinds = vec![];
            for piece in stream.chunks(cut) {
                walker.walk(piece, |header, _| kinds.push(header.kind)).unwrap();
            }
            assert_eq!(kinds, b"QSd", "cut every {cut}");
            assert!(walker.at_boundary());
        }
    }

    #[test]
    fn shows_the_end_of_a_body_that_was_cut() {
        let stream = message(b'S', b"name\0value\0");
        for cut in 0..stream.len() {
            let mut walker = Walker::default();
            walker.walk(&stream[..cut], |_, _| panic!("not complete")).unwrap();
            let mut seen = None;
            walker.walk(&stream[cut..], |header, body| seen = Some((header, body.to_vec()))).unwrap();
            let body = stream[cut.max(5)..].to_vec();
            assert_eq!(seen, Some((Header { kind: b'S', body: 11 }, body)), "cut after {cut}");
        }
    }

    #[test]
    fn is_not_at_a_boundary_inside_a_message() {
        let stream = message(b'Q', b"select 1\0");
        for cut in 1..stream.len() {
            let mut walker = Walker::default();
            walker.walk(&stream[..cut], |_, _| panic!("not complete")).unwrap();
            assert!(!walker.at_boundary(), "after {cut}");
        }
    }

    #[test]
    fn refuses_hostile_lengths() {
        for length in [0u32, 1, 3, MAX_LENGTH + 1, 0x8000_0000, u32::MAX] {
            let mut bytes = vec![b'Q'];
            bytes.extend_from_slice(&length.to_be_bytes());
            let want = BadLength { kind: b'Q', length };
            assert_eq!(Walker::default().walk(&bytes, |_, _| ()), Err(want));
            assert_eq!(header(&bytes, MAX_LENGTH), Err(want));
        }
    }
}
