//! The log of a cluster: a [`ClusterLog`] on JetStream. Requests go in by a queue, events come out by a callback; a thread of
//! its own does everything between (`work`).

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use roostmq_engine::log::{Anchor, At, Batch, ClusterLog, ClusterLogNotify, Fence};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

use crate::ask::Names;
use crate::cache::CacheOptions;
use crate::connect::Access;
use crate::stream::{Needs, SyncNeed};
use crate::work::Work;

/// Bytes counted for a batch beside its records.
pub(crate) const BATCH_BYTES: usize = 64;

/// What the log is asked to do.
#[derive(Clone)]
pub struct Options {
    /// How NATS is reached.
    pub access: Access,
    /// How NATS is reached as a user of its system account: shows `sync_interval` and all versions.
    pub system: Option<Access>,
    /// What streams and subjects are called.
    pub names: Names,
    /// What is needed of them.
    pub needs: Needs,
    /// So long an answer is waited for before its outcome is unknown.
    pub patience: Duration,
    /// So often an owner looks whether what it wrote is still there while it writes nothing.
    pub idle: Duration,
    /// Where this node keeps what it has stored once more, if anywhere.
    pub cache: Option<CacheOptions>,
    /// Where events go. Called on the log's thread: must not wait.
    pub notify: ClusterLogNotify,
}

impl Options {
    /// The usual: eight streams of 1 GiB, servers that sync always (read as `system`, or to be asserted), nothing made.
    #[must_use]
    pub fn new(access: Access, cluster: &str, notify: ClusterLogNotify) -> Self {
        let servers = access.urls.len();
        Self {
            access,
            system: None,
            names: Names { cluster: cluster.to_owned(), streams: 8, api: "$JS.API".to_owned() },
            needs: Needs { replicas: None, servers, max_bytes: 1 << 30, create: false, sync: SyncNeed::Always },
            patience: Duration::from_secs(2),
            idle: Duration::from_secs(5),
            cache: None,
            notify,
        }
    }
}

/// Numbers of the log for metrics.
#[derive(Debug, Default)]
pub struct NatsStats {
    /// Appends that were answered as stored.
    pub appends: AtomicU64,
    /// Bytes of these, headers included.
    pub bytes: AtomicU64,
    /// Time from sending them to their answers, microseconds together.
    pub append_us: AtomicU64,
    /// Appends whose condition was not met: a newer owner, or a server that had not caught up.
    pub refused: AtomicU64,
    /// Appends without an answer in time, looked up afterwards.
    pub unknown: AtomicU64,
    /// Partitions that are written from here.
    pub partitions: AtomicU64,
}

/// What the thread is told.
#[derive(Debug)]
pub(crate) enum Command {
    Append(Batch),
    Fence(Fence),
    Release(u16),
    Read(u16, Anchor),
    Checkpoint(u16, At),
    Trim(u16, At),
}

/// The log on JetStream. Ends with its value: what is not safe by then never was acknowledged.
///
/// ```no_run
/// use std::sync::Arc;
/// use roostmq_engine::log::{Fence, ClusterLog, ClusterLogEvent};
/// use roostmq_engine_nats::{connect::Access, log::{NatsLog, Options}};
///
/// let access = Access { urls: vec!["nats://127.0.0.1:4222".to_owned()], ..Access::default() };
/// let tell = Arc::new(|event: ClusterLogEvent| println!("{event:?}"));
/// let log = NatsLog::start(Options::new(access, "fleet", tell))?;
/// log.fence(Fence { partition: 3, epoch: 7, ..Fence::default() }); // `Read`s, then `Fenced`; then append
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct NatsLog {
    /// For metrics.
    pub stats: Arc<NatsStats>,
    commands: Mutex<Option<UnboundedSender<Command>>>,
    waiting: Arc<AtomicUsize>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl std::fmt::Debug for NatsLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NatsLog").field("waiting", &self.waiting).finish_non_exhaustive()
    }
}

impl NatsLog {
    /// Starts the thread. Whether NATS is there is told by `State` events; until it is, everything waits.
    ///
    /// # Errors
    /// The operating system refuses a thread or what it needs.
    pub fn start(options: Options) -> std::io::Result<Self> {
        let (commands, inbox) = unbounded_channel();
        let (waiting, stats) = (Arc::<AtomicUsize>::default(), Arc::<NatsStats>::default());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let work = Work::new(options, inbox, Arc::clone(&waiting), Arc::clone(&stats));
        let thread =
            std::thread::Builder::new().name("log-nats".to_owned()).spawn(move || runtime.block_on(work.run()))?;
        Ok(Self { stats, commands: Mutex::new(Some(commands)), waiting, thread: Mutex::new(Some(thread)) })
    }

    fn tell(&self, command: Command) {
        if let Ok(commands) = self.commands.lock() {
            let _ = commands.as_ref().map(|c| c.send(command));
        }
    }

    /// Ends the thread. What is under way may still be stored; nothing more is told.
    pub fn close(&self) {
        if let Ok(mut commands) = self.commands.lock() {
            *commands = None;
        }
        let thread = self.thread.lock().ok().and_then(|mut t| t.take());
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }
}

impl Drop for NatsLog {
    fn drop(&mut self) {
        self.close();
    }
}

impl ClusterLog for NatsLog {
    fn append(&self, batch: Batch) {
        self.waiting.fetch_add(batch.records.len() + BATCH_BYTES, Ordering::Relaxed);
        self.tell(Command::Append(batch));
    }

    fn fence(&self, fence: Fence) {
        self.tell(Command::Fence(fence));
    }

    fn release(&self, partition: u16) {
        self.tell(Command::Release(partition));
    }

    fn read(&self, partition: u16, known: Anchor) {
        self.tell(Command::Read(partition, known));
    }

    fn checkpoint(&self, partition: u16, at: At) {
        self.tell(Command::Checkpoint(partition, at));
    }

    fn trim(&self, partition: u16, before: At) {
        self.tell(Command::Trim(partition, before));
    }

    fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    fn figures(&self) -> Vec<(&'static str, u64)> {
        let s = &self.stats;
        let all = [
            ("log_appends", &s.appends),
            ("log_append_bytes", &s.bytes),
            ("log_append_us", &s.append_us),
            ("log_appends_refused", &s.refused),
            ("log_appends_unknown", &s.unknown),
        ];
        all.map(|(name, n)| (name, n.load(Ordering::Relaxed))).to_vec()
    }
}
