//! Messages for persistent sessions that are away: prepare, load, drain, together or each in a process of its own, so that
//! the broker can be restarted, or killed, between them. What was acknowledged must come.

use std::fs;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::batch::{Job, Next, listen, send};
use super::driver;
use super::inbox::{Inbox, Subscriber};
use crate::codec::Template;
use crate::driver::{Driver, Id};
use crate::fleet::{connect, hello, subscribe_all};
use crate::plan::{Part, Plan};
use crate::report::{Meter, Report, Step};
use crate::shared::Shared;
use crate::stamp::STAMP;
use crate::tally::Faults;

/// Sessions that are online at a time while they subscribe or drain.
const TOGETHER: usize = 1000;
const LINGER: Duration = Duration::from_millis(100);
/// Messages for each session if nobody says how many.
const MESSAGES_EACH: u64 = 10;

/// What one part leaves to the next.
#[derive(Debug, Default, Deserialize, Serialize)]
struct State {
    run: u16,
    sessions: usize,
    qos: u8,
    size: usize,
    /// Messages sent to each session.
    sent: Vec<u64>,
    /// Those of them, from the first on, that the broker has taken over.
    acked: Vec<u64>,
}

/// Sessions that the plan is about: what a part before has left, if there was one. Reads or makes its file.
///
/// # Errors
/// There is no such file, it is not of a load, or it cannot be written.
pub fn sessions(plan: &Plan) -> Result<usize, String> {
    if matches!(plan.part, Part::Load | Part::Drain) && !plan.state.is_empty() {
        return load_state(&plan.state).map(|state| state.sessions);
    }
    if !plan.state.is_empty() {
        let file = fs::OpenOptions::new().append(true).create(true).open(&plan.state);
        file.map_err(|e| format!("{}: {e}", plan.state))?;
    }
    Ok(plan.count)
}

/// Runs one part or all.
///
/// # Errors
/// A connection is refused, or the file is not what a part before has left.
pub fn run(plan: &Plan, shared: &Shared) -> Result<Report, String> {
    let mut plan = plan.clone();
    if plan.part != Part::All && plan.state.is_empty() {
        return Err("--part: the parts need a --state FILE between them".to_owned());
    }
    let mut state = State { run: plan.run, sessions: plan.count, qos: plan.qos, size: plan.size, ..State::default() };
    if matches!(plan.part, Part::Load | Part::Drain) {
        state = load_state(&plan.state)?;
        (plan.run, plan.count, plan.qos, plan.size) = (state.run, state.sessions, state.qos, state.size);
    }
    let mut offline = Offline {
        plan: &plan,
        shared,
        faults: Faults::default(),
        steps: Vec::new(),
        notes: Vec::new(),
        acks_out_of_order: 0,
    };
    if matches!(plan.part, Part::All | Part::Prepare) {
        offline.prepare()?;
        (state.sent, state.acked) = (vec![0; plan.count], vec![0; plan.count]);
    }
    if matches!(plan.part, Part::All | Part::Load) {
        offline.load(&mut state)?;
    }
    if matches!(plan.part, Part::All | Part::Drain) {
        offline.drain(&state)?;
        (state.sent, state.acked) = (vec![0; plan.count], vec![0; plan.count]);
    }
    if !plan.state.is_empty() {
        let text = serde_json::to_string(&state).map_err(|e| e.to_string())?;
        fs::write(&plan.state, text).map_err(|e| format!("{}: {e}", plan.state))?;
    }
    let Offline { faults, steps, notes, acks_out_of_order, .. } = offline;
    Ok(Report { work: plan.work, ok: faults.none(), faults, steps, acks_out_of_order, notes, run: plan.run })
}

fn load_state(file: &str) -> Result<State, String> {
    let text = fs::read_to_string(file).map_err(|e| format!("{file}: {e}"))?;
    let state: State = serde_json::from_str(&text).map_err(|e| format!("{file}: not the state of a load: {e}"))?;
    let whole = state.sent.len() == state.sessions && state.acked.len() == state.sessions && state.sessions > 0;
    if !whole || state.qos > 2 || state.size < STAMP {
        return Err(format!("{file}: not the state of a load: its numbers do not fit together"));
    }
    Ok(state)
}

