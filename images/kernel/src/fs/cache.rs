//! The page cache: what was read from the share or written to it, kept in memory that nobody else wants.
//!
//! Postgres' shared buffers are small, so that a sleeping database is; a block that has left them would be an exit away.
//! So reads up to a window's length go through windows of 64 KiB, aligned in the file. The memory is *spare*: no
//! snapshot holds it (`pages::alloc_spare`), a wake forgets it all, and the page pool takes it back when it runs out.
//! So the cache makes nothing larger that sleeps, and costs no one memory.
//!
//! A write may stay here as *dirty* blocks (`writeback.rs`); every other goes to the host at once, and coherence is to bring
//! the written bytes into the windows too. This guest is the only writer.
//!
//! Of small files that each new session reads, Postgres says so (`fadvise`): these are *kept*, in memory that sleeps with the guest. A session
//! that begins right after a wake finds them, where each would be an exit. All clones of a guest share those of the golden one.
//!
//! Half of the pool at most is held; windows leave in the order they came, those used since get a second turn. And a
//! window that nobody used for some seconds leaves by age, so that the host gets back what one large scan took. One with
//! dirty blocks stays until they are written.

use super::fuse::Client;
use super::window::{BLOCK, BLOCK_PAGES, BLOCKS, Window, bits};
use super::wire::Opcode;
use crate::errno::Result;
use crate::global::Global;
use crate::pages;
use crate::time;
use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use core::cell::{Cell, RefCell};

pub use super::window::WINDOW;

/// How often ages are looked at, ns.
const SWEEP: u64 = 1_000_000_000;
/// Sweeps that a window outlives unused.
const AGE: u64 = 6;

/// The largest file that is kept, bytes, and the pages of all that are: what it may add to a snapshot.
const KEPT_FILE: u64 = 256 << 10;
const KEPT_PAGES: usize = 256;

/// When the next sweep is due, guest-monotonic ns: never while nothing is held, so that an idle guest is not woken for it.
static DUE: Global<Cell<u64>> = Global::new(Cell::new(u64::MAX));

/// When [`Cache::sweep`] wants to be called.
pub fn due() -> u64 {
    DUE.get().get()
}

/// There is something to be looked at.
pub(super) fn see_to_sweeps() {
    if due() == u64::MAX {
        DUE.get().set(time::now() + SWEEP);
    }
}

/// A window's place: node, and number of the window in the file.
pub(super) type Place = (u64, u64);

#[derive(Default)]
pub(super) struct Held {
    pub windows: BTreeMap<Place, Window>,
    /// Places of those with dirty blocks.
    pub dirty: BTreeSet<Place>,
    pub dirty_blocks: usize,
    /// Where writing back goes on when there is too much.
    pub hand: Place,
    /// Places of those that are kept.
    kept: BTreeSet<Place>,
    /// Places in order of arrival, with the arrival's number; those of windows that are gone are stepped over.
    order: VecDeque<(Place, u64)>,
    pages: usize,
    arrivals: u64,
    pub sweeps: u64,
}

#[derive(Default)]
pub struct Cache {
    pub(super) held: RefCell<Held>,
}

impl Held {
    /// Lets a window go, whatever it holds.
    pub fn remove(&mut self, place: Place) {
        if let Some(window) = self.windows.remove(&place) {
            self.pages -= window.pages();
            self.kept.remove(&place);
            if window.dirty != 0 {
                self.dirty_blocks -= window.dirty.count_ones() as usize;
                self.dirty.remove(&place);
            }
        }
    }

    /// Makes room for `pages` more; false when there is nothing left to let go of.
    fn make_room(&mut self, pages: usize, limit: usize) -> bool {
        // Each may get a second turn, and the dirty stay.
        let mut turns = 2 * self.order.len();
        while self.pages + pages > limit {
            if turns == 0 {
                return false;
            }
            turns -= 1;
            let Some((place, arrival)) = self.order.pop_front() else { return false };
            match self.windows.get(&place).filter(|window| window.arrival == arrival) {
                Some(window) if window.used.replace(false) || window.dirty != 0 || window.is_kept() => self.order.push_back((place, arrival)),
                Some(_) => self.remove(place),
                None => {}
            }
        }
        true
    }

    /// Sees that there is a window with room for `blocks`; false without memory for it.
    pub fn open(&mut self, place: Place, blocks: usize) -> bool {
        self.windows.get(&place).is_some_and(|window| window.blocks() >= blocks) || self.replace(place, blocks, false)
    }

