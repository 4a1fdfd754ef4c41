//! Client id to point on the ring to partition to lane: one keyed hash decides them all.
//!
//! SipHash-2-4 with the cluster's key, 64 bit, the partition in the top bits, so that equal ranges of the ring are
//! partitions. Keyed, because an unkeyed hash can be flooded with ids that share a partition.
//!
//! A cluster begins with `P` partitions, its *roots*, and may cut them in two one after another, in order (linear hashing,
//! Litwin 1980): partition `p` keeps its number and the lower half of its range, the upper half becomes the next number, `p + P`
//! in the first round, `p + 2P` in the second. So a count says everything about which partition has what.

use std::hash::Hasher;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};

use siphasher::sip::SipHasher24;

/// The keyed hash of some bytes: a point on the ring.
#[must_use]
pub fn siphash(key: (u64, u64), bytes: &[u8]) -> u64 {
    let mut hasher = SipHasher24::new_with_keys(key.0, key.1);
    hasher.write(bytes);
    hasher.finish()
}

/// Lanes that a node of a cluster may have: so many places are set aside for each.
pub const NODE_LANES_MAX: u16 = 4;
/// Places of a cluster: the width of the masks that say who wants a topic.
pub const PLACES_MAX: u16 = 64;
/// The place of a partition that nobody has.
pub const NOWHERE: u16 = u16::MAX;

/// How ids are spread over partitions and lanes. The lanes of all nodes are numbered through: a *place* is a lane of the
/// cluster; alone, places are the lanes of this process. A node's number is its *slot*.
#[derive(Debug, Clone)]
pub struct Ring {
    key: (u64, u64),
    bits: u32,
    lanes: u16,
    /// Place of this process's first lane.
    first: u16,
    /// In a cluster: as the last table says.
    table: Option<Arc<Table>>,
}

#[derive(Debug)]
struct Table {
    /// Partitions that there are now.
    count: AtomicU32,
    /// Place by partition.
    homes: Box<[AtomicU16]>,
}

/// More partitions a cluster cannot have.
pub const PARTITIONS_MAX: u16 = 1 << 15;

impl Ring {
    /// `partitions` is rounded up to a power of two.
    #[must_use]
    pub fn new(key: (u64, u64), partitions: usize, lanes: usize) -> Self {
        let bits = partitions.clamp(1, usize::from(PARTITIONS_MAX)).next_power_of_two().trailing_zeros();
        let lanes = u16::try_from(lanes.clamp(1, usize::from(PLACES_MAX))).unwrap_or(1);
        Self { key, bits, lanes, first: 0, table: None }
    }

    /// The same as a part of a cluster, in which nobody has anything yet; this is the node with this slot.
    #[must_use]
    pub fn among(self, slot: u16) -> Self {
        let homes = (0..PARTITIONS_MAX).map(|_| AtomicU16::new(NOWHERE)).collect();
        let table = Table { count: AtomicU32::new(self.roots().into()), homes };
        Self { first: slot * NODE_LANES_MAX, table: Some(Arc::new(table)), ..self }
    }

    /// There are so many partitions from now on; each has been assigned.
    pub fn grow(&self, count: u16) {
        if let Some(table) = &self.table {
            table.count.fetch_max(count.into(), Ordering::Release);
        }
    }

    /// From now on a node with so many lanes has the partition; `None`: nobody.
    pub fn assign(&self, partition: u16, owner: Option<(u16, u16)>) {
        let place = owner.map_or(NOWHERE, |(slot, lanes)| self.place_in(slot, lanes, partition));
        if let Some(home) = self.table.as_ref().and_then(|table| table.homes.get(usize::from(partition))) {
            home.store(place, Ordering::Relaxed);
        }
    }

    /// Is this a node of a cluster?
    #[must_use]
    pub const fn is_shared(&self) -> bool {
        self.table.is_some()
    }

