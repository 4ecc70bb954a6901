//! Counters and gauges, read by whoever exports them. Plain atomics; each is only ever added to, but the gauges.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A number of things that are there now.
#[derive(Debug, Default)]
pub struct Gauge(AtomicI64);

impl Gauge {
    pub fn get(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn add(&self, n: i64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }
}

/// The pooler's numbers since it was made.
#[derive(Debug, Default)]
pub struct Metrics {
    /// TCP connections open, whatever their state.
    pub clients: Gauge,
    /// Sessions: clients that were let through to a guest, awake or held.
    pub sessions: Gauge,
    /// Sessions whose database sleeps.
    pub held: Gauge,
    /// TCP connections taken.
    pub accepted: Counter,
    /// Connections that came to use TLS.
    pub tls: Counter,
    /// Passwords proven.
    pub authenticated: Counter,
    /// Passwords not proven, unknown users included.
    pub refused: Counter,
    /// Clients that did not speak the protocol.
    pub protocol_errors: Counter,
    /// Clients turned away by one of the limits.
    pub over_limit: Counter,
    /// Wakes asked of the host, by new clients and by held ones.
    pub wakes: Counter,
    pub wake_errors: Counter,
    /// Held sessions bound again, and those that could not be.
    pub bound: Counter,
    pub lost: Counter,
    /// Suspends allowed and refused.
    pub quiesced: Counter,
    pub busy: Counter,
    /// Cancel requests passed to a guest, and those that named nobody.
    pub cancels: Counter,
    pub stray_cancels: Counter,
    /// Bytes forwarded, after login.
    pub bytes_to_guest: Counter,
    pub bytes_to_client: Counter,
}
