//! The null broker: the floor that benchmarks measure beside real brokers.
//!
//!     null-broker PORT
//!
//! It moves MQTT messages and does nothing else: one hash look-up for each publish, one read for each ready socket, one
//! write for each receiver and tick, no state. So it shows what the kernel, the parsing and the copying cost on this
//! machine; what a real broker takes above that is its own. It loses nothing while connections live, since the
//! generators check every message.
//!
//! It has no sessions, retained messages, wills, keep-alive, windows, limits, repetition or access control, takes over
//! no client ids, and checks of a packet only what it needs. Prints `ready PORT` once it listens on 127.0.0.1.
#![forbid(unsafe_code)]

mod conn;
mod routes;
mod wire;

use std::io::{self, ErrorKind, Write as _};
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};

use conn::{Conns, Input};
use routes::{Routes, Target};
use wire::{Publish, Reader};

const LISTENER: Token = Token(usize::MAX);
const EVENTS_PER_TICK: usize = 1024;

fn main() -> io::Result<()> {
    let port = std::env::args().nth(1).and_then(|word| word.parse().ok());
    let port = port.ok_or_else(|| io::Error::new(ErrorKind::InvalidInput, "usage: null-broker PORT"))?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
    listener.set_nonblocking(true)?;
    let mut broker = Broker {
        poll: Poll::new()?,
        listener,
        accepting: false,
        conns: Conns::default(),
        routes: Routes::default(),
        buf: Vec::new(),
    };
    let fd = broker.listener.as_raw_fd();
    broker.poll.registry().register(&mut SourceFd(&fd), LISTENER, Interest::READABLE)?;
    writeln!(io::stdout(), "ready {}", broker.listener.local_addr()?.port())?;
    let mut events = Events::with_capacity(EVENTS_PER_TICK);
    loop {
        broker.tick(&mut events)?;
    }
}

/// Whether a connection's next packet is looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Next {
    Go,
    Wait,
}

struct Broker {
    poll: Poll,
    listener: TcpListener,
    accepting: bool,
    conns: Conns,
    routes: Routes,
    /// Where sockets are read into; its bytes belong to one connection at a time.
    buf: Vec<u8>,
}

impl Broker {
    fn tick(&mut self, events: &mut Events) -> io::Result<()> {
        let timeout = (!self.conns.is_idle()).then_some(Duration::ZERO);
        match self.poll.poll(events, timeout) {
            Err(e) if e.kind() == ErrorKind::Interrupted => return Ok(()),
            polled => polled?,
        }
        for event in &*events {
            if event.token() == LISTENER {
                self.accepting = true;
            } else {
                self.conns.woken(event.token().0, event);
            }
        }
        for slot in self.conns.take_ready() {
            if self.read(slot).is_none() {
                self.close(slot);
            }
        }
        for slot in self.conns.flush(self.poll.registry()) {
            self.close(slot);
        }
        if self.accepting {
            self.accept();
        }
        Ok(())
    }

    fn accept(&mut self) {
        loop {
            match self.listener.accept() {
                // a socket that is gone already is nobody's loss
                Ok((stream, _)) => drop(self.conns.add(stream, self.poll.registry())),
                Err(e) if matches!(e.kind(), ErrorKind::Interrupted | ErrorKind::ConnectionAborted) => {}
                Err(e) => {
                    // for want of descriptors it is tried again in the next tick: there is no second event
                    self.accepting = e.kind() != ErrorKind::WouldBlock;
                    return;
                }
            }
        }
    }

    fn close(&mut self, slot: usize) {
        for filter in self.conns.remove(slot).into_iter().flat_map(|conn| conn.filters) {
            self.routes.unsubscribe(&filter, slot);
        }
    }

    /// One read of a ready socket, or what was left when it had to wait. Returns `None` when the connection is over, as
    /// all below do.
    fn read(&mut self, slot: usize) -> Option<()> {
        let conn = self.conns.get(slot)?;
        match conn.input {
            Input::Waiting => return Some(()),
            Input::Resumed => return self.read_rest(slot),
            Input::Open => {}
        }
        let mut buf = std::mem::take(&mut self.buf);
        let filled = conn.fill(&mut buf);
        let ended = filled.and_then(|(length, again)| {
            let data = buf.get(..length)?;
            let (used, next) = self.packets(slot, data)?;
            let conn = self.conns.get(slot)?;
            conn.rest = data.get(used..)?.to_vec();
            conn.done = 0;
            if next == Next::Wait {
                conn.input = Input::Waiting;
            } else if again {
                self.conns.queue(slot);
            }
            Some(())
        });
        self.buf = buf;
        ended
    }

    fn read_rest(&mut self, slot: usize) -> Option<()> {
        let conn = self.conns.get(slot)?;
        let mut rest = std::mem::take(&mut conn.rest);
        let done = conn.done;
        let (used, next) = self.packets(slot, rest.get(done..)?)?;
        let conn = self.conns.get(slot)?;
        if next == Next::Wait {
            (conn.rest, conn.done, conn.input) = (rest, done + used, Input::Waiting);
            return Some(());
        }
        rest.drain(..done + used);
        (conn.rest, conn.done, conn.input) = (rest, 0, Input::Open);
        self.conns.queue(slot);
        Some(())
    }

