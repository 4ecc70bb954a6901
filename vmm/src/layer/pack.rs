//! All of a layer's files as one run of bytes, and back: what a packed database's layer is made of (`docs/packed.md`).
//!
//! ```text
//! count | number, length, runs of data … of each file | their bytes, one after the other
//! ```
//! Holes stay holes. The journal is not part of it: it stays where it is.

use super::LayerError;
use super::encoding::{Reader, Writer};
use super::host::{Host, HostFile};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// A layer that nobody else has, without being opened.
pub struct Held {
    host: Host,
    what: String,
}

/// Takes the layer's lock.
pub fn hold(layer: &Path) -> Result<Held, LayerError> {
    let what = format!("the layer {}", layer.display());
    let host = Host::open(layer, true).map_err(LayerError::io(format!("cannot open {what}")))?;
    Ok(Held { host: host.ok_or_else(|| LayerError::LayerLocked(layer.to_owned()))?, what })
}

/// Makes all files of a layer and their names durable, whoever has its lock.
pub fn sync(layer: &Path) -> io::Result<()> {
    let host = Host::open(layer, false)?.ok_or(io::ErrorKind::WouldBlock)?;
    for (id, _) in host.list()? {
        host.sync(&host.open_file(id, false)?)?;
    }
    host.sync_files()?;
    host.sync_folder()
}

/// A file's data, by offset and length; the rest of it are holes.
struct Runs {
    id: u64,
    len: u64,
    runs: Vec<(u64, u64)>,
}

impl Held {
    fn failed(&self, what: &str) -> impl Fn(io::Error) -> LayerError + use<> {
        let what = format!("cannot {what} {}", self.what);
        move |source| LayerError::Io { what: what.clone(), source }
    }

    /// Length and checksum of its journal.
    pub fn journal(&self) -> Result<(u64, u32), LayerError> {
        let read = || -> io::Result<(u64, u32)> {
            let journal = self.host.open_journal()?.ok_or(io::ErrorKind::NotFound)?;
            let mut bytes = vec![0; journal.file.metadata()?.len() as usize];
            journal.file.read_exact_at(&mut bytes, 0)?;
            Ok((bytes.len() as u64, crc32c::crc32c(&bytes)))
        };
        read().map_err(self.failed("read the journal of"))
    }

    /// Whether there is no file.
    pub fn is_bare(&self) -> Result<bool, LayerError> {
        Ok(self.host.list().map_err(self.failed("list"))?.is_empty())
    }

    /// All files, unless their data is more than `most` bytes.
    pub fn gather(&self, most: u64) -> Result<Option<Vec<u8>>, LayerError> {
        self.read_all(most).map_err(self.failed("read"))
    }

    fn read_all(&self, most: u64) -> io::Result<Option<Vec<u8>>> {
        let mut found = Vec::new();
        let mut numbers: Vec<u64> = self.host.list()?.into_iter().map(|(id, _)| id).collect();
        numbers.sort_unstable();
        let mut sum = 0u64;
        for id in numbers {
            let file = self.host.open_file(id, false)?;
            let runs = Runs { id, len: file.file.metadata()?.len(), runs: data_runs(&file)? };
            sum = runs.runs.iter().fold(sum, |sum, (_, len)| sum.saturating_add(*len));
            if sum > most {
                return Ok(None);
            }
            found.push(runs);
        }
        let mut w = Writer::default();
        w.u32(found.len() as u32);
        for Runs { id, len, runs } in &found {
            w.u64(*id);
            w.u64(*len);
            w.u32(runs.len() as u32);
            for (offset, len) in runs {
                w.u64(*offset);
                w.u64(*len);
            }
        }
        let mut bytes = w.bytes;
        for Runs { id, runs, .. } in &found {
            // Opened again: a database may have more files than a process may have open.
            let file = self.host.open_file(*id, false)?;
            for (offset, len) in runs {
                let at = bytes.len();
                bytes.resize(at + *len as usize, 0);
                file.file.read_exact_at(&mut bytes[at..], *offset)?;
            }
        }
        Ok(Some(bytes))
    }

    /// Removes all files.
    pub fn clear(&mut self) -> Result<(), LayerError> {
        let failed = self.failed("clear");
        let numbers = self.host.list().map_err(&failed)?;
        numbers.into_iter().try_for_each(|(id, _)| self.host.remove_file(id)).map_err(&failed)?;
        self.host.remove_files().map_err(failed)
    }

