//! The system-call entry: a C function that the guest's C library calls.
//!
//! Every call goes through `dispatch`: it marks the kernel as running, looks at the devices, answers, delivers
//! signals, and lets others run if an event asked for it or the slice is over. Pointers are the caller's own, in the one address space: a
//! bad one faults here, which ends the VM, as a bad pointer in any library would end its program.

mod event;
mod files;
mod net;
pub mod number;
mod process;

use crate::arch;
use crate::errno::{Errno, Result};
use crate::global::Global;
use crate::klog;
use crate::random;
use crate::sched;
use crate::shared::shared;
use crate::signal;
use crate::time;
use crate::{futex, heap, shm};
use alloc::vec::Vec;
use core::cell::RefCell;
use number as nr;

/// Arguments as the C library passed them.
pub type Args = [u64; 6];

/// A NUL-terminated string of the caller's.
pub fn string<'a>(at: u64) -> Result<&'a [u8]> {
    if at == 0 {
        return Err(Errno::EFAULT);
    }
    let mut len = 0;
    // SAFETY: the caller's string, which ends somewhere.
    unsafe {
        while *(at as *const u8).add(len) != 0 {
            len += 1;
            if len > 4096 {
                return Err(Errno::ENAMETOOLONG);
            }
        }
        Ok(core::slice::from_raw_parts(at as *const u8, len))
    }
}

/// A NULL-terminated array of strings, copied.
pub fn strings(at: u64) -> Result<Vec<Vec<u8>>> {
    let mut out = Vec::new();
    let mut slot = at;
    // SAFETY: the caller's array, which ends with a null pointer.
    while slot != 0 && unsafe { *(slot as *const u64) } != 0 {
        // SAFETY: as above.
        out.push(string(unsafe { *(slot as *const u64) })?.to_vec());
        slot += 8;
    }
    Ok(out)
}

pub fn buffer<'a>(at: u64, len: u64) -> Result<&'a [u8]> {
    if len == 0 {
        return Ok(&[]);
    }
    if at == 0 || len > isize::MAX as u64 {
        return Err(Errno::EFAULT);
    }
    // SAFETY: the caller's buffer.
    Ok(unsafe { core::slice::from_raw_parts(at as *const u8, len as usize) })
}

pub fn buffer_mut<'a>(at: u64, len: u64) -> Result<&'a mut [u8]> {
    if len == 0 {
        return Ok(&mut []);
    }
    if at == 0 || len > isize::MAX as u64 {
        return Err(Errno::EFAULT);
    }
    // SAFETY: the caller's buffer, which the kernel is the only one to write during the call.
    Ok(unsafe { core::slice::from_raw_parts_mut(at as *mut u8, len as usize) })
}

/// Reads a value of the caller's, if there is one.
pub fn load<T: Copy>(at: u64) -> Option<T> {
    // SAFETY: the caller's value, of the type its ABI gives it.
    (at != 0).then(|| unsafe { (at as *const T).read_unaligned() })
}

/// Writes a value for the caller, if it wants one.
pub fn store<T>(at: u64, value: T) {
    if at != 0 {
        // SAFETY: as above.
        unsafe { (at as *mut T).write_unaligned(value) };
    }
}

/// `struct timespec` in ns.
pub fn timespec(at: u64) -> Option<Result<u64>> {
    load::<[i64; 2]>(at).map(|[s, ns]| {
        if s < 0 || !(0..1_000_000_000).contains(&ns) {
            return Err(Errno::EINVAL);
        }
        Ok((s as u64).saturating_mul(1_000_000_000).saturating_add(ns as u64))
    })
}

pub fn split_ns(ns: u64) -> [i64; 2] {
    [(ns / 1_000_000_000) as i64, (ns % 1_000_000_000) as i64]
}

