//! A power cut: what had not reached the disk is gone, and every acknowledged row is there all the same.
//!
//! The databases lie on a file system of their own in a file. What is in that file at a moment is what a disk would hold
//! after a power cut then: bytes that were written but not flushed are in the host's memory and not in it. So the file
//! is copied while the VM is held still, and the server goes on from the copy.

#![allow(clippy::unwrap_used)]

mod harness;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dormouse_loadtest::client::Client;
use dormouse_loadtest::rest::{self, Created};
use harness::{Server, signal, succeed, until};

/// An ext4 in a file, mounted.
struct Disk {
    file: PathBuf,
    at: PathBuf,
}

fn run(program: &str, arguments: &[&str], paths: &[&Path]) {
    succeed(
        Command::new(program)
            .args(arguments)
            .args(paths)
            .output()
            .unwrap(),
    );
}

impl Disk {
    fn new(file: PathBuf, at: PathBuf) -> Self {
        std::fs::create_dir_all(&at).unwrap();
        run("truncate", &["--size=512M"], &[&file]);
        run("mkfs.ext4", &["-q", "-F"], &[&file]);
        let disk = Self { file, at };
        disk.mount();
        disk
    }

    /// No commit by the clock: only what somebody flushes gets to the file.
    fn mount(&self) {
        run("mount", &["-o", "loop,commit=300"], &[&self.file, &self.at]);
    }

    fn copy(&self, to: &Path) {
        run("cp", &["--sparse=always"], &[&self.file, to]);
    }

    /// Puts an earlier copy in the disk's place.
    fn become_copy(&self, copy: &Path) {
        // A VM that has just ended may hold files for a moment yet.
        until("the disk can be taken away", || {
            Command::new("umount")
                .arg(&self.at)
                .output()
                .unwrap()
                .status
                .success()
        });
        std::fs::rename(copy, &self.file).unwrap();
        self.mount();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.at).output();
    }
}

/// Inserts row after row until the connection is lost; the number of the last acknowledged one.
fn insert_for_ever(
    mut client: Client,
    acknowledged: Arc<AtomicU64>,
) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        for row in acknowledged.load(Ordering::SeqCst) + 1.. {
            if client
                .query(&format!("insert into ledger values ({row})"))
                .is_err()
            {
                return;
            }
            acknowledged.store(row, Ordering::SeqCst);
        }
    })
}

fn check(client: &mut Client, acknowledged: u64) {
    let rows: u64 = client
        .value("select count(*) from ledger")
        .unwrap()
        .parse()
        .unwrap();
    let last: u64 = client
        .value("select coalesce(max(n), 0) from ledger")
        .unwrap()
        .parse()
        .unwrap();
    assert_eq!(rows, last, "the rows have a gap");
    // The one under way may be there too.
    assert!(
        rows == acknowledged || rows == acknowledged + 1,
        "{rows} rows, {acknowledged} acknowledged"
    );
}

fn database_on_a_disk() -> Option<(Server, Disk, Created)> {
    let able = harness::have_kvm() && harness::have_root("mounting a disk");
    able.then(|| {
        let mut server = Server::prepare();
        let disk = Disk::new(server.home.join("disk"), server.home.join("databases"));
        server.run();
        let created = server.create();
        (server, disk, created)
    })
}

#[test]
fn a_power_cut_loses_no_acknowledged_row() {
    let Some((mut server, disk, created)) = database_on_a_disk() else {
        return;
    };
    let copy = server.home.join("copy");
    let id = created.database.id.clone();
    let acknowledged = Arc::new(AtomicU64::new(0));
    created
        .connect()
        .unwrap()
        .query("create table ledger (n bigint primary key)")
        .unwrap();
    for round in 1..=3 {
        let inserting = insert_for_ever(
            harness::connect_again(&created.target().unwrap()),
            acknowledged.clone(),
        );
        let goal = acknowledged.load(Ordering::SeqCst) + 100 * round;
        until("enough rows are acknowledged", || {
            acknowledged.load(Ordering::SeqCst) >= goal
        });
        for pid in rest::vm_processes(&id) {
            signal(pid, libc::SIGSTOP);
        }
        disk.copy(&copy);
        server.kill();
        harness::kill_vm(&id);
        inserting.join().unwrap();
        disk.become_copy(&copy);
        server.run();
        let mut client = harness::connect_again(&created.target().unwrap());
        check(&mut client, acknowledged.load(Ordering::SeqCst));
        let rows = client
            .value("select count(*) from ledger")
            .unwrap()
            .parse()
            .unwrap();
        acknowledged.store(rows, Ordering::SeqCst);
    }
    server.stop();
}

