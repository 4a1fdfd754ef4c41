//! Properties of MQTT 5.0 (section 2.2.2): which exist, what type they have, which packet may carry them.
//!
//! A packet's properties are read once. Those of a message that a server must pass on unaltered [MQTT-3.3.2-4 to
//! MQTT-3.3.2-20] are kept as the bytes they arrived in.

use std::borrow::Cow;

use smallvec::SmallVec;

use super::Malformed;
use super::reader::Reader;

/// Properties of every packet but those of a message.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[expect(missing_docs, reason = "the fields are the property names of the standard")]
pub struct Properties<'a> {
    pub session_expiry_s: Option<u32>,
    pub assigned_client_id: Option<&'a str>,
    pub server_keep_alive_s: Option<u16>,
    pub auth_method: Option<&'a str>,
    pub auth_data: Option<&'a [u8]>,
    pub request_problem: Option<bool>,
    pub request_response: Option<bool>,
    pub response_information: Option<&'a str>,
    pub server_reference: Option<&'a str>,
    pub reason_string: Option<&'a str>,
    pub receive_maximum: Option<u16>,
    pub topic_alias_maximum: Option<u16>,
    pub maximum_qos: Option<u8>,
    pub retain_available: Option<bool>,
    pub maximum_packet_size: Option<u32>,
    pub wildcard_available: Option<bool>,
    pub subscription_id_available: Option<bool>,
    pub shared_available: Option<bool>,
    pub subscription_id: Option<u32>,
    pub user: Vec<(&'a str, &'a str)>,
}

/// Properties of a PUBLISH or of a will.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MessageProperties<'a> {
    /// Topic Alias; never passed on.
    pub alias: Option<u16>,
    /// Message Expiry Interval, seconds.
    pub expiry_s: Option<u32>,
    /// Will Delay Interval, seconds; only in a will.
    pub will_delay_s: Option<u32>,
    /// Subscription Identifiers; only from a server.
    pub subscription_ids: SmallVec<[u32; 2]>,
    /// Payload format, content type, response topic, correlation data and user properties, as they arrived.
    pub forward: Cow<'a, [u8]>,
}

/// What kind of packet is being read; the bit in the table of allowed properties.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carrier {
    Connect = 1,
    Connack = 1 << 1,
    Publish = 1 << 2,
    Will = 1 << 3,
    Ack = 1 << 4,
    Subscribe = 1 << 5,
    Suback = 1 << 6,
    Unsubscribe = 1 << 7,
    Disconnect = 1 << 8,
    Auth = 1 << 9,
}

pub const FORMAT: u8 = 1;
pub const EXPIRY: u8 = 2;
pub const CONTENT_TYPE: u8 = 3;
pub const RESPONSE_TOPIC: u8 = 8;
pub const CORRELATION: u8 = 9;
pub const SUBSCRIPTION_ID: u8 = 11;
pub const SESSION_EXPIRY: u8 = 17;
pub const ASSIGNED_ID: u8 = 18;
pub const SERVER_KEEP_ALIVE: u8 = 19;
pub const AUTH_METHOD: u8 = 21;
pub const AUTH_DATA: u8 = 22;
pub const REQUEST_PROBLEM: u8 = 23;
pub const WILL_DELAY: u8 = 24;
pub const REQUEST_RESPONSE: u8 = 25;
pub const RESPONSE_INFORMATION: u8 = 26;
pub const SERVER_REFERENCE: u8 = 28;
pub const REASON_STRING: u8 = 31;
pub const RECEIVE_MAXIMUM: u8 = 33;
pub const TOPIC_ALIAS_MAXIMUM: u8 = 34;
pub const TOPIC_ALIAS: u8 = 35;
pub const MAXIMUM_QOS: u8 = 36;
pub const RETAIN_AVAILABLE: u8 = 37;
pub const USER: u8 = 38;
pub const MAXIMUM_PACKET: u8 = 39;
pub const WILDCARD: u8 = 40;
pub const SUBSCRIPTION_ID_AVAILABLE: u8 = 41;
pub const SHARED: u8 = 42;

