//! Publishes that must reach partitions whose owner is gone, moved, or not known yet: they wait until somebody speaks for
//! each of these partitions again, and are then sent to it for exactly these partitions (`30-cluster.md`, section 5).
//!
//! A dead node's interest is frozen, not dropped: what matches it waits. What other nodes were asked and have not answered is
//! remembered, so that the next owner can be asked again; origins keep QoS 2 from coming twice. A node that has just come
//! begins with everything frozen, so it acknowledges nothing that somebody it does not know yet might want.

use std::collections::{BTreeMap, BTreeSet};

use smallvec::SmallVec;

use super::exchange::Meant;
use super::{Flow, Lane, LaneMessage};
use crate::channel::{Outcome, Token};
use crate::codec::QoS;
use crate::interest::{Delta, Wanted};
use crate::message::{Inbound, Stored};
use crate::partition::Effect;
use crate::ring::Ring;
use crate::stats::Gauge;

/// A question to another node: a publish that it has not answered.
#[derive(Debug)]
pub(super) struct Asked {
    pub place: u16,
    pub token: Token,
    pub message: Stored,
    /// It is the retained copy.
    pub retain: bool,
    /// The table that was in force: what had moved by then was not meant.
    pub table: u64,
}

/// A publish, or its retained copy, for partitions that nobody speaks for yet. It has a place in the order of all that was asked.
#[derive(Debug)]
pub(super) struct Pending {
    token: Option<Token>,
    message: Stored,
    retain: bool,
    left: Vec<u16>,
}

/// See the top of the file.
#[derive(Debug)]
pub(super) struct Frozen {
    /// What matches; `None` is everything.
    wanted: Option<Wanted>,
    /// Partitions that wait for an owner, with the least epoch that it must have.
    waiting: BTreeMap<u16, u32>,
    /// What their owner, which lives, had been asked: it may answer that it has not acted any more, and comes first then.
    behind: BTreeSet<u64>,
    /// Of a planned move: nothing at all may pass meanwhile, not even at QoS 0.
    planned: bool,
}

impl Frozen {
    /// Of a node that knows nobody.
    pub fn everything(partitions: u16) -> Self {
        Self {
            wanted: None,
            waiting: (0..partitions).map(|p| (p, 1)).collect(),
            behind: BTreeSet::new(),
            planned: false,
        }
    }

    /// Of a partition that is moved: until somebody speaks for it under this epoch.
    pub fn planned(wanted: Wanted, partition: u16, epoch: u32, behind: BTreeSet<u64>) -> Self {
        Self { wanted: Some(wanted), waiting: BTreeMap::from([(partition, epoch)]), behind, planned: true }
    }

    /// A partition was cut: who waits for it waits for what was cut off it too.
    pub fn cut(&mut self, parent: u16, child: u16, epoch: u32) {
        if self.waiting.contains_key(&parent) {
            self.waiting.insert(child, epoch);
        }
    }

    /// The first table: nobody older than its owners counts.
    pub fn require(&mut self, epoch_of: impl Fn(u16) -> u32) {
        for (partition, epoch) in &mut self.waiting {
            *epoch = (*epoch).max(epoch_of(*partition));
        }
    }
}

impl Lane {
    /// Partitions that are here or on their way, and publishes that wait for another node or for an owner.
    pub(super) fn measure_fleet(&self) {
        let Some(fleet) = &self.fleet else { return };
        let set = |gauge, n: usize| self.stats.set(gauge, i64::try_from(n).unwrap_or(i64::MAX));
        set(Gauge::partitions, self.partitions.iter().flatten().count());
        set(Gauge::partitions_coming, fleet.taking.len());
        set(Gauge::partitions_unsafe, self.partitions.iter().flatten().filter(|p| !p.journal().all_safe()).count());
        set(Gauge::partitions_full, fleet.full.len());
        set(Gauge::publishes_waiting, fleet.pending.len() + fleet.asked.len());
        set(Gauge::connects_waiting, fleet.parked.len());
        set(Gauge::connections_slowed, fleet.slowed.len());
        self.shared.set_waits(self.number, self.waits());
    }

