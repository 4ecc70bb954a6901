//! The fourth way to begin: from a packed file; and what is done with one without running its database.

use std::path::Path;

use super::{Begun, Made, Place, StartError, golden_base};
use crate::crash;
use crate::fs::{FsDevice, FsError};
use crate::layer::pack::hold;
use crate::monitor::Life;
use crate::pack::read::Packed;
use crate::pack::{PackError, write};
use crate::settings::Task;
use crate::snapshot::State;
use crate::snapshot::read::{self, ReadError};
use crate::snapshot::spent::Spending;

/// Carries out a task with the files of a database that nobody runs.
pub fn carry_out(task: Task, dir: &Path, database: &str) -> Result<(), PackError> {
    match task {
        Task::Unpack => write::unpack(dir, database),
        Task::Pack => {
            let written = write::pack(dir, database)?;
            tracing::info!(bytes = written.bytes, before = written.before, "packed");
            Ok(())
        }
    }
}

/// Why a packed database does not go on as it slept.
enum Failed {
    /// Its data cannot be had either.
    Data(PackError),
    /// Its memory cannot be used: it starts cold from its data.
    Memory(ReadError),
}

impl<E: Into<ReadError>> From<E> for Failed {
    fn from(error: E) -> Self {
        Self::Memory(error.into())
    }
}

impl Place<'_> {
    pub(super) fn packed(&self) -> Result<Option<Packed>, PackError> {
        if self.settings.golden.is_some() {
            return Ok(None);
        }
        Packed::open(&self.outside.folder.path, &self.settings.database)
    }

    /// Goes on from a packed file, or starts cold from the layer in it.
    pub(super) fn begin_packed(&self, made: Made, packed: Packed, life: &mut Life) -> Result<Begun, StartError> {
        if self.settings.cold {
            drop(packed);
            write::unpack(&self.outside.folder.path, &self.settings.database)?;
            return self.boot(made, life);
        }
        match self.restore_packed(made, &packed, life) {
            Ok(begun) => return Ok(begun),
            Err(Failed::Data(PackError::Layer(locked @ FsError::LayerLocked(_)))) => return Err(locked.into()),
            Err(Failed::Data(error)) => return Err(error.into()),
            Err(Failed::Memory(ReadError::Files(locked @ FsError::LayerLocked(_)))) => return Err(locked.into()),
            Err(Failed::Memory(error)) => {
                tracing::warn!(%error, "the packed snapshot cannot be used: the database starts cold");
                life.why = Some(format!("its packed snapshot cannot be used: {error}"));
            }
        }
        // Nothing to do if it was spent before the restore failed.
        write::unpack(&self.outside.folder.path, &self.settings.database)?;
        self.boot(Made::new(self.host, self.settings)?, life)
    }

    fn restore_packed(&self, made: Made, packed: &Packed, life: &mut Life) -> Result<Begun, Failed> {
        crash::point("unpack-begun");
        let dir = &self.outside.folder.path;
        let mut held = hold(&self.layer).map_err(|error| Failed::Data(error.into()))?;
        let layer = packed.layer().map_err(Failed::Data)?;
        life.step("packed");
        self.tell_listening(life);
        let (files, memory) = std::thread::scope(|scope| {
            // Files are the host's work, memory is this process': side by side.
            let files = std::thread::Builder::new().spawn_scoped(scope, || packed.unpack(dir, &mut held, &layer));
            let memory = self.fill_packed(made, packed, &layer, life);
            (files.map(|files| files.join()), memory)
        });
        match files {
            Ok(Ok(written)) => written.map_err(Failed::Data)?,
            Ok(Err(_)) => return Err(ReadError::State.into()),
            // No thread is to be had.
            Err(_) => packed.unpack(dir, &mut held, &layer).map_err(Failed::Data)?,
        }
        life.step("unpacked");
        crash::point("unpack-files");
        let (machine, base, state, epoch) = memory?;
        // The file server takes it over.
        drop(held);
        let mut files = FsDevice::restore(&self.layer, &self.image.template_dir, self.options(), &state.files)?;
        self.share(&mut files)?;
        life.step("layer");
        let spending = Spending::of_packed(dir)?;
        let gate = spending.clone();
        files.set_gate(Box::new(move || gate.wait()));
        let resumed = self.resume(machine, &state, files, base, epoch, false, life);
        if resumed.is_err() {
            let _ = spending.wait();
        }
        Ok(resumed.map(|begun| Begun { spending: Some(spending), ..begun })?)
    }

    #[allow(clippy::type_complexity)]
    fn fill_packed(
        &self,
        made: Made,
        packed: &Packed,
        layer: &[u8],
        life: &mut Life,
    ) -> Result<(crate::machine::Machine, Option<crate::snapshot::pages::Base>, State, String), ReadError> {
        let content = packed.snapshot(layer)?;
        let Made { machine, golden } = made.over(&content.header.base, self.host, self.settings)?;
        self.fit(&machine, &self.settings.database).check(&content.header)?;
        let state = State::decode(&content.state)?;
        life.step("snapshot");
        let base = match (content.header.base.as_str(), golden) {
            ("", _) => None,
            (_, Some(golden)) => Some(golden),
            (name, None) => Some(golden_base(self.image, &machine, name)?),
        };
        if let Some(base) = base.as_ref().filter(|_| !machine.ram.has_files()) {
            base.map(&machine.ram)?;
        }
        life.step("mapped");
        read::fill(&machine.ram, &content.pages, content.deltas()).ok_or(ReadError::State)?;
        life.step("memory");
        Ok((machine, base, state, content.header.epoch.clone()))
    }
}
