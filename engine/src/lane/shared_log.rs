//! The lane and the log of a cluster: each partition has a log of its own, fenced by its epoch (`30-cluster.md`, section 3).
//!
//! What a partition wrote in a tick is appended; what is safe comes back as an event. A partition that comes is read from its
//! last checkpoint. A checkpoint is the whole state, bodies of queues included, written between live records; when it is safe,
//! everything before it is given back.

use super::Lane;
use crate::log::{Anchor, Appended, At, Batch, ClusterLogEvent, Part};
use crate::message::Stored;
use crate::partition::{Input, Partition, Resumed, Walk};
use crate::queue::IN_MEMORY;
use crate::record::{Replay, next_record};

/// A checkpoint begins when the log has so much behind the last one, and as much as that one was long.
const CHECKPOINT_BYTES_MIN: usize = 4 * 1024 * 1024;
/// An append counts as so many bytes more: who inherits a log reads it append by append, and 500 of them take as long as four megabytes.
const APPEND_BYTES: usize = 8 * 1024;
/// Bytes of a slice of a checkpoint, at least; twice as many as live traffic has written since the one before, if that is more: so it
/// ends before the log has grown by as much again. A slice is begun when the one before is safe: appends of a partition go one after
/// another, and no live record waits behind more than one slice.
const WALK_BYTES: usize = 128 * 1024;
/// Where so many partitions of a node write at once, and their appends take so long, milliseconds, they are in each other's way: then the
/// appends of each begin so far apart, and there is more in them (record 0018).
const BUSY: usize = 6;
const SLOW_MS: u64 = 5;
const APART_MS: u64 = 50;
/// Publishers wait while so much waits to be safe.
pub(super) const BACKLOG_BYTES_MAX: usize = 64 * 1024 * 1024;

/// How far the log of a partition is from its last checkpoint.
#[derive(Debug, Default)]
pub(super) struct Walks {
    /// Written since the last one began, in bytes with [`APPEND_BYTES`] for each append.
    since: usize,
    /// How long that was.
    last: usize,
    walking: Option<Walking>,
    /// Number of the last append, and when it began.
    begun: (u64, u64),
}

impl Walks {
    /// What the log has behind its last complete checkpoint.
    pub fn behind(&self) -> usize {
        self.since + self.walking.as_ref().map_or(0, |w| w.before + w.bytes)
    }

    /// The log has so much behind its last checkpoint, as another owner wrote it; a checkpoint is about as long as what it holds.
    pub fn begin_with(behind: usize, partition: &Partition) -> Self {
        let queued = partition.state().each().map(|(_, s)| s.queue.bytes()).sum::<usize>();
        let retained = partition.state().retained.each().map(Stored::len).sum::<usize>();
        Self { since: behind, last: queued + retained, ..Self::default() }
    }
}

/// A checkpoint under way.
#[derive(Debug, Default)]
struct Walking {
    walk: Walk,
    complete: bool,
    /// Number of the slice that is not safe yet.
    slice: Option<u64>,
    /// What live traffic has written since then.
    live: usize,
    /// Numbers of its first batch and of its last one.
    first: u64,
    end: u64,
    /// Where it begins.
    at: At,
    bytes: usize,
    /// What was behind the checkpoint before it.
    before: usize,
}

impl Walking {
    /// More of the checkpoint, if it is time for it.
    fn next_slice(&mut self, partition: &mut Partition) -> Option<Batch> {
        if self.complete || self.slice.is_some() {
            return None;
        }
        let budget = WALK_BYTES.max(2 * std::mem::take(&mut self.live));
        let (batch, complete) = partition.walk_slice(&mut self.walk, budget)?;
        (self.complete, self.end, self.slice) = (complete, batch.number, Some(batch.number));
        self.bytes += batch.records.len() + APPEND_BYTES;
        Some(batch)
    }
}

