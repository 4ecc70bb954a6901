//! Paths of unix sockets that are too long for their addresses.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// The longest path that fits an address, in bytes.
const LONGEST: usize = 107;

/// A path by which to connect to the socket: its own, or one through its folder, which is to be kept open until then.
pub fn short_path(path: &Path) -> io::Result<(PathBuf, Option<File>)> {
    if path.as_os_str().as_bytes().len() <= LONGEST {
        return Ok((path.to_owned(), None));
    }
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let folder = File::open(folder)?;
    let short = PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd())).join(name);
    Ok((short, Some(folder)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_paths_go_through_a_folder() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("x".repeat(120));
        std::fs::create_dir(&deep).unwrap();
        let (short, folder) = short_path(&deep.join("vm.sock")).unwrap();
        assert!(short.as_os_str().len() <= LONGEST && folder.is_some());
        std::fs::write(&short, b"x").unwrap();
        assert!(deep.join("vm.sock").exists());
        assert_eq!(short_path(Path::new("/run/vm.sock")).unwrap().0, Path::new("/run/vm.sock"));
    }
}
