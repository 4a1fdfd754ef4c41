//! This process as a node: its place among the others, and what its links and the cluster's log tell the lanes.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::json;

use super::{Config, MemberOrder, Shared};
use crate::lane::{LaneMessage, Mailbox};
use crate::limits::NODES_MAX;
use crate::link::{Event, Links, Member, Site, Trust};
use crate::log::{ClusterLog, ClusterLogEvent, ClusterLogNotify, ClusterLogState};
use crate::ring::{NODE_LANES_MAX, Ring, siphash};
use crate::settings::{NatsSettings, Settings};

/// Opens the log of a cluster. The engine knows no NATS: whoever starts it brings this.
pub type OpenLog<'a> = &'a dyn Fn(&NatsSettings, ClusterLogNotify) -> Result<Arc<dyn ClusterLog>, String>;

/// The ring as this node sees it.
pub(super) fn ring(ring: Ring, settings: &Settings) -> Result<Ring, String> {
    let Some(cluster) = &settings.cluster else { return Ok(ring) };
    if settings.data.is_some() {
        return Err("cluster: a node keeps nothing on its own disk: leave `data` out".to_owned());
    }
    if settings.key.is_none() {
        return Err("cluster: all nodes must have one `key`".to_owned());
    }
    if cluster.slot >= NODES_MAX {
        return Err(format!("cluster: slot {} is too high: at most {NODES_MAX} nodes", cluster.slot));
    }
    if ring.lanes() > NODE_LANES_MAX {
        return Err(format!("cluster: a node has at most {NODE_LANES_MAX} lanes"));
    }
    Ok(ring.among(cluster.slot))
}

/// Opens links and log; what comes goes to the mailboxes of the lanes.
pub(super) fn link(shared: &Arc<Shared>, config: &Config, open: Option<OpenLog<'_>>) -> Result<(), String> {
    let Some(cluster) = &config.settings.cluster else { return Ok(()) };
    if let Some(nats) = &cluster.nats {
        let open = open.ok_or("cluster: this engine was built without NATS")?;
        let weak = Arc::downgrade(shared);
        let notify: ClusterLogNotify = Arc::new(move |event| {
            weak.upgrade().iter().for_each(|shared| tell_log(shared, event.clone()));
        });
        let _ = shared.cluster_log.set(open(nats, notify)?);
    }
    let clock = Arc::clone(&shared.clock);
    let trust = cluster.secret.as_deref().map(|text| trust(text, cluster.encrypt_loopback)).transpose()?;
    let site = Site {
        trust,
        me: Member { slot: cluster.slot, incarnation: cluster.incarnation, address: cluster.links },
        cluster: siphash(shared.ring.key(), b"link"),
        now_ms: Box::new(move || clock.now_ms()),
        slow: Arc::clone(&shared.slow),
    };
    let weak = Arc::downgrade(shared);
    let tell = Box::new(move |event| {
        if let Some(shared) = weak.upgrade() {
            tell_link(&shared, event);
        }
    });
    let links = Links::start(site, tell).map_err(|e| format!("cluster: links at {}: {e}", cluster.links))?;
    let _ = shared.links.set(links);
    Ok(())
}

fn trust(secret: &str, everywhere: bool) -> Result<Trust, String> {
    let digits =
        (0..secret.len() / 2).map(|n| secret.get(2 * n..2 * n + 2).and_then(|t| u8::from_str_radix(t, 16).ok()));
    let bytes: Option<Vec<u8>> = digits.collect();
    let secret: [u8; 32] =
        bytes.and_then(|b| b.try_into().ok()).ok_or("cluster: the secret has 64 hexadecimal digits")?;
    Trust::of(&secret, everywhere)
}

