//! The life of one database as a pure state machine: what happens, and what must be done about it.
//!
//! No I/O, no clock: [`Machine::step`] takes one [`Input`] and returns [`Effect`]s, in order, for the actor
//! (`actor.rs`) to carry out. The rules it keeps:
//!
//! - One VM at a time: `Spawn` only when no process is alive.
//! - One wake, however many ask: the requests are the actor's to hold, here only *that* someone waits is known.
//! - A suspend is called off by whoever needs the database, until the VMM says that it is committed; then the
//!   process is let go and a new one woken.
//! - The pooler is told `Release` after every quiesce that led to no suspend, and `TellSuspended` before the
//!   connections of a committed one break.
//! - Sessions end only when their guest is lost: death, a delete, the server's end.
//!
//! ```text
//!            Wake              Ready             Idle / asked          Quiesced          committed
//!  at rest ───────▶ Resuming ────────▶ Running ─────────────▶ Quiescing ───────▶ Saving ──────────▶ Leaving
//!     ▲                 │ died: Error     ▲ ▲                     │ busy, wanted    │ refused, cancelled  │
//!     │                 ▼                 │ └─────────────────────┘                 │                     │
//!     │                                   └─────────────────────────────────────────┘                     │
//!     └────────────────────────────────────────────────────── process gone ───────────────────────────────┘
//! ```
//! Beside it, from rest and back: `Packing`, which whoever needs the database calls off.

use super::state::State;

/// Where the life of a database stands; finer than [`State`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// No process: `Suspended`, `Stopped` or `Error`.
    Rest(Rest),
    /// A VMM has been started (or found at the server's start) and is not ready.
    Resuming,
    Running,
    /// Asleep, and a process packs its files.
    Packing,
    /// The pooler has been asked to stop forwarding.
    Quiescing,
    /// The VMM has been told to suspend.
    Saving,
    /// Committed or stopped or killed; the process has yet to go.
    Leaving,
    /// To be removed; `Leaving` first if there is a process.
    Deleting,
    /// Removed. Nothing more happens.
    Gone,
}

/// How a database rests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    Suspended,
    Stopped,
    Error,
}

/// Who wants it asleep, besides its own idleness.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Want {
    #[default]
    Nothing,
    /// `POST …/suspend`.
    Suspend,
    /// The server is ending.
    ShutDown,
}

/// Something that happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// Someone needs the database.
    Wake,
    /// A held client spoke: whoever is about to sleep had better not. Nobody waits for an answer.
    Spoke,
    /// Its owner asks for a suspend.
    SuspendAsked,
    /// The owner's suspend has waited long enough.
    SuspendDeadline,
    /// The server is ending.
    ShutDown,
    /// The server's end has waited long enough for statements.
    ShutDownDeadline,
    /// The operator gives up waiting: kill.
    Cut,
    /// It is to be shut down and its next start to be a cold one, sessions or not.
    StopAsked,
    /// What its next start would have gone on from is gone (`done`), or could not be removed.
    Discarded { rest: Rest, done: bool },
    /// The operator, or its time asleep, has it packed.
    PackAsked,
    /// The process that packed it is gone, and this is what its files say.
    Packed(Rest),
    /// Its owner deletes it; the row says so already.
    DeleteAsked,
    /// The VM could not be started, or was not ready in time.
    WakeFailed,
    Ready,
    /// Unused for its cool-down, says the guest.
    Idle,
    /// The pooler stopped forwarding (`true`), or a client waits for an answer (`false`).
    Quiesced(bool),
    /// The snapshot is committed (`true`), or the VMM goes on (`false`).
    Saved(bool),
    /// The VMM goes on since it cannot suspend, now or soon.
    SaveFailed,
    /// The process is gone, and this is what its files say. `failed`: not by its own clean end.
    Exited { rest: Rest, failed: bool },
    /// Time to try again what was put off.
    Retry,
    /// The files and the row are gone (`true`), or could not be removed.
    Removed(bool),
}

