//! A rehearsal: a first clone of the golden guest is used as a tenant would, put to sleep, and woken. Which of its pages have changed by
//! then, and which it touches when it is awake again, is kept beside the golden snapshot, for VMMs that stand by
//! (`vmm/src/snapshot/hot.rs`).

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

use dormouse_abi::TEXT;
use serde_json::json;

use crate::golden::{
    DATABASE, GoldenError, WARM_DATABASE, at, bake_golden, ended_well, scratch_home, start, tail, wait,
};
use crate::manifest::{Manifest, file};
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
/// What a connection to a VMM can be (docs/interfaces.md).
const NEW: u32 = 1;
const BIND_AGAIN: u32 = 2;
/// The owner's role (images/postgres/template.sql).
const ROLE: &str = "app";
/// What most tenants do, one after the other, in a session that ends.
const FIRST_SESSION: &[&str] = &[
    "SET client_encoding = 'UTF8'; SELECT version()",
    "CREATE SCHEMA app; CREATE TABLE app.person (id serial PRIMARY KEY, name text NOT NULL, mail text UNIQUE, \
     since timestamptz DEFAULT now(), more jsonb DEFAULT '{}')",
    "CREATE TABLE app.thing (id int PRIMARY KEY, name text NOT NULL, price numeric(10, 2) CHECK (price >= 0))",
    "CREATE TABLE app.deed (id bigserial PRIMARY KEY, person int REFERENCES app.person, thing int REFERENCES app.thing, \
     many int NOT NULL CHECK (many > 0), at timestamptz DEFAULT now())",
    "CREATE INDEX ON app.deed (person); CREATE INDEX ON app.thing (name)",
    "CREATE VIEW app.spent AS SELECT person, sum(many * price) AS total FROM app.deed JOIN app.thing ON thing = thing.id GROUP BY person",
    "INSERT INTO app.person (name, mail) SELECT 'person ' || n, n || '@example.org' FROM generate_series(1, 300) n",
    "INSERT INTO app.thing SELECT n, md5(n::text), n % 70 FROM generate_series(1, 300) n",
    "INSERT INTO app.deed (person, thing, many) SELECT n % 300 + 1, n % 300 + 1, n % 9 + 1 FROM generate_series(1, 1000) n",
    "SELECT name, sum(many) FROM app.person JOIN app.deed ON person = person.id GROUP BY name ORDER BY 2 LIMIT 5",
    "BEGIN; UPDATE app.person SET since = now() WHERE id = 7; DELETE FROM app.deed WHERE id = 7; COMMIT",
];
/// In another, and in one that is held.
const LATER_SESSION: &[&str] = &[
    "SELECT id, name FROM app.person WHERE mail = '77@example.org'",
    "INSERT INTO app.deed (person, thing, many) VALUES (77, 42, 1) RETURNING id",
    "UPDATE app.thing SET price = price + 0.01 WHERE id = 42",
    "SELECT total FROM app.spent WHERE person = 77",
];
/// After a wake.
const WOKEN_SESSION: &[&str] = &["SELECT person, thing FROM app.deed WHERE id = 70"];
/// After another, for what of the program others want: each of these is the first that some application says.
const WIDER_SESSION: &[&str] = &[
    "SELECT 1",
    "SELECT name || ', ' || coalesce(mail, '-'), since::date, more ->> 'a' FROM app.person WHERE id IN (7, 8) AND mail LIKE '7%' ORDER BY id DESC LIMIT 5",
    "SELECT count(*), max(at), min(many), avg(price)::numeric(10, 2) FROM app.deed JOIN app.thing ON thing.id = thing WHERE person = 77 AND at > now() - interval '1 day'",
    "SELECT p.name, count(d.id) FROM app.person p LEFT JOIN app.deed d ON d.person = p.id WHERE p.id BETWEEN 1 AND 50 GROUP BY p.name HAVING count(*) > 1 ORDER BY 2 DESC, 1 LIMIT 10 OFFSET 2",
    "SELECT EXISTS (SELECT FROM app.thing WHERE name = 'none') OR NOT (SELECT bool_and(price >= 0) FROM app.thing), upper(left('abc', 2)), array_agg(id) FROM app.thing WHERE id < 4",
    "WITH few AS (SELECT id, many FROM app.deed WHERE person = 7) SELECT json_agg(few), sum(many) FROM few",
    "BEGIN; INSERT INTO app.person (name, mail) VALUES ('one', '1@example.org') ON CONFLICT (mail) DO UPDATE SET name = excluded.name; \
     INSERT INTO app.deed (person, thing, many) VALUES (7, 7, 7) RETURNING id, at; UPDATE app.person SET since = now(), more = '{\"a\": 1}' WHERE id = 8; \
     DELETE FROM app.deed WHERE id = 9; COMMIT",
    "BEGIN; SAVEPOINT one; SELECT id FROM app.thing WHERE id = 7 FOR UPDATE; ROLLBACK",
    "SET search_path = app, public; SHOW search_path; SELECT current_user, txid_current()",
];

