//! The command line, and the paths it stands for.

use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use clap::{Parser, ValueEnum};
use serde::Deserialize;

/// What is done with a database's files instead of running it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Task {
    /// Pack it (`docs/packed.md`).
    Pack,
    /// Take a packed one apart, without its snapshot: its next start is a cold one.
    Unpack,
}

/// Runs one database's virtual machine until it has been suspended or has ended.
#[derive(Clone, Debug, Parser)]
#[command(name = "dormouse vmm", version, args_override_self = true)]
pub struct Settings {
    /// The database's id.
    #[arg(long, value_name = "DBID")]
    pub database: String,
    /// The folder that holds all of Dormouse's state.
    #[arg(long, value_name = "DIR")]
    pub home: PathBuf,
    /// The image to run.
    #[arg(long, value_name = "IMAGE", required_unless_present_all = ["kernel", "postgres", "boot", "template"])]
    pub image: Option<String>,
    /// Guest memory in MiB, a multiple of 2.
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub memory_mib: u64,
    /// Make everything ready, say so on standard input (a socket) and wait there to be told the database, whose id takes
    /// the place of --database's, which must be as long.
    #[arg(long, conflicts_with_all = ["cold", "golden"])]
    pub standby: bool,
    /// Leave out the jail: whatever takes this process over can do what its user can. For debugging.
    #[arg(long)]
    pub no_jail: bool,
    /// With --standby: go into a root folder of its own. The database's folders come with the claim.
    #[arg(long)]
    pub jail_root: bool,
    /// With --jail-root: become the user of this number plus its process number.
    #[arg(long, value_name = "UID", requires = "jail_root")]
    pub jail_uids: Option<u32>,
    /// With --jail-root: the network namespace to go to.
    #[arg(long, value_name = "FILE", requires = "jail_root")]
    pub jail_network: Option<PathBuf>,
    /// Do this with the database's files, and end.
    #[arg(long, conflicts_with_all = ["standby", "cold", "golden"])]
    pub task: Option<Task>,
    /// Boot, whatever snapshot there is.
    #[arg(long)]
    pub cold: bool,
    /// With --golden: how many connections to open and park before the snapshot is taken.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub park: usize,
    /// Boot, and write the suspended guest to this folder as a golden snapshot.
    #[arg(long, value_name = "DIR")]
    pub golden: Option<PathBuf>,
    /// Of a guest that is restored: when it has been suspended again, note in this folder which pages it has changed and touched. Its
    /// page tables are others then: for a rehearsal alone.
    #[arg(long, value_name = "DIR")]
    pub note_pages: Option<PathBuf>,
    /// The most processes the guest may have at once, if its memory allows; each takes 2 MiB of it.
    #[arg(long, value_name = "N", default_value_t = 160)]
    pub processes: u32,
    /// How often a running guest's timers are looked at, in milliseconds.
    #[arg(long, value_name = "MS", default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=1000))]
    pub tick_ms: u64,
    /// Suspend by itself when idle this long with no client at all, in seconds; 0 for never.
    #[arg(long, value_name = "S", default_value_t = 10)]
    pub unattended_s: u64,
    /// A guest whose kernel has not looked up, though asked to, in so many milliseconds of vCPU time is ended; 0 for
    /// never.
    #[arg(long, value_name = "MS", default_value_t = 10_000)]
    pub watchdog_ms: u64,
    /// Size in MiB at which the guest's console log is rotated; one old one is kept.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=4096))]
    pub console_log_mib: u64,
    /// The most bytes of disk that the database's layer may take.
    #[arg(long, value_name = "BYTES")]
    pub storage_bytes: Option<u64>,
    /// The database's layer was written: an empty one has lost its data, and is not taken for a new database's.
    #[arg(long)]
    pub written: bool,
    /// Show the guest this folder of the host, at the same path.
    #[cfg(feature = "shared-folder")]
    #[arg(long, value_name = "DIR")]
    pub share: Option<PathBuf>,
    /// Copy the guest's console to stderr.
    #[arg(long)]
    pub foreground: bool,
    /// The kernel, instead of the image's.
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,
    /// Postgres, instead of the image's.
    #[arg(long, value_name = "FILE")]
    pub postgres: Option<PathBuf>,
    /// The boot archive, instead of the image's.
    #[arg(long, value_name = "FILE")]
    pub boot: Option<PathBuf>,
    /// The template's folder, instead of the image's.
    #[arg(long, value_name = "DIR")]
    pub template: Option<PathBuf>,
    /// Arguments of the guest's first process, instead of the image's.
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    pub postgres_arg: Vec<String>,
    /// Environment of the guest's first process, instead of the image's: NAME=value.
    #[arg(long, value_name = "NAME=VALUE")]
    pub postgres_env: Vec<String>,
}

impl Settings {
    /// The folder of the host that the guest shall see.
    #[cfg(feature = "shared-folder")]
    pub fn share(&self) -> Option<&Path> {
        self.share.as_deref()
    }

    /// None: only a build for tests can be told of one.
    #[cfg(not(feature = "shared-folder"))]
    pub fn share(&self) -> Option<&Path> {
        None
    }

    /// What a path on disk is made of: ids and image names must not climb out of their folders.
    pub fn check(&self) -> Result<(), String> {
        let plain = |name: &str| {
            !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-')
        };
        if !plain(&self.database) {
            return Err(format!("{:?} is not a database id", self.database));
        }
        if let Some(image) = &self.image
            && !plain(image)
        {
            return Err(format!("{image:?} is not an image's name"));
        }
        if self.park > 0 && self.golden.is_none() {
            return Err("--park is only for --golden".to_owned());
        }
        Ok(())
    }

    /// `databases/DBID`.
    pub fn database_dir(&self) -> PathBuf {
        self.home.join("databases").join(&self.database)
    }

    /// `run/vmms`, where VMMs listen.
    pub fn sockets_dir(&self) -> PathBuf {
        self.home.join("run/vmms")
    }

    /// `images/IMAGE`, if an image is named.
    pub fn image_dir(&self) -> Option<PathBuf> {
        self.image.as_ref().map(|image| self.home.join("images").join(image))
    }
}

/// Removes a file that may not be there.
pub fn remove_if_there(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Makes a folder and its parents, for this user alone.
pub fn make_dir(path: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}
