//! Databases.

use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use super::{Metadata, MetadataError, now_ms};
use crate::host::State;
use crate::identity::{DatabaseId, TenantId};

/// A database as kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatabaseRow {
    pub seq: i64,
    pub id: DatabaseId,
    pub tenant: TenantId,
    pub tenant_name: String,
    pub name: String,
    /// The last state written; the host knows a newer one while the database is at work.
    pub state: State,
    pub plan: String,
    /// Major version of Postgres.
    pub pg_version: u32,
    pub image: String,
    /// The database's own cool-down, in ms; its plan's otherwise.
    pub cool_down_ms: Option<u64>,
    pub message: Option<String>,
    /// ms since 1970.
    pub created_at: i64,
}

/// What a create writes, in one transaction, in state `creating`.
#[derive(Clone, Debug)]
pub struct NewDatabase<'a> {
    pub id: &'a DatabaseId,
    pub tenant: &'a TenantId,
    pub name: &'a str,
    pub plan: &'a str,
    /// Databases of the plan a tenant may have.
    pub plan_databases: u64,
    pub pg_version: u32,
    pub image: &'a str,
    pub cool_down_ms: Option<u64>,
    pub role: &'a str,
    pub verifier: &'a str,
}

/// Why a database was not made.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    #[error("a database of this name exists")]
    NameTaken,
    #[error("the plan allows no more databases")]
    PlanFull,
    #[error(transparent)]
    Metadata(#[from] MetadataError),
}

/// Which databases a list has.
#[derive(Clone, Debug, Default)]
pub struct DatabaseFilter<'a> {
    /// Only this tenant's.
    pub tenant: Option<&'a TenantId>,
    /// Only those of this name.
    pub name: Option<&'a str>,
    /// Only those of these major versions that are on none of these images: the newest of each.
    pub not_on: Option<&'a [(u32, String)]>,
}

/// How many databases are on an image, as last written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageUse {
    pub image: String,
    pub pg_version: u32,
    pub asleep: u64,
    pub stopped: u64,
    pub awake: u64,
}

/// A page of a list: rows after this `seq`, at most so many.
#[derive(Clone, Copy, Debug)]
pub struct Page {
    pub after: i64,
    pub limit: i64,
}

/// The columns of a [`DatabaseRow`].
const SELECT: &str = "SELECT d.seq, d.id, d.tenant_id, t.name AS tenant_name, d.name, d.state, d.plan, d.pg_version, d.image, \
                             d.cool_down_ms, d.message, d.created_at \
                      FROM databases d JOIN tenants t ON t.id = d.tenant_id ";

impl Metadata {
    /// Inserts the row in state `creating` and its role. The plan's count is checked in the same transaction,
    /// so two creates at once cannot both take the last place.
    pub async fn create_database(&self, new: &NewDatabase<'_>) -> Result<DatabaseRow, CreateError> {
        let mut write = self.begin().await?;
        let have: i64 = sqlx::query("SELECT count(*) AS n FROM databases WHERE tenant_id = ? AND plan = ?")
            .bind(new.tenant.as_str())
            .bind(new.plan)
            .fetch_one(write.on())
            .await
            .and_then(|row| row.try_get("n"))
            .map_err(MetadataError::from)?;
        let sql = "INSERT INTO databases (id, tenant_id, name, state, plan, pg_version, image, cool_down_ms, created_at) \
                   VALUES (?, ?, ?, 'creating', ?, ?, ?, ?, ?)";
        let inserted = sqlx::query(sql)
            .bind(new.id.as_str())
            .bind(new.tenant.as_str())
            .bind(new.name)
            .bind(new.plan)
            .bind(new.pg_version)
            .bind(new.image)
            .bind(new.cool_down_ms.map(|ms| ms as i64))
            .bind(now_ms())
            .execute(write.on())
            .await;
        match inserted {
            Ok(_) => {}
            Err(e) if e.as_database_error().is_some_and(|e| e.is_unique_violation()) => return Err(CreateError::NameTaken),
            Err(e) => return Err(CreateError::Metadata(e.into())),
        }
        // After the insert, so that a taken name is told from a full plan.
        if have as u64 >= new.plan_databases {
            return Err(CreateError::PlanFull);
        }
        sqlx::query("INSERT INTO roles (database_id, role, verifier) VALUES (?, ?, ?)")
            .bind(new.id.as_str())
            .bind(new.role)
            .bind(new.verifier)
            .execute(write.on())
            .await
            .map_err(MetadataError::from)?;
        let row = sqlx::query(&format!("{SELECT} WHERE d.id = ?"))
            .bind(new.id.as_str())
            .fetch_one(write.on())
            .await
            .map_err(MetadataError::from)?;
        let row = read(&row)?;
        write.commit().await?;
        Ok(row)
    }

    pub async fn database(&self, id: &DatabaseId) -> Result<Option<DatabaseRow>, MetadataError> {
        let row = sqlx::query(&format!("{SELECT} WHERE d.id = ?"))
            .bind(id.as_str())
            .fetch_optional(&self.readers)
            .await?;
        row.as_ref().map(read).transpose()
    }

