//! Every bound of the engine, with the reason code it answers and the counter that shows when it bites.
//!
//! Source: `docs/reference/limits.md` is generated from this file and `config.py`. A bound that is reached is
//! never silent: connections are refused with a reason code, messages are dropped with a [`Drop`] reason that is
//! counted and kept in the ledger.

use serde::Deserialize;

/// Largest packet that the protocol can say: header, four length bytes and what they count [MQTT 5.0, 1.5.5].
pub const PACKET_BYTES_PROTOCOL: u32 = 268_435_460;

/// Largest first packet: whoever has not said who it is may not fill memory. Twice what the five fields of a CONNECT
/// can hold, so that room is left for properties.
pub const CONNECT_BYTES_MAX: u32 = 640 * 1024;
/// Nodes of a cluster; each has places for its lanes in a mask of 64.
pub const NODES_MAX: u16 = 16;

/// Bounds; sizes in bytes, counts plain, times in milliseconds or seconds as the name says.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Largest packet accepted (0x95, closes), announced as Maximum Packet Size where it is below the protocol's own.
    pub packet_bytes_max: u32,
    /// Largest payload (PUBACK 0x95, drop reason `too_large`; CONNACK for a will); 0 means no bound of its own.
    pub payload_bytes_max: usize,
    /// Levels in a topic or filter (0x81, closes).
    pub topic_levels_max: usize,
    /// Length of a topic or filter (0x81, closes).
    pub topic_bytes_max: usize,
    /// Subscriptions of one session (SUBACK 0x97).
    pub subscriptions_max: usize,
    /// Messages waiting for one session (drop reason `queue_full`).
    pub queue_messages_max: usize,
    /// Bytes waiting for one session (drop reason `queue_bytes`).
    pub queue_bytes_max: usize,
    /// Messages waiting for all persistent sessions of one user (drop reason `user_full`); 0 means no bound.
    pub queue_user_messages_max: usize,
    /// Bytes waiting for all persistent sessions of one user (drop reason `user_full`); 0 means no bound.
    pub queue_user_bytes_max: usize,
    /// Messages waiting for all persistent sessions together (drop reason `total_full`); 0 means no bound.
    pub queue_total_messages_max: usize,
    /// Bytes waiting for all persistent sessions together (drop reason `total_full`); 0 means no bound.
    pub queue_total_bytes_max: usize,
    /// What happens when a session's queue is full.
    pub queue_policy: QueuePolicy,
    /// Unacknowledged messages towards one client; also bounded by its Receive Maximum.
    pub inflight_max: u16,
    /// Unacknowledged bytes towards one client; 0 means no bound.
    pub inflight_bytes_max: usize,
    /// Receive Maximum announced to clients (0x93, closes).
    pub receive_maximum: u16,
    /// Connections in total (CONNACK 0x97 / 3.1.1 code 3).
    pub connections_max: usize,
    /// Connections from one address (closed before CONNACK); 0 means no bound.
    pub connections_per_address_max: usize,
    /// Time from accept to a complete CONNECT, milliseconds (closes).
    pub connect_timeout_ms: u64,
    /// Handshakes (TLS, WebSocket, CONNECT) under way at once; more wait in the accept queue.
    pub handshakes_max: usize,
    /// Bytes waiting for a client's socket; above it QoS 0 is dropped (`slow_reader`) and QoS 1 and 2 wait.
    pub pending_output_bytes_max: usize,
    /// Retained messages (PUBACK 0x97, drop reason `retained_full`).
    pub retained_max: usize,
    /// Bytes of retained messages (PUBACK 0x97, drop reason `retained_full`).
    pub retained_bytes_max: usize,
    /// Topic aliases that a client may use, announced.
    pub topic_alias_max: u16,
    /// Keep alive is cut to this, seconds; 0 means no bound.
    pub keep_alive_max_s: u16,
    /// Session expiry is cut to this, seconds; `u32::MAX` means no bound.
    pub session_expiry_max_s: u32,
    /// Passwords waiting to be checked at once (CONNACK 0x97).
    pub auth_queue_max: usize,
    /// Failed logins from one address within a minute before answers are delayed.
    pub auth_failures_max: u32,
    /// Entries kept in the drop ledger of each lane.
    pub ledger_entries_max: usize,
    /// Messages in a batch queue between two lanes before a publisher's socket is not read.
    pub lane_queue_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            packet_bytes_max: 1024 * 1024,
            payload_bytes_max: 0,
            topic_levels_max: 201,
            topic_bytes_max: 65_535,
            subscriptions_max: 10_000,
            queue_messages_max: 10_000,
            queue_bytes_max: 64 * 1024 * 1024,
            queue_user_messages_max: 0,
            queue_user_bytes_max: 0,
            queue_total_messages_max: 0,
            queue_total_bytes_max: 0,
            queue_policy: QueuePolicy::DropNewest,
            inflight_max: 1_024,
            inflight_bytes_max: 0,
            receive_maximum: 1_024,
            connections_max: 1_000_000,
            connections_per_address_max: 0,
            connect_timeout_ms: 10_000,
            handshakes_max: 2_000,
            pending_output_bytes_max: 4 * 1024 * 1024,
            retained_max: 1_000_000,
            retained_bytes_max: 1024 * 1024 * 1024,
            topic_alias_max: 10,
            keep_alive_max_s: 0,
            session_expiry_max_s: u32::MAX,
            auth_queue_max: 1_000,
            auth_failures_max: 10,
            ledger_entries_max: 1_024,
            lane_queue_max: 100_000,
        }
    }
}

