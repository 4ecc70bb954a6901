//! The contract between the guest kernel and the virtual machine monitor.
//!
//! Everything that both sides must agree on is here and nowhere else: the guest's memory map, what the VMM
//! lays in memory before the first instruction, the page through which the two talk while the guest runs, the
//! doorbell registers, and the codes with which a guest ends. The kernel's README tells the story around it.
//!
//! All addresses are guest-physical. The guest maps its RAM at virtual = physical, so they are also its
//! virtual addresses, with three exceptions: the page tables are not mapped at all, page 0 faults, and the hot page of
//! each process slot is seen above [`SLOT_BASE`].
//!
//! Layouts are `repr(C)`, little-endian, and checked at compile time below.
#![no_std]

/// Bumped by every change of this file that an older peer would misread.
pub const ABI_VERSION: u32 = 3;

/// The only page size in use, in bytes.
pub const LARGE_PAGE: u64 = 2 << 20;
/// The unit of the page allocator and of snapshots, in bytes.
pub const PAGE: u64 = 4096;

/// Page tables: one large page that nothing maps, so no guest code can change them.
pub const PAGE_TABLES: u64 = 0;
/// Descriptor tables, boot information, the shared page and the virtqueues: one large page.
pub const SYSTEM: u64 = 0x20_0000;
/// The kernel image, its data and its first heap: two large pages. [`KernelHeader`] stands here.
pub const KERNEL: u64 = 0x40_0000;
/// Bytes reserved for the kernel from [`KERNEL`].
pub const KERNEL_LEN: u64 = 2 * LARGE_PAGE;
/// Where Postgres' shared (read-only) segments are loaded, in whole large pages, and where the program is linked to be
/// (images/postgres/link/layout.ld).
pub const TEXT: u64 = KERNEL + KERNEL_LEN;

/// Virtual address of process slot 0.
pub const SLOT_BASE: u64 = 0x10_0000_0000;
/// Distance from one process slot to the next, in bytes.
pub const SLOT_STRIDE: u64 = 64 << 20;
/// Doorbell registers (see [`doorbell`]): no memory lies here, so every write leaves the guest.
pub const DOORBELL: u64 = 0x40_0000_0000;
/// The most RAM a guest can have, in bytes: the direct map ends before the slots.
pub const RAM_MAX: u64 = 32 << 30;

/// Offsets from [`SYSTEM`].
pub mod system {
    pub const GDT: u64 = 0x0000;
    pub const TSS: u64 = 0x0800;
    pub const IDT: u64 = 0x1000;
    /// First byte past the ring-0 stack, which has two pages.
    pub const RING0_STACK_TOP: u64 = 0x5000;
    pub const BOOT_INFO: u64 = 0x5000;
    pub const SHARED: u64 = 0x7000;
    /// Virtqueue `n` lies at `QUEUES + n * QUEUE_STRIDE`: descriptors, then the available ring, then the used ring.
    pub const QUEUES: u64 = 0x1_0000;
    pub const QUEUE_STRIDE: u64 = 0x4000;
    pub const QUEUE_AVAIL: u64 = 0x2000;
    pub const QUEUE_USED: u64 = 0x3000;
    /// First byte past all that the VMM lays in this page; the rest is the kernel's to use.
    pub const END: u64 = 0x4_0000;
}

/// Segment selectors of the GDT the VMM builds: 64-bit code and data for both rings, and the TSS.
pub mod selector {
    pub const RING0_CODE: u16 = 0x08;
    pub const RING0_DATA: u16 = 0x10;
    pub const RING3_DATA: u16 = 0x20 | 3;
    pub const RING3_CODE: u16 = 0x28 | 3;
    pub const TSS: u16 = 0x30;
}

/// Interrupt vector with which the VMM asks the kernel to look at its events and at the clock.
pub const VECTOR_EVENT: u8 = 0x40;

