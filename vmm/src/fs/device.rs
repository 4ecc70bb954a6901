//! The device: one message in, one answer out.

use super::requests::Answer;
use super::share::{self, Share};
use super::wire::{FSYNC_LATER, Header, IN_HEADER, OUT_HEADER, opcode};
use super::{FsError, FsOptions, Gate, Recovering};
use crate::layer::{Errno, Flush, GuestBytes, Layer};
use std::io;
use std::path::Path;
use vm_memory::VolatileSlice;

/// What became of a message.
pub enum Begun {
    /// Answered, with so many bytes.
    Done(usize),
    /// To be answered, with so many bytes, when this is done; with none if it fails.
    Flush(Flush, usize),
}

/// The file device of one database.
pub struct FsDevice {
    pub(super) layer: Layer,
    share: Option<Share>,
}

impl FsDevice {
    /// Opens a layer for a guest that starts cold. It is made if it is empty, and is locked for the device's life.
    pub fn open(layer_dir: &Path, template_dir: &Path, options: FsOptions) -> Result<FsDevice, FsError> {
        Ok(FsDevice::of(Layer::open(layer_dir, template_dir, options)?))
    }

    /// Opens a layer for a guest that goes on from a snapshot with this saved state, or is cloned from one: then the layer is
    /// as the snapshot's was, both empty. Refused if the layer changed since.
    pub fn restore(
        layer_dir: &Path,
        template_dir: &Path,
        options: FsOptions,
        saved: &[u8],
    ) -> Result<FsDevice, FsError> {
        Ok(FsDevice::of(Layer::restore(layer_dir, template_dir, options, saved)?))
    }

    fn of(layer: Layer) -> FsDevice {
        FsDevice { layer, share: None }
    }

    /// Shows the guest a folder of the host besides (see `share.rs`).
    pub fn share(&mut self, folder: &Path) -> io::Result<()> {
        self.share = Some(Share::open(folder)?);
        Ok(())
    }

    /// Drops what the guest no longer knows.
    pub(super) fn forget(&mut self, node: u64, lookups: u64) {
        if let Some(share) = &mut self.share
            && node >= share::ROOT
        {
            return share.forget(node);
        }
        self.layer.forget(node, lookups);
    }

    /// Carries out one request, whose node says whose it is.
    fn answer(&mut self, head: &Header, body: GuestBytes, out: GuestBytes) -> Result<Answer, Errno> {
        if let Some(share) = &mut self.share
            && head.node >= share::ROOT
            && head.opcode != opcode::FORGET
        {
            return share.request(head, body, out);
        }
        self.request(head, body, out)
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

    /// Gives disk back that a guest was granted and has not used: once it is saved for certain, and this life is over.
    pub fn give_back_room(&mut self) {
        self.layer.give_back_room();
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

    /// Begins one message: as [`FsDevice::handle`], but a flush that may be carried out elsewhere comes back. Its answer is
    /// in place, for when it is done.
    pub fn begin(&mut self, readable: &[VolatileSlice], writable: &[VolatileSlice]) -> Begun {
        let (message, out) = (GuestBytes::new(readable), GuestBytes::new(writable));
        let mut head = [0; IN_HEADER];
        if message.copy_to(&mut head) == IN_HEADER && out.len() >= OUT_HEADER {
            let head = Header::parse(&head);
            let mut body = [0; 12];
            let asked = message.range(IN_HEADER, body.len()).copy_to(&mut body) == body.len();
            let flags = u32::from_le_bytes([body[8], body[9], body[10], body[11]]);
            if head.opcode == opcode::FSYNC
                && asked
                && flags & FSYNC_LATER != 0
                && self.layer.check_node(head.node).is_ok()
                && let Ok(Some(flush)) = self.layer.defer(head.node)
            {
                out.copy_from(&answer_header(&head, 0, 0));
                return Begun::Flush(flush, OUT_HEADER);
            }
        }
        Begun::Done(self.handle(readable, writable))
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
            self.answer(&head, message.range(IN_HEADER, len - IN_HEADER), out.range(OUT_HEADER, room))
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
        out.copy_from(&answer_header(&head, error, len));
        OUT_HEADER + len
    }
}

/// The header of the answer to `head`, which `len` bytes follow.
fn answer_header(head: &Header, error: i32, len: usize) -> [u8; OUT_HEADER] {
    let mut bytes = [0; OUT_HEADER];
    bytes[..4].copy_from_slice(&((OUT_HEADER + len) as u32).to_le_bytes());
    bytes[4..8].copy_from_slice(&(-error).to_le_bytes());
    bytes[8..].copy_from_slice(&head.unique.to_le_bytes());
    bytes
}
