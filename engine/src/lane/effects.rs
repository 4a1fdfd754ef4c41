//! Carries out what partitions want: deliveries to connections, answers to publishers, changes of tree and interest.

use super::{Conveyed, Lane, LaneMessage, Late, ToConnection, Todo};
use crate::channel::{ConnectionId, Outcome, Token};
use crate::codec::{AckKind, QoS};
use crate::connection::{Stage, Undelivered};
use crate::limits::Drop as DropReason;
use crate::message::{Inbound, Origin, Stored};
use crate::partition::{Body, Deliver, Effect, Input};
use crate::ring::Ring;
use crate::stats::{Counter, LedgerEntry};
use std::sync::atomic::Ordering;

/// Every client waits while so much is under way to another node: who says too much waits long before.
const LINK_BACKLOG_BYTES_MAX: usize = 64 * 1024 * 1024;

impl Lane {
    /// Steps a partition of this lane and carries out what follows; `current` is the message being routed.
    pub(super) fn step(&mut self, partition: u16, input: Input<'_>, current: Option<&Inbound<'_>>) {
        let now_ms = self.now_ms;
        let partition = if self.fleet.is_some() { self.heir(partition, &input) } else { partition };
        let mut effects = self.spare_effects.pop().unwrap_or_default();
        if let Some(p) = self.partition(partition) {
            p.step(now_ms, input, &mut effects);
            p.count_work(effects.len());
        }
        self.carry_out(&mut effects, current);
        self.spare_effects.push(effects);
    }

    pub(super) fn carry_out(&mut self, effects: &mut Vec<Effect>, current: Option<&Inbound<'_>>) {
        for effect in effects.drain(..) {
            match effect {
                Effect::Deliver(deliver) if deliver.connection.lane != self.number => {
                    self.deliver_elsewhere(deliver, current);
                }
                Effect::Deliver(deliver) => self.deliver(&deliver, current),
                Effect::Answer { token, outcome } => self.answer(token, outcome),
                Effect::Pubrel { connection, id, reason } => self.ack_to(connection, AckKind::Pubrel, id, reason),
                Effect::Pubcomp { connection, id, reason } => self.ack_to(connection, AckKind::Pubcomp, id, reason),
                Effect::Held { token, origin } => self.on_held(token, origin),
                other => self.carry_out_rare(other),
            }
        }
    }

    fn carry_out_rare(&mut self, effect: Effect) {
        match effect {
            Effect::Attached { connection, session, present } if connection.lane == self.number => {
                self.on_attached(connection, session, present, None);
            }
            Effect::Attached { connection, session, present } => self.attached_elsewhere(connection, session, present),
            Effect::Close { connection, reason } if connection.lane != self.number => {
                self.tell_connection(connection, ToConnection::Close { reason });
            }
            Effect::Close { connection, reason } => self.todo.push_back(Todo::Close { connection, reason }),
            Effect::Subscribe { filter, subscriber } => self.tree_add(&filter, subscriber),
            Effect::Unsubscribe { filter, key } => self.tree_remove(&filter, key),
            Effect::GroupJoin { group, member, again } => self.ask_to_join(group, member, again, None),
            Effect::GroupLeave { group, session } => {
                let partition = self.shared.ring.partition(&group);
                self.convey(partition, Conveyed::GroupLeave { group, session });
            }
            Effect::GroupOnline { group, session, online, window } => {
                let partition = self.shared.ring.partition(&group);
                self.convey(partition, Conveyed::GroupOnline { group, session, online, window });
            }
            Effect::GroupDone { place, session } => {
                self.convey(place.partition, Conveyed::GroupDone { place, session });
            }
            Effect::GroupReturn { place, session } => {
                self.convey(place.partition, Conveyed::GroupReturn { place, session });
            }
            Effect::GroupAsk { group, session } => {
                self.convey(session.partition, Conveyed::GroupAsk { group, session });
            }
            Effect::Dispatch(d) if d.place.is_none() && self.is_slow(d.to.partition) => {
                let client_id = format!("member of a shared group in partition {}", d.to.partition);
                self.note_drop(&client_id, d.message.view().topic, d.qos, DropReason::SlowReader);
            }
            Effect::Dispatch(dispatched) => self.convey(dispatched.to.partition, Conveyed::Dispatch(dispatched)),
            Effect::Fetch { session, wanted } => {
                if let Some(reader) = &self.shared.reader {
                    reader.fetch(self.number, session, wanted);
                }
            }
            Effect::Fenced { question } => self.on_fenced(question),
            Effect::Publish { message } => {
                self.stats.add(Counter::wills_sent, 1);
                self.todo.push_back(Todo::Publish { message });
            }
            Effect::ForgetOrigin { uid } => self.forget_everywhere(uid),
            Effect::Again { session } => self.todo.push_back(Todo::Resume { session }),
            Effect::Dropped { client_id, topic, qos, reason } => self.note_drop(&client_id, &topic, qos, reason),
            Effect::SessionExpired { client_id } => {
                self.stats.add(Counter::sessions_expired, 1);
                self.shared.events.expired(&client_id);
            }
            _ => {}
        }
    }

