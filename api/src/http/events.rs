//! `/v1/events`: server-sent events of state changes, for the console.
//!
//! `database` with `{id, name, tenant, state, message}` at each change, `deleted` with `{id}`, and `refresh` when
//! the stream has lagged and the list should be read again. A stream does not say what was before it: read the
//! list after it has opened.

use std::convert::Infallible;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::extract::State;
use axum::response::IntoResponse;
use axum::response::sse::{Event, KeepAlive, Sse};
use futures_util::stream;
use serde_json::json;
use tokio::sync::broadcast::error::RecvError;

use super::Api;
use super::auth::Principal;
use super::problem::{Problem, ProblemBody};
use crate::host::Change;

/// A place among the open streams.
struct Place(Api);

impl Place {
    fn take(api: &Api) -> Option<Place> {
        let shared = api.shared();
        let before = shared.event_streams.fetch_add(1, Ordering::Relaxed);
        // Dropped, and so given back, when there is none.
        let place = Place(api.clone());
        (before < shared.event_streams_most).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.shared().event_streams.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Streams the changes of databases' states, as they happen.
#[utoipa::path(
    get, path = "/v1/events", tag = "events", security(("key" = []), ("session" = [])),
    responses(
        (status = 200, description = "Events `database`, `deleted`, `refresh`", content_type = "text/event-stream", body = String),
        (status = 429, description = "Too many streams are open", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn stream(State(api): State<Api>, principal: Principal) -> Result<impl IntoResponse, Problem> {
    let place = Place::take(&api).ok_or_else(|| Problem::too_many("too many event streams are open (setting api.event_streams)"))?;
    let changes = api.shared().host.changes();
    let events = stream::unfold((changes, principal, place), |(mut changes, principal, place)| async move {
        loop {
            let event = match changes.recv().await {
                Ok(change) if principal.tenant().is_none_or(|own| *own == change.tenant) => describe(&change),
                Ok(_) => continue,
                Err(RecvError::Lagged(_)) => Event::default().event("refresh").data("{}"),
                Err(RecvError::Closed) => return None,
            };
            return Some((Ok::<_, Infallible>(event), (changes, principal, place)));
        }
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(Duration::from_secs(15))))
}

fn describe(change: &Change) -> Event {
    match change.state {
        Some(state) => {
            let data = json!({
                "id": change.id.as_str(),
                "name": change.name,
                "tenant": change.tenant_name,
                "state": state,
                "message": change.message,
            });
            Event::default().event("database").data(data.to_string())
        }
        None => Event::default().event("deleted").data(json!({"id": change.id.as_str()}).to_string()),
    }
}
