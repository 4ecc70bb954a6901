//! Creating a database: a row, and nothing else.
//!
//! It is a clone of its image's golden snapshot that has not been woken, so it is made `suspended` (or `stopped`
//! if the image has no golden snapshot of its size), and its first use is an ordinary wake, which makes its folders
//! ([`super::folders`]). The row is on disk before the create is answered.

use std::sync::Arc;

use super::machine::Rest;
use super::{GUEST_ROLE, Host, Inner, State};
use crate::crash;
use crate::identity::{DatabaseId, TenantId};
use crate::metadata::{self, DatabaseRow, MetadataError, NewDatabase};
use crate::secret::{PasswordError, RandomError, password_and_verifier};
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
    #[error("the create was interrupted: look whether the database is there, then try again")]
    Interrupted,
    #[error(transparent)]
    Random(#[from] RandomError),
    #[error(transparent)]
    Password(#[from] PasswordError),
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
        let (password, verifier) = password_and_verifier().await?;
        let id = DatabaseId::random()?;
        let rest = inner.home.rest(&id, &image, plan.memory_mib);
        let new = NewDatabase {
            id,
            tenant: create.tenant.clone(),
            name: create.name.to_owned(),
            state: if rest == Rest::Suspended { State::Suspended } else { State::Stopped },
            plan: create.plan.to_owned(),
            plan_databases: plan.databases,
            pg_version,
            image,
            cool_down_ms: create.cool_down_ms,
            role: GUEST_ROLE.to_owned(),
            verifier,
        };
        // To its end, if the client leaves: what is on disk has to be announced.
        let made = tokio::spawn(inner.clone().make(new)).await;
        let row = made.unwrap_or(Err(CreateError::Interrupted))?;
        Ok(Created { row, password })
    }
}

impl Inner {
    /// Writes the row, and tells the listeners of it.
    async fn make(self: Arc<Self>, new: NewDatabase) -> Result<DatabaseRow, CreateError> {
        let most = new.plan_databases;
        let row = self.metadata.create_database(new).await.map_err(|e| match e {
            metadata::CreateError::NameTaken => CreateError::NameTaken,
            metadata::CreateError::PlanFull => CreateError::PlanFull(most),
            metadata::CreateError::Metadata(e) => e.into(),
        })?;
        crash::point("create-committed");
        // Written with its row.
        self.metrics.events[super::EventKind::Created as usize].add(1);
        self.announce(&self.facts(&row), Some(row.state), None);
        crash::point("create-announced");
        Ok(row)
    }
}
