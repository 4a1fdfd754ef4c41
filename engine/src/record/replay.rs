//! Records from the log, applied to a state that is being rebuilt.
//!
//! A record of a session that is not known is skipped: it ended, or a later `Session` of the same checkpoint brings it.
//! Bodies are not kept: a queue is an index of addresses.

use foldhash::fast::RandomState;
use hashbrown::HashMap;

use super::decode::{Reader, WireError};
use super::wire::{kind, uid_parts};
use super::{Delivery, Record, State};
use crate::inflight::Window;
use crate::message::Stored;
use crate::queue::IN_MEMORY;

/// What a record did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replayed {
    /// Applied.
    Applied,
    /// Its session or group is not known.
    Skipped,
}

/// A partition's state while its log is read.
#[derive(Debug)]
pub struct Replay {
    partition: u16,
    /// The state so far.
    pub state: State,
    places: HashMap<u64, u32, RandomState>,
    /// Sessions that were attached, with what had been sent to those that were not, by place.
    sent: HashMap<u32, u64, RandomState>,
    /// Receives no number twice: the highest uid seen.
    pub last_uid: u64,
    /// Bodies stay in memory, as the log cannot be read at an address.
    keeps_bodies: bool,
    /// Bodies of queues that a checkpoint was about to write again, by session and index.
    spare: HashMap<(u64, u64), Stored, RandomState>,
}

type Result = std::result::Result<Replayed, WireError>;

impl Replay {
    /// An empty state.
    #[must_use]
    pub fn new(partition: u16) -> Self {
        Self {
            partition,
            state: State::default(),
            places: HashMap::default(),
            sent: HashMap::default(),
            last_uid: 0,
            keeps_bodies: false,
            spare: HashMap::default(),
        }
    }

    /// The same for a log of which single messages cannot be read later.
    #[must_use]
    pub fn with_bodies(partition: u16) -> Self {
        Self { keeps_bodies: true, ..Self::new(partition) }
    }

    /// A checkpoint writes a queue before its bodies, and may have been cut off in between: the ones that were known are kept.
    fn spare_bodies(&mut self, uid: u64) {
        let Some(session) = self.place(uid).and_then(|slot| self.state.session(slot)) else { return };
        let bodies = session.queue.iter().filter_map(|(index, e)| Some(((uid, index), e.body.clone()?)));
        self.spare.extend(bodies);
    }

    /// Up to which index messages had been sent to a session that was not attached at the end.
    #[must_use]
    pub fn sent(&self, slot: u32) -> u64 {
        self.sent.get(&slot).copied().unwrap_or(0)
    }

    /// Applies the record with this body, which stands at this address.
    ///
    /// # Errors
    /// The body is not what the format says; nothing was changed.
    pub fn record(&mut self, body: &[u8], at: u64) -> Result {
        let mut r = Reader::new(body);
        match r.u8()? {
            kind::ENQUEUED => self.enqueued(r, at),
            kind::ACKNOWLEDGED => self.of_session(r, |slot, r| Ok(Record::Acknowledged { slot, index: r.v()? })),
            kind::GIVEN_BACK => self
                .of_session(r, |slot, r| Ok(Record::GivenBack { slot, index: r.v()?, group: r.foreign()?, n: r.v()? })),
            kind::RECEIVED => self.of_session(r, |slot, r| Ok(Record::Received { slot, index: r.v()? })),
            kind::HELD => self.of_session(r, |slot, r| Ok(Record::Held { slot, id: r.small()?, n: r.v()? })),
            kind::RELEASED => self.of_session(r, |slot, r| Ok(Record::Released { slot, id: r.small()? })),
            kind::MOVED => self.moved(r, at),
            kind::QUEUE => self.queue(r),
            kind::SESSION => self.session(r),
            kind::SESSION_OPENED => self.opened(r),
            kind::SESSION_ENDED => {
                let uid = r.uid(self.partition)?;
                let Some(slot) = self.places.remove(&uid) else { return Ok(Replayed::Skipped) };
                self.sent.remove(&slot);
                Ok(self.apply(Record::SessionEnded { slot }))
            }
            kind::RETAINED_SET => {
                let message = Stored::new(&r.message()?.message);
                Ok(self.apply(Record::RetainedSet { message: &message }))
            }
            kind::RETAINED_CLEARED => Ok(self.apply(Record::RetainedCleared { topic: r.text()? })),
            kind::ORIGIN_FORGOTTEN => Ok(self.apply(Record::OriginForgotten { uid: r.foreign()? })),
            kind::ORIGIN => self.origin(r),
            other => self.rare(other, r),
        }
    }

