//! Bytes of files: reading through to the template, copy-up, cutting, the storage limit.

use super::guest::GuestBytes;
use super::host::{Host, HostFile, stat_of};
use super::map::BLOCK;
use super::object::{FileState, Object, Own};
use super::record::{Op, Time};
use super::template::is_relation;
use super::{Errno, Layer, now};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use vm_memory::VolatileSlice;

/// The longest file, in bytes.
pub(crate) const FILE_MAX: u64 = 1 << 40;
/// Objects with host files open at a time.
pub(super) const OPEN_MAX: usize = 400;
/// Of a storage limit this much, but at least so many bytes and at most half of it, is kept for the server's own files:
/// a tenant whose tables are full must still be able to start, delete and commit, all of which write WAL, and a server
/// that can't write WAL ends. The least is the images' `max_wal_size`: with 16 MiB, rows that were refused wrote WAL over
/// the limit before a checkpoint was due.
const RESERVE_PART: u64 = 16;
const RESERVE_MIN: u64 = 64 << 20;
/// Files up to this many bytes may grow into half of that: VACUUM makes maps, and TRUNCATE a new index, before anything
/// is freed.
const SMALL: u64 = 256 << 10;
/// Runs of zeros of this many bytes become holes when a file is copied up whole.
const HOLE: usize = 4096;

/// What room is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Room {
    /// The file ends no earlier than the range then.
    Grow,
    KeepSize,
    /// The same, and refused where bytes are the template's: granted, a write there needs no more room.
    Own,
}

impl Layer {
    /// Learns size and source of a file that was not looked at in this life.
    pub(super) fn load(&mut self, id: u64) -> Result<(), Errno> {
        let object = self.object(id)?;
        let Some(file) = object.file() else { return Ok(()) };
        if file.size.is_some() {
            return Ok(());
        }
        let (recorded, own) = (file.recorded.clone(), file.own);
        let stat = if own == Own::No { None } else { self.host.stat_file(id)? };
        let from_template = object.origin.is_some() && !recorded.any;
        let origin_size = match &object.origin {
            Some(origin) if stat.is_none() => Some(self.template.stat(origin)?.ok_or(Errno(libc::EIO))?.size),
            _ => None,
        };
        let object = self.object_mut(id)?;
        let mtime = &mut object.mtime;
        let cut = recorded.cut;
        if let Some(stat) = stat {
            *mtime = Time { sec: stat.st_mtime, nsec: stat.st_mtime_nsec as u32 };
        }
        let Some(file) = object.file_mut() else { return Err(Errno(libc::EIO)) };
        match stat {
            Some(stat) => {
                file.own = Own::Yes;
                file.size = Some(cut.unwrap_or(stat.st_size as u64));
                file.disk = stat.st_blocks as u64 * 512;
            }
            // A flushed file is gone.
            None if recorded.any && cut.is_none() => return Err(Errno(libc::EIO)),
            None => {
                file.own = Own::No;
                file.size = cut.or(origin_size).or(Some(0));
                if from_template {
                    file.visible = origin_size.unwrap_or(0);
                }
            }
        }
        Ok(())
    }

    /// Notes that `id` has an open host file, and closes the oldest if there are too many.
    fn opened(&mut self, id: u64) {
        if self.open_files.len() >= OPEN_MAX
            && let Some(oldest) = self.open_files.pop_front()
            && oldest != id
            && let Some(file) = self.objects.get_mut(&oldest).and_then(Object::file_mut)
        {
            file.upper = None;
            file.lower = None;
        }
        self.open_files.push_back(id);
    }

    fn open_upper(&mut self, id: u64) -> Result<(), Errno> {
        let file = self.object(id)?.file().ok_or(Errno(libc::EISDIR))?;
        if file.upper.is_none() {
            let upper = self.host.open_file(id, false)?;
            self.opened(id);
            if let Some(file) = self.object_mut(id)?.file_mut() {
                file.upper = Some(upper);
            }
        }
        Ok(())
    }

    fn open_lower(&mut self, id: u64) -> Result<(), Errno> {
        let object = self.object(id)?;
        let file = object.file().ok_or(Errno(libc::EISDIR))?;
        if file.lower.is_none() {
            let lower = self.template.open_file(object.origin.as_deref().ok_or(Errno(libc::EIO))?)?;
            self.opened(id);
            if let Some(file) = self.object_mut(id)?.file_mut() {
                file.lower = Some(lower);
            }
        }
        Ok(())
    }

