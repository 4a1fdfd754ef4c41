//! Every durable change of a partition as a record, and `apply`, the only way in which durable state changes: live, in
//! replay, and on a standby later.
//!
//! A record names what happened, not how: applying the same records in the same order gives the same state, and applying
//! one again changes nothing. Records of sessions that end with their connection are applied and not logged. Bytes and
//! meaning are drawn in `docs/formats/log.md`.

mod apply;
mod decode;
mod digest;
mod encode;
mod replay;
mod wire;

pub use apply::State;
pub use decode::{Reader, WireError, WireMessage, next_record, read_message, read_record, record_len};
pub use digest::{digest, digest_of_origins};
pub use encode::{Moves, encode, encode_moved, encode_origin, encode_queue, encode_session};
pub use replay::{Replay, Replayed};
pub use wire::{make_uid, uid_parts};

use crate::codec::QoS;
use crate::message::{Origin, Stored};
use crate::queue::Extra;
use crate::session::{Subscription, Will};

/// One delivery within an `Enqueued` record.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// The session, by its place.
    pub slot: u32,
    /// Index in its queue.
    pub index: u64,
    /// QoS of the delivery.
    pub qos: QoS,
    /// Retain flag of the delivery.
    pub retain: bool,
    /// Its session outlives its connection.
    pub durable: bool,
    /// Subscription identifiers and place in a shared group.
    pub extra: Option<Box<Extra>>,
}

/// A durable change.
#[derive(Debug)]
#[expect(missing_docs, reason = "the fields are named after what they hold; the table is in docs/formats/log.md")]
pub enum Record<'a> {
    SessionOpened {
        client_id: &'a str,
        uid: u64,
        expiry_s: u32,
        logged: bool,
        maker: u64,
    },
    SessionAttached {
        slot: u32,
        expiry_s: u32,
    },
    SessionDetached {
        slot: u32,
        expiry_s: u32,
        ends_at_ms: u64,
        will_at_ms: u64,
        sent: u64,
    },
    SessionEnded {
        slot: u32,
    },
    Subscribed {
        slot: u32,
        filter: &'a str,
        subscription: Subscription,
    },
    Unsubscribed {
        slot: u32,
        filter: &'a str,
    },
    /// The body once, for each session its place in the queue; the origin is taken in the same record.
    Enqueued {
        message: &'a Stored,
        origin: Origin,
        to: &'a [Delivery],
    },
    /// The subscriber has answered PUBREC.
    Received {
        slot: u32,
        index: u64,
    },
    /// The subscriber is done with it, or it was dropped.
    Acknowledged {
        slot: u32,
        index: u64,
    },
    /// A group's message that its member gives back: unlike a finished one it is told to be so when it comes again.
    GivenBack {
        slot: u32,
        index: u64,
        group: u64,
        n: u64,
    },
    /// The same of a message that has never come into a queue.
    NotTaken {
        group: u64,
        n: u64,
    },
    /// First sight of a QoS 2 identifier of a publisher.
    Held {
        slot: u32,
        id: u16,
        n: u64,
    },
    Released {
        slot: u32,
        id: u16,
    },
    RetainedSet {
        message: &'a Stored,
    },
    RetainedCleared {
        topic: &'a str,
    },
    WillArmed {
        slot: u32,
        will: Box<Will>,
    },
    WillDisarmed {
        slot: u32,
    },
    OriginForgotten {
        uid: u64,
    },
    /// `base` and `last_n` are those of a checkpoint; a new group has 0.
    GroupOpened {
        uid: u64,
        name: &'a str,
        base: u64,
        last_n: u64,
    },
    GroupClosed {
        uid: u64,
    },
    GroupEnqueued {
        uid: u64,
        index: u64,
        message: &'a Stored,
        origin: Origin,
    },
    /// Given to a member as the group's dispatch number n.
    GroupGiven {
        uid: u64,
        index: u64,
        n: u64,
        partition: u16,
        member: u64,
    },
    GroupReturned {
        uid: u64,
        index: u64,
    },
    GroupDone {
        uid: u64,
        index: u64,
    },
}

impl Record<'_> {
    /// The session that the record is about, if it is about one.
    #[must_use]
    pub const fn slot(&self) -> Option<u32> {
        match self {
            Self::SessionAttached { slot, .. }
            | Self::SessionDetached { slot, .. }
            | Self::SessionEnded { slot }
            | Self::Subscribed { slot, .. }
            | Self::Unsubscribed { slot, .. }
            | Self::Received { slot, .. }
            | Self::Acknowledged { slot, .. }
            | Self::GivenBack { slot, .. }
            | Self::Held { slot, .. }
            | Self::Released { slot, .. }
            | Self::WillArmed { slot, .. }
            | Self::WillDisarmed { slot } => Some(*slot),
            _ => None,
        }
    }
}
