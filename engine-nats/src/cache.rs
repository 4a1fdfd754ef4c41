//! What this node has stored in the log, once more in files of its own: not synced, bounded, read by nobody but
//! `roost cluster restore` when NATS has lost its data (`docs/formats/log-cache.md`).

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, IoSlice, Write as _};
use std::path::PathBuf;

use roostmq_engine::log::At;

const MAGIC: &[u8; 4] = b"RLC1";
const SEGMENTS: u64 = 8;
const SEGMENT_MIN: u64 = 64 * 1024;
const ENTRY_HEAD: usize = 16;

/// Where the files are and how much they may hold.
#[derive(Debug, Clone)]
pub struct CacheOptions {
    /// The directory; nobody else writes there.
    pub dir: PathBuf,
    /// Bytes of all files together; the oldest goes first.
    pub bytes_max: u64,
    /// What stands at the head of each file: which cluster, and which of its lives.
    pub head: String,
}

/// The files.
#[derive(Debug)]
pub struct Cache {
    options: CacheOptions,
    /// Number and bytes of each file, oldest first; the last one is written.
    segments: VecDeque<(u64, u64)>,
    file: Option<File>,
}

impl Cache {
    /// Finds what is there; a file of its own is begun with the first append.
    ///
    /// # Errors
    /// The directory can neither be read nor made.
    pub fn open(options: CacheOptions) -> io::Result<Self> {
        fs::create_dir_all(&options.dir)?;
        let mut found = Vec::new();
        for entry in fs::read_dir(&options.dir)? {
            let entry = entry?;
            let name = entry.file_name();
            let number = name.to_str().and_then(|name| name.strip_suffix(".cache")?.parse().ok());
            if let Some(number) = number {
                found.push((number, entry.metadata()?.len()));
            }
        }
        found.sort_unstable();
        Ok(Self { options, segments: found.into(), file: None })
    }

    /// Keeps what is stored at this address.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn keep(&mut self, at: At, append: &[u8]) -> io::Result<()> {
        let segment_max = (self.options.bytes_max / SEGMENTS).max(SEGMENT_MIN);
        if self.file.is_none() || self.segments.back().is_some_and(|(_, bytes)| *bytes >= segment_max) {
            self.begin()?;
        }
        let mut head = [0; ENTRY_HEAD];
        let (length, rest) = head.split_at_mut(4);
        let (check, address) = rest.split_at_mut(4);
        length.copy_from_slice(&(append.len() as u32).to_le_bytes());
        address.copy_from_slice(&at.to_le_bytes());
        let mut crc = crc32fast::Hasher::new();
        crc.update(address);
        crc.update(append);
        check.copy_from_slice(&crc.finalize().to_le_bytes());
        if let Some(file) = &mut self.file {
            write_both(file, &head, append)?;
        }
        if let Some((_, bytes)) = self.segments.back_mut() {
            *bytes += (ENTRY_HEAD + append.len()) as u64;
        }
        Ok(())
    }

    fn begin(&mut self) -> io::Result<()> {
        let number = self.segments.back().map_or(1, |(number, _)| number + 1);
        let head = self.options.head.as_bytes();
        let mut file = File::options().write(true).create_new(true).open(self.path(number))?;
        let mut bytes = Vec::from(&MAGIC[..]);
        bytes.extend_from_slice(&(head.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&crc32fast::hash(head).to_le_bytes());
        bytes.extend_from_slice(head);
        file.write_all(&bytes)?;
        self.file = Some(file);
        self.segments.push_back((number, bytes.len() as u64));
        let mut all: u64 = self.segments.iter().map(|(_, bytes)| bytes).sum();
        while all > self.options.bytes_max && self.segments.len() > 1 {
            let Some((oldest, bytes)) = self.segments.pop_front() else { break };
            fs::remove_file(self.path(oldest))?;
            all -= bytes;
        }
        Ok(())
    }

    fn path(&self, number: u64) -> PathBuf {
        self.options.dir.join(format!("{number:010}.cache"))
    }
}

/// One system call where the system takes all of it.
fn write_both(file: &mut File, head: &[u8], append: &[u8]) -> io::Result<()> {
    let written = file.write_vectored(&[IoSlice::new(head), IoSlice::new(append)])?;
    let (of_head, of_append) = (head.get(written..), append.get(written.saturating_sub(head.len())..));
    file.write_all(of_head.unwrap_or(&[]))?;
    file.write_all(of_append.unwrap_or(&[]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(dir: &std::path::Path) -> Vec<String> {
        let mut found: Vec<String> =
            fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        found.sort();
        found
    }

    /// The newest appends are there, in no more bytes than allowed, also after a start.
    #[test]
    fn a_cache_is_bounded_and_goes_on() {
        let dir = std::env::temp_dir().join(format!("roost-cache-{}", std::process::id()));
        let options = CacheOptions { dir: dir.clone(), bytes_max: 8 * SEGMENT_MIN, head: "{}".to_owned() };
        for start in 0..3 {
            let mut cache = Cache::open(options.clone()).unwrap();
            for at in 1..=100 {
                cache.keep(start * 100 + at, &[7; 10_000]).unwrap();
            }
        }
        let all: u64 = files(&dir).iter().map(|f| fs::metadata(dir.join(f)).unwrap().len()).sum();
        assert!(all <= 9 * SEGMENT_MIN + 20_000, "{all}");
        let last = fs::read(dir.join(files(&dir).last().unwrap())).unwrap();
        assert_eq!(last[..4], *MAGIC);
        let entry = last.len() - 10_000 - ENTRY_HEAD;
        assert_eq!(last[entry + 8..entry + 16], 300_u64.to_le_bytes());
        fs::remove_dir_all(dir).unwrap();
    }

    /// The bytes of version 1 (`docs/formats/log-cache.md`) stay what they are.
    #[test]
    fn version_1_is_golden() {
        let dir = std::env::temp_dir().join(format!("roost-cache-golden-{}", std::process::id()));
        let options = CacheOptions { dir: dir.clone(), bytes_max: 1 << 20, head: "{}".to_owned() };
        Cache::open(options).unwrap().keep(9, b"ab").unwrap();
        let bytes = fs::read(dir.join("0000000001.cache")).unwrap();
        let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, "524c43310200000043bfa6a37b7d020000002e19c5c009000000000000006162");
        fs::remove_dir_all(dir).unwrap();
    }
}
