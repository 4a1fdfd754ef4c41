//! From bytes to meaning: reads ready sockets, cuts packets, and carries out what an open connection sends.

use super::{Flow, Lane, Timer};
use crate::access::Action;
use crate::channel::{Outcome, Token};
use crate::codec::{self, Ack, AckKind, Malformed, Packet, Publish, QoS, Reason};
use crate::connection::{Owed, Stage};
use crate::limits::{CONNECT_BYTES_MAX, Drop as DropReason};
use crate::message::{Head, Inbound, Message, Origin};
use crate::net::Read;
use crate::partition::Input;
use crate::settings::AckClass;
use crate::stats::{Counter, Gauge};
use crate::topic;

/// The user property by which a message says what its acknowledgement shall mean.
const ACK_WISH: &str = "roost-ack";
/// Sockets that are read before what they caused leaves: a message does not wait for all others of a long tick.
const SLICE_SOCKETS: usize = 32;
/// How long a 3.1.1 client waits for an acknowledgement that will not come, until it is closed.
const UNANSWERED_MS: u64 = 5_000;

impl Lane {
    /// Reads each ready socket once, into the lane's one buffer.
    pub(super) fn read_ready(&mut self) {
        if self.ready.is_empty() || self.held_up() {
            return;
        }
        self.fleet.iter_mut().for_each(|fleet| fleet.met = 0);
        let ready = self.take_ready();
        let mut buffer = std::mem::take(&mut self.read_buffer);
        for slice in ready.chunks(SLICE_SOCKETS) {
            for &key in slice {
                self.read_one(key as usize, &mut buffer);
                self.work();
                self.slow_down(key as usize);
            }
            self.hand_over();
            self.flush_dirty();
        }
        self.read_buffer = buffer;
        let mut spare = ready;
        spare.clear();
        if self.ready.is_empty() {
            self.ready = spare;
        } else {
            self.ready.append(&mut spare);
        }
    }

    /// Whose turn it is. In a storm of connects those that are open come first, and of the others so many as a slice has: a
    /// handshake is dear, and who waits for one does not wait for a message.
    fn take_ready(&mut self) -> Vec<u32> {
        let mut ready = std::mem::take(&mut self.ready);
        if self.stats.gauge(Gauge::handshakes) > SLICE_SOCKETS as i64 {
            let is_open = |key: &u32| self.connections.get(*key as usize).is_some_and(|c| c.stage == Stage::Open);
            let (open, mut opening): (Vec<u32>, Vec<u32>) = ready.iter().partition(|key| is_open(key));
            self.ready = opening.split_off(opening.len().min(SLICE_SOCKETS));
            ready = open;
            ready.append(&mut opening);
        }
        ready
    }

    fn read_one(&mut self, key: usize, buffer: &mut [u8]) {
        let now_ms = self.now_ms;
        let Some(c) = self.connections.get_mut(key) else { return };
        c.ready = false;
        if c.subscribing || c.slowed || matches!(c.stage, Stage::Checking | Stage::Delayed | Stage::Attaching) {
            return; // it goes on when it is open; until then the bytes wait in the socket
        }
        if !c.input.is_empty() {
            // bytes from before the session was attached, or of an incomplete packet
            let input = std::mem::take(&mut c.input);
            self.parse(key, input);
        }
        let Some(c) = self.connections.get_mut(key) else { return };
        if c.subscribing || !matches!(c.stage, Stage::Opening | Stage::Open) {
            return;
        }
        let n = match c.transport.read(buffer) {
            Ok(Read::Bytes(n)) => n,
            Ok(Read::Again) => return,
            Ok(Read::Closed) => return self.lost(key, "closed by the peer"),
            Err(error) => return self.lost(key, error.text()),
        };
        c.heard_ms = now_ms;
        self.stats.add(Counter::bytes_received, n as u64);
        let more = n == buffer.len() || c.transport.more_buffered() || c.transport.layered();
        let bytes = buffer.get(..n).unwrap_or(&[]);
        if c.input.is_empty() {
            let used = self.packets(key, bytes);
            self.keep(key, bytes.get(used..).unwrap_or(&[]));
        } else {
            let mut input = std::mem::take(&mut c.input);
            input.extend_from_slice(bytes);
            self.parse(key, input);
        }
        if more {
            self.mark_ready(key);
        }
    }

