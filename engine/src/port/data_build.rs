//! Lines of an export file as records of a new log, checked against what came before.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;

use super::data_check::{Checked, at, body, nothing, qos, stored, will};
use super::data_format::{
    EndLine, GroupLine, Header, HeldLine, Line, MessageLine, OriginLine, RetainedLine, SessionLine, StageText,
    SubscriptionLine, Uid,
};
use crate::codec::QoS;
use crate::inflight::Window;
use crate::log::{Batch, Piece, Writer};
use crate::message::Origin;
use crate::queue::{Extra, GroupPlace};
use crate::record::{Delivery, Record, State, encode, encode_origin, uid_parts};
use crate::ring::Ring;
use crate::session::Subscription;
use crate::topic;

/// Most finished messages between two that are not.
const GAP_MAX: u64 = 1 << 20;

#[derive(Default)]
struct Part {
    number: u16,
    state: State,
    records: Vec<u8>,
    count: u32,
    written: u64,
    batches: u64,
    /// Origins whose windows the messages have touched.
    touched: BTreeSet<u64>,
    origins: BTreeMap<u64, Window>,
}

impl Part {
    fn commit(&mut self, record: Record<'_>) -> u32 {
        encode(self.number, &self.state, &record, &mut self.records);
        self.count += 1;
        match record {
            // bodies are on disk; any address but 0 will do here
            Record::Enqueued { message, origin, to } => {
                self.state.place(origin, None, u32::try_from(message.len()).unwrap_or(u32::MAX), 1, to);
                0
            }
            other => self.state.apply(other),
        }
    }
}

/// What a line has said of a queue.
struct Owner {
    partition: u16,
    group: bool,
    slot: u32,
    next_index: u64,
    last_n: u64,
    last_index: Option<u64>,
    sent: u64,
    /// Expiry, end, will; nothing for a client that was connected.
    detached: Option<(u32, u64, u64)>,
}

/// A log that takes what was built.
pub(super) trait Target {
    /// Records of some partitions, in order.
    fn put(&mut self, batches: Vec<Batch>) -> io::Result<()>;
    /// That was all: it must be safe now.
    fn end(&mut self) -> io::Result<()>;
}

/// The log of a directory.
pub(super) struct OnDisk {
    pub writer: Writer,
    /// Engine time of the new log.
    pub now_ms: u64,
    pub epoch: u32,
    pub at_ms: u64,
}

impl Target for OnDisk {
    fn put(&mut self, batches: Vec<Batch>) -> io::Result<()> {
        let piece = Piece { now_ms: self.now_ms, epoch: self.epoch, batches, ..Piece::default() };
        self.writer.write(&[piece], self.at_ms, true).map(drop)
    }

    fn end(&mut self) -> io::Result<()> {
        self.writer.end_cleanly(self.now_ms, self.at_ms)
    }
}

/// The log that is being built.
pub(super) struct Build<P> {
    place: P,
    ring: Ring,
    incarnation: u32,
    now_ms: u64,
    parts: Vec<Part>,
    owners: HashMap<u64, Owner>,
    owners_ended: bool,
    pub numbers: EndLine,
}

fn known(owners: &HashMap<u64, Owner>, uid: Uid, group: bool) -> Checked<&Owner> {
    let what = if group { "group" } else { "session" };
    owners.get(&uid.0).filter(|o| o.group == group).ok_or_else(|| format!("no line names a {what} {uid}"))
}

impl<P: Target> Build<P> {
    /// `now_ms`: engine time of the new log.
    pub fn new(place: P, ring: Ring, header: &Header, now_ms: u64) -> Self {
        Self {
            place,
            parts: (0..ring.partitions()).map(|number| Part { number, ..Part::default() }).collect(),
            ring,
            incarnation: header.incarnation,
            now_ms,
            owners: HashMap::new(),
            owners_ended: false,
            numbers: EndLine::default(),
        }
    }

    /// Takes one line; the text says what is wrong with it.
    pub fn line(&mut self, line: Line) -> Checked {
        match line {
            Line::Session(_) | Line::Group(_) if self.owners_ended => {
                return Err("sessions and groups must come before all others".to_owned());
            }
            Line::Session(_) | Line::Group(_) => {}
            _ => self.owners_ended = true,
        }
        match line {
            Line::Session(s) => self.session(*s),
            Line::Group(g) => self.group(&g),
            Line::Subscription(s) => self.subscription(&s),
            Line::Held(h) => self.held(&h),
            Line::Message(m) => self.message(*m),
            Line::Retained(r) => self.retained(&r),
            Line::Origin(o) => self.origin(&o),
            Line::End(_) => Ok(()),
        }
    }

