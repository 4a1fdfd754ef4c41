//! The load of `bench/durable.py`: MQTT 3.1.1 over blocking sockets, every message checked. Std only.
//!
//! Each command prints one JSON object on standard output; a protocol surprise ends it with a message and code 1.
//! A payload is run (4 bytes), publisher (4), sequence (8), then zeros: what `drain` needs to check the order.
#![allow(clippy::indexing_slicing, clippy::panic, clippy::unwrap_used, clippy::expect_used)]

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

const STAMP: usize = 16;
const AT_ONCE: usize = 64;
const DRAINED_AT_ONCE: usize = 512;
const FLOOR_FILE: (usize, usize) = (4 << 20, 64 << 20);
const PATIENCE: Duration = Duration::from_secs(60);
const QUIET: Duration = Duration::from_millis(500);

const USAGE: &str = "durable_load prepare HOST PORT SESSIONS
             publish HOST PORT SESSIONS BYTES SECONDS [PUBLISHERS=8 [WINDOW=1000 [COUNT=0: until the time is over]]]
             lone HOST PORT SECONDS
             drain HOST PORT SESSIONS [EXPECTED]
             floor DIR BYTES SECONDS
             echo-server
             echo HOST PORT SECONDS";

fn main() -> std::process::ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match dispatch(&words) {
        Ok(line) => println!("{line}"),
        Err(error) => {
            eprintln!("durable_load: {error}");
            return std::process::ExitCode::FAILURE;
        }
    }
    std::process::ExitCode::SUCCESS
}

fn dispatch(words: &[String]) -> Outcome<String> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["prepare", host, port, sessions] => prepare(&address(host, port), sessions.parse()?),
        ["publish", host, port, sessions, bytes, seconds, more @ ..] if more.len() <= 3 => {
            let number = |i: usize, default: usize| more.get(i).map_or(Ok(default), |w| w.parse::<usize>());
            let (publishers, window, count) = (number(0, 8)?.max(1), number(1, 1000)?, number(2, 0)?);
            let plan = Plan {
                address: address(host, port),
                sessions: sessions.parse::<usize>()?.max(1),
                bytes: bytes.parse::<usize>()?.max(STAMP),
                time: Duration::from_secs_f64(seconds.parse()?),
                publishers,
                window: window.clamp(1, 65_535),
                each: count.div_ceil(publishers) as u64,
                run: SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis() as u32,
            };
            publish(&plan)
        }
        ["lone", host, port, seconds] => lone(&address(host, port), Duration::from_secs_f64(seconds.parse()?)),
        ["drain", host, port, sessions] => drain(&address(host, port), sessions.parse()?, None),
        ["drain", host, port, sessions, expected] => {
            drain(&address(host, port), sessions.parse()?, Some(expected.parse()?))
        }
        ["floor", dir, bytes, seconds] => {
            floor(Path::new(dir), bytes.parse()?, Duration::from_secs_f64(seconds.parse()?))
        }
        ["echo-server"] => echo_server(),
        ["echo", host, port, seconds] => echo(&address(host, port), Duration::from_secs_f64(seconds.parse()?)),
        _ => Err(USAGE.into()),
    }
}

fn address(host: &str, port: &str) -> String {
    format!("{host}:{port}")
}

