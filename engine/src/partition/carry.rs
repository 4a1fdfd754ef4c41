//! A partition that moves with everything it knows (`30-cluster.md`, section 6): sessions that end with their connection, windows
//! and channels included, so that no client notices.
//!
//! Contract: only a partition at rest is packed ([`Partition::at_rest`]): everything it wrote is safe and nobody waits for it. Places
//! of sessions stay, so references to them stay true. Each session travels with a digest of its own, the whole with that of the
//! durable state: what arrives is what left, or the session that differs is named.

use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::bodies::{Ahead, Bodies, print_of};
use super::{Effects, Journal, Partition, Rules};
use crate::channel::{ConnectionId, SessionRef};
use crate::inflight::Window;
use crate::log::Position;
use crate::record::{Record, State, digest, digest_of_origins, make_uid};
use crate::session::{Session, Total};
use crate::shared::Group;

const KEY: (u64, u64) = (0x526f_6f73_744d_5121, 0x6361_7272_6965_6421);
/// Stands for an entry without a body.
const NO_BODY: u32 = u32::MAX;

/// One session: its place, its name, a digest of what follows and of the bodies it names, then itself.
#[derive(Debug, Serialize, Deserialize)]
struct Bag {
    slot: u32,
    client_id: Box<str>,
    digest: u64,
    user: Option<Arc<str>>,
    #[serde(with = "serde_bytes")]
    session: Vec<u8>,
    /// For each message of its queue the body's place.
    bodies: Vec<u32>,
}

/// Everything a partition knows.
#[derive(Debug, Serialize, Deserialize)]
struct Luggage {
    /// It has a log.
    logged: bool,
    last: Position,
    next_uid: u64,
    digest: u64,
    /// So many bodies went ahead.
    ahead: u32,
    /// The others, one behind the other.
    #[serde(with = "serde_bytes")]
    bodies: Vec<u8>,
    bags: Vec<Bag>,
    retained: Vec<u32>,
    origins: Vec<(u64, Window)>,
    /// Each with the body of each place in its queue.
    groups: Vec<(Group, Vec<u32>)>,
}

/// Digest of a session's bytes and of the bodies that it names.
fn digest_of(session: &[u8], named: &[u32], bodies: &Bodies) -> u64 {
    let named = named.iter().map(|number| bodies.print(*number).unwrap_or(u64::from(*number)));
    let all: Vec<u8> = std::iter::once(print_of(session)).chain(named).flat_map(u64::to_le_bytes).collect();
    crate::ring::siphash(KEY, &all)
}

impl Partition {
    /// Nothing that it did is on its way: all is safe and answered.
    #[must_use]
    pub fn at_rest(&self) -> bool {
        let busy = |s: &Session| s.fetching || s.replay.as_ref().is_some_and(|r| r.pending > 0);
        let waits = !self.held_back.is_empty() || self.journal.is_waiting() || !self.journal.all_safe();
        !waits && !self.state.each().any(|(_, s)| busy(s))
    }

    /// From now on nothing is sent to clients at QoS 1 and 2 until it goes on, here or elsewhere.
    pub const fn pause(&mut self) {
        self.paused = true;
    }

    /// What has waited is sent.
    pub fn go_on(&mut self, now_ms: u64, out: &mut Effects) {
        (self.paused, self.now_ms) = (false, now_ms);
        let slots: Vec<u32> = self.state.each().filter(|(_, s)| s.channel.is_some()).map(|(slot, _)| slot).collect();
        for slot in slots {
            self.pump(slot, out);
        }
    }

    /// Every filter that its sessions and groups want.
    pub fn filters(&self) -> impl Iterator<Item = &str> {
        let own = self.state.each().flat_map(|(_, s)| s.subscriptions.keys());
        let own = own.filter(|f| super::subscribe::group_name(f).is_none()).map(|f| &**f);
        own.chain(self.state.groups().map(Group::filter))
    }

