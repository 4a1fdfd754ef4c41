//! A partition that moves to another place while its clients talk (`30-cluster.md`, section 6; record 0011).
//!
//! 0. *Warm.* Its messages go ahead while it serves (`warming.rs`).
//! 1. *Halt.* The owner pauses the partition and asks every lane of every member to hold what is for it. Each one answers behind
//!    everything that it had said; from then on nothing for the partition is on its way.
//! 2. *Seal.* When all have answered and all is safe, the owner packs the partition with everything it knows and sends it.
//! 3. *Own.* The target compares the digests. Only the table makes it the owner; it then fences the log, which must end where the
//!    owner ended, and speaks for the partition.
//! 4. *Go on.* Who hears that sends what it held, in order. No socket closes, no session begins anew.
//!
//! Before the seal the owner can call it off by itself; after it only the table decides who has the partition, and an owner
//! that gets it back goes on with what it had sealed, under a new epoch. If one of the two dies, halts end with it: connections
//! of these sessions are closed, and the log tells the next owner what was acknowledged.

use std::collections::BTreeSet;

use serde_json::json;

use super::relay::ToSession;
use super::shared_log::Walks;
use super::warming::Coming;
use super::{Lane, LaneMessage};
use crate::channel::ConnectionId;
use crate::connection::Away;
use crate::fatal::die_at;
use crate::interest::Wanted;
use crate::log::{Anchor, Fence};
use crate::partition::{Ahead, Effects, Ending, Input, Partition};
use crate::port::Shared;
use crate::record::make_uid;
use crate::ring::Ring;

/// A halt that lasts longer is called off, milliseconds: one slow node must not stop the others. Each time that this happens to a
/// partition its next halt may last twice as long, so that it can move where everything is slow.
const HALT_MS: u64 = 500;
const HALT_DOUBLED_MAX: u32 = 3;
/// After a seal the table must have decided within this, milliseconds; then the owner asks for its partition again. To take it back
/// costs what the target waits for, a change of the table: long enough that a busy disk under NATS is no reason.
const SEALED_MS: u64 = 5_000;
pub(super) const TARGET_GONE: &str = "its target is no member";
/// Bytes of a sealed partition that are sent in one tick.
const PART_BYTES: usize = 4 * 1024 * 1024;

/// A partition of this lane on its way out.
#[derive(Debug)]
pub(super) struct Leaving {
    to: u16,
    epoch: u32,
    since_ms: u64,
    /// Places that have not answered the halt.
    missing: BTreeSet<u16>,
    /// What its target has of it already.
    pub ahead: Ahead,
    /// Once it is sealed: its bytes, and how many of them were sent.
    parts: Option<(Vec<u8>, usize)>,
    told: bool,
    /// It stays and is cut in two: the new one.
    child: Option<u16>,
}

/// A partition that was sealed, at its old owner and at its target: whom the table names goes on with it.
#[derive(Debug)]
pub(super) struct Sealed {
    pub epoch: u32,
    /// Up to where its log goes.
    pub anchor: Anchor,
    /// What it has behind its last checkpoint.
    pub behind: usize,
    pub partition: Box<Partition>,
    /// It was a part of another one: groups know its members by that one's name.
    pub is_cut: bool,
}

impl Lane {
    // ---- the owner

    /// The partition shall go to the node with this slot.
    pub(super) fn begin_move(&mut self, partition: u16, slot: u16) {
        if !self.owns(partition) || slot == Ring::slot(self.number) {
            return;
        }
        let lanes = self.fleet.as_ref().and_then(|f| f.members.get(&slot)).map(|(_, lanes)| *lanes);
        match lanes.map(|lanes| self.shared.ring.place_in(slot, lanes, partition)) {
            Some(to) => self.begin_warming(partition, to),
            None => {
                let epoch = self.fleet.as_ref().and_then(|f| f.known.get(usize::from(partition))).map_or(0, |k| k.0);
                self.say_failed(partition, epoch, TARGET_GONE);
            }
        }
    }

