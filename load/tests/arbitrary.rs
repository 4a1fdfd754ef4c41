//! Whatever bytes a server sends, the generator neither fails nor reads what is not there; and what it counts is what a
//! naive count gives.
#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::collections::BTreeSet;

use proptest::collection::vec;
use proptest::prelude::*;
use roostmq_load::client::{Client, Event};
use roostmq_load::codec::{Hello, Packet, Publish, Template, decode, frame, packet};
use roostmq_load::stamp::{STAMP, Stamp, Stamper};
use roostmq_load::tally::{Faults, Track};

/// Bytes that look like packets: a sensible first byte, a length that may fit, a body.
fn nearly_packets() -> impl Strategy<Value = Vec<u8>> {
    let one = (any::<u8>(), vec(any::<u8>(), 0..200), -2_i8..3).prop_map(|(first, body, off)| {
        let mut bytes = packet(first, &body);
        let length = bytes[1];
        bytes[1] = if off.abs() == 2 { length.wrapping_add_signed(off) } else { length };
        bytes
    });
    vec(one, 0..8).prop_map(|packets| packets.concat())
}

/// Packets that a server may send: whole, in an order that makes no sense.
fn answers() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let id = 1..6_u16;
    let one = prop_oneof![
        (0..8_u8).prop_map(|present| packet(0x20, &[present & 1, 0])),
        (prop_oneof![Just(0x40), Just(0x50), Just(0x62), Just(0x70)], id.clone())
            .prop_map(|(first, id)| packet(first, &id.to_be_bytes())),
        (id, vec(any::<u8>(), 0..4))
            .prop_map(|(id, codes)| packet(0x90, &[&id.to_be_bytes(), codes.as_slice()].concat())),
        (0..3_u8, 1..4_u16, vec(any::<u8>(), 0..40), any::<bool>()).prop_map(|(qos, id, payload, dup)| {
            let mut bytes = Vec::new();
            Template::new(b"a/b", qos, false, payload.len(), false).begin(&mut bytes, id);
            bytes[0] |= u8::from(dup && qos > 0) << 3;
            bytes.extend(payload);
            bytes
        }),
        Just(packet(0xd0, &[])),
    ];
    vec(one, 0..40)
}

fn is_inside(part: &[u8], whole: &[u8]) -> bool {
    let (part, whole) = (part.as_ptr_range(), whole.as_ptr_range());
    part.start >= whole.start && part.end <= whole.end
}

