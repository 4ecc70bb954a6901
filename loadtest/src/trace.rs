//! The traces of many wakes as one: the median of each step.

use std::cmp::Reverse;
use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use crate::stats::median;

/// A wake as `GET /v1/databases/{id}/wake-trace` tells it.
#[derive(Debug, Clone, Deserialize)]
pub struct WakeTrace {
    pub kind: String,
    pub steps: Vec<Step>,
    pub complete: bool,
}

impl WakeTrace {
    /// When the client had the first of its answer.
    fn answered_us(&self) -> u64 {
        self.steps.iter().find(|step| step.step == "first_byte_back").map_or(0, |step| step.at_us)
    }
}

#[derive(Debug, Clone, Deserialize)]
pub struct Step {
    pub step: String,
    pub at_us: u64,
    pub took_us: u64,
}

/// Medians over all wakes of a series that had the step.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MedianStep {
    pub step: String,
    pub wakes: usize,
    pub at_us: f64,
    pub took_us: f64,
    /// Of the slowest tenth of the wakes alone.
    pub took_us_slow: Option<f64>,
}

/// In the order of the medians, which is not that of each wake: some steps go on beside others.
pub fn medians(traces: &[WakeTrace]) -> Vec<MedianStep> {
    let mut all: HashMap<&str, (Vec<f64>, Vec<f64>, Vec<f64>)> = HashMap::new();
    let mut slowest_first: Vec<_> = traces.iter().collect();
    slowest_first.sort_by_key(|trace| Reverse(trace.answered_us()));
    for (n, trace) in slowest_first.into_iter().enumerate() {
        for step in &trace.steps {
            let (at, took, slow) = all.entry(&step.step).or_default();
            at.push(step.at_us as f64);
            took.push(step.took_us as f64);
            if n < traces.len().div_ceil(10) {
                slow.push(step.took_us as f64);
            }
        }
    }
    let mut medians: Vec<_> = all
        .into_iter()
        .filter_map(|(step, (at, took, slow))| {
            Some(MedianStep {
                step: step.to_owned(),
                wakes: at.len(),
                at_us: median(&at)?,
                took_us: median(&took)?,
                took_us_slow: median(&slow),
            })
        })
        .collect();
    medians.sort_by(|one, other| one.at_us.total_cmp(&other.at_us));
    medians
}

pub fn print(what: &str, steps: &[MedianStep]) {
    println!("{what}, step by step (medians)");
    println!("{:18} {:>5} {:>9} {:>9} {:>17}", "step", "n", "at µs", "took µs", "in slowest tenth");
    for one in steps {
        let slow = one.took_us_slow.map(|took| format!("{took:.0}")).unwrap_or_default();
        println!(
            "{:18} {:>5} {:>9.0} {:>9.0} {slow:>17}",
            one.step, one.wakes, one.at_us, one.took_us
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_step_has_its_own_median() {
        let trace = |steps: &[(&str, u64, u64)]| WakeTrace {
            kind: "resume".into(),
            steps: steps
                .iter()
                .map(|(step, at_us, took_us)| Step {
                    step: (*step).into(),
                    at_us: *at_us,
                    took_us: *took_us,
                })
                .collect(),
            complete: true,
        };
        let medians = medians(&[
            trace(&[("a", 0, 0), ("spent", 5, 5), ("b", 9, 4)]),
            trace(&[("a", 0, 0), ("b", 7, 7), ("spent", 20, 13)]),
            trace(&[("a", 0, 0), ("b", 8, 8)]),
        ]);
        let names: Vec<_> = medians.iter().map(|one| one.step.as_str()).collect();
        assert_eq!(names, ["a", "spent", "b"]);
        assert_eq!(
            (medians[2].wakes, medians[2].at_us, medians[2].took_us),
            (3, 8.0, 7.0)
        );
        assert_eq!(medians[1].wakes, 2);
    }

    #[test]
    fn the_slowest_tenth_is_that_of_the_answers() {
        let traces: Vec<WakeTrace> = (1..=20)
            .map(|n| WakeTrace {
                kind: "resume".into(),
                // Spent is later than the answer of the wakes that were fast.
                steps: [("memory", n, n), ("first_byte_back", 2 * n, n), ("spent", 100 - n, 1)]
                    .map(|(step, at_us, took_us)| Step { step: step.into(), at_us, took_us })
                    .into(),
                complete: true,
            })
            .collect();
        let medians = medians(&traces);
        let memory = medians.iter().find(|one| one.step == "memory").unwrap();
        assert_eq!((memory.took_us, memory.took_us_slow), (10.0, Some(19.0)));
    }
}
