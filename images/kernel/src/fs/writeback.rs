//! Writing later: blocks that were written by the guest's processes and that the host has not got.
//!
//! A write stays here if it is one of whole blocks that the host has room for already (`owned.rs`), because the guest wrote
//! or allocated them before. So whatever may be refused for want of room is refused at the write, as Postgres expects;
//! what is written later only goes over what is there. It is written
//!
//! - before a flush of its file, and at the same ring of the doorbell;
//! - before `sync` and `syncfs`, and at the guest's clean end;
//! - before the guest says that it is idle: a guest that is suspended has nothing dirty, since no snapshot holds this memory;
//! - some two seconds after it was written, so that a checkpoint's flush finds little to do;
//! - when there is more than [`limit`], and when memory is wanted.
//!
//! Never, if its file is cut or gone before that: most temporary files.
//!
//! A write that the host refuses leaves the block dirty. Each flush of its file tries again, and fails while that does; so
//! does the suspend. Nothing is reported as flushed that is not, and nothing is dropped.

use super::batch::Batch;
use super::cache::{Cache, Held, Place, blocks_of, see_to_sweeps};
use super::fuse::Client;
use super::window::{BLOCK, BLOCKS, WINDOW, Window, bits};
use super::wire;
use crate::errno::{Errno, Result};
use crate::pages;
use core::ops::{Bound, RangeBounds};

/// What one write may have and stay: longer ones are worth an exit of their own, and are not copied twice.
pub const WRITE_MAX: usize = 256 << 10;
/// Of the pool this part may be dirty, but at most so much: what a flush or a suspend may have to write while the others
/// wait.
const PART: usize = 16;
const MOST: usize = (32 << 20) / BLOCK as usize;
/// Of the pool this part may be windows with dirty blocks: scattered ones hold a window each.
const WINDOWS_PART: usize = 8;

/// Blocks that may be dirty.
fn limit() -> usize {
    (pages::usage().1 / PART * dormouse_abi::PAGE as usize / BLOCK as usize).min(MOST)
}

/// Windows that may have dirty blocks.
fn windows_limit() -> usize {
    pages::usage().1 / WINDOWS_PART * dormouse_abi::PAGE as usize / WINDOW as usize
}

/// Bytes in several buffers, taken from the front.
struct Source<'a> {
    buffers: &'a [&'a [u8]],
    at: usize,
}

impl Source<'_> {
    fn take(&mut self, window: &mut Window, mut to: usize, mut len: usize) {
        while len > 0 {
            let Some(first) = self.buffers.first() else { return };
            let part = &first[self.at..];
            let part = &part[..part.len().min(len)];
            window.copy_in(to, part);
            to += part.len();
            len -= part.len();
            self.at += part.len();
            if self.at == first.len() {
                (self.buffers, self.at) = (&self.buffers[1..], 0);
            }
        }
    }
}

impl Held {
    /// Adds to the batch what is dirty in the windows of the range, whole windows only; gives the first that found no room.
    fn gather(
        &self,
        batch: &mut Batch,
        range: (Bound<Place>, Bound<Place>),
        wanted: impl Fn(&Window) -> bool,
    ) -> Option<Place> {
        for &place in self.dirty.range(range) {
            let Some(window) = self.windows.get(&place).filter(|window| wanted(window)) else { continue };
            if batch.is_full() {
                return Some(place);
            }
            let mut block = 0;
            while block < BLOCKS {
                let run = (window.dirty >> block).trailing_ones() as usize;
                let at = block * BLOCK as usize;
                if run > 0 {
                    let offset = place.1 * WINDOW + at as u64;
                    batch.add(place.0, offset, window.memory(at).0, run * BLOCK as usize);
                }
                block += run + 1;
            }
        }
        None
    }

    /// What the host took is clean.
    fn settle(&mut self, batch: &Batch) -> Result<()> {
        let mut result = Ok(());
        for part in batch.parts() {
            let taken = match part.done {
                Ok(taken) => taken,
                Err(error) => {
                    result = Err(error);
                    continue;
                }
            };
            if taken < part.len {
                // Less than asked for is what a full disk takes.
                result = Err(Errno::ENOSPC);
            }
            let first = part.offset / BLOCK;
            for number in first..first + (taken.min(part.len) as u64 / BLOCK) {
                let place = (part.node, number / BLOCKS as u64);
                let bit = bits((number % BLOCKS as u64) as usize, (number % BLOCKS as u64) as usize + 1);
                if let Some(window) = self.windows.get_mut(&place)
                    && window.dirty & bit != 0
                {
                    window.dirty &= !bit;
                    self.dirty_blocks -= 1;
                    let (clean, spent) = (window.dirty == 0, window.is_spent());
                    if clean {
                        self.dirty.remove(&place);
                    }
                    if spent {
                        self.remove(place);
                    }
                }
            }
        }
        result
    }

