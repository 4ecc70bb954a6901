//! Descriptor tables.

use crate::errno::{Errno, Result};
use crate::file::{DirEntry, File};
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};

pub const O_NONBLOCK: u32 = 0o4000;
pub const O_APPEND: u32 = 0o2000;
pub const O_CLOEXEC: u32 = 0o2000000;
/// Most descriptors of one task.
pub const LIMIT: usize = 1024;

/// An open file description: what `dup` shares.
pub struct OpenFile {
    pub file: Rc<dyn File>,
    pub flags: Cell<u32>,
    pub offset: Cell<u64>,
    /// A directory's entries as they were when its reading began: names may go while it is read, and none may be
    /// skipped for that.
    pub listing: RefCell<Option<Vec<DirEntry>>>,
}

impl OpenFile {
    pub fn new(file: Rc<dyn File>, flags: u32) -> Rc<Self> {
        Rc::new(Self { file, flags: Cell::new(flags & !O_CLOEXEC), offset: Cell::new(0), listing: RefCell::new(None) })
    }
    pub fn nonblock(&self) -> bool {
        self.flags.get() & O_NONBLOCK != 0
    }
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        self.file.close();
    }
}

#[derive(Clone)]
struct Entry {
    open: Rc<OpenFile>,
    close_on_exec: bool,
}

#[derive(Default)]
pub struct FileTable {
    entries: Vec<Option<Entry>>,
}

impl FileTable {
    pub fn get(&self, fd: i32) -> Result<Rc<OpenFile>> {
        match self.entries.get(fd as usize) {
            Some(Some(entry)) if fd >= 0 => Ok(entry.open.clone()),
            _ => Err(Errno::EBADF),
        }
    }

    /// Puts the file at the lowest free number that is at least `lowest`.
    pub fn insert(&mut self, open: Rc<OpenFile>, close_on_exec: bool, lowest: usize) -> Result<i32> {
        let fd = (lowest..self.entries.len()).find(|&fd| self.entries[fd].is_none()).unwrap_or(self.entries.len().max(lowest));
        if fd >= LIMIT {
            return Err(Errno::EMFILE);
        }
        if fd >= self.entries.len() {
            self.entries.resize(fd + 1, None);
        }
        self.entries[fd] = Some(Entry { open, close_on_exec });
        Ok(fd as i32)
    }

    /// Takes the file out; dropping what it returns closes it.
    pub fn remove(&mut self, fd: i32) -> Result<Rc<OpenFile>> {
        match self.entries.get_mut(fd as usize) {
            Some(entry) if fd >= 0 => entry.take().map(|entry| entry.open).ok_or(Errno::EBADF),
            _ => Err(Errno::EBADF),
        }
    }

    /// `dup2`: returns what stood at `to`, to be dropped outside the table's borrow.
    pub fn replace(&mut self, from: i32, to: i32, close_on_exec: bool) -> Result<Option<Rc<OpenFile>>> {
        let open = self.get(from)?;
        if to < 0 || to as usize >= LIMIT {
            return Err(Errno::EBADF);
        }
        if to as usize >= self.entries.len() {
            self.entries.resize(to as usize + 1, None);
        }
        Ok(self.entries[to as usize].replace(Entry { open, close_on_exec }).map(|entry| entry.open))
    }

    pub fn close_on_exec(&self, fd: i32) -> Result<bool> {
        self.get(fd)?;
        Ok(self.entries[fd as usize].as_ref().is_some_and(|entry| entry.close_on_exec))
    }

    pub fn set_close_on_exec(&mut self, fd: i32, value: bool) -> Result<()> {
        self.get(fd)?;
        if let Some(entry) = self.entries[fd as usize].as_mut() {
            entry.close_on_exec = value;
        }
        Ok(())
    }

    /// What a new program inherits.
    pub fn inherit(&self) -> Self {
        let entries = self.entries.iter().map(|entry| entry.clone().filter(|entry| !entry.close_on_exec)).collect();
        Self { entries }
    }
}
