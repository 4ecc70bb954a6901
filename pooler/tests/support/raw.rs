//! A client that can send anything.

use std::sync::Arc;
use std::time::Duration;

use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramSha256};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::{self, ClientConfig, DigitallySignedStruct, SignatureScheme};

use super::guest::message;

pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

pub struct Raw {
    pub stream: Box<dyn Stream>,
    pub certificate: Option<Vec<u8>>,
    scram: Option<ScramSha256>,
}

pub const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];
pub const GSS_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 48];

pub fn startup(minor: u16, parameters: &[(&str, &str)]) -> Vec<u8> {
    let mut body = vec![0, 3];
    body.extend_from_slice(&minor.to_be_bytes());
    for (name, value) in parameters {
        body.extend_from_slice(name.as_bytes());
        body.push(0);
        body.extend_from_slice(value.as_bytes());
        body.push(0);
    }
    body.push(0);
    let mut packet = (body.len() as u32 + 4).to_be_bytes().to_vec();
    packet.extend(body);
    packet
}

pub fn query(text: &str) -> Vec<u8> {
    message(b'Q', format!("{text}\0").as_bytes())
}

impl Raw {
    pub async fn connect(address: std::net::SocketAddr) -> Raw {
        Raw::over(TcpStream::connect(address).await.unwrap())
    }

    pub fn over(stream: impl Stream + 'static) -> Raw {
        Raw { stream: Box::new(stream), certificate: None, scram: None }
    }

    /// TLS at once, or after SSLRequest.
    pub async fn tls(address: std::net::SocketAddr, direct: bool, alpn: Option<&[u8]>) -> std::io::Result<Raw> {
        let mut tcp = TcpStream::connect(address).await.unwrap();
        if !direct {
            tcp.write_all(&SSL_REQUEST).await.unwrap();
            assert_eq!(tcp.read_u8().await.unwrap(), b'S');
        }
        let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anybody(ring::default_provider())))
            .with_no_client_auth();
        config.alpn_protocols = alpn.map(|a| a.to_vec()).into_iter().collect();
        let connector = TlsConnector::from(Arc::new(config));
        let stream = connector.connect(ServerName::try_from("localhost").unwrap(), tcp).await?;
        let certificate = stream.get_ref().1.peer_certificates().unwrap()[0].to_vec();
        Ok(Raw { stream: Box::new(stream), certificate: Some(certificate), scram: None })
    }

    pub async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
        self.stream.flush().await.unwrap();
    }

    /// One message: type and body. `None` at the end of the stream.
    pub async fn receive(&mut self) -> Option<(u8, Vec<u8>)> {
        let read = async {
            let kind = self.stream.read_u8().await.ok()?;
            let length = self.stream.read_u32().await.unwrap();
            let mut body = vec![0; length as usize - 4];
            self.stream.read_exact(&mut body).await.unwrap();
            Some((kind, body))
        };
        tokio::time::timeout(Duration::from_secs(10), read).await.expect("no message within 10 s")
    }

    /// The next message, which must be an ErrorResponse: SQLSTATE and text. Then the stream must end.
    pub async fn refused(&mut self) -> (String, String) {
        let (kind, body) = self.receive().await.expect("closed without a word");
        assert_eq!(kind as char, 'E', "{body:?}");
        let fields = super::fields(&body);
        assert_eq!(fields[&'S'], "FATAL");
        assert_eq!(fields[&'V'], "FATAL");
        assert_eq!(self.receive().await, None);
        (fields[&'C'].clone(), fields[&'M'].clone())
    }

    /// Sends the startup packet and goes through SCRAM. Gives the messages up to the first ReadyForQuery or error.
    pub async fn log_in(
        &mut self,
        minor: u16,
        parameters: &[(&str, &str)],
        password: &str,
    ) -> Vec<(u8, Vec<u8>)> {
        self.send(&startup(minor, parameters)).await;
        self.authenticate(password).await
    }

    /// Goes through SCRAM. Gives the messages up to the first ReadyForQuery or error.
    pub async fn authenticate(&mut self, password: &str) -> Vec<(u8, Vec<u8>)> {
        let mut messages = vec![];
        loop {
            let Some((kind, body)) = self.receive().await else { return messages };
            if let Some(reply) = self.reply(kind, &body, password) {
                self.send(&reply).await;
            }
            let last = matches!(kind, b'Z' | b'E');
            messages.push((kind, body));
            if last {
                return messages;
            }
        }
    }

    /// Goes through SCRAM up to the proof, which is given to be sent later.
    pub async fn challenged(&mut self, password: &str) -> Vec<u8> {
        loop {
            let (kind, body) = self.receive().await.expect("closed without a word");
            let reply = self.reply(kind, &body, password).expect("no message of SCRAM");
            if body[..4] == [0, 0, 0, 11] {
                return reply;
            }
            self.send(&reply).await;
        }
    }

    fn reply(&mut self, kind: u8, body: &[u8], password: &str) -> Option<Vec<u8>> {
        use sha2::Digest;
        match (kind, body.first_chunk::<4>().map(|c| u32::from_be_bytes(*c))) {
            (b'R', Some(10)) => {
                let plus = body[4..].split(|b| *b == 0).any(|m| m == SCRAM_SHA_256_PLUS.as_bytes());
                let (binding, mechanism) = match &self.certificate {
                    Some(certificate) if plus => {
                        let hash = sha2::Sha256::digest(certificate).to_vec();
                        (ChannelBinding::tls_server_end_point(hash), SCRAM_SHA_256_PLUS)
                    }
                    _ => (ChannelBinding::unsupported(), SCRAM_SHA_256),
                };
                let exchange = ScramSha256::new(password.as_bytes(), binding);
                let mut reply = mechanism.as_bytes().to_vec();
                reply.push(0);
                reply.extend_from_slice(&(exchange.message().len() as u32).to_be_bytes());
                reply.extend_from_slice(exchange.message());
                self.scram = Some(exchange);
                Some(message(b'p', &reply))
            }
            (b'R', Some(11)) => {
                let exchange = self.scram.as_mut().unwrap();
                exchange.update(&body[4..]).unwrap();
                Some(message(b'p', exchange.message()))
            }
            (b'R', Some(12)) => {
                self.scram.as_mut().unwrap().finish(&body[4..]).unwrap();
                None
            }
            _ => None,
        }
    }
}

/// The certificate is self-signed; whether it is the right one is what channel binding is for.
#[derive(Debug)]
struct Anybody(CryptoProvider);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
