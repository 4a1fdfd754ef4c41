//! A TCP connection of a link: as it is between processes of one machine, under mutual TLS everywhere else.
//!
//! Whoever has the cluster's secret (it is in the join token) is one of its nodes. The secret is the key of an authority;
//! each start of a node makes itself a certificate with it, and takes only who has one of the same authority.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;

use mio::net::TcpStream;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, PKCS_ED25519};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, ClientConnection, Connection, RootCertStore, ServerConfig, ServerConnection};

/// What stands before the 32 bytes of an Ed25519 key in PKCS 8 (RFC 8410, section 7).
const PKCS8: [u8; 16] = [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
/// Every node has this name: which one it is says its greeting.
const NAME: &str = "node.roostmq";

/// Who is taken for a node of this cluster.
#[derive(Clone)]
pub struct Trust {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
    /// Loopback is encrypted too.
    pub everywhere: bool,
}

impl Trust {
    /// From the cluster's secret.
    ///
    /// # Errors
    /// The library of certificates has refused.
    pub fn of(secret: &[u8; 32], everywhere: bool) -> Result<Self, String> {
        Self::made(secret, everywhere).map_err(|e| format!("links: TLS: {e}"))
    }

    fn made(secret: &[u8; 32], everywhere: bool) -> Result<Self, Box<dyn std::error::Error>> {
        let authority_key: &[u8] = &[&PKCS8[..], &secret[..]].concat();
        let authority_key =
            KeyPair::from_pkcs8_der_and_sign_algo(&PrivatePkcs8KeyDer::from(authority_key), &PKCS_ED25519)?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(DnType::CommonName, "links of a RoostMQ cluster");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = params.self_signed(&authority_key)?;
        let issuer = Issuer::new(params, authority_key);
        let key = KeyPair::generate()?;
        let certificate = CertificateParams::new(vec![NAME.to_owned()])?.signed_by(&key, &issuer)?;

        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(authority.der().clone())?;
        let roots = Arc::new(roots);
        let chain: Vec<CertificateDer<'static>> = vec![certificate.der().clone()];
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider)).build()?;
        let only = &[&rustls::version::TLS13];
        let server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(only)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain.clone(), key.clone_key())?;
        let client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(only)?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)?;
        Ok(Self { client: Arc::new(client), server: Arc::new(server), everywhere })
    }

    fn is_for(&self, address: SocketAddr) -> bool {
        self.everywhere || !address.ip().to_canonical().is_loopback()
    }
}

/// See the top of the file. Reads and writes are those of a socket that does not block.
pub(super) struct Wire {
    pub stream: TcpStream,
    tls: Option<Box<Connection>>,
}

impl Wire {
    /// Dials.
    pub fn dial(address: SocketAddr, trust: Option<&Trust>) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        let Some(trust) = trust.filter(|t| t.is_for(address)) else { return Ok(Self { stream, tls: None }) };
        let name = ServerName::try_from(NAME).map_err(io::Error::other)?;
        let tls = ClientConnection::new(Arc::clone(&trust.client), name).map_err(io::Error::other)?;
        Ok(Self::over(stream, tls.into()))
    }

    /// Takes one that somebody has dialled.
    pub fn accept(stream: TcpStream, from: SocketAddr, trust: Option<&Trust>) -> io::Result<Self> {
        let Some(trust) = trust.filter(|t| t.is_for(from)) else { return Ok(Self { stream, tls: None }) };
        let tls = ServerConnection::new(Arc::clone(&trust.server)).map_err(io::Error::other)?;
        Ok(Self::over(stream, tls.into()))
    }

    fn over(stream: TcpStream, mut tls: Connection) -> Self {
        tls.set_buffer_limit(Some(256 * 1024));
        Self { stream, tls: Some(Box::new(tls)) }
    }

    /// Sends what TLS has to say. An error of the kind `WouldBlock` or `NotConnected` means: later.
    pub fn push(&mut self) -> io::Result<()> {
        let Some(tls) = &mut self.tls else { return Ok(()) };
        while tls.wants_write() {
            if tls.write_tls(&mut self.stream)? == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
        }
        Ok(())
    }
}

/// Is it something that passes?
pub(super) fn is_later(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::NotConnected)
}

impl Read for Wire {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            let Some(tls) = &mut self.tls else { return self.stream.read(buf) };
            match tls.reader().read(buf) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                other => return other,
            }
            let n = tls.read_tls(&mut self.stream)?;
            let processed = tls.process_new_packets();
            let pushed = self.push(); // also the alert that says what was wrong
            processed.map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
            pushed.or_else(|e| if is_later(&e) { Ok(()) } else { Err(e) })?;
            if n == 0 {
                return Ok(0);
            }
        }
    }
}

impl Write for Wire {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let Some(tls) = &mut self.tls else { return self.stream.write(buf) };
        let n = tls.writer().write(buf)?;
        match self.push() {
            Err(error) if !is_later(&error) => Err(error),
            _ if n == 0 => Err(io::ErrorKind::WouldBlock.into()),
            _ => Ok(n),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.push()
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    /// Moves bytes both ways until each end has what the other said, or one of them refuses.
    fn talk(ours: Option<&Trust>, theirs: Option<&Trust>) -> io::Result<Vec<u8>> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let mut dialled = Wire::dial(listener.local_addr()?, ours)?;
        let (stream, from) = listener.accept()?;
        stream.set_nonblocking(true)?;
        let mut taken = Wire::accept(TcpStream::from_std(stream), from, theirs)?;
        let said = vec![7u8; 700_000];
        let (mut sent, mut got, mut buffer) = (0, Vec::new(), vec![0; 65_536]);
        for _ in 0..20_000 {
            match dialled.write(&said[sent..]) {
                Ok(n) => sent += n,
                Err(e) if is_later(&e) => {}
                Err(e) => return Err(e),
            }
            for wire in [&mut taken, &mut dialled] {
                match wire.read(&mut buffer) {
                    Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                    Ok(n) => got.extend_from_slice(&buffer[..n]),
                    Err(e) if is_later(&e) => {}
                    Err(e) => return Err(e),
                }
                wire.push().or_else(|e| if is_later(&e) { Ok(()) } else { Err(e) })?;
            }
            if got.len() == said.len() {
                return Ok(got);
            }
            thread::yield_now();
        }
        Err(io::ErrorKind::TimedOut.into())
    }

    #[test]
    fn nodes_of_one_cluster_understand_each_other_and_nobody_else() {
        let (ours, again) = (Trust::of(&[1; 32], true).unwrap(), Trust::of(&[1; 32], true).unwrap());
        let other = Trust::of(&[2; 32], true).unwrap();
        assert_eq!(talk(Some(&ours), Some(&again)).unwrap(), vec![7u8; 700_000], "two starts, one secret");
        assert!(talk(Some(&other), Some(&ours)).is_err(), "another secret is refused");
        assert!(talk(None, Some(&ours)).is_err(), "without TLS nobody comes in");
        assert!(talk(Some(&ours), None).is_err(), "nothing is said to who has no certificate");
    }

    #[test]
    fn loopback_goes_without_unless_wanted() {
        let trust = Trust::of(&[1; 32], false).unwrap();
        assert!(
            !trust.is_for("127.0.0.1:1".parse().unwrap()) && !trust.is_for("[::ffff:127.0.0.1]:1".parse().unwrap())
        );
        assert!(trust.is_for("10.0.0.1:1".parse().unwrap()));
    }
}
