//! Memory given back: what the guest's allocator calls free goes back to the host while the database stays awake.
//!
//! The vCPU thread looks, and only at the doorbell, where the bitmap of unused pages is true; so there is no race, and no
//! balloon. (The one for snapshots also has pages that the guest's cache is reading from.) A page goes when two looks a second apart find it free: what a busy guest frees and takes
//! again stays where it is. One look gives back so much and no more, the next one goes on.
//!
//! Whole large pages go as they are. Of others only long runs go, and only if most of the large page is free, since it
//! is a small-paged one from then on.
//!
//! What a guest finds in a given-back page is zeroes. That is right for both kinds of free pages: those that it never
//! used, which it takes to be zero, and those that it did, which it clears. A mapping of the golden file would show that
//! file's bytes instead; so it is replaced by anonymous memory where all of it is free, and left alone elsewhere.

use std::io;
use std::ops::Range;
use std::time::{Duration, Instant};

use dormouse_abi::{LARGE_PAGE, PAGE};

use crate::machine::Ram;
use crate::shared::SharedPage;
use crate::snapshot::pages::{Free, REGION_PAGES};

/// Time between two looks.
const EVERY: Duration = Duration::from_secs(1);
/// The most large pages that one look gives back: a few ms.
const MOST: usize = 64;
/// The shortest run of pages that goes from a large page with others in use: a window of the guest's page cache.
const SHORTEST: usize = 16;

/// Looks for free memory, and gives it back.
#[derive(Debug)]
pub struct Reclaim {
    next: Instant,
    /// There may be something to find.
    due: bool,
    /// Free pages at the last look, as ranges of page numbers.
    last: Vec<Range<usize>>,
    /// Bytes given back so far.
    pub given: u64,
}

impl Default for Reclaim {
    fn default() -> Self {
        Self { next: Instant::now() + EVERY, due: true, last: Vec::new(), given: 0 }
    }
}

impl Reclaim {
    /// The guest has run: what is free may have changed.
    pub fn ran(&mut self) {
        self.due = true;
    }

    /// Looks if it is time to; returns when it wants to be called again, whatever the guest does.
    ///
    /// # Safety
    /// The vCPU is out of the guest at its HALT doorbell, and no device touches memory that the guest calls free.
    pub unsafe fn look(&mut self, ram: &Ram, shared: &SharedPage) -> Option<Duration> {
        if !self.due {
            return None;
        }
        let now = Instant::now();
        if now < self.next {
            return Some(self.next - now);
        }
        self.next = now + EVERY;
        // SAFETY: the caller's promise.
        let free = unsafe { Free::unused(ram, shared) }.ranges();
        let settled = common(&self.last, &free);
        // Also the second look at what one found to be free.
        self.due = free != self.last;
        self.last = free;
        match give(ram, &settled) {
            Ok((given, more)) => {
                self.due |= more;
                self.given += given;
                if given > 0 {
                    tracing::debug!(bytes = given, "memory given back");
                }
            }
            // It costs memory, and nothing else.
            Err(error) => tracing::warn!(%error, "free memory of the guest cannot be given back"),
        }
        self.due.then_some(EVERY)
    }
}

/// What two ascending lists of ranges have in common.
fn common(one: &[Range<usize>], other: &[Range<usize>]) -> Vec<Range<usize>> {
    let (mut i, mut j, mut both) = (0, 0, Vec::new());
    while let (Some(a), Some(b)) = (one.get(i), other.get(j)) {
        let range = a.start.max(b.start)..a.end.min(b.end);
        if !range.is_empty() {
            both.push(range);
        }
        if a.end < b.end { i += 1 } else { j += 1 }
    }
    both
}

/// Cuts ranges of free pages into what may be given back: runs within one large page each.
fn worthwhile(free: &[Range<usize>]) -> Vec<Range<usize>> {
    let mut pieces: Vec<Range<usize>> = Vec::new();
    for range in free {
        let mut at = range.start;
        while at < range.end {
            let end = range.end.min((at / REGION_PAGES + 1) * REGION_PAGES);
            pieces.push(at..end);
            at = end;
        }
    }
    let mut chosen = Vec::new();
    for region in pieces.chunk_by(|a, b| a.start / REGION_PAGES == b.start / REGION_PAGES) {
        if region.iter().map(Range::len).sum::<usize>() * 2 > REGION_PAGES {
            chosen.extend(region.iter().filter(|run| run.len() >= SHORTEST).cloned());
        }
    }
    chosen
}

