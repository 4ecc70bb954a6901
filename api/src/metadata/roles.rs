//! Roles: who may log in to a database.

use sqlx::Row;

use super::{Metadata, MetadataError, now_ms};
use crate::host::State;
use crate::identity::DatabaseId;

/// What a login needs to know of a role and its database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoleRow {
    /// In the form of `pg_authid.rolpassword`.
    pub verifier: String,
    /// In the guest it is PostgreSQL's superuser: an operator's login.
    pub superuser: bool,
    pub plan: String,
    /// The database's state as last written.
    pub state: State,
}

impl Metadata {
    /// The role's verifier, unless it has expired or the database is being made.
    pub async fn role(&self, database: &DatabaseId, role: &str) -> Result<Option<RoleRow>, MetadataError> {
        let sql = "SELECT r.verifier, r.superuser, d.plan, d.state FROM roles r JOIN databases d ON d.id = r.database_id \
                   WHERE r.database_id = ? AND r.role = ? AND (r.expires_at IS NULL OR r.expires_at > ?) \
                     AND d.state <> 'creating'";
        let row = sqlx::query(sql)
            .bind(database.as_str())
            .bind(role)
            .bind(now_ms())
            .fetch_optional(&self.readers)
            .await?;
        row.map(|row| {
            let state: String = row.try_get("state")?;
            Ok(RoleRow {
                verifier: row.try_get("verifier")?,
                superuser: row.try_get("superuser")?,
                plan: row.try_get("plan")?,
                state: State::parse(&state).unwrap_or(State::Error),
            })
        })
        .transpose()
    }

    /// Gives a role another verifier; on disk when this returns. `false`: there is no such role (any more).
    pub async fn set_verifier(&self, database: &DatabaseId, role: &str, verifier: &str) -> Result<bool, MetadataError> {
        let mut write = self.begin().await?;
        let done = sqlx::query("UPDATE roles SET verifier = ? WHERE database_id = ? AND role = ?")
            .bind(verifier)
            .bind(database.as_str())
            .bind(role)
            .execute(write.on())
            .await?;
        write.commit().await?;
        Ok(done.rows_affected() > 0)
    }

    /// Adds a role that opens the database until `expires_at` (ms since 1970), and forgets those that expired.
    pub async fn add_role(
        &self,
        database: &DatabaseId,
        role: &str,
        verifier: &str,
        superuser: bool,
        expires_at: i64,
    ) -> Result<(), MetadataError> {
        let mut write = self.begin().await?;
        sqlx::query("DELETE FROM roles WHERE database_id = ? AND expires_at <= ?")
            .bind(database.as_str())
            .bind(now_ms())
            .execute(write.on())
            .await?;
        sqlx::query("INSERT INTO roles (database_id, role, verifier, superuser, expires_at) VALUES (?, ?, ?, ?, ?)")
            .bind(database.as_str())
            .bind(role)
            .bind(verifier)
            .bind(superuser)
            .bind(expires_at)
            .execute(write.on())
            .await?;
        write.commit().await
    }
}
