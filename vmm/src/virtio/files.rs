//! virtio-fs: hands each FUSE message of the queue to the file server and gives the answer back.

use std::io;

use virtio_queue::Queue;
use vm_memory::{GuestMemoryMmap, VolatileSlice};

use super::{give_back, pop};

pub use crate::layer::Gate;

/// The data directory's server, behind the queue.
pub trait FileServer: Send {
    /// Answers one FUSE message; returns the bytes written to `writable`.
    fn handle(&mut self, readable: &[VolatileSlice], writable: &[VolatileSlice]) -> usize;
    /// Makes everything durable: files and folders.
    fn flush_all(&mut self) -> io::Result<()>;
    /// The server's state, for the restoring constructor.
    fn save(&self) -> Vec<u8>;
    /// Called once, before the first request that changes anything.
    fn set_gate(&mut self, gate: Gate);
    /// Bytes of disk that the database's own layer takes.
    fn disk_bytes(&self) -> u64;
    /// Whether nothing was ever changed.
    fn is_empty(&self) -> bool;
    /// Whether anything was changed since the server was made.
    fn has_changed(&self) -> bool;
}

/// Serves all requests; true if there was any.
pub fn serve(queue: &mut Queue, memory: &GuestMemoryMmap, server: &mut dyn FileServer) -> bool {
    let mut served = false;
    while let Some(chain) = pop(queue, memory) {
        let written = server.handle(&chain.readable, &chain.writable);
        give_back(queue, memory, chain.head, written);
        served = true;
    }
    served
}

impl FileServer for crate::fs::FsDevice {
    fn handle(&mut self, readable: &[VolatileSlice], writable: &[VolatileSlice]) -> usize {
        Self::handle(self, readable, writable)
    }
    fn flush_all(&mut self) -> io::Result<()> {
        Self::flush_all(self)
    }
    fn save(&self) -> Vec<u8> {
        Self::save(self)
    }
    fn set_gate(&mut self, gate: Gate) {
        Self::set_gate(self, gate);
    }
    fn disk_bytes(&self) -> u64 {
        Self::disk_bytes(self)
    }
    fn is_empty(&self) -> bool {
        Self::is_empty(self)
    }
    fn has_changed(&self) -> bool {
        Self::has_changed(self)
    }
}
