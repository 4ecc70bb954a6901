//! From the command line to a running guest: which of the ways a guest begins, and everything around it.

mod packed;

use std::cell::Cell;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dormouse_images::manifest::file;

use crate::boot::{self, BootError};
use crate::clock::Clock;
use crate::codec::Reader;
use crate::control::LISTENING;
use crate::crash;
use crate::fs::{FsDevice, FsError, FsOptions};
use crate::guest::{End, Guest, RunError};
use crate::heap;
use crate::image::{Image, ImageError};
use crate::jail::{self, Apart, powers};
use crate::layer::pack::hold;
use crate::machine::{Host, Machine, MachineError, MemoryError, Ram};
use crate::monitor::{Life, Monitor, Pace};
use crate::pack::PackError;
use crate::reactor::Terminate;
use crate::settings::{Settings, make_dir};
use crate::shared::SharedPage;
use crate::sleep::{Sleeper, Target};
use crate::snapshot::format::{Extent, Header, VERSION};
use crate::snapshot::hot::{self, Touch};
use crate::snapshot::pages::{self, Base};
use crate::snapshot::read::{Fit, ReadError, Snapshot};
use crate::snapshot::spent::{self, Spending};
use crate::snapshot::write::{self, NAME};
use crate::snapshot::{State, layer_copy};
use crate::sockets::Listeners;
use crate::standby::{self, Claim, Standby};
use crate::symbols::{Programs, Symbols};
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
    #[error("its files are gone: its folder \"layer\" is empty, and had data. Put it back, whole, or delete the database")]
    Lost,
    #[error(transparent)]
    Pack(#[from] PackError),
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
            Self::Pack(error) => error.code(),
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
struct Begun {
    machine: Machine,
    files: Box<dyn FileServer>,
    vsock: Vsock,
    clock: Clock,
    positions: crate::guest::Positions,
    epoch: String,
    cold: bool,
    base: Option<Base>,
    spending: Option<Spending>,
}

/// A machine, and what it was given of the golden guest before it was known whose it is.
struct Made {
    machine: Machine,
    /// The golden memory, which is mapped already.
    golden: Option<Base>,
}

impl Made {
    fn new(host: &Host, settings: &Settings) -> Result<Self, MachineError> {
        Ok(Self { machine: Machine::new(host, Ram::new(settings.memory_mib << 20)?)?, golden: None })
    }

    /// Itself, unless another golden memory than `base` is mapped: then one made anew. Of none, "" is the name.
    fn over(self, base: &str, host: &Host, settings: &Settings) -> Result<Self, MachineError> {
        match &self.golden {
            Some(golden) if golden.name != base => self.anew(host, settings),
            _ => Ok(self),
        }
    }

    /// Another in its place. Not both at once: that would take twice the memory's addresses.
    fn anew(self, host: &Host, settings: &Settings) -> Result<Self, MachineError> {
        drop(self);
        Self::new(host, settings)
    }
}

/// Everything a beginning depends on.
struct Place<'a> {
    settings: &'a Settings,
    image: &'a Image,
    host: &'a Host,
    outside: Outside,
    layer: PathBuf,
    /// Whether the server was told that sessions may come.
    told: Cell<bool>,
}

/// What a VMM has of the host.
struct Outside {
    folder: Folder,
    sockets: Listeners,
    /// The server that claimed it.
    server: Option<UnixStream>,
}

/// Where a database lies.
struct Folder {
    path: PathBuf,
    /// Its mount: closing the last descriptor of one that is attached nowhere takes half a millisecond.
    _mount: Option<OwnedFd>,
}

impl Folder {
    /// By its path.
    fn find(settings: &Settings) -> Self {
        Self { path: settings.database_dir(), _mount: None }
    }

    /// As it was handed over; it is the current one from now on.
    fn handed_over(folder: Option<OwnedFd>) -> io::Result<Self> {
        let folder = folder.ok_or_else(|| io::Error::other("the claim came without the database's folder"))?;
        // SAFETY: takes an integer.
        if unsafe { libc::fchdir(folder.as_raw_fd()) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { path: PathBuf::from("."), _mount: Some(folder) })
    }
}

