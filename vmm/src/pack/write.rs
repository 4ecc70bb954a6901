//! Packing: one file of a layer's files and a snapshot, and then these go.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use dormouse_abi::PAGE;
use zstd::zstd_safe::{CCtx, CParameter, compress_bound, get_error_name};

use super::format::{Content, HEADER_LEN, Header, MOST_LAYER, MOST_PAGES, Part};
use super::read::{Packed, remove};
use super::{NAME, PackError, TEMPORARY};
use crate::crash;
use crate::layer::pack::{Held, hold};
use crate::snapshot::delta;
use crate::snapshot::format::{self, Extent, FRAME_LONGEST, HEADER_LEN as SNAPSHOT_HEADER, Unreadable};
use crate::snapshot::write::NAME as SNAPSHOT;

/// zstd's level. 19 takes twice the time for 2 % less.
const LEVEL: i32 = 18;
/// How far back a match may lie, as a power of two: memory repeats what is in the files.
pub(super) const WINDOW: u32 = 26;

/// The most that a snapshot to be packed holds beside its pages, bytes: state and index.
const MOST_REST: u64 = 16 << 20;

/// What came of it.
#[derive(Clone, Copy, Debug)]
pub struct Written {
    /// Bytes of the file.
    pub bytes: u64,
    /// Of the snapshot and the layer's files before, as far as they have data.
    pub before: u64,
}

/// Packs a database that sleeps. A kill at any moment leaves it asleep as it was, or packed.
pub fn pack(dir: &Path, database: &str) -> Result<Written, PackError> {
    let mut held = hold(&dir.join("layer"))?;
    let written = match Packed::open(dir, database)? {
        // A packing was cut short: what is left of it is to be done, if it is of this very layer and whole.
        Some(packed) => {
            if held.journal()? != packed.header.journal {
                return Err(PackError::Journal);
            }
            packed.layer()?;
            let bytes = packed.header.snapshot.at.offset + packed.header.snapshot.at.len;
            sync_dir(dir)?;
            Written { bytes, before: bytes }
        }
        None => {
            let written = write(dir, database, &held);
            if written.is_err() {
                // On a full disk it is this that gives the room back.
                let _ = std::fs::remove_file(dir.join(TEMPORARY));
            }
            written?
        }
    };
    remove(&dir.join(SNAPSHOT))?;
    crash::point("pack-snapshot-gone");
    held.clear()?;
    crash::point("pack-layer-gone");
    Ok(written)
}

/// Has the database no longer packed, without its snapshot: its next start is a cold one. Nothing to do if it is not.
pub fn unpack(dir: &Path, database: &str) -> Result<(), PackError> {
    let mut held = hold(&dir.join("layer"))?;
    let Some(packed) = Packed::open(dir, database)? else { return Ok(()) };
    let layer = packed.layer()?;
    packed.unpack(dir, &mut held, &layer)?;
    super::spent::spend(dir).map_err(PackError::io("what is unpacked cannot be flushed"))?;
    Ok(())
}

fn sync_dir(dir: &Path) -> Result<(), PackError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(PackError::io("the database's folder cannot be flushed"))
}