/// The power goes while the VM is held still; the server is started again on what the disk has.
fn cut(server: &mut Server, disk: &Disk, id: &str, copy: &Path) {
    for pid in rest::vm_processes(id) {
        signal(pid, libc::SIGSTOP);
    }
    disk.copy(copy);
    server.kill();
    harness::kill_vm(id);
    disk.become_copy(copy);
    server.run();
}

#[test]
fn a_power_cut_while_asleep_leaves_a_snapshot_that_fits() {
    let Some((mut server, disk, created)) = database_on_a_disk() else {
        return;
    };
    let copy = server.home.join("copy");
    let id = created.database.id.clone();
    let mut client = created.connect().unwrap();
    client
        .query("create table ledger as select n from generate_series(1, 5000) n")
        .unwrap();
    let started = client.value("select pg_postmaster_start_time()").unwrap();
    server.rest.suspend(&id).unwrap();
    // Asleep and sealed: nothing of it may still be in the host's memory alone.
    disk.copy(&copy);
    server.kill();
    disk.become_copy(&copy);
    server.run();
    let mut client = harness::connect_again(&created.target().unwrap());
    check(&mut client, 5000);
    assert_eq!(
        client.value("select pg_postmaster_start_time()").unwrap(),
        started,
        "it was not a cold start"
    );
    // That snapshot is spent: a cut now, before the next sleep, means a cold start with all rows.
    client.query("insert into ledger values (5001)").unwrap();
    cut(&mut server, &disk, &id, &copy);
    let mut client = harness::connect_again(&created.target().unwrap());
    check(&mut client, 5001);
    assert_ne!(
        client.value("select pg_postmaster_start_time()").unwrap(),
        started,
        "a spent snapshot was used again"
    );
    server.stop();
}

/// A database with a ledger on a disk of its own, whose VMMs die at the step that a file names.
struct Stepped {
    server: Server,
    disk: Disk,
    at: PathBuf,
    created: Created,
}

impl Stepped {
    /// `None` where it cannot be had.
    fn new() -> Option<Self> {
        if !harness::have_kvm() || !harness::have_root("mounting a disk") {
            return None;
        }
        let mut server = Server::prepare();
        let disk = Disk::new(server.home.join("disk"), server.home.join("databases"));
        let at = server.home.join("crash-at");
        server.use_testing_vmm(&format!("DORMOUSE_CRASH_AT=$(cat {} 2> /dev/null)\nexport DORMOUSE_CRASH_AT", at.display()));
        server.run();
        let created = server.create();
        created.connect().unwrap().query("create table ledger (n bigint primary key)").unwrap();
        Some(Self { server, disk, at, created })
    }
}

fn started(client: &mut Client) -> String {
    client.value("select pg_postmaster_start_time()").unwrap()
}

