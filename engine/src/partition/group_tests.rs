//! A shared group and its members in partitions with a log each: whatever dies, a message of QoS 2 reaches one member once.
//! The machine of `tests/cluster/model_group.py` with the real partitions.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use proptest::prelude::*;

use super::*;
use crate::log::Batch;
use crate::message::{Head, Message, Origin};
use crate::queue::{IN_MEMORY, Queue};
use crate::record::{Replay, next_record};
use crate::session::{NEVER, Subscription};

const FILTER: &str = "$share/g/t";
const NOW_MS: u64 = 5_000;
/// Partition 0 has the group, these have a member each.
const MEMBERS: [usize; 2] = [1, 2];

#[derive(Debug, Clone, Copy)]
enum Act {
    Publish,
    Write(usize),
    Sync(usize),
    Mail(usize, usize),
    Connect(usize),
    Cut(usize),
    End(usize),
    Answer(usize),
    Die { who: usize, kept: usize, mail: bool },
}

fn act(ends: u32) -> impl Strategy<Value = Act> {
    let member = 1usize..3;
    prop_oneof![
        2 => Just(Act::Publish),
        3 => (0usize..3).prop_map(Act::Write),
        5 => (0usize..3).prop_map(Act::Sync),
        8 => (0usize..2, 1usize..3).prop_map(|(down, m)| if down == 0 { Act::Mail(0, m) } else { Act::Mail(m, 0) }),
        2 => member.clone().prop_map(Act::Connect),
        1 => member.clone().prop_map(Act::Cut),
        ends => member.clone().prop_map(Act::End),
        3 => member.prop_map(Act::Answer),
        1 => (0usize..3, 0usize..4, any::<bool>()).prop_map(|(who, kept, mail)| Act::Die { who, kept, mail }),
    ]
}

/// What a partition tells another one, and what the lanes tell each other about who speaks for one.
enum Mail {
    Effect(Effect),
    Speaks,
}

/// A receiver of section 4.3.3 that keeps what it has received over connections.
#[derive(Default)]
struct Client {
    connection: u32,
    online: bool,
    held: BTreeSet<u16>,
    owes: VecDeque<(AckKind, u16)>,
    app: Vec<u64>,
}

struct World {
    partitions: Vec<Partition>,
    logs: [Vec<Batch>; 3],
    safe: [usize; 3],
    epochs: [u32; 3],
    mail: BTreeMap<(usize, usize), VecDeque<Mail>>,
    clients: [Client; 3],
    sent: u64,
    accepted: BTreeSet<u64>,
}

fn rules() -> Rules {
    Rules { many_logs: true, ..Rules::default() }
}

fn number(p: usize) -> u16 {
    u16::try_from(p).unwrap()
}

impl World {
    fn new() -> Self {
        let partitions = (0..3).map(|p| Partition::new(p, rules(), 1)).collect();
        let mut w = Self {
            partitions,
            logs: Default::default(),
            safe: [0; 3],
            epochs: [1; 3],
            mail: BTreeMap::new(),
            clients: Default::default(),
            sent: 0,
            accepted: BTreeSet::new(),
        };
        MEMBERS.into_iter().for_each(|member| w.connect(member));
        w.settle();
        w
    }

    fn session(&self, member: usize) -> Option<SessionRef> {
        let (slot, s) = self.partitions[member].state().each().next()?;
        Some(SessionRef { partition: number(member), slot, uid: s.uid })
    }

    fn connection(&self, member: usize) -> ConnectionId {
        ConnectionId { lane: 0, key: u32::from(number(member)), generation: self.clients[member].connection }
    }

    fn step(&mut self, p: usize, input: Input<'_>) {
        let mut out = Effects::new();
        self.partitions[p].step(NOW_MS, input, &mut out);
        self.carry_out(p, out);
    }

    fn carry_out(&mut self, p: usize, effects: Effects) {
        for effect in effects {
            let to = match &effect {
                Effect::GroupJoin { .. } | Effect::GroupLeave { .. } | Effect::GroupOnline { .. } => 0,
                Effect::GroupDone { place, .. } | Effect::GroupReturn { place, .. } => usize::from(place.partition),
                Effect::GroupAsk { session, .. } => usize::from(session.partition),
                Effect::Dispatch(d) => usize::from(d.to.partition),
                _ => {
                    self.for_client(p, effect);
                    continue;
                }
            };
            self.mail.entry((p, to)).or_default().push_back(Mail::Effect(effect));
        }
    }

