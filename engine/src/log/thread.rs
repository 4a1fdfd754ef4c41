//! The thread that owns the end of the log: takes what all lanes have written meanwhile, writes and syncs it as one
//! group, tells the lanes, and looks after checkpoints. No lane ever waits in it.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::checkpoint::Checkpoints;
use super::directory::{Directory, Identity};
use super::emptying::Emptying;
use super::writer::{Located, Writer};
use super::{LogEvent, Notify, Piece};

/// How long it waits before it tries a disk in trouble again.
const RETRY: Duration = Duration::from_millis(200);
/// So long nobody is read when a disk in trouble takes again, before anything is accepted: what lanes have sent each other by then is
/// refused, and its publisher hears of it before another of his messages can be accepted.
const SETTLE: Duration = Duration::from_millis(100);
/// How often it looks after checkpoints when nothing is written.
const IDLE: Duration = Duration::from_millis(500);
/// How soon it reads the next slice of a segment that shall be emptied: the core has other work.
const SLICE: Duration = Duration::from_micros(500);

/// What the log is asked to do.
#[derive(Clone)]
pub struct Options {
    /// 0: a group is synced before anything in it is acknowledged. Otherwise it is acknowledged when it is written, and
    /// synced at most so much later.
    pub sync_every_ms: u64,
    /// Number of lanes.
    pub lanes: usize,
    /// Where events go.
    pub notify: Notify,
    /// What people are told of the disk: `None` when it is well again.
    pub report: Arc<dyn Fn(Option<String>) + Send + Sync>,
    /// Called again and again; bytes that somebody waits for.
    pub tend: Arc<dyn Fn() -> u64 + Send + Sync>,
    /// Set while the disk takes nothing, and for `SETTLE` afterwards.
    pub failing: Arc<AtomicBool>,
    /// Set in that time: nobody is read.
    pub settling: Arc<AtomicBool>,
}

/// Numbers of the log for metrics.
#[derive(Debug, Default)]
pub struct LogStats {
    /// Groups written.
    pub groups: AtomicU64,
    /// Bytes handed to the operating system.
    pub bytes_written: AtomicU64,
    /// Records written.
    pub records: AtomicU64,
    /// Checkpoints completed.
    pub checkpoints: AtomicU64,
    /// Address of the last one; 0 is none.
    pub checkpoint: AtomicU64,
    /// 1 while one is written.
    pub checkpoint_running: AtomicU64,
    /// Bytes on disk.
    pub bytes: AtomicU64,
    /// Segments.
    pub segments: AtomicU64,
}

#[derive(Default)]
struct Inbox {
    pieces: Vec<Piece>,
    closing: bool,
    /// Lanes that have begun anew, counted.
    restarts: u64,
}

#[derive(Default)]
struct Desk {
    inbox: Mutex<Inbox>,
    bell: Condvar,
    /// Bytes that wait to be written.
    waiting: AtomicUsize,
    /// So many read segments: none is given back.
    held: AtomicUsize,
    /// Restarts of lanes of which the thread knows: what was handed over before them is written.
    rested: AtomicU64,
    /// The broker ends: nobody waits for a disk any more.
    ending: AtomicBool,
}

/// The log of this process.
pub struct DiskLog {
    desk: Arc<Desk>,
    /// For metrics.
    pub stats: Arc<LogStats>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl std::fmt::Debug for DiskLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DiskLog").field("stats", &self.stats).finish_non_exhaustive()
    }
}

impl DiskLog {
    /// Starts the thread behind what was recovered.
    ///
    /// # Errors
    /// The operating system refuses a thread.
    pub fn start(
        writer: Writer,
        checkpoints: Checkpoints,
        directory: Directory,
        identity: Identity,
        options: Options,
    ) -> io::Result<Self> {
        let (desk, stats) = (Arc::<Desk>::default(), Arc::<LogStats>::default());
        let mut work = Work {
            desk: Arc::clone(&desk),
            stats: Arc::clone(&stats),
            writer,
            checkpoints,
            directory,
            identity,
            options,
            unsynced: None,
            now_ms: 0,
            walks: VecDeque::new(),
            emptying: None,
            restarts: 0,
            takes_since: None,
        };
        work.measure();
        let thread = std::thread::Builder::new().name("log".to_owned()).spawn(move || work.run())?;
        Ok(Self { desk, stats, thread: Mutex::new(Some(thread)) })
    }

