//! From a session's queue to its connection: windows, acknowledgements, retained replay (sections 4.3, 4.4, 4.9).

use super::{Body, Deliver, Effect, Effects, Partition};
use crate::channel::{ConnectionId, SessionRef};
use crate::codec::{AckKind, QoS, Reason};
use crate::limits::Drop as DropReason;
use crate::log::Wanted;
use crate::message::{Origin, Stored};
use crate::queue::{IN_MEMORY, Queue, Stage, SubscriptionIds};
use crate::record::{Delivery, Record};

/// Most bytes that one step sends to one session; the rest follows after the connection has written them.
const STEP_BYTES_MAX: usize = 256 * 1024;
/// Most messages that one step sends to one session.
const STEP_MESSAGES_MAX: usize = 1_024;
/// Most bodies, and about how many bytes, that are asked of the disk at once for one session.
const FETCH_MESSAGES: usize = 512;
const FETCH_BYTES: usize = 256 * 1024;

impl Partition {
    /// Sends what the window allows, oldest first, then feeds a retained replay.
    pub(super) fn pump(&mut self, slot: u32, out: &mut Effects) {
        let (mut bytes, mut count) = (0, 0);
        while !self.paused {
            let inflight_bytes_max = self.rules.limits.inflight_bytes_max;
            let Some(session) = self.state.session_mut(slot) else { return };
            let Some(channel) = session.can_send(inflight_bytes_max) else { return };
            if bytes > STEP_BYTES_MAX || count > STEP_MESSAGES_MAX {
                let session = SessionRef { partition: self.number, slot, uid: session.uid };
                out.push(Effect::Again { session });
                return;
            }
            let durable = session.durable() && self.journal.on;
            let Some(due) = session.queue.next_due() else {
                if self.wait_for_identifier(slot, out) || self.feed_replay(slot, &mut bytes, &mut count, out) {
                    continue;
                }
                return;
            };
            let (index, stage, qos) = (due.index, due.entry.stage, due.entry.qos);
            count += 1;
            if stage == Stage::ReleaseAgain {
                session.queue.mark(index, Stage::Received);
                let id = Queue::identifier(index);
                out.push(Effect::Pubrel { connection: channel.connection, id, reason: Reason::SUCCESS });
                continue;
            }
            let unsafe_yet = durable && due.entry.at == 0;
            let waits = qos == QoS::ExactlyOnce || self.rules.deliver_after_safe && qos != QoS::AtMostOnce;
            let Some(message) = due.entry.body.clone() else {
                if due.entry.at > IN_MEMORY {
                    return self.fetch(slot, index, out);
                }
                self.drop_queued(slot, index, DropReason::Damaged, out);
                continue;
            };
            if unsafe_yet && waits {
                return; // it goes on when the record is safe
            }
            bytes += message.len();
            self.send_queued(slot, index, message, channel.connection, out);
        }
    }

    /// One message from the queue to the connection, unless its time or the right to it is over.
    fn send_queued(&mut self, slot: u32, index: u64, message: Stored, connection: ConnectionId, out: &mut Effects) {
        let now_ms = self.now_ms;
        let Some(session) = self.state.session_mut(slot) else { return };
        let durable = session.durable();
        let Some(entry) = session.queue.get_mut(index) else { return };
        let (stage, qos, retain, ids) = (entry.stage, entry.qos, entry.retain, entry.ids());
        if stage == Stage::Waiting && message.head().expired(now_ms) {
            return self.drop_queued(slot, index, DropReason::Expired, out);
        }
        // rights may have changed while it waited
        if stage == Stage::Waiting && !may_have(&session.rules, message.view().topic) {
            return self.drop_queued(slot, index, DropReason::NotAuthorized, out);
        }
        let dup = stage == Stage::Again;
        let id = if qos == QoS::AtMostOnce { 0 } else { Queue::identifier(index) };
        if qos == QoS::AtMostOnce {
            self.commit(durable, Record::Acknowledged { slot, index });
        } else {
            session.queue.mark(index, Stage::Sent);
        }
        out.push(Effect::Deliver(Deliver { connection, id, qos, dup, retain, ids, body: Body::Stored(message) }));
    }

    /// An identifier is free again only when the acknowledgement of its last message is safe. True if one is now.
    fn wait_for_identifier(&mut self, slot: u32, out: &mut Effects) -> bool {
        let (safe, last) = (self.journal.safe(), self.journal.last());
        let Some(session) = self.state.session_mut(slot).filter(|s| s.queue.lacks_identifier()) else { return false };
        let (safe, last) = if session.durable() { (safe, last) } else { (0, 0) };
        let uid = session.uid;
        if session.queue.free_identifiers(safe, last) {
            return session.queue.next_due().is_some();
        }
        if safe < last {
            let session = SessionRef { partition: self.number, slot, uid };
            self.when_safe(Effect::Again { session }, out);
        }
        false
    }

