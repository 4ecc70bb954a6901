//! `steady`: pgbench's read-write script for a long time, and what must be true of the server then.
//!
//! ```text
//!  load ──── pgbench, and a sample at each of its progress lines: tps, memory, disk
//!  heap ──── the layer merged, opened by native PostgreSQL: pg_amcheck, the script's sums
//!  verdict ─ the criteria, each passed or not with its figure
//!  plot ──── the samples over time, as SVG
//! ```
//!
//! The data are checked as a stock PostgreSQL finds them: the database is suspended, its layer merged with its template,
//! and a native server of the same version goes through crash recovery on it, as after a power cut.

mod heap;
mod load;
mod plot;
mod verdict;

use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;
use thiserror::Error;

pub use load::Sample;
pub use verdict::Verdict;

use crate::client::{Client, ClientError};
use crate::native::{NativeError, Programs};
use crate::pgbench::{self, PgbenchError};
use crate::rest::{Created, Rest, RestError};
use crate::vm::{Vm, VmError};
use crate::wake;

#[derive(Debug, Error)]
pub enum SteadyError {
    #[error("{0}")]
    Rest(#[from] RestError),
    #[error("{0}")]
    Native(#[from] NativeError),
    #[error("{0}")]
    Client(#[from] ClientError),
    #[error("{0}")]
    Pgbench(#[from] PgbenchError),
    #[error("{0}")]
    Vm(#[from] VmError),
    #[error("the layer cannot be merged: {0}")]
    Layer(#[from] dormouse_vmm::layer::LayerError),
    #[error("{path}: {source}")]
    Io {
        path: String,
        source: std::io::Error,
    },
    #[error("{0} names no template")]
    Manifest(String),
    #[error("the server answered {sql:?} with {answer:?}")]
    Answer { sql: &'static str, answer: String },
    #[error("the run is too short for samples")]
    NoSamples,
}

impl SteadyError {
    fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io {
            path: path.display().to_string(),
            source,
        }
    }
}

#[derive(Debug, Clone, Args, Serialize)]
pub struct Plan {
    #[arg(long, default_value_t = 30.0)]
    pub minutes: f64,
    /// The kernel's memory is compared from then on: until then it may fill its caches. A third of a shorter run.
    #[arg(long, default_value_t = 10.0)]
    pub settle_minutes: f64,
    /// Seconds from one sample to the next.
    #[arg(long, default_value_t = 10)]
    pub interval: u32,
    #[arg(short = 'c', long, default_value_t = 8)]
    pub clients: u32,
    /// pgbench's scale.
    #[arg(long, default_value_t = 10)]
    pub scale: u32,
    /// The server's plan for the database. `dormouse up --set plans.bench.storage_mib=8192` has one named bench.
    #[arg(long, default_value = "bench")]
    pub plan: String,
    /// Where to draw the samples.
    #[arg(long)]
    pub svg: Option<PathBuf>,
}

impl Plan {
    fn seconds(&self) -> u64 {
        (self.minutes * 60.0).round() as u64
    }

    /// From which second on the kernel's memory may not grow.
    fn settled(&self) -> f64 {
        self.settle_minutes.min(self.minutes / 3.0) * 60.0
    }
}

/// What PostgreSQL counted of its own upkeep.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Upkeep {
    pub checkpoints: u64,
    pub autovacuums: u64,
    pub wal_bytes: u64,
}

#[derive(Debug, Serialize)]
pub struct Steady {
    #[serde(flatten)]
    pub plan: Plan,
    pub transactions: u64,
    pub tps: f64,
    pub upkeep: Upkeep,
    pub verdicts: Vec<Verdict>,
    pub samples: Vec<Sample>,
}

pub fn run(rest: &Rest, home: &Path, oracle: &Path, plan: Plan) -> Result<Steady, SteadyError> {
    let home = home.canonicalize().map_err(SteadyError::io(home))?;
    let programs = Programs::open(oracle)?;
    let created = rest.create_sleepless(&wake::name("steady"), &plan.plan)?;
    let lived = live(rest, &programs, &home, &created, plan);
    let deleted = rest.delete(&created.database.id);
    let steady = lived?;
    deleted?;
    Ok(steady)
}

fn live(
    rest: &Rest,
    programs: &Programs,
    home: &Path,
    created: &Created,
    plan: Plan,
) -> Result<Steady, SteadyError> {
    let target = created.target()?;
    pgbench::initialise(programs, &target, plan.scale)?;
    let before = Upkeep::read(&mut created.connect()?)?;
    let vm = Vm::new(home, &created.database.id);
    let layer = home
        .join("databases")
        .join(&created.database.id)
        .join("layer");
    let (figures, samples) = load::run(programs, &target, &vm, &layer, &plan)?;
    let upkeep = Upkeep::read(&mut created.connect()?)?.since(before);
    let image = vm.image()?;
    rest.suspend(&created.database.id)?;
    let heap = heap::check(programs, home, &created.database.id, &image)?;
    let verdicts = verdict::all(&plan, &figures, &samples, upkeep, &heap)?;
    if let Some(file) = &plan.svg {
        std::fs::write(file, plot::draw(&samples)).map_err(SteadyError::io(file))?;
    }
    Ok(Steady {
        transactions: figures.transactions,
        tps: figures.tps,
        plan,
        upkeep,
        verdicts,
        samples,
    })
}

impl Upkeep {
    fn read(client: &mut Client) -> Result<Self, SteadyError> {
        let mut number = |sql: &'static str| -> Result<u64, SteadyError> {
            let answer = client.value(sql)?;
            answer
                .parse()
                .map_err(|_| SteadyError::Answer { sql, answer })
        };
        Ok(Self {
            checkpoints: number("select num_timed + num_requested from pg_stat_checkpointer")?,
            autovacuums: number("select sum(autovacuum_count) from pg_stat_user_tables")?,
            wal_bytes: number("select trunc(pg_current_wal_lsn() - '0/0'::pg_lsn)")?,
        })
    }

    fn since(self, earlier: Self) -> Self {
        Self {
            checkpoints: self.checkpoints.saturating_sub(earlier.checkpoints),
            autovacuums: self.autovacuums.saturating_sub(earlier.autovacuums),
            wal_bytes: self.wal_bytes.saturating_sub(earlier.wal_bytes),
        }
    }
}

impl Steady {
    pub fn passed(&self) -> bool {
        self.verdicts.iter().all(|verdict| verdict.passed)
    }

    pub fn print(&self) {
        let Plan {
            minutes,
            clients,
            scale,
            ..
        } = &self.plan;
        println!(
            "work     pgbench TPC-B, scale {scale}, {clients} clients, {minutes} minutes: {} transactions, {:.0} tps; {} MiB \
             of WAL, {} checkpoints, {} autovacuums",
            self.transactions,
            self.tps,
            self.upkeep.wal_bytes >> 20,
            self.upkeep.checkpoints,
            self.upkeep.autovacuums
        );
        if let (Some(first), Some(last)) = (self.samples.first(), self.samples.last()) {
            for (when, sample) in [("first", first), ("last", last)] {
                println!("{when:8} {sample}");
            }
        }
        for verdict in &self.verdicts {
            let word = if verdict.passed { "passed" } else { "FAILED" };
            println!("{word:8} {}: {}", verdict.what, verdict.found);
        }
    }
}
