//! From the command line to a running guest: which of the three ways a guest begins, and everything around it.

use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::boot::{self, BootError};
use crate::clock::Clock;
use crate::fs::{FsDevice, FsError, FsOptions};
use crate::guest::{End, Guest, RunError};
use crate::image::{Image, ImageError};
use crate::machine::{Machine, MachineError, MemoryError, Ram};
use crate::monitor::{Life, Monitor, Pace};
use crate::settings::{Settings, make_dir};
use crate::shared::SharedPage;
use crate::virtio::console::Console;
use crate::virtio::files::FileServer;
use crate::virtio::vsock::Vsock;
use crate::virtio::{QueueError, rng};

/// Why a VMM ended other than as it should.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("{0}")]
    Usage(String),
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error(transparent)]
    Machine(#[from] MachineError),
    #[error("the data directory: {0}")]
    Files(#[from] FsError),
    #[error(transparent)]
    Boot(#[from] BootError),
    #[error(transparent)]
    Queue(#[from] QueueError),
    #[error(transparent)]
    Run(#[from] RunError),
    #[error("{what}: {source}")]
    Io { what: String, source: io::Error },
}

impl From<MemoryError> for StartError {
    fn from(error: MemoryError) -> Self {
        Self::Machine(error.into())
    }
}

impl StartError {
    /// The process' exit status.
    pub fn code(&self) -> u8 {
        match self {
            Self::Usage(_) => 64,
            Self::Machine(MachineError::NoKvm(_)) => 69,
            Self::Files(FsError::LayerLocked(_)) => 73,
            _ => 74,
        }
    }

    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}

/// A name for one life of a guest's memory: 16 hexadecimal digits.
pub(crate) fn new_epoch() -> io::Result<String> {
    let mut bytes = [0; 8];
    rng::fill(&mut bytes)?;
    Ok(format!("{:016x}", u64::from_le_bytes(bytes)))
}

/// A guest ready for its first instruction in this process, and what is told of it.
pub(crate) struct Begun {
    pub machine: Machine,
    pub files: Box<dyn FileServer>,
    pub vsock: Vsock,
    pub clock: Clock,
    pub positions: crate::guest::Positions,
    pub epoch: String,
    pub cold: bool,
}

/// Runs the VMM that the settings ask for.
pub fn run(settings: &Settings, started: Instant) -> Result<End, StartError> {
    settings.check().map_err(StartError::Usage)?;
    let mut life = Life { epoch: String::new(), cold: true, trace: Vec::new(), started };
    let image = Image::find(settings)?;
    let database_dir = settings.database_dir();
    let run_dir = settings.run_dir();
    for dir in [&database_dir.join("layer"), &run_dir] {
        make_dir(dir).map_err(StartError::io(format!("cannot make {}", dir.display())))?;
    }
    let options = FsOptions { storage_limit: settings.storage_bytes, ..FsOptions::new(image.template.clone()) };
    let begun = cold(settings, &image, &database_dir, options, &mut life)?;
    attend(settings, begun, &database_dir, &run_dir, life)
}

/// Boots the image.
fn cold(
    settings: &Settings,
    image: &Image,
    database_dir: &Path,
    options: FsOptions,
    life: &mut Life,
) -> Result<Begun, StartError> {
    let files = FsDevice::open(&database_dir.join("layer"), &image.template_dir, options)?;
    life.step("layer");
    let machine = Machine::new(Ram::new(settings.memory_mib << 20)?)?;
    life.step("machine");
    boot::boot(&machine, &image.boot)?;
    life.step("memory");
    let shared = SharedPage::new(&machine.ram);
    shared.set_next_deadline(u64::MAX);
    Ok(Begun {
        vsock: Vsock::new(machine.ram.view().clone())?,
        clock: Clock::new(machine.tsc_khz, 0),
        files: Box::new(files),
        positions: Default::default(),
        epoch: new_epoch().map_err(StartError::io("no random bytes"))?,
        cold: true,
        machine,
    })
}

/// Opens the sockets and runs the guest to its end.
fn attend(
    settings: &Settings,
    begun: Begun,
    database_dir: &Path,
    run_dir: &Path,
    mut life: Life,
) -> Result<End, StartError> {
    let Begun { mut machine, files, vsock, mut clock, positions, epoch, cold } = begun;
    (life.epoch, life.cold) = (epoch, cold);
    let shared = SharedPage::new(&machine.ram);
    shared.refill_entropy().map_err(StartError::io("no random bytes"))?;
    let log = database_dir.join("console.log");
    let console = Console::open(&log, settings.foreground)
        .map_err(StartError::io(format!("cannot open {}", log.display())))?;
    let listen = |name: &str| {
        crate::sockets::listen(run_dir, name)
            .map_err(StartError::io(format!("cannot listen at {}", run_dir.join(name).display())))
    };
    let sockets = (listen("vm.sock")?, listen("vm.ctl")?);
    life.step("listening");
    tracing::info!(database = settings.database, epoch = life.epoch, cold, "guest begins");
    clock.publish(&shared);
    let pace = Pace {
        tick: Duration::from_millis(settings.tick_ms),
        unattended: (settings.unattended_s > 0).then(|| Duration::from_secs(settings.unattended_s)),
    };
    let immediate_exit = &raw mut machine.vcpu.get_kvm_run().immediate_exit;
    let monitor = Monitor::new(shared, clock, pace, vsock, sockets, life, immediate_exit)
        .map_err(StartError::io("cannot watch sockets"))?;
    let mut guest = Guest::new(machine, Arc::clone(&monitor), files, console, positions)?;
    let io_thread = monitor.start().map_err(StartError::io("cannot start a thread"))?;
    let end = guest.run(&mut NoSuspend);
    drop(io_thread);
    drop(guest);
    Ok(end?)
}

struct NoSuspend;
impl crate::guest::Suspender for NoSuspend {
    fn suspend(&mut self, _: &mut Guest, _: &crate::monitor::Commit) -> Result<(), String> {
        Err("not built".to_owned())
    }
}

/// The exit status of a run.
pub fn exit_code(result: &Result<End, StartError>) -> ExitCode {
    match result {
        Ok(End::Suspended | End::Exit(0)) => ExitCode::SUCCESS,
        Ok(End::Exit(code)) => ExitCode::from(10u8.saturating_add(u8::try_from(*code).unwrap_or(u8::MAX))),
        Err(error) => ExitCode::from(error.code()),
    }
}
