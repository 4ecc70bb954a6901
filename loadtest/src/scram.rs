//! The client's side of SCRAM-SHA-256 (RFC 5802, RFC 7677), without channel binding. Pure: the nonce is given.
//!
//! Passwords are used as their UTF-8 bytes. SASLprep changes only passwords outside ASCII; those that the API
//! makes are ASCII, and others are refused here rather than hashed wrongly.

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use hmac::{Hmac, Mac};
use sha2::{Digest, Sha256};
use thiserror::Error;

pub const MECHANISM: &str = "SCRAM-SHA-256";
/// More rounds than any server sets; a hostile one must not keep the client computing for ever.
const ITERATIONS_MAX: u32 = 1_000_000;

#[derive(Debug, Error, PartialEq, Eq)]
pub enum ScramError {
    #[error("the password has characters outside ASCII, which this client does not normalise")]
    Password,
    #[error("the server's SCRAM message makes no sense: {0:?}")]
    Malformed(String),
    #[error("the server's nonce does not continue the client's")]
    Nonce,
    #[error("the server does not know the password: its signature is wrong")]
    Signature,
}

/// One exchange. `first` → `answer` → `verify`.
pub struct Scram {
    password: Vec<u8>,
    nonce: String,
    expected: Option<[u8; 32]>,
}

impl Scram {
    pub fn new(password: &str, nonce: &str) -> Result<Self, ScramError> {
        if !password.is_ascii() {
            return Err(ScramError::Password);
        }
        Ok(Self {
            password: password.as_bytes().to_vec(),
            nonce: nonce.to_owned(),
            expected: None,
        })
    }

    /// The name is left empty: PostgreSQL takes the one of the startup packet.
    fn first_bare(&self) -> String {
        format!("n=,r={}", self.nonce)
    }

    /// client-first-message.
    pub fn first(&self) -> String {
        format!("n,,{}", self.first_bare())
    }

    /// client-final-message for a server-first-message.
    pub fn answer(&mut self, server_first: &str) -> Result<String, ScramError> {
        self.answer_to(&self.first_bare(), server_first)
    }

    fn answer_to(&mut self, first_bare: &str, server_first: &str) -> Result<String, ScramError> {
        let malformed = || ScramError::Malformed(server_first.to_owned());
        let (mut nonce, mut salt, mut rounds) = (None, None, None);
        for attribute in server_first.split(',') {
            match attribute.split_once('=') {
                Some(("r", value)) => nonce = Some(value),
                Some(("s", value)) => salt = BASE64.decode(value).ok(),
                Some(("i", value)) => rounds = value.parse::<u32>().ok(),
                // "m" is an extension that a client must refuse if it does not know it.
                Some(("m", _)) | None => return Err(malformed()),
                Some(_) => {}
            }
        }
        let (nonce, salt, rounds) = (
            nonce.ok_or_else(malformed)?,
            salt.ok_or_else(malformed)?,
            rounds.ok_or_else(malformed)?,
        );
        if !(1..=ITERATIONS_MAX).contains(&rounds) {
            return Err(malformed());
        }
        if !nonce.starts_with(&self.nonce) || nonce.len() == self.nonce.len() {
            return Err(ScramError::Nonce);
        }
        let salted = salted_password(&self.password, &salt, rounds);
        let client_key = hmac(&salted, b"Client Key");
        let stored_key: [u8; 32] = Sha256::digest(client_key).into();
        let without_proof = format!("c=biws,r={nonce}");
        let signed = format!("{first_bare},{server_first},{without_proof}");
        let signature = hmac(&stored_key, signed.as_bytes());
        let proof: Vec<u8> = client_key
            .iter()
            .zip(signature)
            .map(|(key, sig)| key ^ sig)
            .collect();
        self.expected = Some(hmac(&hmac(&salted, b"Server Key"), signed.as_bytes()));
        Ok(format!("{without_proof},p={}", BASE64.encode(proof)))
    }

    /// Checks the server-final-message: only who has the verifier can make it.
    pub fn verify(&self, server_final: &str) -> Result<(), ScramError> {
        let signature = server_final
            .strip_prefix("v=")
            .and_then(|text| BASE64.decode(text).ok());
        match (signature, self.expected) {
            (Some(signature), Some(expected)) if signature == expected => Ok(()),
            (None, _) => Err(ScramError::Malformed(server_final.to_owned())),
            _ => Err(ScramError::Signature),
        }
    }
}

fn hmac(key: &[u8], data: &[u8]) -> [u8; 32] {
    // HMAC takes keys of any length, so this never fails; an empty key would show in the first exchange.
    let mut mac =
        Hmac::<Sha256>::new_from_slice(key).unwrap_or_else(|_| Hmac::new(&Default::default()));
    mac.update(data);
    mac.finalize().into_bytes().into()
}

/// `Hi` of RFC 5802: PBKDF2 with one block.
fn salted_password(password: &[u8], salt: &[u8], rounds: u32) -> [u8; 32] {
    let mut block = hmac(password, &[salt, &[0, 0, 0, 1]].concat());
    let mut result = block;
    for _ in 1..rounds {
        block = hmac(password, &block);
        result
            .iter_mut()
            .zip(block)
            .for_each(|(sum, byte)| *sum ^= byte);
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONCE: &str = "rOprNGfwEbeRWgbNEkqO";
    const SERVER_FIRST: &str =
        "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
    const SERVER_FINAL: &str = "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=";

    /// The example of RFC 7677, section 3, which names the user.
    #[test]
    fn makes_the_proof_of_the_specification() {
        let mut scram = Scram::new("pencil", NONCE).unwrap();
        let answer = scram
            .answer_to(&format!("n=user,r={NONCE}"), SERVER_FIRST)
            .unwrap();
        assert_eq!(
            answer,
            "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
             p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
        );
        assert_eq!(scram.verify(SERVER_FINAL), Ok(()));
    }

    #[test]
    fn refuses_a_server_that_does_not_know_the_password() {
        let mut scram = Scram::new("pencil", NONCE).unwrap();
        assert_eq!(scram.verify(SERVER_FINAL), Err(ScramError::Signature));
        scram.answer(SERVER_FIRST).unwrap();
        assert_eq!(scram.verify(SERVER_FINAL), Err(ScramError::Signature));
        assert!(matches!(
            scram.verify("e=other-error"),
            Err(ScramError::Malformed(_))
        ));
    }

    #[test]
    fn refuses_a_nonce_that_is_not_a_continuation() {
        let mut scram = Scram::new("pencil", NONCE).unwrap();
        for nonce in ["stolen", NONCE] {
            let first = format!("r={nonce},s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096");
            assert_eq!(scram.answer(&first), Err(ScramError::Nonce));
        }
    }

    #[test]
    fn refuses_what_it_cannot_compute() {
        assert!(matches!(
            Scram::new("pässword", NONCE),
            Err(ScramError::Password)
        ));
        let mut scram = Scram::new("pencil", NONCE).unwrap();
        for first in [
            "",
            "r=rOprNGfwEbeRWgbNEkqOx,s=!!,i=1",
            "r=rOprNGfwEbeRWgbNEkqOx,s=AAAA,i=0",
            "m=x",
        ] {
            assert!(
                matches!(scram.answer(first), Err(ScramError::Malformed(_))),
                "{first:?}"
            );
        }
    }
}
