//! Every durable change of a partition as a record, and `apply`, the only way in which durable state changes: live
//! today, in replay and on a standby later.
//!
//! A record names what happened, not how: applying the same records in the same order gives the same state. Records of
//! sessions that end with their connection are applied and not logged. Drawn in `docs/formats/records.md`.

use foldhash::fast::RandomState;
use hashbrown::{HashMap, HashTable};
use slab::Slab;
use std::hash::BuildHasher;

use crate::codec::QoS;
use crate::inflight::Window;
use crate::message::Stored;
use crate::queue::{Entry, GroupPlace, Queue, Stage, SubscriptionIds};
use crate::retained::Retained;
use crate::session::{Session, Subscription, Will};

/// One delivery within an `Enqueued` record.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// The session, by its place.
    pub slot: u32,
    /// QoS of the delivery.
    pub qos: QoS,
    /// Retain flag of the delivery.
    pub retain: bool,
    /// Subscription identifiers.
    pub ids: SubscriptionIds,
    /// Place in the shared group that dispatched it.
    pub group: Option<Box<GroupPlace>>,
}

/// A durable change.
#[derive(Debug)]
#[expect(missing_docs, reason = "the fields are named after what they hold; the table is in docs/formats/records.md")]
pub enum Record<'a> {
    SessionOpened {
        client_id: &'a str,
        uid: u64,
        expiry_s: u32,
    },
    SessionChanged {
        slot: u32,
        expiry_s: u32,
    },
    SessionEnded {
        slot: u32,
    },
    Subscribed {
        slot: u32,
        filter: &'a str,
        subscription: Subscription,
    },
    Unsubscribed {
        slot: u32,
        filter: &'a str,
    },
    /// The body once, for each session its place in the queue; the origin is taken in the same record.
    Enqueued {
        message: &'a Stored,
        to: &'a [Delivery],
    },
    /// The subscriber has answered PUBREC.
    Received {
        slot: u32,
        index: u64,
    },
    /// The subscriber is done with it, or it was dropped.
    Acknowledged {
        slot: u32,
        index: u64,
    },
    /// First sight of a QoS 2 identifier of a publisher.
    Held {
        slot: u32,
        id: u16,
        n: u64,
    },
    Released {
        slot: u32,
        id: u16,
    },
    RetainedSet {
        message: &'a Stored,
    },
    RetainedCleared {
        topic: &'a str,
    },
    WillArmed {
        slot: u32,
        will: Box<Will>,
    },
    WillDisarmed {
        slot: u32,
    },
    OriginForgotten {
        uid: u64,
    },
}

/// The durable state of one partition.
#[derive(Debug, Default)]
pub struct State {
    sessions: Slab<Session>,
    by_id: HashTable<u32>,
    hasher: RandomState,
    /// Retained messages of the topics that hash here.
    pub retained: Retained,
    origins: HashMap<u64, Window, RandomState>,
}

impl State {
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

    /// Was this message taken before? Only QoS 2 carries an origin.
    #[must_use]
    pub fn taken(&self, uid: u64, n: u64) -> bool {
        n != 0 && self.origins.get(&uid).is_some_and(|w| w.taken(n))
    }

    /// Carries out a record. `SessionOpened` returns the place of the session.
    pub fn apply(&mut self, record: Record<'_>) -> u32 {
        match record {
            Record::SessionOpened { client_id, uid, expiry_s } => return self.open(client_id, uid, expiry_s),
            Record::SessionEnded { slot } => self.end(slot),
            Record::Enqueued { message, to } => self.enqueue(message, to),
            Record::RetainedSet { message } => self.retained.set(message.clone()),
            Record::RetainedCleared { topic } => drop(self.retained.clear(topic)),
            Record::OriginForgotten { uid } => drop(self.origins.remove(&uid)),
            Record::SessionChanged { slot, .. }
            | Record::Subscribed { slot, .. }
            | Record::Unsubscribed { slot, .. }
            | Record::Received { slot, .. }
            | Record::Acknowledged { slot, .. }
            | Record::Held { slot, .. }
            | Record::Released { slot, .. }
            | Record::WillArmed { slot, .. }
            | Record::WillDisarmed { slot } => {
                if let Some(session) = self.session_mut(slot) {
                    change(session, record);
                }
            }
        }
        0
    }

    fn open(&mut self, client_id: &str, uid: u64, expiry_s: u32) -> u32 {
        let slot = self.sessions.insert(Session {
            uid,
            client_id: client_id.into(),
            expiry_s,
            ends_at_ms: 0,
            will_at_ms: 0,
            will: None,
            subscriptions: HashMap::default(),
            queue: Queue::default(),
            held: None,
            rules: crate::access::Rules::default(),
            channel: None,
            next: None,
            replay: None,
        });
        let slot = u32::try_from(slot).unwrap_or(u32::MAX);
        let (hasher, sessions) = (&self.hasher, &self.sessions);
        let rehash = |&slot: &u32| sessions.get(slot as usize).map_or(0, |s| hasher.hash_one(&*s.client_id));
        self.by_id.insert_unique(hasher.hash_one(client_id), slot, rehash);
        slot
    }

    fn end(&mut self, slot: u32) {
        let Some(session) = self.sessions.try_remove(slot as usize) else { return };
        let hash = self.hasher.hash_one(&*session.client_id);
        if let Ok(entry) = self.by_id.find_entry(hash, |&s| s == slot) {
            entry.remove();
        }
    }

    fn enqueue(&mut self, message: &Stored, to: &[Delivery]) {
        let origin = message.head().origin;
        if origin.n != 0 {
            self.origins.entry(origin.uid).or_default().take(origin.n, origin.answered);
        }
        for d in to {
            if let Some(session) = self.sessions.get_mut(d.slot as usize) {
                session.queue.push(Entry {
                    message: Some(message.clone()),
                    stage: Stage::Waiting,
                    qos: d.qos,
                    retain: d.retain,
                    ids: d.ids.clone(),
                    group: d.group.clone(),
                });
            }
        }
    }
}

/// A change within one session.
fn change(session: &mut Session, record: Record<'_>) {
    match record {
        Record::SessionChanged { expiry_s, .. } => session.expiry_s = expiry_s,
        Record::Subscribed { filter, subscription, .. } => {
            session.subscriptions.insert(filter.into(), subscription);
        }
        Record::Unsubscribed { filter, .. } => {
            session.subscriptions.remove(filter);
        }
        Record::Received { index, .. } => session.queue.mark(index, Stage::Received),
        Record::Acknowledged { index, .. } => session.queue.mark(index, Stage::Done),
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
