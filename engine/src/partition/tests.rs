//! The partition without sockets: a schedule of both peers' packets, crashes and delays against a simple reference.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;
use crate::message::{Head, Message, Origin};
use crate::session::{NEVER, Subscription};

pub(super) const ME: ConnectionId = ConnectionId { lane: 0, key: 1, generation: 1 };
const OTHER: ConnectionId = ConnectionId { lane: 0, key: 2, generation: 2 };

fn partition() -> Partition {
    Partition::new(3, Rules::default(), 0)
}

pub(super) fn attach(connection: ConnectionId, clean: bool, expiry_s: u32, window: u16) -> Input<'static> {
    Input::Attach(Box::new(Attach {
        connection,
        client_id: "c".into(),
        clean,
        expiry_s,
        receive_maximum: window,
        will: None,
        rules: crate::access::Rules::default(),
        username: None,
        maker: u64::from(connection.generation),
    }))
}

/// A step; a CONNACK goes out at once, and what may follow it follows.
pub(super) fn step(p: &mut Partition, input: Input<'_>) -> Effects {
    let mut out = Effects::new();
    p.step(5_000, input, &mut out);
    open(p, &mut out);
    out
}

fn open(p: &mut Partition, out: &mut Effects) {
    let opened = out.iter().find_map(|e| if let Effect::Attached { session, .. } = e { Some(*session) } else { None });
    if let Some(session) = opened {
        p.step(5_000, Input::Opened { session }, out);
    }
}

/// Everything written so far is safe now.
fn sync(p: &mut Partition) -> Effects {
    let mut out = Effects::new();
    if let Some(batch) = p.take_batch() {
        let up_to = batch.first + u64::from(batch.count) - 1;
        p.step(5_000, Input::Safe { number: batch.number, up_to, address: 1 << 32 }, &mut out);
    }
    open(p, &mut out);
    out
}

pub(super) fn attached(effects: &[Effect]) -> (SessionRef, bool) {
    effects
        .iter()
        .find_map(|e| match e {
            Effect::Attached { session, present, .. } => Some((*session, *present)),
            _ => None,
        })
        .unwrap()
}

fn target(session: SessionRef, qos: QoS) -> Target {
    let m = Match { qos, no_local: false, retain_as_published: false, id: 0 };
    Target { partition: 3, slot: session.slot, group: false, matches: smallvec::smallvec![m] }
}

pub(super) fn publish(p: &mut Partition, session: SessionRef, qos: QoS, body: u64, from: Origin) -> Effects {
    let head = Head { qos, origin: from, publisher: 99, ..Head::default() };
    let payload = body.to_be_bytes();
    let inbound = Inbound::new(Message { head, topic: "t", props: &[], payload: &payload });
    let token = Some(Token { connection: OTHER, number: body, ask: 0 });
    step(p, Input::Publish { message: &inbound, targets: &[target(session, QoS::ExactlyOnce)], token })
}

/// Takeover: the new connection is attached only after the old one has confirmed its end; two claims at once leave the
/// last one [MQTT-3.1.4-3].
#[test]
fn takeover_waits_for_the_old_connection() {
    let mut p = partition();
    let (session, present) = attached(&step(&mut p, attach(ME, false, 60, 10)));
    assert!(!present);
    let effects = step(&mut p, attach(OTHER, false, 60, 10));
    assert!(matches!(effects[..], [Effect::Close { connection: ME, reason: Reason::TAKEN_OVER }]));
    let third = ConnectionId { lane: 0, key: 3, generation: 3 };
    let effects = step(&mut p, attach(third, false, 60, 10));
    assert!(effects.iter().any(|e| matches!(e, Effect::Close { connection: OTHER, .. })));
    let ending = Ending { will: true, expiry_s: None };
    step(&mut p, Input::Detach { session: None, client_id: "c", connection: OTHER, ending });
    let effects = step(&mut p, Input::Detach { session: Some(session), client_id: "c", connection: ME, ending });
    assert_eq!(attached(&effects), (session, true));
}

