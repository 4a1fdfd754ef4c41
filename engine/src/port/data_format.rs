//! Lines of the export file (`docs/formats/export.md`), written and read by the same types.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::record::{make_uid, uid_parts};

/// Version of the format.
pub(super) const VERSION: u32 = 1;
const INCARNATIONS: u32 = 1 << 20;
const NUMBERS: u32 = 1 << 28;

/// `PARTITION.INCARNATION.NUMBER`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Uid(pub u64);

impl Uid {
    /// Nothing for 0, which is nobody.
    pub fn of(uid: u64) -> Option<Self> {
        (uid != 0).then_some(Self(uid))
    }
}

impl fmt::Display for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (partition, incarnation, number) = uid_parts(self.0);
        write!(f, "{partition}.{incarnation}.{number}")
    }
}

fn parse_uid(text: &str) -> Option<Uid> {
    let mut parts = text.split('.').map(|part| {
        let plain = part.bytes().all(|b| b.is_ascii_digit()) && (part == "0" || !part.starts_with('0'));
        part.parse::<u32>().ok().filter(|_| plain)
    });
    let (partition, incarnation, number) = (parts.next()??, parts.next()??, parts.next()??);
    let fits = parts.next().is_none() && incarnation < INCARNATIONS && number < NUMBERS;
    let uid = make_uid(u16::try_from(partition).ok()?, incarnation, number);
    (fits && uid != 0).then_some(Uid(uid))
}

impl Serialize for Uid {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Uid {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        parse_uid(&text)
            .ok_or_else(|| D::Error::custom(format!("`{text}` is not a uid (PARTITION.INCARNATION.NUMBER)")))
    }
}

/// Bytes as base64.
#[derive(Debug, Clone, Default)]
pub(super) struct Bytes(pub Vec<u8>);

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        STANDARD.decode(text).map(Self).map_err(|e| D::Error::custom(format!("not base64: {e}")))
    }
}

/// A field that may be null and must be there.
fn there<'de, D: Deserializer<'de>, T: Deserialize<'de>>(d: D) -> Result<Option<T>, D::Error> {
    Option::deserialize(d)
}

/// A number below 2^63.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize)]
#[serde(transparent)]
pub(super) struct Num(pub u64);

impl<'de> Deserialize<'de> for Num {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let n = u64::deserialize(d)?;
        if n < 1 << 63 { Ok(Self(n)) } else { Err(D::Error::custom(format!("{n} is not below 2^63"))) }
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Header {
    pub roostmq_export: u32,
    pub roostmq: String,
    pub partitions: u32,
    pub key: String,
    pub incarnation: u32,
    pub at_ms: Num,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub(super) enum Line {
    Session(Box<SessionLine>),
    Subscription(SubscriptionLine),
    Held(HeldLine),
    Group(GroupLine),
    Message(Box<MessageLine>),
    Retained(Box<RetainedLine>),
    Origin(OriginLine),
    End(EndLine),
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SessionLine {
    pub uid: Uid,
    pub client_id: String,
    pub expiry_s: u32,
    #[serde(deserialize_with = "there")]
    pub ends_left_ms: Option<Num>,
    pub next_index: Num,
    pub last_n: Num,
    #[serde(deserialize_with = "there")]
    pub will: Option<WillLine>,
    #[serde(deserialize_with = "there")]
    pub will_left_ms: Option<Num>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WillLine {
    pub topic: String,
    pub payload: Bytes,
    pub properties: Bytes,
    pub qos: u8,
    pub retain: bool,
    #[serde(deserialize_with = "there")]
    pub expiry_s: Option<u32>,
    pub delay_s: u32,
    pub outlives: bool,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SubscriptionLine {
    pub uid: Uid,
    pub filter: String,
    pub qos: u8,
    pub no_local: bool,
    pub retain_as_published: bool,
    pub identifier: u32,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct HeldLine {
    pub uid: Uid,
    pub packet_identifier: u16,
    pub n: Num,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct GroupLine {
    pub uid: Uid,
    pub name: String,
    pub next_index: Num,
    pub last_n: Num,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum StageText {
    Waiting,
    Sent,
    Received,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PlaceLine {
    pub uid: Uid,
    pub index: Num,
    pub n: Num,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct GivenLine {
    pub uid: Uid,
    pub n: Num,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct OfLine {
    pub uid: Uid,
    pub n: Num,
    pub answered: Num,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MessageLine {
    pub uid: Uid,
    pub index: Num,
    pub stage: StageText,
    pub qos: u8,
    pub retain: bool,
    pub identifiers: Vec<u32>,
    #[serde(deserialize_with = "there")]
    pub group: Option<PlaceLine>,
    #[serde(deserialize_with = "there")]
    pub given: Option<GivenLine>,
    pub topic: String,
    pub payload: Bytes,
    pub properties: Bytes,
    pub published_qos: u8,
    pub published_retain: bool,
    #[serde(deserialize_with = "there")]
    pub publisher: Option<Uid>,
    #[serde(deserialize_with = "there")]
    pub origin: Option<OfLine>,
    #[serde(deserialize_with = "there")]
    pub expiry_left_ms: Option<Num>,
}

/// The message itself; in a `message` line its fields stand beside the others.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RetainedLine {
    pub topic: String,
    pub payload: Bytes,
    pub properties: Bytes,
    pub published_qos: u8,
    pub published_retain: bool,
    #[serde(deserialize_with = "there")]
    pub publisher: Option<Uid>,
    #[serde(deserialize_with = "there")]
    pub origin: Option<OfLine>,
    #[serde(deserialize_with = "there")]
    pub expiry_left_ms: Option<Num>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct OriginLine {
    pub partition: u16,
    pub uid: Uid,
    pub floor: Num,
    pub taken: Vec<Num>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EndLine {
    pub sessions: u64,
    pub subscriptions: u64,
    pub messages: u64,
    pub retained: u64,
    /// Lines of the file, this one included: a line of any kind that is missing shows.
    pub lines: u64,
}
