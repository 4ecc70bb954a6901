//! TLS: the certificate that is served, made at first start unless one is given, and the hash that SCRAM binds to.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest, Sha256, Sha384, Sha512};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{self, ServerConfig};

use crate::settings::Settings;
use crate::verifier::Key;

/// The protocol's name in TLS; a client that begins with TLS at once must offer it.
pub const ALPN: &[u8] = b"postgresql";
/// File names under `tls_dir`.
pub const CERTIFICATE_FILE: &str = "server.crt";
pub const KEY_FILE: &str = "server.key";
pub const MOCK_FILE: &str = "mock.key";

/// Why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    #[error("{action} {path}: {source}")]
    File { action: &'static str, path: PathBuf, source: io::Error },
    #[error("{path} holds no usable PEM {what}: {reason}")]
    Pem { path: PathBuf, what: &'static str, reason: String },
    #[error("tls_certificate and tls_key must be set together")]
    OneOfTwo,
    #[error("cannot make a certificate for tls_names {names:?}: {source}")]
    Make { names: Vec<String>, source: rcgen::Error },
    #[error("the certificate in {path} does not go with its key, or cannot be used: {source}")]
    Unusable { path: PathBuf, source: rustls::Error },
    #[error("{0} must hold 32 bytes; remove it to have it made again")]
    MockLength(PathBuf),
    #[error("the system has no random bytes")]
    NoRandomness,
}

/// What is served.
pub struct Tls {
    pub acceptor: TlsAcceptor,
    /// Hash of the leaf for tls-server-end-point; `None` where that is not defined: then -PLUS is not offered.
    pub end_point: Option<Vec<u8>>,
}

/// Loads the certificate of the settings; makes a self-signed one when there is none.
pub fn load(settings: &Settings) -> Result<Tls, CertificateError> {
    let (certificate_path, key_path) = match (&settings.tls_certificate, &settings.tls_key) {
        (Some(certificate), Some(key)) => (certificate.clone(), key.clone()),
        (None, None) => {
            let paths = (settings.tls_dir.join(CERTIFICATE_FILE), settings.tls_dir.join(KEY_FILE));
            if !paths.0.exists() || !paths.1.exists() {
                make(settings, &paths.0, &paths.1)?;
            }
            paths
        }
        _ => return Err(CertificateError::OneOfTwo),
    };
    let chain: Vec<CertificateDer> = CertificateDer::pem_slice_iter(&read(&certificate_path)?)
        .collect::<Result<_, _>>()
        .map_err(|e| pem_error(&certificate_path, "certificate", e))?;
    let Some(leaf) = chain.first() else {
        return Err(CertificateError::Pem {
            path: certificate_path,
            what: "certificate",
            reason: "there is none in it".into(),
        });
    };
    let end_point = end_point_hash(leaf);
    let key =
        PrivateKeyDer::from_pem_slice(&read(&key_path)?).map_err(|e| pem_error(&key_path, "private key", e))?;
    let unusable = |source| CertificateError::Unusable { path: certificate_path.clone(), source };
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key))
        .map_err(unusable)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    // libpq can hang on records over 8 KiB: it asks the socket whether there is more while the rest of a record lies
    // in the TLS library.
    config.max_fragment_size = Some(8192);
    // Each ticket is a write and memory, and a session that lasts for days has no use for it.
    config.send_tls13_tickets = 0;
    Ok(Tls { acceptor: TlsAcceptor::from(Arc::new(config)), end_point })
}

/// The secret behind the salts that unknown users are shown. Kept on disk: were it new at each start, whoever saw a
/// salt change would know that the user does not exist.
pub fn mock_secret(settings: &Settings) -> Result<Key, CertificateError> {
    let path = settings.tls_dir.join(MOCK_FILE);
    if !path.exists() {
        let mut secret = [0u8; 32];
        getrandom::fill(&mut secret).map_err(|_| CertificateError::NoRandomness)?;
        make_folder(&settings.tls_dir)?;
        write_private(&path, &secret, 0o600)?;
    }
    read(&path)?.try_into().map_err(|_| CertificateError::MockLength(path))
}

fn make(settings: &Settings, certificate_path: &Path, key_path: &Path) -> Result<(), CertificateError> {
    let failed = |source| CertificateError::Make { names: settings.tls_names.clone(), source };
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(failed)?;
    let mut params = rcgen::CertificateParams::new(settings.tls_names.clone()).map_err(failed)?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::CommonName, "Dormouse (self-signed)");
    let certificate = params.self_signed(&key).map_err(failed)?;
    make_folder(&settings.tls_dir)?;
    // The key first: a certificate without its key would be taken for a pair half removed by hand.
    write_private(key_path, key.serialize_pem().as_bytes(), 0o600)?;
    write_private(certificate_path, certificate.pem().as_bytes(), 0o644)
}

fn make_folder(path: &Path) -> Result<(), CertificateError> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|e| file_error("cannot make", path, e))
}

/// Writes beside and renames, so that a crash leaves the old file or the new one.
fn write_private(path: &Path, bytes: &[u8], mode: u32) -> Result<(), CertificateError> {
    let beside = path.with_extension("new");
    let write = || -> io::Result<()> {
        match fs::remove_file(&beside) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&beside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&beside, path)
    };
    write().map_err(|e| file_error("cannot write", path, e))
}

fn read(path: &Path) -> Result<Vec<u8>, CertificateError> {
    fs::read(path).map_err(|e| file_error("cannot read", path, e))
}

