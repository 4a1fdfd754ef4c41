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
        // a connection asks again when it is not sure who has its session: it is here, or waits here, already
        let waits = session.next.as_ref().map(|n| n.connection);
        if session.channel.map(|c| c.connection) == Some(attach.connection) || waits == Some(attach.connection) {
            return;
        }
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
        let mut ended = false;
        if let Some(old) = slot.filter(|&s| attach.clean || self.state.session(s).is_some_and(over)) {
            ended = self.end_former(old, out);
            slot = None;
        }
        let found = slot.is_some();
        let expiry_s = attach.expiry_s;
        let slot = slot.unwrap_or_else(|| {
            // the log knows a session that ends with its connection only for the sake of its will
            let logged = expiry_s > 0 || attach.will.is_some();
            let uid = self.new_uid();
            let maker = attach.maker;
            let record = Record::SessionOpened { client_id: &attach.client_id, uid, expiry_s, logged, maker };
            self.commit(logged, record)
        });
        let (logged, had_will) = self.state.session(slot).map_or((false, false), |s| (s.logged, s.will.is_some()));
        if found {
            self.commit(logged, Record::SessionAttached { slot, expiry_s });
        }
        match attach.will {
            Some(will) => {
                // a will that may not be sent must not come back after a restart, when its client's rights are unknown
                let allowed = attach.rules.may(crate::access::Action::Publish, &will.topic);
                self.commit(logged && allowed, Record::WillArmed { slot, will });
            }
            None if had_will => drop(self.commit(logged, Record::WillDisarmed { slot })),
            None => {}
        }
        let window = attach.receive_maximum.min(self.rules.limits.inflight_max.max(1));
        let Some(session) = self.state.session_mut(slot) else { return };
        session.ends_at_ms = 0;
        session.will_at_ms = 0;
        let present = found && (session.maker == 0 || session.maker != attach.maker);
        if present {
            session.maker = 0;
        }
        session.rules = attach.rules;
        if let (Some(name), None) = (&attach.username, &session.user) {
            session.user = self.rules.users.account(name);
            let (messages, bytes) = (session.queue.waiting() as i64, session.queue.bytes() as i64);
            session.user.iter().for_each(|user| user.shift(messages, bytes));
        }
        session.channel = Some(Channel { connection: attach.connection, window, congested: false, opening: true });
        let session = SessionRef { partition: self.number, slot, uid: session.uid };
        let attached = Effect::Attached { connection: attach.connection, session, present };
        // a session whose end was acknowledged does not come back either
        if expiry_s > 0 || ended {
            self.when_safe(attached, out)
        } else {
            out.push(attached)
        }
        self.tell_groups(slot, true, u32::from(window), out);
    }

    /// The session that a new one takes the place of ends; was it kept on disk?
    fn end_former(&mut self, slot: u32, out: &mut Effects) -> bool {
        let Some(session) = self.state.session_mut(slot) else { return false };
        let durable = session.durable();
        if session.expiry_s == 0 {
            session.will_at_ms = 0; // only its will was left, and the client is back before the delay has passed [MQTT-3.1.3-9]
        }
        self.end_session(slot, DropReason::SessionEnded, out);
        durable
    }

    /// CONNACK was sent: what waits follows.
    pub(super) fn opened(&mut self, session: SessionRef, out: &mut Effects) {
        if let Some(s) = self.session_mut(session) {
            s.maker = 0;
            s.channel.iter_mut().for_each(|channel| channel.opening = false);
        }
        self.resume(session, out);
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
        s.fetching = false;
        let sent = s.queue.sent_up_to();
        s.queue.detach();
        let next = s.next.take();
        self.return_unsent(slot, out);
        self.tell_groups(slot, false, 0, out);
        self.leave(slot, ending, sent, out);
        if let Some(attach) = next {
            let slot = self.state.find(&attach.client_id);
            self.finish_attach(slot, *attach, out);
        }
    }

    /// The session without its connection: its will is sent, waits or is forgotten; it ends or waits for its end.
    fn leave(&mut self, slot: u32, ending: Ending, sent: u64, out: &mut Effects) {
        let now_ms = self.now_ms;
        let Some(s) = self.state.session(slot) else { return };
        let (logged, uid) = (s.logged, s.uid);
        let expiry_s = ending.expiry_s.unwrap_or(s.expiry_s);
        let after = |seconds: u32| now_ms + u64::from(seconds) * 1000;
        let mut will_at_ms = 0;
        match &s.will {
            Some(will) if ending.will => {
                let ends_first = !will.outlives || ending.expiry_s.is_some();
                let delay_s = if ends_first { will.delay_s.min(expiry_s) } else { will.delay_s };
                if delay_s > 0 {
                    will_at_ms = after(delay_s);
                } else {
                    self.fire_will(slot, out);
                }
            }
            Some(_) => drop(self.commit(logged, Record::WillDisarmed { slot })),
            None => {}
        }
        let ends_at_ms = if matches!(expiry_s, 0 | NEVER) { 0 } else { after(expiry_s) };
        self.commit(logged, Record::SessionDetached { slot, expiry_s, ends_at_ms, will_at_ms, sent });
        match expiry_s {
            0 if will_at_ms != 0 => self.leave_will(slot, out),
            0 => self.end_session(slot, DropReason::SessionEnded, out),
            _ => [ends_at_ms, will_at_ms]
                .into_iter()
                .filter(|at| *at != 0)
                .for_each(|at| self.timers.set(at, (slot, uid))),
        }
    }

    /// The session ends, its delayed will waits on in an empty one.
    fn leave_will(&mut self, slot: u32, out: &mut Effects) {
        let Some(s) = self.state.session_mut(slot) else { return };
        let Some(will) = s.will.take() else { return };
        let (client_id, at_ms, rules, logged) = (s.client_id.clone(), s.will_at_ms, s.rules.clone(), s.logged);
        s.will_at_ms = 0;
        self.end_session(slot, DropReason::SessionEnded, out);
        let uid = self.new_uid();
        let slot =
            self.commit(logged, Record::SessionOpened { client_id: &client_id, uid, expiry_s: 0, logged, maker: 0 });
        let allowed = rules.may(crate::access::Action::Publish, &will.topic);
        self.commit(logged && allowed, Record::WillArmed { slot, will });
        let (expiry_s, ends_at_ms, will_at_ms) = (0, at_ms, at_ms);
        self.commit(logged, Record::SessionDetached { slot, expiry_s, ends_at_ms, will_at_ms, sent: 0 });
        if let Some(s) = self.state.session_mut(slot) {
            s.rules = rules;
        }
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
        let logged = s.logged;
        if let Some(will) = &s.will {
            let message = will_message(s, will, self.now_ms);
            if s.rules.may(crate::access::Action::Publish, &will.topic) {
                out.push(Effect::Publish { message });
            } else {
                self.dropped(slot, &will.topic, will.qos, DropReason::NotAuthorized, out);
            }
        }
        self.commit(logged, Record::WillDisarmed { slot });
    }

    /// The end of a session: its will goes out, its subscriptions go, what waited is counted as dropped.
    pub(super) fn end_session(&mut self, slot: u32, reason: DropReason, out: &mut Effects) {
        if self.state.session(slot).is_some_and(|s| s.will_at_ms != 0) {
            self.fire_will(slot, out);
        }
        let Some(s) = self.state.session(slot) else { return };
        let session = SessionRef { partition: self.number, slot, uid: s.uid };
        let logged = s.logged;
        let filters: Vec<Box<str>> = s.subscriptions.keys().cloned().collect();
        if s.held.is_some() {
            out.push(Effect::ForgetOrigin { uid: s.uid });
        }
        for filter in filters {
            self.forget_subscription(session, &filter, out);
        }
        self.return_all(slot, out);
        let lost: Vec<(Option<Stored>, QoS)> = match self.state.session(slot) {
            Some(s) => s
                .queue
                .iter()
                .filter(|(_, e)| e.group().is_none() && e.needs_body())
                .map(|(_, e)| (e.body.clone(), e.qos))
                .collect(),
            None => Vec::new(),
        };
        for (i, (message, qos)) in lost.iter().enumerate() {
            if i < LEDGER_PER_SESSION {
                let topic = message.as_ref().map_or("", |m| m.view().topic);
                self.dropped(slot, topic, *qos, reason, out);
            } else {
                let topic = Box::default();
                out.push(Effect::Dropped { client_id: Box::default(), topic, qos: *qos, reason });
            }
        }
        if let Some((user, queue)) = self.state.session(slot).and_then(|s| Some((s.user.as_ref()?, &s.queue))) {
            user.shift(-(queue.waiting() as i64), -(queue.bytes() as i64));
        }
        self.commit(logged, Record::SessionEnded { slot });
    }

    /// The client of a session may do other things from now on.
    pub fn set_rights(&mut self, session: SessionRef, rules: crate::access::Rules) {
        if let Some(s) = self.session_mut(session) {
            s.rules = rules;
        }
    }
}

fn will_message(session: &Session, will: &Will, now_ms: u64) -> Stored {
    let deadline_ms = will.expiry_s.map_or(0, |s| now_ms + u64::from(s) * 1000);
    let head = Head { publisher: session.uid, deadline_ms, qos: will.qos, retain: will.retain, ..Head::default() };
    Stored::new(&Message { head, topic: &will.topic, props: &will.props, payload: &will.payload })
}