    /// A message of the partition's own, a will, on its way.
    pub(super) fn publish_stored(&mut self, message: &Stored) {
        self.flow = super::Flow::default();
        self.route(&Inbound::from_stored(message));
    }

    pub(super) fn deliver(&mut self, d: &Deliver, current: Option<&Inbound<'_>>) {
        // a publisher hears PUBREC before its own message comes back to it
        let own = self.flow.token.is_some_and(|t| t.connection == d.connection);
        match &d.body {
            Body::Current if own && d.qos == QoS::ExactlyOnce => {
                let body = current.map_or(Body::Current, |c| Body::Stored(c.store()));
                self.flow.own.push(Deliver { body, ids: d.ids.clone(), ..*d });
            }
            Body::Stored(stored) => self.send_publish(d, &Inbound::from_stored(stored)),
            Body::Current => {
                if let Some(current) = current {
                    self.send_publish(d, current);
                }
            }
        }
    }

    fn send_publish(&mut self, d: &Deliver, message: &Inbound<'_>) {
        let (now_ms, pending_max) = (self.now_ms, self.config.limits.pending_output_bytes_max);
        let spare = &mut self.spare_buffers;
        let Some(c) = self.connections.get_mut(d.connection.key as usize) else { return };
        if c.generation != d.connection.generation || c.stage != Stage::Open {
            return;
        }
        if !c.out.has_buffer() {
            if let Some(buf) = spare.pop() {
                c.out.lend(buf);
            }
        }
        let large = message.view.payload.len() >= 4096;
        let stored = large.then(|| message.store());
        let session = c.session;
        match c.deliver(d, &message.view, stored.as_ref(), now_ms, pending_max) {
            Ok(_) => {
                let congested = !c.congested && c.out.len() > pending_max;
                c.congested |= congested;
                if !c.dirty {
                    c.dirty = true;
                    self.dirty.push(d.connection.key);
                }
                if congested {
                    self.todo.push_back(Todo::Congested { session, congested: true });
                }
                self.count_sent(d, message.view.payload.len());
            }
            Err(Undelivered::TooLarge) if d.id != 0 => {
                self.todo.push_back(Todo::TooLarge { session, id: d.id });
            }
            Err(why) => {
                let reason = if why == Undelivered::TooLarge { DropReason::TooLarge } else { DropReason::SlowReader };
                let client_id = c.client_id.clone();
                self.note_drop(&client_id, message.view.topic, d.qos, reason);
            }
        }
    }

    fn count_sent(&self, d: &Deliver, bytes: usize) {
        self.stats.add(Counter::publish_sent, 1);
        self.stats.add(Counter::packets_sent, 1);
        self.stats.add(Counter::publish_bytes_sent, bytes as u64);
        let by_qos = match d.qos {
            QoS::AtMostOnce => Counter::publish_sent_qos0,
            QoS::AtLeastOnce => Counter::publish_sent_qos1,
            QoS::ExactlyOnce => Counter::publish_sent_qos2,
        };
        self.stats.add(by_qos, 1);
    }

    /// PUBREL or PUBCOMP, for a connection here or elsewhere.
    pub(super) fn ack_to(&mut self, connection: ConnectionId, kind: AckKind, id: u16, reason: crate::codec::Reason) {
        if connection.lane != self.number {
            return self.tell_connection(connection, ToConnection::Ack { kind, id, reason });
        }
        if self.connection(connection).is_some_and(|c| c.stage == Stage::Open) {
            self.acknowledge(connection.key as usize, kind, id, reason);
        }
    }

    /// A part of the outcome of a publish: of the one being routed, of an earlier one of ours, or of another lane's.
    pub(super) fn answer(&mut self, token: Token, outcome: Outcome) {
        if self.flow.token == Some(token) {
            self.flow.waiting = self.flow.waiting.saturating_sub(1);
            return self.flow.outcome.add(outcome);
        }
        if let Some(late) = self.late.get_mut(&token) {
            late.outcome.add(outcome);
            late.waiting -= 1;
            if late.waiting == 0 {
                let Late { outcome, missing, .. } = self.late.remove(&token).unwrap_or_default();
                self.send(token.connection.lane, LaneMessage::Answer { token, outcome, missing });
            }
            return;
        }
        if token.connection.lane != self.number {
            return self.send(token.connection.lane, LaneMessage::Answer { token, outcome, missing: Vec::new() });
        }
        self.settle_answer(token, outcome);
    }

    /// One answer less is missing.
    pub(super) fn settle_answer(&mut self, token: Token, outcome: Outcome) {
        if !self.holding.is_empty() {
            self.holding.remove(&(token.connection, token.number));
        }
        let Some(c) = self.connection(token.connection) else { return };
        if let Some(owed) = c.owed.get_mut(token.number) {
            owed.outcome.add(outcome);
            owed.waiting = owed.waiting.saturating_sub(1);
            let (key, settled) = (token.connection.key as usize, owed.waiting == 0);
            self.leave_unanswered(key, outcome);
            if settled {
                self.settle(key);
            }
        }
    }

