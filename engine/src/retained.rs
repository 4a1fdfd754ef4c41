//! Retained messages of one partition (section 3.3.1.3): topic name to message, found by filter.
//!
//! A trie of names; expired messages are skipped when read and removed when met.

use foldhash::fast::RandomState;
use hashbrown::HashMap;
use slab::Slab;

use crate::message::Stored;

#[derive(Debug, Default)]
struct Node {
    children: HashMap<Box<str>, usize, RandomState>,
    parent: usize,
    level: Box<str>,
    value: Option<Stored>,
}

/// Topic name to its retained message.
#[derive(Debug)]
pub struct Retained {
    nodes: Slab<Node>,
    root: usize,
    count: usize,
    bytes: usize,
}

impl Default for Retained {
    fn default() -> Self {
        let mut nodes = Slab::new();
        let root = nodes.insert(Node::default());
        Self { nodes, root, count: 0, bytes: 0 }
    }
}

impl Retained {
    /// Number of messages.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.count
    }

    /// True without messages.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Bytes of the messages.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Stores a message under its topic, in place of an older one.
    pub fn set(&mut self, message: Stored) {
        let topic = message.clone();
        let mut at = self.root;
        for level in topic.view().topic.split('/') {
            at = self.child(at, level);
        }
        self.bytes += message.len();
        let old = self.nodes.get_mut(at).and_then(|n| n.value.replace(message));
        match old {
            Some(old) => self.bytes -= old.len(),
            None => self.count += 1,
        }
    }

    fn child(&mut self, at: usize, level: &str) -> usize {
        if let Some(&child) = self.nodes.get(at).and_then(|n| n.children.get(level)) {
            return child;
        }
        let child = self.nodes.insert(Node { parent: at, level: level.into(), ..Node::default() });
        if let Some(node) = self.nodes.get_mut(at) {
            node.children.insert(level.into(), child);
        }
        child
    }

    /// Removes the message of a topic.
    pub fn clear(&mut self, topic: &str) -> Option<Stored> {
        let mut at = self.root;
        for level in topic.split('/') {
            at = *self.nodes.get(at)?.children.get(level)?;
        }
        let old = self.nodes.get_mut(at)?.value.take();
        if let Some(old) = &old {
            self.count -= 1;
            self.bytes -= old.len();
        }
        while at != self.root {
            let node = self.nodes.get_mut(at)?;
            if node.value.is_some() || !node.children.is_empty() {
                break;
            }
            let (parent, level) = (node.parent, std::mem::take(&mut node.level));
            self.nodes.remove(at);
            self.nodes.get_mut(parent)?.children.remove(&level);
            at = parent;
        }
        old
    }

    /// The message of one topic.
    #[must_use]
    pub fn get(&self, topic: &str) -> Option<&Stored> {
        let mut at = self.root;
        for level in topic.split('/') {
            at = *self.nodes.get(at)?.children.get(level)?;
        }
        self.nodes.get(at)?.value.as_ref()
    }

    /// Every message.
    pub fn each(&self) -> impl Iterator<Item = &Stored> {
        self.nodes.iter().filter_map(|(_, node)| node.value.as_ref())
    }

    /// Every message from a place on, each with its place.
    pub fn each_from(&self, place: usize) -> impl Iterator<Item = (usize, &Stored)> {
        (place..self.nodes.capacity()).filter_map(|at| Some((at, self.nodes.get(at)?.value.as_ref()?)))
    }

    /// Appends every message whose topic the filter matches.
    pub fn find(&self, filter: &str, out: &mut Vec<Stored>) {
        if !crate::topic::has_wildcard(filter) {
            out.extend(self.get(filter).cloned());
            return;
        }
        let mut reached = vec![self.root];
        let mut first = true;
        for level in filter.split('/') {
            if level == "#" {
                return self.all_below(&reached, first, out);
            }
            let mut next = Vec::new();
            for node in reached.iter().filter_map(|&at| self.nodes.get(at)) {
                match level {
                    "+" => {
                        next.extend(node.children.iter().filter(|(l, _)| !(first && l.starts_with('$'))).map(|c| *c.1))
                    }
                    _ => next.extend(node.children.get(level)),
                }
            }
            reached = next;
            first = false;
        }
        out.extend(reached.iter().filter_map(|&at| self.nodes.get(at)?.value.clone()));
    }

    fn all_below(&self, reached: &[usize], first: bool, out: &mut Vec<Stored>) {
        let mut queue: std::collections::VecDeque<usize> = reached.iter().copied().collect();
        while let Some(at) = queue.pop_front() {
            let Some(node) = self.nodes.get(at) else { continue };
            out.extend(node.value.clone());
            let hide = first && at == self.root;
            queue.extend(node.children.iter().filter(|(l, _)| !(hide && l.starts_with('$'))).map(|c| *c.1));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::message::{Head, Message};

    fn message(topic: &str, payload: u8) -> Stored {
        Stored::new(&Message { head: Head::default(), topic, props: &[], payload: &[payload] })
    }

    proptest! {
        /// After any history `find` agrees with `topic::matches` over a plain map, and nothing is left behind.
        #[test]
        fn agrees_with_the_naive_model(
            steps in prop::collection::vec(("[ab$]?(/[ab]?){0,3}", any::<Option<u8>>()), 0..80),
            filters in prop::collection::vec("([ab$]?|\\+)(/([ab]?|\\+)){0,3}(/#)?|#", 1..6),
        ) {
            let (mut retained, mut model) = (Retained::default(), BTreeMap::new());
            for (topic, payload) in steps.into_iter().filter(|s| !s.0.is_empty()) {
                match payload {
                    Some(p) => { retained.set(message(&topic, p)); model.insert(topic, p); }
                    None => { prop_assert_eq!(retained.clear(&topic).is_some(), model.remove(&topic).is_some()); }
                }
            }
            for filter in filters.iter().filter(|f| !f.is_empty()) {
                let mut found = Vec::new();
                retained.find(filter, &mut found);
                let got: BTreeMap<_, _> =
                    found.iter().map(|m| (m.view().topic.to_owned(), m.view().payload[0])).collect();
                prop_assert_eq!(got.len(), found.len());
                let want: BTreeMap<_, _> =
                    model.iter().filter(|(t, _)| crate::topic::matches(filter, t)).map(|(t, p)| (t.clone(), *p)).collect();
                prop_assert_eq!(got, want, "{}", filter);
            }
            for topic in model.keys() {
                retained.clear(topic);
            }
            prop_assert_eq!((retained.nodes.len(), retained.len(), retained.bytes()), (1, 0, 0));
        }
    }
}
