//! What a lane knows of the other nodes: who is a member, who can be talked to, and whether it may acknowledge.
//!
//! The members are told by orders, the links say who can be talked to. A member that is told no more is gone for good: what
//! it had said and had not answered is worked off in `frozen`, what it owned in `owners`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use hashbrown::HashMap;

use super::frozen::{Asked, Frozen, Pending};
use super::halts::Halt;
use super::halving::Halving;
use super::moving::{Leaving, Sealed};
use super::owners::{Owner, Parked, Taking};
use super::warming::{Coming, Warming};
use super::{Lane, LaneMessage};
use crate::channel::{ConnectionId, SessionRef};
use crate::codec::{QoS, Reason};
use crate::connection::{Connection, Stage};
use crate::interest::{Delta, Interest};
use crate::link::{ALONE, ANSWER_MS};
use crate::message::translate_deadlines;
use crate::partition::{Ending, Input};
use crate::port::{MemberOrder, Shared};
use crate::queue::SubscriptionIds;
use crate::ring::{NODE_LANES_MAX, NOWHERE, Ring};

/// Without a majority for so long a node closes its connections, milliseconds.
const LONELY_MS: u64 = 5_000;
/// So many in a tick.
const LONELY_CLOSES: usize = 50;

/// A question for retained messages that waits until every partition has an owner that speaks for it.
pub(super) type Query = (SessionRef, Box<str>, QoS, SubscriptionIds);

/// See the top of the file.
#[derive(Debug, Default)]
pub(super) struct Fleet {
    /// Incarnation and number of lanes by slot.
    pub members: HashMap<u16, (u64, u16)>,
    /// Version of the table that is in force here.
    pub table: u64,
    /// As the table says, by partition.
    pub owners: Vec<Owner>,
    /// Who has spoken for each partition last: epoch, place.
    pub known: Vec<(u32, u16)>,
    pub frozen: Vec<Frozen>,
    /// Publishes that wait for partitions without an owner, in the order in which they were asked.
    pub pending: BTreeMap<u64, Pending>,
    /// What other nodes were asked and have not answered, in the order in which they were asked.
    pub asked: BTreeMap<u64, Asked>,
    pub asks: u64,
    /// Partitions that are on their way to this lane.
    pub taking: BTreeMap<u16, Taking>,
    /// Partitions that somebody has begun to speak for who knows only their logs, and when.
    pub heirs: Vec<(u64, u16)>,
    /// By partition of this lane: the version of its interest that speaks for it.
    pub since: HashMap<u16, u64>,
    /// Partitions that this lane has given away, with the version of its interest that says so.
    pub given: VecDeque<(u64, u16)>,
    pub parked: Vec<Parked>,
    /// Deltas that name a table which is not in force here yet, by their senders.
    pub early: HashMap<u16, VecDeque<Delta>>,
    /// Places whose interest is applied and not confirmed yet: up to which question of ours it waits, and the version.
    pub unconfirmed: BTreeMap<u16, (u64, u64)>,
    /// Connections whose acknowledgements wait for a majority.
    pub unsettled: BTreeSet<u32>,
    pub queries: Vec<Query>,
    /// Partitions of which this node has had batches under way: numbers below are of an earlier ownership.
    pub batches: HashMap<u16, u64>,
    pub walks: HashMap<u16, super::shared_log::Walks>,
    /// What an append takes here, eighths of a millisecond, smoothed.
    pub append_ms8: u64,
    /// When a partition that waits for its turn appends.
    pub append_at_ms: Option<u64>,
    /// When groups of partitions that came are settled.
    pub settle: Vec<(u64, u16)>,
    /// Partitions whose logs take nothing now.
    pub full: BTreeSet<u16>,
    /// Up to where the logs of this lane's partitions go, as far as they are safe.
    pub tips: HashMap<u16, crate::log::Anchor>,
    /// Planned moves: partitions whose messages go ahead, that are on their way out, held by everybody, on their way in, and sealed.
    pub warming: BTreeMap<u16, Warming>,
    pub leaving: BTreeMap<u16, Leaving>,
    /// How often the halt of a partition was called off since it was sealed last.
    pub called_off: HashMap<u16, u32>,
    pub halts: BTreeMap<u16, Halt>,
    pub coming: HashMap<u16, Coming>,
    pub sealed: BTreeMap<u16, Sealed>,
    /// A partition of this lane that is cut in two.
    pub halving: Option<Halving>,
    /// Places to which something was published since it was looked at last, as a mask.
    pub met: u64,
    /// Connections that are not read until these places have caught up.
    pub slowed: Vec<(ConnectionId, u64)>,
}

