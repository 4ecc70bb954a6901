//! Content and attributes of the share's inodes: what an open file does.
//!
//! An inode is its own open file: nothing is per open, so opening costs no memory and no request. Reads are cut at the
//! cached length, so the read that only meets the end of the file costs nothing either. Reads of a window's length and more
//! go straight between the caller's memory and the host; shorter ones through the page cache. Writes that need no new room
//! stay in the cache for a while (`writeback.rs`); the others go straight to the host.

use super::fuse::Segments;
use super::share::{DEVICE, Inode, Share};
use super::window::{BLOCK, WINDOW};
use super::writeback::WRITE_MAX;
use super::wire::{self, Opcode, Wire};
use super::{StatFs, kind, with_dots};
use crate::errno::{Errno, Result};
use crate::file::{DirEntry, File, Stat};
use alloc::vec::Vec;
use core::any::Any;

/// Room asked for past the end of a file that grows, bytes: as much as it has, but no more than this.
const AHEAD: u64 = 1 << 20;

impl Inode {
    /// The inode goes: so does what is cached of it. What is dirty is written first if the file has a name.
    pub(super) fn leave_cache(&self) {
        if !self.cached.get() {
            return;
        }
        if self.nlink.get() > 0
            && self.is_dirty()
            && let Err(error) = self.share.cache.write_node(&self.share.client, self.id)
        {
            crate::klog!("share: writes to node {} are lost: error {}", self.id, error.0);
        }
        self.share.cache.cut(self.id, 0);
    }

    /// Whether the host has not got all of it.
    pub(super) fn is_dirty(&self) -> bool {
        self.cached.get() && self.share.cache.has_dirty(self.id, 0, u64::MAX - WINDOW)
    }

    fn regular(&self) -> Result<()> {
        match self.kind {
            kind::FILE => Ok(()),
            kind::DIRECTORY => Err(Errno::EISDIR),
            _ => Err(Errno::EINVAL),
        }
    }

    /// Asks the host how large the file is, where it may have changed it.
    fn refresh(&self) -> Result<()> {
        if self.foreign() {
            let ask = wire::GetAttrIn::default();
            let answer: wire::AttrOut = self.share.client.call(Opcode::GetAttr, self.id, &[ask.bytes()])?;
            self.size.set(answer.attr.size);
        }
        Ok(())
    }

    fn modified(&self) {
        let now = crate::time::wall_ns();
        self.mtime.set(now);
        self.ctime.set(now);
    }

    fn read_cached(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        let size = self.size.get();
        let mut done = 0;
        while done < buf.len() {
            self.cached.set(true);
            let (client, cache) = (&self.share.client, &self.share.cache);
            match cache.read(client, self.id, size, offset + done as u64, &mut buf[done..]) {
                Some(Ok(0)) => break,
                Some(Ok(len)) => done += len,
                Some(Err(error)) if done == 0 => return Err(error),
                Some(Err(_)) => break,
                // No memory to keep it in: read it as it is, but none of a block that may be dirty.
                None => {
                    let at = offset + done as u64;
                    let end = buf.len().min(done + (BLOCK - at % BLOCK) as usize);
                    match self.read_all(&mut [&mut buf[done..end]], at) {
                        Ok(0) => break,
                        Ok(len) => done += len,
                        Err(error) if done == 0 => return Err(error),
                        Err(_) => break,
                    }
                }
            }
        }
        Ok(done)
    }

    fn read_all(&self, buffers: &mut [&mut [u8]], offset: u64) -> Result<usize> {
        let left = usize::try_from(self.size.get().saturating_sub(offset)).unwrap_or(usize::MAX);
        let pieces = buffers.iter_mut().map(|buffer| (buffer.as_mut_ptr().cast_const(), buffer.len()));
        transfer(left, pieces, || self.share.client.segments(), |segments, done| {
            self.share.client.read(Opcode::Read, self.id, offset + done as u64, segments)
        })
    }

