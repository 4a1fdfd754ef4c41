//! Connections end: politely with a reason, by the client, by silence, by the network (sections 3.14, 4.13).

use super::{LINGERING, Lane, Timer};
use crate::codec::{Disconnect, Reason};
use crate::connection::Stage;
use crate::net::{Read, Transport};
use crate::partition::{Ending, Input};
use crate::ring::Ring;
use crate::stats::{Counter, Gauge};

/// A closed socket is read for so long, so that a client can still read why it was closed, also one that has much to send before.
const LINGER_MS: u64 = 5_000;
const LINGERING_MAX: usize = 4_096;

/// A socket that is closed and still read.
pub(super) struct Lingering {
    transport: Transport,
    until_ms: u64,
}

impl Lane {
    /// The broker ends a connection: DISCONNECT with the reason, then close.
    pub(super) fn refuse(&mut self, key: usize, reason: Reason, text: &'static str) {
        let Some(c) = self.connections.get_mut(key) else { return };
        if c.stage == Stage::Open {
            c.send_disconnect(reason, text);
        }
        self.end(key, text, Some(reason), "broker");
    }

    /// Sends clients to other nodes, this lane's part of `count`: first those whose sessions are elsewhere. Sessions stay, and
    /// nobody is declared dead.
    pub(super) fn shed(&mut self, count: u32, servers: &[(u16, String)]) {
        let lanes = u32::from(self.shared.ring.lanes());
        let is_first = |rest: u32| self.shared.ring.here(self.number).is_some_and(|lane| lane < rest as usize);
        let mut left = count / lanes + u32::from(is_first(count % lanes));
        let here = Ring::slot(self.number);
        for is_last_choice in [false, true] {
            let ring = &self.shared.ring;
            let open = self.connections.iter().filter(|(_, c)| c.stage == Stage::Open);
            let placed = open.map(|(key, c)| (key, Ring::slot(ring.home(ring.partition(&c.client_id)))));
            let fits = placed.filter(|(_, slot)| (*slot == here) == is_last_choice);
            let found: Vec<(usize, u16)> = fits.take(left as usize).collect();
            for (key, slot) in found {
                left -= 1;
                let server =
                    servers.iter().find(|(s, _)| *s == slot).or_else(|| servers.get(key % servers.len().max(1)));
                if let Some(c) = self.connections.get_mut(key) {
                    c.ending.will = false;
                    c.send_elsewhere(server.map(|(_, address)| address.as_str()));
                }
                self.end(key, "sent to another node", Some(Reason::USE_ANOTHER_SERVER), "broker");
            }
        }
    }

    /// The network or the peer broke the connection.
    pub(super) fn lost(&mut self, key: usize, text: &'static str) {
        self.end(key, text, None, "network");
    }

    /// DISCONNECT from the client [MQTT-3.14.4-1 to MQTT-3.14.4-3].
    pub(super) fn on_disconnect(&mut self, key: usize, packet: &Disconnect<'_>) {
        let Some(c) = self.connections.get_mut(key) else { return };
        if let Some(expiry_s) = packet.properties.session_expiry_s {
            let session = c.session;
            let away = c.rare.as_ref().and_then(|r| r.away.as_ref()).map(|a| a.expiry_s);
            let here = self.partition(session.partition).and_then(|p| p.session(session)).map(|s| s.expiry_s);
            let was = here.or(away).unwrap_or(0);
            if was == 0 && expiry_s != 0 {
                return self.refuse(key, Reason::PROTOCOL_ERROR, "session expiry raised from 0");
            }
            let cut = expiry_s.min(self.config.limits.session_expiry_max_s);
            if let Some(c) = self.connections.get_mut(key) {
                c.ending.expiry_s = Some(cut);
            }
        }
        if let Some(c) = self.connections.get_mut(key) {
            c.ending.will = packet.reason != Reason::SUCCESS;
        }
        self.end(key, "disconnect", Some(packet.reason), "client");
    }

    /// Closes the socket; the session learns of it when nothing is owed any more.
    pub(super) fn end(&mut self, key: usize, text: &'static str, code: Option<Reason>, by: &'static str) {
        let Some(c) = self.connections.get_mut(key) else { return };
        if c.stage == Stage::Closing {
            return;
        }
        let was = std::mem::replace(&mut c.stage, Stage::Closing);
        let mut written = 0;
        let _ = c.out.flush(&mut c.transport, &mut written);
        self.stats.add(Counter::bytes_sent, written);
        let rare = c.rare.get_or_insert_default();
        rare.why = Some((text, code, by));
        if was == Stage::Open {
            self.stats.shift(Gauge::connections, -1);
            self.stats.add(Counter::disconnects, 1);
        } else {
            self.stats.shift(Gauge::handshakes, -1);
        }
        if matches!(was, Stage::Open | Stage::Attaching) {
            self.shared.count_connection(c.listener, false);
        }
        if matches!(was, Stage::Opening | Stage::Checking) {
            self.shared.events.socket_closed(&c.transport.address().to_string(), text);
        }
        if was == Stage::Open && !self.config.settings.quiet_connections {
            let (id, address) = (c.client_id.clone(), c.transport.address().to_string());
            self.shared.events.disconnected(&id, &address, text, code, by);
        }
        let attached = matches!(was, Stage::Open | Stage::Attaching);
        if !attached {
            self.remove(key);
        } else if c.owed.is_empty() {
            self.confirm_end(key);
        } else if by != "network" {
            c.transport.close();
        }
    }

