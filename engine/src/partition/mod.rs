//! The deterministic heart: one partition's sessions, retained messages and shared groups.
//!
//! `step(now, input, effects)` is a function of the state and its arguments: no socket, clock, thread or randomness, so
//! a test can drive any schedule. Every durable change is a record (`record`); what depends on a record is held back
//! until the log says that it is safe. Matching topics to subscribers is the lane's work (`tree`).

mod attach;
mod bodies;
mod carry;
mod deliver;
mod effect;
mod group;
mod journal;
mod peer;
mod publish;
mod recover;
mod subscribe;
mod walk;

#[cfg(test)]
mod group_tests;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

pub use bodies::{Ahead, Bodies};
pub use effect::{Body, Deliver, Dispatched, Effect, Effects, Granted, Subscriber};
pub use journal::{BodyCache, Journal};
pub use publish::{Match, Target};
pub use recover::Resumed;
pub use subscribe::Ask;
pub use walk::Walk;

use crate::channel::{ConnectionId, SessionRef, Token};
use crate::codec::{AckKind, QoS, Reason};
use crate::limits::{Drop as DropReason, Limits};
use crate::log::Position;
use crate::message::{Inbound, Stored};
use crate::queue::{GroupPlace, SubscriptionIds};
use crate::record::State;
pub use crate::session::Total;
use crate::session::{Attach, Session};
use crate::shared::Member;
use crate::timers::Timers;

/// The settings that a partition obeys.
#[derive(Debug, Clone, Default)]
pub struct Rules {
    /// Bounds.
    pub limits: Arc<Limits>,
    /// QoS 0 is queued for persistent sessions that are away.
    pub queue_qos0: bool,
    /// Deliver at the subscription's QoS.
    pub upgrade_qos: bool,
    /// QoS 1 leaves for a persistent session only when it is safe.
    pub deliver_after_safe: bool,
    /// Retained messages of all partitions together.
    pub retained: Arc<Total>,
    /// Messages waiting for persistent sessions, all partitions together.
    pub queued: Arc<Total>,
    /// The same by user.
    pub users: Arc<Users>,
    /// Bodies in memory.
    pub cache: Arc<BodyCache>,
    /// The disk takes nothing now: messages for persistent sessions are refused.
    pub disk_failing: Arc<AtomicBool>,
    /// Places that cannot keep up now, as a mask: QoS 0 for a connection there is dropped.
    pub slow: Arc<AtomicU64>,
    /// Each partition has a log of its own: what one wrote says nothing of what another did.
    pub many_logs: bool,
}

impl Rules {
    /// A connection there would have to wait long for what it is sent.
    fn is_slow(&self, place: u16) -> bool {
        self.slow.load(Ordering::Relaxed) & crate::ring::Ring::bit_of(place) != 0
    }
}

/// What waits for the sessions of each user, all partitions together.
#[derive(Debug, Default)]
pub struct Users(std::sync::Mutex<HashMap<Arc<str>, Arc<Total>>>);

impl Users {
    /// The account of a user.
    #[must_use]
    pub fn account(&self, name: &Arc<str>) -> Option<Arc<Total>> {
        let mut all = self.0.lock().ok()?;
        Some(Arc::clone(all.entry(Arc::clone(name)).or_default()))
    }
}

/// How a connection ended, as its session needs to know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Ending {
    /// The will is to be sent.
    pub will: bool,
    /// A new Session Expiry Interval from the DISCONNECT.
    pub expiry_s: Option<u32>,
}

