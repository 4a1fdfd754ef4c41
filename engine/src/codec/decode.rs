//! Bytes of one whole packet to [`Packet`].

use smallvec::SmallVec;

use super::packet::{
    Ack, AckKind, Auth, Connack, Connect, Disconnect, Packet, Publish, QoS, Suback, Subscribe, SubscribeFilter,
    Unsubscribe, Version, Will,
};
use super::property::{Carrier, MessageProperties, Properties};
use super::reader::Reader;
use super::{Frame, Malformed, Reason};
use crate::topic;

/// Reads the packet that `frame` found at the start of `buf`. `version` is that of the connection; a CONNECT says its
/// own.
///
/// # Errors
/// The reason code and what was wrong; the connection cannot go on after it.
pub fn decode<'a>(buf: &'a [u8], frame: Frame, version: Version) -> Result<Packet<'a>, Malformed> {
    let body = buf.get(frame.head..frame.total).ok_or(Malformed::packet("incomplete packet"))?;
    let mut r = Reader::new(body);
    let flags = frame.first & 0x0f;
    let kind = frame.first >> 4;
    if kind == 3 {
        return publish(r, flags, version).map(Packet::Publish);
    }
    let expected = if matches!(kind, 6 | 8 | 10) { 2 } else { 0 };
    if flags != expected && matches!(kind, 0 | 15) {
        return Err(Malformed::protocol("reserved packet type or flags"));
    }
    // 3.1 sends its acknowledgements again with DUP
    let again = version == Version::V31 && flags == expected | 8;
    if flags != expected && !again && kind != 1 {
        return Err(Malformed::packet("wrong flags in the fixed header"));
    }
    let packet = match kind {
        1 => Packet::Connect(Box::new(connect(&mut r, flags)?)),
        2 => Packet::Connack(Box::new(connack(&mut r, version)?)),
        4 => Packet::Ack(ack(&mut r, AckKind::Puback, version)?),
        5 => Packet::Ack(ack(&mut r, AckKind::Pubrec, version)?),
        6 => Packet::Ack(ack(&mut r, AckKind::Pubrel, version)?),
        7 => Packet::Ack(ack(&mut r, AckKind::Pubcomp, version)?),
        8 => Packet::Subscribe(Box::new(subscribe(&mut r, version)?)),
        9 => Packet::Suback(Box::new(suback(&mut r, version)?)),
        10 => Packet::Unsubscribe(Box::new(unsubscribe(&mut r, version)?)),
        11 => Packet::Unsuback(Box::new(suback(&mut r, version)?)),
        12 => Packet::Pingreq,
        13 => Packet::Pingresp,
        14 => {
            let (reason, properties) = ending(&mut r, version, Carrier::Disconnect)?;
            Packet::Disconnect(Box::new(Disconnect { reason, properties }))
        }
        15 if version.is_v5() => {
            let (reason, properties) = ending(&mut r, version, Carrier::Auth)?;
            Packet::Auth(Box::new(Auth { reason, properties }))
        }
        _ => return Err(Malformed::protocol("reserved packet type")),
    };
    if r.is_empty() { Ok(packet) } else { Err(Malformed::packet("bytes after the end of the packet")) }
}

fn properties<'a>(r: &mut Reader<'a>, version: Version, carrier: Carrier) -> Result<Properties<'a>, Malformed> {
    if version.is_v5() { Properties::read(r, carrier) } else { Ok(Properties::default()) }
}

fn protocol(r: &mut Reader<'_>) -> Result<(Version, bool), Malformed> {
    const UNSUPPORTED: Malformed =
        Malformed { reason: Reason::UNSUPPORTED_VERSION, what: "unsupported protocol version" };
    let name = r.binary()?;
    let level = r.u8()?;
    let version = match (name, level & 0x7f) {
        (b"MQIsdp", 3) => Version::V31,
        (b"MQTT", 4) => Version::V311,
        (b"MQTT", 5) => Version::V5,
        (b"MQTT" | b"MQIsdp", _) => return Err(UNSUPPORTED),
        _ => return Err(Malformed { reason: Reason::UNSUPPORTED_VERSION, what: "unknown protocol name" }),
    };
    if level & 0x80 != 0 && version.is_v5() {
        return Err(UNSUPPORTED);
    }
    Ok((version, level & 0x80 != 0))
}

