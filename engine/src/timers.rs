//! Deadlines of one owner: a heap whose entries may be stale.
//!
//! Whoever takes a due key asks the thing itself whether its time has really come; so nothing needs to be cancelled,
//! and a keep-alive that is renewed by every packet costs one entry, not one entry per packet.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Keys with the time at which they are due, milliseconds of the engine's clock.
#[derive(Debug, Default)]
pub struct Timers<K: Ord> {
    heap: BinaryHeap<Reverse<(u64, K)>>,
}

impl<K: Ord> Timers<K> {
    /// No deadlines.
    #[must_use]
    pub const fn new() -> Self {
        Self { heap: BinaryHeap::new() }
    }

    /// Adds a deadline.
    pub fn set(&mut self, at_ms: u64, key: K) {
        self.heap.push(Reverse((at_ms, key)));
    }

    /// The next deadline.
    #[must_use]
    pub fn next_ms(&self) -> Option<u64> {
        self.heap.peek().map(|Reverse((at, _))| *at)
    }

    /// Takes one key that is due.
    pub fn due(&mut self, now_ms: u64) -> Option<K> {
        if self.next_ms()? > now_ms {
            return None;
        }
        self.heap.pop().map(|Reverse((_, key))| key)
    }

    /// Number of entries, stale ones included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.heap.len()
    }

    /// True without entries.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.heap.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A key is due at its time, not before, earliest first.
    #[test]
    fn due_in_order() {
        let mut t = Timers::new();
        t.set(20, 'b');
        t.set(10, 'a');
        assert_eq!((t.next_ms(), t.due(9)), (Some(10), None));
        assert_eq!((t.due(20), t.due(20), t.due(20)), (Some('a'), Some('b'), None));
        assert!(t.is_empty());
    }
}
