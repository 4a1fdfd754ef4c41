//! Messages towards one session in the order of their index, from arrival to the subscriber's last acknowledgement.
//!
//! The packet identifier is the index modulo 65,535, plus 1: no identifier is stored, and after a crash or a move the
//! same message comes again under the same identifier. Invariants: indices are consecutive; an entry leaves only from
//! the front and only when finished, so of two indices 65,535 apart at most one is here (`20-engine.md`).

use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

use smallvec::SmallVec;

use crate::codec::QoS;
use crate::message::Stored;

/// Subscription identifiers of one delivery.
pub type SubscriptionIds = SmallVec<[u32; 2]>;

/// Number of packet identifiers.
const IDENTIFIERS: u64 = 65_535;

/// How far a message has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stage {
    /// Not sent yet.
    Waiting,
    /// Sent on the present connection.
    Sent,
    /// Sent on an earlier connection: goes out again with DUP.
    Again,
    /// The subscriber has answered PUBREC on the present connection; PUBREL was sent.
    Received,
    /// Received on an earlier connection: PUBREL goes out again.
    ReleaseAgain,
    /// Finished; waits only for those before it.
    Done,
}

/// The place of a message in a shared group, which is told when the member is done with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupPlace {
    /// Partition of the group.
    pub partition: u16,
    /// The group.
    pub uid: u64,
    /// Index in the group's queue.
    pub index: u64,
    /// Number of this dispatch.
    pub n: u64,
}

/// What few messages have.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Extra {
    /// Identifiers of the subscriptions that matched.
    pub ids: SubscriptionIds,
    /// Set if a shared group dispatched it.
    pub group: Option<GroupPlace>,
}

/// Address of a message that is safe in a log of which single messages cannot be read: its body stays in memory.
pub const IN_MEMORY: u64 = 1;

/// One message for one session. A million queues must fit: the body may be on disk only.
#[derive(Debug, Serialize, Deserialize)]
pub struct Entry {
    /// The body, if it is in memory. It travels apart: many queues share one.
    #[serde(skip)]
    pub body: Option<Stored>,
    /// Address of the body in the log; 0 while it has none.
    pub at: u64,
    /// What few messages have.
    pub extra: Option<Box<Extra>>,
    /// Bytes of topic, properties and payload.
    pub len: u32,
    /// Where it is on its way.
    pub stage: Stage,
    /// QoS of this delivery.
    pub qos: QoS,
    /// Retain flag of this delivery.
    pub retain: bool,
}

impl Extra {
    /// Nothing for a message that needs none.
    #[must_use]
    pub fn of(ids: SubscriptionIds, group: Option<GroupPlace>) -> Option<Box<Self>> {
        (!ids.is_empty() || group.is_some()).then(|| Box::new(Self { ids, group }))
    }
}

impl Entry {
    /// A message that has not been sent.
    #[must_use]
    pub fn waiting(body: Option<Stored>, len: u32, qos: QoS, retain: bool, extra: Option<Box<Extra>>) -> Self {
        Self { body, at: 0, extra, len, stage: Stage::Waiting, qos, retain }
    }

    /// Subscription identifiers.
    #[must_use]
    pub fn ids(&self) -> SubscriptionIds {
        self.extra.as_ref().map(|x| x.ids.clone()).unwrap_or_default()
    }

    /// Place in a shared group.
    #[must_use]
    pub fn group(&self) -> Option<GroupPlace> {
        self.extra.as_ref().and_then(|x| x.group)
    }

    /// True while the message itself may still be wanted.
    #[must_use]
    pub const fn needs_body(&self) -> bool {
        matches!(self.stage, Stage::Waiting | Stage::Sent | Stage::Again)
    }
}

/// The queue of one session.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Queue {
    entries: VecDeque<Entry>,
    /// Index of the first entry.
    base: u64,
    /// Index that `next_due` looks at first: nothing below it wants to be sent.
    cursor: u64,
    bytes: usize,
    waiting: usize,
    releases: usize,
    open: u32,
    open_bytes: usize,
    /// Everything below it is finished, and safely so: identifiers up to 65,535 above it are free.
    freed: u64,
    /// A position of the log, and what is finished when it is safe.
    mark: (u64, u64),
}

/// What `next_due` offers.
#[derive(Debug)]
pub struct Due<'a> {
    /// Its index.
    pub index: u64,
    /// The entry, its stage as it was before.
    pub entry: &'a mut Entry,
}

