//! Client id to point on the ring to partition to lane: one keyed hash decides them all.
//!
//! SipHash-2-4 with the cluster's key, 64 bit, the partition in the top bits, so that equal ranges of the ring are
//! partitions. Keyed, because an unkeyed hash can be flooded with ids that share a partition.

use std::hash::Hasher;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

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
    /// Place by partition, in a cluster: as the last table says.
    homes: Option<Arc<[AtomicU16]>>,
}

impl Ring {
    /// `partitions` is rounded up to a power of two.
    #[must_use]
    pub fn new(key: (u64, u64), partitions: usize, lanes: usize) -> Self {
        let bits = partitions.clamp(1, 1 << 15).next_power_of_two().trailing_zeros();
        let lanes = u16::try_from(lanes.clamp(1, usize::from(PLACES_MAX))).unwrap_or(1);
        Self { key, bits, lanes, first: 0, homes: None }
    }

    /// The same as a part of a cluster, in which nobody has anything yet; this is the node with this slot.
    #[must_use]
    pub fn among(self, slot: u16) -> Self {
        let homes = (0..self.partitions()).map(|_| AtomicU16::new(NOWHERE)).collect();
        Self { first: slot * NODE_LANES_MAX, homes: Some(homes), ..self }
    }

    /// From now on a node with so many lanes has the partition; `None`: nobody.
    pub fn assign(&self, partition: u16, owner: Option<(u16, u16)>) {
        let place = owner.map_or(NOWHERE, |(slot, lanes)| Self::place_in(slot, lanes, partition));
        if let Some(home) = self.homes.as_ref().and_then(|homes| homes.get(usize::from(partition))) {
            home.store(place, Ordering::Relaxed);
        }
    }

    /// Is this a node of a cluster?
    #[must_use]
    pub const fn is_shared(&self) -> bool {
        self.homes.is_some()
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

    /// The place that a partition has in a node with so many lanes.
    #[must_use]
    pub const fn place_in(slot: u16, lanes: u16, partition: u16) -> u16 {
        slot * NODE_LANES_MAX + if lanes == 0 { 0 } else { partition % lanes }
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

    /// Number of partitions.
    #[must_use]
    pub const fn partitions(&self) -> u16 {
        1 << self.bits
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
        let point = siphash(self.key, name.as_bytes());
        u16::try_from(point.checked_shr(64 - self.bits).unwrap_or(0)).unwrap_or(0)
    }

    /// The place of a partition; [`NOWHERE`] if nobody has it.
    #[must_use]
    pub fn home(&self, partition: u16) -> u16 {
        match &self.homes {
            None => partition % self.lanes,
            Some(homes) => homes.get(usize::from(partition)).map_or(NOWHERE, |home| home.load(Ordering::Relaxed)),
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
}
