//! When state goes away: a partition that takes the place of one that was lost in a panic, one that belongs to another node
//! now, and partitions whose groups or members were there.

use super::{Effect, Effects, Partition, Subscriber};
use crate::channel::{SessionRef, Token};
use crate::codec::QoS;
use crate::queue::GroupPlace;
use crate::shared::Member;
use crate::tree::Keyed;

impl Partition {
    /// Takes the place of `before`: names that it gave are never given again, and what it kept counts no more.
    pub fn succeed(&mut self, before: &mut Self) {
        self.next_uid = self.next_uid.max(before.next_uid);
        // what this one has was counted when it was made; what the broker says of itself never was
        let retained = before.state.retained.each().filter(|m| m.head().publisher != 0);
        let (count, bytes) = retained.fold((0, 0), |(count, bytes), m| (count + 1, bytes + m.len() as i64));
        self.rules.retained.shift(-count, -bytes);
        before.uncount_queues();
        self.journal.go_on_after(&before.journal);
    }

    /// What waits in its queues counts no more.
    fn uncount_queues(&self) {
        let (mut messages, mut bytes) = self.wanted;
        for (_, s) in self.state.each().filter(|(_, s)| s.durable()) {
            let waits = s.queue.iter().filter(|(_, e)| e.needs_body()).count();
            messages -= waits as i64;
            bytes -= s.queue.bytes() as i64;
            s.user.iter().for_each(|user| user.shift(-(waits as i64), -(s.queue.bytes() as i64)));
        }
        self.rules.queued.shift(messages, bytes);
    }

    /// The partition belongs to another node now: the tree forgets what it wanted, and it counts no more. Returns the publishes
    /// that were to be answered when they were safe.
    pub fn retire(&mut self, out: &mut Effects) -> Vec<Token> {
        self.unlist(out);
        self.uncount();
        let unanswered = self.held_back.iter().filter_map(|(_, effect)| match effect {
            Effect::Answer { token, .. } => Some(*token),
            _ => None,
        });
        unanswered.collect()
    }

    /// What is retained and what waits in its queues counts no more.
    pub(super) fn uncount(&self) {
        let retained = self.state.retained.each().filter(|m| m.head().publisher != 0);
        let (count, bytes) = retained.fold((0, 0), |(count, bytes), m| (count + 1, bytes + m.len() as i64));
        self.rules.retained.shift(-count, -bytes);
        self.uncount_queues();
    }

    /// The tree forgets what it wanted.
    pub fn unlist(&self, out: &mut Effects) {
        for (slot, s) in self.state.each() {
            let subscriber = Subscriber { partition: self.number, slot, ..Subscriber::default() };
            for filter in s.subscriptions.keys().filter(|f| super::subscribe::group_name(f).is_none()) {
                out.push(Effect::Unsubscribe { filter: filter.clone(), key: subscriber.key() });
            }
        }
        for group in self.state.groups() {
            let subscriber =
                Subscriber { partition: self.number, slot: group.slot, group: true, ..Subscriber::default() };
            out.push(Effect::Unsubscribe { filter: group.filter().into(), key: subscriber.key() });
        }
    }

    /// Sessions of these partitions are gone: they leave every group here, and what they had goes to other members.
    pub fn lose_members(&mut self, now_ms: u64, gone: &dyn Fn(u16) -> bool, out: &mut Effects) {
        self.now_ms = now_ms;
        let groups: Vec<(u64, Box<str>)> = self.state.groups().map(|g| (g.uid, g.name.clone())).collect();
        for (uid, name) in groups {
            let Some(group) = self.state.group(uid) else { continue };
            // sessions that the log knows come back and join again; what they had is theirs
            let logged = self.journal.on;
            let lost: Vec<SessionRef> = group.sessions(logged).filter(|s| gone(s.partition)).collect();
            for session in lost {
                let had = self.state.group(uid).map(|g| g.with_member(session)).unwrap_or_default();
                for d in had {
                    let place = GroupPlace { partition: self.number, uid, index: d.index, n: d.n };
                    // it may have been sent
                    if d.qos == QoS::ExactlyOnce {
                        self.group_done(place, session, out);
                    } else {
                        self.group_return(place, session, out);
                    }
                }
                self.group_leave(&name, session, out);
            }
        }
    }

    /// Groups with these names have forgotten their members: those of this partition join again, and what the group had
    /// given to them is given again, as the mail with it may be lost. A member knows what it has had.
    pub fn join_again(&self, forgotten: &dyn Fn(&str) -> bool, out: &mut Effects) {
        for (slot, s) in self.state.each() {
            let session = SessionRef { partition: self.number, slot, uid: s.uid };
            let (online, window) = (s.channel.is_some(), s.channel.map_or(0, |c| u32::from(c.window)));
            for (filter, subscription) in &s.subscriptions {
                let Some(group) = super::subscribe::group_name(filter).filter(|g| forgotten(g)) else { continue };
                let (qos, id, durable) = (subscription.qos, subscription.id, s.durable());
                let member = Member { session, qos, id, online, durable, window, open: 0 };
                out.push(Effect::GroupJoin { group: group.into(), member, again: self.journal.on });
            }
        }
    }
}
