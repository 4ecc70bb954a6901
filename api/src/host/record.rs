//! What a server notes of its VMMs for the next one: `run/vmms/PID`, which none of them can reach.
//!
//! Of what a process says of itself nothing counts, such as its command line: it may have been taken over by its guest. One that
//! could not be noted, such as on a full disk, is known by where it listens: in its database's folder nobody else can.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::layout::Home;
use super::pool::PLACEHOLDER;
use crate::identity::DatabaseId;

/// What stands in the file.
#[derive(Debug, Deserialize, Serialize)]
struct Note {
    /// The host's boot, and the clock's ticks from then until the process was started: with its number they name it alone.
    boot: String,
    started: u64,
    /// Whose it is; of one that stands by, what is no id, and as long: to write over it takes no more room on a disk that may be
    /// full by then.
    database: String,
}

/// A VMM's process, as noted.
#[derive(Debug)]
pub struct Record {
    pub pid: u32,
    path: PathBuf,
    note: Note,
}

fn boot() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// When a process was started; `None` of one that has ended.
fn started(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(") ")?.1.split_ascii_whitespace();
    let ended = matches!(fields.next()?, "Z" | "X");
    // The state is field 3, the start is field 22.
    fields.nth(22 - 4)?.parse().ok().filter(|_| !ended)
}

impl Record {
    /// Of a process that runs and is nobody's yet. Nothing is written.
    pub fn new(home: &Home, pid: u32) -> io::Result<Record> {
        let started = started(pid).ok_or(io::ErrorKind::NotFound)?;
        let note = Note { boot: boot()?, started, database: PLACEHOLDER.to_owned() };
        Ok(Record { pid, path: home.vmms().join(pid.to_string()), note })
    }

    /// Has it be a database's, without a word about it.
    pub fn of(mut self, id: &DatabaseId) -> Record {
        self.note.database = id.as_str().to_owned();
        self
    }

    /// Writes it down.
    pub fn write(&self) -> io::Result<()> {
        // Over what is there, if it is: that takes no more room.
        let file = File::options().write(true).create(true).truncate(false).open(&self.path)?;
        file.write_all_at(&serde_json::to_vec(&self.note)?, 0)
    }

    /// Notes whose it is.
    pub fn claim(&mut self, id: &DatabaseId) -> io::Result<()> {
        id.as_str().clone_into(&mut self.note.database);
        self.write()
    }

    /// Whose it is, if it is anyone's.
    pub fn database(&self) -> Option<DatabaseId> {
        DatabaseId::parse(&self.note.database)
    }

    /// Of a process that runs; one that has ended is forgotten.
    pub fn find(home: &Home, pid: u32) -> Option<Record> {
        let path = home.vmms().join(pid.to_string());
        let note: Note = serde_json::from_slice(&fs::read(&path).ok()?).ok()?;
        let runs = boot().ok()? == note.boot && started(pid) == Some(note.started);
        let record = Record { pid, path, note };
        if !runs {
            record.remove();
        }
        runs.then_some(record)
    }

    /// All that run, of this home.
    pub fn all(home: &Home) -> Vec<Record> {
        let entries = fs::read_dir(home.vmms()).into_iter().flatten().flatten();
        entries.filter_map(|entry| Record::find(home, entry.file_name().to_str()?.parse().ok()?)).collect()
    }

    /// Whether it is still that process which has the number.
    pub fn runs(&self) -> bool {
        started(self.pid) == Some(self.note.started)
    }

    pub fn remove(&self) {
        // One that is left is of a process that does not run, and forgotten at the next start.
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_process_is_found_as_long_as_it_runs_whatever_it_says_of_itself() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::new(dir.path().into());
        home.create().unwrap();
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let mut record = Record::new(&home, child.id()).unwrap();
        assert!(Record::all(&home).is_empty());
        record.write().unwrap();
        assert_eq!(Record::all(&home)[0].database(), None);
        let id = DatabaseId::random().unwrap();
        record.claim(&id).unwrap();
        let found = Record::all(&home);
        assert_eq!((found.len(), found[0].pid, found[0].database()), (1, child.id(), Some(id)));
        // Another boot's process of that number, and one that had it before.
        let text = fs::read_to_string(&record.path).unwrap();
        for other in [text.replace(&boot().unwrap(), "other"), text.replace(&record.note.started.to_string(), "1")] {
            assert_ne!(other, text);
            fs::write(&record.path, other).unwrap();
            assert!(Record::find(&home, child.id()).is_none() && !record.path.exists());
        }
        fs::write(&record.path, text).unwrap();
        child.kill().unwrap();
        // Not waited for: a zombie has a number, too.
        while record.runs() {
            std::thread::yield_now();
        }
        assert!(Record::all(&home).is_empty() && !record.path.exists());
        child.wait().unwrap();
    }
}