impl Fleet {
    /// Nothing is known yet, so every publish waits for those that might want it.
    pub fn new(partitions: u16) -> Self {
        Self {
            owners: vec![Owner::default(); usize::from(partitions)],
            known: vec![(0, NOWHERE); usize::from(partitions)],
            frozen: vec![Frozen::everything(partitions)],
            ..Self::default()
        }
    }
}

impl Lane {
    /// The interest of the lane at a place: nobody waits for nodes that have not come yet.
    pub(super) fn interest_of(place: u16, shared: &Shared) -> Interest {
        let ring = &shared.ring;
        let mut interest = Interest::new(place, usize::from(ring.places()), ring.key());
        (0..ring.places()).filter(|p| ring.here(*p).is_none()).for_each(|p| interest.leave(p));
        interest
    }

    /// Is the place in this process, or in a node that can be talked to?
    pub(super) fn reaches(&self, place: u16) -> bool {
        if self.shared.ring.here(place).is_some() {
            return true;
        }
        let Some(fleet) = self.fleet.as_ref().filter(|_| place != NOWHERE) else { return false };
        let slot = Ring::slot(place);
        let lanes = fleet.members.get(&slot).map_or(0, |m| m.1);
        self.nodes.contains_key(&slot) && place % NODE_LANES_MAX < lanes
    }

    /// The same to every other place that is there.
    pub(super) fn send_all(&mut self, mut message: impl FnMut() -> LaneMessage) {
        for place in 0..self.shared.ring.places() {
            if place != self.number {
                self.send(place, message());
            }
        }
    }

    /// The members have changed: who is not among them any more, or is another start of itself, is gone.
    pub(super) fn on_members(&mut self, members: &[MemberOrder]) {
        let Some(fleet) = &mut self.fleet else { return };
        let now: HashMap<u16, (u64, u16)> = members.iter().map(|m| (m.slot, (m.incarnation, m.lanes))).collect();
        let before = std::mem::replace(&mut fleet.members, now);
        for (slot, (incarnation, _)) in before {
            let stays = self.fleet.as_ref().and_then(|f| f.members.get(&slot)).is_some_and(|m| m.0 == incarnation);
            if !stays && !self.is_own_slot(slot) {
                self.node_gone(slot);
            }
        }
        self.look_at_barriers();
    }

    fn is_own_slot(&self, slot: u16) -> bool {
        Ring::slot(self.number) == slot
    }

    /// A node can be talked to, and knows nothing of this one.
    pub(super) fn on_node(&mut self, slot: u16, incarnation: u64) {
        let member = self.fleet.as_ref().and_then(|f| f.members.get(&slot));
        if member.is_none_or(|m| m.0 != incarnation) {
            return;
        }
        self.nodes.insert(slot, incarnation);
        for place in Ring::places_of(slot).filter(|p| self.reaches(*p)).collect::<Vec<_>>() {
            self.forget_counts(place);
            // connections of an earlier start of it may be in what was carried here since that was gone
            self.detach_from(place);
            let all = self.interest.admit(place);
            self.send(place, LaneMessage::Interest(all));
        }
        self.look_at_barriers();
        self.retry_parked();
    }