    /// Fills `to` from byte `offset` on; returns how many bytes there were before the file's end.
    pub(crate) fn read(&mut self, id: u64, offset: u64, to: GuestBytes) -> Result<usize, Errno> {
        self.load(id)?;
        let file = self.object(id)?.file().ok_or(Errno(libc::EISDIR))?;
        let size = file.size.unwrap_or(0);
        let end = size.min(offset.saturating_add(to.len() as u64));
        let mut at = offset;
        while at < end {
            let file = self.object(id)?.file().ok_or(Errno(libc::EISDIR))?;
            let (stop, template) = file.source(at, end);
            let part = to.range((at - offset) as usize, (stop - at) as usize);
            let n = if template {
                self.open_lower(id)?;
                match self.object(id)?.file().and_then(|f| f.lower.as_ref()) {
                    Some(lower) => part.read_from(lower, at)?,
                    None => return Err(Errno(libc::EIO)),
                }
            } else if file.own == Own::No {
                0
            } else {
                self.open_upper(id)?;
                match self.object(id)?.file().and_then(|f| f.upper.as_ref()) {
                    Some(upper) => part.read_from(&upper.file, at)?,
                    None => return Err(Errno(libc::EIO)),
                }
            };
            // Shorter than its size can be only a file cut by hand, or one to be cut again after a crash.
            part.range(n, usize::MAX).zero();
            at = stop;
        }
        Ok(end.saturating_sub(offset) as usize)
    }

    /// Writes `from` at byte `offset`; returns how many bytes were taken.
    pub(crate) fn write(&mut self, id: u64, offset: u64, from: GuestBytes) -> Result<usize, Errno> {
        self.load(id)?;
        self.object(id)?.file().ok_or(Errno(libc::EISDIR))?;
        if from.is_empty() {
            return Ok(0);
        }
        let end = offset.checked_add(from.len() as u64).filter(|&end| end <= FILE_MAX).ok_or(Errno(libc::EFBIG))?;
        self.check_space(id, offset, end)?;
        self.begin_change()?;
        self.make_own(id, u64::MAX)?;
        self.open_upper(id)?;
        // Blocks written in part come from the template first.
        let visible = self.object(id)?.file().map_or(0, |f| f.visible);
        let covered_from = |block: u64, end: u64| offset <= block * BLOCK && end >= visible.min((block + 1) * BLOCK);
        if offset < visible {
            for block in [offset / BLOCK, (end.min(visible) - 1) / BLOCK] {
                if !covered_from(block, end) {
                    self.copy_block(id, block)?;
                }
            }
        }
        let object = self.objects.get_mut(&id).ok_or(Errno(libc::ENOENT))?;
        object.mtime = now();
        let file = object.file_mut().ok_or(Errno(libc::EISDIR))?;
        let upper = file.upper.as_ref().ok_or(Errno(libc::EIO))?;
        file.dirty = true;
        self.dirty.insert(id);
        let taken = offset + self.host.write_guest(upper, from, offset)? as u64;
        // The host may stop in the middle of a block that is still the template's: what it took of that one is not taken.
        let stopped_in = taken / BLOCK;
        let end = if taken < visible && !file.map.has(stopped_in) { taken.min(stopped_in * BLOCK) } else { taken };
        if end <= offset {
            self.account(id)?;
            return Err(Errno(libc::ENOSPC));
        }
        if offset < visible {
            for block in offset / BLOCK..=(end.min(visible) - 1) / BLOCK {
                if covered_from(block, end) && !file.map.has(block) {
                    file.map.insert(block);
                    file.map_changed = true;
                }
            }
        }
        let size = file.size.unwrap_or(0);
        if end > size {
            file.size = Some(end);
        }
        self.account(id)?;
        Ok((end - offset) as usize)
    }

    /// Copies a template block up unless it is here.
    fn copy_block(&mut self, id: u64, block: u64) -> Result<(), Errno> {
        if self.object(id)?.file().is_none_or(|f| f.map.has(block)) {
            return Ok(());
        }
        self.open_lower(id)?;
        self.open_upper(id)?;
        let object = self.objects.get_mut(&id).ok_or(Errno(libc::ENOENT))?;
        let file = object.file_mut().ok_or(Errno(libc::EISDIR))?;
        let (Some(lower), Some(upper)) = (&file.lower, &file.upper) else { return Err(Errno(libc::EIO)) };
        let len = BLOCK.min(file.visible - block * BLOCK) as usize;
        let mut buffer = vec![0; len];
        lower.read_exact_at(&mut buffer, block * BLOCK)?;
        self.host.write_at(upper, &buffer, block * BLOCK)?;
        file.map.insert(block);
        file.map_changed = true;
        file.dirty = true;
        self.dirty.insert(id);
        Ok(())
    }

