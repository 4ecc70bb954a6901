//! The journal: an append-only file of checksummed frames, each one or more operations, and the buffer before it.

use super::encoding::{Reader, Writer};
use super::error::{Errno, LayerError};
use super::host::{Host, HostFile};
use super::record::Op;
use std::io;
use std::os::unix::fs::FileExt;

const MAGIC: u32 = u32::from_le_bytes(*b"DMLJ");
/// Bumped whenever an older reader would misread a journal.
const VERSION: u32 = 1;
/// Length and checksum before each frame's body.
const FRAME_HEAD: usize = 8;
/// The longest template name taken, in bytes.
const TEMPLATE_MAX: usize = 256;
/// A journal is written anew from this length on, in bytes, when most of it is history.
const COMPACT_MIN: u64 = if cfg!(test) { 1 << 9 } else { 64 << 10 };
/// The buffer is flushed unasked from this length on, in bytes.
pub(crate) const BUFFER_MAX: usize = 256 << 10;

pub(crate) struct Journal {
    template: String,
    file: Option<HostFile>,
    /// Bytes of the file that are whole frames.
    len: u64,
    /// More than `len` is in the file: the rest of an interrupted flush, to be cut off before anything is appended.
    torn: bool,
    /// Something in the file may not be durable.
    unsynced: bool,
    /// Sequence number of the next frame to be written to the file, and of the next to be put in the buffer.
    written: u64,
    next: u64,
    buffer: Vec<u8>,
    compact_at: u64,
}

/// What a flush of the journal can end with.
pub(crate) enum FlushError {
    /// Nothing was lost: it may be tried again.
    Again(Errno),
    /// It isn't known what is on disk.
    Lost,
}

fn header(template: &str, base: u64) -> Vec<u8> {
    let mut w = Writer::default();
    w.u32(MAGIC);
    w.u32(VERSION);
    w.u64(base);
    w.blob(template.as_bytes());
    let sum = crc32c::crc32c(&w.bytes);
    w.u32(sum);
    w.bytes
}

fn frame(out: &mut Vec<u8>, seq: u64, ops: &[Op]) {
    let mut w = Writer::default();
    w.u64(seq);
    for op in ops {
        op.write(&mut w);
    }
    out.extend_from_slice(&(w.bytes.len() as u32).to_le_bytes());
    out.extend_from_slice(&crc32c::crc32c(&w.bytes).to_le_bytes());
    out.extend_from_slice(&w.bytes);
}

/// Reads frames from `bytes`, the first with number `seq`. Returns how many bytes were whole frames, and the number
/// after the last. An error is a frame that was written like that.
fn read_frames(bytes: &[u8], mut seq: u64, ops: &mut Vec<Op>) -> Result<(usize, u64), LayerError> {
    let damaged = |seq| LayerError::Damaged(format!("journal frame {seq} makes no sense"));
    let mut at = 0;
    while let Some(head) = bytes.get(at..at + FRAME_HEAD) {
        let mut r = Reader::new(head);
        let (Ok(len), Ok(sum)) = (r.u32(), r.u32()) else { break };
        let start = at + FRAME_HEAD;
        let Some(body) = start.checked_add(len as usize).and_then(|end| bytes.get(start..end)) else { break };
        let mut r = Reader::new(body);
        if crc32c::crc32c(body) != sum || r.u64() != Ok(seq) {
            break;
        }
        while !r.is_empty() {
            ops.push(Op::read(&mut r).map_err(|_| damaged(seq))?);
        }
        at = start + len as usize;
        seq += 1;
    }
    Ok((at, seq))
}

