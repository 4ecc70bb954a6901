//! PostgreSQL 18, of which an image is built beside 17's (`make image-18`).

#![allow(clippy::unwrap_used)]

mod harness;

use harness::{Server, succeed};

#[test]
fn a_database_of_postgresql_18_answers_sleeps_wakes_and_starts_cold() {
    if !harness::have_kvm() {
        return;
    }
    let server = Server::start();
    assert!(
        server.home.join("images/current-18").exists(),
        "there is no image of PostgreSQL 18: run `make image-18` first"
    );
    let of_18 = server.rest.create_version("eighteen", 18).unwrap();
    let of_17 = server.create();
    let major = "select current_setting('server_version_num')::int / 10000";
    assert_eq!(succeed(server.psql(&of_18, major)), "18");
    assert_eq!(succeed(server.psql(&of_17, major)), "17");

    succeed(server.psql(
        &of_18,
        "create extension hstore; create table kept as select uuidv7() as id, 'a=>1'::hstore as h
         from generate_series(1, 1000)",
    ));
    let count = "select count(distinct id) || ' ' || sum((h -> 'a')::int) from kept";
    for rest in ["asleep", "without a snapshot"] {
        server.rest.suspend(&of_18.database.id).unwrap();
        if rest != "asleep" {
            dormouse_loadtest::rest::remove_snapshot(&server.home, &of_18.database.id).unwrap();
        }
        assert_eq!(succeed(server.psql(&of_18, count)), "1000 1000", "{rest}");
    }
    // As PostgreSQL 18 makes them unless told otherwise.
    assert_eq!(succeed(server.psql(&of_18, "show data_checksums")), "on");
}
