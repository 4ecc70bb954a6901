//! One database's actor: carries out what its [`Machine`] decides.
//!
//! A task that exists only while something is under way; a database at rest costs nothing. It is the only one
//! that touches the database's process and files, so everything about a database happens in one order.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};

use super::control::SessionCounts;
use super::machine::{Answer, Effect, Input, Machine, Phase, Rest, Want};
use super::process::{Process, Sockets};
use super::state::State;
use super::vm::{self, VmCommand, VmContext, VmEvent};
use super::{Awake, DeleteError, EventKind, Inner, PackError, RestartError, SuspendError, WakeError};
use crate::crash;
use crate::identity::{DatabaseId, TenantId};

/// What an actor needs to know of its database; read once from its row.
#[derive(Clone, Debug)]
pub struct Facts {
    pub id: DatabaseId,
    pub tenant: TenantId,
    pub tenant_name: String,
    pub name: String,
    pub pg_version: u32,
    /// The one it was last on; its next cold start may be on a newer one.
    pub image: String,
    pub memory_mib: u64,
    pub storage_mib: u64,
    pub cool_down_ms: u64,
    /// As its row said: its folders must be there.
    pub has_files: bool,
    /// Likewise: its layer must not be empty.
    pub written: bool,
    /// `Metadata::changes` before its row was read.
    pub changes: u64,
}

/// What others ask of an actor.
pub enum Command {
    Wake(oneshot::Sender<Result<Awake, WakeError>>),
    /// A held client spoke while its database was about to sleep.
    Spoke,
    Suspend(oneshot::Sender<Result<(), SuspendError>>),
    /// Where its VMM listens, if it has one.
    Sockets(oneshot::Sender<Option<Sockets>>),
    /// Shut it down, so that its next start is a cold one.
    Restart { end_sessions: bool, reply: oneshot::Sender<Result<(), RestartError>> },
    Pack(oneshot::Sender<Result<(), PackError>>),
    Delete(oneshot::Sender<Result<(), DeleteError>>),
    CoolDown(u64),
    ShutDown,
    Cut,
}

/// What its own tasks report.
enum Note {
    /// From the VM of this life.
    Vm(u64, VmEvent),
    Removed(Result<(), String>),
    /// The process that packed it is gone.
    Packed(Result<(), PackError>),
    /// The snapshot is gone, and this is the image of the next start.
    Discarded(Result<String, String>),
}

/// Suspends of this life that failed, other than for its being in use.
#[derive(Default)]
struct Unsaved {
    error: Option<String>,
    /// In a row.
    failures: u32,
    /// The last attempt was one of them.
    last: bool,
}

/// The pause before the next attempt, doubled for each failure. A pause that was longer to begin with stays.
fn backed_off(pause: Duration, failures: u32) -> Duration {
    pause.saturating_mul(1 << failures.min(20)).min(LONGEST_PAUSE.max(pause))
}

/// Pause before an asked suspend is tried again. The guest's own idle event usually comes first.
const ASKED_AGAIN: Duration = Duration::from_millis(50);
/// Least pause before the guest is asked again to say when it is idle.
const IDLE_AGAIN: Duration = Duration::from_millis(100);
/// Longest pause between attempts of a database whose suspends fail.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// Failures in a row after which nobody who asked for a suspend is kept waiting for another attempt. The first
/// may be a session that came or went between the pooler's count and the VMM's.
const FAILURES: u32 = 3;
/// How long a clean stop may take before the VM is killed.
const STOP_TIME: Duration = Duration::from_secs(30);