    /// Its bytes, without the messages that went ahead.
    ///
    /// # Errors
    /// It is more than the format can say.
    pub fn pack(&self, ahead: &mut Ahead) -> Result<Vec<u8>, String> {
        let users = self.rules.users.names();
        let mut bags = Vec::with_capacity(self.state.len());
        for (slot, s) in self.state.each() {
            let bodies = s.queue.iter().map(|(_, e)| e.body.as_ref().map_or(Ok(NO_BODY), |body| ahead.number(body)));
            let bodies = bodies.collect::<Result<Vec<u32>, String>>()?;
            let session = postcard::to_stdvec(s).map_err(|e| e.to_string())?;
            let digest = digest_of(&session, &bodies, ahead.bodies());
            let user = s.user.as_ref().and_then(|u| users.get(&Arc::as_ptr(u)).cloned());
            bags.push(Bag { slot, client_id: s.client_id.clone(), digest, user, session, bodies });
        }
        let retained = self.state.retained.each().map(|m| ahead.number(m)).collect::<Result<_, String>>()?;
        let mut groups = Vec::new();
        for group in self.state.groups() {
            let bodies = group.bodies().map(|body| body.map_or(Ok(NO_BODY), |body| ahead.number(body)));
            groups.push((group.clone(), bodies.collect::<Result<_, String>>()?));
        }
        let luggage = Luggage {
            logged: self.journal.on,
            last: self.journal.last(),
            next_uid: self.next_uid,
            digest: digest(&self.state),
            ahead: u32::try_from(ahead.elsewhere()).map_err(|e| e.to_string())?,
            bodies: ahead.take().1,
            bags,
            retained,
            origins: self.state.origins().map(|(uid, w)| (uid, w.clone())).collect(),
            groups,
        };
        let mut bytes = postcard::to_stdvec(&luggage).map_err(|e| e.to_string())?;
        bytes.extend_from_slice(&print_of(&bytes).to_le_bytes());
        Ok(bytes)
    }

    /// The partition that was packed, still paused; `bodies` went ahead. [`Self::settle_in`] follows, in its lane.
    ///
    /// # Errors
    /// The bytes are not what left: says what differs, and in which session.
    pub fn unpack(number: u16, rules: Rules, mut bodies: Bodies, bytes: &[u8]) -> Result<Self, String> {
        let (bytes, print) = bytes.split_last_chunk().ok_or("it is too short")?;
        let luggage: Luggage = postcard::from_bytes(bytes).map_err(|e| format!("it cannot be read: {e}"))?;
        if luggage.ahead as usize != bodies.len() {
            return Err(format!("of {} messages that went ahead {} are here", luggage.ahead, bodies.len()));
        }
        bodies.read(&luggage.bodies)?;
        let mut sessions = Vec::with_capacity(luggage.bags.len());
        for bag in luggage.bags {
            if digest_of(&bag.session, &bag.bodies, &bodies) != bag.digest {
                return Err(format!("session `{}` is not what it was", bag.client_id));
            }
            let read = postcard::from_bytes::<Session>(&bag.session);
            let mut session = read.map_err(|e| format!("session `{}` cannot be read: {e}", bag.client_id))?;
            session.queue.fill(bag.bodies.iter().map(|number| bodies.get(*number)));
            session.user = bag.user.and_then(|name| rules.users.account(&name));
            sessions.push((bag.slot, session));
        }
        let retained = luggage.retained.iter().map(|number| bodies.get(*number));
        let retained = retained.collect::<Option<_>>().ok_or("a retained message is missing")?;
        let mut groups = Vec::with_capacity(luggage.groups.len());
        for (mut group, named) in luggage.groups {
            group.fill(named.iter().map(|number| bodies.get(*number)));
            groups.push(group);
        }
        let state = State::carried(sessions, retained, luggage.origins, groups);
        if print_of(bytes) != u64::from_le_bytes(*print) {
            return Err("its digest differs from that of what left".to_owned());
        }
        if digest(&state) != luggage.digest {
            return Err("the digests of the durable state differ".to_owned());
        }
        let mut p = Self::new(number, rules, 0);
        p.journal = Journal::new(luggage.logged, luggage.last);
        (p.state, p.next_uid, p.paused) = (state, luggage.next_uid, true);
        p.count_in();
        Ok(p)
    }

    /// The partition that was packed, cut in two, both paused: the second one, with the second of these numbers, has the names that
    /// are its own. Their logs are those of the whole and a new one; [`Self::begin_log`] says where that begins.
    ///
    /// # Errors
    /// As [`Self::unpack`], and if the halves together are not the whole.
    pub fn halve(
        numbers: (u16, u16),
        rules: &Rules,
        (bodies, bytes): (&Bodies, &[u8]),
        is_second: &dyn Fn(&str) -> bool,
    ) -> Result<(Self, Self), String> {
        let (number, child) = numbers;
        let mut lower = Self::unpack(number, rules.clone(), bodies.clone(), bytes)?;
        let mut upper = Self::unpack(number, rules.clone(), bodies.clone(), bytes)?;
        let (whole, origins) = (digest(&lower.state), digest_of_origins(&lower.state));
        for (half, second) in [(&mut lower, false), (&mut upper, true)] {
            half.uncount();
            half.state.keep(&|name| is_second(name) == second);
            half.count_in();
        }
        if digest(&lower.state).wrapping_add(digest(&upper.state)) != whole.wrapping_add(origins) {
            return Err("the digests of the halves are not that of the whole".to_owned());
        }
        let moved: HashSet<u64> = upper.state.each().map(|(_, s)| s.uid).collect();
        let groups = lower.state.groups_mut().chain(upper.state.groups_mut());
        groups.for_each(|group| group.rehome(child, &moved));
        (upper.number, upper.next_uid) = (child, make_uid(child, 0, 1));
        Ok((lower, upper))
    }

