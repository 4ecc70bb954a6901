//! The golden guest's layer: what its boot changed in the data directory, which its memory counts on.
//!
//! Baking copies it beside the golden memory; a clone begins with a copy of it. It is small (a lock file, the control
//! file, what a start of Postgres writes). The journal goes last and by a rename, so a layer is either empty or whole,
//! and whole it is good for a cold start too.

use std::fs::{self, File};
use std::io;
use std::path::Path;

/// Folder of the copy in a golden snapshot's folder.
pub const NAME: &str = "layer";
const JOURNAL: &str = "journal";
const LOCK: &str = "lock";

/// Copies a layer that nobody changes to `to`, an empty layer. Durable when it returns.
pub fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    copy_tree(from, to, true)?;
    if from.join(JOURNAL).exists() {
        let temporary = to.join("journal.new");
        fs::copy(from.join(JOURNAL), &temporary)?;
        File::open(&temporary)?.sync_all()?;
        File::open(to)?.sync_all()?;
        fs::rename(&temporary, to.join(JOURNAL))?;
    }
    File::open(to)?.sync_all()
}

fn copy_tree(from: &Path, to: &Path, top: bool) -> io::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let name = entry.file_name();
        if top && (name == JOURNAL || name == LOCK) {
            continue;
        }
        let target = to.join(&name);
        if entry.file_type()?.is_dir() {
            match fs::create_dir(&target) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
            fs::set_permissions(&target, entry.metadata()?.permissions())?;
            copy_tree(&entry.path(), &target, false)?;
            File::open(&target)?.sync_all()?;
        } else {
            fs::copy(entry.path(), &target)?;
            File::open(&target)?.sync_all()?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_has_everything_but_the_lock() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::create_dir_all(from.join("files")).unwrap();
        fs::write(from.join("files/7"), b"seven").unwrap();
        fs::write(from.join(JOURNAL), b"journal").unwrap();
        fs::write(from.join(LOCK), b"").unwrap();
        copy(&from, &to).unwrap();
        assert_eq!(fs::read(to.join("files/7")).unwrap(), b"seven");
        assert_eq!(fs::read(to.join(JOURNAL)).unwrap(), b"journal");
        assert!(!to.join(LOCK).exists() && !to.join("journal.new").exists());
    }
}
