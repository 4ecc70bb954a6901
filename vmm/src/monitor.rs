//! What the two threads share: the sockets and the device behind them, the clock, and who does what when.
//!
//! ```text
//!                vCPU thread                                   I/O thread
//!  Running   in the guest                          waits on the reactor, ticks, moves bytes, kicks
//!  Halted    waits on the reactor, moves bytes     parked
//!  Saving    writes the snapshot                   waits on the reactor: only a cancel or a newcomer counts
//! ```
//! So a request that finds the guest asleep passes through one thread only, and one that finds it at work does not
//! wait for it to come out. Everything behind the mutex is moved on by whichever thread holds it.

use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::Thread;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use crate::clock::{self, Clock};
use crate::control::{Client, Control, Request, SessionCounts};
use crate::reactor::{Events, READ, Reactor, Terminate, Waker};
use crate::sessions::Sessions;
use crate::shared::SharedPage;
use crate::virtio::vsock::Vsock;

const TOKEN_WAKER: u64 = 0;
const TOKEN_SESSIONS: u64 = 1;
const TOKEN_CONTROL: u64 = 2;
const TOKEN_TERMINATE: u64 = 3;
const FIRST_TOKEN: u64 = 4;

/// How long a suspend waits for the guest to halt before it is answered "busy".
const HALT_WITHIN: Duration = Duration::from_millis(100);
/// Ticks without the guest having run, after which the I/O thread stops ticking.
const IDLE_TICKS: u32 = 25;

/// Settings of one VMM that hold for its life.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// How often the guest's timers are looked at while it runs.
    pub tick: Duration,
    /// The guest suspends itself when idle this long with no client at all; `None` for never.
    pub unattended: Option<Duration>,
}

/// Who has the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    Running = 0,
    Halted = 1,
    Saving = 2,
    Ended = 3,
}

/// How far a suspend has come. Decided by one compare-and-swap, so a cancel and a commit never both win.
#[derive(Debug, Default)]
pub struct Commit(AtomicU8);

impl Commit {
    const OPEN: u8 = 0;
    const CANCELLED: u8 = 1;
    const COMMITTED: u8 = 2;

