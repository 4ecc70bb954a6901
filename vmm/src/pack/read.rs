//! What a wake takes from a packed file: the layer's files, and memory.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use zstd::zstd_safe::{DCtx, DParameter};

use super::format::{Content, HEADER_LEN, Header, Part};
use super::write::WINDOW;
use super::{NAME, PackError};
use crate::layer::pack::Held;
use crate::settings::remove_if_there;
use crate::snapshot::format::Unreadable;
use crate::snapshot::write::NAME as SNAPSHOT;

/// An opened packed file whose header has been checked.
#[derive(Debug)]
pub struct Packed {
    pub header: Header,
    file: File,
}

impl Packed {
    /// The one in a database's folder, if there is one.
    pub fn open(dir: &Path, database: &str) -> Result<Option<Self>, PackError> {
        match File::open(dir.join(NAME)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(PackError::io("its packed file cannot be opened")(error)),
            Ok(file) => Self::of(file, database).map(Some),
        }
    }

    pub(super) fn of(file: File, database: &str) -> Result<Self, PackError> {
        let mut block = [0; HEADER_LEN];
        match file.read_exact_at(&mut block, 0) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(PackError::Damaged(Unreadable::Damaged("its header")));
            }
            other => other.map_err(PackError::io("its packed file cannot be read"))?,
        }
        let header = Header::decode(&block).map_err(PackError::Damaged)?;
        match header.database == database {
            true => Ok(Self { header, file }),
            false => Err(PackError::Other(header.database)),
        }
    }

    /// The layer's files.
    pub fn layer(&self) -> Result<Vec<u8>, PackError> {
        self.part(self.header.layer, &[], "the layer")
    }

    /// The snapshot; `layer` is what [`Packed::layer`] gave.
    pub fn snapshot(&self, layer: &[u8]) -> Result<Content, PackError> {
        let bytes = self.part(self.header.snapshot, layer, "the snapshot")?;
        Content::decode(bytes).map_err(PackError::Damaged)
    }

    fn part(&self, part: Part, over: &[u8], what: &'static str) -> Result<Vec<u8>, PackError> {
        let damaged = || PackError::Damaged(Unreadable::Damaged(what));
        let mut compressed = vec![0; part.at.len as usize];
        match self.file.read_exact_at(&mut compressed, part.at.offset) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(damaged()),
            other => other.map_err(PackError::io("its packed file cannot be read"))?,
        }
        if crc32c::crc32c(&compressed) != part.at.crc {
            return Err(damaged());
        }
        let mut content = vec![0; part.content as usize];
        let mut context = DCtx::create();
        let len = context
            .set_parameter(DParameter::WindowLogMax(WINDOW))
            .and_then(|_| context.ref_prefix(over))
            .and_then(|_| context.decompress(&mut content[..], &compressed))
            .map_err(|_| damaged())?;
        if len == content.len() { Ok(content) } else { Err(damaged()) }
    }

    /// Checks that the layer is the one it was packed with, and writes its files, instead of whatever is there. Nothing of it
    /// is durable.
    pub fn unpack(&self, dir: &Path, held: &mut Held, layer: &[u8]) -> Result<(), PackError> {
        if held.journal()? != self.header.journal {
            return Err(PackError::Journal);
        }
        let snapshot = dir.join(SNAPSHOT);
        if !held.is_bare()? || snapshot.exists() {
            // Left by a packing that was cut short. Its name has to be durable before what it replaces goes.
            File::open(dir).and_then(|dir| dir.sync_all()).map_err(PackError::io("the database's folder cannot be flushed"))?;
            remove(&snapshot)?;
            held.clear()?;
        }
        held.scatter(layer).inspect_err(|_| {
            // On a full disk this gives the room back, which others need.
            let _ = held.clear();
        })?;
        Ok(())
    }
}

/// Removes a file that may not be there.
pub(super) fn remove(path: &Path) -> Result<(), PackError> {
    remove_if_there(path).map_err(PackError::io("what is packed cannot be removed"))
}
