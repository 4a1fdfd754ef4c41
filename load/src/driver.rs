//! The loop: sockets of one thread, read and written in turns. A work gives clients something to say and hears what
//! happens to them; it never waits for one of them alone.

use std::io;
use std::time::{Duration, Instant};

use mio::event::Event as Readiness;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use slab::Slab;

use crate::client::{Client, Counts, Event};
use crate::codec::{Hello, Template, decode, frame};
use crate::stamp::{Stamp, Stamper};
use crate::stream::{Connector, Stream};

const READ_BYTES: usize = 256 << 10;
/// What is gathered for one client before it is written within a turn.
const OUT_BYTES: usize = 128 << 10;
/// How often clients are asked whether they should ping.
const PING_NS: u64 = 250_000_000;
/// Keep-alive of every client, seconds.
pub const KEEP_ALIVE_S: u16 = 60;

/// A client, for its whole life.
pub type Id = usize;

enum Stage {
    Opening(TcpStream),
    Open(Stream),
    Gone,
}

struct Slot {
    stage: Stage,
    /// The beginning of a packet whose end has not come.
    rest: Vec<u8>,
    client: Client,
    wrote_ns: u64,
}

/// Sockets and clients of one thread.
pub struct Driver {
    poll: Poll,
    events: Events,
    connector: Connector,
    slots: Slab<Slot>,
    buffer: Vec<u8>,
    dirty: Vec<Id>,
    begun: Instant,
    pinged_ns: u64,
    stamper: Stamper,
    /// What clients found that are not there any more.
    found: Counts,
}

impl Driver {
    /// Without clients. Times count from `begun`.
    ///
    /// # Errors
    /// The system gives no poll.
    pub fn new(connector: Connector, begun: Instant) -> io::Result<Self> {
        Ok(Self {
            poll: Poll::new()?,
            events: Events::with_capacity(1024),
            connector,
            slots: Slab::new(),
            buffer: vec![0; READ_BYTES],
            dirty: Vec::new(),
            begun,
            pinged_ns: 0,
            stamper: Stamper::new(),
            found: Counts::default(),
        })
    }

