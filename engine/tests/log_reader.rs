//! Bytes that nobody wrote, and bits that turned over: the readers of the log never panic, and what is wrong in the
//! middle of the log is said. `ROOST_SEEDS` makes the run longer, `ROOST_FUZZ_SECONDS` goes on with new seeds,
//! `ROOST_SEED` repeats one; the seed is printed when something is found.

#![allow(clippy::indexing_slicing, clippy::unwrap_used, clippy::panic, missing_docs)]

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use roostmq_engine::channel::{ConnectionId, SessionRef, Token};
use roostmq_engine::codec::{AckKind, QoS, Reason};
use roostmq_engine::log::{Emptied, File, GROUP_HEAD, Piece, Scan, Storage, Walked, Writer, scan, tail};
use roostmq_engine::message::{Head, Inbound, Message, Origin};
use roostmq_engine::partition::{
    Ask, BodyCache, Effect, Effects, Ending, Input, Match, Partition, Rules, Target, Walk,
};
use roostmq_engine::record::{Replay, digest, next_record, read_message, read_record, record_len};
use roostmq_engine::session::{Attach, Subscription, Will};

const ME: ConnectionId = ConnectionId { lane: 0, key: 1, generation: 1 };
const CHECK: (u32, u64) = (1, 7);

/// A small generator of our own, so that a seed says everything.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((self.0 >> 11) % n.max(1) as u64) as usize
    }
}

type Image = BTreeMap<String, Vec<u8>>;

/// A file in memory.
#[derive(Clone, Default)]
struct Bytes(Arc<Mutex<Vec<u8>>>);

/// A folder in memory.
#[derive(Clone, Default)]
struct Memory(Arc<Mutex<BTreeMap<String, Bytes>>>);

impl Memory {
    fn of(image: &Image) -> Self {
        let files = image.iter().map(|(name, bytes)| (name.clone(), Bytes(Arc::new(Mutex::new(bytes.clone())))));
        Self(Arc::new(Mutex::new(files.collect())))
    }

    fn image(&self) -> Image {
        self.0.lock().unwrap().iter().map(|(name, file)| (name.clone(), file.0.lock().unwrap().clone())).collect()
    }
}

impl File for Bytes {
    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        let (mut file, at) = (self.0.lock().unwrap(), at as usize);
        let len = file.len().max(at + bytes.len());
        file.resize(len, 0);
        file[at..at + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn read_at(&self, len: usize, at: u64) -> io::Result<Vec<u8>> {
        let file = self.0.lock().unwrap();
        let bytes = file.get(at as usize..).unwrap_or(&[]);
        Ok(bytes[..len.min(bytes.len())].to_vec())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().unwrap().len() as u64)
    }
}

impl Storage for Memory {
    fn open(&self, name: &str, create: bool) -> io::Result<Box<dyn File>> {
        let mut files = self.0.lock().unwrap();
        if create {
            files.entry(name.to_owned()).or_default();
        }
        Ok(Box::new(files.get(name).ok_or(io::ErrorKind::NotFound)?.clone()))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.0.lock().unwrap().keys().cloned().collect())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut files = self.0.lock().unwrap();
        let file = files.remove(from).ok_or(io::ErrorKind::NotFound)?;
        files.insert(to.to_owned(), file);
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.0.lock().unwrap().remove(name);
        Ok(())
    }

    fn sync_names(&self) -> io::Result<()> {
        Ok(())
    }
}

/// A partition whose every step is one group of a log.
struct Recorder {
    partition: Partition,
    writer: Writer,
    memory: Memory,
    groups: usize,
}

impl Recorder {
    fn step(&mut self, input: Input<'_>) -> Effects {
        let mut out = Effects::new();
        self.partition.step(5_000, input, &mut out);
        self.write(&mut out);
        out
    }

