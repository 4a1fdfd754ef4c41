//! A question for retained messages, and for what it waits where it is asked.

use serde::{Deserialize, Serialize};

use crate::ring::Ring;

/// A question for the retained messages that a filter matches.
#[derive(Debug, Serialize, Deserialize)]
pub struct RetainedQuery {
    /// Who asks.
    pub from: u16,
    /// Its number for the answers to this question.
    pub gathering: u64,
    /// Filter, without `$share`.
    pub filter: Box<str>,
    /// Answer only after having applied so many messages of each lane.
    pub after: Vec<u64>,
    /// Which starts of the other nodes these counts are of.
    pub nodes: Vec<(u16, u64)>,
}

impl RetainedQuery {
    /// Has the lane `me` applied what it waits for? Nothing more comes from a start of a node that is not the one of its slot now.
    pub(super) fn is_due(&self, me: u16, received: &[u64], start: impl Fn(u16) -> Option<u64>) -> bool {
        let apart = [Ring::slot(me), Ring::slot(self.from)];
        let comes = |slot: u16| {
            let named = self.nodes.iter().find(|(s, _)| *s == slot).map(|(_, start)| *start);
            apart.contains(&slot) || named.is_some() && named == start(slot)
        };
        let counts = self.after.iter().zip(received);
        (0..).zip(counts).all(|(place, (after, n))| place == me || after <= n || !comes(Ring::slot(place)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring::NODE_LANES_MAX;

    /// A question never waits for messages of a start of a node that is gone, and goes on waiting for all others.
    #[test]
    fn nobody_waits_for_who_is_gone() {
        let (me, places) = (2 * NODE_LANES_MAX, usize::from(5 * NODE_LANES_MAX));
        // slot 3 has begun anew, slot 4 is gone, of slot 1 the asker knows what is there
        let start = |slot: u16| [Some(5), Some(7), Some(8), Some(10), None][usize::from(slot)];
        for place in 0..5 * NODE_LANES_MAX {
            let mut after = vec![3; places];
            after[usize::from(place)] = 4;
            let query = RetainedQuery {
                from: 0,
                gathering: 1,
                filter: "#".into(),
                after,
                nodes: vec![(1, 7), (3, 9), (4, 11)],
            };
            let waits = place != me && Ring::slot(place) < 3;
            assert_eq!(query.is_due(me, &vec![3; places], start), !waits, "one more of place {place}");
            assert!(query.is_due(me, &vec![4; places], start));
        }
    }
}
