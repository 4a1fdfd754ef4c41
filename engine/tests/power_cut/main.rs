//! Cuts the power under the real partitions and the real writer, by seed: what was acknowledged is there afterwards.
//! `ROOST_SEEDS` makes the run longer, `ROOST_SEED` repeats one; the seed is printed when something is found.

#![allow(clippy::indexing_slicing, clippy::unwrap_used, clippy::panic, missing_docs)]

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use roostmq_engine::channel::{ConnectionId, SessionRef, Token};
use roostmq_engine::codec::{AckKind, QoS, Reason};
use roostmq_engine::limits::Drop as DropReason;
use roostmq_engine::log::{
    Checkpoints, Emptied, Emptying, File, Piece, Scan, Storage, Walked, Wanted, Writer, offset_of, scan, segment_of,
};
use roostmq_engine::message::{Head, Inbound, Message, Origin, Stored};
use roostmq_engine::partition::{
    Ask, Body, BodyCache, Effect, Effects, Ending, Input, Match, Partition, Resumed, Rules, Target, Walk,
};
use roostmq_engine::queue::{Entry, Queue};
use roostmq_engine::record::{Replay, State, digest, read_record, uid_parts};
use roostmq_engine::session::{Attach, NEVER, Subscription};

const PARTITIONS: usize = 3;
const CLIENTS: usize = 5;
const TOPICS: [&str; 4] = ["a", "b/c", "d", "e/f/g"];
const KEY: u64 = 7;

include!("disk.rs");
include!("clients.rs");
include!("log_side.rs");

/// Something whose last acknowledged value, or a later one, must be there.
#[derive(Default)]
struct Register {
    values: Vec<Option<u64>>,
    acked: usize,
}

impl Register {
    fn write(&mut self, value: Option<u64>) -> usize {
        self.values.push(value);
        self.values.len()
    }

    /// Checks what is there after a start; from now on that is the only value.
    fn found(&mut self, value: Option<u64>, what: &str) {
        let mut values = std::iter::once(None).chain(self.values.iter().copied()).skip(self.acked);
        assert!(values.any(|v| v == value), "{what}: {value:?} is not one of {:?} from {}", self.values, self.acked);
        (self.values, self.acked) = (vec![value], 1);
    }
}

/// What waits for an answer.
enum Asked {
    Publish { parts: usize, to: Vec<(u64, u64)>, publisher: Option<(usize, u16)>, body: u64 },
    Retain { topic: usize, version: usize },
    Subscribe { uid: u64, topic: usize, version: usize },
}

#[derive(Default)]
struct Client {
    uid: u64,
    session: Option<SessionRef>,
    connection: Option<ConnectionId>,
    attaching: bool,
    /// It has forgotten its session, and asks for a clean one until it has it.
    forgot: bool,
    inbox: Vec<(u16, QoS, u64)>,
    /// Identifiers answered with PUBREC.
    received: BTreeMap<u16, u64>,
    releases: Vec<u16>,
    /// QoS 2 on its way to the broker: body, topic, answered, to be sent again.
    outgoing: BTreeMap<u16, (u64, usize, bool, bool)>,
    releasing: BTreeSet<u16>,
    /// Identifiers with a PUBREL on this connection, where it is sent once.
    pubrels: BTreeSet<u16>,
}

/// A checkpoint under way; each partition is in a lane of its own.
struct Walking {
    walks: Vec<(Walk, bool)>,
    emptied: Emptied,
    walked: Vec<Option<Walked>>,
}

/// A broker with its clients, and what they were told.
struct World {
    r: Random,
    disk: Cut,
    rules: Rules,
    partitions: Vec<Partition>,
    writer: Writer,
    writing: Vec<Piece>,
    waiting: Vec<Piece>,
    checkpoints: Checkpoints,
    walking: Option<Walking>,
    /// As `roost.json` has it.
    checkpoint: Option<u64>,
    incarnation: u32,
    frees: bool,
    freed: bool,
    segment_bytes: u32,
    now_ms: u64,
    clients: Vec<Client>,
    asked: Vec<Asked>,
    fetches: Vec<(usize, SessionRef, Vec<Wanted>)>,
    sessions: BTreeSet<u64>,
    ended: BTreeSet<u64>,
    /// Every uid that a session has had, safe or not.
    used: BTreeSet<u64>,
    /// Session and message: acknowledged, answered by the subscriber, released to the subscriber.
    must: BTreeSet<(u64, u64)>,
    given: BTreeSet<(u64, u64)>,
    released: BTreeSet<(u64, u64)>,
    /// What was published under which number of which origin, as far as a partition has taken it.
    origins: BTreeMap<(u64, u64), u64>,
    /// Session and identifier: the latest index that was delivered under it.
    delivered: BTreeMap<(u64, u16), u64>,
    /// Bytes of a payload beyond its number, at most.
    padding: usize,
    retained: Vec<Register>,
    subscriptions: BTreeMap<(u64, usize), Register>,
    cuts: usize,
    checkpoints_done: usize,
}