    /// True if the suspend is (now) called off.
    pub fn cancel(&self) -> bool {
        self.0.compare_exchange(Self::OPEN, Self::CANCELLED, Ordering::AcqRel, Ordering::Acquire)
            != Err(Self::COMMITTED)
    }
    /// True if it may be committed; from then on it can't be called off.
    pub fn commit(&self) -> bool {
        self.0.compare_exchange(Self::OPEN, Self::COMMITTED, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
    pub fn cancelled(&self) -> bool {
        self.0.load(Ordering::Acquire) == Self::CANCELLED
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
    /// Steps of the start, µs since the process began.
    pub trace: Vec<(&'static str, u64)>,
    pub started: Instant,
}

impl Life {
    /// Notes that a step is done.
    pub fn step(&mut self, name: &'static str) {
        self.trace.push((name, self.started.elapsed().as_micros() as u64));
    }

    fn ready_event(&self) -> Value {
        let trace: Map<String, Value> = self.trace.iter().map(|(name, at)| ((*name).to_owned(), json!(at))).collect();
        json!({"event": "ready", "epoch": self.epoch, "cold": self.cold, "trace": trace})
    }
}

/// Behind the mutex.
pub struct Io {
    pub vsock: Vsock,
    pub sessions: Sessions,
    pub control: Control,
    pub life: Life,
    pub suspend: Option<Suspend>,
    /// SIGTERM came: suspend as soon as it can be done.
    terminating: bool,
    stopping: Vec<Client>,
    ready: bool,
    cool_down: Duration,
    idle_told: bool,
    unattended_since: Option<Instant>,
    next_token: u64,
}

/// Shared by the threads.
pub struct Monitor {
    pub reactor: Reactor,
    pub shared: SharedPage,
    pub pace: Pace,
    clock: Mutex<Clock>,
    io: Mutex<Io>,
    waker: Waker,
    terminate: Terminate,
    phase: AtomicU8,
    /// Times the guest was entered after a halt.
    runs: AtomicU64,
    /// The I/O thread sleeps until it is unparked.
    parked: AtomicBool,
    io_thread: Mutex<Option<Thread>>,
    interrupt: AtomicBool,
    immediate_exit: AtomicPtr<u8>,
    vcpu_thread: libc::pthread_t,
}

impl Monitor {
    #[allow(clippy::too_many_arguments)]
    /// Made by the vCPU thread. `immediate_exit` is the field of that name of its `kvm_run`, which outlives the
    /// I/O thread.
    pub fn new(
        shared: SharedPage,
        clock: Clock,
        pace: Pace,
        vsock: Vsock,
        (sessions, control): (UnixListener, UnixListener),
        life: Life,
        terminate: Terminate,
        immediate_exit: *mut u8,
    ) -> std::io::Result<Arc<Self>> {
        let reactor = Reactor::new()?;
        let waker = Waker::new()?;
        reactor.add(&terminate, TOKEN_TERMINATE, READ)?;
        reactor.add(&waker, TOKEN_WAKER, READ)?;
        reactor.add(&sessions, TOKEN_SESSIONS, READ)?;
        reactor.add(&control, TOKEN_CONTROL, READ)?;
        let io = Io {
            vsock,
            sessions: Sessions::new(sessions),
            control: Control::new(control),
            life,
            suspend: None,
            terminating: false,
            stopping: Vec::new(),
            ready: false,
            cool_down: Duration::from_secs(1),
            idle_told: false,
            unattended_since: Some(Instant::now()),
            next_token: FIRST_TOKEN,
        };
        Ok(Arc::new(Self {
            reactor,
            shared,
            pace,
            clock: Mutex::new(clock),
            io: Mutex::new(io),
            waker,
            terminate,
            phase: AtomicU8::new(Phase::Running as u8),
            runs: AtomicU64::new(1),
            parked: AtomicBool::new(false),
            io_thread: Mutex::new(None),
            interrupt: AtomicBool::new(false),
            immediate_exit: AtomicPtr::new(immediate_exit),
            // SAFETY: always sound.
            vcpu_thread: unsafe { libc::pthread_self() },
        }))
    }

    /// The sockets and the device. A poisoned lock is taken all the same: every holder leaves it usable.
    pub fn io(&self) -> MutexGuard<'_, Io> {
        self.io.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The clock as it is published.
    pub fn clock(&self) -> Clock {
        *self.clock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Publishes the time anew if it is due.
    pub fn refresh_clock(&self) {
        let mut clock = self.clock.lock().unwrap_or_else(PoisonError::into_inner);
        if clock.age() >= clock::REFRESH {
            clock.publish(&self.shared);
        }
    }

    pub fn phase(&self) -> Phase {
        match self.phase.load(Ordering::SeqCst) {
            0 => Phase::Running,
            1 => Phase::Halted,
            2 => Phase::Saving,
            _ => Phase::Ended,
        }
    }

    /// Says who has the guest now, and wakes the I/O thread if it has to work.
    pub fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::SeqCst);
        if phase == Phase::Running {
            self.runs.fetch_add(1, Ordering::Relaxed);
        }
        if phase != Phase::Halted
            && self.parked.load(Ordering::SeqCst)
            && let Some(thread) = &*self.io_thread.lock().unwrap_or_else(PoisonError::into_inner)
        {
            thread.unpark();
        }
    }

    /// Asks the vCPU thread to come out of the guest and to inject the event interrupt.
    fn kick(&self) {
        self.interrupt.store(true, Ordering::SeqCst);
        let immediate_exit = self.immediate_exit.load(Ordering::Relaxed);
        // SAFETY: points into the vCPU's run page, which is mapped until after the I/O thread has ended.
        unsafe { AtomicU8::from_ptr(immediate_exit) }.store(1, Ordering::SeqCst);
        // SAFETY: the vCPU thread ends after the I/O thread; the signal has a handler.
        unsafe { libc::pthread_kill(self.vcpu_thread, kick_signal()) };
    }

    /// The vCPU thread is out of the guest: clears the kick; true if an interrupt is wanted.
    pub fn kicked(&self) -> bool {
        let immediate_exit = self.immediate_exit.load(Ordering::Relaxed);
        // SAFETY: as in `kick`.
        unsafe { AtomicU8::from_ptr(immediate_exit) }.store(0, Ordering::SeqCst);
        self.interrupt.load(Ordering::SeqCst)
    }

    /// The interrupt has been injected, or the guest looks up anyway.
    pub fn interrupt_done(&self) {
        self.interrupt.store(false, Ordering::SeqCst);
    }

    /// Handles what the reactor found.
    pub fn dispatch(&self, io: &mut Io, events: &Events) {
        let saving = self.phase() == Phase::Saving;
        for event in events.iter() {
            let Io { vsock, sessions, control, next_token, .. } = io;
            let mut token = || {
                *next_token += 1;
                *next_token
            };
            match event.token {
                TOKEN_WAKER => self.waker.clear(),
                TOKEN_TERMINATE if self.terminate.take() => io.terminate(self),
                TOKEN_TERMINATE => {}
                TOKEN_SESSIONS => {
                    sessions.accept(&self.reactor, &mut token, vsock);
                    io.call_off(saving);
                }
                TOKEN_CONTROL => {
                    let new = control.accept(&self.reactor, &mut token);
                    if io.ready {
                        let event = io.life.ready_event();
                        for client in new {
                            io.control.tell(client, &event);
                        }
                    }
                }
                other => {
                    if let Some(requests) = control.event(event) {
                        for request in requests {
                            io.request(self, Client(other), request);
                        }
                    } else if sessions.event(event, vsock) {
                        io.call_off(saving);
                    } else {
                        vsock.event(event);
                        if event.ready & libc::EPOLLIN as u32 != 0 {
                            io.call_off(saving);
                        }
                    }
                }
            }
        }
    }

    /// Moves bytes, and tells the guest and the control clients what they should know.
    pub fn turn(&self, io: &mut Io) {
        let moved = io.vsock.pump();
        let Io { sessions, vsock, .. } = io;
        if moved || sessions.waiting() {
            sessions.outcomes(vsock);
            // A session that has just been joined may have bytes already.
            if vsock.pump() || moved {
                self.shared.set_event(1);
            }
        }
        if !io.ready && self.shared.get_ready() != 0 {
            io.ready = true;
            io.life.step("ready");
            let event = io.life.ready_event();
            io.control.tell_all(&event);
        }
        io.unattended_since = match io.control.clients() {
            0 => io.unattended_since.or_else(|| Some(Instant::now())),
            _ => None,
        };
    }

    /// How long the guest has been idle; `None` while it is at work.
    pub fn idle(&self, io: &Io) -> Option<Duration> {
        if self.phase() == Phase::Running || self.shared.get_busy() != 0 || !io.ready {
            return None;
        }
        let guest = self.clock().now().saturating_sub(self.shared.get_last_active());
        Some(Duration::from_nanos(guest).min(io.vsock.last_byte().elapsed()))
    }

    /// Tells of idleness once it has lasted, suspends an unattended guest; returns when to look again.
    pub fn idleness(&self, io: &mut Io) -> Option<Duration> {
        let Some(idle) = self.idle(io) else {
            io.idle_told = false;
            return None;
        };
        if io.terminating && io.suspend.is_none() {
            io.suspend_unasked();
        }
        let mut again = None;
        if idle < io.cool_down {
            io.idle_told = false;
            again = Some(io.cool_down - idle);
        } else if !io.idle_told {
            io.idle_told = true;
            io.control.tell_all(&json!({"event": "idle", "for_ms": idle.as_millis() as u64}));
        }
        if let (Some(limit), Some(since)) = (self.pace.unattended, io.unattended_since)
            && io.suspend.is_none()
            && !io.vsock.attended()
        {
            let alone = since.elapsed().min(idle);
            if alone >= limit {
                tracing::info!("nobody is connected: the database suspends itself");
                io.unattended_since = Some(Instant::now());
                io.suspend_unasked();
            } else {
                again = Some(again.map_or(limit - alone, |again| again.min(limit - alone)));
            }
        }
        again
    }

    /// The I/O thread: everything that has to go on while the vCPU thread is in the guest or saves it.
    fn io_loop(&self) {
        let mut events = Events::default();
        let mut last_tick = Instant::now();
        let (mut last_runs, mut idle_ticks) = (0, 0);
        loop {
            match self.phase() {
                Phase::Ended => return,
                Phase::Halted => {
                    let runs = self.runs.load(Ordering::Relaxed);
                    idle_ticks = if runs == last_runs { idle_ticks + 1 } else { 0 };
                    last_runs = runs;
                    if idle_ticks <= IDLE_TICKS {
                        std::thread::park_timeout(self.pace.tick);
                        continue;
                    }
                    self.parked.store(true, Ordering::SeqCst);
                    while self.phase() == Phase::Halted {
                        std::thread::park();
                    }
                    self.parked.store(false, Ordering::SeqCst);
                    idle_ticks = 0;
                    last_tick = Instant::now();
                    continue;
                }
                Phase::Running | Phase::Saving => {}
            }
            let until_tick = self.pace.tick.saturating_sub(last_tick.elapsed());
            if let Err(error) = self.reactor.wait(&mut events, Some(until_tick)) {
                tracing::error!(%error, "cannot wait for sockets");
                return;
            }
            let mut io = self.io();
            self.dispatch(&mut io, &events);
            if self.phase() != Phase::Saving {
                self.turn(&mut io);
            }
            if let Some(suspend) = &io.suspend
                && self.phase() == Phase::Running
                && suspend.asked.elapsed() > HALT_WITHIN
            {
                io.suspended("busy");
            }
            drop(io);
            if self.phase() == Phase::Halted && (events.iter().next().is_some() || self.shared.get_event() != 0) {
                // The vCPU thread halted while this one had the event: it must not sleep on.
                self.waker.wake();
            }
            if last_tick.elapsed() < self.pace.tick {
                continue;
            }
            last_tick = Instant::now();
            self.refresh_clock();
            if self.phase() == Phase::Running && self.due() {
                self.kick();
            }
        }
    }

    /// The running guest should look up.
    fn due(&self) -> bool {
        self.shared.get_event() != 0
            || self.shared.get_want_tick() != 0
            || self.shared.get_next_deadline() <= self.clock().now()
    }

    /// Starts the I/O thread.
    pub fn start(self: &Arc<Self>) -> std::io::Result<IoThread> {
        install_kick_handler()?;
        let monitor = Arc::clone(self);
        let handle = std::thread::Builder::new().name("io".to_owned()).spawn(move || monitor.io_loop())?;
        *self.io_thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(handle.thread().clone());
        Ok(IoThread { monitor: Arc::clone(self), handle: Some(handle) })
    }
}

/// Ends the I/O thread when dropped, before the vCPU can go.
pub struct IoThread {
    monitor: Arc<Monitor>,
    handle: Option<std::thread::JoinHandle<()>>,
}

impl Drop for IoThread {
    fn drop(&mut self) {
        self.monitor.enter(Phase::Ended);
        if let Some(handle) = self.handle.take() {
            handle.thread().unpark();
            self.monitor.waker.wake();
            let _ = handle.join();
        }
    }
}

impl Io {
    /// Somebody wants the database while it is being saved.
    fn call_off(&mut self, saving: bool) {
        if saving && let Some(suspend) = &self.suspend {
            suspend.commit.cancel();
        }
    }

    fn request(&mut self, monitor: &Monitor, client: Client, request: Request) {
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
            Request::Stop => {
                self.stopping.push(client);
                monitor.shared.set_shutdown(1);
                monitor.shared.set_event(1);
            }
        }
    }

    /// SIGTERM: the first asks for a suspend as soon as the guest is idle, the second for a clean stop.
    fn terminate(&mut self, monitor: &Monitor) {
        if self.terminating || !self.ready {
            tracing::info!("terminated: Postgres is asked to shut down");
            monitor.shared.set_shutdown(1);
            monitor.shared.set_event(1);
        } else {
            tracing::info!("terminated: the database suspends itself");
        }
        self.terminating = true;
    }

    /// Begins a suspend that nobody asked for.
    pub fn suspend_unasked(&mut self) {
        self.suspend = Some(Suspend { client: None, sessions: None, asked: Instant::now(), commit: Arc::default() });
    }

    /// Answers the suspend that is under way with an error, and forgets it.
    pub fn suspended(&mut self, error: &str) {
        let Some(suspend) = self.suspend.take() else { return };
        tracing::info!(error, "suspend called off");
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
            "memory_bytes": monitor.shared.get_pages_used().saturating_mul(dormouse_abi::PAGE),
        })
    }

    /// Postgres accepts connections.
    pub fn is_ready(&self) -> bool {
        self.ready
    }
}

/// The signal that takes the vCPU thread out of the guest.
fn kick_signal() -> libc::c_int {
    libc::SIGRTMIN()
}

extern "C" fn kicked_handler(_: libc::c_int) {}

fn install_kick_handler() -> std::io::Result<()> {
    // SAFETY: an all-zero sigaction is a valid one.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = kicked_handler as extern "C" fn(libc::c_int) as usize;
    // Calls of the file server go on by themselves; KVM_RUN comes back either way.
    action.sa_flags = libc::SA_RESTART;
    // SAFETY: the handler does nothing, so it is safe at any point.
    let done = unsafe { libc::sigaction(kick_signal(), &action, std::ptr::null_mut()) };
    if done < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
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
    }
}
