//! Who wants what: how lanes (and later nodes) know each other's subscriptions without sharing them.
//!
//! Each place counts its own filters and tells its peers, in versioned deltas, wildcard filters as text and exact topics
//! as fingerprints (`prints.rs`). A SUBACK waits until every peer has confirmed the version that contains its filter, so a
//! publish through any other door after it never misses (`30-cluster.md` section 5). A false positive costs one needless
//! forward.

use serde::{Deserialize, Serialize};
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};

use crate::prints::{Fingerprint, Prints};
use crate::tree::{Keyed, Tree};

#[derive(Debug, Clone, Copy, Default)]
struct Peer(u16);

impl Keyed for Peer {
    fn key(&self) -> u64 {
        u64::from(self.0)
    }
}

/// A change of one place's interest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delta {
    /// Version after the change.
    pub version: u64,
    /// Wildcard filters, added (true) or gone.
    pub wild: Vec<(bool, Box<str>)>,
    /// Exact topics, added (true) or gone.
    pub exact: Vec<(bool, Fingerprint)>,
    /// Partitions whose sessions it speaks for from this version on, with their epochs.
    pub serves: Vec<Served>,
    /// Version of the table by which its sender owns them: who has not read that yet must not believe it yet.
    pub table: u64,
}

/// A partition that a place speaks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Served {
    /// The partition.
    pub partition: u16,
    /// Its epoch.
    pub epoch: u32,
    /// It came with everything it knew: channels to its sessions go on.
    pub carried: bool,
}

/// What a place wanted at some moment.
#[derive(Debug, Default)]
pub struct Wanted {
    wild: Tree<Peer>,
    exact: HashSet<Fingerprint>,
    key: (u64, u64),
}

impl Wanted {
    /// These filters.
    #[must_use]
    pub fn of<'a>(key: (u64, u64), filters: impl Iterator<Item = &'a str>) -> Self {
        let mut wanted = Self { key, ..Self::default() };
        for filter in filters {
            if crate::topic::has_wildcard(filter) {
                wanted.wild.insert(filter, Peer(0));
            } else {
                wanted.exact.insert(fingerprint(key, filter));
            }
        }
        wanted
    }

    /// What its place wants more, until somebody else speaks for it.
    pub fn learn(&mut self, delta: &Delta) {
        for (_, filter) in delta.wild.iter().filter(|(add, _)| *add) {
            self.wild.insert(filter, Peer(0));
        }
        self.exact.extend(delta.exact.iter().filter(|(add, _)| *add).map(|(_, print)| *print));
    }

    /// Was the topic wanted?
    #[must_use]
    pub fn has(&self, topic: &str) -> bool {
        let mut found = self.exact.contains(&fingerprint(self.key, topic));
        self.wild.matches(topic, &mut |_| found = true);
        found
    }
}

#[derive(Debug)]
struct Own {
    count: u32,
    version: u64,
}

/// The interest of this place and of its peers, numbered from 0.
#[derive(Debug)]
pub struct Interest {
    me: u16,
    key: (u64, u64),
    wild: HashMap<Box<str>, Own>,
    exact: HashMap<Fingerprint, Own>,
    version: u64,
    delta: Delta,
    confirmed: Vec<u64>,
    peers_wild: Tree<Peer>,
    peers_exact: Prints,
    /// Wildcard filters of the peers that may leave.
    wild_of: HashMap<u16, HashSet<Box<str>>>,
    seen: u64,
    /// Partitions that this place speaks for, with their epochs.
    serves: BTreeMap<u16, Served>,
    table: u64,
    touched: bool,
    /// By peer: the version of its interest that is applied.
    applied: Vec<u64>,
}

impl Interest {
    /// Place `me` of `places`, with the key of the fingerprints.
    #[must_use]
    pub fn new(me: u16, places: usize, key: (u64, u64)) -> Self {
        let mut confirmed = vec![0; places];
        if let Some(mine) = confirmed.get_mut(usize::from(me)) {
            *mine = u64::MAX;
        }
        Self {
            me,
            key,
            wild: HashMap::new(),
            exact: HashMap::new(),
            version: 0,
            delta: Delta::default(),
            confirmed,
            applied: vec![0; places],
            serves: BTreeMap::new(),
            table: 0,
            touched: false,
            peers_wild: Tree::new(),
            peers_exact: Prints::default(),
            wild_of: HashMap::new(),
            seen: 0,
        }
    }

    fn alone(&self) -> bool {
        self.confirmed.len() <= 1
    }

    fn fingerprint(&self, topic: &str) -> Fingerprint {
        fingerprint(self.key, topic)
    }

