//! Owners, a linear log, and a network between them that loses, delays and doubles; leaders that are none any more.

use std::collections::{HashSet, VecDeque};

use roostmq_engine::log::{Anchor, At, Batch, ClusterLogEvent, Fence};
use roostmq_engine_nats::chain::{Action, Answer, Chain, Seen};
use roostmq_engine_nats::frame::{Kind, decode};
use roostmq_engine_nats::replay::{Found, Replay};

pub const P: u16 = 5;
const OWNERS: usize = 4;
/// So many stale answers of a leader that is none any more, in a row.
const STALE: u32 = 4;

/// A request on its way: who sent it, what, on which condition, and whether somebody still waits for its answer.
pub struct Request {
    pub owner: usize,
    pub bytes: Vec<u8>,
    pub expect: Option<At>,
    pub awaited: bool,
}

pub struct Owner {
    pub chain: Chain,
    pub epoch: u32,
    pub next: u64,
    pub number: u64,
    pub fenced: Option<At>,
    pub damaged: bool,
    pub resigned: bool,
    pub look: Option<At>,
    pub stale: u32,
    pub trims: VecDeque<At>,
    /// Records that it read or wrote and knows to be safe, in order.
    pub applied: Vec<u64>,
    pub pushed: Vec<(u64, Vec<u64>)>,
}

/// Linear, as one subject of a stream is; the sequence of `log[i]` is `i + 1`. `None` was given back.
#[derive(Default)]
pub struct World {
    pub log: Vec<Option<Vec<u8>>>,
    /// What was given back, with what lay there and how long the log was then.
    pub given_back: Vec<(usize, usize, Vec<u8>)>,
    pub net: Vec<Request>,
    pub owners: Vec<Owner>,
    pub acked: Vec<(u64, At)>,
    /// Records that counted at some time.
    pub ever: HashSet<u64>,
    /// What owners were told to keep beside the log.
    pub kept: HashSet<At>,
    pub front: At,
    pub record: u64,
    pub lossy: bool,
}

pub fn found(log: &[Option<Vec<u8>>], at: At) -> Option<Found> {
    let bytes = log.get(at.checked_sub(1)? as usize)?.as_ref()?;
    Some((at, decode(bytes).map(|(mark, records)| (mark, records.to_vec()))))
}

pub fn ids(records: &[u8]) -> Vec<u64> {
    records.chunks(8).map(|b| u64::from_le_bytes(b.try_into().unwrap())).collect()
}

impl World {
    /// A new owner, which knows the log up to some address already, as a standby does.
    pub fn start(&mut self, upto: At) {
        let epoch = self.owners.len() as u32 + 1;
        let (mut replay, mut applied) = (Replay::new(P, Anchor::default()), Vec::new());
        for found in (1..=upto).filter_map(|at| found(&self.log, at)) {
            applied.extend(replay.take(found).expect("a chain").iter().flat_map(|a| ids(&a.records)));
        }
        let fence = Fence { partition: P, epoch, known: replay.known(), at_least: replay.known().at, served: 0 };
        let (chain, actions) = Chain::fence(fence);
        let n = self.owners.len();
        self.owners.push(Owner {
            chain,
            epoch,
            next: 0,
            number: 0,
            fenced: None,
            damaged: false,
            resigned: false,
            look: None,
            stale: 0,
            trims: VecDeque::new(),
            applied,
            pushed: Vec::new(),
        });
        self.act(n, actions);
    }