    /// Number of places.
    #[must_use]
    pub const fn places(&self) -> u16 {
        if self.is_shared() { PLACES_MAX } else { self.lanes }
    }

    /// Place of a lane of this process.
    #[must_use]
    pub const fn place(&self, lane: u16) -> u16 {
        self.first + lane
    }

    /// The lane of this process at a place; `None`: it is one of another node.
    #[must_use]
    pub fn here(&self, place: u16) -> Option<usize> {
        place.checked_sub(self.first).filter(|lane| *lane < self.lanes).map(usize::from)
    }

    /// The place that a partition has in a node with so many lanes; what was cut off it has the same.
    #[must_use]
    pub const fn place_in(&self, slot: u16, lanes: u16, partition: u16) -> u16 {
        slot * NODE_LANES_MAX + if lanes == 0 { 0 } else { self.root(partition) % lanes }
    }

    /// The lane of this process that has a partition, if this process has it.
    #[must_use]
    pub const fn lane_of(&self, partition: u16) -> u16 {
        self.root(partition) % self.lanes
    }

    /// The slot of the node of a place.
    #[must_use]
    pub const fn slot(place: u16) -> u16 {
        place / NODE_LANES_MAX
    }

    /// The places of a node.
    #[must_use]
    pub const fn places_of(slot: u16) -> std::ops::Range<u16> {
        slot * NODE_LANES_MAX..(slot + 1) * NODE_LANES_MAX
    }

    /// A place as a mask; 0 for one that cannot be.
    #[must_use]
    pub fn bit_of(place: u16) -> u64 {
        1u64.checked_shl(place.into()).unwrap_or(0)
    }

    /// The places of a node as a mask; 0 for one that cannot be.
    #[must_use]
    pub fn mask_of(slot: u16) -> u64 {
        let one = (1 << NODE_LANES_MAX) - 1_u64;
        one.checked_shl(u32::from(slot) * u32::from(NODE_LANES_MAX)).unwrap_or(0)
    }

    /// Number of partitions at the beginning, a power of two.
    #[must_use]
    pub const fn roots(&self) -> u16 {
        1 << self.bits
    }

    /// The partition at the beginning of which this one is a part.
    #[must_use]
    pub const fn root(&self, partition: u16) -> u16 {
        partition % self.roots()
    }

    /// Number of partitions.
    #[must_use]
    pub fn partitions(&self) -> u16 {
        let count = self.table.as_ref().map(|table| table.count.load(Ordering::Acquire));
        count.and_then(|count| u16::try_from(count).ok()).unwrap_or_else(|| self.roots())
    }

    /// The partition off which this one was cut; a root is its own parent.
    #[must_use]
    pub const fn parent(&self, partition: u16) -> u16 {
        let round = partition >> self.bits;
        if round == 0 { partition } else { partition - (1 << (self.bits + round.ilog2())) }
    }

    /// The partitions that were cut off this one and exist.
    pub fn children(&self, partition: u16) -> impl Iterator<Item = u16> + use<> {
        let (bits, count, round) = (self.bits, u32::from(self.partitions()), u32::from(partition >> self.bits));
        let steps = (0..16u32).filter(move |step| 1 << step > round);
        let all = steps.map(move |step| u32::from(partition) + (1 << (bits + step)));
        all.take_while(move |child| *child < count).filter_map(|child| u16::try_from(child).ok())
    }

    /// Was a partition cut in two? Then sessions and groups may be elsewhere than where they were named.
    #[must_use]
    pub fn is_cut(&self) -> bool {
        self.partitions() != self.roots()
    }

    /// Number of lanes of this process.
    #[must_use]
    pub const fn lanes(&self) -> u16 {
        self.lanes
    }

    /// The key.
    #[must_use]
    pub const fn key(&self) -> (u64, u64) {
        self.key
    }

    /// The partition of a client id, a retained topic or a shared group.
    #[must_use]
    pub fn partition(&self, name: &str) -> u16 {
        self.partition_of(name, self.partitions())
    }

