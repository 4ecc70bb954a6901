//! `scale`: whether creates, lists, gets, wakes, memory and start stay as they are from a hundred databases to a million.
//!
//! ```text
//!  server ── a server of the run's own, started and stopped at each step
//!    fill ── databases through the REST API, then in bulk
//!   calls ── REST on kept connections
//!  report ── what was found, as a table
//!    plot ── the steps over the number of databases, as SVG
//! ```
//!
//! At each step there are so many databases; some of them have been used and sleep, with a table of their own, and the others
//! are rows alone. All figures are taken in one order, after a start of the server with that many rows. Databases that the
//! measurement makes, or wakes for the first time, are deleted after it, so the disk that is needed is bounded.

mod calls;
mod fill;
mod plot;
mod report;
mod server;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;
use thiserror::Error;

use crate::client::{Client, ClientError, Target};
use crate::http::HttpError;
use crate::rest::{Rest, RestError};
use crate::stats::Summary;
use crate::used;
use calls::{Caller, TENANTS, tenant, timed};
use fill::{Known, Until};
use report::short;
use report::{
    CREATE, CREATES, GET, IMAGES, LIST, PAGES, TENANT_LIST, WAKE_FRESH, WAKE_NEW, WAKE_USED,
};
pub use report::{Growth, Scale, Step};
use server::{Place, Running};

#[derive(Debug, Error)]
pub enum ScaleError {
    #[error("{0}")]
    Rest(#[from] RestError),
    #[error("{0}")]
    Client(#[from] ClientError),
    #[error("{0}")]
    Http(#[from] HttpError),
    #[error("{path}: {source}")]
    Io {
        path: String,
        source: std::io::Error,
    },
    #[error("{0} has no image to make databases from: run `make image` first")]
    NoImage(PathBuf),
    #[error("the server did not start; {0} says why")]
    Server(PathBuf),
    #[error("the server did not stop")]
    NoStop,
    #[error("{call}: {status}: {body}")]
    Refused {
        call: String,
        status: u16,
        body: String,
    },
    #[error("the metadata could not be filled: {0}")]
    Bulk(String),
    #[error("a client panicked")]
    Panic,
    #[error("{0} has not the rows it had before it slept")]
    Lost(String),
    #[error("the list of all has {listed} databases and not {made}")]
    Miscounted { listed: u64, made: u64 },
    #[error(
        "{free} MiB are free under {path}, and this takes up to {needed} MiB: choose a smaller --largest or another --work"
    )]
    NoRoom {
        path: PathBuf,
        free: u64,
        needed: u64,
    },
}

impl ScaleError {
    fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io {
            path: path.display().to_string(),
            source,
        }
    }
}

#[derive(Debug, Clone, Args, Serialize)]
pub struct Plan {
    /// The most databases.
    #[arg(long, default_value_t = 1_000_000)]
    pub largest: u64,
    /// Up to so many are made through the REST API, the others in bulk.
    #[arg(long, default_value_t = 100_000)]
    pub through_api: u64,
    /// Databases that have been used and sleep; at most half of each step's.
    #[arg(long, default_value_t = 1000)]
    pub used: usize,
    /// Wakes of random ones of them at each step.
    #[arg(long, default_value_t = 1000)]
    pub wakes: usize,
    /// First wakes at each step, of random ones that were never used and of ones just created.
    #[arg(long, default_value_t = 200)]
    pub first_wakes: usize,
    /// Calls of each other kind at each step.
    #[arg(long, default_value_t = 1000)]
    pub calls: usize,
    /// Clients that create at one time.
    #[arg(short = 'c', long, default_value_t = 16)]
    pub clients: usize,
    /// For how long they do, in seconds.
    #[arg(long, default_value_t = 5)]
    pub sustain: u64,
    /// The server to start.
    #[arg(long, default_value = "target/release/dormouse")]
    pub program: PathBuf,
    /// Where its home is made, which is removed at the end.
    #[arg(long, default_value = "target")]
    pub work: PathBuf,
    /// Where to draw the steps.
    #[arg(long)]
    pub svg: Option<PathBuf>,
}