/// A connection that asks twice, as it was not sure who has its session, is attached once: its end ends it.
#[test]
fn asking_twice_attaches_once() {
    let mut p = partition();
    let (session, _) = attached(&step(&mut p, attach(ME, true, 60, 10)));
    assert!(step(&mut p, attach(ME, true, 60, 10)).is_empty());
    let ending = Ending { will: true, expiry_s: None };
    step(&mut p, Input::Detach { session: Some(session), client_id: "c", connection: ME, ending });
    assert_eq!(attached(&step(&mut p, attach(OTHER, false, 60, 10))), (session, true));
}

/// Nothing that depends on a record is said before the record is safe: answer, QoS 2 delivery, PUBREL, PUBCOMP, CONNACK.
#[test]
fn effects_wait_until_records_are_safe() {
    let cache = Arc::new(BodyCache::new(1024 * 1024));
    let mut p = Partition::new(3, Rules { cache, ..Rules::default() }, 1);
    assert!(step(&mut p, attach(ME, false, 60, 10)).is_empty());
    let (session, _) = attached(&sync(&mut p));
    assert!(publish(&mut p, session, QoS::ExactlyOnce, 1, Default::default()).is_empty());
    let effects = sync(&mut p);
    let id = effects.iter().find_map(|e| if let Effect::Deliver(d) = e { Some(d.id) } else { None }).unwrap();
    assert!(effects.iter().any(|e| matches!(e, Effect::Answer { .. })));
    let ack = |kind| Input::Ack { session, connection: ME, kind, id, reason: Reason::SUCCESS };
    assert!(step(&mut p, ack(AckKind::Pubrec)).is_empty());
    assert!(matches!(sync(&mut p)[..], [Effect::Pubrel { .. }]));
    let token = Token { connection: ME, number: 0, ask: 0 };
    assert!(matches!(step(&mut p, Input::Hold { session, id: 9, token })[..], [Effect::Held { .. }]), "one log");
    assert!(step(&mut p, Input::Release { session, connection: ME, id: 9, answer: true }).is_empty());
    assert!(matches!(sync(&mut p)[..], [Effect::Pubcomp { .. }]));
    assert!(step(&mut p, Input::Fence { question: 7 }).iter().any(|e| matches!(e, Effect::Fenced { question: 7 })));
    let effects = publish(&mut p, session, QoS::AtLeastOnce, 2, Default::default());
    assert!(matches!(effects[..], [Effect::Deliver(_)]), "QoS 1 leaves at once, its answer waits");
    assert_eq!(p.may_wait_until_ms(), None, "somebody waits for it");
    assert!(matches!(sync(&mut p)[..], [Effect::Answer { .. }]));
    step(&mut p, Input::Ack { session, connection: ME, kind: AckKind::Puback, id: id + 1, reason: Reason::SUCCESS });
    assert_eq!(p.may_wait_until_ms(), Some(5_250), "nobody waits for what is done");
    publish(&mut p, session, QoS::AtLeastOnce, 3, Default::default());
    assert!(p.may_wait_until_ms().is_none() && p.take_batch().unwrap().count == 2, "it goes with the next one");
}

/// Clean Start ends a session that would outlive a restart: its end is safe before CONNACK says that it is gone, also when
/// nothing is kept of the new one [MQTT-3.1.2-4].
#[test]
fn the_end_of_a_session_is_safe_before_its_connack() {
    let cache = Arc::new(BodyCache::new(1024 * 1024));
    let mut p = Partition::new(3, Rules { cache, ..Rules::default() }, 1);
    step(&mut p, attach(ME, false, 60, 10));
    let (session, _) = attached(&sync(&mut p));
    let ending = Ending { will: false, expiry_s: None };
    step(&mut p, Input::Detach { session: Some(session), client_id: "c", connection: ME, ending });
    sync(&mut p);
    let effects = step(&mut p, attach(OTHER, true, 0, 10));
    assert!(!effects.iter().any(|e| matches!(e, Effect::Attached { .. })));
    let (session, present) = attached(&sync(&mut p));
    assert!(!present);
    step(&mut p, Input::Detach { session: Some(session), client_id: "c", connection: OTHER, ending });
    assert!(step(&mut p, attach(ME, true, 0, 10)).iter().any(|e| matches!(e, Effect::Attached { .. })), "nothing ends");
}

