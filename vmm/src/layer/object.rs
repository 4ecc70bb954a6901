//! What a layer knows of one object.

use super::host::HostFile;
use super::map::{BLOCK, BlockMap};
use super::record::{Kind, Time};
use super::template::{Listing, is_relation};
use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;

/// The data folder itself.
pub(crate) const ROOT: u64 = 1;
/// Ranges that are granted in one file: past that, what is written has to go to the host at once.
const GRANTS_MAX: usize = 1024;

pub(crate) struct Object {
    /// Path in the template, if it comes from there.
    pub origin: Option<Vec<u8>>,
    /// Permission bits.
    pub mode: u32,
    pub mtime: Time,
    /// The journal, or the buffer before it, has it.
    pub recorded: bool,
    /// Its origin's name still leads to it.
    pub placed: bool,
    /// Names it has.
    pub links: u32,
    /// A name it has, or had, is one of a tenant's own data: see `template::is_bulk_name`.
    pub bulk: bool,
    /// Times the guest looked it up and didn't forget.
    pub lookups: u64,
    pub body: Body,
}

pub(crate) enum Body {
    File(FileState),
    Dir(DirState),
    Symlink(Vec<u8>),
}

/// Whether `files/N` is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Own {
    #[default]
    No,
    Yes,
    /// Not looked yet.
    Unknown,
}

#[derive(Default)]
pub(crate) struct FileState {
    /// Size in bytes; `None` if not looked yet.
    pub size: Option<u64>,
    pub own: Own,
    /// Visible template length, in bytes.
    pub visible: u64,
    /// Blocks below `visible` that are in `files/N`.
    pub map: BlockMap,
    /// `map` or `visible` are not what was recorded last.
    pub map_changed: bool,
    pub recorded: RecordedData,
    /// `files/N` may have bytes that are not durable.
    pub dirty: bool,
    pub upper: Option<HostFile>,
    pub lower: Option<File>,
    /// Bytes of disk that `files/N` is counted with.
    pub disk: u64,
    /// Bytes past `visible` that were allocated in this life: they have their place on disk, though the host shows a hole
    /// where they were not written yet. They may lie past the file's end, until it is flushed. In order, none touches another.
    pub granted: Vec<Range<u64>>,
    /// Where what was allocated past the file's end ends, if it is past it; `None` if that is not known, as in the first of
    /// a life: a crash leaves such room.
    pub room_end: Option<u64>,
}

/// What the journal says of a file's bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct RecordedData {
    /// There was a `Data` or a `Truncate`.
    pub any: bool,
    pub visible: u64,
    pub map: BlockMap,
    /// A `Truncate` to this size had no `Data` after it.
    pub cut: Option<u64>,
}

impl FileState {
    /// Notes that the range has its place on disk.
    pub fn grant(&mut self, range: Range<u64>) {
        let first = self.granted.partition_point(|known| known.end < range.start);
        let after = self.granted.partition_point(|known| known.start <= range.end);
        let merged = self.granted[first..after]
            .iter()
            .fold(range, |all, known| all.start.min(known.start)..all.end.max(known.end));
        self.granted.splice(first..after, [merged]);
    }

    /// Whether there are as many ranges as are followed.
    pub fn is_full_of_grants(&self) -> bool {
        self.granted.len() >= GRANTS_MAX
    }

    /// Notes that nothing from byte `end` on has a place on disk any more.
    pub fn cut_room(&mut self, end: u64) {
        self.granted.retain(|known| known.start < end);
        if let Some(last) = self.granted.last_mut() {
            last.end = last.end.min(end);
        }
        self.room_end = Some(0);
    }

    /// Whether there may be room past byte `end`, the file's.
    pub fn has_room_past(&self, end: u64) -> bool {
        self.room_end.is_none_or(|room| room > end)
    }

    /// Where the run of bytes with the same source as byte `at` ends, and whether that source is the template.
    pub fn source(&self, at: u64, end: u64) -> (u64, bool) {
        if at >= self.visible {
            return (end, false);
        }
        let here = self.map.has(at / BLOCK);
        let mut block = at / BLOCK + 1;
        while block * BLOCK < end.min(self.visible) && self.map.has(block) == here {
            block += 1;
        }
        (end.min(self.visible).min(block * BLOCK), !here)
    }
}

/// What a folder has in place of, or beside, its origin's names.
#[derive(Default)]
pub(crate) struct DirState {
    pub overrides: BTreeMap<Vec<u8>, Override>,
    /// Names of the entries in `overrides`, in the order of their making.
    pub by_cookie: BTreeMap<u64, Vec<u8>>,
    /// The folder it was made or looked up in; 0 for the root.
    pub parent: u64,
    pub listing: Option<Listing>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Override {
    Whiteout,
    Entry {
        id: u64,
        /// Place in listings: larger than any template entry's, unique in the layer.
        cookie: u64,
        /// The template has the name too.
        covers: bool,
    },
}

impl Object {
    /// Whether the journal follows this object: one without a name is nobody's after a crash.
    pub fn in_journal(&self) -> bool {
        self.recorded && self.links > 0
    }

    /// Whether the tenant's own data are in it, which leave the reserve of the storage limit alone.
    pub fn is_bulk(&self) -> bool {
        self.bulk || self.origin.as_deref().is_some_and(is_relation)
    }

    pub fn kind(&self) -> Kind {
        match self.body {
            Body::File(_) => Kind::File,
            Body::Dir(_) => Kind::Dir,
            Body::Symlink(_) => Kind::Symlink,
        }
    }

    pub fn file(&self) -> Option<&FileState> {
        match &self.body {
            Body::File(file) => Some(file),
            _ => None,
        }
    }

    pub fn file_mut(&mut self) -> Option<&mut FileState> {
        match &mut self.body {
            Body::File(file) => Some(file),
            _ => None,
        }
    }

    pub fn dir(&self) -> Option<&DirState> {
        match &self.body {
            Body::Dir(dir) => Some(dir),
            _ => None,
        }
    }

    pub fn dir_mut(&mut self) -> Option<&mut DirState> {
        match &mut self.body {
            Body::Dir(dir) => Some(dir),
            _ => None,
        }
    }
}
