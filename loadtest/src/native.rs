//! Native PostgreSQL, the yardstick: the programs that `make oracle` built from the same source as the image's.
//!
//! PostgreSQL refuses to run as root. Where the harness does, the server gets a user namespace of its own in
//! which root's files belong to user 1000: nothing has to be copied or given away.

use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use thiserror::Error;

use crate::client::{Address, Client, ClientError, Target};
use crate::cpu::children;

const USER: &str = "postgres";
/// How long the server may take to give its first row.
const START_LIMIT: Duration = Duration::from_secs(60);
/// Between two looks at whether the server is ready: small against the 10 ms that it takes.
const RETRY: Duration = Duration::from_micros(100);

#[derive(Debug, Error)]
pub enum NativeError {
    #[error("{0} is missing: run `make oracle` first")]
    Missing(PathBuf),
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("{program} failed: {message}")]
    Failed { program: String, message: String },
    #[error("native PostgreSQL: {0}")]
    Client(#[from] ClientError),
    #[error("native PostgreSQL ended while it started, see {0}")]
    Ended(PathBuf),
    #[error("native PostgreSQL gave no row within {} s", START_LIMIT.as_secs())]
    Slow,
}

/// The programs of one PostgreSQL.
#[derive(Debug, Clone)]
pub struct Programs {
    root: PathBuf,
}

impl Programs {
    /// `root` holds `bin/` and `lib/`.
    pub fn open(root: &Path) -> Result<Self, NativeError> {
        let root = root
            .canonicalize()
            .map_err(|_| NativeError::Missing(root.to_owned()))?;
        let programs = Self { root };
        for name in ["postgres", "initdb", "pgbench", "psql"] {
            let path = programs.path(name);
            if !path.is_file() {
                return Err(NativeError::Missing(path));
            }
        }
        Ok(programs)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join("bin").join(name)
    }

    /// A command for a client program such as `psql`.
    pub fn command(&self, name: &str) -> Command {
        let mut command = Command::new(self.path(name));
        command.env("LD_LIBRARY_PATH", self.root.join("lib"));
        // Settings of whoever runs this must not reach the program.
        for (name, _) in std::env::vars_os() {
            if name.as_encoded_bytes().starts_with(b"PG") {
                command.env_remove(name);
            }
        }
        command
    }

    /// As [`Programs::command`], for a program that refuses root; on one CPU if `core` says so.
    pub fn server_command(&self, name: &str, core: Option<usize>) -> Command {
        let mut command = self.command(name);
        unprivileged(&mut command, core);
        command
    }

    /// Runs a program to its end and gives what it printed.
    pub fn run(mut command: Command) -> Result<String, NativeError> {
        let program = Path::new(command.get_program())
            .file_name()
            .unwrap_or(OsStr::new("?"));
        let program = program.to_string_lossy().into_owned();
        let output = command
            .stdin(Stdio::null())
            .output()
            .map_err(|source| NativeError::Io {
                path: command.get_program().into(),
                source,
            })?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if !output.status.success() {
            let message = format!("{}: {}", output.status, text(&output.stderr).trim());
            return Err(NativeError::Failed { program, message });
        }
        Ok(text(&output.stdout))
    }
}

/// Has a program run as another user than root, which it refuses; on one CPU if `core` says so.
pub fn unprivileged(command: &mut Command, core: Option<usize>) {
    // SAFETY: geteuid and getegid only read the process' credentials.
    let (uid, gid) = unsafe { (libc::geteuid(), libc::getegid()) };
    let uid_map = format!("1000 {uid} 1");
    let gid_map = format!("1000 {gid} 1");
    // SAFETY: between fork and exec the closure makes only system calls (unshare, open, write, close,
    // sched_setaffinity) and allocates nothing on success: its strings were made before.
    unsafe {
        command.pre_exec(move || {
            if let Some(core) = core {
                bind(0, core..core + 1)?;
            }
            if uid == 0 {
                unshare_user(uid_map.as_bytes(), gid_map.as_bytes())?;
            }
            Ok(())
        });
    }
}

