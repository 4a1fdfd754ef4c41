//! What a load costs: CPU and memory of the broker's processes, CPU of the generator's own thread.

use std::fs;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// CPU and memory of some processes together.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    pub cpu_s: f64,
    pub rss_bytes: u64,
}

/// What the processes have used so far; None without processes.
///
/// # Errors
/// One of them is not there, or this system has no `/proc`.
pub fn of(pids: &[u32]) -> Result<Option<Usage>, String> {
    let mut all = Usage::default();
    for pid in pids {
        let one = process(*pid).ok_or_else(|| format!("--pid {pid}: no such process, or no /proc to read it from"))?;
        all.cpu_s += one.cpu_s;
        all.rss_bytes += one.rss_bytes;
    }
    Ok((!pids.is_empty()).then_some(all))
}

fn process(pid: u32) -> Option<Usage> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // the name in brackets may hold anything
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks: u64 = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
    let statm = fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let pages: u64 = statm.split_whitespace().nth(1)?.parse().ok()?;
    Some(Usage {
        cpu_s: ticks as f64 / rustix::param::clock_ticks_per_second() as f64,
        rss_bytes: pages * rustix::param::page_size() as u64,
    })
}

/// CPU time of this thread.
#[must_use]
pub fn own_cpu() -> Duration {
    let t = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(u64::try_from(t.tv_sec).unwrap_or(0), u32::try_from(t.tv_nsec).unwrap_or(0))
}
