//! kill -9 of the server at each of its own steps, met exactly: a build of it that can be made to die at each.
//!
//! One life is led again and again, and has all that a server does in it: a database is made, used for the first time and
//! deleted, while a client commits rows in another that sleeps and wakes between them. The server dies somewhere in it;
//! then another is started, and everything that was answered has to be so.

#![allow(clippy::unwrap_used)]

mod harness;

use std::collections::BTreeMap;
use std::fs;
use std::time::Instant;

use dormouse_api::crash::STEPS;
use dormouse_loadtest::client::Client;
use dormouse_loadtest::rest::{self, Created, Database, RestError};
use harness::{Server, until};
use serde_json::Value;

/// Lives that a step may be waited for. One has them all, but a state may be followed by the next before it is written.
const LIVES: u32 = 10;

/// What the clients know.
struct Known {
    ledger: Created,
    acknowledged: u64,
    /// Kept over the ledger's sleeps.
    held: Option<Client>,
    /// The other database: a create was asked for, answered; a delete was asked for, answered.
    name: String,
    created: Option<Created>,
    delete_asked: bool,
    deleted: bool,
}

/// A call that the server did not live to answer.
struct Died;

impl From<RestError> for Died {
    fn from(error: RestError) -> Self {
        // Refused is not died: nothing here may be refused.
        assert!(!matches!(error, RestError::Status { .. }), "{error}");
        Died
    }
}

impl Known {
    fn new(server: &Server) -> Self {
        let ledger = server.create();
        let mut client = ledger.connect().unwrap();
        client.query("create table ledger (n bigint primary key)").unwrap();
        Self {
            ledger,
            acknowledged: 0,
            held: None,
            name: String::new(),
            created: None,
            delete_asked: false,
            deleted: false,
        }
    }

    fn id(&self) -> &str {
        &self.ledger.database.id
    }

    /// Commits a row in the held session, or in a new one.
    fn add(&mut self) -> Result<(), Died> {
        let target = self.ledger.target().unwrap();
        let mut client = match self.held.take() {
            Some(held) => held,
            None => Client::connect(&target).map_err(|_| Died)?,
        };
        let row = self.acknowledged + 1;
        client.query(&format!("insert into ledger values ({row})")).map_err(|_| Died)?;
        self.acknowledged = row;
        self.held = Some(client);
        Ok(())
    }

    /// Once through all that a server does.
    fn live(&mut self, server: &Server) -> Result<(), Died> {
        let rest = &server.rest;
        (self.created, self.delete_asked, self.deleted) = (None, false, false);
        self.name = dormouse_loadtest::wake::name("other");
        let created = self.created.insert(rest.create(&self.name)?).clone();
        let mut client = Client::connect(&created.target().unwrap()).map_err(|_| Died)?;
        client.query("create table mine as select 42 as answer").map_err(|_| Died)?;
        self.add()?;
        rest.try_suspend(self.id())?;
        // A row on its way may call the next one off, and must not be lost by it.
        let (id, rest) = (self.id().to_owned(), rest.clone());
        let suspending = std::thread::spawn(move || rest.try_suspend(&id));
        let added = self.add();
        let suspended = suspending.join().unwrap();
        added?;
        suspended?;
        // Awake, and so that a crash from here on leaves a VM to take over.
        self.add()?;
        self.delete_asked = true;
        server.rest.delete(&created.database.id)?;
        self.deleted = true;
        Ok(())
    }

    /// Lives until the server dies of its step.
    fn live_until_death(&mut self, server: &mut Server, step: &str) {
        for _ in 0..LIVES {
            if self.live(server).is_err() {
                until(&format!("the server dies at {step}"), || server.has_died());
                self.held = None;
                return;
            }
        }
        panic!("{step} was not met in {LIVES} lives");
    }

    /// What was answered is so, on the server that has just been started.
    fn check(&mut self, server: &Server, step: &str) {
        // Usable at once: no second try.
        let mut client = self.ledger.connect().unwrap_or_else(|error| panic!("{step}: {error}"));
        let rows = client.value("select count(*) || ' ' || coalesce(max(n), 0) from ledger").unwrap();
        // One under way may be there too.
        let allowed = [self.acknowledged, self.acknowledged + 1].map(|n| format!("{n} {n}"));
        let at = allowed.iter().position(|allowed| *allowed == rows);
        let at = at.unwrap_or_else(|| panic!("{step}: {rows}, {} acknowledged", self.acknowledged));
        self.acknowledged += at as u64;
        self.check_other(server, step);
        self.check_host(server, step);
        // And it still goes to sleep.
        server.rest.suspend(self.id()).unwrap_or_else(|error| panic!("{step}: {error}"));
    }

