//! Packed sleep (`docs/packed.md`): a database that has slept long enough becomes one compressed file.
//!
//! The bytes are a tenant's, so it is a jailed VMM that packs, claimed like any other; here is when, and how that is called
//! off. One at a time, with the lowest priority, and not while a wake is under way. What is next is one row of the metadata, by
//! an index: nothing is kept or looked at for a database that sleeps.

use std::collections::HashMap;
use std::sync::Weak;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::oneshot;

use super::actor::Command;
use super::process::{Spec, last_words, set_background, shorten, status};
use super::{EventKind, Host, Inner, SendError};
use crate::identity::DatabaseId;
use crate::metadata::{MetadataError, now_ms};

/// Why a database was not packed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PackError {
    #[error("there is no such database")]
    NotFound,
    #[error("the database is being deleted")]
    Deleting,
    #[error("the database does not sleep: suspend it first")]
    Awake,
    #[error("somebody needed the database meanwhile")]
    CalledOff,
    /// Nor will it be later, as it sleeps now.
    #[error("the database cannot be packed: {0}")]
    Unfit(String),
    #[error("the database was not packed: {0}")]
    Failed(String),
    #[error("too many requests wait for this database; try again")]
    QueueFull,
    #[error("{0}")]
    Metadata(String),
}

/// After the metadata could not be read or written.
const PAUSE: Duration = Duration::from_secs(60);
/// Longest pause between attempts to pack a database that fails.
const LONGEST_PAUSE: Duration = Duration::from_secs(24 * 3600);
/// Bytes kept of each log of a database that is packed: its last lines.
const LOG_KEPT: u64 = 16 << 10;

impl Inner {
    /// Packs the files of a database without a process; called off when the other end of `called_off` is dropped. Nothing of
    /// it is under way when this returns.
    pub(crate) async fn pack(&self, spec: &Spec, called_off: oneshot::Receiver<()>) -> Result<(), PackError> {
        let done = self.carry_out(spec, "pack", true, called_off).await;
        match &done {
            Ok(()) => {
                self.metrics.packed.add(1);
                for log in [self.home.vmm_log(&spec.id), self.home.console_log(&spec.id)] {
                    shorten(&log, LOG_KEPT);
                }
            }
            Err(_) => self.clear_unpacked(&spec.id),
        }
        done
    }

    /// Removes what a packing that was killed may have left. None may be under way.
    pub(crate) fn clear_unpacked(&self, id: &DatabaseId) {
        // Mostly it is not there.
        let _ = std::fs::remove_file(self.home.database(id).join(dormouse_vmm::pack::TEMPORARY));
    }

    /// Has a packed database no longer packed, without its snapshot.
    pub(crate) async fn unpack(&self, id: &DatabaseId, image: &str, pg_version: u32) -> Result<(), String> {
        // No guest is begun, so any image will do: one that this program knows.
        let image = self.home.current_image(pg_version).unwrap_or_else(|| image.to_owned());
        let memory_mib = self.plan_of(crate::settings::DEFAULT_PLAN).memory_mib;
        let spec = Spec { id: id.clone(), image, memory_mib, storage_mib: 0, written: true };
        let (_kept, never) = oneshot::channel();
        self.carry_out(&spec, "unpack", false, never).await.map_err(|error| format!("it cannot be unpacked: {error}"))
    }

    async fn carry_out(
        &self,
        spec: &Spec,
        task: &str,
        background: bool,
        mut called_off: oneshot::Receiver<()>,
    ) -> Result<(), PackError> {
        let mark = std::fs::metadata(self.home.vmm_log(&spec.id)).map_or(0, |log| log.len());
        let mut process = tokio::select! {
            made = self.pool.make_for(spec, task) => made.map_err(|error| PackError::Failed(error.to_string()))?,
            // One that is not claimed yet ends by itself.
            _ = &mut called_off => return Err(PackError::CalledOff),
        };
        set_background(&process, background);
        let most = self.limits.pack_timeout;
        let why = tokio::select! {
            status = process.gone() => Ok(status),
            _ = called_off => Err(PackError::CalledOff),
            () = tokio::time::sleep(most) => Err(PackError::Failed(format!("it took longer than {} s (setting host.pack_timeout_s)", most.as_secs()))),
        };
        let status = match why {
            Ok(status) => status,
            Err(why) => {
                set_background(&process, false);
                process.kill();
                process.gone().await;
                return Err(why);
            }
        };
        let status = status.and_then(|status| status.code());
        if status == Some(0) {
            return Ok(());
        }
        let words = last_words(&self.home, &spec.id, mark, true).unwrap_or_else(|| "its VMM was killed".into());
        Err(if status == Some(status::UNFIT) { PackError::Unfit(words) } else { PackError::Failed(words) })
    }
}

impl Host {
    /// Packs a database that sleeps. Packed already is no error.
    pub async fn pack(&self, id: &DatabaseId) -> Result<(), PackError> {
        let seen = now_ms();
        let (reply, answer) = oneshot::channel();
        match self.send(id, Command::Pack(reply), false).await {
            Ok(()) => {}
            Err(SendError::NotFound) => return Err(PackError::NotFound),
            Err(SendError::Deleting) => return Err(PackError::Deleting),
            Err(SendError::Full) => return Err(PackError::QueueFull),
            Err(SendError::Metadata(e)) => return Err(PackError::Metadata(e.to_string())),
        }
        answer.await.unwrap_or(Err(PackError::Deleting))?;
        self.inner.metadata.set_asleep(id, None, seen).await.map_err(|e| PackError::Metadata(e.to_string()))
    }

