//! Threads by kind, each in its own jail. Those that every wake needs are made beforehand: a filter takes longer to set than
//! the wake should wait.

use std::io;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};

use super::calls::ThreadKind;
use super::{filter, landlock};
use crate::reactor::block_termination;

type Job = Box<dyn FnOnce() + Send>;

/// A thread that waits for what it is to do.
struct Spare {
    kind: ThreadKind,
    job: Sender<Job>,
    handle: JoinHandle<()>,
}

static SPARES: Mutex<Vec<Spare>> = Mutex::new(Vec::new());

/// Without its jail narrowed a thread must not go on.
fn must(kind: ThreadKind, narrowed: io::Result<()>) {
    if let Err(error) = narrowed {
        tracing::error!(%error, thread = kind.name(), "a thread's jail cannot be closed");
        std::process::exit(74);
    }
}

/// Makes the threads of a wake, in their jails.
pub fn make_ready() -> io::Result<()> {
    for kind in [ThreadKind::Io, ThreadKind::Spend] {
        let (job, jobs) = channel::<Job>();
        let (closed, is_closed) = channel();
        let handle = Builder::new().name(kind.name().to_owned()).spawn(move || {
            let held = block_termination().map(drop);
            must(kind, filter::narrow(kind));
            let _ = closed.send(held);
            // An error: it is not needed.
            if let Ok(job) = jobs.recv() {
                must(kind, landlock::narrow());
                job();
            }
        })?;
        is_closed.recv().map_err(|_| io::Error::other("a thread of the jail ended"))??;
        SPARES.lock().unwrap_or_else(PoisonError::into_inner).push(Spare { kind, job, handle });
    }
    Ok(())
}

/// Ends those that are not needed: what waits for a job has not taken on all of its jail yet.
pub fn end_spares() {
    let left = std::mem::take(&mut *SPARES.lock().unwrap_or_else(PoisonError::into_inner));
    for Spare { job, handle, .. } in left {
        drop(job);
        let _ = handle.join();
    }
}

/// From now on the calling thread, when it has something to do, waits for a processor's turn instead of taking it from another. What
/// waits for the disk again and again would else do so to the guest, which is what somebody waits for.
pub fn interrupt_nobody() {
    // SAFETY: an all-zero parameter is a valid one of that policy; of this thread alone. That it cannot be done costs time.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_BATCH, &std::mem::zeroed()) };
}

/// Runs the job on a thread of a kind: on one made beforehand if there is one.
pub fn spawn(kind: ThreadKind, job: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    let mut spares = SPARES.lock().unwrap_or_else(PoisonError::into_inner);
    let spare = spares.iter().position(|spare| spare.kind == kind).map(|at| spares.swap_remove(at));
    drop(spares);
    let Some(Spare { job: send, handle, .. }) = spare else {
        return Builder::new().name(kind.name().to_owned()).spawn(move || {
            must(kind, filter::narrow(kind));
            job();
        });
    };
    send.send(Box::new(job)).map_err(|_| io::Error::other("a thread made beforehand has ended"))?;
    Ok(handle)
}
