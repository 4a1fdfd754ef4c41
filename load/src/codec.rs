//! The few packets that a client needs, for MQTT 3.1.1 (`protocol` 4) and 5.0. Written apart from the broker's codec on
//! purpose: an error in one does not hide in the other.

/// What arrives.
#[derive(Debug, PartialEq, Eq)]
pub enum Packet<'a> {
    Connack {
        present: bool,
        code: u8,
        receive_maximum: u16,
        keep_alive_s: Option<u16>,
        /// Bytes of the largest packet that the server takes.
        packet_max: u32,
    },
    Publish(Publish<'a>),
    /// PUBACK, PUBREC, PUBREL or PUBCOMP by their type (4 to 7).
    Ack {
        kind: u8,
        id: u16,
        code: u8,
    },
    Suback {
        id: u16,
        codes: &'a [u8],
    },
    Unsuback,
    Pong,
    Disconnect {
        code: u8,
    },
}

/// A message on its way in.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub struct Publish<'a> {
    pub qos: u8,
    pub dup: bool,
    pub retain: bool,
    pub topic: &'a [u8],
    pub id: u16,
    pub payload: &'a [u8],
}

/// First byte and body of a packet, and its length.
pub type Frame<'a> = (u8, &'a [u8], usize);

/// The packet at the front; None while it is not complete.
///
/// # Errors
/// The length is not one.
pub fn frame(bytes: &[u8]) -> Result<Option<Frame<'_>>, String> {
    let Some((first, rest)) = bytes.split_first() else { return Ok(None) };
    let mut length = 0;
    for (i, byte) in rest.iter().take(4).enumerate() {
        length |= usize::from(byte & 0x7f) << (7 * i);
        if byte & 0x80 == 0 {
            return Ok(rest.get(i + 1..i + 1 + length).map(|body| (*first, body, i + 2 + length)));
        }
    }
    if rest.len() < 4 { Ok(None) } else { Err("a packet length of more than four bytes".to_owned()) }
}

/// Reads a packet from the server.
///
/// # Errors
/// It is not one, or not complete.
pub fn decode(first: u8, body: &[u8], v5: bool) -> Result<Packet<'_>, String> {
    let mut r = Reader(body);
    let packet = match first >> 4 {
        2 => connack(&mut r, v5),
        3 => publish(first, &mut r, v5),
        4..=7 => r.u16().map(|id| Packet::Ack { kind: first >> 4, id, code: r.u8().unwrap_or(0) }),
        9 => r.u16().and_then(|id| {
            if v5 {
                r.properties()?;
            }
            Some(Packet::Suback { id, codes: r.0 })
        }),
        11 => Some(Packet::Unsuback),
        13 => Some(Packet::Pong),
        14 => Some(Packet::Disconnect { code: r.u8().unwrap_or(0) }),
        _ => None,
    };
    packet.ok_or_else(|| format!("not a good packet: first byte {first:#04x}, {} bytes", body.len()))
}

fn connack<'a>(r: &mut Reader<'a>, v5: bool) -> Option<Packet<'a>> {
    let (flags, code) = (r.u8()?, r.u8()?);
    let (mut receive_maximum, mut keep_alive_s, mut packet_max) = (u16::MAX, None, u32::MAX);
    if v5 && !r.0.is_empty() {
        let mut properties = Reader(r.properties()?);
        while let Some(name) = properties.u8() {
            match name {
                // 0 is an error [3.2.2.3.3]
                0x21 => receive_maximum = properties.u16().filter(|n| *n > 0)?,
                0x13 => keep_alive_s = Some(properties.u16()?),
                0x27 => packet_max = u32::from(properties.u16()?) << 16 | u32::from(properties.u16()?),
                0x11 => properties.take(4).map(|_| ())?,
                0x22 => properties.take(2).map(|_| ())?,
                0x24 | 0x25 | 0x28 | 0x29 | 0x2a => properties.take(1).map(|_| ())?,
                0x12 | 0x1f | 0x1a | 0x1c | 0x15 | 0x16 => properties.text().map(|_| ())?,
                0x26 => properties.text().and_then(|_| properties.text()).map(|_| ())?,
                _ => return None,
            }
        }
    }
    Some(Packet::Connack { present: flags & 1 == 1, code, receive_maximum, keep_alive_s, packet_max })
}

fn publish<'a>(first: u8, r: &mut Reader<'a>, v5: bool) -> Option<Packet<'a>> {
    let qos = first >> 1 & 3;
    let topic = r.text()?;
    let id = if qos > 0 { r.u16()? } else { 0 };
    if v5 {
        r.properties()?;
    }
    let (dup, retain) = (first & 8 != 0, first & 1 != 0);
    (qos < 3).then_some(Packet::Publish(Publish { qos, dup, retain, topic, id, payload: r.0 }))
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn u8(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn u16(&mut self) -> Option<u16> {
        let (two, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u16::from_be_bytes(*two))
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (front, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(front)
    }

    fn text(&mut self) -> Option<&'a [u8]> {
        let length = self.u16()?;
        self.take(usize::from(length))
    }

    fn properties(&mut self) -> Option<&'a [u8]> {
        let mut length = 0;
        for shift in [0, 7, 14, 21] {
            let byte = self.u8()?;
            length |= usize::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return self.take(length);
            }
        }
        None
    }
}

