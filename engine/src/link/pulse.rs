//! Who has answered when: what an acknowledgement of this node rests on (`30-cluster.md`, section 2). No I/O, no clock.
//!
//! Each node tells each other one its time, and gets it back. A node may acknowledge only while a majority of the members
//! has given back a time that is not older than [`ANSWER_MS`]: counted from when it was said, so that an answer that was long on its
//! way, or a node that stood still, never looks fresh. A node that a peer is *bound* not to answer gets back what it got last:
//! whoever has reported a member silent answers it no more, so two majorities never believe different things.

use std::collections::HashMap;

use super::frame::BeatBody;

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
    /// Its time, to be given back, and when it came.
    its_ms: u64,
    came_ms: u64,
    /// What it is given instead, as we have reported it.
    bound_ms: Option<u64>,
    /// Version of the members that it has read.
    version: u64,
    /// The way there and back, lately, in sixteenths of milliseconds.
    way: u64,
}

/// See the top of the file.
#[derive(Debug, Default)]
pub struct Pulse {
    members: HashMap<u16, Known>,
    /// This node is a member.
    counted: bool,
}

/// What is told upwards of one member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Beat {
    /// Its slot.
    pub slot: u16,
    /// Since it was heard, milliseconds.
    pub heard_ms: u64,
    /// Since what it answered last was said.
    pub answered_ms: u64,
    /// Version of the members that it has read.
    pub version: u64,
    /// What the way there and back takes, on average of the last seconds.
    pub way_ms: u64,
}

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

    /// A beat has come: its time, and what it says.
    pub fn beat(&mut self, slot: u16, its_ms: u64, said: BeatBody, now_ms: u64) {
        let Some(known) = self.members.get_mut(&slot) else { return };
        if its_ms > known.its_ms {
            (known.its_ms, known.came_ms) = (its_ms, now_ms);
        }
        known.answered_ms = known.answered_ms.max(said.yours_ms);
        known.version = known.version.max(said.version);
        if said.yours_ms > 0 && said.held_ms != u64::MAX {
            let way = now_ms.saturating_sub(said.yours_ms).saturating_sub(said.held_ms);
            known.way = known.way - known.way / 8 + way * 2;
        }
    }

    /// What a member is given back, and for how long it is here; `u64::MAX` if that is not what it said last.
    #[must_use]
    pub fn answer(&self, slot: u16, now_ms: u64) -> (u64, u64) {
        let Some(k) = self.members.get(&slot) else { return (0, u64::MAX) };
        match k.bound_ms {
            Some(bound_ms) => (bound_ms, u64::MAX),
            None => (k.its_ms, now_ms.saturating_sub(k.came_ms)),
        }
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
        let beat = |(slot, k): (&u16, &Known)| Beat {
            slot: *slot,
            heard_ms: since(k.heard_ms),
            answered_ms: since(k.answered_ms),
            version: k.version,
            way_ms: k.way / 16,
        };
        self.members.iter().map(beat).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(yours_ms: u64) -> BeatBody {
        BeatBody { yours_ms, version: 1, held_ms: u64::MAX }
    }

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
        two.beat(1, 5, said(100), 0);
        assert_eq!(two.majority_ms(), 100);
        let mut three = pulse(2);
        three.beat(2, 5, said(70), 0);
        assert_eq!(three.majority_ms(), 70, "of three one other");
        let mut four = pulse(3);
        four.beat(1, 5, said(70), 0);
        assert_eq!(four.majority_ms(), 0, "of four two others");
        four.beat(3, 5, said(60), 0);
        assert_eq!(four.majority_ms(), 60, "the older of the two");
        four.set_members(false, (1..=3).map(|s| (s, false)), 80);
        assert_eq!(four.majority_ms(), 0, "who was voted out has none");
    }

    /// Whoever is reported hears nothing new, until it is not reported any more; what comes late never counts as fresh.
    #[test]
    fn a_report_binds() {
        let mut p = pulse(2);
        p.beat(1, 500, said(70), 0);
        p.bind(&[1]);
        p.beat(1, 900, said(60), 0);
        assert_eq!((p.answer(1, 0).0, p.majority_ms()), (500, 70));
        p.bind(&[]);
        assert_eq!(p.answer(1, 0).0, 900);
        p.set_members(true, [(1, true), (2, false)].into_iter(), 1_000);
        assert_eq!((p.answer(1, 0).0, p.majority_ms()), (0, 0), "another incarnation begins anew");
    }

    /// The way there and back is what is left when the other end's waiting is taken off; a bound answer tells nothing of it.
    #[test]
    fn the_way_is_measured() {
        let mut p = pulse(1);
        for n in 1..200u64 {
            let now_ms = n * 250;
            p.beat(1, now_ms, BeatBody { yours_ms: now_ms - 190, version: 1, held_ms: 150 }, now_ms);
        }
        assert!((39..=40).contains(&p.beats(50_000)[0].way_ms), "{:?}", p.beats(50_000));
        assert_eq!(p.answer(1, 49_760), (49_750, 10));
        p.bind(&[1]);
        assert_eq!(p.answer(1, 49_760).1, u64::MAX);
        p.beat(1, 60_000, said(1), 60_000);
        assert!((39..=40).contains(&p.beats(60_000)[0].way_ms));
    }
}
