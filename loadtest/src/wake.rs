//! `wake`: how long a client waits for the first row, by where it finds the database.
//!
//! Each sample is of one of several *used* databases (`used.rs`), chosen at random, and its first row is one of their rows,
//! found by an index and compared. A sample of a sleeping database is taken from one that sleeps: the API says `suspended`
//! and its process is gone. Each sample called cold is checked afterwards: PostgreSQL's own start time has changed.

mod plot;

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
use crate::used;

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
    #[error("{id}: {sql} gave {found:?}, {made:?} was put there")]
    Row { id: String, sql: String, found: String, made: String },
    #[error("rows of {0} are missing")]
    Rows(String),
    #[error("the start that was to be cold was not: PostgreSQL has the same start time as before")]
    NotCold,
    #[error("{0} has no VM to kill")]
    NoVm(String),
    #[error("the page cache cannot be dropped (root of the host can): {0}")]
    PageCache(std::io::Error),
    #[error("at least one sample is needed")]
    NoSamples,
}

/// How many samples of each series; 0 leaves a series out.
#[derive(Debug, Clone, Copy)]
pub struct Counts {
    /// Used databases that those that sleep are chosen from.
    pub databases: usize,
    pub held: usize,
    pub new: usize,
    /// Of these two, and of a cold start, with the host's page cache dropped before.
    pub dropped: usize,
    /// Of held ones, packed before.
    pub packed: usize,
    pub during: usize,
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
    /// All samples, as SVG.
    #[serde(skip)]
    pub picture: String,
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
const PACKED: &str = "packed, query on a held connection";
const NEW: &str = "asleep, new connection (TLS, SCRAM)";
const COLD: &str = "cold, after a clean suspend";
const KILLED: &str = "cold, after a kill";
const HELD_DROPPED: &str = "held connection, page cache dropped";
const NEW_DROPPED: &str = "new connection, page cache dropped";
const COLD_DROPPED: &str = "cold, page cache dropped";
const NATIVE: &str = "native, exec to first row";

/// When PostgreSQL started, by its own word: another value is another start.
pub const START_TIME: &str = "select extract(epoch from pg_postmaster_start_time())";

/// What drops it when 1 is written there; root can.
const PAGE_CACHE: &str = "/proc/sys/vm/drop_caches";

/// A request comes up to so long after its database was told to sleep: a suspend takes some 10 ms.
const DURING: Duration = Duration::from_millis(12);

/// Runs all series, native last.
pub fn run(rest: &Rest, home: &Path, oracle: &Path, counts: Counts) -> Result<Wakes, WakeError> {
    let mut series = Vec::new();
    let mut traces = Vec::new();
    let dropped = if counts.dropped > 0 && can_drop_page_cache() { counts.dropped } else { 0 };
    if counts.cold > 0 {
        // Of their own, which nothing has made the host forget: native's are in its page cache too.
        series.extend(with_used(rest, counts.databases, |used| cold_starts(rest, home, used, counts.cold))?);
    }
    if counts.held + counts.new + dropped + counts.packed + counts.during > 0 {
        let counts = Counts { dropped, ..counts };
        series.extend(with_used(rest, counts.databases, |used| sleeping(rest, home, used, counts, &mut traces))?);
    }
    let (answered, first_row) = creates(rest, counts.create)?;
    series.push(("POST /v1/databases to answer", answered));
    series.push(("POST /v1/databases to first row", first_row));
    series.push((NATIVE, native(oracle, counts.native)?));
    let picture = plot::draw(&series);
    let native = series.last().and_then(|(_, sample)| Summary::of(sample)).map(|native| native.p50_ms);
    let timings: Vec<_> = series
        .into_iter()
        .filter_map(|(what, sample)| Some((what, Summary::of(&sample)?)))
        .map(|(what, summary)| Timing {
            what: what.to_owned(),
            ratio_to_native: native.filter(|_| !what.starts_with("native")).map(|native| summary.p50_ms / native),
            summary,
        })
        .collect();
    match timings.is_empty() {
        true => Err(WakeError::NoSamples),
        false => Ok(Wakes { timings, held_trace: trace::medians(&traces), picture }),
    }
}

/// A name that no other run has, nor another thread of this one.
pub fn name(what: &str) -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let now = std::time::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_micros());
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    format!("{what}-{now}-{number}")
}

/// What was measured, and each sample.
type Series = (&'static str, Vec<Duration>);

/// Clients that stay, and the databases that they wait for.
struct Held<'a> {
    rest: &'a Rest,
    databases: &'a [Created],
    clients: Vec<Client>,
}

