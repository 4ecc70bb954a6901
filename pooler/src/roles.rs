//! What a guest's own catalog says of a role that wants to log in.
//!
//! PostgreSQL looks at each login, and so it is asked at each: a changed password, a dropped role and an expiry hold at
//! once, and nothing is kept here that could be out of date. What needs no password (LOGIN, CONNECT, connection limits,
//! settings) the guest decides when the session begins as that role.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::timeout;

use crate::guest::Begun;
use crate::host::DatabaseId;
use crate::login::LoginError;
use crate::opening;
use crate::pooler::Shared;
use crate::service::{self, Row, ServiceError};
use crate::steps::Steps;

/// A role as far as its password goes.
pub(crate) struct Role {
    /// As in `pg_authid`: NULL for none.
    pub verifier: Option<String>,
    /// Its password is no longer valid.
    pub expired: bool,
}

/// Asks the guest, which is woken for it. `None`: there is no such role, or it is a superuser, who is not the tenant's.
pub(crate) async fn ask(
    shared: &Arc<Shared>,
    database: DatabaseId,
    role: &str,
    place: Place,
) -> Result<Option<Role>, LoginError> {
    let sql = format!(
        "SELECT rolpassword, rolvaliduntil < now() FROM pg_authid WHERE rolname = {} AND NOT rolsuper",
        service::literal(role)
    );
    let asking = async {
        let turn = place.turn().await;
        let (reply, answer) = oneshot::channel();
        // A task of its own: the turn ends with its backend, even if nobody waits for the answer any more.
        tokio::spawn(question(shared.clone(), database, sql, turn, reply));
        // It is dropped without an answer only when the server ends.
        answer.await.unwrap_or(Err(LoginError::ShuttingDown))
    };
    let asked = timeout(shared.wake_timeout(), asking).await.unwrap_or(Err(LoginError::WakeTimeout));
    let rows = asked.map_err(|error| LoginError::Ask(Box::new(error)))?;
    let Some(row) = rows.into_iter().next() else { return Ok(None) };
    let [verifier, expired] = <[Option<String>; 2]>::try_from(row)
        .map_err(|_| LoginError::Ask(Box::new(service::ServiceError::Malformed.into())))?;
    Ok(Some(Role { verifier, expired: expired.as_deref() == Some("t") }))
}

type Reply = oneshot::Sender<Result<Vec<Row>, LoginError>>;

/// One question, from the wake to the end of its backend.
async fn question(shared: Arc<Shared>, database: DatabaseId, sql: String, turn: Turn, reply: Reply) {
    // Keeps it awake, but not for a backend that is stuck: that one is gone when the guest is.
    let starting = shared.registry.starting(database, true);
    let packet = service::packet();
    let mut steps = Steps::default();
    let mut beginning = pin!(opening::begin(&shared, database, &packet, &mut steps));
    let begun = match timeout(shared.wake_timeout(), &mut beginning).await {
        Ok(begun) => begun,
        Err(_) => {
            drop(starting);
            // It has a backend, which waits for a lock as every login does then.
            let _ = beginning.await;
            drop(turn);
            return;
        }
    };
    let (Begun { mut stream, rest, .. }, _) = match begun {
        Ok(begun) => begun,
        Err(error) => {
            // Nobody may be there to read it, here and below.
            let _ = reply.send(Err(error));
            return;
        }
    };
    let asked = timeout(service::TIMEOUT, service::query(&mut stream, rest, &sql)).await;
    let _ = reply.send(asked.unwrap_or(Err(ServiceError::Timeout)).map_err(LoginError::from));
    service::close(stream).await;
    drop((turn, starting));
}

/// Strangers that wait for a turn of a guest: as many as the default of guesses in a minute.
const MAX_STRANGERS: usize = 20;

/// One question at a time of each guest: PostgreSQL keeps three places for superusers when clients have taken all others.
/// Of strangers only one waits with those who are known, so that a crowd of them is in nobody's way.
#[derive(Default)]
pub(crate) struct Turns(Mutex<HashMap<DatabaseId, Weak<Lines>>>);

struct Lines {
    turn: Arc<Semaphore>,
    first_stranger: Arc<Semaphore>,
    strangers: Arc<Semaphore>,
}

/// A place in line.
pub(crate) struct Place {
    lines: Arc<Lines>,
    /// A stranger's.
    one_of_many: Option<OwnedSemaphorePermit>,
}

/// A guest may be asked for as long as it is kept.
struct Turn {
    _permits: [Option<OwnedSemaphorePermit>; 3],
    _lines: Arc<Lines>,
}

impl Turns {
    /// Joins the line; `None` if too many strangers are in it.
    pub fn join(&self, database: DatabaseId, is_stranger: bool) -> Option<Place> {
        let mut map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let lines = map.get(&database).and_then(Weak::upgrade).unwrap_or_else(|| {
            map.retain(|_, lines| lines.strong_count() > 0);
            let semaphore = |permits| Arc::new(Semaphore::new(permits));
            let lines = Arc::new(Lines {
                turn: semaphore(1),
                first_stranger: semaphore(1),
                strangers: semaphore(MAX_STRANGERS),
            });
            map.insert(database, Arc::downgrade(&lines));
            lines
        });
        let one_of_many = match is_stranger {
            true => Some(lines.strangers.clone().try_acquire_owned().ok()?),
            false => None,
        };
        Some(Place { lines, one_of_many })
    }
}

impl Place {
    async fn turn(self) -> Turn {
        let Place { lines, one_of_many } = self;
        // No semaphore is ever closed.
        let first = match &one_of_many {
            Some(_) => lines.first_stranger.clone().acquire_owned().await.ok(),
            None => None,
        };
        let turn = lines.turn.clone().acquire_owned().await.ok();
        Turn { _permits: [one_of_many, first, turn], _lines: lines }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(letter: &str) -> DatabaseId {
        format!("db_{}", letter.repeat(20)).parse().unwrap()
    }

    #[tokio::test]
    async fn one_turn_at_a_time_of_each_database_and_none_is_remembered() {
        let turns = Turns::default();
        let take = |letter| turns.join(id(letter), false).unwrap().turn();
        let first = take("a").await;
        let other = take("b").await;
        let mut second = Box::pin(take("a"));
        assert!(futures_util::poll!(second.as_mut()).is_pending());
        drop(first);
        let second = second.await;
        drop((second, other));
        drop(take("c").await);
        assert_eq!(turns.0.lock().unwrap().len(), 1);
    }

    #[tokio::test]
    async fn those_who_are_known_wait_for_one_stranger_at_most() {
        let turns = Turns::default();
        let busy = turns.join(id("a"), false).unwrap().turn().await;
        let strangers: Vec<_> = (0..MAX_STRANGERS).map(|_| turns.join(id("a"), true).unwrap()).collect();
        assert!(turns.join(id("a"), true).is_none());
        assert!(turns.join(id("b"), true).is_some());
        let mut strangers: Vec<_> = strangers.into_iter().map(|place| Box::pin(place.turn())).collect();
        for stranger in &mut strangers {
            assert!(futures_util::poll!(stranger.as_mut()).is_pending());
        }
        let mut known = Box::pin(turns.join(id("a"), false).unwrap().turn());
        assert!(futures_util::poll!(known.as_mut()).is_pending());
        drop(busy);
        let first = strangers.remove(0).await;
        assert!(futures_util::poll!(known.as_mut()).is_pending());
        drop(first);
        drop(known.await);
        drop(strangers);
        // Who leaves makes room.
        assert!(turns.join(id("a"), true).is_some());
    }
}
