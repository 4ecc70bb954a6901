//! One stream between the guest's Postgres port and the host: credit, counts and what each side has closed.
//!
//! ```text
//!             RESPONSE             SHUTDOWN of both ways (ours)
//! Requested ───────────▶ Open ─────────────────────────────────▶ Closing ──RST or time──▶ gone
//!     └──────RST──────▶ refused   RST, or SHUTDOWN of both ways (the guest's) ──▶ Draining ──▶ gone
//! ```
//! In Draining the guest's end is gone and the host is still given what the guest had sent.

use std::collections::VecDeque;
use std::time::Instant;

use dormouse_abi::{GUEST_CID, HOST_CID, POSTGRES_PORT};

use super::packet::{Header, shutdown};
use crate::codec::{Malformed, Reader, Writer};

/// Buffer that the VMM offers the guest for each connection, bytes: what the guest may send ahead of the host.
pub const BUFFER: u32 = 256 << 10;

/// Where a connection stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The guest has been asked and has not answered.
    Requested,
    Open,
    /// The host's end is gone and the guest has been told; it still has to say that it has closed. Reset at the
    /// instant given.
    Closing(Instant),
    /// The guest's end is gone; the host still has bytes to take.
    Draining,
}

/// A connection. Its host end, if it has one at the moment, is beside it, not in it.
#[derive(Debug)]
pub struct Connection {
    /// The pooler's name for it; 0 while parked.
    pub session: u64,
    /// The VMM's port.
    pub port: u32,
    pub state: State,
    /// Bytes taken from the host since the session began.
    pub received: u64,
    /// Bytes given to the host since the session began.
    pub sent: u64,
    /// Bytes from the guest that the host has not taken.
    pub to_host: VecDeque<u8>,
    /// Bytes from the host that the guest has not been given.
    pub to_guest: VecDeque<u8>,
    /// The host will send no more.
    pub host_ended: bool,
    /// Which ways the guest has been told are closed ([`shutdown`] flags).
    pub told_closed: u32,
    /// Which ways the guest has closed.
    pub guest_closed: u32,
    /// The guest has been asked for credit and has not given any since.
    pub asked_credit: bool,
    guest_alloc: u32,
    guest_taken: u32,
    to_guest_count: u32,
    from_guest_count: u32,
    taken: u32,
    told_taken: u32,
}

impl Connection {
    /// A connection that the guest is about to be asked for.
    pub fn new(session: u64, port: u32) -> Self {
        Self {
            session,
            port,
            state: State::Requested,
            received: 0,
            sent: 0,
            to_host: VecDeque::new(),
            to_guest: VecDeque::new(),
            host_ended: false,
            told_closed: 0,
            guest_closed: 0,
            asked_credit: false,
            guest_alloc: 0,
            guest_taken: 0,
            to_guest_count: 0,
            from_guest_count: 0,
            taken: 0,
            told_taken: 0,
        }
    }

    /// A header for a packet to the guest; telling it our credit is part of every packet.
    pub fn header(&mut self, op: u16, flags: u32, len: u32) -> Header {
        self.told_taken = self.taken;
        Header {
            src_cid: HOST_CID,
            dst_cid: GUEST_CID,
            src_port: self.port,
            dst_port: POSTGRES_PORT,
            len,
            op,
            flags,
            buf_alloc: BUFFER,
            fwd_cnt: self.taken,
        }
    }

    /// Takes the credit that comes with every packet of the guest.
    pub fn credit_from(&mut self, header: &Header) {
        self.guest_alloc = header.buf_alloc;
        self.guest_taken = header.fwd_cnt;
        if self.credit() > 0 {
            self.asked_credit = false;
        }
    }

    /// Bytes the guest has room for.
    pub fn credit(&self) -> usize {
        let in_flight = self.to_guest_count.wrapping_sub(self.guest_taken);
        self.guest_alloc.saturating_sub(in_flight) as usize
    }

    /// `len` bytes went to the guest.
    pub fn given_to_guest(&mut self, len: usize) {
        self.to_guest_count = self.to_guest_count.wrapping_add(len as u32);
    }

    /// `len` bytes came from the guest; false if that is more than it had credit for.
    pub fn came_from_guest(&mut self, len: usize) -> bool {
        let ahead = self.from_guest_count.wrapping_sub(self.taken) as usize;
        if ahead + len > BUFFER as usize {
            return false;
        }
        self.from_guest_count = self.from_guest_count.wrapping_add(len as u32);
        true
    }

    /// `len` bytes that came from the guest have left the VMM (or were thrown away with the host's end).
    pub fn taken_from_guest(&mut self, len: usize) {
        self.taken = self.taken.wrapping_add(len as u32);
    }

