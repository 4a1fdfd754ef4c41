//! Addresses that fail to log in again and again wait longer and longer for the answer.
//!
//! Whoever shows good credentials is never delayed, whatever else comes from that address. It does not wipe out the
//! failures: who has one password could guess at others without end, one good login after every few bad ones. An IPv6
//! client owns a whole /64, so that is what counts. The table is bounded: when it is full, addresses that are not
//! delayed yet are forgotten first.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};

/// Addresses remembered at most.
const ADDRESSES_MAX: usize = 10_000;
const WINDOW_MS: u64 = 60_000;
const FIRST_DELAY_MS: u64 = 250;
const DELAY_MAX_MS: u64 = 4_000;

#[derive(Debug)]
struct Failures {
    count: u32,
    /// When the first of them happened.
    since_ms: u64,
}

impl Failures {
    const fn over(&self, now_ms: u64) -> bool {
        now_ms >= self.since_ms.saturating_add(WINDOW_MS)
    }
}

/// Failures by address within a minute.
#[derive(Debug)]
pub struct Throttle {
    failures_max: u32,
    table: HashMap<IpAddr, Failures>,
}

impl Throttle {
    /// Delays begin above so many failures; 0 turns them off.
    #[must_use]
    pub fn new(failures_max: u32) -> Self {
        Self { failures_max, table: HashMap::new() }
    }

    /// A login has failed.
    pub fn failed(&mut self, ip: IpAddr, now_ms: u64) {
        let ip = network(ip);
        if self.table.len() >= ADDRESSES_MAX && !self.table.contains_key(&ip) {
            self.make_room(now_ms);
        }
        let failures = self.table.entry(ip).or_insert(Failures { count: 0, since_ms: now_ms });
        if failures.over(now_ms) {
            *failures = Failures { count: 0, since_ms: now_ms };
        }
        failures.count = failures.count.saturating_add(1);
    }

    /// How long an answer to this address waits.
    #[must_use]
    pub fn delay_ms(&self, ip: IpAddr, now_ms: u64) -> u64 {
        let Some(failures) = self.table.get(&network(ip)) else { return 0 };
        if self.failures_max == 0 || failures.over(now_ms) || failures.count <= self.failures_max {
            return 0;
        }
        let doublings = (failures.count - self.failures_max - 1).min(8);
        (FIRST_DELAY_MS << doublings).min(DELAY_MAX_MS)
    }

    fn make_room(&mut self, now_ms: u64) {
        let free = self.failures_max;
        self.table.retain(|_, f| !f.over(now_ms));
        if self.table.len() >= ADDRESSES_MAX {
            self.table.retain(|_, f| f.count > free);
        }
        if self.table.len() >= ADDRESSES_MAX {
            self.table.clear();
        }
    }
}

/// What one client can choose from freely counts as one address.
const fn network(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(_) => ip,
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => IpAddr::V4(v4),
            None => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !(u64::MAX as u128))),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOME: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    /// Free up to the bound, then doubling up to a maximum, forgotten after a minute.
    #[test]
    fn doubles_and_forgets() {
        let mut t = Throttle::new(2);
        let mut delays = Vec::new();
        for _ in 0..8 {
            t.failed(HOME, 5);
            delays.push(t.delay_ms(HOME, 5));
        }
        assert_eq!(delays, [0, 0, 250, 500, 1000, 2000, 4000, 4000]);
        assert_eq!((t.delay_ms(HOME, 60_004), t.delay_ms(HOME, 60_005)), (4000, 0));
        t.failed(HOME, 60_005);
        assert_eq!(t.delay_ms(HOME, 60_005), 0, "the count begins anew");
        let mut off = Throttle::new(0);
        off.failed(HOME, 5);
        assert_eq!(off.delay_ms(HOME, 5), 0);
    }

    /// Who owns a /64 does not get a fresh count for each address in it; mapped IPv4 is IPv4.
    #[test]
    fn counts_networks() {
        let mut t = Throttle::new(1);
        for host in ["2001:db8:0:1::1", "2001:db8:0:1:ffff::9", "192.0.2.1", "::ffff:192.0.2.1"] {
            t.failed(host.parse().unwrap(), 0);
        }
        let delay = |host: &str| t.delay_ms(host.parse().unwrap(), 0);
        assert_eq!((delay("2001:db8:0:1::7"), delay("2001:db8:0:2::1"), delay("192.0.2.1")), (250, 0, 250));
    }

    /// A flood of addresses neither grows the table nor frees the one that is being slowed.
    #[test]
    fn bounded() {
        let mut t = Throttle::new(3);
        for _ in 0..9 {
            t.failed(HOME, 0);
        }
        for i in 0..3 * ADDRESSES_MAX {
            t.failed(IpAddr::from(u32::try_from(i).unwrap().to_be_bytes()), 1);
            assert!(t.table.len() <= ADDRESSES_MAX);
        }
        assert_eq!(t.delay_ms(HOME, 1), 4000);
    }
}
