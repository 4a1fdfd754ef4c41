//! A partition that is rebuilt from its log: what its state means after a restart (`docs/formats/durability.md`).

use super::{Effect, Effects, Partition, Rules, Subscriber};
use crate::channel::SessionRef;
use crate::limits::Drop as DropReason;
use crate::record::{Record, Replay, make_uid};
use crate::session::{NEVER, Session};
use crate::shared::Member;

/// A will waits at least so long after a restart, so that restarting the broker does not declare a fleet dead.
const WILL_GRACE_MS: u64 = 30_000;

/// What the log knew when it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Resumed {
    /// Of this run, higher than that of every run before.
    pub incarnation: u32,
    /// Index of the last record of the partition.
    pub last: u64,
    /// Engine time of the last group: sessions that were connected then count as away since then.
    pub ended_ms: u64,
    /// Engine time now.
    pub now_ms: u64,
}

impl Partition {
    /// The partition as its log left it. [`Self::resume_all`] follows, in its lane.
    #[must_use]
    pub fn recovered(number: u16, rules: Rules, replay: Replay, resumed: Resumed) -> Self {
        let mut p = Self::new(number, rules, resumed.incarnation);
        p.journal = super::Journal::new(true, resumed.last);
        p.now_ms = resumed.now_ms;
        p.next_uid = make_uid(number, resumed.incarnation, 1).max(replay.last_uid + 1);
        let window = u64::from(p.rules.limits.inflight_max.max(1));
        let sent: Vec<(u32, u64)> = replay.state.each().map(|(slot, _)| (slot, replay.sent(slot))).collect();
        p.state = replay.state;
        let (mut messages, mut bytes) = (0, 0);
        for (slot, sent) in sent {
            let Some(s) = p.state.session_mut(slot) else { continue };
            // of a session that was connected nobody knows what was sent: what a group gave it must not go to another
            let (sent, all_given) = if s.away { (sent, false) } else { (s.queue.base() + window, true) };
            s.queue.resume(sent, all_given);
            messages += i64::try_from(s.queue.waiting()).unwrap_or(0);
            bytes += i64::try_from(s.queue.bytes()).unwrap_or(0);
        }
        p.rules.queued.shift(messages, bytes);
        p.account_retained((0, 0));
        p
    }

    /// Every session that the log knew goes on: subscriptions, groups, wills and ends.
    pub fn resume_all(&mut self, resumed: Resumed, out: &mut Effects) {
        let groups: Vec<u64> = self.state.groups().map(|g| g.uid).collect();
        groups.into_iter().for_each(|uid| self.group_enlist(uid, out));
        let slots: Vec<u32> = self.state.each().map(|(slot, _)| slot).collect();
        for slot in slots {
            self.resume_session(slot, resumed, out);
        }
    }

    fn resume_session(&mut self, slot: u32, resumed: Resumed, out: &mut Effects) {
        let Some(s) = self.state.session(slot) else { return };
        let (uid, expiry_s, away, sent) = (s.uid, s.expiry_s, s.away, s.queue.sent_up_to());
        let (ends_at_ms, will_at_ms) = times_after_restart(s, resumed);
        if expiry_s == 0 && will_at_ms == 0 {
            return self.end_session(slot, DropReason::SessionEnded, out);
        }
        if !away || s.will_at_ms != will_at_ms {
            self.commit(true, Record::SessionDetached { slot, expiry_s, ends_at_ms, will_at_ms, sent });
        }
        [ends_at_ms, will_at_ms].into_iter().filter(|at| *at != 0).for_each(|at| self.timers.set(at, (slot, uid)));
        self.announce(slot, out);
        self.return_unsent(slot, out);
    }

    /// The tree and the groups learn what a session wants.
    fn announce(&self, slot: u32, out: &mut Effects) {
        let Some(s) = self.state.session(slot) else { return };
        let session = SessionRef { partition: self.number, slot, uid: s.uid };
        for (filter, sub) in &s.subscriptions {
            if let Some(group) = super::subscribe::group_name(filter) {
                let durable = s.durable();
                let member = Member { session, qos: sub.qos, id: sub.id, online: false, durable, window: 0, open: 0 };
                out.push(Effect::GroupJoin { group: group.into(), member, again: true });
            }
        }
        self.enlist(slot, out);
    }

    /// The tree learns what a session wants.
    pub(super) fn enlist(&self, slot: u32, out: &mut Effects) {
        let Some(s) = self.state.session(slot) else { return };
        for (filter, sub) in s.subscriptions.iter().filter(|(f, _)| super::subscribe::group_name(f).is_none()) {
            let subscriber = Subscriber {
                partition: self.number,
                slot,
                group: false,
                qos: sub.qos,
                no_local: sub.no_local,
                retain_as_published: sub.retain_as_published,
                id: sub.id,
            };
            out.push(Effect::Subscribe { filter: filter.clone(), subscriber });
        }
    }
}

/// When a session and its will are over, as engine time; 0 is never.
fn times_after_restart(s: &Session, resumed: Resumed) -> (u64, u64) {
    let away = s.away;
    let grace = |will_delay_s: u32| resumed.now_ms + (u64::from(will_delay_s) * 1000).max(WILL_GRACE_MS);
    let will_at_ms = match &s.will {
        None => 0,
        Some(_) if away && s.will_at_ms == 0 => 0,
        Some(_) if away => s.will_at_ms.max(resumed.now_ms + WILL_GRACE_MS),
        Some(will) => grace(will.delay_s),
    };
    let ends_at_ms = match s.expiry_s {
        0 => will_at_ms,
        NEVER => 0,
        _ if away && s.ends_at_ms != 0 => s.ends_at_ms,
        seconds => resumed.ended_ms + u64::from(seconds) * 1000,
    };
    (ends_at_ms, will_at_ms)
}
