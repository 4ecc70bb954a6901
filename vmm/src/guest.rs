//! The vCPU thread: runs the guest, serves its doorbell, and waits when it halts.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dormouse_abi::{DOORBELL, QUEUE_SIZE, VECTOR_EVENT, doorbell, exit, queue};
use kvm_ioctls::VcpuExit;
use virtio_queue::Queue;

use crate::machine::{Machine, raw};
use crate::monitor::{Io, Monitor, Order, Phase};
use crate::profile::Reason;
use crate::reactor::Events;
use crate::reclaim::Reclaim;
use crate::tasks::{self, Place};
use crate::virtio::console::Console;
use crate::virtio::files::{FileServer, Files};
use crate::virtio::{QueueError, position, rng};

/// Why a guest could not be run on.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The guest did something that no guest of ours does. Registers are in the message.
    #[error("the guest {what}; {registers}")]
    Guest { what: String, registers: String },
    /// KVM would not run it.
    #[error("cannot run the guest: {0}")]
    Kvm(io::Error),
    /// The sockets could not be waited for.
    #[error("cannot wait for sockets: {0}")]
    Wait(io::Error),
}

/// How a guest's life in this process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Its snapshot is committed.
    Suspended,
    /// It wrote this code to the EXIT doorbell.
    Exit(u32),
    /// It made no progress any more and was ended.
    Hung,
    /// It was never begun: nobody claimed the VMM that stood by.
    Unclaimed,
    /// None was to be begun: a task with its files is done.
    CarriedOut,
}

/// Positions of the queues that the vCPU thread serves: (next available, next used) of fs, rng, console.
pub type Positions = [(u16, u16); 3];

/// What the vCPU thread does next.
enum Step {
    Enter,
    End(End),
}

/// The guest, as its thread has it.
pub struct Guest {
    pub machine: Machine,
    pub monitor: Arc<Monitor>,
    pub files: Box<dyn FileServer>,
    pub console: Console,
    requests: Files,
    rng_queue: Queue,
    console_queue: Queue,
    events: Events,
    reclaim: Reclaim,
}

/// What a suspend has to know beyond the guest: called when it is halted and drained.
pub trait Suspender {
    /// Writes the snapshot. `Ok` means committed. The error is what the asker is told.
    fn suspend(&mut self, guest: &mut Guest, commit: &Arc<crate::monitor::Commit>) -> Result<(), String>;
    /// True if the guest is to be suspended though nobody asks.
    fn wants(&self, _io: &Io) -> bool {
        false
    }
    /// `None` if the guest may be saved now, else when to look again (golden baking opens the parked connections
    /// here).
    fn prepare(&mut self, _monitor: &Monitor, _io: &mut Io) -> Option<Duration> {
        None
    }
}

/// An MMIO write, copied out of the run page.
enum Exit {
    Write(u64, u32),
    Interrupted,
    WindowOpen,
    Other(String),
}

impl Guest {
    pub fn new(
        machine: Machine,
        monitor: Arc<Monitor>,
        files: Box<dyn FileServer>,
        console: Console,
        positions: Positions,
    ) -> Result<Self, QueueError> {
        let announcer = Arc::clone(&monitor);
        Ok(Self {
            requests: Files::new(machine.ram.clone(), positions[0], move || announcer.announce())?,
            machine,
            monitor,
            files,
            console,
            rng_queue: crate::virtio::queue(queue::RNG, positions[1])?,
            console_queue: crate::virtio::queue(queue::CONSOLE, positions[2])?,
            events: Events::default(),
            reclaim: Reclaim::default(),
        })
    }

    /// For the snapshot.
    pub fn positions(&self) -> Positions {
        [self.requests.position(), position(&self.rng_queue), position(&self.console_queue)]
    }

