//! Flushes that are carried out beside the server, while the guest goes on.
//!
//! Only the plain ones: a file's bytes, nothing to record. Whatever has an order to keep (a map, names, a folder) is
//! flushed in place, by `flush.rs`. A file counts as clean from when its flush begins, so that a write in the meantime
//! makes it dirty again; until the flush is over, it counts as *in flight*, and another flush of it is a flush of its own.

use super::{Errno, Layer};
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

const UNDER_WAY: u8 = 0;
const DONE: u8 = 1;
const FAILED: u8 = 2;

/// How a flush has ended, if it has.
#[derive(Default)]
pub(super) struct Outcome(AtomicU8);

/// One flush, to be carried out by any thread.
pub struct Flush {
    file: File,
    outcome: Arc<Outcome>,
}

impl Flush {
    /// Waits until the bytes are durable. False if the host could not: then nothing is believed any more.
    pub fn carry_out(self) -> bool {
        let done = self.file.sync_data().is_ok();
        self.outcome.0.store(if done { DONE } else { FAILED }, Ordering::Release);
        done
    }
}

impl Drop for Flush {
    fn drop(&mut self) {
        // One that nobody carried out was not done.
        let _ = self.outcome.0.compare_exchange(UNDER_WAY, FAILED, Ordering::AcqRel, Ordering::Acquire);
    }
}

impl Layer {
    /// Begins a flush of the object if it is a plain one; `None` if it has to be done in place.
    pub(crate) fn defer(&mut self, id: u64) -> Result<Option<Flush>, Errno> {
        self.note_flushes()?;
        let in_flight = self.flushing.iter().any(|(other, _)| *other == id);
        if self.poisoned
            || !self.changed
            || self.files_created
            || !self.doomed.is_empty()
            || self.journal.is_behind()
            || self.journal.wants_compaction()
            || !(in_flight || self.dirty.contains(&id))
        {
            return Ok(None);
        }
        self.reopen(id)?;
        self.trim(id)?;
        let object = self.objects.get_mut(&id).ok_or(Errno(libc::ENOENT))?;
        let recorded = object.in_journal();
        let Some(file) = object.file_mut() else {
            return Ok(None);
        };
        let Some(upper) = file.upper.as_ref().filter(|_| !(recorded && file.map_changed)) else {
            return Ok(None);
        };
        let Ok(own) = upper.file.try_clone() else {
            return Ok(None);
        };
        file.dirty = false;
        self.dirty.remove(&id);
        let outcome = Arc::new(Outcome::default());
        self.flushing.push((id, Arc::clone(&outcome)));
        Ok(Some(Flush { file: own, outcome }))
    }

    /// Takes note of the deferred flushes that are over.
    pub(super) fn note_flushes(&mut self) -> Result<(), Errno> {
        let mut over = Vec::new();
        self.flushing.retain(|(id, outcome)| match outcome.0.load(Ordering::Acquire) {
            UNDER_WAY => true,
            how => {
                over.push((*id, how));
                false
            }
        });
        for (id, how) in over {
            if how == FAILED {
                // The host may call lost bytes clean now.
                self.poisoned = true;
                return Err(Errno(libc::EIO));
            }
            // What the file takes on disk may be known only now. An object that is gone takes nothing.
            let _ = self.account(id);
        }
        Ok(())
    }

    /// What is still under way counts as not flushed.
    pub(super) fn mistrust(&mut self) -> Result<(), Errno> {
        self.note_flushes()?;
        for (id, _) in &self.flushing {
            if let Some(file) = self.objects.get_mut(id).and_then(|object| object.file_mut()) {
                file.dirty = true;
                self.dirty.insert(*id);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::tests::{HASH, folders};
    use crate::layer::{GuestBytes, Kind, LayerOptions};
    use vm_memory::VolatileSlice;

    fn write(layer: &mut Layer, id: u64) {
        let mut bytes = [7u8; 100];
        let slices = [VolatileSlice::from(&mut bytes[..])];
        assert_eq!(layer.write(id, 0, GuestBytes::new(&slices)), Ok(100));
    }

    #[test]
    fn a_flush_under_way_is_not_taken_for_done() {
        let folders = folders();
        let mut layer = Layer::open(&folders.layer, &folders.template, LayerOptions::new(HASH)).unwrap();
        let id = layer.create(1, b"wal", Kind::File, 0o600, b"").unwrap();
        write(&mut layer, id);
        assert!(layer.defer(id).unwrap().is_none(), "a new name is recorded in place");
        layer.sync(id).unwrap();
        assert!(layer.defer(id).unwrap().is_none(), "there is nothing to flush");
        write(&mut layer, id);
        let first = layer.defer(id).unwrap().unwrap();
        let second = layer.defer(id).unwrap().expect("the first is not over");
        assert!(first.carry_out() && second.carry_out());
        assert!(layer.defer(id).unwrap().is_none(), "both are over");

        write(&mut layer, id);
        let third = layer.defer(id).unwrap().unwrap();
        layer.sync_all().unwrap();
        assert!(third.carry_out());
        assert_eq!(layer.sync(id), Ok(()));
    }

    #[test]
    fn nothing_is_believed_after_a_flush_that_failed() {
        let folders = folders();
        let mut layer = Layer::open(&folders.layer, &folders.template, LayerOptions::new(HASH)).unwrap();
        let id = layer.create(1, b"wal", Kind::File, 0o600, b"").unwrap();
        write(&mut layer, id);
        layer.sync(id).unwrap();
        write(&mut layer, id);
        drop(layer.defer(id).unwrap().unwrap());
        assert_eq!(layer.sync(id), Err(Errno(libc::EIO)));
        assert_eq!(layer.sync_all(), Err(Errno(libc::EIO)));
    }
}
