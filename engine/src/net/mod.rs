//! Bytes in, bytes out: TCP and Unix sockets, with PROXY protocol, TLS and WebSocket as layers. No MQTT knowledge.
//!
//! Everything is non-blocking and edge-triggered: who reads must read until `Read::Again`, or come back by itself.

mod layers;
mod listener;
mod proxy;
mod stream;
mod tls;
mod websocket;

#[cfg(test)]
mod tests;

use std::fmt;
use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};

pub use layers::Layers;
pub use listener::Listener;
pub use stream::Stream;

use stream::Secured;

/// Why a listener or a connection cannot go on.
#[derive(Debug)]
pub enum NetError {
    /// The configuration: what is wrong, where, and what to do.
    Config(String),
    /// The peer broke the rules of a layer.
    Peer(&'static str),
    /// The socket failed.
    Socket(io::Error),
}

impl NetError {
    /// A short text for logs.
    #[must_use]
    pub const fn text(&self) -> &'static str {
        match self {
            Self::Config(_) => "wrong configuration",
            Self::Peer(text) => text,
            Self::Socket(_) => "connection lost",
        }
    }
}

impl fmt::Display for NetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(text) => f.write_str(text),
            Self::Peer(text) => f.write_str(text),
            Self::Socket(error) => write!(f, "socket: {error}"),
        }
    }
}

impl From<io::Error> for NetError {
    fn from(error: io::Error) -> Self {
        Self::Socket(error)
    }
}

/// What a read brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Read {
    /// So many bytes.
    Bytes(usize),
    /// Nothing now; an event will come.
    Again,
    /// The peer has closed.
    Closed,
}

/// What a write took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Write {
    /// So many bytes.
    Bytes(usize),
    /// Nothing now; an event will come.
    Again,
}

/// Where a connection comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerAddress {
    /// An IP address and port.
    Ip(SocketAddr),
    /// A process of this machine.
    Unix,
}

impl PeerAddress {
    /// The IP address, if there is one.
    #[must_use]
    pub fn ip(&self) -> Option<IpAddr> {
        match self {
            Self::Ip(address) => Some(address.ip()),
            Self::Unix => None,
        }
    }
}

impl fmt::Display for PeerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(f),
            Self::Unix => f.write_str("unix"),
        }
    }
}

#[derive(Debug)]
enum Body {
    Plain(Stream),
    Layered(Box<Layered>),
}

/// The state of the layers above a socket.
#[derive(Debug)]
struct Layered {
    layers: Arc<Layers>,
    step: Step,
    identity: Option<String>,
}

#[derive(Debug)]
enum Step {
    /// Collecting the PROXY header.
    Proxy {
        stream: Stream,
        seen: Vec<u8>,
    },
    /// TLS, or plain bytes after a PROXY header.
    Bytes(Secured),
    Handshake(websocket::Handshake),
    WebSocket(Box<websocket::Frames>),
    Dead,
}

/// One accepted connection.
#[derive(Debug)]
pub struct Transport {
    body: Body,
    address: PeerAddress,
    fd: RawFd,
}

impl Transport {
    /// Takes over an accepted socket.
    #[must_use]
    pub fn new(stream: Stream, address: PeerAddress, layers: Arc<Layers>, nodelay: bool) -> Self {
        if nodelay {
            stream.set_nodelay();
        }
        let fd = stream.as_raw_fd();
        let body = if layers.plain() {
            Body::Plain(stream)
        } else {
            let step = if layers.proxy.is_empty() {
                layers.begin(stream, Vec::new())
            } else {
                Step::Proxy { stream, seen: Vec::new() }
            };
            Body::Layered(Box::new(Layered { layers, step, identity: None }))
        };
        Self { body, address, fd }
    }