/// A message with an origin is taken once, however often it is fanned out.
#[test]
fn origins_are_taken_once() {
    let mut p = partition();
    let (session, _) = attached(&step(&mut p, attach(ME, false, 60, 10)));
    let origin = Origin { uid: 7, n: 1, answered: 0 };
    let delivered = |effects: &Effects| effects.iter().filter(|e| matches!(e, Effect::Deliver(_))).count();
    assert_eq!(delivered(&publish(&mut p, session, QoS::ExactlyOnce, 1, origin)), 1);
    let again = publish(&mut p, session, QoS::ExactlyOnce, 1, origin);
    assert_eq!(delivered(&again), 0);
    assert!(again.iter().any(|e| matches!(e, Effect::Answer { outcome, .. } if outcome.accepted == 1)));
    step(&mut p, Input::ForgetOrigin { uid: 7 });
    assert_eq!(delivered(&publish(&mut p, session, QoS::ExactlyOnce, 1, origin)), 1);
}

/// Bounds of the queue and the three policies, each drop named.
#[test]
fn full_queues() {
    for (policy, kept, code) in
        [("drop_newest", [0, 1], (1, 0)), ("drop_oldest", [2, 3], (1, 0)), ("reject", [0, 1], (0, 1))]
    {
        let queue_policy = serde_json::from_value(serde_json::json!(policy)).unwrap();
        let limits = Limits { queue_messages_max: 2, queue_policy, ..Limits::default() };
        let rules = Rules { limits: Arc::new(limits), ..Rules::default() };
        let mut p = Partition::new(3, rules, 0);
        let (session, _) = attached(&step(&mut p, attach(ME, false, NEVER, 10)));
        let ending = Ending::default();
        step(&mut p, Input::Detach { session: Some(session), client_id: "c", connection: ME, ending });
        let mut last = Effects::new();
        for i in 0..4 {
            last = publish(&mut p, session, QoS::AtLeastOnce, i, Default::default());
        }
        assert!(last.iter().any(|e| matches!(e, Effect::Dropped { reason: DropReason::QueueFull, .. })), "{policy}");
        let outcome =
            last.iter().find_map(|e| if let Effect::Answer { outcome, .. } = e { Some(*outcome) } else { None });
        assert_eq!(outcome.map(|o| (o.accepted, o.rejected)), Some(code), "{policy}");
        let effects = step(&mut p, attach(ME, false, NEVER, 10));
        let bodies: Vec<u64> = effects.iter().filter_map(body_of).collect();
        assert_eq!(bodies, kept, "{policy}");
    }
}

fn body_of(effect: &Effect) -> Option<u64> {
    match effect {
        Effect::Deliver(Deliver { body: Body::Stored(m), .. }) => {
            Some(u64::from_be_bytes(m.view().payload.try_into().unwrap()))
        }
        _ => None,
    }
}

/// Subscriptions are bounded, replaced, and taken from the tree when the session ends.
#[test]
fn subscriptions_leave_with_their_session() {
    let limits = Limits { subscriptions_max: 2, ..Limits::default() };
    let rules = Rules { limits: Arc::new(limits), ..Rules::default() };
    let mut p = Partition::new(3, rules, 0);
    let (session, _) = attached(&step(&mut p, attach(ME, false, 0, 10)));
    let mut out = Effects::new();
    let subscription = Subscription { qos: QoS::AtLeastOnce, ..Subscription::default() };
    let codes: Vec<(u8, bool)> = ["a", "b", "a", "c"]
        .iter()
        .map(|filter| p.subscribe(5_000, session, &Ask { filter, subscription }, &mut out))
        .map(|g| (g.code, g.existed))
        .collect();
    assert_eq!(codes, [(1, false), (1, false), (1, true), (0x97, false)]);
    let ending = Ending::default();
    let effects = step(&mut p, Input::Detach { session: Some(session), client_id: "c", connection: ME, ending });
    assert_eq!(effects.iter().filter(|e| matches!(e, Effect::Unsubscribe { .. })).count(), 2);
    assert!(p.state().is_empty());
}

