//! What the host counts, since it was made. Exported by `/metrics`.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use dormouse_pooler::metrics::Counter;

use super::event::EventKind;

/// Upper bounds of the buckets: 1, 2, 4 … 4096 ms.
const BUCKETS: usize = 13;

/// Times, by powers of two.
#[derive(Debug, Default)]
pub struct Histogram {
    /// The last one has no bound.
    buckets: [AtomicU64; BUCKETS + 1],
    sum_us: AtomicU64,
}

impl Histogram {
    pub fn observe(&self, time: Duration) {
        let us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let bucket = (0..BUCKETS).find(|n| us <= 1000 << n).unwrap_or(BUCKETS);
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum_us.fetch_add(us, Ordering::Relaxed);
    }

    /// Each bound in ms (none of the last) with how many did not exceed it.
    pub fn cumulative(&self) -> impl Iterator<Item = (Option<u64>, u64)> {
        self.buckets.iter().enumerate().scan(0, |sum, (n, bucket)| {
            *sum += bucket.load(Ordering::Relaxed);
            Some(((n < BUCKETS).then_some(1 << n), *sum))
        })
    }

    #[cfg(test)]
    pub fn count(&self) -> u64 {
        self.cumulative().last().map_or(0, |(_, count)| count)
    }

    pub fn sum(&self) -> Duration {
        Duration::from_micros(self.sum_us.load(Ordering::Relaxed))
    }
}

/// Of the host manager.
#[derive(Debug, Default)]
pub struct HostMetrics {
    /// Suspends that were committed.
    pub suspends: Counter,
    /// Databases packed, and attempts that failed.
    pub packed: Counter,
    pub pack_failures: Counter,
    /// By [`EventKind`], in its order.
    pub events: [Counter; EventKind::ALL.len()],
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_counted_under_the_first_bound_that_it_does_not_exceed() {
        let histogram = Histogram::default();
        for us in [0, 1000, 1001, 4_096_000, 4_096_001, u64::MAX / 2] {
            histogram.observe(Duration::from_micros(us));
        }
        let buckets: Vec<_> = histogram.cumulative().collect();
        assert_eq!(buckets.len(), 14);
        assert_eq!(buckets[..2], [(Some(1), 2), (Some(2), 3)]);
        assert_eq!(buckets[11..], [(Some(2048), 3), (Some(4096), 4), (None, 6)]);
        assert_eq!(histogram.count(), 6);
    }
}
