//! Who receives a topic: one hash look-up for each publish.
//!
//! While nobody has subscribed with a wildcard or to a shared group, the table of exact filters is the answer. Else the
//! answers are kept by topic until any subscription changes.

use std::collections::HashMap;

use foldhash::fast::RandomState;

/// Above it the kept answers are forgotten: publishers may invent topics without end.
const CACHED_TOPICS_MAX: usize = 65_536;

type Table<T> = HashMap<Box<[u8]>, T, RandomState>;

/// One receiver: the slot of its connection, and the QoS that it was granted.
#[derive(Clone, Copy)]
pub struct Target {
    pub slot: usize,
    pub qos: u8,
}

/// The members of one `$share/name/filter`, and whose turn it is.
struct Group {
    key: Box<[u8]>,
    members: Vec<Target>,
    turn: usize,
}

/// All receivers of a topic: each of these, and one member of each of these groups.
#[derive(Default)]
struct Answer {
    each: Vec<Target>,
    groups: Vec<usize>,
}

#[derive(Default)]
pub struct Routes {
    exact: Table<Vec<Target>>,
    wild: Table<Vec<Target>>,
    groups: Vec<Group>,
    answers: Table<Answer>,
}

impl Routes {
    /// Calls `send` once for each receiver of a message to `topic`.
    pub fn receivers(&mut self, topic: &[u8], mut send: impl FnMut(Target)) {
        if self.wild.is_empty() && self.groups.is_empty() {
            self.exact.get(topic).into_iter().flatten().copied().for_each(send);
            return;
        }
        if let Some(answer) = self.answers.get(topic) {
            answer.serve(&mut self.groups, &mut send);
            return;
        }
        let answer = self.resolve(topic);
        answer.serve(&mut self.groups, &mut send);
        if self.answers.len() >= CACHED_TOPICS_MAX {
            self.answers.clear();
        }
        self.answers.insert(topic.into(), answer);
    }

    /// A receiver with several filters that match gets one copy, with the highest QoS of them.
    fn resolve(&self, topic: &[u8]) -> Answer {
        let mut answer = Answer::default();
        answer.each.extend(self.exact.get(topic).into_iter().flatten());
        for target in self.wild.iter().filter(|(filter, _)| matches(filter, topic)).flat_map(|(_, targets)| targets) {
            match answer.each.iter_mut().find(|known| known.slot == target.slot) {
                Some(known) => known.qos = known.qos.max(target.qos),
                None => answer.each.push(*target),
            }
        }
        let shared = self.groups.iter().enumerate();
        let shared = shared.filter(|(_, group)| shared_filter(&group.key).is_some_and(|f| matches(f, topic)));
        answer.groups = shared.map(|(at, _)| at).collect();
        answer
    }

    /// Returns whether it is new; else its QoS is replaced.
    pub fn subscribe(&mut self, filter: &[u8], target: Target) -> bool {
        self.answers.clear();
        if shared_filter(filter).is_some() {
            if let Some(group) = self.groups.iter_mut().find(|group| *group.key == *filter) {
                return put(&mut group.members, target);
            }
            self.groups.push(Group { key: filter.into(), members: vec![target], turn: 0 });
            return true;
        }
        put(self.table(filter).entry(filter.into()).or_default(), target)
    }

    pub fn unsubscribe(&mut self, filter: &[u8], slot: usize) {
        self.answers.clear();
        if shared_filter(filter).is_some() {
            for group in self.groups.iter_mut().filter(|group| *group.key == *filter) {
                group.members.retain(|target| target.slot != slot);
            }
            self.groups.retain(|group| !group.members.is_empty());
            return;
        }
        let table = self.table(filter);
        if let Some(targets) = table.get_mut(filter) {
            targets.retain(|target| target.slot != slot);
            if targets.is_empty() {
                table.remove(filter);
            }
        }
    }

    fn table(&mut self, filter: &[u8]) -> &mut Table<Vec<Target>> {
        if filter.iter().any(|byte| matches!(byte, b'+' | b'#')) { &mut self.wild } else { &mut self.exact }
    }
}

impl Answer {
    fn serve(&self, groups: &mut [Group], send: &mut impl FnMut(Target)) {
        self.each.iter().copied().for_each(&mut *send);
        for at in &self.groups {
            if let Some(group) = groups.get_mut(*at) {
                group.turn = (group.turn + 1) % group.members.len().max(1);
                group.members.get(group.turn).copied().into_iter().for_each(&mut *send);
            }
        }
    }
}

fn put(targets: &mut Vec<Target>, target: Target) -> bool {
    let known = targets.iter_mut().find(|known| known.slot == target.slot);
    if let Some(known) = known {
        known.qos = target.qos;
        return false;
    }
    targets.push(target);
    true
}

/// The filter in `$share/name/filter`.
fn shared_filter(key: &[u8]) -> Option<&[u8]> {
    let rest = key.strip_prefix(b"$share/")?;
    let slash = rest.iter().position(|byte| *byte == b'/')?;
    rest.get(slash + 1..)
}

fn matches(filter: &[u8], topic: &[u8]) -> bool {
    if topic.starts_with(b"$") && !filter.starts_with(b"$") {
        return false;
    }
    let mut levels = topic.split(|byte| *byte == b'/');
    for wanted in filter.split(|byte| *byte == b'/') {
        match (wanted, levels.next()) {
            (b"#", _) => return true,
            (b"+", Some(_)) => {}
            (_, Some(level)) if level == wanted => {}
            _ => return false,
        }
    }
    levels.next().is_none()
}
