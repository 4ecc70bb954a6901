//! Percentiles of a sample, by the nearest-rank method: every number printed was measured, none is interpolated.

use std::time::Duration;

use serde::Serialize;

/// What is told of one series of timings. Milliseconds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    pub samples: usize,
    pub p50_ms: f64,
    pub p90_ms: f64,
    pub p99_ms: f64,
    pub min_ms: f64,
    pub max_ms: f64,
}

impl Summary {
    /// `None` for an empty sample.
    pub fn of(sample: &[Duration]) -> Option<Self> {
        let mut sorted = sample.to_vec();
        sorted.sort_unstable();
        let ms = |duration: &Duration| duration.as_secs_f64() * 1e3;
        Some(Self {
            samples: sorted.len(),
            p50_ms: ms(percentile(&sorted, 50)?),
            p90_ms: ms(percentile(&sorted, 90)?),
            p99_ms: ms(percentile(&sorted, 99)?),
            min_ms: ms(sorted.first()?),
            max_ms: ms(sorted.last()?),
        })
    }
}

/// The smallest value that at least `percent` per cent of a sorted sample do not exceed.
pub fn percentile<T>(sorted: &[T], percent: usize) -> Option<&T> {
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted.get(rank.checked_sub(1)?)
}

/// The median of figures such as transactions per second.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    percentile(&sorted, 50).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_the_nearest_rank() {
        let hundred: Vec<u32> = (1..=100).collect();
        assert_eq!(percentile(&hundred, 50), Some(&50));
        assert_eq!(percentile(&hundred, 90), Some(&90));
        assert_eq!(percentile(&hundred, 99), Some(&99));
        let five = [15, 20, 35, 40, 50];
        assert_eq!(percentile(&five, 30), Some(&20));
        assert_eq!(percentile(&five, 40), Some(&20));
        assert_eq!(percentile(&five, 50), Some(&35));
        assert_eq!(percentile(&five, 100), Some(&50));
    }

    #[test]
    fn needs_at_least_one_sample() {
        assert_eq!(percentile::<u32>(&[], 50), None);
        assert_eq!(Summary::of(&[]), None);
        assert_eq!(median(&[]), None);
        assert_eq!(percentile(&[7], 1), Some(&7));
        assert_eq!(percentile(&[7], 99), Some(&7));
    }

    #[test]
    fn summarises_in_milliseconds_whatever_the_order() {
        let sample: Vec<_> = [3, 1, 2].map(Duration::from_millis).to_vec();
        let summary = Summary::of(&sample).unwrap();
        assert_eq!(
            summary,
            Summary {
                samples: 3,
                p50_ms: 2.0,
                p90_ms: 3.0,
                p99_ms: 3.0,
                min_ms: 1.0,
                max_ms: 3.0
            }
        );
    }

    #[test]
    fn median_sorts_floats() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
    }
}