    fn write(&mut self, out: &mut Effects) {
        let Some(batch) = self.partition.take_batch() else { return };
        let piece = Piece { now_ms: 5_000, epoch: 1, batches: vec![batch], ..Piece::default() };
        self.groups += 1;
        for l in self.writer.write(&[piece], 1, true).unwrap() {
            self.partition.step(5_000, Input::Safe { number: l.number, up_to: l.up_to, address: l.address }, out);
        }
    }

    fn attach(&mut self, client_id: &str, expiry_s: u32) -> SessionRef {
        let will = Will {
            topic: "w".into(),
            payload: Box::default(),
            props: Box::default(),
            qos: QoS::AtLeastOnce,
            retain: false,
            expiry_s: Some(3),
            delay_s: 5,
            outlives: false,
        };
        let attach = Attach {
            connection: ME,
            client_id: client_id.into(),
            clean: false,
            expiry_s,
            receive_maximum: 10,
            will: Some(Box::new(will)),
            rules: roostmq_engine::access::Rules::default(),
            username: None,
            maker: 0,
        };
        let effects = self.step(Input::Attach(Box::new(attach)));
        let attached = effects.iter().find_map(|e| match e {
            Effect::Attached { session, .. } => Some(*session),
            _ => None,
        });
        let session = attached.unwrap();
        self.step(Input::Opened { session });
        session
    }

    fn publish(&mut self, session: SessionRef, n: u64) -> u16 {
        let mut head = Head::default();
        (head.qos, head.origin, head.publisher) = (QoS::ExactlyOnce, Origin { uid: 9, n, answered: 0 }, 9);
        let payload = vec![n as u8; 40];
        let inbound = Inbound::new(Message { head, topic: "t", props: &[1, 2], payload: &payload });
        let m = Match { qos: QoS::ExactlyOnce, no_local: false, retain_as_published: true, id: 3 };
        let target = Target { partition: 0, slot: session.slot, group: false, matches: std::iter::once(m).collect() };
        let effects = self.step(Input::Publish { message: &inbound, targets: &[target], token: None });
        let id = effects.iter().find_map(|e| if let Effect::Deliver(d) = e { Some(d.id) } else { None });
        self.step(Input::Retain { message: &inbound, token: None });
        id.unwrap_or(0)
    }
}

/// A log with records of every kind that one partition writes, with a checkpoint in it, in several segments.
fn recorded() -> Recorder {
    let memory = Memory::default();
    let writer = Writer::new(Arc::new(memory.clone()), CHECK, 2048, 0, BTreeMap::new());
    let cache = Arc::new(BodyCache::new(1 << 20));
    let partition = Partition::new(0, Rules { cache, ..Rules::default() }, 1);
    let mut r = Recorder { partition, writer, memory, groups: 0 };
    let (session, other) = (r.attach("c", 600), r.attach("d", 600));
    let mut out = Effects::new();
    for filter in ["t", "a/+", "$share/g/t"] {
        let subscription = Subscription { qos: QoS::ExactlyOnce, id: 3, ..Subscription::default() };
        r.partition.subscribe(5_000, session, &Ask { filter, subscription }, &mut out);
    }
    r.partition.unsubscribe(5_000, session, "a/+", &mut out);
    r.write(&mut out);
    for n in 1..12 {
        let id = r.publish(session, n);
        let token = Token { connection: ME, number: n, ask: 0 };
        r.step(Input::Hold { session: other, id: n as u16, token });
        for kind in [AckKind::Pubrec, AckKind::Pubcomp].into_iter().filter(|_| n % 2 == 0) {
            r.step(Input::Ack { session, connection: ME, kind, id, reason: Reason::SUCCESS });
        }
        r.step(Input::Release { session: other, connection: ME, id: n as u16, answer: true });
    }
    let (mut walk, mut walked) = (Walk::default(), Walked::default());
    while !r.partition.walk(&mut walk, &Emptied::new(), &mut walked, 200) {
        r.write(&mut out);
    }
    r.write(&mut out);
    let ending = Ending { will: true, expiry_s: None };
    r.step(Input::Detach { session: Some(other), client_id: "d", connection: ME, ending });
    r.publish(session, 20);
    r.step(Input::ForgetOrigin { uid: 9 });
    r.publish(session, 21);
    r
}

