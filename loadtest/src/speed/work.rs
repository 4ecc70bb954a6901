//! What is run on each side, by pgbench and psql of the same build, and the figure it gives.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use clap::ValueEnum;
use serde::Serialize;

use super::sides::{Dormouse, Side, Yardstick};
use super::{Plan, SpeedError};
use crate::client::{Client, Target};
use crate::native::{NativeError, Programs};
use crate::pgbench;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Work {
    /// pgbench -S
    Select,
    /// pgbench -S -M prepared
    SelectPrepared,
    /// pgbench's own read-write script
    Tpcb,
    /// Counts and sums a table by a sequential scan
    Scan,
    /// COPY from the client
    CopyIn,
    /// COPY to the client
    CopyOut,
    /// Arithmetic over generated rows: neither a table nor a file
    Aggregate,
}

/// Bytes of a row of text as COPY writes it, about.
const COPY_ROW: u64 = 100;
/// Rows of the scanned table on a page: 24 bytes of header, two integers, 85 of text, 4 of line pointer, aligned.
const ROWS_ON_PAGE: u64 = (8192 - 24) / 124;
const PAGES_IN_MIB: u64 = 128;

/// Of each client, in a quick run.
const QUICK_TRANSACTIONS: u32 = 25;

/// What the works need to be there.
pub struct Material {
    pub table_bytes: u64,
    copy: PathBuf,
}

/// The program that does a work.
enum Means {
    /// With these options.
    Pgbench(&'static [&'static str]),
    /// With this statement.
    Psql(String),
}

/// A run that ended well.
pub struct Done {
    pub figure: f64,
    pub transactions: Option<u64>,
    pub elapsed: Duration,
}

impl Work {
    pub const ALL: [Self; 7] = [
        Self::Select,
        Self::SelectPrepared,
        Self::Tpcb,
        Self::Scan,
        Self::CopyIn,
        Self::CopyOut,
        Self::Aggregate,
    ];

    pub fn title(self) -> &'static str {
        match self {
            Self::Select => "select-only",
            Self::SelectPrepared => "select-only, prepared",
            Self::Tpcb => "TPC-B",
            Self::Scan => "sequential scan",
            Self::CopyIn => "COPY in",
            Self::CopyOut => "COPY out",
            Self::Aggregate => "CPU-bound aggregate",
        }
    }

    /// Whether the figure is transactions a second; else it is seconds.
    pub fn counts_transactions(self) -> bool {
        matches!(self, Self::Select | Self::SelectPrepared | Self::Tpcb)
    }

    pub fn show(self, figure: f64) -> String {
        if self.counts_transactions() {
            format!("{figure:.0} tps")
        } else {
            format!("{figure:.2} s")
        }
    }

    /// Dormouse's speed over native's.
    pub fn ratio(self, dormouse: f64, native: f64) -> f64 {
        if self.counts_transactions() {
            dormouse / native
        } else {
            native / dormouse
        }
    }

    fn means(self, plan: &Plan) -> Means {
        let sql = match self {
            Self::Select => return Means::Pgbench(&["-n", "-S"]),
            Self::SelectPrepared => return Means::Pgbench(&["-n", "-S", "-M", "prepared"]),
            Self::Tpcb => return Means::Pgbench(&[]),
            Self::Scan => "select count(*), sum(kind), max(id) from bench_scanned".to_owned(),
            Self::CopyIn => "copy bench_copied from stdin".to_owned(),
            Self::CopyOut => "copy bench_copied to stdout".to_owned(),
            Self::Aggregate => format!(
                "select count(*), sum(sqrt(n)), avg(n % 1000), sum(length(md5(n::text)))
                 from (select generate_series(1, {}) as n) as series",
                plan.aggregate_rows
            ),
        };
        Means::Psql(sql)
    }

    /// Brings a side to the state that each run begins in; not timed.
    pub fn before(
        self,
        programs: &Programs,
        target: &Target,
        plan: &Plan,
    ) -> Result<(), SpeedError> {
        if let Means::Pgbench(script) = self.means(plan)
            && plan.warm_up > 0
        {
            transactions(programs, target, plan, plan.warm_up, script)?;
        }
        if self == Self::CopyIn {
            let mut client = Client::connect(target)?;
            client.query("truncate bench_copied")?;
            client.close()?;
        }
        Ok(())
    }

    pub fn run(
        self,
        programs: &Programs,
        target: &Target,
        plan: &Plan,
        material: &Material,
    ) -> Result<Done, SpeedError> {
        let sql = match self.means(plan) {
            Means::Pgbench(script) => {
                return transactions(programs, target, plan, plan.seconds, script);
            }
            Means::Psql(sql) => sql,
        };
        let mut psql = psql(programs, target, &sql);
        if self == Self::CopyIn {
            psql.stdin(open(&material.copy)?);
        }
        let started = Instant::now();
        to_its_end(psql)?;
        let elapsed = started.elapsed();
        Ok(Done {
            figure: elapsed.as_secs_f64(),
            transactions: None,
            elapsed,
        })
    }
}

