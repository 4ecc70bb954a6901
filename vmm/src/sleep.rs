//! The suspend of a guest: in what order, to where.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::crash;
use crate::guest::{Guest, Suspender};
use crate::monitor::{Commit, Io, Monitor};
use crate::snapshot::format::Header;
use crate::snapshot::hot;
use crate::snapshot::pages::{Base, Free};
use crate::snapshot::read::Snapshot;
use crate::snapshot::spent::Spending;
use crate::snapshot::write::{self, WriteError};
use crate::snapshot::{State, layer_copy};

/// How long a golden guest must have been idle.
const GOLDEN_IDLE: Duration = Duration::from_millis(500);
/// How often a golden guest is looked at until it is.
const GOLDEN_LOOK: Duration = Duration::from_millis(20);

/// Where the snapshot goes.
pub enum Target {
    /// The database's own, in its folder.
    Snapshot(PathBuf),
    /// A golden one, as soon as the guest is ready, has this many parked connections and is idle.
    Golden { dir: PathBuf, park: usize, opened: bool },
}

/// Suspends one guest.
pub struct Sleeper {
    pub target: Target,
    /// Everything but the extents and the base.
    pub header: Header,
    /// The golden memory that this guest's differs from.
    pub base: Option<Base>,
    /// The mark of the snapshot that this guest was restored from.
    pub spending: Option<Spending>,
    /// The guest was restored or cloned, not booted.
    pub restored: bool,
    /// Where to look for golden memory if the guest began without.
    pub golden: Option<PathBuf>,
    /// Where to note which pages the guest has changed and touched (`snapshot::hot`).
    pub note_pages: Option<PathBuf>,
    pub layer: PathBuf,
}

impl Sleeper {
    fn write(&mut self, guest: &mut Guest, commit: &Arc<Commit>) -> Result<(), String> {
        let began = Instant::now();
        crash::point("suspend-begun");
        if let Some(spending) = &self.spending {
            // Whether it worked does not matter here: the new snapshot takes the old one's name. But beside a packed file
            // it would be nothing.
            let spent = spending.wait();
            if spending.is_of_packed() {
                spent.map_err(|error| format!("its packed file cannot be marked as used: {error}"))?;
            }
        }
        // What was restored from was sealed, so without a change since there is nothing to flush; and a layer that
        // was never written has to stay so, or it could not be told from one that was.
        let sealed = guest.files.is_empty() || (self.restored && !guest.files.has_changed());
        if !sealed {
            guest.files.flush_all().map_err(|error| format!("cannot flush the data directory: {error}"))?;
        }
        crash::point("suspend-flushed");
        let flushed = began.elapsed();
        let state = State::of(guest).map_err(|error| error.to_string())?.encode();
        let ram = &guest.machine.ram;
        // SAFETY: this is the vCPU thread, so the vCPU is out of the guest; the I/O thread moves no bytes in the
        // Saving phase.
        let free = unsafe { Free::read(ram, &guest.monitor.shared) };
        let written = match &self.target {
            Target::Snapshot(dir) => {
                let dir = dir.clone();
                if let Some(golden) = self.golden.take().filter(|_| self.base.is_none()) {
                    // Much of the two is equal.
                    self.base = Snapshot::golden_memory(&golden, &self.header.image, self.header.memory);
                }
                let header = Header {
                    base: self.base.as_ref().map(|base| base.name.clone()).unwrap_or_default(),
                    ..self.header.clone()
                };
                // SAFETY: as above.
                unsafe { write::snapshot(&dir, header, &state, ram, &free, self.base.as_ref(), commit) }
            }
            Target::Golden { dir, .. } => {
                let header = Header {
                    database: String::new(),
                    base: format!("golden-{}", self.header.epoch),
                    ..self.header.clone()
                };
                if !guest.files.is_empty() {
                    layer_copy::copy(&self.layer, &dir.join(layer_copy::NAME))
                        .map_err(|error| format!("cannot copy the golden layer: {error}"))?;
                }
                // SAFETY: as above.
                unsafe { write::golden(dir, header, &state, ram, &free) }
            }
        };
        match written {
            Ok(written) => {
                if let (Some(to), Target::Snapshot(dir)) = (&self.note_pages, &self.target) {
                    // The snapshot is there whatever becomes of this.
                    if let Err(error) = hot::note(&dir.join(write::NAME), ram, to) {
                        tracing::error!(%error, "its pages cannot be noted");
                    }
                }
                tracing::info!(
                    pages = written.pages,
                    bytes = written.bytes,
                    state_bytes = state.len(),
                    flush_us = flushed.as_micros() as u64,
                    us = began.elapsed().as_micros() as u64,
                    "suspended"
                );
                Ok(())
            }
            Err(error @ WriteError::Stuck(_)) => {
                // The guest may neither sleep nor go on. What it has flushed is safe; the rest is as after a crash.
                tracing::error!(%error, "the database cannot go on");
                std::process::exit(74);
            }
            Err(error) => Err(error.to_string()),
        }
    }
}

impl Suspender for Sleeper {
    fn suspend(&mut self, guest: &mut Guest, commit: &Arc<Commit>) -> Result<(), String> {
        self.write(guest, commit)
    }

    fn wants(&self, io: &Io) -> bool {
        matches!(self.target, Target::Golden { .. }) && io.is_ready()
    }

    fn prepare(&mut self, monitor: &Monitor, io: &mut Io) -> Option<Duration> {
        let Target::Golden { park, opened, .. } = &mut self.target else { return None };
        if let Some(suspend) = &mut io.suspend {
            suspend.asked = Instant::now();
        }
        if !*opened {
            *opened = true;
            for _ in 0..*park {
                io.vsock.connect();
            }
            monitor.turn(io);
            return Some(Duration::ZERO);
        }
        if io.vsock.parked_count() < *park {
            return Some(GOLDEN_LOOK);
        }
        match monitor.idle(io) {
            Some(idle) if idle >= GOLDEN_IDLE => None,
            Some(idle) => Some(GOLDEN_IDLE - idle),
            None => Some(GOLDEN_LOOK),
        }
    }
}
