//! Who is connected to which database, and the two-phase agreement with the host about putting one to sleep.
//!
//! Lock order: a shard, then a session's state. A session's own task takes its state, never a shard while it has it.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::host::{Awake, DatabaseId};
use crate::session::{End, Session};

const SHARDS: usize = 16;

/// One session as the VMM is told of it: its number there, and bytes since it began, from the pooler's side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(test, derive(PartialOrd, Ord))]
pub struct SessionCounts {
    pub session: u64,
    pub sent: u64,
    pub received: u64,
}

/// Why a database cannot be put to sleep now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Busy {
    #[error("a client waits for an answer, or bytes are on their way")]
    Waiting,
    #[error("a client is being connected, bound again or cancelled")]
    Starting,
    #[error("a suspend is already under way")]
    Quiesced,
}

/// How many clients a database has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Active {
    /// Clients that are past authentication, held ones and those being connected included, also ahead of their proof.
    pub clients: usize,
    /// Sessions whose client waits for an answer, or has bytes on their way.
    pub waiting: usize,
    /// Sessions held while the database sleeps.
    pub held: usize,
    /// Being connected, bound again or cancelled.
    pub starting: usize,
}

/// A session whose client left while the database slept; the guest's end of it is still in the snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Dead {
    pub epoch: Arc<str>,
    pub counts: SessionCounts,
}

/// What to do at a wake before anything else.
pub(crate) struct Graves {
    pub socket: PathBuf,
    pub dead: Vec<Dead>,
}

#[derive(Default)]
struct Database {
    sessions: Vec<Arc<Session>>,
    clients: usize,
    waiting: usize,
    starting: usize,
    /// Of those that start: clients that wait for a wake, so those whom it is for.
    urgent: usize,
    quiesced: bool,
    awake: Option<Arc<Awake>>,
    /// Where the VMM listens that was claimed for it, and is about to be awake.
    listening: Option<Arc<Path>>,
    /// How many VMMs were claimed for it.
    lives: u64,
    dead: Vec<Dead>,
    /// Told when `quiesced` ends, when `urgent` falls to 0, and of `listening`.
    changed: Option<Arc<Notify>>,
}

impl Database {
    fn is_forgotten(&self) -> bool {
        self.sessions.is_empty()
            && self.clients == 0
            && self.waiting == 0
            && self.starting == 0
            && self.dead.is_empty()
            && !self.quiesced
    }

    fn take(&mut self, session: &Arc<Session>) -> bool {
        let at = self.sessions.iter().position(|s| Arc::ptr_eq(s, session));
        if let Some(at) = at {
            self.sessions.swap_remove(at);
            if self.sessions.is_empty() {
                self.sessions = Vec::new();
            }
        }
        at.is_some()
    }

    fn settle(&mut self) {
        self.quiesced = false;
        self.tell();
    }

    fn tell(&mut self) {
        if let Some(changed) = self.changed.take() {
            changed.notify_waiters();
        }
    }
}

type Shard = HashMap<DatabaseId, Database>;

/// All databases that have a client, a past or a suspend under way.
pub(crate) struct Registry {
    shards: [Mutex<Shard>; SHARDS],
    hasher: RandomState,
    sessions: AtomicU64,
    draining: AtomicBool,
    drain_begun: Notify,
    left: Notify,
}

/// The database has all the connections it may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Full;

impl Default for Registry {
    fn default() -> Registry {
        Registry {
            shards: std::array::from_fn(|_| Mutex::default()),
            hasher: RandomState::new(),
            sessions: AtomicU64::new(0),
            draining: AtomicBool::new(false),
            drain_begun: Notify::new(),
            left: Notify::new(),
        }
    }
}

impl Registry {
    fn shard(&self, id: DatabaseId) -> MutexGuard<'_, Shard> {
        let at = self.hasher.hash_one(id) as usize % SHARDS;
        self.shards[at].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes a database, and forgets it if nothing is left to know.
    fn with<T>(&self, id: DatabaseId, change: impl FnOnce(&mut Database) -> T) -> T {
        let mut shard = self.shard(id);
        let database = shard.entry(id).or_default();
        let result = change(database);
        if database.is_forgotten() {
            shard.remove(&id);
        }
        result
    }

    /// Counts a client to its database's limit, for as long as the place is kept.
    pub fn admit(self: &Arc<Registry>, id: DatabaseId, limit: u32) -> Result<Place, Full> {
        self.with(id, |database| {
            if database.clients >= limit as usize {
                return Err(Full);
            }
            database.clients += 1;
            Ok(Place { registry: self.clone(), id })
        })
    }

    /// Joins the queue of new clients that wait for a wake.
    pub fn queue(self: &Arc<Registry>, id: DatabaseId, max: usize) -> Result<Queued, Full> {
        self.with(id, |database| {
            if database.waiting >= max {
                return Err(Full);
            }
            database.waiting += 1;
            Ok(Queued { starting: self.start(id, database, true) })
        })
    }

