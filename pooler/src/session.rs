//! What others may know of a session and ask of it. Its task (`forward`) does the rest.
//!
//! | phase | connection to the guest | what the client's bytes do |
//! |---|---|---|
//! | Open | yes | are forwarded |
//! | Quiesced | yes, not used | wait; the host is told that the client spoke |
//! | Held | none | wake the database |
//! | Binding | being made | wait |

use std::borrow::Cow;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Waker};

use crate::host::{Awake, DatabaseId};
use crate::registry::SessionCounts;
use crate::track::Track;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Open,
    Quiesced,
    Held,
    Binding,
}

/// Why a session ends, for its client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct End {
    pub sqlstate: Cow<'static, str>,
    pub message: Cow<'static, str>,
}

impl End {
    pub fn new(sqlstate: impl Into<Cow<'static, str>>, message: impl Into<Cow<'static, str>>) -> End {
        End { sqlstate: sqlstate.into(), message: message.into() }
    }

    pub fn shutdown() -> End {
        End::new("57P01", "terminating connection because the server shuts down; reconnect later")
    }

    pub fn restarted() -> End {
        End::new("57P01", "terminating connection because the database was started anew and this session is gone; reconnect")
    }

    pub fn vanished() -> End {
        End::new("57P01", "terminating connection because the database stopped unexpectedly; reconnect")
    }
}

/// A word from outside to the session's task.
#[derive(Debug)]
pub(crate) enum Order {
    End(End),
    /// End, but let the client have its answer first.
    EndWhenIdle(End),
    Bind(Arc<Awake>),
}

/// What the task changes with each byte and others look at: always under the lock, so that what they see is so.
#[derive(Debug)]
pub(crate) struct State {
    pub phase: Phase,
    pub track: Track,
    /// Bytes to and from the guest since the session began.
    pub sent: u64,
    pub received: u64,
    /// Bytes lie in the pooler, in either direction.
    pub buffered: bool,
    /// The client has ended its stream.
    pub client_gone: bool,
    /// The host has been told that the client spoke, in this suspend.
    pub spoke: bool,
    pub order: Option<Box<Order>>,
    waker: Option<Waker>,
}

impl State {
    fn is_idle(&self) -> bool {
        !self.buffered && !self.client_gone && self.order.is_none() && self.track.is_idle()
    }

    fn wake_task(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// The task goes to sleep; what wakes it is kept.
    pub fn register(&mut self, cx: &Context<'_>) {
        match &mut self.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            None => self.waker = Some(cx.waker().clone()),
        }
    }
}

/// A cancel key: with the pooler's own secret, given to the client, and with the guest's, kept here.
#[derive(Debug)]
pub(crate) struct Key {
    /// The guest's backend.
    pub process: i32,
    /// 4 bytes, or 32 for a client of protocol 3.2.
    pub secret: Box<[u8]>,
    pub guest_secret: Box<[u8]>,
}

#[derive(Debug)]
pub(crate) struct Session {
    pub database: DatabaseId,
    /// The life of the guest's memory in which it began.
    pub epoch: Arc<str>,
    /// Its number at the VMM.
    number: u64,
    pub key: Key,
    state: Mutex<State>,
}

impl Session {
    pub fn new(database: DatabaseId, epoch: Arc<str>, counts: SessionCounts, key: Key) -> Arc<Session> {
        Arc::new(Session {
            database,
            epoch,
            number: counts.session,
            key,
            state: Mutex::new(State {
                phase: Phase::Open,
                track: Track::default(),
                sent: counts.sent,
                received: counts.received,
                buffered: false,
                client_gone: false,
                spoke: false,
                order: None,
                waker: None,
            }),
        })
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn number(&self) -> u64 {
        self.number
    }

    /// Whether it has a connection to the guest, and bytes go both ways.
    pub fn is_open(&self) -> bool {
        self.state().phase == Phase::Open
    }

    pub fn counts(&self) -> SessionCounts {
        let state = self.state();
        SessionCounts { session: self.number, sent: state.sent, received: state.received }
    }

    /// Stops forwarding, if nothing is under way. A session that is held already stays so.
    pub fn quiesce(&self) -> Option<SessionCounts> {
        let mut state = self.state();
        if !state.is_idle() {
            return None;
        }
        match state.phase {
            Phase::Open => state.phase = Phase::Quiesced,
            Phase::Held => {}
            Phase::Quiesced | Phase::Binding => return None,
        }
        state.spoke = false;
        Some(SessionCounts { session: self.number, sent: state.sent, received: state.received })
    }

    /// The suspend was called off.
    pub fn release(&self) {
        let mut state = self.state();
        if state.phase == Phase::Quiesced {
            state.phase = Phase::Open;
            state.wake_task();
        }
    }

    /// The suspend is done: the connection to the guest is of no more use.
    pub fn hold(&self) {
        let mut state = self.state();
        match state.phase {
            Phase::Quiesced => {
                state.phase = Phase::Held;
                state.track.shrink();
            }
            // One that was held before may be waiting for this to end before it is bound again.
            Phase::Held | Phase::Binding => {}
            // It was not asked, so bytes may be lost with the memory that was kept: better no session than a wrong one.
            Phase::Open => state.order = Some(Box::new(Order::End(End::vanished()))),
        }
        state.wake_task();
    }

    pub fn bind_again(&self, awake: &Arc<Awake>) {
        let mut state = self.state();
        if state.phase == Phase::Held && state.order.is_none() {
            state.order = Some(Box::new(Order::Bind(awake.clone())));
            state.wake_task();
        }
    }

    pub fn end(&self, end: End, when_idle: bool) {
        let mut state = self.state();
        let order = if when_idle { Order::EndWhenIdle(end) } else { Order::End(end) };
        state.order = Some(Box::new(order));
        state.wake_task();
    }

    /// Whether its client waits for something, and whether it is held.
    pub fn standing(&self) -> (bool, bool) {
        let state = self.state();
        (!state.is_idle(), state.phase == Phase::Held)
    }
}
