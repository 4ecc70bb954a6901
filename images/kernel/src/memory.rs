//! A task's own memory: the break, anonymous mappings, shared mappings of files in guest memory.
//!
//! There are no page tables to change: a mapping is a run of pages of the pool, at their direct-mapped address.
//! Addresses are the kernel's to choose, protections are not enforced, and `MAP_FIXED` is refused.

use crate::errno::{Errno, Result};
use crate::file::File;
use crate::pages;
use alloc::collections::BTreeMap;
use alloc::rc::Rc;
use alloc::vec::Vec;

const PAGE: u64 = dormouse_abi::PAGE;

#[derive(Default)]
pub struct Mappings {
    break_start: u64,
    break_end: u64,
    break_limit: u64,
    /// Everything from here to the limit is known to be zero.
    break_clean: u64,
    /// Anonymous runs: start → bytes.
    private: BTreeMap<u64, u64>,
    shared: Vec<SharedMapping>,
}

struct SharedMapping {
    start: u64,
    file: Rc<dyn File>,
}

impl Mappings {
    pub fn new(break_start: u64, break_limit: u64, used_before: bool) -> Self {
        let break_clean = if used_before { break_limit } else { break_start };
        Self { break_start, break_end: break_start, break_limit, break_clean, private: BTreeMap::new(), shared: Vec::new() }
    }

    /// `brk`: the new break, or the old one when it cannot move there.
    pub fn set_break(&mut self, to: u64) -> u64 {
        if to < self.break_start || to > self.break_limit {
            return self.break_end;
        }
        if to > self.break_end {
            let dirty_end = to.min(self.break_clean);
            if dirty_end > self.break_end {
                // SAFETY: between the old and the new break, which is this task's heap in its hot page.
                unsafe { core::ptr::write_bytes(self.break_end as *mut u8, 0, (dirty_end - self.break_end) as usize) };
            }
        }
        self.break_end = to;
        self.break_clean = self.break_clean.max(to);
        to
    }

    pub fn map_private(&mut self, len: u64) -> Result<u64> {
        if len == 0 {
            return Err(Errno::EINVAL);
        }
        let len = len.checked_next_multiple_of(PAGE).ok_or(Errno::ENOMEM)?;
        let start = pages::alloc((len / PAGE) as usize).ok_or(Errno::ENOMEM)? as u64;
        self.private.insert(start, len);
        Ok(start)
    }

    pub fn map_shared(&mut self, file: Rc<dyn File>, offset: u64, len: u64) -> Result<u64> {
        let start = file.map_shared(offset, len)? as u64;
        self.shared.push(SharedMapping { start, file });
        Ok(start)
    }

    pub fn unmap(&mut self, start: u64, len: u64) -> Result<()> {
        if !start.is_multiple_of(PAGE) || len == 0 {
            return Err(Errno::EINVAL);
        }
        let end = start + len.checked_next_multiple_of(PAGE).ok_or(Errno::EINVAL)?;
        if let Some(index) = self.shared.iter().position(|mapping| mapping.start == start) {
            let mapping = self.shared.swap_remove(index);
            mapping.file.unmap_shared();
            return Ok(());
        }
        // Runs that overlap: at most one begins before `start`.
        let first = self.private.range(..=start).next_back().map_or(start, |(&run, _)| run);
        let overlapping: Vec<(u64, u64)> = self
            .private
            .range(first..end)
            .map(|(&run, &len)| (run, len))
            .filter(|&(run, len)| run + len > start)
            .collect();
        for (run, len) in overlapping {
            self.private.remove(&run);
            let (low, high) = (run.max(start), (run + len).min(end));
            if run < low {
                self.private.insert(run, low - run);
            }
            if high < run + len {
                self.private.insert(high, run + len - high);
            }
            pages::free(low as *mut u8, ((high - low) / PAGE) as usize);
        }
        Ok(())
    }

    /// `mremap` with MREMAP_MAYMOVE or without.
    pub fn remap(&mut self, start: u64, old_len: u64, new_len: u64, may_move: bool) -> Result<u64> {
        let old_len = old_len.next_multiple_of(PAGE);
        let new_len = new_len.checked_next_multiple_of(PAGE).ok_or(Errno::ENOMEM)?;
        let Some((&run, &run_len)) = self.private.range(..=start).next_back() else { return Err(Errno::EFAULT) };
        if start + old_len > run + run_len || new_len == 0 {
            return Err(Errno::EFAULT);
        }
        if new_len < old_len {
            self.unmap(start + new_len, old_len - new_len)?;
            return Ok(start);
        }
        let more = new_len - old_len;
        if more == 0 {
            return Ok(start);
        }
        if start + old_len == run + run_len && pages::alloc_at(run + run_len, (more / PAGE) as usize) {
            self.private.insert(run, run_len + more);
            return Ok(start);
        }
        if !may_move {
            return Err(Errno::ENOMEM);
        }
        let to = self.map_private(new_len)?;
        // SAFETY: both runs are this task's, and distinct.
        unsafe { core::ptr::copy_nonoverlapping(start as *const u8, to as *mut u8, old_len as usize) };
        self.unmap(start, old_len)?;
        Ok(to)
    }

    /// `madvise(MADV_DONTNEED)`: the pages read as zero afterwards.
    pub fn discard(&mut self, start: u64, len: u64) -> Result<()> {
        let Some((&run, &run_len)) = self.private.range(..=start).next_back() else { return Ok(()) };
        let end = (start + len).min(run + run_len);
        if start < end {
            // SAFETY: inside one of this task's runs.
            unsafe { core::ptr::write_bytes(start as *mut u8, 0, (end - start) as usize) };
        }
        Ok(())
    }

    /// Gives everything back; the task has ended.
    pub fn release(self) {
        for (start, len) in self.private {
            pages::free(start as *mut u8, (len / PAGE) as usize);
        }
        for mapping in self.shared {
            mapping.file.unmap_shared();
        }
    }
}
