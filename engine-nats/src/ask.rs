//! Requests to JetStream for one partition: append, read from the leader, give back. Each comes back with what is known
//! for certain, or with "nobody knows"; whoever asks decides what that means (`chain`).
//!
//! Reads use `STREAM.MSG.GET`, which only the stream's leader answers (the streams have no direct access).

use std::time::Duration;

use async_nats::connection::State;
use async_nats::{Client, HeaderMap};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::future::join_all;
use roostmq_engine::log::At;
use serde_json::{Value, json};

use crate::chain::{Answer, Seen};
use crate::frame::decode;
use crate::replay::Found;

/// Reads under way at once for one partition.
const WALKERS: u64 = 16;
/// Addresses that one of them looks through at least.
const WALK_MIN: u64 = 32;
/// Error codes: the last sequence is another one.
const WRONG_LAST: [u64; 2] = [10071, 10164];
/// Error codes: no room in the stream, in the account or on the server's disk.
const NO_ROOM: [u64; 3] = [10077, 10047, 10023];
const NO_MESSAGE: u64 = 10037;

/// What streams and subjects of a cluster are called.
#[derive(Debug, Clone)]
pub struct Names {
    /// Name of the cluster: letters, digits, `-` and `_`.
    pub cluster: String,
    /// Number of streams.
    pub streams: u16,
    /// What JetStream's own subjects begin with: `$JS.API`, or `$JS.DOMAIN.API`.
    pub api: String,
}

impl Names {
    /// Number of the stream that has a partition.
    #[must_use]
    pub const fn stream_of(&self, partition: u16) -> u16 {
        if self.streams == 0 { 0 } else { partition % self.streams }
    }

    /// Name of a stream.
    #[must_use]
    pub fn stream(&self, number: u16) -> String {
        format!("ROOST_{}_LOG_{number}", self.cluster)
    }

    /// What a stream takes.
    #[must_use]
    pub fn subjects(&self, number: u16) -> String {
        format!("roost.{}.log.{number}.>", self.cluster)
    }

    /// Subject of a partition.
    #[must_use]
    pub fn subject(&self, partition: u16) -> String {
        format!("roost.{}.log.{}.{partition}", self.cluster, self.stream_of(partition))
    }
}

/// Asks JetStream.
#[derive(Debug, Clone)]
pub struct Asker {
    /// The connection.
    pub client: Client,
    /// What things are called.
    pub names: Names,
    /// So long an answer is waited for.
    pub patience: Duration,
}

impl Asker {
    /// Asks JetStream's API; `None` without an answer in time.
    pub async fn api(&self, what: &str, body: &Value) -> Option<Value> {
        if self.client.connection_state() != State::Connected {
            return None; // what waited in the client would be sent whenever it is back
        }
        let subject = format!("{}.{what}", self.names.api);
        let asked = self.client.request(subject, body.to_string().into());
        let answer = tokio::time::timeout(self.patience, asked).await.ok()?.ok()?;
        serde_json::from_slice(&answer.payload).ok()
    }

    /// Appends, if the last sequence of the partition's subject is the one expected.
    pub async fn append(&self, partition: u16, bytes: Bytes, expect: Option<At>) -> Answer {
        if self.client.connection_state() != State::Connected {
            return Answer::Unknown;
        }
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Expected-Stream", self.names.stream(self.names.stream_of(partition)));
        if let Some(expect) = expect {
            headers.insert("Nats-Expected-Last-Subject-Sequence", expect.to_string());
        }
        let asked = self.client.request_with_headers(self.names.subject(partition), headers, bytes);
        let Ok(Ok(answer)) = tokio::time::timeout(self.patience, asked).await else { return Answer::Unknown };
        let Ok(answer) = serde_json::from_slice::<Value>(&answer.payload) else { return Answer::Unknown };
        match (error_code(&answer), answer.get("seq").and_then(Value::as_u64)) {
            (Some(code), _) if WRONG_LAST.contains(&code) => Answer::WrongLast,
            (Some(code), _) if NO_ROOM.contains(&code) => Answer::Full,
            (None, Some(at)) => Answer::Stored(at),
            _ => Answer::Unknown,
        }
    }

