//! Buffers for forwarding: borrowed while bytes are on their way, given back when they are through, so that an idle
//! session has none.

use std::cell::RefCell;

/// Bytes of a buffer.
pub const SIZE: usize = 16 << 10;
/// Spare buffers that each thread keeps.
const SPARE: usize = 32;
const _: () = assert!(SIZE <= u16::MAX as usize);

thread_local! {
    static POOL: RefCell<Vec<Box<[u8; SIZE]>>> = const { RefCell::new(Vec::new()) };
}

/// Bytes read and not yet written.
#[derive(Default)]
pub struct Buffer {
    storage: Option<Box<[u8; SIZE]>>,
    // Offsets fit in 16 bits, and there are two of these in each held session.
    start: u16,
    end: u16,
    /// Bytes before this one have been shown to the tracker.
    seen: u16,
}

impl Buffer {
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// What is to be written.
    pub fn filled(&self) -> &[u8] {
        match &self.storage {
            Some(storage) => &storage[usize::from(self.start)..usize::from(self.end)],
            None => &[],
        }
    }

    /// Room to read into. Only an empty buffer has it: one read, then its writes.
    pub fn room(&mut self) -> &mut [u8] {
        debug_assert!(self.is_empty());
        (self.start, self.end, self.seen) = (0, 0, 0);
        let storage = self.storage.get_or_insert_with(|| {
            POOL.with_borrow_mut(Vec::pop).unwrap_or_else(|| {
                // Never a 16 KiB array on the stack.
                vec![0; SIZE].into_boxed_slice().try_into().unwrap_or_else(|_| Box::new([0; SIZE]))
            })
        });
        &mut storage[..]
    }

    /// `n` bytes were read into the room.
    pub fn fill(&mut self, n: usize) {
        self.end = n.min(SIZE) as u16;
    }

    /// `n` bytes were written out.
    pub fn consume(&mut self, n: usize) {
        self.start = (usize::from(self.start) + n).min(usize::from(self.end)) as u16;
    }

    /// Bytes that the tracker has not seen; they count as seen from now on.
    pub fn unseen(&mut self) -> &[u8] {
        let from = std::mem::replace(&mut self.seen, self.end).max(self.start);
        match &self.storage {
            Some(storage) => &storage[usize::from(from)..usize::from(self.end)],
            None => &[],
        }
    }

    /// A buffer that already holds bytes, read elsewhere.
    pub fn holding(bytes: &[u8]) -> Option<Buffer> {
        let mut buffer = Buffer::default();
        if !bytes.is_empty() {
            buffer.room().get_mut(..bytes.len())?.copy_from_slice(bytes);
            buffer.fill(bytes.len());
        }
        Some(buffer)
    }

    /// Gives the storage back if nothing is in it.
    pub fn release(&mut self) {
        if self.is_empty()
            && let Some(storage) = self.storage.take()
        {
            POOL.with_borrow_mut(|pool| {
                if pool.len() < SPARE {
                    pool.push(storage);
                }
            });
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.start = self.end;
        self.release();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_go_through_in_order_and_are_seen_once() {
        let mut b = Buffer::default();
        b.room()[..5].copy_from_slice(b"hello");
        b.fill(5);
        assert_eq!(b.unseen(), b"hello");
        assert_eq!(b.unseen(), b"");
        b.consume(2);
        assert_eq!(b.filled(), b"llo");
        b.consume(3);
        assert!(b.is_empty());
        b.release();
        assert!(b.storage.is_none());
        assert_eq!(b.filled(), b"");
    }

    #[test]
    fn a_later_look_shows_only_what_is_new() {
        let mut b = Buffer::holding(b"abc").unwrap();
        assert_eq!(b.unseen(), b"abc");
        assert!(Buffer::holding(&[0; SIZE + 1]).is_none());
        assert!(Buffer::holding(b"").unwrap().storage.is_none());
    }
}
