//! Split virtqueues (VIRTIO 1.2, section 2.7) at the fixed places of `dormouse_abi`.
//!
//! One driver for every device: file share, vsock, random generator, console. It promises that a chain pushed
//! is seen whole by the device, and that a head given back is one that was in flight. It refuses, by panic, a
//! device that answers for a chain it was never given: nothing could be trusted after that.
//!
//! There are no feature bits to negotiate beyond VERSION_1, no indirect descriptors, no event suppression.
//! Addresses are guest-physical; most memory is mapped at virtual = physical, and what is not (process slots)
//! is translated by the caller.
//!
//! The memory of a queue is zero at boot, so is this side's copy of the indices, and both are part of a
//! snapshot: nothing needs to be done after a restore.

use core::sync::atomic::{AtomicU16, Ordering};
use dormouse_abi::{QUEUE_SIZE, SYSTEM, doorbell, queue, system};

const SIZE: usize = QUEUE_SIZE as usize;
const FLAG_NEXT: u16 = 1;
const FLAG_WRITE: u16 = 2;
/// End of a list of descriptors.
const NONE: u16 = u16::MAX;

/// `struct virtq_desc`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Descriptor {
    addr: u64,
    len: u32,
    flags: u16,
    next: u16,
}

/// `struct virtq_avail`, without the event field that nobody negotiated.
#[repr(C)]
struct Available {
    flags: u16,
    index: AtomicU16,
    ring: [u16; SIZE],
}

/// `struct virtq_used_elem`.
#[repr(C)]
#[derive(Clone, Copy)]
struct UsedElement {
    id: u32,
    len: u32,
}

/// `struct virtq_used`.
#[repr(C)]
struct Used {
    flags: u16,
    index: AtomicU16,
    ring: [UsedElement; SIZE],
}

const _: () = {
    assert!(QUEUE_SIZE.is_power_of_two());
    assert!(size_of::<Descriptor>() == 16);
    assert!(SIZE * size_of::<Descriptor>() <= system::QUEUE_AVAIL as usize);
    assert!(size_of::<Available>() <= (system::QUEUE_USED - system::QUEUE_AVAIL) as usize);
    assert!(size_of::<Used>() <= (system::QUEUE_STRIDE - system::QUEUE_USED) as usize);
};

/// One virtqueue, driver's side. At most one may exist for each index.
pub struct Queue {
    index: usize,
    descriptors: *mut Descriptor,
    available: *mut Available,
    used: *mut Used,
    /// First free descriptor; the list goes on through `next`.
    free: u16,
    free_count: u16,
    /// Our own copy of the chains' links: what is in the shared memory is the device's to read, never ours to
    /// believe.
    next: [u16; SIZE],
    /// Chains in flight, by head.
    in_flight: [bool; SIZE],
    /// Chains ever made available, modulo 65536.
    pushed: u16,
    /// Chains ever taken back, modulo 65536.
    popped: u16,
}

impl Queue {
    /// Takes over queue `index` (one of `dormouse_abi::queue`), whose memory is zero.
    pub fn new(index: usize) -> Self {
        assert!(index < queue::COUNT, "virtqueue {index} does not exist");
        let base = SYSTEM + system::QUEUES + index as u64 * system::QUEUE_STRIDE;
        let mut next = [NONE; SIZE];
        for (i, link) in next.iter_mut().enumerate().take(SIZE - 1) {
            *link = i as u16 + 1;
        }
        Self {
            index,
            descriptors: base as *mut Descriptor,
            available: (base + system::QUEUE_AVAIL) as *mut Available,
            used: (base + system::QUEUE_USED) as *mut Used,
            free: 0,
            free_count: QUEUE_SIZE,
            next,
            in_flight: [false; SIZE],
            pushed: 0,
            popped: 0,
        }
    }

    /// Descriptors that are free.
    #[cfg(test)]
    pub fn free_count(&self) -> usize {
        usize::from(self.free_count)
    }

    /// Chains pushed and not yet popped.
    #[cfg(test)]
    pub fn pending(&self) -> usize {
        usize::from(self.pushed.wrapping_sub(self.popped))
    }