    /// Parses bytes that the connection owned; what is left it owns again.
    fn parse(&mut self, key: usize, mut input: Vec<u8>) {
        let used = self.packets(key, &input);
        input.drain(..used);
        if let Some(c) = self.connections.get_mut(key).filter(|_| !input.is_empty()) {
            c.input = input;
        }
    }

    fn keep(&mut self, key: usize, rest: &[u8]) {
        if let Some(c) = self.connections.get_mut(key).filter(|_| !rest.is_empty()) {
            c.input.extend_from_slice(rest);
        }
    }

    /// Carries out every whole packet; returns the bytes used. Stops when the connection is not to be read now.
    fn packets(&mut self, key: usize, bytes: &[u8]) -> usize {
        let max = self.config.limits.packet_bytes_max;
        let mut used = 0;
        loop {
            let Some(c) = self.connections.get(key) else { return bytes.len() };
            let (stage, version) = (c.stage, c.version);
            if stage == Stage::Closing {
                return bytes.len();
            }
            if !matches!(stage, Stage::Opening | Stage::Open) || c.subscribing {
                return used;
            }
            let rest = bytes.get(used..).unwrap_or(&[]);
            let opening = stage == Stage::Opening;
            if opening && rest.first().is_some_and(|first| first >> 4 != 1) {
                self.not_connect(key);
                return bytes.len();
            }
            let frame = match codec::frame(rest, if opening { max.min(CONNECT_BYTES_MAX) } else { max }) {
                Ok(Some(frame)) if rest.len() >= frame.total => frame,
                Ok(_) => return used,
                Err(error) => {
                    self.malformed(key, error);
                    return bytes.len();
                }
            };
            used += frame.total;
            self.stats.add(Counter::packets_received, 1);
            if opening {
                // what follows goes with the connection to the lane of its session
                self.keep(key, bytes.get(used..).unwrap_or(&[]));
                self.on_first_packet(key, rest.get(..frame.total).unwrap_or(&[]), frame);
                return bytes.len();
            }
            if matches!(frame.first >> 4, 2 | 9 | 11 | 13) {
                self.malformed(key, Malformed::protocol("a packet that only a server sends"));
                return bytes.len();
            }
            match codec::decode(rest, frame, version) {
                Ok(packet) => self.on_packet(key, packet),
                Err(error) => {
                    self.malformed(key, error);
                    return bytes.len();
                }
            }
        }
    }

    fn malformed(&mut self, key: usize, error: Malformed) {
        self.stats.add(Counter::malformed, 1);
        if self.connections.get(key).is_some_and(|c| c.stage == Stage::Opening) {
            return self.lost(key, error.what);
        }
        self.refuse(key, error.reason, error.what);
    }

    fn on_packet(&mut self, key: usize, packet: Packet<'_>) {
        match packet {
            Packet::Publish(p) => self.on_publish(key, &p),
            Packet::Ack(ack) => self.on_ack(key, &ack),
            Packet::Pingreq => {
                if let Some(c) = self.connections.get_mut(key) {
                    c.send(&Packet::Pingresp);
                }
                self.mark_dirty(key);
            }
            Packet::Subscribe(p) => self.on_subscribe(key, &p),
            Packet::Unsubscribe(p) => self.on_unsubscribe(key, &p),
            Packet::Disconnect(p) => self.on_disconnect(key, &p),
            Packet::Connect(_) => self.refuse(key, Reason::PROTOCOL_ERROR, "second CONNECT"),
            Packet::Auth(_) => self.refuse(key, Reason::PROTOCOL_ERROR, "AUTH without an authentication method"),
            Packet::Connack(_) | Packet::Suback(_) | Packet::Unsuback(_) | Packet::Pingresp => {}
        }
    }

    fn on_ack(&mut self, key: usize, ack: &Ack<'_>) {
        let connection = self.id_of(key);
        let Some(c) = self.connections.get_mut(key) else { return };
        let session = c.session;
        let input = if ack.kind == AckKind::Pubrel {
            c.receiving = c.receiving.saturating_sub(1);
            c.release_away(ack.id);
            Input::Release { session, connection, id: ack.id, answer: true }
        } else {
            Input::Ack { session, connection, kind: ack.kind, id: ack.id, reason: ack.reason }
        };
        self.tell_session(session.partition, input);
    }

