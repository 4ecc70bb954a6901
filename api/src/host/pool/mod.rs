//! VMMs made ready beforehand, so that a wake finds its VM, with the golden memory mapped, instead of making one.
//!
//! ```text
//!  keeper ─▶ make ─▶ "ready" ─▶ shelf of its kind ─▶ take: {"database":…} ─▶ as any other VMM
//!    ▲                             │ its end closes         │ none there: made now
//!    └── taken, gone, asked in vain ◀┘                      ▼
//! ```
//!
//! Promises: none is made beforehand while a wake is under way or was a moment ago; one that ends is replaced; an image
//! that is replaced takes its VMMs along; whoever stands by ends with the server, however that ends.

mod cgroup;
mod jail;
mod shelves;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream as StdStream;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use dormouse_pooler::monotonic_us;
use dormouse_vmm::jail::folders;
use dormouse_vmm::standby;
use serde_json::json;
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use self::jail::Folder;
use self::shelves::Shelves;
use super::layout::Home;
use super::process::{Kept, Process, Spec, rotate, set_idle};
use super::record::Record;
use super::socket;
use crate::crash;

pub use self::cgroup::{Group, Groups};
pub use self::jail::Jail;
pub use self::shelves::Kind;

/// Stands in a command line where the database's id will be written; as long as one, and none.
pub const PLACEHOLDER: &str = "db_standing-by---------";
/// How long a VMM may take to be ready. It needs some milliseconds; this bounds a machine in trouble.
const PATIENCE: Duration = Duration::from_secs(30);
/// After a failure none is made beforehand for so long.
const PAUSE: Duration = Duration::from_secs(10);
/// After one that stood by has ended, none is made for so long: what ended it may end the next.
const RESPITE: Duration = Duration::from_secs(1);
/// How long those that stand by may take to end when they are let go.
const GOODBYE: Duration = Duration::from_secs(2);
/// A wake that has just succeeded still owes its first answer.
const QUIET: Duration = Duration::from_millis(1);
/// The same for what gives way less readily. A new connection's is later than a held one's.
const LONG_QUIET: Duration = Duration::from_millis(10);
/// How long a wake waits for the one in the making: many times what it takes.
const HURRY: Duration = Duration::from_millis(500);
/// How long one in the making runs only when nothing else does: on a host that is never idle none would be made.
const GIVE_WAY: Duration = Duration::from_millis(200);
/// Size at which the log of those that stand by is rotated, in bytes.
const LOG_LIMIT: u64 = 1 << 20;
/// How often it is looked whether a kind is forgotten, or an image replaced, if nobody asks for anything.
const ROUND: Duration = Duration::from_secs(60);

impl Kind {
    fn of(spec: &Spec) -> Kind {
        Kind { image: spec.image.clone(), memory_mib: spec.memory_mib }
    }
}

/// How VMMs are started, whatever their kind.
#[derive(Clone, Debug)]
pub struct Start {
    pub program: PathBuf,
    pub home: Home,
    pub jail: Jail,
    pub groups: Option<Groups>,
    /// vCPU time without progress after which a guest is ended, in ms; 0 for never.
    pub watchdog_ms: u64,
    /// Size at which a guest's console log is rotated, in MiB.
    pub console_log_mib: u64,
}

