//! Files in guest memory: the boot archive, which is the root and read-only, and the writable memory file systems.
//!
//! One tree carries both: a directory says whether it may change. Contents of the archive stay where the VMM laid
//! them. A directory's entry can be any node, so the share is mounted by entering its root.
//!
//! Inodes are reference-counted: a file goes when it has no name, nobody has it open and nobody maps it.

use super::device::Device;
use super::memory::Memory;
use super::{Node, OWNER, StatFs, check_name, kind, with_dots};
use crate::errno::{Errno, Result};
use crate::file::{DirEntry, File, Stat};
use crate::global::Global;
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::rc::{Rc, Weak};
use alloc::vec::Vec;
use core::any::Any;
use core::cell::{Cell, RefCell};

/// A directory's names.
type Names = BTreeMap<Box<[u8]>, Node>;

static NEXT_INO: Global<Cell<u64>> = Global::new(Cell::new(2));

/// What all inodes of one file system share.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FileSystem {
    /// `struct stat`'s device number; no two mounts have the same.
    pub device: u64,
    pub writable: bool,
}

pub struct Inode {
    fs: FileSystem,
    ino: u64,
    /// Permission bits.
    mode: Cell<u32>,
    nlink: Cell<u32>,
    atime: Cell<u64>,
    mtime: Cell<u64>,
    ctime: Cell<u64>,
    body: Body,
    me: Weak<Inode>,
    /// Keeps the file while it is mapped.
    pinned: RefCell<Option<Rc<Inode>>>,
}

pub enum Body {
    Directory(RefCell<Names>),
    /// Part of the boot archive.
    Archived(&'static [u8]),
    Memory(Memory),
    Link(Box<[u8]>),
    Device(Device),
}

impl Body {
    pub fn directory() -> Self {
        Body::Directory(RefCell::new(BTreeMap::new()))
    }
}

impl Inode {
    pub fn new(fs: FileSystem, mode: u32, body: Body) -> Rc<Self> {
        let now = crate::time::wall_ns();
        let ino = NEXT_INO.get().get();
        NEXT_INO.get().set(ino + 1);
        let nlink = if matches!(body, Body::Directory(_)) { 2 } else { 1 };
        Rc::new_cyclic(|me| Self {
            fs,
            ino,
            mode: Cell::new(mode & 0o7777),
            nlink: Cell::new(nlink),
            atime: Cell::new(now),
            mtime: Cell::new(now),
            ctime: Cell::new(now),
            body,
            me: me.clone(),
            pinned: RefCell::new(None),
        })
    }

    pub fn kind(&self) -> u8 {
        match self.body {
            Body::Directory(_) => kind::DIRECTORY,
            Body::Archived(_) | Body::Memory(_) => kind::FILE,
            Body::Link(_) => kind::LINK,
            Body::Device(_) => kind::CHARACTER,
        }
    }

    pub fn fs(&self) -> FileSystem {
        self.fs
    }

    pub fn ino(&self) -> u64 {
        self.ino
    }

    fn names(&self) -> Result<&RefCell<Names>> {
        match &self.body {
            Body::Directory(names) => Ok(names),
            _ => Err(Errno::ENOTDIR),
        }
    }

    fn writable(&self) -> Result<()> {
        if self.fs.writable { Ok(()) } else { Err(Errno::EROFS) }
    }

    pub fn lookup(&self, name: &[u8]) -> Result<Option<Node>> {
        Ok(self.names()?.borrow().get(name).cloned())
    }

    /// Enters a node, whatever was there before: for building the tree at boot.
    pub fn mount(&self, name: &[u8], node: Node) -> Result<()> {
        let old = self.names()?.borrow_mut().insert(name.into(), node);
        drop(old);
        Ok(())
    }

    /// Makes a new file, directory or link in this directory.
    pub fn make(&self, name: &[u8], mode: u32, body: Body) -> Result<Rc<Inode>> {
        check_name(name)?;
        let names = self.names()?;
        if names.borrow().contains_key(name) {
            return Err(Errno::EEXIST);
        }
        self.writable()?;
        // A removed directory takes no new names.
        if self.nlink.get() == 0 {
            return Err(Errno::ENOENT);
        }
        if matches!(body, Body::Directory(_)) {
            self.nlink.set(self.nlink.get() + 1);
        }
        let inode = Inode::new(self.fs, mode, body);
        names.borrow_mut().insert(name.into(), Node::Memory(inode.clone()));
        self.changed();
        Ok(inode)
    }