/// What a client tells of bytes that come in pieces, and what it answers.
fn told(bytes: &[u8], pieces: &[usize]) -> (Vec<String>, Vec<u8>) {
    let mut client = Client::new(Hello::default());
    client.out.clear();
    let (mut rest, mut events, mut at) = (Vec::new(), Vec::new(), 0);
    for piece in pieces.iter().copied().chain([bytes.len()]) {
        let end = bytes.len().min(at + piece);
        rest.extend_from_slice(&bytes[at..end]);
        at = end;
        let mut used = 0;
        loop {
            let next = frame(&rest[used..]).and_then(|found| {
                let Some((first, body, length)) = found else { return Ok(None) };
                let packet = decode(first, body, false)?;
                client.take(&packet, |event| events.push(format!("{event:?}")))?;
                Ok(Some(length))
            });
            match next {
                Ok(Some(length)) => used += length,
                Ok(None) => break,
                Err(why) => {
                    events.push(why);
                    return (events, client.out);
                }
            }
        }
        rest.drain(..used);
    }
    (events, client.out)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn a_frame_is_at_the_front_and_stays_when_more_comes(
        bytes in prop_oneof![vec(any::<u8>(), 0..300), nearly_packets()],
        more in vec(any::<u8>(), 0..20),
    ) {
        let found = frame(&bytes);
        if let Ok(Some((first, body, length))) = &found {
            prop_assert_eq!(*first, bytes[0]);
            prop_assert!(*length <= bytes.len() && is_inside(body, &bytes[..*length]));
            prop_assert!((2..=5).contains(&(length - body.len())));
        }
        if !matches!(found, Ok(None)) {
            let longer = [bytes.as_slice(), more.as_slice()].concat();
            prop_assert_eq!(frame(&longer).map(|f| f.map(|(_, _, l)| l)), found.map(|f| f.map(|(_, _, l)| l)));
        }
    }

    #[test]
    fn decode_reads_nothing_that_is_not_there(first: u8, body in vec(any::<u8>(), 0..100), v5: bool) {
        match decode(first, &body, v5) {
            Ok(Packet::Publish(p)) => {
                prop_assert!(p.qos < 3);
                prop_assert!(is_inside(p.topic, &body) && is_inside(p.payload, &body));
                prop_assert!(p.topic.len() + p.payload.len() + 2 <= body.len());
            }
            Ok(Packet::Suback { codes, .. }) => prop_assert!(is_inside(codes, &body)),
            Ok(_) => {}
            Err(why) => prop_assert!(!why.contains('\n')),
        }
    }

    #[test]
    fn what_is_sent_is_what_is_read(
        topic in vec(any::<u8>(), 0..300), qos in 0..3_u8, retain: bool, v5: bool, id in 1..=u16::MAX, size in 0..70_000_usize,
    ) {
        let mut bytes = Vec::new();
        Template::new(&topic, qos, retain, size, v5).begin(&mut bytes, id);
        bytes.resize(bytes.len() + size, 7);
        let (first, body, length) = frame(&bytes).unwrap().unwrap();
        prop_assert_eq!(length, bytes.len());
        let payload = vec![7; size];
        let id = if qos > 0 { id } else { 0 };
        let wanted = Publish { qos, dup: false, retain, topic: &topic, id, payload: &payload };
        prop_assert_eq!(decode(first, body, v5), Ok(Packet::Publish(wanted)));
    }

    #[test]
    fn pieces_say_what_the_whole_says(
        bytes in prop_oneof![nearly_packets(), answers().prop_map(|packets| packets.concat())],
        pieces in vec(0..50_usize, 0..20),
    ) {
        prop_assert_eq!(told(&bytes, &pieces), told(&bytes, &[]));
    }

    #[test]
    fn no_answers_upset_a_client(packets in answers(), qos in 0..3_u8, messages in 0..5_u64) {
        let mut client = Client::new(Hello::default());
        let template = Template::new(b"t", qos, false, STAMP, false);
        let stamper = Stamper::new();
        for sequence in 0..messages {
            client.publish(&template, Stamp { run: 1, publisher: 2, sequence, due_ns: 3 }, &stamper);
        }
        client.subscribe(3, &[b"a".to_vec()], 1);
        let mut acked = 0;
        for bytes in packets {
            let (first, body, _) = frame(&bytes).unwrap().unwrap();
            let tell = |event: Event<'_>| if let Event::Acked(n) = event { acked += u64::from(n) };
            if decode(first, body, false).and_then(|packet| client.take(&packet, tell)).is_err() {
                break;
            }
        }
        let due = if qos > 0 { messages } else { 0 };
        prop_assert_eq!(acked + client.under_way() as u64, due);
        prop_assert!(client.found().unacknowledged <= client.under_way() as u64);
    }

    #[test]
    fn a_payload_is_whole_or_not_read(
        run: u16, publisher: u32, sequence: u64, due_ns: u64, size in STAMP..2000_usize, bit: prop::sample::Index,
        rubbish in vec(any::<u8>(), 0..100),
    ) {
        let (stamper, stamp) = (Stamper::new(), Stamp { run, publisher, sequence, due_ns });
        let mut payload = Vec::new();
        stamper.write(&mut payload, stamp, size);
        prop_assert_eq!((payload.len(), stamper.read(&payload)), (size, Some(stamp)));
        let bit = bit.index(size * 8);
        payload[bit / 8] ^= 1 << (bit % 8);
        prop_assert_eq!(stamper.read(&payload), None);
        let _ = stamper.read(&rubbish);
    }

    #[test]
    fn a_track_counts_as_a_list_does(sequences in vec(0..30_u64, 0..60), sent in 0..40_u64) {
        let (mut track, mut faults) = (Track::default(), Faults::default());
        let (mut seen, mut wanted) = (BTreeSet::new(), Faults::default());
        for s in sequences {
            wanted.reordered += u64::from(!seen.contains(&s) && seen.last().is_some_and(|last| *last > s));
            wanted.doubled += u64::from(seen.contains(&s));
            prop_assert_eq!(track.note(s, &mut faults), seen.insert(s));
        }
        prop_assert_eq!(faults, wanted);
        prop_assert_eq!(track.lost(sent), (0..sent).filter(|s| !seen.contains(s)).count() as u64);
    }
}