/// The entry whose address is in the kernel's header.
#[unsafe(no_mangle)]
extern "C" fn syscall_entry(number: i64, a: u64, b: u64, c: u64, d: u64, e: u64, f: u64) -> i64 {
    // The commonest calls by far touch nothing that needs the rest.
    match number {
        nr::GETTIMEOFDAY => {
            let wall = time::wall_ns();
            store(a, [(wall / 1_000_000_000) as i64, (wall % 1_000_000_000 / 1000) as i64]);
            return 0;
        }
        nr::CLOCK_GETTIME => {
            let (mono, wall) = time::clocks();
            store(b, split_ns(if matches!(a, 0 | 5) { wall } else { mono }));
            return 0;
        }
        _ => {}
    }
    arch::set_in_kernel(true);
    sched::poll();
    let args = [a, b, c, d, e, f];
    let result = loop {
        let result = dispatch(number, &args);
        let interrupted = matches!(result, Err(Errno::ERESTART));
        let restart = signal::deliver();
        match result {
            Err(Errno::ERESTART) if restart => continue,
            Err(Errno::ERESTART) if interrupted => break Err(Errno::EINTR),
            other => break other,
        }
    };
    if arch::take_need_resched() || sched::slice_is_over() {
        sched::attend();
    }
    arch::set_in_kernel(false);
    match result {
        Ok(value) => value as i64,
        Err(errno) => -(errno.0 as i64),
    }
}

fn dispatch(number: i64, args: &Args) -> Result<u64> {
    let [a, b, c, d, ..] = *args;
    if makes_something(number) && heap::scarce() {
        return Err(Errno::ENOMEM);
    }
    match number {
        nr::READ | nr::WRITE | nr::OPEN | nr::CLOSE | nr::STAT | nr::FSTAT | nr::LSTAT | nr::LSEEK | nr::IOCTL
        | nr::PREAD64 | nr::PWRITE64 | nr::READV | nr::WRITEV | nr::ACCESS | nr::DUP | nr::DUP2 | nr::DUP3 | nr::FCNTL
        | nr::FLOCK | nr::FSYNC | nr::FDATASYNC | nr::TRUNCATE | nr::FTRUNCATE | nr::GETCWD | nr::CHDIR | nr::FCHDIR
        | nr::RENAME | nr::MKDIR | nr::RMDIR | nr::CREAT | nr::LINK | nr::UNLINK | nr::SYMLINK | nr::READLINK
        | nr::CHMOD | nr::FCHMOD | nr::CHOWN | nr::FCHOWN | nr::LCHOWN | nr::UMASK | nr::STATFS | nr::FSTATFS
        | nr::SYNC | nr::READAHEAD | nr::GETDENTS64 | nr::FADVISE64 | nr::OPENAT | nr::MKDIRAT | nr::FCHOWNAT
        | nr::NEWFSTATAT | nr::UNLINKAT | nr::RENAMEAT | nr::RENAMEAT2 | nr::LINKAT | nr::SYMLINKAT | nr::READLINKAT
        | nr::FCHMODAT | nr::FACCESSAT | nr::FACCESSAT2 | nr::SYNC_FILE_RANGE | nr::UTIMENSAT | nr::FALLOCATE
        | nr::PREADV | nr::PWRITEV | nr::SYNCFS | nr::PIPE | nr::PIPE2 => files::call(number, args),
        nr::SOCKET | nr::CONNECT | nr::BIND | nr::LISTEN | nr::ACCEPT | nr::ACCEPT4 | nr::GETSOCKNAME | nr::GETPEERNAME
        | nr::SETSOCKOPT | nr::GETSOCKOPT | nr::SENDTO | nr::RECVFROM | nr::SENDMSG | nr::RECVMSG | nr::SHUTDOWN => {
            net::call(number, args)
        }
        nr::EPOLL_CREATE | nr::EPOLL_CREATE1 | nr::EPOLL_CTL | nr::EPOLL_WAIT | nr::EPOLL_PWAIT | nr::POLL
        | nr::PPOLL | nr::SIGNALFD | nr::SIGNALFD4 => event::call(number, args),
        nr::MMAP | nr::MUNMAP | nr::MREMAP | nr::MPROTECT | nr::MADVISE | nr::MSYNC | nr::BRK => process::memory(number, args),
        nr::RT_SIGACTION => {
            let new = load::<signal::Action>(b);
            store(c, signal::action(a as i32, new)?);
            Ok(0)
        }
        nr::RT_SIGPROCMASK => {
            store(c, signal::mask(a as i32, load::<u64>(b))?);
            Ok(0)
        }
        nr::RT_SIGPENDING => {
            store(a, sched::current().signals.pending(u64::MAX));
            Ok(0)
        }
        nr::SIGALTSTACK | nr::SET_ROBUST_LIST | nr::PRCTL | nr::SETRLIMIT | nr::SETPRIORITY | nr::SCHED_SETAFFINITY => Ok(0),
        nr::KILL | nr::TKILL => signal::kill(a as i32, b as i32).map(|()| 0),
        nr::TGKILL => signal::kill(b as i32, c as i32).map(|()| 0),
        nr::SHMGET => shm::get(a as i32, b, c as i32).map(|id| id as u64),
        nr::SHMAT => shm::attach(a as i32, b),
        nr::SHMDT => shm::detach(a).map(|()| 0),
        nr::SHMCTL => shm::control(a as i32, b as i32, c as *mut shm::Status).map(|()| 0),
        nr::FUTEX => futex_call(a, b, c, d),
        nr::GETRANDOM => {
            random::fill(buffer_mut(a, b)?);
            Ok(b)
        }
        nr::TIME => {
            let seconds = time::wall_ns() / 1_000_000_000;
            store(a, seconds);
            Ok(seconds)
        }
        nr::CLOCK_GETRES => {
            store(b, [0i64, 1]);
            Ok(0)
        }
        nr::NANOSLEEP => process::sleep(false, false, a, b),
        nr::CLOCK_NANOSLEEP => process::sleep(b & 1 != 0, matches!(a, 0 | 5), c, d),
        nr::SCHED_YIELD => {
            if sched::others_wait() {
                sched::give_way();
            }
            Ok(0)
        }
        _ => match process::call(number, args) {
            Some(result) => result,
            None => {
                unknown(number);
                Err(Errno::ENOSYS)
            }
        },
    }
}

