//! A host manager on a home of its own, with the fake VMM and a pooler that does as told.

// Each test file uses a part of it.
#![allow(dead_code)]

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use dormouse_api::host::control::SessionCounts;
use dormouse_api::host::{Awake, Create, End, Host, Sessions, State};
use dormouse_api::identity::{DatabaseId, TenantId};
use dormouse_api::metadata::{Metadata, StateJournal};
use dormouse_api::settings::{Settings, Sources};
use dormouse_vmm::sockets;

/// The fake VMM of the same build: examples are built before tests are run.
pub fn fake_vmm() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let path = test.parent().unwrap().parent().unwrap().join("examples/fake_vmm");
    assert!(path.is_file(), "{} is missing: cargo build -p dormouse-api --examples", path.display());
    path
}

/// Settings for a home of a test's own.
pub fn settings(home: &Path, set: &[(&str, &str)]) -> Settings {
    let mut all = vec![
        ("home".to_string(), home.to_str().unwrap().to_string()),
        ("host.vmm_program".into(), fake_vmm().to_str().unwrap().into()),
        ("api.listen".into(), "127.0.0.1:0".into()),
        ("pooler.listen".into(), "127.0.0.1:0".into()),
        ("log.level".into(), "debug".into()),
    ];
    all.extend(set.iter().map(|(k, v)| (k.to_string(), v.to_string())));
    Settings::load(&Sources { set: all, ..Sources::default() }).unwrap()
}

/// Gives a home an image that has a golden snapshot, as far as the host looks at one.
pub fn image(home: &Path) {
    newer_image(home, IMAGE);
}

/// The name in `image.json`.
pub const IMAGE: &str = "0123456789abcdef";

/// Writes the manifest of an image that was built for a version of the guest's interface.
pub fn write_manifest(home: &Path, name: &str, abi: u32) {
    let manifest = include_str!("image.json").replace(IMAGE, name).replace("\"abi\": 0", &format!("\"abi\": {abi}"));
    std::fs::write(home.join("images").join(name).join("image.json"), manifest).unwrap();
}

/// Another image of the same version, which is the newest from now on.
pub fn newer_image(home: &Path, name: &str) {
    let image = home.join("images").join(name);
    let golden = image.join("golden/512");
    std::fs::create_dir_all(&golden).unwrap();
    std::fs::write(golden.join("state"), "").unwrap();
    write_manifest(home, name, dormouse_abi::ABI_VERSION);
    let current = home.join("images/current-17");
    let _ = std::fs::remove_file(&current);
    std::os::unix::fs::symlink(name, current).unwrap();
}

/// A pooler that records what it is told.
#[derive(Default)]
pub struct Pooler {
    pub told: Mutex<Vec<String>>,
    /// A client waits for an answer.
    pub busy: Mutex<bool>,
    pub counts: Mutex<Vec<SessionCounts>>,
    pub clients: Mutex<usize>,
    /// A VMM listens, as far as it was told.
    pub listening: Mutex<bool>,
}

impl Pooler {
    fn note(&self, what: String) {
        self.told.lock().unwrap().push(what);
    }

    pub fn told(&self) -> Vec<String> {
        self.told.lock().unwrap().clone()
    }

    /// What it was told, but for wakes and quiesces that were refused.
    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.told.lock().unwrap())
    }
}

impl Sessions for Pooler {
    fn quiesce(&self, _: &DatabaseId) -> Option<Vec<SessionCounts>> {
        if *self.busy.lock().unwrap() {
            return None;
        }
        self.note("quiesce".into());
        Some(self.counts.lock().unwrap().clone())
    }
    fn release(&self, _: &DatabaseId) {
        self.note("release".into());
    }
    fn suspended(&self, _: &DatabaseId) {
        self.note("suspended".into());
    }
    fn listening(&self, _: &DatabaseId, socket: PathBuf) {
        assert!(socket.exists(), "{}", socket.display());
        *self.listening.lock().unwrap() = true;
    }
    fn listening_no_more(&self, _: &DatabaseId) {
        *self.listening.lock().unwrap() = false;
    }
    fn awake(&self, _: &DatabaseId, _: &Awake, existing: &[SessionCounts]) {
        self.note(format!("awake {}", existing.len()));
    }
    fn clients(&self, _: &DatabaseId) -> usize {
        *self.clients.lock().unwrap()
    }
    fn end(&self, _: &DatabaseId, why: End) {
        self.note(format!("end {why:?}"));
    }
}

/// One life of a host manager.
pub struct World {
    pub home: PathBuf,
    pub host: Host,
    pub metadata: Metadata,
    pub pooler: Arc<Pooler>,
    journal: StateJournal,
}

