//! Signals.
//!
//! A handler runs as a plain function call on the task's own stack, when a system call returns or when an event
//! has preempted the task; there is no signal frame and no `sigreturn`. A handler that jumps out (`siglongjmp`)
//! only leaves kernel frames behind that own nothing.

use crate::arch;
use crate::errno::{Errno, Result};
use crate::sched;
use crate::task::{self, Task};
use crate::wait::WaitQueue;
use alloc::rc::Rc;
use core::cell::{Cell, RefCell};

pub const SIGINT: i32 = 2;
pub const SIGKILL: i32 = 9;
pub const SIGSEGV: i32 = 11;
pub const SIGALRM: i32 = 14;
pub const SIGCHLD: i32 = 17;
const SIGCONT: i32 = 18;
const SIGSTOP: i32 = 19;
const SIGURG: i32 = 23;
const SIGWINCH: i32 = 28;
const SA_NODEFER: u64 = 0x4000_0000;
const SA_RESTART: u64 = 0x1000_0000;
const SA_RESETHAND: u64 = 0x8000_0000;
const UNBLOCKABLE: u64 = bit(SIGKILL) | bit(SIGSTOP);

pub const fn bit(signal: i32) -> u64 {
    1 << (signal - 1)
}

/// The kernel's `struct sigaction` (x86-64).
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Action {
    /// 0 default, 1 ignore, else a function.
    pub handler: usize,
    pub flags: u64,
    pub restorer: usize,
    pub mask: u64,
}

const DEFAULT: Action = Action { handler: 0, flags: 0, restorer: 0, mask: 0 };

pub struct Signals {
    pending: Cell<u64>,
    pub mask: Cell<u64>,
    actions: RefCell<[Action; 64]>,
    /// Woken by every signal sent, blocked or not: for `signalfd`.
    pub arrivals: Rc<WaitQueue>,
}

impl Signals {
    /// What a new program starts with: ignored signals stay ignored, handlers are gone, nothing is pending.
    pub fn for_child(parent: Option<&Signals>, mask: u64) -> Self {
        let mut actions = [DEFAULT; 64];
        if let Some(parent) = parent {
            for (mine, theirs) in actions.iter_mut().zip(parent.actions.borrow().iter()) {
                if theirs.handler == 1 {
                    mine.handler = 1;
                }
            }
        }
        Self {
            pending: Cell::new(0),
            mask: Cell::new(mask & !UNBLOCKABLE),
            actions: RefCell::new(actions),
            arrivals: Rc::new(WaitQueue::new()),
        }
    }

    /// Whether a signal is pending that is not blocked.
    pub fn interrupts(&self) -> bool {
        self.pending.get() & !self.mask.get() != 0
    }

    /// Pending signals of `set`.
    pub fn pending(&self, set: u64) -> u64 {
        self.pending.get() & set
    }

    /// Takes the lowest pending signal of `set`.
    pub fn take(&self, set: u64) -> Option<i32> {
        let candidates = self.pending.get() & set;
        if candidates == 0 {
            return None;
        }
        let signal = candidates.trailing_zeros() as i32 + 1;
        self.pending.set(self.pending.get() & !bit(signal));
        Some(signal)
    }

    fn ignored(&self, signal: i32) -> bool {
        let action = self.actions.borrow()[signal as usize - 1];
        action.handler == 1 || (action.handler == 0 && ignored_by_default(signal))
    }
}

fn ignored_by_default(signal: i32) -> bool {
    matches!(signal, SIGCHLD | SIGCONT | SIGURG | SIGWINCH | SIGSTOP | 20 | 21 | 22)
}

/// Sends a signal to a task.
pub fn send(task: &Rc<Task>, signal: i32) {
    let signals = &task.signals;
    let blocked = signals.mask.get() & bit(signal) != 0;
    if !blocked && signals.ignored(signal) {
        return;
    }
    signals.pending.set(signals.pending.get() | bit(signal));
    signals.arrivals.wake();
    if !blocked {
        sched::wake(task);
    }
}

