//! The FUSE client's transport on the share's virtqueue.
//!
//! A request is synchronous but for one kind. It is pushed, the doorbell rung, and the answer is there when the store
//! completes: the guest does nothing in between, so there is no interrupt, no waiting task and no lock. A host that answers
//! later is rung again until it does.
//!
//! WRITEs of cached blocks go in a batch: many requests, one ring. What a flush still has to write goes before it at the same
//! ring; the host carries requests out in their order.
//!
//! FSYNC waits for the host's disk. Its task blocks until the answer is there, and others run: so several commits share
//! one flush. The answer is looked for at every system call, like received packets.
//!
//! File data never passes through here: descriptors point at the caller's own memory. Only headers, names and small
//! answers are copied.
//!
//! What it refuses: an answer to another request, or one longer or shorter than its kind allows, is EIO.
//!
//! Files carry no handle. The server answers ENOSYS to OPEN and OPENDIR, so neither they nor RELEASE are ever sent,
//! and every request names a node alone: a node stays valid, unlinked or not, until it is forgotten. FORGET has no
//! answer, so it costs no exit of its own either: the nodes to forget are gathered and pushed just before the next
//! request, whose doorbell serves both.

use super::batch::{BATCH, Batch, Frame};
use super::wire::{self, Opcode, Wire};
use crate::errno::{Errno, Result};
use crate::idle;
use crate::virtio::Queue;
use crate::wait::WaitQueue;
use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::vec;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell, UnsafeCell};
use dormouse_abi::{LARGE_PAGE, SLOT_BASE, queue};

/// Bytes of header, arguments and names in a request: the longest are a symbolic link's two names.
const REQUEST_LEN: usize = 8192;
/// Bytes of an answer that is not file data: the longest is a link's target.
const ANSWER_LEN: usize = 4096 + size_of::<wire::OutHeader>();
/// Forgotten nodes in one message.
const FORGET_MAX: usize = 200;
/// Buffers of file data in one request; leaves room in the queue for its headers and for a FORGET.
pub(super) const SEGMENTS: usize = 96;
/// Bytes of file data that this client asks to send in one request.
const DATA_MAX: usize = 1 << 20;

/// Requests whose answers are waited for: with room in the queue for the longest other beside them.
const LATER_MAX: usize = 8;

/// A request that the host may answer later, with the memory it is in.
pub struct Later {
    request: UnsafeCell<[u8; LATER_LEN]>,
    answer: UnsafeCell<[u8; size_of::<wire::OutHeader>()]>,
    /// Bytes of the answer, once there is one.
    written: Cell<Option<u32>>,
    waiters: WaitQueue,
}

const LATER_LEN: usize = size_of::<wire::InHeader>() + size_of::<wire::FSyncIn>();

/// A flush that was asked for.
pub enum Pending {
    Later(Rc<Later>, u64),
    /// There are too many already: it is asked for when it is waited for, and the vCPU with it.
    Unasked(wire::FSyncIn),
}

/// Pieces of memory by physical address, for the data of one READ or WRITE.
pub struct Segments {
    list: [(u64, u32); SEGMENTS],
    count: usize,
    len: usize,
    limit: usize,
}

