//! A PostgreSQL client over a blocking socket, small enough that what is timed is the server: TCP or a unix
//! socket, trust or SCRAM-SHA-256, with TLS (`tls.rs`) or without, simple queries, cancel.

use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use base64::{Engine, engine::general_purpose::STANDARD_NO_PAD as BASE64};
use thiserror::Error;

use crate::message::{self, Authentication, DecodeError, Decoder, Message, ServerError};
use crate::patience::limit;
use crate::scram::{self, Scram, ScramError};
use crate::tls::{self, TlsStream};

/// How long one read may take before the server counts as hung. A cold start is the longest thing waited for.
const READ_TIMEOUT: Duration = Duration::from_secs(120);

#[derive(Debug, Error)]
pub enum ClientError {
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("{0}")]
    Decode(#[from] DecodeError),
    #[error("{0}")]
    Scram(#[from] ScramError),
    #[error("{0}")]
    Server(ServerError),
    #[error("the server closed the connection")]
    Closed,
    #[error("the server offers no authentication this client has: {0}")]
    Mechanism(String),
    #[error("the server offers no TLS")]
    NoTls,
    #[error("the query gave no row")]
    NoRow,
    #[error("connection URI {0:?}: {1}")]
    Uri(String, &'static str),
}

impl ClientError {
    /// The SQLSTATE, if the server sent one.
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Server(error) => Some(&error.code),
            _ => None,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    Tcp { host: String, port: u16 },
    Unix(PathBuf),
}

/// Where to connect, and as whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    pub address: Address,
    pub user: String,
    pub password: String,
    pub database: String,
}

impl Target {
    /// Reads `postgresql://USER:PASSWORD@HOST:PORT/DATABASE?…`; parameters are not looked at.
    pub fn parse(uri: &str) -> Result<Self, ClientError> {
        let bad = |why| ClientError::Uri(uri.to_owned(), why);
        let rest = uri
            .strip_prefix("postgresql://")
            .or_else(|| uri.strip_prefix("postgres://"))
            .ok_or_else(|| bad("it must start with postgresql://"))?;
        let rest = rest.split_once('?').map_or(rest, |(before, _)| before);
        let (login, place) = rest
            .rsplit_once('@')
            .ok_or_else(|| bad("it names no user"))?;
        let (user, password) = login.split_once(':').unwrap_or((login, ""));
        let (authority, database) = place.split_once('/').unwrap_or((place, ""));
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) => (
                host,
                port.parse().map_err(|_| bad("its port is not a number"))?,
            ),
            None => (authority, 5432),
        };
        let decode = |text| percent_decode(text).ok_or_else(|| bad("it has a broken % escape"));
        let user = decode(user)?;
        let database = if database.is_empty() {
            user.clone()
        } else {
            decode(database)?
        };
        Ok(Self {
            address: Address::Tcp {
                host: decode(host)?,
                port,
            },
            user,
            password: decode(password)?,
            database,
        })
    }
}

fn percent_decode(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let high = char::from(bytes.next()?).to_digit(16)?;
            let low = char::from(bytes.next()?).to_digit(16)?;
            out.push(u8::try_from(high * 16 + low).ok()?);
        } else {
            out.push(byte);
        }
    }
    String::from_utf8(out).ok()
}

enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
    Tls(Box<TlsStream>),
}

impl Stream {
    /// Asks for TLS, and begins it.
    fn encrypted(self) -> Result<Self, ClientError> {
        let Self::Tcp(mut stream) = self else { return Err(ClientError::NoTls) };
        stream.write_all(&message::ssl_request())?;
        let mut answer = [0];
        stream.read_exact(&mut answer)?;
        match answer {
            [b'S'] => Ok(Self::Tls(Box::new(tls::begin(stream)?))),
            _ => Err(ClientError::NoTls),
        }
    }

