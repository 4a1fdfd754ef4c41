//! Round trips of every packet in every version, and bytes that are no packets.

use std::borrow::Cow;

use proptest::prelude::*;

use super::*;

fn text() -> impl Strategy<Value = String> {
    "[a-zA-Z0-9/é✓-]{0,20}"
}

fn name() -> impl Strategy<Value = String> {
    "[a-z]{1,8}(/[a-z0-9]{0,5}){0,3}"
}

fn version() -> impl Strategy<Value = Version> {
    prop_oneof![Just(Version::V31), Just(Version::V311), Just(Version::V5)]
}

fn qos() -> impl Strategy<Value = QoS> {
    prop_oneof![Just(QoS::AtMostOnce), Just(QoS::AtLeastOnce), Just(QoS::ExactlyOnce)]
}

/// Encodes, cuts and decodes; what comes out must be what went in.
fn round_trip(packet: &Packet<'_>, version: Version) {
    let mut bytes = Vec::new();
    encode(packet, version, &mut bytes);
    let found = frame(&bytes, u32::MAX).unwrap().unwrap();
    assert_eq!(found.total, bytes.len());
    for cut in 0..bytes.len().min(8) {
        assert!(frame(&bytes[..cut], u32::MAX).unwrap().is_none_or(|f| f.total > cut));
    }
    assert_eq!(format!("{:?}", decode(&bytes, found, version).unwrap()), format!("{packet:?}"));
}

