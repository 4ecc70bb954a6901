//! Where things lie under `DORMOUSE_HOME` (`docs/interfaces.md`), and what the files of a database say of it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use dormouse_images::store::Store;
use dormouse_vmm::pack;
use dormouse_vmm::snapshot::format;

use super::machine::Rest;
use crate::identity::DatabaseId;

/// `DORMOUSE_HOME`.
#[derive(Clone, Debug)]
pub struct Home {
    root: PathBuf,
}

impl Home {
    /// `root` must be absolute: the VMM is given it.
    pub fn new(root: PathBuf) -> Home {
        Home { root }
    }

    /// Makes the folders that are always there, closed to others.
    pub fn create(&self) -> io::Result<()> {
        use std::os::unix::fs::DirBuilderExt;
        for folder in [self.root.clone(), self.databases(), self.run(), self.vmms(), self.log(), self.images(), self.root.join("templates")] {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&folder)
                .map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", folder.display())))?;
        }
        Ok(())
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn admin_key(&self) -> PathBuf {
        self.root.join("admin.key")
    }

    /// The secret that signs console sessions.
    pub fn session_key(&self) -> PathBuf {
        self.root.join("session.key")
    }

    pub fn metadata(&self) -> PathBuf {
        self.root.join("dormouse.db")
    }

    pub fn lock(&self) -> PathBuf {
        self.root.join("lock")
    }

    pub fn log(&self) -> PathBuf {
        self.root.join("log")
    }

    pub fn tls(&self) -> PathBuf {
        self.root.join("tls")
    }

    pub fn images(&self) -> PathBuf {
        self.root.join("images")
    }

    pub fn image(&self, image: &str) -> PathBuf {
        self.images().join(image)
    }

    pub fn databases(&self) -> PathBuf {
        self.root.join("databases")
    }

    pub fn database(&self, id: &DatabaseId) -> PathBuf {
        self.databases().join(id.as_str())
    }

    pub fn snapshot(&self, id: &DatabaseId) -> PathBuf {
        self.database(id).join("snapshot")
    }

    /// Instead of the snapshot and the layer's files, of one that is packed.
    pub fn packed(&self, id: &DatabaseId) -> PathBuf {
        self.database(id).join(pack::NAME)
    }

    /// Whether its next start goes on from where it was.
    pub fn has_memory(&self, id: &DatabaseId) -> bool {
        self.snapshot(id).exists() || self.packed(id).exists()
    }

    pub fn console_log(&self, id: &DatabaseId) -> PathBuf {
        self.database(id).join("console.log")
    }

    pub fn vmm_log(&self, id: &DatabaseId) -> PathBuf {
        self.database(id).join("vmm.log")
    }

    pub fn run(&self) -> PathBuf {
        self.root.join("run")
    }

    /// The sockets of each VMM, and what is noted of it (`record.rs`).
    pub fn vmms(&self) -> PathBuf {
        self.run().join("vmms")
    }

    /// What is noted of the VMM of this name.
    pub fn note_of(&self, vmm: &str) -> PathBuf {
        self.vmms().join(vmm)
    }

    /// Where it takes requests.
    pub fn control_socket(&self, vmm: &str) -> PathBuf {
        self.vmms().join(format!("{vmm}.ctl"))
    }

    /// Where it takes sessions.
    pub fn session_socket(&self, vmm: &str) -> PathBuf {
        self.vmms().join(format!("{vmm}.sock"))
    }

    /// Addresses and process id of the running server, for the command and for tests.
    pub fn server_file(&self) -> PathBuf {
        self.run().join("server.json")
    }

    /// The newest image of a major version of PostgreSQL: what its new databases are made from.
    pub fn current_image(&self, major: u32) -> Option<String> {
        let image = Store::new(&self.root).current(major)?;
        self.image(&image).join("image.json").is_file().then_some(image)
    }

    /// The newest of each.
    pub fn current_images(&self) -> Vec<(u32, String)> {
        let majors = Store::new(&self.root).currents().unwrap_or_default().into_keys();
        majors.filter_map(|major| Some((major, self.current_image(major)?))).collect()
    }

    /// How a database without a process rests, by its files: suspended if it has a snapshot or is packed, or if it was
    /// never written and its image has a golden snapshot for its size.
    pub fn rest(&self, id: &DatabaseId, image: &str, memory_mib: u64) -> Rest {
        let golden = self.image(image).join("golden").join(memory_mib.to_string()).join("state");
        if self.has_memory(id) || (self.layer_is_empty(id) && golden.exists()) {
            Rest::Suspended
        } else {
            Rest::Stopped
        }
    }

    /// Memory (MiB) of the guest whose snapshot the database has; none, or one that cannot be read: `None`.
    pub fn snapshot_memory_mib(&self, id: &DatabaseId) -> Option<u64> {
        use std::io::Read;
        if let Ok(mut packed) = fs::File::open(self.packed(id)) {
            let mut block = [0; pack::format::HEADER_LEN];
            packed.read_exact(&mut block).ok()?;
            return Some(pack::format::Header::decode(&block).ok()?.memory >> 20);
        }
        let mut block = [0; format::HEADER_LEN];
        fs::File::open(self.snapshot(id)).ok()?.read_exact(&mut block).ok()?;
        // A snapshot that is damaged is for the VMM to refuse; its memory is the plan's then.
        Some(format::Header::decode(&block).ok()?.memory >> 20)
    }

    /// Whether nothing was ever changed in its layer.
    pub(crate) fn layer_is_empty(&self, id: &DatabaseId) -> bool {
        // A layer that cannot be read is for the VMM to explain; a cold start is what it would come to.
        dormouse_vmm::layer::is_empty(&self.database(id).join("layer")).unwrap_or(false)
    }

    /// Whether something was changed in its layer, as far as that can be told.
    pub(crate) fn layer_has_data(&self, id: &DatabaseId) -> bool {
        dormouse_vmm::layer::is_empty(&self.database(id).join("layer")).is_ok_and(|empty| !empty)
    }
}
