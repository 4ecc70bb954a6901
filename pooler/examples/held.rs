//! What a held client costs: `cargo run --release -p dormouse-pooler --example held -- [CLIENTS] [plain|tls]`.
//!
//! This process is the pooler and nothing else; clients and guest run in a second one. Printed are bytes of heap that
//! are in use (counted by the allocator) and resident memory, per client, with the database awake and idle, then asleep.

#![allow(clippy::unwrap_used)]

#[path = "../tests/support/mod.rs"]
mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use dormouse_pooler::{
    Availability, Awake, BoxFuture, DatabaseId, Host, HostError, PasswordsSet, Pooler, Route, Sessions, Settings, WakeError, verifier,
};
use support::PASSWORD;
use support::raw::Raw;

struct Counting;
static IN_USE: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is passed on to the system's allocator unchanged; only sizes are counted beside it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        IN_USE.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise, passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        IN_USE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise, passed on.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

struct Elsewhere {
    verifier: String,
    awake: Awake,
}

impl Host for Elsewhere {
    fn lookup<'a>(&'a self, _: DatabaseId, _: &'a str) -> BoxFuture<'a, Result<Option<Route>, HostError>> {
        let route = Route {
            verifier: Some(self.verifier.clone()),
            in_guest: false,
            asleep: false,
            guest_role: "app".into(),
            connection_limit: u32::MAX,
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

fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    if args.get(1).is_some_and(|a| a == "clients") {
        return clients(&args[2..]);
    }
    let count: i64 = args.get(1).map_or(1000, |n| n.parse().expect("a number of clients"));
    let mode = args.get(2).map_or("plain", String::as_str);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("vm.sock");
        let settings = Settings {
            listen: "127.0.0.1:0".parse().unwrap(),
            tls_dir: dir.path().join("tls"),
            max_clients: 1 << 20,
            ..Settings::default()
        };
        let sessions = Sessions::new();
        let awake = Awake { socket: socket.clone(), epoch: "one".into() };
        let verifier = verifier::make(PASSWORD, settings.scram_iterations).unwrap();
        let host = Arc::new(Elsewhere { verifier, awake });
        let pooler = Pooler::bind(settings, host, &sessions).await.unwrap();
        let address = pooler.address().unwrap().to_string();
        tokio::spawn(pooler.serve());

        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["clients", &address, &socket.display().to_string(), mode])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut order = child.stdin.take().unwrap();
        let mut report = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut connect = |n: i64| {
            writeln!(order, "{n}").unwrap();
            report.next().unwrap().unwrap();
        };
        let database: DatabaseId = "db_aaaaaaaaaaaaaaaaaaaa".parse().unwrap();

        // The first ones pay for what all share.
        connect(100);
        let settled = || async { tokio::time::sleep(Duration::from_millis(500)).await };
        settled().await;
        let before = (IN_USE.load(Ordering::Relaxed), resident());
        connect(count);
        settled().await;
        let per = |after: (usize, usize)| {
            ((after.0 as i64 - before.0 as i64) / count, (after.1 as i64 - before.1 as i64) / count)
        };
        let awake = per((IN_USE.load(Ordering::Relaxed), resident()));
        sessions.quiesce(database).expect("nobody asks anything");
        sessions.suspended(database);
        while sessions.metrics().held.get() != count + 100 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        settled().await;
        let held = per((IN_USE.load(Ordering::Relaxed), resident()));
        println!("{count} clients ({mode}), bytes per client:");
        println!("  awake, idle: {:6} heap, {:6} resident", awake.0, awake.1);
        println!("  held:        {:6} heap, {:6} resident", held.0, held.1);
        drop(order);
        let _ = child.wait();
    });
}

/// The other process: connects as many as it is told, line by line, and keeps them.
fn clients(args: &[String]) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let vm = support::guest::FakeVm::new(args[1].clone().into());
        vm.wake();
        let address = args[0].parse().unwrap();
        let mut kept = vec![];
        let mut lines = tokio::io::AsyncBufReadExt::lines(tokio::io::BufReader::new(tokio::io::stdin()));
        while let Ok(Some(line)) = lines.next_line().await {
            for _ in 0..line.parse::<usize>().unwrap() {
                let mut raw = match args[2].as_str() {
                    "tls" => Raw::tls(address, false, None).await.unwrap(),
                    _ => Raw::connect(address).await,
                };
                let user = [("user", "app.db_aaaaaaaaaaaaaaaaaaaa")];
                assert_eq!(raw.log_in(0, &user, PASSWORD).await.last().unwrap().0, b'Z');
                kept.push(raw);
            }
            println!("connected");
        }
    });
}