    /// It halts, to be sealed and to go to a place; with a child it stays here and is cut.
    pub(super) fn begin_leaving(&mut self, partition: u16, to: u16, child: Option<u16>) {
        let Some(fleet) = &self.fleet else { return };
        if fleet.leaving.contains_key(&partition) || fleet.halts.contains_key(&partition) {
            return;
        }
        let epoch = fleet.known.get(usize::from(partition)).map_or(0, |k| k.0);
        if let Some(why) = self.obstacle(partition) {
            return self.say_failed(partition, epoch, &why);
        }
        let others: BTreeSet<u16> = self.other_places().collect();
        let filters = self.partition(partition).map(|p| {
            p.pause();
            p.filters().map(str::to_owned).collect::<Vec<_>>()
        });
        let filters = filters.unwrap_or_default();
        let wanted = Wanted::of(self.shared.ring.key(), filters.iter().map(String::as_str));
        self.hold_for(partition, epoch, self.number, wanted, child);
        others.iter().for_each(|place| self.send(*place, LaneMessage::Halt { partition, epoch, child }));
        die_at("owner begins");
        let ahead = if child.is_some() { Ahead::staying() } else { Ahead::default() };
        let leaving =
            Leaving { to, epoch, since_ms: self.now_ms, missing: others, ahead, parts: None, told: false, child };
        if let Some(fleet) = &mut self.fleet {
            fleet.leaving.insert(partition, leaving);
        }
    }

    fn other_places(&self) -> impl Iterator<Item = u16> {
        let members = self.fleet.iter().flat_map(|f| f.members.iter());
        let all = members.flat_map(|(slot, (_, lanes))| Ring::places_of(*slot).take(usize::from(*lanes)));
        all.filter(|place| *place != self.number)
    }

    /// Why a partition cannot move now.
    pub(super) fn obstacle(&self, partition: u16) -> Option<String> {
        match self.other_places().find(|place| !self.reaches(*place)) {
            Some(place) => Some(format!("the node in slot {} cannot be talked to", Ring::slot(place))),
            None => (!self.serves(partition)).then(|| "it is not served yet".to_owned()),
        }
    }

    pub(super) fn say_failed(&self, partition: u16, epoch: u32, why: &str) {
        let sealed = self.fleet.as_ref().is_some_and(|f| f.sealed.contains_key(&partition));
        let told =
            json!({"event": "move_failed", "partition": partition, "epoch": epoch, "why": why, "sealed": sealed});
        self.shared.events.push(told);
    }

    pub(super) fn on_halted(&mut self, from: u16, partition: u16, epoch: u32) {
        let leaving = self.fleet.as_mut().and_then(|f| f.leaving.get_mut(&partition));
        if let Some(leaving) = leaving.filter(|l| l.epoch == epoch) {
            leaving.missing.remove(&from);
        }
    }

    /// A node is gone: nobody waits for its answers, and what was about to go there stays.
    pub(super) fn move_without(&mut self, slot: u16) {
        self.warm_without(slot);
        let Some(fleet) = &mut self.fleet else { return };
        fleet.leaving.values_mut().for_each(|l| l.missing.retain(|place| Ring::slot(*place) != slot));
        let went = fleet.leaving.iter().filter(|(_, l)| Ring::slot(l.to) == slot && !l.told);
        for (partition, sealed) in went.map(|(p, l)| (*p, l.parts.is_some())).collect::<Vec<_>>() {
            if sealed {
                self.not_taken(partition);
            } else {
                self.call_off(partition, TARGET_GONE);
            }
        }
    }

    /// Only the table can say now who goes on with what was sealed.
    fn not_taken(&mut self, partition: u16) {
        let leaving = self.fleet.as_mut().and_then(|f| f.leaving.get_mut(&partition));
        if let Some(epoch) = leaving.map(|l| (l.told = true, l.epoch).1) {
            self.say_failed(partition, epoch, "its target has not taken it");
        }
    }

    /// The end of a tick: what can go on goes on.
    pub(super) fn tend_moves(&mut self) {
        self.tend_warming();
        let Some(fleet) = self.fleet.as_ref().filter(|f| !f.leaving.is_empty()) else { return };
        for partition in fleet.leaving.keys().copied().collect::<Vec<_>>() {
            self.tend_move(partition);
        }
    }

