//! `/metrics`: counters and histograms as Prometheus reads them (text format 0.0.4).

use std::fmt::Write;

use axum::extract::State as Axum;
use axum::http::header;
use axum::response::IntoResponse;

use super::Api;
use super::auth::Principal;
use super::problem::{Problem, ProblemBody};
use crate::host::metrics::Histogram;
use crate::host::{EventKind, Host, WakeKind};

/// What the server has counted since it started, for Prometheus; takes the operator's key.
#[utoipa::path(
    get, path = "/metrics", tag = "health", security(("key" = []), ("session" = [])),
    responses(
        (status = 200, description = "Prometheus' text format", content_type = "text/plain", body = String),
        (status = 403, description = "The key is a tenant's", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub async fn metrics(Axum(api): Axum<Api>, principal: Principal) -> Result<impl IntoResponse, Problem> {
    principal.admin()?;
    let shared = api.shared();
    let mut page = Page(String::with_capacity(16 << 10));
    of_host(&mut page, &shared.host);
    of_pooler(&mut page, &shared.pooler);
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], page.0))
}

fn of_host(page: &mut Page, host: &Host) {
    let wakes = host.wakes();
    page.head("dormouse_wake_seconds", "histogram", "From a wake being asked for to the guest running");
    for kind in WakeKind::ALL {
        page.histogram("dormouse_wake_seconds", &format!("kind=\"{}\"", kind.as_str()), &wakes.ready[kind as usize]);
    }
    page.head(
        "dormouse_wake_answer_seconds",
        "histogram",
        "From the first byte of the client that asked for a wake to the first byte of its answer",
    );
    page.histogram("dormouse_wake_answer_seconds", "", &wakes.answered);
    let metrics = host.metrics();
    page.one("dormouse_suspends_total", "counter", "Suspends committed", metrics.suspends.get());
    page.one("dormouse_packed_total", "counter", "Databases packed", metrics.packed.get());
    page.one("dormouse_pack_failures_total", "counter", "Attempts to pack a database that failed", metrics.pack_failures.get());
    page.head("dormouse_database_events_total", "counter", "Events of databases, failures among them, by kind");
    for kind in EventKind::ALL {
        let (labels, value) = (format!("kind=\"{}\"", kind.as_str()), metrics.events[kind as usize].get());
        page.line("dormouse_database_events_total", &labels, value);
    }
    page.one("dormouse_databases_awake", "gauge", "Databases that have a running guest", host.awake());
}

fn of_pooler(page: &mut Page, pooler: &dormouse_pooler::Metrics) {
    let gauges = [
        ("clients", "Client connections open", &pooler.clients),
        ("sessions", "Sessions, awake or held", &pooler.sessions),
        ("held_sessions", "Sessions whose database sleeps", &pooler.held),
    ];
    for (name, help, gauge) in gauges {
        page.one(&format!("dormouse_pooler_{name}"), "gauge", help, gauge.get());
    }
    let counters = [
        ("accepted", "Client connections taken", &pooler.accepted),
        ("tls", "Connections that came to use TLS", &pooler.tls),
        ("authenticated", "Passwords proven", &pooler.authenticated),
        ("refused", "Passwords not proven", &pooler.refused),
        ("protocol_errors", "Clients that did not speak the protocol", &pooler.protocol_errors),
        ("over_limit", "Clients turned away by a limit", &pooler.over_limit),
        ("wakes_asked", "Wakes asked of the host", &pooler.wakes),
        ("wake_errors", "Wakes that failed", &pooler.wake_errors),
        ("sessions_bound", "Held sessions bound again", &pooler.bound),
        ("sessions_lost", "Held sessions that could not be", &pooler.lost),
        ("suspends_allowed", "Suspends that found all clients idle", &pooler.quiesced),
        ("suspends_refused", "Suspends refused because a client waited", &pooler.busy),
        ("cancels", "Cancel requests passed on", &pooler.cancels),
        ("stray_cancels", "Cancel requests that named nobody", &pooler.stray_cancels),
        ("bytes_to_guest", "Bytes forwarded to guests", &pooler.bytes_to_guest),
        ("bytes_to_client", "Bytes forwarded to clients", &pooler.bytes_to_client),
    ];
    for (name, help, counter) in counters {
        page.one(&format!("dormouse_pooler_{name}_total"), "counter", help, counter.get());
    }
}

/// The text as it grows. Writing to a string never fails.
struct Page(String);

impl Page {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let _ = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    fn line(&mut self, name: &str, labels: &str, value: impl std::fmt::Display) {
        let _ = match labels {
            "" => writeln!(self.0, "{name} {value}"),
            labels => writeln!(self.0, "{name}{{{labels}}} {value}"),
        };
    }

    fn one(&mut self, name: &str, kind: &str, help: &str, value: impl std::fmt::Display) {
        self.head(name, kind, help);
        self.line(name, "", value);
    }

    fn histogram(&mut self, name: &str, labels: &str, histogram: &Histogram) {
        let comma = if labels.is_empty() { "" } else { "," };
        let mut count = 0;
        for (bound, below) in histogram.cumulative() {
            let bound = bound.map_or("+Inf".into(), |ms| (ms as f64 / 1000.0).to_string());
            self.line(&format!("{name}_bucket"), &format!("{labels}{comma}le=\"{bound}\""), below);
            count = below;
        }
        self.line(&format!("{name}_sum"), labels, histogram.sum().as_secs_f64());
        self.line(&format!("{name}_count"), labels, count);
    }
}
