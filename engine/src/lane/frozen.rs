//! Publishes that must reach partitions whose owner is gone, moved, or not known yet: they wait until somebody speaks for
//! each of these partitions again, and are then sent to it for exactly these partitions (`30-cluster.md`, section 5).
//!
//! A dead node's interest is frozen, not dropped: what matches it waits. What other nodes were asked and have not answered is
//! remembered, so that the next owner can be asked again; origins keep QoS 2 from coming twice. A node that has just come
//! begins with everything frozen, so it acknowledges nothing that somebody it does not know yet might want.

use std::collections::BTreeMap;
use std::rc::Rc;

use smallvec::SmallVec;

use super::{Flow, Lane, LaneMessage};
use crate::channel::{Outcome, Token};
use crate::codec::QoS;
use crate::interest::Wanted;
use crate::message::{Inbound, Stored};
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
}

/// A publish, or its retained copy, for partitions that nobody speaks for yet.
#[derive(Debug)]
struct Pending {
    token: Option<Token>,
    message: Stored,
    retain: bool,
    only: Rc<[u16]>,
}

/// See the top of the file.
#[derive(Debug)]
pub(super) struct Frozen {
    /// What matches; `None` is everything.
    wanted: Option<Wanted>,
    /// Partitions that wait for an owner, with the least epoch that it must have.
    waiting: BTreeMap<u16, u32>,
    /// The partitions, as new publishes remember them.
    only: Rc<[u16]>,
    pending: Vec<Pending>,
}

impl Frozen {
    /// Of a node that knows nobody.
    pub fn everything(partitions: u16) -> Self {
        Self::of(None, (0..partitions).map(|p| (p, 1)).collect())
    }

    fn of(wanted: Option<Wanted>, waiting: BTreeMap<u16, u32>) -> Self {
        let only = waiting.keys().copied().collect();
        Self { wanted, waiting, only, pending: Vec::new() }
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
        let pending: usize = fleet.frozen.iter().map(|f| f.pending.len()).sum();
        let set = |gauge, n: usize| self.stats.set(gauge, i64::try_from(n).unwrap_or(i64::MAX));
        set(Gauge::partitions, self.partitions.iter().flatten().count());
        set(Gauge::partitions_coming, fleet.taking.len());
        set(Gauge::publishes_waiting, pending + fleet.asked.len());
    }

    /// A member is gone: what it wanted is frozen for the partitions that it spoke for, what it was asked waits with it.
    pub(super) fn freeze_dead(&mut self, slot: u16) {
        let places = Ring::places_of(slot);
        let Some(fleet) = &mut self.fleet else { return };
        let spoke = (0..).zip(&fleet.known).filter(|(_, (_, place))| places.contains(place));
        let waiting: BTreeMap<u16, u32> = spoke.map(|(p, (epoch, _))| (p, epoch + 1)).collect();
        let mut frozen = Frozen::of(Some(self.interest.snapshot(places.clone())), waiting);
        let lost: Vec<u64> =
            fleet.asked.iter().filter(|(_, a)| places.contains(&a.place)).map(|(ask, _)| *ask).collect();
        for Asked { token, message, retain, .. } in lost.into_iter().filter_map(|ask| fleet.asked.remove(&ask)) {
            frozen.pending.push(Pending { token: Some(token), message, retain, only: Rc::clone(&frozen.only) });
        }
        fleet.frozen.push(frozen);
        self.thaw();
    }

    /// Partitions leave an owner that lives: until the next one speaks for them, what matches waits for it too.
    pub(super) fn freeze_moved(&mut self, partitions: &[u16]) {
        let Some(fleet) = &mut self.fleet else { return };
        let mut by_slot: BTreeMap<u16, BTreeMap<u16, u32>> = BTreeMap::new();
        for p in partitions {
            let Some((epoch, place)) = fleet.known.get(usize::from(*p)).copied() else { continue };
            let covered = fleet.frozen.iter().any(|f| f.waiting.get(p).is_some_and(|e| *e > epoch));
            if !covered && place != crate::ring::NOWHERE {
                by_slot.entry(Ring::slot(place)).or_default().insert(*p, epoch + 1);
            }
        }
        for (slot, waiting) in by_slot {
            // what this node had itself was matched in its own tree, which is gone: everything waits for a moment
            let own = Ring::slot(self.number) == slot;
            let wanted = (!own).then(|| self.interest.snapshot(Ring::places_of(slot)));
            fleet.frozen.push(Frozen::of(wanted, waiting));
        }
    }

    /// A publish of this lane that a frozen interest matches waits for it, beside being sent to all others.
    pub(super) fn await_frozen(&mut self, message: &Inbound<'_>) {
        if message.view.head.qos == QoS::AtMostOnce {
            return;
        }
        let Some(fleet) = &mut self.fleet else { return };
        for frozen in &mut fleet.frozen {
            if frozen.wanted.as_ref().is_none_or(|w| w.has(message.view.topic)) {
                let (token, only) = (self.flow.token, Rc::clone(&frozen.only));
                self.flow.waiting += u16::from(token.is_some());
                frozen.pending.push(Pending { token, message: message.store(), retain: false, only });
            }
        }
    }

