//! Content and attributes of the share's inodes: what an open file does.
//!
//! An inode is its own open file: nothing is per open, so opening costs no memory and no request. Reads are cut at the
//! cached length, so the read that only meets the end of the file costs nothing either. Reads of a window's length and more
//! go straight between the caller's memory and the host; shorter ones through the page cache.

use super::fuse::Segments;
use super::cache::WINDOW;
use super::share::{DEVICE, Inode};
use super::wire::{self, Opcode, Wire};
use super::{StatFs, kind, with_dots};
use crate::errno::{Errno, Result};
use crate::file::{DirEntry, File, Stat};
use alloc::vec::Vec;
use core::any::Any;

impl Inode {
    /// The content is not what it was: nothing cached is true any more.
    pub(super) fn content_changed(&self) {
        if self.cached.replace(false) {
            self.share.cache.drop_node(self.id);
        }
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
                // No memory to keep it in: read it as it is.
                None => return self.read_all(&mut [&mut buf[..]], offset),
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
        self.read_all(buffers, offset)
    }

    /// The same for writing.
    pub fn write_vectored(&self, buffers: &[&[u8]], offset: u64) -> Result<usize> {
        self.regular()?;
        let total: usize = buffers.iter().map(|buffer| buffer.len()).sum();
        offset.checked_add(total as u64).filter(|&end| end <= i64::MAX as u64).ok_or(Errno::EFBIG)?;
        let pieces = buffers.iter().map(|buffer| (buffer.as_ptr(), buffer.len()));
        let result = transfer(usize::MAX, pieces, || self.share.client.segments(), |segments, done| {
            let at = offset + done as u64;
            let len = self.share.client.write(self.id, at, segments)?;
            self.size.set(self.size.get().max(at + len as u64));
            self.modified();
            Ok(len)
        });
        if self.cached.get() {
            match result {
                Ok(len) if len == total => {
                    let mut at = offset;
                    for buffer in buffers {
                        self.share.cache.wrote(self.id, at, buffer);
                        at += buffer.len() as u64;
                    }
                }
                // What the host has taken of it is not known.
                _ => self.content_changed(),
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
        if (buf.len() as u64) < WINDOW && !self.foreign() { self.read_cached(buf, offset) } else { self.read_all(&mut [buf], offset) }
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
        self.content_changed();
        self.set_attributes(&wire::SetAttrIn { valid: wire::valid::SIZE, size: len, ..Default::default() })?;
        self.size.set(len);
        self.modified();
        Ok(())
    }

    fn sync(&self, data_only: bool) -> Result<()> {
        let flags = if data_only { wire::FSYNC_DATA } else { 0 };
        let ask = wire::FSyncIn { flags, ..Default::default() };
        if self.kind == kind::DIRECTORY {
            return self.share.client.call_empty(Opcode::FSyncDir, self.id, &[ask.bytes()]);
        }
        self.share.client.flush(self.id, &ask)
    }

    fn allocate(&self, offset: u64, len: u64) -> Result<()> {
        self.regular()?;
        let end = offset.checked_add(len).filter(|&end| end <= i64::MAX as u64).ok_or(Errno::EFBIG)?;
        if len == 0 {
            return Err(Errno::EINVAL);
        }
        self.content_changed();
        let ask = wire::FAllocateIn { offset, len, ..Default::default() };
        self.share.client.call_empty(Opcode::FAllocate, self.id, &[ask.bytes()])?;
        self.size.set(self.size.get().max(end));
        self.modified();
        Ok(())
    }

    fn entries(&self) -> Result<Vec<DirEntry>> {
        Inode::entries(self).map(|entries| with_dots(self.id, entries))
    }
}
