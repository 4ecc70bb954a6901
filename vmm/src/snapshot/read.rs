//! Reading: which snapshot fits, and memory as it was.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use dormouse_abi::PAGE;
use dormouse_images::manifest::file;

use super::delta;
use super::format::{self, Extent, FRAME_LONGEST, Frame, HEADER_LEN, Header, Unreadable, VERSION};
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

/// Reads a part into a buffer, and gives its bytes there.
fn read<'a>(file: &File, extent: Extent, buffer: &'a mut Vec<u8>, what: &'static str) -> Result<&'a [u8], ReadError> {
    let damaged = || ReadError::from(Unreadable::Damaged(what));
    let len = extent.len as usize;
    if len > buffer.len() {
        // A length that is wrong must not take the host's memory.
        if extent.offset.checked_add(extent.len).is_none_or(|end| file.metadata().map_or(true, |about| end > about.len())) {
            return Err(damaged());
        }
        buffer.resize(len, 0);
    }
    let bytes = &mut buffer[..len];
    match file.read_exact_at(bytes, extent.offset) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(damaged()),
        other => other?,
    }
    if crc32c::crc32c(bytes) != extent.crc {
        return Err(damaged());
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
        let (mut state, mut index) = (Vec::new(), Vec::new());
        read(&file, header.state, &mut state, "its state")?;
        let index = read(&file, header.index, &mut index, "its index")?;
        if header.version != VERSION && index != format::encode_index(&[]) {
            return Err(Unreadable::OtherVersion(header.version).into());
        }
        let frames = format::decode_index(index, header.memory / PAGE)?;
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

    /// The memory that belongs to a golden one, in its folder: of `len` bytes.
    pub fn memory(&self, folder: &Path, len: u64) -> Result<Base, ReadError> {
        let memory = File::open(folder.join(file::MEMORY))?;
        Ok(Base::new(self.header.base.clone(), memory, len)?)
    }

    /// The golden memory in a folder, if it is this image's for guests of `len` bytes.
    pub fn golden_memory(folder: &Path, image: &str, len: u64) -> Option<Base> {
        let golden = Self::open(&folder.join(file::STATE)).and_then(|found| {
            let golden = found.filter(|golden| golden.header.image == image && golden.header.memory == len);
            golden.map(|golden| golden.memory(folder, len)).transpose()
        });
        golden.inspect_err(|error| tracing::warn!(%error, "no golden memory")).ok()?
    }

    /// Lays the base's memory under new memory, unless a VMM that was made ready beforehand has it there already.
    pub fn lay(&self, ram: &Ram, base: Option<&Base>) -> Result<(), ReadError> {
        match base {
            Some(base) if !ram.has_files() => Ok(base.map(ram)?),
            _ => Ok(()),
        }
    }

    /// Puts the pages in place, over what [`Snapshot::lay`] laid.
    pub fn fill(&self, ram: &Ram) -> Result<(), ReadError> {
        let damaged = || ReadError::from(Unreadable::Damaged("its memory"));
        let longest = self.frames.iter().map(|frame| frame.at.len).max().unwrap_or(0);
        let (mut stored, mut room) = (vec![0; longest as usize], vec![0; FRAME_LONGEST]);
        for frame in &self.frames {
            let stored = read(&self.file, frame.at, &mut stored, "its memory")?;
            let content = frame.content(stored, &mut room).ok_or_else(damaged)?;
            fill(ram, &frame.pages, content).ok_or_else(damaged)?;
        }
        Ok(())
    }
}

/// So many pages before it is written a page is asked for.
const AHEAD: usize = 2;

/// Writes pages' differences over memory that has their base. `None`: these are not theirs, or a page lies beyond memory.
pub fn fill(ram: &Ram, pages: &[u32], mut deltas: &[u8]) -> Option<()> {
    for run in pages.chunk_by(|one, next| one + 1 == *next) {
        ram.populate(u64::from(run[0]) * PAGE, run.len() as u64 * PAGE);
    }
    let mut parts = Vec::with_capacity(pages.len());
    for page in pages {
        let (delta, others) = delta::split(deltas)?;
        // SAFETY: the guest does not run yet, no other thread has its memory, and no page comes twice.
        parts.push((delta, unsafe { ram.thawing(u64::from(*page) * PAGE, PAGE) }?));
        deltas = others;
    }
    for index in 0..parts.len() {
        if let Some((delta, page)) = parts.get_mut(index + AHEAD) {
            delta::fetch(delta, page);
        }
        let (delta, page) = &mut parts[index];
        delta::apply(delta, page);
    }
    deltas.is_empty().then_some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A snapshot of an older build is told from a damaged one, and a golden one, which has no frames, is read.
    #[test]
    fn frames_of_another_version_are_refused_as_such() {
        // One frame of one page, which version 1 marked in the topmost bit.
        let mut index = format::encode_index(&[Frame { compressed: true, at: Extent::default(), pages: vec![7] }]);
        *index.last_mut().unwrap() |= 0x80;
        for (version, index, readable) in
            [(1, &index, false), (VERSION, &index, false), (1, &format::encode_index(&[]), true)]
        {
            let offset = HEADER_LEN as u64;
            let header = Header {
                version,
                database: String::new(),
                image: "0123".into(),
                template: "4567".into(),
                epoch: "89ab".into(),
                identity: "cpu".into(),
                base: "golden".into(),
                memory: 16 << 20,
                state: Extent { offset, len: 0, crc: 0 },
                index: Extent { offset, len: index.len() as u64, crc: crc32c::crc32c(index) },
            };
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), [&header.encode().unwrap()[..], index].concat()).unwrap();
            match Snapshot::open(file.path()) {
                Ok(Some(_)) => assert!(readable),
                Err(ReadError::Unreadable(Unreadable::OtherVersion(1))) => assert_eq!((version, readable), (1, false)),
                Err(ReadError::Unreadable(Unreadable::Damaged(_))) => assert_eq!((version, readable), (VERSION, false)),
                other => panic!("{other:?}"),
            }
        }
    }
}
