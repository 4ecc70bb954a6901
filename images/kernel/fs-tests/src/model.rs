//! Random histories of file operations, each carried out twice: through the guest's files, and on a plain folder of the
//! host's. Results must be the same all along, and so must the whole trees at the end, with the guest's caches thrown
//! away.

use crate::errno::Errno;
use crate::file::File;
use crate::fs::{self, flags};
use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

const CWD: &[u8] = b"/pgdata";

/// A small generator of its own, so that a failing seed can be run again.
pub struct Chance(u64);

impl Chance {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 20) as usize % limit
    }
}

/// A file open on both sides.
struct Open {
    guest: Rc<dyn File>,
    host: std::fs::File,
}

pub struct Model {
    host: PathBuf,
    open: Vec<Open>,
    chance: Chance,
    pub steps: BTreeMap<&'static str, (usize, usize)>,
}

fn errno(error: &std::io::Error) -> Errno {
    Errno(error.raw_os_error().unwrap())
}

const NAMES: [&str; 5] = ["1259", "1259_fsm", "2608", "sub", "pg_internal.init"];
const FOLDERS: [&str; 5] = [".", "base", "base/5", "sub", "base/sub"];

impl Model {
    pub fn new(host: &Path, seed: u64) -> Self {
        Self { host: host.into(), open: Vec::new(), chance: Chance::new(seed), steps: BTreeMap::new() }
    }

    fn path(&mut self) -> String {
        let folder = FOLDERS[self.chance.below(FOLDERS.len())];
        format!("{folder}/{}", NAMES[self.chance.below(NAMES.len())])
    }

    /// An offset or length: often at, or beside, the edge of a block.
    fn place(&mut self) -> usize {
        match self.chance.below(4) {
            0 => self.chance.below(20) * 8192,
            1 => (self.chance.below(20) * 8192 + self.chance.below(3)).saturating_sub(1),
            2 => self.chance.below(200_000),
            _ => self.chance.below(300),
        }
    }

    /// Both sides must have done the same.
    fn same(&mut self, what: &'static str, path: &str, guest: Result<(), Errno>, host: std::io::Result<()>) {
        let host = host.map_err(|error| errno(&error));
        let step = self.steps.entry(what).or_default();
        if guest.is_ok() { step.0 += 1 } else { step.1 += 1 }
        // Which of several errors a rename meets first is the file system's own matter.
        if what == "rename" {
            assert_eq!(guest.is_ok(), host.is_ok(), "{what} {path}: {guest:?}, {host:?}");
        } else {
            assert_eq!(guest, host, "{what} {path}");
        }
    }

