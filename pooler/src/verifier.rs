//! SCRAM verifiers: what is kept instead of a password, in the form Postgres keeps it.
//!
//! `SCRAM-SHA-256$iterations:salt$StoredKey:ServerKey`, the last three in base64. With it a client can be
//! authenticated (RFC 5802), but not impersonated.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use hmac::{Hmac, Mac};
use sha2::{Digest, Sha256};

/// PBKDF2 rounds unless told otherwise, as in Postgres.
pub const DEFAULT_ITERATIONS: u32 = 4096;
/// Bytes of a salt made here, as in Postgres.
pub const SALT_LEN: usize = 16;
const SCHEME: &str = "SCRAM-SHA-256";
/// More rounds than anyone sets; a bound so that a damaged verifier cannot be one.
const MAX_ITERATIONS: u32 = 10_000_000;

pub(crate) type Key = [u8; 32];

/// A parsed verifier. It is not shown by `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct Verifier {
    pub(crate) iterations: u32,
    pub(crate) salt: Vec<u8>,
    pub(crate) stored_key: Key,
    pub(crate) server_key: Key,
}

/// Why a verifier cannot be had.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum VerifierError {
    #[error("not of the form SCRAM-SHA-256$iterations:salt$StoredKey:ServerKey")]
    Malformed,
    #[error("iterations must be from 1 to {MAX_ITERATIONS}")]
    Iterations,
    #[error("the system has no random bytes")]
    NoRandomness,
}

impl Verifier {
    /// Reads the text form.
    pub fn parse(text: &str) -> Result<Verifier, VerifierError> {
        let mut parts = text.split('$');
        let (scheme, cost, keys) = match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(scheme), Some(cost), Some(keys), None) => (scheme, cost, keys),
            _ => return Err(VerifierError::Malformed),
        };
        if scheme != SCHEME {
            return Err(VerifierError::Malformed);
        }
        let (iterations, salt) = cost.split_once(':').ok_or(VerifierError::Malformed)?;
        let (stored, server) = keys.split_once(':').ok_or(VerifierError::Malformed)?;
        let iterations = iterations.parse::<u32>().map_err(|_| VerifierError::Malformed)?;
        if !(1..=MAX_ITERATIONS).contains(&iterations) {
            return Err(VerifierError::Iterations);
        }
        let salt = BASE64.decode(salt).map_err(|_| VerifierError::Malformed)?;
        if salt.is_empty() || salt.len() > 1024 {
            return Err(VerifierError::Malformed);
        }
        Ok(Verifier { iterations, salt, stored_key: key(stored)?, server_key: key(server)? })
    }

    /// Makes one from a password and a salt. Costs `iterations` rounds of HMAC: a few milliseconds at 4096.
    pub fn derive(password: &str, salt: &[u8], iterations: u32) -> Result<Verifier, VerifierError> {
        if !(1..=MAX_ITERATIONS).contains(&iterations) {
            return Err(VerifierError::Iterations);
        }
        // As Postgres: what SASLprep refuses is taken as it is.
        let prepared = stringprep::saslprep(password);
        let password = prepared.as_deref().unwrap_or(password);
        let salted = salted_password(password.as_bytes(), salt, iterations);
        let client_key = hmac(&salted, &[b"Client Key"]);
        Ok(Verifier {
            iterations,
            salt: salt.to_vec(),
            stored_key: Sha256::digest(client_key).into(),
            server_key: hmac(&salted, &[b"Server Key"]),
        })
    }

    /// What a user that does not exist is checked against: salt and keys follow from `secret` and the name, so that
    /// asking twice gives the same salt, and no password fits.
    pub(crate) fn mock(secret: &Key, user: &str, iterations: u32) -> Verifier {
        let salt = hmac(secret, &[b"salt", user.as_bytes()]);
        Verifier {
            iterations,
            salt: salt[..SALT_LEN].to_vec(),
            stored_key: hmac(secret, &[b"stored", user.as_bytes()]),
            server_key: hmac(secret, &[b"server", user.as_bytes()]),
        }
    }
}

impl fmt::Display for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{SCHEME}${}:{}${}:{}",
            self.iterations,
            BASE64.encode(&self.salt),
            BASE64.encode(self.stored_key),
            BASE64.encode(self.server_key)
        )
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Verifier({} iterations)", self.iterations)
    }
}

/// Makes the text form of a verifier for a password, with a fresh salt. Blocks for a few milliseconds.
pub fn make(password: &str, iterations: u32) -> Result<String, VerifierError> {
    let mut salt = [0u8; SALT_LEN];
    getrandom::fill(&mut salt).map_err(|_| VerifierError::NoRandomness)?;
    Ok(Verifier::derive(password, &salt, iterations)?.to_string())
}

fn key(text: &str) -> Result<Key, VerifierError> {
    let bytes = BASE64.decode(text).map_err(|_| VerifierError::Malformed)?;
    bytes.try_into().map_err(|_| VerifierError::Malformed)
}

/// HMAC-SHA-256 over the parts one after the other.
pub(crate) fn hmac(key: &[u8], parts: &[&[u8]]) -> Key {
    // A key of any length is taken: the error cannot happen, and an empty result would fail every comparison.
    let Ok(mut mac) = <Hmac<Sha256> as Mac>::new_from_slice(key) else { return [0; 32] };
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

/// PBKDF2-HMAC-SHA-256, one block.
fn salted_password(password: &[u8], salt: &[u8], iterations: u32) -> Key {
    let mut round = hmac(password, &[salt, &1u32.to_be_bytes()]);
    let mut result = round;
    for _ in 1..iterations {
        round = hmac(password, &[&round]);
        for (r, x) in result.iter_mut().zip(round) {
            *r ^= x;
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_rfc_7677() {
        // RFC 7677 section 3: user "user", password "pencil".
        let salt = BASE64.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
        let v = Verifier::derive("pencil", &salt, 4096).unwrap();
        assert_eq!(
            v.to_string(),
            "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:\
             wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU="
        );
        assert_eq!(Verifier::parse(&v.to_string()).unwrap(), v);
    }

    #[test]
    fn refuses_damaged_ones() {
        let good = make("x", 2).unwrap();
        assert!(Verifier::parse(&good).is_ok());
        for bad in [
            "",
            "md5abcdef",
            "SCRAM-SHA-256",
            "SCRAM-SHA-256$4096:AAAA$AAAA:AAAA",
            "SCRAM-SHA-256$0:AAAA$A:A",
            "SCRAM-SHA-256$4096$x:y",
        ] {
            assert!(Verifier::parse(bad).is_err(), "{bad}");
        }
        assert_eq!(Verifier::parse(&good.replace("$2:", "$0:")), Err(VerifierError::Iterations));
        assert!(Verifier::parse(&(good.clone() + "$")).is_err());
        assert!(Verifier::parse(&good[..good.len() - 4]).is_err());
    }

    #[test]
    fn mock_is_the_same_each_time_and_differs_by_user() {
        let a = Verifier::mock(&[7; 32], "a.db", 4096);
        assert_eq!(a, Verifier::mock(&[7; 32], "a.db", 4096));
        assert_ne!(a.salt, Verifier::mock(&[7; 32], "b.db", 4096).salt);
        assert_ne!(a.salt, Verifier::mock(&[8; 32], "a.db", 4096).salt);
        assert_eq!(a.salt.len(), SALT_LEN);
    }
}
