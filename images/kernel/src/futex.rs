//! Futexes: what musl's semaphores and locks sleep on. Keyed by address, since every task sees shared memory at
//! the same one.

use crate::errno::{Errno, Result};
use crate::global::Global;
use crate::sched;
use crate::task::Task;
use crate::time;
use crate::wait::Outcome;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::RefCell;

struct Waiter {
    address: u64,
    task: Rc<Task>,
}

static WAITERS: Global<RefCell<Vec<Waiter>>> = Global::new(RefCell::new(Vec::new()));

/// Sleeps while `*address == expected`. `timeout` is in ns: relative, or an absolute time of the given clock.
pub fn wait(address: u64, expected: u32, timeout: Option<Timeout>) -> Result<()> {
    // SAFETY: an aligned word of the program's; the ABI's word.
    if unsafe { core::ptr::read_volatile(address as *const u32) } != expected {
        return Err(Errno::EAGAIN);
    }
    let deadline = timeout.map(Timeout::deadline);
    let me = sched::current();
    WAITERS.get().borrow_mut().push(Waiter { address, task: me.clone() });
    let outcome = sched::block(deadline);
    // Whoever woke us has taken us off the list.
    let mut waiters = WAITERS.get().borrow_mut();
    let before = waiters.len();
    waiters.retain(|waiter| !Rc::ptr_eq(&waiter.task, &me));
    if waiters.len() < before {
        return match outcome {
            Outcome::TimedOut => Err(Errno::ETIMEDOUT),
            Outcome::Interrupted => Err(Errno::ERESTART),
            Outcome::Woken => Ok(()),
        };
    }
    Ok(())
}

/// Wakes at most `count` waiters, first come first served; how many it woke.
pub fn wake(address: u64, count: usize) -> usize {
    let mut woken = Vec::new();
    WAITERS.get().borrow_mut().retain(|waiter| {
        let hit = waiter.address == address && woken.len() < count;
        if hit {
            woken.push(waiter.task.clone());
        }
        !hit
    });
    for task in &woken {
        sched::wake(task);
    }
    woken.len()
}

#[derive(Clone, Copy)]
pub enum Timeout {
    Relative(u64),
    Monotonic(u64),
    Wall(u64),
}

impl Timeout {
    /// As a guest-monotonic time.
    fn deadline(self) -> u64 {
        let (now, wall) = time::clocks();
        match self {
            Timeout::Relative(ns) => now.saturating_add(ns),
            Timeout::Monotonic(at) => at,
            Timeout::Wall(at) => now.saturating_add(at.saturating_sub(wall)),
        }
    }
}