    pub fn link(&self, name: &[u8], inode: &Rc<Inode>) -> Result<()> {
        check_name(name)?;
        let names = self.names()?;
        if names.borrow().contains_key(name) {
            return Err(Errno::EEXIST);
        }
        self.writable()?;
        if inode.fs != self.fs {
            return Err(Errno::EXDEV);
        }
        names.borrow_mut().insert(name.into(), Node::Memory(inode.clone()));
        inode.nlink.set(inode.nlink.get() + 1);
        self.changed();
        Ok(())
    }

    pub fn unlink(&self, name: &[u8]) -> Result<()> {
        let node = self.lookup(name)?.ok_or(Errno::ENOENT)?;
        self.writable()?;
        if node.is_directory() {
            return Err(Errno::EISDIR);
        }
        self.remove(name)
    }

    pub fn rmdir(&self, name: &[u8]) -> Result<()> {
        let node = self.lookup(name)?.ok_or(Errno::ENOENT)?;
        self.writable()?;
        let Node::Memory(inode) = node else { return Err(Errno::EBUSY) };
        if !inode.names()?.borrow().is_empty() {
            return Err(Errno::ENOTEMPTY);
        }
        self.remove(name)
    }

    fn remove(&self, name: &[u8]) -> Result<()> {
        let old = self.names()?.borrow_mut().remove(name);
        if let Some(Node::Memory(inode)) = old {
            if inode.kind() == kind::DIRECTORY {
                inode.nlink.set(0);
                self.nlink.set(self.nlink.get() - 1);
            } else {
                inode.nlink.set(inode.nlink.get() - 1);
            }
            inode.ctime.set(crate::time::wall_ns());
        }
        self.changed();
        Ok(())
    }

    pub fn rename(&self, name: &[u8], to: &Inode, new_name: &[u8]) -> Result<()> {
        check_name(name)?;
        check_name(new_name)?;
        let moved = self.lookup(name)?.ok_or(Errno::ENOENT)?;
        self.writable()?;
        to.writable()?;
        let Node::Memory(inode) = &moved else { return Err(Errno::EBUSY) };
        if self.fs != to.fs || inode.fs != self.fs {
            return Err(Errno::EXDEV);
        }
        if inode.contains(to) {
            return Err(Errno::EINVAL);
        }
        match to.lookup(new_name)? {
            Some(Node::Memory(other)) if Rc::ptr_eq(&other, inode) => return Ok(()),
            Some(Node::Share(_)) => return Err(Errno::EBUSY),
            Some(Node::Memory(other)) => match (inode.kind() == kind::DIRECTORY, other.kind() == kind::DIRECTORY) {
                (true, true) => to.rmdir(new_name)?,
                (true, false) => return Err(Errno::ENOTDIR),
                (false, true) => return Err(Errno::EISDIR),
                (false, false) => to.unlink(new_name)?,
            },
            None => {}
        }
        if inode.kind() == kind::DIRECTORY {
            self.nlink.set(self.nlink.get() - 1);
            to.nlink.set(to.nlink.get() + 1);
        }
        self.names()?.borrow_mut().remove(name);
        to.names()?.borrow_mut().insert(new_name.into(), moved);
        self.changed();
        to.changed();
        Ok(())
    }

    /// True for this directory itself and what is anywhere below it.
    fn contains(&self, other: &Inode) -> bool {
        if core::ptr::eq(self, other) {
            return true;
        }
        match &self.body {
            Body::Directory(names) => names.borrow().values().any(|node| match node {
                Node::Memory(inode) => inode.contains(other),
                Node::Share(_) => false,
            }),
            _ => false,
        }
    }

    pub fn readlink(&self) -> Result<&[u8]> {
        match &self.body {
            Body::Link(target) => Ok(target),
            _ => Err(Errno::EINVAL),
        }
    }

    /// The names in this directory, without `.` and `..`.
    pub fn append_entries(&self, all: &mut Vec<DirEntry>) {
        let Ok(names) = self.names() else { return };
        for (name, node) in names.borrow().iter() {
            all.push(DirEntry { ino: node.ino(), kind: node.kind(), name: name.to_vec() });
        }
    }

    pub fn set_mode(&self, mode: u32) -> Result<()> {
        self.writable()?;
        self.mode.set(mode & 0o7777);
        self.ctime.set(crate::time::wall_ns());
        Ok(())
    }

    pub fn set_times(&self, atime: Option<u64>, mtime: Option<u64>) -> Result<()> {
        self.writable()?;
        self.atime.set(atime.unwrap_or(self.atime.get()));
        self.mtime.set(mtime.unwrap_or(self.mtime.get()));
        self.ctime.set(crate::time::wall_ns());
        Ok(())
    }

