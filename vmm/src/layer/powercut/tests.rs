//! What is checked of the data layer under power cuts, full disks and failing ones.

use super::{Disk, Event, FAULT, RECORDER, Recorder, change};
use crate::fs::tests::{Folders, HASH, Random, folders};
use crate::layer::object::ROOT;
use crate::layer::{Errno, GuestBytes, Kind, Layer, LayerOptions, Room};
use std::collections::BTreeMap;
use std::path::PathBuf;
use vm_memory::VolatileSlice;

/// A file as the test knows it.
#[derive(Clone, Default)]
struct Content {
    now: Vec<u8>,
    durable: Vec<u8>,
    /// What it was after each step since it was flushed.
    since: Vec<Vec<u8>>,
    /// Where writes since, or whole 4 KiB of them, ended.
    ends: Vec<usize>,
}

impl Content {
    fn step(&mut self) {
        self.since.push(self.now.clone());
    }
    fn flushed(&mut self) {
        self.durable = self.now.clone();
        self.since.clear();
        self.ends.clear();
    }
    /// Whether a crash may leave these bytes.
    fn allows(&self, found: &[u8]) -> Result<(), String> {
        let sizes = || std::iter::once(&self.durable).chain(&self.since);
        if !sizes().any(|c| c.len() == found.len()) && !self.ends.contains(&found.len()) {
            return Err(format!("{} bytes, flushed {}", found.len(), self.durable.len()));
        }
        let shortest = sizes().map(Vec::len).min().unwrap_or(0);
        for (i, &byte) in found.iter().enumerate() {
            let written = sizes().any(|c| c.get(i) == Some(&byte));
            let grown = byte == 0 && i >= shortest;
            if !written && !grown {
                return Err(format!("byte {i} is {byte}, flushed {:?}", self.durable.get(i)));
            }
        }
        Ok(())
    }
}

#[derive(Clone, Debug, PartialEq)]
enum Entry {
    Dir,
    File(usize),
    Link(Vec<u8>),
}

type Tree = BTreeMap<String, Entry>;

struct Player {
    layer: Layer,
    tree: Tree,
    files: Vec<Content>,
    /// The tree after each step since the last flush, the flushed one first.
    trees: Vec<Tree>,
    /// Nodes looked up, to be forgotten.
    known: Vec<u64>,
    /// Layer, template, and a layer that nobody needs.
    folders: (PathBuf, PathBuf, PathBuf),
}

fn full(dir: &str, name: &str) -> String {
    if dir.is_empty() { name.into() } else { format!("{dir}/{name}") }
}

impl Player {
    fn walk(&mut self, path: &str) -> Result<u64, Errno> {
        let mut at = ROOT;
        for name in path.split('/').filter(|n| !n.is_empty()) {
            at = self.layer.lookup(at, name.as_bytes())?;
            self.known.push(at);
        }
        Ok(at)
    }

    fn load(layer: Layer, folders: &Folders) -> Player {
        let spare = folders.temp.path().join("spare");
        std::fs::create_dir_all(&spare).unwrap();
        let folders = (folders.layer.clone(), folders.template.clone(), spare);
        let mut player = Player { layer, tree: Tree::new(), files: Vec::new(), trees: Vec::new(), known: Vec::new(), folders };
        let (tree, files) = player.read_all();
        player.tree = tree.clone();
        player.trees = vec![tree];
        player.files =
            files.into_iter().map(|now| Content { durable: now.clone(), now, ..Content::default() }).collect();
        player
    }

    /// The merged tree, each node's bytes once.
    fn read_all(&mut self) -> (Tree, Vec<Vec<u8>>) {
        let (mut tree, mut files, mut seen) = (Tree::new(), Vec::new(), BTreeMap::new());
        let mut todo = vec![String::new()];
        while let Some(dir) = todo.pop() {
            let node = self.walk(&dir).unwrap();
            for entry in self.layer.list(node, 0, usize::MAX).unwrap() {
                let path = full(&dir, std::str::from_utf8(&entry.name).unwrap());
                let id = self.walk(&path).unwrap();
                let what = match entry.kind {
                    Kind::Dir => {
                        todo.push(path.clone());
                        Entry::Dir
                    }
                    Kind::Symlink => Entry::Link(self.layer.read_link(id).unwrap().to_vec()),
                    Kind::File => Entry::File(*seen.entry(id).or_insert_with(|| {
                        let mut bytes = vec![0; self.layer.attributes(id).unwrap().size as usize];
                        assert_eq!(self.layer.read_host(id, 0, &mut bytes), Ok(bytes.len()));
                        files.push(bytes);
                        files.len() - 1
                    })),
                };
                tree.insert(path, what);
            }
        }
        (tree, files)
    }

