//! The host's directory as a tree of inodes: names, attributes and sizes, cached without time-outs.
//!
//! This guest is the only writer of the share, so what it has learnt or done stays true until it changes it itself:
//! `stat`, `len` and a name looked up before never cause a request.
//!
//! - A directory begins unknown. Its first few misses ask for single names; then the whole directory is listed once
//!   and is *complete*: from then on an unknown name is an absent one. A directory made by the guest is complete from
//!   the start. Listing gives names and kinds only; a node is looked up when it is used, so that the host keeps nodes
//!   only for what is.
//! - Inodes live in the cache until [`INODES_MAX`] are there; then those that nobody has open are dropped, and their
//!   names stay. Names are bounded by the database's own files.
//! - An inode that goes sends FORGET (with the next request). Until then the host keeps its content, unlinked or not:
//!   that is how an open file survives `unlink` and `rename`.
//! - An inode is one per node id, whatever its names, so that hard links share one size.
//!
//! The one exception is a folder that the host shows the guest for tests (`mount_foreign`): of its nodes nothing is
//! cached, neither names nor sizes nor content.
//!
//! Whatever the host says, everything belongs to uid and gid 1000, directories have mode 0700 and files 0600: Postgres
//! insists on it, and nobody else is in the guest. The inode number is the node id.
//!
//! A directory can have an *overlay*: names that are in guest memory instead (see `fs/mod.rs`).

use super::fuse::Client;
use super::cache::Cache;
use super::owned::Owned;
use super::wire::{self, Opcode, Wire};
use super::{NAME_MAX, Node, check_name, kind, ramfs};
use crate::errno::{Errno, Result};
use crate::file::DirEntry;
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::rc::{Rc, Weak};
use alloc::vec;
use alloc::vec::Vec;
use core::cell::{Cell, OnceCell, RefCell};
use dormouse_abi::SHARE_ROOT;

/// Inodes kept for nobody.
const INODES_MAX: usize = 16384;
/// Single names asked for before a directory is listed.
const MISSES: u8 = 4;
/// Bytes of one listing request.
const LISTING: usize = 32 << 10;
/// `struct stat`'s device number of the share.
pub const DEVICE: u64 = 2;

/// The share: its connection and what all its inodes have in common.
pub struct Share {
    pub(super) client: Client,
    pub(super) cache: Cache,
    inodes: RefCell<BTreeMap<u64, Weak<Inode>>>,
    /// Inodes at which the cache is trimmed next.
    trim_at: Cell<usize>,
    /// Names in the directory `global` that are in memory.
    global: Overlay,
}

/// Names of a directory that live in guest memory.
#[derive(Clone)]
pub struct Overlay {
    pub covers: fn(&[u8]) -> bool,
    pub directory: Rc<ramfs::Inode>,
}

/// A file, directory or symbolic link of the share.
pub struct Inode {
    pub(super) share: &'static Share,
    pub(super) id: u64,
    /// Lookups that the server counts for this node.
    lookups: Cell<u64>,
    /// A `DT_*` value.
    pub(super) kind: u8,
    pub(super) size: Cell<u64>,
    pub(super) nlink: Cell<u32>,
    pub(super) atime: Cell<u64>,
    pub(super) mtime: Cell<u64>,
    pub(super) ctime: Cell<u64>,
    /// Whether the cache may hold windows of it.
    pub(super) cached: Cell<bool>,
    /// Blocks that can be written over without asking for room.
    pub(super) owned: RefCell<Owned>,
    /// Whether the host may give room for blocks below the end: not if it was asked and they are the template's.
    pub(super) gives_room: Cell<bool>,
    directory: Option<Box<Directory>>,
    target: OnceCell<Box<[u8]>>,
}

#[derive(Default)]
struct Directory {
    names: RefCell<BTreeMap<Box<[u8]>, Entry>>,
    complete: Cell<bool>,
    misses: Cell<u8>,
    overlay: OnceCell<Overlay>,
}

enum Entry {
    /// Known not to be there; only in a directory that is not complete.
    Absent,
    /// There, not looked up.
    Named { kind: u8, ino: u64 },
    Node(Rc<Inode>),
}

