//! The boot archive: cpio "newc", laid in memory by the VMM, unpacked without copying file contents.

use super::ramfs::{Body, FileSystem, Inode};
use super::{Node, kind};
use crate::errno::{Errno, Result};
use alloc::rc::Rc;

/// Bytes of an entry's header: the magic and 13 fields of 8 hexadecimal digits.
const HEADER: usize = 110;
const MAGIC: &[u8] = b"070701";
const END: &[u8] = b"TRAILER!!!";

/// Positions of the fields in use.
const MODE: usize = 1;
const FILE_SIZE: usize = 6;
const NAME_SIZE: usize = 11;

/// Unpacks the archive below `root`. EINVAL for what is no archive; directories that an entry's path names and the
/// archive did not have before are made.
pub fn unpack(archive: &'static [u8], root: &Rc<Inode>, fs: FileSystem) -> Result<()> {
    let mut rest = archive;
    loop {
        let header = rest.get(..HEADER).filter(|header| header.starts_with(MAGIC)).ok_or(Errno::EINVAL)?;
        let mode = field(header, MODE)?;
        let size = field(header, FILE_SIZE)? as usize;
        let name_size = field(header, NAME_SIZE)? as usize;
        // Name and content are each padded to 4 bytes from the archive's start, which is itself aligned.
        let name = rest.get(HEADER..HEADER + name_size.saturating_sub(1)).ok_or(Errno::EINVAL)?;
        let start = (HEADER + name_size).next_multiple_of(4);
        let content = rest.get(start..start + size).ok_or(Errno::EINVAL)?;
        if name == END {
            return Ok(());
        }
        enter(root, fs, name, mode, content)?;
        rest = rest.get((start + size).next_multiple_of(4)..).ok_or(Errno::EINVAL)?;
    }
}

fn field(header: &[u8], index: usize) -> Result<u32> {
    let start = MAGIC.len() + index * 8;
    header[start..start + 8].iter().try_fold(0u32, |value, &digit| {
        let digit = (digit as char).to_digit(16).ok_or(Errno::EINVAL)?;
        Ok(value << 4 | digit)
    })
}

fn enter(root: &Rc<Inode>, fs: FileSystem, name: &[u8], mode: u32, content: &'static [u8]) -> Result<()> {
    let mut parts = name.split(|&byte| byte == b'/').filter(|part| !part.is_empty() && *part != b".").peekable();
    let mut directory = root.clone();
    while let Some(part) = parts.next() {
        if parts.peek().is_some() {
            directory = make_directory(&directory, fs, part, 0o755)?;
            continue;
        }
        let body = match (mode >> 12) as u8 {
            kind::DIRECTORY => {
                make_directory(&directory, fs, part, mode)?;
                break;
            }
            kind::FILE => Body::Archived(content),
            kind::LINK => Body::Link(content.into()),
            _ => return Err(Errno::EINVAL),
        };
        directory.mount(part, Node::Memory(Inode::new(fs, mode, body)))?;
    }
    Ok(())
}

/// The directory of that name in `parent`, made if it is not there.
pub fn make_directory(parent: &Rc<Inode>, fs: FileSystem, name: &[u8], mode: u32) -> Result<Rc<Inode>> {
    match parent.lookup(name)? {
        Some(Node::Memory(inode)) if inode.kind() == kind::DIRECTORY => Ok(inode),
        Some(_) => Err(Errno::ENOTDIR),
        None => {
            let inode = Inode::new(fs, mode, Body::directory());
            parent.mount(name, Node::Memory(inode.clone()))?;
            Ok(inode)
        }
    }
}
