//! [`Packet`] to bytes. The PUBLISH of the hot path is written by [`encode_publish_head`], straight into a connection's
//! pending output.

use super::packet::{Ack, AckKind, Connect, Packet, Publish, QoS, SubscribeFilter, Version, Will};
use super::property::{EXPIRY, Properties, SUBSCRIPTION_ID, TOPIC_ALIAS, put_binary, put_varint};
use super::reason::Reason;

/// Appends the packet to `out`.
pub fn encode(packet: &Packet<'_>, version: Version, out: &mut Vec<u8>) {
    let mut body = Vec::new();
    let first = match packet {
        Packet::Connect(p) => {
            connect(p, &mut body);
            0x10
        }
        Packet::Connack(p) => {
            body.extend_from_slice(&[u8::from(p.present), p.code]);
            properties(&p.properties, version, &mut body);
            0x20
        }
        Packet::Publish(p) => return publish(p, version, out),
        Packet::Ack(p) => {
            ack(p, version, &mut body);
            ack_first(p.kind)
        }
        Packet::Subscribe(p) => {
            body.extend_from_slice(&p.id.to_be_bytes());
            properties(&p.properties, version, &mut body);
            p.filters.iter().for_each(|f| filter(f, &mut body));
            0x82
        }
        Packet::Suback(p) | Packet::Unsuback(p) => {
            body.extend_from_slice(&p.id.to_be_bytes());
            properties(&p.properties, version, &mut body);
            body.extend_from_slice(&p.codes);
            if matches!(packet, Packet::Suback(_)) { 0x90 } else { 0xb0 }
        }
        Packet::Unsubscribe(p) => {
            body.extend_from_slice(&p.id.to_be_bytes());
            properties(&p.properties, version, &mut body);
            for f in &p.filters {
                put_binary(&mut body, f.as_bytes());
            }
            0xa2
        }
        Packet::Pingreq => 0xc0,
        Packet::Pingresp => 0xd0,
        Packet::Disconnect(p) => {
            ending(p.reason, &p.properties, version, &mut body);
            0xe0
        }
        Packet::Auth(p) => {
            ending(p.reason, &p.properties, version, &mut body);
            0xf0
        }
    };
    out.push(first);
    put_varint(out, u32::try_from(body.len()).unwrap_or(0));
    out.extend_from_slice(&body);
}

fn properties(p: &Properties<'_>, version: Version, out: &mut Vec<u8>) {
    if version.is_v5() {
        p.write(out);
    }
}

fn ending(reason: Reason, p: &Properties<'_>, version: Version, out: &mut Vec<u8>) {
    let plain = *p == Properties::default();
    if version.is_v5() && !(plain && reason == Reason::SUCCESS) {
        out.push(reason.0);
        if !plain {
            p.write(out);
        }
    }
}

fn ack(p: &Ack<'_>, version: Version, out: &mut Vec<u8>) {
    out.extend_from_slice(&p.id.to_be_bytes());
    if version.is_v5() && (p.reason != Reason::SUCCESS || p.properties.is_some()) {
        out.push(p.reason.0);
        if let Some(props) = &p.properties {
            props.write(out);
        }
    }
}

fn filter(f: &SubscribeFilter<'_>, out: &mut Vec<u8>) {
    put_binary(out, f.filter.as_bytes());
    let no_local = u8::from(f.no_local) << 2;
    let as_published = u8::from(f.retain_as_published) << 3;
    out.push(f.qos as u8 | no_local | as_published | f.retain_handling << 4);
}

fn connect(p: &Connect<'_>, out: &mut Vec<u8>) {
    put_binary(out, if p.version == Version::V31 { b"MQIsdp" } else { b"MQTT" });
    out.push(p.version as u8 | if p.bridge { 0x80 } else { 0 });
    let mut flags = u8::from(p.clean) << 1;
    if let Some(w) = &p.will {
        flags |= 4 | (w.qos as u8) << 3 | u8::from(w.retain) << 5;
    }
    flags |= u8::from(p.username.is_some()) << 7 | u8::from(p.password.is_some()) << 6;
    out.push(flags);
    out.extend_from_slice(&p.keep_alive_s.to_be_bytes());
    properties(&p.properties, p.version, out);
    put_binary(out, p.client_id.as_bytes());
    if let Some(w) = &p.will {
        will(w, p.version, out);
    }
    if let Some(u) = p.username {
        put_binary(out, u.as_bytes());
    }
    if let Some(secret) = p.password {
        put_binary(out, secret);
    }
}

