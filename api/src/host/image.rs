//! Which image a database runs.
//!
//! A snapshot goes on only with the image it was taken on, so a sleeping database stays on that one, unless that was made
//! for a VMM of another version: then the snapshot is given up. Without one the next start is a cold one, and takes the newest image of the database's major version of Postgres. The layer keeps
//! the template that it was begun on: the row names it, so that it is not collected.
//!
//! The row is changed, durably, before anything runs on the new image; a crash on either side of that leaves a database
//! that starts cold on one image or on the other, and both are its own.

use std::fs;
use std::io;

use dormouse_images::Manifest;

use super::{EventKind, Host, Inner, RestartError};
use crate::identity::DatabaseId;
use crate::metadata::DatabaseRow;

impl Inner {
    /// The image that a database without a snapshot starts on; the row says so when this returns.
    pub(crate) async fn newest_image(&self, id: &DatabaseId, image: &str, pg_version: u32) -> Result<String, String> {
        let newest = match self.home.current_image(pg_version) {
            Some(newest) if newest != image => newest,
            _ => return Ok(image.to_string()),
        };
        let layer = self.home.database(id).join("layer");
        let template = match dormouse_vmm::layer::template_of(&layer) {
            Ok(template) => template,
            // For the VMM to explain, on the image that the layer knows.
            Err(error) => {
                tracing::warn!(database = %id, %error, "stays on its image");
                return Ok(image.to_string());
            }
        };
        // A full disk is no reason not to start: the old image is still there.
        if let Err(error) = self.metadata.set_image(id, &newest, template.as_deref()).await {
            tracing::warn!(database = %id, %error, "stays on its image");
            return Ok(image.to_string());
        }
        let version = Manifest::load(&self.home.image(&newest)).map(|m| m.postgres_version).unwrap_or_default();
        tracing::info!(database = %id, from = image, to = newest, "moved to another image");
        self.event(id, EventKind::ImageAdopted, Some(format!("from image {image} to {newest}, {version}")));
        Ok(newest)
    }

    /// Whether this build's VMM cannot go on with an image: it was made for another guest interface.
    pub(crate) fn outdated(&self, image: &str) -> bool {
        Manifest::load(&self.home.image(image)).is_ok_and(|manifest| manifest.abi != dormouse_abi::ABI_VERSION)
    }

    /// Removes the snapshot of a database without a process, durably; gives the image of the next start.
    pub(crate) async fn discard_snapshot(&self, id: &DatabaseId, image: &str, pg_version: u32) -> Result<String, String> {
        if self.home.packed(id).exists() {
            self.unpack(id, image, pg_version).await?;
        }
        let (snapshot, folder) = (self.home.snapshot(id), self.home.database(id));
        let removed = tokio::task::spawn_blocking(move || match fs::remove_file(&snapshot) {
            Ok(()) => fs::File::open(&folder)?.sync_all(),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(e),
        })
        .await;
        removed.map_err(io::Error::other).flatten().map_err(|e| format!("its snapshot cannot be removed: {e}"))?;
        self.newest_image(id, image, pg_version).await
    }
}

impl Host {
    /// Shuts a database down, if it is awake, and removes its snapshot, if it sleeps: its next start is a cold one, on the
    /// newest image. Clients' sessions end, and if that is not wished, a database that has some is left alone.
    pub async fn restart(&self, id: &DatabaseId, end_sessions: bool) -> Result<(), RestartError> {
        self.ask_restart(id, end_sessions).await?;
        self.inner.event(id, EventKind::Restarted, None);
        Ok(())
    }

    /// Moves a database to the newest image of its major version; `false` if it is on it already, or has to stay where it
    /// is (the server's log says why).
    pub async fn adopt(&self, row: &DatabaseRow, end_sessions: bool) -> Result<bool, RestartError> {
        match self.inner.home.current_image(row.pg_version) {
            Some(newest) if newest != row.image => {
                self.ask_restart(&row.id, end_sessions).await?;
                let after = self.inner.metadata.database(&row.id).await.map_err(|e| RestartError::Metadata(e.to_string()))?;
                Ok(after.is_some_and(|after| after.image != row.image))
            }
            _ => Ok(false),
        }
    }
}
