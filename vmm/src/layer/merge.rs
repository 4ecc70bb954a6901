//! Merging a layer and its template to a plain data directory.

use super::error::LayerError;
use super::host::Host;
use super::journal::Journal;
use super::object::ROOT;
use super::record::Kind;
use super::{Layer, LayerOptions};
use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

/// Bytes read at a time, and the unit in which zeros become holes.
const CHUNK: usize = 256 << 10;
const HOLE: usize = 4096;

/// What belongs to a running server and not to its data: a process id that names somebody else on this host, and its
/// command line.
const OF_THE_SERVER: [&[u8]; 2] = [b"postmaster.pid", b"postmaster.opts"];

/// What [`merge`] wrote.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Merged {
    pub files: u64,
    pub folders: u64,
    /// Sum of the files' lengths, in bytes.
    pub bytes: u64,
}

/// Writes the data directory that a guest sees to `out`, which is made and must not exist. A stock Postgres of the same
/// version opens it: what belongs to the guest's running server alone is left out. `template_hash` is the template's name; the layer is locked meanwhile, and not changed.
pub fn merge(layer: &Path, template: &Path, template_hash: &str, out: &Path) -> Result<Merged, LayerError> {
    let mut layer = Layer::open_to_read(layer, template, LayerOptions::new(template_hash))?;
    layer.merge_to(out)
}

/// More than the journal of a layer without a change has, bytes.
const MOST_UNCHANGED: u64 = 64 << 10;

/// Whether nothing was ever changed in a layer; one that is not there was not begun. It takes no lock.
pub fn is_empty(layer: &Path) -> Result<bool, LayerError> {
    if is_absent(layer) {
        return Ok(true);
    }
    let io = |e| LayerError::io(format!("cannot open the layer {}", layer.display()))(e);
    let Some(host) = Host::open(layer, false).map_err(io)? else {
        return Err(LayerError::LayerLocked(layer.to_owned()));
    };
    let Some(template) = Journal::template_of(&host)? else { return Ok(host.list().map_err(io)?.is_empty()) };
    // Without a change it is some hundred bytes. It is a tenant's VMM that wrote it, and who asks may be the server.
    if let Some(journal) = host.open_journal().map_err(io)?
        && journal.file.metadata().map_err(io)?.len() > MOST_UNCHANGED
    {
        return Ok(false);
    }
    let (journal, _) = Journal::load(&host, &template, false)?;
    Ok(journal.position().0 == 1)
}

/// The template that a layer lies over, by its content hash; `None` of one that was never opened or is not there. It takes
/// no lock.
pub fn template_of(layer: &Path) -> Result<Option<String>, LayerError> {
    if is_absent(layer) {
        return Ok(None);
    }
    let host = Host::open(layer, false).map_err(LayerError::io(format!("cannot open the layer {}", layer.display())))?;
    host.map_or(Ok(None), |host| Journal::template_of(&host))
}

fn is_absent(layer: &Path) -> bool {
    fs::symlink_metadata(layer).is_err_and(|e| e.kind() == io::ErrorKind::NotFound)
}

impl Layer {
    pub(super) fn merge_to(&mut self, out: &Path) -> Result<Merged, LayerError> {
        let mut merged = Merged::default();
        let mut todo: Vec<(u64, PathBuf)> = vec![(ROOT, out.to_owned())];
        while let Some((folder, path)) = todo.pop() {
            let failed = |e: io::Error| LayerError::io(format!("cannot write {}", path.display()))(e);
            let mode = self.object(folder).map_err(|e| failed(e.into()))?.mode;
            fs::DirBuilder::new().mode(0o700).create(&path).map_err(failed)?;
            fs::set_permissions(&path, Permissions::from_mode(mode)).map_err(failed)?;
            merged.folders += 1;
            let entries = self.list(folder, 0, usize::MAX).map_err(|e| failed(e.into()))?;
            for entry in entries {
                if folder == ROOT && OF_THE_SERVER.contains(&&*entry.name) {
                    continue;
                }
                let path = path.join(OsStr::from_bytes(&entry.name));
                let failed = |e: io::Error| LayerError::io(format!("cannot write {}", path.display()))(e);
                let id = self.child(folder, &entry.name).and_then(|id| id.ok_or(super::Errno(libc::EIO)));
                let id = id.map_err(|e| failed(e.into()))?;
                match entry.kind {
                    Kind::Dir => todo.push((id, path)),
                    Kind::Symlink => {
                        let target = self.read_link(id).map_err(|e| failed(e.into()))?;
                        symlink(OsStr::from_bytes(target), &path).map_err(failed)?;
                    }
                    Kind::File => {
                        merged.bytes += self.write_out(id, &path).map_err(failed)?;
                        merged.files += 1;
                    }
                }
            }
        }
        Ok(merged)
    }

    fn write_out(&mut self, id: u64, path: &Path) -> io::Result<u64> {
        let attributes = self.attributes(id)?;
        let out = File::options().write(true).create_new(true).open(path)?;
        let mut buffer = vec![0; CHUNK];
        let mut at = 0;
        while at < attributes.size {
            let next = self.skip_hole(id, at)?;
            if next > at {
                at = next;
                continue;
            }
            let n = self.read_host(id, at, &mut buffer)?;
            if n == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            for (i, piece) in buffer[..n].chunks(HOLE).enumerate() {
                if piece.iter().any(|&b| b != 0) {
                    out.write_all_at(piece, at + (i * HOLE) as u64)?;
                }
            }
            at += n as u64;
        }
        out.set_len(attributes.size)?;
        out.set_permissions(Permissions::from_mode(attributes.mode))?;
        Ok(attributes.size)
    }
}
