//! A folder of the host, shown to the guest as it is: for tests whose two sides read and write the same files.
//!
//! Only a build with the cargo feature `shared-folder`, which no shipped one has, can be told of one. Its nodes
//! are those from [`ROOT`] on, beside the layer's. Nothing reached through them lies outside the folder, symbolic links
//! included: every path is resolved anew beneath the folder's descriptor. Since the host changes the files too, the
//! guest believes nothing that it was told about them before.
//!
//! Not there: listing, links, renaming. Nodes do not outlast a sleep: a file held open across one is ESTALE.

use super::requests::Answer;
use super::wire::{Attr, Fields, Header, MAX_DATA, Reply, opcode, setattr};
use crate::layer::{Errno, GuestBytes};
use std::collections::HashMap;
use std::ffi::CString;
use std::fs::{File, Metadata};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// The folder itself, in every life of the guest.
pub(super) use dormouse_abi::SHARE_ROOT as ROOT;

pub(super) struct Share {
    folder: File,
    /// Paths below the folder, by node.
    paths: HashMap<u64, Vec<u8>>,
    next: u64,
}

fn done() -> Result<Answer, Errno> {
    Ok(Answer::Bytes(Vec::new()))
}

impl Share {
    pub(super) fn open(folder: &Path) -> io::Result<Share> {
        // Numbers of this life alone: what another life knew a file by is no file now.
        let life = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros() as u64;
        Ok(Share { folder: File::open(folder)?, paths: HashMap::new(), next: ROOT + 1 + (life << 8) % ROOT })
    }

    pub(super) fn forget(&mut self, node: u64) {
        self.paths.remove(&node);
    }

    /// Carries out one request on a node of the share.
    pub(super) fn request(&mut self, head: &Header, body: GuestBytes, out: GuestBytes) -> Result<Answer, Errno> {
        let path = match head.node {
            ROOT => Vec::new(),
            node => self.paths.get(&node).cloned().ok_or(Errno(libc::ESTALE))?,
        };
        // A request without its file data.
        let mut bytes = vec![0; body.len().min(8 << 10)];
        body.copy_to(&mut bytes);
        let mut fields = Fields::new(&bytes);
        match head.opcode {
            opcode::LOOKUP => self.entry(head, &path, fields.name()?),
            opcode::GETATTR => self.attributes(head, &path),
            opcode::SETATTR => {
                let valid = fields.u32()?;
                fields.skip(12)?;
                if valid & setattr::SIZE != 0 {
                    self.resolve(&path, libc::O_WRONLY)?.set_len(fields.u64()?).map_err(|e| told(&e))?;
                }
                self.attributes(head, &path)
            }
            opcode::CREATE => {
                fields.skip(16)?;
                let name = fields.name()?;
                self.resolve(&join(&path, name)?, libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL)?;
                let Answer::Bytes(mut bytes) = self.entry(head, &path, name)? else { return Err(Errno(libc::EIO)) };
                // fuse_open_out: no handle, no flags.
                bytes.resize(bytes.len() + 16, 0);
                Ok(Answer::Bytes(bytes))
            }
            opcode::UNLINK => {
                let name = CString::new(plain(fields.name()?)?).map_err(|_| Errno(libc::EINVAL))?;
                let folder = self.resolve(&path, libc::O_PATH | libc::O_DIRECTORY)?;
                // SAFETY: a live descriptor and a NUL-terminated name.
                match unsafe { libc::unlinkat(folder.as_raw_fd(), name.as_ptr(), 0) } {
                    0 => done(),
                    _ => Err(told(&io::Error::last_os_error())),
                }
            }
            opcode::READ => {
                fields.skip(8)?;
                let (offset, size) = (fields.u64()?, fields.u32()? as usize);
                let file = self.resolve(&path, libc::O_RDONLY)?;
                Ok(Answer::InPlace(out.range(0, size.min(MAX_DATA)).read_from(&file, offset).map_err(|e| told(&e))?))
            }
            opcode::WRITE => {
                fields.skip(8)?;
                let (offset, size) = (fields.u64()?, fields.u32()? as usize);
                let data = body.range(40, size);
                if data.len() < size || size > MAX_DATA {
                    return Err(Errno(libc::EINVAL));
                }
                let n = data.write_to(&self.resolve(&path, libc::O_WRONLY)?, offset).map_err(|e| told(&e))?;
                let mut reply = Reply::default();
                reply.u32(n as u32);
                reply.u32(0);
                Ok(Answer::Bytes(reply.bytes))
            }
            opcode::FSYNC => {
                self.resolve(&path, libc::O_RDONLY)?.sync_all().map_err(|e| told(&e))?;
                done()
            }
            _ => Err(Errno(libc::ENOSYS)),
        }
    }

