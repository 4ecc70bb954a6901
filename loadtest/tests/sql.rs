//! It is PostgreSQL: what people do with one, through the pooler, in a VM on real KVM.

#![allow(clippy::unwrap_used)]

mod harness;

use std::thread;
use std::time::{Duration, Instant};

use dormouse_loadtest::client::Client;
use dormouse_loadtest::pgbench::{self, Figures};
use futures_util::{SinkExt, TryStreamExt, future, pin_mut};
use harness::{driver, programs, succeed};

#[test]
fn psql_sees_postgresql_17() {
    let Some((server, created)) = harness::database() else {
        return;
    };
    let version = succeed(server.psql(&created, "select version()"));
    assert!(version.starts_with("PostgreSQL 17."), "{version}");
    let wrong = server.psql(&created, "select 1/0");
    assert!(!wrong.status.success());
    assert!(harness::text(&wrong.stderr).contains("division by zero"));
}

#[test]
fn tables_can_be_made_changed_and_read() {
    let Some((_server, _created, mut client)) = harness::session() else {
        return;
    };
    client
        .query(
            "create table item (id int primary key, name text not null, price numeric(8,2));
             create index on item (name);
             insert into item select n, 'item ' || n, n * 1.25 from generate_series(1, 1000) n;
             alter table item add column stock int not null default 7;
             update item set stock = 0 where id % 10 = 0;
             delete from item where id > 900",
        )
        .unwrap();
    assert_eq!(client.value("select count(*) from item").unwrap(), "900");
    assert_eq!(client.value("select sum(stock) from item").unwrap(), "5670");
    assert_eq!(
        client
            .value("select price from item where name = 'item 8'")
            .unwrap(),
        "10.00"
    );
    let twice = client
        .query("insert into item values (1, 'again', 1)")
        .unwrap_err();
    assert_eq!(twice.code(), Some("23505"));
    client.query("begin; delete from item; rollback").unwrap();
    assert_eq!(client.value("select count(*) from item").unwrap(), "900");
    client.query("drop table item").unwrap();
    assert_eq!(
        client.query("select * from item").unwrap_err().code(),
        Some("42P01")
    );
}

#[tokio::test]
async fn copy_takes_and_gives_rows() {
    let Some((_server, created)) = harness::database() else {
        return;
    };
    let (client, connection) = driver(&created).await;
    let connection = tokio::spawn(connection);
    client
        .batch_execute("create table copied (n int, words text)")
        .await
        .unwrap();
    let sink = client.copy_in("copy copied from stdin").await.unwrap();
    pin_mut!(sink);
    let mut sent = Vec::new();
    for n in 0..20_000 {
        sent.extend_from_slice(format!("{n}\tthe words of row {n}\n").as_bytes());
        if n % 1000 == 999 {
            sink.send(bytes::Bytes::from(std::mem::take(&mut sent)))
                .await
                .unwrap();
        }
    }
    assert_eq!(sink.finish().await.unwrap(), 20_000);
    let stream = client
        .copy_out("copy (select * from copied order by n) to stdout")
        .await
        .unwrap();
    let back: Vec<bytes::Bytes> = stream.try_collect().await.unwrap();
    let back = String::from_utf8(back.concat()).unwrap();
    assert_eq!(back.lines().count(), 20_000);
    assert_eq!(back.lines().last(), Some("19999\tthe words of row 19999"));
    drop(client);
    connection.await.unwrap().unwrap();
}

