//! A database's folders, made by its first wake.
//!
//! Until then it is a row and nothing else. They are made before its VM is started and put on disk while that starts; no
//! client hears of the wake before, so nothing is acknowledged that could vanish with its folder. Then the row notes that
//! it has files, and from then on one whose folder is gone (a disk not mounted, a restore half done) is not woken: it
//! would come up empty.
//!
//! | the power goes | left |
//! |---|---|
//! | before the folders are on disk | a row that was never woken |
//! | before the row says so | folders that the next wake finds, and notes |

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::sync::Arc;

use tokio::task::JoinHandle;

use super::Inner;
use crate::identity::DatabaseId;

/// Folders on their way to the disk: the reason, if that failed.
pub(crate) type Settling = JoinHandle<Result<(), String>>;

impl Inner {
    /// Makes sure of a database's folders before it is woken. What is given has to be waited for before anyone hears of the
    /// wake; nothing is where the row says that they are there (`has_files`).
    pub(crate) fn settle_folders(self: &Arc<Self>, id: &DatabaseId, has_files: bool) -> Result<Option<Settling>, String> {
        let folder = self.home.database(id);
        if has_files {
            return match folder.join("layer").is_dir() {
                true => Ok(None),
                false => Err(format!(
                    "its files are gone: {} is not there. Put it back (is its disk mounted?), or delete the database",
                    folder.join("layer").display()
                )),
            };
        }
        let failed = |e: io::Error| format!("its folder cannot be made: {e}");
        make(&folder).map_err(failed)?;
        let (host, id) = (self.clone(), id.clone());
        Ok(Some(tokio::spawn(async move {
            let folders = [folder, host.home.databases()];
            let flush = move || folders.iter().try_for_each(|folder| File::open(folder)?.sync_all());
            tokio::task::spawn_blocking(flush).await.map_err(io::Error::other).flatten().map_err(failed)?;
            // A full disk is no reason not to start; only the guard is missing, until a wake can note it.
            if let Err(error) = host.metadata.set_has_files(&id).await {
                tracing::warn!(database = %id, %error, "that it has files is not noted");
            }
            Ok(())
        })))
    }
}

fn make(folder: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder.join("layer"))
}
