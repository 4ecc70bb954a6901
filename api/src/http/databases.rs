//! `/v1/databases`.

use axum::extract::{Path, State as Axum};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use utoipa::{IntoParams, ToSchema};

use super::auth::Principal;
use super::body::{Body, Search, database_id};
use super::page::{cut, page};
use super::problem::{Problem, ProblemBody};
use super::{Api, Shared};
use crate::host::{Create, CreateError, GUEST_DATABASE, GUEST_ROLE, Host, State};
use crate::identity::{DEFAULT_TENANT, DatabaseId, TenantId, check_name};
use crate::metadata::{DatabaseFilter, DatabaseRow, now_ms};
use dormouse_pooler::service::literal;
use crate::secret::{password_and_verifier, random_text};
use crate::settings::{DEFAULT_PLAN, MAX_COOL_DOWN_MS, MIN_COOL_DOWN_MS};

/// A database.
#[derive(Debug, Serialize, ToSchema)]
pub struct Database {
    /// `db_` and 20 characters of `[a-z0-9]`; never used again.
    #[schema(example = "db_0123456789abcdefghij")]
    id: String,
    #[schema(example = "hello")]
    name: String,
    /// The owner's name.
    tenant: String,
    state: State,
    /// Why it is stopped or in error, or cannot be suspended, in a sentence.
    message: Option<String>,
    plan: String,
    /// Major version of PostgreSQL.
    #[schema(example = 17)]
    pg_version: u32,
    /// The image it runs: kernel and PostgreSQL. Its next cold start is on the newest of its major version.
    #[schema(example = "0123456789abcdef")]
    image: String,
    /// Idle time after which it is suspended, in ms.
    cool_down_ms: u64,
    /// Bytes on disk of one that sleeps packed; told of a database asked for by its id, not in lists.
    #[serde(skip_serializing_if = "Option::is_none")]
    packed_bytes: Option<u64>,
    /// RFC 3339, UTC.
    #[schema(example = "2026-11-20T18:00:00.123Z")]
    created_at: String,
}

/// A new database. The password in `connection_uri` is shown here and never again.
#[derive(Debug, Serialize, ToSchema)]
pub struct NewlyCreated {
    #[serde(flatten)]
    database: Database,
    #[schema(example = "postgresql://app.db_0123456789abcdefghij:PASSWORD@127.0.0.1:5432/app?sslmode=prefer")]
    connection_uri: String,
}

