//! A VMM and its guest that can be made to do what real ones do only by accident: the 32-byte hello, enough of the
//! backend protocol, sleep and wake with sessions kept, and every refusal on demand.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use dormouse_pooler::{Awake, SessionCounts};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

/// What survives a sleep.
#[derive(Default)]
pub struct Backend {
    pub sent: u64,
    pub received: u64,
    pub variable: String,
    pub startup: HashMap<String, String>,
    pub queries: Vec<String>,
    cancelled: Arc<Notify>,
    /// Words that are to be sent unasked, at once or after the next bind.
    pub unasked: Vec<Vec<u8>>,
    pub told: Arc<Notify>,
}

#[derive(Default)]
pub struct Inner {
    pub epoch: u64,
    next: u64,
    pub sessions: HashMap<u64, Backend>,
    listener: Option<JoinHandle<()>>,
    connections: Vec<JoinHandle<()>>,
    stops: usize,
    pub hellos: Vec<[u8; 32]>,
    /// Status with which the next hellos are answered, instead of what would be true.
    pub force_status: Option<u32>,
    /// Answers a startup packet with these bytes instead.
    pub greeting: Option<Vec<u8>>,
    /// What the catalog has of the role that the pooler asks for, whichever it is: a verifier and whether it is expired.
    pub role: Option<(Option<String>, bool)>,
    /// Does not answer cancel requests until told.
    pub hold_cancel: Option<Arc<Notify>>,
    pub cancels: Vec<(i32, Vec<u8>)>,
}

#[derive(Clone)]
pub struct FakeVm {
    pub socket: PathBuf,
    pub inner: Arc<Mutex<Inner>>,
    pub changed: Arc<Notify>,
}

pub fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut m = vec![kind];
    m.extend_from_slice(&(body.len() as u32 + 4).to_be_bytes());
    m.extend_from_slice(body);
    m
}

pub fn row(text: &[u8]) -> Vec<u8> {
    let mut description = b"\0\x01answer\0".to_vec();
    description.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 25, 255, 255, 255, 255, 255, 255, 0, 0]);
    let mut data = 1u16.to_be_bytes().to_vec();
    data.extend_from_slice(&(text.len() as u32).to_be_bytes());
    data.extend_from_slice(text);
    [message(b'T', &description), message(b'D', &data), message(b'C', b"SELECT 1\0")].concat()
}

/// A row of two columns, the second of which is `f` or absent unless the role is expired.
fn role_row(verifier: Option<&str>, expired: bool) -> Vec<u8> {
    let mut data = 2u16.to_be_bytes().to_vec();
    for value in [verifier, expired.then_some("t")] {
        match value {
            Some(text) => {
                data.extend_from_slice(&(text.len() as u32).to_be_bytes());
                data.extend_from_slice(text.as_bytes());
            }
            None => data.extend_from_slice(&(-1i32).to_be_bytes()),
        }
    }
    [message(b'D', &data), message(b'C', b"SELECT 1\0")].concat()
}

pub fn ready() -> Vec<u8> {
    message(b'Z', b"I")
}

fn error(code: &str, text: &str) -> Vec<u8> {
    message(b'E', format!("SERROR\0VERROR\0C{code}\0M{text}\0\0").as_bytes())
}

impl FakeVm {
    pub fn new(socket: PathBuf) -> FakeVm {
        FakeVm { socket, inner: Arc::default(), changed: Arc::default() }
    }

    pub fn with<T>(&self, look: impl FnOnce(&mut Inner) -> T) -> T {
        look(&mut self.inner.lock().unwrap())
    }

