//! What the threads of a load share: counters, the points where they wait for each other, and the wish to stop.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;

/// What one publisher has sent, and how much of that has arrived at all its receivers together.
#[derive(Debug, Default)]
pub struct Flow {
    pub delivered: AtomicU64,
    pub sent: AtomicU64,
}

/// Shared by all threads of a load.
pub struct Shared {
    pub begun: Instant,
    pub flows: Vec<Flow>,
    /// Wishes to stop.
    stop: AtomicU8,
    /// Why the load cannot go on: the first reason.
    failed: Mutex<Option<String>>,
    waiting: AtomicUsize,
    threads: usize,
    start_ns: AtomicU64,
    phase: Mutex<String>,
    pub done: AtomicU64,
    pub total: AtomicU64,
    pub sent: AtomicU64,
    pub delivered: AtomicU64,
    pub faults: AtomicU64,
}

/// How far a load is.
#[derive(Debug, Serialize)]
pub struct Progress {
    pub phase: String,
    pub done: u64,
    /// 0: not known.
    pub total: u64,
    pub sent: u64,
    pub delivered: u64,
    pub faults: u64,
    pub seconds: f64,
}

impl Shared {
    /// For so many threads and publishers.
    #[must_use]
    pub fn new(threads: usize, flows: usize) -> Self {
        Self {
            begun: Instant::now(),
            flows: std::iter::repeat_with(Flow::default).take(flows).collect(),
            stop: AtomicU8::new(0),
            failed: Mutex::new(None),
            waiting: AtomicUsize::new(0),
            threads,
            start_ns: AtomicU64::new(0),
            phase: Mutex::new("begin".to_owned()),
            done: AtomicU64::new(0),
            total: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            delivered: AtomicU64::new(0),
            faults: AtomicU64::new(0),
        }
    }

    /// Asks all threads to send nothing more and to end when what is under way has come; the second time: at once.
    pub fn stop(&self) {
        let before = self.stop.fetch_max(1, Ordering::Relaxed);
        if before > 0 {
            self.end();
        }
    }

    /// Asks all threads to end at once; what they found until then is reported.
    pub fn end(&self) {
        self.stop.store(2, Ordering::Relaxed);
    }

    /// One thread cannot go on: so all end, and what follows from that for the others is no news.
    pub fn fail(&self, why: &str) {
        if let Ok(mut failed) = self.failed.lock() {
            failed.get_or_insert_with(|| why.to_owned());
        }
        self.end();
    }

    /// Why the first thread that could not go on could not.
    #[must_use]
    pub fn failed(&self) -> Option<String> {
        self.failed.lock().ok()?.clone()
    }

    /// Is there a wish to send nothing more?
    #[must_use]
    pub fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed) > 0
    }

    /// Is there a wish to end at once?
    #[must_use]
    pub fn ended(&self) -> bool {
        self.stop.load(Ordering::Relaxed) > 1
    }

    /// Tells where the load is: a phase and how many steps it has.
    pub fn phase(&self, name: &str, total: u64) {
        if let Ok(mut phase) = self.phase.lock() {
            name.clone_into(&mut phase);
        }
        self.done.store(0, Ordering::Relaxed);
        self.total.store(total, Ordering::Relaxed);
    }

    /// How far it is.
    #[must_use]
    pub fn progress(&self) -> Progress {
        let of = |n: &AtomicU64| n.load(Ordering::Relaxed);
        Progress {
            phase: self.phase.lock().map(|p| p.clone()).unwrap_or_default(),
            done: of(&self.done),
            total: of(&self.total),
            sent: of(&self.sent),
            delivered: of(&self.delivered),
            faults: of(&self.faults),
            seconds: self.begun.elapsed().as_secs_f64(),
        }
    }

    /// Comes to the point `number` (1, 2, ...); true once all threads are there.
    #[must_use]
    pub fn arrive(&self, number: usize, arrived: &mut usize) -> bool {
        if *arrived < number {
            *arrived = number;
            self.waiting.fetch_add(1, Ordering::AcqRel);
        }
        self.waiting.load(Ordering::Acquire) >= number * self.threads
    }

    /// The common beginning of the traffic, ns: a moment after the first who asks.
    #[must_use]
    pub fn start_ns(&self) -> u64 {
        let soon = u64::try_from((self.begun.elapsed() + Duration::from_millis(5)).as_nanos()).unwrap_or(u64::MAX);
        match self.start_ns.compare_exchange(0, soon, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => soon,
            Err(set) => set,
        }
    }
}
