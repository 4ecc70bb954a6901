//! The snapshot file (`docs/snapshot.md`): one block of header, the state, the frames of pages, the index.
//!
//! ```text
//! 0          4096             state            frames                            index
//! | header   | cpu, devices … | 32 pages | 32 pages | …                          | frames, pages |
//! ```
//! Every part has a CRC-32C; a frame's covers its bytes as they are stored, so nothing unchecked reaches the decompressor.

use super::delta;
use crate::codec::{Malformed, Reader, Writer};

/// "DMSNAPSH".
pub const MAGIC: u64 = u64::from_le_bytes(*b"DMSNAPSH");
/// Bumped by every change that an older reader would misread. There is no reading of older frames: such a snapshot is
/// refused, and its database starts cold. A golden snapshot has none, and is read.
pub const VERSION: u32 = 3;
/// From this version on differences of pages are as they are now; only how frames of them are stored has changed since.
pub const DELTAS_SINCE: u32 = 2;
/// Bytes of the header's block.
pub const HEADER_LEN: usize = 4096;
/// Pages of a frame: what is in the processor's cache at once while they are put in place.
pub const FRAME_PAGES: usize = 32;
/// The longest that a frame's content is, bytes.
pub const FRAME_LONGEST: usize = FRAME_PAGES * delta::LONGEST;
/// Longest name in a header, bytes.
const MOST_NAME: usize = 200;

/// A range of the file and the CRC-32C of its bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extent {
    pub offset: u64,
    pub len: u64,
    pub crc: u32,
}

impl Extent {
    pub fn write(self, out: &mut Writer) {
        out.u64(self.offset);
        out.u64(self.len);
        out.u32(self.crc);
    }

    pub fn read(reader: &mut Reader) -> Result<Self, Malformed> {
        Ok(Self { offset: reader.u64()?, len: reader.u64()?, crc: reader.u32()? })
    }
}

/// A header's block: the CRC-32C of all that follows, the bytes, which fit, and zeroes.
pub fn seal<const LEN: usize>(bytes: &[u8]) -> [u8; LEN] {
    let mut block = [0; LEN];
    block[4..4 + bytes.len()].copy_from_slice(bytes);
    let crc = crc32c::crc32c(&block[4..]);
    block[..4].copy_from_slice(&crc.to_le_bytes());
    block
}

/// What a snapshot is bound to and where its parts are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Of its frames' format: [`VERSION`], or an older one.
    pub version: u32,
    /// The database; empty in a golden snapshot.
    pub database: String,
    /// The image's name.
    pub image: String,
    /// The template's content hash.
    pub template: String,
    /// One life of the guest's memory.
    pub epoch: String,
    /// CPU, KVM flavour and host kernel (`machine::cpu::identity`).
    pub identity: String,
    /// The golden snapshot whose memory this one's pages differ from; empty for zeroes. In a golden snapshot, its
    /// own name.
    pub base: String,
    /// Guest memory, bytes.
    pub memory: u64,
    pub state: Extent,
    pub index: Extent,
}

impl Header {
    /// The block.
    pub fn encode(&self) -> Result<[u8; HEADER_LEN], Malformed> {
        let mut out = Writer::default();
        out.u64(MAGIC);
        out.u32(self.version);
        for name in [&self.database, &self.image, &self.template, &self.epoch, &self.identity, &self.base] {
            if name.len() > MOST_NAME {
                return Err(Malformed);
            }
            out.bytes(name.as_bytes());
        }
        out.u64(self.memory);
        self.state.write(&mut out);
        self.index.write(&mut out);
        Ok(seal(&out.into_bytes()))
    }

    /// Reads and checks the block.
    pub fn decode(block: &[u8; HEADER_LEN]) -> Result<Self, Unreadable> {
        let mut reader = Reader::new(block);
        let crc = reader.u32()?;
        if reader.u64()? != MAGIC {
            return Err(Unreadable::NotASnapshot);
        }
        if crc != crc32c::crc32c(&block[4..]) {
            return Err(Unreadable::Damaged("its header"));
        }
        let version = reader.u32()?;
        if !(1..=VERSION).contains(&version) {
            return Err(Unreadable::OtherVersion(version));
        }
        let mut name = || -> Result<String, Unreadable> {
            String::from_utf8(reader.bytes()?.to_vec()).map_err(|_| Unreadable::Damaged("a name"))
        };
        let (database, image, template, epoch, identity, base) = (name()?, name()?, name()?, name()?, name()?, name()?);
        let memory = reader.u64()?;
        let (state, index) = (Extent::read(&mut reader)?, Extent::read(&mut reader)?);
        Ok(Self { version, database, image, template, epoch, identity, base, memory, state, index })
    }
}

/// Why bytes are no snapshot.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    #[error("it is not a snapshot")]
    NotASnapshot,
    #[error("{0} is damaged")]
    Damaged(&'static str),
    #[error("it has format version {0}, this program reads {VERSION}")]
    OtherVersion(u32),
}

impl From<Malformed> for Unreadable {
    fn from(_: Malformed) -> Self {
        Self::Damaged("its structure")
    }
}

/// Some pages' differences (`delta`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// It is an LZ4 block of them.
    pub compressed: bool,
    /// Where it is in the file; consecutive in practice, stated so that parts can be read alone.
    pub at: Extent,
    /// Guest-physical numbers of its pages, at most [`FRAME_PAGES`], in the order of its content.
    pub pages: Vec<u32>,
}

