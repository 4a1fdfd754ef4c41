//! Retained messages: stored, found by one wildcard, cleared again.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::batch::{Next, listen, send};
use super::driver;
use super::inbox::{Inbox, Subscriber};
use crate::codec::{Template, subscribe};
use crate::driver::{Driver, Id};
use crate::fleet::{connect, hello};
use crate::plan::Plan;
use crate::report::{Meter, Report, Step};
use crate::shared::Shared;

const SETTLE: Duration = Duration::from_millis(700);
const LINGER: Duration = Duration::from_millis(100);

/// Stores, scans, clears.
///
/// # Errors
/// A connection is refused.
pub fn run(plan: &Plan, shared: &Shared) -> Result<Report, String> {
    let mut d = driver(plan, shared)?;
    let topics: Vec<Box<[u8]>> = (0..plan.count).map(|n| topic(plan, n)).collect();
    let mut inbox = Inbox::new(shared, plan.run, plan.qos, topics.clone())?;
    inbox.retained = true;
    let sender = connect(&mut d, plan, shared, [hello(plan, "p", 0)], &mut |_, _| ())?;
    let mut store = store(plan, shared, &mut d, &mut inbox, &sender, &topics, plan.size)?;
    let before = store.1;
    listen(&mut d, &mut inbox, shared, SETTLE, &|_| false)?;
    if let (Some(before), Some(after)) = (before, Meter::begin(&plan.pids)?.rss_bytes()) {
        store.0.bytes_each = Some((after as f64 - before as f64) / plan.count as f64);
    }
    for flow in shared.flows.iter().take(plan.count) {
        flow.sent.store(1, Ordering::Relaxed);
    }
    let scan = scan(plan, shared, &mut d, &mut inbox)?;
    inbox.close();
    let clear = store_nothing(plan, shared, &mut d, &mut inbox, &sender, &topics)?;
    inbox.faults.refused += d.clients().map(|c| c.refused).sum::<u64>();
    Ok(Report {
        work: plan.work,
        ok: inbox.faults.none(),
        faults: inbox.faults,
        steps: vec![store.0, scan, clear],
        acks_out_of_order: d.clients().map(|c| c.acks_out_of_order).sum(),
        notes: inbox.why.iter().map(|why| format!("a connection ended: {why}")).collect(),
        run: plan.run,
    })
}

fn topic(plan: &Plan, number: usize) -> Box<[u8]> {
    format!("bench/{:04x}/r/{}/{number}", plan.run, number % 100).into_bytes().into()
}

fn store_nothing(
    plan: &Plan,
    shared: &Shared,
    d: &mut Driver,
    inbox: &mut Inbox<'_>,
    sender: &[Id],
    topics: &[Box<[u8]>],
) -> Result<Step, String> {
    let (mut step, _) = store(plan, shared, d, inbox, sender, topics, 0)?;
    "clear".clone_into(&mut step.name);
    Ok(step)
}

/// Sends one message to each topic; the memory of the broker before it, too.
fn store(
    plan: &Plan,
    shared: &Shared,
    d: &mut Driver,
    inbox: &mut Inbox<'_>,
    sender: &[Id],
    topics: &[Box<[u8]>],
    size: usize,
) -> Result<(Step, Option<u64>), String> {
    let template = |topic: &[u8]| Template::new(topic, plan.qos, true, size, plan.protocol == 5);
    let templates: Vec<Template> = topics.iter().map(|t| template(t)).collect();
    let id = sender.first().copied().unwrap_or(0);
    let next = |n: u64| {
        let template = templates.get(usize::try_from(n).ok()?)?;
        Some(Next { sender: id, template, publisher: n as u32, sequence: 0 })
    };
    shared.phase("retained messages", plan.count as u64);
    let meter = Meter::begin(&plan.pids)?;
    let batch = send(d, (plan, shared), inbox, sender, (plan.count as u64, 0), &next)?;
    let acked: u64 = batch.acked.iter().sum();
    inbox.faults.unacknowledged += if plan.qos > 0 { batch.sent - acked } else { 0 };
    Ok((meter.end("store", batch.sent, "retained messages")?, meter.rss_bytes()))
}

/// A new client finds all of them.
fn scan(plan: &Plan, shared: &Shared, d: &mut Driver, inbox: &mut Inbox<'_>) -> Result<Step, String> {
    let ids = connect(d, plan, shared, [hello(plan, "s", 0)], &mut |_, _| ())?;
    let id = ids.first().copied().unwrap_or(0);
    inbox.add_subscriber(id, Subscriber::new(0..plan.count));
    let filter = format!("bench/{:04x}/r/#", plan.run);
    shared.phase("scan", plan.count as u64);
    let meter = Meter::begin(&plan.pids)?;
    d.send(id, &subscribe(1, [filter.as_bytes()].into_iter(), plan.qos, plan.protocol == 5));
    let mut seen = 0;
    loop {
        listen(d, inbox, shared, Duration::from_secs_f64(plan.patience_s), &|inbox| {
            inbox.delivered >= plan.count as u64 || inbox.delivered > seen
        })?;
        if inbox.delivered == seen || inbox.delivered >= plan.count as u64 {
            break;
        }
        seen = inbox.delivered;
        shared.done.store(seen, Ordering::Relaxed);
    }
    let step = meter.end("scan", inbox.delivered, "retained messages")?;
    listen(d, inbox, shared, LINGER, &|_| false)?;
    inbox.ending = true;
    d.close(id, true);
    inbox.ending = false;
    Ok(step)
}
