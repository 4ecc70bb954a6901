//! Many databases at once: clones that must not be twins, a storm of wakes, sessions held over many sleeps. `make test`
//! takes numbers that fit its time, `make test-heavy` those that a server must bear.

#![allow(clippy::unwrap_used)]

mod harness;

use std::collections::HashSet;
use std::io::Write;
use std::process::Stdio;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

use dormouse_loadtest::client::Client;
use dormouse_loadtest::rest::{self, Created};
use harness::{Server, programs, size, until};

/// Threads that create and connect: more than cores, so that wakes meet.
const WORKERS: usize = 8;

/// Calls `each` with the numbers below `count`, on several threads; what it gave, in any order.
fn together<T: Send>(count: usize, each: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        loop {
            match next.fetch_add(1, Ordering::Relaxed) {
                number if number < count => done.push(each(number)),
                _ => return done,
            }
        }
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    })
}

fn server(settings: &[(&'static str, u64)]) -> Option<Server> {
    let many = ("DORMOUSE_PLANS_FREE_DATABASES", 1 << 20);
    harness::have_kvm().then(|| Server::start_with(&[&[many], settings].concat()))
}

fn since_1970() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

/// Each is a copy of one golden snapshot. What was drawn or read from a clock before the copy would be the same in all.
#[test]
fn clones_are_not_twins() {
    let Some(server) = server(&[]) else { return };
    let count = size(60, 1000) as usize;
    const DRAW: &str = "select gen_random_uuid(), random(), extract(epoch from now())";
    let drawn = together(count, |_| {
        let created = server.create();
        let began = since_1970();
        // The first query of the clone's life; and one of a session that was forked after it.
        let drawn = [(), ()].map(|()| {
            let row = created.connect().unwrap().query(DRAW).unwrap().remove(0);
            let [uuid, random, clock] = <[_; 3]>::try_from(row).unwrap().map(Option::unwrap);
            let clock: f64 = clock.parse().unwrap();
            assert!(clock > began - 1.0 && clock < since_1970() + 1.0, "a clone's clock says {clock}, not {began}");
            [uuid, random]
        });
        assert_eq!(server.rest.wake_trace(&created.database.id).unwrap().kind, "clone");
        drawn
    });
    for (column, what) in ["gen_random_uuid()", "random()"].into_iter().enumerate() {
        let different: HashSet<_> = drawn.iter().flatten().map(|session| &session[column]).collect();
        assert_eq!(different.len(), 2 * count, "{what}: some sessions have drawn the same");
    }
}

/// A database with a table, its session left open, asleep.
fn asleep_with_a_session(server: &Server, number: usize) -> (Created, Client) {
    let created = server.create();
    let mut client = created.connect().unwrap();
    client.query(&format!("create table kept as select {number} as number")).unwrap();
    server.rest.suspend(&created.database.id).unwrap();
    (created, client)
}

/// Spoken to within the same moment, all answer; those that have to wait for their turn are not refused.
#[test]
fn a_storm_of_wakes_is_answered() {
    let Some(server) = server(&[("DORMOUSE_HOST_WAKES_AT_ONCE", 4)]) else { return };
    let count = size(40, 1000) as usize;
    let sleeping = together(count, |number| (number, asleep_with_a_session(&server, number)));
    let ids: Vec<_> = sleeping.iter().map(|(_, (created, _))| created.database.id.clone()).collect();
    for id in &ids {
        assert!(rest::vm_processes(id).is_empty());
    }
    // All queries are sent before any answer is read.
    let mut asked: Vec<_> = sleeping.into_iter().map(|(number, (_, client))| (number, client)).collect();
    for (_, client) in &mut asked {
        client.send("select number from kept").unwrap();
    }
    for (number, client) in &mut asked {
        assert_eq!(client.finish().unwrap(), [[Some(number.to_string())]]);
    }
    // And it is over again: each falls asleep by itself.
    for id in &ids {
        server.rest.wait_asleep(id).unwrap();
    }
}

/// What a session can have, each in sessions of its own, over many sleeps.
#[test]
fn held_sessions_outlast_their_databases_sleeps() {
    let Some(server) = server(&[]) else { return };
    let (databases, cycles) = (size(6, 200) as usize, size(5, 50));
    let held = together(databases, |_| {
        let created = server.create();
        let sessions: Vec<Client> = (0..5).map(|_| created.connect().unwrap()).collect();
        let Ok([mut table, mut statement, mut listener, mut transaction, mut lock]) = <[Client; 5]>::try_from(sessions)
        else {
            unreachable!("there are five")
        };
        table.query("create table counted (n int); create temporary table kept (n int)").unwrap();
        statement.query("prepare twice as select 2 * $1::int; set application_name = 'held'").unwrap();
        listener.query("listen news").unwrap();
        transaction.query("begin").unwrap();
        lock.query("select pg_advisory_lock(7)").unwrap();
        (created, table, statement, listener, transaction, lock)
    });
    let held: Vec<_> = held.into_iter().map(Mutex::new).collect();
    for cycle in 1..=cycles {
        together(databases, |number| {
            let mut one = held[number].lock().unwrap();
            let (created, table, statement, listener, transaction, lock) = &mut *one;
            let id = &created.database.id;
            transaction.query(&format!("insert into counted values ({cycle})")).unwrap();
            table.query(&format!("insert into kept values ({cycle})")).unwrap();
            server.rest.suspend(id).unwrap();
            assert_eq!(statement.value(&format!("execute twice({cycle})")).unwrap(), (2 * cycle).to_string());
            assert_eq!(statement.value("show application_name").unwrap(), "held");
            assert_eq!(table.value("select count(*) from kept").unwrap(), cycle.to_string());
            assert_eq!(transaction.value("select count(*) from counted").unwrap(), cycle.to_string());
            // Seen by nobody else yet.
            assert_eq!(table.value("select count(*) from counted").unwrap(), "0");
            assert_eq!(table.value("select pg_try_advisory_lock(7)").unwrap(), "f");
            assert_eq!(lock.value("select count(*) from pg_locks where locktype = 'advisory'").unwrap(), "1");
            assert_eq!(listener.value("select pg_listening_channels()").unwrap(), "news");
        });
    }
    together(databases, |number| {
        let mut one = held[number].lock().unwrap();
        let (_, table, _, _, transaction, _) = &mut *one;
        transaction.query("commit").unwrap();
        assert_eq!(table.value("select count(*) from counted").unwrap(), cycles.to_string());
    });
}

/// A COPY that is under way is no idle session, however long its client says nothing.
#[test]
fn a_copy_under_way_is_waited_for() {
    let Some((server, created, mut control)) = harness::session_with(&[("DORMOUSE_HOST_SUSPEND_WAIT_MS", 300)]) else {
        return;
    };
    let id = &created.database.id;
    control.query("create table copied (n int)").unwrap();
    let mut copy = programs().command("psql");
    copy.args(["-X", "-q", "-c", "copy copied from stdin", &created.connection_uri]).env("PGSSLMODE", "disable");
    let mut copy = copy.stdin(Stdio::piped()).spawn().unwrap();
    let mut rows = copy.stdin.take().unwrap();
    rows.write_all(b"1\n").unwrap();
    let begun = "select count(*) from pg_stat_progress_copy";
    until("the COPY has begun", || control.value(begun).unwrap() == "1");
    let refused = server.rest.suspend(id).unwrap_err().to_string();
    assert!(refused.contains("still running"), "{refused}");
    rows.write_all(b"2\n").unwrap();
    drop(rows);
    assert!(copy.wait().unwrap().success());
    server.rest.suspend(id).unwrap();
    assert_eq!(control.value("select sum(n) from copied").unwrap(), "3");
}
