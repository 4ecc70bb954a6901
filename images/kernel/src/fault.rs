//! Exceptions: a process's own fault ends that process; the kernel's ends the VM, after saying all it knows.
//!
//! Addresses are printed as `kernel 0x…` or `postgres 0x…` (as linked); the VMM's console log adds the symbols.

use crate::arch::{self, FaultFrame};
use crate::console::{self, Line};
use crate::sched;
use crate::signal;
use crate::{doorbell_exit, vsock};
use core::fmt::Write as _;
use dormouse_abi as abi;

/// General registers as the trampoline pushed them.
#[repr(C)]
struct Registers {
    rcx: u64,
    rdx: u64,
    rbx: u64,
    rbp: u64,
    rsi: u64,
    rdi: u64,
    r8: u64,
    r9: u64,
    r10: u64,
    r11: u64,
    r12: u64,
    r13: u64,
    r14: u64,
    r15: u64,
}

macro_rules! say {
    ($($arg:tt)*) => {{
        let mut line = Line::new();
        let _ = write!(line, $($arg)*);
        let _ = line.write_str("\n");
        console::write_slowly(line.bytes());
    }};
}

const NAMES: [(u64, &str); 9] = [
    (0, "divide error"),
    (1, "debug"),
    (3, "breakpoint"),
    (4, "overflow"),
    (6, "invalid instruction"),
    (12, "stack segment"),
    (13, "general protection"),
    (14, "page fault"),
    (19, "floating point"),
];

/// A signal for what a process can do to itself, as Linux maps it.
fn signal_of(vector: u64) -> i32 {
    match vector {
        0 | 16 | 19 => 8,
        1 | 3 => 5,
        6 => 4,
        17 => 7,
        _ => 11,
    }
}

struct Address(u64);

impl core::fmt::Display for Address {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self.0 {
            at if (abi::KERNEL..abi::KERNEL + abi::KERNEL_LEN).contains(&at) => write!(f, "kernel {at:#x}"),
            at if (abi::TEXT..abi::TEXT + abi::SLOT_STRIDE).contains(&at) => write!(f, "postgres {at:#x}"),
            at if (abi::SLOT_BASE..abi::DOORBELL).contains(&at) => {
                let (slot, offset) = ((at - abi::SLOT_BASE) / abi::SLOT_STRIDE, (at - abi::SLOT_BASE) % abi::SLOT_STRIDE);
                write!(f, "postgres {:#x} (slot {slot})", abi::TEXT + offset)
            }
            at => write!(f, "{at:#x}"),
        }
    }
}

/// Whether a frame pointer can be followed without a second fault.
fn readable(at: u64) -> bool {
    if !at.is_multiple_of(8) {
        return false;
    }
    match at {
        at if at < abi::SYSTEM => false,
        at if at < abi::SLOT_BASE => crate::pages::in_ram(at),
        at if at < abi::DOORBELL => sched::try_current().is_some_and(|task| {
            task.slot.borrow().as_ref().is_some_and(|slot| (slot.stack_low..slot.stack_top).contains(&at))
        }),
        _ => false,
    }
}

fn backtrace(rip: u64, mut frame: u64) {
    say!("  at {}", Address(rip));
    for _ in 0..32 {
        if !readable(frame) || !readable(frame + 8) {
            break;
        }
        // SAFETY: just checked to be mapped memory.
        let (next, back) = unsafe { (*(frame as *const u64), *((frame + 8) as *const u64)) };
        if back == 0 {
            break;
        }
        say!("  by {}", Address(back));
        if next <= frame {
            break;
        }
        frame = next;
    }
}

fn dump(registers: &Registers, frame: &FaultFrame) {
    let name = NAMES.iter().find(|(vector, _)| *vector == frame.vector).map_or("exception", |(_, name)| name);
    match sched::try_current() {
        Some(task) => say!("{} (vector {}) in process {} ({})", name, frame.vector, task.pid, task.name),
        None => say!("{} (vector {}) before the first process", name, frame.vector),
    }
    say!("rip {:016x} rsp {:016x} rbp {:016x} flags {:08x}", frame.rip, frame.rsp, registers.rbp, frame.rflags);
    say!("rax {:016x} rbx {:016x} rcx {:016x} rdx {:016x}", frame.rax, registers.rbx, registers.rcx, registers.rdx);
    say!("rsi {:016x} rdi {:016x} r8  {:016x} r9  {:016x}", registers.rsi, registers.rdi, registers.r8, registers.r9);
    say!("r10 {:016x} r11 {:016x} r12 {:016x} r13 {:016x}", registers.r10, registers.r11, registers.r12, registers.r13);
    say!("r14 {:016x} r15 {:016x} cr2 {:016x} error {:x}", registers.r14, registers.r15, frame.cr2, frame.error);
    backtrace(frame.rip, registers.rbp);
}

/// Entered by the ring-0 stub's detour, on the fault stack, never to return.
#[unsafe(no_mangle)]
extern "C" fn fault_entry(registers: &Registers) -> ! {
    // SAFETY: the stub has written the frame, and no other fault can overwrite it while the kernel runs.
    let frame = unsafe { &arch::FAULT_FRAME };
    dump(registers, frame);
    if frame.in_kernel != 0 || sched::try_current().is_none() {
        say!("kernel fault: the machine stops");
        vsock::dump();
        doorbell_exit(abi::exit::FAULT);
    }
    let (vector, stack) = (frame.vector, frame.rsp);
    signal::fault(signal_of(vector), stack)
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo) -> ! {
    arch::set_in_kernel(true);
    say!("kernel panic: {}", info);
    let frame: u64;
    // SAFETY: reads a register.
    unsafe { core::arch::asm!("mov {}, rbp", out(reg) frame, options(nomem, nostack)) };
    backtrace(panic as fn(_) -> _ as usize as u64, frame);
    doorbell_exit(abi::exit::PANIC)
}
