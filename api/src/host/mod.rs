//! The host manager: wakes, sleeps, makes and removes databases, one actor each.
//!
//! It promises that a database has one VM at most, that its wakes are one however many ask, that what a crash
//! left half done is finished or undone at the next start ([`reconcile`]), and that a state is published before
//! whoever asked for it is answered. It refuses to hold more waiters than its queue, and to start more VMs at
//! once than set.
//!
//! ```text
//!  API, CLI ──▶ Host ──▶ actor of a database ──▶ vm ──▶ VMM process
//!  pooler  ──▶   │            │  machine.rs: what to do     VMM.ctl, exit
//!                │            ▼
//!                └─ states ◀─ publish ─▶ journal (metadata), events (console)
//! ```

mod actor;
pub mod control;
mod create;
mod event;
mod folders;
mod image;
pub mod layout;
pub mod machine;
pub mod metrics;
mod pack;
mod pool;
pub mod process;
mod reconcile;
mod record;
mod rested;
mod sessions;
mod socket;
mod state;
mod tree;
mod turns;
mod vm;
mod wakes;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::sync::{Notify, broadcast, mpsc, oneshot};

use self::actor::{Actor, Command, Facts};
use self::layout::Home;
use self::machine::{Phase, Rest};
use self::metrics::HostMetrics;
use self::pool::{Kind, Pool, Start};
use self::process::Process;
use self::rested::{Known, Rested};
use self::turns::Turns;
use crate::crash;
use crate::identity::{DatabaseId, TenantId};
use crate::metadata::{DatabaseRow, EventRow, Metadata, MetadataError, Page, StateJournal};
use crate::settings::{Plan, Settings};

pub use self::create::{Create, CreateError, Created};
pub use self::event::EventKind;
pub use self::machine::End;
pub use self::pack::PackError;
pub use self::sessions::{NoSessions, Sessions};
pub use self::state::State;
pub use self::wakes::{Wake, WakeKind, Wakes};

/// The role and the database that are in every guest.
pub const GUEST_ROLE: &str = "app";
pub const GUEST_DATABASE: &str = "app";
/// Whom no tenant ever is: only an operator's login leads to it.
pub const GUEST_SUPERUSER: &str = dormouse_pooler::service::SUPERUSER;

/// An awake database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Awake {
    /// The VMM's `VMM.sock`.
    pub socket: PathBuf,
    /// The life of the guest's memory: a session of another one is gone.
    pub epoch: String,
}

/// Why a database was not woken. Each text is for its owner.
#[derive(Clone, Debug, thiserror::Error)]
pub enum WakeError {
    #[error("there is no such database")]
    NotFound,
    #[error("the database is being deleted")]
    Deleting,
    #[error("too many requests wait for this database to wake; try again")]
    QueueFull,
    #[error("the server is shutting down")]
    ShuttingDown,
    #[error("the database cannot be woken: {0}. Free some space on the disk of DORMOUSE_HOME")]
    DiskFull(String),
    #[error("the database cannot be woken: {0}")]
    Failed(String),
    #[error("{0}")]
    Metadata(String),
}

impl WakeError {
    /// Of the reason why its VM was not started, or ended.
    pub(crate) fn unready(reason: String) -> WakeError {
        if is_of_a_full_disk(&reason) { WakeError::DiskFull(reason) } else { WakeError::Failed(reason) }
    }
}

/// Whether a reason is a full disk's, or a used up quota's.
fn is_of_a_full_disk(reason: &str) -> bool {
    // ENOSPC and EDQUOT, as the standard library writes them, and the metadata's own word.
    ["(os error 28)", "(os error 122)", crate::metadata::FULL].iter().any(|text| reason.contains(text))
}

