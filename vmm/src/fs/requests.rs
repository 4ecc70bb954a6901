//! The requests: each takes its fields, asks the layer, and makes its answer.

use super::FsDevice;
use super::wire::{
    Attr, FALLOCATE_OWN, Fields, Header, MAJOR, MAX_DATA, MINOR, MINOR_MIN, RENAME_NOREPLACE, Reply, Short, dirent_len, init, opcode,
    setattr,
};
use crate::layer::{Errno, GuestBytes, Kind, Room, Time};
use std::time::{SystemTime, UNIX_EPOCH};

/// What follows the header of an answer.
pub(super) enum Answer {
    Bytes(Vec<u8>),
    /// So many bytes are in the guest's memory already.
    InPlace(usize),
}

/// The longest request without file data, in bytes: names, a link's target, a batch of forgets.
const BODY_MAX: usize = 128 << 10;
/// Listing entries fetched at a time.
const LIST_MAX: usize = 128;

impl From<Short> for Errno {
    fn from(_: Short) -> Errno {
        Errno(libc::EINVAL)
    }
}

fn done() -> Result<Answer, Errno> {
    Ok(Answer::Bytes(Vec::new()))
}

fn d_type(kind: Kind) -> u32 {
    u32::from(match kind {
        Kind::File => libc::DT_REG,
        Kind::Dir => libc::DT_DIR,
        Kind::Symlink => libc::DT_LNK,
    })
}

fn now() -> Time {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Time { sec: since.as_secs() as i64, nsec: since.subsec_nanos() }
}

impl FsDevice {
    /// Carries out one request. `body` is what follows its header, `out` what follows the answer's.
    pub(super) fn request(&mut self, head: &Header, body: GuestBytes, out: GuestBytes) -> Result<Answer, Errno> {
        if head.opcode == opcode::WRITE {
            return self.write(head, body);
        }
        if body.len() > BODY_MAX {
            return Err(Errno(libc::E2BIG));
        }
        let mut bytes = vec![0; body.len()];
        body.copy_to(&mut bytes);
        let mut fields = Fields::new(&bytes);
        let fields = &mut fields;
        match head.opcode {
            opcode::INIT => return init(fields),
            opcode::STATFS => return self.statfs(),
            opcode::SYNCFS => {
                self.layer.sync_for_guest()?;
                return done();
            }
            opcode::DESTROY | opcode::RELEASE | opcode::RELEASEDIR | opcode::INTERRUPT => return done(),
            opcode::FORGET => {
                self.forget(head.node, fields.u64()?);
                return done();
            }
            opcode::BATCH_FORGET => {
                let count = fields.u32()?;
                fields.skip(4)?;
                for _ in 0..count {
                    let (node, lookups) = (fields.u64()?, fields.u64()?);
                    self.forget(node, lookups);
                }
                return done();
            }
            _ => {}
        }
        let node = head.node;
        let kind = self.layer.check_node(node)?;
        match head.opcode {
            opcode::LOOKUP => {
                let id = self.layer.lookup(node, fields.name()?)?;
                self.entry(head, id)
            }
            opcode::GETATTR => self.attr(head, node),
            opcode::SETATTR => self.setattr(head, fields),
            opcode::READLINK => Ok(Answer::Bytes(self.layer.read_link(node)?.to_vec())),
            opcode::SYMLINK => {
                let (name, target) = (fields.name()?, fields.name()?);
                if target.is_empty() {
                    return Err(Errno(libc::ENOENT));
                }
                self.make(head, name, Kind::Symlink, 0o777, target)
            }
            opcode::MKNOD => {
                let mode = fields.u32()?;
                fields.skip(4)?;
                let mode = mode & !fields.u32()?;
                fields.skip(4)?;
                if mode & libc::S_IFMT != libc::S_IFREG {
                    return Err(Errno(libc::EPERM));
                }
                self.make(head, fields.name()?, Kind::File, mode, b"")
            }
            opcode::MKDIR => {
                let mode = fields.u32()? & !fields.u32()?;
                self.make(head, fields.name()?, Kind::Dir, mode, b"")
            }
            opcode::CREATE => self.create(head, fields),
            opcode::UNLINK => {
                self.layer.unlink(node, fields.name()?, false)?;
                done()
            }
            opcode::RMDIR => {
                self.layer.unlink(node, fields.name()?, true)?;
                done()
            }
            opcode::RENAME | opcode::RENAME2 => {
                let to = fields.u64()?;
                let mut flags = 0;
                if head.opcode == opcode::RENAME2 {
                    flags = fields.u32()?;
                    fields.skip(4)?;
                }
                if flags & !RENAME_NOREPLACE != 0 {
                    return Err(Errno(libc::EINVAL));
                }
                self.layer.check_node(to)?;
                let (old, new) = (fields.name()?, fields.name()?);
                self.layer.rename(node, old, to, new, flags != 0)?;
                done()
            }
            opcode::LINK => {
                let id = fields.u64()?;
                self.layer.check_node(id)?;
                self.layer.link(id, node, fields.name()?)?;
                self.entry(head, id)
            }
            opcode::READ => self.read(node, fields, out),
            opcode::FSYNC => {
                self.layer.sync(node)?;
                done()
            }
            opcode::FSYNCDIR => {
                self.layer.sync_names()?;
                done()
            }
            opcode::FALLOCATE => {
                fields.skip(8)?;
                let (offset, len, mode) = (fields.u64()?, fields.u64()?, fields.u32()?);
                const KEEP_SIZE: u32 = libc::FALLOC_FL_KEEP_SIZE as u32;
                let room = match mode {
                    0 => Room::Grow,
                    KEEP_SIZE => Room::KeepSize,
                    mode if mode == KEEP_SIZE | FALLOCATE_OWN => Room::Own,
                    _ => return Err(Errno(libc::EOPNOTSUPP)),
                };
                let end = self.layer.allocate(node, offset, len, room)?;
                // A standard request has no answer but its success.
                if room != Room::Own {
                    return done();
                }
                let mut reply = Reply::default();
                reply.u64(end);
                Ok(Answer::Bytes(reply.bytes))
            }
            opcode::READDIR | opcode::READDIRPLUS if kind != Kind::Dir => Err(Errno(libc::ENOTDIR)),
            opcode::READDIR => self.readdir(head, fields, out.len(), false),
            opcode::READDIRPLUS => self.readdir(head, fields, out.len(), true),
            // OPEN and OPENDIR among them: the client then does without.
            _ => Err(Errno(libc::ENOSYS)),
        }
    }

