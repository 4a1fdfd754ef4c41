//! Mutated packets of the corpus: the codec never panics, never reads past a packet, and says the same twice. A short run
//! by default; `ROOST_FUZZ_SECONDS` makes it long. The seed is printed when something is found.

#![allow(clippy::indexing_slicing, clippy::unwrap_used, missing_docs)]

use std::path::Path;
use std::time::{Duration, Instant};

use roostmq_engine::codec::{Version, decode, encode, frame};

/// A small generator of our own, so that a seed says everything.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % n.max(1) as u64).unwrap_or(0)
    }
}

fn mutate(r: &mut Random, bytes: &mut Vec<u8>, other: &[u8]) {
    for _ in 0..r.below(5) {
        let at = r.below(bytes.len());
        match r.below(6) {
            0 if !bytes.is_empty() => bytes[at] ^= 1 << r.below(8),
            1 if !bytes.is_empty() => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][r.below(5)],
            2 => bytes.truncate(at),
            3 => bytes.insert(at.min(bytes.len()), u8::try_from(r.below(256)).unwrap_or(0)),
            4 => bytes.extend_from_slice(&other[r.below(other.len())..]),
            _ if bytes.len() > 1 => bytes[1] = u8::try_from(bytes.len() - 2).unwrap_or(127).min(127),
            _ => {}
        }
    }
}

#[test]
fn mutated_packets() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/codec");
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|f| f.unwrap().path()).collect();
    files.sort();
    let corpus: Vec<Vec<u8>> = files.iter().map(|f| std::fs::read(f).unwrap()).collect();
    assert!(corpus.len() > 10);
    let seconds = std::env::var("ROOST_FUZZ_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(2.0);
    let until = Instant::now() + Duration::from_secs_f64(seconds);
    let mut seed = u64::from(std::process::id()) | 1;
    while Instant::now() < until {
        for _ in 0..1000 {
            seed += 1;
            let mut r = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
            let mut bytes = corpus[r.below(corpus.len())].clone();
            let other = corpus[r.below(corpus.len())].clone();
            mutate(&mut r, &mut bytes, &other);
            let version = [Version::V31, Version::V311, Version::V5][r.below(3)];
            let outcome = std::panic::catch_unwind(|| {
                let Ok(Some(found)) = frame(&bytes, 1 << 20) else { return };
                if bytes.len() < found.total {
                    return;
                }
                let first = decode(&bytes, found, version);
                assert_eq!(format!("{first:?}"), format!("{:?}", decode(&bytes[..found.total], found, version)));
                if let Ok(packet) = first {
                    let mut again = Vec::new();
                    encode(&packet, version, &mut again);
                    assert!(frame(&again, u32::MAX).unwrap().is_some());
                }
            });
            assert!(outcome.is_ok(), "seed {seed}: {bytes:02x?}");
        }
    }
}
