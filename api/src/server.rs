//! The all-in-one server: lock, metadata, host, pooler, API, in that order, and back.
//!
//! Refuses a home that another server holds, ports that are taken, and a machine without a usable `/dev/kvm`,
//! each before anything is changed.

use std::fs;
use std::io::{self, Seek, Write};
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::Arc;

use dormouse_pooler as pooler;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::front::Front;
use crate::host::Host;
use crate::host::layout::Home;
use crate::http::{Api, ApiParts, Console, router};
use crate::metadata::{Metadata, MetadataError, StateJournal};
use crate::secret::{ADMIN_KEY_PREFIX, load_or_create, new_key};
use crate::settings::Settings;

/// Why the server does not start. Each message says what to do.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("{0}")]
    Home(io::Error),
    #[error(
        "another server{pid} runs on {home}: stop it, or give this one a home of its own (setting home: --home, DORMOUSE_HOME)"
    )]
    Locked { home: PathBuf, pid: String },
    #[error(
        "cannot listen on {address} (setting api.listen): {source}. Stop what uses the port, or choose another: \
         --api-listen, DORMOUSE_API_LISTEN"
    )]
    Listen { address: SocketAddr, source: io::Error },
    #[error("{0}. Stop what uses the port, or choose another: --pooler-listen, DORMOUSE_POOLER_LISTEN")]
    Pooler(pooler::StartError),
    #[error(transparent)]
    PoolerOther(pooler::StartError),
    #[error(
        "/dev/kvm cannot be used: {0}. Dormouse runs each database in a virtual machine: load the KVM modules \
         (kvm_intel or kvm_amd), and give this user read and write access to /dev/kvm (group kvm)"
    )]
    NoKvm(io::Error),
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    #[error("{what}: {source}")]
    Io { what: PathBuf, source: io::Error },
}

/// A running server.
pub struct Server {
    host: Host,
    sessions: pooler::Sessions,
    settings: Settings,
    home: Home,
    api_address: SocketAddr,
    pooler_address: SocketAddr,
    console: bool,
    stop: watch::Sender<bool>,
    api_task: JoinHandle<()>,
    pooler_task: JoinHandle<()>,
    journal: StateJournal,
    journal_task: JoinHandle<()>,
    metadata: Metadata,
    _lock: Lock,
}

impl Server {
    /// Starts everything and returns when it answers.
    pub async fn start(settings: Settings) -> Result<Server, StartError> {
        let home = Home::new(settings.home.clone());
        home.create().map_err(StartError::Home)?;
        let lock = Lock::take(&home)?;
        crate::log::start(&settings, &home.log()).map_err(|source| StartError::Io { what: home.log(), source })?;
        if settings.vmm_program.is_none() {
            usable_kvm().map_err(StartError::NoKvm)?;
        }
        let key = |path: PathBuf, prefix: &'static str| {
            load_or_create(&path, || new_key(prefix)).map_err(|source| StartError::Io { what: path, source })
        };
        let admin_key = key(home.admin_key(), ADMIN_KEY_PREFIX)?;
        let session_secret = key(home.session_key(), "")?;
        let listener = TcpListener::bind(settings.api_listen).await;
        let address = settings.api_listen;
        let listener = listener.map_err(|source| StartError::Listen { address, source })?;
        let api_address = listener.local_addr().map_err(|source| StartError::Listen { address, source })?;

        let metadata = Metadata::open(&home.metadata()).await?;
        let (journal, journal_task) = StateJournal::start(metadata.clone(), settings.events_kept);
        let host = Host::new(&settings, metadata.clone(), journal.clone()).map_err(StartError::Home)?;
        let sessions = pooler::Sessions::new();
        host.attach(Arc::new(sessions.clone()));
        let front = Arc::new(Front::new(host.clone()));
        let pooler = pooler::Pooler::bind(pooler_settings(&settings, &home), front, &sessions).await;
        let pooler = pooler.map_err(|e| match e {
            pooler::StartError::Listen(..) => StartError::Pooler(e),
            other => StartError::PoolerOther(other),
        })?;
        let pooler_address = pooler
            .address()
            .map_err(|e| StartError::Pooler(pooler::StartError::Listen(settings.pooler_listen, e)))?;