impl Frame {
    /// How a frame of this content is stored, and whether that is compressed: if a quarter is left of it. Else a wake reads the
    /// rest faster than it decompresses all. `room` is as long as LZ4 may ask for, [`lz4_flex::block::get_maximum_output_size`] of its length.
    pub fn store<'a>(content: &'a [u8], room: &'a mut [u8]) -> (&'a [u8], bool) {
        match lz4_flex::block::compress_into(content, room) {
            Ok(len) if len * 4 <= content.len() => (&room[..len], true),
            _ => (content, false),
        }
    }

    /// Its content, from its bytes as they are stored. `None`: that is not what they are. `room` is for [`FRAME_LONGEST`] bytes.
    pub fn content<'a>(&self, stored: &'a [u8], room: &'a mut [u8]) -> Option<&'a [u8]> {
        if !self.compressed {
            return Some(stored);
        }
        let len = lz4_flex::block::decompress_into(stored, room).ok()?;
        Some(&room[..len])
    }
}

/// The index.
pub fn encode_index(frames: &[Frame]) -> Vec<u8> {
    let mut out = Writer::default();
    out.u32(frames.len() as u32);
    for frame in frames {
        out.u64(frame.at.offset);
        out.u32(frame.at.len as u32);
        out.u32(frame.at.crc);
        out.u8(u8::from(frame.compressed));
        out.u16(frame.pages.len() as u16);
        for page in &frame.pages {
            out.u32(*page);
        }
    }
    out.into_bytes()
}

/// Reads an index whose bytes have been checked; page numbers are below `pages` and ascend, so none comes twice.
pub fn decode_index(bytes: &[u8], pages: u64) -> Result<Vec<Frame>, Unreadable> {
    let mut reader = Reader::new(bytes);
    let mut frames = Vec::new();
    let mut next = 0;
    for _ in 0..reader.u32()? {
        let at = Extent { offset: reader.u64()?, len: u64::from(reader.u32()?), crc: reader.u32()? };
        let compressed = match reader.u8()? {
            0 => false,
            1 => true,
            _ => return Err(Unreadable::Damaged("its index")),
        };
        let count = usize::from(reader.u16()?);
        if count == 0 || count > FRAME_PAGES || at.len > FRAME_LONGEST as u64 {
            return Err(Unreadable::Damaged("its index"));
        }
        let mut list = Vec::with_capacity(count);
        for _ in 0..count {
            let page = reader.u32()?;
            if u64::from(page) >= pages || page < next {
                return Err(Unreadable::Damaged("its index"));
            }
            next = page.checked_add(1).ok_or(Unreadable::Damaged("its index"))?;
            list.push(page);
        }
        frames.push(Frame { compressed, at, pages: list });
    }
    reader.end()?;
    Ok(frames)
}

#[cfg(test)]
mod tests {
    use lz4_flex::block::get_maximum_output_size;

    use super::*;

    fn header() -> Header {
        Header {
            version: VERSION,
            database: "db_a".into(),
            image: "0123".into(),
            template: "4567".into(),
            epoch: "89ab".into(),
            identity: "cpu".into(),
            base: String::new(),
            memory: 256 << 20,
            state: Extent { offset: 4096, len: 10, crc: 1 },
            index: Extent { offset: 5000, len: 20, crc: 2 },
        }
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
        let mut newer = block;
        newer[12] = VERSION as u8 + 1;
        let crc = crc32c::crc32c(&newer[4..]);
        newer[..4].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(Header::decode(&newer), Err(Unreadable::OtherVersion(VERSION + 1)));
    }

    #[test]
    fn an_index_comes_back_and_wild_ones_are_refused() {
        let frames = vec![Frame {
            compressed: true,
            at: Extent { offset: 1, len: 2, crc: 3 },
            pages: vec![7, 9],
        }];
        let bytes = encode_index(&frames);
        assert_eq!(decode_index(&bytes, 10).as_ref(), Ok(&frames));
        assert!(decode_index(&bytes, 9).is_err(), "a page beyond memory");
        for cut in 0..bytes.len() {
            assert!(decode_index(&bytes[..cut], 10).is_err(), "cut at {cut}");
        }
        assert!(decode_index(&[0xff; 64], 10).is_err());
        let twice = vec![frames[0].clone(), frames[0].clone()];
        assert!(decode_index(&encode_index(&twice), 10).is_err(), "a page twice");
    }

    #[test]
    fn a_frame_is_compressed_where_a_quarter_is_left_of_it_and_comes_back() {
        let mut state = 1u64;
        let mut noise = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        };
        let noise: Vec<u8> = (0..FRAME_LONGEST).map(|_| noise()).collect();
        let third = [&noise[..10_000], &[7; 20_000][..]].concat();
        for (content, expected) in [(&noise[..], false), (&third[..], false), (&[3; 5000][..], true), (&[][..], false)] {
            let mut room = vec![0; get_maximum_output_size(FRAME_LONGEST)];
            let (stored, compressed) = Frame::store(content, &mut room);
            assert_eq!(compressed, expected, "{} bytes as {}", content.len(), stored.len());
            assert!(stored.len() <= content.len());
            let frame = Frame { compressed, at: Extent::default(), pages: Vec::new() };
            assert!(frame.content(stored, &mut vec![0; FRAME_LONGEST]) == Some(content));
        }
        let damaged = Frame { compressed: true, at: Extent::default(), pages: Vec::new() };
        assert_eq!(damaged.content(&[0xff; 9], &mut vec![0; FRAME_LONGEST]), None);
    }
}
