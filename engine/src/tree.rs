//! Topic filter to subscribers of one lane (section 4.7), and to peers in `interest`.
//!
//! Filters without wildcards live in one hash table, the others in a trie of interned levels whose edges share one
//! table, so a filter costs few bytes and a publish one look-up per level and branch. Tested against
//! `topic::matches` as the naive model.

use foldhash::fast::RandomState;
use hashbrown::HashMap;
use smallvec::SmallVec;

/// Something that subscribes; two entries with one key under one filter are the same.
pub trait Keyed: Copy {
    /// Identity within a filter.
    fn key(&self) -> u64;
}

/// Above this many subscribers of one filter they are kept in a hash table.
const MANY: usize = 64;
const ROOT: u32 = 0;
const NONE: u32 = 0;

/// As large as one subscriber: most filters have no more.
#[derive(Debug, Default)]
enum Subscribers<T> {
    #[default]
    None,
    One(T),
    // the box keeps the large case from making the small one large
    #[allow(clippy::box_collection)]
    Few(Box<Vec<T>>),
    Many(Box<HashMap<u64, T, RandomState>>),
}

impl<T: Keyed> Subscribers<T> {
    fn insert(&mut self, value: T) -> Option<T> {
        match self {
            Self::None => *self = Self::One(value),
            Self::One(old) if old.key() == value.key() => return Some(std::mem::replace(old, value)),
            Self::One(old) => *self = Self::Few(Box::new(vec![*old, value])),
            Self::Few(list) => {
                if let Some(old) = list.iter_mut().find(|t| t.key() == value.key()) {
                    return Some(std::mem::replace(old, value));
                }
                list.push(value);
                if list.len() > MANY {
                    *self = Self::Many(Box::new(list.drain(..).map(|t| (t.key(), t)).collect()));
                }
            }
            Self::Many(map) => return map.insert(value.key(), value),
        }
        None
    }

    fn remove(&mut self, key: u64) -> Option<T> {
        let (old, empty) = match self {
            Self::None => return None,
            Self::One(one) => ((one.key() == key).then_some(*one), one.key() == key),
            Self::Few(list) => {
                let old = list.iter().position(|t| t.key() == key).map(|i| list.swap_remove(i));
                (old, list.is_empty())
            }
            Self::Many(map) => (map.remove(&key), map.is_empty()),
        };
        if empty {
            *self = Self::None;
        }
        old
    }

    const fn is_empty(&self) -> bool {
        matches!(self, Self::None)
    }

    fn each(&self, f: &mut impl FnMut(&T)) {
        match self {
            Self::None => {}
            Self::One(one) => f(one),
            Self::Few(list) => list.iter().for_each(f),
            Self::Many(map) => map.values().for_each(f),
        }
    }
}

#[derive(Debug, Default)]
struct Node<T: Keyed> {
    /// Subscribers of the filter that ends here.
    here: Subscribers<T>,
    /// Subscribers of the filter that ends here with `/#`.
    below: Subscribers<T>,
    plus: u32,
    parent: u32,
    /// Level by which the parent leads here.
    level: u32,
    children: u32,
}

/// A level as a number, with how many edges use it.
#[derive(Debug, Default)]
struct Levels {
    ids: HashMap<Box<str>, u32, RandomState>,
    uses: Vec<(Box<str>, u32)>,
    free: Vec<u32>,
}

impl Levels {
    fn get(&self, level: &str) -> Option<u32> {
        self.ids.get(level).copied()
    }

    fn take(&mut self, level: &str) -> u32 {
        if let Some(&id) = self.ids.get(level) {
            if let Some(u) = self.uses.get_mut(id as usize) {
                u.1 += 1;
            }
            return id;
        }
        let id = self.free.pop().unwrap_or_else(|| {
            self.uses.push((Box::default(), 0));
            u32::try_from(self.uses.len() - 1).unwrap_or(u32::MAX)
        });
        if let Some(u) = self.uses.get_mut(id as usize) {
            *u = (level.into(), 1);
        }
        self.ids.insert(level.into(), id);
        id
    }

    fn give(&mut self, id: u32) {
        let Some(u) = self.uses.get_mut(id as usize) else { return };
        u.1 -= 1;
        if u.1 == 0 {
            self.ids.remove(&std::mem::take(&mut u.0));
            self.free.push(id);
        }
    }
}

