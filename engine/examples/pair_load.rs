//! The load of `bench/peers.py`: pairs of a publisher and a subscriber with a topic each, every message checked.
//!
//!     pair_load HOST PORT QOS BYTES SECONDS PAIRS WINDOW
//!
//! A publisher is at most WINDOW messages ahead of what its subscriber has received, so nothing has to be dropped at
//! QoS 0. A payload begins with its sequence (8 bytes); a message that is lost, doubled, out of order or changed ends the
//! run with code 1. Prints one JSON object: messages received in the time, and the time.
#![allow(clippy::indexing_slicing, clippy::panic, clippy::unwrap_used, clippy::expect_used)]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

const PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_micros(100);
const STAMP: usize = 8;

struct Plan {
    address: String,
    qos: u8,
    bytes: usize,
    time: Duration,
    window: u64,
}

#[derive(Default)]
struct Pair {
    sent: AtomicU64,
    received: AtomicU64,
    over: AtomicBool,
}

fn main() -> std::process::ExitCode {
    match run(&std::env::args().skip(1).collect::<Vec<_>>()) {
        Ok(line) => println!("{line}"),
        Err(error) => {
            eprintln!("pair_load: {error}");
            return std::process::ExitCode::FAILURE;
        }
    }
    std::process::ExitCode::SUCCESS
}

fn run(words: &[String]) -> Outcome<String> {
    let [host, port, qos, bytes, seconds, pairs, window] = words else {
        return Err("pair_load HOST PORT QOS BYTES SECONDS PAIRS WINDOW".into());
    };
    let plan = Plan {
        address: format!("{host}:{port}"),
        qos: qos.parse::<u8>()?.min(1),
        bytes: bytes.parse::<usize>()?.max(STAMP),
        time: Duration::from_secs_f64(seconds.parse()?),
        window: window.parse::<u64>()?.clamp(1, 10_000),
    };
    let pairs: Vec<Pair> = (0..pairs.parse::<usize>()?.max(1)).map(|_| Pair::default()).collect();
    let mut sockets = Vec::new();
    for n in 0..pairs.len() {
        let mut subscriber = connected(&plan, &format!("pair-sub{n}"))?;
        let topic = format!("pair/{n}");
        subscriber.write_all(&packet(0x82, &[&[0, 1], &length(&topic), topic.as_bytes(), &[plan.qos]]))?;
        let mut suback = [0; 5];
        subscriber.read_exact(&mut suback)?;
        if suback != [0x90, 3, 0, 1, plan.qos] {
            return Err(format!("not a good SUBACK: {suback:?}").into());
        }
        sockets.push((subscriber, connected(&plan, &format!("pair-pub{n}"))?));
    }
    let start = Instant::now();
    let seconds: Vec<f64> = std::thread::scope(|scope| {
        let mut threads = Vec::new();
        for (n, (pair, (subscriber, publisher))) in pairs.iter().zip(&sockets).enumerate() {
            let plan = &plan;
            threads.push(scope.spawn(move || publish(plan, n, pair, publisher, start)));
            threads.push(scope.spawn(move || subscribe(plan, n, pair, subscriber, start)));
        }
        threads.into_iter().map(|t| t.join().unwrap()).collect::<Outcome<Vec<_>>>()
    })?;
    let received: u64 = pairs.iter().map(|p| p.received.load(Ordering::Relaxed)).sum();
    let seconds = seconds.into_iter().fold(0.0, f64::max);
    Ok(format!("{{\"received\": {received}, \"seconds\": {seconds:.3}}}"))
}

fn length(text: &str) -> [u8; 2] {
    (text.len() as u16).to_be_bytes()
}

fn packet(first: u8, parts: &[&[u8]]) -> Vec<u8> {
    let (mut out, mut left) = (vec![first], parts.iter().map(|p| p.len()).sum::<usize>());
    while left > 0x7f {
        out.push((left & 0x7f) as u8 | 0x80);
        left >>= 7;
    }
    out.push(left as u8);
    parts.iter().for_each(|p| out.extend_from_slice(p));
    out
}

fn connected(plan: &Plan, id: &str) -> Outcome<TcpStream> {
    let mut socket = TcpStream::connect(&plan.address)?;
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let head = [0, 4, b'M', b'Q', b'T', b'T', 4, 2, 0, 0];
    socket.write_all(&packet(0x10, &[&head, &length(id), id.as_bytes()]))?;
    let mut got = [0; 4];
    socket.read_exact(&mut got)?;
    if got != [0x20, 2, 0, 0] {
        return Err(format!("not a good CONNACK: {got:?}").into());
    }
    Ok(socket)
}

fn identifier(number: u64) -> [u8; 2] {
    ((number % 65_535 + 1) as u16).to_be_bytes()
}

