//! It sleeps and it wakes: by itself when unused, on request, and with the session as it was.

#![allow(clippy::unwrap_used)]

mod harness;

use std::fs;
use std::time::{Duration, Instant};

use dormouse_loadtest::client::Client;
use dormouse_loadtest::rest;
use dormouse_loadtest::wake::START_TIME;
use harness::{driver, succeed};

#[test]
fn an_unused_database_falls_asleep_and_leaves_no_process() {
    let Some((server, created)) = harness::database() else {
        return;
    };
    let id = &created.database.id;
    let mut client = created.connect().unwrap();
    client
        .query("create temporary table kept as select 42 as answer")
        .unwrap();
    let left = Instant::now();
    server.rest.wait_asleep(id).unwrap();
    assert!(
        left.elapsed() < Duration::from_secs(15),
        "asleep only after {:?}",
        left.elapsed()
    );
    assert_eq!(client.value("select answer from kept").unwrap(), "42");
    assert_eq!(server.rest.database(id).unwrap().state, "running");
    assert_eq!(rest::vm_processes(id).len(), 1);
}

/// It was made when nothing else was to be done, and so was its last suspend: from then on it is a process like any other.
#[test]
fn all_threads_of_a_woken_vm_have_their_priority() {
    let Some((server, created, mut client)) = harness::session() else {
        return;
    };
    let id = created.database.id.as_str();
    for _ in 0..3 {
        server.rest.suspend(id).unwrap();
        client.query("create temporary table if not exists t (n int)").unwrap();
        let pid = rest::vm_processes(id)[0];
        let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
        let policies: Vec<libc::c_int> = threads
            .map(|thread| {
                let thread = thread.unwrap().file_name();
                // SAFETY: an integer to the kernel and back.
                unsafe { libc::sched_getscheduler(thread.to_str().unwrap().parse().unwrap()) }
            })
            // One that has ended meanwhile has none.
            .filter(|policy| *policy >= 0)
            .collect();
        assert!(policies.len() > 1);
        // The one that marks the snapshot as spent, if it is still at it, interrupts nobody.
        let count = |wanted| policies.iter().filter(|policy| **policy == wanted).count();
        let batch = count(libc::SCHED_BATCH);
        assert!(
            batch <= 1 && batch + count(libc::SCHED_OTHER) == policies.len(),
            "{policies:?}"
        );
    }
}

/// From the client's byte to its answer, through three processes, on one clock.
#[test]
fn the_last_wake_is_told_step_by_step_and_counted() {
    if !harness::have_kvm() {
        return;
    }
    let server = harness::Server::start();
    let created = server.rest.create_sleepless("traced", "free").unwrap();
    let id = created.database.id.as_str();
    let mut client = created.connect().unwrap();
    client.query("create table t (n int)").unwrap();
    server.rest.suspend(id).unwrap();
    let asked = Instant::now();
    client.value("select 1").unwrap();
    let trace = server.rest.wake_trace(id).unwrap();
    // The pooler notes its last step when the client may have gone on already, but before it tells.
    let waited = asked.elapsed();
    assert_eq!(trace.kind, "resume");
    let at = |name: &str| {
        let found = trace.steps.iter().find(|step| step.step == name);
        found
            .unwrap_or_else(|| panic!("no {name} in {trace:?}"))
            .at_us
    };
    let begun = ["query_received", "wake_asked", "spawned", "machine", "snapshot", "memory"];
    assert!(begun.is_sorted_by_key(|name| at(name)), "{trace:?}");
    // Its session may be bound before the guest runs, or when it does.
    for order in [["memory", "run", "answered"], ["memory", "bound", "asked"], ["bound", "asked", "answered"]] {
        assert!(order.is_sorted_by_key(|name| at(name)), "{trace:?}");
    }
    assert!(at("spent") > at("memory"), "{trace:?}");
    assert!(
        at("first_byte_back") <= waited.as_micros() as u64,
        "{waited:?}: {trace:?}"
    );
    let took: u64 = trace.steps.iter().map(|step| step.took_us).sum();
    assert_eq!(took, trace.steps.last().unwrap().at_us);

    let metrics = server.rest.call("GET", "/metrics", "").unwrap();
    let text = String::from_utf8(metrics.body).unwrap();
    let value = |name: &str| {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {name} in {text}"))
            .parse::<f64>()
            .unwrap()
    };
    assert_eq!(value("dormouse_wake_seconds_count{kind=\"resume\"}"), 1.0);
    assert_eq!(
        value("dormouse_wake_seconds_bucket{kind=\"resume\",le=\"+Inf\"}"),
        1.0
    );
    assert_eq!(value("dormouse_wake_seconds_count{kind=\"clone\"}"), 1.0);
    assert_eq!(value("dormouse_suspends_total"), 1.0);
    assert_eq!(value("dormouse_databases_awake"), 1.0);
    assert_eq!(value("dormouse_pooler_sessions"), 1.0);
    assert_eq!(value("dormouse_wake_answer_seconds_count"), 2.0);
}

