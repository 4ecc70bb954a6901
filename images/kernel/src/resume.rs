//! What must happen before anything else after a restore: new random numbers, and, in a clone, new ones for every
//! process that had some.

use crate::global::Global;
use crate::klog;
use crate::random;
use crate::shared::shared;
use crate::task;
use core::cell::Cell;

static RESTORES: Global<Cell<u64>> = Global::new(Cell::new(0));
static CLONES: Global<Cell<u64>> = Global::new(Cell::new(0));

/// Looks whether this memory was restored since the last look. The VMM sets the event flag when it was, and a
/// snapshot is only ever taken at the doorbell, so this runs before any task does.
pub fn check() {
    let restores = shared().restore_count();
    if restores == RESTORES.get().replace(restores) {
        return;
    }
    // Spare pages were in no snapshot: what they held is gone.
    crate::fs::resumed();
    random::reseed(&shared().entropy());
    let clones = shared().clone_count();
    if clones != CLONES.get().replace(clones) {
        task::for_each(|task| {
            if let Some(slot) = task.slot.borrow().as_ref() {
                slot.reseed();
            }
        });
        klog!("cloned: random state renewed");
    }
}
