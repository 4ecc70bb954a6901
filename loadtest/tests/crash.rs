//! Nothing acknowledged is lost, whatever is killed and whenever.
//!
//! The steps of suspend and resume are met by time: a kill after each of a series of delays that spans them, and
//! more often where the step before the last was last seen. What is checked afterwards is always the same: the
//! database opens, with every acknowledged row, and a held session is either as it was or ended with 57P01.

#![allow(clippy::unwrap_used)]

mod harness;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use dormouse_loadtest::client::{Client, ClientError};
use dormouse_loadtest::pgbench;
use dormouse_loadtest::rest::{self, Created};
use harness::{Server, connect_again, programs};

/// Delays in ms at which the process is killed, over the length of a suspend or a resume.
const MOMENTS: [u64; 14] = [0, 1, 2, 3, 5, 7, 10, 14, 20, 28, 40, 60, 90, 140];

/// Steps of a suspend at which no snapshot is there yet.
const BEFORE_THE_RENAME: [&str; 4] = [
    "suspend-begun",
    "suspend-flushed",
    "suspend-written",
    "suspend-synced",
];

/// A table of which each row is acknowledged, and a session held open beside it.
struct Ledger {
    created: Created,
    acknowledged: u32,
    held: Option<Client>,
}

impl Ledger {
    fn open(server: &Server) -> Self {
        let created = server.create();
        let mut held = created.connect().unwrap();
        held.query("create table ledger (n int primary key)")
            .unwrap();
        let mut ledger = Self {
            created,
            acknowledged: 0,
            held: Some(held),
        };
        ledger.mark();
        ledger
    }

    fn id(&self) -> &str {
        &self.created.database.id
    }

    fn start_time(&self) -> String {
        let mut client = connect_again(&self.created.target().unwrap());
        client.value(dormouse_loadtest::wake::START_TIME).unwrap()
    }

    /// Puts into the held session what tells it from another.
    fn mark(&mut self) {
        if let Some(held) = &mut self.held {
            held.query("create temporary table mine as select 42 as answer")
                .unwrap();
        }
    }

    fn add(&mut self) {
        let mut client = connect_again(&self.created.target().unwrap());
        client
            .query(&format!(
                "insert into ledger values ({})",
                self.acknowledged + 1
            ))
            .unwrap();
        self.acknowledged += 1;
    }

    /// Every acknowledged row is there; the held session is as it was, or gone with a word.
    fn check(&mut self, when: &str) {
        let mut client = connect_again(&self.created.target().unwrap());
        let count = client
            .value("select count(*) || ' ' || coalesce(max(n), 0) from ledger")
            .unwrap();
        assert_eq!(count, format!("{0} {0}", self.acknowledged), "{when}");
        let held = self
            .held
            .as_mut()
            .map(|held| held.value("select answer from mine"));
        match held {
            Some(Ok(answer)) => assert_eq!(answer, "42", "{when}"),
            Some(Err(ClientError::Server(error))) => {
                assert_eq!(error.code, "57P01", "{when}: {error}");
                self.reconnect();
            }
            // The server was killed, and the client's connection with it.
            Some(Err(ClientError::Closed | ClientError::Io(_))) if when.contains("server") => {
                self.reconnect()
            }
            Some(Err(error)) => panic!("{when}: {error}"),
            None => self.reconnect(),
        }
    }

    fn reconnect(&mut self) {
        self.held = Some(connect_again(&self.created.target().unwrap()));
        self.mark();
    }
}

/// How most tests here begin. `None`, said aloud, where there is no KVM.
fn ledger() -> Option<(Server, Ledger)> {
    harness::have_kvm().then(|| {
        let server = Server::start();
        let ledger = Ledger::open(&server);
        (server, ledger)
    })
}

#[test]
fn a_vm_killed_under_pgbench_recovers_every_acknowledged_transaction() {
    let Some((server, created)) = harness::database() else {
        return;
    };
    let target = created.target().unwrap();
    let programs = programs();
    pgbench::initialise(&programs, &target, 1).unwrap();
    for _ in 0..3 {
        let mut bench = pgbench::command(&programs, &target);
        bench
            .args(["-n", "-c", "4", "-T", "60", "--log", "--log-prefix=kill"])
            .current_dir(&server.home);
        let mut bench = bench
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let logged = || {
            let Ok(entries) = fs::read_dir(&server.home) else {
                return 0;
            };
            entries
                .flatten()
                .filter(|entry| entry.file_name().to_string_lossy().starts_with("kill."))
                .map(|entry| {
                    fs::read_to_string(entry.path())
                        .unwrap_or_default()
                        .matches('\n')
                        .count()
                })
                .sum::<usize>()
        };
        let before = logged();
        harness::until("pgbench has got going", || logged() > before + 100);
        harness::kill_vm(&created.database.id);
        assert!(
            !bench.wait().unwrap().success(),
            "pgbench did not notice that its server was killed"
        );
        let acknowledged = logged();
        let mut client = connect_again(&target);
        let history: usize = client
            .value("select count(*) from pgbench_history")
            .unwrap()
            .parse()
            .unwrap();
        assert!(
            history >= acknowledged,
            "{history} rows of {acknowledged} acknowledged transactions"
        );
        let sums = pgbench::sums(&mut client).unwrap();
        assert!(pgbench::agree(&sums), "{sums:?}");
    }
}