    /// Hands over what a lane's partitions wrote. Safe when the event says so.
    pub fn append(&self, piece: Piece) {
        let bytes: usize = piece.batches.iter().map(|b| b.records.len() + 64).sum();
        self.desk.waiting.fetch_add(bytes, Ordering::Relaxed);
        let first = self.desk.inbox.lock().is_ok_and(|mut inbox| {
            inbox.pieces.push(piece);
            inbox.pieces.len() == 1
        });
        if first {
            self.desk.bell.notify_one();
        }
    }

    /// Bytes that wait to be written: above a bound, lanes do not read from publishers.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.desk.waiting.load(Ordering::Relaxed)
    }

    /// A lane has begun anew and reads its partitions again. Waits, also for a disk in trouble, until everything that it
    /// had handed over is written and a checkpoint under way is given up: what is read without that would be written over
    /// by it later. Returns where the last complete checkpoint begins; until `hold(false)` no segment is given back.
    pub fn before_reading(&self) -> Option<u64> {
        self.hold(true);
        let ticket = self.desk.inbox.lock().map_or(0, |mut inbox| {
            inbox.restarts += 1;
            inbox.restarts
        });
        self.desk.bell.notify_one();
        while self.desk.rested.load(Ordering::Acquire) < ticket && !self.desk.ending.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(1));
        }
        Some(self.stats.checkpoint.load(Ordering::Relaxed)).filter(|at| *at != 0)
    }

    /// While segments are read from outside none is given back. Each `true` is followed by a `false`.
    pub fn hold(&self, held: bool) {
        let held_by = &self.desk.held;
        if held {
            held_by.fetch_add(1, Ordering::Relaxed)
        } else {
            held_by.fetch_sub(1, Ordering::Relaxed)
        };
    }

    /// The broker ends: a lane that waits for the disk waits no more.
    pub fn end_waiting(&self) {
        self.desk.ending.store(true, Ordering::Relaxed);
    }

    /// Writes what waits, says that the log ends here as it should, and ends the thread.
    pub fn close(&self) {
        if let Ok(mut inbox) = self.desk.inbox.lock() {
            inbox.closing = true;
        }
        self.desk.bell.notify_one();
        let thread = self.thread.lock().ok().and_then(|mut t| t.take());
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }
}

impl Drop for DiskLog {
    fn drop(&mut self) {
        self.close();
    }
}

struct Work {
    desk: Arc<Desk>,
    stats: Arc<LogStats>,
    writer: Writer,
    checkpoints: Checkpoints,
    directory: Directory,
    identity: Identity,
    options: Options,
    /// Since when something is written and not synced (`sync_every_ms`).
    unsynced: Option<Instant>,
    now_ms: u64,
    /// What walks found, until it is synced.
    walks: VecDeque<super::Walked>,
    /// What the next checkpoint shall empty, while it is read.
    emptying: Option<Emptying>,
    /// Restarts of lanes that were seen.
    restarts: u64,
    /// Since when a disk that was in trouble takes again.
    takes_since: Option<Instant>,
}

impl Work {
    fn run(&mut self) {
        loop {
            let (pieces, closing, restarts) = self.next();
            if !pieces.is_empty() && !self.write_until_safe(pieces) {
                return;
            }
            self.sync_when_due(closing);
            self.try_again();
            self.look_after_checkpoints();
            self.measure();
            self.desk.rested.store(restarts, Ordering::Release);
            if closing && self.desk.inbox.lock().is_ok_and(|i| i.pieces.is_empty()) {
                let _ = self.writer.end_cleanly(self.now_ms, unix_ms());
                return;
            }
        }
    }

