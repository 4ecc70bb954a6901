//! A session in a guest, begun for a client: the wake, and the guest's greeting.
//!
//! It goes on by itself, so that it may begin before the client has proven its password: for an address that proved the same
//! role's within the hour, once for each such proof (`guesses`). Nothing of it is told to the client before the proof, and nothing the
//! client says reaches the guest. If there is none, or the client leaves, it is dropped, and with it the guest's end.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::bind::{self, ConnectError};
use crate::guest::{self, BeginError, Begun};
use crate::host::{Availability, DatabaseId, Route, WakeError};
use crate::login::LoginError;
use crate::pooler::Shared;
use crate::registry::{Place, Queued, Registry};
use crate::steps::Steps;
use crate::wire::startup::{self, Request};

/// How long a new session waits for dead ones to be closed, so that they do not take its place in the guest.
const GRAVES_TIMEOUT: Duration = Duration::from_secs(1);

/// The guest's greeting, the life of its memory, and the steps to there.
type Opened = (Begun, String, Steps);

pub(crate) struct Opening {
    place: Place,
    /// While it is kept, the database is not put to sleep.
    _queued: Queued,
    /// One task, which ends with this.
    beginning: JoinSet<Result<Opened, LoginError>>,
}

impl Opening {
    /// Begins a session as `request` says, in a database of which `route` is known.
    pub fn begin(shared: &Arc<Shared>, request: &Request, database: DatabaseId, route: &Route) -> Result<Opening, LoginError> {
        match &route.availability {
            Availability::Usable => {}
            Availability::Deleting => return Err(WakeError::Deleting.into()),
            Availability::Refused(why) => return Err(WakeError::Unavailable(why.clone()).into()),
        }
        let over = |error| {
            shared.metrics.over_limit.add(1);
            error
        };
        let registry: &Arc<Registry> = &shared.registry;
        let place = registry
            .admit(database, route.connection_limit)
            .map_err(|_| over(LoginError::TooManyConnections(database)))?;
        // libpq names the user's database when none is asked for, and here that is not what was meant.
        let name = match &request.database {
            Some(name) if *name != request.user => name,
            _ => &shared.settings.default_database,
        };
        let packet = startup::for_guest(&route.guest_role, name, &request.parameters)?;
        let queued = registry
            .queue(database, shared.settings.max_waiting)
            .map_err(|_| over(LoginError::TooManyWaiting(database)))?;
        let mut beginning = JoinSet::new();
        let shared = shared.clone();
        beginning.spawn(async move {
            let mut steps = Steps::empty();
            let begun = timeout(shared.wake_timeout(), begin(&shared, database, &packet, &mut steps)).await;
            let (begun, epoch) = begun.map_err(|_| LoginError::WakeTimeout)??;
            Ok((begun, epoch, steps))
        });
        Ok(Opening { place, _queued: queued, beginning })
    }

    /// Waits for the guest's greeting, once.
    pub async fn begun(&mut self) -> Result<Opened, LoginError> {
        match self.beginning.join_next().await {
            Some(Ok(begun)) => begun,
            // Its runtime ends, or it panicked, which has been told of.
            Some(Err(_)) | None => Err(LoginError::ShuttingDown),
        }
    }

    /// The place under its database's limit, once it is a session.
    pub fn into_place(self) -> Place {
        self.place
    }
}

/// Wakes, and lets the guest greet. A VMM that has just ended is asked for once more.
pub(crate) async fn begin(
    shared: &Arc<Shared>,
    database: DatabaseId,
    packet: &[u8],
    steps: &mut Steps,
) -> Result<(Begun, String), LoginError> {
    let mut tried = false;
    loop {
        steps.note("wake_asked");
        let greet = async |socket: Arc<Path>| {
            let life = shared.registry.life(database);
            Some((guest::begin(&socket, packet).await.ok()?, life))
        };
        let (early, waking) = bind::wake_and(shared, database, greet).await;
        let awake = waking.await?;
        // What was begun in a life that ended before the wake was answered is of no use.
        let early = early.filter(|(_, life)| *life == shared.registry.life(database)).map(|(begun, _)| begun);
        steps.note("pooler_told");
        if let Some(burying) = bind::buried(shared, database, &awake) {
            // Only politeness: it goes on when this does not wait for it.
            let _ = timeout(GRAVES_TIMEOUT, burying).await;
        }
        let begun = match early {
            Some(begun) => Ok(begun),
            None => guest::begin(&awake.socket, packet).await,
        };
        match begun {
            Ok(begun) => {
                steps.note("session_begun");
                return Ok((begun, awake.epoch));
            }
            Err(BeginError::Connect(ConnectError::Unreachable(error))) if !tried => {
                tracing::debug!(%database, %error, "woken VMM is not there, asking again");
                tried = true;
            }
            Err(error) => return Err(error.into()),
        }
    }
}
