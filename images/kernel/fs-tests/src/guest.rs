//! Stand-ins for the parts of the kernel that the file systems call.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

pub mod wait {
    pub struct WaitQueue;

    impl WaitQueue {
        pub const fn new() -> Self {
            Self
        }
        pub fn wake(&self) {}
        /// Nothing else runs here, so what is not done already never will be.
        pub fn outlast(&self, done: impl Fn() -> bool) {
            assert!(done(), "the device behind these tests answers at once");
        }
    }
}

pub mod idle {
    pub fn timed(exit: impl FnOnce()) {
        exit();
    }
}

pub mod time {
    use super::*;
    thread_local!(static NOW: Cell<u64> = const { Cell::new(1_700_000_000_000_000_000) });

    /// Never the same twice.
    pub fn wall_ns() -> u64 {
        NOW.with(|now| {
            now.set(now.get() + 1);
            now.get()
        })
    }

    pub fn now() -> u64 {
        wall_ns()
    }
}

pub mod random {
    pub fn fill(out: &mut [u8]) {
        for (i, byte) in out.iter_mut().enumerate() {
            *byte = (i as u8).wrapping_mul(37) | 1;
        }
    }
}

/// Process slots: "virtual" large page `n` of slot memory is "physical" page `MAP[n]` of a buffer, so that code which
/// forgets to translate, or goes over a page's end, reads the wrong bytes or none.
pub mod slots {
    use dormouse_abi::{LARGE_PAGE, SLOT_BASE};
    use std::cell::RefCell;

    thread_local!(static MAP: RefCell<Vec<u64>> = const { RefCell::new(Vec::new()) });

    pub fn map(pages: Vec<u64>) {
        MAP.with(|map| *map.borrow_mut() = pages);
    }

    pub fn physical(addr: u64) -> u64 {
        let page = ((addr - SLOT_BASE) / LARGE_PAGE) as usize;
        // The test's own memory is above the slots too: it stands for what is mapped directly.
        MAP.with(|map| map.borrow().get(page).map_or(addr, |start| start + addr % LARGE_PAGE))
    }
}

pub mod pages {
    use super::*;

    /// What `alloc_spare` gave: where, and how many pages.
    static SPARE: Mutex<BTreeMap<usize, usize>> = Mutex::new(BTreeMap::new());

    /// Calls of `alloc` that succeed; all, at the largest number.
    pub static LEFT: AtomicUsize = AtomicUsize::new(usize::MAX);
    pub static IN_USE: AtomicUsize = AtomicUsize::new(0);
    const PAGE: usize = dormouse_abi::PAGE as usize;

    /// `mmap`, because parts of what it gives can be given back, as from the kernel's pool.
    pub fn alloc(count: usize) -> Option<*mut u8> {
        let left = LEFT.load(Ordering::Relaxed).checked_sub(1)?;
        if left < usize::MAX - 1 {
            LEFT.store(left, Ordering::Relaxed);
        }
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a fresh anonymous mapping.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), count * PAGE, protection, flags, -1, 0) };
        IN_USE.fetch_add(count, Ordering::Relaxed);
        (start != libc::MAP_FAILED).then_some(start.cast())
    }

    /// As a sleep does to spare memory: whatever was there is gone.
    pub fn forget_spare() {
        for (start, count) in SPARE.lock().unwrap().iter() {
            // SAFETY: `alloc_spare` gave it, and it was not freed since.
            unsafe { (*start as *mut u8).write_bytes(0x5a, count * PAGE) };
        }
    }

    pub fn free(start: *mut u8, count: usize) {
        SPARE.lock().unwrap().remove(&(start as usize));
        IN_USE.fetch_sub(count, Ordering::Relaxed);
        // SAFETY: whole pages that `alloc` gave.
        assert_eq!(unsafe { libc::munmap(start.cast(), count * PAGE) }, 0);
    }

    /// The pool's pages: the cache may hold half of them, here 1 MiB, and a sixteenth may be dirty.
    pub static COUNT: AtomicUsize = AtomicUsize::new(SMALL);
    pub const SMALL: usize = 512;

    pub fn usage() -> (usize, usize) {
        (IN_USE.load(Ordering::Relaxed), COUNT.load(Ordering::Relaxed))
    }

    /// Not cleared.
    pub fn alloc_spare(count: usize) -> Option<*mut u8> {
        let start = alloc(count)?;
        // SAFETY: just given.
        unsafe { start.write_bytes(0xa5, count * PAGE) };
        SPARE.lock().unwrap().insert(start as usize, count);
        Some(start)
    }
}
