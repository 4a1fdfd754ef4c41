//! The thread of the log on a disk that forgets, tears and refuses: what it says is safe is there after a power cut, and
//! no segment goes before the directory names the checkpoint that makes it superfluous. `ROOST_SEEDS` makes it longer.

#![allow(clippy::indexing_slicing, clippy::unwrap_used, clippy::panic, missing_docs)]

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use roostmq_engine::codec::QoS;
use roostmq_engine::log::{
    Checkpoints, Directory, DiskLog, Emptied, File, Identity, LogEvent, Options, Piece, Storage, Walked, Writer, scan,
};
use roostmq_engine::message::{Head, Inbound, Message};
use roostmq_engine::partition::{BodyCache, Effects, Input, Partition, Rules, Walk};

include!("power_cut/disk.rs");

const LANES: usize = 2;
const CHECK: (u32, u64) = (LANES as u32, 7);
const SEGMENT_BYTES: u32 = 1024;

/// The log's thread with two lanes of one partition each, in a folder that goes with it.
struct Site {
    folder: PathBuf,
    disk: Cut,
    failing: Arc<AtomicBool>,
    settling: Arc<AtomicBool>,
    log: DiskLog,
    events: Receiver<(u16, LogEvent)>,
    tended: Arc<AtomicUsize>,
    partitions: Vec<Partition>,
    /// Last record of each partition that was said to be safe.
    safe: Vec<u64>,
}

impl Site {
    fn new(name: &str, seed: u64, fault_rate: usize) -> Self {
        let platter = Platter {
            inodes: Vec::new(),
            names: BTreeMap::new(),
            safe_names: BTreeMap::new(),
            unsynced_names: Vec::new(),
            left: usize::MAX,
            dead: false,
            fault_rate,
            r: Random::new(seed),
        };
        let disk = Cut(Arc::new(Mutex::new(platter)));
        let folder = std::env::temp_dir().join(format!("roost-log-{name}-{}-{seed}", std::process::id()));
        let directory = Directory::open(&folder).unwrap();
        let identity = Identity::new(LANES as u32, "7".to_owned());
        directory.set_identity(&identity).unwrap();
        let (sender, events) = channel();
        let tended = Arc::new(AtomicUsize::new(0));
        let tends = Arc::clone(&tended);
        let [failing, settling] = [(); 2].map(|()| Arc::new(AtomicBool::new(false)));
        let options = Options {
            sync_every_ms: 0,
            lanes: LANES,
            notify: Arc::new(move |lane, event| drop(sender.send((lane, event)))),
            report: Arc::new(|_| {}),
            tend: Arc::new(move || {
                tends.fetch_add(1, Ordering::Relaxed);
                0
            }),
            failing: Arc::clone(&failing),
            settling: Arc::clone(&settling),
        };
        let writer = Writer::new(Arc::new(disk.clone()), CHECK, SEGMENT_BYTES, 0, BTreeMap::new());
        let checkpoints = Checkpoints::new(LANES, 4 * u64::from(SEGMENT_BYTES), 0);
        let log = DiskLog::start(writer, checkpoints, directory, identity, options).unwrap();
        let rules = Rules { cache: Arc::new(BodyCache::new(1 << 20)), ..Rules::default() };
        let partitions = (0..LANES as u16).map(|p| Partition::new(p, rules.clone(), 1)).collect();
        Self { folder, disk, failing, settling, log, events, tended, partitions, safe: vec![0; LANES] }
    }

    /// One retained message more in this partition, handed over.
    fn write(&mut self, lane: usize, n: usize) {
        let mut head = Head::default();
        (head.qos, head.retain, head.publisher) = (QoS::AtLeastOnce, true, 9);
        let (topic, payload) = (format!("t/{}", n % 5), vec![1; 20 + n * 31 % 200]);
        let message = Inbound::new(Message { head, topic: &topic, props: &[], payload: &payload });
        self.partitions[lane].step(1_000, Input::Retain { message: &message, token: None }, &mut Effects::new());
        self.hand_over(lane, None);
    }

    fn hand_over(&mut self, lane: usize, walked: Option<Walked>) {
        let batches = self.partitions[lane].take_batch().into_iter().collect();
        self.log.append(Piece { lane: lane as u16, now_ms: 1_000, epoch: 1, batches, walked });
    }

    /// Takes what the log says; a checkpoint is written at once, if at all. False when nothing more comes.
    fn listen(&mut self, walks: bool) -> bool {
        let Ok((lane, event)) = self.events.recv_timeout(Duration::from_millis(1)) else { return false };
        match event {
            LogEvent::Safe(located) => {
                for l in located {
                    let safe = &mut self.safe[usize::from(l.partition)];
                    *safe = l.up_to.max(*safe);
                }
            }
            LogEvent::Walk(number, _) if walks => {
                let (mut walk, mut walked) = (Walk::default(), Walked { number, ..Walked::default() });
                let p = &mut self.partitions[usize::from(lane)];
                while !p.walk(&mut walk, &Emptied::new(), &mut walked, 1 << 20) {}
                self.hand_over(lane.into(), Some(walked));
            }
            _ => {}
        }
        true
    }

