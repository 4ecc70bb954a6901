//! Files by name: one tree out of the boot archive, memory file systems and the host's share.
//!
//! ```text
//! /            boot archive, read-only, in place          ramfs, archive
//! /dev         null zero random urandom                   device
//! /dev/shm  /tmp  /run     writable memory                ramfs, memory
//! /proc/self/exe           link to the program
//! /pgdata      the host's directory, by FUSE              share, content, cache, window, writeback, owned, fuse, batch, wire
//! /pgdata/pgsql_tmp  /pgdata/pg_stat_tmp  memory
//! /pgdata/global/config_exec_params*     memory
//! ```
//!
//! What is in memory below `/pgdata` is worthless after a crash: how EXEC_BACKEND hands a new process its parameters,
//! written, read once and removed at every start of a backend, and the texts that pg_stat_statements keeps. Names decide: a directory of the share can carry
//! an *overlay* of names that are kept in memory, and hide what the host has under them.
//!
//! It promises that names, attributes and sizes once known cost no request to the host, that open files survive
//! `unlink` and `rename`, and that `sync` returns when the host's has. It refuses what the guest has no use for:
//! permissions (one user, uid 1000, owns everything), special files, extended attributes, locks.
//!
//! An open file is a node of the tree (`Rc<dyn File>`): access mode, position and `O_APPEND` belong to the
//! descriptor, hence to the caller.

mod archive;
mod batch;
mod cache;
mod content;
mod device;
mod fuse;
mod memory;
mod owned;
mod path;
mod ramfs;
mod share;
mod window;
mod wire;
mod writeback;

pub use path::normalise;

use crate::errno::{Errno, Result};
use crate::file::{DirEntry, File, Stat};
use crate::global::Global;
use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::Cell;
pub use cache::due as cache_due;
use device::Device;
use path::Last;
use ramfs::{Body, FileSystem};

/// Owner and group of everything.
pub const OWNER: u32 = 1000;
/// Bytes of one name.
pub const NAME_MAX: usize = 255;
/// The program, as the boot archive has it.
const PROGRAM: &[u8] = b"/pg/bin/postgres";

/// Linux' `O_*` flags that opening looks at.
pub mod flags {
    pub const O_ACCMODE: u32 = 0o3;
    pub const O_RDWR: u32 = 0o2;
    pub const O_CREAT: u32 = 0o100;
    pub const O_EXCL: u32 = 0o200;
    pub const O_TRUNC: u32 = 0o1000;
    pub const O_DIRECTORY: u32 = 0o200000;
    pub const O_NOFOLLOW: u32 = 0o400000;
}

/// Kinds of nodes: `DT_*` values, which are also the upper bits of `st_mode`.
pub mod kind {
    pub const CHARACTER: u8 = 2;
    pub const DIRECTORY: u8 = 4;
    pub const FILE: u8 = 8;
    pub const LINK: u8 = 10;
}

/// Mode bits of `access`.
const ACCESS_WRITE: u32 = 2;
const ACCESS_EXECUTE: u32 = 1;

/// What `statfs` tells; sizes in blocks of `block_size` bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct StatFs {
    /// `f_type`.
    pub kind: u64,
    pub block_size: u64,
    pub blocks: u64,
    pub free: u64,
    pub available: u64,
    pub files: u64,
    pub files_free: u64,
}

/// Something in the tree.
#[derive(Clone)]
pub enum Node {
    Memory(Rc<ramfs::Inode>),
    Share(Rc<share::Inode>),
}

pub struct Tree {
    root: Node,
    data: Node,
    /// Lent to one walk at a time: see `path.rs`.
    way: Cell<Vec<Node>>,
}

static TREE: Global<Cell<Option<&'static Tree>>> = Global::new(Cell::new(None));

fn tree() -> &'static Tree {
    match TREE.get().get() {
        Some(tree) => tree,
        None => panic!("a file was asked for before the file systems were mounted"),
    }
}