    /// What waits, and for whom.
    fn waits(&self) -> serde_json::Value {
        let Some(fleet) = &self.fleet else { return serde_json::Value::Null };
        let mut asked: BTreeMap<u16, usize> = BTreeMap::new();
        fleet.asked.values().for_each(|a| *asked.entry(Ring::slot(a.place)).or_default() += 1);
        let frozen: Vec<_> = fleet
            .frozen
            .iter()
            .map(|f| {
                let partitions: Vec<_> = f.waiting.iter().take(16).collect();
                serde_json::json!({"partitions": partitions, "behind": f.behind.len()})
            })
            .collect();
        let unspoken = (0..).zip(fleet.owners.iter().zip(&fleet.known)).filter(|(_, (o, k))| o.epoch != k.0);
        let unspoken: Vec<u16> = unspoken.map(|(p, _)| p).collect();
        serde_json::json!({"asked": asked, "pending": fleet.pending.len(), "frozen": frozen, "unspoken": unspoken,
            "early": fleet.early.values().map(std::collections::VecDeque::len).sum::<usize>(),
            "warming": fleet.warming.keys().collect::<Vec<_>>(), "leaving": fleet.leaving.keys().collect::<Vec<_>>(),
            "halted": fleet.halts.keys().collect::<Vec<_>>(),
            "sealed": fleet.sealed.keys().collect::<Vec<_>>(), "queries": fleet.queries.len(),
            "deferred": self.deferred.len(), "lacking": self.lacking(), "gathering": self.gathering_from(),
            "questions": self.questions.len()})
    }

    /// Places of which something must come before questions for retained messages can be answered: up to which message, and how many
    /// have come.
    fn lacking(&self) -> BTreeMap<usize, (u64, u64)> {
        let mut lacking: BTreeMap<usize, (u64, u64)> = BTreeMap::new();
        for query in &self.deferred {
            let each = query.after.iter().zip(&self.received).enumerate();
            for (place, (after, received)) in each.filter(|(i, (a, r))| *i != usize::from(self.number) && a > r) {
                let most = &mut lacking.entry(place).or_insert((0, *received)).0;
                *most = (*most).max(*after);
            }
        }
        lacking
    }

    /// Places whose retained messages subscribers wait for, and how many do.
    fn gathering_from(&self) -> BTreeMap<u16, usize> {
        let mut missing: BTreeMap<u16, usize> = BTreeMap::new();
        let bits = |missing: u64| (0..64u16).filter(move |place| missing & 1 << place != 0);
        for place in self.gatherings.values().flat_map(|g| bits(g.missing)) {
            *missing.entry(place).or_default() += 1;
        }
        missing
    }

    /// A member is gone: what it wanted is frozen for the partitions that it spoke for, what it was asked waits with it.
    pub(super) fn freeze_dead(&mut self, slot: u16) {
        let places = Ring::places_of(slot);
        let Some(fleet) = &mut self.fleet else { return };
        let spoke = (0..).zip(&fleet.known).filter(|(_, (_, place))| places.contains(place));
        let waiting: BTreeMap<u16, u32> = spoke.map(|(p, (epoch, _))| (p, epoch + 1)).collect();
        let lost: Vec<u64> =
            fleet.asked.iter().filter(|(_, a)| places.contains(&a.place)).map(|(ask, _)| *ask).collect();
        for ask in lost {
            let Some(Asked { token, message, retain, .. }) = fleet.asked.remove(&ask) else { continue };
            let mut left: BTreeSet<u16> = waiting.keys().copied().collect();
            for frozen in &mut fleet.frozen {
                if frozen.behind.remove(&ask) {
                    // it was the owner of these when it was asked, and may not have acted
                    left.extend(frozen.waiting.keys());
                }
            }
            let left = left.into_iter().collect();
            fleet.pending.insert(ask, Pending { token: Some(token), message, retain, left });
        }
        let wanted = Some(self.interest.snapshot(places));
        fleet.frozen.push(Frozen { wanted, waiting, behind: BTreeSet::new(), planned: false });
        self.thaw();
    }

    /// Partitions leave an owner that lives: until the next one speaks for them, what matches waits for it too.
    /// One for which somebody else speaks already is not frozen: `gone` says who speaks no more.
    pub(super) fn freeze_moved(&mut self, partitions: &[u16], gone: &dyn Fn(u16, u32, u16) -> bool) {
        let Some(fleet) = &mut self.fleet else { return };
        let mut by_slot: BTreeMap<u16, BTreeMap<u16, u32>> = BTreeMap::new();
        for p in partitions {
            let Some((epoch, place)) = fleet.known.get(usize::from(*p)).copied() else { continue };
            let covered = fleet.frozen.iter().any(|f| f.waiting.get(p).is_some_and(|e| *e > epoch));
            if !covered && place != crate::ring::NOWHERE && place != self.number && gone(*p, epoch, place) {
                by_slot.entry(Ring::slot(place)).or_default().insert(*p, epoch + 1);
            }
        }
        // what sibling lanes have is in their interest, what this lane has is frozen when it gives it away
        for (slot, waiting) in by_slot {
            let wanted = Some(self.interest.snapshot(Ring::places_of(slot)));
            let under_way = fleet.asked.iter().filter(|(_, a)| Ring::slot(a.place) == slot);
            let behind = under_way.map(|(ask, _)| *ask).collect();
            fleet.frozen.push(Frozen { wanted, waiting, behind, planned: false });
        }
    }

