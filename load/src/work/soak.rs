//! Traffic for long, while persistent subscribers come and go: some with a DISCONNECT, most as if the network had failed.
//! Memory of the broker is told along the way.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::driver;
use super::feed::{Feed, not_kept};
use super::inbox::Inbox;
use super::pub_sub::{drain, publishers, subscribers, topic, turn};
use crate::driver::{Driver, Id};
use crate::plan::Plan;
use crate::report::{Meter, Report, Spread, Step};
use crate::shared::Shared;

/// Between two departures.
const PERIOD_NS: u64 = 100_000_000;
/// How long a client stays away.
const AWAY_NS: u64 = 300_000_000;
/// Parts that the time is told in.
const PARTS: u64 = 10;
/// Memory may grow by so much from the third part to the last.
const GROWTH: f64 = 1.2;

/// Runs it.
///
/// # Errors
/// It cannot begin.
pub fn run(plan: &Plan, shared: &Shared) -> Result<Report, String> {
    let mut d = driver(plan, shared)?;
    let topics = (0..plan.publishers).map(|p| topic(plan, p)).collect();
    let mut inbox = Inbox::new(shared, plan.run, plan.qos, topics)?;
    subscribers(plan, shared, 0, &mut d, &mut inbox)?;
    let members: Vec<Id> = (0..plan.subscribers).collect();
    publishers(plan, shared, 0, &mut d, &mut inbox)?;
    inbox.returns = true;
    inbox.measuring = true;
    let mut feed = Feed::new(plan, shared, shared.start_ns())?;
    let mut visits = Visits { members, away: Vec::new(), next_ns: 0, state: u64::from(plan.run) << 17 | 1 };
    let part_ns = (plan.seconds * 1e9) as u64 / PARTS;
    let mut steps = Vec::new();
    for part in (1..=PARTS).take_while(|_| !shared.stopped()) {
        shared.phase(&format!("part {part} of {PARTS}"), 0);
        steps.push(traffic(plan, shared, &mut d, (&mut inbox, &mut feed, &mut visits), part_ns)?);
    }
    inbox.note_times();
    let unsent = feed.unsent(&inbox, d.now_ns().min(shared.start_ns() + part_ns * PARTS));
    inbox.notes.extend(not_kept(unsent));
    visits.everybody(&mut d)?;
    drain(plan, shared, &mut d, &mut inbox)?;
    inbox.close(&d);
    if plan.qos == 0 {
        // nobody keeps them for who is away
        inbox.faults.lost = 0;
    }
    if let Some(last) = steps.last_mut() {
        last.latency_us = Spread::of(&inbox.latency);
    }
    inbox.notes.extend(growth(&steps));
    Ok(inbox.report(plan, steps))
}

fn growth(steps: &[Step]) -> Option<String> {
    let rss = |at: usize| Some(steps.get(at)?.broker?.rss_bytes as f64);
    let (early, late) = (rss(2)?, rss(steps.len().checked_sub(1)?)?);
    (late > early * GROWTH).then(|| format!("the broker's memory grew from {early:.0} to {late:.0} bytes"))
}

fn traffic(
    plan: &Plan,
    shared: &Shared,
    d: &mut Driver,
    (inbox, feed, visits): (&mut Inbox<'_>, &mut Feed<'_>, &mut Visits),
    time_ns: u64,
) -> Result<Step, String> {
    let until_ns = d.now_ns() + time_ns;
    let (meter, before) = (Meter::begin(&plan.pids), inbox.delivered);
    while d.now_ns() < until_ns && !shared.stopped() {
        let wait = feed.go(d, inbox).min(Duration::from_millis(20));
        turn(d, inbox, wait)?;
        visits.go(d)?;
        shared.sent.store(feed.sent, Ordering::Relaxed);
        shared.delivered.store(inbox.delivered, Ordering::Relaxed);
        inbox.tell();
    }
    let mut step = meter.end("traffic", inbox.delivered - before, "delivered");
    step.judge(1, plan.rate > 0.0);
    Ok(step)
}

/// Who goes when.
struct Visits {
    members: Vec<Id>,
    /// Clients that are away, and until when.
    away: Vec<(Id, u64)>,
    next_ns: u64,
    state: u64,
}

impl Visits {
    fn random(&mut self) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state
    }

    fn go(&mut self, d: &mut Driver) -> Result<(), String> {
        let now_ns = d.now_ns();
        if let Some(at) = self.away.iter().position(|(_, until_ns)| *until_ns <= now_ns) {
            let (id, _) = self.away.swap_remove(at);
            d.again(id).map_err(|e| format!("a client cannot come back: {e}"))?;
        }
        if now_ns < self.next_ns || self.members.is_empty() {
            return Ok(());
        }
        self.next_ns = now_ns + PERIOD_NS;
        let chance = self.random();
        let id = self.members.get(chance as usize % self.members.len()).copied().unwrap_or(0);
        if d.client(id).is_some_and(|c| c.ready) {
            d.close(id, chance >> 40 & 3 == 0);
            self.away.push((id, now_ns + AWAY_NS));
        }
        Ok(())
    }

    fn everybody(&mut self, d: &mut Driver) -> Result<(), String> {
        for (id, _) in self.away.drain(..) {
            d.again(id).map_err(|e| format!("a client cannot come back: {e}"))?;
        }
        Ok(())
    }
}
