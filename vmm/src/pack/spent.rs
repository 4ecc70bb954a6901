//! The mark that a packed file has been used: it is gone, durably, after all it held is durable, and before a file changes.

use std::fs::File;
use std::io;
use std::path::Path;
use std::time::Instant;

use super::{NAME, SPENT};
use crate::crash;
use crate::layer;

/// Makes the unpacked layer of the database's folder durable, and the packed file go. When that was so.
pub fn spend(dir: &Path) -> io::Result<Instant> {
    layer::pack::sync(&dir.join("layer"))?;
    crash::point("unpack-synced");
    std::fs::rename(dir.join(NAME), dir.join(SPENT))?;
    // With it go the names that a packing cut short left: in one flush, so that none of them comes back without it.
    File::open(dir)?.sync_all()?;
    let landed = Instant::now();
    crash::point("unpack-spent");
    // Nothing depends on it any more: should this fail, the next one is renamed over it.
    if let Err(error) = std::fs::remove_file(dir.join(SPENT)) {
        tracing::warn!(%error, "cannot remove a packed file that is used up");
    }
    Ok(landed)
}
