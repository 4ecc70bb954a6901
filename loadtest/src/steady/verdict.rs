//! The criteria of a steady life.

use serde::Serialize;

use super::heap::Heap;
use super::{Plan, Sample, SteadyError, Upkeep};
use crate::pgbench::{self, Figures};
use crate::stats::median;

/// By how much the kernel's own memory may grow once it has settled.
const KERNEL_GROWTH: f64 = 1024.0 * 1024.0;
/// Samples whose median stands for one moment.
const MOMENT: usize = 6;

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verdict {
    pub what: &'static str,
    pub passed: bool,
    pub found: String,
}

pub fn all(
    plan: &Plan,
    figures: &Figures,
    samples: &[Sample],
    upkeep: Upkeep,
    heap: &Heap,
) -> Result<Vec<Verdict>, SteadyError> {
    if samples.is_empty() {
        return Err(SteadyError::NoSamples);
    }
    let verdict = |what, passed, found: String| Verdict {
        what,
        passed,
        found,
    };
    Ok(vec![
        verdict(
            "every transaction was committed",
            figures.failed == 0 && figures.transactions > 0,
            format!("{} of {} failed", figures.failed, figures.transactions),
        ),
        verdict(
            "checkpoints ran",
            upkeep.checkpoints > 0,
            upkeep.checkpoints.to_string(),
        ),
        verdict(
            "autovacuum ran",
            upkeep.autovacuums > 0,
            format!("{} tables vacuumed", upkeep.autovacuums),
        ),
        kernel_memory(plan.settled(), samples),
        verdict(
            "pg_amcheck is clean",
            heap.corruption.is_none(),
            heap.corruption.clone().unwrap_or_else(|| {
                format!("{} tables and indexes in the catalogue", heap.relations)
            }),
        ),
        verdict(
            "balances agree",
            pgbench::agree(&heap.sums),
            heap.sums.join(", "),
        ),
    ])
}

/// From the moment it has settled to the end.
fn kernel_memory(settled: f64, samples: &[Sample]) -> Verdict {
    let what = "the kernel's own memory grew by less than 1 MiB";
    let moment = |samples: &mut dyn Iterator<Item = &Sample>| {
        let bytes: Option<Vec<_>> = samples
            .take(MOMENT)
            .map(|sample| Some(sample.kernel_bytes? as f64))
            .collect();
        median(&bytes?)
    };
    let later = samples.iter().filter(|sample| sample.second >= settled);
    let at_settled = moment(&mut later.clone());
    let at_end = moment(&mut later.rev());
    match at_settled.zip(at_end) {
        Some((then, end)) => Verdict {
            what,
            passed: end - then < KERNEL_GROWTH,
            found: format!(
                "{:.0} KiB after {:.0} minutes, {:.0} KiB at the end",
                then / 1024.0,
                settled / 60.0,
                end / 1024.0
            ),
        },
        None => Verdict {
            what,
            passed: false,
            found: "the VMM does not tell it".to_owned(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(second: u32, kernel_bytes: Option<u64>) -> Sample {
        Sample {
            second: second.into(),
            tps: 1.0,
            latency_ms: 1.0,
            kernel_bytes,
            cache_bytes: None,
            guest_bytes: None,
            host_bytes: 0,
            layer_bytes: 0,
        }
    }

    fn growing(by: u64) -> Vec<Sample> {
        let mut samples: Vec<_> = (0..=180)
            .map(|n| sample(n * 10, Some(if n < 60 { 0 } else { 1 << 20 })))
            .collect();
        for last in samples.iter_mut().rev().take(MOMENT) {
            last.kernel_bytes = Some((1 << 20) + by);
        }
        samples
    }

    #[test]
    fn growth_counts_from_the_moment_it_has_settled() {
        assert!(kernel_memory(600.0, &growing((1 << 20) - 1)).passed);
        assert!(!kernel_memory(600.0, &growing(1 << 20)).passed);
        // Before that it may do what it likes; counted from the start, it would not pass.
        assert!(!kernel_memory(0.0, &growing(0)).passed);
    }

    #[test]
    fn what_is_not_told_does_not_pass() {
        let verdict = kernel_memory(0.0, &[sample(10, None)]);
        assert!(!verdict.passed);
    }
}
