//! Headers of segments, groups and batches (`docs/formats/log.md`).

use super::Batch;

/// Where the first group of a segment begins.
pub const FIRST: u32 = 64;
/// Bytes of a group's header.
pub const GROUP_HEAD: usize = 56;
/// Bytes of a batch's header.
pub const BATCH_HEAD: usize = 24;
/// Version of segments and records.
pub const VERSION: u16 = 1;
/// Flag of a group: the log ended here as it should.
pub const CLEAN_END: u32 = 1;

const SEGMENT_MAGIC: &[u8; 8] = b"ROOSTLOG";
const GROUP_MAGIC: u32 = u32::from_le_bytes(*b"GRP1");

/// Segment and offset as one number.
#[must_use]
pub const fn address(segment: u32, offset: u32) -> u64 {
    (segment as u64) << 32 | offset as u64
}

/// The segment of an address.
#[must_use]
pub const fn segment_of(address: u64) -> u32 {
    (address >> 32) as u32
}

/// The offset of an address.
#[must_use]
pub const fn offset_of(address: u64) -> u32 {
    address as u32
}

/// The next place where a group may begin.
#[must_use]
pub const fn align(offset: u32) -> u32 {
    offset.saturating_add(7) & !7
}

fn u16_at(b: &[u8], at: usize) -> u16 {
    b.get(at..at + 2).and_then(|b| b.try_into().ok()).map_or(0, u16::from_le_bytes)
}

fn u32_at(b: &[u8], at: usize) -> u32 {
    b.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes)
}

fn u64_at(b: &[u8], at: usize) -> u64 {
    b.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
}

fn crc(b: Option<&[u8]>) -> u32 {
    crc32c::crc32c(b.unwrap_or(&[]))
}

/// The header of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentHead {
    /// Version of the format.
    pub version: u16,
    /// Number of partitions.
    pub partitions: u32,
    /// Its number.
    pub number: u64,
    /// Address at which the log before it ends.
    pub prev_end: u64,
    /// Check of the key.
    pub key_check: u64,
}

impl SegmentHead {
    /// Its 64 bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut b = Vec::with_capacity(FIRST as usize);
        b.extend_from_slice(SEGMENT_MAGIC);
        b.extend_from_slice(&self.version.to_le_bytes());
        b.extend_from_slice(&[0; 2]);
        b.extend_from_slice(&self.partitions.to_le_bytes());
        b.extend_from_slice(&self.number.to_le_bytes());
        b.extend_from_slice(&self.prev_end.to_le_bytes());
        b.extend_from_slice(&self.key_check.to_le_bytes());
        b.resize(60, 0);
        let sum = crc32c::crc32c(&b);
        b.extend_from_slice(&sum.to_le_bytes());
        b
    }

    /// From the beginning of a segment; `None` if that is not one.
    #[must_use]
    pub fn decode(b: &[u8]) -> Option<Self> {
        let sound = b.get(..8)? == SEGMENT_MAGIC && crc(b.get(..60)) == u32_at(b.get(..64)?, 60);
        sound.then(|| Self {
            version: u16_at(b, 8),
            partitions: u32_at(b, 12),
            number: u64_at(b, 16),
            prev_end: u64_at(b, 24),
            key_check: u64_at(b, 32),
        })
    }
}

/// The header of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Group {
    /// Its own address.
    pub at: u64,
    /// Bytes of its batches.
    pub len: u32,
    /// CRC of the headers of its batches.
    pub heads_crc: u32,
    /// Number of its batches.
    pub batches: u32,
    /// See [`CLEAN_END`].
    pub flags: u32,
    /// Engine time.
    pub now_ms: u64,
    /// Wall clock.
    pub unix_ms: u64,
    /// CRC of all its batches. Each record has its own; but a torn group in a segment that is written over may stand
    /// before old records that are sound and lie at the same place.
    pub body_crc: u32,
}

