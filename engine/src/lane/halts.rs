//! What every lane does while a partition moves, or is cut in two: what is for it is held, and goes on when somebody speaks for it
//! again (records 0011, 0014).
//!
//! A partition that is cut is held together with the one that is cut off it, in one queue: order between a client's old and new
//! partition is that of the queue, and both are in one lane when it is sent.

use std::collections::VecDeque;

use serde_json::json;

use super::frozen::Frozen;
use super::{Lane, LaneMessage};
use crate::channel::SessionRef;
use crate::fatal::die_at;
use crate::interest::Wanted;
use crate::partition::Input;

/// Somebody moves a partition: what is for it waits here.
#[derive(Debug)]
pub(super) struct Halt {
    from: u16,
    epoch: u32,
    since_ms: u64,
    pub held: VecDeque<LaneMessage>,
    /// What is cut off it.
    child: Option<u16>,
    /// Who has spoken so far had everything that it knew.
    carried: bool,
}

impl Lane {
    pub(super) fn on_halt(&mut self, from: u16, partition: u16, epoch: u32, child: Option<u16>) {
        let known = self.fleet.as_ref().and_then(|f| f.known.get(usize::from(partition)));
        if known != Some(&(epoch, from)) {
            return; // it is called off after a while
        }
        die_at("peer is asked");
        let wanted = self.interest.snapshot(from..from + 1);
        self.hold_for(partition, epoch, from, wanted, child);
        self.send(from, LaneMessage::Halted { partition, epoch });
    }

    pub(super) fn hold_for(&mut self, partition: u16, epoch: u32, from: u16, wanted: Wanted, child: Option<u16>) {
        let since_ms = self.now_ms;
        let Some(fleet) = &mut self.fleet else { return };
        let behind = fleet.asked.iter().filter(|(_, a)| a.place == from).map(|(ask, _)| *ask).collect();
        fleet.frozen.push(Frozen::planned(wanted, partition, epoch + 1, behind));
        let halt = Halt { from, epoch, since_ms, held: VecDeque::new(), child, carried: true };
        fleet.halts.insert(partition, halt);
    }

    /// It was called off: what was held goes to who has it.
    pub(super) fn on_go_on(&mut self, from: u16, partition: u16, epoch: u32) {
        let Some(fleet) = &mut self.fleet else { return };
        fleet.drop_ahead(partition, |ended| ended == epoch);
        if fleet.halts.get(&partition).is_none_or(|h| (h.from, h.epoch) != (from, epoch)) {
            return;
        }
        let halt = fleet.halts.remove(&partition);
        self.unfreeze(partition);
        halt.into_iter().for_each(|halt| self.release(halt));
    }

    fn release(&mut self, halt: Halt) {
        for message in halt.held {
            let partition = self.destination(&message);
            self.send(self.shared.ring.home(partition), message);
        }
    }

    fn destination(&self, message: &LaneMessage) -> u16 {
        match message {
            LaneMessage::ToSession { partition, .. } | LaneMessage::Convey { partition, .. } => *partition,
            LaneMessage::Join { group, .. } => self.shared.ring.partition(group),
            LaneMessage::Retain { message, .. } => self.shared.ring.partition(message.view().topic),
            _ => u16::MAX,
        }
    }

    /// The partition whose halt holds what is for this one.
    fn halt_of(&self, partition: u16) -> Option<u16> {
        let halts = &self.fleet.as_ref()?.halts;
        if halts.contains_key(&partition) {
            return Some(partition);
        }
        halts.iter().find(|(_, halt)| halt.child == Some(partition)).map(|(parent, _)| *parent)
    }

    /// Is it for a partition that moves? Then it waits.
    pub(super) fn hold(&mut self, partition: u16, message: LaneMessage) -> Option<LaneMessage> {
        let halt = self.halt_of(partition).and_then(|p| self.fleet.as_mut()?.halts.get_mut(&p));
        match halt {
            Some(halt) => {
                halt.held.push_back(message);
                None
            }
            None => Some(message),
        }
    }

    pub(super) fn is_halted(&self, partition: u16) -> bool {
        self.halt_of(partition).is_some()
    }

    /// Somebody speaks for a partition under a newer epoch. True if channels to its sessions go on.
    pub(super) fn end_halt(&mut self, partition: u16, epoch: u32, place: u16, carried: bool) -> bool {
        let halted = self.halt_of(partition);
        let halt = halted.and_then(|p| Some((p, self.fleet.as_mut()?.halts.get_mut(&p)?)));
        let Some((halted, halt)) = halt.filter(|(_, halt)| halt.epoch < epoch) else {
            // it was carried past this lane: nothing here belongs to its sessions any more
            if carried && place != self.number {
                self.send(place, LaneMessage::Apart { partition });
            }
            return carried;
        };
        halt.carried &= carried;
        if self.is_spoken_for(halted) {
            self.complete_halt(halted, epoch);
        }
        carried
    }

