//! A number of messages, sent as fast as the windows allow, until every one is answered for.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::inbox::Inbox;
use crate::client::Event;
use crate::codec::Template;
use crate::driver::{Driver, Id};
use crate::fleet::Patience;
use crate::plan::Plan;
use crate::shared::Shared;
use crate::stamp::Stamp;

/// Messages between two looks at what has come.
const GO_MAX: usize = 512;

/// One message of a batch.
pub struct Next<'a> {
    pub sender: Id,
    pub template: &'a Template,
    pub publisher: u32,
    pub sequence: u64,
}

/// How a batch went.
#[derive(Debug, Default)]
pub struct Batch {
    pub sent: u64,
    /// By sender, in the order of the senders.
    pub acked: Vec<u64>,
}

/// Sends `count` messages, `next` says which; waits until each is acknowledged (QoS 1 and 2) or known to be taken, and
/// until `deliveries` of them are delivered to the inbox.
///
/// # Errors
/// The system's poll fails.
pub fn send<'a>(
    d: &mut Driver,
    (plan, shared): (&Plan, &Shared),
    inbox: &mut Inbox<'_>,
    senders: &[Id],
    (count, deliveries): (u64, u64),
    next: &dyn Fn(u64) -> Option<Next<'a>>,
) -> Result<Batch, String> {
    let mut batch = Batch { sent: 0, acked: vec![0; senders.len()] };
    let (begun, window) = (inbox.delivered, u64::from(plan.window) * senders.len() as u64);
    let (mut pongs, mut pinged, mut patience, mut seen) = (0, false, Patience::new(plan), (0, 0, 0));
    let mut closed = false;
    loop {
        let acked: u64 = batch.acked.iter().sum();
        let delivered = inbox.delivered - begun;
        // where only some of the messages are delivered, the window is of those
        let settled = (delivered * count).checked_div(deliveries).unwrap_or(u64::MAX);
        let settled = if plan.qos > 0 { settled.min(acked) } else { settled };
        let mut room = true;
        for _ in 0..GO_MAX {
            if batch.sent == count || batch.sent >= settled.saturating_add(window) || !room || closed {
                break;
            }
            let Some(n) = next(batch.sent) else { break };
            room = d.has_room(n.sender);
            if room {
                let stamp = Stamp { run: plan.run, publisher: n.publisher, sequence: n.sequence, due_ns: d.now_ns() };
                d.publish(n.sender, n.template, stamp);
                batch.sent += 1;
            }
        }
        if batch.sent == count && !pinged {
            pinged = true;
            senders.iter().for_each(|id| d.send(*id, &[0xc0, 0]));
        }
        let taken = pongs >= senders.len() && (plan.qos == 0 || acked == count);
        if (pinged && taken && delivered >= deliveries) || closed || patience.over() || shared.stopped() {
            return Ok(batch);
        }
        let more = room && batch.sent < count && batch.sent < settled.saturating_add(window);
        d.turn(if more { Duration::ZERO } else { Duration::from_millis(20) }, &mut |id, now_ns, event| match event {
            Event::Acked(n) => {
                let place = senders.iter().position(|s| *s == id).and_then(|at| batch.acked.get_mut(at));
                place.into_iter().for_each(|acked| *acked += u64::from(n));
            }
            Event::Pong => pongs += usize::from(pinged),
            event => {
                closed |= matches!(event, Event::Closed(_)) && senders.contains(&id);
                inbox.on(id, now_ns, event);
            }
        })
        .map_err(|e| e.to_string())?;
        let now = (batch.sent, inbox.delivered, batch.acked.iter().sum());
        if now != seen {
            seen = now;
            patience.renew();
        }
        shared.done.store(batch.sent, Ordering::Relaxed);
        shared.sent.store(batch.sent, Ordering::Relaxed);
        shared.delivered.store(inbox.delivered, Ordering::Relaxed);
    }
}

/// Looks at what comes for a time, or until `enough`.
///
/// # Errors
/// The system's poll fails.
pub fn listen(
    d: &mut Driver,
    inbox: &mut Inbox<'_>,
    shared: &Shared,
    time: Duration,
    enough: &dyn Fn(&Inbox<'_>) -> bool,
) -> Result<(), String> {
    let until_ns = d.now_ns() + u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    while d.now_ns() < until_ns && !enough(inbox) && !shared.stopped() {
        d.turn(Duration::from_millis(10), &mut |id, now_ns, event| inbox.on(id, now_ns, event))
            .map_err(|e| e.to_string())?;
    }
    Ok(())
}
