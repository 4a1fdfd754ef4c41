//! What a payload carries so that whoever gets it can tell where it belongs, and whether it is whole.
//!
//! | bytes | what |
//! |---|---|
//! | 0..2 | run |
//! | 2..6 | publisher |
//! | 6..14 | sequence of this publisher, from 0 |
//! | 14..22 | the instant when it was due, ns since the run began |
//! | 22..24 | check of the bytes before and of the length |
//! | 24.. | a pattern that begins at a place given by the sequence |
//!
//! Numbers are little endian.

/// Bytes of a stamp; no payload is smaller.
pub const STAMP: usize = 24;
const PATTERN: usize = 1 << 16;

/// What a stamp says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    pub run: u16,
    pub publisher: u32,
    pub sequence: u64,
    pub due_ns: u64,
}

/// Writes and checks payloads.
pub struct Stamper {
    pattern: Vec<u8>,
}

impl Stamper {
    /// Makes the pattern: the same in every run, so that a payload of another run can be checked too.
    #[must_use]
    pub fn new() -> Self {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let pattern = std::iter::repeat_with(|| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        });
        Self { pattern: pattern.take(PATTERN + 256).collect() }
    }

    /// Appends a payload of `size` bytes.
    pub fn write(&self, out: &mut Vec<u8>, stamp: Stamp, size: usize) {
        let mut head = [0; STAMP];
        let (numbers, check) = head.split_at_mut(22);
        let fields = stamp.run.to_le_bytes().into_iter().chain(stamp.publisher.to_le_bytes());
        let fields = fields.chain(stamp.sequence.to_le_bytes()).chain(stamp.due_ns.to_le_bytes());
        numbers.iter_mut().zip(fields).for_each(|(to, from)| *to = from);
        check.copy_from_slice(&sum(stamp, size).to_le_bytes());
        out.extend_from_slice(&head);
        let mut left = size.saturating_sub(STAMP);
        let mut at = (stamp.sequence & 0xff) as usize;
        while left > 0 {
            let take = left.min(PATTERN);
            out.extend_from_slice(self.pattern.get(at..at + take).unwrap_or_default());
            left -= take;
            at = 0;
        }
    }

    /// Reads a payload; None if a single bit of it is not as it was written.
    #[must_use]
    pub fn read(&self, payload: &[u8]) -> Option<Stamp> {
        let (head, rest) = payload.split_first_chunk::<STAMP>()?;
        let (run, tail) = head.split_first_chunk::<2>()?;
        let (publisher, tail) = tail.split_first_chunk::<4>()?;
        let (sequence, tail) = tail.split_first_chunk::<8>()?;
        let (due, check) = tail.split_first_chunk::<8>()?;
        let stamp = Stamp {
            run: u16::from_le_bytes(*run),
            publisher: u32::from_le_bytes(*publisher),
            sequence: u64::from_le_bytes(*sequence),
            due_ns: u64::from_le_bytes(*due),
        };
        if *check != sum(stamp, payload.len()).to_le_bytes() {
            return None;
        }
        let mut at = (stamp.sequence & 0xff) as usize;
        for part in rest.chunks(PATTERN) {
            if self.pattern.get(at..at + part.len()) != Some(part) {
                return None;
            }
            at = 0;
        }
        Some(stamp)
    }
}

impl Default for Stamper {
    fn default() -> Self {
        Self::new()
    }
}

fn sum(s: Stamp, size: usize) -> u16 {
    let owner = u64::from(s.run) << 32 | u64::from(s.publisher);
    let mixed = owner ^ s.sequence.rotate_left(23) ^ s.due_ns.rotate_left(41) ^ (size as u64).rotate_left(11);
    (mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48) as u16
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    #[test]
    fn every_changed_bit_shows() {
        let stamper = Stamper::new();
        for size in [STAMP, 64, 300] {
            let stamp = Stamp { run: 7, publisher: 70_000, sequence: 0x0102_0304_0506, due_ns: 1 << 40 };
            let mut payload = Vec::new();
            stamper.write(&mut payload, stamp, size);
            assert_eq!((payload.len(), stamper.read(&payload)), (size, Some(stamp)));
            let mut missed = 0;
            for bit in 0..size * 8 {
                payload[bit / 8] ^= 1 << (bit % 8);
                missed += usize::from(stamper.read(&payload).is_some());
                payload[bit / 8] ^= 1 << (bit % 8);
            }
            assert_eq!(missed, 0, "of {size} bytes");
            assert_eq!(stamper.read(&payload[..size - 1]), None);
        }
    }

    #[test]
    fn large_payloads_are_checked_to_their_end() {
        let stamper = Stamper::new();
        let mut payload = Vec::new();
        stamper.write(&mut payload, Stamp { run: 1, publisher: 0, sequence: 255, due_ns: 0 }, 200_000);
        assert!(stamper.read(&payload).is_some());
        payload[199_999] ^= 1;
        assert_eq!(stamper.read(&payload), None);
    }
}
