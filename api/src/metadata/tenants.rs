//! Tenants.

use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use super::writer::Failure;
use super::{Metadata, MetadataError, Page, now_ms};
use crate::identity::TenantId;

/// A tenant as kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TenantRow {
    pub seq: i64,
    pub id: TenantId,
    pub name: String,
    /// ms since 1970.
    pub created_at: i64,
}

/// Why a tenant was not made.
#[derive(Debug, thiserror::Error)]
pub enum NewTenantError {
    #[error("a tenant of this name exists")]
    NameTaken,
    #[error(transparent)]
    Metadata(#[from] MetadataError),
}

impl Failure for NewTenantError {
    fn is_refusal(&self) -> bool {
        matches!(self, NewTenantError::NameTaken)
    }
}

impl Metadata {
    /// Makes a tenant whose key has this hash.
    pub async fn create_tenant(&self, id: &TenantId, name: &str, key_hash: &[u8; 32]) -> Result<TenantRow, NewTenantError> {
        self.write((id.clone(), name.to_owned(), *key_hash), |(id, name, key_hash), on| {
            Box::pin(async move {
                let sql = "INSERT INTO tenants (id, name, key_hash, created_at) VALUES (?, ?, ?, ?) \
                           RETURNING seq, id, name, created_at";
                let row = sqlx::query(sql)
                    .bind(id.as_str())
                    .bind(name)
                    .bind(key_hash.as_slice())
                    .bind(now_ms())
                    .fetch_one(on)
                    .await;
                match row {
                    Ok(row) => Ok(read(&row)?),
                    Err(e) if e.as_database_error().is_some_and(|e| e.is_unique_violation()) => Err(NewTenantError::NameTaken),
                    Err(e) => Err(NewTenantError::Metadata(e.into())),
                }
            })
        })
        .await
    }

    /// The tenant whose key has this hash.
    pub async fn tenant_by_key(&self, key_hash: &[u8; 32]) -> Result<Option<TenantRow>, MetadataError> {
        let sql = "SELECT seq, id, name, created_at FROM tenants WHERE key_hash = ?";
        let row = sqlx::query(sql).bind(key_hash.as_slice()).fetch_optional(&self.readers).await?;
        row.as_ref().map(read).transpose()
    }

    pub async fn tenant_by_id(&self, id: &TenantId) -> Result<Option<TenantRow>, MetadataError> {
        let sql = "SELECT seq, id, name, created_at FROM tenants WHERE id = ?";
        let row = sqlx::query(sql).bind(id.as_str()).fetch_optional(&self.readers).await?;
        row.as_ref().map(read).transpose()
    }

    pub async fn tenant_by_name(&self, name: &str) -> Result<Option<TenantRow>, MetadataError> {
        let sql = "SELECT seq, id, name, created_at FROM tenants WHERE name = ?";
        let row = sqlx::query(sql).bind(name).fetch_optional(&self.readers).await?;
        row.as_ref().map(read).transpose()
    }

    /// Tenants after `page.after`, oldest first.
    pub async fn list_tenants(&self, page: Page) -> Result<Vec<TenantRow>, MetadataError> {
        let sql = "SELECT seq, id, name, created_at FROM tenants WHERE seq > ? ORDER BY seq LIMIT ?";
        let rows = sqlx::query(sql).bind(page.after).bind(page.limit).fetch_all(&self.readers).await?;
        rows.iter().map(read).collect()
    }
}

fn read(row: &SqliteRow) -> Result<TenantRow, MetadataError> {
    let id: String = row.try_get("id")?;
    Ok(TenantRow {
        seq: row.try_get("seq")?,
        id: TenantId::parse(&id).ok_or_else(|| MetadataError::Row { id: id.clone(), what: "no tenant id".into() })?,
        name: row.try_get("name")?,
        created_at: row.try_get("created_at")?,
    })
}
