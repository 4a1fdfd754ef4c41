//! Reads the log from an address to its end, tells a torn tail from damage, and shows every sound record in order.

use std::collections::BTreeMap;
use std::io;

use super::frame::{BatchHead, FIRST, GROUP_HEAD, Group, SegmentHead, VERSION, address, align, offset_of, segment_of};
use super::frame::{CLEAN_END, split_batches};
use super::storage::Storage;
use crate::record::next_record;

/// Something that was synced once and is not what it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// File and offset.
    pub place: String,
    /// What is wrong, and what is lost by it.
    pub what: String,
}

/// The last group was not written whole: nothing in it was acknowledged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Torn {
    /// File and offset.
    pub place: String,
    /// Bytes that do not count.
    pub bytes: u64,
}

/// What a scan found beside the records.
#[derive(Debug, Default)]
pub struct Scan {
    /// Address at which the log ends.
    pub end: u64,
    /// Engine time of the last group.
    pub now_ms: u64,
    /// Wall clock of the last group.
    pub unix_ms: u64,
    /// Records that were sound.
    pub records: u64,
    /// Bytes read.
    pub bytes: u64,
    /// What was left out.
    pub damaged: Vec<Damage>,
    /// What was cut off.
    pub torn: Option<Torn>,
    /// Every segment with its bytes.
    pub segments: BTreeMap<u32, u64>,
    /// The last group says that the broker ended as it should.
    pub clean_end: bool,
}

/// Who is shown the records: batch header, body, address. An error text is damage.
pub type Visit<'a> = dyn FnMut(&BatchHead, &[u8], u64) -> Result<(), &'static str> + 'a;

/// The last group that counts, as it stands on disk: it may have been read from memory that no sync has covered, so
/// whoever goes on with the log writes it again, before anything relies on it.
#[derive(Debug)]
pub struct LastGroup {
    /// Its address: the log before it is safe.
    pub at: u64,
    /// Its header.
    pub head: Group,
    /// Its batches.
    pub body: Vec<u8>,
}

/// Where the log ends, and the last group if it is to be written again.
#[derive(Debug, Default)]
pub struct Tail {
    /// The log before it is safe; 0 is no log.
    pub end: u64,
    /// The group that stands there.
    pub last: Option<LastGroup>,
}

/// Finds the end of the log. A newest segment without a whole group was begun and no more: then the header says where the
/// log before it ends, and a group may stand there that was to be written again.
///
/// # Errors
/// A file cannot be read.
pub fn tail(storage: &dyn Storage) -> io::Result<Tail> {
    let numbers = storage.list()?;
    let numbers = numbers.iter().filter_map(|n| u32::from_str_radix(n.strip_suffix(".seg")?, 16).ok());
    let Some(number) = numbers.max() else { return Ok(Tail::default()) };
    let newest = read_whole(storage, number)?;
    if let Some(last) = last_of(&newest, FIRST, u32::MAX) {
        return Ok(Tail { end: last.at, last: Some(last) });
    }
    let end = SegmentHead::decode(&newest.bytes).map_or(0, |h| h.prev_end);
    let before = read_whole(storage, segment_of(end)).ok().filter(|_| end != 0);
    Ok(Tail { end, last: before.and_then(|b| last_of(&b, offset_of(end), offset_of(end))) })
}

fn read_whole(storage: &dyn Storage, number: u32) -> io::Result<Segment> {
    let file = storage.open(&super::writer::file_name(number), false)?;
    let bytes = file.read_at(usize::try_from(file.len()?).unwrap_or(0), 0)?;
    Ok(Segment { number, bytes, limit: None })
}

/// The last whole group that begins in this part of a segment.
fn last_of(s: &Segment, from: u32, upto: u32) -> Option<LastGroup> {
    let (mut at, mut last) = (from, None);
    while at <= upto {
        let rest = s.bytes.get(at as usize..).unwrap_or(&[]);
        let group = Group::decode(rest, address(s.number, at));
        let body = group.and_then(|g| rest.get(GROUP_HEAD..GROUP_HEAD.checked_add(g.len as usize)?));
        let (Some(head), Some(body)) = (group, body) else {
            match next_group(s, at, u32::MAX) {
                Some(next) => at = next,
                None => break,
            }
            continue;
        };
        if is_whole(&head, body) {
            last = Some(LastGroup { at: head.at, head, body: body.to_vec() });
        }
        at = align(at + GROUP_HEAD as u32 + head.len);
    }
    last
}

