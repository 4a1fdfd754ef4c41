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
        let behind = self.behind_unix_ms.load(Ordering::Relaxed);
        let now = unix_ms();
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
