//! The wire of `VMM.ctl`: JSON, one object a line (`docs/interfaces.md`).

use std::collections::BTreeMap;
use std::io;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

/// What a session's two ends have counted, from the pooler's side, in bytes since it began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionCounts {
    pub session: u64,
    /// To the guest.
    pub sent: u64,
    /// From the guest.
    pub received: u64,
}

#[derive(Clone, Debug, Serialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Request {
    Status,
    Suspend { sessions: Vec<SessionCounts> },
    Cancel,
    Stop,
    Tasks,
    CoolDown { ms: u64 },
}

/// A line from the VMM: an answer to the oldest open request, or an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    Answer(Result<Answer, String>),
    Event(Event),
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    Ready {
        epoch: String,
        #[serde(default)]
        cold: bool,
        #[serde(default)]
        why: Option<String>,
        /// The settings of `ALTER SYSTEM` were put aside, since Postgres did not start with them.
        #[serde(default)]
        settings_undone: bool,
        #[serde(flatten)]
        trace: Trace,
    },
    /// How the first request of this life was answered.
    Trace {
        #[serde(flatten)]
        trace: Trace,
    },
    Idle {
        #[serde(default)]
        for_ms: u64,
    },
    /// The first word of one that this server started: others can connect.
    Listening,
    /// A newer VMM's; not for us.
    #[serde(other)]
    Unknown,
}

/// Steps of a VMM's start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Trace {
    /// On the host's monotonic clock, µs.
    #[serde(default)]
    began: u64,
    /// When each was done, µs since then.
    #[serde(default, rename = "trace")]
    done: BTreeMap<String, u64>,
}

impl Trace {
    /// Each step with the time at which it was done, µs on the host's monotonic clock.
    pub fn into_steps(self) -> Vec<(String, u64)> {
        self.done.into_iter().map(|(name, after)| (name, self.began.saturating_add(after))).collect()
    }
}

/// What an answer holds beyond its `ok`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// Of a `status`: from the pooler's side.
    pub sessions: Vec<SessionCounts>,
    /// Of a `tasks`.
    pub report: Option<String>,
}

#[derive(Deserialize)]
struct WireAnswer {
    ok: bool,
    #[serde(default)]
    error: Option<String>,
    #[serde(default)]
    sessions: Vec<VmmCounts>,
    #[serde(default)]
    report: Option<String>,
}

/// A session in the answer to a `status`, from the VMM's side.
#[derive(Deserialize)]
struct VmmCounts {
    session: u64,
    /// From the pooler.
    received: u64,
    /// To the pooler.
    sent: u64,
}

impl From<VmmCounts> for SessionCounts {
    fn from(counts: VmmCounts) -> SessionCounts {
        SessionCounts { session: counts.session, sent: counts.received, received: counts.sent }
    }
}

/// Longest line taken, in bytes: a `status` of many sessions is the longest there is.
const LINE_MAX: usize = 1 << 20;

/// The reading side.
pub struct Lines {
    reader: BufReader<OwnedReadHalf>,
    line: Vec<u8>,
}

/// The writing side.
pub struct Sender {
    writer: OwnedWriteHalf,
}

/// Splits a connection.
pub fn split(stream: UnixStream) -> (Lines, Sender) {
    let (read, write) = stream.into_split();
    (Lines { reader: BufReader::new(read), line: Vec::new() }, Sender { writer: write })
}

impl Lines {
    /// The next message; `None` at the end. Cancel-safe: a part of a line is kept for the next call.
    pub async fn next(&mut self) -> io::Result<Option<Message>> {
        loop {
            let buffer = self.reader.fill_buf().await?;
            if buffer.is_empty() {
                return Ok(None);
            }
            let (taken, whole) = match buffer.iter().position(|b| *b == b'\n') {
                Some(end) => (end + 1, true),
                None => (buffer.len(), false),
            };
            self.line.extend_from_slice(&buffer[..taken]);
            self.reader.consume(taken);
            if self.line.len() > LINE_MAX {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "a line of a control socket is too long"));
            }
            if whole {
                let line = std::mem::take(&mut self.line);
                if let Some(message) = parse(&line)? {
                    return Ok(Some(message));
                }
            }
        }
    }
}

