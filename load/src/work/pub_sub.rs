//! Publishers and subscribers at once, n to m: pairs, fan-in, fan-out, everything to everybody, a shared group.

use std::sync::atomic::Ordering;
use std::time::Duration;

use hdrhistogram::Histogram;

use super::driver;
use super::feed::{Feed, not_kept};
use super::inbox::{Inbox, Publisher, Subscriber};
use crate::codec::Template;
use crate::driver::{Driver, Id};
use crate::fleet::{Patience, connect, hello, subscribe_all};
use crate::plan::Plan;
use crate::report::{Meter, Report, Spread, Step, histogram};
use crate::shared::Shared;
use crate::tally::Faults;

/// After everything has come, so long for what comes twice, ns.
const LINGER_NS: u64 = 100_000_000;

const FAILED: &str = "a thread of the load has failed: a bug";

/// The others do not wait for a thread that has failed.
struct EndOfAll<'a>(&'a Shared);

impl Drop for EndOfAll<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail(FAILED);
        }
    }
}

/// What one thread found.
struct Part {
    faults: Faults,
    delivered: u64,
    sent: u64,
    latency: Histogram<u64>,
    late: Histogram<u64>,
    acknowledged: Histogram<u64>,
    step: Step,
    unsent: u64,
    acks_out_of_order: u64,
    notes: Vec<String>,
}

/// Runs the traffic.
///
/// # Errors
/// It cannot begin: no broker, a refused connection or subscription.
pub fn run(plan: &Plan, shared: &Shared) -> Result<Report, String> {
    let parts = std::thread::scope(|scope| {
        let begin = |number| {
            scope.spawn(move || {
                let _end = EndOfAll(shared);
                one(plan, shared, number).inspect_err(|why| shared.fail(why))
            })
        };
        let threads: Vec<_> = (0..plan.threads).map(begin).collect();
        let wait =
            |thread: std::thread::ScopedJoinHandle<'_, _>| thread.join().unwrap_or_else(|_| Err(FAILED.to_owned()));
        threads.into_iter().map(wait).collect::<Result<Vec<Part>, String>>()
    })
    .map_err(|why| shared.failed().unwrap_or(why))?;
    let (mut faults, mut acks_out_of_order, mut notes) = (Faults::default(), 0, Vec::new());
    let (mut latency, mut late, mut acknowledged) = (histogram()?, histogram()?, histogram()?);
    let longest = parts.iter().max_by(|a, b| a.step.seconds.total_cmp(&b.step.seconds));
    let mut step = longest.map(|p| p.step.clone()).unwrap_or_default();
    let unsent: u64 = parts.iter().map(|p| p.unsent).sum();
    step.generator_cores = parts.iter().map(|p| p.step.generator_cores).sum();
    step.sent = Some(parts.iter().map(|p| p.sent).sum());
    step.count = parts.iter().map(|p| p.delivered).sum();
    if plan.subscribers == 0 {
        (step.count, step.unit) = (step.sent.unwrap_or(0), "published");
    }
    for part in parts {
        faults.add(&part.faults);
        acks_out_of_order += part.acks_out_of_order;
        latency.add(part.latency).map_err(|e| e.to_string())?;
        late.add(part.late).map_err(|e| e.to_string())?;
        acknowledged.add(part.acknowledged).map_err(|e| e.to_string())?;
        notes.extend(part.notes);
    }
    step.per_second = step.count as f64 / step.seconds.max(1e-9);
    if let Some(cost) = &mut step.broker {
        cost.us_each = cost.cores * step.seconds * 1e6 / step.count.max(1) as f64;
    }
    step.latency_us = Spread::of(&latency);
    step.late_us = Spread::of(&late);
    step.acknowledged_us = Spread::of(&acknowledged);
    step.judge(plan.threads, plan.rate > 0.0);
    notes.dedup();
    notes.extend(not_kept(unsent));
    let ok = faults.none();
    Ok(Report { work: plan.work, ok, faults, steps: vec![step], acks_out_of_order, notes, run: plan.run })
}

/// What a publisher publishes to.
pub(super) fn topic(plan: &Plan, flow: usize) -> Box<[u8]> {
    format!("bench/{:04x}/{}", plan.run, flow % plan.topics.max(1)).into_bytes().into()
}

/// Publishers that subscriber `number` hears, and the filters for that.
fn hears(plan: &Plan, number: usize) -> (Vec<usize>, Vec<Vec<u8>>) {
    let (topics, subscribers) = (plan.topics.max(1), plan.subscribers.max(1));
    let all = plan.every || subscribers == 1 || !plan.shared.is_empty();
    let wanted: Vec<usize> = match topics > subscribers {
        _ if all => (0..topics).collect(),
        true => (number..topics).step_by(subscribers).collect(),
        false => vec![number % topics],
    };
    let mut publishers: Vec<usize> = wanted.iter().flat_map(|t| (*t..plan.publishers).step_by(topics)).collect();
    publishers.sort_unstable();
    let prefix = if plan.shared.is_empty() { String::new() } else { format!("$share/{}/", plan.shared) };
    let filters = if all && topics > 1 {
        vec![format!("{prefix}bench/{:04x}/#", plan.run).into_bytes()]
    } else {
        wanted.iter().map(|t| [prefix.as_bytes(), &topic(plan, *t)].concat()).collect()
    };
    (publishers, filters)
}