    /// The database that was being made and deleted.
    fn check_other(&mut self, server: &Server, step: &str) {
        let found = databases(server).into_iter().find(|database| database.name == self.name);
        if self.delete_asked {
            // Every step of a delete comes after its mark, and what is marked is finished before the server answers.
            let marked = self.deleted || step.starts_with("delete") || step.starts_with("takeover");
            assert!(!marked || found.is_none(), "{step}: a deleted database is there");
        } else if let Some(created) = &self.created {
            assert!(found.is_some(), "{step}: an acknowledged create is gone");
            let mut client = created.connect().unwrap_or_else(|error| panic!("{step}: {error}"));
            assert_eq!(client.value("select 1").unwrap(), "1", "{step}");
        } else {
            let made = ["create-committed", "create-announced"].contains(&step);
            assert!(!made || found.is_some(), "{step}: a create on disk is gone");
            assert!(step != "create-written" || found.is_none(), "{step}: a create that was undone is there");
        }
        // Nothing that was left by a crash is in the way of its end.
        if let Some(database) = &found {
            server.rest.delete(&database.id).unwrap_or_else(|error| panic!("{step}: {error}"));
        }
        let known = self.created.as_ref().map(|created| &created.database).or(found.as_ref());
        if let Some(Database { id, .. }) = known {
            assert!(!server.home.join("databases").join(id).exists(), "{step}: files of a deleted database");
            assert!(rest::vm_processes(id).is_empty(), "{step}: a process of a deleted database");
        }
    }

    /// No process without an owner, no folder without a row, no state that a database never leaves.
    fn check_host(&self, server: &Server, step: &str) {
        let at_rest = |state: &str| ["running", "suspended", "stopped"].contains(&state);
        until(&format!("{step}: each database rests or runs"), || {
            databases(server).iter().all(|database| at_rest(&database.state))
        });
        until(&format!("{step}: each VM has an owner"), || {
            let awake: Vec<_> = databases(server).into_iter().filter(|database| database.state == "running").collect();
            vms(server)
                .iter()
                .all(|(pid, database)| parent(*pid) == server.pid() || awake.iter().any(|awake| awake.id == *database))
        });
        let folders = fs::read_dir(server.home.join("databases")).unwrap().flatten();
        let strays: Vec<_> = folders.map(|entry| entry.file_name()).filter(|name| *name != self.id()).collect();
        assert!(strays.is_empty(), "{step}: {strays:?}");
    }
}

fn databases(server: &Server) -> Vec<Database> {
    let answer = server.rest.call("GET", "/v1/databases", "").unwrap();
    let mut answer: Value = serde_json::from_slice(&answer.body).unwrap();
    serde_json::from_value(answer["databases"].take()).unwrap()
}

/// All VMMs of the server's home, whoever started them, with the name on their command lines.
fn vms(server: &Server) -> Vec<(u32, String)> {
    let home = server.home.to_str().unwrap();
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter_map(|pid| {
        let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
        let words: Vec<&str> = line.split('\0').collect();
        let value = |flag: &str| words.windows(2).find(|pair| pair[0] == flag).map(|pair| pair[1]);
        (words.get(1) == Some(&"vmm") && value("--home") == Some(home))
            .then(|| (pid, value("--database").unwrap().to_owned()))
    })
    .collect()
}

fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
}

#[test]
fn a_server_killed_at_each_of_its_steps_keeps_what_it_said() {
    if !harness::have_kvm() {
        return;
    }
    let mut server = Server::prepare();
    server.program = harness::testing_dormouse();
    server.run();
    let mut known = Known::new(&server);
    let mut times = BTreeMap::new();
    for step in STEPS {
        let began = Instant::now();
        server.kill();
        known.held = None;
        if step.starts_with("takeover") {
            // It is to find a VM to take over, one that is nobody's any more, and a delete to finish.
            assert!(server.run_to("delete-marked"));
            known.live_until_death(&mut server, "delete-marked");
            if *step == "takeover-rested" {
                // And a row at work without a VM.
                harness::kill_vm(known.id());
            }
            assert!(!server.run_to(step), "{step} was not met");
        } else {
            assert!(server.run_to(step), "{step} was met in the start");
            known.live_until_death(&mut server, step);
        }
        server.run();
        known.check(&server, step);
        times.insert(began.elapsed(), *step);
    }
    println!("{} steps, the slowest {:?}", STEPS.len(), times.last_key_value());
}
