//! Everything that comes to the clients of one thread: each message is checked, each fault counted.

use std::sync::atomic::Ordering;

use hdrhistogram::Histogram;

use crate::client::Event;
use crate::codec::{Publish, Template};
use crate::driver::{Driver, Id};
use crate::plan::Plan;
use crate::report::{Report, Step, histogram};
use crate::shared::Shared;
use crate::stamp::Stamper;
use crate::tally::{Faults, Track};

/// A client that sends.
pub struct Publisher {
    pub id: Id,
    /// Its number among all publishers.
    pub flow: usize,
    pub template: Template,
    /// Subscribers that each of its messages goes to.
    pub receivers: u64,
    pub sent: u64,
    pub acked: u64,
    /// Acknowledged messages whose times were noted.
    pub told: u64,
    /// On a schedule: messages whose time has come.
    pub due: u64,
    /// Messages that are not waited for any more: they seem to be lost.
    pub forgiven: u64,
    /// In the list of those that may go on.
    pub listed: bool,
    /// How much had arrived at the last look, and since when it is so much.
    pub seen: (u64, u64),
}

/// A client that receives; what it hears of each publisher, by publisher.
pub struct Subscriber {
    tracks: Vec<(u32, Track)>,
}

impl Subscriber {
    /// Hears these publishers, given in rising order.
    #[must_use]
    pub fn new(publishers: impl Iterator<Item = usize>) -> Self {
        Self { tracks: publishers.map(|p| (p as u32, Track::default())).collect() }
    }

    fn track(&mut self, publisher: u32) -> Option<&mut Track> {
        let at = match self.tracks.get(publisher as usize) {
            // one that hears all
            Some((p, _)) if *p == publisher => publisher as usize,
            _ => self.tracks.binary_search_by_key(&publisher, |(p, _)| *p).ok()?,
        };
        self.tracks.get_mut(at).map(|(_, track)| track)
    }
}

#[derive(Clone, Copy)]
pub enum Role {
    Publisher(usize),
    Subscriber(usize),
}

/// What one thread hears.
pub struct Inbox<'a> {
    shared: &'a Shared,
    run: u16,
    qos: u8,
    /// By client.
    roles: Vec<Option<Role>>,
    pub publishers: Vec<Publisher>,
    pub subscribers: Vec<Subscriber>,
    /// What the members of the shared group got together; their own tracks tell the order.
    pub group: Option<Subscriber>,
    /// Topic of each publisher.
    topics: Vec<Box<[u8]>>,
    /// Flow to local publisher.
    local: Vec<u32>,
    /// Local publishers that may go on.
    pub listed: Vec<usize>,
    stamper: Stamper,
    pub faults: Faults,
    pub delivered: u64,
    /// Times of messages are taken.
    pub measuring: bool,
    pub latency: Histogram<u64>,
    again: (u64, u64),
    why: Option<String>,
    /// What a reader of the report should know.
    pub notes: Vec<String>,
    pub acks_out_of_order: u64,
    /// Faults that the others know of.
    told: u64,
    /// Messages are found, not live.
    pub retained: bool,
    /// Clients come and go: what was under way then may come twice at QoS 1, marked so.
    pub returns: bool,
    /// Connections end because the load ends.
    pub ending: bool,
    /// Connections that the server accepted.
    pub ready: u64,
}

impl<'a> Inbox<'a> {
    /// Without clients; `topics` by publisher.
    ///
    /// # Errors
    /// None that can happen.
    pub fn new(shared: &'a Shared, run: u16, qos: u8, topics: Vec<Box<[u8]>>) -> Result<Self, String> {
        Ok(Self {
            shared,
            run,
            qos,
            roles: Vec::new(),
            publishers: Vec::new(),
            subscribers: Vec::new(),
            group: None,
            local: vec![u32::MAX; topics.len()],
            topics,
            listed: Vec::new(),
            stamper: Stamper::new(),
            faults: Faults::default(),
            delivered: 0,
            measuring: false,
            latency: histogram()?,
            again: (0, 0),
            why: None,
            notes: Vec::new(),
            acks_out_of_order: 0,
            told: 0,
            retained: false,
            returns: false,
            ending: false,
            ready: 0,
        })
    }

