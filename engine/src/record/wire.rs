//! How fields become bytes: `length, CRC, kind, fields` (`docs/formats/log.md`).

use crate::codec::QoS;
use crate::message::{Message, Origin};
use crate::queue::{Entry, Extra, Stage};
use crate::session::{Subscription, Will};

/// Kinds of records; 17 to 22 exist on disk only.
pub mod kind {
    #![allow(missing_docs, reason = "named after the table in docs/formats/log.md")]
    pub const SESSION_OPENED: u8 = 1;
    pub const SESSION_ATTACHED: u8 = 2;
    pub const SESSION_DETACHED: u8 = 3;
    pub const SESSION_ENDED: u8 = 4;
    pub const SUBSCRIBED: u8 = 5;
    pub const UNSUBSCRIBED: u8 = 6;
    pub const ENQUEUED: u8 = 7;
    pub const RECEIVED: u8 = 8;
    pub const ACKNOWLEDGED: u8 = 9;
    pub const HELD: u8 = 10;
    pub const RELEASED: u8 = 11;
    pub const RETAINED_SET: u8 = 12;
    pub const RETAINED_CLEARED: u8 = 13;
    pub const WILL_ARMED: u8 = 14;
    pub const WILL_DISARMED: u8 = 15;
    pub const ORIGIN_FORGOTTEN: u8 = 16;
    pub const MOVED: u8 = 17;
    pub const SESSION: u8 = 19;
    pub const QUEUE: u8 = 20;
    pub const ORIGIN: u8 = 21;
    pub const GROUP_OPENED: u8 = 23;
    pub const GROUP_CLOSED: u8 = 24;
    pub const GROUP_ENQUEUED: u8 = 25;
    pub const GROUP_GIVEN: u8 = 26;
    pub const GROUP_RETURNED: u8 = 27;
    pub const GROUP_DONE: u8 = 28;
    pub const GIVEN_BACK: u8 = 29;
    pub const NOT_TAKEN: u8 = 30;
}

const NUMBER_BITS: u32 = 28;
const PARTITION_SHIFT: u32 = 48;

/// Partition, incarnation and number of a uid.
#[must_use]
pub const fn uid_parts(uid: u64) -> (u16, u32, u32) {
    let incarnation = (uid >> NUMBER_BITS) & ((1 << (PARTITION_SHIFT - NUMBER_BITS)) - 1);
    ((uid >> PARTITION_SHIFT) as u16, incarnation as u32, (uid & ((1 << NUMBER_BITS) - 1)) as u32)
}

/// The uid with these parts.
#[must_use]
pub const fn make_uid(partition: u16, incarnation: u32, number: u32) -> u64 {
    (partition as u64) << PARTITION_SHIFT | (incarnation as u64) << NUMBER_BITS | number as u64
}

/// Appends fields to a buffer, for the log of a partition.
#[derive(Debug)]
pub struct Writer<'a>(pub &'a mut Vec<u8>, pub u16);

