//! Writing: a database's snapshot, and a golden one.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use dormouse_abi::PAGE;
use lz4_flex::block::get_maximum_output_size;

use super::delta;
use super::format::{self, Extent, FRAME_LONGEST, FRAME_PAGES, Frame, HEADER_LEN, Header};
use super::pages::{self, Base, Free};
use crate::crash;
use crate::jail::{ThreadKind, threads};
use crate::machine::Ram;
use crate::monitor::Commit;

/// The snapshot, once it is committed.
pub const NAME: &str = "snapshot";
/// The snapshot while it is written. Whatever lies there is nothing.
pub const TEMPORARY: &str = "snapshot.tmp";

/// Why there is no snapshot.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// Somebody needs the database.
    #[error("cancelled")]
    Cancelled,
    #[error("cannot {what} the snapshot: {source}")]
    Io { what: &'static str, source: io::Error },
    /// It may be on disk, though it is not committed, and can't be removed: the guest must not go on.
    #[error("the snapshot could neither be committed nor removed: {0}")]
    Stuck(io::Error),
    #[error("a name is too long for the snapshot's header")]
    Header,
}

impl From<io::Error> for WriteError {
    fn from(source: io::Error) -> Self {
        Self::Io { what: "write", source }
    }
}

/// What was written.
#[derive(Clone, Copy, Debug, Default)]
pub struct Written {
    pub pages: usize,
    pub bytes: u64,
}

/// The file as it grows.
struct Growing<'a> {
    out: io::BufWriter<File>,
    at: u64,
    content: Vec<u8>,
    /// For what is compressed.
    room: Vec<u8>,
    pages: Vec<u32>,
    frames: Vec<Frame>,
    count: usize,
    commit: &'a Commit,
}

impl Growing<'_> {
    fn append(&mut self, bytes: &[u8]) -> io::Result<Extent> {
        self.out.write_all(bytes)?;
        let extent = Extent { offset: self.at, len: bytes.len() as u64, crc: crc32c::crc32c(bytes) };
        self.at += bytes.len() as u64;
        Ok(extent)
    }

    fn page(&mut self, number: usize, bytes: &[u8], base: Option<&[u8]>) -> Result<(), WriteError> {
        delta::encode(bytes, base.unwrap_or(&pages::ZERO), &mut self.content);
        self.pages.push(number as u32);
        if self.pages.len() == FRAME_PAGES { self.frame() } else { Ok(()) }
    }

    fn frame(&mut self) -> Result<(), WriteError> {
        if self.pages.is_empty() {
            return Ok(());
        }
        if self.commit.cancelled() {
            return Err(WriteError::Cancelled);
        }
        let (mut content, mut room) = (std::mem::take(&mut self.content), std::mem::take(&mut self.room));
        let (stored, compressed) = Frame::store(&content, &mut room);
        let at = self.append(stored)?;
        self.count += self.pages.len();
        self.frames.push(Frame { compressed, at, pages: std::mem::take(&mut self.pages) });
        content.clear();
        (self.content, self.room) = (content, room);
        Ok(())
    }
}

/// Flushes the temporary file of a suspend that was called off, and removes it.
static LATE: Mutex<Option<JoinHandle<()>>> = Mutex::new(None);

fn late() -> MutexGuard<'static, Option<JoinHandle<()>>> {
    LATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits until nobody has the temporary file any more.
pub fn settle() {
    let thread = late().take();
    // A panic there has been told of.
    let _ = thread.map(JoinHandle::join);
}

