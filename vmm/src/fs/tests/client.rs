//! A FUSE client as the guest's is: it names nodes, keeps no handles, and forgets what it looked up.

use crate::fs::FsDevice;
use crate::fs::wire::{FALLOCATE_OWN, MAX_DATA, opcode};
use vm_memory::VolatileSlice;

pub struct Client {
    pub device: FsDevice,
    unique: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    pub node: u64,
    pub size: u64,
    pub mode: u32,
    pub links: u32,
}

type Answer<T> = Result<T, i32>;

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}
fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// A request's fields, in order.
#[macro_export]
macro_rules! fields {
    ($($field:expr),*) => {{
        let mut bytes: Vec<u8> = Vec::new();
        $(bytes.extend_from_slice(&$field.to_le_bytes());)*
        bytes
    }};
}

impl Client {
    pub fn new(device: FsDevice) -> Client {
        let mut client = Client { device, unique: 0 };
        let answer = client.call(opcode::INIT, 0, &fields!(7u32, 31u32, 1u32 << 20, u32::MAX), 64).unwrap();
        assert_eq!((u32_at(&answer, 0), u32_at(&answer, 4), answer.len()), (7, 31, 64));
        let flags = u32_at(&answer, 12);
        assert_ne!(flags & 1 << 17, 0, "no-open support");
        assert_ne!(flags & 1 << 24, 0, "no-opendir support");
        assert_eq!(u32_at(&answer, 20), MAX_DATA as u32);
        client
    }

    /// One message, in slices of odd sizes; the answer's body, or its errno.
    pub fn call(&mut self, opcode: u32, node: u64, body: &[u8], room: usize) -> Answer<Vec<u8>> {
        self.unique += 1;
        let mut message = fields!((40 + body.len()) as u32, opcode, self.unique, node, 1000u32, 1000u32, 1u32, 0u32);
        message.extend_from_slice(body);
        let mut out = vec![0xAA; 16 + room];
        let n = {
            let cut = (7 * self.unique as usize) % message.len();
            let (a, b) = message.split_at_mut(cut);
            let cut = (13 * self.unique as usize) % out.len();
            let (c, d) = out.split_at_mut(cut);
            let readable = [VolatileSlice::from(a), VolatileSlice::from(b)];
            let writable = [VolatileSlice::from(c), VolatileSlice::from(d)];
            self.device.handle(&readable, &writable)
        };
        if n == 0 {
            assert!(out.iter().all(|&b| b == 0xAA));
            return Ok(Vec::new());
        }
        assert_eq!(u32_at(&out, 0) as usize, n);
        assert_eq!(u64_at(&out, 8), self.unique);
        match u32_at(&out, 4) as i32 {
            0 => Ok(out[16..n].to_vec()),
            error => Err(-error),
        }
    }

    fn stat(bytes: &[u8], node: u64) -> Stat {
        Stat { node, size: u64_at(bytes, 8), mode: u32_at(bytes, 60), links: u32_at(bytes, 64) }
    }

    fn entry(bytes: Vec<u8>) -> Stat {
        Self::stat(&bytes[40..], u64_at(&bytes, 0))
    }

    fn named(mut head: Vec<u8>, names: &[&[u8]]) -> Vec<u8> {
        for name in names {
            head.extend_from_slice(name);
            head.push(0);
        }
        head
    }

