//! Wait queues: where a task stands until something may have changed.
//!
//! Waking is a hint, never a promise: the woken task looks again. So a queue can be woken too often, and a task
//! may stand in several at once (`epoll`).

use crate::sched;
use crate::task::Task;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::RefCell;

/// How a wait ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    Woken,
    TimedOut,
    /// A signal that the task does not block is pending.
    Interrupted,
}

#[derive(Default)]
pub struct WaitQueue {
    waiters: RefCell<Vec<Rc<Task>>>,
}

impl WaitQueue {
    pub const fn new() -> Self {
        Self { waiters: RefCell::new(Vec::new()) }
    }

    /// Blocks the current task until the queue is woken, `deadline` (guest-monotonic ns) passes, or a signal
    /// arrives.
    pub fn wait(&self, deadline: Option<u64>) -> Outcome {
        self.join();
        let outcome = sched::block(deadline);
        self.leave();
        outcome
    }

    /// Blocks the current task until `done`, whatever signals come: for what a device will answer for certain.
    pub fn outlast(&self, done: impl Fn() -> bool) {
        self.join();
        while !done() {
            sched::block_uninterrupted();
        }
        self.leave();
    }

    /// Puts the current task in the queue without blocking; `leave` must follow.
    pub fn join(&self) {
        self.waiters.borrow_mut().push(sched::current());
    }

    pub fn leave(&self) {
        let me = sched::current();
        self.waiters.borrow_mut().retain(|task| !Rc::ptr_eq(task, &me));
    }

    /// Makes every waiter runnable. They leave the queue by themselves.
    pub fn wake(&self) {
        for task in self.waiters.borrow().iter() {
            sched::wake(task);
        }
    }
}
