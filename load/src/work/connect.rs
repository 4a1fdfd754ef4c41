//! Connections: how fast they are made, what one costs in CPU, what an idle one costs in memory.

use std::time::Duration;

use super::batch::listen;
use super::driver;
use super::inbox::Inbox;
use crate::driver::{Driver, Id};
use crate::fleet::{connect, hello, subscribe_all};
use crate::plan::Plan;
use crate::report::{Meter, Report, Spread, Step, histogram};
use crate::shared::Shared;

/// After so long without work a broker's memory is what it keeps.
const SETTLE: Duration = Duration::from_millis(700);

/// Connects a fifth, then the rest, or in the steps of the plan: the growth between is what one costs, without what a
/// broker has anyway.
///
/// # Errors
/// A connection is refused or does not come.
pub fn run(plan: &Plan, shared: &Shared) -> Result<Report, String> {
    let mut d = driver(plan, shared)?;
    let mut ends: Vec<usize> = plan.steps.iter().copied().filter(|s| (1..plan.count).contains(s)).collect();
    if ends.is_empty() {
        ends.push(plan.count.div_ceil(5));
    }
    ends.sort_unstable();
    ends.push(plan.count);
    ends.dedup();
    let mut inbox = Inbox::new(shared, plan.run, plan.qos, Vec::new())?;
    let (mut steps, mut begin, mut before) = (Vec::new(), 0, None);
    for end in ends {
        let mut made = part(plan, shared, &mut d, begin..end, &mut inbox)?;
        let after = settled(plan, shared, &mut d, &mut inbox)?;
        if let (Some(before), Some(after), Some(step)) = (before, after, made.last_mut()) {
            step.bytes_each = Some((after as f64 - before as f64) / (end - begin) as f64);
        }
        (begin, before) = (end, after);
        steps.extend(made);
    }
    shared.phase("hold", plan.count as u64);
    let meter = Meter::begin(&plan.pids);
    listen(&mut d, &mut inbox, shared, Duration::from_secs_f64(plan.seconds), &|_| shared.stopped())?;
    let idle = meter.end("idle", plan.count as u64, "connections");
    // they are there all the time: that is no rate
    steps.push(Step { per_second: 0.0, ..idle });
    inbox.close(&d);
    Ok(inbox.report(plan, steps))
}

fn part(
    plan: &Plan,
    shared: &Shared,
    d: &mut Driver,
    numbers: std::ops::Range<usize>,
    inbox: &mut Inbox<'_>,
) -> Result<Vec<Step>, String> {
    let (count, mut times) = (numbers.len() as u64, histogram()?);
    shared.phase("connect", count);
    let meter = Meter::begin(&plan.pids);
    let hellos = numbers.clone().map(|n| hello(plan, "c", n));
    let ids = connect(d, plan, shared, hellos, &mut |_, ns| times.saturating_record(ns))?;
    let mut step = meter.end(&format!("connect up to {}", numbers.end), count, "connections");
    step.latency_us = Spread::of(&times);
    let mut steps = vec![step];
    if plan.subscriptions > 0 {
        shared.phase("subscribe", count * plan.subscriptions as u64);
        let meter = Meter::begin(&plan.pids);
        let wanted: Vec<(Id, Vec<Vec<u8>>)> =
            ids.into_iter().zip(numbers).map(|(id, n)| (id, filters(plan, n))).collect();
        let refused = subscribe_all(d, plan, shared, &wanted, &mut |id, now_ns, event| inbox.on(id, now_ns, event))?;
        inbox.faults.refused += refused;
        steps.push(meter.end("subscribe", count * plan.subscriptions as u64, "subscriptions"));
    }
    Ok(steps)
}

fn filters(plan: &Plan, number: usize) -> Vec<Vec<u8>> {
    (0..plan.subscriptions).map(|s| format!("bench/{:04x}/{number}/in/{s}", plan.run).into_bytes()).collect()
}

/// The broker's memory when it has nothing to do.
fn settled(plan: &Plan, shared: &Shared, d: &mut Driver, inbox: &mut Inbox<'_>) -> Result<Option<u64>, String> {
    listen(d, inbox, shared, SETTLE, &|_| shared.stopped())?;
    Ok(Meter::begin(&plan.pids).rss_bytes())
}
