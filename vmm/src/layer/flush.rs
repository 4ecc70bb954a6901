//! Durability: what a flush does, in which order, and what is done before a life's first change.

use super::data::OPEN_MAX;
use super::journal::{BUFFER_MAX, FlushError};
use super::object::{Body, FileState, Object, Override, Own, ROOT, RecordedData};
use super::record::Op;
use super::tree::object_op;
use super::{Errno, Layer};
use std::io;

/// Deleted files wait for the next flush, but no more than this many.
const DOOMED_MAX: usize = 64;

impl Layer {
    /// To be called before anything is changed, when it is certain that it will be.
    pub(super) fn begin_change(&mut self) -> Result<(), Errno> {
        if self.poisoned {
            return Err(Errno(libc::EIO));
        }
        if self.changed {
            return Ok(());
        }
        if let Some(gate) = &mut self.gate {
            gate().map_err(|_| Errno(libc::EIO))?;
            self.gate = None;
        }
        self.journal.prepare(&mut self.host)?;
        self.repair()?;
        self.journal.push(&[Op::Epoch]);
        self.changed = true;
        Ok(())
    }

    /// Carries out what a crash left undone: files of nobody go, files that were being cut are cut again.
    fn repair(&mut self) -> Result<(), Errno> {
        while let Some(id) = self.garbage.pop() {
            match self.host.remove_file(id) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e.into()),
                _ => {}
            }
        }
        let cuts: Vec<(u64, u64)> = self
            .objects
            .iter()
            .filter_map(|(&id, object)| Some((id, object.file()?.recorded.cut?)))
            .filter(|(id, _)| !self.dirty_in_memory(*id))
            .collect();
        for (id, size) in cuts {
            let upper = match self.host.open_file(id, false) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => {
                    self.files_created = true;
                    self.host.open_file(id, true)?
                }
                other => other?,
            };
            self.host.set_len(&upper, size)?;
            if let Some(file) = self.object_mut(id)?.file_mut() {
                file.own = Own::Yes;
                file.size = Some(size);
                file.cut_room(size);
                file.map_changed = true;
                file.dirty = true;
            }
            self.dirty.insert(id);
        }
        Ok(())
    }

    /// Whether memory (a restored one) knows more of this file than the journal.
    fn dirty_in_memory(&self, id: u64) -> bool {
        self.objects.get(&id).and_then(Object::file).is_some_and(|file| file.map_changed)
    }

    /// Puts one step in the journal's buffer.
    pub(super) fn push(&mut self, ops: &[Op]) -> Result<(), Errno> {
        self.journal.push(ops);
        if self.journal.buffer().len() > BUFFER_MAX || self.doomed.len() > DOOMED_MAX {
            // The step is done in memory; whether it is durable yet is nobody's business before a flush.
            let _ = self.sync_names();
        }
        Ok(())
    }

    /// Makes all names durable.
    pub(crate) fn sync_names(&mut self) -> Result<(), Errno> {
        if self.poisoned {
            return Err(Errno(libc::EIO));
        }
        if !self.doomed.is_empty() {
            // A snapshot that is not spent yet may still want them.
            self.begin_change()?;
        }
        if self.journal.is_behind() {
            self.begin_change()?;
            match self.journal.flush(&self.host) {
                Ok(()) => {}
                Err(FlushError::Again(errno)) => return Err(errno),
                Err(FlushError::Lost) => {
                    self.poisoned = true;
                    return Err(Errno(libc::EIO));
                }
            }
        }
        for id in std::mem::take(&mut self.doomed) {
            match self.host.remove_file(id) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => self.doomed.push(id),
                _ => {}
            }
        }
        if self.journal.wants_compaction() {
            let state = self.state_ops();
            if let Err(FlushError::Lost) = self.journal.compact(&self.host, &state) {
                // Which of the two journals a crash would find is not known.
                self.poisoned = true;
                return Err(Errno(libc::EIO));
            }
        }
        Ok(())
    }

    /// Makes one object durable: its bytes, its map, its names and those of its parents.
    pub(crate) fn sync(&mut self, id: u64) -> Result<(), Errno> {
        self.sync_data(id, true)?;
        self.sync_names()
    }

    /// Makes a file's bytes durable and records its map; takes room past its end back if the guest has given it up.
    fn sync_data(&mut self, id: u64, trims: bool) -> Result<(), Errno> {
        self.note_flushes()?;
        if self.poisoned {
            return Err(Errno(libc::EIO));
        }
        if self.flushing.iter().any(|(other, _)| *other == id) {
            self.mistrust()?;
        }
        // A suspend that was called off, or came before this life, left it clean with its room.
        let has_room = |file: &FileState| file.room_end.is_some() && file.size.is_some_and(|size| file.has_room_past(size));
        let is_roomy = || self.objects.get(&id).and_then(Object::file).is_some_and(has_room);
        let is_due = self.dirty.contains(&id) || (trims && is_roomy());
        if !is_due {
            return Ok(());
        }
        self.begin_change()?;
        self.reopen(id)?;
        if trims {
            self.trim(id)?;
        }
        let object = self.objects.get_mut(&id).ok_or(Errno(libc::ENOENT))?;
        let recorded = object.in_journal();
        let file = object.file_mut().ok_or(Errno(libc::EIO))?;
        let upper = file.upper.as_ref().ok_or(Errno(libc::EIO))?;
        // After a failed flush the host may call lost bytes clean: nothing may be believed any more.
        if self.host.sync(upper).is_err() || (self.files_created && self.host.sync_files().is_err()) {
            self.poisoned = true;
            return Err(Errno(libc::EIO));
        }
        self.files_created = false;
        file.dirty = false;
        self.dirty.remove(&id);
        let mut op = None;
        if recorded && file.map_changed {
            file.map_changed = false;
            file.recorded = RecordedData { any: true, visible: file.visible, map: file.map.clone(), cut: None };
            op = Some(Op::Data { id, visible: file.visible, map: file.map.to_bytes() });
        }
        // The host may have found only now what a scattered file's own bookkeeping takes.
        self.account(id)?;
        op.map_or(Ok(()), |op| self.push(&[op]))
    }

    /// Makes everything durable, for a suspend: since that may be called off, the guest keeps the room it was granted.
    pub(crate) fn sync_all(&mut self) -> Result<(), Errno> {
        self.sync_each(false)
    }

    /// After a suspend that is committed: gives back what files have past their ends, in which no guest believes any more. What
    /// was saved says more is in use than is, until each file's next flush. What cannot be given back stays.
    pub(crate) fn give_back_room(&mut self) {
        let is_roomy = |file: &FileState| file.room_end.is_some() && file.has_room_past(file.size.unwrap_or(0));
        let roomy = self.objects.iter().filter(|(_, object)| object.file().is_some_and(is_roomy));
        for id in roomy.map(|(&id, _)| id).collect::<Vec<_>>() {
            let _ = self.reopen(id).and_then(|()| self.trim(id));
        }
    }

    /// Makes everything durable at the guest's request, which gives its room past the ends of files back with it.
    pub(crate) fn sync_for_guest(&mut self) -> Result<(), Errno> {
        self.sync_each(true)
    }

    fn sync_each(&mut self, trims: bool) -> Result<(), Errno> {
        self.mistrust()?;
        if self.dirty.len() > 1 {
            self.begin_change()?;
            self.begin_write_back()?;
        }
        while let Some(&id) = self.dirty.first() {
            self.sync_data(id, trims)?;
        }
        self.sync_names()
    }

    /// Has the disk write the bytes of many files at once, which their flushes then wait for one after the other. They stay open until
    /// then, for the host tells of what it could not write to whoever has the file open.
    fn begin_write_back(&mut self) -> Result<(), Errno> {
        for id in self.dirty.iter().copied().take(OPEN_MAX / 2).collect::<Vec<_>>() {
            self.reopen(id)?;
            let upper = self.objects.get(&id).and_then(Object::file).and_then(|file| file.upper.as_ref());
            if upper.is_some_and(|upper| self.host.begin_write_back(upper).is_err()) {
                // As after a failed flush.
                self.poisoned = true;
                return Err(Errno(libc::EIO));
            }
        }
        Ok(())
    }

    /// The operations that make the journal's state from nothing.
    fn state_ops(&self) -> Vec<Op> {
        let mut ops = Vec::new();
        let mut ids: Vec<u64> = self.objects.iter().filter(|(_, o)| o.in_journal()).map(|(&id, _)| id).collect();
        ids.sort_unstable();
        for &id in &ids {
            let object = &self.objects[&id];
            if id == ROOT {
                ops.push(Op::Attr { id, mode: object.mode, mtime: object.mtime });
            } else {
                ops.push(object_op(id, object));
            }
            if let Body::File(file) = &object.body
                && file.recorded.any
            {
                let RecordedData { visible, map, cut, .. } = &file.recorded;
                ops.push(Op::Data { id, visible: *visible, map: map.to_bytes() });
                if let Some(size) = cut {
                    ops.push(Op::Truncate { id, size: *size, visible: *visible });
                }
            }
        }
        for &id in &ids {
            let Some(dir) = self.objects[&id].dir() else { continue };
            for (name, entry) in &dir.overrides {
                let folder = id;
                let whiteout = Op::Unlink { folder, name: name.clone(), whiteout: true };
                match *entry {
                    Override::Whiteout => ops.push(whiteout),
                    Override::Entry { id, cookie, covers } => {
                        if covers {
                            ops.push(whiteout);
                        }
                        ops.push(Op::Link { folder, name: name.clone(), id, cookie, covers });
                    }
                }
            }
        }
        ops
    }
}