    /// Nanoseconds since the beginning.
    #[must_use]
    pub fn now_ns(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Checks payloads.
    #[must_use]
    pub fn stamper(&self) -> &Stamper {
        &self.stamper
    }

    /// A new client, which begins to connect.
    ///
    /// # Errors
    /// No socket.
    pub fn add(&mut self, hello: Hello) -> io::Result<Id> {
        let slot = Slot { stage: Stage::Gone, rest: Vec::new(), client: Client::new(hello), wrote_ns: 0 };
        let id = self.slots.insert(slot);
        self.open(id)?;
        Ok(id)
    }

    /// A client that is gone connects again.
    ///
    /// # Errors
    /// No socket.
    pub fn again(&mut self, id: Id) -> io::Result<()> {
        if let Some(slot) = self.slots.get_mut(id) {
            slot.client.again();
        }
        self.open(id)
    }

    fn open(&mut self, id: Id) -> io::Result<()> {
        let mut socket = self.connector.open()?;
        self.poll.registry().register(&mut socket, Token(id), Interest::READABLE | Interest::WRITABLE)?;
        if let Some(slot) = self.slots.get_mut(id) {
            slot.rest = Vec::new();
            slot.stage = Stage::Opening(socket);
        }
        Ok(())
    }

    /// The state of a client.
    #[must_use]
    pub fn client(&self, id: Id) -> Option<&Client> {
        self.slots.get(id).map(|s| &s.client)
    }

    /// What all clients found, also those that were removed.
    #[must_use]
    pub fn found(&self) -> Counts {
        let mut all = self.found;
        self.slots.iter().for_each(|(_, s)| all.add(&s.client.found()));
        all
    }

    /// Gives a client a ping to send: its answer tells that all before it was taken.
    pub fn send_ping(&mut self, id: Id) {
        if let Some(slot) = self.slots.get_mut(id) {
            slot.client.out.extend_from_slice(&[0xc0, 0]);
            slot.soil(id, &mut self.dirty);
        }
    }

    /// Gives a client a SUBSCRIBE to send.
    pub fn subscribe(&mut self, id: Id, number: u16, filters: &[Vec<u8>], qos: u8) {
        if let Some(slot) = self.slots.get_mut(id) {
            slot.client.subscribe(number, filters, qos);
            slot.soil(id, &mut self.dirty);
        }
    }

    /// Gives a client a message to send.
    pub fn publish(&mut self, id: Id, template: &Template, stamp: Stamp) {
        let Some(slot) = self.slots.get_mut(id) else { return };
        slot.client.publish(template, stamp, &self.stamper);
        slot.soil(id, &mut self.dirty);
        if slot.client.out.len() - slot.client.out_at > OUT_BYTES && !slot.client.stuck {
            // an error shows at the next turn, which hears of it too
            let _ = slot.write(u64::MAX);
        }
    }

    /// May the client be given more, or is the socket full?
    #[must_use]
    pub fn has_room(&self, id: Id) -> bool {
        self.slots.get(id).is_some_and(|s| s.client.ready && !s.client.stuck)
    }

    /// Ends a connection: with a DISCONNECT, or as if the network had failed.
    pub fn close(&mut self, id: Id, politely: bool) {
        let Some(slot) = self.slots.get_mut(id) else { return };
        if politely && matches!(slot.stage, Stage::Open(_)) {
            slot.client.out.extend_from_slice(&[0xe0, 0]);
            let _ = slot.write(0);
        }
        slot.stage = Stage::Gone;
        slot.client.ready = false;
    }

    /// Ends a client for good.
    pub fn remove(&mut self, id: Id) {
        self.close(id, true);
        if let Some(slot) = self.slots.try_remove(id) {
            self.found.add(&slot.client.found());
        }
    }

    /// One turn: everything gathered leaves, then what has come within `wait` is taken. `tell` gets the client, the time
    /// and what happened.
    ///
    /// # Errors
    /// The system's poll fails.
    pub fn turn(&mut self, wait: Duration, tell: &mut impl FnMut(Id, u64, Event<'_>)) -> io::Result<()> {
        self.flush(tell);
        match self.poll.poll(&mut self.events, Some(wait)) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => return Ok(()),
            done => done?,
        }
        let events = std::mem::replace(&mut self.events, Events::with_capacity(0));
        for event in &events {
            self.on(event, tell);
        }
        self.events = events;
        self.ping();
        self.flush(tell);
        Ok(())
    }

    fn on(&mut self, event: &Readiness, tell: &mut impl FnMut(Id, u64, Event<'_>)) {
        let Token(id) = event.token();
        let now_ns = self.now_ns();
        let Some(slot) = self.slots.get_mut(id) else { return };
        let mut done = Ok(());
        if event.is_writable() || event.is_error() {
            if std::mem::take(&mut slot.client.stuck) {
                tell(id, now_ns, Event::Room);
            }
            done = slot.opened(&self.connector);
            slot.soil(id, &mut self.dirty);
        }
        if done.is_ok() && event.is_readable() {
            let ended = event.is_read_closed();
            done = slot.read(&mut self.buffer, ended, &mut |event| tell(id, now_ns, event));
            if !slot.client.out.is_empty() {
                slot.soil(id, &mut self.dirty);
            }
        }
        if let Err(why) = done {
            slot.gone(&why, &mut |event| tell(id, now_ns, event));
        }
    }

    fn flush(&mut self, tell: &mut impl FnMut(Id, u64, Event<'_>)) {
        let now_ns = self.now_ns();
        let mut dirty = std::mem::take(&mut self.dirty);
        for id in dirty.drain(..) {
            let Some(slot) = self.slots.get_mut(id) else { continue };
            slot.client.dirty = false;
            if let Err(e) = slot.write(now_ns) {
                let mut why = e.to_string();
                if matches!(e.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) {
                    // what the server said before it closed tells more
                    let said = slot.read(&mut self.buffer, true, &mut |event| tell(id, now_ns, event));
                    why = said.err().unwrap_or(why);
                }
                slot.gone(&why, &mut |event| tell(id, now_ns, event));
            }
        }
        // nothing was added meanwhile: the allocation goes on
        self.dirty = dirty;
    }

    fn ping(&mut self) {
        let now_ns = self.now_ns();
        if now_ns < self.pinged_ns + PING_NS {
            return;
        }
        self.pinged_ns = now_ns;
        for (id, slot) in &mut self.slots {
            let half_ns = u64::from(slot.client.keep_alive_s) * 500_000_000;
            if slot.client.ready && half_ns > 0 && slot.wrote_ns + half_ns < now_ns {
                slot.client.out.extend_from_slice(&[0xc0, 0]);
                slot.soil(id, &mut self.dirty);
            }
        }
    }
}

impl Slot {
    fn soil(&mut self, id: Id, dirty: &mut Vec<Id>) {
        if !self.client.dirty {
            self.client.dirty = true;
            dirty.push(id);
        }
    }

    /// Goes on with a connection in the making.
    fn opened(&mut self, connector: &Connector) -> Result<(), String> {
        match std::mem::replace(&mut self.stage, Stage::Gone) {
            Stage::Opening(socket) => {
                if let Ok(Some(e)) | Err(e) = socket.take_error() {
                    return Err(e.to_string());
                }
                // both sides of a connection that is not there yet: wait on
                if socket.peer_addr().is_err() {
                    self.stage = Stage::Opening(socket);
                    return Ok(());
                }
                self.stage = Stage::Open(connector.layers(socket).map_err(|e| e.to_string())?);
            }
            other => self.stage = other,
        }
        Ok(())
    }

    /// Takes what has come; `ended` if the end of the stream is behind it, of which the system tells only once.
    fn read(&mut self, buffer: &mut Vec<u8>, ended: bool, tell: &mut impl FnMut(Event<'_>)) -> Result<(), String> {
        let Stage::Open(stream) = &mut self.stage else { return Ok(()) };
        if !stream.advance().map_err(|e| e.to_string())? {
            return Ok(());
        }
        loop {
            let held = self.rest.len();
            if buffer.len() < held + READ_BYTES / 2 {
                buffer.resize(held + READ_BYTES, 0);
            }
            let n = match stream.read(buffer, held) {
                Ok(0) => return Err("the server closed the connection".to_owned()),
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(e.to_string()),
            };
            let last = !ended && stream.short_is_last() && held + n < buffer.len();
            if let Some(front) = buffer.get_mut(..held) {
                front.copy_from_slice(&self.rest);
            }
            let got = buffer.get(..held + n).unwrap_or_default();
            let used = packets(&mut self.client, got, tell)?;
            self.rest.clear();
            self.rest.extend_from_slice(got.get(used..).unwrap_or_default());
            if last {
                return Ok(());
            }
        }
    }

    fn write(&mut self, now_ns: u64) -> io::Result<()> {
        let Stage::Open(stream) = &mut self.stage else { return Ok(()) };
        if !stream.advance()? {
            return Ok(());
        }
        let c = &mut self.client;
        // a turn that has nothing to write is silence
        if now_ns != u64::MAX && !c.out.is_empty() {
            self.wrote_ns = now_ns;
        }
        c.stuck = !stream.write(&c.out, &mut c.out_at)?;
        if c.out_at == c.out.len() {
            c.out.clear();
            c.out_at = 0;
            if c.out.capacity() > OUT_BYTES * 4 || !c.ready {
                c.out = Vec::new();
            }
        }
        Ok(())
    }

    fn gone(&mut self, why: &str, tell: &mut impl FnMut(Event<'_>)) {
        self.stage = Stage::Gone;
        self.client.ready = false;
        tell(Event::Closed(why));
    }
}

/// Gives the client all whole packets at the front; the bytes that they took.
fn packets(client: &mut Client, bytes: &[u8], tell: &mut impl FnMut(Event<'_>)) -> Result<usize, String> {
    let mut at = 0;
    while let Some((first, body, length)) = frame(bytes.get(at..).unwrap_or_default())? {
        let packet = decode(first, body, client.hello.v5)?;
        client.take(&packet, &mut *tell)?;
        at += length;
    }
    Ok(at)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    use super::*;
    use crate::plan::Plan;

    /// A client and the server's side of its connection.
    fn connected(plan: &mut Plan) -> (Driver, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        plan.port = listener.local_addr().unwrap().port();
        let mut d = Driver::new(Connector::new(plan).unwrap(), Instant::now()).unwrap();
        d.add(Hello { v5: plan.protocol == 5, ..Hello::default() }).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        d.turn(Duration::from_secs(1), &mut |_, _, _| ()).unwrap();
        assert!(server.read(&mut [0; 100]).unwrap() > 10, "a CONNECT");
        (d, server)
    }

    fn heard(d: &mut Driver, turns: usize) -> Vec<String> {
        let mut heard = Vec::new();
        for _ in 0..turns {
            d.turn(Duration::from_millis(50), &mut |_, _, event| heard.push(format!("{event:?}"))).unwrap();
        }
        heard
    }

    #[test]
    fn an_end_that_comes_together_with_data_is_seen() {
        let (mut d, mut server) = connected(&mut Plan::default());
        server.write_all(&[0x20, 2, 0, 0]).unwrap();
        drop(server);
        std::thread::sleep(Duration::from_millis(50));
        let wanted = ["Ready { present: false }", "Closed(\"the server closed the connection\")"];
        assert_eq!(heard(&mut d, 3), wanted);
    }

    #[test]
    fn why_the_server_closed_is_told_though_writing_fails_first() {
        let (mut d, mut server) = connected(&mut Plan { protocol: 5, ..Plan::default() });
        server.write_all(&[0x20, 3, 0, 0, 0]).unwrap();
        assert_eq!(heard(&mut d, 1), ["Ready { present: false }"]);
        d.send_ping(0);
        d.flush(&mut |_, _, _| ());
        server.write_all(&[0xe0, 1, 0x95]).unwrap();
        drop(server);
        std::thread::sleep(Duration::from_millis(50));
        d.send_ping(0);
        assert_eq!(heard(&mut d, 1), ["Closed(\"DISCONNECT with code 0x95\")"]);
    }

    /// [MQTT-3.1.2-23], [MQTT-3.2.2-21]: by the server's keep-alive, and messages that come are no sign of life of this side.
    #[test]
    fn who_only_listens_pings() {
        let (mut d, mut server) = connected(&mut Plan { protocol: 5, ..Plan::default() });
        server.write_all(&[0x20, 6, 0, 0, 3, 0x13, 0, 1]).unwrap();
        server.set_nonblocking(true).unwrap();
        let (mut bytes, mut came) = ([0; 100], 0);
        for _ in 0..30 {
            server.write_all(&[0x30, 5, 0, 1, b't', 0, b'x']).unwrap();
            heard(&mut d, 1);
            std::thread::sleep(Duration::from_millis(50));
            came += server.read(&mut bytes).unwrap_or(0);
        }
        assert!(came >= 2, "a PINGREQ");
        assert_eq!(bytes.get(..2), Some([0xc0, 0].as_slice()));
    }
}
