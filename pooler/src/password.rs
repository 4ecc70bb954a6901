//! The password check: SCRAM over the wire, against the host's verifier or against one that no password fits.
//!
//! A database or a role that does not exist goes through the same messages, the same work and the same refusal as one
//! that does, so that nobody can ask which exist. Nothing is woken here.

use bytes::{Buf, BytesMut};
use pgwire::messages::startup::PasswordMessageFamily;

use crate::host::{DatabaseId, Route};
use crate::login::{Line, LoginError};
use crate::pooler::Shared;
use crate::scram::{self, ScramError};
use crate::verifier::Verifier;
use crate::wire::{answer, walker};

/// The longest message of a SASL exchange.
const MAX_MESSAGE: u32 = 4096;

/// Asks for the password of `role` in `database` and looks up where it leads. `user` is what the client called itself.
pub(crate) async fn check(
    shared: &Shared,
    line: &mut Line,
    user: &str,
    role: &str,
    database: DatabaseId,
) -> Result<Route, LoginError> {
    let mock = Verifier::mock(&shared.mock, user, shared.settings.scram_iterations);
    let route = shared.host.lookup(database, role).await?;
    let (verifier, route) = match route {
        Some(route) => match Verifier::parse(&route.verifier) {
            Ok(verifier) => (verifier, Some(route)),
            Err(error) => {
                tracing::error!(%database, role, %error, "verifier in the metadata cannot be used");
                (mock, None)
            }
        },
        None => (mock, None),
    };

    let end_point = match &shared.tls {
        Some(tls) if line.is_tls() => tls.end_point.as_deref(),
        _ => None,
    };
    let mechanisms: &[&str] = if end_point.is_some() { &[scram::PLUS, scram::PLAIN] } else { &[scram::PLAIN] };
    line.write(&answer::sasl(mechanisms)).await?;

    let body = read_response(line).await?;
    let (mechanism, first) = initial_response(body)?;
    let failed = |error| refusal(shared, user, error);
    let exchange = scram::begin(&mechanism, &first, verifier, end_point).map_err(failed)?;
    line.write(&answer::sasl_continue(exchange.challenge())).await?;

    let last = read_response(line).await?;
    let proof = exchange.finish(&last).map_err(failed)?;
    // No password fits a mock, but this is what must never depend on that alone.
    let Some(route) = route else { return Err(failed(ScramError::WrongPassword)) };
    line.write(&answer::sasl_final_and_ok(&proof)).await?;
    shared.metrics.authenticated.add(1);
    Ok(route)
}

fn refusal(shared: &Shared, user: &str, error: ScramError) -> LoginError {
    match error {
        ScramError::WrongPassword => {
            shared.metrics.refused.add(1);
            LoginError::Password(user.to_owned())
        }
        ScramError::NoRandomness => LoginError::NoRandomness,
        other => {
            shared.metrics.protocol_errors.add(1);
            LoginError::Protocol(other.to_string())
        }
    }
}

/// One message of the password family: its body.
async fn read_response(line: &mut Line) -> Result<BytesMut, LoginError> {
    loop {
        match walker::header(line.buffer(), MAX_MESSAGE).map_err(|bad| LoginError::Protocol(bad.to_string()))? {
            Some(header) if header.kind != b'p' => {
                return Err(LoginError::Protocol(format!(
                    "expected SASL response, got message type {}",
                    header.kind
                )));
            }
            Some(header) if line.buffer().len() >= 5 + header.body as usize => {
                line.buffer().advance(5);
                return Ok(line.buffer().split_to(header.body as usize));
            }
            _ => line.read().await?,
        }
    }
}

/// Mechanism and the client's first message. pgwire takes a length for what it says, so it is checked first.
fn initial_response(body: BytesMut) -> Result<(String, BytesMut), LoginError> {
    let malformed = || LoginError::Protocol("malformed SASLInitialResponse".into());
    let name_end = body.iter().position(|&b| b == 0).ok_or_else(malformed)?;
    let length = body[name_end + 1..].first_chunk::<4>().ok_or_else(malformed)?;
    if u32::from_be_bytes(*length) as usize != body.len() - name_end - 5 {
        return Err(malformed());
    }
    let response = PasswordMessageFamily::Raw(body).into_sasl_initial_response().map_err(|_| malformed())?;
    let data = response.data.ok_or_else(malformed)?;
    Ok((response.auth_method, BytesMut::from(&data[..])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn initial_responses() {
        let take = |body: &[u8]| initial_response(BytesMut::from(body)).ok();
        assert_eq!(take(b"M\0\0\0\0\x02ab"), Some(("M".into(), BytesMut::from(&b"ab"[..]))));
        for bad in [
            &b""[..],
            b"M",
            b"M\0",
            b"M\0\0\0",
            b"M\0\0\0\0\x03ab",
            b"M\0\0\0\0\x01ab",
            b"M\0\xff\xff\xff\xff",
            b"M\0\xff\xff\xff\xffab",
            b"M\0\x80\0\0\0",
        ] {
            assert_eq!(take(bad), None, "{bad:?}");
        }
    }
}
