//! The streams of a cluster's log: how they are made, and whether they and their servers are what we need.
//!
//! A stream is made only when the caller says that the cluster is new. One that is missing later is a loss, never a
//! beginning (`30-cluster.md`, section 3).

use serde_json::{Value, json};

use crate::ask::{Asker, error_code};
use crate::sync::Sync;

/// Oldest server: the code of a wrong last sequence and the metadata layer of older ones are others.
pub const SERVER_MIN: (u64, u64) = (2, 12);
const NO_STREAM: u64 = 10059;

/// What we need of the streams.
#[derive(Debug, Clone)]
pub struct Needs {
    /// Copies of each; `None`: 3, or as many as there are servers.
    pub replicas: Option<u64>,
    /// So many servers there are at least: a server that has just started does not know the others.
    pub servers: usize,
    /// Bytes that each may hold; when they are full nothing is taken and nothing goes.
    pub max_bytes: u64,
    /// The cluster is new: make what is missing.
    pub create: bool,
    /// Whether the servers must sync before they acknowledge (class `durable`).
    pub sync: SyncNeed,
}

/// Whether the servers must sync before they acknowledge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SyncNeed {
    /// They must, and it is read from them.
    Always,
    /// They must, and somebody has said that they do.
    Asserted,
    /// Class `replicated` is written out.
    Any,
}

/// What a look at the streams found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Suits {
    /// All is well.
    Yes,
    /// It cannot be told now.
    Away(String),
    /// It must not be used like this.
    No(Vec<String>),
}

/// Whether this version can be used.
#[must_use]
pub fn version_suits(version: &str) -> bool {
    let mut parts = version.trim_start_matches('v').split(['.', '-']).map(|p| p.parse::<u64>().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0)) >= SERVER_MIN
}

/// Looks at server and streams, makes streams where that is asked for.
pub async fn check(ask: &Asker, needs: &Needs, sync: Option<&Sync>) -> Suits {
    let info = ask.client.server_info();
    if !version_suits(&info.version) {
        let (major, minor) = SERVER_MIN;
        return Suits::No(vec![format!("nats-server {} is too old: {major}.{minor} or newer is needed", info.version)]);
    }
    let Some(account) = ask.api("INFO", &json!({})).await else {
        return Suits::Away("JetStream does not answer: is it on for this account, and has it a leader?".to_owned());
    };
    if let Some(error) = account.get("error") {
        return Suits::No(vec![format!("JetStream cannot be used: {error}")]);
    }
    let replicas = needs.replicas.unwrap_or_else(|| info.connect_urls.len().max(needs.servers).clamp(1, 3) as u64);
    let mut wrong = sync_faults(needs.sync, sync);
    for number in 0..ask.names.streams {
        match check_one(ask, number, needs, replicas).await {
            Ok(faults) => wrong.extend(faults),
            Err(away) => return Suits::Away(away),
        }
    }
    if wrong.is_empty() { Suits::Yes } else { Suits::No(wrong) }
}

fn sync_faults(need: SyncNeed, sync: Option<&Sync>) -> Vec<String> {
    let ways = "set `sync_interval: always` in the jetstream block of every nats-server, or choose ack_default = \"replicated\"";
    match (need, sync) {
        (SyncNeed::Any | SyncNeed::Asserted, _) | (SyncNeed::Always, Some(Sync::Always(_))) => Vec::new(),
        (SyncNeed::Always, Some(Sync::Not(servers))) => {
            vec![format!("acknowledges before it syncs: {}; {ways}", servers.join(", "))]
        }
        (SyncNeed::Always, Some(Sync::Unknown) | None) => {
            vec![format!(
                "whether NATS syncs before it acknowledges cannot be read without a user of its system account; {ways}, or assert it"
            )]
        }
    }
}

/// What the settings of a stream are to be.
#[must_use]
pub fn settings(ask: &Asker, number: u16, needs: &Needs, replicas: u64) -> Value {
    json!({
        "name": ask.names.stream(number), "subjects": [ask.names.subjects(number)], "storage": "file",
        "retention": "limits", "discard": "new", "max_bytes": needs.max_bytes, "max_msgs": -1, "max_age": 0,
        "max_msgs_per_subject": -1, "max_msg_size": -1, "max_consumers": -1, "num_replicas": replicas,
        "allow_direct": false, "deny_delete": true, "deny_purge": false, "allow_rollup_hdrs": false,
    })
}

