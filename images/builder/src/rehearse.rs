//! A rehearsal: a first clone of the golden guest is used as a tenant would, put to sleep, and which of its pages have
//! changed is kept beside the golden snapshot, for VMMs that stand by (`vmm/src/snapshot/hot.rs`).

use std::ffi::{OsStr, OsString};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::golden::{
    DATABASE, GoldenError, WARM_DATABASE, at, bake_golden, ended_well, scratch_home, start, tail, wait,
};
use crate::manifest::file;
use crate::store::Store;
use crate::tree::Draft;

/// How long any answer may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long the guest must have been idle before it is put to sleep.
const COOL_DOWN_MS: u32 = 200;
/// How often a VMM that does not listen yet is looked at.
const LOOK: Duration = Duration::from_millis(5);
/// Version 3.0 of the protocol.
const PROTOCOL: u32 = 3 << 16;
/// The owner's role (images/postgres/template.sql).
const ROLE: &str = "app";
/// What most tenants do, one after the other, in a session that ends.
const FIRST_SESSION: &[&str] = &[
    "SET client_encoding = 'UTF8'; SELECT version()",
    "CREATE TABLE rehearsal (id bigserial PRIMARY KEY, name text NOT NULL UNIQUE, at timestamptz DEFAULT now(), \
     more jsonb DEFAULT '{}')",
    "CREATE TABLE rehearsed (id int PRIMARY KEY, rehearsal bigint REFERENCES rehearsal, price numeric(10, 2))",
    "CREATE INDEX ON rehearsed (rehearsal)",
    "INSERT INTO rehearsal (name) SELECT md5(n::text) FROM generate_series(1, 1000) n",
    "INSERT INTO rehearsed SELECT n, n % 1000 + 1, n FROM generate_series(1, 1000) n",
    "SELECT name, sum(price) FROM rehearsal JOIN rehearsed ON rehearsal = rehearsal.id GROUP BY name ORDER BY 2 LIMIT 5",
    "BEGIN; UPDATE rehearsal SET at = now() WHERE id = 7; DELETE FROM rehearsed WHERE id = 7; COMMIT",
];
/// In one that is held.
const HELD_SESSION: &[&str] = &[
    "SELECT count(*), max(price) FROM rehearsed WHERE rehearsal IN (SELECT id FROM rehearsal WHERE name > 'a')",
    "INSERT INTO rehearsal (name) VALUES ('one more') RETURNING id",
];

/// Makes the golden snapshot of an image for guests of `memory_mib` MiB, unless it is there, with `park` backends ready, and
/// notes which of its pages a clone changes, unless that is known. `vmm` is the program and its first arguments (`dormouse vmm`).
/// Returns whether a snapshot was made, and how many pages a rehearsal found that was made.
///
/// # Errors
/// If the image cannot be read, the VMM makes no snapshot in time, or a clone does not do what it must. A snapshot that was made now and whose first clone fails is gone again.
pub fn bake_and_rehearse(
    home: &Path,
    image: &str,
    memory_mib: u64,
    park: u32,
    vmm: &[OsString],
) -> Result<(bool, Option<usize>), GoldenError> {
    let made = bake_golden(home, image, memory_mib, park, vmm)?;
    match rehearse(home, image, memory_mib, vmm) {
        Ok(pages) => Ok((made, pages)),
        Err(error) => {
            if made {
                let golden = Store::new(home).image(image).join(file::GOLDEN).join(memory_mib.to_string());
                at(std::fs::remove_dir_all(&golden), "remove", &golden)?;
            }
            Err(error)
        }
    }
}

/// Notes which pages of the golden guest of `memory_mib` MiB a clone changes, unless that is known already. `vmm` is the
/// program and its first arguments. Returns how many they are, of a rehearsal made now.
///
/// # Errors
/// If a clone does not run, answer and sleep as it must; then the golden snapshot is no good.
fn rehearse(home: &Path, image: &str, memory_mib: u64, vmm: &[OsString]) -> Result<Option<usize>, GoldenError> {
    let golden = Store::new(home).image(image).join(file::GOLDEN).join(memory_mib.to_string());
    let target = golden.join(file::HOT);
    if target.exists() {
        return Ok(None);
    }
    let draft = at(Draft::beside(&target), "replace", &target)?;
    let scratch = at(scratch_home(home), "prepare", home)?;
    let notes = at(std::path::absolute(draft.path()), "find", draft.path())?;
    let console = scratch.path().join("databases").join(DATABASE).join("console.log");
    let memory = memory_mib.to_string();
    let words: [&OsStr; 10] = [
        "--database".as_ref(),
        DATABASE.as_ref(),
        "--home".as_ref(),
        scratch.path().as_os_str(),
        "--image".as_ref(),
        image.as_ref(),
        "--memory-mib".as_ref(),
        memory.as_ref(),
        "--note-pages".as_ref(),
        notes.as_os_str(),
    ];
    let mut child = start(vmm, &words)?;
    let run = scratch.path().join("run").join(DATABASE);
    let end = play(&run, &mut child).and_then(|()| wait(&mut child, PATIENCE));
    let failed = |source| GoldenError::Rehearsal { source, console: tail(&console) };
    ended_well(&mut child, end, &console, failed)?;
    let bytes = std::fs::metadata(draft.path()).map_err(failed)?.len();
    if bytes == 0 || !bytes.is_multiple_of(4) {
        return Err(failed(io::Error::other("its VMM noted no pages, or half of them")));
    }
    at(draft.finish(&target), "write", &target)?;
    Ok(Some(bytes as usize / 4))
}