    /// Reads into several buffers as if they were one, in as few requests as can be.
    pub fn read_vectored(&self, buffers: &mut [&mut [u8]], offset: u64) -> Result<usize> {
        self.regular()?;
        self.refresh()?;
        let end = buffers.iter().fold(offset, |end, buffer| end.saturating_add(buffer.len() as u64));
        if !self.is_dirty_in(offset, end) {
            return self.read_all(buffers, offset);
        }
        let mut done = 0;
        for buffer in buffers {
            let len = self.read_cached(buffer, offset + done as u64)?;
            done += len;
            if len < buffer.len() {
                break;
            }
        }
        Ok(done)
    }

    fn is_dirty_in(&self, from: u64, to: u64) -> bool {
        self.cached.get() && self.share.cache.has_dirty(self.id, from, to.min(self.size.get()))
    }

    /// Whether a write can stay in the cache: whole blocks, for all of which the host has room. They may lie past the end if
    /// the file grows by them.
    fn can_stay(&self, offset: u64, len: usize) -> bool {
        let (end, size) = (offset + len as u64, self.size.get());
        let whole = !self.foreign()
            && len > 0
            && len <= WRITE_MAX
            && offset.is_multiple_of(BLOCK)
            && end.is_multiple_of(BLOCK)
            && (end <= size || offset <= size && size.is_multiple_of(BLOCK));
        if !whole {
            return false;
        }
        let missing = self.owned.borrow().first_missing(offset, end);
        if missing == end {
            return true;
        }
        match end <= size {
            true => self.get_room(missing, end, end.next_multiple_of(WINDOW).min(size)),
            // A file that is small may stay so.
            false => size >= WINDOW && missing >= size && self.get_room(missing, end, end + size.min(AHEAD)),
        }
    }

    /// With a flush the host takes back the room that it gave past the end.
    pub(super) fn give_back_room(&self) {
        self.owned.borrow_mut().cut(self.size.get());
    }

    /// Asks the host for room from `from` to `end`, `to` at least. To the end of a window, since the log is made as one hole
    /// and written block after block; ahead of a file that grows, which a flush takes back. Where there is room already, as in
    /// a table after a wake, the host tells how far it goes.
    fn get_room(&self, from: u64, to: u64, end: u64) -> bool {
        if !self.gives_room.get() {
            return false;
        }
        let mode = wire::FALLOCATE_KEEP_SIZE | wire::FALLOCATE_OWN;
        let ask = wire::FAllocateIn { offset: from, len: end - from, mode, ..Default::default() };
        match self.share.client.call::<wire::RoomOut>(Opcode::FAllocate, self.id, &[ask.bytes()]) {
            Ok(room) => {
                self.owned.borrow_mut().add(from, room.end.min(end.max(self.size.get())));
                room.end >= to
            }
            // There may be room for this one write.
            Err(Errno::ENOSPC) => false,
            Err(_) => {
                self.gives_room.set(false);
                false
            }
        }
    }

    /// The same for writing.
    pub fn write_vectored(&self, buffers: &[&[u8]], offset: u64) -> Result<usize> {
        self.regular()?;
        let total: usize = buffers.iter().map(|buffer| buffer.len()).sum();
        offset.checked_add(total as u64).filter(|&end| end <= i64::MAX as u64).ok_or(Errno::EFBIG)?;
        let Share { client, cache, .. } = self.share;
        if self.can_stay(offset, total) {
            self.cached.set(true);
            let size = self.size.get().max(offset + total as u64);
            if cache.put(client, self.id, size, offset, buffers) {
                self.size.set(size);
                self.modified();
                return Ok(total);
            }
        }
        let pieces = buffers.iter().map(|buffer| (buffer.as_ptr(), buffer.len()));
        let result = transfer(usize::MAX, pieces, || client.segments(), |segments, done| {
            let at = offset + done as u64;
            let len = client.write(self.id, at, segments)?;
            self.size.set(self.size.get().max(at + len as u64));
            self.modified();
            Ok(len)
        });
        let taken = *result.as_ref().unwrap_or(&0);
        if !self.foreign() {
            self.owned.borrow_mut().add(offset, offset + taken as u64);
        }
        if self.cached.get() {
            let (mut at, mut left) = (offset, taken);
            for buffer in buffers {
                let part = &buffer[..buffer.len().min(left)];
                cache.wrote(self.id, at, part);
                at += part.len() as u64;
                left -= part.len();
            }
            if taken < total {
                cache.mistrust(self.id, at, offset + total as u64);
                // What the cache had begun to keep of it past the file's end.
                cache.cut(self.id, self.size.get());
            }
        }
        result
    }

