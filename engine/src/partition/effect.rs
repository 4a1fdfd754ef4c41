//! What a partition wants to be done: the answers of `step`, carried out by the lane in order.

use crate::channel::{ConnectionId, Outcome, SessionRef, Token};
use crate::codec::{QoS, Reason};
use crate::limits::Drop as DropReason;
use crate::log::Wanted;
use crate::message::{Origin, Stored};
use crate::queue::{GroupPlace, SubscriptionIds};
use crate::shared::Member;
use crate::tree::Keyed;
use serde::{Deserialize, Serialize};

/// A subscriber of one filter in a lane's tree: a session or a shared group, with its options.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Subscriber {
    /// Partition of the session or group.
    pub partition: u16,
    /// Place in the partition.
    pub slot: u32,
    /// A shared group.
    pub group: bool,
    /// Maximum QoS.
    pub qos: QoS,
    /// No Local.
    pub no_local: bool,
    /// Retain As Published.
    pub retain_as_published: bool,
    /// Subscription Identifier; 0 is none.
    pub id: u32,
}

impl Keyed for Subscriber {
    fn key(&self) -> u64 {
        u64::from(self.group) << 48 | u64::from(self.partition) << 32 | u64::from(self.slot)
    }
}

/// The payload of a delivery.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Body {
    /// The message that the lane is routing at this moment.
    Current,
    /// A message from a queue.
    Stored(Stored),
}

/// One PUBLISH for a connection.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Deliver {
    /// To whom.
    pub connection: ConnectionId,
    /// Packet identifier; 0 with QoS 0.
    pub id: u16,
    /// QoS.
    pub qos: QoS,
    /// Sent before.
    pub dup: bool,
    /// Retain flag.
    pub retain: bool,
    /// Subscription identifiers.
    pub ids: SubscriptionIds,
    /// The message.
    pub body: Body,
}

/// A group's message for one of its members.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Dispatched {
    /// To whom.
    pub to: SessionRef,
    /// Its place in the group; `None` for QoS 0, which the group does not keep.
    pub place: Option<GroupPlace>,
    /// The group and the number of this dispatch.
    pub origin: Origin,
    /// The message.
    pub message: Stored,
    /// QoS for this member.
    pub qos: QoS,
    /// Subscription Identifier of this member.
    pub id: u32,
}

/// An effect of a step.
#[derive(Debug)]
#[expect(missing_docs, reason = "the fields are named after what they hold")]
pub enum Effect {
    /// The session is there for the connection: CONNACK.
    Attached {
        connection: ConnectionId,
        session: SessionRef,
        present: bool,
    },
    /// The connection must end.
    Close {
        connection: ConnectionId,
        reason: Reason,
    },
    Deliver(Deliver),
    Pubrel {
        connection: ConnectionId,
        id: u16,
        reason: Reason,
    },
    Pubcomp {
        connection: ConnectionId,
        id: u16,
        reason: Reason,
    },
    /// The identifier of a QoS 2 publish is held: fan out under this origin.
    Held {
        token: Token,
        origin: Origin,
    },
    /// A part of the outcome of a publish.
    Answer {
        token: Token,
        outcome: Outcome,
    },
    Subscribe {
        filter: Box<str>,
        subscriber: Subscriber,
    },
    Unsubscribe {
        filter: Box<str>,
        key: u64,
    },
    /// `again` after a restart.
    GroupJoin {
        group: Box<str>,
        member: Member,
        again: bool,
    },
    GroupLeave {
        group: Box<str>,
        session: SessionRef,
    },
    /// Is this session still a member? If not, it says that it leaves.
    GroupAsk {
        group: Box<str>,
        session: SessionRef,
    },
    GroupOnline {
        group: Box<str>,
        session: SessionRef,
        online: bool,
        window: u32,
    },
    GroupDone {
        place: GroupPlace,
        session: SessionRef,
    },
    GroupReturn {
        place: GroupPlace,
        session: SessionRef,
    },
    /// A group's message for a member.
    Dispatch(Dispatched),
    /// Bodies that are on disk only.
    Fetch {
        session: SessionRef,
        wanted: Vec<Wanted>,
    },
    /// What waited for a fence may go.
    Fenced {
        question: usize,
    },
    /// A will, or what else the partition itself publishes.
    Publish {
        message: Stored,
    },
    ForgetOrigin {
        uid: u64,
    },
    /// There is more to send than one step may; step again with `Input::Resume`.
    Again {
        session: SessionRef,
    },
    Dropped {
        client_id: Box<str>,
        topic: Box<str>,
        qos: QoS,
        reason: DropReason,
    },
    SessionExpired {
        client_id: Box<str>,
    },
}

/// The effects of a step, reused from step to step.
pub type Effects = Vec<Effect>;

/// What a SUBSCRIBE got for one filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Granted {
    /// Code for the SUBACK.
    pub code: u8,
    /// The subscription existed before.
    pub existed: bool,
}