/// Why a VMM was not made ready.
#[derive(Debug, thiserror::Error)]
pub enum MakeError {
    #[error("the VMM {} cannot be started: {source}", .program.display())]
    Spawn { program: PathBuf, source: io::Error },
    #[error("the VMM ended before it was ready ({0})")]
    Ended(ExitStatus),
    #[error("{} cannot be handed to its VMM: {source}", .folder.display())]
    Lend { folder: PathBuf, source: io::Error },
    #[error("the VMM cannot be spoken to: {0}")]
    Io(#[from] io::Error),
}

/// One that is ready. Dropped, it ends.
struct Standby {
    child: Child,
    folder: Folder,
    unclaimed: Unclaimed,
}

/// What there is of a VMM beside its process. As long as it is nobody's all of that goes with this, and the process ends.
struct Unclaimed {
    stream: Arc<UnixStream>,
    kept: Option<Kept>,
}

impl Drop for Unclaimed {
    fn drop(&mut self) {
        let Some(mut kept) = self.kept.take() else { return };
        // First: a process that listens only after its files were removed finds it closed, and removes them itself.
        // SAFETY: a descriptor we own and a flag.
        unsafe { libc::shutdown(self.stream.as_raw_fd(), libc::SHUT_RDWR) };
        kept.remove();
    }
}

impl Start {
    /// Makes a VMM of a kind ready; what it has to say goes to `log`. Once there is its process `begun` is told, and where it can be
    /// told to hurry.
    ///
    /// It is in a process group of its own: a Ctrl-C at the terminal is the server's to handle, and an awake VM must
    /// outlive a server that crashes.
    async fn make(&self, kind: &Kind, name: &str, log: &Path, begun: impl FnOnce(u32, &Arc<UnixStream>)) -> Result<Standby, MakeError> {
        let (own, theirs) = StdStream::pair()?;
        own.set_nonblocking(true)?;
        let stream = Arc::new(UnixStream::from_std(own)?);
        let log = File::options().create(true).append(true).open(log)?;
        let mut command = Command::new(&self.program);
        command
            .arg("vmm")
            .args(["--database", name])
            .arg("--home")
            .arg(self.home.root())
            .args(["--image", &kind.image])
            .args(["--memory-mib", &kind.memory_mib.to_string()])
            .args(["--watchdog-ms", &self.watchdog_ms.to_string()])
            .args(["--console-log-mib", &self.console_log_mib.to_string()])
            .arg("--standby")
            .args(self.jail.words())
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0);
        let spawned = command.spawn();
        // It holds the other end of the socket, whose closing by the child is to be seen.
        drop(command);
        let mut child = spawned.map_err(|source| MakeError::Spawn { program: self.program.clone(), source })?;
        let kept = self.keep(child.id(), kind);
        let is_known = kept.record.is_some();
        let unclaimed = Unclaimed { stream, kept: Some(kept) };
        child.id().map(|pid| begun(pid, &unclaimed.stream));
        match tokio::time::timeout(PATIENCE, jail::readiness(&unclaimed.stream)).await {
            Ok(Ok(_)) if !is_known => Err(io::Error::other("/proc does not say when it was started").into()),
            Ok(Ok(folder)) => Ok(Standby { child, folder, unclaimed }),
            // The latter if it has not read that it is to hurry.
            Ok(Err(error)) if matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset) => {
                Err(MakeError::Ended(child.wait().await?))
            }
            Ok(Err(error)) => Err(error.into()),
            Err(_) => {
                child.start_kill()?;
                Err(io::Error::from(io::ErrorKind::TimedOut).into())
            }
        }
    }
}

impl Start {
    /// Makes a VMM for a database, and claims it.
    async fn make_now(&self, spec: &Spec, task: Option<&str>) -> Result<Taken, MakeError> {
        let made = self.make(&Kind::of(spec), spec.id.as_str(), &self.home.vmm_log(&spec.id), |_, stream| hurry(stream)).await?;
        let lent = made.folder.lend(&spec.id, &self.home)?;
        Ok(made.claim(spec, lent.as_ref(), task)?)
    }

    /// Notes a process that was just started, and puts it in a group. It goes on without either where that fails, such as on a
    /// full disk.
    fn keep(&self, pid: Option<u32>, kind: &Kind) -> Kept {
        let Some(pid) = pid else { return Kept::default() };
        let record = Record::new(&self.home, pid);
        if let Err(error) = record.as_ref().map_err(io::Error::kind).and_then(|record| record.write().map_err(|error| error.kind())) {
            tracing::warn!(%error, pid, "a VMM cannot be noted in {}: it is tried again when it is claimed", self.home.vmms().display());
        }
        let group = self.groups.as_ref().map(|groups| groups.add(pid, kind)).transpose().inspect_err(|error| {
            tracing::warn!(%error, pid, "a VMM has no control group: its memory and processors have no bounds but the host's");
        });
        Kept::new(record.ok(), group.ok().flatten())
    }
}