    /// Sets attributes; `change.valid` says which.
    fn set_attributes(&self, change: &wire::SetAttrIn) -> Result<()> {
        self.share.client.call::<wire::AttrOut>(Opcode::SetAttr, self.id, &[change.bytes()]).map(|_| ())
    }

    /// Sets access and modification time, ns since 1970; `None` leaves one as it is.
    pub fn set_times(&self, atime: Option<u64>, mtime: Option<u64>) -> Result<()> {
        let mut change = wire::SetAttrIn::default();
        if let Some(time) = atime {
            change.valid |= wire::valid::ATIME;
            (change.atime, change.atime_ns) = split(time);
        }
        if let Some(time) = mtime {
            change.valid |= wire::valid::MTIME;
            (change.mtime, change.mtime_ns) = split(time);
        }
        if change.valid == 0 {
            return Ok(());
        }
        self.set_attributes(&change)?;
        self.atime.set(atime.unwrap_or(self.atime.get()));
        self.mtime.set(mtime.unwrap_or(self.mtime.get()));
        self.ctime.set(crate::time::wall_ns());
        Ok(())
    }

    pub fn statfs(&self) -> Result<StatFs> {
        let answer: wire::StatFsOut = self.share.client.call(Opcode::StatFs, self.id, &[])?;
        Ok(StatFs {
            kind: 0x6573_5546, // FUSE_SUPER_MAGIC
            block_size: u64::from(answer.block_size),
            blocks: answer.blocks,
            free: answer.free,
            available: answer.available,
            files: answer.files,
            files_free: answer.files_free,
        })
    }

    /// Makes everything on the share durable.
    pub fn sync_share(&self) -> Result<()> {
        self.share.give_back_room();
        self.share.cache.write_all(&self.share.client)?;
        self.share.client.call_empty(Opcode::SyncFs, wire::ROOT, &[wire::SyncFsIn::default().bytes()])
    }
}

/// Moves up to `left` bytes between pieces of memory and the host, as many pieces in a request as it can carry.
/// `request` gets the filled list and how much was moved before it, and answers how much it moved. An error after
/// something has moved is left for the next call to meet.
fn transfer(
    mut left: usize,
    pieces: impl Iterator<Item = (*const u8, usize)>,
    empty: impl Fn() -> Segments,
    mut request: impl FnMut(&Segments, usize) -> Result<usize>,
) -> Result<usize> {
    let mut done = 0;
    let mut segments = empty();
    // True when the transfer is over.
    let mut send = |segments: &mut Segments, done: &mut usize| -> Result<bool> {
        let want = segments.len();
        if want == 0 {
            return Ok(false);
        }
        match request(segments, *done) {
            Ok(len) => {
                *done += len;
                *segments = empty();
                Ok(len < want)
            }
            Err(error) if *done == 0 => Err(error),
            Err(_) => Ok(true),
        }
    };
    for (start, len) in pieces {
        let len = len.min(left);
        left -= len;
        let mut at = 0;
        while at < len {
            at += segments.add(start.wrapping_add(at), len - at);
            if segments.is_full() && send(&mut segments, &mut done)? {
                return Ok(done);
            }
        }
    }
    send(&mut segments, &mut done)?;
    Ok(done)
}