struct Segment {
    number: u32,
    bytes: Vec<u8>,
    /// Groups at or behind it do not count; known for all but the last segment.
    limit: Option<u32>,
}

/// Reads everything from `from` on (`None`: from the oldest segment).
///
/// # Errors
/// A file cannot be read, or is of a newer version or of another cluster.
pub fn scan(
    storage: &dyn Storage,
    from: Option<u64>,
    expected: Option<(u32, u64)>,
    visit: &mut Visit<'_>,
) -> io::Result<Scan> {
    let from = from.filter(|from| *from != 0);
    let mut found = Scan::default();
    let heads = segments(storage, &mut found, expected)?;
    let first = from.map_or(0, segment_of);
    let numbers: Vec<u32> = heads.keys().copied().filter(|n| *n >= first).collect();
    if let (Some(from), Some(lowest)) = (from, numbers.first().or(Some(&u32::MAX))) {
        if *lowest != segment_of(from) {
            found.damaged.push(Damage {
                place: super::writer::file_name(segment_of(from)),
                what: "the segment with the last checkpoint is missing; what it held is lost".to_owned(),
            });
        }
    }
    for (i, &number) in numbers.iter().enumerate() {
        let next = numbers.get(i + 1).and_then(|n| Some((*n, heads.get(n)?.as_ref()?.prev_end)));
        let limit = next.map(|(_, end)| if segment_of(end) == number { offset_of(end) } else { 0 });
        // a header that could not be read says nothing of the segment before
        let limit = if next.is_none() && i + 1 < numbers.len() { Some(u32::MAX) } else { limit };
        gap(&numbers, i, &heads, from.is_none(), &mut found);
        let file = storage.open(&super::writer::file_name(number), false)?;
        let bytes = file.read_at(usize::try_from(file.len()?).unwrap_or(0), 0)?;
        found.bytes += bytes.len() as u64;
        let start = from.filter(|f| segment_of(*f) == number).map_or(FIRST, offset_of);
        read_segment(&Segment { number, bytes, limit }, start, &mut found, visit);
    }
    Ok(found)
}

/// Headers of all segments; `None` for one that cannot be read.
fn segments(
    storage: &dyn Storage,
    found: &mut Scan,
    expected: Option<(u32, u64)>,
) -> io::Result<BTreeMap<u32, Option<SegmentHead>>> {
    let mut heads = BTreeMap::new();
    for name in storage.list()? {
        let Some(number) = name.strip_suffix(".seg").and_then(|n| u32::from_str_radix(n, 16).ok()) else { continue };
        let file = storage.open(&name, false)?;
        let head = SegmentHead::decode(&file.read_at(FIRST as usize, 0)?).filter(|h| h.number == u64::from(number));
        if let Some(h) = head {
            if h.version > VERSION {
                return Err(io::Error::other(format!(
                    "{name} has version {}, this program knows {VERSION}: use a newer roost",
                    h.version
                )));
            }
            if expected.is_some_and(|e| e != (h.partitions, h.key_check)) {
                return Err(io::Error::other(format!("{name} belongs to another broker (other key or partitions)")));
            }
        }
        found.segments.insert(number, file.len()?);
        heads.insert(number, head);
    }
    Ok(heads)
}

/// Segments that the log refers to and that are not there.
fn gap(numbers: &[u32], i: usize, heads: &BTreeMap<u32, Option<SegmentHead>>, whole: bool, found: &mut Scan) {
    let Some(&number) = numbers.get(i) else { return };
    let head = heads.get(&number).and_then(Option::as_ref);
    let place = super::writer::file_name(number);
    let Some(head) = head else {
        found
            .damaged
            .push(Damage { place, what: "the header of the segment is damaged; its groups are read".to_owned() });
        return;
    };
    let before = i.checked_sub(1).and_then(|i| numbers.get(i));
    let wanted = segment_of(head.prev_end);
    // without a checkpoint the log begins at its beginning
    if before.map_or(whole && wanted > 0, |b| *b < wanted) {
        let place = super::writer::file_name(wanted);
        found.damaged.push(Damage { place, what: "the segment is missing; its records are lost".to_owned() });
    }
}

