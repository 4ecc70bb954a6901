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

mod io;

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::Thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::clock::{self, Clock};
use crate::control::{Client, Control};
use crate::jail::{ThreadKind, threads};
use crate::machine::Ram;
use crate::profile::Profile;
use crate::reactor::{Events, READ, Reactor, Terminate, Waker};
use crate::sessions::Sessions;
use crate::shared::SharedPage;
use crate::sockets::Listeners;
use crate::virtio::vsock::Vsock;
use crate::watchdog::{Look, ThreadClock, Watchdog};
pub use io::{Commit, Io, Life, Suspend};

const TOKEN_WAKER: u64 = 0;
const TOKEN_SESSIONS: u64 = 1;
const TOKEN_CONTROL: u64 = 2;
const TOKEN_TERMINATE: u64 = 3;
const TOKEN_SEND: u64 = 4;
const FIRST_TOKEN: u64 = 5;

/// How long a suspend waits for the guest to halt before it is answered "busy".
const HALT_WITHIN: Duration = Duration::from_millis(100);
/// How often the running guest's progress is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// vCPU time after which a guest has large pages for what it takes: by then it does more than answer a first query.
const WARM: Duration = Duration::from_millis(100);
/// Ticks without the guest having run, after which the I/O thread stops ticking.
const IDLE_TICKS: u32 = 25;

/// Settings of one VMM that hold for its life.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// How often the guest's timers are looked at while it runs.
    pub tick: Duration,
    /// The guest suspends itself when idle this long with no client at all; `None` for never.
    pub unattended: Option<Duration>,
    /// vCPU time without progress after which the guest is ended; `None` for never.
    pub watchdog: Option<Duration>,
}

/// What the vCPU thread is to do when it is next out of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Order {
    /// Tell what the guest's processes are doing.
    Tasks = 1,
    /// The guest hangs: tell, and end it.
    Hung = 2,
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

/// Shared by the threads.
pub struct Monitor {
    pub reactor: Reactor,
    pub shared: SharedPage,
    ram: Ram,
    pub pace: Pace,
    pub profile: Profile,
    clock: Mutex<Clock>,
    io: Mutex<Io>,
    waker: Waker,
    /// Rung by the running guest: it has packets out.
    send: Waker,
    terminate: Terminate,
    phase: AtomicU8,
    /// Times the guest was entered after a halt.
    runs: AtomicU64,
    /// The I/O thread sleeps until it is unparked.
    parked: AtomicBool,
    io_thread: Mutex<Option<Thread>>,
    interrupt: AtomicBool,
    /// Bits of [`Order`].
    orders: AtomicU8,
    immediate_exit: AtomicPtr<u8>,
    vcpu_thread: libc::pthread_t,
    vcpu_id: libc::pid_t,
}

impl Monitor {
    /// Made by the vCPU thread. `immediate_exit` is the field of that name of its `kvm_run`, which outlives the
    /// I/O thread.
    #[allow(clippy::too_many_arguments)]
    pub fn new(
        ram: Ram,
        clock: Clock,
        pace: Pace,
        vsock: Vsock,
        Listeners { sessions, control }: Listeners,
        life: Life,
        terminate: Terminate,
        immediate_exit: *mut u8,
    ) -> std::io::Result<Arc<Self>> {
        // A profile may be asked for before there is an I/O thread.
        install_kick_handler()?;
        let reactor = Reactor::new()?;
        let (waker, send) = (Waker::new()?, Waker::new()?);
        reactor.add(&terminate, TOKEN_TERMINATE, READ)?;
        reactor.add(&waker, TOKEN_WAKER, READ)?;
        reactor.add(&send, TOKEN_SEND, READ)?;
        reactor.add(&sessions, TOKEN_SESSIONS, READ)?;
        reactor.add(&control, TOKEN_CONTROL, READ)?;
        let io = Io::new(vsock, Sessions::new(sessions, &life.epoch), Control::new(control), life);
        Ok(Arc::new(Self {
            reactor,
            shared: SharedPage::new(&ram),
            ram,
            pace,
            profile: Profile::default(),
            clock: Mutex::new(clock),
            io: Mutex::new(io),
            waker,
            send,
            terminate,
            phase: AtomicU8::new(Phase::Running as u8),
            runs: AtomicU64::new(1),
            parked: AtomicBool::new(false),
            io_thread: Mutex::new(None),
            interrupt: AtomicBool::new(false),
            orders: AtomicU8::new(0),
            immediate_exit: AtomicPtr::new(immediate_exit),
            // SAFETY: always sound.
            vcpu_thread: unsafe { libc::pthread_self() },
            // SAFETY: always sound.
            vcpu_id: unsafe { libc::gettid() },
        }))
    }

