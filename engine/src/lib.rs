//! RoostMQ's data plane: every byte from socket to socket. Python decides, this crate carries.
//!
//! In reading order: `net` (bytes in, bytes out) -> `codec` (bytes to `Packet`) -> `connection` (the network side of a
//! client) -> `lane` (one thread: its sockets, its partitions, its tick) -> `tree` (who wants a topic) -> `partition`
//! (sessions: `step(input) -> effects`) -> `queue` -> back to the lane and the socket. `record` and `log` keep what must
//! be kept, `interest` lets lanes know each other, `port` is the door to Python.

#![forbid(unsafe_code)]
#![warn(missing_docs)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing))]

pub mod access;
pub mod channel;
pub mod codec;
pub mod connection;
mod fatal;
pub mod inflight;
pub mod interest;
pub mod lane;
pub mod limits;
pub mod link;
pub mod log;
pub mod message;
pub mod net;
pub mod outbox;
pub mod partition;
pub mod port;
pub mod prints;
pub mod queue;
pub mod record;
pub mod retained;
pub mod ring;
pub mod session;
pub mod settings;
pub mod shared;
pub mod stats;
pub mod timers;
pub mod topic;
pub mod tree;
