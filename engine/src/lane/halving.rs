//! A partition that is cut in two while its clients talk (record 0014): a move to where it is, from which two come out.
//!
//! 1. *Fence* the log of the new partition with the epoch of the old one, while that one serves.
//! 2. *Halt*, as for any move; what is for the new partition is held in the same queue.
//! 3. *Cut.* The packed partition is unpacked as two: sessions by client id, retained messages by topic, groups by name; both know
//!    every origin. Uids stay, so what others know of a session or a group stays true. The log of the new one gets its whole state;
//!    if an earlier attempt left something there, another append names that state as the checkpoint where reading begins.
//! 4. *Own.* Only the table makes it two; both then go on as after any move, in this lane. Until then the whole is kept, and
//!    whoever reads the old log meanwhile finds all of it. After that, who reads it leaves out what the table says is elsewhere.

use serde_json::json;

use super::Lane;
use super::exchange::Conveyed;
use super::moving::Sealed;
use crate::fatal::die_at;
use crate::log::{Anchor, At, Fence, Part};
use crate::partition::{Bodies, Effects, Input, Partition, Walk};
use crate::queue::IN_MEMORY;

/// Bytes of the new partition's state that are written at once: others wait for the log no longer than with a busy partition.
const SLICE_BYTES: usize = 4 * 1024 * 1024;

/// See the top of the file.
#[derive(Debug)]
pub(super) struct Halving {
    partition: u16,
    child: u16,
    /// Of the partition when it was sealed.
    epoch: u32,
    /// The partition before the cut, if the table decides otherwise.
    whole: (Bodies, Vec<u8>),
    /// What is cut off, until its log has it, and how much of it that has.
    upper: Option<Box<Partition>>,
    walk: Walk,
    stage: Stage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Fencing,
    /// The log has so many records, of an attempt that came to nothing.
    Fenced(u64),
    /// The batch with this number is on its way, the last of the state or not; the state begins at this address. It has to be named.
    Writing {
        number: u64,
        complete: bool,
        begin: At,
        named: bool,
    },
    /// The batch with this number names the state at this address.
    Naming(u64, At),
    Written,
}

impl Lane {
    /// The partition shall be cut; the new one has this number.
    pub(super) fn begin_split(&mut self, partition: u16, child: u16) {
        let Some(fleet) = &self.fleet else { return };
        let fits = usize::from(child) == fleet.owners.len() && self.shared.ring.parent(child) == partition;
        let epoch = fleet.known.get(usize::from(partition)).map_or(0, |k| k.0);
        if !self.serves(partition) || !fits || fleet.halving.is_some() {
            return;
        }
        let begun = Halving {
            partition,
            child,
            epoch,
            whole: <_>::default(),
            upper: None,
            walk: Walk::default(),
            stage: Stage::Fencing,
        };
        if let Some(fleet) = &mut self.fleet {
            fleet.halving = Some(begun);
        }
        match self.shared.cluster_log.get() {
            Some(log) => log.fence(Fence { partition: child, epoch, ..Fence::default() }),
            None => drop(self.on_fenced_child(child, epoch, 0)),
        }
    }

    /// The log of the new partition is fenced: the old one halts. False: it is not one that is cut off here.
    pub(super) fn on_fenced_child(&mut self, child: u16, epoch: u32, next: u64) -> bool {
        let is_it = |h: &&mut Halving| (h.child, h.epoch, h.stage) == (child, epoch, Stage::Fencing);
        let halving = self.fleet.as_mut().and_then(|f| f.halving.as_mut()).filter(is_it);
        let Some(halving) = halving else { return false };
        halving.stage = Stage::Fenced(next);
        let partition = halving.partition;
        self.begin_leaving(partition, self.number, Some(child));
        if self.fleet.as_ref().is_none_or(|f| !f.leaving.contains_key(&partition)) {
            self.forget_halving(partition);
        }
        true
    }

    /// Nothing is cut after all, and nothing was written.
    pub(super) fn forget_halving(&mut self, partition: u16) {
        let gone = self.fleet.as_mut().and_then(|f| f.halving.take_if(|h| h.partition == partition));
        if let (Some(gone), Some(log)) = (gone, self.shared.cluster_log.get()) {
            log.release(gone.child);
        }
    }

