//! Bytes to [`Packet`] and back, for MQTT 3.1, 3.1.1 and 5.0 alike: one packet type, the version is a parameter.
//!
//! Decoding borrows from the read buffer and never allocates for PUBLISH and its acknowledgements. The codec knows
//! the syntax of single packets only: what is allowed *when* is the business of `connection`.
//! Source: OASIS MQTT 3.1.1 and 5.0, chapters 1 to 3.

mod decode;
mod encode;
mod frame;
mod packet;
mod property;
mod reader;
mod reason;

#[cfg(test)]
mod tests;

pub use decode::decode;
pub use encode::{PublishHead, encode, encode_ack, encode_publish_head, publish_head_len};
pub use frame::{Frame, frame};
pub use packet::{
    Ack, AckKind, Auth, Connack, Connect, Disconnect, Packet, Publish, QoS, Suback, Subscribe, SubscribeFilter,
    Unsubscribe, Version, Will,
};
pub use property::{MessageProperties, Properties, user_property};
pub use reason::Reason;

/// A packet that breaks the syntax, with the reason code that names how [MQTT-4.13.1-1].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed {
    /// The code for CONNACK or DISCONNECT.
    pub reason: Reason,
    /// What was wrong, for logs and the reason string.
    pub what: &'static str,
}

impl Malformed {
    /// A malformed packet, 0x81.
    #[must_use]
    pub const fn packet(what: &'static str) -> Self {
        Self { reason: Reason::MALFORMED_PACKET, what }
    }

    /// A protocol error, 0x82.
    #[must_use]
    pub const fn protocol(what: &'static str) -> Self {
        Self { reason: Reason::PROTOCOL_ERROR, what }
    }
}
