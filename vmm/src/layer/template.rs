//! The read-only template below a layer.
//!
//! Paths are made of the template's own names, one component at a time as the guest looked them up, and resolve beneath
//! its folder: no symbolic link, magic link or mount is ever followed. Symbolic links are data. Special files don't exist.

use super::error::Errno;
use super::host::{list_folder, open_folder, stat_of};
use super::record::{Kind, Time};
use sha2::{Digest, Sha256};
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

pub(crate) struct Template {
    dir: File,
}

/// What the template says of one path.
pub(crate) struct Entry {
    pub kind: Kind,
    pub size: u64,
    pub mtime: Time,
}

/// Sorted names of a folder.
pub(crate) type Listing = Arc<Vec<(Vec<u8>, Kind)>>;

fn kind_of(mode: u32) -> Option<Kind> {
    match mode & libc::S_IFMT {
        libc::S_IFREG => Some(Kind::File),
        libc::S_IFDIR => Some(Kind::Dir),
        libc::S_IFLNK => Some(Kind::Symlink),
        _ => None,
    }
}

impl Template {
    pub fn open(path: &Path) -> io::Result<Template> {
        Ok(Template { dir: open_folder(path)? })
    }

    fn resolve(&self, path: &[u8], flags: libc::c_int) -> io::Result<File> {
        let path = CString::new(if path.is_empty() { b".".as_slice() } else { path })?;
        // SAFETY: open_how is plain data; the call reads `size_of` bytes of it and a NUL-terminated path, and a
        // non-negative result is a new descriptor.
        unsafe {
            let mut how: libc::open_how = std::mem::zeroed();
            how.flags = (flags | libc::O_CLOEXEC | libc::O_NOFOLLOW) as u64;
            how.resolve =
                libc::RESOLVE_BENEATH | libc::RESOLVE_NO_SYMLINKS | libc::RESOLVE_NO_MAGICLINKS | libc::RESOLVE_NO_XDEV;
            let fd = libc::syscall(
                libc::SYS_openat2,
                self.dir.as_raw_fd(),
                path.as_ptr(),
                &how,
                std::mem::size_of::<libc::open_how>(),
            );
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(File::from(OwnedFd::from_raw_fd(fd as i32)))
        }
    }

    /// `None` if there is nothing, or nothing that a guest may see.
    pub fn stat(&self, path: &[u8]) -> Result<Option<Entry>, Errno> {
        let handle = match self.resolve(path, libc::O_PATH) {
            Ok(handle) => handle,
            Err(e) => {
                return match e.raw_os_error() {
                    Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP | libc::EXDEV) => Ok(None),
                    Some(libc::ENAMETOOLONG) => Err(Errno(libc::ENAMETOOLONG)),
                    _ => Err(e.into()),
                };
            }
        };
        let stat = stat_of(&handle)?;
        Ok(kind_of(stat.st_mode).map(|kind| Entry {
            kind,
            size: stat.st_size as u64,
            mtime: Time { sec: stat.st_mtime, nsec: stat.st_mtime_nsec as u32 },
        }))
    }

    /// A regular file, for reading.
    pub fn open_file(&self, path: &[u8]) -> io::Result<File> {
        self.resolve(path, libc::O_RDONLY | libc::O_NONBLOCK)
    }

    pub fn read_link(&self, path: &[u8]) -> io::Result<Vec<u8>> {
        let handle = self.resolve(path, libc::O_PATH)?;
        let mut buffer = vec![0u8; 4096];
        // SAFETY: an empty path names the link that `handle` is; the call writes at most `buffer.len()` bytes.
        let n = unsafe {
            libc::readlinkat(handle.as_raw_fd(), c"".as_ptr(), buffer.as_mut_ptr().cast(), buffer.len())
        };
        if n < 0 {
            return Err(io::Error::last_os_error());
        }
        buffer.truncate(n as usize);
        Ok(buffer)
    }

    pub fn list(&self, path: &[u8]) -> Result<Listing, Errno> {
        let folder = self.resolve(path, libc::O_RDONLY | libc::O_DIRECTORY)?;
        let mut found = Vec::new();
        for (name, d_type) in list_folder(&folder)? {
            let kind = match d_type {
                libc::DT_REG => Some(Kind::File),
                libc::DT_DIR => Some(Kind::Dir),
                libc::DT_LNK => Some(Kind::Symlink),
                libc::DT_UNKNOWN => self.stat(&join(path, &name))?.map(|e| e.kind),
                _ => None,
            };
            if let Some(kind) = kind {
                found.push((name, kind));
            }
        }
        found.sort();
        Ok(Arc::new(found))
    }
}

