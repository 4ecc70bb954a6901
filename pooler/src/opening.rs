//! A session in a guest, begun for a client: the wake, and the guest's greeting.
//!
//! It goes on by itself, so that it may begin before the client has proven its password: for who asks for the very same, from the same
//! address, as was proven within the hour, once for each such proof (`guesses`). Nothing of it is told to the client before the
//! proof, and it is kept for a few seconds only. If the proof is wrong, or does not come, it is dropped, and with it the guest's end.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::{JoinError, JoinSet};
use tokio::time::{sleep, timeout};

use crate::bind::{self, ConnectError};
use crate::guest::{self, BeginError, Begun};
use crate::host::{Availability, DatabaseId, Route, WakeError};
use crate::login::{Line, LoginError};
use crate::pooler::Shared;
use crate::registry::{Place, Queued};
use crate::steps::Steps;
use crate::wire::startup::{self, Request};

/// How long a new session waits for dead ones to be closed, so that they do not take its place in the guest.
const GRAVES_TIMEOUT: Duration = Duration::from_secs(1);

/// A session that the guest has let in.
pub(crate) struct Opened {
    pub begun: Begun,
    /// The life of the guest's memory.
    pub epoch: String,
    /// To here.
    pub steps: Steps,
    /// Which of its database's VMMs has it.
    life: u64,
    /// Behind what the guest has of it: that goes first.
    pub place: Place,
    /// While it is kept, the database is not put to sleep.
    pub queued: Queued,
}

type Outcome = Result<Opened, LoginError>;

pub(crate) struct Opening {
    database: DatabaseId,
    /// One task, which ends with this.
    beginning: JoinSet<Outcome>,
    /// What came of it, if somebody has looked.
    done: Option<Opened>,
}

impl Opening {
    /// Begins a session as `request` says, in a database of which `route` is known.
    pub fn begin(shared: &Arc<Shared>, request: &Request, database: DatabaseId, route: &Route) -> Result<Opening, LoginError> {
        match &route.availability {
            Availability::Usable => {}
            Availability::Deleting => return Err(WakeError::Deleting.into()),
            Availability::Refused(why) => return Err(WakeError::Unavailable(why.clone()).into()),
        }
        let too_many = |_| LoginError::TooManyConnections(database);
        let place = shared.registry.admit(database, route.connection_limit).map_err(too_many)?;
        // libpq names the user's database when none is asked for, and here that is not what was meant.
        let name = match &request.database {
            Some(name) if *name != request.user => name,
            _ => &shared.settings.default_database,
        };
        let packet = startup::for_guest(&route.guest_role, name, &request.parameters)?;
        let too_many = |_| LoginError::TooManyWaiting(database);
        let queued = shared.registry.queue(database, shared.settings.max_waiting).map_err(too_many)?;
        let mut beginning = JoinSet::new();
        let shared = shared.clone();
        beginning.spawn(async move {
            let (place, queued) = (place, queued);
            let mut steps = Steps::empty();
            let begun = timeout(shared.wake_timeout(), begin(&shared, database, &packet, &mut steps)).await;
            let (begun, epoch) = begun.map_err(|_| LoginError::WakeTimeout)??;
            Ok(Opened { begun, epoch, steps, life: shared.registry.life(database), place, queued })
        });
        Ok(Opening { database, beginning, done: None })
    }

    /// Begins one for a client that computes its proof, if it may be: `route` is where it leads, if anywhere.
    pub fn ahead(
        shared: &Arc<Shared>,
        request: &Request,
        peer: SocketAddr,
        (database, route): (DatabaseId, Option<&Route>),
    ) -> Option<Opening> {
        let route = route.filter(|_| shared.settings.begin_ahead_ms > 0)?;
        // What keeps it from beginning is told to a client that has proven its password.
        shared.guesses.may_begin(database, request, peer).then(|| Opening::begin(shared, request, database, route).ok())?
    }

    /// Keeps it beside the proof, but not for longer than a client without one may have it.
    pub async fn beside<T>(
        self,
        shared: &Shared,
        proving: impl Future<Output = Result<T, LoginError>>,
    ) -> Result<(T, Option<Opening>), LoginError> {
        tokio::pin!(proving);
        let long_enough = async {
            tokio::select! {
                () = sleep(Duration::from_millis(shared.settings.begin_ahead_ms)) => {}
                () = shared.registry.draining() => {}
            }
        };
        tokio::select! {
            biased;
            proven = &mut proving => return Ok((proven?, Some(self))),
            () = long_enough => drop(self),
        }
        Ok((proving.await?, None))
    }

    /// Itself, unless it has failed, or been let in by a VMM that is gone: begun again it may succeed.
    pub fn unless_stale(mut self, shared: &Shared) -> Option<Opening> {
        if let Some(done) = self.beginning.try_join_next() {
            let opened = outcome(done).ok().filter(|opened| shared.registry.lives(self.database, opened.life))?;
            self.done = Some(opened);
        }
        Some(self)
    }

    /// Waits for what comes of it, or for its client to leave.
    pub async fn opened(mut self, line: &mut Line) -> Outcome {
        if let Some(opened) = self.done {
            return Ok(opened);
        }
        tokio::select! {
            Some(done) = self.beginning.join_next() => outcome(done),
            gone = line.gone() => Err(gone),
        }
    }
}

fn outcome(done: Result<Outcome, JoinError>) -> Outcome {
    done.unwrap_or_else(|error| match error.is_cancelled() {
        true => Err(LoginError::ShuttingDown),
        // A panic, which has been told of.
        false => Err(LoginError::Guest(BeginError::Closed)),
    })
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
            // Nothing of a session that was not let in has been carried out.
            Err(error @ (BeginError::Closed | BeginError::Connect(ConnectError::Unreachable(_)))) if !tried => {
                tracing::info!(%database, %error, "a woken VMM let go of a new session, asking again");
                tried = true;
            }
            Err(error) => return Err(error.into()),
        }
    }
}
