//! virtio-vsock: the only way in or out.
//!
//! The VMM asks for connections to `POSTGRES_PORT`; the kernel stands there for Postgres' listening unix-domain
//! socket. A connection is a stream with credit in both directions. Packets to the host are queued. They go out with the
//! next exit, or, when nothing can run, by a doorbell that another thread of the VMM hears while this vCPU looks out. A
//! kick, which waits until they are gone, is only given when an event finds a task computing, or when all buffers are full.
//!
//! Nothing here is lost by a suspend: rings, buffers and credit are guest memory.

use crate::errno::{Errno, Result};
use crate::file::{File, Stat, ready};
use crate::global::Global;
use crate::heap;
use crate::klog;
use crate::received::Received;
use crate::sched;
use crate::socket;
use crate::time;
use crate::virtio::Queue;
use crate::wait::{Outcome, WaitQueue};
use alloc::collections::BTreeMap;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::any::Any;
use core::cell::{Cell, RefCell};
use dormouse_abi as abi;

/// Receive buffers and their length in bytes, header included.
const RX_BUFFERS: usize = 16;
const RX_LEN: usize = 8192;
/// Transmit buffers. The one used last is used next, so an idle session touches one.
const TX_BUFFERS: usize = 32;
const TX_LEN: usize = 16384 + HEADER_LEN;
/// Bytes of one connection that the host may have under way to us.
const WINDOW: u32 = 64 << 10;
const HEADER_LEN: usize = 44;

/// `struct virtio_vsock_hdr` (virtio 1.2, 5.10.6).
#[repr(C, packed)]
#[derive(Clone, Copy, Default)]
struct Header {
    src_cid: u64,
    dst_cid: u64,
    src_port: u32,
    dst_port: u32,
    len: u32,
    kind: u16,
    op: u16,
    flags: u32,
    buf_alloc: u32,
    fwd_cnt: u32,
}
const _: () = assert!(core::mem::size_of::<Header>() == HEADER_LEN);

const STREAM: u16 = 1;
mod op {
    pub const REQUEST: u16 = 1;
    pub const RESPONSE: u16 = 2;
    pub const RST: u16 = 3;
    pub const SHUTDOWN: u16 = 4;
    pub const RW: u16 = 5;
    pub const CREDIT_UPDATE: u16 = 6;
    pub const CREDIT_REQUEST: u16 = 7;
}
const SHUTDOWN_RECEIVE: u32 = 1;
const SHUTDOWN_SEND: u32 = 2;

struct Driver {
    rx: Queue,
    tx: Queue,
    /// Buffer address by descriptor head.
    rx_flying: Vec<(u16, u64)>,
    tx_free: Vec<u64>,
    tx_flying: Vec<(u16, u64)>,
    /// There are packets out that the host has not been told of.
    tx_new: bool,
}

static DRIVER: Global<RefCell<Option<Driver>>> = Global::new(RefCell::new(None));
/// Connections by (host port, guest port).
type Connections = BTreeMap<(u32, u32), Rc<Connection>>;

static CONNECTIONS: Global<RefCell<Connections>> = Global::new(RefCell::new(Connections::new()));
/// Woken when transmit buffers come back.
static TX_ROOM: WaitQueueCell = WaitQueueCell(Global::new(WaitQueue::new()));

struct WaitQueueCell(Global<WaitQueue>);

pub fn init() {
    let mut driver = Driver {
        rx: Queue::new(abi::queue::VSOCK_RX),
        tx: Queue::new(abi::queue::VSOCK_TX),
        rx_flying: Vec::new(),
        tx_free: Vec::new(),
        tx_flying: Vec::new(),
        tx_new: false,
    };
    for _ in 0..RX_BUFFERS {
        driver.offer(Vec::leak(alloc::vec![0u8; RX_LEN]).as_ptr() as u64);
    }
    for _ in 0..TX_BUFFERS {
        driver.tx_free.push(Vec::leak(alloc::vec![0u8; TX_LEN]).as_ptr() as u64);
    }
    *DRIVER.get().borrow_mut() = Some(driver);
}

impl Driver {
    fn offer(&mut self, buffer: u64) {
        if let Some(head) = self.rx.push(&[], &[(buffer, RX_LEN as u32)]) {
            self.rx_flying.push((head, buffer));
        }
    }

    fn reap(&mut self) -> bool {
        let mut any = false;
        while let Some((head, _)) = self.tx.pop() {
            if let Some(at) = self.tx_flying.iter().position(|&(other, _)| other == head) {
                let (_, buffer) = self.tx_flying.swap_remove(at);
                self.tx_free.push(buffer);
                any = true;
            }
        }
        any
    }