fn topic(plan: &Plan, session: usize) -> Box<[u8]> {
    format!("bench/{:04x}/o/{session}", plan.run).into_bytes().into()
}

fn inbox<'a>(plan: &Plan, shared: &'a Shared) -> Result<Inbox<'a>, String> {
    Inbox::new(shared, plan.run, plan.qos, (0..plan.count).map(|n| topic(plan, n)).collect())
}

struct Offline<'a> {
    plan: &'a Plan,
    shared: &'a Shared,
    faults: Faults,
    steps: Vec<Step>,
    notes: Vec<String>,
    acks_out_of_order: u64,
}

impl Offline<'_> {
    /// Sessions subscribe and go away.
    fn prepare(&mut self) -> Result<(), String> {
        let (plan, shared) = (self.plan, self.shared);
        let mut d = driver(plan, shared)?;
        let meter = Meter::begin(&plan.pids);
        for begin in (0..plan.count).step_by(TOGETHER) {
            let numbers = begin..plan.count.min(begin + TOGETHER);
            shared.phase(&format!("prepare from {begin}"), numbers.len() as u64);
            let ids = connect(&mut d, plan, shared, numbers.clone().map(|n| hello(plan, "o", n)), &mut |_, _| ())?;
            let wanted: Vec<(Id, Vec<Vec<u8>>)> =
                ids.iter().zip(numbers).map(|(id, n)| (*id, vec![topic(plan, n).into()])).collect();
            self.faults.refused += subscribe_all(&mut d, plan, shared, &wanted, &mut |_, _, _| ())?;
            ids.into_iter().for_each(|id| d.remove(id));
        }
        self.steps.push(meter.end("prepare", plan.count as u64, "sessions"));
        Ok(())
    }

    /// Publishers send to all sessions in turn; each session belongs to one publisher.
    fn load(&mut self, state: &mut State) -> Result<(), String> {
        let (plan, shared) = (self.plan, self.shared);
        let count = if plan.messages > 0 { plan.messages } else { plan.count as u64 * MESSAGES_EACH };
        let mut d = driver(plan, shared)?;
        let mut inbox = inbox(plan, shared)?;
        let publishers = plan.publishers.clamp(1, plan.count);
        let senders = connect(&mut d, plan, shared, (0..publishers).map(|n| hello(plan, "p", n)), &mut |_, _| ())?;
        let template = |n| Template::new(&topic(plan, n), plan.qos, false, plan.size, plan.protocol == 5);
        let templates: Vec<Template> = (0..plan.count).map(template).collect();
        let (sessions, before) = (plan.count as u64, state.sent.clone());
        let next = |n: u64| {
            let session = usize::try_from(n % sessions).ok()?;
            let sender = *senders.get(session % publishers)?;
            let sequence = before.get(session)? + n / sessions;
            Some(Next { sender, template: templates.get(session)?, publisher: session as u32, sequence })
        };
        shared.phase("load", count);
        let meter = Meter::begin(&plan.pids);
        let job = Job { senders: &senders, count, deliveries: 0, next: &next, tidies: false };
        let batch = send(&mut d, (plan, shared), &mut inbox, &job)?;
        let acked: u64 = batch.acked.iter().sum();
        let taken = if plan.qos > 0 { acked } else { batch.sent };
        self.steps.push(meter.end("load", taken, if plan.qos > 0 { "acknowledged" } else { "sent" }));
        self.note(&d, inbox);
        let places = state.sent.iter_mut().zip(&mut state.acked);
        for (session, (sent, acked)) in places.enumerate() {
            let sender = session % publishers;
            // sessions of this sender, and the place of this one among them
            let (of_sender, place) = ((plan.count - sender).div_ceil(publishers) as u64, (session / publishers) as u64);
            let rounds = |done: u64| done / of_sender + u64::from(place < done % of_sender);
            *sent += batch.sent / sessions + u64::from((session as u64) < batch.sent % sessions);
            *acked += batch.acked.get(sender).map_or(0, |done| rounds(*done));
        }
        Ok(())
    }

    /// Sessions come back, some at a time, and get what they missed.
    fn drain(&mut self, state: &State) -> Result<(), String> {
        let (plan, shared) = (self.plan, self.shared);
        let mut d = driver(plan, shared)?;
        let mut inbox = inbox(plan, shared)?;
        inbox.returns = true;
        // what was sent and not acknowledged may come or not
        let mut after = 0;
        for (flow, (acked, sent)) in shared.flows.iter().zip(state.acked.iter().zip(&state.sent)) {
            flow.sent.store(*acked, Ordering::Relaxed);
            after += sent - acked.min(sent);
        }
        if after > 0 {
            let why = if plan.qos > 0 { "sent and not acknowledged" } else { "sent at QoS 0" };
            self.notes.push(format!("{after} messages were {why}: they may come or not"));
        }
        let meter = Meter::begin(&plan.pids);
        for begin in (0..plan.count).step_by(TOGETHER) {
            let numbers = begin..plan.count.min(begin + TOGETHER);
            self.return_of(&mut d, &mut inbox, numbers, after > 0)?;
        }
        let mut step = meter.end("drain", inbox.delivered, "delivered");
        step.seconds -= LINGER.as_secs_f64() * plan.count.div_ceil(TOGETHER) as f64;
        step.per_second = step.count as f64 / step.seconds.max(1e-3);
        self.steps.push(step);
        self.note(&d, inbox);
        Ok(())
    }

    /// A thousand sessions: until they have everything, or, where more may come than must, until nothing comes.
    fn return_of(
        &self,
        d: &mut Driver,
        inbox: &mut Inbox<'_>,
        numbers: std::ops::Range<usize>,
        more: bool,
    ) -> Result<(), String> {
        let (plan, shared) = (self.plan, self.shared);
        shared.phase(&format!("drain from {}", numbers.start), 0);
        let expected = |n: usize| shared.flows.get(n).map_or(0, |f| f.sent.load(Ordering::Relaxed));
        let wanted = inbox.delivered + numbers.clone().map(expected).sum::<u64>();
        let patience = Duration::from_secs_f64(plan.patience_s);
        let mut ids = Vec::new();
        let before = inbox.ready + inbox.faults.closed;
        let all_there = |i: &Inbox<'_>, ids: usize| i.ready + i.faults.closed >= before + ids as u64;
        for number in numbers {
            if ids.len().is_multiple_of(plan.concurrency) {
                listen(d, inbox, shared, patience, &|i| all_there(i, ids.len()))?;
            }
            let id = d.add(hello(plan, "o", number)).map_err(|e| format!("session {number} cannot connect: {e}"))?;
            inbox.add_subscriber(id, Subscriber::new(std::iter::once(number)));
            ids.push(id);
        }
        listen(d, inbox, shared, patience, &|i| all_there(i, ids.len()))?;
        loop {
            let seen = inbox.delivered;
            let patience = Duration::from_secs_f64(if seen >= wanted { 1.0 } else { plan.patience_s });
            listen(d, inbox, shared, patience, &|i| !more && i.delivered >= wanted || i.delivered > seen)?;
            shared.delivered.store(inbox.delivered, Ordering::Relaxed);
            if !more && inbox.delivered >= wanted || inbox.delivered == seen {
                break;
            }
        }
        listen(d, inbox, shared, LINGER, &|_| false)?;
        ids.into_iter().for_each(|id| d.remove(id));
        Ok(())
    }

    fn note(&mut self, d: &Driver, mut inbox: Inbox<'_>) {
        inbox.close(d);
        self.faults.add(&inbox.faults);
        self.acks_out_of_order += inbox.acks_out_of_order;
        self.notes.append(&mut inbox.notes);
    }
}
