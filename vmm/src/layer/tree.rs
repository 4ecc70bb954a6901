//! Names: looking up, making, removing, moving, listing.

use super::object::{Body, DirState, FileState, Object, Override, Own, ROOT};
use super::record::{Kind, Op};
use super::template::{Listing, is_bulk_name, join};
use super::{Errno, Layer, now};

/// The longest name, in bytes.
const NAME_MAX: usize = 255;
/// The longest link target, in bytes.
const TARGET_MAX: usize = 4095;
/// Listing positions of the layer's own entries start here; the template's are below.
pub(crate) const FIRST_COOKIE: u64 = 1 << 32;

/// Refuses what can't be one component of a path.
pub(crate) fn check_name(name: &[u8]) -> Result<(), Errno> {
    match name {
        b"" | b"." | b".." => Err(Errno(libc::EINVAL)),
        _ if name.len() > NAME_MAX => Err(Errno(libc::ENAMETOOLONG)),
        _ if name.iter().any(|&b| b == b'/' || b == 0) => Err(Errno(libc::EINVAL)),
        _ => Ok(()),
    }
}

/// One entry of a folder's listing.
pub(crate) struct Listed {
    pub name: Vec<u8>,
    pub kind: Kind,
    /// Position to go on after this entry.
    pub cookie: u64,
}

impl Layer {
    /// The object that the guest looked up under this number; one that it never got, or forgot, is ENOENT.
    pub(crate) fn check_node(&self, id: u64) -> Result<Kind, Errno> {
        match self.objects.get(&id) {
            Some(object) if object.lookups > 0 || id == ROOT => Ok(object.kind()),
            _ => Err(Errno(libc::ENOENT)),
        }
    }

    /// Takes an object to be changed in, as a folder that still has a name.
    fn folder(&self, id: u64) -> Result<&DirState, Errno> {
        let object = self.object(id)?;
        let dir = object.dir().ok_or(Errno(libc::ENOTDIR))?;
        if object.links == 0 { Err(Errno(libc::ENOENT)) } else { Ok(dir) }
    }

    /// The object behind a name, brought into memory.
    pub(super) fn child(&mut self, folder: u64, name: &[u8]) -> Result<Option<u64>, Errno> {
        check_name(name)?;
        let parent = self.object(folder)?;
        let dir = parent.dir().ok_or(Errno(libc::ENOTDIR))?;
        match dir.overrides.get(name) {
            Some(Override::Whiteout) => return Ok(None),
            Some(Override::Entry { id, .. }) => return Ok(Some(*id)),
            None => {}
        }
        let Some(origin) = &parent.origin else { return Ok(None) };
        let path = join(origin, name);
        let id = match self.by_origin.get(&path) {
            Some(&id) if self.object(id)?.placed => id,
            Some(_) => return Ok(None),
            None => {
                let Some(entry) = self.template.stat(&path)? else { return Ok(None) };
                let body = match entry.kind {
                    Kind::File => {
                        Body::File(FileState { size: Some(entry.size), visible: entry.size, ..FileState::default() })
                    }
                    Kind::Dir => Body::Dir(DirState::default()),
                    Kind::Symlink => Body::Symlink(self.template.read_link(&path)?),
                };
                let mode = match entry.kind {
                    Kind::File => 0o600,
                    Kind::Dir => 0o700,
                    Kind::Symlink => 0o777,
                };
                let id = self.next_id;
                self.next_id += 1;
                self.by_origin.insert(path.clone(), id);
                self.objects.insert(
                    id,
                    Object {
                        origin: Some(path),
                        placed: true,
                        mode,
                        mtime: entry.mtime,
                        recorded: false,
                        links: 1,
                        bulk: false,
                        lookups: 0,
                        body,
                    },
                );
                id
            }
        };
        if let Some(dir) = self.object_mut(id)?.dir_mut() {
            dir.parent = folder;
        }
        Ok(Some(id))
    }

