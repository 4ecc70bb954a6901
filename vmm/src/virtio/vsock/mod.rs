//! virtio-vsock, streams only, opened by the VMM only: the one way in to a guest and out of it.
//!
//! - [`packet`]: the wire;
//! - [`connection`]: the state of one stream, without I/O;
//! - [`host`]: its host end, a unix stream; `buffers`: copies between slices of guest memory and bytes;
//! - this file: the device, which moves packets between the two queues and the streams.
//!
//! Promises: bytes are never lost, reordered or doubled, whether the stream's host end is there, away (asleep) or
//! replaced; a guest that breaks the protocol loses the connection and nothing else. Refuses: connections begun by
//! the guest, datagrams, ports other than Postgres'.

mod buffers;
pub mod connection;
pub mod host;
pub mod packet;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use dormouse_abi::{GUEST_CID, HOST_CID, POSTGRES_PORT, queue};
use virtio_queue::{Queue, QueueT};
use vm_memory::{GuestMemoryMmap, VolatileSlice};

use super::{Chain, QueueError, give_back, pop, position, queue};
use crate::codec::{Malformed, Reader, Writer};
use crate::reactor::Reactor;
use buffers::{append, hand_over, place, split};
use connection::{Connection, State};
use host::{HostEnd, Read};
use packet::{HEADER_LEN, Header, op, shutdown};

/// The first port that the VMM connects from.
const FIRST_PORT: u32 = 0x1_0000;
/// How long a guest may take to close its end after the host's is gone.
const CLOSING: Duration = Duration::from_secs(8);
/// The most that a suspend takes out of one session's socket when the guest has no room, bytes.
const MOST_HELD: usize = 1 << 20;
/// Answers owed to the guest at which its packets are left in the queue.
const MOST_CONTROL: usize = 1024;
/// Packets taken from the guest in one go, which a guest that runs on another core could make endless.
const MOST_DRAINED: usize = 2 * dormouse_abi::QUEUE_SIZE as usize;
/// Transmit buffers given back in one go of which the guest is told at once.
const MANY: usize = 16;

/// How the guest answered a request to connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Opened,
    Refused,
}

/// Why a session could not be bound again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unbound {
    /// There is none by this number, or it is bound already.
    Unknown,
    /// Bytes are missing on one side or the other.
    CountsDiffer,
}

/// Counts of a session, from the VMM's side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    pub session: u64,
    /// From the host.
    pub received: u64,
    /// To the host.
    pub sent: u64,
}

/// The device.
pub struct Vsock {
    memory: GuestMemoryMmap,
    rx: Queue,
    tx: Queue,
    connections: BTreeMap<u32, Connection>,
    hosts: HashMap<u32, HostEnd>,
    tokens: HashMap<u64, u32>,
    control: VecDeque<Header>,
    outcomes: Vec<(u32, Outcome)>,
    next_port: u32,
    next_session: u64,
    last_byte: Instant,
    firsts: Firsts,
}

/// When each happened for the first time in this process: steps of a wake.
#[derive(Clone, Copy, Debug, Default)]
pub struct Firsts {
    /// A host end was joined to a session.
    pub joined: Option<Instant>,
    /// Bytes of a host were put before the guest.
    pub asked: Option<Instant>,
    /// Bytes of the guest were given to a host.
    pub answered: Option<Instant>,
}

impl Vsock {
    /// A device with no connections.
    pub fn new(memory: GuestMemoryMmap) -> Result<Self, QueueError> {
        Ok(Self {
            memory,
            rx: queue(queue::VSOCK_RX, (0, 0))?,
            tx: queue(queue::VSOCK_TX, (0, 0))?,
            connections: BTreeMap::new(),
            hosts: HashMap::new(),
            tokens: HashMap::new(),
            control: VecDeque::new(),
            outcomes: Vec::new(),
            next_port: FIRST_PORT,
            next_session: 1,
            last_byte: Instant::now(),
            firsts: Firsts::default(),
        })
    }

    /// When a byte last moved.
    pub fn last_byte(&self) -> Instant {
        self.last_byte
    }

    pub fn firsts(&self) -> Firsts {
        self.firsts
    }

