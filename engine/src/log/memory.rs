//! The log that promises nothing beyond the life of the process: a record is safe as soon as it is appended.

use super::{Log, Position};
use crate::record::Record;

/// Counts records, keeps none.
#[derive(Debug, Default)]
pub struct Memory {
    last: Position,
}

impl Log for Memory {
    fn append(&mut self, _record: &Record<'_>) -> Position {
        self.last += 1;
        self.last
    }

    fn safe(&self) -> Position {
        self.last
    }
}