/// Everything a start reads; the digest of what it read.
fn read(storage: &dyn Storage) -> io::Result<(Scan, u64)> {
    drop(tail(storage)?);
    let mut replay = Replay::new(0);
    let scan = scan(storage, None, Some(CHECK), &mut |_, body, at| {
        let _ = read_message(body);
        replay.record(body, at).map(drop).map_err(|e| e.0)
    })?;
    Ok((scan, digest(&replay.state)))
}

/// The seeds of a run: `ROOST_SEEDS` of them, the same each time; or with `ROOST_FUZZ_SECONDS` new ones for so long.
fn seeds() -> impl Iterator<Item = u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|s| s.parse::<f64>().ok());
    let seconds = number("ROOST_FUZZ_SECONDS");
    let until = Instant::now() + Duration::from_secs_f64(seconds.unwrap_or(0.0));
    let new = if seconds.is_some() { u64::from(std::process::id()) << 20 } else { 0 };
    let (first, count) = match number("ROOST_SEED") {
        Some(seed) => (seed as u64, 1),
        None => (new, number("ROOST_SEEDS").map_or(300, |n| n as u64)),
    };
    (first..).enumerate().take_while(move |(n, _)| (*n as u64) < count || Instant::now() < until).map(|(_, seed)| seed)
}

/// What a bit that turned over does: an error that names the file, a report, or nothing.
fn flip(image: &Image, name: &str, bit: usize, whole: &(Scan, u64), tail: usize) {
    let mut files = image.clone();
    files.get_mut(name).unwrap()[bit / 8] ^= 1 << (bit % 8);
    let Ok((scan, digest)) = read(&Memory::of(&files)) else { return };
    let same = digest == whole.1 && scan.records == whole.0.records;
    let newest = image.keys().next_back().is_some_and(|n| n == name);
    let in_tail = newest && bit / 8 >= tail;
    assert!(same || in_tail || !scan.damaged.is_empty(), "{name} bit {bit} (byte {}): nothing said", bit / 8);
}

/// A bit that turns over in a group that is not the last one is reported as damage, refused, or changes nothing; in the
/// last one it never panics. One bit of every byte of the log is tried.
#[test]
fn a_turned_bit_is_reported() {
    let r = recorded();
    let image = r.memory.image();
    let whole = read(&r.memory).unwrap();
    assert!(whole.0.damaged.is_empty() && whole.0.torn.is_none() && whole.0.end == r.writer.end());
    assert_eq!(whole.1, digest(r.partition.state()), "the log says what the partition is");
    assert!(image.len() > 2 && r.groups > 20, "{} segments, {} groups", image.len(), r.groups);
    let tail = tail(&r.memory).unwrap().end as u32 as usize;
    let seed = seeds().next().unwrap();
    for (name, bytes) in &image {
        let used = bytes.len() - bytes.iter().rev().take_while(|b| **b == 0).count();
        let mut random = Random::new(seed ^ bytes.len() as u64);
        for byte in 0..used {
            flip(&image, name, byte * 8 + random.below(8), &whole, tail);
        }
    }
}

/// Bytes that nobody wrote, alone or in the middle of a log, with sound checks around them or not: no reader panics.
#[test]
fn any_bytes_are_read_without_a_panic() {
    let image = recorded().memory.image();
    let all: Vec<u8> = image.values().flatten().copied().collect();
    for seed in seeds() {
        let run = || {
            let mut r = Random::new(seed);
            let mut bytes: Vec<u8> = (0..r.below(400)).map(|_| r.below(256) as u8).collect();
            let (from, len) = (r.below(all.len()), r.below(300));
            bytes.extend_from_slice(&all[from..(from + len).min(all.len())]);
            readers(&bytes);
            let mut files = image.clone();
            let name = image.keys().nth(r.below(image.len())).unwrap();
            let file = files.get_mut(name).unwrap();
            match r.below(3) {
                0 => file.truncate(r.below(file.len())),
                1 => drop(file.splice(r.below(200)..200, bytes)),
                _ => *file = bytes,
            }
            let _ = read(&Memory::of(&files));
        };
        assert!(std::panic::catch_unwind(run).is_ok(), "seed {seed}");
    }
}

