//! What a partition wants to write while its last append is under way: the next append is all of it, up to a bound.

use std::collections::VecDeque;

use bytes::Bytes;
use roostmq_engine::log::{APPEND_BYTES_MAX, Batch, Part, Position};
use roostmq_engine::record::record_len;

/// Largest single record, bytes; it goes alone. What a server takes by default (1 MiB) must hold it.
pub const RECORD_BYTES_MAX: usize = 960 * 1024;

/// Whole records of one batch that fit one append.
#[derive(Debug, Clone)]
struct Piece {
    number: u64,
    first: Position,
    count: u32,
    records: Bytes,
    /// The batch ends with it.
    last: bool,
}

/// What goes in one append.
#[derive(Debug, Clone)]
pub struct Taken {
    /// Index of its first record.
    pub first: Position,
    /// How many records.
    pub count: u32,
    /// The records.
    pub records: Vec<u8>,
    pieces: Vec<(u64, bool, Part)>,
}

/// Batches that wait, in order.
#[derive(Debug, Default)]
pub struct Queue {
    pieces: VecDeque<Piece>,
    /// Parts of a batch whose rest is not safe yet.
    done: Vec<Part>,
}

impl Queue {
    /// Adds a batch, cut where one append cannot hold it.
    ///
    /// # Errors
    /// A record is too large or not framed.
    pub fn push(&mut self, batch: Batch) -> Result<(), String> {
        let (mut rest, mut first) = (Bytes::from(batch.records), batch.first);
        let end = batch.first + u64::from(batch.count);
        while first < end {
            let (mut len, mut count) = (0_usize, 0_u32);
            if rest.len() <= APPEND_BYTES_MAX {
                (len, count) = (rest.len(), (end - first) as u32);
            }
            while first + u64::from(count) < end {
                let one = rest.get(len..).and_then(record_len).filter(|one| len + one <= rest.len());
                let one = one.filter(|one| *one <= RECORD_BYTES_MAX).ok_or_else(|| {
                    format!("record {} is not whole or larger than {RECORD_BYTES_MAX} bytes", first + u64::from(count))
                })?;
                if count > 0 && len + one > APPEND_BYTES_MAX {
                    break;
                }
                (len, count) = (len + one, count + 1);
            }
            let records = rest.split_to(len);
            let last = first + u64::from(count) == end;
            self.pieces.push_back(Piece { number: batch.number, first, count, records, last });
            first += u64::from(count);
        }
        Ok(())
    }

    /// Takes the next append; `None` if nothing waits.
    pub fn take(&mut self) -> Option<Taken> {
        let first = self.pieces.front()?.first;
        let mut taken = Taken { first, count: 0, records: Vec::new(), pieces: Vec::new() };
        while let Some(piece) = self.pieces.front() {
            if taken.count > 0 && taken.records.len() + piece.records.len() > APPEND_BYTES_MAX {
                break;
            }
            let offset = taken.records.len() as u32;
            taken.count += piece.count;
            taken.records.extend_from_slice(&piece.records);
            taken.pieces.push((
                piece.number,
                piece.last,
                Part { at: 0, offset, first: piece.first, count: piece.count },
            ));
            self.pieces.pop_front();
        }
        Some(taken)
    }

    /// An append is at this address: the batches that are safe by that, with their parts.
    pub fn landed(&mut self, taken: Taken, at: u64) -> Vec<(u64, Vec<Part>)> {
        let mut safe = Vec::new();
        for (number, last, part) in taken.pieces {
            self.done.push(Part { at, ..part });
            if last {
                safe.push((number, std::mem::take(&mut self.done)));
            }
        }
        safe
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A framed record: length, CRC, body.
    fn framed(len: usize) -> Vec<u8> {
        let (mut out, mut rest) = (Vec::new(), len);
        while rest >= 0x80 {
            out.push(rest as u8 | 0x80);
            rest >>= 7;
        }
        out.push(rest as u8);
        out.resize(out.len() + 4 + len, 1);
        out
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

        /// Batches become appends of a bounded size, cut between records; each is safe when its last part is.
        #[test]
        fn everything_goes_once_and_in_order(
            batches in prop::collection::vec(prop::collection::vec(0_usize..300_000, 1..6), 1..6)
        ) {
            let (mut queue, mut first, mut all) = (Queue::default(), 7, Vec::new());
            for (number, sizes) in (0..).zip(&batches) {
                let records: Vec<u8> = sizes.iter().flat_map(|len| framed(*len)).collect();
                all.extend_from_slice(&records);
                let count = sizes.len() as u32;
                queue.push(Batch { partition: 1, number, first, count, records }).unwrap();
                first += u64::from(count);
            }
            let (mut next, mut at, mut written, mut safe) = (7, 0, Vec::new(), Vec::new());
            while let Some(mut taken) = queue.take() {
                prop_assert!(taken.records.len() <= APPEND_BYTES_MAX);
                prop_assert_eq!(taken.first, next);
                next += u64::from(taken.count);
                at += 1;
                written.append(&mut taken.records);
                safe.extend(queue.landed(taken, at));
            }
            prop_assert_eq!(next, first);
            prop_assert_eq!(written, all);
            prop_assert_eq!(safe.iter().map(|(n, _)| *n).collect::<Vec<_>>(), (0..batches.len() as u64).collect::<Vec<_>>());
            for ((_, parts), sizes) in safe.iter().zip(&batches) {
                prop_assert_eq!(parts.iter().map(|p| p.count as usize).sum::<usize>(), sizes.len());
            }
        }
    }

    /// What no append can hold is refused, not cut in the middle.
    #[test]
    fn a_record_that_is_too_large_is_refused() {
        let batch = |len| Batch { partition: 1, number: 0, first: 0, count: 1, records: framed(len) };
        assert!(Queue::default().push(batch(RECORD_BYTES_MAX)).is_err());
        assert!(Queue::default().push(batch(RECORD_BYTES_MAX - 100)).is_ok());
    }
}
