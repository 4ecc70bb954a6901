//! Whether a client waits for an answer: the protocol's state, as far as a bystander can know it.
//!
//! Pure: it is shown the type of each message in either direction and keeps a queue of what the guest still owes.
//!
//! | what the client sends | what the guest owes |
//! |---|---|
//! | Query, FunctionCall | one ReadyForQuery |
//! | Sync | one ReadyForQuery, unless the guest reads it inside a COPY FROM STDIN, where it is ignored |
//! | Parse, Bind, Describe, Execute, Close, Flush | nothing known, until a Sync: the client counts as waiting |
//! | CopyDone, CopyFail | nothing; they end a COPY |
//! | Terminate | the end |
//!
//! Where it cannot be exact (a client that breaks the rules) it says "waiting": the database then stays awake for
//! longer, which costs money but loses nothing.

use std::collections::VecDeque;

use crate::host::PasswordsSet;
use crate::wire::walker::{BadLength, Walker};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owed {
    Query,
    Sync,
    /// A CopyDone or CopyFail: marks where Syncs cease to be ignored.
    CopyEnd,
}


/// Answers that may be owed at one time. Buffers on the way bound what an honest guest leaves unanswered far below this;
/// a dishonest one, with a client of its own, must not fill the pooler's memory.
const MAX_OWED: usize = 1 << 18;
/// The ParameterStatus by which the guest tells of a password set in SQL (`images/postgres/dormouse.c`).
const OWNERS_PASSWORD: &[u8] = b"dormouse.password\0app\0";
const ANOTHERS_PASSWORD: &[u8] = b"dormouse.password\0any\0";
const _: () = assert!(OWNERS_PASSWORD.len() == ANOTHERS_PASSWORD.len());
/// An idle session keeps no more room than this for what may be owed.
const KEPT_ROOM: usize = 64;

/// Why a session cannot be followed any further.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TrackError {
    #[error(transparent)]
    Length(#[from] BadLength),
    #[error("more than {MAX_OWED} requests without an answer")]
    TooManyOwed,
}

/// One session's state in both directions.
#[derive(Debug, Default)]
pub struct Track {
    from_client: Walker,
    from_guest: Walker,
    owed: VecDeque<Owed>,
    /// Extended-protocol messages have been sent since the last Sync.
    unsynced: bool,
    copying_in: bool,
    terminated: bool,
    /// Type of the last whole message from the guest, 0 for none.
    last_from_guest: u8,
    /// What the guest has said of passwords since it was last asked for.
    passwords_set: PasswordsSet,
}

impl Track {
    /// Takes bytes on their way to the guest.
    pub fn client_bytes(&mut self, bytes: &[u8]) -> Result<(), TrackError> {
        let mut walker = self.from_client;
        let walked = walker.walk(bytes, |header, _| self.client_sent(header.kind));
        self.from_client = walker;
        walked?;
        match self.owed.len() {
            0..=MAX_OWED => Ok(()),
            _ => Err(TrackError::TooManyOwed),
        }
    }

    /// Takes bytes on their way to the client.
    pub fn guest_bytes(&mut self, bytes: &[u8]) -> Result<(), TrackError> {
        let mut walker = self.from_guest;
        let walked = walker.walk(bytes, |header, body| {
            if header.kind == b'S' {
                self.status_changed(header.body, body);
            }
            self.guest_sent(header.kind);
        });
        self.from_guest = walker;
        Ok(walked?)
    }

    /// No answer is owed and both directions are between messages. An open transaction does not count.
    pub fn is_idle(&self) -> bool {
        !self.unsynced
            && !self.copying_in
            && !self.terminated
            && self.owed.iter().all(|o| *o == Owed::CopyEnd)
            && self.from_client.at_boundary()
            && self.from_guest.at_boundary()
    }

    /// A message of the pooler's own can be put into the stream to the client.
    pub fn client_at_boundary(&self) -> bool {
        self.from_guest.at_boundary()
    }

    /// The client has said that it goes.
    pub fn terminated(&self) -> bool {
        self.terminated
    }

    /// The last thing that the guest said was an error: before an end, the reason for it.
    pub fn guest_said_why(&self) -> bool {
        self.last_from_guest == b'E'
    }

    /// Whether the bytes last taken tell of passwords that were set in SQL: to be noted before the client sees them.
    pub fn passwords_set(&self) -> PasswordsSet {
        self.passwords_set
    }

    pub fn forget_passwords_set(&mut self) {
        self.passwords_set = PasswordsSet::default();
    }

