//! The page cache: what was read from the share, kept in memory that nobody else wants.
//!
//! Postgres' shared buffers are small, so that a sleeping database is; a block that has left them would be an exit away.
//! So reads up to a window's length go through windows of 64 KiB, aligned in the file. The memory is *spare*: no
//! snapshot holds it (`pages::make_spare`), a wake forgets it all, and the page pool takes it back when it runs out.
//! So the cache makes nothing larger that sleeps, and costs no one memory.
//!
//! This guest is the only writer, and every write goes to the host at once; coherence is to bring the written bytes
//! into the windows too, and to drop a file's windows when its length changes in another way than by writing.
//!
//! Half of the pool at most is held; windows leave in the order they came, those used since get a second turn. And a
//! window that nobody read for some seconds leaves by age, so that the host gets back what one large scan took.

use super::fuse::Client;
use super::wire::Opcode;
use crate::errno::Result;
use crate::global::Global;
use crate::pages;
use crate::time;
use alloc::collections::{BTreeMap, VecDeque};
use core::cell::{Cell, RefCell};

/// Bytes fetched at once, their alignment in the file, and the longest read that is served from here.
pub const WINDOW: u64 = 64 << 10;
const PAGE: usize = dormouse_abi::PAGE as usize;

/// How often ages are looked at, ns.
const SWEEP: u64 = 1_000_000_000;
/// Sweeps that a window outlives unread.
const AGE: u64 = 3;

/// When the next sweep is due, guest-monotonic ns: never while nothing is held, so that an idle guest is not woken for it.
static DUE: Global<Cell<u64>> = Global::new(Cell::new(u64::MAX));

/// When [`Cache::sweep`] wants to be called.
pub fn due() -> u64 {
    DUE.get().get()
}

/// A window's place: node, and number of the window in the file.
type Place = (u64, u64);

struct Window {
    /// Valid bytes.
    len: usize,
    data: *mut u8,
    pages: usize,
    used: Cell<bool>,
    /// Sweeps there had been when it was last read.
    read_at: Cell<u64>,
    /// Tells its entry in the order from that of an earlier window of the same place.
    arrival: u64,
}

impl Drop for Window {
    fn drop(&mut self) {
        pages::free(self.data, self.pages);
    }
}

#[derive(Default)]
struct Held {
    windows: BTreeMap<Place, Window>,
    /// Places in order of arrival, with the arrival's number; those of windows that are gone are stepped over.
    order: VecDeque<(Place, u64)>,
    pages: usize,
    arrivals: u64,
    sweeps: u64,
}

#[derive(Default)]
pub struct Cache {
    held: RefCell<Held>,
}

impl Held {
    fn remove(&mut self, place: Place) {
        if let Some(window) = self.windows.remove(&place) {
            self.pages -= window.pages;
        }
    }

    /// Makes room for `pages` more; false when there is nothing left to let go of.
    fn make_room(&mut self, pages: usize, limit: usize) -> bool {
        while self.pages + pages > limit {
            let Some((place, arrival)) = self.order.pop_front() else { return false };
            match self.windows.get(&place).filter(|window| window.arrival == arrival) {
                Some(window) if window.used.replace(false) => self.order.push_back((place, arrival)),
                Some(_) => self.remove(place),
                None => {}
            }
        }
        true
    }

    fn sweep(&mut self) {
        self.sweeps += 1;
        let (now, mut gone) = (self.sweeps, 0);
        self.windows.retain(|_, window| {
            let stays = now - window.read_at.get() <= AGE;
            gone += if stays { 0 } else { window.pages };
            stays
        });
        self.pages -= gone;
        let windows = &self.windows;
        self.order.retain(|(place, arrival)| windows.get(place).is_some_and(|window| window.arrival == *arrival));
    }
}