    /// Queues one packet; false when there is no buffer even after the host has been asked to take some.
    fn send(&mut self, mut header: Header, payload: &[u8]) -> bool {
        if self.tx_free.is_empty() && !self.reap() {
            self.tx.kick();
            self.reap();
        }
        let Some(buffer) = self.tx_free.pop() else { return false };
        header.src_cid = abi::GUEST_CID;
        header.dst_cid = abi::HOST_CID;
        header.kind = STREAM;
        header.len = payload.len() as u32;
        // SAFETY: the buffer is ours and holds a header and `payload`, whose length the callers bound.
        unsafe {
            (buffer as *mut Header).write_unaligned(header);
            core::ptr::copy_nonoverlapping(payload.as_ptr(), (buffer as *mut u8).add(HEADER_LEN), payload.len());
        }
        match self.tx.push(&[(buffer, (HEADER_LEN + payload.len()) as u32)], &[]) {
            Some(head) => {
                self.tx_flying.push((head, buffer));
                self.tx_new = true;
                true
            }
            None => {
                self.tx_free.push(buffer);
                false
            }
        }
    }
}

fn transmit(header: Header, payload: &[u8]) -> bool {
    DRIVER.get().borrow_mut().as_mut().is_some_and(|driver| driver.send(header, payload))
}

/// Asks the host to take what is queued now.
pub fn kick() {
    if let Some(driver) = DRIVER.get().borrow_mut().as_mut()
        && !driver.tx.is_served()
    {
        driver.tx.kick();
    }
}

/// Has another thread of the host take what is queued, and goes on meanwhile: so clients and guest work at the same time,
/// not by turns.
pub fn hand_over() {
    if let Some(driver) = DRIVER.get().borrow_mut().as_mut()
        && core::mem::take(&mut driver.tx_new)
        && !driver.tx.is_served()
    {
        crate::arch::doorbell(abi::doorbell::SEND, 0);
    }
}

/// Takes what the host has sent.
pub fn receive() {
    let mut any = false;
    while let Some((header, payload, buffer)) = next_packet() {
        any = true;
        dispatch(header, payload);
        if let Some(driver) = DRIVER.get().borrow_mut().as_mut() {
            driver.offer(buffer);
        }
    }
    let reaped = DRIVER.get().borrow_mut().as_mut().is_some_and(Driver::reap);
    if reaped {
        TX_ROOM.0.get().wake();
    }
    if any {
        sched::mark_active(time::now());
    }
}

fn next_packet() -> Option<(Header, &'static [u8], u64)> {
    let mut driver = DRIVER.get().borrow_mut();
    let driver = driver.as_mut()?;
    let (head, written) = driver.rx.pop()?;
    let at = driver.rx_flying.iter().position(|&(other, _)| other == head)?;
    let (_, buffer) = driver.rx_flying.swap_remove(at);
    let written = (written as usize).min(RX_LEN);
    if written < HEADER_LEN {
        return Some((Header::default(), &[], buffer));
    }
    // SAFETY: the device has given the buffer back, and it is offered again only after the payload was used.
    let (header, payload) = unsafe {
        let header = (buffer as *const Header).read_unaligned();
        (header, core::slice::from_raw_parts((buffer as *const u8).add(HEADER_LEN), written - HEADER_LEN))
    };
    let len = (header.len as usize).min(payload.len());
    Some((header, &payload[..len], buffer))
}

fn dispatch(header: Header, payload: &[u8]) {
    let key = (header.src_port, header.dst_port);
    if header.op == op::REQUEST {
        return accept(key, header);
    }
    let Some(connection) = CONNECTIONS.get().borrow().get(&key).cloned() else {
        if header.op != op::RST && header.op != 0 {
            refuse(key);
        }
        return;
    };
    connection.peer_window.set(header.buf_alloc);
    connection.peer_taken.set(header.fwd_cnt);
    match header.op {
        op::RW => connection.received.push(payload),
        op::SHUTDOWN => {
            if header.flags & SHUTDOWN_SEND != 0 {
                connection.ended.set(true);
            }
            if header.flags & SHUTDOWN_RECEIVE != 0 {
                connection.peer_deaf.set(true);
            }
        }
        op::RST => {
            connection.ended.set(true);
            connection.peer_deaf.set(true);
            connection.reset.set(true);
            CONNECTIONS.get().borrow_mut().remove(&key);
        }
        op::CREDIT_REQUEST => {
            transmit(connection.header(op::CREDIT_UPDATE), &[]);
        }
        _ => {}
    }
    connection.waiters.wake();
}

fn refuse((host_port, guest_port): (u32, u32)) {
    transmit(Header { src_port: guest_port, dst_port: host_port, op: op::RST, ..Header::default() }, &[]);
}

fn accept(key: (u32, u32), header: Header) {
    let connection = Rc::new(Connection {
        key,
        received: Received::default(),
        taken: Cell::new(0),
        told: Cell::new(0),
        sent: Cell::new(0),
        peer_window: Cell::new(header.buf_alloc),
        peer_taken: Cell::new(header.fwd_cnt),
        ended: Cell::new(false),
        peer_deaf: Cell::new(false),
        reset: Cell::new(false),
        waiters: WaitQueue::new(),
    });
    let known = CONNECTIONS.get().borrow().contains_key(&key);
    if known || key.1 != abi::POSTGRES_PORT || heap::scarce() || !socket::offer(connection.clone()) {
        return refuse(key);
    }
    transmit(connection.header(op::RESPONSE), &[]);
    CONNECTIONS.get().borrow_mut().insert(key, connection);
}

