//! The password check: SCRAM over the wire, against the host's verifier, the guest's own, or one that no password fits.
//!
//! A database or a role that does not exist goes through the same messages, the same work and the same refusal as one
//! that does, so that nobody can ask which exist. Nothing is woken here, but to ask a guest in which passwords have been
//! set in SQL; and then for roles that exist and for those that do not. (What is woken ahead of the proof, `opening`, is so only for who
//! proved the same before.)

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::{Buf, BytesMut};
use pgwire::messages::startup::PasswordMessageFamily;

use crate::guesses::Question;
use crate::host::{DatabaseId, Route};
use crate::login::{Line, LoginError};
use crate::pooler::Shared;
use crate::roles;
use crate::scram::{self, Exchange, ScramError};
use crate::verifier::Verifier;
use crate::wire::startup::Request;
use crate::wire::{answer, walker};

/// The longest message of a SASL exchange.
const MAX_MESSAGE: u32 = 4096;

/// A client that has been told what to compute its proof of.
pub(crate) struct Challenged<'a> {
    database: DatabaseId,
    request: &'a Request,
    exchange: Exchange,
    /// `None`: there is no such role, and no password is right.
    route: Option<Route>,
    question: Option<Question<'a>>,
}

impl Challenged<'_> {
    /// Where it leads once it has given the proof.
    pub fn route(&self) -> Option<&Route> {
        self.route.as_ref()
    }
}

/// Asks for the password of `role` in `database`.
pub(crate) async fn challenge<'a>(
    shared: &'a Arc<Shared>,
    line: &mut Line,
    peer: SocketAddr,
    request: &'a Request,
    (role, database): (&str, DatabaseId),
) -> Result<Challenged<'a>, LoginError> {
    may_try(shared, database, peer)?;
    let mock = Verifier::mock(&shared.mock, &request.user, shared.settings.scram_iterations);
    let mut route = shared.host.lookup(database, role).await?;
    let mut question = None;
    if let Some(route) = &mut route
        && route.in_guest
    {
        question = Some(ask(shared, line, peer, database, role, route).await?);
    }
    let (verifier, route) = match route.map(|route| (route.verifier.as_deref().map(Verifier::parse), route)) {
        Some((Some(Ok(verifier)), route)) => (verifier, Some(route)),
        Some((Some(Err(error)), _)) => {
            tracing::error!(%database, role, %error, "verifier cannot be used");
            (mock, None)
        }
        Some((None, _)) | None => (mock, None),
    };

    let end_point = match &shared.tls {
        Some(tls) if line.is_tls() => tls.end_point.as_deref(),
        _ => None,
    };
    let mechanisms: &[&str] = if end_point.is_some() { &[scram::PLUS, scram::PLAIN] } else { &[scram::PLAIN] };
    line.write(&answer::sasl(mechanisms)).await?;

    let body = read_response(line).await?;
    let (mechanism, first) = initial_response(body)?;
    let failed = |error| refusal(shared, peer, database, &request.user, error);
    let exchange = scram::begin(&mechanism, &first, verifier, end_point).map_err(failed)?;
    line.write(&answer::sasl_continue(exchange.challenge())).await?;
    Ok(Challenged { database, request, exchange, route, question })
}

/// Reads the proof, and gives where it leads.
pub(crate) async fn prove(
    shared: &Shared,
    line: &mut Line,
    peer: SocketAddr,
    challenged: Challenged<'_>,
) -> Result<Route, LoginError> {
    let Challenged { database, request, exchange, route, question } = challenged;
    let last = read_response(line).await?;
    // Once more, and with nothing awaited until a wrong one has been counted: of many at one time only so many are judged.
    may_try(shared, database, peer)?;
    let failed = |error| refusal(shared, peer, database, &request.user, error);
    let proof = exchange.finish(&last).map_err(failed)?;
    // No password fits a mock, but this is what must never depend on that alone.
    let Some(route) = route else { return Err(failed(ScramError::WrongPassword)) };
    if let Some(question) = question {
        question.proven();
    }
    shared.guesses.proven(database, request, peer);
    line.write(&answer::sasl_final_and_ok(&proof)).await?;
    shared.metrics.authenticated.add(1);
    Ok(route)
}

fn may_try(shared: &Shared, database: DatabaseId, peer: SocketAddr) -> Result<(), LoginError> {
    let may = shared.guesses.may_try(database, peer);
    may.then_some(()).ok_or_else(|| too_many_guesses(shared, peer, database))
}

/// Puts what the guest says of the role into its route.
async fn ask<'a>(
    shared: &'a Arc<Shared>,
    line: &mut Line,
    peer: SocketAddr,
    database: DatabaseId,
    role: &str,
    route: &mut Route,
) -> Result<Question<'a>, LoginError> {
    let too_many = || too_many_guesses(shared, peer, database);
    let question = shared.guesses.may_ask(database, peer, route.asleep).ok_or_else(too_many)?;
    let place = shared.turns.join(database, question.is_stranger).ok_or_else(too_many)?;
    let asked = tokio::select! {
        asked = roles::ask(shared, database, role, place) => asked?,
        gone = line.gone() => return Err(gone),
    };
    match asked {
        // As PostgreSQL: an expired password is as good as none.
        Some(role) if role.expired => route.verifier = None,
        Some(role) if role.verifier.is_some() => route.verifier = role.verifier,
        // A role without a password in SQL: the service's own, if it has one.
        Some(_) => {}
        None => route.verifier = None,
    }
    Ok(question)
}

fn too_many_guesses(shared: &Shared, peer: SocketAddr, database: DatabaseId) -> LoginError {
    shared.metrics.over_limit.add(1);
    LoginError::TooManyGuesses(peer, database)
}

fn refusal(shared: &Shared, peer: SocketAddr, database: DatabaseId, user: &str, error: ScramError) -> LoginError {
    match error {
        ScramError::WrongPassword => {
            shared.guesses.wrong_password(database, peer);
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