    /// Databases after `page.after`, oldest first.
    pub async fn list_databases(&self, filter: DatabaseFilter<'_>, page: Page) -> Result<Vec<DatabaseRow>, MetadataError> {
        let mut sql = format!("{SELECT} WHERE d.seq > ?");
        if filter.tenant.is_some() {
            sql.push_str(" AND d.tenant_id = ?");
        }
        if filter.name.is_some() {
            sql.push_str(" AND d.name = ?");
        }
        if let Some(newest) = filter.not_on {
            let places = vec!["?"; newest.len()].join(", ");
            sql.push_str(&format!(" AND d.pg_version IN ({places}) AND d.image NOT IN ({places})"));
        }
        sql.push_str(" ORDER BY d.seq LIMIT ?");
        let mut query = sqlx::query(&sql).bind(page.after);
        if let Some(tenant) = filter.tenant {
            query = query.bind(tenant.as_str());
        }
        if let Some(name) = filter.name {
            query = query.bind(name);
        }
        for (version, _) in filter.not_on.unwrap_or_default() {
            query = query.bind(version);
        }
        for (_, image) in filter.not_on.unwrap_or_default() {
            query = query.bind(image);
        }
        let rows = query.bind(page.limit).fetch_all(&self.readers).await?;
        rows.iter().map(read).collect()
    }

    /// The rows that a crash may have left in the middle of something.
    pub async fn databases_at_work(&self) -> Result<Vec<DatabaseRow>, MetadataError> {
        let sql = format!("{SELECT} WHERE d.state NOT IN ('suspended', 'stopped', 'error') ORDER BY d.seq");
        let rows = sqlx::query(&sql).fetch_all(&self.readers).await?;
        rows.iter().map(read).collect()
    }

    /// Writes a state that must be on disk before what it announces begins.
    pub async fn set_state(&self, id: &DatabaseId, state: State, message: Option<&str>) -> Result<(), MetadataError> {
        let mut write = self.begin().await?;
        sqlx::query("UPDATE databases SET state = ?, message = ? WHERE id = ?")
            .bind(state.as_str())
            .bind(message)
            .bind(id.as_str())
            .execute(write.on())
            .await?;
        write.commit().await
    }

    /// Sets or, with none, gives back to the plan the database's cool-down.
    pub async fn set_cool_down(&self, id: &DatabaseId, ms: Option<u64>) -> Result<(), MetadataError> {
        let mut write = self.begin().await?;
        sqlx::query("UPDATE databases SET cool_down_ms = ? WHERE id = ?")
            .bind(ms.map(|ms| ms as i64))
            .bind(id.as_str())
            .execute(write.on())
            .await?;
        write.commit().await
    }

    /// Moves the database to another image, and notes the template that its layer keeps; on disk when this returns.
    pub async fn set_image(&self, id: &DatabaseId, image: &str, template: Option<&str>) -> Result<(), MetadataError> {
        let mut write = self.begin().await?;
        sqlx::query("UPDATE databases SET image = ?, template = ? WHERE id = ?")
            .bind(image)
            .bind(template)
            .bind(id.as_str())
            .execute(write.on())
            .await?;
        write.commit().await
    }

    /// Templates that layers of moved databases lie over, beside those of the images in use.
    pub async fn templates_in_use(&self) -> Result<Vec<String>, MetadataError> {
        let rows = sqlx::query("SELECT DISTINCT template FROM databases WHERE template IS NOT NULL")
            .fetch_all(&self.readers)
            .await?;
        rows.iter().map(|row| Ok(row.try_get("template")?)).collect()
    }

    /// How many databases are on each image.
    pub async fn count_by_image(&self) -> Result<Vec<ImageUse>, MetadataError> {
        let sql = "SELECT image, pg_version, sum(state = 'suspended') AS asleep, \
                          sum(state IN ('stopped', 'error')) AS stopped, count(*) AS n \
                   FROM databases GROUP BY image, pg_version ORDER BY image";
        let rows = sqlx::query(sql).fetch_all(&self.readers).await?;
        rows.iter()
            .map(|row| {
                let number = |column| row.try_get::<i64, _>(column).map(i64::unsigned_abs);
                let (asleep, stopped) = (number("asleep")?, number("stopped")?);
                Ok(ImageUse {
                    image: row.try_get("image")?,
                    pg_version: row.try_get("pg_version")?,
                    asleep,
                    stopped,
                    awake: number("n")?.saturating_sub(asleep + stopped),
                })
            })
            .collect()
    }

    /// Removes the row and, with it, its roles.
    pub async fn remove_database(&self, id: &DatabaseId) -> Result<(), MetadataError> {
        let mut write = self.begin().await?;
        sqlx::query("DELETE FROM databases WHERE id = ?").bind(id.as_str()).execute(write.on()).await?;
        write.commit().await
    }

    /// How many databases there are in each state, as last written.
    pub async fn count_by_state(&self) -> Result<Vec<(String, u64)>, MetadataError> {
        let rows = sqlx::query("SELECT state, count(*) AS n FROM databases GROUP BY state")
            .fetch_all(&self.readers)
            .await?;
        rows.iter()
            .map(|row| Ok((row.try_get("state")?, row.try_get::<i64, _>("n")? as u64)))
            .collect()
    }
}

fn read(row: &SqliteRow) -> Result<DatabaseRow, MetadataError> {
    let id: String = row.try_get("id")?;
    let wrong = |what: String| MetadataError::Row { id: id.clone(), what };
    let tenant: String = row.try_get("tenant_id")?;
    let state: String = row.try_get("state")?;
    Ok(DatabaseRow {
        seq: row.try_get("seq")?,
        id: DatabaseId::parse(&id).ok_or_else(|| wrong("no database id".into()))?,
        tenant: TenantId::parse(&tenant).ok_or_else(|| wrong(format!("the tenant {tenant:?}")))?,
        tenant_name: row.try_get("tenant_name")?,
        name: row.try_get("name")?,
        state: State::parse(&state).ok_or_else(|| wrong(format!("the state {state:?}")))?,
        plan: row.try_get("plan")?,
        pg_version: row.try_get("pg_version")?,
        image: row.try_get("image")?,
        cool_down_ms: row.try_get::<Option<i64>, _>("cool_down_ms")?.map(|ms| ms.max(0) as u64),
        message: row.try_get("message")?,
        created_at: row.try_get("created_at")?,
    })
}
