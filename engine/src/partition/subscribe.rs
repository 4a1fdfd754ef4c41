//! Subscriptions of a session (sections 3.8 and 3.10): bounds, replacement, shared groups.

use super::{Effect, Effects, Granted, Partition, Subscriber};
use crate::channel::SessionRef;
use crate::codec::Reason;
use crate::record::Record;
use crate::session::Subscription;
use crate::shared::Member;

/// One filter that the connection has found valid and allowed.
#[derive(Debug, Clone, Copy)]
pub struct Ask<'a> {
    /// The filter as it was given, with `$share/...`.
    pub filter: &'a str,
    /// Its options.
    pub subscription: Subscription,
}

impl Partition {
    /// Subscribes; the effects say what the tree or the group must learn. SUBACK waits for the interest barrier.
    pub fn subscribe(&mut self, now_ms: u64, session: SessionRef, ask: &Ask<'_>, out: &mut Effects) -> Granted {
        self.now_ms = now_ms;
        let Some(s) = self.session(session) else {
            return Granted { code: Reason::UNSPECIFIED.0, existed: false };
        };
        let existed = s.subscriptions.contains_key(ask.filter);
        if !existed && s.subscriptions.len() >= self.rules.limits.subscriptions_max {
            return Granted { code: Reason::QUOTA_EXCEEDED.0, existed };
        }
        let durable = s.durable();
        let online = s.channel.is_some();
        let window = s.channel.map_or(0, |c| u32::from(c.window));
        let Subscription { qos, no_local, retain_as_published, id } = ask.subscription;
        self.commit(
            durable,
            Record::Subscribed { slot: session.slot, filter: ask.filter, subscription: ask.subscription },
        );
        if let Some(group) = group_name(ask.filter) {
            let member = Member { session, qos, id, online, durable, window, open: 0 };
            out.push(Effect::GroupJoin { group: group.into(), member, again: false });
        } else {
            let (partition, slot) = (session.partition, session.slot);
            let subscriber = Subscriber { partition, slot, group: false, qos, no_local, retain_as_published, id };
            out.push(Effect::Subscribe { filter: ask.filter.into(), subscriber });
        }
        Granted { code: qos as u8, existed }
    }

    /// Unsubscribes; the code for the UNSUBACK.
    pub fn unsubscribe(&mut self, now_ms: u64, session: SessionRef, filter: &str, out: &mut Effects) -> Reason {
        self.now_ms = now_ms;
        if self.session(session).is_none_or(|s| !s.subscriptions.contains_key(filter)) {
            return Reason::NO_SUBSCRIPTION;
        }
        self.forget_subscription(session, filter, out);
        Reason::SUCCESS
    }

    pub(super) fn forget_subscription(&mut self, session: SessionRef, filter: &str, out: &mut Effects) {
        let durable = self.session(session).is_some_and(super::Session::durable);
        if let Some(group) = group_name(filter) {
            self.return_unsent(session.slot, out);
            out.push(Effect::GroupLeave { group: group.into(), session });
        } else {
            let (partition, slot) = (session.partition, session.slot);
            let key = crate::tree::Keyed::key(&Subscriber { partition, slot, ..Subscriber::default() });
            out.push(Effect::Unsubscribe { filter: filter.into(), key });
        }
        self.commit(durable, Record::Unsubscribed { slot: session.slot, filter });
    }
}

/// `GROUP/FILTER` of a shared filter.
pub fn group_name(filter: &str) -> Option<&str> {
    filter.strip_prefix("$share/")
}
