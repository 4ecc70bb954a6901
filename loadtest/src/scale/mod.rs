//! `scale`: whether creates, lists, gets, wakes, memory and start stay as they are from a hundred databases to a million.
//!
//! ```text
//!   world ── the databases of a run, and what is measured of them at each step
//!  server ── a server of the run's own, started and stopped at each step
//!    fill ── databases through the REST API, then in bulk
//!  packed ── copies of used, packed ones
//!   calls ── REST on kept connections
//!  report ── what was found, as a table
//!    plot ── the steps over the number of databases, as SVG
//! ```
//!
//! At each step there are so many databases; some of them have been used and sleep, with a table of their own, some are copies
//! of others that were used and packed, and the rest are rows alone. All figures are taken in one order, after a start of the
//! server with that many rows. Databases that the measurement makes, or wakes for the first time, are deleted after it, so the
//! disk that is needed is bounded.

mod calls;
mod fill;
mod packed;
mod plot;
mod report;
mod server;
mod world;

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use dormouse_vmm::pack::PackError;
use serde::Serialize;
use thiserror::Error;

use crate::client::ClientError;
use crate::http::HttpError;
use crate::rest::RestError;
use calls::{Caller, TENANTS, tenant};
use packed::Originals;
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
    #[error("the copy {id} of a packed database: {source}")]
    Copy { id: String, source: PackError },
    #[error("{0} did not go on from its packed file")]
    NotPacked(String),
    #[error("a thread panicked")]
    Panic,
    #[error("{0} has not the rows it had before it slept")]
    Lost(String),
    #[error("the list of all has {listed} databases and not {made}")]
    Miscounted { listed: u64, made: u64 },
    #[error(
        "{free} MiB are free under {path}, and this takes up to {needed} MiB: choose a smaller --largest, --packed-percent or --used, or another --work"
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
    /// Percent of each step's databases that are copies of others which were used and packed; 0 for none.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(..=MOST_PACKED))]
    pub packed_percent: u64,
    /// Wakes at each step of random ones of those used, and of those packed.
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

impl Plan {
    /// Copies of packed ones among so many databases.
    fn packed_of(&self, databases: u64) -> u64 {
        databases / 100 * self.packed_percent + databases % 100 * self.packed_percent / 100
    }
}

/// With those used, which may be half, some are left that never were.
const MOST_PACKED: u64 = 40;
const STEPS: [u64; 6] = [100, 1_000, 10_000, 100_000, 300_000, 1_000_000];
/// Disk that a row takes, in bytes, with its share of the WAL and of indexes.
const ROW: u64 = 2048;
/// Disk of one that was used and sleeps, in bytes, and of one awake.
const USED: u64 = 2 << 20;
const WOKEN: u64 = 4 << 20;
/// And of one that is packed.
const PACKED: u64 = 256 << 10;
const SPARE: u64 = 2 << 30;
const MIB: u64 = 1 << 20;

pub fn run(images: &Path, plan: Plan) -> Result<Scale, ScaleError> {
    std::fs::create_dir_all(&plan.work).map_err(ScaleError::io(&plan.work))?;
    check_room(&plan)?;
    let begun = Instant::now();
    let say = |what: String| eprintln!("{:>7.1} s  {what}", begun.elapsed().as_secs_f64());
    let place = Place::make(&plan.work, images, &plan.program)?;
    let (server, _) = place.start()?;
    let mut caller = Caller::open(&server.rest)?;
    for n in 0..TENANTS {
        caller.create_tenant(&tenant(n))?;
    }
    let originals = Originals::make(&place, &server, plan.packed_of(plan.largest), &say)?;
    server.stop()?;
    let mut world = World::new(&plan, &place, &originals);
    let (mut steps, mut growth) = (Vec::new(), Vec::new());
    let sizes = STEPS
        .into_iter()
        .filter(|size| *size < plan.largest)
        .chain([plan.largest]);
    for size in sizes {
        say(format!("{} databases: filling", short(size)));
        let filled = world.fill(size, &mut growth, &say)?;
        world.use_some(size, &say)?;
        world.copy_packed(size, &say)?;
        let step = world.measure(filled, &say)?;
        steps.push(step);
        // A run that is ended early has told what it found.
        report::tell(&steps, &say);
        if let Some(file) = &plan.svg {
            std::fs::write(file, plot::draw(&steps)).map_err(ScaleError::io(file))?;
        }
    }
    say("removing the home".into());
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
    let asleep = plan.largest * ROW + plan.used as u64 * USED + plan.packed_of(plan.largest) * PACKED;
    let needed = asleep + 2 * plan.first_wakes as u64 * WOKEN + SPARE;
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

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        plan: Plan,
    }

    fn plan(arguments: &[&str]) -> Result<Plan, clap::Error> {
        <Line as clap::Parser>::try_parse_from([&["scale"], arguments].concat()).map(|line| line.plan)
    }

    #[test]
    fn a_tenth_is_packed_unless_told_otherwise() {
        let of = |arguments: &[&str]| [100, 150, 1_000_000].map(|size| plan(arguments).unwrap().packed_of(size));
        assert_eq!(of(&[]), [10, 15, 100_000]);
        assert_eq!(of(&["--packed-percent", "0"]), [0; 3]);
        assert_eq!(of(&["--packed-percent", "3"]), [3, 4, 30_000]);
        assert!(plan(&["--packed-percent", "41"]).is_err());
    }

    #[test]
    fn a_disk_without_room_is_refused_before_anything_is_made() {
        let work = std::env::temp_dir();
        let refused = |arguments: &[&str]| {
            let plan = Plan { work: work.clone(), ..plan(arguments).unwrap() };
            matches!(check_room(&plan), Err(ScaleError::NoRoom { .. }))
        };
        let rows = (u64::MAX / ROW / 2).to_string();
        assert!(refused(&["--largest", &rows, "--used", "0", "--packed-percent", "0"]));
        let copies = (u64::MAX / PACKED / 2).to_string();
        assert!(refused(&["--largest", &copies, "--used", "0"]));
    }
}