impl Lane {
    /// The end of a tick: some of a checkpoint, then what the partitions wrote.
    pub(super) fn append_shared(&mut self) {
        let Some(log) = self.shared.cluster_log.get().cloned() else { return };
        let (now_ms, ended) = (self.now_ms, self.ended);
        let waiting = self.partitions.iter().flatten().filter(|p| !p.journal().all_safe()).count();
        let Some(fleet) = &mut self.fleet else { return };
        let crowded = waiting * usize::from(self.shared.ring.lanes()) >= BUSY && fleet.append_ms8 > 8 * SLOW_MS;
        fleet.append_at_ms = None;
        for (number, partition) in (0..).zip(&mut self.partitions) {
            let Some(partition) = partition.as_deref_mut() else { continue };
            let walks = fleet.walks.entry(number).or_default();
            let may_wait = partition.may_wait_until_ms().is_some_and(|until| now_ms < until) && walks.walking.is_none();
            if may_wait && !ended {
                continue;
            }
            let turn_ms = walks.begun.1 + APART_MS;
            let in_turn = !crowded || now_ms >= turn_ms || partition.unlogged_bytes() == 0;
            if !in_turn && !ended && !fleet.leaving.contains_key(&number) {
                fleet.append_at_ms = Some(fleet.append_at_ms.map_or(turn_ms, |at| at.min(turn_ms)));
                continue;
            }
            if let Some(batch) = partition.take_batch() {
                walks.begun = (batch.number, now_ms);
                walks.since += batch.records.len() + APPEND_BYTES;
                walks.walking.iter_mut().for_each(|w| w.live += batch.records.len());
                log.append(batch.counted_from_0());
            }
            if walks.walking.is_none() && walks.since > walks.last.max(CHECKPOINT_BYTES_MIN) {
                let first = partition.journal().batches();
                let before = std::mem::take(&mut walks.since);
                walks.walking = Some(Walking { first, end: u64::MAX, before, ..Walking::default() });
            }
            if let Some(batch) = walks.walking.as_mut().and_then(|w| w.next_slice(partition)) {
                log.append(batch.counted_from_0());
            }
        }
    }

    pub(super) fn on_cluster_log(&mut self, event: ClusterLogEvent) {
        match event {
            ClusterLogEvent::Safe { partition, number, parts } => self.on_safe(partition, number, &parts),
            ClusterLogEvent::Read { partition, appends } => self.replay(partition, &appends),
            ClusterLogEvent::Again { partition } => {
                if let Some(replay) = self.replaying(partition) {
                    **replay = Replay::with_bodies(partition);
                    self.fleet.iter_mut().for_each(|f| drop(f.walks.remove(&partition)));
                }
            }
            ClusterLogEvent::Fenced { partition, epoch, at, next, checkpoint } => {
                if let Some(fleet) = &mut self.fleet {
                    fleet.tips.insert(partition, Anchor { at, epoch, next, checkpoint });
                }
                if !self.on_fenced_child(partition, epoch, next) && !self.on_fenced_sealed(partition, epoch, next) {
                    self.on_fenced_log(partition, epoch, next);
                }
            }
            // Nothing of it becomes safe any more, so nothing is acknowledged. It stays until the table says who has it now: what
            // this lane wants for it must not be taken back before everybody knows whose it is.
            ClusterLogEvent::Resigned { partition, .. } | ClusterLogEvent::Damaged { partition, .. }
                if self.on_lost_child(partition) => {}
            ClusterLogEvent::Resigned { partition, epoch } => {
                self.note("resigned", partition, &serde_json::json!({"epoch": epoch}));
            }
            ClusterLogEvent::Damaged { partition, why } => {
                self.note("log_damaged", partition, &serde_json::json!({"why": why}));
            }
            // Nothing is refused: what the log of one partition refused those of others would have, and a client that repeats
            // it would give it to them twice. Acknowledgements wait, as they do when NATS is away (record 0013).
            ClusterLogEvent::Full { partition, full } => {
                if let Some(fleet) = &mut self.fleet {
                    if full {
                        fleet.full.insert(partition)
                    } else {
                        fleet.full.remove(&partition)
                    };
                }
                self.note("log_full", partition, &serde_json::json!({"full": full}));
            }
            _ => {}
        }
    }

    fn note(&self, event: &str, partition: u16, more: &serde_json::Value) {
        let mut told = serde_json::json!({"event": event, "partition": partition});
        if let (Some(told), Some(more)) = (told.as_object_mut(), more.as_object()) {
            told.extend(more.clone());
        }
        self.shared.events.push(told);
    }

    fn replaying(&mut self, partition: u16) -> Option<&mut Box<Replay>> {
        self.fleet.as_mut()?.taking.get_mut(&partition)?.replay.as_mut()
    }

    fn replay(&mut self, partition: u16, appends: &[Appended]) {
        let Some(replay) = self.replaying(partition) else { return };
        let mut wrong = None;
        let mut bytes = 0;
        for append in appends {
            bytes += append.records.len() + APPEND_BYTES;
            let mut records = append.records.as_slice();
            loop {
                match next_record(&mut records) {
                    Ok(None) => break,
                    Ok(Some((body, true))) => match replay.record(body, 0) {
                        Ok(_) => {}
                        Err(error) => wrong = Some((append.at, error.0)),
                    },
                    Ok(Some((_, false))) => wrong = Some((append.at, "CRC is wrong")),
                    Err(error) => {
                        wrong = Some((append.at, error.0));
                        break;
                    }
                }
            }
        }
        if let Some(fleet) = &mut self.fleet {
            fleet.walks.entry(partition).or_default().since += bytes;
        }
        if let Some((at, what)) = wrong {
            self.shared.events.damaged(&format!("log of partition {partition}, append {at}"), what);
        }
    }

