//! One life of a VMM process: started or adopted, spoken to by its control socket, watched to its end.
//!
//! A task per awake database. It owns the process and the control connection and turns both into [`VmEvent`]s;
//! the actor sends it [`VmCommand`]s. It always ends with [`VmEvent::Exited`], after the process is gone.

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use dormouse_pooler::monotonic_us;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::Inner;
use super::control::{Event, Lines, Message, Request, Sender, SessionCounts, split};
use super::folders::Unsettled;
use super::layout::Home;
use super::pool::{MakeError, Taken, Waking};
use super::process::{Process, Sockets, Spec, last_cry, last_words, rotate, set_idle, status};
use super::socket::{connect, is_open};
use super::turns::Turn;
use super::wakes::WakeKind;
use crate::crash;
use crate::identity::TenantId;

/// What the actor asks of a VM.
#[derive(Debug)]
pub enum VmCommand {
    Suspend(Vec<SessionCounts>),
    /// Call the suspend off.
    Cancel,
    /// Shut Postgres down cleanly.
    Stop,
    CoolDown(u64),
    Kill,
}

/// What the actor hears of a VM.
#[derive(Debug)]
pub enum VmEvent {
    /// Its turn has come: it is being started.
    Starting,
    /// It listens there.
    Sockets(Option<Sockets>),
    /// `existing`: the sessions in its guest, if some may be from before this server.
    Ready { epoch: String, existing: Vec<SessionCounts>, cold: Option<Cold> },
    /// It is started on this image.
    Image(String),
    Idle,
    /// The suspend's answer.
    Suspended(Result<(), String>),
    /// The process is gone: the reason, unless it ended cleanly.
    Exited { reason: Option<String>, hung: bool },
}

/// A cold start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cold {
    /// There was a snapshot, and it did not fit.
    pub refused: bool,
    pub settings_undone: bool,
    pub why: Option<String>,
}

/// How long a VMM may take to end after it has said goodbye or lost its control connection.
const GOODBYE: Duration = Duration::from_secs(10);
/// How long a suspend runs only when nothing else does: a few times what it takes. On a host that is never idle it would not end, and
/// what it holds of the file system others wait for.
const GIVE_WAY: Duration = Duration::from_millis(30);
/// What a VMM's log says of a guest that its watchdog ended.
const NO_PROGRESS: &str = "makes no progress";
/// What is told of one that the host ended for the memory that it wanted.
const OUT_OF_MEMORY: &str = "its virtual machine wanted more memory than its control group lets it have (setting host.cgroup), and the host ended it";
/// Size at which a VMM's own log is rotated, in bytes. It has a few lines per life.
const VMM_LOG_LIMIT: u64 = 1 << 20;

/// What a VM's task needs from the host.
pub struct VmContext {
    pub host: Arc<Inner>,
    pub home: Home,
    pub spec: Spec,
    pub pg_version: u32,
    pub tenant: TenantId,
    /// As its row said: its folders must be there.
    pub has_files: bool,
    /// When this server started: a snapshot from before may have sessions that nobody holds any more.
    pub since: SystemTime,
}

/// Starts a VM's task. Events go to `events`; dropping the sender of commands leaves the VM running.
pub fn start(
    context: VmContext,
    adopted: Option<(UnixStream, Process)>,
    events: impl Fn(VmEvent) + Send + Sync + 'static,
) -> mpsc::UnboundedSender<VmCommand> {
    let (sender, commands) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let old = adopted.is_some() || snapshot_is_older(&context);
        let mut life = Life {
            context,
            commands,
            events,
            turn: None,
            log_mark: 0,
            console_mark: 0,
            asked: monotonic_us(),
            steps: Vec::new(),
            adopted: adopted.is_some(),
            old,
            ready: None,
            hung: false,
            had_snapshot: false,
        };
        let reason = life.run(adopted).await;
        drop(life.turn.take());
        life.context.host.sessions().listening_no_more(&life.context.spec.id);
        if reason.is_none() {
            crash::point("suspend-gone");
        }
        (life.events)(VmEvent::Exited { reason, hung: life.hung });
    });
    sender
}

