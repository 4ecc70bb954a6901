//! The host's part of a VMM's jail (`docs/jail.md`): who it becomes, and which folder it gets.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use dormouse_vmm::jail::folders::{self, Owner};
use dormouse_vmm::jail::{landlock, root};
use dormouse_vmm::standby::{APART, READY};
use tokio::io::Interest;
use tokio::net::UnixStream;

use super::{Home, MakeError};
use super::super::tree;
use crate::identity::DatabaseId;

/// How VMMs are jailed.
#[derive(Clone, Debug)]
pub enum Jail {
    Off,
    /// By what every process may do to itself.
    Own,
    /// Also by what only root can: with a root folder of their own, on this network, and where that can be as users from this
    /// number on.
    Apart { uids: Option<u32>, network: Arc<File> },
}

impl Jail {
    pub fn new(on: bool, uids: u32, home: &Home) -> io::Result<Jail> {
        if !on {
            tracing::warn!("THE JAIL IS OFF (setting host.jail): a guest that breaks out can do what this user can");
            return Ok(Jail::Off);
        }
        tell_landlock(landlock::version());
        // SAFETY: takes nothing.
        if unsafe { libc::geteuid() } != 0 {
            tracing::warn!("not root: VMMs keep this user, and have no root folder of their own (docs/jail.md)");
            return Ok(Jail::Own);
        }
        for folder in ["images", "templates"] {
            let entries = fs::read_dir(home.root().join(folder)).into_iter().flatten().flatten();
            entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).try_for_each(|entry| tree::own(&entry.path(), &[]))?;
        }
        let network = match empty_network() {
            Ok(network) => Arc::new(network),
            Err(error) => {
                tracing::warn!(%error, "no namespaces can be made: VMMs keep this user, and have no root folder of their own (docs/jail.md)");
                return Ok(Jail::Own);
            }
        };
        // Each VMM does the same, where an error would be found by whoever wakes a database.
        let uids = match Owner::new(uids).and_then(|owner| root::probe(home.root(), Some(&owner))) {
            Ok(()) => Some(uids),
            Err(why) => {
                root::probe(home.root(), None).map_err(|error| cannot_be_apart(&error))?;
                tracing::warn!(%why, "the home's files cannot be shown as another user's: VMMs keep this user, in a root folder of their own (docs/jail.md)");
                None
            }
        };
        Ok(Jail::Apart { uids, network })
    }

    /// What a VMM's command line says of it.
    pub fn words(&self) -> Vec<String> {
        match self {
            Jail::Off => vec!["--no-jail".to_owned()],
            Jail::Own => Vec::new(),
            Jail::Apart { uids, network } => {
                let network = format!("/proc/{}/fd/{}", std::process::id(), network.as_raw_fd());
                let uids = uids.iter().flat_map(|first| ["--jail-uids".to_owned(), first.to_string()]);
                ["--jail-root".to_owned(), "--jail-network".to_owned(), network].into_iter().chain(uids).collect()
            }
        }
    }
}

/// What of Landlock a kernel lacks is left out.
fn tell_landlock(version: u32) {
    match version {
        0 => tracing::warn!("this kernel has no Landlock (CONFIG_SECURITY_LANDLOCK, and landlock among lsm=): VMMs do without it (docs/jail.md)"),
        version if version < landlock::KNOWN as u32 => tracing::info!(version, "VMMs use what this kernel has of Landlock; a newer one has more (docs/jail.md)"),
        version => tracing::debug!(version, "Landlock"),
    }
}

fn cannot_be_apart(error: &io::Error) -> io::Error {
    let how = "that takes Linux 5.12 or newer, and to be allowed to mount; where it cannot be, host.jail = \"off\" goes on without a jail";
    io::Error::new(error.kind(), format!("VMMs cannot have root folders of their own here ({error}): {how}"))
}

/// A network with nothing in it, made on a thread that ends.
fn empty_network() -> io::Result<File> {
    let made = std::thread::spawn(|| {
        // SAFETY: takes an integer; of this thread alone.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } < 0 {
            return Err(io::Error::last_os_error());
        }
        File::open("/proc/thread-self/ns/net")
    });
    made.join().unwrap_or_else(|_| Err(io::Error::other("the thread that makes a network panicked")))
}

/// What of a database's folder is looked at before it is lent.
const MARKS: &[&str] = &["layer", "layer/files", "layer/lock", "layer/journal", "snapshot", "packed"];

/// How a VMM finds its database's folder.
#[derive(Debug)]
pub enum Folder {
    ByPath,
    /// It is handed over, as this owner's.
    Lent(Option<Owner>),
}

