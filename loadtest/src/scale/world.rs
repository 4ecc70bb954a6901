//! The databases of a run: how they come to be, and what is measured of them.

use std::time::{Duration, Instant};

use super::calls::{Caller, tenant, timed};
use super::fill::{self, Known, Rows, Until};
use super::packed::Originals;
use super::report::{
    self, CREATE, CREATES, GET, Growth, IMAGES, LIST, PAGES, Step, TENANT_LIST, WAKE_FRESH,
    WAKE_NEW, WAKE_PACKED, WAKE_USED,
};
use super::server::{Place, Running};
use super::{Plan, ScaleError};
use crate::client::{Client, Target};
use crate::rest::Rest;
use crate::stats::Summary;
use crate::used;

/// The databases of a run.
pub struct World<'a> {
    plan: &'a Plan,
    place: &'a Place,
    originals: &'a Originals,
    /// Those that are rows alone.
    known: Vec<Known>,
    /// Those that have been used and sleep.
    used: Vec<Known>,
    /// Copies of others that were used and packed.
    packed: Vec<Known>,
    /// Numbers given out: each name is used once.
    made: u64,
    numbers: Numbers,
}

impl<'a> World<'a> {
    pub fn new(plan: &'a Plan, place: &'a Place, originals: &'a Originals) -> Self {
        let (known, used, packed) = (Vec::new(), Vec::new(), Vec::new());
        Self { plan, place, originals, known, used, packed, made: 0, numbers: Numbers::new() }
    }

    /// Brings the databases to that number, but for those that will be packed.
    pub fn fill(
        &mut self,
        size: u64,
        growth: &mut Vec<Growth>,
        say: &(dyn Fn(String) + Sync),
    ) -> Result<&'static str, ScaleError> {
        let others = size - self.plan.packed_of(size);
        let missing = others.saturating_sub((self.known.len() + self.used.len()) as u64);
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
            Rows::NeverUsed,
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

    /// All figures of a step.
    pub fn measure(&mut self, filled: &'static str, say: &dyn Fn(String)) -> Result<Step, ScaleError> {
        let databases = (self.known.len() + self.used.len() + self.packed.len()) as u64;
        let (server, started) = self.place.start()?;
        let mut caller = Caller::open(&server.rest)?;
        let mut timings = Vec::new();
        let count = self.plan.calls;
        let mut add = |what, sample: Vec<Duration>| {
            if let Some(summary) = Summary::of(&sample) {
                say(format!("  {what}: {}", report::millis(&summary)));
                timings.push((what, summary));
            }
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
        add(WAKE_USED, self.wakes(&server)?);
        add(WAKE_PACKED, self.packed_wakes(&server)?);
        add(WAKE_FRESH, self.first_wakes(&server)?);
        let mut sample = Vec::new();
        for _ in 0..self.plan.first_wakes.min(new.len()) {
            let database = new.swap_remove(self.numbers.below(new.len()));
            sample.push(first_row(&server.target(&database)?)?);
            server.rest.suspend(&database.id)?;
            server.rest.delete(&database.id)?;
        }
        add(WAKE_NEW, sample);
        let deletes_a_second = self.delete(
            &server.rest,
            new.into_iter().map(|database| database.id).collect(),
        )?;
        let (resident_bytes, anonymous_bytes) = server.memory();
        server.stop()?;
        Ok(Step {
            databases,
            used: self.used.len(),
            packed: self.packed.len(),
            filled,
            creates_a_second: made.a_second(),
            deletes_a_second,
            timings,
            start_ms: started.as_secs_f64() * 1e3,
            resident_bytes,
            anonymous_bytes,
            metadata_bytes: self.place.metadata_bytes(),
            used_bytes: self.place.bytes_of_each(&self.used)?,
            packed_bytes: self.place.bytes_of_each(&self.packed)?,
        })
    }

    /// Random ones that were used.
    fn wakes(&mut self, server: &Running) -> Result<Vec<Duration>, ScaleError> {
        let mut times = Vec::new();
        for _ in 0..if self.used.is_empty() { 0 } else { self.plan.wakes } {
            let database = &self.used[self.numbers.below(self.used.len())];
            times.push(used_row(server, database, self.numbers.below(used::ROWS))?);
            server.rest.suspend(&database.id)?;
        }
        Ok(times)
    }

    /// Random ones that are packed, each as it was before the next is taken. That is by its copy and not by packing it, which
    /// takes half a second or more and would be most of the run.
    fn packed_wakes(&mut self, server: &Running) -> Result<Vec<Duration>, ScaleError> {
        let mut times = Vec::new();
        for _ in 0..if self.packed.is_empty() { 0 } else { self.plan.wakes } {
            let database = &self.packed[self.numbers.below(self.packed.len())];
            times.push(used_row(server, database, self.numbers.below(used::ROWS))?);
            let trace = server.rest.wake_trace(&database.id)?;
            if trace.kind != "resume" || trace.steps.iter().all(|step| step.step != "unpacked") {
                return Err(ScaleError::NotPacked(database.id.clone()));
            }
            server.rest.suspend(&database.id)?;
            self.originals.renew(self.place, &database.id)?;
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
    pub fn use_some(&mut self, size: u64, say: &(dyn Fn(String) + Sync)) -> Result<(), ScaleError> {
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

    /// Brings those that are packed to their number, while no server runs.
    pub fn copy_packed(&mut self, size: u64, say: &(dyn Fn(String) + Sync)) -> Result<(), ScaleError> {
        let missing = self.plan.packed_of(size).saturating_sub(self.packed.len() as u64);
        if missing == 0 {
            return Ok(());
        }
        let progress = |n: u64| say(format!("  {n} of {missing} rows of copies"));
        let new = fill::in_bulk(&self.place.home, self.made, missing, Rows::Packed, &progress)?;
        self.made += missing;
        let ids: Vec<&str> = new.iter().map(|database| database.id.as_str()).collect();
        self.originals.copy(self.place, &ids, say)?;
        self.packed.extend(new);
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

/// From connecting to a row of one that was used; the row and the others are looked at.
fn used_row(server: &Running, database: &Known, row: usize) -> Result<Duration, ScaleError> {
    let asked = Instant::now();
    let mut client = Client::connect_tls(&server.target(database)?)?;
    let (sql, made) = used::first_query(row);
    client.send(&sql)?;
    let (arrived, found) = client.finish_timed()?;
    if found != made || !used::is_whole(&mut client)? {
        return Err(ScaleError::Lost(database.id.clone()));
    }
    client.close()?;
    Ok(arrived - asked)
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