fn one(plan: &Plan, shared: &Shared, thread: usize) -> Result<Part, String> {
    let mut d = driver(plan, shared)?;
    let topics = (0..plan.publishers).map(|p| topic(plan, p)).collect();
    let mut inbox = Inbox::new(shared, plan.run, plan.qos, topics)?;
    let mut arrived = 0;
    subscribers(plan, shared, thread, &mut d, &mut inbox)?;
    wait_for_all(shared, 1, &mut arrived, &mut d, &mut inbox)?;
    publishers(plan, shared, thread, &mut d, &mut inbox)?;
    wait_for_all(shared, 2, &mut arrived, &mut d, &mut inbox)?;
    let mut feed = Feed::new(plan, shared, shared.start_ns())?;
    let (step, unsent) = traffic(plan, shared, &mut d, &mut inbox, &mut feed)?;
    wait_for_all(shared, 3, &mut arrived, &mut d, &mut inbox)?;
    drain(plan, shared, &mut d, &mut inbox)?;
    // others may still wait for what the clients of this thread have not got rid of
    wait_for_all(shared, 4, &mut arrived, &mut d, &mut inbox)?;
    inbox.close(&d);
    Ok(Part {
        faults: inbox.faults,
        delivered: step.count,
        sent: step.sent.unwrap_or(0),
        latency: inbox.latency,
        late: feed.late,
        acknowledged: feed.acknowledged,
        acks_out_of_order: inbox.acks_out_of_order,
        notes: inbox.notes,
        step,
        unsent,
    })
}

/// Makes the subscribers of one thread.
pub(super) fn subscribers(
    plan: &Plan,
    shared: &Shared,
    thread: usize,
    d: &mut Driver,
    inbox: &mut Inbox<'_>,
) -> Result<(), String> {
    // members of a group are checked together, so they live together
    let mine = |number: &usize| if plan.shared.is_empty() { number % plan.threads == thread } else { thread == 0 };
    let numbers: Vec<usize> = (0..plan.subscribers).filter(mine).collect();
    shared.phase("subscribers connect", plan.subscribers as u64);
    let ids = connect(d, plan, shared, numbers.iter().map(|n| hello(plan, "s", *n)), &mut |_, _| ())?;
    let mut wanted: Vec<(Id, Vec<Vec<u8>>)> = Vec::new();
    for (id, number) in ids.into_iter().zip(numbers) {
        let (heard, filters) = hears(plan, number);
        inbox.add_subscriber(id, Subscriber::new(heard.into_iter()));
        wanted.push((id, filters));
    }
    if !plan.shared.is_empty() && plan.subscribers > 0 && thread == 0 {
        inbox.group = Some(Subscriber::new(0..plan.publishers));
    }
    shared.phase("subscribe", plan.subscribers as u64);
    let refused = subscribe_all(d, plan, shared, &wanted, &mut |id, now_ns, event| inbox.on(id, now_ns, event))?;
    inbox.faults.refused += refused;
    Ok(())
}

/// Makes the publishers of one thread.
pub(super) fn publishers(
    plan: &Plan,
    shared: &Shared,
    thread: usize,
    d: &mut Driver,
    inbox: &mut Inbox<'_>,
) -> Result<(), String> {
    let flows: Vec<usize> = (0..plan.publishers).filter(|p| p % plan.threads == thread).collect();
    let mut heard = vec![0_u64; plan.publishers];
    for number in 0..if plan.shared.is_empty() { plan.subscribers } else { plan.subscribers.min(1) } {
        for publisher in hears(plan, number).0 {
            heard.get_mut(publisher).into_iter().for_each(|n| *n += 1);
        }
    }
    shared.phase("publishers connect", plan.publishers as u64);
    let ids = connect(d, plan, shared, flows.iter().map(|p| hello(plan, "p", *p)), &mut |_, _| ())?;
    for (id, flow) in ids.into_iter().zip(flows) {
        inbox.add_publisher(Publisher {
            id,
            flow,
            template: Template::new(&topic(plan, flow), plan.qos, false, plan.size, plan.protocol == 5),
            receivers: heard.get(flow).copied().unwrap_or(0),
            sent: 0,
            acked: 0,
            told: 0,
            due: 0,
            forgiven: 0,
            listed: false,
            seen: (0, 0),
        });
    }
    Ok(())
}

