//! What all lanes share: the ring, their mailboxes, counters, the clock, and the configuration that they obey.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::{Map, Value, json};

use super::{Clock, Events, Order};
use crate::access::{Access, Throttle, Workers};
use crate::codec::Publish;
use crate::lane::{LaneMessage, Mailbox};
use crate::limits::Limits;
use crate::log::{DiskLog, Identity, LogReader, LogStats};
use crate::net::{Layers, PeerAddress};
use crate::partition::{BodyCache, Rules, Total, Users};
use crate::ring::Ring;
use crate::settings::Settings;
use crate::stats::{LedgerEntry, Stats};

/// Settings with everything that they name read in.
#[derive(Debug)]
pub struct Config {
    /// As they came.
    pub settings: Settings,
    /// Bounds.
    pub limits: Arc<Limits>,
    /// Access rules by position.
    pub access: Vec<Arc<Access>>,
    /// Layers of each listener.
    pub layers: Vec<Arc<Layers>>,
}

impl Config {
    /// Reads every file that the settings name.
    ///
    /// # Errors
    /// File, line, what is wrong, what to do.
    pub fn load(settings: Settings) -> Result<Self, String> {
        let access = settings.access.iter().map(|a| Access::load(a).map(Arc::new)).collect::<Result<Vec<_>, _>>();
        let access = access.map_err(|e| e.to_string())?;
        let layers = settings.listeners.iter().map(|l| Layers::load(l).map(Arc::new)).collect::<Result<Vec<_>, _>>();
        let layers = layers.map_err(|e| e.to_string())?;
        for l in &settings.listeners {
            if l.access >= access.len() {
                return Err(format!("listener {}: access {} does not exist", l.name, l.access));
            }
        }
        Ok(Self { limits: Arc::new(settings.limits.clone()), settings, access, layers })
    }

    /// The rules of partitions.
    #[must_use]
    pub fn rules(&self, shared: &Shared) -> Rules {
        Rules {
            limits: Arc::clone(&self.limits),
            queue_qos0: self.settings.mqtt.queue_qos0,
            upgrade_qos: self.settings.mqtt.upgrade_qos,
            deliver_after_safe: self.settings.data.as_ref().is_some_and(|d| d.deliver_after_safe),
            retained: Arc::clone(&shared.retained),
            queued: Arc::clone(&shared.queued),
            users: Arc::clone(&shared.users),
            cache: Arc::clone(&shared.cache),
            disk_failing: Arc::clone(&shared.disk_failing),
            slow: Arc::clone(&shared.slow),
            many_logs: shared.cluster_log.get().is_some(),
        }
    }

    /// Highest QoS of a listener.
    #[must_use]
    pub fn qos_max(&self, listener: u16) -> u8 {
        let own = self.settings.listeners.get(usize::from(listener)).and_then(|l| l.qos_max);
        own.unwrap_or(2).min(self.settings.mqtt.qos_max).min(2)
    }

    /// Topic aliases that clients of a listener may use.
    #[must_use]
    pub fn topic_alias_max(&self, listener: u16) -> u16 {
        let own = self.settings.listeners.get(usize::from(listener)).and_then(|l| l.topic_alias_max);
        own.unwrap_or(self.limits.topic_alias_max)
    }

    /// Message expiry of a PUBLISH, shortened for retained ones if so configured.
    #[must_use]
    pub fn expiry_of(&self, p: &Publish<'_>) -> Option<u32> {
        let cap = self.settings.mqtt.retain_expiry_s;
        if !p.retain || cap == 0 {
            return p.properties.expiry_s;
        }
        let cap = u32::try_from(cap).unwrap_or(u32::MAX);
        Some(p.properties.expiry_s.unwrap_or(u32::MAX).min(cap))
    }
}

/// The answer to `drops` while lanes still add to it.
#[derive(Debug, Default)]
struct DropsReport {
    missing: u16,
    total: u64,
    entries: Vec<Value>,
}

/// Of the partitions of a lane: number, work, bytes in queues.
pub type Loads = Vec<(u16, u64, i64, Option<(Box<str>, i64)>)>;

/// What lanes have dropped, on its way to and from `DIR/ledger.json`.
#[derive(Debug, Default)]
pub struct Ledgers {
    entries: Mutex<HashMap<u16, Vec<LedgerEntry>>>,
    changed: AtomicBool,
}

impl Ledgers {
    /// What an earlier run has left, under a number that no lane has.
    pub fn remember(&self, entries: Vec<LedgerEntry>) {
        if let Ok(mut all) = self.entries.lock() {
            all.insert(u16::MAX, entries);
        }
    }

