//! What a process may do by being who it is: given up for good.

use std::io;

/// `_LINUX_CAPABILITY_VERSION_3`.
const VERSION: u32 = 0x2008_0522;

#[repr(C)]
struct Header {
    version: u32,
    pid: libc::c_int,
}

/// Effective, permitted and inheritable capabilities, the lower 32 of them and the upper.
type Sets = [[u32; 3]; 2];

fn check(result: libc::c_long) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Does something as one who has no capability, and takes them up again.
pub fn without<R>(what: impl FnOnce() -> R) -> io::Result<R> {
    let header = Header { version: VERSION, pid: 0 };
    let mut sets: Sets = Default::default();
    // SAFETY: both structures are the kernel's and outlive the call.
    check(unsafe { libc::syscall(libc::SYS_capget, &raw const header, &raw mut sets) })?;
    let set = |sets: Sets| {
        // SAFETY: as above.
        check(unsafe { libc::syscall(libc::SYS_capset, &raw const header, &raw const sets) })
    };
    set(sets.map(|[_, permitted, inheritable]| [0, permitted, inheritable]))?;
    let done = what();
    set(sets)?;
    Ok(done)
}

/// Threads of a VMM are eight at most, KVM's own among them.
const PROCESSES: libc::rlim_t = 64;

fn limit(resource: libc::__rlimit_resource_t, most: libc::rlim_t) -> io::Result<()> {
    let limit = libc::rlimit { rlim_cur: most, rlim_max: most };
    // SAFETY: the structure outlives the call.
    check(unsafe { libc::setrlimit(resource, &limit) }.into())
}

/// Becomes a user that nobody else is, in no group but its own.
fn become_user(user: u32) -> io::Result<()> {
    // SAFETY: no groups are read; the others take integers.
    unsafe {
        check(libc::setgroups(0, std::ptr::null()).into())?;
        check(libc::setresgid(user, user, user).into())?;
        check(libc::setresuid(user, user, user).into())?;
    }
    limit(libc::RLIMIT_NPROC, PROCESSES)
}

/// Gives up the user, for `user` if there is one; capabilities, privileges by what is executed, being traced by others of the
/// user, and core files, which hold a tenant's data.
pub fn give_up(user: Option<u32>) -> io::Result<()> {
    // Only who has CAP_SETPCAP can; without it no bound is needed, since nothing that could lead up to it is ever executed.
    for capability in 0..64 {
        // SAFETY: takes integers.
        if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) } < 0 {
            break;
        }
    }
    if let Some(user) = user {
        become_user(user)?;
    }
    let none: Sets = Default::default();
    let header = Header { version: VERSION, pid: 0 };
    // SAFETY: takes integers.
    unsafe {
        check(libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0).into())?;
        check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0).into())?;
        check(libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0).into())?;
    }
    // SAFETY: both structures are the kernel's and outlive the call.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw const header, &raw const none) })?;
    limit(libc::RLIMIT_CORE, 0)
}
