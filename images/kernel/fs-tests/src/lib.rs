//! The guest kernel's `fs`, `virtio` and `pages`, compiled for the host and tested there.
//!
//! The sources are the kernel's own, included by path. What they need of the rest of the kernel is replaced here: the
//! page pool is the host's allocator (but in its own test), the clock counts calls, and behind the doorbell stands
//! `device`, a FUSE server that works on the same rings in memory, at the same fixed address as in the guest.
//!
//! Run it from outside `images/kernel` (whose `.cargo/config.toml` is for the kernel):
//! `cargo test --manifest-path images/kernel/fs-tests/Cargo.toml`; with `--features layer` also against the VMM's file
//! device on a real data layer.
#![cfg(test)]

extern crate alloc;

#[path = "../../src/errno.rs"]
mod errno;
#[path = "../../src/file.rs"]
mod file;
#[path = "../../src/fs/mod.rs"]
mod fs;
#[path = "../../src/global.rs"]
mod global;
#[allow(dead_code)]
#[path = "../../src/shared.rs"]
mod shared;
#[path = "../../src/virtio.rs"]
mod virtio;

mod device;
mod guest;
#[cfg(feature = "layer")]
mod layer;
mod model;
mod pace;
mod pool;
mod rings;
mod server;
mod tests;
mod writeback;

use guest::{idle, pages, random, slots, time, wait};

/// The kernel's console line.
#[macro_export]
macro_rules! klog {
    ($($argument:tt)*) => { eprintln!($($argument)*) };
}
