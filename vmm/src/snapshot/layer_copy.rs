//! The golden guest's layer: what its boot changed in the data directory, which its memory counts on.
//!
//! Baking copies it beside the golden memory; a clone begins with a copy of it. It is small (the control file, what a
//! start of Postgres writes), and sparse. The journal goes last and by a rename, so a layer is either empty or whole, and
//! whole it is good for a cold start too.

use std::fs;
use std::io;
use std::path::Path;

/// Folder of the copy in a golden snapshot's folder.
pub const NAME: &str = "layer";

/// Copies a layer that nobody changes to `to`, an empty layer. Durable when it returns.
pub fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    crate::layer::copy(from, to).map_err(io::Error::other)
}
