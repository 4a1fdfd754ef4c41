//! The door of the links: what lanes and the engine leave here, and what the thread tells.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use mio::{Poll, Waker};

use super::pulse::Beat;
use super::thread::{WAKER, Work};
use super::wire::Trust;
use crate::ring::Ring;

/// While lanes have more than this before them nothing is confirmed: peers send no more than a window then.
const WAITING_MAX: usize = 4 << 20;
/// With more under way to a node, or waiting to be, it is slow: whoever says more to it waits.
const SLOW_BYTES: usize = 8 << 20;
/// With more than this a large thing for it, a partition that moves, is sent on a little later: others go between.
const LAGGING_BYTES: usize = 2 << 20;

/// Another node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// Its slot.
    pub slot: u16,
    /// Which start of it.
    pub incarnation: u64,
    /// Where it listens for links.
    pub address: SocketAddr,
}

/// This node.
pub struct Site {
    /// Its slot, start and address.
    pub me: Member,
    /// Fingerprint of the cluster: nodes with another one are refused.
    pub cluster: u64,
    /// Whom it trusts; without it nothing is encrypted.
    pub trust: Option<Trust>,
    /// Engine time, milliseconds.
    pub now_ms: Box<dyn Fn() -> u64 + Send>,
    /// Places of nodes to which so much is under way that who says more shall wait, as a mask.
    pub slow: Arc<AtomicU64>,
}

/// What happens on the links.
#[derive(Debug)]
pub enum Event {
    /// The node with this slot and incarnation can be talked to, and remembers nothing.
    Up(u16, u64),
    /// A batch, with the sender's engine time.
    Batch {
        /// Incarnation of the sending node.
        incarnation: u64,
        /// The sending lane's place.
        from: u16,
        /// The receiving one's.
        to: u16,
        /// Engine time of the sender, milliseconds.
        now_ms: u64,
        /// What it said.
        bytes: Vec<u8>,
    },
    /// How all others are, about four times a second, with the version of the members, and who is reached through whom.
    Beats(u64, Vec<Beat>, Vec<(u16, u16)>),
    /// A node that had much or some to do has less.
    Eased,
}

pub(super) type Tell = Box<dyn Fn(Event) + Send>;

pub(super) struct Letter {
    pub slot: u16,
    pub incarnation: u64,
    pub from: u16,
    pub to: u16,
    pub now_ms: u64,
    pub bytes: Vec<u8>,
}

#[derive(Default)]
pub(super) struct Inbox {
    pub letters: Vec<Letter>,
    pub members: Option<(u64, Vec<Member>)>,
    pub bound: Option<Vec<u16>>,
    pub ending: bool,
}

pub(super) struct Desk {
    pub inbox: Mutex<Inbox>,
    waker: Waker,
    /// Bytes that wait or are not confirmed, of the worst link.
    pub backlog: AtomicUsize,
    /// Places of nodes that have something to do, as a mask: what can wait waits.
    lagging: AtomicU64,
    /// Bytes that have come and that lanes have not taken yet.
    pub waiting: AtomicUsize,
    /// See [`super::Pulse::majority_ms`].
    pub majority_ms: AtomicU64,
}

impl Desk {
    /// Lanes have enough to do with what has come.
    pub fn is_behind(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > WAITING_MAX
    }

    /// What is not confirmed, by slot; the places of those for whom it is much, and whether one for whom it was some has less now.
    pub fn note_backlogs(&self, backlogs: impl Iterator<Item = (u16, usize)>) -> (u64, bool) {
        let (mut most, mut lagging, mut slow) = (0, 0, 0);
        for (slot, bytes) in backlogs {
            most = most.max(bytes);
            lagging |= if bytes > LAGGING_BYTES { Ring::mask_of(slot) } else { 0 };
            slow |= if bytes > SLOW_BYTES { Ring::mask_of(slot) } else { 0 };
        }
        self.backlog.store(most, Ordering::Relaxed);
        (slow, self.lagging.swap(lagging, Ordering::Relaxed) & !lagging != 0)
    }
}

/// The links of this node.
pub struct Links {
    desk: Arc<Desk>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl std::fmt::Debug for Links {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Links").field("backlog", &self.backlog()).finish_non_exhaustive()
    }
}

impl Links {
    /// Listens, dials, and tells what happens.
    ///
    /// # Errors
    /// The address is taken, or the operating system refuses.
    pub fn start(site: Site, tell: Tell) -> io::Result<Self> {
        let poll = Poll::new()?;
        let waker = Waker::new(poll.registry(), WAKER)?;
        let (inbox, backlog, waiting) = (Mutex::default(), AtomicUsize::default(), AtomicUsize::default());
        let (lagging, majority_ms) = (AtomicU64::default(), AtomicU64::default());
        let desk = Arc::new(Desk { inbox, waker, backlog, lagging, waiting, majority_ms });
        let mut work = Work::new(site, tell, poll, Arc::clone(&desk))?;
        let thread = std::thread::Builder::new().name("links".to_owned()).spawn(move || work.run())?;
        Ok(Self { desk, thread: Mutex::new(Some(thread)) })
    }

    fn tell(&self, change: impl FnOnce(&mut Inbox)) {
        if let Ok(mut inbox) = self.desk.inbox.lock() {
            change(&mut inbox);
        }
        let _ = self.desk.waker.wake();
    }

    /// These are the members from now on, this node among them unless it was voted out. Who is not among them is forgotten.
    pub fn set_members(&self, version: u64, members: Vec<Member>) {
        self.tell(|inbox| inbox.members = Some((version, members)));
    }

    /// These are answered no more: this node has reported them silent.
    pub fn bind(&self, slots: Vec<u16>) {
        self.tell(|inbox| inbox.bound = Some(slots));
    }

    /// Leaves a batch for a lane of a node; for another incarnation of it than the present one it is forgotten.
    pub fn post(&self, slot: u16, incarnation: u64, from: u16, to: u16, now_ms: u64, bytes: Vec<u8>) {
        let first = self.desk.inbox.lock().is_ok_and(|mut inbox| {
            inbox.letters.push(Letter { slot, incarnation, from, to, now_ms, bytes });
            inbox.letters.len() == 1
        });
        if first {
            let _ = self.desk.waker.wake();
        }
    }

    /// Engine time at which a majority of the members was surely there; see [`super::Pulse::majority_ms`].
    #[must_use]
    pub fn majority_ms(&self) -> u64 {
        self.desk.majority_ms.load(Ordering::Acquire)
    }

    /// Bytes that the slowest of the nodes has not confirmed.
    #[must_use]
    pub fn backlog(&self) -> usize {
        self.desk.backlog.load(Ordering::Relaxed)
    }

    /// Little is under way to the node of this place.
    #[must_use]
    pub fn is_free(&self, place: u16) -> bool {
        self.desk.lagging.load(Ordering::Relaxed) & Ring::mask_of(Ring::slot(place)) == 0
    }

    /// A batch of so many bytes was taken: what has come is confirmed only while not too much of it waits.
    pub fn taken(&self, bytes: usize) {
        let before = self.desk.waiting.fetch_sub(bytes, Ordering::Relaxed);
        if before > WAITING_MAX && before - bytes <= WAITING_MAX {
            let _ = self.desk.waker.wake();
        }
    }

    /// Ends the thread and every connection.
    pub fn close(&self) {
        self.tell(|inbox| inbox.ending = true);
        if let Some(thread) = self.thread.lock().ok().and_then(|mut t| t.take()) {
            let _ = thread.join();
        }
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        self.close();
    }
}
