//! The deterministic heart: one partition's sessions, retained messages and shared groups.
//!
//! `step(now, input, effects)` is a function of the state and its arguments: no socket, clock, thread or randomness, so
//! a test can drive any schedule. Every durable change is a record (`record`); what depends on a record is held back
//! until the log says that it is safe. Matching topics to subscribers is the lane's work (`tree`).

mod attach;
mod deliver;
mod effect;
mod group;
mod peer;
mod publish;
mod subscribe;

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hashbrown::HashMap;
use slab::Slab;

pub use effect::{Body, Deliver, Effect, Effects, Granted, Subscriber};
pub use publish::{Match, Target};
pub use subscribe::Ask;

use crate::channel::{ConnectionId, SessionRef, Token};
use crate::codec::{AckKind, QoS, Reason};
use crate::limits::{Drop as DropReason, Limits};
use crate::log::{Log, Position};
use crate::message::{Inbound, Stored};
use crate::queue::{GroupPlace, SubscriptionIds};
use crate::record::{Record, State};
use crate::session::{Attach, Session};
use crate::shared::{Group, Member};
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
    /// Retained messages of all partitions together.
    pub retained: Arc<RetainedTotal>,
}

/// How many retained messages all partitions hold together, and their bytes.
#[derive(Debug, Default)]
pub struct RetainedTotal {
    count: AtomicUsize,
    bytes: AtomicUsize,
}

impl RetainedTotal {
    /// Messages and bytes.
    #[must_use]
    pub fn totals(&self) -> (usize, usize) {
        (self.count.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed))
    }

    fn shift(&self, before: (usize, usize), now: (usize, usize)) {
        self.count.fetch_add(now.0.wrapping_sub(before.0), Ordering::Relaxed);
        self.bytes.fetch_add(now.1.wrapping_sub(before.1), Ordering::Relaxed);
    }
}

/// How a connection ended, as its session needs to know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
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
    },
    GroupLeave {
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
        sent: bool,
    },
    /// A group's message for this session.
    Dispatch {
        to: SessionRef,
        place: Option<GroupPlace>,
        message: Stored,
        qos: QoS,
        id: u32,
    },
    ForgetOrigin {
        uid: u64,
    },
    /// End the session of a client, connected or not.
    Kick {
        client_id: &'a str,
        reason: Reason,
    },
    /// Time has passed, or the log has moved.
    Tick,
}

/// One partition.
pub struct Partition {
    number: u16,
    state: State,
    log: Box<dyn Log>,
    rules: Rules,
    /// Effects that wait until a position is safe, in order.
    held_back: VecDeque<(Position, Effect)>,
    last: Position,
    timers: Timers<(u32, u64)>,
    next_uid: u64,
    groups: Slab<Group>,
    group_names: HashMap<Box<str>, usize>,
    now_ms: u64,
}

impl Partition {
    /// An empty partition; `number` of `P`, uids unique in it.
    #[must_use]
    pub fn new(number: u16, rules: Rules, log: Box<dyn Log>) -> Self {
        Self {
            number,
            state: State::default(),
            log,
            rules,
            held_back: VecDeque::new(),
            last: 0,
            timers: Timers::new(),
            next_uid: (u64::from(number) << 48) + 1,
            groups: Slab::new(),
            group_names: HashMap::new(),
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
            Input::GroupJoin { group, member } => self.group_join(group, member, out),
            Input::GroupLeave { group, session } => self.group_leave(group, session, out),
            Input::GroupOnline { group, session, online, window } => {
                self.group_online(group, session, online, window, out);
            }
            Input::GroupDone { place, session } => self.group_done(place, session, out),
            Input::GroupReturn { place, session, sent } => self.group_return(place, session, sent, out),
            Input::Dispatch { to, place, message, qos, id } => self.dispatch(to, place, &message, qos, id, out),
            Input::ForgetOrigin { uid } => self.commit(true, Record::OriginForgotten { uid }).1,
            Input::Kick { client_id, reason } => self.kick(client_id, reason, out),
            Input::Tick => self.tick(out),
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

    /// Number of shared groups.
    #[must_use]
    pub fn groups(&self) -> usize {
        self.groups.len()
    }

    /// The session that a reference means, if it is still that one.
    #[must_use]
    pub fn session(&self, r: SessionRef) -> Option<&Session> {
        self.state.session(r.slot).filter(|s| s.uid == r.uid)
    }

    fn session_mut(&mut self, r: SessionRef) -> Option<&mut Session> {
        self.state.session_mut(r.slot).filter(|s| s.uid == r.uid)
    }

    /// Logs the record if it is worth it, applies it, and returns the place that `SessionOpened` made.
    fn commit(&mut self, durable: bool, record: Record<'_>) -> (u32, ()) {
        if durable {
            self.last = self.log.append(&record);
        }
        (self.state.apply(record), ())
    }

    /// Emits an effect once everything committed so far is safe.
    fn when_safe(&mut self, effect: Effect, out: &mut Effects) {
        if self.held_back.is_empty() && self.log.safe() >= self.last {
            out.push(effect);
        } else {
            self.held_back.push_back((self.last, effect));
        }
    }

    fn tick(&mut self, out: &mut Effects) {
        let safe = self.log.safe();
        while self.held_back.front().is_some_and(|(at, _)| *at <= safe) {
            out.extend(self.held_back.pop_front().map(|(_, effect)| effect));
        }
        while let Some((slot, uid)) = self.timers.due(self.now_ms) {
            self.time_up(SessionRef { partition: self.number, slot, uid }, out);
        }
    }

    fn dropped(&self, slot: u32, message: &Stored, qos: QoS, reason: DropReason, out: &mut Effects) {
        if let Some(session) = self.state.session(slot) {
            let (client_id, topic) = (session.client_id.clone(), message.view().topic.into());
            out.push(Effect::Dropped { client_id, topic, qos, reason });
        }
    }
}

impl std::fmt::Debug for Partition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Partition").field("number", &self.number).field("sessions", &self.state.len()).finish()
    }
}