    /// One more subscriber of a filter. Returns the version that a SUBACK must wait for, if it must wait.
    pub fn add(&mut self, filter: &str) -> Option<u64> {
        if self.alone() {
            return None;
        }
        let next = self.version + 1;
        let wild = crate::topic::has_wildcard(filter);
        let fresh = Own { count: 0, version: next };
        let own = if wild {
            self.wild.entry(filter.into()).or_insert(fresh)
        } else {
            let print = self.fingerprint(filter);
            self.exact.entry(print).or_insert(fresh)
        };
        own.count += 1;
        let (count, version) = (own.count, own.version);
        if count == 1 {
            self.version = next;
            self.delta.version = next;
            if wild {
                self.delta.wild.push((true, filter.into()));
            } else {
                let print = self.fingerprint(filter);
                self.delta.exact.push((true, print));
            }
        }
        (version > self.confirmed()).then_some(version)
    }

    /// One subscriber less.
    pub fn remove(&mut self, filter: &str) {
        if self.alone() {
            return;
        }
        let wild = crate::topic::has_wildcard(filter);
        let gone = if wild {
            release(self.wild.entry(filter.into()))
        } else {
            let print = self.fingerprint(filter);
            release(self.exact.entry(print))
        };
        if !gone {
            return;
        }
        self.version += 1;
        self.delta.version = self.version;
        if wild {
            self.delta.wild.push((false, filter.into()));
        } else {
            let print = self.fingerprint(filter);
            self.delta.exact.push((false, print));
        }
    }

    /// Nobody here wants anything any more; the peers learn it with the next delta.
    pub fn forget_own(&mut self) {
        if self.wild.is_empty() && self.exact.is_empty() {
            return;
        }
        self.version += 1;
        self.delta.version = self.version;
        self.delta.wild.extend(self.wild.drain().map(|(filter, _)| (false, filter)));
        self.delta.exact.extend(self.exact.drain().map(|(print, _)| (false, print)));
    }

    /// What the peers must be told since the last call.
    pub fn take_delta(&mut self) -> Option<Delta> {
        let touched = std::mem::take(&mut self.touched);
        let Delta { wild, exact, serves, .. } = &self.delta;
        let changed = touched || !wild.is_empty() || !exact.is_empty() || !serves.is_empty();
        changed.then(|| Delta { version: self.version, table: self.table, ..std::mem::take(&mut self.delta) })
    }

    /// The table that is in force here.
    pub const fn set_table(&mut self, version: u64) {
        self.table = version;
    }

    /// What was added so far speaks for a partition, under this epoch: the version that all must confirm before it is served.
    pub fn announce(&mut self, partition: u16, epoch: u32, carried: bool) -> u64 {
        let served = Served { partition, epoch, carried };
        self.serves.insert(partition, served);
        self.version += 1;
        self.delta.version = self.version;
        self.delta.serves.push(served);
        self.version
    }

    /// Something has changed that the peers learn by the version alone.
    pub const fn touch(&mut self) -> u64 {
        self.version += 1;
        self.delta.version = self.version;
        self.touched = true;
        self.version
    }

    /// A partition belongs to another place now.
    pub fn withdraw(&mut self, partition: u16) {
        self.serves.remove(&partition);
        self.delta.serves.retain(|s| s.partition != partition);
    }

    /// The version of a peer's interest that is known here.
    #[must_use]
    pub fn applied(&self, peer: u16) -> u64 {
        self.applied.get(usize::from(peer)).copied().unwrap_or(0)
    }

    /// What these peers want at this moment.
    #[must_use]
    pub fn snapshot(&self, peers: std::ops::Range<u16>) -> Wanted {
        let mut wanted = Wanted { key: self.key, ..Wanted::default() };
        let mask = peers.clone().fold(0u64, |mask, p| mask | 1 << p);
        for filter in peers.filter_map(|p| self.wild_of.get(&p)).flatten() {
            wanted.wild.insert(filter, Peer(0));
        }
        wanted.exact = self.peers_exact.wanted_by(mask).collect();
        wanted
    }

    /// A peer has confirmed a version.
    pub fn confirm(&mut self, peer: u16, version: u64) {
        if let Some(c) = self.confirmed.get_mut(usize::from(peer)) {
            *c = (*c).max(version);
        }
    }

    /// The version that all peers have confirmed.
    #[must_use]
    pub fn confirmed(&self) -> u64 {
        self.confirmed.iter().copied().min().unwrap_or(u64::MAX)
    }