    /// Nothing is owed: the session may go on without this connection.
    pub(super) fn confirm_end(&mut self, key: usize) {
        let connection = self.id_of(key);
        let Some(c) = self.connections.get(key) else { return };
        let partition = self.shared.ring.partition(&c.client_id);
        let session = (c.session.uid != 0).then_some(c.session);
        let (client_id, ending): (_, Ending) = (c.client_id.clone(), c.ending);
        self.remove(key);
        if self.stopping_at_ms.is_some() && (self.shared.log.is_some() || self.shared.cluster_log.get().is_some()) {
            return; // the log remembers it as connected: a broker that stops declares nobody dead
        }
        self.unpark(connection);
        let input = Input::Detach { session, client_id: &client_id, connection, ending };
        self.tell_session(partition, input);
        self.note_partition_timers();
    }

    fn remove(&mut self, key: usize) {
        let Some(mut c) = self.connections.try_remove(key) else { return };
        self.shared.leave(c.transport.address());
        let _ = c.transport.deregister(self.poll.registry());
        let by_network = c.rare.as_ref().is_some_and(|r| r.why.is_some_and(|w| w.2 == "network"));
        if by_network || self.lingering.len() >= LINGERING_MAX {
            return;
        }
        let (mut transport, until_ms) = (c.transport, self.now_ms + LINGER_MS);
        let entry = self.lingering.vacant_entry();
        let at = entry.key();
        if transport.register(self.poll.registry(), mio::Token(LINGERING + at)).is_ok() {
            entry.insert(Lingering { transport, until_ms });
            self.hangups.push(at);
            let key = u32::try_from(at).unwrap_or(u32::MAX);
            self.timers.set(until_ms, Timer::Linger { key });
            self.drain_lingering(at);
        }
    }

    /// The end of a tick, when the sessions have been told: who waits for the close and connects again finds them told.
    pub(super) fn hang_up(&mut self) {
        for at in self.hangups.drain(..) {
            self.lingering.get_mut(at).into_iter().for_each(|l| l.transport.close());
        }
    }

    /// Reads and forgets, so that closing does not reset the connection before the client has read the reason.
    pub(super) fn drain_lingering(&mut self, at: usize) {
        let mut buffer = std::mem::take(&mut self.read_buffer);
        for _ in 0..64 {
            let Some(Lingering { transport, .. }) = self.lingering.get_mut(at) else { break };
            match transport.read(&mut buffer) {
                Ok(Read::Bytes(_)) => {}
                Ok(Read::Again) => break,
                Ok(Read::Closed) | Err(_) => {
                    self.lingering.remove(at);
                    break;
                }
            }
        }
        self.read_buffer = buffer;
    }

    /// Its time is over; that of another one which had its place before says nothing.
    pub(super) fn end_lingering(&mut self, at: usize) {
        if self.lingering.get(at).is_some_and(|l| l.until_ms <= self.now_ms) {
            self.lingering.remove(at);
        }
    }

    /// The time of a connection has come: CONNECT too late, silent too long, credentials over, or a stale entry.
    pub(super) fn connection_due(&mut self, key: u32, generation: u32) {
        let now_ms = self.now_ms;
        let at = key as usize;
        let Some(c) = self.connections.get(at).filter(|c| c.generation == generation) else { return };
        match c.stage {
            Stage::Opening | Stage::Checking => self.lost(at, "no CONNECT in time"),
            Stage::Delayed => {
                let reason = c.rare.as_ref().and_then(|r| r.refusal).unwrap_or(Reason::NOT_AUTHORIZED);
                self.refuse_connect(at, reason);
            }
            Stage::Open if c.unanswered_ms != 0 && c.unanswered_ms <= now_ms => {
                self.lost(at, "the disk takes nothing; the client shall repeat");
            }
            Stage::Open => {
                if c.rare.as_ref().is_some_and(|r| r.hold_ms > 0 && r.hold_ms <= now_ms) {
                    self.mark_dirty(at);
                }
                self.check_silence(at, key, generation);
            }
            Stage::Attaching | Stage::Closing => {}
        }
    }

    fn check_silence(&mut self, at: usize, key: u32, generation: u32) {
        let now_ms = self.now_ms;
        let held_up = self.held_up();
        let Some(c) = self.connections.get_mut(at) else { return };
        let expires = c.rare.as_ref().and_then(|r| r.expires_at_s);
        if expires.is_some_and(|at_s| self.shared.clock.unix_s() >= at_s) {
            return self.refuse(at, Reason::NOT_AUTHORIZED, "credentials have expired");
        }
        if c.ready || c.slowed || held_up {
            c.heard_ms = now_ms; // we are the ones who did not read
        }
        let silent_ms = now_ms.saturating_sub(c.heard_ms);
        let max = u64::from(c.silence_max_ms);
        if max > 0 && silent_ms >= max {
            return self.refuse(at, Reason::KEEP_ALIVE_TIMEOUT, "keep alive timeout");
        }
        let mut next = (max > 0).then(|| c.heard_ms + max);
        if let Some(at_s) = expires {
            let left_ms = at_s.saturating_sub(self.shared.clock.unix_s()).saturating_mul(1000).max(100);
            next = Some(next.unwrap_or(u64::MAX).min(now_ms + left_ms));
        }
        if let Some(next) = next {
            self.timers.set(next, Timer::Connection { key, generation });
        }
    }
}