/// Keeps the connections alive until the other threads are as far.
fn wait_for_all(
    shared: &Shared,
    number: usize,
    arrived: &mut usize,
    d: &mut Driver,
    inbox: &mut Inbox<'_>,
) -> Result<(), String> {
    while !shared.arrive(number, arrived) && !shared.ended() {
        turn(d, inbox, Duration::from_millis(1))?;
    }
    Ok(())
}

pub(super) fn turn(d: &mut Driver, inbox: &mut Inbox<'_>, wait: Duration) -> Result<(), String> {
    d.turn(wait, &mut |id, now_ns, event| inbox.on(id, now_ns, event)).map_err(|e| e.to_string())
}

/// Warms up, measures, stops sending; and the messages of the schedule that were not sent.
fn traffic(
    plan: &Plan,
    shared: &Shared,
    d: &mut Driver,
    inbox: &mut Inbox<'_>,
    feed: &mut Feed<'_>,
) -> Result<(Step, u64), String> {
    let measure_ns = shared.start_ns() + (plan.warmup_s * 1e9) as u64;
    let end_ns = measure_ns + (plan.seconds * 1e9) as u64;
    shared.phase("traffic", end_ns / 1_000_000_000);
    let (mut meter, mut before) = (None, (0, 0));
    let mut told = (0, 0, 0);
    while d.now_ns() < end_ns && !shared.stopped() {
        if !inbox.measuring && d.now_ns() >= measure_ns {
            inbox.measuring = true;
            meter = Some(Meter::begin(&plan.pids));
            before = (inbox.delivered, feed.sent);
        }
        let wait = feed.go(d, inbox).min(Duration::from_nanos(end_ns.saturating_sub(d.now_ns())));
        turn(d, inbox, wait)?;
        if d.now_ns() > told.0 + 50_000_000 {
            shared.sent.fetch_add(feed.sent - told.1, Ordering::Relaxed);
            shared.delivered.fetch_add(inbox.delivered - told.2, Ordering::Relaxed);
            shared.done.store(d.now_ns() / 1_000_000_000, Ordering::Relaxed);
            inbox.tell();
            told = (d.now_ns(), feed.sent, inbox.delivered);
        }
    }
    inbox.note_times();
    inbox.measuring = false;
    let unsent = feed.unsent(inbox, end_ns.min(d.now_ns()));
    let Some(meter) = meter else {
        inbox.notes.push("it ended before anything was measured".to_owned());
        let step = Step { name: "traffic".to_owned(), unit: "delivered", sent: Some(0), ..Step::default() };
        return Ok((step, unsent));
    };
    let mut step = meter.end("traffic", inbox.delivered - before.0, "delivered");
    step.sent = Some(feed.sent - before.1);
    Ok((step, unsent))
}

/// Waits for what is still under way.
pub(super) fn drain(plan: &Plan, shared: &Shared, d: &mut Driver, inbox: &mut Inbox<'_>) -> Result<(), String> {
    shared.phase("the rest arrives", 0);
    let expected = inbox.expected();
    let (mut patience, mut seen, mut complete_ns) = (Patience::new(plan), (0, 0), None);
    while !patience.over() && !shared.ended() {
        let acked: u64 = inbox.publishers.iter().map(|p| p.acked).sum();
        let sent: u64 = inbox.publishers.iter().map(|p| p.sent).sum();
        if inbox.delivered >= expected && (plan.qos == 0 || acked >= sent) {
            let since = *complete_ns.get_or_insert_with(|| d.now_ns());
            if d.now_ns() > since + LINGER_NS {
                break;
            }
        }
        if seen != (inbox.delivered, acked) {
            seen = (inbox.delivered, acked);
            patience.renew();
        }
        turn(d, inbox, Duration::from_millis(10))?;
        inbox.tell();
    }
    inbox.ending = true;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_topic_has_its_subscribers_and_every_subscriber_a_topic() {
        for (publishers, subscribers, topics) in [(4, 4, 4), (1, 9, 1), (9, 1, 9), (7, 3, 7), (12, 9, 3), (4, 5, 20)] {
            let plan = Plan { publishers, subscribers, topics, run: 1, ..Plan::default() };
            let heard: Vec<_> = (0..subscribers).map(|number| hears(&plan, number)).collect();
            for publisher in 0..publishers {
                let name = format!("bench/0001/{}", publisher % topics).into_bytes();
                let hear = heard.iter().filter(|(publishers, _)| publishers.contains(&publisher));
                assert!(hear.clone().count() > 0, "{publisher} of {plan:?}");
                let all = subscribers == 1;
                assert!(hear.clone().all(|(_, filters)| all || filters.contains(&name)));
                assert_eq!(heard.iter().filter(|(_, f)| all || f.contains(&name)).count(), hear.count());
            }
            assert!(heard.iter().all(|(publishers, _)| publishers.is_sorted()));
        }
    }
}