/// The state that a session can have, all of it kept through every sleep.
#[test]
fn a_held_session_is_the_same_after_200_sleeps() {
    let Some((server, created)) = harness::database() else {
        return;
    };
    let id = created.database.id.as_str();
    let mut client = created.connect().unwrap();
    client
        .query(
            "create temporary table kept (n int);
             create table rows (n int);
             prepare add as insert into rows values ($1);
             set work_mem = '1234kB';
             listen news;
             select pg_advisory_lock(77)",
        )
        .unwrap();
    client
        .query("declare held cursor with hold for select generate_series(1, 1000)")
        .unwrap();
    let backend = client.value("select pg_backend_pid()").unwrap();
    let started = client.value("select pg_postmaster_start_time()").unwrap();
    for n in 1..=200 {
        client
            .query(&format!("insert into kept values ({n}); execute add({n})"))
            .unwrap();
        server.rest.suspend(id).unwrap();
        assert_eq!(
            client.value("select count(*) from kept").unwrap(),
            n.to_string()
        );
        assert_eq!(
            client.value("select count(*) from rows").unwrap(),
            n.to_string()
        );
        assert_eq!(client.value("fetch next from held").unwrap(), n.to_string());
    }
    assert_eq!(client.value("show work_mem").unwrap(), "1234kB");
    assert_eq!(
        client.value("select pg_listening_channels()").unwrap(),
        "news"
    );
    let lock =
        "select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()";
    assert_eq!(client.value(lock).unwrap(), "1");
    assert_eq!(client.value("select pg_backend_pid()").unwrap(), backend);
    assert_eq!(
        client.value("select pg_postmaster_start_time()").unwrap(),
        started
    );
}

#[tokio::test]
async fn an_open_transaction_and_prepared_statements_sleep_too() {
    let Some((server, created)) = harness::database() else {
        return;
    };
    let id = created.database.id.as_str();
    let (mut client, connection) = driver(&created).await;
    tokio::spawn(connection);
    client
        .batch_execute("create table ledger (n int)")
        .await
        .unwrap();
    let insert = client
        .prepare("insert into ledger values ($1)")
        .await
        .unwrap();
    let transaction = client.transaction().await.unwrap();
    transaction.execute(&insert, &[&1]).await.unwrap();
    // Idle in a transaction is idle: it sleeps by itself.
    server.rest.wait_asleep(id).unwrap();
    transaction.execute(&insert, &[&2]).await.unwrap();
    transaction.commit().await.unwrap();
    server.rest.suspend(id).unwrap();
    let sum: i64 = client
        .query_one("select sum(n) from ledger", &[])
        .await
        .unwrap()
        .get(0);
    assert_eq!(sum, 3);
}

/// Nothing of a temporary table is logged or flushed, and most of this one is in no buffer: what the kernel has still to write
/// of it when the suspend is asked for must not be lost.
#[test]
fn what_was_written_and_never_flushed_sleeps_too() {
    let Some((server, created)) = harness::database() else {
        return;
    };
    let mut client = created.connect().unwrap();
    client.query("set temp_buffers = '800kB'").unwrap();
    client
        .query("create temporary table spilled as select n, repeat('x', 1000) filler from generate_series(1, 8000) n")
        .unwrap();
    for round in 1..=5 {
        client
            .query("update spilled set n = n + 1, filler = repeat('y', 1000)")
            .unwrap();
        server.rest.suspend(&created.database.id).unwrap();
        let found = client
            .value("select count(*) || ' ' || sum(n) || ' ' || count(distinct filler) from spilled")
            .unwrap();
        assert_eq!(found, format!("8000 {} 1", 8000 * 8001 / 2 + 8000 * round));
    }
}

#[test]
fn a_long_query_and_a_vacuum_are_never_put_to_sleep() {
    let Some((server, created)) = harness::database() else {
        return;
    };
    let id = created.database.id.as_str();
    let mut client = created.connect().unwrap();
    client.query("create table big as select n, repeat('x', 200) filler from generate_series(1, 20000) n").unwrap();
    for sql in [
        "select pg_sleep(10)",
        "set vacuum_cost_delay = 20; set vacuum_cost_limit = 10; vacuum (freeze, verbose) big",
    ] {
        // Two statements in one message would be one transaction, in which VACUUM may not run.
        let (settings, last) = sql
            .rsplit_once("; ")
            .map_or(("", sql), |(settings, last)| (settings, last));
        for setting in settings.split("; ").filter(|setting| !setting.is_empty()) {
            client.query(setting).unwrap();
        }
        let process = rest::vm_processes(id);
        client.send(last).unwrap();
        let answer = std::thread::scope(|scope| {
            let answer = scope.spawn(|| client.finish().map(drop));
            while !answer.is_finished() {
                assert_eq!(server.rest.database(id).unwrap().state, "running", "{last}");
                assert_eq!(rest::vm_processes(id), process, "{last}");
                std::thread::sleep(harness::POLL);
            }
            answer.join().unwrap()
        });
        answer.unwrap();
    }
}

