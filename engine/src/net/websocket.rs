//! MQTT over WebSocket (section 6): binary frames as a byte stream; tungstenite does handshake and framing.

use std::io::{self, IoSlice, Write as _};
use std::sync::Arc;

use tungstenite::handshake::server::{Callback, ErrorResponse, Request, Response, ServerHandshake};
use tungstenite::handshake::{HandshakeError, MidHandshake};
use tungstenite::http::{HeaderValue, StatusCode};
use tungstenite::protocol::{WebSocket, WebSocketConfig};
use tungstenite::{Bytes, Error, Message};

use super::stream::Secured;
use super::{NetError, Read, waits};

/// Largest message that is collected; MQTT packets may span any number of messages.
const MESSAGE_MAX: usize = 16 * 1024 * 1024;
/// Most bytes put into one frame.
const FRAME_MAX: usize = 256 * 1024;

/// Checks path and sub-protocol of the request [MQTT-6.0.0-3, MQTT-6.0.0-4].
#[derive(Debug)]
pub(super) struct Check {
    path: Arc<str>,
}

impl Callback for Check {
    fn on_request(self, request: &Request, mut response: Response) -> Result<Response, ErrorResponse> {
        let refuse = |status: StatusCode, text: &str| {
            let mut response = ErrorResponse::new(Some(text.to_owned()));
            *response.status_mut() = status;
            response
        };
        if !self.path.is_empty() && request.uri().path() != &*self.path {
            return Err(refuse(StatusCode::NOT_FOUND, "no MQTT here"));
        }
        let offered: Vec<String> = request
            .headers()
            .get_all("Sec-WebSocket-Protocol")
            .iter()
            .filter_map(|v| v.to_str().ok())
            .flat_map(|v| v.split(','))
            .map(|v| v.trim().to_owned())
            .collect();
        if offered.is_empty() {
            return Ok(response);
        }
        let known = offered.iter().find(|p| matches!(p.as_str(), "mqtt" | "mqttv3.1"));
        let Some(value) = known.and_then(|p| HeaderValue::from_str(p).ok()) else {
            return Err(refuse(StatusCode::BAD_REQUEST, "sub-protocol mqtt is needed"));
        };
        response.headers_mut().insert("Sec-WebSocket-Protocol", value);
        Ok(response)
    }
}

#[derive(Debug)]
pub(super) enum Handshake {
    New(Secured, Arc<str>),
    Mid(Box<MidHandshake<ServerHandshake<Secured, Check>>>),
}

pub(super) enum Progress {
    More(Handshake),
    Done(Box<Frames>),
}

impl Handshake {
    pub(super) const fn new(secured: Secured, path: Arc<str>) -> Self {
        Self::New(secured, path)
    }

    pub(super) fn go_on(self) -> Result<Progress, NetError> {
        let config = WebSocketConfig::default()
            .max_message_size(Some(MESSAGE_MAX))
            .max_frame_size(Some(MESSAGE_MAX))
            .read_buffer_size(4 * 1024)
            .write_buffer_size(0);
        let result = match self {
            Self::New(secured, path) => tungstenite::accept_hdr_with_config(secured, Check { path }, Some(config)),
            Self::Mid(mid) => mid.handshake(),
        };
        match result {
            Ok(socket) => Ok(Progress::Done(Box::new(Frames { socket, rest: Bytes::new(), unsent: false }))),
            Err(HandshakeError::Interrupted(mid)) => Ok(Progress::More(Self::Mid(Box::new(mid)))),
            Err(HandshakeError::Failure(_)) => Err(NetError::Peer("WebSocket handshake failed")),
        }
    }
}

/// An open WebSocket as a byte stream.
#[derive(Debug)]
pub(super) struct Frames {
    socket: WebSocket<Secured>,
    rest: Bytes,
    unsent: bool,
}

impl Frames {
    pub(super) fn secured(&self) -> &Secured {
        self.socket.get_ref()
    }

    pub(super) fn has_rest(&self) -> bool {
        !self.rest.is_empty()
    }

    pub(super) fn read(&mut self, buf: &mut [u8]) -> Result<Read, NetError> {
        loop {
            if !self.rest.is_empty() {
                let n = self.rest.len().min(buf.len());
                let head = self.rest.split_to(n);
                if let Some(place) = buf.get_mut(..n) {
                    place.copy_from_slice(&head);
                }
                return Ok(Read::Bytes(n));
            }
            match self.socket.read() {
                Ok(Message::Binary(bytes)) => self.rest = bytes,
                Ok(Message::Text(_)) => {
                    let frame = tungstenite::protocol::CloseFrame {
                        code: tungstenite::protocol::frame::coding::CloseCode::Unsupported,
                        reason: "binary frames only".into(),
                    };
                    let _ = self.socket.close(Some(frame));
                    let _ = self.socket.flush();
                    return Err(NetError::Peer("WebSocket text frame"));
                }
                Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_)) => {
                    let _ = self.socket.flush();
                }
                Ok(Message::Close(_)) | Err(Error::ConnectionClosed | Error::AlreadyClosed) => return Ok(Read::Closed),
                Err(Error::Io(error)) if waits(&error) => return Ok(Read::Again),
                Err(Error::Io(error)) => return Err(error.into()),
                Err(Error::Protocol(_) | Error::Utf8(_) | Error::Capacity(_)) => {
                    return Err(NetError::Peer("WebSocket protocol broken"));
                }
                Err(_) => return Err(NetError::Peer("WebSocket failed")),
            }
        }
    }

    /// One frame around all bytes; the next one only when this one has left.
    pub(super) fn write(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        if self.unsent {
            self.flush()?;
        }
        let mut bytes = Vec::with_capacity(bufs.iter().map(|b| b.len()).sum::<usize>().min(FRAME_MAX));
        for buf in bufs {
            let room = FRAME_MAX - bytes.len();
            bytes.extend_from_slice(buf.get(..room.min(buf.len())).unwrap_or(&[]));
        }
        let n = bytes.len();
        self.unsent = true;
        match self.socket.write(Message::Binary(bytes.into())) {
            Ok(()) => Ok(n),
            Err(Error::Io(error)) if waits(&error) => Ok(n),
            Err(Error::Io(error)) => Err(error),
            Err(other) => Err(io::Error::other(other)),
        }
    }

    pub(super) fn flush(&mut self) -> io::Result<()> {
        match self.socket.flush() {
            Ok(()) => {
                self.unsent = false;
                Ok(())
            }
            Err(Error::Io(error)) => Err(error),
            Err(Error::ConnectionClosed | Error::AlreadyClosed) => Ok(()),
            Err(other) => Err(io::Error::other(other)),
        }
    }

    pub(super) fn close(&mut self) {
        let _ = self.socket.close(None);
        let _ = self.socket.flush();
        let _ = self.socket.get_mut().flush();
        self.socket.get_mut().close();
    }
}
