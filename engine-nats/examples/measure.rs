//! What a cluster's log on JetStream can carry, and whether an atomic batch holds its promises.
//!
//! Started by `bench/nats_log.py`, which runs the servers. One line of JSON for each cell on standard output.
//! Shapes: `chain` is one append in flight in each subject; `atomic` one atomic batch in flight for each owner and stream,
//! with a message for each of its subjects. Both name the last sequence of the subject. `full` writes 4,096 bytes as
//! fast as it goes; `open` has 10,000 messages of 256 bytes a second on a fixed schedule, what came meanwhile is one append,
//! and a latency counts from the scheduled instant.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_nats::{Client, HeaderMap};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde_json::{Value, json};

type Failed = Box<dyn std::error::Error + Send + Sync>;

const STREAMS: usize = 8;
const OWNERS: usize = 3;
const FULL_BYTES: usize = 4096;
const OPEN_BYTES: usize = 256;
const OPEN_PER_S: usize = 10_000;

#[tokio::main]
async fn main() -> Result<(), Failed> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let arg = |n: usize| args.get(n).map_or("", String::as_str);
    let urls: Vec<_> = arg(0).split(',').map(str::to_owned).collect();
    let client = async_nats::connect(urls).await?;
    match arg(1) {
        "setup" => setup(&client).await,
        "fence" => fence(&client).await,
        "kill" => kill(&client, Duration::from_secs(arg(2).parse()?)).await,
        shape @ ("chain" | "atomic") => {
            let cell = Cell {
                atomic: shape == "atomic",
                open: arg(2) == "open",
                subjects: arg(3).parse()?,
                time: Duration::from_secs(arg(4).parse()?),
            };
            run(&client, cell).await
        }
        _ => Err("measure URL setup | fence | kill SECONDS | chain|atomic full|open SUBJECTS SECONDS".into()),
    }
}

async fn api(client: &Client, subject: String, body: Value) -> Result<Value, Failed> {
    let answer = client.request(subject, body.to_string().into()).await?;
    Ok(serde_json::from_slice(&answer.payload)?)
}

async fn setup(client: &Client) -> Result<(), Failed> {
    for s in 0..STREAMS {
        let body = json!({"name": format!("m{s}"), "subjects": [format!("m{s}.>")], "num_replicas": 3,
            "storage": "file", "retention": "limits", "discard": "new", "max_bytes": 1_000_000_000_u64,
            "allow_atomic": true, "allow_direct": false});
        for attempt in 0.. {
            let answer = api(client, format!("$JS.API.STREAM.CREATE.m{s}"), body.clone()).await;
            match answer {
                Ok(v) if v.get("error").is_none() => break,
                other if attempt > 20 => return Err(format!("{other:?}").into()),
                _ => tokio::time::sleep(Duration::from_millis(500)).await,
            }
        }
    }
    Ok(())
}

async fn purge(client: &Client) -> Result<(), Failed> {
    for s in 0..STREAMS {
        api(client, format!("$JS.API.STREAM.PURGE.m{s}"), json!({})).await?;
    }
    Ok(())
}

fn headers(expect: u64) -> HeaderMap {
    let mut h = HeaderMap::new();
    h.insert("Nats-Expected-Last-Subject-Sequence", expect.to_string());
    h
}

/// Sequence of a stored append.
async fn append(client: &Client, subject: &str, h: HeaderMap, body: Bytes) -> Result<u64, Failed> {
    let answer = client.request_with_headers(subject.to_owned(), h, body).await?;
    let v: Value = serde_json::from_slice(&answer.payload)?;
    match v.get("seq").and_then(Value::as_u64) {
        Some(seq) if v.get("error").is_none() => Ok(seq),
        _ => Err(v.to_string().into()),
    }
}