impl Segments {
    /// Adds as much of `len` bytes at `start` as fits, and tells how much that was. Memory in a process slot is
    /// contiguous only within a large page.
    pub fn add(&mut self, start: *const u8, len: usize) -> usize {
        let mut done = 0;
        while done < len && self.len < self.limit && self.count < SEGMENTS {
            let virt = start as u64 + done as u64;
            let mut part = (len - done).min(self.limit - self.len);
            let phys = if virt < SLOT_BASE {
                virt
            } else {
                part = part.min((LARGE_PAGE - virt % LARGE_PAGE) as usize);
                crate::slots::physical(virt)
            };
            self.list[self.count] = (phys, part as u32);
            self.count += 1;
            self.len += part;
            done += part;
        }
        done
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_full(&self) -> bool {
        self.len == self.limit || self.count == SEGMENTS
    }
}

/// The connection to the share's server.
pub struct Client {
    channel: RefCell<Channel>,
    forgotten: RefCell<Vec<wire::ForgetOne>>,
    /// Bytes of data in one READ or WRITE.
    data_max: Cell<usize>,
}

struct Channel {
    queue: Queue,
    unique: u64,
    request: Box<[u8]>,
    answer: Box<[u8]>,
    forget: Box<[u8]>,
    /// The FORGET that the server has not given back yet.
    forget_head: Option<u16>,
    later: Vec<(u16, Rc<Later>)>,
    /// The WRITEs of a batch under way.
    frames: Box<[Frame; BATCH]>,
    /// How many of them are in use.
    framed: usize,
}

impl Client {
    /// Opens the session. Fails with EPROTONOSUPPORT if the server is too old.
    pub fn connect() -> Result<Self> {
        let client = Self {
            channel: RefCell::new(Channel {
                queue: Queue::new(queue::FS),
                unique: 0,
                request: vec![0; REQUEST_LEN].into_boxed_slice(),
                answer: vec![0; ANSWER_LEN].into_boxed_slice(),
                forget: vec![0; 48 + FORGET_MAX * size_of::<wire::ForgetOne>()].into_boxed_slice(),
                forget_head: None,
                later: Vec::new(),
                frames: Box::new([Frame::EMPTY; BATCH]),
                framed: 0,
            }),
            forgotten: RefCell::new(Vec::new()),
            data_max: Cell::new(4096),
        };
        let ask = wire::InitIn {
            major: wire::MAJOR,
            minor: wire::MINOR,
            max_readahead: DATA_MAX as u32,
            flags: wire::flags::WANTED,
            ..Default::default()
        };
        let mut bytes = [0; size_of::<wire::InitOut>()];
        let len = client.call_bytes(Opcode::Init, 0, &[ask.bytes()], &mut bytes)?;
        let answer = wire::InitOut::parse(&bytes[..len]);
        if answer.major != wire::MAJOR || answer.minor < wire::MINOR {
            crate::klog!("share: the server speaks FUSE {}.{}, 7.31 is needed", answer.major, answer.minor);
            return Err(Errno::EPROTONOSUPPORT);
        }
        let pages = if answer.flags & wire::flags::MAX_PAGES != 0 { answer.max_pages.max(1) } else { 32 };
        client.data_max.set((answer.max_write.max(4096) as usize).min(usize::from(pages) * 4096).min(DATA_MAX));
        Ok(client)
    }

    /// An empty list that takes what one request can carry.
    pub fn segments(&self) -> Segments {
        Segments { list: [(0, 0); SEGMENTS], count: 0, len: 0, limit: self.data_max.get() }
    }

    /// A request whose answer is `R`, exactly.
    pub fn call<R: Wire>(&self, opcode: Opcode, node: u64, parts: &[&[u8]]) -> Result<R> {
        let mut channel = self.channel.borrow_mut();
        let len = self.exchange(&mut channel, opcode, node, parts, &[], &[], size_of::<R>())?;
        if len < size_of::<R>() {
            return Err(malformed(opcode, "is too short"));
        }
        Ok(R::parse(&channel.answer[size_of::<wire::OutHeader>()..]))
    }

    /// A request that is only done or not.
    pub fn call_empty(&self, opcode: Opcode, node: u64, parts: &[&[u8]]) -> Result<()> {
        self.exchange(&mut self.channel.borrow_mut(), opcode, node, parts, &[], &[], 0).map(|_| ())
    }

    /// A request with an answer of any length up to the buffer's.
    pub fn call_bytes(&self, opcode: Opcode, node: u64, parts: &[&[u8]], out: &mut [u8]) -> Result<usize> {
        let mut channel = self.channel.borrow_mut();
        let len = self.exchange(&mut channel, opcode, node, parts, &[], &[], out.len())?;
        let start = size_of::<wire::OutHeader>();
        out[..len].copy_from_slice(&channel.answer[start..start + len]);
        Ok(len)
    }