fn transactions(
    programs: &Programs,
    target: &Target,
    plan: &Plan,
    seconds: u32,
    script: &[&str],
) -> Result<Done, SpeedError> {
    let length = match plan.quick {
        // Within a second of a busy machine there may be none.
        true => format!("--transactions={QUICK_TRANSACTIONS}"),
        false => format!("--time={seconds}"),
    };
    let mut arguments = vec![format!("--client={}", plan.clients), length];
    arguments.extend(script.iter().map(|argument| (*argument).to_owned()));
    let started = Instant::now();
    let figures = pgbench::run(programs, target, &arguments)?;
    Ok(Done {
        figure: figures.tps,
        transactions: Some(figures.transactions.max(1)),
        elapsed: started.elapsed(),
    })
}

/// psql with one statement; what it prints is thrown away.
fn psql(programs: &Programs, target: &Target, sql: &str) -> Command {
    let mut command = programs.command("psql");
    pgbench::connect(&mut command, target);
    command
        .args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-c", sql])
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    command
}

fn to_its_end(mut command: Command) -> Result<(), SpeedError> {
    let io = |source| SpeedError::Io {
        path: "psql".to_owned(),
        source,
    };
    let child = command.stderr(Stdio::piped()).spawn().map_err(io)?;
    let output = child.wait_with_output().map_err(io)?;
    if output.status.success() {
        return Ok(());
    }
    Err(NativeError::Failed {
        program: "psql".to_owned(),
        message: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    }
    .into())
}

fn open(path: &Path) -> Result<File, SpeedError> {
    File::open(path).map_err(|source| SpeedError::Io {
        path: path.display().to_string(),
        source,
    })
}

impl Material {
    /// Makes the same tables on both sides, those that the plan's works use.
    pub fn prepare(
        programs: &Programs,
        dormouse: &Dormouse,
        native: &Yardstick,
        plan: &Plan,
    ) -> Result<Self, SpeedError> {
        let wanted = |work: Work| plan.works.contains(&work);
        let copied = wanted(Work::CopyIn) || wanted(Work::CopyOut);
        let copy = native.folder().join("rows");
        if copied {
            let rows = (plan.copy_mib << 20) / COPY_ROW;
            let mut write = psql(
                programs,
                &native.target(),
                &format!("copy ({}) to stdout", rows_of(rows)),
            );
            let file = File::create(&copy).map_err(|source| SpeedError::Io {
                path: copy.display().to_string(),
                source,
            })?;
            write.stdout(file);
            to_its_end(write)?;
        }
        let mut table_bytes = 0;
        for target in [dormouse.target(), native.target()] {
            eprintln!("making the tables");
            if plan.works.iter().any(|work| work.counts_transactions()) {
                pgbench::initialise(programs, &target, plan.scale)?;
            }
            if wanted(Work::Scan) {
                table_bytes = scanned(programs, &target, plan)?;
            }
            if copied {
                let table = "create table bench_copied (id int, kind int, filler text)";
                to_its_end(psql(programs, &target, table))?;
                let mut load = psql(programs, &target, "copy bench_copied from stdin");
                load.stdin(open(&copy)?);
                to_its_end(load)?;
            }
        }
        Ok(Self { table_bytes, copy })
    }
}

fn rows_of(rows: u64) -> String {
    format!(
        "select n as id, n % 1000 as kind, repeat('x', 84) as filler from (select generate_series(1, {rows}) n) series"
    )
}

/// The table to scan, with its hint bits set; its size. It is unlogged, as only its reading is timed.
fn scanned(programs: &Programs, target: &Target, plan: &Plan) -> Result<u64, SpeedError> {
    let rows = plan.table_mib * PAGES_IN_MIB * ROWS_ON_PAGE;
    let table = format!("create unlogged table bench_scanned as {}", rows_of(rows));
    to_its_end(psql(programs, target, &table))?;
    to_its_end(psql(programs, target, "vacuum analyze bench_scanned"))?;
    let mut client = Client::connect(target)?;
    let size = client.value("select pg_relation_size('bench_scanned')")?;
    client.close()?;
    Ok(size.parse().unwrap_or(0))
}
