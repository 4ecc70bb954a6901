//! What a server notes of its VMMs for the next one: `run/vmms/VMM`, beside their sockets, in a folder that none of them can reach.
//!
//! Of what a process says of itself nothing counts, such as its command line: it may have been taken over by its guest. One that
//! could not be noted, such as on a full disk, is found by its socket, and is nobody's.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use dormouse_vmm::sockets;
use serde::{Deserialize, Serialize};

use super::layout::Home;
use super::pool::PLACEHOLDER;
use super::socket;
use crate::identity::DatabaseId;

/// What stands in the file.
#[derive(Debug, Deserialize, Serialize)]
struct Note {
    /// The host's boot: within one a VMM's name is its own.
    boot: String,
    /// Whose it is; of one that stands by, what is no id, and as long: to write over it takes no more room on a disk that may be
    /// full by then.
    database: String,
}

/// A VMM's process, as noted.
#[derive(Debug)]
pub struct Record {
    pub pid: u32,
    started: u64,
    home: Home,
    note: Note,
}

fn boot() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// The number and the start of a process by its name.
fn parse(name: &str) -> Option<(u32, u64)> {
    let (pid, started) = name.split_once('-')?;
    Some((pid.parse().ok()?, started.parse().ok()?))
}

impl Record {
    /// Of a process that runs and is nobody's yet. Nothing is written.
    pub fn new(home: &Home, pid: u32) -> io::Result<Record> {
        Record::of(home, (pid, sockets::started(pid)?.ok_or(io::ErrorKind::NotFound)?))
    }

    fn of(home: &Home, (pid, started): (u32, u64)) -> io::Result<Record> {
        let note = Note { boot: boot()?, database: PLACEHOLDER.to_owned() };
        Ok(Record { pid, started, home: home.clone(), note })
    }

    fn name(&self) -> String {
        sockets::name(self.pid, self.started)
    }

    /// Where it takes requests.
    pub fn control_socket(&self) -> PathBuf {
        self.home.control_socket(&self.name())
    }

    /// Where it takes sessions.
    pub fn session_socket(&self) -> PathBuf {
        self.home.session_socket(&self.name())
    }

    /// Writes it down.
    pub fn write(&self) -> io::Result<()> {
        // Over what is there, if it is: that takes no more room.
        let file = File::options().write(true).create(true).truncate(false).open(self.home.note_of(&self.name()))?;
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

    /// All that run, of this home. Of those that have ended nothing is left.
    pub async fn all(home: &Home) -> Vec<Record> {
        let entries = fs::read_dir(home.vmms()).into_iter().flatten().flatten();
        let stem = |entry: fs::DirEntry| Some(entry.file_name().to_str()?.split('.').next()?.to_owned());
        let names: BTreeSet<String> = entries.filter_map(stem).collect();
        let mut running = Vec::new();
        for (name, process) in names.iter().filter_map(|name| Some((name, parse(name)?))) {
            let Ok(mut record) = Record::of(home, process) else { continue };
            let note = fs::read(home.note_of(name)).ok().and_then(|note| serde_json::from_slice::<Note>(&note).ok());
            let is_of_this_boot = match note {
                Some(note) => {
                    let is_of_this_boot = note.boot == record.note.boot;
                    record.note = note;
                    is_of_this_boot
                }
                // One that could not be noted: whoever else has that number and start does not listen there.
                None => socket::connect(&home.control_socket(name)).await.is_ok(),
            };
            if !is_of_this_boot || record.has_ended() {
                remove_files(home, name);
            } else if record.runs() {
                running.push(record);
            }
        }
        running
    }

    /// Whether it is still that process which has the number.
    pub fn runs(&self) -> bool {
        sockets::started(self.pid).is_ok_and(|started| started == Some(self.started))
    }

    /// Whether it is no longer, for certain.
    pub fn has_ended(&self) -> bool {
        sockets::started(self.pid).is_ok_and(|started| started != Some(self.started))
    }

    /// Removes what is left of it if it has ended.
    pub fn forget(self) {
        if self.has_ended() {
            self.remove();
        }
    }

    /// Removes what there is of it, on a thread of its own where there is a runtime: a file system may have whoever removes something wait.
    pub fn remove(self) {
        let remove = move || remove_files(&self.home, &self.name());
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(remove)),
            Err(_) => remove(),
        }
    }
}

/// Of a process that does not run, or is told to end. What is left is removed at the next start.
fn remove_files(home: &Home, name: &str) {
    for path in [home.control_socket(name), home.session_socket(name), home.note_of(name)] {
        let _ = fs::remove_file(path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    /// A home, and a process that sleeps.
    fn home_and_process() -> (tempfile::TempDir, Home, std::process::Child) {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::new(dir.path().into());
        home.create().unwrap();
        let child = Command::new("sleep").arg("60").spawn().unwrap();
        (dir, home, child)
    }

    #[tokio::test]
    async fn a_process_is_found_as_long_as_it_runs_whatever_it_says_of_itself() {
        let (_dir, home, mut child) = home_and_process();
        let mut record = Record::new(&home, child.id()).unwrap();
        assert!(Record::all(&home).await.is_empty());
        record.write().unwrap();
        assert_eq!(Record::all(&home).await[0].database(), None);
        let id = DatabaseId::random().unwrap();
        record.claim(&id).unwrap();
        let found = Record::all(&home).await;
        assert_eq!((found.len(), found[0].pid, found[0].database()), (1, child.id(), Some(id)));
        // Another boot's process of that name, and one that had the number before.
        let note = home.note_of(&record.name());
        let text = fs::read_to_string(&note).unwrap();
        let earlier = home.note_of(&sockets::name(child.id(), 1));
        fs::write(&earlier, &text).unwrap();
        assert!(Record::all(&home).await.len() == 1 && !earlier.exists());
        fs::write(&note, text.replace(&boot().unwrap(), "other")).unwrap();
        assert!(Record::all(&home).await.is_empty() && !note.exists());
        fs::write(&note, text).unwrap();
        child.kill().unwrap();
        // Not waited for: a zombie has a number, too.
        while record.runs() {
            std::thread::yield_now();
        }
        // Of its sockets nothing is left either.
        fs::write(record.session_socket(), "").unwrap();
        assert!(Record::all(&home).await.is_empty());
        assert_eq!(fs::read_dir(home.vmms()).unwrap().count(), 0);
        child.wait().unwrap();
    }

    #[tokio::test]
    async fn one_that_is_not_noted_is_found_by_its_socket_and_is_nobodys() {
        let (_dir, home, mut child) = home_and_process();
        let record = Record::new(&home, child.id()).unwrap();
        let listener = std::os::unix::net::UnixListener::bind(record.control_socket()).unwrap();
        for note in [None, Some("")] {
            note.iter().for_each(|note| fs::write(home.note_of(&record.name()), note).unwrap());
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
