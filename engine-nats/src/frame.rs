//! Bytes of an append: a header and the records behind it (`docs/formats/log-nats.md`).
//!
//! Everything that is stored carries our own CRC-32C, as on the disk: what a stream gives back is believed only then.

use roostmq_engine::log::Header;

/// Bytes of a header.
pub const HEAD: usize = 56;
/// Version of header and records.
pub const VERSION: u8 = 1;

const MAGIC: &[u8; 4] = b"RLN1";
const BATCH: u8 = 1;
const EPOCH: u8 = 2;

/// What an append is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Records of an owner.
    Batch,
    /// A new owner: everything of a lower epoch behind it is void.
    Epoch,
}

/// What tells two appends apart without their bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// What it is.
    pub kind: Kind,
    /// Who wrote it and which records.
    pub header: Header,
    /// CRC of everything behind it, the header's fields included.
    pub crc: u32,
}

/// The bytes of an append and its mark.
#[must_use]
pub fn encode(kind: Kind, header: &Header, records: &[u8]) -> (Vec<u8>, Mark) {
    let mut b = Vec::with_capacity(HEAD + records.len());
    b.extend_from_slice(MAGIC);
    b.extend_from_slice(&[0; 4]);
    b.push(if kind == Kind::Batch { BATCH } else { EPOCH });
    b.push(VERSION);
    b.extend_from_slice(&header.partition.to_le_bytes());
    b.extend_from_slice(&header.epoch.to_le_bytes());
    b.extend_from_slice(&header.first.to_le_bytes());
    b.extend_from_slice(&header.count.to_le_bytes());
    b.extend_from_slice(&(records.len() as u32).to_le_bytes());
    b.extend_from_slice(&header.before.to_le_bytes());
    b.extend_from_slice(&header.checkpoint.to_le_bytes());
    b.resize(HEAD, 0);
    b.extend_from_slice(records);
    let crc = crc32c::crc32c(b.get(8..).unwrap_or(&[]));
    if let Some(place) = b.get_mut(4..8) {
        place.copy_from_slice(&crc.to_le_bytes());
    }
    (b, Mark { kind, header: *header, crc })
}

/// The mark of an append and its records; `None` if these are not the bytes of one, whole and sound.
#[must_use]
pub fn decode(b: &[u8]) -> Option<(Mark, &[u8])> {
    let crc = u32::from_le_bytes(field(b, 4)?);
    if b.get(..4)? != MAGIC || crc32c::crc32c(b.get(8..)?) != crc || *b.get(9)? != VERSION {
        return None;
    }
    let kind = match *b.get(8)? {
        BATCH => Kind::Batch,
        EPOCH => Kind::Epoch,
        _ => return None,
    };
    let header = Header {
        partition: u16::from_le_bytes(field(b, 10)?),
        epoch: u32::from_le_bytes(field(b, 12)?),
        first: u64::from_le_bytes(field(b, 16)?),
        count: u32::from_le_bytes(field(b, 24)?),
        before: u64::from_le_bytes(field(b, 32)?),
        checkpoint: u64::from_le_bytes(field(b, 40)?),
    };
    let records = b.get(HEAD..)?;
    (records.len() == u32::from_le_bytes(field(b, 28)?) as usize).then_some((Mark { kind, header, crc }, records))
}

fn field<const N: usize>(b: &[u8], at: usize) -> Option<[u8; N]> {
    b.get(at..at + N)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// What was written is read, and no other bytes are taken for it.
        #[test]
        fn an_append_is_what_was_written(
            at in 0_usize..200, bit in 0_u8..8, records in prop::collection::vec(any::<u8>(), 0..100),
            epoch: u32, first: u64, before: u64, partition: u16,
        ) {
            let header = Header { partition, epoch, first, count: 3, before, checkpoint: 9 };
            let (mut bytes, mark) = encode(Kind::Batch, &header, &records);
            prop_assert_eq!(decode(&bytes), Some((mark, &records[..])));
            prop_assert_eq!(decode(&bytes[..bytes.len() - 1]), None);
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
            prop_assert_eq!(decode(&bytes), None);
        }
    }

    /// The bytes of version 1 (`docs/formats/log-nats.md`) stay what they are.
    #[test]
    fn version_1_is_golden() {
        let header = Header { partition: 0x0102, epoch: 3, first: 4, count: 5, before: 6, checkpoint: 7 };
        let (bytes, _) = encode(Kind::Epoch, &header, b"ab");
        let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(
            hex,
            "524c4e3157af4f910201020103000000040000000000000005000000020000000600000000000000070000000000000000000000000000006162"
        );
    }
}
