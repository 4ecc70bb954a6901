//! Databases.

use std::collections::HashSet;

use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};

use super::writer::Failure;
use super::{Metadata, MetadataError, events, now_ms};
use crate::crash;
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
    /// Its first wake has made its folders: from then on they must be there.
    pub has_files: bool,
    /// Its layer was seen with data in it: from then on it must not be empty.
    pub written: bool,
    /// ms since 1970.
    pub created_at: i64,
}

/// What a create writes, in one transaction.
#[derive(Clone, Debug)]
pub struct NewDatabase {
    pub id: DatabaseId,
    pub tenant: TenantId,
    pub name: String,
    pub state: State,
    pub plan: String,
    /// Databases of the plan a tenant may have.
    pub plan_databases: u64,
    pub pg_version: u32,
    pub image: String,
    pub cool_down_ms: Option<u64>,
    pub role: String,
    pub verifier: String,
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

impl Failure for CreateError {
    fn is_refusal(&self) -> bool {
        matches!(self, CreateError::NameTaken | CreateError::PlanFull)
    }
}

impl From<sqlx::Error> for CreateError {
    fn from(error: sqlx::Error) -> Self {
        CreateError::Metadata(error.into())
    }
}

/// Which databases a list has.
#[derive(Clone, Copy, Debug, Default)]
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

/// Writes a state, its message and, of one that falls asleep, since when; by the id.
pub(crate) const SET_STATE: &str = "UPDATE databases SET state = ?1, message = ?2, \
                                           asleep_since = CASE WHEN ?1 = 'suspended' AND has_files = 1 THEN ?3 END \
                                    WHERE id = ?4";

/// The columns of a [`DatabaseRow`].
const SELECT: &str = "SELECT d.seq, d.id, d.tenant_id, t.name AS tenant_name, d.name, d.state, d.plan, d.pg_version, d.image, \
                             d.cool_down_ms, d.message, d.has_files, d.written, d.created_at \
                      FROM databases d JOIN tenants t ON t.id = d.tenant_id ";

impl Metadata {
    /// Inserts the row, its role and its first event; on disk when this returns. The plan's count is checked in the same
    /// transaction, so two creates at once cannot both take the last place.
    pub async fn create_database(&self, new: NewDatabase) -> Result<DatabaseRow, CreateError> {
        self.write(new, |new, on| Box::pin(insert(new, on))).await
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
        let Some(newest) = filter.not_on else { return self.page_of(filter, None, page).await };
        // A page of each older image, of which there are few, by its index: among a million that are not, a filter would
        // look at all.
        let mut rows = Vec::new();
        for image in self.images_but(newest).await? {
            rows.extend(self.page_of(filter, Some(&image), page).await?);
        }
        rows.sort_by_key(|row| row.seq);
        rows.truncate(usize::try_from(page.limit).unwrap_or_default());
        Ok(rows)
    }

    async fn page_of(&self, filter: DatabaseFilter<'_>, image: Option<&str>, page: Page) -> Result<Vec<DatabaseRow>, MetadataError> {
        let mut sql = format!("{SELECT} WHERE d.seq > ?");
        let tenant = filter.tenant.map(TenantId::as_str);
        // "+" keeps a tenant's page from going by the image, which may be everybody's.
        let by_image = if tenant.or(filter.name).is_some() { "+d.image" } else { "d.image" };
        let filters = [("d.tenant_id", tenant), ("d.name", filter.name), (by_image, image)];
        for (column, _) in filters.iter().filter(|(_, value)| value.is_some()) {
            sql.push_str(&format!(" AND {column} = ?"));
        }
        sql.push_str(" ORDER BY d.seq LIMIT ?");
        let mut query = sqlx::query(&sql).bind(page.after);
        for value in filters.iter().filter_map(|(_, value)| *value) {
            query = query.bind(value);
        }
        let rows = query.bind(page.limit).fetch_all(&self.readers).await?;
        rows.iter().map(read).collect()
    }

