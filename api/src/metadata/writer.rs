//! The one writer: SQLite has one, and a queue for it is better here than busy retries there.
//!
//! **Group commit.** A flush takes longer than the statements of a write, so all writes that came while the last
//! transaction was flushed go into the next: one flush for all, and each is answered once it is on disk. Each has a
//! savepoint of its own, so one that is refused (a name that is taken) undoes itself and nobody else. A transaction that
//! cannot be carried out as a whole (a full disk) is undone, and its writes are tried again one by one: each fails for its
//! own reason, or succeeds.
//!
//! **A connection that failed is thrown away.** After a write that failed (a full disk, above all) sqlx and SQLite may
//! disagree about whether a transaction is open, and then every later "commit" on that connection says yes and keeps
//! nothing. So no connection outlives such a failure, nor a caller that went away in the middle: opening another one takes a
//! millisecond.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use sqlx::pool::PoolConnection;
use sqlx::{Sqlite, SqliteConnection, SqlitePool};
use tokio::sync::{mpsc, oneshot};

use super::checkpoint::Checkpoints;
use super::{Metadata, MetadataError};

/// Writes of one transaction at most: what comes later waits for less than the flush of so many.
const BATCH: usize = 256;
/// Writes that may wait; who comes later waits to wait.
const QUEUE: usize = 1024;

/// The statements of a write. It may be carried out twice, the first time undone. An error undoes it alone.
pub(super) type Work<D, T, E> = for<'c> fn(&'c D, &'c mut SqliteConnection) -> BoxFuture<'c, Result<T, E>>;

/// The way to the writer. Cheap to clone; it ends with the last one.
pub(super) type Writes = mpsc::Sender<Box<dyn Request>>;

/// Why a write was not done.
pub(super) trait Failure: From<MetadataError> + Send + 'static {
    /// It was found not to be allowed; nothing is wrong with the transaction.
    fn is_refusal(&self) -> bool;
}

impl Failure for MetadataError {
    fn is_refusal(&self) -> bool {
        false
    }
}

/// What became of one write of a transaction.
pub(super) enum Outcome {
    Done,
    Refused,
    Failed,
}

/// A write that somebody waits for.
pub(super) trait Request: Send {
    fn is_awaited(&self) -> bool;
    fn run<'c>(&'c mut self, on: &'c mut SqliteConnection) -> BoxFuture<'c, Outcome>;
    fn answer(self: Box<Self>, committed: Result<(), MetadataError>);
}

struct Waiting<D, T, E> {
    data: D,
    work: Work<D, T, E>,
    result: Option<Result<T, E>>,
    /// Before `reply`, also where both are only dropped.
    counted: Option<Counted>,
    reply: oneshot::Sender<Result<T, E>>,
}

/// Counts when it is dropped: before whoever waits is answered, whatever became of the write.
struct Counted(Arc<AtomicU64>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::AcqRel);
    }
}

impl<D: Send + Sync, T: Send, E: Failure> Request for Waiting<D, T, E> {
    fn is_awaited(&self) -> bool {
        !self.reply.is_closed()
    }

    fn run<'c>(&'c mut self, on: &'c mut SqliteConnection) -> BoxFuture<'c, Outcome> {
        Box::pin(async move {
            let result = (self.work)(&self.data, on).await;
            match self.result.insert(result) {
                Ok(_) => Outcome::Done,
                Err(error) if error.is_refusal() => Outcome::Refused,
                Err(_) => Outcome::Failed,
            }
        })
    }

    fn answer(self: Box<Self>, committed: Result<(), MetadataError>) {
        let result = match (self.result, committed) {
            // Its own reason explains more than what came of it.
            (Some(Err(own)), _) => Err(own),
            (Some(Ok(done)), Ok(())) => Ok(done),
            (_, Err(error)) => Err(error.into()),
            (None, Ok(())) => return,
        };
        drop(self.counted);
        // Whoever has left needs no answer.
        let _ = self.reply.send(result);
    }
}

/// Starts the writer on a pool of one connection.
pub(super) fn start(pool: SqlitePool, mut checkpoints: Checkpoints) -> Writes {
    let (writes, mut queue) = mpsc::channel::<Box<dyn Request>>(QUEUE);
    tokio::spawn(async move {
        let mut batch = Vec::new();
        while queue.recv_many(&mut batch, BATCH).await > 0 {
            // Of one that was given up before it was begun, nothing.
            batch.retain(|request| request.is_awaited());
            let writes = batch.len();
            // What panics takes its batch with it, and no later write.
            if AssertUnwindSafe(serve(&pool, std::mem::take(&mut batch))).catch_unwind().await.is_err() {
                tracing::error!(writes, "a write panicked: it and those beside it are not done");
            }
            checkpoints.written(writes);
        }
    });
    writes
}

