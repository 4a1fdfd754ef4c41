//! A shared group (section 4.8.2): a session without a client, whose members pull by capacity.
//!
//! The group keeps each QoS 1 and 2 message until a member is done with it. Unsent, or QoS 1 unacknowledged when the
//! member's session ends: the message goes to another member. QoS 2 never goes to another member once sent
//! [MQTT-4.8.2-5], which the member's side sees to; refused by a member means to nobody else [MQTT-4.8.2-6]. Pure: what it
//! decides is returned.

use serde::{Deserialize, Serialize};
use std::collections::{BTreeSet, HashSet, VecDeque};

use crate::channel::SessionRef;
use crate::codec::QoS;
use crate::message::Stored;

/// One member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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

#[derive(Debug, Clone, Serialize, Deserialize)]
enum Place {
    Waiting,
    /// With a member, as dispatch number n.
    With {
        session: SessionRef,
        n: u64,
    },
    Done,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Entry {
    /// It travels apart: others may share it.
    #[serde(skip)]
    message: Option<Stored>,
    place: Place,
}

/// Most finished messages between two that a checkpoint brings.
const GAP_MAX: u64 = 1 << 20;

/// What the group wants to be sent.
#[derive(Debug)]
pub struct Dispatch {
    /// To whom.
    pub to: SessionRef,
    /// Index in the group's queue.
    pub index: u64,
    /// Number of this dispatch: what makes it recognisable when it comes again.
    pub n: u64,
    /// Every dispatch up to it is finished.
    pub answered: u64,
    /// The message.
    pub message: Stored,
    /// QoS for this member.
    pub qos: QoS,
    /// Subscription Identifier of this member.
    pub id: u32,
}

/// One group for one filter.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Group {
    /// Never used again.
    pub uid: u64,
    /// `GROUP/FILTER`.
    pub name: Box<str>,
    /// The log knows it.
    pub logged: bool,
    /// Volatile: its place in the tree.
    pub slot: u32,
    members: Vec<Member>,
    turn: usize,
    entries: VecDeque<Entry>,
    base: u64,
    waiting: usize,
    bytes: usize,
    last_n: u64,
    /// Dispatch numbers that are with members.
    given: BTreeSet<u64>,
}

impl Group {
    /// `name` is `GROUP/FILTER`.
    #[must_use]
    pub fn new(uid: u64, name: &str) -> Self {
        Self { uid, name: name.into(), ..Self::default() }
    }

    /// As a checkpoint says; what is known already stays.
    pub fn begin_at(&mut self, base: u64, last_n: u64) {
        if self.entries.is_empty() {
            self.base = self.base.max(base);
        }
        self.last_n = self.last_n.max(last_n);
    }

    /// Index of its first message.
    #[must_use]
    pub const fn base(&self) -> u64 {
        self.base
    }

    /// The filter.
    #[must_use]
    pub fn filter(&self) -> &str {
        self.name.split_once('/').map_or(&self.name, |(_, f)| f)
    }

    /// Adds a member or changes it; true if it is a new one and something is with members.
    pub fn join(&mut self, member: Member) -> bool {
        if let Some(old) = self.members.iter_mut().find(|m| m.session.uid == member.session.uid) {
            *old = Member { open: old.open, ..member };
            return false;
        }
        self.members.push(member);
        !self.given.is_empty()
    }

    /// Removes a member; its unfinished messages come back by [`Self::give_back`]. True if it was one.
    pub fn leave(&mut self, session: SessionRef) -> bool {
        let before = self.members.len();
        self.members.retain(|m| m.session.uid != session.uid);
        before != self.members.len()
    }

    /// These sessions are in another partition now.
    pub fn rehome(&mut self, partition: u16, moved: &HashSet<u64>) {
        let with = self.entries.iter_mut().filter_map(|e| match &mut e.place {
            Place::With { session, .. } => Some(session),
            _ => None,
        });
        let all = self.members.iter_mut().map(|m| &mut m.session).chain(with);
        all.filter(|session| moved.contains(&session.uid)).for_each(|session| session.partition = partition);
    }

