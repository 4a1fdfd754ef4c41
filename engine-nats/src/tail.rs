//! What a standby does: reads partitions as they are written. One ordered consumer for each stream, whatever the number of
//! partitions: consumers are what JetStream has few of.
//!
//! A consumer may be served by a copy that lags or has lost something. So the beginning is read from the leader, and
//! where the chain is broken the leader is asked before it is called damage. What comes before an `EPOCH` is not named by
//! it, so everything up to one is read from the leader too.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream;
use async_nats::jetstream::consumer::{DeliverPolicy, push::OrderedConfig};
use futures_util::StreamExt as _;
use roostmq_engine::log::{Anchor, ClusterLogEvent, ClusterLogNotify};
use tokio::task::JoinHandle;

use crate::ask::Asker;
use crate::frame::{Kind, decode};
use crate::read::read_on;
use crate::replay::Replay;

const AGAIN: Duration = Duration::from_millis(500);

/// Follows partitions until the tasks are aborted.
pub fn follow(ask: &Asker, notify: &ClusterLogNotify, partitions: Vec<(u16, Anchor)>) -> Vec<JoinHandle<()>> {
    let mut by_stream: BTreeMap<u16, HashMap<u16, Replay>> = BTreeMap::new();
    for (partition, known) in partitions {
        let replay = Replay::new(partition, known);
        by_stream.entry(ask.names.stream_of(partition)).or_default().insert(partition, replay);
    }
    let one = |(stream, replays)| {
        let tail = Tail { ask: ask.clone(), notify: Arc::clone(notify), stream, replays };
        tokio::spawn(tail.run())
    };
    by_stream.into_iter().map(one).collect()
}

struct Tail {
    ask: Asker,
    notify: ClusterLogNotify,
    stream: u16,
    replays: HashMap<u16, Replay>,
}

impl Tail {
    async fn run(mut self) {
        while !self.replays.is_empty() {
            self.catch_up().await;
            let _ = self.listen().await;
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// From the leader, as far as it knows.
    async fn catch_up(&mut self) {
        let all: Vec<u16> = self.replays.keys().copied().collect();
        for p in all {
            self.ask_leader(p).await;
        }
    }

    async fn ask_leader(&mut self, partition: u16) {
        let Some(replay) = self.replays.get_mut(&partition) else { return };
        let read = read_on(&self.ask, partition, replay, &self.notify).await;
        if let Err(why) = read.and_then(|()| replay.check_front()) {
            self.replays.remove(&partition);
            (self.notify)(ClusterLogEvent::Damaged { partition, why });
        }
    }

    /// Until the consumer ends. Messages that are known already are passed over by the replay.
    async fn listen(&mut self) -> Result<(), async_nats::Error> {
        let context = jetstream::new(self.ask.client.clone());
        let stream = context.get_stream_no_info(self.ask.names.stream(self.stream)).await?;
        let from = self.replays.values().map(|r| r.known().at + 1).min().unwrap_or(1);
        let config = OrderedConfig {
            deliver_subject: self.ask.client.new_inbox(),
            filter_subjects: self.replays.keys().map(|p| self.ask.names.subject(*p)).collect(),
            deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: from },
            ..OrderedConfig::default()
        };
        let mut messages = stream.create_consumer(config).await?.messages().await?;
        while let Some(message) = messages.next().await {
            let message = message?;
            let at = message.info()?.stream_sequence;
            let Some(p) = message.subject.rsplit('.').next().and_then(|p| p.parse::<u16>().ok()) else { continue };
            let Some(replay) = self.replays.get_mut(&p) else { continue };
            let what = decode(&message.payload).map(|(mark, records)| (mark, records.to_vec()));
            if at > replay.known().at && matches!(&what, Some((mark, _)) if mark.kind == Kind::Epoch) {
                self.ask_leader(p).await;
                continue;
            }
            let before = replay.clone();
            match replay.take((at, what)) {
                Ok(Some(append)) => (self.notify)(ClusterLogEvent::Read { partition: p, appends: vec![append] }),
                Ok(None) => {}
                Err(_) => {
                    *replay = before;
                    self.ask_leader(p).await;
                }
            }
        }
        Ok(())
    }
}
