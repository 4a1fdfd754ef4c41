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

/// What shall be sent.
pub struct Job<'a> {
    pub senders: &'a [Id],
    pub count: u64,
    /// How many of them come to the inbox.
    pub deliveries: u64,
    pub next: &'a dyn Fn(u64) -> Option<Next<'a>>,
    /// It goes on though the load shall end: it takes away what the load has made.
    pub tidies: bool,
}

/// How a batch went.
#[derive(Debug, Default)]
pub struct Batch {
    pub sent: u64,
    /// By sender, in the order of the senders: those acknowledged without a gap.
    pub acked: Vec<u64>,
    pongs: usize,
    closed: bool,
}

impl Batch {
    fn acked(&self) -> u64 {
        self.acked.iter().sum()
    }

    /// Takes what has happened to a sender; what is left of it.
    fn on<'e>(&mut self, senders: &[Id], id: Id, event: Event<'e>) -> Option<Event<'e>> {
        match event {
            Event::Acked(n) => {
                let place = senders.iter().position(|s| *s == id).and_then(|at| self.acked.get_mut(at));
                place.into_iter().for_each(|acked| *acked += u64::from(n));
                None
            }
            Event::Pong => {
                self.pongs += 1;
                None
            }
            event => {
                self.closed |= matches!(event, Event::Closed(_)) && senders.contains(&id);
                Some(event)
            }
        }
    }
}

/// Sends what the job says; waits until each message is acknowledged (QoS 1 and 2) or known to be taken, and until the
/// deliveries have come.
///
/// # Errors
/// The system's poll fails.
pub fn send(
    d: &mut Driver,
    (plan, shared): (&Plan, &Shared),
    inbox: &mut Inbox<'_>,
    job: &Job<'_>,
) -> Result<Batch, String> {
    let mut batch = Batch { acked: vec![0; job.senders.len()], ..Batch::default() };
    let (mut count, mut deliveries, begun) = (job.count, job.deliveries, inbox.delivered);
    let (mut pinged, mut patience, mut seen) = (false, Patience::new(plan), (0, 0, 0));
    loop {
        if shared.stopped() && !job.tidies {
            (count, deliveries) = (batch.sent, deliveries.min(batch.sent));
        }
        let delivered = inbox.delivered - begun;
        // where only some of the messages are delivered, the window is of those
        let settled = (delivered * job.count).checked_div(job.deliveries).unwrap_or(u64::MAX);
        let settled = if plan.qos > 0 { settled.min(batch.acked()) } else { settled };
        let window = u64::from(plan.window) * job.senders.len() as u64;
        let until = count.min(settled.saturating_add(window));
        let room = go(d, plan, job, &mut batch, until);
        if batch.sent == count && !pinged {
            (pinged, batch.pongs) = (true, 0);
            job.senders.iter().for_each(|id| d.send_ping(*id));
        }
        let taken = pinged && batch.pongs >= job.senders.len() && (plan.qos == 0 || batch.acked() == count);
        if (taken && delivered >= deliveries) || batch.closed || patience.over() || shared.ended() {
            return Ok(batch);
        }
        let wait = if room && batch.sent < until { Duration::ZERO } else { Duration::from_millis(20) };
        d.turn(wait, &mut |id, now_ns, event| {
            if let Some(event) = batch.on(job.senders, id, event) {
                inbox.on(id, now_ns, event);
            }
        })
        .map_err(|e| e.to_string())?;
        let now = (batch.sent, inbox.delivered, batch.acked());
        if now != seen {
            seen = now;
            patience.renew();
        }
        shared.done.store(batch.sent, Ordering::Relaxed);
        shared.sent.store(batch.sent, Ordering::Relaxed);
        shared.delivered.store(inbox.delivered, Ordering::Relaxed);
        inbox.tell();
    }
}

/// Sends up to the message `until`; has everybody room for more?
fn go(d: &mut Driver, plan: &Plan, job: &Job<'_>, batch: &mut Batch, until: u64) -> bool {
    for _ in 0..GO_MAX {
        if batch.sent >= until || batch.closed {
            break;
        }
        let Some(n) = (job.next)(batch.sent) else { return false };
        // [MQTT-3.3.4-9]: not more than the server takes at a time
        let bound = |c: &crate::client::Client| plan.window.min(u32::from(c.receive_maximum)) as usize;
        if !d.has_room(n.sender) || d.client(n.sender).is_none_or(|c| c.under_way() >= bound(c)) {
            return false;
        }
        let stamp = Stamp { run: plan.run, publisher: n.publisher, sequence: n.sequence, due_ns: d.now_ns() };
        d.publish(n.sender, n.template, stamp);
        batch.sent += 1;
    }
    true
}

/// Looks at what comes for a time, or until `enough`, or until the load shall end at once.
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
    while d.now_ns() < until_ns && !enough(inbox) && !shared.ended() {
        d.turn(Duration::from_millis(10), &mut |id, now_ns, event| inbox.on(id, now_ns, event))
            .map_err(|e| e.to_string())?;
        inbox.tell();
    }
    Ok(())
}
