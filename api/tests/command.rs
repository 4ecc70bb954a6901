//! The `dormouse` command and the all-in-one server, as processes, with the fake VMM.

#![allow(clippy::unwrap_used)]

mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};

use support::{alive, fake_vmm, image, until};

type Test = std::io::Result<()>;

fn dormouse(home: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dormouse"));
    command
        .current_dir(home.parent().unwrap())
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap())
        .env("DORMOUSE_HOME", home)
        .env("DORMOUSE_HOST_VMM_PROGRAM", fake_vmm())
        .env("DORMOUSE_API_LISTEN", "127.0.0.1:0")
        .env("DORMOUSE_POOLER_LISTEN", "127.0.0.1:0")
        .stdin(Stdio::null());
    command
}

/// Standard output of a command that must succeed.
#[track_caller]
fn done(output: Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim_end().to_string()
}

/// Standard error of a command that must not.
#[track_caller]
fn refused(output: Output) -> String {
    assert!(!output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8(output.stderr).unwrap()
}

struct Up {
    home: PathBuf,
    child: Child,
    lines: BufReader<ChildStdout>,
    api: String,
    pooler: String,
    _dir: tempfile::TempDir,
}

impl Up {
    fn start() -> Up {
        Up::start_with(|_| {})
    }

    fn start_with(change: impl FnOnce(&mut Command)) -> Up {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().join("home");
        std::fs::create_dir_all(&home).unwrap();
        image(&home);
        let mut command = dormouse(&home);
        command.stderr(Stdio::null());
        change(&mut command);
        let mut child = command.arg("up").stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        let mut up = Up { home, child, lines, api: String::new(), pooler: String::new(), _dir: dir };
        up.api = up.line().strip_prefix("API      ").unwrap().to_string();
        up.pooler = up.line().strip_prefix("pooler   ").unwrap().to_string();
        up
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        line.trim_end().to_string()
    }

    fn run(&self, words: &[&str]) -> Output {
        dormouse(&self.home).args(words).output().unwrap()
    }

    fn signal(&self, signal: i32) {
        // SAFETY: kill takes plain numbers; the process is this test's child.
        unsafe { libc::kill(self.child.id() as i32, signal) };
    }

    fn rest(&mut self) -> String {
        let mut text = String::new();
        self.lines.read_to_string(&mut text).unwrap();
        text
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        // Its fake VMMs outlive it, as they should.
        for entry in std::fs::read_dir(self.home.join("databases")).unwrap().flatten() {
            let lives = std::fs::read_to_string(entry.path().join("lives")).unwrap_or_default();
            for pid in lives.lines().filter_map(|l| l.parse::<u32>().ok()).filter(|pid| alive(*pid)) {
                // SAFETY: kill takes plain numbers; the process is this test's fake VMM.
                unsafe { libc::kill(pid as i32, libc::SIGKILL) };
            }
        }
    }
}

#[test]
fn the_ready_lines_say_where_all_is_and_what_to_try() -> Test {
    let mut up = Up::start();
    let console = up.line();
    assert!(console.starts_with("console  "), "{console}");
    assert_eq!(up.line(), "key      home/admin.key (the operator's)");
    assert_eq!(up.line(), "try:");
    let curl = up.line();
    assert!(curl.starts_with(&format!("  curl -s -X POST {}/v1/databases", up.api)), "{curl}");
    assert!(curl.contains("$(cat home/admin.key)"), "{curl}");
    assert!(up.line().starts_with("  psql "));
    let server: serde_json::Value = serde_json::from_slice(&std::fs::read(up.home.join("run/server.json"))?)?;
    assert_eq!((server["api"].as_str(), server["pooler"].as_str()), (Some(&*up.api), Some(&*up.pooler)));
    Ok(())
}

#[test]
fn databases_from_the_shell() -> Test {
    let up = Up::start();
    let uri = done(up.run(&["db", "create", "hello", "--cool-down-ms", "60000"]));
    let id = uri.strip_prefix("postgresql://app.").unwrap().split_once(':').unwrap().0.to_string();
    assert!(uri.ends_with(&format!("@{}/app?sslmode=prefer", up.pooler)), "{uri}");
    let list = done(up.run(&["db", "list"]));
    assert!(list.lines().nth(1).unwrap().starts_with("hello  suspended"), "{list}");
    let state = |words: &[&str]| {
        let shown: serde_json::Value = serde_json::from_str(&done(up.run(words))).unwrap();
        shown["state"].as_str().unwrap().to_string()
    };
    assert_eq!(state(&["db", "resume", "hello", "--json"]), "running");
    assert_eq!(state(&["db", "suspend", &id, "--json"]), "suspended");
    let shown = done(up.run(&["db", "cool-down", "hello", "plan"]));
    assert!(shown.contains("cool_down_ms  1000"), "{shown}");
    std::fs::write(up.home.join("databases").join(&id).join("console.log"), "the guest speaks\n")?;
    assert_eq!(done(up.run(&["logs", "hello"])), "the guest speaks");
    assert!(refused(up.run(&["db", "create", "hello"])).contains("named hello already"));
    assert!(refused(up.run(&["db", "create", "No"])).contains("a-z"));
    assert!(refused(up.run(&["db", "show", "nobody"])).contains("no database named nobody"));
    assert_eq!(done(up.run(&["db", "delete", "hello"])), "hello is deleted");
    assert!(refused(up.run(&["db", "show", &id])).contains("no such database"));
    Ok(())
}

#[test]
fn a_tenants_key_is_printed_once_and_is_enough() -> Test {
    let up = Up::start();
    let key = done(up.run(&["tenant", "create", "ada"]));
    assert!(key.starts_with("dmt_") && !key.contains(char::is_whitespace), "{key}");
    done(up.run(&["db", "create", "mine", "--key", &key]));
    assert_eq!(done(up.run(&["db", "list", "--tenant", "ada"])).lines().count(), 2);
    assert!(refused(up.run(&["tenant", "list", "--key", &key])).contains("operator"));
    let tenants = done(up.run(&["tenant", "list"]));
    assert!(tenants.contains("ada") && !tenants.contains("dmt_"), "{tenants}");
    Ok(())
}

#[test]
fn bad_starts_say_what_to_do_and_leave_the_first_server_alone() -> Test {
    let up = Up::start();
    let message = refused(up.run(&["up"]));
    assert!(message.contains(up.home.to_str().unwrap()) && message.contains("DORMOUSE_HOME"), "{message}");
    assert!(message.contains(&format!("process {}", up.child.id())), "{message}");
    let other = up.home.parent().unwrap().join("other");
    let taken = up.api.strip_prefix("http://").unwrap();
    for (flag, place, setting) in [("--api-listen", taken, "api.listen"), ("--pooler-listen", &up.pooler, "pooler.listen")] {
        let message = refused(dormouse(&other).args(["up", flag, place]).output()?);
        assert!(message.contains(place) && message.contains(setting) && message.contains(flag), "{message}");
    }
    let message = refused(up.run(&["up", "--log-level", "loud"]));
    assert!(message.contains("log.level") && message.contains("--log-level"), "{message}");
    let nowhere = up.home.parent().unwrap().join("nowhere");
    let message = refused(dormouse(&nowhere).args(["db", "list"]).output()?);
    assert!(message.contains("admin.key"), "{message}");
    let message = refused(dormouse(&other).args(["db", "list", "--key", "x", "--url", "http://127.0.0.1:1"]).output()?);
    assert!(message.contains("dormouse up"), "{message}");
    assert!(done(up.run(&["db", "list"])).starts_with("name"));
    Ok(())
}

#[tokio::test]
async fn ctrl_c_puts_all_to_sleep_a_second_warns_a_third_cuts() -> Test {
    for cut in [false, true] {
        let mut up = Up::start();
        done(up.run(&["db", "create", "a"]));
        done(up.run(&["db", "resume", "a"]));
        let folder = std::fs::read_dir(up.home.join("databases"))?.next().unwrap()?.path();
        let pid: u32 = std::fs::read_to_string(folder.join("lives"))?.trim().parse().unwrap();
        if cut {
            std::fs::write(folder.join("deaf"), "")?;
        }
        up.signal(libc::SIGINT);
        if cut {
            while !up.line().starts_with("putting 1 database to sleep") {}
            up.signal(libc::SIGINT);
            let warning = up.line();
            assert!(warning.contains("1 database still going to sleep") && warning.contains("nothing committed is lost"), "{warning}");
            assert!(alive(pid));
            up.signal(libc::SIGINT);
        }
        let status = up.child.wait()?;
        assert_eq!(status.code(), Some(if cut { 130 } else { 0 }), "{}", up.rest());
        until("the VM is gone", async || !alive(pid)).await;
        assert_eq!(folder.join("snapshot").exists(), !cut);
        assert!(!up.home.join("run/server.json").exists());
        // The log has it, one object a line.
        let log = std::fs::read_to_string(up.home.join("log/dormouse.log"))?;
        let last: serde_json::Value = serde_json::from_str(log.lines().last().unwrap())?;
        assert_eq!(last["message"], "down");
    }
    Ok(())
}

#[test]
fn a_ctrl_c_with_nothing_awake_ends_at_once_also_with_an_event_stream_open() -> Test {
    let mut up = Up::start();
    let mut stream = TcpStream::connect(up.api.strip_prefix("http://").unwrap())?;
    let key = std::fs::read_to_string(up.home.join("admin.key"))?;
    write!(stream, "GET /v1/events HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\n\r\n", key.trim())?;
    let mut first = [0; 12];
    stream.read_exact(&mut first)?;
    assert_eq!(&first, b"HTTP/1.1 200");
    up.signal(libc::SIGTERM);
    assert!(up.child.wait()?.success());
    Ok(())
}

/// As far as a client without a password gets.
#[test]
fn the_pooler_asks_for_a_password_and_wakes_nothing() -> Test {
    let up = Up::start();
    let uri = done(up.run(&["db", "create", "a"]));
    let id = uri.split(['.', ':']).find(|part| part.starts_with("db_")).unwrap();
    let mut stream = TcpStream::connect(&up.pooler)?;
    let startup = format!("user\0app.{id}\0database\0app\0\0");
    stream.write_all(&((startup.len() + 8) as u32).to_be_bytes())?;
    stream.write_all(&196_608_u32.to_be_bytes())?;
    stream.write_all(startup.as_bytes())?;
    let mut head = [0; 9];
    stream.read_exact(&mut head)?;
    // AuthenticationSASL.
    assert_eq!((head[0], &head[5..]), (b'R', &[0, 0, 0, 10][..]));
    assert!(!up.home.join("databases").join(id).join("lives").exists());
    Ok(())
}

#[test]
fn config_show_prints_each_value_and_where_it_came_from() -> Test {
    let dir = tempfile::tempdir()?;
    std::fs::write(dir.path().join("dormouse.toml"), "[log]\nfiles = 9\n[plans.big]\nmemory_mib = 1024\n")?;
    let home = dir.path().join("home");
    let shown = done(dormouse(&home).args(["config", "show", "--log-level", "warn"]).output()?);
    let line = |key: &str| {
        let line = shown.lines().find(|l| l.split(' ').next() == Some(key)).unwrap_or_else(|| panic!("{key}: {shown}"));
        line.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(line("log.level"), "log.level = warn # flag --log-level");
    assert_eq!(line("log.files"), "log.files = 9 # ./dormouse.toml");
    assert_eq!(line("api.listen"), "api.listen = 127.0.0.1:0 # environment DORMOUSE_API_LISTEN");
    assert_eq!(line("log.file_mib"), "log.file_mib = 16 # default");
    assert_eq!(line("plans.big.memory_mib"), "plans.big.memory_mib = 1024 # ./dormouse.toml");
    assert_eq!(line("plans.free.memory_mib"), "plans.free.memory_mib = 512 # default");
    Ok(())
}

#[test]
fn version_names_build_image_and_formats() -> Test {
    let dir = tempfile::tempdir()?;
    let version = done(dormouse(&dir.path().join("home")).arg("--version").output()?);
    let words: Vec<&str> = version.lines().map(|l| l.split(' ').next().unwrap()).collect();
    assert_eq!(words, ["dormouse", "image", "formats"]);
    assert!(version.contains(env!("CARGO_PKG_VERSION")) && version.contains("dormouse image build"), "{version}");
    Ok(())
}

#[test]
fn image_gc_removes_nothing_when_it_cannot_know_what_is_needed() -> Test {
    let dir = tempfile::tempdir()?;
    let home = dir.path().join("home");
    std::fs::create_dir_all(home.join("databases/db_00000000000000000000"))?;
    image(&home);
    let message = refused(dormouse(&home).args(["image", "gc"]).output()?);
    assert!(message.contains("no metadata"), "{message}");
    assert!(home.join("images/0123456789abcdef").exists());
    Ok(())
}

/// Logs in by SCRAM-SHA-256 as far as the pooler decides: whether the password fits.
fn fits(pooler: &str, id: &str, password: &str) -> bool {
    use base64::Engine;
    use base64::prelude::BASE64_STANDARD as BASE64;
    use dormouse_api::secret::hmac;
    use sha2::{Digest, Sha256};

    fn message(stream: &mut TcpStream) -> (u8, Vec<u8>) {
        let mut head = [0; 5];
        stream.read_exact(&mut head).unwrap();
        let mut body = vec![0; u32::from_be_bytes(head[1..].try_into().unwrap()) as usize - 4];
        stream.read_exact(&mut body).unwrap();
        (head[0], body)
    }
    fn send(stream: &mut TcpStream, kind: &[u8], body: &[u8]) {
        let length = (body.len() as u32 + 4).to_be_bytes();
        stream.write_all(&[kind, &length, body].concat()).unwrap();
    }

    let mut stream = TcpStream::connect(pooler).unwrap();
    let startup = [&196_608_u32.to_be_bytes(), format!("user\0app.{id}\0database\0app\0\0").as_bytes()].concat();
    send(&mut stream, b"", &startup);
    assert_eq!(message(&mut stream).1[..4], [0, 0, 0, 10]);
    let bare = "n=,r=rOprNGfwEbeRWgbNEkqO";
    let first = format!("n,,{bare}");
    let body = [b"SCRAM-SHA-256\0", &(first.len() as u32).to_be_bytes()[..], first.as_bytes()].concat();
    send(&mut stream, b"p", &body);
    let (_, challenge) = message(&mut stream);
    let challenge = String::from_utf8(challenge[4..].to_vec()).unwrap();
    let part = |key: &str| challenge.split(',').find_map(|p| p.strip_prefix(key)).unwrap();
    let mut u = hmac(password.as_bytes(), &[BASE64.decode(part("s=")).unwrap(), vec![0, 0, 0, 1]].concat());
    let mut salted = u;
    for _ in 1..part("i=").parse::<u32>().unwrap() {
        u = hmac(password.as_bytes(), &u);
        salted.iter_mut().zip(u).for_each(|(s, u)| *s ^= u);
    }
    let client = hmac(&salted, b"Client Key");
    let last = format!("c=biws,r={}", part("r="));
    let signature = hmac(&Sha256::digest(client), format!("{bare},{challenge},{last}").as_bytes());
    let proof: Vec<u8> = client.iter().zip(signature).map(|(c, s)| c ^ s).collect();
    send(&mut stream, b"p", format!("{last},p={}", BASE64.encode(proof)).as_bytes());
    match message(&mut stream) {
        (b'R', body) => {
            assert_eq!(body[..4], [0, 0, 0, 12]);
            true
        }
        (b'E', body) => {
            assert!(String::from_utf8_lossy(&body).contains("28P01"), "{}", String::from_utf8_lossy(&body));
            false
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_new_password_opens_and_the_old_one_does_not() -> Test {
    let up = Up::start();
    let parts = |uri: String| {
        let (id, rest) = uri.strip_prefix("postgresql://app.").unwrap().split_once(':').unwrap();
        (id.to_string(), rest.split_once('@').unwrap().0.to_string())
    };
    let (id, old) = parts(done(up.run(&["db", "create", "a"])));
    assert!(fits(&up.pooler, &id, &old));
    let (same, new) = parts(done(up.run(&["db", "password", "a"])));
    assert_eq!(same, id);
    assert!(fits(&up.pooler, &id, &new));
    assert!(!fits(&up.pooler, &id, &old));
    let answer: serde_json::Value = serde_json::from_str(&done(up.run(&["db", "password", &id, "--json"])))?;
    let (_, newest) = parts(answer["connection_uri"].as_str().unwrap().to_string());
    assert!(fits(&up.pooler, &id, &newest) && !fits(&up.pooler, &id, &new));
    let log = std::fs::read_to_string(up.home.join("log/dormouse.log"))?;
    assert!(log.contains("new password") && !log.contains(&newest), "{log}");
    assert!(refused(up.run(&["db", "password", "nobody"])).contains("no database named nobody"));
    Ok(())
}

#[test]
fn a_server_whose_logs_are_on_a_full_disk_goes_on() -> Test {
    let mut up = Up::start_with(|command| {
        let home = command.get_envs().find(|(key, _)| *key == "DORMOUSE_HOME").unwrap().1.unwrap();
        let log = Path::new(home).join("log");
        std::fs::create_dir_all(&log).unwrap();
        std::os::unix::fs::symlink("/dev/full", log.join("dormouse.log")).unwrap();
        let full = || Stdio::from(std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap());
        command.env("DORMOUSE_LOG_LEVEL", "debug").stderr(full());
    });
    done(up.run(&["db", "create", "a"]));
    done(up.run(&["db", "resume", "a"]));
    assert!(done(up.run(&["db", "suspend", "a"])).contains("suspended"));
    up.signal(libc::SIGINT);
    assert!(up.child.wait()?.success());
    Ok(())
}

#[test]
fn image_list_and_version_name_the_image_its_postgres_and_its_sizes() -> Test {
    let up = Up::start();
    let list = |up: &Up| -> Vec<Vec<String>> {
        let text = done(up.run(&["image", "list"]));
        text.lines().map(|l| l.split("  ").map(|c| c.trim().to_string()).filter(|c| !c.is_empty()).collect()).collect()
    };
    let shown = list(&up);
    assert_eq!(shown[0], ["image", "postgres", "golden MiB", "asleep", "stopped", "awake"]);
    assert_eq!(shown[1..], [["0123456789abcdef", "postgres (PostgreSQL) 17.0", "512", "0", "0", "0", "current"]]);
    done(up.run(&["db", "create", "a"]));
    assert_eq!(list(&up)[1][3..], ["1", "0", "0", "current"]);
    let version = done(up.run(&["--version"]));
    assert_eq!(version.lines().nth(1), Some("image    0123456789abcdef, postgres (PostgreSQL) 17.0"), "{version}");
    // One that cannot be read is not shown, and is no reason to fail.
    let empty = up.home.parent().unwrap().join("empty");
    assert_eq!(done(dormouse(&empty).args(["image", "list"]).output()?).lines().count(), 1);
    Ok(())
}

#[test]
fn a_new_image_is_adopted_and_the_count_goes_to_zero() -> Test {
    let up = Up::start();
    for name in ["asleep", "awake", "other"] {
        done(up.run(&["db", "create", name]));
    }
    done(up.run(&["db", "resume", "awake"]));
    assert!(done(up.run(&["image", "status"])).starts_with("0 of 3 databases"));
    let home = &up.home;
    support::newer_image(home, "fedcba9876543210");
    until_count(&up, "3 of 3 databases are on an older image: 2 asleep, 0 stopped, 1 awake");
    assert!(done(up.run(&["image", "adopt", "other"])).starts_with("1 moved"));
    until_count(&up, "2 of 3 databases are on an older image: 1 asleep, 0 stopped, 1 awake");
    assert!(done(up.run(&["image", "adopt", "--per-second", "1000"])).starts_with("2 moved to the newest image, 0 left"));
    until_count(&up, "0 of 3 databases");
    assert!(done(up.run(&["image", "adopt"])).starts_with("0 moved"));
    let shown = done(up.run(&["db", "show", "awake"]));
    assert!(shown.contains("fedcba9876543210") && shown.contains("pg_version    17"), "{shown}");
    let events = done(up.run(&["db", "events", "asleep"]));
    let kinds: Vec<&str> = events.lines().skip(1).map(|l| l.split_whitespace().nth(1).unwrap()).collect();
    assert_eq!(kinds, ["created", "image_adopted"], "{events}");
    // The old one is needed no more.
    assert_eq!(done(up.run(&["image", "gc"])), "removed image 0123456789abcdef");
    Ok(())
}

/// States reach the metadata a moment after they are shown.
fn until_count(up: &Up, start: &str) {
    let begun = std::time::Instant::now();
    loop {
        let said = done(up.run(&["image", "status"]));
        if said.starts_with(start) {
            return;
        }
        assert!(begun.elapsed() < std::time::Duration::from_secs(20), "{said}");
    }
}
