//! The durable state of one partition, and how each record changes it.

use std::hash::BuildHasher;

use foldhash::fast::RandomState;
use hashbrown::{HashMap, HashTable};
use slab::Slab;

use super::{Delivery, Record};
use crate::channel::SessionRef;
use crate::inflight::Window;
use crate::message::{Origin, Stored};
use crate::queue::{Entry, Queue, Stage};
use crate::retained::Retained;
use crate::session::Session;
use crate::shared::Group;

/// The durable state of one partition.
#[derive(Debug, Default)]
pub struct State {
    sessions: Slab<Session>,
    by_id: HashTable<u32>,
    hasher: RandomState,
    /// Retained messages of the topics that hash here.
    pub retained: Retained,
    origins: HashMap<u64, Window, RandomState>,
    groups: HashMap<u64, Group, RandomState>,
    group_names: HashMap<Box<str>, u64, RandomState>,
}

impl State {
    /// The state of a partition that came from elsewhere: sessions keep their places.
    #[must_use]
    pub fn carried(
        sessions: Vec<(u32, Session)>,
        retained: Vec<Stored>,
        origins: Vec<(u64, Window)>,
        groups: Vec<Group>,
    ) -> Self {
        let sessions = sessions.into_iter().map(|(slot, s)| (slot as usize, s)).collect();
        let mut state = Self { sessions, ..Self::default() };
        let (hasher, sessions) = (&state.hasher, &state.sessions);
        let hash = |slot: u32| sessions.get(slot as usize).map_or(0, |s| hasher.hash_one(&*s.client_id));
        for slot in sessions.iter().map(|(slot, _)| u32::try_from(slot).unwrap_or(u32::MAX)) {
            state.by_id.insert_unique(hash(slot), slot, |s| hash(*s));
        }
        retained.into_iter().for_each(|message| state.retained.set(message));
        state.origins = origins.into_iter().collect();
        state.group_names = groups.iter().map(|g| (g.name.clone(), g.uid)).collect();
        state.groups = groups.into_iter().map(|g| (g.uid, g)).collect();
        state
    }

    /// The place of a client's session.
    #[must_use]
    pub fn find(&self, client_id: &str) -> Option<u32> {
        let same = |&slot: &u32| self.session(slot).is_some_and(|s| *s.client_id == *client_id);
        self.by_id.find(self.hasher.hash_one(client_id), same).copied()
    }

    /// The session at a place.
    #[must_use]
    pub fn session(&self, slot: u32) -> Option<&Session> {
        self.sessions.get(slot as usize)
    }

    /// The session at a place. Durable fields are changed by [`Self::apply`] alone.
    pub fn session_mut(&mut self, slot: u32) -> Option<&mut Session> {
        self.sessions.get_mut(slot as usize)
    }

    /// Number of sessions.
    #[must_use]
    pub fn len(&self) -> usize {
        self.sessions.len()
    }

