//! A Dormouse server of a test's own: free ports, a home of its own with the image that `make image` built, and
//! everything stopped and removed at the end. A failed test's home stays, for its logs.

// Each test file uses a part of it.
#![allow(dead_code, clippy::unwrap_used)]

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use dormouse_loadtest::client::{Client, Target};
use dormouse_loadtest::native::Programs;
use dormouse_loadtest::rest::{Created, Rest};
use dormouse_loadtest::{http, port, rest};

const READY_LIMIT: Duration = Duration::from_secs(60);
/// A server's end waits for its databases to sleep.
const STOP_LIMIT: Duration = Duration::from_secs(60);
pub const POLL: Duration = Duration::from_millis(5);

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// False, said aloud, where there is no KVM; a failure where there must be.
pub fn have_kvm() -> bool {
    if Path::new("/dev/kvm").exists() {
        return true;
    }
    assert!(
        std::env::var_os("CI").is_none_or(|ci| ci != "true"),
        "no /dev/kvm, and CI=true"
    );
    // Past the test runner's capture, so that nobody takes a skip for a pass.
    let _ = std::io::stderr().write_all(b"skipped: no /dev/kvm\n");
    false
}

/// The size for `make test-heavy`, or the smaller one for `make test`.
pub fn size(light: u64, heavy: u64) -> u64 {
    if std::env::var_os("DORMOUSE_TEST_HEAVY").is_some() {
        heavy
    } else {
        light
    }
}

pub fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .canonicalize()
        .unwrap()
}

/// `make oracle`'s programs.
pub fn programs() -> Programs {
    Programs::open(&top().join("images/.build/oracle")).unwrap()
}

/// The `dormouse` of the same build as this test.
pub fn dormouse() -> PathBuf {
    if let Some(path) = std::env::var_os("DORMOUSE_TEST_PROGRAM") {
        return path.into();
    }
    let test = std::env::current_exe().unwrap();
    let path = test.parent().unwrap().parent().unwrap().join("dormouse");
    assert!(
        path.is_file(),
        "{} is missing: run `make server` first",
        path.display()
    );
    path
}

/// The `dormouse` built for tests: its server can be made to die at each of its steps.
pub fn testing_dormouse() -> PathBuf {
    let path = dormouse().with_file_name("dormouse-testing");
    assert!(
        path.is_file(),
        "{} is missing: run `make testing-server` first",
        path.display()
    );
    path
}

/// A VMM built for tests: with crash points, and folders of the host in the guest.
pub fn testing_vmm() -> PathBuf {
    let path = top().join("target/testing/release/dormouse-vmm");
    assert!(
        path.is_file(),
        "{} is missing: run `make testing-vmm` first",
        path.display()
    );
    path
}

/// Where `make image` put images and templates.
fn built_home() -> PathBuf {
    // `make test` says where; by hand it is what the server's home is without a settings file.
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    let home = set("DORMOUSE_TEST_IMAGES").or_else(|| set("DORMOUSE_HOME"));
    let home = top().join(home.unwrap_or_else(|| ".dormouse".into()));
    assert!(
        home.join("images/current-17").exists(),
        "{} has no image: run `make image` first",
        home.display()
    );
    home
}