    /// The same if there are so many partitions.
    #[must_use]
    pub fn partition_of(&self, name: &str, partitions: u16) -> u16 {
        let point = siphash(self.key, name.as_bytes());
        let root = point.checked_shr(64 - self.bits).unwrap_or(0) as u16;
        match partitions {
            count if count == self.roots() => root,
            count => self.part(root, point, count),
        }
    }

    /// The part of a root that has a point, of so many partitions: each further bit says lower or upper half.
    fn part(&self, root: u16, point: u64, count: u16) -> u16 {
        let (mut partition, mut step) = (u32::from(root), 1u32 << self.bits);
        let mut rest = point << self.bits;
        while partition + step < u32::from(count) {
            partition += if rest >> 63 == 1 { step } else { 0 };
            (rest, step) = (rest << 1, step << 1);
        }
        u16::try_from(partition).unwrap_or(root)
    }

    /// The place of a partition; [`NOWHERE`] if nobody has it.
    #[must_use]
    pub fn home(&self, partition: u16) -> u16 {
        match &self.table {
            None => partition % self.lanes,
            Some(table) => table.homes.get(usize::from(partition)).map_or(NOWHERE, |home| home.load(Ordering::Relaxed)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first official vectors of SipHash-2-4 (key 00..0f, input 00..).
    #[test]
    fn official_vectors() {
        let key = (0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908);
        let input: Vec<u8> = (0..15).collect();
        assert_eq!(siphash(key, &[]), 0x726f_db47_dd0e_0e31);
        assert_eq!(siphash(key, &input), 0xa129_ca61_49be_45e5);
    }

    /// Sequential ids fill all partitions evenly: chi squared per degree of freedom is near 1.
    #[test]
    fn sequential_ids_do_not_cluster() {
        let ring = Ring::new((1, 2), 64, 4);
        let mut counts = [0f64; 64];
        for i in 0..64_000 {
            counts[usize::from(ring.partition(&format!("CLIENT{i:08}")))] += 1.0;
        }
        let chi: f64 = counts.iter().map(|c| (c - 1000.0).powi(2) / 1000.0).sum::<f64>() / 63.0;
        assert!((0.4..1.8).contains(&chi), "{chi}");
        assert_eq!(Ring::new((1, 2), 1, 1).partition("x"), 0);
    }

    /// A cut moves names of one partition only, about half of them, to the new one and nowhere else; after a round of cuts all are
    /// as large as if there had always been so many.
    #[test]
    fn each_cut_halves_one_partition() {
        let ring = Ring::new((1, 2), 16, 2).among(0);
        let names: Vec<String> = (0..40_000).map(|i| format!("CLIENT{i:08}")).collect();
        let place = |ring: &Ring| names.iter().map(|n| ring.partition(n)).collect::<Vec<_>>();
        let mut before = place(&ring);
        for count in 17..=64u16 {
            ring.grow(count);
            let (child, after) = (count - 1, place(&ring));
            let parent = ring.parent(child);
            assert!(ring.children(parent).any(|c| c == child), "{parent} {child}");
            assert_eq!(ring.lane_of(parent), ring.lane_of(child));
            let had = before.iter().filter(|p| **p == parent).count();
            let moved = before.iter().zip(&after).filter(|(a, b)| a != b).count();
            assert!(before.iter().zip(&after).all(|(a, b)| a == b || (*a, *b) == (parent, child)));
            assert!((had * 4 / 10..had * 6 / 10).contains(&moved), "{moved} of {had}");
            before = after;
        }
        let mut counts = [0f64; 64];
        before.iter().for_each(|p| counts[usize::from(*p)] += 1.0);
        let chi: f64 = counts.iter().map(|c| (c - 625.0).powi(2) / 625.0).sum::<f64>() / 63.0;
        assert!((0.4..1.8).contains(&chi), "{chi}");
    }
}