/// Binds a process (0: the calling one) to some CPUs.
fn bind(pid: u32, cores: Range<usize>) -> io::Result<()> {
    if cores.end > libc::CPU_SETSIZE as usize {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: cpu_set_t is plain data; CPU_SET stays inside it for any core it can name, which was checked.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        for core in cores {
            libc::CPU_SET(core, &mut set);
        }
        check(libc::sched_setaffinity(
            pid as i32,
            size_of::<libc::cpu_set_t>(),
            &raw const set,
        ))
    }
}

/// Enters a user namespace with the given maps.
fn unshare_user(uid_map: &[u8], gid_map: &[u8]) -> io::Result<()> {
    // SAFETY: unshare changes only the calling process.
    check(unsafe { libc::unshare(libc::CLONE_NEWUSER) })?;
    for (file, content) in [
        (c"/proc/self/uid_map", uid_map),
        (c"/proc/self/setgroups", b"deny".as_slice()),
        (c"/proc/self/gid_map", gid_map),
    ] {
        // SAFETY: the path is NUL-terminated, the buffer valid for its length, the descriptor ours.
        unsafe {
            let descriptor = libc::open(file.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
            check(descriptor)?;
            let written = libc::write(descriptor, content.as_ptr().cast(), content.len());
            let result = check(written as i32);
            libc::close(descriptor);
            result?;
        }
    }
    Ok(())
}

fn check(result: i32) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Whether `postmaster.pid` says that this server takes connections: its pid is on line 1 (another one's may be
/// left from before), its status on line 8.
fn is_ready(status: &[u8], pid: u32) -> bool {
    let mut lines = status.split(|byte| *byte == b'\n');
    lines.next() == Some(pid.to_string().as_bytes())
        && lines.nth(6).is_some_and(|line| line.starts_with(b"ready"))
}

/// How a native PostgreSQL differs from what `initdb` makes of it.
#[derive(Debug, Clone, Default)]
pub struct Setup {
    /// The CPU that the server is bound to.
    pub core: Option<usize>,
    /// Where the data directory's folder is made, in place of the one for temporary files.
    pub disk: Option<PathBuf>,
    /// More arguments of `initdb`.
    pub initdb: Vec<String>,
    /// More settings.
    pub settings: Vec<(String, String)>,
}

/// A data directory of native PostgreSQL in a folder of its own, removed at the end.
pub struct Native {
    programs: Programs,
    /// Socket and log; the data directory too, unless it was told to be elsewhere.
    folder: PathBuf,
    data: PathBuf,
    setup: Setup,
    server: Option<Child>,
}

impl Native {
    /// Makes the data directory. `core` pins the server to one CPU.
    pub fn create(programs: &Programs, core: Option<usize>) -> Result<Self, NativeError> {
        Self::create_with(
            programs,
            Setup {
                core,
                initdb: vec!["--locale=C.UTF-8".to_owned()],
                ..Setup::default()
            },
        )
    }

    pub fn create_with(programs: &Programs, setup: Setup) -> Result<Self, NativeError> {
        let native = Self::prepare(programs, setup)?;
        let mut initdb = programs.server_command("initdb", None);
        initdb.args(["--username", USER, "--auth", "trust", "--no-sync"]);
        initdb
            .args(&native.setup.initdb)
            .arg("-D")
            .arg(&native.data);
        Programs::run(initdb)?;
        Ok(native)
    }

    /// A folder in which [`Native::data`] has yet to be made, by the caller.
    pub fn without_data(programs: &Programs, core: Option<usize>) -> Result<Self, NativeError> {
        Self::prepare(
            programs,
            Setup {
                core,
                ..Setup::default()
            },
        )
    }

    /// As [`Native::without_data`], set up.
    pub fn prepare(programs: &Programs, setup: Setup) -> Result<Self, NativeError> {
        let name = format!("dormouse-native-{}", std::process::id());
        let folder = std::env::temp_dir().join(&name);
        let io = |source| NativeError::Io {
            path: folder.clone(),
            source,
        };
        fs::create_dir(&folder).map_err(io)?;
        fs::set_permissions(&folder, Permissions::from_mode(0o700)).map_err(io)?;
        let data = match &setup.disk {
            Some(disk) => disk.join(name),
            None => folder.join("data"),
        };
        Ok(Self {
            programs: programs.clone(),
            folder,
            data,
            setup,
            server: None,
        })
    }

    /// The data directory.
    pub fn data(&self) -> PathBuf {
        self.data.clone()
    }

    /// What the last server wrote.
    pub fn log(&self) -> PathBuf {
        self.folder.join("log")
    }

    pub fn socket_folder(&self) -> &Path {
        &self.folder
    }

    /// What the server is started with, besides what initdb wrote.
    pub fn arguments(&self) -> Vec<String> {
        let show = |path: &Path| path.display().to_string();
        let own = [
            "-D",
            &show(&self.data),
            "-k",
            &show(&self.folder),
            "-c",
            "listen_addresses=",
        ];
        let settings = self.setup.settings.iter();
        own.map(str::to_owned)
            .into_iter()
            .chain(settings.flat_map(|(name, value)| ["-c".to_owned(), format!("{name}={value}")]))
            .collect()
    }

    /// The postmaster's process id, while there is one.
    pub fn postmaster(&self) -> Option<u32> {
        self.server.as_ref().map(Child::id)
    }

    /// Binds the running server to one CPU, or lets it run on all.
    pub fn run_on(&mut self, core: Option<usize>) -> Result<(), NativeError> {
        let cores = core.map_or(0..libc::CPU_SETSIZE as usize, |core| core..core + 1);
        self.setup.core = core;
        let Some(postmaster) = self.postmaster() else {
            return Ok(());
        };
        let failed = |source| NativeError::Io {
            path: "sched_setaffinity".into(),
            source,
        };
        // The postmaster first: a process made in between has its CPUs then.
        bind(postmaster, cores.clone()).map_err(failed)?;
        for child in children(postmaster) {
            match bind(child, cores.clone()) {
                // It has ended meanwhile.
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
                other => other.map_err(failed)?,
            }
        }
        Ok(())
    }

    pub fn target(&self) -> Target {
        Target {
            address: Address::Unix(self.folder.join(".s.PGSQL.5432")),
            user: USER.to_owned(),
            password: String::new(),
            database: "postgres".to_owned(),
        }
    }

    /// Starts the server and gives the time from just before its exec to the first row of `select 1`.
    pub fn start(&mut self) -> Result<Duration, NativeError> {
        let log = fs::File::create(self.log()).map_err(|source| NativeError::Io {
            path: self.log(),
            source,
        })?;
        let mut command = self.programs.server_command("postgres", self.setup.core);
        command
            .args(self.arguments())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        let target = self.target();
        let status = self.data.join("postmaster.pid");
        let started = Instant::now();
        let server = command.spawn().map_err(|source| NativeError::Io {
            path: self.programs.path("postgres"),
            source,
        })?;
        let server = self.server.insert(server);
        loop {
            // The server's own word, as pg_ctl reads it: connecting before would cost it a process each time.
            if is_ready(&fs::read(&status).unwrap_or_default(), server.id()) {
                break;
            }
            if server.try_wait().is_ok_and(|status| status.is_some()) {
                return Err(NativeError::Ended(self.log()));
            }
            if started.elapsed() > START_LIMIT {
                return Err(NativeError::Slow);
            }
            std::thread::sleep(RETRY);
        }
        let mut client = Client::connect(&target)?;
        Ok(client.first_row("select 1")? - started)
    }

    /// Fast shutdown; returns when the server has ended and its data directory is clean.
    pub fn stop(&mut self) -> Result<(), NativeError> {
        let Some(mut server) = self.server.take() else {
            return Ok(());
        };
        // SAFETY: the child has not been waited for, so the process id is still its own.
        let _ = unsafe { libc::kill(server.id() as i32, libc::SIGINT) };
        server.wait().map_err(|source| NativeError::Io {
            path: self.folder.clone(),
            source,
        })?;
        Ok(())
    }
}

impl Drop for Native {
    fn drop(&mut self) {
        let _ = self.stop();
        let _ = fs::remove_dir_all(&self.folder);
        let _ = fs::remove_dir_all(&self.data);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_servers_own_word() {
        let file =
            |status: &str| format!("77\n/data\n1700000000\n5432\n/tmp\n\n  1234  5\n{status}\n");
        assert!(is_ready(file("ready   ").as_bytes(), 77));
        assert!(!is_ready(file("starting").as_bytes(), 77));
        assert!(!is_ready(file("ready   ").as_bytes(), 78));
        assert!(!is_ready(b"77\n/data\n", 77));
        assert!(!is_ready(b"", 77));
    }
}
