//! The device against a driver made of test code: protocol, backpressure, sleep, and packets at random.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;

use dormouse_abi::{LARGE_PAGE, QUEUE_SIZE, SYSTEM, system};
use vm_memory::{Bytes, GuestAddress};

use super::packet::{HEADER_LEN, Header, op, shutdown};
use super::*;
use crate::machine::Ram;
use crate::reactor::{Event, STREAM};

const BUFFERS: u64 = 0x40_0000;
const BUFFER_LEN: u32 = 4096;

/// The guest's side of both queues: one descriptor a buffer.
struct Driver {
    ram: Ram,
    rx_seen: u16,
    tx_sent: u16,
}

impl Driver {
    fn new() -> Self {
        let driver = Self { ram: Ram::new(8 * LARGE_PAGE).unwrap(), rx_seen: 0, tx_sent: 0 };
        for index in 0..8u16 {
            let at = driver.base(queue::VSOCK_RX) + u64::from(index) * 16;
            driver.put(at, BUFFERS + u64::from(index) * u64::from(BUFFER_LEN));
            driver.put(at + 8, u64::from(BUFFER_LEN) | 2 << 32);
            driver.offer(queue::VSOCK_RX, index, index);
        }
        driver
    }

    fn base(&self, index: usize) -> u64 {
        SYSTEM + system::QUEUES + index as u64 * system::QUEUE_STRIDE
    }

    fn put<T: vm_memory::ByteValued>(&self, at: u64, value: T) {
        self.ram.view().write_obj(value, GuestAddress(at)).unwrap();
    }

    fn get<T: vm_memory::ByteValued>(&self, at: u64) -> T {
        self.ram.view().read_obj(GuestAddress(at)).unwrap()
    }

    fn offer(&self, index: usize, position: u16, head: u16) {
        let available = self.base(index) + system::QUEUE_AVAIL;
        self.put(available + 4 + u64::from(position % QUEUE_SIZE) * 2, head);
        self.put(available + 2, position.wrapping_add(1));
    }

    /// Puts bytes in the transmit queue as they are.
    fn send_raw(&mut self, bytes: &[u8]) {
        let slot = self.tx_sent % QUEUE_SIZE;
        let at = BUFFERS + 0x10_0000 + u64::from(slot) * 8192;
        self.ram.view().write_slice(bytes, GuestAddress(at)).unwrap();
        let descriptor = self.base(queue::VSOCK_TX) + u64::from(slot) * 16;
        self.put(descriptor, at);
        self.put(descriptor + 8, bytes.len() as u64);
        self.offer(queue::VSOCK_TX, self.tx_sent, slot);
        self.tx_sent = self.tx_sent.wrapping_add(1);
    }

    fn send(&mut self, port: u32, op: u16, flags: u32, taken: u32, payload: &[u8]) {
        let header = Header {
            src_cid: GUEST_CID,
            dst_cid: HOST_CID,
            src_port: POSTGRES_PORT,
            dst_port: port,
            len: payload.len() as u32,
            op,
            flags,
            buf_alloc: 1000,
            fwd_cnt: taken,
        };
        self.send_raw(&[&header.encode(), payload].concat());
    }

    /// Takes what the device has given, and offers the buffers again.
    fn receive(&mut self) -> Vec<(Header, Vec<u8>)> {
        let used = self.base(queue::VSOCK_RX) + system::QUEUE_USED;
        let mut packets = Vec::new();
        while self.rx_seen != self.get::<u16>(used + 2) {
            let element = used + 4 + u64::from(self.rx_seen % QUEUE_SIZE) * 8;
            let (head, len) = (self.get::<u32>(element) as u16, self.get::<u32>(element + 4) as usize);
            let mut bytes = vec![0; len];
            let at = BUFFERS + u64::from(head) * u64::from(BUFFER_LEN);
            self.ram.view().read_slice(&mut bytes, GuestAddress(at)).unwrap();
            let header = Header::decode(bytes[..HEADER_LEN].try_into().unwrap()).unwrap();
            packets.push((header, bytes[HEADER_LEN..].to_vec()));
            self.offer(queue::VSOCK_RX, self.rx_seen.wrapping_add(8), head);
            self.rx_seen = self.rx_seen.wrapping_add(1);
        }
        packets
    }
}