    /// Writes what [`Held::gather`] gave to a layer without files. Nothing of it is durable.
    pub fn scatter(&mut self, content: &[u8]) -> Result<(), LayerError> {
        let (files, mut bytes) = parse(content).ok_or_else(|| LayerError::Damaged("what it was packed to".into()))?;
        let failed = self.failed("write the files of");
        self.host.make_files().map_err(&failed)?;
        for Runs { id, len, runs } in files {
            let file = self.host.open_file(id, true).map_err(&failed)?;
            for (offset, len) in runs {
                let (run, rest) = bytes.split_at(len as usize);
                self.host.write_at(&file, run, offset).map_err(&failed)?;
                bytes = rest;
            }
            self.host.set_len(&file, len).map_err(&failed)?;
        }
        Ok(())
    }
}

/// Where a file has data, as the host says.
fn data_runs(file: &HostFile) -> io::Result<Vec<(u64, u64)>> {
    let seek = |from: u64, whence| -> io::Result<Option<u64>> {
        // SAFETY: moves a position that nothing else uses.
        let at = unsafe { libc::lseek(file.file.as_raw_fd(), from as i64, whence) };
        match at {
            0.. => Ok(Some(at as u64)),
            _ => match io::Error::last_os_error() {
                error if error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
                error => Err(error),
            },
        }
    };
    let (mut runs, mut at) = (Vec::new(), 0);
    while let Some(start) = seek(at, libc::SEEK_DATA)? {
        let end = seek(start, libc::SEEK_HOLE)?.ok_or(io::ErrorKind::UnexpectedEof)?;
        runs.push((start, end - start));
        at = end;
    }
    Ok(runs)
}

/// The files, and their bytes, which are as many as the runs say. Nothing of it is trusted.
fn parse(content: &[u8]) -> Option<(Vec<Runs>, &[u8])> {
    let mut r = Reader::new(content);
    let (mut files, mut next, mut sum) = (Vec::new(), 0, 0u64);
    for _ in 0..r.u32().ok()? {
        let (id, len) = (r.u64().ok()?, r.u64().ok()?);
        let (mut runs, mut end) = (Vec::new(), 0);
        for _ in 0..r.u32().ok()? {
            let (offset, run) = (r.u64().ok()?, r.u64().ok()?);
            if offset < end || run == 0 || offset.checked_add(run)? > len {
                return None;
            }
            end = offset + run;
            sum = sum.checked_add(run)?;
            runs.push((offset, run));
        }
        if id < next {
            return None;
        }
        next = id.checked_add(1)?;
        files.push(Runs { id, len, runs });
    }
    let bytes = r.rest();
    (bytes.len() as u64 == sum).then_some((files, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn files_come_back_with_their_holes() {
        let dir = tempfile::tempdir().unwrap();
        let layer = dir.path();
        fs::create_dir(layer.join("files")).unwrap();
        fs::write(layer.join("files/a"), b"short").unwrap();
        fs::write(layer.join("files/10"), b"").unwrap();
        let sparse = fs::File::create(layer.join("files/2f")).unwrap();
        sparse.write_all_at(&[7; 9000], 1 << 20).unwrap();
        sparse.set_len(5 << 20).unwrap();
        sparse.sync_all().unwrap();
        let read = || ["a", "10", "2f"].map(|name| fs::read(layer.join("files").join(name)).unwrap());
        let before = read();

        let mut held = hold(layer).unwrap();
        assert!(matches!(hold(layer), Err(LayerError::LayerLocked(_))));
        assert!(held.gather(1000).unwrap().is_none(), "too much");
        let content = held.gather(1 << 20).unwrap().unwrap();
        assert!(content.len() < 20 << 10, "{} bytes", content.len());
        held.clear().unwrap();
        assert!(!layer.join("files").exists() && held.is_bare().unwrap());
        held.scatter(&content).unwrap();
        sync(layer).unwrap();
        assert_eq!(read(), before);
        assert!(fs::metadata(layer.join("files/2f")).unwrap().blocks() * 512 < 64 << 10);
        assert_eq!(held.gather(1 << 20).unwrap().unwrap(), content);
    }

    #[test]
    fn wild_bytes_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("files")).unwrap();
        fs::write(dir.path().join("files/a"), b"short").unwrap();
        let mut held = hold(dir.path()).unwrap();
        let content = held.gather(1 << 20).unwrap().unwrap();
        held.clear().unwrap();
        for cut in 0..content.len() {
            assert!(held.scatter(&content[..cut]).is_err(), "cut at {cut}");
        }
        assert!(held.scatter(&[0xff; 64]).is_err());
        assert!(held.is_bare().unwrap());
    }
}
