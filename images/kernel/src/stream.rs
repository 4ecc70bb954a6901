//! A stream between two processes of the guest: what `connect` to Postgres' own socket gives. So a subscription, dblink
//! or postgres_fdw reaches this very server.
//!
//! Two ends of one pair; each holds the bytes that came for it.

use crate::errno::{Errno, Result};
use crate::file::{File, Stat, ready};
use crate::received::Received;
use crate::wait::{Outcome, WaitQueue};
use alloc::rc::Rc;
use core::any::Any;
use core::cell::Cell;

/// Bytes under way to one end.
const CAPACITY: usize = 64 << 10;

#[derive(Default)]
struct End {
    /// What came for this end and was not yet read.
    received: Received,
    /// No more will come.
    ended: Cell<bool>,
    /// This end takes no more.
    deaf: Cell<bool>,
    waiters: WaitQueue,
}

pub struct Stream {
    ends: Rc<[End; 2]>,
    /// Which of the two ends this is.
    side: usize,
}

/// The two ends of a new stream.
pub fn pair() -> (Rc<Stream>, Rc<Stream>) {
    let ends = Rc::new([End::default(), End::default()]);
    (Rc::new(Stream { ends: ends.clone(), side: 0 }), Rc::new(Stream { ends, side: 1 }))
}

impl Stream {
    fn own(&self) -> &End {
        &self.ends[self.side]
    }

    fn peer(&self) -> &End {
        &self.ends[1 - self.side]
    }

    pub fn shutdown(&self, receive: bool, send: bool) {
        if receive {
            self.own().deaf.set(true);
            self.own().ended.set(true);
        }
        if send {
            self.peer().ended.set(true);
        }
        self.own().waiters.wake();
        self.peer().waiters.wake();
    }

    fn copy_out(&self, buf: &mut [u8], keep: bool) -> usize {
        let len = self.own().received.copy_out(buf, keep);
        if !keep {
            self.peer().waiters.wake();
        }
        len
    }

    /// Reads without taking the bytes (`MSG_PEEK`).
    pub fn peek(&self, buf: &mut [u8]) -> Result<usize> {
        if self.own().received.is_empty() && !self.own().ended.get() {
            return Err(Errno::EAGAIN);
        }
        Ok(self.copy_out(buf, true))
    }
}

impl File for Stream {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn stat(&self) -> Result<Stat> {
        Ok(Stat { ino: 6, mode: 0o140777, nlink: 1, dev: 2, ..Stat::default() })
    }

    fn read(&self, buf: &mut [u8], nonblock: bool) -> Result<usize> {
        loop {
            if !self.own().received.is_empty() || buf.is_empty() {
                return Ok(self.copy_out(buf, false));
            }
            if self.own().ended.get() {
                return Ok(0);
            }
            if nonblock {
                return Err(Errno::EAGAIN);
            }
            if self.own().waiters.wait(None) == Outcome::Interrupted {
                return Err(Errno::ERESTART);
            }
        }
    }

    fn write(&self, buf: &[u8], nonblock: bool) -> Result<usize> {
        loop {
            if self.peer().deaf.get() || self.peer().ended.get() {
                return Err(Errno::EPIPE);
            }
            let room = CAPACITY - self.peer().received.len();
            if room > 0 || buf.is_empty() {
                let len = buf.len().min(room);
                self.peer().received.push(&buf[..len]);
                self.peer().waiters.wake();
                return Ok(len);
            }
            if nonblock {
                return Err(Errno::EAGAIN);
            }
            if self.own().waiters.wait(None) == Outcome::Interrupted {
                return Err(Errno::ERESTART);
            }
        }
    }

    fn poll(&self) -> u32 {
        let (own, peer) = (self.own(), self.peer());
        let mut mask = 0;
        if !own.received.is_empty() || own.ended.get() {
            mask |= ready::IN;
        }
        if own.ended.get() {
            mask |= ready::RDHUP;
        }
        if peer.received.len() < CAPACITY || peer.deaf.get() {
            mask |= ready::OUT;
        }
        if own.ended.get() && peer.deaf.get() {
            mask |= ready::HUP;
        }
        mask
    }

    fn waiters(&self) -> Option<&WaitQueue> {
        Some(&self.own().waiters)
    }

    fn close(&self) {
        self.shutdown(true, true);
        self.own().received.clear();
    }
}
