//! What the pooler asks of the host: the other half of `host::Sessions`.

use dormouse_pooler as pooler;
use pooler::{Availability, Awake, BoxFuture, HostError, PasswordsSet, Route};

use crate::host::{GUEST_ROLE, GUEST_SUPERUSER, Host, State, WakeError};
use crate::identity::DatabaseId;

/// The host, as the pooler sees it.
pub struct Front {
    host: Host,
}

impl Front {
    pub fn new(host: Host) -> Front {
        Front { host }
    }
}

fn ours(id: pooler::DatabaseId) -> Result<DatabaseId, HostError> {
    DatabaseId::parse(&id.to_string()).ok_or_else(|| HostError(format!("{id} is not an id")))
}

impl pooler::Host for Front {
    fn lookup<'a>(&'a self, id: pooler::DatabaseId, role: &'a str) -> BoxFuture<'a, Result<Option<Route>, HostError>> {
        Box::pin(async move {
            let id = ours(id)?;
            let row = self.host.metadata().role(&id, role).await.map_err(|e| HostError(e.to_string()))?;
            Ok(row.map(|row| Route {
                // The logins that the service makes are its own; the owner's password may be set in SQL as well, and a
                // role that it does not know can only be one of SQL's.
                in_guest: row.state != State::Deleting
                    && (row.verifier.is_none() || (role == GUEST_ROLE && row.sql_owner)),
                asleep: self.host.is_asleep(&id),
                connection_limit: u32::try_from(self.host.plan_or_default(&row.plan).connections).unwrap_or(u32::MAX),
                availability: match row.state {
                    State::Deleting => Availability::Deleting,
                    _ => Availability::Usable,
                },
                guest_role: match (&row.verifier, row.superuser) {
                    (None, _) => role,
                    (Some(_), true) => GUEST_SUPERUSER,
                    // A login for the command is the same user inside.
                    (Some(_), false) => GUEST_ROLE,
                }
                .to_owned(),
                verifier: row.verifier,
            }))
        })
    }

    fn passwords_set<'a>(&'a self, id: pooler::DatabaseId, set: PasswordsSet) -> BoxFuture<'a, Result<(), HostError>> {
        Box::pin(async move {
            let noted = self.host.metadata().note_sql_passwords(&ours(id)?, set.owner, set.other).await;
            noted.map_err(|e| HostError(e.to_string()))
        })
    }

    fn wake<'a>(&'a self, id: pooler::DatabaseId) -> BoxFuture<'a, Result<Awake, pooler::WakeError>> {
        Box::pin(async move {
            let id = ours(id).map_err(|e| pooler::WakeError::Unavailable(e.0))?;
            match self.host.wake(&id).await {
                Ok(awake) => Ok(Awake { socket: awake.socket, epoch: awake.epoch }),
                Err(WakeError::NotFound | WakeError::Deleting) => Err(pooler::WakeError::Deleting),
                Err(e @ WakeError::QueueFull) => Err(pooler::WakeError::TooMany(e.to_string())),
                Err(WakeError::Metadata(error)) => {
                    tracing::error!(database = %id, error, "wake");
                    Err(pooler::WakeError::Unavailable("the server's metadata cannot be read".into()))
                }
                Err(e) => Err(pooler::WakeError::Unavailable(e.to_string())),
            }
        })
    }

    fn client_spoke(&self, id: pooler::DatabaseId) {
        if let Ok(id) = ours(id) {
            self.host.client_spoke(&id);
        }
    }

    fn answered(&self, id: pooler::DatabaseId, steps: Vec<pooler::Step>) {
        if let Ok(id) = ours(id) {
            self.host.wakes().answered(&id, &steps);
        }
    }
}