    /// Looks a name up for the guest, which then holds one reference.
    pub(crate) fn lookup(&mut self, folder: u64, name: &[u8]) -> Result<u64, Errno> {
        let id = self.child(folder, name)?.ok_or(Errno(libc::ENOENT))?;
        self.refer(id)?;
        Ok(id)
    }

    fn refer(&mut self, id: u64) -> Result<(), Errno> {
        let object = self.object_mut(id)?;
        object.lookups = object.lookups.saturating_add(1);
        Ok(())
    }

    /// Gives back `count` references.
    pub(crate) fn forget(&mut self, id: u64, count: u64) {
        if let Some(object) = self.objects.get_mut(&id) {
            object.lookups = object.lookups.saturating_sub(count);
            self.drop_unused(id);
        }
    }

    /// Lets go of an object that neither a name nor the guest can reach, or that can be read again from the template.
    /// Folders of the template stay, since what is below them counts on its parents.
    pub(super) fn drop_unused(&mut self, id: u64) {
        let Some(object) = self.objects.get(&id) else { return };
        let unchanged = !object.recorded && object.kind() != Kind::Dir;
        if id == ROOT || object.lookups > 0 || (object.links > 0 && !unchanged) {
            return;
        }
        let Some(object) = self.objects.remove(&id) else { return };
        if let Some(origin) = &object.origin {
            self.by_origin.remove(origin);
        }
        match &object.body {
            Body::File(file) if file.own != Own::No => {
                self.used = self.used.saturating_sub(self.disk_of(id, file));
                self.dirty.remove(&id);
                self.doomed.push(id);
            }
            Body::Dir(dir) => self.names -= dir.overrides.len(),
            _ => {}
        }
    }

    fn disk_of(&self, id: u64, file: &FileState) -> u64 {
        match (file.size, self.host.stat_file(id)) {
            (None, Ok(Some(stat))) => stat.st_blocks as u64 * 512,
            _ => file.disk,
        }
    }

    /// Adds to `ops` what the journal needs before it can name `id`.
    pub(super) fn record(&mut self, id: u64, ops: &mut Vec<Op>) -> Result<(), Errno> {
        let object = self.object_mut(id)?;
        // An object without a name is nobody's after a crash.
        if object.recorded || object.links == 0 {
            return Ok(());
        }
        object.recorded = true;
        ops.push(object_op(id, object));
        Ok(())
    }

    /// Enters a name, in memory only.
    pub(super) fn add_name(&mut self, folder: u64, name: &[u8], entry: Override) -> Result<(), Errno> {
        if let Override::Entry { id, .. } = entry {
            let bulk = self.place_of(folder).is_some_and(|(top, depth)| is_bulk_name(top, depth, name));
            let object = self.object_mut(id)?;
            object.links += 1;
            object.bulk |= bulk;
            if let Some(dir) = object.dir_mut() {
                dir.parent = folder;
            }
        }
        let time = now();
        let parent = self.object_mut(folder)?;
        parent.mtime = time;
        let dir = parent.dir_mut().ok_or(Errno(libc::ENOTDIR))?;
        if let Override::Entry { cookie, .. } = entry {
            dir.by_cookie.insert(cookie, name.to_vec());
        }
        if dir.overrides.insert(name.to_vec(), entry).is_none() {
            self.names += 1;
        }
        Ok(())
    }

    /// The template's top folder that a folder is below, and how many names a file in it has below that one.
    fn place_of(&self, folder: u64) -> Option<(&[u8], usize)> {
        let (mut at, mut depth) = (folder, 1);
        // Deeper than this nothing of interest is, and a journal that goes in circles ends too.
        while depth <= 6 {
            let object = self.objects.get(&at)?;
            let Some(origin) = &object.origin else {
                at = object.dir()?.parent;
                depth += 1;
                continue;
            };
            let mut parts = origin.split(|&b| b == b'/');
            let top = parts.next()?;
            return Some((top, depth + parts.count()));
        }
        None
    }