    fn attributes(&mut self, head: &Header, id: u64) -> Result<Attr, Errno> {
        let a = self.layer.attributes(id)?;
        let file_type = match a.kind {
            Kind::File => libc::S_IFREG,
            Kind::Dir => libc::S_IFDIR,
            Kind::Symlink => libc::S_IFLNK,
        };
        // Whoever asks is the guest's one user, and owns everything.
        Ok(Attr {
            ino: id,
            size: a.size,
            sec: a.mtime.sec,
            nsec: a.mtime.nsec,
            mode: a.mode | file_type,
            links: a.links,
            uid: head.uid,
            gid: head.gid,
        })
    }

    /// The answer to what gave the guest a reference to `id`.
    fn entry(&mut self, head: &Header, id: u64) -> Result<Answer, Errno> {
        let attr = match self.attributes(head, id) {
            Ok(attr) => attr,
            Err(error) => {
                self.layer.forget(id, 1);
                return Err(error);
            }
        };
        let mut reply = Reply::default();
        reply.entry_out(id, &attr);
        Ok(Answer::Bytes(reply.bytes))
    }

    fn attr(&mut self, head: &Header, id: u64) -> Result<Answer, Errno> {
        let attr = self.attributes(head, id)?;
        let mut reply = Reply::default();
        reply.attr_out(&attr);
        Ok(Answer::Bytes(reply.bytes))
    }

    fn setattr(&mut self, head: &Header, fields: &mut Fields) -> Result<Answer, Errno> {
        let valid = fields.u32()?;
        fields.skip(12)?;
        let size = fields.u64()?;
        fields.skip(16)?;
        let mtime = fields.u64()?;
        fields.skip(12)?;
        let nsec = fields.u32()?;
        fields.skip(4)?;
        let mode = fields.u32()?;
        if valid & setattr::SIZE != 0 {
            self.layer.set_size(head.node, size)?;
        }
        let mode = (valid & setattr::MODE != 0).then_some(mode);
        let mtime = match valid & (setattr::MTIME | setattr::MTIME_NOW) {
            0 => None,
            setattr::MTIME if nsec >= 1_000_000_000 => return Err(Errno(libc::EINVAL)),
            setattr::MTIME => Some(Time { sec: mtime as i64, nsec }),
            _ => Some(now()),
        };
        if mode.is_some() || mtime.is_some() {
            self.layer.set_attributes(head.node, mode, mtime)?;
        }
        self.attr(head, head.node)
    }

    fn make(&mut self, head: &Header, name: &[u8], kind: Kind, mode: u32, target: &[u8]) -> Result<Answer, Errno> {
        let id = self.layer.create(head.node, name, kind, mode, target)?;
        self.entry(head, id)
    }

    fn create(&mut self, head: &Header, fields: &mut Fields) -> Result<Answer, Errno> {
        let flags = fields.u32()? as i32;
        let mode = fields.u32()? & !fields.u32()?;
        fields.skip(4)?;
        let name = fields.name()?;
        let id = match self.layer.create(head.node, name, Kind::File, mode, b"") {
            Err(Errno(libc::EEXIST)) if flags & libc::O_EXCL == 0 => {
                let id = self.layer.lookup(head.node, name)?;
                let cut = if flags & libc::O_TRUNC != 0 { self.layer.set_size(id, 0) } else { Ok(()) };
                if let Err(error) = cut {
                    self.layer.forget(id, 1);
                    return Err(error);
                }
                id
            }
            other => other?,
        };
        match self.entry(head, id)? {
            Answer::Bytes(mut bytes) => {
                // fuse_open_out: no handle, no flags.
                bytes.resize(bytes.len() + 16, 0);
                Ok(Answer::Bytes(bytes))
            }
            in_place => Ok(in_place),
        }
    }

