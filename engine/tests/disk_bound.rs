//! The log takes as much of the disk as `docs/guide/durability.md` says, however long messages come and go: three times
//! what is wanted, twice a checkpoint, and eight segments; a little more while a checkpoint is being written.

#![allow(clippy::indexing_slicing, clippy::unwrap_used, clippy::panic, missing_docs)]
#![allow(dead_code, reason = "the disk can do more than is asked of it here")]

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use roostmq_engine::channel::{ConnectionId, SessionRef};
use roostmq_engine::codec::{AckKind, QoS, Reason};
use roostmq_engine::log::{
    Checkpoints, Directory, DiskLog, Emptied, File, Identity, LogEvent, Options, Piece, Storage, Walked, Writer,
    offset_of, segment_of,
};
use roostmq_engine::message::{Head, Inbound, Message, Stored};
use roostmq_engine::partition::{
    Body, BodyCache, Effect, Effects, Ending, Input, Match, Partition, Rules, Target, Walk,
};
use roostmq_engine::record::read_record;
use roostmq_engine::session::{Attach, NEVER};

include!("power_cut/disk.rs");

const SEGMENT_BYTES: u64 = 8192;
/// As `docs/guide/durability.md` has them.
const FACTOR: u64 = 3;
const CHECKPOINTS: u64 = 2;
const SEGMENTS: u64 = 8;
/// What a message counts beside topic, properties and payload.
const OVERHEAD: u64 = 32;
/// What may come on top while a checkpoint is being written, in segments: a bound of this test's traffic.
const MEANWHILE: u64 = 4;

/// One partition with its log.
struct Site {
    folder: PathBuf,
    disk: Cut,
    log: DiskLog,
    events: Receiver<(u16, LogEvent)>,
    tended: Arc<AtomicUsize>,
    partition: Partition,
    rules: Rules,
    sessions: Vec<(SessionRef, ConnectionId)>,
    inbox: VecDeque<(usize, u16)>,
    fetches: Vec<(SessionRef, Vec<roostmq_engine::log::Wanted>)>,
    /// Bytes of the largest checkpoint.
    checkpoint: u64,
    checkpoints: usize,
    most: u64,
}

impl Site {
    fn new(name: &str) -> Self {
        let platter = Platter {
            inodes: Vec::new(),
            names: BTreeMap::new(),
            safe_names: BTreeMap::new(),
            unsynced_names: Vec::new(),
            left: usize::MAX,
            dead: false,
            fault_rate: 0,
            r: Random::new(1),
        };
        let disk = Cut(Arc::new(Mutex::new(platter)));
        let folder = std::env::temp_dir().join(format!("roost-bound-{name}-{}", std::process::id()));
        let directory = Directory::open(&folder).unwrap();
        let identity = Identity::new(1, "7".to_owned());
        directory.set_identity(&identity).unwrap();
        let (sender, events) = channel();
        let tended = Arc::new(AtomicUsize::new(0));
        let rules = Rules { cache: Arc::new(BodyCache::new(10_000)), ..Rules::default() };
        let (tends, queued) = (Arc::clone(&tended), Arc::clone(&rules.queued));
        let options = Options {
            sync_every_ms: 0,
            lanes: 1,
            notify: Arc::new(move |lane, event| drop(sender.send((lane, event)))),
            report: Arc::new(|_| {}),
            tend: Arc::new(move || {
                tends.fetch_add(1, Ordering::Relaxed);
                queued.totals().1 as u64
            }),
            failing: Arc::new(AtomicBool::new(false)),
            settling: Arc::new(AtomicBool::new(false)),
        };
        let writer = Writer::new(Arc::new(disk.clone()), (1, 7), SEGMENT_BYTES as u32, 0, BTreeMap::new());
        let checkpoints = Checkpoints::new(1, 2 * SEGMENT_BYTES, 0).with_slack(SEGMENTS * SEGMENT_BYTES);
        let log = DiskLog::start(writer, checkpoints, directory, identity, options).unwrap();
        let partition = Partition::new(0, rules.clone(), 1);
        let (sessions, inbox, fetches) = (Vec::new(), VecDeque::new(), Vec::new());
        let (checkpoint, checkpoints, most) = (0, 0, 0);
        Self {
            folder,
            disk,
            log,
            events,
            tended,
            partition,
            rules,
            sessions,
            inbox,
            fetches,
            checkpoint,
            checkpoints,
            most,
        }
    }

