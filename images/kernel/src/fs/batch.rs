//! Several WRITEs that go to the host at one ring of the doorbell, with or without a flush behind them.

use super::fuse::{SEGMENTS, malformed};
use super::window::BLOCKS;
use super::wire::{self, Opcode, Wire};
use crate::errno::{Errno, Result};

/// WRITEs in one batch at most.
pub const BATCH: usize = 24;
/// Descriptors that a batch takes at most: leaves room in the queue for deferred flushes and for a FORGET.
const DESCRIPTORS: usize = 104;

const _: () = assert!(3 * BATCH <= DESCRIPTORS);

/// What one WRITE takes from the guest's memory, and what became of it.
#[derive(Clone, Copy)]
pub struct Part {
    pub node: u64,
    pub offset: u64,
    pub len: usize,
    /// Where its pieces begin in the batch's list, and how many they are.
    first: usize,
    count: usize,
    pub done: Result<usize>,
}

const REQUEST: usize = size_of::<wire::InHeader>() + size_of::<wire::WriteIn>();
const ANSWER: usize = size_of::<wire::OutHeader>() + size_of::<wire::WriteOut>();

/// Header, arguments and answer of one WRITE, in the memory that the host reads and writes.
pub struct Frame {
    request: [u8; REQUEST],
    answer: [u8; ANSWER],
    unique: u64,
    /// The chain in the queue, and how much of the answer came.
    pub head: u16,
    pub written: Option<u32>,
}

impl Frame {
    pub const EMPTY: Self = Self { request: [0; REQUEST], answer: [0; ANSWER], unique: 0, head: 0, written: None };

    /// Writes the request; where it is, and where the answer goes.
    pub fn fill(&mut self, part: &Part, unique: u64) -> ((u64, u32), (u64, u32)) {
        let header = wire::InHeader {
            len: (REQUEST + part.len) as u32,
            opcode: Opcode::Write as u32,
            unique,
            node: part.node,
            ..Default::default()
        };
        let ask = wire::WriteIn { offset: part.offset, size: part.len as u32, ..Default::default() };
        self.request[..size_of::<wire::InHeader>()].copy_from_slice(header.bytes());
        self.request[size_of::<wire::InHeader>()..].copy_from_slice(ask.bytes());
        (self.unique, self.written) = (unique, None);
        ((self.request.as_ptr() as u64, REQUEST as u32), (self.answer.as_mut_ptr() as u64, ANSWER as u32))
    }

    /// How many bytes the server took.
    pub fn outcome(&self) -> Result<usize> {
        let header = wire::OutHeader::parse(&self.answer);
        match self.written {
            Some(written) if written as usize >= size_of::<wire::OutHeader>() && header.unique == self.unique => {}
            _ => return Err(malformed(Opcode::Write, "is none")),
        }
        match header.error {
            0 if self.written == Some(ANSWER as u32) => {
                Ok(wire::WriteOut::parse(&self.answer[size_of::<wire::OutHeader>()..]).size as usize)
            }
            error @ -4095..=-1 => Err(Errno(-error)),
            _ => Err(malformed(Opcode::Write, "makes no sense")),
        }
    }
}

pub struct Batch {
    list: [(u64, u32); SEGMENTS],
    used: usize,
    parts: [Part; BATCH],
    count: usize,
    /// Bytes of data in one WRITE.
    limit: usize,
}

impl Batch {
    pub fn new(limit: usize) -> Self {
        let part = Part { node: 0, offset: 0, len: 0, first: 0, count: 0, done: Err(Errno::EIO) };
        Self { list: [(0, 0); SEGMENTS], used: 0, parts: [part; BATCH], count: 0, limit }
    }

    /// Adds `len` bytes at `start`, which is mapped where it is in physical memory, to be written at `offset` of the node.
    /// The batch is not full.
    pub fn add(&mut self, node: u64, offset: u64, start: *const u8, len: usize) {
        let last = self.count.checked_sub(1).map(|last| &mut self.parts[last]).filter(|last| {
            last.node == node && last.offset + last.len as u64 == offset && last.len + len <= self.limit
        });
        match last {
            Some(last) => {
                last.len += len;
                last.count += 1;
            }
            None => {
                self.parts[self.count] = Part { node, offset, len, first: self.used, count: 1, done: Err(Errno::EIO) };
                self.count += 1;
            }
        }
        self.list[self.used] = (start as u64, len as u32);
        self.used += 1;
    }

    /// Whether there is no room for a window's worth, which is up to four pieces.
    pub fn is_full(&self) -> bool {
        const MORE: usize = BLOCKS / 2;
        self.count + MORE > BATCH || self.used + MORE > SEGMENTS || 2 * self.count + self.used + 3 * MORE > DESCRIPTORS
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub fn parts(&self) -> &[Part] {
        &self.parts[..self.count]
    }

    pub fn parts_mut(&mut self) -> &mut [Part] {
        &mut self.parts[..self.count]
    }

    /// The memory of a WRITE's data.
    pub fn pieces(&self, part: &Part) -> &[(u64, u32)] {
        &self.list[part.first..part.first + part.count]
    }
}
