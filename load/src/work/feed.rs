//! When publishers send: as far as their windows allow, or on a fixed schedule that does not wait for anybody.

use std::sync::atomic::Ordering;
use std::time::Duration;

use hdrhistogram::Histogram;

use super::inbox::{Inbox, Publisher};
use crate::driver::Driver;
use crate::plan::Plan;
use crate::report::histogram;
use crate::shared::Shared;
use crate::stamp::Stamp;

/// Messages of one publisher in one go, where nothing else bounds them.
const GO_MAX: u64 = 256;
/// Where the next message is nearer than this, the thread does not sleep: the system's timers are too coarse.
const SPIN_NS: u64 = 1_500_000;
/// Messages of the schedule between two looks at what has come.
const SCHEDULE_MAX: usize = 4096;
/// A schedule that is not further behind at its end was kept.
const BEHIND_NS: u64 = 100_000_000;
/// Without progress for so long a window is opened by force; what is missing is then lost, or late.
const STALLED_NS: u64 = 2_000_000_000;

/// What a reader should know of a schedule that was not kept.
#[must_use]
pub fn not_kept(unsent: u64) -> Option<String> {
    (unsent > 0).then(|| format!("the schedule was not kept: {unsent} messages were due and not sent"))
}

/// The sending side of one thread.
pub struct Feed<'a> {
    shared: &'a Shared,
    run: u16,
    window: u64,
    qos: u8,
    threads: usize,
    /// Nanoseconds between two messages of one publisher; 0: no schedule.
    period_ns: f64,
    publishers: usize,
    begin_ns: u64,
    /// Publisher and round of the next message of the schedule.
    next: (usize, u64),
    pub sent: u64,
    pub late: Histogram<u64>,
    /// On a schedule: from the instant when a message was due until it was acknowledged.
    pub acknowledged: Histogram<u64>,
    looked_ns: u64,
}

impl<'a> Feed<'a> {
    /// Traffic that begins at `begin_ns`.
    ///
    /// # Errors
    /// None that can happen.
    pub fn new(plan: &Plan, shared: &'a Shared, begin_ns: u64) -> Result<Self, String> {
        let period_ns = if plan.rate > 0.0 { plan.publishers as f64 * 1e9 / plan.rate } else { 0.0 };
        Ok(Self {
            shared,
            run: plan.run,
            window: u64::from(plan.window),
            qos: plan.qos,
            threads: plan.threads,
            period_ns,
            publishers: plan.publishers,
            begin_ns,
            next: (0, 0),
            sent: 0,
            late: histogram()?,
            acknowledged: histogram()?,
            looked_ns: begin_ns,
        })
    }

    /// When a message of the schedule is due: publishers take turns.
    fn due_ns(&self, flow: usize, sequence: u64) -> u64 {
        let turns = sequence as f64 + flow as f64 / self.publishers as f64;
        self.begin_ns.saturating_add((turns * self.period_ns) as u64)
    }

    /// Sends what may be sent now; how long the thread may sleep.
    pub fn go(&mut self, d: &mut Driver, inbox: &mut Inbox<'_>) -> Duration {
        let now_ns = d.now_ns();
        if self.threads > 1 || now_ns > self.looked_ns + 100_000_000 {
            self.look(now_ns, inbox);
        }
        let mut listed = std::mem::take(&mut inbox.listed);
        for number in listed.drain(..) {
            self.one(number, now_ns, d, inbox);
        }
        if inbox.listed.is_empty() {
            inbox.listed = listed;
        }
        if self.period_ns > 0.0 {
            return self.schedule(now_ns, d, inbox);
        }
        match (inbox.listed.is_empty(), self.threads) {
            (false, _) => Duration::ZERO,
            (true, 1) => Duration::from_millis(50),
            (true, _) => Duration::from_millis(1),
        }
    }

