//! The packets a client may begin with, decoded by pgwire once they are known to be whole and well laid out.
//!
//! The guards before pgwire: it takes a negative length for a huge one, parameters without their terminator, and bytes
//! that are not UTF-8 (replacing them); and it reads on past the packet's end when more is in the buffer.

use std::collections::BTreeMap;

use bytes::BytesMut;
use pgwire::messages::cancel::CancelRequest;
use pgwire::messages::startup::{GssEncRequest, SslRequest, Startup};
use pgwire::messages::{DecodeContext, Message, ProtocolVersion};

use crate::host::DatabaseId;

/// The longest packet a client may begin with, as in Postgres.
pub const MAX_LENGTH: usize = 10_000;
/// Newest protocol spoken with clients, minor part of 3.
const NEWEST_MINOR: u16 = 2;
const CANCEL_CODE: u32 = 80_877_102;
const SSL_CODE: u32 = SslRequest::BODY_MAGIC_NUMBER as u32;
const GSS_CODE: u32 = GssEncRequest::BODY_MAGIC_NUMBER as u32;

/// A client's first packet.
#[derive(Debug, PartialEq, Eq)]
pub enum First {
    Ssl,
    Gss,
    Cancel { process: i32, secret: Vec<u8> },
    Startup(Request),
}

/// What a startup packet asks for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Request {
    pub user: String,
    pub database: Option<String>,
    /// All else but protocol options, `options` and `replication` included.
    pub parameters: BTreeMap<String, String>,
    /// Agreed minor version: 0 or 2.
    pub minor: u16,
    /// What a NegotiateProtocolVersion has to list, when one is needed.
    pub negotiate: Option<Vec<String>>,
}

/// Why a first packet is refused. The texts are for the client, in Postgres' words where it has them.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum StartupError {
    #[error("invalid length of startup packet")]
    Length,
    #[error("unsupported frontend protocol {0}.{1}: server supports 3.0 to 3.{NEWEST_MINOR}")]
    Version(u16, u16),
    #[error("invalid startup packet layout: expected terminator as last byte")]
    Layout,
    #[error("startup packet is not in UTF-8")]
    Encoding,
    #[error("no PostgreSQL user name specified in startup packet")]
    NoUser,
    #[error("invalid cancel request packet")]
    Cancel,
    #[error("invalid startup packet")]
    Malformed,
}

impl StartupError {
    pub fn sqlstate(&self) -> &'static str {
        match self {
            StartupError::Version(..) => "0A000",
            StartupError::NoUser => "28000",
            StartupError::Encoding => "22021",
            _ => "08P01",
        }
    }
}

/// Takes the first packet out of `buffer`; `None` while it is not whole. What follows it stays.
pub fn take(buffer: &mut BytesMut) -> Result<Option<First>, StartupError> {
    let Some(&length) = buffer.first_chunk::<4>() else { return Ok(None) };
    let length = u32::from_be_bytes(length) as usize;
    if !(8..=MAX_LENGTH).contains(&length) {
        return Err(StartupError::Length);
    }
    if buffer.len() < length {
        return Ok(None);
    }
    // From here on, pgwire sees this packet and nothing else.
    let mut packet = buffer.split_to(length);
    let code = u32::from_be_bytes([packet[4], packet[5], packet[6], packet[7]]);
    match code {
        SSL_CODE | GSS_CODE if length != 8 => Err(StartupError::Length),
        SSL_CODE => Ok(Some(First::Ssl)),
        GSS_CODE => Ok(Some(First::Gss)),
        CANCEL_CODE => cancel(&mut packet).map(Some),
        _ => startup(&mut packet).map(|request| Some(First::Startup(request))),
    }
}

fn cancel(packet: &mut BytesMut) -> Result<First, StartupError> {
    if !(16..=12 + 256).contains(&packet.len()) {
        return Err(StartupError::Cancel);
    }
    // 3.2's context keeps the key as bytes, whatever its length.
    let context = DecodeContext::new(ProtocolVersion::PROTOCOL3_2);
    match CancelRequest::decode(packet, &context) {
        Ok(Some(request)) => {
            Ok(First::Cancel { process: request.pid, secret: request.secret_key.to_bytes().to_vec() })
        }
        _ => Err(StartupError::Cancel),
    }
}

