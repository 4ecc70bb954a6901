//! The load, and a sample at each of pgbench's progress lines.

use std::fmt;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::Stdio;

use serde::Serialize;

use super::{Plan, SteadyError};
use crate::client::Target;
use crate::footprint::disk_usage;
use crate::native::{NativeError, Programs};
use crate::pgbench::{self, Figures, PgbenchError};
use crate::vm::Vm;

/// What was true at one moment of the run.
#[derive(Debug, Clone, Serialize)]
pub struct Sample {
    /// Since the load began.
    pub second: f64,
    /// Since the sample before.
    pub tps: f64,
    /// Mean, since the sample before.
    pub latency_ms: f64,
    /// The kernel's own memory: its heap. `None` from a VMM that does not tell.
    pub kernel_bytes: Option<u64>,
    /// Guest memory that only caches files.
    pub cache_bytes: Option<u64>,
    /// Guest memory in use.
    pub guest_bytes: Option<u64>,
    /// The VM's process, shared pages in proportion.
    pub host_bytes: u64,
    /// Disk of the data layer, WAL included.
    pub layer_bytes: u64,
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kernel = self
            .kernel_bytes
            .map_or("?".to_owned(), |bytes| (bytes >> 10).to_string());
        write!(
            f,
            "{:6.0} s: {:6.0} tps; kernel {kernel} KiB; host memory of the VM {} MiB; data layer {} MiB",
            self.second,
            self.tps,
            self.host_bytes >> 20,
            self.layer_bytes >> 20
        )
    }
}

pub fn run(
    programs: &Programs,
    target: &Target,
    vm: &Vm,
    layer: &Path,
    plan: &Plan,
) -> Result<(Figures, Vec<Sample>), SteadyError> {
    let io = SteadyError::io(Path::new("pgbench"));
    let mut command = pgbench::command(programs, target);
    command
        .arg(format!("--client={}", plan.clients))
        .arg(format!("--time={}", plan.seconds()))
        .arg(format!("--progress={}", plan.interval))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().map_err(io)?;
    let mut samples = Vec::new();
    let mut said = String::new();
    let sampled = match child.stderr.take() {
        Some(stderr) => sample_at_lines(stderr, vm, layer, &mut samples, &mut said),
        None => Ok(()),
    };
    if sampled.is_err() {
        let _ = child.kill();
    }
    let mut printed = String::new();
    let read = child
        .stdout
        .take()
        .map_or(Ok(0), |mut stdout| stdout.read_to_string(&mut printed));
    let status = child
        .wait()
        .map_err(SteadyError::io(Path::new("pgbench")))?;
    sampled?;
    read.map_err(SteadyError::io(Path::new("pgbench")))?;
    if !status.success() {
        return Err(NativeError::Failed {
            program: "pgbench".to_owned(),
            message: format!("{status}: {}", said.trim()),
        }
        .into());
    }
    let figures = Figures::read(&printed).ok_or(PgbenchError::NoFigure(printed))?;
    Ok((figures, samples))
}

fn sample_at_lines(
    lines: impl Read,
    vm: &Vm,
    layer: &Path,
    samples: &mut Vec<Sample>,
    said: &mut String,
) -> Result<(), SteadyError> {
    for line in BufReader::new(lines).lines() {
        let line = line.map_err(SteadyError::io(Path::new("pgbench")))?;
        let Some(progress) = Progress::read(&line) else {
            said.push_str(&line);
            said.push('\n');
            continue;
        };
        let status = vm.status()?;
        let sample = Sample {
            second: progress.second,
            tps: progress.tps,
            latency_ms: progress.latency_ms,
            kernel_bytes: status.counter("kernel_bytes"),
            cache_bytes: status.counter("cache_bytes"),
            guest_bytes: status.counter("memory_bytes"),
            host_bytes: vm.proportional_memory()?,
            layer_bytes: layer_usage(layer)?,
        };
        eprintln!("{sample}");
        samples.push(sample);
    }
    Ok(())
}

/// Files come and go while they are counted: it begins again then.
fn layer_usage(layer: &Path) -> Result<u64, SteadyError> {
    loop {
        match disk_usage(layer) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && layer.exists() => {}
            other => return other.map_err(SteadyError::io(layer)),
        }
    }
}

/// `progress: 10.0 s, 784.3 tps, lat 10.197 ms stddev 5.1, 0 failed`
struct Progress {
    second: f64,
    tps: f64,
    latency_ms: f64,
}

impl Progress {
    fn read(line: &str) -> Option<Self> {
        let mut parts = line.strip_prefix("progress: ")?.split(", ");
        let mut number = |before: &str, after: &str| {
            let part = parts.next()?.strip_prefix(before)?;
            part.split_once(after)?.0.parse().ok()
        };
        Some(Self {
            second: number("", " s")?,
            tps: number("", " tps")?,
            latency_ms: number("lat ", " ms")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_progress_line() {
        let line = "progress: 10.0 s, 784.3 tps, lat 10.197 ms stddev 5.100, 0 failed";
        let progress = Progress::read(line).unwrap();
        assert_eq!(
            (progress.second, progress.tps, progress.latency_ms),
            (10.0, 784.3, 10.197)
        );
        assert!(Progress::read("pgbench: error: connection lost").is_none());
    }
}