    /// Who had a partition when it was frozen may have granted more since, before it gave it away.
    pub(super) fn learn_frozen(&mut self, from: u16, delta: &Delta) {
        let Some(fleet) = &mut self.fleet else { return };
        let known = &fleet.known;
        let is_its = |p: &u16| known.get(usize::from(*p)).is_some_and(|(_, place)| *place == from);
        let concerned = fleet.frozen.iter_mut().filter(|f| f.waiting.keys().any(is_its));
        concerned.filter_map(|f| f.wanted.as_mut()).for_each(|wanted| wanted.learn(delta));
    }

    /// A retained copy waits here that a place is told to want only now: it would miss the live message, and ask for the
    /// retained one before that has come. True: it is confirmed when the copy has gone to its keeper.
    pub(super) fn holds_confirmation(&mut self, from: u16, delta: &Delta) -> bool {
        let key = self.shared.ring.key();
        let Some(fleet) = &mut self.fleet else { return false };
        if let Some((_, version)) = fleet.unconfirmed.get_mut(&from) {
            *version = delta.version;
            return true;
        }
        let mut kept = fleet.pending.values().filter(|p| p.retain).peekable();
        if kept.peek().is_none() {
            return false;
        }
        let mut wanted = Wanted::of(key, std::iter::empty());
        wanted.learn(delta);
        let holds = kept.any(|p| wanted.has(p.message.view().topic));
        if holds {
            fleet.unconfirmed.insert(from, (fleet.asks, delta.version));
        }
        holds
    }

    /// What is not held any more is confirmed.
    pub(super) fn confirm_late(&mut self) {
        let Some(fleet) = self.fleet.as_mut().filter(|f| !f.unconfirmed.is_empty()) else { return };
        let oldest = fleet.pending.iter().find(|(_, p)| p.retain).map_or(u64::MAX, |(order, _)| *order);
        let is_free = |(order, _): &(u64, u64)| *order < oldest;
        let free = fleet.unconfirmed.iter().filter(|(_, held)| is_free(held)).map(|(from, held)| (*from, held.1));
        let free: Vec<(u16, u64)> = free.collect();
        fleet.unconfirmed.retain(|_, held| !is_free(held));
        free.into_iter().for_each(|(from, version)| self.confirm_to(from, version));
    }

    /// This lane has the partition no more: until another one speaks for it, what its sessions wanted waits.
    pub(super) fn freeze_own(&mut self, partition: u16, effects: &[Effect]) {
        let filters = effects.iter().filter_map(|e| match e {
            Effect::Unsubscribe { filter, .. } => Some(&**filter),
            _ => None,
        });
        let wanted = Some(Wanted::of(self.shared.ring.key(), filters));
        let Some(fleet) = &mut self.fleet else { return };
        let Some((epoch, place)) = fleet.known.get(usize::from(partition)).copied() else { return };
        if place == self.number {
            let waiting = BTreeMap::from([(partition, epoch + 1)]);
            fleet.frozen.push(Frozen { wanted, waiting, behind: BTreeSet::new(), planned: false });
        }
    }

    /// Partitions for which a publish of this lane waits, beside being sent to all others: a frozen interest matches it, or
    /// somebody who may want it speaks for them already while an earlier publish still waits for the answer of who had them.
    pub(super) fn held_back(&self, message: &Inbound<'_>, places: u64) -> Vec<u16> {
        let Some(fleet) = self.fleet.as_ref().filter(|f| !f.frozen.is_empty()) else { return Vec::new() };
        let (topic, all) = (message.view.topic, message.view.head.qos != QoS::AtMostOnce);
        let goes_to = |place: u16| place == self.number || places.checked_shr(u32::from(place)).unwrap_or(0) & 1 == 1;
        let spoken = |p: u16| fleet.known.get(usize::from(p)).is_some_and(|(_, place)| goes_to(*place));
        let mut held = Vec::new();
        for frozen in fleet.frozen.iter().filter(|f| all || f.planned) {
            let matches = frozen.wanted.as_ref().is_none_or(|w| w.has(topic));
            held.extend(frozen.waiting.keys().copied().filter(|p| matches || spoken(*p)));
        }
        held.sort_unstable();
        held.dedup();
        held
    }

