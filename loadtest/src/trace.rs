//! The traces of many wakes as one: the median of each step.

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
}

/// In the order of the medians, which is not that of each wake: some steps go on beside others.
pub fn medians(traces: &[WakeTrace]) -> Vec<MedianStep> {
    let mut all: HashMap<&str, (Vec<f64>, Vec<f64>)> = HashMap::new();
    for step in traces.iter().flat_map(|trace| &trace.steps) {
        let (at, took) = all.entry(&step.step).or_default();
        at.push(step.at_us as f64);
        took.push(step.took_us as f64);
    }
    let mut medians: Vec<_> = all
        .into_iter()
        .filter_map(|(step, (at, took))| {
            Some(MedianStep {
                step: step.to_owned(),
                wakes: at.len(),
                at_us: median(&at)?,
                took_us: median(&took)?,
            })
        })
        .collect();
    medians.sort_by(|one, other| one.at_us.total_cmp(&other.at_us));
    medians
}

pub fn print(what: &str, steps: &[MedianStep]) {
    println!("{what}, step by step (medians)");
    println!("{:18} {:>5} {:>9} {:>9}", "step", "n", "at µs", "took µs");
    for one in steps {
        println!(
            "{:18} {:>5} {:>9.0} {:>9.0}",
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
}
