//! PostgreSQL's own test suites, unchanged, against a Dormouse database through the pooler: its runners, its psql, its
//! expected results.
//!
//! The image is one of its own (`make test-postgres`): the tests' modules are linked in, and the VMM shows the guest the
//! folder with the tests at the same path, since the server reads and writes files there.

#![allow(clippy::unwrap_used)]

mod harness;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use dormouse_images::manifest::Manifest;
use dormouse_loadtest::client::{Client, Target};
use dormouse_loadtest::native::Programs;
use harness::{Server, succeed};

/// Concurrent tests, each with parallel workers, and every process is a slot of 2 MiB.
const PROCESSES: u32 = 160;
/// What the tests take to be there, as upstream's own temporary server has it. `regress` is for servers with
/// pg_stat_statements: EXPLAIN then shows no query identifiers.
const SETTINGS: &[&str] = &[
    "max_prepared_transactions=5",
    "max_connections=100",
    "compute_query_id=regress",
];

/// The server for all suites, each with a database of its own.
struct Postgres {
    server: Server,
    /// `suites.sh`'s folders, copied to where the guests see them.
    share: PathBuf,
    first_process: Vec<String>,
}

/// What one run of a runner came to.
#[derive(Default)]
struct Tally {
    passed: usize,
    failed: Vec<String>,
}

impl Tally {
    fn add(&mut self, other: Tally) {
        self.passed += other.passed;
        self.failed.extend(other.failed);
    }

    #[track_caller]
    fn check(self, what: &str) {
        println!(
            "{what}: {} passed, {} failed",
            self.passed,
            self.failed.len()
        );
        self.failed
            .iter()
            .for_each(|name| println!("  failed: {name}"));
        assert!(self.failed.is_empty(), "{what}: {:?}", self.failed);
        assert!(self.passed > 0, "{what}: no test ran");
    }
}

/// The major version of PostgreSQL that is tested: 17, unless DORMOUSE_TEST_POSTGRES says otherwise.
fn major() -> u32 {
    std::env::var("DORMOUSE_TEST_POSTGRES").map_or(17, |major| major.parse().unwrap())
}

/// What `make test-postgres` has built of this version, such as `oracle`.
fn built(what: &str) -> PathBuf {
    let path = harness::top().join(format!("images/.build/{what}-{}", major()));
    assert!(
        path.is_dir(),
        "{} is missing: run `make test-postgres` first",
        path.display()
    );
    path
}

impl Postgres {
    /// `None` where there is no KVM.
    fn start() -> Option<Postgres> {
        if !harness::have_kvm() {
            return None;
        }
        let images = harness::top().join("target/test-image");
        assert!(
            images.is_dir(),
            "{} is missing: run `make test-image` first",
            images.display()
        );
        let mut server = Server::prepare_from(&images);
        let share = server.home.join("share");
        fs::create_dir(&share).unwrap();
        // The settings of each database are in a file of its name.
        server.use_testing_vmm(&format!(
            "for word; do [ \"$before\" != --database ] || database=$word; before=$word; done\n\
             set -- \"$@\" --share {} --processes {PROCESSES} $(cat {}/settings-$database)",
            share.display(),
            server.home.display(),
        ));
        server.set(&[
            ("DORMOUSE_PLANS_FREE_MEMORY_MIB", 1536),
            ("DORMOUSE_PLANS_FREE_STORAGE_MIB", 8192),
            ("DORMOUSE_PLANS_FREE_CONNECTIONS", 100),
        ]);
        server.run();
        let image = server.home.join(format!("images/current-{}", major()));
        let first_process = Manifest::load(&image).unwrap().first_process.arguments;
        Some(Postgres {
            server,
            share,
            first_process,
        })
    }

    /// Runs a suite in a fresh database; of its tests those named, or all.
    fn run(&self, suite: &str, only: &[&str]) -> Tally {
        let folder = self.share.join(suite);
        succeed(
            Command::new("cp")
                .arg("-r")
                .arg(built("suites").join(suite))
                .arg(&folder)
                .output()
                .unwrap(),
        );
        let name = dormouse_loadtest::wake::name("suite");
        let created = self.server.rest.create_version(&name, major()).unwrap();
        let id = &created.database.id;
        self.configure(id, &folder.join("settings"));
        let superuser = self.server.rest.superuser(id).unwrap();
        let prepare = match suite {
            // psql's test lists a setting's grants, and expects none.
            "core" => "drop owned by app".to_owned(),
            "isolation" => "select".to_owned(),
            // dblink's test takes psql's own user name, here ROLE.DBID, for a role.
            _ => format!("create role \"{}\" superuser login", superuser.user),
        };
        Client::connect(&superuser)
            .unwrap()
            .query(&prepare)
            .unwrap();
        let mut tally = Tally::default();
        for (words, runner) in [
            ("regress", "pg_regress"),
            ("isolation", "pg_isolation_regress"),
        ] {
            let Ok(words) = fs::read_to_string(folder.join(words)) else {
                continue;
            };
            let words: Vec<_> = if only.is_empty() {
                words.lines().collect()
            } else {
                only.to_vec()
            };
            tally.add(self.runner(runner, &folder, &superuser, &words));
        }
        // What of the run is still to be cleaned up by the guest is nobody's business.
        self.server.rest.delete(id).unwrap();
        tally
    }

