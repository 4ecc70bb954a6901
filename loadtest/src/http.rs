//! HTTP/1.1 as far as a JSON API on loopback needs it: one request a connection, the answer read to its end; or many on a
//! connection that is kept.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use thiserror::Error;

use crate::patience::limit;

/// A suspend may wait 30 s for a statement; nothing else takes as long.
const READ_TIMEOUT: Duration = Duration::from_secs(90);

#[derive(Debug, Error)]
pub enum HttpError {
    #[error("{place}: {source}")]
    Io {
        place: String,
        source: std::io::Error,
    },
    #[error("{0} does not start with http://")]
    Scheme(String),
    #[error("the server's answer is not HTTP: {0:?}")]
    Malformed(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Response {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.as_str())
    }
}

/// Sends one request to `base` (`http://HOST:PORT`) and reads the whole answer.
pub fn request(
    base: &str,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Result<Response, HttpError> {
    let mut connection = Connection::open(base)?;
    let headers: Vec<_> = [("connection", "close")]
        .iter()
        .chain(headers)
        .copied()
        .collect();
    connection.send(method, path, &headers, body)?;
    let mut answer = Vec::new();
    let read = connection.stream.read_to_end(&mut answer);
    read.map_err(|source| connection.failed(source))?;
    parse(&answer)
}

/// A connection for many requests, one after another.
pub struct Connection {
    place: String,
    stream: BufReader<TcpStream>,
}

impl Connection {
    pub fn open(base: &str) -> Result<Self, HttpError> {
        let place = base
            .strip_prefix("http://")
            .ok_or_else(|| HttpError::Scheme(base.to_owned()))?
            .trim_end_matches('/');
        let open = || {
            let stream = TcpStream::connect(place)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(limit(READ_TIMEOUT)))?;
            Ok(BufReader::new(stream))
        };
        Ok(Self {
            stream: open().map_err(|source| HttpError::Io {
                place: place.to_owned(),
                source,
            })?,
            place: place.to_owned(),
        })
    }

    fn failed(&self, source: std::io::Error) -> HttpError {
        HttpError::Io {
            place: self.place.clone(),
            source,
        }
    }

    fn send(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Result<(), HttpError> {
        let mut text = format!("{method} {path} HTTP/1.1\r\nhost: {}\r\n", self.place);
        for (name, value) in headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        text.push_str(&format!("content-length: {}\r\n\r\n{body}", body.len()));
        let sent = self.stream.get_mut().write_all(text.as_bytes());
        sent.map_err(|source| self.failed(source))
    }

    /// One request; its answer must tell its length.
    pub fn request(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Result<Response, HttpError> {
        self.send(method, path, headers, body)?;
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            let read = self.stream.read_until(b'\n', &mut answer);
            if read.map_err(|source| self.failed(source))? == 0 {
                break;
            }
        }
        let head = String::from_utf8_lossy(&answer).to_ascii_lowercase();
        let length = head.lines().find_map(|line| {
            line.strip_prefix("content-length:")?
                .trim()
                .parse::<usize>()
                .ok()
        });
        let begun = answer.len();
        answer.resize(begun + length.unwrap_or(0), 0);
        let read = self.stream.read_exact(&mut answer[begun..]);
        read.map_err(|source| self.failed(source))?;
        parse(&answer)
    }
}

fn parse(answer: &[u8]) -> Result<Response, HttpError> {
    let malformed = || {
        HttpError::Malformed(String::from_utf8_lossy(&answer[..answer.len().min(200)]).into_owned())
    };
    let end = answer
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .ok_or_else(malformed)?;
    let head = std::str::from_utf8(&answer[..end]).map_err(|_| malformed())?;
    let mut lines = head.split("\r\n");
    let status = lines
        .next()
        .and_then(|line| line.strip_prefix("HTTP/1."))
        .ok_or_else(malformed)?;
    let status = status
        .split(' ')
        .nth(1)
        .and_then(|code| code.parse().ok())
        .ok_or_else(malformed)?;
    let headers: Vec<_> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let mut response = Response {
        status,
        headers,
        body: answer[end + 4..].to_vec(),
    };
    if response
        .header("transfer-encoding")
        .is_some_and(|coding| coding.eq_ignore_ascii_case("chunked"))
    {
        response.body = dechunk(&response.body).ok_or_else(malformed)?;
    } else if let Some(length) = response.header("content-length") {
        let length: usize = length.parse().map_err(|_| malformed())?;
        if response.body.len() != length {
            return Err(malformed());
        }
    }
    Ok(response)
}

fn dechunk(mut rest: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let line = rest.windows(2).position(|window| window == b"\r\n")?;
        let size = std::str::from_utf8(&rest[..line]).ok()?;
        let size = usize::from_str_radix(size.split(';').next()?.trim(), 16).ok()?;
        if size == 0 {
            return Some(body);
        }
        let (chunk, after) = rest.get(line + 2..)?.split_at_checked(size)?;
        body.extend_from_slice(chunk);
        rest = after.strip_prefix(b"\r\n")?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_an_answer() {
        let response =
            parse(b"HTTP/1.1 201 Created\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}")
                .unwrap();
        assert_eq!(response.status, 201);
        assert_eq!(response.header("content-type"), Some("application/json"));
        assert_eq!(response.body, b"{}");
    }

    #[test]
    fn joins_chunks() {
        let response = parse(
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\n{\"a\r\n4;x=y\r\n\":1}\r\n0\r\n\r\n",
        )
        .unwrap();
        assert_eq!(response.body, b"{\"a\":1}");
    }

    #[test]
    fn refuses_what_is_cut_short() {
        for answer in [
            &b""[..],
            b"HTTP/1.1 200 OK\r\n",
            b"SSH-2.0-x\r\n\r\n",
            b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n{}",
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n9\r\n{}",
        ] {
            assert!(
                matches!(parse(answer), Err(HttpError::Malformed(_))),
                "{answer:?}"
            );
        }
    }
}
