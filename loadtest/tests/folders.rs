//! Folders that are read while names go from them: what Postgres does when it drops a database, and when it starts
//! after a crash.

#![allow(clippy::unwrap_used)]

mod harness;

use dormouse_loadtest::{client::Client, rest};

#[test]
fn a_database_with_unlogged_tables_starts_after_a_crash() {
    let Some((_server, created)) = harness::database() else {
        return;
    };
    let id = created.database.id.as_str();
    let mut client = created.connect().unwrap();
    client
        .query(
            "do $$ begin for i in 1..60 loop \
                execute format('create unlogged table u%s as select 1 as n', i); \
            end loop; end $$",
        )
        .unwrap();
    client
        .query("create table logged as select 60 as n")
        .unwrap();
    harness::kill_vm(id);
    let mut client = harness::connect_again(&created.target().unwrap());
    assert_eq!(client.value("select n from logged").unwrap(), "60");
    for i in [1, 30, 60] {
        let left = client.value(&format!("select count(*) from u{i}")).unwrap();
        assert_eq!(left, "0", "an unlogged table is emptied by a crash");
    }
}

#[test]
fn a_dropped_database_leaves_no_file() {
    let Some((server, created)) = harness::database() else {
        return;
    };
    let id = created.database.id.as_str();
    let mut client: Client = created.connect().unwrap();
    client.query("create database other").unwrap();
    let oid = client
        .value("select oid from pg_database where datname = 'other'")
        .unwrap();
    let files = |client: &mut Client| {
        client.value(&format!(
            "select count(*) from pg_database d where d.oid = {oid} and pg_database_size(d.oid) > 0"
        ))
    };
    assert_eq!(files(&mut client).unwrap(), "1");
    client.query("drop database other").unwrap();
    server.rest.suspend(id).unwrap();
    let log = std::fs::read_to_string(server.home.join("databases").join(id).join("console.log"))
        .unwrap();
    assert!(!log.contains("could not remove"), "{log}");
    assert!(!log.contains("some useless files"), "{log}");
    assert_eq!(rest::vm_processes(id), Vec::<u32>::new());
}
