//! A bare rustls loop: what a full mTLS handshake costs before any MQTT. It accepts, shakes hands, answers the first bytes
//! with a CONNACK, keeps the connection, and does nothing else.
//!
//!     tls-loop PORT CERT KEY CA
#![forbid(unsafe_code)]

use std::io::{self, Read, Write};
use std::sync::Arc;

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;
type Secured = StreamOwned<ServerConnection, TcpStream>;

const LISTENER: Token = Token(usize::MAX);

fn main() -> Outcome<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [port, cert, key, ca] = words.as_slice() else { return Err("tls-loop PORT CERT KEY CA".into()) };
    let config = config(cert, key, ca)?;
    let mut listener = TcpListener::bind(format!("127.0.0.1:{port}").parse()?)?;
    let (mut poll, mut events) = (Poll::new()?, Events::with_capacity(1024));
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
    println!("ready {}", listener.local_addr()?.port());
    let mut connections: Vec<Option<Secured>> = Vec::new();
    loop {
        match poll.poll(&mut events, None) {
            Err(e) if e.kind() != io::ErrorKind::Interrupted => return Err(e.into()),
            _ => {}
        }
        for event in &events {
            if event.token() == LISTENER {
                accept(&listener, &poll, &config, &mut connections)?;
            } else if let Some(place) = connections.get_mut(event.token().0) {
                if place.as_mut().is_some_and(|c| serve(c).is_err()) {
                    *place = None;
                }
            }
        }
    }
}

fn config(cert: &str, key: &str, ca: &str) -> Outcome<Arc<ServerConfig>> {
    let chain = CertificateDer::pem_file_iter(cert)?.collect::<Result<Vec<_>, _>>()?;
    let mut roots = RootCertStore::empty();
    for authority in CertificateDer::pem_file_iter(ca)? {
        roots.add(authority?)?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build()?;
    let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let config =
        builder.with_client_cert_verifier(verifier).with_single_cert(chain, PrivateKeyDer::from_pem_file(key)?)?;
    Ok(Arc::new(config))
}

fn accept(
    listener: &TcpListener,
    poll: &Poll,
    config: &Arc<ServerConfig>,
    connections: &mut Vec<Option<Secured>>,
) -> Outcome<()> {
    loop {
        match listener.accept() {
            Ok((mut socket, _)) => {
                socket.set_nodelay(true)?;
                let token = Token(connections.len());
                poll.registry().register(&mut socket, token, Interest::READABLE | Interest::WRITABLE)?;
                connections.push(Some(StreamOwned::new(ServerConnection::new(Arc::clone(config))?, socket)));
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(e) => return Err(e.into()),
        }
    }
}

fn serve(connection: &mut Secured) -> io::Result<()> {
    let mut buffer = [0; 4096];
    loop {
        match connection.read(&mut buffer) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            // a CONNECT, or the ping of a client that stays
            Ok(_) if buffer.first() == Some(&0x10) => connection.write_all(&[0x20, 2, 0, 0])?,
            Ok(_) => connection.write_all(&[0xd0, 0])?,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(e) => return Err(e),
        }
    }
}
