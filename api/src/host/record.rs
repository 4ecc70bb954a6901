//! What a server notes of its VMMs for the next one: `run/vmms/PID`, beside their sockets, in a folder that none of them can reach.
//!
//! Of what a process says of itself nothing counts, such as its command line: it may have been taken over by its guest. One that
//! could not be noted, such as on a full disk, is found by its socket, and is nobody's.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;

use serde::{Deserialize, Serialize};

use super::layout::Home;
use super::pool::PLACEHOLDER;
use super::socket;
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
    home: Home,
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
        Ok(Record { pid, home: home.clone(), note })
    }

    /// Writes it down.
    pub fn write(&self) -> io::Result<()> {
        // Over what is there, if it is: that takes no more room.
        let file = File::options().write(true).create(true).truncate(false).open(self.home.note_of(self.pid))?;
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
        let note: Note = serde_json::from_slice(&fs::read(home.note_of(pid)).ok()?).ok()?;
        let runs = boot().ok()? == note.boot && started(pid) == Some(note.started);
        runs.then_some(Record { pid, home: home.clone(), note })
    }

    /// All that run, of this home. Of the others nothing is left.
    pub async fn all(home: &Home) -> Vec<Record> {
        let entries = fs::read_dir(home.vmms()).into_iter().flatten().flatten();
        let number = |name: &str| name.split('.').next()?.parse().ok();
        let pids: BTreeSet<u32> = entries.filter_map(|entry| number(entry.file_name().to_str()?)).collect();
        let mut running = Vec::new();
        for pid in pids {
            let found = match Record::find(home, pid) {
                // One that could not be noted: whoever else has its number now does not listen there.
                None if socket::connect(&home.control_socket(pid)).await.is_ok() => Record::new(home, pid).ok(),
                found => found,
            };
            match found {
                Some(record) => running.push(record),
                None => remove_files(home, pid),
            }
        }
        running
    }

    /// Whether it is still that process which has the number.
    pub fn runs(&self) -> bool {
        started(self.pid) == Some(self.note.started)
    }

    /// Forgets it, on a thread of its own where there is a runtime: a file system may have whoever removes something wait.
    pub fn remove(self) {
        let remove = move || remove_files(&self.home, self.pid);
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(remove)),
            Err(_) => remove(),
        }
    }
}

/// Of a process that does not run: what is left is removed at the next start.
fn remove_files(home: &Home, pid: u32) {
    for path in [home.control_socket(pid), home.session_socket(pid), home.note_of(pid)] {
        let _ = fs::remove_file(path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[tokio::test]
    async fn a_process_is_found_as_long_as_it_runs_whatever_it_says_of_itself() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::new(dir.path().into());
        home.create().unwrap();
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let mut record = Record::new(&home, child.id()).unwrap();
        assert!(Record::all(&home).await.is_empty());
        record.write().unwrap();
        assert_eq!(Record::all(&home).await[0].database(), None);
        let id = DatabaseId::random().unwrap();
        record.claim(&id).unwrap();
        let found = Record::all(&home).await;
        assert_eq!((found.len(), found[0].pid, found[0].database()), (1, child.id(), Some(id)));
        // Another boot's process of that number, and one that had it before.
        let note = home.note_of(child.id());
        let text = fs::read_to_string(&note).unwrap();
        for other in [text.replace(&boot().unwrap(), "other"), text.replace(&record.note.started.to_string(), "1")] {
            assert_ne!(other, text);
            fs::write(&note, other).unwrap();
            assert!(Record::all(&home).await.is_empty() && !note.exists());
        }
        fs::write(&note, text).unwrap();
        child.kill().unwrap();
        // Not waited for: a zombie has a number, too.
        while record.runs() {
            std::thread::yield_now();
        }
        // Of its sockets nothing is left either.
        fs::write(home.session_socket(child.id()), "").unwrap();
        assert!(Record::all(&home).await.is_empty());
        assert_eq!(fs::read_dir(home.vmms()).unwrap().count(), 0);
        child.wait().unwrap();
    }

    #[tokio::test]
    async fn one_that_is_not_noted_is_found_by_its_socket_and_is_nobodys() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::new(dir.path().into());
        home.create().unwrap();
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let listener = std::os::unix::net::UnixListener::bind(home.control_socket(child.id())).unwrap();
        for note in [None, Some("")] {
            note.iter().for_each(|note| fs::write(home.note_of(child.id()), note).unwrap());
            let found = Record::all(&home).await;
            assert_eq!((found.len(), found[0].pid, found[0].database()), (1, child.id(), None));
        }
        // Another process of that number does not listen there.
        drop(listener);
        assert!(Record::all(&home).await.is_empty());
        assert_eq!(fs::read_dir(home.vmms()).unwrap().count(), 0);
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
