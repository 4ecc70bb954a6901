//! A stock Postgres on the file device, through the host's own FUSE client: what it acknowledged is there after the device
//! is killed, and what is merged is a data directory like any other.
//!
//! ```text
//! [DORMOUSE_ORACLE=PREFIX DORMOUSE_TEMPLATE=FOLDER] cargo test -p dormouse-vmm --test layer_postgres -- --ignored
//! ```
//!
//! Needs root (for the mount, and to run Postgres as another user), `/dev/fuse`, and Postgres of the template's version.

#![allow(clippy::unwrap_used)]

use std::ffi::CString;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Whom Postgres runs as: `nobody`.
const USER: u32 = 65534;
const ROUNDS: u32 = 4;

struct World {
    temp: tempfile::TempDir,
    oracle: PathBuf,
    hash: String,
}

impl World {
    fn new() -> World {
        // What the image builder leaves in the project's folder, unless told otherwise.
        let variable = |name: &str, built: &str| match std::env::var_os(name) {
            Some(path) => PathBuf::from(path),
            None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../images/.build").join(built).canonicalize().unwrap(),
        };
        let temp = tempfile::tempdir().unwrap();
        let template = temp.path().join("template");
        let mut copy = Command::new("cp");
        copy.args(["-r", "--sparse=always"]).arg(variable("DORMOUSE_TEMPLATE", "out/template").join(".")).arg(&template);
        std::fs::create_dir(&template).unwrap();
        run(&mut copy);
        for dir in ["layer", "mount", "run"] {
            std::fs::create_dir(temp.path().join(dir)).unwrap();
        }
        run(Command::new("chown").arg(USER.to_string()).arg(temp.path()).arg(temp.path().join("run")));
        let hash = dormouse_vmm::layer::template_hash(&template).unwrap();
        World { temp, oracle: variable("DORMOUSE_ORACLE", "oracle"), hash }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.temp.path().join(name)
    }

    /// A Postgres program, as its user.
    fn postgres(&self, program: &str) -> Command {
        let mut command = Command::new(self.oracle.join("bin").join(program));
        command.env("LD_LIBRARY_PATH", self.oracle.join("lib")).uid(USER).gid(USER).current_dir(self.at("run"));
        command
    }

    fn sql(&self) -> Command {
        let mut command = self.postgres("psql");
        command.args(["-U", "postgres", "-d", "postgres", "-qAtX", "-v", "ON_ERROR_STOP=1", "-h"]).arg(self.at("run"));
        command
    }

    fn ask(&self, query: &str) -> String {
        let out = self.sql().args(["-c", query]).output().unwrap();
        assert!(out.status.success(), "{query}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap().trim().to_owned()
    }

    /// Starts Postgres on a folder, and returns when it is ready.
    fn start(&self, data: &str) {
        let options = format!(
            "-c shared_preload_libraries= -c unix_socket_directories={} -c recovery_init_sync_method=fsync",
            self.at("run").display()
        );
        let mut start = self.postgres("pg_ctl");
        start.arg("-D").arg(self.at(data)).args(["-w", "-l"]).arg(self.at("run/log")).args(["-o", &options, "start"]);
        start.stdout(Stdio::null());
        let started = start.status().unwrap().success();
        assert!(started, "{}", std::fs::read_to_string(self.at("run/log")).unwrap_or_default());
    }

    fn stop(&self, data: &str) {
        run(self.postgres("pg_ctl").arg("-D").arg(self.at(data)).args(["-w", "-m", "fast", "stop"]).stdout(Stdio::null()));
    }

    /// Starts the device and mounts it.
    fn mount(&self) -> Child {
        let program = std::env::current_exe().unwrap();
        let program = program.ancestors().nth(2).unwrap().join("examples/layer");
        let mut device = Command::new(program)
            .arg("mount")
            .args([self.at("layer"), self.at("template")])
            .arg(&self.hash)
            .arg(self.at("mount"))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(device.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "mounted\n");
        device
    }

    fn unmount(&self) {
        let target = CString::new(self.at("mount").to_str().unwrap()).unwrap();
        // SAFETY: a NUL-terminated path.
        assert_eq!(unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH) }, 0);
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Ok(target) = CString::new(self.at("mount").as_os_str().as_encoded_bytes()) {
            // SAFETY: a NUL-terminated path. That it may not be mounted any more is no error.
            unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH) };
        }
    }
}