/// Makes the golden snapshot of an image for guests of `memory_mib` MiB, unless it is there, with `park` backends ready, and
/// notes which of its pages a clone changes and touches, unless that is known. `vmm` is the program and its first arguments
/// (`dormouse vmm`). Returns whether a snapshot was made, and how many pages a rehearsal found that was made.
///
/// # Errors
/// If the image cannot be read, the VMM makes no snapshot in time, or a clone does not do what it must. A snapshot that was made now
/// and whose first clone fails is gone again.
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

/// Notes which pages of the golden guest of `memory_mib` MiB a clone changes, and which it touches when it is woken, unless that is
/// known already. `vmm` is the program and its first arguments. Returns how many change, of a rehearsal made now.
///
/// # Errors
/// If a clone does not run, answer, sleep and wake as it must; then the golden snapshot is no good.
fn rehearse(home: &Path, image: &str, memory_mib: u64, vmm: &[OsString]) -> Result<Option<usize>, GoldenError> {
    let golden = Store::new(home).image(image).join(file::GOLDEN).join(memory_mib.to_string());
    let [hot, touched] = [file::HOT, file::TOUCHED].map(|name| golden.join(name));
    if hot.exists() && touched.exists() {
        return Ok(None);
    }
    let memory = memory_mib.to_string();
    let manifest = Manifest::load(&Store::new(home).image(image))?;
    let stage = Stage { vmm, image, memory: &memory, scratch: at(scratch_home(home), "prepare", home)? };
    let held = stage.act(None, |guest| {
        for queries in [FIRST_SESSION, LATER_SESSION] {
            let mut session = Session::begin(guest.connect()?)?;
            session.queries(queries)?;
            session.end()?;
        }
        let mut session = Session::begin(guest.connect()?)?;
        session.queries(LATER_SESSION)?;
        Ok(vec![session])
    })?;
    let notes = |wake: &str| at(std::path::absolute(stage.scratch.path().join(wake)), "find", stage.scratch.path());
    let [by_held, by_new, by_wider] = [notes("by-held")?, notes("by-new")?, notes("by-wider")?];
    stage.act(Some(&by_held), |guest| {
        for session in held {
            let mut session = session.bind_again(guest.connect()?)?;
            session.queries(WOKEN_SESSION)?;
            session.end()?;
        }
        Ok(Vec::new())
    })?;
    // Where the held one was: most who connect anew have none that is held.
    let held = stage.act(Some(&by_new), |guest| {
        let mut session = Session::begin(guest.connect()?)?;
        session.queries(WOKEN_SESSION)?;
        Ok(vec![session])
    })?;
    stage.act(Some(&by_wider), |guest| {
        for session in held {
            let mut session = session.bind_again(guest.connect()?)?;
            session.queries(WIDER_SESSION)?;
            session.prepared("SELECT name FROM app.thing WHERE id = $1", "42")?;
            session.end()?;
        }
        Ok(Vec::new())
    })?;
    let read = |folder: &Path, name| {
        let path = folder.join(name);
        at(std::fs::read(&path), "read what its VMM noted in", &path)
    };
    let changed = either(&read(&by_held, file::HOT)?, &read(&by_new, file::HOT)?);
    let program = program_only(read(&by_wider, file::TOUCHED)?, TEXT + manifest.layout.shared_end);
    let wanted = in_order([read(&by_held, file::TOUCHED)?, read(&by_new, file::TOUCHED)?, program]);
    for (bytes, target) in [(&changed, &hot), (&wanted, &touched)] {
        if bytes.is_empty() {
            return Err(GoldenError::Rehearsal { source: io::Error::other("its VMM noted no pages"), console: String::new() });
        }
        let draft = at(Draft::beside(target), "replace", target)?;
        at(std::fs::write(draft.path(), bytes), "write", draft.path())?;
        at(draft.finish(target), "write", target)?;
    }
    Ok(Some(changed.len() / size_of::<u32>()))
}