/// Runs the VMM that the settings ask for.
pub fn run(settings: &Settings, started: Instant) -> Result<End, StartError> {
    settings.check().map_err(StartError::Usage)?;
    let host = Host::open()?;
    let unclaimed = |source| StartError::Io { what: "cannot be claimed".to_owned(), source };
    let standby = settings.standby.then(|| Standby::new(&settings.database)).transpose().map_err(unclaimed)?;
    // To root the map would show where in the host's memory they lie.
    let pagemap = powers::without(pages::pagemap).and_then(|opened| opened);
    pagemap.map_err(StartError::io("cannot read which pages are there"))?;
    let dir = settings.sockets_dir();
    let sockets = make_dir(&dir).and_then(|()| match &standby {
        Some(standby) => standby.listen(&dir),
        None => Listeners::new(&dir).map(Some),
    });
    let Some(sockets) = sockets.map_err(StartError::io("cannot listen in run/vmms"))? else { return Ok(End::Unclaimed) };
    let apart = jail::enter(settings).map_err(StartError::io("the jail cannot be entered (setting host.jail)"))?;
    // In there it is at the root.
    let home = if apart.is_some() { PathBuf::from("/") } else { settings.home.clone() };
    let settings = &Settings { home, ..settings.clone() };
    let image = Image::find(settings)?;
    let mut made = Made::new(&host, settings)?;
    let Some(standby) = standby else {
        close_jail(settings, &image, None)?;
        let outside = Outside { folder: Folder::find(settings), sockets, server: None };
        return run_as(settings, &image, &host, made, outside, started);
    };
    let mut touch = None;
    if let Some(dir) = &image.golden_dir {
        match map_golden(&made.machine, dir) {
            Ok((base, listed)) => (made.golden, touch) = (Some(base), listed),
            Err(error) => {
                // Whoever claims this process finds out for herself, and says so; with memory of which no part is mapped.
                tracing::warn!(%error, "no golden memory");
                made = made.anew(&host, settings)?;
            }
        }
    }
    heap::have_ready();
    close_jail(settings, &image, apart.as_ref())?;
    // Behind the jail, which a thread that KVM makes here is to have as well.
    made.machine.enter_and_leave()?;
    let is_apart = apart.is_some();
    let begun = Instant::now();
    if let Some(touch) = touch
        && let Err(error) = touch.run(&mut made.machine, || standby.is_wanted() || begun.elapsed() > TOUCHING)
    {
        tracing::warn!(%error, "no golden memory: its guest does not run");
        made = made.anew(&host, settings)?;
    }
    standby.say_ready(apart).map_err(unclaimed)?;
    let Some((claim, lent, server)) = standby.wait().map_err(unclaimed)? else { return Ok(End::Unclaimed) };
    let started = Instant::now();
    let Claim { database, storage_bytes, written, task } = claim;
    let settings = Settings { database, storage_bytes, written, task, ..settings.clone() };
    settings.check().map_err(StartError::Usage)?;
    let folder = if is_apart { Folder::handed_over(lent).map_err(unclaimed)? } else { Folder::find(&settings) };
    standby::log_to(&folder.path.join("vmm.log")).map_err(unclaimed)?;
    // The host may have slept since, which shifts what the guest would read.
    made.machine.read_host_tsc()?;
    run_as(&settings, &image, &host, made, Outside { folder, sockets, server: Some(server) }, started)
}

/// The most time for touching pages beforehand: many times what it takes where the golden memory is in the host's cache.
const TOUCHING: Duration = Duration::from_secs(2);

/// From here on nothing but a guest is to be begun.
fn close_jail(settings: &Settings, image: &Image, apart: Option<&Apart>) -> Result<(), StartError> {
    if settings.no_jail {
        tracing::warn!("THE JAIL IS OFF: whoever takes this process over can do what its user can (setting host.jail)");
        return Ok(());
    }
    jail::close(settings, image, apart).map_err(StartError::io("the jail cannot be closed (setting host.jail)"))
}