/// Uses the clone whose sockets are in `run`, and has it suspended.
fn play(run: &Path, child: &mut Child) -> io::Result<()> {
    let mut control = Control(BufReader::new(connect(&run.join("vm.ctl"), child)?));
    control.event("ready")?;
    let mut session = Session::begin(connect(&run.join("vm.sock"), child)?)?;
    for sql in FIRST_SESSION {
        session.query(sql)?;
    }
    session.end()?;
    let mut session = Session::begin(connect(&run.join("vm.sock"), child)?)?;
    for sql in HELD_SESSION {
        session.query(sql)?;
    }
    let Session { id, sent, received, .. } = session;
    let suspend = json!({"op": "suspend", "sessions": [{"session": id, "sent": sent, "received": received}]}).to_string();
    loop {
        control.ask(&json!({"op": "cool_down", "ms": COOL_DOWN_MS}).to_string())?;
        control.event("idle")?;
        let answer = control.ask(&suspend)?;
        match answer["error"].as_str() {
            None => return Ok(()),
            // Whatever keeps it awake, it is asked again once it is idle.
            Some("busy" | "bytes_in_flight" | "cancelled") => {}
            Some(error) => return Err(io::Error::other(format!("it does not go to sleep: {error}"))),
        }
    }
}

/// Connects as soon as the VMM listens.
fn connect(path: &Path, child: &mut Child) -> io::Result<UnixStream> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match UnixStream::connect(path) {
            Ok(stream) => {
                stream.set_read_timeout(Some(PATIENCE))?;
                return Ok(stream);
            }
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(_) if wait(child, LOOK)?.is_some() => return Err(io::Error::other("it ended before it listened")),
            Err(_) => {}
        }
    }
}

/// The VMM's control socket.
struct Control(BufReader<UnixStream>);

impl Control {
    /// The answer to a request.
    fn ask(&mut self, request: &str) -> io::Result<serde_json::Value> {
        writeln!(self.0.get_mut(), "{request}")?;
        self.find(|line| line.get("ok").is_some())
    }

    fn event(&mut self, name: &str) -> io::Result<serde_json::Value> {
        self.find(|line| line["event"] == name)
    }

    /// The first line that is wanted.
    fn find(&mut self, wanted: impl Fn(&serde_json::Value) -> bool) -> io::Result<serde_json::Value> {
        let mut line = String::new();
        loop {
            line.clear();
            if self.0.read_line(&mut line)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let value = serde_json::from_str(&line)?;
            if wanted(&value) {
                return Ok(value);
            }
        }
    }
}

/// A session with Postgres, as the pooler has it with a guest (docs/interfaces.md).
struct Session {
    stream: UnixStream,
    id: u64,
    sent: u64,
    received: u64,
}

impl Session {
    fn begin(mut stream: UnixStream) -> io::Result<Self> {
        let mut hello = [0; 32];
        hello[..4].copy_from_slice(b"DMS1");
        hello[4] = 1;
        stream.write_all(&hello)?;
        stream.read_exact(&mut hello)?;
        if hello[4] != 0 {
            return Err(io::Error::other(format!("it refused a session: {}", hello[4])));
        }
        let id = u64::from_le_bytes(hello[8..16].try_into().unwrap_or_default());
        let mut session = Self { stream, id, sent: 0, received: 0 };
        let parameters = format!("user\0{ROLE}\0database\0{WARM_DATABASE}\0application_name\0rehearsal\0\0");
        session.send(&[], &[&PROTOCOL.to_be_bytes(), parameters.as_bytes()].concat())?;
        session.until_ready()?;
        Ok(session)
    }

    /// Sends a message; the first of a session has no type.
    fn send(&mut self, kind: &[u8], body: &[u8]) -> io::Result<()> {
        let len = u32::try_from(body.len() + 4).map_err(io::Error::other)?;
        let message = [kind, &len.to_be_bytes(), body].concat();
        self.sent += message.len() as u64;
        self.stream.write_all(&message)
    }

    fn query(&mut self, sql: &str) -> io::Result<()> {
        self.send(b"Q", &[sql.as_bytes(), &[0]].concat())?;
        self.until_ready()
    }

    /// Reads until the server waits for the next query.
    fn until_ready(&mut self) -> io::Result<()> {
        loop {
            let mut head = [0; 5];
            self.stream.read_exact(&mut head)?;
            let [kind, len @ ..] = head;
            let mut body = vec![0; (u32::from_be_bytes(len) as usize).saturating_sub(4)];
            self.stream.read_exact(&mut body)?;
            self.received += (head.len() + body.len()) as u64;
            match kind {
                b'E' => return Err(io::Error::other(String::from_utf8_lossy(&body).replace('\0', " "))),
                b'Z' => return Ok(()),
                _ => {}
            }
        }
    }

    /// Ends it, and waits until the server has.
    fn end(mut self) -> io::Result<()> {
        self.send(b"X", &[])?;
        io::copy(&mut self.stream, &mut io::sink()).map(|_| ())
    }
}
