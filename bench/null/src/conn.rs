//! Connections: their sockets, what is kept of their input, and what waits to be written.
//!
//! Nothing is ever dropped for a connection that lives. A receiver that is slower than its publishers makes them wait:
//! above [`OUT_BYTES_MAX`] whoever adds to its output is not read until half of it has left.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::os::fd::AsRawFd as _;

use mio::event::Event;
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};

/// One read of a socket takes at most this much, so that a fast publisher does not keep the others waiting.
pub const READ_BYTES: usize = 256 << 10;
/// Pending output of a connection above which those who cause it wait.
const OUT_BYTES_MAX: usize = 4 << 20;
/// All emptied buffers that are kept for the next output, together.
const SPARE_BYTES_MAX: usize = 32 << 20;

/// Whether a connection's input is read.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Input {
    /// It is; `rest` is the beginning of a packet.
    Open,
    /// It is not: a receiver is full. `rest` has whole packets.
    Waiting,
    /// The receiver has room again; `rest` has whole packets, which come before what the socket has.
    Resumed,
}

pub struct Conn {
    stream: TcpStream,
    /// 4 or 5; 0 until CONNECT.
    pub version: u8,
    pub filters: Vec<Box<[u8]>>,
    pub input: Input,
    pub rest: Vec<u8>,
    /// Bytes of `rest` that are done.
    pub done: usize,
    pub out: Vec<u8>,
    sent: usize,
    last_id: u16,
    /// Slots of those whose input waits for this output.
    waiters: Vec<usize>,
    /// In the list of those to be read.
    queued: bool,
    /// In the list of those to be written, or armed.
    dirty: bool,
    /// Told when it can be written.
    armed: bool,
    /// The peer has ended: there will be no more events, so read to the end.
    ended: bool,
}

impl Conn {
    /// Packet ids go round from 1 to 65,535; that one is still in use is not looked at.
    pub fn next_id(&mut self) -> u16 {
        self.last_id = self.last_id.checked_add(1).unwrap_or(1);
        self.last_id
    }

    fn pending(&self) -> usize {
        self.out.len() - self.sent
    }

    pub fn is_full(&self) -> bool {
        self.pending() > OUT_BYTES_MAX
    }

    /// Twice the room of messages: one who only acknowledges is to be read while messages wait for him.
    pub fn is_flooded(&self) -> bool {
        self.pending() > 2 * OUT_BYTES_MAX
    }

    /// Puts the rest and what one read brings at the start of `buf`. Returns how much that is, and whether to read again
    /// without a new event; `None` when the connection is over.
    pub fn fill(&mut self, buf: &mut Vec<u8>) -> Option<(usize, bool)> {
        let kept = self.rest.len();
        if buf.len() < kept + READ_BYTES {
            buf.resize(kept + READ_BYTES, 0);
        }
        let (start, room) = buf.get_mut(..kept + READ_BYTES)?.split_at_mut_checked(kept)?;
        start.copy_from_slice(&self.rest);
        loop {
            match (&self.stream).read(room) {
                Ok(0) => return None,
                Ok(n) => return Some((kept + n, n == READ_BYTES || self.ended)),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Some((kept, false)),
                Err(_) => return None,
            }
        }
    }

    /// Writes what it can. Returns whether the connection lives.
    fn drain(&mut self) -> bool {
        while let Some(bytes) = self.out.get(self.sent..).filter(|bytes| !bytes.is_empty()) {
            match (&self.stream).write(bytes) {
                Ok(0) => return false,
                Ok(n) => self.sent += n,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(_) => return false,
            }
        }
        if self.sent > self.out.len() / 2 {
            self.out.drain(..self.sent);
            self.sent = 0;
        }
        true
    }

    /// Asks to be told when it can be written, or no longer.
    fn arm(&mut self, slot: usize, armed: bool, registry: &Registry) -> bool {
        if armed == self.armed {
            return true;
        }
        self.armed = armed;
        let interest = if armed { Interest::READABLE | Interest::WRITABLE } else { Interest::READABLE };
        registry.reregister(&mut SourceFd(&self.stream.as_raw_fd()), Token(slot), interest).is_ok()
    }
}

/// All connections by slot. A slot that became free is taken again only at the end of a tick, when no list names it for
/// its former owner's sake.
#[derive(Default)]
pub struct Conns {
    list: Vec<Option<Conn>>,
    free: Vec<usize>,
    ready: Vec<usize>,
    dirty: Vec<usize>,
    spare: Vec<Vec<u8>>,
    spare_bytes: usize,
}

