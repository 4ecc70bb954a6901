//! The one writer: a transaction whose connection is thrown away unless it ends in a commit.
//!
//! After a write that failed (a full disk, above all) sqlx and SQLite may disagree about whether a transaction is
//! open, and then every later "commit" on that connection says yes and keeps nothing. So no connection outlives a
//! failure, nor a caller that went away in the middle: opening another one takes a millisecond.

use sqlx::pool::PoolConnection;
use sqlx::{Sqlite, SqliteConnection};

use super::{Metadata, MetadataError};

/// A write under way.
pub(super) struct Write {
    connection: PoolConnection<Sqlite>,
    committed: bool,
}

impl Metadata {
    /// Begins a write, after the one before it.
    pub(super) async fn begin(&self) -> Result<Write, MetadataError> {
        let connection = self.writer.acquire().await?;
        let mut write = Write { connection, committed: false };
        write.say("BEGIN IMMEDIATE").await?;
        Ok(write)
    }

    /// Begins a write of hints: no flush at its commit.
    pub(super) async fn begin_unflushed(&self) -> Result<Write, MetadataError> {
        let connection = self.writer.acquire().await?;
        let mut write = Write { connection, committed: false };
        write.say("PRAGMA synchronous = NORMAL").await?;
        write.say("BEGIN IMMEDIATE").await?;
        Ok(write)
    }
}

impl Write {
    /// What statements are executed on.
    pub(super) fn on(&mut self) -> &mut SqliteConnection {
        &mut self.connection
    }

    /// On disk when this returns, if it was begun so.
    pub(super) async fn commit(mut self) -> Result<(), MetadataError> {
        self.say("COMMIT").await?;
        self.say("PRAGMA synchronous = FULL").await?;
        self.committed = true;
        Ok(())
    }

    async fn say(&mut self, sql: &'static str) -> Result<(), MetadataError> {
        sqlx::query(sql).execute(self.on()).await?;
        Ok(())
    }
}

impl Drop for Write {
    fn drop(&mut self) {
        if !self.committed {
            self.connection.close_on_drop();
        }
    }
}