    /// True without sessions.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.sessions.is_empty()
    }

    /// Every session with its place.
    pub fn each(&self) -> impl Iterator<Item = (u32, &Session)> {
        self.sessions.iter().map(|(slot, s)| (u32::try_from(slot).unwrap_or(u32::MAX), s))
    }

    /// Places that are or were in use lie below it.
    #[must_use]
    pub fn slots(&self) -> u32 {
        let last = self.sessions.iter().next_back().map_or(0, |(slot, _)| slot + 1);
        u32::try_from(last).unwrap_or(u32::MAX)
    }

    /// Was this message taken before? Only QoS 2 and what a group gives carry an origin.
    #[must_use]
    pub fn taken(&self, origin: Origin) -> bool {
        origin.n != 0 && self.origins.get(&origin.uid).is_some_and(|w| w.taken(origin.n))
    }

    /// Was this message of a group given back before?
    #[must_use]
    pub fn returned(&self, origin: Origin) -> bool {
        self.origins.get(&origin.uid).is_some_and(|w| w.returned(origin.n))
    }

    /// Origins with what was taken of them.
    pub fn origins(&self) -> impl Iterator<Item = (u64, &Window)> {
        self.origins.iter().map(|(uid, w)| (*uid, w))
    }

    /// What was taken of one origin.
    #[must_use]
    pub fn origin(&self, uid: u64) -> Option<(u64, &Window)> {
        self.origins.get(&uid).map(|w| (uid, w))
    }

    /// Is anything known of this origin?
    #[must_use]
    pub fn knows_origin(&self, uid: u64) -> bool {
        self.origins.contains_key(&uid)
    }

    /// Sets what is known of an origin, from a checkpoint.
    pub fn set_origin(&mut self, uid: u64, window: Window) {
        self.origins.insert(uid, window);
    }

    /// A shared group.
    #[must_use]
    pub fn group(&self, uid: u64) -> Option<&Group> {
        self.groups.get(&uid)
    }

    /// A shared group. Its messages and whom they are given to are changed by [`Self::apply`] alone.
    pub fn group_mut(&mut self, uid: u64) -> Option<&mut Group> {
        self.groups.get_mut(&uid)
    }

    /// The group with this name (`GROUP/FILTER`).
    #[must_use]
    pub fn find_group(&self, name: &str) -> Option<u64> {
        self.group_names.get(name).copied()
    }

    /// The same, to be changed.
    pub fn groups_mut(&mut self) -> impl Iterator<Item = &mut Group> {
        self.groups.values_mut()
    }

    /// Only what belongs to names like these stays: sessions by client id, retained messages by topic, groups by name.
    pub fn keep(&mut self, is_here: &dyn Fn(&str) -> bool) {
        let gone: Vec<u32> = self.each().filter(|(_, s)| !is_here(&s.client_id)).map(|(slot, _)| slot).collect();
        gone.into_iter().for_each(|slot| drop(self.remove(slot)));
        let gone: Vec<Box<str>> = self.retained.each().map(|m| m.view().topic.into()).collect();
        gone.iter().filter(|topic| !is_here(topic)).for_each(|topic| drop(self.retained.clear(topic)));
        self.group_names.retain(|name, _| is_here(name));
        self.groups.retain(|_, group| is_here(&group.name));
    }

    /// Every shared group.
    pub fn groups(&self) -> impl ExactSizeIterator<Item = &Group> {
        self.groups.values()
    }

    /// Carries out a record. `SessionOpened` returns the place of the session.
    pub fn apply(&mut self, record: Record<'_>) -> u32 {
        match record {
            Record::SessionOpened { client_id, uid, expiry_s, logged, maker } => {
                let slot = self.open(client_id, uid, expiry_s, logged);
                self.session_mut(slot).into_iter().for_each(|s| s.maker = maker);
                return slot;
            }
            Record::SessionEnded { slot } => drop(self.remove(slot)),
            Record::Enqueued { message, origin, to } => {
                let len = u32::try_from(message.len()).unwrap_or(u32::MAX);
                self.place(origin, Some(message), len, 0, to);
            }
            Record::RetainedSet { message } => self.retained.set(message.clone()),
            Record::RetainedCleared { topic } => drop(self.retained.clear(topic)),
            Record::OriginForgotten { uid } => drop(self.origins.remove(&uid)),
            Record::GroupOpened { uid, name, base, last_n } => {
                self.group_names.insert(name.into(), uid);
                let group = self.groups.entry(uid).or_insert_with(|| Group::new(uid, name));
                group.begin_at(base, last_n);
            }
            Record::GroupClosed { uid } => {
                if let Some(group) = self.groups.remove(&uid) {
                    self.group_names.remove(&group.name);
                }
            }
            Record::GroupEnqueued { .. }
            | Record::GroupGiven { .. }
            | Record::GroupReturned { .. }
            | Record::GroupDone { .. } => self.change_group(&record),
            Record::NotTaken { group, n } => self.origins.entry(group).or_default().give_back(n),
            other => {
                if let Record::GivenBack { group, n, .. } = &other {
                    self.origins.entry(*group).or_default().give_back(*n);
                }
                if let Some(session) = other.slot().and_then(|slot| self.session_mut(slot)) {
                    change(session, other);
                }
            }
        }
        0
    }

    fn open(&mut self, client_id: &str, uid: u64, expiry_s: u32, logged: bool) -> u32 {
        let slot = self.sessions.insert(Session::new(uid, client_id, expiry_s, logged));
        let slot = u32::try_from(slot).unwrap_or(u32::MAX);
        let (hasher, sessions) = (&self.hasher, &self.sessions);
        let rehash = |&slot: &u32| sessions.get(slot as usize).map_or(0, |s| hasher.hash_one(&*s.client_id));
        self.by_id.insert_unique(hasher.hash_one(client_id), slot, rehash);
        slot
    }

    fn remove(&mut self, slot: u32) -> Option<Session> {
        let session = self.sessions.try_remove(slot as usize)?;
        let hash = self.hasher.hash_one(&*session.client_id);
        if let Ok(entry) = self.by_id.find_entry(hash, |&s| s == slot) {
            entry.remove();
        }
        Some(session)
    }

    /// A message takes its place in queues: its body is in memory, or at an address of the log, or both.
    pub fn place(&mut self, origin: Origin, body: Option<&Stored>, len: u32, at: u64, to: &[Delivery]) {
        self.take_origin(origin);
        for d in to {
            if let Some(session) = self.sessions.get_mut(d.slot as usize) {
                let entry = Entry::waiting(body.cloned(), len, d.qos, d.retain, d.extra.clone());
                session.queue.put(d.index, Entry { at, ..entry });
            }
        }
    }

    /// Notes that a message was taken.
    pub fn take_origin(&mut self, origin: Origin) {
        if origin.n != 0 {
            self.origins.entry(origin.uid).or_default().take(origin.n, origin.answered);
        }
    }

    fn change_group(&mut self, record: &Record<'_>) {
        match *record {
            Record::GroupEnqueued { uid, index, message, origin } => {
                self.take_origin(origin);
                if let Some(group) = self.groups.get_mut(&uid) {
                    group.put(index, message.clone());
                }
            }
            Record::GroupGiven { uid, index, n, partition, member } => {
                if let Some(group) = self.groups.get_mut(&uid) {
                    group.give(index, n, SessionRef { partition, slot: 0, uid: member });
                }
            }
            Record::GroupReturned { uid, index } => {
                if let Some(group) = self.groups.get_mut(&uid) {
                    group.take_back(index);
                }
            }
            Record::GroupDone { uid, index } => {
                if let Some(group) = self.groups.get_mut(&uid) {
                    group.finish(index);
                }
            }
            _ => {}
        }
    }
}

