//! New sockets: accepted by the lane that has the listener, dealt to all lanes in turn, refused when there are too
//! many. After CONNECT the socket goes to the lane of its session (`connect`).

use std::sync::atomic::Ordering;

use mio::Token as Place;

use super::{CONNECTIONS, LISTENERS, Lane, LaneMessage, Timer};
use crate::connection::{Connection, Stage};
use crate::net::{Listener, PeerAddress, Transport};
use crate::stats::{Counter, Gauge};

/// Sockets accepted from one listener in one tick.
const ACCEPT_MAX: usize = 32;
/// Pause after the operating system refused a socket, milliseconds.
const PAUSE_MS: u64 = 100;

impl Lane {
    /// Takes over a listening socket; `index` is its position in the settings.
    pub fn add_listener(&mut self, index: u16, mut listener: Listener) {
        let place = Place(LISTENERS + self.listeners.len());
        if listener.register(self.poll.registry(), place).is_ok() {
            self.listeners.push((index, listener));
        }
    }

    pub(super) fn accept(&mut self, at: usize) {
        for _ in 0..ACCEPT_MAX {
            if !self.accepting {
                return;
            }
            if self.handshakes_full() {
                return self.pause_accepting();
            }
            let Some((index, listener)) = self.listeners.get(at) else { return };
            let index = *index;
            match listener.accept() {
                Ok(Some((stream, address))) => self.deal(index, stream, address),
                Ok(None) => return,
                Err(_) => return self.pause_accepting(),
            }
        }
        // more may wait, and an edge-triggered event comes only once
        self.timers.set(self.now_ms, Timer::Accept);
    }

    fn handshakes_full(&self) -> bool {
        let lanes = i64::try_from(self.shared.stats.len()).unwrap_or(1);
        let max = i64::try_from(self.config.limits.handshakes_max).unwrap_or(i64::MAX);
        self.stats.gauge(Gauge::handshakes) * lanes >= max
    }

    fn pause_accepting(&mut self) {
        self.timers.set(self.now_ms + PAUSE_MS, Timer::Accept);
    }

    pub(super) fn resume_accepting(&mut self) {
        for at in 0..self.listeners.len() {
            self.accept(at);
        }
    }

    fn deal(&mut self, index: u16, stream: crate::net::Stream, address: PeerAddress) {
        self.stats.add(Counter::sockets_accepted, 1);
        if !self.shared.enter(&address, self.config.limits.connections_per_address_max) {
            self.stats.add(Counter::sockets_refused, 1);
            return;
        }
        let Some(layers) = self.config.layers.get(usize::from(index)).cloned() else { return };
        let transport = Transport::new(stream, address, layers, self.config.settings.mqtt.tcp_nodelay);
        let lanes = u32::from(self.shared.ring.lanes());
        let turn = self.shared.turn.fetch_add(1, Ordering::Relaxed) % lanes;
        let to = self.shared.ring.place(u16::try_from(turn).unwrap_or(0));
        if to == self.number {
            self.open_socket(index, transport);
        } else {
            self.send(to, LaneMessage::Socket { listener: index, transport: Box::new(transport) });
        }
    }

    /// A socket begins its life in this lane.
    pub(super) fn open_socket(&mut self, listener: u16, transport: Transport) {
        self.generation = self.generation.wrapping_add(1);
        let connection = Connection::new(transport, listener, self.generation, self.now_ms);
        self.stats.shift(Gauge::handshakes, 1);
        self.install(Box::new(connection));
    }

    /// Puts a connection into the table and under the eyes of the poll.
    pub(super) fn install(&mut self, mut connection: Box<Connection>) -> Option<usize> {
        let entry = self.connections.vacant_entry();
        let key = entry.key();
        let place = Place(CONNECTIONS + key);
        if connection.transport.register(self.poll.registry(), place).is_err() {
            self.shared.leave(connection.transport.address());
            return None;
        }
        connection.ready = false;
        connection.dirty = false;
        let (opening, generation) = (connection.stage != Stage::Open, connection.generation);
        entry.insert(connection);
        if opening {
            let at_ms = self.now_ms + self.config.limits.connect_timeout_ms;
            let key = u32::try_from(key).unwrap_or(u32::MAX);
            self.timers.set(at_ms, Timer::Connection { key, generation });
        }
        // bytes may have come before the socket was registered, or wait decrypted inside
        self.mark_ready(key);
        Some(key)
    }
}