    fn for_client(&mut self, p: usize, effect: Effect) {
        let client = &mut self.clients[p];
        let is_its = |c: ConnectionId| client.online && c.generation == client.connection;
        match effect {
            Effect::Attached { session, connection, present } if is_its(connection) => {
                if !present {
                    client.held.clear();
                }
                self.step(p, Input::Opened { session });
                self.subscribe(p, session);
            }
            Effect::Answer { token, .. } => drop(self.accepted.insert(token.number)),
            Effect::Deliver(d) if is_its(d.connection) => {
                if client.held.insert(d.id) {
                    let Body::Stored(message) = &d.body else { panic!("a group's messages are stored") };
                    client.app.push(u64::from_be_bytes(message.view().payload.try_into().unwrap()));
                }
                client.owes.push_back((AckKind::Pubrec, d.id));
            }
            Effect::Pubrel { connection, id, .. } if is_its(connection) => {
                client.held.remove(&id);
                client.owes.push_back((AckKind::Pubcomp, id));
            }
            _ => {}
        }
    }

    fn connect(&mut self, member: usize) {
        if self.clients[member].online {
            return;
        }
        self.clients[member].connection += 1;
        self.clients[member].online = true;
        let attach = Attach {
            connection: self.connection(member),
            client_id: "m".into(),
            clean: false,
            expiry_s: NEVER,
            receive_maximum: 2,
            will: None,
            rules: crate::access::Rules::default(),
            username: None,
            maker: 0,
        };
        self.step(member, Input::Attach(Box::new(attach)));
    }

    /// A new session is a member.
    fn subscribe(&mut self, member: usize, session: SessionRef) {
        if self.partitions[member].session(session).is_some_and(|s| s.subscriptions.is_empty()) {
            let subscription = Subscription { qos: QoS::ExactlyOnce, ..Subscription::default() };
            let ask = super::subscribe::Ask { filter: FILTER, subscription };
            let mut out = Effects::new();
            self.partitions[member].subscribe(NOW_MS, session, &ask, &mut out);
            self.carry_out(member, out);
        }
    }

    /// The connection ends, and the session with it if it expires at once.
    fn cut(&mut self, member: usize, expiry_s: Option<u32>) {
        if self.clients[member].online {
            let connection = self.connection(member);
            self.clients[member].online = false;
            self.clients[member].owes.clear();
            let ending = Ending { will: true, expiry_s };
            self.step(member, Input::Detach { session: None, client_id: "m", connection, ending });
        }
    }

    fn answer(&mut self, member: usize) {
        if let (Some((kind, id)), Some(session)) = (self.clients[member].owes.pop_front(), self.session(member)) {
            let connection = self.connection(member);
            self.step(member, Input::Ack { session, connection, kind, id, reason: Reason::SUCCESS });
        }
    }

    fn publish(&mut self) {
        let head = Head { qos: QoS::ExactlyOnce, publisher: 99, ..Head::default() };
        let payload = self.sent.to_be_bytes();
        let inbound = Inbound::new(Message { head, topic: "t", props: &[], payload: &payload });
        let token =
            Some(Token { connection: ConnectionId { lane: 0, key: 9, generation: 1 }, number: self.sent, ask: 0 });
        let Some(slot) = self.partitions[0].state().groups().next().map(|g| g.slot) else { return };
        let target = Target { partition: 0, slot, group: true, matches: smallvec::smallvec![] };
        self.sent += 1;
        self.step(0, Input::Publish { message: &inbound, targets: &[target], token });
    }

    /// What it wrote is handed to the log.
    fn write(&mut self, p: usize) {
        self.logs[p].extend(self.partitions[p].take_batch());
    }

    /// And is safe.
    fn sync(&mut self, p: usize) {
        self.write(p);
        self.safe[p] = self.logs[p].len();
        if let Some(last) = self.logs[p].last() {
            let (number, up_to) = (last.number, last.first + u64::from(last.count) - 1);
            self.step(p, Input::Safe { number, up_to, address: IN_MEMORY });
        }
    }

