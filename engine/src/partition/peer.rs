//! After a panic somewhere: a partition that takes the place of one whose volatile state is gone, and partitions whose
//! groups or members were there.

use super::{Effect, Effects, Partition};
use crate::channel::SessionRef;
use crate::shared::Member;

impl Partition {
    /// Takes the place of `before`: names that it gave are never given again, and what it kept counts no more.
    pub fn succeed(&mut self, before: &mut Self) {
        self.next_uid = self.next_uid.max(before.next_uid);
        let of = |p: &Self| (p.state.retained.len(), p.state.retained.bytes());
        self.rules.retained.shift(of(before), of(self));
    }

    /// Sessions of these partitions are gone: they leave every group here, and what they had goes to other members.
    pub fn lose_members(&mut self, now_ms: u64, gone: &dyn Fn(u16) -> bool, out: &mut Effects) {
        self.now_ms = now_ms;
        let names: Vec<Box<str>> = self.group_names.keys().cloned().collect();
        for name in names {
            let Some(&slot) = self.group_names.get(&name) else { continue };
            let Some(group) = self.groups.get_mut(slot) else { continue };
            let lost: Vec<SessionRef> = group.sessions().filter(|s| gone(s.partition)).collect();
            for session in lost {
                if let Some(group) = self.groups.get_mut(slot) {
                    group.give_back_all(session);
                }
                self.group_leave(&name, session, out);
            }
        }
    }

    /// Groups with these names have forgotten their members: those of this partition join again.
    pub fn join_again(&self, forgotten: &dyn Fn(&str) -> bool, out: &mut Effects) {
        for (slot, s) in self.state.each() {
            let session = SessionRef { partition: self.number, slot, uid: s.uid };
            let (online, window) = (s.channel.is_some(), s.channel.map_or(0, |c| u32::from(c.window)));
            for (filter, subscription) in &s.subscriptions {
                let Some(group) = super::subscribe::group_name(filter).filter(|g| forgotten(g)) else { continue };
                let (qos, id, durable) = (subscription.qos, subscription.id, s.durable());
                let member = Member { session, qos, id, online, durable, window, open: 0 };
                out.push(Effect::GroupJoin { group: group.into(), member });
            }
        }
    }
}