    /// READ or READDIR into the segments; how many bytes came.
    pub fn read(&self, opcode: Opcode, node: u64, offset: u64, into: &Segments) -> Result<usize> {
        let ask = wire::ReadIn { offset, size: into.len as u32, ..Default::default() };
        let mut channel = self.channel.borrow_mut();
        self.exchange(&mut channel, opcode, node, &[ask.bytes()], &[], &into.list[..into.count], 0)
    }

    /// WRITE from the segments; how many bytes the server took.
    pub fn write(&self, node: u64, offset: u64, from: &Segments) -> Result<usize> {
        let ask = wire::WriteIn { offset, size: from.len as u32, ..Default::default() };
        let mut channel = self.channel.borrow_mut();
        let answer = size_of::<wire::WriteOut>();
        let data = &from.list[..from.count];
        let len = self.exchange(&mut channel, Opcode::Write, node, &[ask.bytes()], data, &[], answer)?;
        let done = wire::WriteOut::parse(&channel.answer[size_of::<wire::OutHeader>()..]).size as usize;
        if len < answer || done > from.len {
            return Err(malformed(Opcode::Write, "counts wrong"));
        }
        Ok(done)
    }

    /// An empty batch.
    pub fn batch(&self) -> Batch {
        Batch::new(self.data_max.get())
    }

    /// Whether a request can be made now: not from within one.
    pub fn is_free(&self) -> bool {
        self.channel.try_borrow_mut().is_ok()
    }

    /// Writes all of the batch; each part tells how it went.
    pub fn write_batch(&self, batch: &mut Batch) {
        let mut channel = self.channel.borrow_mut();
        channel.push_forgets(&mut self.forgotten.borrow_mut());
        channel.push_batch(batch);
        channel.finish_batch(batch);
    }

    /// Writes all of the batch and pushes an FSYNC of the node behind it. The flush is to be waited for by
    /// [`Client::finish_flush`], with nothing borrowed.
    pub fn begin_flush(&self, batch: &mut Batch, node: u64, ask: &wire::FSyncIn) -> Pending {
        let mut channel = self.channel.borrow_mut();
        channel.push_forgets(&mut self.forgotten.borrow_mut());
        channel.push_batch(batch);
        let pending = match channel.push_flush(node, ask) {
            Some((later, unique)) => Pending::Later(later, unique),
            None => Pending::Unasked(*ask),
        };
        channel.finish_batch(batch);
        pending
    }

    /// Waits for a flush: other tasks run until the host has an answer.
    pub fn finish_flush(&self, node: u64, pending: Pending) -> Result<()> {
        let (later, unique) = match pending {
            Pending::Later(later, unique) => (later, unique),
            Pending::Unasked(ask) => return self.call_empty(Opcode::FSync, node, &[ask.bytes()]),
        };
        later.waiters.outlast(|| later.written.get().is_some());
        let written = later.written.get().unwrap_or(0) as usize;
        if written < size_of::<wire::OutHeader>() {
            return Err(malformed(Opcode::FSync, "has no header"));
        }
        // SAFETY: the device has given the buffer back.
        let header = wire::OutHeader::parse(unsafe { &*later.answer.get() });
        match header.error {
            _ if header.unique != unique => Err(malformed(Opcode::FSync, "is to another request")),
            0 => Ok(()),
            error @ -4095..=-1 => Err(Errno(-error)),
            _ => Err(malformed(Opcode::FSync, "has an impossible error")),
        }
    }

    /// Takes the answers that came later, and wakes who waits for them.
    pub fn collect(&self) {
        if let Ok(mut channel) = self.channel.try_borrow_mut()
            && !channel.later.is_empty()
        {
            channel.collect();
        }
    }

    /// Lets the server drop the node, with the next request.
    pub fn forget(&self, node: u64, lookups: u64) {
        self.forgotten.borrow_mut().push(wire::ForgetOne { node, lookups });
    }

