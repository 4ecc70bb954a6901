//! Calls that wait for events.

use super::{Args, buffer_mut, load, number as nr, timespec};
use crate::epoll::{self, Epoll, Event, PollFd};
use crate::errno::{Errno, Result};
use crate::sched;
use crate::signal;
use crate::socket::SignalFile;
use crate::table::{O_CLOEXEC, O_NONBLOCK, OpenFile};
use crate::time;
use alloc::rc::Rc;

fn after_ms(ms: i32) -> Option<u64> {
    match ms {
        0 => Some(0),
        ms if ms < 0 => None,
        ms => Some(time::now() + ms as u64 * 1_000_000),
    }
}

/// Runs `f` with the signal mask that `*pwait` was given.
fn with_mask<T>(mask: Option<u64>, f: impl FnOnce() -> Result<T>) -> Result<T> {
    let Some(mask) = mask else { return f() };
    let old = signal::mask(2, Some(mask))?;
    let result = f();
    signal::mask(2, Some(old))?;
    result
}

fn epoll_wait(args: &Args, mask: Option<u64>) -> Result<u64> {
    let [epfd, events, limit, timeout, ..] = *args;
    if limit as i32 <= 0 {
        return Err(Errno::EINVAL);
    }
    let file = crate::task::file(epfd as i32)?;
    let epoll = file.as_any().downcast_ref::<Epoll>().ok_or(Errno::EINVAL)?;
    let found = with_mask(mask, || epoll.wait(limit as usize, after_ms(timeout as i32)))?;
    for (i, event) in found.iter().enumerate() {
        // SAFETY: the caller's array of `limit` events.
        unsafe { (events as *mut Event).add(i).write_unaligned(*event) };
    }
    Ok(found.len() as u64)
}

fn poll(fds: u64, count: u64, deadline: Option<u64>) -> Result<u64> {
    buffer_mut(fds, count * size_of::<PollFd>() as u64)?;
    // SAFETY: the caller's array, checked not to be null when it is not empty.
    let fds = if count == 0 { &mut [] } else { unsafe { core::slice::from_raw_parts_mut(fds as *mut PollFd, count as usize) } };
    epoll::poll(fds, deadline).map(|n| n as u64)
}

pub fn call(number: i64, args: &Args) -> Result<u64> {
    let [a, b, c, d, e, _] = *args;
    let me = sched::current();
    match number {
        nr::EPOLL_CREATE | nr::EPOLL_CREATE1 => {
            let close_on_exec = number == nr::EPOLL_CREATE1 && a as u32 & O_CLOEXEC != 0;
            let open = OpenFile::new(Rc::new(Epoll::default()), 2);
            me.files.borrow_mut().insert(open, close_on_exec, 0).map(|fd| fd as u64)
        }
        nr::EPOLL_CTL => {
            let file = crate::task::file(a as i32)?;
            let epoll = file.as_any().downcast_ref::<Epoll>().ok_or(Errno::EINVAL)?;
            let target = me.files.borrow().get(c as i32)?;
            epoll.control(b as i32, c as i32, &target, load::<Event>(d)).map(|()| 0)
        }
        nr::EPOLL_WAIT => {
            drop(me);
            epoll_wait(args, None)
        }
        nr::EPOLL_PWAIT => {
            drop(me);
            epoll_wait(args, load::<u64>(e))
        }
        nr::POLL => {
            drop(me);
            poll(a, b, after_ms(c as i32))
        }
        nr::PPOLL => {
            drop(me);
            let deadline = timespec(c).transpose()?.map(|ns| if ns == 0 { 0 } else { time::now() + ns });
            with_mask(load::<u64>(d), || poll(a, b, deadline))
        }
        nr::SIGNALFD | nr::SIGNALFD4 => {
            let set = load::<u64>(b).ok_or(Errno::EFAULT)?;
            if a as i32 >= 0 {
                let file = crate::task::file(a as i32)?;
                file.as_any().downcast_ref::<SignalFile>().ok_or(Errno::EINVAL)?.set.set(set);
                return Ok(a);
            }
            let flags = if number == nr::SIGNALFD4 { d as u32 } else { 0 };
            let open = OpenFile::new(SignalFile::new(set), 2 | flags & O_NONBLOCK);
            me.files.borrow_mut().insert(open, flags & O_CLOEXEC != 0, 0).map(|fd| fd as u64)
        }
        _ => Err(Errno::ENOSYS),
    }
}
