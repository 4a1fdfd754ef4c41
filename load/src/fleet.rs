//! Many clients at once: connect, subscribe, and wait until it is done.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::client::Event;
use crate::codec::Hello;
use crate::driver::{Driver, Id, KEEP_ALIVE_S};
use crate::plan::Plan;
use crate::shared::Shared;

/// At most so many filters in one SUBSCRIBE.
const FILTERS_MAX: usize = 100;
/// SUBSCRIBE packets of one client that wait for their answer.
const SUBSCRIBES_MAX: usize = 20;

/// How long a load waits for something that does not come.
pub struct Patience {
    at_most: Duration,
    since: Instant,
}

impl Patience {
    /// As the plan says.
    #[must_use]
    pub fn new(plan: &Plan) -> Self {
        Self { at_most: Duration::from_secs_f64(plan.patience_s), since: Instant::now() }
    }

    /// Something has come.
    pub fn renew(&mut self) {
        self.since = Instant::now();
    }

    /// Nothing has come for too long.
    #[must_use]
    pub fn over(&self) -> bool {
        self.since.elapsed() > self.at_most
    }
}

/// The hello of client `number` of a kind.
#[must_use]
pub fn hello(plan: &Plan, kind: &str, number: usize) -> Hello {
    Hello {
        client_id: format!("bench-{:04x}-{kind}{number}", plan.run),
        v5: plan.protocol == 5,
        clean: !plan.persistent,
        persistent: plan.persistent,
        keep_alive_s: KEEP_ALIVE_S,
        username: plan.username.clone(),
        password: plan.password.clone(),
    }
}

/// Connects clients, some at a time; those that are there in the order of the hellos. `each` is told of every one, and
/// how many ns it took, on a schedule from the instant when it was due.
///
/// # Errors
/// One of them is refused or closed, or nothing comes for too long.
pub fn connect(
    d: &mut Driver,
    plan: &Plan,
    shared: &Shared,
    hellos: impl IntoIterator<Item = Hello>,
    each: &mut dyn FnMut(Id, u64),
) -> Result<Vec<Id>, String> {
    let (mut ids, mut ready, mut patience) = (Vec::new(), 0, Patience::new(plan));
    let mut hellos = hellos.into_iter().peekable();
    let gap_s = if plan.rate > 0.0 && plan.work == crate::plan::Work::Connect { 1.0 / plan.rate } else { 0.0 };
    let (begun, mut since_ns) = (Instant::now(), HashMap::new());
    while hellos.peek().is_some() || ready < ids.len() {
        if ready == ids.len() {
            // nobody is waited for
            patience.renew();
        }
        while ids.len() - ready < plan.concurrency && ids.len() as f64 * gap_s <= begun.elapsed().as_secs_f64() {
            let Some(hello) = hellos.next() else { break };
            let id = d.add(hello).map_err(|e| format!("connection {} cannot be made: {e}", ids.len() + 1))?;
            // on a schedule it is late if it had to wait for those before it
            let scheduled = begun.elapsed().as_nanos() as f64 - ids.len() as f64 * gap_s * 1e9;
            since_ns.insert(id, d.now_ns().saturating_sub(if gap_s > 0.0 { scheduled as u64 } else { 0 }));
            ids.push(id);
        }
        let mut failed = None;
        let wait = Duration::from_millis(if gap_s > 0.0 { 1 } else { 20 });
        d.turn(wait, &mut |id, now_ns, event| match event {
            Event::Ready { .. } => {
                ready += 1;
                patience.renew();
                each(id, now_ns.saturating_sub(since_ns.remove(&id).unwrap_or(now_ns)));
            }
            Event::Closed(why) => failed = Some(why.to_owned()),
            _ => {}
        })
        .map_err(|e| e.to_string())?;
        shared.done.store(ready as u64, Ordering::Relaxed);
        if let Some(why) = failed {
            return Err(format!("connection {} of {}: {why}", ready + 1, plan.host));
        }
        if patience.over() {
            return Err(format!("{ready} of {} connections are there, the next does not come", ids.len()));
        }
        if shared.stopped() {
            return Err(format!("stopped while clients connected: {ready} were there"));
        }
    }
    let packet_max = ids.iter().filter_map(|id| d.client(*id)).map(|c| c.packet_max).min();
    match packet_max.filter(|max| plan.size >= *max as usize) {
        Some(max) => Err(format!("--size: the broker takes packets of at most {max} bytes")),
        None => Ok(ids),
    }
}

/// Subscribes clients to their filters; how many were refused.
///
/// # Errors
/// A client is closed, or nothing comes for too long.
pub fn subscribe_all(
    d: &mut Driver,
    plan: &Plan,
    shared: &Shared,
    wanted: &[(Id, Vec<Vec<u8>>)],
    other: &mut impl FnMut(Id, u64, Event<'_>),
) -> Result<u64, String> {
    let mut work: VecDeque<(Id, &[Vec<u8>])> =
        wanted.iter().flat_map(|(id, filters)| filters.chunks(FILTERS_MAX).map(|part| (*id, part))).collect();
    let (mut waiting, mut refused, mut done, mut patience) = (0, 0, 0, Patience::new(plan));
    let (mut number, limit) = (0_u16, SUBSCRIBES_MAX * wanted.len().clamp(1, 100));
    while waiting > 0 || !work.is_empty() {
        while let Some((id, part)) = work.front().filter(|_| waiting < limit) {
            number = number % 65_000 + 1;
            d.subscribe(*id, number, part, plan.qos);
            waiting += 1;
            work.pop_front();
        }
        let mut failed = None;
        d.turn(Duration::from_millis(20), &mut |id, now_ns, event| match event {
            Event::Subscribed(codes) => {
                refused += codes.iter().filter(|c| **c >= 0x80).count() as u64;
                done += codes.len() as u64;
                waiting -= 1;
                patience.renew();
            }
            Event::Closed(why) => failed = Some(why.to_owned()),
            event => other(id, now_ns, event),
        })
        .map_err(|e| e.to_string())?;
        shared.done.store(done, Ordering::Relaxed);
        if let Some(why) = failed {
            return Err(format!("a client was closed while it subscribed: {why}"));
        }
        if patience.over() {
            return Err(format!("{done} subscriptions are answered, the next is not"));
        }
        if shared.stopped() {
            return Err(format!("stopped while clients subscribed: {done} subscriptions were there"));
        }
    }
    Ok(refused)
}