/// Which packets may carry a property (table 2-4).
const fn carriers(id: u8) -> u16 {
    const CONNECT: u16 = Carrier::Connect as u16;
    const CONNACK: u16 = Carrier::Connack as u16;
    const PUBLISH: u16 = Carrier::Publish as u16;
    const WILL: u16 = Carrier::Will as u16;
    const ACK: u16 = Carrier::Ack as u16;
    const SUBSCRIBE: u16 = Carrier::Subscribe as u16;
    const SUBACK: u16 = Carrier::Suback as u16;
    const DISCONNECT: u16 = Carrier::Disconnect as u16;
    const AUTH: u16 = Carrier::Auth as u16;
    match id {
        FORMAT | EXPIRY | CONTENT_TYPE | RESPONSE_TOPIC | CORRELATION => PUBLISH | WILL,
        SUBSCRIPTION_ID => PUBLISH | SUBSCRIBE,
        SESSION_EXPIRY => CONNECT | CONNACK | DISCONNECT,
        ASSIGNED_ID | SERVER_KEEP_ALIVE | RESPONSE_INFORMATION => CONNACK,
        MAXIMUM_QOS | RETAIN_AVAILABLE | WILDCARD | SUBSCRIPTION_ID_AVAILABLE | SHARED => CONNACK,
        AUTH_METHOD | AUTH_DATA => CONNECT | CONNACK | AUTH,
        REQUEST_PROBLEM | REQUEST_RESPONSE => CONNECT,
        WILL_DELAY => WILL,
        SERVER_REFERENCE => CONNACK | DISCONNECT,
        REASON_STRING => CONNACK | ACK | SUBACK | DISCONNECT | AUTH,
        RECEIVE_MAXIMUM | TOPIC_ALIAS_MAXIMUM | MAXIMUM_PACKET => CONNECT | CONNACK,
        TOPIC_ALIAS => PUBLISH,
        USER => u16::MAX,
        _ => 0,
    }
}

/// Reads identifiers in turn, refusing what the packet may not carry or carries twice.
struct Section<'a> {
    reader: Reader<'a>,
    carrier: Carrier,
    seen: u64,
}

impl<'a> Section<'a> {
    fn open(reader: &mut Reader<'a>, carrier: Carrier) -> Result<Self, Malformed> {
        let n = reader.varint()? as usize;
        Ok(Self { reader: Reader::new(reader.take(n)?), carrier, seen: 0 })
    }

    fn next(&mut self) -> Result<Option<u8>, Malformed> {
        if self.reader.is_empty() {
            return Ok(None);
        }
        let id = u8::try_from(self.reader.varint()?).map_err(|_| Malformed::packet("unknown property"))?;
        let allowed = carriers(id);
        if allowed == 0 {
            return Err(Malformed::packet("unknown property"));
        }
        if allowed & self.carrier as u16 == 0 {
            const WHAT: &str = "property not allowed in this packet";
            self.skip_value(id)?;
            let subscribing = matches!(self.carrier, Carrier::Subscribe | Carrier::Unsubscribe);
            return Err(if subscribing { Malformed::packet(WHAT) } else { Malformed::protocol(WHAT) });
        }
        let repeats = id == USER || (id == SUBSCRIPTION_ID && self.carrier == Carrier::Publish);
        let bit = 1u64 << (id & 63);
        if self.seen & bit != 0 && !repeats {
            return Err(Malformed::protocol("property given twice"));
        }
        self.seen |= bit;
        Ok(Some(id))
    }

