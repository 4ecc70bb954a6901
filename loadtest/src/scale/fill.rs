//! Filling a server with databases: through the REST API, many clients at once; or, where that would take too long, in bulk.
//!
//! **In bulk** is the server's own metadata code below REST, on the same file while no server runs
//! (`dormouse_api::metadata::Metadata::create_database`): the same transactions, the same flushes, but no HTTP, and one
//! password and its hash for all.

use std::path::Path;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use dormouse_api::host::{GUEST_ROLE, State};
use dormouse_api::identity::DatabaseId;
use dormouse_api::metadata::{Metadata, NewDatabase, StateJournal};
use dormouse_api::secret::{new_password, scram_verifier};
use futures_util::stream::{self, StreamExt, TryStreamExt};

use super::ScaleError;
use crate::client::Target;
use super::calls::{Caller, tenant};
use crate::rest::Rest;
use crate::used;

/// A database that can be connected to.
#[derive(Clone)]
pub struct Known {
    pub id: String,
    pub password: Rc<str>,
}

/// What many clients made together.
pub struct Made {
    pub known: Vec<(String, String)>,
    pub times: Vec<Duration>,
    pub took: Duration,
}

impl Made {
    pub fn a_second(&self) -> f64 {
        self.known.len() as f64 / self.took.as_secs_f64()
    }

    pub fn known(&self) -> impl Iterator<Item = Known> {
        self.known.iter().map(|(id, password)| Known {
            id: id.clone(),
            password: password.as_str().into(),
        })
    }
}

/// How long clients go on.
#[derive(Clone, Copy)]
pub enum Until {
    Count(u64),
    Time(Duration),
}

/// Creates by so many clients at once, each the next as soon as it has its answer. `say` is told how far it is.
pub fn by_api(
    rest: &Rest,
    clients: usize,
    first: u64,
    until: Until,
    say: &(dyn Fn(u64) + Sync),
) -> Result<Made, ScaleError> {
    let next = AtomicU64::new(0);
    let begun = Instant::now();
    let client = || -> Result<Vec<(String, String, Duration)>, ScaleError> {
        let mut caller = Caller::open(rest)?;
        let mut made = Vec::new();
        loop {
            let n = next.fetch_add(1, Ordering::Relaxed);
            let over = match until {
                Until::Count(count) => n >= count,
                Until::Time(time) => begun.elapsed() >= time,
            };
            if over {
                return Ok(made);
            }
            let asked = Instant::now();
            let (id, password) =
                caller.create(&format!("scale-{}", first + n), &tenant(first + n))?;
            made.push((id, password, asked.elapsed()));
            if n.is_multiple_of(10_000) {
                say(n);
            }
        }
    };
    let made: Result<Vec<_>, _> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..clients).map(|_| scope.spawn(client)).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or(Err(ScaleError::Panic)))
            .collect()
    });
    let took = begun.elapsed();
    let (mut known, mut times) = (Vec::new(), Vec::new());
    for (id, password, time) in made?.into_iter().flatten() {
        known.push((id, password));
        times.push(time);
    }
    Ok(Made { known, times, took })
}

/// Used at one time.
const USERS: usize = 4;

/// Uses each in one session, as an application would begin to, and has it suspended.
pub fn by_use(
    rest: &Rest,
    databases: &[(Target, &str)],
    say: &(dyn Fn(usize) + Sync),
) -> Result<(), ScaleError> {
    side_by_side(USERS, databases, |n, (target, id)| {
        used::begin(rest, target, id, 1)?;
        if n.is_multiple_of(500) {
            say(n);
        }
        Ok(())
    })
}

/// Does something with each, by so many threads.
pub fn side_by_side<T: Sync>(
    threads: usize,
    all: &[T],
    one: impl Fn(usize, &T) -> Result<(), ScaleError> + Sync,
) -> Result<(), ScaleError> {
    let next = AtomicUsize::new(0);
    let some = || -> Result<(), ScaleError> {
        loop {
            let n = next.fetch_add(1, Ordering::Relaxed);
            let Some(it) = all.get(n) else { return Ok(()) };
            one(n, it)?;
        }
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(some)).collect();
        threads.into_iter().try_for_each(|thread| thread.join().unwrap_or(Err(ScaleError::Panic)))
    })
}

/// A thread for each core.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// What rows made in bulk say of their databases.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Rows {
    NeverUsed,
    /// Used, asleep and packed. Their folders are the caller's to make.
    Packed,
}