/// `kill`: a positive pid is one task, 0 the caller's group, -1 all but the caller, any other a group.
pub fn kill(pid: i32, signal: i32) -> Result<()> {
    if !(0..=64).contains(&signal) {
        return Err(Errno::EINVAL);
    }
    let me = sched::current();
    let mut found = false;
    for target in task::all() {
        let hit = match pid {
            0 => target.group.get() == me.group.get(),
            -1 => target.pid != me.pid,
            pid if pid > 0 => target.pid == pid,
            pid => target.group.get() == -pid,
        };
        if hit {
            found = true;
            if signal != 0 {
                send(&target, signal);
            }
        }
    }
    if found { Ok(()) } else { Err(Errno::ESRCH) }
}

pub fn action(signal: i32, new: Option<Action>) -> Result<Action> {
    if !(1..=64).contains(&signal) || (new.is_some() && bit(signal) & UNBLOCKABLE != 0) {
        return Err(Errno::EINVAL);
    }
    let me = sched::current();
    let old = me.signals.actions.borrow()[signal as usize - 1];
    if let Some(new) = new {
        me.signals.actions.borrow_mut()[signal as usize - 1] = new;
        if me.signals.ignored(signal) {
            me.signals.pending.set(me.signals.pending.get() & !bit(signal));
        }
    }
    Ok(old)
}

/// `rt_sigprocmask`; `how` as Linux numbers it.
pub fn mask(how: i32, set: Option<u64>) -> Result<u64> {
    let me = sched::current();
    let old = me.signals.mask.get();
    if let Some(set) = set {
        let new = match how {
            0 => old | set,
            1 => old & !set,
            2 => set,
            _ => return Err(Errno::EINVAL),
        };
        me.signals.mask.set(new & !UNBLOCKABLE);
    }
    Ok(old)
}

/// What a handler may look at.
#[repr(C, align(16))]
struct Info {
    signal: i32,
    rest: [u32; 31],
}
static CONTEXT: [u64; 128] = [0; 128];

/// Runs what is pending. The caller holds nothing: a handler may never come back. Returns whether an interrupted
/// system call should be started again.
pub fn deliver() -> bool {
    let mut restart = true;
    loop {
        let (signal, action, old_mask) = {
            let me = sched::current();
            let Some(signal) = me.signals.take(!me.signals.mask.get()) else { return restart };
            let action = me.signals.actions.borrow()[signal as usize - 1];
            let old_mask = me.signals.mask.get();
            if action.handler > 1 {
                let own = if action.flags & SA_NODEFER == 0 { bit(signal) } else { 0 };
                me.signals.mask.set((old_mask | action.mask | own) & !UNBLOCKABLE);
                if action.flags & SA_RESETHAND != 0 {
                    me.signals.actions.borrow_mut()[signal as usize - 1] = DEFAULT;
                }
            }
            (signal, action, old_mask)
        };
        match action.handler {
            1 => continue,
            0 if ignored_by_default(signal) => continue,
            0 => task::exit(signal),
            handler => {
                restart &= action.flags & SA_RESTART != 0;
                let info = Info { signal, rest: [0; 31] };
                // SAFETY: the program gave this address as that of its handler.
                let call: extern "C" fn(i32, *const Info, *const u64) = unsafe { core::mem::transmute(handler) };
                arch::set_in_kernel(false);
                call(signal, &info, CONTEXT.as_ptr());
                arch::set_in_kernel(true);
                sched::current().signals.mask.set(old_mask);
            }
        }
    }
}

/// The running task did something that the processor refused, at stack pointer `stack`. Its handler gets it, on
/// its own stack; without one the task ends.
pub fn fault(signal: i32, stack: u64) -> ! {
    let action = sched::current().signals.actions.borrow()[signal as usize - 1];
    if action.handler <= 1 || signal == SIGSEGV {
        task::exit(signal);
    }
    let me = sched::current();
    me.signals.mask.set((me.signals.mask.get() | action.mask | bit(signal)) & !UNBLOCKABLE);
    drop(me);
    let info = Info { signal, rest: [0; 31] };
    // SAFETY: the handler is the program's; the stack is the task's, 256 bytes below where it was.
    unsafe { arch::enter_handler(action.handler, signal, (&raw const info).cast(), CONTEXT.as_ptr().cast(), stack - 256) }
}

/// A fault's handler returned, which would run the faulting instruction again.
#[unsafe(no_mangle)]
extern "C" fn handler_returned(signal: i32) -> ! {
    arch::set_in_kernel(true);
    task::exit(signal & 0x7f | 0x80)
}
