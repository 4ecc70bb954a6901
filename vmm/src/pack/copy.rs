//! A packed database as other databases: many used ones, made without using each. For measurements
//! (`dormouse-loadtest scale`); a server has no use for it.
//!
//! ```text
//!  original:  | header | the layer's files | snapshot header, state, page numbers, pages |
//!      copy:  | header | the layer's files | snapshot header | state, page numbers, pages |
//!                name         as it is         name, a frame      a frame, made once
//! ```
//! Whose they are is said by the two headers alone, which are written anew. The layer's part is taken as it is, and so are the
//! folder's other files: the journal, and the logs, which tell of the original. What follows the snapshot's header is
//! compressed once for all copies, as packing does it, and is a zstd frame of its own; a wake reads any number of them.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::format::{self, Header, Part};
use super::read::Packed;
use super::write::compress;
use super::{NAME, PackError};
use crate::codec::Malformed;
use crate::snapshot::format::{Extent, Header as SnapshotHeader, Unreadable};

/// A packed database, read and checked once.
#[derive(Debug)]
pub struct Original {
    header: Header,
    /// Of its file.
    mode: u32,
    snapshot: SnapshotHeader,
    /// The layer's part of the file.
    layer: Vec<u8>,
    /// The frame of what follows the snapshot's header.
    body: Vec<u8>,
    others: Vec<Other>,
}

/// Another file of the folder.
#[derive(Debug)]
struct Other {
    /// Within the folder.
    path: PathBuf,
    mode: u32,
    bytes: Vec<u8>,
}

impl Original {
    /// Reads the folder of a database that is packed, and checks it as a wake does.
    pub fn read(dir: &Path, database: &str) -> Result<Self, PackError> {
        let unreadable = PackError::io("the original cannot be read");
        let packed = Packed::open(dir, database)?.ok_or(io::ErrorKind::NotFound.into()).map_err(&unreadable)?;
        let content = packed.layer()?;
        let snapshot = packed.snapshot(&content)?;
        let file = File::open(dir.join(NAME)).map_err(&unreadable)?;
        let mode = mode(&file.metadata().map_err(&unreadable)?);
        let at = packed.header.layer.at;
        let mut layer = vec![0; at.len as usize];
        file.read_exact_at(&mut layer, at.offset).map_err(&unreadable)?;
        let mut others = Vec::new();
        for folder in ["", "layer"] {
            gather(dir, Path::new(folder), &mut others).map_err(&unreadable)?;
        }
        let mut body = Vec::new();
        snapshot.put_body(&mut body);
        let body = compress(&body, &content)?;
        Ok(Self { header: packed.header, mode, snapshot: snapshot.header, layer, body, others })
    }

    /// Makes the folder of another database, which must not be there yet. Nothing of it is durable; after an error some of it
    /// may be there.
    pub fn write(&self, dir: &Path, database: &str) -> Result<(), PackError> {
        let (header, head) = self.named(database)?;
        let block = header.encode().map_err(unnameable)?;
        let at = header.snapshot.at.offset;
        let parts: [(&[u8], u64); 4] =
            [(&block, 0), (&self.layer, header.layer.at.offset), (&head, at), (&self.body, at + head.len() as u64)];
        let make = || -> io::Result<()> {
            for folder in [dir.to_owned(), dir.join("layer")] {
                DirBuilder::new().mode(0o700).create(folder)?;
            }
            let packed = create(&dir.join(NAME), self.mode)?;
            parts.into_iter().try_for_each(|(bytes, offset)| packed.write_all_at(bytes, offset))?;
            self.others
                .iter()
                .try_for_each(|Other { path, mode, bytes }| create(&dir.join(path), *mode)?.write_all_at(bytes, 0))
        };
        make().map_err(PackError::io("the copy cannot be written"))
    }

    /// The file's header, and how its snapshot's part begins: the frame with the snapshot's.
    fn named(&self, database: &str) -> Result<(Header, Vec<u8>), PackError> {
        let snapshot = SnapshotHeader { database: database.to_owned(), ..self.snapshot.clone() };
        let head = compress(&format::head(&snapshot).map_err(unnameable)?, &[])?;
        let Part { at, content } = self.header.snapshot;
        let crc = crc32c::crc32c_append(crc32c::crc32c(&head), &self.body);
        let at = Extent { len: (head.len() + self.body.len()) as u64, crc, ..at };
        Ok((Header { database: database.to_owned(), snapshot: Part { at, content }, ..self.header.clone() }, head))
    }
}

fn unnameable(_: Malformed) -> PackError {
    PackError::Snapshot(Unreadable::Damaged("its header"))
}

