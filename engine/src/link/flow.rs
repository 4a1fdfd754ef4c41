//! One direction and its answer: numbers, acknowledgements, what is sent again, what is not taken twice. No I/O, no clock.
//!
//! Each end has a *name* for as long as it remembers what it sent. When a connection breaks, both keep what is not
//! confirmed and go on where the other stopped. An end that is not what it was (a new process) has another name: then the other
//! end forgets too, and both say so upwards (`Welcome::new`). Only a name that is not known is new: connections overlap, and who
//! says that it does not know this end may have met it meanwhile. Explored completely by `tests/cluster/model_link.py`; drawn in
//! `docs/formats/link.md`.

use std::collections::VecDeque;

/// Bytes after which a confirmation goes out by itself: far less than what a sender may have unconfirmed.
pub(super) const OWED_MAX: usize = 1 << 18;
/// Bytes that are on their way without a confirmation. A peer that has enough to do confirms later; it keeps no more than this.
pub(super) const WINDOW: u64 = 8 << 20;

/// The first thing that an end says on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Hello {
    /// Name of the sender.
    pub name: u64,
    /// Name of the receiver as the sender knows it; 0 is none.
    pub peer: u64,
    /// Everything up to here has come from `peer`.
    pub received: u64,
}

/// What a hello has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Welcome {
    /// The peer is another one than before, or has forgotten: nothing that was said to it counts.
    pub new: bool,
    /// The number of the first frame that follows.
    pub first: u64,
}

/// The other end broke the rules; the connection must end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Broken(pub &'static str);

/// What one end knows of a link.
#[derive(Debug)]
pub struct Flow {
    name: u64,
    peer: u64,
    /// Number of the next frame; the first is 1.
    next: u64,
    /// Said and not confirmed, oldest first: number, bytes that were said before it, frame.
    unconfirmed: VecDeque<(u64, u64, Vec<u8>)>,
    bytes: usize,
    /// Bytes that were ever said.
    said: u64,
    received: u64,
    /// How far the peer was told that all has come.
    told: u64,
    /// Bytes that have come since the peer was told how far it has come.
    owed: usize,
    /// The peer is new, and where it begins was not heard yet, on whatever connection that comes.
    fresh: bool,
}

impl Flow {
    /// An end that has said nothing yet.
    #[must_use]
    pub const fn new(name: u64) -> Self {
        let unconfirmed = VecDeque::new();
        Self { name, peer: 0, next: 1, unconfirmed, bytes: 0, said: 0, received: 0, told: 0, owed: 0, fresh: false }
    }

    /// What to say first on a new connection.
    #[must_use]
    pub const fn hello(&self) -> Hello {
        Hello { name: self.name, peer: self.peer, received: self.received }
    }

    /// The peer's hello, on a connection on which this end has said `said`. What follows from here begins with the frame `first`,
    /// what was not confirmed before all else.
    ///
    /// # Errors
    /// This end has met the peer on another connection since it said so: what the peer makes of it is out of date.
    pub fn welcome(&mut self, said: &Hello, hello: &Hello) -> Result<Welcome, Broken> {
        if (said.name, said.peer) != (self.name, self.peer) {
            return Err(Broken("they have met on another connection"));
        }
        let new = hello.name != self.peer;
        if new {
            self.unconfirmed.clear();
            (self.bytes, self.received, self.told, self.fresh) = (0, 0, 0, true);
        } else if hello.peer == self.name {
            self.confirm(hello.received); // otherwise it counts what somebody else has said
        }
        self.peer = hello.name;
        Ok(Welcome { new, first: self.unconfirmed.front().map_or(self.next, |(n, ..)| *n) })
    }

    /// The peer says with which number it begins.
    ///
    /// # Errors
    /// Something between the last frame and this one is lost, though the peer has not forgotten.
    pub fn begin(&mut self, first: u64) -> Result<(), Broken> {
        if std::mem::take(&mut self.fresh) {
            self.received = first.saturating_sub(1);
        } else if first > self.received + 1 {
            return Err(Broken("frames are missing"));
        }
        Ok(())
    }

    /// The first frame behind the one with this number that the peer has not confirmed, unless enough is on its way.
    #[must_use]
    pub fn after(&self, n: u64) -> Option<(u64, &[u8])> {
        let first = self.unconfirmed.front()?.0;
        let at = usize::try_from((n + 1).saturating_sub(first)).ok()?;
        let (n, before, bytes) = self.unconfirmed.get(at)?;
        let confirmed = self.said - self.bytes as u64;
        (before - confirmed < WINDOW).then_some((*n, bytes.as_slice()))
    }

    /// The number that the next frame will have.
    #[must_use]
    pub const fn next(&self) -> u64 {
        self.next
    }

    /// Numbers a frame and keeps it until it is confirmed.
    pub fn send(&mut self, bytes: Vec<u8>) -> u64 {
        let n = self.next;
        self.next += 1;
        let before = self.said;
        self.bytes += bytes.len();
        self.said += bytes.len() as u64;
        self.unconfirmed.push_back((n, before, bytes));
        n
    }

    /// The peer has everything up to here.
    pub fn confirm(&mut self, up_to: u64) {
        while self.unconfirmed.front().is_some_and(|(n, ..)| *n <= up_to) {
            if let Some((.., bytes)) = self.unconfirmed.pop_front() {
                self.bytes -= bytes.len();
            }
        }
    }

    /// A frame of so many bytes has come. True: it is new, and counts as taken. False: it came before.
    ///
    /// # Errors
    /// One before it is missing.
    pub fn receive(&mut self, n: u64, len: usize) -> Result<bool, Broken> {
        if n <= self.received {
            return Ok(false);
        }
        if n != self.received + 1 {
            return Err(Broken("a frame is missing"));
        }
        self.received = n;
        self.owed += len;
        Ok(true)
    }

    /// Up to where to confirm, to be told now: everything that has come, or no more than before while this node is behind with it.
    #[must_use]
    pub const fn confirm_to_peer(&mut self, behind: bool) -> u64 {
        if !behind {
            (self.told, self.owed) = (self.received, 0);
        }
        self.told
    }

    /// Has so much come since the peer was told that it has to be told by itself? Frames and beats tell it in passing.
    #[must_use]
    pub const fn owes_confirmation(&self) -> bool {
        self.owed >= OWED_MAX
    }

    /// Bytes that the peer has not confirmed.
    #[must_use]
    pub const fn unconfirmed_bytes(&self) -> usize {
        self.bytes
    }
}
