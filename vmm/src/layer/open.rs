//! Opening a layer: the lock, the identity, and memory made from the journal.

use super::encoding::Malformed;
use super::error::LayerError;
use super::host::Host;
use super::journal::Journal;
use super::map::BlockMap;
use super::object::{Body, DirState, FileState, Object, Override, Own, ROOT, RecordedData};
use super::record::{Kind, Op, Time};
use super::template::Template;
use super::tree::{FIRST_COOKIE, check_name};
use super::{Errno, Layer, LayerOptions};
use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::path::Path;

impl From<Malformed> for LayerError {
    fn from(_: Malformed) -> LayerError {
        LayerError::BadSaved
    }
}

impl Layer {
    /// Opens the layer as after a crash, which is also right after a clean stop.
    pub fn open(layer: &Path, template: &Path, options: LayerOptions) -> Result<Layer, LayerError> {
        let mut layer = Layer::load_journal(layer, template, options, true)?;
        layer.settle()?;
        Ok(layer)
    }

    /// Opens it for reading its merged files. It makes nothing, not even a journal, but holds the lock.
    pub(super) fn open_to_read(layer: &Path, template: &Path, options: LayerOptions) -> Result<Layer, LayerError> {
        let mut layer = Layer::load_journal(layer, template, options, false)?;
        layer.settle()?;
        Ok(layer)
    }

    /// Takes the lock and carries out the journal.
    pub(super) fn load_journal(
        path: &Path,
        template: &Path,
        options: LayerOptions,
        create: bool,
    ) -> Result<Layer, LayerError> {
        let host = Host::open(path, true)
            .map_err(LayerError::io(format!("cannot open the layer {}", path.display())))?
            .ok_or_else(|| LayerError::LayerLocked(path.to_owned()))?;
        let template = Template::open(template)
            .map_err(LayerError::io(format!("cannot open the template {}", template.display())))?;
        let root = template.stat(b"").map_err(|e| LayerError::io("cannot read the template")(e.into()))?;
        let (journal, ops) = Journal::load(&host, &options.template, create)?;
        let mut layer = Layer {
            host,
            template,
            journal,
            options,
            objects: HashMap::new(),
            by_origin: HashMap::new(),
            next_id: ROOT + 1,
            next_cookie: FIRST_COOKIE,
            names: 0,
            dirty: BTreeSet::new(),
            flushing: Vec::new(),
            files_created: false,
            doomed: Vec::new(),
            garbage: Vec::new(),
            used: 0,
            gate: None,
            recovering: None,
            changed: false,
            poisoned: false,
            open_files: VecDeque::new(),
        };
        layer.objects.insert(
            ROOT,
            Object {
                origin: Some(Vec::new()),
                placed: true,
                mode: 0o700,
                mtime: root.map_or(Time::default(), |entry| entry.mtime),
                recorded: true,
                links: 1,
                bulk: false,
                lookups: 0,
                body: Body::Dir(DirState::default()),
            },
        );
        layer.by_origin.insert(Vec::new(), ROOT);
        for op in &ops {
            layer.apply(op).map_err(|_| LayerError::Damaged(format!("its journal holds what can't be: {op:?}")))?;
        }
        Ok(layer)
    }

