//! Where appends of a cluster's log take long and many partitions write, each begins its appends so far apart that there is more in
//! them (record 0018): no more appends than that, and everything in them.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use roostmq_engine::log::{Anchor, At, Batch, ClusterLog, ClusterLogEvent, ClusterLogNotify, Fence, Part};
use roostmq_engine::port::Engine;
use roostmq_engine::ring::Ring;
use serde_json::{Value, json};

const KEY: &str = "000102030405060708090a0b0c0d0e0f";
const PARTITIONS: u16 = 8;
/// What an append takes.
const APPEND: Duration = Duration::from_millis(15);
/// `APART_MS`.
const APART: Duration = Duration::from_millis(50);

/// A log that keeps nothing and says after a while that it has.
struct SlowLog {
    notify: ClusterLogNotify,
    asked: Mutex<Vec<(u16, Instant)>>,
    at: AtomicU64,
    later: Mutex<Sender<(Instant, ClusterLogEvent)>>,
}

impl std::fmt::Debug for SlowLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SlowLog")
    }
}

impl SlowLog {
    fn new(notify: ClusterLogNotify) -> Arc<Self> {
        let (later, due) = channel::<(Instant, ClusterLogEvent)>();
        let tell = Arc::clone(&notify);
        std::thread::spawn(move || {
            for (at, event) in due {
                std::thread::sleep(at.saturating_duration_since(Instant::now()));
                tell(event);
            }
        });
        Arc::new(Self { notify, asked: Mutex::default(), at: AtomicU64::new(1), later: Mutex::new(later) })
    }

    /// How many appends each partition has begun since then.
    fn appends(&self, since: Instant) -> Vec<usize> {
        let asked = self.asked.lock().unwrap();
        (0..PARTITIONS).map(|p| asked.iter().filter(|(q, at)| *q == p && *at >= since).count()).collect()
    }
}

impl ClusterLog for SlowLog {
    fn append(&self, batch: Batch) {
        let now = Instant::now();
        self.asked.lock().unwrap().push((batch.partition, now));
        let at = self.at.fetch_add(1, Ordering::Relaxed);
        let parts = vec![Part { at, offset: 0, first: batch.first, count: batch.count }];
        let event = ClusterLogEvent::Safe { partition: batch.partition, number: batch.number, parts };
        self.later.lock().unwrap().send((now + APPEND, event)).unwrap();
    }

    fn fence(&self, fence: Fence) {
        let (partition, epoch) = (fence.partition, fence.epoch);
        let at = self.at.fetch_add(1, Ordering::Relaxed);
        (self.notify)(ClusterLogEvent::Fenced { partition, epoch, at, next: 0, checkpoint: 0 });
    }

    fn release(&self, _: u16) {}
    fn read(&self, _: u16, _: Anchor) {}
    fn checkpoint(&self, _: u16, _: At) {}
    fn trim(&self, _: u16, _: At) {}

    fn waiting(&self) -> usize {
        0
    }
}

fn text(word: &str) -> Vec<u8> {
    let mut out = u16::try_from(word.len()).unwrap().to_be_bytes().to_vec();
    out.extend(word.as_bytes());
    out
}

fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![first, u8::try_from(body.len()).unwrap()];
    out.extend(body);
    out
}

fn connect(port: u16, name: &str, clean: bool) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.set_nodelay(true).unwrap();
    let body = [text("MQTT"), vec![4, u8::from(clean) << 1, 0, 0], text(name)].concat();
    stream.write_all(&packet(0x10, &body)).unwrap();
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!((answer[0], answer[3]), (0x20, 0), "CONNACK");
    stream
}

fn start(opened: &Mutex<Option<Arc<SlowLog>>>) -> (Engine, u16) {
    let links = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let settings = json!({
        "lanes": 1, "partitions": PARTITIONS, "key": KEY, "listeners": [{"name": "tcp", "host": "127.0.0.1"}],
        "access": [{"allow_anonymous": true}],
        "cluster": {"slot": 0, "incarnation": 1, "links": links, "nats": {"cluster": "t", "urls": [], "streams": 1}},
    });
    let open = |_: &_, notify| {
        let log = SlowLog::new(notify);
        *opened.lock().unwrap() = Some(Arc::clone(&log));
        Ok(log as Arc<dyn ClusterLog>)
    };
    let engine = Engine::start_with(&settings.to_string(), Some(&open)).unwrap();
    let events: Vec<Value> = serde_json::from_str(&engine.poll()).unwrap();
    let address = events.iter().find_map(|e| e["address"].as_str()).unwrap();
    let port = address.rsplit(':').next().unwrap().parse().unwrap();
    let owned: Vec<(i32, u32)> = vec![(0, 1); usize::from(PARTITIONS)];
    let orders = json!([
        {"do": "members", "version": 1, "nodes": [{"slot": 0, "incarnation": 1, "address": links, "lanes": 1}]},
        {"do": "table", "version": 1, "partitions": owned},
    ]);
    engine.submit(&orders.to_string()).unwrap();
    (engine, port)
}

#[test]
fn appends_of_many_partitions_begin_apart_and_hold_everything() {
    let opened = Mutex::new(None);
    let (_engine, port) = start(&opened);
    let log = opened.lock().unwrap().clone().unwrap();
    let key = u128::from_str_radix(KEY, 16).unwrap();
    let ring = Ring::new(((key >> 64) as u64, key as u64), PARTITIONS.into(), 1);
    for partition in 0..PARTITIONS {
        let name = (0..).map(|i| format!("s{i}")).find(|n| ring.partition(n) == partition).unwrap();
        let mut away = connect(port, &name, false);
        let body = [vec![0, 1], text(&format!("t/{partition}")), vec![1]].concat();
        away.write_all(&packet(0x82, &body)).unwrap();
        let mut answer = [0; 5];
        away.read_exact(&mut answer).unwrap();
        assert_eq!((answer[0], answer[4]), (0x90, 1), "SUBACK");
        away.write_all(&[0xE0, 0]).unwrap();
    }
    let mut publisher = connect(port, "publisher", true);
    let (mut sent, begun, mut since) = (0u16, Instant::now(), None);
    while begun.elapsed() < Duration::from_millis(1_500) {
        for partition in 0..PARTITIONS {
            sent += 1;
            let body = [text(&format!("t/{partition}")), sent.to_be_bytes().to_vec(), vec![7; 20]].concat();
            publisher.write_all(&packet(0x32, &body)).unwrap();
        }
        if begun.elapsed() > Duration::from_millis(500) {
            since.get_or_insert_with(Instant::now); // it has seen by now that they are slow
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let (since, end) = (since.unwrap(), Instant::now());
    let found = log.appends(since);
    let most = usize::try_from((end - since).as_millis() / APART.as_millis()).unwrap() + 2;
    assert!(found.iter().all(|n| (1..=most).contains(n)), "{found:?} appends, at most {most}");
    let mut answers = vec![0; usize::from(sent) * 4];
    publisher.read_exact(&mut answers).unwrap();
    let wanted: Vec<u8> = (1..=sent).flat_map(|id| [vec![0x40, 2], id.to_be_bytes().to_vec()].concat()).collect();
    assert_eq!(answers, wanted, "every PUBACK, in order");
}
