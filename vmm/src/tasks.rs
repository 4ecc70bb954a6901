//! Tells what every process of a guest is doing, from outside: by the kernel's roster (`Shared.tasks`), the stacks in
//! guest memory and the vCPU's registers. The guest need not be able to run.
//!
//! Nothing in guest memory is believed further than that it is read within bounds: counts and depths are limited, frame
//! pointers only ever go up, and text is plain ASCII.

use std::fmt::Write as _;
use std::mem::offset_of;

use dormouse_abi::{
    BootInfo, DOORBELL, KERNEL, KERNEL_LEN, LARGE_PAGE, RAM_MAX, SLOT_BASE, SLOT_STRIDE, SYSTEM, Shared, TEXT, TaskHead,
    system, task_kind, task_state,
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Most processes told of, and most frames of each.
const MOST_TASKS: u32 = 1024;
const MOST_FRAMES: usize = 32;

/// The vCPU's registers that say where it is.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    pub rip: u64,
    pub rsp: u64,
    pub rbp: u64,
}

/// Guest memory as the guest's own addresses have it.
struct Memory<'a> {
    view: &'a GuestMemoryMmap,
    /// Of the program, and of slot 0's own page (`dormouse_abi::BootInfo`).
    hot: u64,
    slots: u64,
}

impl<'a> Memory<'a> {
    fn new(view: &'a GuestMemoryMmap) -> Self {
        let boot = SYSTEM + system::BOOT_INFO;
        let field = |offset: usize| view.read_obj::<u64>(GuestAddress(boot + offset as u64)).unwrap_or(0);
        Self {
            view,
            hot: field(offset_of!(BootInfo, program) + offset_of!(dormouse_abi::Program, hot)),
            slots: field(offset_of!(BootInfo, slots)),
        }
    }

    fn physical(&self, address: u64) -> Option<u64> {
        match address {
            0..RAM_MAX => Some(address),
            SLOT_BASE..DOORBELL => {
                let (slot, offset) = ((address - SLOT_BASE) / SLOT_STRIDE, (address - SLOT_BASE) % SLOT_STRIDE);
                slot.checked_mul(LARGE_PAGE)?.checked_add(self.slots)?.checked_add(offset.checked_sub(self.hot)?)
            }
            _ => None,
        }
    }

    fn word(&self, address: u64) -> Option<u64> {
        let at = self.physical(address).filter(|_| address.is_multiple_of(8))?;
        self.view.read_obj(GuestAddress(at)).ok()
    }

    fn half(&self, address: u64) -> Option<u32> {
        self.view.read_obj(GuestAddress(self.physical(address)?)).ok()
    }

    fn head(&self, address: u64) -> Option<TaskHead> {
        let at = |offset: usize| address.checked_add(offset as u64);
        let mut name = [0; 24];
        self.view.read_slice(&mut name, GuestAddress(self.physical(at(offset_of!(TaskHead, name))?)?)).ok()?;
        let half = |offset| self.half(at(offset)?);
        let word = |offset| self.word(at(offset)?);
        Some(TaskHead {
            pid: half(offset_of!(TaskHead, pid))? as i32,
            parent: half(offset_of!(TaskHead, parent))? as i32,
            kind: half(offset_of!(TaskHead, kind))?,
            state: half(offset_of!(TaskHead, state))?,
            status: half(offset_of!(TaskHead, status))? as i32,
            waits_for_client: half(offset_of!(TaskHead, waits_for_client))? as u8,
            reserved: [0; 3],
            context: word(offset_of!(TaskHead, context))?,
            deadline_ns: word(offset_of!(TaskHead, deadline_ns))?,
            timer_ns: word(offset_of!(TaskHead, timer_ns))?,
            timer_interval_ns: 0,
            run_ns: word(offset_of!(TaskHead, run_ns))?,
            name,
        })
    }
}

/// A process's slot, by any address of its stack.
fn slot(address: u64) -> Option<u64> {
    (SLOT_BASE..DOORBELL).contains(&address).then(|| (address - SLOT_BASE) / SLOT_STRIDE)
}