    /// Who is in it; `passing` only those whose session ends with their connection.
    pub fn sessions(&self, passing: bool) -> impl Iterator<Item = SessionRef> + '_ {
        self.members.iter().filter(move |m| !(passing && m.durable)).map(|m| m.session)
    }

    /// A member came or went.
    pub fn set_online(&mut self, session: SessionRef, online: bool, window: u32) {
        if let Some(m) = self.member(session) {
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

    /// True if a member's session outlives its connection: what the group keeps is worth a record.
    #[must_use]
    pub fn durable(&self) -> bool {
        self.members.iter().any(|m| m.durable)
    }

    /// The member whose turn it is to get a QoS 0 message.
    pub fn pass(&mut self) -> Option<(SessionRef, u32)> {
        self.pick(|m| m.online).map(|m| (m.session, m.id))
    }

    /// Index of the next message.
    #[must_use]
    pub fn next_index(&self) -> u64 {
        self.base + self.entries.len() as u64
    }

    /// Keeps a QoS 1 or 2 message at its index; one that is or was there changes nothing.
    pub fn put(&mut self, index: u64, message: Stored) {
        if index > self.next_index() && self.entries.is_empty() {
            self.base = index;
        }
        if index < self.next_index() || index - self.next_index() > GAP_MAX {
            return;
        }
        while self.next_index() < index {
            self.entries.push_back(Entry { message: None, place: Place::Done });
        }
        self.bytes += message.len();
        self.waiting += 1;
        self.entries.push_back(Entry { message: Some(message), place: Place::Waiting });
    }

    /// The next message for a member with room, oldest first. [`Self::give`] or [`Self::finish`] follows.
    pub fn choose(&mut self, upgrade_qos: bool) -> Option<Dispatch> {
        if self.waiting == 0 {
            return None;
        }
        let at = self.entries.iter().position(|e| matches!(e.place, Place::Waiting))?;
        let message = self.entries.get(at)?.message.clone()?;
        let (published, index) = (message.head().qos, self.base + at as u64);
        let m = self.pick(|m| m.online && m.open < m.window)?;
        let qos = if upgrade_qos { m.qos } else { m.qos.min(published) };
        let (to, id) = (m.session, m.id);
        let (n, answered) = (self.last_n + 1, self.answered());
        Some(Dispatch { to, index, n, answered, message, qos, id })
    }

    /// The message is with a member.
    pub fn give(&mut self, index: u64, n: u64, session: SessionRef) {
        self.last_n = self.last_n.max(n);
        let Some(e) = self.entry(index) else { return };
        if matches!(e.place, Place::Waiting) {
            e.place = Place::With { session, n };
            self.waiting -= 1;
            self.given.insert(n);
            if let Some(m) = self.member(session) {
                m.open += 1;
            }
        }
    }

    /// Every dispatch number at or below it is finished.
    fn answered(&self) -> u64 {
        self.given.first().map_or(self.last_n, |n| n - 1)
    }

    /// What the member has: to be given to it again after a restart.
    #[must_use]
    pub fn with_member(&self, session: SessionRef) -> Vec<Dispatch> {
        self.given_again(&|with, member| member.is_some() && with.uid == session.uid)
    }

    /// What sessions of a partition have; of those that are no members only if they are `found` where they were named.
    #[must_use]
    pub fn with_partition(&self, partition: u16, found: bool) -> Vec<Dispatch> {
        self.given_again(&|with, member| match member {
            Some(m) => m.session.partition == partition,
            None => found && with.partition == partition,
        })
    }

    fn given_again(&self, wanted: &dyn Fn(SessionRef, Option<&Member>) -> bool) -> Vec<Dispatch> {
        let answered = self.answered();
        let all = (self.base..).zip(&self.entries).filter_map(|(index, e)| {
            let Place::With { session, n } = e.place else { return None };
            let member = self.members.iter().find(|m| m.session.uid == session.uid);
            let message = e.message.clone().filter(|_| wanted(session, member))?;
            let (to, id) = member.map_or((session, 0), |m| (m.session, m.id));
            let qos = member.map_or(QoS::ExactlyOnce, |m| m.qos).min(message.head().qos);
            Some(Dispatch { to, index, n, answered, message, qos, id })
        });
        all.collect()
    }

    /// Messages with sessions that are not members.
    #[must_use]
    pub fn with_strangers(&self) -> Vec<Dispatch> {
        self.given_again(&|_, member| member.is_none())
    }

    /// Has this member this message, under this number?
    #[must_use]
    pub fn is_with(&self, member: SessionRef, index: u64, number: u64) -> bool {
        let at = index.checked_sub(self.base).and_then(|at| usize::try_from(at).ok());
        at.and_then(|at| self.entries.get(at))
            .is_some_and(|e| matches!(e.place, Place::With { session, n } if session.uid == member.uid && n == number))
    }

    /// The message waits again.
    pub fn take_back(&mut self, index: u64) {
        self.free_slot(index);
        if let Some(e) = self.entry(index).filter(|e| matches!(e.place, Place::With { .. })) {
            e.place = Place::Waiting;
            self.waiting += 1;
        }
    }

    fn entry(&mut self, index: u64) -> Option<&mut Entry> {
        self.entries.get_mut(usize::try_from(index.checked_sub(self.base)?).ok()?)
    }

    fn member(&mut self, session: SessionRef) -> Option<&mut Member> {
        self.members.iter_mut().find(|m| m.session.uid == session.uid)
    }

    fn free_slot(&mut self, index: u64) {
        let Some(&Place::With { session, n }) = self.entry(index).map(|e| &e.place) else { return };
        self.given.remove(&n);
        if let Some(m) = self.member(session) {
            m.open = m.open.saturating_sub(1);
        }
    }

    /// Nobody needs the message any more.
    pub fn finish(&mut self, index: u64) {
        self.free_slot(index);
        let Some(e) = self.entry(index) else { return };
        let waited = matches!(e.place, Place::Waiting);
        e.place = Place::Done;
        let len = e.message.take().map_or(0, |m| m.len());
        self.bytes -= len;
        self.waiting -= usize::from(waited);
        while self.entries.front().is_some_and(|e| matches!(e.place, Place::Done)) {
            self.entries.pop_front();
            self.base += 1;
        }
    }

    /// Messages that are not finished: index, message, and with whom (dispatch number, session).
    pub fn unfinished(&self) -> impl Iterator<Item = (u64, &Stored, Option<(u64, SessionRef)>)> {
        (self.base..).zip(&self.entries).filter_map(|(index, e)| {
            let with = if let Place::With { session, n } = e.place { Some((n, session)) } else { None };
            Some((index, e.message.as_ref()?, with))
        })
    }

    /// The message of each place in its queue, oldest first.
    pub fn bodies(&self) -> impl Iterator<Item = Option<&Stored>> {
        self.entries.iter().map(|e| e.message.as_ref())
    }

    /// Puts messages back that travelled apart.
    pub fn fill(&mut self, bodies: impl Iterator<Item = Option<Stored>>) {
        self.entries.iter_mut().zip(bodies).for_each(|(entry, body)| entry.message = body);
    }

    /// The highest dispatch number so far.
    #[must_use]
    pub const fn last_n(&self) -> u64 {
        self.last_n
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

    /// Section 4.8.2: every message to one member; a member without room is passed over; what is given back goes to another.
    #[test]
    fn one_member_each_and_back() {
        let mut g = Group::default();
        let (a, b) = (member(0, true), member(1, true));
        g.join(a.clone());
        g.join(b.clone());
        let next = |g: &mut Group| {
            let d = g.choose(false)?;
            g.give(d.index, d.n, d.to);
            Some(d)
        };
        for i in 0..3 {
            g.put(i, message(QoS::AtLeastOnce));
        }
        let (one, two) = (next(&mut g).unwrap(), next(&mut g).unwrap());
        assert_ne!(one.to, two.to);
        assert!(next(&mut g).is_none(), "both windows are full");
        g.finish(one.index);
        let three = next(&mut g).unwrap();
        assert_eq!(three.to, one.to);
        assert!(g.is_with(two.to, two.index, two.n) && !g.is_with(two.to, two.index, one.n));
        g.take_back(two.index);
        g.leave(two.to);
        g.finish(three.index);
        let again = next(&mut g).unwrap();
        assert_eq!((again.to, again.index, again.n), (one.to, two.index, 4), "a number of its own each time");
        g.finish(again.index);
        g.put(3, message(QoS::ExactlyOnce));
        let exact = next(&mut g).unwrap();
        assert_eq!(exact.answered, 4);
        assert_eq!(g.with_member(exact.to).len(), 1, "after a restart it is given to the same member");
        g.finish(exact.index);
        assert_eq!((g.waiting(), g.bytes(), g.next_index()), (0, 0, 4));
    }
}
