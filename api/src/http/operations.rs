//! `/v1/databases/{id}/…` for whoever keeps a database running: what happened to it, what it is doing, a restart, and the
//! move to another image.

use axum::extract::{Path, State as Axum};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::Api;
use super::auth::Principal;
use super::body::{Body, Search};
use super::databases::{Database, find, rfc3339, view, view_one};
use super::page::{cut, page};
use super::problem::{Problem, ProblemBody};
use crate::host::{EventKind, WakeKind};

/// Something that happened to a database.
#[derive(Debug, Serialize, ToSchema)]
pub struct DatabaseEvent {
    /// RFC 3339, UTC.
    #[schema(example = "2026-11-20T18:00:00.123Z")]
    at: String,
    #[schema(value_type = EventKind)]
    kind: String,
    /// What there is to say beyond its kind.
    message: Option<String>,
}

/// A page of events, newest first.
#[derive(Debug, Serialize, ToSchema)]
pub struct DatabaseEvents {
    events: Vec<DatabaseEvent>,
    /// Give it as `cursor` for the next page; null on the last.
    next_cursor: Option<String>,
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct ListEvents {
    /// Events on a page, 1–1000; 100 if not given.
    limit: Option<i64>,
    /// Where the page starts: `next_cursor` of the one before.
    cursor: Option<String>,
}

/// What every process of a guest is doing.
#[derive(Debug, Serialize, ToSchema)]
pub struct Tasks {
    /// For people: a line a process, its backtrace below it.
    report: String,
}

/// A database's last wake.
#[derive(Debug, Serialize, ToSchema)]
pub struct WakeTrace {
    /// RFC 3339, UTC: when it was awake.
    #[schema(example = "2026-11-20T18:00:00.123Z")]
    at: String,
    kind: WakeKind,
    /// In the order of time, not all on one thread: the snapshot's mark lands beside the rest.
    steps: Vec<WakeStep>,
    /// False: no client's answer belongs to it, or not yet.
    complete: bool,
}

/// What was done (`docs/wake-path.md` tells of each step).
#[derive(Debug, Serialize, ToSchema)]
pub struct WakeStep {
    step: String,
    /// When it was done, µs since the first.
    at_us: u64,
    /// µs since the one before it.
    took_us: u64,
}

#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Adopt {
    /// Clients' sessions end. Without it, a database that has some is left alone.
    #[serde(default)]
    end_sessions: bool,
}

/// What became of a move to the newest image.
#[derive(Debug, Serialize, ToSchema)]
pub struct Adopted {
    #[serde(flatten)]
    database: Database,
    /// False: on the newest already, or has to stay where it is (the server's log says why).
    moved: bool,
}