/// What the kernel image starts with, at [`KERNEL`].
///
/// The guest's C library calls the kernel by `jmp *(KERNEL + 0x18)`: an ordinary C call
/// `long kernel(long number, long a, long b, long c, long d, long e, long f)` that returns what Linux' `syscall`
/// instruction would leave in `%rax` (a result, or a negated errno).
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct KernelHeader {
    pub magic: u64,
    pub abi_version: u32,
    /// Distance from [`KERNEL`] of a routine that reads of pages, so that the host has them mapped: ring 3, `%rdi` = address of an
    /// array of 64-bit addresses, of which 0 is the last; then it halts. It wants no stack. 0: a kernel without it.
    pub touch: u32,
    /// Entry point: ring 3, `%rdi` = address of [`BootInfo`], on a stack of the kernel's own choosing.
    pub entry: u64,
    /// The system-call entry described above.
    pub syscall: u64,
    /// Ring-0 stubs for vectors 0–255, [`VECTOR_STUB_LEN`] bytes each.
    pub vectors: u64,
    /// First byte past the kernel's image and zero-filled data; the kernel's first heap runs from here to the
    /// end of its reserve.
    pub end: u64,
}
/// `KernelHeader::magic`: "DORMOUSE".
pub const KERNEL_MAGIC: u64 = u64::from_le_bytes(*b"DORMOUSE");
/// Bytes from one vector's stub to the next.
pub const VECTOR_STUB_LEN: u64 = 16;

/// Virtqueues, by index. All are split rings of [`QUEUE_SIZE`] entries with VIRTIO_F_VERSION_1 and no other
/// transport feature; there is no configuration space, so a boot costs no register access at all.
pub mod queue {
    pub const VSOCK_RX: usize = 0;
    pub const VSOCK_TX: usize = 1;
    pub const FS: usize = 2;
    pub const RNG: usize = 3;
    pub const CONSOLE: usize = 4;
    pub const COUNT: usize = 5;
}
/// Entries of every virtqueue.
pub const QUEUE_SIZE: u16 = 128;

/// Doorbell registers: offsets from [`DOORBELL`], each written as a 32-bit store.
pub mod doorbell {
    /// Value: bit mask of queues with new buffers. They are served before the store completes.
    pub const NOTIFY: u64 = 0x00;
    /// Nothing to run. Completes when a queue has been served, when [`super::Shared::next_deadline_ns`] has
    /// passed, or when the VMM wants the guest to look up. All queues are served first.
    pub const HALT: u64 = 0x04;
    /// Value: an [`super::exit`] code. Never completes. The console queue is drained first.
    pub const EXIT: u64 = 0x08;
    /// Value: one byte for the console, for messages before there is a queue or after a fault.
    pub const PUTCHAR: u64 = 0x0c;
    /// The transmit queue has packets. Another thread takes them: the store completes before they are served.
    pub const SEND: u64 = 0x10;
}

/// Codes written to [`doorbell::EXIT`].
pub mod exit {
    /// Postgres shut down cleanly.
    pub const CLEAN: u32 = 0;
    /// Postgres' first process ended with an error; the console says which.
    pub const POSTGRES_FAILED: u32 = 1;
    /// A fault in the kernel, or one that it could not hand to a process.
    pub const FAULT: u32 = 2;
    /// A kernel panic: an invariant of its own did not hold.
    pub const PANIC: u32 = 3;
    /// The boot information makes no sense to this kernel.
    pub const BAD_BOOT: u32 = 4;
}

/// What the VMM tells the kernel at a cold boot, at [`SYSTEM`] + [`system::BOOT_INFO`]. At most two pages.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct BootInfo {
    pub magic: u64,
    pub abi_version: u32,
    /// Process slots; slot `i`'s hot page is at physical `slots + i * LARGE_PAGE`.
    pub slot_count: u32,
    /// Bytes of RAM.
    pub ram: u64,
    /// Physical address of slot 0's hot page.
    pub slots: u64,
    /// The read-only boot archive (cpio "newc"): the guest's files outside the data directory.
    pub archive: u64,
    pub archive_len: u64,
    /// First byte past the slots, aligned to a large page. The page pool runs from `slots` to the end of RAM: the
    /// hot pages of unused slots are memory like any other.
    pub pool: u64,
    pub program: Program,
    /// NUL-separated, NUL-terminated arguments and environment of the first process.
    pub argc: u32,
    pub envc: u32,
    /// Bytes used of `strings`: first all arguments, then all of the environment.
    pub strings_len: u32,
    pub reserved: u32,
    pub strings: [u8; 4096],
}