fn dial(address: &str) -> Outcome<TcpStream> {
    let socket = TcpStream::connect(address)?;
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

// ---- packets

fn packet(out: &mut Vec<u8>, first: u8, parts: &[&[u8]]) {
    out.push(first);
    let mut left: usize = parts.iter().map(|p| p.len()).sum();
    loop {
        let byte = (left & 0x7f) as u8;
        left >>= 7;
        out.push(byte | if left > 0 { 0x80 } else { 0 });
        if left == 0 {
            break;
        }
    }
    parts.iter().for_each(|p| out.extend_from_slice(p));
}

fn connect(out: &mut Vec<u8>, id: &str, clean: bool) {
    let head = [0, 4, b'M', b'Q', b'T', b'T', 4, if clean { 2 } else { 0 }, 0, 0];
    packet(out, 0x10, &[&head, &(id.len() as u16).to_be_bytes(), id.as_bytes()]);
}

fn message(out: &mut Vec<u8>, topic: usize, id: u16, payload: &[u8]) {
    let topic = format!("q/{topic}");
    packet(out, 0x32, &[&(topic.len() as u16).to_be_bytes(), topic.as_bytes(), &id.to_be_bytes(), payload]);
}

fn connected(socket: &mut TcpStream, id: &str, clean: bool) -> Outcome<bool> {
    let mut out = Vec::new();
    connect(&mut out, id, clean);
    socket.write_all(&out)?;
    connack(socket)
}

/// Reads a CONNACK; true if the session was there.
fn connack(socket: &mut TcpStream) -> Outcome<bool> {
    let mut got = [0; 4];
    socket.read_exact(&mut got)?;
    if got[..2] != [0x20, 2] || got[3] != 0 {
        return Err(format!("not a good CONNACK: {got:?}").into());
    }
    Ok(got[2] == 1)
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

fn percentile(sorted: &[u64], share: f64) -> f64 {
    let at = (sorted.len() as f64 * share) as usize;
    sorted.get(at.min(sorted.len().saturating_sub(1))).map_or(0.0, |ns| *ns as f64 / 1000.0)
}

// ---- prepare

fn prepare(address: &str, sessions: usize) -> Outcome<String> {
    let begun = Instant::now();
    let mut at = 0;
    while at < sessions {
        let end = (at + AT_ONCE).min(sessions);
        let mut sockets = Vec::with_capacity(AT_ONCE);
        for i in at..end {
            let mut socket = dial(address)?;
            let topic = format!("q/{i}");
            let mut out = Vec::new();
            connect(&mut out, &format!("d{i}"), false);
            let length = (topic.len() as u16).to_be_bytes();
            packet(&mut out, 0x82, &[&[0, 1], &length, topic.as_bytes(), &[1]]);
            socket.write_all(&out)?;
            sockets.push(socket);
        }
        for socket in &mut sockets {
            connack(socket)?;
            let mut suback = [0; 5];
            socket.read_exact(&mut suback)?;
            if suback != [0x90, 3, 0, 1, 1] {
                return Err(format!("not a good SUBACK: {suback:?}").into());
            }
            socket.write_all(&[0xe0, 0])?;
        }
        for socket in &mut sockets {
            while socket.read(&mut [0; 64])? > 0 {} // the broker closes first: no port of ours stays in TIME_WAIT
        }
        at = end;
    }
    Ok(format!("{{\"sessions\": {sessions}, \"seconds\": {:.3}}}", begun.elapsed().as_secs_f64()))
}

// ---- publish

struct Plan {
    address: String,
    sessions: usize,
    bytes: usize,
    time: Duration,
    publishers: usize,
    window: usize,
    each: u64,
    run: u32,
}

fn publish(plan: &Plan) -> Outcome<String> {
    let start = Instant::now();
    let results: Vec<Outcome<(u64, u64, f64)>> = std::thread::scope(|scope| {
        let all: Vec<_> = (0..plan.publishers).map(|p| scope.spawn(move || publisher(plan, p))).collect();
        all.into_iter().map(|t| t.join().unwrap()).collect()
    });
    let (mut acked, mut in_time, mut seconds) = (0, 0, 0_f64);
    for result in results {
        let (all, timely, took) = result?;
        acked += all;
        in_time += timely;
        seconds = seconds.max(took);
    }
    let rate = in_time as f64 / seconds;
    let whole = start.elapsed().as_secs_f64();
    Ok(format!("{{\"acked\": {acked}, \"acked_per_s\": {rate:.0}, \"seconds\": {whole:.3}, \"errors\": 0}}"))
}

/// One connection with a full window: as many new messages as acknowledgements came, in one write.
/// Answers how many were acknowledged, how many of them before the end of the time, and that time.
fn publisher(plan: &Plan, number: usize) -> Outcome<(u64, u64, f64)> {
    let mut socket = dial(&plan.address)?;
    connected(&mut socket, &format!("pub{number}"), true)?;
    let mut payload = vec![0; plan.bytes];
    payload[..4].copy_from_slice(&plan.run.to_be_bytes());
    payload[4..8].copy_from_slice(&(number as u32).to_be_bytes());
    let offset = number * plan.sessions / plan.publishers;
    let last = if plan.each > 0 { plan.each } else { u64::MAX };
    let (mut sent, mut acked, mut timely) = (0_u64, 0_u64, None);
    let (mut out, mut input, mut held) = (Vec::new(), vec![0; 64 << 10], 0);
    let begun = Instant::now();
    loop {
        let over = begun.elapsed() >= plan.time && plan.each == 0;
        if timely.is_none() && (over || acked == last) {
            timely = Some((acked, begun.elapsed().as_secs_f64()));
        }
        if !over {
            out.clear();
            while sent < last && sent - acked < plan.window as u64 {
                payload[8..16].copy_from_slice(&sent.to_be_bytes());
                let topic = (offset + sent as usize) % plan.sessions;
                message(&mut out, topic, identifier(sent), &payload);
                sent += 1;
            }
            socket.write_all(&out)?;
        }
        if let (true, Some((count, seconds))) = (acked == sent, timely) {
            socket.write_all(&[0xe0, 0])?;
            return Ok((acked, count, seconds));
        }
        let got = socket.read(&mut input[held..])?;
        if got == 0 {
            return Err(format!("publisher {number}: closed with {} not acknowledged", sent - acked).into());
        }
        let end = held + got;
        for ack in input[..end].chunks_exact(4) {
            let id = identifier(acked).to_be_bytes();
            if acked == sent || *ack != [0x40, 2, id[0], id[1]] {
                return Err(format!("publisher {number}: {ack:?} where the PUBACK of {acked} is due").into());
            }
            acked += 1;
        }
        held = end % 4;
        input.copy_within(end - held..end, 0);
    }
}

fn identifier(sequence: u64) -> u16 {
    (sequence % 65_535) as u16 + 1
}

fn lone(address: &str, time: Duration) -> Outcome<String> {
    let mut socket = dial(address)?;
    connected(&mut socket, "lone", true)?;
    let run = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis() as u32;
    let (mut payload, mut out, mut times) = ([0; 64], Vec::new(), Vec::new());
    payload[..4].copy_from_slice(&run.to_be_bytes());
    let begun = Instant::now();
    while begun.elapsed() < time {
        let sequence = times.len() as u64;
        payload[8..16].copy_from_slice(&sequence.to_be_bytes());
        out.clear();
        message(&mut out, 0, identifier(sequence), &payload);
        let sent = Instant::now();
        socket.write_all(&out)?;
        let mut ack = [0; 4];
        socket.read_exact(&mut ack)?;
        times.push(sent.elapsed().as_nanos() as u64);
        let id = identifier(sequence).to_be_bytes();
        if ack != [0x40, 2, id[0], id[1]] {
            return Err(format!("{ack:?} where the PUBACK of {sequence} is due").into());
        }
    }
    socket.write_all(&[0xe0, 0])?;
    Ok(times_of(times, begun))
}

fn times_of(mut times: Vec<u64>, begun: Instant) -> String {
    times.sort_unstable();
    let rate = times.len() as f64 / begun.elapsed().as_secs_f64();
    format!(
        "{{\"count\": {}, \"per_s\": {rate:.0}, \"p50_us\": {:.1}, \"p99_us\": {:.1}}}",
        times.len(),
        percentile(&times, 0.5),
        percentile(&times, 0.99)
    )
}

// ---- drain

/// One session being emptied, and what it saw last of every publisher of every run.
struct Reader {
    socket: TcpStream,
    held: Vec<u8>,
    topic: String,
    last: HashMap<(u32, u32), u64>,
}

fn drain(address: &str, sessions: usize, expected: Option<u64>) -> Outcome<String> {
    let begun = Instant::now();
    let (mut received, mut errors, mut absent, mut at) = (0_u64, 0_u64, 0, 0);
    while at < sessions {
        let end = (at + DRAINED_AT_ONCE).min(sessions);
        let mut readers = Vec::with_capacity(DRAINED_AT_ONCE);
        for i in at..end {
            let mut socket = dial(address)?;
            let mut out = Vec::new();
            connect(&mut out, &format!("d{i}"), false);
            socket.write_all(&out)?;
            readers.push(Reader { socket, held: Vec::new(), topic: format!("q/{i}"), last: HashMap::new() });
        }
        for reader in &mut readers {
            absent += u64::from(!connack(&mut reader.socket)?);
            reader.socket.set_nonblocking(true)?;
        }
        let mut heard = Instant::now();
        while heard.elapsed() < QUIET && expected.is_none_or(|all| received < all) {
            let before = received;
            for reader in &mut readers {
                let (count, wrong) = reader.turn()?;
                received += count;
                errors += wrong;
            }
            if received > before {
                heard = Instant::now();
            } else {
                std::thread::sleep(Duration::from_micros(500));
            }
        }
        for reader in &mut readers {
            reader.socket.set_nonblocking(false)?;
            reader.socket.write_all(&[0xe0, 0])?;
        }
        for reader in &mut readers {
            while reader.socket.read(&mut [0; 4096])? > 0 {}
        }
        at = end;
    }
    let missing = expected.map_or(0, |all| all.saturating_sub(received));
    let seconds = begun.elapsed().as_secs_f64();
    Ok(format!(
        "{{\"received\": {received}, \"errors\": {errors}, \"absent\": {absent}, \"missing\": {missing}, \"seconds\": {seconds:.3}}}"
    ))
}

impl Reader {
    /// Reads what is there and acknowledges it: how many messages, how many of them wrong.
    fn turn(&mut self) -> Outcome<(u64, u64)> {
        let mut input = [0; 64 << 10];
        match self.socket.read(&mut input) {
            Ok(0) => return Err(format!("{}: closed by the broker", self.topic).into()),
            Ok(got) => self.held.extend_from_slice(&input[..got]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok((0, 0)),
            Err(error) => return Err(error.into()),
        }
        let (mut at, mut count, mut wrong, mut acks) = (0, 0, 0, Vec::new());
        while let Some((whole, head)) = frame(&self.held[at..]) {
            let one = &self.held[at..at + whole];
            if one[0] & 0xf6 != 0x32 {
                return Err(format!("{}: {:#x} where a PUBLISH of QoS 1 is due", self.topic, one[0]).into());
            }
            let body = &one[head..];
            let topic = 2 + usize::from(u16::from_be_bytes([body[0], body[1]]));
            acks.extend_from_slice(&[0x40, 2, body[topic], body[topic + 1]]);
            let stamp = &body[topic + 2..];
            let run = u32::from_be_bytes(stamp[..4].try_into()?);
            let publisher = u32::from_be_bytes(stamp[4..8].try_into()?);
            let sequence = u64::from_be_bytes(stamp[8..16].try_into()?);
            let before = self.last.insert((run, publisher), sequence);
            let good = before.is_none_or(|b| b < sequence) && body[2..topic] == *self.topic.as_bytes();
            wrong += u64::from(!good);
            count += 1;
            at += whole;
        }
        self.held.drain(..at);
        self.socket.set_nonblocking(false)?;
        self.socket.write_all(&acks)?;
        self.socket.set_nonblocking(true)?;
        Ok((count, wrong))
    }
}

// ---- floors

/// What a plain loop reaches: write at the next place of a preallocated file, `fdatasync`, again.
fn floor(dir: &Path, bytes: usize, time: Duration) -> Outcome<String> {
    let path = dir.join(format!("floor-{}", std::process::id()));
    let file = OpenOptions::new().create_new(true).write(true).open(&path)?;
    let size = (64 * bytes).clamp(FLOOR_FILE.0, FLOOR_FILE.1).max(bytes);
    let measured = (|| -> Outcome<String> {
        file.write_all_at(&vec![0; size], 0)?;
        file.sync_all()?;
        let (data, mut at, mut times) = (vec![0xa5; bytes.max(1)], 0, Vec::new());
        let begun = Instant::now();
        while begun.elapsed() < time {
            if at + data.len() > size {
                at = 0;
            }
            file.write_all_at(&data, at as u64)?;
            let written = Instant::now();
            file.sync_data()?;
            times.push(written.elapsed().as_nanos() as u64);
            at += data.len();
        }
        let rate = times.len() as f64 / begun.elapsed().as_secs_f64();
        times.sort_unstable();
        let megabytes = rate * data.len() as f64 / 1e6;
        let (p50, p99) = (percentile(&times, 0.5), percentile(&times, 0.99));
        Ok(format!(
            "{{\"syncs_per_s\": {rate:.1}, \"mb_per_s\": {megabytes:.2}, \"p50_us\": {p50:.1}, \"p99_us\": {p99:.1}}}"
        ))
    })();
    std::fs::remove_file(&path)?;
    measured
}

/// The null broker: sends back what it reads, one connection after another; prints its port first.
fn echo_server() -> Outcome<String> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    println!("{{\"port\": {}}}", listener.local_addr()?.port());
    let mut input = [0; 4096];
    loop {
        let (mut socket, _) = listener.accept()?;
        socket.set_nodelay(true)?;
        while let Ok(got @ 1..) = socket.read(&mut input) {
            socket.write_all(&input[..got])?;
        }
    }
}

fn echo(address: &str, time: Duration) -> Outcome<String> {
    let mut socket = dial(address)?;
    let (mut packet, mut times) = ([7; 72], Vec::new());
    let begun = Instant::now();
    while begun.elapsed() < time {
        let sent = Instant::now();
        socket.write_all(&packet)?;
        socket.read_exact(&mut packet)?;
        times.push(sent.elapsed().as_nanos() as u64);
    }
    Ok(times_of(times, begun))
}
