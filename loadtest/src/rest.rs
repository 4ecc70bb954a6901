//! Dormouse's REST API as a client sees it, and the way to be sure that a database sleeps.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Deserialize;
use thiserror::Error;

use crate::client::{Client, ClientError, Target};
use crate::http::{self, HttpError, Response};
use crate::patience::limit;
use crate::trace::WakeTrace;

/// How long a database may take to fall asleep before the run is given up.
const SUSPEND_LIMIT: Duration = Duration::from_secs(60);
/// How long the last part of a wake's trace may be under way.
const TRACE_LIMIT: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(2);

#[derive(Debug, Error)]
pub enum RestError {
    #[error("{0}")]
    Http(#[from] HttpError),
    #[error("{method} {path}: {status}: {body}")]
    Status {
        method: &'static str,
        path: String,
        status: u16,
        body: String,
    },
    #[error("the answer to {path} is not what was expected: {source}: {body}")]
    Json {
        path: String,
        source: serde_json::Error,
        body: String,
    },
    #[error("{id} is still {state} ({processes} VM processes) after {} s", limit(SUSPEND_LIMIT).as_secs())]
    Awake {
        id: String,
        state: String,
        processes: usize,
    },
    #[error("{path}: {source}")]
    File {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("the trace of the last wake of {0} is not whole")]
    Incomplete(String),
    #[error("{0} has no snapshot to remove")]
    NoSnapshot(String),
    #[error("connection to {id}: {source}")]
    Client { id: String, source: ClientError },
}

/// A database as `GET /v1/databases/{id}` shows it.
#[derive(Debug, Clone, Deserialize, PartialEq, Eq)]
pub struct Database {
    pub id: String,
    pub name: String,
    pub state: String,
    pub plan: String,
    pub created_at: String,
}

/// The answer to a create: the only one with the password.
#[derive(Debug, Clone, Deserialize)]
pub struct Created {
    #[serde(flatten)]
    pub database: Database,
    pub connection_uri: String,
}

impl Created {
    pub fn target(&self) -> Result<Target, RestError> {
        Target::parse(&self.connection_uri).map_err(|source| self.client_error(source))
    }

    pub fn connect(&self) -> Result<Client, RestError> {
        Client::connect(&self.target()?).map_err(|source| self.client_error(source))
    }

    fn client_error(&self, source: ClientError) -> RestError {
        RestError::Client {
            id: self.database.id.clone(),
            source,
        }
    }
}

/// A login that works for a while.
#[derive(Debug, Clone, Deserialize)]
pub struct Login {
    pub connection_uri: String,
}

/// A server and the key to it.
#[derive(Debug, Clone)]
pub struct Rest {
    /// `http://HOST:PORT`.
    pub base: String,
    pub key: String,
}

impl Rest {
    /// Reads the key from a file such as `admin.key`.
    pub fn open(base: &str, key_file: &Path) -> Result<Self, RestError> {
        let key = std::fs::read_to_string(key_file).map_err(|source| RestError::File {
            path: key_file.to_owned(),
            source,
        })?;
        Ok(Self {
            base: base.to_owned(),
            key: key.trim().to_owned(),
        })
    }

    /// One call as it is, whatever the status.
    pub fn call(&self, method: &str, path: &str, body: &str) -> Result<Response, RestError> {
        let authorization = format!("Bearer {}", self.key);
        let mut headers = vec![("authorization", authorization.as_str())];
        if !body.is_empty() {
            headers.push(("content-type", "application/json"));
        }
        Ok(http::request(&self.base, method, path, &headers, body)?)
    }

    /// A call that must succeed.
    fn expect(&self, method: &'static str, path: &str, body: &str) -> Result<Vec<u8>, RestError> {
        let response = self.call(method, path, body)?;
        if !(200..300).contains(&response.status) {
            return Err(RestError::Status {
                method,
                path: path.to_owned(),
                status: response.status,
                body: String::from_utf8_lossy(&response.body).into_owned(),
            });
        }
        Ok(response.body)
    }

