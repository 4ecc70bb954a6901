//! Windows of file content for small sequential reads.
//!
//! Files are not cached: relation blocks are in shared buffers already. But the C library reads text files and the
//! relation cache's start-up file a kilobyte at a time, and every new backend reads them again; each read would be
//! an exit. So a read shorter than a block fetches the aligned 64 KiB around it, and what was fetched is kept while
//! nobody changes the file. Since this guest is the only writer, that is all there is to coherence: every change of
//! an inode's content drops its windows.
//!
//! At most [`PAGES_MAX`] pages are held, least recently used first out. Pages come from the page pool and go back
//! whole.

use super::fuse::Client;
use super::wire::Opcode;
use crate::errno::Result;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};

/// Reads from this length on go straight to the host: Postgres' block size.
pub const SMALL: usize = 8192;
/// Bytes fetched at once, and their alignment in the file.
const WINDOW: u64 = 64 << 10;
const PAGE: usize = dormouse_abi::PAGE as usize;
/// 1 MiB in all.
const PAGES_MAX: usize = 256;

struct Window {
    node: u64,
    /// First byte, in the file.
    start: u64,
    /// Valid bytes.
    len: usize,
    data: *mut u8,
    pages: usize,
    used: u64,
}

impl Drop for Window {
    fn drop(&mut self) {
        crate::pages::free(self.data, self.pages);
    }
}

#[derive(Default)]
pub struct Windows {
    held: RefCell<Vec<Window>>,
    clock: Cell<u64>,
}

impl Windows {
    /// Reads at `offset` of node `node`, whose length is `size`, out of a window; fetches it if need be. Never more
    /// than one window's bytes. `None` when there is no memory for a window.
    pub fn read(&self, client: &Client, node: u64, size: u64, offset: u64, buf: &mut [u8]) -> Option<Result<usize>> {
        if offset >= size {
            return Some(Ok(0));
        }
        let start = offset - offset % WINDOW;
        let clock = self.clock.get() + 1;
        self.clock.set(clock);
        let mut held = self.held.borrow_mut();
        if let Some(window) = held.iter_mut().find(|w| w.node == node && w.start == start) {
            window.used = clock;
            return Some(Ok(window.copy(offset, buf)));
        }
        let want = (size - start).min(WINDOW) as usize;
        let pages = want.div_ceil(PAGE);
        while held.iter().map(|w| w.pages).sum::<usize>() + pages > PAGES_MAX {
            let oldest = held.iter().enumerate().min_by_key(|(_, w)| w.used).map(|(i, _)| i)?;
            held.swap_remove(oldest);
        }
        let data = crate::pages::alloc(pages)?;
        let mut window = Window { node, start, len: 0, data, pages, used: clock };
        let mut into = client.segments();
        into.add(data, want);
        match client.read(Opcode::Read, node, start, &into) {
            Ok(len) => window.len = len.min(want),
            Err(error) => return Some(Err(error)),
        }
        let done = window.copy(offset, buf);
        held.push(window);
        Some(Ok(done))
    }

    /// Forgets what is known of the node's content; true if something was.
    pub fn drop_node(&self, node: u64) {
        self.held.borrow_mut().retain(|window| window.node != node);
    }
}

impl Window {
    fn copy(&self, offset: u64, buf: &mut [u8]) -> usize {
        let skip = (offset - self.start) as usize;
        let len = self.len.saturating_sub(skip).min(buf.len());
        // SAFETY: `skip + len <= self.len <= pages * PAGE`, and the pages are this window's alone.
        unsafe { core::ptr::copy_nonoverlapping(self.data.add(skip.min(self.len)), buf.as_mut_ptr(), len) };
        len
    }
}
