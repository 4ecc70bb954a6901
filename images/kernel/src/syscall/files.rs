//! Calls on files and names.

use super::{Args, buffer, buffer_mut, number as nr, store, string, timespec};
use crate::errno::{Errno, Result};
use crate::file::{File, Stat};
use crate::first;
use crate::fs;
use crate::sched;
use crate::shared::shared;
use crate::socket;
use crate::table::{O_APPEND, O_CLOEXEC, O_NONBLOCK, OpenFile};
use crate::task::{self, Task};
use alloc::rc::Rc;
use alloc::vec::Vec;

const AT_FDCWD: i32 = -100;
const AT_SYMLINK_NOFOLLOW: u64 = 0x100;
const AT_REMOVEDIR: u64 = 0x200;
const AT_EMPTY_PATH: u64 = 0x1000;
const FADV_WILLNEED: u64 = 3;
const F_DUPFD: u64 = 0;
const F_GETFD: u64 = 1;
const F_SETFD: u64 = 2;
const F_GETFL: u64 = 3;
const F_SETFL: u64 = 4;
const F_GETLK: u64 = 5;
const F_SETLK: u64 = 6;
const F_SETLKW: u64 = 7;
const F_DUPFD_CLOEXEC: u64 = 1030;
const FIONBIO: u64 = 0x5421;

/// `struct stat` (x86-64).
#[repr(C)]
struct RawStat {
    dev: u64,
    ino: u64,
    nlink: u64,
    mode: u32,
    uid: u32,
    gid: u32,
    pad: u32,
    rdev: u64,
    size: i64,
    block_size: i64,
    blocks: i64,
    atime: [i64; 2],
    mtime: [i64; 2],
    ctime: [i64; 2],
    unused: [i64; 3],
}
const _: () = assert!(size_of::<RawStat>() == 144);

fn tell(at: u64, stat: Stat) -> Result<u64> {
    if at == 0 {
        return Err(Errno::EFAULT);
    }
    store(
        at,
        RawStat {
            dev: stat.dev,
            ino: stat.ino,
            nlink: stat.nlink as u64,
            mode: stat.mode,
            uid: stat.uid,
            gid: stat.gid,
            pad: 0,
            rdev: 0,
            size: stat.size as i64,
            block_size: 4096,
            blocks: stat.blocks as i64,
            atime: super::split_ns(stat.atime),
            mtime: super::split_ns(stat.mtime),
            ctime: super::split_ns(stat.ctime),
            unused: [0; 3],
        },
    );
    Ok(0)
}

/// Runs `f` on each part of a `struct iovec` array until one is short; `f` is told whether it is the first.
pub fn vectored(iov: u64, count: u64, mut f: impl FnMut([u64; 2], bool) -> Result<usize>) -> Result<u64> {
    if count > 1024 {
        return Err(Errno::EINVAL);
    }
    let mut total = 0u64;
    for i in 0..count {
        // SAFETY: the caller's array of `count` entries.
        let part = unsafe { (iov as *const [u64; 2]).add(i as usize).read_unaligned() };
        if part[1] == 0 {
            continue;
        }
        match f(part, total == 0) {
            Ok(len) => {
                total += len as u64;
                if (len as u64) < part[1] {
                    break;
                }
            }
            Err(_) if total > 0 => break,
            Err(error) => return Err(error),
        }
    }
    Ok(total)
}

/// The parts of a `struct iovec` array: (address, length).
fn parts(iov: u64, count: u64) -> Result<Vec<[u64; 2]>> {
    if count > 1024 {
        return Err(Errno::EINVAL);
    }
    // SAFETY: the caller's array of `count` entries.
    Ok((0..count as usize).map(|i| unsafe { (iov as *const [u64; 2]).add(i).read_unaligned() }).collect())
}

fn read(open: &OpenFile, buf: &mut [u8]) -> Result<usize> {
    if !open.file.seekable() {
        return open.file.read(buf, open.nonblock());
    }
    let offset = open.offset.get();
    let len = open.file.read_at(buf, offset)?;
    open.offset.set(offset + len as u64);
    Ok(len)
}