pub struct Actor {
    host: Arc<Inner>,
    facts: Facts,
    machine: Machine,
    commands: mpsc::Receiver<Command>,
    notes: mpsc::UnboundedReceiver<Note>,
    note: mpsc::UnboundedSender<Note>,
    wakers: Vec<oneshot::Sender<Result<Awake, WakeError>>>,
    suspenders: Vec<oneshot::Sender<Result<(), SuspendError>>>,
    deleters: Vec<oneshot::Sender<Result<(), DeleteError>>>,
    stoppers: Vec<oneshot::Sender<Result<(), RestartError>>>,
    packers: Vec<oneshot::Sender<Result<(), PackError>>>,
    /// While it is packed: dropped, that is called off.
    packing: Option<oneshot::Sender<()>>,
    packed: Option<Result<(), PackError>>,
    vm: Option<mpsc::UnboundedSender<VmCommand>>,
    sockets: Option<Sockets>,
    /// Counts lives, so that a word from a VM of before is not taken for one of this.
    life: u64,
    counts: Vec<SessionCounts>,
    awake: Option<Awake>,
    /// Why it is stopped or in error.
    reason: Option<String>,
    unsaved: Unsaved,
    shown: Option<(State, Option<String>)>,
    retry_at: Option<Instant>,
    suspend_deadline: Option<Instant>,
    shutdown_deadline: Option<Instant>,
    /// While it waits for others' VMs to start.
    turn_deadline: Option<Instant>,
    wake_deadline: Option<Instant>,
    stop_deadline: Option<Instant>,
}

impl Actor {
    /// An actor for a database at rest, or for one whose VM was found running.
    pub(super) fn new(
        host: Arc<Inner>,
        facts: Facts,
        start: Phase,
        message: Option<String>,
        commands: mpsc::Receiver<Command>,
    ) -> Actor {
        let (note, notes) = mpsc::unbounded_channel();
        let machine = Machine::new(start);
        // A rest that is known already is no news.
        let shown = matches!(start, Phase::Rest(_)).then(|| (machine.state(), message.clone()));
        Actor {
            host,
            facts,
            machine,
            commands,
            notes,
            note,
            wakers: Vec::new(),
            suspenders: Vec::new(),
            deleters: Vec::new(),
            stoppers: Vec::new(),
            packers: Vec::new(),
            packing: None,
            packed: None,
            vm: None,
            sockets: None,
            life: 0,
            counts: Vec::new(),
            awake: None,
            reason: message,
            unsaved: Unsaved::default(),
            shown,
            retry_at: None,
            suspend_deadline: None,
            shutdown_deadline: None,
            turn_deadline: None,
            wake_deadline: None,
            stop_deadline: None,
        }
    }

    /// Runs until the database is at rest and nobody asks for anything.
    pub(super) async fn run(mut self, adopted: Option<(UnixStream, Process)>) {
        if let Some(adopted) = adopted {
            self.start_vm(Some(adopted));
        }
        self.show();
        loop {
            let input = match self.next().await {
                Some(input) => input,
                None => return,
            };
            let mut inputs = VecDeque::from([input]);
            while let Some(input) = inputs.pop_front() {
                let effects = self.machine.step(input);
                // Before anyone is answered, so that who asks again sees no older state.
                self.show();
                for effect in effects {
                    inputs.extend(self.carry_out(effect));
                }
            }
            if self.machine.at_rest() && self.host.let_go(&self.facts, self.shown.as_ref(), &mut self.commands) {
                return;
            }
        }
    }