    fn part(&mut self, partition: u16) -> Checked<&mut Part> {
        let n = self.parts.len();
        self.parts.get_mut(usize::from(partition)).ok_or_else(|| format!("there are {n} partitions only"))
    }

    fn own(&mut self, uid: Uid, name: &str, owner: Owner) -> Checked {
        let (partition, incarnation, _) = uid_parts(uid.0);
        if partition != self.ring.partition(name) {
            return Err(format!("`{name}` belongs to partition {}, not to that of {uid}", self.ring.partition(name)));
        }
        if incarnation > self.incarnation {
            return Err(format!("{uid} is of a later incarnation than the broker's, {}", self.incarnation));
        }
        match self.owners.insert(uid.0, owner) {
            None => Ok(()),
            Some(_) => Err(format!("{uid} has a line already")),
        }
    }

    fn session(&mut self, s: SessionLine) -> Checked {
        let (uid, now) = (s.uid, self.now_ms);
        let connected = s.will.is_some() && s.will_left_ms.is_none();
        if s.will.is_none() && s.will_left_ms.is_some() {
            return Err("will_left_ms without a will".to_owned());
        }
        if s.client_id.len() > 65_535 {
            return Err("client_id: longer than 65,535 bytes".to_owned());
        }
        let mut owner = Owner {
            partition: uid_parts(uid.0).0,
            group: false,
            slot: 0,
            next_index: s.next_index.0,
            last_n: s.last_n.0,
            last_index: None,
            sent: 0,
            detached: (!connected).then(|| (s.expiry_s, at(now, s.ends_left_ms), at(now, s.will_left_ms))),
        };
        let armed = s.will.map(will).transpose()?;
        let part = self.part(owner.partition)?;
        if part.state.find(&s.client_id).is_some() {
            return Err(format!("`{}` has a session already", s.client_id));
        }
        let (client_id, expiry_s) = (&*s.client_id, s.expiry_s);
        let slot = part.commit(Record::SessionOpened { client_id, uid: uid.0, expiry_s, logged: true, maker: 0 });
        owner.slot = slot;
        if let Some(will) = armed {
            part.commit(Record::WillArmed { slot, will });
        }
        self.numbers.sessions += 1;
        self.own(uid, client_id, owner)
    }

    fn group(&mut self, g: &GroupLine) -> Checked {
        let wanted = g.name.split_once('/').is_some_and(|(name, filter)| {
            !name.is_empty() && !topic::has_wildcard(name) && topic::valid_filter(filter)
        });
        if !wanted {
            return Err(format!("`{}` is not GROUP/FILTER", g.name));
        }
        let owner = Owner {
            partition: uid_parts(g.uid.0).0,
            group: true,
            slot: 0,
            next_index: g.next_index.0,
            last_n: g.last_n.0,
            last_index: None,
            sent: 0,
            detached: None,
        };
        let part = self.part(owner.partition)?;
        if part.state.find_group(&g.name).is_some() {
            return Err(format!("`{}` has a line already", g.name));
        }
        part.commit(Record::GroupOpened { uid: g.uid.0, name: &g.name, base: 0, last_n: g.last_n.0 });
        if let Some(group) = part.state.group_mut(g.uid.0) {
            group.logged = true;
        }
        self.own(g.uid, &g.name, owner)
    }

    fn of_session(&mut self, uid: Uid) -> Checked<(u32, u64, &mut Part)> {
        let owner = known(&self.owners, uid, false)?;
        let (slot, last_n, partition) = (owner.slot, owner.last_n, owner.partition);
        self.part(partition).map(|part| (slot, last_n, part))
    }

    fn subscription(&mut self, s: &SubscriptionLine) -> Checked {
        let good = match topic::shared(&s.filter) {
            None => topic::valid_filter(&s.filter),
            Some(shared) => shared.is_ok(),
        };
        if !good {
            return Err(format!("`{}` is not a topic filter", s.filter));
        }
        if s.identifier >= 1 << 28 {
            return Err(format!("identifier: {} is above 268,435,455", s.identifier));
        }
        let (no_local, retain_as_published) = (s.no_local, s.retain_as_published);
        let subscription = Subscription { qos: qos(s.qos)?, no_local, retain_as_published, id: s.identifier };
        let (slot, _, part) = self.of_session(s.uid)?;
        if part.state.session(slot).is_some_and(|x| x.subscriptions.contains_key(&*s.filter)) {
            return Err(format!("{} has `{}` already", s.uid, s.filter));
        }
        part.commit(Record::Subscribed { slot, filter: &s.filter, subscription });
        self.numbers.subscriptions += 1;
        Ok(())
    }

