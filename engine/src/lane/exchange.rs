//! Between lanes: mailboxes of batches, and what is said in them. Nodes will say the same over links.
//!
//! A mailbox is one lock per batch, never per message. Each lane counts what it has sent to and received from each
//! other one; a confirmation names these counts, so that a question about retained messages is answered only after
//! everything that was sent before the confirmation has been applied.

use serde::{Deserialize, Serialize};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use mio::{Poll, Token as Place, Waker};

use super::fleet::post_to_node;
use super::query::RetainedQuery;
use super::relay::{ToConnection, ToSession};
use super::{Flow, Lane, Late, Todo};
use crate::access::{Grant, Refusal};
use crate::channel::{ConnectionId, Outcome, SessionRef, Token};
use crate::connection::Connection;
use crate::interest::Delta;
use crate::log::{Anchor, ClusterLogEvent, LogEvent};
use crate::message::{Inbound, Stored};
use crate::net::Transport;
use crate::partition::{Dispatched, Input};
use crate::port::Order;
use crate::queue::GroupPlace;
use crate::shared::Member;
use crate::stats::Counter;

/// Messages for which the batch of another node's lane keeps room.
const BATCH_KEPT: usize = 1_024;

/// A SUBACK that waits, in the lane that asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// The lane that asks.
    pub lane: u16,
    /// Its place in that lane's table.
    pub key: usize,
}

/// Something for a partition of another lane (or of this one, later in the tick).
#[derive(Debug, Clone, Serialize, Deserialize)]
#[expect(missing_docs, reason = "as `partition::Input`, but owned")]
pub enum Conveyed {
    GroupLeave { group: Box<str>, session: SessionRef },
    GroupOnline { group: Box<str>, session: SessionRef, online: bool, window: u32 },
    GroupDone { place: GroupPlace, session: SessionRef },
    GroupReturn { place: GroupPlace, session: SessionRef },
    Dispatch(Dispatched),
    GroupAsk { group: Box<str>, session: SessionRef },
}

/// For which partitions of its receiver a publish is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Meant {
    /// For all that want it, and for which the receiver spoke when the sender heard of it last.
    All,
    /// The same without these: they wait for what was asked before.
    Except(Vec<u16>),
    /// For these, which have waited.
    Only(Vec<u16>),
}

/// What one lane says to another.
#[expect(missing_docs, reason = "the fields are named after what they hold")]
#[derive(Debug, Serialize, Deserialize)]
pub enum LaneMessage {
    Publish {
        message: Stored,
        token: Option<Token>,
        /// The version of the receiver's interest that the sender knows: partitions that it speaks for since are not meant.
        known: u64,
        meant: Meant,
    },
    Retain {
        partition: u16,
        message: Stored,
        token: Option<Token>,
    },
    Answer {
        token: Token,
        outcome: Outcome,
        /// Partitions that have not acted, as they are elsewhere now.
        missing: Vec<u16>,
    },
    ToSession {
        partition: u16,
        what: ToSession,
    },
    ToConnection {
        connection: ConnectionId,
        what: ToConnection,
    },
    Interest(Delta),
    Confirm {
        version: u64,
        sent: Vec<u64>,
        /// Which starts of the other nodes these counts are of.
        nodes: Vec<(u16, u64)>,
    },
    Ask(RetainedQuery),
    Replay {
        gathering: u64,
        messages: Vec<Stored>,
    },
    Convey {
        partition: u16,
        what: Conveyed,
    },
    Join {
        group: Box<str>,
        member: Member,
        again: bool,
        question: Option<Question>,
    },
    Joined {
        key: usize,
    },
    Forget {
        uid: u64,
    },
    Restarted,
    /// A partition of the sender is about to move: what is for it waits.
    Halt {
        partition: u16,
        epoch: u32,
        /// It is cut in two: what is for this part of it waits too.
        child: Option<u16>,
    },
    /// Nothing more comes for it from here.
    Halted {
        partition: u16,
        epoch: u32,
    },
    /// It does not move after all.
    GoOn {
        partition: u16,
        epoch: u32,
    },
    /// A part of a sealed partition; the last one says up to where its log goes, and what that has behind its last checkpoint.
    Luggage {
        partition: u16,
        epoch: u32,
        #[serde(with = "serde_bytes")]
        part: Vec<u8>,
        sealed: Option<(Anchor, usize)>,
    },
    /// There is no such connection any more.
    Gone {
        connection: ConnectionId,
    },
    /// No connection of the sender belongs to a session of this partition.
    Apart {
        partition: u16,
    },
    /// Messages of a partition that is about to move, while it serves; the number of the first.
    Ahead {
        partition: u16,
        epoch: u32,
        first: u32,
        #[serde(with = "serde_bytes")]
        part: Vec<u8>,
    },
    // these never leave the process; they stand last, as the others are numbered on links
    #[serde(skip)]
    Socket {
        listener: u16,
        transport: Box<Transport>,
    },
    #[serde(skip)]
    Connection(Box<Connection>),
    #[serde(skip)]
    Checked {
        connection: ConnectionId,
        result: Box<Result<Grant, Refusal>>,
    },
    #[serde(skip)]
    Phase(u8),
    #[serde(skip)]
    Log(LogEvent),
    #[serde(skip)]
    Order(Order),
    /// A node can be talked to, and has forgotten everything.
    #[serde(skip)]
    Peer {
        slot: u16,
        incarnation: u64,
    },
    #[serde(skip)]
    ClusterLog(ClusterLogEvent),
    /// A batch from a lane of another node, with that node's engine time.
    #[serde(skip)]
    Linked {
        from: u16,
        incarnation: u64,
        now_ms: u64,
        bytes: Vec<u8>,
    },
}

