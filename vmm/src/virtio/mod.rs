//! The virtio devices, and what they share: split queues at fixed addresses, and chains as slices of guest memory.
//!
//! There is no transport: no registers, no feature negotiation, no interrupts. The guest says by a doorbell which
//! queues have new buffers, and looks at the used rings when it is told to look up.
//!
//! Each device serves a queue by popping chains with [`pop`] and giving them back with `Queue::add_used`. A chain
//! that does not make sense (an address outside memory, a loop) comes out short or empty: the guest gets it back
//! with nothing done, and only ever harms itself.

pub mod console;
pub mod files;
pub mod rng;
pub mod vsock;

use dormouse_abi::{QUEUE_SIZE, SYSTEM, system};
use std::sync::Once;

use virtio_queue::{Queue, QueueT};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, VolatileSlice};

/// A queue could not be set up or given a saved position.
#[derive(Debug, thiserror::Error)]
#[error("virtqueue {index}: {problem}")]
pub struct QueueError {
    pub index: usize,
    pub problem: String,
}

/// Virtqueue `index` at its fixed place, at the position `next` (next available, next used).
pub fn queue(index: usize, next: (u16, u16)) -> Result<Queue, QueueError> {
    let refused = |error: virtio_queue::Error| QueueError { index, problem: error.to_string() };
    let mut queue = Queue::new(QUEUE_SIZE).map_err(refused)?;
    let base = SYSTEM + system::QUEUES + index as u64 * system::QUEUE_STRIDE;
    queue.set_size(QUEUE_SIZE);
    queue.try_set_desc_table_address(GuestAddress(base)).map_err(refused)?;
    queue.try_set_avail_ring_address(GuestAddress(base + system::QUEUE_AVAIL)).map_err(refused)?;
    queue.try_set_used_ring_address(GuestAddress(base + system::QUEUE_USED)).map_err(refused)?;
    queue.set_next_avail(next.0);
    queue.set_next_used(next.1);
    queue.set_ready(true);
    Ok(queue)
}

/// One request: the guest's buffers, in order.
pub struct Chain<'a> {
    /// What `add_used` wants back.
    pub head: u16,
    pub readable: Vec<VolatileSlice<'a>>,
    pub writable: Vec<VolatileSlice<'a>>,
}

/// Takes the next chain off a queue.
pub fn pop<'a>(queue: &mut Queue, memory: &'a GuestMemoryMmap) -> Option<Chain<'a>> {
    let descriptors = queue.pop_descriptor_chain(memory)?;
    let mut chain = Chain { head: descriptors.head_index(), readable: Vec::new(), writable: Vec::new() };
    for descriptor in descriptors {
        let Ok(slice) = memory.get_slice(descriptor.addr(), descriptor.len() as usize) else {
            // Once: a wild guest must not fill the host's disk with what is said of it.
            static SAID: Once = Once::new();
            SAID.call_once(|| tracing::warn!(address = descriptor.addr().0, "a descriptor points outside guest memory"));
            chain.readable.clear();
            chain.writable.clear();
            break;
        };
        if descriptor.is_write_only() {
            chain.writable.push(slice);
        } else {
            chain.readable.push(slice);
        }
    }
    Some(chain)
}

/// Gives a chain back. A failure means that the ring itself is broken, which only a wild guest does.
pub fn give_back(queue: &mut Queue, memory: &GuestMemoryMmap, head: u16, written: usize) {
    if let Err(error) = queue.add_used(memory, head, written as u32) {
        static SAID: Once = Once::new();
        SAID.call_once(|| tracing::warn!(%error, "cannot give a buffer back to the guest"));
    }
}

/// The position of a queue, for [`queue`] after a restore.
pub fn position(queue: &Queue) -> (u16, u16) {
    (queue.next_avail(), queue.next_used())
}