fn startup(packet: &mut BytesMut) -> Result<Request, StartupError> {
    let major = u16::from_be_bytes([packet[4], packet[5]]);
    let minor = u16::from_be_bytes([packet[6], packet[7]]);
    if major != 3 {
        return Err(StartupError::Version(major, minor));
    }
    check_layout(&packet[8..])?;
    let startup = match Startup::decode(packet, &DecodeContext::default()) {
        Ok(Some(startup)) => startup,
        _ => return Err(StartupError::Malformed),
    };

    let mut unknown = Vec::new();
    let mut parameters = startup.parameters;
    parameters.retain(|name, _| {
        let ordinary = !name.starts_with("_pq_.");
        if !ordinary {
            unknown.push(name.clone());
        }
        ordinary
    });
    let user = parameters.remove("user").filter(|user| !user.is_empty()).ok_or(StartupError::NoUser)?;
    let database = parameters.remove("database").filter(|database| !database.is_empty());
    // 3.1 is reserved (poolers announced it by mistake), so whoever asks for it gets 3.0.
    let agreed = match minor {
        0 | 1 => 0,
        _ => NEWEST_MINOR,
    };
    let negotiate = (agreed != minor || !unknown.is_empty()).then_some(unknown);
    Ok(Request { user, database, parameters, minor: agreed, negotiate })
}

/// Pairs of NUL-terminated strings, then one NUL which is the last byte.
fn check_layout(mut rest: &[u8]) -> Result<(), StartupError> {
    if std::str::from_utf8(rest).is_err() {
        return Err(StartupError::Encoding);
    }
    loop {
        match rest {
            [0] => return Ok(()),
            [] | [0, ..] => return Err(StartupError::Layout),
            _ => {
                for _ in 0..2 {
                    let end = rest.iter().position(|&b| b == 0).ok_or(StartupError::Layout)?;
                    rest = &rest[end + 1..];
                }
            }
        }
    }
}

/// `ROLE.DBID` as role and database; the last dot counts, since a role may have dots in its name.
pub fn split_user(user: &str) -> Option<(&str, DatabaseId)> {
    let (role, database) = user.rsplit_once('.')?;
    if role.is_empty() {
        return None;
    }
    Some((role, database.parse().ok()?))
}

