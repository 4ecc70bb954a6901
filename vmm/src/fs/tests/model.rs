//! Random requests against the device and against a plain folder: the same answers, the same files.

use super::client::Client;
use super::{Folders, HASH, Random, assert_same_tree, folders};
use crate::fs::{FsDevice, FsOptions};
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

const DIRS: &[&str] = &["", "base", "base/5", "base/6", "base/5/empty", "global", "pg_wal", "d", "d/e", "base/5/sub"];
const NAMES: &[&str] = &[
    "100", "101", "100.1", "100_fsm", "1260", "pg_control", "0001", "0002", "PG_VERSION", "link", "a", "b", "5", "6", "e",
    "empty", "d", "base", "sub",
];

struct Pair {
    folders: Folders,
    client: Client,
    random: Random,
    /// Nodes held by the guest, with the plain file open beside.
    held: Vec<(u64, File)>,
}

fn errno<T>(result: io::Result<T>) -> Result<T, i32> {
    result.map_err(|e| e.raw_os_error().unwrap_or(-1))
}

fn c(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap()
}

impl Pair {
    fn path(&self, dir: &str, name: &str) -> PathBuf {
        self.folders.copy.join(dir).join(name)
    }

    /// A folder's node, if it is there for both.
    fn dir(&mut self) -> Option<(u64, &'static str)> {
        let dir = *self.random.pick(DIRS);
        let there = self.folders.copy.join(dir).symlink_metadata().is_ok_and(|m| m.is_dir());
        match self.client.walk(dir) {
            Ok(stat) if there => {
                assert_eq!(stat.mode & libc::S_IFMT, libc::S_IFDIR);
                Some((stat.node, dir))
            }
            Ok(stat) => {
                assert!(self.folders.copy.join(dir).symlink_metadata().is_ok());
                assert_ne!(stat.mode & libc::S_IFMT, libc::S_IFDIR);
                self.client.forget(stat.node);
                None
            }
            Err(error) => {
                let other = self.folders.copy.join(dir).symlink_metadata();
                let error_there = errno(other).err();
                assert!(
                    // Linux follows a link in the middle of a path, and finds nothing.
                    error_there == Some(error) || (error, error_there) == (libc::ENOTDIR, Some(libc::ENOENT)),
                    "{dir}: {error} {error_there:?}"
                );
                None
            }
        }
    }

    fn data(&mut self) -> (u64, Vec<u8>) {
        let aligned = self.random.chance(60);
        let mut at = self.random.below(14) * 8192;
        let mut len = (1 + self.random.below(3)) * 8192;
        if !aligned {
            at += self.random.below(8192);
            len = 1 + self.random.below(20_000);
        }
        (at, self.random.bytes(len as usize))
    }

    fn file_step(&mut self, node: u64, file: &File) {
        match self.random.below(10) {
            0..4 => {
                let (at, data) = self.data();
                assert_eq!(self.client.write(node, at, &data), Ok(data.len()));
                file.write_all_at(&data, at).unwrap();
            }
            4..6 => {
                let size = self.random.below(14) * 8192 + self.random.below(2) * self.random.below(8192);
                assert_eq!(self.client.setattr(node, Some(size), None).map(|s| s.size), Ok(size));
                file.set_len(size).unwrap();
            }
            6 => {
                let (at, data) = self.data();
                let mode = if self.random.chance(30) { libc::FALLOC_FL_KEEP_SIZE } else { 0 };
                assert_eq!(self.client.fallocate(node, at, data.len() as u64, mode as u32), Ok(()));
                let end = at + data.len() as u64;
                if mode == 0 && file.metadata().unwrap().len() < end {
                    file.set_len(end).unwrap();
                }
            }
            7 => assert_eq!(self.client.fsync(node), Ok(())),
            _ => {
                let (at, data) = self.data();
                let mut plain = vec![0; data.len()];
                let mut n = 0;
                while let Ok(more @ 1..) = file.read_at(&mut plain[n..], at + n as u64) {
                    n += more;
                }
                let got = self.client.read(node, at, data.len()).unwrap();
                assert_eq!(got.len(), n);
                assert!(got == plain[..n], "bytes at {at}");
            }
        }
        let meta = file.metadata().unwrap();
        let stat = self.client.getattr(node).unwrap();
        assert_eq!((stat.size, u64::from(stat.links)), (meta.len(), meta.nlink()));
    }

