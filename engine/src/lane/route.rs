//! Who gets a message: matched once per topic, remembered until a subscription changes, then handed to the partitions
//! of this lane and to the other lanes that want it.

use std::rc::Rc;

use smallvec::SmallVec;

use super::exchange::Meant;
use super::{CACHE_MAX, Cached, Lane, LaneMessage, Receivers};
use crate::access::Action;
use crate::message::Inbound;
use crate::partition::{Input, Match, Subscriber, Target};

impl Lane {
    /// Fans a message out. `self.flow` says whose publish it is and collects the answers.
    pub(super) fn route(&mut self, message: &Inbound<'_>) {
        let receivers = self.receivers(message.view.topic);
        let held = self.held_back(message, receivers.places);
        let free = |p: u16| !held.contains(&p);
        self.deliver_here(message, &receivers, if held.is_empty() { None } else { Some(&free) });
        let mut places = receivers.places;
        while places != 0 {
            let to = u16::try_from(places.trailing_zeros()).unwrap_or(0);
            places &= places - 1;
            self.forward(to, message, if held.is_empty() { Meant::All } else { Meant::Except(held.clone()) });
        }
        if !held.is_empty() {
            self.pend(message, false, held);
        }
        if message.view.head.retain {
            self.retain(message);
        }
    }

    /// The part of a fan-out that stays in this lane.
    pub(super) fn route_here(&mut self, message: &Inbound<'_>, meant: Option<&dyn Fn(u16) -> bool>) {
        let receivers = self.receivers(message.view.topic);
        self.deliver_here(message, &receivers, meant);
    }

    fn deliver_here(&mut self, message: &Inbound<'_>, receivers: &Receivers, meant: Option<&dyn Fn(u16) -> bool>) {
        let token = self.flow.token;
        for targets in receivers.targets.chunk_by(|a, b| a.partition == b.partition) {
            let Some(first) = targets.first().filter(|t| meant.is_none_or(|meant| meant(t.partition))) else {
                continue;
            };
            self.flow.waiting += u16::from(token.is_some());
            self.step(first.partition, Input::Publish { message, targets, token }, Some(message));
        }
    }

    /// The retained copy goes to the partition of the topic's hash.
    pub(super) fn retain(&mut self, message: &Inbound<'_>) {
        let token = self.flow.token;
        let partition = self.shared.ring.partition(message.view.topic);
        let lane = self.shared.ring.home(partition);
        if self.fleet.is_some() && self.await_keeper(partition, message) {
            return;
        }
        if lane != self.number && !self.reaches(lane) {
            self.flow.outcome.retain_failed = true;
            return;
        }
        self.flow.waiting += u16::from(token.is_some());
        if lane == self.number {
            return self.step(partition, Input::Retain { message, token }, Some(message));
        }
        self.note_published(lane);
        let token = token.map(|token| self.number_ask(token, lane, message, true));
        self.send(lane, LaneMessage::Retain { partition, message: message.store(), token });
    }

    fn receivers(&mut self, topic: &str) -> Rc<Receivers> {
        let stamp = (self.tree.version(), self.interest.seen());
        if let Some(cached) = self.cache.get(topic).filter(|c| c.stamp == stamp) {
            return Rc::clone(&cached.receivers);
        }
        let receivers = Rc::new(self.match_topic(topic));
        if self.cache.len() >= CACHE_MAX && !self.cache.contains_key(topic) {
            self.cache.clear();
        }
        let cached = Cached { stamp, receivers: Rc::clone(&receivers) };
        match self.cache.get_mut(topic) {
            Some(old) => *old = cached,
            None => drop(self.cache.insert(topic.into(), cached)),
        }
        receivers
    }

    /// Matches the tree, joins overlapping subscriptions of one session, and leaves out whom the ACL keeps from reading.
    fn match_topic(&self, topic: &str) -> Receivers {
        let mut found: Vec<Subscriber> = Vec::new();
        self.tree.matches(topic, &mut |s| found.push(*s));
        found.sort_unstable_by_key(|s| (s.partition, s.group, s.slot));
        let mut targets: Vec<Target> = Vec::new();
        for s in found {
            let m = Match { qos: s.qos, no_local: s.no_local, retain_as_published: s.retain_as_published, id: s.id };
            match targets.last_mut() {
                Some(t) if (t.partition, t.group, t.slot) == (s.partition, s.group, s.slot) => t.matches.push(m),
                _ => {
                    let matches = SmallVec::from_slice(&[m]);
                    targets.push(Target { partition: s.partition, slot: s.slot, group: s.group, matches });
                }
            }
        }
        targets.retain(|t| t.group || self.may_read(t, topic));
        Receivers { targets, places: self.interest.peers_for(topic) }
    }

    fn may_read(&self, target: &Target, topic: &str) -> bool {
        let partition = self.partitions.get(usize::from(target.partition)).and_then(|p| p.as_deref());
        let session = partition.and_then(|p| p.state().session(target.slot));
        session.is_some_and(|s| s.rules.allow_all() || s.rules.may(Action::Deliver, topic))
    }
}
