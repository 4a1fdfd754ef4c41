//! Messages towards one session in the order of their index, from arrival to the subscriber's last acknowledgement.
//!
//! The packet identifier is the index modulo 65,535, plus 1: no identifier is stored, and after a crash or a move the
//! same message comes again under the same identifier. Invariants: indices are consecutive; an entry leaves only from
//! the front and only when finished, so of two indices 65,535 apart at most one is here (`20-engine.md`).

use std::collections::VecDeque;

use smallvec::SmallVec;

use crate::codec::QoS;
use crate::message::Stored;

/// Subscription identifiers of one delivery.
pub type SubscriptionIds = SmallVec<[u32; 2]>;

/// Number of packet identifiers.
const IDENTIFIERS: u64 = 65_535;

/// How far a message has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupPlace {
    /// Partition of the group.
    pub partition: u16,
    /// Place of the group in its partition.
    pub slot: u32,
    /// Which user of the place.
    pub uid: u64,
    /// Index in the group's queue.
    pub index: u64,
}

/// One message for one session.
#[derive(Debug)]
pub struct Entry {
    /// `None` once it is no longer needed.
    pub message: Option<Stored>,
    /// Where it is on its way.
    pub stage: Stage,
    /// QoS of this delivery.
    pub qos: QoS,
    /// Retain flag of this delivery.
    pub retain: bool,
    /// Identifiers of the subscriptions that matched.
    pub ids: SubscriptionIds,
    /// Set if a shared group dispatched it.
    pub group: Option<Box<GroupPlace>>,
}

/// The queue of one session.
#[derive(Debug, Default)]
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

    /// Appends a message and returns its index.
    pub fn push(&mut self, entry: Entry) -> u64 {
        self.bytes += entry.message.as_ref().map_or(0, Stored::len);
        match entry.stage {
            Stage::Waiting | Stage::Again => self.waiting += 1,
            Stage::Sent | Stage::Received => {
                self.open += 1;
                self.open_bytes += entry.message.as_ref().map_or(0, Stored::len);
            }
            Stage::ReleaseAgain | Stage::Done => {}
        }
        self.entries.push_back(entry);
        self.base + self.entries.len() as u64 - 1
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
        if self.cursor >= end || self.cursor - self.base >= IDENTIFIERS {
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
            && self.entries.len() as u64 <= IDENTIFIERS
            && self.entries.back().is_some_and(|e| e.stage == Stage::Waiting)
    }

    /// Moves an entry to another stage; one that is done gives up its message.
    pub fn mark(&mut self, index: u64, stage: Stage) {
        let Some(entry) = self.get_mut(index) else { return };
        let (old, len) = (entry.stage, entry.message.as_ref().map_or(0, Stored::len));
        entry.stage = stage;
        let keeps = matches!(stage, Stage::Waiting | Stage::Sent | Stage::Again);
        if !keeps {
            entry.message = None;
            self.bytes -= len;
        }
        let was_open = matches!(old, Stage::Sent | Stage::Received);
        let is_open = matches!(stage, Stage::Sent | Stage::Received);
        self.open = self.open + u32::from(is_open) - u32::from(was_open);
        let old_bytes = if was_open { len } else { 0 };
        let new_bytes = if is_open && keeps { len } else { 0 };
        self.open_bytes = (self.open_bytes + new_bytes).saturating_sub(old_bytes);
        let was_waiting = matches!(old, Stage::Waiting | Stage::Again);
        let is_waiting = matches!(stage, Stage::Waiting | Stage::Again);
        self.waiting = self.waiting + usize::from(is_waiting) - usize::from(was_waiting);
        self.releases -= usize::from(old == Stage::ReleaseAgain);
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

    /// Index that the next message will get.
    #[must_use]
    pub fn next_index(&self) -> u64 {
        self.base + self.entries.len() as u64
    }

    /// All entries with their index, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &Entry)> {
        (self.base..).zip(&self.entries)
    }
}
