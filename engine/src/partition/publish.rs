//! A message arrives: into queues, to connections, into the retained store; QoS 2 identifiers of publishers.

use smallvec::SmallVec;

use super::{Body, Deliver, Effect, Effects, Partition};
use crate::access::Action;
use crate::channel::{ConnectionId, Outcome, SessionRef, Token};
use crate::codec::{QoS, Reason};
use crate::limits::{Drop as DropReason, QueuePolicy};
use crate::message::{Inbound, Origin, Stored};
use crate::queue::{GroupPlace, Queue, Stage, SubscriptionIds};
use crate::record::{Delivery, Record};

/// One subscription of a target that matched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Match {
    /// Maximum QoS.
    pub qos: QoS,
    /// No Local.
    pub no_local: bool,
    /// Retain As Published.
    pub retain_as_published: bool,
    /// Subscription Identifier; 0 is none.
    pub id: u32,
}

/// A session or group that wants a message, with every subscription of it that matched.
#[derive(Debug, Clone)]
pub struct Target {
    /// Partition.
    pub partition: u16,
    /// Place in the partition.
    pub slot: u32,
    /// A shared group.
    pub group: bool,
    /// The subscriptions; overlapping ones give one copy [MQTT-3.3.4-2].
    pub matches: SmallVec<[Match; 1]>,
}

/// How one target gets a message.
struct Form {
    qos: QoS,
    retain: bool,
    ids: SubscriptionIds,
}

impl Target {
    /// Joins the matching subscriptions: highest QoS, all identifiers; `None` if No Local keeps it away.
    fn form(&self, message: &Inbound<'_>, uid: u64, upgrade_qos: bool) -> Option<Form> {
        let head = &message.view.head;
        let mut form: Option<Form> = None;
        for m in &self.matches {
            if m.no_local && head.publisher == uid {
                continue;
            }
            let f = form.get_or_insert(Form { qos: QoS::AtMostOnce, retain: false, ids: SmallVec::new() });
            f.qos = f.qos.max(if upgrade_qos { m.qos } else { m.qos.min(head.qos) });
            f.retain |= m.retain_as_published && head.retain;
            if m.id != 0 {
                f.ids.push(m.id);
            }
        }
        form
    }
}

impl Partition {
    /// [MQTT-4.6.0-5]: what is queued for one session leaves in the order of arrival.
    pub(super) fn publish(
        &mut self,
        message: &Inbound<'_>,
        targets: &[Target],
        token: Option<Token>,
        out: &mut Effects,
    ) {
        let mut outcome = Outcome::default();
        let origin = message.view.head.origin;
        let queued = if self.state.taken(origin.uid, origin.n) {
            outcome.accepted = 1;
            SmallVec::new()
        } else {
            self.take(message, targets, &mut outcome, out)
        };
        if let Some(token) = token {
            self.when_safe(Effect::Answer { token, outcome }, out);
        }
        for delivery in queued {
            self.send_newest(delivery, Body::Current, &message.store(), out);
        }
    }

    fn take(
        &mut self,
        message: &Inbound<'_>,
        targets: &[Target],
        outcome: &mut Outcome,
        out: &mut Effects,
    ) -> SmallVec<[Delivery; 4]> {
        let mut queued: SmallVec<[Delivery; 4]> = SmallVec::new();
        let mut durable = false;
        for target in targets {
            if target.group {
                self.group_publish(target.slot, message, outcome, out);
                continue;
            }
            let Some(session) = self.state.session_mut(target.slot) else { continue };
            let Some(form) = target.form(message, session.uid, self.rules.upgrade_qos) else { continue };
            if let Some(replay) = &mut session.replay {
                replay.passed.insert(message.view.topic.into());
            }
            let away = session.channel.is_none();
            if form.qos == QoS::AtMostOnce && !(away && self.rules.queue_qos0) {
                outcome.accepted += 1;
                if let Some(channel) = session.channel {
                    let Form { qos, retain, ids } = form;
                    let (connection, body) = (channel.connection, Body::Current);
                    out.push(Effect::Deliver(Deliver { connection, id: 0, qos, dup: false, retain, ids, body }));
                }
                continue;
            }
            durable |= session.durable();
            if self.make_room(target.slot, message, form.qos, outcome, out) {
                outcome.accepted += 1;
                let Form { qos, retain, ids } = form;
                queued.push(Delivery { slot: target.slot, qos, retain, ids, group: None });
            }
        }
        if !queued.is_empty() {
            self.commit(durable, Record::Enqueued { message: &message.store(), to: &queued });
        }
        queued
    }

