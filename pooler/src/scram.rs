//! The server's side of SCRAM-SHA-256 and SCRAM-SHA-256-PLUS (RFC 5802, 7677), from a stored verifier. Pure: text in,
//! text out.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::verifier::{Verifier, hmac};

pub const PLAIN: &str = "SCRAM-SHA-256";
pub const PLUS: &str = "SCRAM-SHA-256-PLUS";
/// Bytes of random data in the server's nonce, before base64.
const NONCE_LEN: usize = 18;

/// Why an exchange ends. All but `WrongPassword` mean a client that does not speak the protocol.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScramError {
    #[error("malformed SCRAM message ({0})")]
    Malformed(&'static str),
    #[error("client selected an invalid SASL authentication mechanism")]
    Mechanism,
    #[error("SCRAM channel binding negotiation error")]
    Downgrade,
    #[error("SCRAM channel binding check failed")]
    ChannelBinding,
    #[error("client requires an unsupported SCRAM extension or an authorization identity")]
    Unsupported,
    #[error("password authentication failed")]
    WrongPassword,
    #[error("the system has no random bytes")]
    NoRandomness,
}

/// After the client's first message.
pub struct Exchange {
    verifier: Verifier,
    nonce: String,
    /// What `c=` must decode to.
    binding: Vec<u8>,
    client_first_bare: String,
    server_first: String,
}

/// Takes the client's first message. `end_point` is the hash of the certificate served on this connection, when it
/// has TLS and the certificate has such a hash: then PLUS was offered.
pub fn begin(
    mechanism: &str,
    message: &[u8],
    verifier: Verifier,
    end_point: Option<&[u8]>,
) -> Result<Exchange, ScramError> {
    let mut nonce = [0u8; NONCE_LEN];
    getrandom::fill(&mut nonce).map_err(|_| ScramError::NoRandomness)?;
    begin_with(mechanism, message, verifier, end_point, &BASE64.encode(nonce))
}

fn begin_with(
    mechanism: &str,
    message: &[u8],
    verifier: Verifier,
    end_point: Option<&[u8]>,
    server_nonce: &str,
) -> Result<Exchange, ScramError> {
    let text = std::str::from_utf8(message).map_err(|_| ScramError::Malformed("not UTF-8"))?;
    // gs2-header: flag "," [authzid] ","
    let (flag, rest) = text.split_once(',').ok_or(ScramError::Malformed("no GS2 header"))?;
    let (authzid, bare) = rest.split_once(',').ok_or(ScramError::Malformed("no GS2 header"))?;
    if !authzid.is_empty() {
        return Err(ScramError::Unsupported);
    }
    let mut binding = format!("{flag},,").into_bytes();
    match (mechanism, flag, end_point) {
        (PLAIN, "n", _) => {}
        // "I could, but thought you could not", to a server that offered it: someone took the offer away.
        (PLAIN, "y", Some(_)) => return Err(ScramError::Downgrade),
        (PLAIN, "y", None) => {}
        (PLUS, "p=tls-server-end-point", Some(hash)) => binding.extend_from_slice(hash),
        (PLUS, flag, Some(_)) if flag.starts_with("p=") => return Err(ScramError::ChannelBinding),
        (PLAIN, flag, _) if flag.starts_with("p=") => return Err(ScramError::Malformed("channel binding without -PLUS")),
        (PLUS, "n" | "y", Some(_)) => return Err(ScramError::Malformed("-PLUS without channel binding")),
        (PLAIN, ..) | (PLUS, _, Some(_)) => return Err(ScramError::Malformed("GS2 flag")),
        _ => return Err(ScramError::Mechanism),
    }
    if bare.starts_with("m=") {
        return Err(ScramError::Unsupported);
    }
    let mut attributes = bare.split(',');
    // The name is the startup packet's; what stands here is not looked at (Postgres sends it empty).
    if !attributes.next().is_some_and(|a| a.starts_with("n=")) {
        return Err(ScramError::Malformed("no n="));
    }
    let client_nonce = attributes.next().and_then(|a| a.strip_prefix("r=")).ok_or(ScramError::Malformed("no r="))?;
    if client_nonce.is_empty() || !client_nonce.bytes().all(|c| (0x21..=0x7e).contains(&c) && c != b',') {
        return Err(ScramError::Malformed("nonce"));
    }
    let nonce = format!("{client_nonce}{server_nonce}");
    let server_first = format!("r={nonce},s={},i={}", BASE64.encode(&verifier.salt), verifier.iterations);
    Ok(Exchange { verifier, nonce, binding, client_first_bare: bare.to_owned(), server_first })
}