fn file_error(action: &'static str, path: &Path, source: io::Error) -> CertificateError {
    CertificateError::File { action, path: path.to_owned(), source }
}

fn pem_error(
    path: &Path,
    what: &'static str,
    reason: tokio_rustls::rustls::pki_types::pem::Error,
) -> CertificateError {
    CertificateError::Pem { path: path.to_owned(), what, reason: reason.to_string() }
}

/// RFC 5929 section 4.1: the hash in the certificate's signature algorithm, SHA-256 in place of MD5 and SHA-1.
fn end_point_hash(certificate: &[u8]) -> Option<Vec<u8>> {
    let (outer, _) = der(certificate, 0x30)?;
    let (_signed, rest) = der(outer, 0x30)?;
    let (algorithm, _) = der(rest, 0x30)?;
    let (oid, _) = der(algorithm, 0x06)?;
    // 1.2.840.113549.1.1.x is RSA (PKCS #1), 1.2.840.10045.4.3.x and 1.2.840.10045.4.1 are ECDSA. RSA-PSS names its
    // hash in parameters, and Ed25519 has none: the binding is not defined for them.
    const RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01];
    const ECDSA: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04];
    let bits = match (oid.strip_prefix(RSA), oid.strip_prefix(ECDSA)) {
        (Some([4 | 5 | 11]), _) => 256,
        (Some([12]), _) => 384,
        (Some([13]), _) => 512,
        (_, Some([1] | [3, 2])) => 256,
        (_, Some([3, 3])) => 384,
        (_, Some([3, 4])) => 512,
        _ => return None,
    };
    Some(match bits {
        256 => Sha256::digest(certificate).to_vec(),
        384 => Sha384::digest(certificate).to_vec(),
        _ => Sha512::digest(certificate).to_vec(),
    })
}

/// One DER element with this tag: its content, and what follows it.
fn der(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&found, rest) = bytes.split_first()?;
    let (&first, mut rest) = rest.split_first()?;
    let mut length = usize::from(first);
    if first & 0x80 != 0 {
        let count = usize::from(first & 0x7f);
        if count == 0 || count > 4 || rest.len() < count {
            return None;
        }
        length = rest[..count].iter().fold(0, |l, &b| l << 8 | usize::from(b));
        rest = &rest[count..];
    }
    (found == tag && rest.len() >= length).then(|| rest.split_at(length))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn settings(dir: &Path) -> Settings {
        Settings { tls_dir: dir.join("tls"), ..Settings::default() }
    }

    #[test]
    fn made_once_with_a_private_key() {
        let dir = tempfile::tempdir().unwrap();
        let settings = settings(dir.path());
        let first = load(&settings).unwrap();
        let key = settings.tls_dir.join(KEY_FILE);
        assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(&settings.tls_dir).unwrap().permissions().mode() & 0o777, 0o700);
        let again = load(&settings).unwrap();
        assert_eq!(first.end_point.as_ref().unwrap().len(), 32);
        assert_eq!(first.end_point, again.end_point);
        let pem = fs::read(settings.tls_dir.join(CERTIFICATE_FILE)).unwrap();
        let leaf = CertificateDer::from_pem_slice(&pem).unwrap();
        assert_eq!(first.end_point.unwrap(), Sha256::digest(&leaf).to_vec());
    }

    #[test]
    fn the_mock_secret_lasts() {
        let dir = tempfile::tempdir().unwrap();
        let settings = settings(dir.path());
        let secret = mock_secret(&settings).unwrap();
        assert_eq!(secret, mock_secret(&settings).unwrap());
        let path = settings.tls_dir.join(MOCK_FILE);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::write(&path, b"short").unwrap();
        assert!(matches!(mock_secret(&settings), Err(CertificateError::MockLength(_))));
    }

    #[test]
    fn bad_files_are_said_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let mut settings = settings(dir.path());
        load(&settings).unwrap();
        settings.tls_certificate = Some(settings.tls_dir.join(CERTIFICATE_FILE));
        assert!(matches!(load(&settings), Err(CertificateError::OneOfTwo)));
        settings.tls_key = Some(dir.path().join("absent"));
        assert!(load(&settings).err().unwrap().to_string().contains("absent"));
        // A certificate where the key should be.
        settings.tls_key = settings.tls_certificate.clone();
        assert!(matches!(load(&settings), Err(CertificateError::Pem { what: "private key", .. })));
        let other = rcgen::KeyPair::generate().unwrap();
        fs::write(dir.path().join("other"), other.serialize_pem()).unwrap();
        settings.tls_key = Some(dir.path().join("other"));
        assert!(matches!(load(&settings), Err(CertificateError::Unusable { .. })));
    }

    #[test]
    fn hash_follows_the_signature() {
        for (algorithm, bytes) in [(&rcgen::PKCS_ECDSA_P384_SHA384, Some(48)), (&rcgen::PKCS_ED25519, None)] {
            let key = rcgen::KeyPair::generate_for(algorithm).unwrap();
            let cert = rcgen::CertificateParams::new(vec!["x".into()]).unwrap().self_signed(&key).unwrap();
            assert_eq!(end_point_hash(cert.der()).map(|h| h.len()), bytes);
        }
        assert_eq!(end_point_hash(b"\x30\x84\xff\xff\xff\xff"), None);
        assert_eq!(end_point_hash(b""), None);
    }
}