async fn check_one(ask: &Asker, number: u16, needs: &Needs, replicas: u64) -> Result<Vec<String>, String> {
    let name = ask.names.stream(number);
    let silent = || format!("stream {name} has no leader that answers");
    let mut info = ask.api(&format!("STREAM.INFO.{name}"), &json!({})).await.ok_or_else(silent)?;
    if error_code(&info) == Some(NO_STREAM) {
        if !needs.create {
            return Ok(vec![format!("stream {name} is missing; a log is never begun again: restore it")]);
        }
        let body = settings(ask, number, needs, replicas);
        info = ask.api(&format!("STREAM.CREATE.{name}"), &body).await.ok_or_else(silent)?;
    }
    if let Some(error) = info.get("error") {
        let code = error.get("code").and_then(Value::as_u64).unwrap_or(0);
        let text = format!("stream {name}: {error}");
        return if code >= 500 { Err(text) } else { Ok(vec![text]) };
    }
    if info.pointer("/cluster/leader").and_then(Value::as_str).is_some_and(str::is_empty) {
        return Err(silent());
    }
    let empty = json!({});
    Ok(faults(&name, info.get("config").unwrap_or(&empty), &settings(ask, number, needs, replicas)))
}

/// What of a stream's settings is not as it must be.
#[must_use]
pub fn faults(name: &str, has: &Value, wants: &Value) -> Vec<String> {
    let mut wrong = Vec::new();
    let number = |v: &Value, key: &str| v.get(key).and_then(Value::as_i64).unwrap_or(0);
    let mut say = |key: &str, must: String| {
        let is = has.get(key).unwrap_or(&Value::Null);
        wrong.push(format!("stream {name}: {key} is {is}, must be {must}"));
    };
    for key in ["subjects", "storage", "retention", "discard"] {
        if has.get(key) != wants.get(key) {
            say(key, wants.get(key).map_or_else(String::new, Value::to_string));
        }
    }
    for key in ["max_msgs", "max_age", "max_msgs_per_subject", "max_msg_size"] {
        if number(has, key) > 0 {
            say(key, "without a bound".to_owned());
        }
    }
    for key in ["allow_direct", "deny_purge", "sealed", "no_ack", "allow_rollup_hdrs", "allow_msg_ttl"] {
        if has.get(key).and_then(Value::as_bool) == Some(true) {
            say(key, "false".to_owned());
        }
    }
    if number(has, "max_bytes") <= 0 {
        say("max_bytes", "a bound".to_owned());
    }
    if number(has, "num_replicas") < number(wants, "num_replicas") {
        say("num_replicas", number(wants, "num_replicas").to_string());
    }
    if has.get("persist_mode").and_then(Value::as_str).is_some_and(|mode| mode == "async") {
        say("persist_mode", "default".to_owned());
    }
    for key in ["mirror", "sources", "subject_transform"] {
        if has.get(key).is_some_and(|v| !v.is_null()) {
            say(key, "absent".to_owned());
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Older servers are refused (design, section 3).
    #[test]
    fn versions() {
        for (version, suits) in
            [("2.9.10", false), ("2.11.4", false), ("2.12.0", true), ("2.15.1-RC.2", true), ("3.0.0", true)]
        {
            assert_eq!(version_suits(version), suits, "{version}");
        }
    }

    /// Each setting that could lose something is named.
    #[test]
    fn settings_that_lose_are_named() {
        let good = json!({"name": "S", "subjects": ["s.>"], "storage": "file", "retention": "limits", "discard": "new",
            "max_bytes": 1000, "num_replicas": 3});
        assert_eq!(faults("S", &good, &good), Vec::<String>::new());
        let bad = [
            ("storage", json!("memory")),
            ("retention", json!("workqueue")),
            ("discard", json!("old")),
            ("max_bytes", json!(-1)),
            ("max_age", json!(1)),
            ("max_msgs", json!(5)),
            ("max_msgs_per_subject", json!(1)),
            ("num_replicas", json!(1)),
            ("allow_direct", json!(true)),
            ("subjects", json!(["t.>"])),
            ("persist_mode", json!("async")),
            ("sources", json!([{}])),
            ("sealed", json!(true)),
        ];
        for (key, value) in bad {
            let mut has = good.clone();
            has[key] = value;
            let wrong = faults("S", &has, &good);
            assert_eq!(wrong.len(), 1, "{key}");
            assert!(wrong[0].contains(key));
        }
    }
}