impl Journal {
    /// Reads the layer's journal and all operations in it. A layer without one is empty, and gets one if `create`.
    pub fn load(host: &Host, template: &str, create: bool) -> Result<(Journal, Vec<Op>), LayerError> {
        let io = |e| LayerError::io("cannot read the layer's journal")(e);
        let mut journal = Journal {
            template: template.to_owned(),
            file: None,
            len: 0,
            torn: false,
            unsynced: true,
            written: 1,
            next: 1,
            buffer: Vec::new(),
            compact_at: COMPACT_MIN,
        };
        let mut ops = Vec::new();
        if let Some(file) = host.open_journal().map_err(io)? {
            let size = file.file.metadata().map_err(io)?.len() as usize;
            let mut bytes = vec![0; size];
            file.file.read_exact_at(&mut bytes, 0).map_err(io)?;
            match read_header(&bytes)? {
                Some((recorded, base, start)) => {
                    if recorded != template {
                        return Err(LayerError::OtherTemplate { recorded, given: template.to_owned() });
                    }
                    let (n, next) = read_frames(&bytes[start..], base, &mut ops)?;
                    journal.len = (start + n) as u64;
                    journal.torn = start + n < size;
                    journal.written = next;
                    journal.next = next;
                    journal.file = Some(file);
                    journal.compact_at = COMPACT_MIN.max(journal.len);
                    return Ok((journal, ops));
                }
                None if host.list().map_err(io)?.is_empty() => {}
                None => return Err(LayerError::Damaged("it has files, but its journal has no header".into())),
            }
        } else if !host.list().map_err(io)?.is_empty() {
            return Err(LayerError::Damaged("it has files, but no journal".into()));
        }
        if create {
            let bytes = header(template, 1);
            journal.len = bytes.len() as u64;
            let made = host.stage_journal(&bytes, false).and_then(|new| host.commit_journal(new, false));
            journal.file = Some(made.map_err(LayerError::io("cannot make the layer's journal"))?);
        }
        Ok((journal, ops))
    }

    /// The template that the layer's journal names, if it has one.
    pub fn template_of(host: &Host) -> Result<Option<String>, LayerError> {
        let io = |e| LayerError::io("cannot read the layer's journal")(e);
        let Some(file) = host.open_journal().map_err(io)? else { return Ok(None) };
        let mut bytes = vec![0; 1024];
        let n = file.file.read_at(&mut bytes, 0).map_err(io)?;
        Ok(read_header(&bytes[..n])?.map(|(template, ..)| template))
    }

    /// The position after the last frame on disk, and after the last in the buffer.
    pub fn position(&self) -> (u64, u64) {
        (self.written, self.next)
    }

    pub fn buffer(&self) -> &[u8] {
        &self.buffer
    }

    /// Bytes of disk that the journal takes, or will.
    pub fn disk_bytes(&self) -> u64 {
        (self.len + self.buffer.len() as u64).next_multiple_of(4096)
    }

    /// Takes over the buffer of a saved state.
    pub fn resume(&mut self, buffer: &[u8]) -> Result<Vec<Op>, LayerError> {
        let mut ops = Vec::new();
        let (n, next) = read_frames(buffer, self.next, &mut ops)?;
        if n != buffer.len() {
            return Err(LayerError::BadSaved);
        }
        self.buffer = buffer.to_vec();
        self.next = next;
        Ok(ops)
    }

    /// Makes the layer's identity durable and cuts off what an interrupted flush left. Before the first change.
    pub fn prepare(&mut self, host: &mut Host) -> Result<(), Errno> {
        let Some(file) = &self.file else { return Err(Errno(libc::EROFS)) };
        if self.torn {
            host.set_len(file, self.len)?;
            host.sync(file)?;
            self.torn = false;
        }
        if self.written == 1 {
            host.sync(file)?;
            host.make_files()?;
            host.sync_folder()?;
        }
        host.make_files()?;
        Ok(())
    }

    /// Puts a frame in the buffer.
    pub fn push(&mut self, ops: &[Op]) {
        frame(&mut self.buffer, self.next, ops);
        self.next += 1;
    }

    /// Whether a flush has anything to do.
    pub fn is_behind(&self) -> bool {
        self.unsynced || !self.buffer.is_empty()
    }

    /// Makes everything pushed so far durable.
    pub fn flush(&mut self, host: &Host) -> Result<(), FlushError> {
        let Some(file) = &self.file else { return Err(FlushError::Again(Errno(libc::EROFS))) };
        if !self.buffer.is_empty() {
            if let Err(error) = host.write_at(file, &self.buffer, self.len) {
                // What arrived must not be taken for a frame later on.
                return match host.set_len(file, self.len).and_then(|()| host.sync(file)) {
                    Ok(()) => Err(FlushError::Again(error.into())),
                    Err(_) => Err(FlushError::Lost),
                };
            }
            self.unsynced = true;
        }
        if self.unsynced {
            host.sync(file).map_err(|_: io::Error| FlushError::Lost)?;
            self.len += self.buffer.len() as u64;
            self.written = self.next;
            self.buffer.clear();
            self.unsynced = false;
        }
        Ok(())
    }

    pub fn wants_compaction(&self) -> bool {
        self.len > self.compact_at
    }