fn write(dir: &Path, database: &str, held: &Held) -> Result<Written, PackError> {
    let content = take_apart(&dir.join(SNAPSHOT))?;
    if content.header.database != database {
        return Err(PackError::Other(content.header.database));
    }
    let layer = held.gather(MOST_LAYER)?.ok_or(PackError::TooLarge(MOST_LAYER >> 20))?;
    let snapshot = content.encode().map_err(|_| PackError::Snapshot(Unreadable::Damaged("its header")))?;
    let (layer_packed, snapshot_packed) = (compress(&layer, &[])?, compress(&snapshot, &layer)?);
    let mut at = HEADER_LEN as u64;
    let mut part = |packed: &[u8], content: &[u8]| {
        let extent = Extent { offset: at, len: packed.len() as u64, crc: crc32c::crc32c(packed) };
        at += extent.len;
        Part { at: extent, content: content.len() as u64 }
    };
    let header = Header {
        database: database.to_owned(),
        memory: content.header.memory,
        journal: held.journal()?,
        layer: part(&layer_packed, &layer),
        snapshot: part(&snapshot_packed, &snapshot),
    };
    let temporary = dir.join(TEMPORARY);
    let io = PackError::io("its packed file cannot be written");
    let block = header.encode().map_err(|_| PackError::Unlike)?;
    let file = File::options().create(true).truncate(true).read(true).write(true).open(&temporary).map_err(&io)?;
    for (bytes, offset) in
        [(&block[..], 0), (&layer_packed, header.layer.at.offset), (&snapshot_packed, header.snapshot.at.offset)]
    {
        file.write_all_at(bytes, offset).map_err(&io)?;
    }
    crash::point("pack-written");
    file.sync_all().map_err(&io)?;
    // What it replaces will be gone: so it is read once as a wake would.
    let packed = Packed::of(file, database)?;
    let back = packed.layer()?;
    if back != layer || packed.snapshot(&back)?.encode().ok().as_ref() != Some(&snapshot) {
        return Err(PackError::Unlike);
    }
    std::fs::rename(&temporary, dir.join(NAME)).map_err(&io)?;
    crash::point("pack-renamed");
    sync_dir(dir)?;
    Ok(Written { bytes: at, before: (layer.len() + snapshot.len()) as u64 })
}

pub(super) fn compress(content: &[u8], over: &[u8]) -> Result<Vec<u8>, PackError> {
    let mut packed = vec![0; compress_bound(content.len())];
    let len = {
        let mut context = CCtx::create();
        [
            CParameter::CompressionLevel(LEVEL),
            CParameter::WindowLog(WINDOW.min((content.len() + over.len()).max(1 << 16).ilog2() + 1)),
            CParameter::EnableLongDistanceMatching(true),
            CParameter::ContentSizeFlag(true),
        ]
        .into_iter()
        .try_for_each(|parameter| context.set_parameter(parameter).map(drop))
        .and_then(|()| context.ref_prefix(over))
        .and_then(|_| context.compress2(&mut packed[..], content))
        .map_err(|code| PackError::io("cannot compress")(io::Error::other(get_error_name(code))))?
    };
    packed.truncate(len);
    Ok(packed)
}

/// Reads a snapshot, and checks all of it.
fn take_apart(path: &Path) -> Result<Content, PackError> {
    let unreadable = PackError::io("its snapshot cannot be read");
    match std::fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(PackError::Awake),
        Ok(metadata) if metadata.len() > MOST_PAGES + MOST_REST => return Err(PackError::TooLarge(MOST_PAGES >> 20)),
        _ => {}
    }
    let bytes = std::fs::read(path).map_err(unreadable)?;
    let block = bytes.first_chunk::<SNAPSHOT_HEADER>().ok_or(PackError::Snapshot(Unreadable::Damaged("its header")))?;
    let header = format::Header::decode(block).map_err(PackError::Snapshot)?;
    if header.version != format::VERSION {
        return Err(PackError::Snapshot(Unreadable::OtherVersion(header.version)));
    }
    let part = |extent: Extent, what| {
        let end = extent.offset.checked_add(extent.len);
        let part = end.and_then(|end| bytes.get(extent.offset as usize..end as usize));
        part.filter(|part| crc32c::crc32c(part) == extent.crc).ok_or(PackError::Snapshot(Unreadable::Damaged(what)))
    };
    let state = part(header.state, "its state")?.to_vec();
    let index = part(header.index, "its index")?;
    let frames = format::decode_index(index, header.memory / PAGE).map_err(PackError::Snapshot)?;
    let count: usize = frames.iter().map(|frame| frame.pages.len()).sum();
    if count as u64 * PAGE > MOST_PAGES {
        return Err(PackError::TooLarge(MOST_PAGES >> 20));
    }
    let (mut pages, mut deltas) = (Vec::with_capacity(count), Vec::new());
    let mut room = vec![0; FRAME_LONGEST];
    for frame in frames {
        let damaged = || PackError::Snapshot(Unreadable::Damaged("its memory"));
        let content = frame.content(part(frame.at, "its memory")?, &mut room).ok_or_else(damaged)?;
        if !delta::are_of(content, frame.pages.len()) {
            return Err(damaged());
        }
        deltas.extend_from_slice(content);
        pages.extend(frame.pages);
    }
    Ok(Content::new(header, state, pages, deltas))
}