#[tokio::test]
async fn notifications_reach_a_listener_also_across_sleeps() {
    let Some((server, created)) = harness::database() else {
        return;
    };
    let id = created.database.id.as_str();
    let (listener, mut connection) = driver(&created).await;
    let (sender, mut notifications) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(message) = future::poll_fn(|context| connection.poll_message(context)).await
        {
            if let Ok(tokio_postgres::AsyncMessage::Notification(notification)) = message {
                let _ = sender.send((
                    notification.channel().to_owned(),
                    notification.payload().to_owned(),
                ));
            }
        }
    });
    let mut heard = async || {
        tokio::time::timeout(Duration::from_secs(30), notifications.recv())
            .await
            .unwrap()
            .unwrap()
    };
    let said = |payload: &str| ("news".to_owned(), payload.to_owned());
    listener.batch_execute("listen news").await.unwrap();
    let (speaker, connection) = driver(&created).await;
    tokio::spawn(connection);
    let notify = async |payload: &str| {
        speaker
            .execute("select pg_notify('news', $1)", &[&payload])
            .await
            .unwrap()
    };
    for payload in ["one", "two"] {
        notify(payload).await;
        assert_eq!(heard().await, said(payload));
    }
    // The speaker wakes it; the listener need not say a word.
    server.rest.suspend(id).unwrap();
    notify("three").await;
    assert_eq!(heard().await, said("three"));
    // In a transaction it is told at the end, however often it slept by then.
    listener.batch_execute("begin").await.unwrap();
    server.rest.suspend(id).unwrap();
    notify("four").await;
    server.rest.suspend(id).unwrap();
    listener.batch_execute("commit").await.unwrap();
    assert_eq!(heard().await, said("four"));
}

#[test]
fn a_query_runs_in_parallel_workers() {
    let Some((_server, _created, mut client)) = harness::session() else {
        return;
    };
    client
        .query(
            "create table wide as select n, repeat('x', 100) filler from generate_series(1, 50000) n;
             analyze wide;
             set parallel_setup_cost = 0; set parallel_tuple_cost = 0;
             set min_parallel_table_scan_size = 0; set max_parallel_workers_per_gather = 2",
        )
        .unwrap();
    assert_eq!(
        client
            .value("select sum(n) from wide where filler like 'x%'")
            .unwrap(),
        "1250025000"
    );
    let plan = client
        .query("explain (analyze, costs off) select sum(n) from wide where filler like 'x%'")
        .unwrap();
    let plan: Vec<_> = plan.into_iter().flatten().flatten().collect();
    let launched = plan
        .iter()
        .find_map(|line| line.trim().strip_prefix("Workers Launched: "));
    assert!(launched.is_some_and(|count| count != "0"), "{plan:#?}");
}

#[test]
fn vacuum_frees_and_freezes() {
    let Some((_server, _created, mut client)) = harness::session() else {
        return;
    };
    client
        .query("create table worn (n int); insert into worn select generate_series(1, 50000); delete from worn")
        .unwrap();
    let before: u64 = client
        .value("select pg_relation_size('worn')")
        .unwrap()
        .parse()
        .unwrap();
    client.query("vacuum (freeze, analyze) worn").unwrap();
    let after: u64 = client
        .value("select pg_relation_size('worn')")
        .unwrap()
        .parse()
        .unwrap();
    assert!(before > 1 << 20 && after == 0, "{before} → {after}");
    client
        .query("insert into worn select generate_series(1, 1000)")
        .unwrap();
    client.query("vacuum full worn").unwrap();
    assert_eq!(client.value("select count(*) from worn").unwrap(), "1000");
}

#[test]
fn a_cancel_stops_a_sleeping_and_a_computing_query() {
    let Some((_server, created)) = harness::database() else {
        return;
    };
    for sql in [
        "select pg_sleep(60)",
        "select count(*) from generate_series(1, 1e10::bigint)",
    ] {
        let mut client = created.connect().unwrap();
        let mut watcher = created.connect().unwrap();
        client.send(sql).unwrap();
        let running = format!(
            "select count(*) from pg_stat_activity where state = 'active' and query = '{sql}'"
        );
        harness::until("the query runs", || watcher.value(&running).unwrap() == "1");
        let asked = Instant::now();
        client.canceller().cancel().unwrap();
        assert_eq!(client.finish().unwrap_err().code(), Some("57014"), "{sql}");
        assert!(
            asked.elapsed() < Duration::from_secs(10),
            "{sql} was cancelled after {:?}",
            asked.elapsed()
        );
        assert_eq!(client.value("select 1").unwrap(), "1");
    }
}

