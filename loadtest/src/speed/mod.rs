//! `speed`: the same work in Dormouse and in native PostgreSQL, in turns A B A B, each behind its pooler.
//!
//! ```text
//!  work ── what is run, and its figure          pgbench and psql, the same program for both sides
//!  sides ─ on what, and the CPU time it took    Dormouse through its pooler │ native, through PgBouncer or directly
//!  report  ratios, medians, the table
//! ```
//!
//! Native PostgreSQL has the settings that Dormouse's says it has, its files lie on the same file system, and its
//! processes are bound to one CPU, as the guest has one. A ratio is Dormouse's speed over native's, whichever way the
//! figure counts. Unpinned and direct, native is measured once for each work and printed beside it.

mod report;
mod sides;
mod work;

use std::collections::BTreeMap;
use std::path::Path;

use clap::Args;
use serde::Serialize;
use thiserror::Error;

pub use report::{Beside, Comparison, Pair, Speed};
pub use work::Work;

use crate::client::ClientError;
use crate::cpu;
use crate::native::{NativeError, Programs};
use crate::pgbench::PgbenchError;
use crate::pgbouncer::BouncerError;
use crate::rest::{Rest, RestError};
use crate::vm::VmError;
use crate::wake;
use sides::{Dormouse, Route, Share, Side, Yardstick};
use work::Material;