    /// Takes a name away, in memory only. Returns whether a whiteout is left, and the object if it is in memory.
    pub(super) fn remove_name(&mut self, folder: u64, name: &[u8]) -> Result<(bool, Option<u64>), Errno> {
        let time = now();
        let parent = self.object_mut(folder)?;
        parent.mtime = time;
        let path = parent.origin.as_ref().map(|origin| join(origin, name));
        let dir = parent.dir_mut().ok_or(Errno(libc::ENOTDIR))?;
        let (whiteout, id) = match dir.overrides.get(name).copied() {
            Some(Override::Whiteout) => return Err(Errno(libc::ENOENT)),
            Some(Override::Entry { id, cookie, covers }) => {
                dir.by_cookie.remove(&cookie);
                if covers {
                    dir.overrides.insert(name.to_vec(), Override::Whiteout);
                } else {
                    dir.overrides.remove(name);
                    self.names -= 1;
                }
                let object = self.object_mut(id)?;
                object.links = object.links.saturating_sub(1);
                (covers, Some(id))
            }
            None => {
                let path = path.ok_or(Errno(libc::ENOENT))?;
                dir.overrides.insert(name.to_vec(), Override::Whiteout);
                self.names += 1;
                let id = self.by_origin.get(&path).copied();
                if let Some(object) = id.and_then(|id| self.objects.get_mut(&id))
                    && object.placed
                {
                    object.placed = false;
                    object.links = object.links.saturating_sub(1);
                }
                (true, id)
            }
        };
        Ok((whiteout, id))
    }

    fn link_op(&mut self, folder: u64, name: &[u8], id: u64) -> Result<(Op, Override), Errno> {
        let covers = self.folder(folder)?.overrides.get(name) == Some(&Override::Whiteout);
        let cookie = self.next_cookie;
        self.next_cookie += 1;
        Ok((
            Op::Link { folder, name: name.to_vec(), id, cookie, covers },
            Override::Entry { id, cookie, covers },
        ))
    }

    fn check_room(&mut self) -> Result<(), Errno> {
        let full = self.objects.len().max(self.names) >= self.options.object_limit;
        // A name costs some 100 bytes of journal.
        let bytes = self.disk_bytes() + 4096;
        if full || self.storage_limit().is_some_and(|(limit, _)| bytes > limit) {
            return Err(Errno(libc::ENOSPC));
        }
        Ok(())
    }

    /// Makes a file, folder or symbolic link; the guest then holds one reference to it.
    pub(crate) fn create(
        &mut self,
        folder: u64,
        name: &[u8],
        kind: Kind,
        mode: u32,
        target: &[u8],
    ) -> Result<u64, Errno> {
        self.folder(folder)?;
        if self.child(folder, name)?.is_some() {
            return Err(Errno(libc::EEXIST));
        }
        if target.len() > TARGET_MAX {
            return Err(Errno(libc::ENAMETOOLONG));
        }
        self.check_room()?;
        self.begin_change()?;
        let body = match kind {
            Kind::File => Body::File(FileState { size: Some(0), ..FileState::default() }),
            Kind::Dir => Body::Dir(DirState { parent: folder, ..DirState::default() }),
            Kind::Symlink => Body::Symlink(target.to_vec()),
        };
        let id = self.next_id;
        self.next_id += 1;
        let object = Object {
            origin: None,
            placed: false,
            mode: mode & 0o7777,
            mtime: now(),
            recorded: true,
            links: 0,
            bulk: false,
            lookups: 1,
            body,
        };
        let mut ops = Vec::new();
        self.record(folder, &mut ops)?;
        ops.push(object_op(id, &object));
        self.objects.insert(id, object);
        let (op, entry) = self.link_op(folder, name, id)?;
        ops.push(op);
        self.add_name(folder, name, entry)?;
        self.push(&ops)?;
        Ok(id)
    }

