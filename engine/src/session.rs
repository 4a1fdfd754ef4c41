//! The state side of a client: subscriptions, queue, windows, will, expiry. It knows its connection by name only.
//!
//! Durable fields change only in `record`; those of the present channel are marked below and vanish with it.

use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use foldhash::fast::RandomState;
use hashbrown::{HashMap, HashSet};

use crate::access::Rules;
use crate::channel::ConnectionId;
use crate::codec::QoS;
use crate::inflight::Held;
use crate::message::Stored;
use crate::queue::{Queue, SubscriptionIds};

/// Session Expiry Interval that never ends [MQTT 5.0, 3.1.2.11.2].
pub const NEVER: u32 = u32::MAX;

/// What a client asked for with one filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Subscription {
    /// Maximum QoS, as granted.
    pub qos: QoS,
    /// No Local.
    pub no_local: bool,
    /// Retain As Published.
    pub retain_as_published: bool,
    /// Subscription Identifier; 0 is none.
    pub id: u32,
}

/// A will as it waits: properties and payload as the client gave them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Will {
    /// Topic name.
    pub topic: Box<str>,
    /// Payload.
    pub payload: Box<[u8]>,
    /// Properties to pass on, encoded.
    pub props: Box<[u8]>,
    /// QoS.
    pub qos: QoS,
    /// Retain flag.
    pub retain: bool,
    /// Message Expiry Interval, counted from the moment it is sent.
    pub expiry_s: Option<u32>,
    /// Will Delay Interval.
    pub delay_s: u32,
    /// The client named no Session Expiry Interval: its delay is kept although the session ends with the connection.
    pub outlives: bool,
}

/// How many messages several places hold together, and their bytes.
#[derive(Debug, Default)]
pub struct Total {
    count: AtomicUsize,
    bytes: AtomicUsize,
}

impl Total {
    /// Messages and bytes.
    #[must_use]
    pub fn totals(&self) -> (usize, usize) {
        (self.count.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed))
    }

    /// So many more, or fewer.
    pub fn shift(&self, count: i64, bytes: i64) {
        self.count.fetch_add(count as usize, Ordering::Relaxed); // negative ones wrap around, as they should
        self.bytes.fetch_add(bytes as usize, Ordering::Relaxed);
    }
}

/// A connection that asks for its session.
#[derive(Debug, Serialize, Deserialize)]
pub struct Attach {
    /// Who asks.
    pub connection: ConnectionId,
    /// Client id, given or assigned.
    pub client_id: Box<str>,
    /// Clean Start.
    pub clean: bool,
    /// Session Expiry Interval.
    pub expiry_s: u32,
    /// The client's Receive Maximum.
    pub receive_maximum: u16,
    /// Will of this connection.
    pub will: Option<Box<Will>>,
    /// What the client may do.
    pub rules: Rules,
    /// Username, if its queues are bounded together.
    pub username: Option<Arc<str>>,
    /// Name of this CONNECT, which no other has; 0 where nobody asks a second time for one.
    pub maker: u64,
}

/// The session's end of the channel; it exists while a connection is attached.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Channel {
    /// The other end.
    pub connection: ConnectionId,
    /// Most unacknowledged messages.
    pub window: u16,
    /// The connection cannot take more for now.
    pub congested: bool,
    /// CONNACK has not been sent: nothing may go before it.
    pub opening: bool,
}

/// Retained messages on their way to a new subscription, fed a window at a time.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Replay {
    /// What is still to be sent: message, QoS, subscription identifiers.
    pub items: VecDeque<(Stored, QoS, SubscriptionIds)>,
    /// Topics of which a live message has passed meanwhile: an older retained one must not follow it.
    pub passed: HashSet<Box<str>, RandomState>,
    /// Answers of other places that are not here yet.
    pub pending: u32,
}

/// One session.
#[derive(Debug, Serialize, Deserialize)]
pub struct Session {
    /// Never used again.
    pub uid: u64,
    /// Client id.
    pub client_id: Box<str>,
    /// Session Expiry Interval; 0 ends with the connection.
    pub expiry_s: u32,
    /// The log knows it: its end must be a record, whatever its expiry is then.
    pub logged: bool,
    /// Its last connection has ended.
    pub away: bool,
    /// The CONNECT that made it, as long as that was not answered: asked again elsewhere, it finds no session of its client,
    /// but its own [MQTT-3.2.2-3]. 0: another one has found it.
    pub maker: u64,
    /// Volatile: bodies are on their way from the disk.
    pub fetching: bool,
    /// Engine time at which it ends; 0 while connected or for ever.
    pub ends_at_ms: u64,
    /// Engine time at which the will is due; 0 if none waits.
    pub will_at_ms: u64,
    /// The will of the present or last connection.
    pub will: Option<Box<Will>>,
    /// Filter (with `$share/...`) to what was asked for.
    pub subscriptions: HashMap<Box<str>, Subscription, RandomState>,
    /// Messages towards the client.
    pub queue: Queue,
    /// QoS 2 identifiers of the client.
    pub held: Option<Box<Held>>,
    /// What the client may do; that of the last connection while it is away.
    pub rules: Rules,
    /// Volatile: what waits for all sessions of the user, if that is bounded.
    #[serde(skip)]
    pub user: Option<Arc<Total>>,
    /// Volatile: the channel.
    pub channel: Option<Channel>,
    /// Volatile: who waits until the present connection has ended.
    pub next: Option<Box<Attach>>,
    /// Volatile: retained messages on their way.
    pub replay: Option<Box<Replay>>,
}

impl Session {
    /// True if the session outlives its connection: its changes are worth a record.
    #[must_use]
    pub const fn durable(&self) -> bool {
        self.expiry_s > 0
    }

    /// Room in the window towards the client.
    #[must_use]
    pub fn can_send(&self, inflight_bytes_max: usize) -> Option<Channel> {
        let channel = self.channel?;
        let open = self.queue.open();
        let bytes_ok = inflight_bytes_max == 0 || open == 0 || self.queue.open_bytes() < inflight_bytes_max;
        (!channel.congested && !channel.opening && open < u32::from(channel.window) && bytes_ok).then_some(channel)
    }
}