    pub fn step(&mut self) {
        let path = self.path();
        let on_host = self.host.join(&path);
        let name = path.as_bytes();
        match self.chance.below(20) {
            0 | 1 => {
                let new = flags::O_RDWR | flags::O_CREAT;
                let extra = [0, flags::O_TRUNC, flags::O_EXCL][self.chance.below(3)];
                let guest = fs::open(CWD, name, new | extra, 0o600);
                let host = std::fs::OpenOptions::new()
                    .read(true)
                    .write(true)
                    .create(extra != flags::O_EXCL)
                    .create_new(extra == flags::O_EXCL)
                    .truncate(extra == flags::O_TRUNC)
                    .open(&on_host);
                self.opened("create", &path, guest, host);
            }
            2 => {
                let guest = fs::open(CWD, name, flags::O_RDWR, 0);
                let host = std::fs::OpenOptions::new().read(true).write(true).open(&on_host);
                self.opened("open", &path, guest, host);
            }
            3..=5 => self.write(),
            6 | 7 => self.read(),
            8 => {
                let len = self.place() as u64;
                let Some(open) = self.any() else { return };
                let (guest, host) = (open.guest.truncate(len), open.host.set_len(len));
                self.same("truncate", "", guest, host);
            }
            9 => {
                let (offset, len) = (self.place() as u64, self.place() as u64 + 1);
                let Some(open) = self.any() else { return };
                let guest = open.guest.allocate(offset, len);
                let end = (offset + len).max(open.host.metadata().unwrap().len());
                let host = open.host.set_len(end);
                self.same("allocate", "", guest, host);
            }
            10 => {
                let guest = fs::unlink(CWD, name);
                // unlink(2), which std's remove_file is.
                let host = std::fs::remove_file(&on_host);
                self.same("unlink", &path, guest, host);
            }
            11 => {
                let guest = fs::mkdir(CWD, name, 0o700);
                self.same("mkdir", &path, guest, std::fs::create_dir(&on_host));
            }
            12 => {
                let guest = fs::rmdir(CWD, name);
                self.same("rmdir", &path, guest, std::fs::remove_dir(&on_host));
            }
            13 | 14 => {
                let to = self.path();
                let guest = fs::rename(CWD, name, CWD, to.as_bytes());
                let host = std::fs::rename(&on_host, self.host.join(&to));
                self.same("rename", &format!("{path} to {to}"), guest, host);
            }
            15 => {
                let guest = fs::stat(CWD, name, true).map(|stat| (stat.mode >> 12, stat.size));
                let host = std::fs::metadata(&on_host).map_err(|error| errno(&error)).map(|data| {
                    if data.is_dir() { (4, 0) } else { (8, data.len()) }
                });
                let guest = guest.map(|(kind, size)| (kind, if kind == 4 { 0 } else { size }));
                assert_eq!(guest, host, "stat {path}");
            }
            16 => {
                let folder = FOLDERS[self.chance.below(FOLDERS.len())];
                if self.host.join(folder).is_dir() {
                    assert_eq!(guest_names(folder), host_names(&self.host.join(folder)), "names of {folder}");
                }
            }
            17 => self.write_blocks(),
            18 => match self.chance.below(6) {
                0 => fs::sweep(),
                1 => drop(fs::reclaim()),
                2 => fs::settle().unwrap(),
                3 => {
                    let Some(open) = self.any() else { return };
                    open.guest.keep().unwrap();
                }
                4 => {
                    fs::settle().unwrap();
                    crate::tests::sleep();
                }
                _ => fs::sync().unwrap(),
            },
            _ => {
                if self.chance.below(3) == 0 && !self.open.is_empty() {
                    let at = self.chance.below(self.open.len());
                    self.open.swap_remove(at);
                } else if let Some(open) = self.any() {
                    open.guest.sync(true).unwrap();
                    let mut content = Vec::new();
                    std::io::Read::read_to_end(&mut (&open.host), &mut content).unwrap();
                    std::io::Seek::rewind(&mut (&open.host)).unwrap();
                    let node = open.guest.stat().unwrap().ino;
                    self.flushed(node, &content);
                }
            }
        }
    }

    fn any(&mut self) -> Option<&Open> {
        if self.open.is_empty() {
            return None;
        }
        let at = self.chance.below(self.open.len());
        Some(&self.open[at])
    }

    fn opened(
        &mut self,
        what: &'static str,
        path: &str,
        guest: Result<Rc<dyn File>, Errno>,
        host: std::io::Result<std::fs::File>,
    ) {
        match (guest, host) {
            (Ok(guest), Ok(host)) => {
                self.open.push(Open { guest, host });
                self.same(what, path, Ok(()), Ok(()));
            }
            (guest, host) => self.same(what, path, guest.map(|_| ()), host.map(|_| ())),
        }
        if self.open.len() > 12 {
            self.open.remove(0);
        }
    }

