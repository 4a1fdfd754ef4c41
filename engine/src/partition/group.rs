//! Shared groups whose name hashes to this partition, and the members' side: telling a group what became of its
//! messages.
//!
//! A group with a member whose session outlives its connection is in the log: its messages, and to whom each was given
//! under which number, so that after a restart the same member gets the same message again and nobody else does.

use super::{Dispatched, Effect, Effects, Partition, Subscriber, Target};
use crate::channel::{Outcome, SessionRef};
use crate::codec::QoS;
use crate::limits::Drop as DropReason;
use crate::message::{Inbound, Origin};
use crate::queue::{GroupPlace, Stage};
use crate::record::Record;
use crate::shared::{Dispatch, Member};

impl Partition {
    pub(super) fn group_join(&mut self, name: &str, member: Member, again: bool, out: &mut Effects) {
        let uid = match self.state.find_group(name) {
            Some(uid) => uid,
            None => self.group_open(name, out),
        };
        let session = member.session;
        let Some(group) = self.state.group_mut(uid) else { return };
        // new to this owner, it may have something from the one before
        let again = group.join(member) || again;
        if group.durable() && !group.logged {
            group.logged = true;
            self.log_group(uid);
        }
        if again {
            let mine = self.state.group(uid).map(|g| g.with_member(session)).unwrap_or_default();
            mine.into_iter().for_each(|d| self.group_send(uid, d, out));
        }
        self.group_pump(uid, out);
    }

    fn group_open(&mut self, name: &str, out: &mut Effects) -> u64 {
        let uid = self.new_uid();
        self.commit(false, Record::GroupOpened { uid, name, base: 0, last_n: 0 });
        self.group_enlist(uid, out);
        uid
    }

    /// The tree must know what the group wants.
    pub(super) fn group_enlist(&mut self, uid: u64, out: &mut Effects) {
        let slot = u32::try_from(self.group_slots.insert(uid)).unwrap_or(u32::MAX);
        let Some(group) = self.state.group_mut(uid) else { return };
        group.slot = slot;
        let filter = group.filter().into();
        out.push(Effect::Subscribe { filter, subscriber: self.group_subscriber(slot) });
    }

    fn group_subscriber(&self, slot: u32) -> Subscriber {
        Subscriber { partition: self.number, slot, group: true, qos: QoS::ExactlyOnce, ..Subscriber::default() }
    }

    /// The whole group as records: when its first durable member joins, and in checkpoints.
    pub(super) fn log_group(&mut self, uid: u64) {
        let Some(group) = self.state.group(uid).filter(|g| g.logged) else { return };
        let (name, base, last_n) = (group.name.clone(), group.base(), group.last_n());
        let messages: Vec<_> = group.unfinished().map(|(index, m, with)| (index, m.clone(), with)).collect();
        self.commit(true, Record::GroupOpened { uid, name: &name, base, last_n });
        for (index, message, with) in messages {
            let origin = Origin::default();
            self.commit(true, Record::GroupEnqueued { uid, index, message: &message, origin });
            if let Some((n, session)) = with {
                let (partition, member) = (session.partition, session.uid);
                self.commit(true, Record::GroupGiven { uid, index, n, partition, member });
            }
        }
    }

    pub(super) fn group_leave(&mut self, name: &str, session: SessionRef, out: &mut Effects) {
        let Some(uid) = self.state.find_group(name) else { return };
        let Some(group) = self.state.group_mut(uid) else { return };
        let left = group.leave(session);
        if left && group.is_empty() { self.group_close(uid, out) } else { self.group_pump(uid, out) }
    }

    fn group_close(&mut self, uid: u64, out: &mut Effects) {
        let Some(group) = self.state.group(uid) else { return };
        let client_id = format!("$share/{}", group.name);
        for (_, message, _) in group.unfinished() {
            let (client_id, topic) = (client_id.as_str().into(), message.view().topic.into());
            out.push(Effect::Dropped { client_id, topic, qos: message.head().qos, reason: DropReason::SessionEnded });
        }
        let (filter, logged, slot) = (group.filter().into(), group.logged, group.slot);
        out.push(Effect::Unsubscribe { filter, key: crate::tree::Keyed::key(&self.group_subscriber(slot)) });
        self.group_slots.try_remove(slot as usize);
        self.commit(logged, Record::GroupClosed { uid });
    }

    pub(super) fn group_online(
        &mut self,
        name: &str,
        session: SessionRef,
        online: bool,
        window: u32,
        out: &mut Effects,
    ) {
        let Some(uid) = self.state.find_group(name) else { return };
        if let Some(group) = self.state.group_mut(uid) {
            group.set_online(session, online, window);
        }
        self.group_pump(uid, out);
    }