/// One stream to the host.
pub struct Connection {
    key: (u32, u32),
    received: Received,
    /// Bytes the program has taken, and how many of them the host has been told of.
    taken: Cell<u32>,
    told: Cell<u32>,
    sent: Cell<u32>,
    peer_window: Cell<u32>,
    peer_taken: Cell<u32>,
    /// No more bytes will come.
    ended: Cell<bool>,
    /// The host takes no more.
    peer_deaf: Cell<bool>,
    reset: Cell<bool>,
    waiters: WaitQueue,
}

impl Connection {
    fn header(&self, op: u16) -> Header {
        self.told.set(self.taken.get());
        Header {
            src_port: self.key.1,
            dst_port: self.key.0,
            op,
            buf_alloc: WINDOW,
            fwd_cnt: self.taken.get(),
            ..Header::default()
        }
    }

    fn credit(&self) -> u32 {
        self.peer_window.get().saturating_sub(self.sent.get().wrapping_sub(self.peer_taken.get()))
    }

    pub fn shutdown(&self, receive: bool, send: bool) {
        let flags = if receive { SHUTDOWN_RECEIVE } else { 0 } | if send { SHUTDOWN_SEND } else { 0 };
        transmit(Header { flags, ..self.header(op::SHUTDOWN) }, &[]);
    }

    fn copy_out(&self, buf: &mut [u8], keep: bool) -> usize {
        let len = self.received.copy_out(buf, keep);
        if !keep {
            self.taken.set(self.taken.get().wrapping_add(len as u32));
            if self.taken.get().wrapping_sub(self.told.get()) >= WINDOW / 2 {
                transmit(self.header(op::CREDIT_UPDATE), &[]);
            }
        }
        len
    }

    /// Reads without taking the bytes (`MSG_PEEK`).
    pub fn peek(&self, buf: &mut [u8]) -> Result<usize> {
        if self.received.is_empty() && !self.ended.get() {
            return Err(Errno::EAGAIN);
        }
        Ok(self.copy_out(buf, true))
    }
}

impl File for Connection {
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn stat(&self) -> Result<Stat> {
        Ok(Stat { ino: self.key.0 as u64, mode: 0o140777, nlink: 1, dev: 2, ..Stat::default() })
    }

    fn read(&self, buf: &mut [u8], nonblock: bool) -> Result<usize> {
        loop {
            if !self.received.is_empty() || buf.is_empty() {
                return Ok(self.copy_out(buf, false));
            }
            if self.reset.get() {
                return Err(Errno::ECONNRESET);
            }
            if self.ended.get() {
                return Ok(0);
            }
            if nonblock {
                return Err(Errno::EAGAIN);
            }
            let me = sched::current();
            me.waits_for_client.set(true);
            let outcome = self.waiters.wait(None);
            me.waits_for_client.set(false);
            if outcome == Outcome::Interrupted {
                return Err(Errno::ERESTART);
            }
        }
    }

    fn write(&self, buf: &[u8], nonblock: bool) -> Result<usize> {
        loop {
            if self.peer_deaf.get() || self.reset.get() {
                return Err(Errno::EPIPE);
            }
            let len = buf.len().min(self.credit() as usize).min(TX_LEN - HEADER_LEN);
            if len > 0 && transmit(self.header(op::RW), &buf[..len]) {
                self.sent.set(self.sent.get().wrapping_add(len as u32));
                return Ok(len);
            }
            if buf.is_empty() {
                return Ok(0);
            }
            if nonblock {
                return Err(Errno::EAGAIN);
            }
            let queue = if len > 0 { TX_ROOM.0.get() } else { &self.waiters };
            if queue.wait(None) == Outcome::Interrupted {
                return Err(Errno::ERESTART);
            }
        }
    }

    fn poll(&self) -> u32 {
        let mut mask = 0;
        if !self.received.is_empty() || self.ended.get() {
            mask |= ready::IN;
        }
        if self.ended.get() {
            mask |= ready::RDHUP;
        }
        if self.credit() > 0 || self.peer_deaf.get() {
            mask |= ready::OUT;
        }
        if self.ended.get() && self.peer_deaf.get() {
            mask |= ready::HUP;
        }
        mask
    }

    fn waiters(&self) -> Option<&WaitQueue> {
        Some(&self.waiters)
    }

    fn close(&self) {
        if !self.reset.get() {
            // The host answers with RST once it has passed on what is under way; nothing here waits for it.
            self.shutdown(true, true);
            CONNECTIONS.get().borrow_mut().remove(&self.key);
        }
        self.received.clear();
    }
}

/// Says on the console what is open; part of a dump.
pub fn dump() {
    for connection in CONNECTIONS.get().borrow().values() {
        klog!(
            "  connection {}: {} bytes unread, credit {}, ended {}",
            connection.key.0,
            connection.received.len(),
            connection.credit(),
            connection.ended.get()
        );
    }
}