/// Builds the tree: unpacks the boot archive, makes the memory file systems, connects to the share. Needs the page
/// pool and the clock.
pub fn init(boot: &dormouse_abi::BootInfo) -> Result<()> {
    let read_only = FileSystem { device: 1, writable: false };
    let root = ramfs::Inode::new(read_only, 0o755, Body::directory());
    let length = boot.archive_len as usize;
    // SAFETY: the VMM laid the archive there, and nobody writes to it.
    let bytes: &'static [u8] = unsafe { core::slice::from_raw_parts(boot.archive as *const u8, length) };
    archive::unpack(bytes, &root, read_only).inspect_err(|_| crate::klog!("fs: the boot archive is damaged"))?;

    let mut device = share::DEVICE;
    let mut memory = |mode| {
        device += 1;
        ramfs::Inode::new(FileSystem { device, writable: true }, mode, Body::directory())
    };
    let dev = archive::make_directory(&root, read_only, b"dev", 0o755)?;
    dev.mount(b"shm", Node::Memory(memory(0o1777)))?;
    root.mount(b"tmp", Node::Memory(memory(0o1777)))?;
    root.mount(b"run", Node::Memory(memory(0o755)))?;
    let devices = [
        (&b"null"[..], Device::Null),
        (b"zero", Device::Zero),
        (b"random", Device::Random),
        (b"urandom", Device::Random),
    ];
    for (name, which) in devices {
        dev.mount(name, Node::Memory(ramfs::Inode::new(read_only, 0o666, Body::Device(which))))?;
    }
    let process = archive::make_directory(&root, read_only, b"proc", 0o555)?;
    let process = archive::make_directory(&process, read_only, b"self", 0o555)?;
    process.mount(b"exe", Node::Memory(ramfs::Inode::new(read_only, 0o777, Body::Link(PROGRAM.into()))))?;

    // The directory that holds the overlay's names may not change; what is below them may.
    let above = ramfs::Inode::new(read_only, 0o700, Body::directory());
    above.mount(b"pgsql_tmp", Node::Memory(memory(0o700)))?;
    above.mount(b"pg_stat_tmp", Node::Memory(memory(0o700)))?;
    let top = share::Overlay { covers: |name| matches!(name, b"pgsql_tmp" | b"pg_stat_tmp"), directory: above };
    let global =
        share::Overlay { covers: |name| name.starts_with(b"config_exec_params"), directory: memory(0o700) };
    let data = share::Share::mount(top, global)?;
    if let Some(path) = foreign(boot) {
        let (above, name) = path.split_at(path.iter().rposition(|&byte| byte == b'/').ok_or(Errno::EINVAL)?);
        let mut directory = root.clone();
        for part in above.split(|&byte| byte == b'/').filter(|part| !part.is_empty()) {
            directory = archive::make_directory(&directory, read_only, part, 0o755)?;
        }
        directory.mount(&name[1..], Node::Share(data.share().mount_foreign()?))?;
    }
    let data = Node::Share(data);
    root.mount(dormouse_abi::DATA_MOUNT.trim_start_matches('/').as_bytes(), data.clone())?;
    let tree = Tree { root: Node::Memory(root), data, way: Cell::new(Vec::new()) };
    TREE.get().set(Some(Box::leak(Box::new(tree))));
    Ok(())
}

/// Where the folder goes that the host shows the guest for tests, if it does.
fn foreign(boot: &dormouse_abi::BootInfo) -> Option<&[u8]> {
    let length = (boot.strings_len as usize).min(boot.strings.len());
    boot.strings[..length]
        .split(|&byte| byte == 0)
        .skip(boot.argc as usize)
        .find_map(|word| word.strip_prefix(dormouse_abi::SHARE_VARIABLE.as_bytes())?.strip_prefix(b"="))
}

