//! Whether the servers sync what they store before they acknowledge it.
//!
//! A user of an ordinary account cannot see it: neither the account's information nor a stream's names it (2.15). A user of
//! the system account can: every server answers `$SYS.REQ.SERVER.PING.JSZ` with its JetStream configuration. The monitoring
//! port (`/varz`, `/jsz`) shows the same. Where neither is to be had, whoever runs NATS has to assert it.

use std::time::Duration;

use async_nats::Client;
use futures_util::StreamExt as _;
use serde_json::Value;

use crate::stream::version_suits;

/// So long answers of servers are collected.
const COLLECT: Duration = Duration::from_millis(800);

/// What the servers said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sync {
    /// All that answered sync always; how many.
    Always(usize),
    /// These do not, or are too old.
    Not(Vec<String>),
    /// Nobody answered: this user may not ask.
    Unknown,
}

/// Asks all servers, as a user of the system account.
pub async fn read(client: &Client) -> Sync {
    let inbox = client.new_inbox();
    let Ok(mut answers) = client.subscribe(inbox.clone()).await else { return Sync::Unknown };
    if client.publish_with_reply("$SYS.REQ.SERVER.PING.JSZ", inbox, "".into()).await.is_err() {
        return Sync::Unknown;
    }
    let mut all = Vec::new();
    let collect = async {
        while let Some(answer) = answers.next().await {
            all.extend(serde_json::from_slice::<Value>(&answer.payload).ok());
        }
    };
    let _ = tokio::time::timeout(COLLECT, collect).await;
    judge(&all)
}

fn judge(answers: &[Value]) -> Sync {
    let with_jetstream: Vec<_> = answers.iter().filter(|a| a.pointer("/data/config").is_some()).collect();
    let text = |a: &Value, at: &str| a.pointer(at).and_then(Value::as_str).unwrap_or("?").to_owned();
    let mut not = Vec::new();
    for a in &with_jetstream {
        let (name, version) = (text(a, "/server/name"), text(a, "/server/ver"));
        if !version_suits(&version) {
            not.push(format!("{name} is nats-server {version}"));
        }
        if a.pointer("/data/config/sync_always").and_then(Value::as_bool) != Some(true) {
            let ns = a.pointer("/data/config/sync_interval").and_then(Value::as_u64).unwrap_or(0);
            not.push(format!("{name} syncs every {} s", ns / 1_000_000_000));
        }
    }
    match (with_jetstream.len(), not.is_empty()) {
        (0, _) => Sync::Unknown,
        (n, true) => Sync::Always(n),
        (_, false) => Sync::Not(not),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// As a 2.15 server answers.
    #[test]
    fn one_lazy_server_is_enough() {
        let server =
            |name: &str, config: Value| json!({"server": {"name": name, "ver": "2.15.1"}, "data": {"config": config}});
        let good = server("a", json!({"sync_interval": 120_000_000_000_u64, "sync_always": true}));
        let lazy = server("b", json!({"sync_interval": 120_000_000_000_u64}));
        assert_eq!(judge(&[]), Sync::Unknown);
        assert_eq!(judge(std::slice::from_ref(&good)), Sync::Always(1));
        assert_eq!(judge(&[good, lazy]), Sync::Not(vec!["b syncs every 120 s".to_owned()]));
    }
}