    /// After a restart, of what was given to sessions that are no members: they are asked if they are `found` where they were
    /// named, else it waits for others, or is over (QoS 2).
    pub(super) fn groups_settled(&mut self, found: bool, out: &mut Effects) {
        let groups: Vec<u64> = self.state.groups().map(|g| g.uid).collect();
        for uid in groups {
            let Some(group) = self.state.group(uid) else { continue };
            if group.is_empty() {
                self.group_close(uid, out);
                continue;
            }
            let logged = group.logged;
            for d in group.with_strangers() {
                let index = d.index;
                match d.qos {
                    _ if found => self.group_send(uid, d, out),
                    QoS::ExactlyOnce => drop(self.commit(logged, Record::GroupDone { uid, index })),
                    _ => drop(self.commit(logged, Record::GroupReturned { uid, index })),
                }
            }
            self.group_pump(uid, out);
        }
    }

    /// A group hears only of the number under which it gave the message last.
    fn group_has(&self, place: GroupPlace, session: SessionRef) -> Option<bool> {
        let group = self.state.group(place.uid)?;
        group.is_with(session, place.index, place.n).then_some(group.logged)
    }

    pub(super) fn group_done(&mut self, place: GroupPlace, session: SessionRef, out: &mut Effects) {
        let Some(logged) = self.group_has(place, session) else { return };
        self.commit(logged, Record::GroupDone { uid: place.uid, index: place.index });
        self.group_pump(place.uid, out);
    }

    pub(super) fn group_return(&mut self, place: GroupPlace, session: SessionRef, out: &mut Effects) {
        let Some(logged) = self.group_has(place, session) else { return };
        let GroupPlace { uid, index, .. } = place;
        self.commit(logged, Record::GroupReturned { uid, index });
        self.group_pump(uid, out);
    }

    /// Somebody else speaks for a partition, who knows what its log says: all that its sessions had is given to them again, and
    /// members are asked whether they still are. Sessions that are no members are only asked if they are `found` where they were named.
    pub fn ask_heir(&mut self, now_ms: u64, heir: u16, found: bool, out: &mut Effects) {
        self.now_ms = now_ms;
        let groups: Vec<u64> = self.state.groups().map(|g| g.uid).collect();
        for uid in groups {
            let Some(group) = self.state.group(uid) else { continue };
            let members = group.sessions(false).filter(|s| s.partition == heir);
            out.extend(members.map(|session| Effect::GroupAsk { group: group.name.clone(), session }));
            let had = group.with_partition(heir, found);
            had.into_iter().for_each(|d| self.group_send(uid, d, out));
        }
    }

    /// A message for a group: QoS 0 to the next member, others into the group's queue. True if it must be safe.
    pub(super) fn group_publish(
        &mut self,
        target: &Target,
        message: &Inbound<'_>,
        outcome: &mut Outcome,
        out: &mut Effects,
    ) -> bool {
        let limits = std::sync::Arc::clone(&self.rules.limits);
        let Some(&uid) = self.group_slots.get(target.slot as usize) else { return false };
        let failing = self.rules.disk_failing.load(std::sync::atomic::Ordering::Relaxed);
        let Some(group) = self.state.group_mut(uid) else { return false };
        outcome.accepted += 1;
        if message.view.head.qos == QoS::AtMostOnce {
            if let Some((to, id)) = group.pass() {
                let (qos, message) = (QoS::AtMostOnce, message.store());
                let origin = Origin::default();
                out.push(Effect::Dispatch(Dispatched { to, place: None, origin, message, qos, id }));
            }
            return false;
        }
        let full = group.waiting() >= limits.queue_messages_max
            || group.bytes() + message.view.payload.len() > limits.queue_bytes_max && group.bytes() > 0;
        let refused = failing && group.logged;
        // one that the log knows and that has no members waits for them: its lane has begun anew
        if full || refused || !(group.keeps() || group.logged && group.is_empty()) {
            let client_id = format!("$share/{}", group.name).into();
            let (topic, qos) = (message.view.topic.into(), message.view.head.qos);
            let reason = if refused { DropReason::Disk } else { DropReason::GroupFull };
            outcome.disk_failed |= refused;
            out.push(Effect::Dropped { client_id, topic, qos, reason });
            return false;
        }
        let (logged, index) = (group.logged, group.next_index());
        let origin = message.view.head.origin;
        self.commit(logged, Record::GroupEnqueued { uid, index, message: &message.store(), origin });
        self.group_pump(uid, out);
        logged
    }

    fn group_pump(&mut self, uid: u64, out: &mut Effects) {
        let upgrade = self.rules.upgrade_qos;
        while let Some(d) = self.state.group_mut(uid).and_then(|g| g.choose(upgrade)) {
            let logged = self.state.group(uid).is_some_and(|g| g.logged);
            let Dispatch { index, n, to, .. } = d;
            if d.qos == QoS::AtMostOnce {
                self.commit(logged, Record::GroupDone { uid, index });
            } else {
                let (partition, member) = (to.partition, to.uid);
                self.commit(logged, Record::GroupGiven { uid, index, n, partition, member });
            }
            self.group_send(uid, d, out);
        }
    }

