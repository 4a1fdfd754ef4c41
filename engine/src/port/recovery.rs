//! The start of a data directory: whose it is, what its log says, and where the log goes on.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde_json::json;

use super::clock::{DOWN_MS_MAX, unix_ms};
use super::{Clock, Shared};
use crate::lane::{LaneMessage, Mailbox, Recovered};
use crate::log::{
    Checkpoints, Damage, Directory, Disk, DiskLog, Identity, LogReader, Notify, Options, Scan, Storage, Writer, scan,
    segment_name, segment_of,
};
use crate::partition::Resumed;
use crate::record::{Replay, Replayed};
use crate::ring::siphash;
use crate::settings::DataSettings;
use crate::stats::LedgerEntry;

/// Bytes of a segment.
pub const SEGMENT_BYTES: u32 = 32 * 1024 * 1024;

/// How often a lane that begins anew tries to read the log.
const READ_ATTEMPTS: u64 = 6;

/// What the log knew.
pub struct Opened {
    directory: Directory,
    identity: Identity,
    scan: Scan,
    writer: Writer,
    partitions: Vec<(Replay, u64)>,
    /// Key of the hash.
    pub key: String,
    /// Time that has passed since the log ended, as far as the wall clock can be believed.
    down_ms: u64,
}

/// Check that segments carry of the key.
#[must_use]
pub fn key_check(key: &str) -> u64 {
    super::shared::key(Some(key)).map_or(0, |key| siphash(key, b"roostmq"))
}

/// Reads partitions from a log. Every record is shown to the partition that it belongs to.
///
/// # Errors
/// A file cannot be read, or belongs to another broker or a newer version.
pub fn replay(storage: &dyn Storage, identity: &Identity) -> Result<(Scan, Vec<(Replay, u64)>), String> {
    let partitions = u16::try_from(identity.partitions).unwrap_or(u16::MAX);
    let mut all: Vec<(Replay, u64)> = (0..partitions).map(|p| (Replay::new(p), 0)).collect();
    let expected = Some((identity.partitions, key_check(&identity.key)));
    let scan = scan(storage, identity.checkpoint, expected, &mut |head, body, at| {
        let Some((replay, last)) = all.get_mut(usize::from(head.partition)) else { return Err("unknown partition") };
        *last = (*last).max(head.first + u64::from(head.count) - 1);
        match replay.record(body, at) {
            Ok(Replayed::Applied | Replayed::Skipped) => Ok(()),
            Err(error) => Err(error.0),
        }
    });
    let mut scan = scan.map_err(|e| e.to_string())?;
    let mut missing: BTreeMap<u32, u64> = BTreeMap::new();
    for (replay, _) in &all {
        for e in replay.state.each().flat_map(|(_, s)| s.queue.iter()).map(|(_, e)| e).filter(|e| e.at != 0) {
            let segment = segment_of(e.at);
            if !scan.segments.contains_key(&segment) {
                *missing.entry(segment).or_default() += 1;
            }
        }
    }
    let lost = missing.into_iter().map(|(segment, n)| Damage {
        place: segment_name(segment),
        what: format!("the segment is missing, and with it the bodies of {n} queued messages"),
    });
    scan.damaged.extend(lost);
    Ok((scan, all))
}

/// What the log knows of the partitions of one lane, read again while the broker runs: after a panic of that lane.
#[must_use]
pub fn reread(shared: &Shared, lane: u16, now_ms: u64) -> (Recovered, Resumed) {
    let resumed = Resumed { incarnation: shared.incarnation, last: 0, ended_ms: now_ms, now_ms };
    let (Some(log), Some((dir, identity))) = (&shared.log, &shared.data) else { return (Recovered::new(), resumed) };
    let identity = Identity { checkpoint: log.before_reading(), ..identity.clone() };
    let disk = Disk { path: dir.clone() };
    // what cannot be read for a moment (no descriptors) must not count as gone
    let mut read = replay(&disk, &identity);
    for attempt in 1..READ_ATTEMPTS {
        if read.is_ok() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(attempt * 100));
        read = replay(&disk, &identity);
    }
    log.hold(false);
    match read {
        Ok((_, all)) => {
            let mine = (0..).zip(all).filter(|(number, _)| shared.ring.home(*number) == lane);
            let mine = mine.map(|(number, (replay, last))| (number, (replay, Resumed { last, ..resumed })));
            (mine.collect(), resumed)
        }
        Err(error) => {
            shared.events.damaged("log", &error);
            (Recovered::new(), resumed)
        }
    }
}

