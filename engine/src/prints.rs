//! Which places want which exact topics: 7 bytes a topic, as there may be millions on every node.
//!
//! A topic is 32 bits of its keyed hash, its places are the number of a set of places that many topics share. Of two topics
//! with the same 32 bits each is taken for wanted where the other is: one needless forward.

use foldhash::fast::RandomState;
use hashbrown::hash_table::Entry;
use hashbrown::{HashMap, HashTable};

/// Fingerprint of an exact topic.
pub type Fingerprint = u32;

/// Its places did not fit into the list of sets.
const RARE: u16 = u16::MAX;

/// See the top of the file.
#[derive(Debug, Default)]
pub struct Prints {
    /// Upper and lower half of a fingerprint, number of its set.
    table: HashTable<[u16; 3]>,
    sets: Vec<u64>,
    numbers: HashMap<u64, u16, RandomState>,
    rare: HashMap<Fingerprint, u64, RandomState>,
}

const fn print_of(entry: &[u16; 3]) -> Fingerprint {
    (entry[0] as u32) << 16 | entry[1] as u32
}

/// A fingerprint is a hash already; the table wants its bits spread over 64.
const fn spread(print: Fingerprint) -> u64 {
    (print as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(32)
}

impl Prints {
    /// The places that want it, as a bit mask.
    #[must_use]
    pub fn get(&self, print: Fingerprint) -> u64 {
        let found = self.table.find(spread(print), |entry| print_of(entry) == print);
        found.map_or(0, |entry| self.places(print, entry[2]))
    }

    fn places(&self, print: Fingerprint, set: u16) -> u64 {
        match set {
            RARE => self.rare.get(&print).copied().unwrap_or(0),
            set => self.sets.get(usize::from(set)).copied().unwrap_or(0),
        }
    }

    /// A place wants it, or does not any more.
    pub fn note(&mut self, print: Fingerprint, place: u16, wants: bool) {
        let before = self.get(print);
        let bit = 1u64 << place;
        let after = if wants { before | bit } else { before & !bit };
        if after != before {
            self.put(print, after);
        }
    }

    fn put(&mut self, print: Fingerprint, places: u64) {
        let set = self.number(print, places);
        let hasher = |entry: &[u16; 3]| spread(print_of(entry));
        match self.table.entry(spread(print), |entry| print_of(entry) == print, hasher) {
            Entry::Occupied(entry) if places == 0 => drop(entry.remove()),
            Entry::Occupied(mut entry) => entry.get_mut()[2] = set,
            Entry::Vacant(entry) => drop(entry.insert([(print >> 16) as u16, print as u16, set])),
        }
    }

    /// The number of a set of places.
    fn number(&mut self, print: Fingerprint, places: u64) -> u16 {
        self.rare.remove(&print);
        if let Some(number) = self.numbers.get(&places) {
            return *number;
        }
        match u16::try_from(self.sets.len()) {
            Ok(number) if number != RARE => {
                self.sets.push(places);
                self.numbers.insert(places, number);
                number
            }
            _ => {
                self.rare.insert(print, places);
                RARE
            }
        }
    }

    /// A place wants nothing any more.
    pub fn forget(&mut self, place: u16) {
        let concerned: Vec<Fingerprint> = self.wanted_by(1 << place).collect();
        concerned.into_iter().for_each(|print| self.note(print, place, false));
        if self.table.is_empty() {
            *self = Self::default();
        } else {
            self.table.shrink_to(self.table.len() * 2, |entry| spread(print_of(entry)));
        }
    }

    /// What any of these places wants.
    pub fn wanted_by(&self, places: u64) -> impl Iterator<Item = Fingerprint> + '_ {
        let wanted = move |entry: &&[u16; 3]| self.places(print_of(entry), entry[2]) & places != 0;
        self.table.iter().filter(wanted).map(print_of)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        /// Whatever is noted and forgotten, it answers as an ordinary map of masks does; also where sets run out.
        #[test]
        fn answers_as_a_map_does(
            steps in prop::collection::vec((0u32..40, 0u16..64, prop::option::of(any::<bool>())), 0..400),
            full in any::<bool>(),
        ) {
            let (mut prints, mut map) = (Prints::default(), BTreeMap::<u32, u64>::new());
            if full {
                prints.sets = vec![0; usize::from(RARE)];
            }
            for (print, place, wants) in steps {
                let print = print.wrapping_mul(0x0101_0101);
                match wants {
                    Some(wants) => {
                        prints.note(print, place, wants);
                        let mask = map.entry(print).or_default();
                        *mask = if wants { *mask | 1 << place } else { *mask & !(1 << place) };
                    }
                    None => {
                        prints.forget(place);
                        map.values_mut().for_each(|mask| *mask &= !(1 << place));
                        if full && prints.sets.is_empty() {
                            prints.sets = vec![0; usize::from(RARE)];
                        }
                    }
                }
                for (print, mask) in &map {
                    prop_assert_eq!(prints.get(*print), *mask);
                }
                let mut wanted: Vec<u32> = prints.wanted_by(0xff).collect();
                wanted.sort_unstable();
                let expected: Vec<u32> = map.iter().filter(|(_, m)| **m & 0xff != 0).map(|(p, _)| *p).collect();
                prop_assert_eq!(wanted, expected);
            }
        }
    }

    /// A million topics are at most 16 MB (`50-numbers.md`, Cluster).
    #[test]
    fn a_million_topics_fit() {
        let mut prints = Prints::default();
        (0..1_000_000u32).for_each(|n| prints.note(n.wrapping_mul(2_654_435_761), (n % 3) as u16, true));
        assert_eq!(prints.table.len(), 1_000_000);
        assert!(prints.table.allocation_size() < 16_000_000, "{}", prints.table.allocation_size());
    }
}