    /// Asks for bodies that are on disk only: this one and the next ones that will be sent.
    fn fetch(&mut self, slot: u32, first: u64, out: &mut Effects) {
        let number = self.number;
        let Some(session) = self.state.session_mut(slot).filter(|s| !s.fetching) else { return };
        let mut bytes = 0;
        let from = usize::try_from(first - session.queue.base()).unwrap_or(usize::MAX);
        // not much more than may be sent now: the cache may forget the rest before its turn comes
        let most = session.channel.map_or(1, |c| 2 * usize::from(c.window)).clamp(16, FETCH_MESSAGES);
        let missing = session.queue.iter().skip(from).take(most).filter(|(_, e)| e.needs_body());
        let wanted: Vec<Wanted> = missing
            .filter(|(_, e)| e.body.is_none() && e.at > IN_MEMORY)
            .take_while(|(_, e)| {
                let fits = bytes < FETCH_BYTES;
                bytes += e.len as usize;
                fits
            })
            .map(|(index, e)| Wanted { index, at: e.at, len: e.len })
            .collect();
        session.fetching = true;
        let session = SessionRef { partition: number, slot, uid: session.uid };
        out.push(Effect::Fetch { session, wanted });
    }

    /// Bodies are here. One that has moved meanwhile is asked for again; a damaged one is dropped, and said so. They are sent
    /// before the cache may forget them: it may be full of what others have.
    pub(super) fn fetched(&mut self, r: SessionRef, bodies: Vec<(u64, u64, Option<Stored>)>, out: &mut Effects) {
        let Some(session) = self.session_mut(r) else { return };
        session.fetching = false;
        let mut came = Vec::new();
        for (index, at, body) in bodies {
            let Some(session) = self.session_mut(r) else { return };
            let Some(entry) = session.queue.get_mut(index).filter(|e| e.needs_body() && e.at == at) else { continue };
            match body {
                Some(body) => {
                    came.push((index, entry.len));
                    entry.body = Some(body);
                }
                None => self.drop_queued(r.slot, index, DropReason::Damaged, out),
            }
        }
        self.pump(r.slot, out);
        // only now: where there is no room they are forgotten at once, and would be asked for again and again; of what
        // waits on, the last ones are forgotten first
        for (index, len) in came.into_iter().rev() {
            let entry = self.session_mut(r).and_then(|s| s.queue.get_mut(index));
            if entry.is_some_and(|e| e.body.is_some()) {
                self.keep_fetched(r, index, len);
            }
        }
    }

    /// Feeds one retained message; true if something was fed or skipped.
    fn feed_replay(&mut self, slot: u32, bytes: &mut usize, count: &mut usize, out: &mut Effects) -> bool {
        let now_ms = self.now_ms;
        let Some(session) = self.state.session_mut(slot) else { return false };
        let Some(replay) = &mut session.replay else { return false };
        let Some((message, qos, ids)) = replay.items.pop_front() else {
            if replay.pending == 0 {
                session.replay = None;
            }
            return false;
        };
        let skip = message.head().expired(now_ms) || replay.passed.contains(message.view().topic);
        *count += 1;
        if skip {
            return true;
        }
        *bytes += message.len();
        let durable = session.durable();
        if qos == QoS::AtMostOnce {
            if let Some(channel) = session.channel {
                let (connection, body) = (channel.connection, Body::Stored(message));
                let deliver = Deliver { connection, id: 0, qos, dup: false, retain: true, ids, body };
                out.push(Effect::Deliver(deliver));
            }
            return true;
        }
        // its publisher's origin belongs to the live message, not to this copy
        let (index, extra) = (session.queue.next_index(), crate::queue::Extra::of(ids, None));
        let to = [Delivery { slot, index, qos, retain: true, durable, extra }];
        self.commit(durable, Record::Enqueued { message: &message, origin: Origin::default(), to: &to });
        true
    }

    /// Retained messages for a new subscription join the replay.
    pub(super) fn replay(
        &mut self,
        session: SessionRef,
        messages: Vec<Stored>,
        qos: QoS,
        ids: &SubscriptionIds,
        out: &mut Effects,
    ) {
        let upgrade = self.rules.upgrade_qos;
        let Some(s) = self.session_mut(session) else { return };
        let replay = s.replay.get_or_insert_default();
        replay.pending = replay.pending.saturating_sub(1);
        let rules = s.rules.clone();
        let replay = s.replay.get_or_insert_default();
        for message in messages {
            if !may_have(&rules, message.view().topic) {
                continue;
            }
            let qos = if upgrade { qos } else { qos.min(message.head().qos) };
            replay.items.push_back((message, qos, ids.clone()));
        }
        self.pump(session.slot, out);
    }

