//! Playing power cuts: every change of the layer's host files is written down, and a disk is made of what had been
//! flushed and a random part of the rest.
//!
//! The disk is worse than any real one: it keeps each unflushed 4 KiB of a write, each change of length and each name by
//! its own coin, in no order. The only things it holds to are that a flush of a file keeps that file's bytes and length,
//! and a flush of a folder its names.

mod tests;

use crate::fs::tests::Random;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::path::Path;
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
    fn len(&self) -> usize {
        self.0.lock().unwrap().len()
    }
}

thread_local! {
    static RECORDER: RefCell<Option<Recorder>> = const { RefCell::new(None) };
}

thread_local! {
    static FAULT: Cell<Option<(&'static str, i32)>> = const { Cell::new(None) };
}

/// Fails with an error number if the test wants this operation to.
pub(crate) fn fault(operation: &str, file: &str) -> std::io::Result<()> {
    match FAULT.get() {
        Some((at, error)) if at == format!("{operation} {file}") => Err(std::io::Error::from_raw_os_error(error)),
        _ => Ok(()),
    }
}

/// Bytes that the host takes of a guest's write, if the test wants that to be less than all.
pub(crate) fn short_write() -> Option<usize> {
    FAULT.get().filter(|(at, _)| *at == "short write").map(|(_, bytes)| bytes as usize)
}

/// Whoever writes down what the layers do that are opened by this thread.
pub(crate) fn recorder() -> Option<Recorder> {
    RECORDER.with_borrow(Clone::clone)
}

/// One file of the played disk.
#[derive(Clone, Default)]
struct Inode {
    durable: Vec<u8>,
    pending: Vec<Event>,
}

fn change(bytes: &mut Vec<u8>, event: &Event) {
    match event {
        Event::Write { offset, bytes: new, .. } => {
            let (at, end) = (*offset as usize, *offset as usize + new.len());
            if bytes.len() < end {
                bytes.resize(end, 0);
            }
            bytes[at..end].copy_from_slice(new);
        }
        Event::SetLen { len, .. } => bytes.resize(*len as usize, 0),
        Event::Extend { len, .. } => bytes.resize(bytes.len().max(*len as usize), 0),
        _ => unreachable!(),
    }
}

/// The played disk: names now, durable names, and name changes in between.
#[derive(Default)]
struct Disk {
    inodes: Vec<Inode>,
    names: BTreeMap<String, usize>,
    durable: BTreeMap<String, usize>,
    pending: Vec<(String, Option<usize>)>,
}

impl Disk {
    /// What lies in a real folder, all of it durable.
    fn of(layer: &Path) -> Disk {
        let mut disk = Disk::default();
        for (path, (kind, bytes)) in crate::fs::tests::tree(layer) {
            if kind == 'f' {
                disk.names.insert(path.to_str().unwrap().into(), disk.inodes.len());
                disk.inodes.push(Inode { durable: bytes, pending: Vec::new() });
            }
        }
        disk.durable = disk.names.clone();
        disk
    }

    fn set(&mut self, name: &str, inode: Option<usize>) {
        match inode {
            Some(inode) => self.names.insert(name.into(), inode),
            None => self.names.remove(name),
        };
        self.pending.push((name.into(), inode));
    }

    fn play(&mut self, event: &Event) {
        match event {
            Event::Create(name) => {
                self.inodes.push(Inode::default());
                self.set(name, Some(self.inodes.len() - 1));
            }
            Event::Unlink(name) => self.set(name, None),
            Event::Rename(from, to) => {
                let inode = self.names[from];
                // One change of the folder: both names or neither.
                self.names.remove(from);
                self.set(to, Some(inode));
            }
            Event::SyncFolder(folder) => {
                let inside = |name: &str| name.starts_with("files/") == (*folder == "files/");
                for (name, inode) in std::mem::take(&mut self.pending) {
                    if !inside(&name) {
                        self.pending.push((name, inode));
                    } else if let Some(inode) = inode {
                        self.durable.insert(name, inode);
                    } else {
                        self.durable.remove(&name);
                    }
                }
            }
            Event::Sync(name) => {
                let inode = &mut self.inodes[self.names[name]];
                for event in std::mem::take(&mut inode.pending) {
                    change(&mut inode.durable, &event);
                }
            }
            Event::Write { name, .. } | Event::SetLen { name, .. } | Event::Extend { name, .. } => {
                let inode = self.names[name];
                self.inodes[inode].pending.push(event.clone());
            }
        }
    }

    /// What is found after the power comes back. Of what was not flushed, one of `percents` each is kept.
    fn cut(&self, random: &mut Random, percents: &[u64], layer: &Path) {
        let mut names = self.durable.clone();
        let percent = *random.pick(percents);
        for (name, inode) in &self.pending {
            if random.chance(percent) {
                match inode {
                    Some(inode) => names.insert(name.clone(), *inode),
                    None => names.remove(name),
                };
            }
        }
        std::fs::remove_dir_all(layer).unwrap();
        std::fs::create_dir_all(layer.join("files")).unwrap();
        for (name, inode) in names {
            let inode = &self.inodes[inode];
            let mut bytes = inode.durable.clone();
            let percent = *random.pick(percents);
            for event in &inode.pending {
                let Event::Write { name, offset, bytes: new } = event else {
                    if random.chance(percent) {
                        change(&mut bytes, event);
                    }
                    continue;
                };
                let mut at = 0;
                while at < new.len() {
                    let n = (4096 - (*offset as usize + at) % 4096).min(new.len() - at);
                    if random.chance(percent) {
                        let bytes_of = new[at..at + n].to_vec();
                        change(&mut bytes, &Event::Write { name: name.clone(), offset: offset + at as u64, bytes: bytes_of });
                    }
                    at += n;
                }
            }
            std::fs::write(layer.join(name), bytes).unwrap();
        }
    }
}