/// The numbers that are in one list or in the other, ascending.
fn either(one: &[u8], other: &[u8]) -> Vec<u8> {
    let numbers: BTreeSet<u32> = [one, other].iter().flat_map(|list| list.as_chunks().0).map(|bytes| u32::from_le_bytes(*bytes)).collect();
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

/// The addresses of several lists, each once. Those that a held session touches come first: most wakes are held sessions'.
fn in_order<const N: usize>(lists: [Vec<u8>; N]) -> Vec<u8> {
    let mut known = BTreeSet::new();
    lists.iter().flat_map(|list| list.as_chunks::<8>().0).filter(|address| known.insert(**address)).flatten().copied().collect()
}

/// Those below where the memory begins that a process may change: of a session's own pages another's queries say nothing.
fn program_only(addresses: Vec<u8>, end: u64) -> Vec<u8> {
    addresses.as_chunks().0.iter().filter(|address| u64::from_le_bytes(**address) < end).flatten().copied().collect()
}

/// Where a clone is rehearsed, one VMM after the other.
struct Stage<'a> {
    vmm: &'a [OsString],
    image: &'a str,
    memory: &'a str,
    scratch: Draft,
}

impl Stage<'_> {
    /// Starts the clone's VMM, uses it as `play` does, and has it suspended with the sessions that are left, which it gives; what the VMM
    /// notes goes to the folder `notes`.
    fn act(
        &self,
        notes: Option<&Path>,
        play: impl FnOnce(&mut Vm) -> io::Result<Vec<Session>>,
    ) -> Result<Vec<Session>, GoldenError> {
        let console = self.scratch.path().join("databases").join(DATABASE).join("console.log");
        let mut words: Vec<&OsStr> = vec![
            "--database".as_ref(),
            DATABASE.as_ref(),
            "--home".as_ref(),
            self.scratch.path().as_os_str(),
            "--image".as_ref(),
            self.image.as_ref(),
            "--memory-mib".as_ref(),
            self.memory.as_ref(),
        ];
        if let Some(notes) = notes {
            at(std::fs::create_dir(notes), "make", notes)?;
        }
        words.extend(notes.into_iter().flat_map(|notes| ["--note-pages".as_ref(), notes.as_os_str()]));
        let mut vm = Vm { child: start(self.vmm, &words)?, sockets: self.scratch.path().join("run/vmms") };
        let mut sessions = Vec::new();
        let end = vm.used(play).and_then(|left| {
            sessions = left;
            wait(&mut vm.child, PATIENCE)
        });
        let failed = |source| GoldenError::Rehearsal { source, console: tail(&console) };
        ended_well(&mut vm.child, end, &console, failed)?;
        Ok(sessions)
    }
}

/// The clone's VMM, and the folder of its sockets.
struct Vm {
    child: Child,
    sockets: PathBuf,
}

impl Vm {
    /// Uses it once it is ready, and has it suspended; the sessions that sleep with it.
    fn used(&mut self, play: impl FnOnce(&mut Vm) -> io::Result<Vec<Session>>) -> io::Result<Vec<Session>> {
        let mut control = Control(BufReader::new(self.listening("ctl")?));
        if control.event("ready")?["cold"] != false {
            return Err(io::Error::other("it started cold"));
        }
        let sessions = play(self)?;
        let counts: Vec<_> = sessions.iter().map(Session::counts).collect();
        let suspend = json!({"op": "suspend", "sessions": counts}).to_string();
        loop {
            control.ask(&json!({"op": "cool_down", "ms": COOL_DOWN_MS}).to_string())?;
            control.event("idle")?;
            let answer = control.ask(&suspend)?;
            match answer["error"].as_str() {
                None => return Ok(sessions),
                // Whatever keeps it awake, it is asked again once it is idle.
                Some("busy" | "bytes_in_flight" | "cancelled") => {}
                Some(error) => return Err(io::Error::other(format!("it does not go to sleep: {error}"))),
            }
        }
    }

    /// A connection for a session.
    fn connect(&mut self) -> io::Result<UnixStream> {
        self.listening("sock")
    }