    /// A node is gone for good.
    fn node_gone(&mut self, slot: u16) {
        self.freeze_dead(slot);
        let places = Ring::places_of(slot);
        let known = |l: &Self, p: u16| l.fleet.as_ref().and_then(|f| f.known.get(usize::from(p))).map(|k| k.1);
        let lost = |l: &Self, p: u16| known(l, p).is_some_and(|place| places.contains(&place));
        let lost: Vec<u16> = (0..self.shared.ring.partitions()).filter(|p| lost(self, *p)).collect();
        for place in Ring::places_of(slot) {
            self.interest.leave(place);
            self.forget_counts(place);
            self.detach_from(place);
            self.gather_without(place);
            if let Some(fleet) = &mut self.fleet {
                fleet.early.remove(&place);
                fleet.unconfirmed.remove(&place);
                fleet.parked.retain(|p| p.attach.connection.lane != place);
            }
        }
        self.nodes.remove(&slot);
        self.deferred.retain(|query| Ring::slot(query.from) != slot);
        self.orphan(&lost);
        self.break_halts(&|_, from, _| Ring::slot(from) == slot);
        self.move_without(slot);
    }

    /// Connections whose sessions were in these partitions: they are closed, those that ask for one ask the next owner.
    pub(super) fn orphan(&mut self, partitions: &[u16]) {
        let ring = self.shared.ring.clone();
        let lost = |c: &Connection| c.session.uid != 0 && partitions.contains(&c.session.partition);
        let asks = |c: &Connection| c.stage == Stage::Attaching && partitions.contains(&ring.partition(&c.client_id));
        let joining: Vec<ConnectionId> = self.joining(&|p| partitions.contains(&p));
        let keys = |l: &Self, f: &dyn Fn(&Connection) -> bool| -> Vec<usize> {
            l.connections.iter().filter(|(_, c)| f(c)).map(|(key, _)| key).collect()
        };
        for key in keys(self, &lost) {
            self.stats.add(crate::stats::Counter::sessions_lost, 1);
            self.close_unanswered(self.id_of(key), Reason::SHUTTING_DOWN);
        }
        for id in joining {
            self.close_unanswered(id, Reason::SHUTTING_DOWN);
        }
        for key in keys(self, &asks) {
            self.ask_for_session(key);
        }
    }

    /// The place's connections are closed: sessions of this lane go on without them.
    pub(super) fn detach_from(&mut self, place: u16) {
        let mut lost = Vec::new();
        for (number, partition) in self.partitions.iter().enumerate().filter_map(|(n, p)| Some((n, p.as_deref()?))) {
            for (slot, s) in partition.state().each() {
                let Some(channel) = s.channel.filter(|c| c.connection.lane == place) else { continue };
                let partition = u16::try_from(number).unwrap_or(0);
                let session = SessionRef { partition, slot, uid: s.uid };
                lost.push((session, s.client_id.clone(), channel.connection));
            }
        }
        for (session, client_id, connection) in lost {
            let ending = Ending { will: true, expiry_s: None };
            let input = Input::Detach { session: Some(session), client_id: &client_id, connection, ending };
            self.step(session.partition, input, None);
        }
        self.note_partition_timers();
    }

    /// What was counted of a place that begins anew counts no more.
    fn forget_counts(&mut self, place: u16) {
        let at = usize::from(place);
        for n in self.sent.get_mut(at).into_iter().chain(self.received.get_mut(at)) {
            *n = 0;
        }
        if let Some(batch) = self.outgoing.get_mut(at) {
            batch.clear();
        }
        self.peer_sent.get_mut(at).into_iter().flatten().for_each(|n| *n = 0);
        self.peer_sent.iter_mut().filter_map(|row| row.get_mut(at)).for_each(|n| *n = 0);
    }

    /// What a peer has said to another start of a node than the one known here does not matter to that one.
    pub(super) fn void_counts(&self, sent: &mut [u64], nodes: &[(u16, u64)]) {
        for (place, n) in (0..).zip(sent) {
            let slot = Ring::slot(place);
            let known = self.nodes.get(&slot);
            if known.is_some_and(|known| nodes.iter().any(|(s, start)| *s == slot && start != known)) {
                *n = 0;
            }
        }
    }

