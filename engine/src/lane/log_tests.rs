//! A lane that panics finds everything again that it had acknowledged, in the log on disk (`port::recovery::reread`).

use std::io::Write as _;
use std::net::TcpStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use super::tests::{Client, POISON, name_in, poison, start_with, text, wait_for};
use crate::port::verify;

/// A data directory that goes with the value.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("roost-lane-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        Self(path)
    }

    fn data(&self) -> Value {
        json!({"dir": self.0, "checkpoint_bytes_min": 2_000})
    }

    fn dir(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

const PUBACK: u8 = 0x40;
const PUBREC: u8 = 0x50;
const PUBREL: u8 = 0x62;
const PUBCOMP: u8 = 0x70;

impl Client {
    /// A whole exchange; the payload is the number.
    fn deliver(&mut self, topic: &str, n: u8, qos: u8, retain: bool) {
        self.begin(topic, n, qos, retain);
        if qos == 1 {
            assert_eq!(self.packet().expect("PUBACK").0, PUBACK, "{topic} {n}");
            return;
        }
        assert_eq!(self.packet().expect("PUBREC").0, PUBREC, "{topic} {n}");
        self.finish(n);
    }

    fn begin(&mut self, topic: &str, n: u8, qos: u8, retain: bool) {
        let mut body = text(topic);
        body.extend([0, n, 0, n]);
        self.send(0x30 | qos << 1 | u8::from(retain), &body);
    }

    fn finish(&mut self, n: u8) {
        self.send(PUBREL, &[0, n]);
        let (first, body) = self.packet().expect("PUBCOMP");
        assert_eq!((first, &body[..2]), (PUBCOMP, &[0, n][..]));
    }

    /// The payloads of all that comes until a PINGRESP, each answered in full.
    fn drain(&mut self) -> Vec<u8> {
        let mut got = Vec::new();
        self.send(0xc0, &[]);
        let mut open = 0;
        while let Some((first, body)) = self.packet() {
            match first {
                0xd0 if open == 0 => return got,
                0xd0 => {}
                PUBREL => {
                    self.send(PUBCOMP, &body[..2]);
                    open -= 1;
                    if open == 0 {
                        self.send(0xc0, &[]);
                    }
                }
                PUBACK | PUBREC | PUBCOMP => {}
                _ => {
                    got.push(*body.last().unwrap());
                    let id = 2 + (usize::from(body[0]) << 8) + usize::from(body[1]);
                    let qos = first >> 1 & 3;
                    open += i32::from(qos == 2);
                    if qos > 0 {
                        self.send(if qos == 2 { PUBREC } else { PUBACK }, &body[id..id + 2]);
                    }
                    self.send(0xc0, &[]);
                }
            }
        }
        panic!("the connection ended after {got:?}");
    }
}

/// A PUBLISH whose payload is a number.
fn publish_bytes(topic: &str, n: u8, qos: u8) -> Vec<u8> {
    let id: &[u8] = if qos > 0 { &[0, 7] } else { &[] };
    let head = [0x30 | qos << 1, u8::try_from(topic.len() + 4 + id.len()).unwrap()];
    [&head[..], &text(topic), id, &[0, n]].concat()
}

/// A session that outlives its connection, and whether there was one.
fn session(port: u16, id: &str) -> (Client, bool) {
    Client::resume(port, id, false)
}

/// Takes what comes until all of it is there; it may take a moment until a group has its members again.
fn until_all(client: &mut Client, wanted: &[u8]) -> Vec<u8> {
    let mut got = Vec::new();
    for _ in 0..500 {
        got.extend(client.drain());
        if wanted.iter().all(|n| got.contains(n)) {
            return got;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("{wanted:?} were acknowledged, {got:?} came");
}

/// QoS 1 and 2 for sessions that are away, retained messages, a QoS 2 identifier between PUBREC and PUBREL: all are there
/// after one panic and after another, once and in order; then after a restart of the broker.
#[test]
fn what_was_acknowledged_is_found_again() {
    let folder = Folder::new("found");
    let (mut engine, port) = start_with(&folder.data());
    let names = [name_in(1, "away"), name_in(0, "away"), name_in(1, "later")];
    for name in &names {
        session(port, name).0.subscribe_at("deep/#", 2);
    }
    let kept = name_in(1, "kept/");
    let mut near = session(port, &name_in(1, "near")).0;
    let mut far = Client::connect(port, &name_in(0, "far"));
    for n in 1..=40 {
        let from: &mut Client = if n % 2 == 0 { &mut near } else { &mut far };
        from.deliver(&format!("deep/{}", n % 3), n, 1 + n % 2, false);
    }
    far.deliver(&kept, 99, 1, true);
    near.begin("deep/0", 41, 2, false);
    assert_eq!(near.packet().expect("PUBREC").0, PUBREC);
    drop(poison(&engine, port));

    let all: Vec<u8> = (1..=41).collect();
    for name in &names[..2] {
        let (mut back, present) = session(port, name);
        assert!(present, "{name}");
        assert_eq!(until_all(&mut back, &all), all, "{name}");
    }
    let (mut near, present) = session(port, &name_in(1, "near"));
    assert!(present);
    near.begin("deep/0", 41, 2, false);
    assert_eq!(near.packet().expect("PUBREC").0, PUBREC, "the identifier is known");
    near.finish(41);
    near.deliver("deep/1", 42, 2, false);
    near.deliver("deep/1", 43, 1, false);
    drop(poison(&engine, port));

    let mut reader = Client::connect(port, &name_in(0, "reader"));
    reader.subscribe(&kept);
    assert_eq!(*reader.packet().expect("the retained message").1.last().unwrap(), 99);
    for name in &names[..2] {
        let (mut back, present) = session(port, name);
        assert!(present, "{name}");
        assert_eq!(until_all(&mut back, &[42, 43]), [42, 43], "{name}: subscriptions go on, and nothing comes twice");
    }
    engine.stop();
    drop(engine);
    let verified: Value = serde_json::from_str(&verify(folder.dir()).unwrap()).unwrap();
    assert_eq!(verified["ok"], true, "{verified}");
    let (_engine, port) = start_with(&folder.data());
    let (mut later, present) = session(port, &names[2]);
    assert!(present);
    let all: Vec<u8> = (1..=43).collect();
    assert_eq!(until_all(&mut later, &all), all);
}

/// Retained messages are counted once, however often a lane begins anew: the bound of all together holds.
#[test]
fn they_are_counted_once() {
    let folder = Folder::new("counted");
    let (engine, port) = start_with(&folder.data());
    let mut far = Client::connect(port, &name_in(0, "far"));
    far.deliver(&name_in(1, "kept/"), 99, 1, true);
    for _ in 0..3 {
        drop(poison(&engine, port));
    }
    engine.submit(r#"[{"do": "stats", "id": 1}]"#).unwrap();
    wait_for(&engine, r#""retained":1,"#);
}

/// A group in the lane that fails has given a message in the same tick, and nobody was told: its number may be used for
/// another message, which must not be taken for that one. Whoever is answered has his message delivered.
#[test]
fn a_tick_that_was_not_logged_did_not_happen() {
    let folder = Folder::new("tick");
    let (engine, port) = start_with(&folder.data());
    let group = format!("$share/{}", name_in(1, "g/t/"));
    let topic = group.rsplit_once("g/").unwrap().1.to_owned();
    let mut member = session(port, &name_in(0, "member")).0;
    member.subscribe_at(&group, 1);
    let mut victim = Client::connect(port, &name_in(1, "victim"));
    victim.subscribe(POISON);
    for round in 1..=3 {
        let both = [publish_bytes(&topic, 100 + round, 1), publish_bytes(POISON, 0, 0)].concat();
        let mut publisher = Client::connect(port, &name_in(0, "publisher"));
        publisher.0.write_all(&both).unwrap();
        wait_for(&engine, "lane_failed");
        let answered = publisher.packet().is_some_and(|(first, _)| first == PUBACK);
        assert!(!answered, "its record was in the tick that failed");
        let mut other = Client::connect(port, &name_in(0, "other"));
        other.deliver(&topic, round, 1, false);
        until_all(&mut member, &[round]);
        victim = Client::connect(port, &name_in(1, "victim"));
        victim.subscribe(POISON);
    }
}

/// A group in the lane that fails, whose members are elsewhere: what it is sent before they have joined again waits.
#[test]
fn a_group_waits_for_its_members() {
    let folder = Folder::new("group");
    let (engine, port) = start_with(&folder.data());
    let group = format!("$share/{}", name_in(1, "g/t/"));
    let topic = group.rsplit_once("g/").unwrap().1.to_owned();
    let (mut member, _) = session(port, &name_in(0, "member"));
    member.subscribe_at(&group, 2);
    for round in 1..=3 {
        let mut victim = Client::connect(port, &name_in(1, "victim"));
        victim.subscribe(POISON);
        let both = [publish_bytes(POISON, 0, 0), publish_bytes(&topic, round, 1)].concat();
        let mut publisher = Client::connect(port, &name_in(0, "publisher"));
        publisher.0.write_all(&both).unwrap();
        wait_for(&engine, "lane_failed");
        assert_eq!(until_all(&mut member, &[round]), [round]);
    }
}

/// While a disk that takes again settles nobody is read; then everybody is.
#[test]
fn nobody_is_read_while_the_disk_settles() {
    let folder = Folder::new("settles");
    let (engine, port) = start_with(&folder.data());
    let mut client = Client::connect(port, &name_in(1, "waits"));
    engine.shared().disk_settling.store(true, Ordering::Release);
    client.send(0xc0, &[]);
    client.0.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    assert_eq!(client.packet(), None);
    engine.shared().disk_settling.store(false, Ordering::Release);
    client.0.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    assert_eq!(client.packet().expect("PINGRESP").0, 0xd0);
}

/// The disk fails and takes again while a 3.1.1 client publishes: what gets in is what it sent first, and nothing behind a message
/// that was refused, though earlier ones still wait for their sync.
#[test]
fn nothing_gets_in_behind_what_the_disk_refused() {
    let folder = Folder::new("refused");
    let (engine, port) = start_with(&folder.data());
    for round in 0..20 {
        let away = name_in(0, &format!("away{round}-"));
        let topic = format!("t{round}");
        session(port, &away).0.subscribe_at(&topic, 1);
        let mut sender = Client(TcpStream::connect(("127.0.0.1", port)).unwrap());
        let name = name_in(0, &format!("sender{round}-"));
        sender.send(0x10, &[&b"\0\x04MQTT\x04\x02\0\0"[..], &text(&name)].concat());
        assert_eq!(sender.packet().expect("CONNACK").1, [0, 0]);
        let (failing, ended) = (&engine.shared().disk_failing, AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !ended.load(Ordering::Relaxed) {
                    failing.fetch_xor(true, Ordering::Relaxed);
                    std::thread::sleep(Duration::from_micros(20));
                }
                failing.store(false, Ordering::Relaxed);
            });
            let all: Vec<u8> = (1..=200).flat_map(|n| publish_bytes(&topic, n, 1)).collect();
            sender.0.write_all(&all).unwrap();
            sender.send(0xc0, &[]);
            while sender.packet().expect("PINGRESP").0 != 0xd0 {}
            ended.store(true, Ordering::Relaxed);
        });
        let got = session(port, &away).0.drain();
        assert_eq!(got, (1..).take(got.len()).collect::<Vec<u8>>(), "round {round}");
    }
}
