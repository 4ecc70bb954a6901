//! The mark that a snapshot has been used: it is gone, durably, before the guest it restored changes a file.
//!
//! ```text
//!  restore ──┬─▶ memory, CPU, devices ─▶ the guest runs ─▶ its first change ─▶ gate ─▶ goes on
//!            └─▶ rename, flush the folder, remove ──────────────────────────────▲
//! ```

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Instant;

use super::write::{NAME, TEMPORARY};
use crate::crash;
use crate::jail::{ThreadKind, threads};
use crate::pack;
use crate::settings::remove_if_there;

/// The snapshot between being spent and being removed. Whatever lies there is nothing.
pub const SPENT: &str = "snapshot.spent";
/// A snapshot that could not be used, kept for who wants to know why.
pub const REFUSED: &str = "snapshot.refused";

#[derive(Debug, Default)]
struct Mark {
    done: Mutex<Option<Result<Instant, io::ErrorKind>>>,
    changed: Condvar,
}

/// Spends the snapshot of a folder on a thread of its own.
#[derive(Clone, Debug)]
pub struct Spending {
    mark: Arc<Mark>,
    dir: PathBuf,
    packed: bool,
}

/// When it was durable.
fn spend(dir: &Path) -> io::Result<Instant> {
    crash::point("spend-begun");
    std::fs::rename(dir.join(NAME), dir.join(SPENT))?;
    crash::point("spent-renamed");
    File::open(dir)?.sync_all()?;
    let landed = Instant::now();
    crash::point("spent");
    // Nothing depends on it any more: should this fail, the next one is renamed over it.
    if let Err(error) = std::fs::remove_file(dir.join(SPENT)) {
        tracing::warn!(%error, "cannot remove a spent snapshot");
    }
    Ok(landed)
}

impl Spending {
    /// Begins.
    pub fn begin(dir: &Path) -> io::Result<Self> {
        Self::by(dir, false, spend)
    }

    /// Likewise, where a packed file is to be marked.
    pub fn of_packed(dir: &Path) -> io::Result<Self> {
        Self::by(dir, true, pack::spent::spend)
    }

    pub fn is_of_packed(&self) -> bool {
        self.packed
    }

    fn by(dir: &Path, packed: bool, spend: fn(&Path) -> io::Result<Instant>) -> io::Result<Self> {
        let spending = Self { mark: Arc::default(), dir: dir.to_owned(), packed };
        let own = spending.clone();
        threads::spawn(ThreadKind::Spend, move || {
            threads::interrupt_nobody();
            let result = spend(&own.dir);
            if let Err(error) = &result {
                tracing::error!(%error, "cannot mark the snapshot as spent: the guest may change nothing");
            }
            *own.mark.done.lock().unwrap_or_else(PoisonError::into_inner) = Some(result.map_err(|error| error.kind()));
            own.mark.changed.notify_all();
        })?;
        Ok(spending)
    }

    /// Waits until the mark has landed. A suspend waits too: the thread must not take the new snapshot for the old.
    pub fn wait(&self) -> io::Result<()> {
        let mut done = self.mark.done.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match *done {
                Some(Ok(_)) => return Ok(()),
                Some(Err(kind)) => return Err(kind.into()),
                None => done = self.mark.changed.wait(done).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    /// When it landed; `None` while it has not.
    pub fn landed(&self) -> Option<Instant> {
        let done = self.mark.done.lock().unwrap_or_else(PoisonError::into_inner);
        done.as_ref().and_then(|result| result.as_ref().ok().copied())
    }
}

/// Moves a snapshot that can't be used out of the way, durably, before the database starts cold, and removes what
/// earlier processes left half done.
pub fn refuse(dir: &Path) -> io::Result<()> {
    match std::fs::rename(dir.join(NAME), dir.join(REFUSED)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    for leftover in [SPENT, TEMPORARY, pack::SPENT, pack::TEMPORARY] {
        remove_if_there(&dir.join(leftover))?;
    }
    // Flushed even when there is nothing: an earlier process may have spent it and died before its flush.
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_is_spent_once() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(NAME), b"x").unwrap();
        Spending::begin(dir.path()).unwrap().wait().unwrap();
        assert!(!dir.path().join(NAME).exists());
        assert!(Spending::begin(dir.path()).unwrap().wait().is_err(), "there is nothing to spend");
        refuse(dir.path()).unwrap();
    }
}
