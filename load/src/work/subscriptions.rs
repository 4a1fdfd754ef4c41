//! Many filters: how fast they are taken, what one costs in memory, and what a publish costs the broker while there are so
//! many: always to the same topics.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::batch::{Job, Next, listen, send};
use super::driver;
use super::inbox::{Inbox, Subscriber};
use crate::codec::Template;
use crate::driver::{Driver, Id};
use crate::fleet::{connect, hello, subscribe_all};
use crate::plan::Plan;
use crate::report::{Meter, Report, Step};
use crate::shared::Shared;

const SETTLE: Duration = Duration::from_millis(700);

/// Subscribes in steps and publishes at each.
///
/// # Errors
/// A connection is refused.
pub fn run(plan: &Plan, shared: &Shared) -> Result<Report, String> {
    if !plan.filter.contains("%i") {
        return Err(format!("--filter: `{}` has no %i for the number of the filter", plan.filter));
    }
    let mut targets: Vec<usize> = plan.steps.iter().copied().filter(|s| (1..plan.count).contains(s)).collect();
    targets.sort_unstable();
    targets.dedup();
    targets.push(plan.count);
    let published = plan.published.min(*targets.first().unwrap_or(&plan.count));
    let mut d = driver(plan, shared)?;
    let topics: Vec<Box<[u8]>> = (0..published).map(|n| topic(plan, n).into()).collect();
    let mut inbox = Inbox::new(shared, plan.run, plan.qos, topics.clone())?;
    let clients = plan.subscribers.max(1);
    let ids = connect(&mut d, plan, shared, (0..clients).map(|n| hello(plan, "s", n)), &mut |_, _| ())?;
    for (number, id) in ids.iter().enumerate() {
        inbox.add_subscriber(*id, Subscriber::new((0..published).filter(|n| n % clients == number)));
    }
    let sender = connect(&mut d, plan, shared, [hello(plan, "p", 0)], &mut |_, _| ())?;
    let mut work = Publishing {
        plan,
        shared,
        sender,
        templates: topics.iter().map(|t| Template::new(t, plan.qos, false, plan.size, plan.protocol == 5)).collect(),
        sent: 0,
    };
    let (mut steps, mut from) = (Vec::new(), 0);
    for to in targets.into_iter().take_while(|_| !shared.stopped()) {
        steps.push(filters(plan, shared, &mut d, &mut inbox, &ids, from..to)?);
        steps.push(work.publish(&mut d, &mut inbox, to)?);
        from = to;
    }
    inbox.close(&d);
    Ok(inbox.report(plan, steps))
}

fn filter(plan: &Plan, number: usize) -> String {
    plan.filter.replace("%i", &number.to_string())
}

/// A topic that the filter matches.
fn topic(plan: &Plan, number: usize) -> Vec<u8> {
    filter(plan, number).replace('+', "level").replace('#', "end").into_bytes()
}

fn filters(
    plan: &Plan,
    shared: &Shared,
    d: &mut Driver,
    inbox: &mut Inbox<'_>,
    ids: &[Id],
    numbers: std::ops::Range<usize>,
) -> Result<Step, String> {
    let count = numbers.len();
    let of = |at: usize| numbers.clone().filter(move |n| n % ids.len() == at).map(|n| filter(plan, n).into_bytes());
    let wanted: Vec<(Id, Vec<Vec<u8>>)> = ids.iter().enumerate().map(|(at, id)| (*id, of(at).collect())).collect();
    shared.phase("subscribe", count as u64);
    let meter = Meter::begin(&plan.pids);
    let refused = subscribe_all(d, plan, shared, &wanted, &mut |id, now_ns, event| inbox.on(id, now_ns, event))?;
    inbox.faults.refused += refused;
    let mut step = meter.end(&format!("subscribe up to {}", numbers.end), count as u64, "filters");
    listen(d, inbox, shared, SETTLE, &|_| false)?;
    if let (Some(before), Some(after)) = (meter.rss_bytes(), Meter::begin(&plan.pids).rss_bytes()) {
        step.bytes_each = Some((after as f64 - before as f64) / count.max(1) as f64);
    }
    Ok(step)
}

struct Publishing<'a> {
    plan: &'a Plan,
    shared: &'a Shared,
    sender: Vec<Id>,
    templates: Vec<Template>,
    sent: u64,
}

impl Publishing<'_> {
    /// The same topics in turn, while so many filters are there.
    fn publish(&mut self, d: &mut Driver, inbox: &mut Inbox<'_>, filters: usize) -> Result<Step, String> {
        let topics = self.templates.len().max(1) as u64;
        let wanted = if self.plan.messages > 0 { self.plan.messages } else { topics * 100 };
        let (begin, sender) = (self.sent, self.sender.first().copied().unwrap_or(0));
        let templates = &self.templates;
        let next = |n: u64| {
            let number = (begin + n) % topics;
            let template = templates.get(usize::try_from(number).ok()?)?;
            Some(Next { sender, template, publisher: number as u32, sequence: (begin + n) / topics })
        };
        self.shared.phase(&format!("publish at {filters} filters"), wanted);
        let meter = Meter::begin(&self.plan.pids);
        let job = Job { senders: &self.sender, count: wanted, deliveries: wanted, next: &next, tidies: false };
        let batch = send(d, (self.plan, self.shared), inbox, &job)?;
        let step = meter.end(&format!("publish at {filters}"), batch.sent, "published");
        self.sent += batch.sent;
        for (flow, number) in self.shared.flows.iter().zip(0..topics) {
            // those in front had one more turn
            flow.sent.store(self.sent / topics + u64::from(number < self.sent % topics), Ordering::Relaxed);
        }
        Ok(step)
    }
}
