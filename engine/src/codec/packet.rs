//! The control packets as data; every text and payload borrows from the buffer it was read from.

use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use super::property::{MessageProperties, Properties};
use super::reason::Reason;

/// Protocol version of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Version {
    /// MQTT 3.1, `MQIsdp`.
    V31 = 3,
    /// MQTT 3.1.1.
    #[default]
    V311 = 4,
    /// MQTT 5.0.
    V5 = 5,
}

impl Version {
    /// True for 5.0, which has properties and reason codes.
    #[must_use]
    pub fn is_v5(self) -> bool {
        self == Self::V5
    }
}

/// Quality of service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Hash, Serialize, Deserialize)]
pub enum QoS {
    /// QoS 0.
    #[default]
    AtMostOnce = 0,
    /// QoS 1.
    AtLeastOnce = 1,
    /// QoS 2.
    ExactlyOnce = 2,
}

impl QoS {
    /// From the two bits of a header; 3 is none.
    #[must_use]
    pub const fn from_bits(bits: u8) -> Option<Self> {
        match bits {
            0 => Some(Self::AtMostOnce),
            1 => Some(Self::AtLeastOnce),
            2 => Some(Self::ExactlyOnce),
            _ => None,
        }
    }
}

/// Any control packet.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the variants are the packet names of the standard")]
pub enum Packet<'a> {
    Connect(Box<Connect<'a>>),
    Connack(Box<Connack<'a>>),
    Publish(Publish<'a>),
    Ack(Ack<'a>),
    Subscribe(Box<Subscribe<'a>>),
    Suback(Box<Suback<'a>>),
    Unsubscribe(Box<Unsubscribe<'a>>),
    Unsuback(Box<Suback<'a>>),
    Pingreq,
    Pingresp,
    Disconnect(Box<Disconnect<'a>>),
    Auth(Box<Auth<'a>>),
}

/// CONNECT (section 3.1).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Connect<'a> {
    /// From protocol name and level.
    pub version: Version,
    /// A bridge of mosquitto's (bit 7 of the level): treated as a client.
    pub bridge: bool,
    /// Clean Session or Clean Start.
    pub clean: bool,
    /// Seconds; 0 means none.
    pub keep_alive_s: u16,
    /// May be empty.
    pub client_id: &'a str,
    /// Username.
    pub username: Option<&'a str>,
    /// Password.
    pub password: Option<&'a [u8]>,
    /// Will message.
    pub will: Option<Will<'a>>,
    /// Properties (5.0).
    pub properties: Properties<'a>,
}

/// The will in a CONNECT.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Will<'a> {
    /// QoS of the will.
    pub qos: QoS,
    /// Retain flag of the will.
    pub retain: bool,
    /// Topic name.
    pub topic: &'a str,
    /// Payload.
    pub payload: &'a [u8],
    /// Will Delay Interval, seconds.
    pub delay_s: u32,
    /// The message properties.
    pub properties: MessageProperties<'a>,
}

/// CONNACK (section 3.2).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Connack<'a> {
    /// Session Present.
    pub present: bool,
    /// Reason code, or the return code in 3.1.1.
    pub code: u8,
    /// Properties (5.0).
    pub properties: Properties<'a>,
}

/// PUBLISH (section 3.3).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Publish<'a> {
    /// Sent before.
    pub dup: bool,
    /// QoS.
    pub qos: QoS,
    /// Retain flag.
    pub retain: bool,
    /// Topic name; empty where a topic alias stands for it.
    pub topic: &'a str,
    /// Packet identifier; 0 with QoS 0.
    pub id: u16,
    /// Properties (5.0).
    pub properties: MessageProperties<'a>,
    /// Payload.
    pub payload: &'a [u8],
}

/// Which acknowledgement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the variants are the packet names of the standard")]
pub enum AckKind {
    Puback = 4,
    Pubrec = 5,
    Pubrel = 6,
    Pubcomp = 7,
}

/// PUBACK, PUBREC, PUBREL or PUBCOMP (sections 3.4 to 3.7).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ack<'a> {
    /// Which of the four.
    pub kind: AckKind,
    /// Packet identifier, never 0.
    pub id: u16,
    /// Reason code; success in 3.1.1.
    pub reason: Reason,
    /// Properties (5.0), absent when there are none.
    pub properties: Option<Box<Properties<'a>>>,
}

/// SUBSCRIBE (section 3.8).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Subscribe<'a> {
    /// Packet identifier.
    pub id: u16,
    /// Properties (5.0).
    pub properties: Properties<'a>,
    /// Filters with their options, in order.
    pub filters: SmallVec<[SubscribeFilter<'a>; 1]>,
}

/// One filter of a SUBSCRIBE with its options (section 3.8.3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SubscribeFilter<'a> {
    /// Topic filter, with `$share/GROUP/` if shared.
    pub filter: &'a str,
    /// Maximum QoS.
    pub qos: QoS,
    /// No Local.
    pub no_local: bool,
    /// Retain As Published.
    pub retain_as_published: bool,
    /// Retain Handling, 0 to 2.
    pub retain_handling: u8,
}

/// SUBACK or UNSUBACK (sections 3.9 and 3.11).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Suback<'a> {
    /// Packet identifier.
    pub id: u16,
    /// Properties (5.0).
    pub properties: Properties<'a>,
    /// One code for each filter, in order; empty in a 3.1.1 UNSUBACK.
    pub codes: SmallVec<[u8; 4]>,
}

/// UNSUBSCRIBE (section 3.10).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Unsubscribe<'a> {
    /// Packet identifier.
    pub id: u16,
    /// Properties (5.0).
    pub properties: Properties<'a>,
    /// Filters in order.
    pub filters: SmallVec<[&'a str; 1]>,
}

/// DISCONNECT (section 3.14).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Disconnect<'a> {
    /// Reason code.
    pub reason: Reason,
    /// Properties (5.0).
    pub properties: Properties<'a>,
}

/// AUTH (section 3.15).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Auth<'a> {
    /// Reason code.
    pub reason: Reason,
    /// Properties (5.0).
    pub properties: Properties<'a>,
}