/// A page of databases, oldest first.
#[derive(Debug, Serialize, ToSchema)]
pub struct Databases {
    databases: Vec<Database>,
    /// Give it as `cursor` for the next page; null on the last.
    next_cursor: Option<String>,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateDatabase {
    /// 1–63 of `[a-z0-9-]`, unique to the tenant.
    name: String,
    /// A plan of the settings; `free` if not given.
    plan: Option<String>,
    /// Major version of PostgreSQL, of those that there is an image of; the setting `host.pg_version` if not given.
    pg_version: Option<u32>,
    /// Idle time after which it is suspended, in ms; the plan's if not given.
    cool_down_ms: Option<u64>,
    /// Whose it is to be: only the operator may say. `default` if not given.
    tenant: Option<String>,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangeDatabase {
    /// Idle time after which it is suspended, in ms; null gives it back to the plan.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<u64>)]
    cool_down_ms: Option<Option<u64>>,
}

/// Tells `null` from a field that is not there.
fn given<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Option<u64>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct ListDatabases {
    /// Only the database of this name.
    name: Option<String>,
    /// Only this tenant's; for the operator.
    tenant: Option<String>,
    /// `true`: only those on an older image than the newest of their major version.
    outdated: Option<bool>,
    /// Databases on a page, 1–1000; 100 if not given.
    limit: Option<i64>,
    /// Where the page starts: `next_cursor` of the one before.
    cursor: Option<String>,
}

/// A login that works for a minute, for whoever holds the key but not the password.
#[derive(Debug, Serialize, ToSchema)]
pub struct Login {
    connection_uri: String,
    /// When it stops opening new connections; RFC 3339, UTC.
    expires_at: String,
}

/// A new password. It is in `connection_uri`, shown here and never again.
#[derive(Debug, Serialize, ToSchema)]
pub struct NewPassword {
    #[schema(example = "postgresql://app.db_0123456789abcdefghij:PASSWORD@127.0.0.1:5432/app?sslmode=prefer")]
    connection_uri: String,
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct LoginOptions {
    /// As PostgreSQL's superuser: for the operator alone.
    #[serde(default)]
    superuser: bool,
    /// How long it opens connections, 1–1440; for the operator alone. One minute if not given.
    minutes: Option<u16>,
}

/// How long a login opens connections, in ms. Connections outlive it.
const LOGIN_LIFE_MS: i64 = 60_000;
const MAX_LOGIN_MINUTES: u16 = 1440;

pub(super) fn view(shared: &Shared, row: DatabaseRow) -> Database {
    let plan = shared.host.plan(&row.plan).or_else(|| shared.host.plan(DEFAULT_PLAN));
    Database {
        id: row.id.to_string(),
        name: row.name,
        tenant: row.tenant_name,
        state: row.state,
        message: row.message,
        cool_down_ms: row.cool_down_ms.or(plan.map(|p| p.cool_down_ms)).unwrap_or_default(),
        plan: row.plan,
        pg_version: row.pg_version,
        image: row.image,
        packed_bytes: None,
        created_at: rfc3339(row.created_at),
    }
}

/// Likewise, with what its files say.
pub(super) fn view_one(shared: &Shared, row: DatabaseRow) -> Database {
    let packed = (row.state == State::Suspended).then(|| std::fs::metadata(shared.host.home().packed(&row.id)).ok()).flatten();
    Database { packed_bytes: packed.map(|file| std::os::unix::fs::MetadataExt::blocks(&file) * 512), ..view(shared, row) }
}

/// ms since 1970 as RFC 3339.
pub fn rfc3339(ms: i64) -> String {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(ms) * 1_000_000)
        .ok()
        .and_then(|t| t.format(&Rfc3339).ok())
        .unwrap_or_default()
}

fn uri(shared: &Shared, role: &str, id: &DatabaseId, password: &str) -> String {
    let (at, sslmode) = (&shared.public, shared.sslmode);
    format!("postgresql://{role}.{id}:{password}@{at}/{GUEST_DATABASE}?sslmode={sslmode}")
}

/// The row, up to date, if it is there and the principal may see it; else 404 either way.
pub(super) async fn find(shared: &Shared, principal: &Principal, id: &str) -> Result<DatabaseRow, Problem> {
    let id = database_id(id)?;
    let overlay = shared.host.overlay();
    let row = shared.host.metadata().database(&id).await?;
    let mut row = row
        .filter(|row| principal.may_see(row))
        .ok_or_else(|| Problem::not_found("there is no such database"))?;
    overlay.apply(&mut row);
    Ok(row)
}

/// Lists databases.
#[utoipa::path(
    get, path = "/v1/databases", tag = "databases", params(ListDatabases),
    security(("key" = []), ("session" = [])),
    responses(
        (status = 200, description = "A page of databases, oldest first", body = Databases),
        (status = 422, description = "A parameter is not valid", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn list(Axum(api): Axum<Api>, principal: Principal, Search(query): Search<ListDatabases>) -> Result<axum::Json<Databases>, Problem> {
    let shared = api.shared();
    let metadata = shared.host.metadata();
    let asked = match &query.tenant {
        None => None,
        Some(name) => {
            let tenant = metadata.tenant_by_name(name).await?.map(|t| t.id);
            // Another tenant's name is as good as one that does not exist.
            match tenant.filter(|id| principal.tenant().is_none_or(|own| own == id)) {
                Some(id) => Some(id),
                None => return Err(Problem::invalid("tenant", "there is no tenant of this name")),
            }
        }
    };
    let page = page(query.limit, query.cursor.as_deref())?;
    let newest = query.outdated.unwrap_or_default().then(|| shared.host.home().current_images());
    let filter = DatabaseFilter {
        tenant: asked.as_ref().or(principal.tenant()),
        name: query.name.as_deref(),
        not_on: newest.as_deref(),
    };
    let overlay = shared.host.overlay();
    let mut rows = metadata.list_databases(filter, page).await?;
    let next_cursor = cut(&mut rows, page, |row| row.seq);
    rows.iter_mut().for_each(|row| overlay.apply(row));
    let databases = rows.into_iter().map(|row| view(shared, row)).collect();
    Ok(axum::Json(Databases { databases, next_cursor }))
}

/// Creates a database, asleep. Its first use wakes it.
#[utoipa::path(
    post, path = "/v1/databases", tag = "databases", request_body = CreateDatabase,
    security(("key" = []), ("session" = [])),
    responses(
        (status = 201, description = "Created; the connection string is shown only here", body = NewlyCreated),
        (status = 403, description = "The plan is used up", body = ProblemBody, content_type = "application/problem+json"),
        (status = 409, description = "The name is taken", body = ProblemBody, content_type = "application/problem+json"),
        (status = 503, description = "There is no image yet, or the server is shutting down", body = ProblemBody, content_type = "application/problem+json"),
        (status = 507, description = "The disk is full", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn create(Axum(api): Axum<Api>, principal: Principal, Body(new): Body<CreateDatabase>) -> Result<impl IntoResponse, Problem> {
    let shared = api.shared();
    check_name(&new.name).map_err(|e| Problem::invalid("name", e))?;
    check_cool_down(new.cool_down_ms)?;
    let tenant = owner(shared, &principal, new.tenant.as_deref()).await?;
    let create = Create {
        tenant: &tenant,
        name: &new.name,
        plan: new.plan.as_deref().unwrap_or(DEFAULT_PLAN),
        pg_version: new.pg_version,
        cool_down_ms: new.cool_down_ms,
    };
    let created = shared.host.create(create).await.map_err(|e| match e {
        CreateError::NameTaken => Problem::name_taken("database", &new.name),
        other => other.into(),
    })?;
    tracing::info!(database = %created.row.id, name = new.name, tenant = created.row.tenant_name, "created");
    let connection_uri = uri(shared, GUEST_ROLE, &created.row.id, &created.password);
    let location = [(axum::http::header::LOCATION, format!("/v1/databases/{}", created.row.id))];
    let body = NewlyCreated { database: view(shared, created.row), connection_uri };
    Ok((StatusCode::CREATED, location, axum::Json(body)))
}

async fn owner(shared: &Shared, principal: &Principal, asked: Option<&str>) -> Result<TenantId, Problem> {
    match (principal, asked) {
        (Principal::Tenant(own), None) => Ok(own.id.clone()),
        (Principal::Tenant(own), Some(name)) if own.name == name => Ok(own.id.clone()),
        (Principal::Tenant(_), Some(_)) => Err(Problem::invalid("tenant", "only the operator may create for another")),
        (Principal::Admin, None | Some(DEFAULT_TENANT)) => Ok(TenantId::default_tenant()),
        (Principal::Admin, Some(name)) => match shared.host.metadata().tenant_by_name(name).await? {
            Some(tenant) => Ok(tenant.id),
            None => Err(Problem::invalid("tenant", "there is no tenant of this name")),
        },
    }
}

fn check_cool_down(ms: Option<u64>) -> Result<(), Problem> {
    match ms {
        Some(ms) if !(MIN_COOL_DOWN_MS..=MAX_COOL_DOWN_MS).contains(&ms) => Err(Problem::invalid(
            "cool_down_ms",
            format!("must be from {MIN_COOL_DOWN_MS} to {MAX_COOL_DOWN_MS}"),
        )),
        _ => Ok(()),
    }
}

/// Shows a database.
#[utoipa::path(
    get, path = "/v1/databases/{id}", tag = "databases", params(("id" = String, Path, description = "The database's id")),
    security(("key" = []), ("session" = [])),
    responses(
        (status = 200, description = "The database", body = Database),
        (status = 404, description = "There is no such database", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn show(Axum(api): Axum<Api>, principal: Principal, Path(id): Path<String>) -> Result<axum::Json<Database>, Problem> {
    let shared = api.shared();
    let row = find(shared, &principal, &id).await?;
    Ok(axum::Json(view_one(shared, row)))
}

/// Changes a database's settings.
#[utoipa::path(
    patch, path = "/v1/databases/{id}", tag = "databases", params(("id" = String, Path, description = "The database's id")),
    request_body = ChangeDatabase, security(("key" = []), ("session" = [])),
    responses(
        (status = 200, description = "The database, changed", body = Database),
        (status = 404, description = "There is no such database", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn change(
    Axum(api): Axum<Api>,
    principal: Principal,
    Path(id): Path<String>,
    Body(change): Body<ChangeDatabase>,
) -> Result<axum::Json<Database>, Problem> {
    let shared = api.shared();
    let mut row = find(shared, &principal, &id).await?;
    if let Some(ms) = change.cool_down_ms {
        check_cool_down(ms)?;
        shared.host.set_cool_down(&row, ms).await?;
        row.cool_down_ms = ms;
    }
    Ok(axum::Json(view(shared, row)))
}

/// Deletes a database with all its data, and ends its sessions.
#[utoipa::path(
    delete, path = "/v1/databases/{id}", tag = "databases", params(("id" = String, Path, description = "The database's id")),
    security(("key" = []), ("session" = [])),
    responses(
        (status = 204, description = "It is gone"),
        (status = 404, description = "There is no such database", body = ProblemBody, content_type = "application/problem+json"),
        (status = 500, description = "Its files could not all be removed", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn delete(Axum(api): Axum<Api>, principal: Principal, Path(id): Path<String>) -> Result<StatusCode, Problem> {
    let shared = api.shared();
    let row = find(shared, &principal, &id).await?;
    // A client that gives up must not leave a delete half done until the next start.
    let host = shared.host.clone();
    let deleted = tokio::spawn(async move { host.delete(&row.id).await.map(|()| row.id) }).await;
    let id = deleted.map_err(|_| Problem::unavailable("the delete was interrupted; try again"))??;
    tracing::info!(database = %id, "deleted");
    Ok(StatusCode::NO_CONTENT)
}

/// Suspends a database: it then has no process and no memory. Done when that is so. Waits for a running statement
/// (setting `host.suspend_wait_ms`). Already asleep is no error.
#[utoipa::path(
    post, path = "/v1/databases/{id}/suspend", tag = "databases", params(("id" = String, Path, description = "The database's id")),
    security(("key" = []), ("session" = [])),
    responses(
        (status = 200, description = "It sleeps", body = Database),
        (status = 404, description = "There is no such database", body = ProblemBody, content_type = "application/problem+json"),
        (status = 409, description = "A statement is still running", body = ProblemBody, content_type = "application/problem+json"),
        (status = 500, description = "It cannot be suspended and stays awake; `detail` says why", body = ProblemBody, content_type = "application/problem+json"),
        (status = 507, description = "The disk is full; it stays awake", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn suspend(Axum(api): Axum<Api>, principal: Principal, Path(id): Path<String>) -> Result<axum::Json<Database>, Problem> {
    let shared = api.shared();
    let row = find(shared, &principal, &id).await?;
    shared.host.suspend(&row.id).await?;
    Ok(axum::Json(view(shared, find(shared, &principal, &id).await?)))
}

/// Wakes a database. Unused, it is asleep again after its cool-down.
#[utoipa::path(
    post, path = "/v1/databases/{id}/resume", tag = "databases", params(("id" = String, Path, description = "The database's id")),
    security(("key" = []), ("session" = [])),
    responses(
        (status = 200, description = "It is awake", body = Database),
        (status = 404, description = "There is no such database", body = ProblemBody, content_type = "application/problem+json"),
        (status = 503, description = "It cannot be woken; `detail` says why", body = ProblemBody, content_type = "application/problem+json"),
        (status = 507, description = "The disk is full: it cannot be woken for the first time", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn resume(Axum(api): Axum<Api>, principal: Principal, Path(id): Path<String>) -> Result<axum::Json<Database>, Problem> {
    let shared = api.shared();
    let row = find(shared, &principal, &id).await?;
    shared.host.wake(&row.id).await?;
    Ok(axum::Json(view(shared, find(shared, &principal, &id).await?)))
}

/// Makes a login that opens connections for a minute, as the same user in the database. For `dormouse psql`: the
/// password of the create is kept nowhere.
#[utoipa::path(
    post, path = "/v1/databases/{id}/logins", tag = "databases", params(("id" = String, Path, description = "The database's id"), LoginOptions),
    security(("key" = []), ("session" = [])),
    responses(
        (status = 201, description = "The login", body = Login),
        (status = 404, description = "There is no such database", body = ProblemBody, content_type = "application/problem+json"),
        (status = 422, description = "An option is not valid, or for the operator alone", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn login(
    Axum(api): Axum<Api>,
    principal: Principal,
    Path(id): Path<String>,
    Search(options): Search<LoginOptions>,
) -> Result<impl IntoResponse, Problem> {
    let shared = api.shared();
    let row = find(shared, &principal, &id).await?;
    let operator = matches!(principal, Principal::Admin);
    if options.superuser && !operator {
        return Err(Problem::invalid("superuser", "only the operator may be the superuser"));
    }
    let life_ms = match options.minutes {
        None => LOGIN_LIFE_MS,
        Some(minutes @ 1..=MAX_LOGIN_MINUTES) if operator => i64::from(minutes) * 60_000,
        Some(_) if !operator => return Err(Problem::invalid("minutes", "only the operator may choose it")),
        Some(_) => return Err(Problem::invalid("minutes", format!("must be from 1 to {MAX_LOGIN_MINUTES}"))),
    };
    let role = format!("login-{}", random_text(12, b"abcdefghijklmnopqrstuvwxyz0123456789")?);
    let (password, verifier) = password_and_verifier().await?;
    let expires_at = now_ms() + life_ms;
    if !shared.host.metadata().add_role(&row.id, &role, &verifier, options.superuser, expires_at).await? {
        return Err(Problem::not_found(format!("{} was deleted", row.id)));
    }
    let body = Login { connection_uri: uri(shared, &role, &row.id, &password), expires_at: rfc3339(expires_at) };
    Ok((StatusCode::CREATED, axum::Json(body)))
}

/// Gives the database's user a new random password. The old one opens no new connection from then on, nor does one that
/// was set in SQL; connections that are open or held stay. If one was set in SQL, the database is woken to change it.
#[utoipa::path(
    post, path = "/v1/databases/{id}/password", tag = "databases", params(("id" = String, Path, description = "The database's id")),
    security(("key" = []), ("session" = [])),
    responses(
        (status = 200, description = "Changed; the connection string is shown only here", body = NewPassword),
        (status = 404, description = "There is no such database", body = ProblemBody, content_type = "application/problem+json"),
        (status = 503, description = "A password was set in SQL, and the database could not be woken or did not change it; the old one may hold or not, so try again", body = ProblemBody, content_type = "application/problem+json"),
        (status = 507, description = "The disk is full; the old password still holds", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn password(Axum(api): Axum<Api>, principal: Principal, Path(id): Path<String>) -> Result<axum::Json<NewPassword>, Problem> {
    let shared = api.shared();
    let row = find(shared, &principal, &id).await?;
    let (password, verifier) = password_and_verifier().await?;
    let (host, id) = (shared.host.clone(), row.id.clone());
    // One after the other, and to its end if the client leaves: else metadata and database may keep the passwords of two.
    let turn = shared.resets.turn(&row.id).await;
    let reset = tokio::spawn(async move {
        let _turn = turn;
        reset_password(&host, &id, &verifier).await
    });
    reset.await.map_err(|_| Problem::unavailable("the password could not be changed; try again"))??;
    tracing::info!(database = %row.id, "new password");
    Ok(axum::Json(NewPassword { connection_uri: uri(shared, GUEST_ROLE, &row.id, &password) }))
}

async fn reset_password(host: &Host, id: &DatabaseId, verifier: &str) -> Result<(), Problem> {
    // First, since it is what a full disk refuses: then nothing has changed.
    if !host.metadata().set_verifier(id, GUEST_ROLE, verifier).await? {
        return Err(Problem::not_found("there is no such database"));
    }
    let owner = host.metadata().role(id, GUEST_ROLE).await?;
    if owner.is_some_and(|owner| owner.sql_owner) {
        // What is in the database goes before what is in the metadata: the same in both.
        let sql = format!("ALTER ROLE {GUEST_ROLE} PASSWORD {} VALID UNTIL 'infinity'", literal(verifier));
        host.execute(id, &sql).await?;
    }
    Ok(())
}