/// How a client presents itself.
#[derive(Clone, Debug, Default)]
pub struct Hello {
    pub client_id: String,
    pub v5: bool,
    /// Begins without an older session.
    pub clean: bool,
    /// The session outlives the connection.
    pub persistent: bool,
    pub keep_alive_s: u16,
    pub username: String,
    pub password: String,
}

impl Hello {
    /// The CONNECT packet.
    #[must_use]
    pub fn packet(&self) -> Vec<u8> {
        let mut flags = 0;
        // 3.1.1 has one flag for both
        flags |= u8::from(if self.v5 { self.clean } else { !self.persistent || self.clean }) << 1;
        flags |= u8::from(!self.username.is_empty()) << 7 | u8::from(!self.password.is_empty()) << 6;
        let mut body = vec![0, 4, b'M', b'Q', b'T', b'T', if self.v5 { 5 } else { 4 }, flags];
        body.extend(self.keep_alive_s.to_be_bytes());
        if self.v5 {
            let expiry: &[u8] = if self.persistent { &[5, 0x11, 0, 1, 0x51, 0x80] } else { &[0] };
            body.extend(expiry);
        }
        text(&mut body, self.client_id.as_bytes());
        for word in [&self.username, &self.password].into_iter().filter(|w| !w.is_empty()) {
            text(&mut body, word.as_bytes());
        }
        packet(0x10, &body)
    }
}

/// Appends a text with its length.
pub fn text(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend(u16::try_from(bytes.len()).unwrap_or(u16::MAX).to_be_bytes());
    out.extend_from_slice(bytes);
}

/// A packet of a first byte and a body.
#[must_use]
pub fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let mut out = head(first, body.len());
    out.extend_from_slice(body);
    out
}

fn head(first: u8, mut length: usize) -> Vec<u8> {
    let mut out = vec![first];
    while length > 0x7f {
        out.push((length & 0x7f) as u8 | 0x80);
        length >>= 7;
    }
    out.push(length as u8);
    out
}

/// SUBSCRIBE to filters at one QoS.
#[must_use]
pub fn subscribe<'a>(id: u16, filters: impl Iterator<Item = &'a [u8]>, qos: u8, v5: bool) -> Vec<u8> {
    let mut body = id.to_be_bytes().to_vec();
    if v5 {
        body.push(0);
    }
    for filter in filters {
        text(&mut body, filter);
        body.push(qos);
    }
    packet(0x82, &body)
}

/// What does not change from one PUBLISH of a publisher to the next: everything before the packet identifier.
#[derive(Clone, Debug)]
pub struct Template {
    head: Box<[u8]>,
    pub qos: u8,
    pub size: usize,
    v5: bool,
}

impl Template {
    /// A topic, and payloads of one size.
    #[must_use]
    pub fn new(topic: &[u8], qos: u8, retain: bool, size: usize, v5: bool) -> Self {
        let length = 2 + topic.len() + usize::from(qos > 0) * 2 + usize::from(v5) + size;
        let mut head = head(0x30 | qos << 1 | u8::from(retain), length);
        text(&mut head, topic);
        Self { head: head.into(), qos, size, v5 }
    }

    /// Appends the packet up to its payload.
    pub fn begin(&self, out: &mut Vec<u8>, id: u16) {
        out.extend_from_slice(&self.head);
        if self.qos > 0 {
            out.extend_from_slice(&id.to_be_bytes());
        }
        if self.v5 {
            out.push(0);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    #[test]
    fn a_template_is_what_decode_reads() {
        for (qos, v5) in [(0, false), (1, false), (2, true), (0, true)] {
            let mut out = Vec::new();
            Template::new(b"a/b", qos, true, 200, v5).begin(&mut out, 513);
            out.extend([9; 200]);
            let (first, body, length) = frame(&out).unwrap().unwrap();
            assert_eq!(length, out.len());
            let id = if qos > 0 { 513 } else { 0 };
            let wanted = Publish { qos, dup: false, retain: true, topic: b"a/b", id, payload: &[9; 200] };
            assert_eq!(decode(first, body, v5), Ok(Packet::Publish(wanted)));
            for cut in 0..out.len() {
                assert_eq!(frame(&out[..cut]), Ok(None));
            }
        }
    }

    #[test]
    fn a_connack_tells_its_bounds() {
        let body = [1, 0, 11, 0x21, 0, 20, 0x12, 0, 2, b'a', b'b', 0x2a, 1, 0x25];
        assert!(decode(0x20, &body, true).is_err(), "the last property is cut off");
        let body = [1, 0, 18, 0x21, 0, 20, 0x12, 0, 2, b'a', b'b', 0x2a, 1, 0x13, 0, 9, 0x27, 1, 2, 3, 4];
        let (keep_alive_s, packet_max) = (Some(9), 0x0102_0304);
        let wanted = Packet::Connack { present: true, code: 0, receive_maximum: 20, keep_alive_s, packet_max };
        assert_eq!(decode(0x20, &body, true), Ok(wanted));
        assert!(decode(0x20, &[0, 0, 3, 0x21, 0, 0], true).is_err(), "none at all");
    }

    #[test]
    fn rubbish_is_an_error() {
        assert!(frame(&[0x30, 0xff, 0xff, 0xff, 0xff, 1]).is_err());
        for first in [0x00, 0x10, 0x36, 0x80, 0xf0] {
            assert!(decode(first, &[0, 1, 2], false).is_err(), "{first:#x}");
        }
    }
}
