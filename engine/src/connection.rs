//! The network side of a client: framing, keep alive, topic aliases, limits, acknowledgements owed.
//!
//! It knows its session by name only. It never decides where a message goes; it decides what may pass this socket.

use std::collections::VecDeque;
use std::sync::Arc;

use foldhash::fast::RandomState;
use hashbrown::{HashMap, HashSet};

use crate::access::Rules;
use crate::channel::{Outcome, SessionRef};
use crate::codec::{
    self, AckKind, Disconnect, Packet, Properties, PublishHead, QoS, Reason, Version, encode_publish_head,
    publish_head_len,
};
use crate::message::{Message, Stored};
use crate::net::Transport;
use crate::outbox::Outbox;
use crate::partition::{Deliver, Ending};

/// How far a connection has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Stage {
    /// Waiting for a complete CONNECT.
    #[default]
    Opening,
    /// CONNECT is here; credentials are being checked off the lane.
    Checking,
    /// Refused; the answer waits, because this address has failed before.
    Delayed,
    /// The session was asked for.
    Attaching,
    /// CONNACK is sent.
    Open,
    /// The socket is done for; waits only until nothing is owed, then confirms its end to the session.
    Closing,
}

/// An acknowledgement that the client has not got yet. They leave in the order of the publishes [MQTT-4.6.0-2].
#[derive(Debug)]
pub struct Owed {
    /// Packet identifier.
    pub id: u16,
    /// PUBACK or PUBREC.
    pub exactly_once: bool,
    /// Answers that are still missing.
    pub waiting: u16,
    /// What the answers said so far.
    pub outcome: Outcome,
}

/// What one step of a retained replay may add to a pending output that is full.
const REPLAY_STEP_BYTES: usize = 512 * 1024;

/// Acknowledgements owed, numbered.
#[derive(Debug, Default)]
pub struct OwedQueue {
    list: VecDeque<Owed>,
    first: u64,
}

impl OwedQueue {
    /// The number that the next one gets.
    #[must_use]
    pub fn next(&self) -> u64 {
        self.first + self.list.len() as u64
    }

    /// Appends one.
    pub fn push(&mut self, owed: Owed) {
        self.list.push_back(owed);
    }

    /// Finds one by number.
    pub fn get_mut(&mut self, number: u64) -> Option<&mut Owed> {
        self.list.get_mut(usize::try_from(number.checked_sub(self.first)?).ok()?)
    }

    /// Takes the first if all its answers are in.
    pub fn take_ready(&mut self) -> Option<Owed> {
        if self.list.front()?.waiting > 0 {
            return None;
        }
        self.first += 1;
        self.list.pop_front()
    }

    /// The number is used by a publish that was answered at once.
    pub fn skip(&mut self) {
        self.first += 1;
    }

    /// True if nothing is owed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }
}

/// Topic aliases that the client has set.
#[derive(Debug, Default)]
pub struct AliasesIn {
    topics: Vec<Option<Box<str>>>,
}

impl AliasesIn {
    /// Sets or looks up [MQTT-3.3.2-7 to MQTT-3.3.2-12]; `max` was announced.
    ///
    /// # Errors
    /// 0x94 for 0 or above `max`, 0x82 for one that was never set.
    pub fn resolve<'a>(&'a mut self, alias: u16, topic: &'a str, max: u16) -> Result<&'a str, Reason> {
        if alias == 0 || alias > max {
            return Err(Reason::TOPIC_ALIAS_INVALID);
        }
        let at = usize::from(alias) - 1;
        if topic.is_empty() {
            return self.topics.get(at).and_then(|t| t.as_deref()).ok_or(Reason::PROTOCOL_ERROR);
        }
        if self.topics.len() <= at {
            self.topics.resize(at + 1, None);
        }
        if let Some(slot) = self.topics.get_mut(at) {
            *slot = Some(topic.into());
        }
        Ok(topic)
    }
}

/// Topic aliases that we have assigned towards the client: the first topics get them and keep them.
#[derive(Debug, Default)]
struct AliasesOut {
    ids: HashMap<Box<str>, u16, RandomState>,
    max: u16,
}

/// Why a delivery did not go out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Undelivered {
    /// Larger than the client's Maximum Packet Size.
    TooLarge,
    /// QoS 0 and the pending output is full.
    SlowReader,
}

