//! A lane that panics is contained (design, style 8): it begins anew, and nobody waits for it for ever.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::port::Engine;
use crate::ring::Ring;

/// A message to this topic from another lane makes a lane panic; only in tests.
pub const POISON: &str = "lane/panic";
/// The same for a question about retained messages.
pub const POISON_FILTER: &str = "lane/panic/#";
const KEY: &str = "000102030405060708090a0b0c0d0e0f";

/// A client of MQTT 5 that speaks in bytes.
pub struct Client(pub TcpStream);

impl Client {
    pub fn connect(port: u16, id: &str) -> Self {
        Self::resume(port, id, true).0
    }

    /// With a session that outlives the connection; the flag says whether there was one.
    pub fn resume(port: u16, id: &str, clean: bool) -> (Self, bool) {
        let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let mut client = Self(stream);
        let mut body = b"\0\x04MQTT\x05".to_vec();
        body.extend([if clean { 2 } else { 0 }, 0, 0, 5, 17, 0, 0, 1, 0]);
        body.extend(text(id));
        client.send(0x10, &body);
        let (first, body) = client.packet().unwrap();
        assert_eq!((first, body[1]), (0x20, 0), "CONNACK");
        (client, body[0] == 1)
    }

    pub fn send(&mut self, first: u8, body: &[u8]) {
        let mut bytes = vec![first, u8::try_from(body.len()).unwrap()];
        bytes.extend(body);
        self.0.write_all(&bytes).unwrap();
    }

    /// The next packet; `None` when the connection ends.
    pub fn packet(&mut self) -> Option<(u8, Vec<u8>)> {
        let mut head = [0; 2];
        self.0.read_exact(&mut head).ok()?;
        let mut body = vec![0; usize::from(head[1])];
        self.0.read_exact(&mut body).ok()?;
        Some((head[0], body))
    }

    pub fn subscribe(&mut self, filter: &str) {
        self.subscribe_at(filter, 1);
    }

    pub fn subscribe_at(&mut self, filter: &str, qos: u8) {
        let mut body = vec![0, 1, 0];
        body.extend(text(filter));
        body.push(qos);
        self.send(0x82, &body);
        let (first, body) = self.packet().unwrap();
        assert_eq!((first, *body.last().unwrap()), (0x90, qos), "SUBACK of {filter}");
    }

    pub fn publish(&mut self, topic: &str, retain: bool) {
        let mut body = text(topic);
        body.extend([0, 7, 0, b'x']);
        self.send(0x32 | u8::from(retain), &body);
    }

    pub fn ping(&mut self) {
        self.send(0xc0, &[]);
        assert_eq!(self.packet().unwrap().0, 0xd0, "PINGRESP");
    }
}

pub fn text(s: &str) -> Vec<u8> {
    [&u16::try_from(s.len()).unwrap().to_be_bytes(), s.as_bytes()].concat()
}

/// Two lanes, and the first listener's port.
fn start() -> (Engine, u16) {
    start_with(&Value::Null)
}

/// The same with a data directory.
pub fn start_with(data: &Value) -> (Engine, u16) {
    let settings = json!({
        "lanes": 2, "key": KEY, "listeners": [{"name": "tcp", "host": "127.0.0.1"}],
        "access": [{"allow_anonymous": true}], "data": data,
    });
    let engine = Engine::start(&settings.to_string()).unwrap();
    let events: Vec<Value> = serde_json::from_str(&engine.poll()).unwrap();
    let address = events.iter().find_map(|e| e["address"].as_str()).unwrap();
    let port = address.rsplit(':').next().unwrap().parse().unwrap();
    (engine, port)
}

/// A name that hashes to a lane.
pub fn name_in(lane: u16, prefix: &str) -> String {
    let key = u128::from_str_radix(KEY, 16).unwrap();
    let ring = Ring::new(((key >> 64) as u64, key as u64), 64, 2);
    (0..).map(|i| format!("{prefix}{i}")).find(|n| ring.home(ring.partition(n)) == lane).unwrap()
}

