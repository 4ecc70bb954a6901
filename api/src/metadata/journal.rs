//! The journal of states: writes states behind the work, many in one transaction.
//!
//! A wake must not wait for a disk. The host hands each new state over and goes on; here the newest of each
//! database is kept and all that gathered while the last transaction ran go into the next. What a crash loses,
//! the reconciler finds out from the files.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::{Metadata, MetadataError};
use crate::host::State;
use crate::identity::DatabaseId;

#[derive(Default)]
struct Pending {
    states: HashMap<DatabaseId, (State, Option<String>)>,
    closed: bool,
}

/// The journal's handle. Cheap to clone.
#[derive(Clone)]
pub struct StateJournal {
    pending: Arc<Mutex<Pending>>,
    wake: Arc<Notify>,
}

impl StateJournal {
    /// Starts the writer. The task ends after [`StateJournal::close`], with all written.
    pub fn start(metadata: Metadata) -> (StateJournal, JoinHandle<()>) {
        let journal = StateJournal { pending: Arc::default(), wake: Arc::default() };
        let task = tokio::spawn(journal.clone().run(metadata));
        (journal, task)
    }

    /// Hands over a database's newest state and the message that goes with it. Never waits.
    pub fn record(&self, id: &DatabaseId, state: State, message: Option<String>) {
        self.lock().states.insert(id.clone(), (state, message));
        self.wake.notify_one();
    }

    /// Lets the writer end once it has written what it was given.
    pub fn close(&self) {
        self.lock().closed = true;
        self.wake.notify_one();
    }

    /// The state handed over for a database and not yet written.
    pub fn pending(&self, id: &DatabaseId) -> Option<(State, Option<String>)> {
        self.lock().states.get(id).cloned()
    }

    /// All states handed over and not yet written.
    pub fn all_pending(&self) -> HashMap<DatabaseId, (State, Option<String>)> {
        self.lock().states.clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Pending> {
        // The map is whole whenever the lock is free, also after a panic elsewhere.
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn run(self, metadata: Metadata) {
        loop {
            let (batch, closed) = {
                let pending = self.lock();
                (pending.states.clone(), pending.closed)
            };
            if batch.is_empty() {
                if closed {
                    return;
                }
                self.wake.notified().await;
                continue;
            }
            match write(&metadata, &batch).await {
                Ok(()) => {
                    // Kept until written, so that a reader never sees an older state in between.
                    let mut pending = self.lock();
                    for (id, written) in &batch {
                        if pending.states.get(id) == Some(written) {
                            pending.states.remove(id);
                        }
                    }
                }
                Err(error) => {
                    tracing::error!(%error, databases = batch.len(), "states could not be written; trying again");
                    if closed {
                        return;
                    }
                    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
                }
            }
        }
    }
}

async fn write(metadata: &Metadata, batch: &HashMap<DatabaseId, (State, Option<String>)>) -> Result<(), MetadataError> {
    let mut write = metadata.begin_unflushed().await?;
    for (id, (state, message)) in batch {
        // A row that is being deleted stays so, whatever its VM still does.
        sqlx::query("UPDATE databases SET state = ?, message = ? WHERE id = ? AND state <> 'deleting'")
            .bind(state.as_str())
            .bind(message.as_deref())
            .bind(id.as_str())
            .execute(write.on())
            .await?;
    }
    write.commit().await
}