async fn serve(pool: &SqlitePool, mut batch: Vec<Box<dyn Request>>) {
    if batch.len() > 1 {
        match together(pool, &mut batch).await {
            Ok(()) => return batch.into_iter().for_each(|request| request.answer(Ok(()))),
            Err(error) => tracing::warn!(%error, writes = batch.len(), "writes could not be done together; one by one"),
        }
    }
    // One by one takes longer: whoever has left meanwhile gets nothing done.
    for mut request in batch.into_iter().filter(|request| request.is_awaited()) {
        let done = together(pool, std::slice::from_mut(&mut request)).await;
        request.answer(done);
    }
}

/// One transaction for all.
async fn together(pool: &SqlitePool, batch: &mut [Box<dyn Request>]) -> Result<(), MetadataError> {
    if batch.is_empty() {
        return Ok(());
    }
    let mut write = Write::begin(pool, "BEGIN IMMEDIATE; SAVEPOINT one").await?;
    for request in batch {
        // Both statements fail where SQLite has given up the transaction by itself: nothing is taken for done.
        match request.run(write.on()).await {
            Outcome::Done => write.say("RELEASE one; SAVEPOINT one").await?,
            Outcome::Refused => write.say("ROLLBACK TO one").await?,
            Outcome::Failed => return Err(sqlx::Error::Protocol("one of its writes failed".into()).into()),
        }
    }
    write.commit().await
}

/// A transaction under way.
pub(super) struct Write {
    connection: PoolConnection<Sqlite>,
    /// Its commit does not flush.
    unflushed: bool,
    committed: bool,
}

impl Metadata {
    /// Writes with the next transaction; on disk when this returns. Dropped before its turn, it is not done.
    pub(super) async fn write<D, T, E>(&self, data: D, work: Work<D, T, E>) -> Result<T, E>
    where
        D: Send + Sync + 'static,
        T: Send + 'static,
        E: Failure,
    {
        self.ask(data, work, None).await
    }

    /// Likewise, of what actors know of their databases: it counts as one of [`Metadata::changes`].
    pub(super) async fn change<D, T, E>(&self, data: D, work: Work<D, T, E>) -> Result<T, E>
    where
        D: Send + Sync + 'static,
        T: Send + 'static,
        E: Failure,
    {
        self.ask(data, work, Some(Counted(self.changes.clone()))).await
    }

    /// Counts changes of rows by others than their actors. Read before a row, it tells later whether that still holds.
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    async fn ask<D, T, E>(&self, data: D, work: Work<D, T, E>, counted: Option<Counted>) -> Result<T, E>
    where
        D: Send + Sync + 'static,
        T: Send + 'static,
        E: Failure,
    {
        let closed = || MetadataError::from(sqlx::Error::PoolClosed);
        let (reply, answer) = oneshot::channel();
        let request = Waiting { data, work, result: None, reply, counted };
        self.writes.send(Box::new(request)).await.map_err(|_| closed())?;
        answer.await.unwrap_or_else(|_| Err(closed().into()))
    }

    /// Begins a write of hints: no flush at its commit.
    pub(super) async fn begin_unflushed(&self) -> Result<Write, MetadataError> {
        let mut write = Write::begin(&self.writer, "PRAGMA synchronous = NORMAL; BEGIN IMMEDIATE").await?;
        write.unflushed = true;
        Ok(write)
    }
}

impl Write {
    async fn begin(pool: &SqlitePool, sql: &'static str) -> Result<Write, MetadataError> {
        let mut write = Write { connection: pool.acquire().await?, unflushed: false, committed: false };
        write.say(sql).await?;
        Ok(write)
    }

    /// What statements are executed on.
    pub(super) fn on(&mut self) -> &mut SqliteConnection {
        &mut self.connection
    }

    /// On disk when this returns, unless it was begun without a flush.
    pub(super) async fn commit(mut self) -> Result<(), MetadataError> {
        self.say(if self.unflushed { "COMMIT; PRAGMA synchronous = FULL" } else { "COMMIT" }).await?;
        self.committed = true;
        Ok(())
    }

    async fn say(&mut self, sql: &'static str) -> Result<(), MetadataError> {
        sqlx::query(sql).execute(self.on()).await?;
        Ok(())
    }
}

impl Drop for Write {
    fn drop(&mut self) {
        if !self.committed {
            self.connection.close_on_drop();
        }
    }
}
