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
    addresses: Vec<String>,
    incarnations: Vec<u64>,
    nodes: Vec<Option<(Engine, u16)>>,
    owners: Vec<(i32, u32)>,
    version: u64,
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn start(slot: usize, incarnation: u64, links: &str) -> (Engine, u16) {
    let settings = json!({
        "lanes": 2, "key": KEY, "listeners": [{"name": "tcp", "host": "127.0.0.1"}],
        "access": [{"allow_anonymous": true}],
        "cluster": {"slot": slot, "incarnation": incarnation, "links": links},
    });
    let engine = Engine::start(&settings.to_string()).unwrap();
    let events: Vec<Value> = serde_json::from_str(&engine.poll()).unwrap();
    let address = events.iter().find_map(|e| e["address"].as_str()).unwrap();
    let port = address.rsplit(':').next().unwrap().parse().unwrap();
    (engine, port)
}

impl Cluster {
    fn new() -> Self {
        let addresses: Vec<String> = (0..NODES).map(|_| format!("127.0.0.1:{}", free_port())).collect();
        let owners = (0..64).map(|p| (p % i32::from(NODES), 1)).collect();
        let nodes = (0..).zip(&addresses).map(|(n, links)| Some(start(n, 1, links))).collect();
        let mut cluster = Self { addresses, incarnations: vec![1; 3], nodes, owners, version: 0 };
        cluster.tell_members();
        cluster.tell_table();
        cluster.until_joined();
        cluster
    }

    /// Everybody who is there learns who is there.
    fn tell_members(&mut self) {
        self.version += 1;
        let member = |n: &usize| json!({"slot": n, "incarnation": self.incarnations[*n], "address": self.addresses[*n], "lanes": 2});
        let members: Vec<Value> = (0..3).filter(|n| self.nodes[*n].is_some()).map(|n| member(&n)).collect();
        self.tell(&json!([{"do": "members", "version": self.version, "nodes": members}]));
    }

    fn tell_table(&mut self) {
        self.version += 1;
        self.tell(&json!([{"do": "table", "version": self.version, "partitions": self.owners}]));
    }

    fn tell(&self, orders: &Value) {
        self.nodes.iter().flatten().for_each(|(engine, _)| engine.submit(&orders.to_string()).unwrap());
    }