    /// Keeps the database from being put to sleep, for as long as it is kept. `urgent`: for a client that waits.
    pub fn starting(self: &Arc<Registry>, id: DatabaseId, urgent: bool) -> Starting {
        self.with(id, |database| self.start(id, database, urgent))
    }

    fn start(self: &Arc<Registry>, id: DatabaseId, database: &mut Database, urgent: bool) -> Starting {
        database.starting += 1;
        database.urgent += usize::from(urgent);
        Starting { registry: self.clone(), id, urgent }
    }

    /// Where to send a session's cancel request: only to a database that is awake and not about to sleep, or to the VMM that
    /// is about to be awake and has the session already; in any other none of its statements runs.
    pub fn cancel_target(self: &Arc<Registry>, session: &Session) -> Option<(Starting, PathBuf)> {
        let id = session.database;
        self.with(id, |database| {
            let socket = match (&database.awake, &database.listening) {
                _ if database.quiesced => return None,
                (Some(awake), _) => awake.socket.clone(),
                (None, Some(socket)) if session.is_open() => socket.to_path_buf(),
                _ => return None,
            };
            Some((self.start(id, database, false), socket))
        })
    }

    /// Waits out a suspend under way; says whether there was one.
    pub async fn settled(&self, id: DatabaseId) -> bool {
        self.until(id, |database| !database.quiesced).await
    }

    /// Lets those go first who wait for this wake.
    pub async fn after_the_urgent(&self, id: DatabaseId) {
        self.until(id, |database| database.urgent == 0).await;
    }

    /// A VMM was claimed that is about to be awake.
    pub fn listens(&self, id: DatabaseId, socket: PathBuf) {
        self.with(id, |database| {
            database.listening = Some(socket.into());
            database.lives += 1;
            database.tell();
        });
    }

    /// Which VMM it was that listened last, for who keeps the database from being forgotten.
    pub fn life(&self, id: DatabaseId) -> u64 {
        self.with(id, |database| database.lives)
    }

    /// Whether that one is still awake, for who keeps the database from being forgotten.
    pub fn lives(&self, id: DatabaseId, life: u64) -> bool {
        self.with(id, |database| database.awake.is_some() && database.lives == life)
    }

    /// What listened is gone.
    pub fn listens_no_more(&self, id: DatabaseId) {
        self.with(id, |database| database.listening = None);
    }

    /// Waits until there is a VMM to connect to before it is awake. While there are dead sessions to be closed first, nobody
    /// comes early.
    pub async fn listening(&self, id: DatabaseId) -> Arc<Path> {
        loop {
            self.until(id, |database| database.listening.is_some() && database.dead.is_empty()).await;
            if let Some(socket) = self.with(id, |database| database.listening.clone()) {
                return socket;
            }
        }
    }

    /// Waits until it is so; says whether that took any waiting.
    async fn until(&self, id: DatabaseId, is_so: impl Fn(&Database) -> bool) -> bool {
        let mut waited = false;
        loop {
            // Made under the lock under which it was looked: every word from then on is heard.
            let changed = self.with(id, |database| {
                (!is_so(database)).then(|| database.changed.get_or_insert_default().clone().notified_owned())
            });
            let Some(changed) = changed else { return waited };
            waited = true;
            changed.await;
        }
    }

    /// A new session. Its place must be kept for as long as it lasts.
    pub fn join(&self, session: &Arc<Session>) {
        self.sessions.fetch_add(1, Ordering::SeqCst);
        self.with(session.database, |database| database.sessions.push(session.clone()));
        if self.draining.load(Ordering::SeqCst) {
            session.end(End::shutdown(), true);
        }
    }

    /// The session is over. Said twice, it is heard once.
    pub fn leave(&self, session: &Arc<Session>) {
        self.with(session.database, |database| database.take(session));
    }

    /// A held session's client went away: the guest hears of it at the next wake.
    pub fn bury(&self, session: &Arc<Session>) {
        let dead = Dead { epoch: session.epoch.clone(), counts: session.counts() };
        self.with(session.database, |database| {
            // In one step: a suspend counts it as one or as the other.
            if database.take(session) {
                database.dead.push(dead);
            }
        });
    }

    /// A session's task is over, its client's goodbye included.
    pub fn gone(&self) {
        self.sessions.fetch_sub(1, Ordering::SeqCst);
        self.left.notify_waiters();
    }

    /// The host found sessions in the guest that nobody here has, from before this pooler: they are dead.
    pub fn found(&self, id: DatabaseId, epoch: &str, sessions: &[SessionCounts]) {
        self.with(id, |database| {
            let epoch: Arc<str> = epoch.into();
            for counts in sessions {
                let ours = database.sessions.iter().any(|s| s.epoch == epoch && s.number() == counts.session);
                let dead = database.dead.iter().any(|d| d.epoch == epoch && d.counts.session == counts.session);
                if !ours && !dead {
                    database.dead.push(Dead { epoch: epoch.clone(), counts: *counts });
                }
            }
        });
    }

