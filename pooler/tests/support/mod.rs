//! A pooler with a host of the test's own, and clients.
#![allow(dead_code, clippy::unwrap_used)]

pub mod guest;
pub mod raw;
pub mod relay;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dormouse_pooler::{
    Availability, Awake, BoxFuture, DatabaseId, Host, HostError, PasswordsSet, Pooler, Route, Sessions, Settings, WakeError, verifier,
};
use guest::FakeVm;
use tokio::sync::Notify;
use tokio_postgres::{NoTls, SimpleQueryMessage};

pub const PASSWORD: &str = "pencil";
/// Few rounds: these tests log in a lot in an unoptimised build.
pub const ITERATIONS: u32 = 64;

pub struct TestHost {
    pub vm: FakeVm,
    pub database: DatabaseId,
    pub route: Mutex<Route>,
    pub sessions: Sessions,
    pub wakes: AtomicUsize,
    pub wake_error: Mutex<Option<WakeError>>,
    /// While set, a wake waits for it.
    pub wake_gate: Mutex<Option<Arc<Notify>>>,
    pub wake_seen: Notify,
    /// Where the database is when it is not the fake one.
    pub elsewhere: Mutex<Option<Awake>>,
    pub spoke: AtomicUsize,
    pub spoke_seen: Notify,
    pub lookups: Mutex<Vec<(DatabaseId, String)>>,
    /// What was to be noted of passwords set in SQL.
    pub noted: Mutex<Vec<PasswordsSet>>,
    /// While set, a note waits for it.
    pub note_gate: Mutex<Option<Arc<Notify>>>,
    pub notes_fail: AtomicBool,
}

impl Host for TestHost {
    fn lookup<'a>(&'a self, database: DatabaseId, role: &'a str) -> BoxFuture<'a, Result<Option<Route>, HostError>> {
        Box::pin(async move {
            self.lookups.lock().unwrap().push((database, role.to_owned()));
            if role == "broken" {
                return Err(HostError("no metadata".into()));
            }
            Ok((database == self.database && role == "app").then(|| self.route.lock().unwrap().clone()))
        })
    }

    fn passwords_set<'a>(&'a self, database: DatabaseId, set: PasswordsSet) -> BoxFuture<'a, Result<(), HostError>> {
        Box::pin(async move {
            assert_eq!(database, self.database);
            let gate = self.note_gate.lock().unwrap().clone();
            if let Some(gate) = gate {
                gate.notified().await;
            }
            self.noted.lock().unwrap().push(set);
            if self.notes_fail.load(Ordering::SeqCst) { Err(HostError("disk full".into())) } else { Ok(()) }
        })
    }

    fn wake<'a>(&'a self, database: DatabaseId) -> BoxFuture<'a, Result<Awake, WakeError>> {
        Box::pin(async move {
            assert_eq!(database, self.database);
            self.wakes.fetch_add(1, Ordering::SeqCst);
            self.wake_seen.notify_one();
            let gate = self.wake_gate.lock().unwrap().clone();
            if let Some(gate) = gate {
                gate.notified().await;
            }
            match self.wake_error.lock().unwrap().clone() {
                Some(error) => Err(error),
                None => Ok(self.elsewhere.lock().unwrap().clone().unwrap_or_else(|| self.vm.wake())),
            }
        })
    }

    fn client_spoke(&self, _: DatabaseId) {
        self.spoke.fetch_add(1, Ordering::SeqCst);
        self.spoke_seen.notify_one();
    }
}

pub struct World {
    /// The listener once more, if it was asked for: while it is kept, the port stays open.
    pub spare: Option<Pooler>,
    pub host: Arc<TestHost>,
    pub sessions: Sessions,
    pub address: SocketAddr,
    pub settings: Settings,
    pub dir: tempfile::TempDir,
    pub serving: tokio::task::JoinHandle<()>,
}

pub fn id(letter: char) -> DatabaseId {
    format!("db_{}", letter.to_string().repeat(20)).parse().unwrap()
}

impl World {
    pub async fn new() -> World {
        World::with(|_| {}).await
    }

    pub async fn with(change: impl FnOnce(&mut Settings)) -> World {
        World { spare: None, ..World::with_spare(change).await }
    }

