//! What became of a client's messages: `roost why`.

use std::collections::BTreeMap;

use serde_json::json;

use super::Lane;
use crate::log::Wanted;
use crate::queue::Stage;

/// Most messages of a queue that are looked at; what is on disk only must be read.
const LOOKED_AT_MAX: usize = 10_000;

impl Lane {
    /// Answers by the event `why`: state of the session, what waits by topic, and the ledger.
    pub(super) fn explain(&self, id: u64, client_id: &str, topic: Option<&str>) {
        let number = usize::from(self.shared.ring.partition(client_id));
        let partition = self.partitions.get(number).and_then(|p| p.as_deref());
        let session = partition.and_then(|p| p.state().session(p.state().find(client_id)?));
        let drops = self.ledger.of(Some(client_id)).filter(|e| topic.is_none_or(|t| *e.topic == *t));
        let drops: Vec<_> = drops.map(crate::stats::LedgerEntry::json).collect();
        let Some(s) = session else {
            return self.shared.events.push(json!({
                "event": "why", "id": id, "client_id": client_id, "found": false, "connected": false, "expiry_s": 0,
                "queued": 0, "sent_unacknowledged": 0, "finished": 0, "subscriptions": [], "topics": [], "drops": drops,
            }));
        };
        let mut topics: BTreeMap<Box<str>, u64> = BTreeMap::new();
        let mut on_disk = Vec::new();
        for (index, e) in s.queue.iter().filter(|(_, e)| e.needs_body()).take(LOOKED_AT_MAX) {
            match &e.body {
                Some(body) => *topics.entry(body.view().topic.into()).or_default() += 1,
                None => on_disk.push(Wanted { index, at: e.at, len: e.len }),
            }
        }
        let sent = s.queue.iter().filter(|(_, e)| !matches!(e.stage, Stage::Waiting | Stage::Done)).count();
        let mut subscriptions: Vec<&str> = s.subscriptions.keys().map(|f| &**f).collect();
        subscriptions.sort_unstable();
        let answer = json!({
            "event": "why", "id": id, "client_id": client_id, "found": true, "connected": s.channel.is_some(),
            "expiry_s": s.expiry_s, "queued": s.queue.waiting(), "sent_unacknowledged": sent,
            "finished": s.queue.base(), "subscriptions": subscriptions, "drops": drops,
            "slot": s.channel.filter(|_| self.fleet.is_some()).map(|c| crate::ring::Ring::slot(c.connection.lane)),
        });
        let topic = topic.map(str::to_owned);
        let (events, data) = (std::sync::Arc::clone(&self.shared.events), self.shared.data.clone());
        // reading may take a while, and the lane has other work
        let finish = move || {
            if let Some((path, _)) = data {
                for name in crate::log::topics_at(&crate::log::Disk { path }, &on_disk) {
                    *topics.entry(name).or_default() += 1;
                }
            }
            let wanted = topics.iter().filter(|(name, _)| topic.as_deref().is_none_or(|t| name.as_ref() == t));
            let topics: Vec<_> = wanted.map(|(name, n)| json!({"topic": name, "queued": n})).collect();
            let mut answer = answer;
            if let Some(fields) = answer.as_object_mut() {
                fields.insert("topics".to_owned(), topics.into());
            }
            events.push(answer);
        };
        drop(std::thread::Builder::new().name("why".to_owned()).spawn(finish));
    }
}