    /// Gives the object a file of its own in the layer. A relation's starts without blocks and as long as the template's;
    /// any other's has the template's first `keep` bytes.
    fn make_own(&mut self, id: u64, keep: u64) -> Result<(), Errno> {
        let object = self.object(id)?;
        let file = object.file().ok_or(Errno(libc::EISDIR))?;
        if file.own == Own::Yes {
            return Ok(());
        }
        let size = file.size.unwrap_or(0);
        let whole = object.origin.as_deref().is_some_and(|origin| !is_relation(origin));
        if whole && size > 0 {
            self.open_lower(id)?;
        }
        let upper = self.host.open_file(id, true)?;
        self.files_created = true;
        let object = self.objects.get_mut(&id).ok_or(Errno(libc::ENOENT))?;
        let file = object.file_mut().ok_or(Errno(libc::EISDIR))?;
        let size = if whole { size.min(keep) } else { size };
        let lower = file.lower.as_ref().filter(|_| whole);
        if let Err(error) = fill(&self.host, &upper, lower, size) {
            let _ = self.host.remove_file(id);
            return Err(error.into());
        }
        if whole {
            file.visible = 0;
        }
        file.size = Some(size);
        file.upper = Some(upper);
        file.own = Own::Yes;
        file.room_end = Some(0);
        file.map_changed = true;
        file.dirty = true;
        self.dirty.insert(id);
        self.opened(id);
        self.account(id)?;
        let mut ops = Vec::new();
        self.record(id, &mut ops)?;
        if ops.is_empty() { Ok(()) } else { self.push(&ops) }
    }

    /// Counts the disk that the object's file takes now.
    pub(super) fn account(&mut self, id: u64) -> Result<(), Errno> {
        let object = self.objects.get_mut(&id).ok_or(Errno(libc::ENOENT))?;
        if let Some(file) = object.file_mut()
            && let Some(upper) = &file.upper
        {
            let disk = stat_of(&upper.file)?.st_blocks as u64 * 512;
            self.used = (self.used + disk).saturating_sub(file.disk);
            file.disk = disk;
        }
        Ok(())
    }

    /// Refuses a write of the range if the blocks it may add are over the storage limit.
    fn check_space(&mut self, id: u64, start: u64, end: u64) -> Result<(), Errno> {
        let Some((limit, reserved)) = self.storage_limit() else { return Ok(()) };
        let object = self.object(id)?;
        let file = object.file().ok_or(Errno(libc::EISDIR))?;
        let (size, own) = (file.size.unwrap_or(0), file.own);
        // Only growth is held back: a checkpoint writes what is in the files already, and WAL can't go before it has.
        let limit = if reserved && object.is_bulk() && end > size { limit - kept_back(limit, end) } else { limit };
        let copy_up = match &object.origin {
            Some(origin) if own == Own::No && !is_relation(origin) => size,
            _ => 2 * BLOCK,
        };
        let most = (end - start) + copy_up;
        if self.disk_bytes() + most <= limit {
            return Ok(());
        }
        // Close to the limit: look at what is really missing. A range that has its blocks can always be written.
        if own == Own::Yes {
            self.open_upper(id)?;
            if self.object(id)?.file().is_some_and(|file| file.room_end.is_none()) {
                // Something may be free then, and what is within the file be counted.
                self.begin_change()?;
                self.trim(id)?;
                self.account(id)?;
                if self.disk_bytes() + most <= limit {
                    return Ok(());
                }
            }
            let file = self.object(id)?.file().ok_or(Errno(libc::EISDIR))?;
            let past_end = file.room_end.unwrap_or(0).saturating_sub(size);
            if let Some(upper) = &file.upper
                && ((end <= size && file.disk.saturating_sub(past_end) >= size)
                    || has_place(file, &upper.file, start, end))
            {
                return Ok(());
            }
        }
        Err(Errno(libc::ENOSPC))
    }