impl PartialOrd for Kind {
    fn partial_cmp(&self, other: &Kind) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Kind {
    fn cmp(&self, other: &Kind) -> std::cmp::Ordering {
        (*self as u8).cmp(&(*other as u8))
    }
}

pub(crate) fn join(folder: &[u8], name: &[u8]) -> Vec<u8> {
    let mut path = Vec::with_capacity(folder.len() + 1 + name.len());
    path.extend_from_slice(folder);
    if !folder.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name);
    path
}

/// Whether a template path is a relation's file, which is copied up by block.
pub(crate) fn is_relation(path: &[u8]) -> bool {
    let mut parts = path.split(|&b| b == b'/');
    let number = |part: &[u8]| !part.is_empty() && part.iter().all(u8::is_ascii_digit);
    let file = match parts.next() {
        Some(b"global") => parts.next(),
        Some(b"base") => {
            if !parts.next().is_some_and(number) {
                return false;
            }
            parts.next()
        }
        Some(b"pg_tblspc") => {
            parts.next();
            parts.next();
            if !parts.next().is_some_and(number) {
                return false;
            }
            parts.next()
        }
        _ => None,
    };
    let (Some(file), None) = (file, parts.next()) else { return false };
    is_relation_name(file)
}

/// Whether a name is a number, with a fork and a segment or without.
fn is_relation_name(name: &[u8]) -> bool {
    let number = |part: &[u8]| !part.is_empty() && part.iter().all(u8::is_ascii_digit);
    let mut halves = name.splitn(2, |&b| b == b'.');
    let (stem, segment) = (halves.next().unwrap_or_default(), halves.next());
    let mut halves = stem.splitn(2, |&b| b == b'_');
    let (node, fork) = (halves.next().unwrap_or_default(), halves.next());
    number(node) && segment.is_none_or(number) && fork.is_none_or(|f| matches!(f, b"fsm" | b"vm" | b"init"))
}

/// Whether a name, `depth` names below the data folder's `top`, is of a tenant's own data: relations, temporary ones
/// (`t3_16384`), and what queries spill (`pgsql_tmp`). WAL, transaction status and the like have numbers for names too,
/// but in other folders.
pub(crate) fn is_bulk_name(top: &[u8], depth: usize, name: &[u8]) -> bool {
    let folder = match top {
        b"global" => 1,
        b"base" => 2,
        b"pg_tblspc" => 4,
        _ => return false,
    };
    if depth != folder {
        // Files that workers share while they sort lie in a folder of their own, deeper than any other.
        return depth > folder && top != b"global";
    }
    let temporary = || {
        let rest = name.strip_prefix(b"t")?;
        let at = rest.iter().position(|&b| b == b'_').filter(|&at| at > 0 && rest[..at].iter().all(u8::is_ascii_digit))?;
        Some(is_relation_name(&rest[at + 1..]))
    };
    is_relation_name(name) || name.starts_with(b"pgsql_tmp") || temporary() == Some(true)
}