/// Carries out the flush of the temporary file on a thread of its own: a suspend that is called off goes on at once, and not when
/// the disk has done what nobody wants any more. By then that thread removes the file.
fn flush_aside(
    temporary: &Path,
    commit: &Arc<Commit>,
    flush: impl Fn() -> io::Result<()> + Clone + Send + 'static,
) -> Result<(), WriteError> {
    let flushed = |result: io::Result<()>| result.map_err(|source| WriteError::Io { what: "flush", source });
    let (own, file, here) = (Arc::clone(commit), temporary.to_owned(), flush.clone());
    let thread = threads::spawn(ThreadKind::Spend, move || {
        if own.tell_flushed(here()) {
            // Whoever waits all the same removes it too.
            let _ = std::fs::remove_file(file);
        }
    });
    let Ok(thread) = thread else { return flushed(flush()) };
    match commit.wait_flushed() {
        Some(result) => {
            let _ = thread.join();
            flushed(result)
        }
        None => {
            *late() = Some(thread);
            Err(WriteError::Cancelled)
        }
    }
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Writes and commits the snapshot of a guest that stands still. `header` has everything but the extents. After an
/// error other than [`WriteError::Stuck`] there is none, and the guest may go on. It is refused as called off while the disk is at work
/// for one that was.
///
/// # Safety
/// The vCPU is out of the guest and no device runs.
pub unsafe fn snapshot(
    dir: &Path,
    header: Header,
    state: &[u8],
    ram: &Ram,
    free: &Free,
    base: Option<&Base>,
    commit: &Arc<Commit>,
) -> Result<Written, WriteError> {
    late().take_if(|thread| thread.is_finished());
    if late().is_some() {
        // Who waited for that would wait for the disk, and could not be called off.
        return Err(WriteError::Cancelled);
    }
    // SAFETY: the caller's promise.
    let written = unsafe { write(dir, header, state, ram, free, base, commit) };
    if written.is_err() && late().is_none() {
        // On a full disk it is this that gives the room back.
        let _ = std::fs::remove_file(dir.join(TEMPORARY));
    }
    written
}

/// # Safety
/// The vCPU is out of the guest and no device runs.
unsafe fn write(
    dir: &Path,
    mut header: Header,
    state: &[u8],
    ram: &Ram,
    free: &Free,
    base: Option<&Base>,
    commit: &Arc<Commit>,
) -> Result<Written, WriteError> {
    let temporary = dir.join(TEMPORARY);
    let io = |what| move |source| WriteError::Io { what, source };
    let file = OpenOptions::new().create(true).truncate(true).write(true).open(&temporary).map_err(io("create"))?;
    let mut growing = Growing {
        out: io::BufWriter::with_capacity(1 << 20, file),
        at: HEADER_LEN as u64,
        content: Vec::with_capacity(FRAME_LONGEST),
        room: vec![0; get_maximum_output_size(FRAME_LONGEST)],
        pages: Vec::with_capacity(FRAME_PAGES),
        frames: Vec::new(),
        count: 0,
        commit,
    };
    growing.out.seek(io::SeekFrom::Start(HEADER_LEN as u64))?;
    header.state = growing.append(state)?;
    // SAFETY: the caller's promise.
    unsafe {
        pages::differing(ram, base, free, |number, content, base| growing.page(number, content.bytes(), base))?;
    }
    growing.frame()?;
    header.index = growing.append(&format::encode_index(&growing.frames))?;
    let written = Written { pages: growing.count, bytes: growing.at };
    let file = growing.out.into_inner().map_err(|error| WriteError::from(error.into_error()))?;
    file.write_all_at(&header.encode().map_err(|_| WriteError::Header)?, 0)?;
    crash::point("suspend-written");
    flush_aside(&temporary, commit, {
        let file = Arc::new(file);
        move || file.sync_all()
    })?;
    crash::point("suspend-synced");
    if !commit.commit() {
        return Err(WriteError::Cancelled);
    }
    std::fs::rename(&temporary, dir.join(NAME)).map_err(io("name"))?;
    crash::point("suspend-renamed");
    if let Err(source) = sync_dir(dir) {
        // The name may or may not last: with the guest going on it must not.
        std::fs::remove_file(dir.join(NAME)).and_then(|()| sync_dir(dir)).map_err(WriteError::Stuck)?;
        return Err(WriteError::Io { what: "commit", source });
    }
    crash::point("suspend-committed");
    Ok(written)
}

/// Writes a golden snapshot to a folder: `memory`, raw and sparse, then `state`.
///
/// # Safety
/// The vCPU is out of the guest and no device runs.
pub unsafe fn golden(
    dir: &Path,
    mut header: Header,
    state: &[u8],
    ram: &Ram,
    free: &Free,
) -> Result<Written, WriteError> {
    let io = |what| move |source| WriteError::Io { what, source };
    std::fs::create_dir_all(dir).map_err(io("make a folder for"))?;
    let (memory_tmp, state_tmp) = (dir.join("memory.tmp"), dir.join("state.tmp"));
    let memory = File::create(&memory_tmp).map_err(io("create"))?;
    memory.set_len(ram.len())?;
    let mut written = Written::default();
    // Runs of pages: fewer calls, and a file in fewer pieces.
    let (mut run, mut first) = (Vec::<u8>::new(), 0usize);
    let flush = |run: &mut Vec<u8>, first: usize| memory.write_all_at(run, first as u64 * PAGE).map(|()| run.clear());
    // SAFETY: the caller's promise.
    unsafe {
        pages::differing::<WriteError>(ram, None, free, |number, content, _| {
            if !run.is_empty() && (first + run.len() / PAGE as usize != number || run.len() >= 4 << 20) {
                flush(&mut run, first)?;
            }
            if run.is_empty() {
                first = number;
            }
            run.extend_from_slice(content.bytes());
            written.pages += 1;
            written.bytes += PAGE;
            Ok(())
        })?;
    }
    flush(&mut run, first)?;
    memory.sync_all().map_err(io("flush"))?;

    let mut file = File::create(&state_tmp).map_err(io("create"))?;
    let offset = HEADER_LEN as u64;
    header.state = Extent { offset, len: state.len() as u64, crc: crc32c::crc32c(state) };
    let index = format::encode_index(&[]);
    header.index = Extent { offset: offset + state.len() as u64, len: index.len() as u64, crc: crc32c::crc32c(&index) };
    file.write_all(&header.encode().map_err(|_| WriteError::Header)?)?;
    file.write_all(state)?;
    file.write_all(&index)?;
    file.sync_all().map_err(io("flush"))?;
    std::fs::rename(&memory_tmp, dir.join("memory")).map_err(io("name"))?;
    std::fs::rename(&state_tmp, dir.join("state")).map_err(io("name"))?;
    sync_dir(dir).map_err(io("commit"))?;
    Ok(written)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn a_suspend_that_is_called_off_does_not_wait_for_the_disk_and_the_next_one_does() {
        let dir = tempfile::tempdir().unwrap();
        let temporary = dir.path().join(TEMPORARY);
        std::fs::write(&temporary, "x").unwrap();
        let (begun, has_begun) = channel();
        let (end, ended) = channel::<()>();
        let ended = Arc::new(Mutex::new(ended));
        let commit = Arc::new(Commit::default());
        let canceller = std::thread::spawn({
            let commit = Arc::clone(&commit);
            move || {
                has_begun.recv().unwrap();
                assert!(commit.cancel());
            }
        });
        let slow = move || {
            begun.send(()).unwrap();
            ended.lock().unwrap().recv().map_err(io::Error::other)
        };
        assert!(matches!(flush_aside(&temporary, &commit, slow), Err(WriteError::Cancelled)));
        canceller.join().unwrap();
        assert!(temporary.exists(), "the disk is not done with it");
        end.send(()).unwrap();
        settle();
        assert!(!temporary.exists());
        // One that is not called off has its file, and its error.
        std::fs::write(&temporary, "y").unwrap();
        flush_aside(&temporary, &Arc::default(), || Ok(())).unwrap();
        let full = || Err(io::ErrorKind::StorageFull.into());
        assert!(matches!(flush_aside(&temporary, &Arc::default(), full), Err(WriteError::Io { what: "flush", .. })));
        assert!(temporary.exists());
    }
}