    /// The life of a PUBLISH begins here: limits, alias, access, then the route.
    fn on_publish(&mut self, key: usize, p: &Publish<'_>) {
        if p.qos != QoS::AtMostOnce && self.connections.get(key).is_some_and(|c| c.unanswered_ms != 0) {
            return; // acknowledged out of order it could not be repeated in order
        }
        self.count_publish(p);
        if let Err((reason, text)) = self.check_publish(key, p) {
            return self.refuse(key, reason, text);
        }
        let Some(c) = self.connections.get_mut(key) else { return };
        let alias_max = self.config.topic_alias_max(c.listener);
        let mut aliases = c.aliases_in.take();
        let topic = match p.properties.alias {
            None => Ok(p.topic),
            Some(alias) => aliases.get_or_insert_default().resolve(alias, p.topic, alias_max),
        };
        match topic {
            Ok(topic) => {
                let mounted = c.rare.as_ref().filter(|r| !r.mount_point.is_empty());
                match mounted.map(|r| format!("{}{topic}", r.mount_point)) {
                    Some(long) => self.publish_to(key, p, &long),
                    None => self.publish_to(key, p, topic),
                }
            }
            Err(reason) => self.refuse(key, reason, "topic alias"),
        }
        if let Some(c) = self.connections.get_mut(key) {
            c.aliases_in = aliases;
        }
    }

    fn count_publish(&self, p: &Publish<'_>) {
        self.stats.add(Counter::publish_received, 1);
        self.stats.add(Counter::publish_bytes_received, p.payload.len() as u64);
        let by_qos = match p.qos {
            QoS::AtMostOnce => Counter::publish_received_qos0,
            QoS::AtLeastOnce => Counter::publish_received_qos1,
            QoS::ExactlyOnce => Counter::publish_received_qos2,
        };
        self.stats.add(by_qos, 1);
    }

    fn check_publish(&self, key: usize, p: &Publish<'_>) -> Result<(), (Reason, &'static str)> {
        let Some(c) = self.connections.get(key) else { return Ok(()) };
        if p.properties.subscription_ids.len() > 1 {
            return Err((Reason::PROTOCOL_ERROR, "subscription identifiers from a client"));
        }
        if p.qos as u8 > self.config.qos_max(c.listener) {
            return Err((Reason::QOS_NOT_SUPPORTED, "QoS above the maximum"));
        }
        if p.retain && !self.config.settings.mqtt.retain_available {
            return Err((Reason::RETAIN_NOT_SUPPORTED, "retain is not available"));
        }
        let limits = &self.config.limits;
        if p.topic.len() > limits.topic_bytes_max || topic::levels(p.topic) > limits.topic_levels_max {
            return Err((Reason::MALFORMED_PACKET, "topic too long or too deep"));
        }
        if p.qos == QoS::AtMostOnce || !c.version.is_v5() || c.receiving < limits.receive_maximum {
            return Ok(());
        }
        // a repeated QoS 2 identifier is not another message
        let partition = self.partitions.get(usize::from(c.session.partition)).and_then(|p| p.as_deref());
        let held = partition.and_then(|part| part.session(c.session)).and_then(|s| s.held.as_ref());
        let away = c.rare.as_ref().and_then(|r| r.away.as_ref());
        let held = held.is_some_and(|h| h.get(p.id).is_some()) || away.is_some_and(|a| a.held.contains(&p.id));
        if p.qos == QoS::ExactlyOnce && held {
            return Ok(());
        }
        Err((Reason::RECEIVE_MAXIMUM, "receive maximum exceeded"))
    }

    fn publish_to(&mut self, key: usize, p: &Publish<'_>, topic: &str) {
        let Some(c) = self.connections.get(key) else { return };
        let payload_max = self.config.limits.payload_bytes_max;
        if payload_max > 0 && p.payload.len() > payload_max {
            return self.deny_publish(key, p, Reason::PACKET_TOO_LARGE, topic);
        }
        let reserved = topic::reserved(topic);
        if reserved || !(c.rules.allow_all() || c.rules.may(Action::Publish, topic)) {
            return self.deny_publish(key, p, Reason::NOT_AUTHORIZED, topic);
        }
        if !self.faults.is_empty() {
            let fault = self.faults.iter_mut().find(|f| f.hits_publish(topic));
            if let Some(reason) = fault.map(|f| f.take()) {
                return self.deny_publish(key, p, reason, topic);
            }
        }
        let expiry_s = self.config.expiry_of(p);
        let head = Head {
            publisher: c.session.uid,
            origin: Origin::default(),
            deadline_ms: expiry_s.map_or(0, |s| self.now_ms + u64::from(s) * 1000),
            qos: p.qos,
            retain: p.retain,
            memory: p.qos == QoS::AtLeastOnce && self.is_class_memory(c.listener, topic, p),
            ..Head::default()
        };
        let message = Message { head, topic, props: &p.properties.forward, payload: p.payload };
        match p.qos {
            QoS::AtMostOnce => {
                self.flow = Flow::default();
                self.route(&Inbound::new(message));
            }
            QoS::AtLeastOnce => self.publish_qos1(key, p.id, message),
            QoS::ExactlyOnce => self.publish_qos2(key, p.id, message),
        }
    }

