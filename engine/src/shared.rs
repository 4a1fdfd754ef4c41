//! A shared group (section 4.8.2): a session without a client, whose members pull by capacity.
//!
//! The group keeps each QoS 1 and 2 message until a member is done with it. Unsent, or QoS 1 unacknowledged when the
//! member's session ends: the message goes to another member. QoS 2 never goes to another member once sent
//! [MQTT-4.8.2-5]; refused by a member means to nobody else [MQTT-4.8.2-6]. Pure: what it decides is returned.

use std::collections::VecDeque;

use crate::channel::SessionRef;
use crate::codec::QoS;
use crate::message::Stored;

/// One member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its session.
    pub session: SessionRef,
    /// Maximum QoS of its subscription.
    pub qos: QoS,
    /// Subscription Identifier; 0 is none.
    pub id: u32,
    /// A connection is attached.
    pub online: bool,
    /// Its session outlives its connection.
    pub durable: bool,
    /// Most messages it may have at once.
    pub window: u32,
    /// Messages it has.
    pub open: u32,
}

#[derive(Debug)]
enum Place {
    Waiting,
    With(SessionRef),
    Done,
}

#[derive(Debug)]
struct Entry {
    message: Option<Stored>,
    place: Place,
}

/// What the group wants to be sent.
#[derive(Debug)]
pub struct Dispatch {
    /// To whom.
    pub to: SessionRef,
    /// Index in the group's queue; `None` for QoS 0, which is not kept.
    pub index: Option<u64>,
    /// The message.
    pub message: Stored,
    /// QoS for this member.
    pub qos: QoS,
    /// Subscription Identifier of this member.
    pub id: u32,
}

/// One group for one filter.
#[derive(Debug, Default)]
pub struct Group {
    /// Never used again.
    pub uid: u64,
    /// `GROUP/FILTER`.
    pub name: Box<str>,
    /// The filter.
    pub filter: Box<str>,
    members: Vec<Member>,
    turn: usize,
    entries: VecDeque<Entry>,
    base: u64,
    waiting: usize,
    bytes: usize,
}

impl Group {
    /// `name` is `GROUP/FILTER`.
    #[must_use]
    pub fn new(uid: u64, name: &str, filter: &str) -> Self {
        Self { uid, name: name.into(), filter: filter.into(), ..Self::default() }
    }

    /// Adds a member or changes it.
    pub fn join(&mut self, member: Member) {
        match self.members.iter_mut().find(|m| m.session == member.session) {
            Some(old) => *old = Member { open: old.open, ..member },
            None => self.members.push(member),
        }
    }

    /// Removes a member; its unfinished messages come back by [`Self::give_back`]. True if it was one.
    pub fn leave(&mut self, session: SessionRef) -> bool {
        let before = self.members.len();
        self.members.retain(|m| m.session != session);
        before != self.members.len()
    }

