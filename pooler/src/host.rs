//! What the pooler asks of the host: who may log in, and to be told where an awake database is.

use std::fmt;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::str::FromStr;

use crate::steps::Step;

/// A boxed future, so that the pooler can hold any host behind one pointer.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A database's id: `db_` and 20 characters of `[a-z0-9]`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DatabaseId([u8; 20]);

impl DatabaseId {
    /// Characters of its text form, prefix included.
    pub const TEXT_LEN: usize = 23;
    const PREFIX: &'static str = "db_";
}

/// The text is not a database's id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a database's id is db_ and 20 characters of a-z and 0-9")]
pub struct NotADatabaseId;

impl FromStr for DatabaseId {
    type Err = NotADatabaseId;

    fn from_str(text: &str) -> Result<DatabaseId, NotADatabaseId> {
        let tail = text.strip_prefix(DatabaseId::PREFIX).ok_or(NotADatabaseId)?;
        let tail: [u8; 20] = tail.as_bytes().try_into().map_err(|_| NotADatabaseId)?;
        if tail.iter().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit()) {
            Ok(DatabaseId(tail))
        } else {
            Err(NotADatabaseId)
        }
    }
}

impl fmt::Display for DatabaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(DatabaseId::PREFIX)?;
        f.write_str(std::str::from_utf8(&self.0).unwrap_or_default())
    }
}

impl fmt::Debug for DatabaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What is known of a database and one of its roles.
#[derive(Clone, Debug)]
pub struct Route {
    /// `SCRAM-SHA-256$iterations:salt$StoredKey:ServerKey`, as [`crate::verifier::make`] makes it. `None`: only the guest
    /// may have one.
    pub verifier: Option<String>,
    /// Passwords have been set in SQL that this role's may be among: the guest is asked for it, and what it says goes
    /// before `verifier`.
    pub in_guest: bool,
    /// To be asked it has to be woken, as far as is known.
    pub asleep: bool,
    /// The role that the session has in the guest: several logins may lead to one.
    pub guest_role: String,
    /// Client connections to this database at one time, held ones included.
    pub connection_limit: u32,
    /// Whether the database can be used at all.
    pub availability: Availability,
}

/// Whether a database can be used. Only told to a client that has proven its password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Availability {
    /// Awake, asleep, or to be started.
    Usable,
    /// Being deleted: refused with 57P01.
    Deleting,
    /// Refused with 57P03 and this text (a sentence for the client).
    Refused(String),
}

/// An awake database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Awake {
    /// The VMM's `VMM.sock`.
    pub socket: PathBuf,
    /// The life of the guest's memory: a session of another one is gone.
    pub epoch: String,
}

/// Whose passwords have been set in SQL.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PasswordsSet {
    /// The owner's, whose password else is the service's.
    pub owner: bool,
    /// Those of other roles.
    pub other: bool,
}

impl PasswordsSet {
    pub fn any(self) -> bool {
        self.owner || self.other
    }
}

/// The metadata cannot be asked. The text goes to the log only.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct HostError(pub String);

/// Why a database cannot be woken. The texts are for the client; the host logs the cause.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WakeError {
    /// 57P01.
    #[error("database is being deleted")]
    Deleting,
    /// 53300: too many wait, or too many databases are awake.
    #[error("{0}")]
    TooMany(String),
    /// 57P03: anything that may pass.
    #[error("{0}")]
    Unavailable(String),
}

impl WakeError {
    /// The SQLSTATE with which the client learns of it.
    pub fn sqlstate(&self) -> &'static str {
        match self {
            WakeError::Deleting => "57P01",
            WakeError::TooMany(_) => "53300",
            WakeError::Unavailable(_) => "57P03",
        }
    }
}

/// The host manager, as the pooler sees it.
pub trait Host: Send + Sync + 'static {
    /// Finds a database and a role in it; `None` when either does not exist, or cannot have a password. Should take the
    /// same time for all.
    fn lookup<'a>(&'a self, database: DatabaseId, role: &'a str) -> BoxFuture<'a, Result<Option<Route>, HostError>>;

    /// Notes, durably, that passwords have been set in SQL: from then on `lookup` says so. The client whose statement set
    /// them learns nothing before this is done.
    fn passwords_set<'a>(&'a self, database: DatabaseId, set: PasswordsSet) -> BoxFuture<'a, Result<(), HostError>>;

    /// Wakes the database, or finds it awake. Called once for each client that needs it: the host makes one wake
    /// of them. A suspend that is under way must be called off first, with [`crate::Sessions::release`], or
    /// finished, with [`crate::Sessions::suspended`], before this answers. May be dropped before it is done.
    fn wake<'a>(&'a self, database: DatabaseId) -> BoxFuture<'a, Result<Awake, WakeError>>;

    /// A client spoke after [`crate::Sessions::quiesce`] and before its end: the suspend had better be called off.
    /// Called from a poll: it must only pass the word on.
    fn client_spoke(&self, database: DatabaseId);

    /// A client that asked for a wake has had the first bytes of its answer; these are the steps to there, whoever's wake it
    /// was. Must not block.
    fn answered(&self, _database: DatabaseId, _steps: Vec<Step>) {}
}
