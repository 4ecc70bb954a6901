//! The WAL's pages brought to where they belong, beside the writer.
//!
//! Left to itself, SQLite does that within the commit that fills the WAL's first thousand pages. The rows' pages lie
//! scattered in a large file, so that one commit, of some hundred, waits 10 ms longer, and so does everyone in it.

use sqlx::SqlitePool;
use tokio::sync::mpsc;

/// Pages of the WAL at which the writer does it after all. While writes never pause, the WAL is not begun anew without
/// that; by then, most is where it belongs already.
pub(super) const PAGES: &str = "4096";
/// What the WAL is cut back to after a burst, in bytes: room for that many pages, so that it is not made longer again and
/// again.
pub(super) const KEPT: &str = "25165824";
/// Writes after which it is done.
const WRITES: usize = 64;

/// The writer's way to ask for it.
pub(super) struct Checkpoints {
    since: usize,
    ask: mpsc::Sender<()>,
}

impl Checkpoints {
    /// On a pool of one connection that nobody else uses; it ends with what this gives.
    pub(super) fn start(pool: SqlitePool) -> Checkpoints {
        let (ask, mut asked) = mpsc::channel(1);
        tokio::spawn(async move {
            while asked.recv().await.is_some() {
                // Passive: it waits for nobody, and nobody for it.
                match sqlx::query("PRAGMA wal_checkpoint(PASSIVE)").execute(&pool).await {
                    Err(error) if !pool.is_closed() => {
                        tracing::warn!(%error, "the metadata's WAL is left to grow until the writer can bring it home");
                    }
                    _ => {}
                }
            }
        });
        Checkpoints { since: 0, ask }
    }

    /// Counts writes that are committed. Never waits.
    pub(super) fn written(&mut self, writes: usize) {
        self.since += writes;
        if self.since >= WRITES {
            self.since = 0;
            // One under way or asked for has these too, or the next will.
            let _ = self.ask.try_send(());
        }
    }
}