/// What a subscriber that follows the protocol has seen, and what the broker still owes it.
#[derive(Default)]
struct Subscriber2 {
    online: bool,
    generation: u32,
    /// QoS 2 identifiers received and not released: a repeat is not new.
    received: std::collections::BTreeSet<u16>,
    /// Packets on their way to it.
    inbox: VecDeque<(u16, QoS, bool, u64)>,
    releases: VecDeque<u16>,
    seen: Vec<u64>,
}

#[derive(Debug, Clone)]
enum Act {
    Publish(bool),
    Take,
    Ack,
    Release,
    Cut,
    Return,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        4 => any::<bool>().prop_map(Act::Publish),
        4 => Just(Act::Take),
        3 => Just(Act::Ack),
        3 => Just(Act::Release),
        1 => Just(Act::Cut),
        2 => Just(Act::Return),
    ];
    prop::collection::vec(act, 1..120)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    /// Any schedule of publishes, deliveries, acknowledgements, lost connections and returns: QoS 2 arrives exactly
    /// once and in order, QoS 1 at least once and first in order, never more open than the window allows.
    #[test]
    fn exactly_once_through_any_schedule(acts in acts(), window in 1u16..4) {
        let mut p = partition();
        let mut s = Subscriber2::default();
        let mut unacked: VecDeque<(u16, QoS)> = VecDeque::new();
        let (mut sent, mut next) = (Vec::new(), 0u64);
        let me = |g: u32| ConnectionId { lane: 0, key: 1, generation: g };
        let (session, _) = attached(&step(&mut p, attach(me(0), false, NEVER, window)));
        s.online = true;
        let mut all = acts.clone();
        // afterwards everything is finished
        all.push(Act::Return);
        all.extend(std::iter::repeat_n([Act::Take, Act::Ack, Act::Release], 400).flatten());
        for act in all {
            let connection = me(s.generation);
            let mut effects = Effects::new();
            let mut current = None;
            match act {
                Act::Publish(twice) => {
                    let qos = if twice { QoS::ExactlyOnce } else { QoS::AtLeastOnce };
                    sent.push((next, qos));
                    current = Some(next);
                    effects = publish(&mut p, session, qos, next, Default::default());
                    next += 1;
                }
                Act::Take if s.online => if let Some((id, qos, _dup, body)) = s.inbox.pop_front() {
                    if qos != QoS::ExactlyOnce || s.received.insert(id) {
                        s.seen.push(body);
                    }
                    unacked.push_back((id, qos));
                },
                Act::Ack if s.online => if let Some((id, qos)) = unacked.pop_front() {
                    let kind = if qos == QoS::ExactlyOnce { AckKind::Pubrec } else { AckKind::Puback };
                    effects = step(&mut p, Input::Ack { session, connection, kind, id, reason: Reason::SUCCESS });
                },
                Act::Release if s.online => if let Some(id) = s.releases.pop_front() {
                    s.received.remove(&id);
                    let kind = AckKind::Pubcomp;
                    effects = step(&mut p, Input::Ack { session, connection, kind, id, reason: Reason::SUCCESS });
                },
                Act::Cut if s.online => {
                    s.online = false;
                    s.inbox.clear();
                    s.releases.clear();
                    unacked.clear();
                    let ending = Ending { will: true, expiry_s: None };
                    step(&mut p, Input::Detach { session: Some(session), client_id: "c", connection, ending });
                }
                Act::Return if !s.online => {
                    s.online = true;
                    s.generation += 1;
                    effects = step(&mut p, attach(me(s.generation), false, NEVER, window));
                }
                _ => {}
            }
            for effect in effects {
                match effect {
                    Effect::Deliver(d) => {
                        let body = match &d.body {
                            Body::Current => current.unwrap(),
                            Body::Stored(m) => u64::from_be_bytes(m.view().payload.try_into().unwrap()),
                        };
                        s.inbox.push_back((d.id, d.qos, d.dup, body));
                    }
                    Effect::Pubrel { id, .. } => s.releases.push_back(id),
                    _ => {}
                }
            }
            let open = p.session(session).unwrap().queue.open();
            prop_assert!(open <= u32::from(window), "{open} open");
        }
        for (body, qos) in &sent {
            let n = s.seen.iter().filter(|b| *b == body).count();
            prop_assert!(n >= 1, "lost {body}: {:?}", s.seen);
            prop_assert!(*qos != QoS::ExactlyOnce || n == 1, "doubled {body}");
        }
        let mut firsts = Vec::new();
        for body in &s.seen {
            if !firsts.contains(body) {
                firsts.push(*body);
            }
        }
        prop_assert!(firsts.is_sorted(), "{:?}", firsts);
        prop_assert!(p.session(session).unwrap().queue.is_empty());
    }
}

