//! Unix-domain sockets, as far as Postgres needs them: it listens, the VMM connects, and so may its own processes.
//!
//! The socket that listens stands behind the vsock port; connections that the VMM asks for are accepted there and
//! look like local clients.

use crate::errno::{Errno, Result};
use crate::file::{File, Stat, ready};
use crate::fs;
use crate::global::Global;
use crate::received::Received;
use crate::sched;
use crate::stream::{self, Stream};
use crate::wait::{Outcome, WaitQueue};
use alloc::collections::VecDeque;
use alloc::rc::{Rc, Weak};
use alloc::vec::Vec;
use core::any::Any;
use core::cell::{Cell, OnceCell, RefCell};

static LISTENER: Global<RefCell<Weak<Socket>>> = Global::new(RefCell::new(Weak::new()));

/// Hands a new connection to the listening socket; false when there is none or its backlog is full.
pub fn offer(connection: Rc<dyn File>) -> bool {
    let Some(socket) = LISTENER.get().borrow().upgrade() else { return false };
    let mut backlog = socket.backlog.borrow_mut();
    if backlog.len() >= socket.limit.get() {
        return false;
    }
    backlog.push_back(connection);
    drop(backlog);
    socket.waiters.wake();
    true
}

/// A socket as it was made: perhaps bound, perhaps listening, or connected.
pub struct Socket {
    /// What it is bound to: absolute, or empty.
    path: RefCell<Vec<u8>>,
    limit: Cell<usize>,
    backlog: RefCell<VecDeque<Rc<dyn File>>>,
    waiters: WaitQueue,
    /// What it is once it is connected.
    stream: OnceCell<Rc<Stream>>,
    /// For `listen`, which must hand out a weak reference to itself.
    me: Weak<Socket>,
}

const AF_UNIX: i32 = 1;
const SOCK_STREAM: i32 = 1;

pub fn new(family: i32, kind: i32) -> Result<Rc<Socket>> {
    if family != AF_UNIX {
        return Err(Errno::EAFNOSUPPORT);
    }
    if kind & 0xf != SOCK_STREAM {
        return Err(Errno::EPROTONOSUPPORT);
    }
    Ok(Rc::new_cyclic(|me| Socket {
        path: RefCell::new(Vec::new()),
        limit: Cell::new(0),
        backlog: RefCell::new(VecDeque::new()),
        waiters: WaitQueue::new(),
        stream: OnceCell::new(),
        me: me.clone(),
    }))
}

impl Socket {
    /// Takes a path: an empty file stands for the socket's name.
    pub fn bind(&self, cwd: &[u8], path: &[u8]) -> Result<()> {
        const O_CREAT_EXCL_RDWR: u32 = 0o100 | 0o200 | 0o2;
        match fs::open(cwd, path, O_CREAT_EXCL_RDWR, 0o777) {
            Ok(_) => {
                *self.path.borrow_mut() = fs::normalise(cwd, path);
                Ok(())
            }
            Err(Errno::EEXIST) => Err(Errno::EADDRINUSE),
            Err(error) => Err(error),
        }
    }

    pub fn listen(&self, backlog: i32) -> Result<()> {
        if self.path.borrow().is_empty() {
            return Err(Errno::EDESTADDRREQ);
        }
        self.limit.set((backlog.max(1) as usize).min(4096));
        *LISTENER.get().borrow_mut() = self.me.clone();
        Ok(())
    }

    pub fn accept(&self, nonblock: bool) -> Result<Rc<dyn File>> {
        if self.limit.get() == 0 {
            return Err(Errno::EINVAL);
        }
        loop {
            if let Some(connection) = self.backlog.borrow_mut().pop_front() {
                return Ok(connection);
            }
            if nonblock {
                return Err(Errno::EAGAIN);
            }
            if self.waiters.wait(None) == Outcome::Interrupted {
                return Err(Errno::ERESTART);
            }
        }
    }

    /// Connects to the socket that listens at the path. Done at once: it need not have accepted yet.
    pub fn connect(&self, cwd: &[u8], path: &[u8]) -> Result<()> {
        if self.stream.get().is_some() {
            return Err(Errno::EISCONN);
        }
        fs::stat(cwd, path, true)?;
        let listener = LISTENER.get().borrow().upgrade().ok_or(Errno::ECONNREFUSED)?;
        if *listener.path.borrow() != fs::normalise(cwd, path) {
            return Err(Errno::ECONNREFUSED);
        }
        let (ours, theirs) = stream::pair();
        if !offer(theirs) {
            return Err(Errno::EAGAIN);
        }
        let _ = self.stream.set(ours);
        Ok(())
    }

    /// What it is connected to, if it is.
    pub fn stream(&self) -> Option<&Rc<Stream>> {
        self.stream.get()
    }

    pub fn path(&self) -> Vec<u8> {
        self.path.borrow().clone()
    }
}