    /// Reads over a value, so that a broken one is told from one that is out of place.
    fn skip_value(&mut self, id: u8) -> Result<(), Malformed> {
        let r = &mut self.reader;
        match id {
            SUBSCRIPTION_ID => r.varint().map(drop),
            FORMAT
            | REQUEST_PROBLEM
            | REQUEST_RESPONSE
            | MAXIMUM_QOS
            | RETAIN_AVAILABLE
            | WILDCARD
            | SUBSCRIPTION_ID_AVAILABLE
            | SHARED => r.u8().map(drop),
            SERVER_KEEP_ALIVE | RECEIVE_MAXIMUM | TOPIC_ALIAS_MAXIMUM | TOPIC_ALIAS => r.u16().map(drop),
            EXPIRY | SESSION_EXPIRY | WILL_DELAY | MAXIMUM_PACKET => r.u32().map(drop),
            USER => r.string().and_then(|_| r.string()).map(drop),
            CORRELATION | AUTH_DATA => r.binary().map(drop),
            _ => r.string().map(drop),
        }
    }

    fn flag(&mut self) -> Result<bool, Malformed> {
        match self.reader.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Malformed::protocol("property must be 0 or 1")),
        }
    }

    fn nonzero_u16(&mut self) -> Result<u16, Malformed> {
        match self.reader.u16()? {
            0 => Err(Malformed::protocol("property must not be 0")),
            n => Ok(n),
        }
    }

    /// 0 may be answered with 0x81 or 0x82 (section 4.13.1); other brokers call it malformed in a SUBSCRIBE.
    fn subscription_id(&mut self) -> Result<u32, Malformed> {
        match self.reader.varint()? {
            0 => Err(Malformed::packet("subscription identifier must not be 0")),
            n => Ok(n),
        }
    }
}

/// The value of a user property among encoded properties, as [`Properties::forward`] has them.
#[must_use]
pub fn user_property<'a>(forward: &'a [u8], name: &str) -> Option<&'a str> {
    let at = memchr::memmem::find(forward, name.as_bytes())?;
    let [high, low] = u16::try_from(name.len()).ok()?.to_be_bytes();
    if forward.get(at.checked_sub(3)?..at)? != [USER, high, low] {
        return None;
    }
    let (len, rest) = forward.get(at + name.len()..)?.split_first_chunk()?;
    std::str::from_utf8(rest.get(..usize::from(u16::from_be_bytes(*len)))?).ok()
}

impl<'a> Properties<'a> {
    /// Reads the property section at the reader.
    pub fn read(reader: &mut Reader<'a>, carrier: Carrier) -> Result<Self, Malformed> {
        let mut s = Section::open(reader, carrier)?;
        let mut p = Self::default();
        while let Some(id) = s.next()? {
            p.read_one(id, &mut s)?;
        }
        if p.auth_data.is_some() && p.auth_method.is_none() {
            return Err(Malformed::protocol("authentication data without a method"));
        }
        Ok(p)
    }

    fn read_one(&mut self, id: u8, s: &mut Section<'a>) -> Result<(), Malformed> {
        match id {
            SESSION_EXPIRY => self.session_expiry_s = Some(s.reader.u32()?),
            ASSIGNED_ID => self.assigned_client_id = Some(s.reader.string()?),
            SERVER_KEEP_ALIVE => self.server_keep_alive_s = Some(s.reader.u16()?),
            AUTH_METHOD => self.auth_method = Some(s.reader.string()?),
            AUTH_DATA => self.auth_data = Some(s.reader.binary()?),
            REQUEST_PROBLEM => self.request_problem = Some(s.flag()?),
            REQUEST_RESPONSE => self.request_response = Some(s.flag()?),
            RESPONSE_INFORMATION => self.response_information = Some(s.reader.string()?),
            SERVER_REFERENCE => self.server_reference = Some(s.reader.string()?),
            REASON_STRING => self.reason_string = Some(s.reader.string()?),
            RECEIVE_MAXIMUM => self.receive_maximum = Some(s.nonzero_u16()?),
            TOPIC_ALIAS_MAXIMUM => self.topic_alias_maximum = Some(s.reader.u16()?),
            MAXIMUM_QOS => self.maximum_qos = Some(u8::from(s.flag()?)),
            RETAIN_AVAILABLE => self.retain_available = Some(s.flag()?),
            MAXIMUM_PACKET => match s.reader.u32()? {
                0 => return Err(Malformed::protocol("maximum packet size must not be 0")),
                n => self.maximum_packet_size = Some(n),
            },
            WILDCARD => self.wildcard_available = Some(s.flag()?),
            SUBSCRIPTION_ID_AVAILABLE => self.subscription_id_available = Some(s.flag()?),
            SHARED => self.shared_available = Some(s.flag()?),
            SUBSCRIPTION_ID => self.subscription_id = Some(s.subscription_id()?),
            USER => self.user.push((s.reader.string()?, s.reader.string()?)),
            _ => return Err(Malformed::packet("unknown property")),
        }
        Ok(())
    }