fn has_segments(directory: &Directory) -> bool {
    let names = Disk { path: directory.log() }.list().unwrap_or_default();
    names.iter().any(|name| name.ends_with(".seg"))
}

/// Opens the directory and reads its log.
///
/// # Errors
/// It is in use, belongs to another broker, is of a newer version, or cannot be read or written.
pub fn open(settings: &DataSettings, partitions: usize, key: Option<&str>) -> Result<Opened, String> {
    let path = Path::new(&settings.dir);
    let directory = Directory::open(path)?;
    let new = || Identity::new(u32::try_from(partitions).unwrap_or(64), super::random_name());
    let mut identity = match directory.identity()? {
        Some(identity) => identity,
        None if has_segments(&directory) => {
            return Err(format!(
                "{}: there is a log and no roost.json: bring it back from a backup, or begin with an empty directory",
                path.display()
            ));
        }
        None => Identity { key: key.map_or_else(super::random_name, str::to_owned), ..new() },
    };
    if identity.partitions as usize != partitions {
        return Err(format!(
            "{}: the data has {} partitions, the configuration says {partitions}: write partitions = {}",
            path.join("roost.json").display(),
            identity.partitions,
            identity.partitions
        ));
    }
    if key.is_some_and(|key| *key != *identity.key) {
        return Err(format!("{}: the data was written with another key; take the key out", path.display()));
    }
    identity.incarnation += 1;
    let written = directory.set_identity(&identity);
    written.map_err(|e| format!("{}: cannot write to the data directory: {e}", path.display()))?;
    let storage: Arc<dyn Storage> = Arc::new(Disk { path: directory.log() });
    let at_path = |e: String| format!("{}: {e}", path.display());
    let newest = identity.newest;
    let check = (identity.partitions, key_check(&identity.key));
    let writer = Writer::settled(&storage, check, SEGMENT_BYTES, newest).map_err(|e| at_path(e.to_string()))?;
    let (mut scan, partitions) = replay(&*storage, &identity).map_err(at_path)?;
    if newest > 0 && !scan.segments.contains_key(&newest) {
        let what = "the newest segment is missing; what was written last is lost".to_owned();
        scan.damaged.push(Damage { place: segment_name(newest), what });
    }
    identity.newest = writer.newest();
    directory.set_identity(&identity).map_err(|e| at_path(format!("cannot write to the data directory: {e}")))?;
    let down_ms = match scan.unix_ms {
        0 => 0,
        ended => unix_ms().saturating_sub(ended).min(DOWN_MS_MAX),
    };
    let key = identity.key.clone();
    Ok(Opened { directory, identity, scan, writer, partitions, key, down_ms })
}

impl Opened {
    /// Engine time now.
    fn now_ms(&self) -> u64 {
        self.scan.now_ms + self.down_ms
    }

    /// The clock that goes on where the log ended.
    #[must_use]
    pub fn clock(&self) -> Clock {
        let behind = self.scan.unix_ms > unix_ms();
        Clock::resumed(self.now_ms(), behind.then_some(self.scan.unix_ms))
    }

    /// What a partition of this log resumes with.
    #[must_use]
    pub fn resumed(&self) -> Resumed {
        let (incarnation, ended_ms) = (self.identity.incarnation, self.scan.now_ms);
        Resumed { incarnation, last: 0, ended_ms, now_ms: self.now_ms().max(1_000) }
    }

