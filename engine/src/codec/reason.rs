//! Reason codes of MQTT 5.0 (section 2.4) and their 3.1.1 CONNACK forms.

use serde::{Deserialize, Serialize};

/// A reason code; 0x80 and above mean failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash, Serialize, Deserialize)]
pub struct Reason(pub u8);

impl Reason {
    /// Success, normal disconnection, granted QoS 0.
    pub const SUCCESS: Self = Self(0x00);
    /// DISCONNECT of a client that wants its will sent.
    pub const DISCONNECT_WITH_WILL: Self = Self(0x04);
    /// Nobody subscribed to the topic.
    pub const NO_MATCHING_SUBSCRIBERS: Self = Self(0x10);
    /// UNSUBACK: there was no such subscription.
    pub const NO_SUBSCRIPTION: Self = Self(0x11);
    /// Unspecified error.
    pub const UNSPECIFIED: Self = Self(0x80);
    /// Malformed packet.
    pub const MALFORMED_PACKET: Self = Self(0x81);
    /// Protocol error.
    pub const PROTOCOL_ERROR: Self = Self(0x82);
    /// Implementation specific error.
    pub const IMPLEMENTATION: Self = Self(0x83);
    /// Unsupported protocol version.
    pub const UNSUPPORTED_VERSION: Self = Self(0x84);
    /// Client identifier not valid.
    pub const CLIENT_ID_INVALID: Self = Self(0x85);
    /// Bad user name or password.
    pub const BAD_CREDENTIALS: Self = Self(0x86);
    /// Not authorized.
    pub const NOT_AUTHORIZED: Self = Self(0x87);
    /// Server unavailable.
    pub const SERVER_UNAVAILABLE: Self = Self(0x88);
    /// Server busy.
    pub const SERVER_BUSY: Self = Self(0x89);
    /// Server shutting down.
    pub const SHUTTING_DOWN: Self = Self(0x8B);
    /// Bad authentication method.
    pub const BAD_AUTH_METHOD: Self = Self(0x8C);
    /// Keep alive timeout.
    pub const KEEP_ALIVE_TIMEOUT: Self = Self(0x8D);
    /// Session taken over.
    pub const TAKEN_OVER: Self = Self(0x8E);
    /// Topic filter invalid.
    pub const FILTER_INVALID: Self = Self(0x8F);
    /// Topic name invalid.
    pub const TOPIC_INVALID: Self = Self(0x90);
    /// Packet identifier in use.
    pub const ID_IN_USE: Self = Self(0x91);
    /// Packet identifier not found.
    pub const ID_NOT_FOUND: Self = Self(0x92);
    /// Receive maximum exceeded.
    pub const RECEIVE_MAXIMUM: Self = Self(0x93);
    /// Topic alias invalid.
    pub const TOPIC_ALIAS_INVALID: Self = Self(0x94);
    /// Packet too large.
    pub const PACKET_TOO_LARGE: Self = Self(0x95);
    /// Quota exceeded.
    pub const QUOTA_EXCEEDED: Self = Self(0x97);
    /// Administrative action.
    pub const ADMINISTRATIVE: Self = Self(0x98);
    /// Payload format invalid.
    pub const PAYLOAD_FORMAT: Self = Self(0x99);
    /// Retain not supported.
    pub const RETAIN_NOT_SUPPORTED: Self = Self(0x9A);
    /// QoS not supported.
    pub const QOS_NOT_SUPPORTED: Self = Self(0x9B);
    /// The client may come back, but to another server.
    pub const USE_ANOTHER_SERVER: Self = Self(0x9C);
    /// Maximum connect time.
    pub const MAXIMUM_CONNECT_TIME: Self = Self(0xA0);

    /// True for 0x80 and above.
    #[must_use]
    pub const fn is_error(self) -> bool {
        self.0 >= 0x80
    }

    /// The CONNACK return code of MQTT 3.1.1 (section 3.2.2.3) that says it best.
    #[must_use]
    pub const fn connack_v3(self) -> u8 {
        match self {
            Self::SUCCESS => 0,
            Self::UNSUPPORTED_VERSION => 1,
            Self::CLIENT_ID_INVALID => 2,
            Self::BAD_CREDENTIALS => 4,
            Self::NOT_AUTHORIZED | Self::PACKET_TOO_LARGE => 5,
            _ => 3,
        }
    }

    /// The name in logs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::SUCCESS => "success",
            Self::DISCONNECT_WITH_WILL => "disconnect with will",
            Self::MALFORMED_PACKET => "malformed packet",
            Self::PROTOCOL_ERROR => "protocol error",
            Self::UNSUPPORTED_VERSION => "unsupported protocol version",
            Self::CLIENT_ID_INVALID => "client identifier not valid",
            Self::BAD_CREDENTIALS => "bad user name or password",
            Self::NOT_AUTHORIZED => "not authorized",
            Self::SERVER_UNAVAILABLE => "server unavailable",
            Self::SERVER_BUSY => "server busy",
            Self::SHUTTING_DOWN => "server shutting down",
            Self::BAD_AUTH_METHOD => "bad authentication method",
            Self::KEEP_ALIVE_TIMEOUT => "keep alive timeout",
            Self::TAKEN_OVER => "session taken over",
            Self::FILTER_INVALID => "topic filter invalid",
            Self::TOPIC_INVALID => "topic name invalid",
            Self::RECEIVE_MAXIMUM => "receive maximum exceeded",
            Self::TOPIC_ALIAS_INVALID => "topic alias invalid",
            Self::PACKET_TOO_LARGE => "packet too large",
            Self::QUOTA_EXCEEDED => "quota exceeded",
            Self::ADMINISTRATIVE => "administrative action",
            Self::RETAIN_NOT_SUPPORTED => "retain not supported",
            Self::QOS_NOT_SUPPORTED => "qos not supported",
            Self::MAXIMUM_CONNECT_TIME => "maximum connect time",
            _ => "unspecified error",
        }
    }
}