/// Something to do, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    Spawn,
    Kill,
    /// Ask the pooler to stop forwarding; answered by [`Input::Quiesced`].
    Quiesce,
    /// The pooler goes on.
    Release,
    /// The pooler lets go of its connections to the guest and holds the clients.
    TellSuspended,
    EndSessions(End),
    /// Tell the VMM to suspend with the counts of the last quiesce; answered by [`Input::Saved`].
    Suspend,
    /// Call the suspend off.
    Cancel,
    /// Shut Postgres down cleanly.
    Stop,
    /// Remove the snapshot, so that the next start is a cold one; answered by [`Input::Discarded`].
    Discard,
    /// Pack its files; answered by [`Input::Packed`].
    Pack,
    /// Call that off; the answer is the same.
    StopPacking,
    /// The actor knows what came of it, if that is [`Answer::Done`].
    AnswerPack(Answer),
    AnswerWakers(Answer),
    AnswerSuspend(Answer),
    AnswerDelete(Answer),
    AnswerStop(Answer),
    /// Arm [`Input::Retry`].
    RetrySoon,
    /// Ask the guest to say again when it is idle.
    ListenForIdle,
    /// Remove the files, then the row; answered by [`Input::Removed`].
    Remove,
}

/// Why sessions end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Died,
    Deleted,
    ShutDown,
    Restarted,
}

/// What those who wait are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    Done,
    /// Not asleep: a statement is still running, or the actor knows what else.
    Busy,
    /// The actor knows the reason: the VMM's last words, or the time-out.
    Failed,
    ShuttingDown,
    Gone,
}

/// One database's life.
#[derive(Clone, Debug)]
pub struct Machine {
    phase: Phase,
    want: Want,
    /// The owner's deadline passed while an attempt was under way: its outcome is the last.
    late: bool,
    /// Someone waits for the database to run.
    wanted: bool,
    cancel_sent: bool,
    /// A process that ends now was told to, so its sessions were dealt with.
    expected: bool,
    delete: bool,
    /// It is to be shut down.
    stop: bool,
    /// Wakes in a row that ended without readiness and without an error.
    attempts: u32,
}

/// A VM that ends cleanly before it is ready is started again so often, then it is an error.
const ATTEMPTS: u32 = 3;

use Effect::*;

impl Machine {
    pub fn new(phase: Phase) -> Machine {
        Machine {
            phase,
            want: Want::Nothing,
            late: false,
            wanted: false,
            cancel_sent: false,
            expected: false,
            delete: false,
            stop: false,
            attempts: 0,
        }
    }

    pub fn phase(&self) -> Phase {
        self.phase
    }

    pub fn want(&self) -> Want {
        self.want
    }

    /// The state to show.
    pub fn state(&self) -> State {
        if self.delete {
            return State::Deleting;
        }
        match self.phase {
            Phase::Rest(Rest::Suspended) | Phase::Packing => State::Suspended,
            Phase::Rest(Rest::Stopped) => State::Stopped,
            Phase::Rest(Rest::Error) => State::Error,
            Phase::Resuming => State::Resuming,
            // The pooler answers in microseconds; until then nothing has changed for anyone.
            Phase::Running | Phase::Quiescing => State::Running,
            Phase::Saving | Phase::Leaving => State::Suspending,
            Phase::Deleting | Phase::Gone => State::Deleting,
        }
    }

    /// Whether nothing is under way, so that the actor may be let go.
    pub fn at_rest(&self) -> bool {
        matches!(self.phase, Phase::Rest(_) | Phase::Gone)
    }

    /// Whether the process that is there was told to end.
    pub fn expects_end(&self) -> bool {
        self.expected || self.delete
    }

    fn alive(&self) -> bool {
        !matches!(self.phase, Phase::Rest(_) | Phase::Packing | Phase::Deleting | Phase::Gone)
    }

    /// Takes one input; the effects are to be carried out in order.
    pub fn step(&mut self, input: Input) -> Vec<Effect> {
        match input {
            Input::Wake => self.wake(),
            Input::Spoke => self.spoke(),
            Input::SuspendAsked => self.suspend_asked(),
            Input::SuspendDeadline => self.suspend_deadline(),
            Input::ShutDown => self.shut_down(),
            Input::ShutDownDeadline => self.shut_down_deadline(),
            Input::Cut => self.cut(),
            Input::StopAsked => self.stop_asked(),
            Input::Discarded { rest, done } => self.discarded(rest, done),
            Input::PackAsked => self.pack_asked(),
            Input::Packed(rest) => self.packed(rest),
            Input::DeleteAsked => self.delete_asked(),
            Input::WakeFailed => self.wake_failed(),
            Input::Ready => self.ready(),
            Input::Idle => self.attempt(),
            Input::Retry => self.retry(),
            Input::Quiesced(stopped) => self.quiesced(stopped),
            Input::Saved(committed) => self.saved(committed),
            Input::SaveFailed => self.save_failed(),
            Input::Exited { rest, failed } => self.exited(rest, failed),
            Input::Removed(done) => self.removed(done),
        }
    }