    /// Puts a window with room for `blocks` in the place, which has what was there; false without memory for it.
    fn replace(&mut self, place: Place, blocks: usize, kept: bool) -> bool {
        // Out of the way of making room. A dirty one is counted on.
        let old = self.windows.remove(&place);
        let had = old.as_ref().map_or(0, Window::pages);
        self.arrivals += 1;
        let new = match self.make_room(blocks * BLOCK_PAGES, pages::usage().1 / 2) {
            true => Window::new(blocks, kept, self.sweeps, self.arrivals),
            false => None,
        };
        let Some(mut window) = new else {
            if let Some(old) = old {
                self.windows.insert(place, old);
            }
            return false;
        };
        if let Some(old) = &old {
            window.take_over(old);
        }
        self.pages = self.pages + window.pages() - had;
        self.order.push_back((place, window.arrival));
        self.windows.insert(place, window);
        match kept {
            true => self.kept.insert(place),
            false => self.kept.remove(&place),
        };
        see_to_sweeps();
        true
    }

    /// Keeps what the file has in the window at `start`; false without memory for it, or beyond what is kept of all files.
    fn keep(&mut self, client: &Client, node: u64, size: u64, start: u64) -> Result<bool> {
        let (place, blocks) = ((node, start / WINDOW), blocks_of(size, start));
        let is_kept = self.windows.get(&place).is_some_and(|window| window.is_kept() && window.blocks() >= blocks);
        if !is_kept && !(self.make_room_to_keep(blocks * BLOCK_PAGES) && self.replace(place, blocks, true)) {
            return Ok(false);
        }
        for block in 0..blocks {
            if !self.windows.get(&place).is_some_and(|window| window.has(block)) {
                self.fetch(client, place, size, block)?;
            }
        }
        if let Some(window) = self.windows.get(&place) {
            window.used_at.set(self.sweeps);
        }
        Ok(true)
    }

    /// Lets those go that were not used for longest, until `pages` more can be kept; false if they cannot.
    fn make_room_to_keep(&mut self, pages: usize) -> bool {
        loop {
            let kept = self.kept.iter().filter_map(|place| Some((*place, self.windows.get(place)?)));
            let sum: usize = kept.clone().map(|(_, window)| window.pages()).sum();
            if sum + pages <= KEPT_PAGES {
                return true;
            }
            let clean = kept.filter(|(_, window)| window.dirty == 0);
            let Some((last, _)) = clean.min_by_key(|(_, window)| window.used_at.get()) else { return false };
            self.remove(last);
        }
    }

    /// Reads what is missing around `block` of the window.
    fn fetch(&mut self, client: &Client, place: Place, size: u64, block: usize) -> Result<()> {
        let Some(window) = self.windows.get_mut(&place) else { return Ok(()) };
        let start = place.1 * WINDOW;
        let (from, to) = window.run(block, blocks_of(size, start));
        let at = from as u64 * BLOCK;
        let want = (size - start).min(to as u64 * BLOCK) - at;
        let mut into = client.segments();
        into.add(window.memory(at as usize).0, want as usize);
        let got = (client.read(Opcode::Read, place.0, start + at, &into)? as u64).min(want);
        let whole = if got == want { to } else { from + (got / BLOCK) as usize };
        window.zero((at + got) as usize, to * BLOCK as usize);
        window.valid |= bits(from, whole);
        Ok(())
    }

    /// Lets all windows go that have no dirty blocks and need not stay; false when there was none.
    fn let_go(&mut self, stays: impl Fn(&Window) -> bool) -> bool {
        let mut gone = 0;
        self.windows.retain(|_, window| {
            let stays = window.dirty != 0 || stays(window);
            gone += if stays { 0 } else { window.pages() };
            stays
        });
        self.pages -= gone;
        let windows = &self.windows;
        self.order.retain(|(place, arrival)| windows.get(place).is_some_and(|window| window.arrival == *arrival));
        self.kept.retain(|place| windows.contains_key(place));
        gone > 0
    }

    /// Lets windows go that were not used of late.
    fn age(&mut self) {
        self.sweeps += 1;
        let now = self.sweeps;
        self.let_go(|window| window.is_kept() || now - window.used_at.get() <= AGE);
    }
}

/// Blocks of the window at `start` that a file of `size` bytes has.
pub(super) fn blocks_of(size: u64, start: u64) -> usize {
    size.saturating_sub(start).min(WINDOW).div_ceil(BLOCK) as usize
}

impl Cache {
    /// Reads at `offset` of node `node`, whose length is `size`, out of a window; fetches it if need be. Never more
    /// than one window's bytes. `None` when there is no memory for a window, or the host gave less than there is.
    pub fn read(&self, client: &Client, node: u64, size: u64, offset: u64, buf: &mut [u8]) -> Option<Result<usize>> {
        if offset >= size {
            return Some(Ok(0));
        }
        let place = (node, offset / WINDOW);
        let at = (offset % WINDOW) as usize;
        let block = at / BLOCK as usize;
        let mut held = self.held.borrow_mut();
        if !held.windows.get(&place).is_some_and(|window| window.has(block)) {
            if !held.open(place, blocks_of(size, offset - at as u64)) {
                return None;
            }
            if let Err(error) = held.fetch(client, place, size, block) {
                return Some(Err(error));
            }
        }
        let window = held.windows.get(&place).filter(|window| window.has(block))?;
        window.read.set(true);
        window.used.set(true);
        window.used_at.set(held.sweeps);
        let (_, to) = window.run(block, BLOCKS);
        let len = buf.len().min(to * BLOCK as usize - at).min(usize::try_from(size - offset).unwrap_or(usize::MAX));
        window.copy_out(at, &mut buf[..len]);
        Some(Ok(len))
    }

