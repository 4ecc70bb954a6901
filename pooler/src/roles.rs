//! What a guest's own catalog says of a role that wants to log in.
//!
//! PostgreSQL looks at each login, and so it is asked at each: a changed password, a dropped role and an expiry hold at
//! once, and nothing is kept here that could be out of date. What needs no password (LOGIN, CONNECT, connection limits,
//! settings) the guest decides when the session begins as that role.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::host::DatabaseId;
use crate::login::{self, LoginError};
use crate::pooler::Shared;
use crate::service;

/// A role as far as its password goes.
pub(crate) struct Role {
    /// As in `pg_authid`: NULL for none.
    pub verifier: Option<String>,
    /// Its password is no longer valid.
    pub expired: bool,
}

/// Asks the guest, which is woken for it. `None`: there is no such role, or it is a superuser, who is not the tenant's.
pub(crate) async fn ask(shared: &Arc<Shared>, database: DatabaseId, role: &str) -> Result<Option<Role>, LoginError> {
    let waiting = shared.registry.queue(database, shared.settings.max_waiting);
    let waiting = waiting.map_err(|_| LoginError::TooManyWaiting(database))?;
    let sql = format!(
        "SELECT rolpassword, rolvaliduntil < now() FROM pg_authid WHERE rolname = {} AND NOT rolsuper",
        service::literal(role)
    );
    let asking = async {
        let turn = shared.turns.take(database).await;
        let (begun, _) = login::begin(shared, database, &service::packet()).await?;
        let (rows, stream) = service::query(begun, &sql).await?;
        Ok::<_, LoginError>((rows, stream, turn))
    };
    let asked = timeout(shared.wake_timeout(), asking).await.map_err(|_| LoginError::WakeTimeout);
    let (rows, stream, turn) = asked.flatten().map_err(|error| LoginError::Ask(Box::new(error)))?;
    tokio::spawn(async move {
        service::close(stream).await;
        drop((turn, waiting));
    });
    let Some(row) = rows.into_iter().next() else { return Ok(None) };
    let [verifier, expired] = <[Option<String>; 2]>::try_from(row)
        .map_err(|_| LoginError::Ask(Box::new(service::ServiceError::Malformed.into())))?;
    Ok(Some(Role { verifier, expired: expired.as_deref() == Some("t") }))
}

/// One question at a time of each guest: PostgreSQL keeps three places for superusers when clients have taken all others.
#[derive(Default)]
pub(crate) struct Turns(Mutex<HashMap<DatabaseId, Weak<Semaphore>>>);

impl Turns {
    async fn take(&self, database: DatabaseId) -> Option<OwnedSemaphorePermit> {
        let turns = {
            let mut map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            match map.get(&database).and_then(Weak::upgrade) {
                Some(turns) => turns,
                None => {
                    map.retain(|_, turns| turns.strong_count() > 0);
                    let turns = Arc::new(Semaphore::new(1));
                    map.insert(database, Arc::downgrade(&turns));
                    turns
                }
            }
        };
        // It is never closed.
        turns.acquire_owned().await.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_turn_at_a_time_of_each_database_and_none_is_remembered() {
        let turns = Turns::default();
        let id = |letter: &str| format!("db_{}", letter.repeat(20)).parse::<DatabaseId>().unwrap();
        let first = turns.take(id("a")).await;
        let other = turns.take(id("b")).await;
        let mut second = Box::pin(turns.take(id("a")));
        assert!(futures::poll!(second.as_mut()).is_pending());
        drop(first);
        let second = second.await;
        drop((second, other));
        drop(turns.take(id("c")).await);
        assert_eq!(turns.0.lock().unwrap().len(), 1);
    }
}