    fn write(&mut self) {
        let (offset, len, byte) = (self.place(), self.place(), self.chance.below(255) as u8);
        let data: Vec<u8> = (0..len).map(|i| byte.wrapping_add((i / 100) as u8)).collect();
        let pieces = self.chance.below(3);
        let Some(open) = self.any() else { return };
        let guest = if pieces == 0 {
            open.guest.write_at(&data, offset as u64)
        } else {
            let (a, b) = data.split_at(len / (pieces + 1));
            fs::write_vectored(&*open.guest, &[a, b], offset as u64)
        };
        assert_eq!(guest, Ok(len));
        open.host.write_all_at(&data, offset as u64).unwrap();
        self.same("write", "", Ok(()), Ok(()));
    }

    /// As Postgres writes relations and the log.
    fn write_blocks(&mut self) {
        let (first, count, byte) = (self.chance.below(20), 1 + self.chance.below(4), self.chance.below(255) as u8);
        let Some(open) = self.any() else { return };
        let (offset, len) = (first as u64 * 8192, count * 8192);
        let data = vec![byte; len];
        assert_eq!(open.guest.write_at(&data, offset), Ok(len));
        open.host.write_all_at(&data, offset).unwrap();
        self.same("write blocks", "", Ok(()), Ok(()));
    }

    /// After a flush the server has all of the file.
    fn flushed(&mut self, node: u64, content: &[u8]) {
        let Some(durable) = crate::device::durable(node) else { return };
        assert!(durable == content, "a flush has left something behind");
        self.same("flush", "", Ok(()), Ok(()));
    }

    fn read(&mut self) {
        let (offset, len) = (self.place() as u64, self.place());
        let Some(open) = self.any() else { return };
        let (mut guest, mut host) = (vec![1; len], vec![2; len]);
        assert_eq!(open.guest.len().unwrap(), open.host.metadata().unwrap().len());
        let (got, expected) = (open.guest.read_at(&mut guest, offset).unwrap(), read_full(&open.host, &mut host, offset));
        assert_eq!(got, expected, "read of {len} at {offset}");
        assert!(guest[..got] == host[..got], "read of {len} at {offset}: content");
        self.same("read", "", Ok(()), Ok(()));
    }

    #[cfg(feature = "layer")]
    pub fn close(&mut self) {
        self.open.clear();
    }

    /// Every name and byte on both sides.
    pub fn compare(&self) {
        compare(&self.host, ".");
    }
}

fn read_full(file: &std::fs::File, buf: &mut [u8], offset: u64) -> usize {
    let mut done = 0;
    while done < buf.len() {
        match file.read_at(&mut buf[done..], offset + done as u64).unwrap() {
            0 => break,
            len => done += len,
        }
    }
    done
}

fn guest_names(folder: &str) -> Vec<(String, bool)> {
    let folder = fs::open(CWD, folder.as_bytes(), flags::O_DIRECTORY, 0).unwrap();
    let mut names: Vec<(String, bool)> = folder
        .entries()
        .unwrap()
        .into_iter()
        .map(|entry| (String::from_utf8(entry.name).unwrap(), entry.kind == fs::kind::DIRECTORY))
        .filter(|(name, _)| !matches!(&name[..], "." | ".." | "pgsql_tmp" | "pg_stat_tmp"))
        .collect();
    names.sort();
    names
}

fn host_names(folder: &Path) -> Vec<(String, bool)> {
    let mut names: Vec<(String, bool)> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), entry.file_type().unwrap().is_dir()))
        .collect();
    names.sort();
    names
}

fn compare(host: &Path, folder: &str) {
    let names = guest_names(folder);
    assert_eq!(names, host_names(&host.join(folder)), "names of {folder}");
    for (name, directory) in names {
        let path = format!("{folder}/{name}");
        if directory {
            compare(host, &path);
            continue;
        }
        let file = fs::open(CWD, path.as_bytes(), 0, 0).unwrap();
        let mut guest = vec![0; file.len().unwrap() as usize + 1];
        let len = file.read_at(&mut guest, 0).unwrap();
        assert!(guest[..len] == std::fs::read(host.join(&path)).unwrap(), "content of {path}");
    }
}
