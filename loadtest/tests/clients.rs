//! What clients of a Postgres server count on besides queries, through the pooler and across a sleep.

#![allow(clippy::unwrap_used)]

mod harness;

use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use dormouse_loadtest::client::Client;
use dormouse_loadtest::pgbench;
use dormouse_loadtest::rest::{self, Created};
use harness::{programs, succeed};

/// How many clients the plan of the test allows.
const CLIENTS: usize = 100;

#[test]
fn a_hundred_clients_at_once_are_served_and_one_more_is_refused() {
    let limit = [("DORMOUSE_PLANS_FREE_CONNECTIONS", CLIENTS as u64)];
    let Some((server, created, first)) = harness::session_with(&limit) else {
        return;
    };
    first.close().unwrap();
    server.rest.suspend(&created.database.id).unwrap();
    let target = created.target().unwrap();
    let threads: Vec<_> = (0..CLIENTS)
        .map(|n| {
            let target = target.clone();
            thread::spawn(move || {
                let mut client = Client::connect(&target).unwrap();
                assert_eq!(client.value(&format!("select {n}")).unwrap(), n.to_string());
                client
            })
        })
        .collect();
    let mut clients: Vec<_> = threads
        .into_iter()
        .map(|thread| thread.join().unwrap())
        .collect();
    let refused = Client::connect(&target).err().unwrap();
    assert_eq!(refused.code(), Some("53300"), "{refused}");
    assert!(
        refused
            .to_string()
            .contains("sorry, too many clients already"),
        "{refused}"
    );
    let backends = "select count(*) from pg_stat_activity where backend_type = 'client backend'";
    assert_eq!(clients[0].value(backends).unwrap(), CLIENTS.to_string());
    // All of them sleep and wake together, and a place that is free again is given.
    server.rest.suspend(&created.database.id).unwrap();
    for client in &mut clients {
        assert_eq!(client.value("select 1").unwrap(), "1");
    }
    clients.pop().unwrap().close().unwrap();
    let mut again = harness::connect_again(&target);
    assert_eq!(again.value("select 1").unwrap(), "1");
}

#[test]
fn a_cancel_stops_a_tight_loop() {
    let Some((_server, created, mut client)) = harness::session() else {
        return;
    };
    let mut watcher = created.connect().unwrap();
    let mut took: Vec<_> = (0..20)
        .map(|_| {
            client.send("do $$begin loop end loop; end$$").unwrap();
            let running = "select count(*) from pg_stat_activity where state = 'active' and query like 'do %'";
            harness::until("the loop runs", || watcher.value(running).unwrap() == "1");
            let asked = Instant::now();
            client.canceller().cancel().unwrap();
            assert_eq!(client.finish().unwrap_err().code(), Some("57014"));
            asked.elapsed()
        })
        .collect();
    took.sort();
    println!(
        "cancel of a tight loop: median {:?}, slowest {:?}",
        took[10], took[19]
    );
    assert!(took[19] < Duration::from_secs(10), "{took:?}");
}

#[test]
fn what_a_session_holds_outlasts_a_sleep() {
    let Some((server, created, mut client)) = harness::session() else {
        return;
    };
    let id = created.database.id.as_str();
    client.query("create table kept (n int)").unwrap();
    client
        .query("begin; insert into kept values (1); prepare transaction 'first'")
        .unwrap();
    client
        .query(
            "begin; insert into kept values (2); prepare transaction 'second';
             prepare add as insert into kept values ($1);
             listen news; select pg_advisory_lock(7)",
        )
        .unwrap();
    client
        .query("begin; declare held cursor with hold for select generate_series(1, 9); commit; fetch 3 from held")
        .unwrap();
    server.rest.suspend(id).unwrap();
    let mut other = created.connect().unwrap();
    assert_eq!(other.value("select pg_try_advisory_lock(7)").unwrap(), "f");
    other.query("notify news, 'hello'").unwrap();
    server.rest.suspend(id).unwrap();
    assert_eq!(client.value("fetch next from held").unwrap(), "4");
    client.query("execute add(3)").unwrap();
    client.query("commit prepared 'first'").unwrap();
    assert_eq!(client.value("select pg_advisory_unlock(7)").unwrap(), "t");
    assert_eq!(other.value("select pg_try_advisory_lock(7)").unwrap(), "t");
    assert_eq!(
        client.value("select pg_listening_channels()").unwrap(),
        "news"
    );

    // A prepared transaction is on disk: it outlasts a cold start as well.
    harness::kill_vm(id);
    let mut client = harness::connect_again(&created.target().unwrap());
    assert_eq!(
        client
            .value("select string_agg(gid, ',') from pg_prepared_xacts")
            .unwrap(),
        "second"
    );
    client.query("commit prepared 'second'").unwrap();
    assert_eq!(
        client
            .value("select string_agg(n::text, ',' order by n) from kept")
            .unwrap(),
        "1,2,3"
    );
}

/// pg_recvlogical, ended with the test.
struct Receiver(Child);

impl Receiver {
    fn command(created: &Created) -> Command {
        let mut command = programs().command("pg_recvlogical");
        command.args(["--dbname", &created.connection_uri, "--slot", "feed"]);
        command.env("PGSSLMODE", "disable").stdin(Stdio::null());
        command
    }

    fn start(created: &Created) -> Self {
        let mut command = Self::command(created);
        command.args([
            "--start",
            "--file",
            "-",
            "--fsync-interval",
            "0",
            "--status-interval",
            "1",
        ]);
        command.args([
            "--option",
            "proto_version=1",
            "--option",
            "publication_names=everything",
        ]);
        Self(command.stdout(Stdio::piped()).spawn().unwrap())
    }