/// The one program the guest runs, as loaded by the VMM.
///
/// It is linked for [`TEXT`]; addresses here are distances from there. `[0, shared_end)` is at [`TEXT`] in every process.
/// What is a process' own is as far from its slot's base: after one large page that is left unmapped (the stack's
/// guard), the slot's hot page at `hot`, which holds, in order, the stack (growing down from `data` towards `hot`), the
/// data segment, bss and the first heap. The process finds it by `%fs`, whose base is the slot's less [`TEXT`].
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Program {
    pub shared_end: u64,
    pub hot: u64,
    /// Start of the writable segment: `hot < data < hot + LARGE_PAGE`.
    pub data: u64,
    /// Bytes of it that come from the file; their pristine copy is at physical `data_copy`.
    pub data_file_len: u64,
    /// Bytes of it in memory, bss included.
    pub data_mem_len: u64,
    pub data_copy: u64,
    pub entry: u64,
    /// Program headers, for the auxiliary vector.
    pub phdr: u64,
    pub phnum: u64,
    /// Physical address of an array of the link addresses (32 bits each) of those words of the data segment to which
    /// `%fs`'s base is to be added, and how many they are.
    pub words: u64,
    pub words_len: u64,
    /// Distance of `pg_global_prng_state` (16 bytes), reseeded in every process of a clone; 0 if there is none.
    pub prng_state: u64,
}

/// The page through which the running guest and the VMM talk, at [`SYSTEM`] + [`system::SHARED`].
///
/// Each field has one writer. Both sides access it with volatile or atomic loads and stores.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Shared {
    // VMM → guest.
    /// Sequence lock over the six fields after it: odd while they change.
    pub time_seq: u32,
    pub time_shift: u32,
    /// ns = mono_ns + (((rdtsc − tsc_base) × time_mult) >> time_shift), the product in 128 bits.
    pub time_mult: u64,
    pub tsc_base: u64,
    /// Guest-monotonic time at `tsc_base`, ns: counts only while the VM exists, never while it is asleep.
    pub mono_ns: u64,
    /// Wall-clock time at `tsc_base`, ns since 1970.
    pub wall_ns: u64,
    /// Times this memory has been restored from a snapshot; changed before the first entry after it.
    pub restore_count: u64,
    /// Times it has become another database (restored into a new layer); likewise.
    pub clone_count: u64,
    /// Fresh random bytes, written before the first entry after a boot or a restore.
    pub entropy: [u8; 64],
    /// Set to 1 by the VMM whenever a used ring moved or the guest should look up; cleared by the kernel.
    pub event: u32,
    /// Set to 1 by the VMM to ask for a clean shutdown of Postgres (fast mode).
    pub shutdown: u32,

    // Guest → VMM.
    /// Earliest armed timer, guest-monotonic ns; `u64::MAX` for none.
    pub next_deadline_ns: u64,
    /// Guest-monotonic ns when something other than a periodic timer last ran.
    pub last_active_ns: u64,
    /// Processes that are at work, or wait for something other than their client or their own timer. While it
    /// is not 0 the database is in use whatever the clients say.
    pub busy: u32,
    /// 1 while more than one task could run: the VMM then injects [`VECTOR_EVENT`] at every tick.
    pub want_tick: u32,
    /// 1 once Postgres accepts connections.
    pub ready: u32,
    /// 1 if this boot put aside the settings of `ALTER SYSTEM`, with which Postgres did not start.
    pub settings_undone: u32,
    /// Physical address and length in bytes of the page pool's bitmap: bit `i` set means that page
    /// `BootInfo::slots + i * PAGE` is free or holds a cache that a restore forgets: its content does not matter.
    pub free_bitmap: u64,
    pub free_bitmap_len: u64,
    /// Pages of the pool in use, for metering.
    pub pages_used: u64,
    /// Processes alive.
    pub processes: u32,
    /// System calls answered ENOSYS since boot.
    pub unknown_calls: u32,
    /// Times the kernel has seen `event` set and has looked up.
    pub attended: u32,
    /// Places in the table at `tasks`.
    pub tasks_len: u32,
    /// Physical address of an array of the addresses of all [`TaskHead`]s; 0 where there is none. A kernel that sets it
    /// counts `attended` too.
    pub tasks: u64,
    /// Physical address of a second bitmap like that at `free_bitmap`: only pages that are free, so that they can be taken
    /// from the guest while it runs. They must read as zeroes afterwards.
    pub unused_bitmap: u64,
    /// Of the pages in use, those that only cache what the share holds; as of the last halt.
    pub cache_pages: u64,
    /// Bytes in use of the kernel's own heap; as of the last halt.
    pub heap_used: u64,
    /// Set by the VMM to the number of a process, which the kernel then kills (SIGKILL); cleared by the kernel. Only a VMM
    /// built for tests does so.
    pub kill: i32,
    pub reserved2: u32,
}

