//! Creating a database: a row, a folder, and nothing else.
//!
//! It is a clone of its image's golden snapshot that has not been woken, so it is made `suspended` (or `stopped`
//! if the image has no golden snapshot of its size), and its first use is an ordinary wake.

use std::fs;
use std::io;

use super::machine::Rest;
use super::{GUEST_ROLE, Host, State};
use crate::identity::{DatabaseId, TenantId};
use crate::metadata::{self, DatabaseRow, MetadataError, NewDatabase};
use crate::secret::{RandomError, new_password, scram_verifier};
use crate::settings::Plan;

/// What a create asks for; names and numbers have been checked.
#[derive(Clone, Debug)]
pub struct Create<'a> {
    pub tenant: &'a TenantId,
    pub name: &'a str,
    /// The plan's name.
    pub plan: &'a str,
    /// Major version of Postgres; the settings' if not given.
    pub pg_version: Option<u32>,
    pub cool_down_ms: Option<u64>,
}

/// A new database.
#[derive(Clone, Debug)]
pub struct Created {
    pub row: DatabaseRow,
    /// Kept nowhere.
    pub password: String,
}

/// Why a database was not made. Nothing of it is left.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    #[error("there is no plan of this name")]
    NoPlan,
    #[error("there is no image to make databases from: run `dormouse image build` (or `make up`) first")]
    NoImage,
    #[error("there is no image of PostgreSQL {asked}: there is {}. `dormouse image build` builds one", versions(.available))]
    NoVersion { asked: u32, available: Vec<u32> },
    #[error("a database of this name exists")]
    NameTaken,
    #[error("the plan allows {0} databases, and all are in use: delete one, or choose another plan")]
    PlanFull(u64),
    #[error("the disk under DORMOUSE_HOME is full: free some space, then try again")]
    DiskFull,
    #[error("the server is shutting down")]
    ShuttingDown,
    #[error("its folder cannot be made: {0}")]
    Folder(io::Error),
    #[error(transparent)]
    Random(#[from] RandomError),
    #[error(transparent)]
    Metadata(MetadataError),
}

fn versions(available: &[u32]) -> String {
    available.iter().map(u32::to_string).collect::<Vec<_>>().join(", ")
}

impl From<MetadataError> for CreateError {
    fn from(error: MetadataError) -> Self {
        match error {
            MetadataError::Full => CreateError::DiskFull,
            other => CreateError::Metadata(other),
        }
    }
}

impl Host {
    /// Makes a database and the password of its role.
    pub async fn create(&self, create: Create<'_>) -> Result<Created, CreateError> {
        let inner = &self.inner;
        if inner.closing.load(std::sync::atomic::Ordering::Acquire) {
            return Err(CreateError::ShuttingDown);
        }
        let plan: &Plan = inner.plans.get(create.plan).ok_or(CreateError::NoPlan)?;
        let pg_version = create.pg_version.unwrap_or(inner.pg_version);
        let images = inner.home.current_images();
        let image = match images.iter().find(|(version, _)| *version == pg_version) {
            Some((_, image)) => image.clone(),
            None if images.is_empty() => return Err(CreateError::NoImage),
            None => {
                let available = images.iter().map(|(version, _)| *version).collect();
                return Err(CreateError::NoVersion { asked: pg_version, available });
            }
        };
        let id = DatabaseId::random()?;
        let password = new_password()?;
        let verifier = {
            let password = password.clone();
            // Milliseconds of hashing: not on a thread that others' wakes run on.
            let made = tokio::task::spawn_blocking(move || scram_verifier(&password)).await;
            made.map_err(|e| CreateError::Folder(io::Error::other(e)))??
        };
        let new = NewDatabase {
            id: &id,
            tenant: create.tenant,
            name: create.name,
            plan: create.plan,
            plan_databases: plan.databases,
            pg_version,
            image: &image,
            cool_down_ms: create.cool_down_ms,
            role: GUEST_ROLE,
            verifier: &verifier,
        };
        let mut row = inner.metadata.create_database(&new).await.map_err(|e| match e {
            metadata::CreateError::NameTaken => CreateError::NameTaken,
            metadata::CreateError::PlanFull => CreateError::PlanFull(plan.databases),
            metadata::CreateError::Metadata(e) => e.into(),
        })?;
        let made = self.make_folders(&id);
        let rest = inner.home.rest(&id, &image, plan.memory_mib);
        row.state = if rest == Rest::Suspended { State::Suspended } else { State::Stopped };
        let done = match made {
            Ok(()) => inner.metadata.set_state(&id, row.state, None).await.map_err(CreateError::from),
            Err(e) if e.kind() == io::ErrorKind::StorageFull => Err(CreateError::DiskFull),
            Err(e) => Err(CreateError::Folder(e)),
        };
        if let Err(error) = done {
            // Undone here if it can be, else by the reconciler: the row says `creating`.
            if let Err(left) = inner.remove_database(&id).await {
                tracing::warn!(database = %id, left, "a create that failed is undone at the next start");
            }
            return Err(error);
        }
        let facts = super::Facts {
            id: id.clone(),
            tenant: row.tenant.clone(),
            tenant_name: row.tenant_name.clone(),
            name: row.name.clone(),
            pg_version,
            image,
            memory_mib: plan.memory_mib,
            storage_mib: plan.storage_mib,
            cool_down_ms: row.cool_down_ms.unwrap_or(plan.cool_down_ms),
        };
        inner.event(&id, super::EventKind::Created, None);
        inner.announce(&facts, Some(row.state), None);
        Ok(Created { row, password })
    }

    /// The folders, on disk: a database that was answered for is there after a power cut.
    fn make_folders(&self, id: &DatabaseId) -> io::Result<()> {
        use std::os::unix::fs::DirBuilderExt;
        let home = &self.inner.home;
        let folder = home.database(id);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder.join("layer"))?;
        fs::create_dir_all(home.run_of(id))?;
        for folder in [folder.as_path(), &home.databases()] {
            fs::File::open(folder)?.sync_all()?;
        }
        Ok(())
    }
}
