//! A server of the run's own: a home with the images of another, started and stopped again.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::ScaleError;
use super::fill::{Known, cores, side_by_side};
use crate::client::Target;
use crate::footprint::disk_usage;
use crate::http;
use crate::patience::limit;
use crate::rest::Rest;

const START_LIMIT: Duration = Duration::from_secs(300);
const STOP_LIMIT: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(1);

/// Where it is made, and from what.
pub struct Place {
    pub program: PathBuf,
    pub home: PathBuf,
}

impl Place {
    /// A new home in `work` with links to the images of `images`.
    pub fn make(work: &Path, images: &Path, program: &Path) -> Result<Self, ScaleError> {
        let home = work.join(format!("home-{}", std::process::id()));
        fs::create_dir_all(&home).map_err(ScaleError::io(&home))?;
        let place = Self {
            program: program.canonicalize().map_err(ScaleError::io(program))?,
            home: home.canonicalize().map_err(ScaleError::io(&home))?,
        };
        for part in ["images", "templates"] {
            let from = images.join(part);
            // Links cost nothing, and nothing of an image is ever changed; on another file system it is copied.
            let copied = [["-al"].as_slice(), &["-a", "--sparse=always"]]
                .into_iter()
                .any(|options| {
                    let mut copy = Command::new("cp");
                    copy.args(options)
                        .arg(&from)
                        .arg(&place.home)
                        .stderr(Stdio::null());
                    copy.status().is_ok_and(|status| status.success())
                });
            if !copied {
                return Err(ScaleError::NoImage(from));
            }
        }
        Ok(place)
    }

    /// Starts the server; it answers when this returns. Gives the time that took.
    pub fn start(&self) -> Result<(Running, Duration), ScaleError> {
        let output = self.home.join("server.out");
        let output = File::options()
            .create(true)
            .append(true)
            .open(&output)
            .map_err(ScaleError::io(&output))?;
        let addresses = self.home.join("run/server.json");
        let _ = fs::remove_file(&addresses);
        let begun = Instant::now();
        let child = Command::new(&self.program)
            .arg("up")
            .current_dir(&self.home)
            .env("DORMOUSE_HOME", &self.home)
            .env("DORMOUSE_API_LISTEN", "127.0.0.1:0")
            .env("DORMOUSE_POOLER_LISTEN", "127.0.0.1:0")
            .env("DORMOUSE_PLANS_FREE_DATABASES", "10000000")
            // Those used stay as they were left, however long the run takes: those packed have a series of their own.
            .env("DORMOUSE_HOST_PACK_AFTER_S", "0")
            .stdin(Stdio::null())
            .stdout(output.try_clone().map_err(ScaleError::io(&self.home))?)
            .stderr(output)
            .spawn()
            .map_err(ScaleError::io(&self.program))?;
        let rest = Rest {
            base: String::new(),
            key: String::new(),
        };
        let mut running = Running {
            child,
            rest,
            pooler: String::new(),
        };
        loop {
            if let Some((base, pooler)) =
                fs::read(&addresses).ok().and_then(|text| listening(&text))
                && http::request(&base, "GET", "/healthz", &[], "")
                    .is_ok_and(|answer| answer.status == 200)
            {
                let took = begun.elapsed();
                running.pooler = pooler;
                running.rest = Rest::open(&base, &self.home.join("admin.key"))?;
                return Ok((running, took));
            }
            let ended = running.child.try_wait().ok().flatten().is_some();
            if ended || begun.elapsed() > limit(START_LIMIT) {
                return Err(ScaleError::Server(self.home.join("server.out")));
            }
            std::thread::sleep(POLL);
        }
    }

    /// What a failed run leaves is for whoever looks into it.
    pub fn remove(&self) -> Result<(), ScaleError> {
        let databases = self.home.join("databases");
        let folders: Result<Vec<PathBuf>, _> =
            fs::read_dir(&databases).and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect());
        let folders = folders.map_err(ScaleError::io(&databases))?;
        side_by_side(cores(), &folders, |_, folder| fs::remove_dir_all(folder).map_err(ScaleError::io(folder)))?;
        fs::remove_dir_all(&self.home).map_err(ScaleError::io(&self.home))
    }

    /// The folder of a database.
    pub fn folder(&self, id: &str) -> PathBuf {
        self.home.join("databases").join(id)
    }

    /// Disk that the folder of each of these takes, in bytes; 0 if there are none.
    pub fn bytes_of_each(&self, databases: &[Known]) -> Result<u64, ScaleError> {
        let mut sum = 0;
        for database in databases {
            let folder = self.folder(&database.id);
            sum += disk_usage(&folder).map_err(ScaleError::io(&folder))?;
        }
        Ok(sum / databases.len().max(1) as u64)
    }

    /// Puts all that was written on disk: the home's whole file system.
    pub fn flush(&self) -> Result<(), ScaleError> {
        let home = File::open(&self.home).map_err(ScaleError::io(&self.home))?;
        // SAFETY: a descriptor that is open during the call.
        match unsafe { libc::syncfs(home.as_raw_fd()) } {
            0 => Ok(()),
            _ => Err(ScaleError::io(&self.home)(std::io::Error::last_os_error())),
        }
    }

    /// The metadata's files, in bytes.
    pub fn metadata_bytes(&self) -> u64 {
        let length = |name: &str| fs::metadata(self.home.join(name)).map_or(0, |file| file.len());
        length("dormouse.db") + length("dormouse.db-wal")
    }
}

/// Where the API and the pooler are.
fn listening(server: &[u8]) -> Option<(String, String)> {
    let server: Value = serde_json::from_slice(server).ok()?;
    let text = |name: &str| server[name].as_str().map(str::to_owned);
    Some((text("api")?, text("pooler")?))
}

pub struct Running {
    child: Child,
    pub rest: Rest,
    pooler: String,
}

impl Running {
    /// Where a database is connected to.
    pub fn target(&self, database: &Known) -> Result<Target, ScaleError> {
        let Known { id, password } = database;
        Ok(Target::parse(&format!(
            "postgresql://app.{id}:{password}@{}/app",
            self.pooler
        ))?)
    }

    /// Memory of the server's process, in bytes: all that is resident, and what of it is no file's.
    pub fn memory(&self) -> (u64, u64) {
        let status =
            fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap_or_default();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
        };
        let bytes = |name| field(name).unwrap_or(0) * 1024;
        (bytes("VmRSS:"), bytes("RssAnon:"))
    }

    /// As by Ctrl-C, to its end.
    pub fn stop(mut self) -> Result<(), ScaleError> {
        // SAFETY: kill takes plain numbers; the process is our child and not waited for yet.
        unsafe { libc::kill(self.child.id() as i32, libc::SIGINT) };
        let begun = Instant::now();
        while self.child.try_wait().ok().flatten().is_none() {
            if begun.elapsed() > limit(STOP_LIMIT) {
                return Err(ScaleError::NoStop);
            }
            std::thread::sleep(POLL);
        }
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Stopped already, or the run has failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