    /// Cuts or extends the file.
    pub(crate) fn set_size(&mut self, id: u64, size: u64) -> Result<(), Errno> {
        self.load(id)?;
        let object = self.object(id)?;
        let file = object.file().ok_or(Errno(libc::EISDIR))?;
        if size > FILE_MAX {
            return Err(Errno(libc::EFBIG));
        }
        if Some(size) == file.size {
            return Ok(());
        }
        let whole_copy = match &object.origin {
            Some(origin) if file.own == Own::No && !is_relation(origin) => size.min(file.size.unwrap_or(0)),
            _ => 0,
        };
        if whole_copy > 0 && self.storage_limit().is_some_and(|(limit, _)| self.disk_bytes() + whole_copy > limit) {
            return Err(Errno(libc::ENOSPC));
        }
        self.begin_change()?;
        self.make_own(id, size)?;
        self.open_upper(id)?;
        let object = self.object_mut(id)?;
        object.mtime = now();
        let in_journal = object.in_journal();
        let file = object.file_mut().ok_or(Errno(libc::EISDIR))?;
        if size < file.visible {
            if in_journal {
                let before = file.recorded.clone();
                let recorded = &mut file.recorded;
                recorded.any = true;
                recorded.map.cut(size.div_ceil(BLOCK));
                recorded.visible = size;
                recorded.cut = Some(size);
                // Durable before the host file is cut, so that it can be cut again.
                let mark = self.journal.mark();
                self.journal.push(&[Op::Truncate { id, size, visible: size }]);
                if let Err(error) = self.sync_names() {
                    self.journal.take_back(mark);
                    if let Some(file) = self.object_mut(id)?.file_mut() {
                        file.recorded = before;
                    }
                    return Err(error);
                }
            }
            if let Some(file) = self.object_mut(id)?.file_mut() {
                file.visible = size;
                file.map.cut(size.div_ceil(BLOCK));
                file.map_changed = true;
            }
        }
        let object = self.objects.get_mut(&id).ok_or(Errno(libc::ENOENT))?;
        let file = object.file_mut().ok_or(Errno(libc::EISDIR))?;
        let upper = file.upper.as_ref().ok_or(Errno(libc::EIO))?;
        file.dirty = true;
        self.dirty.insert(id);
        self.host.set_len(upper, size)?;
        // A longer file keeps its room.
        if file.size.is_none_or(|before| size < before) {
            file.cut_room(size);
        }
        file.size = Some(size);
        self.account(id)
    }

    /// Reserves disk for a range; tells how far it is known to go on from its start.
    pub(crate) fn allocate(&mut self, id: u64, offset: u64, len: u64, room: Room) -> Result<u64, Errno> {
        self.load(id)?;
        let file = self.object(id)?.file().ok_or(Errno(libc::EISDIR))?;
        if len == 0 {
            return Err(Errno(libc::EINVAL));
        }
        let end = offset.checked_add(len).filter(|&end| end <= FILE_MAX).ok_or(Errno(libc::EFBIG))?;
        if room == Room::Own && offset < file.visible {
            return Err(Errno(libc::EOPNOTSUPP));
        }
        // Template blocks need no room before they are written.
        let start = offset.max(file.visible);
        if start >= end {
            return Ok(end);
        }
        if room == Room::Own && file.own == Own::Yes {
            self.open_upper(id)?;
            let file = self.object(id)?.file().ok_or(Errno(libc::EISDIR))?;
            if let Some(upper) = &file.upper
                && let Some(hole) = hole_from(&upper.file, start).filter(|&hole| hole >= end)
            {
                return Ok(hole);
            }
        }
        if room == Room::Own && self.object(id)?.file().is_some_and(FileState::is_full_of_grants) {
            return Err(Errno(libc::ENOSPC));
        }
        self.check_space(id, start, end)?;
        self.begin_change()?;
        self.make_own(id, u64::MAX)?;
        self.open_upper(id)?;
        if self.object(id)?.file().is_some_and(|file| file.room_end.is_none()) {
            // Before anything is granted that would go with it.
            self.trim(id)?;
        }
        let object = self.objects.get_mut(&id).ok_or(Errno(libc::ENOENT))?;
        object.mtime = now();
        let file = object.file_mut().ok_or(Errno(libc::EISDIR))?;
        let upper = file.upper.as_ref().ok_or(Errno(libc::EIO))?;
        let start = offset.max(file.visible);
        let done = self.host.allocate(upper, start, end - start, room != Room::Grow);
        let size = file.size.unwrap_or(0);
        match room {
            Room::Grow if done.is_ok() && end > size => {
                file.grant(start.max(size)..end);
                file.size = Some(end);
            }
            Room::Own if done.is_ok() => file.grant(start..end),
            _ => {}
        }
        // One that failed may have got some of it.
        if room != Room::Grow || done.is_err() {
            file.room_end = file.room_end.map(|room| room.max(end));
        }
        file.dirty = true;
        self.dirty.insert(id);
        self.account(id)?;
        match done {
            Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => Err(Errno(libc::EOPNOTSUPP)),
            other => Ok(other.map(|()| end)?),
        }
    }