/// One atomic batch; the sequence of its last message. Messages of a batch have sequences without a gap.
async fn atomic(client: &Client, id: &str, parts: Vec<(String, u64, Bytes)>) -> Result<u64, Failed> {
    let count = parts.len();
    for (n, (subject, expect, body)) in parts.into_iter().enumerate() {
        let mut h = headers(expect);
        h.insert("Nats-Batch-Id", id);
        h.insert("Nats-Batch-Sequence", (n + 1).to_string());
        if n + 1 == count {
            h.insert("Nats-Batch-Commit", "1");
            return append(client, &subject, h, body).await;
        }
        client.publish_with_headers(subject, h, body).await?;
    }
    Err("an empty batch".into())
}

#[derive(Clone, Copy)]
struct Cell {
    atomic: bool,
    open: bool,
    subjects: usize,
    time: Duration,
}

/// What one writer carries: a chain has one subject, an atomic writer all subjects of an owner in a stream.
fn writers(cell: Cell) -> Vec<Vec<usize>> {
    if !cell.atomic {
        return (0..cell.subjects).map(|p| vec![p]).collect();
    }
    let mut all = vec![Vec::new(); STREAMS * OWNERS];
    for p in 0..cell.subjects {
        if let Some(mine) = all.get_mut(p % STREAMS + (p / STREAMS) % OWNERS * STREAMS) {
            mine.push(p);
        }
    }
    all
}

async fn run(client: &Client, cell: Cell) -> Result<(), Failed> {
    purge(client).await?;
    let start = Instant::now() + Duration::from_millis(200);
    let tasks: Vec<_> = writers(cell)
        .into_iter()
        .map(|mine| {
            let client = client.clone();
            tokio::spawn(async move { write(&client, cell, mine, start).await })
        })
        .collect();
    let (mut all, mut appends, mut messages, mut refused) = (Vec::new(), 0, 0, 0);
    for task in tasks {
        let mut tally = task.await?.map_err(|e| format!("a writer: {e}"))?;
        all.append(&mut tally.us);
        appends += tally.appends;
        messages += tally.messages;
        refused += tally.refused;
    }
    all.sort_unstable();
    let at = |share: f64| all.get((all.len() as f64 * share) as usize).copied().unwrap_or(0) as f64 / 1000.0;
    let s = cell.time.as_secs_f64();
    println!(
        "{}",
        json!({"shape": if cell.atomic { "atomic" } else { "chain" }, "load": if cell.open { "open" } else { "full" },
            "subjects": cell.subjects, "requests_s": (appends as f64 / s).round(),
            "messages_s": (messages as f64 / s).round(), "p50_ms": at(0.5), "p99_ms": at(0.99), "refused": refused})
    );
    Ok(())
}

#[derive(Default)]
struct Tally {
    us: Vec<u64>,
    appends: u64,
    messages: u64,
    refused: u64,
}

async fn write(client: &Client, cell: Cell, mine: Vec<usize>, start: Instant) -> Result<Tally, Failed> {
    let mut tally = Tally::default();
    let run = format!("{}{}{}", u8::from(cell.atomic), u8::from(cell.open), cell.subjects);
    let mut last = vec![0; mine.len()];
    // open: message number i of the load goes to subject i mod N at i/rate seconds
    let mut next: Vec<usize> = mine.clone();
    let due = |i: usize| start + Duration::from_secs_f64(i as f64 / OPEN_PER_S as f64);
    tokio::time::sleep_until(start.into()).await;
    let end = start + cell.time;
    for round in 0_u64.. {
        if cell.open {
            let first = next.iter().copied().min().unwrap_or(0);
            tokio::time::sleep_until(due(first).min(end).into()).await;
        }
        let now = Instant::now();
        if now >= end {
            break;
        }
        let mut parts = Vec::new();
        let mut came = Vec::new();
        for (n, p) in mine.iter().enumerate() {
            let mut bytes = FULL_BYTES;
            if cell.open {
                let before = came.len();
                while let Some(i) = next.get_mut(n).filter(|i| due(**i) <= now) {
                    came.push(due(*i));
                    *i += cell.subjects;
                }
                bytes = (came.len() - before) * OPEN_BYTES;
            } else {
                came.push(now);
            }
            if bytes > 0 {
                parts.push((n, format!("m{}.{run}.{p}", p % STREAMS), Bytes::from(vec![7; bytes])));
            }
        }
        if parts.is_empty() {
            continue;
        }
        let id = format!("{run}-{}-{round}", mine.first().unwrap_or(&0));
        while let Err(why) = send(client, cell, &parts, &mut last, &format!("{id}-{}", tally.refused)).await {
            // refused: the answer to the append before came before the server had forgotten that it was under way
            tally.refused += 1;
            if tally.refused > 1000 {
                return Err(why);
            }
        }
        tally.us.extend(came.iter().map(|t| t.elapsed().as_micros() as u64));
        tally.appends += 1;
        tally.messages += came.len() as u64;
    }
    Ok(tally)
}