    /// Returns when these bytes have been received.
    fn wait_for(&mut self, words: &str) {
        let output = self.0.stdout.as_mut().unwrap();
        let mut seen = Vec::new();
        let mut buffer = [0; 4096];
        while !String::from_utf8_lossy(&seen).contains(words) {
            let len = output.read(&mut buffer).unwrap();
            assert!(
                len > 0,
                "pg_recvlogical ended; seen {:?}",
                String::from_utf8_lossy(&seen)
            );
            seen.extend_from_slice(&buffer[..len]);
        }
    }

    fn stop(&mut self) {
        harness::signal(self.0.id(), libc::SIGINT);
        self.0.wait().unwrap();
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn logical_changes_are_streamed_and_the_stream_keeps_the_database_awake() {
    let Some((server, created, mut client)) = harness::session() else {
        return;
    };
    let id = created.database.id.as_str();
    client
        .query("create table news (words text); create publication everything for all tables")
        .unwrap();
    let mut create = Receiver::command(&created);
    succeed(
        create
            .args(["--create-slot", "--plugin", "pgoutput"])
            .output()
            .unwrap(),
    );
    let mut receiver = Receiver::start(&created);
    client
        .query("insert into news values ('the first words')")
        .unwrap();
    receiver.wait_for("the first words");
    // Longer than the cool-down without a query: asleep, it would be of no use to a subscriber.
    thread::sleep(Duration::from_secs(3));
    assert_eq!(server.rest.database(id).unwrap().state, "running");
    client
        .query("insert into news values ('the second words')")
        .unwrap();
    receiver.wait_for("the second words");
    receiver.stop();
    server.rest.wait_asleep(id).unwrap();

    // The slot is where it was after a sleep, and after a cold start.
    client
        .query("insert into news values ('the third words')")
        .unwrap();
    server.rest.suspend(id).unwrap();
    rest::remove_snapshot(&server.home, id).unwrap();
    let mut receiver = Receiver::start(&created);
    receiver.wait_for("the third words");
    receiver.stop();
}

/// pg_dump's text, without the random words that newer ones guard it with.
fn dump(created: &Created) -> String {
    let mut command = programs().command("pg_dump");
    command
        .args(["--dbname", &created.connection_uri])
        .env("PGSSLMODE", "disable");
    let text = succeed(command.output().unwrap());
    let guard =
        |line: &&str| !line.starts_with("\\restrict ") && !line.starts_with("\\unrestrict ");
    text.lines().filter(guard).collect::<Vec<_>>().join("\n")
}

#[test]
fn a_dump_restored_elsewhere_dumps_the_same_bytes() {
    let Some((server, created, mut client)) = harness::session() else {
        return;
    };
    pgbench::initialise(&programs(), &created.target().unwrap(), 1).unwrap();
    client
        .query(
            "create type mood as enum ('good', 'bad');
             create domain small as int check (value < 100);
             create schema inside;
             create table inside.all_kinds (
                 id bigint generated always as identity primary key, mood mood default 'good', small small,
                 words text collate \"C\", bytes bytea, at timestamptz, span interval, amounts numeric(20,5)[],
                 document jsonb, range int4range, address inet, unique_id uuid, twice int generated always as (small * 2) stored,
                 exclude using gist (range with &&));
             insert into inside.all_kinds (mood, small, words, bytes, at, span, amounts, document, range, address, unique_id)
             select (array['good','bad'])[1 + n % 2]::mood, n % 100, repeat(chr(8364) || n, n % 50), sha256(n::text::bytea),
                 'epoch'::timestamptz + n * interval '1 hour', n * interval '1 min', array[n / 7.0, null], jsonb_build_object('n', n),
                 int4range(n, n + 1), '10.0.0.0'::inet + n, md5(n::text)::uuid from generate_series(1, 2000) n;
             create index on inside.all_kinds using gin (document);
             create view inside.moods as select mood, count(*) from inside.all_kinds group by mood;
             create materialized view inside.words as select words from inside.all_kinds where id < 10;
             create function inside.plus(int) returns int language plpgsql as $$begin return $1 + 1; end$$;
             create function inside.notice() returns trigger language plpgsql as $$begin return new; end$$;
             create trigger notice before insert on inside.all_kinds for each row execute function inside.notice();
             create table inside.parts (n int) partition by range (n);
             create table inside.low partition of inside.parts for values from (0) to (10);
             insert into inside.parts values (1), (9);
             alter table inside.all_kinds enable row level security;
             create policy own on inside.all_kinds using (mood = 'good');
             comment on table inside.parts is 'in parts';
             create publication part for table inside.parts;
             create publication everything for all tables;
             select lo_from_bytea(0, 'a large object')",
        )
        .unwrap();
    for extension in [
        "hstore",
        "pg_trgm",
        "citext",
        "pg_stat_statements",
        "amcheck",
    ] {
        let there =
            format!("select count(*) from pg_available_extensions where name = '{extension}'");
        if client.value(&there).unwrap() == "1" {
            client
                .query(&format!("create extension {extension}"))
                .unwrap();
        }
    }
    let first = dump(&created);
    assert!(first.contains("inside.all_kinds"));
    let other = server.create();
    let mut psql = programs().command("psql");
    psql.args(["-X", "-q", "-v", "ON_ERROR_STOP=1", &other.connection_uri]);
    psql.env("PGSSLMODE", "disable")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let mut psql = psql.spawn().unwrap();
    std::io::Write::write_all(&mut psql.stdin.take().unwrap(), first.as_bytes()).unwrap();
    succeed(psql.wait_with_output().unwrap());
    let second = dump(&other);
    let difference = first
        .lines()
        .zip(second.lines())
        .find(|(one, two)| one != two);
    assert!(first == second, "first difference: {difference:#?}");
}
