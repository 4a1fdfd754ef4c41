//! Client id to point on the ring to partition to lane: one keyed hash decides them all.
//!
//! SipHash-2-4 with the cluster's key, 64 bit, the partition in the top bits, so that equal ranges of the ring are
//! partitions. Keyed, because an unkeyed hash can be flooded with ids that share a partition.

use std::hash::Hasher;
use std::sync::Arc;

use siphasher::sip::SipHasher24;

/// The keyed hash of some bytes: a point on the ring.
#[must_use]
pub fn siphash(key: (u64, u64), bytes: &[u8]) -> u64 {
    let mut hasher = SipHasher24::new_with_keys(key.0, key.1);
    hasher.write(bytes);
    hasher.finish()
}

/// How ids are spread over partitions and lanes. The lanes of all nodes are numbered through: a *place* is a lane of the
/// cluster; alone, places are the lanes of this process.
#[derive(Debug, Clone)]
pub struct Ring {
    key: (u64, u64),
    bits: u32,
    lanes: u16,
    /// Place of this process's first lane.
    first: u16,
    /// First places of all nodes, then the number of places.
    nodes: Arc<[u16]>,
    /// Place by partition, in a cluster.
    homes: Option<Arc<[u16]>>,
}

impl Ring {
    /// `partitions` is rounded up to a power of two.
    #[must_use]
    pub fn new(key: (u64, u64), partitions: usize, lanes: usize) -> Self {
        let bits = partitions.clamp(1, 1 << 15).next_power_of_two().trailing_zeros();
        let lanes = u16::try_from(lanes.clamp(1, 64)).unwrap_or(1);
        Self { key, bits, lanes, first: 0, nodes: Arc::new([0, lanes]), homes: None }
    }

    /// The same as a part of a cluster: this is node `me`, the nodes have so many lanes, and so many own the partitions.
    #[must_use]
    pub fn among(self, me: u16, lanes: &[u16], owners: &[u16]) -> Self {
        let mut nodes = vec![0];
        for n in lanes {
            nodes.push(nodes.last().unwrap_or(&0) + n);
        }
        let first = |node: u16| nodes.get(usize::from(node)).copied().unwrap_or(0);
        let of = |node: u16| lanes.get(usize::from(node)).copied().unwrap_or(1).max(1);
        let home = |p: u16| owners.get(usize::from(p)).map_or(0, |&owner| first(owner) + p % of(owner));
        let homes = (0..self.partitions()).map(home).collect();
        Self { first: first(me), lanes: of(me), homes: Some(homes), nodes: nodes.into(), ..self }
    }

    /// Number of places.
    #[must_use]
    pub fn places(&self) -> u16 {
        self.nodes.last().copied().unwrap_or(self.lanes)
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

    /// The node of a place.
    #[must_use]
    pub fn node(&self, place: u16) -> u16 {
        let node = self.nodes.iter().skip(1).position(|end| place < *end);
        node.and_then(|n| u16::try_from(n).ok()).unwrap_or(0)
    }

    /// The places of a node.
    #[must_use]
    pub fn places_of(&self, node: u16) -> std::ops::Range<u16> {
        let at = |i: usize| self.nodes.get(i).copied().unwrap_or(0);
        at(usize::from(node))..at(usize::from(node) + 1)
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

    /// The place of a partition.
    #[must_use]
    pub fn home(&self, partition: u16) -> u16 {
        match &self.homes {
            None => partition % self.lanes,
            Some(homes) => homes.get(usize::from(partition)).copied().unwrap_or(0),
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