impl Queue {
    /// The packet identifier of an index.
    #[must_use]
    pub fn identifier(index: u64) -> u16 {
        u16::try_from(index % IDENTIFIERS + 1).unwrap_or(1)
    }

    /// The index that an identifier means: of those here at most one has it.
    #[must_use]
    pub fn index_of(&self, id: u16) -> Option<u64> {
        let wanted = u64::from(id.checked_sub(1)?);
        let ahead = (wanted + IDENTIFIERS - self.base % IDENTIFIERS) % IDENTIFIERS;
        ((ahead as usize) < self.entries.len()).then_some(self.base + ahead)
    }

    /// A queue whose first message will have this index.
    #[must_use]
    pub fn starting_at(base: u64) -> Self {
        Self { base, freed: base, ..Self::default() }
    }

    /// Puts a message at its index. One that is there already, or was, changes nothing; missing ones before it count as
    /// finished (their records were damaged).
    pub fn put(&mut self, index: u64, entry: Entry) {
        if index < self.next_index() {
            return;
        }
        if index > self.next_index() && self.entries.is_empty() {
            (self.base, self.freed) = (index, index);
        }
        while self.next_index() < index && self.entries.len() < IDENTIFIERS as usize {
            let mut gone = Entry::waiting(None, 0, QoS::AtMostOnce, false, None);
            gone.stage = Stage::Done;
            self.entries.push_back(gone);
        }
        if index != self.next_index() {
            return;
        }
        let len = entry.len as usize;
        match entry.stage {
            Stage::Waiting | Stage::Again => self.waiting += 1,
            Stage::Sent | Stage::Received => self.open += 1,
            Stage::ReleaseAgain => self.releases += 1,
            Stage::Done => {}
        }
        if entry.needs_body() {
            self.bytes += len;
        }
        if entry.stage == Stage::Sent {
            self.open_bytes += len;
        }
        self.entries.push_back(entry);
    }

    /// The entry of an index.
    pub fn get_mut(&mut self, index: u64) -> Option<&mut Entry> {
        let at = index.checked_sub(self.base)?;
        self.entries.get_mut(usize::try_from(at).ok()?)
    }

