//! The table: which thread may make which system call, with which arguments.
//!
//! The main thread, which runs the guest, may make them all; a thread that it makes has its filter too, so a row can only
//! name others that may. Whatever is not here is refused, above all: `execve`, `ptrace`, `process_vm_*`, `socket`, `connect`, `mount`
//! and its kin, `unshare`, `setns`, `bpf`, `keyctl`, `io_uring_*`, `userfaultfd`, `perf_event_open`, `memfd_create`.

use std::ffi::c_long;

/// A kind of thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ThreadKind {
    /// Runs the guest, and serves its files.
    Main,
    /// Moves bytes between sockets and the guest.
    Io,
    /// Carries out flushes.
    Flush,
    /// Marks a snapshot as spent.
    Spend,
}

use ThreadKind::{Flush, Io, Main, Spend};

impl ThreadKind {
    pub const ALL: [ThreadKind; 4] = [Main, Io, Flush, Spend];

    pub fn name(self) -> &'static str {
        match self {
            Main => "main",
            Io => "io",
            Flush => "flush",
            Spend => "spend",
        }
    }
}

/// What is asked of a call's arguments; the first is number 0.
#[derive(Clone, Copy, Debug)]
pub enum Check {
    Any,
    /// The argument, an `int`, is one of these.
    OneOf(u8, &'static [u32]),
    /// Each of these arguments, an `int`, is what stands beside it.
    All(&'static [(u8, u32)]),
    /// Of the argument's bits in the mask, just these are set.
    Bits(u8, u64, u64),
    /// The argument, an `int`, is not this.
    Not(u8, u32),
    /// The argument is this process' number.
    Own(u8),
}

use Check::{All, Any, Bits, Not, OneOf, Own};

/// One line of the table: a call, who may make it beside the main thread, and how.
pub type Row = (c_long, &'static [ThreadKind], Check);

const ALL: &[ThreadKind] = &[Io, Flush, Spend];
const IO: &[ThreadKind] = &[Io];
const SPEND: &[ThreadKind] = &[Spend];
const NONE: &[ThreadKind] = &[];
/// Who reads files by name: the I/O thread the guest's symbols.
const FILES: &[ThreadKind] = &[Io, Spend];

/// No page is ever made executable that was not so when the program was loaded.
const NOT_EXECUTABLE: Check = Bits(2, libc::PROT_EXEC as u64, 0);
/// Nor does one come to lie where another was, such as the handler of refused calls.
const NOT_FIXED: Check = Bits(3, libc::MREMAP_FIXED as u64, 0);
/// The handler of refused calls stays.
const NOT_OF_REFUSALS: Check = Not(0, libc::SIGSYS as u32);
/// Signals of this process to itself: the vCPU thread is taken out of the guest by one, and an abort is one.
const ITSELF: Check = Own(0);
/// A thread of this process; nothing that makes a process or a namespace.
const A_THREAD: Check = Bits(0, (libc::CLONE_THREAD | libc::CLONE_VM | libc::CLONE_VFORK | NAMESPACES) as u64, THREAD as u64);
const THREAD: i32 = libc::CLONE_THREAD | libc::CLONE_VM;
const NAMESPACES: i32 = libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET;
const NAMES: Check =
    OneOf(0, &[libc::PR_SET_NAME as u32, libc::PR_GET_NAME as u32, libc::PR_SET_NO_NEW_PRIVS as u32]);
const DESCRIPTORS: Check = OneOf(
    1,
    &[libc::F_DUPFD_CLOEXEC as u32, libc::F_GETFD as u32, libc::F_SETFD as u32, libc::F_GETFL as u32, libc::F_SETFL as u32],
);

/// Of the I/O thread.
const SOCKETS: Check = OneOf(1, &[libc::FIONBIO as u32]);
/// Of the main thread: `FIONBIO`, and of KVM's calls those in use. The most frequent ones first.
const MACHINE: Check = OneOf(
    1,
    &[
        0xae80, // KVM_RUN
        0x4004_ae86, // KVM_INTERRUPT
        libc::FIONBIO as u32,
        0x4040_ae79, // KVM_IOEVENTFD
        // The vCPU's state.
        0x8090_ae81, // KVM_GET_REGS
        0x4090_ae82, // KVM_SET_REGS
        0x8138_ae83, // KVM_GET_SREGS
        0x4138_ae84, // KVM_SET_SREGS
        0x9000_aea4, // KVM_GET_XSAVE
        0x5000_aea5, // KVM_SET_XSAVE
        0x8188_aea6, // KVM_GET_XCRS
        0x4188_aea7, // KVM_SET_XCRS
        0x8040_ae9f, // KVM_GET_VCPU_EVENTS
        0x4040_aea0, // KVM_SET_VCPU_EVENTS
        // Its clock, which is the host's also where the host has slept since; older kernels have it as a register.
        0x4018_aee1, // KVM_SET_DEVICE_ATTR
        0x4018_aee3, // KVM_HAS_DEVICE_ATTR
        0xc008_ae88, // KVM_GET_MSRS
        0x4008_ae89, // KVM_SET_MSRS
        // A machine made anew for a snapshot of another golden memory.
        0xae00, // KVM_GET_API_VERSION
        0xae01, // KVM_CREATE_VM
        0xae03, // KVM_CHECK_EXTENSION
        0xae04, // KVM_GET_VCPU_MMAP_SIZE
        0xc008_ae05, // KVM_GET_SUPPORTED_CPUID
        0xae41, // KVM_CREATE_VCPU
        0x4020_ae46, // KVM_SET_USER_MEMORY_REGION
        0x4008_ae90, // KVM_SET_CPUID2
        0xaea3, // KVM_GET_TSC_KHZ
    ],
);

/// Who may call what.
pub const TABLE: &[Row] = &[
    // Memory.
    (libc::SYS_mmap, ALL, NOT_EXECUTABLE),
    (libc::SYS_mprotect, ALL, NOT_EXECUTABLE),
    (libc::SYS_munmap, ALL, Any),
    (libc::SYS_mremap, ALL, NOT_FIXED),
    (libc::SYS_madvise, ALL, Any),
    (libc::SYS_mincore, NONE, Any),
    (libc::SYS_brk, ALL, Any),
    // Threads, and waiting.
    (libc::SYS_clone, NONE, A_THREAD),
    (libc::SYS_clone3, NONE, Any), // Told not to exist, see the filter.
    (libc::SYS_exit, ALL, Any),
    (libc::SYS_exit_group, ALL, Any),
    (libc::SYS_futex, ALL, Any),
    (libc::SYS_set_robust_list, ALL, Any),
    (libc::SYS_rseq, ALL, Any),
    (libc::SYS_sigaltstack, ALL, Any),
    (libc::SYS_sched_getaffinity, ALL, Any),
    (libc::SYS_sched_setscheduler, SPEND, All(&[(0, 0), (1, libc::SCHED_BATCH as u32)])),
    (libc::SYS_sched_yield, ALL, Any),
    (libc::SYS_getpid, ALL, Any),
    (libc::SYS_gettid, ALL, Any),
    (libc::SYS_clock_gettime, ALL, Any),
    (libc::SYS_clock_nanosleep, ALL, Any),
    (libc::SYS_nanosleep, ALL, Any),
    (libc::SYS_restart_syscall, ALL, Any),
    (libc::SYS_ppoll, IO, Any),
    (libc::SYS_poll, IO, Any),
    (libc::SYS_epoll_create1, NONE, Any),
    (libc::SYS_epoll_ctl, IO, Any),
    (libc::SYS_epoll_pwait2, IO, Any),
    (libc::SYS_eventfd2, NONE, Any),
    (libc::SYS_signalfd4, NONE, Any),
    // The profile's.
    (libc::SYS_timer_create, IO, Any),
    (libc::SYS_timer_settime, IO, Any),
    (libc::SYS_timer_delete, IO, Any),
    // Signals.
    (libc::SYS_rt_sigaction, ALL, NOT_OF_REFUSALS),
    (libc::SYS_rt_sigprocmask, ALL, Any),
    (libc::SYS_rt_sigreturn, ALL, Any),
    (libc::SYS_tgkill, ALL, ITSELF),
    (libc::SYS_kill, ALL, ITSELF),
    // Of itself.
    (libc::SYS_prctl, ALL, NAMES),
    // Only ever takes away: a thread's own filter.
    (libc::SYS_seccomp, ALL, OneOf(0, &[libc::SECCOMP_SET_MODE_FILTER])),
    // Likewise.
    (libc::SYS_landlock_add_rule, NONE, Any),
    (libc::SYS_landlock_restrict_self, &[Io, Spend], Any),
    (libc::SYS_getrandom, ALL, Any),
    (libc::SYS_uname, ALL, Any),
    (libc::SYS_getcwd, ALL, Any),
    // The machine.
    (libc::SYS_ioctl, NONE, MACHINE),
    (libc::SYS_ioctl, IO, SOCKETS),
    // Sockets: what those accept that were made before. None is made, and none is connected.
    (libc::SYS_accept4, IO, Any),
    (libc::SYS_recvfrom, IO, Any),
    (libc::SYS_sendto, IO, Any),
    (libc::SYS_sendmsg, IO, Any),
    (libc::SYS_recvmsg, NONE, Any),
    (libc::SYS_shutdown, IO, Any),
    // Descriptors.
    (libc::SYS_close, ALL, Any),
    (libc::SYS_fcntl, ALL, DESCRIPTORS),
    (libc::SYS_dup2, NONE, OneOf(1, &[libc::STDOUT_FILENO as u32, libc::STDERR_FILENO as u32])),
    (libc::SYS_read, ALL, Any),
    (libc::SYS_readv, IO, Any),
    (libc::SYS_pread64, IO, Any),
    (libc::SYS_preadv, NONE, Any),
    (libc::SYS_write, ALL, Any),
    (libc::SYS_writev, ALL, Any),
    (libc::SYS_pwrite64, NONE, Any),
    (libc::SYS_pwritev, NONE, Any),
    (libc::SYS_lseek, FILES, Any),
    (libc::SYS_fsync, &[Flush, Spend], Any),
    (libc::SYS_fdatasync, &[Flush, Spend], Any),
    (libc::SYS_sync_file_range, NONE, All(&[(3, libc::SYNC_FILE_RANGE_WRITE)])),
    (libc::SYS_ftruncate, NONE, Any),
    (libc::SYS_fallocate, NONE, Any),
    (libc::SYS_flock, NONE, Any),
    (libc::SYS_getdents64, SPEND, Any),
    (libc::SYS_fstat, FILES, Any),
    (libc::SYS_fstatfs, NONE, Any),
    // Names.
    (libc::SYS_fchdir, NONE, Any),
    (libc::SYS_openat, FILES, Any),
    (libc::SYS_openat2, NONE, Any),
    (libc::SYS_statx, FILES, Any),
    (libc::SYS_newfstatat, FILES, Any),
    (libc::SYS_readlink, FILES, Any),
    (libc::SYS_readlinkat, NONE, Any),
    (libc::SYS_mkdir, NONE, Any),
    (libc::SYS_mkdirat, NONE, Any),
    (libc::SYS_rename, SPEND, Any),
    (libc::SYS_renameat, NONE, Any),
    (libc::SYS_renameat2, NONE, Any),
    (libc::SYS_unlink, SPEND, Any),
    (libc::SYS_unlinkat, NONE, Any),
];
