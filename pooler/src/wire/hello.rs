//! The 32 bytes with which a connection to `vm.sock` begins, and the 32 that answer it (`docs/interfaces.md`).

/// Bytes of either.
pub const LEN: usize = 32;
const MAGIC: u32 = u32::from_le_bytes(*b"DMS1");

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hello {
    /// A new session.
    New,
    /// An old session on a new connection. Counts are bytes since it began, from this side.
    Bind { session: u64, sent: u64, received: u64 },
}

/// What the VMM answers. Its counts are from its own side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: Status,
    pub session: u64,
    pub sent: u64,
    pub received: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Done,
    UnknownSession,
    CountsDiffer,
    RefusedByGuest,
    /// A status this version does not know.
    Other(u32),
}

/// The answer is not one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the VMM's answer does not begin with DMS1")]
pub struct NotAnAnswer;

impl Hello {
    pub fn encode(self) -> [u8; LEN] {
        let (operation, session, sent, received) = match self {
            Hello::New => (1u32, 0, 0, 0),
            Hello::Bind { session, sent, received } => (2, session, sent, received),
        };
        let mut bytes = [0; LEN];
        bytes[..4].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[4..8].copy_from_slice(&operation.to_le_bytes());
        bytes[8..16].copy_from_slice(&session.to_le_bytes());
        bytes[16..24].copy_from_slice(&sent.to_le_bytes());
        bytes[24..].copy_from_slice(&received.to_le_bytes());
        bytes
    }
}

impl Answer {
    pub fn decode(bytes: &[u8; LEN]) -> Result<Answer, NotAnAnswer> {
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
        if word(0) != MAGIC {
            return Err(NotAnAnswer);
        }
        let status = match word(4) {
            0 => Status::Done,
            1 => Status::UnknownSession,
            2 => Status::CountsDiffer,
            3 => Status::RefusedByGuest,
            other => Status::Other(other),
        };
        Ok(Answer { status, session: long(8), sent: long(16), received: long(24) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout_is_the_interface_page_s() {
        let b = Hello::Bind { session: 0x0102, sent: 3, received: 1 << 40 }.encode();
        assert_eq!(&b[..8], b"DMS1\x02\0\0\0");
        assert_eq!(&b[8..16], &[2, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(&b[16..24], &[3, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(&b[24..], &[0, 0, 0, 0, 0, 1, 0, 0]);
        assert_eq!(&Hello::New.encode()[..9], b"DMS1\x01\0\0\0\0");
    }

    #[test]
    fn answers() {
        let mut b = [0u8; LEN];
        assert_eq!(Answer::decode(&b), Err(NotAnAnswer));
        b[..4].copy_from_slice(b"DMS1");
        b[4] = 2;
        b[8] = 9;
        b[31] = 1;
        let a = Answer::decode(&b).unwrap();
        assert_eq!(a, Answer { status: Status::CountsDiffer, session: 9, sent: 0, received: 1 << 56 });
        b[4] = 77;
        assert_eq!(Answer::decode(&b).unwrap().status, Status::Other(77));
    }
}