/// A new file.
fn create(path: &Path, mode: u32) -> io::Result<File> {
    File::options().create_new(true).write(true).mode(mode).open(path)
}

fn mode(file: &fs::Metadata) -> u32 {
    file.permissions().mode() & 0o777
}

/// The files in a folder of `dir`, but for the packed one.
fn gather(dir: &Path, folder: &Path, others: &mut Vec<Other>) -> io::Result<()> {
    for entry in fs::read_dir(dir.join(folder))? {
        let entry = entry?;
        let file = entry.metadata()?;
        if file.is_file() && entry.file_name() != NAME {
            others.push(Other { path: folder.join(entry.file_name()), mode: mode(&file), bytes: fs::read(entry.path())? });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pack::write;
    use crate::snapshot::delta;
    use crate::snapshot::format::{Frame, HEADER_LEN as SNAPSHOT_HEADER, VERSION, encode_index};

    const PAGE: usize = dormouse_abi::PAGE as usize;

    /// The file of a database that sleeps, with two pages that have changed.
    fn snapshot(database: &str) -> Vec<u8> {
        let mut deltas = Vec::new();
        for page in [[5; PAGE], [6; PAGE]] {
            delta::encode(&page, &[0; PAGE], &mut deltas);
        }
        let (state, frame) = (b"state".to_vec(), lz4_flex::block::compress(&deltas));
        let mut offset = SNAPSHOT_HEADER as u64;
        let mut part = |bytes: &[u8]| {
            let at = Extent { offset, len: bytes.len() as u64, crc: crc32c::crc32c(bytes) };
            offset += at.len;
            at
        };
        let (state_at, frame_at) = (part(&state), part(&frame));
        let index = encode_index(&[Frame { compressed: true, at: frame_at, pages: vec![7, 9] }]);
        let header = SnapshotHeader {
            version: VERSION,
            database: database.into(),
            image: "0123".into(),
            template: "4567".into(),
            epoch: "89ab".into(),
            identity: "cpu".into(),
            base: String::new(),
            memory: 10 * PAGE as u64,
            state: state_at,
            index: part(&index),
        };
        [&header.encode().unwrap()[..], &state, &frame, &index].concat()
    }

    #[test]
    fn a_copy_is_the_original_under_another_name() {
        let home = tempfile::tempdir().unwrap();
        let (one, other) = (home.path().join("db_one"), home.path().join("db_other"));
        fs::create_dir_all(one.join("layer/files")).unwrap();
        fs::write(one.join("layer/files/a"), b"a table").unwrap();
        fs::write(one.join("layer/journal"), b"a journal").unwrap();
        fs::write(one.join("vmm.log"), b"a log").unwrap();
        fs::write(one.join("snapshot"), snapshot("db_one")).unwrap();
        write::pack(&one, "db_one").unwrap();

        let original = Original::read(&one, "db_one").unwrap();
        original.write(&other, "db_other").unwrap();
        assert!(original.write(&other, "db_other").is_err(), "it is there");
        assert!(matches!(Packed::open(&other, "db_one"), Err(PackError::Other(name)) if name == "db_other"));
        let open = |dir: &Path, database: &str| {
            let packed = Packed::open(dir, database).unwrap().unwrap();
            let layer = packed.layer().unwrap();
            let snapshot = packed.snapshot(&layer).unwrap();
            (packed.header, layer, snapshot)
        };
        let (was, layer, mut content) = open(&one, "db_one");
        let (is, same_layer, copied) = open(&other, "db_other");
        assert_eq!((is.database.as_str(), copied.header.database.as_str()), ("db_other", "db_other"));
        assert_eq!((is.memory, is.journal, is.layer), (was.memory, was.journal, was.layer));
        content.header.database = "db_other".into();
        assert!(same_layer == layer && copied.encode().unwrap() == content.encode().unwrap());
        for name in ["layer/journal", "layer/lock", "vmm.log"] {
            let file = |dir: &Path| (fs::read(dir.join(name)).unwrap(), mode(&fs::metadata(dir.join(name)).unwrap()));
            assert_eq!(file(&one), file(&other), "{name}");
        }
        for name in ["", "layer"] {
            assert_eq!(mode(&fs::metadata(other.join(name)).unwrap()), 0o700, "{name}");
        }
        write::unpack(&other, "db_other").unwrap();
        assert_eq!(fs::read(other.join("layer/files/a")).unwrap(), b"a table");
    }

    #[test]
    fn what_is_not_packed_has_no_copies() {
        let home = tempfile::tempdir().unwrap();
        assert!(matches!(Original::read(home.path(), "db_one"), Err(PackError::Io { .. })));
    }
}
