//! An application message: borrowed while it passes through, stored once when a queue must keep it.
//!
//! Invariant: a [`Stored`] is immutable and shared by every queue, lane and retained store that holds it.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_bytes::Bytes;
use std::cell::{Cell, OnceCell, RefCell};

use triomphe::ThinArc;

use crate::codec::QoS;

/// Where a message came from: what makes a repeated publish recognisable (session uid, number), with the number up to
/// which the publisher has all answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Origin {
    /// Session uid of the publisher.
    pub uid: u64,
    /// Number within the session; 0 means that the message carries no origin (QoS 0 and 1).
    pub n: u64,
    /// Every number at or below it is answered.
    pub answered: u64,
}

/// The fixed part of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Head {
    /// Session uid of the publisher, for No Local; 0 is the broker itself.
    pub publisher: u64,
    /// For QoS 2.
    pub origin: Origin,
    /// Class `memory`: QoS 1 is acknowledged without waiting for the log.
    pub memory: bool,
    /// Engine time at which the message expires, milliseconds; 0 is never.
    pub deadline_ms: u64,
    /// QoS it was published with.
    pub qos: QoS,
    /// Retain flag it was published with.
    pub retain: bool,
    /// Set when stored.
    pub(crate) topic_len: u32,
    /// Set when stored.
    pub(crate) props_len: u32,
}

impl Head {
    /// Seconds left before the message expires; `Some(0)` means that it has. `None`: never expires.
    #[must_use]
    pub fn remaining_s(&self, now_ms: u64) -> Option<u32> {
        if self.deadline_ms == 0 {
            return None;
        }
        let left_ms = self.deadline_ms.saturating_sub(now_ms);
        Some(u32::try_from(left_ms.div_ceil(1000)).unwrap_or(u32::MAX))
    }

    /// True once the deadline is reached.
    #[must_use]
    pub const fn expired(&self, now_ms: u64) -> bool {
        self.deadline_ms != 0 && now_ms >= self.deadline_ms
    }
}

/// A message whose texts live elsewhere.
#[derive(Debug, Clone, Copy)]
pub struct Message<'a> {
    /// The fixed part.
    pub head: Head,
    /// Topic name.
    pub topic: &'a str,
    /// Properties to pass on, encoded.
    pub props: &'a [u8],
    /// Payload.
    pub payload: &'a [u8],
}

/// A message on the heap, shared: one allocation whatever the number of receivers.
#[derive(Clone)]
pub struct Stored(ThinArc<Head, u8>);

impl std::fmt::Debug for Stored {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Stored").field(&self.view().topic).finish()
    }
}

impl Serialize for Stored {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        (self.head(), Bytes::new(&self.0.slice)).serialize(s)
    }
}

impl<'de> Deserialize<'de> for Stored {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let (mut head, slice) = <(Head, &'de Bytes)>::deserialize(d)?;
        let topic = slice.get(..head.topic_len as usize).filter(|t| std::str::from_utf8(t).is_ok());
        if topic.is_none_or(|t| t.len() + head.props_len as usize > slice.len()) {
            return Err(serde::de::Error::custom("a message whose parts do not fit"));
        }
        head.deadline_ms = translated(head.deadline_ms);
        Ok(Self(ThinArc::from_header_and_slice(head, slice)))
    }
}

/// A deadline in the engine time of another node, in ours; 0 stays 0.
fn translated(deadline_ms: u64) -> u64 {
    match deadline_ms {
        0 => 0,
        at => AHEAD_MS.get().saturating_add_unsigned(at).max(1).unsigned_abs(),
    }
}

/// Messages that are read by this thread from now on were written so much earlier by the clock of their writer: deadlines
/// are moved by it, milliseconds.
pub fn translate_deadlines(ahead_ms: i64) {
    AHEAD_MS.set(ahead_ms);
}

thread_local! {
    static AHEAD_MS: Cell<i64> = const { Cell::new(0) };
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl Stored {
    /// Copies the message.
    #[must_use]
    pub fn new(m: &Message<'_>) -> Self {
        let mut head = m.head;
        head.topic_len = u32::try_from(m.topic.len()).unwrap_or(0);
        head.props_len = u32::try_from(m.props.len()).unwrap_or(0);
        SCRATCH.with_borrow_mut(|scratch| {
            scratch.clear();
            scratch.extend_from_slice(m.topic.as_bytes());
            scratch.extend_from_slice(m.props);
            scratch.extend_from_slice(m.payload);
            let stored = Self(ThinArc::from_header_and_slice(head, scratch));
            if scratch.capacity() > 256 * 1024 {
                *scratch = Vec::new();
            }
            stored
        })
    }

    /// The fixed part.
    #[must_use]
    pub fn head(&self) -> &Head {
        &self.0.header.header
    }

    /// Is it the very same copy?
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        std::ptr::eq(self.head(), other.head())
    }

    /// The message, borrowed.
    #[must_use]
    pub fn view(&self) -> Message<'_> {
        let head = *self.head();
        let (topic, rest) = self.0.slice.split_at_checked(head.topic_len as usize).unwrap_or((&[], &[]));
        let (props, payload) = rest.split_at_checked(head.props_len as usize).unwrap_or((&[], &[]));
        Message { head, topic: std::str::from_utf8(topic).unwrap_or(""), props, payload }
    }

    /// Bytes that it occupies in a queue's account.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.slice.len()
    }

    /// True for no topic and no payload (never of a message that a client sent).
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.slice.is_empty()
    }
}

/// A message on its way through a lane: stored at most once, and only if somebody needs to keep it.
#[derive(Debug)]
pub struct Inbound<'a> {
    /// The message.
    pub view: Message<'a>,
    stored: OnceCell<Stored>,
}

impl<'a> Inbound<'a> {
    /// A message in a read buffer.
    #[must_use]
    pub const fn new(view: Message<'a>) -> Self {
        Self { view, stored: OnceCell::new() }
    }

    /// A message that is stored already.
    #[must_use]
    pub fn from_stored(stored: &'a Stored) -> Self {
        let cell = OnceCell::new();
        let _ = cell.set(stored.clone());
        Self { view: stored.view(), stored: cell }
    }

    /// The shared copy.
    #[must_use]
    pub fn store(&self) -> Stored {
        self.stored.get_or_init(|| Stored::new(&self.view)).clone()
    }
}
