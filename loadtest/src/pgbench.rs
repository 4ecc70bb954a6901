//! `pgbench`: transactions a second through the pooler and of native PostgreSQL on one core, in turns.
//!
//! The same pgbench, the same scale, the same time; A B A B, so that what else the machine does falls on both.

use std::path::Path;
use std::process::Command;

use serde::Serialize;
use thiserror::Error;

use crate::client::{Address, ClientError, Target};
use crate::native::{Native, NativeError, Programs};
use crate::rest::{Created, Rest, RestError};
use crate::stats::median;
use crate::wake;

#[derive(Debug, Error)]
pub enum PgbenchError {
    #[error("{0}")]
    Rest(#[from] RestError),
    #[error("{0}")]
    Native(#[from] NativeError),
    #[error("{0}")]
    Client(#[from] ClientError),
    #[error("pgbench printed no figure:\n{0}")]
    NoFigure(String),
    #[error("pgbench counted {0} failed transactions")]
    FailedTransactions(u64),
    #[error("at least one pair is needed")]
    NoPairs,
}

#[derive(Debug, Clone, Serialize)]
pub struct Plan {
    pub scale: u32,
    pub clients: u32,
    pub seconds: u32,
    pub pairs: usize,
    /// The CPU that native PostgreSQL is bound to.
    pub core: usize,
    /// `select` (`-S`) or `tpcb`.
    pub script: String,
}

#[derive(Debug, Serialize)]
pub struct Pair {
    pub dormouse_tps: f64,
    pub native_tps: f64,
    pub ratio: f64,
}

#[derive(Debug, Serialize)]
pub struct Benchmark {
    pub plan: Plan,
    pub native_arguments: Vec<String>,
    pub pairs: Vec<Pair>,
    pub median_ratio: f64,
}

pub fn run(rest: &Rest, oracle: &Path, plan: Plan) -> Result<Benchmark, PgbenchError> {
    let programs = Programs::open(oracle)?;
    let mut native = Native::create(&programs, Some(plan.core))?;
    native.start()?;
    let created = rest.create(&wake::name("pgbench"))?;
    let measured = pairs(&programs, &created, &native, &plan);
    let deleted = rest.delete(&created.database.id);
    let pairs = measured?;
    deleted?;
    let ratios: Vec<_> = pairs.iter().map(|pair| pair.ratio).collect();
    let median_ratio = median(&ratios).ok_or(PgbenchError::NoPairs)?;
    Ok(Benchmark {
        native_arguments: native.arguments(),
        pairs,
        median_ratio,
        plan,
    })
}

fn pairs(
    programs: &Programs,
    created: &Created,
    native: &Native,
    plan: &Plan,
) -> Result<Vec<Pair>, PgbenchError> {
    let targets = [created.target()?, native.target()];
    for target in &targets {
        initialise(programs, target, plan.scale)?;
    }
    let mut pairs = Vec::with_capacity(plan.pairs);
    for number in 1..=plan.pairs {
        let dormouse_tps = measure(programs, &targets[0], plan)?;
        let native_tps = measure(programs, &targets[1], plan)?;
        let ratio = dormouse_tps / native_tps;
        eprintln!(
            "pair {number}: Dormouse {dormouse_tps:.0} tps, native {native_tps:.0} tps, {ratio:.3}"
        );
        pairs.push(Pair {
            dormouse_tps,
            native_tps,
            ratio,
        });
    }
    Ok(pairs)
}

/// pgbench, told where to connect.
pub fn command(programs: &Programs, target: &Target) -> Command {
    let mut command = programs.command("pgbench");
    match &target.address {
        Address::Tcp { host, port } => command.args(["-h", host, "-p", &port.to_string()]),
        Address::Unix(path) => command
            .arg("-h")
            .arg(path.parent().unwrap_or(Path::new("/"))),
    };
    command
        .args(["-U", &target.user])
        .env("PGPASSWORD", &target.password);
    command
        .env("PGDATABASE", &target.database)
        .env("PGSSLMODE", "disable");
    command
}

pub fn initialise(programs: &Programs, target: &Target, scale: u32) -> Result<(), PgbenchError> {
    let mut command = command(programs, target);
    command.args(["-i", "-q", "-s", &scale.to_string()]);
    Programs::run(command)?;
    Ok(())
}

fn measure(programs: &Programs, target: &Target, plan: &Plan) -> Result<f64, PgbenchError> {
    let mut command = command(programs, target);
    command.args([
        "-n",
        "-c",
        &plan.clients.to_string(),
        "-T",
        &plan.seconds.to_string(),
    ]);
    if plan.script == "select" {
        command.arg("-S");
    }
    let printed = Programs::run(command)?;
    let figures = Figures::read(&printed).ok_or_else(|| PgbenchError::NoFigure(printed.clone()))?;
    if figures.failed > 0 {
        return Err(PgbenchError::FailedTransactions(figures.failed));
    }
    Ok(figures.tps)
}

/// What pgbench prints at its end.
#[derive(Debug, PartialEq)]
pub struct Figures {
    pub transactions: u64,
    pub failed: u64,
    pub tps: f64,
}

impl Figures {
    pub fn read(printed: &str) -> Option<Self> {
        let after = |label: &str| {
            let line = printed.lines().find_map(|line| line.strip_prefix(label))?;
            line.split([' ', '/']).find(|word| !word.is_empty())
        };
        Some(Self {
            transactions: after("number of transactions actually processed:")?
                .parse()
                .ok()?,
            failed: after("number of failed transactions:")
                .map_or(Ok(0), str::parse)
                .ok()?,
            tps: after("tps = ")?.parse().ok()?,
        })
    }
}

impl Benchmark {
    pub fn print(&self) {
        let Plan {
            scale,
            clients,
            seconds,
            core,
            script,
            ..
        } = &self.plan;
        println!(
            "pgbench  {script}, scale {scale}, {clients} clients, {seconds} s; native on core {core} alone"
        );
        println!("native   postgres {}", self.native_arguments.join(" "));
        println!(
            "{:>5} {:>12} {:>12} {:>8}",
            "pair", "Dormouse tps", "native tps", "ratio"
        );
        for (number, pair) in self.pairs.iter().enumerate() {
            let Pair {
                dormouse_tps,
                native_tps,
                ratio,
            } = pair;
            println!(
                "{:>5} {dormouse_tps:>12.0} {native_tps:>12.0} {ratio:>8.3}",
                number + 1
            );
        }
        println!(
            "median ratio {:.3} ({} pairs)",
            self.median_ratio,
            self.pairs.len()
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRINTED: &str = "\
pgbench (17.6)
transaction type: <builtin: select only>
scaling factor: 5
number of clients: 4
number of transactions actually processed: 123456
number of failed transactions: 0 (0.000%)
latency average = 0.140 ms
initial connection time = 11.523 ms
tps = 28561.123456 (without initial connection time)
";

    #[test]
    fn reads_what_pgbench_prints() {
        assert_eq!(
            Figures::read(PRINTED),
            Some(Figures {
                transactions: 123_456,
                failed: 0,
                tps: 28_561.123_456
            })
        );
        let counted = PRINTED.replace("processed: 123456", "processed: 40/40");
        assert_eq!(
            Figures::read(&counted).map(|figures| figures.transactions),
            Some(40)
        );
    }

    #[test]
    fn does_not_make_up_a_figure() {
        assert_eq!(Figures::read(""), None);
        assert_eq!(Figures::read("tps = fast\n"), None);
    }
}