    /// The listener's class, raised by the topic's, raised or (where that is allowed) lowered by the message's wish.
    fn is_class_memory(&self, listener: u16, topic: &str, p: &Publish<'_>) -> bool {
        if self.shared.log.is_none() && self.shared.cluster_log.get().is_none() {
            return false;
        }
        let listener = self.config.settings.listeners.get(usize::from(listener));
        let usual = listener.map_or(AckClass::Durable, |l| l.ack);
        let filters = self.config.settings.ack_filters.iter().filter(|f| topic::matches(&f.filter, topic));
        let least = filters.map(|f| f.ack).max().unwrap_or(AckClass::Memory);
        let wish = match codec::user_property(&p.properties.forward, ACK_WISH) {
            Some("memory") => Some(AckClass::Memory),
            Some("replicated") => Some(AckClass::Replicated),
            Some("durable") => Some(AckClass::Durable),
            _ => None,
        };
        let lower = listener.is_some_and(|l| l.ack_lower);
        let own = wish.map_or(usual, |w| if lower { w } else { w.max(usual) });
        own.max(least) == AckClass::Memory
    }

    fn publish_qos1(&mut self, key: usize, id: u16, message: Message<'_>) {
        let connection = self.id_of(key);
        let Some(c) = self.connections.get_mut(key) else { return };
        let number = c.owed.next();
        self.flow = Flow { token: Some(Token { connection, number, ask: 0 }), ..Flow::default() };
        self.route(&Inbound::new(message));
        let Flow { waiting, outcome, own, .. } = std::mem::take(&mut self.flow);
        let may = self.may_acknowledge();
        let Some(c) = self.connections.get_mut(key) else { return };
        let answered = !outcome.disk_failed || c.version.is_v5();
        if waiting == 0 && c.owed.is_empty() && answered && may {
            c.owed.skip();
            c.send_ack(AckKind::Puback, id, reason_of(outcome, c.version.is_v5()));
            self.mark_dirty(key);
            return self.deliver_own(&own);
        }
        c.receiving = c.receiving.saturating_add(1);
        c.owed.push(Owed { id, exactly_once: false, waiting, outcome });
        self.leave_unanswered(key, outcome);
        self.settle(key);
        self.deliver_own(&own);
    }

    /// QoS 2: the identifier is held by the session before the message fans out.
    fn publish_qos2(&mut self, key: usize, id: u16, mut message: Message<'_>) {
        let connection = self.id_of(key);
        let Some(c) = self.connections.get_mut(key) else { return };
        let session = c.session;
        let token = Token { connection, number: c.owed.next(), ask: 0 };
        c.owed.push(Owed { id, exactly_once: true, waiting: 1, outcome: Default::default() });
        if !self.owns(session.partition) || self.is_halted(session.partition) {
            return self.hold_elsewhere(key, id, token, &message);
        }
        let before = self.held(session);
        self.flow = Flow { token: Some(token), ..Flow::default() };
        self.step(session.partition, Input::Hold { session, id, token }, None);
        let fresh = self.held(session) > before;
        match self.flow.held.take() {
            Some(origin) => {
                message.head.origin = origin;
                self.route(&Inbound::new(message));
            }
            None if self.fleet.is_some() && !self.flow.outcome.disk_failed => {
                self.flow = Flow::default();
                if let Some(c) = self.connections.get_mut(key) {
                    c.receiving = c.receiving.saturating_add(u16::from(fresh));
                }
                return self.hold_until_safe(token, &message);
            }
            None => {}
        }
        self.routed_qos2(token, u16::from(fresh));
    }