    /// A ParameterStatus; of one that came in two pieces only the end is known, which may then fit both.
    fn status_changed(&mut self, length: u32, end: &[u8]) {
        if length as usize == OWNERS_PASSWORD.len() {
            self.passwords_set.owner |= OWNERS_PASSWORD.ends_with(end);
            self.passwords_set.other |= ANOTHERS_PASSWORD.ends_with(end);
        }
    }

    /// Gives back memory that an idle session does not need.
    pub fn shrink(&mut self) {
        if self.is_idle() {
            self.owed = VecDeque::new();
        }
    }

    fn client_sent(&mut self, kind: u8) {
        match kind {
            b'Q' | b'F' => self.owe(Owed::Query),
            // Inside a COPY that the client has not ended, the guest will ignore it.
            b'S' if self.copying_in && !self.owed.contains(&Owed::CopyEnd) => {}
            b'S' => self.owe(Owed::Sync),
            b'P' | b'B' | b'D' | b'E' | b'C' | b'H' => {
                self.forget_stale_ends();
                self.unsynced = true;
            }
            b'c' | b'f' if self.copying_in || self.unsynced || !self.owed.is_empty() => {
                self.owed.push_back(Owed::CopyEnd);
            }
            b'X' => self.terminated = true,
            // CopyData, and what no client should send: the guest will say so.
            _ => {}
        }
    }

    fn owe(&mut self, what: Owed) {
        self.forget_stale_ends();
        self.owed.push_back(what);
        self.unsynced = false;
    }

    /// A CopyDone sent after its COPY had failed is ignored by the guest: it must not end a later one.
    fn forget_stale_ends(&mut self) {
        if !self.unsynced && !self.copying_in && self.owed.iter().all(|o| *o == Owed::CopyEnd) {
            self.owed.clear();
        }
    }

    fn guest_sent(&mut self, kind: u8) {
        self.last_from_guest = kind;
        match kind {
            b'Z' => {
                self.copying_in = false;
                while let Some(front) = self.owed.pop_front() {
                    if front != Owed::CopyEnd {
                        break;
                    }
                }
                if self.owed.is_empty() && self.owed.capacity() > KEPT_ROOM {
                    self.owed = VecDeque::new();
                }
            }
            b'G' => self.copy_begins(),
            // The command that was the COPY has ended, well or badly.
            b'C' | b'E' if self.copying_in => {
                self.copying_in = false;
                if let Some(at) = self.owed.iter().position(|o| *o == Owed::CopyEnd) {
                    self.owed.remove(at);
                }
            }
            _ => {}
        }
    }