/// Writes of the bulk way that wait for one commit at most.
const AT_ONCE: usize = 256;

/// Rows from number `first` on, `count` of them, written while no server runs.
pub fn in_bulk(
    home: &Path,
    first: u64,
    count: u64,
    rows: Rows,
    say: &dyn Fn(u64),
) -> Result<Vec<Known>, ScaleError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build();
    let runtime = runtime.map_err(failed)?;
    let layout = dormouse_api::host::layout::Home::new(home.to_owned());
    let (pg_version, image) = layout
        .current_images()
        .into_iter()
        .next()
        .ok_or_else(|| ScaleError::NoImage(layout.images()))?;
    let password = new_password().map_err(failed)?;
    let verifier = scram_verifier(&password).map_err(failed)?;
    let password: Rc<str> = password.into();
    runtime.block_on(async {
        let metadata = Metadata::open(&layout.metadata())
            .await
            .map_err(failed)?;
        let mut tenants = Vec::new();
        for n in 0..super::calls::TENANTS {
            let found = metadata
                .tenant_by_name(&tenant(n))
                .await
                .map_err(failed)?;
            tenants.push(found.ok_or_else(|| failed("a tenant is missing"))?.id);
        }
        let creates = stream::iter(0..count).map(|n| {
            let (metadata, tenants, image, verifier) = (&metadata, &tenants, &image, &verifier);
            async move {
                if n.is_multiple_of(20_000) {
                    say(n);
                }
                let id = DatabaseId::random().map_err(failed)?;
                let new = NewDatabase {
                    id: id.clone(),
                    tenant: tenants[((first + n) % super::calls::TENANTS) as usize].clone(),
                    name: format!("scale-{}", first + n),
                    state: State::Suspended,
                    plan: "free".into(),
                    plan_databases: u64::MAX,
                    pg_version,
                    image: image.clone(),
                    cool_down_ms: None,
                    role: GUEST_ROLE.into(),
                    verifier: verifier.clone(),
                };
                metadata
                    .create_database(new)
                    .await
                    .map_err(failed)?;
                Ok::<_, ScaleError>(id)
            }
        });
        let ids: Vec<DatabaseId> = creates.buffer_unordered(AT_ONCE).try_collect().await?;
        if rows == Rows::Packed {
            note_files(&metadata, &ids).await?;
        }
        metadata.close().await;
        Ok(ids
            .into_iter()
            .map(|id| Known {
                id: id.to_string(),
                password: password.clone(),
            })
            .collect())
    })
}

fn failed(why: impl std::fmt::Display) -> ScaleError {
    ScaleError::Bulk(why.to_string())
}

/// Notes what a first wake and a first change note of a database: that it has files, and data in them. Since when it sleeps is
/// not noted, as of all that are packed.
async fn note_files(metadata: &Metadata, ids: &[DatabaseId]) -> Result<(), ScaleError> {
    let notes = stream::iter(ids).map(|id| metadata.set_has_files(id));
    notes.buffer_unordered(AT_ONCE).try_for_each(async |_| Ok(())).await.map_err(failed)?;
    let (journal, written) = StateJournal::start(metadata.clone(), 0);
    ids.iter().for_each(|id| journal.written(id));
    journal.close();
    // It ends when all is written.
    written.await.map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use dormouse_api::identity::TenantId;

    #[tokio::test]
    async fn a_packed_database_has_the_row_of_one() {
        let home = tempfile::tempdir().unwrap();
        let metadata = Metadata::open(&home.path().join("dormouse.db")).await.unwrap();
        let id = DatabaseId::random().unwrap();
        let new = NewDatabase {
            id: id.clone(),
            tenant: TenantId::default_tenant(),
            name: "a".into(),
            state: State::Suspended,
            plan: "free".into(),
            plan_databases: 1,
            pg_version: 17,
            image: "0123456789abcdef".into(),
            cool_down_ms: None,
            role: GUEST_ROLE.into(),
            verifier: "none".into(),
        };
        metadata.create_database(new).await.unwrap();
        note_files(&metadata, std::slice::from_ref(&id)).await.unwrap();
        let row = metadata.database(&id).await.unwrap().unwrap();
        assert!(row.state == State::Suspended && row.has_files && row.written);
        assert_eq!(metadata.longest_asleep().await.unwrap(), None, "it is not to be packed");
    }
}