    fn role(&mut self, id: Id, role: Role) {
        if self.roles.len() <= id {
            self.roles.resize(id + 1, None);
        }
        if let Some(place) = self.roles.get_mut(id) {
            *place = Some(role);
        }
    }

    pub fn add_publisher(&mut self, publisher: Publisher) {
        let number = self.publishers.len();
        self.role(publisher.id, Role::Publisher(number));
        if let Some(place) = self.local.get_mut(publisher.flow) {
            *place = number as u32;
        }
        self.publishers.push(publisher);
        self.list(number);
    }

    pub fn add_subscriber(&mut self, id: Id, subscriber: Subscriber) {
        self.role(id, Role::Subscriber(self.subscribers.len()));
        self.subscribers.push(subscriber);
    }

    /// Notes that a publisher may go on.
    pub fn list(&mut self, number: usize) {
        if let Some(p) = self.publishers.get_mut(number).filter(|p| !p.listed) {
            p.listed = true;
            self.listed.push(number);
        }
    }

    /// Takes what has happened to a client.
    pub fn on(&mut self, id: Id, now_ns: u64, event: Event<'_>) {
        let role = self.roles.get(id).copied().flatten();
        self.ready += u64::from(matches!(event, Event::Ready { .. }));
        match (event, role) {
            (Event::Message(m), Some(Role::Subscriber(number))) => self.message(number, now_ns, m),
            (Event::Message(_), _) => self.faults.misrouted += 1,
            (Event::Acked(n), Some(Role::Publisher(number))) => {
                if let Some(p) = self.publishers.get_mut(number) {
                    p.acked += u64::from(n);
                }
                self.list(number);
            }
            (Event::Room, Some(Role::Publisher(number))) => self.list(number),
            (Event::Subscribed(codes), _) => self.faults.refused += codes.iter().filter(|c| **c >= 0x80).count() as u64,
            (Event::Ready { present: false }, Some(Role::Subscriber(_))) if self.returns => self.faults.sessions += 1,
            (Event::Closed(why), _) if !self.ending => {
                self.faults.closed += 1;
                self.why.get_or_insert_with(|| why.to_owned());
            }
            _ => {}
        }
    }

    fn message(&mut self, number: usize, now_ns: u64, m: &Publish<'_>) {
        let Some(stamp) = self.stamper.read(m.payload) else {
            self.faults.damaged += 1;
            return;
        };
        let right = stamp.run == self.run && self.topics.get(stamp.publisher as usize).is_some_and(|t| **t == *m.topic);
        let Some(subscriber) = self.subscribers.get_mut(number).filter(|_| right) else {
            self.faults.misrouted += 1;
            return;
        };
        // QoS n for a subscription of QoS n; RETAIN tells found from live [MQTT-3.8.4-8], [MQTT-3.3.1-8], [MQTT-3.3.1-9]
        self.faults.damaged += u64::from(m.qos != self.qos || m.retain != self.retained);
        let new = match &mut self.group {
            None => match subscriber.track(stamp.publisher) {
                Some(track) => track.note(stamp.sequence, &mut self.faults),
                None => return self.faults.misrouted += 1,
            },
            Some(group) => {
                let Some(track) = group.track(stamp.publisher) else { return self.faults.misrouted += 1 };
                let new = track.note_shared(stamp.sequence, &mut self.faults);
                if let Some(own) = subscriber.track(stamp.publisher).filter(|_| new) {
                    self.faults.reordered += u64::from(stamp.sequence < own.next);
                    own.next = own.next.max(stamp.sequence);
                }
                new
            }
        };
        if !new {
            // [MQTT-4.4.0-1]: at QoS 1 that is what a return may bring
            self.faults.doubled -= u64::from(self.returns && m.dup && m.qos == 1);
            return;
        }
        self.delivered += 1;
        if self.measuring {
            self.time(now_ns.saturating_sub(stamp.due_ns));
        }
        if let Some(flow) = self.shared.flows.get(stamp.publisher as usize) {
            flow.delivered.fetch_add(1, Ordering::Relaxed);
        }
        let local = self.local.get(stamp.publisher as usize).copied().unwrap_or(u32::MAX);
        if local != u32::MAX {
            self.list(local as usize);
        }
    }