fn connect<'a>(r: &mut Reader<'a>, header_flags: u8) -> Result<Connect<'a>, Malformed> {
    let (version, bridge) = protocol(r)?;
    let flags = r.u8()?;
    // 3.1 left these bits unused
    if (flags & 1 != 0 || header_flags != 0) && version != Version::V31 {
        return Err(Malformed::packet("reserved connect flag"));
    }
    let keep_alive_s = r.u16()?;
    let properties = properties(r, version, Carrier::Connect)?;
    let client_id = r.string()?;
    let will = will(r, flags, version)?;
    let username = if flags & 0x80 != 0 { Some(r.string()?) } else { None };
    let password = if flags & 0x40 != 0 { Some(r.binary()?) } else { None };
    if password.is_some() && username.is_none() && !version.is_v5() {
        return Err(Malformed::packet("password without username"));
    }
    Ok(Connect {
        version,
        bridge,
        clean: flags & 2 != 0,
        keep_alive_s,
        client_id,
        username,
        password,
        will,
        properties,
    })
}

fn will<'a>(r: &mut Reader<'a>, flags: u8, version: Version) -> Result<Option<Will<'a>>, Malformed> {
    if flags & 4 == 0 {
        return if flags & 0x38 == 0 { Ok(None) } else { Err(Malformed::packet("will flags without a will")) };
    }
    let qos = QoS::from_bits((flags >> 3) & 3).ok_or(Malformed::packet("will with QoS 3"))?;
    let properties =
        if version.is_v5() { MessageProperties::read(r, Carrier::Will)? } else { MessageProperties::default() };
    let topic = r.string()?;
    if !topic::valid_name(topic) {
        let reason = if version.is_v5() { Reason::TOPIC_INVALID } else { Reason::MALFORMED_PACKET };
        return Err(Malformed { reason, what: "will topic is empty or has a wildcard" });
    }
    let payload = r.binary()?;
    let delay_s = properties.will_delay_s.unwrap_or(0);
    Ok(Some(Will { qos, retain: flags & 0x20 != 0, topic, payload, delay_s, properties }))
}

fn connack<'a>(r: &mut Reader<'a>, version: Version) -> Result<Connack<'a>, Malformed> {
    let flags = r.u8()?;
    if flags > 1 {
        return Err(Malformed::packet("reserved CONNACK flag"));
    }
    let code = r.u8()?;
    Ok(Connack { present: flags == 1, code, properties: properties(r, version, Carrier::Connack)? })
}

fn publish<'a>(mut r: Reader<'a>, flags: u8, version: Version) -> Result<Publish<'a>, Malformed> {
    let qos = QoS::from_bits((flags >> 1) & 3).ok_or(Malformed::packet("PUBLISH with QoS 3"))?;
    let dup = flags & 8 != 0;
    if dup && qos == QoS::AtMostOnce {
        return Err(Malformed::packet("DUP with QoS 0"));
    }
    let topic = r.string()?;
    let id = if qos == QoS::AtMostOnce { 0 } else { r.u16()? };
    if qos != QoS::AtMostOnce && id == 0 {
        return Err(Malformed::protocol("packet identifier 0"));
    }
    let properties =
        if version.is_v5() { MessageProperties::read(&mut r, Carrier::Publish)? } else { MessageProperties::default() };
    if topic.is_empty() && properties.alias.is_none() {
        return Err(if version.is_v5() {
            Malformed::protocol("PUBLISH without topic and alias")
        } else {
            Malformed::packet("PUBLISH without topic")
        });
    }
    if topic::has_wildcard(topic) {
        return Err(Malformed::packet("topic name with a wildcard"));
    }
    Ok(Publish { dup, qos, retain: flags & 1 != 0, topic, id, properties, payload: r.rest() })
}

fn identifier(r: &mut Reader<'_>) -> Result<u16, Malformed> {
    match r.u16()? {
        0 => Err(Malformed::packet("packet identifier 0")),
        id => Ok(id),
    }
}

