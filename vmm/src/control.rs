//! `VMM.ctl`: requests and answers, one JSON object a line (`docs/interfaces.md`).
//!
//! This module reads requests and writes lines; what a request does is the monitor's business.

use std::collections::{HashMap, VecDeque};
use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};

use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::reactor::{Event, Reactor, STREAM};

/// The longest request, bytes: a suspend names every session.
const MOST_LINE: usize = 1 << 20;
/// What a client may leave unread before it is cut off, bytes.
const MOST_UNREAD: usize = 1 << 20;

/// A session's counts, from the pooler's side.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
pub struct SessionCounts {
    pub session: u64,
    /// Bytes to the guest.
    pub sent: u64,
    /// Bytes from the guest.
    pub received: u64,
}

/// A request.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Request {
    Status,
    Suspend {
        #[serde(default)]
        sessions: Vec<SessionCounts>,
    },
    Cancel,
    Stop,
    Tasks,
    /// Kills a process of the guest: only in a VMM built for tests.
    #[cfg(feature = "crash-points")]
    Kill {
        pid: i32,
    },
    /// Tries what the jail is to refuse: only in a VMM built for tests.
    #[cfg(feature = "crash-points")]
    Attempt {
        what: String,
    },
    CoolDown {
        ms: u64,
    },
    /// Samples of the guest in each second of its CPU time; 0 ends it.
    Profile {
        hz: u32,
    },
}

/// Said to the server that claimed this process, before any other event: it is the database's, whose sessions may connect.
pub const LISTENING: &[u8] = b"{\"event\":\"listening\"}\n";

/// A client, by its token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Client(pub u64);

#[derive(Debug)]
struct Line {
    stream: UnixStream,
    incoming: Vec<u8>,
    outgoing: VecDeque<u8>,
}

/// The listener and its clients.
pub struct Control {
    listener: UnixListener,
    clients: HashMap<u64, Line>,
}

impl Control {
    pub fn new(listener: UnixListener) -> Self {
        Self { listener, clients: HashMap::new() }
    }

    /// How many clients are connected.
    pub fn clients(&self) -> usize {
        self.clients.len()
    }

    /// The listener is readable; returns the new clients.
    pub fn accept(&mut self, reactor: &Reactor, token: &mut impl FnMut() -> u64) -> Vec<Client> {
        let mut new = Vec::new();
        while let Ok((stream, _)) = self.listener.accept() {
            new.extend(self.add(reactor, token(), stream));
        }
        new
    }

    /// Takes a connection for a client's; `None` if it cannot be watched.
    pub fn add(&mut self, reactor: &Reactor, token: u64, stream: UnixStream) -> Option<Client> {
        stream.set_nonblocking(true).and_then(|()| reactor.add(&stream, token, STREAM)).ok()?;
        self.clients.insert(token, Line { stream, incoming: Vec::new(), outgoing: VecDeque::new() });
        Some(Client(token))
    }

    /// Something happened to a client; returns its requests, or `None` if the token is not a client's. A request
    /// that cannot be read is answered here.
    pub fn event(&mut self, event: Event) -> Option<Vec<Request>> {
        let line = self.clients.get_mut(&event.token)?;
        let mut open = true;
        let mut buffer = [0; 4096];
        loop {
            match line.stream.read(&mut buffer) {
                Ok(0) => {
                    open = false;
                    break;
                }
                Ok(len) => line.incoming.extend_from_slice(&buffer[..len]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    open = false;
                    break;
                }
            }
            if line.incoming.len() > MOST_LINE {
                tracing::warn!("a control request is too long; its client is cut off");
                open = false;
                break;
            }
        }
        let mut requests = Vec::new();
        while let Some(end) = line.incoming.iter().position(|byte| *byte == b'\n') {
            let bytes: Vec<u8> = line.incoming.drain(..=end).collect();
            match serde_json::from_slice(&bytes) {
                Ok(request) => requests.push(request),
                Err(error) => {
                    let answer = json!({"ok": false, "error": format!("not a request: {error}")});
                    line.outgoing.extend(answer.to_string().as_bytes());
                    line.outgoing.push_back(b'\n');
                }
            }
        }
        line.flush();
        if !open {
            self.clients.remove(&event.token);
        }
        Some(requests)
    }

    /// Writes one line to a client, if it is still there.
    pub fn tell(&mut self, client: Client, line: &impl Serialize) {
        let Ok(bytes) = serde_json::to_vec(line) else { return };
        let Some(to) = self.clients.get_mut(&client.0) else { return };
        to.outgoing.extend(bytes);
        to.outgoing.push_back(b'\n');
        to.flush();
        if to.outgoing.len() > MOST_UNREAD {
            tracing::warn!("a control client does not read; it is cut off");
            self.clients.remove(&client.0);
        }
    }

    /// Writes one line to every client.
    pub fn tell_all(&mut self, line: &impl Serialize) {
        let clients: Vec<u64> = self.clients.keys().copied().collect();
        for client in clients {
            self.tell(Client(client), line);
        }
    }
}

impl Line {
    fn flush(&mut self) {
        while !self.outgoing.is_empty() {
            match self.stream.write(self.outgoing.as_slices().0) {
                Ok(len) => drop(self.outgoing.drain(..len)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_read_as_the_interface_page_writes_them() {
        let read = |text: &str| serde_json::from_str::<Request>(text);
        assert_eq!(read(r#"{"op":"status"}"#).unwrap(), Request::Status);
        assert_eq!(read(r#"{"op":"tasks"}"#).unwrap(), Request::Tasks);
        assert_eq!(read(r#"{"op":"cool_down","ms":250}"#).unwrap(), Request::CoolDown { ms: 250 });
        assert_eq!(
            read(r#"{"op":"suspend","sessions":[{"session":1,"sent":2,"received":3}]}"#).unwrap(),
            Request::Suspend { sessions: vec![SessionCounts { session: 1, sent: 2, received: 3 }] }
        );
        assert!(read(r#"{"op":"explode"}"#).is_err());
        assert!(read("{").is_err());
    }

    #[test]
    fn a_client_gets_its_answers_and_a_bad_line_does_not_cut_it_off() {
        let dir = tempfile::tempdir().unwrap();
        let mut control = Control::new(crate::sockets::Listeners::new(dir.path()).unwrap().control);
        let reactor = Reactor::new().unwrap();
        let pid = std::process::id();
        let name = crate::sockets::name(pid, crate::sockets::started(pid).unwrap().unwrap());
        let mut client = UnixStream::connect(dir.path().join(format!("{name}.ctl"))).unwrap();
        let mut next = 10;
        let new = control.accept(&reactor, &mut || {
            next += 1;
            next
        });
        assert_eq!(new, [Client(11)]);
        client.write_all(b"nonsense\n{\"op\":\"status\"}\n{\"op\":").unwrap();
        let event = Event { token: 11, ready: libc::EPOLLIN as u32 };
        assert_eq!(control.event(event), Some(vec![Request::Status]));
        client.write_all(b"\"stop\"}\n").unwrap();
        assert_eq!(control.event(event), Some(vec![Request::Stop]));
        control.tell(new[0], &json!({"ok": true}));
        drop(control);
        let mut all = String::new();
        client.read_to_string(&mut all).unwrap();
        let lines: Vec<&str> = all.lines().collect();
        assert!(lines[0].contains("not a request"), "{all}");
        assert_eq!(lines[1], r#"{"ok":true}"#);
    }
}