    /// One message of the partition's stream; `Some(None)` if the leader has none like that.
    async fn get(&self, partition: u16, which: &Value) -> Option<Option<Found>> {
        let stream = self.names.stream(self.names.stream_of(partition));
        let answer = self.api(&format!("STREAM.MSG.GET.{stream}"), which).await?;
        if let Some(code) = error_code(&answer) {
            return (code == NO_MESSAGE).then_some(None);
        }
        let at = answer.pointer("/message/seq")?.as_u64()?;
        if answer.pointer("/message/subject")?.as_str()? != self.names.subject(partition) {
            return Some(None);
        }
        let data = answer.pointer("/message/data").and_then(Value::as_str).unwrap_or("");
        let bytes = STANDARD.decode(data).unwrap_or_default();
        Some(Some((at, decode(&bytes).map(|(mark, records)| (mark, records.to_vec())))))
    }

    /// The last append of a partition; `Some(None)` if there is none.
    pub async fn last(&self, partition: u16) -> Option<Option<Found>> {
        self.get(partition, &json!({"last_by_subj": self.names.subject(partition)})).await
    }

    /// The first append of a partition at this address or behind it.
    async fn next(&self, partition: u16, from: At) -> Option<Option<Found>> {
        self.get(partition, &json!({"seq": from, "next_by_subj": self.names.subject(partition)})).await
    }

    /// Address of the first append that is left of a partition; 0 if there is none. `None` if it is not known.
    pub async fn front(&self, partition: u16) -> Option<At> {
        self.next(partition, 1).await.map(|first| first.map_or(0, |(at, _)| at))
    }

    /// What lies at an address and behind it, looking through so many addresses of the stream. `None` if it is not known.
    pub async fn look(&self, partition: u16, known: At, width: u64) -> Option<Seen> {
        let last = self.last(partition).await?;
        let last_at = last.as_ref().map_or(0, |(at, _)| *at);
        let there = if known == 0 {
            None
        } else if known == last_at {
            last
        } else {
            self.get(partition, &json!({ "seq": known })).await?
        };
        let mut seen = Seen { known: there, found: Vec::new(), upto: last_at, end: true };
        if last_at <= known {
            return Some(seen);
        }
        let first = self.next(partition, known.saturating_add(1)).await??;
        let from = first.0.saturating_add(1);
        seen.upto = last_at.min(first.0.saturating_add(width));
        seen.end = seen.upto == last_at;
        let upto = seen.upto;
        seen.found.push(first);
        let walkers = upto.saturating_add(1).saturating_sub(from).div_ceil(WALK_MIN).min(WALKERS);
        let share = upto.saturating_add(1).saturating_sub(from).checked_div(walkers).unwrap_or(0);
        let walks = (0..walkers).map(|n| {
            let end = if n + 1 == walkers { upto } else { from + (n + 1) * share - 1 };
            self.walk(partition, from + n * share, end)
        });
        for walked in join_all(walks).await {
            seen.found.append(&mut walked?);
        }
        Some(seen)
    }

    /// Everything between two addresses. A server that finds nothing here does not know the last append, which another one
    /// had: its answers are worth nothing. One that names something behind the end knows all before it.
    async fn walk(&self, partition: u16, from: At, upto: At) -> Option<Vec<Found>> {
        let (mut found, mut at) = (Vec::new(), from);
        while at <= upto {
            let next = self.next(partition, at).await??;
            if next.0 > upto {
                break;
            }
            at = next.0 + 1;
            found.push(next);
        }
        Some(found)
    }

    /// Gives back what lies before an address. Always with the subject: a purge without it would take the whole stream; and
    /// always above 1: JetStream takes a missing or small number for "everything".
    pub async fn trim(&self, partition: u16, before: At) -> bool {
        if before < 2 {
            return true;
        }
        let stream = self.names.stream(self.names.stream_of(partition));
        let body = json!({"filter": self.names.subject(partition), "seq": before});
        let answer = self.api(&format!("STREAM.PURGE.{stream}"), &body).await;
        answer.is_some_and(|a| a.get("success").and_then(Value::as_bool) == Some(true))
    }
}

/// JetStream's own code of an error.
#[must_use]
pub fn error_code(answer: &Value) -> Option<u64> {
    answer.get("error").map(|e| e.get("err_code").and_then(Value::as_u64).unwrap_or(0))
}
