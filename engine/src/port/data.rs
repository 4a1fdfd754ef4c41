//! A data directory without a broker: what is in it, and whether all of it can be read. `data_export` and `data_import`
//! carry it elsewhere (`docs/formats/export.md`).

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::data_format::Uid;
use super::recovery::{key_check, replay};
use crate::log::{Damage, Directory, Disk, FIRST, File, Identity, Scan, Storage, address, offset_of, scan, segment_of};
use crate::record::{Replay, WireMessage, digest, next_record, read_message, record_len};

/// Bytes read beyond a body at first: the record's other fields.
const HEAD_BYTES: usize = 256;
const FILES_MAX: usize = 64;

fn segment_name(number: u32) -> String {
    format!("{number:016x}.seg")
}

fn number_of(name: &str, end: &str) -> Option<u32> {
    u32::from_str_radix(name.strip_suffix(end)?, 16).ok()
}

/// What a data directory says, read as a start would read it.
pub(super) struct Kept {
    pub path: PathBuf,
    pub identity: Identity,
    pub disk: Disk,
    pub scan: Scan,
    pub partitions: Vec<(Replay, u64)>,
    _directory: Option<Directory>,
}

/// The identity of a directory that must have one.
pub(super) fn identity(path: &Path) -> Result<Identity, String> {
    if let Some(identity) = Directory::identity_at(path)? {
        return Ok(identity);
    }
    let names = Disk { path: path.join("log") }.list().unwrap_or_default();
    Err(if names.iter().any(|n| number_of(n, ".seg").is_some()) {
        format!(
            "{}: roost.json is missing, and with it the key and the partitions of the segments in log/; put it back from a \
             copy, or import an export into an empty directory",
            path.display()
        )
    } else {
        format!("{}: holds no data of a broker (there is no roost.json)", path.display())
    })
}

impl Kept {
    /// Reads it; `lock` takes the directory for as long as this lives.
    pub fn open(path: &Path, lock: bool) -> Result<Self, String> {
        let mut identity_now = identity(path)?;
        let directory = if lock { Some(Directory::open(path)?) } else { None };
        if lock {
            identity_now = identity(path)?;
        }
        let disk = Disk { path: path.join("log") };
        let (scan, partitions) = replay(&disk, &identity_now).map_err(|e| format!("{}: {e}", path.display()))?;
        Ok(Self { path: path.to_owned(), identity: identity_now, disk, scan, partitions, _directory: directory })
    }

    fn fail(&self, e: &io::Error) -> String {
        format!("{}: {e}", self.path.display())
    }
}

/// Reads bodies by their address.
pub(super) struct Bodies<'a> {
    storage: &'a dyn Storage,
    files: HashMap<u32, Box<dyn File>>,
}

impl<'a> Bodies<'a> {
    pub fn new(storage: &'a dyn Storage) -> Self {
        Self { storage, files: HashMap::new() }
    }