    fn open(address: &Address) -> std::io::Result<Self> {
        match address {
            Address::Tcp { host, port } => {
                let mut last = std::io::Error::other(format!("{host} has no address"));
                for candidate in (host.as_str(), *port).to_socket_addrs()? {
                    match TcpStream::connect(candidate) {
                        Ok(stream) => {
                            stream.set_nodelay(true)?;
                            stream.set_read_timeout(Some(limit(READ_TIMEOUT)))?;
                            return Ok(Self::Tcp(stream));
                        }
                        Err(error) => last = error,
                    }
                }
                Err(last)
            }
            Address::Unix(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_read_timeout(Some(limit(READ_TIMEOUT)))?;
                Ok(Self::Unix(stream))
            }
        }
    }

    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(buffer),
            Self::Unix(stream) => stream.read(buffer),
            Self::Tls(stream) => stream.read(buffer),
        }
    }

    fn write_all(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.write_all(bytes),
            Self::Unix(stream) => stream.write_all(bytes),
            Self::Tls(stream) => stream.write_all(bytes),
        }
    }
}

/// A session, ready for a query.
pub struct Client {
    stream: Stream,
    decoder: Decoder,
    address: Address,
    /// Process id and key for a cancel.
    key: Option<(u32, Vec<u8>)>,
}

/// One row as text; `None` is NULL.
pub type Row = Vec<Option<String>>;

impl Client {
    /// Connects, logs in and waits until the server is ready for a query.
    pub fn connect(target: &Target) -> Result<Self, ClientError> {
        Self::login(Stream::open(&target.address)?, target)
    }

    /// The same under TLS.
    pub fn connect_tls(target: &Target) -> Result<Self, ClientError> {
        Self::login(Stream::open(&target.address)?.encrypted()?, target)
    }

    fn login(stream: Stream, target: &Target) -> Result<Self, ClientError> {
        let mut client = Self {
            stream,
            decoder: Decoder::default(),
            address: target.address.clone(),
            key: None,
        };
        client
            .stream
            .write_all(&message::startup(&target.user, &target.database))?;
        client.authenticate(&target.password)?;
        loop {
            let next = client.receive()?;
            match next.tag {
                b'K' => client.key = Some(next.key_data()?),
                b'Z' => return Ok(client),
                b'E' => return Err(ClientError::Server(next.error())),
                _ => {}
            }
        }
    }

    fn authenticate(&mut self, password: &str) -> Result<(), ClientError> {
        let mut exchange = None;
        loop {
            let next = self.receive()?;
            match next.tag {
                b'R' => {}
                b'E' => return Err(ClientError::Server(next.error())),
                _ => continue,
            }
            match next.authentication()? {
                Authentication::Ok => return Ok(()),
                Authentication::Sasl(offered) => {
                    if !offered.contains(&scram::MECHANISM) {
                        return Err(ClientError::Mechanism(offered.join(", ")));
                    }
                    let started = Scram::new(password, &nonce()?)?;
                    let first = message::sasl_initial(scram::MECHANISM, started.first().as_bytes());
                    self.stream.write_all(&first)?;
                    exchange = Some(started);
                }
                Authentication::SaslContinue(data) => {
                    let Some(exchange) = &mut exchange else {
                        return Err(ScramError::Malformed("out of order".to_owned()).into());
                    };
                    let answer = exchange.answer(&String::from_utf8_lossy(data))?;
                    self.stream
                        .write_all(&message::sasl_response(answer.as_bytes()))?;
                }
                Authentication::SaslFinal(data) => {
                    let Some(exchange) = &exchange else {
                        return Err(ScramError::Malformed("out of order".to_owned()).into());
                    };
                    exchange.verify(&String::from_utf8_lossy(data))?;
                }
            }
        }
    }

    /// The next message, whatever it is.
    fn receive(&mut self) -> Result<Message, ClientError> {
        let mut buffer = [0; 8192];
        loop {
            if let Some(next) = self.decoder.pop()? {
                return Ok(next);
            }
            match self.stream.read(&mut buffer)? {
                0 => return Err(ClientError::Closed),
                length => self.decoder.feed(&buffer[..length]),
            }
        }
    }

    /// Sends a query and gives the moment at which its first row had arrived. The rest is read too, so that
    /// the session is ready again.
    pub fn first_row(&mut self, sql: &str) -> Result<Instant, ClientError> {
        self.send(sql)?;
        self.answer()?.0.ok_or(ClientError::NoRow)
    }

    /// All rows of a query (of the last statement that gives any).
    pub fn query(&mut self, sql: &str) -> Result<Vec<Row>, ClientError> {
        self.send(sql)?;
        self.finish()
    }

    /// Sends a query without waiting for its answer, which [`Client::finish`] reads.
    pub fn send(&mut self, sql: &str) -> Result<(), ClientError> {
        Ok(self.stream.write_all(&message::query(sql))?)
    }