/// One connection.
#[derive(Debug)]
pub struct Connection {
    /// The socket with its layers.
    pub transport: Transport,
    /// Output that waits for the end of the tick or for the socket.
    pub out: Outbox,
    /// Bytes of an incomplete packet.
    pub input: Vec<u8>,
    /// Acknowledgements owed.
    pub owed: OwedQueue,
    /// The session, once attached.
    pub session: SessionRef,
    /// When the client was last heard, engine time.
    pub heard_ms: u64,
    /// Closed when silent for longer; 0 is never. One and a half times the keep alive [MQTT-3.1.2-22].
    pub silence_max_ms: u32,
    /// The client's Maximum Packet Size.
    pub packet_out_max: u32,
    /// Distinguishes users of one place in the table.
    pub generation: u32,
    /// A message of the client was not acknowledged and will not be: the connection is closed then; 0 is never.
    pub unanswered_ms: u64,
    /// Messages of the client that are not finished (its use of our Receive Maximum).
    pub receiving: u16,
    /// Position of its listener.
    pub listener: u16,
    /// Protocol version.
    pub version: Version,
    /// How far it has come.
    pub stage: Stage,
    /// Output waits for the end of the tick.
    pub dirty: bool,
    /// It is in the lane's list of those to read without a socket event.
    pub ready: bool,
    /// The session was told that output is congested.
    pub congested: bool,
    /// A SUBACK waits for the barrier; what the client sent after its SUBSCRIBE is answered after it.
    pub subscribing: bool,
    /// What it published is for a node that cannot keep up: it is not read until that can.
    pub slowed: bool,
    /// The client wants reason strings.
    pub wants_problems: bool,
    /// What its session will be told at the end.
    pub ending: Ending,
    /// What the client may do.
    pub rules: Rules,
    /// Aliases of the client.
    pub aliases_in: Option<Box<AliasesIn>>,
    aliases_out: Option<Box<AliasesOut>>,
    /// Client id, as soon as it is known.
    pub client_id: Arc<str>,
    /// Username, for events and for new access rules.
    pub username: Option<Arc<str>>,
    /// Rarely used things.
    pub rare: Option<Box<Rare>>,
}

/// What a connection must know of a session that is elsewhere.
#[derive(Debug, Default)]
pub struct Away {
    /// Identifiers of QoS 2 that it has sent and not released.
    pub held: HashSet<u16>,
    /// Session Expiry Interval.
    pub expiry_s: u32,
}

/// What only some connections have, or all for a short time.
#[derive(Debug, Default)]
pub struct Rare {
    /// The CONNECT packet until the session is attached.
    pub connect: Vec<u8>,
    /// An assigned client id that CONNACK must tell.
    pub assigned: bool,
    /// Answer of a delayed refusal.
    pub refusal: Option<Reason>,
    /// Unix time at which the credentials end.
    pub expires_at_s: Option<u64>,
    /// Output is held back until then, for tests.
    pub hold_ms: u64,
    /// Why it ended, for the event.
    pub why: Option<(&'static str, Option<Reason>, &'static str)>,
    /// Prefix of every topic of this client.
    pub mount_point: Box<str>,
    /// Its session is elsewhere.
    pub away: Option<Away>,
}

impl Connection {
    /// A fresh connection.
    #[must_use]
    pub fn new(transport: Transport, listener: u16, generation: u32, now_ms: u64) -> Self {
        Self {
            transport,
            out: Outbox::default(),
            input: Vec::new(),
            owed: OwedQueue::default(),
            session: SessionRef::default(),
            heard_ms: now_ms,
            silence_max_ms: 0,
            packet_out_max: u32::MAX,
            generation,
            unanswered_ms: 0,
            receiving: 0,
            listener,
            version: Version::V311,
            stage: Stage::Opening,
            dirty: false,
            ready: false,
            congested: false,
            slowed: false,
            subscribing: false,
            wants_problems: true,
            ending: Ending { will: true, expiry_s: None },
            rules: Rules::default(),
            aliases_in: None,
            aliases_out: None,
            client_id: Arc::from(""),
            username: None,
            rare: None,
        }
    }

    /// Aliases may be assigned towards the client.
    pub fn allow_aliases(&mut self, max: u16) {
        self.aliases_out = (max > 0).then(|| Box::new(AliasesOut { ids: HashMap::default(), max }));
    }

