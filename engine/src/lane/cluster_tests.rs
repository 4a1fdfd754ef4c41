//! Three nodes in one process (issue 6): a client of any node is a client of the cluster.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::tests::{Client, text};
use crate::port::Engine;
use crate::ring::Ring;

const KEY: &str = "000102030405060708090a0b0c0d0e0f";
const NODES: u16 = 3;

struct Cluster {
    settings: Vec<Value>,
    nodes: Vec<Option<(Engine, u16)>>,
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn start(settings: &Value) -> (Engine, u16) {
    let engine = Engine::start(&settings.to_string()).unwrap();
    let events: Vec<Value> = serde_json::from_str(&engine.poll()).unwrap();
    let address = events.iter().find_map(|e| e["address"].as_str()).unwrap();
    let port = address.rsplit(':').next().unwrap().parse().unwrap();
    (engine, port)
}

impl Cluster {
    fn new() -> Self {
        let nodes: Vec<Value> =
            (0..NODES).map(|_| json!({"address": format!("127.0.0.1:{}", free_port()), "lanes": 2})).collect();
        let owners: Vec<u16> = (0..64).map(|p| p % NODES).collect();
        let settings: Vec<Value> = (0..NODES)
            .map(|node| {
                json!({
                    "lanes": 2, "key": KEY, "listeners": [{"name": "tcp", "host": "127.0.0.1"}],
                    "access": [{"allow_anonymous": true}],
                    "cluster": {"nodes": nodes, "node": node, "owners": owners, "forget_after_ms": 500},
                })
            })
            .collect();
        let nodes = settings.iter().map(|s| Some(start(s))).collect();
        let cluster = Self { settings, nodes };
        cluster.until_joined();
        cluster
    }

    fn port(&self, node: usize) -> u16 {
        self.nodes[node].as_ref().unwrap().1
    }

    /// Every node takes clients of every other one.
    fn until_joined(&self) {
        let until = Instant::now() + Duration::from_secs(10);
        for door in (0..3).filter(|n| self.nodes[*n].is_some()) {
            for owner in (0..3).filter(|n| self.nodes[*n].is_some()) {
                while !self.takes(door, owner) {
                    assert!(Instant::now() < until, "node {door} does not reach node {owner}");
                    std::thread::sleep(Duration::from_millis(20));
                }
            }
        }
    }