    /// Who is in it.
    pub fn sessions(&self) -> impl Iterator<Item = SessionRef> + '_ {
        self.members.iter().map(|m| m.session)
    }

    /// A member is gone for good; whether it had sent what it had is not known.
    pub fn give_back_all(&mut self, session: SessionRef) {
        for index in self.base..self.base + self.entries.len() as u64 {
            self.give_back(session, index, true);
        }
    }

    /// A member came or went.
    pub fn set_online(&mut self, session: SessionRef, online: bool, window: u32) {
        if let Some(m) = self.members.iter_mut().find(|m| m.session == session) {
            (m.online, m.window) = (online, window);
        }
    }

    /// True without members: the group ends.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Messages waiting for a member.
    #[must_use]
    pub const fn waiting(&self) -> usize {
        self.waiting
    }

    /// Bytes waiting for or with members.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Should a message be kept while nobody is connected?
    #[must_use]
    pub fn keeps(&self) -> bool {
        self.members.iter().any(|m| m.online || m.durable)
    }

    /// The member whose turn it is, of those that `fits`.
    fn pick(&mut self, fits: impl Fn(&Member) -> bool) -> Option<&mut Member> {
        let n = self.members.len();
        let at = (0..n).map(|i| (self.turn + i) % n).find(|&i| self.members.get(i).is_some_and(&fits))?;
        self.turn = (at + 1) % n;
        self.members.get_mut(at)
    }

    /// A QoS 0 message: to the next member that is connected, or to nobody.
    pub fn pass(&mut self, message: Stored) -> Option<Dispatch> {
        let m = self.pick(|m| m.online)?;
        Some(Dispatch { to: m.session, index: None, message, qos: QoS::AtMostOnce, id: m.id })
    }

    /// Keeps a QoS 1 or 2 message; [`Self::next`] hands it out.
    pub fn push(&mut self, message: Stored) {
        self.bytes += message.len();
        self.waiting += 1;
        self.entries.push_back(Entry { message: Some(message), place: Place::Waiting });
    }

    /// The next message for a member with room, oldest first.
    pub fn next(&mut self, upgrade_qos: bool) -> Option<Dispatch> {
        if self.waiting == 0 {
            return None;
        }
        let at = self.entries.iter().position(|e| matches!(e.place, Place::Waiting))?;
        let message = self.entries.get(at)?.message.clone()?;
        let published = message.head().qos;
        let index = self.base + at as u64;
        let m = self.pick(|m| m.online && m.open < m.window)?;
        let qos = if upgrade_qos { m.qos } else { m.qos.min(published) };
        let (to, id) = (m.session, m.id);
        if qos != QoS::AtMostOnce {
            m.open += 1;
        }
        self.waiting -= 1;
        if qos == QoS::AtMostOnce {
            self.finish(index);
            return Some(Dispatch { to, index: None, message, qos, id });
        }
        self.entries.get_mut(at)?.place = Place::With(to);
        Some(Dispatch { to, index: Some(index), message, qos, id })
    }

    /// A member is done with a message.
    pub fn done(&mut self, session: SessionRef, index: u64) {
        if self.is_with(session, index) {
            self.free_slot(session);
            self.finish(index);
        }
    }

    /// A member could not finish a message; `sent` says whether it had left. True if it waits again.
    pub fn give_back(&mut self, session: SessionRef, index: u64, sent: bool) -> bool {
        if !self.is_with(session, index) {
            return false;
        }
        self.free_slot(session);
        let exactly_once =
            self.entry(index).and_then(|e| e.message.as_ref()).map(|m| m.head().qos) == Some(QoS::ExactlyOnce);
        if sent && exactly_once {
            self.finish(index);
            return false;
        }
        if let Some(e) = self.entry(index) {
            e.place = Place::Waiting;
            self.waiting += 1;
        }
        true
    }

    fn entry(&mut self, index: u64) -> Option<&mut Entry> {
        self.entries.get_mut(usize::try_from(index.checked_sub(self.base)?).ok()?)
    }

    fn is_with(&mut self, session: SessionRef, index: u64) -> bool {
        self.entry(index).is_some_and(|e| matches!(e.place, Place::With(s) if s == session))
    }

    fn free_slot(&mut self, session: SessionRef) {
        if let Some(m) = self.members.iter_mut().find(|m| m.session == session) {
            m.open = m.open.saturating_sub(1);
        }
    }

    fn finish(&mut self, index: u64) {
        let Some(e) = self.entry(index) else { return };
        e.place = Place::Done;
        let len = e.message.take().map_or(0, |m| m.len());
        self.bytes -= len;
        while self.entries.front().is_some_and(|e| matches!(e.place, Place::Done)) {
            self.entries.pop_front();
            self.base += 1;
        }
    }

    /// Messages that nobody got, when the group ends.
    pub fn drain(&mut self) -> impl Iterator<Item = Stored> + '_ {
        self.entries.drain(..).filter_map(|e| e.message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Head, Message};

    fn member(slot: u32, online: bool) -> Member {
        let session = SessionRef { partition: 0, slot, uid: u64::from(slot) + 1 };
        Member { session, qos: QoS::ExactlyOnce, id: 0, online, durable: true, window: 1, open: 0 }
    }

    fn message(qos: QoS) -> Stored {
        Stored::new(&Message { head: Head { qos, ..Head::default() }, topic: "t", props: &[], payload: b"x" })
    }

    /// Section 4.8.2: every message to one member; a member without room is passed over; unfinished QoS 1 comes back,
    /// sent QoS 2 never does [MQTT-4.8.2-5].
    #[test]
    fn one_member_each_and_back() {
        let mut g = Group::default();
        let (a, b) = (member(0, true), member(1, true));
        g.join(a.clone());
        g.join(b.clone());
        for _ in 0..3 {
            g.push(message(QoS::AtLeastOnce));
        }
        let (one, two) = (g.next(false).unwrap(), g.next(false).unwrap());
        assert_ne!(one.to, two.to);
        assert!(g.next(false).is_none(), "both windows are full");
        g.done(one.to, one.index.unwrap());
        let three = g.next(false).unwrap();
        assert_eq!(three.to, one.to);
        assert!(g.give_back(two.to, two.index.unwrap(), true), "QoS 1 unacknowledged comes back");
        g.leave(two.to);
        g.done(three.to, three.index.unwrap());
        assert_eq!(g.next(false).unwrap().to, one.to);
        g.push(message(QoS::ExactlyOnce));
        g.done(one.to, 1);
        let exact = g.next(false).unwrap();
        assert!(!g.give_back(exact.to, exact.index.unwrap(), true), "QoS 2 never goes to another");
        assert_eq!((g.waiting(), g.bytes()), (0, 0));
    }
}