/// A session whose time has come is not resumed, even if its timer has not fired yet.
#[test]
fn a_session_that_is_over_is_not_resumed() {
    let mut p = partition();
    let (session, _) = attached(&step(&mut p, attach(ME, false, 60, 10)));
    let ending = Ending::default();
    step(&mut p, Input::Detach { session: Some(session), client_id: "c", connection: ME, ending });
    for (later_ms, present) in [(59_000, true), (119_001, false)] {
        let mut out = Effects::new();
        p.step(5_000 + later_ms, attach(ME, false, 60, 10), &mut out);
        let (session, found) = attached(&out);
        assert_eq!(found, present);
        p.step(
            5_000 + later_ms,
            Input::Detach { session: Some(session), client_id: "c", connection: ME, ending },
            &mut out,
        );
    }
}

/// Identifiers go round: after 65,535 messages the first ones are used again, with a log and without one.
#[test]
fn identifiers_are_used_again() {
    for incarnation in [0, 1] {
        let cache = Arc::new(BodyCache::new(1024 * 1024));
        let mut p = Partition::new(3, Rules { cache, ..Rules::default() }, incarnation);
        let mut effects = step(&mut p, attach(ME, false, 60, 10));
        effects.extend(sync(&mut p));
        let (session, _) = attached(&effects);
        for body in 0..70_000 {
            let mut effects = publish(&mut p, session, QoS::AtLeastOnce, body, Default::default());
            effects.extend(sync(&mut p));
            let id = effects.iter().find_map(|e| if let Effect::Deliver(d) = e { Some(d.id) } else { None });
            let Some(id) = id else { panic!("message {body} is stuck, incarnation {incarnation}") };
            let kind = AckKind::Puback;
            step(&mut p, Input::Ack { session, connection: ME, kind, id, reason: Reason::SUCCESS });
        }
    }
}

/// What waits on the disk reaches its session also when there is no room in memory for what was read, be it because
/// there is none at all or because other partitions have taken it.
#[test]
fn bodies_on_disk_are_delivered_without_room_for_them() {
    for (room, taken) in [(0, 0), (64 * 1024, 2_000)] {
        let rules = Rules { cache: Arc::new(BodyCache::new(room)), ..Rules::default() };
        let (mut other, mut p) = (Partition::new(3, rules.clone(), 1), Partition::new(3, rules, 1));
        for (p, count) in [(&mut other, taken), (&mut p, 20)] {
            step(p, attach(ME, false, 60, 10));
            let (session, _) = attached(&sync(p));
            let ending = Ending { will: false, expiry_s: None };
            step(p, Input::Detach { session: Some(session), client_id: "c", connection: ME, ending });
            for body in 0..count {
                publish(p, session, QoS::AtLeastOnce, body, Default::default());
                sync(p);
            }
        }
        step(&mut p, attach(ME, false, 60, 10));
        let mut effects = sync(&mut p);
        let (session, _) = attached(&effects);
        let (mut delivered, mut fetches) = (0, 0);
        while let Some(effect) = effects.pop() {
            if let Effect::Deliver(d) = effect {
                delivered += 1;
                let kind = AckKind::Puback;
                effects.extend(step(
                    &mut p,
                    Input::Ack { session, connection: ME, kind, id: d.id, reason: Reason::SUCCESS },
                ));
            } else if let Effect::Fetch { wanted, .. } = effect {
                fetches += 1;
                assert!(fetches <= 20, "asked again and again, {delivered} delivered");
                let message = Message {
                    head: Head { qos: QoS::AtLeastOnce, ..Head::default() },
                    topic: "t",
                    props: &[],
                    payload: b"",
                };
                let bodies = wanted.iter().map(|w| (w.index, w.at, Some(Stored::new(&message)))).collect();
                effects.extend(step(&mut p, Input::Fetched { session, bodies }));
            }
        }
        assert_eq!(delivered, 20);
        assert!(fetches > 0, "the bodies were in memory");
    }
}

