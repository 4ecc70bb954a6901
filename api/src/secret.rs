//! Secrets: keys, passwords, and the verifiers and hashes that are kept in their stead.
//!
//! Nothing here is ever logged. Keys are 256 random bits, so a plain SHA-256 is enough to keep of them; a
//! password is 144 bits, and a SCRAM verifier is kept because the pooler needs one.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::LazyLock;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use hmac::{Hmac, Mac};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tokio::sync::Semaphore;

/// The system's random generator did not answer.
#[derive(Debug, thiserror::Error)]
#[error("the system's random generator failed: {0}")]
pub struct RandomError(String);

const LETTERS_DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";

/// Fills a new array with random bytes.
pub fn random_bytes<const N: usize>() -> Result<[u8; N], RandomError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|e| RandomError(e.to_string()))?;
    Ok(bytes)
}

/// `len` characters, each drawn evenly from `alphabet` (at most 128 characters).
pub fn random_text(len: usize, alphabet: &[u8]) -> Result<String, RandomError> {
    // Bytes past the largest multiple of the alphabet's length are drawn again: no character is likelier.
    let bound = 256 - 256 % alphabet.len();
    let mut text = String::with_capacity(len);
    while text.len() < len {
        for byte in random_bytes::<64>()? {
            if usize::from(byte) < bound && text.len() < len {
                text.push(char::from(alphabet[usize::from(byte) % alphabet.len()]));
            }
        }
    }
    Ok(text)
}

/// A database password: 24 letters and digits, so it needs no escaping in a URI.
pub fn new_password() -> Result<String, RandomError> {
    random_text(24, LETTERS_DIGITS)
}

/// An API key: 43 letters and digits (256 bits) after a prefix that tells what it is when it leaks.
pub fn new_key(prefix: &str) -> Result<String, RandomError> {
    Ok(format!("{prefix}{}", random_text(43, LETTERS_DIGITS)?))
}

/// Prefix of the operator's key.
pub const ADMIN_KEY_PREFIX: &str = "dma_";
/// Prefix of a tenant's key.
pub const TENANT_KEY_PREFIX: &str = "dmt_";

/// What is kept of a key.
pub fn key_hash(key: &str) -> [u8; 32] {
    Sha256::digest(key.as_bytes()).into()
}

/// Compares without telling by its time where the two differ.
pub fn same(a: &[u8], b: &[u8]) -> bool {
    a.ct_eq(b).into()
}

/// Reads the secret in `path`, or makes it with `new`, mode 0600. Ends of line are not part of it.
pub fn load_or_create(path: &Path, new: impl FnOnce() -> Result<String, RandomError>) -> io::Result<String> {
    match fs::File::open(path) {
        Ok(mut file) => {
            let mut text = String::new();
            file.read_to_string(&mut text)?;
            let secret = text.trim_end().to_string();
            if secret.len() < 32 {
                let message = format!("{} holds no usable key; remove the file to have a new one made", path.display());
                return Err(io::Error::new(io::ErrorKind::InvalidData, message));
            }
            // A key made readable by others by a copy or a restore is made private again.
            fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
            Ok(secret)
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let secret = new().map_err(io::Error::other)?;
            // Written aside and renamed: a crash leaves no half key.
            let aside = path.with_extension("new");
            let _ = fs::remove_file(&aside);
            let mut file = fs::OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&aside)?;
            writeln!(file, "{secret}")?;
            file.sync_all()?;
            fs::rename(&aside, path)?;
            Ok(secret)
        }
        Err(e) => Err(e),
    }
}

/// HMAC-SHA-256.
pub fn hmac(key: &[u8], message: &[u8]) -> [u8; 32] {
    keyed(key).chain_update(message).finalize().into_bytes().into()
}

/// HMAC-SHA-256 of a key, to be cloned where many messages have the same: half of the work is in the key.
fn keyed(key: &[u8]) -> Hmac<Sha256> {
    match Hmac::<Sha256>::new_from_slice(key) {
        Ok(mac) => mac,
        // The error type is there for other constructions.
        Err(_) => unreachable!("HMAC takes a key of any length"),
    }
}

/// Rounds of PBKDF2 in a verifier: Postgres' own `scram_iterations` default. The passwords are random, so more
/// rounds would add cost to every login and nothing to guess against.
const SCRAM_ITERATIONS: u32 = 4096;