    /// The retained copy for a partition that nobody has: true if it waits.
    pub(super) fn await_keeper(&mut self, partition: u16, message: &Inbound<'_>) -> bool {
        let Some(fleet) = &mut self.fleet else { return false };
        let Some(frozen) = fleet.frozen.iter_mut().find(|f| f.waiting.contains_key(&partition)) else { return false };
        let token = self.flow.token;
        self.flow.waiting += u16::from(token.is_some());
        let only = Rc::from([partition]);
        frozen.pending.push(Pending { token, message: message.store(), retain: true, only });
        true
    }

    /// Somebody speaks for partitions: what has waited for them, and for nobody else any more, goes on in its order.
    pub(super) fn thaw(&mut self) {
        let Some(fleet) = &mut self.fleet else { return };
        let mut free = Vec::new();
        for frozen in &mut fleet.frozen {
            let before = frozen.waiting.len();
            let waits = |p: &u16, epoch: &mut u32| fleet.known.get(usize::from(*p)).is_none_or(|k| k.0 < *epoch);
            frozen.waiting.retain(waits);
            if frozen.waiting.len() != before {
                frozen.only = frozen.waiting.keys().copied().collect();
            }
            if frozen.waiting.is_empty() {
                free.append(&mut frozen.pending);
            }
        }
        fleet.frozen.retain(|f| !f.waiting.is_empty());
        for pending in free {
            self.ask_again(pending);
        }
        if self.fleet.as_ref().is_some_and(|f| f.frozen.is_empty()) {
            self.ask_deferred_queries();
        }
    }

    fn ask_again(&mut self, pending: Pending) {
        let Pending { token, message, retain, only } = pending;
        let inbound = Inbound::from_stored(&message);
        self.flow = Flow { token: token.map(|t| Token { ask: 0, ..t }), ..Flow::default() };
        if retain {
            self.retain(&inbound);
        } else {
            let mut places: SmallVec<[u16; 8]> = only.iter().map(|p| self.shared.ring.home(*p)).collect();
            places.sort_unstable();
            places.dedup();
            let wanted = self.interest.peers_for(inbound.view.topic);
            for place in places {
                let mine: Vec<u16> = only.iter().copied().filter(|p| self.shared.ring.home(*p) == place).collect();
                if place == self.number {
                    self.route_here(&inbound, Some(&|p| mine.contains(&p)));
                } else if wanted.checked_shr(u32::from(place)).unwrap_or(0) & 1 == 1 {
                    self.forward(place, &inbound, Some(mine));
                }
            }
        }
        let flow = std::mem::take(&mut self.flow);
        let Some(token) = token else { return };
        if let Some(owed) = self.connection(token.connection).and_then(|c| c.owed.get_mut(token.number)) {
            owed.waiting += flow.waiting;
            owed.outcome.add(flow.outcome);
        }
        self.settle_answer(token, Outcome::default());
        self.deliver_own(&flow.own);
    }

    /// To a place that wants it: it has to answer, or its heir.
    pub(super) fn forward(&mut self, place: u16, message: &Inbound<'_>, only: Option<Vec<u16>>) {
        let token = self.flow.token;
        self.flow.waiting += u16::from(token.is_some());
        let token = token.map(|token| self.number_ask(token, place, message, false));
        let known = self.interest.applied(place);
        self.send(place, LaneMessage::Publish { message: message.store(), token, known, only });
    }

    pub(super) fn number_ask(&mut self, token: Token, place: u16, message: &Inbound<'_>, retain: bool) -> Token {
        let Some(fleet) = &mut self.fleet else { return token };
        fleet.asks += 1;
        fleet.asked.insert(fleet.asks, Asked { place, token, message: message.store(), retain });
        Token { ask: fleet.asks, ..token }
    }

    /// Another lane has answered; `missing` are partitions that it has not acted for, as they are not its any more.
    pub(super) fn on_answer(&mut self, token: Token, outcome: Outcome, missing: &[u16]) {
        if token.ask == 0 {
            return self.answer(token, outcome);
        }
        let Some(asked) = self.fleet.as_mut().and_then(|f| f.asked.remove(&token.ask)) else { return };
        if !missing.is_empty() {
            self.freeze_moved(missing);
            let only: Rc<[u16]> = missing.into();
            if let Some(owed) = self.connection(token.connection).and_then(|c| c.owed.get_mut(token.number)) {
                owed.waiting += 1;
            }
            let Asked { token, message, retain, .. } = asked;
            let pending = Pending { token: Some(token), message, retain, only };
            let fleet = self.fleet.as_mut().map(|f| &mut f.frozen);
            match fleet.and_then(|f| f.iter_mut().find(|f| missing.iter().any(|p| f.waiting.contains_key(p)))) {
                Some(frozen) => frozen.pending.push(pending),
                None => self.ask_again(pending),
            }
        }
        self.settle_answer(token, outcome);
    }
}