struct Life<F> {
    context: VmContext,
    commands: mpsc::UnboundedReceiver<VmCommand>,
    events: F,
    /// While it is being woken: its turn, and word to the pool.
    turn: Option<(Turn, Waking)>,
    /// Lengths of the VMM's log and of the guest's console when it was started.
    log_mark: u64,
    console_mark: u64,
    /// When it was decided to start it, and the steps since then, µs on the monotonic clock; the VMM has its own.
    asked: u64,
    steps: Vec<(String, u64)>,
    /// It ran before this server did.
    adopted: bool,
    /// It may have sessions from before this server.
    old: bool,
    /// The epoch of a VM that is ready, until its sessions are known.
    ready: Option<String>,
    /// Its watchdog ended it.
    hung: bool,
    had_snapshot: bool,
}

/// A file's length in bytes; 0 of one that is not there.
fn length(path: &std::path::Path) -> u64 {
    std::fs::metadata(path).map(|m| m.len()).unwrap_or(0)
}

/// Whether what it wakes from was saved before this server started.
fn snapshot_is_older(context: &VmContext) -> bool {
    if context.home.packed(&context.spec.id).exists() {
        // How old its snapshot is, is not known.
        return true;
    }
    let saved = std::fs::metadata(context.home.snapshot(&context.spec.id)).and_then(|m| m.modified());
    saved.is_ok_and(|saved| saved < context.since)
}

/// Why the conversation with a VMM ended.
enum Over {
    /// The process is gone.
    Exited(Option<std::process::ExitStatus>),
    /// The connection is lost, or the VMM said that it ends.
    Lost,
    Kill,
    /// The server ends and leaves the VM to another.
    Left,
}

impl<F: Fn(VmEvent)> Life<F> {
    /// Returns the reason of the end, `None` for a clean one.
    async fn run(&mut self, adopted: Option<(UnixStream, Process)>) -> Option<String> {
        let host = self.context.host.clone();
        let settling = match host.settle_folders(&self.context.spec.id, self.context.has_files) {
            Ok(settling) => settling,
            // Of a VM that runs, the folders are there; if not, it is left to show what it does without them.
            Err(reason) if adopted.is_none() => return Some(reason),
            Err(_) => None,
        };
        let started = match adopted {
            Some(adopted) => {
                self.log_mark = length(&self.context.home.vmm_log(&self.context.spec.id));
                Ok(Some(adopted))
            }
            None => self.spawn().await,
        };
        // Also of one that was not started: once its end is told, nothing of it is under way.
        let unsettled = match settling {
            Some(settling) => settling.await.unwrap_or_else(|e| Err(Unsettled::Failed(e.to_string()))).err(),
            None => None,
        };
        let (stream, mut process) = match started {
            Ok(Some(both)) if unsettled.is_none() => both,
            started => {
                let reason = match started {
                    Ok(Some((_, mut process))) => {
                        process.kill();
                        process.gone().await;
                        None
                    }
                    Ok(None) => Some("called off before it was started".into()),
                    Err(reason) => Some(reason),
                };
                if let Some(Unsettled::Deleted) = unsettled
                    && let Err(left) = host.remove_folders(&self.context.spec.id).await
                {
                    tracing::warn!(database = %self.context.spec.id, left, "what was made for a database that was deleted is left");
                }
                return unsettled.map(|u| u.to_string()).or(reason);
            }
        };
        (self.events)(VmEvent::Sockets(process.sockets()));
        let (lines, sender) = split(stream);
        let mut giving_way = GivingWay(None);
        let over = self.converse(lines, sender, &mut process, &mut giving_way).await;
        // Whoever wakes it next waits for its end.
        giving_way.end(&process);
        self.turn = None;
        match over {
            Over::Exited(status) => self.reason(status, process.ran_out_of_memory()),
            Over::Left => None,
            Over::Kill => {
                process.kill();
                process.gone().await;
                Some("killed".into())
            }
            Over::Lost => match tokio::time::timeout(GOODBYE, process.gone()).await {
                Ok(status) => self.reason(status, process.ran_out_of_memory()),
                Err(_) => {
                    tracing::warn!(database = %self.context.spec.id, pid = process.pid(), "VMM lost its control connection and did not end; killing it");
                    process.kill();
                    process.gone().await;
                    Some("lost its control connection".into())
                }
            },
        }
    }

    fn step(&mut self, name: &str) {
        self.steps.push((name.to_owned(), monotonic_us()));
    }