/// Where others leave messages for a lane.
#[derive(Debug)]
pub struct Mailbox {
    batches: Mutex<Vec<(u16, Vec<LaneMessage>)>>,
    waiting: AtomicUsize,
    waker: Mutex<Option<Waker>>,
}

impl Mailbox {
    /// The mailbox of the lane with this poll.
    ///
    /// # Errors
    /// The operating system refuses a waker.
    pub fn new(poll: &Poll) -> std::io::Result<Self> {
        let waker = Waker::new(poll.registry(), super::WAKER)?;
        Ok(Self { batches: Mutex::default(), waiting: AtomicUsize::new(0), waker: Mutex::new(Some(waker)) })
    }

    /// The lane has another poll now, which is woken at once: what waits here has woken the old one.
    pub fn rewire(&self, poll: &Poll, place: Place) {
        if let Ok(mut waker) = self.waker.lock() {
            *waker = Waker::new(poll.registry(), place).ok();
            if let Some(waker) = waker.as_ref() {
                let _ = waker.wake();
            }
        }
    }

    /// Leaves a batch and wakes the lane.
    pub fn post(&self, from: u16, batch: Vec<LaneMessage>) {
        self.waiting.fetch_add(batch.len(), Ordering::Relaxed);
        let first = match self.batches.lock() {
            Ok(mut batches) => {
                batches.push((from, batch));
                batches.len() == 1
            }
            Err(_) => return,
        };
        if first {
            self.wake();
        }
    }

    /// The lane shall look around.
    pub fn wake(&self) {
        if let Some(waker) = self.waker.lock().ok().as_deref().and_then(Option::as_ref) {
            let _ = waker.wake();
        }
    }

    /// Messages waiting.
    #[must_use]
    pub fn len(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// True without messages.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn take(&self) -> Vec<(u16, Vec<LaneMessage>)> {
        if self.is_empty() {
            return Vec::new();
        }
        let batches = self.batches.lock().map(|mut b| std::mem::take(&mut *b)).unwrap_or_default();
        let n: usize = batches.iter().map(|b| b.1.len()).sum();
        self.waiting.fetch_sub(n, Ordering::Relaxed);
        batches
    }
}

impl Lane {
    /// Puts a message into the batch for another lane, sent at the end of the tick.
    pub(super) fn send(&mut self, to: u16, message: LaneMessage) {
        if to == self.number {
            return self.on_message(to, message);
        }
        if !self.reaches(to) {
            return;
        }
        let at = usize::from(to);
        if let Some(n) = self.sent.get_mut(at) {
            *n += 1;
        }
        if let Some(batch) = self.outgoing.get_mut(at) {
            batch.push(message);
        }
    }

    /// Something for a partition: of this lane later in the tick, of another lane by its mailbox.
    pub(super) fn convey(&mut self, partition: u16, what: Conveyed) {
        if self.shared.ring.home(partition) == self.number && !self.is_halted(partition) {
            self.todo.push_back(Todo::Partition { partition, what });
        } else {
            self.post_to(partition, LaneMessage::Convey { partition, what });
        }
    }

