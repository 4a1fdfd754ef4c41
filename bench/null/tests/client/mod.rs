//! The null broker as a process, and a client that sends and expects bytes.

// each test binary uses its part
#![allow(dead_code)]

use std::io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// `a: b` as a user property, with the length of all properties before it.
pub const USER_PROPERTY: &[u8] = &[7, 0x26, 0, 1, b'a', 0, 1, b'b'];

pub struct Broker {
    process: Child,
    pub port: u16,
}

impl Broker {
    pub fn start() -> Self {
        let mut process =
            Command::new(env!("CARGO_BIN_EXE_null-broker")).arg("0").stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let port = line.trim().strip_prefix("ready ").unwrap().parse().unwrap();
        Self { process, port }
    }

    /// The most memory that it ever had.
    pub fn peak_kib(&self) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.process.id())).unwrap().count()
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

pub struct Client {
    pub stream: TcpStream,
    v5: bool,
}

impl Client {
    pub fn raw(broker: &Broker) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", broker.port)).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        Self { stream, v5: false }
    }

    pub fn connect(broker: &Broker, v5: bool) -> Self {
        let mut client = Self { v5, ..Self::raw(broker) };
        client.send(&connect(v5));
        client.expect(if v5 { &[0x20, 3, 0, 0, 0] } else { &[0x20, 2, 0, 0] });
        client
    }

    pub fn subscribed(broker: &Broker, v5: bool, filter: &str, qos: u8) -> Self {
        let mut client = Self::connect(broker, v5);
        client.subscribe(filter, qos);
        client
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// The next whole packet.
    pub fn packet(&mut self) -> Vec<u8> {
        let mut packet = vec![0; 2];
        self.stream.read_exact(&mut packet).unwrap();
        let mut length = usize::from(packet[1] & 0x7f);
        while packet[packet.len() - 1] & 0x80 != 0 {
            let mut byte = [0];
            self.stream.read_exact(&mut byte).unwrap();
            length |= usize::from(byte[0] & 0x7f) << (7 * (packet.len() - 1));
            packet.push(byte[0]);
        }
        let head = packet.len();
        packet.resize(head + length, 0);
        self.stream.read_exact(&mut packet[head..]).unwrap();
        packet
    }

    #[track_caller]
    pub fn expect(&mut self, packet: &[u8]) {
        assert_eq!(self.packet(), packet);
    }

    pub fn subscribe(&mut self, filter: &str, qos: u8) {
        let mut body = vec![0, 9];
        body.extend(self.v5.then_some(0));
        body.extend(text(filter));
        body.push(qos);
        self.send(&framed(0x82, &body));
        self.expect(&if self.v5 { vec![0x90, 4, 0, 9, 0, qos] } else { vec![0x90, 3, 0, 9, qos] });
    }

    pub fn unsubscribe(&mut self, filter: &str) {
        let mut body = vec![0, 8];
        body.extend(self.v5.then_some(0));
        body.extend(text(filter));
        self.send(&framed(0xa2, &body));
        self.expect(if self.v5 { &[0xb0, 4, 0, 8, 0, 0] } else { &[0xb0, 2, 0, 8][..] });
    }

    /// To send QoS 0 of the own version without properties.
    pub fn publish(&mut self, topic: &str, payload: &str) {
        let properties: &[u8] = if self.v5 { &[0] } else { &[] };
        self.send(&publish(0x30, topic, None, properties, payload.as_bytes()));
    }

    /// Everything sent before has been worked off when this returns; nothing else may be on its way here.
    #[track_caller]
    pub fn ping(&mut self) {
        self.send(&[0xc0, 0]);
        self.expect(&[0xd0, 0]);
    }

    #[track_caller]
    pub fn receive(&mut self, topic: &str, payload: &str) {
        let properties: &[u8] = if self.v5 { &[0] } else { &[] };
        self.expect(&publish(0x30, topic, None, properties, payload.as_bytes()));
    }

    pub fn ends(mut self) -> bool {
        match self.stream.read(&mut [0; 64]) {
            Ok(n) => n == 0,
            Err(e) => e.kind() == ErrorKind::ConnectionReset,
        }
    }
}

pub fn framed(first: u8, body: &[u8]) -> Vec<u8> {
    let (mut out, mut length) = (vec![first], body.len());
    while length > 0x7f {
        out.push(0x80 | (length & 0x7f) as u8);
        length >>= 7;
    }
    out.push(length as u8);
    out.extend(body);
    out
}

pub fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u16).to_be_bytes(), text.as_bytes()].concat()
}

pub fn connect(v5: bool) -> Vec<u8> {
    let mut body = vec![0, 4, b'M', b'Q', b'T', b'T', if v5 { 5 } else { 4 }, 2, 0, 60];
    body.extend(v5.then_some(0));
    body.extend(text("me"));
    framed(0x10, &body)
}

pub fn publish(first: u8, topic: &str, id: Option<u16>, properties: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut body = text(topic);
    body.extend(id.into_iter().flat_map(u16::to_be_bytes));
    body.extend(properties);
    body.extend(payload);
    framed(first, &body)
}