    pub fn act(&mut self, n: usize, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Append { bytes, expect } => {
                    assert!(!self.busy(n), "one request at a time");
                    self.net.push(Request { owner: n, bytes: bytes.to_vec(), expect, awaited: true });
                }
                Action::Look { known, .. } => {
                    assert!(!self.busy(n), "one request at a time");
                    self.owners[n].look = Some(known);
                }
                Action::Trim(at) => self.owners[n].trims.push_back(at),
                Action::Keep(at, bytes) => {
                    let there = self.log.get(at as usize - 1).and_then(Option::as_ref);
                    assert!(self.lossy || there == Some(&bytes.to_vec()), "what is kept is what lies there");
                    self.kept.insert(at);
                }
                Action::Tell(event) => self.tell(n, event),
            }
        }
    }

    pub fn busy(&self, n: usize) -> bool {
        self.owners[n].look.is_some() || self.net.iter().any(|r| r.owner == n && r.awaited)
    }

    pub fn tell(&mut self, n: usize, event: ClusterLogEvent) {
        let owner = &mut self.owners[n];
        match event {
            ClusterLogEvent::Read { appends, .. } => {
                owner.applied.extend(appends.iter().flat_map(|a| ids(&a.records)));
            }
            ClusterLogEvent::Again { .. } => owner.applied.clear(),
            ClusterLogEvent::Fenced { at, next, .. } => {
                owner.fenced = Some(at);
                owner.next = next;
            }
            ClusterLogEvent::Safe { number, parts, .. } => {
                let (pushed, records) = owner.pushed.remove(0);
                assert_eq!(pushed, number, "in order");
                assert_eq!(parts.len(), 1);
                assert!(self.kept.contains(&parts[0].at), "kept before it is acknowledged");
                owner.applied.extend(&records);
                self.acked.extend(records.iter().map(|r| (*r, parts[0].at)));
            }
            ClusterLogEvent::Resigned { epoch, .. } => {
                assert!(epoch > owner.epoch);
                owner.resigned = true;
            }
            ClusterLogEvent::Damaged { why, .. } => {
                assert!(self.lossy, "damage where there is none: {why}");
                owner.damaged = true;
            }
            _ => {}
        }
    }

    pub fn serving(&self, n: usize) -> bool {
        let o = &self.owners[n];
        o.fenced.is_some() && !o.resigned && !o.damaged
    }

    pub fn push(&mut self, n: usize) {
        self.record += 1;
        let owner = &mut self.owners[n];
        owner.number += 1;
        let batch = Batch {
            partition: P,
            number: owner.number,
            first: owner.next,
            count: 1,
            records: self.record.to_le_bytes().to_vec(),
        };
        owner.next += 1;
        owner.pushed.push((owner.number, vec![self.record]));
        let actions = owner.chain.push(batch);
        self.act(n, actions);
    }

    /// A request arrives: stored or refused, and the answer comes or not.
    pub fn arrive(&mut self, i: usize, answered: bool) {
        let request = self.net.remove(i);
        // the last sequence of the subject: what was given back counts no less
        let last = self.log.len() as At;
        let answer = if request.expect.is_none_or(|e| e == last) {
            self.log.push(Some(request.bytes));
            Answer::Stored(last + 1)
        } else {
            Answer::WrongLast
        };
        if request.awaited {
            self.answer(request.owner, if answered { &answer } else { &Answer::Unknown });
        }
    }

    pub fn answer(&mut self, n: usize, answer: &Answer) {
        let actions = self.owners[n].chain.answered(answer);
        self.act(n, actions);
    }

    /// A look is answered by a leader whose log ends `behind` before the real one; in windows of `width`.
    pub fn see(&mut self, n: usize, behind: usize, width: At) {
        let Some(known) = self.owners[n].look.take() else { return };
        self.owners[n].stale = if behind > 0 { self.owners[n].stale + 1 } else { 0 };
        let mut log = self.log[..self.log.len().saturating_sub(behind)].to_vec();
        // such a leader does not know of what was given back since, either
        for (len, i, bytes) in &self.given_back {
            if *len > log.len() && *i < log.len() {
                log[*i] = Some(bytes.clone());
            }
        }
        let log = &log[..];
        let last = log.len() as At;
        // as `Asker::look`: from the first that is there, past what was given back
        let from = (known + 1..=last).find(|at| found(log, *at).is_some()).unwrap_or(known + 1);
        let upto = last.min(from - 1 + width).max(known.min(last));
        let seen = Seen {
            known: found(log, known),
            found: (known + 1..=upto).filter_map(|at| found(log, at)).collect(),
            upto,
            end: upto == last,
        };
        let actions = self.owners[n].chain.looked(Some(seen));
        self.act(n, actions);
    }

    pub fn step(&mut self, choice: u16) {
        let (what, x) = (choice % 16, usize::from(choice / 16));
        let n = x % self.owners.len().max(1);
        match what {
            0 if self.owners.len() < if self.lossy { 1 } else { OWNERS } => {
                self.start(if x % 2 == 0 { 0 } else { (x / 2) as At % (self.log.len() as At + 1) })
            }
            _ if self.owners.is_empty() => {}
            1 | 2 if self.serving(n) && self.owners[n].pushed.len() < 3 => self.push(n),
            3..=6 if !self.net.is_empty() => self.arrive(x % self.net.len(), what < 5),
            7 if !self.net.is_empty() => {
                let gone = self.net.remove(x % self.net.len());
                if gone.awaited {
                    self.answer(gone.owner, &Answer::Unknown);
                }
            }
            8 => {
                let waits = self.net.iter_mut().find(|r| r.owner == n && r.awaited);
                if waits.map(|r| r.awaited = false).is_some() {
                    self.answer(n, &Answer::Unknown);
                }
            }
            9..=11 => self.see(n, 0, 1 + (x as At) % 3),
            12 if self.owners[n].stale < STALE && !self.lossy => {
                self.see(n, 1 + x % 2, 9);
            }
            13 => {
                let actions = self.owners[n].chain.idle();
                self.act(n, actions);
            }
            14 if self.lossy && x % 4 == 0 => {
                self.log.pop();
            }
            14 => self.trim_some(n, x),
            15 => {
                if let Some(at) = self.owners[n].trims.pop_front() {
                    self.give_back(at);
                }
            }
            _ => {}
        }
    }

    /// An owner has completed a checkpoint that begins at an append of its own, and wants to trim.
    pub fn trim_some(&mut self, n: usize, x: usize) {
        let own: Vec<At> = (self.owners[n].fenced.unwrap_or(At::MAX).saturating_add(1)..=self.log.len() as At)
            .filter(|at| {
                let own = |m: roostmq_engine_nats::frame::Mark| {
                    m.kind == Kind::Batch && m.header.epoch == self.owners[n].epoch
                };
                matches!(found(&self.log, *at), Some((_, Some((m, _)))) if own(m))
            })
            .filter(|at| self.acked.iter().any(|(_, acked)| acked == at))
            .collect();
        if let Some(at) = own.get(x % own.len().max(1)) {
            self.owners[n].chain.checkpoint(*at);
            let actions = self.owners[n].chain.trim(*at);
            self.act(n, actions);
        }
    }

    pub fn give_back(&mut self, before: At) {
        self.front = self.front.max(before);
        let keep = self.log.len() as At;
        for at in 1..before.min(keep) {
            if let Some(bytes) = self.log[at as usize - 1].take() {
                self.given_back.push((keep as usize, at as usize - 1, bytes));
            }
        }
    }

    /// What a new owner would replay now, by the rules as the model has them, not by the code that is tested.
    pub fn replayed(&self) -> Vec<(At, u64)> {
        let (mut epoch, mut before, mut next, mut front, mut checkpoint) = (0, 0, 0, 0, At::MAX);
        let mut all = Vec::new();
        for (at, what) in (1..=self.log.len() as At).filter_map(|at| found(&self.log, at)) {
            let (mark, records) = what.unwrap();
            let h = mark.header;
            if front == 0 {
                front = at;
            }
            if mark.kind == Kind::Epoch && h.epoch > epoch {
                (epoch, before) = (h.epoch, at);
            } else if mark.kind == Kind::Batch && h.epoch >= epoch {
                let trimmed = front == at;
                assert!(trimmed || h.epoch == epoch && h.before == before && h.first == next, "broken at {at}");
                (epoch, before, next) = (h.epoch, at, h.first + u64::from(h.count));
                checkpoint = h.checkpoint;
                all.extend(ids(&records).into_iter().map(|r| (at, r)));
            }
        }
        assert!(self.front < 2 || front <= checkpoint, "the front at {front} is behind the checkpoint at {checkpoint}");
        all
    }

    pub fn check(&mut self) {
        if self.lossy {
            return;
        }
        let all = self.replayed();
        let records: Vec<u64> = all.iter().map(|(_, r)| *r).collect();
        self.ever.extend(&records);
        let mut once = records.clone();
        once.sort_unstable();
        once.dedup();
        assert_eq!(once.len(), records.len(), "doubled: {records:?}");
        for (acked, at) in &self.acked {
            assert!(*at < self.front || records.contains(acked), "acknowledged and lost: {acked} at {at}: {all:?}");
        }
        for owner in self.owners.iter().filter(|o| o.fenced.is_some()) {
            assert!(owner.applied.iter().all(|r| self.ever.contains(r)), "a record that never counted was read");
            // what an owner knows is what the log says, in its order, as far as neither was given back
            let known: Vec<_> = owner.applied.iter().filter(|r| records.contains(r)).collect();
            let said: Vec<_> = records.iter().filter(|r| owner.applied.contains(r)).collect();
            assert_eq!(known, said, "out of order");
            let upto: Vec<_> = all.iter().filter(|(at, _)| *at < owner.fenced.unwrap()).collect();
            assert!(
                upto.iter().all(|(_, r)| owner.applied.contains(r)),
                "owner {} misses some of {upto:?}",
                owner.epoch
            );
        }
    }

    /// All faults end: everything arrives, everybody looks.
    pub fn rest(&mut self) {
        for _ in 0..200 {
            while !self.net.is_empty() {
                self.arrive(0, true);
                self.check();
            }
            for n in 0..self.owners.len() {
                let actions = self.owners[n].chain.idle();
                self.act(n, actions);
                self.see(n, 0, 5);
            }
            self.check();
            if self.net.is_empty() && self.owners.iter().all(|o| o.look.is_none()) {
                break;
            }
        }
        let Some(last) = self.owners.last() else { return };
        assert!(!last.resigned && (last.fenced.is_some() || last.damaged), "the last owner does not serve");
        assert!(last.pushed.is_empty() || last.damaged, "the last owner is stuck");
    }
}

pub fn run(lossy: bool, choices: &[u16]) -> World {
    let mut world = World { lossy, ..World::default() };
    for choice in choices {
        world.step(*choice);
        world.check();
    }
    world.rest();
    world
}

pub fn settle(world: &mut World) {
    for _ in 0..40 {
        while !world.net.is_empty() {
            world.arrive(0, true);
        }
        for n in 0..world.owners.len() {
            world.see(n, 0, 100);
        }
    }
}