    /// Replaces the journal by one that holds just `state`. The buffer must be empty.
    pub fn compact(&mut self, host: &Host, state: &[Op]) -> Result<(), FlushError> {
        let mut bytes = header(&self.template, self.next);
        let mut next = self.next;
        for ops in state.chunks(256) {
            frame(&mut bytes, next, ops);
            next += 1;
        }
        let staged = match host.stage_journal(&bytes, true) {
            Ok(staged) => staged,
            Err(error) => {
                // The old one goes on, and not every flush has to try.
                self.compact_at = self.len * 2;
                return Err(FlushError::Again(error.into()));
            }
        };
        self.file = Some(host.commit_journal(staged, true).map_err(|_| FlushError::Lost)?);
        self.next = next;
        self.written = next;
        self.len = bytes.len() as u64;
        self.compact_at = COMPACT_MIN.max(self.len * 4);
        Ok(())
    }

    /// Length of the buffer, for [`Journal::take_back`].
    pub fn mark(&self) -> usize {
        self.buffer.len()
    }

    /// Takes the one frame pushed since `mark` back, after a flush that failed.
    pub fn take_back(&mut self, mark: usize) {
        if self.buffer.len() > mark {
            self.buffer.truncate(mark);
            self.next -= 1;
        }
    }

    /// Whether the file may be ahead of the disk, for the saved state.
    pub fn unsynced(&self) -> bool {
        self.unsynced
    }

    pub fn set_unsynced(&mut self, unsynced: bool) {
        self.unsynced = unsynced;
    }
}

/// Template name, base sequence number and header length; `None` if there is no whole header.
fn read_header(bytes: &[u8]) -> Result<Option<(String, u64, usize)>, LayerError> {
    let mut r = Reader::new(bytes);
    let (Ok(MAGIC), Ok(version), Ok(base), Ok(template)) = (r.u32(), r.u32(), r.u64(), r.blob()) else {
        return Ok(None);
    };
    let end = 20 + template.len();
    if template.len() > TEMPLATE_MAX || r.u32() != Ok(crc32c::crc32c(&bytes[..end])) {
        return Ok(None);
    }
    if version != VERSION {
        return Err(LayerError::Damaged(format!("its journal has format {version}, this program knows {VERSION}")));
    }
    let template = String::from_utf8(template.to_vec()).map_err(|_| LayerError::Damaged("its template's name".into()))?;
    Ok(Some((template, base, end + 4)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::record::Time;

    fn attr(id: u64) -> Op {
        Op::Attr { id, mode: 0, mtime: Time::default() }
    }

    #[test]
    fn the_rest_of_an_interrupted_flush_never_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let load = || {
            let host = Host::open(dir.path(), true).unwrap().unwrap();
            let (journal, ops) = Journal::load(&host, "t", true).unwrap();
            (host, journal, ops)
        };
        let (mut host, mut journal, _) = load();
        journal.prepare(&mut host).unwrap();
        journal.push(&[attr(1)]);
        assert!(journal.flush(&host).is_ok());
        let good = journal.len;
        // Two frames, of which the first did not arrive whole.
        journal.push(&[attr(2)]);
        journal.push(&[attr(3)]);
        assert!(journal.flush(&host).is_ok());
        let file = &journal.file.as_ref().unwrap().file;
        file.write_all_at(b"?", good + 12).unwrap();
        drop((host, journal));

        let (mut host, mut journal, ops) = load();
        assert_eq!(ops, [attr(1)]);
        assert!(journal.torn);
        journal.prepare(&mut host).unwrap();
        // As long as the first, so that the second would follow it.
        journal.push(&[attr(4)]);
        assert!(journal.flush(&host).is_ok());
        drop((host, journal));
        assert_eq!(load().2, [attr(1), attr(4)]);
    }

    #[test]
    fn a_frame_taken_back_was_never_there() {
        let dir = tempfile::tempdir().unwrap();
        let mut host = Host::open(dir.path(), true).unwrap().unwrap();
        let (mut journal, _) = Journal::load(&host, "t", true).unwrap();
        journal.prepare(&mut host).unwrap();
        journal.push(&[attr(1)]);
        let mark = journal.mark();
        journal.push(&[attr(2)]);
        journal.take_back(mark);
        journal.push(&[attr(3)]);
        assert!(journal.flush(&host).is_ok());
        let (again, ops) = Journal::load(&host, "t", false).unwrap();
        assert_eq!((ops, again.position()), (vec![attr(1), attr(3)], journal.position()));
    }
}
