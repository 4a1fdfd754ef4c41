//! What a partition has written, how far the log is with it, and which bodies are still in memory.
//!
//! The partition writes records; its lane takes them as a batch at the end of the tick, and tells later that they are
//! safe and at which address they lie. Without a disk nothing is written and everything is safe at once.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::{Effects, Partition};
use crate::channel::SessionRef;
use crate::log::{Batch, Position};
use crate::queue::IN_MEMORY;
use crate::record::{Record, encode};

/// Bytes of message bodies in memory that the disk has too, of all partitions together.
#[derive(Debug, Default)]
pub struct BodyCache {
    bytes: AtomicUsize,
    /// Bodies above it are forgotten, oldest first.
    pub bytes_max: usize,
}

impl BodyCache {
    /// Keeps so many bytes.
    #[must_use]
    pub const fn new(bytes_max: usize) -> Self {
        Self { bytes: AtomicUsize::new(0), bytes_max }
    }
}

/// A message whose body was written: which entry learns its address.
#[derive(Debug, Clone, Copy)]
struct Written {
    batch: u64,
    offset: u32,
    len: u32,
    slot: u32,
    uid: u64,
    index: u64,
}

/// What each message costs beside its bytes while its body is in memory.
const OVERHEAD: usize = 64;
/// So long, and as long as it is less than so many bytes, what nobody waits for is kept back.
const PATIENCE_MS: u64 = 250;
const PATIENCE_BYTES: usize = 16 * 1024;

/// See the top of the file.
#[derive(Debug, Default)]
pub struct Journal {
    /// There is a disk.
    pub on: bool,
    records: Vec<u8>,
    count: u32,
    /// Since when all that waits to be taken may wait (milliseconds); `None`: it may not, or nothing does.
    patient: Option<u64>,
    last: Position,
    safe: Position,
    batch: u64,
    written: VecDeque<Written>,
    kept: VecDeque<Written>,
}

impl Journal {
    /// Nothing written yet; `on` if there is a disk.
    #[must_use]
    pub fn new(on: bool, last: Position) -> Self {
        Self { on, last, safe: last, ..Self::default() }
    }

    /// Index of the last record written.
    #[must_use]
    pub const fn last(&self) -> Position {
        self.last
    }

    /// Index of the last record that is safe.
    #[must_use]
    pub const fn safe(&self) -> Position {
        self.safe
    }

    /// True if everything written is safe.
    #[must_use]
    pub const fn all_safe(&self) -> bool {
        self.safe >= self.last
    }

    /// True if something waits to be taken.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        self.count > 0
    }

    /// Batches that were taken so far: the number of the next one.
    #[must_use]
    pub const fn batches(&self) -> u64 {
        self.batch
    }

    /// Bytes that wait to be taken.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.records.len()
    }

    /// Where the next record is written, with its offset; `note` what was written afterwards.
    pub(super) fn begin(&mut self) -> (&mut Vec<u8>, u32) {
        self.patient = None;
        let offset = u32::try_from(self.records.len()).unwrap_or(u32::MAX);
        self.last += 1;
        self.count += 1;
        (&mut self.records, offset)
    }

    /// More records were written behind the last one.
    pub(super) fn count_more(&mut self, n: u32) {
        self.last += u64::from(n);
        self.count += n;
    }

    /// The body of this message stands in the record at this offset.
    pub(super) fn note(&mut self, offset: u32, len: u32, slot: u32, uid: u64, index: u64) {
        self.written.push_back(Written { batch: self.batch, offset, len, slot, uid, index });
    }

    /// Numbers of batches are not used again by a partition that takes another's place.
    pub(super) fn go_on_after(&mut self, before: &Self) {
        self.batch = self.batch.max(before.batch);
    }

    /// Numbers of batches begin here: lower ones were used by this node before.
    pub(super) fn begin_at(&mut self, batch: u64) {
        self.batch = self.batch.max(batch);
    }

    fn take(&mut self, partition: u16) -> Option<Batch> {
        if self.count == 0 {
            return None;
        }
        self.patient = None;
        let count = std::mem::take(&mut self.count);
        let first = self.last + 1 - u64::from(count);
        let number = self.batch;
        self.batch += 1;
        Some(Batch { partition, number, first, count, records: std::mem::take(&mut self.records) })
    }
}