    /// Somebody speaks for it since the halt, and for what is cut off it, if that has come to pass.
    fn is_spoken_for(&self, halted: u16) -> bool {
        let Some(fleet) = &self.fleet else { return false };
        let Some(halt) = fleet.halts.get(&halted) else { return false };
        let newer = |p: u16| fleet.known.get(usize::from(p)).is_some_and(|k| k.0 > halt.epoch);
        let exists = |p: &u16| usize::from(*p) < fleet.owners.len();
        newer(halted) && halt.child.filter(exists).is_none_or(newer)
    }

    fn complete_halt(&mut self, partition: u16, epoch: u32) {
        let Some(halt) = self.fleet.as_mut().and_then(|f| f.halts.remove(&partition)) else { return };
        if !halt.carried {
            return self.orphan(&[partition]);
        }
        die_at("peer holds");
        let pause_ms = self.shared.clock.now_ms().saturating_sub(halt.since_ms);
        let told = json!({"event": "moved", "partition": partition, "epoch": epoch, "pause_ms": pause_ms});
        self.shared.events.push(told);
        if halt.child.is_some() {
            self.rehome(partition);
        }
        self.release(halt);
        die_at("peer goes on");
    }

    /// Connections whose sessions were in a partition that was cut know where they are now.
    fn rehome(&mut self, partition: u16) {
        let ring = self.shared.ring.clone();
        for (_, c) in self.connections.iter_mut().filter(|(_, c)| c.session.partition == partition) {
            if c.session.uid != 0 {
                c.session.partition = ring.partition(&c.client_id);
            }
        }
    }

    /// The partition of this lane that has a session: what was said before a cut names the one that had it.
    pub(super) fn heir_of(&self, session: SessionRef) -> u16 {
        let (named, ring) = (session.partition, &self.shared.ring);
        if !ring.is_cut() {
            return named;
        }
        let has = |p: &u16| {
            let here = self.partitions.get(usize::from(*p)).and_then(|p| p.as_deref());
            here.is_some_and(|p| p.session(session).is_some())
        };
        if has(&named) { named } else { ring.children(named).filter(has).last().unwrap_or(named) }
    }

    /// The same for what is done to a partition.
    pub(super) fn heir(&self, partition: u16, input: &Input<'_>) -> u16 {
        let session = match input {
            Input::Hold { session, .. }
            | Input::Release { session, .. }
            | Input::Ack { session, .. }
            | Input::TooLarge { session, .. }
            | Input::Congested { session, .. }
            | Input::Resume { session }
            | Input::Opened { session }
            | Input::Replay { session, .. }
            | Input::Detach { session: Some(session), .. } => *session,
            Input::Dispatch(dispatched) => dispatched.to,
            Input::Detach { session: None, client_id, .. } => {
                let now = self.shared.ring.partition(client_id);
                return if self.owns(now) { now } else { partition };
            }
            _ => return partition,
        };
        self.heir_of(SessionRef { partition, ..session })
    }

    /// The partition as far as the table goes that is in force here: others may know of cuts already.
    pub(super) fn as_known(&self, mut partition: u16) -> u16 {
        let known = self.fleet.as_ref().map_or(usize::MAX, |f| f.owners.len());
        while usize::from(partition) >= known && self.shared.ring.parent(partition) != partition {
            partition = self.shared.ring.parent(partition);
        }
        partition
    }

    /// These halts end without anybody who would go on: their connections are closed.
    pub(super) fn break_halts(&mut self, is_over: &dyn Fn(u16, u16, u32) -> bool) {
        let Some(fleet) = &mut self.fleet else { return };
        let over = fleet.halts.iter().filter(|(p, h)| is_over(**p, h.from, h.epoch)).map(|(p, _)| *p);
        let over: Vec<u16> = over.collect();
        over.iter().for_each(|p| drop(fleet.halts.remove(p)));
        if !over.is_empty() {
            self.orphan(&over);
        }
    }

    /// What goes to a session, a group or a partition elsewhere, unless it has to wait.
    pub(super) fn post_to(&mut self, partition: u16, message: LaneMessage) {
        if let Some(message) = self.hold(partition, message) {
            self.send(self.shared.ring.home(partition), message);
        }
    }
}
