//! QoS 2 from a publisher, and what makes a repeated publish recognisable (section 4.3.3, `20-engine.md`).
//!
//! [`Held`] is the publisher's side: identifiers taken and not yet released, each with its number n.
//! [`Window`] is the target's side: the numbers it has taken from one origin. Both are durable state.

use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

/// Identifiers of one publisher between PUBLISH and PUBREL.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Held {
    ids: Vec<(u16, u64)>,
    last: u64,
}

impl Held {
    /// The number of an identifier that is not released yet.
    #[must_use]
    pub fn get(&self, id: u16) -> Option<u64> {
        self.ids.iter().find(|(i, _)| *i == id).map(|(_, n)| *n)
    }

    /// The number that a new identifier gets; numbers are never used again.
    #[must_use]
    pub const fn next(&self) -> u64 {
        self.last + 1
    }

    /// Takes an identifier. Taking it again changes nothing.
    pub fn hold(&mut self, id: u16, n: u64) {
        self.last = self.last.max(n);
        if self.get(id).is_some() {
            return;
        }
        self.ids.push((id, n));
    }

    /// Releases an identifier; false if it was not held.
    pub fn release(&mut self, id: u16) -> bool {
        let Some(at) = self.ids.iter().position(|(i, _)| *i == id) else { return false };
        self.ids.swap_remove(at);
        if self.ids.is_empty() && self.ids.capacity() > 64 {
            self.ids = Vec::new();
        }
        true
    }

    /// Every number at or below it is answered: just below the lowest one held.
    #[must_use]
    pub fn answered(&self) -> u64 {
        self.ids.iter().map(|(_, n)| *n).min().map_or(self.last, |n| n - 1)
    }

    /// The highest number given so far.
    #[must_use]
    pub const fn last(&self) -> u64 {
        self.last
    }

    /// As a checkpoint says.
    #[must_use]
    pub const fn restore(ids: Vec<(u16, u64)>, last: u64) -> Self {
        Self { ids, last }
    }

    /// Identifiers with their numbers.
    #[must_use]
    pub fn ids(&self) -> &[(u16, u64)] {
        &self.ids
    }

    /// Identifiers held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// True without identifiers.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }
}

/// Stands in a number that was given back.
const RETURNED: u64 = 1 << 63;

/// The numbers taken from one origin.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Window {
    floor: u64,
    above: SmallVec<[u64; 4]>,
}

impl Window {
    /// As a checkpoint says.
    #[must_use]
    pub fn restore(floor: u64, above: &[u64]) -> Self {
        Self { floor, above: SmallVec::from_slice(above) }
    }

    /// The floor and the numbers above it.
    #[must_use]
    pub fn parts(&self) -> (u64, &[u64]) {
        (self.floor, &self.above)
    }

    /// Was it taken before?
    #[must_use]
    pub fn taken(&self, n: u64) -> bool {
        n <= self.floor || self.above.iter().any(|x| *x & !RETURNED == n)
    }

    /// n was given back: it is never taken again, and whoever says it again is told so again.
    pub fn give_back(&mut self, n: u64) {
        self.above.retain(|x| *x & !RETURNED != n);
        if n > self.floor {
            self.above.push(n | RETURNED);
        }
    }

    /// Was it given back?
    #[must_use]
    pub fn returned(&self, n: u64) -> bool {
        self.above.contains(&(n | RETURNED))
    }

    /// Takes n; the publisher has every answer up to `answered`.
    pub fn take(&mut self, n: u64, answered: u64) {
        self.floor = self.floor.max(answered);
        let floor = self.floor;
        self.above.retain(|x| *x & !RETURNED > floor);
        if !self.taken(n) {
            self.above.push(n);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A number is taken once, also after the window was trimmed; an unreleased one keeps the floor below it.
    #[test]
    fn window_and_floor() {
        let (mut held, mut window) = (Held::default(), Window::default());
        held.hold(7, held.next());
        held.hold(8, held.next());
        assert_eq!((held.get(7), held.get(8), held.answered()), (Some(1), Some(2), 0));
        window.take(2, held.answered());
        assert!(window.taken(2) && !window.taken(1));
        assert!(held.release(7) && !held.release(7));
        assert_eq!(held.answered(), 1);
        held.hold(7, held.next());
        window.take(3, held.answered());
        assert!(window.taken(1) && window.taken(2) && window.taken(3) && !window.taken(4));
        window.give_back(3);
        window.give_back(5);
        window.take(5, 1);
        assert!(window.taken(3) && window.returned(3) && window.taken(5) && window.returned(5), "never again");
        assert!(window.taken(2) && !window.returned(2));
        window.take(6, 3);
        assert!(window.taken(3) && !window.returned(3) && window.returned(5));
        assert!(held.release(8) && held.release(7));
        assert_eq!((held.answered(), held.next()), (3, 4));
    }
}
