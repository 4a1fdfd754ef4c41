//! Connections come and go: session present, takeover, wills, expiry (sections 3.1.2, 3.14, 4.1).

use super::{Effect, Effects, Ending, Partition};
use crate::channel::{ConnectionId, SessionRef};
use crate::codec::{QoS, Reason};
use crate::limits::Drop as DropReason;
use crate::message::{Head, Message, Stored};
use crate::record::Record;
use crate::session::{Attach, Channel, NEVER, Session, Will};

/// Ledger entries written for one session that ends with messages; the rest is only counted.
const LEDGER_PER_SESSION: usize = 16;

impl Partition {
    /// CONNACK waits until an older connection of the client has confirmed its end.
    pub(super) fn attach(&mut self, attach: Box<Attach>, out: &mut Effects) {
        // what has come due in the same tick comes first: a session that is over is not resumed
        if let Some((slot, s)) = self.state.find(&attach.client_id).and_then(|s| Some((s, self.state.session(s)?))) {
            self.time_up(SessionRef { partition: self.number, slot, uid: s.uid }, out);
        }
        let slot = self.state.find(&attach.client_id);
        let Some(session) = slot.and_then(|s| self.state.session_mut(s)) else {
            return self.finish_attach(None, *attach, out);
        };
        if let Some(channel) = session.channel {
            if let Some(earlier) = session.next.replace(attach) {
                out.push(Effect::Close { connection: earlier.connection, reason: Reason::TAKEN_OVER });
            }
            out.push(Effect::Close { connection: channel.connection, reason: Reason::TAKEN_OVER });
            return;
        }
        self.finish_attach(slot, *attach, out);
    }

    fn finish_attach(&mut self, mut slot: Option<u32>, attach: Attach, out: &mut Effects) {
        let over = |s: &Session| s.expiry_s == 0; // nothing of it is left but a will that waits
        if let Some(old) = slot.filter(|&s| attach.clean || self.state.session(s).is_some_and(over)) {
            if let Some(session) = self.state.session_mut(old) {
                session.will_at_ms = 0; // the client is back before the delay has passed [MQTT-3.1.3-9]
            }
            self.end_session(old, DropReason::SessionEnded, out);
            slot = None;
        }
        let present = slot.is_some();
        let durable = attach.expiry_s > 0;
        let slot = slot.unwrap_or_else(|| {
            let uid = self.next_uid;
            self.next_uid += 1;
            let record = Record::SessionOpened { client_id: &attach.client_id, uid, expiry_s: attach.expiry_s };
            self.commit(durable, record).0
        });
        if present && self.state.session(slot).is_some_and(|s| s.expiry_s != attach.expiry_s) {
            self.commit(true, Record::SessionChanged { slot, expiry_s: attach.expiry_s });
        }
        match attach.will {
            Some(will) => self.commit(durable, Record::WillArmed { slot, will }),
            None => self.commit(durable, Record::WillDisarmed { slot }),
        };
        let window = attach.receive_maximum.min(self.rules.limits.inflight_max.max(1));
        let Some(session) = self.state.session_mut(slot) else { return };
        session.ends_at_ms = 0;
        session.will_at_ms = 0;
        session.rules = attach.rules;
        session.channel = Some(Channel { connection: attach.connection, window, congested: false });
        let session = SessionRef { partition: self.number, slot, uid: session.uid };
        self.when_safe(Effect::Attached { connection: attach.connection, session, present }, out);
        self.tell_groups(slot, true, u32::from(window), out);
        self.pump(slot, out);
    }

    /// The connection is closed and owes nothing any more.
    pub(super) fn detach(
        &mut self,
        session: Option<SessionRef>,
        client_id: &str,
        connection: ConnectionId,
        ending: Ending,
        out: &mut Effects,
    ) {
        let slot = session.map(|r| r.slot).or_else(|| self.state.find(client_id));
        let Some(slot) = slot else { return };
        let Some(s) = self.state.session_mut(slot) else { return };
        if s.next.as_ref().is_some_and(|n| n.connection == connection) {
            s.next = None;
            return;
        }
        if s.channel.is_none_or(|c| c.connection != connection) {
            return;
        }
        s.channel = None;
        s.queue.detach();
        let next = s.next.take();
        let durable = s.durable();
        if let Some(expiry_s) = ending.expiry_s.filter(|e| *e != s.expiry_s) {
            self.commit(durable, Record::SessionChanged { slot, expiry_s });
        }
        self.return_unsent(slot, out);
        self.tell_groups(slot, false, 0, out);
        self.will_on_detach(slot, ending, out);
        self.end_or_wait(slot, out);
        if let Some(attach) = next {
            let slot = self.state.find(&attach.client_id);
            self.finish_attach(slot, *attach, out);
        }
    }

    fn will_on_detach(&mut self, slot: u32, ending: Ending, out: &mut Effects) {
        let now_ms = self.now_ms;
        let Some(s) = self.state.session_mut(slot) else { return };
        if !ending.will {
            let durable = s.durable();
            self.commit(durable, Record::WillDisarmed { slot });
            return;
        }
        let Some(will) = &s.will else { return };
        let ends_first = !will.outlives || ending.expiry_s.is_some();
        let delay_s = if ends_first { will.delay_s.min(s.expiry_s) } else { will.delay_s };
        if delay_s == 0 {
            self.fire_will(slot, out);
        } else {
            s.will_at_ms = now_ms + u64::from(delay_s) * 1000;
            self.timers.set(s.will_at_ms, (slot, s.uid));
        }
    }