impl Exchange {
    /// The server's first message.
    pub fn challenge(&self) -> &str {
        &self.server_first
    }

    /// Checks the client's final message; gives the server's final one.
    pub fn finish(self, message: &[u8]) -> Result<String, ScramError> {
        let text = std::str::from_utf8(message).map_err(|_| ScramError::Malformed("not UTF-8"))?;
        let (without_proof, proof) = text.rsplit_once(",p=").ok_or(ScramError::Malformed("no p="))?;
        let mut attributes = without_proof.split(',');
        let binding = attributes.next().and_then(|a| a.strip_prefix("c=")).ok_or(ScramError::Malformed("no c="))?;
        let nonce = attributes.next().and_then(|a| a.strip_prefix("r=")).ok_or(ScramError::Malformed("no r="))?;
        let binding = BASE64.decode(binding).map_err(|_| ScramError::Malformed("c= is not base64"))?;
        if !bool::from(binding.ct_eq(&self.binding)) {
            return Err(ScramError::ChannelBinding);
        }
        if !bool::from(nonce.as_bytes().ct_eq(self.nonce.as_bytes())) {
            return Err(ScramError::Malformed("nonce is not ours"));
        }
        let proof = BASE64.decode(proof).map_err(|_| ScramError::Malformed("p= is not base64"))?;
        let proof: [u8; 32] = proof.try_into().map_err(|_| ScramError::Malformed("p= has a wrong length"))?;

        let parts: [&[u8]; 5] = [
            self.client_first_bare.as_bytes(),
            b",",
            self.server_first.as_bytes(),
            b",",
            without_proof.as_bytes(),
        ];
        let signature = hmac(&self.verifier.stored_key, &parts);
        let mut client_key = proof;
        for (k, s) in client_key.iter_mut().zip(signature) {
            *k ^= s;
        }
        let stored_key: [u8; 32] = Sha256::digest(client_key).into();
        if !bool::from(stored_key.ct_eq(&self.verifier.stored_key)) {
            return Err(ScramError::WrongPassword);
        }
        Ok(format!("v={}", BASE64.encode(hmac(&self.verifier.server_key, &parts))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pencil() -> Verifier {
        Verifier::derive("pencil", &BASE64.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap(), 4096).unwrap()
    }

    const CLIENT_FIRST: &[u8] = b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO";
    const CLIENT_FINAL: &str = "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";

    fn rfc_exchange() -> Exchange {
        begin_with(PLAIN, CLIENT_FIRST, pencil(), None, "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0").unwrap()
    }

    #[test]
    fn agrees_with_rfc_7677() {
        let e = rfc_exchange();
        assert_eq!(
            e.challenge(),
            "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
        );
        assert_eq!(e.finish(CLIENT_FINAL.as_bytes()).unwrap(), "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
    }

    #[test]
    fn refuses_bad_final_messages() {
        let cases: &[(String, ScramError)] = &[
            (CLIENT_FINAL.replace("p=dH", "p=eH"), ScramError::WrongPassword),
            (CLIENT_FINAL.replace("c=biws", "c=eSws"), ScramError::ChannelBinding),
            (CLIENT_FINAL.replace("r=rO", "r=xO"), ScramError::Malformed("nonce is not ours")),
            (CLIENT_FINAL.replace("r=rOprNGfwEbeRWgbNEkqO", "r="), ScramError::Malformed("nonce is not ours")),
            (CLIENT_FINAL.replace(",p=", ",q="), ScramError::Malformed("no p=")),
            (CLIENT_FINAL.replace("dVQ=", ""), ScramError::Malformed("p= has a wrong length")),
            (CLIENT_FINAL.replace("dVQ=", "d*"), ScramError::Malformed("p= is not base64")),
            (",p=".into(), ScramError::Malformed("no c=")),
            (String::new(), ScramError::Malformed("no p=")),
        ];
        for (message, want) in cases {
            assert_eq!(rfc_exchange().finish(message.as_bytes()).as_ref(), Err(want), "{message}");
        }
        assert!(rfc_exchange().finish(&[0xff, 0xfe]).is_err());
    }

    #[test]
    fn channel_binding_table() {
        use ScramError::*;
        let hash: &[u8] = b"hash of the certificate";
        let cases: &[(&str, &str, bool, Option<ScramError>)] = &[
            (PLAIN, "n,,n=,r=abc", false, None),
            (PLAIN, "n,,n=,r=abc", true, None),
            (PLAIN, "y,,n=,r=abc", false, None),
            (PLAIN, "y,,n=,r=abc", true, Some(Downgrade)),
            (PLUS, "p=tls-server-end-point,,n=,r=abc", true, None),
            (PLUS, "p=tls-server-end-point,,n=,r=abc", false, Some(Mechanism)),
            (PLUS, "p=tls-unique,,n=,r=abc", true, Some(ChannelBinding)),
            (PLUS, "n,,n=,r=abc", true, Some(Malformed("-PLUS without channel binding"))),
            (PLAIN, "p=tls-server-end-point,,n=,r=abc", true, Some(Malformed("channel binding without -PLUS"))),
            ("SCRAM-SHA-1", "n,,n=,r=abc", true, Some(Mechanism)),
            (PLAIN, "n,a=root,n=,r=abc", false, Some(Unsupported)),
            (PLAIN, "n,,m=x,n=,r=abc", false, Some(Unsupported)),
            (PLAIN, "n,,n=,r=", false, Some(Malformed("nonce"))),
            (PLAIN, "n,,n=", false, Some(Malformed("no r="))),
            (PLAIN, "n,", false, Some(Malformed("no GS2 header"))),
            (PLAIN, "x,,n=,r=abc", false, Some(Malformed("GS2 flag"))),
        ];
        for (mechanism, message, tls, want) in cases {
            let got = begin_with(mechanism, message.as_bytes(), pencil(), tls.then_some(hash), "S").err();
            assert_eq!(&got, want, "{mechanism} {message} {tls}");
        }
    }

    #[test]
    fn plus_names_the_certificate() {
        let first = "p=tls-server-end-point,,n=,r=abc";
        let proof_for = |bound: &[u8]| {
            let mut header = b"p=tls-server-end-point,,".to_vec();
            header.extend_from_slice(bound);
            let without = format!("c={},r=abcS", BASE64.encode(header));
            let salted_client_key = {
                // ClientKey of the verifier's password, computed as a client does.
                let salt = BASE64.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
                let mut u = hmac(b"pencil", &[&salt, &1u32.to_be_bytes()]);
                let mut s = u;
                for _ in 1..4096 {
                    u = hmac(b"pencil", &[&u]);
                    s.iter_mut().zip(u).for_each(|(a, b)| *a ^= b);
                }
                hmac(&s, &[b"Client Key"])
            };
            let server_first = "r=abcS,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
            let auth = format!("n=,r=abc,{server_first},{without}");
            let signature = hmac(&Sha256::digest(salted_client_key), &[auth.as_bytes()]);
            let proof: Vec<u8> = salted_client_key.iter().zip(signature).map(|(a, b)| a ^ b).collect();
            format!("{without},p={}", BASE64.encode(proof))
        };
        let go = |bound: &[u8]| {
            begin_with(PLUS, first.as_bytes(), pencil(), Some(b"mine"), "S").unwrap().finish(proof_for(bound).as_bytes())
        };
        assert!(go(b"mine").is_ok());
        assert_eq!(go(b"another's"), Err(ScramError::ChannelBinding));
    }
}
