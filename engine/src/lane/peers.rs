//! A lane that has begun anew after a panic, as the others see it: what it owed them never comes.
//!
//! Whoever waits for an answer from it is closed and repeats (QoS 1 may come twice, but nothing is lost without a sign),
//! and shared groups learn who is left. Nothing is asked a second time from here: it may be what caused the panic.

use super::{Lane, LaneMessage};
use crate::channel::ConnectionId;
use crate::codec::Reason;
use crate::connection::{OwedQueue, Stage};

impl Lane {
    /// This lane has begun anew.
    pub(super) fn tell_peers(&mut self) {
        for lane in 0..self.shared.ring.lanes() {
            if lane != self.number {
                self.send(lane, LaneMessage::Restarted);
            }
        }
    }

    pub(super) fn on_peer_restarted(&mut self, peer: u16) {
        let owed = self.connections.iter().filter(|(_, c)| !c.owed.is_empty()).map(|(key, _)| key);
        let mut waiting: Vec<ConnectionId> = owed.map(|key| self.id_of(key)).collect();
        waiting.extend(self.joining());
        for session in self.gather_without(peer) {
            let channel = self.partition(session.partition).and_then(|p| p.session(session)).and_then(|s| s.channel);
            waiting.extend(channel.map(|c| c.connection));
        }
        for id in waiting {
            self.close_unanswered(id);
        }
        self.share_without(peer);
    }

    /// Nothing is owed any more, as the answer will not come; the session goes on without this connection.
    fn close_unanswered(&mut self, id: ConnectionId) {
        let Some(c) = self.connection(id) else { return };
        c.owed = OwedQueue::default();
        let key = id.key as usize;
        if c.stage == Stage::Closing {
            self.confirm_end(key);
        } else {
            self.refuse(key, Reason::UNSPECIFIED, "a part of the server began anew; repeat");
        }
    }

    /// The peer's sessions are members of no group of ours any more, and our members join its groups again.
    fn share_without(&mut self, peer: u16) {
        let ring = self.shared.ring;
        let now_ms = self.now_ms;
        for number in 0..ring.partitions() {
            let mut effects = self.spare_effects.pop().unwrap_or_default();
            if let Some(partition) = self.partition(number) {
                partition.lose_members(now_ms, &|p| ring.lane(p) == peer, &mut effects);
                partition.join_again(&|group| ring.lane(ring.partition(group)) == peer, &mut effects);
            }
            self.carry_out(&mut effects, None);
            self.spare_effects.push(effects);
        }
    }
}