    /// The images of these major versions that databases are on, but for these: the newest of each.
    async fn images_but(&self, newest: &[(u32, String)]) -> Result<Vec<String>, MetadataError> {
        let places = vec!["?"; newest.len()].join(", ");
        let sql = format!(
            "SELECT DISTINCT image FROM image_use WHERE databases > 0 AND pg_version IN ({places}) AND image NOT IN ({places})"
        );
        let mut query = sqlx::query(&sql);
        for (version, _) in newest {
            query = query.bind(version);
        }
        for (_, image) in newest {
            query = query.bind(image);
        }
        let rows = query.fetch_all(&self.readers).await?;
        rows.iter().map(|row| Ok(row.try_get("image")?)).collect()
    }

    /// Of these ids, those that databases have.
    pub async fn known(&self, ids: &[DatabaseId]) -> Result<HashSet<DatabaseId>, MetadataError> {
        let sql = format!("SELECT id FROM databases WHERE id IN ({})", vec!["?"; ids.len()].join(", "));
        let mut query = sqlx::query(&sql);
        for id in ids {
            query = query.bind(id.as_str());
        }
        let rows = query.fetch_all(&self.readers).await?;
        let known = rows.iter().map(|row| row.try_get::<String, _>("id").map(|id| DatabaseId::parse(&id)));
        Ok(known.collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect())
    }

    /// The rows that a crash may have left in the middle of something.
    pub async fn databases_at_work(&self) -> Result<Vec<DatabaseRow>, MetadataError> {
        // "+" keeps it from going by rowid, through all that are at rest, to have them in order.
        let sql = format!("{SELECT} WHERE d.state NOT IN ('suspended', 'stopped', 'error') ORDER BY +d.seq");
        let rows = sqlx::query(&sql).fetch_all(&self.readers).await?;
        rows.iter().map(read).collect()
    }

    /// Writes a state that must be on disk before what it announces begins.
    pub async fn set_state(&self, id: &DatabaseId, state: State, message: Option<&str>) -> Result<(), MetadataError> {
        self.change((id.clone(), state, message.map(str::to_owned)), |(id, state, message), on| {
            Box::pin(async move {
                sqlx::query(SET_STATE)
                    .bind(state.as_str())
                    .bind(message)
                    .bind(now_ms())
                    .bind(id.as_str())
                    .execute(on)
                    .await?;
                Ok(())
            })
        })
        .await
    }

    /// Notes that its folders are made, and on disk. `false`: there is no such database (any more).
    pub async fn set_has_files(&self, id: &DatabaseId) -> Result<bool, MetadataError> {
        self.change(id.clone(), |id, on| {
            Box::pin(async move {
                let done = sqlx::query("UPDATE databases SET has_files = 1 WHERE id = ?").bind(id.as_str()).execute(on).await?;
                Ok(done.rows_affected() > 0)
            })
        })
        .await
    }

    /// The database that has slept longest as it was left, and since when, in ms since 1970.
    pub async fn longest_asleep(&self) -> Result<Option<(DatabaseId, i64)>, MetadataError> {
        let sql = "SELECT id, asleep_since FROM databases WHERE asleep_since > 0 ORDER BY asleep_since LIMIT 1";
        let Some(row) = sqlx::query(sql).fetch_optional(&self.readers).await? else { return Ok(None) };
        let id: String = row.try_get("id")?;
        let wrong = MetadataError::Row { id: id.clone(), what: "no database id".into() };
        Ok(Some((DatabaseId::parse(&id).ok_or(wrong)?, row.try_get("asleep_since")?)))
    }

    /// Notes since when a database sleeps as it was left; `None`: it no longer does. Nothing, if it fell asleep after `seen`.
    pub async fn set_asleep(&self, id: &DatabaseId, since: Option<i64>, seen: i64) -> Result<(), MetadataError> {
        self.write((id.clone(), since, seen), |(id, since, seen), on| {
            Box::pin(async move {
                sqlx::query("UPDATE databases SET asleep_since = ? WHERE id = ? AND asleep_since <= ?")
                    .bind(*since)
                    .bind(id.as_str())
                    .bind(*seen)
                    .execute(on)
                    .await?;
                Ok(())
            })
        })
        .await
    }

    /// Sets or, with none, gives back to the plan the database's cool-down.
    pub async fn set_cool_down(&self, id: &DatabaseId, ms: Option<u64>) -> Result<(), MetadataError> {
        self.change((id.clone(), ms), |(id, ms), on| {
            Box::pin(async move {
                sqlx::query("UPDATE databases SET cool_down_ms = ? WHERE id = ?")
                    .bind(ms.map(|ms| ms as i64))
                    .bind(id.as_str())
                    .execute(on)
                    .await?;
                Ok(())
            })
        })
        .await
    }