    /// Its log goes on behind this record; batches have numbers from this one on.
    pub fn begin_log(&mut self, last: Position, batch: u64) {
        self.journal = Journal::new(true, last);
        self.journal.begin_at(batch);
    }

    /// A record that says nothing, so that the header of its append can.
    pub fn write_nothing(&mut self) {
        self.commit(true, Record::OriginForgotten { uid: 0 });
    }

    /// What is in its queues and retained counts from now on; [`Self::retire`] takes it back.
    fn count_in(&mut self) {
        let (mut messages, mut bytes) = (0, 0);
        for (_, s) in self.state.each().filter(|(_, s)| s.durable()) {
            let waits = s.queue.iter().filter(|(_, e)| e.needs_body()).count() as i64;
            messages += waits;
            bytes += s.queue.bytes() as i64;
            s.user.iter().for_each(|user| user.shift(waits, s.queue.bytes() as i64));
        }
        self.rules.queued.shift(messages, bytes);
        let retained = self.state.retained.each().filter(|m| m.head().publisher != 0);
        let (count, bytes) = retained.fold((0, 0), |(count, bytes), m| (count + 1, bytes + m.len() as i64));
        self.rules.retained.shift(count, bytes);
    }

    /// It is at home here: the tree learns what it wants, its timers run, and clients get what has waited.
    pub fn settle_in(&mut self, now_ms: u64, out: &mut Effects) {
        self.now_ms = now_ms;
        self.group_slots = slab::Slab::new();
        let groups: Vec<u64> = self.state.groups().map(|g| g.uid).collect();
        groups.into_iter().for_each(|uid| self.group_enlist(uid, out));
        let times: Vec<(u32, u64, u64)> =
            self.state.each().flat_map(|(slot, s)| [s.ends_at_ms, s.will_at_ms].map(|at| (slot, s.uid, at))).collect();
        for (slot, uid, at) in times.into_iter().filter(|(_, _, at)| *at != 0) {
            self.timers.set(at, (slot, uid));
        }
        let slots: Vec<u32> = self.state.each().map(|(slot, _)| slot).collect();
        for slot in slots {
            self.enlist(slot, out);
        }
        self.go_on(now_ms, out);
    }

    /// Sessions whose channel's other end is in one of these places.
    pub fn channels_of<'a>(
        &'a self,
        is_there: &'a dyn Fn(u16) -> bool,
    ) -> impl Iterator<Item = (SessionRef, &'a Session, ConnectionId)> {
        let partition = self.number;
        self.state.each().filter_map(move |(slot, s)| {
            let channel = s.channel.filter(|c| is_there(c.connection.lane))?;
            Some((SessionRef { partition, slot, uid: s.uid }, s, channel.connection))
        })
    }
}