    /// Opens a path below the folder, and nothing that leads out of it.
    fn resolve(&self, path: &[u8], flags: libc::c_int) -> Result<File, Errno> {
        let path = CString::new(if path.is_empty() { b".".as_slice() } else { path }).map_err(|_| Errno(libc::EINVAL))?;
        // SAFETY: open_how is plain data; the call reads `size_of` bytes of it and a NUL-terminated path, and a
        // non-negative result is a new descriptor.
        unsafe {
            let mut how: libc::open_how = std::mem::zeroed();
            how.flags = (flags | libc::O_CLOEXEC | libc::O_NOFOLLOW) as u64;
            how.mode = if flags & libc::O_CREAT != 0 { 0o644 } else { 0 };
            how.resolve = libc::RESOLVE_BENEATH | libc::RESOLVE_NO_MAGICLINKS;
            let size = std::mem::size_of::<libc::open_how>();
            let fd = libc::syscall(libc::SYS_openat2, self.folder.as_raw_fd(), path.as_ptr(), &how, size);
            match fd {
                0.. => Ok(File::from(OwnedFd::from_raw_fd(fd as i32))),
                _ => Err(told(&io::Error::last_os_error())),
            }
        }
    }

    /// Its attributes; only of files and folders.
    fn metadata(&self, path: &[u8]) -> Result<Metadata, Errno> {
        let metadata = self.resolve(path, libc::O_PATH)?.metadata().map_err(|e| told(&e))?;
        if metadata.is_file() || metadata.is_dir() { Ok(metadata) } else { Err(Errno(libc::EPERM)) }
    }

    fn entry(&mut self, head: &Header, folder: &[u8], name: &[u8]) -> Result<Answer, Errno> {
        let path = join(folder, name)?;
        let metadata = self.metadata(&path)?;
        let node = self.next;
        self.next += 1;
        self.paths.insert(node, path);
        let mut reply = Reply::default();
        reply.entry_out(node, &attr(head, node, &metadata));
        Ok(Answer::Bytes(reply.bytes))
    }

    fn attributes(&self, head: &Header, path: &[u8]) -> Result<Answer, Errno> {
        let mut reply = Reply::default();
        reply.attr_out(&attr(head, head.node, &self.metadata(path)?));
        Ok(Answer::Bytes(reply.bytes))
    }
}

/// The host's own error: what a program of the host would meet there.
fn told(error: &io::Error) -> Errno {
    Errno(error.raw_os_error().unwrap_or(libc::EIO))
}

fn attr(head: &Header, node: u64, metadata: &Metadata) -> Attr {
    Attr {
        ino: node,
        size: metadata.size(),
        sec: metadata.mtime(),
        nsec: metadata.mtime_nsec() as u32,
        mode: metadata.mode(),
        links: metadata.nlink() as u32,
        uid: head.uid,
        gid: head.gid,
    }
}

fn plain(name: &[u8]) -> Result<&[u8], Errno> {
    match name {
        b"" | b"." | b".." => Err(Errno(libc::EINVAL)),
        name if name.contains(&b'/') => Err(Errno(libc::EINVAL)),
        name => Ok(name),
    }
}

fn join(folder: &[u8], name: &[u8]) -> Result<Vec<u8>, Errno> {
    let name = plain(name)?;
    Ok(if folder.is_empty() { name.to_vec() } else { [folder, b"/", name].concat() })
}
