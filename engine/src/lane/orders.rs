//! Orders from outside, carried out by the lane that they concern.

use std::sync::Arc;

use super::owners::Owner;
use super::{Flow, Lane, ToConnection};
use crate::codec::{QoS, Reason};
use crate::connection::Stage;
use crate::message::{Head, Message, Stored};
use crate::port::{Fault, Order};
use crate::stats::Gauge;

impl Lane {
    pub(super) fn on_order(&mut self, order: Order) {
        if let Some(fault) = Fault::from_order(&order) {
            if let Order::Delay { wanted, ms } = &order {
                self.delay_present(wanted, *ms);
            }
            return self.faults.push(fault);
        }
        match order {
            Order::Publish { topic, payload, qos, retain } => self.publish_own(&topic, &payload, qos, retain),
            Order::Disconnect { client_id, reason, silent, drop_will } => {
                self.disconnect_client(&client_id, Reason(reason), silent, drop_will);
            }
            Order::Stats { id, light } => {
                if !light {
                    self.measure();
                }
                self.shared.measured(id);
            }
            Order::ClearFaults => self.faults.clear(),
            Order::Apply { config } => self.apply_config(config),
            Order::Drops { id, client_id } => {
                let entries = self.ledger.of(client_id.as_deref()).map(crate::stats::LedgerEntry::json).collect();
                self.shared.add_drops(id, self.ledger.total(), entries);
            }
            Order::Why { id, client_id, topic } => self.explain(id, &client_id, topic.as_deref()),
            Order::Members { nodes, .. } => self.on_members(&nodes),
            Order::Table { version, partitions, served } => {
                let served = served.into_iter().chain(std::iter::repeat(0));
                let owner = |(&(slot, epoch), served): (&(i32, u32), u32)| Owner {
                    slot: u16::try_from(slot).ok(),
                    epoch,
                    since: 0,
                    served,
                };
                let owners: Vec<Owner> = partitions.iter().zip(served).map(owner).collect();
                self.on_table(version, &owners);
            }
            Order::Move { partition, slot } => self.begin_move(partition, slot),
            Order::Split { partition, child } => self.begin_split(partition, child),
            Order::Shed { count, servers } => self.shed(count, &servers),
            Order::Stop { grace_ms } => self.begin_stop(grace_ms),
            Order::End => self.ended = true,
            _ => {}
        }
    }

    /// Counts what is too dear to count with every message.
    fn measure(&self) {
        let (mut sessions, mut persistent, mut queued, mut bytes, mut open) = (0i64, 0i64, 0i64, 0i64, 0i64);
        let mut loads = Vec::new();
        for (number, partition) in (0u16..).zip(&self.partitions) {
            let Some(partition) = partition else { continue };
            let (before, mut largest) = (bytes, None);
            for (_, session) in partition.state().each() {
                sessions += 1;
                persistent += i64::from(session.durable());
                queued += i64::try_from(session.queue.waiting()).unwrap_or(0);
                let held = i64::try_from(session.queue.bytes()).unwrap_or(0);
                bytes += held;
                if held > largest.map_or(0, |(_, most)| most) {
                    largest = Some((&*session.client_id, held));
                }
                open += i64::from(session.queue.open());
            }
            let largest = largest.map(|(client, held)| (client.into(), held));
            loads.push((number, partition.work(), bytes - before, largest));
        }
        self.shared.set_loads(self.number, loads);
        self.stats.set(Gauge::sessions, sessions);
        self.stats.set(Gauge::sessions_persistent, persistent);
        self.stats.set(Gauge::queued, queued);
        self.stats.set(Gauge::queued_bytes, bytes);
        self.stats.set(Gauge::inflight, open);
        self.stats.set(Gauge::shared_groups, self.groups());
        self.measure_fleet();
    }

    /// A message of the broker itself, past the ACL.
    fn publish_own(&mut self, topic: &str, payload: &str, qos: u8, retain: bool) {
        let Some(payload) = crate::access::decode_base64(payload) else { return };
        let qos = QoS::from_bits(qos).unwrap_or_default();
        let head = Head { qos, retain, ..Head::default() };
        let message = Stored::new(&Message { head, topic, props: &[], payload: &payload });
        self.flow = Flow::default();
        self.publish_stored(&message);
    }

    fn disconnect_client(&mut self, client_id: &str, reason: Reason, silent: bool, drop_will: bool) {
        let found = self.connections.iter().find(|(_, c)| *c.client_id == *client_id && c.stage == Stage::Open);
        if let Some((key, _)) = found {
            return self.kick(key, reason, silent, drop_will);
        }
        let partition = self.partition(self.shared.ring.partition(client_id)).map(|p| p.state());
        let session = partition.and_then(|state| state.session(state.find(client_id)?));
        if let Some(channel) = session.and_then(|s| s.channel) {
            self.tell_connection(channel.connection, ToConnection::Kick { reason, silent, drop_will });
        }
    }

    pub(super) fn kick(&mut self, key: usize, reason: Reason, silent: bool, drop_will: bool) {
        if let Some(c) = self.connections.get_mut(key) {
            c.ending.will = !drop_will;
        }
        if silent {
            return self.lost(key, "dropped by an operator");
        }
        self.close_for_session(self.id_of(key), reason);
    }

    fn delay_present(&mut self, wanted: &str, ms: u64) {
        let keys = self.connections.iter().filter(|(_, c)| wanted == "*" || *c.client_id == *wanted);
        let keys: Vec<usize> = keys.map(|(key, _)| key).collect();
        for key in keys {
            self.hold_output(key, ms);
        }
    }

    /// New rules, certificates and bounds; what is open stays open.
    fn apply_config(&mut self, config: Arc<crate::port::Config>) {
        self.config = config;
        let rules = self.config.rules(&self.shared);
        for partition in self.partitions.iter_mut().flatten() {
            partition.set_rules(rules.clone());
        }
        let keys: Vec<usize> = self.connections.iter().map(|(key, _)| key).collect();
        for key in keys {
            self.renew_rights(key);
        }
        self.tree.touch();
    }

    /// A connected client has the rights of the new rules from now on.
    fn renew_rights(&mut self, key: usize) {
        let Some(c) = self.connections.get_mut(key).filter(|c| c.stage == Stage::Open) else { return };
        let listener = self.config.settings.listeners.get(usize::from(c.listener));
        let Some(access) = listener.and_then(|l| self.config.access.get(l.access)) else { return };
        c.rules = access.renew(&c.rules, c.username.as_deref(), &c.client_id);
        let (session, rules) = (c.session, c.rules.clone());
        self.set_rights(session, rules);
    }

    /// No new connections; the others are told why they end [MQTT 5.0, 3.14.2.1].
    fn begin_stop(&mut self, grace_ms: u64) {
        self.stopping_at_ms = Some(self.now_ms + grace_ms.max(1));
        self.save_ledger();
        self.accepting = false;
        for (_, listener) in &mut self.listeners {
            let _ = listener.deregister(self.poll.registry());
        }
        self.listeners.clear();
        let keys: Vec<usize> = self.connections.iter().map(|(key, _)| key).collect();
        for key in keys {
            if self.connections.get(key).is_some_and(|c| c.stage == Stage::Open) {
                self.refuse(key, Reason::SHUTTING_DOWN, "server shutting down");
            } else {
                self.lost(key, "server shutting down");
            }
        }
        self.work();
        self.hang_up();
        self.shared.lane_stopped();
    }
}