    /// Carries out one recorded operation in memory.
    pub(super) fn apply(&mut self, op: &Op) -> Result<(), Errno> {
        const BAD: Errno = Errno(libc::EINVAL);
        match op {
            Op::Object { id, kind, mode, mtime, origin, placed, target } => {
                let id = *id;
                let taken = origin.as_ref().is_some_and(|o| self.by_origin.contains_key(o));
                if id <= ROOT || taken || self.objects.contains_key(&id) {
                    return Err(BAD);
                }
                let body = match kind {
                    // Whether there is a file is known only for one from the template: not without `Data`.
                    Kind::File if origin.is_some() => Body::File(FileState::default()),
                    Kind::File => Body::File(FileState { own: Own::Unknown, ..FileState::default() }),
                    Kind::Dir => Body::Dir(DirState::default()),
                    Kind::Symlink => Body::Symlink(match origin {
                        Some(origin) => self.template.read_link(origin)?,
                        None => target.clone(),
                    }),
                };
                if let Some(origin) = origin {
                    self.by_origin.insert(origin.clone(), id);
                }
                let object = Object {
                    origin: origin.clone(),
                    placed: *placed,
                    mode: *mode,
                    mtime: *mtime,
                    recorded: true,
                    links: u32::from(*placed),
                    bulk: false,
                    lookups: 0,
                    body,
                };
                self.objects.insert(id, object);
                self.next_id = self.next_id.max(id + 1);
            }
            Op::Link { folder, name, id, cookie, covers } => {
                check_name(name)?;
                let dir = self.object(*folder)?.dir().ok_or(BAD)?;
                let covered = match dir.overrides.get(name) {
                    None => false,
                    Some(Override::Whiteout) => true,
                    Some(Override::Entry { .. }) => return Err(BAD),
                };
                if covered != *covers || dir.by_cookie.contains_key(cookie) || *cookie < FIRST_COOKIE {
                    return Err(BAD);
                }
                self.add_name(*folder, name, Override::Entry { id: *id, cookie: *cookie, covers: *covers })?;
                self.next_cookie = self.next_cookie.max(cookie + 1);
            }
            Op::Unlink { folder, name, whiteout } => {
                check_name(name)?;
                let (left, _) = self.remove_name(*folder, name)?;
                if left != *whiteout {
                    return Err(BAD);
                }
            }
            Op::Data { id, visible, map } => {
                let file = self.object_mut(*id)?.file_mut().ok_or(BAD)?;
                let map = BlockMap::from_bytes(map);
                file.recorded = RecordedData { any: true, visible: *visible, map: map.clone(), cut: None };
                file.visible = *visible;
                file.map = map;
                file.own = Own::Unknown;
            }
            Op::Truncate { id, size, visible } => {
                let file = self.object_mut(*id)?.file_mut().ok_or(BAD)?;
                file.map.cut(visible.div_ceil(super::map::BLOCK));
                file.visible = *visible;
                file.recorded =
                    RecordedData { any: true, visible: *visible, map: file.map.clone(), cut: Some(*size) };
                file.own = Own::Unknown;
            }
            Op::Attr { id, mode, mtime } => {
                let object = self.object_mut(*id)?;
                object.mode = *mode;
                object.mtime = *mtime;
            }
            Op::Epoch => {}
        }
        Ok(())
    }

    /// Compares the journal with the files that are there. Files of nobody are noted, to be removed before the first
    /// change; nothing is known to be durable.
    fn settle(&mut self) -> Result<(), LayerError> {
        self.drop_nameless();
        let found = self.host.list().map_err(LayerError::io("cannot list the layer's files"))?;
        let mut present = HashSet::new();
        for (id, disk) in found {
            let file = self.objects.get_mut(&id).and_then(Object::file_mut);
            match file {
                Some(file) if file.own != Own::No => {
                    present.insert(id);
                    file.map_changed = !file.recorded.any;
                    file.dirty = true;
                    self.dirty.insert(id);
                    self.files_created = true;
                    self.used += disk;
                }
                _ => self.garbage.push(id),
            }
            // Numbers in use by files of nobody are not given out again before those are gone.
            self.next_id = self.next_id.max(id.saturating_add(1));
        }
        for (id, object) in &self.objects {
            let Some(file) = object.file() else { continue };
            if file.recorded.any && file.recorded.cut.is_none() && !present.contains(id) {
                return Err(LayerError::Damaged(format!("file {id:x} is missing")));
            }
        }
        Ok(())
    }

    /// Lets go of objects that lost their last name before the layer was opened.
    pub(super) fn drop_nameless(&mut self) {
        let gone: Vec<u64> =
            self.objects.iter().filter(|(_, o)| o.links == 0 && o.lookups == 0).map(|(&id, _)| id).collect();
        for id in gone {
            if let Some(object) = self.objects.remove(&id) {
                if let Some(origin) = &object.origin {
                    self.by_origin.remove(origin);
                }
                if let Some(dir) = object.dir() {
                    self.names -= dir.overrides.len();
                }
            }
        }
    }
}
