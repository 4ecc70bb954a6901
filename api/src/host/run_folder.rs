//! Where `run/` of a home is: in memory, if there is a file system for that.
//!
//! A wake makes two sockets there. On a disk's file system they wait for its journal while databases are being suspended; and nothing
//! that lies there is worth a disk, for it ends with the processes that it speaks of. `HOME/run` is a symbolic link then, so that
//! everybody finds it as before.

use std::ffi::{CString, OsStr};
use std::fs::{self, DirBuilder};
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};

use dormouse_vmm::jail::folders::{self, Owner};

use super::layout::Home;
use super::record::Record;
use super::tree;
use crate::settings::RunDir;

/// Folders for folders of homes, the first that will do to be taken.
fn candidates(dir: &RunDir) -> Vec<PathBuf> {
    match dir {
        // SAFETY: takes nothing.
        RunDir::Auto => vec!["/run/dormouse".into(), format!("/dev/shm/dormouse-{}", unsafe { libc::geteuid() }).into()],
        RunDir::At(path) => vec![path.clone()],
        RunDir::InHome => Vec::new(),
    }
}

/// In each home's folder: whose it is.
const OF: &str = "home";

/// Sees that `HOME/run` leads to a folder of its own, which is made where the setting says; where none will do, it is a folder of
/// the home. The home must be locked, and have a `run`.
///
/// A `run` in which VMs are awake stays what it is: they are found by it.
pub fn place(home: &Home, dir: &RunDir) -> io::Result<()> {
    let link = home.run();
    let before = fs::read_link(&link).ok();
    let wanted = candidates(dir).iter().find_map(|among| {
        let unfit = |error: &io::Error| tracing::info!(%error, "sockets of VMs cannot lie there (setting host.run_dir)");
        make(home, among).inspect_err(unfit).ok()
    });
    // What a link to elsewhere leads to may be another home's, of which this one is a copy.
    if before != wanted && (before.is_some() || Record::all(home).is_empty()) {
        match before {
            Some(_) => fs::remove_file(&link)?,
            None => tree::remove(&link)?,
        }
        if let Some(wanted) = &wanted {
            symlink(wanted, &link)?;
        }
    }
    // Made before, through a link, or now.
    home.create_run()
}

/// The home's folder below `among`, which is there from now on. Those of homes that are gone are removed.
fn make(home: &Home, among: &Path) -> io::Result<PathBuf> {
    let among = &std::path::absolute(among)?;
    let said = |what: &Path, error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", what.display()));
    make_own(among).map_err(|error| said(among, error))?;
    if !is_in_memory(among).map_err(|error| said(among, error))? {
        // As far as it is empty.
        let _ = fs::remove_dir(among);
        return Err(said(among, io::Error::other("not on a file system in memory")));
    }
    remove_old(among);
    // By what the home is and not by its name: a copy is another, and one that was moved is the same.
    let found = fs::metadata(home.root())?;
    let folder = among.join(format!("{:x}-{:x}", found.dev(), found.ino()));
    make_own(&folder).map_err(|error| said(&folder, error))?;
    fs::write(folder.join(OF), home.root().as_os_str().as_bytes()).map_err(|error| said(&folder, error))?;
    // SAFETY: takes nothing.
    if unsafe { libc::geteuid() } == 0 {
        // Jailed VMMs see it as their own user's, which not every kernel can with such a file system.
        let lent = Owner::new(1).and_then(|owner| folders::lend(&folder, Some(&owner), false));
        lent.map_err(|error| said(&folder, error))?;
    }
    Ok(folder)
}

/// Makes a folder that nobody else can reach. One that is there must be such a one: it may lie where all can make folders.
fn make_own(folder: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
        other => return other,
    }
    let found = fs::symlink_metadata(folder)?;
    // SAFETY: takes nothing.
    let is_own = found.is_dir() && found.uid() == unsafe { libc::geteuid() } && found.mode() & 0o022 == 0;
    if is_own { Ok(()) } else { Err(io::Error::other("it is not this user's folder, or others may write there")) }
}