impl Conns {
    pub fn add(&mut self, stream: TcpStream, registry: &Registry) -> std::io::Result<()> {
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        let slot = self.free.last().copied().unwrap_or(self.list.len());
        registry.register(&mut SourceFd(&stream.as_raw_fd()), Token(slot), Interest::READABLE)?;
        if self.free.pop().is_none() {
            self.list.push(None);
        }
        let conn = Conn {
            stream,
            version: 0,
            filters: Vec::new(),
            input: Input::Open,
            rest: Vec::new(),
            done: 0,
            out: Vec::new(),
            sent: 0,
            last_id: 0,
            waiters: Vec::new(),
            queued: false,
            dirty: false,
            armed: false,
            ended: false,
        };
        if let Some(place) = self.list.get_mut(slot) {
            *place = Some(conn);
        }
        Ok(())
    }

    /// Ends a connection; the socket closes with the value.
    pub fn remove(&mut self, slot: usize) -> Option<Conn> {
        let mut conn = self.list.get_mut(slot)?.take()?;
        self.free.push(slot);
        for waiter in std::mem::take(&mut conn.waiters) {
            self.resume(waiter);
        }
        Some(conn)
    }

    pub fn get(&mut self, slot: usize) -> Option<&mut Conn> {
        self.list.get_mut(slot)?.as_mut()
    }

    /// What the operating system says of a socket.
    pub fn woken(&mut self, slot: usize, event: &Event) {
        let Some(conn) = self.get(slot) else { return };
        conn.ended |= event.is_read_closed() || event.is_error();
        let write = conn.armed && (event.is_writable() || event.is_write_closed());
        if event.is_readable() || conn.ended {
            self.queue(slot);
        }
        if write {
            self.dirty.push(slot);
        }
    }

    pub fn is_idle(&self) -> bool {
        self.ready.is_empty()
    }

    /// Those to be read now.
    pub fn take_ready(&mut self) -> Vec<usize> {
        let ready = std::mem::take(&mut self.ready);
        for slot in &ready {
            if let Some(conn) = self.get(*slot) {
                conn.queued = false;
            }
        }
        ready
    }

    /// To be read in the next tick at the latest.
    pub fn queue(&mut self, slot: usize) {
        if let Some(conn) = self.list.get_mut(slot).and_then(Option::as_mut) {
            if !conn.queued {
                conn.queued = true;
                self.ready.push(slot);
            }
        }
    }

    /// A connection that gets output: it is written at the end of the tick.
    pub fn output(&mut self, slot: usize) -> Option<&mut Conn> {
        let conn = self.list.get_mut(slot)?.as_mut()?;
        if !conn.dirty {
            conn.dirty = true;
            self.dirty.push(slot);
            if conn.out.capacity() == 0 {
                conn.out = self.spare.pop().unwrap_or_default();
                self.spare_bytes -= conn.out.capacity();
            }
        }
        Some(conn)
    }

    /// `waiter` is not read until `slot` has room.
    pub fn wait(&mut self, slot: usize, waiter: usize) {
        if let Some(conn) = self.get(slot) {
            conn.waiters.push(waiter);
        }
    }

    fn resume(&mut self, slot: usize) {
        if let Some(conn) = self.get(slot).filter(|conn| conn.input == Input::Waiting) {
            conn.input = Input::Resumed;
            self.queue(slot);
        }
    }

    /// Writes all output of the tick. Returns the connections that are over.
    pub fn flush(&mut self, registry: &Registry) -> Vec<usize> {
        let mut dirty = std::mem::take(&mut self.dirty);
        dirty.retain(|slot| !self.flush_one(*slot, registry));
        dirty
    }

    fn flush_one(&mut self, slot: usize, registry: &Registry) -> bool {
        let Some(conn) = self.list.get_mut(slot).and_then(Option::as_mut) else { return true };
        let left = conn.drain() && conn.arm(slot, conn.sent < conn.out.len(), registry);
        if conn.out.is_empty() {
            conn.dirty = false;
            let spare = std::mem::take(&mut conn.out);
            if self.spare_bytes + spare.capacity() <= SPARE_BYTES_MAX {
                self.spare_bytes += spare.capacity();
                self.spare.push(spare);
            }
        }
        if !conn.waiters.is_empty() && conn.pending() < OUT_BYTES_MAX / 2 {
            for waiter in std::mem::take(&mut conn.waiters) {
                self.resume(waiter);
            }
        }
        left
    }
}