impl World {
    /// On a new home.
    pub async fn new(home: &Path, set: &[(&str, &str)]) -> World {
        std::fs::create_dir_all(home).unwrap();
        image(home);
        World::again(home, set).await
    }

    /// As a server does that is started on what another left.
    pub async fn again(home: &Path, set: &[(&str, &str)]) -> World {
        let world = World::unreconciled(home, set).await;
        world.host.reconcile().await.unwrap();
        world
    }

    pub async fn unreconciled(home: &Path, set: &[(&str, &str)]) -> World {
        let settings = settings(home, set);
        dormouse_api::host::layout::Home::new(home.into()).create().unwrap();
        let metadata = Metadata::open(&home.join("dormouse.db")).await.unwrap();
        let (journal, _) = StateJournal::start(metadata.clone(), 100);
        let host = Host::new(&settings, metadata.clone(), journal.clone()).unwrap();
        let pooler = Arc::new(Pooler::default());
        host.attach(pooler.clone());
        World { home: home.into(), host, metadata, pooler, journal }
    }

    pub async fn create(&self, name: &str) -> Database<'_> {
        let tenant = TenantId::default_tenant();
        let create = Create { tenant: &tenant, name, plan: "free", pg_version: None, cool_down_ms: None };
        let id = self.host.create(create).await.unwrap().row.id;
        Database { world: self, id }
    }

    pub fn database(&self, id: &DatabaseId) -> Database<'_> {
        Database { world: self, id: id.clone() }
    }
}

/// A database of a world.
pub struct Database<'a> {
    world: &'a World,
    pub id: DatabaseId,
}

impl Database<'_> {
    pub fn folder(&self) -> PathBuf {
        self.world.home.join("databases").join(self.id.as_str())
    }

    /// Gives the fake VMM an order.
    pub fn order(&self, name: &str, content: &str) {
        // One that was never woken has none.
        std::fs::create_dir_all(self.folder()).unwrap();
        std::fs::write(self.folder().join(name), content).unwrap();
    }

    pub fn revoke(&self, name: &str) {
        std::fs::remove_file(self.folder().join(name)).unwrap();
    }

    pub fn has(&self, name: &str) -> bool {
        self.folder().join(name).exists()
    }

    pub fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.folder().join(name)).unwrap()
    }

    /// Process ids of all VMMs it has had.
    pub fn lives(&self) -> Vec<u32> {
        let text = std::fs::read_to_string(self.folder().join("lives")).unwrap_or_default();
        text.lines().map(|l| l.parse().unwrap()).collect()
    }

    pub async fn wake(&self) -> Awake {
        self.world.host.wake(&self.id).await.unwrap()
    }

    pub async fn state(&self) -> Option<State> {
        let overlay = self.world.host.overlay();
        let mut row = self.world.metadata.database(&self.id).await.unwrap()?;
        overlay.apply(&mut row);
        Some(row.state)
    }

    pub async fn message(&self) -> Option<String> {
        let overlay = self.world.host.overlay();
        let mut row = self.world.metadata.database(&self.id).await.unwrap()?;
        overlay.apply(&mut row);
        row.message
    }

    /// Waits until all that was handed over of its states is in its row.
    pub async fn noted(&self) {
        until("its state to be written", async || self.world.journal.pending(&self.id).is_none()).await;
    }

    pub async fn becomes(&self, state: State) {
        until(&format!("{state:?}"), async || self.state().await == Some(state)).await;
    }

    pub fn kill_vm(&self) {
        let pid = *self.lives().last().unwrap();
        // SAFETY: kill takes plain numbers; the process is the fake VMM of this test.
        unsafe { libc::kill(pid as i32, libc::SIGKILL) };
    }
}

/// Whether a process is there and not a zombie.
pub fn alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

/// Drops a world as kill -9 drops a server: its runtime ends under it, and nothing is told to anyone.
pub fn killed<T>(work: impl AsyncFnOnce() -> T) -> T {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let left = runtime.block_on(work());
    runtime.shutdown_background();
    left
}

/// The note and the session socket of a VMM that runs.
pub fn vmm_files(home: &Path, pid: u32) -> (PathBuf, PathBuf) {
    let name = sockets::name(pid, sockets::started(pid).unwrap().unwrap());
    (home.join("run/vmms").join(&name), home.join("run/vmms").join(format!("{name}.sock")))
}

/// Polls for what tells nobody.
pub async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let started = Instant::now();
    while !condition().await {
        assert!(started.elapsed() < Duration::from_secs(20), "waited too long: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
