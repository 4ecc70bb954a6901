//! `wake`: how long a client waits for the first row, by where it finds the database.
//!
//! Each sample of a sleeping database is taken from one that sleeps: the API says `suspended` and its process
//! is gone. Each sample called cold is checked afterwards: PostgreSQL's own start time has changed.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;
use thiserror::Error;

use crate::client::{Client, ClientError};
use crate::native::{Native, NativeError, Programs};
use crate::report::{Timing, print_timings};
use crate::rest::{self, Created, Rest, RestError};
use crate::stats::Summary;
use crate::trace::{self, MedianStep, WakeTrace};

#[derive(Debug, Error)]
pub enum WakeError {
    #[error("{0}")]
    Rest(#[from] RestError),
    #[error("{0}")]
    Client(#[from] ClientError),
    #[error("{0}")]
    Native(#[from] NativeError),
    #[error("the temporary table made before the sleep is gone: the session was not kept")]
    SessionLost,
    #[error("the start that was to be cold was not: PostgreSQL has the same start time as before")]
    NotCold,
    #[error("at least one sample is needed")]
    NoSamples,
}

/// How many samples of each series; 0 leaves a series out.
#[derive(Debug, Clone, Copy)]
pub struct Counts {
    pub held: usize,
    pub new: usize,
    pub create: usize,
    pub cold: usize,
    pub native: usize,
}

#[derive(Debug, Serialize)]
pub struct Wakes {
    pub timings: Vec<Timing>,
    /// Of the series that wakes by a query on a held connection.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub held_trace: Vec<MedianStep>,
}

impl Wakes {
    pub fn print(&self) {
        print_timings(&self.timings);
        if !self.held_trace.is_empty() {
            println!();
            trace::print(HELD, &self.held_trace);
        }
    }
}

const HELD: &str = "asleep, query on a held connection";

const FIRST_ROW: &str = "select 1";
/// When PostgreSQL started, by its own word: another value is another start.
pub const START_TIME: &str = "select extract(epoch from pg_postmaster_start_time())";

/// Runs all series, native last.
pub fn run(rest: &Rest, home: &Path, oracle: &Path, counts: Counts) -> Result<Wakes, WakeError> {
    let mut series: Vec<(&str, Vec<Duration>)> = Vec::new();
    let mut traces = Vec::new();
    if counts.held + counts.new + counts.cold > 0 {
        let created = rest.create(&name("wake"))?;
        let measured = sleeping(rest, home, &created, counts, &mut traces);
        let deleted = rest.delete(&created.database.id);
        series.extend(measured?);
        deleted?;
    }
    series.push(("create to first row", creates(rest, counts.create)?));
    series.push(("native, exec to first row", native(oracle, counts.native)?));
    let native = series
        .last()
        .and_then(|(_, sample)| Summary::of(sample))
        .map(|native| native.p50_ms);
    let timings: Vec<_> = series
        .into_iter()
        .filter_map(|(what, sample)| Some((what, Summary::of(&sample)?)))
        .map(|(what, summary)| Timing {
            what: what.to_owned(),
            ratio_to_native: native
                .filter(|_| !what.starts_with("native"))
                .map(|native| summary.p50_ms / native),
            summary,
        })
        .collect();
    if timings.is_empty() {
        Err(WakeError::NoSamples)
    } else {
        Ok(Wakes {
            timings,
            held_trace: trace::medians(&traces),
        })
    }
}

/// A name that no other run has, nor another thread of this one.
pub fn name(what: &str) -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let now = std::time::UNIX_EPOCH
        .elapsed()
        .map_or(0, |since| since.as_micros());
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    format!("{what}-{now}-{number}")
}

fn sleeping(
    rest: &Rest,
    home: &Path,
    created: &Created,
    counts: Counts,
    traces: &mut Vec<WakeTrace>,
) -> Result<Vec<(&'static str, Vec<Duration>)>, WakeError> {
    let id = created.database.id.as_str();
    Ok(vec![
        (HELD, held(rest, created, id, counts.held, traces)?),
        (
            "asleep, new connection",
            new(rest, created, id, counts.new)?,
        ),
        (
            "cold, new connection",
            cold(rest, home, created, id, counts.cold)?,
        ),
    ])
}

fn held(
    rest: &Rest,
    created: &Created,
    id: &str,
    count: usize,
    traces: &mut Vec<WakeTrace>,
) -> Result<Vec<Duration>, WakeError> {
    let mut client = created.connect()?;
    client.query("create temporary table kept as select 42 as answer")?;
    let mut sample = Vec::with_capacity(count);
    for _ in 0..count {
        rest.suspend(id)?;
        let asked = Instant::now();
        sample.push(client.first_row(FIRST_ROW)? - asked);
        if client.value("select answer from kept")? != "42" {
            return Err(WakeError::SessionLost);
        }
        traces.push(rest.wake_trace(id)?);
    }
    client.close()?;
    Ok(sample)
}

fn new(rest: &Rest, created: &Created, id: &str, count: usize) -> Result<Vec<Duration>, WakeError> {
    let target = created.target()?;
    let mut sample = Vec::with_capacity(count);
    for _ in 0..count {
        rest.suspend(id)?;
        let asked = Instant::now();
        let mut client = Client::connect(&target)?;
        sample.push(client.first_row(FIRST_ROW)? - asked);
        client.close()?;
    }
    Ok(sample)
}

fn cold(
    rest: &Rest,
    home: &Path,
    created: &Created,
    id: &str,
    count: usize,
) -> Result<Vec<Duration>, WakeError> {
    let target = created.target()?;
    let mut sample = Vec::with_capacity(count);
    if count == 0 {
        return Ok(sample);
    }
    // A database that owns no file would be cloned from the golden snapshot, not started.
    let mut client = Client::connect(&target)?;
    client.query("create table cold_start as select 1 as n")?;
    let mut before = client.value(START_TIME)?;
    client.close()?;
    for _ in 0..count {
        rest.suspend(id)?;
        rest::remove_snapshot(home, id)?;
        let asked = Instant::now();
        let mut client = Client::connect(&target)?;
        sample.push(client.first_row(FIRST_ROW)? - asked);
        let after = client.value(START_TIME)?;
        if after == before {
            return Err(WakeError::NotCold);
        }
        before = after;
        client.close()?;
    }
    Ok(sample)
}

fn creates(rest: &Rest, count: usize) -> Result<Vec<Duration>, WakeError> {
    let mut sample = Vec::with_capacity(count);
    for _ in 0..count {
        let name = name("create");
        let asked = Instant::now();
        let created = rest.create(&name)?;
        let arrived = created
            .connect()
            .map(|mut client| client.first_row(FIRST_ROW));
        let deleted = rest.delete(&created.database.id);
        sample.push(arrived?? - asked);
        deleted?;
    }
    Ok(sample)
}

fn native(oracle: &Path, count: usize) -> Result<Vec<Duration>, WakeError> {
    let mut sample = Vec::with_capacity(count);
    if count == 0 {
        return Ok(sample);
    }
    let mut native = Native::create(&Programs::open(oracle)?, None)?;
    // The first start reads the programs from disk and writes what initdb left dirty: not a clean one.
    native.start()?;
    native.stop()?;
    for _ in 0..count {
        sample.push(native.start()?);
        native.stop()?;
    }
    Ok(sample)
}

/// Where `make oracle` puts native PostgreSQL, from the top of the source tree.
pub fn default_oracle() -> PathBuf {
    PathBuf::from("images/.build/oracle")
}