    fn reason(&mut self, status: Option<std::process::ExitStatus>, out_of_memory: bool) -> Option<String> {
        if out_of_memory {
            return Some(OUT_OF_MEMORY.into());
        }
        let words = last_words(&self.context.home, &self.context.spec.id, self.log_mark, true);
        // The status of an adopted one is not known.
        self.hung = match status {
            Some(status) => status.code() == Some(status::HUNG),
            None => words.as_ref().is_some_and(|words| words.contains(NO_PROGRESS)),
        };
        if self.hung {
            return Some(
                "its guest made no progress and was ended (setting host.watchdog_ms); its console log has its tasks".into(),
            );
        }
        let status = status?;
        if status.success() {
            return None;
        }
        let words = words.map(|w| format!(": {w}")).unwrap_or_default();
        let cry = last_cry(&self.context.home, &self.context.spec.id, self.console_mark);
        let cry = cry.map(|line| format!("; its console's last: {line}")).unwrap_or_default();
        Some(match status.code() {
            Some(status::NO_KVM) => format!(
                "/dev/kvm cannot be used{words}. Load the KVM modules and give this user read and write access to /dev/kvm"
            ),
            Some(code) if (10..=14).contains(&code) => format!("the guest ended with code {}{words}{cry}", code - 10),
            Some(code) => format!("the VMM ended with status {code}{words}{cry}"),
            None => format!("the VMM was killed ({status}){words}{cry}"),
        })
    }

    /// Starts the process and connects to it. `None`: killed meanwhile.
    async fn spawn(&mut self) -> Result<Option<(UnixStream, Process)>, String> {
        let id = self.context.spec.id.clone();
        tokio::select! {
            turn = self.context.host.turns.take(&self.context.tenant) => self.turn = Some((turn, self.context.host.pool.waking())),
            () = killed(&mut self.commands) => return Ok(None),
        }
        self.step("turn_taken");
        crash::point("wake-turn-taken");
        (self.events)(VmEvent::Starting);
        let home = self.context.home.clone();
        rotate(&home.vmm_log(&id), VMM_LOG_LIMIT);
        self.had_snapshot = home.has_memory(&id);
        let (host, image) = (&self.context.host, &self.context.spec.image);
        let newest = home.current_image(self.context.pg_version);
        let moved = if !self.had_snapshot {
            // A cold start, or the first of all: the newest image will do, and is to be had for nothing.
            Some(host.newest_image(&id, image, self.context.pg_version).await?)
        } else if newest.is_some_and(|newest| newest != *image) && host.outdated(image) {
            tracing::warn!(database = %id, image, "its image is of another version of this program: it starts cold on the newest");
            Some(host.discard_snapshot(&id, image, self.context.pg_version).await?)
        } else {
            None
        };
        if let Some(image) = moved {
            self.context.spec.image = image;
            (self.events)(VmEvent::Image(self.context.spec.image.clone()));
        }
        let image = home.image(&self.context.spec.image);
        if !image.join("image.json").exists() {
            return Err(format!(
                "its image {} is gone: put the folder back to {} (from a copy, or by building that version again)",
                self.context.spec.image,
                image.display()
            ));
        }
        self.log_mark = length(&home.vmm_log(&id));
        self.console_mark = length(&home.console_log(&id));
        // A snapshot fits the memory it was taken of and no other: a plan's new size waits for a cold start.
        // No plan has more than the largest: a header that says so was not written by us, and the VMM refuses it.
        let largest = host.plans.values().map(|plan| plan.memory_mib).max().unwrap_or(0);
        if let Some(saved) = home.snapshot_memory_mib(&id).filter(|saved| *saved <= largest) {
            self.context.spec.memory_mib = saved;
        }
        self.step("prepared");
        let mut tried = false;
        loop {
            let taken = tokio::select! {
                taken = self.context.host.pool.take(&self.context.spec) => taken,
                () = killed(&mut self.commands) => return Ok(None),
            };
            let Taken { mut process, control, at, stood_by } = match taken {
                Ok(taken) => taken,
                Err(MakeError::Ended(status)) => return Err(self.ended_early(Some(status), false)),
                Err(error) => return Err(error.to_string()),
            };
            self.steps.push(("spawned".to_owned(), at));
            // Whoever waits connects and speaks before it has looked at anything, and is heard once it is found to be the right one.
            if let Some(sockets) = process.sockets() {
                self.context.host.sessions().listening(&id, sockets.sessions);
            }
            crash::point("wake-offered");
            return tokio::select! {
                biased;
                // It has the layer.
                () = first_word(&control) => {
                    self.step("connected");
                    crash::point("wake-connected");
                    Ok(Some((control, process)))
                }
                status = process.gone() => {
                    // Killed while it stood by, and its end of the socket still took the claim.
                    if stood_by && !tried && status.is_some_and(|status| status.code().is_none()) {
                        tried = true;
                        continue;
                    }
                    Err(self.ended_early(status, process.ran_out_of_memory()))
                }
                () = killed(&mut self.commands) => {
                    process.kill();
                    process.gone().await;
                    Ok(None)
                }
            };
        }
    }

