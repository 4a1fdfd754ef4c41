//! What a log says: the unbroken chain of its appends (`30-cluster.md`, section 3).
//!
//! Pure. An `EPOCH` raises the epoch in force; of several copies the first counts. A batch of the epoch in force must
//! name the append before it and go on with its index; one of a lower epoch came late and is ignored; anything else means
//! that the log is not what was written. A log that does not begin with an `EPOCH` was trimmed: its first batch is believed,
//! if the last one names no checkpoint before it.

use roostmq_engine::log::{Anchor, Appended, At, Header};

use crate::frame::{Kind, Mark};

/// What lies at an address: mark and records, or `None` for bytes that are no sound append.
pub type Found = (At, Option<(Mark, Vec<u8>)>);

/// Reads a partition's log in order.
#[derive(Debug, Clone)]
pub struct Replay {
    partition: u16,
    known: Anchor,
    /// First address that was read.
    front: Option<At>,
    /// Whether the front is a batch: something was before it.
    trimmed: bool,
    /// Mark of the append at `known.at`, once it was read.
    head: Option<Mark>,
}

impl Replay {
    /// Goes on behind what is known.
    #[must_use]
    pub const fn new(partition: u16, known: Anchor) -> Self {
        Self { partition, known, front: None, trimmed: false, head: None }
    }

    /// Up to where the chain is known now.
    #[must_use]
    pub const fn known(&self) -> Anchor {
        self.known
    }

    /// Mark of the last append of the chain; `None` if it was not read here.
    #[must_use]
    pub const fn head(&self) -> Option<Mark> {
        self.head
    }

    /// First address that was read; 0 if none was.
    #[must_use]
    pub fn front(&self) -> At {
        self.front.unwrap_or(0)
    }

    /// Takes what lies at the next address. An append of the chain comes back, nothing for what is to be ignored.
    ///
    /// # Errors
    /// The log is not what was written: what, and where.
    pub fn take(&mut self, (at, what): Found) -> Result<Option<Appended>, String> {
        if at <= self.known.at {
            return Ok(None);
        }
        let p = self.partition;
        let Some((mark, records)) = what.filter(|(mark, _)| mark.header.partition == p) else {
            return Err(format!("partition {p}: what lies at {at} is not a sound append of it"));
        };
        let (header, begins) = (mark.header, self.front.is_none() && self.known.at == 0);
        self.front.get_or_insert(at);
        match mark.kind {
            Kind::Epoch => {
                if header.epoch > self.known.epoch {
                    self.known.epoch = header.epoch;
                    self.reach(at, mark);
                }
                Ok(None)
            }
            Kind::Batch if header.epoch < self.known.epoch => Ok(None),
            Kind::Batch => {
                self.trimmed |= begins;
                if begins {
                    self.known.epoch = header.epoch;
                } else {
                    self.check(at, &header)?;
                }
                self.known.next = header.first + u64::from(header.count);
                self.known.checkpoint = header.checkpoint;
                self.reach(at, mark);
                Ok(Some(Appended { at, header, records }))
            }
        }
    }

    fn reach(&mut self, at: At, mark: Mark) {
        self.known.at = at;
        self.head = Some(mark);
    }

    fn check(&self, at: At, header: &Header) -> Result<(), String> {
        let (p, known) = (self.partition, self.known);
        if header.epoch > known.epoch {
            return Err(format!("partition {p}: {at} is of epoch {}, whose EPOCH is not in the log", header.epoch));
        }
        if header.before != known.at || header.first != known.next {
            return Err(format!(
                "partition {p}: {at} follows {} with index {}, but the log has {} with next index {} before it",
                header.before, header.first, known.at, known.next
            ));
        }
        Ok(())
    }

    /// To be called when everything was taken.
    ///
    /// # Errors
    /// The front of the log is missing.
    pub fn check_front(&self) -> Result<(), String> {
        let front = self.front();
        if self.trimmed && self.known.checkpoint < front {
            return Err(format!(
                "partition {}: the log begins at {front}, behind its checkpoint at {}",
                self.partition, self.known.checkpoint
            ));
        }
        Ok(())
    }
}