/// A device with one open session, and the far end of its stream.
fn session() -> (Driver, Vsock, u32, UnixStream) {
    let mut driver = Driver::new();
    let mut vsock = Vsock::new(driver.ram.view().clone()).unwrap();
    let port = vsock.connect();
    assert!(vsock.pump());
    assert_eq!(driver.receive()[0].0.op, op::REQUEST);
    driver.send(port, op::RESPONSE, 0, 0, &[]);
    vsock.pump();
    assert_eq!(vsock.outcomes(), [(port, Outcome::Opened)]);
    assert_eq!(vsock.name(port), Some(1));
    let (near, far) = UnixStream::pair().unwrap();
    near.set_nonblocking(true).unwrap();
    vsock.attach(port, near, 77);
    (driver, vsock, port, far)
}

fn readable(token: u64) -> Event {
    Event { token, ready: STREAM & libc::EPOLLIN as u32 }
}

#[test]
fn a_connection_is_parked_only_once_whoever_asked_for_it_was_told() {
    let mut driver = Driver::new();
    let mut vsock = Vsock::new(driver.ram.view().clone()).unwrap();
    let port = vsock.connect();
    vsock.pump();
    driver.send(port, op::RESPONSE, 0, 0, &[]);
    vsock.pump();
    assert_eq!(vsock.parked(), None);
    assert_eq!(vsock.outcomes(), [(port, Outcome::Opened)]);
    assert_eq!(vsock.parked(), Some(port));
}

#[test]
fn a_guest_is_never_given_more_than_its_credit() {
    let (mut driver, mut vsock, port, mut far) = session();
    far.write_all(&[7; 2500]).unwrap();
    vsock.event(readable(77));
    vsock.pump();
    let packets = driver.receive();
    let given: usize = packets.iter().filter(|(header, _)| header.op == op::RW).map(|(_, bytes)| bytes.len()).sum();
    assert_eq!(given, 1000);
    assert_eq!(packets.last().unwrap().0.op, op::CREDIT_REQUEST, "it is asked for more, once");
    vsock.pump();
    assert!(driver.receive().is_empty());
    driver.send(port, op::CREDIT_UPDATE, 0, 900, &[]);
    assert!(vsock.pump());
    assert_eq!(driver.receive()[0].1.len(), 900);
    assert_eq!(vsock.sessions()[0].received, 1900);
}

#[test]
fn a_slow_host_holds_the_guest_back_and_loses_nothing() {
    let (mut driver, mut vsock, port, mut far) = session();
    let (mut sent, mut credit) = (Vec::new(), connection::BUFFER as usize);
    // Until the socket and the window are full.
    while credit >= 4000 {
        let block = vec![(sent.len() / 4000) as u8; 4000];
        driver.send(port, op::RW, 0, 0, &block);
        sent.extend_from_slice(&block);
        vsock.pump();
        credit -= 4000;
        for (header, _) in driver.receive() {
            credit = connection::BUFFER as usize - sent.len() + header.fwd_cnt as usize;
        }
    }
    let before = vsock.sessions()[0].sent;
    assert!((before as usize) < sent.len(), "the socket is full");
    let mut received = vec![0; sent.len()];
    let mut at = 0;
    while at < received.len() {
        at += far.read(&mut received[at..]).unwrap();
        vsock.event(Event { token: 77, ready: libc::EPOLLOUT as u32 });
        vsock.pump();
    }
    assert!(received == sent);
    assert!(driver.receive().iter().any(|(header, _)| header.op == op::CREDIT_UPDATE));
    // One byte over the window ends the connection, not the VMM.
    let over = vec![1; 5000];
    for _ in 0..=connection::BUFFER / 5000 + 60 {
        driver.send(port, op::RW, 0, 0, &over);
        vsock.pump();
    }
    assert!(driver.receive().iter().any(|(header, _)| header.op == op::RST));
}