impl Node {
    fn kind(&self) -> u8 {
        match self {
            Node::Memory(inode) => inode.kind(),
            Node::Share(inode) => inode.kind(),
        }
    }

    fn is_directory(&self) -> bool {
        self.kind() == kind::DIRECTORY
    }

    fn is_link(&self) -> bool {
        self.kind() == kind::LINK
    }

    fn ino(&self) -> u64 {
        match self {
            Node::Memory(inode) => inode.ino(),
            Node::Share(inode) => inode.id,
        }
    }

    fn lookup(&self, name: &[u8]) -> Result<Option<Node>> {
        match self {
            Node::Memory(inode) => inode.lookup(name),
            Node::Share(inode) => inode.lookup(name),
        }
    }

    /// The directory that really holds `name`: this one, or its overlay.
    fn holder(self, name: &[u8]) -> Node {
        match &self {
            Node::Share(inode) => match inode.overlay(name) {
                Some(memory) => Node::Memory(memory.clone()),
                None => self,
            },
            Node::Memory(_) => self,
        }
    }

    fn readlink(&self) -> Result<&[u8]> {
        match self {
            Node::Memory(inode) => inode.readlink(),
            Node::Share(inode) => inode.readlink(),
        }
    }

    fn file(&self) -> &dyn File {
        match self {
            Node::Memory(inode) => &**inode,
            Node::Share(inode) => &**inode,
        }
    }

    fn into_file(self) -> Rc<dyn File> {
        match self {
            Node::Memory(inode) => inode,
            Node::Share(inode) => inode,
        }
    }

    /// False where nothing can be written: files of the boot archive. Devices can.
    fn writable(&self) -> bool {
        match self {
            Node::Memory(inode) => inode.fs().writable || inode.kind() == kind::CHARACTER,
            Node::Share(_) => true,
        }
    }

    fn set_times(&self, atime: Option<u64>, mtime: Option<u64>) -> Result<()> {
        match self {
            Node::Memory(inode) => inode.set_times(atime, mtime),
            Node::Share(inode) => inode.set_times(atime, mtime),
        }
    }
}

/// Opens a file or directory; `how` are `O_*` flags. The access mode is only looked at to refuse what cannot be
/// written.
pub fn open(cwd: &[u8], path: &[u8], how: u32, mode: u32) -> Result<Rc<dyn File>> {
    let has = |flag| how & flag != 0;
    let write = has(flags::O_ACCMODE);
    let exclusive = has(flags::O_CREAT) && has(flags::O_EXCL);
    let last = if exclusive || has(flags::O_NOFOLLOW) { Last::Keep } else { Last::Follow };
    let place = tree().walk(cwd, path, last)?;
    let Some(node) = &place.node else {
        if !has(flags::O_CREAT) {
            return Err(Errno::ENOENT);
        }
        if place.slash {
            return Err(Errno::EISDIR);
        }
        if has(flags::O_DIRECTORY) {
            return Err(Errno::EINVAL);
        }
        let name = place.named(Errno::EISDIR)?;
        return match &place.directory {
            Node::Memory(inode) => Ok(inode.make(name, mode, Body::Memory(memory::Memory::default()))?),
            Node::Share(inode) => Ok(inode.create(name)?),
        };
    };
    if exclusive {
        return Err(Errno::EEXIST);
    }
    match node.kind() {
        kind::LINK => return Err(Errno::ELOOP),
        kind::DIRECTORY if write || has(flags::O_CREAT) => return Err(Errno::EISDIR),
        kind::DIRECTORY => {}
        _ if has(flags::O_DIRECTORY) => return Err(Errno::ENOTDIR),
        _ if write && !node.writable() => return Err(Errno::EROFS),
        kind::FILE if write && has(flags::O_TRUNC) => node.file().truncate(0)?,
        _ => {}
    }
    match place.node {
        Some(node) => Ok(node.into_file()),
        None => Err(Errno::ENOENT),
    }
}

