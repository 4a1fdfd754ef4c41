//! The lane and the log: what its partitions wrote goes out at the end of the tick, before anything is said to other
//! lanes; what became safe comes back as an event. Checkpoints are written here, some in each tick. At the start the
//! lanes wait for each other until every subscription of every session is known everywhere.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{Lane, LaneMessage};
use crate::log::{Emptied, LogEvent, Piece, Walked};
use crate::net::Listener;
use crate::partition::{Effects, Input, Partition, Resumed, Walk};
use crate::record::Replay;

/// Bytes of a checkpoint written in one tick, at least; as many as live traffic writes in it if that is more. So a
/// checkpoint ends before the log has grown by as much again, and no message waits for more than a short slice.
const WALK_BYTES: usize = 16 * 1024;
/// A checkpoint waits while so much waits for the disk, but for its share of live traffic.
const BACKLOG_BYTES: usize = 64 * 1024;
/// How soon it goes on when nothing else is to do: the core has other work.
const WALK_PAUSE: Duration = Duration::from_millis(1);
/// Publishers wait while so much waits for the disk.
const BACKLOG_BYTES_MAX: usize = 64 * 1024 * 1024;

/// How often the ledger is saved, at most.
const LEDGER_MS: u64 = 1_000;

/// What the log knew of the partitions of one lane.
pub type Recovered = BTreeMap<u16, (Replay, Resumed)>;

/// A checkpoint under way.
#[derive(Debug, Default)]
pub(super) struct Walking {
    emptied: Arc<Emptied>,
    partition: u16,
    walk: Walk,
    walked: Walked,
}

impl Lane {
    /// The partitions of this lane, as their logs left them.
    pub(super) fn partitions_of(
        number: u16,
        shared: &crate::port::Shared,
        config: &crate::port::Config,
        mut recovered: Recovered,
    ) -> Vec<Option<Box<Partition>>> {
        let rules = config.rules(shared);
        let make = |p: u16| {
            let rules = rules.clone();
            match recovered.remove(&p) {
                Some((replay, resumed)) => Partition::recovered(p, rules, replay, resumed),
                None => Partition::new(p, rules, shared.incarnation),
            }
        };
        // in a cluster partitions come with the table
        let mine = |p: &u16| !shared.ring.is_shared() && shared.ring.home(*p) == number;
        let mut make = make;
        (0..shared.ring.partitions()).map(|p| mine(&p).then(|| Box::new(make(p)))).collect()
    }

    /// Listeners open when every lane knows what every session wants.
    pub fn wait_with(&mut self, listeners: Vec<(u16, Listener)>) {
        self.waiting_listeners = listeners;
    }

    /// Every session that the log knew goes on.
    pub fn resume_sessions(&mut self, resumed: Resumed) {
        self.resume_own(resumed);
        self.finish_phase(0);
    }

    /// The sessions of this lane go on: after a start, or after a panic of this lane alone.
    pub(super) fn resume_own(&mut self, resumed: Resumed) {
        for number in 0..self.shared.ring.partitions() {
            let mut effects = Effects::new();
            if let Some(partition) = self.partition(number) {
                partition.resume_all(resumed, &mut effects);
            }
            self.carry_out(&mut effects, None);
            self.work();
        }
    }

    /// Phase 0: sessions have told what they want. Phase 1: groups are settled. After it everybody knows everything.
    fn finish_phase(&mut self, phase: u8) {
        self.write_log();
        self.send_mail();
        for place in (0..self.shared.ring.lanes()).map(|lane| self.shared.ring.place(lane)).collect::<Vec<_>>() {
            if place != self.number {
                self.send(place, LaneMessage::Phase(phase));
            }
        }
        self.send_mail();
        self.on_phase(phase);
    }

    pub(super) fn on_phase(&mut self, phase: u8) {
        let Some(n) = self.phases.get_mut(usize::from(phase)) else { return };
        *n += 1;
        if *n < self.shared.ring.lanes() {
            return;
        }
        if phase == 0 {
            for number in 0..self.shared.ring.partitions() {
                self.step(number, Input::GroupsSettled { found: true }, None);
            }
            self.work();
            return self.finish_phase(1);
        }
        self.shared.lane_ready();
        for (index, listener) in std::mem::take(&mut self.waiting_listeners) {
            self.add_listener(index, listener);
        }
    }

