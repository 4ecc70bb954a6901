//! Copies of files and trees, with their modes and with runs of zeros left as holes, made durable before they get
//! their name.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

const BLOCK: usize = 4096;

/// Copies a regular file; blocks of 4 KiB that are all zero become holes.
pub(crate) fn copy_file(from: &Path, to: &Path) -> io::Result<()> {
    let mut source = File::open(from)?;
    let mode = source.metadata()?.permissions().mode() & 0o7777;
    let target = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to)?;
    let mut buffer = vec![0; 64 * BLOCK];
    let mut at = 0u64;
    loop {
        let mut filled = 0;
        while filled < buffer.len() {
            match source.read(&mut buffer[filled..])? {
                0 => break,
                read => filled += read,
            }
        }
        if filled == 0 {
            break;
        }
        for (index, block) in buffer[..filled].chunks(BLOCK).enumerate() {
            if block.iter().any(|&byte| byte != 0) {
                target.write_all_at(block, at + (index * BLOCK) as u64)?;
            }
        }
        at += filled as u64;
    }
    target.set_len(at)?;
    target.set_permissions(fs::Permissions::from_mode(mode))
}

/// Copies a tree of folders and regular files into a folder that does not exist yet.
pub(crate) fn copy_tree(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type()?;
        if kind.is_dir() {
            copy_tree(&path, &target)?;
        } else if kind.is_file() {
            copy_file(&path, &target)?;
        } else {
            return Err(io::Error::other(format!("{} is neither a folder nor a regular file", path.display())));
        }
    }
    let mode = fs::metadata(from)?.permissions().mode() & 0o7777;
    fs::set_permissions(to, fs::Permissions::from_mode(mode))
}

/// Flushes the file system that holds a path, so that a rename after it names whole files.
pub(crate) fn flush_file_system(path: &Path) -> io::Result<()> {
    let folder = File::open(path)?;
    // SAFETY: syncfs takes a descriptor, which `folder` keeps open, and no pointers.
    match unsafe { libc::syncfs(folder.as_raw_fd()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Flushes a folder's own entries.
pub(crate) fn flush_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// A folder or a file under construction, removed again if it is dropped before it got its name.
pub(crate) struct Draft {
    path: PathBuf,
}

impl Draft {
    /// A name beside the final one that no listing takes for a finished thing; what a killed run left there goes.
    pub fn beside(target: &Path) -> io::Result<Draft> {
        let name = target.file_name().unwrap_or_default().to_string_lossy();
        let path = target.with_file_name(format!(".new-{name}-{}", std::process::id()));
        if path.exists() {
            remove(&path)?;
        }
        Ok(Draft { path })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Flushes all of it and gives it its name.
    pub fn finish(self, target: &Path) -> io::Result<()> {
        flush_file_system(&self.path)?;
        fs::rename(&self.path, target)?;
        flush_folder(target.parent().unwrap_or(target))
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // After `finish` there is nothing at this path; else what is left is of no use to anyone.
        let _ = remove(&self.path);
    }
}

/// A folder and all in it, or a file.
fn remove(path: &Path) -> io::Result<()> {
    if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn a_copied_tree_is_equal_and_sparse() {
        let folder = tempfile::tempdir().unwrap();
        let from = folder.path().join("from");
        fs::create_dir_all(from.join("pg_wal")).unwrap();
        let mut content = vec![0u8; 1 << 20];
        content[..5].copy_from_slice(b"start");
        content.push(7);
        fs::write(from.join("pg_wal/1"), &content).unwrap();
        fs::set_permissions(from.join("pg_wal"), fs::Permissions::from_mode(0o700)).unwrap();
        let to = folder.path().join("to");
        copy_tree(&from, &to).unwrap();
        assert_eq!(fs::read(to.join("pg_wal/1")).unwrap(), content);
        assert_eq!(fs::metadata(to.join("pg_wal")).unwrap().permissions().mode() & 0o777, 0o700);
        assert!(fs::metadata(to.join("pg_wal/1")).unwrap().blocks() * 512 <= 64 << 10);
        assert_eq!(crate::tree_hash(&from).unwrap(), crate::tree_hash(&to).unwrap());
    }

    #[test]
    fn a_draft_that_is_given_up_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("image");
        let draft = Draft::beside(&target).unwrap();
        fs::create_dir(draft.path()).unwrap();
        drop(draft);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