    fn tend_move(&mut self, partition: u16) {
        let Some(leaving) = self.fleet.as_ref().and_then(|f| f.leaving.get(&partition)) else { return };
        let waited = self.now_ms.saturating_sub(leaving.since_ms);
        let (sealed, told, missing) = (leaving.parts.is_some(), leaving.told, leaving.missing.first().copied());
        if sealed {
            die_at("owner has sealed");
            if !told && waited > SEALED_MS {
                self.not_taken(partition);
            }
            return self.send_parts(partition);
        }
        if missing.is_none() && self.is_at_rest(partition) {
            die_at("owner seals");
            return self.seal(partition);
        }
        let called_off = self.fleet.as_ref().and_then(|f| f.called_off.get(&partition)).copied().unwrap_or(0);
        if waited > HALT_MS << called_off.min(HALT_DOUBLED_MAX) {
            if let Some(fleet) = &mut self.fleet {
                fleet.called_off.insert(partition, called_off + 1);
            }
            let why = match missing {
                Some(place) => format!("the node in slot {} does not hold still", Ring::slot(place)),
                None => "what it wrote was not safe in time".to_owned(),
            };
            self.call_off(partition, &why);
        }
    }

    /// Nothing is on its way that this partition has to answer, or that answers it.
    fn is_at_rest(&self, partition: u16) -> bool {
        let rests =
            self.partitions.get(usize::from(partition)).and_then(|p| p.as_deref()).is_some_and(Partition::at_rest);
        let asks = self.questions.iter().any(|(_, a)| a.session.partition == partition);
        let gathers = self.gatherings.values().any(|g| g.session.partition == partition);
        rests && self.deferred.is_empty() && self.joins.is_empty() && !asks && !gathers
    }

    /// Everybody goes on as if nothing had been.
    pub(super) fn call_off(&mut self, partition: u16, why: &str) {
        let Some(leaving) = self.fleet.as_mut().and_then(|f| f.leaving.remove(&partition)) else { return };
        self.forget_halving(partition);
        let epoch = leaving.epoch;
        self.send_all(|| LaneMessage::GoOn { partition, epoch });
        let (now_ms, mut effects) = (self.now_ms, Effects::new());
        self.partition(partition).into_iter().for_each(|p| p.go_on(now_ms, &mut effects));
        self.carry_out(&mut effects, None);
        self.on_go_on(self.number, partition, epoch);
        self.say_failed(partition, epoch, why);
    }

    /// Nothing for it is on its way: it is packed, and acts no more.
    fn seal(&mut self, partition: u16) {
        let leaving = self.fleet.as_mut().and_then(|f| f.leaving.get_mut(&partition));
        let mut ahead = leaving.map(|l| std::mem::take(&mut l.ahead)).unwrap_or_default();
        let before = ahead.bodies().bytes();
        let packed = self.partition(partition).map(|p| p.pack(&mut ahead));
        let bytes = match packed {
            Some(Ok(bytes)) => bytes,
            Some(Err(why)) => return self.call_off(partition, &why),
            None => return,
        };
        let Some(gone) = self.partitions.get_mut(usize::from(partition)).and_then(Option::take) else { return };
        if let Some(log) = self.shared.cluster_log.get() {
            log.release(partition);
        }
        let behind = self.fleet.as_ref().and_then(|f| f.walks.get(&partition)).map_or(0, Walks::behind);
        let mut effects = Effects::new();
        gone.unlist(&mut effects);
        self.carry_out(&mut effects, None);
        self.note_away(&gone);
        self.note_given(partition);
        let Some(fleet) = &mut self.fleet else { return };
        fleet.full.remove(&partition);
        fleet.called_off.remove(&partition);
        fleet.batches.insert(partition, gone.journal().batches());
        let anchor = fleet.tips.get(&partition).copied().unwrap_or_default();
        let Some(leaving) = fleet.leaving.get_mut(&partition) else { return };
        let sealed = Sealed { epoch: leaving.epoch, anchor, behind, partition: gone, is_cut: false };
        if let Some(child) = leaving.child {
            leaving.parts = Some((Vec::new(), 0));
            return self.halve(partition, child, sealed, (ahead.into_bodies(), bytes));
        }
        fleet.sealed.insert(partition, sealed);
        self.shared.events.push(json!({"event": "sealed", "partition": partition, "bytes": before + bytes.len()}));
        leaving.parts = Some((bytes, 0));
        self.send_parts(partition);
    }

    /// Connections of this lane whose sessions go: what they could look up is noted with them.
    fn note_away(&mut self, gone: &Partition) {
        let number = self.number;
        let is_here = |place: u16| place == number;
        let mut found = Vec::new();
        for (_, s, connection) in gone.channels_of(&is_here) {
            let held = s.held.as_ref().map(|h| h.ids().iter().map(|(id, _)| *id).collect()).unwrap_or_default();
            found.push((connection, Away { held, expiry_s: s.expiry_s }));
        }
        for (connection, away) in found {
            if let Some(c) = self.connection(connection) {
                c.rare.get_or_insert_default().away = Some(away);
            }
        }
    }

