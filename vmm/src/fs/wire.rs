//! FUSE as it is on the wire: operation numbers, flags, and the layouts of what is read and answered.
//!
//! Source: Linux' `include/uapi/linux/fuse.h`, protocol 7.34. All fields are little-endian, as the guest is.

/// The version answered to INIT. Messages look as since 7.31; 7.34 brought SYNCFS.
pub(crate) const MAJOR: u32 = 7;
pub(crate) const MINOR: u32 = 34;
/// The oldest client taken.
pub(crate) const MINOR_MIN: u32 = 31;

/// In `fsync_flags`, ours and not Linux': the client goes on while the flush is carried out.
pub(crate) const FSYNC_LATER: u32 = 1 << 31;
/// A `fallocate` mode, ours and not Linux': refused if any of the range is the template's, so that a write there needs no
/// more room once it is granted. Answered by a `u64`: the end of the bytes from the range's start on that have room, which
/// may be past the range's.
pub(crate) const FALLOCATE_OWN: u32 = 1 << 31;
pub(crate) const IN_HEADER: usize = 40;
pub(crate) const OUT_HEADER: usize = 16;
/// The most data of one READ or WRITE, in bytes.
pub(crate) const MAX_DATA: usize = 1 << 20;

pub(crate) mod opcode {
    pub const LOOKUP: u32 = 1;
    pub const FORGET: u32 = 2;
    pub const GETATTR: u32 = 3;
    pub const SETATTR: u32 = 4;
    pub const READLINK: u32 = 5;
    pub const SYMLINK: u32 = 6;
    pub const MKNOD: u32 = 8;
    pub const MKDIR: u32 = 9;
    pub const UNLINK: u32 = 10;
    pub const RMDIR: u32 = 11;
    pub const RENAME: u32 = 12;
    pub const LINK: u32 = 13;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const STATFS: u32 = 17;
    pub const RELEASE: u32 = 18;
    pub const FSYNC: u32 = 20;
    pub const INIT: u32 = 26;
    pub const READDIR: u32 = 28;
    pub const RELEASEDIR: u32 = 29;
    pub const FSYNCDIR: u32 = 30;
    pub const CREATE: u32 = 35;
    pub const INTERRUPT: u32 = 36;
    pub const DESTROY: u32 = 38;
    pub const BATCH_FORGET: u32 = 42;
    pub const FALLOCATE: u32 = 43;
    pub const READDIRPLUS: u32 = 44;
    pub const RENAME2: u32 = 45;
    pub const SYNCFS: u32 = 50;
}

/// INIT flags.
pub(crate) mod init {
    pub const ASYNC_READ: u32 = 1 << 0;
    pub const BIG_WRITES: u32 = 1 << 5;
    pub const DO_READDIRPLUS: u32 = 1 << 13;
    pub const NO_OPEN_SUPPORT: u32 = 1 << 17;
    pub const PARALLEL_DIROPS: u32 = 1 << 18;
    pub const MAX_PAGES: u32 = 1 << 22;
    pub const NO_OPENDIR_SUPPORT: u32 = 1 << 24;
    /// What this device can.
    pub const OURS: u32 =
        ASYNC_READ | BIG_WRITES | DO_READDIRPLUS | NO_OPEN_SUPPORT | PARALLEL_DIROPS | MAX_PAGES | NO_OPENDIR_SUPPORT;
}

/// `valid` bits of SETATTR.
pub(crate) mod setattr {
    pub const MODE: u32 = 1 << 0;
    pub const SIZE: u32 = 1 << 3;
    pub const MTIME: u32 = 1 << 5;
    pub const MTIME_NOW: u32 = 1 << 8;
}

/// RENAME2 flags.
pub(crate) const RENAME_NOREPLACE: u32 = 1;

/// Seconds for which the only client may believe names and attributes: until it changes them itself.
const VALID: u64 = 86_400;

/// The header of every request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Header {
    pub len: u32,
    pub opcode: u32,
    pub unique: u64,
    pub node: u64,
    pub uid: u32,
    pub gid: u32,
}

impl Header {
    pub fn parse(bytes: &[u8; IN_HEADER]) -> Header {
        let u32_at = |i: usize| u32::from_le_bytes([bytes[i], bytes[i + 1], bytes[i + 2], bytes[i + 3]]);
        let u64_at = |i: usize| u64::from(u32_at(i)) | u64::from(u32_at(i + 4)) << 32;
        Header {
            len: u32_at(0),
            opcode: u32_at(4),
            unique: u64_at(8),
            node: u64_at(16),
            uid: u32_at(24),
            gid: u32_at(28),
        }
    }
}

