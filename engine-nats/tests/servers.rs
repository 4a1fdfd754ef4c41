//! Promise 2 (an acknowledgement means something) on real nats-servers: leaders killed, servers paused, owners that follow
//! each other while the older one goes on writing. Every acknowledged append is there afterwards, once, in order.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{Heard, Servers, batch, leaders, options};
use roostmq_engine::log::{Anchor, ClusterLog, ClusterLogEvent, Fence};
use roostmq_engine_nats::log::NatsLog;

const STREAMS: u16 = 4;
const PARTITIONS: u16 = 8;

/// One owner of all partitions in one epoch.
struct Owner {
    log: NatsLog,
    heard: Arc<Heard>,
    epoch: u64,
    /// By partition: next index and next number.
    at: HashMap<u16, (u64, u64)>,
    /// Batches handed over by partition; the record of each says epoch, partition and number.
    sent: HashMap<u16, u64>,
}

fn id(epoch: u64, p: u16, number: u64) -> u64 {
    epoch << 48 | u64::from(p) << 32 | number
}

impl Owner {
    fn start(servers: &Servers, epoch: u64) -> Self {
        let heard = Heard::new();
        let log = NatsLog::start(options(servers.access(), STREAMS, heard.notify())).unwrap();
        for partition in 0..PARTITIONS {
            log.fence(Fence { partition, epoch: epoch as u32, ..Fence::default() });
        }
        Self { log, heard, epoch, at: HashMap::new(), sent: HashMap::new() }
    }

    /// Hands over a batch for each partition that may take one and has not too many under way.
    fn write(&mut self) {
        let events = self.heard.all();
        for p in 0..PARTITIONS {
            let fenced = events.iter().find_map(|e| match e {
                ClusterLogEvent::Fenced { partition, next, .. } if *partition == p => Some(*next),
                _ => None,
            });
            let gone =
                events.iter().any(|e| matches!(e, ClusterLogEvent::Resigned { partition, .. } if *partition == p));
            let Some(next) = fenced.filter(|_| !gone) else { continue };
            let safe = self.heard.safe(p).len() as u64;
            let (first, number) = self.at.entry(p).or_insert((next, 0));
            while *number < safe + 20 {
                self.log.append(batch(p, *number, *first, id(self.epoch, p, *number)));
                *first += 1;
                *number += 1;
            }
            self.sent.insert(p, *number);
        }
    }
}

fn check(acked: &HashMap<u16, Vec<u64>>, found: &HashMap<u16, Vec<u64>>) -> usize {
    let mut count = 0;
    for (p, acked) in acked {
        let there = &found[p];
        let mut once = there.clone();
        once.sort_unstable();
        once.dedup();
        assert_eq!(once.len(), there.len(), "partition {p}: doubled");
        let set: HashSet<u64> = acked.iter().copied().collect();
        let kept: Vec<_> = there.iter().filter(|r| set.contains(r)).copied().collect();
        assert_eq!(&kept, acked, "partition {p}: lost or out of order");
        count += acked.len();
    }
    count
}

/// The first reading of a partition's whole log by somebody new.
fn read_all(servers: &Servers) -> HashMap<u16, Vec<u64>> {
    let heard = Heard::new();
    let log = NatsLog::start(options(servers.access(), STREAMS, heard.notify())).unwrap();
    heard.ready();
    for p in 0..PARTITIONS {
        log.read(p, Anchor::default());
    }
    let all = (0..PARTITIONS).map(|p| {
        heard
            .event("the end of a read", |e| matches!(e, ClusterLogEvent::ReadEnd { partition, .. } if *partition == p));
        (p, heard.read(p))
    });
    let all = all.collect();
    assert!(!heard.all().iter().any(|e| matches!(e, ClusterLogEvent::Damaged { .. })));
    all
}

