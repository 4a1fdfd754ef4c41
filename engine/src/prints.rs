//! Which places want which exact topics: 6 bytes a topic and a fifth of them unused, as there may be millions on every node.
//!
//! A topic is 32 bits of its keyed hash, its places are the number of a set of places that many topics share. Of two topics
//! with the same 32 bits each is taken for wanted where the other is: one needless forward. The table is cut into small pieces that
//! grow by a fifth: one that doubles is half empty at worst, and needs half as much again while it grows.

use foldhash::fast::RandomState;
use hashbrown::HashMap;

/// Fingerprint of an exact topic.
pub type Fingerprint = u32;

/// Its places did not fit into the list of sets.
const RARE: u16 = u16::MAX;

/// No topic is in this slot.
const EMPTY: u16 = u16::MAX - 1;

/// A topic: upper and lower half of a fingerprint, number of its set.
type Slot = [u16; 3];

const PIECES: usize = 256;

const fn print_of(slot: &Slot) -> Fingerprint {
    (slot[0] as u32) << 16 | slot[1] as u32
}

/// A fingerprint is a hash already; its bits are spread over 64: the upper ones say which piece, the lower ones where in it.
const fn spread(print: Fingerprint) -> u64 {
    (print as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(32).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// A part of the table: linear probing (Knuth, volume 3, 6.4, algorithms L and R), at most four fifths full.
#[derive(Debug, Default)]
struct Piece {
    slots: Vec<Slot>,
    len: usize,
}

impl Piece {
    fn home(&self, print: Fingerprint) -> usize {
        let part = spread(print) & u64::from(u32::MAX);
        ((part * self.slots.len() as u64) >> 32) as usize
    }

    const fn next(&self, at: usize) -> usize {
        if at + 1 < self.slots.len() { at + 1 } else { 0 }
    }

    fn set_at(&self, at: usize) -> u16 {
        self.slots.get(at).map_or(EMPTY, |slot| slot[2])
    }

    /// Where it is, or the free place where it would be; `None` if there are no places at all.
    fn find(&self, print: Fingerprint) -> Option<(usize, bool)> {
        let mut at = self.home(print);
        loop {
            let slot = self.slots.get(at)?;
            if slot[2] == EMPTY || print_of(slot) == print {
                return Some((at, slot[2] != EMPTY));
            }
            at = self.next(at);
        }
    }

    fn get(&self, print: Fingerprint) -> Option<u16> {
        self.find(print).filter(|(_, there)| *there).map(|(at, _)| self.set_at(at))
    }

    fn put(&mut self, print: Fingerprint, set: u16) {
        if (self.len + 1) * 5 > self.slots.len() * 4 {
            self.resize(self.slots.len() + self.slots.len() / 5 + 8);
        }
        let Some((at, there)) = self.find(print) else { return };
        self.len += usize::from(!there);
        if let Some(slot) = self.slots.get_mut(at) {
            *slot = [(print >> 16) as u16, print as u16, set];
        }
    }

    fn resize(&mut self, places: usize) {
        let before = std::mem::replace(&mut self.slots, vec![[0, 0, EMPTY]; places]);
        for slot in before.iter().filter(|slot| slot[2] != EMPTY) {
            if let Some(place) = self.find(print_of(slot)).and_then(|(at, _)| self.slots.get_mut(at)) {
                *place = *slot;
            }
        }
    }

    /// What stands behind it moves up, so that nobody looks for it past a gap.
    fn remove(&mut self, print: Fingerprint) {
        let Some((mut gap, true)) = self.find(print) else { return };
        self.len -= 1;
        let mut at = self.next(gap);
        while let Some(slot) = self.slots.get(at).copied().filter(|slot| slot[2] != EMPTY) {
            let (home, size) = (self.home(print_of(&slot)), self.slots.len());
            // it may stand in the gap if that is not before its home
            if (gap + size - home) % size <= (at + size - home) % size {
                self.slots.swap(gap, at);
                gap = at;
            }
            at = self.next(at);
        }
        if let Some(slot) = self.slots.get_mut(gap) {
            *slot = [0, 0, EMPTY];
        }
    }
}

/// See the top of the file.
#[derive(Debug, Default)]
pub struct Prints {
    pieces: Vec<Piece>,
    sets: Vec<u64>,
    numbers: HashMap<u64, u16, RandomState>,
    rare: HashMap<Fingerprint, u64, RandomState>,
}

impl Prints {
    fn piece(print: Fingerprint) -> usize {
        (spread(print) >> 32) as usize % PIECES
    }

    /// The places that want it, as a bit mask.
    #[must_use]
    pub fn get(&self, print: Fingerprint) -> u64 {
        let set = self.pieces.get(Self::piece(print)).and_then(|piece| piece.get(print));
        set.map_or(0, |set| self.places(print, set))
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
        self.pieces.resize_with(PIECES, Piece::default);
        match self.pieces.get_mut(Self::piece(print)) {
            Some(piece) if places == 0 => piece.remove(print),
            Some(piece) => piece.put(print, set),
            None => {}
        }
    }

    /// The number of a set of places.
    fn number(&mut self, print: Fingerprint, places: u64) -> u16 {
        self.rare.remove(&print);
        if let Some(number) = self.numbers.get(&places) {
            return *number;
        }
        match u16::try_from(self.sets.len()) {
            Ok(number) if number < EMPTY => {
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
        if self.pieces.iter().all(|piece| piece.len == 0) {
            *self = Self::default();
        }
        for piece in self.pieces.iter_mut().filter(|piece| piece.len * 2 < piece.slots.len()) {
            piece.resize(piece.len * 3 / 2 + 8);
        }
    }

    /// What any of these places wants.
    pub fn wanted_by(&self, places: u64) -> impl Iterator<Item = Fingerprint> + '_ {
        let slots = self.pieces.iter().flat_map(|piece| &piece.slots).filter(|slot| slot[2] != EMPTY);
        let wanted = move |slot: &&Slot| self.places(print_of(slot), slot[2]) & places != 0;
        slots.filter(wanted).map(print_of)
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
                prints.sets = vec![0; usize::from(EMPTY)];
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
                            prints.sets = vec![0; usize::from(EMPTY)];
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

    /// A million topics are at most 16 MB, here 9 (`50-numbers.md`, Cluster).
    #[test]
    fn a_million_topics_fit() {
        let mut prints = Prints::default();
        (0..1_000_000u32).for_each(|n| prints.note(n.wrapping_mul(2_654_435_761), (n % 3) as u16, true));
        let (topics, slots) = prints.pieces.iter().fold((0, 0), |(n, m), p| (n + p.len, m + p.slots.len()));
        assert_eq!(topics, 1_000_000);
        assert!(slots * size_of::<Slot>() < 9_000_000, "{slots}");
    }

    /// A piece that is as full as may be finds everything, also when half of it is gone again.
    #[test]
    fn a_full_piece_finds_everything() {
        let mut piece = Piece::default();
        let prints: Vec<u32> = (0..20_000u32).map(|n| n.wrapping_mul(2_654_435_761)).collect();
        prints.iter().for_each(|print| piece.put(*print, (*print % 1000) as u16));
        assert!(piece.len * 10 > piece.slots.len() * 6, "{} of {}", piece.len, piece.slots.len());
        prints.iter().step_by(2).for_each(|print| piece.remove(*print));
        for (n, print) in prints.iter().enumerate() {
            assert_eq!(piece.get(*print), (n % 2 == 1).then_some((*print % 1000) as u16));
        }
        assert_eq!(piece.len, 10_000);
    }
}