    /// The retained copy for a partition that nobody has: true if it waits.
    pub(super) fn await_keeper(&mut self, partition: u16, message: &Inbound<'_>) -> bool {
        let partition = self.as_known(partition);
        let frozen = |f: &super::fleet::Fleet| f.frozen.iter().any(|f| f.waiting.contains_key(&partition));
        let waits = self.fleet.as_deref().is_some_and(frozen);
        if waits {
            self.pend(message, true, vec![partition]);
        }
        waits
    }

    pub(super) fn pend(&mut self, message: &Inbound<'_>, retain: bool, left: Vec<u16>) {
        let token = self.flow.token;
        self.flow.waiting += u16::from(token.is_some());
        let Some(fleet) = &mut self.fleet else { return };
        fleet.asks += 1;
        fleet.pending.insert(fleet.asks, Pending { token, message: message.store(), retain, left });
    }

    /// Somebody speaks for partitions: what has waited for them goes on in the order in which it was asked.
    pub(super) fn thaw(&mut self) {
        let Some(fleet) = &mut self.fleet else { return };
        let known = |p: u16, epoch: u32| fleet.known.get(usize::from(p)).is_some_and(|k| k.0 >= epoch);
        let is_free = |p: u16| {
            let mut holders = fleet.frozen.iter().filter_map(|f| Some((f, f.waiting.get(&p)?)));
            holders.all(|(f, epoch)| f.behind.is_empty() && known(p, *epoch))
        };
        let all: BTreeSet<u16> = fleet.frozen.iter().flat_map(|f| f.waiting.keys().copied()).collect();
        let free: BTreeSet<u16> = all.into_iter().filter(|p| is_free(*p)).collect();
        for frozen in &mut fleet.frozen {
            frozen.waiting.retain(|p, _| !free.contains(p));
        }
        fleet.frozen.retain(|f| !f.waiting.is_empty());
        if !free.is_empty() {
            self.let_go(&free);
        }
    }

    /// A planned move was called off: what waited for this partition goes to who has it.
    pub(super) fn unfreeze(&mut self, partition: u16) {
        let Some(fleet) = &mut self.fleet else { return };
        for frozen in fleet.frozen.iter_mut().filter(|f| f.planned) {
            frozen.waiting.remove(&partition);
        }
        fleet.frozen.retain(|f| !f.waiting.is_empty());
        if !fleet.frozen.iter().any(|f| f.waiting.contains_key(&partition)) {
            self.let_go(&BTreeSet::from([partition]));
        }
    }

    /// Partitions were cut, as the table says: what waits for one of them waits for what was cut off it too.
    pub(super) fn freeze_cut(&mut self, cut: &[(u16, u32)]) {
        let ring = self.shared.ring.clone();
        let Some(fleet) = &mut self.fleet else { return };
        for (child, epoch) in cut {
            let parent = ring.parent(*child);
            fleet.frozen.iter_mut().for_each(|frozen| frozen.cut(parent, *child, *epoch));
            for pending in fleet.pending.values_mut().filter(|pending| pending.left.contains(&parent)) {
                pending.left.push(*child);
            }
        }
    }

    fn let_go(&mut self, free: &BTreeSet<u16>) {
        let orders: Vec<u64> = self.fleet.iter().flat_map(|f| f.pending.keys().copied()).collect();
        for order in orders {
            self.ask_again(order, free);
        }
        if self.fleet.as_ref().is_some_and(|f| f.frozen.is_empty()) {
            self.ask_deferred_queries();
        }
    }