/// `stat`, or `lstat` without `follow`.
pub fn stat(cwd: &[u8], path: &[u8], follow: bool) -> Result<Stat> {
    let last = if follow { Last::Follow } else { Last::Keep };
    tree().walk(cwd, path, last)?.found()?.file().stat()
}

/// `access`: 0 for existence, or bits 4 (read), 2 (write), 1 (execute). Everything can be read; nothing without an
/// execute bit can be executed.
pub fn access(cwd: &[u8], path: &[u8], mode: u32) -> Result<()> {
    let node = tree().walk(cwd, path, Last::Follow)?.found()?;
    if mode & ACCESS_WRITE != 0 && !node.writable() {
        return Err(Errno::EROFS);
    }
    if mode & ACCESS_EXECUTE != 0 && node.file().stat()?.mode & 0o111 == 0 {
        return Err(Errno::EACCES);
    }
    Ok(())
}

pub fn unlink(cwd: &[u8], path: &[u8]) -> Result<()> {
    let place = tree().walk(cwd, path, Last::Parent)?;
    let name = place.named(Errno::EISDIR)?;
    if place.slash {
        return Err(Errno::ENOTDIR);
    }
    match &place.directory {
        Node::Memory(inode) => inode.unlink(name),
        Node::Share(inode) => inode.unlink(name),
    }
}

pub fn rmdir(cwd: &[u8], path: &[u8]) -> Result<()> {
    let place = tree().walk(cwd, path, Last::Parent)?;
    let name = place.named(Errno::EBUSY)?;
    match &place.directory {
        Node::Memory(inode) => inode.rmdir(name),
        Node::Share(inode) => inode.rmdir(name),
    }
}

pub fn mkdir(cwd: &[u8], path: &[u8], mode: u32) -> Result<()> {
    let place = tree().walk(cwd, path, Last::Keep)?;
    let name = place.named(Errno::EEXIST)?;
    if place.node.is_some() {
        return Err(Errno::EEXIST);
    }
    match &place.directory {
        Node::Memory(inode) => inode.make(name, mode, Body::directory()).map(|_| ()),
        Node::Share(inode) => inode.mkdir(name).map(|_| ()),
    }
}

pub fn symlink(cwd: &[u8], target: &[u8], path: &[u8]) -> Result<()> {
    if target.is_empty() {
        return Err(Errno::ENOENT);
    }
    let place = tree().walk(cwd, path, Last::Keep)?;
    let name = place.named(Errno::EEXIST)?;
    if place.node.is_some() {
        return Err(Errno::EEXIST);
    }
    if place.slash {
        return Err(Errno::ENOENT);
    }
    match &place.directory {
        Node::Memory(inode) => inode.make(name, 0o777, Body::Link(target.into())).map(|_| ()),
        Node::Share(inode) => inode.symlink(name, target).map(|_| ()),
    }
}

/// Copies a link's target to `out`, cut to what fits; its length.
pub fn readlink(cwd: &[u8], path: &[u8], out: &mut [u8]) -> Result<usize> {
    let node = tree().walk(cwd, path, Last::Keep)?.found()?;
    let target = node.readlink()?;
    let len = target.len().min(out.len());
    out[..len].copy_from_slice(&target[..len]);
    Ok(len)
}

/// Gives what `old` is a second name; links are not followed.
pub fn link(old_cwd: &[u8], old: &[u8], cwd: &[u8], new: &[u8]) -> Result<()> {
    let node = tree().walk(old_cwd, old, Last::Keep)?.found()?;
    let place = tree().walk(cwd, new, Last::Keep)?;
    let name = place.named(Errno::EEXIST)?;
    if place.node.is_some() {
        return Err(Errno::EEXIST);
    }
    if node.is_directory() {
        return Err(Errno::EPERM);
    }
    match (&place.directory, &node) {
        (Node::Memory(directory), Node::Memory(inode)) => directory.link(name, inode),
        (Node::Share(directory), Node::Share(inode)) => directory.link(name, inode),
        _ => Err(Errno::EXDEV),
    }
}