/// What waits for sessions that outlive their connection is counted once: also when a partition takes another's place
/// after a panic, and no more when the session ends. Its batches have numbers of their own.
#[test]
fn what_waits_is_counted_once() {
    let cache = Arc::new(BodyCache::new(1024 * 1024));
    let rules = Rules { cache, ..Rules::default() };
    let mut p = Partition::new(3, rules.clone(), 1);
    step(&mut p, attach(ME, false, 60, 10));
    let session = SessionRef { partition: 3, slot: 0, uid: p.state().session(0).unwrap().uid };
    for body in 0..5 {
        publish(&mut p, session, QoS::AtLeastOnce, body, Default::default());
    }
    let ack = Input::Ack { session, connection: ME, kind: AckKind::Puback, id: 1, reason: Reason::SUCCESS };
    step(&mut p, Input::Opened { session });
    step(&mut p, ack);
    let before = p.take_batch().unwrap();
    let waits = rules.queued.totals();
    publish(&mut p, session, QoS::AtLeastOnce, 9, Default::default()); // lost with the panic
    let mut replay = crate::record::Replay::new(3);
    let mut rest = &before.records[..];
    while let Some((body, _)) = crate::record::next_record(&mut rest).unwrap() {
        replay.record(body, 1 << 32).unwrap();
    }
    let resumed = Resumed { incarnation: 1, last: 20, ended_ms: 5_000, now_ms: 5_000 };
    let mut again = Partition::recovered(3, rules.clone(), replay, resumed);
    again.succeed(&mut p);
    assert_eq!(rules.queued.totals(), waits, "as before");
    again.resume_all(resumed, &mut Effects::new());
    step(&mut again, attach(OTHER, true, 60, 10));
    let number = again.take_batch().unwrap().number;
    assert!(number > before.number, "the log may still answer for the batches before");
    assert_eq!(rules.queued.totals(), (0, 0), "the session has ended");
}

/// A CONNECT that was not answered is asked again at the next owner of the partition, which finds in the log what the first one had
/// made of it: that is no session which its client has [MQTT-3.2.2-3]. Another CONNECT has it.
#[test]
fn asking_again_after_a_failover_finds_no_session() {
    let mut p = Partition::new(3, Rules::default(), 1);
    let mut out = Effects::new();
    p.step(5_000, attach(ME, false, 60, 10), &mut out);
    let batch = p.take_batch().unwrap();
    for (asks, present) in [(ME, false), (OTHER, true)] {
        let mut replay = crate::record::Replay::new(3);
        let mut records = batch.records.as_slice();
        while let Some((body, _)) = crate::record::next_record(&mut records).unwrap() {
            replay.record(body, 0).unwrap();
        }
        let resumed = Resumed { incarnation: 2, last: p.journal().last(), ended_ms: 5_000, now_ms: 5_000 };
        let mut again = Partition::recovered(3, Rules::default(), replay, resumed);
        again.resume_all(resumed, &mut out);
        step(&mut again, attach(asks, false, 60, 10));
        let effects = sync(&mut again);
        assert_eq!(attached(&effects).1, present, "{asks:?}");
    }
}
