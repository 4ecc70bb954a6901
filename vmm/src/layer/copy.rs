//! Copying a layer, as a clone begins with one.

use super::error::LayerError;
use super::host::Host;
use super::journal::Journal;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// The unit in which zeros become holes.
const HOLE: usize = 4096;

/// Makes `to`, a folder with an empty layer or nothing, a copy of the layer `from`. It is durable when this returns; when
/// it is interrupted, `to` is still an empty layer, whose stray files go with its first change or the next copy.
///
/// Holes stay holes. Neither layer may be in use; the caller holds their locks if they are within others' reach.
pub fn copy(from: &Path, to: &Path) -> Result<(), LayerError> {
    let failed = |e| LayerError::io(format!("cannot copy the layer {}", from.display()))(e);
    let source = Host::open_to_read(from).map_err(failed)?;
    let mut target = Host::open(to, false).map_err(failed)?.ok_or_else(|| LayerError::LayerLocked(to.to_owned()))?;
    let template = Journal::template_of(&source)?;
    let template = template.ok_or_else(|| LayerError::Damaged("the layer to be copied has no journal".into()))?;
    // It stays an empty layer until its last step.
    let (mut empty, ops) = Journal::load(&target, &template, true)?;
    if !ops.is_empty() {
        return Err(LayerError::Damaged(format!("{} is not empty, nothing is copied to it", to.display())));
    }
    empty.prepare(&mut target).map_err(|e| failed(e.into()))?;
    let bytes = copy_files(&source, &target).map_err(failed)?;
    let staged = target.stage_journal(&bytes, true).map_err(failed)?;
    target.commit_journal(staged, true).map_err(failed)?;
    Ok(())
}

/// Copies all files, and gives the journal's bytes.
fn copy_files(source: &Host, target: &Host) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; 64 << 10];
    for (id, _) in source.list()? {
        let (from, to) = (source.open_file(id, false)?, target.open_file(id, true)?);
        let size = from.file.metadata()?.len();
        let mut at = 0;
        while at < size {
            let n = from.file.read_at(&mut buffer, at)?;
            if n == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            for (i, piece) in buffer[..n].chunks(HOLE).enumerate() {
                if piece.iter().any(|&b| b != 0) {
                    target.write_at(&to, piece, at + (i * HOLE) as u64)?;
                }
            }
            at += n as u64;
        }
        target.set_len(&to, size)?;
        target.sync(&to)?;
    }
    target.sync_files()?;
    let journal = source.open_journal()?.ok_or(io::ErrorKind::NotFound)?;
    let mut bytes = vec![0; journal.file.metadata()?.len() as usize];
    journal.file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}
