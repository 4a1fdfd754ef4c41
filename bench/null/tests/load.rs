//! What benchmarks rely on when they call a message lost: slow receivers, pieces of packets, and ends.

#![allow(clippy::indexing_slicing, clippy::unwrap_used, clippy::panic, missing_docs)]

mod client;

use std::io::{Read as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use client::{Broker, Client, connect, publish};

/// Publishes QoS 1 on a thread of its own; the counter says how many are on their way.
fn flood(
    mut publisher: Client,
    topic: &'static str,
    messages: u32,
) -> (Arc<AtomicUsize>, std::thread::JoinHandle<Client>) {
    let sent = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&sent);
    let thread = std::thread::spawn(move || {
        for n in 0..messages {
            let payload = [&n.to_be_bytes()[..], &[0; 1020]].concat();
            publisher.send(&publish(0x32, topic, Some(1), &[], &payload));
            counter.fetch_add(1, Ordering::Relaxed);
        }
        publisher
    });
    (sent, thread)
}

fn wait_until_it_stands(counter: &AtomicUsize) -> usize {
    let mut before = usize::MAX;
    loop {
        let now = counter.load(Ordering::Relaxed);
        if now == before && now > 0 {
            return now;
        }
        before = now;
        std::thread::sleep(Duration::from_millis(300));
    }
}

#[test]
fn a_slow_receiver_loses_nothing_and_stops_only_its_publishers() {
    const MESSAGES: u32 = 100_000;
    let broker = Broker::start();
    let mut slow = Client::subscribed(&broker, false, "slow", 1);
    let mut other = Client::subscribed(&broker, false, "other", 0);
    let (sent, thread) = flood(Client::connect(&broker, false), "slow", MESSAGES);
    let stood = wait_until_it_stands(&sent);
    assert!(stood < MESSAGES as usize, "nobody made the publisher wait");
    let mut publisher = Client::connect(&broker, false);
    publisher.publish("other", "meanwhile");
    other.receive("other", "meanwhile");
    for n in 0..MESSAGES {
        let packet = slow.packet();
        assert_eq!(packet[packet.len() - 1024..][..4], n.to_be_bytes());
        if n % 16 == 0 {
            slow.send(&[0x40, 2, packet[9], packet[10]]);
        }
    }
    slow.ping();
    let mut publisher = thread.join().unwrap();
    (0..MESSAGES).for_each(|_| publisher.expect(&[0x40, 2, 0, 1]));
    assert!(broker.peak_kib() < 48 << 10, "{} KiB for what waited", broker.peak_kib());
}

#[test]
fn who_does_not_read_his_answers_is_not_read() {
    const ASKED: usize = 8 << 20;
    let broker = Broker::start();
    let mut client = Client::connect(&broker, false);
    let mut asking = client.stream.try_clone().unwrap();
    let sent = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&sent);
    let thread = std::thread::spawn(move || {
        for _ in 0..ASKED / 1024 {
            asking.write_all(&[0x50, 2, 0, 1].repeat(1024)).unwrap();
            counter.fetch_add(1024, Ordering::Relaxed);
        }
    });
    assert!(wait_until_it_stands(&sent) < ASKED);
    let mut answers = vec![0; 4 * ASKED];
    client.stream.read_exact(&mut answers).unwrap();
    assert!(answers.chunks(4).all(|answer| answer == [0x62, 2, 0, 1]));
    thread.join().unwrap();
    client.ping();
}

#[test]
fn who_waits_for_a_receiver_that_goes_goes_on() {
    const MESSAGES: u32 = 40_000;
    let broker = Broker::start();
    let slow = Client::subscribed(&broker, false, "slow", 0);
    let floods = [(); 2].map(|()| flood(Client::connect(&broker, false), "slow", MESSAGES));
    for (sent, _) in &floods {
        assert!(wait_until_it_stands(sent) < MESSAGES as usize);
    }
    drop(slow);
    for (_, thread) in floods {
        let mut publisher = thread.join().unwrap();
        (0..MESSAGES).for_each(|_| publisher.expect(&[0x40, 2, 0, 1]));
        publisher.ping();
    }
}

#[test]
fn what_a_publisher_sent_before_it_left_arrives() {
    let broker = Broker::start();
    let mut receiver = Client::subscribed(&broker, false, "t", 0);
    let mut publisher = Client::connect(&broker, false);
    let payload = "x".repeat(3 << 20);
    publisher.publish("t", &payload);
    publisher.publish("t", "last");
    drop(publisher);
    receiver.receive("t", &payload);
    receiver.receive("t", "last");
}

#[test]
fn who_has_left_is_forgotten() {
    let broker = Broker::start();
    let mut publisher = Client::connect(&broker, false);
    let before = broker.descriptors();
    for filter in ["t", "+", "$share/g/t"] {
        for _ in 0..100 {
            let mut client = Client::subscribed(&broker, false, filter, 0);
            // the end comes together with bytes
            client.publish("other", "last words");
        }
        while broker.descriptors() > before {
            std::thread::sleep(Duration::from_millis(10));
        }
        // the new ones sit where the old ones sat
        let mut new: Vec<_> = (0..100).map(|_| Client::connect(&broker, false)).collect();
        publisher.publish("t", "for nobody");
        publisher.ping();
        new.iter_mut().for_each(Client::ping);
        drop(new);
        while broker.descriptors() > before {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

#[test]
fn packets_may_come_in_any_pieces() {
    let broker = Broker::start();
    let mut receiver = Client::subscribed(&broker, false, "t", 0);
    let mut publisher = Client::raw(&broker);
    let bytes = [connect(false), publish(0x30, "t", None, &[], &[7; 200])].concat();
    for piece in bytes.chunks(1) {
        publisher.send(piece);
        std::thread::sleep(Duration::from_micros(200));
    }
    publisher.expect(&[0x20, 2, 0, 0]);
    receiver.expect(&publish(0x30, "t", None, &[], &[7; 200]));
    // many small packets that end anywhere in a read
    let many: Vec<u8> = (0..100_000_u32).flat_map(|n| publish(0x30, "t", None, &[], &n.to_be_bytes())).collect();
    let sender = std::thread::spawn(move || publisher.send(&many));
    (0..100_000_u32).for_each(|n| receiver.expect(&publish(0x30, "t", None, &[], &n.to_be_bytes())));
    sender.join().unwrap();
}
