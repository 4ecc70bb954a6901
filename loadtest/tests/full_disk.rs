//! The disk under the databases runs full: it is said, nothing is lost, and room makes all well again.

#![allow(clippy::unwrap_used)]

mod harness;

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use harness::{Server, succeed, text};

/// A small file system at a folder, gone when dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: &Path) -> Self {
        std::fs::create_dir_all(at).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=48m,mode=0700", "tmpfs"]).arg(at);
        succeed(mount.output().unwrap());
        Self(at.to_owned())
    }

    /// Takes all the room that is left; removing the file gives it back.
    fn fill(&self) -> PathBuf {
        let path = self.0.join("filler");
        let mut file = File::create(&path).unwrap();
        for size in [1 << 20, 4096] {
            while file.write_all(&vec![1; size]).is_ok() {}
        }
        path
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // A VM that is still ending may have files open: the mount goes with the last of them.
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).output();
    }
}

#[test]
fn a_full_disk_is_said_and_loses_nothing() {
    if !harness::have_kvm() || !harness::have_root("mounting a small disk") {
        return;
    }
    let mut server = Server::prepare();
    let disk = SmallDisk::mount(&server.home.join("databases"));
    server.run();
    let created = server.create();
    let id = created.database.id.as_str();
    let mut client = created.connect().unwrap();
    client
        .query("create table kept as select n from generate_series(1, 1000) n")
        .unwrap();
    client.query("create temporary table mine as select 7 as n").unwrap();

    let filler = disk.fill();
    let suspend = || server.rest.call("POST", &format!("/v1/databases/{id}/suspend"), "").unwrap();
    let refused = suspend();
    assert_eq!(refused.status, 507, "{}", text(&refused.body));
    assert!(text(&refused.body).contains("No space left"), "{}", text(&refused.body));
    // The guest lives on, and so does the session.
    assert_eq!(client.value("select n from mine").unwrap(), "7");

    std::fs::remove_file(filler).unwrap();
    server.rest.suspend(id).unwrap();
    assert_eq!(client.value("select n from mine").unwrap(), "7");
    assert_eq!(client.value("select count(*) from kept").unwrap(), "1000");
    drop(client);
    server.stop();
}

/// It was answered 503, as if trying again would help.
#[test]
fn a_first_wake_that_a_full_disk_prevents_says_so_and_works_once_there_is_room() {
    if !harness::have_kvm() || !harness::have_root("mounting a small disk") {
        return;
    }
    let mut server = Server::prepare();
    // The metadata's disk alone. SQLite keeps its other files where the name leads.
    let disk = SmallDisk::mount(&server.home.join("small"));
    std::os::unix::fs::symlink(disk.0.join("dormouse.db"), server.home.join("dormouse.db")).unwrap();
    server.run();
    let created = server.create();
    let filler = disk.fill();
    let resume = || server.rest.call("POST", &format!("/v1/databases/{}/resume", created.database.id), "").unwrap();
    let refused = resume();
    let body = text(&refused.body);
    assert_eq!(refused.status, 507, "{body}");
    assert!(body.contains("urn:dormouse:problem:disk-full") && body.contains("free some space"), "{body}");
    let create = server.rest.call("POST", "/v1/databases", r#"{"name":"another"}"#).unwrap();
    assert_eq!(create.status, 507, "{}", text(&create.body));
    std::fs::remove_file(filler).unwrap();
    let woken = resume();
    assert_eq!(woken.status, 200, "{}", text(&woken.body));
    created.connect().unwrap().query("create table made ()").unwrap();
    server.stop();
}
