//! The 32 bytes with which a connection to `VMM.sock` begins, and the 32 that answer it (`docs/interfaces.md`).

/// Bytes of either.
pub const LEN: usize = 32;
/// Bytes of an epoch behind them, filled up with zeroes.
pub const EPOCH_LEN: usize = 32;
const MAGIC: u32 = u32::from_le_bytes(*b"DMS1");

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hello {
    /// A new session.
    New,
    /// An old session on a new connection. Counts are bytes since it began, from this side.
    Bind { session: u64, sent: u64, received: u64 },
    /// The same, of whom it is not known yet which life of the guest she meets.
    BindIn { session: u64, sent: u64, received: u64, epoch: [u8; EPOCH_LEN] },
}

/// An epoch as [`Hello::BindIn`] has it; `None` if it is longer.
pub fn epoch(text: &str) -> Option<[u8; EPOCH_LEN]> {
    let mut bytes = [0; EPOCH_LEN];
    bytes.get_mut(..text.len())?.copy_from_slice(text.as_bytes());
    Some(bytes)
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
    pub fn encode(self) -> Vec<u8> {
        let (operation, session, sent, received) = match self {
            Hello::New => (1u32, 0, 0, 0),
            Hello::Bind { session, sent, received } => (2, session, sent, received),
            Hello::BindIn { session, sent, received, .. } => (3, session, sent, received),
        };
        let mut bytes = Vec::with_capacity(LEN + EPOCH_LEN);
        bytes.extend_from_slice(&MAGIC.to_le_bytes());
        bytes.extend_from_slice(&operation.to_le_bytes());
        for word in [session, sent, received] {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        if let Hello::BindIn { epoch, .. } = self {
            bytes.extend_from_slice(&epoch);
        }
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
        let b = Hello::BindIn { session: 7, sent: 0, received: 0, epoch: epoch("0123").unwrap() }.encode();
        assert_eq!((b.len(), &b[..9], &b[32..37]), (64, &b"DMS1\x03\0\0\0\x07"[..], &b"0123\0"[..]));
        assert_eq!(epoch(&"e".repeat(33)), None);
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