    fn read<T: for<'de> Deserialize<'de>>(path: &str, body: &[u8]) -> Result<T, RestError> {
        serde_json::from_slice(body).map_err(|source| RestError::Json {
            path: path.to_owned(),
            source,
            body: String::from_utf8_lossy(body).into_owned(),
        })
    }

    pub fn create(&self, name: &str) -> Result<Created, RestError> {
        self.create_from(&serde_json::json!({ "name": name }))
    }

    /// A database of a major version of PostgreSQL.
    pub fn create_version(&self, name: &str, major: u32) -> Result<Created, RestError> {
        self.create_from(&serde_json::json!({ "name": name, "pg_version": major }))
    }

    /// A database of a plan, which does not fall asleep by itself.
    pub fn create_sleepless(&self, name: &str, plan: &str) -> Result<Created, RestError> {
        let day = Duration::from_secs(24 * 60 * 60).as_millis() as u64;
        self.create_from(&serde_json::json!({ "name": name, "plan": plan, "cool_down_ms": day }))
    }

    fn create_from(&self, body: &serde_json::Value) -> Result<Created, RestError> {
        let path = "/v1/databases";
        Self::read(path, &self.expect("POST", path, &body.to_string())?)
    }

    /// A login as PostgreSQL's superuser, for a day; the key must be the operator's.
    pub fn superuser(&self, id: &str) -> Result<Target, RestError> {
        let path = format!("/v1/databases/{id}/logins?superuser=true&minutes=1440");
        let login: Login = Self::read(&path, &self.expect("POST", &path, "")?)?;
        Target::parse(&login.connection_uri).map_err(|source| RestError::Client {
            id: id.to_owned(),
            source,
        })
    }

    pub fn database(&self, id: &str) -> Result<Database, RestError> {
        let path = format!("/v1/databases/{id}");
        Self::read(&path, &self.expect("GET", &path, "")?)
    }

    /// Its last wake, once all parts of it are known.
    pub fn wake_trace(&self, id: &str) -> Result<WakeTrace, RestError> {
        let path = format!("/v1/databases/{id}/wake-trace");
        let started = Instant::now();
        loop {
            let trace: WakeTrace = Self::read(&path, &self.expect("GET", &path, "")?)?;
            if trace.complete {
                return Ok(trace);
            }
            if started.elapsed() > limit(TRACE_LIMIT) {
                return Err(RestError::Incomplete(id.to_owned()));
            }
            // The VM tells its part some milliseconds after the answer, and nobody is told that it has.
            std::thread::sleep(POLL);
        }
    }

    pub fn delete(&self, id: &str) -> Result<(), RestError> {
        self.expect("DELETE", &format!("/v1/databases/{id}"), "")
            .map(drop)
    }

    pub fn resume(&self, id: &str) -> Result<(), RestError> {
        self.expect("POST", &format!("/v1/databases/{id}/resume"), "")
            .map(drop)
    }

    /// Suspends, and returns when the database sleeps.
    pub fn suspend(&self, id: &str) -> Result<(), RestError> {
        self.expect("POST", &format!("/v1/databases/{id}/suspend"), "")?;
        self.wait_asleep(id)
    }

    /// Packs one that sleeps; the key must be the operator's.
    pub fn pack(&self, id: &str) -> Result<(), RestError> {
        self.expect("POST", &format!("/v1/databases/{id}/pack"), "").map(drop)
    }

    /// Asks for a suspend; that it was called off (409) is as good.
    pub fn try_suspend(&self, id: &str) -> Result<(), RestError> {
        match self.expect("POST", &format!("/v1/databases/{id}/suspend"), "") {
            Err(RestError::Status { status: 409, .. }) => Ok(()),
            other => other.map(drop),
        }
    }