    /// Asks the guest for a connection; [`Vsock::outcomes`] says how it answered. Returns its port.
    pub fn connect(&mut self) -> u32 {
        while self.connections.contains_key(&self.next_port) || self.next_port < FIRST_PORT {
            self.next_port = self.next_port.wrapping_add(1).max(FIRST_PORT);
        }
        let port = self.next_port;
        self.next_port = port.wrapping_add(1).max(FIRST_PORT);
        let mut connection = Connection::new(0, port);
        self.control.push_back(connection.header(op::REQUEST, 0, 0));
        self.connections.insert(port, connection);
        port
    }

    /// Answers to [`Vsock::connect`] since the last call.
    pub fn outcomes(&mut self) -> Vec<(u32, Outcome)> {
        std::mem::take(&mut self.outcomes)
    }

    /// A parked connection's port, if one is open. One of which it has not been told yet that it opened is whoever's asked for it.
    pub fn parked(&self) -> Option<u32> {
        let told = |port| self.outcomes.iter().all(|(untold, _)| *untold != port);
        self.connections
            .values()
            .find(|connection| {
                connection.session == 0
                    && connection.state == State::Open
                    && connection.guest_closed == 0
                    && told(connection.port)
            })
            .map(|connection| connection.port)
    }

    /// How many open connections are parked.
    pub fn parked_count(&self) -> usize {
        self.connections.values().filter(|one| one.session == 0 && one.state == State::Open).count()
    }

    /// Makes an open connection without a session the next session; returns its number.
    pub fn name(&mut self, port: u32) -> Option<u64> {
        let connection = self.connections.get_mut(&port).filter(|connection| connection.session == 0)?;
        connection.session = self.next_session;
        self.next_session += 1;
        Some(connection.session)
    }

    /// The host end left before it was joined: the guest's end is told so.
    pub fn abandon(&mut self, port: u32) {
        if let Some(connection) = self.connections.get_mut(&port) {
            connection.told_closed = shutdown::BOTH;
            let header = connection.header(op::SHUTDOWN, shutdown::BOTH, 0);
            self.control.push_back(header);
            connection.state = State::Closing(Instant::now() + CLOSING);
        }
    }

    /// Gives a session without a host end a new one. `sent` and `received` are the host's counts.
    pub fn bind(&mut self, session: u64, sent: u64, received: u64) -> Result<(u32, Counts), (Unbound, Counts)> {
        let none = Counts { session, received: 0, sent: 0 };
        let found = self.connections.values().find(|connection| session != 0 && connection.session == session);
        let Some(connection) = found.filter(|connection| {
            !self.hosts.contains_key(&connection.port) && matches!(connection.state, State::Open | State::Draining)
        }) else {
            return Err((Unbound::Unknown, none));
        };
        let counts = counts(connection);
        if counts.received != sent || counts.sent != received {
            return Err((Unbound::CountsDiffer, counts));
        }
        Ok((connection.port, counts))
    }

    /// Joins a stream, non-blocking and watched for input under `token`, to a connection.
    pub fn attach(&mut self, port: u32, stream: UnixStream, token: u64) {
        self.hosts.insert(port, HostEnd::new(stream, token));
        self.tokens.insert(token, port);
        self.last_byte = Instant::now();
        self.firsts.joined.get_or_insert(self.last_byte);
    }

    /// Epoll said something of the stream with this token.
    pub fn event(&mut self, event: crate::reactor::Event) {
        let Some(host) = self.tokens.get(&event.token).and_then(|port| self.hosts.get_mut(port)) else { return };
        host.told(event);
    }

    /// Moves everything that can move. True if the guest has something new to look at in its receive queue.
    pub fn pump(&mut self) -> bool {
        let drained = self.drain_guest();
        self.flush_hosts();
        self.settle();
        // A guest short of transmit buffers waits for them: it is told when many have come back at once.
        self.fill_guest() || drained >= MANY
    }

    /// Whether the guest has packets out that were not taken.
    pub fn awaited(&self) -> bool {
        let index = self.tx.avail_idx(&self.memory, std::sync::atomic::Ordering::Acquire);
        index.is_ok_and(|index| index.0 != self.tx.next_avail())
    }

