//! Debian's PgBouncer before native PostgreSQL, so that both sides of a comparison have a pooler: session mode, SCRAM
//! and no TLS to the client, as ours is used here; a unix socket and trust to the server.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use thiserror::Error;

use crate::client::{Address, Client, Target};
use crate::native::{self, Native};
use crate::patience::limit;
use crate::port;

const START_LIMIT: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_millis(5);
/// Not a secret: the server behind it trusts everyone who reaches its socket.
const PASSWORD: &str = "benchmark";

#[derive(Debug, Error)]
pub enum BouncerError {
    #[error("PgBouncer is missing: as root, apt-get install pgbouncer")]
    Missing,
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("PgBouncer does not answer: {0}")]
    Silent(String),
}

/// A running PgBouncer, ended at the end.
pub struct Bouncer {
    child: Child,
    target: Target,
}

impl Bouncer {
    /// Where Debian puts the program, or where the PATH has it.
    pub fn program() -> Result<PathBuf, BouncerError> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path)
            .chain([PathBuf::from("/usr/sbin")])
            .map(|folder| folder.join("pgbouncer"))
            .find(|program| program.is_file())
            .ok_or(BouncerError::Missing)
    }

    /// Starts it on a free port before a server that runs; its files are in the server's folder.
    pub fn start(native: &Native) -> Result<Self, BouncerError> {
        let program = Self::program()?;
        let folder = native.socket_folder();
        let port = port::free();
        let server = native.target();
        let users = write(
            folder,
            "pgbouncer.users",
            &format!("\"{}\" \"{PASSWORD}\"\n", server.user),
        )?;
        let log = folder.join("pgbouncer.log");
        let settings = format!(
            "[databases]\n* = host={host}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
             unix_socket_dir =\nauth_type = scram-sha-256\nauth_file = {users}\npool_mode = session\n\
             max_client_conn = 200\ndefault_pool_size = 100\nlog_connections = 0\nlog_disconnections = 0\n\
             ignore_startup_parameters = extra_float_digits\n",
            host = folder.display(),
            users = users.display(),
        );
        let settings = write(folder, "pgbouncer.ini", &settings)?;
        let output = fs::File::create(&log).map_err(|source| BouncerError::Io {
            path: log.clone(),
            source,
        })?;
        let mut command = Command::new(&program);
        command
            .arg(&settings)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(output);
        native::unprivileged(&mut command, None);
        let child = command.spawn().map_err(|source| BouncerError::Io {
            path: program,
            source,
        })?;
        let host = "127.0.0.1".to_owned();
        let target = Target {
            address: Address::Tcp { host, port },
            password: PASSWORD.to_owned(),
            ..server
        };
        let mut bouncer = Self { child, target };
        bouncer.wait_until_ready(&log)?;
        Ok(bouncer)
    }

    fn wait_until_ready(&mut self, log: &Path) -> Result<(), BouncerError> {
        let started = Instant::now();
        loop {
            let Err(error) = Client::connect(&self.target) else {
                return Ok(());
            };
            let ended = self.child.try_wait().is_ok_and(|status| status.is_some());
            if ended || started.elapsed() > limit(START_LIMIT) {
                let log = fs::read_to_string(log).unwrap_or_default();
                return Err(BouncerError::Silent(format!("{error}\n{}", log.trim())));
            }
            std::thread::sleep(RETRY);
        }
    }

    pub fn target(&self) -> &Target {
        &self.target
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Bouncer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn write(folder: &Path, name: &str, content: &str) -> Result<PathBuf, BouncerError> {
    let path = folder.join(name);
    fs::write(&path, content).map_err(|source| BouncerError::Io {
        path: path.clone(),
        source,
    })?;
    Ok(path)
}