    /// The identifier of the QoS 2 publish that is being routed is held.
    fn on_held(&mut self, token: Token, origin: Origin) {
        if self.flow.token == Some(token) {
            self.flow.held = Some(origin);
        } else if token.connection.lane != self.number {
            self.tell_connection(token.connection, ToConnection::Held { number: token.number, origin });
        } else {
            self.on_held_late(token, origin);
        }
    }

    /// What a publisher gets of its own message, after the answer to it.
    pub(super) fn deliver_own(&mut self, own: &[Deliver]) {
        for deliver in own {
            self.deliver(deliver, None);
        }
    }

    /// A drop is never silent.
    pub(super) fn note_drop(&mut self, client_id: &str, topic: &str, qos: QoS, reason: DropReason) {
        self.stats.dropped(reason);
        if reason == DropReason::Expired {
            self.stats.add(Counter::messages_expired, 1);
        }
        let (client_id, topic) = (client_id.into(), topic.into());
        self.ledger.note(LedgerEntry { at_ms: self.shared.clock.unix_ms(), client_id, topic, qos: qos as u8, reason });
    }

    fn forget_everywhere(&mut self, uid: u64) {
        self.send_all(|| LaneMessage::Forget { uid });
        self.todo.push_back(Todo::Forget { uid });
    }

    pub(super) fn do_one(&mut self, todo: Todo) {
        match todo {
            Todo::Close { connection, reason } => self.close_for_session(connection, reason),
            Todo::TooLarge { session, id } => self.tell_session(session.partition, Input::TooLarge { session, id }),
            Todo::Resume { session } => self.resume_after_writing(session),
            Todo::Congested { session, congested } => {
                self.tell_session(session.partition, Input::Congested { session, congested });
            }
            Todo::Publish { message } => self.publish_stored(&message),
            Todo::Partition { partition, what } => self.on_conveyed(partition, what),
            Todo::Joined { group, member, again, question } => self.on_join(&group, member, again, question),
            Todo::Opened { session } => self.tell_session(session.partition, Input::Opened { session }),
            Todo::Forget { uid } => {
                for partition in 0..self.shared.ring.partitions() {
                    if self.partition(partition).is_some() {
                        self.step(partition, Input::ForgetOrigin { uid }, None);
                    }
                }
            }
        }
    }

    /// A session has more than one step may send: write first, so that the pending output stays small.
    fn resume_after_writing(&mut self, session: crate::channel::SessionRef) {
        let channel = self.partition(session.partition).and_then(|p| p.session(session)).and_then(|s| s.channel);
        if let Some(channel) = channel.filter(|c| c.connection.lane == self.number) {
            self.flush(channel.connection.key as usize);
        }
        self.step(session.partition, Input::Resume { session }, None);
    }

    /// The session wants its connection to end: taken over, kicked, or a broken rule.
    pub(super) fn close_for_session(&mut self, connection: ConnectionId, reason: crate::codec::Reason) {
        if self.connection(connection).is_none() {
            return;
        }
        let key = connection.key as usize;
        if reason == crate::codec::Reason::TAKEN_OVER {
            self.stats.add(Counter::takeovers, 1);
        }
        self.refuse(key, reason, reason.name());
    }

    /// A message of a client goes there.
    pub(super) fn note_published(&mut self, place: u16) {
        if let Some(fleet) = &mut self.fleet {
            fleet.met |= Ring::bit_of(place);
        }
    }

    /// What a client has just published is for a node that cannot keep up: this client waits, and no other one.
    pub(super) fn slow_down(&mut self, key: usize) {
        let id = self.id_of(key);
        let Some(fleet) = &mut self.fleet else { return };
        let slow = std::mem::take(&mut fleet.met) & self.shared.slow.load(Ordering::Relaxed);
        let Some(c) = self.connections.get_mut(key).filter(|c| slow != 0 && c.stage == Stage::Open) else { return };
        c.slowed = true;
        fleet.slowed.push((id, slow));
    }

    fn is_slow(&self, partition: u16) -> bool {
        self.shared.slow.load(Ordering::Relaxed) & Ring::bit_of(self.shared.ring.home(partition)) != 0
    }

    /// Clients whose nodes have caught up are read again.
    pub(super) fn speed_up(&mut self) {
        let slow = self.shared.slow.load(Ordering::Relaxed);
        let Some(fleet) = self.fleet.as_mut().filter(|f| !f.slowed.is_empty()) else { return };
        let (wait, go): (Vec<_>, Vec<_>) = fleet.slowed.drain(..).partition(|(_, places)| places & slow != 0);
        fleet.slowed = wait;
        for (id, _) in go {
            if let Some(c) = self.connection(id) {
                c.slowed = false;
                self.mark_ready(id.key as usize);
            }
        }
    }

    /// A lane whose neighbour cannot keep up does not read; nobody's keep alive suffers from that.
    pub(super) fn held_up(&self) -> bool {
        let max = self.config.limits.lane_queue_max;
        self.log_is_behind()
            || self.shared.links.get().is_some_and(|l| l.backlog() > LINK_BACKLOG_BYTES_MAX)
            || self.shared.mailboxes.len() > 1 && self.shared.mailboxes.iter().any(|m| m.len() > max)
    }
}