#[derive(Debug, Error)]
pub enum SpeedError {
    #[error("{0}")]
    Rest(#[from] RestError),
    #[error("{0}")]
    Native(#[from] NativeError),
    #[error("{0}")]
    Client(#[from] ClientError),
    #[error("{0}")]
    Pgbench(#[from] PgbenchError),
    #[error("{0}")]
    Bouncer(#[from] BouncerError),
    #[error("{0}")]
    Vm(#[from] VmError),
    #[error("{path}: {source}")]
    Io {
        path: String,
        source: std::io::Error,
    },
    #[error("{0} is not what `dormouse up` wrote of itself")]
    NoServer(String),
    #[error(
        "Dormouse runs PostgreSQL {dormouse}, the yardstick is {native}: build both from one source"
    )]
    OtherVersion { dormouse: String, native: String },
    #[error("at least one pair is needed")]
    NoPairs,
}

/// What is run, and how much of it.
#[derive(Debug, Clone, Args, Serialize)]
pub struct Plan {
    /// What to run; everything unless given.
    #[arg(long = "work", value_enum, value_delimiter = ',', default_values_t = Work::ALL)]
    pub works: Vec<Work>,
    /// The server's plan for the database. It needs storage for three times the table:
    /// `dormouse up --set plans.bench.storage_mib=8192` has one named bench.
    #[arg(long, default_value = "bench")]
    pub plan: String,
    #[arg(long, default_value_t = 3)]
    pub pairs: usize,
    #[arg(short = 'c', long, default_value_t = 8)]
    pub clients: u32,
    /// pgbench's scale.
    #[arg(long, default_value_t = 10)]
    pub scale: u32,
    /// Seconds of one run of pgbench.
    #[arg(short = 'T', long, default_value_t = 8)]
    pub seconds: u32,
    /// Seconds for which pgbench runs before each of its runs that counts, so that caches are as in use.
    #[arg(long, default_value_t = 4)]
    pub warm_up: u32,
    /// Size of the table that is scanned, in MiB.
    #[arg(long, default_value_t = 1024)]
    pub table_mib: u64,
    /// About how much COPY writes and reads, in MiB of text.
    #[arg(long, default_value_t = 128)]
    pub copy_mib: u64,
    /// Rows of the CPU-bound aggregate.
    #[arg(long, default_value_t = 3_000_000)]
    pub aggregate_rows: u64,
    /// The CPU that native PostgreSQL is bound to.
    #[arg(long, default_value_t = 0)]
    pub core: usize,
    /// Small and short: shows that it works, not how fast it is. Sizes and times given beside it are not looked at.
    #[arg(long)]
    pub quick: bool,
}

impl Plan {
    fn shortened(self) -> Self {
        if !self.quick {
            return self;
        }
        Self {
            pairs: 1,
            scale: 1,
            warm_up: 1,
            table_mib: 16,
            copy_mib: 4,
            aggregate_rows: 100_000,
            ..self
        }
    }
}

/// One run: its figure, and what it cost.
#[derive(Debug, Clone, Serialize)]
pub struct Run {
    /// Transactions a second, or seconds.
    pub figure: f64,
    /// CPU time by who spent it, in µs a transaction, or in µs.
    pub cpu: Vec<Share>,
    /// Exits of the VM by reason, a transaction or in all; of a VMM that counts them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exits: Option<BTreeMap<String, f64>>,
    /// Cores that others on this machine used meanwhile.
    pub others_cores: f64,
}

pub fn run(rest: &Rest, home: &Path, oracle: &Path, plan: Plan) -> Result<Speed, SpeedError> {
    let plan = plan.shortened();
    if plan.pairs == 0 {
        return Err(SpeedError::NoPairs);
    }
    let home = home.canonicalize().map_err(|source| SpeedError::Io {
        path: home.display().to_string(),
        source,
    })?;
    let programs = Programs::open(oracle)?;
    let created = rest.create_sleepless(&wake::name("speed"), &plan.plan)?;
    let measured = Dormouse::new(&home, &created).and_then(|dormouse| {
        let native = Yardstick::start(&programs, &home, &dormouse, plan.core)?;
        compare(&programs, &dormouse, native, plan)
    });
    let deleted = rest.delete(&created.database.id);
    let speed = measured?;
    deleted?;
    Ok(speed)
}

fn compare(
    programs: &Programs,
    dormouse: &Dormouse,
    mut native: Yardstick,
    plan: Plan,
) -> Result<Speed, SpeedError> {
    native.set(Route::YARDSTICK)?;
    let material = Material::prepare(programs, dormouse, &native, &plan)?;
    let mut comparisons = Vec::with_capacity(plan.works.len());
    for &work in &plan.works {
        let mut pairs = Vec::with_capacity(plan.pairs);
        for _ in 0..plan.pairs {
            let ours = once(programs, dormouse, work, &plan, &material)?;
            let theirs = once(programs, &native, work, &plan, &material)?;
            let ratio = work.ratio(ours.figure, theirs.figure);
            eprintln!(
                "{}: Dormouse {}, native {}, {ratio:.3}",
                work.title(),
                work.show(ours.figure),
                work.show(theirs.figure)
            );
            pairs.push(Pair {
                dormouse: ours,
                native: theirs,
                ratio,
            });
        }
        let mut beside = Vec::new();
        for route in Route::BESIDE {
            native.set(route)?;
            let run = once(programs, &native, work, &plan, &material)?;
            beside.push(Beside { route, run });
        }
        native.set(Route::YARDSTICK)?;
        comparisons.push(Comparison::new(work, pairs, beside));
    }
    Ok(Speed {
        settings: native.settings().to_vec(),
        table_bytes: material.table_bytes,
        plan,
        comparisons,
    })
}

fn once(
    programs: &Programs,
    side: &dyn Side,
    work: Work,
    plan: &Plan,
    material: &Material,
) -> Result<Run, SpeedError> {
    work.before(programs, &side.target(), plan)?;
    let (shares, exits) = (side.shares()?, side.exits()?);
    let (machine, client) = (cpu::of_machine(), cpu::of_finished_children());
    let done = work.run(programs, &side.target(), plan, material)?;
    let client = cpu::of_finished_children() - client;
    let machine = cpu::of_machine().saturating_sub(machine);
    let each = 1.0 / done.transactions.unwrap_or(1) as f64;
    let mut spent = client.total();
    let mut cpu: Vec<_> = side
        .shares()?
        .into_iter()
        .zip(shares)
        .map(|((who, after), (_, before))| {
            spent += (after - before).total();
            Share::new(who, after - before, each)
        })
        .collect();
    cpu.push(Share::new("client program", client, each));
    let exits = side.exits()?.zip(exits).map(|(after, before)| {
        let since = |reason: &String, count: u64| {
            count.saturating_sub(before.get(reason).copied().unwrap_or(0)) as f64 * each
        };
        after
            .iter()
            .map(|(reason, count)| (reason.clone(), since(reason, *count)))
            .collect()
    });
    Ok(Run {
        figure: done.figure,
        cpu,
        exits,
        others_cores: machine.saturating_sub(spent).as_secs_f64() / done.elapsed.as_secs_f64(),
    })
}
