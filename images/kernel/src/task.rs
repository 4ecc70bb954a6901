//! Tasks: what Postgres calls processes.
//!
//! A task is one instance of the program in a slot of its own, with its descriptors, signals and mappings. All
//! tasks share one address space and one privilege level; what keeps them apart is that each has its own data.

use crate::arch;
use crate::errno::{Errno, Result};
use crate::file::File;
use crate::global::Global;
use crate::memory::Mappings;
use crate::roster::{self, Name};
use crate::sched;
use crate::shared::shared;
use crate::signal::{self, Signals};
use crate::slots::{self, Slot};
use crate::table::FileTable;
use crate::wait::WaitQueue;
use crate::{doorbell_exit, first, fs, klog};
use alloc::collections::BTreeMap;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use dormouse_abi as abi;

/// Postgres refuses to run as root; everything belongs to this user.
pub const UID: u32 = 1000;
/// The first task: the postmaster. Always the same number, so that a `postmaster.pid` left by a killed VM is seen
/// to be stale (Postgres ignores one that names itself).
pub const FIRST_PID: i32 = 10;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum State {
    Runnable,
    Blocked,
    /// Ended, with its wait status; kept until its parent asks.
    Zombie(i32),
}

/// What the task is to the idle rule; from its `--forkchild` argument.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Kind {
    /// Postmaster, checkpointer, writers, launchers: ticking is not use.
    Housekeeper,
    /// Serves a client: idle only while it waits for that client.
    Backend,
    /// Startup process, autovacuum worker: in use as long as it exists.
    Worker,
}

/// Its first fields are those of [`abi::TaskHead`], where the VMM reads them (`roster`).
#[repr(C)]
pub struct Task {
    pub pid: i32,
    pub parent: Cell<i32>,
    pub kind: Kind,
    pub state: Cell<State>,
    /// Blocked in a wait that its client ends.
    pub waits_for_client: Cell<bool>,
    /// Saved stack pointer while it does not run.
    pub context: Cell<u64>,
    /// When a blocked task wants to be woken, guest-monotonic ns; `u64::MAX` for never.
    pub deadline: Cell<u64>,
    pub timer: Cell<Timer>,
    pub run_ns: Cell<u64>,
    pub name: Name,
    pub group: Cell<i32>,
    pub session: Cell<i32>,
    /// `%fs`'s base (`slots`).
    pub segment: u64,
    pub timed_out: Cell<bool>,
    pub slot: RefCell<Option<Slot>>,
    pub files: RefCell<FileTable>,
    pub cwd: RefCell<Vec<u8>>,
    pub umask: Cell<u32>,
    pub signals: Signals,
    pub memory: RefCell<Mappings>,
    /// Woken when a child ends.
    pub children: WaitQueue,
}

impl Drop for Task {
    fn drop(&mut self) {
        roster::leave(self);
    }
}

/// `setitimer(ITIMER_REAL)`.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Timer {
    pub deadline: u64,
    pub interval: u64,
}

impl Timer {
    pub const OFF: Timer = Timer { deadline: u64::MAX, interval: 0 };
}

type Table = BTreeMap<i32, Rc<Task>>;
static TASKS: Global<RefCell<Table>> = Global::new(RefCell::new(BTreeMap::new()));
static LAST_PID: Global<Cell<i32>> = Global::new(Cell::new(FIRST_PID - 1));

pub fn find(pid: i32) -> Option<Rc<Task>> {
    TASKS.get().borrow().get(&pid).cloned()
}

/// All tasks, zombies included, by pid.
pub fn all() -> Vec<Rc<Task>> {
    TASKS.get().borrow().values().cloned().collect()
}

/// Calls `f` on every task without taking a copy; `f` must not create or reap tasks.
pub fn for_each(mut f: impl FnMut(&Rc<Task>)) {
    TASKS.get().borrow().values().for_each(&mut f);
}

fn kind_of(args: &[Vec<u8>]) -> (Kind, Name) {
    let role = args.get(1).and_then(|arg| arg.strip_prefix(b"--forkchild="));
    match role {
        None => (Kind::Housekeeper, Name::new(b"postmaster")),
        Some(role) => {
            let kind = match role {
                b"backend" | b"dead-end backend" | b"walsender" => Kind::Backend,
                b"startup" | b"autovacuum worker" | b"avworker" => Kind::Worker,
                _ => Kind::Housekeeper,
            };
            (kind, Name::new(role))
        }
    }
}

fn next_pid() -> i32 {
    let table = TASKS.get().borrow();
    let mut pid = LAST_PID.get().get();
    loop {
        pid = if pid >= 30_000 { FIRST_PID + 1 } else { pid + 1 };
        if !table.contains_key(&pid) {
            LAST_PID.get().set(pid);
            return pid;
        }
    }
}

