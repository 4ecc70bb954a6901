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
    for part in ["abi", "builder", "kernel"] {
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
fn databases_of_the_old_image_open_after_a_rebuild_sleeping_and_cold() {
    if !harness::have_kvm() {
        return;
    }
    let mut server = Server::start();
    let (sleeping, cold) = (server.create(), server.create());
    for (database, n) in [(&sleeping, 1), (&cold, 2)] {
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
    for database in [&sleeping, &cold] {
        server.rest.suspend(&database.database.id).unwrap();
        rest::remove_snapshot(&server.home, &database.database.id).unwrap();
    }
    assert_eq!(succeed(server.psql(&sleeping, "select n from stays")), "1");
    for database in [&sleeping, &cold] {
        server.rest.delete(&database.database.id).unwrap();
    }
    harness::until("the deleted are gone", || {
        let listed = server.rest.call("GET", "/v1/databases", "").unwrap();
        !harness::text(&listed.body).contains(&sleeping.database.id)
            && !harness::text(&listed.body).contains(&cold.database.id)
    });
    collect();
    assert!(!server.home.join("images").join(&old).exists());
    assert_eq!(succeed(server.psql(&fresh, "select 1")), "1");
}