    /// Waits until the thread has looked after everything that it has been told.
    fn settle(&mut self, walks: bool) {
        while self.log.waiting() > 0 || self.listen(walks) {
            self.listen(walks);
        }
        for _ in 0..2 {
            let looks = self.tended.load(Ordering::Relaxed);
            self.log.append(Piece::default());
            while self.tended.load(Ordering::Relaxed) == looks {
                self.listen(walks);
            }
        }
    }

    fn segments(&self) -> BTreeSet<String> {
        self.disk.list().unwrap().into_iter().filter(|name| name.ends_with(".seg")).collect()
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.log.close();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn identity(folder: &Path) -> Identity {
    Directory::identity_at(folder).unwrap().unwrap()
}

/// One life, ended by a power cut in the middle of some operation.
fn life(seed: u64) {
    let mut r = Random::new(seed);
    let fault_rate = if r.one_in(4) { 40 } else { 0 };
    let mut site = Site::new("cut", seed, fault_rate);
    site.disk.0.lock().unwrap().left = 1 + r.below(150);
    for n in 0..100 {
        site.write(r.below(LANES), n);
        while r.one_in(2) && site.listen(true) {}
        if site.disk.0.lock().unwrap().dead {
            break;
        }
    }
    site.log.close();
    while site.listen(false) {}
    site.disk.0.lock().unwrap().fault_rate = 0;
    site.disk.0.lock().unwrap().power_cut();
    let mut last = vec![0; LANES];
    let from = identity(&site.folder).checkpoint;
    let disk: Arc<dyn Storage> = Arc::new(site.disk.clone());
    drop(Writer::settled(&disk, CHECK, SEGMENT_BYTES, 0).unwrap());
    let found = scan(&site.disk, from, Some(CHECK), &mut |head, _, _| {
        let last: &mut u64 = &mut last[usize::from(head.partition)];
        *last = (*last).max(head.first + u64::from(head.count) - 1);
        Ok(())
    });
    assert!(found.unwrap().damaged.is_empty());
    assert!(last.iter().zip(&site.safe).all(|(l, s)| l >= s), "{last:?} is left, {:?} was said to be safe", site.safe);
}

/// A lane is told that a record is safe: it is there whatever the power cut leaves of what was not synced.
#[test]
fn what_was_said_to_be_safe_is_there() {
    let seeds = std::env::var("ROOST_SEEDS").ok().and_then(|s| s.parse().ok()).unwrap_or(40);
    let found: Vec<u64> = (0..seeds).filter(|s| std::panic::catch_unwind(|| life(*s)).is_err()).collect();
    assert!(found.is_empty(), "seeds that fail: {found:?}");
}

/// `roost.json` cannot be written: every segment stays. When it can, the next checkpoint frees them.
#[test]
fn nothing_is_freed_before_the_directory_names_the_checkpoint() {
    let mut site = Site::new("named", 1, 0);
    let aside = site.folder.with_extension("aside");
    (0..10).for_each(|n| site.write(n % LANES, n));
    site.settle(true);
    std::fs::rename(&site.folder, &aside).unwrap();
    let before = identity(&aside).checkpoint;
    let segments = site.segments();
    for n in 0..60 {
        site.write(n % LANES, n);
        site.settle(true);
    }
    assert_eq!(identity(&aside).checkpoint, before, "it could not be written");
    let lost: Vec<_> = segments.difference(&site.segments()).cloned().collect();
    assert!(lost.is_empty(), "{lost:?} went, and a start from {before:x?} needs them");
    std::fs::rename(&aside, &site.folder).unwrap();
    for n in 0..60 {
        site.write(n % LANES, n);
        site.settle(true);
    }
    assert!(identity(&site.folder).checkpoint > before, "it is written again");
    assert!(segments.is_disjoint(&site.segments()), "and frees what lies before it");
}

/// A disk that takes again: first nobody is read for a while, so that every lane hears of every message that was refused, then
/// messages are accepted again. A refusal in between begins that anew.
#[test]
fn trouble_ends_some_time_after_the_disk_takes_again() {
    let mut site = Site::new("sure", 1, 1);
    let [failing, settling] = [Arc::clone(&site.failing), Arc::clone(&site.settling)];
    let begun = Instant::now();
    let until = |flag: &AtomicBool, value: bool| {
        while flag.load(Ordering::Relaxed) != value {
            assert!(begun.elapsed() < Duration::from_secs(30), "it never comes to that");
            std::thread::yield_now();
        }
    };
    site.write(0, 1);
    until(&failing, true);
    assert!(!settling.load(Ordering::Relaxed), "clients are read, and told that the disk refuses");
    site.disk.0.lock().unwrap().fault_rate = 0;
    until(&settling, true);
    let takes_again = Instant::now();
    assert!(failing.load(Ordering::Relaxed));
    until(&failing, false);
    assert!(takes_again.elapsed() >= Duration::from_millis(80), "{:?}", takes_again.elapsed());
    until(&settling, false);
    while site.safe[0] == 0 {
        site.listen(false);
    }
}