    /// Equal times come in rows: they are noted at once.
    fn time(&mut self, ns: u64) {
        if self.again.0 == ns {
            self.again.1 += 1;
            return;
        }
        self.note_times();
        self.again = (ns, 1);
    }

    /// Notes the row of equal times that is not noted yet.
    pub fn note_times(&mut self) {
        let (ns, count) = std::mem::take(&mut self.again);
        if count > 0 {
            self.latency.saturating_record_n(ns, count);
        }
    }

    /// Tells the others how much is wrong until now.
    pub fn tell(&mut self) {
        let now = self.faults.sum();
        self.shared.faults.fetch_add(now.saturating_sub(self.told), Ordering::Relaxed);
        self.told = self.told.max(now);
    }

    /// Nothing comes any more. Counts what only the end shows, and what the clients found: messages that never came, that
    /// nobody acknowledged, that were refused. Where the load had to end at once nobody knows what would have come.
    pub fn close(&mut self, d: &Driver) {
        let found = d.found();
        self.faults.refused += found.refused;
        self.faults.doubled += found.repeated;
        self.acks_out_of_order = found.acks_out_of_order;
        self.notes.extend(self.why.iter().map(|why| format!("a connection ended: {why}")));
        if self.shared.ended() {
            self.notes.push("ended at once: what was under way is not counted".to_owned());
            return;
        }
        self.faults.unacknowledged += found.unacknowledged;
        self.count_lost();
    }

    /// What the steps measured and the inbox, which is closed, found.
    #[must_use]
    pub fn report(self, plan: &Plan, steps: Vec<Step>) -> Report {
        Report {
            work: plan.work,
            ok: self.faults.none(),
            faults: self.faults,
            steps,
            acks_out_of_order: self.acks_out_of_order,
            notes: self.notes,
            run: plan.run,
        }
    }

    fn count_lost(&mut self) {
        let flows = &self.shared.flows;
        let lost = |s: &Subscriber| -> u64 {
            let of =
                |(p, t): &(u32, Track)| flows.get(*p as usize).map_or(0, |f| t.lost(f.sent.load(Ordering::Relaxed)));
            s.tracks.iter().map(of).sum()
        };
        self.faults.lost += match &self.group {
            Some(group) => lost(group),
            None => self.subscribers.iter().map(lost).sum(),
        };
    }

    /// Messages that all local subscribers together should have got by the end.
    #[must_use]
    pub fn expected(&self) -> u64 {
        let all = |s: &Subscriber| -> u64 {
            let of = |(p, _): &(u32, Track)| self.shared.flows.get(*p as usize).map(|f| f.sent.load(Ordering::Relaxed));
            s.tracks.iter().filter_map(of).sum()
        };
        self.group.as_ref().map_or_else(|| self.subscribers.iter().map(all).sum(), all)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::stamp::Stamp;

    /// The faults of a group whose members get these sequences.
    fn group(received: &[(usize, u64)]) -> Faults {
        let shared = Shared::new(1, 1);
        let mut inbox = Inbox::new(&shared, 1, 0, vec![b"t".as_slice().into()]).unwrap();
        for id in 0..2 {
            inbox.add_subscriber(id, Subscriber::new(0..1));
        }
        inbox.group = Some(Subscriber::new(0..1));
        for (member, sequence) in received {
            let mut payload = Vec::new();
            let stamp = Stamp { run: 1, publisher: 0, sequence: *sequence, due_ns: 0 };
            inbox.stamper.write(&mut payload, stamp, 24);
            let publish = Publish { qos: 0, dup: false, retain: false, topic: b"t", id: 0, payload: &payload };
            inbox.on(*member, 0, Event::Message(&publish));
        }
        inbox.faults
    }

    #[test]
    fn a_group_has_each_message_once_and_each_member_has_them_in_order() {
        assert_eq!(group(&[(0, 1), (1, 0), (1, 3), (0, 2)]), Faults::default());
        assert_eq!(group(&[(0, 1), (0, 0)]), Faults { reordered: 1, ..Faults::default() });
        assert_eq!(group(&[(0, 0), (0, 1), (0, 2), (0, 1)]), Faults { doubled: 1, ..Faults::default() });
        assert_eq!(group(&[(0, 0), (1, 0)]), Faults { doubled: 1, ..Faults::default() });
    }
}