const STEPS: [u64; 6] = [100, 1_000, 10_000, 100_000, 300_000, 1_000_000];
/// Disk that a row takes, in bytes, with its share of the WAL and of indexes.
const ROW: u64 = 2048;
/// Disk of one that was used and sleeps, in bytes, and of one awake.
const USED: u64 = 2 << 20;
const WOKEN: u64 = 4 << 20;
const SPARE: u64 = 2 << 30;
const MIB: u64 = 1 << 20;

pub fn run(images: &Path, plan: Plan) -> Result<Scale, ScaleError> {
    std::fs::create_dir_all(&plan.work).map_err(ScaleError::io(&plan.work))?;
    check_room(&plan)?;
    let begun = Instant::now();
    let say = |what: String| eprintln!("{:>7.1} s  {what}", begun.elapsed().as_secs_f64());
    let place = Place::make(&plan.work, images, &plan.program)?;
    let mut world = World {
        plan: &plan,
        place: &place,
        known: Vec::new(),
        used: Vec::new(),
        made: 0,
        numbers: Numbers::new(),
    };
    let (server, _) = place.start()?;
    let mut caller = Caller::open(&server.rest)?;
    for n in 0..TENANTS {
        caller.create_tenant(&tenant(n))?;
    }
    server.stop()?;
    let (mut steps, mut growth) = (Vec::new(), Vec::new());
    let sizes = STEPS
        .into_iter()
        .filter(|size| *size < plan.largest)
        .chain([plan.largest]);
    for size in sizes {
        say(format!("{} databases: filling", short(size)));
        let filled = world.fill(size, &mut growth, &say)?;
        world.use_some(size, &say)?;
        let step = world.measure(filled, &say)?;
        say(format!(
            "{} databases: {:.0} creates a second",
            short(size),
            step.creates_a_second
        ));
        steps.push(step);
        if let Some(file) = &plan.svg {
            std::fs::write(file, plot::draw(&steps)).map_err(ScaleError::io(file))?;
        }
    }
    place.remove()?;
    Ok(Scale {
        plan,
        steps,
        growth,
    })
}

fn check_room(plan: &Plan) -> Result<(), ScaleError> {
    use std::os::unix::ffi::OsStrExt;
    let path = std::ffi::CString::new(plan.work.as_os_str().as_bytes()).unwrap_or_default();
    let mut found = std::mem::MaybeUninit::<libc::statvfs>::zeroed();
    // SAFETY: a terminated path, and room for the answer, which is all zeros until then.
    let found = unsafe {
        libc::statvfs(path.as_ptr(), found.as_mut_ptr());
        found.assume_init()
    };
    let free = found.f_bavail * found.f_frsize;
    let needed = plan.largest * ROW + plan.used as u64 * USED + 2 * plan.first_wakes as u64 * WOKEN + SPARE;
    if free < needed {
        return Err(ScaleError::NoRoom {
            path: plan.work.clone(),
            free: free / MIB,
            needed: needed / MIB,
        });
    }
    Ok(())
}

struct World<'a> {
    plan: &'a Plan,
    place: &'a Place,
    /// Those that are rows alone.
    known: Vec<Known>,
    /// Those that have been used and sleep.
    used: Vec<Known>,
    /// Numbers given out: each name is used once.
    made: u64,
    numbers: Numbers,
}