    /// Looks at ages: writes back what has long been dirty, and lets go of what nobody used.
    pub fn sweep(&self, client: &Client) {
        // Borrowed only while something is under way: the next look at the clock comes soon.
        let Ok(mut held) = self.held.try_borrow_mut() else { return };
        held.age();
        if client.is_free() {
            // An error is met again by who flushes the file.
            let before = held.sweeps;
            let _ = held.write_back(client, .., |window| window.dirtied_at < before - 1);
        }
        // Those that are kept do not age.
        let is_still = held.windows.len() == held.kept.len() && held.dirty.is_empty();
        DUE.get().set(if is_still { u64::MAX } else { time::now() + SWEEP });
    }

    /// The host has taken `bytes` at `offset`: blocks that are here hold the new bytes now.
    pub fn wrote(&self, node: u64, offset: u64, bytes: &[u8]) {
        let end = offset + bytes.len() as u64;
        let mut held = self.held.borrow_mut();
        each_block(offset, end, |place, block, from, to| {
            if let Some(window) = held.windows.get_mut(&place)
                && window.has(block)
            {
                let part = &bytes[(from - offset) as usize..(to - offset) as usize];
                window.copy_in((from % WINDOW) as usize, part);
            }
        }, node);
    }

    /// What the host has in the range is not known: clean blocks there are forgotten. A dirty one will be written over it.
    pub fn mistrust(&self, node: u64, from: u64, to: u64) {
        let mut held = self.held.borrow_mut();
        each_block(from, to, |place, block, _, _| {
            if let Some(window) = held.windows.get_mut(&place) {
                window.valid &= !bits(block, block + 1) | window.dirty;
            }
        }, node);
    }

    /// The file ends at `len` now: forgets what is past it, dirty or not. The block of the end is not dirty, or ends there.
    pub fn cut(&self, node: u64, len: u64) {
        let mut held = self.held.borrow_mut();
        while let Some((&place, _)) = held.windows.range((node, len.div_ceil(WINDOW))..=(node, u64::MAX)).next() {
            held.remove(place);
        }
        let place = (node, len / WINDOW);
        let at = (len % WINDOW) as usize;
        let keep = bits(0, at.div_ceil(BLOCK as usize));
        let Some(window) = held.windows.get_mut(&place) else { return };
        let gone = window.dirty & !keep;
        window.valid &= keep;
        window.dirty &= keep;
        window.zero(at, at.next_multiple_of(BLOCK as usize));
        let clean = window.dirty == 0;
        held.dirty_blocks -= gone.count_ones() as usize;
        if clean {
            held.dirty.remove(&place);
        }
    }

    /// Pages held.
    pub fn pages(&self) -> usize {
        self.held.try_borrow().map_or(0, |held| held.pages)
    }

    /// Gives memory back: of what is clean, or else of what can be written first. False when there was nothing, or when
    /// the cache itself is what asks for memory.
    pub fn clear(&self, client: &Client) -> bool {
        let Ok(mut held) = self.held.try_borrow_mut() else { return false };
        if held.let_go(|_| false) {
            return true;
        }
        if held.dirty.is_empty() || !client.is_free() {
            return false;
        }
        let _ = held.write_back(client, .., |_| true);
        held.let_go(|_| false)
    }

    /// Forgets what does not outlast a sleep, which has been.
    pub fn resumed(&self) {
        self.held.borrow_mut().let_go(Window::is_kept);
    }

    /// Keeps a small file over sleeps, as far as there is room for it: `size` bytes of node `node`.
    pub fn keep(&self, client: &Client, node: u64, size: u64) -> Result<()> {
        if size > KEPT_FILE {
            return Ok(());
        }
        let mut held = self.held.borrow_mut();
        for start in (0..size).step_by(WINDOW as usize) {
            if !held.keep(client, node, size, start)? {
                break;
            }
        }
        Ok(())
    }
}

/// Calls `each(place, block, from, to)` for every block that the range of the file touches, with the part of it.
fn each_block(start: u64, end: u64, mut each: impl FnMut(Place, usize, u64, u64), node: u64) {
    let mut from = start;
    while from < end {
        let to = end.min((from / BLOCK + 1) * BLOCK);
        each((node, from / WINDOW), (from % WINDOW / BLOCK) as usize, from, to);
        from = to;
    }
}