    /// Why a process ended before it could be spoken to.
    fn ended_early(&mut self, exit: Option<std::process::ExitStatus>, out_of_memory: bool) -> String {
        self.reason(exit, out_of_memory).unwrap_or_else(|| "the VMM ended before it was ready".into())
    }

    async fn converse(&mut self, mut lines: Lines, mut sender: Sender, process: &mut Process, giving_way: &mut GivingWay) -> Over {
        // Requests sent and not yet answered; answers come in their order.
        let mut open: VecDeque<Open> = VecDeque::new();
        loop {
            tokio::select! {
                message = lines.next() => match message {
                    Ok(Some(message)) => {
                        if self.heard(message, &mut open) {
                            return Over::Lost;
                        }
                        if !open.contains(&Open::Suspend) {
                            giving_way.end(process);
                        }
                        if self.ready.is_some() && !open.contains(&Open::Status) {
                            open.push_back(Open::Status);
                            if sender.send(&Request::Status).await.is_err() {
                                return Over::Lost;
                            }
                        }
                    }
                    Ok(None) => return Over::Lost,
                    Err(error) => {
                        tracing::warn!(database = %self.context.spec.id, %error, "control socket");
                        return Over::Lost;
                    }
                },
                status = process.gone() => {
                    // Its number may be another's.
                    giving_way.0 = None;
                    // What it said last may still be in the socket, such as that the suspend is committed.
                    while let Ok(Ok(Some(message))) = tokio::time::timeout(GOODBYE, lines.next()).await {
                        self.heard(message, &mut open);
                    }
                    return Over::Exited(status);
                }
                () = giving_way.over() => giving_way.end(process),
                command = self.commands.recv() => {
                    let (request, kind) = match command {
                        None => return Over::Left,
                        Some(VmCommand::Kill) => return Over::Kill,
                        Some(VmCommand::Cancel) => {
                            giving_way.end(process);
                            // By a connection of its own: on this one its answer could not be told from the
                            // suspend's, which is the one that counts.
                            let id = &self.context.spec.id;
                            process.sockets().map(|sockets| tokio::spawn(cancel(sockets.control, id.clone())));
                            continue;
                        }
                        Some(VmCommand::Suspend(sessions)) => (Request::Suspend { sessions }, Open::Suspend),
                        Some(VmCommand::Stop) => (Request::Stop, Open::Stop),
                        Some(VmCommand::CoolDown(ms)) => (Request::CoolDown { ms }, Open::Other),
                    };
                    open.push_back(kind);
                    if let Err(error) = sender.send(&request).await {
                        tracing::debug!(database = %self.context.spec.id, %error, "control socket");
                        return Over::Lost;
                    }
                    if matches!(request, Request::Suspend { .. }) {
                        giving_way.begin(process);
                        crash::point("suspend-asked");
                    }
                }
            }
        }
    }

