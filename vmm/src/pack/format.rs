//! The file `packed`: a block of header, the layer's files, the snapshot; both compressed, the second against the first.
//!
//! ```text
//! 0        1024
//! | header | zstd: the layer's files (layer::pack) | zstd, over those: snapshot header, state, page numbers, pages |
//! ```
//! Every part has a CRC-32C over its compressed bytes, so nothing unchecked reaches the decompressor.

use crate::codec::{Malformed, Reader, Writer};
use crate::snapshot::delta;
use crate::snapshot::format::{self, Extent, HEADER_LEN as SNAPSHOT_HEADER, Unreadable};

/// "DMPACKED".
pub const MAGIC: u64 = u64::from_le_bytes(*b"DMPACKED");
/// Bumped by every change that an older reader would misread.
pub const VERSION: u32 = 1;
/// Bytes of the header.
pub const HEADER_LEN: usize = 1024;
/// Longest name, bytes.
const MOST_NAME: usize = 200;
/// The most bytes of a layer's data that are packed. A larger database would wake too slowly from it, and it is in memory as
/// a whole meanwhile.
pub const MOST_LAYER: u64 = 32 << 20;
/// The most bytes of a snapshot's pages that are.
pub const MOST_PAGES: u64 = 64 << 20;
/// Beside their data: what names files and runs, or pages and state.
const MOST_BESIDE: u64 = 16 << 20;

/// A compressed part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Part {
    pub at: Extent,
    /// Bytes of its content.
    pub content: u64,
}

/// What it is bound to, and where its parts are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    pub database: String,
    /// The guest's memory, bytes.
    pub memory: u64,
    /// Length and CRC-32C of the layer's journal, which stays in the layer.
    pub journal: (u64, u32),
    pub layer: Part,
    pub snapshot: Part,
}

impl Header {
    pub fn encode(&self) -> Result<[u8; HEADER_LEN], Malformed> {
        if self.database.len() > MOST_NAME {
            return Err(Malformed);
        }
        let mut out = Writer::default();
        out.u64(MAGIC);
        out.u32(VERSION);
        out.bytes(self.database.as_bytes());
        out.u64(self.memory);
        out.u64(self.journal.0);
        out.u32(self.journal.1);
        for part in [self.layer, self.snapshot] {
            part.at.write(&mut out);
            out.u64(part.content);
        }
        Ok(format::seal(&out.into_bytes()))
    }

    pub fn decode(block: &[u8; HEADER_LEN]) -> Result<Self, Unreadable> {
        let damaged = Unreadable::Damaged("its header");
        let mut reader = Reader::new(block);
        let crc = reader.u32()?;
        if reader.u64()? != MAGIC || crc != crc32c::crc32c(&block[4..]) {
            return Err(damaged);
        }
        let version = reader.u32()?;
        if version != VERSION {
            return Err(Unreadable::OtherVersion(version));
        }
        let database = String::from_utf8(reader.bytes()?.to_vec()).map_err(|_| damaged.clone())?;
        let memory = reader.u64()?;
        let journal = (reader.u64()?, reader.u32()?);
        let mut part = |most: u64| {
            let at = Extent::read(&mut reader)?;
            let part = Part { at, content: reader.u64()? };
            let fits = part.content <= most + MOST_BESIDE && part.at.len <= most + MOST_BESIDE;
            if fits { Ok(part) } else { Err(damaged.clone()) }
        };
        let (layer, snapshot) = (part(MOST_LAYER)?, part(MOST_PAGES)?);
        Ok(Self { database, memory, journal, layer, snapshot })
    }
}

/// A snapshot taken apart.
#[derive(Debug, PartialEq, Eq)]
pub struct Content {
    pub header: format::Header,
    pub state: Vec<u8>,
    /// Guest-physical numbers of its pages.
    pub pages: Vec<u32>,
    bytes: Vec<u8>,
    /// Where the first page's difference begins in `bytes`.
    first: usize,
}

impl Content {
    /// `deltas` are those of the pages, one after the other (`snapshot::delta`).
    pub fn new(header: format::Header, state: Vec<u8>, pages: Vec<u32>, deltas: Vec<u8>) -> Self {
        Self { header, state, pages, bytes: deltas, first: 0 }
    }

    /// The pages' differences from their base, one after the other.
    pub fn deltas(&self) -> &[u8] {
        &self.bytes[self.first..]
    }

    pub fn encode(&self) -> Result<Vec<u8>, Malformed> {
        let mut bytes = head(&self.header)?;
        self.put_body(&mut bytes);
        Ok(bytes)
    }

