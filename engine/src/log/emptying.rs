//! Segments that a checkpoint shall empty are read before it begins, a little after each group: nobody waits for it.

use std::collections::VecDeque;
use std::io;

use super::Emptied;
use super::storage::File;
use super::writer::Writer;

/// Bytes read at once.
const SLICE_BYTES: usize = 128 * 1024;

/// Segments being read.
pub struct Emptying {
    rest: VecDeque<u32>,
    open: Option<Reading>,
    emptied: Emptied,
}

struct Reading {
    number: u32,
    file: Box<dyn File>,
    bytes: Vec<u8>,
    len: usize,
}

impl Emptying {
    /// Of these segments.
    #[must_use]
    pub fn new(numbers: Vec<u32>) -> Self {
        Self { rest: numbers.into(), open: None, emptied: Emptied::new() }
    }

    /// Reads a slice; true when nothing is left. A segment that cannot be read is not emptied this time.
    pub fn read_some(&mut self, writer: &Writer) -> bool {
        let Some(mut open) = self.open.take() else {
            let Some(number) = self.rest.pop_front() else { return true };
            self.open = writer.closed_segment(number).ok().map(|(file, len)| {
                let bytes = Vec::with_capacity(len);
                Reading { number, file, bytes, len }
            });
            return false;
        };
        match open.read() {
            Ok(true) => drop(self.emptied.insert(open.number, open.bytes)),
            Ok(false) => self.open = Some(open),
            Err(_) => {}
        }
        false
    }

    /// What was read.
    #[must_use]
    pub fn done(self) -> Emptied {
        self.emptied
    }
}

impl Reading {
    /// True when all of it was read.
    fn read(&mut self) -> io::Result<bool> {
        let slice = self.file.read_at(SLICE_BYTES.min(self.len - self.bytes.len()), self.bytes.len() as u64)?;
        self.bytes.extend_from_slice(&slice);
        Ok(slice.is_empty() || self.bytes.len() == self.len)
    }
}
