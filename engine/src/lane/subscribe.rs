//! SUBSCRIBE and UNSUBSCRIBE: checks, the barrier that SUBACK waits for, and the retained messages that follow it.

use serde::{Deserialize, Serialize};
use std::borrow::Cow;

use smallvec::SmallVec;

use super::exchange::{LaneMessage, Question};
use super::relay::{ToConnection, ToSession};
use super::{Lane, Todo, query::RetainedQuery};
use crate::channel::{ConnectionId, SessionRef};
use crate::codec::{QoS, Reason, Subscribe, SubscribeFilter, Unsubscribe};
use crate::message::Stored;
use crate::partition::{Ask, Input, Subscriber};
use crate::queue::SubscriptionIds;
use crate::session::Subscription;
use crate::shared::Member;
use crate::stats::Gauge;
use crate::topic;

/// What a SUBSCRIBE or an UNSUBSCRIBE wants of the session, as far as the connection has found it valid and allowed.
#[derive(Debug, Serialize, Deserialize)]
pub struct Wish<'a> {
    connection: ConnectionId,
    pub(super) session: SessionRef,
    /// Packet identifier.
    id: u16,
    v5: bool,
    /// It is an UNSUBSCRIBE.
    gone: bool,
    filters: SmallVec<[Wanted<'a>; 2]>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Wanted<'a> {
    filter: Cow<'a, str>,
    subscription: Subscription,
    retain_handling: u8,
    /// The connection has refused it with this code.
    refused: Option<u8>,
}

impl Wish<'_> {
    fn into_owned(self) -> Wish<'static> {
        let own = |w: Wanted<'_>| Wanted { filter: Cow::Owned(w.filter.into_owned()), ..w };
        Wish { filters: self.filters.into_iter().map(own).collect(), ..self }
    }
}

/// A SUBACK on its way: what it waits for, and what follows it.
#[derive(Debug)]
pub(super) struct Asked {
    connection: ConnectionId,
    pub session: SessionRef,
    id: u16,
    codes: SmallVec<[u8; 4]>,
    /// Filters whose retained messages are wanted.
    replays: Vec<(Box<str>, QoS, SubscriptionIds)>,
    /// Version of our interest that all must have confirmed.
    version: u64,
    /// Groups that have not answered, and where those are that were asked.
    joins: u32,
    groups: SmallVec<[u16; 2]>,
    /// The records of it are safe.
    safe: bool,
    /// UNSUBACK is due, not SUBACK.
    gone: bool,
}

/// Retained messages for one subscription, on their way from the lanes that keep them.
#[derive(Debug)]
pub(super) struct Gathering {
    pub session: SessionRef,
    filter: Box<str>,
    qos: QoS,
    ids: SubscriptionIds,
    /// Lanes that have not answered, as a bit mask.
    pub missing: u64,
    found: Vec<Stored>,
}

impl Lane {
    pub(super) fn on_subscribe(&mut self, key: usize, packet: &Subscribe<'_>) {
        let Some(c) = self.connections.get(key) else { return };
        let (session, v5, listener) = (c.session, c.version.is_v5(), c.listener);
        let connection = self.id_of(key);
        let id = packet.properties.subscription_id.unwrap_or(0);
        let qos_max = QoS::from_bits(self.config.qos_max(listener)).unwrap_or_default();
        let mut filters = SmallVec::new();
        for f in &packet.filters {
            let refused = match self.check_filter(key, f) {
                Ok(()) => None,
                Err((reason @ (Reason::PROTOCOL_ERROR | Reason::MALFORMED_PACKET), text)) => {
                    return self.refuse(key, reason, text);
                }
                Err((reason, _)) => Some(if v5 { reason.0 } else { 0x80 }),
            };
            let subscription = Subscription {
                qos: f.qos.min(qos_max),
                no_local: f.no_local,
                retain_as_published: f.retain_as_published,
                id,
            };
            let filter = self.mounted_filter(key, f.filter).map_or(Cow::Borrowed(f.filter), Cow::Owned);
            filters.push(Wanted { filter, subscription, retain_handling: f.retain_handling, refused });
        }
        self.wish(Wish { connection, session, id: packet.id, v5, gone: false, filters });
    }

