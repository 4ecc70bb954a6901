//! The saved state: what memory knows beyond the journal, so that a restored guest finds its node ids as they were.
//!
//! Format: magic `DMLS`, version, fields in the order of [`Layer::save`], CRC-32C over all before it.

use super::encoding::{Reader, Writer};
use super::error::LayerError;
use super::map::BlockMap;
use super::object::{Body, DirState, FileState, Object, Own, ROOT};
use super::record::{Kind, read_time};
use super::{Layer, LayerOptions};
use std::path::Path;

const MAGIC: u32 = u32::from_le_bytes(*b"DMLS");
/// Bumped whenever an older reader would misread a saved state.
const VERSION: u32 = 2;

impl Layer {
    /// The state of this life. It changes nothing and flushes nothing.
    pub fn save(&self) -> Vec<u8> {
        let mut w = Writer::default();
        w.u32(MAGIC);
        w.u32(VERSION);
        w.blob(self.options.template.as_bytes());
        w.u64(self.journal.position().0);
        w.u8(self.journal.unsynced() as u8);
        w.blob(self.journal.buffer());
        w.u64(self.next_id);
        w.u64(self.next_cookie);
        w.u64(self.used);
        w.u8(self.files_created as u8);
        w.u32(self.doomed.len() as u32);
        for id in &self.doomed {
            w.u64(*id);
        }
        let mut kept: Vec<_> = self.objects.iter().filter(|(_, object)| is_kept(object)).collect();
        kept.sort_unstable_by_key(|(id, _)| **id);
        w.u32(kept.len() as u32);
        for (id, object) in kept {
            w.u64(*id);
            save_object(&mut w, object);
        }
        let sum = crc32c::crc32c(&w.bytes);
        w.u32(sum);
        w.bytes
    }

    /// Opens the layer as it was when `saved` was made. It must not have changed since.
    pub fn restore(path: &Path, template: &Path, options: LayerOptions, saved: &[u8]) -> Result<Layer, LayerError> {
        let (body, sum) = saved.split_last_chunk::<4>().ok_or(LayerError::BadSaved)?;
        let mut r = Reader::new(body);
        if crc32c::crc32c(body) != u32::from_le_bytes(*sum) || r.u32()? != MAGIC || r.u32()? != VERSION {
            return Err(LayerError::BadSaved);
        }
        let recorded = String::from_utf8_lossy(r.blob()?).into_owned();
        if recorded != options.template {
            return Err(LayerError::OtherTemplate { recorded, given: options.template });
        }
        let mut layer = Layer::load_journal(path, template, options, true)?;
        let (expected, found) = (r.u64()?, layer.journal.position().0);
        if expected != found {
            return Err(LayerError::SnapshotStale { expected, found });
        }
        layer.journal.set_unsynced(r.bool()?);
        for op in layer.journal.resume(r.blob()?)? {
            layer.apply(&op).map_err(|_| LayerError::BadSaved)?;
        }
        layer.next_id = layer.next_id.max(r.u64()?);
        layer.next_cookie = layer.next_cookie.max(r.u64()?);
        layer.used = r.u64()?;
        layer.files_created = r.bool()?;
        for _ in 0..r.u32()? {
            layer.doomed.push(r.u64()?);
        }
        for _ in 0..r.u32()? {
            let id = r.u64()?;
            layer.restore_object(id, &mut r)?;
        }
        if !r.is_empty() {
            return Err(LayerError::BadSaved);
        }
        layer.drop_nameless();
        Ok(layer)
    }

    fn restore_object(&mut self, id: u64, r: &mut Reader) -> Result<(), LayerError> {
        let saved = read_object(r)?;
        if id == 0 || id >= self.next_id {
            return Err(LayerError::BadSaved);
        }
        if let Some(object) = self.objects.get_mut(&id) {
            // The journal has its names; memory has the rest.
            if object.links != saved.links {
                return Err(LayerError::BadSaved);
            }
            match (&mut object.body, saved.body) {
                (Body::Dir(dir), Body::Dir(was)) => dir.parent = was.parent,
                (Body::File(file), Body::File(was)) => *file = FileState { recorded: file.recorded.clone(), ..was },
                (Body::Symlink(_), Body::Symlink(_)) => {}
                _ => return Err(LayerError::BadSaved),
            }
            object.lookups = saved.lookups;
            object.mode = saved.mode;
            object.mtime = saved.mtime;
        } else {
            if saved.recorded && saved.links > 0 {
                return Err(LayerError::BadSaved);
            }
            if let Some(origin) = &saved.origin
                && self.by_origin.insert(origin.clone(), id).is_some()
            {
                return Err(LayerError::BadSaved);
            }
            self.objects.insert(id, saved);
        }
        if let Some(file) = self.objects.get(&id).and_then(Object::file)
            && file.dirty
        {
            self.dirty.insert(id);
        }
        Ok(())
    }
}

/// Whether memory knows more of the object than the journal will tell.
fn is_kept(object: &Object) -> bool {
    let file = |f: &FileState| f.dirty || f.map_changed;
    object.lookups > 0 || !object.recorded || object.file().is_some_and(file)
}

fn save_object(w: &mut Writer, object: &Object) {
    w.u64(object.lookups);
    w.u8(object.kind() as u8);
    w.u32(object.mode);
    w.i64(object.mtime.sec);
    w.u32(object.mtime.nsec);
    w.u8(object.recorded as u8);
    w.u32(object.links);
    w.u8(object.placed as u8);
    w.u8(object.origin.is_some() as u8);
    if let Some(origin) = &object.origin {
        w.blob(origin);
    }
    match &object.body {
        Body::Symlink(target) => w.blob(target),
        Body::Dir(dir) => w.u64(dir.parent),
        Body::File(file) => {
            w.option_u64(file.size);
            w.u8(match file.own {
                Own::No => 0,
                Own::Yes => 1,
                Own::Unknown => 2,
            });
            w.u64(file.visible);
            w.blob(&file.map.to_bytes());
            w.u8(file.map_changed as u8);
            w.u8(file.dirty as u8);
            w.u64(file.disk);
            w.option_u64(file.room_end);
        }
    }
}

fn read_object(r: &mut Reader) -> Result<Object, LayerError> {
    let lookups = r.u64()?;
    let kind = Kind::from_u8(r.u8()?)?;
    let mode = r.u32()?;
    let mtime = read_time(r)?;
    let recorded = r.bool()?;
    let links = r.u32()?;
    let placed = r.bool()?;
    let origin = if r.bool()? { Some(r.blob()?.to_vec()) } else { None };
    let body = match kind {
        Kind::Symlink => Body::Symlink(r.blob()?.to_vec()),
        Kind::Dir => Body::Dir(DirState { parent: r.u64()?, ..DirState::default() }),
        Kind::File => Body::File(FileState {
            size: r.option_u64()?,
            own: match r.u8()? {
                0 => Own::No,
                1 => Own::Yes,
                2 => Own::Unknown,
                _ => return Err(LayerError::BadSaved),
            },
            visible: r.u64()?,
            map: BlockMap::from_bytes(r.blob()?),
            map_changed: r.bool()?,
            dirty: r.bool()?,
            disk: r.u64()?,
            room_end: r.option_u64()?,
            ..FileState::default()
        }),
    };
    Ok(Object { origin, placed, mode, mtime, recorded, links, bulk: false, lookups, body })
}

const _: () = assert!(ROOT == 1);
