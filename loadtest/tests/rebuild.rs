//! A rebuild adds an image and never changes or removes one that a database still needs.

#![allow(clippy::unwrap_used)]

mod harness;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use dormouse_loadtest::rest;
use harness::{Server, succeed, top};

/// The source of images with one setting of the recipe changed, building in a cache of its own that starts with
/// what has been built already.
fn changed_source(home: &Path) -> PathBuf {
    let (original, source) = (top().join("images"), home.join("changed"));
    fs::create_dir(&source).unwrap();
    for part in ["abi", "builder", "kernel", "segment"] {
        symlink(original.join(part), source.join(part)).unwrap();
    }
    for (part, option) in [("postgres", "-a"), (".build", "-al")] {
        let copied = Command::new("cp")
            .arg(option)
            .arg(original.join(part))
            .arg(&source)
            .status();
        assert!(copied.unwrap().success());
    }
    // A copy of its own, or the cache's lock would be shared with the real one.
    let lock = source.join(".build/lock");
    if lock.exists() {
        fs::remove_file(lock).unwrap();
    }
    let settings = source.join("postgres/postgresql.conf");
    let mut text = fs::read_to_string(&settings).unwrap();
    text.push_str("\nlog_min_duration_statement = 54321\n");
    fs::write(settings, text).unwrap();
    source
}

#[test]
fn databases_of_the_old_image_open_after_a_rebuild_sleeping_and_cold_and_move_to_the_new_one() {
    if !harness::have_kvm() {
        return;
    }
    let mut server = Server::start();
    let (sleeping, cold, held_database) = (server.create(), server.create(), server.create());
    for (database, n) in [(&sleeping, 1), (&cold, 2), (&held_database, 3)] {
        succeed(server.psql(database, &format!("create table stays as select {n} as n")));
        server.rest.suspend(&database.database.id).unwrap();
    }
    rest::remove_snapshot(&server.home, &cold.database.id).unwrap();
    let current = server.home.join("images/current-17");
    let old = fs::read_link(&current).unwrap();
    server.stop();

    let source = changed_source(&server.home);
    let mut build = server.command();
    build.args(["image", "build", "--source"]).arg(&source);
    succeed(build.output().unwrap());
    let new = fs::read_link(&current).unwrap();
    assert_ne!(new, old, "a changed recipe gave the same image");

    server.run();
    let fresh = server.create();
    let setting = "show log_min_duration_statement";
    assert_eq!(succeed(server.psql(&fresh, setting)), "54321ms");
    for (database, n) in [(&sleeping, "1"), (&cold, "2")] {
        assert_eq!(succeed(server.psql(database, "select n from stays")), n);
        assert_eq!(
            succeed(server.psql(database, setting)),
            "-1",
            "the old database has the new template"
        );
    }

    // Nothing that is needed is collected; what no longer is, is.
    let collect = || succeed(server.command().args(["image", "gc"]).output().unwrap());
    collect();
    assert!(server.home.join("images").join(&old).exists());
    // What sleeps is moved without being woken; who has a session stays until its end is asked for.
    let image = |words: &[&str]| {
        let mut command = server.command();
        command.arg("image").args(words);
        succeed(command.output().unwrap())
    };
    let mut held = held_database.connect().unwrap();
    held.query("create temporary table mine as select 42 as answer").unwrap();
    for database in [&sleeping, &held_database] {
        server.rest.suspend(&database.database.id).unwrap();
    }
    harness::until("both are counted asleep, and the one that started cold has moved", || {
        image(&["status"]).starts_with("2 of 4 databases are on an older image: 2 asleep")
    });
    assert!(image(&["adopt"]).starts_with("1 moved to the newest image, 1 left"));
    for database in [&sleeping, &held_database] {
        assert!(rest::vm_processes(&database.database.id).is_empty(), "woken to be moved");
    }
    assert_eq!(held.value("select answer from mine").unwrap(), "42");
    assert!(image(&["adopt", "--end-sessions"]).starts_with("1 moved to the newest image, 0 left"));
    assert_eq!(held.query("select 1").unwrap_err().code(), Some("57P01"));
    assert!(image(&["status"]).starts_with("0 of 4 databases"));

    // The old image is needed no more, but its template is, by the layers over it.
    collect();
    assert!(!server.home.join("images").join(&old).exists());
    for (database, n) in [(&sleeping, "1"), (&cold, "2"), (&held_database, "3")] {
        assert_eq!(succeed(server.psql(database, "select n from stays")), n);
        assert_eq!(succeed(server.psql(database, setting)), "-1", "the old database has the new template");
        let shown = server.rest.call("GET", &format!("/v1/databases/{}", database.database.id), "").unwrap();
        assert!(harness::text(&shown.body).contains(new.to_str().unwrap()));
    }
    let templates = || fs::read_dir(server.home.join("templates")).unwrap().count();
    let before = templates();
    for database in [&sleeping, &cold, &held_database] {
        server.rest.delete(&database.database.id).unwrap();
    }
    harness::until("the deleted are gone", || {
        let listed = server.rest.call("GET", "/v1/databases", "").unwrap();
        [&sleeping, &cold, &held_database].iter().all(|one| !harness::text(&listed.body).contains(&one.database.id))
    });
    collect();
    assert_eq!(templates(), before - 1, "the old template is needed no more");
    assert_eq!(succeed(server.psql(&fresh, "select 1")), "1");
}