/// Measures with so many used databases, which are deleted afterwards.
fn with_used(
    rest: &Rest,
    count: usize,
    measure: impl FnOnce(&[Created]) -> Result<Vec<Series>, WakeError>,
) -> Result<Vec<Series>, WakeError> {
    let count = count.max(1);
    eprintln!("using {count} databases, each with a sleep after each session");
    let mut used = Vec::new();
    let made = (0..count).try_for_each(|_| {
        used.push(used::create(rest, &name("wake"), false)?);
        Ok(())
    });
    let measured = made.and_then(|()| measure(&used));
    let deleted: Vec<_> = used.iter().map(|one| rest.delete(&one.database.id)).collect();
    let measured = measured?;
    deleted.into_iter().collect::<Result<(), _>>()?;
    Ok(measured)
}

fn sleeping(
    rest: &Rest,
    home: &Path,
    databases: &[Created],
    counts: Counts,
    traces: &mut Vec<WakeTrace>,
) -> Result<Vec<Series>, WakeError> {
    let mut held = Held::connect(rest, databases)?;
    let mut series = vec![(HELD, held.wake(counts.held, false, traces)?)];
    series.push((HELD_DROPPED, held.wake(counts.dropped, true, &mut Vec::new())?));
    series.push((PACKED, held.wake_packed(counts.packed)?));
    let (stayed, slept) = held.during(counts.during)?;
    series.push(("told to sleep a moment ago, still awake", stayed));
    series.push(("told to sleep a moment ago, slept first", slept));
    held.close()?;
    series.push((NEW, new(rest, databases, counts.new, false)?));
    series.push((NEW_DROPPED, new(rest, databases, counts.dropped, true)?));
    let leave = |one: &Created| leave_without_snapshot(rest, home, one).and_then(|()| drop_page_cache());
    series.push((COLD_DROPPED, cold(databases, counts.dropped, &leave)?));
    Ok(series)
}

fn cold_starts(rest: &Rest, home: &Path, databases: &[Created], count: usize) -> Result<Vec<Series>, WakeError> {
    let clean = cold(databases, count, &|one| leave_without_snapshot(rest, home, one))?;
    let killed = |one: &Created| {
        let id = &one.database.id;
        let mut client = one.connect()?;
        client.query("update shop.item set price = price + 0.01")?;
        let pid = *rest::vm_processes(id).first().ok_or_else(|| WakeError::NoVm(id.clone()))?;
        // SAFETY: a signal to a process that this run's own database has.
        unsafe { libc::kill(pid as i32, libc::SIGKILL) };
        Ok(rest.wait_stopped(id)?)
    };
    Ok(vec![(COLD, clean), (KILLED, cold(databases, count, &killed)?)])
}

/// Suspends one, and removes what it would be woken from.
fn leave_without_snapshot(rest: &Rest, home: &Path, one: &Created) -> Result<(), WakeError> {
    rest.suspend(&one.database.id)?;
    Ok(rest::remove_snapshot(home, &one.database.id)?)
}

fn chosen(databases: &[Created]) -> usize {
    used::random() % databases.len()
}

/// The time from now to the first row, which has to be right.
fn first_row(client: &mut Client, asked: Instant, id: &str) -> Result<Duration, WakeError> {
    let (sql, made) = used::first_query(used::random());
    client.send(&sql)?;
    let (arrived, found) = client.finish_timed()?;
    if found != made {
        return Err(WakeError::Row { id: id.to_owned(), sql, found, made });
    }
    Ok(arrived - asked)
}

impl<'a> Held<'a> {
    fn connect(rest: &'a Rest, databases: &'a [Created]) -> Result<Self, WakeError> {
        let mut clients = Vec::new();
        for one in databases {
            let mut client = one.connect()?;
            client.query("create temporary table kept as select 42 as answer")?;
            clients.push(client);
        }
        Ok(Self { rest, databases, clients })
    }

    /// Wakes one after the other by a query.
    fn wake(&mut self, count: usize, dropped: bool, traces: &mut Vec<WakeTrace>) -> Result<Vec<Duration>, WakeError> {
        let mut sample = Vec::with_capacity(count);
        for _ in 0..count {
            let n = chosen(self.databases);
            let id = self.databases[n].database.id.as_str();
            self.rest.suspend(id)?;
            if dropped {
                drop_page_cache()?;
            }
            sample.push(first_row(&mut self.clients[n], Instant::now(), id)?);
            if self.clients[n].value("select answer from kept")? != "42" {
                return Err(WakeError::SessionLost);
            }
            traces.push(self.rest.wake_trace(id)?);
        }
        Ok(sample)
    }