    /// The partitions, for the lanes that own them.
    pub fn deal(&mut self, shared: &Shared) -> Vec<Recovered> {
        let resumed = self.resumed();
        let mut dealt: Vec<Recovered> = (0..shared.ring.lanes()).map(|_| Recovered::new()).collect();
        for ((replay, last), number) in std::mem::take(&mut self.partitions).into_iter().zip(0..) {
            if let Some(mine) = dealt.get_mut(usize::from(shared.ring.home(number))) {
                mine.insert(number, (replay, Resumed { last, ..resumed }));
            }
        }
        dealt
    }

    /// Tells what was found, in events.
    pub fn report(&self, shared: &Shared, took_ms: u64) {
        shared.damaged.fetch_add(self.scan.damaged.len(), std::sync::atomic::Ordering::Relaxed);
        let ledger: Vec<serde_json::Value> =
            self.directory.read("ledger.json").and_then(|b| serde_json::from_slice(&b).ok()).unwrap_or_default();
        shared.ledgers.remember(ledger.iter().filter_map(LedgerEntry::from_json).collect());
        for Damage { place, what } in &self.scan.damaged {
            shared.events.damaged(place, what);
        }
        let (mut sessions, mut queued, mut retained) = (0, 0, 0);
        for (replay, _) in &self.partitions {
            sessions += replay.state.len();
            queued += replay.state.each().map(|(_, s)| s.queue.waiting()).sum::<usize>();
            retained += replay.state.retained.len();
        }
        shared.events.push(json!({
            "event": "recovered", "sessions": sessions, "queued": queued, "retained": retained,
            "damaged": self.scan.damaged.len(), "took_ms": took_ms, "down_ms": self.down_ms,
            "torn": self.scan.torn.as_ref().map(|t| json!({"where": t.place, "bytes": t.bytes})),
        }));
    }

    /// Starts the log where the old one ended, and the thread that reads bodies.
    ///
    /// # Errors
    /// The operating system refuses.
    pub fn start(self, settings: &DataSettings, shared: &mut Shared) -> Result<(), String> {
        shared.incarnation = self.identity.incarnation;
        shared.data = Some((self.directory.log(), self.identity.clone()));
        let storage: Arc<dyn Storage> = Arc::new(Disk { path: self.directory.log() });
        let mailboxes = Arc::clone(&shared.mailboxes);
        let notify: Notify = Arc::new(move |lane, event| {
            if let Some(mailbox) = mailboxes.get(usize::from(lane)) {
                Mailbox::post(mailbox, lane, vec![LaneMessage::Log(event)]);
            }
        });
        let events = Arc::clone(&shared.events);
        let (queued, clock) = (Arc::clone(&shared.queued), Arc::clone(&shared.clock));
        let retained = Arc::clone(&shared.retained);
        let (ledgers, folder) = (Arc::clone(&shared.ledgers), self.directory.folder());
        let options = Options {
            sync_every_ms: settings.sync_every_ms,
            lanes: usize::from(shared.ring.lanes()),
            notify: Arc::clone(&notify),
            report: Arc::new(move |error| events.disk(error.as_deref())),
            tend: Arc::new(move || {
                clock.catch_up();
                if let Some(text) = ledgers.text() {
                    let _ = folder.replace("ledger.json", &text); // tried again with the next drop
                }
                (queued.totals().1 + retained.totals().1) as u64
            }),
            failing: Arc::clone(&shared.disk_failing),
            settling: Arc::clone(&shared.disk_settling),
        };
        let checkpoints = Checkpoints::new(options.lanes, settings.checkpoint_bytes_min, self.scan.bytes);
        shared.reader = Some(LogReader::start(storage, notify).map_err(|e| format!("no thread: {e}"))?);
        let log = DiskLog::start(self.writer, checkpoints, self.directory, self.identity, options);
        shared.log = Some(log.map_err(|e| format!("no thread: {e}"))?);
        Ok(())
    }
}