impl Cache {
    /// Reads at `offset` of node `node`, whose length is `size`, out of a window; fetches it if need be. Never more
    /// than one window's bytes. `None` when there is no memory for a window.
    pub fn read(&self, client: &Client, node: u64, size: u64, offset: u64, buf: &mut [u8]) -> Option<Result<usize>> {
        if offset >= size {
            return Some(Ok(0));
        }
        let place = (node, offset / WINDOW);
        let start = offset - offset % WINDOW;
        let mut held = self.held.borrow_mut();
        if let Some(window) = held.windows.get(&place)
            && start + window.len as u64 > offset
        {
            window.used.set(true);
            window.read_at.set(held.sweeps);
            return Some(Ok(window.copy((offset - start) as usize, buf)));
        }
        held.remove(place);
        let want = (size - start).min(WINDOW) as usize;
        let count = want.div_ceil(PAGE);
        if !held.make_room(count, pages::usage().1 / 2) {
            return None;
        }
        let data = pages::alloc(count)?;
        pages::make_spare(data, count);
        held.arrivals += 1;
        let (used, read_at, arrival) = (Cell::new(false), Cell::new(held.sweeps), held.arrivals);
        let mut window = Window { len: 0, data, pages: count, used, read_at, arrival };
        let mut into = client.segments();
        into.add(data, want);
        match client.read(Opcode::Read, node, start, &into) {
            Ok(len) => window.len = len.min(want),
            Err(error) => return Some(Err(error)),
        }
        let done = window.copy((offset - start) as usize, buf);
        held.pages += count;
        held.windows.insert(place, window);
        held.order.push_back((place, arrival));
        if due() == u64::MAX {
            DUE.get().set(time::now() + SWEEP);
        }
        Some(Ok(done))
    }

    /// Lets windows go that were not read of late.
    pub fn sweep(&self) {
        // Borrowed only while a window is fetched: the next look at the clock comes soon.
        let Ok(mut held) = self.held.try_borrow_mut() else { return };
        held.sweep();
        DUE.get().set(if held.windows.is_empty() { u64::MAX } else { time::now() + SWEEP });
    }

    /// `bytes` were written at `offset`: windows that hold that part hold the new bytes now.
    pub fn wrote(&self, node: u64, offset: u64, bytes: &[u8]) {
        let end = offset + bytes.len() as u64;
        let mut held = self.held.borrow_mut();
        for number in offset / WINDOW..end.div_ceil(WINDOW) {
            let (start, place) = (number * WINDOW, (node, number));
            let Some(window) = held.windows.get(&place) else { continue };
            let (from, to) = (offset.max(start), end.min(start + WINDOW));
            let skip = (from - start) as usize;
            let part = &bytes[(from - offset) as usize..(to - offset) as usize];
            if skip + part.len() <= window.len {
                // SAFETY: within the window's valid bytes, which are the window's alone.
                unsafe { core::ptr::copy_nonoverlapping(part.as_ptr(), window.data.add(skip), part.len()) };
            } else {
                held.remove(place);
            }
        }
    }

    /// Forgets what is known of the node's content.
    pub fn drop_node(&self, node: u64) {
        let mut held = self.held.borrow_mut();
        while let Some((&place, _)) = held.windows.range((node, 0)..=(node, u64::MAX)).next() {
            held.remove(place);
        }
    }

    /// Pages held.
    pub fn pages(&self) -> usize {
        self.held.try_borrow().map_or(0, |held| held.pages)
    }

    /// Forgets everything, and gives the memory back; false when there was nothing, or when the cache itself is what
    /// asks for memory.
    pub fn clear(&self) -> bool {
        match self.held.try_borrow_mut() {
            Ok(mut held) => {
                let held = core::mem::take(&mut *held);
                !held.windows.is_empty()
            }
            Err(_) => false,
        }
    }
}

impl Window {
    fn copy(&self, skip: usize, buf: &mut [u8]) -> usize {
        let len = self.len.saturating_sub(skip).min(buf.len());
        // SAFETY: `skip + len <= self.len <= pages * PAGE`, and the pages are this window's alone.
        unsafe { core::ptr::copy_nonoverlapping(self.data.add(skip.min(self.len)), buf.as_mut_ptr(), len) };
        len
    }
}