    fn deliver_mail(&mut self, from: usize, to: usize) -> bool {
        let Some(mail) = self.mail.get_mut(&(from, to)).and_then(VecDeque::pop_front) else { return false };
        match mail {
            Mail::Speaks if to == 0 => {
                let mut out = Effects::new();
                self.partitions[0].ask_heir(NOW_MS, number(from), true, &mut out);
                self.carry_out(0, out);
            }
            Mail::Speaks => {
                let mut out = Effects::new();
                self.partitions[to].join_again(&|_| true, &mut out);
                self.carry_out(to, out);
            }
            Mail::Effect(effect) => match effect {
                Effect::GroupJoin { group, member, again } => {
                    self.step(to, Input::GroupJoin { group: &group, member, again });
                }
                Effect::GroupLeave { group, session } => self.step(to, Input::GroupLeave { group: &group, session }),
                Effect::GroupOnline { group, session, online, window } => {
                    self.step(to, Input::GroupOnline { group: &group, session, online, window });
                }
                Effect::GroupDone { place, session } => self.step(to, Input::GroupDone { place, session }),
                Effect::GroupReturn { place, session } => self.step(to, Input::GroupReturn { place, session }),
                Effect::GroupAsk { group, session } => self.step(to, Input::GroupAsk { group: &group, session }),
                Effect::Dispatch(d) => self.step(to, Input::Dispatch(d)),
                other => panic!("{other:?}"),
            },
        }
        true
    }

    /// Its log has what is known to be safe and so many batches more; what it has said may still come.
    fn die(&mut self, p: usize, kept: usize, mail: bool) {
        self.write(p);
        self.logs[p].truncate(self.safe[p] + kept);
        self.safe[p] = self.logs[p].len();
        self.epochs[p] += 1;
        let mut replay = Replay::with_bodies(number(p));
        for batch in &self.logs[p] {
            let mut rest = &batch.records[..];
            while let Some((body, _)) = next_record(&mut rest).unwrap() {
                replay.record(body, 0).unwrap();
            }
        }
        let last = self.logs[p].last().map_or(0, |b| b.first + u64::from(b.count) - 1);
        let resumed = Resumed { incarnation: self.epochs[p], last, ended_ms: NOW_MS, now_ms: NOW_MS };
        let mut heir = Partition::recovered(number(p), rules(), replay, resumed);
        heir.set_next_batch(self.partitions[p].journal().batches());
        for other in 0..3 {
            self.mail.remove(&(other, p));
            if !mail {
                self.mail.remove(&(p, other));
            }
        }
        self.clients[p].online = false;
        self.clients[p].owes.clear();
        let mut out = Effects::new();
        heir.resume_all(resumed, &mut out);
        self.partitions[p] = heir;
        self.carry_out(p, out);
        let others = if p == 0 { &MEMBERS[..] } else { &[0][..] };
        for other in others {
            self.mail.entry((p, *other)).or_default().push_back(Mail::Speaks);
        }
    }

    /// Both members are there, and everything has come to its end.
    fn finish(&mut self) {
        self.settle();
        MEMBERS.into_iter().for_each(|member| self.connect(member));
        self.settle();
        self.step(0, Input::GroupsSettled { found: true });
        self.settle();
    }

    fn times(&self, n: u64) -> usize {
        self.clients.iter().flat_map(|c| &c.app).filter(|m| **m == n).count()
    }

    /// Messages that the group has not finished.
    fn kept(&self) -> usize {
        self.partitions[0].state().groups().map(|g| g.unfinished().count()).sum()
    }

    /// Until nothing happens any more: everything is safe, said and answered.
    fn settle(&mut self) {
        loop {
            let mut busy = false;
            for p in 0..3 {
                self.sync(p);
                for other in 0..3 {
                    while self.deliver_mail(p, other) {
                        busy = true;
                    }
                }
                while !self.clients[p].owes.is_empty() {
                    busy = true;
                    self.answer(p);
                }
            }
            if !busy && self.partitions.iter().all(|p| p.journal().all_safe()) {
                return;
            }
        }
    }