impl Standby {
    /// Tells it whose it is, with the folder that it is lent.
    fn claim(mut self, spec: &Spec, lent: Option<&OwnedFd>, task: Option<&str>) -> io::Result<Taken> {
        // Of its own, for what watched it until now lets go of the other a moment later.
        let stream = &*self.unclaimed.stream;
        let control = UnixStream::from_std(StdStream::from(stream.as_fd().try_clone_to_owned()?))?;
        let at = monotonic_us();
        crash::point("wake-lent");
        let claim = json!({
            "database": spec.id.as_str(),
            "storage_bytes": spec.storage_mib << 20,
            "written": spec.written,
            "task": task,
        });
        let line = format!("{claim}\n");
        match folders::send(stream, line.as_bytes(), lent)? {
            sent if sent == line.len() => {}
            _ => return Err(io::ErrorKind::WriteZero.into()),
        }
        crash::point("wake-claimed");
        let mut kept = self.unclaimed.kept.take().unwrap_or_default();
        // While it is at work already. If the server ends before it is done, the next one finds it to be nobody's, and ends it.
        if let Some(Err(error)) = kept.record.as_mut().map(|record| record.claim(&spec.id)) {
            tracing::warn!(%error, database = %spec.id, "that a VMM was claimed cannot be noted: another server ends it");
        }
        crash::point("wake-recorded");
        Ok(Taken { process: Process::child(self.child, kept), control, at, stood_by: false })
    }
}

/// One on its shelf.
struct Shelved {
    number: u64,
    standby: Standby,
    _watch: Watch,
}

/// A task that ends with what it watches.
struct Watch(AbortHandle);

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The VMMs that stand by.
pub struct Pool {
    shared: Arc<Shared>,
    keeper: OnceLock<Watch>,
}

struct Shared {
    start: Start,
    state: Mutex<State>,
    /// There may be something to do for the keeper.
    changed: Notify,
    /// A wake is over: for all that wait until there is none.
    ended: Notify,
    /// The one in the making is ready, or none will come of it.
    made: Notify,
}

struct State {
    shelves: Shelves<Shelved>,
    /// Wakes under way, and how many there have been.
    wakes: u64,
    begun: u64,
    /// VMMs put on a shelf so far.
    number: u64,
    making: Option<Making>,
    /// Until it is found that who gave way cannot be told to do so no more.
    gives_way: bool,
    /// One that stood by has ended by itself.
    lost: bool,
    closed: bool,
}

/// One that is being made beforehand.
struct Making {
    kind: Kind,
    pid: Option<u32>,
    /// Where it can be told to hurry, once it has a process.
    stream: Option<Arc<UnixStream>>,
    /// It runs only when nothing else is to be done.
    idle: bool,
    /// A wake waits for it.
    hurried: bool,
}

/// Tells one in the making to be ready with less than all done beforehand. One that has ended is found to have.
fn hurry(stream: &UnixStream) {
    let _ = folders::send(stream, standby::HURRY, None);
}

/// A VMM that is a database's now.
pub struct Taken {
    pub process: Process,
    /// What is said over its control socket, from its first word on: that it is the database's.
    pub control: UnixStream,
    /// Just before it was told so, from when on it may be at work; µs, monotonic.
    pub at: u64,
    /// It was made beforehand.
    pub stood_by: bool,
}

/// A wake under way: while it is held, nothing is made beforehand.
pub struct Waking(Arc<Shared>);

impl Drop for Waking {
    fn drop(&mut self) {
        self.0.lock().wakes -= 1;
        self.0.ended.notify_waiters();
        self.0.changed.notify_one();
    }
}

impl Pool {
    /// `most` stand by at once.
    pub fn new(start: Start, most: usize) -> Pool {
        let state = State { shelves: Shelves::new(most), wakes: 0, begun: 0, number: 0, making: None, gives_way: true, lost: false, closed: false };
        let shared = Shared { start, state: Mutex::new(state), changed: Notify::new(), ended: Notify::new(), made: Notify::new() };
        Pool { shared: Arc::new(shared), keeper: OnceLock::new() }
    }

    /// Begins to make VMMs ready: one of the kind that `expected` says, each time the images are others, and those that
    /// are asked for; while the host is short of memory, none.
    pub fn keep(
        &self,
        expected: impl Fn() -> Option<Kind> + Send + Sync + 'static,
        has_memory: impl Fn() -> bool + Send + Sync + 'static,
    ) {
        let shared = self.shared.clone();
        self.keeper.get_or_init(|| Watch(tokio::spawn(keep(shared, expected, has_memory)).abort_handle()));
    }

    /// To be held as long as a wake is under way.
    pub fn waking(&self) -> Waking {
        let mut state = self.shared.lock();
        state.wakes += 1;
        state.begun += 1;
        drop(state);
        Waking(self.shared.clone())
    }

