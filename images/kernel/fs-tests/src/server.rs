//! A FUSE server in memory: parses what the driver sends, strictly, and counts it.
//!
//! Written from the protocol's header file alone, not from the client's structures, so that a wrong layout on one side
//! does not agree with itself.

use crate::rings::{Chain, Ring};
use std::collections::{BTreeMap, HashMap};

pub const LOOKUP: u32 = 1;
pub const GETATTR: u32 = 3;
pub const SETATTR: u32 = 4;
pub const READLINK: u32 = 5;
pub const SYMLINK: u32 = 6;
pub const MKDIR: u32 = 9;
pub const UNLINK: u32 = 10;
pub const RMDIR: u32 = 11;
pub const RENAME: u32 = 12;
pub const LINK: u32 = 13;
pub const READ: u32 = 15;
pub const WRITE: u32 = 16;
pub const STATFS: u32 = 17;
pub const FSYNC: u32 = 20;
pub const INIT: u32 = 26;
pub const READDIR: u32 = 28;
pub const FSYNCDIR: u32 = 30;
pub const CREATE: u32 = 35;
pub const BATCH_FORGET: u32 = 42;
pub const FALLOCATE: u32 = 43;
pub const SYNCFS: u32 = 50;

const ENOENT: i32 = 2;
const EEXIST: i32 = 17;
const ENOTDIR: i32 = 20;
const EISDIR: i32 = 21;
const EINVAL: i32 = 22;
const ENOTEMPTY: i32 = 39;
const ENOSYS: i32 = 38;
const EOPNOTSUPP: i32 = 95;

const DIRECTORY: u32 = 0o040000;
const FILE: u32 = 0o100000;
const SYMLINK_MODE: u32 = 0o120000;

pub struct Inode {
    mode: u32,
    pub data: Vec<u8>,
    pub names: BTreeMap<Vec<u8>, u64>,
    nlink: u32,
    pub lookups: u64,
    pub mtime: u64,
}

pub struct Server {
    ring: Ring,
    pub inodes: HashMap<u64, Inode>,
    next: u64,
    /// Opcode and node of every request that has an answer, in order.
    pub log: Vec<(u32, u64)>,
    /// Readable and writable descriptors of the last request.
    pub shape: (usize, usize),
    pub forgets: Vec<(u64, u64)>,
    /// Errors to answer with, by opcode.
    pub fail: HashMap<u32, i32>,
    /// Writes and reads are cut to this many bytes.
    pub cut: usize,
    pub minor: u32,
    /// Gives room below a file's end when asked.
    pub gives_room: bool,
    /// Where the room begins that was asked for.
    pub rooms: Vec<u64>,
    /// Answer the next request with this instead.
    pub garble: Option<Vec<u8>>,
    /// Look at the ring only at every so many doorbells.
    pub lazy: u32,
    pub rung: u32,
    pub syncs: Vec<(u32, u64, u32)>,
    /// What a power cut would leave of each node's content.
    pub durable: HashMap<u64, Vec<u8>>,
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// Takes a NUL-terminated name off.
fn name(bytes: &mut &[u8]) -> Vec<u8> {
    let end = bytes.iter().position(|&b| b == 0).expect("a name without its end");
    let name = bytes[..end].to_vec();
    assert!(!name.is_empty() && !name.contains(&b'/') && name != b"." && name != b"..", "a bad name");
    *bytes = &bytes[end + 1..];
    name
}

impl Server {
    pub fn new() -> Self {
        let mut server = Self {
            ring: Ring::new(dormouse_abi::queue::FS),
            inodes: HashMap::new(),
            next: 1,
            log: Vec::new(),
            shape: (0, 0),
            forgets: Vec::new(),
            fail: HashMap::new(),
            cut: usize::MAX,
            minor: 38,
            gives_room: false,
            rooms: Vec::new(),
            garble: None,
            lazy: 1,
            rung: 0,
            syncs: Vec::new(),
            durable: HashMap::new(),
        };
        server.make(DIRECTORY | 0o755, Vec::new());
        server
    }

    fn make(&mut self, mode: u32, data: Vec<u8>) -> u64 {
        let id = self.next;
        self.next += 1;
        let nlink = if mode & 0o170000 == DIRECTORY { 2 } else { 1 };
        self.inodes.insert(id, Inode { mode, data, names: BTreeMap::new(), nlink, lookups: 0, mtime: 1_600_000_000 });
        id
    }