fn parse(line: &[u8]) -> io::Result<Option<Message>> {
    let wrong = |e: serde_json::Error| io::Error::new(io::ErrorKind::InvalidData, format!("control socket: {e}"));
    if line.trim_ascii().is_empty() {
        return Ok(None);
    }
    let value: serde_json::Value = serde_json::from_slice(line).map_err(wrong)?;
    if value.get("event").is_some() {
        let event = serde_json::from_value(value).map_err(wrong)?;
        return Ok((event != Event::Unknown).then_some(Message::Event(event)));
    }
    let answer: WireAnswer = serde_json::from_value(value).map_err(wrong)?;
    let error = answer.error.unwrap_or_else(|| "the VMM gave no reason".into());
    let sessions = answer.sessions.into_iter().map(SessionCounts::from).collect();
    Ok(Some(Message::Answer(if answer.ok { Ok(Answer { sessions, report: answer.report }) } else { Err(error) })))
}

impl Sender {
    pub async fn send(&mut self, request: &Request) -> io::Result<()> {
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        self.writer.write_all(&line).await
    }
}

/// Asks what the guest's processes are doing; `None` if the VMM ended instead.
pub async fn ask_tasks(stream: UnixStream) -> io::Result<Option<String>> {
    let (mut lines, mut sender) = split(stream);
    sender.send(&Request::Tasks).await?;
    while let Some(message) = lines.next().await? {
        match message {
            Message::Answer(Ok(answer)) => return Ok(answer.report),
            Message::Answer(Err(error)) => return Err(io::Error::other(error)),
            Message::Event(_) => {}
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_as_the_interface_page_says() {
        let session = SessionCounts { session: 1, sent: 2, received: 3 };
        let cases = [
            (Request::Status, r#"{"op":"status"}"#),
            (Request::Suspend { sessions: vec![session] }, r#"{"op":"suspend","sessions":[{"session":1,"sent":2,"received":3}]}"#),
            (Request::Cancel, r#"{"op":"cancel"}"#),
            (Request::Stop, r#"{"op":"stop"}"#),
            (Request::Tasks, r#"{"op":"tasks"}"#),
            (Request::CoolDown { ms: 1000 }, r#"{"op":"cool_down","ms":1000}"#),
        ];
        for (request, text) in cases {
            assert_eq!(serde_json::to_string(&request).unwrap(), text);
        }
    }

    #[test]
    fn answers_and_events_are_told_apart_and_rubbish_is_an_error() {
        let ready = Event::Ready {
            epoch: "e".into(),
            cold: true,
            why: Some("w".into()),
            settings_undone: true,
            trace: Trace { began: 3, done: BTreeMap::from([("load".to_owned(), 7)]) },
        };
        let counted = Answer { sessions: vec![SessionCounts { session: 1, sent: 2, received: 3 }], report: None };
        let told = Answer { report: Some("r".into()), ..Answer::default() };
        let cases = [
            (r#"{"ok":true}"#, Some(Message::Answer(Ok(Answer::default())))),
            (r#"{"ok":true,"report":"r"}"#, Some(Message::Answer(Ok(told)))),
            (
                r#"{"ok":true,"state":"running","sessions":[{"session":1,"received":2,"sent":3}]}"#,
                Some(Message::Answer(Ok(counted))),
            ),
            (r#"{"ok":false,"error":"busy"}"#, Some(Message::Answer(Err("busy".into())))),
            (r#"{"event":"ready","epoch":"e","cold":true,"why":"w","settings_undone":true,"began":3,"trace":{"load":7}}"#, Some(Message::Event(ready))),
            (r#"{"event":"idle","for_ms":5}"#, Some(Message::Event(Event::Idle { for_ms: 5 }))),
            (r#"{"event":"from-the-future"}"#, None),
            ("", None),
        ];
        for (line, wanted) in cases {
            assert_eq!(parse(line.as_bytes()).unwrap(), wanted, "{line}");
        }
        for line in ["{", "7", r#"{"event":"ready"}"#, "{}"] {
            assert!(parse(line.as_bytes()).is_err(), "{line}");
        }
    }
}
