//! The device's side of a split virtqueue, at the guest's fixed address, written apart from the driver.

use dormouse_abi::{QUEUE_SIZE, SYSTEM, system};
use std::sync::Once;

const LEN: usize = system::END as usize;

/// Maps the guest's system page where it is in the guest, and clears it.
pub fn reset() {
    static MAPPED: Once = Once::new();
    MAPPED.call_once(|| {
        let (protection, flags) = (
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE,
        );
        // SAFETY: NOREPLACE: nothing of this process is there.
        let start = unsafe { libc::mmap(SYSTEM as *mut _, LEN, protection, flags, -1, 0) };
        assert_eq!(start as u64, SYSTEM, "the guest's system page cannot be mapped");
    });
    // SAFETY: mapped above; tests that use it exclude each other.
    unsafe { std::ptr::write_bytes(SYSTEM as *mut u8, 0, LEN) };
}

/// A chain as the device sees it.
pub struct Chain {
    pub head: u16,
    /// The readable part, gathered.
    pub request: Vec<u8>,
    /// The writable part.
    pub room: Vec<(u64, u32)>,
    /// Readable descriptors.
    pub readable: usize,
}

pub struct Ring {
    base: u64,
    seen: u16,
    used: u16,
}

impl Ring {
    pub fn new(index: usize) -> Self {
        Self { base: SYSTEM + system::QUEUES + index as u64 * system::QUEUE_STRIDE, seen: 0, used: 0 }
    }

    fn get<T: Copy>(&self, offset: u64) -> T {
        // SAFETY: within the queue's memory, mapped by `reset`.
        unsafe { ((self.base + offset) as *const T).read_volatile() }
    }

    fn put<T>(&self, offset: u64, value: T) {
        // SAFETY: as above.
        unsafe { ((self.base + offset) as *mut T).write_volatile(value) }
    }

    pub fn next(&mut self) -> Option<Chain> {
        if self.get::<u16>(system::QUEUE_AVAIL + 2) == self.seen {
            return None;
        }
        let position = u64::from(self.seen % QUEUE_SIZE);
        let head: u16 = self.get(system::QUEUE_AVAIL + 4 + 2 * position);
        self.seen = self.seen.wrapping_add(1);
        let mut chain = Chain { head, request: Vec::new(), room: Vec::new(), readable: 0 };
        let mut at = u64::from(head);
        loop {
            let (address, len): (u64, u32) = (self.get(at * 16), self.get(at * 16 + 8));
            let (flags, next): (u16, u16) = (self.get(at * 16 + 12), self.get(at * 16 + 14));
            if flags & 2 != 0 {
                chain.room.push((address, len));
            } else {
                assert!(chain.room.is_empty(), "readable after writable");
                chain.readable += 1;
                // SAFETY: the driver says this memory is to be read.
                chain.request.extend(unsafe { std::slice::from_raw_parts(address as *const u8, len as usize) });
            }
            if flags & 1 == 0 {
                return Some(chain);
            }
            assert!(next < QUEUE_SIZE);
            at = u64::from(next);
        }
    }

    /// Writes the answer into the chain and gives it back.
    pub fn answer(&mut self, chain: &Chain, bytes: &[u8]) {
        let mut rest = bytes;
        for &(address, len) in &chain.room {
            let part = rest.len().min(len as usize);
            // SAFETY: the driver says this memory is to be written.
            unsafe { std::ptr::copy_nonoverlapping(rest.as_ptr(), address as *mut u8, part) };
            rest = &rest[part..];
        }
        assert!(rest.is_empty(), "an answer of {} bytes does not fit", bytes.len());
        self.give_back(u32::from(chain.head), bytes.len() as u32);
    }

    /// A used element of any content.
    pub fn give_back(&mut self, id: u32, len: u32) {
        let position = u64::from(self.used % QUEUE_SIZE);
        self.put(system::QUEUE_USED + 4 + 8 * position, id);
        self.put(system::QUEUE_USED + 8 + 8 * position, len);
        self.used = self.used.wrapping_add(1);
        self.put(system::QUEUE_USED + 2, self.used);
    }
}