    fn apply(&mut self, record: Record<'_>) -> Replayed {
        self.state.apply(record);
        Replayed::Applied
    }

    fn place(&self, uid: u64) -> Option<u32> {
        self.places.get(&uid).copied()
    }

    fn of_session<'a>(
        &mut self,
        mut r: Reader<'a>,
        make: impl FnOnce(u32, &mut Reader<'a>) -> std::result::Result<Record<'a>, WireError>,
    ) -> Result {
        let uid = r.uid(self.partition)?;
        let record = make(self.place(uid).unwrap_or(u32::MAX), &mut r)?;
        if record.slot() == Some(u32::MAX) {
            return Ok(Replayed::Skipped);
        }
        Ok(self.apply(record))
    }

    fn rare(&mut self, kind: u8, mut r: Reader<'_>) -> Result {
        match kind {
            kind::SESSION_ATTACHED => {
                self.of_session(r, |slot, r| Ok(Record::SessionAttached { slot, expiry_s: r.small()? }))
            }
            kind::SESSION_DETACHED => {
                let uid = r.uid(self.partition)?;
                let (expiry_s, ends_at_ms, will_at_ms, sent) = (r.small()?, r.v()?, r.v()?, r.v()?);
                let Some(slot) = self.place(uid) else { return Ok(Replayed::Skipped) };
                self.sent.insert(slot, sent);
                Ok(self.apply(Record::SessionDetached { slot, expiry_s, ends_at_ms, will_at_ms, sent }))
            }
            kind::SUBSCRIBED => self.of_session(r, |slot, r| {
                let (filter, subscription) = r.subscription()?;
                Ok(Record::Subscribed { slot, filter, subscription })
            }),
            kind::UNSUBSCRIBED => self.of_session(r, |slot, r| Ok(Record::Unsubscribed { slot, filter: r.text()? })),
            kind::WILL_ARMED => self.of_session(r, |slot, r| Ok(Record::WillArmed { slot, will: r.will()? })),
            kind::WILL_DISARMED => self.of_session(r, |slot, _| Ok(Record::WillDisarmed { slot })),
            other => self.group(other, r),
        }
    }

    fn group(&mut self, kind: u8, mut r: Reader<'_>) -> Result {
        let uid = match kind {
            kind::GROUP_OPENED..=kind::GROUP_DONE => r.uid(self.partition)?,
            kind::NOT_TAKEN => return Ok(self.apply(Record::NotTaken { group: r.foreign()?, n: r.v()? })),
            _ => return Err(WireError("unknown kind of record")),
        };
        self.last_uid = self.last_uid.max(uid);
        if kind == kind::GROUP_OPENED {
            let (name, base, last_n) = (r.text()?, r.v()?, r.v()?);
            self.state.apply(Record::GroupOpened { uid, name, base, last_n });
            if let Some(group) = self.state.group_mut(uid) {
                group.logged = true;
            }
            return Ok(Replayed::Applied);
        }
        if kind == kind::GROUP_CLOSED {
            return Ok(self.apply(Record::GroupClosed { uid }));
        }
        let index = r.v()?;
        Ok(match kind {
            kind::GROUP_ENQUEUED => {
                let m = r.message()?;
                let message = Stored::new(&m.message);
                self.apply(Record::GroupEnqueued { uid, index, message: &message, origin: m.origin })
            }
            kind::GROUP_GIVEN => {
                let (n, member) = (r.v()?, r.foreign()?);
                self.apply(Record::GroupGiven { uid, index, n, partition: uid_parts(member).0, member })
            }
            kind::GROUP_RETURNED => self.apply(Record::GroupReturned { uid, index }),
            _ => self.apply(Record::GroupDone { uid, index }),
        })
    }

    fn opened(&mut self, mut r: Reader<'_>) -> Result {
        let uid = r.uid(self.partition)?;
        let (client_id, expiry_s, maker) = (r.text()?, r.small()?, r.maker()?);
        self.last_uid = self.last_uid.max(uid);
        if self.places.contains_key(&uid) {
            return Ok(Replayed::Skipped);
        }
        self.forget_client(client_id);
        let slot = self.state.apply(Record::SessionOpened { client_id, uid, expiry_s, logged: true, maker });
        self.places.insert(uid, slot);
        Ok(Replayed::Applied)
    }

