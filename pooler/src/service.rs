//! Sessions of the service's own in a guest: PostgreSQL's superuser, one statement, no client.
//!
//! A tenant's settings reach them only where they can do no harm: names are looked up in pg_catalog alone, which no
//! tenant writes to, in a database that belongs to no tenant.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::guest::{self, BeginError, Begun};
use crate::host::Awake;
use crate::wire::startup;
use crate::wire::walker::{self, BadLength};

/// The superuser of every guest, whom no tenant ever is, and a database that no tenant can change or drop.
pub const SUPERUSER: &str = "postgres";
const DATABASE: &str = "postgres";
/// They go before what `ALTER SYSTEM` has set.
const OPTIONS: &str = "-c search_path=pg_catalog -c standard_conforming_strings=on -c default_transaction_read_only=off \
                       -c synchronous_commit=on -c statement_timeout=10s -c lock_timeout=5s -c transaction_timeout=0 \
                       -c idle_session_timeout=0 -c log_statement=none -c log_duration=off \
                       -c log_min_duration_statement=-1 -c pg_stat_statements.track=none";
/// The longest answer, in bytes.
const MAX_ANSWER: usize = 64 << 10;
/// For one statement.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(15);
/// For the backend to end, so that it takes no place.
const GOODBYE: Duration = Duration::from_secs(1);

/// Why a statement of the service's was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    #[error("{0}")]
    Begin(String),
    #[error("{message} (SQLSTATE {sqlstate})")]
    Refused { sqlstate: String, message: String },
    #[error("the guest closed the connection")]
    Closed,
    #[error("connection to the guest: {0}")]
    Io(#[from] std::io::Error),
    #[error("the guest does not answer")]
    Timeout,
    #[error("the guest's answer is too long or malformed")]
    Malformed,
}

impl From<BadLength> for ServiceError {
    fn from(_: BadLength) -> ServiceError {
        ServiceError::Malformed
    }
}

/// Values of one row, as text.
pub type Row = Vec<Option<String>>;

/// A text as a constant in SQL.
pub fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// Carries out one statement in an awake database.
pub async fn execute(awake: &Awake, sql: &str) -> Result<Vec<Row>, ServiceError> {
    let work = async {
        let Begun { mut stream, rest, .. } = guest::begin(&awake.socket, &packet()).await.map_err(refused)?;
        let rows = query(&mut stream, rest, sql).await;
        close(stream).await;
        rows
    };
    timeout(TIMEOUT, work).await.map_err(|_| ServiceError::Timeout)?
}

/// The startup packet of such a session.
pub(crate) fn packet() -> BytesMut {
    let parameters = BTreeMap::from([
        ("application_name".to_owned(), "dormouse".to_owned()),
        ("options".to_owned(), OPTIONS.to_owned()),
    ]);
    // All of it is constant and short.
    startup::for_guest(SUPERUSER, DATABASE, &parameters).unwrap_or_default()
}

fn refused(error: BeginError) -> ServiceError {
    match error {
        BeginError::Refused(message) => ServiceError::of_message(&message[5..]),
        other => ServiceError::Begin(other.to_string()),
    }
}

/// One statement in a session that has begun; `buffer` is what it has said since.
pub(crate) async fn query(stream: &mut UnixStream, mut buffer: BytesMut, sql: &str) -> Result<Vec<Row>, ServiceError> {
    let mut message = BytesMut::from(&b"Q"[..]);
    message.extend_from_slice(&(sql.len() as u32 + 5).to_be_bytes());
    message.extend_from_slice(sql.as_bytes());
    message.extend_from_slice(&[0]);
    stream.write_all(&message).await?;
    let mut answer = Answer::default();
    let mut received = 0;
    while !answer.take(&mut buffer)? {
        match stream.read_buf(&mut buffer).await? {
            0 => return Err(ServiceError::Closed),
            n => received += n,
        }
        if received > MAX_ANSWER {
            return Err(ServiceError::Malformed);
        }
    }
    match answer.error {
        Some(error) => Err(error),
        None => Ok(answer.rows),
    }
}

/// Ends the session, and waits a little for its backend to be gone.
pub(crate) async fn close(mut stream: UnixStream) {
    let end = async {
        stream.write_all(b"X\0\0\0\x04").await?;
        let mut unread = [0; 64];
        while stream.read(&mut unread).await? > 0 {}
        Ok::<(), std::io::Error>(())
    };
    // However it ends, the connection is closed now.
    let _ = timeout(GOODBYE, end).await;
}

#[derive(Default)]
struct Answer {
    rows: Vec<Row>,
    error: Option<ServiceError>,
}

impl Answer {
    /// Takes whole messages; true once the guest is ready for the next statement.
    fn take(&mut self, buffer: &mut BytesMut) -> Result<bool, ServiceError> {
        while let Some(header) = walker::header(buffer, MAX_ANSWER as u32)? {
            let length = 5 + header.body as usize;
            if buffer.len() < length {
                return Ok(false);
            }
            let message = buffer.split_to(length);
            match header.kind {
                b'D' => self.rows.push(row(&message[5..]).ok_or(ServiceError::Malformed)?),
                b'E' => self.error = Some(ServiceError::of_message(&message[5..])),
                b'Z' => return Ok(true),
                // RowDescription, CommandComplete, notices, settings.
                _ => {}
            }
        }
        Ok(false)
    }
}

/// The values of a DataRow.
fn row(mut body: &[u8]) -> Option<Row> {
    let columns = body.try_get_u16().ok()?;
    (0..columns)
        .map(|_| match body.try_get_i32().ok()? {
            -1 => Some(None),
            length => {
                let length = usize::try_from(length).ok().filter(|length| *length <= body.len())?;
                let (value, rest) = body.split_at(length);
                body = rest;
                Some(Some(String::from_utf8(value.to_vec()).ok()?))
            }
        })
        .collect()
}

impl ServiceError {
    /// Of an ErrorResponse's body.
    fn of_message(body: &[u8]) -> ServiceError {
        let field = |kind: u8| {
            let fields = body.split(|byte| *byte == 0).filter(|field| field.first() == Some(&kind));
            fields.map(|field| String::from_utf8_lossy(&field[1..]).into_owned()).next().unwrap_or_default()
        };
        ServiceError::Refused { sqlstate: field(b'C'), message: field(b'M') }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows() {
        assert_eq!(row(b"\0\x02\0\0\0\x02ab\xff\xff\xff\xff"), Some(vec![Some("ab".into()), None]));
        for bad in [&b""[..], b"\0", b"\0\x01", b"\0\x01\0\0\0\x03ab", b"\0\x01\xff\xff\xff\xfe", b"\0\x01\0\0\0\x01\xff"] {
            assert_eq!(row(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn literals() {
        assert_eq!(literal("o'hara\\"), "'o''hara\\'");
    }

    #[test]
    fn the_packet_names_the_superuser() {
        let mut packet = packet();
        let Ok(Some(startup::First::Startup(request))) = startup::take(&mut packet) else { panic!() };
        assert_eq!((request.user.as_str(), request.database.as_deref()), ("postgres", Some("postgres")));
    }
}
