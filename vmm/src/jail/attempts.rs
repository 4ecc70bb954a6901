//! What a process that has been taken over would try, for tests only: each is to be refused.

use std::io;

/// Tries it; the system call's result.
pub fn attempt(what: &str) -> Result<i64, String> {
    if let Some(path) = what.strip_prefix("open ") {
        return std::fs::File::open(path).map(|_| 0).map_err(|error| error.to_string());
    }
    if let Some((from, to)) = what.strip_prefix("move ").and_then(|paths| paths.split_once(' ')) {
        return std::fs::rename(from, to).map(|()| 0).map_err(|error| error.to_string());
    }
    if let Some(path) = what.strip_prefix("write ") {
        return std::fs::write(path, "x").map(|()| 0).map_err(|error| error.to_string());
    }
    let nothing = std::ptr::null::<libc::c_void>();
    // SAFETY: paths are NUL-terminated, other pointers null; what a call would do where it is not refused, the test that asks
    // for it wants to see.
    let result = unsafe {
        match what {
            "execve" => libc::syscall(libc::SYS_execve, c"/bin/true".as_ptr(), nothing, nothing),
            "fork" => libc::syscall(libc::SYS_clone, libc::SIGCHLD, nothing, nothing, nothing, nothing),
            "internet" => libc::syscall(libc::SYS_socket, libc::AF_INET, libc::SOCK_STREAM, 0),
            "socket" => libc::syscall(libc::SYS_socket, libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0),
            "listen" => libc::syscall(libc::SYS_listen, 0, 0),
            "connect" => libc::syscall(libc::SYS_connect, 0, nothing, 0),
            "kill" => libc::syscall(libc::SYS_kill, 1, 0),
            "ptrace" => libc::syscall(libc::SYS_ptrace, libc::PTRACE_ATTACH, 1, nothing, nothing),
            "unshare" => libc::syscall(libc::SYS_unshare, libc::CLONE_NEWUSER),
            "executable" => libc::syscall(libc::SYS_mmap, nothing, 4096, libc::PROT_READ | libc::PROT_EXEC, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0),
            "handler" => libc::syscall(libc::SYS_rt_sigaction, libc::SIGSYS, nothing, nothing, 8),
            "moved over" => libc::syscall(libc::SYS_mremap, nothing, 4096, 4096, libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED, 4096),
            "io_uring" => libc::syscall(libc::SYS_io_uring_setup, 1, nothing),
            "other ioctl" => libc::syscall(libc::SYS_ioctl, 0, libc::TIOCSTI, nothing),
            "x32" => libc::syscall(0x4000_0000 + libc::SYS_getpid),
            "nothing" => libc::syscall(libc::SYS_getpid),
            other => return Err(format!("{other:?} is not something to attempt")),
        }
    };
    if result < 0 { Err(io::Error::last_os_error().to_string()) } else { Ok(result) }
}
