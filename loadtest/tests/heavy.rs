//! Much data: temporary files, COPY, one large value, many tables. `make test` takes sizes that fit its time,
//! `make test-heavy` those that a database must bear.

#![allow(clippy::unwrap_used)]

mod harness;

use std::io::{BufReader, Read, Write};
use std::process::Stdio;
use std::thread;
use std::time::Instant;

use dormouse_loadtest::client::Client;
use dormouse_loadtest::rest::Created;
use harness::{driver, programs, size};

const MB: u64 = 1_000_000;
const STORAGE: (&str, u64) = ("DORMOUSE_PLANS_FREE_STORAGE_MIB", 16 << 10);

fn temporary_bytes(client: &mut Client) -> u64 {
    client.query("select pg_stat_force_next_flush()").unwrap();
    let bytes = "select temp_bytes from pg_stat_database where datname = current_database()";
    client.value(bytes).unwrap().parse().unwrap()
}

#[test]
fn sorts_and_joins_spill_to_temporary_files() {
    let Some((server, created, mut client)) = harness::session_with(&[STORAGE]) else {
        return;
    };
    let bytes = size(100 * MB, 3000 * MB);
    let rows = bytes / 1000;
    client
        .query("set work_mem = '4MB'; set max_parallel_workers_per_gather = 0; set enable_mergejoin = off; set enable_nestloop = off")
        .unwrap();
    // Its offset keeps it whole: without one the planner moves its expression to after the join.
    let wide = format!(
        "select n, repeat('x', 960) || n as filler from generate_series(1, {rows}) n offset 0"
    );
    for (what, sql) in [
        // PostgreSQL 17 forgets to count the memory of a sort of one column, so there are two.
        (
            "sort",
            format!(
                "select count(*) from (select *, lag(filler) over (order by filler) as last from ({wide}) w) s
                 where n > 0 and (last is null or last < filler)"
            ),
        ),
        (
            "hash join",
            format!(
                "select count(*) from ({wide}) a join ({wide}) b on a.n = b.n and a.filler = b.filler"
            ),
        ),
    ] {
        let (before, began) = (temporary_bytes(&mut client), Instant::now());
        assert_eq!(client.value(&sql).unwrap(), rows.to_string(), "{what}");
        let spilt = temporary_bytes(&mut client) - before;
        println!(
            "{what}: {} MB of temporary files in {:.1} s",
            spilt / MB,
            began.elapsed().as_secs_f64()
        );
        assert!(spilt > bytes * 9 / 10, "{what}: {spilt}");
    }
    let superuser = server.rest.superuser(&created.database.id).unwrap();
    let left = Client::connect(&superuser)
        .and_then(|mut client| client.value("select count(*) from pg_ls_tmpdir()"))
        .unwrap();
    assert_eq!(left, "0", "temporary files are left");
}

/// The line with this number, as COPY takes and gives it: 100 bytes.
fn line(n: u64) -> String {
    let n = n + 1_000_000_000;
    format!(
        "{n}\t{:088x}\n",
        u128::from(n).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835)
    )
}

fn psql(created: &Created, sql: &str) -> std::process::Command {
    let mut command = programs().command("psql");
    command
        .args([
            "-X",
            "-q",
            "-v",
            "ON_ERROR_STOP=1",
            "-c",
            sql,
            &created.connection_uri,
        ])
        .env("PGSSLMODE", "disable");
    command
}

