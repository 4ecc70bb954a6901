//! What a descriptor stands for: one trait for everything that can be opened.
//!
//! Regular files and directories are addressed by offset and never block. Streams (pipes, sockets, event
//! sources) have no offset, may block, and tell `epoll` their readiness. A type implements what it can do; the
//! defaults answer as Linux answers for a descriptor of the wrong kind.

use crate::errno::{Errno, Result};
use crate::wait::WaitQueue;
use alloc::vec::Vec;
use core::any::Any;

/// What `stat` tells. Times are in ns since 1970.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stat {
    pub ino: u64,
    /// Type and permission bits, as in `st_mode`.
    pub mode: u32,
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
    pub size: u64,
    /// Blocks of 512 bytes.
    pub blocks: u64,
    pub atime: u64,
    pub mtime: u64,
    pub ctime: u64,
    /// Which mount it is on; distinct mounts have distinct numbers.
    pub dev: u64,
}

/// One name in a directory. `kind` is a `DT_*` value.
pub struct DirEntry {
    pub ino: u64,
    pub kind: u8,
    pub name: Vec<u8>,
}

/// Readiness bits, with the values of `EPOLLIN` and its kin.
pub mod ready {
    pub const IN: u32 = 0x001;
    pub const OUT: u32 = 0x004;
    pub const ERR: u32 = 0x008;
    pub const HUP: u32 = 0x010;
    pub const RDHUP: u32 = 0x2000;
}

pub trait File {
    fn as_any(&self) -> &dyn Any;

    /// True for what has an offset: regular files and directories.
    fn seekable(&self) -> bool {
        false
    }
    fn stat(&self) -> Result<Stat>;

    // Regular files.
    /// Reads at `offset`; 0 at the end of the file.
    fn read_at(&self, _buf: &mut [u8], _offset: u64) -> Result<usize> {
        Err(Errno::ESPIPE)
    }
    fn write_at(&self, _buf: &[u8], _offset: u64) -> Result<usize> {
        Err(Errno::ESPIPE)
    }
    /// Current length in bytes; answered from a cache, since Postgres asks all the time.
    fn len(&self) -> Result<u64> {
        Err(Errno::ESPIPE)
    }
    fn truncate(&self, _len: u64) -> Result<()> {
        Err(Errno::EINVAL)
    }
    /// Makes the content durable; `data_only` as `fdatasync`. Succeeds on directories too.
    fn sync(&self, _data_only: bool) -> Result<()> {
        Err(Errno::EINVAL)
    }
    /// `fallocate`; mode 0 only.
    fn allocate(&self, _offset: u64, _len: u64) -> Result<()> {
        Err(Errno::EOPNOTSUPP)
    }
    /// Has what it holds in memory, over sleeps too, if it is small and caches anything at all: a hint.
    fn keep(&self) -> Result<()> {
        Ok(())
    }
    /// The address at which every process sees `[offset, offset + len)` of a file in guest memory
    /// (`mmap` with `MAP_SHARED`). The file keeps the memory until it is removed and nobody maps it.
    fn map_shared(&self, _offset: u64, _len: u64) -> Result<*mut u8> {
        Err(Errno::ENODEV)
    }
    /// The other half of `map_shared`.
    fn unmap_shared(&self) {}

    // Directories.
    /// Entries from `cursor` (0 at first) on; the cursor after an entry is its index plus one. `.` and `..`
    /// included.
    fn entries(&self) -> Result<Vec<DirEntry>> {
        Err(Errno::ENOTDIR)
    }

    // Streams.
    /// Reads what there is; blocks while there is nothing unless `nonblock`. 0 at the end of the stream.
    fn read(&self, _buf: &mut [u8], _nonblock: bool) -> Result<usize> {
        Err(Errno::EINVAL)
    }
    fn write(&self, _buf: &[u8], _nonblock: bool) -> Result<usize> {
        Err(Errno::EINVAL)
    }
    /// Readiness now, as a mask of [`ready`] bits.
    fn poll(&self) -> u32 {
        ready::IN | ready::OUT
    }
    /// Woken when `poll` may have changed; `None` for what is always ready.
    fn waiters(&self) -> Option<&WaitQueue> {
        None
    }
    /// Called when the last descriptor goes.
    fn close(&self) {}
}
