//! The console: the kernel's messages and what Postgres writes to its standard error, as lines on a virtqueue that
//! the VMM drains whenever the guest comes by. Nothing waits for it unless all buffers are full.

use crate::errno::{Errno, Result};
use crate::file::{File, Stat};
use crate::global::Global;
use crate::virtio::Queue;
use crate::arch;
use alloc::vec::Vec;
use core::any::Any;
use core::cell::RefCell;
use dormouse_abi as abi;

const BUFFERS: usize = 8;
const BUFFER_LEN: usize = 2048;

struct Console {
    queue: Queue,
    buffers: Vec<u64>,
    free: Vec<usize>,
    /// Buffer in flight by descriptor head.
    flying: Vec<(u16, usize)>,
}

static CONSOLE: Global<RefCell<Option<Console>>> = Global::new(RefCell::new(None));

pub fn init() {
    let buffers = (0..BUFFERS).map(|_| Vec::leak(alloc::vec![0u8; BUFFER_LEN]).as_ptr() as u64).collect();
    *CONSOLE.get().borrow_mut() =
        Some(Console { queue: Queue::new(abi::queue::CONSOLE), buffers, free: (0..BUFFERS).collect(), flying: Vec::new() });
}

impl Console {
    fn reap(&mut self) {
        while let Some((head, _)) = self.queue.pop() {
            if let Some(at) = self.flying.iter().position(|&(other, _)| other == head) {
                let (_, buffer) = self.flying.swap_remove(at);
                self.free.push(buffer);
            }
        }
    }
}

/// Takes back what the VMM has read.
pub fn reap() {
    if let Some(console) = CONSOLE.get().borrow_mut().as_mut() {
        console.reap();
    }
}

pub fn write(mut bytes: &[u8]) {
    let mut guard = CONSOLE.get().borrow_mut();
    let Some(console) = guard.as_mut() else { return write_slowly(bytes) };
    while !bytes.is_empty() {
        if console.free.is_empty() {
            console.reap();
        }
        if console.free.is_empty() {
            console.queue.kick();
            console.reap();
        }
        let Some(buffer) = console.free.pop() else { return write_slowly(bytes) };
        let len = bytes.len().min(BUFFER_LEN);
        let address = console.buffers[buffer];
        // SAFETY: the buffer is free, and of this length.
        unsafe { core::ptr::copy_nonoverlapping(bytes.as_ptr(), address as *mut u8, len) };
        match console.queue.push(&[(address, len as u32)], &[]) {
            Some(head) => console.flying.push((head, buffer)),
            None => console.free.push(buffer),
        }
        bytes = &bytes[len..];
    }
}

/// Byte by byte through the doorbell: for the time before there is a queue, and after a fault.
pub fn write_slowly(bytes: &[u8]) {
    for &byte in bytes {
        arch::doorbell(abi::doorbell::PUTCHAR, byte as u32);
    }
}

/// Formats into a small buffer on the stack: messages must not need the heap.
pub struct Line {
    bytes: [u8; 512],
    len: usize,
}

impl Line {
    pub const fn new() -> Self {
        Self { bytes: [0; 512], len: 0 }
    }
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl core::fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        let room = self.bytes.len() - self.len;
        let len = text.len().min(room);
        self.bytes[self.len..self.len + len].copy_from_slice(&text.as_bytes()[..len]);
        self.len += len;
        Ok(())
    }
}

/// One line on the console, marked as the kernel's.
#[macro_export]
macro_rules! klog {
    ($($arg:tt)*) => {{
        use core::fmt::Write as _;
        let mut line = $crate::console::Line::new();
        let _ = write!(line, "kernel: ");
        let _ = write!(line, $($arg)*);
        let _ = line.write_str("\n");
        $crate::console::write(line.bytes());
    }};
}

/// Descriptors 0, 1 and 2 of the first task.
pub struct ConsoleFile;

impl File for ConsoleFile {
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn stat(&self) -> Result<Stat> {
        Ok(Stat { ino: 1, mode: 0o020620, nlink: 1, dev: 1, ..Stat::default() })
    }
    fn read(&self, _buf: &mut [u8], _nonblock: bool) -> Result<usize> {
        Ok(0)
    }
    fn write(&self, buf: &[u8], _nonblock: bool) -> Result<usize> {
        if buf.is_empty() {
            return Err(Errno::EINVAL);
        }
        write(buf);
        Ok(buf.len())
    }
}
