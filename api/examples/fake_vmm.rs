//! A VMM for tests that speaks as on `VMM.ctl` and has no guest: what the host manager does when one misbehaves cannot
//! be had from a real one on demand.
//!
//! It holds the layer's lock as the real one does, and takes its orders from files in the database's folder:
//!
//! | file | does |
//! |---|---|
//! | `fail` | ends at once with the status in it, after a line on stderr |
//! | `slow` | never becomes ready |
//! | `busy` | refuses every suspend |
//! | `refuse` | answers a suspend with the error in it, and adds a line to `refused` |
//! | `hang` | keeps a suspend open until it is cancelled, or the file is gone |
//! | `deaf` | answers neither stop nor suspend |
//! | `disguise` | writes over its command line |
//! | `pack` | told to pack: ends with the status in it, or never if that is `hang`; leaves `packed.tmp` and a line in `packings` |
//! | `sessions` | the sessions it has, as JSON |
//!
//! With a file `never-ready` in its home it ends with the status in it before it stands by; as long as a file `late` is there it
//! does not listen yet.
//!
//! It writes `snapshot` when it suspends, removes it when it wakes (a guest that always writes), and adds a line
//! to `lives` for each life. `idle` is sent when the file `idle` appears in the database's folder.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::iter;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use dormouse_vmm::sockets::Listeners;
use dormouse_vmm::standby::{Standby, log_to};
use serde_json::{Value, json};

struct Vm {
    folder: PathBuf,
    epoch: String,
    cold: bool,
    clients: Mutex<Vec<UnixStream>>,
    cancelled: Mutex<bool>,
}

