//! A real Postgres behind the 32-byte hello: sleep drops the pooler's connections, as a VMM does, and keeps Postgres'.

use std::collections::HashMap;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use dormouse_pooler::{Awake, SessionCounts};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;

/// A cluster of its own, stopped and removed at the end.
pub struct Postgres {
    child: Child,
    dir: tempfile::TempDir,
}

/// Where the programs are: the yardstick build if there is one, else the system's.
pub fn programs() -> Option<PathBuf> {
    let oracle = Path::new(env!("CARGO_MANIFEST_DIR")).join("../images/.build/oracle/bin");
    let mut places: Vec<PathBuf> = std::env::var_os("DORMOUSE_TEST_POSTGRES").map(PathBuf::from).into_iter().collect();
    places.push(oracle);
    if let Ok(versions) = std::fs::read_dir("/usr/lib/postgresql") {
        places.extend(versions.flatten().map(|v| v.path().join("bin")));
    }
    places.into_iter().find(|p| p.join("initdb").exists() && p.join("postgres").exists())
}

/// Postgres refuses to run as root.
fn as_other(program: PathBuf) -> Command {
    if rustix::process::geteuid().is_root() {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=postgres", "--regid=postgres", "--init-groups", "--"]).arg(program);
        command
    } else {
        Command::new(program)
    }
}

impl Postgres {
    /// `None`, with a word of explanation, where there is no Postgres.
    pub fn start() -> Option<Postgres> {
        let Some(bin) = programs() else {
            eprintln!("skipped: no PostgreSQL programs here (apt-get install postgresql, or make oracle)");
            return None;
        };
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        let data = dir.path().join("data");
        let made = as_other(bin.join("initdb"))
            .args(["-A", "trust", "-U", "postgres", "--no-sync", "-E", "UTF8", "--locale=C", "-D"])
            .arg(&data)
            .current_dir(dir.path())
            .stdout(Stdio::null())
            .status()
            .unwrap();
        assert!(made.success());
        let child = as_other(bin.join("postgres"))
            .arg("-D")
            .arg(&data)
            .args(["-c", "listen_addresses=", "-c", "fsync=off", "-c", "max_connections=50", "-k"])
            .arg(dir.path())
            .current_dir(dir.path())
            .stderr(std::fs::File::create(dir.path().join("log")).unwrap())
            .spawn()
            .unwrap();
        let postgres = Postgres { child, dir };
        let begun = Instant::now();
        while std::os::unix::net::UnixStream::connect(postgres.socket()).is_err() || !postgres.psql(&bin, "select 1") {
            assert!(begun.elapsed() < Duration::from_secs(30), "Postgres did not start");
            std::thread::sleep(Duration::from_millis(50));
        }
        assert!(postgres.psql(&bin, "create role app login createdb; create database app owner app"));
        Some(postgres)
    }

    fn psql(&self, bin: &Path, sql: &str) -> bool {
        let mut ok = true;
        for one in sql.split(';') {
            ok &= Command::new(bin.join("psql"))
                .args(["-qXU", "postgres", "-d", "postgres", "-h"])
                .arg(self.dir.path())
                .args(["-c", one])
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status()
                .unwrap()
                .success();
        }
        ok
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join(".s.PGSQL.5432")
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if let Some(pid) = rustix::process::Pid::from_raw(self.child.id() as i32) {
            // Fast shutdown.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::INT);
        }
        let _ = self.child.wait();
    }
}

struct Session {
    postgres: UnixStream,
    sent: Mutex<u64>,
    received: Mutex<u64>,
}

#[derive(Default)]
struct Inner {
    next: u64,
    sessions: HashMap<u64, Arc<Session>>,
    connections: Vec<JoinHandle<()>>,
    suspends: usize,
}

#[derive(Clone)]
pub struct Relay {
    pub awake: Awake,
    postgres: PathBuf,
    inner: Arc<Mutex<Inner>>,
}

