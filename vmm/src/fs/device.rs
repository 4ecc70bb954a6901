//! The device: one message in, one answer out.

use super::requests::Answer;
use super::wire::{Header, IN_HEADER, OUT_HEADER, opcode};
use super::{FsError, FsOptions, Gate, Recovering};
use crate::layer::{Errno, GuestBytes, Layer};
use std::io;
use std::path::Path;
use vm_memory::VolatileSlice;

/// The file device of one database.
pub struct FsDevice {
    pub(super) layer: Layer,
}

impl FsDevice {
    /// Opens a layer for a guest that starts cold. It is made if it is empty, and is locked for the device's life.
    pub fn open(layer_dir: &Path, template_dir: &Path, options: FsOptions) -> Result<FsDevice, FsError> {
        Ok(FsDevice { layer: Layer::open(layer_dir, template_dir, options)? })
    }

    /// Opens a layer for a guest that goes on from a snapshot with this saved state, or is cloned from one: then the layer is
    /// as the snapshot's was, both empty. Refused if the layer changed since.
    pub fn restore(
        layer_dir: &Path,
        template_dir: &Path,
        options: FsOptions,
        saved: &[u8],
    ) -> Result<FsDevice, FsError> {
        Ok(FsDevice { layer: Layer::restore(layer_dir, template_dir, options, saved)? })
    }

    /// Sets what is called once, before the first change of the layer is carried out; if it fails, so does the request, and
    /// it is called again by the next.
    pub fn set_gate(&mut self, gate: Gate) {
        self.layer.set_gate(gate);
    }

    /// Sets what tells whether the guest still recovers from a crash: until it once says no, twice the storage limit holds.
    pub fn set_recovering(&mut self, recovering: Recovering) {
        self.layer.set_recovering(recovering);
    }

    /// Makes all of this layer's files, maps and names durable. Costs what changed since the last time.
    pub fn flush_all(&mut self) -> io::Result<()> {
        Ok(self.layer.sync_all()?)
    }

    /// The state to give to [`FsDevice::restore`]. Flushes nothing: a snapshot is sealed only after `flush_all`.
    pub fn save(&self) -> Vec<u8> {
        self.layer.save()
    }

    /// Bytes of disk that the layer takes.
    pub fn disk_bytes(&self) -> u64 {
        self.layer.disk_bytes()
    }

    /// Whether nothing was ever changed in the layer.
    pub fn is_empty(&self) -> bool {
        self.layer.is_empty()
    }

    /// Whether this life has changed anything, so that the gate was passed.
    pub fn has_changed(&self) -> bool {
        self.layer.has_changed()
    }

    /// Carries out one message and writes its answer; returns the answer's length in bytes, 0 for those that have none.
    pub fn handle(&mut self, readable: &[VolatileSlice], writable: &[VolatileSlice]) -> usize {
        let (message, out) = (GuestBytes::new(readable), GuestBytes::new(writable));
        let mut head = [0; IN_HEADER];
        if message.copy_to(&mut head) < IN_HEADER {
            return 0;
        }
        let head = Header::parse(&head);
        let silent = matches!(head.opcode, opcode::FORGET | opcode::BATCH_FORGET | opcode::INTERRUPT);
        let room = out.len().saturating_sub(OUT_HEADER);
        let len = head.len as usize;
        let answer = if len < IN_HEADER || len > message.len() || (!silent && out.len() < OUT_HEADER) {
            Err(Errno(libc::EINVAL))
        } else {
            self.request(&head, message.range(IN_HEADER, len - IN_HEADER), out.range(OUT_HEADER, room))
        };
        if silent || out.len() < OUT_HEADER {
            return 0;
        }
        let (error, len) = match answer {
            Ok(Answer::Bytes(bytes)) if bytes.len() > room => (libc::EIO, 0),
            Ok(Answer::Bytes(bytes)) => (0, out.range(OUT_HEADER, room).copy_from(&bytes)),
            Ok(Answer::InPlace(n)) => (0, n),
            Err(Errno(error)) => (error, 0),
        };
        let mut head_out = [0; OUT_HEADER];
        head_out[..4].copy_from_slice(&((OUT_HEADER + len) as u32).to_le_bytes());
        head_out[4..8].copy_from_slice(&(-error).to_le_bytes());
        head_out[8..].copy_from_slice(&head.unique.to_le_bytes());
        out.copy_from(&head_out);
        OUT_HEADER + len
    }
}