/// Sends what came for some subjects, and remembers their sequences.
async fn send(
    client: &Client,
    cell: Cell,
    parts: &[(usize, String, Bytes)],
    last: &mut [u64],
    id: &str,
) -> Result<(), Failed> {
    let mut bodies: Vec<_> = parts
        .iter()
        .map(|(n, subject, body)| (subject.clone(), last.get(*n).copied().unwrap_or(0), body.clone()))
        .collect();
    let seq = match bodies.pop() {
        Some((subject, expect, body)) if !cell.atomic => append(client, &subject, headers(expect), body).await?,
        Some(only) => {
            bodies.push(only);
            atomic(client, id, bodies).await?
        }
        None => return Ok(()),
    };
    for (back, (n, ..)) in parts.iter().rev().enumerate() {
        if let Some(last) = last.get_mut(*n) {
            *last = seq - back as u64;
        }
    }
    Ok(())
}

/// Does a wrong sequence of one subject refuse the whole batch?
async fn fence(client: &Client) -> Result<(), Failed> {
    let part = |p: usize, expect: u64| (format!("m0.fence.{p}"), expect, Bytes::from_static(b"x"));
    let first = atomic(client, "f1", vec![part(0, 0), part(1, 0), part(2, 0)]).await?;
    let wrong = atomic(client, "f2", vec![part(0, first - 2), part(1, first), part(2, first)]).await;
    let refused = wrong.as_ref().err().map(ToString::to_string);
    // a foreign append to one of the subjects between two batches of the owner
    append(client, "m0.fence.1", HeaderMap::new(), Bytes::from_static(b"foreign")).await?;
    let late = atomic(client, "f3", vec![part(0, first - 2), part(1, first - 1), part(2, first)]).await;
    let unchanged = append(client, "m0.fence.0", headers(first - 2), Bytes::from_static(b"y")).await.is_ok();
    println!(
        "{}",
        json!({"fence": {"wrong_refused": refused, "fenced": late.err().map(|e| e.to_string()),
            "nothing_of_them_stored": unchanged}})
    );
    Ok(())
}

const KILL_SUBJECTS: usize = 8;