    fn held(&mut self, h: &HeldLine) -> Checked {
        let (slot, last_n, part) = self.of_session(h.uid)?;
        let (id, n) = (h.packet_identifier, h.n.0);
        if id == 0 || n == 0 || n > last_n {
            return Err(format!("packet identifier {id} with n {n}: from 1 on, and n up to last_n, {last_n}"));
        }
        let held = part.state.session(slot).and_then(|s| s.held.as_ref());
        if held.is_some_and(|x| x.ids().iter().any(|(i, m)| *i == id || *m == n)) {
            return Err(format!("packet identifier {id} or n {n} has a line already"));
        }
        part.commit(Record::Held { slot, id, n });
        Ok(())
    }

    fn message(&mut self, m: MessageLine) -> Checked {
        let (uid, index) = (m.uid, m.index.0);
        let owner = self.owners.get_mut(&uid.0).ok_or_else(|| format!("no line names a session or group {uid}"))?;
        if index >= owner.next_index || owner.last_index.is_some_and(|last| last >= index) {
            return Err(format!(
                "index {index}: must rise within a queue and stay below next_index, {}",
                owner.next_index
            ));
        }
        if owner.last_index.is_some_and(|last| index - last > GAP_MAX) {
            return Err(format!("index {index}: more than {GAP_MAX} behind the one before"));
        }
        owner.last_index = Some(index);
        if m.stage != StageText::Waiting {
            owner.sent = index + 1;
        }
        let (in_group, partition, slot, last_n) = (owner.group, owner.partition, owner.slot, owner.last_n);
        if in_group {
            self.in_group(m, partition, last_n)?
        } else {
            self.in_session(m, partition, slot)?
        }
        self.numbers.messages += 1;
        Ok(())
    }

    fn in_group(&mut self, m: MessageLine, partition: u16, last_n: u64) -> Checked {
        let (uid, index) = (m.uid.0, m.index.0);
        if m.stage != StageText::Waiting || m.group.is_some() {
            return Err("in a group's queue a message waits, and no group gave it".to_owned());
        }
        let given = m.given.as_ref().map(|g| (g.n.0, g.uid));
        if let Some((n, to)) = given {
            known(&self.owners, to, false)?;
            if n == 0 || n > last_n {
                return Err(format!("given: n {n} is not from 1 to last_n, {last_n}"));
            }
        }
        let (message, origin) = stored(&body(m), self.now_ms, false)?;
        let part = self.part(partition)?;
        part.touched.extend((origin.n != 0).then_some(origin.uid));
        part.commit(Record::GroupEnqueued { uid, index, message: &message, origin });
        if let Some((n, to)) = given {
            let (partition, member) = (uid_parts(to.0).0, to.0);
            part.commit(Record::GroupGiven { uid, index, n, partition, member });
        }
        Ok(())
    }

    fn in_session(&mut self, m: MessageLine, partition: u16, slot: u32) -> Checked {
        let (index, received, retain, qos) = (m.index.0, m.stage == StageText::Received, m.retain, qos(m.qos)?);
        if m.given.is_some() {
            return Err("given: stands in a group's queue only".to_owned());
        }
        if received && qos != QoS::ExactlyOnce || m.stage != StageText::Waiting && qos == QoS::AtMostOnce {
            return Err("stage: not one of this QoS".to_owned());
        }
        if let Some(id) = m.identifiers.iter().find(|id| **id == 0 || **id >= 1 << 28) {
            return Err(format!("identifiers: {id} is not from 1 to 268,435,455"));
        }
        let group = match &m.group {
            None => None,
            Some(g) => {
                let partition = known(&self.owners, g.uid, true)?.partition;
                Some(GroupPlace { partition, uid: g.uid.0, index: g.index.0, n: g.n.0 })
            }
        };
        let extra = Extra::of(m.identifiers.iter().copied().collect(), group);
        let (message, origin) = stored(&body(m), self.now_ms, received)?;
        let part = self.part(partition)?;
        part.touched.extend((origin.n != 0).then_some(origin.uid));
        fill(part, slot, index, false);
        let to = [Delivery { slot, index, qos, retain, durable: true, extra }];
        part.commit(Record::Enqueued { message: &message, origin, to: &to });
        if received {
            part.commit(Record::Received { slot, index });
        }
        Ok(())
    }

    fn retained(&mut self, m: &RetainedLine) -> Checked {
        let (message, _) = stored(m, self.now_ms, false)?;
        let part = self.part(self.ring.partition(&m.topic))?;
        if part.state.retained.get(&m.topic).is_some() {
            return Err(format!("`{}` has a retained message already", m.topic));
        }
        part.commit(Record::RetainedSet { message: &message });
        self.numbers.retained += 1;
        Ok(())
    }