    /// CopyInResponse. The Syncs that the client sent behind the command and before the end of its data are read by
    /// the COPY, which ignores them.
    fn copy_begins(&mut self) {
        self.copying_in = true;
        let started_by_query = self.owed.front() == Some(&Owed::Query);
        let from = usize::from(started_by_query);
        while self.owed.get(from) == Some(&Owed::Sync) {
            self.owed.remove(from);
        }
        // Begun by an Execute whose Sync was swallowed or is still to come.
        self.unsynced |= !started_by_query && !self.owed.contains(&Owed::Sync);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_set_in_sql_are_heard_of_however_the_message_is_cut() {
        let message = |body: &[u8]| {
            let mut bytes = vec![b'S'];
            bytes.extend_from_slice(&(body.len() as u32 + 4).to_be_bytes());
            bytes.extend_from_slice(body);
            bytes
        };
        let heard = |bytes: &[u8], cut: usize| {
            let mut track = Track::default();
            track.guest_bytes(&bytes[..cut]).unwrap();
            track.guest_bytes(&bytes[cut..]).unwrap();
            let set = track.passwords_set();
            (set.owner, set.other)
        };
        for (body, owner) in [(OWNERS_PASSWORD, true), (ANOTHERS_PASSWORD, false)] {
            let bytes = message(body);
            assert_eq!(heard(&bytes, 0), (owner, !owner));
            for cut in 0..bytes.len() {
                let (owner_heard, other_heard) = heard(&bytes, cut);
                assert!(if owner { owner_heard } else { other_heard }, "cut after {cut}");
            }
        }
        for other in [&b"application_name\0x\0"[..], b"application_name\0abcd\0", b"dormouse.passwords\0a\0"] {
            assert_eq!(heard(&message(other), 0), (false, false));
        }
    }

    /// Runs a script: `>` messages from the client, `<` from the guest, each letter one message, `+` expects idle, `-`
    /// expects waiting.
    fn run(script: &str) {
        let mut track = Track::default();
        let mut from_client = true;
        for (at, step) in script.bytes().enumerate() {
            let done = &script[..=at];
            match step {
                b'>' => from_client = true,
                b'<' => from_client = false,
                b'+' => assert!(track.is_idle(), "should be idle after {done:?}: {track:?}"),
                b'-' => assert!(!track.is_idle(), "should wait after {done:?}: {track:?}"),
                b' ' => {}
                kind => {
                    let message = [kind, 0, 0, 0, 5, b'x'];
                    if from_client {
                        track.client_bytes(&message).unwrap();
                    } else {
                        track.guest_bytes(&message).unwrap();
                    }
                }
            }
        }
    }

    #[test]
    fn scenarios() {
        for script in [
            // A new session.
            "+",
            // Simple queries, one and several in flight.
            ">Q- <T-D-C- Z+",
            ">QQQ- <CZ- CZ- CZ+",
            ">Q <EZ+",
            ">F- <VZ+",
            // Extended: waiting until the Sync is answered.
            ">P- B- D- E- S- <1 2 T D C- Z+",
            ">PBES PBES- <12CZ- 12CZ+",
            // Flush without Sync: the client is in the middle of something.
            ">PDH- <1tT- >BES- <2CZ+",
            // An error skips to the Sync.
            ">PBES- <E- Z+",
            // A lone Sync.
            ">S- <Z+",
            // Unasked-for messages change nothing.
            "<A+ N+ S+",
            ">Q- <N-A-S- CZ+",
            // COPY FROM STDIN by Query.
            ">Q <G- >ddd- c- <C- Z+",
            ">Q <G- >d f- <E- Z+",
            // ... whose server end fails half way; the client's CopyDone comes after it.
            ">Q <G >d <E-Z+ >d+ c+ >Q- <CZ+",
            // ... and the stale CopyDone does not end the next COPY.
            ">Q <G >d <EZ >c+ Q- <G- >S- d c- <C-Z+",
            // COPY FROM STDIN by Execute, Sync sent at once and so ignored, another after CopyDone.
            ">PBES- <12G- >d- c S- <C- Z+",
            // ... with the Sync only at the end.
            ">PBEH- <12G- >d- c S- <C- Z+",
            // ... all of it sent without waiting.
            ">PBES d c S- <12G- C- Z+",
            ">PBE d c S- <12G- C- Z+",
            // ... refused before it begins: both Syncs are answered.
            ">PBES- <1 2 E- Z+ >d+ c+ S- <Z+",
            ">PBES d c S- <E- Z- Z+",
            // ... failing half way.
            ">PBES <12G >d <E- >d c S- <Z+",
            // A Sync inside the COPY is ignored.
            ">Q <G >d S d c- <C- Z+",
            // COPY TO STDOUT; a Sync sent meanwhile is answered after it.
            ">Q <H-d-d-c- C-Z+",
            ">PBES <12H-d-c-C-Z+",
            // Two statements in one Query, both COPY.
            ">Q <G >d c <C- G- >d c <C- Z+",
            // Replication: busy until it ends.
            ">Q <W- d- >d- c- <c- C- Z+",
            // A pipeline in front of a COPY.
            ">S PBES- <Z- 12G- >d c S- <C- Z+",
            // Terminate: not idle, whatever happens.
            ">X-",
            // More answers than questions: harmless.
            "<Z+ >Q- <Z+",
        ] {
            run(script);
        }
    }

    #[test]
    fn part_of_a_message_is_not_idle_in_either_direction() {
        let mut track = Track::default();
        track.client_bytes(b"Q\0\0").unwrap();
        assert!(!track.is_idle());
        let mut track = Track::default();
        track.guest_bytes(b"N\0\0\0\x09abc").unwrap();
        assert!(!track.is_idle());
        assert!(!track.client_at_boundary());
        track.guest_bytes(b"de").unwrap();
        assert!(track.is_idle());
    }

    #[test]
    fn remembers_whether_the_guest_said_why() {
        let mut track = Track::default();
        track.guest_bytes(b"E\0\0\0\x05\0").unwrap();
        assert!(track.guest_said_why());
        track.guest_bytes(b"Z\0\0\0\x05I").unwrap();
        assert!(!track.guest_said_why());
    }

    #[test]
    fn what_is_owed_is_bounded_and_given_back() {
        let mut track = Track::default();
        let syncs = [b'S', 0, 0, 0, 4].repeat(1000);
        let refused = (0..1000).find_map(|_| track.client_bytes(&syncs).err());
        assert_eq!(refused, Some(TrackError::TooManyOwed));

        let mut track = Track::default();
        track.client_bytes(&syncs).unwrap();
        track.guest_bytes(&[b'Z', 0, 0, 0, 5, b'I'].repeat(1000)).unwrap();
        assert!(track.is_idle());
        assert_eq!(track.owed.capacity(), 0);
    }

    #[test]
    fn a_session_s_state_is_small() {
        assert!(std::mem::size_of::<Track>() <= 72, "{}", std::mem::size_of::<Track>());
    }
}