    /// One request and its answer; the bytes that came after the answer's header. `answer_len` bytes of them may go
    /// to the answer buffer, the rest to `data_in`.
    #[allow(clippy::too_many_arguments)]
    fn exchange(
        &self,
        channel: &mut Channel,
        opcode: Opcode,
        node: u64,
        parts: &[&[u8]],
        data_out: &[(u64, u32)],
        data_in: &[(u64, u32)],
        answer_len: usize,
    ) -> Result<usize> {
        channel.push_forgets(&mut self.forgotten.borrow_mut());
        channel.unique += 1;
        let unique = channel.unique;
        let data_out_len: usize = data_out.iter().map(|&(_, len)| len as usize).sum();
        let data_in_len: usize = data_in.iter().map(|&(_, len)| len as usize).sum();
        let head_len = channel.write_request(opcode, node, parts, data_out_len)?;
        let answer_max = size_of::<wire::OutHeader>() + answer_len;
        if answer_max > channel.answer.len() {
            return Err(Errno::EINVAL);
        }
        let request = [(channel.request.as_ptr() as u64, head_len as u32)];
        let answer = [(channel.answer.as_mut_ptr() as u64, answer_max as u32)];
        // The common request is one descriptor each way; data comes after the headers.
        let mut list = [(0, 0); SEGMENTS + 1];
        let (readable, writable) = if !data_out.is_empty() {
            list[0] = request[0];
            list[1..=data_out.len()].copy_from_slice(data_out);
            (&list[..=data_out.len()], &answer[..])
        } else if !data_in.is_empty() {
            list[0] = answer[0];
            list[1..=data_in.len()].copy_from_slice(data_in);
            (&request[..], &list[..=data_in.len()])
        } else {
            (&request[..], &answer[..])
        };
        let Some(head) = channel.queue.push(readable, writable) else {
            panic!("the share's queue has no room for one request");
        };
        let written = channel.wait(head) as usize;
        if written < size_of::<wire::OutHeader>() {
            return Err(malformed(opcode, "has no header"));
        }
        let header = wire::OutHeader::parse(&channel.answer);
        if header.unique != unique {
            return Err(malformed(opcode, "is to another request"));
        }
        if header.error != 0 {
            return match header.error {
                error @ -4095..=-1 => Err(Errno(-error)),
                _ => Err(malformed(opcode, "has an impossible error")),
            };
        }
        let len = (header.len as usize).checked_sub(size_of::<wire::OutHeader>());
        match len {
            Some(len) if len <= answer_len + data_in_len && len + size_of::<wire::OutHeader>() <= written => Ok(len),
            _ => Err(malformed(opcode, "has an impossible length")),
        }
    }
}

impl Channel {
    /// Header and parts into the request buffer; how many bytes they take.
    fn write_request(&mut self, opcode: Opcode, node: u64, parts: &[&[u8]], data_len: usize) -> Result<usize> {
        let mut at = size_of::<wire::InHeader>();
        for part in parts {
            let end = at + part.len();
            self.request.get_mut(at..end).ok_or(Errno::ENAMETOOLONG)?.copy_from_slice(part);
            at = end;
        }
        let header = wire::InHeader {
            len: (at + data_len) as u32,
            opcode: opcode as u32,
            unique: self.unique,
            node,
            ..Default::default()
        };
        self.request[..size_of::<wire::InHeader>()].copy_from_slice(header.bytes());
        Ok(at)
    }

    /// Pushes the WRITEs of a batch; the queue has room for one.
    fn push_batch(&mut self, batch: &Batch) {
        self.framed = batch.parts().len();
        for (part, frame) in batch.parts().iter().zip(self.frames.iter_mut()) {
            self.unique += 1;
            let (request, answer) = frame.fill(part, self.unique);
            let pieces = batch.pieces(part);
            let mut list = [(0, 0); SEGMENTS + 1];
            list[0] = request;
            list[1..=pieces.len()].copy_from_slice(pieces);
            match self.queue.push(&list[..=pieces.len()], &[answer]) {
                Some(head) => frame.head = head,
                None => panic!("the share's queue has no room for a batch"),
            }
        }
    }