/// Seconds of faults; more for a longer look: `ROOST_NATS_SECONDS`.
fn seconds() -> u64 {
    std::env::var("ROOST_NATS_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(24)
}

#[test]
fn kills_pauses_and_takeovers_lose_nothing() {
    let Some(mut servers) = Servers::new("faults", 3, "sync_interval: always", "") else { return };
    servers.start_all();
    let mut owners = vec![Owner::start(&servers, 1)];
    owners[0].heard.ready();
    for p in 0..PARTITIONS {
        owners[0].heard.fenced(p);
    }
    let (begin, mut steps, mut step, mut broken) = (Instant::now(), 0_u64, 0_u64, None);
    let mut next = begin + Duration::from_secs(2);
    while begin.elapsed() < Duration::from_secs(seconds()) {
        owners.iter_mut().for_each(Owner::write);
        std::thread::sleep(Duration::from_millis(20));
        if Instant::now() < next {
            continue;
        }
        next = Instant::now() + Duration::from_secs(3);
        steps += 1;
        let mended = broken.take();
        step += u64::from(mended.is_none());
        match (mended, step % 4) {
            (Some((n, true)), _) => servers.start(n),
            (Some((n, false)), _) => servers.signal(n, "CONT"),
            (None, 1) => {
                let leader = leaders(&servers, STREAMS).get(&((steps % 4) as u16)).and_then(|l| l[1..].parse().ok());
                let n = leader.unwrap_or(0);
                servers.kill(n);
                broken = Some((n, true));
            }
            // the older owner does not know of it and goes on
            (None, 0 | 2) if owners.len() < 6 => owners.push(Owner::start(&servers, owners.len() as u64 + 1)),
            (None, _) => {
                let n = (steps % 3) as usize;
                servers.signal(n, "STOP");
                broken = Some((n, false));
            }
        }
    }
    match broken {
        Some((n, true)) => servers.start(n),
        Some((n, false)) => servers.signal(n, "CONT"),
        None => {}
    }
    let last = owners.last_mut().unwrap();
    for p in 0..PARTITIONS {
        last.heard.fenced(p);
    }
    last.write();
    for (p, sent) in last.sent.clone() {
        last.heard.wait("every batch of the last owner", |events| {
            let safe = |e: &&ClusterLogEvent| matches!(e, ClusterLogEvent::Safe { partition, .. } if *partition == p);
            (events.iter().filter(safe).count() as u64 == sent).then_some(())
        });
    }
    let mut acked: HashMap<u16, Vec<u64>> = HashMap::new();
    for owner in &owners {
        for p in 0..PARTITIONS {
            let safe = owner.heard.safe(p).into_iter().map(|number| id(owner.epoch, p, number));
            acked.entry(p).or_default().extend(safe);
        }
        let damaged = owner.heard.all().into_iter().find(|e| matches!(e, ClusterLogEvent::Damaged { .. }));
        assert_eq!(damaged, None, "damage where there is none");
    }
    let count = owners.len();
    let heard: Vec<_> = owners.iter().map(|o| Arc::clone(&o.heard)).collect();
    drop(owners);
    let total = check(&acked, &read_all(&servers));
    for (older, heard) in heard.iter().enumerate().take(count - 1) {
        let resigned = heard.all().iter().filter(|e| matches!(e, ClusterLogEvent::Resigned { .. })).count();
        eprintln!("owner {}: resigned from {resigned} of {PARTITIONS}", older + 1);
    }
    eprintln!("{total} acknowledged appends of {count} owners, {steps} steps of faults");
    assert!(total > 100);
}

/// Absent at the start, and all of them restarted: said, retried, and it goes on without a hand on it.
#[test]
fn servers_that_come_late_or_again() {
    let Some(mut servers) = Servers::new("late", 3, "sync_interval: always", "") else { return };
    let mut owner = Owner::start(&servers, 1);
    owner.heard.event("that nobody is there", |e| {
        matches!(e, ClusterLogEvent::State(roostmq_engine::log::ClusterLogState::Away(_)))
    });
    servers.start_all();
    owner.heard.ready();
    for p in 0..PARTITIONS {
        owner.heard.fenced(p);
    }
    owner.write();
    for p in 0..PARTITIONS {
        let sent = owner.sent[&p] as usize;
        owner.heard.wait("the first batches", |events| {
            let safe = |e: &&ClusterLogEvent| matches!(e, ClusterLogEvent::Safe { partition, .. } if *partition == p);
            (events.iter().filter(safe).count() >= sent).then_some(())
        });
    }
    let told = owner.heard.all().len();
    servers.kill_all();
    owner.write();
    owner.heard.wait("that they are gone", |events| {
        let away =
            |e: &ClusterLogEvent| matches!(e, ClusterLogEvent::State(roostmq_engine::log::ClusterLogState::Away(_)));
        events[told..].iter().any(away).then_some(())
    });
    servers.start_all();
    for p in 0..PARTITIONS {
        let sent = owner.sent[&p] as usize;
        owner.heard.wait("what was written meanwhile", |events| {
            let safe = |e: &&ClusterLogEvent| matches!(e, ClusterLogEvent::Safe { partition, .. } if *partition == p);
            (events.iter().filter(safe).count() == sent).then_some(())
        });
    }
    owner.heard.ready();
    assert_eq!(owner.log.waiting(), 0);
    let acked = (0..PARTITIONS).map(|p| (p, (0..owner.sent[&p]).map(|n| id(1, p, n)).collect())).collect();
    drop(owner);
    assert_eq!(check(&acked, &read_all(&servers)), acked.values().map(Vec::len).sum::<usize>());
}
