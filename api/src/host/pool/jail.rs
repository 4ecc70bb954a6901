//! The host's part of a VMM's jail (`docs/jail.md`): who it becomes, and which folders it gets.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::sync::Arc;

use dormouse_vmm::jail::folders::{self, Owner};
use dormouse_vmm::standby::{APART, READY};
use tokio::io::Interest;
use tokio::net::UnixStream;

use super::Home;
use super::super::tree;
use crate::identity::DatabaseId;

/// How VMMs are jailed.
#[derive(Clone, Debug)]
pub enum Jail {
    Off,
    /// By what every process may do to itself.
    Own,
    /// Also by what only root can: as users from this number on, with a root folder of their own, on this network.
    Apart { uids: u32, network: Arc<File> },
}

impl Jail {
    pub fn new(on: bool, uids: u32, home: &Home) -> io::Result<Jail> {
        if !on {
            tracing::warn!("THE JAIL IS OFF (setting host.jail): a guest that breaks out can do what this user can");
            return Ok(Jail::Off);
        }
        // SAFETY: takes nothing.
        if unsafe { libc::geteuid() } != 0 {
            tracing::warn!("not root: VMMs keep this user and its files (docs/jail.md)");
            return Ok(Jail::Own);
        }
        for folder in ["images", "templates"] {
            let entries = fs::read_dir(home.root().join(folder)).into_iter().flatten().flatten();
            entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).try_for_each(|entry| tree::own(&entry.path(), &[]))?;
        }
        match empty_network() {
            Ok(network) => Ok(Jail::Apart { uids, network: Arc::new(network) }),
            Err(error) => {
                tracing::warn!(%error, "no namespaces can be made: VMMs keep this user and its files (docs/jail.md)");
                Ok(Jail::Own)
            }
        }
    }

    /// What a VMM's command line says of it.
    pub fn words(&self) -> Vec<String> {
        match self {
            Jail::Off => vec!["--no-jail".to_owned()],
            Jail::Own => Vec::new(),
            Jail::Apart { uids, network } => {
                let network = format!("/proc/{}/fd/{}", std::process::id(), network.as_raw_fd());
                ["--jail-uids", &uids.to_string(), "--jail-network", &network].map(str::to_owned).into()
            }
        }
    }
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
const MARKS: &[&str] = &["layer", "layer/files", "layer/lock", "layer/journal", "snapshot"];

/// How a VMM finds its database's folders.
#[derive(Debug)]
pub enum Folders {
    ByPath,
    /// They are handed over, as this owner's.
    Lent(Option<Owner>),
}

impl Folders {
    /// The database's folder and its run folder, as mounts of their own.
    pub fn lend(&self, id: &DatabaseId, home: &Home) -> io::Result<Vec<OwnedFd>> {
        let Folders::Lent(owner) = self else { return Ok(Vec::new()) };
        let lend = |folder: PathBuf| {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
            if owner.is_some() {
                tree::own(&folder, MARKS)?;
            }
            folders::lend(&folder, owner.as_ref(), false)
        };
        Ok(vec![lend(home.database(id))?, lend(home.run_of(id))?])
    }
}

/// Waits until a VMM says that it is ready, and how it wants its folders.
pub async fn readiness(stream: &UnixStream) -> io::Result<Folders> {
    let mut said = [0; READY.len()];
    let received = stream.async_io(Interest::READABLE, || folders::receive(stream, &mut said)).await;
    let (len, descriptors) = received?;
    match &said[..len] {
        b"" => Err(io::ErrorKind::UnexpectedEof.into()),
        said if said == READY => Ok(Folders::ByPath),
        said if said == APART => Ok(Folders::Lent(descriptors.into_iter().next().map(Owner::from))),
        _ => Err(io::Error::other("it does not say that it is ready")),
    }
}
