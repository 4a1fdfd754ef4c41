//! What a load found, as JSON (`docs/formats/bench.md`).

use std::time::Instant;

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::plan::Work;
use crate::tally::Faults;
use crate::usage::{self, Usage};

/// Above this share of its core a generator is taken as the limit.
const LIMIT_CORES: f64 = 0.95;
/// What takes no longer has no measured load, seconds.
const MOMENT_S: f64 = 0.01;
/// Messages of a schedule that are sent later than this were held up by the generator, us.
const LATE_US: f64 = 1000.0;

/// A whole result.
#[derive(Debug, Serialize)]
pub struct Report {
    pub work: Work,
    /// No faults.
    pub ok: bool,
    pub faults: Faults,
    pub steps: Vec<Step>,
    /// Acknowledgements that came before those of older messages.
    pub acks_out_of_order: u64,
    /// What a reader should know: the first reason of a closed connection, a limit that was met.
    pub notes: Vec<String>,
    pub run: u16,
}

/// One measured part of a load.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Step {
    pub name: String,
    /// What is counted.
    pub unit: &'static str,
    pub count: u64,
    pub seconds: f64,
    pub per_second: f64,
    /// Messages that publishers sent meanwhile, where that is another number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sent: Option<u64>,
    /// From the instant when a message was due until it was received.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency_us: Option<Spread>,
    /// How late messages of a schedule were sent that no window held back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub late_us: Option<Spread>,
    /// From the instant when a message was due until it was acknowledged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub acknowledged_us: Option<Spread>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub broker: Option<Cost>,
    /// Growth of the broker's memory for each of the count.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_each: Option<f64>,
    /// CPU of the generator's threads.
    pub generator_cores: f64,
    /// The figure is the generator's, not the broker's.
    pub generator_limited: bool,
}

/// What the broker used in a step.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Cost {
    pub cores: f64,
    /// CPU for each of the count.
    pub us_each: f64,
    pub rss_bytes: u64,
}

/// Times, us.
#[derive(Clone, Debug, Serialize)]
pub struct Spread {
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub p999: f64,
    pub max: f64,
    pub mean: f64,
}

impl Spread {
    /// Of a histogram of ns; None of an empty one.
    #[must_use]
    pub fn of(times: &Histogram<u64>) -> Option<Self> {
        let at = |q| times.value_at_quantile(q) as f64 / 1e3;
        (!times.is_empty()).then(|| Self {
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: times.max() as f64 / 1e3,
            mean: times.mean() / 1e3,
        })
    }
}

/// A histogram of ns, from 1 us to an hour, in three digits.
///
/// # Errors
/// None that can happen.
pub fn histogram() -> Result<Histogram<u64>, String> {
    Histogram::new_with_bounds(1_000, 3_600_000_000_000, 3).map_err(|e| e.to_string())
}

/// Measures a step from its beginning to its end.
pub struct Meter {
    pids: Vec<u32>,
    begun: Instant,
    own_s: f64,
    broker: Option<Usage>,
}

impl Meter {
    /// Begins now. Where a process of the broker has ended, its costs are not told.
    #[must_use]
    pub fn begin(pids: &[u32]) -> Self {
        let broker = usage::of(pids).unwrap_or(None);
        Self { pids: pids.to_vec(), begun: Instant::now(), own_s: usage::own_cpu().as_secs_f64(), broker }
    }

    /// Seconds so far.
    #[must_use]
    pub fn seconds(&self) -> f64 {
        self.begun.elapsed().as_secs_f64()
    }

    /// Memory of the broker at the beginning.
    #[must_use]
    pub fn rss_bytes(&self) -> Option<u64> {
        self.broker.map(|b| b.rss_bytes)
    }

    /// Ends now, after `count` of `unit`.
    #[must_use]
    pub fn end(&self, name: &str, count: u64, unit: &'static str) -> Step {
        let seconds = self.seconds();
        let mut step = Step { name: name.to_owned(), unit, count, seconds, ..Step::default() };
        step.per_second = count as f64 / seconds.max(1e-9);
        step.generator_cores = (usage::own_cpu().as_secs_f64() - self.own_s) / seconds.max(1e-9);
        if let (Some(before), Some(after)) = (self.broker, usage::of(&self.pids).unwrap_or(None)) {
            let cpu_s = after.cpu_s - before.cpu_s;
            step.broker = Some(Cost {
                cores: cpu_s / seconds.max(1e-9),
                us_each: cpu_s * 1e6 / count.max(1) as f64,
                rss_bytes: after.rss_bytes,
            });
        }
        step.judge(1, false);
        step
    }
}

impl Step {
    /// Says whether the generator, with so many threads, was the limit.
    pub fn judge(&mut self, threads: usize, scheduled: bool) {
        // no clock is fine enough to say it of a moment
        let busy = self.seconds > MOMENT_S && self.generator_cores >= LIMIT_CORES * threads as f64;
        let late = self.late_us.as_ref().is_some_and(|l| l.p99 > LATE_US);
        let broker_busy = self.broker.is_some_and(|b| b.cores >= LIMIT_CORES);
        // on a schedule it spins, so only being late tells
        self.generator_limited = !broker_busy && if scheduled { late } else { busy };
    }
}