    /// A QoS 2 identifier of the client is used no more.
    pub fn release_away(&mut self, id: u16) {
        if let Some(away) = self.rare.as_mut().and_then(|r| r.away.as_mut()) {
            away.held.remove(&id);
        }
    }

    /// Appends a small packet.
    pub fn send(&mut self, packet: &Packet<'_>) {
        let version = self.version;
        codec::encode(packet, version, self.out.buffer());
    }

    /// Appends an acknowledgement.
    pub fn send_ack(&mut self, kind: AckKind, id: u16, reason: Reason) {
        codec::encode_ack(kind, id, reason, self.version, self.out.buffer());
    }

    /// Appends a DISCONNECT with a reason, which only version 5 has.
    pub fn send_disconnect(&mut self, reason: Reason, text: &'static str) {
        if !self.version.is_v5() {
            return;
        }
        let mut properties = Properties::default();
        if self.wants_problems && !text.is_empty() {
            properties.reason_string = Some(text);
        }
        let len = 8 + text.len() as u32;
        if len > self.packet_out_max {
            properties.reason_string = None;
        }
        self.send(&Packet::Disconnect(Box::new(Disconnect { reason, properties })));
    }

    /// DISCONNECT that names another server, if there is one to be named [MQTT 5.0, 4.11].
    pub fn send_elsewhere(&mut self, server: Option<&str>) {
        if self.version.is_v5() {
            let fits = server.filter(|s| 8 + s.len() as u32 <= self.packet_out_max);
            let properties = Properties { server_reference: fits, ..Properties::default() };
            self.send(&Packet::Disconnect(Box::new(Disconnect { reason: Reason::USE_ANOTHER_SERVER, properties })));
        }
    }

    /// Appends a PUBLISH; `shared` is the stored form, used for large payloads that many connections get.
    ///
    /// # Errors
    /// Says why it did not; the caller counts the drop.
    pub fn deliver(
        &mut self,
        d: &Deliver,
        m: &Message<'_>,
        shared: Option<&Stored>,
        now_ms: u64,
        pending_max: usize,
    ) -> Result<usize, Undelivered> {
        let topic = match &self.rare {
            Some(rare) => m.topic.strip_prefix(&*rare.mount_point).unwrap_or(m.topic),
            None => m.topic,
        };
        let mut head = PublishHead {
            version: self.version,
            dup: d.dup,
            qos: d.qos,
            retain: d.retain,
            id: d.id,
            topic,
            alias: None,
            expiry_s: m.head.remaining_s(now_ms),
            subscription_ids: &d.ids,
            forward: m.props,
            payload_len: m.payload.len(),
        };
        if self.packet_out_max < u32::MAX && publish_head_len(&head) > self.packet_out_max as usize {
            return Err(Undelivered::TooLarge);
        }
        // a session that replays retained messages hears of congestion one step later: what it has sent is not cut
        let max = if d.retain { pending_max + REPLAY_STEP_BYTES } else { pending_max };
        if d.qos == QoS::AtMostOnce && self.out.len() > max {
            return Err(Undelivered::SlowReader);
        }
        if let Some(aliases) = self.aliases_out.as_deref_mut() {
            let room = self.packet_out_max == u32::MAX || publish_head_len(&head) + 4 <= self.packet_out_max as usize;
            match aliases.ids.get(topic) {
                Some(&alias) => (head.alias, head.topic) = (Some(alias), ""),
                None if aliases.ids.len() < usize::from(aliases.max) && room => {
                    let alias = u16::try_from(aliases.ids.len() + 1).unwrap_or(u16::MAX);
                    aliases.ids.insert(topic.into(), alias);
                    head.alias = Some(alias);
                }
                None => {}
            }
        }
        let before = self.out.len();
        encode_publish_head(&head, self.out.buffer());
        self.out.payload(m.payload, shared);
        Ok(self.out.len() - before)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An idle connection and its session stay small: a million of them must fit.
    #[test]
    fn connections_and_sessions_stay_small() {
        let (connection, session) = (size_of::<Connection>(), size_of::<crate::session::Session>());
        assert!(connection <= 448 && session <= 352, "{connection} and {session}");
    }
}
