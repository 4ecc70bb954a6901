//! virtio-fs: hands each FUSE message of the queue to the file server and gives the answer back.
//!
//! Nearly all are answered before the doorbell's store completes. A flush that waits for the disk is carried out by a
//! worker thread, so that the guest's other processes run on meanwhile: its buffers come back later, and the guest is told
//! to look up.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use dormouse_abi::{QUEUE_SIZE, queue};
use virtio_queue::Queue;
use vm_memory::VolatileSlice;

use super::{QueueError, give_back, pop, position};
use crate::fs::Begun;
use crate::jail::{ThreadKind, threads};
use crate::layer::Flush;
use crate::machine::Ram;

pub use crate::layer::Gate;

/// Flushes carried out at once: the log's, and those of a checkpoint beside it.
const WORKERS: usize = 3;

/// The data directory's server, behind the queue.
pub trait FileServer: Send {
    /// Answers one FUSE message, or begins to.
    fn begin(&mut self, readable: &[VolatileSlice], writable: &[VolatileSlice]) -> Begun;
    /// Makes everything durable: files and folders.
    fn flush_all(&mut self) -> io::Result<()>;
    /// Gives disk back that the guest was granted and has not used; nothing is asked of the server after that.
    fn give_back_room(&mut self);
    /// The server's state, for the restoring constructor.
    fn save(&self) -> Vec<u8>;
    /// Called once, before the first request that changes anything.
    fn set_gate(&mut self, gate: Gate);
    /// Bytes of disk that the database's own layer takes.
    fn disk_bytes(&self) -> u64;
    /// Whether nothing was ever changed.
    fn is_empty(&self) -> bool;
    /// Whether anything was changed since the server was made.
    fn has_changed(&self) -> bool;
}

/// The queue, and the flushes that are under way.
pub struct Files {
    shared: Arc<Shared>,
}

/// What the vCPU thread shares with the workers.
struct Shared {
    ram: Ram,
    queue: Mutex<Queue>,
    jobs: Mutex<Jobs>,
    wanted: Condvar,
    /// Tells the guest to look up.
    announce: Box<dyn Fn() + Send + Sync>,
}

#[derive(Default)]
struct Jobs {
    waiting: VecDeque<Job>,
    workers: usize,
    idle: usize,
    /// Not given back yet, those at work included.
    in_flight: usize,
    closed: bool,
}

/// A flush, and the buffers whose answer is right when it is done.
struct Job {
    flush: Flush,
    head: u16,
    len: usize,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Files {
    /// The device at the queue position of a snapshot. `announce` is called when buffers came back later.
    pub fn new(ram: Ram, at: (u16, u16), announce: impl Fn() + Send + Sync + 'static) -> Result<Self, QueueError> {
        Ok(Self {
            shared: Arc::new(Shared {
                ram,
                queue: Mutex::new(super::queue(queue::FS, at)?),
                jobs: Mutex::default(),
                wanted: Condvar::new(),
                announce: Box::new(announce),
            }),
        })
    }

    /// For the snapshot.
    pub fn position(&self) -> (u16, u16) {
        position(&lock(&self.shared.queue))
    }

    /// Whether flushes are under way: a guest is not saved then. Once this says no, it has been told of all.
    pub fn is_busy(&self) -> bool {
        lock(&self.shared.jobs).in_flight > 0
    }

    /// Serves all requests; true if any was answered.
    pub fn serve(&self, server: &mut dyn FileServer) -> bool {
        let memory = self.shared.ram.view();
        let mut served = false;
        loop {
            let chain = pop(&mut lock(&self.shared.queue), memory);
            let Some(chain) = chain else { return served };
            match server.begin(&chain.readable, &chain.writable) {
                Begun::Done(written) => {
                    give_back(&mut lock(&self.shared.queue), memory, chain.head, written);
                    served = true;
                }
                Begun::Flush(flush, len) => self.hand_over(Job { flush, head: chain.head, len }),
            }
        }
    }

    fn hand_over(&self, job: Job) {
        let mut jobs = lock(&self.shared.jobs);
        jobs.in_flight += 1;
        // More than the queue has room for: a guest that asks the same again and again waits for it.
        if jobs.in_flight > usize::from(QUEUE_SIZE) {
            drop(jobs);
            return self.shared.carry_out(job);
        }
        if jobs.waiting.len() >= jobs.idle && jobs.workers < WORKERS {
            let shared = Arc::clone(&self.shared);
            match threads::spawn(ThreadKind::Flush, move || shared.work()) {
                Ok(_) => jobs.workers += 1,
                Err(error) if jobs.workers == 0 => {
                    drop(jobs);
                    tracing::warn!(%error, "no thread for a flush: the guest waits for it");
                    return self.shared.carry_out(job);
                }
                Err(_) => {}
            }
        }
        jobs.waiting.push_back(job);
        drop(jobs);
        self.shared.wanted.notify_one();
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        lock(&self.shared.jobs).closed = true;
        self.shared.wanted.notify_all();
    }
}

impl Shared {
    /// A worker's life.
    fn work(&self) {
        let mut jobs = lock(&self.jobs);
        loop {
            if let Some(job) = jobs.waiting.pop_front() {
                drop(jobs);
                self.carry_out(job);
                jobs = lock(&self.jobs);
            } else if jobs.closed {
                return;
            } else {
                jobs.idle += 1;
                jobs = self.wanted.wait(jobs).unwrap_or_else(PoisonError::into_inner);
                jobs.idle -= 1;
            }
        }
    }

    fn carry_out(&self, job: Job) {
        // An answer of no length is an I/O error to the guest.
        let written = if job.flush.carry_out() { job.len } else { 0 };
        give_back(&mut lock(&self.queue), self.ram.view(), job.head, written);
        (self.announce)();
        lock(&self.jobs).in_flight -= 1;
    }
}

impl FileServer for crate::fs::FsDevice {
    fn begin(&mut self, readable: &[VolatileSlice], writable: &[VolatileSlice]) -> Begun {
        Self::begin(self, readable, writable)
    }
    fn flush_all(&mut self) -> io::Result<()> {
        Self::flush_all(self)
    }
    fn give_back_room(&mut self) {
        Self::give_back_room(self);
    }
    fn save(&self) -> Vec<u8> {
        Self::save(self)
    }
    fn set_gate(&mut self, gate: Gate) {
        Self::set_gate(self, gate);
    }
    fn disk_bytes(&self) -> u64 {
        Self::disk_bytes(self)
    }
    fn is_empty(&self) -> bool {
        Self::is_empty(self)
    }
    fn has_changed(&self) -> bool {
        Self::has_changed(self)
    }
}
