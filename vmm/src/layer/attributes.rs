//! What a guest sees of an object beside its bytes.
//!
//! Modes and modification times that the guest sets are kept in the journal. A file with bytes of its own has the time of
//! its host file after the next cold start. Owners and access times are not kept.

use super::object::Body;
use super::record::{Kind, Op, Time};
use super::{Errno, Layer};

/// What a guest sees of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Attributes {
    pub id: u64,
    pub kind: Kind,
    pub size: u64,
    pub mode: u32,
    pub links: u32,
    pub mtime: Time,
}

impl Layer {
    pub(crate) fn attributes(&mut self, id: u64) -> Result<Attributes, Errno> {
        self.load(id)?;
        let object = self.object(id)?;
        let size = match &object.body {
            Body::File(file) => file.size.unwrap_or(0),
            Body::Symlink(target) => target.len() as u64,
            Body::Dir(_) => 4096,
        };
        let links = if object.kind() == Kind::Dir { 2 } else { object.links };
        Ok(Attributes { id, kind: object.kind(), size, mode: object.mode, links, mtime: object.mtime })
    }

    /// Sets permission bits and modification time (`None`: leaves them).
    pub(crate) fn set_attributes(&mut self, id: u64, mode: Option<u32>, mtime: Option<Time>) -> Result<(), Errno> {
        self.load(id)?;
        self.begin_change()?;
        let mut ops = Vec::new();
        self.record(id, &mut ops)?;
        let object = self.object_mut(id)?;
        if let Some(mode) = mode {
            object.mode = mode & 0o7777;
        }
        if let Some(mtime) = mtime {
            object.mtime = mtime;
        }
        if object.in_journal() {
            ops.push(Op::Attr { id, mode: object.mode, mtime: object.mtime });
        }
        self.push(&ops)
    }
}