    /// The database is awake: its held sessions are told to bind again, since the guest may have something to say to
    /// them. Gives the sessions to bury; those of another life are forgotten.
    pub fn woke(&self, id: DatabaseId, awake: &Awake) -> Option<Graves> {
        self.with(id, |database| {
            if database.awake.as_deref() != Some(awake) {
                let awake = Arc::new(awake.clone());
                for session in &database.sessions {
                    session.bind_again(&awake);
                }
                // Without a session there is nobody to keep it for, and nobody to be told when it sleeps.
                database.awake = Some(awake);
            }
            database.listening = None;
            let mut dead = std::mem::take(&mut database.dead);
            dead.retain(|d| *d.epoch == *awake.epoch);
            (!dead.is_empty()).then(|| Graves { socket: awake.socket.clone(), dead })
        })
    }

    pub fn quiesce(&self, id: DatabaseId) -> Result<Vec<SessionCounts>, Busy> {
        self.with(id, |database| {
            if database.quiesced {
                return Err(Busy::Quiesced);
            }
            if database.starting > 0 {
                return Err(Busy::Starting);
            }
            let mut counts = Vec::with_capacity(database.sessions.len() + database.dead.len());
            for (at, session) in database.sessions.iter().enumerate() {
                match session.quiesce() {
                    Some(c) => counts.push(c),
                    None => {
                        database.sessions[..at].iter().for_each(|s| s.release());
                        return Err(Busy::Waiting);
                    }
                }
            }
            // Still in the guest, and still to be buried at a wake that comes from a client.
            counts.extend(database.dead.iter().map(|d| d.counts));
            database.quiesced = true;
            Ok(counts)
        })
    }

    pub fn release(&self, id: DatabaseId) {
        self.with(id, |database| {
            database.sessions.iter().for_each(|s| s.release());
            database.settle();
        });
    }

    pub fn suspended(&self, id: DatabaseId) {
        self.with(id, |database| {
            database.awake = None;
            database.listening = None;
            database.sessions.iter().for_each(|s| s.hold());
            database.settle();
        });
    }

    pub fn end(&self, id: DatabaseId, end: &End) {
        self.with(id, |database| {
            database.awake = None;
            database.listening = None;
            database.dead.clear();
            database.sessions.iter().for_each(|s| s.end(end.clone(), false));
            database.settle();
        });
    }

    pub fn active(&self, id: DatabaseId) -> Active {
        self.with(id, |database| {
            let mut active =
                Active { clients: database.clients, starting: database.starting, ..Active::default() };
            for session in &database.sessions {
                let (waiting, held) = session.standing();
                active.waiting += usize::from(waiting);
                active.held += usize::from(held);
            }
            active
        })
    }

    /// Ends all sessions, present and to come: when they are idle, or at once.
    pub fn end_all(&self, end: &End, when_idle: bool) {
        self.draining.store(true, Ordering::SeqCst);
        self.drain_begun.notify_waiters();
        for shard in &self.shards {
            let shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            for database in shard.values() {
                database.sessions.iter().for_each(|s| s.end(end.clone(), when_idle));
            }
        }
    }

    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::SeqCst)
    }

    /// Waits until draining begins.
    pub async fn draining(&self) {
        loop {
            let begun = self.drain_begun.notified();
            tokio::pin!(begun);
            begun.as_mut().enable();
            if self.is_draining() {
                return;
            }
            begun.await;
        }
    }

    /// Waits until no session's task is left.
    pub async fn empty(&self) {
        loop {
            let left = self.left.notified();
            tokio::pin!(left);
            left.as_mut().enable();
            if self.sessions.load(Ordering::SeqCst) == 0 {
                return;
            }
            left.await;
        }
    }
}

/// A client's place under its database's limit.
pub(crate) struct Place {
    registry: Arc<Registry>,
    id: DatabaseId,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.registry.with(self.id, |database| database.clients -= 1);
    }
}

/// Something is being set up with the database.
pub(crate) struct Starting {
    registry: Arc<Registry>,
    id: DatabaseId,
    urgent: bool,
}

impl Drop for Starting {
    fn drop(&mut self) {
        self.registry.with(self.id, |database| {
            database.starting -= 1;
            if self.urgent {
                database.urgent -= 1;
                if database.urgent == 0 {
                    database.tell();
                }
            }
        });
    }
}

/// A new client's place in the queue for a wake.
pub(crate) struct Queued {
    starting: Starting,
}

impl Drop for Queued {
    fn drop(&mut self) {
        let Starting { registry, id, .. } = &self.starting;
        registry.with(*id, |database| database.waiting -= 1);
    }
}
