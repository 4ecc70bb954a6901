//! `scale`: whether creates, lists, gets, wakes, memory and start stay as they are from a hundred databases to a million.
//!
//! ```text
//!   world ── the databases of a run, and what is measured of them at each step
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
mod world;

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use serde::Serialize;
use thiserror::Error;

use crate::client::ClientError;
use crate::http::HttpError;
use crate::rest::RestError;
use calls::{Caller, TENANTS, tenant};
use report::short;
pub use report::{Growth, Scale, Step};
use server::Place;
use world::World;

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
    let mut world = World::new(&plan, &place);
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
        steps.push(step);
        // A run that is ended early has told what it found.
        report::tell(&steps, &say);
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
