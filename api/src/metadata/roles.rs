//! Roles: who may log in to a database.

use sqlx::Row;

use super::{Metadata, MetadataError, now_ms};
use crate::host::State;
use crate::identity::DatabaseId;

/// What a login needs to know of a role and its database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoleRow {
    /// In the form of `pg_authid.rolpassword`. `None`: it is not a role of the service's, but may be one made in SQL.
    pub verifier: Option<String>,
    /// The owner's password has been set in SQL.
    pub sql_owner: bool,
    /// In the guest it is PostgreSQL's superuser: an operator's login.
    pub superuser: bool,
    pub plan: String,
    /// The database's state as last written.
    pub state: State,
}

impl Metadata {
    /// What is known of a role; `None` if it has expired, if nobody can have such a role, or the database is being made.
    pub async fn role(&self, database: &DatabaseId, role: &str) -> Result<Option<RoleRow>, MetadataError> {
        let sql = "SELECT r.verifier, coalesce(r.superuser, 0) AS superuser, d.sql_owner, d.plan, d.state FROM databases d \
                     LEFT JOIN roles r ON r.database_id = d.id AND r.role = ? AND (r.expires_at IS NULL OR r.expires_at > ?) \
                   WHERE d.id = ? AND d.state <> 'creating' AND (r.role IS NOT NULL OR d.sql_roles)";
        let row = sqlx::query(sql)
            .bind(role)
            .bind(now_ms())
            .bind(database.as_str())
            .fetch_optional(&self.readers)
            .await?;
        row.map(|row| {
            let state: String = row.try_get("state")?;
            Ok(RoleRow {
                verifier: row.try_get("verifier")?,
                superuser: row.try_get("superuser")?,
                sql_owner: row.try_get("sql_owner")?,
                plan: row.try_get("plan")?,
                state: State::parse(&state).unwrap_or(State::Error),
            })
        })
        .transpose()
    }

    /// Notes that passwords have been set in SQL, the owner's or other roles'; on disk when this returns.
    pub async fn note_sql_passwords(&self, database: &DatabaseId, owner: bool, roles: bool) -> Result<(), MetadataError> {
        let sql = "SELECT 1 FROM databases WHERE id = ? AND (sql_owner < ? OR sql_roles < ?)";
        let news = sqlx::query(sql).bind(database.as_str()).bind(owner).bind(roles).fetch_optional(&self.readers).await?;
        if news.is_none() {
            return Ok(());
        }
        self.write((database.clone(), owner, roles), |(database, owner, roles), on| {
            Box::pin(async move {
                sqlx::query("UPDATE databases SET sql_owner = sql_owner OR ?, sql_roles = sql_roles OR ? WHERE id = ?")
                    .bind(owner)
                    .bind(roles)
                    .bind(database.as_str())
                    .execute(on)
                    .await?;
                Ok(())
            })
        })
        .await
    }

    /// Gives a role another verifier; on disk when this returns. `false`: there is no such role (any more).
    pub async fn set_verifier(&self, database: &DatabaseId, role: &str, verifier: &str) -> Result<bool, MetadataError> {
        self.write((database.clone(), role.to_owned(), verifier.to_owned()), |(database, role, verifier), on| {
            Box::pin(async move {
                let done = sqlx::query("UPDATE roles SET verifier = ? WHERE database_id = ? AND role = ?")
                    .bind(verifier)
                    .bind(database.as_str())
                    .bind(role)
                    .execute(on)
                    .await?;
                Ok(done.rows_affected() > 0)
            })
        })
        .await
    }

    /// Adds a role that opens the database until `expires_at` (ms since 1970), and forgets those that expired. False if the
    /// database is gone.
    pub async fn add_role(
        &self,
        database: &DatabaseId,
        role: &str,
        verifier: &str,
        superuser: bool,
        expires_at: i64,
    ) -> Result<bool, MetadataError> {
        let data = (database.clone(), role.to_owned(), verifier.to_owned(), superuser, expires_at);
        self.write(data, |(database, role, verifier, superuser, expires_at), on| {
            Box::pin(async move {
                sqlx::query("DELETE FROM roles WHERE database_id = ? AND expires_at <= ?")
                    .bind(database.as_str())
                    .bind(now_ms())
                    .execute(&mut *on)
                    .await?;
                // Not an error where it is gone: that would undo what others write in this transaction.
                let sql = "INSERT INTO roles (database_id, role, verifier, superuser, expires_at) \
                             SELECT id, ?, ?, ?, ? FROM databases WHERE id = ?";
                let added = sqlx::query(sql)
                    .bind(role)
                    .bind(verifier)
                    .bind(superuser)
                    .bind(expires_at)
                    .bind(database.as_str())
                    .execute(on)
                    .await?;
                Ok(added.rows_affected() > 0)
            })
        })
        .await
    }
}