    pub(super) fn send_mail(&mut self) {
        if let Some(delta) = self.interest.take_delta() {
            self.send_all(|| LaneMessage::Interest(delta.clone()));
        }
        for (to, batch) in (0..).zip(&mut self.outgoing) {
            if batch.is_empty() {
                continue;
            }
            self.stats.add(Counter::lane_messages, batch.len() as u64);
            match self.shared.mailbox(to) {
                Some(mailbox) => mailbox.post(self.number, std::mem::take(batch)),
                None => {
                    post_to_node(&self.shared, &self.nodes, self.number, to, batch);
                    batch.clear();
                    batch.shrink_to(BATCH_KEPT);
                }
            }
        }
    }

    /// After a panic, with a log: what this tick was about to say was never said, as its records may be lost (the number of
    /// a message would be used again for another one). Sockets go on to where they belong; peers are still confirmed.
    pub(super) fn take_back_mail(&mut self) {
        if self.shared.log.is_none() {
            return;
        }
        for (batch, sent) in self.outgoing.iter_mut().zip(&mut self.sent) {
            let before = batch.len();
            batch.retain(|m| {
                matches!(m, LaneMessage::Socket { .. } | LaneMessage::Connection(_) | LaneMessage::Confirm { .. })
            });
            *sent -= (before - batch.len()) as u64;
        }
        for message in self.outgoing.iter_mut().flatten() {
            if let LaneMessage::Confirm { sent, .. } = message {
                sent.clone_from(&self.sent);
            }
        }
    }

    pub(super) fn receive_mail(&mut self) {
        let Some(mailbox) = self.shared.mailbox(self.number) else { return };
        self.inbox.extend(mailbox.take().into_iter().map(|(from, batch)| (from, batch.into_iter())));
        if self.inbox.is_empty() {
            return;
        }
        while let Some((from, batch)) = self.inbox.front_mut() {
            let (from, message) = (*from, batch.next());
            let Some(message) = message else {
                self.inbox.pop_front();
                continue;
            };
            let counts = !matches!(message, LaneMessage::Linked { .. } | LaneMessage::Peer { .. });
            if from != self.number && counts {
                if let Some(n) = self.received.get_mut(usize::from(from)) {
                    *n += 1;
                }
            }
            self.on_message(from, message);
            self.work();
        }
        self.answer_deferred();
    }

    pub(super) fn on_message(&mut self, from: u16, message: LaneMessage) {
        match message {
            LaneMessage::Publish { message, token, known, meant } => {
                self.on_forwarded(&message, token, known, &meant);
            }
            LaneMessage::Answer { token, outcome, missing } => self.on_answer(token, outcome, &missing),
            LaneMessage::ToSession { partition, what } => self.on_to_session(partition, what),
            LaneMessage::ToConnection { connection, what: ToConnection::Close { .. } } if self.is_gone(connection) => {
                self.send(from, LaneMessage::Gone { connection });
            }
            LaneMessage::ToConnection { connection, what } => self.on_to_connection(connection, what),
            LaneMessage::Retain { partition, token, .. } if !self.owns(partition) => {
                let answer =
                    |token: Token| LaneMessage::Answer { token, outcome: Outcome::default(), missing: vec![partition] };
                token.into_iter().for_each(|token| self.send(token.connection.lane, answer(token)));
            }
            LaneMessage::Retain { partition, message, token } => {
                let inbound = Inbound::from_stored(&message);
                self.flow = Flow { token, waiting: 1, ..Flow::default() };
                self.step(partition, Input::Retain { message: &inbound, token }, Some(&inbound));
                let flow = std::mem::take(&mut self.flow);
                self.pass_on(token, flow, Vec::new());
            }
            LaneMessage::Socket { listener, transport } => self.open_socket(listener, *transport),
            LaneMessage::Connection(connection) => self.on_handed_over(connection),
            LaneMessage::Checked { connection, result } => self.on_checked(connection, *result),
            LaneMessage::Interest(delta) => self.on_interest(from, delta),
            LaneMessage::Confirm { version, sent, nodes } => self.on_confirm(from, version, sent, &nodes),
            LaneMessage::Ask(query) => {
                #[cfg(test)]
                assert_ne!(&*query.filter, super::tests::POISON_FILTER);
                self.deferred.push(query);
            }
            LaneMessage::Replay { gathering, messages } => self.gather(gathering, from, messages),
            LaneMessage::Convey { partition, what } => self.on_conveyed(partition, what),
            LaneMessage::Join { group, member, again, question } => self.on_join(&group, member, again, question),
            LaneMessage::Phase(phase) => self.on_phase(phase),
            LaneMessage::Log(event) => self.on_log(event),
            LaneMessage::Joined { key } => self.on_joined(key),
            LaneMessage::Forget { uid } => self.todo.push_back(Todo::Forget { uid }),
            LaneMessage::Restarted => self.on_peer_restarted(from),
            LaneMessage::Halt { partition, epoch, child } => self.on_halt(from, partition, epoch, child),
            LaneMessage::Halted { partition, epoch } => self.on_halted(from, partition, epoch),
            LaneMessage::GoOn { partition, epoch } => self.on_go_on(from, partition, epoch),
            LaneMessage::Luggage { partition, epoch, part, sealed } => {
                self.on_luggage(partition, epoch, &part, sealed);
            }
            LaneMessage::Ahead { partition, epoch, first, part } => self.on_ahead(partition, epoch, first, &part),
            LaneMessage::Gone { connection } => self.on_gone(connection),
            LaneMessage::Apart { partition } => self.detach_in(partition, &|place| place == from),
            LaneMessage::Order(order) => self.on_order(order),
            LaneMessage::Peer { slot, incarnation } => self.on_node(slot, incarnation),
            LaneMessage::ClusterLog(event) => self.on_cluster_log(event),
            LaneMessage::Linked { from, incarnation, now_ms, bytes } => {
                self.on_linked(from, incarnation, now_ms, &bytes);
            }
        }
    }

