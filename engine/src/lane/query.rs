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
    /// Counts of starts of nodes that are not these any more are of no use. `own` is the slot of who was asked.
    pub(super) fn void(&mut self, own: u16, start: impl Fn(u16) -> Option<u64>) {
        let apart = [own, Ring::slot(self.from)];
        for (place, n) in (0..).zip(&mut self.after) {
            let slot = Ring::slot(place);
            let named = self.nodes.iter().find(|(s, _)| *s == slot).map(|(_, start)| *start);
            if !apart.contains(&slot) && (named.is_none() || named != start(slot)) {
                *n = 0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring::NODE_LANES_MAX;

    /// A question never waits for messages of a start of a node that is gone, and goes on waiting for all others.
    #[test]
    fn nobody_waits_for_who_is_gone() {
        let after: Vec<u64> = (0..5 * u64::from(NODE_LANES_MAX)).map(|n| n + 1).collect();
        let nodes = vec![(1, 7), (2, 8), (3, 9)];
        let mut query = RetainedQuery { from: 0, gathering: 1, filter: "#".into(), after: after.clone(), nodes };
        // slot 3 has begun anew, of slot 4 the asker knows nothing any more
        query.void(2, |slot| Some([5, 7, 8, 10, 11][usize::from(slot)]));
        for (place, (now, before)) in (0..).zip(query.after.iter().zip(&after)) {
            let gone = Ring::slot(place) >= 3;
            assert_eq!(*now, if gone { 0 } else { *before }, "place {place}");
        }
        query.void(2, |_| None);
        assert!(
            (0..)
                .zip(&query.after)
                .all(|(place, n)| (*n == 0) == (Ring::slot(place) % 2 == 1 || Ring::slot(place) > 2))
        );
    }
}
