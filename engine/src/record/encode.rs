//! Records as bytes (`docs/formats/log.md`).

use super::wire::{Writer, framed, kind, subscription_flags};
use super::{Record, State};
use crate::message::{Message, Origin};
use crate::queue::Entry;
use crate::session::Session;

/// Appends a record of this state, framed. Call it before the record is applied.
pub fn encode(partition: u16, state: &State, record: &Record<'_>, out: &mut Vec<u8>) {
    framed(partition, out, |w| body(state, record, w));
}

fn body(state: &State, record: &Record<'_>, w: &mut Writer<'_>) {
    let uid = |slot: u32| state.session(slot).map_or(0, |s| s.uid);
    match record {
        Record::Enqueued { message, origin, to } => {
            w.u8(kind::ENQUEUED);
            w.message(&message.view(), *origin);
            w.v(to.iter().filter(|d| d.durable).count() as u64);
            for d in to.iter().filter(|d| d.durable) {
                w.delivery(uid(d.slot), d.index, d.qos, d.retain, d.extra.as_deref());
            }
        }
        Record::Acknowledged { slot, index } => indexed(w, kind::ACKNOWLEDGED, uid(*slot), *index),
        Record::GivenBack { slot, index, group, n } => {
            indexed(w, kind::GIVEN_BACK, uid(*slot), *index);
            w.foreign(*group);
            w.v(*n);
        }
        Record::Received { slot, index } => indexed(w, kind::RECEIVED, uid(*slot), *index),
        Record::Held { slot, id, n } => {
            indexed(w, kind::HELD, uid(*slot), (*id).into());
            w.v(*n);
        }
        Record::Released { slot, id } => indexed(w, kind::RELEASED, uid(*slot), (*id).into()),
        Record::RetainedSet { message } => {
            w.u8(kind::RETAINED_SET);
            w.message(&message.view(), Origin::default());
        }
        Record::RetainedCleared { topic } => {
            w.u8(kind::RETAINED_CLEARED);
            w.bytes(topic.as_bytes());
        }
        Record::OriginForgotten { uid } => {
            w.u8(kind::ORIGIN_FORGOTTEN);
            w.foreign(*uid);
        }
        other => rare(other, &uid, w),
    }
}

fn indexed(w: &mut Writer<'_>, kind: u8, uid: u64, index: u64) {
    w.u8(kind);
    w.uid(uid);
    w.v(index);
}

fn rare(record: &Record<'_>, uid: &dyn Fn(u32) -> u64, w: &mut Writer<'_>) {
    match record {
        Record::SessionOpened { client_id, uid, expiry_s, maker, .. } => {
            w.u8(kind::SESSION_OPENED);
            w.uid(*uid);
            w.bytes(client_id.as_bytes());
            w.v((*expiry_s).into());
            w.maker(*maker);
        }
        Record::SessionAttached { slot, expiry_s } => {
            indexed(w, kind::SESSION_ATTACHED, uid(*slot), (*expiry_s).into());
        }
        Record::SessionDetached { slot, expiry_s, ends_at_ms, will_at_ms, sent } => {
            indexed(w, kind::SESSION_DETACHED, uid(*slot), (*expiry_s).into());
            [*ends_at_ms, *will_at_ms, *sent].into_iter().for_each(|n| w.v(n));
        }
        Record::SessionEnded { slot } => {
            w.u8(kind::SESSION_ENDED);
            w.uid(uid(*slot));
        }
        Record::Subscribed { slot, filter, subscription } => {
            w.u8(kind::SUBSCRIBED);
            w.uid(uid(*slot));
            w.bytes(filter.as_bytes());
            w.u8(subscription_flags(subscription));
            w.v(subscription.id.into());
        }
        Record::Unsubscribed { slot, filter } => {
            w.u8(kind::UNSUBSCRIBED);
            w.uid(uid(*slot));
            w.bytes(filter.as_bytes());
        }
        Record::WillArmed { slot, will } => {
            w.u8(kind::WILL_ARMED);
            w.uid(uid(*slot));
            w.will(will);
        }
        Record::WillDisarmed { slot } => {
            w.u8(kind::WILL_DISARMED);
            w.uid(uid(*slot));
        }
        other => group(other, w),
    }
}

