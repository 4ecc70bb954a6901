//! The layer's host files: every system call that reads or changes the layer's folder is here.
//!
//! No name in here comes from the guest. Under test each change is also recorded, so that a power cut can be played.

use super::guest::GuestBytes;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;

#[cfg(test)]
use super::powercut::{Event, Recorder};

/// The folder of one layer.
pub(crate) struct Host {
    dir: File,
    /// The folder `files`, once there is one.
    files: Option<File>,
    _lock: Option<File>,
    /// How its files are opened.
    access: libc::c_int,
    #[cfg(test)]
    pub recorder: Option<Recorder>,
}

/// One file of the layer, open for reading and writing.
pub(crate) struct HostFile {
    pub file: File,
    #[cfg(test)]
    name: String,
}

#[cfg(test)]
impl HostFile {
    /// Fails if the test wants this operation on such a file to.
    fn fault(&self, operation: &str) -> io::Result<()> {
        let file = if self.name.starts_with("files/") { "files/" } else { &self.name };
        super::powercut::fault(operation, file)
    }
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn c_name(name: &str) -> io::Result<CString> {
    CString::new(name).map_err(|_| io::ErrorKind::InvalidInput.into())
}

fn open_at(dir: &File, name: &CStr, flags: libc::c_int) -> io::Result<File> {
    // SAFETY: `name` is NUL-terminated; a non-negative result is a new descriptor that nobody else owns.
    unsafe {
        let fd = check(libc::openat(dir.as_raw_fd(), name.as_ptr(), flags | libc::O_CLOEXEC | libc::O_NOFOLLOW, 0o600))?;
        Ok(File::from(OwnedFd::from_raw_fd(fd)))
    }
}

pub(crate) fn open_folder(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    File::options().read(true).custom_flags(libc::O_DIRECTORY | libc::O_CLOEXEC).open(path)
}

impl Host {
    /// Opens the folder and, if `lock`, takes the lock; `None` if another process has it.
    pub fn open(path: &Path, lock: bool) -> io::Result<Option<Host>> {
        let dir = open_folder(path)?;
        let mut held = None;
        if lock {
            let file = open_at(&dir, c"lock", libc::O_RDWR | libc::O_CREAT)?;
            // SAFETY: a plain call on a descriptor we own.
            if let Err(error) = check(unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) }) {
                return match error.raw_os_error() {
                    Some(libc::EWOULDBLOCK) => Ok(None),
                    _ => Err(error),
                };
            }
            held = Some(file);
        }
        let files = match open_at(&dir, c"files", libc::O_RDONLY | libc::O_DIRECTORY) {
            Ok(files) => Some(files),
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => return Err(e),
        };
        Ok(Some(Host {
            dir,
            files,
            _lock: held,
            access: libc::O_RDWR,
            #[cfg(test)]
            recorder: super::powercut::recorder(),
        }))
    }

    /// Opens the folder to read its files, which may be all that this process can do with them; without the lock.
    pub fn open_to_read(path: &Path) -> io::Result<Host> {
        let host = Host::open(path, false)?.ok_or(io::ErrorKind::WouldBlock)?;
        Ok(Host { access: libc::O_RDONLY, ..host })
    }

    #[cfg(test)]
    fn record(&self, event: impl FnOnce() -> Event) {
        if let Some(recorder) = &self.recorder {
            recorder.push(event());
        }
    }

    /// Numbers of all files in `files`, with the bytes of disk that each takes.
    pub fn list(&self) -> io::Result<Vec<(u64, u64)>> {
        let Some(files) = &self.files else { return Ok(Vec::new()) };
        let mut found = Vec::new();
        for (name, _) in list_folder(files)? {
            let number = std::str::from_utf8(&name).ok().and_then(|n| u64::from_str_radix(n, 16).ok());
            if let Some(number) = number.filter(|n| format!("{n:x}").as_bytes() == name) {
                let stat = stat_at(files, &c_name(&format!("{number:x}"))?)?;
                found.push((number, stat.st_blocks as u64 * 512));
            }
        }
        Ok(found)
    }

    /// Makes the folder `files` if it isn't there.
    pub fn make_files(&mut self) -> io::Result<()> {
        if self.files.is_none() {
            // SAFETY: a constant NUL-terminated name below a folder we have open.
            let made = check(unsafe { libc::mkdirat(self.dir.as_raw_fd(), c"files".as_ptr(), 0o700) });
            if let Err(error) = made
                && error.kind() != io::ErrorKind::AlreadyExists
            {
                return Err(error);
            }
            self.files = Some(open_at(&self.dir, c"files", libc::O_RDONLY | libc::O_DIRECTORY)?);
        }
        Ok(())
    }

    fn files(&self) -> io::Result<&File> {
        self.files.as_ref().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Opens object `id`'s file; with `create`, makes it anew and empty.
    pub fn open_file(&self, id: u64, create: bool) -> io::Result<HostFile> {
        let name = format!("{id:x}");
        let flags = if create { libc::O_CREAT | libc::O_TRUNC } else { 0 };
        let file = open_at(self.files()?, &c_name(&name)?, self.access | flags)?;
        #[cfg(test)]
        if create {
            self.record(|| Event::Create(format!("files/{id:x}")));
        }
        Ok(HostFile {
            file,
            #[cfg(test)]
            name: format!("files/{id:x}"),
        })
    }

    /// Size and mtime of object `id`'s file, `None` if there is none.
    pub fn stat_file(&self, id: u64) -> io::Result<Option<libc::stat>> {
        let Some(files) = &self.files else { return Ok(None) };
        match stat_at(files, &c_name(&format!("{id:x}"))?) {
            Ok(stat) => Ok(Some(stat)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    pub fn remove_file(&self, id: u64) -> io::Result<()> {
        let name = c_name(&format!("{id:x}"))?;
        // SAFETY: `name` is NUL-terminated, below a folder we have open.
        check(unsafe { libc::unlinkat(self.files()?.as_raw_fd(), name.as_ptr(), 0) })?;
        #[cfg(test)]
        self.record(|| Event::Unlink(format!("files/{id:x}")));
        Ok(())
    }

    /// Removes the folder `files`, unless something is in it that is no object's.
    pub fn remove_files(&mut self) -> io::Result<()> {
        // SAFETY: a constant NUL-terminated name below a folder we have open.
        let removed = check(unsafe { libc::unlinkat(self.dir.as_raw_fd(), c"files".as_ptr(), libc::AT_REMOVEDIR) });
        match removed.map_err(|e| (e.kind(), e)) {
            Ok(_) | Err((io::ErrorKind::NotFound, _)) => self.files = None,
            Err((io::ErrorKind::DirectoryNotEmpty, _)) => {}
            Err((_, error)) => return Err(error),
        }
        Ok(())
    }

    /// Makes the names in `files` durable.
    pub fn sync_files(&self) -> io::Result<()> {
        self.files()?.sync_all()?;
        #[cfg(test)]
        self.record(|| Event::SyncFolder("files/"));
        Ok(())
    }

    /// Makes the names in the layer's folder durable, and the folder's own.
    pub fn sync_folder(&self) -> io::Result<()> {
        self.dir.sync_all()?;
        // The folder is the host's to make durable; a jailed process can't reach above it, which is no error.
        if let Ok(parent) = open_at(&self.dir, c"..", libc::O_RDONLY | libc::O_DIRECTORY) {
            parent.sync_all()?;
        }
        #[cfg(test)]
        self.record(|| Event::SyncFolder(""));
        Ok(())
    }

    pub fn open_journal(&self) -> io::Result<Option<HostFile>> {
        match open_at(&self.dir, c"journal", self.access) {
            Ok(file) => Ok(Some(HostFile {
                file,
                #[cfg(test)]
                name: "journal".into(),
            })),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Writes a journal with these bytes beside the one that is there.
    pub fn stage_journal(&self, bytes: &[u8], durable: bool) -> io::Result<HostFile> {
        let file = open_at(&self.dir, c"journal.new", libc::O_RDWR | libc::O_CREAT | libc::O_TRUNC)?;
        let new = HostFile {
            file,
            #[cfg(test)]
            name: "journal.new".into(),
        };
        #[cfg(test)]
        self.record(|| Event::Create("journal.new".into()));
        self.write_at(&new, bytes, 0)?;
        if durable {
            self.sync(&new)?;
        }
        Ok(new)
    }

    /// Puts a staged journal in place: after a crash either is found, never a mixture.
    pub fn commit_journal(&self, new: HostFile, durable: bool) -> io::Result<HostFile> {
        // SAFETY: constant NUL-terminated names below a folder we have open.
        check(unsafe {
            libc::renameat(self.dir.as_raw_fd(), c"journal.new".as_ptr(), self.dir.as_raw_fd(), c"journal".as_ptr())
        })?;
        #[cfg(test)]
        self.record(|| Event::Rename("journal.new".into(), "journal".into()));
        if durable {
            self.sync_folder()?;
        }
        Ok(HostFile {
            file: new.file,
            #[cfg(test)]
            name: "journal".into(),
        })
    }

    pub fn write_at(&self, file: &HostFile, bytes: &[u8], offset: u64) -> io::Result<()> {
        #[cfg(test)]
        file.fault("write")?;
        file.file.write_all_at(bytes, offset)?;
        #[cfg(test)]
        self.record(|| Event::Write { name: file.name.clone(), offset, bytes: bytes.to_vec() });
        Ok(())
    }

    /// See [`GuestBytes::write_to`].
    pub fn write_guest(&self, file: &HostFile, bytes: GuestBytes, offset: u64) -> io::Result<usize> {
        #[cfg(test)]
        file.fault("write")?;
        #[cfg(test)]
        let bytes = bytes.range(0, super::powercut::short_write().unwrap_or(usize::MAX));
        let n = bytes.write_to(&file.file, offset)?;
        #[cfg(test)]
        self.record(|| {
            let mut copy = vec![0; n];
            bytes.copy_to(&mut copy);
            Event::Write { name: file.name.clone(), offset, bytes: copy }
        });
        Ok(n)
    }

    pub fn set_len(&self, file: &HostFile, len: u64) -> io::Result<()> {
        file.file.set_len(len)?;
        #[cfg(test)]
        self.record(|| Event::SetLen { name: file.name.clone(), len });
        Ok(())
    }

    /// Reserves disk for the range, and lets the file end no earlier than its end.
    pub fn allocate(&self, file: &HostFile, offset: u64, len: u64, keep_size: bool) -> io::Result<()> {
        let mode = if keep_size { libc::FALLOC_FL_KEEP_SIZE } else { 0 };
        // SAFETY: a plain call on a descriptor we own.
        check(unsafe { libc::fallocate(file.file.as_raw_fd(), mode, offset as i64, len as i64) })?;
        #[cfg(test)]
        if !keep_size {
            self.record(|| Event::Extend { name: file.name.clone(), len: offset + len });
        }
        Ok(())
    }

    /// Makes the file's bytes and length durable.
    pub fn sync(&self, file: &HostFile) -> io::Result<()> {
        #[cfg(test)]
        file.fault("sync")?;
        file.file.sync_data()?;
        #[cfg(test)]
        self.record(|| Event::Sync(file.name.clone()));
        Ok(())
    }

    /// Has the host begin to write the file's bytes, and does not wait for it. It makes nothing durable.
    pub fn begin_write_back(&self, file: &HostFile) -> io::Result<()> {
        #[cfg(test)]
        file.fault("write-back")?;
        // SAFETY: a plain call on a descriptor we own; from 0 for 0 bytes is all of the file.
        match check(unsafe { libc::sync_file_range(file.file.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) }) {
            // Only sooner is what is lost.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM | libc::EINVAL)) => Ok(()),
            begun => begun.map(drop),
        }
    }

    /// Bytes of disk, and bytes free to us, of the file system that the layer is on.
    pub fn space(&self) -> io::Result<(u64, u64)> {
        // SAFETY: statvfs is plain data, and the call fills it.
        let mut stat: libc::statvfs = unsafe { std::mem::zeroed() };
        // SAFETY: as above; the descriptor is ours.
        check(unsafe { libc::fstatvfs(self.dir.as_raw_fd(), &mut stat) })?;
        Ok((stat.f_blocks * stat.f_frsize, stat.f_bavail * stat.f_frsize))
    }
}

fn stat_at(dir: &File, name: &CStr) -> io::Result<libc::stat> {
    // SAFETY: stat is plain data, filled by the call; `name` is NUL-terminated.
    unsafe {
        let mut stat: libc::stat = std::mem::zeroed();
        check(libc::fstatat(dir.as_raw_fd(), name.as_ptr(), &mut stat, libc::AT_SYMLINK_NOFOLLOW))?;
        Ok(stat)
    }
}

/// `fstat` with what std leaves out.
pub(crate) fn stat_of(file: &File) -> io::Result<libc::stat> {
    // SAFETY: stat is plain data, filled by the call.
    unsafe {
        let mut stat: libc::stat = std::mem::zeroed();
        check(libc::fstat(file.as_raw_fd(), &mut stat))?;
        Ok(stat)
    }
}

/// Names and `d_type`s in an open folder, without `.` and `..`, in the host's order.
pub(crate) fn list_folder(dir: &File) -> io::Result<Vec<(Vec<u8>, u8)>> {
    let mut found = Vec::new();
    let mut buffer = vec![0u8; 32 << 10];
    // SAFETY: a plain call on a descriptor we own. Listings start at the beginning each time.
    if unsafe { libc::lseek(dir.as_raw_fd(), 0, libc::SEEK_SET) } < 0 {
        return Err(io::Error::last_os_error());
    }
    loop {
        // SAFETY: the kernel writes at most `buffer.len()` bytes to `buffer`.
        let n = unsafe {
            libc::syscall(libc::SYS_getdents64, dir.as_raw_fd(), buffer.as_mut_ptr(), buffer.len())
        };
        if n < 0 {
            return Err(io::Error::last_os_error());
        }
        if n == 0 {
            return Ok(found);
        }
        // linux_dirent64: ino u64, off i64, reclen u16, type u8, name.
        let mut rest = &buffer[..n as usize];
        while rest.len() > 19 {
            let len = usize::from(u16::from_le_bytes([rest[16], rest[17]]));
            let (entry, after) = rest.split_at_checked(len).ok_or(io::ErrorKind::InvalidData)?;
            rest = after;
            let name = entry.get(19..).ok_or(io::ErrorKind::InvalidData)?;
            let name = name.split(|&b| b == 0).next().unwrap_or_default();
            if name != b"." && name != b".." {
                found.push((name.to_vec(), entry[18]));
            }
        }
    }
}