    fn pick(&self, random: &mut Random, of: impl Fn(&Entry) -> bool) -> Option<String> {
        let all: Vec<&String> = self.tree.iter().filter(|(_, e)| of(e)).map(|(p, _)| p).collect();
        (!all.is_empty()).then(|| (*random.pick(&all)).clone())
    }

    fn dir(&self, random: &mut Random) -> String {
        self.pick(random, |e| *e == Entry::Dir).filter(|_| random.chance(80)).unwrap_or_default()
    }

    fn all_names_flushed(&mut self) {
        self.trees.clear();
    }

    /// One random step, in the layer and in what is known of it.
    fn step(&mut self, random: &mut Random) {
        let name = *random.pick(&["100", "101", "a", "b", "c", "pg_control", "0001", "0002"]);
        if random.chance(3) {
            // The guest sleeps and wakes within one life of the host, with nothing flushed.
            let saved = self.layer.save();
            let recorder = self.layer.host.recorder.clone();
            let options = LayerOptions::new(HASH);
            let (layer, template, spare) = self.folders.clone();
            // Another one takes the old one's place meanwhile, so that it lets go of the lock.
            self.layer = Layer::open(&spare, &template, options.clone()).unwrap();
            RECORDER.set(recorder);
            self.layer = Layer::restore(&layer, &template, options, &saved).unwrap();
            RECORDER.set(None);
        }
        match random.below(20) {
            0..9 => {
                let Some(path) = self.pick(random, |e| matches!(e, Entry::File(_))) else { return };
                let Entry::File(file) = self.tree[&path] else { return };
                let id = self.walk(&path).unwrap();
                match random.below(12) {
                    0..5 => {
                        let (mut at, mut len) = (random.below(12) * 8192, (1 + random.below(3)) * 8192);
                        if random.chance(40) {
                            (at, len) = (random.below(90_000), 1 + random.below(20_000));
                        }
                        let mut bytes = random.bytes(len as usize);
                        let content = &mut self.files[file];
                        change(&mut content.now, &Event::Write { name: path, offset: at, bytes: bytes.clone() });
                        content.ends.push((at + len) as usize);
                        content.ends.extend((at / 4096 + 1..=(at + len) / 4096).map(|page| page as usize * 4096));
                        content.step();
                        let slices = [VolatileSlice::from(&mut bytes[..])];
                        assert_eq!(self.layer.write(id, at, GuestBytes::new(&slices)), Ok(len as usize));
                    }
                    5..7 => {
                        let size = random.below(12) * 8192 + random.below(2) * random.below(8192);
                        let content = &mut self.files[file];
                        content.now.resize(size as usize, 0);
                        content.step();
                        self.layer.set_size(id, size).unwrap();
                    }
                    7 if random.chance(50) => {
                        // Content and length stay, whether it is granted or not.
                        let (at, len) = (random.below(12) * 8192, (1 + random.below(3)) * 8192);
                        let _ = self.layer.allocate(id, at, len, Room::Own);
                    }
                    7 => {
                        let end = 1 + random.below(90_000);
                        let content = &mut self.files[file];
                        let len = content.now.len().max(end as usize);
                        content.now.resize(len, 0);
                        content.ends.push(end as usize);
                        content.step();
                        self.layer.allocate(id, 0, end, Room::Grow).unwrap();
                    }
                    _ => {
                        self.layer.sync(id).unwrap();
                        self.files[file].flushed();
                        self.all_names_flushed();
                    }
                }
            }
            9..11 => {
                let dir = self.dir(random);
                let path = full(&dir, name);
                let node = self.walk(&dir).unwrap();
                let made = self.layer.create(node, name.as_bytes(), Kind::File, 0o600, b"");
                assert_eq!(made.is_ok(), !self.tree.contains_key(&path));
                if let Ok(id) = made {
                    self.known.push(id);
                    self.tree.insert(path, Entry::File(self.files.len()));
                    self.files.push(Content::default());
                }
            }
            11 => {
                let dir = self.dir(random);
                let path = full(&dir, name);
                let node = self.walk(&dir).unwrap();
                let kind = if random.chance(70) { Kind::Dir } else { Kind::Symlink };
                if let Ok(id) = self.layer.create(node, name.as_bytes(), kind, 0o700, b"to") {
                    self.known.push(id);
                    self.tree.insert(path, if kind == Kind::Dir { Entry::Dir } else { Entry::Link(b"to".to_vec()) });
                }
            }
            12..14 => {
                let Some(path) = self.pick(random, |_| true) else { return };
                let (dir, name) = path.rsplit_once('/').unwrap_or(("", &path));
                let node = self.walk(dir).unwrap();
                let is_dir = self.tree[&path] == Entry::Dir;
                if self.layer.unlink(node, name.as_bytes(), is_dir).is_ok() {
                    self.tree.remove(&path);
                }
            }
            14..17 => {
                let Some(path) = self.pick(random, |_| true) else { return };
                let (dir, old) = path.rsplit_once('/').unwrap_or(("", &path));
                let to_dir = self.dir(random);
                let (from, to) = (self.walk(dir).unwrap(), self.walk(&to_dir).unwrap());
                let target = full(&to_dir, name);
                let same = self.tree.get(&target).is_some_and(|e| matches!(e, Entry::File(_)) && *e == self.tree[&path]);
                if self.layer.rename(from, old.as_bytes(), to, name.as_bytes(), false).is_ok() && !same && path != target {
                    let moved = self.tree.remove(&path).unwrap();
                    self.tree.insert(target.clone(), moved);
                    let below: Vec<String> =
                        self.tree.keys().filter(|p| p.starts_with(&format!("{path}/"))).cloned().collect();
                    for old in below {
                        let entry = self.tree.remove(&old).unwrap();
                        self.tree.insert(format!("{target}{}", &old[path.len()..]), entry);
                    }
                }
            }
            17 => {
                let Some(path) = self.pick(random, |e| matches!(e, Entry::File(_))) else { return };
                let dir = self.dir(random);
                let (id, node) = (self.walk(&path).unwrap(), self.walk(&dir).unwrap());
                if self.layer.link(id, node, name.as_bytes()).is_ok() {
                    self.known.push(id);
                    let entry = self.tree[&path].clone();
                    self.tree.insert(full(&dir, name), entry);
                }
            }
            18 => {
                self.layer.sync_names().unwrap();
                self.all_names_flushed();
            }
            _ => {
                self.layer.sync_all().unwrap();
                self.files.iter_mut().for_each(Content::flushed);
                self.all_names_flushed();
            }
        }
        self.trees.push(self.tree.clone());
        // Most are forgotten, so that what has no name goes.
        if random.chance(80) {
            for id in self.known.drain(..) {
                self.layer.forget(id, 1);
            }
        }
    }
}