impl Share {
    /// Connects and gives the root. `root` and `global` are the overlays of these two directories.
    pub fn mount(root: Overlay, global: Overlay) -> Result<Rc<Inode>> {
        let share: &'static Share = Box::leak(Box::new(Share {
            client: Client::connect()?,
            cache: Cache::default(),
            inodes: RefCell::new(BTreeMap::new()),
            trim_at: Cell::new(INODES_MAX),
            global,
        }));
        let ask = wire::GetAttrIn::default();
        let answer: wire::AttrOut = share.client.call(Opcode::GetAttr, wire::ROOT, &[ask.bytes()])?;
        let inode = share.inode(wire::ROOT, &answer.attr, false)?;
        let directory = inode.directory()?;
        let _ = directory.overlay.set(root);
        Ok(inode)
    }

    /// The root of the folder that the host changes too (`SHARE_VARIABLE`).
    pub fn mount_foreign(&'static self) -> Result<Rc<Inode>> {
        let ask = wire::GetAttrIn::default();
        let answer: wire::AttrOut = self.client.call(Opcode::GetAttr, SHARE_ROOT, &[ask.bytes()])?;
        self.inode(SHARE_ROOT, &answer.attr, false)
    }

    /// The inode of a node that an answer of the server has just named (and counted a lookup of).
    fn adopt(&'static self, entry: &wire::EntryOut, new: bool) -> Result<Rc<Inode>> {
        if entry.node == 0 {
            return Err(Errno::ENOENT);
        }
        let known = self.inodes.borrow().get(&entry.node).and_then(Weak::upgrade);
        let inode = match known {
            // What is cached is newer than or equal to what the server says, but for the number of links.
            Some(inode) => {
                inode.nlink.set(entry.attr.nlink);
                inode
            }
            None => self.inode(entry.node, &entry.attr, new)?,
        };
        inode.lookups.set(inode.lookups.get() + 1);
        Ok(inode)
    }

    /// After a wake: what is not kept of the cache was in no snapshot, and the host's room for files may be another layer's.
    pub fn resumed(&self) {
        assert!(self.cache.is_clean(), "the guest was suspended before all that it had written was the host's");
        self.cache.resumed();
        for inode in self.inodes.borrow().values().filter_map(Weak::upgrade) {
            inode.owned.replace(Owned::default());
            inode.gives_room.set(true);
        }
    }

    /// As a flush of all files.
    pub(super) fn give_back_room(&self) {
        self.inodes.borrow().values().filter_map(Weak::upgrade).for_each(|inode| inode.give_back_room());
    }

    fn inode(&'static self, id: u64, attr: &wire::Attr, new: bool) -> Result<Rc<Inode>> {
        let kind = (attr.mode >> 12) as u8 & 15;
        if !matches!(kind, kind::FILE | kind::DIRECTORY | kind::LINK) {
            crate::klog!("share: node {} is of kind {}, which has no business in a data directory", id, kind);
            return Err(Errno::EIO);
        }
        let directory = (kind == kind::DIRECTORY).then(|| {
            let directory = Directory::default();
            directory.complete.set(new);
            Box::new(directory)
        });
        let inode = Rc::new(Inode {
            share: self,
            id,
            lookups: Cell::new(0),
            kind,
            size: Cell::new(attr.size),
            nlink: Cell::new(attr.nlink),
            atime: Cell::new(nanoseconds(attr.atime, attr.atime_ns)),
            mtime: Cell::new(nanoseconds(attr.mtime, attr.mtime_ns)),
            ctime: Cell::new(nanoseconds(attr.ctime, attr.ctime_ns)),
            cached: Cell::new(false),
            owned: RefCell::new(Owned::default()),
            gives_room: Cell::new(true),
            directory,
            target: OnceCell::new(),
        });
        self.inodes.borrow_mut().insert(id, Rc::downgrade(&inode));
        Ok(inode)
    }
}

fn nanoseconds(seconds: u64, rest: u32) -> u64 {
    seconds.saturating_mul(1_000_000_000).saturating_add(u64::from(rest))
}

impl Drop for Inode {
    fn drop(&mut self) {
        self.share.inodes.borrow_mut().remove(&self.id);
        self.leave_cache();
        if !matches!(self.id, wire::ROOT | SHARE_ROOT) && self.lookups.get() > 0 {
            self.share.client.forget(self.id, self.lookups.get());
        }
    }
}