    fn step(&mut self) {
        if !self.held.is_empty() && self.random.chance(15) {
            let i = self.random.below(self.held.len() as u64) as usize;
            let (node, file) = self.held.swap_remove(i);
            self.file_step(node, &file);
            if self.random.chance(70) {
                self.held.push((node, file));
            } else {
                self.client.forget(node);
            }
            return;
        }
        let Some((dir, dir_name)) = self.dir() else { return };
        let name = *self.random.pick(NAMES);
        let path = self.path(dir_name, name);
        let bytes = name.as_bytes();
        match self.random.below(20) {
            0..7 => match self.client.lookup(dir, bytes) {
                Ok(stat) => {
                    let meta = path.symlink_metadata().unwrap();
                    assert_eq!(stat.mode & libc::S_IFMT, meta.mode() & libc::S_IFMT);
                    if meta.is_file() {
                        let file = File::options().read(true).write(true).open(&path).unwrap();
                        self.file_step(stat.node, &file);
                        if self.random.chance(20) && self.held.len() < 8 {
                            self.held.push((stat.node, file));
                        } else {
                            self.client.forget(stat.node);
                        }
                    } else if meta.is_symlink() {
                        let target = std::fs::read_link(&path).unwrap();
                        assert_eq!(self.client.readlink(stat.node), Ok(target.as_os_str().as_bytes().to_vec()));
                        self.client.forget(stat.node);
                    } else {
                        self.client.forget(stat.node);
                    }
                }
                Err(error) => assert_eq!(errno(path.symlink_metadata()).err(), Some(error), "{}", path.display()),
            },
            7..10 => {
                // O_EXCL: an existing link's end is not ours to compare.
                let got = self.client.create(dir, bytes, 0o600, libc::O_EXCL);
                let there = errno(File::options().read(true).write(true).create_new(true).open(&path));
                assert_eq!(got.err(), there.as_ref().err().copied());
                if let (Ok(stat), Ok(file)) = (got, there) {
                    self.file_step(stat.node, &file);
                    self.client.forget(stat.node);
                }
            }
            10 => {
                let got = self.client.mkdir(dir, bytes).map(|s| self.client.forget(s.node));
                assert_eq!(got, errno(std::fs::create_dir(&path)));
            }
            11 => {
                let got = self.client.symlink(dir, bytes, b"../there").map(|s| self.client.forget(s.node));
                assert_eq!(got, errno(std::os::unix::fs::symlink("../there", &path)));
            }
            12..14 => {
                assert_eq!(self.client.unlink(dir, bytes), errno(std::fs::remove_file(&path)), "{}", path.display());
            }
            14 => assert_eq!(self.client.rmdir(dir, bytes), errno(std::fs::remove_dir(&path)), "{}", path.display()),
            15..18 => {
                if let Some((to, to_name)) = self.dir() {
                    let new = *self.random.pick(NAMES);
                    let flags = u32::from(self.random.chance(20));
                    let target = self.path(to_name, new);
                    let got = self.client.rename(dir, bytes, to, new.as_bytes(), flags);
                    // SAFETY: two NUL-terminated paths.
                    let there = unsafe {
                        libc::renameat2(libc::AT_FDCWD, c(&path).as_ptr(), libc::AT_FDCWD, c(&target).as_ptr(), flags)
                    };
                    let there = if there == 0 { Ok(()) } else { errno(Err(io::Error::last_os_error())) };
                    // A folder moved below itself is refused by Linux before it looks for anything else.
                    if (got, there) != (Err(libc::EEXIST), Err(libc::EINVAL))
                        && (got, there) != (Err(libc::ENOTEMPTY), Err(libc::EINVAL))
                        && (got, there) != (Err(libc::ENOTDIR), Err(libc::EINVAL))
                        && (got, there) != (Err(libc::EISDIR), Err(libc::ENOTEMPTY))
                    {
                        assert_eq!(got, there, "{} to {}", path.display(), target.display());
                    }
                    self.release(to);
                }
            }
            18 => {
                if let Ok(stat) = self.client.lookup(dir, bytes) {
                    if let Some((to, to_name)) = self.dir() {
                        let new = *self.random.pick(NAMES);
                        let got = self.client.link(stat.node, to, new.as_bytes()).map(|s| self.client.forget(s.node));
                        let target = self.path(to_name, new);
                        let there = errno(std::fs::hard_link(&path, &target));
                        // Which of two reasons comes first is not told.
                        if (got, there) != (Err(libc::EPERM), Err(libc::EEXIST)) {
                            assert_eq!(got, there);
                        }
                        self.release(to);
                    }
                    self.client.forget(stat.node);
                }
            }
            _ => {
                let plus = self.random.chance(50);
                let room = 300 + self.random.below(2000) as usize;
                let got = self.client.names(dir, room, plus).unwrap();
                let mut there: Vec<Vec<u8>> = std::fs::read_dir(self.folders.copy.join(dir_name))
                    .unwrap()
                    .map(|e| e.unwrap().file_name().as_bytes().to_vec())
                    .collect();
                there.sort();
                assert_eq!(got, there);
            }
        }
        self.release(dir);
    }