    /// Retained messages will come from `n` places.
    pub fn expect_replay(&mut self, session: SessionRef, n: u32) {
        if let Some(s) = self.session_mut(session) {
            s.replay.get_or_insert_default().pending += n;
        }
    }

    pub(super) fn ack(
        &mut self,
        session: SessionRef,
        connection: ConnectionId,
        kind: AckKind,
        id: u16,
        reason: Reason,
        out: &mut Effects,
    ) {
        let slot = session.slot;
        let Some(s) = self.session_mut(session) else { return };
        let durable = s.durable();
        let found = s.queue.index_of(id).and_then(|index| {
            let entry = s.queue.get_mut(index)?;
            Some((index, entry.stage, entry.qos))
        });
        let refused = reason.is_error();
        match (kind, found) {
            (AckKind::Puback, Some((index, Stage::Sent, QoS::AtLeastOnce)))
            | (AckKind::Pubcomp, Some((index, Stage::Received, _))) => {
                if refused && kind == AckKind::Puback {
                    self.drop_queued(slot, index, DropReason::Refused, out);
                } else {
                    self.finish(slot, index, durable, out);
                }
            }
            (AckKind::Pubrec, Some((index, Stage::Sent, QoS::ExactlyOnce))) if refused => {
                self.drop_queued(slot, index, DropReason::Refused, out);
            }
            (AckKind::Pubrec, Some((index, Stage::Sent, QoS::ExactlyOnce))) => {
                self.commit(durable, Record::Received { slot, index });
                self.when_safe(Effect::Pubrel { connection, id, reason: Reason::SUCCESS }, out);
            }
            (AckKind::Pubrec, Some((_, Stage::Received, _))) => {
                self.when_safe(Effect::Pubrel { connection, id, reason: Reason::SUCCESS }, out);
            }
            // the other kind of acknowledgement than the one that is due
            (AckKind::Puback, Some((_, Stage::Sent | Stage::Received, QoS::ExactlyOnce)))
            | (AckKind::Pubrec, Some((_, Stage::Sent, QoS::AtLeastOnce)))
            | (AckKind::Pubcomp, Some((_, Stage::Sent, _))) => {
                out.push(Effect::Close { connection, reason: Reason::PROTOCOL_ERROR });
            }
            (AckKind::Pubrec, _) if !refused => {
                out.push(Effect::Pubrel { connection, id, reason: Reason::SUCCESS });
            }
            _ => {}
        }
        self.pump(slot, out);
    }

    /// The message is done: acknowledged in full.
    fn finish(&mut self, slot: u32, index: u64, durable: bool, out: &mut Effects) {
        self.group_told(slot, index, out);
        self.commit(durable, Record::Acknowledged { slot, index });
    }

    /// The message will never be acknowledged; the drop is counted.
    pub(super) fn drop_queued(&mut self, slot: u32, index: u64, reason: DropReason, out: &mut Effects) {
        let Some(s) = self.state.session_mut(slot) else { return };
        let durable = s.durable();
        if let Some((body, qos)) = s.queue.get_mut(index).map(|e| (e.body.clone(), e.qos)) {
            self.dropped(slot, body.as_ref().map_or("", |m| m.view().topic), qos, reason, out);
        }
        self.finish(slot, index, durable, out);
    }

    /// [MQTT-3.1.2-25]: larger than the client allows; as if it had been sent.
    pub(super) fn too_large(&mut self, session: SessionRef, id: u16, out: &mut Effects) {
        let Some(index) = self.session(session).and_then(|s| s.queue.index_of(id)) else { return };
        self.drop_queued(session.slot, index, DropReason::TooLarge, out);
        self.pump(session.slot, out);
    }

    pub(super) fn set_congested(&mut self, session: SessionRef, congested: bool, out: &mut Effects) {
        if let Some(channel) = self.session_mut(session).and_then(|s| s.channel.as_mut()) {
            channel.congested = congested;
        }
        if !congested {
            self.resume(session, out);
        }
    }

    pub(super) fn resume(&mut self, session: SessionRef, out: &mut Effects) {
        if self.session(session).is_some() {
            self.pump(session.slot, out);
        }
    }
}

fn may_have(rules: &crate::access::Rules, topic: &str) -> bool {
    rules.allow_all() || rules.may(crate::access::Action::Deliver, topic)
}
