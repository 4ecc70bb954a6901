//! Packed sleep: a sleeping database in one compressed file (`docs/packed.md`).
//!
//! ```text
//!  snapshot ─┐                                      ┌─▶ memory ─▶ the guest runs ─▶ its first change ─▶ gate ─▶ goes on
//!            ├─▶ packed.tmp ─▶ packed ─▶ a wake ────┤                                                    ▲
//!  layer/* ──┘                    (the others go)   └─▶ layer/* ─▶ flushed ─▶ packed renamed away, durably ┘
//! ```
//!
//! - [`format`]: the file; [`write`]: packing; [`read`]: what a wake takes from it; [`spent`]: that it is used once;
//!   [`copy`]: the same as another database, for measurements alone.
//!
//! Promises: where there is a `packed`, it is the truth, whatever lies beside it; it goes, durably, only after all that it
//! held is durable elsewhere, and before the guest changes a file. Refuses: a file of another database, or one of which a
//! byte is wrong; a layer that is damaged in it is told as such, and never taken for an empty one.

pub mod copy;
pub mod format;
pub mod read;
pub mod spent;
pub mod write;

use std::io;

use crate::fs::FsError;
use crate::snapshot::format::Unreadable;

/// The name of a packed database's file.
pub const NAME: &str = "packed";
/// The same while it is written. Whatever lies there is nothing.
pub const TEMPORARY: &str = "packed.tmp";
/// The same once it is used up. Whatever lies there is nothing.
pub const SPENT: &str = "packed.spent";

/// Why a database was not packed, or cannot be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    #[error("it has no snapshot, and only a database that sleeps is packed")]
    Awake,
    #[error("it has more than {0} MiB to pack, and would wake too slowly from it")]
    TooLarge(u64),
    #[error("its snapshot cannot be packed: {0}")]
    Snapshot(Unreadable),
    #[error("what was packed does not come back the same: nothing is changed")]
    Unlike,
    /// Its data is in there: nothing is done but saying so.
    #[error("its packed file is damaged: {0}. Put `packed` back from a copy of the database's folder")]
    Damaged(Unreadable),
    #[error("its packed file belongs to database {0:?}")]
    Other(String),
    #[error("the layer's journal is not the one that the database was packed with: put its folder back from a copy")]
    Journal,
    #[error(transparent)]
    Layer(#[from] FsError),
    #[error("{what}: {source}")]
    Io { what: &'static str, source: io::Error },
}

impl PackError {
    /// The exit status of a VMM that was to pack: one for what is not to be tried again.
    pub fn code(&self) -> u8 {
        match self {
            Self::Awake | Self::TooLarge(_) | Self::Snapshot(_) => 77,
            Self::Layer(FsError::LayerLocked(_)) => 73,
            _ => 74,
        }
    }

    fn io(what: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| Self::Io { what, source }
    }
}
