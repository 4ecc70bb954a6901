//! The journal: writes states and events behind the work, many in one transaction.
//!
//! A wake must not wait for a disk. The host hands each new state over and goes on; here the newest of each
//! database is kept and all that gathered while the last transaction ran go into the next. What a crash loses,
//! the reconciler finds out from the files. Events lost with the host's power are only that.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::events::{self, NewEvent};
use super::{Metadata, MetadataError, SET_STATE, now_ms};
use crate::crash;
use crate::host::{EventKind, State};
use crate::identity::DatabaseId;

/// What comes so soon after the first is written with it. A wake has had its answer by then, and whoever waits for it the processors.
const GATHER: Duration = Duration::from_millis(20);
/// Events that may wait to be written. On a full disk none is, and a tenant can make as many as it likes.
const MOST_EVENTS: usize = 10_000;

#[derive(Default)]
struct Pending {
    batch: Batch,
    closed: bool,
}

/// What is written in one transaction.
#[derive(Clone, Default)]
struct Batch {
    states: HashMap<DatabaseId, (State, Option<String>)>,
    /// Databases whose layers have data in them.
    written: HashSet<DatabaseId>,
    /// In order.
    events: Vec<NewEvent>,
}

impl Batch {
    fn is_empty(&self) -> bool {
        self.states.is_empty() && self.written.is_empty() && self.events.is_empty()
    }

    /// Removes what was written, but for what is newer.
    fn done(&mut self, written: &Batch) {
        self.events.drain(..written.events.len());
        self.written.retain(|id| !written.written.contains(id));
        self.states.retain(|id, state| written.states.get(id) != Some(state));
    }
}

/// The journal's handle. Cheap to clone.
#[derive(Clone)]
pub struct StateJournal {
    pending: Arc<Mutex<Pending>>,
    wake: Arc<Notify>,
    /// After each batch.
    told: Arc<Notify>,
    /// Events kept of each database.
    keep: u32,
}

impl StateJournal {
    /// Starts the writer, which keeps so many events of each database. The task ends after [`StateJournal::close`], with
    /// all written.
    pub fn start(metadata: Metadata, keep: u32) -> (StateJournal, JoinHandle<()>) {
        let journal =
            StateJournal { pending: Arc::default(), wake: Arc::default(), told: Arc::default(), keep };
        let task = tokio::spawn(journal.clone().run(metadata));
        (journal, task)
    }

    /// Hands over a database's newest state and the message that goes with it. Never waits.
    pub fn record(&self, id: &DatabaseId, state: State, message: Option<String>) {
        self.lock().batch.states.insert(id.clone(), (state, message));
        self.wake.notify_one();
    }

    /// Hands over that a database's layer has data in it. Never waits.
    pub fn written(&self, id: &DatabaseId) {
        self.lock().batch.written.insert(id.clone());
        self.wake.notify_one();
    }

    /// Hands over an event. Never waits; where too many do, it is only logged.
    pub fn event(&self, database: &DatabaseId, kind: EventKind, message: Option<String>) {
        let mut pending = self.lock();
        if pending.batch.events.len() >= MOST_EVENTS {
            drop(pending);
            tracing::warn!(%database, kind = kind.as_str(), message, "an event is not kept: too many wait to be written");
            return;
        }
        pending.batch.events.push(NewEvent { database: database.clone(), at: now_ms(), kind, message });
        drop(pending);
        self.wake.notify_one();
    }

    /// Waits until what was handed over of a database's events so far can be read, or the writer has ended. Cancel-safe.
    pub async fn events_written(&self, database: &DatabaseId) {
        loop {
            let told = self.told.notified();
            tokio::pin!(told);
            told.as_mut().enable();
            {
                let pending = self.lock();
                if pending.closed || pending.batch.events.iter().all(|event| event.database != *database) {
                    return;
                }
            }
            told.await;
        }
    }

    /// Lets the writer end once it has written what it was given.
    pub fn close(&self) {
        self.lock().closed = true;
        self.wake.notify_one();
    }

    /// The state handed over for a database and not yet written.
    pub fn pending(&self, id: &DatabaseId) -> Option<(State, Option<String>)> {
        self.lock().batch.states.get(id).cloned()
    }

    /// All states handed over and not yet written.
    pub fn all_pending(&self) -> HashMap<DatabaseId, (State, Option<String>)> {
        self.lock().batch.states.clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Pending> {
        // The map is whole whenever the lock is free, also after a panic elsewhere.
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets some more come, unless the end has.
    async fn gather(&self) {
        let enough = tokio::time::sleep(crash::gathered(GATHER));
        tokio::pin!(enough);
        while !self.lock().closed {
            tokio::select! {
                () = &mut enough => return,
                () = self.wake.notified() => {}
            }
        }
    }

    async fn run(self, metadata: Metadata) {
        loop {
            let (batch, closed) = {
                let pending = self.lock();
                (pending.batch.clone(), pending.closed)
            };
            if batch.is_empty() {
                if closed {
                    return;
                }
                self.wake.notified().await;
                self.gather().await;
                continue;
            }
            match write(&metadata, &batch, self.keep).await {
                Ok(()) => {
                    // Kept until written, so that a reader never sees an older state in between.
                    self.lock().batch.done(&batch);
                    self.told.notify_waiters();
                }
                Err(error) => {
                    tracing::error!(%error, databases = batch.states.len(), "states could not be written; trying again");
                    if closed {
                        return;
                    }
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }
}

async fn write(metadata: &Metadata, batch: &Batch, keep: u32) -> Result<(), MetadataError> {
    let mut write = metadata.begin_unflushed().await?;
    for (id, (state, message)) in &batch.states {
        // A row that is being deleted stays so, whatever its VM still does.
        sqlx::query(&format!("{SET_STATE} AND state <> 'deleting'"))
            .bind(state.as_str())
            .bind(message.as_deref())
            .bind(now_ms())
            .bind(id.as_str())
            .execute(write.on())
            .await?;
    }
    for id in &batch.written {
        sqlx::query("UPDATE databases SET written = 1 WHERE id = ?").bind(id.as_str()).execute(write.on()).await?;
    }
    for event in &batch.events {
        events::insert(&mut write, event, keep).await?;
    }
    write.commit().await?;
    crash::noted(batch.states.values().map(|(state, _)| *state));
    Ok(())
}
