//! How long to wait before something counts as hung.

use std::time::Duration;

/// A limit, times `DORMOUSE_PATIENCE` (a whole number) where that is set: on a machine that is itself emulated,
/// everything takes longer, and nothing is wrong.
pub fn limit(base: Duration) -> Duration {
    let factor = std::env::var("DORMOUSE_PATIENCE")
        .ok()
        .and_then(|text| text.parse().ok());
    base * factor.unwrap_or(1)
}