fn body_of(payload: &[u8]) -> u64 {
    u64::from_be_bytes(payload[..8].try_into().unwrap())
}

fn replayed(storage: &dyn Storage, from: Option<u64>) -> (Scan, Vec<(Replay, u64)>) {
    let mut all: Vec<(Replay, u64)> = (0..PARTITIONS as u16).map(|p| (Replay::new(p), 0)).collect();
    let scan = scan(storage, from, Some((PARTITIONS as u32, KEY)), &mut |head, body, at| {
        let (replay, last) = &mut all[usize::from(head.partition)];
        *last = (*last).max(head.first + u64::from(head.count) - 1);
        replay.record(body, at).map(drop).map_err(|e| e.0)
    });
    (scan.unwrap(), all)
}

/// What a partition is: its digest, and the index that the next message of each session gets, also of an empty queue.
fn sum(state: &State) -> (u64, BTreeMap<u64, u64>) {
    (digest(state), state.each().map(|(_, s)| (s.uid, s.queue.next_index())).collect())
}

fn sums(all: &[(Replay, u64)]) -> Vec<(u64, BTreeMap<u64, u64>)> {
    all.iter().map(|(replay, _)| sum(&replay.state)).collect()
}

fn fetch(disk: &Cut, at: u64, len: u32) -> Option<Stored> {
    let file = disk.open(&format!("{:016x}.seg", segment_of(at)), false).ok()?;
    let bytes = file.read_at(len as usize + 256, offset_of(at).into()).ok()?;
    read_record(&bytes).ok().map(|m| Stored::new(&m))
}

impl World {
    fn new(seed: u64, faults: bool, frees: bool) -> Self {
        let mut r = Random::new(seed);
        let platter = Platter {
            inodes: Vec::new(),
            names: BTreeMap::new(),
            safe_names: BTreeMap::new(),
            unsynced_names: Vec::new(),
            left: usize::MAX,
            dead: false,
            fault_rate: if faults { 6 + r.below(30) } else { 0 },
            r: Random::new(seed ^ 0xd15c),
        };
        let disk = Cut(Arc::new(Mutex::new(platter)));
        let segment_bytes = [1024, 4096, 16384][r.below(3)];
        let writer = Writer::new(Arc::new(disk.clone()), (0, 0), segment_bytes, 0, BTreeMap::new());
        let mut world = Self {
            r,
            disk,
            rules: Rules::default(),
            partitions: Vec::new(),
            writer,
            writing: Vec::new(),
            waiting: Vec::new(),
            checkpoints: Checkpoints::new(PARTITIONS, 1, 0),
            walking: None,
            checkpoint: None,
            incarnation: 0,
            frees,
            freed: false,
            segment_bytes,
            now_ms: 1_000,
            clients: (0..CLIENTS).map(|_| Client::default()).collect(),
            asked: Vec::new(),
            fetches: Vec::new(),
            sessions: BTreeSet::new(),
            ended: BTreeSet::new(),
            used: BTreeSet::new(),
            must: BTreeSet::new(),
            given: BTreeSet::new(),
            released: BTreeSet::new(),
            origins: BTreeMap::new(),
            delivered: BTreeMap::new(),
            padding: 300,
            retained: TOPICS.iter().map(|_| Register::default()).collect(),
            subscriptions: BTreeMap::new(),
            cuts: 0,
            checkpoints_done: 0,
        };
        world.start();
        world
    }