/// Gives back what the host holds of these pages; the bytes, and whether there is more.
fn give(ram: &Ram, free: &[Range<usize>]) -> io::Result<(u64, bool)> {
    let (mut given, mut regions) = (0, 0);
    let mut held = vec![0u8; REGION_PAGES];
    for run in worthwhile(free) {
        if regions == MOST {
            return Ok((given, true));
        }
        let region = run.start / REGION_PAGES;
        let (offset, len) = (run.start as u64 * PAGE, run.len() as u64 * PAGE);
        if ram.is_file(region) {
            if run.len() == REGION_PAGES {
                ram.unmap_file(offset, LARGE_PAGE)?;
                given += len;
                regions += 1;
            }
            continue;
        }
        let held = &mut held[..run.len()];
        ram.residency(offset, held)?;
        let pages = held.iter().filter(|page| **page & 1 != 0).count();
        if pages > 0 {
            ram.discard(offset, len)?;
            given += pages as u64 * PAGE;
            regions += 1;
        }
    }
    Ok((given, false))
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init, reason = "lists of ranges, some of one")]
mod tests {
    use super::*;
    use dormouse_abi::{BootInfo, SYSTEM, system};
    use std::mem::offset_of;
    use vm_memory::{Bytes, GuestAddress};

    const POOL: u64 = 8 << 20;
    const BITMAP: u64 = 6 << 20;

    #[test]
    fn only_what_both_looks_found_free_is_free() {
        assert_eq!(common(&[0..10, 20..30], &[5..25]), [5..10, 20..25]);
        assert!(common(&[0..10], &[10..20]).is_empty());
        assert_eq!(common(&[0..4, 6..8], &[0..4, 6..8]), [0..4, 6..8]);
    }

    #[test]
    fn a_large_page_is_split_only_if_most_of_it_is_free_and_only_for_long_runs() {
        assert_eq!(worthwhile(&[0..1536]), [0..512, 512..1024, 1024..1536]);
        assert!(worthwhile(&[0..250]).is_empty(), "less than half");
        assert_eq!(worthwhile(&[0..300, 310..312, 400..450]), [0..300, 400..450]);
        assert_eq!(worthwhile(&[500..1024]), [512..1024], "its neighbour has too little that is free");
    }

    /// A guest's memory whose pool says `free` of itself.
    fn guest(free: Range<usize>) -> (Ram, SharedPage) {
        let ram = Ram::new(32 << 20).unwrap();
        let slots = SYSTEM + system::BOOT_INFO + offset_of!(BootInfo, slots) as u64;
        ram.view().write_obj(POOL, GuestAddress(slots)).unwrap();
        let shared = SYSTEM + system::SHARED;
        ram.view()
            .write_obj(BITMAP, GuestAddress(shared + offset_of!(dormouse_abi::Shared, unused_bitmap) as u64))
            .unwrap();
        let mut bits = vec![0u8; (24 << 20) / PAGE as usize / 8];
        free.for_each(|page| bits[page / 8] |= 1 << (page % 8));
        ram.view()
            .write_obj(bits.len() as u64, GuestAddress(shared + offset_of!(dormouse_abi::Shared, free_bitmap_len) as u64))
            .unwrap();
        ram.view().write_slice(&bits, GuestAddress(BITMAP)).unwrap();
        let page = SharedPage::new(&ram);
        (ram, page)
    }

    fn look(reclaim: &mut Reclaim, ram: &Ram, shared: &SharedPage) -> Option<Duration> {
        reclaim.next = Instant::now();
        // SAFETY: there is no guest and no device.
        unsafe { reclaim.look(ram, shared) }
    }

    #[test]
    fn the_second_look_gives_back_and_what_is_in_use_stays() {
        let (ram, shared) = guest(512..1536);
        let filled = vec![7u8; 12 << 20];
        ram.view().write_slice(&filled, GuestAddress(POOL)).unwrap();
        let byte = |page: u64| ram.view().read_obj::<u8>(GuestAddress(POOL + page * PAGE)).unwrap();
        let mut reclaim = Reclaim::default();
        assert_eq!(look(&mut reclaim, &ram, &shared), Some(EVERY), "found, and looked at again");
        assert_eq!(reclaim.given, 0);
        assert_eq!(look(&mut reclaim, &ram, &shared), None);
        assert_eq!(reclaim.given, 4 << 20);
        assert_eq!([byte(511), byte(512), byte(1535), byte(1536)], [7, 0, 0, 7]);
        // Reading made those two large pages resident again, but not the guest.
        assert_eq!(look(&mut reclaim, &ram, &shared), None, "nothing ran");
    }

    #[test]
    fn a_free_mapping_of_the_golden_file_reads_as_zeroes_and_a_partly_used_one_stays() {
        let (ram, shared) = guest(0..1000);
        let golden = tempfile::tempfile().unwrap();
        golden.set_len(32 << 20).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&golden, &vec![9u8; 4 << 20], POOL).unwrap();
        ram.map_file(&golden, POOL, 4 << 20).unwrap();
        let byte = |page: u64| ram.view().read_obj::<u8>(GuestAddress(POOL + page * PAGE)).unwrap();
        ram.view().write_obj(8u8, GuestAddress(POOL)).unwrap();
        let mut reclaim = Reclaim::default();
        look(&mut reclaim, &ram, &shared);
        look(&mut reclaim, &ram, &shared);
        assert_eq!([byte(0), byte(511), byte(512), byte(1023)], [0, 0, 9, 9]);
        assert!(!ram.is_file((POOL / LARGE_PAGE) as usize), "a snapshot must compare it");
        assert!(ram.is_file((POOL / LARGE_PAGE) as usize + 1));
    }
}