    /// What an earlier run has left of these clients.
    pub fn earlier(&self, mine: impl Fn(&str) -> bool) -> Vec<LedgerEntry> {
        let all = self.entries.lock();
        let earlier = all.ok().and_then(|all| all.get(&u16::MAX).cloned()).unwrap_or_default();
        earlier.into_iter().filter(|e| mine(&e.client_id)).collect()
    }

    /// A lane's ledger as it is now, earlier entries included.
    pub fn set(&self, lane: u16, entries: Vec<LedgerEntry>) {
        if let Ok(mut all) = self.entries.lock() {
            all.insert(lane, entries);
        }
        self.changed.store(true, Ordering::Relaxed);
    }

    /// Everything as JSON, if it has changed since the last call.
    pub fn text(&self) -> Option<Vec<u8>> {
        if !self.changed.swap(false, Ordering::Relaxed) {
            return None;
        }
        let all = self.entries.lock().ok()?;
        let entries = all.iter().filter(|(lane, _)| **lane != u16::MAX).flat_map(|(_, entries)| entries);
        serde_json::to_vec(&entries.map(LedgerEntry::json).collect::<Vec<_>>()).ok()
    }
}

/// Shared by all lanes.
#[derive(Debug)]
pub struct Shared {
    /// Client id to lane.
    pub ring: Ring,
    /// One for each lane.
    pub mailboxes: Arc<Vec<Mailbox>>,
    /// Towards Python.
    pub events: Arc<Events>,
    /// Lanes of each node and owners of partitions, in a cluster.
    pub(super) layout: Mutex<super::cluster::Layout>,
    /// The log of a cluster.
    pub cluster_log: std::sync::OnceLock<Arc<dyn crate::log::ClusterLog>>,
    /// To the other nodes, in a cluster.
    pub links: std::sync::OnceLock<crate::link::Links>,
    /// Password checks.
    pub workers: Workers,
    /// One for each lane.
    pub stats: Vec<Arc<Stats>>,
    /// Engine time.
    pub clock: Arc<Clock>,
    /// One more with each start of a data directory; 0 without one.
    pub incarnation: u32,
    /// Which start of this node it is, in a cluster.
    pub start: u64,
    /// Where the log is, and whose.
    pub data: Option<(std::path::PathBuf, Identity)>,
    /// The log, if there is a disk.
    pub log: Option<DiskLog>,
    /// Reads bodies from it.
    pub reader: Option<LogReader>,
    /// Messages waiting for persistent sessions.
    pub queued: Arc<Total>,
    /// The same by user.
    pub users: Arc<Users>,
    /// Bodies in memory.
    pub cache: Arc<BodyCache>,
    /// Places on disk that were found damaged.
    pub damaged: AtomicUsize,
    /// The latest dropped messages of each lane, as `DIR/ledger.json` has or will have them.
    pub ledgers: Arc<Ledgers>,
    /// The disk takes nothing now.
    pub disk_failing: Arc<AtomicBool>,
    /// It takes again: nobody is read for a moment (`log/thread.rs`).
    pub disk_settling: Arc<AtomicBool>,
    /// Places of other nodes that cannot keep up now, as a mask.
    pub slow: Arc<AtomicU64>,
    /// Connections that were let in.
    pub connections: AtomicUsize,
    /// Whose turn it is to get a socket.
    pub turn: AtomicU32,
    /// Retained messages in total.
    pub retained: Arc<Total>,
    per_address: Mutex<HashMap<IpAddr, usize>>,
    per_listener: Vec<AtomicUsize>,
    throttle: Mutex<Throttle>,
    drops: Mutex<HashMap<u64, DropsReport>>,
    measuring: Mutex<HashMap<u64, u16>>,
    stopped: AtomicUsize,
    ready: AtomicUsize,
    most_connections: AtomicUsize,
    waits: Mutex<HashMap<u16, Value>>,
    loads: Mutex<BTreeMap<u16, Loads>>,
}

impl Shared {
    /// For lanes with these mailboxes.
    ///
    /// # Errors
    /// The operating system refuses the event pipe.
    pub fn new(ring: Ring, mailboxes: Vec<Mailbox>, config: &Config) -> std::io::Result<Self> {
        let limits = &config.limits;
        Ok(Self {
            stats: mailboxes.iter().map(|_| Arc::default()).collect(),
            ring,
            mailboxes: Arc::new(mailboxes),
            events: Arc::new(Events::new()?),
            layout: Mutex::default(),
            cluster_log: std::sync::OnceLock::new(),
            links: std::sync::OnceLock::new(),
            workers: Workers::start(2, limits.auth_queue_max),
            clock: Arc::default(),
            incarnation: 0,
            start: config.settings.cluster.as_ref().map_or(0, |cluster| cluster.incarnation),
            data: None,
            log: None,
            reader: None,
            queued: Arc::default(),
            users: Arc::default(),
            cache: Arc::new(BodyCache::new(config.settings.data.as_ref().map_or(0, |d| d.cache_bytes_max))),
            damaged: AtomicUsize::new(0),
            ledgers: Arc::default(),
            disk_failing: Arc::default(),
            disk_settling: Arc::default(),
            slow: Arc::default(),
            connections: AtomicUsize::new(0),
            turn: AtomicU32::new(0),
            retained: Arc::default(),
            per_address: Mutex::default(),
            per_listener: config.settings.listeners.iter().map(|_| AtomicUsize::new(0)).collect(),
            throttle: Mutex::new(Throttle::new(limits.auth_failures_max)),
            drops: Mutex::default(),
            measuring: Mutex::default(),
            stopped: AtomicUsize::new(0),
            ready: AtomicUsize::new(0),
            most_connections: AtomicUsize::new(0),
            waits: Mutex::default(),
            loads: Mutex::default(),
        })
    }