fn will(w: &Will<'_>, version: Version, out: &mut Vec<u8>) {
    if version.is_v5() {
        w.properties.write(out);
    }
    put_binary(out, w.topic.as_bytes());
    put_binary(out, w.payload);
}

fn publish(p: &Publish<'_>, version: Version, out: &mut Vec<u8>) {
    let head = PublishHead {
        version,
        dup: p.dup,
        qos: p.qos,
        retain: p.retain,
        id: p.id,
        topic: p.topic,
        alias: p.properties.alias,
        expiry_s: p.properties.expiry_s,
        subscription_ids: &p.properties.subscription_ids,
        forward: &p.properties.forward,
        payload_len: p.payload.len(),
    };
    encode_publish_head(&head, out);
    out.extend_from_slice(p.payload);
}

/// Everything of an outgoing PUBLISH but its payload.
#[derive(Debug, Clone, Copy)]
#[expect(missing_docs, reason = "the fields are those of `Publish`")]
pub struct PublishHead<'a> {
    pub version: Version,
    pub dup: bool,
    pub qos: QoS,
    pub retain: bool,
    pub id: u16,
    pub topic: &'a str,
    pub alias: Option<u16>,
    pub expiry_s: Option<u32>,
    pub subscription_ids: &'a [u32],
    pub forward: &'a [u8],
    pub payload_len: usize,
}

const fn varint_len(n: usize) -> usize {
    match n {
        0..=127 => 1,
        128..=16_383 => 2,
        16_384..=2_097_151 => 3,
        _ => 4,
    }
}

/// (length of the properties, Remaining Length)
fn lengths(h: &PublishHead<'_>) -> (usize, usize) {
    let id = if h.qos == QoS::AtMostOnce { 0 } else { 2 };
    let base = 2 + h.topic.len() + id + h.payload_len;
    if !h.version.is_v5() {
        return (0, base);
    }
    let mut props = h.forward.len();
    props += if h.alias.is_some() { 3 } else { 0 };
    props += if h.expiry_s.is_some() { 5 } else { 0 };
    for &id in h.subscription_ids {
        props += 1 + varint_len(id as usize);
    }
    (props, base + varint_len(props) + props)
}

/// Length of the whole packet, for the client's Maximum Packet Size.
#[must_use]
pub fn publish_head_len(h: &PublishHead<'_>) -> usize {
    let (_, remaining) = lengths(h);
    1 + varint_len(remaining) + remaining
}

/// Appends fixed header, topic, identifier and properties; the payload follows.
pub fn encode_publish_head(h: &PublishHead<'_>, out: &mut Vec<u8>) {
    let (props, remaining) = lengths(h);
    out.push(0x30 | u8::from(h.dup) << 3 | (h.qos as u8) << 1 | u8::from(h.retain));
    put_varint(out, u32::try_from(remaining).unwrap_or(0));
    put_binary(out, h.topic.as_bytes());
    if h.qos != QoS::AtMostOnce {
        out.extend_from_slice(&h.id.to_be_bytes());
    }
    if !h.version.is_v5() {
        return;
    }
    put_varint(out, u32::try_from(props).unwrap_or(0));
    if props == 0 {
        return;
    }
    if let Some(alias) = h.alias {
        out.push(TOPIC_ALIAS);
        out.extend_from_slice(&alias.to_be_bytes());
    }
    if let Some(seconds) = h.expiry_s {
        out.push(EXPIRY);
        out.extend_from_slice(&seconds.to_be_bytes());
    }
    for &id in h.subscription_ids {
        out.push(SUBSCRIPTION_ID);
        put_varint(out, id);
    }
    out.extend_from_slice(h.forward);
}

const fn ack_first(kind: AckKind) -> u8 {
    match kind {
        AckKind::Pubrel => 0x62,
        _ => (kind as u8) << 4,
    }
}

/// Appends an acknowledgement without properties, in its shortest form.
pub fn encode_ack(kind: AckKind, id: u16, reason: Reason, version: Version, out: &mut Vec<u8>) {
    let [high, low] = id.to_be_bytes();
    if version.is_v5() && reason != Reason::SUCCESS {
        out.extend_from_slice(&[ack_first(kind), 3, high, low, reason.0]);
    } else {
        out.extend_from_slice(&[ack_first(kind), 2, high, low]);
    }
}
