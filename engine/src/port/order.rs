//! Orders: what may be asked of a running engine, and the faults that tests ask for.

use std::sync::Arc;

use serde::Deserialize;

use super::Config;
use crate::access::Login;
use crate::codec::Reason;
use crate::settings::Settings;

const fn administrative() -> u8 {
    Reason::ADMINISTRATIVE.0
}

/// A node among the members.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the table is in docs/formats/door.md")]
pub struct MemberOrder {
    pub slot: u16,
    pub incarnation: u64,
    pub address: std::net::SocketAddr,
    pub lanes: u16,
}

/// A command of `docs/formats/door.md`.
#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case", deny_unknown_fields)]
#[expect(missing_docs, reason = "the table is in docs/formats/door.md")]
pub enum Order {
    Publish {
        topic: String,
        payload: String,
        #[serde(default)]
        qos: u8,
        #[serde(default)]
        retain: bool,
    },
    Disconnect {
        client_id: String,
        #[serde(default = "administrative")]
        reason: u8,
        #[serde(default)]
        silent: bool,
        #[serde(default)]
        drop_will: bool,
    },
    Advance {
        ms: u64,
    },
    Refuse {
        what: String,
        #[serde(rename = "match")]
        wanted: String,
        reason: u8,
        #[serde(default)]
        times: Option<u32>,
    },
    Delay {
        #[serde(rename = "match")]
        wanted: String,
        ms: u64,
    },
    ClearFaults,
    Reload {
        settings: Box<Settings>,
    },
    /// `light`: counters only, without a walk over all sessions.
    Stats {
        id: u64,
        #[serde(default)]
        light: bool,
    },
    Drops {
        id: u64,
        #[serde(default)]
        client_id: Option<String>,
    },
    Why {
        id: u64,
        client_id: String,
        #[serde(default)]
        topic: Option<String>,
    },
    Export {
        id: u64,
        file: String,
    },
    Members {
        version: u64,
        nodes: Vec<MemberOrder>,
    },
    /// By partition: slot of its owner (-1 is nobody) and epoch.
    Table {
        version: u64,
        partitions: Vec<(i32, u32)>,
        /// By partition: an epoch that its log has obeyed; empty if nothing is known.
        #[serde(default)]
        served: Vec<u32>,
    },
    /// A partition of this node shall move to the node with this slot, with everything it knows.
    Move {
        partition: u16,
        slot: u16,
    },
    /// A partition of this node shall be cut in two; the new one has the next number.
    Split {
        partition: u16,
        child: u16,
    },
    /// These members are answered no more: this node has reported them silent.
    Bind {
        slots: Vec<u16>,
    },
    /// So many connections shall go to other nodes: those whose sessions are elsewhere first. `servers`: addresses by slot.
    Shed {
        count: u32,
        #[serde(default)]
        servers: Vec<(u16, String)>,
    },
    Stop {
        #[serde(default)]
        grace_ms: u64,
    },
    /// Inside: the lanes look at the clock.
    #[serde(skip)]
    Wake,
    /// Inside: a configuration that was read without error.
    #[serde(skip)]
    Apply {
        config: Arc<Config>,
    },
    /// Inside: end now.
    #[serde(skip)]
    End,
}

/// A fault that a test asked for; at most `left` times.
#[derive(Debug, Clone)]
pub struct Fault {
    what: String,
    wanted: String,
    reason: Reason,
    delay_ms: u64,
    left: u32,
}

impl Fault {
    /// From an order, if it is one.
    #[must_use]
    pub fn from_order(order: &Order) -> Option<Self> {
        match order {
            Order::Refuse { what, wanted, reason, times } => Some(Self {
                what: what.clone(),
                wanted: wanted.clone(),
                reason: Reason(*reason),
                delay_ms: 0,
                left: times.unwrap_or(u32::MAX),
            }),
            Order::Delay { wanted, ms } => Some(Self {
                what: "delay".to_owned(),
                wanted: wanted.clone(),
                reason: Reason::SUCCESS,
                delay_ms: *ms,
                left: u32::MAX,
            }),
            _ => None,
        }
    }

    fn hits(&self, what: &str, name: &str) -> bool {
        self.left > 0 && self.what == what && (self.wanted == "*" || crate::topic::matches(&self.wanted, name))
    }

    /// For a CONNECT with this client id.
    #[must_use]
    pub fn hits_connect(&self, login: &Login<'_>) -> bool {
        self.left > 0 && self.what == "connect" && (self.wanted == "*" || self.wanted == login.client_id)
    }

    /// For a PUBLISH to this topic.
    #[must_use]
    pub fn hits_publish(&self, topic: &str) -> bool {
        self.hits("publish", topic)
    }

    /// For a SUBSCRIBE with this filter.
    #[must_use]
    pub fn hits_subscribe(&self, filter: &str) -> bool {
        self.left > 0 && self.what == "subscribe" && (self.wanted == "*" || self.wanted == filter)
    }

    /// How long the output of a client is held back.
    #[must_use]
    pub fn delays(&self, client_id: &str) -> Option<u64> {
        let hit = self.what == "delay" && (self.wanted == "*" || self.wanted == client_id);
        hit.then_some(self.delay_ms)
    }

    /// Uses the fault once; the reason to answer.
    pub const fn take(&mut self) -> Reason {
        self.left = self.left.saturating_sub(1);
        self.reason
    }
}
