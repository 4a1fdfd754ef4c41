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
}

impl Default for Clock {
    fn default() -> Self {
        Self { start: Instant::now(), ahead_ms: AtomicU64::new(FIRST_MS) }
    }
}

impl Clock {
    /// Milliseconds of engine time.
    #[must_use]
    pub fn now_ms(&self) -> u64 {
        let elapsed = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        elapsed + self.ahead_ms.load(Ordering::Relaxed)
    }

    /// Milliseconds since the start.
    #[must_use]
    pub fn uptime_ms(&self) -> u64 {
        self.now_ms() - FIRST_MS
    }

    /// Jumps forward.
    pub fn advance(&self, ms: u64) {
        self.ahead_ms.fetch_add(ms, Ordering::Relaxed);
    }

    /// Seconds since 1970 of the wall clock, jumps included.
    #[must_use]
    pub fn unix_s(&self) -> u64 {
        let wall_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        wall_s + (self.ahead_ms.load(Ordering::Relaxed) - FIRST_MS) / 1000
    }
}