    /// Which starts of other nodes are talked to.
    pub(super) fn starts(&self) -> Vec<(u16, u64)> {
        self.nodes.iter().map(|(slot, start)| (*slot, *start)).collect()
    }

    /// The start of a node that is talked to, or will be.
    pub(super) fn start_of(&self, slot: u16) -> Option<u64> {
        let member = || self.fleet.as_ref()?.members.get(&slot).map(|(start, _)| *start);
        self.nodes.get(&slot).copied().or_else(member)
    }

    /// A batch of a lane of another node. Who is gone is not listened to.
    pub(super) fn on_linked(&mut self, from: u16, incarnation: u64, now_ms: u64, bytes: &[u8]) {
        let slot = Ring::slot(from);
        self.shared.links.get().iter().for_each(|links| links.taken(bytes.len()));
        if self.nodes.get(&slot) != Some(&incarnation) {
            return;
        }
        translate_deadlines(i64::try_from(self.now_ms).unwrap_or(0) - i64::try_from(now_ms).unwrap_or(0));
        let Ok(batch) = postcard::from_bytes::<Vec<LaneMessage>>(bytes) else {
            return self.shared.events.lane_failed(self.number, "a batch of another node cannot be read");
        };
        for message in batch {
            if let Some(n) = self.received.get_mut(usize::from(from)) {
                *n += 1;
            }
            self.on_message(from, message);
            self.work();
        }
    }

    /// A majority of the members was there a moment ago, so nobody else acts in this node's place. Asked after each read of
    /// a socket: a process that stood still must notice before it acknowledges what came meanwhile.
    pub(super) fn may_acknowledge(&self) -> bool {
        if self.fleet.is_none() {
            return true;
        }
        match self.shared.links.get().map(crate::link::Links::majority_ms) {
            Some(ALONE) | None => true,
            Some(at_ms) => self.shared.clock.now_ms() < at_ms + ANSWER_MS,
        }
    }

    /// No majority for so long that clients do better elsewhere.
    pub(super) fn is_lonely(&self) -> bool {
        match self.shared.links.get().map(crate::link::Links::majority_ms) {
            Some(ALONE) | None => false,
            // one that has not joined yet was never in company
            Some(at_ms) => at_ms > 0 && self.now_ms > at_ms + LONELY_MS,
        }
    }

    /// Connections are closed, some in each tick, so that their clients go where the majority is.
    pub(super) fn close_lonely(&mut self) {
        let open = self.connections.iter().filter(|(_, c)| c.stage == Stage::Open);
        let some: Vec<usize> = open.take(LONELY_CLOSES).map(|(key, _)| key).collect();
        for key in some {
            self.close_unanswered(self.id_of(key), Reason::SERVER_BUSY);
        }
    }

    /// What waited for a majority goes on.
    pub(super) fn settle_waiting(&mut self) {
        if self.fleet.as_ref().is_none_or(|f| f.unsettled.is_empty()) || !self.may_acknowledge() {
            return;
        }
        let waiting = self.fleet.as_mut().map(|f| std::mem::take(&mut f.unsettled)).unwrap_or_default();
        for key in waiting {
            self.settle(key as usize);
        }
    }
}

/// A batch for a lane of another node.
pub(super) fn post_to_node(shared: &Shared, nodes: &HashMap<u16, u64>, from: u16, to: u16, batch: &[LaneMessage]) {
    let slot = Ring::slot(to);
    let (Some(links), Some(incarnation)) = (shared.links.get(), nodes.get(&slot)) else { return };
    match postcard::to_stdvec(batch) {
        Ok(bytes) => links.post(slot, *incarnation, from, to, shared.clock.now_ms(), bytes),
        Err(error) => shared.events.lane_failed(from, &format!("a batch for another node: {error}")),
    }
}