    fn release(&mut self, node: u64) {
        if node != 1 {
            self.client.forget(node);
        }
    }

    /// The guest sleeps and wakes, or stops and starts.
    fn restart(self) -> Pair {
        let Pair { folders, mut client, mut random, mut held } = self;
        let options = FsOptions::new(HASH);
        let cold = random.chance(30);
        if cold || random.chance(50) {
            client.device.flush_all().unwrap();
        }
        let saved = client.device.save();
        let used = client.device.disk_bytes();
        drop(client);
        let device = if cold {
            held.clear();
            FsDevice::open(&folders.layer, &folders.template, options).unwrap()
        } else {
            let device = FsDevice::restore(&folders.layer, &folders.template, options, &saved).unwrap();
            assert_eq!(device.disk_bytes(), used);
            device
        };
        Pair { client: Client::new(device), folders, random, held }
    }
}

#[test]
fn random_requests_do_what_a_plain_folder_does() {
    for case in 0..super::cases(12) {
        let folders = folders();
        let device = FsDevice::open(&folders.layer, &folders.template, FsOptions::new(HASH)).unwrap();
        let mut pair = Pair { client: Client::new(device), folders, random: Random::new(case), held: Vec::new() };
        for _ in 0..6 {
            for _ in 0..200 {
                pair.step();
            }
            pair = pair.restart();
        }
        for (node, _) in pair.held.drain(..) {
            pair.client.forget(node);
        }
        pair.client.syncfs().unwrap();
        let Folders { temp, template, layer, copy } = pair.folders;
        // What was counted step by step is what is there.
        let files = layer.join("files");
        let on_disk: u64 = std::fs::read_dir(&files).unwrap().map(|e| e.unwrap().metadata().unwrap().blocks() * 512).sum();
        let journal = layer.join("journal").metadata().unwrap().len().next_multiple_of(4096);
        assert_eq!(pair.client.device.disk_bytes(), on_disk + journal);
        drop(pair.client);
        let out = temp.path().join("out");
        crate::layer::merge(&layer, &template, HASH, &out).unwrap();
        assert_same_tree(&out, &copy);
    }
}

#[test]
fn a_folder_can_be_emptied_while_it_is_listed() {
    let folders = folders();
    let device = FsDevice::open(&folders.layer, &folders.template, FsOptions::new(HASH)).unwrap();
    let mut client = Client::new(device);
    let dir = client.walk("base/5").unwrap().node;
    for i in 0..300 {
        let name = format!("t{i}");
        client.create(dir, name.as_bytes(), 0o600, 0).unwrap();
    }
    client.rmdir(dir, b"empty").unwrap();
    let (mut at, mut removed) = (0, 0);
    loop {
        let part = client.readdir(dir, at, 500, false).unwrap();
        let Some(last) = part.last() else { break };
        at = last.2;
        for (name, kind, _) in part {
            if kind == u32::from(libc::DT_REG) {
                client.unlink(dir, &name).unwrap();
                removed += 1;
            }
        }
    }
    assert_eq!(removed, 304);
    assert_eq!(client.names(dir, 4096, false).unwrap(), Vec::<Vec<u8>>::new());
}

#[test]
fn an_unlinked_file_is_good_until_forgotten_even_over_a_sleep() {
    let Folders { template, layer, temp, .. } = folders();
    let device = FsDevice::open(&layer, &template, FsOptions::new(HASH)).unwrap();
    let mut client = Client::new(device);
    let made = client.create(1, b"temp", 0o600, 0).unwrap().node;
    client.write(made, 0, b"keep me").unwrap();
    let old = client.walk("base/5/100").unwrap();
    let before = client.read(old.node, 8192, 8192).unwrap();
    let dir = client.walk("base/5").unwrap().node;
    client.unlink(1, b"temp").unwrap();
    client.unlink(dir, b"100").unwrap();
    client.device.flush_all().unwrap();
    let saved = client.device.save();
    drop(client);
    let device = FsDevice::restore(&layer, &template, FsOptions::new(HASH), &saved).unwrap();
    let mut client = Client::new(device);
    assert_eq!(client.read(made, 0, 100).unwrap(), b"keep me");
    assert_eq!(client.read(old.node, 8192, 8192).unwrap(), before);
    assert_eq!(client.write(old.node, 8192, b"changed"), Ok(7));
    assert_eq!(client.read(old.node, 8192, 7).unwrap(), b"changed");
    assert_eq!(client.getattr(made).unwrap().links, 0);
    client.forget(made);
    client.forget(old.node);
    assert_eq!(client.read(made, 0, 100), Err(libc::ENOENT));
    client.syncfs().unwrap();
    assert_eq!(std::fs::read_dir(layer.join("files")).unwrap().count(), 0);
    drop(temp);
}