/// What happens to a partition.
#[derive(Debug)]
#[expect(missing_docs, reason = "the fields are named after what they hold")]
pub enum Input<'a> {
    /// A connection asks for its session.
    Attach(Box<Attach>),
    /// A connection has ended and everything that it had accepted is answered.
    Detach {
        session: Option<SessionRef>,
        client_id: &'a str,
        connection: ConnectionId,
        ending: Ending,
    },
    /// A message for these targets of this partition.
    Publish {
        message: &'a Inbound<'a>,
        targets: &'a [Target],
        token: Option<Token>,
    },
    /// A retained message whose topic hashes here.
    Retain {
        message: &'a Inbound<'a>,
        token: Option<Token>,
    },
    /// A QoS 2 PUBLISH of this session: hold its identifier.
    Hold {
        session: SessionRef,
        id: u16,
        token: Token,
    },
    /// PUBREL, or a refusal, releases it; `answer` says whether PUBCOMP is due.
    Release {
        session: SessionRef,
        connection: ConnectionId,
        id: u16,
        answer: bool,
    },
    /// PUBACK, PUBREC or PUBCOMP of the subscriber.
    Ack {
        session: SessionRef,
        connection: ConnectionId,
        kind: AckKind,
        id: u16,
        reason: Reason,
    },
    /// The connection did not send this one, as it is too large for the client.
    TooLarge {
        session: SessionRef,
        id: u16,
    },
    Congested {
        session: SessionRef,
        congested: bool,
    },
    Resume {
        session: SessionRef,
    },
    /// CONNACK was sent: messages may follow.
    Opened {
        session: SessionRef,
    },
    /// Something waits until everything so far is safe.
    Fence {
        question: usize,
    },
    /// Everything up to a record is safe; the records of this batch begin at this address.
    Safe {
        number: u64,
        up_to: Position,
        address: u64,
    },
    /// Bodies from the disk, by index and address; `None` for a damaged one.
    Fetched {
        session: SessionRef,
        bodies: Vec<(u64, u64, Option<Stored>)>,
    },
    /// Retained messages for a subscription; `last` ends one pending answer.
    Replay {
        session: SessionRef,
        messages: Vec<Stored>,
        qos: QoS,
        ids: SubscriptionIds,
    },
    GroupJoin {
        group: &'a str,
        member: Member,
        again: bool,
    },
    GroupLeave {
        group: &'a str,
        session: SessionRef,
    },
    GroupAsk {
        group: &'a str,
        session: SessionRef,
    },
    GroupOnline {
        group: &'a str,
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
    /// A group's message for this session.
    Dispatch(Dispatched),
    /// After a restart every session has joined its groups again.
    GroupsSettled {
        /// Sessions are where they were named.
        found: bool,
    },
    ForgetOrigin {
        uid: u64,
    },
    /// Time has passed, or the log has moved.
    Tick,
}

/// One partition.
pub struct Partition {
    number: u16,
    state: State,
    rules: Rules,
    /// Effects that wait until a position is safe, in order.
    held_back: VecDeque<(Position, Effect)>,
    journal: Journal,
    /// Change of what persistent sessions wait for since the last batch: messages, bytes.
    wanted: (i64, i64),
    timers: Timers<(u32, u64)>,
    next_uid: u64,
    /// It is about to move: nothing is sent at QoS 1 and 2.
    paused: bool,
    /// Places of shared groups in the tree.
    group_slots: slab::Slab<u64>,
    now_ms: u64,
    /// Steps that it took and what they led to, since it is here: what it costs, compared with others of its lane.
    work: u64,
}

impl Partition {
    /// A step led to so much.
    pub const fn count_work(&mut self, effects: usize) {
        self.work += 1 + effects as u64;
    }

    /// See [`Self::count_work`].
    #[must_use]
    pub const fn work(&self) -> u64 {
        self.work
    }

    /// An empty partition; `number` of `P`. `incarnation` makes its uids unlike those of every run before; 0 means that
    /// nothing is logged.
    #[must_use]
    pub fn new(number: u16, rules: Rules, incarnation: u32) -> Self {
        Self {
            number,
            state: State::default(),
            rules,
            held_back: VecDeque::new(),
            journal: Journal::new(incarnation > 0, 0),
            wanted: (0, 0),
            timers: Timers::new(),
            next_uid: crate::record::make_uid(number, incarnation, 1),
            paused: false,
            work: 0,
            group_slots: slab::Slab::new(),
            now_ms: 0,
        }
    }

    /// New bounds after a reload.
    pub fn set_rules(&mut self, rules: Rules) {
        self.rules = rules;
    }

    /// Does one thing and appends what follows from it to `out`.
    pub fn step(&mut self, now_ms: u64, input: Input<'_>, out: &mut Effects) {
        self.now_ms = now_ms;
        match input {
            Input::Publish { message, targets, token } => self.publish(message, targets, token, out),
            Input::Ack { session, connection, kind, id, reason } => {
                self.ack(session, connection, kind, id, reason, out);
            }
            Input::Hold { session, id, token } => self.hold(session, id, token, out),
            Input::Release { session, connection, id, answer } => self.release(session, connection, id, answer, out),
            Input::Retain { message, token } => self.retain(message, token, out),
            Input::Attach(attach) => self.attach(attach, out),
            Input::Detach { session, client_id, connection, ending } => {
                self.detach(session, client_id, connection, ending, out);
            }
            Input::TooLarge { session, id } => self.too_large(session, id, out),
            Input::Congested { session, congested } => self.set_congested(session, congested, out),
            Input::Resume { session } => self.resume(session, out),
            Input::Replay { session, messages, qos, ids } => self.replay(session, messages, qos, &ids, out),
            Input::GroupJoin { group, member, again } => self.group_join(group, member, again, out),
            Input::GroupLeave { group, session } => self.group_leave(group, session, out),
            Input::GroupOnline { group, session, online, window } => {
                self.group_online(group, session, online, window, out);
            }
            Input::GroupDone { place, session } => self.group_done(place, session, out),
            Input::GroupReturn { place, session } => self.group_return(place, session, out),
            Input::Dispatch(dispatched) => self.dispatch(dispatched, out),
            Input::Safe { number, up_to, address } => self.made_safe(number, up_to, address, out),
            Input::Tick => self.tick(out),
            other => self.step_rare(other, out),
        }
    }

