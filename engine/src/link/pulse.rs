//! Who has answered when: what an acknowledgement of this node rests on (`30-cluster.md`, section 2). No I/O, no clock.
//!
//! Each node tells each other one its time, and gets it back. A node may acknowledge only while a majority of the members
//! has given back a time that is not older than [`ANSWER_MS`]: counted from when it was said, so that an answer that was long on its
//! way, or a node that stood still, never looks fresh. A node that a peer is *bound* not to answer gets back what it got last:
//! whoever has reported a member silent answers it no more, so two majorities never believe different things.

use std::collections::HashMap;

/// A majority must have answered within this, milliseconds.
pub const ANSWER_MS: u64 = 1_000;
/// There is no other node: nobody has to answer.
pub const ALONE: u64 = u64::MAX;

/// What is known of one member.
#[derive(Debug, Clone, Copy, Default)]
struct Known {
    /// Our time that it gave back last.
    answered_ms: u64,
    /// When anything came from it.
    heard_ms: u64,
    /// Its time, to be given back.
    its_ms: u64,
    /// What it is given instead, as we have reported it.
    bound_ms: Option<u64>,
    /// Version of the members that it has read.
    version: u64,
}

/// See the top of the file.
#[derive(Debug, Default)]
pub struct Pulse {
    members: HashMap<u16, Known>,
    /// This node is a member.
    counted: bool,
}

/// What is told upwards of one member: slot, milliseconds since it was heard and since what it answered was said, and the
/// version of the members that it has read.
pub type Beat = (u16, u64, u64, u64);

impl Pulse {
    /// From now on these count beside this node, if it counts itself. Who stays is remembered; who comes has been heard now.
    pub fn set_members(&mut self, counted: bool, others: impl Iterator<Item = (u16, bool)>, now_ms: u64) {
        let mut old = std::mem::take(&mut self.members);
        self.counted = counted;
        for (slot, fresh) in others {
            let known = old.remove(&slot).filter(|_| !fresh);
            self.members.insert(slot, known.unwrap_or(Known { heard_ms: now_ms, ..Known::default() }));
        }
    }

    /// These are answered no more, all others are.
    pub fn bind(&mut self, slots: &[u16]) {
        for (slot, known) in &mut self.members {
            known.bound_ms = slots.contains(slot).then(|| known.bound_ms.unwrap_or(known.its_ms));
        }
    }

    /// Something has come from a member.
    pub fn heard(&mut self, slot: u16, now_ms: u64) {
        if let Some(known) = self.members.get_mut(&slot) {
            known.heard_ms = now_ms;
        }
    }

    /// A beat has come: its time, ours that it gives back, and what it has read.
    pub fn beat(&mut self, slot: u16, its_ms: u64, ours_ms: u64, version: u64) {
        let Some(known) = self.members.get_mut(&slot) else { return };
        known.its_ms = known.its_ms.max(its_ms);
        known.answered_ms = known.answered_ms.max(ours_ms);
        known.version = known.version.max(version);
    }

    /// What a member is given back.
    #[must_use]
    pub fn answer(&self, slot: u16) -> u64 {
        self.members.get(&slot).map_or(0, |k| k.bound_ms.unwrap_or(k.its_ms))
    }

    /// The time at which a majority was surely there; [`ALONE`] if there is nobody else, 0 if this node does not count.
    #[must_use]
    pub fn majority_ms(&self) -> u64 {
        if !self.counted {
            return 0;
        }
        let mut answered: Vec<u64> = self.members.values().map(|k| k.answered_ms).collect();
        answered.sort_unstable_by(|a, b| b.cmp(a));
        // of n members more than half: this one and so many others
        match answered.len().div_ceil(2) {
            0 => ALONE,
            others => answered.get(others - 1).copied().unwrap_or(0),
        }
    }

    /// Every other member.
    #[must_use]
    pub fn beats(&self, now_ms: u64) -> Vec<Beat> {
        let since = |then: u64| now_ms.saturating_sub(then);
        let beat = |(slot, k): (&u16, &Known)| (*slot, since(k.heard_ms), since(k.answered_ms), k.version);
        self.members.iter().map(beat).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pulse(others: u16) -> Pulse {
        let mut p = Pulse::default();
        p.set_members(true, (1..=others).map(|s| (s, true)), 10);
        p
    }

    /// More than half of all, this one included, must have answered; the time is that of what they answered.
    #[test]
    fn a_majority_with_this_node() {
        assert_eq!(pulse(0).majority_ms(), ALONE);
        let mut two = pulse(1);
        assert_eq!(two.majority_ms(), 0, "of two both are needed");
        two.beat(1, 5, 100, 1);
        assert_eq!(two.majority_ms(), 100);
        let mut three = pulse(2);
        three.beat(2, 5, 70, 1);
        assert_eq!(three.majority_ms(), 70, "of three one other");
        let mut four = pulse(3);
        four.beat(1, 5, 70, 1);
        assert_eq!(four.majority_ms(), 0, "of four two others");
        four.beat(3, 5, 60, 1);
        assert_eq!(four.majority_ms(), 60, "the older of the two");
        four.set_members(false, (1..=3).map(|s| (s, false)), 80);
        assert_eq!(four.majority_ms(), 0, "who was voted out has none");
    }

    /// Whoever is reported hears nothing new, until it is not reported any more; what comes late never counts as fresh.
    #[test]
    fn a_report_binds() {
        let mut p = pulse(2);
        p.beat(1, 500, 70, 1);
        p.bind(&[1]);
        p.beat(1, 900, 60, 1);
        assert_eq!((p.answer(1), p.majority_ms()), (500, 70));
        p.bind(&[]);
        assert_eq!(p.answer(1), 900);
        p.set_members(true, [(1, true), (2, false)].into_iter(), 1_000);
        assert_eq!((p.answer(1), p.majority_ms()), (0, 0), "another incarnation begins anew");
    }
}