    /// Runs the guest until it ends or is suspended.
    pub fn run(&mut self, suspender: &mut dyn Suspender) -> Result<End, RunError> {
        loop {
            if self.obey() {
                return Ok(End::Hung);
            }
            self.prepare_interrupt()?;
            let exit = match self.machine.vcpu.run() {
                Ok(VcpuExit::MmioWrite(address, data)) => match <[u8; 4]>::try_from(data) {
                    Ok(value) => Exit::Write(address, u32::from_le_bytes(value)),
                    Err(_) => {
                        Exit::Other(format!("wrote {} bytes at {address:#x}, where there is no memory", data.len()))
                    }
                },
                Ok(VcpuExit::MmioRead(address, _)) => {
                    Exit::Other(format!("read from {address:#x}, where there is no memory"))
                }
                Ok(VcpuExit::IrqWindowOpen) => Exit::WindowOpen,
                Ok(VcpuExit::Intr) => Exit::Interrupted,
                Ok(other) => Exit::Other(format!("left by an exit that has no meaning here: {other:?}")),
                Err(error) if error.errno() == libc::EINTR || error.errno() == libc::EAGAIN => Exit::Interrupted,
                Err(error) => return Err(RunError::Kvm(io::Error::from_raw_os_error(error.errno()))),
            };
            match exit {
                Exit::Write(address, value) => match address.wrapping_sub(DOORBELL) {
                    doorbell::NOTIFY => self.notify(value),
                    doorbell::HALT => match self.halt(suspender)? {
                        Step::Enter => {}
                        Step::End(end) => return Ok(end),
                    },
                    doorbell::EXIT => return Ok(self.ended(value)),
                    doorbell::PUTCHAR => self.console.put(value as u8),
                    _ => return Err(self.failed(format!("wrote {value:#x} at {address:#x}, which is no doorbell"))),
                },
                Exit::Interrupted => self.interrupted(),
                Exit::WindowOpen => {}
                Exit::Other(what) => return Err(self.failed(what)),
            }
        }
    }

    /// A signal took the vCPU out of the guest.
    fn interrupted(&self) {
        let profile = &self.monitor.profile;
        if profile.is_on()
            && let Ok(regs) = self.machine.vcpu.get_regs()
        {
            profile.sample(regs.rip);
        }
        profile.count(Reason::Signal);
    }

    /// Injects the event interrupt if one is wanted and the guest can take it.
    fn prepare_interrupt(&mut self) -> Result<(), RunError> {
        let wanted = self.monitor.kicked();
        let run = self.machine.vcpu.get_kvm_run();
        if !wanted {
            run.request_interrupt_window = 0;
            return Ok(());
        }
        if run.ready_for_interrupt_injection != 0 && run.if_flag != 0 {
            run.request_interrupt_window = 0;
            self.monitor.interrupt_done();
            self.monitor.profile.count(Reason::Event);
            raw::interrupt(&self.machine.vcpu, VECTOR_EVENT).map_err(RunError::Kvm)
        } else {
            run.request_interrupt_window = 1;
            Ok(())
        }
    }

    /// The NOTIFY doorbell: bit `n` of `mask` is queue `n`.
    fn notify(&mut self, mask: u32) {
        let has = |index: usize| mask & (1 << index) != 0;
        let profile = &self.monitor.profile;
        profile.count(match () {
            () if has(queue::FS) => Reason::Files,
            () if has(queue::VSOCK_RX) || has(queue::VSOCK_TX) => Reason::Sockets,
            () => Reason::Devices,
        });
        if has(queue::FS) {
            // First what clients wait for: the file may take long.
            let mut io = self.monitor.io();
            if io.vsock.awaited() {
                self.monitor.turn(&mut io);
            }
            drop(io);
            self.requests.serve(&mut *self.files);
        }
        if has(queue::RNG) {
            rng::serve(&mut self.rng_queue, self.machine.ram.view());
        }
        if has(queue::CONSOLE) {
            self.console.serve(&mut self.console_queue, self.machine.ram.view());
        }
        if has(queue::VSOCK_RX) || has(queue::VSOCK_TX) {
            self.monitor.turn(&mut self.monitor.io());
        }
    }

