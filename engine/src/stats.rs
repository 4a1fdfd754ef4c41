//! Counters of one lane and the bounded drop ledger: what an operator asks about.
//!
//! A counter is written by its lane alone and read by anyone, so it is a relaxed atomic: no lock, no shared line
//! between lanes.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use crate::limits::Drop as DropReason;

macro_rules! counters {
    ($($name:ident),* $(,)?) => {
        /// What is counted; names as in `docs/formats/door.md`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr(usize)]
        #[allow(non_camel_case_types, missing_docs, reason = "the names are those of the door")]
        pub enum Counter { $($name),* }

        impl Counter {
            /// All names in order.
            pub const NAMES: &'static [&'static str] = &[$(stringify!($name)),*];
        }
    };
}

counters!(
    bytes_received,
    bytes_sent,
    packets_received,
    packets_sent,
    publish_received,
    publish_sent,
    publish_received_qos0,
    publish_received_qos1,
    publish_received_qos2,
    publish_sent_qos0,
    publish_sent_qos1,
    publish_sent_qos2,
    publish_bytes_received,
    publish_bytes_sent,
    connects,
    connects_refused,
    disconnects,
    takeovers,
    auth_failures,
    sessions_expired,
    messages_expired,
    wills_sent,
    malformed,
    sockets_accepted,
    sockets_refused,
    lane_messages,
    sessions_lost,
);

macro_rules! gauges {
    ($($name:ident),* $(,)?) => {
        /// What rises and falls.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr(usize)]
        #[allow(non_camel_case_types, missing_docs, reason = "the names are those of the door")]
        pub enum Gauge { $($name),* }

        impl Gauge {
            /// All names in order.
            pub const NAMES: &'static [&'static str] = &[$(stringify!($name)),*];
        }
    };
}

gauges!(
    connections,
    handshakes,
    sessions,
    sessions_persistent,
    subscriptions,
    shared_groups,
    retained,
    retained_bytes,
    queued,
    queued_bytes,
    inflight,
    partitions,
    partitions_coming,
    partitions_unsafe,
    partitions_full,
    publishes_waiting,
    connects_waiting,
    connections_slowed,
);

/// The numbers of one lane.
#[derive(Debug)]
pub struct Stats {
    counters: Vec<AtomicU64>,
    gauges: Vec<AtomicI64>,
    drops: Vec<AtomicU64>,
    /// Nanoseconds that the lane worked rather than waited.
    pub busy_ns: AtomicU64,
    /// Number of the present stretch of ten seconds, and how late the lane was in it and in the one before, microseconds.
    late: [AtomicU64; 3],
}

/// A stretch of time in which the lane was so late at worst, milliseconds.
const STRETCH_MS: u64 = 10_000;

impl Default for Stats {
    fn default() -> Self {
        fn zeros<T: Default>(n: usize) -> Vec<T> {
            std::iter::repeat_with(T::default).take(n).collect()
        }
        Self {
            counters: zeros(Counter::NAMES.len()),
            gauges: zeros(Gauge::NAMES.len()),
            drops: zeros(DropReason::ALL.len()),
            busy_ns: AtomicU64::new(0),
            late: Default::default(),
        }
    }
}

