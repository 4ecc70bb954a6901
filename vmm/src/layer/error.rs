//! What opening a layer can end with, and what a request can.

use std::io;
use std::path::PathBuf;

/// Why a layer could not be opened, restored or merged. Nothing has been changed in it then.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// Another process has this layer open: the database is awake elsewhere. Suspend or stop it first.
    #[error("the layer {0} is in use by another process")]
    LayerLocked(PathBuf),
    /// The layer was made over another template: use the image that it was made with.
    #[error("the layer is over template {recorded}, not {given}")]
    OtherTemplate { recorded: String, given: String },
    /// The layer's own structure does not hold. Restore it from a copy.
    #[error("the layer is damaged: {0}")]
    Damaged(String),
    /// The saved state cannot be read: start cold.
    #[error("the saved state of the file system is damaged or of another format")]
    BadSaved,
    /// The layer has changed since the state was saved: start cold.
    #[error("the layer is at {found}, the saved state belongs to {expected}")]
    SnapshotStale { expected: u64, found: u64 },
    /// A host file operation failed.
    #[error("{what}: {source}")]
    Io { what: String, source: io::Error },
}

impl LayerError {
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> LayerError {
        let what = what.into();
        move |source| LayerError::Io { what, source }
    }
}

/// A Linux error number, the answer to a request that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(pub i32);

impl From<io::Error> for Errno {
    /// Full disks and files too long are told apart, since Postgres answers them with sentences of their own.
    fn from(error: io::Error) -> Errno {
        match error.raw_os_error() {
            Some(e @ (libc::ENOSPC | libc::EDQUOT | libc::EFBIG | libc::ENOMEM)) => Errno(e),
            _ => Errno(libc::EIO),
        }
    }
}

impl From<Errno> for io::Error {
    fn from(errno: Errno) -> io::Error {
        io::Error::from_raw_os_error(errno.0)
    }
}