impl File for Socket {
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn stat(&self) -> Result<Stat> {
        Ok(Stat { ino: 2, mode: 0o140777, nlink: 1, dev: 2, ..Stat::default() })
    }
    fn poll(&self) -> u32 {
        match self.stream.get() {
            Some(stream) => stream.poll(),
            None if self.backlog.borrow().is_empty() => 0,
            None => ready::IN,
        }
    }
    fn waiters(&self) -> Option<&WaitQueue> {
        self.stream.get().map_or(Some(&self.waiters), |stream| stream.waiters())
    }
    fn read(&self, buf: &mut [u8], nonblock: bool) -> Result<usize> {
        self.stream.get().ok_or(Errno::ENOTCONN)?.read(buf, nonblock)
    }
    fn write(&self, buf: &[u8], nonblock: bool) -> Result<usize> {
        self.stream.get().ok_or(Errno::ENOTCONN)?.write(buf, nonblock)
    }
    fn close(&self) {
        if let Some(stream) = self.stream.get() {
            stream.close();
        }
        for connection in self.backlog.take() {
            connection.close();
        }
    }
}

/// One end of a pipe.
pub struct Pipe {
    shared: Rc<PipeBuffer>,
    writes: bool,
}

#[derive(Default)]
struct PipeBuffer {
    bytes: Received,
    readers: Cell<usize>,
    writers: Cell<usize>,
    waiters: WaitQueue,
}
const PIPE_LEN: usize = 64 << 10;

/// (read end, write end).
pub fn pipe() -> (Rc<Pipe>, Rc<Pipe>) {
    let shared = Rc::new(PipeBuffer::default());
    shared.readers.set(1);
    shared.writers.set(1);
    (Rc::new(Pipe { shared: shared.clone(), writes: false }), Rc::new(Pipe { shared, writes: true }))
}

impl File for Pipe {
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn stat(&self) -> Result<Stat> {
        Ok(Stat { ino: 3, mode: 0o010600, nlink: 1, dev: 2, ..Stat::default() })
    }
    fn read(&self, buf: &mut [u8], nonblock: bool) -> Result<usize> {
        if self.writes {
            return Err(Errno::EBADF);
        }
        loop {
            if !self.shared.bytes.is_empty() {
                let len = self.shared.bytes.copy_out(buf, false);
                self.shared.waiters.wake();
                return Ok(len);
            }
            if self.shared.writers.get() == 0 {
                return Ok(0);
            }
            if nonblock {
                return Err(Errno::EAGAIN);
            }
            if self.shared.waiters.wait(None) == Outcome::Interrupted {
                return Err(Errno::ERESTART);
            }
        }
    }
    fn write(&self, buf: &[u8], nonblock: bool) -> Result<usize> {
        if !self.writes {
            return Err(Errno::EBADF);
        }
        loop {
            if self.shared.readers.get() == 0 {
                return Err(Errno::EPIPE);
            }
            let room = PIPE_LEN - self.shared.bytes.len();
            if room > 0 {
                let len = buf.len().min(room);
                self.shared.bytes.push(&buf[..len]);
                self.shared.waiters.wake();
                return Ok(len);
            }
            if nonblock {
                return Err(Errno::EAGAIN);
            }
            if self.shared.waiters.wait(None) == Outcome::Interrupted {
                return Err(Errno::ERESTART);
            }
        }
    }
    fn poll(&self) -> u32 {
        let len = self.shared.bytes.len();
        if self.writes {
            let room = if len < PIPE_LEN { ready::OUT } else { 0 };
            room | if self.shared.readers.get() == 0 { ready::ERR } else { 0 }
        } else {
            let some = if len > 0 { ready::IN } else { 0 };
            some | if self.shared.writers.get() == 0 { ready::HUP } else { 0 }
        }
    }
    fn waiters(&self) -> Option<&WaitQueue> {
        Some(&self.shared.waiters)
    }
    fn close(&self) {
        let ends = if self.writes { &self.shared.writers } else { &self.shared.readers };
        ends.set(ends.get().saturating_sub(1));
        self.shared.waiters.wake();
    }
}

/// `signalfd`: the signals of `set` that are pending for whoever reads.
pub struct SignalFile {
    pub set: Cell<u64>,
    arrivals: Rc<WaitQueue>,
}

/// `struct signalfd_siginfo`: 128 bytes, of which Postgres reads the first word at most.
const SIGNAL_RECORD: usize = 128;

impl SignalFile {
    pub fn new(set: u64) -> Rc<Self> {
        Rc::new(Self { set: Cell::new(set), arrivals: sched::current().signals.arrivals.clone() })
    }
}

impl File for SignalFile {
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn stat(&self) -> Result<Stat> {
        Ok(Stat { ino: 4, mode: 0o600, nlink: 1, dev: 2, ..Stat::default() })
    }
    fn read(&self, buf: &mut [u8], nonblock: bool) -> Result<usize> {
        if buf.len() < SIGNAL_RECORD {
            return Err(Errno::EINVAL);
        }
        let me = sched::current();
        loop {
            let mut len = 0;
            while len + SIGNAL_RECORD <= buf.len()
                && let Some(signal) = me.signals.take(self.set.get())
            {
                buf[len..len + SIGNAL_RECORD].fill(0);
                buf[len..len + 4].copy_from_slice(&(signal as u32).to_le_bytes());
                len += SIGNAL_RECORD;
            }
            if len > 0 {
                return Ok(len);
            }
            if nonblock {
                return Err(Errno::EAGAIN);
            }
            if self.arrivals.wait(None) == Outcome::Interrupted {
                return Err(Errno::ERESTART);
            }
        }
    }
    fn poll(&self) -> u32 {
        if sched::current().signals.pending(self.set.get()) != 0 { ready::IN } else { 0 }
    }
    fn waiters(&self) -> Option<&WaitQueue> {
        Some(&self.arrivals)
    }
}