impl Stats {
    /// A tick of the lane: it woke so late, and worked so long, in which everybody else waited.
    pub fn note_tick(&self, now_ms: u64, late: Duration, worked: Duration) {
        let [stretch, present, before] = &self.late;
        let now = now_ms / STRETCH_MS;
        let was = stretch.swap(now, Ordering::Relaxed);
        if was != now {
            let last = present.swap(0, Ordering::Relaxed);
            before.store(if was + 1 == now { last } else { 0 }, Ordering::Relaxed);
        }
        let us = u64::try_from(late.max(worked).as_micros()).unwrap_or(u64::MAX);
        present.fetch_max(us, Ordering::Relaxed);
        self.busy_ns.fetch_add(u64::try_from(worked.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// How late the lane was at worst in the last ten to twenty seconds, milliseconds.
    #[must_use]
    pub fn late_ms(&self) -> u64 {
        let [_, present, before] = &self.late;
        present.load(Ordering::Relaxed).max(before.load(Ordering::Relaxed)) / 1000
    }

    /// Adds to a counter.
    pub fn add(&self, counter: Counter, n: u64) {
        if let Some(c) = self.counters.get(counter as usize) {
            c.store(c.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
        }
    }

    /// Moves a gauge.
    pub fn shift(&self, gauge: Gauge, by: i64) {
        if let Some(g) = self.gauges.get(gauge as usize) {
            g.store(g.load(Ordering::Relaxed).wrapping_add(by), Ordering::Relaxed);
        }
    }

    /// Reads a gauge.
    #[must_use]
    pub fn gauge(&self, gauge: Gauge) -> i64 {
        self.gauges.get(gauge as usize).map_or(0, |g| g.load(Ordering::Relaxed))
    }

    /// Sets a gauge.
    pub fn set(&self, gauge: Gauge, to: i64) {
        if let Some(g) = self.gauges.get(gauge as usize) {
            g.store(to, Ordering::Relaxed);
        }
    }

    /// Counts a dropped message.
    pub fn dropped(&self, reason: DropReason) {
        if let Some(d) = self.drops.get(reason as usize) {
            d.store(d.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
        }
    }

    /// Every counter with its name, drops as `dropped_<reason>`.
    pub fn each_counter(&self, mut f: impl FnMut(&str, u64)) {
        for (name, value) in Counter::NAMES.iter().zip(&self.counters) {
            f(name, value.load(Ordering::Relaxed));
        }
        for (reason, value) in DropReason::ALL.iter().zip(&self.drops) {
            f(&format!("dropped_{}", reason.name()), value.load(Ordering::Relaxed));
        }
    }

    /// Every gauge with its name.
    pub fn each_gauge(&self, mut f: impl FnMut(&str, i64)) {
        for (name, value) in Gauge::NAMES.iter().zip(&self.gauges) {
            f(name, value.load(Ordering::Relaxed));
        }
    }
}

/// One message that somebody did not get.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LedgerEntry {
    /// Wall clock, milliseconds since 1970.
    pub at_ms: u64,
    /// Who did not get it.
    pub client_id: Box<str>,
    /// Topic of the message.
    pub topic: Box<str>,
    /// QoS it would have been delivered with.
    pub qos: u8,
    /// Why.
    pub reason: DropReason,
}

impl LedgerEntry {
    /// As events and `ledger.json` have it.
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        serde_json::json!({"at_ms": self.at_ms, "client_id": self.client_id, "topic": self.topic, "qos": self.qos,
                           "reason": self.reason.name()})
    }

    /// From JSON; `None` if it is not one.
    #[must_use]
    pub fn from_json(value: &serde_json::Value) -> Option<Self> {
        let text = |name| value.get(name)?.as_str();
        let reason = text("reason")?;
        Some(Self {
            at_ms: value.get("at_ms")?.as_u64()?,
            client_id: text("client_id")?.into(),
            topic: text("topic")?.into(),
            qos: u8::try_from(value.get("qos")?.as_u64()?).ok()?,
            reason: DropReason::ALL.into_iter().find(|r| r.name() == reason)?,
        })
    }
}

/// The latest dropped messages; the oldest entry makes room.
#[derive(Debug, Default)]
pub struct Ledger {
    entries: VecDeque<LedgerEntry>,
    max: usize,
    total: u64,
}

impl Ledger {
    /// Keeps at most `max` entries.
    #[must_use]
    pub const fn new(max: usize) -> Self {
        Self { entries: VecDeque::new(), max, total: 0 }
    }

    /// Notes a drop.
    pub fn note(&mut self, entry: LedgerEntry) {
        self.total += 1;
        if self.max == 0 {
            return;
        }
        if self.entries.len() >= self.max {
            self.entries.pop_front();
        }
        self.entries.push_back(entry);
    }

    /// Drops since the start.
    #[must_use]
    pub const fn total(&self) -> u64 {
        self.total
    }

    /// Entries of one client, or all, oldest first.
    pub fn of<'a>(&'a self, client_id: Option<&'a str>) -> impl Iterator<Item = &'a LedgerEntry> {
        self.entries.iter().filter(move |e| client_id.is_none_or(|id| *e.client_id == *id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The worst tick is told for ten seconds at least, and for twenty at most.
    #[test]
    fn how_late_a_lane_was() {
        let (stats, none) = (Stats::default(), Duration::ZERO);
        stats.note_tick(12_000, Duration::from_millis(700), none);
        stats.note_tick(13_000, none, Duration::from_millis(40));
        assert_eq!(stats.late_ms(), 700);
        stats.note_tick(20_000, none, Duration::from_millis(40));
        assert_eq!(stats.late_ms(), 700);
        stats.note_tick(30_000, none, none);
        assert_eq!(stats.late_ms(), 40);
        stats.note_tick(60_000, none, none);
        assert_eq!(stats.late_ms(), 0);
        assert_eq!(stats.busy_ns.load(Ordering::Relaxed), 80_000_000);
    }
}
