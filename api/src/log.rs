//! Logs: one JSON object a line to `DORMOUSE_HOME/log`, rotated by size, and lines for people on a terminal.
//!
//! A log that cannot be written, such as on a full disk, loses lines and nothing else: the server goes on.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

use crate::settings::{LogFormat, Settings};

/// The newest log's name; older ones are `dormouse.log.1`, `.2`, …
const NAME: &str = "dormouse.log";

/// Starts logging for this process, once: to the folder, and to standard error.
pub fn start(settings: &Settings, folder: &Path) -> io::Result<()> {
    let file = Rotated::open(folder.join(NAME), settings.log_file_size, settings.log_files)?;
    let terminal = io::stderr().is_terminal();
    let text = match settings.log_format {
        LogFormat::Auto => terminal,
        LogFormat::Text => true,
        LogFormat::Json => false,
    };
    // Not told of errors either: the layer would `eprintln!` them, which panics when standard error is on the
    // same full disk.
    let json = || {
        let layer = tracing_subscriber::fmt::layer().log_internal_errors(false);
        layer.json().flatten_event(true).with_current_span(false).with_span_list(false)
    };
    let to_file = json().with_writer(Mutex::new(Lossy(file))).with_filter(filter(settings.log_level)).boxed();
    let to_stderr = if text {
        let layer = tracing_subscriber::fmt::layer().log_internal_errors(false).with_ansi(terminal).with_target(false);
        layer.with_writer(|| Lossy(io::stderr())).with_filter(filter(settings.log_level)).boxed()
    } else {
        json().with_writer(|| Lossy(io::stderr())).with_filter(filter(settings.log_level)).boxed()
    };
    // A second server in one process (tests) keeps the first one's logs.
    let _ = tracing_subscriber::registry().with(vec![to_file, to_stderr]).try_init();
    Ok(())
}

/// The level for our own; SQL statements only when they are slow or everything is asked for.
fn filter(level: LevelFilter) -> Targets {
    let sql = if level >= LevelFilter::TRACE { level } else { level.min(LevelFilter::WARN) };
    Targets::new().with_default(level).with_target("sqlx", sql).with_target("hyper", level.min(LevelFilter::INFO))
}

/// A writer whose errors are nobody's: what cannot be logged cannot be reported either.
struct Lossy<W>(W);

impl<W: Write> Write for Lossy<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let _ = self.0.write_all(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let _ = self.0.flush();
        Ok(())
    }
}

/// A file that starts anew when it has grown past its limit, and keeps so many old ones.
struct Rotated {
    path: PathBuf,
    file: File,
    length: u64,
    limit: u64,
    keep: usize,
}

impl Rotated {
    fn open(path: PathBuf, limit: u64, keep: usize) -> io::Result<Rotated> {
        let file = OpenOptions::new().create(true).append(true).open(&path)?;
        let length = file.metadata()?.len();
        Ok(Rotated { path, file, length, limit, keep })
    }

    fn numbered(&self, n: usize) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(format!(".{n}"));
        name.into()
    }

    fn rotate(&mut self) -> io::Result<()> {
        for n in (1..self.keep).rev() {
            // Not there yet, as long as fewer have been kept.
            let _ = std::fs::rename(self.numbered(n), self.numbered(n + 1));
        }
        std::fs::rename(&self.path, self.numbered(1))?;
        self.file = OpenOptions::new().create(true).append(true).open(&self.path)?;
        self.length = 0;
        Ok(())
    }
}

impl Write for Rotated {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        // A line is never split over two files. A log that cannot be rotated is better too long than lost.
        if self.length > 0 && self.length + line.len() as u64 > self.limit {
            let _ = self.rotate();
        }
        self.file.write_all(line)?;
        self.length += line.len() as u64;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_cannot_be_written_is_lost_without_a_word() {
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        assert!((&full).write_all(b"line\n").is_err());
        let mut log = Lossy(full);
        log.write_all(b"line\n").unwrap();
        log.flush().unwrap();
    }

    #[test]
    fn rotates_by_size_keeps_whole_lines_and_so_many_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(NAME);
        let mut log = Rotated::open(path.clone(), 100, 2).unwrap();
        for i in 0..40 {
            log.write_all(format!("line {i:04} of thirty characters\n").as_bytes()).unwrap();
        }
        drop(log);
        // Goes on where it was.
        let mut log = Rotated::open(path, 100, 2).unwrap();
        log.write_all(b"line 0040 of thirty characters\n").unwrap();
        let mut names: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["dormouse.log", "dormouse.log.1", "dormouse.log.2"]);
        for name in names {
            let text = std::fs::read_to_string(dir.path().join(name)).unwrap();
            assert!(text.len() <= 100 && text.lines().all(|l| l.len() == 30), "{text}");
        }
    }
}