/// Level number of the edge `+` in a node's `level`.
const PLUS: u32 = u32::MAX;

/// The subscriptions of one lane or the interest of its peers.
#[derive(Debug)]
pub struct Tree<T: Keyed> {
    exact: HashMap<Box<str>, Subscribers<T>, RandomState>,
    nodes: Vec<Node<T>>,
    free: Vec<u32>,
    edges: HashMap<(u32, u32), u32, RandomState>,
    levels: Levels,
    wild: usize,
    version: u64,
}

impl<T: Keyed + Default> Default for Tree<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: Keyed + Default> Tree<T> {
    /// An empty tree.
    #[must_use]
    pub fn new() -> Self {
        Self {
            exact: HashMap::default(),
            nodes: vec![Node::default()],
            free: Vec::new(),
            edges: HashMap::default(),
            levels: Levels::default(),
            wild: 0,
            version: 0,
        }
    }

    /// Rises with every change; what was computed from an older version is stale.
    #[must_use]
    pub const fn version(&self) -> u64 {
        self.version
    }

    /// Makes everything computed from the tree stale without a change to it.
    pub fn touch(&mut self) {
        self.version += 1;
    }

    /// Adds or replaces a subscriber; returns the entry that it replaced.
    pub fn insert(&mut self, filter: &str, value: T) -> Option<T> {
        self.version += 1;
        if !crate::topic::has_wildcard(filter) {
            if let Some(list) = self.exact.get_mut(filter) {
                return list.insert(value);
            }
            return self.exact.entry(filter.into()).or_default().insert(value);
        }
        let old = self.walk(filter).and_then(|list| list.insert(value));
        self.wild += usize::from(old.is_none());
        old
    }

    /// Removes a subscriber.
    pub fn remove(&mut self, filter: &str, key: u64) -> Option<T> {
        self.version += 1;
        if !crate::topic::has_wildcard(filter) {
            let list = self.exact.get_mut(filter)?;
            let old = list.remove(key);
            if list.is_empty() {
                self.exact.remove(filter);
            }
            return old;
        }
        let (path, below) = split(filter);
        let at = self.find(path)?;
        let node = self.nodes.get_mut(at as usize)?;
        let old = if below { node.below.remove(key) } else { node.here.remove(key) };
        self.wild -= usize::from(old.is_some());
        self.prune(at);
        old
    }

    /// Calls `f` for each entry whose filter matches the name, once per filter.
    pub fn matches(&self, name: &str, f: &mut impl FnMut(&T)) {
        if let Some(list) = self.exact.get(name) {
            list.each(f);
        }
        if self.wild == 0 {
            return;
        }
        // nodes reached so far; those of the first level must not be reached by a wildcard if the name begins with $
        let hidden = name.starts_with('$');
        let mut reached: SmallVec<[u32; 16]> = SmallVec::from_slice(&[ROOT]);
        let mut next: SmallVec<[u32; 16]> = SmallVec::new();
        for (depth, level) in name.split('/').enumerate() {
            let id = self.levels.get(level);
            let wild = !(hidden && depth == 0);
            for &at in &reached {
                let Some(node) = self.nodes.get(at as usize) else { continue };
                if wild {
                    node.below.each(f);
                    if node.plus != NONE {
                        next.push(node.plus);
                    }
                }
                if let Some(&child) = id.and_then(|id| self.edges.get(&(at, id))) {
                    next.push(child);
                }
            }
            std::mem::swap(&mut reached, &mut next);
            next.clear();
            if reached.is_empty() {
                return;
            }
        }
        for &at in &reached {
            if let Some(node) = self.nodes.get(at as usize) {
                node.here.each(f);
                node.below.each(f);
            }
        }
    }

    /// The list of a wildcard filter, made if it is not there.
    fn walk(&mut self, filter: &str) -> Option<&mut Subscribers<T>> {
        let (path, below) = split(filter);
        let mut at = ROOT;
        for level in path.into_iter().flat_map(|p| p.split('/')) {
            at = self.child(at, level);
        }
        let node = self.nodes.get_mut(at as usize)?;
        Some(if below { &mut node.below } else { &mut node.here })
    }