    fn act(&mut self, act: Act) {
        match act {
            Act::Publish => self.publish(),
            Act::Write(p) => self.write(p),
            Act::Sync(p) => self.sync(p),
            Act::Mail(from, to) => drop(self.deliver_mail(from, to)),
            Act::Connect(member) => self.connect(member),
            Act::Cut(member) => self.cut(member, None),
            Act::End(member) => self.cut(member, Some(0)),
            Act::Answer(member) => self.answer(member),
            Act::Die { who, kept, mail } => self.die(who, kept, mail),
        }
    }
}

fn cases() -> u32 {
    std::env::var("ROOST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(300)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases()))]
    /// Owners die with and without what they had written last, mail is lost or late, members come and go.
    #[test]
    fn one_member_once_whoever_dies(acts in proptest::collection::vec(act(0), 20..160)) {
        let mut w = World::new();
        acts.into_iter().for_each(|act| w.act(act));
        w.finish();
        for n in 0..w.sent {
            let times = w.times(n);
            prop_assert!(times <= 1, "message {} came {} times", n, times);
            prop_assert!(times == 1 || !w.accepted.contains(&n), "message {} was accepted and never came", n);
        }
        prop_assert_eq!(w.kept(), 0, "the group keeps what is finished");
    }

    /// Sessions end as well, and whoever was about to say so dies: what they had is with nobody for ever.
    #[test]
    fn what_a_session_had_does_not_stay_with_it(acts in proptest::collection::vec(act(1), 20..160)) {
        let mut w = World::new();
        acts.into_iter().for_each(|act| w.act(act));
        w.finish();
        for n in 0..w.sent {
            prop_assert!(w.times(n) <= 1, "message {} came {} times", n, w.times(n));
        }
        prop_assert_eq!(w.kept(), 0, "the group keeps what is finished");
        let members: usize = w.partitions[0].state().groups().map(|g| g.sessions(false).count()).sum();
        prop_assert_eq!(members, MEMBERS.len(), "who has gone is no member");
    }
}

/// A message that could not be taken is told to be back when the log knows that, and is never taken under the same number; one
/// whose session has ended and to which it was sent at QoS 2 is over [MQTT-4.8.2-5].
#[test]
fn what_goes_back_is_written_first() {
    let mut w = World::new();
    w.cut(1, None);
    w.settle();
    let to = w.session(1).unwrap();
    let place = |n| crate::queue::GroupPlace { partition: 0, uid: 77, index: n, n };
    let head = Head { qos: QoS::ExactlyOnce, ..Head::default() };
    let message = crate::message::Stored::new(&Message { head, topic: "t", props: &[], payload: &[0; 8] });
    let dispatch = |n| {
        let origin = Origin { uid: 77, n, answered: 0 };
        Input::Dispatch(Dispatched {
            to,
            place: Some(place(n)),
            origin,
            message: message.clone(),
            qos: QoS::ExactlyOnce,
            id: 0,
        })
    };
    let step = |w: &mut World, input: Input<'_>| {
        let mut out = Effects::new();
        w.partitions[1].step(NOW_MS, input, &mut out);
        out
    };
    let is_back = |out: &Effects, n| out.iter().any(|e| matches!(e, Effect::GroupReturn { place, .. } if place.n == n));
    assert!(!is_back(&step(&mut w, dispatch(1)), 1), "not before it is written");
    w.die(1, 0, true);
    w.connect(1);
    w.settle();
    assert!(step(&mut w, dispatch(1)).is_empty(), "that record was lost: it is taken now");
    w.sync(1);
    assert_eq!(w.clients[1].owes, [(AckKind::Pubrec, Queue::identifier(0))], "and sent");
    assert!(step(&mut w, dispatch(1)).is_empty(), "it is in the queue");
    w.cut(1, None);
    step(&mut w, dispatch(2));
    w.sync(1);
    w.connect(1);
    w.sync(1);
    assert!(is_back(&step(&mut w, dispatch(2)), 2), "never taken again");
    let (connection, ending) = (w.connection(1), Ending { will: true, expiry_s: Some(0) });
    let out = step(&mut w, Input::Detach { session: None, client_id: "m", connection, ending });
    assert!(out.iter().any(|e| matches!(e, Effect::GroupDone { place, .. } if place.n == 1)), "it was sent");
    w.sync(1);
    assert!(!is_back(&step(&mut w, dispatch(1)), 1), "and goes to nobody else");
}
