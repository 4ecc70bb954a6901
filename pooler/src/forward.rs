//! A session's task: bytes both ways while the database is awake, a client held while it sleeps.
//!
//! One future per client, written by hand and kept small, because it is what a held client costs. All that takes more
//! room (binding again, the goodbye) is boxed while it lasts.
//!
//! Neither direction waits for the other: each has one buffer, and reads again when it is written out. A client that
//! does not read stops its guest, and a guest that does not read its client, but neither stops the other way.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::AsyncWrite;
use tokio::net::UnixStream;

use crate::bind;
use crate::buffer::Buffer;
use crate::client::Client;
use crate::farewell;
use crate::guest_end::GuestEnd;
use crate::host::{Awake, BoxFuture, HostError, PasswordsSet};
use crate::metrics::Metrics;
use crate::pooler::{Shared, Slot};
use crate::registry::Place;
use crate::session::{End, Order, Phase, Session, State};
use crate::steps::Steps;
use crate::track::TrackError;
use crate::wire::answer;

/// A Terminate message: it is no reason to wake a database.
const TERMINATE: &[u8] = b"X\0\0\0\x04";

/// The step at which the guest's answer has come.
const ANSWER_READ: &str = "answer_read";

/// Why a session's task stops forwarding.
enum Stop {
    /// Say this to the client, if a message can be put in.
    Say(End),
    /// There is nobody to tell, or the guest has told them.
    Silently,
    /// Asleep, and the client went away.
    Bury,
    /// Asleep, and the client is not to be listened to.
    BuryAndSay(End),
}

enum Step {
    Wait,
    Bind(Option<Arc<Awake>>),
    Note(PasswordsSet),
    Stop(Stop),
}

