//! The pooler, as the host sees it: whoever holds the clients' sessions of a database.

use std::path::PathBuf;

use super::Awake;
use super::control::SessionCounts;
use super::machine::End;
use crate::identity::DatabaseId;

/// What the host asks of the pooler (`docs/interfaces.md`, "Pooler and host"). No call blocks.
pub trait Sessions: Send + Sync + 'static {
    /// Stops forwarding and gives the counts of each session; `None` if a client waits for an answer, and then
    /// nothing was stopped.
    fn quiesce(&self, id: &DatabaseId) -> Option<Vec<SessionCounts>>;
    /// Goes on after a quiesce that led to no suspend.
    fn release(&self, id: &DatabaseId);
    /// The suspend is committed: lets go of the guest's connections and holds the clients.
    fn suspended(&self, id: &DatabaseId);
    /// A VMM that is about to be awake listens at `socket`: who waits for it may connect.
    fn listening(&self, id: &DatabaseId, socket: PathBuf);
    /// It has ended.
    fn listening_no_more(&self, id: &DatabaseId);
    /// The database is awake. `existing`: the sessions in its guest, asked for when some may be from before this
    /// server; those that nobody here holds are closed.
    fn awake(&self, id: &DatabaseId, awake: &Awake, existing: &[SessionCounts]);
    /// Clients that it has, held ones included.
    fn clients(&self, id: &DatabaseId) -> usize;
    /// Closes the sessions with FATAL 57P01.
    fn end(&self, id: &DatabaseId, why: End);
}

/// Nobody connects: for a host without a pooler.
pub struct NoSessions;

impl Sessions for NoSessions {
    fn quiesce(&self, _: &DatabaseId) -> Option<Vec<SessionCounts>> {
        Some(Vec::new())
    }
    fn release(&self, _: &DatabaseId) {}
    fn suspended(&self, _: &DatabaseId) {}
    fn listening(&self, _: &DatabaseId, _: PathBuf) {}
    fn listening_no_more(&self, _: &DatabaseId) {}
    fn awake(&self, _: &DatabaseId, _: &Awake, _: &[SessionCounts]) {}
    fn clients(&self, _: &DatabaseId) -> usize {
        0
    }
    fn end(&self, _: &DatabaseId, _: End) {}
}

/// The real pooler.
impl Sessions for dormouse_pooler::Sessions {
    fn quiesce(&self, id: &DatabaseId) -> Option<Vec<SessionCounts>> {
        match self.quiesce(pooler_id(id)?) {
            Ok(counts) => Some(
                counts
                    .into_iter()
                    .map(|c| SessionCounts { session: c.session, sent: c.sent, received: c.received })
                    .collect(),
            ),
            Err(busy) => {
                tracing::debug!(database = %id, %busy, "not put to sleep");
                None
            }
        }
    }

    fn release(&self, id: &DatabaseId) {
        if let Some(id) = pooler_id(id) {
            self.release(id);
        }
    }

    fn suspended(&self, id: &DatabaseId) {
        if let Some(id) = pooler_id(id) {
            self.suspended(id);
        }
    }

    fn listening(&self, id: &DatabaseId, socket: PathBuf) {
        if let Some(id) = pooler_id(id) {
            self.listening(id, socket);
        }
    }

    fn listening_no_more(&self, id: &DatabaseId) {
        if let Some(id) = pooler_id(id) {
            self.listening_no_more(id);
        }
    }

    fn awake(&self, id: &DatabaseId, awake: &Awake, existing: &[SessionCounts]) {
        let Some(id) = pooler_id(id) else { return };
        let awake = dormouse_pooler::Awake { socket: awake.socket.clone(), epoch: awake.epoch.clone() };
        let existing: Vec<_> = existing
            .iter()
            .map(|c| dormouse_pooler::SessionCounts { session: c.session, sent: c.sent, received: c.received })
            .collect();
        self.awake(id, &awake, &existing);
    }

    fn clients(&self, id: &DatabaseId) -> usize {
        pooler_id(id).map_or(0, |id| self.active(id).clients)
    }

    fn end(&self, id: &DatabaseId, why: End) {
        let Some(id) = pooler_id(id) else { return };
        let message = match why {
            End::Died => "terminating connection: the database's virtual machine ended unexpectedly",
            End::Deleted => "terminating connection: the database is being deleted",
            End::Restarted => "terminating connection: the database is being restarted",
            End::ShutDown => "terminating connection due to administrator command",
        };
        self.end(id, "57P01", message);
    }
}

/// The same id in the pooler's form, which every id of ours has.
fn pooler_id(id: &DatabaseId) -> Option<dormouse_pooler::DatabaseId> {
    id.as_str().parse().ok()
}
