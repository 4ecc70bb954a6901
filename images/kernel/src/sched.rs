//! The scheduler: one run queue, first come first served.
//!
//! A task runs until it blocks, ends, or is preempted by an event while others could run. There is no idle task:
//! the task that blocks last waits for the doorbell in its own context, so that when it is also the next one to
//! run, no switch takes place.

use crate::arch;
use crate::global::Global;
use crate::shared::shared;
use crate::signal;
use crate::slots::Slot;
use crate::task::{self, Kind, State, Task, Timer};
use crate::time;
use crate::wait::Outcome;
use crate::{console, fs, heap, idle, resume, vsock};
use alloc::collections::VecDeque;
use alloc::rc::Rc;
use core::cell::{Cell, RefCell};
use dormouse_abi as abi;

/// How long a task runs on while others wait, ns: then its next system call gives them their turn. One that makes none
/// runs until the VMM's tick.
const SLICE: u64 = 1_000_000;

static CURRENT: Global<RefCell<Option<Rc<Task>>>> = Global::new(RefCell::new(None));
static QUEUE: Global<RefCell<VecDeque<Rc<Task>>>> = Global::new(RefCell::new(VecDeque::new()));
/// When the running task was switched in.
static SINCE: Global<Cell<u64>> = Global::new(Cell::new(0));
static LAST_ACTIVE: Global<Cell<u64>> = Global::new(Cell::new(0));
static SHUTDOWN_SENT: Global<Cell<bool>> = Global::new(Cell::new(false));

/// The running task.
pub fn current() -> Rc<Task> {
    match CURRENT.get().borrow().as_ref() {
        Some(task) => task.clone(),
        None => panic!("kernel code that needs a task ran without one"),
    }
}

/// The running task, if there is one already.
pub fn try_current() -> Option<Rc<Task>> {
    CURRENT.get().borrow().clone()
}

/// Makes a blocked task runnable.
pub fn wake(task: &Rc<Task>) {
    if task.state.get() == State::Blocked {
        task.state.set(State::Runnable);
        QUEUE.get().borrow_mut().push_back(task.clone());
        shared().set_want_tick(1);
    }
}

/// Notes that the database is in use now.
pub fn mark_active(now: u64) {
    LAST_ACTIVE.get().set(now);
    shared().set_last_active(now);
}

/// Blocks the running task until it is woken, `deadline` passes, or a signal is pending that it does not block.
/// The caller has put it where it will be woken.
pub fn block(deadline: Option<u64>) -> Outcome {
    let me = current();
    if me.signals.interrupts() {
        return Outcome::Interrupted;
    }
    me.timed_out.set(false);
    me.deadline.set(deadline.unwrap_or(u64::MAX));
    me.state.set(State::Blocked);
    run_next();
    me.deadline.set(u64::MAX);
    if me.signals.interrupts() {
        Outcome::Interrupted
    } else if me.timed_out.get() {
        Outcome::TimedOut
    } else {
        Outcome::Woken
    }
}

/// Blocks the running task until it is woken, whatever signals come.
pub fn block_uninterrupted() {
    current().state.set(State::Blocked);
    run_next();
}

/// Lets the others run first.
pub fn give_way() {
    let me = current();
    QUEUE.get().borrow_mut().push_back(me.clone());
    drop(me);
    run_next();
}

/// For a task that has ended.
pub fn leave_for_ever() -> ! {
    run_next();
    panic!("a task that had ended was run again")
}

/// Starts the first task; the boot stack is left behind.
pub fn start() -> ! {
    run_next();
    panic!("the boot context was run again")
}

/// Takes the next runnable task, waiting for one, and switches to it.
fn run_next() {
    let mut wait = idle::Wait::default();
    let next = loop {
        poll();
        if let Some(task) = QUEUE.get().borrow_mut().pop_front() {
            break task;
        }
        if !wait.look(NEXT.get().get()) {
            halt();
        }
    };
    wait.over();
    let now = time::now();
    let last = CURRENT.get().borrow().clone();
    if let Some(last) = &last {
        last.run_ns.set(last.run_ns.get() + now.saturating_sub(SINCE.get().get()));
    }
    SINCE.get().set(now);
    if next.kind != Kind::Housekeeper {
        mark_active(now);
    }
    publish();
    if last.as_ref().is_some_and(|last| Rc::ptr_eq(last, &next)) {
        return;
    }
    let load = next.context.get();
    arch::write_fs_base(next.segment);
    *CURRENT.get().borrow_mut() = Some(next);
    // A task that has ended may be freed here while its stack is still in use; what is left of the context goes
    // to a place that outlives it.
    static ABANDONED: Global<Cell<u64>> = Global::new(Cell::new(0));
    let save = match &last {
        Some(last) if !matches!(last.state.get(), State::Zombie(_)) => last.context.as_ptr(),
        _ => ABANDONED.get().as_ptr(),
    };
    drop(last);
    // SAFETY: `load` was saved by an earlier switch or made by `new_context`; `save` outlives the switch, since a
    // task that has not ended stays in the task table.
    unsafe { arch::switch_context(save, load) };
    task_begin();
}

