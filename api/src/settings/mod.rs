//! Settings: one table of all of them, and the layers they are read from.
//!
//! A value comes from the first of: a flag, a `DORMOUSE_*` variable, `dormouse.toml`, the default. Each keeps
//! its [`Origin`], which `dormouse config show` prints and which every complaint about a value names. A key that
//! the table does not have is refused, so that a slip of the pen is not silently a default.
//! `docs/settings.md` has a section for each; a test holds the two together.

mod plan;
mod source;
mod table;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

pub use plan::{MAX_COOL_DOWN_MS, MIN_COOL_DOWN_MS, Plan, PlanField};
pub use source::Sources;
pub use table::{SETTINGS, Setting};

/// The plan a database gets when a create names none.
pub const DEFAULT_PLAN: &str = "free";

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    Default,
    /// The path of the settings file.
    File(PathBuf),
    /// The variable's name.
    Environment(String),
    /// The flag as typed, with its dashes.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::File(path) => write!(f, "{}", path.display()),
            Origin::Environment(name) => write!(f, "environment {name}"),
            Origin::Flag(flag) => write!(f, "flag {flag}"),
        }
    }
}

/// Why the settings cannot be used. Each message says which value, from where, and what would be right.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    #[error("cannot read the settings file {path}: {source}")]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("the settings file {path} is not valid TOML: {message}")]
    Syntax { path: PathBuf, message: String },
    #[error("{origin}: there is no setting `{key}`; `dormouse config show` lists all of them")]
    Unknown { key: String, origin: Origin },
    #[error("{key} = `{value}` ({origin}): {wanted}")]
    Value {
        key: String,
        value: String,
        origin: Origin,
        wanted: String,
    },
}

/// A value as text, and where it came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    pub text: String,
    pub origin: Origin,
}

/// How log lines look on the terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Readable on a terminal, JSON elsewhere.
    Auto,
    Text,
    Json,
}

/// Everything the server and the command need to know, typed and checked.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `DORMOUSE_HOME`, absolute.
    pub home: PathBuf,
    pub api_listen: SocketAddr,
    /// Largest request body taken, in bytes.
    pub api_body_limit: usize,
    /// Largest number of bytes of event streams open at once.
    pub api_event_streams: usize,
    /// Life of a console session's cookie.
    pub session_life: Duration,
    /// Overrides the console that is built into the binary.
    pub console_path: Option<PathBuf>,
    pub pooler_listen: SocketAddr,
    /// `HOST:PORT` in connection strings, when clients reach the pooler by another address than it listens on.
    pub pooler_public: Option<String>,
    /// PEM files; a self-signed certificate is made when both are absent.
    pub tls_certificate: Option<PathBuf>,
    pub tls_key: Option<PathBuf>,
    /// Who may connect without TLS.
    pub pooler_plain: dormouse_pooler::Plain,
    pub pooler_max_clients: usize,
    pub pooler_password_guesses: u32,
    pub pooler_begin_ahead_ms: u64,
    pub pooler_cancel_guesses: u32,
    /// The program that is run as the VMM; this binary when absent.
    pub vmm_program: Option<PathBuf>,
    pub wake_timeout: Duration,
    pub suspend_wait: Duration,
    pub wakes_at_once: usize,
    /// Memory of the host, in MiB, below which no VM is started.
    pub memory_reserve_mib: u64,
    /// Whether VMMs close their jail.
    pub jail: bool,
    /// First of the user ids that VMMs take.
    pub jail_uids: u32,
    /// Control group that those of VMMs are made in: "own" for the server's, if it will do, "" for none.
    pub cgroup: String,
    pub standby_vms: usize,
    /// How long a database sleeps before it is packed.
    pub pack_after: Option<Duration>,
    pub pack_timeout: Duration,
    pub wake_queue: usize,
    pub console_log_mib: u64,
    pub watchdog_ms: u64,
    pub events_kept: u32,
    pub pg_version: u32,
    pub log_level: tracing::level_filters::LevelFilter,
    pub log_format: LogFormat,
    /// Size in bytes at which a log file is rotated.
    pub log_file_size: u64,
    /// Rotated log files kept.
    pub log_files: usize,
    pub plans: BTreeMap<String, Plan>,
    /// Every value as text with its origin, by key, in the table's order and then the plans'.
    pub resolved: Vec<(String, Resolved)>,
}

impl Settings {
    /// Longest that a wake may wait for its turn to start.
    pub fn turn_timeout(&self) -> Duration {
        self.wake_timeout * 4
    }