    /// Makes a chain available: `(address, bytes)` of what the device reads, then of what it writes. The memory
    /// must stay valid until the head comes back from [`Queue::pop`]. `None` when there are too few free
    /// descriptors, or nothing to push. The device need not look before [`Queue::kick`].
    pub fn push(&mut self, readable: &[(u64, u32)], writable: &[(u64, u32)]) -> Option<u16> {
        let count = readable.len() + writable.len();
        if count == 0 || count > usize::from(self.free_count) {
            return None;
        }
        let head = self.free;
        let mut last = NONE;
        let buffers = readable.iter().map(|b| (b, 0)).chain(writable.iter().map(|b| (b, FLAG_WRITE)));
        for (i, (&(addr, len), flags)) in buffers.enumerate() {
            let slot = self.free;
            self.free = self.next[usize::from(slot)];
            last = slot;
            let more = i + 1 < count;
            let descriptor = Descriptor {
                addr,
                len,
                flags: if more { flags | FLAG_NEXT } else { flags },
                next: if more { self.free } else { 0 },
            };
            // SAFETY: `slot` < SIZE, as every element of the free list is; the table is this queue's own memory.
            unsafe { self.descriptors.add(usize::from(slot)).write_volatile(descriptor) };
        }
        self.next[usize::from(last)] = NONE;
        self.free_count -= count as u16;
        self.in_flight[usize::from(head)] = true;
        let position = usize::from(self.pushed) % SIZE;
        self.pushed = self.pushed.wrapping_add(1);
        // SAFETY: the available ring is this queue's own memory, `position` < SIZE. The release store orders the
        // descriptors and the ring entry before the index by which the device sees them.
        unsafe {
            (&raw mut (*self.available).ring[position]).write_volatile(head);
            (*self.available).index.store(self.pushed, Ordering::Release);
        }
        Some(head)
    }

    /// True when [`Queue::pop`] would give something.
    pub fn has_used(&self) -> bool {
        // SAFETY: the used ring is this queue's own memory; the device writes the index, hence an atomic load.
        unsafe { (*self.used).index.load(Ordering::Acquire) != self.popped }
    }

    /// Whether the device is done with every chain, taken back or not.
    pub fn is_served(&self) -> bool {
        // SAFETY: as above.
        unsafe { (*self.used).index.load(Ordering::Acquire) == self.pushed }
    }

    /// Takes back a chain that the device is done with: its head, and how many bytes were written to it.
    pub fn pop(&mut self) -> Option<(u16, u32)> {
        if !self.has_used() {
            return None;
        }
        let position = usize::from(self.popped) % SIZE;
        // SAFETY: `position` < SIZE; the acquire load in `has_used` orders this after the device's write.
        let element = unsafe { (&raw const (*self.used).ring[position]).read_volatile() };
        let head = match u16::try_from(element.id) {
            Ok(head) if head < QUEUE_SIZE && self.in_flight[usize::from(head)] => head,
            _ => panic!("virtqueue {}: the device gave back chain {}, which it does not have", self.index, element.id),
        };
        self.popped = self.popped.wrapping_add(1);
        self.in_flight[usize::from(head)] = false;
        self.release(head);
        Some((head, element.len))
    }

    /// Tells the device to look; returns after it has served this queue.
    pub fn kick(&self) {
        #[cfg(not(test))]
        // SAFETY: the doorbell is mapped and has no memory behind it: the store only leaves the guest. The assembly
        // may touch any memory as far as the compiler knows, so all that the device reads is in memory before it,
        // and all that the device wrote is read again after it.
        unsafe {
            core::arch::asm!(
                "mov dword ptr [{register}], {mask:e}",
                register = in(reg) dormouse_abi::DOORBELL + doorbell::NOTIFY,
                mask = in(reg) 1u32 << self.index,
                options(nostack, preserves_flags),
            );
        }
        #[cfg(test)]
        {
            let _ = doorbell::NOTIFY;
            crate::device::notified(self.index);
        }
    }

    /// Puts the descriptors of the chain at `head` back on the free list.
    fn release(&mut self, head: u16) {
        let mut last = head;
        let mut count = 1;
        while self.next[usize::from(last)] != NONE {
            last = self.next[usize::from(last)];
            count += 1;
        }
        self.next[usize::from(last)] = self.free;
        self.free = head;
        self.free_count += count;
    }
}
