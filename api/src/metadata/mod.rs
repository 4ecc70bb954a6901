//! Metadata: the only code that speaks SQL.
//!
//! SQLite in WAL mode. A create, a delete and a new tenant are on disk before they are answered
//! (`synchronous=FULL` on the writer), all that ask at one time in one transaction ([`writer`]); the states in between are
//! hints that the reconciler checks against the files, so they are written behind the wake, many in one transaction,
//! without a flush.
//!
//! Nothing here takes longer the more databases there are: every query finds what it wants by an index, and what is asked
//! about all of them is a sum that triggers keep (`api/tests/queries.rs` looks at the plan of each).

mod checkpoint;
mod databases;
mod events;
mod journal;
mod roles;
mod tenants;
mod writer;

use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous};

use checkpoint::Checkpoints;
pub(crate) use databases::SET_STATE;
pub use databases::{CreateError, DatabaseFilter, DatabaseRow, ImageUse, NewDatabase, Page};
pub use events::EventRow;
pub use journal::StateJournal;
pub use roles::RoleRow;
pub use tenants::{NewTenantError, TenantRow};

/// All migrations, in order: number, name, text. A file missing here is caught by a test.
const MIGRATIONS: &[(i64, &str, &str)] = &[
    (1, "tenants databases roles", include_str!("../../../migrations/0001_tenants_databases_roles.sql")),
    (2, "events images", include_str!("../../../migrations/0002_events_images.sql")),
    (3, "superuser logins", include_str!("../../../migrations/0003_superuser_logins.sql")),
    (4, "sql passwords", include_str!("../../../migrations/0004_sql_passwords.sql")),
    (5, "use", include_str!("../../../migrations/0005_use.sql")),
    (6, "written", include_str!("../../../migrations/0006_written.sql")),
    (7, "asleep", include_str!("../../../migrations/0007_asleep.sql")),
];

/// What a full disk is called, wherever that is told on.
pub(crate) const FULL: &str = "the disk with the metadata is full";

/// Why the metadata cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum MetadataError {
    #[error("{FULL}: free some space, then try again; nothing was changed")]
    Full,
    #[error("the metadata was made by a newer dormouse: start that one, or restore a copy from before it")]
    Newer,
    #[error("the metadata cannot be brought up to date: {0}")]
    Migrate(sqlx::migrate::MigrateError),
    #[error("metadata: {0}")]
    Sql(sqlx::Error),
    #[error("metadata: the row of {id} holds {what}, which this server does not know")]
    Row { id: String, what: String },
}

impl From<sqlx::Error> for MetadataError {
    fn from(error: sqlx::Error) -> Self {
        // 13 is SQLITE_FULL; a full disk also shows as an I/O error of the WAL (SQLITE_IOERR_WRITE), or of its index, which
        // the first connection makes and a growing WAL makes longer (SQLITE_IOERR_SHMSIZE).
        let code = error.as_database_error().and_then(|e| e.code());
        match code.as_deref() {
            Some("13" | "778" | "4874") => MetadataError::Full,
            _ => MetadataError::Sql(error),
        }
    }
}

/// The metadata of one server. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Metadata {
    /// Readers never wait for the writer (WAL).
    readers: SqlitePool,
    /// One connection.
    writer: SqlitePool,
    checkpointer: SqlitePool,
    writes: writer::Writes,
    changes: Arc<AtomicU64>,
}

impl Metadata {
    /// Opens the file, making it if it is not there, and runs the missing migrations.
    pub async fn open(path: &Path) -> Result<Metadata, MetadataError> {
        let options = SqliteConnectOptions::from_str("sqlite:")?
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .foreign_keys(true)
            .busy_timeout(Duration::from_secs(10))
            // Memory-mapped reads: a lookup at login costs no system call. 256 MiB of address space, not of RAM.
            .pragma("mmap_size", "268435456")
            .pragma("cache_size", "-8192")
            .pragma("temp_store", "memory")
            .pragma("wal_autocheckpoint", checkpoint::PAGES)
            .pragma("journal_size_limit", checkpoint::KEPT);
        let writer = SqlitePoolOptions::new()
            .max_connections(1)
            // One that failed is thrown away by whoever had it.
            .test_before_acquire(false)
            .idle_timeout(None)
            .max_lifetime(None)
            .connect_with(options.clone().synchronous(SqliteSynchronous::Full))
            .await?;
        migrate(&writer).await?;
        let checkpointer = SqlitePoolOptions::new()
            .max_connections(1)
            .test_before_acquire(false)
            .max_lifetime(None)
            .connect_with(options.clone().synchronous(SqliteSynchronous::Full))
            .await?;
        let writes = writer::start(writer.clone(), Checkpoints::start(checkpointer.clone()));
        let readers = SqlitePoolOptions::new()
            .min_connections(1)
            .test_before_acquire(false)
            .max_connections(4)
            .max_lifetime(None)
            .connect_with(options.read_only(true).create_if_missing(false))
            .await?;
        Ok(Metadata { readers, writer, checkpointer, writes, changes: Arc::default() })
    }

    /// Writes what the WAL still holds and closes all connections.
    pub async fn close(&self) {
        self.readers.close().await;
        self.checkpointer.close().await;
        self.writer.close().await;
    }

    /// Whether the metadata answers.
    pub async fn ping(&self) -> Result<(), MetadataError> {
        sqlx::query("SELECT 1").execute(&self.readers).await?;
        Ok(())
    }
}

async fn migrate(pool: &SqlitePool) -> Result<(), MetadataError> {
    let migrations = MIGRATIONS
        .iter()
        .map(|(number, name, sql)| {
            Migration::new(*number, (*name).into(), MigrationType::Simple, (*sql).into(), false)
        })
        .collect();
    let migrator = Migrator { migrations, ..Migrator::DEFAULT };
    migrator.run(pool).await.map_err(|e| match e {
        sqlx::migrate::MigrateError::VersionMissing(_) => MetadataError::Newer,
        other => MetadataError::Migrate(other),
    })
}

/// The schema's version: the number of the last migration.
pub fn version() -> i64 {
    MIGRATIONS.iter().map(|(number, ..)| *number).max().unwrap_or(0)
}

/// Now, in ms since 1970.
pub fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
