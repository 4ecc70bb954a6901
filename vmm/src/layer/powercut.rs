//! Playing power cuts: every change of the layer's host files is written down, and a disk is made of what had been
//! flushed and a random part of the rest.

use std::sync::{Arc, Mutex};

/// One change of the layer's folder. Names are paths below it.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    Create(String),
    Write { name: String, offset: u64, bytes: Vec<u8> },
    SetLen { name: String, len: u64 },
    Extend { name: String, len: u64 },
    Sync(String),
    /// The names in this folder ("" or "files/") are durable.
    SyncFolder(&'static str),
    Unlink(String),
    Rename(String, String),
}

#[derive(Clone, Default)]
pub(crate) struct Recorder(Arc<Mutex<Vec<Event>>>);

impl Recorder {
    pub fn push(&self, event: Event) {
        self.0.lock().unwrap().push(event);
    }
}
