//! Listening sockets.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use socket2::{Domain, Protocol, Socket, Type};

use super::{NetError, PeerAddress, Stream};
use crate::settings::ListenerSettings;

const BACKLOG: i32 = 4096;

#[derive(Debug)]
enum Socketed {
    Tcp(TcpListener),
    Unix(UnixListener, String),
}

/// A bound socket that accepts connections.
#[derive(Debug)]
pub struct Listener {
    socket: Socketed,
    kind: &'static str,
}

impl Listener {
    /// Binds what the settings say.
    ///
    /// # Errors
    /// The address is wrong or taken; the text says which and what to do.
    pub fn bind(settings: &ListenerSettings) -> Result<Self, NetError> {
        let kind = match (settings.websocket, settings.tls.is_some(), settings.path.is_some()) {
            (_, _, true) => "unix",
            (true, true, _) => "wss",
            (true, false, _) => "ws",
            (false, true, _) => "mqtts",
            (false, false, _) => "mqtt",
        };
        let socket = match &settings.path {
            Some(path) => bind_unix(path),
            None => bind_tcp(&settings.host, settings.port),
        };
        let socket = socket.map_err(|text| NetError::Config(format!("listener {}: {text}", settings.name)))?;
        Ok(Self { socket, kind })
    }

    /// `127.0.0.1:1883`, `[::1]:1883`, or the path.
    #[must_use]
    pub fn local_address(&self) -> String {
        match &self.socket {
            Socketed::Tcp(socket) => socket.local_addr().map(|a| a.to_string()).unwrap_or_default(),
            Socketed::Unix(_, path) => path.clone(),
        }
    }

    /// `mqtt`, `mqtts`, `ws`, `wss` or `unix`.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        self.kind
    }

    /// The next connection; `None` when none waits.
    ///
    /// # Errors
    /// The operating system refuses, for example for want of descriptors: pause, then try again.
    pub fn accept(&self) -> io::Result<Option<(Stream, PeerAddress)>> {
        let accepted = match &self.socket {
            Socketed::Tcp(socket) => socket.accept().and_then(|(stream, address)| {
                stream.set_nonblocking(true)?;
                Ok((Stream::Tcp(stream), PeerAddress::Ip(address)))
            }),
            Socketed::Unix(socket, _) => socket.accept().and_then(|(stream, _)| {
                stream.set_nonblocking(true)?;
                Ok((Stream::Unix(stream), PeerAddress::Unix))
            }),
        };
        match accepted {
            Ok(pair) => Ok(Some(pair)),
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock => Ok(None),
                io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted => self.accept(),
                _ => Err(error),
            },
        }
    }

    /// Events come with this token.
    ///
    /// # Errors
    /// The operating system refuses.
    pub fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        registry.register(&mut SourceFd(&self.fd()), token, Interest::READABLE)
    }

    /// No more events.
    ///
    /// # Errors
    /// The operating system refuses.
    pub fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        registry.deregister(&mut SourceFd(&self.fd()))
    }

    fn fd(&self) -> i32 {
        match &self.socket {
            Socketed::Tcp(socket) => socket.as_raw_fd(),
            Socketed::Unix(socket, _) => socket.as_raw_fd(),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Socketed::Unix(_, path) = &self.socket {
            let _ = std::fs::remove_file(path);
        }
    }
}

fn bind_tcp(host: &str, port: u16) -> Result<Socketed, String> {
    let host = if host.is_empty() { "127.0.0.1" } else { host };
    let ip: IpAddr = match host {
        "localhost" => IpAddr::from([127, 0, 0, 1]),
        other => other.trim_matches(['[', ']']).parse().map_err(|_| format!("`{host}` is not an IP address"))?,
    };
    let address = SocketAddr::new(ip, port);
    let bound = || -> io::Result<TcpListener> {
        let domain = if address.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
        let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        Ok(socket.into())
    };
    match bound() {
        Ok(socket) => Ok(Socketed::Tcp(socket)),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            Err(format!("{address} is in use; stop the other program or choose another port"))
        }
        Err(error) => Err(format!("cannot bind {address}: {error}")),
    }
}

fn bind_unix(path: &str) -> Result<Socketed, String> {
    if std::fs::symlink_metadata(path).is_ok() {
        if UnixStream::connect(path).is_ok() {
            return Err(format!("{path} is in use by a running program"));
        }
        std::fs::remove_file(path).map_err(|e| format!("cannot remove the stale socket {path}: {e}"))?;
    }
    let socket = UnixListener::bind(path).map_err(|e| format!("cannot bind {path}: {e}"))?;
    socket.set_nonblocking(true).map_err(|e| format!("{path}: {e}"))?;
    Ok(Socketed::Unix(socket, path.to_owned()))
}
