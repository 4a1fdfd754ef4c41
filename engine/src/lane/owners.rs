//! Who owns what, as the table says, and how a partition comes to this lane and leaves it (`30-cluster.md`, sections 1 to 5).
//!
//! A partition that comes: its log is fenced with the new epoch and read, its sessions and subscriptions are there again, then
//! this lane *speaks* for it in its interest. When every member has confirmed that, it is *served*: sessions may be attached. One
//! that goes is forgotten at once: whoever owns it next reads the log.

use super::{Lane, LaneMessage};
use crate::channel::Token;
use crate::codec::Reason;
use crate::interest::Delta;
use crate::log::Fence;
use crate::partition::{Effects, Input, Partition, Resumed};
use crate::record::{Replay, make_uid};
use crate::ring::{NODE_LANES_MAX, NOWHERE, Ring};
use crate::session::Attach;

/// A CONNECT waits so long for an owner, milliseconds.
const PARKED_MS: u64 = 5_000;
/// Members of shared groups that were elsewhere have joined again by then.
const SETTLE_MS: u64 = 5_000;
/// Moves that were under way when a partition got another owner have ended by then.
const HEIR_MS: u64 = 60_000;
/// So many partitions that were given away are remembered.
const GIVEN_MAX: usize = 4_096;

/// One partition in the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Owner {
    /// Slot of its node.
    pub slot: Option<u16>,
    pub epoch: u32,
    /// Version of the table that made it so.
    pub since: u64,
    /// The log is known to have obeyed this epoch; 0: nothing is known.
    pub served: u32,
}

/// A partition on its way to this lane.
#[derive(Debug)]
pub(super) struct Taking {
    pub epoch: u32,
    /// What its log says; `None` once it is there and waits for the confirmations of this version.
    pub replay: Option<Box<Replay>>,
    pub version: u64,
}

/// A CONNECT that waits for an owner.
#[derive(Debug)]
pub(super) struct Parked {
    pub since_ms: u64,
    pub partition: u16,
    pub attach: Box<Attach>,
}

impl Lane {
    /// A newer table.
    pub(super) fn on_table(&mut self, version: u64, owners: &[Owner]) {
        let Some(fleet) = self.fleet.as_mut().filter(|f| f.table < version) else { return };
        if fleet.table == 0 {
            let epoch = |p: u16| owners.get(usize::from(p)).map_or(1, |o| o.epoch);
            fleet.frozen.iter_mut().for_each(|f| f.require(epoch));
        }
        fleet.table = version;
        self.interest.set_table(version);
        let before = u16::try_from(fleet.owners.len()).unwrap_or(u16::MAX);
        fleet.owners.resize(owners.len(), Owner::default());
        fleet.known.resize(owners.len(), (0, NOWHERE));
        self.partitions.resize_with(owners.len(), || None);
        let mut changed = Vec::new();
        for (p, (old, new)) in (0..).zip(fleet.owners.iter_mut().zip(owners)) {
            if (old.slot, old.epoch) != (new.slot, new.epoch) {
                *old = Owner { since: version, ..*new };
                changed.push((p, *new));
            }
        }
        let numbers: Vec<u16> = changed.iter().map(|(p, _)| *p).collect();
        let newer = |p: u16, epoch: u32, _| owners.get(usize::from(p)).is_none_or(|o| epoch < o.epoch);
        self.freeze_moved(&numbers, &newer);
        let cut = (0..).zip(owners).skip(usize::from(before)).map(|(p, owner)| (p, owner.epoch));
        self.freeze_cut(&cut.collect::<Vec<(u16, u32)>>());
        for (p, owner) in &changed {
            self.give_away(*p);
            self.end_leaving(*p, *owner);
        }
        self.break_halts(&|p, _, epoch| owners.get(usize::from(p)).is_some_and(|o| o.epoch > epoch + 1));
        let lost: Vec<u16> = numbers.into_iter().filter(|p| !self.is_halted(*p)).collect();
        if !lost.is_empty() {
            self.orphan(&lost);
        }
        for (p, owner) in changed {
            let mine = owner.slot == Some(Ring::slot(self.number)) && self.is_lane_of(p);
            if mine {
                self.begin_taking(p, owner.epoch);
            }
        }
        self.apply_early();
        self.retry_parked();
    }