    /// A VMM for this database: one that stands by, the one that is just being made, or one made now. What the latter has to say
    /// before it is the database's goes to the database's log.
    pub async fn take(&self, spec: &Spec) -> Result<Taken, MakeError> {
        let (kind, home) = (Kind::of(spec), &self.shared.start.home);
        loop {
            let made = self.shared.made.notified();
            let (shelved, coming) = {
                let mut state = self.shared.lock();
                let shelved = state.shelves.take(&kind, Instant::now());
                let coming = shelved.is_none() && state.hurry(&kind);
                (shelved, coming)
            };
            let Some(shelved) = shelved else {
                if coming && tokio::time::timeout(HURRY, made).await.is_ok() {
                    continue;
                }
                break;
            };
            let lent = match shelved.standby.folder.lend(&spec.id, home) {
                Ok(lent) => lent,
                // Another database's may be in order.
                Err(error) => {
                    self.shared.put_back(&kind, shelved);
                    return Err(error);
                }
            };
            match shelved.standby.claim(spec, lent.as_ref(), None) {
                Ok(taken) => return Ok(Taken { stood_by: true, ..taken }),
                // Why it has ended stands in its log.
                Err(error) => tracing::warn!(%error, "a VMM that stood by is gone"),
            }
        }
        self.shared.start.make_now(spec, None).await
    }

    pub fn home(&self) -> &Home {
        &self.shared.start.home
    }

    /// The control group of a VMM that runs already.
    pub fn group_of(&self, pid: u32) -> Option<Group> {
        self.shared.start.groups.as_ref()?.find(pid)
    }

    /// A VMM that carries out a task with the database's files and ends. It is made for that: those that stand by are for
    /// whoever waits.
    pub async fn make_for(&self, spec: &Spec, task: &str) -> Result<Process, MakeError> {
        Ok(self.shared.start.make_now(spec, Some(task)).await?.process)
    }

    /// Returns once no wake has been under way for a while.
    pub async fn quiet(&self) {
        self.shared.quiet(LONG_QUIET).await;
    }

    /// How many stand by.
    pub fn len(&self) -> usize {
        self.shared.lock().shelves.len()
    }

    /// Lets all go and waits until they have ended; none is made beforehand any more.
    pub async fn close(&self) {
        let mut children: Vec<Child> = self.shared.close().into_iter().map(Shelved::end).collect();
        let all = async {
            for child in &mut children {
                let _ = child.wait().await;
            }
        };
        if tokio::time::timeout(GOODBYE, all).await.is_err() {
            for child in &mut children {
                // Those that have ended are not found any more.
                let _ = child.start_kill();
            }
            tracing::warn!("VMMs that stood by did not end by themselves and were killed");
        }
        if let Some(groups) = &self.shared.start.groups {
            groups.tidy();
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        drop(self.shared.close());
    }
}

impl Shelved {
    /// Closes its socket, at which it ends.
    fn end(self) -> Child {
        self.standby.child
    }
}

impl State {
    /// Has the one in the making made as fast as can be, if it is of this kind and nobody else waits for it; `made` tells when.
    fn hurry(&mut self, kind: &Kind) -> bool {
        let Some(making) = self.making.as_mut().filter(|making| making.kind == *kind && !making.hurried) else { return false };
        making.hurried = true;
        making.stream.iter().for_each(|stream| hurry(stream));
        // Whether it can be done is seen once it is ready.
        let _ = self.give_way_no_more();
        true
    }

    /// The one in the making has a process, which gives way unless a wake waits for it.
    fn begun(&mut self, pid: u32, stream: &Arc<UnixStream>) {
        let Some(making) = self.making.as_mut() else { return };
        making.pid = Some(pid);
        if making.hurried {
            return hurry(stream);
        }
        making.stream = Some(stream.clone());
        if self.gives_way {
            let done = set_idle(pid, true);
            making.idle = done.is_ok();
            // Where that cannot be undone it is not done.
            self.gives_way &= !done.is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied);
        }
    }

    /// The one in the making gives way no more.
    fn give_way_no_more(&self) -> io::Result<()> {
        let idle = self.making.as_ref().filter(|making| making.idle);
        idle.and_then(|making| making.pid).map_or(Ok(()), |pid| set_idle(pid, false))
    }

