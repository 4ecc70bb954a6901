//! A database's folder as a whole, whatever is in it: its VMM may have been taken over by its guest.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{MetadataExt, lchown};
use std::path::Path;

/// Removes a folder with all that is in it, however deep: never more than two folders are open, and none is gone down into. Each
/// one's folders are moved up to the top first.
pub(crate) fn remove(folder: &Path) -> io::Result<()> {
    let mut number = 0u64;
    loop {
        let folders = remove_files(folder)?;
        if folders.is_empty() {
            return fs::remove_dir(folder);
        }
        for one in folders {
            for deeper in remove_files(&one)? {
                loop {
                    let above = folder.join(format!("removed-{number}"));
                    number += 1;
                    match fs::rename(&deeper, above) {
                        // Somebody had that name.
                        Err(error)
                            if matches!(error.kind(), ErrorKind::DirectoryNotEmpty | ErrorKind::AlreadyExists) => {}
                        other => break other?,
                    }
                }
            }
            fs::remove_dir(one)?;
        }
    }
}

/// Removes what is in a folder but for its folders, which are the result.
fn remove_files(folder: &Path) -> io::Result<Vec<std::path::PathBuf>> {
    let mut folders = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        match entry.file_type()?.is_dir() {
            true => folders.push(entry.path()),
            false => fs::remove_file(entry.path())?,
        }
    }
    Ok(folders)
}

/// Sees that a folder is root's, with all that is in it: a jail shows nothing else as its own. A home that was copied, or made
/// by another user, or that lies in a folder which hands its group down, is not. `marks` are looked at, within it; if one is
/// another's, all are made root's.
pub(crate) fn own(folder: &Path, marks: &[&str]) -> io::Result<()> {
    let is_foreign = |path: &Path| fs::symlink_metadata(path).is_ok_and(|found| (found.uid(), found.gid()) != (0, 0));
    if !is_foreign(folder) && !marks.iter().any(|mark| is_foreign(&folder.join(mark))) {
        return Ok(());
    }
    tracing::warn!(folder = %folder.display(), "not all of it is root's: it is made so");
    let mut left = vec![folder.to_owned()];
    while let Some(path) = left.pop() {
        lchown(&path, Some(0), Some(0))?;
        if fs::symlink_metadata(&path)?.is_dir() {
            for entry in fs::read_dir(&path)? {
                left.push(entry?.path());
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_folder_goes_however_deep_it_is_and_nothing_outside_it() {
        let dir = tempfile::tempdir().unwrap();
        let (folder, kept) = (dir.path().join("folder"), dir.path().join("kept"));
        fs::create_dir_all(folder.join("wide/a/b")).unwrap();
        fs::create_dir_all(folder.join("removed-0/c")).unwrap();
        File::create(&kept).unwrap();
        symlink(dir.path(), folder.join("wide/a/up")).unwrap();
        File::create(folder.join("wide/a/b/file")).unwrap();
        // Deeper than a path is long: made from the inside out.
        let mut inner = dir.path().join("0");
        fs::create_dir(&inner).unwrap();
        for level in 1..3000 {
            let outer = dir.path().join(level.to_string());
            fs::create_dir(&outer).unwrap();
            fs::rename(&inner, outer.join("d")).unwrap();
            inner = outer;
        }
        fs::rename(inner, folder.join("deep")).unwrap();
        remove(&folder).unwrap();
        assert!(!folder.exists() && kept.exists());
        assert_eq!(remove(&folder).unwrap_err().kind(), ErrorKind::NotFound);
    }

    #[test]
    fn what_is_another_s_becomes_root_s() {
        // SAFETY: takes nothing.
        if unsafe { libc::geteuid() } != 0 {
            return eprintln!("skipped: only root can give files away");
        }
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("layer")).unwrap();
        let (lock, other) = (dir.path().join("layer/lock"), dir.path().join("other"));
        File::create(&lock).unwrap();
        File::create(&other).unwrap();
        lchown(&other, Some(7), None).unwrap();
        own(dir.path(), &["layer/lock"]).unwrap();
        assert_eq!(fs::metadata(&other).unwrap().uid(), 7, "all that is looked at is root's");
        lchown(&lock, None, Some(7)).unwrap();
        own(dir.path(), &["layer/lock"]).unwrap();
        assert_eq!((fs::metadata(&other).unwrap().uid(), fs::metadata(&lock).unwrap().gid()), (0, 0));
    }
}
