//! The page pool: a first-fit bitmap over all memory that is not laid out at boot, the hot pages of unused process
//! slots included.
//!
//! Ordinary requests are served past the slots first, and from the slots' end of memory only when there is no other
//! room, the higher slots before the lower ones; a slot is free for a process when all of its pages are.
//!
//! One bit a page, set while the page is free. A second bitmap tells which free pages were never used and so are still
//! zero: a large mapping that is never touched then costs no memory. A third has the pages whose content does not matter to
//! a snapshot: the free ones, and *spare* ones, which hold a cache. The VMM reads the first, to give free memory back to the
//! host, and the third.
//!
//! A mapping is one run of pages, since there are no page tables to change. So that long runs stay free, what holds a cache
//! is taken from the end, away from what processes and the kernel keep; and when no run is left, the page cache gives back
//! what it holds, bit by bit, and the request is tried again each time.

use crate::global::Global;
use crate::shared::shared;
use core::cell::{Cell, RefCell};
use dormouse_abi as abi;

struct Pool {
    base: u64,
    count: usize,
    free: &'static mut [u64],
    clean: &'static mut [u64],
    spare: &'static mut [u64],
    /// First page past the slots.
    past_slots: usize,
    /// Word at which the search past the slots starts: everything between is in use.
    hint: usize,
    /// Word at which the search from the end starts: everything after it is in use.
    top: usize,
}

/// Pages that only the kernel's own heap may take, of so many: a process that asks for all memory gets an error, the kernel
/// none.
fn reserve(count: usize) -> usize {
    (count / 64).max(512)
}

static POOL: Global<RefCell<Option<Pool>>> = Global::new(RefCell::new(None));
static USED: Global<Cell<usize>> = Global::new(Cell::new(0));

/// Makes the pool `[slots, end)`; its bitmaps take the first pages past the slots, at `past_slots`.
pub fn init(slots: u64, past_slots: u64, end: u64) {
    let count = ((end - slots) / abi::PAGE) as usize;
    let words = count.div_ceil(64);
    let first = ((past_slots - slots) / abi::PAGE) as usize;
    let own = first..first + (words * 8 * 3).div_ceil(abi::PAGE as usize);
    let [free, clean, spare] = [0, 1, 2].map(|n| {
        // SAFETY: the VMM left this memory for the pool, zeroed, and this is its first use, in three parts.
        unsafe { core::slice::from_raw_parts_mut((past_slots as *mut u64).add(n * words), words) }
    });
    for page in (0..count).filter(|page| !own.contains(page)) {
        for bits in [&mut *free, &mut *clean, &mut *spare] {
            bits[page / 64] |= 1 << (page % 64);
        }
    }
    shared().set_unused_bitmap(free.as_ptr() as u64);
    shared().set_free_bitmap(spare.as_ptr() as u64);
    shared().set_free_bitmap_len((words * 8) as u64);
    USED.get().set(own.len());
    shared().set_pages_used(own.len() as u64);
    *POOL.get().borrow_mut() = Some(Pool { base: slots, count, free, clean, spare, past_slots: first, hint: first / 64, top: words - 1 });
}

impl Pool {
    /// Whether `count` pages more, at least one, leave `leave`.
    fn has_left(&self, count: usize, leave: usize) -> bool {
        count > 0 && count.checked_add(USED.get().get() + leave).is_some_and(|used| used <= self.count)
    }

    fn address(&self, page: usize) -> *mut u8 {
        (self.base + page as u64 * abi::PAGE) as *mut u8
    }

    /// First run of `count` free pages whose first page is a multiple of `align`.
    fn find(&self, count: usize, align: usize) -> Option<usize> {
        let halves = [self.past_slots / 2, 0];
        self.find_from((self.hint * 64).max(self.past_slots), count, align)
            .or_else(|| halves.iter().find_map(|&from| self.find_from(from, count, align)))
    }

    fn find_from(&self, from: usize, count: usize, align: usize) -> Option<usize> {
        let mut page = from;
        while page + count <= self.count {
            if !page.is_multiple_of(align) {
                page = page.next_multiple_of(align);
                continue;
            }
            // Skip to the next free page, a word at a time.
            let word = self.free[page / 64] >> (page % 64);
            if word & 1 == 0 {
                page = if word == 0 { (page / 64 + 1) * 64 } else { page + word.trailing_zeros() as usize };
                continue;
            }
            match self.first_used(page, count) {
                None => return Some(page),
                Some(used) => page = used + 1,
            }
        }
        None
    }

    /// Last run of `count` free pages.
    fn find_last(&self, count: usize) -> Option<usize> {
        let mut end = self.count.min((self.top + 1) * 64);
        while end >= count {
            match self.last_used(end - count, end) {
                None => return Some(end - count),
                Some(used) => end = used,
            }
        }
        None
    }

    /// Last page in use of `[from, end)`, or the first of the run in use that it ends.
    fn last_used(&self, from: usize, end: usize) -> Option<usize> {
        let mut end = end;
        while end > from {
            let (word, bits) = ((end - 1) / 64, (end - 1) % 64 + 1);
            // The pages below `end` of its word are the highest bits here.
            let used = !self.free[word] << (64 - bits);
            if used != 0 {
                let past = end - used.leading_zeros() as usize;
                if past <= from {
                    return None;
                }
                return Some(past - (used << used.leading_zeros()).leading_ones() as usize);
            }
            end = word * 64;
        }
        None
    }

    /// First page in use of `[page, page + count)`.
    fn first_used(&self, page: usize, count: usize) -> Option<usize> {
        let mut at = page;
        while at < page + count {
            let word = !(self.free[at / 64]) >> (at % 64);
            if word != 0 {
                let used = at + word.trailing_zeros() as usize;
                return (used < page + count).then_some(used);
            }
            at = (at / 64 + 1) * 64;
        }
        None
    }