fn run(command: &mut Command) {
    let status = command.status().unwrap();
    assert!(status.success(), "{command:?}");
}

/// The first process of the Postgres that runs on the socket folder.
fn postmaster(run: &Path) -> i32 {
    let lock = std::fs::read_to_string(run.join(".s.PGSQL.5432.lock")).unwrap();
    lock.lines().next().unwrap().parse().unwrap()
}

/// Ends a Postgres at once, as the end of its machine does.
fn kill_postgres(run: &Path, first: i32) {
    let mut all = vec![first];
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let parent = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1)?.parse::<i32>().ok());
        if parent == Some(first) {
            all.extend(entry.file_name().to_str().and_then(|pid| pid.parse::<i32>().ok()));
        }
    }
    for pid in &all {
        // SAFETY: a plain call; the processes are this test's own Postgres.
        unsafe { libc::kill(*pid, libc::SIGKILL) };
    }
    let deadline = Instant::now() + Duration::from_secs(20);
    let alive = |pid: &i32| {
        std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
    };
    while all.iter().any(alive) {
        assert!(Instant::now() < deadline, "Postgres does not end");
        std::thread::sleep(Duration::from_millis(10));
    }
    for name in [".s.PGSQL.5432", ".s.PGSQL.5432.lock"] {
        let _ = std::fs::remove_file(run.join(name));
    }
}

#[test]
#[ignore = "needs root, /dev/fuse, and the image builder's Postgres and template"]
fn a_stock_postgres_finds_what_it_acknowledged() {
    let world = World::new();
    let run_dir = world.at("run");
    let mut device = world.mount();
    world.start("mount");
    world.ask("create table ack(id int primary key, filler text)");
    let mut acknowledged = 0;
    for round in 1..=ROUNDS {
        let first_process = postmaster(&run_dir);
        // One session inserts and says so; it is cut off in the middle of a checkpoint and of work on other tables.
        let mut session = world.sql().stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut input = session.stdin.take().unwrap();
        let first = acknowledged + 1;
        let writer = std::thread::spawn(move || {
            for i in first..first + 5_000 {
                let statement = format!("insert into ack values ({i}, repeat('x', {i} % 3000)) returning id;\n");
                if input.write_all(statement.as_bytes()).is_err() {
                    break;
                }
            }
        });
        let mut busy = world.sql();
        busy.args(["-c", "checkpoint; vacuum full pg_proc; create table t as select * from ack; checkpoint; drop table t"]);
        let mut busy = busy.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        for line in BufReader::new(session.stdout.take().unwrap()).lines() {
            acknowledged = line.unwrap().parse().unwrap();
            if acknowledged == first + 150 * round {
                device.kill().unwrap();
                kill_postgres(&run_dir, first_process);
            }
        }
        device.wait().unwrap();
        session.wait().unwrap();
        writer.join().unwrap();
        busy.wait().unwrap();
        world.unmount();

        device = world.mount();
        // Postgres looks for the process in there; another database's may have the number by now.
        run(Command::new("rm").arg("-f").arg(world.at("mount/postmaster.pid")).uid(USER).gid(USER));
        world.start("mount");
        let found: u32 = world.ask("select coalesce(max(id), 0) from ack").parse().unwrap();
        assert_eq!(world.ask(&format!("select count(*) from ack where id <= {acknowledged}")), acknowledged.to_string());
        assert_eq!(world.ask("select count(*) from ack where length(filler) <> id % 3000"), "0");
        acknowledged = found;
    }
    world.ask("reindex database postgres");
    let sum = world.ask("select sum(hashtext(filler)), count(*) from ack");
    world.stop("mount");
    world.unmount();
    assert!(device.wait().unwrap().success());

    let merged = dormouse_vmm::layer::merge(&world.at("layer"), &world.at("template"), &world.hash, &world.at("out"));
    assert!(merged.unwrap().files > 100);
    run(Command::new("chown").arg("-R").arg(USER.to_string()).arg(world.at("out")));
    world.start("out");
    assert_eq!(world.ask("select sum(hashtext(filler)), count(*) from ack"), sum);
    world.stop("out");
}