    /// One client has one session; an older one whose end was not seen (its record was damaged) goes.
    fn forget_client(&mut self, client_id: &str) {
        if let Some(slot) = self.state.find(client_id) {
            if let Some(uid) = self.state.session(slot).map(|s| s.uid) {
                self.places.remove(&uid);
            }
            self.sent.remove(&slot);
            self.state.apply(Record::SessionEnded { slot });
        }
    }

    /// A session of a checkpoint replaces what was known of it.
    fn session(&mut self, mut r: Reader<'_>) -> Result {
        let (session, sent) = r.session(self.partition)?;
        let uid = session.uid;
        self.last_uid = self.last_uid.max(uid);
        if self.keeps_bodies {
            self.spare_bodies(uid);
        }
        self.forget_client(&session.client_id);
        let (client_id, expiry_s, maker) = (session.client_id.clone(), session.expiry_s, session.maker);
        let opened = Record::SessionOpened { client_id: &client_id, uid, expiry_s, logged: true, maker };
        let slot = self.state.apply(opened);
        if let Some(place) = self.state.session_mut(slot) {
            *place = session;
        }
        self.places.insert(uid, slot);
        self.sent.insert(slot, sent);
        Ok(Replayed::Applied)
    }

    fn queue(&mut self, mut r: Reader<'_>) -> Result {
        let uid = r.uid(self.partition)?;
        let (first, n): (u64, usize) = (r.v()?, r.small()?);
        let mut entries = Vec::new();
        let mut before = 0;
        for _ in 0..n {
            let entry = r.entry(before)?;
            before = entry.at;
            entries.push(entry);
        }
        let Some(session) = self.place(uid).and_then(|slot| self.state.session_mut(slot)) else {
            return Ok(Replayed::Skipped);
        };
        for (index, mut entry) in (first..).zip(entries) {
            if self.keeps_bodies && entry.needs_body() {
                entry.body = self.spare.remove(&(uid, index));
            }
            session.queue.put(index, entry);
        }
        Ok(Replayed::Applied)
    }

    fn enqueued(&mut self, mut r: Reader<'_>, at: u64) -> Result {
        let m = r.message()?;
        let n: usize = r.small()?;
        let mut to: smallvec::SmallVec<[Delivery; 4]> = smallvec::SmallVec::new();
        for _ in 0..n {
            let d = r.delivery(self.partition)?;
            if let Some(slot) = self.place(d.uid) {
                let (index, qos, retain, extra) = (d.index, d.qos, d.retain, d.extra);
                to.push(Delivery { slot, index, qos, retain, durable: true, extra });
            }
        }
        let len = m.message.topic.len() + m.message.props.len() + m.message.payload.len();
        let body = (self.keeps_bodies && !to.is_empty()).then(|| Stored::new(&m.message));
        let at = if self.keeps_bodies { IN_MEMORY } else { at };
        self.state.place(m.origin, body.as_ref(), u32::try_from(len).unwrap_or(u32::MAX), at, &to);
        Ok(if to.is_empty() { Replayed::Skipped } else { Replayed::Applied })
    }

    fn moved(&mut self, mut r: Reader<'_>, at: u64) -> Result {
        let m = r.message()?;
        let body = self.keeps_bodies.then(|| Stored::new(&m.message));
        let n: usize = r.small()?;
        let mut done = Replayed::Skipped;
        for _ in 0..n {
            let (uid, index) = (r.uid(self.partition)?, r.v()?);
            let session = self.place(uid).and_then(|slot| self.state.session_mut(slot));
            if let Some(entry) = session.and_then(|s| s.queue.get_mut(index)).filter(|e| e.needs_body()) {
                entry.at = if body.is_some() { IN_MEMORY } else { at };
                entry.body = body.clone().or(entry.body.take());
                done = Replayed::Applied;
            }
        }
        Ok(done)
    }

    fn origin(&mut self, mut r: Reader<'_>) -> Result {
        let (uid, floor, n): (u64, u64, usize) = (r.foreign()?, r.v()?, r.small()?);
        let mut above = Vec::new();
        for _ in 0..n {
            above.push(r.v()?);
        }
        self.state.set_origin(uid, Window::restore(floor, &above));
        Ok(Replayed::Applied)
    }
}