pub fn wait_for(engine: &Engine, event: &str) {
    let until = Instant::now() + Duration::from_secs(5);
    while Instant::now() < until {
        if engine.poll().contains(event) {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("no event {event}");
}

/// Makes lane 1 panic with a publish from lane 0 that it never answers; the publisher.
pub fn poison(engine: &Engine, port: u16) -> Client {
    let mut victim = Client::connect(port, &name_in(1, "victim"));
    victim.subscribe(POISON);
    let mut publisher = Client::connect(port, &name_in(0, "publisher"));
    publisher.publish(POISON, false);
    wait_for(engine, "lane_failed");
    assert!(victim.packet().is_none(), "connections of the lane end");
    publisher
}

/// Who waits for an acknowledgement that cannot come is told to repeat; others of the lane do not notice; the failed
/// lane takes clients, subscriptions and messages again.
#[test]
fn publishers_are_not_left_waiting() {
    let (engine, port) = start();
    let mut bystander = Client::connect(port, &name_in(0, "bystander"));
    bystander.subscribe("after");
    let mut publisher = poison(&engine, port);
    let (first, body) = publisher.packet().expect("DISCONNECT");
    assert_eq!((first, body[0]), (0xe0, 0x80));
    assert!(publisher.packet().is_none());
    bystander.ping();

    let mut subscriber = Client::connect(port, &name_in(1, "subscriber"));
    subscriber.subscribe("after");
    bystander.publish("after", false);
    let mut seen: Vec<u8> =
        vec![subscriber.packet().unwrap().0, bystander.packet().unwrap().0, bystander.packet().unwrap().0];
    seen.sort_unstable();
    assert_eq!(seen, [0x32, 0x32, 0x40], "both get it, and the publisher its PUBACK");
}

/// What the failed lane kept is gone, with the log in memory, and counted no more; retained messages of other lanes and
/// new ones are found.
#[test]
fn retained_messages_are_found_again() {
    let (engine, port) = start();
    let (mine, lost) = (name_in(0, "kept/"), name_in(1, "lost/"));
    let mut owner = Client::connect(port, &name_in(0, "owner"));
    for topic in [&mine, &lost] {
        owner.publish(topic, true);
        assert_eq!(owner.packet().unwrap().0, 0x40);
    }
    drop(poison(&engine, port));
    engine.submit(r#"[{"do": "stats", "id": 1}]"#).unwrap();
    wait_for(&engine, r#""retained":1,"#);
    let mut reader = Client::connect(port, &name_in(1, "reader"));
    reader.subscribe("#");
    assert_eq!(reader.packet().unwrap().1[2..2 + mine.len()], *mine.as_bytes());
    reader.ping();
}

/// Who asked for retained messages when the lane failed is told to repeat, and is not asked about twice.
#[test]
fn subscribers_are_not_left_without_retained_messages() {
    let (engine, port) = start();
    let mut asker = Client::connect(port, &name_in(0, "asker"));
    asker.subscribe(POISON_FILTER);
    assert_eq!(asker.packet().unwrap().0, 0xe0);
    wait_for(&engine, "lane_failed");
    let mut other = Client::connect(port, &name_in(1, "other"));
    other.subscribe("#");
    other.ping();
}

/// A panic costs the message that caused it, not those that came with it.
#[test]
fn what_came_with_it_is_worked_off() {
    let (engine, port) = start();
    let mut victim = Client::connect(port, &name_in(1, "victim"));
    victim.subscribe(POISON);
    let later = name_in(1, "later/");
    let mut both = Vec::new();
    for (first, topic) in [(0x30, POISON), (0x31, &later)] {
        both.extend([first, u8::try_from(topic.len() + 4).unwrap()]);
        both.extend(text(topic));
        both.extend([0, b'x']);
    }
    let mut publisher = Client::connect(port, &name_in(0, "publisher"));
    publisher.0.write_all(&both).unwrap();
    wait_for(&engine, "lane_failed");
    publisher.subscribe("later/+");
    assert_eq!(publisher.packet().expect("the retained message").0 & 0xf1, 0x31);
}

/// A member in another lane is a member again of a group that the failed lane kept; its own members are gone.
#[test]
fn groups_are_joined_again() {
    let (engine, port) = start();
    for keeper in [0, 1] {
        let filter = format!("$share/{}", name_in(keeper, "g/t/"));
        let topic = filter.rsplit_once("g/").unwrap().1.to_owned();
        let (mut stays, _) = Client::resume(port, &name_in(0, "stays"), true);
        let mut goes = Client::connect(port, &name_in(1, "goes"));
        stays.subscribe(&filter);
        goes.subscribe(&filter);
        let mut early = Client::connect(port, &name_in(0, "early"));
        for _ in 0..2 {
            early.publish(&topic, false);
            assert_eq!(early.packet().unwrap().0, 0x40);
        }
        assert_eq!((stays.packet().unwrap().0, goes.packet().unwrap().0), (0x32, 0x32));
        drop(poison(&engine, port));
        if keeper == 0 {
            assert_eq!(stays.packet().expect("what the other had not acknowledged").0, 0x32);
        }
        let mut publisher = Client::connect(port, &name_in(1, "publisher"));
        for _ in 0..4 {
            publisher.publish(&topic, false);
            assert_eq!(publisher.packet().unwrap(), (0x40, vec![0, 7]), "somebody has it");
            assert_eq!(stays.packet().expect("every message is for the one member that is left").0, 0x32);
        }
    }
}

/// Who is refused while he still sends can go on sending for some seconds and reads why, also where sockets that were closed earlier
/// had the same place.
#[test]
fn who_is_refused_and_still_sends_reads_why() {
    let (_engine, port) = start();
    let refused = |i: usize| {
        let mut client = Client::connect(port, &format!("refused{i}"));
        client.send(0x10, &[]); // a second CONNECT
        client
    };
    for i in 0..8 {
        drop(refused(i));
    }
    std::thread::sleep(Duration::from_millis(4_000));
    let mut clients: Vec<Client> = (8..16).map(refused).collect();
    for _ in 0..20 {
        std::thread::sleep(Duration::from_millis(100));
        clients.iter_mut().for_each(|c| c.send(0xc0, &[]));
    }
    for client in &mut clients {
        assert_eq!(client.packet().expect("DISCONNECT").0, 0xe0);
        assert_eq!(client.packet(), None);
    }
}