    /// Appends the section, length first.
    pub fn write(&self, out: &mut Vec<u8>) {
        let mut w = Vec::new();
        put_u32(&mut w, SESSION_EXPIRY, self.session_expiry_s);
        put_u16(&mut w, TOPIC_ALIAS_MAXIMUM, self.topic_alias_maximum);
        put_text(&mut w, ASSIGNED_ID, self.assigned_client_id);
        put_u16(&mut w, SERVER_KEEP_ALIVE, self.server_keep_alive_s);
        put_text(&mut w, AUTH_METHOD, self.auth_method);
        put_bytes(&mut w, AUTH_DATA, self.auth_data);
        put_u8(&mut w, REQUEST_PROBLEM, self.request_problem.map(u8::from));
        put_u8(&mut w, REQUEST_RESPONSE, self.request_response.map(u8::from));
        put_text(&mut w, RESPONSE_INFORMATION, self.response_information);
        put_text(&mut w, SERVER_REFERENCE, self.server_reference);
        put_text(&mut w, REASON_STRING, self.reason_string);
        put_u16(&mut w, RECEIVE_MAXIMUM, self.receive_maximum);
        put_u8(&mut w, MAXIMUM_QOS, self.maximum_qos);
        put_u8(&mut w, RETAIN_AVAILABLE, self.retain_available.map(u8::from));
        put_u32(&mut w, MAXIMUM_PACKET, self.maximum_packet_size);
        put_u8(&mut w, WILDCARD, self.wildcard_available.map(u8::from));
        put_u8(&mut w, SUBSCRIPTION_ID_AVAILABLE, self.subscription_id_available.map(u8::from));
        put_u8(&mut w, SHARED, self.shared_available.map(u8::from));
        if let Some(id) = self.subscription_id {
            w.push(SUBSCRIPTION_ID);
            put_varint(&mut w, id);
        }
        for (key, value) in &self.user {
            w.push(USER);
            put_binary(&mut w, key.as_bytes());
            put_binary(&mut w, value.as_bytes());
        }
        put_varint(out, u32::try_from(w.len()).unwrap_or(0));
        out.extend_from_slice(&w);
    }
}

impl<'a> MessageProperties<'a> {
    /// Reads the section of a PUBLISH or a will.
    pub fn read(reader: &mut Reader<'a>, carrier: Carrier) -> Result<Self, Malformed> {
        let mut s = Section::open(reader, carrier)?;
        let mut p = Self::default();
        if s.reader.is_empty() {
            return Ok(p);
        }
        let mut start = s.reader.rest();
        let mut kept: Option<Vec<u8>> = None;
        let mut run = 0; // bytes of `start` that are to be passed on
        loop {
            let before = s.reader.len();
            let Some(id) = s.next()? else { break };
            let passed_on = p.read_one(id, &mut s)?;
            let used = before - s.reader.len();
            if passed_on {
                run += used;
                continue;
            }
            let (head, tail) = start.split_at_checked(run).unwrap_or((start, &[]));
            kept.get_or_insert_default().extend_from_slice(head);
            start = tail.get(used..).unwrap_or(&[]);
            run = 0;
        }
        p.forward = match kept {
            None => Cow::Borrowed(start),
            Some(head) if head.is_empty() => Cow::Borrowed(start),
            Some(mut head) => {
                head.extend_from_slice(start);
                Cow::Owned(head)
            }
        };
        Ok(p)
    }

