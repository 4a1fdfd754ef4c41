//! Bytes to and from a broker: TCP, TLS, WebSocket over either. Nothing here waits.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use mio::net::TcpStream;
use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use socket2::{Domain, Protocol, Socket, Type};
use tungstenite::client::IntoClientRequest;
use tungstenite::handshake::client::ClientHandshake;
use tungstenite::handshake::{HandshakeError, MidHandshake};
use tungstenite::http::HeaderValue;
use tungstenite::protocol::WebSocketConfig;
use tungstenite::{Message, WebSocket};

use crate::plan::Plan;

/// Where the system keeps the certificates it trusts (Debian and most others).
const SYSTEM_ROOTS: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Ports that connections with a source address begin at.
const PORTS: std::ops::Range<usize> = 10_000..60_000;
/// Connections of all threads with a source address: none of them tries the ports of another.
static OPENED: AtomicUsize = AtomicUsize::new(0);

fn taken(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::AddrNotAvailable)
}

/// At most so much in one WebSocket frame: a packet may be spread over several [MQTT-6.0.0-2].
const FRAME_BYTES: usize = 256 << 10;

/// How long each of several addresses is tried.
const CHOOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Opens connections as the plan says.
pub struct Connector {
    address: SocketAddr,
    sources: Vec<IpAddr>,
    first_port: usize,
    tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
    url: Option<String>,
}

impl Connector {
    /// Looks the host up and reads certificates.
    ///
    /// # Errors
    /// The text names the option or file.
    pub fn new(plan: &Plan) -> Result<Self, String> {
        let place = (plan.host.as_str(), plan.port);
        let found = place.to_socket_addrs().map_err(|e| format!("{}: {e}", plan.host))?;
        let address = choose(&found.collect::<Vec<_>>()).ok_or_else(|| format!("{}: has no address", plan.host))?;
        let sources = plan.sources.iter().map(|s| s.parse().map_err(|_| format!("--source: `{s}` is not an address")));
        Ok(Self {
            address,
            sources: sources.collect::<Result<_, _>>()?,
            first_port: usize::from(plan.run),
            tls: plan.tls.then(|| tls(plan)).transpose()?,
            url: plan.websocket.then(|| url(plan)),
        })
    }

    /// Begins a connection; it is there when its socket is writable.
    ///
    /// # Errors
    /// No socket, or the source address is not one of this machine.
    pub fn open(&self) -> io::Result<TcpStream> {
        let mut refused = io::Error::other("no port is free");
        for _ in PORTS {
            match self.begin() {
                Err(e) if !self.sources.is_empty() && taken(&e) => refused = e,
                done => return done,
            }
        }
        Err(refused)
    }

    fn begin(&self) -> io::Result<TcpStream> {
        let socket = Socket::new(Domain::for_address(self.address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_nonblocking(true)?;
        socket.set_tcp_nodelay(true)?;
        let opened = if self.sources.is_empty() { 0 } else { OPENED.fetch_add(1, Ordering::Relaxed) };
        if let Some(source) = self.sources.get(opened % self.sources.len().max(1)) {
            // named by us: the system would look through all ports for one that nobody uses with any address
            let port = PORTS.start + (self.first_port + opened / self.sources.len()) % PORTS.len();
            socket.set_reuse_address(true)?;
            socket.bind(&SocketAddr::new(*source, u16::try_from(port).unwrap_or(0)).into())?;
        }
        match socket.connect(&self.address.into()) {
            Err(e) if e.raw_os_error() != Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => return Err(e),
            _ => {}
        }
        Ok(TcpStream::from_std(socket.into()))
    }

    /// Puts TLS and WebSocket on a connection that is there.
    ///
    /// # Errors
    /// As the layers say.
    pub fn layers(&self, tcp: TcpStream) -> io::Result<Stream> {
        let secured = match &self.tls {
            None => Secured::Tcp(tcp),
            Some((config, name)) => {
                let connection = ClientConnection::new(Arc::clone(config), name.clone()).map_err(io::Error::other)?;
                Secured::Tls(Box::new(StreamOwned::new(connection, tcp)))
            }
        };
        let Some(url) = &self.url else { return Ok(Stream::Bytes(secured)) };
        let mut request = url.into_client_request().map_err(io::Error::other)?;
        request.headers_mut().insert("Sec-WebSocket-Protocol", HeaderValue::from_static("mqtt"));
        let started = ClientHandshake::start(secured, request, Some(unbounded())).map_err(io::Error::other)?;
        Ok(Stream::Shaking(Some(Box::new(started))))
    }
}

/// A server may send frames of any size: MQTT bounds its packets itself.
fn unbounded() -> WebSocketConfig {
    WebSocketConfig::default().max_message_size(None).max_frame_size(None)
}

/// The first of several addresses where somebody listens: a name often has two, and a broker is at one of them.
fn choose(found: &[SocketAddr]) -> Option<SocketAddr> {
    let listens = |a: &&SocketAddr| std::net::TcpStream::connect_timeout(a, CHOOSE_TIMEOUT).is_ok();
    match found {
        [] | [_] => found.first(),
        several => several.iter().find(listens).or(several.first()),
    }
    .copied()
}

fn url(plan: &Plan) -> String {
    let scheme = if plan.tls { "wss" } else { "ws" };
    let host = if plan.host.contains(':') { format!("[{}]", plan.host) } else { plan.host.clone() };
    format!("{scheme}://{host}:{}/{}", plan.port, plan.path.trim_start_matches('/'))
}

fn tls(plan: &Plan) -> Result<(Arc<ClientConfig>, ServerName<'static>), String> {
    let file = if plan.cafile.is_empty() { SYSTEM_ROOTS } else { &plan.cafile };
    let mut roots = RootCertStore::empty();
    for certificate in certificates(file)? {
        roots.add(certificate).map_err(|e| format!("{file}: {e}"))?;
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()));
    let builder =
        builder.with_safe_default_protocol_versions().map_err(|e| e.to_string())?.with_root_certificates(roots);
    let mut config = if plan.cert.is_empty() {
        builder.with_no_client_auth()
    } else {
        let key = fs::read(&plan.key).map_err(|e| format!("{}: {e}", plan.key))?;
        let key = PrivateKeyDer::from_pem_slice(&key).map_err(|e| format!("{}: no key: {e}", plan.key))?;
        let own = certificates(&plan.cert)?;
        builder.with_client_auth_cert(own, key).map_err(|e| format!("{}: {e}", plan.cert))?
    };
    // every handshake is a full one: that is what a fleet after a failure does
    config.resumption = Resumption::disabled();
    let name = if plan.server_name.is_empty() { &plan.host } else { &plan.server_name };
    let name = ServerName::try_from(name.clone()).map_err(|_| format!("--server-name: `{name}` is not a name"))?;
    Ok((Arc::new(config), name))
}

fn certificates(file: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let text = fs::read(file).map_err(|e| format!("{file}: {e}"))?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    found.map_err(|e| format!("{file}: {e}"))
}

/// A connection with its layers.
pub enum Stream {
    Bytes(Secured),
    Shaking(Option<Box<MidHandshake<ClientHandshake<Secured>>>>),
    WebSocket(Box<WebSocket<Secured>>),
}

impl Stream {
    /// Goes on with a handshake; true once MQTT may flow.
    ///
    /// # Errors
    /// The other side refuses.
    pub fn advance(&mut self) -> io::Result<bool> {
        let Self::Shaking(mid) = self else { return Ok(true) };
        let Some(taken) = mid.take() else { return Err(io::Error::other("the handshake has failed")) };
        match taken.handshake() {
            Ok((socket, _)) => *self = Self::WebSocket(Box::new(socket)),
            Err(HandshakeError::Interrupted(again)) => {
                *mid = Some(Box::new(again));
                return Ok(false);
            }
            Err(HandshakeError::Failure(e)) => return Err(io::Error::other(e)),
        }
        Ok(true)
    }