impl World<'_> {
    /// Brings the databases to that number.
    fn fill(
        &mut self,
        size: u64,
        growth: &mut Vec<Growth>,
        say: &(dyn Fn(String) + Sync),
    ) -> Result<&'static str, ScaleError> {
        let missing = size.saturating_sub((self.known.len() + self.used.len()) as u64);
        let progress = |n: u64| say(format!("  {n} of {missing}"));
        if size <= self.plan.through_api {
            let (server, _) = self.place.start()?;
            // Its caches and threads first.
            self.churn(&server)?;
            let before = server.memory();
            let made = fill::by_api(
                &server.rest,
                self.plan.clients,
                self.made,
                Until::Count(missing),
                &progress,
            )?;
            let after = server.memory();
            say(format!("  {:.0} a second through the API", made.a_second()));
            growth.push(Growth {
                databases: missing,
                resident_bytes: after.0 as i64 - before.0 as i64,
                anonymous_bytes: after.1 as i64 - before.1 as i64,
            });
            self.made += missing;
            self.known.extend(made.known());
            server.stop()?;
            return Ok("through the API");
        }
        let begun = Instant::now();
        self.known.extend(fill::in_bulk(
            &self.place.home,
            self.made,
            missing,
            &progress,
        )?);
        say(format!(
            "  {:.0} a second in bulk",
            missing as f64 / begun.elapsed().as_secs_f64()
        ));
        self.made += missing;
        Ok("in bulk")
    }

    /// Makes and deletes some.
    fn churn(&mut self, server: &Running) -> Result<(), ScaleError> {
        let made = fill::by_api(
            &server.rest,
            self.plan.clients,
            self.made,
            Until::Count(500),
            &|_| {},
        )?;
        self.made += made.known.len() as u64;
        self.delete(
            &server.rest,
            made.known.iter().map(|(id, _)| id.clone()).collect(),
        )
        .map(drop)
    }

    fn measure(&mut self, filled: &'static str, say: &dyn Fn(String)) -> Result<Step, ScaleError> {
        let databases = (self.known.len() + self.used.len()) as u64;
        let (server, started) = self.place.start()?;
        let mut caller = Caller::open(&server.rest)?;
        let mut timings = Vec::new();
        let count = self.plan.calls;
        let mut add = |what, sample: Vec<Duration>| {
            timings.extend(Summary::of(&sample).map(|summary| (what, summary)))
        };
        let known: Vec<&Known> = (0..count)
            .map(|_| &self.known[self.numbers.below(self.known.len())])
            .collect();
        add(GET, timed(count, |n| caller.get(&known[n].id))?);
        add(
            LIST,
            timed(count, |_| caller.page("limit=100", None).map(drop))?,
        );
        add(
            TENANT_LIST,
            timed(count, |n| {
                caller
                    .page(&format!("limit=100&tenant={}", tenant(n as u64)), None)
                    .map(drop)
            })?,
        );
        add(IMAGES, timed(count, |_| caller.images())?);
        add(PAGES, all_pages(&mut caller, databases)?);
        say("  created, one after another".into());
        let mut new = Vec::new();
        add(
            CREATE,
            timed(count, |_| {
                let (id, password) =
                    caller.create(&format!("scale-{}", self.made), &tenant(self.made))?;
                self.made += 1;
                new.push(Known {
                    id,
                    password: password.as_str().into(),
                });
                Ok(())
            })?,
        );
        let sustained = Until::Time(Duration::from_secs(self.plan.sustain));
        let made = fill::by_api(
            &server.rest,
            self.plan.clients,
            self.made,
            sustained,
            &|_| {},
        )?;
        self.made += made.known.len() as u64 + self.plan.clients as u64;
        add(CREATES, made.times.clone());
        new.extend(made.known());
        say("  used ones woken".into());
        add(WAKE_USED, self.wakes(&server)?);
        say("  woken for the first time".into());
        add(WAKE_FRESH, self.first_wakes(&server)?);
        let mut sample = Vec::new();
        for _ in 0..self.plan.first_wakes.min(new.len()) {
            let database = new.swap_remove(self.numbers.below(new.len()));
            sample.push(first_row(&server.target(&database)?)?);
            server.rest.suspend(&database.id)?;
            server.rest.delete(&database.id)?;
        }
        add(WAKE_NEW, sample);
        say("  deleted".into());
        let deletes_a_second = self.delete(
            &server.rest,
            new.into_iter().map(|database| database.id).collect(),
        )?;
        let (resident_bytes, anonymous_bytes) = server.memory();
        server.stop()?;
        Ok(Step {
            databases,
            used: self.used.len(),
            filled,
            creates_a_second: made.a_second(),
            deletes_a_second,
            timings,
            start_ms: started.as_secs_f64() * 1e3,
            resident_bytes,
            anonymous_bytes,
            metadata_bytes: self.place.metadata_bytes(),
            used_bytes: self.place.databases_bytes()? / self.used.len().max(1) as u64,
        })
    }

    /// Random ones that were used.
    fn wakes(&mut self, server: &Running) -> Result<Vec<Duration>, ScaleError> {
        let mut times = Vec::new();
        for _ in 0..if self.used.is_empty() { 0 } else { self.plan.wakes } {
            let database = &self.used[self.numbers.below(self.used.len())];
            let asked = Instant::now();
            let mut client = Client::connect_tls(&server.target(database)?)?;
            let (sql, made) = used::first_query(self.numbers.below(used::ROWS));
            client.send(&sql)?;
            let (arrived, found) = client.finish_timed()?;
            times.push(arrived - asked);
            if found != made || !used::is_whole(&mut client)? {
                return Err(ScaleError::Lost(database.id.clone()));
            }
            client.close()?;
            server.rest.suspend(&database.id)?;
        }
        Ok(times)
    }

    /// Random ones that were never used. They are given up.
    fn first_wakes(&mut self, server: &Running) -> Result<Vec<Duration>, ScaleError> {
        let mut times = Vec::new();
        for _ in 0..self.plan.first_wakes.min(self.known.len() / 2) {
            let at = self.numbers.below(self.known.len());
            let database = self.known.swap_remove(at);
            times.push(first_row(&server.target(&database)?)?);
            server.rest.suspend(&database.id)?;
            // The room that it takes is the next one's.
            server.rest.delete(&database.id)?;
        }
        Ok(times)
    }

    /// Brings those that have been used to their number.
    fn use_some(&mut self, size: u64, say: &(dyn Fn(String) + Sync)) -> Result<(), ScaleError> {
        let half = usize::try_from(size / 2).unwrap_or(usize::MAX);
        let missing = self.plan.used.min(half).saturating_sub(self.used.len());
        let new: Vec<Known> = (0..missing)
            .map(|_| {
                let at = self.numbers.below(self.known.len());
                self.known.swap_remove(at)
            })
            .collect();
        if new.is_empty() {
            return Ok(());
        }
        let (server, _) = self.place.start()?;
        let targets: Result<Vec<_>, ScaleError> = new
            .iter()
            .map(|database| Ok((server.target(database)?, database.id.as_str())))
            .collect();
        fill::by_use(&server.rest, &targets?, &|n| {
            say(format!("  {n} of {missing} used"))
        })?;
        server.stop()?;
        self.used.extend(new);
        Ok(())
    }

    /// By many clients at once. Gives how many a second.
    fn delete(&self, rest: &Rest, ids: Vec<String>) -> Result<f64, ScaleError> {
        let begun = Instant::now();
        let count = ids.len();
        let share = count.div_ceil(self.plan.clients).max(1);
        std::thread::scope(|scope| {
            let threads: Vec<_> = ids
                .chunks(share)
                .map(|ids| {
                    scope.spawn(move || {
                        let mut caller = Caller::open(rest)?;
                        ids.iter().try_for_each(|id| caller.delete(id))
                    })
                })
                .collect();
            threads
                .into_iter()
                .try_for_each(|thread| thread.join().unwrap_or(Err(ScaleError::Panic)))
        })?;
        Ok(count as f64 / begun.elapsed().as_secs_f64())
    }
}

