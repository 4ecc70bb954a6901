//! A thin epoll: descriptors with tokens, and a wait with a nanosecond deadline.
//!
//! Two threads may wait at once; an edge-triggered event goes to one of them. Tokens are never used twice, so an
//! event that was taken before its descriptor closed finds nobody.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// Readable, edge-triggered, with peer hang-up: for streams that take whatever they are given.
pub const INPUT: u32 = (libc::EPOLLIN | libc::EPOLLRDHUP | libc::EPOLLET) as u32;
/// The same, and writable: for streams that have not taken all. A unix stream says it each time its peer has read
/// something: one that is always watched for it wakes a thread for nothing after every answer.
pub const STREAM: u32 = INPUT | libc::EPOLLOUT as u32;
/// Readable, level-triggered: for listeners and counters.
pub const READ: u32 = libc::EPOLLIN as u32;
/// Events taken in one wait.
const BATCH: usize = 32;

/// One event.
#[derive(Clone, Copy, Debug)]
pub struct Event {
    pub token: u64,
    /// `EPOLL…` bits.
    pub ready: u32,
}

impl Event {
    pub fn readable(&self) -> bool {
        self.ready & libc::EPOLLIN as u32 != 0 || self.ending()
    }
    pub fn writable(&self) -> bool {
        self.ready & libc::EPOLLOUT as u32 != 0
    }
    /// The peer will send no more.
    pub fn ending(&self) -> bool {
        self.ready & (libc::EPOLLRDHUP | libc::EPOLLHUP | libc::EPOLLERR) as u32 != 0
    }
    /// Both directions are closed.
    pub fn hung_up(&self) -> bool {
        self.ready & (libc::EPOLLHUP | libc::EPOLLERR) as u32 != 0
    }
}

fn timespec(timeout: Duration) -> libc::timespec {
    libc::timespec {
        tv_sec: timeout.as_secs().min(1 << 30) as libc::time_t,
        tv_nsec: timeout.subsec_nanos().into(),
    }
}

/// An epoll instance.
#[derive(Debug)]
pub struct Reactor(OwnedFd);

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

impl Reactor {
    pub fn new() -> io::Result<Self> {
        // SAFETY: no arguments but a flag; the descriptor is new and owned by nobody else.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(check(libc::epoll_create1(libc::EPOLL_CLOEXEC))?) }))
    }

    /// Watches a descriptor until it is closed.
    pub fn add(&self, descriptor: impl AsFd, token: u64, interest: u32) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, descriptor, token, interest)
    }

    /// Watches a descriptor for something else from now on. What is so already is told once more.
    pub fn change(&self, descriptor: impl AsFd, token: u64, interest: u32) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, descriptor, token, interest)
    }

    fn control(&self, how: libc::c_int, descriptor: impl AsFd, token: u64, interest: u32) -> io::Result<()> {
        let mut event = libc::epoll_event { events: interest, u64: token };
        // SAFETY: both descriptors are open; the event outlives the call.
        check(unsafe { libc::epoll_ctl(self.0.as_raw_fd(), how, descriptor.as_fd().as_raw_fd(), &mut event) })?;
        Ok(())
    }

    /// Waits for events; returns how many of `events` were filled. `None` waits without end.
    pub fn wait(&self, events: &mut Events, timeout: Option<Duration>) -> io::Result<()> {
        let limit = timeout.map(timespec);
        let limit = limit.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        // SAFETY: the buffer has room for BATCH events; the time-out, if any, outlives the call.
        let count = unsafe {
            libc::syscall(
                libc::SYS_epoll_pwait2,
                self.0.as_raw_fd(),
                events.0.as_mut_ptr(),
                BATCH,
                limit,
                std::ptr::null::<libc::sigset_t>(),
                0usize,
            )
        };
        events.1 = 0;
        if count < 0 {
            let error = io::Error::last_os_error();
            return if error.kind() == io::ErrorKind::Interrupted { Ok(()) } else { Err(error) };
        }
        events.1 = count as usize;
        Ok(())
    }
}

/// Room for the events of one wait.
pub struct Events([libc::epoll_event; BATCH], usize);

impl Default for Events {
    fn default() -> Self {
        Self([libc::epoll_event { events: 0, u64: 0 }; BATCH], 0)
    }
}

impl Events {
    /// The events of the last wait.
    pub fn iter(&self) -> impl Iterator<Item = Event> + '_ {
        self.0[..self.1].iter().map(|event| Event { token: event.u64, ready: event.events })
    }
}

/// An event counter: wakes whoever waits on the reactor.
#[derive(Debug)]
pub struct Waker(OwnedFd);

impl Waker {
    pub fn new() -> io::Result<Self> {
        // SAFETY: no arguments but flags; the descriptor is new and owned by nobody else.
        let descriptor = check(unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) })?;
        // SAFETY: as above.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(descriptor) }))
    }

    /// Wakes. Never fails in a way that matters: a full counter is a wake already.
    pub fn wake(&self) {
        let one = 1u64;
        // SAFETY: eight bytes from a u64.
        unsafe { libc::write(self.0.as_raw_fd(), (&raw const one).cast(), 8) };
    }

    /// Waits for a wake, without taking it; false if none came in that time.
    pub fn wait(&self, timeout: Duration) -> bool {
        let mut wanted = libc::pollfd { fd: self.0.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let limit = timespec(timeout);
        // SAFETY: one descriptor, and a time-out that outlives the call; the signal mask stays as it is.
        unsafe { libc::ppoll(&raw mut wanted, 1, &raw const limit, std::ptr::null()) > 0 }
    }

    /// Takes all wakes so far.
    pub fn clear(&self) {
        let mut count = 0u64;
        // SAFETY: eight bytes into a u64.
        unsafe { libc::read(self.0.as_raw_fd(), (&raw mut count).cast(), 8) };
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Leaves SIGTERM to other threads, and to whoever waits for it: as the set of just that signal.
pub fn block_termination() -> io::Result<libc::sigset_t> {
    // SAFETY: the set is initialised by sigemptyset before it is used; the calls only change this thread's mask.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGTERM);
        check(libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()))?;
        Ok(set)
    }
}

/// SIGTERM, as something to wait for. SIGINT and SIGHUP are ignored: they go to whole groups of processes, and a
/// database outlives the terminal and the server that it was started from.
#[derive(Debug)]
pub struct Terminate(OwnedFd);

impl Terminate {
    /// Called before other threads are made, which inherit the mask.
    pub fn new() -> io::Result<Self> {
        // SAFETY: the set is initialised by sigemptyset before it is used; the calls only change this process' own
        // signal dispositions; the descriptor is new and owned by nobody else.
        unsafe {
            let set = block_termination()?;
            libc::signal(libc::SIGINT, libc::SIG_IGN);
            libc::signal(libc::SIGHUP, libc::SIG_IGN);
            let descriptor = check(libc::signalfd(-1, &set, libc::SFD_NONBLOCK | libc::SFD_CLOEXEC))?;
            Ok(Self(OwnedFd::from_raw_fd(descriptor)))
        }
    }

    /// Takes one signal; false if another thread has.
    pub fn take(&self) -> bool {
        let mut info = std::mem::MaybeUninit::<libc::signalfd_siginfo>::uninit();
        let len = size_of::<libc::signalfd_siginfo>();
        // SAFETY: as many bytes as the structure has.
        unsafe { libc::read(self.0.as_raw_fd(), info.as_mut_ptr().cast(), len) == len as isize }
    }
}

impl AsFd for Terminate {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}