    /// Shows the message at an address, whose texts have `len` bytes, or says what is wrong with it.
    pub fn read<T>(&mut self, at: u64, len: u32, show: impl FnOnce(WireMessage<'_>) -> T) -> Result<T, String> {
        let number = segment_of(at);
        if at == 0 {
            return Err("its body is nowhere in the log".to_owned());
        }
        if !self.files.contains_key(&number) {
            if self.files.len() >= FILES_MAX {
                self.files.clear();
            }
            let file = self.storage.open(&segment_name(number), false).map_err(|e| format!("its body: {e}"))?;
            self.files.insert(number, file);
        }
        let Some(file) = self.files.get(&number) else { return Err("its segment is not open".to_owned()) };
        let read = |len: usize| file.read_at(len, offset_of(at).into()).map_err(|e| format!("its body: {e}"));
        let mut bytes = read(len as usize + HEAD_BYTES)?;
        match record_len(&bytes) {
            Some(whole) if whole > bytes.len() && whole - bytes.len() <= len as usize + (1 << 24) => {
                bytes = read(whole)?
            }
            _ => {}
        }
        match next_record(&mut bytes.as_slice()) {
            Ok(Some((body, true))) => read_message(body).map(show).map_err(|e| format!("its body is damaged: {}", e.0)),
            _ => Err("its body is damaged (its CRC is wrong)".to_owned()),
        }
    }
}

/// Where an address is, as damage names it.
pub(super) fn place(at: u64) -> String {
    format!("{} at {}", segment_name(segment_of(at)), offset_of(at))
}

pub(super) fn damaged(found: &[Damage]) -> Vec<Value> {
    found.iter().map(|d| json!({"where": d.place, "what": d.what})).collect()
}

fn torn(scan: &Scan) -> Value {
    scan.torn.as_ref().map_or(Value::Null, |t| json!({"where": t.place, "bytes": t.bytes}))
}

/// What is in a directory that no broker uses: JSON object with `version`, `incarnation`, `partitions`, `segments`
/// (`number`, `bytes`, `state`: `bodies` before the checkpoint, `log`, `spare`), `log_bytes`, `checkpoint` (null, or
/// `segment` and `offset`), `sessions`, `subscriptions`, `queued`, `queued_bytes`, `retained`, `groups`, `digests` by
/// partition, `damaged` (`where`, `what`), `torn` (null, or `where` and `bytes`).
///
/// # Errors
/// It is in use, of a newer version, without `roost.json`, or cannot be read.
pub fn inspect(dir: &str) -> Result<String, String> {
    let kept = Kept::open(Path::new(dir), true)?;
    let segments = segments(&kept).map_err(|e| kept.fail(&e))?;
    let (mut sessions, mut subscriptions, mut retained, mut groups) = (0, 0, 0, 0);
    let (mut queued, mut queued_bytes) = (0, 0);
    let mut digests = serde_json::Map::new();
    for ((replay, _), number) in kept.partitions.iter().zip(0u32..) {
        let state = &replay.state;
        sessions += state.len();
        retained += state.retained.len();
        groups += state.groups().len();
        for (_, s) in state.each() {
            subscriptions += s.subscriptions.len();
            queued += s.queue.iter().filter(|(_, e)| e.needs_body()).count();
            queued_bytes += s.queue.bytes();
        }
        for (_, message, with) in state.groups().flat_map(|g| g.unfinished()) {
            // what a member has stands in its queue
            if with.is_none() {
                queued += 1;
                queued_bytes += message.len();
            }
        }
        digests.insert(number.to_string(), format!("{:016x}", digest(state)).into());
    }
    let log_bytes: u64 = segments.iter().map(|s| s.1).sum();
    let listed: Vec<Value> = segments
        .iter()
        .map(|(number, bytes, state)| json!({"number": number, "bytes": bytes, "state": state}))
        .collect();
    let checkpoint = kept.identity.checkpoint.map(|at| json!({"segment": segment_of(at), "offset": offset_of(at)}));
    Ok(json!({
        "version": kept.identity.format, "incarnation": kept.identity.incarnation,
        "partitions": kept.identity.partitions, "segments": listed, "log_bytes": log_bytes, "checkpoint": checkpoint,
        "sessions": sessions, "subscriptions": subscriptions, "queued": queued, "queued_bytes": queued_bytes,
        "retained": retained, "groups": groups, "digests": digests, "damaged": damaged(&kept.scan.damaged),
        "torn": torn(&kept.scan),
    })
    .to_string())
}

fn segments(kept: &Kept) -> io::Result<Vec<(u32, u64, &'static str)>> {
    let first = kept.identity.checkpoint.map_or(0, segment_of);
    let state = |number: u32| if number < first { "bodies" } else { "log" };
    let mut all: Vec<_> = kept.scan.segments.iter().map(|(number, bytes)| (*number, *bytes, state(*number))).collect();
    for name in kept.disk.list()? {
        if let Some(number) = number_of(&name, ".spare") {
            all.push((number, kept.disk.open(&name, false)?.len()?, "spare"));
        }
    }
    all.sort_unstable();
    Ok(all)
}

/// Reads every record from the oldest segment on, the state from the checkpoint on, and every body that is wanted: JSON
/// object with `ok`, `checked_records`, `checked_bytes`, `damaged`, `torn`, `choices` (texts: what can be done).
///
/// # Errors
/// As [`inspect`].
pub fn verify(dir: &str) -> Result<String, String> {
    let kept = Kept::open(Path::new(dir), true)?;
    let mut found = kept.scan.damaged.clone();
    let (mut records, mut bytes) = (0, 0);
    for names in runs(&kept) {
        // the first segment of a run may follow one that was given back, which is no damage
        let first = names.first().and_then(|n| number_of(n, ".seg"));
        let from = kept.identity.checkpoint.and(first).map(|n| address(n, FIRST));
        let run = Run { disk: &kept.disk, names };
        let expected = Some((kept.identity.partitions, key_check(&kept.identity.key)));
        let scan = scan(&run, from, expected, &mut |_, _, _| Ok(())).map_err(|e| kept.fail(&e))?;
        records += scan.records;
        bytes += scan.bytes;
        found.extend(scan.damaged);
    }
    let mut bodies = Bodies::new(&kept.disk);
    for (_, s) in kept.partitions.iter().flat_map(|(replay, _)| replay.state.each()) {
        for (index, e) in s.queue.iter().filter(|(_, e)| e.needs_body()) {
            if let Err(what) = bodies.read(e.at, e.len, |_| ()) {
                let what = format!("message {index} of session {} of `{}`: {what}", Uid(s.uid), s.client_id);
                found.push(Damage { place: place(e.at), what });
            }
        }
    }
    let mut seen = BTreeSet::new();
    found.retain(|d| seen.insert((d.place.clone(), d.what.clone())));
    Ok(json!({
        "ok": found.is_empty(), "checked_records": records, "checked_bytes": bytes, "damaged": damaged(&found),
        "torn": torn(&kept.scan), "choices": choices(&kept, &found),
    })
    .to_string())
}

fn choices(kept: &Kept, found: &[Damage]) -> Vec<String> {
    if found.is_empty() {
        return Vec::new();
    }
    let dir = kept.path.display();
    vec![
        "start the broker as it is: it leaves out what is damaged, names it in its log, and serves the rest".to_owned(),
        format!(
            "take what can be read to a new directory: roost data export {dir} FILE, then roost data import NEW FILE"
        ),
        "go back to an export made before: roost data import NEW FILE; what came after it is lost".to_owned(),
        "in any case keep a copy of the directory, and check the disk it is on".to_owned(),
    ]
}

/// Segments that follow each other without a gap. Before the checkpoint gaps are as they should be: what nobody wants
/// any more was given back.
fn runs(kept: &Kept) -> Vec<Vec<String>> {
    let first = kept.identity.checkpoint.map_or(0, segment_of);
    let mut runs: Vec<Vec<String>> = Vec::new();
    let mut before = None;
    for &number in kept.scan.segments.keys() {
        let follows = before.is_some_and(|b| b + 1 == number || number > first);
        match runs.last_mut().filter(|_| follows) {
            Some(run) => run.push(segment_name(number)),
            None => runs.push(vec![segment_name(number)]),
        }
        before = Some(number);
    }
    runs
}

/// Some of the files of a folder, to be read.
struct Run<'a> {
    disk: &'a Disk,
    names: Vec<String>,
}

impl Storage for Run<'_> {
    fn open(&self, name: &str, _create: bool) -> io::Result<Box<dyn File>> {
        self.disk.open(name, false)
    }

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.names.clone())
    }

    fn rename(&self, _from: &str, _to: &str) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn remove(&self, _name: &str) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn sync_names(&self) -> io::Result<()> {
        Ok(())
    }
}
