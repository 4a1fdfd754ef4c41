//! Retained messages: stored, found by one wildcard, cleared again.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::batch::{Job, Next, listen, send};
use super::driver;
use super::inbox::{Inbox, Subscriber};
use crate::codec::Template;
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
    if let (Some(before), Some(after)) = (before, Meter::begin(&plan.pids).rss_bytes()) {
        store.0.bytes_each = Some((after as f64 - before as f64) / plan.count as f64);
    }
    let stored = store.0.count as usize;
    for flow in shared.flows.iter().take(stored) {
        flow.sent.store(1, Ordering::Relaxed);
    }
    let mut steps = vec![store.0];
    if !shared.stopped() {
        steps.push(scan(plan, shared, &mut d, &mut inbox, stored)?);
    }
    let stored = topics.get(..stored).unwrap_or_default();
    let (mut clear, _) = self::store(plan, shared, &mut d, &mut inbox, &sender, stored, 0)?;
    "clear".clone_into(&mut clear.name);
    steps.push(clear);
    inbox.close(&d);
    Ok(inbox.report(plan, steps))
}

fn topic(plan: &Plan, number: usize) -> Box<[u8]> {
    format!("bench/{:04x}/r/{}/{number}", plan.run, number % 100).into_bytes().into()
}

/// Sends one message to each topic, one without bytes clears it; the memory of the broker before it, too.
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
    let count = topics.len() as u64;
    shared.phase("retained messages", count);
    let meter = Meter::begin(&plan.pids);
    let job = Job { senders: sender, count, deliveries: 0, next: &next, tidies: size == 0 };
    let batch = send(d, (plan, shared), inbox, &job)?;
    Ok((meter.end("store", batch.sent, "retained messages"), meter.rss_bytes()))
}

/// A new client finds all of them.
fn scan(plan: &Plan, shared: &Shared, d: &mut Driver, inbox: &mut Inbox<'_>, stored: usize) -> Result<Step, String> {
    let ids = connect(d, plan, shared, [hello(plan, "s", 0)], &mut |_, _| ())?;
    let id = ids.first().copied().unwrap_or(0);
    inbox.add_subscriber(id, Subscriber::new(0..plan.count));
    let filter = format!("bench/{:04x}/r/#", plan.run);
    shared.phase("scan", stored as u64);
    let meter = Meter::begin(&plan.pids);
    d.subscribe(id, 1, &[filter.into_bytes()], plan.qos);
    let mut seen = 0;
    loop {
        listen(d, inbox, shared, Duration::from_secs_f64(plan.patience_s), &|inbox| {
            inbox.delivered >= stored as u64 || inbox.delivered > seen
        })?;
        if inbox.delivered == seen || inbox.delivered >= stored as u64 {
            break;
        }
        seen = inbox.delivered;
        shared.done.store(seen, Ordering::Relaxed);
    }
    let step = meter.end("scan", inbox.delivered, "retained messages");
    listen(d, inbox, shared, LINGER, &|_| false)?;
    inbox.ending = true;
    d.close(id, true);
    inbox.ending = false;
    Ok(step)
}