impl super::Users {
    /// Names by account.
    fn names(&self) -> HashMap<*const Total, Arc<str>> {
        let Ok(all) = self.0.lock() else { return HashMap::new() };
        all.iter().map(|(name, account)| (Arc::as_ptr(account), Arc::clone(name))).collect()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::codec::QoS;
    use crate::message::{Head, Inbound, Message};
    use crate::partition::{Ask, Input, Match, Target};
    use crate::session::{Attach, Subscription};

    pub(in crate::partition) const CONNECTION: ConnectionId = ConnectionId { lane: 3, key: 1, generation: 7 };

    /// A partition with sessions of both kinds, some of them connected, with messages waiting and under way, retained ones and a
    /// shared group.
    pub(in crate::partition) fn lived_in() -> Partition {
        live_in(Partition::new(5, Rules::default(), 0))
    }

    pub(in crate::partition) fn live_in(mut p: Partition) -> Partition {
        let mut out = Effects::new();
        for n in 0..6u32 {
            let attach = Attach {
                connection: ConnectionId { key: n, ..CONNECTION },
                client_id: format!("client-{n}").into(),
                clean: n % 2 == 0,
                expiry_s: n % 3 * 100,
                receive_maximum: 2,
                will: None,
                rules: crate::access::Rules::default(),
                username: None,
                maker: 0,
            };
            p.step(1_000, Input::Attach(Box::new(attach)), &mut out);
            let slot = p.state.find(&format!("client-{n}")).unwrap();
            let session = SessionRef { partition: 5, slot, uid: p.state.session(slot).unwrap().uid };
            p.step(1_000, Input::Opened { session }, &mut out);
            let subscription = Subscription { qos: QoS::ExactlyOnce, ..Subscription::default() };
            p.subscribe(1_000, session, &Ask { filter: "t/+", subscription }, &mut out);
            (0..4).for_each(|word| say(&mut p, slot, &[word, n as u8]));
            if n == 4 {
                let ending = crate::partition::Ending::default();
                let detach = Input::Detach {
                    session: Some(session),
                    client_id: "client-4",
                    connection: ConnectionId { key: n, ..CONNECTION },
                    ending,
                };
                p.step(1_000, detach, &mut out);
            }
        }
        p
    }

    /// A message for the session in this slot, which is also retained.
    pub(in crate::partition) fn say(p: &mut Partition, slot: u32, payload: &[u8]) {
        let head = Head { qos: QoS::AtLeastOnce, publisher: 9, deadline_ms: 77_000, ..Head::default() };
        let message = Inbound::new(Message { head, topic: "t/x", props: &[], payload });
        let m = Match { qos: QoS::ExactlyOnce, no_local: false, retain_as_published: false, id: 0 };
        let (targets, token) = ([Target { partition: 5, slot, group: false, matches: smallvec::smallvec![m] }], None);
        let out = &mut Effects::new();
        p.step(1_000, Input::Publish { message: &message, targets: &targets, token }, out);
        p.step(1_000, Input::Retain { message: &message, token }, out);
    }

    /// What arrives is what left, to the last byte: packed once more it is the same.
    #[test]
    fn what_arrives_is_what_left() {
        let mut p = lived_in();
        p.pause();
        assert!(p.at_rest());
        let bytes = p.pack(&mut Ahead::default()).unwrap();
        let arrived = Partition::unpack(5, Rules::default(), Bodies::default(), &bytes).unwrap();
        assert_eq!(arrived.state.len(), p.state.len());
        assert_eq!(arrived.channels_of(&|_| true).count(), 5);
        assert_eq!(arrived.pack(&mut Ahead::default()).unwrap().len(), bytes.len());
        assert_eq!(digest(&arrived.state), digest(&p.state));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]
        /// One byte that was changed on the way is found, wherever it is, and never believed.
        #[test]
        fn a_changed_byte_is_found(at: prop::sample::Index, by in 1..=255u8) {
            let mut bytes = lived_in().pack(&mut Ahead::default()).unwrap();
            let at = at.index(bytes.len());
            bytes[at] ^= by;
            prop_assert!(Partition::unpack(5, Rules::default(), Bodies::default(), &bytes).is_err());
        }
    }

    /// Cut in two, everything is in one half, and what the log of the new half gets is that half: uids that name the old partition
    /// come back as they were.
    #[test]
    fn halves_are_the_whole_and_their_log_says_so() {
        let mut p = lived_in();
        p.pause();
        let is_second = |name: &str| name.ends_with(['1', '4', 'x']);
        let mut shared = Ahead::staying();
        let bytes = p.pack(&mut shared).unwrap();
        let halves = Partition::halve((5, 69), &Rules::default(), (shared.bodies(), &bytes), &is_second);
        let (lower, mut upper) = halves.unwrap();
        assert_eq!(lower.state.len() + upper.state.len(), p.state.len());
        assert!(
            upper.state.each().all(|(slot, s)| is_second(&s.client_id) && p.state.session(slot).unwrap().uid == s.uid)
        );
        upper.begin_log(0, 0);
        upper.write_nothing();
        let (mut walk, mut walked) = (crate::partition::Walk::default(), crate::log::Walked::default());
        assert!(upper.walk(&mut walk, &crate::log::Emptied::default(), &mut walked, usize::MAX >> 1));
        let batch = upper.take_batch().unwrap();
        let (mut replay, mut records) = (crate::record::Replay::with_bodies(69), batch.records.as_slice());
        while let Some((body, _)) = crate::record::next_record(&mut records).unwrap() {
            replay.record(body, 0).unwrap();
        }
        assert_eq!(digest(&replay.state), digest(&upper.state));
        assert!(replay.state.each().count() > 0);
    }

    /// A byte within a session names the session.
    #[test]
    fn the_session_that_differs_is_named() {
        let mut bytes = lived_in().pack(&mut Ahead::default()).unwrap();
        let name = b"client-3";
        let second = bytes.windows(8).enumerate().filter(|(_, w)| w == name).map(|(at, _)| at).nth(1).unwrap();
        bytes[second + 7] = b'8'; // its own copy of its client id
        let why = Partition::unpack(5, Rules::default(), Bodies::default(), &bytes).unwrap_err();
        assert!(why.contains("client-3"), "{why}");
    }
}
