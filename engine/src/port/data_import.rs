//! Fills an empty directory from an export file (`docs/formats/export.md`): every line becomes ordinary records.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufRead, BufReader};
use std::path::Path;
use std::sync::Arc;

use serde_json::json;

use super::data_build::{Build, OnDisk, Target};
use super::data_format::{EndLine, Header, Line, VERSION};
use super::recovery::{SEGMENT_BYTES, key_check, replay};
use crate::log::{Directory, Disk, Identity, Storage, Writer};
use crate::record::{State, digest};
use crate::ring::Ring;

/// Fills a directory that is empty or not there from an export file: JSON object with the numbers of `sessions`,
/// `subscriptions`, `messages` and `retained`.
///
/// # Errors
/// The directory holds something; the file cannot be read or is not what the format says (the text names the line);
/// then nothing is left that a broker would start with.
pub fn import(dir: &str, file: &str) -> Result<String, String> {
    let path = Path::new(dir);
    match fs::read_dir(path).map(|mut entries| entries.next().is_some()) {
        Ok(false) => {}
        Ok(true) => return Err(format!("{dir}: is not empty; an import fills a new directory: name another")),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(format!("{dir}: {e}")),
    }
    let (mut lines, header) = open(file)?;
    let directory = Directory::open(path)?;
    let done = fill(&directory, &header, &mut lines);
    if done.is_err() {
        let _ = fs::remove_dir_all(directory.log());
        let _ = fs::remove_file(path.join("roost.json"));
        let _ = fs::remove_file(path.join("lock"));
    }
    Ok(numbers(&done?).to_string())
}

/// What an import tells.
pub(super) fn numbers(end: &EndLine) -> serde_json::Value {
    json!({
        "sessions": end.sessions, "subscriptions": end.subscriptions, "messages": end.messages,
        "retained": end.retained,
    })
}

/// An export file, with its first line read.
pub(super) fn open(file: &str) -> Result<(Lines<'_>, Header), String> {
    let opened = fs::File::open(file).map_err(|e| format!("{file}: cannot be read: {e}"))?;
    let mut lines = Lines { name: file, input: BufReader::with_capacity(1 << 20, opened), number: 0, text: Vec::new() };
    let header = header(&mut lines)?;
    Ok((lines, header))
}

/// An export file that is read line by line.
pub(super) struct Lines<'a> {
    name: &'a str,
    input: BufReader<fs::File>,
    number: u64,
    text: Vec<u8>,
}

impl Lines<'_> {
    /// Says where something is wrong.
    fn wrong(&self, what: &str) -> String {
        format!("{}: line {}: {what}", self.name, self.number)
    }

    fn next<T: serde::de::DeserializeOwned>(&mut self) -> Result<Option<T>, String> {
        self.text.clear();
        let read = self.input.read_until(b'\n', &mut self.text);
        if read.map_err(|e| format!("{}: cannot be read: {e}", self.name))? == 0 {
            return Ok(None);
        }
        self.number += 1;
        if self.text.pop_if(|b| *b == b'\n').is_none() {
            return Err(self.wrong("ends before its end: the file was cut off"));
        }
        self.parse().map(Some)
    }

    fn parse<T: serde::de::DeserializeOwned>(&self) -> Result<T, String> {
        serde_json::from_slice(&self.text).map_err(|e| {
            let text = e.to_string().replace('\n', " ");
            // it counts lines within the line
            self.wrong(text.split(" at line ").next().unwrap_or(&text))
        })
    }
}

fn header(lines: &mut Lines<'_>) -> Result<Header, String> {
    #[derive(serde::Deserialize)]
    struct Version {
        roostmq_export: u32,
    }
    let Some(version) = lines.next::<Version>()? else {
        return Err(format!("{}: is empty: not an export", lines.name));
    };
    if version.roostmq_export != VERSION {
        return Err(format!(
            "{}: has version {} of the format, this program knows {VERSION}: use a newer roost",
            lines.name, version.roostmq_export
        ));
    }
    let header: Header = lines.parse()?;
    if !header.partitions.is_power_of_two() || header.partitions > 1 << 15 {
        return Err(lines.wrong(&format!("partitions: {} is not a power of two up to 32768", header.partitions)));
    }
    if header.key.len() != 32 || !header.key.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(lines.wrong("key: 32 hexadecimal digits are needed"));
    }
    if header.incarnation >= (1 << 20) - 2 {
        return Err(lines.wrong(&format!("incarnation: {} is too large", header.incarnation)));
    }
    Ok(header)
}

/// Engine time of the export in the new log.
const NOW_MS: u64 = 1_000;

fn fill(directory: &Directory, header: &Header, lines: &mut Lines<'_>) -> Result<EndLine, String> {
    let mut identity = Identity::new(header.partitions, header.key.clone());
    identity.incarnation = header.incarnation + 1;
    let storage: Arc<dyn Storage> = Arc::new(Disk { path: directory.log() });
    let check = (identity.partitions, key_check(&identity.key));
    let writer = Writer::new(Arc::clone(&storage), check, SEGMENT_BYTES, 0, BTreeMap::new());
    let place = OnDisk { writer, now_ms: NOW_MS, epoch: identity.incarnation, at_ms: header.at_ms.0 };
    let (end, states, _) = build(place, header, lines, NOW_MS)?;
    let (scan, read) = replay(&*storage, &identity)?;
    let same = states.iter().zip(&read).all(|(state, (replay, _))| digest(state) == digest(&replay.state));
    if !same || !scan.damaged.is_empty() || scan.torn.is_some() {
        return Err(format!("{}: what was written is not what is read back", directory.path().display()));
    }
    let fail = |e: io::Error| format!("{}: cannot be written: {e}", directory.path().display());
    directory.set_identity(&identity).map_err(fail)?;
    Ok(end)
}

/// Everything that an export file holds, in a new log; what was built, and where.
pub(super) fn build<P: Target>(
    place: P,
    header: &Header,
    lines: &mut Lines<'_>,
    now_ms: u64,
) -> Result<(EndLine, Vec<State>, P), String> {
    let fail = |e: io::Error| format!("what was read cannot be written: {e}");
    let key = super::shared::key(Some(&header.key))?;
    let ring = Ring::new(key, usize::try_from(header.partitions).unwrap_or(1), 1);
    let mut build = Build::new(place, ring, header, now_ms);
    let mut end = None;
    while let Some(line) = lines.next::<Line>()? {
        if end.is_some() {
            return Err(lines.wrong("stands behind the last line"));
        }
        build.numbers.lines = lines.number;
        match line {
            Line::End(numbers) if numbers == build.numbers => end = Some(numbers),
            Line::End(numbers) => {
                return Err(lines.wrong(&format!(
                    "the last line counts other lines than there are: the file was cut ({numbers:?}, found {:?})",
                    build.numbers
                )));
            }
            line => build.line(line).map_err(|what| lines.wrong(&what))?,
        }
        build.flush(1 << 20).map_err(fail)?;
    }
    let end = end.ok_or_else(|| format!("{}: has no last line: the file was cut off", lines.name))?;
    build.finish().map_err(|what| format!("{}: {what}", lines.name))?;
    let (states, place) = build.close().map_err(fail)?;
    Ok((end, states, place))
}