enum Stage {
    Forward,
    Bind(BoxFuture<'static, Result<bind::Bound, bind::Failure>>),
    /// The host notes that a password was set in SQL, before the client learns that it was.
    Note(BoxFuture<'static, Result<(), HostError>>),
    Farewell(BoxFuture<'static, ()>),
    Over,
}

pub(crate) struct Forward {
    shared: Arc<Shared>,
    session: Arc<Session>,
    /// `None` once it has been handed to the farewell.
    client: Option<Client>,
    guest: Option<GuestEnd>,
    to_guest: Buffer,
    to_client: Buffer,
    stage: Stage,
    /// The guest has ended its stream.
    guest_gone: bool,
    /// The guest takes no more bytes, or has been told that there are none.
    guest_deaf: bool,
    /// The TLS layer may hold bytes for the client.
    unflushed: bool,
    counted_as_held: bool,
    /// Of the wake that this client asked for, until it is answered.
    steps: Steps,
    place: Option<Place>,
    _slot: Slot,
}

impl Forward {
    /// `to_guest` is what the client said before it was let in.
    pub fn new(
        shared: Arc<Shared>,
        session: Arc<Session>,
        client: Client,
        guest: UnixStream,
        to_guest: Buffer,
        (place, slot): (Place, Slot),
    ) -> Forward {
        session.state().buffered = !to_guest.is_empty();
        shared.metrics.sessions.add(1);
        shared.registry.join(&session);
        Forward {
            shared,
            session,
            client: Some(client),
            guest: guest_end(guest),
            to_guest,
            to_client: Buffer::default(),
            stage: Stage::Forward,
            guest_gone: false,
            guest_deaf: false,
            unflushed: false,
            counted_as_held: false,
            steps: Steps::default(),
            place: Some(place),
            _slot: slot,
        }
    }

    /// Does what can be done now; what may come later has been asked to wake this task.
    fn step(&mut self, cx: &mut Context<'_>) -> Step {
        let session = self.session.clone();
        let mut state = session.state();
        state.register(cx);
        if let Some(Order::End(end)) = state.order.as_deref() {
            return Step::Stop(Stop::Say(end.clone()));
        }
        match state.phase {
            Phase::Open => self.open(cx, &mut state),
            Phase::Quiesced => {
                let heard = self.listen(cx, &mut state);
                let tell = state.buffered && !self.is_goodbye() && !state.spoke;
                state.spoke |= tell;
                drop(state);
                if tell {
                    self.shared.host.client_spoke(session.database);
                }
                heard
            }
            Phase::Held => self.held(cx, &mut state),
            // Only between two polls of this task.
            Phase::Binding => Step::Wait,
        }
    }

    fn open(&mut self, cx: &mut Context<'_>, state: &mut State) -> Step {
        if let Err(stop) = self.pump(cx, state) {
            return Step::Stop(stop);
        }
        self.to_guest.release();
        self.to_client.release();
        state.buffered = !self.to_guest.is_empty() || !self.to_client.is_empty() || self.unflushed;
        let set = state.track.passwords_set();
        if set.any() {
            state.track.forget_passwords_set();
            return Step::Note(set);
        }
        if self.guest_gone && self.to_client.is_empty() && !self.unflushed {
            let expected = state.client_gone || state.track.terminated() || state.track.guest_said_why();
            return Step::Stop(if expected { Stop::Silently } else { Stop::Say(End::vanished()) });
        }
        match state.order.as_deref() {
            Some(Order::EndWhenIdle(end)) if !state.buffered && state.track.is_idle() => {
                Step::Stop(Stop::Say(end.clone()))
            }
            // The session is bound already.
            Some(Order::Bind(_)) => {
                state.order = None;
                Step::Wait
            }
            _ => Step::Wait,
        }
    }

    /// Moves bytes both ways until neither can go on.
    fn pump(&mut self, cx: &mut Context<'_>, state: &mut State) -> Result<(), Stop> {
        let (Some(client), Some(guest)) = (&mut self.client, &mut self.guest) else { return Err(Stop::Silently) };
        let metrics = &self.shared.metrics;
        loop {
            let mut moved = false;

            if self.to_guest.is_empty() && !state.client_gone && !self.guest_deaf {
                match client.poll_fill(cx, self.to_guest.room()) {
                    Poll::Ready(Ok(0)) => (state.client_gone, moved) = (true, true),
                    Poll::Ready(Ok(n)) => {
                        self.to_guest.fill(n);
                        moved = true;
                    }
                    Poll::Ready(Err(_)) => return Err(Stop::Silently),
                    Poll::Pending => {}
                }
            }
            if !self.to_guest.is_empty() {
                show(&mut self.to_guest, state, metrics).map_err(Stop::Say)?;
                match guest.poll_write(cx, self.to_guest.filled()) {
                    Poll::Ready(Ok(n)) => {
                        self.to_guest.consume(n);
                        state.sent += n as u64;
                        metrics.bytes_to_guest.add(n as u64);
                        self.steps.note("query_passed_on");
                        moved = true;
                    }
                    // It may have said why: that is still to be read.
                    Poll::Ready(Err(_)) => {
                        self.guest_deaf = true;
                        self.to_guest.consume(usize::MAX);
                    }
                    Poll::Pending => {}
                }
            } else if state.client_gone && !self.guest_deaf {
                guest.end_writing();
                self.guest_deaf = true;
            }

            if self.to_client.is_empty() && !self.guest_gone {
                match guest.poll_read(cx, self.to_client.room()) {
                    Poll::Ready(Ok(n)) => {
                        self.to_client.fill(n);
                        self.guest_gone = n == 0;
                        state.received += n as u64;
                        metrics.bytes_to_client.add(n as u64);
                        self.steps.note(ANSWER_READ);
                        moved = true;
                    }
                    Poll::Ready(Err(_)) => (self.guest_gone, moved) = (true, true),
                    Poll::Pending => {}
                }
                if let Err(bad) = state.track.guest_bytes(self.to_client.unseen()) {
                    tracing::warn!(database = %self.session.database, %bad, "the guest broke the protocol");
                    metrics.protocol_errors.add(1);
                    return Err(Stop::Silently);
                }
                if state.track.passwords_set().any() {
                    return Ok(());
                }
            }
            if !self.to_client.is_empty() {
                match Pin::new(&mut *client).poll_write(cx, self.to_client.filled()) {
                    Poll::Ready(Ok(n)) => {
                        self.to_client.consume(n);
                        (self.unflushed, moved) = (true, true);
                    }
                    Poll::Ready(Err(_)) => return Err(Stop::Silently),
                    Poll::Pending => {}
                }
            }
            if self.unflushed && self.to_client.is_empty() {
                match Pin::new(&mut *client).poll_flush(cx) {
                    Poll::Ready(Ok(())) => {
                        self.unflushed = false;
                        if self.steps.has(ANSWER_READ) {
                            self.steps.note("first_byte_back");
                            let steps = self.steps.take().unwrap_or_default();
                            self.shared.host.answered(self.session.database, steps);
                        }
                    }
                    Poll::Ready(Err(_)) => return Err(Stop::Silently),
                    Poll::Pending => {}
                }
            }
            if !moved {
                return Ok(());
            }
        }
    }

    /// Only hears whether the client speaks or goes; what it says is kept.
    fn listen(&mut self, cx: &mut Context<'_>, state: &mut State) -> Step {
        let Some(client) = &mut self.client else { return Step::Stop(Stop::Silently) };
        if self.to_guest.is_empty() && !state.client_gone {
            match client.poll_fill(cx, self.to_guest.room()) {
                Poll::Ready(Ok(n)) if n > 0 => {
                    self.to_guest.fill(n);
                    state.buffered = true;
                }
                Poll::Ready(_) => state.client_gone = true,
                Poll::Pending => {}
            }
            self.to_guest.release();
        }
        Step::Wait
    }

    fn held(&mut self, cx: &mut Context<'_>, state: &mut State) -> Step {
        if !self.counted_as_held {
            self.counted_as_held = true;
            self.shared.metrics.held.add(1);
            self.guest = None;
        }
        if let Some(Order::EndWhenIdle(end)) = state.order.as_deref() {
            return Step::Stop(Stop::Say(end.clone()));
        }
        self.listen(cx, state);
        if state.client_gone || self.is_goodbye() {
            return Step::Stop(Stop::Bury);
        }
        // What is said is passed on as soon as there is a guest.
        if let Err(end) = show(&mut self.to_guest, state, &self.shared.metrics) {
            return Step::Stop(Stop::BuryAndSay(end));
        }
        let awake = match state.order.take().map(|order| *order) {
            Some(Order::Bind(awake)) => Some(awake),
            _ if self.to_guest.is_empty() => return Step::Wait,
            _ => {
                self.steps = Steps::begin("query_received");
                None
            }
        };
        state.phase = Phase::Binding;
        Step::Bind(awake)
    }

    fn is_goodbye(&self) -> bool {
        self.to_guest.filled() == TERMINATE
    }

    fn bound(&mut self, bind::Bound { guest, said, steps }: bind::Bound) {
        self.guest = guest_end(guest);
        self.steps = steps;
        self.uncount_held();
        self.to_guest.consume(said);
        self.shared.metrics.bytes_to_guest.add(said as u64);
        let mut state = self.session.state();
        state.sent += said as u64;
        state.phase = Phase::Open;
        self.stage = Stage::Forward;
    }

    fn uncount_held(&mut self) {
        if std::mem::take(&mut self.counted_as_held) {
            self.shared.metrics.held.add(-1);
        }
    }

    fn stop(&mut self, stop: Stop) {
        self.guest = None;
        self.stage = Stage::Over;
        match stop {
            Stop::Silently => {}
            Stop::Bury => self.shared.registry.bury(&self.session),
            Stop::BuryAndSay(end) => {
                self.shared.registry.bury(&self.session);
                return self.stop(Stop::Say(end));
            }
            Stop::Say(end) => {
                let Some(client) = self.client.take() else { return };
                let mut last = self.to_client.filled().to_vec();
                if self.session.state().track.client_at_boundary() {
                    last.extend_from_slice(&answer::fatal(&end.sqlstate, &end.message, None));
                }
                let within = self.shared.farewell_timeout();
                self.stage = Stage::Farewell(Box::pin(async move { farewell::say(client, &last, within).await }));
            }
        }
        // From here on it is no session any more: its key is void and a database can sleep without it.
        self.shared.keys.remove(&self.session);
        self.shared.registry.leave(&self.session);
        self.place = None;
        self.uncount_held();
    }
}

/// Shows what the client says to the tracker; why it is not to be passed on.
fn show(to_guest: &mut Buffer, state: &mut State, metrics: &Metrics) -> Result<(), End> {
    state.track.client_bytes(to_guest.unseen()).map_err(|bad| {
        metrics.protocol_errors.add(1);
        let sqlstate = match bad {
            TrackError::Length(_) => "08P01",
            TrackError::TooManyOwed => "54000",
        };
        End::new(sqlstate, format!("connection cannot go on: {bad}"))
    })
}

/// The guest's end; `None`, which ends the session, if the process has no room to watch one more.
fn guest_end(guest: UnixStream) -> Option<GuestEnd> {
    GuestEnd::new(guest).inspect_err(|error| tracing::error!(%error, "cannot watch a session's connection to its guest")).ok()
}

impl Future for Forward {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        loop {
            match &mut this.stage {
                Stage::Forward => match this.step(cx) {
                    Step::Wait => return Poll::Pending,
                    Step::Stop(stop) => this.stop(stop),
                    Step::Bind(awake) => {
                        let (words, steps) = (this.to_guest.filled().to_vec(), std::mem::take(&mut this.steps));
                        let binding = bind::again(this.shared.clone(), this.session.clone(), awake, words, steps);
                        this.stage = Stage::Bind(Box::pin(binding));
                    }
                    Step::Note(set) => {
                        let (shared, database) = (this.shared.clone(), this.session.database);
                        let noting = async move { shared.host.passwords_set(database, set).await };
                        this.stage = Stage::Note(Box::pin(noting));
                    }
                },
                Stage::Note(noting) => match ready!(noting.as_mut().poll(cx)) {
                    Ok(()) => this.stage = Stage::Forward,
                    // As after a crash: the client does not know whether its statement was carried out.
                    Err(error) => {
                        let database = this.session.database;
                        tracing::error!(%database, %error, "password set in SQL could not be noted");
                        this.stop(Stop::Silently);
                    }
                },
                Stage::Bind(binding) => match binding.as_mut().poll(cx) {
                    Poll::Ready(Ok(bound)) => this.bound(bound),
                    Poll::Ready(Err(bind::Failure { end, in_snapshot: true })) => this.stop(Stop::BuryAndSay(end)),
                    Poll::Ready(Err(bind::Failure { end, in_snapshot: false })) => this.stop(Stop::Say(end)),
                    Poll::Pending => {
                        let mut state = this.session.state();
                        state.register(cx);
                        let Some(Order::End(end)) = state.order.as_deref() else { return Poll::Pending };
                        let end = end.clone();
                        drop(state);
                        this.stop(Stop::Say(end));
                    }
                },
                Stage::Farewell(saying) => {
                    ready!(saying.as_mut().poll(cx));
                    this.stage = Stage::Over;
                }
                Stage::Over => return Poll::Ready(()),
            }
        }
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        // A task may be dropped half way, with its runtime.
        self.shared.keys.remove(&self.session);
        self.shared.registry.leave(&self.session);
        self.uncount_held();
        self.shared.metrics.sessions.add(-1);
        self.shared.registry.gone();
    }
}