    /// The session grants it, wherever it is; elsewhere takes a while, in which the client is not read.
    fn wish(&mut self, wish: Wish<'_>) {
        let partition = wish.session.partition;
        if self.owns(partition) && !self.is_halted(partition) {
            return self.grant(wish);
        }
        if let Some(c) = self.connection(wish.connection) {
            c.subscribing = true;
        }
        self.send_to_session(partition, ToSession::Wish(Box::new(wish.into_owned())));
    }

    /// What the session of this lane says to it.
    pub(super) fn grant(&mut self, wish: Wish<'_>) {
        let Wish { connection, session, id, v5, gone, filters } = wish;
        let mut asked = Asked {
            connection,
            session,
            id,
            codes: SmallVec::new(),
            replays: Vec::new(),
            version: 0,
            joins: 0,
            groups: SmallVec::new(),
            safe: true,
            gone,
        };
        let question = Question { lane: self.number, key: self.questions.vacant_key() };
        for wanted in filters {
            match wanted.refused {
                Some(code) => asked.codes.push(code),
                None if gone => self.unsubscribe_one(&wanted.filter, &mut asked),
                None => self.subscribe_one(&wanted, question, &mut asked),
            }
        }
        if gone && !v5 {
            asked.codes.clear();
        }
        self.answer_when_ready(asked);
    }

    /// SUBACK or UNSUBACK: now, or when groups, lanes and log are ready; until then the client is not read.
    fn answer_when_ready(&mut self, mut asked: Asked) {
        let (connection, session, entry) = (asked.connection, asked.session, self.questions.vacant_key());
        asked.safe = self.is_safe(session);
        if asked.version == 0 && asked.joins == 0 && asked.safe {
            return self.complete(asked);
        }
        let safe = asked.safe;
        self.questions.insert(asked);
        if let Some(c) = self.connection(connection) {
            c.subscribing = true;
        }
        if !safe {
            self.step(session.partition, Input::Fence { question: entry }, None);
        }
        self.work();
        self.complete_if_ready(entry);
    }

    /// Nothing of the session waits for the log, or it need not be in the log.
    fn is_safe(&self, session: SessionRef) -> bool {
        let partition = self.partitions.get(usize::from(session.partition)).and_then(|p| p.as_deref());
        partition.is_none_or(|p| p.journal().all_safe() || p.session(session).is_none_or(|s| !s.durable()))
    }

    pub(super) fn on_fenced(&mut self, question: usize) {
        if let Some(asked) = self.questions.get_mut(question) {
            asked.safe = true;
        }
        self.complete_if_ready(question);
    }

    fn check_filter(&mut self, key: usize, f: &SubscribeFilter<'_>) -> Result<(), (Reason, &'static str)> {
        let limits = &self.config.limits;
        let inner = match topic::shared(f.filter) {
            None => f.filter,
            Some(Ok(shared)) => shared.filter,
            Some(Err(())) => return Err((Reason::PROTOCOL_ERROR, "shared subscription without group or filter")),
        };
        if !topic::valid_filter(inner) {
            return Err((Reason::MALFORMED_PACKET, "malformed topic filter"));
        }
        if f.filter.len() > limits.topic_bytes_max || topic::levels(inner) > limits.topic_levels_max {
            return Err((Reason::MALFORMED_PACKET, "topic filter too long or too deep"));
        }
        if let Some(fault) = self.faults.iter_mut().find(|t| t.hits_subscribe(f.filter)) {
            return Err((fault.take(), "refused by a test"));
        }
        let Some(c) = self.connections.get(key) else { return Ok(()) };
        let mounted = mount(c.rare.as_ref().map_or("", |r| &r.mount_point), inner);
        if !c.rules.allow_all() && !c.rules.may_subscribe(mounted.as_deref().unwrap_or(inner)) {
            return Err((Reason::NOT_AUTHORIZED, "not authorized"));
        }
        Ok(())
    }