    /// Adds what follows its header.
    pub(super) fn put_body(&self, bytes: &mut Vec<u8>) {
        let mut out = Writer::default();
        out.bytes(&self.state);
        out.u32(self.pages.len() as u32);
        for page in &self.pages {
            out.u32(*page);
        }
        bytes.extend_from_slice(&out.into_bytes());
        bytes.extend_from_slice(self.deltas());
    }

    /// Page numbers are below what the snapshot's memory has, and none comes twice.
    pub fn decode(bytes: Vec<u8>) -> Result<Self, Unreadable> {
        let mut reader = Reader::new(&bytes);
        let block: &[u8; SNAPSHOT_HEADER] = reader.bytes()?.try_into().map_err(|_| Malformed)?;
        let header = format::Header::decode(block)?;
        if header.version < format::DELTAS_SINCE {
            return Err(Unreadable::OtherVersion(header.version));
        }
        let state = reader.bytes()?.to_vec();
        let (mut pages, mut next) = (Vec::new(), 0);
        for _ in 0..reader.u32()? {
            let page = reader.u32()?;
            if page < next || u64::from(page) >= header.memory / dormouse_abi::PAGE {
                return Err(Unreadable::Damaged("its page numbers"));
            }
            next = page.checked_add(1).ok_or(Unreadable::Damaged("its page numbers"))?;
            pages.push(page);
        }
        let deltas = reader.rest();
        if !delta::are_of(deltas, pages.len()) {
            return Err(Unreadable::Damaged("its pages"));
        }
        let first = bytes.len() - deltas.len();
        Ok(Self { header, state, pages, bytes, first })
    }
}

/// How a snapshot's part begins: with its header, which alone says whose it is.
pub(super) fn head(header: &format::Header) -> Result<Vec<u8>, Malformed> {
    let mut out = Writer::default();
    out.bytes(&header.encode()?);
    Ok(out.into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: usize = dormouse_abi::PAGE as usize;

    fn header() -> Header {
        let at = Extent { offset: 1024, len: 10, crc: 1 };
        let part = Part { at, content: 100 };
        let database = "db_a".to_owned();
        Header { database, memory: 256 << 20, journal: (8000, 7), layer: part, snapshot: Part { content: 7, ..part } }
    }

    #[test]
    fn a_header_comes_back_and_every_flipped_bit_is_found() {
        let block = header().encode().unwrap();
        assert_eq!(Header::decode(&block), Ok(header()));
        for at in 0..HEADER_LEN {
            let mut bad = block;
            bad[at] ^= 1 << (at % 8);
            assert!(Header::decode(&bad).is_err(), "byte {at}");
        }
        let huge = Header { layer: Part { content: 1 << 40, ..header().layer }, ..header() };
        assert!(Header::decode(&huge.encode().unwrap()).is_err(), "more than memory is to hold");
    }

    #[test]
    fn a_snapshot_comes_back_and_a_cut_one_is_refused() {
        let snapshot = format::Header {
            version: format::VERSION,
            database: "db_a".into(),
            image: "0123".into(),
            template: "4567".into(),
            epoch: "89ab".into(),
            identity: "cpu".into(),
            base: String::new(),
            memory: 10 * dormouse_abi::PAGE,
            state: Extent::default(),
            index: Extent::default(),
        };
        let mut deltas = Vec::new();
        for page in [[5; PAGE], [6; PAGE]] {
            delta::encode(&page, &[5; PAGE], &mut deltas);
        }
        let content = Content::new(snapshot.clone(), b"state".to_vec(), vec![7, 9], deltas.clone());
        let encoded = content.encode().unwrap();
        let decoded = Content::decode(encoded.clone()).unwrap();
        assert_eq!((&decoded.header, &decoded.state), (&snapshot, &b"state".to_vec()));
        assert!(decoded.pages == [7, 9] && decoded.deltas() == deltas && decoded.encode().unwrap() == encoded);
        for cut in (0..encoded.len()).step_by(97).chain([encoded.len() - 1]) {
            assert!(Content::decode(encoded[..cut].to_vec()).is_err(), "cut at {cut}");
        }
        let older = Content::new(format::Header { version: 1, ..snapshot.clone() }, Vec::new(), vec![7, 9], deltas.clone());
        assert_eq!(Content::decode(older.encode().unwrap()), Err(Unreadable::OtherVersion(1)));
        for wild in [[7, 7], [9, 7], [7, 10]] {
            let content = Content::new(snapshot.clone(), Vec::new(), wild.to_vec(), deltas.clone());
            assert!(Content::decode(content.encode().unwrap()).is_err(), "{wild:?}");
        }
    }
}