#[test]
fn copy_carries_much_in_and_out() {
    let Some((_server, created, mut client)) = harness::session_with(&[STORAGE]) else {
        return;
    };
    let rows = size(100 * MB, 2000 * MB) / 100;
    client
        .query("create table copied (n bigint, filler text)")
        .unwrap();
    let began = Instant::now();
    let mut copy = psql(&created, "copy copied from stdin")
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut into = std::io::BufWriter::with_capacity(1 << 20, copy.stdin.take().unwrap());
    for n in 0..rows {
        into.write_all(line(n).as_bytes()).unwrap();
    }
    drop(into);
    assert!(copy.wait().unwrap().success());
    println!(
        "in: {:.1} MB/s",
        rows as f64 * 1e-4 / began.elapsed().as_secs_f64()
    );
    let began = Instant::now();
    let mut copy = psql(&created, "copy copied to stdout")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut from = BufReader::with_capacity(1 << 20, copy.stdout.take().unwrap());
    let mut got = [0; 100];
    // A table that one COPY has filled is read in its order.
    for n in 0..rows {
        from.read_exact(&mut got).unwrap();
        assert_eq!(String::from_utf8_lossy(&got), line(n));
    }
    assert_eq!(from.read(&mut [0]).unwrap(), 0);
    assert!(copy.wait().unwrap().success());
    println!(
        "out: {:.1} MB/s",
        rows as f64 * 1e-4 / began.elapsed().as_secs_f64()
    );
}

#[tokio::test]
async fn a_value_of_200_mb_goes_in_and_comes_back() {
    let settings = [STORAGE, ("DORMOUSE_PLANS_FREE_MEMORY_MIB", 1024)];
    let Some((server, created, mut control)) =
        tokio::task::spawn_blocking(move || harness::session_with(&settings))
            .await
            .unwrap()
    else {
        return;
    };
    control
        .query("create table large (v text); alter table large alter v set storage external")
        .unwrap();
    let value: String = (0..200 * MB / 10).map(|n| format!("{n:010}")).collect();
    let (client, connection) = driver(&created).await;
    let connection = tokio::spawn(connection);
    client
        .execute("insert into large values ($1)", &[&value])
        .await
        .unwrap_or_else(|error| panic!("{error:?}\n{}", server.logs()));
    let back: String = client
        .query_one("select v from large", &[])
        .await
        .unwrap()
        .get(0);
    assert!(back == value);
    drop(client);
    connection.await.unwrap().unwrap();
    tokio::task::spawn_blocking(move || drop((control, server)))
        .await
        .unwrap();
}

#[test]
fn a_thousand_tables_with_five_indexes_each() {
    let Some((server, created, mut client)) = harness::session_with(&[STORAGE]) else {
        return;
    };
    let tables = size(250, 1000);
    let began = Instant::now();
    client
        .query(&format!(
            "create procedure fill() language plpgsql as $$
             begin
               for t in 1..{tables} loop
                 execute format('create table t%s (a int, b int, c int, d int, e text)', t);
                 execute format('create index on t%s (a); create index on t%1$s (b); create index on t%1$s (c);
                                 create index on t%1$s (d); create index on t%1$s (e)', t);
                 execute format('insert into t%s select n, n, n, n, n from generate_series(1, 10) n', t);
                 if t % 50 = 0 then commit; end if;
               end loop;
             end $$"
        ))
        .unwrap();
    client.query("call fill()").unwrap();
    println!("{tables} tables in {:.1} s", began.elapsed().as_secs_f64());
    let indexes = "select count(*) from pg_index i join pg_class c on c.oid = i.indrelid where c.relname ~ '^t[0-9]+$'";
    assert_eq!(client.value(indexes).unwrap(), (tables * 5).to_string());
    server.rest.suspend(&created.database.id).unwrap();
    // A session that knows all of them, and one that learns of them.
    for client in [&mut client, &mut created.connect().unwrap()] {
        client
            .query(&format!(
                "do $$ declare n bigint; begin
                   for t in 1..{tables} loop
                     execute format('select count(*) from t%s where a > 5', t) into n;
                     if n <> 5 then raise 'table % has %', t, n; end if;
                   end loop; end $$"
            ))
            .unwrap();
    }
    let sessions: Vec<_> = (0..4).map(|_| created.connect().unwrap()).collect();
    thread::scope(|scope| {
        for (n, mut client) in sessions.into_iter().enumerate() {
            scope.spawn(move || {
                for t in (1..=tables).filter(|t| t % 4 == n as u64) {
                    client.query(&format!("drop table t{t}")).unwrap();
                }
            });
        }
    });
    assert_eq!(client.value(indexes).unwrap(), "0");
}
