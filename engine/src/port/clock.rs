//! The engine's time: monotonic milliseconds since its start, and the wall clock where a credential says so.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Never 0, so that 0 can mean "no deadline".
const FIRST_MS: u64 = 1_000;

/// One clock for all lanes; tests move it forward.
#[derive(Debug)]
pub struct Clock {
    start: Instant,
    ahead_ms: AtomicU64,
    first_ms: u64,
    behind_unix_ms: AtomicU64,
}

impl Default for Clock {
    fn default() -> Self {
        Self::resumed(FIRST_MS, None)
    }
}

impl Clock {
    /// Engine time goes on from `ms`. If the wall clock is behind `behind_unix_ms`, at which the log ended, what is
    /// missing is added as soon as it is not ([`Self::catch_up`]).
    #[must_use]
    pub fn resumed(ms: u64, behind_unix_ms: Option<u64>) -> Self {
        let first = ms.max(FIRST_MS);
        Self {
            start: Instant::now(),
            ahead_ms: AtomicU64::new(first),
            first_ms: first,
            behind_unix_ms: AtomicU64::new(behind_unix_ms.unwrap_or(0)),
        }
    }

    /// A clock that was behind (a machine without a battery) and was set: the time that passed while the broker was
    /// down is known now.
    pub fn catch_up(&self) {
        self.catch_up_at(unix_ms());
    }

    fn catch_up_at(&self, now: u64) {
        let behind = self.behind_unix_ms.load(Ordering::Relaxed);
        if behind == 0 || now < behind {
            return;
        }
        self.behind_unix_ms.store(0, Ordering::Relaxed);
        let ran = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.advance((now - behind).min(DOWN_MS_MAX).saturating_sub(ran));
    }

    /// Milliseconds of engine time.
    #[must_use]
    pub fn now_ms(&self) -> u64 {
        let elapsed = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        elapsed + self.ahead_ms.load(Ordering::Relaxed)
    }

    /// Milliseconds since the start.
    #[must_use]
    pub fn uptime_ms(&self) -> u64 {
        self.now_ms() - self.first_ms
    }

    /// Jumps forward.
    pub fn advance(&self, ms: u64) {
        self.ahead_ms.fetch_add(ms, Ordering::Relaxed);
    }

    /// Milliseconds since 1970 of the wall clock, jumps included.
    #[must_use]
    pub fn unix_ms(&self) -> u64 {
        unix_ms() + self.ahead_ms.load(Ordering::Relaxed).saturating_sub(self.first_ms)
    }

    /// Seconds since 1970 of the wall clock, jumps included.
    #[must_use]
    pub fn unix_s(&self) -> u64 {
        let wall_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        wall_s + self.ahead_ms.load(Ordering::Relaxed).saturating_sub(self.first_ms) / 1000
    }
}

/// Time that passed while the broker was down counts up to this.
pub const DOWN_MS_MAX: u64 = 7 * 24 * 3600 * 1000;

/// The wall clock, milliseconds since 1970.
#[must_use]
pub fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3_600_000;
    const ENDED: u64 = 1_700_000_000_000;

    /// The hours that the engine's clock is ahead of where the log ended.
    fn hours(clock: &Clock) -> u64 {
        (clock.now_ms() - 5_000) / HOUR
    }

    /// A machine that starts in the past: no time passes while its clock is behind the log; when it is set, the time that
    /// the broker was down is added, once, and at most seven days of it.
    #[test]
    fn a_clock_that_was_behind_catches_up_once() {
        for (jump, counts) in [(0, 0), (3, 3), (24 * 100, 24 * 7)] {
            let clock = Clock::resumed(5_000, Some(ENDED));
            for early in [0, ENDED - 1] {
                clock.catch_up_at(early);
                assert_eq!(hours(&clock), 0, "at {early}");
            }
            // what has run since the start is not added twice
            let ran = HOUR / 2;
            clock.catch_up_at(ENDED + jump * HOUR + ran.min(jump * HOUR));
            assert_eq!(hours(&clock), counts);
            clock.catch_up_at(ENDED + 1_000 * HOUR);
            assert_eq!(hours(&clock), counts, "a later jump is none of its business");
        }
    }

    /// Wall time that jumps back or forward while the broker runs does not move the engine's clock.
    #[test]
    fn a_clock_that_was_right_is_left_alone() {
        let clock = Clock::resumed(5_000, None);
        for wall in [0, ENDED, ENDED + 1_000 * HOUR, 1] {
            clock.catch_up_at(wall);
            assert_eq!(hours(&clock), 0);
        }
    }
}