/// Starts the program again with these arguments. The child inherits from `parent` what `fork` and `exec` would
/// have left it; `mask` is its blocked signals.
pub fn spawn(parent: Option<&Rc<Task>>, args: &[Vec<u8>], env: &[Vec<u8>], mask: u64, files: FileTable) -> Result<i32> {
    let slot = slots::take()?;
    let stack = slot.lay_stack(args, env)?;
    // SAFETY: the stack is the new slot's, and nothing lies below `stack` yet.
    let context = unsafe { arch::new_context(slot.entry, stack) };
    let pid = next_pid();
    let (kind, name) = kind_of(args);
    let memory = Mappings::new(slot.heap, slot.heap_end, slot.used_before);
    let task = Rc::new(Task {
        pid,
        parent: Cell::new(parent.map_or(1, |task| task.pid)),
        group: Cell::new(parent.map_or(pid, |task| task.group.get())),
        session: Cell::new(parent.map_or(pid, |task| task.session.get())),
        kind,
        name,
        state: Cell::new(State::Blocked),
        context: Cell::new(context),
        segment: slot.segment,
        deadline: Cell::new(u64::MAX),
        timed_out: Cell::new(false),
        waits_for_client: Cell::new(false),
        timer: Cell::new(Timer::OFF),
        run_ns: Cell::new(0),
        slot: RefCell::new(Some(slot)),
        files: RefCell::new(files),
        cwd: RefCell::new(parent.map_or_else(|| b"/".to_vec(), |task| task.cwd.borrow().clone())),
        umask: Cell::new(parent.map_or(0o022, |task| task.umask.get())),
        signals: Signals::for_child(parent.map(|task| &task.signals), mask),
        memory: RefCell::new(memory),
        children: WaitQueue::new(),
    });
    roster::enter(&task);
    TASKS.get().borrow_mut().insert(pid, task.clone());
    shared().set_processes(shared().processes() + 1);
    sched::wake(&task);
    Ok(pid)
}

/// Ends the running task with a wait status. The first task takes the VM with it, unless it gets another try.
pub fn exit(status: i32) -> ! {
    let me = sched::current();
    let again = me.pid == FIRST_PID && first::may_start_again(status);
    if me.pid == FIRST_PID && !again {
        if status != 0 {
            klog!("postmaster ended with status {:#x}", status);
        } else {
            klog!("postmaster ended cleanly");
        }
        if let Err(error) = fs::settle() {
            klog!("not all that was written is the host's: error {}", error.0);
        }
        doorbell_exit(if status == 0 { abi::exit::CLEAN } else { abi::exit::POSTGRES_FAILED });
    }
    let signal = status & 0x7f;
    if signal != 0 {
        klog!("process {} ({}) ended by signal {}", me.pid, me.name, signal);
    }
    // Descriptors go one by one, outside the borrow: closing may wake others.
    let files = me.files.take();
    drop(files);
    me.memory.take().release();
    crate::shm::detach_all(&me);
    me.timer.set(Timer::OFF);
    // The slot's memory is still this stack.
    if let Some(slot) = me.slot.take() {
        sched::bury(slot);
    }
    shared().set_processes(shared().processes() - 1);
    // Children go to nobody: they are reaped when they end.
    for_each(|task| {
        if task.parent.get() == me.pid {
            task.parent.set(1);
        }
    });
    TASKS.get().borrow_mut().retain(|_, task| !(task.parent.get() == 1 && matches!(task.state.get(), State::Zombie(_))));
    match find(me.parent.get()) {
        Some(parent) => {
            me.state.set(State::Zombie(status));
            parent.children.wake();
            signal::send(&parent, signal::SIGCHLD);
        }
        None => {
            me.state.set(State::Zombie(status));
            TASKS.get().borrow_mut().remove(&me.pid);
        }
    }
    if again {
        LAST_PID.get().set(FIRST_PID - 1);
        if let Err(errno) = first::start() {
            klog!("the first process cannot start again: {:?}", errno);
            doorbell_exit(abi::exit::POSTGRES_FAILED);
        }
    }
    drop(me);
    sched::leave_for_ever()
}

/// `wait4`: reaps one ended child. `pid` is -1 for any, or a child's number.
pub fn wait(pid: i32, nohang: bool) -> Result<(i32, i32)> {
    let me = sched::current();
    loop {
        let mut any = false;
        let mut ended = None;
        for_each(|task| {
            if task.parent.get() == me.pid && (pid <= 0 || task.pid == pid) {
                any = true;
                if let State::Zombie(status) = task.state.get() {
                    ended.get_or_insert((task.pid, status));
                }
            }
        });
        if let Some((child, status)) = ended {
            TASKS.get().borrow_mut().remove(&child);
            return Ok((child, status));
        }
        if !any {
            return Err(Errno::ECHILD);
        }
        if nohang {
            return Ok((0, 0));
        }
        if me.children.wait(None) == crate::wait::Outcome::Interrupted {
            return Err(Errno::ERESTART);
        }
    }
}

/// The open file behind a descriptor of the running task.
pub fn file(fd: i32) -> Result<Rc<dyn File>> {
    sched::current().files.borrow().get(fd).map(|open| open.file.clone())
}