    /// Reads all layers and checks every value.
    pub fn load(sources: &Sources) -> Result<Settings, SettingsError> {
        let (values, plans) = source::resolve(sources)?;
        let (plans, plan_rows) = plan::build(plans)?;
        let mut resolved: Vec<(String, Resolved)> = SETTINGS
            .iter()
            .map(|s| (s.key.to_string(), values[s.key].clone()))
            .collect();
        resolved.extend(plan_rows);
        let get = Typed { values: &values };
        let home = get.path("home")?.unwrap_or_else(|| PathBuf::from(".dormouse"));
        let home = std::path::absolute(&home).map_err(|e| get.wrong("home", &e.to_string()))?;
        let tls_certificate = get.path("pooler.tls_certificate")?;
        let tls_key = get.path("pooler.tls_key")?;
        if tls_certificate.is_some() != tls_key.is_some() {
            return Err(get.wrong(
                "pooler.tls_certificate",
                "pooler.tls_certificate and pooler.tls_key must be set together",
            ));
        }
        Ok(Settings {
            home,
            api_listen: get.address("api.listen")?,
            api_body_limit: get.number("api.body_limit_kib", 1, 16 << 10)? as usize * 1024,
            api_event_streams: get.number("api.event_streams", 1, 1_000_000)? as usize,
            session_life: Duration::from_secs(60 * get.number("api.session_minutes", 1, 24 * 60)?),
            console_path: get.path("console.path")?,
            pooler_listen: get.address("pooler.listen")?,
            pooler_public: get.text("pooler.public"),
            tls_certificate,
            tls_key,
            pooler_plain: get.plain("pooler.plain")?,
            pooler_max_clients: get.number("pooler.max_clients", 1, 10_000_000)? as usize,
            pooler_password_guesses: get.number("pooler.password_guesses", 0, 1_000_000)? as u32,
            pooler_begin_ahead_ms: get.number("pooler.begin_ahead_ms", 0, 60_000)?,
            pooler_cancel_guesses: get.number("pooler.cancel_guesses", 0, 1_000_000)? as u32,
            vmm_program: get.path("host.vmm_program")?,
            wake_timeout: get.millis("host.wake_timeout_ms", 100, 3_600_000)?,
            suspend_wait: get.millis("host.suspend_wait_ms", 0, 3_600_000)?,
            wakes_at_once: get.number("host.wakes_at_once", 1, 4096)? as usize,
            memory_reserve_mib: get.number("host.memory_reserve_mib", 0, 1 << 30)?,
            jail: get.switch("host.jail")?,
            // Process numbers are added, of which there are at most 2^22.
            jail_uids: get.number("host.jail_uids", 1, (1 << 32) - (1 << 22) - 2)? as u32,
            cgroup: get.text("host.cgroup").unwrap_or_default(),
            standby_vms: get.number("host.standby_vms", 0, 4096)? as usize,
            pack_after: Some(get.number("host.pack_after_s", 0, 10 * 366 * 86_400)?).filter(|s| *s > 0).map(Duration::from_secs),
            pack_timeout: Duration::from_secs(get.number("host.pack_timeout_s", 1, 86_400)?),
            wake_queue: get.number("host.wake_queue", 1, 1_000_000)? as usize,
            console_log_mib: get.number("host.console_log_mib", 1, 4096)?,
            watchdog_ms: get.number("host.watchdog_ms", 0, 86_400_000)?,
            events_kept: get.number("host.events_kept", 1, 1_000_000)? as u32,
            pg_version: get.number("host.pg_version", 1, 1000)? as u32,
            log_level: get.level("log.level")?,
            log_format: get.format("log.format")?,
            log_file_size: get.number("log.file_mib", 1, 4096)? << 20,
            log_files: get.number("log.files", 1, 1000)? as usize,
            plans,
            resolved,
        })
    }

    /// The limits of a plan, if the settings have it.
    pub fn plan(&self, name: &str) -> Option<&Plan> {
        self.plans.get(name)
    }
}

/// Reads one key as one type; the error names the key, the value and where it came from.
struct Typed<'a> {
    values: &'a BTreeMap<&'static str, Resolved>,
}

impl Typed<'_> {
    fn wrong(&self, key: &str, wanted: &str) -> SettingsError {
        let value = &self.values[key];
        SettingsError::Value {
            key: key.into(),
            value: value.text.clone(),
            origin: value.origin.clone(),
            wanted: wanted.into(),
        }
    }

    fn text(&self, key: &str) -> Option<String> {
        let text = self.values[key].text.trim();
        (!text.is_empty()).then(|| text.to_string())
    }

    fn path(&self, key: &str) -> Result<Option<PathBuf>, SettingsError> {
        Ok(self.text(key).map(PathBuf::from))
    }

    fn address(&self, key: &str) -> Result<SocketAddr, SettingsError> {
        let text = self.values[key].text.trim();
        text.parse()
            .map_err(|_| self.wrong(key, "wanted an IP address and a port, such as 127.0.0.1:8080"))
    }

    fn number(&self, key: &str, least: u64, most: u64) -> Result<u64, SettingsError> {
        let wanted = || format!("wanted a whole number from {least} to {most}");
        let n: u64 = self.values[key]
            .text
            .trim()
            .parse()
            .map_err(|_| self.wrong(key, &wanted()))?;
        if (least..=most).contains(&n) {
            Ok(n)
        } else {
            Err(self.wrong(key, &wanted()))
        }
    }

    fn millis(&self, key: &str, least: u64, most: u64) -> Result<Duration, SettingsError> {
        self.number(key, least, most).map(Duration::from_millis)
    }

    fn switch(&self, key: &str) -> Result<bool, SettingsError> {
        match self.values[key].text.trim() {
            "on" => Ok(true),
            "off" => Ok(false),
            _ => Err(self.wrong(key, "wanted on or off")),
        }
    }

    fn level(&self, key: &str) -> Result<tracing::level_filters::LevelFilter, SettingsError> {
        self.values[key]
            .text
            .trim()
            .parse()
            .map_err(|_| self.wrong(key, "wanted off, error, warn, info, debug or trace"))
    }

    fn plain(&self, key: &str) -> Result<dormouse_pooler::Plain, SettingsError> {
        use dormouse_pooler::Plain;
        match self.values[key].text.trim() {
            "loopback" => Ok(Plain::Loopback),
            "always" => Ok(Plain::Always),
            "never" => Ok(Plain::Never),
            _ => Err(self.wrong(key, "wanted loopback, always or never")),
        }
    }

    fn format(&self, key: &str) -> Result<LogFormat, SettingsError> {
        match self.values[key].text.trim() {
            "auto" => Ok(LogFormat::Auto),
            "text" => Ok(LogFormat::Text),
            "json" => Ok(LogFormat::Json),
            _ => Err(self.wrong(key, "wanted auto, text or json")),
        }
    }
}

#[cfg(test)]
mod tests;