    /// A QoS 2 publish is on its way: PUBREC waits for the answers that are missing. `fresh` counts against Receive Maximum.
    pub(super) fn routed_qos2(&mut self, token: Token, fresh: u16) {
        let key = token.connection.key as usize;
        let Flow { waiting, outcome, own, .. } = std::mem::take(&mut self.flow);
        let Some(c) = self.connections.get_mut(key) else { return };
        c.receiving = c.receiving.saturating_add(fresh);
        if let Some(owed) = c.owed.get_mut(token.number) {
            owed.waiting = waiting;
            owed.outcome.add(outcome);
        }
        self.leave_unanswered(key, outcome);
        self.settle(key);
        self.deliver_own(&own);
    }

    fn held(&self, session: crate::channel::SessionRef) -> usize {
        let partition = self.partitions.get(usize::from(session.partition)).and_then(|p| p.as_deref());
        partition.and_then(|p| p.session(session)).and_then(|s| s.held.as_ref()).map_or(0, |h| h.len())
    }

    /// Acknowledgements leave in the order of the publishes, as far as they are answered.
    pub(super) fn settle(&mut self, key: usize) {
        if !self.may_acknowledge() {
            let key = u32::try_from(key).unwrap_or(u32::MAX);
            return self.fleet.iter_mut().for_each(|f| f.unsettled.extend([key]));
        }
        loop {
            let connection = self.id_of(key);
            let Some(c) = self.connections.get_mut(key) else { return };
            let Some(owed) = c.owed.take_ready() else { break };
            if owed.outcome.disk_failed && !c.version.is_v5() {
                self.leave_unanswered(key, owed.outcome);
                continue;
            }
            let reason = reason_of(owed.outcome, c.version.is_v5());
            if !owed.exactly_once {
                c.receiving = c.receiving.saturating_sub(1);
                c.send_ack(AckKind::Puback, owed.id, reason);
                continue;
            }
            c.send_ack(AckKind::Pubrec, owed.id, reason);
            if reason.is_error() {
                c.receiving = c.receiving.saturating_sub(1);
                c.release_away(owed.id);
                let session = c.session;
                let input = Input::Release { session, connection, id: owed.id, answer: false };
                self.tell_session(session.partition, input);
            }
        }
        self.mark_dirty(key);
        if self.connections.get(key).is_some_and(|c| c.stage == Stage::Closing && c.owed.is_empty()) {
            self.confirm_end(key);
        }
    }

    /// The disk takes nothing, and 3.1.1 has no way to say so: no acknowledgement, and the connection is closed after a
    /// while, so that the client repeats everything in order. Noted at once, not when its turn to be answered comes: what the
    /// client sends next must not get in before it while an earlier message waits for its sync.
    pub(super) fn leave_unanswered(&mut self, key: usize, outcome: Outcome) {
        let at_ms = self.now_ms + UNANSWERED_MS;
        let Some(c) = self.connections.get_mut(key).filter(|c| c.unanswered_ms == 0) else { return };
        if !outcome.disk_failed || c.version.is_v5() {
            return;
        }
        c.unanswered_ms = at_ms;
        let (key, generation) = (u32::try_from(key).unwrap_or(u32::MAX), c.generation);
        self.timers.set(at_ms, Timer::Connection { key, generation });
    }

    /// The client may not publish this: said in version 5, silent in 3.1.1, counted always.
    fn deny_publish(&mut self, key: usize, p: &Publish<'_>, reason: Reason, topic: &str) {
        let id = self.connections.get(key).map(|c| c.client_id.clone()).unwrap_or_default();
        let too_large = reason == Reason::PACKET_TOO_LARGE;
        let why = if too_large { DropReason::TooLarge } else { DropReason::NotAuthorized };
        self.note_drop(&id, topic, p.qos, why);
        let v5 = self.connections.get(key).is_some_and(|c| c.version.is_v5());
        let reason = if v5 { reason } else { Reason::SUCCESS };
        match p.qos {
            QoS::AtMostOnce => {}
            QoS::AtLeastOnce => self.acknowledge(key, AckKind::Puback, p.id, reason),
            QoS::ExactlyOnce => self.acknowledge(key, AckKind::Pubrec, p.id, reason),
        }
    }
}

/// The reason code of a PUBACK or PUBREC. In 3.1.1 there is none.
fn reason_of(outcome: Outcome, v5: bool) -> Reason {
    if !v5 {
        Reason::SUCCESS
    } else if outcome.disk_failed || outcome.retain_failed || (outcome.rejected > 0 && outcome.accepted == 0) {
        Reason::QUOTA_EXCEEDED
    } else if outcome.accepted == 0 {
        Reason::NO_MATCHING_SUBSCRIBERS
    } else {
        Reason::SUCCESS
    }
}