/// A change within one session.
fn change(session: &mut Session, record: Record<'_>) {
    match record {
        Record::SessionAttached { expiry_s, .. } => {
            session.expiry_s = expiry_s;
            (session.ends_at_ms, session.will_at_ms, session.away) = (0, 0, false);
        }
        Record::SessionDetached { expiry_s, ends_at_ms, will_at_ms, .. } => {
            session.expiry_s = expiry_s;
            (session.ends_at_ms, session.will_at_ms, session.away) = (ends_at_ms, will_at_ms, true);
        }
        Record::Subscribed { filter, subscription, .. } => {
            session.subscriptions.insert(filter.into(), subscription);
        }
        Record::Unsubscribed { filter, .. } => {
            session.subscriptions.remove(filter);
        }
        Record::Received { index, .. } => session.queue.mark(index, Stage::Received),
        Record::Acknowledged { index, .. } | Record::GivenBack { index, .. } => session.queue.mark(index, Stage::Done),
        Record::Held { id, n, .. } => session.held.get_or_insert_default().hold(id, n),
        Record::Released { id, .. } => {
            if let Some(held) = &mut session.held {
                held.release(id);
            }
        }
        Record::WillArmed { will, .. } => session.will = Some(will),
        Record::WillDisarmed { .. } => (session.will, session.will_at_ms) = (None, 0),
        _ => {}
    }
}

impl Session {
    /// A session without anything.
    #[must_use]
    pub fn new(uid: u64, client_id: &str, expiry_s: u32, logged: bool) -> Self {
        Self {
            uid,
            client_id: client_id.into(),
            expiry_s,
            logged,
            away: false,
            maker: 0,
            fetching: false,
            ends_at_ms: 0,
            will_at_ms: 0,
            will: None,
            subscriptions: HashMap::default(),
            queue: Queue::default(),
            held: None,
            rules: crate::access::Rules::default(),
            user: None,
            channel: None,
            next: None,
            replay: None,
        }
    }
}
