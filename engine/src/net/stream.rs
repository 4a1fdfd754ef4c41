//! The socket itself, and the socket under TLS.

use std::io::{self, IoSlice};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;

use rustls::ServerConnection;

use super::{NetError, Read, outcome};

/// A connected socket, non-blocking.
#[derive(Debug)]
pub enum Stream {
    /// TCP.
    Tcp(TcpStream),
    /// Unix.
    Unix(UnixStream),
}

impl Stream {
    pub(super) fn set_nodelay(&self) {
        if let Self::Tcp(stream) = self {
            let _ = stream.set_nodelay(true);
        }
    }

    pub(super) fn shutdown(&self) {
        let _ = match self {
            Self::Tcp(stream) => stream.shutdown(Shutdown::Write),
            Self::Unix(stream) => stream.shutdown(Shutdown::Write),
        };
    }
}

impl AsRawFd for Stream {
    fn as_raw_fd(&self) -> RawFd {
        match self {
            Self::Tcp(stream) => stream.as_raw_fd(),
            Self::Unix(stream) => stream.as_raw_fd(),
        }
    }
}

impl io::Read for Stream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(buf),
            Self::Unix(stream) => stream.read(buf),
        }
    }
}

impl io::Write for Stream {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(buf),
            Self::Unix(stream) => stream.write(buf),
        }
    }

    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write_vectored(bufs),
            Self::Unix(stream) => stream.write_vectored(bufs),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A socket with the bytes that were read ahead of its layer.
#[derive(Debug)]
struct Ahead {
    stream: Stream,
    rest: Vec<u8>,
}

impl io::Read for Ahead {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.rest.is_empty() {
            return self.stream.read(buf);
        }
        let n = self.rest.as_slice().read(buf)?;
        self.rest.drain(..n);
        Ok(n)
    }
}

/// A socket, perhaps under TLS.
#[derive(Debug)]
pub struct Secured {
    below: Ahead,
    /// The TLS state.
    pub(super) tls: Option<Box<ServerConnection>>,
}

impl Secured {
    pub(super) fn new(stream: Stream, rest: Vec<u8>, tls: Option<ServerConnection>) -> Self {
        Self { below: Ahead { stream, rest }, tls: tls.map(Box::new) }
    }

    pub(super) fn read_some(&mut self, buf: &mut [u8]) -> Result<Read, NetError> {
        outcome(io::Read::read(self, buf))
    }

    /// Sends what TLS has to say; a full socket keeps it for later.
    fn push(&mut self) -> io::Result<()> {
        let Some(tls) = &mut self.tls else { return Ok(()) };
        while tls.wants_write() {
            if tls.write_tls(&mut self.below.stream)? == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
        }
        Ok(())
    }

    pub(super) fn close(&mut self) {
        if let Some(tls) = &mut self.tls {
            tls.send_close_notify();
            let _ = self.push();
        }
        self.below.stream.shutdown();
    }
}

impl io::Read for Secured {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            let Some(tls) = &mut self.tls else { return self.below.read(buf) };
            match tls.reader().read(buf) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                other => return other,
            }
            let n = tls.read_tls(&mut self.below)?;
            let processed = tls.process_new_packets();
            let pushed = self.push();
            if let Err(error) = processed {
                return Err(io::Error::new(io::ErrorKind::InvalidData, error));
            }
            if let Err(error) = pushed {
                if error.kind() != io::ErrorKind::WouldBlock {
                    return Err(error);
                }
            }
            if n == 0 {
                return Ok(0);
            }
        }
    }
}

impl io::Write for Secured {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(buf)])
    }

    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        let Some(tls) = &mut self.tls else { return self.below.stream.write_vectored(bufs) };
        let n = tls.writer().write_vectored(bufs)?;
        match self.push() {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            _ if n == 0 => Err(io::ErrorKind::WouldBlock.into()),
            _ => Ok(n),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.push()
    }
}