    pub async fn with_spare(change: impl FnOnce(&mut Settings)) -> World {
        // Shown for tests that fail.
        let _ = tracing_subscriber::fmt().with_test_writer().with_max_level(tracing::Level::DEBUG).try_init();
        let dir = tempfile::tempdir().unwrap();
        let mut settings = Settings {
            listen: "127.0.0.1:0".parse().unwrap(),
            tls_dir: dir.path().join("tls"),
            scram_iterations: ITERATIONS,
            farewell_timeout_ms: 500,
            ..Settings::default()
        };
        change(&mut settings);
        let sessions = Sessions::new();
        let route = Route {
            verifier: Some(verifier::make(PASSWORD, ITERATIONS).unwrap()),
            in_guest: false,
            asleep: false,
            guest_role: "app".to_owned(),
            connection_limit: 100,
            availability: Availability::Usable,
        };
        let host = Arc::new(TestHost {
            vm: FakeVm::new(dir.path().join("vm.sock")),
            database: id('a'),
            route: Mutex::new(route),
            sessions: sessions.clone(),
            wakes: AtomicUsize::new(0),
            wake_error: Mutex::new(None),
            wake_gate: Mutex::new(None),
            wake_seen: Notify::new(),
            elsewhere: Mutex::new(None),
            spoke: AtomicUsize::new(0),
            spoke_seen: Notify::new(),
            lookups: Mutex::new(vec![]),
            noted: Mutex::new(vec![]),
            note_gate: Mutex::new(None),
            notes_fail: AtomicBool::new(false),
        });
        let pooler = Pooler::bind(settings.clone(), host.clone(), &sessions).await.unwrap();
        let address = pooler.address().unwrap();
        let serving = tokio::spawn(pooler.try_clone().unwrap().serve());
        World { spare: Some(pooler), host, sessions, address, settings, dir, serving }
    }

    pub fn user(&self) -> String {
        format!("app.{}", self.host.database)
    }

    pub fn vm(&self) -> &FakeVm {
        &self.host.vm
    }

    pub fn wakes(&self) -> usize {
        self.host.wakes.load(Ordering::SeqCst)
    }

    pub fn config(&self) -> tokio_postgres::Config {
        let mut config = tokio_postgres::Config::new();
        config
            .host("127.0.0.1")
            .port(self.address.port())
            .user(self.user())
            .password(PASSWORD)
            .dbname("app")
            .ssl_mode(tokio_postgres::config::SslMode::Disable);
        config
    }

    pub async fn connect(&self) -> tokio_postgres::Client {
        self.try_connect().await.unwrap()
    }

    pub async fn try_connect(&self) -> Result<tokio_postgres::Client, tokio_postgres::Error> {
        let (client, connection) = self.config().connect(NoTls).await?;
        tokio::spawn(connection);
        Ok(client)
    }

    /// Puts the database to sleep as the host does.
    pub async fn suspend(&self) {
        let database = self.host.database;
        let counts = self.quiesce().await;
        self.vm().suspend(&counts).unwrap();
        self.sessions.suspended(database);
    }

    /// Quiesces; the last answer may still be on its way through the pooler's task.
    pub async fn quiesce(&self) -> Vec<dormouse_pooler::SessionCounts> {
        let mut tries = 0;
        loop {
            match self.sessions.quiesce(self.host.database) {
                Ok(counts) => return counts,
                Err(busy) => {
                    tries += 1;
                    assert!(tries < 2000, "never idle: {busy:?} {:?}", self.sessions.active(self.host.database));
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
        }
    }

    /// Waits for a gauge or counter to have a value.
    pub async fn until(&self, what: &str, mut look: impl FnMut() -> bool) {
        let begun = std::time::Instant::now();
        while !look() {
            assert!(begun.elapsed() < Duration::from_secs(10), "waited in vain for: {what}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

pub async fn ask(client: &tokio_postgres::Client, text: &str) -> String {
    try_ask(client, text).await.unwrap()
}

pub async fn try_ask(client: &tokio_postgres::Client, text: &str) -> Result<String, tokio_postgres::Error> {
    for message in client.simple_query(text).await? {
        if let SimpleQueryMessage::Row(row) = message {
            return Ok(row.get(0).unwrap_or_default().to_owned());
        }
    }
    Ok(String::new())
}

pub fn code(error: &tokio_postgres::Error) -> String {
    error.code().map(|c| c.code().to_owned()).unwrap_or_else(|| format!("{error:?}"))
}

/// The fields of an ErrorResponse.
pub fn fields(body: &[u8]) -> HashMap<char, String> {
    body.split(|b| *b == 0)
        .filter(|f| !f.is_empty())
        .map(|f| (f[0] as char, String::from_utf8_lossy(&f[1..]).into_owned()))
        .collect()
}