    /// Reads one value; true if the property is passed on as it is.
    fn read_one(&mut self, id: u8, s: &mut Section<'a>) -> Result<bool, Malformed> {
        match id {
            FORMAT => {
                s.flag()?;
            }
            CONTENT_TYPE => {
                s.reader.string()?;
            }
            RESPONSE_TOPIC => {
                if !crate::topic::valid_name(s.reader.string()?) {
                    return Err(Malformed::protocol("response topic with a wildcard"));
                }
            }
            CORRELATION => {
                s.reader.binary()?;
            }
            USER => {
                s.reader.string()?;
                s.reader.string()?;
            }
            TOPIC_ALIAS => self.alias = Some(s.reader.u16()?),
            EXPIRY => self.expiry_s = Some(s.reader.u32()?),
            WILL_DELAY => self.will_delay_s = Some(s.reader.u32()?),
            SUBSCRIPTION_ID => self.subscription_ids.push(s.subscription_id()?),
            _ => return Err(Malformed::packet("unknown property")),
        }
        Ok(matches!(id, FORMAT | CONTENT_TYPE | RESPONSE_TOPIC | CORRELATION | USER))
    }

    /// Appends the section, length first.
    pub fn write(&self, out: &mut Vec<u8>) {
        let mut w = Vec::new();
        put_u16(&mut w, TOPIC_ALIAS, self.alias);
        put_u32(&mut w, EXPIRY, self.expiry_s);
        put_u32(&mut w, WILL_DELAY, self.will_delay_s);
        for &id in &self.subscription_ids {
            w.push(SUBSCRIPTION_ID);
            put_varint(&mut w, id);
        }
        w.extend_from_slice(&self.forward);
        put_varint(out, u32::try_from(w.len()).unwrap_or(0));
        out.extend_from_slice(&w);
    }
}

pub fn put_varint(out: &mut Vec<u8>, mut n: u32) {
    loop {
        let low = (n & 0x7f) as u8;
        n >>= 7;
        if n == 0 {
            out.push(low);
            return;
        }
        out.push(low | 0x80);
    }
}

/// Text and binary data carry their length in two bytes; longer ones cannot be expressed and are cut.
pub fn put_binary(out: &mut Vec<u8>, data: &[u8]) {
    let n = u16::try_from(data.len()).unwrap_or(u16::MAX);
    out.extend_from_slice(&n.to_be_bytes());
    out.extend_from_slice(data.get(..usize::from(n)).unwrap_or(data));
}

fn put_u8(out: &mut Vec<u8>, id: u8, value: Option<u8>) {
    if let Some(v) = value {
        out.extend_from_slice(&[id, v]);
    }
}

fn put_u16(out: &mut Vec<u8>, id: u8, value: Option<u16>) {
    if let Some(v) = value {
        out.push(id);
        out.extend_from_slice(&v.to_be_bytes());
    }
}

fn put_u32(out: &mut Vec<u8>, id: u8, value: Option<u32>) {
    if let Some(v) = value {
        out.push(id);
        out.extend_from_slice(&v.to_be_bytes());
    }
}

fn put_text(out: &mut Vec<u8>, id: u8, value: Option<&str>) {
    put_bytes(out, id, value.map(str::as_bytes));
}

fn put_bytes(out: &mut Vec<u8>, id: u8, value: Option<&[u8]>) {
    if let Some(v) = value {
        out.push(id);
        put_binary(out, v);
    }
}
