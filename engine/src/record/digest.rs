//! An order-free checksum of a partition's durable state: equal states have equal digests, however they came about.

use super::State;
use super::wire::{Writer, framed};
use crate::codec::QoS;
use crate::message::Origin;
use crate::queue::{Entry, Stage};

const KEY: (u64, u64) = (0x526f_6f73_744d_5121, 0x6469_6765_7374_2e31);

/// Sum of the keyed hashes of every session, message index, retained message, origin and group.
#[must_use]
pub fn digest(state: &State) -> u64 {
    let mut sum = 0u64;
    let mut bytes = Vec::new();
    let mut add = |fill: &dyn Fn(&mut Vec<u8>)| {
        bytes.clear();
        fill(&mut bytes);
        sum = sum.wrapping_add(crate::ring::siphash(KEY, &bytes));
    };
    for (_, s) in state.each().filter(|(_, s)| s.logged) {
        let filters = s.subscriptions.iter().filter(|_| s.durable());
        for (filter, sub) in filters {
            add(&|out| out.extend_from_slice(format!("{} {filter} {sub:?}", s.uid).as_bytes()));
        }
        let held = s.held.as_ref().map(|h| (h.last(), h.ids().to_vec()));
        let will = s.will.as_ref().map(|w| format!("{w:?}"));
        let core = (s.uid, &s.client_id, s.expiry_s, will, held.map(sorted));
        add(&|out| out.extend_from_slice(format!("{core:?}").as_bytes()));
        for (index, e) in s.queue.iter().filter(|(_, e)| s.durable() && e.stage != Stage::Done) {
            add(&|out| describe(s.uid, index, e, out));
        }
    }
    for message in state.retained.each().filter(|m| !crate::topic::reserved(m.view().topic)) {
        add(&|out| framed(0, out, |w: &mut Writer<'_>| w.message(&message.view(), Origin::default())));
    }
    for group in state.groups().filter(|g| g.logged) {
        add(&|out| out.extend_from_slice(format!("{} {}", group.uid, group.name).as_bytes()));
        for (index, message, with) in group.unfinished() {
            let with = with.map(|(n, session)| (n, session.uid));
            add(&|out| {
                out.extend_from_slice(format!("{} {index} {with:?} ", group.uid).as_bytes());
                Writer(out, 0).message(&message.view(), Origin::default());
            });
        }
    }
    sum.wrapping_add(digest_of_origins(state))
}

/// The part of [`digest`] that stands for what was taken of each origin.
#[must_use]
pub fn digest_of_origins(state: &State) -> u64 {
    let each = state.origins().map(|(uid, window)| {
        let (floor, above) = window.parts();
        let mut above = above.to_vec();
        above.sort_unstable();
        crate::ring::siphash(KEY, format!("{uid} {floor} {above:?}").as_bytes())
    });
    each.fold(0, u64::wrapping_add)
}

/// What counts of a message in a queue, as `{:?}` of a tuple has it, without its cost: a partition stands still while its queues
/// are gone through.
fn describe(uid: u64, index: u64, e: &Entry, out: &mut Vec<u8>) {
    let word = |yes: bool| if yes { "true, " } else { "false, " };
    let qos = match e.qos {
        QoS::AtMostOnce => ", AtMostOnce, ",
        QoS::AtLeastOnce => ", AtLeastOnce, ",
        QoS::ExactlyOnce => ", ExactlyOnce, ",
    };
    let received = matches!(e.stage, Stage::Received | Stage::ReleaseAgain);
    out.push(b'(');
    decimal(uid, out);
    out.extend_from_slice(b", ");
    decimal(index, out);
    [qos, word(e.retain), word(received)].iter().for_each(|part| out.extend_from_slice(part.as_bytes()));
    decimal(e.len.into(), out);
    match &e.extra {
        None => out.extend_from_slice(b", [], None)"),
        Some(_) => out.extend_from_slice(format!(", {:?}, {:?})", e.ids(), e.group()).as_bytes()),
    }
}

fn decimal(mut n: u64, out: &mut Vec<u8>) {
    let (mut digits, mut at) = ([0; 20], 20);
    while let Some(digit) = digits.get_mut(..at).and_then(<[u8]>::last_mut) {
        (*digit, n, at) = (b'0' + (n % 10) as u8, n / 10, at - 1);
        if n == 0 {
            break;
        }
    }
    out.extend_from_slice(digits.get(at..).unwrap_or_default());
}

fn sorted((last, mut ids): (u64, Vec<(u16, u64)>)) -> (u64, Vec<(u16, u64)>) {
    ids.sort_unstable();
    (last, ids)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::{Extra, GroupPlace};

    /// Digests are kept in backups: what is counted of a message is written as it always was.
    #[test]
    fn a_message_counts_as_it_always_did() {
        let place = GroupPlace { partition: 3, uid: 4, index: 5, n: 6 };
        let mut ids = crate::queue::SubscriptionIds::new();
        let qos = [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce];
        for ((group, more), qos) in [(None, None), (Some(place), Some(7)), (None, Some(8))].into_iter().zip(qos) {
            ids.extend(more);
            let mut e = Entry::waiting(None, 99, qos, true, Extra::of(ids.clone(), group));
            e.stage = Stage::ReleaseAgain;
            for (uid, index) in [(0, 10), (9, 1 << 62), (u64::MAX, 7)] {
                let mut out = Vec::new();
                describe(uid, index, &e, &mut out);
                let as_before = format!("{:?}", (uid, index, e.qos, e.retain, true, e.len, e.ids(), e.group()));
                assert_eq!(String::from_utf8(out).unwrap(), as_before);
            }
        }
    }
}