    /// Rings until all of the batch is done, and takes the outcomes.
    fn finish_batch(&mut self, batch: &mut Batch) {
        loop {
            idle::timed(|| self.queue.kick());
            self.collect();
            if self.frames[..self.framed].iter().all(|frame| frame.written.is_some()) {
                break;
            }
        }
        for (part, frame) in batch.parts_mut().iter_mut().zip(self.frames.iter()) {
            part.done = frame.outcome();
        }
        self.framed = 0;
    }

    /// Pushes an FSYNC; `None` if there are too many already.
    fn push_flush(&mut self, node: u64, ask: &wire::FSyncIn) -> Option<(Rc<Later>, u64)> {
        if self.later.len() >= LATER_MAX {
            return None;
        }
        self.unique += 1;
        let unique = self.unique;
        let header = wire::InHeader {
            len: LATER_LEN as u32,
            opcode: Opcode::FSync as u32,
            unique,
            node,
            ..Default::default()
        };
        let ask = wire::FSyncIn { flags: ask.flags | wire::FSYNC_LATER, ..*ask };
        let mut request = [0; LATER_LEN];
        request[..size_of::<wire::InHeader>()].copy_from_slice(header.bytes());
        request[size_of::<wire::InHeader>()..].copy_from_slice(ask.bytes());
        let later = Rc::new(Later {
            request: UnsafeCell::new(request),
            answer: UnsafeCell::new([0; size_of::<wire::OutHeader>()]),
            written: Cell::new(None),
            waiters: WaitQueue::new(),
        });
        let readable = [(later.request.get() as u64, LATER_LEN as u32)];
        let writable = [(later.answer.get() as u64, size_of::<wire::OutHeader>() as u32)];
        let head = self.queue.push(&readable, &writable)?;
        self.later.push((head, later.clone()));
        Some((later, unique))
    }

    /// Rings until the server gives `head` back; how many bytes it wrote.
    fn wait(&mut self, head: u16) -> u32 {
        loop {
            idle::timed(|| self.queue.kick());
            while let Some((done, written)) = self.queue.pop() {
                if done == head {
                    return written;
                }
                self.came_back(done, written);
            }
        }
    }

    fn collect(&mut self) {
        while let Some((done, written)) = self.queue.pop() {
            self.came_back(done, written);
        }
    }

    /// A chain that no synchronous request waits for.
    fn came_back(&mut self, head: u16, written: u32) {
        if self.forget_head == Some(head) {
            self.forget_head = None;
        } else if let Some(at) = self.later.iter().position(|&(other, _)| other == head) {
            let (_, later) = self.later.swap_remove(at);
            later.written.set(Some(written));
            later.waiters.wake();
        } else if let Some(frame) = self.frames[..self.framed].iter_mut().find(|frame| frame.head == head) {
            frame.written = Some(written);
        }
    }

    /// Pushes the gathered FORGETs, unless the last are still on their way.
    fn push_forgets(&mut self, forgotten: &mut Vec<wire::ForgetOne>) {
        if forgotten.is_empty() || self.forget_head.is_some() {
            return;
        }
        self.unique += 1;
        let count = forgotten.len().min(FORGET_MAX);
        let body = size_of::<wire::InHeader>() + size_of::<wire::BatchForgetIn>();
        let len = body + count * size_of::<wire::ForgetOne>();
        let header = wire::InHeader {
            len: len as u32,
            opcode: Opcode::BatchForget as u32,
            unique: self.unique,
            ..Default::default()
        };
        let batch = wire::BatchForgetIn { count: count as u32, dummy: 0 };
        self.forget[..size_of::<wire::InHeader>()].copy_from_slice(header.bytes());
        self.forget[size_of::<wire::InHeader>()..body].copy_from_slice(batch.bytes());
        for (i, one) in forgotten.drain(..count).enumerate() {
            let at = body + i * size_of::<wire::ForgetOne>();
            self.forget[at..at + size_of::<wire::ForgetOne>()].copy_from_slice(one.bytes());
        }
        self.forget_head = self.queue.push(&[(self.forget.as_ptr() as u64, len as u32)], &[]);
    }
}

pub(super) fn malformed(opcode: Opcode, what: &str) -> Errno {
    crate::klog!("share: the answer to {:?} {}", opcode, what);
    Errno::EIO
}
