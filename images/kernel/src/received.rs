//! Bytes that came for a reader and were not read yet: of a connection, a stream, a pipe.

use alloc::collections::VecDeque;
use core::cell::RefCell;

/// Capacity in bytes that an empty queue may keep.
const KEPT: usize = 4096;

#[derive(Default)]
pub struct Received(RefCell<VecDeque<u8>>);

impl Received {
    pub fn len(&self) -> usize {
        self.0.borrow().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn push(&self, bytes: &[u8]) {
        self.0.borrow_mut().extend(bytes);
    }

    /// Copies the oldest bytes, as many as there are room for and there are; they stay if `keep` says so.
    pub fn copy_out(&self, buf: &mut [u8], keep: bool) -> usize {
        let mut bytes = self.0.borrow_mut();
        let len = buf.len().min(bytes.len());
        let (front, back) = bytes.as_slices();
        let first = len.min(front.len());
        buf[..first].copy_from_slice(&front[..first]);
        buf[first..len].copy_from_slice(&back[..len - first]);
        if !keep {
            bytes.drain(..len);
            if bytes.is_empty() && bytes.capacity() > KEPT {
                *bytes = VecDeque::new();
            }
        }
        len
    }

    pub fn clear(&self) {
        self.0.take();
    }
}