#[test]
fn suspend_and_resume_on_request() {
    let Some((server, created)) = harness::database() else {
        return;
    };
    let id = created.database.id.as_str();
    assert_eq!(succeed(server.psql(&created, "select 1")), "1");
    server.rest.suspend(id).unwrap();
    assert_eq!(server.rest.database(id).unwrap().state, "suspended");
    server.rest.resume(id).unwrap();
    harness::until("it runs", || {
        server.rest.database(id).unwrap().state == "running"
    });
    assert_eq!(rest::vm_processes(id).len(), 1);
}

#[test]
fn suspend_refuses_while_a_statement_runs() {
    let Some((server, created, mut client)) =
        harness::session_with(&[("DORMOUSE_HOST_SUSPEND_WAIT_MS", 1000)])
    else {
        return;
    };
    let id = created.database.id.as_str();
    client.query("select 1").unwrap();
    client.send("select pg_sleep(8), 'slept'").unwrap();
    let answer = server
        .rest
        .call("POST", &format!("/v1/databases/{id}/suspend"), "")
        .unwrap();
    assert_eq!(answer.status, 409, "{}", harness::text(&answer.body));
    assert_eq!(
        answer.header("content-type"),
        Some("application/problem+json")
    );
    assert_eq!(client.finish().unwrap()[0][1].as_deref(), Some("slept"));
}

#[test]
fn a_stopped_server_has_put_all_to_sleep_and_a_new_one_finds_them() {
    let Some((mut server, created)) = harness::database() else {
        return;
    };
    let id = created.database.id.as_str();
    assert_eq!(
        succeed(server.psql(
            &created,
            "create table stays as select 7 as n; select n from stays"
        )),
        "7"
    );
    server.stop();
    assert_eq!(rest::vm_processes(id), Vec::<u32>::new());
    server.run();
    assert_eq!(server.rest.database(id).unwrap().state, "suspended");
    assert_eq!(succeed(server.psql(&created, "select n from stays")), "7");
}

/// What cannot be put to sleep in time is shut down, by Postgres' own clean shutdown.
#[test]
fn a_server_stopped_under_a_long_statement_shuts_postgres_down_cleanly() {
    let Some((mut server, created, mut client)) =
        harness::session_with(&[("DORMOUSE_HOST_SUSPEND_WAIT_MS", 1000)])
    else {
        return;
    };
    let id = created.database.id.as_str();
    client
        .query("create table stays as select generate_series(1, 1000) as n")
        .unwrap();
    let started = client.value(START_TIME).unwrap();
    client.send("select pg_sleep(600)").unwrap();
    server.stop();
    let cut = client.finish().unwrap_err();
    assert_eq!(cut.code(), Some("57P01"), "{cut}");
    assert_eq!(rest::vm_processes(id), Vec::<u32>::new());
    let folder = server.home.join("databases").join(id);
    assert!(!folder.join("snapshot").exists());

    server.run();
    assert_eq!(server.rest.database(id).unwrap().state, "stopped");
    assert_eq!(
        succeed(server.psql(&created, "select count(*) from stays")),
        "1000"
    );
    assert_ne!(succeed(server.psql(&created, START_TIME)), started);
    let console = fs::read_to_string(folder.join("console.log")).unwrap();
    assert!(
        console.contains("database system was shut down at")
            && !console.contains("database system was not properly shut down"),
        "{console}"
    );
}

#[test]
fn a_cold_start_finds_all_rows_and_ends_old_sessions_with_a_word() {
    let Some((server, created)) = harness::database() else {
        return;
    };
    let id = created.database.id.as_str();
    let mut held = created.connect().unwrap();
    held.query("create table stays as select generate_series(1, 1000) as n")
        .unwrap();
    let started = held.value("select pg_postmaster_start_time()").unwrap();
    server.rest.suspend(id).unwrap();
    rest::remove_snapshot(&server.home, id).unwrap();
    let mut client = Client::connect(&created.target().unwrap()).unwrap();
    assert_eq!(client.value("select count(*) from stays").unwrap(), "1000");
    assert_ne!(
        client.value("select pg_postmaster_start_time()").unwrap(),
        started
    );
    let lost = held.query("select 1").unwrap_err();
    assert_eq!(lost.code(), Some("57P01"), "{lost}");
}