    fn step(&mut self, input: Input<'_>) {
        let mut out = Effects::new();
        self.partition.step(1_000, input, &mut out);
        for effect in out {
            match effect {
                Effect::Attached { session, .. } => {
                    self.step(Input::Opened { session });
                }
                Effect::Deliver(d) => {
                    assert!(matches!(d.body, Body::Current | Body::Stored(_)));
                    self.inbox.push_back((d.connection.key as usize, d.id));
                }
                Effect::Fetch { session, wanted } => self.fetches.push((session, wanted)),
                Effect::Again { session } => self.step(Input::Resume { session }),
                _ => {}
            }
        }
    }

    fn attach(&mut self, name: usize) {
        let connection = ConnectionId { lane: 0, key: name as u32, generation: 1 };
        let attach = Attach {
            connection,
            client_id: format!("c{name}").into(),
            clean: false,
            expiry_s: NEVER,
            receive_maximum: 20,
            will: None,
            rules: roostmq_engine::access::Rules::default(),
            username: None,
            maker: 0,
        };
        self.step(Input::Attach(Box::new(attach)));
        self.look();
        let slot = self.partition.state().find(&format!("c{name}")).unwrap();
        let session = SessionRef { partition: 0, slot, uid: self.partition.state().session(slot).unwrap().uid };
        self.sessions.retain(|s| s.1 != connection);
        self.sessions.push((session, connection));
    }

    fn detach(&mut self, at: usize) {
        let (session, connection) = self.sessions[at];
        let client_id = format!("c{}", connection.key);
        let (client_id, ending) = (&*client_id, Ending::default());
        self.step(Input::Detach { session: Some(session), client_id, connection, ending });
        self.inbox.retain(|(key, _)| *key != connection.key as usize);
    }

    fn publish(&mut self, to: &[usize], bytes: usize) {
        let mut head = Head::default();
        (head.qos, head.publisher) = (QoS::AtLeastOnce, 9);
        let payload = vec![1; bytes];
        let message = Inbound::new(Message { head, topic: "t", props: &[], payload: &payload });
        let m = Match { qos: QoS::AtLeastOnce, no_local: false, retain_as_published: false, id: 0 };
        let target = |at: &usize| Target {
            partition: 0,
            slot: self.sessions[*at].0.slot,
            group: false,
            matches: std::iter::once(m).collect(),
        };
        let targets: Vec<Target> = to.iter().map(target).collect();
        self.step(Input::Publish { message: &message, targets: &targets, token: None });
    }

    /// Whoever is connected acknowledges what came.
    fn acknowledge(&mut self) {
        while let Some((key, id)) = self.inbox.pop_front() {
            let (session, connection) = *self.sessions.iter().find(|s| s.1.key as usize == key).unwrap();
            let (kind, reason) = (AckKind::Puback, Reason::SUCCESS);
            self.step(Input::Ack { session, connection, kind, id, reason });
        }
        for (session, wanted) in std::mem::take(&mut self.fetches) {
            let bodies = wanted.iter().map(|w| (w.index, w.at, self.body(w.at, w.len))).collect();
            self.step(Input::Fetched { session, bodies });
        }
    }

    fn body(&self, at: u64, len: u32) -> Option<Stored> {
        let file = self.disk.open(&format!("{:016x}.seg", segment_of(at)), false).ok()?;
        let bytes = file.read_at(len as usize + 256, offset_of(at).into()).ok()?;
        let message = read_record(&bytes).unwrap_or_else(|e| panic!("a wanted body at {at:x}: {e:?}"));
        Some(Stored::new(&message))
    }

    fn hand_over(&mut self, walked: Option<Walked>) {
        let batches: Vec<_> = self.partition.take_batch().into_iter().collect();
        self.log.append(Piece { lane: 0, now_ms: 1_000, epoch: 1, batches, walked });
    }

    fn listen(&mut self) -> bool {
        let Ok((_, event)) = self.events.recv_timeout(Duration::from_millis(1)) else { return false };
        match event {
            LogEvent::Safe(located) => {
                for l in located {
                    self.step(Input::Safe { number: l.number, up_to: l.up_to, address: l.address });
                }
            }
            LogEvent::Walk(number, emptied) => self.walk(number, &emptied),
            LogEvent::Fetched { .. } => {}
        }
        true
    }