    fn wake(&mut self) -> Vec<Effect> {
        if self.delete || self.phase == Phase::Gone {
            return vec![AnswerWakers(Answer::Gone)];
        }
        if self.want == Want::ShutDown {
            return vec![AnswerWakers(Answer::ShuttingDown)];
        }
        match self.phase {
            Phase::Rest(_) => self.begin_wake(),
            Phase::Running => vec![AnswerWakers(Answer::Done)],
            Phase::Packing => {
                self.wanted = true;
                self.stop_packing()
            }
            Phase::Saving if !self.cancel_sent => {
                self.wanted = true;
                self.cancel_sent = true;
                vec![Cancel]
            }
            _ => {
                self.wanted = true;
                vec![]
            }
        }
    }

    fn begin_wake(&mut self) -> Vec<Effect> {
        self.wanted = true;
        self.attempts = 0;
        self.phase = Phase::Resuming;
        vec![Spawn]
    }

    fn spoke(&mut self) -> Vec<Effect> {
        match self.phase {
            // The server's end is not called off by a client.
            Phase::Quiescing | Phase::Saving if self.want != Want::ShutDown && !self.delete => self.wake(),
            _ => vec![],
        }
    }

    fn suspend_asked(&mut self) -> Vec<Effect> {
        match self.phase {
            Phase::Rest(_) | Phase::Packing => vec![AnswerSuspend(Answer::Done)],
            Phase::Deleting | Phase::Gone => vec![AnswerSuspend(Answer::Gone)],
            _ if self.delete => vec![AnswerSuspend(Answer::Gone)],
            Phase::Running => {
                self.ask(Want::Suspend);
                self.attempt()
            }
            Phase::Resuming | Phase::Quiescing | Phase::Saving | Phase::Leaving => {
                self.ask(Want::Suspend);
                vec![]
            }
        }
    }

    fn ask(&mut self, want: Want) {
        if self.want != Want::ShutDown {
            self.want = want;
        }
        self.late = false;
    }

    fn suspend_deadline(&mut self) -> Vec<Effect> {
        if self.want != Want::Suspend {
            return vec![];
        }
        match self.phase {
            // The attempt under way is let finish: it is a matter of milliseconds and may well succeed.
            Phase::Quiescing | Phase::Saving | Phase::Leaving => {
                self.late = true;
                vec![]
            }
            _ => {
                self.want = Want::Nothing;
                vec![AnswerSuspend(Answer::Busy)]
            }
        }
    }

    fn shut_down(&mut self) -> Vec<Effect> {
        self.want = Want::ShutDown;
        self.late = false;
        let mut effects = Vec::new();
        if self.wanted {
            self.wanted = false;
            effects.push(AnswerWakers(Answer::ShuttingDown));
        }
        match self.phase {
            Phase::Running => effects.extend(self.attempt()),
            Phase::Packing => effects.extend(self.stop_packing()),
            _ => {}
        }
        effects
    }

    fn shut_down_deadline(&mut self) -> Vec<Effect> {
        match self.phase {
            _ if self.want != Want::ShutDown => vec![],
            Phase::Running | Phase::Resuming => {
                self.expected = true;
                self.phase = Phase::Leaving;
                vec![EndSessions(End::ShutDown), Stop]
            }
            Phase::Quiescing | Phase::Saving => {
                self.late = true;
                vec![]
            }
            _ => vec![],
        }
    }

    fn cut(&mut self) -> Vec<Effect> {
        if self.phase == Phase::Packing {
            return self.stop_packing();
        }
        if !self.alive() {
            return vec![];
        }
        self.expected = true;
        self.phase = Phase::Leaving;
        vec![EndSessions(End::ShutDown), Kill]
    }

    fn stop_asked(&mut self) -> Vec<Effect> {
        if self.delete || matches!(self.phase, Phase::Deleting | Phase::Gone) {
            return vec![AnswerStop(Answer::Gone)];
        }
        // Whoever asks second is answered with the first.
        let first = !std::mem::replace(&mut self.stop, true);
        match self.phase {
            Phase::Rest(_) => self.discard(),
            Phase::Packing => self.stop_packing(),
            Phase::Running => self.begin_stop(vec![]),
            Phase::Saving if first && !self.cancel_sent => {
                self.cancel_sent = true;
                vec![Cancel]
            }
            // Ready, quiesced, saved or gone in a moment.
            _ => vec![],
        }
    }