    /// Has the streams watched for what [`Vsock::pump`] waits for.
    pub fn watch(&mut self, reactor: &Reactor) {
        for host in self.hosts.values_mut() {
            host.watch(reactor);
        }
    }

    /// When [`Vsock::pump`] has something to do though nothing happened.
    pub fn deadline(&self) -> Option<Instant> {
        self.connections
            .values()
            .filter_map(|connection| if let State::Closing(at) = connection.state { Some(at) } else { None })
            .min()
    }

    /// Packets of the guest.
    fn drain_guest(&mut self) -> usize {
        let mut drained = 0;
        while self.control.len() < MOST_CONTROL && drained < MOST_DRAINED {
            let memory = self.memory.clone();
            let Some(chain) = pop(&mut self.tx, &memory) else { break };
            self.packet(&chain);
            give_back(&mut self.tx, &memory, chain.head, 0);
            drained += 1;
        }
        drained
    }

    fn packet(&mut self, chain: &Chain) {
        let mut bytes = [0; HEADER_LEN];
        let Some(payload) = split(&chain.readable, HEADER_LEN, &mut bytes) else { return };
        let Some(header) = Header::decode(&bytes) else { return };
        let ours = header.dst_cid == HOST_CID && header.src_cid == GUEST_CID && header.src_port == POSTGRES_PORT;
        let port = header.dst_port;
        let connection = if ours { self.connections.get_mut(&port) } else { None };
        let Some(connection) = connection.filter(|connection| connection.state != State::Draining) else {
            if header.op != op::RST {
                self.control.push_back(reset(&header));
            }
            return;
        };
        connection.credit_from(&header);
        match header.op {
            op::RESPONSE if connection.state == State::Requested => {
                connection.state = State::Open;
                self.outcomes.push((port, Outcome::Opened));
            }
            op::RST if connection.state == State::Requested => {
                self.connections.remove(&port);
                self.outcomes.push((port, Outcome::Refused));
            }
            op::RST if matches!(connection.state, State::Closing(_)) => {
                self.connections.remove(&port);
            }
            op::RST => connection.state = State::Draining,
            op::SHUTDOWN => connection.guest_closed |= header.flags & shutdown::BOTH,
            op::RW => {
                let payload_len: usize = payload.iter().map(VolatileSlice::len).sum();
                let len = header.len as usize;
                if len > payload_len
                    || connection.state == State::Requested
                    || !connection.guest_sends()
                    || !connection.came_from_guest(len)
                {
                    static SAID: std::sync::Once = std::sync::Once::new();
                    SAID.call_once(|| tracing::warn!(port, "the guest broke the socket protocol; the connection is reset"));
                    let header = connection.header(op::RST, 0, 0);
                    connection.state = State::Draining;
                    self.control.push_back(header);
                    return;
                }
                self.last_byte = Instant::now();
                let connection_closing = matches!(connection.state, State::Closing(_));
                let mut done = 0;
                if connection_closing {
                    done = len;
                } else if let Some(host) = self.hosts.get_mut(&port)
                    && connection.to_host.is_empty()
                {
                    done = host.write(&payload, len);
                    connection.sent += done as u64;
                    self.firsts.answered.get_or_insert_with(Instant::now);
                }
                connection.taken_from_guest(done);
                append(&mut connection.to_host, &payload, done, len);
            }
            op::CREDIT_UPDATE => {}
            op::CREDIT_REQUEST => {
                let header = connection.header(op::CREDIT_UPDATE, 0, 0);
                self.control.push_back(header);
            }
            _ => self.control.push_back(reset(&header)),
        }
    }

    /// Bytes that hosts could not take before.
    fn flush_hosts(&mut self) {
        for (port, host) in &mut self.hosts {
            let Some(connection) = self.connections.get_mut(port) else { continue };
            if !connection.to_host.is_empty() && host.writable {
                let done = host.write_buffered(&mut connection.to_host);
                connection.sent += done as u64;
                connection.taken_from_guest(done);
            }
        }
    }