    /// The next input. `None` when the host is gone.
    async fn next(&mut self) -> Option<Input> {
        loop {
            let timers = [
                self.retry_at,
                self.suspend_deadline,
                self.shutdown_deadline,
                self.turn_deadline,
                self.wake_deadline,
                self.stop_deadline,
            ];
            let first = timers.into_iter().flatten().min();
            let timer = async {
                match first {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                Some(note) = self.notes.recv() => if let Some(input) = self.noted(note) {
                    return Some(input);
                },
                command = self.commands.recv() => match self.asked(command?) {
                    Some(input) => return Some(input),
                    None => continue,
                },
                () = timer => if let Some(input) = self.timed(Instant::now()) {
                    return Some(input);
                },
            }
        }
    }

    fn noted(&mut self, note: Note) -> Option<Input> {
        match note {
            Note::Vm(life, _) if life != self.life => None,
            Note::Vm(_, VmEvent::Starting) => {
                self.turn_deadline = None;
                self.wake_deadline = Some(Instant::now() + self.host.limits.wake_timeout);
                None
            }
            Note::Vm(_, VmEvent::Sockets(sockets)) => {
                self.sockets = sockets;
                None
            }
            Note::Vm(_, VmEvent::Image(image)) => {
                self.facts.image = image;
                None
            }
            Note::Vm(_, VmEvent::Ready { epoch, existing, cold }) => {
                self.wake_deadline = None;
                self.facts.has_files = true;
                if let Some(cold) = cold {
                    let kind = if cold.refused { EventKind::SnapshotRefused } else { EventKind::StartedCold };
                    self.event(kind, cold.why);
                    if cold.settings_undone {
                        let which = "those of ALTER SYSTEM are put aside; the console log lists them";
                        self.event(EventKind::SettingsUndone, Some(which.into()));
                    }
                }
                self.reason = None;
                let socket = self.sockets.as_ref().map(|sockets| sockets.sessions.clone()).unwrap_or_default();
                let awake = Awake { socket, epoch };
                // Before anyone is answered: a held session binds again, one of another epoch ends.
                self.host.sessions().awake(&self.facts.id, &awake, &existing);
                crash::point("wake-bound");
                self.awake = Some(awake);
                self.send_vm(VmCommand::CoolDown(self.facts.cool_down_ms));
                Some(Input::Ready)
            }
            // While attempts are put off because they fail, only the end of the pause brings another.
            Note::Vm(_, VmEvent::Idle) if self.unsaved.last && self.retry_at.is_some() => None,
            Note::Vm(_, VmEvent::Idle) => Some(Input::Idle),
            Note::Vm(_, VmEvent::Suspended(answer)) => {
                Some(self.saved(answer))
            }
            Note::Vm(_, VmEvent::Exited { reason, hung }) => Some(self.exited(reason, hung)),
            Note::Discarded(result) => {
                let done = result.is_ok();
                match result {
                    Ok(image) => self.facts.image = image,
                    Err(reason) => {
                        tracing::error!(database = %self.facts.id, reason, "restart");
                        self.reason = Some(reason);
                    }
                }
                let facts = &self.facts;
                Some(Input::Discarded { rest: self.host.home.rest(&facts.id, &facts.image, facts.memory_mib), done })
            }
            Note::Packed(result) => {
                self.packing = None;
                self.packed = Some(result);
                let facts = &self.facts;
                Some(Input::Packed(self.host.home.rest(&facts.id, &facts.image, facts.memory_mib)))
            }
            Note::Removed(result) => {
                let done = result.is_ok();
                if let Err(reason) = result {
                    tracing::error!(database = %self.facts.id, reason, "delete");
                    self.reason = Some(reason);
                }
                Some(Input::Removed(done))
            }
        }
    }

    fn saved(&mut self, answer: Result<(), String>) -> Input {
        let id = &self.facts.id;
        match answer {
            Ok(()) => {
                self.unsaved = Unsaved::default();
                self.host.metrics.suspends.add(1);
                Input::Saved(true)
            }
            Err(error) if matches!(error.as_str(), "busy" | "bytes_in_flight" | "cancelled") => {
                tracing::debug!(database = %id, error, "suspend did not happen");
                self.unsaved.last = false;
                Input::Saved(false)
            }
            Err(error) => {
                let failures = self.unsaved.failures.saturating_add(1);
                if failures == 1 {
                    self.event(EventKind::SuspendFailed, Some(error.clone()));
                }
                tracing::warn!(database = %id, error, failures, "suspend failed; the database goes on running");
                self.unsaved = Unsaved { error: Some(error), failures, last: true };
                if failures >= FAILURES { Input::SaveFailed } else { Input::Saved(false) }
            }
        }
    }

    fn event(&self, kind: EventKind, message: Option<String>) {
        self.host.event(&self.facts.id, kind, message);
    }

    fn exited(&mut self, reason: Option<String>, hung: bool) -> Input {
        self.vm = None;
        self.sockets = None;
        self.life += 1;
        self.awake = None;
        self.turn_deadline = None;
        self.wake_deadline = None;
        self.stop_deadline = None;
        self.unsaved = Unsaved::default();
        let failed = reason.is_some();
        let facts = &self.facts;
        let rest = self.host.home.rest(&facts.id, &facts.image, facts.memory_mib);
        // One that was adopted does not say how it ended; a snapshot does.
        let clean = !failed && matches!(rest, Rest::Suspended);
        self.host.note_written(&self.facts.id, &mut self.facts.written, clean);
        self.host.clear_unpacked(&self.facts.id);
        let facts = &self.facts;
        if let Some(reason) = reason {
            let state = self.machine.state();
            if !matches!(state, State::Deleting) {
                tracing::warn!(database = %facts.id, ?state, reason, "its VM ended");
            }
            let kind = match state {
                _ if hung => Some(EventKind::Hung),
                State::Resuming => Some(EventKind::WakeFailed),
                // Killed because someone asked for it.
                _ if self.machine.expects_end() => None,
                _ => Some(EventKind::Died),
            };
            if let Some(kind) = kind {
                let first = self.reason.as_ref().unwrap_or(&reason);
                self.event(kind, Some(first.clone()));
            }
            // The first reason is the one that explains: what follows a time-out is only "killed".
            self.reason.get_or_insert(reason);
        } else {
            self.reason = None;
        }
        Input::Exited { rest, failed }
    }

    fn asked(&mut self, command: Command) -> Option<Input> {
        match command {
            Command::Wake(reply) => {
                self.wakers.retain(|w| !w.is_closed());
                if self.wakers.len() >= self.host.limits.wake_queue {
                    // A reply nobody waits for any more is no loss.
                    let _ = reply.send(Err(WakeError::QueueFull));
                    return None;
                }
                self.wakers.push(reply);
                Some(Input::Wake)
            }
            Command::Spoke => Some(Input::Spoke),
            Command::Sockets(reply) => {
                let _ = reply.send(self.sockets.clone());
                None
            }
            Command::Suspend(reply) => {
                self.suspenders.push(reply);
                self.suspend_deadline = Some(Instant::now() + self.host.limits.suspend_wait);
                Some(Input::SuspendAsked)
            }
            Command::Restart { end_sessions, reply } => {
                let clients = self.host.sessions().clients(&self.facts.id);
                if clients > 0 && !end_sessions {
                    let _ = reply.send(Err(RestartError::InUse(clients)));
                    return None;
                }
                self.stoppers.push(reply);
                Some(Input::StopAsked)
            }
            Command::Pack(reply) => {
                let (home, id) = (&self.host.home, &self.facts.id);
                let whole = !home.snapshot(id).exists() && !home.database(id).join("layer/files").exists();
                if home.packed(id).exists() && whole && self.machine.at_rest() {
                    let _ = reply.send(Ok(()));
                    return None;
                }
                if !home.has_memory(id) && self.machine.state() == State::Suspended {
                    let _ = reply.send(Err(PackError::Unfit("it was never used and has no files".into())));
                    return None;
                }
                self.packers.push(reply);
                Some(Input::PackAsked)
            }
            Command::Delete(reply) => {
                self.deleters.push(reply);
                Some(Input::DeleteAsked)
            }
            Command::CoolDown(ms) => {
                self.facts.cool_down_ms = ms;
                // Of two changes at once the other may have come to the row last.
                self.facts.changes = u64::MAX;
                self.send_vm(VmCommand::CoolDown(ms));
                None
            }
            Command::ShutDown => {
                self.shutdown_deadline = Some(Instant::now() + self.host.limits.suspend_wait);
                Some(Input::ShutDown)
            }
            Command::Cut => Some(Input::Cut),
        }
    }

    fn timed(&mut self, now: Instant) -> Option<Input> {
        let due = |timer: &mut Option<Instant>| timer.take_if(|at| *at <= now).is_some();
        if due(&mut self.stop_deadline) {
            tracing::warn!(database = %self.facts.id, "Postgres did not stop in time; killing its VM");
            self.send_vm(VmCommand::Kill);
            return None;
        }
        if due(&mut self.turn_deadline) {
            let waited = self.host.limits.turn_timeout.as_secs_f64();
            self.reason = Some(if self.host.turns.lacks_memory() {
                format!("the server had too little memory left for {waited} s (setting host.memory_reserve_mib); try again")
            } else {
                format!("other databases kept it waiting {waited} s for its turn to start (setting host.wakes_at_once); try again")
            });
            return Some(Input::WakeFailed);
        }
        if due(&mut self.wake_deadline) {
            self.reason = Some(format!(
                "its VM was not ready within {} s (setting host.wake_timeout_ms); `dormouse logs {}` shows how far it came",
                self.host.limits.wake_timeout.as_secs_f64(),
                self.facts.name
            ));
            return Some(Input::WakeFailed);
        }
        if due(&mut self.suspend_deadline) {
            return Some(Input::SuspendDeadline);
        }
        if due(&mut self.shutdown_deadline) {
            return Some(Input::ShutDownDeadline);
        }
        due(&mut self.retry_at).then_some(Input::Retry)
    }

    /// Does it; what is answered at once is the next input.
    fn carry_out(&mut self, effect: Effect) -> Option<Input> {
        let id = &self.facts.id;
        match effect {
            Effect::Spawn => {
                self.reason = None;
                self.turn_deadline = Some(Instant::now() + self.host.limits.turn_timeout);
                self.start_vm(None);
                crash::point("wake-begun");
            }
            Effect::Kill => self.send_vm(VmCommand::Kill),
            Effect::Suspend => {
                let ended = self.machine.want() == Want::ShutDown;
                let counts = if ended { Vec::new() } else { std::mem::take(&mut self.counts) };
                self.send_vm(VmCommand::Suspend(counts));
            }
            Effect::Cancel => self.send_vm(VmCommand::Cancel),
            Effect::Stop => {
                self.stop_deadline = Some(Instant::now() + STOP_TIME);
                self.send_vm(VmCommand::Stop);
            }
            Effect::Quiesce => return Some(self.quiesce()),
            Effect::Release => self.host.sessions().release(id),
            Effect::TellSuspended => {
                self.host.sessions().suspended(id);
                crash::point("suspend-told");
            }
            Effect::EndSessions(why) => self.host.sessions().end(id, why),
            Effect::AnswerWakers(answer) => self.answer_wakers(answer),
            Effect::AnswerSuspend(answer) => self.answer_suspenders(answer),
            Effect::AnswerStop(answer) => {
                for reply in self.stoppers.drain(..) {
                    let _ = reply.send(match answer {
                        Answer::Done => Ok(()),
                        Answer::Gone => Err(RestartError::Deleting),
                        _ => Err(RestartError::Failed(self.reason.clone().unwrap_or_default())),
                    });
                }
            }
            Effect::Discard => self.discard(),
            Effect::Pack => self.pack(),
            Effect::StopPacking => self.packing = None,
            Effect::AnswerPack(answer) => {
                let result = match (answer, self.packed.take()) {
                    (Answer::Done, Some(result)) => result,
                    (Answer::Gone, _) => Err(PackError::Deleting),
                    _ => Err(PackError::Awake),
                };
                for reply in self.packers.drain(..) {
                    let _ = reply.send(result.clone());
                }
            }
            Effect::AnswerDelete(answer) => {
                for reply in self.deleters.drain(..) {
                    let reason = || self.reason.clone().unwrap_or_default();
                    let _ = reply.send(if answer == Answer::Done { Ok(()) } else { Err(DeleteError::Failed(reason())) });
                }
            }
            Effect::RetrySoon => {
                let pause = match self.machine.want() {
                    Want::Nothing => Duration::from_millis(self.facts.cool_down_ms).max(IDLE_AGAIN),
                    Want::Suspend | Want::ShutDown => ASKED_AGAIN,
                };
                // One that is only in use writes no snapshot in vain.
                let pause = if self.unsaved.last { backed_off(pause, self.unsaved.failures) } else { pause };
                self.retry_at = Some(Instant::now() + pause);
            }
            Effect::ListenForIdle => self.send_vm(VmCommand::CoolDown(self.facts.cool_down_ms)),
            Effect::Remove => self.remove(),
        }
        None
    }

    fn spec(&self) -> super::process::Spec {
        super::process::Spec {
            id: self.facts.id.clone(),
            image: self.facts.image.clone(),
            memory_mib: self.facts.memory_mib,
            storage_mib: self.facts.storage_mib,
            written: self.facts.written,
        }
    }

    fn pack(&mut self) {
        let (host, spec, note) = (self.host.clone(), self.spec(), self.note.clone());
        let (packing, called_off) = oneshot::channel();
        self.packing = Some(packing);
        tokio::spawn(async move {
            let _ = note.send(Note::Packed(host.pack(&spec, called_off).await));
        });
    }

    fn start_vm(&mut self, adopted: Option<(UnixStream, Process)>) {
        if adopted.is_none() {
            // A server that ended in its first life may not have noted it.
            self.host.note_written(&self.facts.id, &mut self.facts.written, false);
        }
        self.life += 1;
        let (life, note) = (self.life, self.note.clone());
        let context = VmContext {
            host: self.host.clone(),
            home: self.host.home.clone(),
            spec: self.spec(),
            pg_version: self.facts.pg_version,
            tenant: self.facts.tenant.clone(),
            has_files: self.facts.has_files,
            since: self.host.since,
        };
        if adopted.is_some() {
            self.wake_deadline = Some(Instant::now() + self.host.limits.wake_timeout);
        }
        self.vm = Some(vm::start(context, adopted, move |event| drop(note.send(Note::Vm(life, event)))));
    }

    fn send_vm(&self, command: VmCommand) {
        // A VM that has ended says so itself.
        if let Some(vm) = &self.vm {
            let _ = vm.send(command);
        }
    }

    fn quiesce(&mut self) -> Input {
        self.retry_at = None;
        let counts = self.host.sessions().quiesce(&self.facts.id);
        let stopped = counts.is_some();
        self.unsaved.last &= stopped;
        self.counts = counts.unwrap_or_default();
        crash::point("suspend-quiesced");
        Input::Quiesced(stopped)
    }

    fn discard(&self) {
        let (host, facts, note) = (self.host.clone(), self.facts.clone(), self.note.clone());
        tokio::spawn(async move {
            let result = match host.check_files(&facts.id, facts.has_files) {
                Ok(()) => host.discard_snapshot(&facts.id, &facts.image, facts.pg_version).await,
                // Without its layer it would be taken for one without a template, and the row would forget it.
                Err(reason) => Err(reason),
            };
            let _ = note.send(Note::Discarded(result));
        });
    }

    fn remove(&self) {
        let (host, id, note) = (self.host.clone(), self.facts.id.clone(), self.note.clone());
        tokio::spawn(async move {
            let result = host.remove_database(&id).await;
            let _ = note.send(Note::Removed(result));
        });
    }

    fn answer_wakers(&mut self, answer: Answer) {
        let result = match (answer, &self.awake) {
            (Answer::Done, Some(awake)) => Ok(awake.clone()),
            (Answer::Gone, _) => Err(WakeError::Deleting),
            (Answer::ShuttingDown, _) => Err(WakeError::ShuttingDown),
            _ => Err(WakeError::unready(self.reason.clone().unwrap_or_else(|| "its VM ended".into()))),
        };
        for reply in self.wakers.drain(..) {
            // A waiter that has gone needs no answer.
            let _ = reply.send(result.clone());
        }
        crash::point("wake-answered");
    }

    fn answer_suspenders(&mut self, answer: Answer) {
        self.suspend_deadline = None;
        for reply in self.suspenders.drain(..) {
            let _ = reply.send(match answer {
                Answer::Done => Ok(()),
                Answer::Gone => Err(SuspendError::Deleting),
                _ => Err(match &self.unsaved {
                    Unsaved { error: Some(error), last: true, .. } => SuspendError::unsaved(error),
                    _ => SuspendError::Busy(self.host.limits.suspend_wait),
                }),
            });
        }
    }

    /// Publishes the state if it has changed.
    fn show(&mut self) {
        if self.machine.phase() == Phase::Gone {
            if self.shown.take().is_some() {
                self.host.publish(&self.facts, None, None);
            }
            return;
        }
        let state = self.machine.state();
        let message = match state {
            State::Error | State::Stopped | State::Deleting => self.reason.clone(),
            State::Running | State::Suspending => self.unsaved.error.as_deref().map(|e| SuspendError::unsaved(e).to_string()),
            _ => None,
        };
        let now = Some((state, message));
        if now != self.shown {
            self.shown = now.clone();
            let message = now.and_then(|(_, message)| message);
            self.host.publish(&self.facts, Some(state), message);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_that_fail_are_put_off_longer_and_longer_and_not_for_ever() {
        let second = Duration::from_secs(1);
        let pauses: Vec<u64> = [0, 1, 2, 8, 9, 40, u32::MAX].map(|n| backed_off(second, n).as_secs()).to_vec();
        assert_eq!(pauses, [1, 2, 4, 256, 300, 300, 300]);
        // A cool-down of an hour is not cut short.
        assert_eq!(backed_off(3600 * second, 2), 3600 * second);
    }
}
