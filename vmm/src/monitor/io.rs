//! Behind the monitor's mutex: the sockets, the device behind them, and what control clients ask and are told.

use std::io;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use super::{FIRST_TOKEN, Monitor, Order, Phase};
use crate::clock::monotonic_us;
use crate::control::{Client, Control, Request, SessionCounts};
use crate::sessions::Sessions;
use crate::snapshot::spent::Spending;
use crate::virtio::vsock::Vsock;

/// How far a suspend has come. Decided by one compare-and-swap, so a cancel and a commit never both win.
#[derive(Debug, Default)]
pub struct Commit {
    state: AtomicU8,
    /// What became of a flush that it needs, and word of that and of a cancel.
    flushed: Mutex<Option<io::Result<()>>>,
    news: Condvar,
}

impl Commit {
    const OPEN: u8 = 0;
    const CANCELLED: u8 = 1;
    const COMMITTED: u8 = 2;

    /// True if the suspend is (now) called off.
    pub fn cancel(&self) -> bool {
        let called_off = self.state.compare_exchange(Self::OPEN, Self::CANCELLED, Ordering::AcqRel, Ordering::Acquire)
            != Err(Self::COMMITTED);
        // Who waits has looked, or looks from now on.
        drop(self.lock());
        self.news.notify_all();
        called_off
    }
    /// True if it may be committed; from then on it can't be called off.
    pub fn commit(&self) -> bool {
        self.state.compare_exchange(Self::OPEN, Self::COMMITTED, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
    pub fn cancelled(&self) -> bool {
        self.state.load(Ordering::Acquire) == Self::CANCELLED
    }

    /// The flush has ended; whether the suspend was called off before, so that nobody may wait for it.
    pub fn tell_flushed(&self, result: io::Result<()>) -> bool {
        let mut flushed = self.lock();
        *flushed = Some(result);
        self.news.notify_all();
        self.cancelled()
    }

    /// Waits for the end of the flush; `None` if the suspend is called off before.
    pub fn wait_flushed(&self) -> Option<io::Result<()>> {
        let mut flushed = self.lock();
        loop {
            if flushed.is_some() || self.cancelled() {
                return flushed.take();
            }
            flushed = self.news.wait(flushed).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<io::Result<()>>> {
        self.flushed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A suspend that has been asked for.
#[derive(Clone, Debug)]
pub struct Suspend {
    /// Whom to answer; `None` when the VMM decided itself.
    pub client: Option<Client>,
    /// `None`: nobody has sessions to compare.
    pub sessions: Option<Vec<SessionCounts>>,
    pub asked: Instant,
    pub commit: Arc<Commit>,
}

/// What is told of this life of the guest.
#[derive(Clone, Debug)]
pub struct Life {
    pub epoch: String,
    pub cold: bool,
    /// Why it is cold, if that was not to be expected.
    pub why: Option<String>,
    /// Postgres started only without the settings of `ALTER SYSTEM`.
    pub settings_undone: bool,
    /// Steps of the start, µs since the process began.
    pub trace: Vec<(&'static str, u64)>,
    pub started: Instant,
}

impl Life {
    /// Notes that a step is done.
    pub fn step(&mut self, name: &'static str) {
        self.step_at(name, Instant::now());
    }

    fn step_at(&mut self, name: &'static str, at: Instant) {
        self.trace.push((name, at.saturating_duration_since(self.started).as_micros() as u64));
    }

    pub(super) fn ready_event(&self) -> Value {
        json!({"event": "ready", "epoch": self.epoch, "cold": self.cold, "why": self.why,
               "settings_undone": self.settings_undone, "began": self.began(), "trace": self.trace()})
    }

    /// `started` on the clock that all processes of the host have, µs.
    fn began(&self) -> u64 {
        monotonic_us().saturating_sub(self.started.elapsed().as_micros() as u64)
    }

    fn trace(&self) -> Map<String, Value> {
        self.trace.iter().map(|(name, at)| ((*name).to_owned(), json!(at))).collect()
    }
}

/// Between two tries of a suspend that nobody asked for: what makes one fail (a full disk) seldom goes at once.
const RETRY_UNASKED: Duration = Duration::from_secs(1);

/// Behind the mutex.
pub struct Io {
    pub vsock: Vsock,
    pub sessions: Sessions,
    pub control: Control,
    pub life: Life,
    /// The mark of the snapshot that this life goes on from; for the trace.
    pub spending: Option<Spending>,
    /// The trace has been told to its end.
    traced: bool,
    pub suspend: Option<Suspend>,
    /// When a suspend that nobody asked for may be tried again, after one that failed.
    retry_at: Option<Instant>,
    /// SIGTERM came: suspend as soon as it can be done.
    pub(super) terminating: bool,
    pub(super) stopping: Vec<Client>,
    asking_tasks: Vec<Client>,
    pub(super) ready: bool,
    pub(super) cool_down: Duration,
    pub(super) idle_told: bool,
    pub(super) unattended_since: Option<Instant>,
    pub(super) next_token: u64,
}

impl Io {
    pub(super) fn new(vsock: Vsock, sessions: Sessions, control: Control, life: Life) -> Self {
        Self {
            vsock,
            sessions,
            control,
            life,
            spending: None,
            traced: false,
            suspend: None,
            retry_at: None,
            terminating: false,
            stopping: Vec::new(),
            asking_tasks: Vec::new(),
            ready: false,
            cool_down: Duration::from_secs(1),
            idle_told: false,
            unattended_since: Some(Instant::now()),
            next_token: FIRST_TOKEN,
        }
    }

    /// Somebody wants the database while it is being saved.
    pub(super) fn call_off(&mut self, saving: bool) {
        if saving && let Some(suspend) = &self.suspend {
            suspend.commit.cancel();
        }
    }

    pub(super) fn request(&mut self, monitor: &Monitor, client: Client, request: Request) {
        match request {
            Request::Status => {
                let status = self.status(monitor);
                self.control.tell(client, &status);
            }
            Request::CoolDown { ms } => {
                self.cool_down = Duration::from_millis(ms);
                self.idle_told = false;
                self.control.tell(client, &json!({"ok": true}));
            }
            Request::Suspend { .. } if self.suspend.is_some() => {
                self.control.tell(client, &json!({"ok": false, "error": "a suspend is under way"}));
            }
            Request::Suspend { sessions } => {
                self.suspend = Some(Suspend {
                    client: Some(client),
                    sessions: Some(sessions),
                    asked: Instant::now(),
                    commit: Arc::default(),
                });
            }
            Request::Cancel => {
                let off = self.suspend.as_ref().is_none_or(|suspend| suspend.commit.cancel());
                if off {
                    self.control.tell(client, &json!({"ok": true}));
                    if monitor.phase() != Phase::Saving && self.suspend.is_some() {
                        self.suspended("cancelled");
                    }
                } else {
                    self.control.tell(client, &json!({"ok": false, "error": "committed"}));
                }
            }
            Request::Tasks => {
                self.asking_tasks.push(client);
                monitor.order(Order::Tasks);
            }
            Request::Profile { hz: 0 } => {
                let profile = monitor.profile.stop();
                self.control.tell(client, &profile);
            }
            Request::Profile { hz } => {
                let answer = match monitor.start_profile(hz) {
                    Ok(()) => json!({"ok": true}),
                    Err(error) => json!({"ok": false, "error": format!("cannot take a profile: {error}")}),
                };
                self.control.tell(client, &answer);
            }
            #[cfg(feature = "crash-points")]
            Request::Kill { pid } => {
                monitor.shared.set_kill(pid);
                monitor.shared.set_event(1);
                self.control.tell(client, &json!({"ok": true}));
            }
            #[cfg(feature = "crash-points")]
            Request::Attempt { what } => {
                let answer = match crate::jail::attempts::attempt(&what) {
                    Ok(result) => json!({"ok": true, "result": result}),
                    Err(error) => json!({"ok": false, "error": error}),
                };
                self.control.tell(client, &answer);
            }
            Request::Stop => {
                self.stopping.push(client);
                monitor.shared.set_shutdown(1);
                monitor.shared.set_event(1);
            }
        }
    }

    /// SIGTERM: the first asks for a suspend as soon as the guest is idle, the second for a clean stop.
    pub(super) fn terminate(&mut self, monitor: &Monitor) {
        // The shared page knows it before it is told.
        if self.terminating || (!self.ready && monitor.shared.get_ready() == 0) {
            tracing::info!("terminated: Postgres is asked to shut down");
            monitor.shared.set_shutdown(1);
            monitor.shared.set_event(1);
        } else {
            tracing::info!("terminated: the database suspends itself");
        }
        self.terminating = true;
    }

    /// How long a suspend that nobody asked for still has to wait, if the last one failed a moment ago.
    pub fn pause(&self) -> Option<Duration> {
        self.retry_at.and_then(|at| at.checked_duration_since(Instant::now())).filter(|pause| !pause.is_zero())
    }

    /// Begins a suspend that nobody asked for.
    pub fn suspend_unasked(&mut self) {
        self.suspend = Some(Suspend { client: None, sessions: None, asked: Instant::now(), commit: Arc::default() });
    }

    /// Answers the suspend that is under way with an error, and forgets it.
    pub fn suspended(&mut self, error: &str) {
        let Some(suspend) = self.suspend.take() else { return };
        tracing::info!(error, "suspend called off");
        if suspend.client.is_none() {
            self.retry_at = Some(Instant::now() + RETRY_UNASKED);
        }
        if let Some(client) = suspend.client {
            self.control.tell(client, &json!({"ok": false, "error": error}));
        }
    }

    /// Answers the suspend that has been committed.
    pub fn committed(&mut self) {
        if let Some(client) = self.suspend.take().and_then(|suspend| suspend.client) {
            self.control.tell(client, &json!({"ok": true}));
        }
    }

    /// The guest has ended; answers who asked it to.
    pub fn stopped(&mut self, clean: bool) {
        for client in std::mem::take(&mut self.stopping) {
            if clean {
                self.control.tell(client, &json!({"ok": true}));
            } else {
                self.control.tell(client, &json!({"ok": false, "error": "Postgres did not shut down cleanly"}));
            }
        }
    }

    /// Answers who asked what the guest's processes are doing.
    pub fn tell_tasks(&mut self, report: &str) {
        for client in std::mem::take(&mut self.asking_tasks) {
            self.control.tell(client, &json!({"ok": true, "report": report}));
        }
    }

    fn status(&self, monitor: &Monitor) -> Value {
        let sessions: Vec<Value> = self
            .vsock
            .sessions()
            .into_iter()
            .map(|one| json!({"session": one.session, "received": one.received, "sent": one.sent}))
            .collect();
        json!({
            "ok": true,
            "state": if self.ready { "running" } else { "starting" },
            "epoch": self.life.epoch,
            "cold": self.life.cold,
            "idle_ms": monitor.idle(self).map_or(0, |idle| idle.as_millis() as u64),
            "busy": monitor.shared.get_busy(),
            "sessions": sessions,
            "exits": monitor.profile.exits(),
            "memory_bytes": monitor.shared.get_pages_used().saturating_mul(dormouse_abi::PAGE),
            "cache_bytes": monitor.shared.get_cache_pages().saturating_mul(dormouse_abi::PAGE),
            "kernel_bytes": monitor.shared.get_heap_used(),
        })
    }

    /// Tells how the first request of this life was answered, once it was; true if there is nothing more to tell. Not at
    /// once: whoever waits for the answer comes first.
    pub(super) fn tell_trace(&mut self) -> bool {
        let firsts = self.vsock.firsts();
        let (Some(answered), false) = (firsts.answered, self.traced) else { return self.traced };
        let landed = match &self.spending {
            // One that failed never lands, and then nothing is told.
            Some(spending) => match spending.landed() {
                Some(at) => Some(at),
                None => return false,
            },
            None => None,
        };
        self.traced = true;
        for (name, at) in [("spent", landed), ("bound", firsts.joined), ("asked", firsts.asked), ("answered", Some(answered))] {
            if let Some(at) = at {
                self.life.step_at(name, at);
            }
        }
        self.control.tell_all(&json!({"event": "trace", "began": self.life.began(), "trace": self.life.trace()}));
        true
    }

    /// Postgres accepts connections.
    pub fn is_ready(&self) -> bool {
        self.ready
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_suspend_is_either_called_off_or_committed() {
        let commit = Commit::default();
        assert!(commit.commit());
        assert!(!commit.cancel(), "committed is committed");
        let commit = Commit::default();
        assert!(commit.cancel());
        assert!(commit.cancel(), "calling off twice is calling off");
        assert!(!commit.commit());
        assert!(commit.cancelled());
        assert!(commit.wait_flushed().is_none());
    }
}