/// Why a statement of the service's own was not carried out in a database.
#[derive(Debug, thiserror::Error)]
pub enum ExecuteError {
    #[error(transparent)]
    Wake(#[from] WakeError),
    #[error("{0}")]
    Guest(#[from] dormouse_pooler::service::ServiceError),
}

/// Why a database was not suspended.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SuspendError {
    #[error("there is no such database")]
    NotFound,
    #[error("the database is being deleted")]
    Deleting,
    #[error("a statement is still running after {} s; cancel it or try again later", .0.as_secs_f64())]
    Busy(Duration),
    #[error("the database cannot be suspended and stays awake: {0}. Free some space on the disk of DORMOUSE_HOME")]
    DiskFull(String),
    #[error("the database cannot be suspended and stays awake: {0}")]
    Failed(String),
    #[error("too many requests wait for this database; try again")]
    QueueFull,
    #[error("{0}")]
    Metadata(String),
}

impl SuspendError {
    /// Of a VMM's reason.
    pub(crate) fn unsaved(reason: &str) -> SuspendError {
        if is_of_a_full_disk(reason) { SuspendError::DiskFull(reason.into()) } else { SuspendError::Failed(reason.into()) }
    }
}

/// Why a database was not restarted or moved to another image.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RestartError {
    #[error("there is no such database")]
    NotFound,
    #[error("the database is being deleted")]
    Deleting,
    #[error("it has {0} client sessions, which would end: ask for that, or wait until they have left")]
    InUse(usize),
    #[error("too many requests wait for this database; try again")]
    QueueFull,
    #[error("the database could not be restarted: {0}")]
    Failed(String),
    #[error("{0}")]
    Metadata(String),
}

/// Why nothing can be told of what a database's guest does.
#[derive(Debug, thiserror::Error)]
pub enum TasksError {
    #[error("the database is not awake, so nothing runs in it")]
    Asleep,
    #[error("its virtual machine does not answer: {0}")]
    Silent(String),
}

/// Why a database was not deleted.
#[derive(Clone, Debug, thiserror::Error)]
pub enum DeleteError {
    #[error("there is no such database")]
    NotFound,
    #[error("too many requests wait for this database; try again")]
    QueueFull,
    #[error("the database's files could not all be removed: {0}; delete it again once that is mended")]
    Failed(String),
    #[error(transparent)]
    Metadata(#[from] Arc<MetadataError>),
}

/// A change of a database's state.
#[derive(Clone, Debug)]
pub struct Change {
    pub id: DatabaseId,
    pub tenant: TenantId,
    pub tenant_name: String,
    pub name: String,
    /// `None`: it is gone.
    pub state: Option<State>,
    pub message: Option<String>,
}

/// Bounds and times, from the settings.
#[derive(Clone, Debug)]
pub(crate) struct Limits {
    pub wake_timeout: Duration,
    pub turn_timeout: Duration,
    pub suspend_wait: Duration,
    pub wake_queue: usize,
    /// How long a database sleeps as it was left; `None`: for ever.
    pub pack_after: Option<Duration>,
    pub pack_timeout: Duration,
}

pub(crate) struct Inner {
    pub home: Home,
    pub limits: Limits,
    pub turns: Turns,
    pub pool: Pool,
    /// When this host manager was made.
    pub since: std::time::SystemTime,
    /// Major version of Postgres of a database that names none.
    pg_version: u32,
    plans: std::collections::BTreeMap<String, Plan>,
    metadata: Metadata,
    journal: StateJournal,
    rested: Rested,
    sessions: OnceLock<Arc<dyn Sessions>>,
    actors: Mutex<HashMap<DatabaseId, mpsc::Sender<Command>>>,
    /// States of databases with an actor; the row's is older.
    live: Mutex<HashMap<DatabaseId, (State, Option<String>)>>,
    changes: broadcast::Sender<Change>,
    wakes: Wakes,
    metrics: HostMetrics,
    closing: AtomicBool,
    /// Told whenever an actor ends.
    ended: Notify,
}

/// The host manager. Cheap to clone.
#[derive(Clone)]
pub struct Host {
    inner: Arc<Inner>,
}

/// Changes an event stream may lag behind before it is told to read everything again.
const CHANGES_KEPT: usize = 1024;

impl Host {
    /// Binds the manager to its folder and metadata. Nothing is started; see [`Host::reconcile`].
    pub fn new(settings: &Settings, metadata: Metadata, journal: StateJournal) -> std::io::Result<Host> {
        let vmm_program = match &settings.vmm_program {
            Some(program) => program.clone(),
            None => std::env::current_exe()?,
        };
        let home = Home::new(settings.home.clone());
        let start = Start {
            program: vmm_program,
            home: home.clone(),
            jail: pool::Jail::new(settings.jail, settings.jail_uids, &home)?,
            groups: pool::Groups::new(&settings.cgroup, &home)?,
            watchdog_ms: settings.watchdog_ms,
            console_log_mib: settings.console_log_mib,
        };
        Ok(Host {
            inner: Arc::new(Inner {
                pool: Pool::new(start, settings.standby_vms),
                home,
                limits: Limits {
                    wake_timeout: settings.wake_timeout,
                    turn_timeout: settings.turn_timeout(),
                    suspend_wait: settings.suspend_wait,
                    wake_queue: settings.wake_queue,
                    pack_after: settings.pack_after,
                    pack_timeout: settings.pack_timeout,
                },
                turns: Turns::new(settings.wakes_at_once, settings.memory_reserve_mib << 20),
                since: std::time::SystemTime::now(),
                pg_version: settings.pg_version,
                plans: settings.plans.clone(),
                metadata,
                journal,
                rested: Rested::default(),
                sessions: OnceLock::new(),
                actors: Mutex::default(),
                live: Mutex::default(),
                changes: broadcast::Sender::new(CHANGES_KEPT),
                wakes: Wakes::default(),
                metrics: HostMetrics::default(),
                closing: AtomicBool::new(false),
                ended: Notify::new(),
            }),
        })
    }