fn write(open: &OpenFile, buf: &[u8]) -> Result<usize> {
    if !open.file.seekable() {
        return open.file.write(buf, open.nonblock());
    }
    let offset = if open.flags.get() & O_APPEND != 0 { open.file.len()? } else { open.offset.get() };
    let len = open.file.write_at(buf, offset)?;
    open.offset.set(offset + len as u64);
    Ok(len)
}

/// Makes a file durable; until Postgres has recovered, all files at once: the checkpoint that it ends with flushes one after the other, each
/// with a flush of the layer's journal, and finds all but the first durable so.
fn flush(file: &dyn File, data_only: bool) -> Result<()> {
    match shared().ready() {
        0 => fs::syncfs(file),
        _ => file.sync(data_only),
    }
}

/// The postmaster announces readiness in its lock file, for `pg_ctl`; the kernel reads along.
fn watch_for_ready(me: &Task, buf: &[u8]) {
    if me.pid == task::FIRST_PID && shared().ready() == 0 && buf.len() < 512 && buf.ends_with(b"\nready   \n") {
        first::is_ready();
        shared().set_ready(1);
    }
}

/// Where a relative path begins: the working directory, or nowhere for a path that is absolute.
fn base(me: &Task, dirfd: i32, path: &[u8]) -> Result<Vec<u8>> {
    match dirfd {
        AT_FDCWD => Ok(me.cwd.borrow().clone()),
        _ if path.first() == Some(&b'/') => Ok(b"/".to_vec()),
        // No program of this guest opens relative to a folder's descriptor.
        _ => Err(Errno::ENOSYS),
    }
}

fn open(me: &Task, dirfd: i32, path: u64, flags: u32, mode: u32) -> Result<u64> {
    let path = string(path)?;
    let file = fs::open(&base(me, dirfd, path)?, path, flags, mode & !me.umask.get())?;
    let open = OpenFile::new(file, flags);
    me.files.borrow_mut().insert(open, flags & O_CLOEXEC != 0, 0).map(|fd| fd as u64)
}

fn stat_at(me: &Task, dirfd: i32, path: u64, out: u64, flags: u64) -> Result<u64> {
    let path = string(path)?;
    if path.is_empty() && flags & AT_EMPTY_PATH != 0 {
        return tell(out, me.files.borrow().get(dirfd)?.file.stat()?);
    }
    tell(out, fs::stat(&base(me, dirfd, path)?, path, flags & AT_SYMLINK_NOFOLLOW == 0)?)
}

fn seek(open: &OpenFile, offset: i64, whence: u64) -> Result<u64> {
    if !open.file.seekable() {
        return Err(Errno::ESPIPE);
    }
    let from = match whence {
        0 => 0,
        1 => open.offset.get() as i64,
        2 => open.file.len()? as i64,
        _ => return Err(Errno::EINVAL),
    };
    let to = from.checked_add(offset).filter(|&to| to >= 0).ok_or(Errno::EINVAL)? as u64;
    open.offset.set(to);
    Ok(to)
}

/// `getdents64`: the descriptor's offset counts entries.
fn list(open: &OpenFile, at: u64, room: u64) -> Result<u64> {
    let out = buffer_mut(at, room)?;
    let mut index = open.offset.get() as usize;
    if index == 0 || open.listing.borrow().is_none() {
        *open.listing.borrow_mut() = Some(open.file.entries()?);
    }
    let listing = open.listing.borrow();
    let entries = listing.as_deref().unwrap_or_default();
    let mut len = 0;
    while let Some(entry) = entries.get(index) {
        let record = (19 + entry.name.len() + 1).next_multiple_of(8);
        if len + record > out.len() {
            if len == 0 {
                return Err(Errno::EINVAL);
            }
            break;
        }
        let to = &mut out[len..len + record];
        to.fill(0);
        to[..8].copy_from_slice(&entry.ino.to_le_bytes());
        to[8..16].copy_from_slice(&(index as u64 + 1).to_le_bytes());
        to[16..18].copy_from_slice(&(record as u16).to_le_bytes());
        to[18] = entry.kind;
        to[19..19 + entry.name.len()].copy_from_slice(&entry.name);
        len += record;
        index += 1;
    }
    open.offset.set(index as u64);
    drop(listing);
    if len == 0 {
        open.listing.take();
    }
    Ok(len as u64)
}