    fn subscribe_one(&mut self, wanted: &Wanted<'_>, question: Question, asked: &mut Asked) {
        let (filter, subscription, session) = (&*wanted.filter, wanted.subscription, asked.session);
        let now_ms = self.now_ms;
        let mut effects = self.spare_effects.pop().unwrap_or_default();
        let Some(partition) = self.partition(session.partition) else { return };
        let granted = partition.subscribe(now_ms, session, &Ask { filter, subscription }, &mut effects);
        self.wait_for = None;
        for effect in &mut effects {
            if let crate::partition::Effect::GroupJoin { group, member, .. } = effect {
                let (group, member) = (std::mem::take(group), member.clone());
                asked.joins += 1;
                asked.groups.push(self.shared.ring.partition(&group));
                self.ask_to_join(group, member, false, Some(question));
            }
        }
        effects.retain(|e| !matches!(e, crate::partition::Effect::GroupJoin { .. }));
        self.carry_out(&mut effects, None);
        self.spare_effects.push(effects);
        asked.version = asked.version.max(self.wait_for.take().unwrap_or(0));
        asked.codes.push(granted.code);
        let replay = match wanted.retain_handling {
            0 => true,
            1 => !granted.existed,
            _ => false,
        };
        if granted.code < 0x80 && replay && topic::shared(filter).is_none() {
            let id = subscription.id;
            let ids = (id != 0).then_some(id).into_iter().collect();
            asked.replays.push((filter.into(), subscription.qos, ids));
        }
        if !granted.existed && granted.code < 0x80 {
            self.stats.shift(Gauge::subscriptions, 1);
        }
    }

    /// The filter behind the mount point of the listener, if there is one.
    fn mounted_filter(&self, key: usize, filter: &str) -> Option<String> {
        let mount_point = &self.connections.get(key)?.rare.as_ref()?.mount_point;
        match topic::shared(filter) {
            Some(Ok(s)) => mount(mount_point, s.filter).map(|inner| format!("$share/{}/{inner}", s.group)),
            _ => mount(mount_point, filter),
        }
    }

    pub(super) fn tree_add(&mut self, filter: &str, subscriber: Subscriber) {
        if self.tree.insert(filter, subscriber).is_none() {
            let version = self.interest.add(filter);
            self.wait_for = self.wait_for.max(version);
        } else {
            // replaced: known already, but perhaps not to everybody yet
            let version = self.interest.add(filter);
            self.interest.remove(filter);
            self.wait_for = self.wait_for.max(version);
        }
    }

    pub(super) fn tree_remove(&mut self, filter: &str, key: u64) {
        if self.tree.remove(filter, key).is_some() {
            self.interest.remove(filter);
            if key >> 48 == 0 {
                self.stats.shift(Gauge::subscriptions, -1);
            }
        }
    }

    // ---- joining groups

    /// A session joins a group, with a SUBACK that waits or to assert a membership again.
    pub(super) fn ask_to_join(&mut self, group: Box<str>, member: Member, again: bool, question: Option<Question>) {
        let partition = self.shared.ring.partition(&group);
        if self.shared.ring.home(partition) == self.number && !self.is_halted(partition) {
            self.todo.push_back(Todo::Joined { group, member, again, question });
        } else {
            self.post_to(partition, LaneMessage::Join { group, member, again, question });
        }
    }

    /// The group is here: it joins, and answers when everybody knows that this lane wants the filter.
    pub(super) fn on_join(&mut self, group: &str, member: Member, again: bool, question: Option<Question>) {
        let partition = self.shared.ring.partition(group);
        self.wait_for = None;
        self.step(partition, Input::GroupJoin { group, member, again }, None);
        let filter = group.split_once('/').map_or(group, |(_, f)| f);
        // the group may be older than this member and its filter still unconfirmed
        let version = self.interest.add(filter).max(self.wait_for.take());
        self.interest.remove(filter);
        let Some(question) = question else { return };
        match version {
            Some(version) => self.joins.push((version, question)),
            None => self.say_joined(question),
        }
    }

    fn say_joined(&mut self, question: Question) {
        if question.lane == self.number {
            self.on_joined(question.key);
        } else {
            self.send(question.lane, LaneMessage::Joined { key: question.key });
        }
    }

    pub(super) fn on_joined(&mut self, key: usize) {
        self.questions.get_mut(key).into_iter().for_each(|asked| asked.joins = asked.joins.saturating_sub(1));
        self.complete_if_ready(key);
    }

