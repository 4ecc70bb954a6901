//! What happened to each database. Written by the journal, many in one transaction.

use sqlx::{Row, SqliteConnection};

use super::writer::Write;
use super::{Metadata, MetadataError, Page};
use crate::host::EventKind;
use crate::identity::DatabaseId;

/// An event as kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventRow {
    pub seq: i64,
    /// ms since 1970.
    pub at: i64,
    /// Of [`EventKind`], or of a newer server's.
    pub kind: String,
    pub message: Option<String>,
}

/// An event to be written.
#[derive(Clone, Debug)]
pub(super) struct NewEvent {
    pub database: DatabaseId,
    pub at: i64,
    pub kind: EventKind,
    pub message: Option<String>,
}

impl Metadata {
    /// A database's events, newest first; `page.after` is the `seq` of the last one seen, 0 for none.
    pub async fn list_events(&self, id: &DatabaseId, page: Page) -> Result<Vec<EventRow>, MetadataError> {
        let before = if page.after == 0 { i64::MAX } else { page.after };
        let sql = "SELECT seq, at, kind, message FROM events WHERE database_id = ? AND seq < ? ORDER BY seq DESC LIMIT ?";
        let rows = sqlx::query(sql).bind(id.as_str()).bind(before).bind(page.limit).fetch_all(&self.readers).await?;
        rows.iter()
            .map(|row| {
                Ok(EventRow {
                    seq: row.try_get("seq")?,
                    at: row.try_get("at")?,
                    kind: row.try_get("kind")?,
                    message: row.try_get("message")?,
                })
            })
            .collect()
    }
}

/// The first event of a new database, in the transaction that makes it.
pub(super) async fn insert_created(on: &mut SqliteConnection, database: &DatabaseId, at: i64) -> Result<(), sqlx::Error> {
    sqlx::query("INSERT INTO events (database_id, at, kind) VALUES (?, ?, ?)")
        .bind(database.as_str())
        .bind(at)
        .bind(EventKind::Created.as_str())
        .execute(on)
        .await?;
    Ok(())
}

/// Writes one, and forgets those of its database past the newest `keep`. One of a database that is gone is nothing.
pub(super) async fn insert(write: &mut Write, event: &NewEvent, keep: u32) -> Result<(), MetadataError> {
    let sql = "INSERT INTO events (database_id, at, kind, message) SELECT id, ?, ?, ? FROM databases WHERE id = ?";
    sqlx::query(sql)
        .bind(event.at)
        .bind(event.kind.as_str())
        .bind(event.message.as_deref())
        .bind(event.database.as_str())
        .execute(write.on())
        .await?;
    let sql = "DELETE FROM events WHERE database_id = ?1 AND seq <= \
               (SELECT seq FROM events WHERE database_id = ?1 ORDER BY seq DESC LIMIT 1 OFFSET ?2)";
    sqlx::query(sql).bind(event.database.as_str()).bind(i64::from(keep)).execute(write.on()).await?;
    Ok(())
}