    /// Gives the host its pooler, once, before the first wake. Without one, sessions are nobody's.
    pub fn attach(&self, sessions: Arc<dyn Sessions>) {
        // A second pooler would be a second owner of the same sessions; the first stays.
        if self.inner.sessions.set(sessions).is_err() {
            tracing::error!("a pooler is attached already");
        }
    }

    pub fn home(&self) -> &Home {
        &self.inner.home
    }

    pub fn metadata(&self) -> &Metadata {
        &self.inner.metadata
    }

    /// Major version of Postgres of a database whose create names none.
    pub fn pg_version(&self) -> u32 {
        self.inner.pg_version
    }

    /// The limits of a plan, if the settings have it.
    pub fn plan(&self, name: &str) -> Option<&Plan> {
        self.inner.plans.get(name)
    }

    /// The limits of a database's plan; the default plan's, if that plan has left the settings.
    pub fn plan_or_default(&self, name: &str) -> Plan {
        self.inner.plan_of(name)
    }

    /// Wakes a database, or finds it awake. May be dropped before it is done.
    pub async fn wake(&self, id: &DatabaseId) -> Result<Awake, WakeError> {
        if self.inner.closing.load(Ordering::Acquire) {
            return Err(WakeError::ShuttingDown);
        }
        let (reply, answer) = oneshot::channel();
        match self.send(id, Command::Wake(reply), false).await {
            Ok(()) => {}
            Err(SendError::NotFound) => return Err(WakeError::NotFound),
            Err(SendError::Deleting) => return Err(WakeError::Deleting),
            Err(SendError::Full) => return Err(WakeError::QueueFull),
            Err(SendError::Metadata(e)) => return Err(WakeError::Metadata(e.to_string())),
        }
        answer.await.unwrap_or(Err(WakeError::ShuttingDown))
    }