    fn group_send(&mut self, uid: u64, d: Dispatch, out: &mut Effects) {
        let keeps = d.qos != QoS::AtMostOnce;
        let place = keeps.then_some(GroupPlace { partition: self.number, uid, index: d.index, n: d.n });
        let origin = if keeps { Origin { uid, n: d.n, answered: d.answered } } else { Origin::default() };
        let d = Dispatched { to: d.to, place, origin, message: d.message, qos: d.qos, id: d.id };
        // in the log of another partition it must not be before it is in this one: another member could get it again
        if keeps && self.rules.many_logs {
            self.when_safe(Effect::Dispatch(d), out);
        } else {
            out.push(Effect::Dispatch(d));
        }
    }

    // ---- the members' side

    /// Tells the groups of a session that it came or went.
    pub(super) fn tell_groups(&self, slot: u32, online: bool, window: u32, out: &mut Effects) {
        let Some(s) = self.state.session(slot) else { return };
        let session = SessionRef { partition: self.number, slot, uid: s.uid };
        for filter in s.subscriptions.keys() {
            if let Some(group) = super::subscribe::group_name(filter) {
                out.push(Effect::GroupOnline { group: group.into(), session, online, window });
            }
        }
    }

    /// Tells the group of a message, if it has one, that the member is done with it.
    pub(super) fn group_told(&mut self, slot: u32, index: u64, out: &mut Effects) {
        let number = self.number;
        let Some(s) = self.state.session_mut(slot) else { return };
        let session = SessionRef { partition: number, slot, uid: s.uid };
        let place = s.queue.get_mut(index).and_then(|e| e.extra.as_mut()).and_then(|x| x.group.take());
        out.extend(place.map(|place| Effect::GroupDone { place, session }));
    }

    /// What a group gave and was never sent goes back when the member's connection ends.
    pub(super) fn return_unsent(&mut self, slot: u32, out: &mut Effects) {
        self.give_back(slot, out, |stage| stage == Stage::Waiting);
    }

    /// When the session ends everything unfinished goes back, but not what was sent at QoS 2 [MQTT-4.8.2-5].
    pub(super) fn return_all(&mut self, slot: u32, out: &mut Effects) {
        self.give_back(slot, out, |_| true);
    }

    fn give_back(&mut self, slot: u32, out: &mut Effects, wanted: impl Fn(Stage) -> bool) {
        let Some(s) = self.state.session(slot) else { return };
        let session = SessionRef { partition: self.number, slot, uid: s.uid };
        let durable = s.durable();
        let back: Vec<(u64, GroupPlace, bool)> = s
            .queue
            .iter()
            .filter(|(_, e)| wanted(e.stage))
            .filter_map(|(i, e)| Some((i, e.group()?, e.stage != Stage::Waiting && e.qos == QoS::ExactlyOnce)))
            .collect();
        for (index, place, over) in back {
            if over {
                out.push(Effect::GroupDone { place, session });
            } else {
                self.commit(durable, Record::GivenBack { slot, index, group: place.uid, n: place.n });
                self.when_safe(Effect::GroupReturn { place, session }, out);
            }
        }
    }

    /// A message comes again, or to nobody: the group is told what became of it. Else it is this partition's to take.
    pub(super) fn is_settled(&mut self, place: GroupPlace, to: SessionRef, out: &mut Effects) -> bool {
        let origin = Origin { uid: place.uid, n: place.n, answered: 0 };
        if self.state.returned(origin) {
            self.when_safe(Effect::GroupReturn { place, session: to }, out);
            return true;
        }
        if !self.state.taken(origin) {
            return false;
        }
        // the member has it still, or is done with it
        let has = self.session(to).is_some_and(|s| s.queue.iter().any(|(_, e)| e.group() == Some(place)));
        if !has {
            out.push(Effect::GroupDone { place, session: to });
        }
        true
    }

    /// Nobody is here to take it. Whoever owns this partition next must know that it went back.
    pub(super) fn not_taken(&mut self, place: GroupPlace, to: SessionRef, out: &mut Effects) {
        self.commit(true, Record::NotTaken { group: place.uid, n: place.n });
        self.when_safe(Effect::GroupReturn { place, session: to }, out);
    }

    /// Is this session still a member?
    pub(super) fn group_asks(&self, group: &str, session: SessionRef, out: &mut Effects) {
        let is_one = |filter: &str| super::subscribe::group_name(filter) == Some(group);
        if !self.session(session).is_some_and(|s| s.subscriptions.keys().any(|f| is_one(f))) {
            out.push(Effect::GroupLeave { group: group.into(), session });
        }
    }
}
