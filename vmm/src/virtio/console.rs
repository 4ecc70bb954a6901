//! virtio-console, transmit only: the guest's messages go to `console.log`, which is capped and rotated once.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use virtio_queue::Queue;
use vm_memory::GuestMemoryMmap;

use super::{give_back, pop};
use crate::symbols::Symbols;

/// Where the guest's console goes.
pub struct Console {
    path: PathBuf,
    // Size in bytes at which the log becomes `console.log.1`, replacing the one before.
    cap: u64,
    file: File,
    len: u64,
    foreground: bool,
    // Single bytes of the doorbell, until a line is whole.
    line: Vec<u8>,
    symbols: Option<Symbols>,
}

impl Console {
    /// Opens the log for appending, to be rotated at `cap` bytes; `foreground` copies it to stderr.
    pub fn open(path: &Path, cap: u64, foreground: bool) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        let len = file.metadata()?.len();
        Ok(Self { path: path.to_owned(), cap, file, len, foreground, line: Vec::new(), symbols: None })
    }

    /// Names the addresses in what comes byte by byte, which is how a fault is reported.
    pub fn with_symbols(self, symbols: Symbols) -> Self {
        Self { symbols: Some(symbols), ..self }
    }

    /// Writes bytes from the guest. A full disk loses console output, nothing else.
    pub fn write(&mut self, bytes: &[u8]) {
        if self.foreground {
            let _ = io::stderr().write_all(bytes);
        }
        if self.len >= self.cap {
            self.rotate();
        }
        match self.file.write_all(bytes) {
            Ok(()) => self.len += bytes.len() as u64,
            Err(error) => tracing::warn!(%error, "cannot write the guest's console"),
        }
    }

    fn rotate(&mut self) {
        let mut old = self.path.clone().into_os_string();
        old.push(".1");
        let renamed = std::fs::rename(&self.path, &old)
            .and_then(|()| OpenOptions::new().create(true).append(true).open(&self.path));
        match renamed {
            Ok(file) => (self.file, self.len) = (file, 0),
            Err(error) => tracing::warn!(%error, "cannot rotate the guest's console"),
        }
    }

    /// One byte of the doorbell.
    pub fn put(&mut self, byte: u8) {
        self.line.push(byte);
        if byte == b'\n' || self.line.len() >= 256 {
            self.flush();
        }
    }

    /// Writes what [`Console::put`] still holds.
    pub fn flush(&mut self) {
        if !self.line.is_empty() {
            let line = std::mem::take(&mut self.line);
            match &mut self.symbols {
                Some(symbols) => {
                    let line = symbols.annotate(&line);
                    self.write(&line);
                }
                None => self.write(&line),
            }
        }
    }

    /// A report with names for the addresses in it.
    pub fn named(&mut self, report: &str) -> String {
        let Some(symbols) = &mut self.symbols else { return report.to_owned() };
        let lines = report.split_inclusive('\n').flat_map(|line| symbols.annotate(line.as_bytes()));
        String::from_utf8_lossy(&lines.collect::<Vec<u8>>()).into_owned()
    }

    /// Drains the queue.
    pub fn serve(&mut self, queue: &mut Queue, memory: &GuestMemoryMmap) {
        while let Some(chain) = pop(queue, memory) {
            for slice in &chain.readable {
                let mut bytes = vec![0; slice.len().min(64 << 10)];
                slice.copy_to(&mut bytes);
                self.write(&bytes);
            }
            give_back(queue, memory, chain.head, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chatty_guest_fills_two_files_and_no_more() {
        for cap in [1 << 20, 3 << 20] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("console.log");
            let mut console = Console::open(&path, cap, false).unwrap();
            let block = vec![b'x'; 100 << 10];
            for _ in 0..100 {
                console.write(&block);
            }
            let len = |name| std::fs::metadata(dir.path().join(name)).unwrap().len();
            assert!((cap..cap + block.len() as u64).contains(&len("console.log.1")));
            assert!(len("console.log") < cap + block.len() as u64);
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
        }
    }
}
