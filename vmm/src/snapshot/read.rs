//! Reading: which snapshot fits, and memory as it was.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use dormouse_abi::PAGE;

use super::format::{self, Extent, FRAME_PAGES, Frame, HEADER_LEN, Header, Kind, Unreadable};
use super::pages::Base;
use crate::machine::Ram;

/// Why a snapshot cannot be used. Its database starts cold then.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("cannot read it: {0}")]
    Io(#[from] io::Error),
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
    /// It belongs to something else.
    #[error("it was made for {what} {theirs:?}, this is {ours:?}")]
    Other { what: &'static str, theirs: String, ours: String },
    /// What it holds of the CPU or the devices does not make sense.
    #[error("its saved state is damaged")]
    State,
    #[error("{0}")]
    Packed(#[from] crate::pack::PackError),
    #[error("its golden memory is gone or another: {0}")]
    Base(String),
    #[error(transparent)]
    Machine(#[from] crate::machine::MachineError),
    #[error("its file system state does not fit the data directory: {0}")]
    Files(#[from] crate::fs::FsError),
}

impl From<crate::codec::Malformed> for ReadError {
    fn from(_: crate::codec::Malformed) -> Self {
        Self::State
    }
}

/// What a snapshot has to fit.
#[derive(Clone, Copy, Debug)]
pub struct Fit<'a> {
    /// Empty for a golden snapshot.
    pub database: &'a str,
    pub image: &'a str,
    pub template: &'a str,
    pub identity: &'a str,
    pub memory: u64,
}

impl Fit<'_> {
    /// Checks that a snapshot belongs to this database, image, CPU and host.
    pub fn check(&self, header: &Header) -> Result<(), ReadError> {
        let memory = (header.memory.to_string(), self.memory.to_string());
        for (what, theirs, ours) in [
            ("database", header.database.as_str(), self.database),
            ("image", &header.image, self.image),
            ("template", &header.template, self.template),
            ("CPU and host", &header.identity, self.identity),
            ("memory size", &memory.0, &memory.1),
        ] {
            if theirs != ours {
                return Err(ReadError::Other { what, theirs: theirs.to_owned(), ours: ours.to_owned() });
            }
        }
        Ok(())
    }
}

/// An opened snapshot whose header, state and index have been checked.
#[derive(Debug)]
pub struct Snapshot {
    pub header: Header,
    pub state: Vec<u8>,
    pub(super) frames: Vec<Frame>,
    file: File,
}

fn read(file: &File, extent: Extent, what: &'static str) -> Result<Vec<u8>, ReadError> {
    let size = file.metadata()?.len();
    if extent.offset.checked_add(extent.len).is_none_or(|end| end > size) {
        return Err(Unreadable::Damaged(what).into());
    }
    let mut bytes = vec![0; extent.len as usize];
    file.read_exact_at(&mut bytes, extent.offset)?;
    if crc32c::crc32c(&bytes) != extent.crc {
        return Err(Unreadable::Damaged(what).into());
    }
    Ok(bytes)
}

impl Snapshot {
    /// Opens a snapshot; `None` if there is none.
    pub fn open(path: &Path) -> Result<Option<Self>, ReadError> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let mut block = [0; HEADER_LEN];
        match file.read_exact_at(&mut block, 0) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(Unreadable::Damaged("its header").into());
            }
            other => other?,
        }
        let header = Header::decode(&block)?;
        let state = read(&file, header.state, "its state")?;
        let index = read(&file, header.index, "its index")?;
        let frames = format::decode_index(&index, header.memory / PAGE)?;
        Ok(Some(Self { header, state, frames, file }))
    }

    /// Checks that it belongs to this database, image, CPU and host.
    pub fn check(&self, fit: &Fit) -> Result<(), ReadError> {
        fit.check(&self.header)
    }

    /// Bytes of the file.
    pub fn bytes(&self) -> u64 {
        self.file.metadata().map_or(0, |metadata| metadata.len())
    }

    /// Lays the base's memory under new memory, unless a VMM that was made ready beforehand has it there already.
    pub fn lay(&self, ram: &Ram, base: Option<&Base>) -> Result<(), ReadError> {
        match base {
            Some(base) if !ram.has_files() => Ok(base.map(ram)?),
            _ => Ok(()),
        }
    }

    /// Puts the pages in place, over what [`Snapshot::lay`] laid, on two threads where there is enough to do.
    pub fn fill(&self, ram: &Ram) -> Result<(), ReadError> {
        let (first, second) = self.frames.split_at(if self.frames.len() < 4 { 0 } else { self.frames.len() / 2 });
        if first.is_empty() {
            return self.apply_frames(second, ram);
        }
        std::thread::scope(|scope| {
            let other = std::thread::Builder::new().spawn_scoped(scope, || self.apply_frames(first, ram));
            let own = self.apply_frames(second, ram);
            match other.map(|other| other.join()) {
                Ok(Ok(result)) => result.and(own),
                Ok(Err(_)) => Err(ReadError::State),
                // No thread is to be had: then both are this one's.
                Err(_) => own.and_then(|()| self.apply_frames(first, ram)),
            }
        })
    }

    fn apply_frames(&self, frames: &[Frame], ram: &Ram) -> Result<(), ReadError> {
        let page_len = PAGE as usize;
        let mut decompressor = zstd::bulk::Decompressor::new()?;
        let mut content = vec![0u8; FRAME_PAGES * page_len];
        for frame in frames {
            let compressed = read(&self.file, frame.at, "its memory")?;
            let damaged = || ReadError::from(Unreadable::Damaged("its memory"));
            let len = decompressor.decompress_to_buffer(&compressed, &mut content).map_err(|_| damaged())?;
            if len != frame.pages.len() * page_len {
                return Err(damaged());
            }
            for run in frame.pages.chunk_by(|one, next| one.number + 1 == next.number) {
                ram.populate(u64::from(run[0].number) * PAGE, run.len() as u64 * PAGE);
            }
            for (page, bytes) in frame.pages.iter().zip(content.chunks_exact(page_len)) {
                // SAFETY: the guest does not run yet; the index names every page once, so no other thread has it.
                let into = unsafe { ram.thawing(u64::from(page.number) * PAGE, PAGE) }.ok_or_else(damaged)?;
                match page.kind {
                    Kind::Whole => into.copy_from_slice(bytes),
                    Kind::Xor => into.iter_mut().zip(bytes).for_each(|(to, from)| *to ^= from),
                }
            }
        }
        Ok(())
    }
}