/// Atomic batches in every stream for a time, while somebody kills servers; afterwards everything is read and counted.
async fn kill(client: &Client, time: Duration) -> Result<(), Failed> {
    purge(client).await?;
    let stop = Arc::new(AtomicBool::new(false));
    let unknown = Arc::new(AtomicU64::new(0));
    let tasks: Vec<_> = (0..STREAMS)
        .map(|s| {
            let (client, stop, unknown) = (client.clone(), Arc::clone(&stop), Arc::clone(&unknown));
            tokio::spawn(async move { batches(&client, s, &stop, &unknown).await })
        })
        .collect();
    let end = Instant::now() + time;
    while Instant::now() < end {
        if let Ok(info) = api(client, "$JS.API.STREAM.INFO.m0".to_owned(), json!({})).await {
            println!("leader {}", info.pointer("/cluster/leader").and_then(Value::as_str).unwrap_or("-"));
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    stop.store(true, Ordering::Relaxed);
    let (mut acked, mut torn, mut lost, mut whole) = (0, 0, 0, 0);
    for (s, task) in tasks.into_iter().enumerate() {
        let acks = task.await??;
        let found = read_back(client, s).await?;
        whole += found.values().filter(|n| **n == KILL_SUBJECTS).count();
        torn += found.values().filter(|n| **n != KILL_SUBJECTS).count();
        lost += acks.iter().filter(|b| !found.contains_key(b)).count();
        acked += acks.len();
    }
    println!(
        "{}",
        json!({"kill": {"batches_of": KILL_SUBJECTS, "acknowledged": acked, "whole": whole, "torn": torn,
            "lost": lost, "unknown": unknown.load(Ordering::Relaxed)}})
    );
    Ok(())
}

/// Writes numbered batches; an unknown one is given up, and the sequences are read again.
async fn batches(c: &Client, s: usize, stop: &AtomicBool, unknown: &AtomicU64) -> Result<Vec<u64>, Failed> {
    let mut last = [0; KILL_SUBJECTS];
    let mut acks = Vec::new();
    for number in 0_u64.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let parts = last
            .iter()
            .enumerate()
            .map(|(p, expect)| (format!("m{s}.kill.{p}"), *expect, Bytes::from(format!("{number} {p}"))));
        let id = format!("k{s}-{number}");
        let sent = atomic(c, &id, parts.collect());
        if let Ok(Ok(seq)) = tokio::time::timeout(Duration::from_secs(2), sent).await {
            acks.push(number);
            for (p, last) in last.iter_mut().enumerate() {
                *last = seq + 1 + p as u64 - KILL_SUBJECTS as u64;
            }
            continue;
        }
        unknown.fetch_add(1, Ordering::Relaxed);
        for (p, last) in last.iter_mut().enumerate() {
            *last = last_seq(c, s, p).await;
        }
    }
    Ok(acks)
}

/// The last sequence of a subject, asked until the stream has a leader.
async fn last_seq(c: &Client, s: usize, p: usize) -> u64 {
    loop {
        let ask = json!({"last_by_subj": format!("m{s}.kill.{p}")});
        if let Ok(v) = api(c, format!("$JS.API.STREAM.MSG.GET.m{s}"), ask).await {
            if let Some(seq) = v.pointer("/message/seq").and_then(Value::as_u64) {
                return seq;
            }
            if v.pointer("/error/code").and_then(Value::as_u64) == Some(404) {
                return 0;
            }
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// How many messages of each batch are there, read from the leader.
async fn read_back(client: &Client, s: usize) -> Result<std::collections::HashMap<u64, usize>, Failed> {
    let info = api(client, format!("$JS.API.STREAM.INFO.m{s}"), json!({})).await?;
    let at = |what: &str| info.pointer(what).and_then(Value::as_u64).unwrap_or(0);
    let (first, last) = (at("/state/first_seq"), at("/state/last_seq"));
    let mut found = std::collections::HashMap::new();
    let mut seq = first;
    while seq <= last {
        let asks = (seq..=last.min(seq + 255))
            .map(|n| api(client, format!("$JS.API.STREAM.MSG.GET.m{s}"), json!({ "seq": n })));
        for answer in futures_util::future::join_all(asks).await {
            let answer = answer?;
            let data = answer.pointer("/message/data").and_then(Value::as_str).ok_or("a gap")?;
            let text = String::from_utf8(STANDARD.decode(data)?)?;
            let number: u64 = text.split(' ').next().unwrap_or("").parse()?;
            *found.entry(number).or_insert(0) += 1;
        }
        seq += 256;
    }
    Ok(found)
}