    fn send_parts(&mut self, partition: u16) {
        let Some(fleet) = &mut self.fleet else { return };
        let Some(Leaving { to, epoch, parts: Some((bytes, sent)), .. }) = fleet.leaving.get_mut(&partition) else {
            return;
        };
        let is_free = is_free(&self.shared, *to);
        if *sent >= bytes.len() || *sent > 0 && !is_free {
            return;
        }
        let end = bytes.len().min(*sent + PART_BYTES);
        let part = bytes.get(*sent..end).unwrap_or_default().to_vec();
        *sent = end;
        let sealed = fleet.sealed.get(&partition).filter(|_| end == bytes.len()).map(|s| (s.anchor, s.behind));
        let (to, epoch) = (*to, *epoch);
        if end == bytes.len() {
            *bytes = Vec::new();
            *sent = 0;
        }
        self.send(to, LaneMessage::Luggage { partition, epoch, part, sealed });
    }

    /// Something of a sealed partition can be sent now.
    pub(super) fn sends_parts(&self) -> bool {
        let waits = |l: &Leaving| l.parts.as_ref().is_some_and(|(bytes, sent)| *sent < bytes.len());
        self.sends_ahead()
            || self.fleet.iter().flat_map(|f| f.leaving.values()).any(|l| waits(l) && is_free(&self.shared, l.to))
    }

    /// The table has decided: what was sealed is kept only by whom it names.
    pub(super) fn end_leaving(&mut self, partition: u16, owner: super::owners::Owner) {
        self.end_halving(partition, owner);
        let Some(fleet) = &mut self.fleet else { return };
        fleet.leaving.remove(&partition);
        fleet.drop_ahead(partition, |epoch| epoch < owner.epoch);
        let mine = owner.slot == Some(Ring::slot(self.number));
        if !mine || fleet.sealed.get(&partition).is_some_and(|s| s.epoch + 1 != owner.epoch) {
            self.drop_sealed(partition);
        }
    }

    // ---- the target

    pub(super) fn on_luggage(&mut self, partition: u16, epoch: u32, part: &[u8], sealed: Option<(Anchor, usize)>) {
        let Some(fleet) = &mut self.fleet else { return };
        fleet.coming(partition, epoch).luggage.extend_from_slice(part);
        let Some((anchor, behind)) = sealed else { return };
        let is_owned = fleet.owners.get(usize::from(partition)).is_some_and(|o| o.epoch == epoch);
        let Coming { ahead, luggage, .. } = fleet.coming.remove(&partition).unwrap_or_default();
        let (before, bytes) = (ahead.bytes(), ahead.bytes() + luggage.len());
        die_at("target unpacks");
        if !is_owned {
            return; // late: the table has decided meanwhile
        }
        match Partition::unpack(partition, self.config.rules(&self.shared), ahead, &luggage) {
            Ok(unpacked) => {
                let sessions = unpacked.state().len();
                self.drop_sealed(partition);
                let sealed = Sealed { epoch, anchor, behind, partition: Box::new(unpacked), is_cut: false };
                if let Some(fleet) = &mut self.fleet {
                    fleet.sealed.insert(partition, sealed);
                }
                let told = json!({"event": "carried", "partition": partition, "epoch": epoch, "sessions": sessions,
                    "bytes": bytes, "ahead": before});
                self.shared.events.push(told);
                die_at("target has it");
            }
            Err(why) => self.say_failed(partition, epoch, &why),
        }
    }

    /// The table has named somebody else, or the seal was of an older epoch.
    pub(super) fn drop_sealed(&mut self, partition: u16) {
        let sealed = self.fleet.as_mut().and_then(|f| f.sealed.remove(&partition));
        if let Some(mut sealed) = sealed {
            sealed.partition.retire(&mut Effects::new());
        }
    }

