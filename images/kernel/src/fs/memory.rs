//! A file's content in guest memory: one contiguous run of pages from the pool, so that a mapping of it has one
//! address, the same in every process.
//!
//! The run grows by moving, hence only while nobody maps it: Postgres sizes a segment before it maps it. Bytes of the
//! run past the file's length are always zero.

use crate::errno::{Errno, Result};
use core::cell::Cell;

const PAGE: usize = dormouse_abi::PAGE as usize;

pub struct Memory {
    start: Cell<*mut u8>,
    /// Pages of the run.
    pages: Cell<usize>,
    /// Bytes of the file; at most the run's.
    len: Cell<usize>,
    /// Mappings, over all processes.
    maps: Cell<usize>,
}

impl Default for Memory {
    fn default() -> Self {
        Self {
            start: Cell::new(core::ptr::null_mut()),
            pages: Cell::new(0),
            len: Cell::new(0),
            maps: Cell::new(0),
        }
    }
}

impl Memory {
    pub fn len(&self) -> u64 {
        self.len.get() as u64
    }

    pub fn pages(&self) -> usize {
        self.pages.get()
    }

    pub fn read(&self, buf: &mut [u8], offset: u64) -> usize {
        let offset = usize::try_from(offset).unwrap_or(usize::MAX).min(self.len.get());
        let len = buf.len().min(self.len.get() - offset);
        if len > 0 {
            // SAFETY: `offset + len` is within the run. A process may map it and write meanwhile only when it
            // runs, and it does not while the kernel does. `copy`, since `buf` may be that very mapping.
            unsafe { core::ptr::copy(self.start.get().add(offset), buf.as_mut_ptr(), len) };
        }
        len
    }

    pub fn write(&self, buf: &[u8], offset: u64) -> Result<usize> {
        let offset = usize::try_from(offset).map_err(|_| Errno::EFBIG)?;
        let end = offset.checked_add(buf.len()).ok_or(Errno::EFBIG)?;
        if buf.is_empty() {
            return Ok(0);
        }
        if end > self.pages.get() * PAGE {
            // Files written in many small pieces do not move for each of them.
            let pages = end.div_ceil(PAGE);
            self.grow(pages.max(self.pages.get() * 2)).or_else(|_| self.grow(pages))?;
        }
        // SAFETY: the run holds `end` bytes; see `read` for the rest.
        unsafe { core::ptr::copy(buf.as_ptr(), self.start.get().add(offset), buf.len()) };
        self.len.set(self.len.get().max(end));
        Ok(buf.len())
    }

    pub fn truncate(&self, len: u64) -> Result<()> {
        let len = usize::try_from(len).map_err(|_| Errno::EFBIG)?;
        let old = self.len.get();
        if len > self.pages.get() * PAGE {
            self.grow(len.div_ceil(PAGE))?;
        }
        if len < old {
            // SAFETY: both lengths are within the run.
            unsafe { core::ptr::write_bytes(self.start.get().add(len), 0, old - len) };
        }
        self.len.set(len);
        if self.maps.get() == 0 {
            self.shrink(len.div_ceil(PAGE));
        }
        Ok(())
    }

    /// The address of `offset`, for a mapping of `len` bytes, which may reach past the end of the file.
    pub fn map(&self, offset: u64, len: u64) -> Result<*mut u8> {
        let end = offset.checked_add(len).and_then(|end| usize::try_from(end).ok()).ok_or(Errno::EINVAL)?;
        if len == 0 || !offset.is_multiple_of(dormouse_abi::PAGE) {
            return Err(Errno::EINVAL);
        }
        if end > self.pages.get() * PAGE {
            self.grow(end.div_ceil(PAGE)).map_err(|_| Errno::ENOMEM)?;
        }
        self.maps.set(self.maps.get() + 1);
        // SAFETY: `offset < end`, which is within the run.
        Ok(unsafe { self.start.get().add(offset as usize) })
    }

    /// True when this was the last mapping.
    pub fn unmap(&self) -> bool {
        assert!(self.maps.get() > 0, "a memory file was unmapped more often than mapped");
        self.maps.set(self.maps.get() - 1);
        self.maps.get() == 0
    }

    /// Moves to a longer run; ENOSPC if there is none, or if a mapping holds the present one.
    fn grow(&self, pages: usize) -> Result<()> {
        if self.maps.get() > 0 {
            return Err(Errno::ENOSPC);
        }
        let start = crate::pages::alloc(pages).ok_or(Errno::ENOSPC)?;
        if self.len.get() > 0 {
            // SAFETY: both runs hold `len` bytes, and they are distinct.
            unsafe { core::ptr::copy_nonoverlapping(self.start.get(), start, self.len.get()) };
        }
        self.release();
        self.start.set(start);
        self.pages.set(pages);
        Ok(())
    }

    /// Gives back the pages after the first `pages`.
    fn shrink(&self, pages: usize) {
        let surplus = self.pages.get().saturating_sub(pages);
        if surplus > 0 {
            // SAFETY: `pages` is within the run.
            let tail = unsafe { self.start.get().add(pages * PAGE) };
            crate::pages::free(tail, surplus);
            self.pages.set(pages);
        }
    }

    fn release(&self) {
        if self.pages.get() > 0 {
            crate::pages::free(self.start.get(), self.pages.get());
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.release();
    }
}