    /// Puts a file (or, with a slash at the end, a directory) in the tree, behind the driver's back.
    pub fn put(&mut self, path: &str, data: &[u8]) -> u64 {
        let mut at = 1;
        let directory = path.ends_with('/');
        let mut parts = path.split('/').filter(|p| !p.is_empty()).peekable();
        while let Some(part) = parts.next() {
            let known = self.inodes[&at].names.get(part.as_bytes()).copied();
            at = known.unwrap_or_else(|| {
                let leaf = parts.peek().is_none() && !directory;
                let id = if leaf { self.make(FILE | 0o644, data.to_vec()) } else { self.make(DIRECTORY | 0o755, vec![]) };
                self.inodes.get_mut(&at).unwrap().names.insert(part.into(), id);
                id
            });
        }
        at
    }

    pub fn find(&self, path: &str) -> Option<u64> {
        path.split('/').filter(|p| !p.is_empty()).try_fold(1, |at, part| self.inodes[&at].names.get(part.as_bytes()).copied())
    }

    pub fn content(&self, path: &str) -> &[u8] {
        &self.inodes[&self.find(path).expect("no such file on the server")].data
    }

    /// The same tree, for a driver that starts anew.
    pub fn restarted(self) -> Self {
        Self { ring: Ring::new(dormouse_abi::queue::FS), ..self }
    }

    /// How often the opcode came.
    pub fn count(&self, opcode: u32) -> usize {
        self.log.iter().filter(|(code, _)| *code == opcode).count()
    }

    pub fn serve(&mut self) {
        self.rung += 1;
        if !self.rung.is_multiple_of(self.lazy) {
            return;
        }
        while let Some(chain) = self.ring.next() {
            let request = &chain.request;
            assert_eq!(u32_at(request, 0) as usize, request.len(), "the header's length is wrong");
            let (opcode, unique, node) = (u32_at(request, 4), u64_at(request, 8), u64_at(request, 16));
            if opcode == BATCH_FORGET {
                assert!(chain.room.is_empty(), "FORGET has no answer");
                self.forget(&request[40..]);
                self.ring.answer(&chain, &[]);
                continue;
            }
            self.log.push((opcode, node));
            self.shape = (chain.readable, chain.room.len());
            if let Some(bytes) = self.garble.take() {
                self.ring.answer(&chain, &bytes);
                continue;
            }
            let result = match self.fail.get(&opcode) {
                Some(&error) => Err(error),
                None => self.handle(opcode, node, &chain),
            };
            let (error, body) = match result {
                Ok(body) => (0, body),
                Err(error) => (-error, Vec::new()),
            };
            let mut answer = Vec::new();
            answer.extend((16 + body.len() as u32).to_le_bytes());
            answer.extend(error.to_le_bytes());
            answer.extend(unique.to_le_bytes());
            answer.extend(body);
            self.ring.answer(&chain, &answer);
        }
    }

    fn forget(&mut self, body: &[u8]) {
        let count = u32_at(body, 0) as usize;
        assert_eq!(body.len(), 8 + 16 * count);
        for one in body[8..].chunks(16) {
            let (node, lookups) = (u64_at(one, 0), u64_at(one, 8));
            self.forgets.push((node, lookups));
            let inode = self.inodes.get_mut(&node).expect("FORGET of an unknown node");
            inode.lookups = inode.lookups.checked_sub(lookups).expect("forgotten more often than looked up");
            if inode.lookups == 0 && inode.nlink == 0 {
                self.inodes.remove(&node);
            }
        }
    }

    fn attr(&self, id: u64) -> Vec<u8> {
        let inode = &self.inodes[&id];
        let mut out = Vec::new();
        // A host inode number that is not the node id.
        for value in [id + 1000, inode.data.len() as u64, 8, inode.mtime, inode.mtime, inode.mtime] {
            out.extend(value.to_le_bytes());
        }
        for value in [0, 500, 0, inode.mode, inode.nlink, 0, 0, 0, 4096, 0] {
            out.extend(value.to_le_bytes());
        }
        assert_eq!(out.len(), 88);
        out
    }

    fn entry(&mut self, id: u64) -> Vec<u8> {
        self.inodes.get_mut(&id).unwrap().lookups += 1;
        let mut out = Vec::new();
        for value in [id, 0, 0, 0, 0] {
            out.extend(u64::to_le_bytes(value));
        }
        out.extend(self.attr(id));
        out
    }

    fn inode(&mut self, id: u64) -> Result<&mut Inode, i32> {
        self.inodes.get_mut(&id).ok_or(ENOENT)
    }

