//! The Dormouse kernel: a library OS that carries PostgreSQL in ring 3.
//!
//! Kernel and Postgres share one address space and one privilege level. A "process" is the same program loaded again
//! in another slot; a system call is a function call; a switch is a change of stacks. README.md beside this crate
//! is the specification.
//!
//! ```text
//!              syscall (a C call)          event (preemption)        fault
//!  slots ───────────────┬───────────────────────┬──────────────────────┬────
//!                   syscall/*                 sched ◂──── signal ◂──── fault
//!     task  table  memory  shm  futex  epoll  socket   time  pages  heap
//!                    fs (archive, memory, FUSE)        vsock   console
//!                                   virtio ── doorbell ── VMM
//! ```
#![no_std]
#![no_main]

extern crate alloc;

mod arch;
mod console;
mod epoll;
mod errno;
mod fault;
mod file;
mod first;
mod fs;
mod futex;
mod global;
mod heap;
mod idle;
mod memory;
mod pages;
mod random;
mod received;
mod resume;
mod roster;
mod sched;
mod shared;
mod shm;
mod signal;
mod slots;
mod socket;
mod stream;
mod syscall;
mod table;
mod task;
mod time;
mod virtio;
mod vsock;
mod wait;

use dormouse_abi as abi;
use shared::shared;

unsafe extern "C" {
    static kernel_end: u8;
}

/// Ends the VM.
pub fn doorbell_exit(code: u32) -> ! {
    loop {
        arch::doorbell(abi::doorbell::EXIT, code);
    }
}

/// Called by the entry stub on the boot stack.
#[unsafe(no_mangle)]
extern "C" fn kernel_main(boot: &abi::BootInfo) -> ! {
    if boot.magic != abi::KERNEL_MAGIC || boot.abi_version != abi::ABI_VERSION {
        doorbell_exit(abi::exit::BAD_BOOT);
    }
    let heap_start = &raw const kernel_end as u64;
    // SAFETY: the rest of the kernel's reserve is nobody else's.
    unsafe { heap::init(heap_start, abi::KERNEL + abi::KERNEL_LEN) };
    if boot.pool != boot.slots + boot.slot_count as u64 * abi::LARGE_PAGE {
        doorbell_exit(abi::exit::BAD_BOOT);
    }
    pages::init(boot.slots, boot.pool, boot.ram);
    console::init();
    random::init(&shared().entropy());
    slots::init(boot);
    roster::init(boot.slot_count as usize);
    if let Err(errno) = fs::init(boot) {
        klog!("the file systems cannot be mounted: {:?}", errno);
        doorbell_exit(abi::exit::BAD_BOOT);
    }
    vsock::init();
    klog!("{} slots, {} MiB", boot.slot_count, boot.ram >> 20);
    if let Err(errno) = first::start() {
        klog!("the first process cannot start: {:?}", errno);
        doorbell_exit(abi::exit::BAD_BOOT);
    }
    sched::start()
}
