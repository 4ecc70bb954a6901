//! The data layer: a database's own files over its image's read-only template.
//!
//! `docs/data-layer.md` has the rules, the states and the argument why they are sound; this is their code. It promises
//! that what was flushed survives a crash or power cut, that one process at a time has a layer, and that no byte from the
//! guest ever names a host file. It refuses another template, a damaged journal, special files.
//!
//! ```text
//!            tree (names)      data (bytes)       flush (durability)
//!                 │                 │                  │
//!              objects ───────── block maps ──────── journal
//!                 │                 │                  │
//!             template (read)    host (every system call on the layer's folder)
//! ```
//!
//! Nothing here knows FUSE: that is [`crate::fs`].

mod attributes;
mod copy;
mod data;
mod defer;
mod encoding;
mod error;
mod flush;
mod guest;
mod host;
mod journal;
mod map;
mod merge;
mod object;
mod open;
pub mod pack;
#[cfg(test)]
mod powercut;
mod record;
mod saved;
mod template;
mod tree;

pub use copy::copy;
pub use defer::Flush;
pub use error::{Errno, LayerError};
pub use guest::GuestBytes;
pub use merge::{is_empty, merge, template_of};
pub use template::template_hash;

pub(crate) use data::Room;
pub(crate) use record::{Kind, Time};

use host::Host;
use journal::Journal;
use object::Object;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::io;
use std::sync::Arc;
use template::Template;

/// Called once, before the first change of a life.
pub type Gate = Box<dyn FnMut() -> io::Result<()> + Send>;

/// Whether the guest still recovers from a crash. Asked until it once says no.
pub type Recovering = Box<dyn FnMut() -> bool + Send>;

/// What a layer is opened with.
#[derive(Clone, Debug)]
pub struct LayerOptions {
    /// Content hash of the template, as [`template_hash`] makes it and as the template's folder is named.
    pub template: String,
    /// The most bytes of disk that the layer may take; more is ENOSPC. Relations leave a reserve of it. `None`: the disk's end.
    pub storage_limit: Option<u64>,
    /// The most objects and names that it may hold.
    pub object_limit: usize,
}

impl LayerOptions {
    pub fn new(template: impl Into<String>) -> Self {
        LayerOptions { template: template.into(), storage_limit: None, object_limit: 262_144 }
    }
}

/// An open layer.
pub struct Layer {
    host: Host,
    template: Template,
    journal: Journal,
    options: LayerOptions,
    objects: HashMap<u64, Object>,
    /// Objects in memory by their path in the template.
    by_origin: HashMap<Vec<u8>, u64>,
    next_id: u64,
    next_cookie: u64,
    /// Names that overrides hold, whiteouts too.
    names: usize,
    /// Files with bytes that may not be durable.
    dirty: BTreeSet<u64>,
    /// Flushes that are carried out elsewhere, by object.
    flushing: Vec<(u64, Arc<defer::Outcome>)>,
    /// A file was created in `files` since that folder was flushed.
    files_created: bool,
    /// Objects that are gone; their files go after the next flush.
    doomed: Vec<u64>,
    /// Files in `files` that no object owns, found at open.
    garbage: Vec<u64>,
    /// Bytes of disk that the objects' files take.
    used: u64,
    gate: Option<Gate>,
    recovering: Option<Recovering>,
    /// This life has changed something.
    changed: bool,
    /// A flush failed: nobody knows what is on disk.
    poisoned: bool,
    /// Objects with open host files, the oldest first.
    open_files: VecDeque<u64>,
}

impl Layer {
    /// See [`Gate`].
    pub fn set_gate(&mut self, gate: Gate) {
        self.gate = Some(gate);
    }

    /// Until this says no, twice the storage limit holds, for all files: redo makes again what was dropped since.
    pub fn set_recovering(&mut self, recovering: Recovering) {
        self.recovering = Some(recovering);
    }

    /// The storage limit of this moment, and whether relations leave the reserve alone.
    fn storage_limit(&mut self) -> Option<(u64, bool)> {
        if self.recovering.as_mut().is_some_and(|recovering| !recovering()) {
            self.recovering = None;
        }
        let limit = self.options.storage_limit?;
        Some(if self.recovering.is_some() { (limit.saturating_mul(2), false) } else { (limit, true) })
    }

    /// Bytes of disk that the layer takes: its files' blocks and its journal. Deleted files count as gone at once.
    pub fn disk_bytes(&self) -> u64 {
        self.used + self.journal.disk_bytes()
    }

    /// Whether nothing was ever changed in it.
    pub fn is_empty(&self) -> bool {
        self.journal.position().1 == 1
    }

    /// Whether anything has been changed since it was opened.
    pub fn has_changed(&self) -> bool {
        self.changed
    }

    fn object(&self, id: u64) -> Result<&Object, Errno> {
        self.objects.get(&id).ok_or(Errno(libc::ENOENT))
    }

    fn object_mut(&mut self, id: u64) -> Result<&mut Object, Errno> {
        self.objects.get_mut(&id).ok_or(Errno(libc::ENOENT))
    }
}

fn now() -> Time {
    match std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH) {
        Ok(since) => Time { sec: since.as_secs() as i64, nsec: since.subsec_nanos() },
        Err(_) => Time::default(),
    }
}