    /// The table says that this lane has the partition: it goes on with what was sealed, if that is there. False: it is not.
    pub(super) fn take_sealed(&mut self, partition: u16, epoch: u32) -> bool {
        let Some(fleet) = &mut self.fleet else { return false };
        let Some(sealed) = fleet.sealed.get(&partition).filter(|s| s.epoch + 1 == epoch) else { return false };
        let known = sealed.anchor;
        die_at("target owns");
        fleet.taking.insert(partition, super::owners::Taking { epoch, replay: None, version: 0 });
        match self.shared.cluster_log.get() {
            Some(log) => log.fence(Fence { partition, epoch, known, at_least: known.at, served: known.epoch }),
            None => self.settle_in(partition, epoch),
        }
        true
    }

    /// Its log is fenced: it must end where the seal ended. True if it was one that was sealed.
    pub(super) fn on_fenced_sealed(&mut self, partition: u16, epoch: u32, next: u64) -> bool {
        let Some(fleet) = &self.fleet else { return false };
        let Some(sealed) = fleet.sealed.get(&partition).filter(|s| s.epoch + 1 == epoch) else { return false };
        die_at("target has fenced");
        if sealed.partition.journal().last() == next {
            self.settle_in(partition, epoch);
        } else {
            // its old owner went on after all: what it sealed is not what was acknowledged
            self.drop_sealed(partition);
            self.shared.events.push(json!({"event": "stale", "partition": partition, "epoch": epoch}));
        }
        true
    }

    fn settle_in(&mut self, partition: u16, epoch: u32) {
        let Some(fleet) = &mut self.fleet else { return };
        let Some(Sealed { partition: mut fresh, behind, is_cut, .. }) = fleet.sealed.remove(&partition) else { return };
        fleet.walks.insert(partition, Walks::begin_with(behind, &fresh));
        fresh.set_next_uid(make_uid(partition, epoch, 1));
        if let Some(number) = fleet.batches.get(&partition) {
            fresh.set_next_batch(*number);
        }
        fresh.set_rules(self.config.rules(&self.shared));
        if let Some(place) = self.partitions.get_mut(usize::from(partition)) {
            *place = Some(fresh);
        }
        let (now_ms, mut effects) = (self.now_ms, Effects::new());
        self.partition(partition).into_iter().for_each(|p| p.settle_in(now_ms, &mut effects));
        self.carry_out(&mut effects, None);
        self.work();
        let gone: Vec<u16> = (0..self.shared.ring.places()).filter(|p| !self.reaches(*p)).collect();
        self.detach_in(partition, &|place| gone.contains(&place));
        if is_cut {
            self.join_from(partition);
        }
        self.speak_for(partition, epoch, true);
        self.ask_late_heirs(partition);
        die_at("target speaks");
    }

    /// Channels that lead to such places lead nowhere.
    pub(super) fn detach_in(&mut self, partition: u16, is_gone: &dyn Fn(u16) -> bool) {
        self.detach_those(partition, &|connection| is_gone(connection.lane));
    }

    /// A connection that a session wanted to be closed is not there any more.
    pub(super) fn on_gone(&mut self, connection: ConnectionId) {
        for partition in 0..self.shared.ring.partitions() {
            self.detach_those(partition, &|c| c == connection);
        }
    }

    /// It has ended, and what it said to its session at the end is not still waiting here.
    pub(super) fn is_gone(&mut self, connection: ConnectionId) -> bool {
        let says = |m: &LaneMessage| match m {
            LaneMessage::ToSession { what: ToSession::Detach { connection: c, .. }, .. } => *c == connection,
            _ => false,
        };
        let waits = self.fleet.iter().flat_map(|f| f.halts.values()).any(|h| h.held.iter().any(says));
        !waits && self.connection(connection).is_none()
    }

    fn detach_those(&mut self, partition: u16, is_gone: &dyn Fn(ConnectionId) -> bool) {
        let Some(p) = self.partitions.get(usize::from(partition)).and_then(|p| p.as_deref()) else { return };
        let all = p.channels_of(&|_| true).filter(|(_, _, connection)| is_gone(*connection));
        let found = all.map(|(session, s, connection)| (session, s.client_id.clone(), connection));
        let lost: Vec<_> = found.collect();
        for (session, client_id, connection) in lost {
            let ending = Ending { will: true, expiry_s: None };
            let input = Input::Detach { session: Some(session), client_id: &client_id, connection, ending };
            self.step(session.partition, input, None);
        }
        self.note_partition_timers();
    }
}

/// Little is under way to the node of this place.
pub(super) fn is_free(shared: &Shared, place: u16) -> bool {
    shared.links.get().is_none_or(|links| links.is_free(place))
}