    fn is_lane_of(&self, partition: u16) -> bool {
        self.shared.ring.lane_of(partition) == self.number % NODE_LANES_MAX
    }

    fn begin_taking(&mut self, partition: u16, epoch: u32) {
        if self.take_sealed(partition, epoch) {
            return;
        }
        let replay = self.shared.cluster_log.get().map(|_| Box::new(Replay::with_bodies(partition)));
        let logged = replay.is_some();
        if let Some(fleet) = &mut self.fleet {
            fleet.taking.insert(partition, Taking { epoch, replay, version: 0 });
        }
        match self.shared.cluster_log.get().filter(|_| logged) {
            Some(log) => {
                let owner = self.fleet.as_ref().and_then(|f| f.owners.get(usize::from(partition)));
                let served = owner.map_or(0, |o| o.served);
                log.fence(Fence { partition, epoch, served, ..Fence::default() });
            }
            None => {
                let mut fresh = Partition::new(partition, self.config.rules(&self.shared), 0);
                fresh.set_next_uid(make_uid(partition, epoch, 1));
                self.take(partition, epoch, fresh);
            }
        }
    }

    /// The log is fenced and read: the partition is there, and this lane speaks for it.
    pub(super) fn take(&mut self, partition: u16, epoch: u32, fresh: Partition) {
        if let Some(place) = self.partitions.get_mut(usize::from(partition)) {
            *place = Some(Box::new(fresh));
        }
        let resumed = Resumed { incarnation: epoch, last: 0, ended_ms: self.now_ms, now_ms: self.now_ms };
        let mut effects = Effects::new();
        if let Some(p) = self.partition(partition) {
            p.resume_all(resumed, &mut effects);
        }
        self.carry_out(&mut effects, None);
        self.work();
        self.speak_for(partition, epoch, false);
    }

    /// Everybody learns that this lane speaks for a partition; `carried` with all it knew.
    pub(super) fn speak_for(&mut self, partition: u16, epoch: u32, carried: bool) {
        let version = self.interest.announce(partition, epoch, carried);
        let number = self.number;
        if let Some(fleet) = &mut self.fleet {
            fleet.since.insert(partition, version);
            if !carried {
                fleet.settle.push((self.now_ms + SETTLE_MS, partition));
            }
            fleet.taking.insert(partition, Taking { epoch, replay: None, version });
        }
        self.speaks(partition, epoch, number, carried);
        self.note_partition_timers();
        self.look_at_barriers();
    }

    /// Somebody speaks for a partition from now on.
    fn speaks(&mut self, partition: u16, epoch: u32, place: u16, carried: bool) {
        let known = self.fleet.as_mut().and_then(|f| f.known.get_mut(usize::from(partition)));
        match known {
            Some(known) if known.0 <= epoch => *known = (epoch, place),
            _ => return,
        }
        self.thaw();
        if !self.end_halt(partition, epoch, place, carried) {
            self.join_again(partition);
            let now_ms = self.now_ms;
            if let Some(fleet) = &mut self.fleet {
                fleet.heirs.retain(|(at, _)| now_ms < at + HEIR_MS);
                fleet.heirs.push((now_ms, partition));
            }
            self.ask_heirs(&[partition], None);
        }
    }

    /// Groups here, or those of one partition, ask who owns these now what became of what their sessions had.
    fn ask_heirs(&mut self, heirs: &[u16], only: Option<u16>) {
        let (now_ms, ring) = (self.now_ms, self.shared.ring.clone());
        let found = !ring.is_cut();
        let mut effects = self.spare_effects.pop().unwrap_or_default();
        let all = (0..).zip(&mut self.partitions).filter(|(number, _)| only.is_none_or(|only| only == *number));
        for p in all.filter_map(|(_, p)| p.as_deref_mut()) {
            heirs.iter().for_each(|heir| p.ask_heir(now_ms, *heir, found, &mut effects));
        }
        self.carry_out(&mut effects, None);
        self.spare_effects.push(effects);
    }

    /// A partition that has moved here may have left while one of these had no owner.
    pub(super) fn ask_late_heirs(&mut self, partition: u16) {
        let heirs: Vec<u16> = self.fleet.iter().flat_map(|f| f.heirs.iter().map(|(_, p)| *p)).collect();
        self.ask_heirs(&heirs, Some(partition));
    }