fn open(folders: &Folders) -> (Layer, Recorder) {
    let recorder = Recorder::default();
    RECORDER.set(Some(recorder.clone()));
    let layer = Layer::open(&folders.layer, &folders.template, LayerOptions::new(HASH)).unwrap();
    RECORDER.set(None);
    (layer, recorder)
}

#[test]
fn what_was_flushed_is_there_after_a_power_cut() {
    for case in 0..crate::fs::tests::cases(12) {
        let folders = folders();
        let mut random = Random::new(case);
        for _round in 0..6 {
            let mut disk = Disk::of(&folders.layer);
            let (layer, recorder) = open(&folders);
            let mut player = Player::load(layer, &folders);
            for _ in 0..1 + random.below(60) {
                player.step(&mut random);
            }
            // The power goes at some moment of one more step: what that step changes may be there or not.
            let before = (player.trees.clone(), player.files.clone(), recorder.len());
            player.step(&mut random);
            let at = before.2 + random.below((recorder.len() - before.2) as u64 + 1) as usize;
            let (mut trees, mut files) = (player.trees.clone(), player.files.clone());
            if at < recorder.len() {
                trees = before.0;
                trees.push(player.tree.clone());
                for (file, was) in files.iter_mut().zip(&before.1) {
                    let mut both = was.clone();
                    both.since.push(file.now.clone());
                    both.ends.extend(&file.ends);
                    *file = both;
                }
            }
            drop(player);
            for event in &recorder.0.lock().unwrap()[..at] {
                disk.play(event);
            }
            disk.cut(&mut random, &[0, 20, 50, 80, 100], &folders.layer);

            let mut after = Player::load(open(&folders).0, &folders);
            let (found, bytes) = after.read_all();
            // Which of the states since the last flush is it?
            let matches = |known: &&Tree| {
                known.len() == found.len()
                    && known.iter().zip(&found).all(|((p, a), (q, b))| {
                        p == q && (a == b || matches!((a, b), (Entry::File(_), Entry::File(_))))
                    })
            };
            let candidates: Vec<&Tree> = trees.iter().filter(matches).collect();
            assert!(!candidates.is_empty(), "no state since the last flush has these names: {:?}", found.keys());
            let explain = |known: &Tree| {
                for (path, entry) in known {
                    if let (Entry::File(was), Entry::File(is)) = (entry, &found[path]) {
                        files[*was].allows(&bytes[*is]).map_err(|e| format!("{path}: {e}"))?;
                    }
                }
                Ok(())
            };
            let verdicts: Vec<Result<(), String>> = candidates.into_iter().map(explain).collect();
            assert!(verdicts.iter().any(Result::is_ok), "{verdicts:?}");
        }
    }
}

