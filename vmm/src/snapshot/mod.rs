//! Suspend and restore (`docs/snapshot.md`).
//!
//! - [`format`]: the file; [`pages`]: which pages differ, [`delta`]: in what; [`hot`]: which of them are ready beforehand;
//! - [`layer_copy`]: the layer that belongs to a golden snapshot;
//! - [`write`], [`read`]: the two ways; [`spent`]: that it is used once;
//! - this file: the state section, and the order of a suspend.
//!
//! Promises: a committed snapshot is whole, sealed (all of the layer was flushed before it), and used at most once.
//! Refuses: a busy guest, one whose bytes are under way, and a snapshot of another CPU, host kernel, image, template
//! or database.

pub mod delta;
pub mod format;
pub mod hot;
pub mod layer_copy;
pub mod pages;
pub mod read;
pub mod spent;
pub mod write;

use crate::codec::{Malformed, Reader, Writer};
use crate::guest::{Guest, Positions};
use crate::machine::MachineError;
use crate::machine::state::CpuState;

/// The state section.
pub struct State {
    pub cpu: CpuState,
    /// Guest-monotonic time, ns.
    pub mono_ns: u64,
    pub positions: Positions,
    /// [`crate::virtio::vsock::Vsock::save`].
    pub vsock: Vec<u8>,
    /// The file server's.
    pub files: Vec<u8>,
}

impl State {
    /// Reads the state of a guest that stands still: its last exit is completed first.
    pub fn of(guest: &mut Guest) -> Result<Self, MachineError> {
        guest.machine.enter_and_leave()?;
        let mut vsock = Writer::default();
        guest.monitor.io().vsock.save(&mut vsock);
        Ok(Self {
            cpu: CpuState::read(&guest.machine.vcpu)?,
            mono_ns: guest.monitor.clock().now(),
            positions: guest.positions(),
            vsock: vsock.into_bytes(),
            files: guest.files.save(),
        })
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::default();
        self.cpu.save(&mut out);
        out.u64(self.mono_ns);
        for (available, used) in self.positions {
            out.u16(available);
            out.u16(used);
        }
        out.bytes(&self.vsock);
        out.bytes(&self.files);
        out.into_bytes()
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut from = Reader::new(bytes);
        let cpu = CpuState::load(&mut from)?;
        let mono_ns = from.u64()?;
        let mut positions = Positions::default();
        for position in &mut positions {
            *position = (from.u16()?, from.u16()?);
        }
        let (vsock, files) = (from.bytes()?.to_vec(), from.bytes()?.to_vec());
        from.end()?;
        Ok(Self { cpu, mono_ns, positions, vsock, files })
    }
}