    /// Sessions of this lane join the groups of a partition that has another owner now.
    fn join_again(&mut self, partition: u16) {
        let ring = self.shared.ring.clone();
        let mut effects = self.spare_effects.pop().unwrap_or_default();
        for p in self.partitions.iter().flatten() {
            p.join_again(&|group| ring.partition(group) == partition, &mut effects);
        }
        self.carry_out(&mut effects, None);
        self.spare_effects.push(effects);
    }

    /// What every member has confirmed is served.
    pub(super) fn serve_confirmed(&mut self) {
        let confirmed = self.interest.confirmed();
        let Some(fleet) = &mut self.fleet else { return };
        let ready = |(_, t): &(&u16, &Taking)| t.replay.is_none() && t.version != 0 && t.version <= confirmed;
        let ready: Vec<(u16, u32)> = fleet.taking.iter().filter(ready).map(|(p, t)| (*p, t.epoch)).collect();
        if ready.is_empty() {
            return;
        }
        for (partition, epoch) in ready {
            fleet.taking.remove(&partition);
            self.shared.events.push(serde_json::json!({"event": "served", "partition": partition, "epoch": epoch}));
        }
        self.retry_parked();
    }

    /// The partition is not this lane's any more, if it was.
    pub(super) fn give_away(&mut self, partition: u16) {
        let Some(fleet) = &mut self.fleet else { return };
        let coming = fleet.taking.remove(&partition);
        let gone = self.partitions.get_mut(usize::from(partition)).and_then(Option::take);
        if coming.is_none() && gone.is_none() {
            return;
        }
        if let Some(log) = self.shared.cluster_log.get() {
            log.release(partition);
        }
        fleet.since.remove(&partition);
        fleet.walks.remove(&partition);
        fleet.tips.remove(&partition);
        fleet.full.remove(&partition);
        let Some(mut gone) = gone else { return };
        fleet.batches.insert(partition, gone.journal().batches());
        let mut effects = Effects::new();
        let unanswered = gone.retire(&mut effects);
        self.freeze_own(partition, &effects);
        self.carry_out(&mut effects, None);
        self.note_given(partition);
        for token in unanswered {
            self.left_unanswered(token, partition);
        }
    }

    /// This lane speaks for it no more: who asks for it is told so.
    pub(super) fn note_given(&mut self, partition: u16) {
        self.interest.withdraw(partition);
        let version = self.interest.touch();
        let Some(fleet) = &mut self.fleet else { return };
        fleet.walks.remove(&partition);
        fleet.since.remove(&partition);
        fleet.given.push_back((version, partition));
        if fleet.given.len() > GIVEN_MAX {
            fleet.given.pop_front();
        }
    }

    /// A publish that the partition was to answer when it was safe.
    fn left_unanswered(&mut self, token: Token, partition: u16) {
        match self.late.get_mut(&token) {
            Some(late) => {
                late.missing.push(partition);
                self.answer(token, crate::channel::Outcome::default());
            }
            None => self.close_unanswered(token.connection, Reason::SERVER_BUSY), // the client repeats it
        }
    }

    /// Partitions that this lane has given away since the asker heard of its interest last.
    pub(super) fn given_since(&self, known: u64) -> Vec<u16> {
        let given = self.fleet.iter().flat_map(|f| f.given.iter().rev());
        let mut given: Vec<u16> = given.take_while(|(version, _)| *version > known).map(|(_, p)| *p).collect();
        given.retain(|p| !self.owns(*p));
        given
    }

    // ---- what others say

    pub(super) fn on_interest(&mut self, from: u16, delta: Delta) {
        let Some(fleet) = &mut self.fleet else { return self.apply_interest(from, &delta) };
        let waits = fleet.early.get(&from).is_some_and(|early| !early.is_empty());
        if waits || delta.table > fleet.table {
            return fleet.early.entry(from).or_default().push_back(delta);
        }
        self.apply_interest(from, &delta);
    }

    fn apply_interest(&mut self, from: u16, delta: &Delta) {
        self.learn_frozen(from, delta);
        self.interest.apply(from, delta);
        for served in &delta.serves {
            self.speaks(served.partition, served.epoch, from, served.carried);
        }
        if !self.holds_confirmation(from, delta) {
            self.confirm_to(from, delta.version);
        }
    }