    /// Likewise those that are packed.
    fn wake_packed(&mut self, count: usize) -> Result<Vec<Duration>, WakeError> {
        let mut sample = Vec::with_capacity(count);
        for _ in 0..count {
            let n = chosen(self.databases);
            let id = self.databases[n].database.id.as_str();
            self.rest.suspend(id)?;
            self.rest.pack(id)?;
            sample.push(first_row(&mut self.clients[n], Instant::now(), id)?);
            if self.clients[n].value("select answer from kept")? != "42" {
                return Err(WakeError::SessionLost);
            }
        }
        Ok(sample)
    }

    /// Speaks to one that was told to sleep up to [`DURING`] ago. First those whose VM was still there afterwards: the suspend
    /// had not begun, or was called off; then those that slept and were woken.
    fn during(&mut self, count: usize) -> Result<(Vec<Duration>, Vec<Duration>), WakeError> {
        let (mut stayed, mut slept) = (Vec::new(), Vec::new());
        for _ in 0..count {
            let n = chosen(self.databases);
            let id = self.databases[n].database.id.as_str();
            self.clients[n].query("update shop.item set price = price + 0.01 where id = 7")?;
            let before = rest::vm_processes(id);
            let later = DURING.mul_f64((used::random() % 1000) as f64 / 1000.0);
            let (took, after) = std::thread::scope(|scope| {
                let told = scope.spawn(|| self.rest.try_suspend(id));
                // Not to wait for something: the moment is what varies.
                std::thread::sleep(later);
                let took = first_row(&mut self.clients[n], Instant::now(), id)?;
                // Before the suspend is over that comes when this has been answered.
                let after = rest::vm_processes(id);
                told.join().map_or(Ok(()), |told| told)?;
                Ok::<_, WakeError>((took, after))
            })?;
            match after == before {
                true => stayed.push(took),
                false => slept.push(took),
            }
        }
        Ok((stayed, slept))
    }

    fn close(self) -> Result<(), WakeError> {
        self.clients.into_iter().try_for_each(|client| Ok(client.close()?))
    }
}

fn new(rest: &Rest, databases: &[Created], count: usize, dropped: bool) -> Result<Vec<Duration>, WakeError> {
    let mut sample = Vec::with_capacity(count);
    for _ in 0..count {
        let one = &databases[chosen(databases)];
        let target = one.target()?;
        rest.suspend(&one.database.id)?;
        if dropped {
            drop_page_cache()?;
        }
        let asked = Instant::now();
        let mut client = Client::connect_tls(&target)?;
        sample.push(first_row(&mut client, asked, &one.database.id)?);
        client.close()?;
    }
    Ok(sample)
}

/// Starts that find no snapshot, since `leave` left none.
fn cold(
    databases: &[Created],
    count: usize,
    leave: &dyn Fn(&Created) -> Result<(), WakeError>,
) -> Result<Vec<Duration>, WakeError> {
    let mut sample = Vec::with_capacity(count);
    for _ in 0..count {
        let one = &databases[chosen(databases)];
        let mut client = one.connect()?;
        let before = client.value(START_TIME)?;
        client.close()?;
        leave(one)?;
        let asked = Instant::now();
        let mut client = one.connect()?;
        sample.push(first_row(&mut client, asked, &one.database.id)?);
        if client.value(START_TIME)? == before {
            return Err(WakeError::NotCold);
        }
        if !used::is_whole(&mut client)? {
            return Err(WakeError::Rows(one.database.id.clone()));
        }
        client.close()?;
    }
    Ok(sample)
}

fn can_drop_page_cache() -> bool {
    let possible = std::fs::File::options().write(true).open(PAGE_CACHE);
    possible.inspect_err(|error| eprintln!("left out: what takes a dropped page cache ({PAGE_CACHE}: {error})")).is_ok()
}

/// Has the host forget what it caches of files, but for what processes have mapped.
fn drop_page_cache() -> Result<(), WakeError> {
    // SAFETY: takes nothing, and does nothing to this process.
    unsafe { libc::sync() };
    std::fs::write(PAGE_CACHE, "1").map_err(WakeError::PageCache)
}

/// Times to the answer and to the first row.
fn creates(rest: &Rest, count: usize) -> Result<(Vec<Duration>, Vec<Duration>), WakeError> {
    let (mut answered, mut rows) = (Vec::with_capacity(count), Vec::with_capacity(count));
    for _ in 0..count {
        let name = name("create");
        let asked = Instant::now();
        let created = rest.create(&name)?;
        answered.push(asked.elapsed());
        let arrived = created.connect().map(|mut client| client.first_row("select 1"));
        let deleted = rest.delete(&created.database.id);
        rows.push(arrived?? - asked);
        deleted?;
    }
    Ok((answered, rows))
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
