//! The channel that joins a connection to its session: who is meant, and what a message costs until it is answered.
//!
//! Connection and session are two objects even in one lane; they know each other by these names only, so that a
//! session can move while its connection stays (design, "Connection and session are two things").

use serde::{Deserialize, Serialize};

/// A connection, wherever it is: lane, place in that lane's table, and which user of the place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ConnectionId {
    /// Lane that owns the socket.
    pub lane: u16,
    /// Place in the lane's table.
    pub key: u32,
    /// Rises whenever a place is used again, so a late message never reaches a stranger.
    pub generation: u32,
}

/// A session, wherever it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct SessionRef {
    /// Partition that owns it.
    pub partition: u16,
    /// Place in the partition's table.
    pub slot: u32,
    /// Never used again for another session.
    pub uid: u64,
}

/// A publish that waits for answers: the connection that owes the acknowledgement and its place in the order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Token {
    /// The publisher's connection.
    pub connection: ConnectionId,
    /// Number of the acknowledgement on that connection.
    pub number: u64,
    /// Which question to another lane is answered by it, in a cluster; 0 within a lane.
    pub ask: u64,
}

/// What became of a publish in the places that wanted it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// Queues that took it.
    pub accepted: u32,
    /// Queues that refused it by their bound, with the policy `reject`.
    pub rejected: u32,
    /// It was to be retained and there was no room.
    pub retain_failed: bool,
    /// A persistent session wanted it and the disk takes nothing: it must not be acknowledged as taken.
    pub disk_failed: bool,
}

impl Outcome {
    /// Joins the answers of two places.
    pub fn add(&mut self, other: Self) {
        self.accepted += other.accepted;
        self.rejected += other.rejected;
        self.retain_failed |= other.retain_failed;
        self.disk_failed |= other.disk_failed;
    }
}
