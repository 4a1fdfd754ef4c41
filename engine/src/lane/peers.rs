//! A lane that has begun anew after a panic, as the others see it: what it owed them never comes.
//!
//! Whoever waits for an answer from it is closed and repeats (QoS 1 may come twice, but nothing is lost without a sign),
//! and shared groups learn who is left. Nothing is asked a second time from here: it may be what caused the panic.

use super::{Lane, LaneMessage, ToConnection};
use crate::channel::ConnectionId;
use crate::codec::Reason;
use crate::connection::{Connection, OwedQueue, Stage};

impl Lane {
    /// This lane has begun anew.
    pub(super) fn tell_peers(&mut self) {
        self.send_all(|| LaneMessage::Restarted);
    }

    /// A lane has begun anew. One of another node has nothing of ours that its node would not have lost with it.
    pub(super) fn on_peer_restarted(&mut self, peer: u16) {
        let owed = self.connections.iter().filter(|(_, c)| !c.owed.is_empty()).map(|(key, _)| key);
        let mut waiting: Vec<ConnectionId> = owed.map(|key| self.id_of(key)).collect();
        let home = |partition| self.shared.ring.home(partition) == peer;
        waiting.extend(self.joining(&home));
        let away = self.connections.iter().filter(|(_, c)| c.session.uid != 0 && home(c.session.partition));
        let away: Vec<usize> = away.map(|(key, _)| key).collect();
        waiting.extend(away.into_iter().map(|key| self.id_of(key)));
        self.detach_from(peer);
        self.refuse_attaching(peer);
        for session in self.gather_without(peer) {
            let channel = self.partition(session.partition).and_then(|p| p.session(session)).and_then(|s| s.channel);
            waiting.extend(channel.map(|c| c.connection));
        }
        for id in waiting {
            self.close_unanswered(id, Reason::UNSPECIFIED);
        }
        self.share_without(peer);
    }

    /// Who asks the peer for a session gets no answer.
    fn refuse_attaching(&mut self, peer: u16) {
        let ring = &self.shared.ring;
        let asks = |c: &Connection| c.stage == Stage::Attaching && ring.home(ring.partition(&c.client_id)) == peer;
        let asking: Vec<usize> = self.connections.iter().filter(|(_, c)| asks(c)).map(|(key, _)| key).collect();
        for key in asking {
            self.refuse_connect(key, Reason::SERVER_UNAVAILABLE);
        }
    }

    /// Nothing is owed any more, as the answer will not come; the session goes on without this connection.
    pub(super) fn close_unanswered(&mut self, id: ConnectionId, reason: Reason) {
        if id.lane != self.number {
            return self.tell_connection(id, ToConnection::Close { reason });
        }
        let Some(c) = self.connection(id) else { return };
        c.owed = OwedQueue::default();
        let key = id.key as usize;
        if c.stage == Stage::Closing {
            self.confirm_end(key);
        } else {
            self.refuse(key, reason, "a part of the server began anew; repeat");
        }
    }

    /// The peer's sessions are members of no group of ours any more, and our members join its groups again.
    pub(super) fn share_without(&mut self, peer: u16) {
        let ring = self.shared.ring.clone();
        let now_ms = self.now_ms;
        for number in 0..ring.partitions() {
            let mut effects = self.spare_effects.pop().unwrap_or_default();
            if let Some(partition) = self.partition(number) {
                partition.lose_members(now_ms, &|p| ring.home(p) == peer, &mut effects);
                partition.join_again(&|group| ring.home(ring.partition(group)) == peer, &mut effects);
            }
            self.carry_out(&mut effects, None);
            self.spare_effects.push(effects);
        }
    }
}
