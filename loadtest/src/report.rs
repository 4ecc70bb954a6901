//! What a run prints and writes: the figures, with the machine and the command beside them.

use std::path::Path;

use serde::Serialize;

use crate::machine::Machine;
use crate::stats::Summary;

#[derive(Debug, Serialize)]
pub struct Report<R> {
    pub machine: Machine,
    /// The command line, as typed.
    pub command: String,
    #[serde(flatten)]
    pub results: R,
}

impl<R: Serialize> Report<R> {
    pub fn new(results: R) -> Self {
        let command = std::env::args().collect::<Vec<_>>().join(" ");
        Self {
            machine: Machine::this(),
            command,
            results,
        }
    }

    pub fn print_head(&self) {
        println!("machine  {}", self.machine);
        println!("command  {}", self.command);
    }

    pub fn write(&self, file: &Path) -> std::io::Result<()> {
        let mut text = serde_json::to_string_pretty(self)?;
        text.push('\n');
        std::fs::write(file, text)
    }
}

/// One line of a table of timings.
#[derive(Debug, Clone, Serialize)]
pub struct Timing {
    pub what: String,
    #[serde(flatten)]
    pub summary: Summary,
    /// Median over native's median of the same run; `None` for native itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ratio_to_native: Option<f64>,
}

pub fn print_timings(timings: &[Timing]) {
    let width = timings
        .iter()
        .map(|timing| timing.what.chars().count())
        .max()
        .unwrap_or(0);
    println!(
        "{:width$} {:>5} {:>9} {:>9} {:>9} {:>9}  of native",
        "", "n", "p50", "p90", "p99", "max"
    );
    for Timing {
        what,
        summary,
        ratio_to_native,
    } in timings
    {
        let ratio = ratio_to_native.map_or(String::new(), |ratio| format!("{ratio:.2}"));
        println!(
            "{what:width$} {:>5} {:>6.2} ms {:>6.2} ms {:>6.2} ms {:>6.2} ms  {ratio}",
            summary.samples, summary.p50_ms, summary.p90_ms, summary.p99_ms, summary.max_ms
        );
    }
}
