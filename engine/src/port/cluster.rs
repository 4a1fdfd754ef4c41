//! This process as a node: its place among the others, and what its links tell the lanes.

use std::sync::Arc;

use super::{Config, Shared};
use crate::lane::LaneMessage;
use crate::link::{Event, Links, Node, Site};
use crate::ring::{Ring, siphash};
use crate::settings::Settings;

/// The ring as this node sees it.
pub(super) fn ring(ring: Ring, settings: &Settings) -> Result<Ring, String> {
    let Some(cluster) = &settings.cluster else { return Ok(ring) };
    let lanes: Vec<u16> = cluster.nodes.iter().map(|n| n.lanes).collect();
    if settings.data.is_some() {
        return Err("cluster: a node keeps nothing on its own disk: leave `data` out".to_owned());
    }
    if settings.key.is_none() {
        return Err("cluster: all nodes must have one `key`".to_owned());
    }
    if lanes.get(usize::from(cluster.node)) != Some(&ring.lanes()) {
        return Err(format!("cluster: node {} has another number of lanes among `nodes`", cluster.node));
    }
    if lanes.iter().map(|n| usize::from(*n)).sum::<usize>() > 64 || lanes.contains(&0) {
        return Err("cluster: all nodes together may have 64 lanes, and each at least one".to_owned());
    }
    let strange = cluster.owners.iter().any(|o| usize::from(*o) >= lanes.len());
    if cluster.owners.len() != usize::from(ring.partitions()) || strange {
        return Err("cluster: `owners` must name a node for each partition".to_owned());
    }
    Ok(ring.among(cluster.node, &lanes, &cluster.owners))
}

/// Opens the links; what comes goes to the mailboxes of the lanes.
pub(super) fn link(shared: &Arc<Shared>, config: &Config) -> Result<(), String> {
    let Some(cluster) = &config.settings.cluster else { return Ok(()) };
    let nodes: Vec<Node> = cluster.nodes.iter().map(|n| Node { address: n.address }).collect();
    let layout = format!("{:?} {:?}", cluster.owners, cluster.nodes);
    let site = Site {
        nodes,
        me: cluster.node,
        cluster: siphash(shared.ring.key(), layout.as_bytes()),
        forget_after_ms: cluster.forget_after_ms,
    };
    let weak = Arc::downgrade(shared);
    let tell = Box::new(move |event| {
        let Some(shared) = weak.upgrade() else { return };
        match event {
            Event::Batch { from, to, now_ms, bytes } => {
                shared.post(from, to, LaneMessage::Linked { from, now_ms, bytes });
            }
            Event::Up(node, turn) => tell_lanes(&shared, node, Some(turn)),
            Event::Down(node) => tell_lanes(&shared, node, None),
        }
    });
    let address = nodes_address(&site);
    let links = Links::start(site, tell).map_err(|e| format!("cluster: links at {address}: {e}"))?;
    let _ = shared.links.set(links);
    Ok(())
}

fn nodes_address(site: &Site) -> String {
    site.nodes.get(usize::from(site.me)).map_or_else(String::new, |n| n.address.to_string())
}

fn tell_lanes(shared: &Shared, node: u16, turn: Option<u32>) {
    for lane in 0..shared.ring.lanes() {
        let place = shared.ring.place(lane);
        shared.post(place, place, LaneMessage::Peer { node, turn });
    }
}