#[test]
fn both_sides_can_end_and_the_last_bytes_arrive() {
    let (mut driver, mut vsock, port, mut far) = session();
    driver.send(port, op::RW, 0, 0, b"last words");
    driver.send(port, op::SHUTDOWN, shutdown::BOTH, 0, &[]);
    vsock.pump();
    let mut words = String::new();
    far.read_to_string(&mut words).unwrap();
    assert_eq!(words, "last words");
    assert_eq!(driver.receive().last().unwrap().0.op, op::RST);
    assert!(vsock.sessions().is_empty());

    let (mut driver, mut vsock, port, mut far) = session();
    far.write_all(b"bye").unwrap();
    drop(far);
    vsock.event(Event { token: 77, ready: STREAM | libc::EPOLLHUP as u32 });
    vsock.pump();
    let packets = driver.receive();
    assert_eq!(packets[0].1, b"bye");
    assert_eq!((packets[1].0.op, packets[1].0.flags), (op::SHUTDOWN, shutdown::BOTH));
    assert!(!vsock.settled(), "the guest has not closed yet");
    driver.send(port, op::RST, 0, 3, &[]);
    vsock.pump();
    assert!(vsock.settled() && vsock.sessions().is_empty());
}

#[test]
fn what_the_host_has_not_taken_sleeps_with_the_guest() {
    let (mut driver, mut vsock, port, far) = session();
    drop(far);
    vsock.hosts.clear();
    driver.send(port, op::RW, 0, 0, b"for later");
    vsock.pump();
    let mut out = Writer::default();
    vsock.save(&mut out);
    let bytes = out.into_bytes();
    let mut woken = Vsock::load(driver.ram.view().clone(), &mut Reader::new(&bytes)).unwrap();
    assert!(woken.bind(1, 1, 0).is_err() && woken.bind(2, 0, 0).is_err());
    assert_eq!(woken.bind(1, 0, 0).unwrap().0, port);
    let (near, mut far) = UnixStream::pair().unwrap();
    near.set_nonblocking(true).unwrap();
    woken.attach(port, near, 5);
    woken.pump();
    let mut words = [0; 9];
    far.read_exact(&mut words).unwrap();
    assert_eq!(&words, b"for later");
    assert_eq!(woken.sessions(), [Counts { session: 1, received: 0, sent: 9 }]);
    // The reader never sees bytes that are not there.
    for cut in 0..bytes.len() {
        assert!(Vsock::load(driver.ram.view().clone(), &mut Reader::new(&bytes[..cut])).is_err());
    }
}

#[test]
fn random_packets_hurt_nobody() {
    let (mut driver, mut vsock, port, mut far) = session();
    far.set_nonblocking(true).unwrap();
    let mut seed = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    for round in 0..20_000u32 {
        let value = random();
        let header = Header {
            src_cid: if value & 1 == 0 { GUEST_CID } else { value },
            dst_cid: if value & 2 == 0 { HOST_CID } else { value >> 3 },
            src_port: if value & 4 == 0 { POSTGRES_PORT } else { value as u32 },
            dst_port: if value & 8 == 0 { port } else { (value >> 7) as u32 },
            len: (random() % 6000) as u32,
            op: (value >> 32) as u16 % 10,
            flags: (value >> 40) as u32,
            buf_alloc: random() as u32,
            fwd_cnt: random() as u32,
        };
        let mut bytes = header.encode().to_vec();
        bytes.resize((random() % 6000) as usize, round as u8);
        driver.send_raw(&bytes);
        vsock.pump();
        driver.receive();
        let _ = far.read(&mut [0; 8192]);
        let _ = far.write(&[1; 100]);
        vsock.event(readable(77));
    }
    // Descriptors that point nowhere, at themselves, or have no length.
    for (address, len_and_flags) in
        [(u64::MAX - 4, 100), (0, u64::MAX), (BUFFERS, 1 << 32), (BUFFERS, 0), (8 * LARGE_PAGE - 10, 44)]
    {
        let slot = driver.tx_sent % QUEUE_SIZE;
        let descriptor = driver.base(queue::VSOCK_TX) + u64::from(slot) * 16;
        driver.put::<u64>(descriptor, address);
        driver.put::<u64>(descriptor + 8, len_and_flags);
        driver.offer(queue::VSOCK_TX, driver.tx_sent, slot);
        driver.tx_sent = driver.tx_sent.wrapping_add(1);
        vsock.pump();
    }
    // It still works.
    let port = vsock.connect();
    vsock.pump();
    assert!(driver.receive().iter().any(|(header, _)| header.op == op::REQUEST && header.src_port == port));
}