impl Writer<'_> {
    /// LEB128.
    pub fn v(&mut self, mut n: u64) {
        while n >= 0x80 {
            self.0.push(n as u8 | 0x80);
            n >>= 7;
        }
        self.0.push(n as u8);
    }

    /// One byte.
    pub fn u8(&mut self, n: u8) {
        self.0.push(n);
    }

    /// Length and bytes.
    pub fn bytes(&mut self, b: &[u8]) {
        self.v(b.len() as u64);
        self.0.extend_from_slice(b);
    }

    /// The uid of something in this partition.
    pub fn uid(&mut self, uid: u64) {
        self.uid_in(self.1, uid);
    }

    /// The uid of something in a partition: incarnation and number. It was named before that was cut off another one: 0, which is
    /// no incarnation, and then the whole.
    fn uid_in(&mut self, partition: u16, uid: u64) {
        let (named, incarnation, number) = uid_parts(uid);
        if named == partition && incarnation != 0 {
            self.v(incarnation.into());
            return self.v(number.into());
        }
        self.v(0);
        self.foreign(uid);
    }

    /// A uid of any partition.
    pub fn foreign(&mut self, uid: u64) {
        let (partition, incarnation, number) = uid_parts(uid);
        [partition.into(), u64::from(incarnation), number.into()].into_iter().for_each(|n| self.v(n));
    }

    /// The CONNECT that made a session, if it is not answered yet.
    pub fn maker(&mut self, maker: u64) {
        if maker != 0 {
            self.0.extend_from_slice(&maker.to_le_bytes());
        }
    }

    /// Signed, small values short.
    pub fn zigzag(&mut self, n: i64) {
        self.v(((n << 1) ^ (n >> 63)) as u64);
    }

    /// A message; `origin` as it is to be taken.
    pub fn message(&mut self, m: &Message<'_>, origin: Origin) {
        let h = &m.head;
        let flags = h.qos as u8
            | u8::from(h.retain) << 2
            | u8::from(origin.n != 0) << 3
            | u8::from(h.deadline_ms != 0) << 4
            | u8::from(!m.props.is_empty()) << 5;
        self.u8(flags);
        self.foreign(h.publisher);
        if origin.n != 0 {
            self.foreign(origin.uid);
            self.v(origin.n);
            self.v(origin.answered);
        }
        if h.deadline_ms != 0 {
            self.v(h.deadline_ms);
        }
        self.bytes(m.topic.as_bytes());
        if !m.props.is_empty() {
            self.bytes(m.props);
        }
        self.bytes(m.payload);
    }

    fn extra(&mut self, extra: Option<&Extra>) {
        let Some(x) = extra else { return };
        if !x.ids.is_empty() {
            self.v(x.ids.len() as u64);
            x.ids.iter().for_each(|&id| self.v(id.into()));
        }
        if let Some(g) = &x.group {
            self.v(g.partition.into());
            self.uid_in(g.partition, g.uid);
            self.v(g.index);
            self.v(g.n);
        }
    }

    /// One delivery.
    pub fn delivery(&mut self, uid: u64, index: u64, qos: QoS, retain: bool, extra: Option<&Extra>) {
        self.uid(uid);
        self.v(index);
        self.u8(flags_of(qos, retain, extra));
        self.extra(extra);
    }

    /// An entry of a checkpoint's queue; `before` is the address of the entry before it.
    pub fn entry(&mut self, e: &Entry, before: u64) {
        let stage = match e.stage {
            Stage::Waiting => 0,
            Stage::Sent | Stage::Again => 1,
            Stage::Received | Stage::ReleaseAgain => 2,
            Stage::Done => 3,
        };
        self.u8(flags_of(e.qos, e.retain, e.extra.as_deref()) | stage << 5);
        self.v(e.len.into());
        self.zigzag(e.at.wrapping_sub(before) as i64);
        self.extra(e.extra.as_deref());
    }

    /// A will.
    pub fn will(&mut self, w: &Will) {
        let flags =
            w.qos as u8 | u8::from(w.retain) << 2 | u8::from(w.expiry_s.is_some()) << 3 | u8::from(w.outlives) << 4;
        self.u8(flags);
        if let Some(s) = w.expiry_s {
            self.v(s.into());
        }
        self.v(w.delay_s.into());
        self.bytes(w.topic.as_bytes());
        self.bytes(&w.props);
        self.bytes(&w.payload);
    }
}

fn flags_of(qos: QoS, retain: bool, extra: Option<&Extra>) -> u8 {
    let ids = extra.is_some_and(|x| !x.ids.is_empty());
    let group = extra.is_some_and(|x| x.group.is_some());
    qos as u8 | u8::from(retain) << 2 | u8::from(ids) << 3 | u8::from(group) << 4
}

/// Options of a subscription.
pub fn subscription_flags(s: &Subscription) -> u8 {
    s.qos as u8 | u8::from(s.no_local) << 2 | u8::from(s.retain_as_published) << 3
}

/// Appends one framed record of a partition, whose body `fill` writes.
pub fn framed(partition: u16, out: &mut Vec<u8>, fill: impl FnOnce(&mut Writer<'_>)) {
    // nearly every length fits two bytes: room for them is left, and the body moves if more are needed
    let start = out.len();
    out.extend_from_slice(&[0; 6]);
    fill(&mut Writer(out, partition));
    let body = start + 6;
    let len = out.len() - body;
    let crc = crc32c::crc32c(out.get(body..).unwrap_or(&[])).to_le_bytes();
    if len < 1 << 14 {
        let [a, b, c, d] = crc;
        if let Some(place) = out.get_mut(start..body) {
            place.copy_from_slice(&[len as u8 | 0x80, (len >> 7) as u8, a, b, c, d]);
        }
        return;
    }
    let mut head = Vec::with_capacity(16);
    Writer(&mut head, partition).v(len as u64);
    head.extend_from_slice(&crc);
    out.splice(start..body, head);
}
