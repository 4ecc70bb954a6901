//! The host's handle on the pooler's sessions.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use crate::host::DatabaseId;
use crate::metrics::Metrics;
use crate::registry::{Active, Busy, Registry, SessionCounts};
use crate::session::End;

/// Made first, given to the host and to [`crate::Pooler::bind`]. A clone is the same handle. No call blocks, but
/// `drain`.
///
/// A suspend goes: `quiesce`; then the VMM is asked; then `suspended` or `release`. Between them nothing is read from
/// the guest or sent to it, so the counts stay true.
#[derive(Clone, Default)]
pub struct Sessions {
    pub(crate) registry: Arc<Registry>,
    pub(crate) metrics: Arc<Metrics>,
}

impl Sessions {
    pub fn new() -> Sessions {
        Sessions::default()
    }

    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// Stops forwarding for this database if none of its clients waits for an answer and no byte is under way, all
    /// at once or not at all, and gives what the VMM has to compare. A client that speaks from now on is announced by
    /// [`crate::Host::client_spoke`]; a new one by [`crate::Host::wake`].
    pub fn quiesce(&self, database: DatabaseId) -> Result<Vec<SessionCounts>, Busy> {
        let result = self.registry.quiesce(database);
        match &result {
            Ok(_) => self.metrics.quiesced.add(1),
            Err(_) => self.metrics.busy.add(1),
        }
        result
    }

    /// The suspend was called off: forwarding goes on.
    pub fn release(&self, database: DatabaseId) {
        self.registry.release(database);
    }

    /// The suspend is committed: the connections to the VMM are dropped and the clients held.
    pub fn suspended(&self, database: DatabaseId) {
        self.registry.suspended(database);
    }

    /// A VMM was claimed for a wake, which listens at `socket`: who waits may connect and speak, and is served as soon as it is awake,
    /// before the wake is answered.
    pub fn listening(&self, database: DatabaseId, socket: std::path::PathBuf) {
        self.registry.listens(database, socket);
    }

    /// It has ended: who comes from now on waits for the next. One client's refused wake does not say so.
    pub fn listening_no_more(&self, database: DatabaseId) {
        self.registry.listens_no_more(database);
    }

    /// The database is awake, for whatever reason: its held sessions bind again, so that what the guest says unasked
    /// (a notification) reaches them. Wakes that the pooler asked for need not be told. `existing` are the sessions
    /// that the VMM has; those that nobody here knows, from before a restart of this process, are closed. The list must
    /// be from before any [`crate::Host::wake`] of this life of the database was answered: a session that is just being
    /// made is not known yet. To be called within a tokio runtime.
    pub fn awake(&self, database: DatabaseId, awake: &crate::Awake, existing: &[SessionCounts]) {
        self.registry.found(database, &awake.epoch, existing);
        if let Some(graves) = self.registry.woke(database, awake) {
            let starting = self.registry.starting(database, false);
            tokio::spawn(crate::bind::bury(database, graves, starting));
        }
    }

    /// Ends all of a database's sessions, awake or held, with FATAL, this SQLSTATE and this message.
    pub fn end(&self, database: DatabaseId, sqlstate: &str, message: &str) {
        self.registry.end(database, &End::new(sqlstate.to_owned(), message.to_owned()));
    }

    /// How many clients a database has at this moment.
    pub fn active(&self, database: DatabaseId) -> Active {
        self.registry.active(database)
    }

    /// Takes no more clients, ends idle ones at once and others when they have their answer, and returns when all are
    /// gone and have been told why; after `patience` the rest is ended where it stands.
    pub async fn drain(&self, patience: Duration) {
        self.registry.end_all(&End::shutdown(), true);
        if timeout(patience, self.registry.empty()).await.is_err() {
            self.registry.end_all(&End::shutdown(), false);
            self.registry.empty().await;
        }
    }
}