    /// Events for this socket come with this token, once each time something changes.
    ///
    /// # Errors
    /// The operating system refuses.
    pub fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        registry.register(&mut SourceFd(&self.fd), token, Interest::READABLE | Interest::WRITABLE)
    }

    /// No more events.
    ///
    /// # Errors
    /// The operating system refuses.
    pub fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        registry.deregister(&mut SourceFd(&self.fd))
    }

    /// Reads application bytes; drives handshakes on the way.
    ///
    /// # Errors
    /// The connection cannot go on.
    pub fn read(&mut self, buf: &mut [u8]) -> Result<Read, NetError> {
        match &mut self.body {
            Body::Plain(stream) => outcome(io::Read::read(stream, buf)),
            Body::Layered(layered) => layered.read(buf, &mut self.address),
        }
    }

    /// Writes application bytes, all slices as one.
    ///
    /// # Errors
    /// The connection cannot go on.
    pub fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> Result<Write, NetError> {
        let result = match &mut self.body {
            // one slice is the most frequent case, and `send` a shorter way through the kernel than `writev`
            Body::Plain(stream) => match bufs {
                [one] => io::Write::write(stream, one),
                many => io::Write::write_vectored(stream, many),
            },
            Body::Layered(layered) => layered.write(bufs),
        };
        match result {
            Ok(n) => Ok(Write::Bytes(n)),
            Err(error) if waits(&error) => Ok(Write::Again),
            Err(error) => Err(error.into()),
        }
    }

    /// True when no layer holds bytes that the socket has not taken.
    ///
    /// # Errors
    /// The connection cannot go on.
    pub fn flush(&mut self) -> Result<bool, NetError> {
        let result = match &mut self.body {
            Body::Plain(_) => Ok(()),
            Body::Layered(layered) => layered.flush(),
        };
        match result {
            Ok(()) => Ok(true),
            Err(error) if waits(&error) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Bytes wait inside for which no event will come.
    #[must_use]
    pub fn more_buffered(&self) -> bool {
        match &self.body {
            Body::Plain(_) => false,
            Body::Layered(layered) => matches!(&layered.step, Step::WebSocket(frames) if frames.has_rest()),
        }
    }

    /// A read that brought less than was asked for does not mean that the socket is empty.
    #[must_use]
    pub const fn layered(&self) -> bool {
        matches!(self.body, Body::Layered(_))
    }

    /// The client's address.
    #[must_use]
    pub const fn address(&self) -> &PeerAddress {
        &self.address
    }

    /// Username from the client certificate, as the listener wants it.
    #[must_use]
    pub fn identity(&self) -> Option<String> {
        match &self.body {
            Body::Plain(_) => None,
            Body::Layered(layered) => layered.identity.clone(),
        }
    }

    /// Says goodbye in every layer, as far as the socket takes it, and ends the sending side.
    pub fn close(&mut self) {
        match &mut self.body {
            Body::Plain(stream) => stream.shutdown(),
            Body::Layered(layered) => layered.close(),
        }
    }
}

impl Layered {
    fn read(&mut self, buf: &mut [u8], address: &mut PeerAddress) -> Result<Read, NetError> {
        loop {
            match std::mem::replace(&mut self.step, Step::Dead) {
                Step::Dead => return Ok(Read::Closed),
                Step::Proxy { stream, seen } => match proxy::read(stream, seen, &self.layers.proxy, address)? {
                    proxy::Progress::More { stream, seen } => {
                        self.step = Step::Proxy { stream, seen };
                        return Ok(Read::Again);
                    }
                    proxy::Progress::Done { stream, rest } => self.step = self.layers.begin(stream, rest),
                },
                Step::Bytes(mut secured) => {
                    let result = secured.read_some(buf);
                    if self.identity.is_none() {
                        self.identity = tls::identity(&secured, self.layers.identity);
                    }
                    self.step = Step::Bytes(secured);
                    return result;
                }
                Step::Handshake(handshake) => match handshake.go_on()? {
                    websocket::Progress::More(handshake) => {
                        self.step = Step::Handshake(handshake);
                        return Ok(Read::Again);
                    }
                    websocket::Progress::Done(frames) => {
                        self.identity = tls::identity(frames.secured(), self.layers.identity);
                        self.step = Step::WebSocket(frames);
                    }
                },
                Step::WebSocket(mut frames) => {
                    let result = frames.read(buf);
                    self.step = Step::WebSocket(frames);
                    return result;
                }
            }
        }
    }

    fn write(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        match &mut self.step {
            Step::Bytes(secured) => io::Write::write_vectored(secured, bufs),
            Step::WebSocket(frames) => frames.write(bufs),
            _ => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.step {
            Step::Bytes(secured) => io::Write::flush(secured),
            Step::WebSocket(frames) => frames.flush(),
            _ => Ok(()),
        }
    }

    fn close(&mut self) {
        match &mut self.step {
            Step::Bytes(secured) => secured.close(),
            Step::WebSocket(frames) => frames.close(),
            Step::Proxy { stream, .. } => stream.shutdown(),
            Step::Handshake(_) | Step::Dead => {}
        }
    }
}

fn waits(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

fn outcome(result: io::Result<usize>) -> Result<Read, NetError> {
    match result {
        Ok(0) => Ok(Read::Closed),
        Ok(n) => Ok(Read::Bytes(n)),
        Err(error) if waits(&error) => Ok(Read::Again),
        Err(error) => Err(error.into()),
    }
}
