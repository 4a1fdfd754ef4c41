//! What lies between a listener's sockets and MQTT, loaded from its settings.

use std::sync::Arc;

use rustls::{ServerConfig, ServerConnection};

use super::proxy::Network;
use super::stream::{Secured, Stream};
use super::{NetError, Step, tls, websocket};
use crate::settings::{CertificateIdentity, ListenerSettings};

/// Layers of one listener. A reload makes new ones; connections keep those that they began with.
#[derive(Debug)]
pub struct Layers {
    pub(super) proxy: Vec<Network>,
    pub(super) tls: Option<Arc<ServerConfig>>,
    pub(super) websocket: Option<Arc<str>>,
    pub(super) identity: CertificateIdentity,
}

impl Layers {
    /// Reads certificates and keys.
    ///
    /// # Errors
    /// The text names the file, what is wrong and what to do.
    pub fn load(settings: &ListenerSettings) -> Result<Self, NetError> {
        let mut proxy = Vec::new();
        for text in &settings.proxy_from {
            let network = Network::parse(text).ok_or_else(|| {
                NetError::Config(format!(
                    "listener {}: proxy_from: `{text}` is not a network like 10.0.0.0/8",
                    settings.name
                ))
            })?;
            proxy.push(network);
        }
        let tls = settings.tls.as_ref().map(tls::load).transpose();
        let tls = tls.map_err(|text| NetError::Config(format!("listener {}: {text}", settings.name)))?;
        let websocket = settings.websocket.then(|| Arc::from(settings.websocket_path.as_str()));
        let identity = settings.tls.as_ref().map_or(CertificateIdentity::None, |t| t.identity);
        Ok(Self { proxy, tls, websocket, identity })
    }

    /// Sockets are used as they are.
    #[must_use]
    pub fn plain(&self) -> bool {
        self.proxy.is_empty() && self.tls.is_none() && self.websocket.is_none()
    }

    /// The step after the PROXY header, which may have brought `rest`.
    pub(super) fn begin(&self, stream: Stream, rest: Vec<u8>) -> Step {
        let tls = match &self.tls {
            None => None,
            Some(config) => match ServerConnection::new(Arc::clone(config)) {
                Ok(mut tls) => {
                    tls.set_buffer_limit(Some(64 * 1024));
                    Some(tls)
                }
                Err(_) => return Step::Dead,
            },
        };
        let secured = Secured::new(stream, rest, tls);
        match &self.websocket {
            None => Step::Bytes(secured),
            Some(path) => Step::Handshake(websocket::Handshake::new(secured, Arc::clone(path))),
        }
    }
}