fn run_as(
    settings: &Settings,
    image: &Image,
    host: &Host,
    made: Made,
    outside: Outside,
    started: Instant,
) -> Result<End, StartError> {
    let mut life = Life { epoch: String::new(), cold: true, why: None, settings_undone: false, trace: Vec::new(), started };
    life.step("machine");
    let database = &outside.folder.path;
    let layer = database.join("layer");
    // Whoever only packs or unpacks one must not make it: that it is not there says that data is lost.
    if settings.task.is_none() {
        make_dir(&layer).map_err(StartError::io(format!("cannot make {}", layer.display())))?;
    }
    jail::landlock::keep_to(database).map_err(StartError::io("the jail cannot be closed (setting host.jail)"))?;
    if let Some(task) = settings.task {
        // By which the next server tells one that can be gone on with.
        drop(outside.sockets);
        packed::carry_out(task, database, &settings.database)?;
        return Ok(End::CarriedOut);
    }
    let image = image.clone().over(crate::layer::template_of(&layer)?, settings);
    let place = Place { settings, image: &image, host, outside, layer, told: Cell::new(false) };
    // Before any thread is made: all must have SIGTERM blocked.
    let terminate = Terminate::new().map_err(StartError::io("cannot wait for signals"))?;
    let begun = place.begin(made, &mut life)?;
    place.attend(begun, life, terminate)
}

fn golden_base(image: &Image, machine: &Machine, name: &str) -> Result<Base, ReadError> {
    let gone = |why: String| ReadError::Base(why);
    let dir = image.golden_dir.as_ref().ok_or_else(|| gone("no image is named".to_owned()))?;
    let golden = Snapshot::open(&dir.join(file::STATE))?
        .ok_or_else(|| gone(format!("there is none in {}", dir.display())))?;
    if golden.header.base != name {
        return Err(gone(format!("it is {}, not {name}", golden.header.base)));
    }
    golden.memory(dir, machine.ram.len())
}

/// Maps the golden memory, as most that are restored or cloned want it, and makes the pages that they change their own; gives what
/// their guests touch.
fn map_golden(machine: &Machine, dir: &Path) -> Result<(Base, Option<Touch>), ReadError> {
    let golden = Snapshot::open(&dir.join(file::STATE))?
        .ok_or_else(|| ReadError::Base(format!("there is none in {}", dir.display())))?;
    let base = golden.memory(dir, machine.ram.len())?;
    base.map(&machine.ram)?;
    if let Err(error) = hot::own(&machine.ram, &dir.join(file::HOT)) {
        tracing::warn!(%error, "the list of pages to have ready cannot be read");
    }
    let touch = Touch::open(machine, &golden, &dir.join(file::TOUCHED)).unwrap_or_else(|error| {
        tracing::warn!(%error, "the list of pages to touch cannot be read");
        None
    });
    Ok((base, touch))
}