    /// Gives room past the file's end back to the host.
    pub(super) fn trim(&mut self, id: u64) -> Result<(), Errno> {
        let Some(file) = self.objects.get_mut(&id).and_then(Object::file_mut) else { return Ok(()) };
        let size = file.size.unwrap_or(0);
        if let Some(upper) = file.upper.as_ref().filter(|_| file.has_room_past(size)) {
            self.host.set_len(upper, size)?;
            file.cut_room(size);
        }
        Ok(())
    }

    /// Sizes for STATFS, in bytes: all, and free.
    pub(crate) fn space(&self) -> Result<(u64, u64), Errno> {
        let (all, free) = self.host.space()?;
        Ok(match self.options.storage_limit {
            Some(limit) => (limit, limit.saturating_sub(self.disk_bytes()).min(free)),
            None => (all, free),
        })
    }

    /// Makes the flush of `id` able to reach its file.
    pub(super) fn reopen(&mut self, id: u64) -> Result<(), Errno> {
        self.load(id)?;
        self.open_upper(id)
    }

    /// The first byte from `at` on that may not be zero, or the file's end.
    pub(super) fn skip_hole(&mut self, id: u64, at: u64) -> Result<u64, Errno> {
        self.load(id)?;
        let file = self.object(id)?.file().ok_or(Errno(libc::EISDIR))?;
        let size = file.size.unwrap_or(0);
        let (stop, template) = file.source(at, size);
        if template || at >= size {
            return Ok(at.min(size));
        }
        if file.own == Own::No {
            return Ok(stop);
        }
        self.open_upper(id)?;
        let Some(upper) = self.object(id)?.file().and_then(|f| f.upper.as_ref()) else { return Err(Errno(libc::EIO)) };
        // SAFETY: a plain call on a descriptor we own; all other I/O on it names its offset.
        let data = unsafe { libc::lseek(upper.file.as_raw_fd(), at as i64, libc::SEEK_DATA) };
        match data {
            0.. => Ok(stop.min(data as u64)),
            _ if io::Error::last_os_error().raw_os_error() == Some(libc::ENXIO) => Ok(stop),
            _ => Ok(at),
        }
    }

    /// Reads into host memory.
    pub(super) fn read_host(&mut self, id: u64, offset: u64, buffer: &mut [u8]) -> Result<usize, Errno> {
        let slices = [VolatileSlice::from(buffer)];
        self.read(id, offset, GuestBytes::new(&slices))
    }
}

/// Bytes of a storage limit that the growth of a tenant's own file to `end` bytes must leave free.
fn kept_back(limit: u64, end: u64) -> u64 {
    let reserve = RESERVE_MIN.max(limit / RESERVE_PART).min(limit / 2);
    if end <= SMALL { reserve / 2 } else { reserve }
}

/// Makes a new file `size` bytes long, with the bytes of `lower` if there is one.
fn fill(host: &Host, upper: &HostFile, lower: Option<&File>, size: u64) -> io::Result<()> {
    let mut buffer = vec![0; (64 << 10).min(size as usize)];
    let mut at = 0;
    while let Some(lower) = lower
        && at < size
    {
        let n = buffer.len().min((size - at) as usize);
        lower.read_exact_at(&mut buffer[..n], at)?;
        for (i, piece) in buffer[..n].chunks(HOLE).enumerate() {
            if piece.iter().any(|&b| b != 0) {
                host.write_at(upper, piece, at + (i * HOLE) as u64)?;
            }
        }
        at += n as u64;
    }
    if size > 0 { host.set_len(upper, size) } else { Ok(()) }
}

/// Whether all of the range has its place on disk.
fn has_place(state: &FileState, file: &File, start: u64, end: u64) -> bool {
    let is_there = |from, to| from >= to || is_allocated(file, from, to);
    let mut at = start;
    for granted in state.granted.iter().filter(|granted| granted.end > start && granted.start < end) {
        if !is_there(at, granted.start) {
            return false;
        }
        at = granted.end;
    }
    is_there(at, end)
}

/// Whether the range of the file has no hole.
fn is_allocated(file: &File, start: u64, end: u64) -> bool {
    hole_from(file, start).is_some_and(|hole| hole >= end)
}

/// Where the first hole from `start` on is, or the file's end; `None` past that.
fn hole_from(file: &File, start: u64) -> Option<u64> {
    // SAFETY: a plain call on a descriptor we own; all other I/O on it names its offset.
    let hole = unsafe { libc::lseek(file.as_raw_fd(), start as i64, libc::SEEK_HOLE) };
    u64::try_from(hole).ok()
}