    /// Whose SUBACK waits for a group to answer, or for a session of these partitions.
    pub(super) fn joining(&self, is_one: &dyn Fn(u16) -> bool) -> Vec<ConnectionId> {
        let waits = |a: &Asked| is_one(a.session.partition) || (a.joins > 0 && a.groups.iter().any(|p| is_one(*p)));
        self.questions.iter().filter(|(_, a)| waits(a)).map(|(_, a)| a.connection).collect()
    }

    /// The lane will not send its part of any retained messages; who waited for them.
    pub(super) fn gather_without(&mut self, lane: u16) -> Vec<SessionRef> {
        let missing = self.gatherings.iter().filter(|(_, g)| g.missing & 1 << lane != 0);
        let missing: Vec<(u64, SessionRef)> = missing.map(|(number, g)| (*number, g.session)).collect();
        for (number, _) in &missing {
            self.gather(*number, lane, Vec::new());
        }
        missing.into_iter().map(|(_, session)| session).collect()
    }

    // ---- the barrier

    pub(super) fn on_confirm(&mut self, from: u16, version: u64, mut sent: Vec<u64>, nodes: &[(u16, u64)]) {
        self.interest.confirm(from, version);
        self.void_counts(&mut sent, nodes);
        if let Some(known) = self.peer_sent.get_mut(usize::from(from)) {
            *known = sent;
        }
        self.look_at_barriers();
    }

    /// What waited for a version that everybody has confirmed now goes on.
    pub(super) fn look_at_barriers(&mut self) {
        self.serve_confirmed();
        let confirmed = self.interest.confirmed();
        let joins = std::mem::take(&mut self.joins);
        for (version, question) in joins {
            if version <= confirmed {
                self.say_joined(question);
            } else {
                self.joins.push((version, question));
            }
        }
        let ready: Vec<usize> = self.questions.iter().filter(|(_, a)| a.version <= confirmed).map(|(k, _)| k).collect();
        for key in ready {
            self.complete_if_ready(key);
        }
    }

    fn complete_if_ready(&mut self, key: usize) {
        let confirmed = self.interest.confirmed();
        let ready = self.questions.get(key).is_some_and(|a| a.joins == 0 && a.safe && a.version <= confirmed);
        if ready {
            let asked = self.questions.remove(key);
            self.complete(asked);
        }
    }

    /// SUBACK, then the retained messages.
    fn complete(&mut self, asked: Asked) {
        let Asked { connection, session, id, codes, replays, gone, .. } = asked;
        if connection.lane != self.number {
            self.tell_connection(connection, ToConnection::Answered { id, codes, gone });
        } else if !self.answer_wish(connection, id, codes, gone) {
            return;
        }
        for (filter, qos, ids) in replays {
            self.query_retained(session, &filter, qos, &ids);
        }
    }

    /// An exact topic has one owner, a wildcard asks every lane.
    fn query_retained(&mut self, session: SessionRef, filter: &str, qos: QoS, ids: &SubscriptionIds) {
        if let Some(fleet) = self.fleet.as_mut().filter(|f| !f.frozen.is_empty()) {
            return fleet.queries.push((session, filter.into(), qos, ids.clone()));
        }
        let owner = self.shared.ring.home(self.shared.ring.partition(filter));
        let everywhere = topic::has_wildcard(filter);
        if let Some(p) = self.partition(session.partition) {
            p.expect_replay(session, 1);
        }
        let mut missing = 0;
        for lane in (0..self.shared.ring.places()).filter(|&l| (everywhere || l == owner) && self.reaches(l)) {
            missing |= 1 << lane;
        }
        self.gathered += 1;
        let (number, filter, ids) = (self.gathered, filter.into(), ids.clone());
        self.gatherings.insert(number, Gathering { session, filter, qos, ids, missing, found: Vec::new() });
        for lane in 0..self.shared.ring.places() {
            self.ask_retained(number, lane);
        }
    }

    /// Every partition has an owner again: what waited for that is asked now.
    pub(super) fn ask_deferred_queries(&mut self) {
        let queries = self.fleet.as_mut().map(|f| std::mem::take(&mut f.queries)).unwrap_or_default();
        for (session, filter, qos, ids) in queries {
            self.query_retained(session, &filter, qos, &ids);
        }
    }