    pub fn statfs(&self) -> StatFs {
        let (used, total) = crate::pages::usage();
        let free = total.saturating_sub(used) as u64;
        StatFs {
            kind: 0x0102_1994, // TMPFS_MAGIC
            block_size: dormouse_abi::PAGE,
            blocks: total as u64,
            free,
            available: if self.fs.writable { free } else { 0 },
            files: 0,
            files_free: 0,
        }
    }

    fn changed(&self) {
        let now = crate::time::wall_ns();
        self.mtime.set(now);
        self.ctime.set(now);
    }

    fn memory(&self) -> Result<&Memory> {
        match &self.body {
            Body::Memory(memory) => Ok(memory),
            Body::Archived(_) => Err(Errno::EROFS),
            Body::Directory(_) => Err(Errno::EISDIR),
            _ => Err(Errno::EINVAL),
        }
    }
}

impl File for Inode {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn seekable(&self) -> bool {
        !matches!(self.body, Body::Device(_))
    }

    fn stat(&self) -> Result<Stat> {
        let (size, blocks) = match &self.body {
            Body::Archived(bytes) => (bytes.len() as u64, (bytes.len() as u64).div_ceil(512)),
            Body::Memory(memory) => (memory.len(), memory.pages() as u64 * (dormouse_abi::PAGE / 512)),
            Body::Link(target) => (target.len() as u64, 0),
            Body::Directory(_) | Body::Device(_) => (0, 0),
        };
        Ok(Stat {
            ino: self.ino,
            mode: u32::from(self.kind()) << 12 | self.mode.get(),
            nlink: self.nlink.get(),
            uid: OWNER,
            gid: OWNER,
            size,
            blocks,
            atime: self.atime.get(),
            mtime: self.mtime.get(),
            ctime: self.ctime.get(),
            dev: self.fs.device,
        })
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        match &self.body {
            Body::Archived(bytes) => {
                let start = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
                let len = buf.len().min(bytes.len() - start);
                buf[..len].copy_from_slice(&bytes[start..start + len]);
                Ok(len)
            }
            Body::Memory(memory) => Ok(memory.read(buf, offset)),
            Body::Device(device) => Ok(device.read(buf)),
            Body::Directory(_) => Err(Errno::EISDIR),
            Body::Link(_) => Err(Errno::EINVAL),
        }
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<usize> {
        if let Body::Device(device) = &self.body {
            return Ok(device.write(buf));
        }
        let done = self.memory()?.write(buf, offset)?;
        self.changed();
        Ok(done)
    }

    fn len(&self) -> Result<u64> {
        match &self.body {
            Body::Archived(bytes) => Ok(bytes.len() as u64),
            Body::Memory(memory) => Ok(memory.len()),
            _ => Ok(0),
        }
    }

    fn truncate(&self, len: u64) -> Result<()> {
        self.memory()?.truncate(len)?;
        self.changed();
        Ok(())
    }

    fn sync(&self, _data_only: bool) -> Result<()> {
        match self.body {
            Body::Device(_) => Err(Errno::EINVAL),
            _ => Ok(()),
        }
    }

    fn allocate(&self, offset: u64, len: u64) -> Result<()> {
        let end = offset.checked_add(len).ok_or(Errno::EFBIG)?;
        if len == 0 {
            return Err(Errno::EINVAL);
        }
        let memory = self.memory()?;
        if end > memory.len() {
            memory.truncate(end)?;
            self.changed();
        }
        Ok(())
    }

    fn map_shared(&self, offset: u64, len: u64) -> Result<*mut u8> {
        let Body::Memory(memory) = &self.body else { return Err(Errno::ENODEV) };
        let address = memory.map(offset, len)?;
        *self.pinned.borrow_mut() = self.me.upgrade();
        Ok(address)
    }

    fn unmap_shared(&self) {
        let Body::Memory(memory) = &self.body else { return };
        if memory.unmap() {
            let pinned = self.pinned.borrow_mut().take();
            // May be the last reference, and `self` with it: nothing is touched after this.
            drop(pinned);
        }
    }

    fn entries(&self) -> Result<Vec<DirEntry>> {
        self.names()?;
        let mut all = Vec::new();
        self.append_entries(&mut all);
        Ok(with_dots(self.ino, all))
    }

    fn read(&self, buf: &mut [u8], _nonblock: bool) -> Result<usize> {
        match &self.body {
            Body::Device(device) => Ok(device.read(buf)),
            _ => Err(Errno::EINVAL),
        }
    }

    fn write(&self, buf: &[u8], _nonblock: bool) -> Result<usize> {
        match &self.body {
            Body::Device(device) => Ok(device.write(buf)),
            _ => Err(Errno::EINVAL),
        }
    }
}
