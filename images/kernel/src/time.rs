//! Clocks: read from the TSC by the parameters the VMM publishes, without leaving the guest.
//!
//! *Guest-monotonic* time stands still while the database sleeps: it is what every timer runs on, so a wake is
//! not followed by a storm of expired timers. Wall-clock time jumps forward over a sleep, as it must.

use crate::arch;
use crate::shared::shared;
use core::sync::atomic::{Ordering, fence};

/// (guest-monotonic, wall) in ns, both from one reading.
pub fn clocks() -> (u64, u64) {
    let page = shared();
    loop {
        let seq = page.time_seq();
        fence(Ordering::Acquire);
        let raw = page.clock();
        fence(Ordering::Acquire);
        if seq & 1 == 0 && seq == page.time_seq() {
            let ticks = arch::rdtsc().saturating_sub(raw.tsc_base);
            let ns = ((ticks as u128 * raw.mult as u128) >> raw.shift) as u64;
            return (raw.mono_ns + ns, raw.wall_ns + ns);
        }
        core::hint::spin_loop();
    }
}

/// Guest-monotonic ns.
pub fn now() -> u64 {
    clocks().0
}

/// ns since 1970.
pub fn wall_ns() -> u64 {
    clocks().1
}