impl Folder {
    /// The database's folder, as a mount of its own.
    pub fn lend(&self, id: &DatabaseId, home: &Home) -> Result<Option<OwnedFd>, MakeError> {
        let Folder::Lent(owner) = self else { return Ok(None) };
        let folder = home.database(id);
        let own = owner.as_ref().map_or(Ok(()), |_| tree::own(&folder, MARKS));
        let lent = own.and_then(|()| folders::lend(&folder, owner.as_ref(), false));
        lent.map(Some).map_err(|source| MakeError::Lend { folder, source })
    }
}

/// Waits until a VMM says that it is ready, and how it wants its folder.
pub async fn readiness(stream: &UnixStream) -> io::Result<Folder> {
    let mut said = [0; READY.len()];
    let received = stream.async_io(Interest::READABLE, || folders::receive(stream, &mut said)).await;
    let (len, descriptor) = received?;
    match &said[..len] {
        b"" => Err(io::ErrorKind::UnexpectedEof.into()),
        said if said == READY => Ok(Folder::ByPath),
        said if said == APART => Ok(Folder::Lent(descriptor.map(Owner::from))),
        _ => Err(io::Error::other("it does not say that it is ready")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    /// On a thread that may be spoilt, as root; with a home.
    fn on_a_thread(test: impl FnOnce(&Home) + Send + 'static) {
        // SAFETY: takes nothing.
        if unsafe { libc::geteuid() } != 0 {
            return eprintln!("skipped: not root");
        }
        let done = std::thread::spawn(|| {
            let dir = tempfile::tempdir().unwrap();
            let home = Home::new(dir.path().into());
            home.create().unwrap();
            test(&home);
        });
        done.join().unwrap();
    }

    /// As of a kernel that does not have the call.
    fn without(call: libc::c_long) {
        const LOAD: u16 = 0x20;
        const IS: u16 = 0x15;
        const RETURN: u16 = 0x06;
        let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
        let mut steps = [
            step(LOAD, 0, 0, 0),
            step(IS, 0, 1, call as u32),
            step(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32),
            step(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
        ];
        let program = libc::sock_fprog { len: steps.len() as u16, filter: steps.as_mut_ptr() };
        // SAFETY: the program outlives the call; it is of this thread and those that it makes.
        assert_eq!(unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) }, 0);
    }

    fn mount(kind: &std::ffi::CStr, at: &Path) {
        let at = std::ffi::CString::new(at.to_str().unwrap()).unwrap();
        // SAFETY: NUL-terminated strings; of this thread's own mounts alone.
        unsafe {
            assert_eq!(libc::unshare(libc::CLONE_NEWNS), 0);
            assert_eq!(libc::mount(c"none".as_ptr(), c"/".as_ptr(), std::ptr::null(), libc::MS_REC | libc::MS_PRIVATE, std::ptr::null()), 0);
            assert_eq!(libc::mount(c"none".as_ptr(), at.as_ptr(), kind.as_ptr(), 0, std::ptr::null()), 0);
        }
    }

    #[test]
    fn where_all_can_be_done_vmms_are_users_of_their_own() {
        on_a_thread(|home| {
            let jail = Jail::new(true, 7, home).unwrap();
            assert!(matches!(jail, Jail::Apart { uids: Some(7), .. }), "this file system can show its files as another's: {jail:?}");
            assert!(jail.words().ends_with(&["--jail-uids".to_owned(), "7".to_owned()]));
        });
    }

    #[test]
    fn where_nothing_can_be_mounted_the_server_does_not_start_and_says_how_to_go_on() {
        on_a_thread(|home| {
            without(libc::SYS_open_tree);
            let error = Jail::new(true, 7, home).unwrap_err().to_string();
            assert!(error.contains("Linux 5.12") && error.contains("host.jail"), "{error}");
            assert!(matches!(Jail::new(false, 7, home), Ok(Jail::Off)));
        });
    }

    #[test]
    fn on_a_file_system_that_cannot_be_mapped_they_keep_their_user_and_have_a_root_folder_all_the_same() {
        on_a_thread(|home| {
            mount(c"ramfs", &home.images());
            let jail = Jail::new(true, 7, home).unwrap();
            assert!(matches!(jail, Jail::Apart { uids: None, .. }), "{jail:?}");
            assert!(jail.words().contains(&"--jail-root".to_owned()) && !jail.words().contains(&"--jail-uids".to_owned()));
        });
    }
}