    /// Reads behind what `buffer` holds from `at`; the number of bytes, 0 at the end of the stream.
    ///
    /// # Errors
    /// `WouldBlock` when there is nothing now.
    pub fn read(&mut self, buffer: &mut Vec<u8>, at: usize) -> io::Result<usize> {
        match self {
            Self::Bytes(secured) => secured.read(buffer.get_mut(at..).unwrap_or_default()),
            Self::Shaking(_) => Err(io::ErrorKind::WouldBlock.into()),
            Self::WebSocket(socket) => loop {
                match socket.read().map_err(of_websocket)? {
                    Message::Binary(bytes) if !bytes.is_empty() => {
                        if buffer.len() < at + bytes.len() {
                            buffer.resize(at + bytes.len(), 0);
                        }
                        if let Some(room) = buffer.get_mut(at..at + bytes.len()) {
                            room.copy_from_slice(&bytes);
                        }
                        return Ok(bytes.len());
                    }
                    Message::Close(_) => return Ok(0),
                    _ => {}
                }
            },
        }
    }

    /// Is a read that filled less than the buffer the last one for now?
    #[must_use]
    pub fn short_is_last(&self) -> bool {
        matches!(self, Self::Bytes(Secured::Tcp(_)))
    }

    /// Writes what it can of `out` from `at`, and moves `at`; true when nothing is left anywhere.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn write(&mut self, out: &[u8], at: &mut usize) -> io::Result<bool> {
        let done = match self {
            Self::Bytes(secured) => secured.write_all(out, at),
            Self::Shaking(_) => return Ok(false),
            Self::WebSocket(socket) => {
                let mut done = Ok(());
                while let Some(left) = out.get(*at..).filter(|left| !left.is_empty() && done.is_ok()) {
                    let (frame, _) = left.split_at(left.len().min(FRAME_BYTES));
                    done = socket.write(Message::binary(frame.to_vec()));
                    // what the socket does not take now, the frame's buffer keeps
                    *at += frame.len();
                }
                done.and_then(|()| socket.flush()).map_err(of_websocket)
            }
        };
        match done {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(e) => Err(e),
        }
    }
}

fn of_websocket(error: tungstenite::Error) -> io::Error {
    match error {
        tungstenite::Error::Io(e) => e,
        tungstenite::Error::ConnectionClosed | tungstenite::Error::AlreadyClosed => io::ErrorKind::UnexpectedEof.into(),
        other => io::Error::other(other),
    }
}

/// TCP with or without TLS.
pub enum Secured {
    Tcp(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Secured {
    fn write_all(&mut self, out: &[u8], at: &mut usize) -> io::Result<()> {
        while let Some(left) = out.get(*at..).filter(|l| !l.is_empty()) {
            match self.write(left) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => *at += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        self.flush()
    }
}

impl Read for Secured {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(tcp) => tcp.read(buffer),
            Self::Tls(tls) => tls.read(buffer),
        }
    }
}

impl Write for Secured {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(tcp) => tcp.write(bytes),
            Self::Tls(tls) => tls.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Tcp(_) => Ok(()),
            Self::Tls(tls) => tls.flush(),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn of_several_addresses_the_one_that_listens() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let here = listener.local_addr().unwrap();
        let nowhere: SocketAddr = "127.0.0.1:1".parse().unwrap();
        assert_eq!(choose(&[nowhere, here]), Some(here));
        assert_eq!(choose(&[nowhere, nowhere]), Some(nowhere));
        assert_eq!((choose(&[nowhere]), choose(&[])), (Some(nowhere), None));
    }
}