/// Passwords being hashed at once: half a millisecond of a core each, so no more than there are cores to spare from others'
/// wakes.
static HASHING: LazyLock<Semaphore> =
    LazyLock::new(|| Semaphore::new(std::thread::available_parallelism().map_or(1, usize::from)));

/// Why no password was made.
#[derive(Debug, thiserror::Error)]
pub enum PasswordError {
    #[error(transparent)]
    Random(#[from] RandomError),
    #[error("the hashing of a password was interrupted")]
    Interrupted,
}

/// A random password and its verifier, hashed on a thread that nobody's wake runs on.
pub async fn password_and_verifier() -> Result<(String, String), PasswordError> {
    let password = new_password()?;
    let hashed = password.clone();
    // It is never closed.
    let _turn = HASHING.acquire().await.map_err(|_| PasswordError::Interrupted)?;
    let made = tokio::task::spawn_blocking(move || scram_verifier(&hashed)).await;
    Ok((password, made.map_err(|_| PasswordError::Interrupted)??))
}

/// The SCRAM-SHA-256 verifier of a password, in the form of `pg_authid.rolpassword` (RFC 5803). The password is
/// taken as it is, which is right for ASCII: SASLprep does not change it.
pub fn scram_verifier(password: &str) -> Result<String, RandomError> {
    Ok(scram_verifier_with(password, &random_bytes::<16>()?, SCRAM_ITERATIONS))
}

fn scram_verifier_with(password: &str, salt: &[u8], iterations: u32) -> String {
    let keyed = keyed(password.as_bytes());
    let rounds = |message: &[u8]| -> [u8; 32] { keyed.clone().chain_update(message).finalize().into_bytes().into() };
    let mut block = salt.to_vec();
    block.extend_from_slice(&1u32.to_be_bytes());
    let mut u = rounds(&block);
    let mut salted = u;
    for _ in 1..iterations {
        u = rounds(&u);
        salted.iter_mut().zip(u).for_each(|(s, u)| *s ^= u);
    }
    let stored = Sha256::digest(hmac(&salted, b"Client Key"));
    let server = hmac(&salted, b"Server Key");
    format!(
        "SCRAM-SHA-256${iterations}:{}${}:{}",
        BASE64.encode(salt),
        BASE64.encode(stored),
        BASE64.encode(server)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verifier_agrees_with_rfc_7677() {
        // RFC 7677's example: user "user", password "pencil"; its proof and signature follow from these keys.
        let salt = BASE64.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
        let verifier = scram_verifier_with("pencil", &salt, 4096);
        let (_, keys) = verifier.rsplit_once('$').unwrap();
        let (stored, server) = keys.split_once(':').unwrap();
        let (stored, server) = (BASE64.decode(stored).unwrap(), BASE64.decode(server).unwrap());
        let nonce = "rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
        let message = format!(
            "n=user,r=rOprNGfwEbeRWgbNEkqO,r={nonce},s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096,c=biws,r={nonce}"
        );
        let signature = hmac(&server, message.as_bytes());
        assert_eq!(BASE64.encode(signature), "6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
        let proof = BASE64.decode("dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=").unwrap();
        let client_signature = hmac(&stored, message.as_bytes());
        let client_key: Vec<u8> = proof.iter().zip(client_signature).map(|(p, s)| p ^ s).collect();
        assert_eq!(Sha256::digest(client_key).to_vec(), stored);
    }

    #[test]
    fn a_key_file_is_private_made_once_and_refused_when_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.key");
        let first = load_or_create(&path, || new_key(ADMIN_KEY_PREFIX)).unwrap();
        assert_eq!(first.len(), 47);
        assert_eq!(load_or_create(&path, || new_key(ADMIN_KEY_PREFIX)).unwrap(), first);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::write(&path, "").unwrap();
        let message = load_or_create(&path, || new_key(ADMIN_KEY_PREFIX)).unwrap_err().to_string();
        assert!(message.contains("remove the file"), "{message}");
    }

    #[test]
    fn random_text_keeps_to_its_alphabet_and_length() {
        let text = random_text(1000, b"abc").unwrap();
        assert_eq!(text.len(), 1000);
        assert!(b"abc".iter().all(|c| text.as_bytes().contains(c)));
    }
}