    /// Behind what speaking has set free: who hears it may count on that.
    pub(super) fn confirm_to(&mut self, from: u16, version: u64) {
        let (sent, nodes) = (self.sent.clone(), self.starts());
        self.send(from, LaneMessage::Confirm { version, sent, nodes });
    }

    /// A newer table is in force: what named it counts now.
    fn apply_early(&mut self) {
        let Some(fleet) = &mut self.fleet else { return };
        let table = fleet.table;
        let mut ready = Vec::new();
        for (from, early) in &mut fleet.early {
            while early.front().is_some_and(|d| d.table <= table) {
                ready.extend(early.pop_front().map(|delta| (*from, delta)));
            }
        }
        for (from, delta) in ready {
            self.apply_interest(from, &delta);
        }
    }

    // ---- sessions that are asked for too early

    /// Is the partition here, and known to be here by everybody?
    pub(super) fn serves(&self, partition: u16) -> bool {
        self.owns(partition) && self.fleet.as_ref().is_none_or(|f| !f.taking.contains_key(&partition))
    }

    /// A CONNECT for a partition that nobody serves at this moment.
    pub(super) fn park(&mut self, partition: u16, attach: Box<Attach>) {
        let since_ms = self.now_ms;
        match &mut self.fleet {
            Some(fleet) => {
                fleet.parked.retain(|p| p.attach.connection != attach.connection);
                fleet.parked.push(Parked { since_ms, partition, attach });
            }
            None => self.refuse_attach(&attach),
        }
    }

    fn refuse_attach(&mut self, attach: &Attach) {
        let (id, reason) = (attach.connection, Reason::SERVER_UNAVAILABLE);
        if id.lane != self.number {
            return self.tell_connection(id, super::ToConnection::Refused { reason });
        }
        self.on_refused(id, reason);
    }

    /// The connection has gone meanwhile.
    pub(super) fn unpark(&mut self, connection: crate::channel::ConnectionId) {
        if let Some(fleet) = &mut self.fleet {
            fleet.parked.retain(|p| p.attach.connection != connection);
        }
    }

    pub(super) fn retry_parked(&mut self) {
        let parked = self.fleet.as_mut().map(|f| std::mem::take(&mut f.parked)).unwrap_or_default();
        for Parked { since_ms, partition, attach } in parked {
            let home = self.shared.ring.home(partition);
            if self.serves(partition) {
                self.step(partition, Input::Attach(attach), None);
            } else if home != self.number && attach.connection.lane == self.number && self.reaches(home) {
                self.send_to_session(partition, super::ToSession::Attach(attach));
            } else if self.now_ms > since_ms + PARKED_MS {
                self.refuse_attach(&attach);
            } else if let Some(fleet) = &mut self.fleet {
                fleet.parked.push(Parked { since_ms, partition, attach });
            }
        }
    }

    /// What the cluster wants of a tick.
    pub(super) fn tend_fleet(&mut self) {
        if self.fleet.is_none() {
            return;
        }
        self.speed_up();
        self.settle_waiting();
        self.confirm_late();
        if self.is_lonely() {
            self.close_lonely();
        }
        let now_ms = self.now_ms;
        if self.fleet.as_ref().is_some_and(|f| f.parked.iter().any(|p| now_ms > p.since_ms + PARKED_MS)) {
            self.retry_parked();
        }
        let due = |f: &mut Box<super::fleet::Fleet>| -> Vec<u16> {
            let calm = f.frozen.is_empty() && f.taking.is_empty();
            let due = f.settle.iter().filter(|(at, _)| calm && *at <= now_ms).map(|(_, p)| *p).collect();
            f.settle.retain(|(at, _)| !calm || *at > now_ms);
            due
        };
        for partition in self.fleet.as_mut().map(due).unwrap_or_default() {
            let found = !self.shared.ring.is_cut();
            self.step(partition, Input::GroupsSettled { found }, None);
        }
    }

    /// Something has to be looked at soon though nothing may happen.
    pub(super) fn fleet_waits(&self) -> bool {
        let waits = |f: &super::fleet::Fleet| {
            !(f.unsettled.is_empty() && f.parked.is_empty() && f.settle.is_empty() && f.leaving.is_empty())
        };
        self.fleet.as_deref().is_some_and(waits)
    }
}
