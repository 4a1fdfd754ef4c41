//! What the null broker says to its clients, and what it thinks of rubbish.

#![allow(clippy::indexing_slicing, clippy::unwrap_used, clippy::panic, missing_docs)]

mod client;

use std::io::Write as _;

use client::{Broker, Client, USER_PROPERTY, connect, framed, publish, text};

#[test]
fn every_qos_goes_round_between_the_versions() {
    let broker = Broker::start();
    for (from_v5, to_v5) in [(false, false), (false, true), (true, false), (true, true)] {
        for (sent, granted) in (0..3).flat_map(|sent| (0..3).map(move |granted| (sent, granted))) {
            let mut receiver = Client::subscribed(&broker, to_v5, "a/b", granted);
            let mut publisher = Client::connect(&broker, from_v5);
            let came: &[u8] = if from_v5 { USER_PROPERTY } else { &[] };
            // DUP and RETAIN are not passed on
            let id = (sent > 0).then_some(0x1234);
            publisher.send(&publish(0x39 | sent << 1, "a/b", id, came, b"payload"));
            if sent == 1 {
                publisher.expect(&[0x40, 2, 0x12, 0x34]);
            } else if sent == 2 {
                publisher.expect(&[0x50, 2, 0x12, 0x34]);
                publisher.send(&[0x62, 2, 0x12, 0x34]);
                publisher.expect(&[0x70, 2, 0x12, 0x34]);
            }
            let goes: &[u8] = if !to_v5 {
                &[]
            } else if from_v5 {
                USER_PROPERTY
            } else {
                &[0]
            };
            let qos = sent.min(granted);
            receiver.expect(&publish(0x30 | qos << 1, "a/b", (qos > 0).then_some(1), goes, b"payload"));
            if qos == 1 {
                receiver.send(&[0x40, 2, 0, 1]);
            } else if qos == 2 {
                receiver.send(&[0x50, 2, 0, 1]);
                receiver.expect(&[0x62, 2, 0, 1]);
                receiver.send(&[0x70, 2, 0, 1]);
            }
            receiver.ping();
            publisher.ping();
        }
    }
}

#[test]
fn acknowledgements_keep_the_order_and_ids_go_round_without_zero() {
    let broker = Broker::start();
    let mut receiver = Client::subscribed(&broker, false, "t", 1);
    let mut publisher = Client::connect(&broker, false);
    for n in 0..70_000_u32 {
        let [high, low] = ((n % 65_535 + 1) as u16).to_be_bytes();
        publisher.send(&publish(0x32, "t", Some(u16::from_be_bytes([high, low])), &[], &n.to_be_bytes()));
        receiver.expect(&publish(0x32, "t", Some((n % 65_535 + 1) as u16), &[], &n.to_be_bytes()));
        receiver.send(&[0x40, 2, high, low]);
        publisher.expect(&[0x40, 2, high, low]);
    }
}

#[test]
fn filters_say_who_receives() {
    let broker = Broker::start();
    let mut publisher = Client::connect(&broker, false);
    let mut exact = Client::subscribed(&broker, false, "a/b", 0);
    publisher.publish("a/b", "only exact filters");
    exact.receive("a/b", "only exact filters");

    let mut plus = Client::subscribed(&broker, true, "+/b", 0);
    let mut hash = Client::subscribed(&broker, false, "a/#", 0);
    let mut all = Client::subscribed(&broker, true, "#", 0);
    // one copy for several filters that match
    exact.subscribe("a/+", 0);
    for _ in 0..2 {
        publisher.publish("a/b", "1");
        [&mut exact, &mut plus, &mut hash, &mut all].into_iter().for_each(|client| client.receive("a/b", "1"));
    }
    publisher.publish("a", "2");
    [&mut hash, &mut all].into_iter().for_each(|client| client.receive("a", "2"));
    publisher.publish("a/b/c", "3");
    [&mut hash, &mut all].into_iter().for_each(|client| client.receive("a/b/c", "3"));
    publisher.publish("/b", "4");
    [&mut plus, &mut all].into_iter().for_each(|client| client.receive("/b", "4"));
    publisher.publish("$x/b", "5");
    publisher.ping();

    // what was known of a topic is forgotten with every change
    exact.unsubscribe("a/+");
    hash.unsubscribe("a/#");
    drop(plus);
    all.subscribe("new", 0);
    publisher.publish("a/b", "6");
    [&mut exact, &mut all].into_iter().for_each(|client| client.receive("a/b", "6"));
    exact.unsubscribe("a/b");
    publisher.publish("a/b", "7");
    all.receive("a/b", "7");
    [&mut exact, &mut hash, &mut all].into_iter().for_each(Client::ping);
}