/// From connecting to the first row.
fn first_row(target: &Target) -> Result<Duration, ScaleError> {
    let asked = Instant::now();
    let mut client = Client::connect_tls(target)?;
    let row = client.first_row("select 1")? - asked;
    client.close()?;
    Ok(row)
}

/// The time of each page of the list of all.
fn all_pages(caller: &mut Caller, databases: u64) -> Result<Vec<Duration>, ScaleError> {
    let (mut times, mut listed, mut cursor) = (Vec::new(), 0, None);
    loop {
        let asked = Instant::now();
        let (count, next) = caller.page("limit=1000", cursor.as_deref())?;
        times.push(asked.elapsed());
        listed += count as u64;
        cursor = next;
        if cursor.is_none() {
            break;
        }
    }
    if listed != databases {
        return Err(ScaleError::Miscounted {
            listed,
            made: databases,
        });
    }
    Ok(times)
}

/// Which databases are taken: the same in every run.
struct Numbers(u64);

impl Numbers {
    fn new() -> Self {
        Self(0x9e37_79b9_7f4a_7c15)
    }

    fn below(&mut self, bound: usize) -> usize {
        // xorshift64.
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound as u64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_without_room_is_refused_before_anything_is_made() {
        let plan = Plan {
            largest: u64::MAX / ROW / 2,
            through_api: 0,
            used: 0,
            wakes: 0,
            first_wakes: 0,
            calls: 0,
            clients: 1,
            sustain: 0,
            program: "none".into(),
            work: std::env::temp_dir(),
            svg: None,
        };
        assert!(matches!(check_room(&plan), Err(ScaleError::NoRoom { .. })));
    }
}
