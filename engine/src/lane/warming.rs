//! The beginning of a planned move: messages go ahead while the partition serves (`30-cluster.md`, section 6, *warm*; record 0017).
//!
//! Only bodies go, each once; who has which message, and all that changes, goes with the seal. So nothing is true of a partition because
//! of what went ahead, and whatever becomes of the move, it is dropped.

use super::fleet::Fleet;
use super::moving::{TARGET_GONE, is_free};
use super::{Lane, LaneMessage};
use crate::fatal::die_at;
use crate::partition::{Ahead, Bodies};
use crate::ring::Ring;

/// About so much is packed in one tick: a millisecond's work.
const PART_BYTES: usize = 512 * 1024;
/// If its link takes nothing for so long, milliseconds, the rest goes with the seal.
const PATIENCE_MS: u64 = 10_000;

/// A partition whose messages go ahead.
#[derive(Debug)]
pub(super) struct Warming {
    to: u16,
    epoch: u32,
    ahead: Ahead,
    /// When something went last.
    last_ms: u64,
}

/// What has come of a partition that moves here.
#[derive(Debug, Default)]
pub(super) struct Coming {
    pub epoch: u32,
    pub ahead: Bodies,
    pub luggage: Vec<u8>,
}

impl Lane {
    /// The partition shall go to a place when most of it is there.
    pub(super) fn begin_warming(&mut self, partition: u16, to: u16) {
        let last_ms = self.now_ms;
        let Some(fleet) = self.fleet.as_mut().filter(|f| !f.leaving.contains_key(&partition)) else { return };
        let epoch = fleet.known.get(usize::from(partition)).map_or(0, |k| k.0);
        let same = fleet.warming.get(&partition).is_some_and(|w| (w.to, w.epoch) == (to, epoch));
        if !same {
            fleet.warming.insert(partition, Warming { to, epoch, ahead: Ahead::default(), last_ms });
        }
    }

    /// The end of a tick: what can go ahead does.
    pub(super) fn tend_warming(&mut self) {
        let Some(fleet) = self.fleet.as_ref().filter(|f| !f.warming.is_empty()) else { return };
        for partition in fleet.warming.keys().copied().collect::<Vec<_>>() {
            self.send_ahead(partition);
        }
    }

    fn send_ahead(&mut self, partition: u16) {
        let Some(mut warming) = self.fleet.as_mut().and_then(|f| f.warming.remove(&partition)) else { return };
        let (to, epoch) = (warming.to, warming.epoch);
        if self.obstacle(partition).is_some() {
            return self.go_with(partition, warming); // which says so
        }
        let mut ready = self.now_ms.saturating_sub(warming.last_ms) > PATIENCE_MS;
        if is_free(&self.shared, to) {
            let packed = self.partition(partition).map(|p| p.pack_ahead(&mut warming.ahead, PART_BYTES));
            ready = match packed.unwrap_or(Ok(true)) {
                Ok(ready) => ready,
                Err(why) => {
                    self.send(to, LaneMessage::GoOn { partition, epoch });
                    return self.say_failed(partition, epoch, &why);
                }
            };
            let (first, part) = warming.ahead.take();
            if !part.is_empty() {
                self.send(to, LaneMessage::Ahead { partition, epoch, first, part });
                die_at("owner sends ahead");
            }
            warming.last_ms = self.now_ms;
        }
        if ready {
            return self.go_with(partition, warming);
        }
        if let Some(fleet) = &mut self.fleet {
            fleet.warming.insert(partition, warming);
        }
    }

    /// What is left is little: it halts.
    fn go_with(&mut self, partition: u16, warming: Warming) {
        self.begin_leaving(partition, warming.to, None);
        match self.fleet.as_mut().and_then(|f| f.leaving.get_mut(&partition)) {
            Some(leaving) => leaving.ahead = warming.ahead,
            None => self.send(warming.to, LaneMessage::GoOn { partition, epoch: warming.epoch }),
        }
    }

    /// Its target is gone: it has served all the while, and serves on.
    pub(super) fn warm_without(&mut self, slot: u16) {
        let Some(fleet) = &mut self.fleet else { return };
        let went = fleet.warming.iter().filter(|(_, w)| Ring::slot(w.to) == slot).map(|(p, w)| (*p, w.epoch));
        for (partition, epoch) in went.collect::<Vec<_>>() {
            self.fleet.iter_mut().for_each(|f| drop(f.warming.remove(&partition)));
            self.say_failed(partition, epoch, TARGET_GONE);
        }
    }

    /// Something can go ahead now.
    pub(super) fn sends_ahead(&self) -> bool {
        self.fleet.iter().flat_map(|f| f.warming.values()).any(|w| is_free(&self.shared, w.to))
    }

    // ---- the target

    /// Messages of a partition that is about to come. What has a gap is found when the rest comes.
    pub(super) fn on_ahead(&mut self, partition: u16, epoch: u32, first: u32, part: &[u8]) {
        let Some(coming) = self.fleet.as_mut().map(|f| f.coming(partition, epoch)) else { return };
        if first == 0 {
            *coming = Coming { epoch, ..Coming::default() };
        }
        let fits = coming.ahead.len() == first as usize;
        if fits && coming.ahead.read(part).is_err() {
            coming.ahead = Bodies::default();
        }
        die_at("target gets ahead");
    }
}

impl Fleet {
    /// What has come of a partition under this epoch.
    pub(super) fn coming(&mut self, partition: u16, epoch: u32) -> &mut Coming {
        let coming = self.coming.entry(partition).or_default();
        if coming.epoch != epoch {
            *coming = Coming { epoch, ..Coming::default() };
        }
        coming
    }

    /// The move that it belongs to has ended.
    pub(super) fn drop_ahead(&mut self, partition: u16, ended: impl Fn(u32) -> bool) {
        self.warming.retain(|p, w| *p != partition || !ended(w.epoch));
        self.coming.retain(|p, c| *p != partition || !ended(c.epoch));
    }
}