    fn next(&mut self) -> (Vec<Piece>, bool, u64) {
        let wait = match self.unsynced {
            _ if self.emptying.is_some() => SLICE,
            _ if self.takes_since.is_some() => SETTLE,
            Some(since) => Duration::from_millis(self.options.sync_every_ms).saturating_sub(since.elapsed()),
            None => IDLE,
        };
        let Ok(mut inbox) = self.desk.inbox.lock() else { return (Vec::new(), true, 0) };
        if inbox.pieces.is_empty() && !inbox.closing && inbox.restarts == self.restarts {
            inbox = match self.desk.bell.wait_timeout(inbox, wait) {
                Ok((inbox, _)) => inbox,
                Err(_) => return (Vec::new(), true, 0),
            };
        }
        if self.restarts != inbox.restarts {
            self.restarts = inbox.restarts;
            self.checkpoints.give_up();
            self.stats.checkpoint_running.store(0, Ordering::Relaxed);
        }
        (std::mem::take(&mut inbox.pieces), inbox.closing, inbox.restarts)
    }

    /// Writes the pieces, again and again while the disk refuses. False if the broker ended meanwhile.
    fn write_until_safe(&mut self, mut pieces: Vec<Piece>) -> bool {
        let sync = self.options.sync_every_ms == 0;
        let bytes: usize = pieces.iter().flat_map(|p| &p.batches).map(|b| b.records.len() + 64).sum();
        loop {
            match self.writer.write(&pieces, unix_ms(), sync) {
                Ok(located) => {
                    self.name_newest();
                    self.well_again();
                    self.desk.waiting.fetch_sub(bytes, Ordering::Relaxed);
                    self.count(&pieces);
                    self.tell(&pieces, &located);
                    for piece in &mut pieces {
                        self.now_ms = self.now_ms.max(piece.now_ms);
                        self.walks.extend(piece.walked.take());
                    }
                    if !sync && self.unsynced.is_none() {
                        self.unsynced = Some(Instant::now());
                    }
                    return true;
                }
                Err(error) => self.in_trouble(&error),
            }
            if self.desk.inbox.lock().is_ok_and(|inbox| inbox.closing) {
                return false; // nothing in the group was acknowledged
            }
            std::thread::sleep(RETRY);
        }
    }

    /// The directory knows of every segment that holds something acknowledged. A failure is made good with the next group.
    fn name_newest(&mut self) {
        let newest = self.writer.newest();
        if newest != self.identity.newest {
            let identity = Identity { newest, ..self.identity.clone() };
            if self.directory.set_identity(&identity).is_ok() {
                self.identity = identity;
            }
        }
    }

    fn in_trouble(&mut self, error: &io::Error) {
        self.takes_since = None;
        self.options.settling.store(false, Ordering::Relaxed);
        if !self.options.failing.swap(true, Ordering::Relaxed) {
            (self.options.report)(Some(error.to_string()));
        }
    }

    fn well_again(&mut self) {
        if !self.options.failing.load(Ordering::Relaxed) {
            return;
        }
        let since = *self.takes_since.get_or_insert_with(Instant::now);
        if since.elapsed() < SETTLE {
            return self.options.settling.store(true, Ordering::Relaxed);
        }
        self.takes_since = None;
        self.options.failing.store(false, Ordering::Relaxed);
        // whoever is read again finds that nothing is refused
        self.options.settling.store(false, Ordering::Release);
        (self.options.report)(None);
    }

    fn count(&self, pieces: &[Piece]) {
        let records: u32 = pieces.iter().flat_map(|p| &p.batches).map(|b| b.count).sum();
        self.stats.groups.fetch_add(1, Ordering::Relaxed);
        self.stats.records.fetch_add(records.into(), Ordering::Relaxed);
    }