proptest! {
    #[test]
    fn connect(
        v in version(), clean: bool, keep_alive_s: u16, id in text(), user in proptest::option::of(text()),
        password in prop::collection::vec(any::<u8>(), 0..9), topic in name(), body in prop::collection::vec(any::<u8>(), 0..9),
        q in qos(), retain: bool, expiry in proptest::option::of(any::<u32>()), maximum in proptest::option::of(1u16..),
        pairs in prop::collection::vec((text(), text()), 0..3),
    ) {
        let v5 = v.is_v5();
        let properties = if v5 {
            let user = pairs.iter().map(|(k, x)| (k.as_str(), x.as_str())).collect();
            Properties { session_expiry_s: expiry, receive_maximum: maximum, user, ..Properties::default() }
        } else {
            Properties::default()
        };
        let message = if v5 {
            MessageProperties { expiry_s: expiry, will_delay_s: Some(5), ..MessageProperties::default() }
        } else {
            MessageProperties::default()
        };
        let delay_s = if v5 { 5 } else { 0 };
        let will = Will { qos: q, retain, topic: &topic, payload: &body, delay_s, properties: message };
        let packet = Connect {
            version: v, bridge: false, clean, keep_alive_s, client_id: &id, username: user.as_deref(),
            password: user.as_ref().map(|_| password.as_slice()), will: Some(will), properties,
        };
        round_trip(&Packet::Connect(Box::new(packet)), v);
    }

    #[test]
    fn publish(
        v in version(), q in qos(), retain: bool, topic in name(), id in 1u16.., alias in proptest::option::of(1u16..),
        expiry in proptest::option::of(any::<u32>()), ids in prop::collection::vec(1u32..268_435_455, 0..3),
        content in proptest::option::of(text()), pairs in prop::collection::vec((text(), text()), 0..3),
        payload in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        let mut forward = Vec::new();
        if let Some(content) = &content {
            forward.push(3);
            super::property::put_binary(&mut forward, content.as_bytes());
        }
        for (key, value) in &pairs {
            forward.push(38);
            super::property::put_binary(&mut forward, key.as_bytes());
            super::property::put_binary(&mut forward, value.as_bytes());
        }
        let properties = if v.is_v5() {
            MessageProperties {
                alias, expiry_s: expiry, will_delay_s: None, subscription_ids: ids.iter().copied().collect(),
                forward: Cow::Owned(forward),
            }
        } else {
            MessageProperties::default()
        };
        let id = if q == QoS::AtMostOnce { 0 } else { id };
        let packet = Publish { dup: false, qos: q, retain, topic: &topic, id, properties, payload: &payload };
        let head = PublishHead {
            version: v, dup: false, qos: q, retain, id, topic: &topic, alias: packet.properties.alias,
            expiry_s: packet.properties.expiry_s, subscription_ids: &packet.properties.subscription_ids,
            forward: &packet.properties.forward, payload_len: payload.len(),
        };
        let mut bytes = Vec::new();
        encode(&Packet::Publish(packet.clone()), v, &mut bytes);
        prop_assert_eq!(publish_head_len(&head), bytes.len());
        round_trip(&Packet::Publish(packet), v);
    }

    #[test]
    fn subscribe_and_answers(v in version(), id in 1u16.., filters in prop::collection::vec((name(), qos(), any::<bool>(), 0u8..3), 1..5)) {
        let v5 = v.is_v5();
        let filters: smallvec::SmallVec<[SubscribeFilter<'_>; 1]> = filters.iter().map(|(f, q, flag, handling)| SubscribeFilter {
            filter: f, qos: *q, no_local: *flag && v5, retain_as_published: *flag && v5,
            retain_handling: if v5 { *handling } else { 0 },
        }).collect();
        let names = filters.iter().map(|f| f.filter).collect();
        let codes: smallvec::SmallVec<[u8; 4]> = filters.iter().map(|f| f.qos as u8).collect();
        round_trip(&Packet::Subscribe(Box::new(Subscribe { id, properties: Properties::default(), filters })), v);
        round_trip(&Packet::Unsubscribe(Box::new(Unsubscribe { id, properties: Properties::default(), filters: names })), v);
        round_trip(&Packet::Suback(Box::new(Suback { id, properties: Properties::default(), codes: codes.clone() })), v);
        round_trip(&Packet::Unsuback(Box::new(Suback { id, properties: Properties::default(), codes })), v);
    }

    #[test]
    fn small_packets(v in version(), id in 1u16.., kind in 0usize..4, text in text()) {
        let kind = [AckKind::Puback, AckKind::Pubrec, AckKind::Pubrel, AckKind::Pubcomp][kind];
        let reason = if v.is_v5() && kind == AckKind::Pubrec { Reason::QUOTA_EXCEEDED } else { Reason::SUCCESS };
        round_trip(&Packet::Ack(Ack { kind, id, reason, properties: None }), v);
        let mut short = Vec::new();
        encode_ack(kind, id, reason, v, &mut short);
        let found = frame(&short, u32::MAX).unwrap().unwrap();
        prop_assert_eq!(decode(&short, found, v).unwrap(), Packet::Ack(Ack { kind, id, reason, properties: None }));
        round_trip(&Packet::Pingreq, v);
        round_trip(&Packet::Pingresp, v);
        let properties = if v.is_v5() { Properties { reason_string: Some(&text), ..Properties::default() } } else { Properties::default() };
        let code = if v.is_v5() { Reason::SERVER_BUSY } else { Reason::SUCCESS };
        round_trip(&Packet::Disconnect(Box::new(Disconnect { reason: code, properties: properties.clone() })), v);
        round_trip(&Packet::Connack(Box::new(Connack { present: true, code: 0, properties })), v);
        if v.is_v5() {
            let properties = Properties { auth_method: Some(&text), ..Properties::default() };
            round_trip(&Packet::Auth(Box::new(Auth { reason: Reason(0x18), properties })), v);
        }
    }

    /// Arbitrary bytes never panic, and what decodes can be encoded again.
    #[test]
    fn arbitrary_bytes(mut bytes in prop::collection::vec(any::<u8>(), 0..200), kind in 1u8..16, v in version()) {
        if let Some(first) = bytes.first_mut() {
            *first = kind << 4 | (*first & 0x0f);
        }
        if bytes.len() > 1 {
            bytes[1] = u8::try_from(bytes.len() - 2).unwrap().min(127);
        }
        if let Ok(Some(found)) = frame(&bytes, u32::MAX) {
            if bytes.len() >= found.total {
                if let Ok(packet) = decode(&bytes, found, v) {
                    let mut again = Vec::new();
                    encode(&packet, v, &mut again);
                    let found = frame(&again, u32::MAX).unwrap().unwrap();
                    let second = decode(&again, found, v);
                    prop_assert!(second.is_ok() || matches!(packet, Packet::Connect(_)), "{:?}", packet);
                }
            }
        }
    }
}

/// Sizes: a fifth length byte is malformed, a packet above the limit is named so.
#[test]
fn frames() {
    assert_eq!(frame(&[0x30, 0xff, 0xff, 0xff, 0xff, 1], u32::MAX).unwrap_err().reason, Reason::MALFORMED_PACKET);
    assert_eq!(frame(&[0x30, 0xff, 0x7f], 100).unwrap_err().reason, Reason::PACKET_TOO_LARGE);
    assert_eq!(frame(&[0x30], 100), Ok(None));
    assert_eq!(frame(&[0xc0, 0], 100), Ok(Some(Frame { first: 0xc0, head: 2, total: 2 })));
}