/// What the kernel knows of a process, where the VMM finds it also when the kernel hangs: [`Shared::tasks`].
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct TaskHead {
    pub pid: i32,
    pub parent: i32,
    /// One of [`task_kind`].
    pub kind: u32,
    /// One of [`task_state`].
    pub state: u32,
    /// Wait status of one that has ended.
    pub status: i32,
    /// 1: blocked in a wait that its client ends.
    pub waits_for_client: u8,
    pub reserved: [u8; 3],
    /// Stack pointer of one that does not run: there lie r15, r14, r13, r12, rbx, rbp, and where it goes on.
    pub context: u64,
    /// When a blocked one wants to be woken, guest-monotonic ns; `u64::MAX` for never.
    pub deadline_ns: u64,
    /// When its interval timer is due, likewise.
    pub timer_ns: u64,
    pub timer_interval_ns: u64,
    /// Time it has run, ns.
    pub run_ns: u64,
    /// NUL-padded.
    pub name: [u8; 24],
}

/// `TaskHead::kind`.
pub mod task_kind {
    pub const HOUSEKEEPER: u32 = 0;
    pub const BACKEND: u32 = 1;
    pub const WORKER: u32 = 2;
}

/// `TaskHead::state`.
pub mod task_state {
    pub const RUNNABLE: u32 = 0;
    pub const BLOCKED: u32 = 1;
    pub const ENDED: u32 = 2;
}

/// The vsock port on which the kernel stands for Postgres' unix-domain socket.
pub const POSTGRES_PORT: u32 = 5432;
/// The guest's vsock context id.
pub const GUEST_CID: u64 = 3;
/// The VMM's.
pub const HOST_CID: u64 = 2;
/// The name of the virtio-fs share with the data directory, and where the kernel mounts it.
pub const DATA_MOUNT: &str = "/pgdata";
/// The variable of the first process that names a folder of the host, which the guest then has at the same path: for
/// tests. Its node is [`SHARE_ROOT`]; nodes above are the host's to change too.
pub const SHARE_VARIABLE: &str = "DORMOUSE_SHARE";
/// The first of the nodes that the data directory does not have.
pub const SHARE_ROOT: u64 = 1 << 62;

const _: () = {
    assert!(core::mem::size_of::<KernelHeader>() == 48);
    assert!(core::mem::size_of::<BootInfo>() <= 2 * PAGE as usize);
    assert!(core::mem::size_of::<Shared>() <= PAGE as usize);
    assert!(core::mem::size_of::<TaskHead>() == 88);
    assert!(system::BOOT_INFO + 2 * PAGE <= system::SHARED);
    assert!(system::QUEUES + queue::COUNT as u64 * system::QUEUE_STRIDE <= system::END);
    assert!(RAM_MAX <= SLOT_BASE);
};