pub fn rename(old_cwd: &[u8], old: &[u8], cwd: &[u8], new: &[u8]) -> Result<()> {
    let from = tree().walk(old_cwd, old, Last::Parent)?;
    let to = tree().walk(cwd, new, Last::Parent)?;
    let (name, new_name) = (from.named(Errno::EBUSY)?, to.named(Errno::EBUSY)?);
    if from.slash || to.slash {
        let moved = from.directory.lookup(name)?.ok_or(Errno::ENOENT)?;
        if !moved.is_directory() {
            return Err(Errno::ENOTDIR);
        }
    }
    match (&from.directory, &to.directory) {
        (Node::Memory(a), Node::Memory(b)) => a.rename(name, b, new_name),
        (Node::Share(a), Node::Share(b)) => a.rename(name, b, new_name),
        // What does not exist is ENOENT first.
        (a, _) => match a.lookup(name)? {
            Some(_) => Err(Errno::EXDEV),
            None => Err(Errno::ENOENT),
        },
    }
}

pub fn truncate(cwd: &[u8], path: &[u8], len: u64) -> Result<()> {
    tree().walk(cwd, path, Last::Follow)?.found()?.file().truncate(len)
}

/// On the share modes are fixed (see `share.rs`), so this only says whether the file is there.
pub fn chmod(cwd: &[u8], path: &[u8], mode: u32) -> Result<()> {
    chmod_file(tree().walk(cwd, path, Last::Follow)?.found()?.file(), mode)
}

/// The same of an open file.
pub fn chmod_file(file: &dyn File, mode: u32) -> Result<()> {
    match file.as_any().downcast_ref::<ramfs::Inode>() {
        Some(inode) => inode.set_mode(mode),
        None => Ok(()),
    }
}

/// Sets access and modification time, ns since 1970; `None` leaves one as it is.
pub fn utimens(cwd: &[u8], path: &[u8], atime: Option<u64>, mtime: Option<u64>, follow: bool) -> Result<()> {
    let last = if follow { Last::Follow } else { Last::Keep };
    tree().walk(cwd, path, last)?.found()?.set_times(atime, mtime)
}

/// The same of an open file.
pub fn utimens_file(file: &dyn File, atime: Option<u64>, mtime: Option<u64>) -> Result<()> {
    let any = file.as_any();
    match (any.downcast_ref::<share::Inode>(), any.downcast_ref::<ramfs::Inode>()) {
        (Some(inode), _) => inode.set_times(atime, mtime),
        (_, Some(inode)) => inode.set_times(atime, mtime),
        _ => Err(Errno::EINVAL),
    }
}

pub fn statfs(cwd: &[u8], path: &[u8]) -> Result<StatFs> {
    match tree().walk(cwd, path, Last::Follow)?.found()? {
        Node::Memory(inode) => Ok(inode.statfs()),
        Node::Share(inode) => inode.statfs(),
    }
}

/// The same of an open file.
pub fn statfs_file(file: &dyn File) -> Result<StatFs> {
    let any = file.as_any();
    match (any.downcast_ref::<share::Inode>(), any.downcast_ref::<ramfs::Inode>()) {
        (Some(inode), _) => inode.statfs(),
        (_, Some(inode)) => Ok(inode.statfs()),
        _ => Err(Errno::ENOSYS),
    }
}

/// Makes durable everything on the file system that the open file is of.
pub fn syncfs(file: &dyn File) -> Result<()> {
    match file.as_any().downcast_ref::<share::Inode>() {
        Some(inode) => inode.sync_share(),
        None => Ok(()),
    }
}

/// Looks for answers that the share's server gave later.
pub fn collect() {
    if let Some(Node::Share(inode)) = TREE.get().get().map(|tree| &tree.data) {
        inode.share.client.collect();
    }
}

