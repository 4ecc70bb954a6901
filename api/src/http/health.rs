//! `/healthz`: whether the server can do its work.

use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::Api;
use super::problem::{Problem, ProblemBody};

#[derive(Debug, Serialize, ToSchema)]
pub struct Health {
    /// `ok`.
    status: &'static str,
    version: &'static str,
    /// Databases awake or on their way.
    at_work: usize,
}

/// Says that the server is up and its metadata answers. Needs no key.
#[utoipa::path(
    get, path = "/healthz", tag = "health",
    responses(
        (status = 200, description = "Up", body = Health),
        (status = 503, description = "The metadata does not answer", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn health(State(api): State<Api>) -> Result<axum::Json<Health>, Problem> {
    let host = &api.shared().host;
    host.metadata().ping().await.map_err(|error| {
        tracing::error!(%error, "health");
        Problem::unavailable("the metadata does not answer; the server's log says why")
    })?;
    Ok(axum::Json(Health { status: "ok", version: env!("CARGO_PKG_VERSION"), at_work: host.at_work() }))
}