    /// One more name for a file or link; the guest then holds one more reference to it.
    pub(crate) fn link(&mut self, id: u64, folder: u64, name: &[u8]) -> Result<(), Errno> {
        self.folder(folder)?;
        let object = self.object(id)?;
        if object.kind() == Kind::Dir {
            return Err(Errno(libc::EPERM));
        }
        if object.links == 0 {
            return Err(Errno(libc::ENOENT));
        }
        if object.links >= 65_000 {
            return Err(Errno(libc::EMLINK));
        }
        if self.child(folder, name)?.is_some() {
            return Err(Errno(libc::EEXIST));
        }
        self.check_room()?;
        self.begin_change()?;
        let mut ops = Vec::new();
        self.record(folder, &mut ops)?;
        self.record(id, &mut ops)?;
        let (op, entry) = self.link_op(folder, name, id)?;
        ops.push(op);
        self.add_name(folder, name, entry)?;
        self.refer(id)?;
        self.push(&ops)
    }

    /// Removes a name: of a folder if `of_folder`, else of anything else.
    pub(crate) fn unlink(&mut self, folder: u64, name: &[u8], of_folder: bool) -> Result<(), Errno> {
        let id = self.child(folder, name)?.ok_or(Errno(libc::ENOENT))?;
        let checked = match (self.object(id)?.kind() == Kind::Dir, of_folder) {
            (true, false) => Err(Errno(libc::EISDIR)),
            (false, true) => Err(Errno(libc::ENOTDIR)),
            (true, true) if !self.is_empty_folder(id)? => Err(Errno(libc::ENOTEMPTY)),
            _ => self.begin_change(),
        };
        if let Err(error) = checked {
            self.drop_unused(id);
            return Err(error);
        }
        let mut ops = Vec::new();
        self.record(folder, &mut ops)?;
        let (whiteout, _) = self.remove_name(folder, name)?;
        ops.push(Op::Unlink { folder, name: name.to_vec(), whiteout });
        self.drop_unused(id);
        self.push(&ops)
    }

    /// Moves a name, over another one if there is and unless `keep`, in one step.
    pub(crate) fn rename(&mut self, from: u64, old: &[u8], to: u64, new: &[u8], keep: bool) -> Result<(), Errno> {
        let id = self.child(from, old)?.ok_or(Errno(libc::ENOENT))?;
        let checked = self.check_rename(id, to, new, keep);
        let over = match checked {
            Ok(Some(over)) if over == id => return Ok(()),
            Ok(over) => over,
            Err(error) => {
                self.drop_unused(id);
                return Err(error);
            }
        };
        self.begin_change()?;
        let mut ops = Vec::new();
        self.record(from, &mut ops)?;
        self.record(to, &mut ops)?;
        self.record(id, &mut ops)?;
        if over.is_some() {
            let (whiteout, _) = self.remove_name(to, new)?;
            ops.push(Op::Unlink { folder: to, name: new.to_vec(), whiteout });
        }
        let (whiteout, _) = self.remove_name(from, old)?;
        ops.push(Op::Unlink { folder: from, name: old.to_vec(), whiteout });
        let (op, entry) = self.link_op(to, new, id)?;
        ops.push(op);
        self.add_name(to, new, entry)?;
        if let Some(over) = over {
            self.drop_unused(over);
        }
        self.push(&ops)
    }