    fn enter(&mut self, directory: u64, name: Vec<u8>, mode: u32, data: Vec<u8>) -> Result<Vec<u8>, i32> {
        if self.inode(directory)?.names.contains_key(&name) {
            return Err(EEXIST);
        }
        let id = self.make(mode, data);
        self.inode(directory)?.names.insert(name, id);
        Ok(self.entry(id))
    }

    fn is_directory(&self, id: u64) -> bool {
        self.inodes[&id].mode & 0o170000 == DIRECTORY
    }

    /// Whether `other` is `id` or anywhere below it.
    fn below(&self, id: u64, other: u64) -> bool {
        id == other || self.inodes[&id].names.values().any(|&child| self.below(child, other))
    }

    fn drop_link(&mut self, id: u64) {
        let directory = self.is_directory(id);
        let inode = self.inodes.get_mut(&id).unwrap();
        inode.nlink = if directory { 0 } else { inode.nlink - 1 };
        if inode.nlink == 0 && inode.lookups == 0 {
            self.inodes.remove(&id);
        }
    }

    fn handle(&mut self, opcode: u32, node: u64, chain: &Chain) -> Result<Vec<u8>, i32> {
        let mut body = &chain.request[40..];
        let room: usize = chain.room.iter().map(|r| r.1 as usize).sum();
        match opcode {
            INIT => {
                assert_eq!(body.len(), 64);
                assert_eq!((u32_at(body, 0), u32_at(body, 4)), (7, 31));
                let flags = u32_at(body, 12);
                assert!(flags & (1 << 22) != 0 && flags & (1 << 17) != 0 && flags & (1 << 24) != 0);
                let mut out = vec![0; 64];
                out[0..4].copy_from_slice(&7u32.to_le_bytes());
                out[4..8].copy_from_slice(&self.minor.to_le_bytes());
                out[12..16].copy_from_slice(&flags.to_le_bytes());
                out[20..24].copy_from_slice(&(1u32 << 20).to_le_bytes());
                out[28..30].copy_from_slice(&256u16.to_le_bytes());
                Ok(out)
            }
            LOOKUP => {
                let name = name(&mut body);
                let id = *self.inode(node)?.names.get(&name).ok_or(ENOENT)?;
                Ok(self.entry(id))
            }
            GETATTR => {
                assert_eq!(body.len(), 16);
                Ok([vec![0; 16], self.attr(node)].concat())
            }
            SETATTR => {
                assert_eq!(body.len(), 88);
                let valid = u32_at(body, 0);
                assert_eq!(valid & !(1 << 3 | 1 << 4 | 1 << 5), 0);
                let inode = self.inode(node)?;
                if valid & 1 << 3 != 0 {
                    inode.data.resize(u64_at(body, 16) as usize, 0);
                }
                if valid & 1 << 5 != 0 {
                    inode.mtime = u64_at(body, 40);
                }
                Ok([vec![0; 16], self.attr(node)].concat())
            }
            READLINK => Ok(self.inode(node)?.data.clone()),
            SYMLINK => {
                let name = name(&mut body);
                assert_eq!(body.last(), Some(&0));
                self.enter(node, name, SYMLINK_MODE | 0o777, body[..body.len() - 1].to_vec())
            }
            MKDIR => {
                let mode = u32_at(body, 0) & 0o7777;
                body = &body[8..];
                let name = name(&mut body);
                self.enter(node, name, DIRECTORY | mode, vec![])
            }
            CREATE => {
                let mode = u32_at(body, 4) & 0o7777;
                body = &body[16..];
                let name = name(&mut body);
                let entry = self.enter(node, name, FILE | mode, vec![])?;
                Ok([entry, vec![0; 16]].concat())
            }
            UNLINK | RMDIR => {
                let name = name(&mut body);
                let id = *self.inode(node)?.names.get(&name).ok_or(ENOENT)?;
                let directory = self.is_directory(id);
                if directory != (opcode == RMDIR) {
                    return Err(if directory { EISDIR } else { ENOTDIR });
                }
                if !self.inodes[&id].names.is_empty() {
                    return Err(ENOTEMPTY);
                }
                self.inode(node)?.names.remove(&name);
                self.drop_link(id);
                Ok(vec![])
            }
            RENAME => {
                let to = u64_at(body, 0);
                body = &body[8..];
                let (old, new) = (name(&mut body), name(&mut body));
                assert!(body.is_empty());
                let id = *self.inode(node)?.names.get(&old).ok_or(ENOENT)?;
                if self.below(id, to) {
                    return Err(EINVAL);
                }
                if let Some(&other) = self.inode(to)?.names.get(&new) {
                    if other == id {
                        return Ok(vec![]);
                    }
                    match (self.is_directory(id), self.is_directory(other)) {
                        (_, true) if self.below(other, node) => return Err(ENOTEMPTY),
                        (true, false) => return Err(ENOTDIR),
                        (false, true) => return Err(EISDIR),
                        (true, true) if !self.inodes[&other].names.is_empty() => return Err(ENOTEMPTY),
                        _ => self.drop_link(other),
                    }
                }
                self.inode(node)?.names.remove(&old);
                self.inode(to)?.names.insert(new, id);
                Ok(vec![])
            }
            LINK => {
                let id = u64_at(body, 0);
                body = &body[8..];
                let name = name(&mut body);
                if self.inode(node)?.names.contains_key(&name) {
                    return Err(EEXIST);
                }
                self.inode(id)?.nlink += 1;
                self.inode(node)?.names.insert(name, id);
                Ok(self.entry(id))
            }
            READ => {
                assert_eq!(body.len(), 40);
                assert_eq!(u64_at(body, 0), 0, "a handle that was never given");
                let (offset, size) = (u64_at(body, 8) as usize, u32_at(body, 16) as usize);
                assert_eq!(size + 16, room, "READ's size is not the room for it");
                let cut = self.cut;
                let data = &self.inode(node)?.data;
                let start = offset.min(data.len());
                Ok(data[start..(start + size.min(cut)).min(data.len())].to_vec())
            }
            WRITE => {
                let (offset, size) = (u64_at(body, 8) as usize, u32_at(body, 16) as usize);
                body = &body[40..];
                assert_eq!(body.len(), size, "WRITE's size is not its data's");
                let size = size.min(self.cut);
                let data = &mut self.inode(node)?.data;
                data.resize(data.len().max(offset + size), 0);
                data[offset..offset + size].copy_from_slice(&body[..size]);
                Ok([(size as u32).to_le_bytes(), [0; 4]].concat())
            }
            STATFS => {
                let mut out = vec![0; 80];
                out[0..8].copy_from_slice(&1000u64.to_le_bytes());
                out[40..44].copy_from_slice(&4096u32.to_le_bytes());
                Ok(out)
            }
            FSYNC | FSYNCDIR => {
                assert_eq!(body.len(), 16);
                let content = self.inode(node)?.data.clone();
                self.durable.insert(node, content);
                self.syncs.push((opcode, node, u32_at(body, 8)));
                Ok(vec![])
            }
            READDIR => {
                assert_eq!(body.len(), 40);
                let (offset, size) = (u64_at(body, 8) as usize, u32_at(body, 16) as usize);
                let mut all: Vec<(Vec<u8>, u64)> = vec![(b".".to_vec(), node), (b"..".to_vec(), 1)];
                all.extend(self.inode(node)?.names.iter().map(|(n, id)| (n.clone(), *id)));
                let mut out = Vec::new();
                for (i, (name, id)) in all.iter().enumerate().skip(offset) {
                    let len = (24 + name.len()).next_multiple_of(8);
                    // Also short of what fits: a listing ends with an empty answer only.
                    if out.len() + len > size.min(3000) {
                        break;
                    }
                    let start = out.len();
                    out.extend((id + 1000).to_le_bytes());
                    out.extend((i as u64 + 1).to_le_bytes());
                    out.extend((name.len() as u32).to_le_bytes());
                    out.extend((self.inodes[id].mode >> 12).to_le_bytes());
                    out.extend(name);
                    out.resize(start + len, 0);
                }
                Ok(out)
            }
            FALLOCATE => {
                assert_eq!(body.len(), 32);
                let (offset, len, mode) = (u64_at(body, 8), u64_at(body, 16), u32_at(body, 24));
                match mode {
                    0 => {}
                    // Length kept, and nothing of a template.
                    0x8000_0001 if self.gives_room => {
                        self.rooms.push(offset);
                        return Ok((offset + len).to_le_bytes().to_vec());
                    }
                    0x8000_0001 => return Err(EOPNOTSUPP),
                    _ => return Err(EINVAL),
                }
                let data = &mut self.inode(node)?.data;
                data.resize(data.len().max((offset + len) as usize), 0);
                Ok(vec![])
            }
            SYNCFS => {
                self.durable = self.inodes.iter().map(|(id, inode)| (*id, inode.data.clone())).collect();
                self.syncs.push((opcode, node, 0));
                Ok(vec![])
            }
            _ => Err(ENOSYS),
        }
    }
}