fn main() {
    let words: Vec<String> = std::env::args().collect();
    let value = |flag: &str| words.windows(2).find(|w| w[0] == flag).map(|w| w[1].clone()).unwrap();
    assert_eq!(words[1], "vmm");
    let home = PathBuf::from(value("--home"));
    if let Ok(status) = fs::read_to_string(home.join("never-ready")) {
        eprintln!("the test wants no VMM");
        std::process::exit(status.trim().parse().unwrap());
    }
    let standby = Standby::new(&value("--database")).unwrap();
    while home.join("late").exists() {
        thread::sleep(Duration::from_millis(1));
    }
    let Some(Listeners { control: listener, .. }) = standby.listen(&home.join("run/vmms")).unwrap() else { return };
    listener.set_nonblocking(false).unwrap();
    standby.say_ready(None).unwrap();
    let Some((claim, _, server)) = standby.wait().unwrap() else { return };
    let id = claim.database;
    let folder = home.join("databases").join(&id);
    log_to(&folder.join("vmm.log")).unwrap();
    if let Ok(status) = fs::read_to_string(folder.join("fail")) {
        eprintln!("the test wants it to fail");
        std::process::exit(status.trim().parse().unwrap());
    }
    fs::create_dir_all(folder.join("layer")).unwrap();
    let lock = fs::File::create(folder.join("layer/lock")).unwrap();
    // SAFETY: flock takes a descriptor we own and a flag.
    if unsafe { libc::flock(lock.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } != 0 {
        eprintln!("the layer is locked by another VMM");
        std::process::exit(73);
    }
    if claim.task.is_some() {
        drop(listener);
        return pack(&folder);
    }
    let snapshot = folder.join("snapshot");
    let cold = !snapshot.exists() && folder.join("layer/files").exists();
    let epoch = fs::read_to_string(&snapshot).ok().filter(|e| !e.is_empty());
    let epoch = epoch.unwrap_or_else(|| format!("epoch-{}", std::process::id()));
    let _ = fs::remove_file(&snapshot);
    fs::create_dir_all(folder.join("layer/files")).unwrap();
    fs::write(folder.join("layer/files/1"), "data").unwrap();
    let mut lives = fs::OpenOptions::new().create(true).append(true).open(folder.join("lives")).unwrap();
    writeln!(lives, "{}", std::process::id()).unwrap();
    fs::write(folder.join("memory_mib"), value("--memory-mib")).unwrap();
    fs::write(folder.join("image"), value("--image")).unwrap();

    if folder.join("disguise").exists() {
        disguise();
    }
    let vm = Arc::new(Vm { folder, epoch, cold, clients: Mutex::default(), cancelled: Mutex::new(false) });
    thread::spawn({
        let vm = vm.clone();
        move || vm.watch_idle()
    });
    say(&server, &json!({"event": "listening"}));
    for stream in iter::once(Ok(server)).chain(listener.incoming()) {
        let vm = vm.clone();
        thread::spawn(move || vm.serve(stream.unwrap()));
    }
}

fn pack(folder: &Path) {
    let ordered = fs::read_to_string(folder.join("pack")).unwrap_or_default();
    fs::write(folder.join("packed.tmp"), "").unwrap();
    let mut packings = fs::OpenOptions::new().create(true).append(true).open(folder.join("packings")).unwrap();
    writeln!(packings, "{}", std::process::id()).unwrap();
    match ordered.trim() {
        "" => {
            fs::rename(folder.join("packed.tmp"), folder.join("packed")).unwrap();
            fs::remove_file(folder.join("snapshot")).unwrap();
        }
        "hang" => loop {
            thread::sleep(Duration::from_secs(60));
        },
        status => std::process::exit(status.parse().unwrap()),
    }
}

/// As one does that was taken over and would not be found.
fn disguise() {
    use std::os::unix::fs::FileExt;
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<u64> = stat.rsplit_once(") ").unwrap().1.split(' ').map(|field| field.trim().parse().unwrap_or(0)).collect();
    // Fields 48 and 49, the state being the third.
    let (start, end) = (fields[48 - 3], fields[49 - 3]);
    let memory = fs::OpenOptions::new().write(true).open("/proc/self/mem").unwrap();
    memory.write_all_at(&vec![b'x'; (end - start) as usize], start).unwrap();
}

impl Vm {
    fn has(&self, name: &str) -> bool {
        self.folder.join(name).exists()
    }

    fn serve(&self, stream: UnixStream) {
        if self.has("slow") {
            loop {
                thread::sleep(Duration::from_secs(60));
            }
        }
        let ready = json!({"event": "ready", "epoch": self.epoch, "cold": self.cold, "trace": {"fake": 1}});
        {
            // Under the lock: whoever has heard "ready" hears "idle" too, and no line is split.
            let mut clients = self.clients.lock().unwrap();
            say(&stream, &ready);
            clients.push(stream.try_clone().unwrap());
        }
        for line in BufReader::new(stream.try_clone().unwrap()).lines() {
            let Ok(line) = line else { return };
            let request: Value = serde_json::from_str(&line).unwrap();
            self.answer(&request, &stream);
        }
    }

    fn answer(&self, request: &Value, stream: &UnixStream) {
        let say = |value: Value| say(stream, &value);
        match request["op"].as_str().unwrap() {
            "status" => {
                let sessions = fs::read_to_string(self.folder.join("sessions")).unwrap_or("[]".into());
                let sessions: Value = serde_json::from_str(&sessions).unwrap();
                say(json!({"ok": true, "state": "running", "epoch": self.epoch, "sessions": sessions}));
            }
            "cool_down" => {
                write_whole(&self.folder.join("cool_down"), &request["ms"].to_string());
                say(json!({"ok": true}));
            }
            "stop" | "suspend" if self.has("deaf") => {}
            "stop" => {
                say(json!({"ok": true}));
                std::process::exit(0);
            }
            "cancel" => {
                *self.cancelled.lock().unwrap() = true;
                say(json!({"ok": true}));
            }
            "suspend" => {
                write_whole(&self.folder.join("counts"), &request["sessions"].to_string());
                if self.has("busy") {
                    return say(json!({"ok": false, "error": "busy"}));
                }
                if let Ok(error) = fs::read_to_string(self.folder.join("refuse")) {
                    let mut refused = fs::OpenOptions::new().create(true).append(true).open(self.folder.join("refused")).unwrap();
                    writeln!(refused, "{error}").unwrap();
                    return say(json!({"ok": false, "error": error}));
                }
                *self.cancelled.lock().unwrap() = false;
                fs::write(self.folder.join("hanging"), "").unwrap();
                while self.has("hang") {
                    if *self.cancelled.lock().unwrap() {
                        return say(json!({"ok": false, "error": "cancelled"}));
                    }
                    thread::sleep(Duration::from_millis(1));
                }
                write_whole(&self.folder.join("snapshot"), &self.epoch);
                say(json!({"ok": true}));
                std::process::exit(0);
            }
            other => say(json!({"ok": false, "error": format!("no {other}")})),
        }
    }

    fn watch_idle(&self) {
        loop {
            thread::sleep(Duration::from_millis(1));
            if fs::remove_file(self.folder.join("idle")).is_ok() {
                for client in self.clients.lock().unwrap().iter() {
                    say(client, &json!({"event": "idle", "for_ms": 1000}));
                }
            }
        }
    }
}

/// A line in one write, so that two threads' lines are never mixed. A client that has gone hears nothing.
fn say(mut stream: &UnixStream, value: &Value) {
    let _ = stream.write_all(format!("{value}\n").as_bytes());
}

fn write_whole(path: &Path, text: &str) {
    let aside = path.with_extension("new");
    fs::write(&aside, text).unwrap();
    fs::rename(aside, path).unwrap();
}