    /// Begins to pack databases as their time comes, if that is set.
    pub(super) fn keep_packed(&self) {
        if let Some(after) = self.inner.limits.pack_after {
            tokio::spawn(keep(std::sync::Arc::downgrade(&self.inner), after));
        }
    }

    /// Packs one that has slept since then, which is long enough. When this returns it is no longer the one that has slept
    /// longest.
    async fn pack_next(&self, id: &DatabaseId, since: i64, failing: &mut Failing) -> Result<(), MetadataError> {
        self.inner.pool.quiet().await;
        let seen = now_ms();
        if self.inner.closing.load(Ordering::Acquire) {
            return Ok(());
        }
        let again = match self.pack(id).await {
            Ok(()) => {
                failing.forget(id);
                return Ok(());
            }
            Err(error @ PackError::Failed(_)) => {
                self.inner.metrics.pack_failures.add(1);
                let (failures, again) = failing.failed(id, since, seen);
                if failures == 1 {
                    tracing::warn!(database = %id, %error, "it sleeps on as it was left, and packing is tried again, each time after twice as long");
                    self.inner.event(id, EventKind::PackFailed, Some(error.to_string()));
                } else {
                    tracing::debug!(database = %id, %error, failures, "not packed");
                }
                Some(again)
            }
            Err(PackError::NotFound | PackError::Deleting) => None,
            Err(error @ PackError::Unfit(_)) => {
                tracing::info!(database = %id, %error, "it sleeps on as it was left");
                failing.forget(id);
                None
            }
            Err(error) => {
                tracing::debug!(database = %id, %error, "not packed yet");
                Some(seen)
            }
        };
        self.inner.metadata.set_asleep(id, again, seen).await
    }
}

/// Databases whose packing has failed since they fell asleep: how often, and the time asleep that was noted instead.
struct Failing {
    after: Duration,
    /// Failures, since when it was asleep at the last, and what was to be noted then; on a full disk it was not.
    all: HashMap<DatabaseId, (u32, i64, i64)>,
}

impl Failing {
    fn forget(&mut self, id: &DatabaseId) {
        self.all.remove(id);
    }

    /// One more, of a database asleep `since`: how many there were, and since when it is to count as asleep, which is a time to
    /// come, so that it is due after `after`, twice that, four times that, and at most [`LONGEST_PAUSE`].
    fn failed(&mut self, id: &DatabaseId, since: i64, now: i64) -> (u32, i64) {
        let ms = |time: Duration| i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
        // Those that have been awake since are no longer looked at by that time.
        let forgotten = now.saturating_sub(ms(self.after)).saturating_sub(ms(LONGEST_PAUSE));
        self.all.retain(|_, (_, _, noted)| *noted > forgotten);
        let same = self.all.get(id).filter(|(_, seen, noted)| [*seen, *noted].contains(&since));
        let before = same.map_or(0, |(failures, ..)| *failures);
        let pause = self.after.saturating_mul(1 << before.min(20)).min(LONGEST_PAUSE.max(self.after));
        let again = now.saturating_add(ms(pause - self.after));
        self.all.insert(id.clone(), (before + 1, since, again));
        (before + 1, again)
    }
}

/// The one task that packs by itself.
async fn keep(host: Weak<Inner>, after: Duration) {
    let mut failing = Failing { after, all: HashMap::new() };
    loop {
        // Held only while there is something to do: the host may end meanwhile.
        let Some(inner) = host.upgrade() else { return };
        let host = Host { inner };
        if host.inner.closing.load(Ordering::Acquire) {
            return;
        }
        let pause = match host.inner.metadata.longest_asleep().await {
            // Who falls asleep from now on is due later than that.
            Ok(None) => after,
            Ok(Some((id, since))) => {
                let slept = Duration::from_millis(now_ms().saturating_sub(since).max(0).unsigned_abs());
                match after.checked_sub(slept).filter(|left| !left.is_zero()) {
                    Some(left) => left,
                    None => match host.pack_next(&id, since, &mut failing).await {
                        Ok(()) => continue,
                        Err(error) => failed(&error),
                    },
                }
            }
            Err(error) => failed(&error),
        };
        drop(host);
        tokio::time::sleep(pause).await;
    }
}

fn failed(error: &MetadataError) -> Duration {
    tracing::warn!(%error, "what is to be packed next is not known");
    PAUSE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_failure_puts_the_next_attempt_off_twice_as_long_until_a_day() {
        let hour = 3_600_000;
        let mut failing = Failing { after: Duration::from_secs(3600), all: HashMap::new() };
        let id = DatabaseId::random().unwrap();
        let (mut since, mut now, mut pauses) = (0, hour, Vec::new());
        for n in 1..=8 {
            let (failures, again) = failing.failed(&id, since, now);
            assert_eq!(failures, n);
            // Due once it has slept for an hour since then.
            pauses.push((again + hour - now) / hour);
            (since, now) = (again, again + hour);
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 24, 24, 24]);
        // It was awake since.
        assert_eq!(failing.failed(&id, now, now + hour), (1, now + hour));
        let other = DatabaseId::random().unwrap();
        assert_eq!(failing.failed(&other, 0, now + 100 * hour).0, 1);
        assert_eq!(failing.all.len(), 1);
    }
}
