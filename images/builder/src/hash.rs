//! Content hashes: SHA-256 of files and of trees.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use sha2::{Digest, Sha256};

pub(crate) fn hexadecimal(digest: &[u8]) -> String {
    digest.iter().fold(String::with_capacity(2 * digest.len()), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn add_file(hash: &mut Sha256, path: &Path) -> io::Result<u64> {
    let mut file = File::open(path)?;
    let mut buffer = vec![0; 256 << 10];
    let mut total = 0;
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok(total);
        }
        hash.update(&buffer[..read]);
        total += read as u64;
    }
}

/// SHA-256 of a file's content, hexadecimal, and its length in bytes.
pub(crate) fn file_hash(path: &Path) -> io::Result<(String, u64)> {
    let mut hash = Sha256::new();
    let bytes = add_file(&mut hash, path)?;
    Ok((hexadecimal(&hash.finalize()), bytes))
}

/// SHA-256 of a tree of folders and regular files, hexadecimal: over the paths within it in byte order, each with its
/// kind, permission bits, length and content. Owners and times don't count.
///
/// # Errors
/// If something cannot be read, or is neither a folder nor a regular file.
pub fn tree_hash(root: &Path) -> io::Result<String> {
    let mut hash = Sha256::new();
    add_tree(&mut hash, root, root)?;
    Ok(hexadecimal(&hash.finalize()))
}

fn add_tree(hash: &mut Sha256, root: &Path, folder: &Path) -> io::Result<()> {
    let mut names: Vec<OsString> =
        fs::read_dir(folder)?.map(|entry| entry.map(|e| e.file_name())).collect::<Result<_, _>>()?;
    names.sort();
    for name in names {
        let path = folder.join(name);
        let about = fs::symlink_metadata(&path)?;
        let within = path.strip_prefix(root).unwrap_or(&path).as_os_str().as_bytes();
        let kind = if about.is_dir() { b'd' } else { b'f' };
        hash.update([kind]);
        hash.update((within.len() as u64).to_le_bytes());
        hash.update(within);
        hash.update((about.permissions().mode() & 0o7777).to_le_bytes());
        if about.is_dir() {
            add_tree(hash, root, &path)?;
        } else if about.is_file() {
            hash.update(about.len().to_le_bytes());
            add_file(hash, &path)?;
        } else {
            return Err(io::Error::other(format!("{} is neither a folder nor a regular file", path.display())));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_of_a_tree_changes_with_names_modes_and_content_only() {
        let make = |name: &str, mode: u32, content: &[u8]| {
            let folder = tempfile::tempdir().unwrap();
            fs::create_dir(folder.path().join("base")).unwrap();
            let file = folder.path().join("base").join(name);
            fs::write(&file, content).unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
            tree_hash(folder.path()).unwrap()
        };
        let one = make("1", 0o600, b"a");
        assert_eq!(one, make("1", 0o600, b"a"));
        assert_ne!(one, make("2", 0o600, b"a"));
        assert_ne!(one, make("1", 0o640, b"a"));
        assert_ne!(one, make("1", 0o600, b"b"));
        assert_eq!(one.len(), 64);
    }

    #[test]
    fn a_tree_with_a_symbolic_link_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/etc/passwd", folder.path().join("link")).unwrap();
        assert!(tree_hash(folder.path()).is_err());
    }
}