        let reconciled = host.reconcile().await?;
        tracing::info!(?reconciled, "what the last server left is in order");
        let console = match &settings.console_path {
            Some(folder) => Console::Folder(folder.clone()),
            None => Console::BuiltIn,
        };
        let has_console = console.built();
        let api = Api::new(ApiParts {
            host: host.clone(),
            pooler: sessions.metrics().clone(),
            admin_key,
            session_secret,
            session_life: settings.session_life,
            console,
            public: settings.pooler_public.clone().unwrap_or_else(|| reachable(pooler_address).to_string()),
            sslmode: if pooler_address.ip().is_loopback() { "prefer" } else { "require" },
            body_limit: settings.api_body_limit,
            event_streams: settings.api_event_streams,
        });
        let (stop, stopped) = watch::channel(false);
        let api_task = tokio::spawn(serve_api(listener, api, stopped));
        let pooler_task = tokio::spawn(pooler.serve());
        let server = Server {
            host,
            sessions,
            settings,
            home,
            api_address,
            pooler_address,
            console: has_console,
            stop,
            api_task,
            pooler_task,
            journal,
            journal_task,
            metadata,
            _lock: lock,
        };
        server.write_addresses().map_err(|source| StartError::Io { what: server.home.server_file(), source })?;
        tracing::info!(api = %server.api_address, pooler = %server.pooler_address, home = %server.home.root().display(), version = crate::VERSION, "up");
        Ok(server)
    }

    /// `http://HOST:PORT` of the API, by an address that this machine reaches.
    pub fn api_url(&self) -> String {
        format!("http://{}", reachable(self.api_address))
    }

    pub fn pooler_address(&self) -> SocketAddr {
        self.pooler_address
    }

    pub fn home(&self) -> &Home {
        &self.home
    }

    pub fn host(&self) -> &Host {
        &self.host
    }

    pub fn has_console(&self) -> bool {
        self.console
    }

    /// For whoever looks for the server without knowing its settings.
    fn write_addresses(&self) -> io::Result<()> {
        let text = serde_json::json!({
            "api": self.api_url(),
            "pooler": reachable(self.pooler_address).to_string(),
            "pid": std::process::id(),
            "version": crate::VERSION,
        });
        let path = self.home.server_file();
        let aside = path.with_extension("new");
        fs::write(&aside, format!("{text}\n"))?;
        fs::rename(aside, path)
    }

    /// Takes nothing new, suspends everything, and ends. `host().cut()` shortens it.
    pub async fn shut_down(self) {
        let _ = self.stop.send(true);
        let patience = self.settings.suspend_wait;
        // Together: a session that is idle ends at once, one at work when it has its answer, and each database
        // goes to sleep as soon as it is left alone.
        tokio::join!(self.sessions.drain(patience), self.host.shut_down());
        self.pooler_task.abort();
        // Event streams never end by themselves.
        self.api_task.abort();
        self.journal.close();
        if let Err(error) = self.journal_task.await {
            tracing::error!(%error, "the last states were not written; the next start finds them out");
        }
        self.metadata.close().await;
        let _ = fs::remove_file(self.home.server_file());
        tracing::info!("down");
    }
}

async fn serve_api(listener: TcpListener, api: Api, mut stop: watch::Receiver<bool>) {
    let stopped = async move {
        // An error means that the server is gone, which is a reason to stop as well.
        let _ = stop.wait_for(|stop| *stop).await;
    };
    if let Err(error) = axum::serve(listener, router(api)).with_graceful_shutdown(stopped).await {
        tracing::error!(%error, "the API ended");
    }
}

/// An address one can connect to: this machine's, where it listens on all.
fn reachable(address: SocketAddr) -> SocketAddr {
    let mut address = address;
    if address.ip().is_unspecified() {
        address.set_ip(match address {
            SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        });
    }
    address
}

fn pooler_settings(settings: &Settings, home: &Home) -> pooler::Settings {
    let ms = |d: std::time::Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
    let mut names = pooler::Settings::default().tls_names;
    if let Some(public) = &settings.pooler_public {
        let host = public.rsplit_once(':').map_or(public.as_str(), |(host, _)| host);
        names.push(host.trim_matches(['[', ']']).to_string());
    }
    pooler::Settings {
        listen: settings.pooler_listen,
        tls_dir: home.tls(),
        tls_certificate: settings.tls_certificate.clone(),
        tls_key: settings.tls_key.clone(),
        tls_names: names,
        plain: settings.pooler_plain,
        max_clients: settings.pooler_max_clients,
        max_waiting: settings.wake_queue,
        password_guesses: settings.pooler_password_guesses,
        begin_ahead_ms: settings.pooler_begin_ahead_ms,
        cancel_guesses: settings.pooler_cancel_guesses,
        // The host gives up first, and can say why.
        wake_timeout_ms: ms(settings.turn_timeout() + settings.wake_timeout) + 5000,
        ..pooler::Settings::default()
    }
}

fn usable_kvm() -> io::Result<()> {
    fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").map(drop)
}

/// The lock on a home, held as long as this lives.
struct Lock {
    _file: fs::File,
}

impl Lock {
    fn take(home: &Home) -> Result<Lock, StartError> {
        let path = home.lock();
        let at = |source| StartError::Io { what: path.clone(), source };
        let mut file =
            fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).map_err(at)?;
        // SAFETY: flock takes a descriptor we own and a flag.
        if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } != 0 {
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::WouldBlock {
                return Err(at(error));
            }
            let pid = fs::read_to_string(&path).unwrap_or_default();
            let pid = pid.trim();
            let pid = if pid.is_empty() { String::new() } else { format!(" (process {pid})") };
            return Err(StartError::Locked { home: home.root().into(), pid });
        }
        // For the message above; the lock itself is the kernel's.
        file.set_len(0).and_then(|()| file.rewind()).and_then(|()| writeln!(file, "{}", std::process::id())).map_err(at)?;
        Ok(Lock { _file: file })
    }
}