    /// Notes every message of the schedule whose time has come, and sends those that may leave.
    fn schedule(&mut self, now_ns: u64, d: &mut Driver, inbox: &mut Inbox<'_>) -> Duration {
        for _ in 0..SCHEDULE_MAX {
            let Some(p) = inbox.publishers.get_mut(self.next.0) else { return Duration::from_millis(50) };
            let due_ns = self.due_ns(p.flow, self.next.1);
            if due_ns > now_ns {
                let left_ns = due_ns - now_ns;
                return if left_ns < SPIN_NS { Duration::ZERO } else { Duration::from_nanos(left_ns - SPIN_NS / 2) };
            }
            p.due += 1;
            let waits = p.due - p.sent > 1;
            let sent = self.sent;
            self.one(self.next.0, now_ns, d, inbox);
            if !waits && self.sent > sent && inbox.measuring {
                self.late.saturating_record(now_ns - due_ns);
            }
            self.next.0 += 1;
            if self.next.0 == inbox.publishers.len() {
                self.next = (0, self.next.1 + 1);
            }
        }
        Duration::ZERO
    }

    /// Messages of the schedule that should have left long before the end of the traffic, which is now, and did not.
    #[must_use]
    pub fn unsent(&self, inbox: &Inbox<'_>, end_ns: u64) -> u64 {
        let until_ns = end_ns.saturating_sub(BEHIND_NS);
        let due = |p: &Publisher| {
            let turns = until_ns.saturating_sub(self.begin_ns) as f64 / self.period_ns;
            (turns - p.flow as f64 / self.publishers as f64).ceil() as u64
        };
        let unsent = |p: &Publisher| due(p).saturating_sub(p.sent);
        if self.period_ns > 0.0 { inbox.publishers.iter().map(unsent).sum() } else { 0 }
    }

    /// Sends what one publisher may send.
    fn one(&mut self, number: usize, now_ns: u64, d: &mut Driver, inbox: &mut Inbox<'_>) {
        let scheduled = self.period_ns > 0.0;
        let Some(p) = inbox.publishers.get_mut(number) else { return };
        p.listed = false;
        if scheduled && inbox.measuring {
            for sequence in p.told..p.acked {
                let ns = now_ns.saturating_sub(self.due_ns(p.flow, sequence));
                self.acknowledged.saturating_record(ns);
            }
        }
        p.told = p.acked;
        let bound = d.client(p.id).map_or(0, |c| u64::from(c.receive_maximum));
        let arrived = self.shared.flows.get(p.flow).map_or(0, |f| f.delivered.load(Ordering::Relaxed));
        let settled = arrived.checked_div(p.receivers).unwrap_or(u64::MAX).saturating_add(p.forgiven);
        let mut until = match (scheduled, self.qos) {
            (true, _) => p.due,
            (false, 0) if p.receivers == 0 => p.sent + GO_MAX,
            (false, _) => settled.saturating_add(self.window),
        };
        if self.qos > 0 {
            until = until.min(p.acked + if scheduled { bound } else { bound.min(self.window) });
        }
        let mut room = true;
        while p.sent < until && room {
            let due_ns = if scheduled { self.due_ns(p.flow, p.sent) } else { now_ns };
            let stamp = Stamp { run: self.run, publisher: p.flow as u32, sequence: p.sent, due_ns };
            room = d.has_room(p.id);
            if room {
                d.publish(p.id, &p.template, stamp);
                p.sent += 1;
                self.sent += 1;
            }
        }
        let more = (p.sent < until) || (self.qos == 0 && p.receivers == 0 && !scheduled);
        if let Some(flow) = self.shared.flows.get(p.flow) {
            flow.sent.store(p.sent, Ordering::Relaxed);
        }
        // a full socket is looked at again ten times a second, or when it has room
        if more && room {
            inbox.list(number);
        }
    }

    /// Looks at all publishers: some may go on because of another thread, or because their messages are lost.
    fn look(&mut self, now_ns: u64, inbox: &mut Inbox<'_>) {
        let stalled = now_ns > self.looked_ns + 100_000_000;
        if stalled {
            self.looked_ns = now_ns;
        }
        for number in 0..inbox.publishers.len() {
            if let Some(p) = inbox.publishers.get_mut(number).filter(|_| stalled) {
                let arrived = self.shared.flows.get(p.flow).map_or(0, |f| f.delivered.load(Ordering::Relaxed));
                let settled = arrived.checked_div(p.receivers).unwrap_or(p.sent);
                if p.seen.0 != arrived {
                    p.seen = (arrived, now_ns);
                } else if now_ns > p.seen.1 + STALLED_NS && p.sent > settled + p.forgiven {
                    p.forgiven = p.sent - settled;
                    p.seen.1 = now_ns;
                }
            }
            inbox.list(number);
        }
    }
}