    /// Moves the database to another image, and notes the template that its layer keeps; on disk when this returns.
    pub async fn set_image(&self, id: &DatabaseId, image: &str, template: Option<&str>) -> Result<(), MetadataError> {
        self.change((id.clone(), image.to_owned(), template.map(str::to_owned)), |(id, image, template), on| {
            Box::pin(async move {
                sqlx::query("UPDATE databases SET image = ?, template = ? WHERE id = ?")
                    .bind(image)
                    .bind(template)
                    .bind(id.as_str())
                    .execute(on)
                    .await?;
                Ok(())
            })
        })
        .await
    }

    /// Templates that layers of moved databases lie over, beside those of the images in use.
    pub async fn templates_in_use(&self) -> Result<Vec<String>, MetadataError> {
        let rows = sqlx::query("SELECT DISTINCT template FROM image_use WHERE template <> '' AND databases > 0")
            .fetch_all(&self.readers)
            .await?;
        rows.iter().map(|row| Ok(row.try_get("template")?)).collect()
    }

    /// How many databases are on each image.
    pub async fn count_by_image(&self) -> Result<Vec<ImageUse>, MetadataError> {
        let sql = "SELECT image, pg_version, sum(databases * (state = 'suspended')) AS asleep, \
                          sum(databases * (state IN ('stopped', 'error'))) AS stopped, sum(databases) AS n \
                   FROM image_use GROUP BY image, pg_version HAVING n > 0 ORDER BY image";
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
        self.change(id.clone(), |id, on| {
            Box::pin(async move {
                sqlx::query("DELETE FROM databases WHERE id = ?").bind(id.as_str()).execute(on).await?;
                Ok(())
            })
        })
        .await
    }
}

async fn insert(new: &NewDatabase, on: &mut SqliteConnection) -> Result<DatabaseRow, CreateError> {
    let sql = "SELECT t.name, coalesce(u.databases, 0) AS n FROM tenants t \
                 LEFT JOIN plan_use u ON u.tenant_id = t.id AND u.plan = ? \
               WHERE t.id = ?";
    let tenant = sqlx::query(sql).bind(&new.plan).bind(new.tenant.as_str()).fetch_one(&mut *on).await?;
    let created_at = now_ms();
    let sql = "INSERT INTO databases (id, tenant_id, name, state, plan, pg_version, image, cool_down_ms, created_at) \
               VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING seq";
    let inserted = sqlx::query(sql)
        .bind(new.id.as_str())
        .bind(new.tenant.as_str())
        .bind(&new.name)
        .bind(new.state.as_str())
        .bind(&new.plan)
        .bind(new.pg_version)
        .bind(&new.image)
        .bind(new.cool_down_ms.map(|ms| ms as i64))
        .bind(created_at)
        .fetch_one(&mut *on)
        .await;
    let inserted = match inserted {
        Err(e) if e.as_database_error().is_some_and(|e| e.is_unique_violation()) => return Err(CreateError::NameTaken),
        other => other?,
    };
    // After the insert, so that a taken name is told from a full plan.
    if tenant.try_get::<i64, _>("n")?.max(0) as u64 >= new.plan_databases {
        return Err(CreateError::PlanFull);
    }
    sqlx::query("INSERT INTO roles (database_id, role, verifier) VALUES (?, ?, ?)")
        .bind(new.id.as_str())
        .bind(&new.role)
        .bind(&new.verifier)
        .execute(&mut *on)
        .await?;
    events::insert_created(on, &new.id, created_at).await?;
    crash::point("create-written");
    Ok(DatabaseRow {
        seq: inserted.try_get("seq")?,
        id: new.id.clone(),
        tenant: new.tenant.clone(),
        tenant_name: tenant.try_get("name")?,
        name: new.name.clone(),
        state: new.state,
        plan: new.plan.clone(),
        pg_version: new.pg_version,
        image: new.image.clone(),
        cool_down_ms: new.cool_down_ms,
        message: None,
        has_files: false,
        written: false,
        created_at,
    })
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
        has_files: row.try_get("has_files")?,
        written: row.try_get("written")?,
        created_at: row.try_get("created_at")?,
    })
}
