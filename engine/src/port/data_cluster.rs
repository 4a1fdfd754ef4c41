//! Fills the empty log of a cluster from an export file: the broker of a single machine goes on as a cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use super::OpenLog;
use super::clock::unix_ms;
use super::data_build::Target;
use super::data_import::{build, numbers, open};
use crate::log::{Anchor, Batch, ClusterLog, ClusterLogEvent, ClusterLogNotify, ClusterLogState, Fence};
use crate::record::{Replay, digest, next_record};
use crate::settings::NatsSettings;

/// Nothing has come of it for so long: it is given up.
const PATIENCE: Duration = Duration::from_secs(60);
/// More is not under way at a time, bytes.
const BACKLOG_BYTES_MAX: usize = 16 << 20;

/// Writes an export file into the logs of a cluster that has none of its own yet, reads them again, and compares the
/// digests: JSON object with the numbers of `sessions`, `subscriptions`, `messages` and `retained`. Their epoch is one
/// above the incarnation of the broker that was exported, so that no name is given twice.
///
/// # Errors
/// NATS cannot be used; a log holds something; the file cannot be read or is not what the format says.
pub fn import_cluster(file: &str, nats: &str, open_log: OpenLog<'_>) -> Result<String, String> {
    let settings: NatsSettings = serde_json::from_str(nats).map_err(|e| format!("settings: {e}"))?;
    let (mut lines, header) = open(file)?;
    let (tell, told) = channel();
    let notify: ClusterLogNotify = Arc::new(move |event| drop(tell.send(event)));
    let partitions = u16::try_from(header.partitions).unwrap_or(1);
    let place = OnCluster { log: open_log(&settings, notify)?, told, under_way: BTreeMap::new() };
    place.fence(partitions, header.incarnation + 1)?;
    let (end, states, mut place) = build(place, &header, &mut lines, unix_ms())?;
    let read = place.read(partitions)?;
    let same = |(state, replay): (_, &Replay)| digest(state) == digest(&replay.state);
    match states.iter().zip(&read).position(|pair| !same(pair)) {
        None => Ok(numbers(&end).to_string()),
        Some(p) => Err(format!("partition {p}: what was written is not what is read back")),
    }
}

struct OnCluster {
    log: Arc<dyn ClusterLog>,
    told: Receiver<ClusterLogEvent>,
    /// Numbers of the last batches that are not safe, by partition.
    under_way: BTreeMap<u16, u64>,
}

impl OnCluster {
    /// The next event of a partition.
    fn event(&self) -> Result<ClusterLogEvent, String> {
        let mut away = "NATS does not answer".to_owned();
        loop {
            match self.told.recv_timeout(PATIENCE) {
                Ok(ClusterLogEvent::State(ClusterLogState::Ready)) => {}
                Ok(ClusterLogEvent::State(ClusterLogState::Away(why))) => away = why,
                Ok(ClusterLogEvent::State(ClusterLogState::Unsuitable(why))) => return Err(why.join("; ")),
                Ok(event) => return Ok(event),
                Err(RecvTimeoutError::Timeout) => return Err(away),
                Err(RecvTimeoutError::Disconnected) => return Err("the log has ended".to_owned()),
            }
        }
    }

    /// The next one that is no trouble.
    fn next(&self) -> Result<ClusterLogEvent, String> {
        match self.event()? {
            ClusterLogEvent::Damaged { partition, why } => Err(format!("partition {partition}: {why}")),
            ClusterLogEvent::Resigned { partition, epoch } => {
                Err(format!("partition {partition}: somebody else writes it, with epoch {epoch}"))
            }
            ClusterLogEvent::Full { full: true, .. } => {
                Err("the streams in NATS are full: give them more room".to_owned())
            }
            event => Ok(event),
        }
    }

    fn fence(&self, partitions: u16, epoch: u32) -> Result<(), String> {
        (0..partitions).for_each(|partition| self.log.fence(Fence { partition, epoch, ..Fence::default() }));
        let mut missing: BTreeSet<u16> = (0..partitions).collect();
        while !missing.is_empty() {
            let held = match self.event()? {
                ClusterLogEvent::Read { partition, appends } if appends.iter().any(|a| a.header.count > 0) => partition,
                ClusterLogEvent::Damaged { partition, .. } | ClusterLogEvent::Resigned { partition, .. } => partition,
                ClusterLogEvent::Fenced { partition, .. } => {
                    missing.remove(&partition);
                    continue;
                }
                _ => continue,
            };
            return Err(format!(
                "the log of partition {held} holds something already: an import needs new streams; delete those of this \
                 cluster if they are of an import that was cut off"
            ));
        }
        Ok(())
    }

    /// Waits until so much is under way at most.
    fn drain(&mut self, most: usize) -> Result<(), String> {
        while self.log.waiting() > most || most == 0 && !self.under_way.is_empty() {
            if let ClusterLogEvent::Safe { partition, number, .. } = self.next()? {
                if self.under_way.get(&partition).is_some_and(|last| *last <= number) {
                    self.under_way.remove(&partition);
                }
            }
        }
        Ok(())
    }

    /// What the logs hold now.
    fn read(&mut self, partitions: u16) -> Result<Vec<Replay>, String> {
        let mut all: Vec<Replay> = (0..partitions).map(Replay::with_bodies).collect();
        (0..partitions).for_each(|partition| self.log.read(partition, Anchor::default()));
        let mut missing: BTreeSet<u16> = (0..partitions).collect();
        while !missing.is_empty() {
            match self.next()? {
                ClusterLogEvent::Read { partition, appends } => {
                    let Some(replay) = all.get_mut(usize::from(partition)) else { continue };
                    for append in &appends {
                        replay_all(replay, &append.records).map_err(|what| format!("partition {partition}: {what}"))?;
                    }
                }
                ClusterLogEvent::Again { partition } => {
                    all.get_mut(usize::from(partition)).into_iter().for_each(|r| *r = Replay::with_bodies(partition));
                }
                ClusterLogEvent::ReadEnd { partition, .. } => drop(missing.remove(&partition)),
                _ => {}
            }
        }
        (0..partitions).for_each(|partition| self.log.release(partition));
        Ok(all)
    }
}

fn replay_all(replay: &mut Replay, mut records: &[u8]) -> Result<(), &'static str> {
    while let Some((body, sound)) = next_record(&mut records).map_err(|e| e.0)? {
        if !sound {
            return Err("a record's CRC is wrong");
        }
        replay.record(body, 0).map_err(|e| e.0)?;
    }
    Ok(())
}

impl Target for OnCluster {
    fn put(&mut self, batches: Vec<Batch>) -> io::Result<()> {
        for batch in batches {
            self.under_way.insert(batch.partition, batch.number);
            self.log.append(batch.counted_from_0());
        }
        self.drain(BACKLOG_BYTES_MAX).map_err(io::Error::other)
    }

    fn end(&mut self) -> io::Result<()> {
        self.drain(0).map_err(io::Error::other)
    }
}