    /// Each lane learns where its batches lie.
    fn tell(&mut self, pieces: &[Piece], located: &[Located]) {
        let mut rest = located;
        let mut by_lane: Vec<Vec<Located>> = vec![Vec::new(); self.options.lanes];
        let mut bytes = 0;
        for piece in pieces {
            let (mine, others) = rest.split_at_checked(piece.batches.len()).unwrap_or((rest, &[]));
            rest = others;
            bytes += piece.batches.iter().map(|b| b.records.len() as u64 + 24).sum::<u64>();
            if let Some(list) = by_lane.get_mut(usize::from(piece.lane)) {
                list.extend_from_slice(mine);
            }
        }
        self.checkpoints.wrote(bytes);
        for (lane, list) in by_lane.into_iter().enumerate().filter(|(_, list)| !list.is_empty()) {
            (self.options.notify)(u16::try_from(lane).unwrap_or(0), LogEvent::Safe(list));
        }
    }

    /// A disk in trouble is tried even if nobody writes: then nobody is refused for ever.
    fn try_again(&mut self) {
        if self.options.failing.load(Ordering::Relaxed) {
            let probe = Piece { now_ms: self.now_ms, ..Piece::default() };
            if self.writer.write(&[probe], unix_ms(), true).is_ok() {
                self.well_again();
            }
        } else if self.takes_since.take().is_some() {
            // only a test clears the other flag beside this thread
            self.options.settling.store(false, Ordering::Release);
        }
    }

    fn sync_when_due(&mut self, now: bool) {
        let Some(since) = self.unsynced else { return };
        if !now && since.elapsed() < Duration::from_millis(self.options.sync_every_ms) {
            return;
        }
        self.unsynced = None;
        if let Err(error) = self.writer.sync() {
            self.in_trouble(&error);
        }
    }

    fn look_after_checkpoints(&mut self) {
        let wanted = (self.options.tend)();
        if self.desk.held.load(Ordering::Relaxed) > 0 {
            return;
        }
        if self.unsynced.is_some() && !self.walks.is_empty() {
            self.unsynced = None;
            if let Err(error) = self.writer.sync() {
                return self.in_trouble(&error);
            }
        }
        while let Some(walked) = self.walks.pop_front() {
            let Some(complete) = self.checkpoints.walked(&walked, self.writer.closed()) else { continue };
            self.stats.checkpoint_running.store(0, Ordering::Relaxed);
            self.identity.checkpoint = Some(complete.begin);
            // nothing is freed before the directory names the new beginning
            let result = self.directory.set_identity(&self.identity);
            if result.and_then(|()| self.writer.give_back(&complete.free)).is_err() {
                continue; // what is not freed now is freed by the next one
            }
            self.stats.checkpoints.fetch_add(1, Ordering::Relaxed);
        }
        let failing = self.options.failing.load(Ordering::Relaxed);
        let (_, total) = self.writer.size();
        // nothing was written yet: there is no address to begin at
        if self.emptying.is_none() && !failing && self.writer.end() != 0 && self.checkpoints.due(total, wanted) {
            self.emptying = Some(Emptying::new(self.checkpoints.to_empty()));
            self.stats.checkpoint_running.store(1, Ordering::Relaxed);
        }
        if self.emptying.as_mut().is_some_and(|e| e.read_some(&self.writer)) {
            self.begin_checkpoint();
        }
    }

    fn begin_checkpoint(&mut self) {
        let Some(emptied) = self.emptying.take().map(Emptying::done) else { return };
        let number = self.checkpoints.begin(self.writer.end(), emptied.keys().copied().collect());
        let emptied = Arc::new(emptied);
        for lane in 0..self.options.lanes {
            (self.options.notify)(u16::try_from(lane).unwrap_or(0), LogEvent::Walk(number, Arc::clone(&emptied)));
        }
    }

    fn measure(&self) {
        let (segments, bytes) = self.writer.size();
        self.stats.segments.store(segments as u64, Ordering::Relaxed);
        self.stats.bytes.store(bytes, Ordering::Relaxed);
        self.stats.checkpoint.store(self.identity.checkpoint.unwrap_or(0), Ordering::Relaxed);
        self.stats.bytes_written.store(self.writer.bytes_written, Ordering::Relaxed);
    }
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}