    pub fn lookup(&mut self, node: u64, name: &[u8]) -> Answer<Stat> {
        self.call(opcode::LOOKUP, node, &Self::named(vec![], &[name]), 128).map(Self::entry)
    }
    pub fn forget(&mut self, node: u64) {
        assert_eq!(self.call(opcode::BATCH_FORGET, 0, &fields!(1u32, 0u32, node, 1u64), 0), Ok(vec![]));
    }
    pub fn getattr(&mut self, node: u64) -> Answer<Stat> {
        self.call(opcode::GETATTR, node, &fields!(0u64, 0u64), 104).map(|b| Self::stat(&b[16..], node))
    }
    pub fn setattr(&mut self, node: u64, size: Option<u64>, mode: Option<u32>) -> Answer<Stat> {
        let valid = u32::from(size.is_some()) << 3 | u32::from(mode.is_some());
        let zero = 0u64;
        let body = fields!(
            valid, 0u32, zero, size.unwrap_or(0), zero, zero, zero, zero, 0u32, 0u32, 0u32, mode.unwrap_or(0), zero, zero
        );
        assert_eq!(body.len(), 88);
        self.call(opcode::SETATTR, node, &body, 104).map(|b| Self::stat(&b[16..], node))
    }
    pub fn create(&mut self, node: u64, name: &[u8], mode: u32, flags: i32) -> Answer<Stat> {
        let body = Self::named(fields!(flags as u32, mode, 0u32, 0u32), &[name]);
        self.call(opcode::CREATE, node, &body, 144).map(|b| {
            assert_eq!(b.len(), 144);
            Self::entry(b)
        })
    }
    pub fn mkdir(&mut self, node: u64, name: &[u8]) -> Answer<Stat> {
        self.call(opcode::MKDIR, node, &Self::named(fields!(0o700u32, 0u32), &[name]), 128).map(Self::entry)
    }
    pub fn symlink(&mut self, node: u64, name: &[u8], target: &[u8]) -> Answer<Stat> {
        self.call(opcode::SYMLINK, node, &Self::named(vec![], &[name, target]), 128).map(Self::entry)
    }
    pub fn readlink(&mut self, node: u64) -> Answer<Vec<u8>> {
        self.call(opcode::READLINK, node, &[], 4096)
    }
    pub fn link(&mut self, id: u64, node: u64, name: &[u8]) -> Answer<Stat> {
        self.call(opcode::LINK, node, &Self::named(fields!(id), &[name]), 128).map(Self::entry)
    }
    pub fn unlink(&mut self, node: u64, name: &[u8]) -> Answer<()> {
        self.call(opcode::UNLINK, node, &Self::named(vec![], &[name]), 0).map(drop)
    }
    pub fn rmdir(&mut self, node: u64, name: &[u8]) -> Answer<()> {
        self.call(opcode::RMDIR, node, &Self::named(vec![], &[name]), 0).map(drop)
    }
    pub fn rename(&mut self, from: u64, old: &[u8], to: u64, new: &[u8], flags: u32) -> Answer<()> {
        if flags == 0 {
            return self.call(opcode::RENAME, from, &Self::named(fields!(to), &[old, new]), 0).map(drop);
        }
        self.call(opcode::RENAME2, from, &Self::named(fields!(to, flags, 0u32), &[old, new]), 0).map(drop)
    }
    pub fn read(&mut self, node: u64, offset: u64, size: usize) -> Answer<Vec<u8>> {
        let body = fields!(0u64, offset, size as u32, 0u32, 0u64, 0u32, 0u32);
        self.call(opcode::READ, node, &body, size)
    }
    pub fn write(&mut self, node: u64, offset: u64, data: &[u8]) -> Answer<usize> {
        let mut body = fields!(0u64, offset, data.len() as u32, 0u32, 0u64, 0u32, 0u32);
        body.extend_from_slice(data);
        self.call(opcode::WRITE, node, &body, 8).map(|b| u32_at(&b, 0) as usize)
    }
    pub fn fallocate(&mut self, node: u64, offset: u64, len: u64, mode: u32) -> Answer<()> {
        self.call(opcode::FALLOCATE, node, &fields!(0u64, offset, len, mode, 0u32), 0).map(drop)
    }
    /// Where the room ends that was granted at `offset`.
    pub fn room(&mut self, node: u64, offset: u64, len: u64) -> Answer<u64> {
        let mode = libc::FALLOC_FL_KEEP_SIZE as u32 | FALLOCATE_OWN;
        self.call(opcode::FALLOCATE, node, &fields!(0u64, offset, len, mode, 0u32), 8).map(|answer| u64_at(&answer, 0))
    }
    pub fn fsync(&mut self, node: u64) -> Answer<()> {
        self.call(opcode::FSYNC, node, &fields!(0u64, 1u32, 0u32), 0).map(drop)
    }
    pub fn fsyncdir(&mut self, node: u64) -> Answer<()> {
        self.call(opcode::FSYNCDIR, node, &fields!(0u64, 0u32, 0u32), 0).map(drop)
    }
    pub fn syncfs(&mut self) -> Answer<()> {
        self.call(opcode::SYNCFS, 1, &fields!(0u64), 0).map(drop)
    }

    /// Entries after `offset` that fit in `room` bytes: name, type, next offset.
    pub fn readdir(&mut self, node: u64, offset: u64, room: usize, plus: bool) -> Answer<Vec<(Vec<u8>, u32, u64)>> {
        let code = if plus { opcode::READDIRPLUS } else { opcode::READDIR };
        let bytes = self.call(code, node, &fields!(0u64, offset, room as u32, 0u32, 0u64, 0u32, 0u32), room)?;
        let (mut at, mut found) = (0, Vec::new());
        while at < bytes.len() {
            if plus {
                let id = u64_at(&bytes, at);
                at += 128;
                if id != 0 {
                    self.forget(id);
                }
            }
            let len = u32_at(&bytes, at + 16) as usize;
            found.push((bytes[at + 24..at + 24 + len].to_vec(), u32_at(&bytes, at + 20), u64_at(&bytes, at + 8)));
            at += (24 + len).next_multiple_of(8);
        }
        Ok(found)
    }

    /// All names in a folder, asked for in pieces.
    pub fn names(&mut self, node: u64, room: usize, plus: bool) -> Answer<Vec<Vec<u8>>> {
        let (mut at, mut names) = (0, Vec::new());
        loop {
            let part = self.readdir(node, at, room, plus)?;
            let Some(last) = part.last() else { break };
            at = last.2;
            names.extend(part.into_iter().map(|(name, ..)| name));
        }
        names.retain(|n| n != b"." && n != b"..");
        names.sort();
        Ok(names)
    }

    /// Walks a path from the root; the caller has one reference to the end.
    pub fn walk(&mut self, path: &str) -> Answer<Stat> {
        let mut at = self.getattr(1)?;
        for name in path.split('/').filter(|n| !n.is_empty()) {
            let next = self.lookup(at.node, name.as_bytes());
            if at.node != 1 {
                self.forget(at.node);
            }
            at = next?;
        }
        Ok(at)
    }
}
