//! Shared groups whose name hashes to this partition, and the members' side: telling a group what became of its
//! messages.

use super::{Effect, Effects, Partition, Subscriber};
use crate::channel::{Outcome, SessionRef};
use crate::codec::QoS;
use crate::limits::Drop as DropReason;
use crate::message::Inbound;
use crate::queue::{GroupPlace, Stage};
use crate::record::Record;
use crate::shared::{Dispatch, Group, Member};

impl Partition {
    fn group_mut(&mut self, place: GroupPlace) -> Option<&mut Group> {
        self.groups.get_mut(place.slot as usize).filter(|g| g.uid == place.uid)
    }

    pub(super) fn group_join(&mut self, name: &str, member: Member, out: &mut Effects) {
        let slot = match self.group_names.get(name) {
            Some(&slot) => slot,
            None => self.group_open(name, out),
        };
        if let Some(group) = self.groups.get_mut(slot) {
            group.join(member);
        }
        self.group_pump(slot, out);
    }

    fn group_open(&mut self, name: &str, out: &mut Effects) -> usize {
        let filter: Box<str> = name.split_once('/').map_or(name, |(_, f)| f).into();
        let uid = self.next_uid;
        self.next_uid += 1;
        let slot = self.groups.insert(Group::new(uid, name, &filter));
        self.group_names.insert(name.into(), slot);
        let subscriber = self.group_subscriber(slot);
        out.push(Effect::Subscribe { filter, subscriber });
        slot
    }

    fn group_subscriber(&self, slot: usize) -> Subscriber {
        let slot = u32::try_from(slot).unwrap_or(u32::MAX);
        Subscriber { partition: self.number, slot, group: true, qos: QoS::ExactlyOnce, ..Subscriber::default() }
    }

    pub(super) fn group_leave(&mut self, name: &str, session: SessionRef, out: &mut Effects) {
        let Some(&slot) = self.group_names.get(name) else { return };
        let Some(group) = self.groups.get_mut(slot) else { return };
        group.leave(session);
        if !group.is_empty() {
            return self.group_pump(slot, out);
        }
        for message in group.drain() {
            let topic = message.view().topic.into();
            let (client_id, qos) = (format!("$share/{name}").into(), message.head().qos);
            out.push(Effect::Dropped { client_id, topic, qos, reason: DropReason::SessionEnded });
        }
        let filter = std::mem::take(&mut group.filter);
        let key = crate::tree::Keyed::key(&self.group_subscriber(slot));
        out.push(Effect::Unsubscribe { filter, key });
        self.groups.remove(slot);
        self.group_names.remove(name);
    }

    pub(super) fn group_online(
        &mut self,
        name: &str,
        session: SessionRef,
        online: bool,
        window: u32,
        out: &mut Effects,
    ) {
        let Some(&slot) = self.group_names.get(name) else { return };
        if let Some(group) = self.groups.get_mut(slot) {
            group.set_online(session, online, window);
        }
        self.group_pump(slot, out);
    }

    pub(super) fn group_done(&mut self, place: GroupPlace, session: SessionRef, out: &mut Effects) {
        let Some(group) = self.group_mut(place) else { return };
        group.done(session, place.index);
        self.group_pump(place.slot as usize, out);
    }

    pub(super) fn group_return(&mut self, place: GroupPlace, session: SessionRef, sent: bool, out: &mut Effects) {
        let Some(group) = self.group_mut(place) else { return };
        group.give_back(session, place.index, sent);
        self.group_pump(place.slot as usize, out);
    }

    /// A message for a group: QoS 0 to the next member, others into the group's queue.
    pub(super) fn group_publish(&mut self, slot: u32, message: &Inbound<'_>, outcome: &mut Outcome, out: &mut Effects) {
        let limits = std::sync::Arc::clone(&self.rules.limits);
        let Some(group) = self.groups.get_mut(slot as usize) else { return };
        if message.view.head.qos == QoS::AtMostOnce {
            outcome.accepted += 1;
            if let Some(dispatch) = group.pass(message.store()) {
                self.group_send(slot as usize, dispatch, out);
            }
            return;
        }
        let full = group.waiting() >= limits.queue_messages_max
            || group.bytes() + message.view.payload.len() > limits.queue_bytes_max && group.bytes() > 0;
        if full || !group.keeps() {
            let client_id = format!("$share/{}", group.name).into();
            let (topic, qos) = (message.view.topic.into(), message.view.head.qos);
            out.push(Effect::Dropped { client_id, topic, qos, reason: DropReason::GroupFull });
            outcome.accepted += 1;
            return;
        }
        outcome.accepted += 1;
        group.push(message.store());
        self.group_pump(slot as usize, out);
    }

    fn group_pump(&mut self, slot: usize, out: &mut Effects) {
        let upgrade = self.rules.upgrade_qos;
        while let Some(dispatch) = self.groups.get_mut(slot).and_then(|g| g.next(upgrade)) {
            self.group_send(slot, dispatch, out);
        }
    }

    fn group_send(&self, slot: usize, d: Dispatch, out: &mut Effects) {
        let Some(group) = self.groups.get(slot) else { return };
        let slot = u32::try_from(slot).unwrap_or(u32::MAX);
        let place = d.index.map(|index| GroupPlace { partition: self.number, slot, uid: group.uid, index });
        out.push(Effect::Dispatch { to: d.to, place, message: d.message, qos: d.qos, id: d.id });
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
        if let Some(place) = s.queue.get_mut(index).and_then(|e| e.group.take()) {
            out.push(Effect::GroupDone { place: *place, session });
        }
    }

    /// What a group gave and was never sent goes back when the member's connection ends.
    pub(super) fn return_unsent(&mut self, slot: u32, out: &mut Effects) {
        self.give_back(slot, out, |stage| stage == Stage::Waiting);
    }

    /// When the session ends everything unfinished goes back.
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
            .filter_map(|(i, e)| Some((i, **e.group.as_ref()?, e.stage != Stage::Waiting)))
            .collect();
        for (index, place, sent) in back {
            out.push(Effect::GroupReturn { place, session, sent });
            self.commit(durable, Record::Acknowledged { slot, index });
        }
    }
}