    /// The power is gone; the broker starts, perhaps more than once.
    fn start(&mut self) {
        self.used.extend(self.partitions.iter().flat_map(|p| p.state().each()).map(|(_, s)| s.uid));
        loop {
            self.disk.0.lock().unwrap().power_cut();
            self.cuts += 1;
            if self.r.one_in(3) {
                self.disk.0.lock().unwrap().left = 1 + self.r.below(12);
            }
            self.incarnation += 1;
            let disk: Arc<dyn Storage> = Arc::new(self.disk.clone());
            if let Ok(writer) = Writer::settled(&disk, (PARTITIONS as u32, KEY), self.segment_bytes, 0) {
                self.writer = writer;
                break;
            }
        }
        let (scan, all) = replayed(&self.disk, self.checkpoint);
        assert!(scan.damaged.is_empty(), "nothing was damaged: {:?}", scan.damaged);
        let before = sums(&all);
        if !self.freed {
            let (whole, from_the_beginning) = replayed(&self.disk, None);
            assert!(whole.damaged.is_empty(), "nothing was damaged: {:?}", whole.damaged);
            assert_eq!(before, sums(&from_the_beginning), "checkpoint {:x?}", self.checkpoint);
        }
        self.now_ms = self.now_ms.max(scan.now_ms) + 1;
        let cache = Arc::new(BodyCache::new([0, 600, 1 << 20][self.r.below(3)]));
        self.rules = Rules { cache, ..Rules::default() };
        let resumed = Resumed { incarnation: self.incarnation, last: 0, ended_ms: scan.now_ms, now_ms: self.now_ms };
        self.partitions = (0..)
            .zip(all)
            .map(|(p, (replay, last))| Partition::recovered(p, self.rules.clone(), replay, Resumed { last, ..resumed }))
            .collect();
        let after: Vec<_> = self.partitions.iter().map(|p| sum(p.state())).collect();
        assert_eq!(before, after, "recovered as it was read");
        self.check();
        (self.writing, self.waiting, self.fetches) = (Vec::new(), Vec::new(), Vec::new());
        (self.checkpoints, self.walking) = (Checkpoints::new(PARTITIONS, 1, 0), None);
        for p in 0..PARTITIONS {
            let mut out = Effects::new();
            self.partitions[p].resume_all(resumed, &mut out);
        }
    }

    /// Everything that was promised is there; what is there now is promised from now on.
    fn check(&mut self) {
        let mut there = BTreeSet::new();
        let (mut uids, mut found) = (BTreeSet::new(), BTreeMap::new());
        for p in &self.partitions {
            for (_, s) in p.state().each() {
                uids.insert(s.uid);
                found.extend(
                    TOPICS
                        .iter()
                        .enumerate()
                        .map(|(t, topic)| ((s.uid, t), s.subscriptions.get(*topic).map(|s| u64::from(s.id)))),
                );
                for (index, e) in s.queue.iter().filter(|(_, e)| e.needs_body()) {
                    let latest = self.delivered.get(&(s.uid, Queue::identifier(index)));
                    assert!(
                        latest.is_none_or(|l| *l <= index),
                        "{index} comes again under the identifier of {latest:?}"
                    );
                    let body = fetch(&self.disk, e.at, e.len).unwrap_or_else(|| panic!("no body {index} {:x}", e.at));
                    let key = (s.uid, body_of(body.view().payload));
                    assert!(there.insert(key), "twice in a queue: {key:?}");
                    assert!(!self.released.contains(&key), "released and here again: {key:?}");
                }
            }
        }
        for uid in &self.sessions {
            assert!(uids.contains(uid), "session {:?} was acknowledged", uid_parts(*uid));
        }
        for key in &self.must {
            assert!(there.contains(key), "message {} of session {:?} is lost", key.1, uid_parts(key.0));
        }
        for (key, mut register) in std::mem::take(&mut self.subscriptions) {
            if let Some(value) = found.get(&key) {
                register.found(*value, "subscription");
                self.subscriptions.insert(key, register);
            }
        }
        for (t, topic) in TOPICS.iter().enumerate() {
            let message = self.partitions[t % PARTITIONS].state().retained.get(topic);
            self.retained[t].found(message.map(|m| body_of(m.view().payload)), "retained");
        }
        let partitions = &self.partitions;
        let taken = |uid, n| partitions.iter().any(|p| p.state().taken(Origin { uid, n, answered: 0 }));
        self.origins.retain(|(uid, n), _| taken(*uid, *n));
        self.must = there.difference(&self.given).copied().collect();
        self.sessions = uids;
        self.ended.clear();
        for i in 0..CLIENTS {
            self.check_client(i);
        }
    }

