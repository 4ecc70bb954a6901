//! Connections to a VMM, and what is done with one that is not a new session: binding an old session again, burying
//! one whose client went away, passing on a cancel request.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::BytesMut;
use pgwire::messages::Message;
use pgwire::messages::cancel::CancelRequest;
use pgwire::messages::startup::SecretKey;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::host::{Awake, BoxFuture, DatabaseId, WakeError};
use crate::pooler::Shared;
use crate::registry::{Graves, SessionCounts, Starting};
use crate::session::{End, Session};
use crate::socket::short_path;
use crate::steps::{Steps, monotonic_us};
use crate::wire::hello::{self, Answer, Hello, Status};

/// How long sessions with nothing to say let those go first that have.
const HEAD_START: Duration = Duration::from_millis(100);
/// For burying one session.
const BURY_TIMEOUT: Duration = Duration::from_secs(2);

/// Why there is no connection to the guest.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error("cannot reach the VMM: {0}")]
    Unreachable(#[from] io::Error),
    #[error(transparent)]
    NotAnAnswer(#[from] hello::NotAnAnswer),
    #[error("the VMM answers {0:?}")]
    Refused(Status),
}

/// Why a held session cannot go on.
pub(crate) struct Failure {
    pub end: End,
    /// The guest's end of it is still in a snapshot, and is to be closed at a later wake.
    pub in_snapshot: bool,
}

/// Connects to `VMM.sock` and says which session this is.
pub(crate) async fn connect(socket: &Path, hello: Hello) -> Result<(UnixStream, Answer), ConnectError> {
    connect_and_say(socket, hello, &[]).await
}

/// The same, and says something to the guest in the same breath, which lies there when the guest takes the connection.
pub(crate) async fn connect_and_say(
    socket: &Path,
    hello: Hello,
    words: &[u8],
) -> Result<(UnixStream, Answer), ConnectError> {
    hear(say(socket, hello, words).await?).await
}

async fn say(socket: &Path, hello: Hello, words: &[u8]) -> io::Result<UnixStream> {
    // Kept open until connected: the path may go through it.
    let (path, _folder) = short_path(socket)?;
    let mut stream = UnixStream::connect(path).await?;
    stream.write_all(&[&hello.encode(), words].concat()).await?;
    Ok(stream)
}

async fn hear(mut stream: UnixStream) -> Result<(UnixStream, Answer), ConnectError> {
    let mut answer = [0; hello::LEN];
    stream.read_exact(&mut answer).await?;
    let answer = Answer::decode(&answer)?;
    match answer.status {
        Status::Done => Ok((stream, answer)),
        status => Err(ConnectError::Refused(status)),
    }
}

/// Asks the host, and counts it.
pub(crate) async fn wake(shared: &Shared, database: DatabaseId) -> Result<Awake, WakeError> {
    shared.metrics.wakes.add(1);
    loop {
        let woken = shared.host.wake(database).await;
        if let Err(error) = &woken {
            shared.metrics.wake_errors.add(1);
            tracing::info!(%database, %error, "database could not be woken");
        } else if shared.registry.settled(database).await {
            // A suspend began after the host had answered, so the answer may be of a life that is over.
            continue;
        }
        return woken;
    }
}

/// A held session's new connection.
pub(crate) struct Bound {
    pub guest: UnixStream,
    /// So many of its client's bytes have been said on it.
    pub said: usize,
    pub steps: Steps,
}

/// Wakes the database, unless it is known to be `awake`, and binds a held session again; with its client's first `words`, where it
/// comes early enough for them to lie before the guest when that runs. A connection refused by a VMM that has just ended is tried
/// once more, by a new wake.
pub(crate) async fn again(
    shared: Arc<Shared>,
    session: Arc<Session>,
    mut awake: Option<Arc<Awake>>,
    words: Vec<u8>,
    mut steps: Steps,
) -> Result<Bound, Failure> {
    let database = session.database;
    // Only told that it is awake, and with nothing to say: it need not come before those who woke it.
    let nudged = awake.is_some();
    let starting = shared.registry.starting(database, !nudged);
    let lost = |why: &dyn std::fmt::Display| {
        tracing::info!(%database, session = session.number(), %why, "session is gone");
        shared.metrics.lost.add(1);
        Failure { end: End::restarted(), in_snapshot: false }
    };
    let offered = AtomicBool::new(false);
    let attempt = async {
        let mut tried = false;
        if nudged {
            // A head start, not a right: where clients come all the time, they must not starve this one.
            let _ = timeout(HEAD_START, shared.registry.after_the_urgent(database)).await;
        }
        loop {
            let awake = match awake.take() {
                Some(awake) => awake,
                None => {
                    steps.note("wake_asked");
                    let bind = async |socket: Arc<Path>| {
                        offered.store(true, Ordering::Relaxed);
                        let bound = bind_early(&session, &socket, &words, &mut steps).await;
                        offered.store(false, Ordering::Relaxed);
                        bound
                    };
                    let (stream, waking) = wake_and(&shared, database, bind).await;
                    if let Some(stream) = stream {
                        shared.metrics.bound.add(1);
                        steps.note("session_bound");
                        return Ok((stream, words.len(), Some(waking)));
                    }
                    Arc::new(waking.await.map_err(|error| Failure {
                        end: if offered.load(Ordering::Relaxed) { unanswered() } else { End::new(error.sqlstate(), error.to_string()) },
                        in_snapshot: !matches!(error, WakeError::Deleting),
                    })?)
                }
            };
            steps.note("pooler_told");
            if *session.epoch != *awake.epoch {
                buried(&shared, database, &awake);
                return Err(lost(&"the database was started anew"));
            }
            let SessionCounts { session: number, sent, received } = session.counts();
            match connect(&awake.socket, Hello::Bind { session: number, sent, received }).await {
                Ok((stream, _)) => {
                    shared.metrics.bound.add(1);
                    steps.note("session_bound");
                    buried(&shared, database, &awake);
                    return Ok((stream, 0, None));
                }
                Err(ConnectError::Unreachable(error)) if !tried => {
                    tracing::debug!(%database, %error, "woken VMM is not there, asking again");
                    tried = true;
                }
                Err(error) => return Err(lost(&error)),
            }
        }
    };
    let (guest, said, waking) = match timeout(shared.wake_timeout(), attempt).await {
        Ok(result) => result?,
        Err(_) if offered.load(Ordering::Relaxed) => return Err(Failure { end: unanswered(), in_snapshot: true }),
        Err(_) => {
            return Err(Failure { end: End::new("57P03", "the database did not wake in time; try again"), in_snapshot: true });
        }
    };
    if let Some(waking) = waking {
        // Until the host has answered, the database is not to be put to sleep.
        tokio::spawn(async move {
            if let Ok(Ok(awake)) = timeout(shared.wake_timeout(), waking).await {
                buried(&shared, database, &awake);
            }
            drop(starting);
        });
    }
    Ok(Bound { guest, said, steps })
}

/// Of a client whose words are on their way to a guest that may have them: if it tried again they might be carried out twice.
fn unanswered() -> End {
    End::new("57P01", "terminating connection because the database did not answer; reconnect")
}

/// The answer to a wake, as it is or to come.
pub(crate) type Waking = BoxFuture<'static, Result<Awake, WakeError>>;

/// Wakes the database, and does `early` as soon as there is a VMM for it, so that what was said there lies before the guest when it
/// runs. What does not come about early, `None`, is left to be done when the host has answered.
pub(crate) async fn wake_and<T, F: Future<Output = Option<T>>>(
    shared: &Arc<Shared>,
    database: DatabaseId,
    early: impl FnOnce(Arc<Path>) -> F,
) -> (Option<T>, Waking) {
    let asking = shared.clone();
    let mut waking: Waking = Box::pin(async move { wake(&asking, database).await });
    let under_way = AtomicBool::new(false);
    let early = async {
        let socket = shared.registry.listening(database).await;
        under_way.store(true, Ordering::Relaxed);
        let done = early(socket).await;
        under_way.store(false, Ordering::Relaxed);
        done
    };
    tokio::pin!(early);
    tokio::select! {
        biased;
        Some(done) = &mut early => (Some(done), waking),
        woken = &mut waking => {
            // A connection that has said whose it is must not be dropped: the session would end with it.
            let done = if woken.is_ok() && under_way.load(Ordering::Relaxed) { early.await } else { None };
            (done, Box::pin(std::future::ready(woken)))
        }
    }
}

/// Binds a session to a VMM of which it is not known yet which life of the guest it has. If that comes to nothing, the guest has
/// none of the words: it is answered before they are looked at.
async fn bind_early(session: &Session, socket: &Path, words: &[u8], steps: &mut Steps) -> Option<UnixStream> {
    let SessionCounts { session: number, sent, received } = session.counts();
    let epoch = hello::epoch(&session.epoch)?;
    let said = say(socket, Hello::BindIn { session: number, sent, received, epoch }, words).await.ok()?;
    let at = monotonic_us();
    let (bound, _) = hear(said).await.ok()?;
    steps.note_at("query_passed_on", at);
    Some(bound)
}

/// Tells the registry that a database is awake, and sees to the sessions that died in its sleep.
pub(crate) fn buried(shared: &Arc<Shared>, database: DatabaseId, awake: &Awake) -> Option<tokio::task::JoinHandle<()>> {
    let graves = shared.registry.woke(database, awake)?;
    let starting = shared.registry.starting(database, false);
    Some(tokio::spawn(bury(database, graves, starting)))
}

/// Binds each dead session once more and closes it, so that its backend ends.
pub(crate) async fn bury(database: DatabaseId, graves: Graves, starting: Starting) {
    for dead in graves.dead {
        let c = dead.counts;
        let hello = Hello::Bind { session: c.session, sent: c.sent, received: c.received };
        let close = async {
            let (mut stream, _) = connect(&graves.socket, hello).await?;
            stream.shutdown().await?;
            Ok::<(), ConnectError>(())
        };
        match timeout(BURY_TIMEOUT, close).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::info!(%database, session = c.session, %error, "dead session not closed"),
            Err(_) => tracing::info!(%database, session = c.session, "dead session not closed in time"),
        }
    }
    drop(starting);
}

/// Passes a cancel request to the guest and waits until it is through, which the guest shows by closing.
pub(crate) async fn cancel(shared: &Arc<Shared>, session: &Session) {
    let Some((_starting, socket)) = shared.registry.cancel_target(session) else { return };
    let key = &session.key;
    let request = CancelRequest::new(key.process, SecretKey::Bytes(key.guest_secret.to_vec().into()));
    let mut packet = BytesMut::new();
    if request.encode(&mut packet).is_err() {
        return;
    }
    let pass = async {
        let (mut stream, _) = connect(&socket, Hello::New).await?;
        stream.write_all(&packet).await?;
        let mut unread = [0; 64];
        while stream.read(&mut unread).await? > 0 {}
        Ok::<(), ConnectError>(())
    };
    shared.metrics.cancels.add(1);
    match timeout(Duration::from_millis(shared.settings.cancel_timeout_ms), pass).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::info!(database = %session.database, %error, "cancel request not passed on"),
        Err(_) => tracing::info!(database = %session.database, "cancel request took too long"),
    }
}