#[test]
fn a_vm_killed_at_any_step_of_suspend_loses_nothing() {
    let Some((server, mut ledger)) = ledger() else {
        return;
    };
    for moment in MOMENTS {
        ledger.add();
        let id = ledger.id().to_owned();
        std::thread::scope(|scope| {
            let suspend = scope.spawn(|| {
                server
                    .rest
                    .call("POST", &format!("/v1/databases/{id}/suspend"), "")
            });
            std::thread::sleep(Duration::from_millis(moment));
            harness::kill_vm(&id);
            // Whatever it answers: the kill may have come before or after its end.
            suspend.join().unwrap().unwrap();
        });
        ledger.check(&format!("VM killed {moment} ms into a suspend"));
    }
}

#[test]
fn a_vm_killed_at_any_step_of_resume_loses_nothing() {
    let Some((server, mut ledger)) = ledger() else {
        return;
    };
    for moment in MOMENTS {
        ledger.add();
        let id = ledger.id().to_owned();
        server.rest.suspend(&id).unwrap();
        let target = ledger.created.target().unwrap();
        std::thread::scope(|scope| {
            // A write, so that the step that spends the snapshot is among those met.
            let wake = scope.spawn(|| {
                Client::connect(&target)
                    .and_then(|mut client| client.query("create temporary table t ()").map(drop))
            });
            std::thread::sleep(Duration::from_millis(moment));
            harness::kill_vm(&id);
            let _ = wake.join().unwrap();
        });
        ledger.check(&format!("VM killed {moment} ms into a resume"));
    }
}

#[test]
fn a_server_killed_at_any_step_of_suspend_and_resume_loses_nothing() {
    let Some((mut server, mut ledger)) = ledger() else {
        return;
    };
    for moment in MOMENTS {
        for step in ["suspend", "resume"] {
            ledger.add();
            let id = ledger.id().to_owned();
            if step == "resume" {
                server.rest.suspend(&id).unwrap();
            }
            let rest = server.rest.clone();
            let call = std::thread::spawn(move || {
                rest.call("POST", &format!("/v1/databases/{id}/{step}"), "")
            });
            std::thread::sleep(Duration::from_millis(moment));
            server.kill();
            let _ = call.join().unwrap();
            server.run();
            ledger.check(&format!("server killed {moment} ms into a {step}"));
            assert!(rest::vm_processes(ledger.id()).len() <= 1);
        }
    }
}

#[test]
fn vms_that_outlive_their_server_are_taken_over() {
    let Some((mut server, mut ledger)) = ledger() else {
        return;
    };
    ledger.add();
    let started = ledger
        .held
        .as_mut()
        .unwrap()
        .value("select pg_postmaster_start_time()")
        .unwrap();
    server.kill();
    server.run();
    ledger.check("server killed while its database ran");
    let again = ledger
        .held
        .as_mut()
        .unwrap()
        .value("select pg_postmaster_start_time()")
        .unwrap();
    assert_eq!(
        again, started,
        "PostgreSQL was started anew, though its VM was alive"
    );
    let id = ledger.id().to_owned();
    server.rest.suspend(&id).unwrap();
    ledger.check("asleep after the take-over");
}

/// Old memory with newer data: a snapshot that has been spent is put back.
#[test]
fn a_spent_snapshot_put_back_is_refused() {
    let Some((mut server, mut ledger)) = ledger() else {
        return;
    };
    ledger.add();
    let id = ledger.id().to_owned();
    server.rest.suspend(&id).unwrap();
    let snapshot = server.home.join("databases").join(&id).join("snapshot");
    let spent = server.home.join("spent");
    fs::copy(&snapshot, &spent).unwrap();
    for _ in 0..20 {
        ledger.add();
    }
    server.rest.suspend(&id).unwrap();
    server.stop();
    fs::remove_file(&snapshot).unwrap();
    fs::copy(&spent, &snapshot).unwrap();
    server.run();
    ledger.check("server restarted over a snapshot older than the data");
}

/// New memory with older data: the data directory is put back, the snapshot is not.
#[test]
fn a_snapshot_newer_than_the_data_is_refused() {
    let Some((mut server, mut ledger)) = ledger() else {
        return;
    };
    ledger.add();
    let id = ledger.id().to_owned();
    server.rest.suspend(&id).unwrap();
    server.stop();
    let layer = server.home.join("databases").join(&id).join("layer");
    let flushed = server.home.join("flushed");
    copy(&layer, &flushed);
    let then = ledger.acknowledged;
    server.run();
    for _ in 0..20 {
        ledger.add();
    }
    server.rest.suspend(&id).unwrap();
    server.stop();
    fs::remove_dir_all(&layer).unwrap();
    copy(&flushed, &layer);
    server.run();
    // What was acknowledged when the data were as they are now: no more, and nothing of the newer memory.
    ledger.acknowledged = then;
    ledger.check("server restarted over data older than the snapshot");
}

