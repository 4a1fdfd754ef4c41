//! When a checkpoint begins, when it is complete, and which segments it frees. Pure: the log's thread asks and obeys.

use std::collections::{BTreeMap, HashMap};

use super::Walked;
use super::frame::segment_of;

/// Most segments that are emptied in one walk; their bytes are in memory meanwhile.
const EMPTIED_MAX: usize = 4;
/// Disk use above this and above three times what is wanted begins a checkpoint, even if little was written.
const SLACK_BYTES: u64 = 256 * 1024 * 1024;

#[derive(Debug)]
struct Walking {
    number: u64,
    begin: u64,
    missing: usize,
    live: HashMap<u32, u64>,
    emptied: Vec<u32>,
    bytes: u64,
}

/// A checkpoint that is complete.
#[derive(Debug, PartialEq, Eq)]
pub struct Complete {
    /// Where it begins.
    pub begin: u64,
    /// Segments that hold nothing wanted any more.
    pub free: Vec<u32>,
}

/// See the top of the file.
#[derive(Debug)]
pub struct Checkpoints {
    lanes: usize,
    number: u64,
    bytes_min: u64,
    /// Bytes written since the last one began.
    since: u64,
    /// Bytes of the last one, with what was written meanwhile.
    last_size: u64,
    walking: Option<Walking>,
    /// Segments that are mostly dead.
    sparse: Vec<u32>,
    /// The last one freed something: another may free more.
    progress: bool,
    /// See [`SLACK_BYTES`].
    slack: u64,
}

impl Checkpoints {
    /// For so many lanes; `since` bytes lie behind the last checkpoint, which is at least `bytes_min` apart from the next.
    #[must_use]
    pub const fn new(lanes: usize, bytes_min: u64, since: u64) -> Self {
        let sparse = Vec::new();
        let slack = SLACK_BYTES;
        Self { lanes, number: 0, bytes_min, since, last_size: 0, walking: None, sparse, progress: true, slack }
    }

    /// For segments of another size: so many bytes may be wasted whatever is wanted.
    #[must_use]
    pub fn with_slack(self, slack: u64) -> Self {
        Self { slack, ..self }
    }

    /// So many bytes were written.
    pub fn wrote(&mut self, bytes: u64) {
        self.since += bytes;
        if let Some(walking) = &mut self.walking {
            walking.bytes += bytes;
        }
    }

    /// Is it time to begin? `total` bytes are on disk, about `wanted` of them are bodies that somebody waits for.
    #[must_use]
    pub fn due(&self, total: u64, wanted: u64) -> bool {
        if self.walking.is_some() {
            return false;
        }
        let grown = self.since >= self.last_size.max(self.bytes_min);
        let wasteful = total > 3 * wanted + 2 * self.last_size + self.slack;
        grown || wasteful && (self.progress || self.since > self.bytes_min / 8)
    }

    /// The segments that the next one shall empty: to be read before it begins.
    pub fn to_empty(&mut self) -> Vec<u32> {
        self.sparse.drain(..).take(EMPTIED_MAX).collect()
    }

    /// Begins one at this address, which empties these segments; returns its number.
    pub fn begin(&mut self, begin: u64, emptied: Vec<u32>) -> u64 {
        self.since = 0;
        self.number += 1;
        let (missing, live, number) = (self.lanes, HashMap::new(), self.number);
        self.walking = Some(Walking { number, begin, missing, live, emptied, bytes: 0 });
        number
    }

    /// A lane has finished its walk, and everything that it wrote is safe. The last one makes it complete.
    pub fn walked(&mut self, walked: &Walked, closed: &BTreeMap<u32, u64>) -> Option<Complete> {
        let walking = self.walking.as_mut().filter(|w| w.number == walked.number)?;
        for (segment, bytes) in &walked.live {
            *walking.live.entry(*segment).or_default() += bytes;
        }
        walking.missing = walking.missing.saturating_sub(1);
        if walking.missing > 0 {
            return None;
        }
        let Walking { begin, live, emptied, bytes, .. } = self.walking.take()?;
        self.last_size = bytes;
        let old = closed.iter().filter(|(n, _)| **n < segment_of(begin));
        let mut free = Vec::new();
        let mut sparse = Vec::new();
        for (&number, &size) in old {
            // what was read damaged in an emptied segment stays asked for: then it is counted as live next time
            match live.get(&number).copied().unwrap_or(0) {
                0 => free.push(number),
                bytes if bytes * 2 < size && !emptied.contains(&number) => sparse.push((bytes, number)),
                _ => {}
            }
        }
        sparse.sort_unstable();
        self.sparse = sparse.into_iter().map(|(_, n)| n).collect();
        self.progress = !free.is_empty() || !self.sparse.is_empty();
        Some(Complete { begin, free })
    }

    /// A lane began anew: the walk cannot be finished.
    pub fn give_up(&mut self) {
        self.walking = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Complete when every lane has finished; what nobody wants is freed, what is mostly dead is emptied next time,
    /// and nothing at or behind the beginning is touched.
    #[test]
    fn frees_what_nobody_wants() {
        let mut c = Checkpoints::new(2, 1_000, 0);
        assert!(!c.due(0, 0));
        c.wrote(1_000);
        assert!(c.due(0, 0));
        assert_eq!(c.to_empty(), Vec::<u32>::new());
        assert_eq!(c.begin(5 << 32 | 64, Vec::new()), 1);
        assert!(!c.due(u64::MAX, 0), "one at a time");
        let closed = BTreeMap::from([(1, 100), (2, 100), (3, 100), (5, 100)]);
        let one = Walked { number: 1, live: HashMap::from([(2, 10), (3, 40)]) };
        let stale = Walked { number: 0, ..Walked::default() };
        assert_eq!(c.walked(&stale, &closed), None, "of one that was given up");
        assert_eq!(c.walked(&one, &closed), None);
        let two = Walked { number: 1, live: HashMap::from([(3, 40)]) };
        assert_eq!(c.walked(&two, &closed), Some(Complete { begin: 5 << 32 | 64, free: vec![1] }));
        c.wrote(1_000);
        assert_eq!(c.to_empty(), vec![2]);
    }
}