fn is_in_memory(folder: &Path) -> io::Result<bool> {
    let path = CString::new(folder.as_os_str().as_bytes())?;
    // SAFETY: all zeroes are one.
    let mut found: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: a NUL-terminated path, and a structure that outlives the call.
    if unsafe { libc::statfs(path.as_ptr(), &raw mut found) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(found.f_type == libc::TMPFS_MAGIC)
}

/// Removes those of homes that are no more, as far as they can be.
fn remove_old(among: &Path) {
    for entry in fs::read_dir(among).into_iter().flatten().flatten() {
        let folder = entry.path();
        let Ok(home) = fs::read(folder.join(OF)) else { continue };
        if fs::symlink_metadata(OsStr::from_bytes(&home)).is_err_and(|error| error.kind() == ErrorKind::NotFound) {
            let _ = tree::remove(&folder);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn made(dir: &Path, name: &str) -> Home {
        let home = Home::new(dir.join(name));
        home.create().unwrap();
        home
    }

    /// A folder for folders of homes, for as long as it is used; none where tests have no such file system.
    fn in_memory() -> Option<(tempfile::TempDir, RunDir)> {
        let dir = tempfile::tempdir_in("/dev/shm").ok().filter(|dir| is_in_memory(dir.path()).unwrap());
        if dir.is_none() {
            eprintln!("skipped: no file system in memory at /dev/shm");
        }
        dir.map(|dir| {
            let at = RunDir::At(dir.path().into());
            (dir, at)
        })
    }

    #[test]
    fn each_home_has_a_folder_of_its_own_that_is_found_by_its_name() {
        let (dir, Some((among, at))) = (tempfile::tempdir().unwrap(), in_memory()) else { return };
        let home = made(dir.path(), "one");
        place(&home, &at).unwrap();
        let leads_to = fs::read_link(home.run()).unwrap();
        assert!(leads_to.starts_with(among.path()) && home.vmms().is_dir());
        assert_eq!(fs::metadata(&leads_to).unwrap().mode() & 0o777, 0o700);
        // Another start finds it, and what is in it.
        fs::write(home.server_file(), "kept").unwrap();
        place(&home, &at).unwrap();
        assert_eq!(fs::read_to_string(home.server_file()).unwrap(), "kept");
        // The host was started anew: the link leads nowhere, and commands that make the home do not mind.
        fs::remove_dir_all(&leads_to).unwrap();
        home.create().unwrap();
        assert!(!leads_to.exists());
        place(&home, &at).unwrap();
        assert!(home.vmms().is_dir() && !home.server_file().exists());
        // A copy of it, link and all.
        let copy = Home::new(dir.path().join("two"));
        fs::create_dir(copy.root()).unwrap();
        symlink(&leads_to, copy.run()).unwrap();
        copy.create().unwrap();
        place(&copy, &at).unwrap();
        let other = fs::read_link(copy.run()).unwrap();
        assert_ne!(other, leads_to);
        assert!(copy.vmms().is_dir() && leads_to.is_dir());
        // It is deleted, and the next start of any server removes what it left.
        fs::remove_dir_all(copy.root()).unwrap();
        place(&home, &at).unwrap();
        assert!(!other.exists() && leads_to.is_dir());
        // In the home again.
        place(&home, &RunDir::InHome).unwrap();
        assert!(fs::read_link(home.run()).is_err() && home.vmms().is_dir());
    }

    #[test]
    fn where_no_folder_will_do_it_lies_in_the_home() {
        let dir = tempfile::tempdir().unwrap();
        let home = made(dir.path(), "home");
        let on_disk = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        for among in [on_disk.path().join("new"), on_disk.path().join("not/there")] {
            place(&home, &RunDir::At(among.clone())).unwrap();
            assert!(fs::read_link(home.run()).is_err() && home.vmms().is_dir() && !among.exists());
        }
        let Some((open, at)) = in_memory() else { return };
        fs::set_permissions(open.path(), PermissionsExt::from_mode(0o777)).unwrap();
        place(&home, &at).unwrap();
        assert!(fs::read_link(home.run()).is_err(), "anybody could put sockets there");
    }

    #[test]
    fn one_in_which_vms_are_awake_stays() {
        let (dir, Some((_among, at))) = (tempfile::tempdir().unwrap(), in_memory()) else { return };
        let home = made(dir.path(), "home");
        let record = Record::new(&home, std::process::id()).unwrap();
        record.write().unwrap();
        place(&home, &at).unwrap();
        assert!(fs::read_link(home.run()).is_err(), "its sockets could not be found");
        record.remove();
        place(&home, &at).unwrap();
        assert!(fs::read_link(home.run()).is_ok());
    }
}