fn tell_link(shared: &Arc<Shared>, event: Event) {
    match event {
        Event::Batch { incarnation, from, to, now_ms, bytes } => {
            if let Some(mailbox) = shared.mailbox(to) {
                return mailbox.post(from, vec![LaneMessage::Linked { from, incarnation, now_ms, bytes }]);
            }
            shared.links.get().iter().for_each(|links| links.taken(bytes.len()));
        }
        Event::Eased => {
            let places = (0..shared.ring.lanes()).map(|lane| shared.ring.place(lane));
            places.filter_map(|place| shared.mailbox(place)).for_each(Mailbox::wake);
        }
        Event::Up(slot, incarnation) => {
            for lane in 0..shared.ring.lanes() {
                let place = shared.ring.place(lane);
                shared.post(place, place, LaneMessage::Peer { slot, incarnation });
            }
            shared.events.push(json!({"event": "linked", "slot": slot, "incarnation": incarnation}));
        }
        Event::Beats(version, beats, carriers) => {
            let nodes: Vec<_> = beats
                .iter()
                .map(|b| {
                    let around = carriers.iter().find(|(s, _)| *s == b.slot).map(|(_, carrier)| carrier);
                    json!({"slot": b.slot, "heard_ms": b.heard_ms, "answered_ms": b.answered_ms, "members": b.version,
                        "way_ms": b.way_ms, "around": around})
                })
                .collect();
            shared.events.push(json!({"event": "links", "members": version, "nodes": nodes}));
        }
    }
}

fn tell_log(shared: &Shared, event: ClusterLogEvent) {
    let partition = match &event {
        ClusterLogEvent::State(state) => {
            let (state, why) = match state {
                ClusterLogState::Ready => ("ready", Vec::new()),
                ClusterLogState::Away(why) => ("away", vec![why.clone()]),
                ClusterLogState::Unsuitable(why) => ("unsuitable", why.clone()),
            };
            return shared.events.push(json!({"event": "log", "state": state, "why": why}));
        }
        ClusterLogEvent::NotKept(why) => return shared.events.push(json!({"event": "not_kept", "why": why})),
        ClusterLogEvent::Safe { partition, .. }
        | ClusterLogEvent::Read { partition, .. }
        | ClusterLogEvent::Again { partition }
        | ClusterLogEvent::ReadEnd { partition, .. }
        | ClusterLogEvent::Fenced { partition, .. }
        | ClusterLogEvent::Resigned { partition, .. }
        | ClusterLogEvent::Damaged { partition, .. }
        | ClusterLogEvent::Full { partition, .. }
        | ClusterLogEvent::Trimmed { partition, .. } => *partition,
    };
    let place = shared.ring.place(shared.ring.lane_of(partition));
    shared.post(place, place, LaneMessage::ClusterLog(event));
}

/// The members have changed: the lanes learn it before the links do.
pub(super) fn set_members(shared: &Shared, version: u64, nodes: &[MemberOrder]) {
    if let Ok(mut layout) = shared.layout.lock() {
        layout.lanes = nodes.iter().map(|n| (n.slot, n.lanes)).collect();
        layout.assign(&shared.ring);
    }
    let member = |n: &MemberOrder| Member { slot: n.slot, incarnation: n.incarnation, address: n.address };
    if let Some(links) = shared.links.get() {
        links.set_members(version, nodes.iter().map(member).collect());
    }
}

/// The table has changed: homes first, then the lanes learn it.
pub(super) fn set_homes(shared: &Shared, partitions: &[(i32, u32)]) {
    if let Ok(mut layout) = shared.layout.lock() {
        layout.owners = partitions.iter().map(|(slot, _)| u16::try_from(*slot).ok()).collect();
        layout.assign(&shared.ring);
        shared.ring.grow(u16::try_from(partitions.len()).unwrap_or(u16::MAX));
    }
}

/// Who has what, and how many lanes each has: both are told apart.
#[derive(Debug, Default)]
pub(super) struct Layout {
    lanes: HashMap<u16, u16>,
    owners: Vec<Option<u16>>,
}

impl Layout {
    fn assign(&self, ring: &Ring) {
        for (partition, slot) in (0..).zip(&self.owners) {
            ring.assign(partition, slot.and_then(|slot| Some((slot, *self.lanes.get(&slot)?))));
        }
    }
}