    fn check_rename(&mut self, id: u64, to: u64, new: &[u8], keep: bool) -> Result<Option<u64>, Errno> {
        self.folder(to)?;
        let over = self.child(to, new)?;
        let is_folder = self.object(id)?.kind() == Kind::Dir;
        if let Some(over) = over {
            if keep {
                return Err(Errno(libc::EEXIST));
            }
            match (is_folder, self.object(over)?.kind() == Kind::Dir) {
                (true, false) => return Err(Errno(libc::ENOTDIR)),
                (false, true) => return Err(Errno(libc::EISDIR)),
                (true, true) if over != id && !self.is_empty_folder(over)? => return Err(Errno(libc::ENOTEMPTY)),
                _ => {}
            }
        } else {
            self.check_room()?;
        }
        // A folder can't go below itself.
        let mut at = to;
        while is_folder && at != ROOT {
            if at == id {
                return Err(Errno(libc::EINVAL));
            }
            at = self.object(at)?.dir().map(|dir| dir.parent).ok_or(Errno(libc::ENOTDIR))?;
        }
        Ok(over)
    }

    fn listing(&mut self, folder: u64) -> Result<Option<Listing>, Errno> {
        let object = self.object(folder)?;
        let dir = object.dir().ok_or(Errno(libc::ENOTDIR))?;
        if let Some(listing) = &dir.listing {
            return Ok(Some(listing.clone()));
        }
        let Some(origin) = &object.origin else { return Ok(None) };
        let listing = self.template.list(origin)?;
        if let Some(dir) = self.object_mut(folder)?.dir_mut() {
            dir.listing = Some(listing.clone());
        }
        Ok(Some(listing))
    }

    fn is_empty_folder(&mut self, folder: u64) -> Result<bool, Errno> {
        let listing = self.listing(folder)?;
        let dir = self.object(folder)?.dir().ok_or(Errno(libc::ENOTDIR))?;
        let template = listing.is_some_and(|l| l.iter().any(|(name, _)| !dir.overrides.contains_key(name)));
        Ok(dir.by_cookie.is_empty() && !template)
    }

    /// At most `count` entries after position `after` (0 at first), without `.` and `..`. Positions stay good while
    /// the folder changes: the template's entries keep theirs for ever, the layer's are never used twice.
    pub(crate) fn list(&mut self, folder: u64, after: u64, count: usize) -> Result<Vec<Listed>, Errno> {
        let listing = self.listing(folder)?;
        let dir = self.object(folder)?.dir().ok_or(Errno(libc::ENOTDIR))?;
        let mut found = Vec::new();
        // Positions 1 and 2 are the caller's, for `.` and `..`.
        let skip = after.saturating_sub(2).min(FIRST_COOKIE) as usize;
        for (i, (name, kind)) in listing.iter().flat_map(|l| l.iter()).enumerate().skip(skip) {
            if found.len() == count {
                return Ok(found);
            }
            if !dir.overrides.contains_key(name) {
                found.push(Listed { name: name.clone(), kind: *kind, cookie: i as u64 + 3 });
            }
        }
        let first = after.max(FIRST_COOKIE - 1).saturating_add(1);
        for (&cookie, name) in dir.by_cookie.range(first..) {
            if found.len() == count {
                break;
            }
            if let Some(Override::Entry { id, .. }) = dir.overrides.get(name) {
                found.push(Listed { name: name.clone(), kind: self.object(*id)?.kind(), cookie });
            }
        }
        Ok(found)
    }

    /// The folder that a folder is in.
    pub(crate) fn parent(&self, folder: u64) -> Result<u64, Errno> {
        let dir = self.object(folder)?.dir().ok_or(Errno(libc::ENOTDIR))?;
        Ok(if folder == ROOT { ROOT } else { dir.parent })
    }

    pub(crate) fn read_link(&self, id: u64) -> Result<&[u8], Errno> {
        match &self.object(id)?.body {
            Body::Symlink(target) => Ok(target),
            _ => Err(Errno(libc::EINVAL)),
        }
    }
}

pub(super) fn object_op(id: u64, object: &Object) -> Op {
    Op::Object {
        id,
        kind: object.kind(),
        mode: object.mode,
        mtime: object.mtime,
        origin: object.origin.clone(),
        placed: object.placed,
        target: match &object.body {
            Body::Symlink(target) if object.origin.is_none() => target.clone(),
            _ => Vec::new(),
        },
    }
}