impl Partition {
    /// Logs the record if it is worth it, applies it, and returns the place that `SessionOpened` made.
    pub(super) fn commit(&mut self, durable: bool, record: Record<'_>) -> u32 {
        if !durable {
            return self.state.apply(record);
        }
        let mut offset = None;
        if self.journal.on {
            let (alone, since) = (!self.journal.is_waiting(), self.journal.patient);
            let (records, at) = self.journal.begin();
            encode(self.number, &self.state, &record, records);
            offset = Some(at);
            if matches!(record, Record::Acknowledged { .. }) {
                self.journal.patient = if alone { Some(self.now_ms) } else { since };
            }
        }
        let slot = record.slot();
        let bytes = |p: &Self| slot.and_then(|s| p.state.session(s)).map_or(0, |s| s.queue.bytes());
        let before = bytes(self);
        if let Record::Enqueued { message, to, .. } = &record {
            let len = u32::try_from(message.len()).unwrap_or(u32::MAX);
            for d in to.iter().filter(|d| d.durable) {
                let Some(s) = self.state.session(d.slot) else { continue };
                s.user.iter().for_each(|user| user.shift(1, len.into()));
                let uid = s.uid;
                if let Some(offset) = offset {
                    self.journal.note(offset, len, d.slot, uid, d.index);
                }
                self.wanted.0 += 1;
                self.wanted.1 += i64::from(len);
            }
        }
        let ended = match &record {
            Record::SessionEnded { slot } => self.state.session(*slot),
            _ => None,
        };
        let ended = ended.map_or(0, |s| s.queue.iter().filter(|(_, e)| e.needs_body()).count() as i64);
        let finished =
            matches!(record, Record::Acknowledged { .. } | Record::Received { .. } | Record::GivenBack { .. });
        let made = self.state.apply(record);
        let gone = before - bytes(self).min(before);
        let (messages, bytes) = (ended + i64::from(finished && gone > 0), i64::try_from(gone).unwrap_or(0));
        self.wanted.0 -= messages;
        self.wanted.1 -= bytes;
        if let Some(user) = slot.and_then(|s| self.state.session(s)).and_then(|s| s.user.as_ref()) {
            user.shift(-messages, -bytes);
        }
        if offset.is_none() {
            self.count_wanted();
        }
        made
    }

    /// Bytes written since the log took them last.
    #[must_use]
    pub fn unlogged_bytes(&self) -> usize {
        self.journal.bytes()
    }

    /// Until when what was written need not be taken: it only says that messages are done. Nobody is told anything that rests on
    /// it, so it may go with the next record, or after [`PATIENCE_MS`] alone: in a cluster, where an append each costs more than all else.
    #[must_use]
    pub fn may_wait_until_ms(&self) -> Option<u64> {
        let waits = self.held_back.is_empty() && !self.paused && self.journal.bytes() < PATIENCE_BYTES;
        self.journal.patient.filter(|_| waits).map(|since_ms| since_ms + PATIENCE_MS)
    }

    /// What was written since the last call, for the log.
    pub fn take_batch(&mut self) -> Option<Batch> {
        self.count_wanted();
        self.journal.take(self.number)
    }

    /// The bound in total knows what waits here: once in a tick, or at once where no log asks for batches.
    fn count_wanted(&mut self) {
        let (messages, bytes) = std::mem::take(&mut self.wanted);
        if (messages, bytes) != (0, 0) {
            self.rules.queued.shift(messages, bytes);
        }
    }

    /// Everything up to this record is safe; the records of this batch begin at this address. [`IN_MEMORY`]: they cannot
    /// be read again one by one, so bodies stay in memory.
    pub(super) fn made_safe(&mut self, number: u64, up_to: Position, address: u64, out: &mut Effects) {
        self.journal.safe = self.journal.safe.max(up_to);
        let (mut written, mut ready) = (Vec::new(), Vec::new());
        while let Some(w) = self.journal.written.front().copied().filter(|w| w.batch <= number) {
            self.journal.written.pop_front();
            let session = SessionRef { partition: self.number, slot: w.slot, uid: w.uid };
            let Some(s) = self.session_mut(session) else { continue };
            let waits = s.channel.is_some() && s.queue.waiting() > 0;
            let Some(entry) = s.queue.get_mut(w.index).filter(|e| e.needs_body()) else { continue };
            if address == IN_MEMORY {
                entry.at = IN_MEMORY;
            } else {
                entry.at = address + u64::from(w.offset);
                written.push(w);
            }
            if waits {
                ready.push(w.slot);
            }
        }
        // QoS 2 leaves when it is safe; several messages of one session need one look
        ready.sort_unstable();
        ready.dedup();
        for slot in ready {
            self.pump(slot, out);
        }
        // what could leave has left before its body may be forgotten: it need not be read
        for w in written {
            self.keep(w);
        }
        self.release_safe(out);
    }

    /// The body stays in memory as long as there is room for it.
    fn keep(&mut self, w: Written) {
        let cache = std::sync::Arc::clone(&self.rules.cache);
        let cost = |w: &Written| w.len as usize + OVERHEAD;
        let mut bytes = cache.bytes.fetch_add(cost(&w), Ordering::Relaxed) + cost(&w);
        self.journal.kept.push_back(w);
        while bytes > cache.bytes_max {
            let Some(old) = self.journal.kept.pop_front() else { return };
            bytes = cache.bytes.fetch_sub(cost(&old), Ordering::Relaxed) - cost(&old);
            let session = SessionRef { partition: self.number, slot: old.slot, uid: old.uid };
            if let Some(entry) = self.session_mut(session).and_then(|s| s.queue.get_mut(old.index)) {
                if entry.at != 0 {
                    entry.body = None;
                }
            }
        }
    }

    /// A body has come from the disk: it stays as one that was just written.
    pub(super) fn keep_fetched(&mut self, session: SessionRef, index: u64, len: u32) {
        let SessionRef { slot, uid, .. } = session;
        self.keep(Written { batch: 0, offset: 0, len, slot, uid, index });
    }
}

impl Drop for Partition {
    fn drop(&mut self) {
        let kept: usize = self.journal.kept.iter().map(|w| w.len as usize + OVERHEAD).sum();
        self.rules.cache.bytes.fetch_sub(kept, Ordering::Relaxed);
    }
}