    fn takes(&self, door: usize, owner: usize) -> bool {
        let port = self.port(door);
        std::panic::catch_unwind(|| Client::connect(port, &name_of(owner, "probe"))).is_ok()
    }
}

/// A client id whose session a node owns.
fn name_of(owner: usize, prefix: &str) -> String {
    let key = u128::from_str_radix(KEY, 16).unwrap();
    let ring = Ring::new(((key >> 64) as u64, key as u64), 64, 1);
    (0..).map(|i| format!("{prefix}{i}")).find(|n| usize::from(ring.partition(n) % NODES) == owner).unwrap()
}

fn publish(client: &mut Client, topic: &str, qos: u8, word: u8) {
    let mut body = text(topic);
    if qos > 0 {
        body.extend([0, word]);
    }
    body.extend([0, word]);
    client.send(0x30 | qos << 1, &body);
}

/// Takes the message and does the rest of its handshake; its last byte.
fn receive(client: &mut Client) -> (u8, u8) {
    let (first, body) = client.packet().expect("a message");
    assert_eq!(first >> 4, 3, "a PUBLISH, not {first:#x}");
    let (qos, topic) = (first >> 1 & 3, usize::from(body[1]) + 2);
    let id = body.get(topic..topic + 2).unwrap().to_vec();
    match qos {
        1 => client.send(0x40, &id),
        2 => {
            client.send(0x50, &id);
            let (first, body) = client.packet().expect("PUBREL");
            assert_eq!((first, &body[..2]), (0x62, id.as_slice()));
            client.send(0x70, &id);
        }
        _ => {}
    }
    (qos, *body.last().unwrap())
}

/// The publisher's side of one message.
fn finish(client: &mut Client, qos: u8) {
    match qos {
        1 => assert_eq!(client.packet().expect("PUBACK").0, 0x40),
        2 => {
            let (first, body) = client.packet().expect("PUBREC");
            assert_eq!((first, body.get(2).copied().unwrap_or(0)), (0x50, 0));
            client.send(0x62, &body[..2]);
            assert_eq!(client.packet().expect("PUBCOMP").0, 0x70);
        }
        _ => {}
    }
}

proptest::proptest! {
    /// Whatever comes on a link, it is a batch or it is refused.
    #[test]
    fn rubbish_is_refused(bytes: Vec<u8>) {
        let _ = postcard::from_bytes::<Vec<super::LaneMessage>>(&bytes);
    }
}

/// Subscribed at one node, published at another, whoever owns the two sessions: each message arrives once and in order, and
/// SUBACK means that none is missed (barrier).
#[test]
fn any_node_for_any_client() {
    let cluster = Cluster::new();
    for (owner_s, owner_p) in [(0, 0), (0, 1), (1, 2), (2, 0)] {
        for (door_s, door_p) in [(0, 2), (1, 1), (2, 1)] {
            let topic = format!("t/{owner_s}{owner_p}{door_s}{door_p}");
            let mut subscriber = Client::connect(cluster.port(door_s), &name_of(owner_s, "sub"));
            subscriber.subscribe_at(&topic, 2);
            let mut publisher = Client::connect(cluster.port(door_p), &name_of(owner_p, "pub"));
            for (word, qos) in (1..).zip([0, 1, 2, 1, 2, 2]) {
                publish(&mut publisher, &topic, qos, word);
                finish(&mut publisher, qos);
                assert_eq!(receive(&mut subscriber), (qos, word), "{topic}");
            }
            subscriber.ping();
        }
    }
}

/// A client id is connected once in the whole cluster [MQTT-3.1.4-3], and its session follows it to another door.
#[test]
fn one_connection_for_each_client() {
    let cluster = Cluster::new();
    let name = name_of(1, "roamer");
    let (mut first, present) = Client::resume(cluster.port(0), &name, false);
    assert!(!present);
    first.subscribe_at("roam/#", 1);
    let (mut second, present) = Client::resume(cluster.port(2), &name, false);
    assert!(present);
    let (kind, body) = first.packet().expect("DISCONNECT");
    assert_eq!((kind, body[0]), (0xe0, 0x8e), "session taken over");
    assert!(first.packet().is_none());
    let mut publisher = Client::connect(cluster.port(1), &name_of(2, "pub"));
    publish(&mut publisher, "roam/1", 1, 7);
    finish(&mut publisher, 1);
    assert_eq!(receive(&mut second), (1, 7));
    drop(second);
    publish(&mut publisher, "roam/2", 1, 8);
    finish(&mut publisher, 1);
    let (mut third, present) = Client::resume(cluster.port(1), &name, false);
    assert!(present);
    assert_eq!(receive(&mut third), (1, 8), "what waited");
}

/// Retained messages and shared groups are those of the cluster.
#[test]
fn retained_and_shared() {
    let cluster = Cluster::new();
    let mut publisher = Client::connect(cluster.port(0), &name_of(0, "pub"));
    for n in 0..6 {
        publisher.publish(&format!("kept/{n}"), true);
        finish(&mut publisher, 1);
    }
    let mut late = Client::connect(cluster.port(2), &name_of(1, "late"));
    late.subscribe_at("kept/+", 1);
    for _ in 0..6 {
        receive(&mut late);
    }
    late.ping();
    let mut members: Vec<Client> =
        (0..3).map(|n| Client::connect(cluster.port(n), &name_of((n + 1) % 3, "member"))).collect();
    members.iter_mut().for_each(|m| m.subscribe_at("$share/g/work", 1));
    for word in 0..30 {
        publish(&mut publisher, "work", 1, word + 1);
        finish(&mut publisher, 1);
    }
    let mut got = 0;
    for member in &mut members {
        member.0.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        while member.packet().is_some() {
            got += 1;
        }
    }
    assert_eq!(got, 30, "each message to one member");
}

/// A node that ends takes its sessions with it (nothing is in a log here): the others go on at once, and a node that comes
/// back is one of them again.
#[test]
fn a_node_ends_and_comes_back() {
    let mut cluster = Cluster::new();
    let mut subscriber = Client::connect(cluster.port(0), &name_of(0, "sub"));
    subscriber.subscribe_at("a", 1);
    let mut elsewhere = Client::connect(cluster.port(0), &name_of(2, "gone"));
    elsewhere.subscribe_at("a", 1);
    cluster.nodes[2] = None;
    let mut publisher = Client::connect(cluster.port(1), &name_of(1, "pub"));
    assert!(elsewhere.packet().is_some_and(|(first, _)| first == 0xe0), "its session is gone");
    publish(&mut publisher, "a", 1, 5);
    finish(&mut publisher, 1);
    assert_eq!(receive(&mut subscriber), (1, 5));
    cluster.nodes[2] = Some(start(&cluster.settings[2]));
    cluster.until_joined();
    let mut back = Client::connect(cluster.port(2), &name_of(0, "back"));
    back.subscribe_at("a", 1);
    publish(&mut publisher, "a", 1, 6);
    finish(&mut publisher, 1);
    assert_eq!((receive(&mut subscriber), receive(&mut back)), ((1, 6), (1, 6)));
}
