//! The pooler's settings: one field, one section of documentation, one default. Times are in milliseconds.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Who may connect without TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Plain {
    /// Only clients on the loopback interface.
    #[default]
    Loopback,
    /// Anybody. SCRAM still keeps the password itself from the wire, but nothing else.
    Always,
    /// Nobody.
    Never,
}

/// See each field. Unknown names are refused, so that a misspelt setting is not silently a default.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Address and port to listen on. Port 0 lets the kernel choose. Default `127.0.0.1:5432`.
    pub listen: SocketAddr,
    /// Folder for the certificate made at first start and for the key that hides which users exist. Default
    /// `.dormouse/tls`; `dormouse up` sets it to `DORMOUSE_HOME/tls`.
    pub tls_dir: PathBuf,
    /// Whether TLS is offered. Default true.
    pub tls: bool,
    /// PEM file with the certificate chain to serve, leaf first. Default none: a self-signed one is made.
    pub tls_certificate: Option<PathBuf>,
    /// PEM file with the key of `tls_certificate`. Given together or not at all. Default none.
    pub tls_key: Option<PathBuf>,
    /// Host names and addresses put into the self-signed certificate. Default `localhost`, `127.0.0.1`, `::1`.
    pub tls_names: Vec<String>,
    /// Who may connect without TLS: `loopback`, `always` or `never`. Default `loopback`.
    pub plain: Plain,
    /// Client connections, held ones included, after which further ones get 53300. Lowered to what the hard
    /// limit on open files allows: an awake client takes two. Default 20000.
    pub max_clients: usize,
    /// The largest number of clients that wait for one database to wake; further ones get 53300. Clients that
    /// were already connected are not counted: their number is bounded by the database's limit. Default 500.
    pub max_waiting: usize,
    /// From accept to the end of authentication, TLS included. Default 30000.
    pub startup_timeout_ms: u64,
    /// From asking the host for a wake to a bound session. After it the client gets 57P03. Default 60000.
    pub wake_timeout_ms: u64,
    /// How long a cancel request waits for the guest to be done with it. Default 5000.
    pub cancel_timeout_ms: u64,
    /// How long a client that is being sent away may take to read why. Default 3000.
    pub farewell_timeout_ms: u64,
    /// Wrong passwords that one client address may give for one database, in a minute; and logins without proof that may
    /// wake a database, or keep it awake, for addresses that it does not know. 0 for no limit. Default 20.
    pub password_guesses: u32,
    /// How long a session is kept that was begun while its client still computes the proof of its password; 0 for none begun so. They are for
    /// clients that ask for the same, from the same address, as was proven within the hour, once for each such proof. Default 3000.
    pub begin_ahead_ms: u64,
    /// Cancel requests with a wrong key that one client address may send, in a minute. 0 for no limit. Default 100.
    pub cancel_guesses: u32,
    /// Idle time after which TCP asks whether the client's machine is still there; 0 for never. Default 300000.
    pub keepalive_ms: u64,
    /// Database for clients that name none. Default `app`.
    pub default_database: String,
    /// PBKDF2 rounds of verifiers made here, and those that unknown users are shown: keep it equal to what is in
    /// the metadata, or the two could be told apart. Default 4096, which is what Postgres uses.
    pub scram_iterations: u32,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 5432),
            tls_dir: PathBuf::from(".dormouse/tls"),
            tls: true,
            tls_certificate: None,
            tls_key: None,
            tls_names: vec!["localhost".into(), "127.0.0.1".into(), "::1".into()],
            plain: Plain::Loopback,
            max_clients: 20_000,
            max_waiting: 500,
            startup_timeout_ms: 30_000,
            wake_timeout_ms: 60_000,
            cancel_timeout_ms: 5_000,
            farewell_timeout_ms: 3_000,
            password_guesses: 20,
            begin_ahead_ms: 3_000,
            cancel_guesses: 100,
            keepalive_ms: 300_000,
            default_database: "app".into(),
            scram_iterations: crate::verifier::DEFAULT_ITERATIONS,
        }
    }
}