    /// Takes a connection for a client's of `VMM.ctl`, before the guest is ready.
    pub fn control_by(&self, stream: UnixStream) {
        let mut io = self.io();
        io.next_token += 1;
        let token = io.next_token;
        io.control.add(&self.reactor, token, stream);
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

    /// The guest has buffers to look at. If it computes, it is interrupted for them at the next tick.
    pub fn announce(&self) {
        self.shared.set_event(1);
        // Whoever halts says so before the last look at the event.
        fence(Ordering::SeqCst);
        if self.phase() == Phase::Halted {
            self.waker.wake();
        }
    }

    /// What the SEND doorbell adds to.
    pub fn send(&self) -> impl AsFd {
        &self.send
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

    /// Begins to sample the guest.
    fn start_profile(&self, hz: u32) -> std::io::Result<()> {
        self.profile.start((self.vcpu_thread, self.vcpu_id), kick_signal(), hz)
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

    /// Gives the vCPU thread an order.
    pub fn order(&self, order: Order) {
        self.orders.fetch_or(order as u8, Ordering::SeqCst);
    }

    /// Whether there are orders, and which; for the vCPU thread, which carries them out.
    pub fn take_orders(&self) -> Option<impl Fn(Order) -> bool + use<>> {
        if self.orders.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let orders = self.orders.swap(0, Ordering::SeqCst);
        Some(move |order| orders & order as u8 != 0)
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
                TOKEN_SEND => self.send.clear(),
                TOKEN_TERMINATE if self.terminate.take() => io.terminate(self),
                TOKEN_TERMINATE => {}
                // Whoever comes while the guest is saved waits: what is agreed now would be in no snapshot. Either the
                // suspend is called off for it, or it meets the end of this process.
                TOKEN_SESSIONS if saving => io.call_off(saving),
                other if saving && sessions.greets(other) => io.call_off(saving),
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
        let waited = sessions.waiting();
        sessions.outcomes(vsock);
        if moved || waited {
            // A session that has just been joined may have bytes already.
            if vsock.pump() || moved {
                self.shared.set_event(1);
            }
        }
        if !io.ready && self.shared.get_ready() != 0 {
            io.ready = true;
            io.life.step("ready");
            // In a snapshot's memory it is of an earlier boot.
            io.life.settings_undone = io.life.cold && self.shared.get_settings_undone() != 0;
            if io.life.settings_undone {
                tracing::warn!("Postgres did not start with the settings of ALTER SYSTEM: they are undone, console.log lists them");
            }
            let event = io.life.ready_event();
            io.control.tell_all(&event);
        }
        io.vsock.watch(&self.reactor);
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
        let mut again = None;
        if io.terminating && io.suspend.is_none() {
            again = io.pause();
            if again.is_none() {
                io.suspend_unasked();
            }
        }
        if idle < io.cool_down {
            io.idle_told = false;
            again = sooner(again, io.cool_down - idle);
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
                again = sooner(again, limit - alone);
            }
        }
        again
    }

    /// Does once what the I/O thread will do, before there is one: who came while memory was filled is answered, and what is
    /// said meanwhile lies before the guest when it runs.
    pub fn attend(&self) -> std::io::Result<()> {
        let mut events = Events::default();
        self.reactor.wait(&mut events, Some(Duration::ZERO))?;
        self.dispatch(&mut self.io(), &events);
        Ok(())
    }

    /// The I/O thread: everything that has to go on while the vCPU thread is in the guest or saves it.
    fn io_loop(&self) {
        let mut events = Events::default();
        let mut last_tick = Instant::now();
        let (mut last_runs, mut idle_ticks) = (0, 0);
        let used = ThreadClock::of(self.vcpu_thread);
        let mut watchdog = self.pace.watchdog.map(Watchdog::new).zip(used);
        let mut warm_at = used.map(|used| used.now() + WARM);
        let mut last_look = Instant::now();
        let mut traced = false;
        loop {
            match self.phase() {
                Phase::Ended => return,
                Phase::Halted => {
                    traced = traced || self.io().tell_trace();
                    let runs = self.runs.load(Ordering::Relaxed);
                    idle_ticks = if runs == last_runs { idle_ticks + 1 } else { 0 };
                    last_runs = runs;
                    if idle_ticks <= IDLE_TICKS {
                        // The guest may run again and ring before this thread has noticed.
                        if self.send.wait(self.pace.tick) {
                            self.send.clear();
                            // Looked at with the lock held: nothing may move while a snapshot is written.
                            let mut io = self.io();
                            if self.phase() == Phase::Running {
                                self.turn(&mut io);
                            }
                        }
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
            traced = traced || self.io().tell_trace();
            if self.phase() != Phase::Saving {
                self.refresh_clock();
            }
            if self.phase() == Phase::Running {
                if last_look.elapsed() >= LOOK {
                    last_look = Instant::now();
                    if let Some((watchdog, clock)) = &mut watchdog {
                        self.watch(watchdog, *clock);
                    }
                    if used.zip(warm_at).is_some_and(|(used, at)| used.now() >= at) {
                        self.ram.prefer_large(true);
                        warm_at = None;
                    }
                }
                if self.due() {
                    self.kick();
                }
            }
        }
    }

    /// Looks whether the guest goes on. A kernel that lists no tasks, of an older image, does not count either.
    fn watch(&self, watchdog: &mut Watchdog, clock: ThreadClock) {
        if self.shared.get_tasks() == 0 {
            return;
        }
        match watchdog.look(self.shared.get_attended(), clock.now()) {
            Look::Fine => {}
            Look::Ask => self.shared.set_event(1),
            Look::Hung => self.order(Order::Hung),
        }
    }

    /// The running guest should look up, or its thread come out.
    fn due(&self) -> bool {
        self.shared.get_event() != 0
            || self.orders.load(Ordering::Relaxed) != 0
            || self.shared.get_want_tick() != 0
            || self.shared.get_next_deadline() <= self.clock().now()
    }

    /// Starts the I/O thread, with this as the first that it does.
    pub fn start(self: &Arc<Self>, first: impl FnOnce() + Send + 'static) -> std::io::Result<IoThread> {
        let monitor = Arc::clone(self);
        let handle = threads::spawn(ThreadKind::Io, move || {
            first();
            monitor.io_loop();
        })?;
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
            self.monitor.send.wake();
            let _ = handle.join();
        }
    }
}

fn sooner(one: Option<Duration>, other: Duration) -> Option<Duration> {
    Some(one.map_or(other, |one| one.min(other)))
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