/// A layer with block 1 of `base/5/100` written and flushed, and the file's node.
fn with_one_block(folders: &Folders) -> (Player, u64) {
    let mut player = Player::load(open(folders).0, folders);
    let id = player.walk("base/5/100").unwrap();
    write(&mut player.layer, id, 8192, 1).unwrap();
    player.layer.sync(id).unwrap();
    (player, id)
}

fn write(layer: &mut Layer, id: u64, at: u64, byte: u8) -> Result<usize, Errno> {
    let mut bytes = [byte; 8192];
    layer.write(id, at, GuestBytes::new(&[VolatileSlice::from(&mut bytes[..])]))
}

fn content(layer: &mut Layer, id: u64) -> Vec<u8> {
    let mut bytes = vec![0; layer.attributes(id).unwrap().size as usize];
    assert_eq!(layer.read_host(id, 0, &mut bytes), Ok(bytes.len()));
    bytes
}

#[test]
fn a_cut_file_that_grows_again_never_shows_the_template() {
    let folders = folders();
    drop(with_one_block(&folders));
    let mut disk = Disk::of(&folders.layer);
    let (mut layer, recorder) = open(&folders);
    let base = layer.lookup(ROOT, b"base").unwrap();
    let five = layer.lookup(base, b"5").unwrap();
    let id = layer.lookup(five, b"100").unwrap();
    layer.set_size(id, 0).unwrap();
    layer.set_size(id, 4 * 8192).unwrap();
    write(&mut layer, id, 3 * 8192, 9).unwrap();
    drop(layer);
    recorder.0.lock().unwrap().iter().for_each(|event| disk.play(event));
    // The layer's files all arrive, whatever was flushed.
    disk.cut(&mut Random::new(0), &[100], &folders.layer);
    let mut after = Player::load(open(&folders).0, &folders);
    let id = after.walk("base/5/100").unwrap();
    let found = content(&mut after.layer, id);
    assert!(found[..found.len().min(3 * 8192)].iter().all(|&b| b == 0), "bytes from before the cut");
}

#[test]
fn a_full_host_disk_costs_the_flush_and_nothing_else() {
    let folders = folders();
    let (mut player, id) = with_one_block(&folders);
    let before = content(&mut player.layer, id);
    player.layer.create(ROOT, b"new", Kind::File, 0o600, b"").unwrap();
    for full in ["write journal", "write files/"] {
        FAULT.set(Some((full, libc::ENOSPC)));
        if full == "write journal" {
            assert_eq!(player.layer.sync(id), Err(Errno(libc::ENOSPC)));
            // Nor is a file cut whose cut can't be noted.
            assert_eq!(player.layer.set_size(id, 0), Err(Errno(libc::ENOSPC)));
        } else {
            assert_eq!(write(&mut player.layer, id, 0, 5), Err(Errno(libc::ENOSPC)));
        }
        FAULT.set(None);
        assert_eq!(content(&mut player.layer, id), before);
    }
    write(&mut player.layer, id, 0, 5).unwrap();
    player.layer.sync(id).unwrap();
    drop(player);
    let mut after = Player::load(open(&folders).0, &folders);
    let id = after.walk("base/5/100").unwrap();
    let found = content(&mut after.layer, id);
    assert!(found[..8192] == [5; 8192] && found[8192..] == before[8192..]);
    assert!(after.walk("new").is_ok());
}