/// After a power cut the host has another boot id. A snapshot is good then only because it was sealed: all of the
/// layer was flushed before it.
#[test]
fn a_snapshot_outlives_the_hosts_boot() {
    let Some((mut server, mut ledger)) = ledger() else {
        return;
    };
    for _ in 0..200 {
        ledger.add();
    }
    let id = ledger.id().to_owned();
    server.rest.suspend(&id).unwrap();
    server.stop();
    let boot_id = server.home.join("boot_id");
    fs::write(&boot_id, "00000000-0000-4000-8000-000000000000\n").unwrap();
    let script = format!(
        "mount --bind {} /proc/sys/kernel/random/boot_id && exec \"$@\"",
        boot_id.to_str().unwrap()
    );
    server.wrapper = [
        "unshare",
        "--user",
        "--map-root-user",
        "--mount",
        "sh",
        "-c",
        &script,
        "sh",
    ]
    .map(str::to_owned)
    .to_vec();
    server.run();
    ledger.check("server restarted after the host was");
}

fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp")
        .args(["-a", "--sparse=always"])
        .args([from, to])
        .status();
    assert!(copied.unwrap().success());
}

/// The steps that the VMM names, met exactly: a build of it in which each can be made to kill it.
#[test]
fn a_vm_killed_at_each_named_step_loses_nothing() {
    if !harness::have_kvm() {
        return;
    }
    let mut server = Server::prepare();
    let at = server.home.join("crash-at");
    server.use_testing_vmm(&format!(
        "DORMOUSE_CRASH_AT=$(cat {} 2> /dev/null)\nexport DORMOUSE_CRASH_AT",
        at.display()
    ));
    server.run();
    let mut ledger = Ledger::open(&server);
    for step in dormouse_vmm::crash::STEPS {
        ledger.add();
        let id = ledger.id().to_owned();
        let before = ledger.start_time();
        let mut woken = true;
        let suspend = format!("/v1/databases/{id}/suspend");
        if step.starts_with("suspend") {
            // The VM that is to die at the step must have been started with its name.
            server.rest.suspend(&id).unwrap();
            fs::write(&at, step).unwrap();
            server.rest.resume(&id).unwrap();
            // A write waits until the snapshot is spent: one that was not would be used again.
            ledger.add();
            let _ = server.rest.call("POST", &suspend, "").unwrap();
        } else if step.starts_with("pack") {
            server.rest.suspend(&id).unwrap();
            fs::write(&at, step).unwrap();
            let packed = server.rest.pack(&id);
            assert!(packed.is_err(), "{step}: the process that packs was not killed");
            woken = false;
        } else {
            server.rest.suspend(&id).unwrap();
            if step.starts_with("unpack") {
                server.rest.pack(&id).unwrap();
            }
            fs::write(&at, step).unwrap();
            let target = ledger.created.target().unwrap();
            // A write, so that the step that spends the snapshot is among those met.
            let wake = Client::connect(&target)
                .and_then(|mut client| client.query("create table spend (); drop table spend"));
            woken = wake.is_ok();
        }
        fs::remove_file(&at).unwrap();
        ledger.check(&format!("VM killed at {step}"));
        // Met, or the test says nothing: a kill before the rename leaves no snapshot, so the start is cold, as it
        // is after a kill once the snapshot was spent; before that the wake has failed.
        let cold = ledger.start_time() != before;
        if BEFORE_THE_RENAME.contains(step) || !step.starts_with("suspend") {
            assert!(cold || !woken, "{step}: the VM was not killed");
        }
    }
}

#[test]
fn a_second_vm_on_a_layer_in_use_is_refused() {
    let Some((server, mut ledger)) = ledger() else {
        return;
    };
    ledger.add();
    let id = ledger.id().to_owned();
    // Busy, so that it stays awake.
    let mut busy = ledger.created.connect().unwrap();
    busy.send("select pg_sleep(5)").unwrap();
    let first = rest::vm_processes(&id);
    assert_eq!(first.len(), 1);
    // The same command line as the first's, but for the wait to be told what the line says by now.
    let line = fs::read(format!("/proc/{}/cmdline", first[0])).unwrap();
    let line: Vec<_> = line
        .split(|byte| *byte == 0)
        .filter(|word| !word.is_empty() && *word != b"--standby")
        .map(harness::text)
        .collect();
    let second = Command::new(&line[0])
        .args(&line[1..])
        .current_dir(&server.home)
        .output()
        .unwrap();
    assert_eq!(
        second.status.code(),
        Some(73),
        "{}",
        harness::text(&second.stderr)
    );
    assert_eq!(harness::text(&second.stderr).lines().count(), 1);
    busy.finish().unwrap();
    ledger.check("after a second VM was refused");
}
