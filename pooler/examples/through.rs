//! What forwarding costs: `cargo run --release -p dormouse-pooler --example through -- [SECONDS]`.
//!
//! Runs `pgbench -S -c 4` against a real Postgres directly, and through the pooler, with one runtime thread and with two;
//! prints transactions a second and the pooler's CPU time for each. The relay that stands for the VMM is a process of
//! its own, and costs as much again: compare CPU time, not only rates.

#![allow(clippy::unwrap_used)]

#[path = "../tests/support/mod.rs"]
mod support;

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use dormouse_pooler::{
    Availability, Awake, BoxFuture, DatabaseId, Host, HostError, PasswordsSet, Pooler, Route, Sessions, Settings, WakeError, verifier,
};
use support::PASSWORD;
use support::relay::{Postgres, Relay, programs};

struct Elsewhere {
    verifier: String,
    awake: Awake,
}

impl Host for Elsewhere {
    fn lookup<'a>(&'a self, _: DatabaseId, role: &'a str) -> BoxFuture<'a, Result<Option<Route>, HostError>> {
        let route = Route {
            verifier: Some(self.verifier.clone()),
            in_guest: false,
            asleep: false,
            guest_role: role.into(),
            connection_limit: 100,
            availability: Availability::Usable,
        };
        Box::pin(async move { Ok(Some(route)) })
    }

    fn passwords_set<'a>(&'a self, _: DatabaseId, _: PasswordsSet) -> BoxFuture<'a, Result<(), HostError>> {
        Box::pin(async { Ok(()) })
    }

    fn wake<'a>(&'a self, _: DatabaseId) -> BoxFuture<'a, Result<Awake, WakeError>> {
        Box::pin(async move { Ok(self.awake.clone()) })
    }

    fn client_spoke(&self, _: DatabaseId) {}
}

/// User and system time of this process, in µs.
fn cpu() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) * 10_000.0
}

fn pgbench(args: &[&str], environment: &[(&str, &str)]) -> String {
    let out = Command::new(programs().unwrap().join("pgbench"))
        .args(args)
        .envs(environment.iter().copied())
        .env("PGDATABASE", "app")
        .env("PGSSLMODE", "prefer")
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

fn number(text: &str, before: &str) -> f64 {
    let rest = &text[text.find(before).unwrap() + before.len()..];
    rest.split_whitespace().next().unwrap().parse().unwrap()
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    if args.get(1).is_some_and(|a| a == "relay") {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        return runtime.block_on(async {
            Relay::start(PathBuf::from(&args[2]), PathBuf::from(&args[3]));
            println!("ready");
            std::future::pending().await
        });
    }
    let seconds = args.get(1).map_or("10", String::as_str);
    let Some(postgres) = Postgres::start() else { return };
    let folder = postgres.socket().parent().unwrap().display().to_string();
    let direct = [("PGHOST", &*folder), ("PGUSER", "app")];
    pgbench(&["-i", "-q", "-s", "5"], &direct);
    let bench = |environment: &[(&str, &str)]| pgbench(&["-S", "-c", "4", "-j", "1", "-T", seconds], environment);
    println!("direct:                 {:8.0} tps", number(&bench(&direct), "tps = "));

    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("relay.sock");
    let mut relay = Command::new(std::env::current_exe().unwrap())
        .args(["relay", &socket.display().to_string(), &postgres.socket().display().to_string()])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    BufReader::new(relay.stdout.take().unwrap()).lines().next().unwrap().unwrap();

    for (threads, tls) in [(1, "disable"), (2, "disable"), (1, "require")] {
        let runtime = match threads {
            1 => tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap(),
            n => tokio::runtime::Builder::new_multi_thread().worker_threads(n).enable_all().build().unwrap(),
        };
        runtime.block_on(async {
            let settings =
                Settings { listen: "127.0.0.1:0".parse().unwrap(), tls_dir: dir.path().join("tls"), ..Settings::default() };
            let sessions = Sessions::new();
            let awake = Awake { socket: socket.clone(), epoch: "one".into() };
            let verifier = verifier::make(PASSWORD, settings.scram_iterations).unwrap();
            let pooler = Pooler::bind(settings, Arc::new(Elsewhere { verifier, awake }), &sessions).await.unwrap();
            let port = pooler.address().unwrap().port().to_string();
            tokio::spawn(pooler.serve());
            let before = cpu();
            let seconds = seconds.to_owned();
            let out = tokio::task::spawn_blocking(move || {
                let user = "app.db_aaaaaaaaaaaaaaaaaaaa";
                let through = [
                    ("PGHOST", "127.0.0.1"),
                    ("PGPORT", &port),
                    ("PGUSER", user),
                    ("PGPASSWORD", PASSWORD),
                    ("PGSSLMODE", tls),
                ];
                // The yardstick build has no TLS: then the one of the PATH has to do.
                let program = if tls == "disable" { programs().unwrap().join("pgbench") } else { "pgbench".into() };
                let out = Command::new(program)
                    .args(["-S", "-c", "4", "-j", "1", "-T", &seconds, "app"])
                    .envs(through)
                    .output()
                    .unwrap();
                assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
                String::from_utf8(out.stdout).unwrap()
            })
            .await
            .unwrap();
            let done = number(&out, "transactions actually processed: ");
            println!(
                "pooler, {threads} thread{}, TLS {tls:8}: {:8.0} tps, {:5.1} µs CPU a transaction",
                if threads == 1 { " " } else { "s" },
                number(&out, "tps = "),
                (cpu() - before) / done
            );
            sessions.drain(Duration::ZERO).await;
        });
    }
    let _ = relay.kill();
    let _ = relay.wait();
}
