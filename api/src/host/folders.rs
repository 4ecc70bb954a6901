//! A database's folders, made by its first wake.
//!
//! Until then it is a row and nothing else. They are made before its VM is started, put on disk while that starts, and then
//! noted in the row. No client hears of the wake before all three are done, so nothing is acknowledged that could vanish with
//! its folder, and one whose row says that it has files and whose folder is gone (a disk not mounted, a restore half done)
//! has lost them: it is not woken, for it would come up empty.
//!
//! | the power goes | left |
//! |---|---|
//! | before the folders are on disk | a row that was never woken |
//! | before the row says so | folders without data that anybody was told of, which the next wake finds, and notes |

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::sync::Arc;

use tokio::task::JoinHandle;

use super::Inner;
use crate::crash;
use crate::identity::DatabaseId;

/// Folders on their way to the disk.
pub(crate) type Settling = JoinHandle<Result<(), Unsettled>>;

/// Why a wake may not go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unsettled {
    /// It was deleted after its row was read; what was made for it has to go.
    #[error("the database was deleted")]
    Deleted,
    #[error("{0}")]
    Failed(String),
}

impl Inner {
    /// An error where a database's row says that it has files, and they are not there.
    pub(crate) fn check_files(&self, id: &DatabaseId, has_files: bool) -> Result<(), String> {
        let layer = self.home.database(id).join("layer");
        if !has_files || layer.is_dir() {
            return Ok(());
        }
        let layer = layer.display();
        Err(format!("its files are gone: {layer} is not there. Put it back (is its disk mounted?), or delete the database"))
    }

    /// After the end of its VM: has it noted that there are data in its layer, if there are. After a clean end they are on
    /// disk. After another they are put there first: without them, after a power cut, the note would make an error of a
    /// database that has lost nothing which anybody was told of.
    pub(crate) fn note_written(self: &Arc<Self>, id: &DatabaseId, written: &mut bool, clean: bool) {
        if *written || !self.home.layer_has_data(id) {
            return;
        }
        if clean {
            *written = true;
            return self.journal.written(id);
        }
        let (host, id) = (self.clone(), id.clone());
        tokio::task::spawn_blocking(move || match flush(&host.home.database(&id).join("layer")) {
            Ok(()) => host.journal.written(&id),
            // At its next start or end.
            Err(error) => tracing::warn!(database = %id, %error, "that it has data is not noted: they cannot be put on disk"),
        });
    }

    /// Makes sure of a database's folders before it is woken. What is given has to be waited for before anyone hears of the
    /// wake; nothing is where the row says that they are there (`has_files`).
    pub(crate) fn settle_folders(self: &Arc<Self>, id: &DatabaseId, has_files: bool) -> Result<Option<Settling>, String> {
        self.check_files(id, has_files)?;
        if has_files {
            return Ok(None);
        }
        let folder = self.home.database(id);
        make(&folder).map_err(|e| format!("its folder cannot be made: {e}"))?;
        crash::point("folders-made");
        let (host, id) = (self.clone(), id.clone());
        Ok(Some(tokio::spawn(async move {
            let folders = [folder, host.home.databases()];
            let flush = move || folders.iter().try_for_each(|folder| File::open(folder)?.sync_all());
            let flushed = tokio::task::spawn_blocking(flush).await.map_err(io::Error::other).flatten();
            flushed.map_err(|e| Unsettled::Failed(format!("its folder cannot be put on disk: {e}")))?;
            crash::point("folders-flushed");
            match host.metadata.set_has_files(&id).await {
                Ok(true) => {
                    crash::point("folders-noted");
                    Ok(())
                }
                Ok(false) => Err(Unsettled::Deleted),
                // It has nothing to lose yet; with data that its row does not know of it could be taken for a new one.
                Err(error) => Err(Unsettled::Failed(format!("that it has files cannot be noted: {error}"))),
            }
        })))
    }
}

/// All of a file system, of which a layer is part. Once in the life of a database at most, and in few.
fn flush(folder: &Path) -> io::Result<()> {
    let folder = File::open(folder)?;
    // SAFETY: a descriptor that is open during the call.
    match unsafe { libc::syncfs(std::os::fd::AsRawFd::as_raw_fd(&folder)) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn make(folder: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder.join("layer"))
}