    fn origin(&mut self, o: &OriginLine) -> Checked {
        let taken: Vec<u64> = o.taken.iter().map(|n| n.0).collect();
        let unique: BTreeSet<u64> = taken.iter().copied().collect();
        if unique.len() != taken.len() || unique.first().is_some_and(|n| *n <= o.floor.0) {
            return Err("taken: numbers above floor, each once".to_owned());
        }
        let part = self.part(o.partition)?;
        match part.origins.insert(o.uid.0, Window::restore(o.floor.0, &taken)) {
            None => Ok(()),
            Some(_) => Err(format!("partition {} has a line of {} already", o.partition, o.uid)),
        }
    }

    /// Behind the last line: queues reach their ends, clients are away, origins are as they were.
    pub fn finish(&mut self) -> Checked {
        let mut owners: Vec<(u64, Owner)> = std::mem::take(&mut self.owners).into_iter().collect();
        owners.sort_unstable_by_key(|o| o.0);
        for (uid, owner) in owners {
            let gap = owner.last_index.map_or(0, |last| owner.next_index - last);
            if gap > GAP_MAX {
                return Err(format!("{}: next_index is more than {GAP_MAX} behind its last message", Uid(uid)));
            }
            let part = self.part(owner.partition)?;
            if owner.group { end_group(part, uid, &owner) } else { end_session(part, &owner) }
        }
        for part in &mut self.parts {
            for uid in std::mem::take(&mut part.touched) {
                if !part.origins.contains_key(&uid) {
                    part.commit(Record::OriginForgotten { uid });
                }
            }
            for (uid, window) in std::mem::take(&mut part.origins) {
                encode_origin(uid, &window, &mut part.records);
                part.count += 1;
                part.state.set_origin(uid, window);
            }
        }
        Ok(())
    }

    /// Writes what waits, if it is at least so many bytes.
    ///
    /// # Errors
    /// As the operating system says.
    pub fn flush(&mut self, at_least: usize) -> io::Result<()> {
        if self.parts.iter().map(|p| p.records.len()).sum::<usize>() < at_least {
            return Ok(());
        }
        let mut batches = Vec::new();
        for (part, partition) in self.parts.iter_mut().zip(0u16..).filter(|(p, _)| p.count > 0) {
            let (count, records) = (std::mem::take(&mut part.count), std::mem::take(&mut part.records));
            batches.push(Batch { partition, number: part.batches, first: part.written + 1, count, records });
            part.written += u64::from(count);
            part.batches += 1;
        }
        self.place.put(batches)
    }

    /// Ends the log as it should; what was written, and where.
    ///
    /// # Errors
    /// As the place says.
    pub fn close(mut self) -> io::Result<(Vec<State>, P)> {
        self.flush(0)?;
        self.place.end()?;
        Ok((self.parts.into_iter().map(|part| part.state).collect(), self.place))
    }
}

/// Finished messages up to an index, `at_end` also if no other is there.
fn fill(part: &mut Part, slot: u32, index: u64, at_end: bool) {
    let Some(queue) = part.state.session(slot).map(|s| &s.queue) else { return };
    let next = match queue.is_empty() {
        true if at_end => index.saturating_sub(1).max(queue.next_index()),
        true => index,
        false => queue.next_index(),
    };
    let delivery = |index| Delivery { slot, index, qos: QoS::AtLeastOnce, retain: false, durable: true, extra: None };
    let to: Vec<Delivery> = (next..index).map(delivery).collect();
    if to.is_empty() {
        return;
    }
    part.commit(Record::Enqueued { message: &nothing(), origin: Origin::default(), to: &to });
    for index in next..index {
        part.commit(Record::Acknowledged { slot, index });
    }
}

fn end_session(part: &mut Part, owner: &Owner) {
    let slot = owner.slot;
    fill(part, slot, owner.next_index, true);
    let held = part.state.session(slot).and_then(|s| s.held.as_ref());
    let (last, first) = held.map_or((0, None), |h| (h.last(), h.ids().first().map(|x| x.0)));
    if owner.last_n > last {
        // a number is known from any identifier that had it; one that is held keeps its own
        part.commit(Record::Held { slot, id: first.unwrap_or(1), n: owner.last_n });
        if first.is_none() {
            part.commit(Record::Released { slot, id: 1 });
        }
    }
    if let Some((expiry_s, ends_at_ms, will_at_ms)) = owner.detached {
        part.commit(Record::SessionDetached { slot, expiry_s, ends_at_ms, will_at_ms, sent: owner.sent });
    }
}

fn end_group(part: &mut Part, uid: u64, owner: &Owner) {
    let next = part.state.group(uid).map_or(0, crate::shared::Group::next_index);
    if let Some(index) = owner.next_index.checked_sub(1).filter(|index| *index >= next) {
        part.commit(Record::GroupEnqueued { uid, index, message: &nothing(), origin: Origin::default() });
        part.commit(Record::GroupDone { uid, index });
    }
}
