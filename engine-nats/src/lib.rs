//! The log of a cluster on NATS JetStream.
//!
//! `frame` (bytes of an append) -> `replay` (what a log says) -> `queue` (what waits) -> `chain` (the writer of one partition,
//! pure) -> `ask` (requests to JetStream) -> `stream` (the streams and what they must be) -> `connect` -> `log` (the thread).

#![forbid(unsafe_code)]
#![warn(missing_docs)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing))]

pub mod ask;
pub mod cache;
pub mod chain;
pub mod connect;
pub mod frame;
pub mod log;
pub mod queue;
pub mod read;
pub mod replay;
pub mod stream;
pub mod sync;
mod work;
