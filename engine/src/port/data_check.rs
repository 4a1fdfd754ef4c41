//! Fields of an export file as what the engine keeps, checked.

use super::data_format::{MessageLine, Num, RetainedLine, WillLine};
use crate::codec::{Frame, Packet, QoS, Version, decode};
use crate::message::{Head, Message, Origin, Stored};
use crate::session::Will;
use crate::topic;

/// The text says what is wrong.
pub(super) type Checked<T = ()> = Result<T, String>;

pub(super) fn qos(n: u8) -> Checked<QoS> {
    QoS::from_bits(n).ok_or_else(|| format!("QoS {n} is not 0 to 2"))
}

fn properties(bytes: &[u8]) -> Checked {
    let wrong = || "properties: not what MQTT 5 says".to_owned();
    let mut packet = vec![0, 1, b't'];
    let mut length = bytes.len();
    while length >= 0x80 {
        packet.push(length as u8 | 0x80);
        length >>= 7;
    }
    packet.push(length as u8);
    packet.extend_from_slice(bytes);
    let frame = Frame { first: 0x30, head: 0, total: packet.len() };
    match decode(&packet, frame, Version::V5) {
        Ok(Packet::Publish(p)) if *p.properties.forward == *bytes => Ok(()),
        _ => Err(wrong()),
    }
}

/// Engine time at which what is left is over; 0 is never.
pub(super) fn at(now_ms: u64, left_ms: Option<Num>) -> u64 {
    left_ms.map_or(0, |left| now_ms + left.0)
}

/// The message of a line, with what is to be taken of its origin.
pub(super) fn stored(m: &RetainedLine, now_ms: u64, may_be_empty: bool) -> Checked<(Stored, Origin)> {
    if !(topic::valid_name(&m.topic) || may_be_empty && m.topic.is_empty()) {
        return Err(format!("`{}` is not a topic", m.topic));
    }
    if m.topic.len() > 65_535 {
        return Err("topic: longer than 65,535 bytes".to_owned());
    }
    properties(&m.properties.0)?;
    let head = Head {
        publisher: m.publisher.map_or(0, |uid| uid.0),
        deadline_ms: at(now_ms, m.expiry_left_ms),
        qos: qos(m.published_qos)?,
        retain: m.published_retain,
        ..Head::default()
    };
    let origin = match &m.origin {
        Some(o) if o.n.0 == 0 => return Err("origin: n is 0".to_owned()),
        Some(o) => Origin { uid: o.uid.0, n: o.n.0, answered: o.answered.0 },
        None => Origin::default(),
    };
    let (props, payload) = (&*m.properties.0, &*m.payload.0);
    Ok((Stored::new(&Message { head, topic: &m.topic, props, payload }), origin))
}

pub(super) fn will(w: WillLine) -> Checked<Box<Will>> {
    if !topic::valid_name(&w.topic) {
        return Err(format!("will: `{}` is not a topic", w.topic));
    }
    properties(&w.properties.0)?;
    Ok(Box::new(Will {
        topic: w.topic.into(),
        payload: w.payload.0.into(),
        props: w.properties.0.into(),
        qos: qos(w.qos)?,
        retain: w.retain,
        expiry_s: w.expiry_s,
        delay_s: w.delay_s,
        outlives: w.outlives,
    }))
}

pub(super) fn body(m: MessageLine) -> RetainedLine {
    RetainedLine {
        topic: m.topic,
        payload: m.payload,
        properties: m.properties,
        published_qos: m.published_qos,
        published_retain: m.published_retain,
        publisher: m.publisher,
        origin: m.origin,
        expiry_left_ms: m.expiry_left_ms,
    }
}

pub(super) fn nothing() -> Stored {
    Stored::new(&Message { head: Head::default(), topic: "", props: &[], payload: &[] })
}