    /// A lane knows every session's subscriptions, of its own and of all others.
    pub fn lane_ready(&self) {
        self.ready.fetch_add(1, Ordering::AcqRel);
    }

    /// Do all lanes?
    #[must_use]
    pub fn all_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire) >= usize::from(self.ring.lanes())
    }

    /// The mailbox of a lane of this process, by its place.
    #[must_use]
    pub fn mailbox(&self, place: u16) -> Option<&Mailbox> {
        self.mailboxes.get(self.ring.here(place)?)
    }

    /// Leaves one message for a lane of this process.
    pub fn post(&self, from: u16, to: u16, message: LaneMessage) {
        if let Some(mailbox) = self.mailbox(to) {
            mailbox.post(from, vec![message]);
        }
    }

    /// A socket of this address; false if the address has too many (0: no bound).
    pub fn enter(&self, address: &PeerAddress, max: usize) -> bool {
        let Some(ip) = address.ip() else { return true };
        let Ok(mut table) = self.per_address.lock() else { return true };
        let n = table.entry(ip).or_default();
        if max > 0 && *n >= max {
            return false;
        }
        *n += 1;
        true
    }

    /// The socket is gone.
    pub fn leave(&self, address: &PeerAddress) {
        let Some(ip) = address.ip() else { return };
        let Ok(mut table) = self.per_address.lock() else { return };
        if let Some(n) = table.get_mut(&ip) {
            *n = n.saturating_sub(1);
            if *n == 0 {
                table.remove(&ip);
            }
        }
    }

    /// A login from this address failed; how long its answer waits, milliseconds.
    pub fn login_failed(&self, ip: IpAddr, now_ms: u64) -> u64 {
        let Ok(mut throttle) = self.throttle.lock() else { return 0 };
        throttle.failed(ip, now_ms);
        throttle.delay_ms(ip, now_ms)
    }

    /// Has the listener as many connections as it may?
    #[must_use]
    pub fn listener_full(&self, listener: usize, config: &Config) -> bool {
        let max = config.settings.listeners.get(listener).map_or(0, |l| l.connections_max);
        max > 0 && self.per_listener.get(listener).is_some_and(|n| n.load(Ordering::Relaxed) >= max)
    }

    /// A connection of a listener was let in (or has ended).
    pub fn count_connection(&self, listener: u16, came: bool) {
        let Some(n) = self.per_listener.get(usize::from(listener)) else { return };
        if came {
            n.fetch_add(1, Ordering::Relaxed);
            let all = self.connections.fetch_add(1, Ordering::Relaxed) + 1;
            self.most_connections.fetch_max(all, Ordering::Relaxed);
        } else {
            n.fetch_sub(1, Ordering::Relaxed);
            self.connections.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// A lane has ended gracefully; the last one says so.
    pub fn lane_stopped(&self) {
        if self.stopped.fetch_add(1, Ordering::Relaxed) + 1 == self.mailboxes.len() {
            self.events.stopped();
        }
    }

    /// What waits in a lane for other nodes.
    pub fn set_waits(&self, lane: u16, waiting: Value) {
        if let Ok(mut waits) = self.waits.lock() {
            waits.insert(lane, waiting);
        }
    }

    /// What the partitions of a lane did and hold: number, work, bytes in queues.
    pub fn set_loads(&self, lane: u16, found: Loads) {
        if let Ok(mut loads) = self.loads.lock() {
            loads.insert(lane, found);
        }
    }

    pub(super) fn begin_stats(&self, id: u64) {
        if let Ok(mut measuring) = self.measuring.lock() {
            measuring.insert(id, self.ring.lanes());
        }
    }

    /// A lane has brought its gauges up to date; the last one makes the event.
    pub fn measured(&self, id: u64) {
        let Ok(mut measuring) = self.measuring.lock() else { return };
        let Some(missing) = measuring.get_mut(&id) else { return };
        *missing -= 1;
        if *missing == 0 {
            measuring.remove(&id);
            drop(measuring);
            self.report(id);
        }
    }

    /// The event `stats`: sums over all lanes.
    fn report(&self, id: u64) {
        let uptime_ms = self.clock.uptime_ms();
        let mut counters: Map<String, Value> = Map::new();
        let mut gauges: Map<String, Value> = Map::new();
        let mut lanes = Vec::new();
        for stats in &self.stats {
            stats.each_counter(|name, n| {
                let sum = counters.get(name).and_then(Value::as_u64).unwrap_or(0) + n;
                counters.insert(name.to_owned(), sum.into());
            });
            stats.each_gauge(|name, n| {
                let sum = gauges.get(name).and_then(Value::as_i64).unwrap_or(0) + n;
                gauges.insert(name.to_owned(), sum.into());
            });
            lanes.push(json!({"busy_ns": stats.busy_ns.load(Ordering::Relaxed), "late_ms": stats.late_ms()}));
        }
        let (retained, bytes) = self.retained.totals();
        gauges.insert("retained".to_owned(), retained.into());
        gauges.insert("retained_bytes".to_owned(), bytes.into());
        self.report_log(&mut counters, &mut gauges);
        gauges.insert("clients_maximum".to_owned(), self.most_connections.load(Ordering::Relaxed).into());
        self.events.push(json!({
            "event": "stats", "id": id, "uptime_ms": uptime_ms, "lanes": lanes, "counters": counters, "gauges": gauges,
            "loads": self.loads.lock().map(|l| l.values().cloned().collect::<Vec<_>>()).unwrap_or_default(),
            "waits": self.waits.lock().map(|w| w.values().cloned().collect::<Vec<_>>()).unwrap_or_default(),
        }));
    }

    /// Numbers of the log; all zero without one, but the disk is well.
    fn report_log(&self, counters: &mut Map<String, Value>, gauges: &mut Map<String, Value>) {
        let read = |n: &std::sync::atomic::AtomicU64| n.load(Ordering::Relaxed);
        let none = LogStats::default();
        let stats = self.log.as_ref().map_or(&none, |l| &l.stats);
        counters.insert("log_bytes_written".to_owned(), read(&stats.bytes_written).into());
        counters.insert("log_groups".to_owned(), read(&stats.groups).into());
        counters.insert("log_records".to_owned(), read(&stats.records).into());
        for (name, n) in self.cluster_log.get().map(|l| l.figures()).unwrap_or_default() {
            counters.insert(name.to_owned(), n.into());
        }
        counters.insert("checkpoints".to_owned(), read(&stats.checkpoints).into());
        counters.insert("damaged".to_owned(), self.damaged.load(Ordering::Relaxed).into());
        gauges.insert("checkpoint_running".to_owned(), read(&stats.checkpoint_running).into());
        gauges.insert("log_bytes".to_owned(), read(&stats.bytes).into());
        gauges.insert("log_segments".to_owned(), read(&stats.segments).into());
        gauges.insert("disk_ok".to_owned(), u64::from(!self.disk_failing.load(Ordering::Relaxed)).into());
    }

    pub(super) fn begin_drops(&self, order: &Order) {
        let Order::Drops { id, .. } = order else { return };
        if let Ok(mut drops) = self.drops.lock() {
            drops.insert(*id, DropsReport { missing: self.ring.lanes(), ..DropsReport::default() });
        }
    }

    /// A lane's part of the ledger; the last part makes the event.
    pub fn add_drops(&self, id: u64, total: u64, entries: Vec<Value>) {
        let Ok(mut drops) = self.drops.lock() else { return };
        let Some(report) = drops.get_mut(&id) else { return };
        report.total += total;
        report.entries.extend(entries);
        report.missing = report.missing.saturating_sub(1);
        if report.missing > 0 {
            return;
        }
        let Some(mut report) = drops.remove(&id) else { return };
        report.entries.sort_by_key(|e| e.get("at_ms").and_then(Value::as_u64).unwrap_or(0));
        self.events.push(json!({"event": "drops", "id": id, "total": report.total, "entries": report.entries}));
    }
}

/// The key of the hash: given as 32 hexadecimal digits, or made now.
pub(super) fn key(text: Option<&str>) -> Result<(u64, u64), String> {
    let Some(text) = text else {
        let made = u128::from_str_radix(&super::random_name(), 16).map_err(|e| e.to_string())?;
        return Ok(((made >> 64) as u64, made as u64));
    };
    let wrong = |_| "key: 32 hexadecimal digits are needed".to_owned();
    if text.len() != 32 {
        return Err("key: 32 hexadecimal digits are needed".to_owned());
    }
    let key = u128::from_str_radix(text, 16).map_err(wrong)?;
    Ok(((key >> 64) as u64, key as u64))
}