    fn begin_stop(&mut self, mut effects: Vec<Effect>) -> Vec<Effect> {
        self.expected = true;
        self.phase = Phase::Leaving;
        effects.extend([EndSessions(End::Restarted), Stop]);
        effects
    }

    /// Without a process. Nobody is started until it is answered.
    fn discard(&mut self) -> Vec<Effect> {
        self.phase = Phase::Leaving;
        vec![EndSessions(End::Restarted), Discard]
    }

    fn discarded(&mut self, rest: Rest, done: bool) -> Vec<Effect> {
        if self.phase != Phase::Leaving || !self.stop {
            return vec![];
        }
        self.stop = false;
        self.expected = false;
        if self.delete {
            let mut effects = vec![AnswerStop(Answer::Gone)];
            effects.extend(self.remove());
            return effects;
        }
        let mut effects = vec![AnswerStop(if done { Answer::Done } else { Answer::Failed })];
        self.phase = Phase::Rest(rest);
        effects.extend(self.rested());
        if self.wanted {
            self.attempts = 0;
            self.phase = Phase::Resuming;
            effects.push(Spawn);
        }
        effects
    }

    fn pack_asked(&mut self) -> Vec<Effect> {
        match self.phase {
            _ if self.delete => vec![AnswerPack(Answer::Gone)],
            Phase::Deleting | Phase::Gone => vec![AnswerPack(Answer::Gone)],
            Phase::Rest(Rest::Suspended) if self.want != Want::ShutDown => {
                self.phase = Phase::Packing;
                self.cancel_sent = false;
                vec![Pack]
            }
            // Whoever asks second is answered with the first.
            Phase::Packing => vec![],
            _ => vec![AnswerPack(Answer::Busy)],
        }
    }

    fn stop_packing(&mut self) -> Vec<Effect> {
        if std::mem::replace(&mut self.cancel_sent, true) { vec![] } else { vec![StopPacking] }
    }

    fn packed(&mut self, rest: Rest) -> Vec<Effect> {
        if self.phase != Phase::Packing {
            return vec![];
        }
        self.cancel_sent = false;
        let mut effects = vec![AnswerPack(Answer::Done)];
        if self.delete {
            if std::mem::take(&mut self.stop) {
                effects.push(AnswerStop(Answer::Gone));
            }
            effects.extend(self.remove());
        } else if self.stop {
            effects.extend(self.discard());
        } else if self.wanted {
            effects.extend(self.begin_wake());
        } else {
            self.phase = Phase::Rest(rest);
        }
        effects
    }

    fn delete_asked(&mut self) -> Vec<Effect> {
        if self.phase == Phase::Gone {
            return vec![AnswerDelete(Answer::Done)];
        }
        if self.delete {
            // A removal that failed is tried again; one under way is waited for.
            return if self.phase == Phase::Rest(Rest::Error) { self.remove() } else { vec![] };
        }
        self.delete = true;
        let alive = self.alive();
        let mut effects = vec![EndSessions(End::Deleted), AnswerWakers(Answer::Gone), AnswerSuspend(Answer::Gone)];
        self.wanted = false;
        if self.want == Want::Suspend {
            self.want = Want::Nothing;
        }
        if alive {
            self.expected = true;
            self.phase = Phase::Leaving;
            effects.push(Kill);
        } else if self.phase == Phase::Packing {
            effects.extend(self.stop_packing());
        } else {
            effects.extend(self.remove());
        }
        effects
    }

    fn remove(&mut self) -> Vec<Effect> {
        self.phase = Phase::Deleting;
        vec![Remove]
    }

    fn removed(&mut self, done: bool) -> Vec<Effect> {
        if done {
            self.phase = Phase::Gone;
            vec![AnswerDelete(Answer::Done)]
        } else {
            self.phase = Phase::Rest(Rest::Error);
            vec![AnswerDelete(Answer::Failed)]
        }
    }

    fn wake_failed(&mut self) -> Vec<Effect> {
        if self.phase != Phase::Resuming {
            return vec![];
        }
        // Whatever of the VM there is goes; until then nothing may be started in its place.
        self.expected = true;
        self.attempts = ATTEMPTS;
        vec![Kill]
    }

    fn ready(&mut self) -> Vec<Effect> {
        if self.phase != Phase::Resuming {
            return vec![];
        }
        self.phase = Phase::Running;
        self.attempts = 0;
        self.expected = false;
        if self.stop {
            // Whoever waits, waits for the next start.
            return self.begin_stop(vec![]);
        }
        let mut effects = Vec::new();
        if self.wanted {
            self.wanted = false;
            effects.push(AnswerWakers(Answer::Done));
        }
        if self.want != Want::Nothing {
            effects.extend(self.attempt());
        }
        effects
    }

