//! Addresses that fail to log in again and again wait longer and longer for the answer.

use std::collections::HashMap;
use std::net::IpAddr;

/// Addresses remembered at most.
const ADDRESSES_MAX: usize = 10_000;
const WINDOW_MS: u64 = 60_000;
const FIRST_DELAY_MS: u64 = 250;
const DELAY_MAX_MS: u64 = 4_000;

/// Failures by address within the last minute.
#[derive(Debug)]
pub struct Throttle {
    failures_max: u32,
    table: HashMap<IpAddr, (u32, u64)>,
}

impl Throttle {
    /// Delays begin above so many failures; 0 turns them off.
    #[must_use]
    pub fn new(failures_max: u32) -> Self {
        Self { failures_max, table: HashMap::new() }
    }

    /// A login has failed.
    pub fn failed(&mut self, ip: IpAddr, now_ms: u64) {
        if self.table.len() >= ADDRESSES_MAX && !self.table.contains_key(&ip) {
            self.table.retain(|_, (_, since)| now_ms < *since + WINDOW_MS);
            if self.table.len() >= ADDRESSES_MAX {
                self.table.clear();
            }
        }
        let (count, since) = self.table.entry(ip).or_insert((0, now_ms));
        if now_ms >= *since + WINDOW_MS {
            (*count, *since) = (0, now_ms);
        }
        *count += 1;
    }

    /// How long an answer to this address waits.
    #[must_use]
    pub fn delay_ms(&self, ip: IpAddr, now_ms: u64) -> u64 {
        let Some((count, since)) = self.table.get(&ip) else { return 0 };
        if self.failures_max == 0 || now_ms >= since + WINDOW_MS || *count <= self.failures_max {
            return 0;
        }
        let doublings = (count - self.failures_max - 1).min(8);
        (FIRST_DELAY_MS << doublings).min(DELAY_MAX_MS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Free up to the bound, then doubling up to a maximum, forgotten after a minute.
    #[test]
    fn doubles_and_forgets() {
        let ip = IpAddr::from([127, 0, 0, 1]);
        let mut t = Throttle::new(2);
        let mut delays = Vec::new();
        for _ in 0..8 {
            t.failed(ip, 5);
            delays.push(t.delay_ms(ip, 5));
        }
        assert_eq!(delays, [0, 0, 250, 500, 1000, 2000, 4000, 4000]);
        assert_eq!(t.delay_ms(ip, 60_005), 0);
    }
}
