//! One window of a cached file: 64 KiB of it in memory, known block by block.

use crate::pages;
use core::cell::Cell;

/// Bytes of a file that are cached together, and their alignment in the file.
pub const WINDOW: u64 = 64 << 10;
/// Bytes that are valid, dirty and written back together: Postgres' page, and the data layer's block.
pub const BLOCK: u64 = 8192;
/// Blocks of a window.
pub const BLOCKS: usize = (WINDOW / BLOCK) as usize;
const PAGE: usize = dormouse_abi::PAGE as usize;
/// Pages of a block.
pub const BLOCK_PAGES: usize = BLOCK as usize / PAGE;

/// The bits of blocks `from..to`.
pub fn bits(from: usize, to: usize) -> u8 {
    (((1u32 << to) - 1) & !((1u32 << from) - 1)) as u8
}

/// A window in *spare* memory, which no snapshot holds, or in memory that it keeps.
pub struct Window {
    data: *mut u8,
    blocks: usize,
    kept: bool,
    /// Blocks that hold what the file has there. Past the file's end they hold zeros, as the file will when it grows.
    pub valid: u8,
    /// Those of them that the host has not got yet.
    pub dirty: u8,
    /// Sweeps there had been when the first became dirty.
    pub dirtied_at: u64,
    /// Something was read from it.
    pub read: Cell<bool>,
    pub used: Cell<bool>,
    /// Sweeps there had been when it was last read or written.
    pub used_at: Cell<u64>,
    /// Tells its entry in the order of arrival from that of an earlier window of the same place.
    pub arrival: u64,
}

impl Window {
    /// A window with room for so many blocks, none of them valid; `None` without memory for it. `kept`: over a sleep.
    pub fn new(blocks: usize, kept: bool, sweeps: u64, arrival: u64) -> Option<Self> {
        let pages = blocks * BLOCK_PAGES;
        Some(Self {
            data: if kept { pages::alloc(pages)? } else { pages::alloc_spare(pages)? },
            blocks,
            kept,
            valid: 0,
            dirty: 0,
            dirtied_at: 0,
            read: Cell::new(false),
            used: Cell::new(false),
            used_at: Cell::new(sweeps),
            arrival,
        })
    }

    /// Blocks that it has memory for.
    pub fn blocks(&self) -> usize {
        self.blocks
    }

    pub fn pages(&self) -> usize {
        self.blocks * BLOCK_PAGES
    }

    /// Whether its memory outlasts a sleep.
    pub fn is_kept(&self) -> bool {
        self.kept
    }

    pub fn has(&self, block: usize) -> bool {
        self.valid & bits(block, block + 1) != 0
    }

    /// The run of blocks around `block` that are like it, valid or not, of the first `limit`.
    pub fn run(&self, block: usize, limit: usize) -> (usize, usize) {
        let like = |other: &usize| self.has(*other) == self.has(block);
        let from = (0..block).rev().take_while(like).count();
        let to = (block..limit).take_while(like).count();
        (block - from, block + to)
    }

    /// Whether it was written from end to end, all of that is the host's now, and nobody has read it: the log, or a table
    /// that is filled. Keeping such would only take memory from the host.
    pub fn is_spent(&self) -> bool {
        self.dirty == 0 && self.valid == bits(0, BLOCKS) && !self.read.get() && !self.kept
    }

    /// The memory from byte `at` on, and how much of it there is.
    pub fn memory(&self, at: usize) -> (*mut u8, usize) {
        let len = self.blocks * BLOCK as usize;
        let at = at.min(len);
        (self.data.wrapping_add(at), len - at)
    }

    /// Copies out from byte `at` on.
    pub fn copy_out(&self, at: usize, to: &mut [u8]) {
        let (from, len) = self.memory(at);
        // SAFETY: no more than the window's memory has, which is the window's alone.
        unsafe { core::ptr::copy_nonoverlapping(from, to.as_mut_ptr(), to.len().min(len)) };
    }

    /// Copies in at byte `at`.
    pub fn copy_in(&mut self, at: usize, from: &[u8]) {
        let (to, len) = self.memory(at);
        // SAFETY: as above.
        unsafe { core::ptr::copy_nonoverlapping(from.as_ptr(), to, from.len().min(len)) };
    }

    /// Clears bytes `from..to`.
    pub fn zero(&mut self, from: usize, to: usize) {
        let (start, len) = self.memory(from);
        // SAFETY: as above.
        unsafe { core::ptr::write_bytes(start, 0, (to - from).min(len)) };
    }

    /// Takes over what another, smaller one of the same place holds.
    pub fn take_over(&mut self, other: &Self) {
        let len = (other.blocks * BLOCK as usize).min(self.blocks * BLOCK as usize);
        // SAFETY: both have that much memory, each its own.
        unsafe { core::ptr::copy_nonoverlapping(other.data, self.data, len) };
        (self.valid, self.dirty, self.dirtied_at) = (other.valid, other.dirty, other.dirtied_at);
        self.read.set(other.read.get());
        self.used.set(other.used.get());
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        pages::free(self.data, self.pages());
    }
}