    /// Passes a message on. `true`: the VMM is about to end.
    fn heard(&mut self, message: Message, open: &mut VecDeque<Open>) -> bool {
        match message {
            Message::Event(Event::Ready { epoch, cold, why, settings_undone, trace }) => {
                self.turn = None;
                self.step("vm_heard");
                crash::point("wake-ready");
                let ready = monotonic_us();
                tracing::info!(database = %self.context.spec.id, epoch, cold, us = ready - self.asked, "awake");
                if !self.adopted {
                    let kind = match (cold, self.had_snapshot) {
                        (true, _) => WakeKind::Cold,
                        (false, true) => WakeKind::Resume,
                        (false, false) => WakeKind::Clone,
                    };
                    self.steps.push(("decided".to_owned(), self.asked));
                    self.steps.extend(trace.into_steps());
                    let steps = std::mem::take(&mut self.steps);
                    self.context.host.wakes.woken(&self.context.spec.id, kind, (self.asked, ready), steps);
                }
                if settings_undone {
                    tracing::warn!(database = %self.context.spec.id, "Postgres did not start with the settings of ALTER SYSTEM: they are undone");
                }
                if cold {
                    tracing::info!(database = %self.context.spec.id, why, "started cold; sessions held from before end with 57P01");
                }
                if self.old && !cold {
                    self.ready = Some(epoch);
                } else {
                    (self.events)(VmEvent::Ready { epoch, existing: Vec::new(), cold: cold.then_some(Cold { refused: self.had_snapshot && why.is_some(), settings_undone, why }) });
                }
            }
            Message::Event(Event::Trace { trace }) => {
                if !self.adopted {
                    self.context.host.wakes.served(&self.context.spec.id, trace.into_steps());
                }
            }
            Message::Event(Event::Idle { .. }) => (self.events)(VmEvent::Idle),
            Message::Event(Event::Listening | Event::Unknown) => {}
            Message::Answer(answer) => match open.pop_front() {
                Some(Open::Suspend) => {
                    crash::point("suspend-answered");
                    let done = answer.is_ok();
                    (self.events)(VmEvent::Suspended(answer.map(drop)));
                    return done;
                }
                Some(Open::Status) => {
                    let existing = answer.unwrap_or_default().sessions;
                    if let Some(epoch) = self.ready.take() {
                        (self.events)(VmEvent::Ready { epoch, existing, cold: None });
                    }
                }
                Some(Open::Stop) => match answer {
                    Ok(_) => return true,
                    Err(error) => tracing::warn!(database = %self.context.spec.id, error, "clean stop refused"),
                },
                Some(Open::Other) | None => {
                    if let Err(error) = answer {
                        tracing::warn!(database = %self.context.spec.id, error, "control socket");
                    }
                }
            },
        }
        false
    }
}

/// A suspend gives way to whoever is awake or being woken, until then.
struct GivingWay(Option<Instant>);

impl GivingWay {
    fn begin(&mut self, process: &Process) {
        if process.pid().is_some_and(|pid| set_idle(pid, true).is_ok()) {
            self.0 = Some(Instant::now() + GIVE_WAY);
        }
    }

    /// Completes when it has given way for long enough.
    async fn over(&self) {
        match self.0 {
            Some(at) => tokio::time::sleep_until(at).await,
            None => std::future::pending().await,
        }
    }

    fn end(&mut self, process: &Process) {
        let Some(pid) = process.pid().filter(|_| self.0.take().is_some()) else { return };
        if let Err(error) = set_idle(pid, false) {
            tracing::warn!(%error, pid, "a VMM cannot be given its priority back");
        }
    }
}

/// A request that waits for its answer.
#[derive(PartialEq)]
enum Open {
    Status,
    Suspend,
    Stop,
    Other,
}

/// Completes when a VMM that lives has said something. What that is, is read later.
async fn first_word(control: &UnixStream) {
    if control.readable().await.is_err() || !is_open(control) {
        std::future::pending().await
    }
}

/// Completes when the actor says `Kill`; what it says otherwise before there is a VM has no meaning yet.
async fn killed(commands: &mut mpsc::UnboundedReceiver<VmCommand>) {
    loop {
        match commands.recv().await {
            Some(VmCommand::Kill) => return,
            Some(_) => {}
            None => std::future::pending().await,
        }
    }
}

async fn cancel(socket: PathBuf, id: crate::identity::DatabaseId) {
    let asked: io::Result<()> = async {
        let (mut lines, mut sender) = split(connect(&socket).await?);
        sender.send(&Request::Cancel).await?;
        while let Some(message) = lines.next().await? {
            if let Message::Answer(answer) = message {
                tracing::debug!(database = %id, ?answer, "suspend called off");
                break;
            }
        }
        Ok(())
    }
    .await;
    if let Err(error) = asked {
        // The suspend's own answer says what became of it.
        tracing::debug!(database = %id, %error, "cancel");
    }
}