    /// Reads the answer to [`Client::send`].
    pub fn finish(&mut self) -> Result<Vec<Row>, ClientError> {
        Ok(self.answer()?.1)
    }

    /// Reads an answer of one value, and tells when its first row had arrived.
    pub fn finish_timed(&mut self) -> Result<(Instant, String), ClientError> {
        let (arrived, rows) = self.answer()?;
        let value = rows.into_iter().flatten().next().flatten();
        arrived.zip(value).ok_or(ClientError::NoRow)
    }

    /// Reads an answer: its rows, and when the first had arrived.
    fn answer(&mut self) -> Result<(Option<Instant>, Vec<Row>), ClientError> {
        let (mut arrived, mut rows, mut failed) = (None, Vec::new(), None);
        loop {
            let next = match self.receive() {
                Ok(next) => next,
                // A FATAL error comes before the close: it says more than the close does.
                Err(error) => return Err(failed.map_or(error, ClientError::Server)),
            };
            match next.tag {
                b'T' => rows.clear(),
                b'D' => {
                    arrived.get_or_insert_with(Instant::now);
                    let values = next.data_row()?.into_iter();
                    let text = |value: Vec<u8>| String::from_utf8_lossy(&value).into_owned();
                    rows.push(values.map(|value| value.map(text)).collect());
                }
                b'E' => failed = Some(next.error()),
                b'Z' => return failed.map_or(Ok((arrived, rows)), |error| Err(ClientError::Server(error))),
                _ => {}
            }
        }
    }

    /// The first column of the first row.
    pub fn value(&mut self, sql: &str) -> Result<String, ClientError> {
        let row = self
            .query(sql)?
            .into_iter()
            .next()
            .ok_or(ClientError::NoRow)?;
        row.into_iter().next().flatten().ok_or(ClientError::NoRow)
    }

    /// Asks the server, over a connection of its own, to cancel what this session runs.
    pub fn canceller(&self) -> Canceller {
        Canceller {
            address: self.address.clone(),
            key: self.key.clone(),
        }
    }

    /// Says goodbye. (Dropping the client only closes the socket.)
    pub fn close(mut self) -> Result<(), ClientError> {
        Ok(self.stream.write_all(&message::terminate())?)
    }
}

/// What is needed to cancel a session's query from elsewhere.
pub struct Canceller {
    address: Address,
    key: Option<(u32, Vec<u8>)>,
}

impl Canceller {
    /// Sends the request and waits until the server closes the connection: it has been passed on then.
    pub fn cancel(&self) -> Result<(), ClientError> {
        let Some((pid, key)) = &self.key else {
            return Err(ClientError::Closed);
        };
        let mut stream = Stream::open(&self.address)?;
        stream.write_all(&message::cancel(*pid, key))?;
        match stream.read(&mut [0; 1]) {
            Err(error) if error.kind() != std::io::ErrorKind::ConnectionReset => Err(error.into()),
            _ => Ok(()),
        }
    }
}

fn nonce() -> std::io::Result<String> {
    let mut bytes = [0; 18];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(BASE64.encode(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_connection_uri() {
        let target =
            Target::parse("postgresql://ada.db_x:p%40ss@127.0.0.1:5433/app?sslmode=prefer")
                .unwrap();
        assert_eq!(
            target.address,
            Address::Tcp {
                host: "127.0.0.1".to_owned(),
                port: 5433
            }
        );
        assert_eq!(target.user, "ada.db_x");
        assert_eq!(target.password, "p@ss");
        assert_eq!(target.database, "app");
    }

    #[test]
    fn gives_port_and_database_their_defaults() {
        let target = Target::parse("postgres://ada:pw@localhost").unwrap();
        assert_eq!(
            target.address,
            Address::Tcp {
                host: "localhost".to_owned(),
                port: 5432
            }
        );
        assert_eq!(target.database, "ada");
    }

    #[test]
    fn refuses_uris_it_would_misread() {
        for uri in [
            "mysql://a@b",
            "postgresql://host/db",
            "postgresql://a@b:port/db",
            "postgresql://%4:x@b",
        ] {
            assert!(
                matches!(Target::parse(uri), Err(ClientError::Uri(..))),
                "{uri}"
            );
        }
    }
}