    /// The next entry that wants to be sent, if its identifier is free. The caller moves it on with [`Self::mark`].
    pub fn next_due(&mut self) -> Option<Due<'_>> {
        let end = self.base + self.entries.len() as u64;
        self.cursor = self.cursor.max(self.base);
        while self.cursor < end {
            let at = usize::try_from(self.cursor - self.base).ok()?;
            match self.entries.get(at)?.stage {
                Stage::Waiting | Stage::Again | Stage::ReleaseAgain => break,
                Stage::Sent | Stage::Received | Stage::Done => self.cursor += 1,
            }
        }
        if self.cursor >= end || self.cursor.saturating_sub(self.freed) >= IDENTIFIERS {
            return None;
        }
        let index = self.cursor;
        self.get_mut(index).map(|entry| Due { index, entry })
    }

    /// True if the newest message is the only one that wants to be sent and its identifier is free.
    #[must_use]
    pub fn only_newest_waits(&self) -> bool {
        self.waiting == 1
            && self.releases == 0
            && self.next_index() - self.freed <= IDENTIFIERS
            && self.entries.back().is_some_and(|e| e.stage == Stage::Waiting)
    }

    /// Learns how far the log is: `last` was written, `safe` is safe. What is finished frees its identifier only when
    /// that is safe. True if something that waited for an identifier may go now.
    pub fn free_identifiers(&mut self, safe: u64, last: u64) -> bool {
        let before = self.freed;
        if safe >= last {
            self.freed = self.base;
        } else if safe >= self.mark.0 {
            self.freed = self.freed.max(self.mark.1);
            self.mark = (last, self.base);
        }
        self.freed > before
    }

    /// True if the next message waits for an identifier that an earlier one has.
    #[must_use]
    pub fn lacks_identifier(&self) -> bool {
        self.waiting > 0 && self.next_index() - self.freed > IDENTIFIERS
    }

    /// Moves an entry to another stage; one that is done gives up its message.
    pub fn mark(&mut self, index: u64, stage: Stage) {
        let Some(entry) = self.get_mut(index) else { return };
        let (old, len, had) = (entry.stage, entry.len as usize, entry.needs_body());
        entry.stage = stage;
        let keeps = entry.needs_body();
        if !keeps {
            (entry.body, entry.at) = (None, 0);
        }
        if had && !keeps {
            self.bytes -= len;
        }
        let was_open = matches!(old, Stage::Sent | Stage::Received);
        let is_open = matches!(stage, Stage::Sent | Stage::Received);
        self.open = self.open + u32::from(is_open) - u32::from(was_open);
        let old_bytes = if old == Stage::Sent { len } else { 0 };
        let new_bytes = if stage == Stage::Sent { len } else { 0 };
        self.open_bytes = (self.open_bytes + new_bytes).saturating_sub(old_bytes);
        let was_waiting = matches!(old, Stage::Waiting | Stage::Again);
        let is_waiting = matches!(stage, Stage::Waiting | Stage::Again);
        self.waiting = self.waiting + usize::from(is_waiting) - usize::from(was_waiting);
        self.releases =
            self.releases + usize::from(stage == Stage::ReleaseAgain) - usize::from(old == Stage::ReleaseAgain);
        while self.entries.front().is_some_and(|e| e.stage == Stage::Done) {
            self.entries.pop_front();
            self.base += 1;
        }
        if self.entries.is_empty() && self.entries.capacity() > 64 {
            self.entries = VecDeque::new();
        }
    }

    /// The connection is gone: what was on its way goes out again, in order, on the next one.
    pub fn detach(&mut self) {
        self.cursor = self.base;
        (self.open, self.open_bytes, self.waiting, self.releases) = (0, 0, 0, 0);
        for entry in &mut self.entries {
            entry.stage = match entry.stage {
                Stage::Sent => Stage::Again,
                Stage::Received => Stage::ReleaseAgain,
                other => other,
            };
            self.waiting += usize::from(matches!(entry.stage, Stage::Waiting | Stage::Again));
            self.releases += usize::from(entry.stage == Stage::ReleaseAgain);
        }
    }

    /// The oldest message that was never sent.
    #[must_use]
    pub fn oldest_waiting(&self) -> Option<u64> {
        let at = self.entries.iter().position(|e| e.stage == Stage::Waiting)?;
        Some(self.base + at as u64)
    }

    /// After a restart: what was sent before (all below `sent`, and with `all_given` all that a group gave) goes out
    /// again, of what was received only the release.
    pub fn resume(&mut self, sent: u64, all_given: bool) {
        let base = self.base;
        for (index, entry) in (base..).zip(&mut self.entries) {
            let may_be_sent = index < sent || all_given && entry.group().is_some();
            if entry.stage == Stage::Waiting && may_be_sent && entry.qos != QoS::AtMostOnce {
                entry.stage = Stage::Again;
            }
        }
        self.detach();
    }

    /// Everything below it was sent at least once.
    #[must_use]
    pub fn sent_up_to(&self) -> u64 {
        let waits = self.entries.iter().position(|e| e.stage == Stage::Waiting);
        self.base + waits.unwrap_or(self.entries.len()) as u64
    }

    /// Unacknowledged on the present connection.
    #[must_use]
    pub const fn open(&self) -> u32 {
        self.open
    }

    /// Bytes of the unacknowledged messages.
    #[must_use]
    pub const fn open_bytes(&self) -> usize {
        self.open_bytes
    }

    /// Messages that wait to be sent (again).
    #[must_use]
    pub const fn waiting(&self) -> usize {
        self.waiting
    }

    /// Bytes of all messages here.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// True if nothing is here.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Index of the first message that is not finished.
    #[must_use]
    pub const fn base(&self) -> u64 {
        self.base
    }

    /// Index that the next message will get.
    #[must_use]
    pub fn next_index(&self) -> u64 {
        self.base + self.entries.len() as u64
    }

    /// Puts bodies back that travelled apart: what stands for each entry, oldest first.
    pub fn fill(&mut self, bodies: impl Iterator<Item = Option<Stored>>) {
        self.entries.iter_mut().zip(bodies).for_each(|(entry, body)| entry.body = body);
    }

    /// Entries from an index on.
    pub fn iter_from(&self, index: u64) -> impl Iterator<Item = (u64, &Entry)> {
        let skipped = usize::try_from(index.saturating_sub(self.base)).unwrap_or(usize::MAX).min(self.entries.len());
        (self.base + skipped as u64..).zip(self.entries.range(skipped..))
    }

    /// All entries with their index, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &Entry)> {
        (self.base..).zip(&self.entries)
    }
}