/// The report: a line a process, its backtrace below it. `now` is guest-monotonic ns. Addresses are written as the
/// kernel writes them, so that [`crate::symbols`] can name them.
pub fn report(view: &GuestMemoryMmap, at: Option<Place>, now: u64) -> String {
    let memory = Memory::new(view);
    let mut out = String::new();
    let shared = SYSTEM + system::SHARED;
    let table = memory.word(shared + offset_of!(Shared, tasks) as u64).unwrap_or(0);
    let len = memory.half(shared + offset_of!(Shared, tasks_len) as u64).unwrap_or(0).min(MOST_TASKS);
    if let Some(Place { rip, rsp, rbp }) = at {
        let _ = writeln!(out, "vCPU: rip {rip:016x} rsp {rsp:016x} rbp {rbp:016x}");
    }
    if table == 0 {
        out.push_str("the kernel of this image does not list its processes\n");
    }
    let place = |index: u32| table.checked_add(8 * u64::from(index)).and_then(|place| memory.word(place));
    let mut heads: Vec<TaskHead> =
        (0..len).filter_map(place).filter(|address| *address != 0).filter_map(|address| memory.head(address)).collect();
    heads.sort_by_key(|head| head.pid);
    let running = at.and_then(|at| slot(at.rsp));
    let mut found = false;
    for head in &heads {
        let runs = running.is_some() && running == slot(head.context);
        found |= runs;
        line(&mut out, head, runs, now);
        match at.filter(|_| runs) {
            Some(at) => backtrace(&mut out, &memory, at.rip, at.rbp),
            None if head.state != task_state::ENDED => {
                // As `switch_stacks` left it: six registers, %rbp the last of them, then where it goes on.
                let saved = |index: u64| head.context.checked_add(8 * index).and_then(|at| memory.word(at));
                if let (Some(rbp), Some(rip)) = (saved(5), saved(6)) {
                    backtrace(&mut out, &memory, rip, rbp);
                }
            }
            None => {}
        }
    }
    if let Some(at) = at.filter(|_| !found) {
        out.push_str("the vCPU, on no process's stack\n");
        backtrace(&mut out, &memory, at.rip, at.rbp);
    }
    out
}

fn line(out: &mut String, head: &TaskHead, runs: bool, now: u64) {
    let name: String =
        head.name.iter().take_while(|byte| **byte != 0).map(|byte| char::from(*byte)).filter(|c| *c == ' ' || c.is_ascii_graphic()).collect();
    let kind = match head.kind {
        task_kind::HOUSEKEEPER => "housekeeper",
        task_kind::BACKEND => "backend",
        task_kind::WORKER => "worker",
        _ => "?",
    };
    let _ = write!(out, "process {} ({name}), {kind}, child of {}, ", head.pid, head.parent);
    match head.state {
        _ if runs => out.push_str("running"),
        task_state::RUNNABLE => out.push_str("runnable"),
        task_state::BLOCKED if head.waits_for_client != 0 => out.push_str("waits for its client"),
        task_state::BLOCKED => out.push_str("blocked"),
        task_state::ENDED => _ = write!(out, "ended with status {:#x}", head.status),
        other => _ = write!(out, "state {other}"),
    }
    let mut due = |what: &str, at: u64| {
        if at != u64::MAX {
            let _ = write!(out, ", {what} {:+.3} s", (at as f64 - now as f64) / 1e9);
        }
    };
    if head.state == task_state::BLOCKED {
        due("until", head.deadline_ns);
    }
    due("timer", head.timer_ns);
    let _ = writeln!(out, ", ran {:.3} s", head.run_ns as f64 / 1e9);
}

struct Address(u64);

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            at if (KERNEL..KERNEL + KERNEL_LEN).contains(&at) => write!(f, "kernel {at:#x}"),
            at if (TEXT..TEXT + SLOT_STRIDE).contains(&at) => write!(f, "postgres {at:#x}"),
            at => match slot(at) {
                Some(slot) => write!(f, "postgres {:#x} (slot {slot})", TEXT + (at - SLOT_BASE) % SLOT_STRIDE),
                None => write!(f, "{at:#x}"),
            },
        }
    }
}

fn backtrace(out: &mut String, memory: &Memory<'_>, rip: u64, mut frame: u64) {
    let _ = writeln!(out, "  at {}", Address(rip));
    for _ in 0..MOST_FRAMES {
        let Some((next, back)) = memory.word(frame).zip(frame.checked_add(8).and_then(|at| memory.word(at))) else { return };
        if back == 0 {
            return;
        }
        let _ = writeln!(out, "  by {}", Address(back));
        if next <= frame {
            return;
        }
        frame = next;
    }
}
