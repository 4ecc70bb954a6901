//! Messages the pooler makes itself, encoded by pgwire.

use bytes::BytesMut;
use pgwire::error::ErrorInfo;
use pgwire::messages::Message;
use pgwire::messages::response::ErrorResponse;
use pgwire::messages::startup::{Authentication, BackendKeyData, NegotiateProtocolVersion, SecretKey};

/// A FATAL ErrorResponse. The client is expected to close, and so does the pooler.
pub fn fatal(sqlstate: &str, message: &str, hint: Option<&str>) -> BytesMut {
    let mut info = ErrorInfo::new("FATAL".into(), sqlstate.into(), clean(message));
    info.severity_nonlocalized = Some("FATAL".into());
    info.hint = hint.map(clean);
    encode(&ErrorResponse::from(info))
}

pub fn sasl(mechanisms: &[&str]) -> BytesMut {
    encode(&Authentication::SASL(mechanisms.iter().map(|m| m.to_string()).collect()))
}

pub fn sasl_continue(data: &str) -> BytesMut {
    encode(&Authentication::SASLContinue(data.as_bytes().to_vec().into()))
}

/// The server's proof, and that the client is in: they always go together.
pub fn sasl_final_and_ok(data: &str) -> BytesMut {
    let mut bytes = encode(&Authentication::SASLFinal(data.as_bytes().to_vec().into()));
    bytes.extend_from_slice(&encode(&Authentication::Ok));
    bytes
}

/// `minor` is what was agreed; the message carries the whole version, as Postgres sends it.
pub fn negotiate(minor: u16, unknown: &[String]) -> BytesMut {
    encode(&NegotiateProtocolVersion::new(3 << 16 | i32::from(minor), unknown.to_vec()))
}

/// `secret` has 4 to 256 bytes.
pub fn key_data(process: i32, secret: &[u8]) -> BytesMut {
    encode(&BackendKeyData::new(process, SecretKey::Bytes(secret.to_vec().into())))
}

/// Encoding fails only on messages longer than any made here; an empty one sends nothing.
fn encode(message: &impl Message) -> BytesMut {
    let mut bytes = BytesMut::new();
    if message.encode(&mut bytes).is_err() {
        bytes.clear();
    }
    bytes
}

/// A NUL within a text would end it, and what follows would be read as fields.
fn clean(text: &str) -> String {
    text.replace('\0', "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fatal_has_the_fields_clients_look_for() {
        let b = fatal("57P01", "gone\0Cxxxxx", Some("come again"));
        assert_eq!(&b[..], b"E\0\0\0\x32SFATAL\0VFATAL\0C57P01\0MgoneCxxxxx\0Hcome again\0\0");
    }

    #[test]
    fn keys() {
        assert_eq!(&key_data(1, &[9; 4])[..], b"K\0\0\0\x0c\0\0\0\x01\x09\x09\x09\x09");
        assert_eq!(key_data(1, &[9; 32]).len(), 41);
    }

    #[test]
    fn negotiation() {
        assert_eq!(&negotiate(2, &["_pq_.x".into()])[..], b"v\0\0\0\x13\0\x03\0\x02\0\0\0\x01_pq_.x\0");
    }
}
