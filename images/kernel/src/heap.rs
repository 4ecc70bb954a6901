//! The kernel's own heap: talc, first in the kernel's reserve, so that it stays in the large pages the kernel
//! uses anyway, then grown from the page pool.

use crate::pages;
use talc::{OomHandler, Span, Talc, Talck};

/// Pages claimed from the pool each time the heap runs out.
const GROW_PAGES: usize = 64;

pub struct GrowFromPool;

impl OomHandler for GrowFromPool {
    fn handle_oom(talc: &mut Talc<Self>, layout: core::alloc::Layout) -> Result<(), ()> {
        let least = layout.size().div_ceil(4096) + 2;
        // Where memory has run out, the pool's reserve may be in small pieces.
        let (count, start) = [GROW_PAGES.max(least), least]
            .into_iter()
            .find_map(|count| pages::alloc_for_kernel(count).map(|start| (count, start)))
            .ok_or(())?;
        // SAFETY: the pages are ours from now on, and nothing else uses them.
        unsafe { talc.claim(Span::from_base_size(start, count * 4096)).map(|_| ()) }
    }
}

#[global_allocator]
// One vCPU, no preemption inside the kernel: the lock is never contended.
static HEAP: Talck<talc::locking::AssumeUnlockable, GrowFromPool> = Talc::new(GrowFromPool).lock();

/// Whether less than half of the reserve is left: nothing new should be begun then, since what is under way may need the
/// rest, and a kernel without memory ends its machine.
pub fn scarce() -> bool {
    let short = || {
        let (left, reserve) = pages::headroom();
        HEAP.lock().get_counters().available_bytes / 4096 + left < reserve / 2
    };
    crate::fs::or_reclaim(|| (!short()).then_some(())).is_none()
}

/// Bytes in use.
pub fn used() -> u64 {
    HEAP.lock().get_counters().allocated_bytes as u64
}

/// Gives the heap its first memory.
///
/// # Safety
/// `[start, end)` is unused memory.
pub unsafe fn init(start: u64, end: u64) {
    // SAFETY: by the caller.
    let claimed = unsafe { HEAP.lock().claim(Span::new(start as *mut u8, end as *mut u8)) };
    if claimed.is_err() {
        panic!("the kernel's reserve is too small for a heap");
    }
}