    /// Closes what both or one side has closed, and tells the guest of credit it does not know of.
    fn settle(&mut self) {
        let now = Instant::now();
        let mut gone = Vec::new();
        for (port, connection) in &mut self.connections {
            let host = self.hosts.get_mut(port);
            match connection.state {
                State::Requested => continue,
                State::Closing(at) if now >= at => {
                    let header = connection.header(op::RST, 0, 0);
                    self.control.push_back(header);
                    gone.push(*port);
                    continue;
                }
                State::Closing(_) if connection.guest_closed == shutdown::BOTH => {
                    let header = connection.header(op::RST, 0, 0);
                    self.control.push_back(header);
                    gone.push(*port);
                    continue;
                }
                State::Closing(_) => continue,
                State::Draining => {
                    // A session that sleeps keeps its last words until its host is back to hear them.
                    let heard = connection.to_host.is_empty() && (host.is_some() || connection.session == 0);
                    if heard || host.is_some_and(|host| host.hung_up) {
                        gone.push(*port);
                    }
                    continue;
                }
                State::Open => {}
            }
            if let Some(host) = host {
                if !connection.guest_sends() && connection.to_host.is_empty() {
                    host.end_writing();
                }
                if host.hung_up && connection.host_ended && connection.to_guest.is_empty() {
                    let thrown = connection.to_host.len();
                    connection.to_host.clear();
                    connection.taken_from_guest(thrown);
                    connection.told_closed = shutdown::BOTH;
                    let header = connection.header(op::SHUTDOWN, shutdown::BOTH, 0);
                    self.control.push_back(header);
                    connection.state = State::Closing(now + CLOSING);
                    self.hosts.remove(port);
                    continue;
                }
            }
            if connection.guest_closed == shutdown::BOTH && connection.to_host.is_empty() {
                let header = connection.header(op::RST, 0, 0);
                self.control.push_back(header);
                gone.push(*port);
                continue;
            }
            if connection.host_ended && connection.to_guest.is_empty() && connection.told_closed & shutdown::SEND == 0 {
                connection.told_closed |= shutdown::SEND;
                let header = connection.header(op::SHUTDOWN, shutdown::SEND, 0);
                self.control.push_back(header);
            }
            if connection.owes_credit() && connection.guest_sends() {
                let header = connection.header(op::CREDIT_UPDATE, 0, 0);
                self.control.push_back(header);
            }
        }
        for port in gone {
            self.connections.remove(&port);
            self.hosts.remove(&port);
        }
        if self.tokens.len() > 2 * self.hosts.len() + 16 {
            self.tokens.retain(|_, port| self.hosts.contains_key(port));
        }
    }

    /// Packets for the guest: first what is owed, then each connection's bytes in turn.
    fn fill_guest(&mut self) -> bool {
        let memory = self.memory.clone();
        let mut moved = false;
        loop {
            while !self.control.is_empty() {
                let Some(chain) = pop(&mut self.rx, &memory) else { return moved };
                let Some(header) = self.control.pop_front() else { break };
                let written = place(&chain.writable, &header.encode());
                give_back(&mut self.rx, &memory, chain.head, written);
                moved = true;
            }
            let mut progress = false;
            for (port, connection) in &mut self.connections {
                if connection.state != State::Open || connection.told_closed & shutdown::SEND != 0 {
                    continue;
                }
                let mut host = self.hosts.get_mut(port);
                let readable = host.as_ref().is_some_and(|host| host.readable) && !connection.host_ended;
                if connection.to_guest.is_empty() && !readable {
                    continue;
                }
                let credit = connection.credit();
                if credit == 0 && !connection.asked_credit {
                    connection.asked_credit = true;
                    let header = connection.header(op::CREDIT_REQUEST, 0, 0);
                    self.control.push_back(header);
                    progress = true;
                    continue;
                }
                if credit == 0 {
                    continue;
                }
                let Some(chain) = pop(&mut self.rx, &memory) else { return moved };
                let Some(room) = split(&chain.writable, HEADER_LEN, &mut [0; HEADER_LEN]) else {
                    give_back(&mut self.rx, &memory, chain.head, 0);
                    continue;
                };
                let len = if connection.to_guest.is_empty() {
                    match host.as_mut().map_or(Read::Nothing, |host| host.read(&room, credit)) {
                        Read::Bytes(len) => {
                            connection.received += len as u64;
                            len
                        }
                        nothing => {
                            if nothing == Read::Ended {
                                connection.host_ended = true;
                                progress = true;
                            }
                            // Nothing to give after all: the buffer stays available.
                            self.rx.set_next_avail(self.rx.next_avail().wrapping_sub(1));
                            continue;
                        }
                    }
                } else {
                    hand_over(&mut connection.to_guest, &room, credit)
                };
                connection.given_to_guest(len);
                let header = connection.header(op::RW, 0, len as u32);
                place(&chain.writable, &header.encode());
                give_back(&mut self.rx, &memory, chain.head, HEADER_LEN + len);
                self.last_byte = Instant::now();
                self.firsts.asked.get_or_insert(self.last_byte);
                moved = true;
                progress = true;
            }
            if !progress {
                return moved;
            }
            self.settle();
        }
    }