/// What a cut at a named step of suspend or wake leaves on the disk: the VMM dies there, and with it what nobody flushed.
#[test]
fn a_power_cut_at_each_step_of_the_snapshot_loses_no_row_and_uses_none_twice() {
    let Some(Stepped { mut server, disk, at, created }) = Stepped::new() else { return };
    let id = created.database.id.clone();
    let target = created.target().unwrap();
    let mut rows = 0;
    // `Some(true)`: there is a snapshot afterwards, and it is used. `None`: the mark is made beside the restore.
    for (step, survives) in [
        // Whole in its file, without its name.
        ("suspend-synced", Some(false)),
        // Its name is in the host's memory alone.
        ("suspend-renamed", Some(false)),
        ("suspend-committed", Some(true)),
        ("restore-loaded", Some(true)),
        // The guest has only read, if it has run at all, and that the snapshot is spent is in the host's memory alone.
        ("spent-renamed", Some(true)),
        ("spent", Some(false)),
        ("restore-entered", None),
    ] {
        // Awake, and after a cold start, whose time tells whether there is another.
        let mut client = harness::connect_again(&target);
        rows += 1;
        client.query(&format!("insert into ledger values ({rows})")).unwrap();
        let before = started(&mut client);
        drop(client);
        server.rest.suspend(&id).unwrap();
        std::fs::write(&at, step).unwrap();
        if step.starts_with("suspend") {
            let mut client = harness::connect_again(&target);
            rows += 1;
            client.query(&format!("insert into ledger values ({rows})")).unwrap();
            let _ = server.rest.call("POST", &format!("/v1/databases/{id}/suspend"), "").unwrap();
        } else if let Ok(mut client) = Client::connect(&target) {
            let _ = client.query("select count(*) from ledger");
        }
        until("the VM is gone", || rest::vm_processes(&id).is_empty());
        let copy = server.home.join("copy");
        disk.copy(&copy);
        server.kill();
        disk.become_copy(&copy);
        std::fs::remove_file(&at).unwrap();
        server.run();
        let mut client = harness::connect_again(&target);
        check(&mut client, rows);
        let cold = started(&mut client) != before;
        if let Some(survives) = survives {
            assert_eq!(cold, !survives, "{step}");
        }
        // It changes something, so the snapshot, if there was one, is spent for good: a cut now must not bring it back.
        rows += 1;
        client.query(&format!("insert into ledger values ({rows})")).unwrap();
        let now = started(&mut client);
        cut(&mut server, &disk, &id, &copy);
        let mut client = harness::connect_again(&target);
        check(&mut client, rows);
        assert_ne!(started(&mut client), now, "{step}: a spent snapshot was used again");
    }
    server.stop();
}

/// The same of a packing, and of the wake from what was packed.
#[test]
fn a_power_cut_at_each_step_of_packing_loses_no_row_and_no_session_s_memory() {
    let Some(Stepped { mut server, disk, at, created }) = Stepped::new() else { return };
    let id = created.database.id.clone();
    let target = created.target().unwrap();
    let packed = server.home.join("databases").join(&id).join("packed");
    let mut rows = 0;
    // Whether there is a packed file on the disk then, and whether the wake from what is there goes on from the memory.
    for (step, is_packed, survives) in [
        // Under the other name, and not flushed.
        ("pack-written", Some(false), true),
        // Its name is in the host's memory alone, or not.
        ("pack-renamed", None, true),
        // The name was flushed; that snapshot and files are gone may not have been.
        ("pack-snapshot-gone", Some(true), true),
        ("pack-layer-gone", Some(true), true),
        ("unpack-begun", Some(true), true),
        ("unpack-files", Some(true), true),
        ("unpack-synced", Some(true), true),
        // It is spent, and all it held is flushed.
        ("unpack-spent", Some(false), false),
    ] {
        let mut client = harness::connect_again(&target);
        rows += 1;
        client.query(&format!("insert into ledger values ({rows})")).unwrap();
        let before = started(&mut client);
        drop(client);
        server.rest.suspend(&id).unwrap();
        if step.starts_with("unpack") {
            server.rest.pack(&id).unwrap();
        }
        std::fs::write(&at, step).unwrap();
        if step.starts_with("unpack") {
            // A write, so that what is packed is spent.
            let wrote = Client::connect(&target).and_then(|mut client| client.query("create table spend (); drop table spend"));
            assert!(wrote.is_err(), "{step}: the VM was not killed");
        } else {
            assert!(server.rest.pack(&id).is_err(), "{step}: the process that packs was not killed");
        }
        until("the VM is gone", || rest::vm_processes(&id).is_empty());
        let copy = server.home.join("copy");
        disk.copy(&copy);
        server.kill();
        disk.become_copy(&copy);
        std::fs::remove_file(&at).unwrap();
        if let Some(is_packed) = is_packed {
            assert_eq!(packed.exists(), is_packed, "{step}");
        }
        server.run();
        let mut client = harness::connect_again(&target);
        check(&mut client, rows);
        assert_eq!(started(&mut client) == before, survives, "{step}");
        // What it went on from is spent with the first change: a cut now must not bring it back.
        rows += 1;
        client.query(&format!("insert into ledger values ({rows})")).unwrap();
        let now = started(&mut client);
        cut(&mut server, &disk, &id, &copy);
        let mut client = harness::connect_again(&target);
        check(&mut client, rows);
        assert_ne!(started(&mut client), now, "{step}: what was spent was used again");
    }
    server.stop();
}