    /// The HALT doorbell: serves everything, then waits for a reason to enter the guest again.
    fn halt(&mut self, suspender: &mut dyn Suspender) -> Result<Step, RunError> {
        self.monitor.profile.count(Reason::Halt);
        let memory = self.machine.ram.view();
        let mut served = self.requests.serve(&mut *self.files);
        served |= rng::serve(&mut self.rng_queue, memory);
        self.console.serve(&mut self.console_queue, memory);
        let monitor = Arc::clone(&self.monitor);
        monitor.enter(Phase::Halted);
        self.reclaim.ran();
        let step = loop {
            if self.obey() {
                break Step::End(End::Hung);
            }
            let timeout = {
                let mut io = monitor.io();
                monitor.turn(&mut io);
                monitor.refresh_clock();
                let now = monitor.clock().now();
                let deadline = monitor.shared.get_next_deadline();
                if served || monitor.shared.get_event() != 0 || deadline <= now {
                    break Step::Enter;
                }
                let look = monitor.idleness(&mut io);
                let mut prepared = None;
                if io.suspend.is_none() && suspender.wants(&io) {
                    prepared = io.pause();
                    if prepared.is_none() {
                        io.suspend_unasked();
                    }
                }
                if io.suspend.is_some() {
                    prepared = suspender.prepare(&monitor, &mut io);
                    if prepared.is_none() {
                        drop(io);
                        if self.suspend(suspender) {
                            break Step::End(End::Suspended);
                        }
                        continue;
                    }
                }
                let closing = io.vsock.deadline().map(|at| at.saturating_duration_since(Instant::now()));
                let timer = (deadline != u64::MAX).then(|| Duration::from_nanos(deadline - now));
                [look, closing, timer, prepared]
            };
            // SAFETY: this thread is the vCPU's, the guest is halted, and devices only use what the guest has taken.
            let reclaim = unsafe { self.reclaim.look(&self.machine.ram, &monitor.shared) };
            let timeout = timeout.into_iter().chain([reclaim]).flatten().min();
            monitor.reactor.wait(&mut self.events, timeout).map_err(RunError::Wait)?;
            monitor.dispatch(&mut monitor.io(), &self.events);
        };
        if matches!(step, Step::Enter) {
            // The guest looks up at once: an interrupt would only tell it what it is about to see.
            monitor.interrupt_done();
            monitor.enter(Phase::Running);
        }
        Ok(step)
    }

    /// Tries the suspend that has been asked for; true if it is committed.
    fn suspend(&mut self, suspender: &mut dyn Suspender) -> bool {
        let monitor = Arc::clone(&self.monitor);
        let commit = {
            let mut io = monitor.io();
            let Some(suspend) = io.suspend.clone() else { return false };
            // The I/O thread or a flush may have handed the guest something since the last look.
            let news = self.requests.is_busy() || monitor.shared.get_event() != 0;
            if news || monitor.shared.get_busy() != 0 || !io.vsock.settled() || io.sessions.waiting() {
                io.suspended("busy");
                return false;
            }
            io.vsock.hold_rest();
            if let Some(sessions) = &suspend.sessions
                && let Err(error) = compare(&io.vsock.sessions(), &io.vsock.attached(), sessions)
            {
                io.suspended(&error);
                return false;
            }
            monitor.enter(Phase::Saving);
            suspend.commit
        };
        let result = suspender.suspend(self, &commit);
        let mut io = monitor.io();
        match result {
            Ok(()) => {
                io.committed();
                true
            }
            Err(error) => {
                io.suspended(if commit.cancelled() { "cancelled" } else { &error });
                monitor.enter(Phase::Halted);
                false
            }
        }
    }

    /// Carries out the monitor's orders; true if the guest is to be ended.
    fn obey(&mut self) -> bool {
        let Some(ordered) = self.monitor.take_orders() else { return false };
        let registers = self.machine.vcpu.get_regs().ok();
        let place = registers.map(|regs| Place { rip: regs.rip, rsp: regs.rsp, rbp: regs.rbp });
        let report = tasks::report(self.machine.ram.view(), place, self.monitor.clock().now());
        let report = self.console.named(&report);
        let hung = ordered(Order::Hung);
        if hung {
            tracing::error!("the guest makes no progress: its tasks are in its console log; it is ended");
            self.console.serve(&mut self.console_queue, self.machine.ram.view());
            self.console.flush();
            let registers = self.registers();
            let story = format!("watchdog: no progress; the guest is ended. {registers}\nIts tasks:\n{report}");
            self.console.write(story.as_bytes());
        }
        self.monitor.io().tell_tasks(&report);
        hung
    }