    /// It is sealed and at rest: from now on it is two, if the table says so.
    pub(super) fn halve(&mut self, partition: u16, child: u16, whole: Sealed, packed: (Bodies, Vec<u8>)) {
        let (ring, rules) = (self.shared.ring.clone(), self.config.rules(&self.shared));
        let is_upper = |name: &str| ring.partition_of(name, child + 1) == child;
        let halves = Partition::halve((partition, child), &rules, (&packed.0, &packed.1), &is_upper);
        let Some(fleet) = &mut self.fleet else { return };
        let (epoch, anchor, behind) = (whole.epoch, whole.anchor, whole.behind);
        let (lower, mut upper) = match halves {
            Ok(halves) => halves,
            Err(why) => {
                fleet.sealed.insert(partition, whole);
                return self.say_failed(partition, epoch, &why);
            }
        };
        let mut gone = whole.partition;
        gone.retire(&mut Effects::new());
        let lower = Sealed { epoch, anchor, behind, partition: Box::new(lower), is_cut: false };
        fleet.sealed.insert(partition, lower);
        let batches = fleet.batches.get(&child).copied().unwrap_or(0);
        let Some(halving) = fleet.halving.as_mut().filter(|h| h.child == child) else { return };
        let Stage::Fenced(next) = halving.stage else { return };
        halving.whole = packed;
        die_at("owner has cut");
        let Some(log) = self.shared.cluster_log.get() else {
            halving.upper = Some(Box::new(upper));
            return self.say_halved(Anchor { epoch, ..Anchor::default() });
        };
        upper.begin_log(next, batches);
        let mut walk = Walk::default();
        if let Some((batch, complete)) = upper.walk_slice(&mut walk, SLICE_BYTES) {
            halving.stage = Stage::Writing { number: batch.number, complete, begin: 0, named: next > 0 };
            log.append(batch.counted_from_0());
        }
        (halving.upper, halving.walk) = (Some(Box::new(upper)), walk);
    }

    /// Something that was written there is safe. False: it is not a partition that is cut off here.
    pub(super) fn on_safe_child(&mut self, child: u16, number: u64, parts: &[Part]) -> bool {
        let Some(halving) = self.fleet.as_mut().and_then(|f| f.halving.as_mut()).filter(|h| h.child == child) else {
            return false;
        };
        let (Some(first), Some(last)) = (parts.first(), parts.last()) else { return true };
        let (Some(upper), Some(log)) = (&mut halving.upper, self.shared.cluster_log.get()) else { return true };
        let up_to = last.first + u64::from(last.count);
        upper.step(self.now_ms, Input::Safe { number, up_to, address: IN_MEMORY }, &mut Effects::new());
        match halving.stage {
            Stage::Writing { number: written, complete, begin, named } if written == number => {
                let begin = if begin == 0 { first.at } else { begin };
                if !complete {
                    if let Some((batch, complete)) = upper.walk_slice(&mut halving.walk, SLICE_BYTES) {
                        halving.stage = Stage::Writing { number: batch.number, complete, begin, named };
                        log.append(batch.counted_from_0());
                    }
                } else if named {
                    log.checkpoint(child, begin);
                    upper.write_nothing();
                    if let Some(batch) = upper.take_batch() {
                        halving.stage = Stage::Naming(batch.number, begin);
                        log.append(batch.counted_from_0());
                    }
                } else {
                    log.release(child);
                    let anchor = Anchor { at: last.at, epoch: halving.epoch, next: up_to, checkpoint: 0 };
                    self.say_halved(anchor);
                }
            }
            Stage::Naming(written, checkpoint) if written == number => {
                log.trim(child, checkpoint);
                log.release(child);
                let anchor = Anchor { at: last.at, epoch: halving.epoch, next: up_to, checkpoint };
                self.say_halved(anchor);
            }
            _ => {}
        }
        true
    }

    /// Its log takes nothing from here any more: the table decides anew.
    pub(super) fn on_lost_child(&mut self, child: u16) -> bool {
        let halving = self.fleet.as_ref().and_then(|f| f.halving.as_ref()).filter(|h| h.child == child);
        let Some(Halving { partition, epoch, whole, .. }) = halving else { return false };
        let (partition, epoch, is_cut) = (*partition, *epoch, !whole.1.is_empty());
        let why = "the log of the new partition does not take it";
        if !is_cut && self.fleet.as_ref().is_some_and(|f| f.leaving.contains_key(&partition)) {
            self.call_off(partition, why);
            return true;
        }
        if !is_cut {
            // the owner serves on under its epoch: no change of the table would end it
            self.forget_halving(partition);
        }
        self.say_failed(partition, epoch, why);
        true
    }