    /// The epoch is in force and everything before it was read.
    fn on_fenced_log(&mut self, partition: u16, epoch: u32, next: u64) {
        let fleet = self.fleet.as_mut();
        let taking = fleet.and_then(|f| f.taking.get_mut(&partition)).filter(|t| t.epoch == epoch);
        let Some(mut replay) = taking.and_then(|t| t.replay.take()) else { return };
        let ring = self.shared.ring.clone();
        // what was cut off it since then has a log of its own
        replay.state.keep(&|name| ring.partition(name) == partition);
        let (now_ms, last) = (self.now_ms, next);
        let resumed = Resumed { incarnation: epoch, last, ended_ms: now_ms, now_ms };
        let mut fresh = Partition::recovered(partition, self.config.rules(&self.shared), *replay, resumed);
        if let Some(number) = self.fleet.as_ref().and_then(|f| f.batches.get(&partition)) {
            fresh.set_next_batch(*number);
        }
        if let Some(fleet) = &mut self.fleet {
            // what was read begins with the last checkpoint
            let read = fleet.walks.get(&partition).map_or(0, Walks::behind);
            let walks = Walks::begin_with(read, &fresh);
            fleet.walks.insert(partition, Walks { since: read.saturating_sub(walks.last), ..walks });
        }
        self.take(partition, epoch, fresh);
    }

    fn on_safe(&mut self, partition: u16, number: u64, parts: &[Part]) {
        if self.on_safe_child(partition, number, parts) {
            return;
        }
        let earlier = self.fleet.as_ref().and_then(|f| f.batches.get(&partition)).copied().unwrap_or(0);
        let (Some(first), Some(last)) = (parts.first(), parts.last()) else { return };
        if number < earlier || !self.owns(partition) {
            return;
        }
        let up_to = last.first + u64::from(last.count);
        if let Some(tip) = self.fleet.as_mut().and_then(|f| f.tips.get_mut(&partition)) {
            (tip.at, tip.next) = (last.at, up_to);
        }
        self.step(partition, Input::Safe { number, up_to, address: IN_MEMORY }, None);
        let Some(fleet) = &mut self.fleet else { return };
        let Some(walks) = fleet.walks.get_mut(&partition) else { return };
        if walks.begun.0 == number {
            // a smoothed mean, eight times
            fleet.append_ms8 += self.now_ms.saturating_sub(walks.begun.1).min(1_000);
            fleet.append_ms8 -= fleet.append_ms8 / 8;
        }
        let Some(walking) = &mut walks.walking else { return };
        walking.slice.take_if(|slice| number >= *slice);
        if number == walking.first {
            walking.at = first.at;
        }
        if !walking.complete || number < walking.end {
            return;
        }
        let (at, bytes) = (walking.at, walking.bytes);
        (walks.walking, walks.last) = (None, bytes);
        if let Some(tip) = self.fleet.as_mut().and_then(|f| f.tips.get_mut(&partition)).filter(|_| at != 0) {
            tip.checkpoint = at;
        }
        if let Some(log) = self.shared.cluster_log.get().filter(|_| at != 0) {
            log.checkpoint(partition, at);
            log.trim(partition, at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::QoS;
    use crate::message::{Head, Inbound, Message};
    use crate::partition::{Effects, Rules};

    /// A live record waits behind one slice of a checkpoint at most; slices grow with live traffic, so that it comes to an end, and the
    /// end is written even if nothing was left to say.
    #[test]
    fn a_slice_waits_for_the_one_before() {
        let mut p = Partition::new(3, Rules { many_logs: true, ..Rules::default() }, 1);
        for n in 0..100 {
            let head = Head { qos: QoS::AtLeastOnce, retain: true, publisher: 9, ..Head::default() };
            let topic = format!("t/{n}");
            let message = Inbound::new(Message { head, topic: &topic, props: &[], payload: &[1; 10_000] });
            p.step(1_000, Input::Retain { message: &message, token: None }, &mut Effects::new());
        }
        drop(p.take_batch());
        let (mut walking, mut sizes) = (Walking::default(), Vec::new());
        while !walking.complete {
            walking.live = if sizes.len() == 2 { WALK_BYTES } else { 0 };
            let slice = walking.next_slice(&mut p).expect("a slice");
            assert!(walking.next_slice(&mut p).is_none(), "the one before is not safe");
            assert_eq!(walking.slice.take(), Some(slice.number));
            sizes.push(slice.records.len());
        }
        assert!(walking.next_slice(&mut p).is_none(), "it is complete");
        assert!(sizes.iter().all(|n| *n < 2 * WALK_BYTES + 20_000), "{sizes:?}");
        assert!(sizes[2] > 2 * WALK_BYTES && sizes[1] < sizes[2], "{sizes:?}");
        assert!(sizes.iter().sum::<usize>() > 1_000_000, "{sizes:?}");
        assert_eq!(walking.end + 1, p.journal().batches());
    }
}
