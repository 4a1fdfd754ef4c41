//! Lanes of other nodes: they are places like the lanes of this process, behind links instead of mailboxes.

use hashbrown::HashMap;

use super::{Lane, LaneMessage};
use crate::interest::Interest;
use crate::message::translate_deadlines;
use crate::port::Shared;

impl Lane {
    /// The interest of the lane at a place: nobody waits for nodes that have not come yet.
    pub(super) fn interest_of(place: u16, shared: &Shared) -> Interest {
        let ring = &shared.ring;
        let mut interest = Interest::new(place, usize::from(ring.places()), ring.key());
        (0..ring.places()).filter(|p| ring.here(*p).is_none()).for_each(|p| interest.leave(p));
        interest
    }

    /// Is the place in this process, or in a node that is there?
    pub(super) fn reaches(&self, place: u16) -> bool {
        self.shared.ring.here(place).is_some() || self.nodes.contains_key(&self.shared.ring.node(place))
    }

    /// The same to every other place that is there.
    pub(super) fn send_all(&mut self, mut message: impl FnMut() -> LaneMessage) {
        for place in 0..self.shared.ring.places() {
            if place != self.number {
                self.send(place, message());
            }
        }
    }

    /// A node is there and knows nothing of this one, or is not there any more.
    pub(super) fn on_node(&mut self, node: u16, turn: Option<u32>) {
        for place in self.shared.ring.places_of(node) {
            self.forget_counts(place);
            if turn.is_none() {
                self.interest.leave(place);
                self.on_peer_restarted(place);
            }
        }
        match turn {
            Some(turn) => drop(self.nodes.insert(node, turn)),
            None => drop(self.nodes.remove(&node)),
        }
        for place in self.shared.ring.places_of(node) {
            if turn.is_some() {
                let all = self.interest.admit(place);
                self.send(place, LaneMessage::Interest(all));
                self.share_without(place);
            }
        }
        self.look_at_barriers();
    }

    /// What was counted of a place that begins anew counts no more.
    fn forget_counts(&mut self, place: u16) {
        let at = usize::from(place);
        for n in self.sent.get_mut(at).into_iter().chain(self.received.get_mut(at)) {
            *n = 0;
        }
        if let Some(batch) = self.outgoing.get_mut(at) {
            batch.clear();
        }
        self.peer_sent.get_mut(at).into_iter().flatten().for_each(|n| *n = 0);
        self.peer_sent.iter_mut().filter_map(|row| row.get_mut(at)).for_each(|n| *n = 0);
    }

    /// A batch of a lane of another node.
    pub(super) fn on_linked(&mut self, from: u16, now_ms: u64, bytes: &[u8]) {
        translate_deadlines(i64::try_from(self.now_ms).unwrap_or(0) - i64::try_from(now_ms).unwrap_or(0));
        let Ok(batch) = postcard::from_bytes::<Vec<LaneMessage>>(bytes) else {
            return self.shared.events.lane_failed(self.number, "a batch of another node cannot be read");
        };
        for message in batch {
            if let Some(n) = self.received.get_mut(usize::from(from)) {
                *n += 1;
            }
            self.on_message(from, message);
            self.work();
        }
    }
}

/// A batch for a lane of another node.
pub(super) fn post_to_node(shared: &Shared, nodes: &HashMap<u16, u32>, from: u16, to: u16, batch: &[LaneMessage]) {
    let node = shared.ring.node(to);
    let (Some(links), Some(turn)) = (shared.links.get(), nodes.get(&node)) else { return };
    match postcard::to_stdvec(batch) {
        Ok(bytes) => links.post(node, *turn, from, to, shared.clock.now_ms(), bytes),
        Err(error) => shared.events.lane_failed(from, &format!("a batch for another node: {error}")),
    }
}