    /// These partitions have another owner from now on.
    fn move_to(&mut self, owner: impl Fn(i32) -> i32) {
        for (p, (slot, epoch)) in (0..).zip(&mut self.owners) {
            if *slot != owner(p) {
                (*slot, *epoch) = (owner(p), *epoch + 1);
            }
        }
        self.tell_table();
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
        1 => {
            let (first, body) = client.packet().expect("PUBACK");
            assert_eq!(first, 0x40, "{body:?}");
        }
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
    second.ping(); // its PUBACK is on its way to the session
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

/// A worker whose session a dead node had is no member any more, and what it had not acknowledged goes to another one.
#[test]
fn what_a_worker_had_goes_to_another() {
    let mut cluster = Cluster::new();
    let name = name_of(0, "g/work");
    let (filter, topic) = (format!("$share/{name}"), &name[2..]);
    let mut mortal = Client::connect(cluster.port(0), &name_of(2, "worker"));
    let mut other = Client::connect(cluster.port(1), &name_of(1, "worker"));
    [&mut mortal, &mut other].into_iter().for_each(|worker| worker.subscribe_at(&filter, 1));
    let mut publisher = Client::connect(cluster.port(0), &name_of(0, "pub"));
    for word in 1..5 {
        publish(&mut publisher, topic, 1, word);
        finish(&mut publisher, 1);
    }
    let had = [(); 2].map(|()| *mortal.packet().unwrap().1.last().unwrap());
    for _ in 0..2 {
        receive(&mut other);
    }
    cluster.nodes[2] = None;
    cluster.tell_members();
    cluster.move_to(|p| if p % 3 == 2 { p % 2 } else { p % 3 });
    let mut again = [(); 2].map(|()| receive(&mut other).1);
    again.sort_unstable();
    assert_eq!(again, had);
    for (qos, word) in [(0, 5), (0, 6), (1, 7), (1, 8)] {
        publish(&mut publisher, topic, qos, word);
        assert_eq!(receive(&mut other), (qos, word), "there is nobody else");
    }
}

/// A node that ends takes its sessions with it (nothing is in a log here). What it wanted is frozen: publishes wait until its
/// partitions have owners again. When it comes back, partitions move to it under load, and nothing is missed.
#[test]
fn a_node_ends_and_comes_back() {
    let mut cluster = Cluster::new();
    let mut subscriber = Client::connect(cluster.port(0), &name_of(0, "sub"));
    subscriber.subscribe_at("a", 1);
    let mut elsewhere = Client::connect(cluster.port(0), &name_of(2, "gone"));
    elsewhere.subscribe_at("a", 1);
    cluster.nodes[2] = None;
    let mut publisher = Client::connect(cluster.port(1), &name_of(1, "pub"));
    publish(&mut publisher, "a", 1, 5);
    assert_eq!(receive(&mut subscriber), (1, 5));
    cluster.tell_members();
    assert!(elsewhere.packet().is_some_and(|(first, _)| first == 0xe0), "its session is gone");
    publisher.0.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    assert!(publisher.packet().is_none(), "somebody who wanted it may be there again under the next owner");
    publisher.0.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    cluster.move_to(|p| if p % 3 == 2 { p % 2 } else { p % 3 });
    finish(&mut publisher, 1);
    let mut again = Client::connect(cluster.port(0), &name_of(2, "gone"));
    again.subscribe_at("a", 1);
    publish(&mut publisher, "a", 1, 6);
    finish(&mut publisher, 1);
    assert_eq!((receive(&mut subscriber), receive(&mut again)), ((1, 6), (1, 6)));
    // it comes back under another incarnation, and gets partitions of owners that live
    cluster.incarnations[2] = 2;
    cluster.nodes[2] = Some(start(2, 2, &cluster.addresses[2]));
    cluster.tell_members();
    cluster.tell_table();
    let mut kept = Client::connect(cluster.port(1), &name_of(1, "kept"));
    kept.subscribe_at("b", 1);
    for word in 1..50 {
        publish(&mut publisher, "b", 1, word);
        if word == 20 {
            cluster.move_to(|p| p % 3);
        }
        finish(&mut publisher, 1);
        if word < 20 {
            assert_eq!(receive(&mut kept), (1, word));
        }
    }
    cluster.until_joined();
    let mut back = Client::connect(cluster.port(2), &name_of(0, "back"));
    back.subscribe_at("a", 1);
    publish(&mut publisher, "a", 1, 7);
    finish(&mut publisher, 1);
    assert_eq!(receive(&mut back), (1, 7));
}

/// A partition goes to another node and back while its clients talk: no socket closes, every message comes once and in order, at
/// every QoS, also to a session that would end with its connection, in its windows and by its subscriptions.
#[test]
fn a_partition_moves_and_nobody_notices() {
    let mut cluster = Cluster::new();
    let name = name_of(0, "mover");
    let partition = {
        let key = u128::from_str_radix(KEY, 16).unwrap();
        Ring::new(((key >> 64) as u64, key as u64), 64, 1).partition(&name)
    };
    // doors: the old owner, the new one, a third one
    let mut receivers: Vec<Client> = Vec::new();
    for (door, suffix) in [(0, ""), (1, "b"), (2, "c")] {
        let key = u128::from_str_radix(KEY, 16).unwrap();
        let ring = Ring::new(((key >> 64) as u64, key as u64), 64, 1);
        let other = (0..).map(|i| format!("m{suffix}{i}")).find(|n| ring.partition(n) == partition).unwrap();
        let mut client = Client::connect(cluster.port(door), &other);
        client.subscribe_at("moved/#", 2);
        receivers.push(client);
    }
    let mut publishers: Vec<Client> =
        (0..3).map(|n| Client::connect(cluster.port(n), &name_of((n + 2) % 3, "pub"))).collect();
    let mut word = 0u8;
    for round in 0..4 {
        let (from, to) = if round % 2 == 0 { (0, 1) } else { (1, 0) };
        for step in 0..6u8 {
            for (n, publisher) in publishers.iter_mut().enumerate() {
                let qos = (step + n as u8) % 3;
                word += 1;
                publish(publisher, "moved/x", qos, word);
                if step == 2 && n == 1 {
                    let order = json!([{"do": "move", "partition": partition, "slot": to}]);
                    cluster.nodes[from].as_ref().unwrap().0.submit(&order.to_string()).unwrap();
                    let until = Instant::now() + Duration::from_secs(5);
                    loop {
                        let events: Vec<Value> =
                            serde_json::from_str(&cluster.nodes[to].as_ref().unwrap().0.poll()).unwrap();
                        if events.iter().any(|e| e["event"] == "carried") {
                            break;
                        }
                        assert!(Instant::now() < until, "it was not carried: {events:?}");
                        std::thread::sleep(Duration::from_millis(5));
                    }
                    cluster.owners[usize::from(partition)].0 = i32::try_from(to).unwrap();
                    cluster.owners[usize::from(partition)].1 += 1;
                    cluster.tell_table();
                }
                finish(publisher, qos);
                for receiver in &mut receivers {
                    assert_eq!(receive(receiver), (qos, word), "round {round}, step {step}");
                }
            }
        }
    }
    for client in receivers.iter_mut().chain(&mut publishers) {
        client.ping();
    }
}

/// The events of a node until one with this name comes.
fn until_event(cluster: &Cluster, node: usize, name: &str) -> Value {
    let until = Instant::now() + Duration::from_secs(5);
    loop {
        let events = cluster.nodes[node].as_ref().unwrap().0.poll();
        let events: Vec<Value> = serde_json::from_str(&events).unwrap();
        if let Some(event) = events.iter().find(|e| e["event"] == name) {
            return event.clone();
        }
        assert!(Instant::now() < until, "no `{name}`: {events:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

impl Cluster {
    /// The next partition is cut, and the table says so.
    fn split(&mut self, meanwhile: impl FnOnce()) {
        let child = self.owners.len();
        let parent = child % 64;
        let owner = usize::try_from(self.owners[parent].0).unwrap();
        let order = json!([{"do": "split", "partition": parent, "child": child}]);
        self.nodes[owner].as_ref().unwrap().0.submit(&order.to_string()).unwrap();
        let told = until_event(self, owner, "halved");
        assert_eq!((&told["partition"], &told["child"]), (&json!(parent), &json!(child)));
        meanwhile();
        self.owners[parent].1 += 1;
        self.owners.push(self.owners[parent]);
        self.tell_table();
    }
}

/// A partition is cut in two while its clients talk through three doors: no socket closes, everything comes once and in order to both
/// halves, also by a shared group that was cut off, with members in both; then the new half moves on.
#[test]
fn a_partition_is_cut_and_nobody_notices() {
    let mut cluster = Cluster::new();
    let key = u128::from_str_radix(KEY, 16).unwrap();
    let ring = Ring::new(((key >> 64) as u64, key as u64), 64, 1);
    let named = |prefix: &str, part: u16| {
        let fits = |n: &String| ring.partition_of(n, 65) == part;
        (0..).map(|i| format!("{prefix}{i}")).find(fits).unwrap()
    };
    let group = (0..).map(|i| format!("g{i}/cut/#")).find(|n| ring.partition_of(n, 65) == 64).unwrap();
    let mut receivers = Vec::new();
    let mut members = Vec::new();
    for door in 0..3 {
        for part in [0, 64] {
            let mut client = Client::connect(cluster.port(door), &named(&format!("c{door}x"), part));
            client.subscribe_at("cut/#", 2);
            receivers.push(client);
            let mut member = Client::connect(cluster.port(door), &named(&format!("m{door}x"), part));
            member.subscribe_at(&format!("$share/{group}"), 1);
            members.push(member);
        }
    }
    let mut publishers: Vec<Client> =
        (0..3).map(|n| Client::connect(cluster.port(n), &name_of((n + 2) % 3, "pub"))).collect();
    let mut word = 0u8;
    for round in 0..8 {
        for (n, publisher) in publishers.iter_mut().enumerate() {
            let qos = (round + n as u8) % 3;
            word += 1;
            publish(publisher, "cut/x", qos, word);
            match (round, n) {
                (1, 1) => {
                    // what is said while it is neither the one nor the other waits, and goes to whoever has the session then
                    std::thread::sleep(Duration::from_millis(200));
                    let ids: Vec<Vec<u8>> =
                        receivers.iter_mut().map(|r| r.packet().unwrap().1[7..9].to_vec()).collect();
                    cluster.split(|| receivers.iter_mut().zip(&ids).for_each(|(r, id)| r.send(0x50, id)));
                    for (receiver, id) in receivers.iter_mut().zip(&ids) {
                        let (first, body) = receiver.packet().expect("PUBREL");
                        assert_eq!((first, &body[..2]), (0x62, id.as_slice()));
                        receiver.send(0x70, id);
                    }
                    finish(publisher, qos);
                    continue;
                }
                (3 | 5, 1) => cluster.split(|| {}),
                (6, 1) => {
                    let order = json!([{"do": "move", "partition": 64, "slot": 1}]);
                    cluster.nodes[0].as_ref().unwrap().0.submit(&order.to_string()).unwrap();
                    until_event(&cluster, 1, "carried");
                    cluster.owners[64] = (1, cluster.owners[64].1 + 1);
                    cluster.tell_table();
                }
                _ => {}
            }
            finish(publisher, qos);
            for receiver in &mut receivers {
                assert_eq!(receive(receiver), (qos, word), "round {round}");
            }
        }
    }
    let mut got = 0;
    for member in &mut members {
        member.0.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        while let Some((first, body)) = member.packet() {
            got += 1;
            let topic = usize::from(body[1]) + 2;
            if first >> 1 & 3 == 1 {
                member.send(0x40, &body[topic..topic + 2]);
            }
        }
        member.0.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    }
    assert_eq!(got, word, "each message to one member");
    for client in receivers.iter_mut().chain(&mut members).chain(&mut publishers) {
        client.ping();
    }
}