    fn say_halved(&mut self, anchor: Anchor) {
        let Some(fleet) = &mut self.fleet else { return };
        let Some(halving) = &mut fleet.halving else { return };
        let Some(upper) = halving.upper.take() else { return };
        halving.stage = Stage::Written;
        let (partition, child, epoch) = (halving.partition, halving.child, halving.epoch);
        let told = json!({"event": "halved", "partition": partition, "epoch": epoch, "child": child,
            "sessions": upper.state().len(), "bytes": halving.whole.1.len()});
        fleet.batches.insert(child, upper.journal().batches());
        fleet.sealed.insert(child, Sealed { epoch, anchor, behind: 0, partition: upper, is_cut: true });
        self.shared.events.push(told);
        die_at("owner has written");
    }

    /// The table has decided about a partition that was cut here: it is two now, or it is whole again.
    pub(super) fn end_halving(&mut self, partition: u16, owner: super::owners::Owner) {
        let Some(fleet) = self.fleet.as_mut() else { return };
        let Some(halving) = fleet.halving.take_if(|h| h.partition == partition) else { return };
        let is_two = fleet.owners.len() > usize::from(halving.child) && owner.epoch == halving.epoch + 1;
        if is_two {
            return;
        }
        let sealed = fleet.sealed.get(&partition);
        let anchor = sealed.map(|s| (s.anchor, s.behind)).filter(|_| !halving.whole.1.is_empty());
        if let Some(log) = self.shared.cluster_log.get() {
            log.release(halving.child);
        }
        if anchor.is_none() {
            return; // it was never cut
        }
        self.drop_sealed(partition);
        self.drop_sealed(halving.child);
        if let Some(mut upper) = halving.upper {
            upper.retire(&mut Effects::new());
        }
        let (bodies, bytes) = halving.whole;
        let whole = Partition::unpack(partition, self.config.rules(&self.shared), bodies, &bytes);
        if let (Ok(whole), Some((anchor, behind)), Some(fleet)) = (whole, anchor, &mut self.fleet) {
            let whole = Sealed { epoch: halving.epoch, anchor, behind, partition: Box::new(whole), is_cut: false };
            fleet.sealed.insert(partition, whole);
        }
    }

    /// Sessions that were cut off tell their groups where they are.
    pub(super) fn join_from(&mut self, partition: u16) {
        let mut effects = Effects::new();
        if let Some(p) = self.partition(partition) {
            p.join_again(&|_| true, &mut effects);
        }
        self.carry_out(&mut effects, None);
    }

    /// What is for a group of this partition that is not here: it may have been cut off, and what was said before goes after it.
    /// `None`: it has gone there.
    pub(super) fn pass_down(&mut self, partition: u16, what: Conveyed) -> Option<Conveyed> {
        let ring = &self.shared.ring;
        if self.fleet.is_none() || !ring.is_cut() {
            return Some(what);
        }
        match &what {
            Conveyed::GroupLeave { group, .. } | Conveyed::GroupOnline { group, .. } => {
                let now = ring.partition(group);
                if now != partition {
                    self.convey(now, what);
                    return None;
                }
            }
            Conveyed::GroupDone { place, .. } | Conveyed::GroupReturn { place, .. } => {
                let here = self.partitions.get(usize::from(partition)).and_then(|p| p.as_deref());
                if here.is_some_and(|p| p.state().group(place.uid).is_none()) {
                    for child in ring.children(partition).collect::<Vec<_>>() {
                        self.convey(child, what.clone());
                    }
                    return None;
                }
            }
            // the session may live in what was cut off, which the group has not heard yet: nobody says that it leaves
            Conveyed::GroupAsk { session, .. } if ring.children(partition).next().is_some() => {
                let here = self.partitions.get(usize::from(partition)).and_then(|p| p.as_deref());
                here.filter(|p| p.session(*session).is_some())?;
            }
            Conveyed::Dispatch(_) | Conveyed::GroupAsk { .. } => {}
        }
        Some(what)
    }
}