/// The fields of a request, read in order. Anything missing is EINVAL.
pub(crate) struct Fields<'a> {
    rest: &'a [u8],
}

/// A request that ends too early, or has no NUL where a name must end.
#[derive(Debug)]
pub(crate) struct Short;

impl<'a> Fields<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Fields { rest: bytes }
    }
    fn take<const N: usize>(&mut self) -> Result<[u8; N], Short> {
        let (head, rest) = self.rest.split_first_chunk::<N>().ok_or(Short)?;
        self.rest = rest;
        Ok(*head)
    }
    pub fn u32(&mut self) -> Result<u32, Short> {
        Ok(u32::from_le_bytes(self.take()?))
    }
    pub fn u64(&mut self) -> Result<u64, Short> {
        Ok(u64::from_le_bytes(self.take()?))
    }
    pub fn skip(&mut self, n: usize) -> Result<(), Short> {
        self.rest = self.rest.get(n..).ok_or(Short)?;
        Ok(())
    }
    /// Bytes up to a NUL, which is taken too.
    pub fn name(&mut self) -> Result<&'a [u8], Short> {
        let end = self.rest.iter().position(|&b| b == 0).ok_or(Short)?;
        let name = &self.rest[..end];
        self.rest = &self.rest[end + 1..];
        Ok(name)
    }
}

/// `fuse_attr`, 88 bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attr {
    pub ino: u64,
    pub size: u64,
    pub sec: i64,
    pub nsec: u32,
    /// With the file type's bits.
    pub mode: u32,
    pub links: u32,
    pub uid: u32,
    pub gid: u32,
}

/// An answer in the making.
#[derive(Default)]
pub(crate) struct Reply {
    pub bytes: Vec<u8>,
}

impl Reply {
    pub fn u16(&mut self, v: u16) {
        self.bytes.extend_from_slice(&v.to_le_bytes());
    }
    pub fn u32(&mut self, v: u32) {
        self.bytes.extend_from_slice(&v.to_le_bytes());
    }
    pub fn u64(&mut self, v: u64) {
        self.bytes.extend_from_slice(&v.to_le_bytes());
    }
    pub fn zeros(&mut self, n: usize) {
        self.bytes.resize(self.bytes.len() + n, 0);
    }

    fn attr(&mut self, a: &Attr) {
        self.u64(a.ino);
        self.u64(a.size);
        self.u64(a.size.div_ceil(512));
        for _ in 0..3 {
            self.u64(a.sec as u64);
        }
        for _ in 0..3 {
            self.u32(a.nsec);
        }
        for v in [a.mode, a.links, a.uid, a.gid, 0, 8192, 0] {
            self.u32(v);
        }
    }

    /// `fuse_attr_out`, 104 bytes.
    pub fn attr_out(&mut self, a: &Attr) {
        self.u64(VALID);
        self.u64(0);
        self.attr(a);
    }

    /// `fuse_entry_out`, 128 bytes. Node 0 is no entry.
    pub fn entry_out(&mut self, node: u64, a: &Attr) {
        self.u64(node);
        self.u64(0);
        self.u64(VALID);
        self.u64(VALID);
        self.u64(0);
        self.attr(a);
    }

    /// `fuse_dirent` with its padding.
    pub fn dirent(&mut self, ino: u64, next: u64, d_type: u32, name: &[u8]) {
        self.u64(ino);
        self.u64(next);
        self.u32(name.len() as u32);
        self.u32(d_type);
        self.bytes.extend_from_slice(name);
        self.zeros(name.len().next_multiple_of(8) - name.len());
    }
}

/// Bytes that a directory entry with a name of this length takes.
pub(crate) fn dirent_len(name: usize, plus: bool) -> usize {
    24 + name.next_multiple_of(8) + if plus { ENTRY_OUT } else { 0 }
}

/// Bytes of `fuse_entry_out`.
pub(crate) const ENTRY_OUT: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_have_the_sizes_of_the_header_file() {
        let a = Attr { ino: 1, size: 2, sec: 3, nsec: 4, mode: 5, links: 6, uid: 7, gid: 8 };
        let size = |make: &dyn Fn(&mut Reply)| {
            let mut r = Reply::default();
            make(&mut r);
            r.bytes.len()
        };
        assert_eq!(size(&|r| r.attr(&a)), 88);
        assert_eq!(size(&|r| r.attr_out(&a)), 104);
        assert_eq!(size(&|r| r.entry_out(1, &a)), ENTRY_OUT);
        for name in [&b"a"[..], b"12345678", b"123456789"] {
            assert_eq!(size(&|r| r.dirent(1, 2, 3, name)), dirent_len(name.len(), false));
        }
    }
}