/// What happens to a message that finds a session's queue full.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QueuePolicy {
    /// The arriving message is dropped.
    #[default]
    DropNewest,
    /// The oldest message that was not sent yet is dropped.
    DropOldest,
    /// The publisher is told 0x97 when no queue at all took the message.
    Reject,
}

/// Why a message did not reach a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Drop {
    /// The session's queue holds `queue_messages_max`.
    QueueFull,
    /// The session's queue holds `queue_bytes_max`.
    QueueBytes,
    /// A QoS 0 message met a client whose pending output is full.
    SlowReader,
    /// Larger than the client's Maximum Packet Size.
    TooLarge,
    /// Message Expiry Interval ran out while it waited.
    Expired,
    /// The client refused it with a reason code >= 0x80.
    Refused,
    /// The session ended with messages waiting.
    SessionEnded,
    /// No room for another retained message.
    RetainedFull,
    /// No room in the queue of a shared group.
    GroupFull,
    /// The publisher may not publish to this topic.
    NotAuthorized,
    /// All queues together hold their bound.
    TotalFull,
    /// The queues of one user's sessions hold their bound.
    UserFull,
    /// The disk takes nothing at the moment (PUBACK 0x97).
    Disk,
    /// The message was damaged on disk.
    Damaged,
}

impl Drop {
    /// All reasons, in the order of their counters.
    pub const ALL: [Self; 14] = [
        Self::QueueFull,
        Self::QueueBytes,
        Self::SlowReader,
        Self::TooLarge,
        Self::Expired,
        Self::Refused,
        Self::SessionEnded,
        Self::RetainedFull,
        Self::GroupFull,
        Self::NotAuthorized,
        Self::TotalFull,
        Self::UserFull,
        Self::Disk,
        Self::Damaged,
    ];

    /// The label in metrics and in the ledger.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::QueueFull => "queue_full",
            Self::QueueBytes => "queue_bytes",
            Self::SlowReader => "slow_reader",
            Self::TooLarge => "too_large",
            Self::Expired => "expired",
            Self::Refused => "refused",
            Self::SessionEnded => "session_ended",
            Self::RetainedFull => "retained_full",
            Self::GroupFull => "group_full",
            Self::NotAuthorized => "not_authorized",
            Self::TotalFull => "total_full",
            Self::UserFull => "user_full",
            Self::Disk => "disk",
            Self::Damaged => "damaged",
        }
    }
}
