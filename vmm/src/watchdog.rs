//! Finds a guest that makes no progress.
//!
//! *Progress* is that the kernel looks up when it is asked to: it counts that in `Shared.attended`. A query that computes
//! for hours is interrupted at every tick and the kernel looks up, so it is progress; a kernel that loops, or has
//! forgotten that it may be interrupted, is none. A guest that halts is asked by being entered again.
//!
//! What counts is the vCPU thread's own time, not the clock on the wall: a host that slept, a VMM that was stopped and a
//! slow disk take none of it.

use std::time::Duration;

/// What a look finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    Fine,
    /// It should be asked to look up.
    Ask,
    /// It was asked, and has run for the limit since.
    Hung,
}

/// What is known of a guest's progress.
#[derive(Clone, Copy, Debug)]
pub struct Watchdog {
    limit: Duration,
    attended: u32,
    /// The vCPU's time when the count was last seen to change.
    since: Duration,
    /// The vCPU's time when it was asked.
    asked: Option<Duration>,
}

impl Watchdog {
    pub fn new(limit: Duration) -> Self {
        Self { limit, attended: 0, since: Duration::ZERO, asked: None }
    }

    /// Looks at the kernel's count, `used` being the time that the vCPU has run so far.
    pub fn look(&mut self, attended: u32, used: Duration) -> Look {
        if attended != self.attended {
            *self = Self { attended, since: used, asked: None, ..*self };
            return Look::Fine;
        }
        match self.asked {
            None if used.saturating_sub(self.since) >= self.limit / 4 => {
                self.asked = Some(used);
                Look::Ask
            }
            Some(asked) if used.saturating_sub(asked) >= self.limit => Look::Hung,
            _ => Look::Fine,
        }
    }
}

/// The processor time of one thread.
#[derive(Clone, Copy, Debug)]
pub struct ThreadClock(libc::clockid_t);

impl ThreadClock {
    /// The clock of a thread that outlives its use; `None` where the host has no such clocks.
    pub fn of(thread: libc::pthread_t) -> Option<Self> {
        let mut clock = 0;
        // SAFETY: writes one number; the thread lives, as the caller says.
        (unsafe { libc::pthread_getcpuclockid(thread, &mut clock) } == 0).then_some(Self(clock))
    }

    pub fn now(self) -> Duration {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: writes one timespec. A clock that can't be read stands still, and then nothing is ever found to hang.
        unsafe { libc::clock_gettime(self.0, &mut time) };
        Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn one_that_is_asked_and_runs_on_without_looking_up_hangs_and_no_other_does() {
        let mut dog = Watchdog::new(s(8));
        // Computing, and looking up when asked.
        assert_eq!(dog.look(1, s(1)), Look::Fine);
        assert_eq!(dog.look(1, s(2)), Look::Fine);
        assert_eq!(dog.look(1, s(3)), Look::Ask);
        assert_eq!(dog.look(1, s(4)), Look::Fine);
        assert_eq!(dog.look(2, s(5)), Look::Fine);
        // Stopped, or waiting for a disk: the wall's hours are none of the vCPU's.
        for _ in 0..1000 {
            assert_eq!(dog.look(2, s(5)), Look::Fine);
        }
        // Hangs.
        assert_eq!(dog.look(2, s(7)), Look::Ask);
        assert_eq!(dog.look(2, s(14)), Look::Fine);
        assert_eq!(dog.look(2, s(15)), Look::Hung);
    }

    #[test]
    fn one_that_nobody_looked_at_for_long_is_asked_first() {
        let mut dog = Watchdog::new(s(8));
        assert_eq!(dog.look(7, s(1)), Look::Fine);
        assert_eq!(dog.look(7, s(1000)), Look::Ask);
        assert_eq!(dog.look(7, s(1001)), Look::Fine);
        assert_eq!(dog.look(8, s(1007)), Look::Fine);
    }

    #[test]
    fn a_threads_clock_counts_its_work_and_not_its_sleep() {
        // SAFETY: always sound.
        let clock = ThreadClock::of(unsafe { libc::pthread_self() }).unwrap();
        let before = clock.now();
        while clock.now() < before + Duration::from_millis(5) {
            std::hint::spin_loop();
        }
        let worked = clock.now();
        std::thread::sleep(Duration::from_millis(50));
        assert!(clock.now() - worked < Duration::from_millis(40));
    }
}