    fn walk(&mut self, number: u64, emptied: &Emptied) {
        self.hand_over(None);
        let (mut walk, mut walked) = (Walk::default(), Walked { number, ..Walked::default() });
        while !self.partition.walk(&mut walk, emptied, &mut walked, 1 << 20) {}
        self.checkpoint = self.checkpoint.max(self.partition.journal().bytes() as u64);
        self.checkpoints += 1;
        self.hand_over(Some(walked));
    }

    /// Everything is written, and the log has done what it wants to do about it; then it is measured.
    fn look(&mut self) {
        for _ in 0..2 {
            self.hand_over(None);
            let looks = self.tended.load(Ordering::Relaxed);
            while self.log.waiting() > 0 || self.tended.load(Ordering::Relaxed) == looks || self.listen() {
                self.listen();
            }
        }
        self.most = self.most.max(self.on_disk());
    }

    fn on_disk(&self) -> u64 {
        let names = self.disk.list().unwrap();
        // the log may have given one back since they were listed
        names.iter().filter_map(|name| self.disk.open(name, false).ok()).map(|file| file.len().unwrap()).sum()
    }

    fn wanted(&self) -> u64 {
        let queues = self.partition.state().each().flat_map(|(_, s)| s.queue.iter());
        queues.filter(|(_, e)| e.needs_body()).map(|(_, e)| u64::from(e.len) + OVERHEAD).sum()
    }

    /// The promise, with so many segments more.
    fn is_bounded(&self, more: u64, when: &str) {
        let (now, wanted) = (self.on_disk(), self.wanted());
        let bound = FACTOR * wanted + CHECKPOINTS * self.checkpoint + (SEGMENTS + more) * SEGMENT_BYTES;
        assert!(now <= bound, "{when}: {now} bytes, {wanted} are wanted, a checkpoint has {}", self.checkpoint);
        assert_eq!(self.rules.queued.totals().1 as u64, wanted - OVERHEAD * self.messages(), "counted as it is");
    }

    fn messages(&self) -> u64 {
        let queues = self.partition.state().each().flat_map(|(_, s)| s.queue.iter());
        queues.filter(|(_, e)| e.needs_body()).count() as u64
    }

    fn written(&self) -> u64 {
        self.log.stats.bytes_written.load(Ordering::Relaxed)
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.log.close();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// Messages come and go at once, and hardly any is wanted for long.
#[test]
fn what_is_gone_takes_no_room() {
    let mut site = Site::new("gone");
    site.attach(0);
    for n in 0..3_000 {
        site.publish(&[0], 100 + n * 37 % 400);
        site.acknowledge();
        if n % 25 == 0 {
            site.look();
            site.is_bounded(MEANWHILE, "while they come");
        }
    }
    assert!(site.written() > 20 * site.most && site.checkpoints > 20, "there was something to free");
}

/// One message in twenty stays for a session that is away: no segment is empty, most of each is dead.
#[test]
fn few_that_stay_do_not_keep_the_rest() {
    let mut site = Site::new("few");
    (0..2).for_each(|n| site.attach(n));
    site.detach(1);
    for n in 0..3_000 {
        let to: &[usize] = if n % 20 == 0 { &[0, 1] } else { &[0] };
        site.publish(to, 100 + n * 37 % 400);
        site.acknowledge();
        if n % 25 == 0 {
            site.look();
            site.is_bounded(MEANWHILE, "while they come");
        }
    }
    assert!(site.messages() >= 150 && site.written() > 4 * site.most, "{} of {}", site.most, site.written());
}

/// A backlog that is fetched by its client goes from the disk, and while it waits it takes no more than it may.
#[test]
fn a_backlog_goes_with_its_messages() {
    let mut site = Site::new("backlog");
    (0..3).for_each(|n| site.attach(n));
    for round in 0..3 {
        site.detach(1);
        for n in 0..1_000 {
            site.publish(&[1], 100 + n * 37 % 400);
            site.publish(&[0, 2], 50);
            site.acknowledge();
            if n % 25 == 0 {
                site.look();
                site.is_bounded(MEANWHILE, "while it grows");
            }
        }
        let grown = site.on_disk();
        assert!(site.messages() >= 1_000, "round {round}");
        site.attach(1);
        site.sessions.sort_by_key(|s| s.1.key);
        while site.messages() > 0 {
            site.acknowledge();
            site.look();
        }
        site.look();
        site.is_bounded(0, "after it has gone");
        assert!(site.on_disk() < grown / 2, "round {round}: {} of {grown}", site.on_disk());
    }
}