    /// The end of a tick: some of a checkpoint, then what the partitions wrote.
    pub(super) fn write_log(&mut self) {
        let shared = Arc::clone(&self.shared);
        let Some(log) = &shared.log else { return };
        if self.walking.is_some() {
            let live: usize = self.partitions.iter().flatten().map(|p| p.unlogged_bytes()).sum();
            self.walk_some(if log.waiting() < BACKLOG_BYTES { live.max(WALK_BYTES) } else { live });
        }
        if self.now_ms >= self.ledger_saved.1 + LEDGER_MS {
            self.save_ledger();
        }
        self.hand_over();
    }

    /// Hands over what the partitions have written since the last time: before anybody is told of it.
    pub(super) fn hand_over(&mut self) {
        let shared = Arc::clone(&self.shared);
        let Some(log) = &shared.log else { return };
        let batches: Vec<_> = self.partitions.iter_mut().flatten().filter_map(|p| p.take_batch()).collect();
        let walked = self.walked.take();
        if batches.is_empty() && walked.is_none() {
            return;
        }
        log.append(Piece { lane: self.number, now_ms: self.now_ms, epoch: shared.incarnation, batches, walked });
    }

    /// The ledger outlives the process, but for what was dropped in its last moments.
    pub(super) fn save_ledger(&mut self) {
        let total = self.ledger.total();
        if self.shared.log.is_some() && total != self.ledger_saved.0 {
            self.ledger_saved = (total, self.now_ms);
            self.shared.ledgers.set(self.number, self.ledger.of(None).cloned().collect());
        }
    }

    pub(super) fn on_log(&mut self, event: LogEvent) {
        match event {
            LogEvent::Safe(located) => {
                for l in located {
                    let input = Input::Safe { number: l.number, up_to: l.up_to, address: l.address };
                    self.step(l.partition, input, None);
                }
            }
            LogEvent::Fetched { session, bodies } => {
                self.step(session.partition, Input::Fetched { session, bodies }, None);
            }
            LogEvent::Walk(number, emptied) => {
                let walked = Walked { number, ..Walked::default() };
                self.walking = Some(Box::new(Walking { emptied, walked, ..Walking::default() }));
            }
        }
    }

    /// How soon the log wants the next tick.
    pub(super) fn log_wants_in(&self) -> Option<Duration> {
        let walk = self.walking.is_some().then_some(WALK_PAUSE);
        let has_log = self.shared.cluster_log.get().is_some();
        let kept_back = has_log.then(|| self.partitions.iter().flatten().filter_map(|p| p.may_wait_until_ms()).min());
        let turn = self.fleet.as_ref().and_then(|f| f.append_at_ms);
        let due = [kept_back.flatten(), turn].into_iter().flatten().min();
        let due = due.map(|at| Duration::from_millis(at.saturating_sub(self.now_ms).max(1)));
        [walk, due].into_iter().flatten().min()
    }

    /// Writes about so many bytes of the checkpoint.
    fn walk_some(&mut self, mut budget: usize) {
        let Some(mut walking) = self.walking.take() else { return };
        let Walking { emptied, partition, walk, walked } = &mut *walking;
        while *partition < self.shared.ring.partitions() {
            if budget == 0 {
                self.walking = Some(walking);
                return;
            }
            if let Some(p) = self.partition(*partition) {
                let before = p.unlogged_bytes();
                let complete = p.walk(walk, emptied, walked, budget);
                budget = budget.saturating_sub(p.unlogged_bytes() - before);
                if !complete {
                    continue;
                }
            }
            *partition += 1;
            *walk = Walk::default();
        }
        self.walked = Some(std::mem::take(walked));
    }

    /// The disk cannot keep up: publishers are not read for a moment.
    pub(super) fn log_is_behind(&self) -> bool {
        self.shared.disk_settling.load(Ordering::Acquire)
            || self.shared.log.as_ref().is_some_and(|l| l.waiting() > BACKLOG_BYTES_MAX)
            || self.shared.cluster_log.get().is_some_and(|l| l.waiting() > super::shared_log::BACKLOG_BYTES_MAX)
    }
}