#[test]
fn pg_sleep_ends_in_time_beside_a_busy_neighbour() {
    let Some((_server, created)) = harness::database() else {
        return;
    };
    let mut busy = created.connect().unwrap();
    let mut sleeper = created.connect().unwrap();
    let busy_canceller = busy.canceller();
    busy.send("select count(*) from generate_series(1, 1e10::bigint)")
        .unwrap();
    let asked = Instant::now();
    sleeper.query("select pg_sleep(2)").unwrap();
    let slept = asked.elapsed();
    assert!(
        (Duration::from_secs(2)..Duration::from_secs(5)).contains(&slept),
        "{slept:?}"
    );
    busy_canceller.cancel().unwrap();
    assert_eq!(busy.finish().unwrap_err().code(), Some("57014"));
}

/// The C library writes floating-point numbers by the eight registers of the x87, and a session that is preempted in the midst of
/// one leaves some in use. The next one, which had waited, must not find them so: on top of its own they are too many.
#[test]
fn sessions_do_not_meet_in_the_floating_point_registers() {
    const SESSIONS: usize = 12;
    let Some((_server, created)) = harness::database() else {
        return;
    };
    let target = created.target().unwrap();
    let written = "select md5(string_agg(to_char(n * 1.1::float8, 'FM9999990.099'), ' ')) from generate_series(1, 4000) n";
    // The same as decimals, which are integers to the processor.
    let decimal = written.replace("float8", "numeric");
    let right = &Client::connect(&target).unwrap().value(&decimal).unwrap();
    thread::scope(|scope| {
        for _ in 0..SESSIONS {
            scope.spawn(|| {
                let mut client = Client::connect(&target).unwrap();
                for _ in 0..100 {
                    assert_eq!(&client.value(written).unwrap(), right);
                }
            });
        }
    });
}

#[test]
fn twenty_sessions_work_at_once() {
    let Some((_server, created)) = harness::database() else {
        return;
    };
    let target = created.target().unwrap();
    let mut first = Client::connect(&target).unwrap();
    first
        .query("create table tally (session int, n int)")
        .unwrap();
    first.close().unwrap();
    let barrier = std::sync::Barrier::new(20);
    thread::scope(|scope| {
        for session in 0..20 {
            let (target, barrier) = (&target, &barrier);
            scope.spawn(move || {
                let mut client = Client::connect(target).unwrap();
                // All twenty are connected before any works.
                barrier.wait();
                client
                    .query(&format!(
                        "create temporary table mine as select {session} as me"
                    ))
                    .unwrap();
                for n in 0..20 {
                    client
                        .query(&format!("insert into tally values ({session}, {n})"))
                        .unwrap();
                    assert_eq!(
                        client.value("select me from mine").unwrap(),
                        session.to_string()
                    );
                }
            });
        }
    });
    let mut client = Client::connect(&target).unwrap();
    assert_eq!(
        client
            .value("select count(distinct (session, n)) from tally")
            .unwrap(),
        "400"
    );
}

#[test]
fn pgbench_fills_and_runs() {
    let Some((_server, created)) = harness::database() else {
        return;
    };
    let target = created.target().unwrap();
    let programs = programs();
    pgbench::initialise(&programs, &target, 5).unwrap();
    let mut command = pgbench::command(&programs, &target);
    command.args(["-n", "-c", "4", "-T", "20"]);
    let printed = succeed(command.output().unwrap());
    let figures = Figures::read(&printed).unwrap();
    assert_eq!(figures.failed, 0, "{printed}");
    let mut client = Client::connect(&target).unwrap();
    let count = client
        .value("select count(*) from pgbench_history")
        .unwrap();
    assert_eq!(count, figures.transactions.to_string(), "{printed}");
    let sums = pgbench::sums(&mut client).unwrap();
    assert!(pgbench::agree(&sums), "{sums:?}");
}