impl Inode {
    pub fn share(&self) -> &'static Share {
        self.share
    }

    pub fn kind(&self) -> u8 {
        self.kind
    }

    /// Whether the host changes it too, so that nothing about it may be believed later.
    pub(super) fn foreign(&self) -> bool {
        self.id >= SHARE_ROOT
    }

    fn directory(&self) -> Result<&Directory> {
        self.directory.as_deref().ok_or(Errno::ENOTDIR)
    }

    /// The memory directory that holds this name instead, if any does.
    pub fn overlay(&self, name: &[u8]) -> Option<&Rc<ramfs::Inode>> {
        let overlay = self.directory.as_ref()?.overlay.get()?;
        (overlay.covers)(name).then_some(&overlay.directory)
    }

    /// What a name stands for; `None` if nothing has it.
    pub fn lookup(&self, name: &[u8]) -> Result<Option<Node>> {
        let directory = self.directory()?;
        if let Some(memory) = self.overlay(name) {
            return memory.lookup(name);
        }
        if name.len() > NAME_MAX {
            return Err(Errno::ENAMETOOLONG);
        }
        match self.cached(directory, name) {
            Cached::Node(inode) => return Ok(Some(Node::Share(inode))),
            Cached::Absent => return Ok(None),
            Cached::Named => {}
            Cached::Unknown if self.foreign() => {}
            Cached::Unknown if directory.misses.get() >= MISSES => {
                self.list()?;
                if matches!(self.cached(directory, name), Cached::Absent) {
                    return Ok(None);
                }
            }
            Cached::Unknown => directory.misses.set(directory.misses.get() + 1),
        }
        self.trim();
        let answer = self.share.client.call::<wire::EntryOut>(Opcode::Lookup, self.id, &[name, b"\0"]);
        match answer.and_then(|entry| self.share.adopt(&entry, false)) {
            Ok(inode) => {
                self.enter(directory, name, &inode);
                Ok(Some(Node::Share(inode)))
            }
            Err(Errno::ENOENT) => {
                self.leave(directory, name);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn cached(&self, directory: &Directory, name: &[u8]) -> Cached {
        match directory.names.borrow().get(name) {
            Some(Entry::Node(inode)) => Cached::Node(inode.clone()),
            Some(Entry::Named { .. }) => Cached::Named,
            Some(Entry::Absent) => Cached::Absent,
            None if directory.complete.get() => Cached::Absent,
            None => Cached::Unknown,
        }
    }

    /// Records a name. What the entry was before is given back, so that it is dropped with nothing borrowed.
    fn enter(&self, directory: &Directory, name: &[u8], inode: &Rc<Inode>) -> Option<Entry> {
        if self.foreign() {
            return None;
        }
        let global = inode.directory.as_ref().filter(|_| self.id == wire::ROOT && name == b"global");
        if let Some(global) = global {
            let _ = global.overlay.set(self.share.global.clone());
        }
        let mut names = directory.names.borrow_mut();
        match names.get_mut(name) {
            Some(entry) => Some(core::mem::replace(entry, Entry::Node(inode.clone()))),
            None => names.insert(name.into(), Entry::Node(inode.clone())),
        }
    }

    /// Records that a name is gone.
    fn leave(&self, directory: &Directory, name: &[u8]) -> Option<Entry> {
        if self.foreign() {
            return None;
        }
        let mut names = directory.names.borrow_mut();
        if directory.complete.get() { names.remove(name) } else { names.insert(name.into(), Entry::Absent) }
    }

    /// Reads all names of the directory, once.
    fn list(&self) -> Result<()> {
        let directory = self.directory()?;
        if directory.complete.get() {
            return Ok(());
        }
        let mut found: Vec<(Box<[u8]>, u8, u64)> = Vec::new();
        let mut buffer = vec![0u8; LISTING];
        let mut offset = 0;
        loop {
            let mut into = self.share.client.segments();
            into.add(buffer.as_mut_ptr(), buffer.len());
            let len = self.share.client.read(Opcode::ReadDir, self.id, offset, &into)?;
            if len == 0 {
                break;
            }
            let mut rest = &buffer[..len];
            while rest.len() >= size_of::<wire::DirEntryOut>() {
                let head = wire::DirEntryOut::parse(rest);
                let start = size_of::<wire::DirEntryOut>();
                let end = start + head.name_len as usize;
                let Some(name) = rest.get(start..end) else {
                    crate::klog!("share: a listing of node {} is malformed", self.id);
                    return Err(Errno::EIO);
                };
                offset = head.offset;
                if name != b"." && name != b".." {
                    found.push((name.into(), head.kind as u8, head.ino));
                }
                rest = rest.get(wire::dirent_len(name.len())..).unwrap_or(&[]);
            }
        }
        let mut names = directory.names.borrow_mut();
        names.retain(|_, entry| !matches!(entry, Entry::Absent));
        for (name, kind, ino) in found {
            names.entry(name).or_insert(Entry::Named { kind, ino });
        }
        directory.complete.set(true);
        Ok(())
    }

    /// The directory's entries without `.` and `..`.
    pub fn entries(&self) -> Result<Vec<DirEntry>> {
        self.list()?;
        let directory = self.directory()?;
        let mut all = Vec::new();
        if let Some(overlay) = directory.overlay.get() {
            overlay.directory.append_entries(&mut all);
        }
        for (name, entry) in directory.names.borrow().iter() {
            let (kind, ino) = match entry {
                Entry::Absent => continue,
                Entry::Named { kind, ino } => (*kind, *ino),
                Entry::Node(inode) => (inode.kind, inode.id),
            };
            if self.overlay(name).is_none() {
                all.push(DirEntry { ino, kind, name: name.to_vec() });
            }
        }
        Ok(all)
    }

    /// Drops inodes that only the cache holds, once there are too many.
    fn trim(&self) {
        let share = self.share;
        if share.inodes.borrow().len() < share.trim_at.get() {
            return;
        }
        let root = share.inodes.borrow().get(&wire::ROOT).and_then(Weak::upgrade);
        if let Some(root) = root {
            root.drop_unused();
        }
        share.trim_at.set((share.inodes.borrow().len() * 2).max(INODES_MAX));
    }

    fn drop_unused(&self) {
        let Some(directory) = self.directory.as_ref() else { return };
        for entry in directory.names.borrow_mut().values_mut() {
            let Entry::Node(inode) = entry else { continue };
            if inode.directory.is_some() {
                inode.drop_unused();
            } else if Rc::strong_count(inode) == 1 && !inode.is_dirty() {
                *entry = Entry::Named { kind: inode.kind, ino: inode.id };
            }
        }
    }

    /// Makes an empty file; EEXIST if the name is taken.
    pub fn create(&self, name: &[u8]) -> Result<Rc<Inode>> {
        const CREATE_FLAGS: u32 = super::flags::O_RDWR | super::flags::O_CREAT | super::flags::O_EXCL;
        let ask = wire::CreateIn { flags: CREATE_FLAGS, mode: 0o100600, umask: 0o077, open_flags: 0 };
        self.make(name, |share| {
            let answer: wire::CreateOut = share.client.call(Opcode::Create, self.id, &[ask.bytes(), name, b"\0"])?;
            Ok(answer.entry)
        })
    }

    pub fn mkdir(&self, name: &[u8]) -> Result<Rc<Inode>> {
        let ask = wire::MkDirIn { mode: 0o40700, umask: 0o077 };
        let made = self.make(name, |share| share.client.call(Opcode::MkDir, self.id, &[ask.bytes(), name, b"\0"]))?;
        self.nlink.set(self.nlink.get() + 1);
        Ok(made)
    }

    pub fn symlink(&self, name: &[u8], target: &[u8]) -> Result<Rc<Inode>> {
        self.make(name, |share| share.client.call(Opcode::Symlink, self.id, &[name, b"\0", target, b"\0"]))
    }

    fn make(
        &self,
        name: &[u8],
        request: impl FnOnce(&Share) -> Result<wire::EntryOut>,
    ) -> Result<Rc<Inode>> {
        check_name(name)?;
        let directory = self.directory()?;
        self.trim();
        let inode = self.share.adopt(&request(self.share)?, true)?;
        self.enter(directory, name, &inode);
        self.changed();
        Ok(inode)
    }

    /// Another name for `inode`.
    pub fn link(&self, name: &[u8], inode: &Rc<Inode>) -> Result<()> {
        check_name(name)?;
        let directory = self.directory()?;
        let ask = wire::LinkIn { node: inode.id };
        let entry = self.share.client.call::<wire::EntryOut>(Opcode::Link, self.id, &[ask.bytes(), name, b"\0"])?;
        let linked = self.share.adopt(&entry, false)?;
        self.enter(directory, name, &linked);
        self.changed();
        Ok(())
    }

    pub fn unlink(&self, name: &[u8]) -> Result<()> {
        let directory = self.directory()?;
        check_name(name)?;
        match self.cached(directory, name) {
            Cached::Absent => return Err(Errno::ENOENT),
            Cached::Node(inode) if inode.directory.is_some() => return Err(Errno::EISDIR),
            _ => {}
        }
        self.share.client.call_empty(Opcode::Unlink, self.id, &[name, b"\0"])?;
        self.removed(directory, name);
        Ok(())
    }

    pub fn rmdir(&self, name: &[u8]) -> Result<()> {
        let directory = self.directory()?;
        check_name(name)?;
        match self.cached(directory, name) {
            Cached::Absent => return Err(Errno::ENOENT),
            Cached::Node(inode) if inode.directory.is_none() => return Err(Errno::ENOTDIR),
            _ => {}
        }
        self.share.client.call_empty(Opcode::RmDir, self.id, &[name, b"\0"])?;
        self.nlink.set(self.nlink.get().saturating_sub(1).max(2));
        self.removed(directory, name);
        Ok(())
    }

    fn removed(&self, directory: &Directory, name: &[u8]) {
        if let Some(Entry::Node(inode)) = self.leave(directory, name) {
            inode.lost_name();
        }
        self.changed();
    }

    /// Moves a name to `to`, in place of what has that name there.
    pub fn rename(&self, name: &[u8], to: &Inode, new_name: &[u8]) -> Result<()> {
        check_name(name)?;
        check_name(new_name)?;
        let (old_directory, new_directory) = (self.directory()?, to.directory()?);
        if matches!(self.cached(old_directory, name), Cached::Absent) {
            return Err(Errno::ENOENT);
        }
        let ask = wire::RenameIn { directory: to.id };
        let parts: [&[u8]; 5] = [ask.bytes(), name, b"\0", new_name, b"\0"];
        self.share.client.call_empty(Opcode::Rename, self.id, &parts)?;
        if core::ptr::eq(self, to) && name == new_name {
            return Ok(());
        }
        let moved = self.leave(old_directory, name);
        let replaced = match moved {
            Some(Entry::Node(inode)) => {
                let replaced = to.enter(new_directory, new_name, &inode);
                // Two names of one file: the server leaves both, as rename(2) says.
                if matches!(&replaced, Some(Entry::Node(other)) if Rc::ptr_eq(other, &inode)) {
                    self.enter(old_directory, name, &inode);
                    return Ok(());
                }
                inode.ctime.set(crate::time::wall_ns());
                replaced
            }
            Some(entry @ Entry::Named { .. }) => new_directory.names.borrow_mut().insert(new_name.into(), entry),
            // Not looked up: the next lookup of the new name will tell.
            Some(Entry::Absent) | None => {
                new_directory.complete.set(false);
                new_directory.names.borrow_mut().remove(new_name)
            }
        };
        if let Some(Entry::Node(other)) = replaced {
            other.lost_name();
        }
        self.changed();
        to.changed();
        Ok(())
    }

    /// Where a symbolic link points; asked for once.
    pub fn readlink(&self) -> Result<&[u8]> {
        if self.kind != kind::LINK {
            return Err(Errno::EINVAL);
        }
        if let Some(target) = self.target.get() {
            return Ok(target);
        }
        let mut target = vec![0; 4096];
        let len = self.share.client.call_bytes(Opcode::ReadLink, self.id, &[], &mut target)?;
        Ok(self.target.get_or_init(|| target[..len].into()))
    }

    fn lost_name(&self) {
        let links = if self.directory.is_some() { 0 } else { self.nlink.get().saturating_sub(1) };
        self.nlink.set(links);
        self.ctime.set(crate::time::wall_ns());
    }

    /// A directory's content changed.
    fn changed(&self) {
        let now = crate::time::wall_ns();
        self.mtime.set(now);
        self.ctime.set(now);
    }
}

enum Cached {
    Node(Rc<Inode>),
    Named,
    Absent,
    Unknown,
}