    /// Tries to suspend, if it runs.
    fn attempt(&mut self) -> Vec<Effect> {
        if self.phase != Phase::Running {
            return vec![];
        }
        self.phase = Phase::Quiescing;
        self.cancel_sent = false;
        vec![Quiesce]
    }

    /// What was asked for is tried again at once. Its own idleness is for the guest to judge anew: a client may
    /// have used it since.
    fn retry(&mut self) -> Vec<Effect> {
        match (self.phase, self.want) {
            (Phase::Running, Want::Nothing) => vec![ListenForIdle],
            _ => self.attempt(),
        }
    }

    fn quiesced(&mut self, stopped: bool) -> Vec<Effect> {
        if self.phase != Phase::Quiescing {
            // Overtaken by a death or a delete, which ended the sessions.
            return vec![];
        }
        if !stopped {
            return self.put_off(vec![]);
        }
        if self.wanted {
            return self.put_off(vec![Release]);
        }
        self.phase = Phase::Saving;
        if self.want == Want::ShutDown {
            // Their clients' connections end with this server: nobody could ever bind them again.
            return vec![EndSessions(End::ShutDown), Suspend];
        }
        vec![Suspend]
    }

    /// An attempt came to nothing: goes on running, and tries again if that is wanted.
    fn put_off(&mut self, mut effects: Vec<Effect>) -> Vec<Effect> {
        self.phase = Phase::Running;
        if self.stop {
            return self.begin_stop(effects);
        }
        if self.wanted {
            self.wanted = false;
            effects.push(AnswerWakers(Answer::Done));
        }
        match self.want {
            Want::Suspend if self.late => {
                self.want = Want::Nothing;
                self.late = false;
                effects.push(AnswerSuspend(Answer::Busy));
            }
            Want::ShutDown if self.late => {
                effects.extend(self.shut_down_deadline());
                return effects;
            }
            _ => {}
        }
        effects.push(RetrySoon);
        effects
    }

    fn saved(&mut self, committed: bool) -> Vec<Effect> {
        if self.phase != Phase::Saving {
            return vec![];
        }
        if !committed {
            return self.put_off(vec![Release]);
        }
        self.phase = Phase::Leaving;
        self.expected = true;
        vec![TellSuspended]
    }

    /// Whoever asked is told now rather than at the deadline: another attempt would end the same.
    fn save_failed(&mut self) -> Vec<Effect> {
        if self.phase != Phase::Saving {
            return vec![];
        }
        self.late = self.want != Want::Nothing;
        self.put_off(vec![Release])
    }

    fn exited(&mut self, rest: Rest, failed: bool) -> Vec<Effect> {
        if !self.alive() {
            return vec![];
        }
        let was = self.phase;
        let expected = std::mem::take(&mut self.expected);
        self.cancel_sent = false;
        if self.delete {
            let mut effects = if std::mem::take(&mut self.stop) { vec![AnswerStop(Answer::Gone)] } else { vec![] };
            effects.extend(self.remove());
            return effects;
        }
        if self.stop {
            return self.discard();
        }
        let mut effects = Vec::new();
        match was {
            Phase::Resuming => {
                self.attempts += 1;
                if failed || self.attempts >= ATTEMPTS {
                    self.phase = Phase::Rest(Rest::Error);
                    self.wanted = false;
                    effects.push(AnswerWakers(Answer::Failed));
                    effects.extend(self.rested());
                    return effects;
                }
            }
            // The answer was lost, but what it saved is there: held sessions find out when they are bound again,
            // by their counts.
            Phase::Saving if rest == Rest::Suspended => effects.push(TellSuspended),
            _ if !expected => effects.push(EndSessions(End::Died)),
            _ => {}
        }
        self.phase = Phase::Rest(rest);
        effects.extend(self.rested());
        if self.wanted {
            self.phase = Phase::Resuming;
            effects.push(Spawn);
        }
        effects
    }

    /// At rest: whoever wanted that has it.
    fn rested(&mut self) -> Vec<Effect> {
        let asked = self.want == Want::Suspend;
        if asked {
            self.want = Want::Nothing;
        }
        self.late = false;
        if asked { vec![AnswerSuspend(Answer::Done)] } else { vec![] }
    }
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
