//! At the server's start: what the last one left.
//!
//! | found | done |
//! |---|---|
//! | a VM that listens, its database known | adopted: it goes on as if nothing had happened, but for the sessions, whose clients are gone |
//! | a VM that does not listen, that nothing was noted of (the disk was full), or whose database is unknown or being deleted | killed; the data directory is the truth |
//! | a row `creating` (of an older server; now a create is one transaction) | undone: nobody was told its password |
//! | a row `deleting` | finished |
//! | a row in any other state of work, without a VM | at rest, as its files say |
//! | a folder without a row | reported, not touched: it may be a restore under way |

use std::fs;
use std::time::Duration;

use futures_util::stream::{self, StreamExt, TryStreamExt};
use tokio::net::UnixStream;

use super::machine::{Phase, Rest};
use super::process::Process;
use super::record::Record;
use super::socket::connect;
use super::{Host, State};
use crate::crash;
use crate::identity::DatabaseId;
use crate::metadata::{DatabaseRow, MetadataError};

/// What was done, for the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reconciled {
    pub adopted: usize,
    /// Those that were a database's.
    pub killed: usize,
    pub undone: usize,
    pub deleted: usize,
    pub rested: usize,
}

/// Rows that are settled at once.
const AT_ONCE: usize = 64;
/// Folders whose rows are looked up at once.
const LOOKED_UP: usize = 500;
/// How long a killed VM may take to go. SIGKILL needs no consent; this bounds a machine in trouble.
const KILL_TIME: Duration = Duration::from_secs(10);

impl Host {
    /// Brings rows, processes and files back together. Call once, before anything is woken.
    pub async fn reconcile(&self) -> Result<Reconciled, MetadataError> {
        let mut done = Reconciled::default();
        crash::point("takeover-begun");
        for record in Record::all(&self.inner.home).await {
            self.settle_vm(record, &mut done).await?;
        }
        crash::point("takeover-vms-settled");
        // Many at once: their writes share transactions.
        let rows = self.inner.metadata.databases_at_work().await?;
        let mut settled = stream::iter(rows.iter().map(|row| self.settle_row(row))).buffer_unordered(AT_ONCE);
        while let Some(one) = settled.try_next().await? {
            done.undone += one.undone;
            done.deleted += one.deleted;
            done.rested += one.rested;
        }
        drop(settled);
        crash::point("takeover-done");
        // It only reports, and with many folders it takes a while: nobody waits for it.
        let host = self.clone();
        tokio::spawn(async move {
            if let Err(error) = host.report_strays().await {
                tracing::warn!(%error, "folders of no known database could not be looked for");
            }
        });
        self.inner.keep_ready();
        self.keep_packed();
        Ok(done)
    }

    async fn settle_vm(&self, record: Record, done: &mut Reconciled) -> Result<(), MetadataError> {
        let (pid, id) = (record.pid, record.database());
        let row = match &id {
            Some(id) => self.inner.metadata.database(id).await?,
            None => None,
        };
        let wanted = row.filter(|row| !matches!(row.state, State::Creating | State::Deleting));
        let control = match &wanted {
            Some(_) => connect(&record.control_socket()).await.ok(),
            None => None,
        };
        if let Ok(mut process) = Process::adopt(record, &self.inner.pool) {
            if let (Some(row), Some(control)) = (&wanted, control) {
                self.take_over(row, (control, process));
                done.adopted += 1;
                return Ok(());
            }
            let database = id.as_ref().map(DatabaseId::as_str);
            tracing::warn!(database, pid, "killing a VM that is nobody's or does not listen");
            process.kill();
            if tokio::time::timeout(KILL_TIME, process.gone()).await.is_err() {
                tracing::error!(database, pid, "killed, and still there");
            }
            crash::point("takeover-killed");
            if let Some(id) = &id {
                self.inner.clear_unpacked(id);
                done.killed += 1;
            }
        }
        // It is gone, and its row may not say yet that it was awake: what the journal had was lost with its server.
        if let Some(row) = wanted.filter(|row| matches!(row.state, State::Suspended | State::Stopped | State::Error)) {
            done.rested += self.settle_row(&row).await?.rested;
        }
        Ok(())
    }

    fn take_over(&self, row: &DatabaseRow, vm: (UnixStream, Process)) {
        crash::point("takeover-reached");
        tracing::info!(database = %row.id, pid = vm.1.pid(), "adopted a running VM");
        self.inner.start_actor(self.inner.facts(row), Phase::Resuming, None, Some(vm), None);
        crash::point("takeover-adopted");
    }

    async fn settle_row(&self, row: &DatabaseRow) -> Result<Reconciled, MetadataError> {
        let mut done = Reconciled::default();
        let inner = &self.inner;
        match row.state {
            State::Creating | State::Deleting => {
                match inner.remove_database(&row.id).await {
                    Ok(()) if row.state == State::Creating => done.undone += 1,
                    Ok(()) => {
                        crash::point("takeover-deleted");
                        done.deleted += 1;
                    }
                    Err(reason) => {
                        tracing::error!(database = %row.id, reason, "could not be removed; `delete` tries again");
                        inner.metadata.set_state(&row.id, State::Deleting, Some(&reason)).await?;
                    }
                }
                return Ok(done);
            }
            _ if inner.lock_actors().contains_key(&row.id) => return Ok(done),
            _ => {}
        }
        if let Err(lost) = inner.check_files(&row.id, row.has_files) {
            inner.metadata.set_state(&row.id, State::Error, Some(&lost)).await?;
            done.rested += 1;
            return Ok(done);
        }
        // As after a VM's end that nobody saw.
        inner.note_written(&row.id, &mut row.written.clone(), false);
        inner.clear_unpacked(&row.id);
        let rest = inner.home.rest(&row.id, &row.image, inner.plan_of(&row.plan).memory_mib);
        let (state, message) = match rest {
            Rest::Suspended => (State::Suspended, None),
            _ => (State::Stopped, Some("the server ended while it was awake; its next use starts cold")),
        };
        inner.metadata.set_state(&row.id, state, message).await?;
        crash::point("takeover-rested");
        done.rested += 1;
        Ok(done)
    }

    async fn report_strays(&self) -> Result<(), MetadataError> {
        let folder = self.inner.home.databases();
        let found = tokio::task::spawn_blocking(move || -> Vec<DatabaseId> {
            let entries = fs::read_dir(folder).into_iter().flatten().flatten();
            entries.filter_map(|entry| entry.file_name().to_str().and_then(DatabaseId::parse)).collect()
        });
        for ids in found.await.unwrap_or_default().chunks(LOOKED_UP) {
            let known = self.inner.metadata.known(ids).await?;
            for id in ids.iter().filter(|id| !known.contains(id)) {
                let folder = self.inner.home.database(id);
                // It may be gone since, with its row.
                if folder.exists() {
                    tracing::warn!(database = %id, folder = %folder.display(), "a folder of no known database; left alone");
                }
            }
        }
        Ok(())
    }
}