pub struct Server {
    pub home: PathBuf,
    pub rest: Rest,
    pub pooler_port: u16,
    api_port: u16,
    child: Option<Child>,
    /// The `dormouse` that is run.
    pub program: PathBuf,
    /// Put before the command, such as `unshare`.
    pub wrapper: Vec<String>,
    /// Variables with settings.
    settings: Vec<(&'static str, String)>,
}

/// How most tests begin: a server with one database. `None`, said aloud, where there is no KVM.
pub fn database() -> Option<(Server, Created)> {
    have_kvm().then(|| {
        let server = Server::start();
        let created = server.create();
        (server, created)
    })
}

/// The same, and a session in it.
pub fn session() -> Option<(Server, Created, Client)> {
    database().map(with_session)
}

/// The same with settings of the server's own, such as a plan's limits.
pub fn session_with(settings: &[(&'static str, u64)]) -> Option<(Server, Created, Client)> {
    have_kvm().then(|| {
        let server = Server::start_with(settings);
        let created = server.create();
        with_session((server, created))
    })
}

fn with_session((server, created): (Server, Created)) -> (Server, Created, Client) {
    let client = created.connect().unwrap();
    (server, created, client)
}

impl Server {
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// With settings of the server's own, such as a plan's limits.
    pub fn start_with(settings: &[(&'static str, u64)]) -> Self {
        let mut server = Self::prepare();
        server.set(settings);
        server.run();
        server
    }

    /// A home with the image in it, and no server yet.
    pub fn prepare() -> Self {
        Self::prepare_from(&built_home())
    }

    /// The same with the images of another home.
    pub fn prepare_from(built: &Path) -> Self {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let home = Path::new(env!("CARGO_TARGET_TMPDIR"))
            .join(format!("home-{}-{number}", std::process::id()));
        fs::create_dir_all(&home).unwrap();
        for part in ["images", "templates"] {
            let copy = |options: &[&str]| {
                let mut copy = Command::new("cp");
                copy.args(options).arg(built.join(part)).arg(&home);
                copy.output().unwrap()
            };
            // Links cost nothing; what a test changes it copies first.
            if !copy(&["-al"]).status.success() {
                // Another file system.
                let _ = fs::remove_dir_all(home.join(part));
                succeed(copy(&["-a", "--sparse=always"]));
            }
        }
        let api_port = port::free();
        let base = format!("http://127.0.0.1:{api_port}");
        let rest = Rest {
            base,
            key: String::new(),
        };
        Self {
            home,
            rest,
            pooler_port: port::free(),
            api_port,
            child: None,
            program: dormouse(),
            wrapper: Vec::new(),
            settings: Vec::new(),
        }
    }

    /// Settings of the server's own, such as a plan's limits. Before it is run.
    pub fn set(&mut self, settings: &[(&'static str, u64)]) {
        let text = |(name, value): &(&'static str, u64)| (*name, value.to_string());
        self.settings.extend(settings.iter().map(text));
    }

    /// Runs VMs in the VMM built for tests, after these lines of shell. Before the server is run.
    pub fn use_testing_vmm(&mut self, first: &str) {
        let program = self.home.join("vmm");
        let vmm = testing_vmm();
        // The server says `PROGRAM vmm …`.
        let script = format!("#!/bin/sh\n{first}\nshift\nexec {} \"$@\"\n", vmm.display());
        fs::write(&program, script).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let program = program.into_os_string().into_string().unwrap();
        self.settings.push(("DORMOUSE_HOST_VMM_PROGRAM", program));
        // Each is started for a wake: one that stood by would have read these lines before, and for no database yet.
        self.set(&[("DORMOUSE_HOST_STANDBY_VMS", 0)]);
    }

    /// `dormouse` with this server's settings.
    pub fn command(&self) -> Command {
        let mut line = self.wrapper.clone();
        line.push(self.program.to_str().unwrap().to_owned());
        let mut command = Command::new(&line[0]);
        command.args(&line[1..]).current_dir(&self.home);
        command.env("DORMOUSE_HOME", &self.home);
        command.env(
            "DORMOUSE_API_LISTEN",
            format!("127.0.0.1:{}", self.api_port),
        );
        command.env(
            "DORMOUSE_POOLER_LISTEN",
            format!("127.0.0.1:{}", self.pooler_port),
        );
        command.envs(self.settings.iter().map(|(name, value)| (name, value)));
        command
    }

    /// The load test's command on this server, from the top folder; its report goes to `json`.
    pub fn loadtest(&self, json: &Path) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dormouse-loadtest"));
        command.current_dir(top()).args(["--api", &self.rest.base]);
        command.arg("--home").arg(&self.home).arg("--json").arg(json);
        command
    }

    /// Starts the server and returns when it answers.
    pub fn run(&mut self) {
        self.spawn(&[]);
        let started = Instant::now();
        while !self.answers() {
            let child = self.child.as_mut().unwrap();
            if let Some(status) = child.try_wait().unwrap() {
                panic!("the server ended: {status}:\n{}", self.last_lines());
            }
            assert!(
                started.elapsed() < READY_LIMIT,
                "the server is not ready:\n{}",
                self.last_lines()
            );
            std::thread::sleep(POLL);
        }
        self.rest.key = fs::read_to_string(self.home.join("admin.key"))
            .unwrap()
            .trim()
            .to_owned();
    }

    fn answers(&self) -> bool {
        let health = http::request(&self.rest.base, "GET", "/healthz", &[], "");
        health.is_ok_and(|response| response.status == 200)
    }

    /// Starts a server that is to kill itself at a step, and returns when it answers (`true`) or has done so.
    pub fn run_to(&mut self, step: &str) -> bool {
        self.spawn(&[("DORMOUSE_CRASH_AT", step)]);
        until("the server answers or has died", || {
            self.answers() || self.has_died()
        });
        self.child.is_some()
    }

    /// Whether the server has killed itself.
    pub fn has_died(&mut self) -> bool {
        let ended = self.child.as_mut().map(|child| child.try_wait().unwrap());
        match ended {
            Some(None) => return false,
            Some(Some(status)) => assert_eq!(status.signal(), Some(libc::SIGKILL), "{status}"),
            None => {}
        }
        self.child = None;
        true
    }

    /// The server's process, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    fn spawn(&mut self, variables: &[(&str, &str)]) {
        assert!(self.child.is_none());
        let output = File::options()
            .create(true)
            .append(true)
            .open(self.home.join("server.out"))
            .unwrap();
        let mut command = self.command();
        command
            .arg("up")
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output);
        self.child = Some(command.spawn().unwrap());
    }

    pub fn create(&self) -> Created {
        self.rest
            .create(&dormouse_loadtest::wake::name("test"))
            .unwrap()
    }

    /// Ctrl-C: suspends everything, then exits.
    pub fn stop(&mut self) {
        let Some(mut child) = self.child.take() else {
            return;
        };
        signal(child.id(), libc::SIGINT);
        let started = Instant::now();
        while child.try_wait().unwrap().is_none() {
            if started.elapsed() > STOP_LIMIT {
                let _ = child.kill();
                panic!("the server did not stop:\n{}", self.last_lines());
            }
            std::thread::sleep(POLL);
        }
    }

    /// kill -9 of the server alone; its VMs live on.
    pub fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    pub fn psql(&self, created: &Created, sql: &str) -> Output {
        let mut command = programs().command("psql");
        command.args([
            "-X",
            "-q",
            "-A",
            "-t",
            "-v",
            "ON_ERROR_STOP=1",
            "-c",
            sql,
            &created.connection_uri,
        ]);
        command.env("PGSSLMODE", "disable").stdin(Stdio::null());
        command.output().unwrap()
    }

    /// What the server and the guests wrote, for a failed assertion.
    pub fn logs(&self) -> String {
        fs::read_to_string(self.home.join("server.out")).unwrap_or_default()
    }

    /// Why a server did not do what it was to.
    fn last_lines(&self) -> String {
        let logs = self.logs();
        let lines: Vec<_> = logs.lines().rev().take(30).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("kept for its logs: {}", self.home.display());
            if let Some(child) = &mut self.child {
                let _ = child.kill();
                let _ = child.wait();
            }
        } else {
            self.stop();
        }
        for id in database_ids(&self.home) {
            rest::vm_processes(&id)
                .into_iter()
                .for_each(|pid| signal(pid, libc::SIGKILL));
        }
        if !std::thread::panicking() {
            let _ = fs::remove_dir_all(&self.home);
        }
    }
}

fn database_ids(home: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(home.join("databases")) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}

/// Whether this process is root; says what is skipped if it is not.
pub fn have_root(what: &str) -> bool {
    // SAFETY: asks for a number.
    let root = unsafe { libc::geteuid() } == 0;
    if !root {
        println!("skipped: {what} takes root");
    }
    root
}

pub fn signal(pid: u32, signal: i32) {
    // SAFETY: kill takes plain numbers; the process is one this test started.
    unsafe { libc::kill(pid as i32, signal) };
}

/// kill -9 of a database's VM; returns when it is gone.
pub fn kill_vm(id: &str) {
    let processes = rest::vm_processes(id);
    processes.iter().for_each(|pid| signal(*pid, libc::SIGKILL));
    until("the killed VM is gone", || {
        !rest::vm_processes(id)
            .iter()
            .any(|pid| processes.contains(pid))
    });
}

/// Polls for what has no event to wait for.
pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < READY_LIMIT, "waited too long: {what}");
        std::thread::sleep(POLL);
    }
}

/// Connects, trying again while the database comes back from a crash.
pub fn connect_again(target: &Target) -> Client {
    let started = Instant::now();
    loop {
        match Client::connect(target) {
            Ok(client) => return client,
            Err(error) if started.elapsed() > READY_LIMIT => panic!("no connection: {error}"),
            Err(_) => std::thread::sleep(POLL),
        }
    }
}

/// A tokio-postgres session through the pooler.
pub async fn driver(
    created: &Created,
) -> (
    tokio_postgres::Client,
    tokio_postgres::Connection<tokio_postgres::Socket, tokio_postgres::tls::NoTlsStream>,
) {
    let config: tokio_postgres::Config = created.connection_uri.parse().unwrap();
    let mut config = config;
    config.ssl_mode(tokio_postgres::config::SslMode::Disable);
    config.connect(tokio_postgres::NoTls).await.unwrap()
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim().to_owned()
}

/// Standard output of a command that must succeed.
pub fn succeed(output: Output) -> String {
    assert!(
        output.status.success(),
        "{}: {}",
        output.status,
        text(&output.stderr)
    );
    text(&output.stdout)
}