    /// Writes back what is wanted of the range; what the host refuses stays dirty, and is the error.
    pub(super) fn write_back(
        &mut self,
        client: &Client,
        range: impl RangeBounds<Place>,
        wanted: impl Fn(&Window) -> bool,
    ) -> Result<()> {
        let end = range.end_bound().cloned();
        let mut start = range.start_bound().cloned();
        let mut result = Ok(());
        loop {
            let mut batch = client.batch();
            let next = self.gather(&mut batch, (start, end), &wanted);
            if !batch.is_empty() {
                client.write_batch(&mut batch);
                result = result.and(self.settle(&batch));
            }
            match next {
                Some(next) => start = Bound::Included(next),
                None => return result,
            }
        }
    }

    /// Writes back one batch, from where the last ended.
    fn relieve(&mut self, client: &Client) {
        for _ in 0..2 {
            let mut batch = client.batch();
            let next = self.gather(&mut batch, (Bound::Included(self.hand), Bound::Unbounded), |_| true);
            self.hand = next.unwrap_or((0, 0));
            if !batch.is_empty() {
                client.write_batch(&mut batch);
                // What is refused stays, and is the affair of who flushes it.
                let _ = self.settle(&batch);
                return;
            }
        }
    }
}

/// All windows of a node.
fn all_of(node: u64) -> impl RangeBounds<Place> {
    (node, 0)..=(node, u64::MAX)
}

impl Cache {
    /// Keeps a write of whole blocks below the file's end, `size`; false if it has to go to the host.
    pub fn put(&self, client: &Client, node: u64, size: u64, offset: u64, buffers: &[&[u8]]) -> bool {
        let len: usize = buffers.iter().map(|buffer| buffer.len()).sum();
        let (limit, more) = (limit(), len / BLOCK as usize);
        let windows_limit = windows_limit();
        let places = (node, offset / WINDOW)..(node, (offset + len as u64).div_ceil(WINDOW));
        let is_too_much = |held: &Held| {
            let new = (places.end.1 - places.start.1) as usize - held.dirty.range(places.clone()).count();
            held.dirty_blocks + more > limit || held.dirty.len() + new > windows_limit
        };
        let mut held = self.held.borrow_mut();
        if is_too_much(&held) {
            held.relieve(client);
            if is_too_much(&held) {
                return false;
            }
        }
        let mut source = Source { buffers, at: 0 };
        let (mut at, end) = (offset, offset + len as u64);
        while at < end {
            let start = at - at % WINDOW;
            let place = (node, at / WINDOW);
            if !held.open(place, blocks_of(size, start)) {
                return false;
            }
            let to = end.min(start + WINDOW);
            let sweeps = held.sweeps;
            let Some(window) = held.windows.get_mut(&place) else { return false };
            source.take(window, (at - start) as usize, (to - at) as usize);
            let blocks = bits(((at - start) / BLOCK) as usize, ((to - start) / BLOCK) as usize);
            if window.dirty == 0 {
                window.dirtied_at = sweeps;
            }
            window.used.set(true);
            window.used_at.set(sweeps);
            window.valid |= blocks;
            let new = blocks & !window.dirty;
            window.dirty |= blocks;
            held.dirty_blocks += new.count_ones() as usize;
            held.dirty.insert(place);
            see_to_sweeps();
            at = to;
        }
        true
    }

    /// Whether anything of the node, from the block of `from` to that before `to`, is dirty.
    pub fn has_dirty(&self, node: u64, from: u64, to: u64) -> bool {
        if from >= to {
            return false;
        }
        let held = self.held.borrow();
        let (first, last) = (from / BLOCK, to.div_ceil(BLOCK));
        held.dirty.range((node, from / WINDOW)..=(node, to / WINDOW)).any(|place| {
            let base = place.1 * BLOCKS as u64;
            let (from, to) = (first.max(base) - base, last.clamp(base, base + BLOCKS as u64) - base);
            let dirty = held.windows.get(place).map_or(0, |window| window.dirty);
            from < to && dirty & bits(from as usize, to as usize) != 0
        })
    }

    /// Writes back all that is dirty of the node.
    pub fn write_node(&self, client: &Client, node: u64) -> Result<()> {
        self.held.borrow_mut().write_back(client, all_of(node), |_| true)
    }

    /// Writes back everything.
    pub fn write_all(&self, client: &Client) -> Result<()> {
        self.held.borrow_mut().write_back(client, .., |_| true)
    }

    /// Whether nothing is dirty.
    pub fn is_clean(&self) -> bool {
        self.held.try_borrow().is_ok_and(|held| held.dirty.is_empty())
    }

    /// FSYNC of a node: what is dirty of it is written first, the last of it at the same ring.
    pub fn flush(&self, client: &Client, node: u64, ask: &wire::FSyncIn) -> Result<()> {
        let pending = {
            let mut held = self.held.borrow_mut();
            let mut start = (node, 0);
            loop {
                let mut batch = client.batch();
                let range = (Bound::Included(start), Bound::Included((node, u64::MAX)));
                match held.gather(&mut batch, range, |_| true) {
                    Some(next) => {
                        client.write_batch(&mut batch);
                        held.settle(&batch)?;
                        start = next;
                    }
                    None => {
                        let pending = client.begin_flush(&mut batch, node, ask);
                        held.settle(&batch)?;
                        break pending;
                    }
                }
            }
        };
        client.finish_flush(node, pending)
    }
}