fn share() -> Option<&'static share::Share> {
    match TREE.get().get().map(|tree| &tree.data) {
        Some(Node::Share(inode)) => Some(inode.share()),
        _ => None,
    }
}

/// Gives back memory that only caches the share's content, clean or else dirty: false when there is none left.
pub fn reclaim() -> bool {
    share().is_some_and(|share| share.cache.clear(&share.client))
}

/// Tries again for as long as the cache gives memory back. That ends: each time it holds less.
pub fn or_reclaim<T>(take: impl Fn() -> Option<T>) -> Option<T> {
    loop {
        let taken = take();
        if taken.is_some() || !reclaim() {
            return taken;
        }
    }
}

/// Gives back what was cached and not used for some seconds, and writes what is dirty as long. To be called when
/// [`cache_due`] has passed.
pub fn sweep() {
    if let Some(share) = share() {
        share.cache.sweep(&share.client);
    }
}

/// Whether the host has all that was written. Unless it has, it may not suspend the guest.
pub fn is_settled() -> bool {
    share().is_none_or(|share| share.cache.is_clean())
}

/// Gives the host all that was written and that it has not got; durable it is only after a flush.
pub fn settle() -> Result<()> {
    share().map_or(Ok(()), |share| share.cache.write_all(&share.client))
}

/// The guest was restored: what was cached is forgotten, and so is what the host had room for.
pub fn resumed() {
    if let Some(share) = share() {
        share.resumed();
    }
}

/// Pages that only cache the share's content.
pub fn cache_pages() -> usize {
    share().map_or(0, |share| share.cache.pages())
}

/// `sync`: the share is all there is to flush.
pub fn sync() -> Result<()> {
    syncfs(tree().data.file())
}

/// `preadv`: on the share, one request for all buffers.
pub fn read_vectored(file: &dyn File, buffers: &mut [&mut [u8]], offset: u64) -> Result<usize> {
    if let [buffer] = buffers {
        return file.read_at(buffer, offset);
    }
    if let Some(inode) = file.as_any().downcast_ref::<share::Inode>() {
        let total: usize = buffers.iter().map(|buffer| buffer.len()).sum();
        if total >= cache::WINDOW as usize {
            return inode.read_vectored(buffers, offset);
        }
    }
    let mut done = 0;
    for buffer in buffers.iter_mut() {
        match file.read_at(buffer, offset + done as u64) {
            Ok(len) => {
                done += len;
                if len < buffer.len() {
                    break;
                }
            }
            Err(error) if done == 0 => return Err(error),
            Err(_) => break,
        }
    }
    Ok(done)
}

/// `pwritev`: likewise.
pub fn write_vectored(file: &dyn File, buffers: &[&[u8]], offset: u64) -> Result<usize> {
    if let Some(inode) = file.as_any().downcast_ref::<share::Inode>() {
        return inode.write_vectored(buffers, offset);
    }
    let mut done = 0;
    for buffer in buffers {
        match file.write_at(buffer, offset + done as u64) {
            Ok(len) => {
                done += len;
                if len < buffer.len() {
                    break;
                }
            }
            Err(error) if done == 0 => return Err(error),
            Err(_) => break,
        }
    }
    Ok(done)
}

fn check_name(name: &[u8]) -> Result<()> {
    if name.len() > NAME_MAX { Err(Errno::ENAMETOOLONG) } else { Ok(()) }
}

/// A listing with `.` and `..` before it. The parent's number is not known, and nobody asks for it.
fn with_dots(ino: u64, entries: Vec<DirEntry>) -> Vec<DirEntry> {
    let dot = |name: &[u8]| DirEntry { ino, kind: kind::DIRECTORY, name: name.to_vec() };
    let mut all = Vec::with_capacity(entries.len() + 2);
    all.push(dot(b"."));
    all.push(dot(b".."));
    all.extend(entries);
    all
}
