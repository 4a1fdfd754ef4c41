//! A message arrives: into queues, to connections, into the retained store; QoS 2 identifiers of publishers.

use std::sync::atomic::Ordering;

use smallvec::SmallVec;

use super::{Body, Deliver, Dispatched, Effect, Effects, Partition};
use crate::access::Action;
use crate::channel::{ConnectionId, Outcome, SessionRef, Token};
use crate::codec::{QoS, Reason};
use crate::limits::{Drop as DropReason, QueuePolicy};
use crate::message::{Inbound, Origin, Stored};
use crate::queue::{Extra, Queue, Stage, SubscriptionIds};
use crate::record::{Delivery, Record};
use crate::session::Channel;

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
        let head = &message.view.head;
        let mut queued = SmallVec::new();
        let mut wait = true;
        if self.state.taken(head.origin) {
            outcome.accepted = 1;
        } else {
            (queued, wait) = self.take(message, targets, &mut outcome, out);
        }
        if let Some(token) = token {
            let answer = Effect::Answer { token, outcome };
            // class `memory` is not for QoS 2 [design, "QoS 2 exactly once"]
            let at_once = head.memory && head.qos != QoS::ExactlyOnce;
            if wait && !at_once { self.when_safe(answer, out) } else { out.push(answer) }
        }
        for delivery in queued {
            self.send_newest(delivery, out);
        }
    }

    /// Puts the message into queues or straight to connections; true if something was written that must be safe.
    fn take(
        &mut self,
        message: &Inbound<'_>,
        targets: &[Target],
        outcome: &mut Outcome,
        out: &mut Effects,
    ) -> (SmallVec<[Delivery; 4]>, bool) {
        let mut queued: SmallVec<[Delivery; 4]> = SmallVec::new();
        let mut durable = false;
        for target in targets {
            if target.group {
                durable |= self.group_publish(target, message, outcome, out);
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
                let Some(Channel { connection, .. }) = session.channel else { continue };
                if self.rules.is_slow(connection.lane) {
                    let (client_id, topic) = (session.client_id.as_ref().into(), message.view.topic.into());
                    out.push(Effect::Dropped { client_id, topic, qos: form.qos, reason: DropReason::SlowReader });
                    continue;
                }
                let Form { qos, retain, ids } = form;
                let body = Body::Current;
                out.push(Effect::Deliver(Deliver { connection, id: 0, qos, dup: false, retain, ids, body }));
                continue;
            }
            if self.make_room(target.slot, message, form.qos, outcome, out) {
                outcome.accepted += 1;
                let Form { qos, retain, ids } = form;
                let Some(session) = self.state.session(target.slot) else { continue };
                let (slot, index) = (target.slot, session.queue.next_index());
                durable |= session.durable();
                let extra = Extra::of(ids, None);
                queued.push(Delivery { slot, index, qos, retain, durable: session.durable(), extra });
            }
        }
        if !queued.is_empty() {
            let origin = message.view.head.origin;
            self.commit(durable, Record::Enqueued { message: &message.store(), origin, to: &queued });
        }
        (queued, durable)
    }

    /// Sends the message just enqueued if nothing waits before it and it need not be safe first.
    fn send_newest(&mut self, d: Delivery, out: &mut Effects) {
        let max = self.rules.limits.inflight_bytes_max;
        let Some(session) = self.state.session_mut(d.slot) else { return };
        if !session.queue.only_newest_waits() {
            if session.queue.lacks_identifier() {
                self.pump(d.slot, out);
            }
            return;
        }
        let waits = d.qos == QoS::ExactlyOnce || self.rules.deliver_after_safe;
        if self.paused || d.durable && self.journal.on && waits {
            return;
        }
        let Some(channel) = session.can_send(max) else { return };
        let Delivery { qos, retain, index, .. } = d;
        session.queue.mark(index, Stage::Sent);
        let (id, connection) = (Queue::identifier(index), channel.connection);
        let ids = d.extra.map(|x| x.ids).unwrap_or_default();
        out.push(Effect::Deliver(Deliver { connection, id, qos, dup: false, retain, ids, body: Body::Current }));
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
            if session.durable() && self.rules.disk_failing.load(Ordering::Relaxed) {
                outcome.disk_failed = true;
                self.dropped(slot, message.view.topic, qos, DropReason::Disk, out);
                return false;
            }
            let reason = if session.durable() && self.total_full(size) {
                DropReason::TotalFull
            } else if session.durable() && self.user_full(session, size) {
                DropReason::UserFull
            } else if session.queue.waiting() >= limits.queue_messages_max {
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
                self.dropped(slot, message.view.topic, qos, reason, out);
                if limits.queue_policy != QueuePolicy::Reject {
                    outcome.accepted += 1;
                }
                return false;
            };
            self.drop_queued(slot, index, reason, out);
        }
    }

    /// The bounds of all queues of one user together.
    fn user_full(&self, session: &crate::session::Session, size: usize) -> bool {
        let limits = &self.rules.limits;
        let over = |now: usize, max: usize| max > 0 && now > max;
        let (count, bytes) = session.user.as_ref().map_or((0, 0), |user| user.totals());
        over(count + 1, limits.queue_user_messages_max) || over(bytes + size, limits.queue_user_bytes_max)
    }

    /// The bounds of all queues of persistent sessions together.
    fn total_full(&self, size: usize) -> bool {
        let limits = &self.rules.limits;
        let over = |now: usize, max: usize| max > 0 && now > max;
        let (count, bytes) = self.rules.queued.totals();
        over(count + 1, limits.queue_total_messages_max) || over(bytes + size, limits.queue_total_bytes_max)
    }

    /// A group's message for one of its members.
    pub(super) fn dispatch(&mut self, d: Dispatched, out: &mut Effects) {
        let Dispatched { to, place, origin, message, qos, id } = d;
        if place.is_some_and(|place| self.is_settled(place, to, out)) {
            return;
        }
        let Some(s) = self.session(to) else {
            return place.into_iter().for_each(|place| self.not_taken(place, to, out));
        };
        let (channel, durable) = (s.channel, s.durable());
        if !s.rules.allow_all() && !s.rules.may(Action::Deliver, message.view().topic) {
            self.dropped(to.slot, message.view().topic, qos, DropReason::NotAuthorized, out);
            return out.extend(place.map(|place| Effect::GroupDone { place, session: to }));
        }
        let ids: SubscriptionIds = (id != 0).then_some(id).into_iter().collect();
        match (channel, place) {
            (Some(channel), None) => {
                let (connection, body) = (channel.connection, Body::Stored(message));
                out.push(Effect::Deliver(Deliver { connection, id: 0, qos, dup: false, retain: false, ids, body }));
            }
            (Some(_), Some(_)) => {
                let (slot, index) = (to.slot, s.queue.next_index());
                let d = Delivery { slot, index, qos, retain: false, durable, extra: Extra::of(ids, place) };
                self.commit(durable, Record::Enqueued { message: &message, origin, to: std::slice::from_ref(&d) });
                self.pump(slot, out);
            }
            (None, Some(place)) => self.not_taken(place, to, out),
            (None, None) => {}
        }
    }

    /// Stores or clears the retained message of a topic that hashes here [MQTT-3.3.1-5, MQTT-3.3.1-6].
    pub(super) fn retain(&mut self, message: &Inbound<'_>, token: Option<Token>, out: &mut Effects) {
        let mut outcome = Outcome::default();
        let view = &message.view;
        let before = (self.state.retained.len(), self.state.retained.bytes());
        let own = crate::topic::reserved(view.topic); // what the broker says of itself is not kept
        if self.rules.disk_failing.load(Ordering::Relaxed) && !own {
            outcome.disk_failed = true;
            let (client_id, topic) = (Box::default(), view.topic.into());
            out.push(Effect::Dropped { client_id, topic, qos: view.head.qos, reason: DropReason::Disk });
            return out.extend(token.map(|token| Effect::Answer { token, outcome }));
        }
        if view.payload.is_empty() {
            if self.state.retained.get(view.topic).is_some() {
                self.commit(!own, Record::RetainedCleared { topic: view.topic });
            }
        } else if view.head.publisher == 0 || self.retained_fits(message) {
            let stored = message.store();
            self.commit(!own, Record::RetainedSet { message: &stored });
        } else {
            outcome.retain_failed = true;
            let (client_id, topic) = (Box::default(), view.topic.into());
            out.push(Effect::Dropped { client_id, topic, qos: view.head.qos, reason: DropReason::RetainedFull });
        }
        if view.head.publisher != 0 {
            self.account_retained(before); // what the broker says of itself ($SYS) does not count
        }
        if let Some(token) = token {
            let answer = Effect::Answer { token, outcome };
            // a clear that changes nothing waits too: the one before it may not be safe yet
            let at_once = own || view.head.memory && view.head.qos != QoS::ExactlyOnce;
            if at_once { out.push(answer) } else { self.when_safe(answer, out) }
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
    pub(super) fn account_retained(&self, before: (usize, usize)) {
        let difference = |now: usize, before: usize| now as i64 - before as i64;
        let count = difference(self.state.retained.len(), before.0);
        self.rules.retained.shift(count, difference(self.state.retained.bytes(), before.1));
    }

    /// First sight of an identifier gets a number; a repeated one has the number that it had [MQTT-4.3.3-10].
    pub(super) fn hold(&mut self, session: SessionRef, id: u16, token: Token, out: &mut Effects) {
        let Some(s) = self.session(session) else { return };
        let durable = s.durable();
        let known = s.held.as_ref().and_then(|h| h.get(id));
        if known.is_none() && durable && self.rules.disk_failing.load(Ordering::Relaxed) {
            let outcome = Outcome { disk_failed: true, ..Outcome::default() };
            return out.push(Effect::Answer { token, outcome });
        }
        let n = known.unwrap_or_else(|| s.held.as_ref().map_or(1, |h| h.next()));
        if known.is_none() {
            self.commit(durable, Record::Held { slot: session.slot, id, n });
        }
        let answered = self.session(session).and_then(|s| s.held.as_ref()).map_or(0, |h| h.answered());
        let origin = Origin { uid: session.uid, n, answered };
        let held = Effect::Held { token, origin };
        // one log for all: the record lies before everything that the fan-out will write, and PUBREC waits for that
        if durable && self.rules.many_logs { self.when_safe(held, out) } else { out.push(held) }
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
            let pubcomp = Effect::Pubcomp { connection, id, reason: Reason::SUCCESS };
            if durable { self.when_safe(pubcomp, out) } else { out.push(pubcomp) }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicU64;

    use super::super::tests::{ME, attach, attached, publish, step};
    use super::super::{Partition, Rules};
    use super::*;

    /// QoS 0 does not pile up for a connection at a place that cannot keep up, and its client is named; other QoS and other
    /// places are as ever.
    #[test]
    fn qos_0_for_a_slow_place_is_dropped_and_said() {
        let slow = Arc::new(AtomicU64::new(0));
        let mut p = Partition::new(3, Rules { slow: Arc::clone(&slow), ..Rules::default() }, 0);
        let (session, _) = attached(&step(&mut p, attach(ME, false, 60, 10)));
        let here = 1 << ME.lane;
        for (places, qos, is_dropped) in [
            (0, QoS::AtMostOnce, false),
            (here, QoS::AtMostOnce, true),
            (here, QoS::AtLeastOnce, false),
            (here << 1, QoS::AtMostOnce, false),
        ] {
            slow.store(places, Ordering::Relaxed);
            let effects = publish(&mut p, session, qos, 1, Origin::default());
            let sent = effects.iter().any(|e| matches!(e, Effect::Deliver(_)));
            let dropped = effects.iter().any(|e| {
                matches!(e, Effect::Dropped { client_id, reason: DropReason::SlowReader, .. } if &**client_id == "c")
            });
            assert_eq!(dropped, is_dropped, "{places} {qos:?}");
            assert_eq!(sent, !is_dropped, "{places} {qos:?}");
        }
    }
}
