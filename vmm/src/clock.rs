//! The guest's clock: what the VMM publishes on the shared page, and how it reads the guest's time itself.
//!
//! The guest reads time from its TSC, which is the host's, and the base that stands on the shared page.
//! Guest-monotonic time runs at the TSC's rate while the VM exists and stands still while it sleeps: each
//! publication continues the line of the one before it, so it never steps. Wall-clock time is taken from the
//! host anew each time.

use std::time::Duration;

use crate::shared::SharedPage;

/// How old a publication may get while the guest runs: the host's wall clock is slewed and stepped.
pub const REFRESH: Duration = Duration::from_secs(1);

/// The host's time stamp counter.
pub fn host_tsc() -> u64 {
    // SAFETY: every x86-64 CPU has RDTSC, and Linux lets user code execute it.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Nanoseconds of a host clock.
fn host_ns(clock: libc::clockid_t) -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is what the call fills in.
    unsafe { libc::clock_gettime(clock, &mut now) };
    (now.tv_sec as u64).saturating_mul(1_000_000_000).saturating_add(now.tv_nsec as u64)
}

/// The wall clock, ns since 1970.
pub fn wall_ns() -> u64 {
    host_ns(libc::CLOCK_REALTIME)
}

/// The host's monotonic clock, µs: the line on which the server puts the steps of a wake together.
pub fn monotonic_us() -> u64 {
    host_ns(libc::CLOCK_MONOTONIC) / 1000
}

/// One published line of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clock {
    mult: u64,
    shift: u32,
    tsc_base: u64,
    mono_base: u64,
}

impl Clock {
    /// A clock for a TSC of `tsc_khz` kHz that reads `mono_ns` now.
    pub fn new(tsc_khz: u32, mono_ns: u64) -> Self {
        // 2^32 / khz keeps 32 bits after the point; the product is taken in 128 bits.
        let shift = 32;
        let mult = (1_000_000u128 << shift) / u128::from(tsc_khz.max(1));
        Self { mult: mult as u64, shift, tsc_base: host_tsc(), mono_base: mono_ns }
    }

    /// Guest-monotonic time at a TSC value, ns. A TSC from before the base (another core's, by a hair) reads as
    /// the base.
    pub fn mono_at(&self, tsc: u64) -> u64 {
        let ticks = u128::from(tsc.saturating_sub(self.tsc_base));
        self.mono_base + ((ticks * u128::from(self.mult)) >> self.shift) as u64
    }

    /// Guest-monotonic time now, ns.
    pub fn now(&self) -> u64 {
        self.mono_at(host_tsc())
    }

    /// Age of the publication.
    pub fn age(&self) -> Duration {
        Duration::from_nanos(self.now().saturating_sub(self.mono_base))
    }

    /// Moves the base to now and writes it, with the wall clock, to the shared page.
    pub fn publish(&mut self, shared: &SharedPage) {
        let tsc = host_tsc();
        self.mono_base = self.mono_at(tsc);
        self.tsc_base = tsc;
        shared.publish_time(self.shift, self.mult, tsc, self.mono_base, wall_ns());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_of_ticks_is_a_second() {
        let clock = Clock { tsc_base: 1000, ..Clock::new(2_450_123, 5) };
        let second = clock.mono_at(1000 + 2_450_123_000) - 5;
        assert!((999_999_990..=1_000_000_000).contains(&second), "{second}");
    }

    #[test]
    fn time_before_the_base_does_not_run_backwards() {
        let clock = Clock { tsc_base: 1000, ..Clock::new(1_000_000, 7) };
        assert_eq!(clock.mono_at(10), 7);
        assert_eq!(clock.mono_at(1500), 507);
    }
}