    /// Another lane's publish: matched in this lane's own tree, always answered. It is meant for the partitions for which this
    /// lane spoke when the sender sent it: what came since is asked for once more, what has gone is named.
    fn on_forwarded(&mut self, message: &Stored, token: Option<Token>, known: u64, meant: &Meant) {
        #[cfg(test)]
        assert_ne!(message.view().topic, super::tests::POISON);
        self.flow = Flow { token, ..Flow::default() };
        let inbound = Inbound::from_stored(message);
        let mut missing = Vec::new();
        if let Some(fleet) = &self.fleet {
            let mut not: Vec<u16> = fleet.since.iter().filter(|(_, since)| **since > known).map(|(p, _)| *p).collect();
            missing = self.given_since(known);
            match meant {
                Meant::All => {}
                Meant::Except(those) => {
                    missing.retain(|p| !those.contains(p));
                    not.extend(those);
                }
                Meant::Only(those) => missing = those.iter().copied().filter(|p| !self.owns(*p)).collect(),
            }
            let is_meant = |p: u16| match meant {
                Meant::Only(those) => those.contains(&p),
                _ => !not.contains(&p),
            };
            self.route_here(&inbound, Some(&is_meant));
        } else {
            self.route_here(&inbound, None);
        }
        let flow = std::mem::take(&mut self.flow);
        self.pass_on(token, flow, missing);
    }

    fn pass_on(&mut self, token: Option<Token>, flow: Flow, missing: Vec<u16>) {
        let Some(token) = token else { return };
        let Flow { waiting, outcome, .. } = flow;
        if waiting > 0 {
            self.late.insert(token, Late { waiting, outcome, missing });
        } else {
            self.send(token.connection.lane, LaneMessage::Answer { token, outcome, missing });
        }
    }

    pub(super) fn on_conveyed(&mut self, partition: u16, what: Conveyed) {
        let what = match self.pass_down(partition, what) {
            Some(what) => what,
            None => return,
        };
        let input = match &what {
            Conveyed::GroupLeave { group, session } => Input::GroupLeave { group, session: *session },
            Conveyed::GroupOnline { group, session, online, window } => {
                Input::GroupOnline { group, session: *session, online: *online, window: *window }
            }
            Conveyed::GroupDone { place, session } => Input::GroupDone { place: *place, session: *session },
            Conveyed::GroupReturn { place, session } => Input::GroupReturn { place: *place, session: *session },
            Conveyed::GroupAsk { group, session } => Input::GroupAsk { group, session: *session },
            Conveyed::Dispatch(dispatched) => Input::Dispatch(dispatched.clone()),
        };
        self.step(partition, input, None);
    }
}