    /// Connects as soon as the VMM listens.
    fn listening(&mut self, name: &str) -> io::Result<UnixStream> {
        // Its number, and when it was started.
        let (start, end, deadline) = (format!("{}-", self.child.id()), format!(".{name}"), Instant::now() + PATIENCE);
        let find = || {
            let names = std::fs::read_dir(&self.sockets)?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
            let name = names.filter(|name| name.starts_with(&start) && name.ends_with(&end)).last();
            name.map(|name| self.sockets.join(name)).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
        };
        loop {
            match find().and_then(UnixStream::connect) {
                Ok(stream) => {
                    stream.set_read_timeout(Some(PATIENCE))?;
                    return Ok(stream);
                }
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_) if wait(&mut self.child, LOOK)?.is_some() => return Err(io::Error::other("it ended before it listened")),
                Err(_) => {}
            }
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
    fn begin(stream: UnixStream) -> io::Result<Self> {
        let mut session = Self { stream, id: 0, sent: 0, received: 0 };
        session.id = session.hello(NEW)?;
        let parameters = format!("user\0{ROLE}\0database\0{WARM_DATABASE}\0application_name\0rehearsal\0\0");
        session.send(&[], &[&PROTOCOL.to_be_bytes(), parameters.as_bytes()].concat())?;
        session.until_ready()?;
        Ok(session)
    }

    /// Goes on with it over another connection, after a sleep.
    fn bind_again(self, stream: UnixStream) -> io::Result<Self> {
        let mut session = Self { stream, ..self };
        session.hello(BIND_AGAIN)?;
        Ok(session)
    }

    /// Says which session the connection is to be; its number.
    fn hello(&mut self, operation: u32) -> io::Result<u64> {
        let mut hello = Vec::from(*b"DMS1");
        hello.extend(operation.to_le_bytes());
        hello.extend([self.id, self.sent, self.received].iter().flat_map(|number| number.to_le_bytes()));
        self.stream.write_all(&hello)?;
        self.stream.read_exact(&mut hello)?;
        match hello[4] {
            0 => Ok(u64::from_le_bytes(hello[8..16].try_into().unwrap_or_default())),
            status => Err(io::Error::other(format!("it refused a session: {status}"))),
        }
    }

    /// What the VMM is told of it when it is suspended.
    fn counts(&self) -> serde_json::Value {
        json!({"session": self.id, "sent": self.sent, "received": self.received})
    }

    /// Sends a message; the first of a session has no type.
    fn send(&mut self, kind: &[u8], body: &[u8]) -> io::Result<()> {
        let len = u32::try_from(body.len() + 4).map_err(io::Error::other)?;
        let message = [kind, &len.to_be_bytes(), body].concat();
        self.sent += message.len() as u64;
        self.stream.write_all(&message)
    }

    fn queries(&mut self, all: &[&str]) -> io::Result<()> {
        for sql in all {
            self.send(b"Q", &[sql.as_bytes(), &[0]].concat())?;
            self.until_ready()?;
        }
        Ok(())
    }

    /// Has a statement with a parameter carried out as drivers do, by messages for each step.
    fn prepared(&mut self, sql: &str, value: &str) -> io::Result<()> {
        self.send(b"P", &[b"\0", sql.as_bytes(), b"\0\0\0"].concat())?;
        let len = u32::try_from(value.len()).map_err(io::Error::other)?;
        self.send(b"B", &[b"\0\0\0\0\0\x01", &len.to_be_bytes()[..], value.as_bytes(), b"\0\0"].concat())?;
        self.send(b"D", b"P\0")?;
        self.send(b"E", b"\0\0\0\0\0")?;
        self.send(b"S", &[])?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changes_by_either_is_listed_once_and_in_order() {
        let bytes = |numbers: &[u32]| numbers.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<u8>>();
        assert_eq!(either(&bytes(&[3, 7, 256]), &bytes(&[1, 7, 65536])), bytes(&[1, 3, 7, 256, 65536]));
        assert_eq!(either(&bytes(&[]), &bytes(&[])), bytes(&[]));
    }

    #[test]
    fn what_a_held_session_touches_comes_first_and_once() {
        let bytes = |numbers: &[u64]| numbers.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<u8>>();
        assert_eq!(in_order([bytes(&[4096, 12288]), bytes(&[4096, 8192, 12288, 16384])]), bytes(&[4096, 12288, 8192, 16384]));
        assert_eq!(in_order([bytes(&[]), bytes(&[8192]), bytes(&[4096, 8192])]), bytes(&[8192, 4096]));
    }

    #[test]
    fn of_other_queries_only_the_program_counts() {
        let bytes = |numbers: &[u64]| numbers.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<u8>>();
        assert_eq!(program_only(bytes(&[4096, 8192, 12288]), 12288), bytes(&[4096, 8192]));
    }
}
