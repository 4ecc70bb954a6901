//! Reading what a client sent: a JSON body, a query, a path; each refusal a problem that names the field.

use axum::extract::{FromRequest, FromRequestParts, Query, Request};
use axum::http::{StatusCode, header, request::Parts};
use serde::de::DeserializeOwned;

use super::Api;
use super::problem::Problem;
use crate::identity::DatabaseId;

/// A JSON body. Types refuse fields they do not know (`deny_unknown_fields`).
pub struct Body<T>(pub T);

impl<T: DeserializeOwned> FromRequest<Api> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, api: &Api) -> Result<Self, Problem> {
        let json = request
            .headers()
            .get(header::CONTENT_TYPE)
            .and_then(|v| v.to_str().ok())
            .and_then(|v| v.split(';').next())
            .is_some_and(|v| v.trim().eq_ignore_ascii_case("application/json"));
        if !json {
            return Err(Problem::media_type("send the body as JSON, with the header content-type: application/json"));
        }
        let limit = api.shared().body_limit;
        let bytes = axum::body::Bytes::from_request(request, api).await.map_err(|e| match e.status() {
            StatusCode::PAYLOAD_TOO_LARGE => Problem::too_large(format!("a body may have at most {limit} bytes")),
            _ => Problem::malformed("the body could not be read to its end"),
        })?;
        serde_json::from_slice(&bytes).map(Body).map_err(|e| from_json(&e))
    }
}

/// serde's messages start with what is wrong and quote the field in backquotes where they know it.
fn from_json(error: &serde_json::Error) -> Problem {
    let text = error.to_string();
    if !error.is_data() {
        return Problem::malformed(format!("the body is not valid JSON: {text}"));
    }
    let quoted = text.split('`').nth(1).filter(|_| text.starts_with("unknown field") || text.starts_with("missing field"));
    match quoted {
        Some(field) => Problem::invalid(field, text.split(" at line").next().unwrap_or(&text)),
        None => Problem::malformed(format!("the body does not fit: {text}")),
    }
}

/// A query string.
pub struct Search<T>(pub T);

impl<T: DeserializeOwned> FromRequestParts<Api> for Search<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &Api) -> Result<Self, Problem> {
        Query::try_from_uri(&parts.uri)
            .map(|Query(value)| Search(value))
            .map_err(|e| Problem::malformed(format!("the query does not fit: {}", e.body_text())))
    }
}

/// The database id in a path. What is not an id is not found, like an id that does not exist.
pub fn database_id(text: &str) -> Result<DatabaseId, Problem> {
    DatabaseId::parse(text).ok_or_else(|| Problem::not_found("there is no such database"))
}
