//! The listener, and what all connections share.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpStream};

use crate::certificate::{self, CertificateError, Tls};
use crate::guesses::Guesses;
use crate::host::Host;
use crate::keys::Keys;
use crate::login;
use crate::metrics::Metrics;
use crate::registry::Registry;
use crate::roles::Turns;
use crate::sessions::Sessions;
use crate::settings::Settings;
use crate::verifier::Key;

/// Connections beyond `max_clients` that are still told why they are refused; further ones are cut off.
const TOLD_BEYOND_LIMIT: i64 = 64;
/// Pause after accept failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
const BACKLOG: i32 = 4096;

/// Why the pooler cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("cannot listen on {0} (setting pooler.listen): {1}")]
    Listen(SocketAddr, io::Error),
    #[error(transparent)]
    Certificate(#[from] CertificateError),
}

/// What every connection needs.
pub(crate) struct Shared {
    pub settings: Settings,
    pub host: Arc<dyn Host>,
    pub registry: Arc<Registry>,
    pub keys: Keys,
    pub tls: Option<Tls>,
    /// Behind the verifiers of users that do not exist.
    pub mock: Key,
    pub guesses: Guesses,
    /// One question about roles at a time, of each guest.
    pub turns: Turns,
    pub metrics: Arc<Metrics>,
}

impl Shared {
    pub fn wake_timeout(&self) -> Duration {
        Duration::from_millis(self.settings.wake_timeout_ms)
    }

    pub fn farewell_timeout(&self) -> Duration {
        Duration::from_millis(self.settings.farewell_timeout_ms)
    }
}

/// A client's place among all clients of the pooler.
pub(crate) struct Slot {
    metrics: Arc<Metrics>,
    beyond_limit: bool,
}

impl Slot {
    /// `None` when there are so many that one more is not even told.
    fn take(metrics: &Arc<Metrics>, max: usize) -> Option<Slot> {
        metrics.clients.add(1);
        let beyond = metrics.clients.get() - max as i64;
        let slot = Slot { metrics: metrics.clone(), beyond_limit: beyond > 0 };
        (beyond <= TOLD_BEYOND_LIMIT).then_some(slot)
    }

    pub fn is_beyond_limit(&self) -> bool {
        self.beyond_limit
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.metrics.clients.add(-1);
    }
}

/// A bound listener.
///
/// It may be served by one runtime, or by several at once, each with a [`Pooler::try_clone`] of it: sessions and
/// databases know no runtime. A current-thread runtime for each core costs less than one that steals work.
pub struct Pooler {
    shared: Arc<Shared>,
    // Not tokio's: that would belong to the runtime that bound it.
    listener: std::net::TcpListener,
}

impl Pooler {
    /// Loads or makes the certificate, raises the limit on descriptors and listens. `sessions` is the host's handle.
    pub async fn bind(mut settings: Settings, host: Arc<dyn Host>, sessions: &Sessions) -> Result<Pooler, StartError> {
        settings.max_clients = raise_descriptor_limit(settings.max_clients);
        let tls = settings.tls.then(|| certificate::load(&settings)).transpose()?;
        let mock = certificate::mock_secret(&settings)?;
        let address = settings.listen;
        let listener = listen(address).map_err(|e| StartError::Listen(address, e))?;
        let shared = Shared {
            host,
            registry: sessions.registry.clone(),
            keys: Keys::default(),
            tls,
            mock,
            guesses: Guesses::new(settings.password_guesses, settings.cancel_guesses),
            turns: Turns::default(),
            metrics: sessions.metrics.clone(),
            settings,
        };
        Ok(Pooler { shared: Arc::new(shared), listener })
    }

    /// Where it listens.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// The same listener once more, to be served by another runtime. Each client is taken by one of them.
    pub fn try_clone(&self) -> io::Result<Pooler> {
        Ok(Pooler { shared: self.shared.clone(), listener: self.listener.try_clone()? })
    }

    /// Takes clients until [`Sessions::drain`] is called. Those taken live on in tasks of the current runtime.
    pub async fn serve(self) {
        let listener = match self.listener.try_clone().and_then(TcpListener::from_std) {
            Ok(listener) => listener,
            Err(error) => {
                tracing::error!(%error, "cannot serve: the listener does not fit this runtime");
                return;
            }
        };
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = self.shared.registry.draining() => return,
            };
            match accepted {
                Ok((tcp, peer)) => self.take(tcp, peer),
                Err(error) => {
                    // Out of descriptors or memory, or a client that was gone at once. The first two pass.
                    tracing::warn!(%error, "cannot accept");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn take(&self, tcp: TcpStream, peer: SocketAddr) {
        let metrics = &self.shared.metrics;
        metrics.accepted.add(1);
        let Some(slot) = Slot::take(metrics, self.shared.settings.max_clients) else {
            metrics.over_limit.add(1);
            return;
        };
        if let Err(error) = configure(&tcp, self.shared.settings.keepalive_ms) {
            tracing::debug!(%peer, %error, "client was gone at once");
            return;
        }
        tokio::spawn(login::serve(self.shared.clone(), tcp, peer, slot));
    }
}

fn listen(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // Not SO_REUSEPORT, with which a second server would share the port without a word.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn configure(tcp: &TcpStream, keepalive_ms: u64) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    if keepalive_ms > 0 {
        let idle = Duration::from_millis(keepalive_ms);
        SockRef::from(tcp).set_tcp_keepalive(&TcpKeepalive::new().with_time(idle))?;
    }
    Ok(())
}

/// A soft limit of 1,024 makes clients hang without a word: raises it as far as is allowed, and gives the number of
/// clients that there are descriptors for.
fn raise_descriptor_limit(max_clients: usize) -> usize {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })
    {
        tracing::warn!(%error, "cannot raise the limit on open files");
    }
    let have = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let possible = clients_for(have);
    if possible < max_clients {
        tracing::info!(open_files = have, possible, max_clients, "max_clients is lowered to what open files allow");
    }
    max_clients.min(possible)
}

/// Three descriptors for each client that is awake, the third while its guest takes no more, after some for everything
/// else in the process.
fn clients_for(descriptors: u64) -> usize {
    let others = 1024.min(descriptors / 4);
    usize::try_from((descriptors - others) / 3).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::clients_for;

    #[test]
    fn clients_by_descriptors() {
        assert_eq!(clients_for(1024), 256);
        assert_eq!(clients_for(20_000), 6_325);
        assert!(clients_for(u64::MAX) > 1 << 40);
        assert_eq!(clients_for(0), 0);
    }
}