    fn ask_retained(&mut self, gathering: u64, lane: u16) {
        let Some(g) = self.gatherings.get(&gathering).filter(|g| g.missing & 1 << lane != 0) else { return };
        let filter = g.filter.clone();
        if lane == self.number {
            let messages = self.retained_here(&filter);
            return self.gather(gathering, lane, messages);
        }
        let after = self.peer_sent.iter().map(|sent| sent.get(usize::from(lane)).copied().unwrap_or(0)).collect();
        let (from, nodes) = (self.number, self.starts());
        self.send(lane, LaneMessage::Ask(RetainedQuery { from, gathering, filter, after, nodes }));
    }

    fn retained_here(&mut self, filter: &str) -> Vec<Stored> {
        let mut found = Vec::new();
        let only = (!topic::has_wildcard(filter)).then(|| self.shared.ring.partition(filter));
        let partitions = self.partitions.iter().enumerate();
        for (number, partition) in partitions.filter_map(|(n, p)| Some((n, p.as_deref()?))) {
            if only.is_none_or(|o| usize::from(o) == number) && !partition.state().retained.is_empty() {
                partition.state().retained.find(filter, &mut found);
            }
        }
        found
    }

    /// A lane's part of the retained messages is here; with the last part they go to the session.
    pub(super) fn gather(&mut self, gathering: u64, lane: u16, messages: Vec<Stored>) {
        const SORTED_MAX: usize = 1_024;
        let Some(g) = self.gatherings.get_mut(&gathering).filter(|g| g.missing & 1 << lane != 0) else { return };
        g.missing &= !(1 << lane);
        g.found.extend(messages);
        if g.missing != 0 {
            return;
        }
        let Some(Gathering { session, qos, ids, found: mut messages, .. }) = self.gatherings.remove(&gathering) else {
            return;
        };
        if messages.len() > 1 && messages.len() <= SORTED_MAX {
            // clients like to see the top of a small tree first, whichever partition keeps it
            messages.sort_by_cached_key(|m| topic::levels(m.view().topic));
        }
        self.step(session.partition, Input::Replay { session, messages, qos, ids }, None);
    }

    /// Questions of other lanes whose time has come: everything that they must see is applied.
    pub(super) fn answer_deferred(&mut self) {
        let queries = std::mem::take(&mut self.deferred);
        for query in queries {
            if query.is_due(self.number, &self.received, |slot| self.start_of(slot)) {
                let messages = self.retained_here(&query.filter);
                self.send(query.from, LaneMessage::Replay { gathering: query.gathering, messages });
            } else {
                self.deferred.push(query);
            }
        }
    }

    pub(super) fn on_unsubscribe(&mut self, key: usize, packet: &Unsubscribe<'_>) {
        let Some(c) = self.connections.get(key) else { return };
        let (session, v5) = (c.session, c.version.is_v5());
        let mut filters = SmallVec::new();
        for filter in &packet.filters {
            let bad_share = matches!(topic::shared(filter), Some(Err(())));
            let inner = topic::shared(filter).and_then(Result::ok).map_or(*filter, |s| s.filter);
            if bad_share || !topic::valid_filter(inner) {
                return self.refuse(key, Reason::MALFORMED_PACKET, "malformed topic filter");
            }
            let filter = self.mounted_filter(key, filter).map_or(Cow::Borrowed(*filter), Cow::Owned);
            filters.push(Wanted { filter, subscription: Subscription::default(), retain_handling: 0, refused: None });
        }
        self.wish(Wish { connection: self.id_of(key), session, id: packet.id, v5, gone: true, filters });
    }

    fn unsubscribe_one(&mut self, filter: &str, asked: &mut Asked) {
        let (now_ms, session) = (self.now_ms, asked.session);
        let mut effects = self.spare_effects.pop().unwrap_or_default();
        let reason = match self.partition(session.partition) {
            Some(p) => p.unsubscribe(now_ms, session, filter, &mut effects),
            None => Reason::UNSPECIFIED,
        };
        self.carry_out(&mut effects, None);
        self.spare_effects.push(effects);
        asked.codes.push(reason.0);
    }
}

/// Prefix and filter, unless there is no prefix.
fn mount(mount_point: &str, filter: &str) -> Option<String> {
    (!mount_point.is_empty()).then(|| format!("{mount_point}{filter}"))
}
