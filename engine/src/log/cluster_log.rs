//! The log as one door with two places behind it: a disk of one machine, a stream of a cluster (`30-cluster.md`, 3).
//!
//! A place never makes a lane wait: every call only hands something over, what comes of it is told through
//! [`ClusterLogNotify`], from a thread of the place. An **address** is where something lies in the place; addresses of a partition
//! grow, 0 is none. The *index* of a record counts the records of its partition, in every place alike.

use serde::{Deserialize, Serialize};

use super::{Batch, Position};

/// Address in a place.
pub type At = u64;

/// Largest append, bytes of records; a larger body goes in parts (`30-cluster.md`, 3).
pub const APPEND_BYTES_MAX: usize = 512 * 1024;

/// What stands before the records of an append.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Header {
    /// The partition.
    pub partition: u16,
    /// Epoch of the owner that wrote it.
    pub epoch: u32,
    /// Index of its first record.
    pub first: Position,
    /// How many records; 0 for an `EPOCH`.
    pub count: u32,
    /// Address of the append before it in the chain; 0 for an `EPOCH`.
    pub before: At,
    /// Address at which the last complete checkpoint begins; 0 is none.
    pub checkpoint: At,
}

/// An append as it was read again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Appended {
    /// Where it lies.
    pub at: At,
    /// What stands before its records.
    pub header: Header,
    /// The records.
    pub records: Vec<u8>,
}

/// Where a piece of a batch lies: several batches may share an append, a large one may need several.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// Address of the append.
    pub at: At,
    /// Where its records begin among the records of the append, bytes.
    pub offset: u32,
    /// Index of its first record.
    pub first: Position,
    /// How many records.
    pub count: u32,
}

/// Up to where somebody knows the log of a partition: everything up to `at` is applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Anchor {
    /// Address of the last append that is known; 0 to begin with what is there.
    pub at: At,
    /// Epoch that was in force there.
    pub epoch: u32,
    /// Index of the next record.
    pub next: Position,
    /// The last complete checkpoint that is named up to there; 0 is none.
    pub checkpoint: At,
}

/// What the owner of a new epoch knows when it fences the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Fence {
    /// The partition.
    pub partition: u16,
    /// Its new epoch: the table gives each only once. A restarted owner takes a new one.
    pub epoch: u32,
    /// What is applied already, by a standby for instance.
    pub known: Anchor,
    /// The log is known to reach to this address (a log reference of the table, the local cache): one that ends before it
    /// has lost something and is not begun again.
    pub at_least: At,
    /// The log is known to have obeyed this epoch: one that has nothing of it, nor of a later one, is not the log that it was.
    pub served: u32,
}

/// What a place tells its user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClusterLogEvent {
    /// This node's own files cannot be written: what is stored is kept in NATS only from now on.
    NotKept(String),
    /// A batch is safe.
    Safe {
        /// The partition.
        partition: u16,
        /// Number of the batch ([`Batch::number`]).
        number: u64,
        /// Where its records lie, in order.
        parts: Vec<Part>,
    },
    /// Appends of the chain, in order; of a read or of a fence.
    Read {
        /// The partition.
        partition: u16,
        /// The appends.
        appends: Vec<Appended>,
    },
    /// What was read of a partition counts no more: what follows it was given back meanwhile, or lies before what is left.
    /// Reads begin again with what is there, which is a checkpoint and what came after it.
    Again {
        /// The partition.
        partition: u16,
    },
    /// A read has come to the end of the log.
    ReadEnd {
        /// The partition.
        partition: u16,
        /// What the log reaches to.
        end: Anchor,
    },
    /// The epoch is in force and everything before it was told as `Read`: appends may follow.
    Fenced {
        /// The partition.
        partition: u16,
        /// The epoch.
        epoch: u32,
        /// Address of the `EPOCH`.
        at: At,
        /// Index of the next record.
        next: Position,
        /// Address at which the last complete checkpoint begins; 0 is none.
        checkpoint: At,
    },
    /// Another owner has a higher epoch: what is not safe by now never will be, say nothing more about it.
    Resigned {
        /// The partition.
        partition: u16,
        /// The higher epoch.
        epoch: u32,
    },
    /// The log has lost something, is not what was written, or was used against its rules. Nothing more is appended.
    Damaged {
        /// The partition.
        partition: u16,
        /// What, where, and what to do.
        why: String,
    },
    /// The log takes nothing more for lack of room (`true`), or takes it again.
    Full {
        /// The partition.
        partition: u16,
        /// Whether it is full.
        full: bool,
    },
    /// Everything before this address was given back, except the last append.
    Trimmed {
        /// The partition.
        partition: u16,
        /// The address.
        before: At,
    },
    /// How the place itself is.
    State(ClusterLogState),
}

/// How a place is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClusterLogState {
    /// It cannot be reached; it is tried again without end.
    Away(String),
    /// It can be reached but must not be used like this: what is wrong, one sentence each. Looked at again.
    Unsuitable(Vec<String>),
    /// It works.
    Ready,
}

/// Where a place sends its events.
pub type ClusterLogNotify = std::sync::Arc<dyn Fn(ClusterLogEvent) + Send + Sync>;

/// Where the log of partitions is kept.
pub trait ClusterLog: Send + Sync + std::fmt::Debug {
    /// Hands over what a partition wrote in a tick. Only between `Fenced` and `Resigned` or `Damaged`; indices go on
    /// without a gap. `Safe` follows, in order.
    fn append(&self, batch: Batch);

    /// Makes an epoch of this process the one in force. `Read`s of everything behind what is known follow, then `Fenced`;
    /// or `Resigned`, or `Damaged`.
    fn fence(&self, fence: Fence);

    /// This process owns the partition no more: nothing more is sent for it.
    fn release(&self, partition: u16);

    /// Reads the log behind what is known: `Read`s follow, then `ReadEnd`, or `Damaged`.
    fn read(&self, partition: u16, known: Anchor);

    /// Headers of a partition name this address as the beginning of its last complete checkpoint from now on.
    fn checkpoint(&self, partition: u16, at: At);

    /// Gives back what lies before an address, as soon as a safe append names it, or a later one, as its checkpoint: so
    /// that a log whose front is missing is noticed. The last append always stays. `Trimmed` follows.
    fn trim(&self, partition: u16, before: At);

    /// Bytes that wait to be safe: above a bound, lanes do not read from publishers.
    fn waiting(&self) -> usize;

    /// Counters for metrics, by name.
    fn figures(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }
}