/// Lists what happened to a database: cold starts, refused snapshots, ends of its virtual machine, moves to other images.
/// Not its sleeps and wakes. The newest so many are kept (setting `host.events_kept`).
#[utoipa::path(
    get, path = "/v1/databases/{id}/events", tag = "databases", params(("id" = String, Path, description = "The database's id"), ListEvents),
    security(("key" = []), ("session" = [])),
    responses(
        (status = 200, description = "A page of events, newest first", body = DatabaseEvents),
        (status = 404, description = "There is no such database", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn events(
    Axum(api): Axum<Api>,
    principal: Principal,
    Path(id): Path<String>,
    Search(query): Search<ListEvents>,
) -> Result<axum::Json<DatabaseEvents>, Problem> {
    let shared = api.shared();
    let row = find(shared, &principal, &id).await?;
    let page = page(query.limit, query.cursor.as_deref())?;
    let mut rows = shared.host.events(&row.id, page).await?;
    let next_cursor = cut(&mut rows, page, |row| row.seq);
    let events =
        rows.into_iter().map(|row| DatabaseEvent { at: rfc3339(row.at), kind: row.kind, message: row.message }).collect();
    Ok(axum::Json(DatabaseEvents { events, next_cursor }))
}

/// Tells what every process of an awake database's guest is doing: its state, what it waits until, its backtrace.
#[utoipa::path(
    get, path = "/v1/databases/{id}/tasks", tag = "databases", params(("id" = String, Path, description = "The database's id")),
    security(("key" = []), ("session" = [])),
    responses(
        (status = 200, description = "The report", body = Tasks),
        (status = 404, description = "There is no such database", body = ProblemBody, content_type = "application/problem+json"),
        (status = 409, description = "It is not awake", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn tasks(Axum(api): Axum<Api>, principal: Principal, Path(id): Path<String>) -> Result<axum::Json<Tasks>, Problem> {
    let shared = api.shared();
    let row = find(shared, &principal, &id).await?;
    Ok(axum::Json(Tasks { report: shared.host.tasks(&row.id).await? }))
}

/// Takes a database's last wake apart: what was done when, from the first byte of the client that asked for it to the first
/// byte of its answer. The last 1000 wakes of this server are kept.
#[utoipa::path(
    get, path = "/v1/databases/{id}/wake-trace", tag = "databases", params(("id" = String, Path, description = "The database's id")),
    security(("key" = []), ("session" = [])),
    responses(
        (status = 200, description = "The steps", body = WakeTrace),
        (status = 404, description = "There is no such database, or no trace of it", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn wake_trace(Axum(api): Axum<Api>, principal: Principal, Path(id): Path<String>) -> Result<axum::Json<WakeTrace>, Problem> {
    let shared = api.shared();
    let row = find(shared, &principal, &id).await?;
    let none = "its last wake is not among those kept: it has not been woken since the server started, or 1000 others were";
    let wake = shared.host.wakes().last(&row.id).ok_or_else(|| Problem::not_found(none))?;
    let mut before = 0;
    let steps = wake.steps().into_iter().map(|(step, at_us)| {
        let took_us = at_us - std::mem::replace(&mut before, at_us);
        WakeStep { step: step.to_owned(), at_us, took_us }
    });
    Ok(axum::Json(WakeTrace { at: rfc3339(wake.at), kind: wake.kind, steps: steps.collect(), complete: wake.is_complete() }))
}

/// Shuts Postgres down cleanly, or discards the snapshot of a database that sleeps. Sessions end; the next use is a cold
/// start, on the newest image and with the plan's memory.
#[utoipa::path(
    post, path = "/v1/databases/{id}/restart", tag = "databases", params(("id" = String, Path, description = "The database's id")),
    security(("key" = []), ("session" = [])),
    responses(
        (status = 200, description = "It is stopped", body = Database),
        (status = 404, description = "There is no such database", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn restart(Axum(api): Axum<Api>, principal: Principal, Path(id): Path<String>) -> Result<axum::Json<Database>, Problem> {
    let shared = api.shared();
    let row = find(shared, &principal, &id).await?;
    shared.host.restart(&row.id, true).await?;
    Ok(axum::Json(view(shared, find(shared, &principal, &id).await?)))
}

/// Packs a database that sleeps: snapshot and data layer become one compressed file. It is done by itself after a time asleep
/// (setting `host.pack_after_s`). Packed already is no error; whoever needs the database meanwhile calls it off. For the operator.
#[utoipa::path(
    post, path = "/v1/databases/{id}/pack", tag = "databases", params(("id" = String, Path, description = "The database's id")),
    security(("key" = []), ("session" = [])),
    responses(
        (status = 200, description = "It is packed", body = Database),
        (status = 403, description = "Only the operator may", body = ProblemBody, content_type = "application/problem+json"),
        (status = 404, description = "There is no such database", body = ProblemBody, content_type = "application/problem+json"),
        (status = 409, description = "It does not sleep, or it cannot be packed; `detail` says why", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn pack(Axum(api): Axum<Api>, principal: Principal, Path(id): Path<String>) -> Result<axum::Json<Database>, Problem> {
    let shared = api.shared();
    principal.admin()?;
    let row = find(shared, &principal, &id).await?;
    shared.host.pack(&row.id).await?;
    Ok(axum::Json(view_one(shared, find(shared, &principal, &id).await?)))
}

/// Moves a database to the newest image of its major version, without waking it: its snapshot, which only the old image
/// could go on from, is discarded, and its next use is a cold start. One that is awake is shut down.
#[utoipa::path(
    post, path = "/v1/databases/{id}/adopt", tag = "images", params(("id" = String, Path, description = "The database's id")),
    request_body = Adopt, security(("key" = []), ("session" = [])),
    responses(
        (status = 200, description = "It is on the newest image, or has to stay where it is", body = Adopted),
        (status = 404, description = "There is no such database", body = ProblemBody, content_type = "application/problem+json"),
        (status = 409, description = "It has sessions, and they were not to end", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn adopt(
    Axum(api): Axum<Api>,
    principal: Principal,
    Path(id): Path<String>,
    Body(asked): Body<Adopt>,
) -> Result<axum::Json<Adopted>, Problem> {
    let shared = api.shared();
    let row = find(shared, &principal, &id).await?;
    let moved = shared.host.adopt(&row, asked.end_sessions).await?;
    Ok(axum::Json(Adopted { database: view(shared, find(shared, &principal, &id).await?), moved }))
}
