//! From accept to a session: TLS, startup packet, password, wake, the guest's own startup.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};

use crate::bind::{self, ConnectError};
use crate::buffer::{self, Buffer};
use crate::certificate::ALPN;
use crate::client::Client;
use crate::farewell;
use crate::forward::Forward;
use crate::guest::{BeginError, Begun};
use crate::host::{DatabaseId, WakeError};
use crate::opening::{Opened, Opening};
use crate::password;
use crate::pooler::{Shared, Slot};
use crate::session::{Key, Session};
use crate::settings::Plain;
use crate::steps::Steps;
use crate::wire::startup::{self, First, Request, StartupError};
use crate::wire::{answer, hello::Status};

/// First byte of a TLS record with a handshake: no startup packet is that long.
const TLS_HANDSHAKE: u8 = 0x16;

/// Why a client does not get a session. What the client may read is in `fatal`; the rest goes to the log.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoginError {
    #[error("client went away")]
    Gone,
    #[error("client: {0}")]
    Io(#[from] std::io::Error),
    #[error("TLS: {0}")]
    Tls(std::io::Error),
    #[error(transparent)]
    Startup(#[from] StartupError),
    #[error("received unencrypted data after SSL request")]
    ClearAfterSsl,
    #[error("received direct SSL connection request without ALPN protocol negotiation extension")]
    NoAlpn,
    #[error("plain connection from {0} refused")]
    PlainRefused(SocketAddr),
    #[error("user {0:?} names no database")]
    NoDatabaseInUser(String),
    #[error("{0}")]
    Protocol(String),
    #[error("password authentication failed for user {0:?}")]
    Password(String),
    #[error("too many wrong passwords from {0} for database {1}")]
    TooManyGuesses(SocketAddr, DatabaseId),
    #[error("the guest cannot be asked for a role: {0}")]
    Ask(Box<LoginError>),
    #[error("the guest does not say who may log in: {0}")]
    Service(#[from] crate::service::ServiceError),
    #[error("metadata: {0}")]
    Lookup(#[from] crate::host::HostError),
    #[error("took too long")]
    Timeout,
    #[error("too many clients of the pooler")]
    TooManyClients,
    #[error("too many connections for database {0}")]
    TooManyConnections(DatabaseId),
    #[error("too many clients wait for database {0}")]
    TooManyWaiting(DatabaseId),
    #[error("wake: {0}")]
    Wake(#[from] WakeError),
    #[error("database did not wake in time")]
    WakeTimeout,
    #[error("shutting down")]
    ShuttingDown,
    #[error(transparent)]
    Guest(#[from] BeginError),
    #[error("the system has no random bytes")]
    NoRandomness,
}

impl LoginError {
    /// Whether it is for want of a place.
    fn is_limit(&self) -> bool {
        matches!(self, LoginError::TooManyConnections(_) | LoginError::TooManyWaiting(_))
    }

    /// The last message to the client: `None` where there is none to send or nobody to read it.
    fn fatal(&self) -> Option<BytesMut> {
        use LoginError::*;
        let text = self.to_string();
        let (sqlstate, message, hint) = match self {
            Gone | Io(_) | Tls(_) => return None,
            Startup(e) => (e.sqlstate(), text, None),
            ClearAfterSsl => (
                "08P01",
                text,
                Some("This could be either a client-software bug or evidence of an attempted man-in-the-middle attack."),
            ),
            NoAlpn | Protocol(_) => ("08P01", text, None),
            PlainRefused(_) => (
                "28000",
                "connections without TLS are not allowed from this address".into(),
                Some("Connect with sslmode=require, or sslmode=verify-full and the server's certificate."),
            ),
            NoDatabaseInUser(user) => (
                "28000",
                format!("user name \"{user}\" does not name a database"),
                Some("The user is ROLE.DATABASE-ID, as in the connection string: app.db_0123456789abcdefghij"),
            ),
            Password(user) => ("28P01", format!("password authentication failed for user \"{user}\""), None),
            TooManyGuesses(..) => ("53400", "too many failed logins; try again in a minute".into(), None),
            Lookup(_) | Ask(_) | Service(_) => ("57P03", "the server cannot check passwords at the moment; try again".into(), None),
            Timeout => ("57014", "canceling authentication due to timeout".into(), None),
            TooManyClients => ("53300", "sorry, too many clients already".into(), None),
            // As Postgres says it: clients know the words.
            TooManyConnections(_) => ("53300", "sorry, too many clients already".into(), None),
            TooManyWaiting(_) => ("53300", "too many clients wait for this database to wake; try again".into(), None),
            Wake(e) => (e.sqlstate(), e.to_string(), None),
            WakeTimeout => ("57P03", "the database did not wake in time; try again".into(), None),
            ShuttingDown => ("57P03", "the database system is shutting down".into(), None),
            Guest(BeginError::Refused(message)) => return Some(message.clone()),
            Guest(BeginError::NoProcess | BeginError::Connect(ConnectError::Refused(Status::RefusedByGuest))) => {
                ("53300", "the database takes no more connections at the moment; try again".into(), None)
            }
            Guest(BeginError::Connect(_) | BeginError::Closed) => {
                ("57P03", "the database cannot be reached at the moment; try again".into(), None)
            }
            Guest(_) => ("58000", "the database answered in a way that the server does not understand".into(), None),
            NoRandomness => ("58000", text, None),
        };
        Some(answer::fatal(sqlstate, &message, hint))
    }
}

/// A client that is not a session yet: its stream and what it has said so far.
pub(crate) struct Line {
    /// Absent only while TLS is being set up, or after that failed.
    client: Option<Client>,
    buffer: BytesMut,
}

impl Line {
    fn client(&mut self) -> Result<&mut Client, LoginError> {
        self.client.as_mut().ok_or(LoginError::Gone)
    }

    pub fn is_tls(&self) -> bool {
        self.client.as_ref().is_some_and(Client::is_tls)
    }

    pub fn buffer(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    /// Reads some more. Cancel-safe.
    pub async fn read(&mut self) -> Result<(), LoginError> {
        let Line { client, buffer } = self;
        match client.as_mut().ok_or(LoginError::Gone)?.read_buf(buffer).await {
            Ok(0) => Err(LoginError::Gone),
            Ok(_) => Ok(()),
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => Err(LoginError::Gone),
            Err(e) => Err(e.into()),
        }
    }

    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), LoginError> {
        let client = self.client()?;
        client.write_all(bytes).await?;
        Ok(client.flush().await?)
    }

    /// Waits for the client to go away, keeping what it says meanwhile, up to a bufferful.
    pub async fn gone(&mut self) -> LoginError {
        while self.buffer.len() < buffer::SIZE / 2 {
            if let Err(error) = self.read().await {
                return error;
            }
        }
        std::future::pending().await
    }

    async fn start_tls(&mut self, shared: &Shared) -> Result<(), LoginError> {
        let (Some(tls), Some(Client::Plain(tcp))) = (&shared.tls, self.client.take()) else {
            return Err(LoginError::Gone);
        };
        let stream = tls.acceptor.accept(tcp).await.map_err(LoginError::Tls)?;
        shared.metrics.tls.add(1);
        self.client = Some(Client::Tls(Box::new(stream)));
        Ok(())
    }

    fn alpn(&self) -> Option<&[u8]> {
        match &self.client {
            Some(Client::Tls(stream)) => stream.get_ref().1.alpn_protocol(),
            _ => None,
        }
    }
}

/// Serves one connection from accept to its end.
pub(crate) async fn serve(shared: Arc<Shared>, tcp: TcpStream, peer: SocketAddr, slot: Slot) {
    let mut line = Line { client: Some(Client::Plain(tcp)), buffer: BytesMut::new() };
    match log_in(&shared, &mut line, peer, slot).await {
        // A task of its own, and this one ends: what login needed is not kept for as long as the session.
        Ok(Some(session)) => drop(tokio::spawn(session)),
        Ok(None) => {}
        Err(error) => {
            match &error {
                LoginError::Gone => tracing::trace!(%peer, "went away before login"),
                LoginError::Guest(e) => tracing::warn!(%peer, error = %e, "no session in the guest"),
                LoginError::Ask(e) => tracing::warn!(%peer, error = %e, "the guest cannot be asked for a role"),
                LoginError::Lookup(e) => tracing::error!(%peer, error = %e, "metadata cannot be asked"),
                _ => tracing::debug!(%peer, %error, "refused"),
            }
            if let Some(client) = line.client.take()
                && let Some(last) = error.fatal()
            {
                farewell::say(client, &last, shared.farewell_timeout()).await;
            }
        }
    }
}

async fn log_in(
    shared: &Arc<Shared>,
    line: &mut Line,
    peer: SocketAddr,
    slot: Slot,
) -> Result<Option<Forward>, LoginError> {
    let deadline = Instant::now() + Duration::from_millis(shared.settings.startup_timeout_ms);
    let mut steps = Steps::begin("accepted");
    let first = timeout_at(deadline, greet(shared, line, peer)).await.map_err(|_| LoginError::Gone)?;
    let request = match first {
        Ok(Greeted::Startup(request)) => request,
        Ok(Greeted::Cancel { process, secret }) => {
            // Answered by nothing, as a wrong key is.
            if !shared.guesses.may_cancel(peer) {
                shared.metrics.over_limit.add(1);
                return Ok(None);
            }
            match shared.keys.find(process, &secret) {
                // The client is kept waiting until it is through, as Postgres does: libpq relies on it.
                Some(session) => bind::cancel(shared, &session).await,
                None => {
                    shared.guesses.wrong_key(peer);
                    shared.metrics.stray_cancels.add(1);
                }
            }
            return Ok(None);
        }
        Err(error) => {
            if !matches!(error, LoginError::Gone) {
                shared.metrics.protocol_errors.add(1);
            }
            return Err(error);
        }
    };
    steps.note("startup_read");
    if slot.is_beyond_limit() {
        shared.metrics.over_limit.add(1);
        return Err(LoginError::TooManyClients);
    }
    if shared.registry.is_draining() {
        return Err(LoginError::ShuttingDown);
    }
    let checked = async {
        if let Some(unknown) = &request.negotiate {
            line.write(&answer::negotiate(request.minor, unknown)).await?;
        }
        let Some((role, database)) = startup::split_user(&request.user) else {
            return Err(LoginError::NoDatabaseInUser(request.user.clone()));
        };
        let challenged = password::challenge(shared, line, peer, &request, (role, database)).await?;
        let ahead = Opening::ahead(shared, &request, peer, (database, challenged.route()));
        let proving = password::prove(shared, line, peer, challenged);
        let (route, ahead) = match ahead {
            Some(ahead) => ahead.beside(shared, proving).await?,
            None => (proving.await?, None),
        };
        Ok((database, route, ahead))
    };
    let (database, route, ahead) = timeout_at(deadline, checked).await.map_err(|_| LoginError::Timeout)??;
    steps.note("password_proven");
    let opening = match ahead.and_then(|ahead| ahead.unless_stale(shared)) {
        Some(ahead) => ahead,
        None => Opening::begin(shared, &request, database, &route)
            .inspect_err(|error| shared.metrics.over_limit.add(u64::from(error.is_limit())))?,
    };
    let opened = opening.opened(line).await?;
    let_in(shared, line, request.minor, (database, opened), slot, steps).await.map(Some)
}

/// What a connection turns out to be.
enum Greeted {
    Startup(Request),
    Cancel { process: i32, secret: Vec<u8> },
}

/// TLS or not, and the first packet that says something.
async fn greet(shared: &Shared, line: &mut Line, peer: SocketAddr) -> Result<Greeted, LoginError> {
    if let Client::Plain(tcp) = line.client()? {
        let mut first = [0];
        // Only looked at: if it is TLS, the TLS layer has to read it.
        if tcp.peek(&mut first).await? == 0 {
            return Err(LoginError::Gone);
        }
        if first[0] == TLS_HANDSHAKE {
            line.start_tls(shared).await?;
            if line.alpn() != Some(ALPN) {
                return Err(LoginError::NoAlpn);
            }
        }
    }
    let mut gss_asked = false;
    let mut ssl_asked = line.is_tls();
    loop {
        match startup::take(&mut line.buffer)? {
            None => line.read().await?,
            Some(First::Ssl) if !ssl_asked => {
                ssl_asked = true;
                // What came in the clear behind the request would be taken for something said under TLS.
                if !line.buffer.is_empty() {
                    return Err(LoginError::ClearAfterSsl);
                }
                if shared.tls.is_some() {
                    line.write(b"S").await?;
                    line.start_tls(shared).await?;
                } else {
                    line.write(b"N").await?;
                }
            }
            Some(First::Gss) if !gss_asked && !line.is_tls() => {
                gss_asked = true;
                if !line.buffer.is_empty() {
                    return Err(LoginError::ClearAfterSsl);
                }
                line.write(b"N").await?;
            }
            // Asked a second time, or under TLS: Postgres takes it for a protocol version, too.
            Some(First::Ssl) => return Err(StartupError::Version(1234, 5679).into()),
            Some(First::Gss) => return Err(StartupError::Version(1234, 5680).into()),
            Some(First::Cancel { process, secret }) => return Ok(Greeted::Cancel { process, secret }),
            Some(First::Startup(request)) => {
                let allowed = match shared.settings.plain {
                    Plain::Always => true,
                    Plain::Loopback => peer.ip().to_canonical().is_loopback(),
                    Plain::Never => false,
                };
                if !line.is_tls() && !allowed {
                    return Err(LoginError::PlainRefused(peer));
                }
                return Ok(Greeted::Startup(request));
            }
        }
    }
}

/// Lets a client that has proven its password into the session that was begun for it.
async fn let_in(
    shared: &Arc<Shared>,
    line: &mut Line,
    minor: u16,
    (database, opened): (DatabaseId, Opened),
    slot: Slot,
    mut steps: Steps,
) -> Result<Forward, LoginError> {
    let Opened { begun, epoch, steps: of_beginning, place, queued, .. } = opened;
    steps.join(of_beginning);
    let Begun { stream, counts, before_key, after_key, rest, process, secret } = begun;
    let session = shared
        .keys
        .issue(minor, process, |own_secret| {
            let guest_secret = secret.to_bytes().as_ref().into();
            let key = Key { process, secret: own_secret, guest_secret };
            Session::new(database, epoch.as_str().into(), counts, key)
        })
        .map_err(|_| LoginError::NoRandomness)?;

    let mut ready = before_key;
    ready.extend_from_slice(&answer::key_data(session.key.process, &session.key.secret));
    ready.extend_from_slice(&after_key);
    if session.state().track.guest_bytes(&rest).is_err() {
        shared.keys.remove(&session);
        return Err(LoginError::Guest(BeginError::TooMuch));
    }
    ready.extend_from_slice(&rest);
    let welcome = Welcome { shared: shared.clone(), session: session.clone(), kept: false };
    // While it does not read this, its database cannot sleep.
    let written = timeout(Duration::from_millis(shared.settings.startup_timeout_ms), line.write(&ready)).await;
    written.map_err(|_| LoginError::Gone)??;
    steps.note("first_byte_back");
    shared.host.answered(database, steps.take().unwrap_or_default());
    let said = Buffer::holding(&line.buffer)
        .ok_or_else(|| LoginError::Protocol("too much was sent before the server was ready".into()))?;
    let client = line.client.take().ok_or(LoginError::Gone)?;
    welcome.keep();
    let forward = Forward::new(shared.clone(), session, client, stream, said, (place, slot));
    // Now that it is counted as a session, it need not be counted as one that starts.
    drop(queued);
    Ok(forward)
}

/// Takes a key back if its client does not live to see it.
struct Welcome {
    shared: Arc<Shared>,
    session: Arc<Session>,
    kept: bool,
}

impl Welcome {
    fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Welcome {
    fn drop(&mut self) {
        if !self.kept {
            self.shared.keys.remove(&self.session);
        }
    }
}