    /// The one in the making is ready: it must not be some database's while it gives way.
    fn made_ready(&mut self) -> io::Result<()> {
        if let Some(making) = &mut self.making {
            // From here on what is said there is for the claim.
            (making.hurried, making.stream) = (true, None);
        }
        let undone = self.give_way_no_more();
        self.gives_way &= undone.is_ok();
        undone
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Whole whenever the lock is free, also after a panic elsewhere.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self) -> Vec<Shelved> {
        let mut state = self.lock();
        state.closed = true;
        state.shelves.clear()
    }

    /// The kind of which the next is to be made; none once all have been let go.
    fn next(&self) -> Option<Kind> {
        let mut state = self.lock();
        if state.closed { None } else { state.shelves.next(Instant::now()) }
    }

    /// Returns once no wake has been under way for so long.
    async fn quiet(&self, long: Duration) {
        loop {
            let ended = self.ended.notified();
            let (wakes, begun) = {
                let state = self.lock();
                (state.wakes, state.begun)
            };
            if wakes > 0 {
                ended.await;
                continue;
            }
            tokio::time::sleep(long).await;
            if self.lock().begun == begun {
                return;
            }
        }
    }

    /// One that was taken for nothing.
    fn put_back(&self, kind: &Kind, shelved: Shelved) {
        let mut state = self.lock();
        // If it has ended meanwhile nobody watches it any more.
        if !state.closed && socket::is_open(&shelved.standby.unclaimed.stream) {
            state.shelves.put(kind, shelved);
        }
    }

    /// Makes one of a kind and puts it on its shelf. It gives way meanwhile, unless a wake waits for it.
    async fn make(self: &Arc<Self>, kind: &Kind, log: &Path) -> Result<(), MakeError> {
        self.lock().making = Some(Making { kind: kind.clone(), pid: None, stream: None, idle: false, hurried: false });
        let making = self.start.make(kind, PLACEHOLDER, log, |pid, stream| self.lock().begun(pid, stream));
        tokio::pin!(making);
        let made = match tokio::time::timeout(GIVE_WAY, &mut making).await {
            Ok(made) => made,
            Err(_) => {
                let _ = self.lock().give_way_no_more();
                making.await
            }
        };
        let put = made.and_then(|standby| {
            // Now, and not when it is claimed, while somebody waits.
            self.lock().made_ready()?;
            self.put(kind, standby);
            Ok(())
        });
        self.lock().making = None;
        self.made.notify_waiters();
        put
    }

    fn put(self: &Arc<Self>, kind: &Kind, standby: Standby) {
        let mut state = self.lock();
        if state.closed {
            return;
        }
        state.number += 1;
        let (shared, stream, number) = (self.clone(), standby.unclaimed.stream.clone(), state.number);
        let watch = tokio::spawn(async move {
            socket::closed(&stream).await;
            let mut state = shared.lock();
            // Whoever has taken it meanwhile sees to its end herself.
            if state.shelves.discard(|shelved| shelved.number == number) {
                state.lost = true;
                drop(state);
                tracing::warn!("a VMM that stood by has ended");
                shared.changed.notify_one();
            }
        });
        state.shelves.put(kind, Shelved { number, standby, _watch: Watch(watch.abort_handle()) });
    }
}

