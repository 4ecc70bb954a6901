//! Tests of the device by its messages.

mod client;
mod hostile;
mod limits;
mod model;
mod share;

use std::path::{Path, PathBuf};

/// Rounds of a random test: `CASES=1000 cargo test …` for a long night.
pub(crate) fn cases(usual: u64) -> u64 {
    std::env::var("CASES").ok().and_then(|s| s.parse().ok()).unwrap_or(usual)
}

/// xorshift64*, with its seed in the test's output: a failure is run again by `SEED=… cargo test …`.
pub(crate) struct Random(u64);

impl Random {
    pub fn new(case: u64) -> Random {
        let seed = std::env::var("SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(|| {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
            now.as_nanos() as u64 ^ case << 48
        });
        println!("SEED={seed}");
        Random(seed | 1)
    }
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
    pub fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 16) % n
    }
    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
    pub fn pick<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.below(list.len() as u64) as usize]
    }
    pub fn bytes(&mut self, n: usize) -> Vec<u8> {
        (0..n).map(|_| (self.next() >> 24) as u8 | 1).collect()
    }
}

/// A template, a layer folder, and a plain copy of the template.
pub(crate) struct Folders {
    pub temp: tempfile::TempDir,
    pub template: PathBuf,
    pub layer: PathBuf,
    pub copy: PathBuf,
}

pub(crate) const HASH: &str = "0123456789abcdef";

pub(crate) fn folders() -> Folders {
    let temp = tempfile::tempdir().unwrap();
    let [template, layer, copy] = ["template", "layer", "copy"].map(|n| temp.path().join(n));
    std::fs::create_dir(&layer).unwrap();
    for base in [&template, &copy] {
        for dir in ["", "base", "base/5", "base/5/empty", "global", "pg_wal"] {
            std::fs::create_dir(base.join(dir)).unwrap();
        }
        let mut random = Random(77);
        for (name, len) in [
            ("base/5/100", 5 * 8192),
            ("base/5/101", 100_000),
            ("base/5/100_fsm", 3 * 8192),
            ("base/5/PG_VERSION", 3),
            ("global/1260", 8192),
            ("global/pg_control", 8192),
            ("PG_VERSION", 3),
        ] {
            std::fs::write(base.join(name), random.bytes(len)).unwrap();
        }
        let mut wal = random.bytes(10_000);
        wal.resize(65_536, 0);
        std::fs::write(base.join("pg_wal/0001"), wal).unwrap();
        std::os::unix::fs::symlink("nowhere/at/all", base.join("link")).unwrap();
    }
    Folders { template, layer, copy, temp }
}

/// All of a folder: path → kind and content.
pub(crate) fn tree(path: &Path) -> std::collections::BTreeMap<PathBuf, (char, Vec<u8>)> {
    let mut all = std::collections::BTreeMap::new();
    let mut todo = vec![path.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(&dir).unwrap() {
            let entry = entry.unwrap();
            let kind = entry.file_type().unwrap();
            let name = entry.path().strip_prefix(path).unwrap().to_owned();
            let what = if kind.is_dir() {
                todo.push(entry.path());
                ('d', Vec::new())
            } else if kind.is_symlink() {
                use std::os::unix::ffi::OsStrExt;
                ('l', std::fs::read_link(entry.path()).unwrap().as_os_str().as_bytes().to_vec())
            } else {
                ('f', std::fs::read(entry.path()).unwrap())
            };
            all.insert(name, what);
        }
    }
    all
}

/// Fails with the first path that differs, not with two dumps.
pub(crate) fn assert_same_tree(a: &Path, b: &Path) {
    let (a, b) = (tree(a), tree(b));
    let names = |t: &std::collections::BTreeMap<PathBuf, (char, Vec<u8>)>| t.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&a), names(&b));
    for (path, what) in &a {
        let other = &b[path];
        assert_eq!((what.0, what.1.len()), (other.0, other.1.len()), "{}", path.display());
        let differs = what.1.iter().zip(&other.1).position(|(x, y)| x != y);
        assert_eq!(differs, None, "first different byte of {}", path.display());
    }
}