#[test]
fn the_highest_of_several_qos_counts() {
    let broker = Broker::start();
    let mut receiver = Client::subscribed(&broker, false, "a/b", 0);
    receiver.subscribe("a/+", 1);
    let mut publisher = Client::connect(&broker, false);
    publisher.send(&publish(0x32, "a/b", Some(1), &[], b"x"));
    receiver.expect(&publish(0x32, "a/b", Some(1), &[], b"x"));
    // the same filter again replaces what was granted
    receiver.subscribe("a/+", 0);
    publisher.send(&publish(0x32, "a/b", Some(2), &[], b"y"));
    receiver.receive("a/b", "y");
}

#[test]
fn one_message_goes_to_many() {
    let broker = Broker::start();
    let mut receivers: Vec<_> = (0..100).map(|n| Client::subscribed(&broker, n % 2 == 0, "t", 0)).collect();
    let mut publisher = Client::connect(&broker, true);
    for n in 0..100 {
        publisher.publish("t", &n.to_string());
    }
    for receiver in &mut receivers {
        (0..100).for_each(|n| receiver.receive("t", &n.to_string()));
        receiver.ping();
    }
}

#[test]
fn a_group_takes_turns() {
    let broker = Broker::start();
    let mut members = ["$share/g/s/1", "$share/g/s/1"].map(|filter| Client::subscribed(&broker, true, filter, 0));
    let mut wild = Client::subscribed(&broker, false, "$share/g/s/+", 0);
    let mut publisher = Client::connect(&broker, false);
    for n in 0..10 {
        publisher.publish("s/1", &n.to_string());
        members[(n + 1) % 2].receive("s/1", &n.to_string());
        wild.receive("s/1", &n.to_string());
    }
    let [mut stays, mut leaves] = members;
    leaves.unsubscribe("$share/g/s/1");
    for n in 0..4 {
        publisher.publish("s/1", &n.to_string());
        stays.receive("s/1", &n.to_string());
    }
    leaves.ping();
}

#[test]
fn rubbish_ends_only_its_own_connection() {
    let broker = Broker::start();
    let mut receiver = Client::subscribed(&broker, true, "t", 0);
    let mut publisher = Client::connect(&broker, true);
    let before: [&[u8]; 6] = [
        b"GET / HTTP/1.1\r\n\r\n",
        &[0xff; 64],
        &[0x30, 4, 0, 1, b't', b'x'],
        &[0x10, 2, 0, 0],
        &[0x10, 0x80, 0x80, 0x80, 0x80, 1],
        &[0x10, 13, 0, 4, b'M', b'Q', b'T', b'T', 9, 2, 0, 60, 0, 1, b'a'],
    ];
    for bytes in before {
        let mut client = Client::raw(&broker);
        client.send(bytes);
        assert!(client.ends(), "{bytes:?}");
    }
    let after: [&[u8]; 11] = [
        &connect(false),
        &[0x00, 0],
        &[0xf0, 0],
        &[0x30, 1, 0],
        &[0x30, 2, 0, 0],
        &[0x30, 4, 0, 9, b't', b'x'],
        &[0x36, 5, 0, 1, b't', 0, 1],
        &[0x32, 5, 0, 1, b't', 0, 0],
        &[0x82, 2, 0, 1],
        &[0x82, 6, 0, 1, 0, 1, b't', 3],
        &[0x30, 0xff, 0xff, 0xff, 0xff, 0xff],
    ];
    for bytes in after {
        let mut client = Client::subscribed(&broker, false, "t", 0);
        client.send(bytes);
        assert!(client.ends(), "{bytes:?}");
    }
    let mut client = Client::connect(&broker, true);
    client.send(&[0x30, 4, 0, 1, b't', 9]);
    assert!(client.ends(), "properties longer than the packet");
    publisher.publish("t", "still here");
    receiver.receive("t", "still here");
}

#[test]
fn bytes_at_random_end_no_broker() {
    let broker = Broker::start();
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    let mut draw = move |below: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        (random % below as u64) as usize
    };
    for n in 0..2_000 {
        let v5 = n % 2 == 0;
        let mut bytes = [
            connect(v5),
            publish(0x34, "a/b", Some(1), if v5 { USER_PROPERTY } else { &[] }, b"x"),
            framed(0x82, &[&[0, 1][..], &text("a/#"), &[1]].concat()),
            publish(0x32, "a/b", Some(1), &[], b"x"),
            vec![0x50, 2, 0, 1, 0xc0, 0, 0xe0, 0],
        ]
        .concat();
        for _ in 0..=draw(4) {
            let at = draw(bytes.len());
            bytes[at] = draw(256) as u8;
        }
        bytes.truncate(draw(bytes.len()) + 1);
        // the broker may have ended the connection while this writes
        let _ = Client::raw(&broker).stream.write_all(&bytes);
    }
    let mut receiver = Client::subscribed(&broker, false, "t", 0);
    receiver.publish("t", "still here");
    receiver.receive("t", "still here");
}
