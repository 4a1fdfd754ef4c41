//! Reading a partition's log from the stream's leader, in windows that are as wide as memory allows.

use roostmq_engine::log::{Anchor, ClusterLogEvent, ClusterLogNotify};

use crate::ask::Asker;
use crate::chain::{MISSES_MAX, Seen};
use crate::replay::Replay;

/// Width of the first window, addresses of the stream.
pub const WIDTH: u64 = 256;
const WIDTHS: std::ops::RangeInclusive<u64> = 16..=8192;
/// A window that brought less may be wider, one that brought more must be narrower, bytes.
const WINDOW_BYTES: std::ops::RangeInclusive<usize> = 4 << 20..=16 << 20;
const PAUSE: std::time::Duration = std::time::Duration::from_millis(250);

/// Width of the window after this one.
#[must_use]
pub fn next_width(width: u64, seen: &Seen) -> u64 {
    let bytes: usize = seen.found.iter().filter_map(|(_, what)| what.as_ref()).map(|(_, records)| records.len()).sum();
    let wanted = match bytes {
        few if few < *WINDOW_BYTES.start() => width * 2,
        many if many > *WINDOW_BYTES.end() => width / 4,
        _ => width,
    };
    wanted.clamp(*WIDTHS.start(), *WIDTHS.end())
}

/// Reads behind what is known up to the end, tells the appends, and returns what remains to be told.
pub async fn read(ask: &Asker, partition: u16, known: Anchor, notify: &ClusterLogNotify) -> Vec<ClusterLogEvent> {
    let mut replay = Replay::new(partition, known);
    match read_on(ask, partition, &mut replay, notify).await.and_then(|()| replay.check_front()) {
        Ok(()) => vec![ClusterLogEvent::ReadEnd { partition, end: replay.known() }],
        Err(why) => vec![ClusterLogEvent::Damaged { partition, why }],
    }
}

/// Goes on with a replay until the end of the log, as the leader knows it.
///
/// # Errors
/// The log is not what was written.
pub async fn read_on(
    ask: &Asker,
    partition: u16,
    replay: &mut Replay,
    notify: &ClusterLogNotify,
) -> Result<(), String> {
    let (mut upto, mut width, mut misses) = (replay.known().at, WIDTH, 0);
    loop {
        let Some(seen) = ask.look(partition, upto, width).await else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        if seen.upto < upto {
            // shorter than what was known: asked again, a leader that is none any more may have said it
            misses += 1;
            if misses >= MISSES_MAX {
                return Err(format!("partition {partition}: the log ends at {}, but reached to {upto}", seen.upto));
            }
            tokio::time::sleep(PAUSE).await;
            continue;
        }
        (upto, width) = (seen.upto, next_width(width, &seen));
        let mut appends = Vec::new();
        let taken =
            seen.found.into_iter().try_for_each(|found| replay.take(found).map(|append| appends.extend(append)));
        if let Err(why) = taken {
            // given back while it was read? Then the front lies behind what was read.
            let Some(front) = ask.front(partition).await else { continue };
            if front <= replay.known().at {
                return Err(why);
            }
            *replay = Replay::new(partition, Anchor::default());
            upto = 0;
            notify(ClusterLogEvent::Again { partition });
            continue;
        }
        if !appends.is_empty() {
            notify(ClusterLogEvent::Read { partition, appends });
        }
        if seen.end {
            return Ok(());
        }
    }
}