fn group(record: &Record<'_>, w: &mut Writer<'_>) {
    match record {
        Record::GroupOpened { uid, name, base, last_n } => {
            w.u8(kind::GROUP_OPENED);
            w.uid(*uid);
            w.bytes(name.as_bytes());
            w.v(*base);
            w.v(*last_n);
        }
        Record::GroupClosed { uid } => {
            w.u8(kind::GROUP_CLOSED);
            w.uid(*uid);
        }
        Record::GroupEnqueued { uid, index, message, origin } => {
            indexed(w, kind::GROUP_ENQUEUED, *uid, *index);
            w.message(&message.view(), *origin);
        }
        Record::GroupGiven { uid, index, n, member, .. } => {
            indexed(w, kind::GROUP_GIVEN, *uid, *index);
            w.v(*n);
            w.foreign(*member);
        }
        Record::NotTaken { group, n } => {
            w.u8(kind::NOT_TAKEN);
            w.foreign(*group);
            w.v(*n);
        }
        Record::GroupReturned { uid, index } => indexed(w, kind::GROUP_RETURNED, *uid, *index),
        Record::GroupDone { uid, index } => indexed(w, kind::GROUP_DONE, *uid, *index),
        _ => {}
    }
}

/// Entries of queues: place and uid of the session, index.
pub type Moves = Vec<(u32, u64, u64)>;

/// Appends a `Moved` record: the body of these messages is here from now on.
pub fn encode_moved(partition: u16, message: &Message<'_>, moves: &[(u32, u64, u64)], out: &mut Vec<u8>) {
    framed(partition, out, |w| {
        w.u8(kind::MOVED);
        w.message(message, Origin::default());
        w.v(moves.len() as u64);
        for &(_, uid, index) in moves {
            w.uid(uid);
            w.v(index);
        }
    });
}

/// Appends a session without its queue, as a checkpoint has it; the queue follows in records of its own.
pub fn encode_session(partition: u16, s: &Session, out: &mut Vec<u8>) {
    framed(partition, out, |w| {
        w.u8(kind::SESSION);
        w.uid(s.uid);
        w.bytes(s.client_id.as_bytes());
        w.v(s.expiry_s.into());
        let away = s.away || s.channel.is_none();
        // a will that its client may not send must not come back when nobody knows its rights
        let will = s.will.as_ref().filter(|w| s.rules.may(crate::access::Action::Publish, &w.topic));
        w.u8(u8::from(away) | u8::from(will.is_some()) << 1);
        [s.ends_at_ms, s.will_at_ms, s.queue.base(), s.queue.sent_up_to()].into_iter().for_each(|n| w.v(n));
        if let Some(will) = will {
            w.will(will);
        }
        let held = s.held.as_deref();
        w.v(held.map_or(0, crate::inflight::Held::last));
        let ids = held.map_or(&[][..], |h| h.ids());
        w.v(ids.len() as u64);
        for (id, n) in ids {
            w.v((*id).into());
            w.v(*n);
        }
        let filters = if s.durable() { s.subscriptions.len() } else { 0 };
        w.v(filters as u64);
        for (filter, sub) in s.subscriptions.iter().take(filters) {
            w.bytes(filter.as_bytes());
            w.u8(subscription_flags(sub));
            w.v(sub.id.into());
        }
        w.maker(s.maker);
    });
}

/// Most entries of one `Queue` record.
const QUEUE_ENTRIES: usize = 4_096;

/// Appends the queue of a session, as a checkpoint has it; returns the number of records.
pub fn encode_queue(partition: u16, s: &Session, out: &mut Vec<u8>) -> u32 {
    let entries: Vec<(u64, &Entry)> = s.queue.iter().collect();
    let mut records = 0;
    for part in entries.chunks(QUEUE_ENTRIES) {
        let Some((first, _)) = part.first() else { continue };
        records += 1;
        framed(partition, out, |w| {
            indexed(w, kind::QUEUE, s.uid, *first);
            w.v(part.len() as u64);
            let mut before = 0;
            for (_, e) in part {
                w.entry(e, before);
                before = e.at;
            }
        });
    }
    records
}

/// Appends what was taken of one origin.
pub fn encode_origin(uid: u64, window: &crate::inflight::Window, out: &mut Vec<u8>) {
    framed(0, out, |w| {
        let (floor, above) = window.parts();
        w.u8(kind::ORIGIN);
        w.foreign(uid);
        w.v(floor);
        w.v(above.len() as u64);
        above.iter().for_each(|&n| w.v(n));
    });
}