    /// Sends the message just enqueued if nothing waits before it.
    fn send_newest(&mut self, d: Delivery, body: Body, stored: &Stored, out: &mut Effects) {
        let max = self.rules.limits.inflight_bytes_max;
        let Some(session) = self.state.session_mut(d.slot) else { return };
        if !session.queue.only_newest_waits() {
            return;
        }
        let Some(channel) = session.can_send(max) else { return };
        let index = session.queue.next_index() - 1;
        session.queue.mark(index, Stage::Sent);
        let Delivery { qos, retain, ids, .. } = d;
        let id = Queue::identifier(index);
        let mut deliver = Deliver { connection: channel.connection, id, qos, dup: false, retain, ids, body };
        if qos == QoS::ExactlyOnce {
            if self.log.safe() < self.last {
                deliver.body = Body::Stored(stored.clone());
            }
            self.when_safe(Effect::Deliver(deliver), out);
        } else {
            out.push(Effect::Deliver(deliver));
        }
    }

    /// Bounds of a session's queue; drops by policy and says so.
    fn make_room(
        &mut self,
        slot: u32,
        message: &Inbound<'_>,
        qos: QoS,
        outcome: &mut Outcome,
        out: &mut Effects,
    ) -> bool {
        let limits = std::sync::Arc::clone(&self.rules.limits);
        let size = message.view.topic.len() + message.view.props.len() + message.view.payload.len();
        loop {
            let Some(session) = self.state.session(slot) else { return false };
            let reason = if session.queue.waiting() >= limits.queue_messages_max {
                DropReason::QueueFull
            } else if session.queue.bytes() + size > limits.queue_bytes_max && !session.queue.is_empty() {
                DropReason::QueueBytes
            } else {
                return true;
            };
            let oldest = match limits.queue_policy {
                QueuePolicy::DropOldest => session.queue.oldest_waiting(),
                QueuePolicy::Reject => {
                    outcome.rejected += 1;
                    None
                }
                QueuePolicy::DropNewest => None,
            };
            let Some(index) = oldest else {
                self.dropped(slot, &message.store(), qos, reason, out);
                if limits.queue_policy != QueuePolicy::Reject {
                    outcome.accepted += 1;
                }
                return false;
            };
            self.drop_queued(slot, index, reason, out);
        }
    }

    /// A group's message for one of its members.
    pub(super) fn dispatch(
        &mut self,
        to: SessionRef,
        place: Option<GroupPlace>,
        message: &Stored,
        qos: QoS,
        id: u32,
        out: &mut Effects,
    ) {
        let channel = self.session(to).map(|s| (s.channel, s.durable()));
        let name = message.view().topic;
        if self.session(to).is_some_and(|s| !s.rules.allow_all() && !s.rules.may(Action::Deliver, name)) {
            self.dropped(to.slot, message, qos, DropReason::NotAuthorized, out);
            return out.extend(place.map(|place| Effect::GroupDone { place, session: to }));
        }
        let ids: SubscriptionIds = (id != 0).then_some(id).into_iter().collect();
        match (channel, place) {
            (Some((Some(channel), _)), None) => {
                let (connection, body) = (channel.connection, Body::Stored(message.clone()));
                out.push(Effect::Deliver(Deliver { connection, id: 0, qos, dup: false, retain: false, ids, body }));
            }
            (Some((Some(_), durable)), Some(place)) => {
                let d = Delivery { slot: to.slot, qos, retain: false, ids, group: Some(Box::new(place)) };
                self.commit(durable, Record::Enqueued { message, to: std::slice::from_ref(&d) });
                self.send_newest(d, Body::Stored(message.clone()), message, out);
            }
            (_, Some(place)) => out.push(Effect::GroupReturn { place, session: to, sent: false }),
            (_, None) => {}
        }
    }

