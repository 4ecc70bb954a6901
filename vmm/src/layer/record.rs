//! The journal's operations and their encoding.

use super::encoding::{Malformed, Reader, Writer};

/// What an object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    File = 0,
    Dir = 1,
    Symlink = 2,
}

impl Kind {
    pub fn from_u8(v: u8) -> Result<Kind, Malformed> {
        match v {
            0 => Ok(Kind::File),
            1 => Ok(Kind::Dir),
            2 => Ok(Kind::Symlink),
            _ => Err(Malformed),
        }
    }
}

/// Seconds and nanoseconds since 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Time {
    pub sec: i64,
    pub nsec: u32,
}

/// One change of the layer's structure. `docs/data-layer.md` says what each means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    /// `placed`: its origin's name still leads to it.
    Object { id: u64, kind: Kind, mode: u32, mtime: Time, origin: Option<Vec<u8>>, placed: bool, target: Vec<u8> },
    Link { folder: u64, name: Vec<u8>, id: u64, cookie: u64, covers: bool },
    Unlink { folder: u64, name: Vec<u8>, whiteout: bool },
    Data { id: u64, visible: u64, map: Vec<u8> },
    Truncate { id: u64, size: u64, visible: u64 },
    Attr { id: u64, mode: u32, mtime: Time },
    Epoch,
}

fn time(w: &mut Writer, t: Time) {
    w.i64(t.sec);
    w.u32(t.nsec);
}

pub(crate) fn read_time(r: &mut Reader) -> Result<Time, Malformed> {
    Ok(Time { sec: r.i64()?, nsec: r.u32()? })
}

impl Op {
    pub fn write(&self, w: &mut Writer) {
        match self {
            Op::Object { id, kind, mode, mtime, origin, placed, target } => {
                w.u8(1);
                w.u64(*id);
                w.u8(*kind as u8);
                w.u32(*mode);
                time(w, *mtime);
                w.u8(origin.is_some() as u8);
                if let Some(origin) = origin {
                    w.blob(origin);
                }
                w.u8(*placed as u8);
                w.blob(target);
            }
            Op::Link { folder, name, id, cookie, covers } => {
                w.u8(2);
                w.u64(*folder);
                w.blob(name);
                w.u64(*id);
                w.u64(*cookie);
                w.u8(*covers as u8);
            }
            Op::Unlink { folder, name, whiteout } => {
                w.u8(3);
                w.u64(*folder);
                w.blob(name);
                w.u8(*whiteout as u8);
            }
            Op::Data { id, visible, map } => {
                w.u8(4);
                w.u64(*id);
                w.u64(*visible);
                w.blob(map);
            }
            Op::Truncate { id, size, visible } => {
                w.u8(5);
                w.u64(*id);
                w.u64(*size);
                w.u64(*visible);
            }
            Op::Attr { id, mode, mtime } => {
                w.u8(6);
                w.u64(*id);
                w.u32(*mode);
                time(w, *mtime);
            }
            Op::Epoch => w.u8(7),
        }
    }

    pub fn read(r: &mut Reader) -> Result<Op, Malformed> {
        Ok(match r.u8()? {
            1 => Op::Object {
                id: r.u64()?,
                kind: Kind::from_u8(r.u8()?)?,
                mode: r.u32()?,
                mtime: read_time(r)?,
                origin: if r.bool()? { Some(r.blob()?.to_vec()) } else { None },
                placed: r.bool()?,
                target: r.blob()?.to_vec(),
            },
            2 => Op::Link {
                folder: r.u64()?,
                name: r.blob()?.to_vec(),
                id: r.u64()?,
                cookie: r.u64()?,
                covers: r.bool()?,
            },
            3 => Op::Unlink { folder: r.u64()?, name: r.blob()?.to_vec(), whiteout: r.bool()? },
            4 => Op::Data { id: r.u64()?, visible: r.u64()?, map: r.blob()?.to_vec() },
            5 => Op::Truncate { id: r.u64()?, size: r.u64()?, visible: r.u64()? },
            6 => Op::Attr { id: r.u64()?, mode: r.u32()?, mtime: read_time(r)? },
            7 => Op::Epoch,
            _ => return Err(Malformed),
        })
    }
}