    fn end_or_wait(&mut self, slot: u32, out: &mut Effects) {
        let now_ms = self.now_ms;
        let Some(s) = self.state.session_mut(slot) else { return };
        match s.expiry_s {
            0 if s.will_at_ms != 0 => self.leave_will(slot, out),
            0 => self.end_session(slot, DropReason::SessionEnded, out),
            NEVER => {}
            seconds => {
                s.ends_at_ms = now_ms + u64::from(seconds) * 1000;
                self.timers.set(s.ends_at_ms, (slot, s.uid));
            }
        }
    }

    /// The session ends, its delayed will waits on in an empty one.
    fn leave_will(&mut self, slot: u32, out: &mut Effects) {
        let Some(s) = self.state.session_mut(slot) else { return };
        let Some(will) = s.will.take() else { return };
        let (client_id, at_ms, rules) = (s.client_id.clone(), s.will_at_ms, s.rules.clone());
        s.will_at_ms = 0;
        self.end_session(slot, DropReason::SessionEnded, out);
        let uid = self.next_uid;
        self.next_uid += 1;
        let slot = self.commit(false, Record::SessionOpened { client_id: &client_id, uid, expiry_s: 0 }).0;
        self.commit(false, Record::WillArmed { slot, will });
        let Some(s) = self.state.session_mut(slot) else { return };
        (s.will_at_ms, s.ends_at_ms, s.rules) = (at_ms, at_ms, rules);
        self.timers.set(at_ms, (slot, uid));
    }

    /// A timer of a session: its will, its end, or a stale entry.
    pub(super) fn time_up(&mut self, r: SessionRef, out: &mut Effects) {
        let now_ms = self.now_ms;
        let Some(s) = self.session(r) else { return };
        if s.will_at_ms != 0 && s.will_at_ms <= now_ms {
            self.fire_will(r.slot, out);
        }
        let Some(s) = self.session(r) else { return };
        if s.ends_at_ms != 0 && s.ends_at_ms <= now_ms && s.channel.is_none() {
            if s.expiry_s > 0 {
                out.push(Effect::SessionExpired { client_id: s.client_id.clone() });
            }
            self.end_session(r.slot, DropReason::SessionEnded, out);
        }
    }

    fn fire_will(&mut self, slot: u32, out: &mut Effects) {
        let Some(s) = self.state.session(slot) else { return };
        let durable = s.durable();
        if let Some(will) = &s.will {
            let message = will_message(s, will, self.now_ms);
            if s.rules.may(crate::access::Action::Publish, &will.topic) {
                out.push(Effect::Publish { message });
            } else {
                self.dropped(slot, &message, will.qos, DropReason::NotAuthorized, out);
            }
        }
        self.commit(durable, Record::WillDisarmed { slot });
    }

    /// The end of a session: its will goes out, its subscriptions go, what waited is counted as dropped.
    pub(super) fn end_session(&mut self, slot: u32, reason: DropReason, out: &mut Effects) {
        if self.state.session(slot).is_some_and(|s| s.will_at_ms != 0) {
            self.fire_will(slot, out);
        }
        let Some(s) = self.state.session(slot) else { return };
        let session = SessionRef { partition: self.number, slot, uid: s.uid };
        let durable = s.durable();
        let filters: Vec<Box<str>> = s.subscriptions.keys().cloned().collect();
        if s.held.is_some() {
            out.push(Effect::ForgetOrigin { uid: s.uid });
        }
        for filter in filters {
            self.forget_subscription(session, &filter, out);
        }
        self.return_all(slot, out);
        let lost: Vec<(Stored, QoS)> = match self.state.session(slot) {
            Some(s) => s
                .queue
                .iter()
                .filter(|(_, e)| e.group.is_none())
                .filter_map(|(_, e)| Some((e.message.clone()?, e.qos)))
                .collect(),
            None => Vec::new(),
        };
        for (i, (message, qos)) in lost.iter().enumerate() {
            if i < LEDGER_PER_SESSION {
                self.dropped(slot, message, *qos, reason, out);
            } else {
                let topic = Box::default();
                out.push(Effect::Dropped { client_id: Box::default(), topic, qos: *qos, reason });
            }
        }
        self.commit(durable, Record::SessionEnded { slot });
    }

    /// The client of a session may do other things from now on.
    pub fn set_rights(&mut self, session: SessionRef, rules: crate::access::Rules) {
        if let Some(s) = self.session_mut(session) {
            s.rules = rules;
        }
    }

    /// An operator ends a connection.
    pub(super) fn kick(&mut self, client_id: &str, reason: Reason, out: &mut Effects) {
        let session = self.state.find(client_id).and_then(|slot| self.state.session(slot));
        if let Some(channel) = session.and_then(|s| s.channel) {
            out.push(Effect::Close { connection: channel.connection, reason });
        }
    }
}

fn will_message(session: &Session, will: &Will, now_ms: u64) -> Stored {
    let deadline_ms = will.expiry_s.map_or(0, |s| now_ms + u64::from(s) * 1000);
    let head = Head { publisher: session.uid, deadline_ms, qos: will.qos, retain: will.retain, ..Head::default() };
    Stored::new(&Message { head, topic: &will.topic, props: &will.props, payload: &will.payload })
}
