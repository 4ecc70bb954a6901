//! A process of Postgres dies: the postmaster resets, the others come back, and what was acknowledged is there.

#![allow(clippy::unwrap_used)]

mod harness;

use std::collections::BTreeSet;
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use dormouse_loadtest::client::{Client, ClientError, Target};
use dormouse_loadtest::rest::Created;
use dormouse_loadtest::vm::Vm;
use harness::{Server, connect_again};

/// When Postgres began: a reset does not change it, a new VM does.
const BOOTED: &str = "select pg_postmaster_start_time()";

fn console(server: &Server, created: &Created) -> String {
    let folder = server.home.join("databases").join(&created.database.id);
    fs::read_to_string(folder.join("console.log")).unwrap()
}

/// What a session is told whose neighbour has crashed, or the end of its connection.
fn ended(error: &ClientError) -> bool {
    matches!(error.code(), None | Some("57P01" | "57P02" | "57P03"))
}

/// Inserts one row after another until it is told to stop; those that were acknowledged, through all resets.
fn write_rows(target: &Target, writer: usize, over: &AtomicBool) -> BTreeSet<u64> {
    let mut acknowledged = BTreeSet::new();
    let mut client = connect_again(target);
    for n in 0.. {
        if over.load(Ordering::Relaxed) {
            break;
        }
        match client.query(&format!("insert into ledger values ({writer}, {n})")) {
            Ok(_) => {
                acknowledged.insert(n);
            }
            Err(error) => {
                assert!(ended(&error), "{error}");
                client = connect_again(target);
            }
        }
    }
    acknowledged
}

/// Sets its flag at the end of its scope, a failed assertion's too: the writers end, and the test with them.
struct AtEnd<'a>(&'a AtomicBool);

impl Drop for AtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Lets three clients write while one failure after another happens to the database, then says whether all is there.
fn endure<F>(server: &Server, created: &Created, failures: &[F], fail: impl Fn(&F, &mut Client))
where
    F: std::fmt::Debug,
{
    let target = created.target().unwrap();
    let mut client = Client::connect(&target).unwrap();
    client
        .query("create table ledger (writer int, n bigint)")
        .unwrap();
    let booted = client.value(BOOTED).unwrap();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let at_end = AtEnd(&over);
        let writers: Vec<_> = (0..3)
            .map(|writer| {
                let (target, over) = (&target, &over);
                scope.spawn(move || write_rows(target, writer, over))
            })
            .collect();
        for failure in failures {
            let rows = |client: &mut Client| -> u64 {
                let count = client.value("select count(*) from ledger").unwrap();
                count.parse().unwrap()
            };
            let before = rows(&mut client);
            harness::until("rows are written", || rows(&mut client) > before + 20);
            fail(failure, &mut client);
            // This session goes with the others; it is told why, or finds its connection closed.
            let mut told = None;
            harness::until("this session is ended", || {
                told = client.value("select 1").err();
                told.is_some()
            });
            let told = told.unwrap();
            assert!(ended(&told), "{failure:?}: {told}");
            client = connect_again(&target);
            assert_eq!(
                client.value(BOOTED).unwrap(),
                booted,
                "{failure:?}: the VM was started anew"
            );
        }
        drop(at_end);
        for (writer, rows) in writers.into_iter().enumerate() {
            let rows = rows.join().unwrap();
            let there: BTreeSet<u64> = client
                .query(&format!("select n from ledger where writer = {writer}"))
                .unwrap()
                .into_iter()
                .map(|row| row[0].as_deref().unwrap().parse().unwrap())
                .collect();
            assert!(!rows.is_empty(), "writer {writer} wrote nothing");
            let lost: Vec<_> = rows.difference(&there).collect();
            assert!(lost.is_empty(), "writer {writer} lost {lost:?}");
        }
    });
    // And it sleeps and wakes as any other.
    server.rest.suspend(&created.database.id).unwrap();
    assert_eq!(client.value(BOOTED).unwrap(), booted);
}

#[test]
fn a_killed_process_resets_postgres_and_loses_nothing_acknowledged() {
    if !harness::have_kvm() {
        return;
    }
    let mut server = Server::prepare();
    server.use_testing_vmm("");
    server.run();
    let created = server.create();
    let vm = Vm::new(&server.home, &created.database.id);
    let victims = [
        "query like 'insert into ledger%'",
        "backend_type = 'client backend' and pid <> pg_backend_pid()",
        "backend_type = 'checkpointer'",
        "backend_type = 'walwriter'",
        "backend_type = 'autovacuum launcher'",
    ];
    endure(&server, &created, &victims, |victim, client| {
        let find = format!("select pid from pg_stat_activity where {victim} limit 1");
        let mut found = Vec::new();
        // Just after a reset it may not have begun yet.
        harness::until(victim, || {
            found = client.query(&find).unwrap();
            !found.is_empty()
        });
        let pid = found[0][0].as_deref().unwrap();
        vm.ask(&format!(r#"{{"op":"kill","pid":{pid}}}"#)).unwrap();
    });
    let told = console(&server, &created);
    let killed = told.matches("was terminated by signal 9").count();
    assert_eq!(killed, victims.len(), "{told}");
}

#[test]
fn a_bad_memory_access_resets_postgres_and_loses_nothing_acknowledged() {
    let Some((server, created)) = harness::database() else {
        return;
    };
    let superuser = server.rest.superuser(&created.database.id).unwrap();
    // It takes a pointer, and believes what it is given.
    Client::connect(&superuser)
        .unwrap()
        .query("create function crash(bigint) returns int language internal as 'textlen'")
        .unwrap();
    // In page 0, above all memory, and no address at all.
    let pointers = [8, -4096, i64::MIN];
    endure(&server, &created, &pointers, |pointer, _| {
        let mut client = connect_again(&superuser);
        let error = client
            .value(&format!("select crash({pointer})"))
            .unwrap_err();
        assert!(ended(&error), "{pointer}: {error}");
    });
    let told = console(&server, &created);
    let ends = told.matches("was terminated by signal 11").count();
    assert_eq!(ends, pointers.len(), "{told}");
    for (fault, register) in [
        ("page fault (vector 14) in process ", "cr2 0000000000000008"),
        ("page fault (vector 14) in process ", "cr2 fffffffffffff000"),
        (
            "general protection (vector 13) in process ",
            "8000000000000000",
        ),
    ] {
        // The registers are in the lines that follow.
        let shown = told.split(fault).skip(1).any(|after| {
            let mut lines = after.lines().skip(1).take(5);
            lines.any(|line| line.contains(register))
        });
        assert!(shown, "{fault}, {register}: {told}");
    }
}
