//! Writes groups into segments. No thread, no clock: whoever calls it decides when.
//!
//! After an error nothing of the group counts: the segment is left at the end of the group before, and the same batches
//! are written anew into the next segment, whose header says where the log before it ends.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use super::frame::{BATCH_HEAD, BatchHead, CLEAN_END, FIRST, GROUP_HEAD, Group, SegmentHead, VERSION, address, align};
use super::storage::{File, Storage};
use super::{Piece, Position};

/// Zeros are written this far ahead, so that a sync need not change the file's size or its blocks.
const FILL_BYTES: u32 = 1024 * 1024;
/// Spare segments kept for later.
const SPARES_MAX: usize = 4;

/// Where a batch lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Located {
    /// The partition.
    pub partition: u16,
    /// Number of the batch in its partition.
    pub number: u64,
    /// Index of its last record.
    pub up_to: Position,
    /// Address of its first record.
    pub address: u64,
}

/// Name of a segment's file.
#[must_use]
pub fn file_name(number: u32) -> String {
    format!("{number:016x}.seg")
}

struct Open {
    number: u32,
    file: Box<dyn File>,
    end: u32,
    /// Zeros, or an older segment's bytes, reach up to here.
    filled: u32,
}

/// The end of the log.
pub struct Writer {
    storage: Arc<dyn Storage>,
    head: SegmentHead,
    segment_bytes: u32,
    next: u32,
    /// Address at which what counts ends.
    end: u64,
    open: Option<Open>,
    /// Number to bytes of every segment but the open one.
    closed: BTreeMap<u32, u64>,
    /// Segments to be written over.
    spares: Vec<(String, u32)>,
    /// Spares whose names are not safe yet: after a power cut they could be segments again.
    given: Vec<(String, u32)>,
    buffer: Vec<u8>,
    /// Bytes handed to the storage so far.
    pub bytes_written: u64,
}

impl Writer {
    /// Goes on behind `end`, in a new segment. `closed` are the segments that exist, with their bytes.
    #[must_use]
    pub fn new(
        storage: Arc<dyn Storage>,
        (partitions, key_check): (u32, u64),
        segment_bytes: u32,
        end: u64,
        closed: BTreeMap<u32, u64>,
    ) -> Self {
        let next = closed.keys().next_back().map_or(1, |n| n + 1).max(super::segment_of(end) + 1);
        let head = SegmentHead { version: VERSION, partitions, number: 0, prev_end: 0, key_check };
        let buffer = Vec::new();
        let (spares, given) = (Vec::new(), Vec::new());
        Self { storage, head, segment_bytes, next, end, open: None, closed, spares, given, buffer, bytes_written: 0 }
    }

    /// Makes the end of a log that is there safe, as it may have been written and never synced: its last whole group is
    /// written again and synced. Segments go on above `newest`, which an earlier run has begun. The writer behind it all.
    ///
    /// # Errors
    /// As the storage says.
    pub fn settled(storage: &Arc<dyn Storage>, check: (u32, u64), segment_bytes: u32, newest: u32) -> io::Result<Self> {
        let mut segments = BTreeMap::new();
        for name in storage.list()? {
            if let Some(number) = name.strip_suffix(".seg").and_then(|n| u32::from_str_radix(n, 16).ok()) {
                segments.insert(number, storage.open(&name, false)?.len()?);
            }
        }
        let super::Tail { end, last } = super::tail(&**storage)?;
        let mut writer = Self::new(Arc::clone(storage), check, segment_bytes, end, segments);
        writer.adopt_spares()?;
        writer.begin_above(newest);
        if let Some(last) = last {
            writer.copy(&last)?;
        }
        Ok(writer)
    }