    fn read(&mut self, node: u64, fields: &mut Fields, out: GuestBytes) -> Result<Answer, Errno> {
        fields.skip(8)?;
        let (offset, size) = (fields.u64()?, fields.u32()? as usize);
        let n = self.layer.read(node, offset, out.range(0, size.min(MAX_DATA)))?;
        Ok(Answer::InPlace(n))
    }

    fn write(&mut self, head: &Header, body: GuestBytes) -> Result<Answer, Errno> {
        self.layer.check_node(head.node)?;
        let mut bytes = [0; 40];
        let n = body.copy_to(&mut bytes);
        let mut fields = Fields::new(&bytes[..n]);
        fields.skip(8)?;
        let (offset, size) = (fields.u64()?, fields.u32()? as usize);
        fields.skip(20)?;
        let data = body.range(bytes.len(), size);
        if data.len() < size || size > MAX_DATA {
            return Err(Errno(libc::EINVAL));
        }
        let n = self.layer.write(head.node, offset, data)?;
        let mut reply = Reply::default();
        reply.u32(n as u32);
        reply.u32(0);
        Ok(Answer::Bytes(reply.bytes))
    }

    fn statfs(&mut self) -> Result<Answer, Errno> {
        let (all, free) = self.layer.space()?;
        let mut reply = Reply::default();
        for v in [all / 4096, free / 4096, free / 4096, 1 << 20, 1 << 20] {
            reply.u64(v);
        }
        for v in [4096, 255, 4096] {
            reply.u32(v);
        }
        reply.zeros(28);
        Ok(Answer::Bytes(reply.bytes))
    }

    fn readdir(&mut self, head: &Header, fields: &mut Fields, room: usize, plus: bool) -> Result<Answer, Errno> {
        fields.skip(8)?;
        let (mut at, size) = (fields.u64()?, fields.u32()? as usize);
        let room = room.min(size).min(MAX_DATA);
        let none = Attr { ino: 0, size: 0, sec: 0, nsec: 0, mode: 0, links: 0, uid: 0, gid: 0 };
        let mut reply = Reply::default();
        for (name, next) in [(&b"."[..], 1), (b"..", 2)] {
            if at >= next {
                continue;
            }
            if reply.bytes.len() + dirent_len(name.len(), plus) > room {
                return Ok(Answer::Bytes(reply.bytes));
            }
            let id = if next == 1 { head.node } else { self.layer.parent(head.node)? };
            if plus {
                reply.entry_out(0, &none);
            }
            reply.dirent(id, next, d_type(Kind::Dir), name);
            at = next;
        }
        loop {
            let entries = self.layer.list(head.node, at, LIST_MAX)?;
            let full = entries.len() == LIST_MAX;
            for entry in entries {
                if reply.bytes.len() + dirent_len(entry.name.len(), plus) > room {
                    return Ok(Answer::Bytes(reply.bytes));
                }
                let mut ino = u64::from(u32::MAX);
                if plus {
                    let Ok(id) = self.layer.lookup(head.node, &entry.name) else { continue };
                    let Ok(attr) = self.attributes(head, id) else {
                        self.layer.forget(id, 1);
                        continue;
                    };
                    reply.entry_out(id, &attr);
                    ino = id;
                }
                reply.dirent(ino, entry.cookie, d_type(entry.kind), &entry.name);
                at = entry.cookie;
            }
            if !full {
                return Ok(Answer::Bytes(reply.bytes));
            }
        }
    }
}

fn init(fields: &mut Fields) -> Result<Answer, Errno> {
    let (major, minor, readahead, flags) = (fields.u32()?, fields.u32()?, fields.u32()?, fields.u32()?);
    if major < MAJOR || (major == MAJOR && minor < MINOR_MIN) {
        return Err(Errno(libc::EPROTO));
    }
    let mut reply = Reply::default();
    reply.u32(MAJOR);
    reply.u32(if major > MAJOR { MINOR } else { minor.min(MINOR) });
    reply.u32(readahead);
    reply.u32(flags & init::OURS);
    // max_background, congestion_threshold
    reply.u16(64);
    reply.u16(48);
    reply.u32(MAX_DATA as u32);
    // time_gran in ns, max_pages, map_alignment
    reply.u32(1);
    reply.u16((MAX_DATA / 4096) as u16);
    reply.u16(0);
    reply.zeros(32);
    Ok(Answer::Bytes(reply.bytes))
}
