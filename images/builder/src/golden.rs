//! The golden snapshot: made by the VMM, which boots the image on an empty layer, parks ready backends and suspends.
//!
//! The VMM runs on a scratch home inside the image store, since the database it boots is nobody's: the real images
//! and templates are linked there, and what else it writes goes with it.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::manifest::{Manifest, ManifestError, file};
use crate::store::Store;
use crate::tree::Draft;

/// How long the VMM may take; a boot is a matter of seconds.
const PATIENCE: Duration = Duration::from_secs(180);
/// The scratch database's id.
pub(crate) const DATABASE: &str = "db_golden00000000000000";
/// The database that every tenant begins with (images/postgres/template.sh).
pub(crate) const WARM_DATABASE: &str = "app";
/// What the guest says when it has read the catalogs (images/postgres/dormouse.c).
const WARMED: &str = "LOG:  catalogs of database \"app\" read";

/// Why there is no golden snapshot.
#[derive(Debug, thiserror::Error)]
pub enum GoldenError {
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error("cannot {what} {path}: {source}")]
    Io { what: &'static str, path: PathBuf, source: io::Error },
    #[error("the VMM could not be started for the golden snapshot: {0}")]
    Start(io::Error),
    #[error("the VMM ended with {status} instead of making the golden snapshot; the guest's console said:\n{console}")]
    Vmm { status: ExitStatus, console: String },
    #[error("the golden snapshot was not ready after {} s; the guest's console said:\n{console}", PATIENCE.as_secs())]
    TooSlow { console: String },
    #[error("the VMM ended well but left no {0} of the golden snapshot")]
    Missing(&'static str),
    #[error("the golden guest did not read its catalogs; its console said:\n{console}")]
    Cold { console: String },
    #[error("a first clone of the golden guest failed: {source}; its console said:\n{console}")]
    Rehearsal { source: io::Error, console: String },
}

pub(crate) fn at<T>(result: io::Result<T>, what: &'static str, path: &Path) -> Result<T, GoldenError> {
    result.map_err(|source| GoldenError::Io { what, path: path.to_owned(), source })
}

/// Makes the golden snapshot of an image for guests of `memory_mib` MiB, unless it is there.
///
/// `vmm` is the program and its first arguments (`dormouse vmm`); `park` the number of backends to leave ready. Returns
/// whether a snapshot was made.
///
/// # Errors
/// If the image cannot be read or the VMM does not make a snapshot in time; then there is none, and none is half there.
pub(crate) fn bake_golden(
    home: &Path,
    image: &str,
    memory_mib: u64,
    park: u32,
    vmm: &[OsString],
) -> Result<bool, GoldenError> {
    let store = Store::new(home);
    let manifest = Manifest::load(&store.image(image))?;
    let golden = store.image(image).join(file::GOLDEN);
    let target = golden.join(memory_mib.to_string());
    if target.exists() {
        return Ok(false);
    }
    at(fs::create_dir_all(&golden), "create", &golden)?;
    let draft = at(Draft::beside(&target), "replace", &target)?;
    at(fs::create_dir(draft.path()), "create", draft.path())?;
    let scratch = at(scratch_home(home), "prepare", home)?;

    let draft_path = at(fs::canonicalize(draft.path()), "find", draft.path())?;
    let console = scratch.path().join("databases").join(DATABASE).join("console.log");
    let memory = memory_mib.to_string();
    let park = park.to_string();
    let mut words: Vec<&OsStr> = vec![
        "--database".as_ref(),
        DATABASE.as_ref(),
        "--home".as_ref(),
        scratch.path().as_os_str(),
        "--image".as_ref(),
        image.as_ref(),
        "--golden".as_ref(),
        draft_path.as_os_str(),
        "--park".as_ref(),
        park.as_ref(),
        "--memory-mib".as_ref(),
        memory.as_ref(),
    ];
    // What all clones will read anyway is read once, here (images/postgres/dormouse.c).
    let warm = ["-c".to_owned(), format!("dormouse.warm={WARM_DATABASE}")];
    for argument in manifest.first_process.arguments.iter().chain(&warm) {
        words.extend([OsStr::new("--postgres-arg"), argument.as_ref()]);
    }
    let mut child = start(vmm, &words)?;
    let end = wait(&mut child, PATIENCE);
    ended_well(&mut child, end, &console, GoldenError::Start)?;
    for name in [file::MEMORY, file::STATE] {
        if !draft.path().join(name).is_file() {
            return Err(GoldenError::Missing(name));
        }
    }
    if !fs::read_to_string(&console).unwrap_or_default().contains(WARMED) {
        return Err(GoldenError::Cold { console: tail(&console) });
    }
    at(drop_from_cache(&draft.path().join(file::MEMORY)), "open", draft.path())?;
    at(draft.finish(&target), "write", &target)?;
    Ok(true)
}

/// What was written lies in small pieces in the host's memory. What is read for a mapping of large pages lies in large ones, and
/// those a guest maps as one; so it had better be read.
fn drop_from_cache(path: &Path) -> io::Result<()> {
    let file = fs::File::open(path)?;
    // SAFETY: advice has no memory effects; failure costs speed only.
    unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
    Ok(())
}

/// A home that holds links to the real images and templates, and is removed when dropped.
pub(crate) fn scratch_home(home: &Path) -> io::Result<Draft> {
    let home = fs::canonicalize(home)?;
    let scratch = Draft::beside(&home.join("images/golden-home"))?;
    fs::create_dir(scratch.path())?;
    for folder in ["images", "templates"] {
        std::os::unix::fs::symlink(home.join(folder), scratch.path().join(folder))?;
    }
    fs::create_dir_all(scratch.path().join("databases").join(DATABASE).join("layer"))?;
    Ok(scratch)
}

/// Starts the VMM, the program and first arguments of which are `vmm`, with these arguments.
pub(crate) fn start(vmm: &[OsString], words: &[&OsStr]) -> Result<Child, GoldenError> {
    let (program, first) = vmm.split_first().ok_or_else(|| GoldenError::Start(io::ErrorKind::InvalidInput.into()))?;
    Command::new(program).args(first).args(words).stdin(Stdio::null()).spawn().map_err(GoldenError::Start)
}

/// Whether the VMM came to a good end. One that has come to none is killed; `failed` names what went wrong on this side.
pub(crate) fn ended_well(
    child: &mut Child,
    end: io::Result<Option<ExitStatus>>,
    console: &Path,
    failed: impl FnOnce(io::Error) -> GoldenError,
) -> Result<(), GoldenError> {
    match end {
        Ok(Some(status)) if status.success() => Ok(()),
        Ok(Some(status)) => Err(GoldenError::Vmm { status, console: tail(console) }),
        other => {
            let _ = child.kill();
            let _ = child.wait();
            Err(other.map_or_else(failed, |_| GoldenError::TooSlow { console: tail(console) }))
        }
    }
}

/// Waits for a child to end, at most so long; `None` if it has not.
pub(crate) fn wait(child: &mut Child, patience: Duration) -> io::Result<Option<ExitStatus>> {
    // SAFETY: pidfd_open takes two integers; a non-negative result is a new descriptor, owned by nobody else.
    let pidfd = unsafe {
        let fd = libc::syscall(libc::SYS_pidfd_open, child.id() as libc::pid_t, 0);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        OwnedFd::from_raw_fd(fd as i32)
    };
    let deadline = Instant::now() + patience;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(None);
        }
        let mut event = libc::pollfd { fd: pidfd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let milliseconds = left.as_millis().clamp(1, i32::MAX as u128) as i32;
        // SAFETY: one pollfd, alive during the call.
        if unsafe { libc::poll(&mut event, 1, milliseconds) } < 0 {
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
    }
}

/// The last lines of a log, to be shown in an error.
pub(crate) fn tail(path: &Path) -> String {
    let bytes = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    if lines.is_empty() {
        return "(nothing)".to_owned();
    }
    lines[lines.len().saturating_sub(20)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::tests::example;
    use std::os::unix::fs::PermissionsExt;

    /// A home with one image, and a program that stands for the VMM where the VMM can't be made to fail on demand.
    fn home_and_vmm(script: &str) -> (tempfile::TempDir, String, Vec<OsString>) {
        let home = tempfile::tempdir().unwrap();
        let manifest = example("t");
        let folder = Store::new(home.path()).image(&manifest.image);
        fs::create_dir_all(&folder).unwrap();
        fs::create_dir_all(home.path().join("templates")).unwrap();
        fs::write(folder.join(file::MANIFEST), serde_json::to_string(&manifest).unwrap()).unwrap();
        let program = home.path().join("vmm");
        fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let words = vec![OsString::from("/bin/sh"), program.into_os_string()];
        (home, manifest.image, words)
    }

    #[test]
    fn a_snapshot_is_placed_once_and_whole() {
        let (home, image, vmm) = home_and_vmm(&format!(
            r#"echo m > "$8/memory"; echo s > "$8/state"; echo '{WARMED}' > "$4/databases/$2/console.log"; test -d "$4/templates""#
        ));
        assert!(bake_golden(home.path(), &image, 128, 2, &vmm).unwrap());
        assert!(!bake_golden(home.path(), &image, 128, 2, &vmm).unwrap());
        let list = Store::new(home.path()).list().unwrap();
        assert_eq!(list[0].golden, [128]);
        assert_eq!(fs::read_dir(home.path().join("images")).unwrap().count(), 1);
    }

    #[test]
    fn a_vmm_that_fails_leaves_no_snapshot_and_tells_the_consoles_last_words() {
        let (home, image, vmm) =
            home_and_vmm(r#"echo m > "$8/memory"; echo "PANIC: no luck" > "$4/databases/$2/console.log"; exit 12"#);
        let error = bake_golden(home.path(), &image, 128, 2, &vmm).unwrap_err();
        assert!(error.to_string().contains("PANIC: no luck"), "{error}");
        assert!(Store::new(home.path()).list().unwrap()[0].golden.is_empty());
    }

    #[test]
    fn a_vmm_that_forgets_a_part_leaves_no_snapshot() {
        let (home, image, vmm) = home_and_vmm(r#"echo m > "$8/memory""#);
        assert!(matches!(bake_golden(home.path(), &image, 64, 0, &vmm), Err(GoldenError::Missing("state"))));
    }

    #[test]
    fn waiting_for_a_child_that_goes_on_gives_up() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        assert!(wait(&mut child, Duration::from_millis(20)).unwrap().is_none());
        drop(child.stdin.take());
        assert!(wait(&mut child, Duration::from_secs(60)).unwrap().unwrap().success());
    }
}