    fn child(&mut self, at: u32, level: &str) -> u32 {
        let known = if level == "+" {
            self.nodes.get(at as usize).map(|n| n.plus).filter(|&p| p != NONE)
        } else {
            self.levels.get(level).and_then(|id| self.edges.get(&(at, id)).copied())
        };
        if let Some(child) = known {
            return child;
        }
        let id = if level == "+" { PLUS } else { self.levels.take(level) };
        let node = Node { parent: at, level: id, ..Node::default() };
        let child = if let Some(free) = self.free.pop() {
            if let Some(slot) = self.nodes.get_mut(free as usize) {
                *slot = node;
            }
            free
        } else {
            self.nodes.push(node);
            u32::try_from(self.nodes.len() - 1).unwrap_or(u32::MAX)
        };
        if id != PLUS {
            self.edges.insert((at, id), child);
        }
        if let Some(parent) = self.nodes.get_mut(at as usize) {
            parent.children += 1;
            if id == PLUS {
                parent.plus = child;
            }
        }
        child
    }

    fn find(&self, path: Option<&str>) -> Option<u32> {
        let mut at = ROOT;
        for level in path.into_iter().flat_map(|p| p.split('/')) {
            at = if level == "+" {
                self.nodes.get(at as usize).map(|n| n.plus).filter(|&p| p != NONE)?
            } else {
                *self.edges.get(&(at, self.levels.get(level)?))?
            };
        }
        Some(at)
    }

    /// Gives back the nodes that lead nowhere any more.
    fn prune(&mut self, mut at: u32) {
        while at != ROOT {
            let Some(node) = self.nodes.get(at as usize) else { return };
            if node.children > 0 || !node.here.is_empty() || !node.below.is_empty() {
                return;
            }
            let (parent, level) = (node.parent, node.level);
            if level == PLUS {
                if let Some(p) = self.nodes.get_mut(parent as usize) {
                    p.plus = NONE;
                }
            } else {
                self.edges.remove(&(parent, level));
                self.levels.give(level);
            }
            if let Some(p) = self.nodes.get_mut(parent as usize) {
                p.children -= 1;
            }
            self.free.push(at);
            at = parent;
        }
    }
}

/// The levels before a final `#` (`None` when there are none), and whether there is one.
fn split(filter: &str) -> (Option<&str>, bool) {
    if filter == "#" {
        return (None, true);
    }
    match filter.strip_suffix("/#") {
        Some(path) => (Some(path), true),
        None => (Some(filter), false),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone, Copy, Default, PartialEq)]
    struct Id(u64);

    impl Keyed for Id {
        fn key(&self) -> u64 {
            self.0
        }
    }

    fn level() -> impl Strategy<Value = &'static str> {
        prop_oneof![Just("a"), Just("b"), Just(""), Just("$s"), Just("+")]
    }

    fn filter() -> impl Strategy<Value = String> {
        (prop::collection::vec(level(), 1..4), any::<bool>()).prop_map(|(mut levels, hash)| {
            if hash {
                levels.push("#");
            }
            levels.join("/")
        })
    }

    fn name() -> impl Strategy<Value = String> {
        prop::collection::vec(prop_oneof![Just("a"), Just("b"), Just(""), Just("$s")], 1..5)
            .prop_map(|levels| levels.join("/"))
            .prop_filter("empty", |n| !n.is_empty())
    }

    proptest! {
        /// After any history the tree answers as `topic::matches` does for each filter that is there.
        #[test]
        fn agrees_with_the_naive_model(
            steps in prop::collection::vec((any::<bool>(), filter(), 0u64..80), 0..200),
            names in prop::collection::vec(name(), 1..8),
        ) {
            let mut tree = Tree::new();
            let mut model = std::collections::BTreeSet::new();
            for (add, filter, id) in steps {
                if filter.is_empty() { continue }
                if add {
                    tree.insert(&filter, Id(id));
                    model.insert((filter, id));
                } else {
                    prop_assert_eq!(tree.remove(&filter, id).is_some(), model.remove(&(filter, id)));
                }
            }
            for name in names {
                let mut got = Vec::new();
                tree.matches(&name, &mut |t| got.push(t.0));
                let mut want: Vec<u64> =
                    model.iter().filter(|(f, _)| crate::topic::matches(f, &name)).map(|(_, id)| *id).collect();
                got.sort_unstable();
                want.sort_unstable();
                prop_assert_eq!(got, want);
            }
            for (filter, id) in &model {
                tree.remove(filter, *id);
            }
            prop_assert!(tree.exact.is_empty() && tree.edges.is_empty() && tree.levels.ids.is_empty());
        }
    }
}