    /// Returns when the API says `stopped` and no process of the database is left.
    pub fn wait_stopped(&self, id: &str) -> Result<(), RestError> {
        self.wait_for(id, &["stopped"])
    }

    /// Returns when the API says `suspended` and no process of the database is left.
    pub fn wait_asleep(&self, id: &str) -> Result<(), RestError> {
        self.wait_for(id, &["suspended"])
    }

    /// As [`Rest::wait_asleep`], or `stopped`: at rest, but without a snapshot.
    pub fn wait_at_rest(&self, id: &str) -> Result<(), RestError> {
        self.wait_for(id, &["suspended", "stopped"])
    }

    fn wait_for(&self, id: &str, states: &[&str]) -> Result<(), RestError> {
        let started = Instant::now();
        loop {
            let state = self.database(id)?.state;
            let processes = vm_processes(id).len();
            if states.contains(&state.as_str()) && processes == 0 {
                return Ok(());
            }
            if started.elapsed() > limit(SUSPEND_LIMIT) {
                return Err(RestError::Awake {
                    id: id.to_owned(),
                    state,
                    processes,
                });
            }
            // There is no event to wait for: the process' end is seen by its parent alone.
            std::thread::sleep(POLL);
        }
    }
}

/// Process ids of the VMs that run a database: those with its id as an argument of their own.
pub fn vm_processes(id: &str) -> Vec<u32> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| {
            std::fs::read(format!("/proc/{pid}/cmdline"))
                .is_ok_and(|line| names_database(&line, id))
        })
        .collect()
}

/// Whether a command line (NUL-separated) is that of a VM of this database.
fn names_database(command_line: &[u8], id: &str) -> bool {
    let mut arguments = command_line.split(|byte| *byte == 0);
    let option = format!("--database={id}");
    // `dormouse vmm`, or the same as a program of its own.
    arguments.any(|argument| argument == b"vmm" || argument.ends_with(b"/dormouse-vmm"))
        && arguments.any(|argument| argument == id.as_bytes() || argument == option.as_bytes())
}

/// Removes the snapshot of a database that sleeps, so that its next start is cold. A snapshot is a cache: this
/// is always allowed.
pub fn remove_snapshot(home: &Path, id: &str) -> Result<(), RestError> {
    let path = home.join("databases").join(id).join("snapshot");
    let removed = match std::fs::symlink_metadata(&path) {
        Ok(found) if found.is_dir() => std::fs::remove_dir_all(&path),
        Ok(_) => std::fs::remove_file(&path),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(RestError::NoSnapshot(id.to_owned()));
        }
        Err(error) => Err(error),
    };
    removed.map_err(|source| RestError::File { path, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_a_vm_by_its_command_line() {
        let vm = b"/usr/bin/dormouse\0vmm\0--database\0db_1\0--home\0.dormouse\0";
        assert!(names_database(vm, "db_1"));
        assert!(!names_database(vm, "db_2"));
        assert!(names_database(
            b"target/dormouse-vmm\0--database\0db_1\0",
            "db_1"
        ));
        assert!(names_database(b"dormouse\0vmm\0--database=db_1\0", "db_1"));
        assert!(!names_database(
            b"psql\0postgresql://a.db_1:x@localhost/db\0",
            "db_1"
        ));
        assert!(!names_database(b"dormouse\0db\0suspend\0db_1\0", "db_1"));
        assert!(!names_database(b"", "db_1"));
    }

    #[test]
    fn reads_a_create() {
        let body =
            br#"{"id":"db_1","name":"hello","state":"running","plan":"free","created_at":"now",
            "connection_uri":"postgresql://owner.db_1:pw@127.0.0.1:5432/postgres","more":1}"#;
        let created: Created = Rest::read("/v1/databases", body).unwrap();
        assert_eq!(created.database.name, "hello");
        assert_eq!(created.target().unwrap().user, "owner.db_1");
    }
}