    fn check_client(&mut self, i: usize) {
        let state = self.partitions[i % PARTITIONS].state();
        let session = state.find(&format!("c{i}")).and_then(|slot| state.session(slot));
        let c = &mut self.clients[i];
        if session.map_or(0, |s| s.uid) != c.uid {
            (c.outgoing, c.received) = (BTreeMap::new(), BTreeMap::new());
            c.releasing.clear();
        }
        for (id, (_, _, answered, again)) in &mut c.outgoing {
            let held = session.and_then(|s| s.held.as_ref()).and_then(|h| h.get(*id));
            assert!(held.is_some() || !*answered || c.releasing.contains(id), "identifier {id} is not held any more");
            *again = true;
        }
        c.uid = session.map_or(0, |s| s.uid);
        (c.session, c.connection, c.attaching) = (None, None, false);
        (c.inbox, c.releases, c.pubrels) = (Vec::new(), Vec::new(), BTreeSet::new());
    }
}

/// One broker's life with several ends.
fn life(seed: u64, faults: bool, frees: bool) -> (usize, usize) {
    let mut world = World::new(seed, faults, frees);
    for _ in 0..3 {
        if world.r.below(3) > 0 {
            world.disk.0.lock().unwrap().left = 1 + world.r.below(120);
        }
        for _ in 0..60 + world.r.below(240) {
            world.act();
            if world.dead() {
                break;
            }
        }
        if !world.dead() && world.r.one_in(2) {
            world.quiesce();
        }
        world.start();
    }
    (world.cuts, world.checkpoints_done)
}

fn lives(faults: bool, frees: bool) {
    let number = |name: &str| std::env::var(name).ok().and_then(|s| s.parse::<u64>().ok());
    let seeds = number("ROOST_SEED").map_or(0..number("ROOST_SEEDS").unwrap_or(300), |seed| seed..seed + 1);
    let (mut found, mut done) = (Vec::new(), (0, 0));
    for seed in seeds {
        match std::panic::catch_unwind(|| life(seed, faults, frees)) {
            Ok((cuts, checkpoints)) => done = (done.0 + cuts, done.1 + checkpoints),
            Err(_) => found.push(seed),
        }
    }
    println!("{} cuts, {} checkpoints", done.0, done.1);
    assert!(found.is_empty(), "ROOST_SEED={} fails; all that fail: {found:?}", found[0]);
}

/// Whatever the power cut leaves of unsynced writes and names: everything acknowledged is there, nothing released comes
/// again, nothing is reported as damaged, and the log read from any checkpoint gives the same state as from its beginning.
#[test]
fn nothing_acknowledged_is_lost_in_a_power_cut() {
    lives(false, false);
}

/// The same on a disk that refuses writes, syncs and names at random moments: what could not be written is written again.
#[test]
fn nothing_acknowledged_is_lost_when_the_disk_refuses() {
    lives(true, false);
}

/// The same while checkpoints give segments back and write over them: no body that is still wanted goes with them.
#[test]
fn nothing_acknowledged_is_lost_when_segments_are_freed() {
    lives(false, true);
    lives(true, true);
}

/// An identifier goes to another message only when the acknowledgement of the last one is safe: otherwise that one would
/// come again after a power cut, under an identifier that means something newer to its subscriber.
#[test]
fn an_identifier_waits_for_its_last_acknowledgement() {
    let mut world = World::new(7, false, false);
    world.padding = 1;
    world.one_subscriber();
    world.publish_and_acknowledge(4, true);
    world.publish_and_acknowledge(65_540, false);
    let given = world.given.len();
    assert_eq!(given, 65_535, "as many as there are identifiers, and no more while nothing is safe");
    world.start();
    world.one_subscriber();
    world.publish_and_acknowledge(10, true);
    assert!(world.given.len() > given, "it goes on after the power cut");
}

/// A publisher that repeats an unfinished QoS 2 message on the same connection is answered only when what the first one
/// wrote elsewhere is safe too, although nothing is written for the repeat.
#[test]
fn a_repeat_waits_for_what_it_repeats() {
    let mut world = World::new(7, false, false);
    world.one_subscriber();
    world.bring_online(1);
    world.hold_as(1, 1, 0);
    world.write();
    world.hold_as(1, 1, 0);
    assert!(!world.clients[1].outgoing[&1].2, "the identifier is safe, the message is not");
    world.start();
    world.bring_online(1);
    world.hold_as(1, 1, 0);
    world.quiesce();
    assert!(world.clients[1].outgoing[&1].2 && !world.must.is_empty());
    world.start();
}
