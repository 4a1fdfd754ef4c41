//! The log on one disk: where records go before anything that depends on them is said aloud.
//!
//! Lanes hand over [`Piece`]s; one thread writes all that wait as one group, syncs it, and says where everything lies
//! (`writer`, `thread`). `scan` reads it again. `storage` is the file layer, so that tests can cut the power. Bytes are
//! drawn in `docs/formats/log.md`, rules in `docs/formats/durability.md`. In the cluster the same batches go elsewhere.

mod checkpoint;
mod cluster_log;
mod directory;
mod emptying;
mod frame;
mod reader;
mod scan;
mod storage;
mod thread;
mod writer;

pub use checkpoint::Checkpoints;
pub use cluster_log::{
    APPEND_BYTES_MAX, Anchor, Appended, At, ClusterLog, ClusterLogEvent, ClusterLogNotify, ClusterLogState, Fence,
    Header, Part,
};
pub use directory::{Directory, Identity};
pub use emptying::Emptying;
pub use frame::{FIRST, GROUP_HEAD, Group, address, offset_of, segment_of};
pub use reader::{LogReader, topics_at};
pub use scan::{Damage, LastGroup, Scan, Tail, Torn, Visit, scan, tail};
pub use storage::{Disk, File, Storage};
pub use thread::{DiskLog, LogStats, Options};
pub use writer::{Located, Writer, file_name as segment_name};

use std::collections::HashMap;

use crate::channel::SessionRef;
use crate::message::Stored;

/// Index of a record in its partition.
pub type Position = u64;

/// What a partition wrote in one tick.
#[derive(Debug)]
pub struct Batch {
    /// The partition.
    pub partition: u16,
    /// Number of the batch in its partition.
    pub number: u64,
    /// Index of its first record.
    pub first: Position,
    /// How many records.
    pub count: u32,
    /// The records.
    pub records: Vec<u8>,
}

impl Batch {
    /// The same for the log of a cluster: a partition counts its records from 1, that log from 0.
    #[must_use]
    pub fn counted_from_0(self) -> Self {
        Self { first: self.first.saturating_sub(1), ..self }
    }
}

/// What a lane's partitions wrote in one tick.
#[derive(Debug, Default)]
pub struct Piece {
    /// The lane.
    pub lane: u16,
    /// Engine time, milliseconds.
    pub now_ms: u64,
    /// Epoch of the batches: the incarnation of this process.
    pub epoch: u32,
    /// The batches.
    pub batches: Vec<Batch>,
    /// With the last piece of a checkpoint: what its walk found.
    pub walked: Option<Walked>,
}

/// A body that is wanted from the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// Index in the session's queue.
    pub index: u64,
    /// Address in the log.
    pub at: u64,
    /// Bytes of topic, properties and payload.
    pub len: u32,
}

/// Segments that are to be emptied, with their bytes.
pub type Emptied = HashMap<u32, Vec<u8>>;

/// What the walk of a checkpoint has found.
#[derive(Debug, Default)]
pub struct Walked {
    /// Number of the checkpoint.
    pub number: u64,
    /// Bytes of wanted bodies by segment; each counts once for every queue that has it.
    pub live: HashMap<u32, u64>,
}

/// What the log tells a lane.
#[derive(Debug)]
pub enum LogEvent {
    /// These batches are safe.
    Safe(Vec<Located>),
    /// Write the checkpoint with this number; bodies in these segments are to be written again.
    Walk(u64, std::sync::Arc<Emptied>),
    /// Bodies, by index and address; `None` for a damaged one.
    Fetched {
        /// Whose queue they are in.
        session: SessionRef,
        /// The bodies.
        bodies: Vec<(u64, u64, Option<Stored>)>,
    },
}

/// Where the log sends its events: number of the lane, event.
pub type Notify = std::sync::Arc<dyn Fn(u16, LogEvent) + Send + Sync>;