    /// Takes free pages; those that were used before are cleared if `zero`. Returns whether any was.
    fn take(&mut self, page: usize, count: usize, zero: bool) -> bool {
        let mut dirty = false;
        for at in page..page + count {
            let bit = 1u64 << (at % 64);
            self.free[at / 64] &= !bit;
            self.spare[at / 64] &= !bit;
            let address = self.address(at);
            if self.clean[at / 64] & bit != 0 {
                self.clean[at / 64] &= !bit;
                continue;
            }
            dirty = true;
            if zero {
                // SAFETY: the page was free, so nobody else has it.
                unsafe { core::ptr::write_bytes(address, 0, abi::PAGE as usize) };
            }
        }
        while self.hint < self.free.len() && self.free[self.hint] == 0 {
            self.hint += 1;
        }
        while self.top > 0 && self.free[self.top] == 0 {
            self.top -= 1;
        }
        USED.get().set(USED.get().get() + count);
        shared().set_pages_used(USED.get().get() as u64);
        dirty
    }
}

/// `count` contiguous zeroed pages, or nothing when the pool has no such run.
pub fn alloc(count: usize) -> Option<*mut u8> {
    alloc_aligned(count, 1)
}

/// The same, the first page's number in the pool being a multiple of `align` pages.
pub fn alloc_aligned(count: usize, align: usize) -> Option<*mut u8> {
    crate::fs::or_reclaim(|| try_alloc(count, align))
}

/// For the kernel's own heap, which cannot do without: may use the reserve, and never asks the cache, whose own memory
/// is on that heap.
pub fn alloc_for_kernel(count: usize) -> Option<*mut u8> {
    take_run(count, 1, |_| 0)
}

fn try_alloc(count: usize, align: usize) -> Option<*mut u8> {
    take_run(count, align, reserve)
}

fn take_run(count: usize, align: usize, leave: fn(usize) -> usize) -> Option<*mut u8> {
    let mut pool = POOL.get().borrow_mut();
    let pool = pool.as_mut().filter(|pool| pool.has_left(count, leave(pool.count)))?;
    let page = pool.find(count, align)?;
    pool.take(page, count, true);
    Some(pool.address(page))
}

/// Takes the lowest free hot page of a slot, of `slots` slots: its index, and whether it was used before. It is not
/// cleared.
pub fn take_slot(slots: usize) -> Option<(usize, bool)> {
    crate::fs::or_reclaim(|| try_take_slot(slots))
}

fn try_take_slot(slots: usize) -> Option<(usize, bool)> {
    const PAGES: usize = (abi::LARGE_PAGE / abi::PAGE) as usize;
    let mut pool = POOL.get().borrow_mut();
    let pool = pool.as_mut().filter(|pool| pool.has_left(PAGES, reserve(pool.count)))?;
    let index = (0..slots).find(|&slot| pool.first_used(slot * PAGES, PAGES).is_none())?;
    Some((index, pool.take(index * PAGES, PAGES, false)))
}

/// Takes exactly the pages at `start` if all are free: how a mapping grows in place.
pub fn alloc_at(start: u64, count: usize) -> bool {
    let mut pool = POOL.get().borrow_mut();
    let Some(pool) = pool.as_mut() else { return false };
    let page = ((start - pool.base) / abi::PAGE) as usize;
    if !pool.has_left(count, reserve(pool.count)) || page + count > pool.count || pool.first_used(page, count).is_some() {
        return false;
    }
    pool.take(page, count, true);
    true
}

/// `count` contiguous pages for what need not outlast a sleep, not cleared. Whoever has them forgets them after a restore.
pub fn alloc_spare(count: usize) -> Option<*mut u8> {
    crate::fs::or_reclaim(|| {
        let mut pool = POOL.get().borrow_mut();
        let pool = pool.as_mut().filter(|pool| pool.has_left(count, reserve(pool.count)))?;
        let page = pool.find_last(count)?;
        pool.take(page, count, false);
        for at in page..page + count {
            pool.spare[at / 64] |= 1 << (at % 64);
        }
        Some(pool.address(page))
    })
}

/// Gives pages back. They need not be the whole of what one `alloc` gave.
pub fn free(start: *mut u8, count: usize) {
    let mut pool = POOL.get().borrow_mut();
    let Some(pool) = pool.as_mut() else { return };
    let page = ((start as u64 - pool.base) / abi::PAGE) as usize;
    assert!(page + count <= pool.count, "pages outside the pool were freed");
    for at in page..page + count {
        let bit = 1u64 << (at % 64);
        assert!(pool.free[at / 64] & bit == 0, "a page was freed twice");
        pool.free[at / 64] |= bit;
        pool.spare[at / 64] |= bit;
    }
    if page >= pool.past_slots {
        pool.hint = pool.hint.min(page / 64);
    }
    pool.top = pool.top.max((page + count - 1) / 64);
    USED.get().set(USED.get().get() - count);
    shared().set_pages_used(USED.get().get() as u64);
}

/// (pages in use, pages in all).
pub fn usage() -> (usize, usize) {
    (USED.get().get(), POOL.get().borrow().as_ref().map_or(0, |pool| pool.count))
}

/// (pages that are left, pages of which only the kernel's heap may have the last).
pub fn headroom() -> (usize, usize) {
    let (used, count) = usage();
    (count - used, reserve(count))
}

/// Whether an address lies in memory that the direct map covers.
pub fn in_ram(address: u64) -> bool {
    POOL.get()
        .try_borrow()
        .ok()
        .and_then(|pool| pool.as_ref().map(|pool| address < pool.base + pool.count as u64 * abi::PAGE))
        .unwrap_or(false)
}
