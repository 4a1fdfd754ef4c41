//! What was right and what was wrong with the messages that came.

use std::collections::BTreeSet;

use serde::Serialize;

/// What no load should find; all numbers of messages unless the name says otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Faults {
    pub lost: u64,
    pub doubled: u64,
    pub reordered: u64,
    /// For somebody else, or on a topic that its publisher does not use.
    pub misrouted: u64,
    /// Not one bit may change.
    pub damaged: u64,
    /// Refused by an acknowledgement, a SUBACK or a CONNACK.
    pub refused: u64,
    /// Connections that ended though nobody wanted that.
    pub closed: u64,
    /// Persistent sessions that were not there any more.
    pub sessions: u64,
    /// Never acknowledged though sent at QoS 1 or 2.
    pub unacknowledged: u64,
}

impl Faults {
    /// Nothing is wrong.
    #[must_use]
    pub fn none(&self) -> bool {
        *self == Self::default()
    }

    /// All together.
    #[must_use]
    pub fn sum(&self) -> u64 {
        let of_messages = self.lost + self.doubled + self.reordered + self.misrouted + self.damaged;
        of_messages + self.refused + self.closed + self.sessions + self.unacknowledged
    }

    /// Adds those of another thread.
    pub fn add(&mut self, o: &Self) {
        self.lost += o.lost;
        self.doubled += o.doubled;
        self.reordered += o.reordered;
        self.misrouted += o.misrouted;
        self.damaged += o.damaged;
        self.refused += o.refused;
        self.closed += o.closed;
        self.sessions += o.sessions;
        self.unacknowledged += o.unacknowledged;
    }
}

/// One publisher's messages as one subscriber sees them.
#[derive(Debug, Default)]
pub struct Track {
    /// The sequence that is due.
    pub next: u64,
    /// Passed over, perhaps to come later.
    missing: BTreeSet<u64>,
}

impl Track {
    /// Notes a message; true if it is a new one.
    pub fn note(&mut self, sequence: u64, faults: &mut Faults) -> bool {
        if sequence == self.next {
            self.next += 1;
            return true;
        }
        self.note_other(sequence, true, faults)
    }

    /// As [`Track::note`], where another member of a group may have got those between.
    pub fn note_shared(&mut self, sequence: u64, faults: &mut Faults) -> bool {
        if sequence == self.next {
            self.next += 1;
            return true;
        }
        self.note_other(sequence, false, faults)
    }

    fn note_other(&mut self, sequence: u64, ordered: bool, faults: &mut Faults) -> bool {
        if sequence > self.next {
            // a gap of millions is a loss that needs no list
            let from = self.next.max(sequence.saturating_sub(1_000_000));
            faults.lost += from - self.next;
            self.missing.extend(from..sequence);
            self.next = sequence + 1;
            return true;
        }
        if self.missing.remove(&sequence) {
            faults.reordered += u64::from(ordered);
            return true;
        }
        faults.doubled += 1;
        false
    }

    /// Of the messages that were sent, those that never came. Later ones may come or not.
    #[must_use]
    pub fn lost(&self, sent: u64) -> u64 {
        self.missing.range(..sent).count() as u64 + sent.saturating_sub(self.next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(sequences: &[u64]) -> (Faults, u64) {
        let (mut track, mut faults) = (Track::default(), Faults::default());
        for &s in sequences {
            track.note(s, &mut faults);
        }
        (faults, track.lost(5))
    }

    #[test]
    fn each_fault_has_its_number() {
        assert_eq!(after(&[0, 1, 2, 3, 4]), (Faults::default(), 0));
        assert_eq!(after(&[0, 1, 3, 4]), (Faults::default(), 1));
        assert_eq!(after(&[0, 1, 2]), (Faults::default(), 2));
        assert_eq!(after(&[0, 2, 1, 3, 4]), (Faults { reordered: 1, ..Faults::default() }, 0));
        assert_eq!(after(&[0, 1, 1, 2, 3, 4]), (Faults { doubled: 1, ..Faults::default() }, 0));
        assert_eq!(after(&[0, 1, 2, 3, 4, 6]), (Faults::default(), 0), "the sixth was not due");
        assert_eq!(after(&[0, 2, 1, 1, 3, 4]), (Faults { doubled: 1, reordered: 1, ..Faults::default() }, 0));
    }

    #[test]
    fn members_of_a_group_may_get_them_crosswise() {
        let (mut track, mut faults) = (Track::default(), Faults::default());
        assert!([1, 0, 2].iter().all(|&s| track.note_shared(s, &mut faults)));
        assert!(!track.note_shared(1, &mut faults));
        assert_eq!((faults, track.lost(3)), (Faults { doubled: 1, ..Faults::default() }, 0));
    }
}