impl Place<'_> {
    fn options(&self) -> FsOptions {
        FsOptions { storage_limit: self.settings.storage_bytes, ..FsOptions::new(self.image.template.clone()) }
    }

    fn share(&self, files: &mut FsDevice) -> Result<(), FsError> {
        let Some(folder) = self.settings.share() else { return Ok(()) };
        files.share(folder).map_err(|source| FsError::Io { what: format!("cannot open {}", folder.display()), source })
    }

    fn fit<'a>(&'a self, machine: &'a Machine, database: &'a str) -> Fit<'a> {
        Fit {
            database,
            image: &self.image.name,
            template: &self.image.template,
            identity: &machine.identity,
            memory: machine.ram.len(),
        }
    }

    /// Tells whoever waits for that to connect: the layer is held, so this is the database's VMM. Before memory is filled, so that
    /// sessions connect meanwhile. Their connections outlast a restore that fails.
    fn tell_listening(&self, life: &mut Life) {
        if !self.told.replace(true) {
            if let Some(mut server) = self.outside.server.as_ref() {
                // One that is gone is found to be so by whoever reads next.
                let _ = server.write_all(LISTENING);
            }
            life.step("listening");
        }
    }

    /// The ways to begin, in order of preference.
    fn begin(&self, made: Made, life: &mut Life) -> Result<Begun, StartError> {
        // Where there is one it is the truth, whatever lies beside it.
        if let Some(packed) = self.packed()? {
            return self.begin_packed(made, packed, life);
        }
        if self.settings.cold || self.settings.golden.is_some() {
            return self.boot(made, life);
        }
        let path = self.outside.folder.path.join(NAME);
        match Snapshot::open(&path) {
            Ok(None) => {}
            found => {
                let result = found.and_then(|snapshot| match snapshot {
                    Some(snapshot) => self.restore(made, snapshot, life),
                    None => Err(ReadError::State),
                });
                match result {
                    Ok(begun) => return Ok(begun),
                    Err(ReadError::Files(locked @ FsError::LayerLocked(_))) => return Err(locked.into()),
                    Err(error) => {
                        tracing::warn!(%error, "the snapshot cannot be used: the database starts cold");
                        life.why = Some(format!("its snapshot cannot be used: {error}"));
                    }
                }
                return self.boot(Made::new(self.host, self.settings)?, life);
            }
        }
        if let Some(dir) = &self.image.golden_dir
            && !self.settings.written
            && crate::layer::is_empty(&self.layer)?
        {
            match self.clone_golden(made, dir, life) {
                Ok(Some(begun)) => return Ok(begun),
                Ok(None) => {}
                Err(ReadError::Files(locked @ FsError::LayerLocked(_))) => return Err(locked.into()),
                Err(error) => {
                    tracing::warn!(%error, "the golden snapshot cannot be used: the database starts cold");
                    life.why = Some(format!("the golden snapshot cannot be used: {error}"));
                }
            }
            return self.boot(Made::new(self.host, self.settings)?, life);
        }
        self.boot(made, life)
    }

    /// Boots the image, after a snapshot that may lie there has been moved out of the way.
    fn boot(&self, made: Made, life: &mut Life) -> Result<Begun, StartError> {
        if self.settings.written && crate::layer::is_empty(&self.layer)? {
            return Err(StartError::Lost);
        }
        // A boot wants memory of zeroes.
        let Made { machine, .. } = made.over("", self.host, self.settings)?;
        let aside = "cannot move the snapshot aside";
        {
            let _lock = hold(&self.layer)?;
            spent::refuse(&self.outside.folder.path).map_err(StartError::io(aside))?;
        }
        let mut files = FsDevice::open(&self.layer, &self.image.template_dir, self.options())?;
        self.share(&mut files)?;
        let shared = SharedPage::new(&machine.ram);
        files.set_recovering(Box::new(move || shared.get_ready() == 0));
        life.step("layer");
        let golden = self.golden_to_boot(&machine);
        // Where Postgres' text has to be copied it has large pages.
        machine.ram.prefer_large(golden.is_none());
        boot::boot(&machine, &self.image.boot, golden.as_ref())?;
        // Until it has run for a while, as after a restore: each of its first processes wants a part of a large page.
        machine.ram.prefer_large(false);
        life.step("memory");
        SharedPage::new(&machine.ram).set_next_deadline(u64::MAX);
        Ok(Begun {
            vsock: Vsock::new(machine.ram.view().clone())?,
            clock: Clock::new(machine.tsc_khz, 0),
            files: Box::new(files),
            positions: Default::default(),
            epoch: new_epoch().map_err(StartError::io("no random bytes"))?,
            cold: true,
            base: golden,
            spending: None,
            machine,
        })
    }

    /// The golden memory that a guest that is booted shares, and its snapshot will differ from. None for the golden guest itself, nor
    /// where nothing is to be believed but the image.
    fn golden_to_boot(&self, machine: &Machine) -> Option<Base> {
        let dir = self.image.golden_dir.as_ref().filter(|_| self.settings.golden.is_none() && !self.settings.cold)?;
        Snapshot::golden_memory(dir, &self.image.name, machine.ram.len())
    }

    /// Goes on from the database's own snapshot.
    fn restore(&self, made: Made, snapshot: Snapshot, life: &mut Life) -> Result<Begun, ReadError> {
        crash::point("restore-begun");
        let Made { machine, golden } = made.over(&snapshot.header.base, self.host, self.settings)?;
        snapshot.check(&self.fit(&machine, &self.settings.database))?;
        let state = State::decode(&snapshot.state)?;
        life.step("snapshot");
        let mut files = FsDevice::restore(&self.layer, &self.image.template_dir, self.options(), &state.files)?;
        if self.outside.folder.path.join(crate::pack::NAME).exists() {
            // It was packed in the moment before its lock was ours. Whoever tries again finds that.
            return Err(ReadError::Files(FsError::LayerLocked(self.layer.clone())));
        }
        self.share(&mut files)?;
        life.step("layer");
        self.tell_listening(life);
        let base = match (snapshot.header.base.as_str(), golden) {
            ("", _) => None,
            (_, Some(golden)) => Some(golden),
            (name, None) => Some(golden_base(self.image, &machine, name)?),
        };
        snapshot.lay(&machine.ram, base.as_ref())?;
        life.step("mapped");
        snapshot.fill(&machine.ram)?;
        if self.settings.note_pages.is_some() {
            hot::watch(&machine.ram).map_err(io::Error::other)?;
        }
        life.step("memory");
        crash::point("restore-loaded");
        let spending = Spending::begin(&self.outside.folder.path)?;
        let gate = spending.clone();
        files.set_gate(Box::new(move || gate.wait()));
        let epoch = snapshot.header.epoch.clone();
        let resumed = self.resume(machine, &state, files, base, epoch, false, life);
        if resumed.is_err() {
            let _ = spending.wait();
        }
        resumed.map(|begun| Begun { spending: Some(spending), ..begun })
    }

    /// Makes this database a clone of the golden guest; `None` if there is no golden snapshot.
    fn clone_golden(&self, made: Made, dir: &Path, life: &mut Life) -> Result<Option<Begun>, ReadError> {
        let Some(golden) = Snapshot::open(&dir.join(file::STATE))? else { return Ok(None) };
        let Made { machine, golden: mapped } = made.over(&golden.header.base, self.host, self.settings)?;
        golden.check(&self.fit(&machine, ""))?;
        let state = State::decode(&golden.state)?;
        let base = match mapped {
            Some(base) => base,
            None => golden.memory(dir, machine.ram.len())?,
        };
        let seed = dir.join(layer_copy::NAME);
        if seed.exists() {
            let _lock = hold(&self.layer)?;
            layer_copy::copy(&seed, &self.layer)?;
        }
        let files = FsDevice::restore(&self.layer, &self.image.template_dir, self.options(), &state.files)?;
        life.step("layer");
        self.tell_listening(life);
        golden.lay(&machine.ram, Some(&base))?;
        life.step("memory");
        self.resume(machine, &state, files, Some(base), new_epoch()?, true, life).map(Some)
    }

    /// The end of both kinds of restore: CPU and devices, and what the guest is told of its sleep.
    #[allow(clippy::too_many_arguments)]
    fn resume(
        &self,
        machine: Machine,
        state: &State,
        files: FsDevice,
        base: Option<Base>,
        epoch: String,
        clone: bool,
        life: &mut Life,
    ) -> Result<Begun, ReadError> {
        state.cpu.apply(&machine.vcpu)?;
        life.step("cpu");
        let shared = SharedPage::new(&machine.ram);
        shared.set_restore_count(shared.get_restore_count().wrapping_add(1));
        if clone {
            shared.set_clone_count(shared.get_clone_count().wrapping_add(1));
        }
        shared.set_shutdown(0);
        shared.set_event(1);
        let mut from = Reader::new(&state.vsock);
        let vsock = Vsock::load(machine.ram.view().clone(), &mut from)?;
        from.end()?;
        Ok(Begun {
            vsock,
            clock: Clock::new(machine.tsc_khz, state.mono_ns),
            files: Box::new(files),
            positions: state.positions,
            epoch,
            cold: false,
            base,
            spending: None,
            machine,
        })
    }

    /// Runs the guest to its end.
    fn attend(self, begun: Begun, mut life: Life, terminate: Terminate) -> Result<End, StartError> {
        let Begun { mut machine, files, vsock, mut clock, positions, epoch, cold, base, spending } = begun;
        (life.epoch, life.cold) = (epoch, cold);
        let shared = SharedPage::new(&machine.ram);
        self.tell_listening(&mut life);
        // Said once the guest runs: a line in a log may have to wait for the host's file system.
        let begins = {
            let (database, epoch) = (self.settings.database.clone(), life.epoch.clone());
            move || tracing::info!(database, epoch, cold, "guest begins")
        };
        let mut sleeper = Sleeper { spending, ..self.sleeper(&machine, &life, base) };
        let Outside { folder, sockets, server } = self.outside;
        clock.publish(&shared);
        let pace = Pace {
            tick: Duration::from_millis(self.settings.tick_ms),
            watchdog: (self.settings.watchdog_ms > 0).then(|| Duration::from_millis(self.settings.watchdog_ms)),
            unattended: (self.settings.unattended_s > 0).then(|| Duration::from_secs(self.settings.unattended_s)),
        };
        let immediate_exit = &raw mut machine.vcpu.get_kvm_run().immediate_exit;
        let monitor = Monitor::new(machine.ram.clone(), clock, pace, vsock, sockets, life, terminate, immediate_exit)
            .map_err(StartError::io("cannot watch sockets"))?;
        if let Some(server) = server {
            monitor.control_by(server);
        }
        monitor.attend().map_err(StartError::io("cannot watch sockets"))?;
        let log = folder.path.join("console.log");
        let programs =
            Programs { kernel: self.image.boot.kernel.clone(), postgres: self.image.boot.postgres.clone() };
        let console = Console::open(&log, self.settings.console_log_mib << 20, self.settings.foreground)
            .map_err(StartError::io(format!("cannot open {}", log.display())))?
            .with_symbols(Symbols::new(programs.clone()));
        shared.refill_entropy().map_err(StartError::io("no random bytes"))?;
        monitor.io().life.step("console");
        monitor.profile.set_programs(programs);
        monitor.io().spending = sleeper.spending.clone();
        machine.send_wakes(monitor.send())?;
        let mut guest = Guest::new(machine, Arc::clone(&monitor), files, console, positions)?;
        monitor.attend().map_err(StartError::io("cannot watch sockets"))?;
        // A restored guest is ready before it runs.
        monitor.turn(&mut monitor.io());
        // Told before the I/O thread is there: it may have bound a session by the time its lock is free for this one.
        monitor.io().life.step("run");
        let io_thread = monitor.start(begins).map_err(StartError::io("cannot start a thread"))?;
        jail::threads::end_spares();
        crash::point("restore-entered");
        let end = guest.run(&mut sleeper);
        // While this process holds the layer.
        write::settle();
        if let Some(spending) = &sleeper.spending {
            // A guest that ends at once is no reason to leave half of it to the next start.
            let _ = spending.wait();
        }
        drop(io_thread);
        let end = end?;
        if end == End::Suspended {
            guest.files.give_back_room();
        }
        Ok(end)
    }

    fn sleeper(&self, machine: &Machine, life: &Life, base: Option<Base>) -> Sleeper {
        Sleeper {
            target: match &self.settings.golden {
                Some(dir) => Target::Golden { dir: dir.clone(), park: self.settings.park, opened: false },
                None => Target::Snapshot(self.outside.folder.path.clone()),
            },
            header: Header {
                version: VERSION,
                database: self.settings.database.clone(),
                image: self.image.name.clone(),
                template: self.image.template.clone(),
                epoch: life.epoch.clone(),
                identity: machine.identity.clone(),
                base: String::new(),
                memory: machine.ram.len(),
                state: Extent::default(),
                index: Extent::default(),
            },
            base,
            spending: None,
            restored: !life.cold,
            golden: self.image.golden_dir.clone(),
            note_pages: self.settings.note_pages.clone(),
            layer: self.layer.clone(),
        }
    }
}

/// The exit status of a run.
pub fn exit_code(result: &Result<End, StartError>) -> ExitCode {
    match result {
        Ok(End::Suspended | End::Exit(0) | End::Unclaimed | End::CarriedOut) => ExitCode::SUCCESS,
        Ok(End::Hung) => ExitCode::from(75),
        Ok(End::Exit(code)) => ExitCode::from(10u8.saturating_add(u8::try_from(*code).unwrap_or(u8::MAX))),
        Err(error) => ExitCode::from(error.code()),
    }
}