fn ack<'a>(r: &mut Reader<'a>, kind: AckKind, version: Version) -> Result<Ack<'a>, Malformed> {
    let id = identifier(r)?;
    let mut reason = Reason::SUCCESS;
    let mut properties = None;
    if version.is_v5() && !r.is_empty() {
        reason = Reason(r.u8()?);
        if !r.is_empty() {
            properties = Some(Box::new(Properties::read(r, Carrier::Ack)?));
        }
        let known: &[u8] = match kind {
            AckKind::Puback | AckKind::Pubrec => &[0x00, 0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99],
            AckKind::Pubrel | AckKind::Pubcomp => &[0x00, 0x92],
        };
        if !known.contains(&reason.0) {
            return Err(Malformed::protocol("unknown reason code"));
        }
    }
    Ok(Ack { kind, id, reason, properties })
}

fn subscribe<'a>(r: &mut Reader<'a>, version: Version) -> Result<Subscribe<'a>, Malformed> {
    let id = identifier(r)?;
    let properties = properties(r, version, Carrier::Subscribe)?;
    let mut filters = SmallVec::new();
    while !r.is_empty() {
        let filter = filter(r)?;
        filters.push(options(filter, r.u8()?, version)?);
    }
    if filters.is_empty() {
        return Err(Malformed::packet("SUBSCRIBE without a filter"));
    }
    Ok(Subscribe { id, properties, filters })
}

fn filter<'a>(r: &mut Reader<'a>) -> Result<&'a str, Malformed> {
    match r.string()? {
        "" => Err(Malformed::packet("empty topic filter")),
        filter => Ok(filter),
    }
}

fn options(filter: &str, bits: u8, version: Version) -> Result<SubscribeFilter<'_>, Malformed> {
    let reserved = if version.is_v5() { 0xc0 } else { 0xfc };
    if bits & reserved != 0 {
        return Err(Malformed::packet("reserved subscription option"));
    }
    let qos = QoS::from_bits(bits & 3).ok_or(Malformed::packet("subscription with QoS 3"))?;
    let retain_handling = (bits >> 4) & 3;
    if retain_handling == 3 {
        return Err(Malformed::packet("retain handling 3"));
    }
    let no_local = bits & 4 != 0;
    if no_local && filter.starts_with("$share/") {
        return Err(Malformed::protocol("no local on a shared subscription"));
    }
    Ok(SubscribeFilter { filter, qos, no_local, retain_as_published: bits & 8 != 0, retain_handling })
}

fn suback<'a>(r: &mut Reader<'a>, version: Version) -> Result<Suback<'a>, Malformed> {
    let id = identifier(r)?;
    let properties = properties(r, version, Carrier::Suback)?;
    let codes = SmallVec::from_slice(r.take(r.len())?);
    Ok(Suback { id, properties, codes })
}

fn unsubscribe<'a>(r: &mut Reader<'a>, version: Version) -> Result<Unsubscribe<'a>, Malformed> {
    let id = identifier(r)?;
    let properties = properties(r, version, Carrier::Unsubscribe)?;
    let mut filters = SmallVec::new();
    while !r.is_empty() {
        filters.push(filter(r)?);
    }
    if filters.is_empty() {
        return Err(Malformed::packet("UNSUBSCRIBE without a filter"));
    }
    Ok(Unsubscribe { id, properties, filters })
}

fn ending<'a>(r: &mut Reader<'a>, version: Version, carrier: Carrier) -> Result<(Reason, Properties<'a>), Malformed> {
    if r.is_empty() || !version.is_v5() {
        return Ok((Reason::SUCCESS, Properties::default()));
    }
    let reason = Reason(r.u8()?);
    let known = match carrier {
        Carrier::Auth => matches!(reason.0, 0x00 | 0x18 | 0x19),
        _ => matches!(reason.0, 0x00 | 0x04 | 0x80..=0x83 | 0x87 | 0x89 | 0x8b | 0x8d..=0x90 | 0x93..=0xa2),
    };
    if !known {
        return Err(Malformed::packet("unknown reason code"));
    }
    let properties = if r.is_empty() { Properties::default() } else { Properties::read(r, carrier)? };
    Ok((reason, properties))
}