    /// Carries out a statement as the guest's superuser; the database is woken for it. May be carried out twice.
    pub async fn execute(&self, id: &DatabaseId, sql: &str) -> Result<(), ExecuteError> {
        use dormouse_pooler::service::{ServiceError, execute};
        let mut tried = false;
        loop {
            let Awake { socket, epoch } = self.wake(id).await?;
            match execute(&dormouse_pooler::Awake { socket, epoch }, sql).await {
                Ok(_) => return Ok(()),
                // A VMM that ended since it was found awake.
                Err(ServiceError::Begin(_) | ServiceError::Io(_) | ServiceError::Closed) if !tried => tried = true,
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// A held client spoke while its database was about to sleep. Never waits.
    pub fn client_spoke(&self, id: &DatabaseId) {
        if let Some(actor) = self.inner.lock_actors().get(id) {
            // A full queue has others in it that call the suspend off.
            let _ = actor.try_send(Command::Spoke);
        }
    }

    /// Suspends a database; waits for a running statement as long as the settings say.
    pub async fn suspend(&self, id: &DatabaseId) -> Result<(), SuspendError> {
        let (reply, answer) = oneshot::channel();
        match self.send(id, Command::Suspend(reply), false).await {
            Ok(()) => {}
            Err(SendError::NotFound) => return Err(SuspendError::NotFound),
            Err(SendError::Deleting) => return Err(SuspendError::Deleting),
            Err(SendError::Full) => return Err(SuspendError::QueueFull),
            Err(SendError::Metadata(e)) => return Err(SuspendError::Metadata(e.to_string())),
        }
        answer.await.unwrap_or(Err(SuspendError::Deleting))
    }

    /// Deletes a database with all it has. From the first moment on nobody can log in to it, and a crash at any
    /// step is finished at the next start.
    pub async fn delete(&self, id: &DatabaseId) -> Result<(), DeleteError> {
        let inner = &self.inner;
        if inner.metadata.database(id).await.map_err(Arc::new)?.is_none() {
            return Err(DeleteError::NotFound);
        }
        inner.metadata.set_state(id, State::Deleting, None).await.map_err(Arc::new)?;
        crash::point("delete-marked");
        let (reply, answer) = oneshot::channel();
        match self.send(id, Command::Delete(reply), true).await {
            Ok(()) => {}
            // Deleted by another request in between: it is gone, as asked.
            Err(SendError::NotFound | SendError::Deleting) => return Ok(()),
            Err(SendError::Full) => return Err(DeleteError::QueueFull),
            Err(SendError::Metadata(e)) => return Err(DeleteError::Metadata(Arc::new(e))),
        }
        answer.await.unwrap_or(Ok(()))
    }

    /// Asks its actor; see [`Host::restart`].
    async fn ask_restart(&self, id: &DatabaseId, end_sessions: bool) -> Result<(), RestartError> {
        let (reply, answer) = oneshot::channel();
        match self.send(id, Command::Restart { end_sessions, reply }, false).await {
            Ok(()) => {}
            Err(SendError::NotFound) => return Err(RestartError::NotFound),
            Err(SendError::Deleting) => return Err(RestartError::Deleting),
            Err(SendError::Full) => return Err(RestartError::QueueFull),
            Err(SendError::Metadata(e)) => return Err(RestartError::Metadata(e.to_string())),
        }
        answer.await.unwrap_or(Err(RestartError::Deleting))
    }

    /// What every process of the database's guest is doing, as text. It is not woken for that.
    pub async fn tasks(&self, id: &DatabaseId) -> Result<String, TasksError> {
        const PATIENCE: Duration = Duration::from_secs(10);
        let (reply, answer) = oneshot::channel();
        let asked = self.inner.lock_actors().get(id).map(|actor| actor.try_send(Command::Sockets(reply)));
        let sockets = if asked.is_some() { answer.await.ok().flatten() } else { None };
        let stream = socket::connect(&sockets.ok_or(TasksError::Asleep)?.control).await.map_err(|_| TasksError::Asleep)?;
        let asked = tokio::time::timeout(PATIENCE, control::ask_tasks(stream)).await;
        match asked {
            Ok(Ok(report)) => report.ok_or(TasksError::Asleep),
            Ok(Err(error)) => Err(TasksError::Silent(error.to_string())),
            Err(_) => Err(TasksError::Silent(format!("not within {} s", PATIENCE.as_secs()))),
        }
    }

    /// A page of a database's events, newest first, with all that has been told of so far.
    pub async fn events(&self, id: &DatabaseId, page: Page) -> Result<Vec<EventRow>, MetadataError> {
        // On a full disk what is there has to do.
        const PATIENCE: Duration = Duration::from_secs(1);
        let _ = tokio::time::timeout(PATIENCE, self.inner.journal.events_written(id)).await;
        self.inner.metadata.list_events(id, page).await
    }

    /// Sets a database's cool-down (ms), or gives it back to its plan.
    pub async fn set_cool_down(&self, row: &DatabaseRow, ms: Option<u64>) -> Result<(), MetadataError> {
        self.inner.metadata.set_cool_down(&row.id, ms).await?;
        let ms = ms.unwrap_or_else(|| self.inner.plan_of(&row.plan).cool_down_ms);
        if let Some(actor) = self.inner.lock_actors().get(&row.id) {
            let _ = actor.try_send(Command::CoolDown(ms));
        }
        Ok(())
    }

    /// The states newer than the rows'. Take it before reading rows, so that no state is older than the answer
    /// to an earlier request.
    pub fn overlay(&self) -> Overlay {
        // The live ones first: an actor that ends in between has recorded its last state.
        let live = self.inner.lock_live().clone();
        Overlay { live, pending: self.inner.journal.all_pending() }
    }

    /// Whether whoever needs the database now has to wait for a wake, which nobody has asked for yet.
    pub fn is_asleep(&self, id: &DatabaseId) -> bool {
        !matches!(self.inner.lock_live().get(id), Some((State::Running | State::Resuming, _)))
    }

    /// The last wakes and how long they took.
    pub fn wakes(&self) -> &Wakes {
        &self.inner.wakes
    }

    pub fn metrics(&self) -> &HostMetrics {
        &self.inner.metrics
    }

    /// Databases that have a running guest.
    pub fn awake(&self) -> usize {
        let runs = |state: &State| matches!(state, State::Running | State::Suspending);
        self.inner.lock_live().values().filter(|(state, _)| runs(state)).count()
    }

    /// Every change of state from now on.
    pub fn changes(&self) -> broadcast::Receiver<Change> {
        self.inner.changes.subscribe()
    }

    /// Databases with something under way, or awake.
    pub fn at_work(&self) -> usize {
        self.inner.lock_actors().len()
    }

    /// VMMs that stand by for whoever wakes next.
    pub fn standing_by(&self) -> usize {
        self.inner.pool.len()
    }

    /// Suspends everything and waits until nothing is left awake. Statements are waited for as long as the
    /// settings say; what then still runs is shut down cleanly.
    pub async fn shut_down(&self) {
        self.inner.closing.store(true, Ordering::Release);
        self.inner.pool.close().await;
        let actors: Vec<_> = self.inner.lock_actors().values().cloned().collect();
        for actor in actors {
            // An actor that has just ended is at rest.
            let _ = actor.send(Command::ShutDown).await;
        }
        loop {
            let ended = self.inner.ended.notified();
            tokio::pin!(ended);
            ended.as_mut().enable();
            if self.inner.lock_actors().is_empty() {
                return;
            }
            ended.await;
        }
    }

    /// Kills every VM that is still there. Nothing committed is lost; they start cold.
    pub fn cut(&self) {
        for actor in self.inner.lock_actors().values() {
            let _ = actor.try_send(Command::Cut);
        }
    }

    /// Sends to the database's actor, starting it if there is none.
    async fn send(&self, id: &DatabaseId, command: Command, deleting: bool) -> Result<(), SendError> {
        let command = match self.inner.offer(id, command) {
            Offer::Taken => return Ok(()),
            Offer::Full => return Err(SendError::Full),
            Offer::NoActor(command) => command,
        };
        let changes = self.inner.metadata.changes();
        if !deleting && let Some(Known { facts, state, message }) = self.inner.rested.take(id, changes) {
            return self.begin(facts, state, message, command);
        }
        // The journal before the row: what is no longer pending has been written.
        let pending = self.inner.journal.pending(id);
        let row = self.inner.metadata.database(id).await.map_err(SendError::Metadata)?;
        let row = row.ok_or(SendError::NotFound)?;
        match row.state {
            State::Deleting if !deleting => return Err(SendError::Deleting),
            State::Creating if !deleting => return Err(SendError::NotFound),
            _ => {}
        }
        let (state, message) = pending.unwrap_or((row.state, row.message.clone()));
        self.begin(Facts { changes, ..self.inner.facts(&row) }, state, message, command)
    }

    fn begin(&self, facts: Facts, state: State, message: Option<String>, command: Command) -> Result<(), SendError> {
        let rest = match state {
            State::Suspended => Rest::Suspended,
            State::Error | State::Deleting => Rest::Error,
            _ => Rest::Stopped,
        };
        match self.inner.start_actor(facts, Phase::Rest(rest), message, None, Some(command)) {
            true => Ok(()),
            false => Err(SendError::Full),
        }
    }
}

enum SendError {
    NotFound,
    Deleting,
    Full,
    Metadata(MetadataError),
}

enum Offer {
    Taken,
    Full,
    NoActor(Command),
}

impl Inner {
    /// Keeps VMs ready, first for what is most likely woken or created.
    pub(crate) fn keep_ready(&self) {
        let (home, major) = (self.home.clone(), self.pg_version);
        let memory_mib = self.plan_of(crate::settings::DEFAULT_PLAN).memory_mib;
        let turns = self.turns.clone();
        self.pool.keep(
            move || Some(Kind { image: home.current_image(major)?, memory_mib }),
            move || turns.memory_is_enough(),
        );
    }

    pub(crate) fn sessions(&self) -> &dyn Sessions {
        match self.sessions.get() {
            Some(sessions) => sessions.as_ref(),
            None => &NoSessions,
        }
    }

    fn lock_actors(&self) -> MutexGuard<'_, HashMap<DatabaseId, mpsc::Sender<Command>>> {
        // The map is whole whenever the lock is free, also after a panic elsewhere.
        self.actors.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_live(&self) -> MutexGuard<'_, HashMap<DatabaseId, (State, Option<String>)>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A plan that has left the settings keeps its databases usable, with the default plan's limits.
    pub(crate) fn plan_of(&self, name: &str) -> Plan {
        let plan = self.plans.get(name).or_else(|| self.plans.get(crate::settings::DEFAULT_PLAN));
        plan.cloned().unwrap_or(Plan { databases: 0, memory_mib: 512, storage_mib: 1024, connections: 50, cool_down_ms: 1000 })
    }

    fn facts(&self, row: &DatabaseRow) -> Facts {
        let plan = self.plan_of(&row.plan);
        Facts {
            id: row.id.clone(),
            tenant: row.tenant.clone(),
            tenant_name: row.tenant_name.clone(),
            name: row.name.clone(),
            pg_version: row.pg_version,
            image: row.image.clone(),
            memory_mib: plan.memory_mib,
            storage_mib: plan.storage_mib,
            cool_down_ms: row.cool_down_ms.unwrap_or(plan.cool_down_ms),
            has_files: row.has_files,
            written: row.written,
            // As if it had been read before all of them.
            changes: 0,
        }
    }

    fn offer(&self, id: &DatabaseId, command: Command) -> Offer {
        let actors = self.lock_actors();
        let Some(actor) = actors.get(id) else { return Offer::NoActor(command) };
        match actor.try_send(command) {
            Ok(()) => Offer::Taken,
            Err(mpsc::error::TrySendError::Full(_)) => Offer::Full,
            // It removes itself from the map before it drops its end: not seen here.
            Err(mpsc::error::TrySendError::Closed(command)) => Offer::NoActor(command),
        }
    }

    /// Starts an actor with its first command, or gives the command to one that came first. `false`: its queue
    /// is full.
    fn start_actor(
        self: &Arc<Self>,
        facts: Facts,
        start: Phase,
        message: Option<String>,
        adopted: Option<(UnixStream, Process)>,
        command: Option<Command>,
    ) -> bool {
        let mut actors = self.lock_actors();
        if let Some(actor) = actors.get(&facts.id) {
            return command.is_none_or(|command| actor.try_send(command).is_ok());
        }
        // Room for the waiters, and for the words that must get through beside them.
        let (sender, commands) = mpsc::channel(self.limits.wake_queue + 64);
        let taken = command.is_none_or(|command| sender.try_send(command).is_ok());
        actors.insert(facts.id.clone(), sender);
        let state = machine::Machine::new(start).state();
        self.lock_live().insert(facts.id.clone(), (state, message.clone()));
        tokio::spawn(Actor::new(self.clone(), facts, start, message, commands).run(adopted));
        taken
    }

    /// Lets an actor at rest go, unless someone asks for something. Under the lock under which commands are sent.
    pub(crate) fn let_go(
        &self,
        facts: &Facts,
        shown: Option<&(State, Option<String>)>,
        commands: &mut mpsc::Receiver<Command>,
    ) -> bool {
        let mut actors = self.lock_actors();
        if !commands.is_empty() {
            return false;
        }
        actors.remove(&facts.id);
        self.lock_live().remove(&facts.id);
        if let Some((state, message)) = shown.cloned() {
            self.rested.keep(Known { facts: facts.clone(), state, message });
        }
        drop(actors);
        self.ended.notify_waiters();
        true
    }

    /// Counts an event and has it written.
    pub(crate) fn event(&self, id: &DatabaseId, kind: EventKind, message: Option<String>) {
        self.metrics.events[kind as usize].add(1);
        self.journal.event(id, kind, message);
    }

    pub(crate) fn publish(&self, facts: &Facts, state: Option<State>, message: Option<String>) {
        let mut live = self.lock_live();
        match state {
            Some(state) => {
                live.insert(facts.id.clone(), (state, message.clone()));
                self.journal.record(&facts.id, state, message.clone());
            }
            None => {
                live.remove(&facts.id);
            }
        }
        drop(live);
        self.announce(facts, state, message);
    }

    /// Tells the listeners. That there are none is no error.
    fn announce(&self, facts: &Facts, state: Option<State>, message: Option<String>) {
        let _ = self.changes.send(Change {
            id: facts.id.clone(),
            tenant: facts.tenant.clone(),
            tenant_name: facts.tenant_name.clone(),
            name: facts.name.clone(),
            state,
            message,
        });
    }

    /// Removes a database's files, then its row. The row says `deleting` already, so a crash in between leaves
    /// something that the reconciler finishes.
    pub(crate) async fn remove_database(&self, id: &DatabaseId) -> Result<(), String> {
        crash::point("delete-ended");
        self.remove_folders(id).await?;
        crash::point("delete-files-removed");
        self.metadata.remove_database(id).await.map_err(|e| e.to_string())?;
        crash::point("delete-row-removed");
        Ok(())
    }

    /// Removes a database's files.
    pub(crate) async fn remove_folders(&self, id: &DatabaseId) -> Result<(), String> {
        let folder = self.home.database(id);
        let removed = tokio::task::spawn_blocking(move || match tree::remove(&folder) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(format!("{}: {e}", folder.display())),
            _ => Ok(()),
        });
        removed.await.map_err(|e| e.to_string())?
    }
}

/// States newer than the rows'.
pub struct Overlay {
    live: HashMap<DatabaseId, (State, Option<String>)>,
    pending: HashMap<DatabaseId, (State, Option<String>)>,
}

impl Overlay {
    /// Brings a row that was read after this overlay was taken up to date.
    pub fn apply(&self, row: &mut DatabaseRow) {
        // A row being deleted was marked by whoever deletes it.
        if row.state == State::Deleting {
            return;
        }
        if let Some((state, message)) = self.live.get(&row.id).or_else(|| self.pending.get(&row.id)) {
            row.state = *state;
            row.message.clone_from(message);
        }
    }
}