    /// The EXIT doorbell.
    fn ended(&mut self, code: u32) -> End {
        self.console.serve(&mut self.console_queue, self.machine.ram.view());
        self.console.flush();
        let mut io = self.monitor.io();
        self.monitor.turn(&mut io);
        io.stopped(code == exit::CLEAN);
        End::Exit(code)
    }

    /// An error with the registers that a reader of the log needs.
    fn failed(&mut self, what: String) -> RunError {
        self.console.serve(&mut self.console_queue, self.machine.ram.view());
        self.console.flush();
        RunError::Guest { what, registers: self.registers() }
    }

    /// All general registers, for the log.
    fn registers(&self) -> String {
        match (self.machine.vcpu.get_regs(), self.machine.vcpu.get_sregs()) {
            (Ok(regs), Ok(sregs)) => format!(
                "rip={:#x} rsp={:#x} rflags={:#x} cr2={:#x} cs={:#x} rax={:#x} rbx={:#x} rcx={:#x} rdx={:#x} rsi={:#x} \
                 rdi={:#x} rbp={:#x} r8={:#x} r9={:#x} r10={:#x} r11={:#x} r12={:#x} r13={:#x} r14={:#x} r15={:#x} \
                 fs={:#x}",
                regs.rip,
                regs.rsp,
                regs.rflags,
                sregs.cr2,
                sregs.cs.selector,
                regs.rax,
                regs.rbx,
                regs.rcx,
                regs.rdx,
                regs.rsi,
                regs.rdi,
                regs.rbp,
                regs.r8,
                regs.r9,
                regs.r10,
                regs.r11,
                regs.r12,
                regs.r13,
                regs.r14,
                regs.r15,
                sregs.fs.base,
            ),
            _ => "its registers cannot be read".to_owned(),
        }
    }
}

/// The pooler's counts against the VMM's. It has to name every session that it holds.
fn compare(
    ours: &[crate::virtio::vsock::Counts],
    attached: &[u64],
    theirs: &[crate::control::SessionCounts],
) -> Result<(), String> {
    if let Some(session) = attached.iter().find(|session| theirs.iter().all(|one| one.session != **session)) {
        return Err(format!("session {session} is connected and not in the request"));
    }
    for one in theirs {
        match ours.iter().find(|our| our.session == one.session) {
            None => return Err(format!("there is no session {}", one.session)),
            Some(our) if our.received != one.sent || our.sent != one.received => {
                return Err("bytes_in_flight".to_owned());
            }
            Some(_) => {}
        }
    }
    Ok(())
}

const _: () = assert!(QUEUE_SIZE.is_power_of_two());

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::SessionCounts;
    use crate::virtio::vsock::Counts;

    #[test]
    fn bytes_under_way_call_a_suspend_off() {
        let ours = [Counts { session: 1, received: 10, sent: 20 }];
        let theirs = |sent, received| [SessionCounts { session: 1, sent, received }];
        assert_eq!(compare(&ours, &[1], &theirs(10, 20)), Ok(()));
        assert_eq!(compare(&ours, &[1], &theirs(11, 20)), Err("bytes_in_flight".to_owned()));
        assert_eq!(compare(&ours, &[1], &theirs(10, 19)), Err("bytes_in_flight".to_owned()));
        assert!(compare(&ours, &[1], &[SessionCounts { session: 2, sent: 0, received: 0 }]).is_err());
        assert_eq!(compare(&ours, &[], &[]), Ok(()), "sessions that nobody holds sleep as they are");
        assert!(compare(&ours, &[1], &[]).is_err(), "one that somebody holds has to be counted");
    }
}