/// The slot of a task that has ended, while its stack may still be the one in use: memory that is free, and so in no
/// snapshot, must not be run on.
static GRAVE: Global<RefCell<Option<Slot>>> = Global::new(RefCell::new(None));

/// Frees a slot after the next switch.
pub fn bury(slot: Slot) {
    *GRAVE.get().borrow_mut() = Some(slot);
}

/// What runs first after every switch.
#[unsafe(no_mangle)]
extern "C" fn task_begin() {
    drop(GRAVE.get().take());
}

/// Devices, timers and what the VMM asks for; cheap when there is nothing.
pub fn poll() {
    if shared().event() != 0 {
        shared().set_event(0);
        shared().set_attended(shared().attended().wrapping_add(1));
        resume::check();
        if shared().shutdown() != 0
            && !SHUTDOWN_SENT.get().replace(true)
            && let Some(first) = task::find(task::FIRST_PID)
        {
            signal::send(&first, signal::SIGINT);
        }
        let kill = shared().kill();
        if kill != 0 {
            shared().set_kill(0);
            if let Some(task) = task::find(kill) {
                signal::send(&task, signal::SIGKILL);
            }
        }
    }
    vsock::receive();
    fs::collect();
    expire();
}

/// Wakes whoever's time has come.
fn expire() {
    let now = time::now();
    if now < NEXT.get().get() {
        return;
    }
    let mut alarms = alloc::vec::Vec::new();
    task::for_each(|task| {
        if task.deadline.get() <= now && task.state.get() == State::Blocked {
            task.timed_out.set(true);
            wake(task);
        }
        let timer = task.timer.get();
        if timer.deadline <= now {
            let deadline = if timer.interval == 0 { u64::MAX } else { now + timer.interval };
            task.timer.set(Timer { deadline, ..timer });
            alarms.push(task.clone());
        }
    });
    for task in alarms {
        signal::send(&task, signal::SIGALRM);
    }
    if fs::cache_due() <= now {
        fs::sweep();
    }
    publish();
}

/// Earliest deadline last published.
static NEXT: Global<Cell<u64>> = Global::new(Cell::new(0));

/// Tells the VMM the earliest deadline, and whether there is anyone to share the vCPU with.
pub fn publish() {
    let mut next = fs::cache_due();
    task::for_each(|task| {
        next = next.min(task.timer.get().deadline);
        if task.state.get() == State::Blocked {
            next = next.min(task.deadline.get());
        }
    });
    NEXT.get().set(next);
    shared().set_next_deadline(next);
    shared().set_want_tick(others_wait() as u32);
}

/// Nothing to run: says how things stand and waits at the doorbell.
fn halt() {
    let mut busy = 0;
    task::for_each(|task| {
        let at_work = match task.kind {
            Kind::Housekeeper => false,
            Kind::Backend => !task.waits_for_client.get() && !matches!(task.state.get(), State::Zombie(_)),
            Kind::Worker => !matches!(task.state.get(), State::Zombie(_)),
        };
        busy += at_work as u32;
    });
    // Idle is only what the host has all of: it may be suspended now. Answers to clients leave first, at the same exit.
    if busy == 0 && !fs::is_settled() {
        busy += fs::settle().is_err() as u32;
    }
    shared().set_busy(busy);
    shared().set_cache_pages(fs::cache_pages() as u64);
    shared().set_heap_used(heap::used());
    publish();
    console::reap();
    arch::doorbell(abi::doorbell::HALT, 0);
}

/// What an event asks for: devices and clock, packets out, the others' turn, and signals, which the look at the clock may
/// have sent to this very task. The caller holds nothing: see `signal::deliver`.
pub fn attend() {
    poll();
    vsock::kick();
    if others_wait() {
        give_way();
    }
    signal::deliver();
}

/// A clock or device event found a task computing (never the kernel).
#[unsafe(no_mangle)]
extern "C" fn preempt_entry() {
    attend();
    arch::set_in_kernel(false);
}

/// Whether another task could run, and the running one has had its slice.
pub fn slice_is_over() -> bool {
    others_wait() && time::now().saturating_sub(SINCE.get().get()) >= SLICE
}

/// Whether another task could run.
pub fn others_wait() -> bool {
    !QUEUE.get().borrow().is_empty()
}
