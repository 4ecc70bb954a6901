//! The file device of a guest: FUSE messages, as virtio-fs carries them, on one data layer.
//!
//! It promises the guest one folder, the data directory, whose flushes are flushes on the host; and the host, that no
//! message, however made, reaches beyond that folder and its template, or ends this process. It keeps no open files:
//! OPEN and OPENDIR are answered ENOSYS (see `NO_OPEN_SUPPORT`), a request names a node, and a node is good from the LOOKUP
//! that gave it until it is forgotten, unlinked or not, asleep or not. The guest is the only client, so it may believe
//! what it was told about names and sizes until it changes them itself.
//!
//! ```text
//!   virtqueue ──▶ FsDevice::handle ──▶ wire (layouts) ──▶ requests ──▶ crate::layer ──▶ host files
//! ```
//!
//! Not there: extended attributes, locks, special files, access checks (the guest has one user), mappings (DAX).

mod device;
mod requests;
mod share;
#[cfg(test)]
pub(crate) mod tests;
mod wire;

pub use crate::layer::{Gate, LayerError as FsError, LayerOptions as FsOptions, Recovering};
pub use device::{Begun, FsDevice};