    /// The part of a publish that can go on.
    fn ask_again(&mut self, order: u64, free: &BTreeSet<u16>) {
        let Some(pending) = self.fleet.as_mut().and_then(|f| f.pending.get_mut(&order)) else { return };
        let only: Vec<u16> = pending.left.iter().copied().filter(|p| free.contains(p)).collect();
        if only.is_empty() {
            return;
        }
        pending.left.retain(|p| !free.contains(p));
        let (token, message, retain) = (pending.token, pending.message.clone(), pending.retain);
        // nobody waits for its acknowledgement any more: its publisher repeats it, or has forgotten it
        let forgotten = token.is_some_and(|t| self.connection(t.connection).is_none());
        let Some(fleet) = &mut self.fleet else { return };
        let last = fleet.pending.get(&order).is_none_or(|p| p.left.is_empty());
        if last || forgotten {
            fleet.pending.remove(&order);
        }
        if forgotten {
            return;
        }
        let inbound = Inbound::from_stored(&message);
        self.flow = Flow { token: token.map(|t| Token { ask: 0, ..t }), ..Flow::default() };
        if retain {
            if only.contains(&self.shared.ring.partition(inbound.view.topic)) {
                self.retain(&inbound);
            }
        } else {
            self.fan_out_to(&inbound, &only);
        }
        let flow = std::mem::take(&mut self.flow);
        let Some(token) = token else { return };
        if let Some(owed) = self.connection(token.connection).and_then(|c| c.owed.get_mut(token.number)) {
            owed.waiting += flow.waiting;
            owed.outcome.add(flow.outcome);
        }
        if last {
            self.settle_answer(token, Outcome::default());
        }
        self.deliver_own(&flow.own);
    }

    fn fan_out_to(&mut self, message: &Inbound<'_>, only: &[u16]) {
        let mut places: SmallVec<[u16; 8]> = only.iter().map(|p| self.shared.ring.home(*p)).collect();
        places.sort_unstable();
        places.dedup();
        let wanted = self.interest.peers_for(message.view.topic);
        for place in places {
            let mine: Vec<u16> = only.iter().copied().filter(|p| self.shared.ring.home(*p) == place).collect();
            if place == self.number {
                self.route_here(message, Some(&|p| mine.contains(&p)));
            } else if wanted.checked_shr(u32::from(place)).unwrap_or(0) & 1 == 1 {
                self.forward(place, message, Meant::Only(mine));
            }
        }
    }

    /// To a place that wants it: it has to answer, or its heir.
    pub(super) fn forward(&mut self, place: u16, message: &Inbound<'_>, meant: Meant) {
        let token = self.flow.token;
        self.flow.waiting += u16::from(token.is_some());
        self.note_published(place);
        let token = token.map(|token| self.number_ask(token, place, message, false));
        let known = self.interest.applied(place);
        self.send(place, LaneMessage::Publish { message: message.store(), token, known, meant });
    }

    pub(super) fn number_ask(&mut self, token: Token, place: u16, message: &Inbound<'_>, retain: bool) -> Token {
        let Some(fleet) = &mut self.fleet else { return token };
        fleet.asks += 1;
        fleet.asked.insert(fleet.asks, Asked { place, token, message: message.store(), retain, table: fleet.table });
        Token { ask: fleet.asks, ..token }
    }

    /// Another lane has answered; `missing` are partitions that it has not acted for, as they are not its any more.
    pub(super) fn on_answer(&mut self, token: Token, outcome: Outcome, missing: &[u16]) {
        if token.ask == 0 {
            return self.answer(token, outcome);
        }
        let Some(fleet) = &mut self.fleet else { return };
        let Some(asked) = fleet.asked.remove(&token.ask) else { return };
        // what had moved when it was asked was not meant, and waits already
        let meant = |p: &u16| {
            let owner = fleet.owners.get(usize::from(*p));
            owner.is_some_and(|o| o.slot == Some(Ring::slot(asked.place)) || o.since > asked.table)
        };
        let missing: Vec<u16> = missing.iter().copied().filter(meant).collect();
        if !missing.is_empty() {
            let left = Ring::slot(asked.place);
            self.freeze_moved(&missing, &|_, _, place| Ring::slot(place) == left);
            if let Some(owed) = self.connection(token.connection).and_then(|c| c.owed.get_mut(token.number)) {
                owed.waiting += 1;
            }
            let Asked { token: origin, message, retain, .. } = asked;
            let pending = Pending { token: Some(origin), message, retain, left: missing.clone() };
            if let Some(fleet) = &mut self.fleet {
                fleet.pending.insert(token.ask, pending);
            }
        }
        self.settle_answer(token, outcome);
        let Some(fleet) = &mut self.fleet else { return };
        let mut last = false;
        for frozen in &mut fleet.frozen {
            last |= frozen.behind.remove(&token.ask) && frozen.behind.is_empty();
        }
        // nobody holds it back any more, or nobody ever did: the next owner speaks already
        if last {
            self.thaw();
        }
        if !missing.is_empty() {
            let held: BTreeSet<u16> =
                self.fleet.iter().flat_map(|f| &f.frozen).flat_map(|f| f.waiting.keys().copied()).collect();
            let free = missing.iter().copied().filter(|p| !held.contains(p)).collect();
            self.ask_again(token.ask, &free);
        }
    }
}