/// The guest's startup packet.
pub fn for_guest(
    role: &str,
    database: &str,
    parameters: &BTreeMap<String, String>,
) -> Result<BytesMut, StartupError> {
    let mut startup = Startup::new();
    startup.parameters = parameters.clone();
    startup.parameters.insert("user".into(), role.into());
    startup.parameters.insert("database".into(), database.into());
    let mut packet = BytesMut::new();
    startup.encode(&mut packet).map_err(|_| StartupError::Length)?;
    Ok(packet)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub fn packet(code: u32, body: &[u8]) -> BytesMut {
        let mut p = BytesMut::new();
        p.extend_from_slice(&(8 + body.len() as u32).to_be_bytes());
        p.extend_from_slice(&code.to_be_bytes());
        p.extend_from_slice(body);
        p
    }

    const V3: u32 = 3 << 16;

    fn request(code: u32, body: &[u8]) -> Result<Request, StartupError> {
        match take(&mut packet(code, body)) {
            Ok(Some(First::Startup(request))) => Ok(request),
            Ok(other) => panic!("{other:?}"),
            Err(error) => Err(error),
        }
    }

    #[test]
    fn an_ordinary_one() {
        let r = request(V3, b"user\0app.db_x\0database\0\0options\0-c a=b\0\0").unwrap();
        assert_eq!((r.user.as_str(), r.database, r.minor, r.negotiate), ("app.db_x", None, 0, None));
        assert_eq!(r.parameters, BTreeMap::from([("options".into(), "-c a=b".into())]));
    }

    #[test]
    fn versions() {
        let cases: &[(u16, u16, Option<&[&str]>)] =
            &[(0, 0, None), (1, 0, Some(&[])), (2, 2, None), (3, 2, Some(&[])), (9999, 2, Some(&[]))];
        for &(asked, agreed, negotiate) in cases {
            let r = request(V3 | u32::from(asked), b"user\0a\0\0").unwrap();
            assert_eq!(r.minor, agreed, "3.{asked}");
            assert_eq!(r.negotiate, negotiate.map(|n| n.iter().map(|s| s.to_string()).collect()), "3.{asked}");
        }
        assert_eq!(request(2 << 16, b"user\0a\0\0"), Err(StartupError::Version(2, 0)));
        assert_eq!(request(0x1234_5680, b"user\0a\0\0"), Err(StartupError::Version(0x1234, 0x5680)));
        let r = request(V3, b"_pq_.wish\0yes\0user\0a\0\0").unwrap();
        assert_eq!(r.negotiate, Some(vec!["_pq_.wish".into()]));
        assert!(r.parameters.is_empty());
    }

    #[test]
    fn layouts_refused() {
        let cases: &[(&[u8], StartupError)] = &[
            (b"", StartupError::Layout),
            (b"\0", StartupError::NoUser),
            (b"user\0", StartupError::Layout),
            (b"user\0a", StartupError::Layout),
            (b"user\0a\0", StartupError::Layout),
            (b"user\0a\0\0\0", StartupError::Layout),
            (b"user\0a\0\0more", StartupError::Layout),
            (b"user\0\0\0", StartupError::NoUser),
            (b"database\0a\0\0", StartupError::NoUser),
            (b"user\0\xff\0\0", StartupError::Encoding),
        ];
        for (body, want) in cases {
            assert_eq!(request(V3, body).as_ref(), Err(want), "{body:?}");
        }
    }

    #[test]
    fn lengths_refused_before_anything_is_read() {
        for length in [0u32, 4, 7, 10_001, 0x7fff_ffff, 0x8000_0000, u32::MAX] {
            let mut b = BytesMut::from(&length.to_be_bytes()[..]);
            assert_eq!(take(&mut b), Err(StartupError::Length), "{length}");
        }
        let mut b = packet(SSL_CODE, b"x");
        assert_eq!(take(&mut b), Err(StartupError::Length));
    }

    #[test]
    fn waits_for_the_whole_packet_and_leaves_what_follows() {
        let whole = packet(V3, b"user\0a\0\0");
        for n in 0..whole.len() {
            assert_eq!(take(&mut BytesMut::from(&whole[..n])), Ok(None));
        }
        let mut more = whole.clone();
        more.extend_from_slice(b"rest");
        assert!(matches!(take(&mut more), Ok(Some(First::Startup(_)))));
        assert_eq!(&more[..], b"rest");
    }

    #[test]
    fn cancel_keys_of_4_to_256_bytes() {
        for (n, good) in [(0, false), (3, false), (4, true), (32, true), (256, true), (257, false)] {
            let mut body = 77i32.to_be_bytes().to_vec();
            body.extend(std::iter::repeat_n(5u8, n));
            let got = take(&mut packet(CANCEL_CODE, &body));
            if good {
                assert_eq!(got, Ok(Some(First::Cancel { process: 77, secret: vec![5; n] })));
            } else {
                assert!(got.is_err(), "{n}: {got:?}");
            }
        }
    }

    #[test]
    fn users() {
        let id = "db_0123456789abcdefghij";
        assert_eq!(split_user(&format!("app.{id}")).map(|(r, d)| (r, d.to_string())), Some(("app", id.to_string())));
        assert_eq!(split_user(&format!("a.b.{id}")).map(|u| u.0), Some("a.b"));
        for bad in ["app", "app.", ".db_0123456789abcdefghij", "app.db_0123456789abcdefghi", "app.db_0123456789ABCDEFGHIJ"] {
            assert_eq!(split_user(bad), None, "{bad}");
        }
    }

    #[test]
    fn what_the_guest_gets() {
        let p = for_guest("app", "db", &BTreeMap::from([("options".into(), "-c a=b".into())])).unwrap();
        let mut copy = p.clone();
        let Ok(Some(First::Startup(r))) = take(&mut copy) else { panic!() };
        assert_eq!((r.user.as_str(), r.database.as_deref(), r.parameters.len()), ("app", Some("db"), 1));
        assert_eq!(for_guest("app", &"x".repeat(20_000), &BTreeMap::new()), Err(StartupError::Length));
    }
}
