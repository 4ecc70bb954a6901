//! `epoll` and `poll`: level-triggered waiting on several files.

use crate::errno::{Errno, Result};
use crate::file::{File, Stat, ready};
use crate::sched;
use crate::table::OpenFile;
use crate::stream::Stream;
use crate::vsock::Connection;
use crate::wait::Outcome;
use alloc::rc::{Rc, Weak};
use alloc::vec::Vec;
use core::any::Any;
use core::cell::RefCell;

const ADD: i32 = 1;
const DELETE: i32 = 2;
const MODIFY: i32 = 3;

/// `struct epoll_event`, packed on x86-64.
#[repr(C, packed)]
#[derive(Clone, Copy)]
pub struct Event {
    pub events: u32,
    pub data: u64,
}

struct Interest {
    fd: i32,
    open: Weak<OpenFile>,
    events: u32,
    data: u64,
}

#[derive(Default)]
pub struct Epoll {
    interests: RefCell<Vec<Interest>>,
}

impl Epoll {
    pub fn control(&self, operation: i32, fd: i32, open: &Rc<OpenFile>, event: Option<Event>) -> Result<()> {
        let mut interests = self.interests.borrow_mut();
        // A descriptor that was closed took its interest with it.
        interests.retain(|interest| interest.open.strong_count() > 0);
        let at = interests.iter().position(|i| i.fd == fd && i.open.as_ptr() == Rc::as_ptr(open));
        match (operation, at, event) {
            (ADD, None, Some(event)) => {
                interests.push(Interest { fd, open: Rc::downgrade(open), events: event.events, data: event.data });
                Ok(())
            }
            (ADD, Some(_), _) => Err(Errno::EEXIST),
            (DELETE, Some(at), _) => {
                interests.remove(at);
                Ok(())
            }
            (MODIFY, Some(at), Some(event)) => {
                interests[at].events = event.events;
                interests[at].data = event.data;
                Ok(())
            }
            (DELETE | MODIFY, None, _) => Err(Errno::ENOENT),
            _ => Err(Errno::EINVAL),
        }
    }

    /// What is ready of the interests, at most `limit`.
    fn collect(&self, limit: usize, out: &mut Vec<Event>) {
        for interest in self.interests.borrow().iter() {
            let Some(open) = interest.open.upgrade() else { continue };
            let events = open.file.poll() & (interest.events | ready::ERR | ready::HUP);
            if events != 0 && out.len() < limit {
                out.push(Event { events, data: interest.data });
            }
        }
    }

    /// Waits until something is ready or `deadline` (guest-monotonic ns) passes; nothing then.
    pub fn wait(&self, limit: usize, deadline: Option<u64>) -> Result<Vec<Event>> {
        let mut events = Vec::new();
        self.collect(limit, &mut events);
        if !events.is_empty() || deadline.is_some_and(|deadline| deadline == 0) {
            return Ok(events);
        }
        let files: Vec<Rc<OpenFile>> = self.interests.borrow().iter().filter_map(|i| i.open.upgrade()).collect();
        let client = |interest: &Interest| {
            interest.events & ready::IN != 0
                && interest.open.upgrade().is_some_and(|open| from_client(&open))
        };
        let for_client = self.interests.borrow().iter().any(client);
        wait_on(&files, for_client, deadline, || {
            self.collect(limit, &mut events);
            !events.is_empty()
        })?;
        Ok(events)
    }
}

/// Whether it is a connection that this process serves.
fn from_client(open: &OpenFile) -> bool {
    let file = open.file.as_any();
    file.is::<Connection>() || file.is::<Stream>()
}

/// Blocks in the queues of all `files` until `done`, a signal, or the deadline.
fn wait_on(files: &[Rc<OpenFile>], for_client: bool, deadline: Option<u64>, mut done: impl FnMut() -> bool) -> Result<()> {
    let me = sched::current();
    let queues = || files.iter().filter_map(|open| open.file.waiters());
    queues().for_each(|queue| queue.join());
    me.waits_for_client.set(for_client);
    let outcome = loop {
        let outcome = sched::block(deadline);
        if done() {
            break Ok(());
        }
        match outcome {
            Outcome::Woken => continue,
            Outcome::TimedOut => break Ok(()),
            Outcome::Interrupted => break Err(Errno::EINTR),
        }
    };
    me.waits_for_client.set(false);
    queues().for_each(|queue| queue.leave());
    outcome
}

impl File for Epoll {
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn stat(&self) -> Result<Stat> {
        Ok(Stat { ino: 5, mode: 0o600, nlink: 1, dev: 2, ..Stat::default() })
    }
    fn poll(&self) -> u32 {
        let mut events = Vec::new();
        self.collect(1, &mut events);
        if events.is_empty() { 0 } else { ready::IN }
    }
}

/// `struct pollfd`.
#[repr(C)]
pub struct PollFd {
    pub fd: i32,
    pub events: i16,
    pub revents: i16,
}

/// `poll`: how many entries are ready.
pub fn poll(fds: &mut [PollFd], deadline: Option<u64>) -> Result<usize> {
    const POLLNVAL: i16 = 0x20;
    let me = sched::current();
    let opens: Vec<Option<Rc<OpenFile>>> = fds.iter().map(|entry| me.files.borrow().get(entry.fd).ok()).collect();
    let ready_now = |fds: &mut [PollFd]| {
        let mut count = 0;
        for (entry, open) in fds.iter_mut().zip(&opens) {
            entry.revents = match open {
                _ if entry.fd < 0 => 0,
                None => POLLNVAL,
                Some(open) => (open.file.poll() & (entry.events as u16 as u32 | ready::ERR | ready::HUP)) as i16,
            };
            count += (entry.revents != 0) as usize;
        }
        count
    };
    let mut count = ready_now(fds);
    if count > 0 || deadline == Some(0) {
        return Ok(count);
    }
    let files: Vec<Rc<OpenFile>> = opens.iter().flatten().cloned().collect();
    let for_client = files.iter().any(|open| from_client(open));
    wait_on(&files, for_client, deadline, || {
        count = ready_now(fds);
        count > 0
    })?;
    Ok(count)
}