    /// Some session has a host end.
    pub fn attended(&self) -> bool {
        !self.hosts.is_empty()
    }

    /// Sessions with a host end that has not hung up.
    pub fn attached(&self) -> Vec<u64> {
        let alive = |port: &u32| self.hosts.get(port).is_some_and(|host| !host.hung_up);
        self.connections.iter().filter(|(port, _)| alive(port)).map(|(_, one)| one.session).collect()
    }

    /// Counts of all sessions.
    pub fn sessions(&self) -> Vec<Counts> {
        self.connections.values().filter(|connection| connection.session != 0).map(counts).collect()
    }

    /// Takes in what hosts have sent and the guest has no room for, so that it sleeps with the guest.
    pub fn hold_rest(&mut self) {
        for (port, host) in &mut self.hosts {
            let Some(connection) = self.connections.get_mut(port).filter(|connection| connection.settled()) else {
                continue;
            };
            while host.readable && !connection.host_ended && connection.to_guest.len() < MOST_HELD {
                match host.read_buffered(&mut connection.to_guest, MOST_HELD) {
                    Read::Bytes(len) => connection.received += len as u64,
                    Read::Nothing => break,
                    Read::Ended => connection.host_ended = true,
                }
            }
        }
    }

    /// Nothing is under way: no answer is owed to the guest or by it, and its packets have all been taken.
    pub fn settled(&self) -> bool {
        self.control.is_empty()
            && self.connections.values().all(|connection| matches!(connection.state, State::Open | State::Draining))
            && !self.awaited()
    }

    /// Saved form: both queues' positions and all connections.
    pub fn save(&self, out: &mut Writer) {
        for queue in [&self.rx, &self.tx] {
            let (available, used) = position(queue);
            out.u16(available);
            out.u16(used);
        }
        out.u32(self.next_port);
        out.u64(self.next_session);
        out.u32(self.connections.len() as u32);
        for connection in self.connections.values() {
            out.u8(u8::from(connection.state == State::Draining));
            connection.save(out);
        }
    }

    /// Reads the saved form: the same connections, with no host ends.
    pub fn load(memory: GuestMemoryMmap, from: &mut Reader) -> Result<Self, Malformed> {
        let mut vsock = Self::new(memory).map_err(|_| Malformed)?;
        let mut at = || Ok((from.u16()?, from.u16()?));
        let (rx, tx) = (at()?, at()?);
        vsock.rx = queue(queue::VSOCK_RX, rx).map_err(|_| Malformed)?;
        vsock.tx = queue(queue::VSOCK_TX, tx).map_err(|_| Malformed)?;
        vsock.next_port = from.u32()?;
        vsock.next_session = from.u64()?;
        for _ in 0..from.u32()? {
            let draining = from.u8()? != 0;
            let mut connection = Connection::load(from)?;
            if draining {
                connection.state = State::Draining;
            }
            vsock.connections.insert(connection.port, connection);
        }
        Ok(vsock)
    }
}

fn counts(connection: &Connection) -> Counts {
    Counts { session: connection.session, received: connection.received, sent: connection.sent }
}

/// The answer to a packet for a connection that does not exist.
fn reset(to: &Header) -> Header {
    Header {
        src_cid: HOST_CID,
        dst_cid: GUEST_CID,
        src_port: to.dst_port,
        dst_port: to.src_port,
        op: op::RST,
        ..Header::default()
    }
}

#[cfg(test)]
mod tests;
