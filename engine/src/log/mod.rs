//! Where records go before anything that depends on them is said aloud: the trait that disk and NATS will implement.
//!
//! A partition appends a record, applies it, and holds back every acknowledgement until the record's position is safe.

mod memory;

pub use memory::Memory;

use crate::record::Record;

/// Place of a record in a partition's log; later records have higher ones.
pub type Position = u64;

/// The log of one partition.
pub trait Log: Send {
    /// Appends a record and returns its position.
    fn append(&mut self, record: &Record<'_>) -> Position;

    /// Everything up to this position survives what the log promises to survive.
    fn safe(&self) -> Position;
}