/// The name of a template: SHA-256 in hexadecimal over its files, folders and links in the order of their paths, each
/// as kind, path length, path, content length, content. Modes, owners and times don't count.
pub fn template_hash(path: &Path) -> io::Result<String> {
    let template = Template::open(path)?;
    let mut hash = Sha256::new();
    let mut todo = vec![(Vec::new(), Kind::Dir)];
    while let Some((path, kind)) = todo.pop() {
        hash.update([kind as u8]);
        hash.update((path.len() as u64).to_le_bytes());
        hash.update(&path);
        match kind {
            Kind::Dir => {
                for (name, kind) in template.list(&path)?.iter().rev() {
                    todo.push((join(&path, name), *kind));
                }
            }
            Kind::Symlink => {
                let target = template.read_link(&path)?;
                hash.update((target.len() as u64).to_le_bytes());
                hash.update(&target);
            }
            Kind::File => {
                let file = template.open_file(&path)?;
                let len = stat_of(&file)?.st_size as u64;
                hash.update(len.to_le_bytes());
                let mut buffer = vec![0u8; 64 << 10];
                let mut at = 0;
                while at < len {
                    let n = file.read_at(&mut buffer, at)?;
                    if n == 0 {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                    hash.update(&buffer[..n]);
                    at += n as u64;
                }
            }
        }
    }
    Ok(hash.finalize().iter().map(|b| format!("{b:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relation_files_are_told_from_others() {
        for yes in [
            "base/5/16384", "base/5/16384.1", "base/1/2619_fsm", "base/1/2619_vm.2", "base/5/16390_init", "global/1262",
            "pg_tblspc/16400/PG_17_202406281/5/16384",
        ] {
            assert!(is_relation(yes.as_bytes()), "{yes}");
        }
        for no in [
            "", "base", "base/5", "base/5/PG_VERSION", "base/5/pg_filenode.map", "global/pg_control", "base/5/t3_16384",
            "pg_wal/000000010000000000000001", "pg_xact/0000", "base/5/16384_foo", "base/5/16384/1", "base/x/16384",
            "base/5/.1", "base/5/1.", "16384",
        ] {
            assert!(!is_relation(no.as_bytes()), "{no}");
        }
    }

    #[test]
    fn a_tenants_data_are_told_from_what_the_server_needs() {
        for (top, depth, name) in [
            ("base", 2, "16384"), ("base", 2, "16384_fsm.2"), ("base", 2, "t3_16384"), ("base", 2, "t3_16384_vm"),
            ("base", 2, "pgsql_tmp77.0"), ("base", 3, "i0of1.p0.0"), ("global", 1, "1262"), ("pg_tblspc", 4, "16384.1"),
        ] {
            assert!(is_bulk_name(top.as_bytes(), depth, name.as_bytes()), "{top} {depth} {name}");
        }
        for (top, depth, name) in [
            ("pg_wal", 1, "000000010000000000000001"), ("pg_xact", 1, "0000"), ("pg_multixact", 2, "0000"),
            ("base", 1, "16384"), ("base", 2, "pg_filenode.map"), ("base", 2, "pg_internal.init"), ("base", 2, "t_1"),
            ("base", 2, "tx_1"), ("base", 2, "t3"), ("global", 1, "pg_control"), ("global", 2, "1"), ("", 1, "16384"),
        ] {
            assert!(!is_bulk_name(top.as_bytes(), depth, name.as_bytes()), "{top} {depth} {name}");
        }
    }

    #[test]
    fn links_and_dots_lead_nowhere() {
        let dir = tempfile::tempdir().unwrap();
        let inside = dir.path().join("t");
        std::fs::create_dir(&inside).unwrap();
        std::fs::write(dir.path().join("secret"), "x").unwrap();
        std::os::unix::fs::symlink("../secret", inside.join("link")).unwrap();
        std::os::unix::fs::symlink("..", inside.join("up")).unwrap();
        let template = Template::open(&inside).unwrap();
        assert!(matches!(template.stat(b"link"), Ok(Some(Entry { kind: Kind::Symlink, .. }))));
        assert_eq!(template.read_link(b"link").unwrap(), b"../secret");
        assert!(template.open_file(b"link").is_err());
        assert!(matches!(template.stat(b"up/secret"), Ok(None)));
        assert!(matches!(template.stat(b"../secret"), Ok(None)));
        assert!(template.open_file(b"../secret").is_err());
    }
}