fn control(me: &Task, fd: i32, command: u64, value: u64) -> Result<u64> {
    let open = me.files.borrow().get(fd)?;
    match command {
        F_DUPFD | F_DUPFD_CLOEXEC => {
            me.files.borrow_mut().insert(open, command == F_DUPFD_CLOEXEC, value as usize).map(|fd| fd as u64)
        }
        F_GETFD => me.files.borrow().close_on_exec(fd).map(|set| set as u64),
        F_SETFD => me.files.borrow_mut().set_close_on_exec(fd, value & 1 != 0).map(|()| 0),
        F_GETFL => Ok(open.flags.get() as u64),
        F_SETFL => {
            let settable = O_APPEND | O_NONBLOCK;
            open.flags.set(open.flags.get() & !settable | value as u32 & settable);
            Ok(0)
        }
        // One VM has one writer; locks between its processes are Postgres' own.
        F_GETLK | F_SETLK | F_SETLKW => Ok(0),
        _ => Err(Errno::EINVAL),
    }
}

pub fn call(number: i64, args: &Args) -> Result<u64> {
    let [a, b, c, d, e, _] = *args;
    let me = sched::current();
    let open_of = |fd: u64| me.files.borrow().get(fd as i32);
    let file_of = |fd: u64| -> Result<Rc<dyn File>> { Ok(open_of(fd)?.file.clone()) };
    let cwd = || me.cwd.borrow().clone();
    match number {
        nr::READ => read(&*open_of(a)?, buffer_mut(b, c)?).map(|n| n as u64),
        nr::WRITE => {
            let buf = buffer(b, c)?;
            let open = open_of(a)?;
            let written = write(&open, buf)?;
            watch_for_ready(&me, buf);
            Ok(written as u64)
        }
        nr::PREAD64 => file_of(a)?.read_at(buffer_mut(b, c)?, d).map(|n| n as u64),
        nr::PWRITE64 => {
            let buf = buffer(b, c)?;
            let written = file_of(a)?.write_at(buf, d)?;
            watch_for_ready(&me, buf);
            Ok(written as u64)
        }
        nr::READV => {
            let open = open_of(a)?;
            vectored(b, c, |part, _| read(&open, buffer_mut(part[0], part[1])?))
        }
        nr::WRITEV => {
            let open = open_of(a)?;
            vectored(b, c, |part, _| write(&open, buffer(part[0], part[1])?))
        }
        nr::PREADV => {
            let mut parts = parts(b, c)?.into_iter().map(|[at, len]| buffer_mut(at, len)).collect::<Result<Vec<_>>>()?;
            fs::read_vectored(&*file_of(a)?, &mut parts, d).map(|n| n as u64)
        }
        nr::PWRITEV => {
            let parts = parts(b, c)?.into_iter().map(|[at, len]| buffer(at, len)).collect::<Result<Vec<_>>>()?;
            fs::write_vectored(&*file_of(a)?, &parts, d).map(|n| n as u64)
        }
        nr::OPEN => open(&me, AT_FDCWD, a, b as u32, c as u32),
        nr::CREAT => open(&me, AT_FDCWD, a, 0o1101, b as u32),
        nr::OPENAT => open(&me, a as i32, b, c as u32, d as u32),
        nr::CLOSE => {
            let gone = me.files.borrow_mut().remove(a as i32)?;
            drop(gone);
            Ok(0)
        }
        nr::STAT => stat_at(&me, AT_FDCWD, a, b, 0),
        nr::LSTAT => stat_at(&me, AT_FDCWD, a, b, AT_SYMLINK_NOFOLLOW),
        nr::FSTAT => tell(b, file_of(a)?.stat()?),
        nr::NEWFSTATAT => stat_at(&me, a as i32, b, c, d),
        nr::LSEEK => seek(&*open_of(a)?, b as i64, c),
        nr::IOCTL if b == FIONBIO => {
            let open = open_of(a)?;
            let on = super::load::<i32>(c).ok_or(Errno::EFAULT)? != 0;
            open.flags.set(if on { open.flags.get() | O_NONBLOCK } else { open.flags.get() & !O_NONBLOCK });
            Ok(0)
        }
        nr::IOCTL => open_of(a).and(Err(Errno::ENOTTY)),
        nr::ACCESS => fs::access(&cwd(), string(a)?, b as u32).map(|()| 0),
        nr::FACCESSAT | nr::FACCESSAT2 => {
            let path = string(b)?;
            fs::access(&base(&me, a as i32, path)?, path, c as u32).map(|()| 0)
        }
        nr::DUP => {
            let open = open_of(a)?;
            me.files.borrow_mut().insert(open, false, 0).map(|fd| fd as u64)
        }
        nr::DUP2 | nr::DUP3 => {
            if a == b {
                return open_of(a).map(|_| b);
            }
            let gone = me.files.borrow_mut().replace(a as i32, b as i32, number == nr::DUP3 && c as u32 & O_CLOEXEC != 0)?;
            drop(gone);
            Ok(b)
        }
        nr::FCNTL => control(&me, a as i32, b, c),
        nr::FLOCK => open_of(a).map(|_| 0),
        nr::FSYNC => flush(&*file_of(a)?, false).map(|()| 0),
        nr::FDATASYNC => flush(&*file_of(a)?, true).map(|()| 0),
        nr::SYNCFS => fs::syncfs(&*file_of(a)?).map(|()| 0),
        nr::SYNC => fs::sync().map(|()| 0),
        // All of the file will be wanted. Postgres itself names a range.
        nr::FADVISE64 if (b, c, d) == (0, 0, FADV_WILLNEED) => file_of(a)?.keep().map(|()| 0),
        // Hints: what they ask to start is finished by fsync.
        nr::SYNC_FILE_RANGE | nr::FADVISE64 | nr::READAHEAD => Ok(0),
        nr::TRUNCATE => fs::truncate(&cwd(), string(a)?, b).map(|()| 0),
        nr::FTRUNCATE => file_of(a)?.truncate(b).map(|()| 0),
        nr::FALLOCATE => {
            if b != 0 {
                return Err(Errno::EOPNOTSUPP);
            }
            file_of(a)?.allocate(c, d).map(|()| 0)
        }
        nr::GETCWD => {
            let path = cwd();
            let out = buffer_mut(a, b)?;
            if out.len() < path.len() + 1 {
                return Err(Errno::ERANGE);
            }
            out[..path.len()].copy_from_slice(&path);
            out[path.len()] = 0;
            Ok(path.len() as u64 + 1)
        }
        nr::CHDIR => {
            let path = string(a)?;
            let stat = fs::stat(&cwd(), path, true)?;
            if stat.mode & 0o170000 != 0o040000 {
                return Err(Errno::ENOTDIR);
            }
            let normal = fs::normalise(&cwd(), path);
            *me.cwd.borrow_mut() = normal;
            Ok(0)
        }
        nr::RENAME => fs::rename(&cwd(), string(a)?, &cwd(), string(b)?).map(|()| 0),
        nr::RENAMEAT | nr::RENAMEAT2 => {
            let (from, to) = (string(b)?, string(d)?);
            let (from_base, to_base) = (base(&me, a as i32, from)?, base(&me, c as i32, to)?);
            if number == nr::RENAMEAT2 && e != 0 {
                return Err(Errno::EINVAL);
            }
            fs::rename(&from_base, from, &to_base, to).map(|()| 0)
        }
        nr::MKDIR => fs::mkdir(&cwd(), string(a)?, b as u32 & !me.umask.get()).map(|()| 0),
        nr::MKDIRAT => {
            let path = string(b)?;
            fs::mkdir(&base(&me, a as i32, path)?, path, c as u32 & !me.umask.get()).map(|()| 0)
        }
        nr::RMDIR => fs::rmdir(&cwd(), string(a)?).map(|()| 0),
        nr::UNLINK => fs::unlink(&cwd(), string(a)?).map(|()| 0),
        nr::UNLINKAT => {
            let path = string(b)?;
            let cwd = base(&me, a as i32, path)?;
            if c & AT_REMOVEDIR != 0 { fs::rmdir(&cwd, path) } else { fs::unlink(&cwd, path) }.map(|()| 0)
        }
        nr::LINK => fs::link(&cwd(), string(a)?, &cwd(), string(b)?).map(|()| 0),
        nr::LINKAT => fs::link(&cwd(), string(b)?, &cwd(), string(d)?).map(|()| 0),
        nr::SYMLINK => fs::symlink(&cwd(), string(a)?, string(b)?).map(|()| 0),
        nr::SYMLINKAT => fs::symlink(&cwd(), string(a)?, string(c)?).map(|()| 0),
        nr::READLINK | nr::READLINKAT => {
            let (path, out, room) = if number == nr::READLINK { (a, b, c) } else { (b, c, d) };
            fs::readlink(&cwd(), string(path)?, buffer_mut(out, room)?).map(|n| n as u64)
        }
        nr::CHMOD => fs::chmod(&cwd(), string(a)?, b as u32).map(|()| 0),
        nr::FCHMODAT => fs::chmod(&cwd(), string(b)?, c as u32).map(|()| 0),
        nr::FCHMOD => fs::chmod_file(&*file_of(a)?, b as u32).map(|()| 0),
        // Everything belongs to the one user, and stays so.
        nr::FCHOWN => open_of(a).map(|_| 0),
        nr::CHOWN | nr::LCHOWN | nr::FCHOWNAT => Ok(0),
        nr::UMASK => Ok(me.umask.replace(a as u32 & 0o777) as u64),
        nr::STATFS => tell_statfs(b, fs::statfs(&cwd(), string(a)?)?),
        nr::FSTATFS => tell_statfs(b, fs::statfs_file(&*file_of(a)?)?),
        nr::GETDENTS64 => list(&*open_of(a)?, b, c),
        nr::UTIMENSAT => {
            let times = [file_time(c, 0)?, file_time(c, 16)?];
            if b == 0 {
                return fs::utimens_file(&*file_of(a)?, times[0], times[1]).map(|()| 0);
            }
            let path = string(b)?;
            fs::utimens(&base(&me, a as i32, path)?, path, times[0], times[1], d & AT_SYMLINK_NOFOLLOW == 0).map(|()| 0)
        }
        nr::PIPE | nr::PIPE2 => {
            let flags = if number == nr::PIPE2 { b as u32 } else { 0 };
            let (reader, writer) = socket::pipe();
            let mut files = me.files.borrow_mut();
            let cloexec = flags & O_CLOEXEC != 0;
            let first = files.insert(OpenFile::new(reader, flags & O_NONBLOCK), cloexec, 0)?;
            let second = files.insert(OpenFile::new(writer, 1 | flags & O_NONBLOCK), cloexec, 0)?;
            store(a, [first, second]);
            Ok(0)
        }
        _ => Err(Errno::ENOSYS),
    }
}

/// One `struct timespec` of `utimensat`: absent or UTIME_NOW is now, UTIME_OMIT leaves the time as it is.
fn file_time(times: u64, offset: u64) -> Result<Option<u64>> {
    const UTIME_NOW: i64 = 0x3fff_ffff;
    const UTIME_OMIT: i64 = 0x3fff_fffe;
    let now = crate::time::wall_ns();
    match super::load::<[i64; 2]>(if times == 0 { 0 } else { times + offset }) {
        None => Ok(Some(now)),
        Some([_, UTIME_NOW]) => Ok(Some(now)),
        Some([_, UTIME_OMIT]) => Ok(None),
        Some(_) => timespec(times + offset).transpose(),
    }
}

/// `struct statfs` (x86-64): 120 bytes.
fn tell_statfs(at: u64, stat: fs::StatFs) -> Result<u64> {
    buffer_mut(at, 120)?.fill(0);
    let fields = [stat.kind, stat.block_size, stat.blocks, stat.free, stat.available, stat.files, stat.files_free];
    store(at, fields);
    store(at + 64, [255u64, stat.block_size]);
    Ok(0)
}