    /// Writes down what the database's server is started with.
    fn configure(&self, id: &str, more: &Path) {
        let more = fs::read_to_string(more).unwrap_or_default();
        let mut words = self.first_process.clone();
        for setting in SETTINGS.iter().copied().chain(more.lines()) {
            // Our own module stays.
            let setting = setting.replace(
                "shared_preload_libraries=",
                "shared_preload_libraries=dormouse,",
            );
            words.extend(["-c".to_owned(), setting]);
        }
        let line: String = words
            .iter()
            .map(|word| format!("--postgres-arg={word}\n"))
            .collect();
        fs::write(self.server.home.join(format!("settings-{id}")), line).unwrap();
    }

    /// What the guest's consoles tell of processes that ended otherwise than by exiting.
    fn ends(&self) -> Vec<String> {
        let databases = fs::read_dir(self.server.home.join("databases")).unwrap();
        let logs = databases.flat_map(|folder| ["console.log.1", "console.log"].map(|log| folder.as_ref().unwrap().path().join(log)));
        let told = |line: &&str| ["was terminated by", "exited with exit code", "PANIC", " (vector "].iter().any(|what| line.contains(what));
        logs.filter_map(|log| fs::read(log).ok())
            .flat_map(|log| String::from_utf8_lossy(&log).lines().filter(told).map(str::to_owned).collect::<Vec<_>>())
            .collect()
    }

    fn runner(&self, runner: &str, folder: &Path, user: &Target, words: &[&str]) -> Tally {
        let oracle = Programs::open(&built("oracle")).unwrap();
        // As upstream's makefiles have it: some tests name files from the current folder.
        let output = match runner {
            "pg_regress" => folder.to_owned(),
            _ => folder.join("output_iso"),
        };
        fs::create_dir_all(&output).unwrap();
        let mut command = oracle.command(&format!("../regress/{runner}"));
        let option = |name: &str, value: &Path| format!("--{name}={}", value.display());
        command
            .current_dir(folder)
            .args([option("inputdir", folder), option("outputdir", &output)])
            .arg(option("bindir", oracle.path("psql").parent().unwrap()))
            .args(words)
            .args(["--dlpath=/pg/lib/postgresql", "--host=127.0.0.1"])
            .args([
                format!("--port={}", self.server.pooler_port),
                format!("--user={}", user.user),
            ])
            .env("PGPASSWORD", &user.password)
            .env("PGSSLMODE", "disable")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit());
        let mut child = command.spawn().unwrap();
        let mut tally = Tally::default();
        for line in BufReader::new(child.stdout.take().unwrap()).lines() {
            let line = line.unwrap();
            println!("{line}");
            // TAP: `ok 3 + NAME 12 ms`, `not ok 4 - NAME 12 ms`.
            let name = |line: &str| line.split_whitespace().nth(2).unwrap_or("?").to_owned();
            if line.starts_with("ok ") {
                tally.passed += 1;
            } else if let Some(rest) = line.strip_prefix("not ") {
                tally.failed.push(name(rest));
            }
        }
        let status = child.wait().unwrap();
        if !status.success() && tally.failed.is_empty() {
            tally.failed.push(format!("{runner} ({status})"));
        }
        if !tally.failed.is_empty() {
            println!("differences: {}", output.join("regression.diffs").display());
            // The database goes with the test, and its console's logs with it.
            self.ends().iter().for_each(|line| println!("console: {line}"));
        }
        tally
    }
}

#[test]
fn core_regression_tests_pass() {
    let Some(postgres) = Postgres::start() else {
        return;
    };
    postgres.run("core", &[]).check("core regression tests");
}

#[test]
#[ignore = "some minutes: make test-postgres"]
fn isolation_tests_pass() {
    let Some(postgres) = Postgres::start() else {
        return;
    };
    postgres.run("isolation", &[]).check("isolation tests");
}

#[test]
#[ignore = "some minutes: make test-postgres"]
fn tests_of_extensions_pass() {
    let Some(postgres) = Postgres::start() else {
        return;
    };
    let mut names: Vec<_> = fs::read_dir(built("suites"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.retain(|name| !matches!(name.as_str(), "core" | "isolation") && !name.starts_with('.'));
    names.sort();
    let mut all = Tally::default();
    for name in names {
        println!("# {name}");
        let mut tally = postgres.run(&name, &[]);
        tally
            .failed
            .iter_mut()
            .for_each(|test| *test = format!("{name}/{test}"));
        all.add(tally);
    }
    all.check("tests of extensions");
}