    /// Address of the next group, if it goes into the open segment.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.end
    }

    /// Number of the newest segment.
    #[must_use]
    pub const fn newest(&self) -> u32 {
        self.next - 1
    }

    /// Numbers up to this one were used, even if nothing with them is left.
    pub fn begin_above(&mut self, number: u32) {
        self.next = self.next.max(number + 1);
    }

    /// Number of segments and bytes on disk, spare ones included.
    #[must_use]
    pub fn size(&self) -> (usize, u64) {
        let open = self.open.as_ref().map_or(0, |o| u64::from(o.filled));
        let spare: u64 = self.spares.iter().chain(&self.given).map(|s| u64::from(s.1)).sum();
        (self.closed.len() + usize::from(open > 0), self.closed.values().sum::<u64>() + open + spare)
    }

    /// Segments that are full, with their bytes.
    #[must_use]
    pub const fn closed(&self) -> &BTreeMap<u32, u64> {
        &self.closed
    }

    /// Writes the pieces as one group; `sync` makes it safe. Returns where each batch lies.
    ///
    /// # Errors
    /// As the storage says. The same pieces can be written again; they go into another segment.
    pub fn write(&mut self, pieces: &[Piece], unix_ms: u64, sync: bool) -> io::Result<Vec<Located>> {
        self.group(pieces, unix_ms, 0, sync)
    }

    /// Writes a group of an earlier run again and syncs it; what it says is not changed.
    ///
    /// # Errors
    /// As the storage says.
    pub fn copy(&mut self, last: &super::LastGroup) -> io::Result<()> {
        let len = GROUP_HEAD as u32 + last.head.len;
        let at = self.room_for(len)?;
        let Some(open) = &mut self.open else { return Err(io::Error::other("no segment")) };
        let mut bytes = Group { at, ..last.head }.encode().to_vec();
        bytes.extend_from_slice(&last.body);
        open.file.write_at(&bytes, u64::from(open.end))?;
        open.file.sync()?;
        self.bytes_written += u64::from(len);
        open.end = align(open.end + len);
        open.filled = open.filled.max(open.end);
        self.end = address(open.number, open.end);
        Ok(())
    }

    /// An empty group that says: the log ends here as it should.
    ///
    /// # Errors
    /// As the storage says.
    pub fn end_cleanly(&mut self, now_ms: u64, unix_ms: u64) -> io::Result<()> {
        let piece = Piece { now_ms, ..Piece::default() };
        self.group(&[piece], unix_ms, CLEAN_END, true).map(drop)
    }

    /// What was written without `sync` is safe from here on.
    ///
    /// # Errors
    /// As the storage says.
    pub fn sync(&mut self) -> io::Result<()> {
        self.open.as_ref().map_or(Ok(()), |o| o.file.sync()).inspect_err(|_| self.leave_segment())
    }

    fn group(&mut self, pieces: &[Piece], unix_ms: u64, flags: u32, sync: bool) -> io::Result<Vec<Located>> {
        let mut buffer = std::mem::take(&mut self.buffer);
        let result = self.write_group(&mut buffer, pieces, unix_ms, flags, sync);
        buffer.clear();
        if buffer.capacity() <= 8 * 1024 * 1024 {
            self.buffer = buffer;
        }
        result.inspect_err(|_| self.leave_segment())
    }

    fn write_group(
        &mut self,
        buffer: &mut Vec<u8>,
        pieces: &[Piece],
        unix_ms: u64,
        flags: u32,
        sync: bool,
    ) -> io::Result<Vec<Located>> {
        let batches = pieces.iter().flat_map(|p| &p.batches);
        let len: usize = GROUP_HEAD + batches.map(|b| BATCH_HEAD + b.records.len()).sum::<usize>();
        let len = u32::try_from(len).map_err(|_| io::Error::other("a group of more than 4 GiB"))?;
        let start = self.room_for(len)?;
        let mut located = Vec::new();
        let mut group = Group { at: start, flags, unix_ms, ..Group::default() };
        buffer.resize(GROUP_HEAD, 0);
        for piece in pieces {
            group.now_ms = group.now_ms.max(piece.now_ms);
            for batch in &piece.batches {
                let at = buffer.len();
                BatchHead::of(batch, piece.epoch).encode(buffer);
                group.heads_crc = crc32c::crc32c_append(group.heads_crc, buffer.get(at..).unwrap_or(&[]));
                group.batches += 1;
                located.push(Located {
                    partition: batch.partition,
                    number: batch.number,
                    up_to: batch.first + u64::from(batch.count) - 1,
                    address: start + buffer.len() as u64,
                });
                buffer.extend_from_slice(&batch.records);
            }
        }
        group.len = len - GROUP_HEAD as u32;
        group.body_crc = crc32c::crc32c(buffer.get(GROUP_HEAD..).unwrap_or(&[]));
        if let Some(place) = buffer.get_mut(..GROUP_HEAD) {
            place.copy_from_slice(&group.encode());
        }
        let Some(open) = &mut self.open else { return Err(io::Error::other("no segment")) };
        open.file.write_at(buffer, u64::from(open.end))?;
        self.bytes_written += u64::from(len);
        if sync {
            open.file.sync()?;
        }
        open.end = align(open.end + len);
        open.filled = open.filled.max(open.end);
        self.end = address(open.number, open.end);
        Ok(located)
    }

    /// Makes room for a group and returns its address.
    fn room_for(&mut self, len: u32) -> io::Result<u64> {
        let fits = self.open.as_ref().is_some_and(|o| o.end.saturating_add(len) <= self.segment_bytes);
        if !fits {
            self.sync()?; // nothing stays behind unsynced, whenever syncs are due
            self.close_segment();
            self.open_segment()?;
        }
        let segment_bytes = self.segment_bytes;
        let Some(open) = &mut self.open else { return Err(io::Error::other("no segment")) };
        let wanted = open.end.saturating_add(len);
        // a large group pays for the growth of the file itself
        if wanted > open.filled && len < FILL_BYTES / 16 {
            let upto = wanted.max(open.filled.saturating_add(FILL_BYTES).min(segment_bytes));
            let zeros = vec![0; (upto - open.filled) as usize];
            open.file.write_at(&zeros, open.filled.into())?;
            self.bytes_written += zeros.len() as u64;
            open.filled = upto;
        }
        Ok(address(open.number, open.end))
    }

    fn close_segment(&mut self) {
        if let Some(open) = self.open.take() {
            self.closed.insert(open.number, u64::from(open.filled));
        }
    }

    /// After an error: what counts ends where the last good group ended.
    fn leave_segment(&mut self) {
        self.close_segment();
    }

    fn open_segment(&mut self) -> io::Result<()> {
        let number = self.next;
        self.head.number = number.into();
        self.head.prev_end = self.end;
        let head = self.head.encode();
        let (temporary, filled) = match self.spares.pop() {
            Some((name, bytes)) => (name, bytes),
            None => (format!("{number:016x}.new"), 0),
        };
        let named = |storage: &dyn Storage| {
            let file = storage.open(&temporary, true)?;
            file.write_at(&head, 0)?;
            file.sync()?;
            storage.rename(&temporary, &file_name(number))?;
            Ok(file)
        };
        let file = match named(&*self.storage) {
            Ok(file) => file,
            Err(error) => {
                if filled > 0 {
                    self.spares.push((temporary, filled));
                }
                return Err(error);
            }
        };
        self.sync_names()?;
        self.bytes_written += head.len() as u64;
        self.next += 1;
        self.end = address(number, FIRST);
        self.open = Some(Open { number, file, end: FIRST, filled: filled.max(FIRST) });
        Ok(())
    }

    /// Gives segments back: some are kept to be written over, the rest is removed.
    ///
    /// # Errors
    /// As the storage says; the segments stay.
    pub fn give_back(&mut self, numbers: &[u32]) -> io::Result<()> {
        for &number in numbers {
            let Some(&bytes) = self.closed.get(&number) else { continue };
            let name = file_name(number);
            if self.spares.len() + self.given.len() < SPARES_MAX {
                let spare = format!("{number:016x}.spare");
                self.storage.rename(&name, &spare)?;
                self.given.push((spare, u32::try_from(bytes).unwrap_or(FIRST)));
            } else {
                self.storage.remove(&name)?;
            }
            self.closed.remove(&number);
        }
        if numbers.is_empty() { Ok(()) } else { self.sync_names() }
    }

    /// Names are safe; only then a segment that was given back may be written over.
    fn sync_names(&mut self) -> io::Result<()> {
        self.storage.sync_names()?;
        self.spares.append(&mut self.given);
        Ok(())
    }

    /// Segments that an earlier run has kept to be written over; what it was about to make is removed.
    ///
    /// # Errors
    /// As the storage says.
    pub fn adopt_spares(&mut self) -> io::Result<()> {
        for name in self.storage.list()? {
            let spare = name.ends_with(".spare");
            if spare && self.spares.len() < SPARES_MAX {
                let bytes = self.storage.open(&name, false)?.len()?;
                self.spares.push((name, u32::try_from(bytes).unwrap_or(FIRST)));
            } else if spare || name.ends_with(".new") {
                self.storage.remove(&name)?;
            }
        }
        Ok(())
    }

    /// A closed segment and its length, to be read.
    ///
    /// # Errors
    /// As the storage says.
    pub fn closed_segment(&self, number: u32) -> io::Result<(Box<dyn File>, usize)> {
        let file = self.storage.open(&file_name(number), false)?;
        let len = usize::try_from(file.len()?).unwrap_or(0);
        Ok((file, len))
    }
}
