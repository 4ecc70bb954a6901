//! The plan's storage runs out: an error that says so, room again for who deletes, and a server that lives on.

#![allow(clippy::unwrap_used)]

mod harness;

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use dormouse_loadtest::client::Client;

const BOOTED: &str = "select pg_postmaster_start_time()";
/// The least that a plan can have.
const LEAST: [(&str, u64); 1] = [("DORMOUSE_PLANS_FREE_STORAGE_MIB", 128)];

/// Inserts until the plan's storage is full.
fn fill(client: &mut Client) {
    for _ in 0..100 {
        let more = "insert into big select n, repeat('x', 900) from generate_series(1, 5000) n";
        match client.query(more) {
            Ok(_) => {}
            Err(error) => {
                assert_eq!(error.code(), Some("53100"), "{error}");
                assert!(
                    error.to_string().contains("No space left on device"),
                    "{error}"
                );
                return;
            }
        }
    }
    panic!("500 MB went into 128");
}

#[test]
fn a_full_plan_is_said_and_deleting_makes_room() {
    let Some((server, created, mut client)) = harness::session_with(&LEAST) else {
        return;
    };
    let booted = client.value(BOOTED).unwrap();
    client
        .query("create table kept as select n from generate_series(1, 1000) n; create table big (n int, filler text)")
        .unwrap();
    for room in [
        "truncate big",
        "drop table big; create table big (n int, filler text)",
    ] {
        fill(&mut client);
        // A reader meets nothing of it, and neither does who asks for little.
        let mut other = created.connect().unwrap();
        assert_eq!(other.value("select count(*) from kept").unwrap(), "1000");
        let rows: u64 = other
            .value("select count(*) from big")
            .unwrap()
            .parse()
            .unwrap();
        println!("{rows} rows went in");
        assert!(rows >= 5_000, "{rows}");
        for sql in room.split(';') {
            client
                .query(sql)
                .unwrap_or_else(|error| panic!("{sql}: {error}\n{}", server.logs()));
        }
        client
            .query("insert into big select n, repeat('y', 900) from generate_series(1, 5000) n")
            .unwrap_or_else(|error| panic!("after {room}: {error}"));
        client.query("truncate big").unwrap();
    }
    assert_eq!(
        client.value(BOOTED).unwrap(),
        booted,
        "the server never went down"
    );
    // And it sleeps and wakes as before.
    fill(&mut client);
    server.rest.suspend(&created.database.id).unwrap();
    assert_eq!(client.value("select count(*) from kept").unwrap(), "1000");
}

#[test]
fn a_full_plan_survives_clients_that_go_on_writing() {
    let Some((server, created, mut client)) = harness::session_with(&LEAST) else {
        return;
    };
    let booted = client.value(BOOTED).unwrap();
    client
        .query(
            "create table big (n int, filler text);
             create table small as select n, 0 as v, repeat('z', 200) filler from generate_series(1, 20000) n;
             alter table small add primary key (n)",
        )
        .unwrap();
    fill(&mut client);
    let target = created.target().unwrap();
    let over = AtomicBool::new(false);
    let refusals: usize = thread::scope(|scope| {
        let writers: Vec<_> = (0..4)
            .map(|writer| {
                let (target, over) = (&target, &over);
                scope.spawn(move || {
                    let mut client = Client::connect(target).unwrap();
                    let mut refusals = 0;
                    while !over.load(Ordering::Relaxed) {
                        for sql in [
                            format!("update small set v = v + 1 where n % 4 = {writer}"),
                            "insert into big select n, repeat('x', 900) from generate_series(1, 2000) n".to_owned(),
                        ] {
                            if let Err(error) = client.query(&sql) {
                                assert_eq!(error.code(), Some("53100"), "{sql}: {error}");
                                refusals += 1;
                            }
                        }
                    }
                    refusals
                })
            })
            .collect();
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(20) {
            thread::sleep(Duration::from_millis(100));
            if writers.iter().any(|writer| writer.is_finished()) {
                break;
            }
        }
        over.store(true, Ordering::Relaxed);
        writers
            .into_iter()
            .map(|writer| writer.join().unwrap())
            .sum()
    });
    println!("{refusals} statements were refused");
    assert!(refusals > 0);
    assert_eq!(client.value(BOOTED).unwrap(), booted, "{}", server.logs());
    client.query("truncate big").unwrap();
    client.query("vacuum full small").unwrap();
    assert_eq!(client.value("select count(*) from small").unwrap(), "20000");
}