/// Sends until the time is over, then waits until everything has arrived; answers when that was.
fn publish(plan: &Plan, n: usize, pair: &Pair, mut socket: &TcpStream, start: Instant) -> Outcome<f64> {
    let topic = format!("pair/{n}");
    let (mut payload, mut sent, mut acked, mut out) = (vec![0x5a; plan.bytes], 0, 0, Vec::new());
    let (mut input, mut held) = (vec![0; 64 << 10], 0);
    while start.elapsed() < plan.time {
        let done = pair.received.load(Ordering::Acquire).min(if plan.qos > 0 { acked } else { u64::MAX });
        out.clear();
        while sent - done < plan.window {
            payload[..STAMP].copy_from_slice(&u64::to_be_bytes(sent));
            let id = identifier(sent);
            let id: &[u8] = if plan.qos > 0 { &id } else { &[] };
            out.extend(packet(0x30 | plan.qos << 1, &[&length(&topic), topic.as_bytes(), id, &payload]));
            sent += 1;
        }
        pair.sent.store(sent, Ordering::Release);
        socket.write_all(&out)?;
        if plan.qos > 0 && acked < sent {
            acked += acknowledged(socket, &mut input, &mut held, acked)?;
        } else if out.is_empty() {
            std::thread::sleep(PAUSE);
        }
    }
    while plan.qos > 0 && acked < sent {
        acked += acknowledged(socket, &mut input, &mut held, acked)?;
    }
    pair.over.store(true, Ordering::Release);
    Ok(0.0)
}

fn acknowledged(mut socket: &TcpStream, input: &mut [u8], held: &mut usize, acked: u64) -> Outcome<u64> {
    let got = socket.read(&mut input[*held..])?;
    let (end, mut count) = (*held + got, 0);
    if got == 0 {
        return Err("the publisher was closed".into());
    }
    for ack in input[..end].chunks_exact(4) {
        if ack[..2] != [0x40, 2] || ack[2..] != identifier(acked + count) {
            return Err(format!("{ack:?} where the PUBACK of {} is due", acked + count).into());
        }
        count += 1;
    }
    *held = end % 4;
    input.copy_within(end - *held..end, 0);
    Ok(count)
}

/// Checks every message; answers when the last one came.
fn subscribe(plan: &Plan, n: usize, pair: &Pair, mut socket: &TcpStream, start: Instant) -> Outcome<f64> {
    let topic = format!("pair/{n}");
    let (mut input, mut held, mut next, mut acks) = (vec![0; 256 << 10], 0, 0_u64, Vec::new());
    let mut last = 0.0;
    socket.set_read_timeout(Some(Duration::from_millis(200)))?;
    let mut quiet = Instant::now();
    loop {
        if pair.over.load(Ordering::Acquire) && next == pair.sent.load(Ordering::Acquire) {
            return Ok(last);
        }
        let got = match socket.read(&mut input[held..]) {
            Ok(0) => return Err(format!("subscriber {n} was closed").into()),
            Ok(got) => got,
            Err(_) if quiet.elapsed() < PATIENCE => continue,
            Err(_) => return Err(format!("subscriber {n}: message {next} is lost").into()),
        };
        quiet = Instant::now();
        let (end, mut at) = (held + got, 0);
        acks.clear();
        while let Some((whole, from)) = frame(&input[at..end]) {
            let body = &input[at + from..at + whole];
            let payload = checked(plan, &topic, input[at], body, next).map_err(|e| format!("subscriber {n}: {e}"))?;
            if plan.qos > 0 {
                acks.extend([0x40, 2, body[payload - 2], body[payload - 1]]);
            }
            next += 1;
            at += whole;
        }
        socket.write_all(&acks)?;
        pair.received.store(next, Ordering::Release);
        last = start.elapsed().as_secs_f64();
        input.copy_within(at..end, 0);
        held = end - at;
    }
}

/// Where the payload of the PUBLISH that is due begins.
fn checked(plan: &Plan, topic: &str, first: u8, body: &[u8], next: u64) -> Result<usize, String> {
    let payload = 2 + topic.len() + 2 * usize::from(plan.qos);
    let right = first & 0xf6 == 0x30 | plan.qos << 1
        && body[..2] == length(topic)
        && body[2..2 + topic.len()] == *topic.as_bytes()
        && body[payload..payload + STAMP] == next.to_be_bytes()
        && body.len() == payload + plan.bytes
        && body[payload + STAMP..].iter().all(|b| *b == 0x5a);
    right.then_some(payload).ok_or_else(|| format!("message {next} is due and did not come"))
}

/// Length of the packet at the front and where its body begins; None while it is not complete.
fn frame(bytes: &[u8]) -> Option<(usize, usize)> {
    let mut length = 0;
    for (i, byte) in bytes.iter().skip(1).take(4).enumerate() {
        length |= usize::from(byte & 0x7f) << (7 * i);
        if byte & 0x80 == 0 {
            let whole = i + 2 + length;
            return (bytes.len() >= whole).then_some((whole, i + 2));
        }
    }
    None
}