    fn step_rare(&mut self, input: Input<'_>, out: &mut Effects) {
        match input {
            Input::Opened { session } => self.opened(session, out),
            Input::Fence { question } => self.when_safe(Effect::Fenced { question }, out),
            Input::Fetched { session, bodies } => self.fetched(session, bodies, out),
            Input::GroupsSettled { found } => self.groups_settled(found, out),
            Input::GroupAsk { group, session } => self.group_asks(group, session, out),
            Input::ForgetOrigin { uid } => self.forget_origin(uid),
            _ => {}
        }
    }

    /// When `Tick` is due for the sake of time.
    #[must_use]
    pub fn next_ms(&self) -> Option<u64> {
        self.timers.next_ms()
    }

    /// The state, to look at.
    #[must_use]
    pub const fn state(&self) -> &State {
        &self.state
    }

    /// What it wrote and how far the log is with it.
    #[must_use]
    pub const fn journal(&self) -> &Journal {
        &self.journal
    }

    /// The uid that the next session gets.
    #[must_use]
    pub const fn next_uid(&self) -> u64 {
        self.next_uid
    }

    /// Numbers of batches begin here: lower ones were used by this node before.
    pub fn set_next_batch(&mut self, number: u64) {
        self.journal.begin_at(number);
    }

    /// Uids go on from here: a partition that is rebuilt must not give one twice.
    pub fn set_next_uid(&mut self, uid: u64) {
        self.next_uid = self.next_uid.max(uid);
    }

    /// Number of shared groups.
    #[must_use]
    pub fn groups(&self) -> usize {
        self.state.groups().len()
    }

    /// The session that a reference means, if it is still that one.
    #[must_use]
    pub fn session(&self, r: SessionRef) -> Option<&Session> {
        self.state.session(r.slot).filter(|s| s.uid == r.uid)
    }

    fn session_mut(&mut self, r: SessionRef) -> Option<&mut Session> {
        self.state.session_mut(r.slot).filter(|s| s.uid == r.uid)
    }

    fn new_uid(&mut self) -> u64 {
        self.next_uid += 1;
        self.next_uid - 1
    }

    /// Emits an effect once everything committed so far is safe.
    fn when_safe(&mut self, effect: Effect, out: &mut Effects) {
        if self.held_back.is_empty() && self.journal.all_safe() {
            out.push(effect);
        } else {
            self.held_back.push_back((self.journal.last(), effect));
        }
    }

    fn release_safe(&mut self, out: &mut Effects) {
        let safe = self.journal.safe();
        while self.held_back.front().is_some_and(|(at, _)| *at <= safe) {
            out.extend(self.held_back.pop_front().map(|(_, effect)| effect));
        }
    }

    fn tick(&mut self, out: &mut Effects) {
        while let Some((slot, uid)) = self.timers.due(self.now_ms) {
            self.time_up(SessionRef { partition: self.number, slot, uid }, out);
        }
    }

    fn forget_origin(&mut self, uid: u64) {
        if self.state.knows_origin(uid) {
            self.commit(true, crate::record::Record::OriginForgotten { uid });
        }
    }

    /// `topic` is empty if the message is on disk only.
    fn dropped(&self, slot: u32, topic: &str, qos: QoS, reason: DropReason, out: &mut Effects) {
        if let Some(session) = self.state.session(slot) {
            let (client_id, topic) = (session.client_id.clone(), topic.into());
            out.push(Effect::Dropped { client_id, topic, qos, reason });
        }
    }
}

impl std::fmt::Debug for Partition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Partition").field("number", &self.number).field("sessions", &self.state.len()).finish()
    }
}