    /// The guest believes that it has a good deal less credit than it has.
    pub fn owes_credit(&self) -> bool {
        self.taken.wrapping_sub(self.told_taken) >= BUFFER / 4
    }

    /// The guest may still send.
    pub fn guest_sends(&self) -> bool {
        self.guest_closed & shutdown::SEND == 0
    }

    /// A connection can be saved only when nothing about it is under way.
    pub fn settled(&self) -> bool {
        self.state == State::Open
    }

    /// Saved form. The host's end is never part of it.
    pub fn save(&self, out: &mut Writer) {
        out.u64(self.session);
        out.u32(self.port);
        out.u64(self.received);
        out.u64(self.sent);
        for buffer in [&self.to_host, &self.to_guest] {
            let (a, b) = buffer.as_slices();
            out.bytes(&[a, b].concat());
        }
        out.u8(u8::from(self.host_ended));
        out.u32(self.told_closed);
        out.u32(self.guest_closed);
        out.u8(u8::from(self.asked_credit));
        for counter in [
            self.guest_alloc,
            self.guest_taken,
            self.to_guest_count,
            self.from_guest_count,
            self.taken,
            self.told_taken,
        ] {
            out.u32(counter);
        }
    }

    /// Reads the saved form.
    pub fn load(from: &mut Reader) -> Result<Self, Malformed> {
        let mut connection = Self::new(from.u64()?, from.u32()?);
        connection.state = State::Open;
        connection.received = from.u64()?;
        connection.sent = from.u64()?;
        connection.to_host = from.bytes()?.to_vec().into();
        connection.to_guest = from.bytes()?.to_vec().into();
        connection.host_ended = from.u8()? != 0;
        connection.told_closed = from.u32()?;
        connection.guest_closed = from.u32()?;
        connection.asked_credit = from.u8()? != 0;
        for counter in [
            &mut connection.guest_alloc,
            &mut connection.guest_taken,
            &mut connection.to_guest_count,
            &mut connection.from_guest_count,
            &mut connection.taken,
            &mut connection.told_taken,
        ] {
            *counter = from.u32()?;
        }
        Ok(connection)
    }
}

#[cfg(test)]
mod tests {
    use super::super::packet::op;
    use super::*;

    #[test]
    fn credit_counts_wrap() {
        let mut connection = Connection::new(1, 2);
        connection.to_guest_count = u32::MAX - 9;
        connection.credit_from(&Header { buf_alloc: 100, fwd_cnt: u32::MAX - 9, ..Header::default() });
        assert_eq!(connection.credit(), 100);
        connection.given_to_guest(60);
        assert_eq!(connection.credit(), 40);
        connection.credit_from(&Header { buf_alloc: 100, fwd_cnt: 50, ..Header::default() });
        assert_eq!(connection.credit(), 100);
        // A guest that shrinks its buffer below what is in flight has no credit, not a huge one.
        connection.given_to_guest(100);
        connection.credit_from(&Header { buf_alloc: 10, fwd_cnt: 50, ..Header::default() });
        assert_eq!(connection.credit(), 0);
    }

    #[test]
    fn a_guest_that_overruns_its_credit_is_found_out() {
        let mut connection = Connection::new(1, 2);
        assert!(connection.came_from_guest(BUFFER as usize));
        assert!(!connection.came_from_guest(1));
        connection.taken_from_guest(BUFFER as usize / 4);
        assert!(connection.owes_credit());
        assert_eq!(connection.header(op::CREDIT_UPDATE, 0, 0).fwd_cnt, BUFFER / 4);
        assert!(!connection.owes_credit());
        assert!(connection.came_from_guest(1));
    }

    #[test]
    fn a_saved_connection_comes_back_whole() {
        let mut connection = Connection::new(7, 0x1_0000);
        connection.state = State::Open;
        connection.to_host.extend(b"not yet taken");
        connection.to_guest.extend(b"not yet given");
        (connection.received, connection.sent) = (11, 12);
        connection.credit_from(&Header { buf_alloc: 4096, fwd_cnt: 5, ..Header::default() });
        connection.given_to_guest(9);
        connection.came_from_guest(13);
        let mut out = Writer::default();
        connection.save(&mut out);
        let bytes = out.into_bytes();
        let loaded = Connection::load(&mut Reader::new(&bytes)).unwrap();
        assert_eq!(format!("{loaded:?}"), format!("{connection:?}"));
        assert!(Connection::load(&mut Reader::new(&bytes[..bytes.len() - 1])).is_err());
    }
}