impl Group {
    /// Its 56 bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; GROUP_HEAD] {
        let mut b = [0; GROUP_HEAD];
        let mut put = |at: usize, bytes: &[u8]| {
            if let Some(place) = b.get_mut(at..at + bytes.len()) {
                place.copy_from_slice(bytes);
            }
        };
        put(0, &GROUP_MAGIC.to_le_bytes());
        put(8, &self.at.to_le_bytes());
        put(16, &self.len.to_le_bytes());
        put(20, &self.heads_crc.to_le_bytes());
        put(24, &self.batches.to_le_bytes());
        put(28, &self.flags.to_le_bytes());
        put(32, &self.now_ms.to_le_bytes());
        put(40, &self.unix_ms.to_le_bytes());
        put(48, &self.body_crc.to_le_bytes());
        let sum = crc(b.get(8..));
        if let Some(place) = b.get_mut(4..8) {
            place.copy_from_slice(&sum.to_le_bytes());
        }
        b
    }

    /// The group whose header begins these bytes and which belongs at this address.
    #[must_use]
    pub fn decode(b: &[u8], at: u64) -> Option<Self> {
        if b.len() < GROUP_HEAD || u32_at(b, 0) != GROUP_MAGIC || u64_at(b, 8) != at {
            return None;
        }
        let sound = crc(b.get(8..GROUP_HEAD)) == u32_at(b, 4);
        sound.then(|| Self {
            at,
            len: u32_at(b, 16),
            heads_crc: u32_at(b, 20),
            batches: u32_at(b, 24),
            flags: u32_at(b, 28),
            now_ms: u64_at(b, 32),
            unix_ms: u64_at(b, 40),
            body_crc: u32_at(b, 48),
        })
    }

    /// Are these its batches, to the last byte?
    #[must_use]
    pub fn has_body(&self, body: &[u8]) -> bool {
        self.body_crc == crc(Some(body))
    }
}

/// The header of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchHead {
    /// The partition.
    pub partition: u16,
    /// The incarnation that wrote it.
    pub epoch: u32,
    /// Index of its first record.
    pub first: u64,
    /// Number of records.
    pub count: u32,
    /// Bytes of its records.
    pub len: u32,
}

impl BatchHead {
    /// Of a batch that is about to be written.
    #[must_use]
    pub fn of(batch: &Batch, epoch: u32) -> Self {
        let len = u32::try_from(batch.records.len()).unwrap_or(u32::MAX);
        Self { partition: batch.partition, epoch, first: batch.first, count: batch.count, len }
    }

    /// Appends its 24 bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.partition.to_le_bytes());
        out.extend_from_slice(&[VERSION as u8, 0]);
        out.extend_from_slice(&self.epoch.to_le_bytes());
        out.extend_from_slice(&self.first.to_le_bytes());
        out.extend_from_slice(&self.count.to_le_bytes());
        out.extend_from_slice(&self.len.to_le_bytes());
    }

    /// From these bytes.
    #[must_use]
    pub fn decode(b: &[u8]) -> Option<Self> {
        let b = b.get(..BATCH_HEAD)?;
        Some(Self {
            partition: u16_at(b, 0),
            epoch: u32_at(b, 4),
            first: u64_at(b, 8),
            count: u32_at(b, 16),
            len: u32_at(b, 20),
        })
    }
}

/// The batches of a group with their records and the offset of these in the group's body; `None` if the headers are not
/// what the group's CRC says.
#[must_use]
pub fn split_batches<'a>(group: &Group, body: &'a [u8]) -> Option<Vec<(BatchHead, &'a [u8], u32)>> {
    let mut found = Vec::new();
    let (mut at, mut sum) = (0usize, 0);
    for _ in 0..group.batches {
        let bytes = body.get(at..at + BATCH_HEAD)?;
        let head = BatchHead::decode(bytes)?;
        sum = crc32c::crc32c_append(sum, bytes);
        at += BATCH_HEAD;
        let records = body.get(at..at.checked_add(head.len as usize)?)?;
        found.push((head, records, u32::try_from(at).ok()?));
        at += records.len();
    }
    (sum == group.heads_crc && at == body.len()).then_some(found)
}