    /// Waits until what is looked for is so.
    pub async fn until<T>(&self, mut look: impl FnMut(&mut Inner) -> Option<T>) -> T {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if let Some(found) = self.with(&mut look) {
                return found;
            }
            changed.await;
        }
    }

    /// Starts, or goes on from the snapshot.
    pub fn wake(&self) -> Awake {
        let mut inner = self.inner.lock().unwrap();
        if inner.listener.is_none() {
            let _ = std::fs::remove_file(&self.socket);
            let listener = UnixListener::bind(&self.socket).unwrap();
            let vm = self.clone();
            inner.listener = Some(tokio::spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    // Under the lock, so that a suspend finds every connection there is.
                    let mut inner = vm.inner.lock().unwrap();
                    let task = tokio::spawn(vm.clone().connection(stream, inner.stops));
                    inner.connections.push(task);
                }
            }));
        }
        Awake { socket: self.socket.clone(), epoch: format!("epoch-{}", inner.epoch) }
    }

    /// Compares the counts, then goes away keeping its sessions; or says why not.
    pub fn suspend(&self, sessions: &[SessionCounts]) -> Result<(), String> {
        let mut inner = self.inner.lock().unwrap();
        if sessions.len() != inner.sessions.len() {
            return Err(format!("{} sessions told of, {} here", sessions.len(), inner.sessions.len()));
        }
        for s in sessions {
            let Some(b) = inner.sessions.get(&s.session) else { return Err("unknown session".into()) };
            if (s.sent, s.received) != (b.received, b.sent) {
                return Err(format!("bytes_in_flight: {s:?}, here sent {} received {}", b.sent, b.received));
            }
        }
        inner.stop();
        Ok(())
    }

    /// As after a crash: memory and sessions are gone, the next wake is a cold start.
    pub fn kill(&self) {
        let mut inner = self.inner.lock().unwrap();
        inner.stop();
        inner.sessions.clear();
        inner.epoch += 1;
    }

    /// Sends a message unasked to one session: now if it is connected, else once it is bound again.
    pub fn tell(&self, session: u64, bytes: Vec<u8>) {
        self.with(|inner| {
            let backend = inner.sessions.get_mut(&session).unwrap();
            backend.unasked.push(bytes);
            backend.told.notify_one();
        });
    }

    async fn connection(self, mut stream: UnixStream, stops: usize) {
        let mut hello = [0; 32];
        if stream.read_exact(&mut hello).await.is_err() {
            return;
        }
        let long = |at: usize| u64::from_le_bytes(hello[at..at + 8].try_into().unwrap());
        assert_eq!(&hello[..4], b"DMS1");
        let bind = matches!(hello[4], 2 | 3);
        let mut epoch = [0; 32];
        if hello[4] == 3 && stream.read_exact(&mut epoch).await.is_err() {
            return;
        }
        let (status, session) = self.with(|inner| {
            inner.hellos.push(hello);
            let session = if bind { long(8) } else { inner.next + 1 };
            let mut status = 0;
            if bind {
                let other_life = hello[4] == 3 && !epoch.starts_with(format!("epoch-{}\0", inner.epoch).as_bytes());
                match inner.sessions.get(&session) {
                    None => status = 1,
                    Some(_) if other_life => status = 1,
                    Some(b) if (b.received, b.sent) != (long(16), long(24)) => status = 2,
                    Some(_) => {}
                }
            } else {
                inner.next += 1;
            }
            (inner.force_status.unwrap_or(status), session)
        });
        let mut answer = [0u8; 32];
        answer[..4].copy_from_slice(b"DMS1");
        answer[4..8].copy_from_slice(&status.to_le_bytes());
        answer[8..16].copy_from_slice(&session.to_le_bytes());
        if stream.write_all(&answer).await.is_err() || status != 0 {
            return;
        }
        self.changed.notify_waiters();
        if bind || self.begin(&mut stream, session).await {
            self.serve(&mut stream, session).await;
        }
        // Closed by the other side: the guest's session ends.
        self.with(|inner| {
            // Unless that was a suspend, whose end a task may see before it is aborted.
            if inner.stops == stops {
                inner.sessions.remove(&session);
            }
        });
        self.changed.notify_waiters();
    }

    /// The startup packet or a cancel request.
    async fn begin(&self, stream: &mut UnixStream, session: u64) -> bool {
        let mut length = [0; 4];
        if stream.read_exact(&mut length).await.is_err() {
            return false;
        }
        let mut packet = vec![0; u32::from_be_bytes(length) as usize - 4];
        stream.read_exact(&mut packet).await.unwrap();
        if packet[..4] == 80877102u32.to_be_bytes() {
            let process = i32::from_be_bytes(packet[4..8].try_into().unwrap());
            let hold = self.with(|inner| {
                inner.cancels.push((process, packet[8..].to_vec()));
                for (number, backend) in &inner.sessions {
                    if *number as i32 == process && packet[8..] == [1, 2, 3, 4] {
                        backend.cancelled.notify_one();
                    }
                }
                inner.hold_cancel.clone()
            });
            self.changed.notify_waiters();
            if let Some(hold) = hold {
                hold.notified().await;
            }
            return false;
        }
        let mut backend = Backend { received: packet.len() as u64 + 4, ..Backend::default() };
        let strings: Vec<String> =
            packet[4..].split(|b| *b == 0).map(|s| String::from_utf8_lossy(s).into_owned()).collect();
        for pair in strings.chunks(2).filter(|p| !p[0].is_empty()) {
            backend.startup.insert(pair[0].clone(), pair[1].clone());
        }
        let mut key = (session as i32).to_be_bytes().to_vec();
        key.extend_from_slice(&[1, 2, 3, 4]);
        let usual = [
            message(b'R', &[0; 4]),
            message(b'S', b"server_version\x0017.0\0"),
            message(b'S', b"client_encoding\0UTF8\0"),
            message(b'K', &key),
            ready(),
        ]
        .concat();
        let greeting = self.with(|inner| {
            let greeting = inner.greeting.clone().unwrap_or(usual);
            backend.sent = greeting.len() as u64;
            inner.sessions.insert(session, backend);
            greeting
        });
        stream.write_all(&greeting).await.is_ok()
    }

    async fn serve(&self, stream: &mut UnixStream, session: u64) {
        let mut input: Vec<u8> = Vec::new();
        let mut chunk = vec![0; 65536];
        loop {
            while input.len() >= 5 {
                let whole = 1 + u32::from_be_bytes(input[1..5].try_into().unwrap()) as usize;
                if input.len() < whole {
                    break;
                }
                let m: Vec<u8> = input.drain(..whole).collect();
                let Some(answer) = self.answer(session, &m).await else { return };
                if !self.send(stream, session, &answer).await {
                    return;
                }
            }
            let (told, unasked) = self.with(|inner| match inner.sessions.get_mut(&session) {
                Some(b) => (b.told.clone(), std::mem::take(&mut b.unasked)),
                None => (Arc::default(), vec![]),
            });
            for bytes in unasked {
                if !self.send(stream, session, &bytes).await {
                    return;
                }
            }
            tokio::select! {
                n = stream.read(&mut chunk) => match n {
                    Ok(n) if n > 0 => {
                        input.extend_from_slice(&chunk[..n]);
                        self.with(|inner| inner.sessions.get_mut(&session).unwrap().received += n as u64);
                        self.changed.notify_waiters();
                    }
                    _ => return,
                },
                () = told.notified() => {}
            }
        }
    }

    async fn send(&self, stream: &mut UnixStream, session: u64, bytes: &[u8]) -> bool {
        // Counted first: whoever has read them may ask at once.
        self.with(|inner| {
            if let Some(b) = inner.sessions.get_mut(&session) {
                b.sent += bytes.len() as u64;
            }
        });
        stream.write_all(bytes).await.is_ok()
    }

    /// Answers one message; `None` ends the session.
    async fn answer(&self, session: u64, m: &[u8]) -> Option<Vec<u8>> {
        match m[0] {
            b'X' => None,
            b'Q' => {
                let text = String::from_utf8_lossy(&m[5..m.len() - 1]).into_owned();
                let cancelled = self.with(|inner| {
                    let b = inner.sessions.get_mut(&session).unwrap();
                    b.queries.push(text.clone());
                    b.cancelled.clone()
                });
                self.changed.notify_waiters();
                let (word, rest) = text.split_once(' ').unwrap_or((&text, ""));
                let body = match word {
                    "set" => {
                        self.with(|inner| inner.sessions.get_mut(&session).unwrap().variable = rest.to_owned());
                        message(b'C', b"SET\0")
                    }
                    "get" => row(self.with(|inner| inner.sessions[&session].variable.clone()).as_bytes()),
                    "wait" => {
                        cancelled.notified().await;
                        error("57014", "canceling statement due to user request")
                    }
                    "SELECT" => match self.with(|inner| inner.role.clone()) {
                        Some((verifier, expired)) => role_row(verifier.as_deref(), expired),
                        None => message(b'C', b"SELECT 0\0"),
                    },
                    "announce" => {
                        let status = message(b'S', format!("dormouse.password\0{rest}\0").as_bytes());
                        [status, message(b'C', b"ALTER ROLE\0")].concat()
                    }
                    "fill" => row(&vec![b'x'; rest.parse().unwrap()]),
                    "die" => return None,
                    "fatal" => {
                        return Some(message(b'E', b"SFATAL\0VFATAL\0C57P01\0Mterminated by the guest\0\0"));
                    }
                    "copy" => return Some(message(b'G', &[0, 0, 0])),
                    _ => row(m[5..m.len() - 1].as_ref()),
                };
                Some([body, ready()].concat())
            }
            b'd' => Some(vec![]),
            b'c' => Some([message(b'C', b"COPY 1\0"), ready()].concat()),
            b'P' => Some(message(b'1', b"")),
            b'S' => Some(ready()),
            _ => Some(vec![]),
        }
    }
}

impl Inner {
    fn stop(&mut self) {
        if let Some(listener) = self.listener.take() {
            listener.abort();
        }
        self.connections.drain(..).for_each(|c| c.abort());
        self.stops += 1;
    }
}