    /// Stores or clears the retained message of a topic that hashes here [MQTT-3.3.1-5, MQTT-3.3.1-6].
    pub(super) fn retain(&mut self, message: &Inbound<'_>, token: Option<Token>, out: &mut Effects) {
        let mut outcome = Outcome::default();
        let view = &message.view;
        let before = (self.state.retained.len(), self.state.retained.bytes());
        if view.payload.is_empty() {
            if self.state.retained.get(view.topic).is_some() {
                self.commit(true, Record::RetainedCleared { topic: view.topic });
            }
        } else if view.head.publisher == 0 || self.retained_fits(message) {
            let stored = message.store();
            self.commit(true, Record::RetainedSet { message: &stored });
        } else {
            outcome.retain_failed = true;
            let (client_id, topic) = (Box::default(), view.topic.into());
            out.push(Effect::Dropped { client_id, topic, qos: view.head.qos, reason: DropReason::RetainedFull });
        }
        if view.head.publisher != 0 {
            self.account_retained(before); // what the broker says of itself ($SYS) does not count
        }
        if let Some(token) = token {
            self.when_safe(Effect::Answer { token, outcome }, out);
        }
    }

    /// The bounds are those of the whole broker, so all partitions share one account.
    fn retained_fits(&self, message: &Inbound<'_>) -> bool {
        let old = self.state.retained.get(message.view.topic).map(Stored::len);
        let size = message.view.topic.len() + message.view.props.len() + message.view.payload.len();
        let (count, bytes) = self.rules.retained.totals();
        let count_ok = old.is_some() || count < self.rules.limits.retained_max;
        count_ok && bytes + size <= self.rules.limits.retained_bytes_max + old.unwrap_or(0)
    }

    /// Tells the shared account how the store has changed since `before`.
    fn account_retained(&self, before: (usize, usize)) {
        let now = (self.state.retained.len(), self.state.retained.bytes());
        self.rules.retained.shift(before, now);
    }

    /// First sight of an identifier gets a number; a repeated one has the number that it had [MQTT-4.3.3-10].
    pub(super) fn hold(&mut self, session: SessionRef, id: u16, token: Token, out: &mut Effects) {
        let Some(s) = self.session(session) else { return };
        let durable = s.durable();
        let n = match s.held.as_ref().and_then(|h| h.get(id)) {
            Some(n) => n,
            None => {
                let n = s.held.as_ref().map_or(1, |h| h.next());
                self.commit(durable, Record::Held { slot: session.slot, id, n });
                n
            }
        };
        let answered = self.session(session).and_then(|s| s.held.as_ref()).map_or(0, |h| h.answered());
        let origin = Origin { uid: session.uid, n, answered };
        self.when_safe(Effect::Held { token, origin }, out);
    }

    /// PUBREL: PUBCOMP goes when the release is safe [MQTT-4.3.3-12].
    pub(super) fn release(
        &mut self,
        session: SessionRef,
        connection: ConnectionId,
        id: u16,
        answer: bool,
        out: &mut Effects,
    ) {
        let Some(s) = self.session(session) else { return };
        let durable = s.durable();
        let known = s.held.as_ref().is_some_and(|h| h.get(id).is_some());
        if known {
            self.commit(durable, Record::Released { slot: session.slot, id });
        }
        if answer {
            // an unknown identifier is not an error when a client recovers (3.7.2.1), so it gets the same answer
            self.when_safe(Effect::Pubcomp { connection, id, reason: Reason::SUCCESS }, out);
        }
    }
}