fn split(time: u64) -> (u64, u32) {
    (time / 1_000_000_000, (time % 1_000_000_000) as u32)
}

impl File for Inode {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn seekable(&self) -> bool {
        true
    }

    fn stat(&self) -> Result<Stat> {
        self.refresh()?;
        let permissions = match self.kind {
            kind::DIRECTORY => 0o700,
            kind::LINK => 0o777,
            _ => 0o600,
        };
        Ok(Stat {
            ino: self.id,
            mode: u32::from(self.kind) << 12 | permissions,
            nlink: self.nlink.get(),
            uid: super::OWNER,
            gid: super::OWNER,
            size: self.size.get(),
            blocks: self.size.get().div_ceil(512),
            atime: self.atime.get(),
            mtime: self.mtime.get(),
            ctime: self.ctime.get(),
            dev: DEVICE,
        })
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        self.regular()?;
        self.refresh()?;
        if offset >= self.size.get() {
            return Ok(0);
        }
        let end = offset.saturating_add(buf.len() as u64);
        if !self.foreign() && ((buf.len() as u64) < WINDOW || self.is_dirty_in(offset, end)) {
            self.read_cached(buf, offset)
        } else {
            self.read_all(&mut [buf], offset)
        }
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<usize> {
        self.write_vectored(&[buf], offset)
    }

    fn len(&self) -> Result<u64> {
        self.refresh()?;
        Ok(self.size.get())
    }

    fn truncate(&self, len: u64) -> Result<()> {
        self.regular()?;
        if len > i64::MAX as u64 {
            return Err(Errno::EFBIG);
        }
        if len == self.size.get() {
            return Ok(());
        }
        if self.is_dirty_in(len, len.next_multiple_of(BLOCK)) && !len.is_multiple_of(BLOCK) {
            // Only whole blocks are written later.
            self.share.cache.write_node(&self.share.client, self.id)?;
        }
        self.set_attributes(&wire::SetAttrIn { valid: wire::valid::SIZE, size: len, ..Default::default() })?;
        if len < self.size.replace(len) {
            self.share.cache.cut(self.id, len);
            self.owned.borrow_mut().cut(len);
        }
        self.modified();
        Ok(())
    }

    fn sync(&self, data_only: bool) -> Result<()> {
        let flags = if data_only { wire::FSYNC_DATA } else { 0 };
        let ask = wire::FSyncIn { flags, ..Default::default() };
        if self.kind == kind::DIRECTORY {
            return self.share.client.call_empty(Opcode::FSyncDir, self.id, &[ask.bytes()]);
        }
        self.give_back_room();
        self.share.cache.flush(&self.share.client, self.id, &ask)
    }

    fn keep(&self) -> Result<()> {
        if self.kind != kind::FILE || self.foreign() {
            return Ok(());
        }
        self.cached.set(true);
        self.share.cache.keep(&self.share.client, self.id, self.size.get())
    }

    fn allocate(&self, offset: u64, len: u64) -> Result<()> {
        self.regular()?;
        let end = offset.checked_add(len).filter(|&end| end <= i64::MAX as u64).ok_or(Errno::EFBIG)?;
        if len == 0 {
            return Err(Errno::EINVAL);
        }
        let ask = wire::FAllocateIn { offset, len, ..Default::default() };
        self.share.client.call_empty(Opcode::FAllocate, self.id, &[ask.bytes()])?;
        let before = self.size.get();
        self.size.set(before.max(end));
        if !self.foreign() {
            // Below the end it may be the template's, for which the layer has no room yet.
            self.owned.borrow_mut().add(offset.max(before), end);
        }
        self.modified();
        Ok(())
    }

    fn entries(&self) -> Result<Vec<DirEntry>> {
        Inode::entries(self).map(|entries| with_dots(self.id, entries))
    }
}