    /// Works off the whole packets in `data`. Returns how many bytes these were.
    fn packets(&mut self, slot: usize, data: &[u8]) -> Option<(usize, Next)> {
        let mut left = data;
        loop {
            let (head, total) = wire::cut(left)?;
            let Some((whole, after)) = left.split_at_checked(total) else {
                // rubbish is not waited for
                let hopeless = left.first().is_some_and(|byte| *byte != 0x10) && self.conns.get(slot)?.version == 0;
                return (!hopeless).then_some((data.len() - left.len(), Next::Go));
            };
            left = after;
            if self.packet(slot, whole, head)? == Next::Wait {
                return Some((data.len() - left.len(), Next::Wait));
            }
        }
    }

    fn packet(&mut self, slot: usize, whole: &[u8], head: usize) -> Option<Next> {
        let first = *whole.first()?;
        let version = self.conns.get(slot)?.version;
        let mut body = Reader(whole.get(head..)?);
        match (version, first) {
            (0, 0x10) => self.connect(slot, body),
            (0, _) => None,
            (_, 0x30..=0x3f) => self.publish(slot, &Publish::read(whole, head, version == 5)?),
            (_, 0x40 | 0x70) => body.short().map(|_| Next::Go),
            (_, 0x50) => {
                let [high, low] = body.short()?.to_be_bytes();
                // a receiver that refuses (5.0) is owed no PUBREL
                if body.byte().is_some_and(|reason| reason >= 0x80) {
                    return Some(Next::Go);
                }
                self.answer(slot, &[0x62, 2, high, low])
            }
            (_, 0x62) => {
                let [high, low] = body.short()?.to_be_bytes();
                self.answer(slot, &[0x70, 2, high, low])
            }
            (_, 0x82) => self.subscribe(slot, body, version == 5),
            (_, 0xa2) => self.unsubscribe(slot, body, version == 5),
            (_, 0xc0) => self.answer(slot, &[0xd0, 0]),
            _ => None,
        }
    }

    fn connect(&mut self, slot: usize, mut body: Reader<'_>) -> Option<Next> {
        let name = body.text()?;
        let version = body.byte()?;
        let _flags = body.byte()?;
        let _keep_alive_s = body.short()?;
        body.properties(version == 5)?;
        let _client_id = body.text()?;
        if name != b"MQTT" || !matches!(version, 4 | 5) {
            return None;
        }
        self.conns.get(slot)?.version = version;
        self.answer(slot, if version == 5 { &[0x20, 3, 0, 0, 0] } else { &[0x20, 2, 0, 0] })
    }

    fn publish(&mut self, slot: usize, publish: &Publish<'_>) -> Option<Next> {
        let mut full = None;
        let conns = &mut self.conns;
        self.routes.receivers(publish.topic, |target| {
            let Some(conn) = conns.output(target.slot) else { return };
            let qos = publish.qos.min(target.qos);
            let id = if qos > 0 { conn.next_id() } else { 0 };
            publish.write(&mut conn.out, conn.version == 5, qos, id);
            if conn.is_full() {
                full = Some(target.slot);
            }
        });
        let [high, low] = publish.id.to_be_bytes();
        let next = match publish.qos {
            0 => Next::Go,
            1 => self.answer(slot, &[0x40, 2, high, low])?,
            _ => self.answer(slot, &[0x50, 2, high, low])?,
        };
        let Some(full) = full else { return Some(next) };
        self.conns.wait(full, slot);
        Some(Next::Wait)
    }

    fn subscribe(&mut self, slot: usize, mut body: Reader<'_>, v5: bool) -> Option<Next> {
        let id = body.short()?;
        body.properties(v5)?;
        let mut codes = Vec::new();
        while !body.0.is_empty() {
            let (filter, qos) = (body.text()?, body.byte()? & 3);
            if filter.is_empty() || qos == 3 {
                return None;
            }
            if self.routes.subscribe(filter, Target { slot, qos }) {
                self.conns.get(slot)?.filters.push(filter.into());
            }
            codes.push(qos);
        }
        if codes.is_empty() {
            return None;
        }
        self.answer(slot, &wire::granted(0x90, id, v5, &codes))
    }

    fn unsubscribe(&mut self, slot: usize, mut body: Reader<'_>, v5: bool) -> Option<Next> {
        let id = body.short()?;
        body.properties(v5)?;
        let mut codes = Vec::new();
        while !body.0.is_empty() {
            let filter = body.text()?;
            self.routes.unsubscribe(filter, slot);
            self.conns.get(slot)?.filters.retain(|known| **known != *filter);
            codes.push(0);
        }
        self.answer(slot, &wire::granted(0xb0, id, v5, if v5 { &codes } else { &[] }))
    }

    fn answer(&mut self, slot: usize, bytes: &[u8]) -> Option<Next> {
        let conn = self.conns.output(slot)?;
        conn.out.extend_from_slice(bytes);
        if conn.is_flooded() {
            self.conns.wait(slot, slot);
            return Some(Next::Wait);
        }
        Some(Next::Go)
    }
}
