//! An open-loop publisher for `bench/pause.py`: QoS 1 at a fixed rate into the sessions that `durable_load prepare` made.
//!
//!     paced_load HOST PORT SESSIONS BYTES SECONDS RATE FILE
//!
//! Four connections send what is due each half millisecond, whatever the broker does. For every message FILE gets two
//! little-endian 32-bit numbers: the instant it was due, milliseconds since the start, and how long after that its
//! PUBACK was read, microseconds. So a pause of the broker counts for every message that was due in it.
#![allow(clippy::indexing_slicing, clippy::panic, clippy::unwrap_used, clippy::expect_used)]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

const CONNECTIONS: u64 = 4;
const PATIENCE: Duration = Duration::from_secs(60);
const PACE: Duration = Duration::from_micros(500);

struct Plan {
    address: String,
    sessions: u64,
    bytes: usize,
    each: u64,
    rate: f64,
}

fn main() -> std::process::ExitCode {
    match run(&std::env::args().skip(1).collect::<Vec<_>>()) {
        Ok(line) => println!("{line}"),
        Err(error) => {
            eprintln!("paced_load: {error}");
            return std::process::ExitCode::FAILURE;
        }
    }
    std::process::ExitCode::SUCCESS
}

fn run(words: &[String]) -> Outcome<String> {
    let [host, port, sessions, bytes, seconds, rate, file] = words else {
        return Err("paced_load HOST PORT SESSIONS BYTES SECONDS RATE FILE".into());
    };
    let rate: f64 = rate.parse()?;
    let plan = Plan {
        address: format!("{host}:{port}"),
        sessions: sessions.parse()?,
        bytes: bytes.parse()?,
        each: (rate * seconds.parse::<f64>()?) as u64 / CONNECTIONS,
        rate: rate / CONNECTIONS as f64,
    };
    let sockets = (0..CONNECTIONS).map(|n| connected(&plan, n)).collect::<Outcome<Vec<_>>>()?;
    let (start, unix) = (Instant::now(), SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis());
    let found = std::thread::scope(|scope| {
        let plan = &plan;
        let begun: Vec<_> = sockets
            .iter()
            .enumerate()
            .map(|(n, socket)| {
                let sender = scope.spawn(move || send(plan, n as u64, socket, start));
                (sender, scope.spawn(move || receive(plan, n as u64, socket, start)))
            })
            .collect();
        let join = |(sender, reader): (_, _)| -> Outcome<Vec<u8>> { both(sender, reader) };
        begun.into_iter().map(join).collect::<Outcome<Vec<_>>>()
    })?;
    std::fs::write(file, found.concat())?;
    Ok(format!("{{\"acked\": {}, \"started_unix_ms\": {unix}}}", plan.each * CONNECTIONS))
}

fn both(
    sender: std::thread::ScopedJoinHandle<'_, Outcome<()>>,
    reader: std::thread::ScopedJoinHandle<'_, Outcome<Vec<u8>>>,
) -> Outcome<Vec<u8>> {
    sender.join().unwrap()?;
    reader.join().unwrap()
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

fn connected(plan: &Plan, n: u64) -> Outcome<TcpStream> {
    let mut socket = TcpStream::connect(&plan.address)?;
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let id = format!("paced{n}");
    let head = [0, 4, b'M', b'Q', b'T', b'T', 4, 2, 0, 0];
    socket.write_all(&packet(0x10, &[&head, &(id.len() as u16).to_be_bytes(), id.as_bytes()]))?;
    let mut got = [0; 4];
    socket.read_exact(&mut got)?;
    if got != [0x20, 2, 0, 0] {
        return Err(format!("not a good CONNACK: {got:?}").into());
    }
    Ok(socket)
}

/// When a connection's message is due: the connections take turns.
fn due(plan: &Plan, n: u64, number: u64) -> Duration {
    Duration::from_secs_f64((number as f64 + n as f64 / CONNECTIONS as f64) / plan.rate)
}

fn identifier(number: u64) -> [u8; 2] {
    ((number % 65_535 + 1) as u16).to_be_bytes()
}

fn send(plan: &Plan, n: u64, mut socket: &TcpStream, start: Instant) -> Outcome<()> {
    let (payload, mut sent, mut out) = (vec![0; plan.bytes], 0, Vec::new());
    while sent < plan.each {
        out.clear();
        while sent < plan.each && due(plan, n, sent) <= start.elapsed() {
            let topic = format!("q/{}", (sent * CONNECTIONS + n) % plan.sessions);
            let length = (topic.len() as u16).to_be_bytes();
            out.extend(packet(0x32, &[&length, topic.as_bytes(), &identifier(sent), &payload]));
            sent += 1;
        }
        socket.write_all(&out)?;
        std::thread::sleep(PACE);
    }
    Ok(())
}

fn receive(plan: &Plan, n: u64, mut socket: &TcpStream, start: Instant) -> Outcome<Vec<u8>> {
    let mut found = Vec::with_capacity(plan.each as usize * 8);
    let (mut input, mut held, mut acked) = (vec![0; 64 << 10], 0, 0);
    while acked < plan.each {
        let got = socket.read(&mut input[held..])?;
        let now = start.elapsed();
        if got == 0 {
            return Err(format!("closed with {} not acknowledged", plan.each - acked).into());
        }
        let end = held + got;
        for ack in input[..end].chunks_exact(4) {
            if ack[..2] != [0x40, 2] || ack[2..] != identifier(acked) {
                return Err(format!("{ack:?} where the PUBACK of {acked} is due").into());
            }
            let due = due(plan, n, acked);
            found.extend((due.as_millis() as u32).to_le_bytes());
            found.extend((now.saturating_sub(due).as_micros() as u32).to_le_bytes());
            acked += 1;
        }
        held = end % 4;
        input.copy_within(end - held..end, 0);
    }
    Ok(found)
}