fn readers(bytes: &[u8]) {
    let mut rest = bytes;
    while let Ok(Some((body, _))) = next_record(&mut rest) {
        let _ = read_message(body);
    }
    let _ = (record_len(bytes), read_record(bytes), read_message(bytes));
    for kind in 0..32 {
        let mut replay = Replay::new(0);
        let mut body = bytes.to_vec();
        if let Some(first) = body.first_mut() {
            *first = kind;
        }
        let _ = replay.record(&body, 64);
    }
}

/// Bodies of records that were written, with bytes changed under a sound CRC: `Replay` takes or refuses them, and what it
/// has taken can be looked at.
#[test]
fn changed_records_are_taken_or_refused() {
    let recorder = recorded();
    let mut bodies: Vec<(Vec<u8>, u64)> = Vec::new();
    scan(&recorder.memory, None, Some(CHECK), &mut |_, body, at| {
        bodies.push((body.to_vec(), at));
        Ok(())
    })
    .unwrap();
    for seed in seeds() {
        let run = || {
            let mut r = Random::new(seed);
            let mut replay = Replay::new(0);
            for (body, at) in &bodies {
                let mut body = body.clone();
                if r.below(4) == 0 {
                    let place = r.below(body.len());
                    body[place] = [0, 1, 0x7f, 0x80, 0xff, body[place] ^ 1][r.below(6)];
                }
                let _ = replay.record(&body, *at);
                let _ = replay.record(&body, *at);
            }
            let _ = digest(&replay.state);
        };
        assert!(std::panic::catch_unwind(run).is_ok(), "seed {seed}");
    }
}

/// A torn write over an older group may leave an older record in the place of a new one, with a sound CRC of its own: at
/// the end of the log the group is torn, in the middle it is damaged; the older record is never taken for the new one.
#[test]
fn a_record_of_an_older_group_is_not_taken() {
    let mut r = recorded();
    let retain = |r: &mut Recorder, n: u8| {
        let mut head = Head::default();
        (head.qos, head.publisher) = (QoS::AtLeastOnce, 9);
        let payload = [n; 40];
        let message = Inbound::new(Message { head, topic: "r", props: &[], payload: &payload });
        r.step(Input::Retain { message: &message, token: None });
        (r.writer.end(), digest(r.partition.state()), r.memory.image())
    };
    let mut ends: Vec<(u64, u64, Image)> = vec![retain(&mut r, 0)];
    // until four groups in a row lie in one segment
    while ends.len() < 4 {
        let next = retain(&mut r, ends.len() as u8);
        if ends.last().is_some_and(|last| last.0 >> 32 != next.0 >> 32) {
            ends.clear();
        }
        ends.push(next);
    }
    let offset = |n: usize| ends[n].0 as u32 as usize;
    let (older, newer, len) = (offset(0) + GROUP_HEAD + 24, offset(1) + GROUP_HEAD + 24, offset(1) - offset(0));
    let name = format!("{:016x}.seg", ends[0].0 >> 32);
    let torn = |mut image: Image| {
        let bytes = image.get_mut(&name).unwrap();
        bytes.copy_within(older..offset(0) + len, newer);
        read(&Memory::of(&image)).unwrap()
    };
    let (scan, digest) = torn(ends[2].2.clone());
    assert!(scan.torn.is_some() && scan.damaged.is_empty());
    assert_eq!(digest, ends[1].1, "as it was before the group");
    let (scan, digest) = torn(ends[3].2.clone());
    assert!(scan.torn.is_none() && !scan.damaged.is_empty());
    assert_eq!(digest, ends[3].1, "what came after it counts");
}