/// Calls that take memory of the kernel's own for longer than they last.
fn makes_something(number: i64) -> bool {
    matches!(
        number,
        nr::OPEN | nr::OPENAT | nr::CREAT | nr::MKDIR | nr::MKDIRAT | nr::SYMLINK | nr::SYMLINKAT | nr::PIPE | nr::PIPE2
            | nr::SOCKET | nr::ACCEPT | nr::ACCEPT4 | nr::EPOLL_CREATE | nr::EPOLL_CREATE1 | nr::SIGNALFD | nr::SIGNALFD4
            | nr::MMAP | nr::SPAWN
    )
}

fn futex_call(address: u64, operation: u64, value: u64, timeout: u64) -> Result<u64> {
    const PRIVATE: u64 = 128;
    const WALL: u64 = 256;
    let relative = || timespec(timeout).transpose();
    match operation & !(PRIVATE | WALL) {
        0 => futex::wait(address, value as u32, relative()?.map(futex::Timeout::Relative)).map(|()| 0),
        9 => {
            let at = relative()?.map(if operation & WALL != 0 { futex::Timeout::Wall } else { futex::Timeout::Monotonic });
            futex::wait(address, value as u32, at).map(|()| 0)
        }
        1 | 10 => Ok(futex::wake(address, value as usize) as u64),
        _ => Err(Errno::ENOSYS),
    }
}

/// Logs a call that the kernel lacks, once by name.
fn unknown(number: i64) {
    static SEEN: Global<RefCell<Vec<i64>>> = Global::new(RefCell::new(Vec::new()));
    shared().set_unknown_calls(shared().unknown_calls() + 1);
    let mut seen = SEEN.get().borrow_mut();
    if !seen.contains(&number) {
        seen.push(number);
        drop(seen);
        klog!("system call {} ({}) is not implemented", number, nr::name(number));
    }
}