#[test]
fn a_host_that_takes_half_a_block_is_believed_only_to_the_last_whole_one() {
    let folders = folders();
    let mut layer = open(&folders).0;
    let base = layer.lookup(ROOT, b"base").unwrap();
    let folder = layer.lookup(base, b"5").unwrap();
    let id = layer.lookup(folder, b"100").unwrap();
    let mut expected = content(&mut layer, id);
    let mut write = |layer: &mut Layer, at: usize, len: usize, byte: u8, short: Option<i32>| {
        let mut bytes = vec![byte; len];
        FAULT.set(short.map(|bytes| ("short write", bytes)));
        let taken = layer.write(id, at as u64, GuestBytes::new(&[VolatileSlice::from(&mut bytes[..])]));
        FAULT.set(None);
        if let Ok(taken) = taken {
            expected[at..at + taken].fill(byte);
        }
        assert!(content(layer, id) == expected, "at {at}, {len} bytes, {short:?} of them: {taken:?}");
        taken
    };
    // Nothing of the first block: no room.
    assert_eq!(write(&mut layer, 0, 3 * 8192, 1, Some(100)), Err(Errno(libc::ENOSPC)));
    // One and a half; the rest follows in pieces, as the guest's kernel sends it.
    assert_eq!(write(&mut layer, 0, 3 * 8192, 2, Some(12_000)), Ok(8192));
    assert_eq!(write(&mut layer, 8192, 2 * 8192, 3, Some(8192)), Ok(8192));
    // Blocks that are here already are taken to the byte, and so are those that were copied up for their first part.
    assert_eq!(write(&mut layer, 0, 2 * 8192, 4, Some(9000)), Ok(9000));
    assert_eq!(write(&mut layer, 3 * 8192 + 100, 8192, 5, Some(50)), Ok(50));
    assert_eq!(write(&mut layer, 3 * 8192 + 150, 50, 6, None), Ok(50));
    // The last block was copied up for the write that did not reach it.
    assert_eq!(write(&mut layer, 2 * 8192, 2 * 8192 + 10, 7, Some(4000)), Err(Errno(libc::ENOSPC)));
    assert_eq!(write(&mut layer, 2 * 8192, 2 * 8192 + 10, 8, None), Ok(2 * 8192 + 10));
    layer.sync(id).unwrap();
    drop(layer);
    let mut after = Player::load(open(&folders).0, &folders);
    let id = after.walk("base/5/100").unwrap();
    assert!(content(&mut after.layer, id) == expected, "after a cold start");
}

#[test]
fn nor_after_many_that_the_host_could_not_begin_to_write() {
    let folders = folders();
    let (mut player, id) = with_one_block(&folders);
    let other = player.layer.create(ROOT, b"other", Kind::File, 0o600, b"").unwrap();
    for id in [id, other] {
        write(&mut player.layer, id, 0, 5).unwrap();
    }
    FAULT.set(Some(("write-back files/", libc::EIO)));
    assert_eq!(player.layer.sync_all(), Err(Errno(libc::EIO)));
    FAULT.set(None);
    assert_eq!(player.layer.sync_all(), Err(Errno(libc::EIO)));
    assert_eq!(player.layer.sync(id), Err(Errno(libc::EIO)));
}

#[test]
fn after_a_flush_that_failed_nothing_is_called_flushed() {
    for broken in ["sync files/", "sync journal"] {
        let folders = folders();
        let (mut player, id) = with_one_block(&folders);
        write(&mut player.layer, id, 0, 5).unwrap();
        FAULT.set(Some((broken, libc::EIO)));
        assert_eq!(player.layer.sync(id), Err(Errno(libc::EIO)), "{broken}");
        FAULT.set(None);
        // The host might say that all is well now.
        assert_eq!(player.layer.sync(id), Err(Errno(libc::EIO)));
        assert_eq!(player.layer.sync_all(), Err(Errno(libc::EIO)));
        assert_eq!(write(&mut player.layer, id, 0, 6), Err(Errno(libc::EIO)));
        assert_eq!(player.layer.create(ROOT, b"new", Kind::File, 0o600, b""), Err(Errno(libc::EIO)));
        assert_eq!(content(&mut player.layer, id)[..8192], [5; 8192]);
        drop(player);
        let mut after = Player::load(open(&folders).0, &folders);
        let id = after.walk("base/5/100").unwrap();
        write(&mut after.layer, id, 0, 7).unwrap();
        assert_eq!(after.layer.sync(id), Ok(()));
    }
}