fn read_segment(s: &Segment, start: u32, found: &mut Scan, visit: &mut Visit<'_>) {
    let mut at = start;
    let stop = s.limit.unwrap_or(u32::MAX);
    while at < stop {
        let rest = s.bytes.get(at as usize..).unwrap_or(&[]);
        let group = Group::decode(rest, address(s.number, at));
        let body = group.and_then(|g| rest.get(GROUP_HEAD..GROUP_HEAD.checked_add(g.len as usize)?));
        let (Some(group), Some(body)) = (group, body) else {
            match next_group(s, at, stop) {
                Some(next) => {
                    found.damaged.push(damage(s, at, &format!("{} bytes cannot be read", next - at)));
                    at = next;
                    continue;
                }
                None => {
                    end_of_segment(s, at, rest, found);
                    break;
                }
            }
        };
        let after = align(at + GROUP_HEAD as u32 + group.len);
        let last = s.limit.is_none() && next_group(s, at, stop).is_none();
        if last && !is_whole(&group, body) {
            let bytes = u64::from(after - at);
            found.torn = Some(Torn { place: place(s, at), bytes });
            break;
        }
        found.now_ms = found.now_ms.max(group.now_ms);
        found.unix_ms = group.unix_ms;
        found.clean_end = group.flags & CLEAN_END != 0;
        show(s, at, &group, body, found, visit);
        at = after;
    }
    found.end = address(s.number, at.min(stop.max(start)));
}

/// Nothing sound follows: the end of the log, or damage where more was expected.
fn end_of_segment(s: &Segment, at: u32, rest: &[u8], found: &mut Scan) {
    match s.limit {
        // behind a segment whose successor cannot be read anything may be missing, or nothing
        Some(u32::MAX) => {}
        Some(limit) => {
            let bytes = limit.saturating_sub(at);
            found.damaged.push(damage(s, at, &format!("{bytes} bytes cannot be read; their records are lost")));
        }
        None => {
            // zeros, or groups of the segment that this one was made of, are no sign of anything
            let begun = rest.get(..GROUP_HEAD).is_some_and(|h| Group::decode(h, address(s.number, at)).is_some());
            if begun {
                found.torn = Some(Torn { place: place(s, at), bytes: rest.len() as u64 });
            }
        }
    }
}

/// The next place behind `at` where a sound group header stands.
fn next_group(s: &Segment, at: u32, stop: u32) -> Option<u32> {
    let end = u32::try_from(s.bytes.len()).unwrap_or(u32::MAX).min(stop);
    let mut next = align(at + 1);
    while next < end {
        let rest = s.bytes.get(next as usize..)?;
        if rest.starts_with(b"GRP1") && Group::decode(rest, address(s.number, next)).is_some() {
            return Some(next);
        }
        next += 8;
    }
    None
}

fn is_whole(group: &Group, body: &[u8]) -> bool {
    group.has_body(body) && has_sound_records(group, body)
}

fn has_sound_records(group: &Group, body: &[u8]) -> bool {
    let Some(batches) = split_batches(group, body) else { return false };
    batches.iter().all(|(head, records, _)| {
        let mut rest = *records;
        let mut n = 0;
        loop {
            match next_record(&mut rest) {
                Ok(None) => return n == head.count,
                Ok(Some((_, true))) => n += 1,
                _ => return false,
            }
        }
    })
}

fn show(s: &Segment, at: u32, group: &Group, body: &[u8], found: &mut Scan, visit: &mut Visit<'_>) {
    let base = at + GROUP_HEAD as u32;
    let Some(batches) = split_batches(group, body) else {
        found.damaged.push(damage(s, at, "the headers of a group are damaged; its records are lost"));
        return;
    };
    if !group.has_body(body) && has_sound_records(group, body) {
        // a write that never reached the disk, in a segment that was used before
        found.damaged.push(damage(s, at, "a group has records of an older one among its own; its records are lost"));
        return;
    }
    for (head, records, offset) in batches {
        let mut rest = records;
        loop {
            let before = rest.len();
            let here = base + offset + (records.len() - before) as u32;
            let problem = match next_record(&mut rest) {
                Ok(None) => break,
                Ok(Some((body, true))) => {
                    found.records += 1;
                    visit(&head, body, address(s.number, here)).err()
                }
                Ok(Some((_, false))) => Some("a record is damaged (its CRC is wrong)"),
                Err(_) => {
                    rest = &[];
                    Some("a record is damaged and hides the rest of its batch")
                }
            };
            if let Some(what) = problem {
                found.damaged.push(damage(s, here, &format!("partition {}: {what}", head.partition)));
            }
        }
    }
}

fn place(s: &Segment, at: u32) -> String {
    format!("{} at {at}", super::writer::file_name(s.number))
}

fn damage(s: &Segment, at: u32, what: &str) -> Damage {
    Damage { place: place(s, at), what: what.to_owned() }
}