impl Relay {
    pub fn start(socket: PathBuf, postgres: PathBuf) -> Relay {
        let awake = Awake { socket: socket.clone(), epoch: "one".into() };
        let relay = Relay { awake, postgres, inner: Arc::default() };
        let listener = UnixListener::bind(socket).unwrap();
        let taking = relay.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                // Under the lock, so that a suspend finds every connection there is.
                let mut inner = taking.inner.lock().unwrap();
                let task = tokio::spawn(taking.clone().connection(stream, inner.suspends));
                inner.connections.push(task);
            }
        });
        relay
    }

    /// The two phases of a suspend on the VMM's side: compare, then drop the connections. Postgres stays as it is.
    pub fn suspend(&self, counts: &[SessionCounts]) -> Result<(), String> {
        let mut inner = self.inner.lock().unwrap();
        if counts.len() != inner.sessions.len() {
            return Err(format!("{} told of, {} here", counts.len(), inner.sessions.len()));
        }
        for c in counts {
            let s = inner.sessions.get(&c.session).ok_or("unknown session")?;
            if (c.sent, c.received) != (*s.received.lock().unwrap(), *s.sent.lock().unwrap()) {
                return Err("bytes_in_flight".into());
            }
        }
        inner.connections.drain(..).for_each(|c| c.abort());
        inner.suspends += 1;
        Ok(())
    }

    pub fn sessions(&self) -> usize {
        self.inner.lock().unwrap().sessions.len()
    }

    async fn connection(self, mut stream: UnixStream, suspends: usize) {
        let mut hello = [0; 32];
        if stream.read_exact(&mut hello).await.is_err() {
            return;
        }
        let long = |at: usize| u64::from_le_bytes(hello[at..at + 8].try_into().unwrap());
        let (number, status) = if hello[4] == 2 {
            let inner = self.inner.lock().unwrap();
            let status = match inner.sessions.get(&long(8)) {
                None => 1,
                Some(s) if (long(16), long(24)) == (*s.received.lock().unwrap(), *s.sent.lock().unwrap()) => 0,
                Some(_) => 2,
            };
            (long(8), status)
        } else {
            let postgres = UnixStream::connect(&self.postgres).await.unwrap();
            let mut inner = self.inner.lock().unwrap();
            inner.next += 1;
            let session = Session { postgres, sent: Mutex::default(), received: Mutex::default() };
            let number = inner.next;
            inner.sessions.insert(number, Arc::new(session));
            (number, 0u32)
        };
        let mut answer = [0u8; 32];
        answer[..4].copy_from_slice(b"DMS1");
        answer[4..8].copy_from_slice(&status.to_le_bytes());
        answer[8..16].copy_from_slice(&number.to_le_bytes());
        if stream.write_all(&answer).await.is_err() || status != 0 {
            return;
        }
        let session = self.inner.lock().unwrap().sessions[&number].clone();
        let _ = self.copy(&mut stream, &session, suspends).await;
        // A task may see the end that a suspend brings before it is aborted.
        let mut inner = self.inner.lock().unwrap();
        if inner.suspends == suspends {
            inner.sessions.remove(&number);
        }
    }

    /// Both ways at once, until either side ends. Aborted by a suspend, which comes only when no byte is under way.
    async fn copy(&self, stream: &mut UnixStream, session: &Session, suspends: usize) -> io::Result<()> {
        let (mut from_pooler, mut to_pooler) = stream.split();
        let up = async {
            let mut chunk = vec![0; 65536];
            loop {
                let n = from_pooler.read(&mut chunk).await?;
                if n == 0 {
                    return Ok(());
                }
                let mut rest = &chunk[..n];
                while !rest.is_empty() {
                    session.postgres.writable().await?;
                    match session.postgres.try_write(rest) {
                        Ok(n) => {
                            *session.received.lock().unwrap() += n as u64;
                            rest = &rest[n..];
                        }
                        Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                        Err(e) => return Err(e),
                    }
                }
            }
        };
        let down = async {
            let mut chunk = vec![0; 65536];
            loop {
                session.postgres.readable().await?;
                let read = {
                    // A task that was aborted may run on for a moment: what Postgres says from then on is the next connection's.
                    let inner = self.inner.lock().unwrap();
                    if inner.suspends != suspends {
                        return Ok(());
                    }
                    let read = session.postgres.try_read(&mut chunk);
                    if let Ok(n) = read {
                        *session.sent.lock().unwrap() += n as u64;
                    }
                    read
                };
                match read {
                    Ok(0) => return Ok(()),
                    Ok(n) => to_pooler.write_all(&chunk[..n]).await?,
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                    Err(e) => return Err(e),
                }
            }
        };
        tokio::select! { r = up => r, r = down => r }
    }
}