/// The one task that makes VMMs beforehand, one after the other.
async fn keep(shared: Arc<Shared>, expected: impl Fn() -> Option<Kind>, has_memory: impl Fn() -> bool) {
    let log = shared.start.home.log().join("standby.log");
    let mut images = None;
    loop {
        let now = Some(shared.start.home.current_images());
        if images != now {
            images = now;
            let mut state = shared.lock();
            drop(state.shelves.clear());
            if let Some(kind) = expected() {
                state.shelves.expect(&kind, Instant::now());
            }
        }
        let quiet = if shared.lock().gives_way { QUIET } else { LONG_QUIET };
        shared.quiet(quiet).await;
        if std::mem::take(&mut shared.lock().lost) {
            tokio::time::sleep(RESPITE).await;
            continue;
        }
        let wanted = has_memory().then(|| shared.next()).flatten();
        let Some(kind) = wanted else {
            if shared.lock().closed {
                return;
            }
            let _ = tokio::time::timeout(ROUND, shared.changed.notified()).await;
            continue;
        };
        rotate(&log, LOG_LIMIT);
        if let Err(error) = shared.make(&kind, &log).await {
            tracing::warn!(%error, image = kind.image, log = %log.display(), "no VMM can be made ready beforehand; each is made when it is needed");
            tokio::time::sleep(PAUSE).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::DatabaseId;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_placeholder_is_as_long_as_an_id_and_none() {
        assert_eq!(PLACEHOLDER.len(), DatabaseId::random().unwrap().as_str().len());
        assert!(DatabaseId::parse(PLACEHOLDER).is_none());
    }

    #[tokio::test]
    async fn one_that_is_nobodys_is_told_so_whoever_still_has_its_socket() {
        for claimed in [false, true] {
            let (own, mut theirs) = StdStream::pair().unwrap();
            own.set_nonblocking(true).unwrap();
            theirs.set_nonblocking(true).unwrap();
            let stream = Arc::new(UnixStream::from_std(own).unwrap());
            let mut unclaimed = Unclaimed { stream: stream.clone(), kept: Some(Kept::default()) };
            if claimed {
                unclaimed.kept.take();
            }
            drop(unclaimed);
            let ended = std::io::Read::read(&mut theirs, &mut [0]).map_err(|error| error.kind());
            assert_eq!(ended, if claimed { Err(io::ErrorKind::WouldBlock) } else { Ok(0) });
        }
    }

    /// A VMM that wants its folder, and says no more.
    const APART: &str = "#!/bin/sh\nprintf 'apart\\n' >&0\nread claim\n";

    #[tokio::test]
    async fn a_database_whose_folders_cannot_be_lent_leaves_those_that_stand_by_to_others() {
        // SAFETY: takes nothing.
        if unsafe { libc::geteuid() } != 0 {
            return eprintln!("skipped: only root can lend folders");
        }
        let dir = tempfile::tempdir().unwrap();
        let (home, program) = (Home::new(dir.path().into()), dir.path().join("vmm"));
        home.create().unwrap();
        std::fs::write(&program, APART).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o700)).unwrap();
        let start = Start { program, home: home.clone(), jail: Jail::Own, groups: None, watchdog_ms: 0, console_log_mib: 1 };
        let pool = Pool::new(start, 1);
        let kind = Kind { image: "i".into(), memory_mib: 64 };
        pool.keep(move || Some(kind.clone()), || true);
        while pool.len() == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let spec = Spec { id: DatabaseId::random().unwrap(), image: "i".into(), memory_mib: 64, storage_mib: 128, written: false };
        let waking = pool.waking();
        let error = pool.take(&spec).await.err().unwrap();
        assert!(matches!(&error, MakeError::Lend { folder, .. } if *folder == home.database(&spec.id)), "{error}");
        assert_eq!(pool.len(), 1);
        std::fs::create_dir(home.database(&spec.id)).unwrap();
        assert!(pool.take(&spec).await.unwrap().stood_by);
        drop(waking);
        pool.close().await;
    }

    #[tokio::test]
    async fn a_wake_that_finds_none_ready_takes_the_one_in_the_making() {
        let dir = tempfile::tempdir().unwrap();
        let (home, program, go) = (Home::new(dir.path().into()), dir.path().join("vmm"), dir.path().join("go"));
        home.create().unwrap();
        let script = format!("#!/bin/sh\nwhile ! test -e {}; do sleep 0.01; done\nprintf 'ready\\n' >&0\nread hurry\nread claim\nread more\n", go.display());
        std::fs::write(&program, script).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o700)).unwrap();
        let start = Start { program, home, jail: Jail::Own, groups: None, watchdog_ms: 0, console_log_mib: 1 };
        let pool = Pool::new(start, 1);
        let kind = Kind { image: "i".into(), memory_mib: 64 };
        pool.keep(move || Some(kind.clone()), || true);
        let is_so = async |so: fn(&Making) -> bool| {
            while !pool.shared.lock().making.as_ref().is_some_and(so) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        is_so(|making| making.pid.is_some()).await;
        let pid = pool.shared.lock().making.as_ref().unwrap().pid.unwrap();
        let spec = Spec { id: DatabaseId::random().unwrap(), image: "i".into(), memory_mib: 64, storage_mib: 128, written: false };
        let hurried = async {
            is_so(|making| making.hurried).await;
            std::fs::write(&go, "").unwrap();
        };
        let both = async { tokio::join!(pool.take(&spec), hurried).0 };
        let mut taken = tokio::time::timeout(PATIENCE, both).await.unwrap().unwrap();
        assert!(taken.stood_by);
        assert_eq!(taken.process.pid(), Some(pid));
        taken.process.kill();
        taken.process.gone().await;
    }
}