    /// A peer's interest has changed.
    pub fn apply(&mut self, peer: u16, delta: &Delta) {
        self.seen += 1;
        if let Some(applied) = self.applied.get_mut(usize::from(peer)) {
            *applied = delta.version;
        }
        for (add, filter) in &delta.wild {
            let own = self.wild_of.get_mut(&peer);
            if *add {
                own.map(|o| o.insert(filter.clone()));
                self.peers_wild.insert(filter, Peer(peer));
            } else {
                own.map(|o| o.remove(filter));
                self.peers_wild.remove(filter, u64::from(peer));
            }
        }
        for &(add, print) in &delta.exact {
            self.peers_exact.note(print, peer, add);
        }
    }

    /// A place is not there: nobody waits for it, and what it wanted counts no more.
    pub fn leave(&mut self, peer: u16) {
        self.confirm(peer, u64::MAX);
        self.forget_peer(peer);
    }

    /// A place is there again and knows nothing: it has everything to confirm, and gets everything.
    pub fn admit(&mut self, peer: u16) -> Delta {
        if let Some(c) = self.confirmed.get_mut(usize::from(peer)) {
            *c = 0;
        }
        self.forget_peer(peer);
        let wild = self.wild.keys().map(|filter| (true, filter.clone())).collect();
        let exact = self.exact.keys().map(|print| (true, *print)).collect();
        // who has just come holds nothing for any of them, and may have attached to them by the time that it reads this
        let serves = self.serves.values().map(|s| Served { carried: false, ..*s }).collect();
        Delta { version: self.version, wild, exact, serves, table: self.table }
    }

    fn forget_peer(&mut self, peer: u16) {
        self.seen += 1;
        for filter in self.wild_of.insert(peer, HashSet::new()).unwrap_or_default() {
            self.peers_wild.remove(&filter, u64::from(peer));
        }
        self.peers_exact.forget(peer);
    }

    /// Rises whenever the answer of [`Self::peers_for`] may have changed.
    #[must_use]
    pub const fn seen(&self) -> u64 {
        self.seen
    }

    /// The peers that want a topic, as a bit mask.
    #[must_use]
    pub fn peers_for(&self, topic: &str) -> u64 {
        if self.alone() {
            return 0;
        }
        let mut mask = self.peers_exact.get(self.fingerprint(topic));
        self.peers_wild.matches(topic, &mut |p| mask |= 1 << p.0);
        mask & !(1 << self.me)
    }
}

/// Some bits of the keyed hash of a topic.
fn fingerprint(key: (u64, u64), topic: &str) -> Fingerprint {
    (crate::ring::siphash(key, topic.as_bytes()) >> 32) as Fingerprint
}

/// Counts down; true if nobody is left.
fn release<K: std::hash::Hash + Eq>(entry: Entry<'_, K, Own>) -> bool {
    let Entry::Occupied(mut own) = entry else { return false };
    own.get_mut().count -= 1;
    if own.get().count > 0 {
        return false;
    }
    own.remove();
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The barrier: a filter is known only when every peer has confirmed the version that contains it; the same filter
    /// again waits for the same version; a removed one is forgotten by the peers.
    #[test]
    fn barrier_and_counting() {
        let (mut a, mut b) = (Interest::new(0, 3, (1, 2)), Interest::new(1, 3, (1, 2)));
        let wait = a.add("x/+").unwrap();
        assert_eq!(a.add("x/+"), Some(wait));
        let delta = a.take_delta().unwrap();
        assert_eq!(delta.version, wait);
        assert_eq!(b.peers_for("x/1"), 0);
        b.apply(0, &delta);
        assert_eq!(b.peers_for("x/1"), 1);
        a.confirm(1, wait);
        assert!(a.confirmed() < wait, "the third place has not confirmed");
        a.confirm(2, wait);
        assert_eq!((a.confirmed(), a.add("x/+")), (wait, None));
        let exact = a.add("y").unwrap();
        assert!(exact > wait);
        a.remove("x/+");
        a.remove("x/+");
        let delta = a.take_delta().unwrap();
        b.apply(0, &delta);
        assert_eq!((b.peers_for("x/1"), b.peers_for("y")), (1, 1), "one subscriber of x/+ is left");
        a.remove("x/+");
        b.apply(0, &a.take_delta().unwrap());
        assert_eq!((b.peers_for("x/1"), b.peers_for("y")), (0, 1));
        a.add("z/#");
        a.forget_own();
        b.apply(0, &a.take_delta().unwrap());
        assert_eq!((b.peers_for("z/1"), b.peers_for("y")), (0, 0), "a lane that begins anew wants nothing");
        assert_eq!(Interest::new(0, 1, (1, 2)).add("z"), None, "alone there is nobody to wait for");
        // a change that is seen by the version alone goes out once, and no version ever falls
        a.add("w");
        let version = a.touch();
        assert_eq!(a.take_delta().map(|d| d.version), Some(version));
        assert_eq!(a.take_delta(), None);
    }
}
