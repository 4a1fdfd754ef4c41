//! One OS thread: its sockets, its partitions, its tick.
//!
//! A tick waits for events, reads every ready socket into the lane's one read buffer, acts, hands batches to other
//! lanes, and writes each connection that has output once. Batching comes from the tick: it grows with load and costs no
//! latency when idle. Nothing is shared with other lanes but their mailboxes.

mod accept;
mod close;
#[cfg(test)]
mod cluster_tests;
mod connect;
mod durable;
mod effects;
mod exchange;
mod explain;
mod fleet;
mod frozen;
mod halts;
mod halving;
mod ingest;
#[cfg(test)]
mod log_tests;
mod moving;
mod orders;
mod owners;
mod peers;
mod query;
mod relay;
mod route;
mod shared_log;
mod subscribe;
#[cfg(test)]
mod tests;
mod warming;

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use foldhash::fast::RandomState;
use hashbrown::HashMap;
use mio::{Events, Poll, Token as Place};
use slab::Slab;

pub use durable::Recovered;
pub use exchange::{Conveyed, LaneMessage, Mailbox, Question};
pub use relay::{ToConnection, ToSession};

use crate::channel::{ConnectionId, Outcome, SessionRef, Token};
use crate::codec::Reason;
use crate::connection::{Connection, Stage};
use crate::interest::Interest;
use crate::log::Walked;
use crate::message::{Origin, Stored};
use crate::net::Listener;
use crate::partition::{Deliver, Effects, Partition, Subscriber, Target};
use crate::port::{Config, Shared};
use crate::shared::Member;
use crate::stats::{Counter, Gauge, Ledger, Stats};
use crate::timers::Timers;
use crate::tree::Tree;

/// Bytes read from one socket in one tick.
const READ_BYTES: usize = 128 * 1024;
/// Token of the mailbox's waker; listeners follow, then connections.
const WAKER: Place = Place(0);
const LISTENERS: usize = 1;
const CONNECTIONS: usize = 1 << 12;
const LINGERING: usize = 1 << 40;
/// Exact topics whose receivers are remembered.
const CACHE_MAX: usize = 1 << 16;
/// How soon it is looked at what waits for other nodes.
const FLEET_WAIT: Duration = Duration::from_millis(50);
/// How soon a lane of a cluster looks whether it is alone.
const FLEET_LOOK: Duration = Duration::from_millis(500);
/// Buffers kept for connections that have output.
const SPARE_BUFFERS: usize = 256;

/// Something that comes due.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    Connection { key: u32, generation: u32 },
    Linger { key: u32 },
    Accept,
}

/// Work of the lane for itself, done in order before the tick ends.
#[derive(Debug)]
enum Todo {
    Close { connection: ConnectionId, reason: Reason },
    TooLarge { session: SessionRef, id: u16 },
    Resume { session: SessionRef },
    Congested { session: SessionRef, congested: bool },
    Publish { message: Stored },
    Partition { partition: u16, what: Conveyed },
    Joined { group: Box<str>, member: Member, again: bool, question: Option<Question> },
    Opened { session: SessionRef },
    Forget { uid: u64 },
}

/// Who gets the messages of one topic, as of a version of tree and interest.
#[derive(Debug, Default)]
struct Receivers {
    /// Sessions and groups of this lane, by partition.
    targets: Vec<Target>,
    /// Other places, as a bit mask.
    places: u64,
}

#[derive(Debug)]
struct Cached {
    stamp: (u64, u64),
    receivers: Rc<Receivers>,
}

/// The publish that is being routed: answers that come at once are counted here.
#[derive(Debug, Default)]
struct Flow {
    token: Option<Token>,
    waiting: u16,
    outcome: Outcome,
    held: Option<Origin>,
    /// QoS 2 deliveries to the publisher itself: they follow its PUBREC.
    own: Vec<Deliver>,
}

/// A publish of another lane whose answers are not all in.
#[derive(Debug, Default)]
struct Late {
    waiting: u16,
    outcome: Outcome,
    /// Partitions that have not acted: another node has them now.
    missing: Vec<u16>,
}

/// One lane.
pub struct Lane {
    number: u16,
    shared: Arc<Shared>,
    config: Arc<Config>,
    stats: Arc<Stats>,
    poll: Poll,
    listeners: Vec<(u16, Listener)>,
    accepting: bool,
    /// Boxed: a table of them that grows would copy all and keep the old half for a while.
    connections: Slab<Box<Connection>>,
    generation: u32,
    lingering: Slab<close::Lingering>,
    hangups: Vec<usize>,
    partitions: Vec<Option<Box<Partition>>>,
    tree: Tree<Subscriber>,
    interest: Interest,
    cache: HashMap<Box<str>, Cached, RandomState>,
    timers: Timers<Timer>,
    partitions_due_ms: Option<u64>,
    todo: VecDeque<Todo>,
    dirty: Vec<u32>,
    ready: Vec<u32>,
    read_buffer: Vec<u8>,
    spare_buffers: Vec<Vec<u8>>,
    spare_effects: Vec<Effects>,
    flow: Flow,
    late: HashMap<Token, Late>,
    /// QoS 2 publishes whose identifiers are being held by sessions that are elsewhere.
    holding: HashMap<(ConnectionId, u64), Stored>,
    /// Messages of other lanes that are being worked off; a panic costs the one that caused it.
    inbox: VecDeque<(u16, std::vec::IntoIter<LaneMessage>)>,
    outgoing: Vec<Vec<LaneMessage>>,
    sent: Vec<u64>,
    received: Vec<u64>,
    peer_sent: Vec<Vec<u64>>,
    /// Other nodes that can be talked to: incarnation by slot.
    nodes: HashMap<u16, u64>,
    /// What it knows of them, in a cluster.
    fleet: Option<Box<fleet::Fleet>>,
    questions: Slab<subscribe::Asked>,
    gatherings: HashMap<u64, subscribe::Gathering, RandomState>,
    gathered: u64,
    joins: Vec<(u64, Question)>,
    deferred: Vec<query::RetainedQuery>,
    faults: Vec<crate::port::Fault>,
    ledger: Ledger,
    wait_for: Option<u64>,
    stopping_at_ms: Option<u64>,
    ended: bool,
    /// A checkpoint under way, and what the last one found until the log has it.
    walking: Option<Box<durable::Walking>>,
    walked: Option<Walked>,
    waiting_listeners: Vec<(u16, Listener)>,
    /// Drops that `ledger.json` knows, and when it was told.
    ledger_saved: (u64, u64),
    /// Lanes that have finished each phase of the start.
    phases: [u16; 2],
    now_ms: u64,
}

impl Lane {
    /// A lane that has not run yet.
    ///
    /// # Errors
    /// The operating system refuses another event queue.
    pub fn new(number: u16, shared: Arc<Shared>, config: Arc<Config>, poll: Poll, recovered: Recovered) -> Self {
        let places = usize::from(shared.ring.places());
        let partitions = Self::partitions_of(number, &shared, &config, recovered);
        let stats = shared.ring.here(number).and_then(|i| shared.stats.get(i)).cloned().unwrap_or_default();
        let mut ledger = Ledger::new(config.limits.ledger_entries_max);
        let mine = |client_id: &str| shared.ring.home(shared.ring.partition(client_id)) == number;
        shared.ledgers.earlier(mine).into_iter().for_each(|e| ledger.note(e));
        Self {
            number,
            stats,
            poll,
            listeners: Vec::new(),
            accepting: true,
            connections: Slab::new(),
            generation: 0,
            lingering: Slab::new(),
            hangups: Vec::new(),
            partitions,
            tree: Tree::new(),
            interest: Self::interest_of(number, &shared),
            cache: HashMap::default(),
            timers: Timers::new(),
            partitions_due_ms: None,
            todo: VecDeque::new(),
            dirty: Vec::new(),
            ready: Vec::new(),
            read_buffer: vec![0; READ_BYTES],
            spare_buffers: Vec::new(),
            spare_effects: Vec::new(),
            flow: Flow::default(),
            late: HashMap::new(),
            holding: HashMap::new(),
            inbox: VecDeque::new(),
            outgoing: std::iter::repeat_with(Vec::new).take(places).collect(),
            sent: vec![0; places],
            received: vec![0; places],
            peer_sent: vec![vec![0; places]; places],
            nodes: HashMap::new(),
            fleet: shared.ring.is_shared().then(|| Box::new(fleet::Fleet::new(shared.ring.partitions()))),
            questions: Slab::new(),
            gatherings: HashMap::default(),
            gathered: 0,
            joins: Vec::new(),
            deferred: Vec::new(),
            faults: Vec::new(),
            ledger,
            wait_for: None,
            stopping_at_ms: None,
            ended: false,
            walking: None,
            walked: None,
            waiting_listeners: Vec::new(),
            ledger_saved: (0, 0),
            phases: [0; 2],
            now_ms: shared.clock.now_ms(),
            shared,
            config,
        }
    }

    /// Runs until it is told to stop. A panic in a tick is contained: it is reported, every connection of the lane is
    /// closed, and the lane goes on with what its log remembers.
    pub fn run(mut self) {
        let mut events = Events::with_capacity(1024);
        while !self.ended {
            let tick = std::panic::AssertUnwindSafe(|| self.tick(&mut events));
            if let Err(cause) = std::panic::catch_unwind(tick) {
                let text = cause.downcast_ref::<String>().map_or("panic", String::as_str).to_owned();
                let text = cause.downcast_ref::<&str>().map_or(text, |s| (*s).to_owned());
                self.shared.events.lane_failed(self.number, &text);
                self.restart();
            }
        }
    }

    /// Forgets everything that is not in the log; without one that is everything. A tick counts as a whole: what it had not
    /// handed over to the log did not happen, and nobody was told.
    fn restart(&mut self) {
        let (shared, config) = (Arc::clone(&self.shared), Arc::clone(&self.config));
        for (_, c) in &self.connections {
            shared.leave(c.transport.address());
            if matches!(c.stage, Stage::Open | Stage::Attaching) {
                shared.count_connection(c.listener, false);
            }
        }
        let Ok(poll) = Poll::new() else {
            self.ended = true;
            return;
        };
        let (recovered, resumed) = crate::port::reread(&shared, self.number, self.now_ms);
        let mut fresh = Self::new(self.number, Arc::clone(&shared), config, poll, recovered);
        if let Some(mailbox) = shared.mailbox(self.number) {
            mailbox.rewire(&fresh.poll, WAKER);
        }
        for (index, mut listener) in self.listeners.drain(..) {
            let _ = listener.deregister(self.poll.registry());
            fresh.add_listener(index, listener);
        }
        for gauge in [Gauge::connections, Gauge::handshakes, Gauge::subscriptions] {
            self.stats.set(gauge, 0);
        }
        for (old, new) in self.partitions.iter_mut().flatten().zip(fresh.partitions.iter_mut().flatten()) {
            new.succeed(old);
        }
        // what the peers want is still true; what was wanted here is not
        self.interest.forget_own();
        std::mem::swap(&mut fresh.interest, &mut self.interest);
        self.take_back_mail();
        fresh.nodes = std::mem::take(&mut self.nodes);
        fresh.fleet = self.fleet.take();
        fresh.sent.clone_from(&self.sent);
        fresh.received.clone_from(&self.received);
        // names are never used again, what was said is said, what has come is read
        fresh.generation = self.generation;
        fresh.gathered = self.gathered;
        std::mem::swap(&mut fresh.outgoing, &mut self.outgoing);
        std::mem::swap(&mut fresh.inbox, &mut self.inbox);
        (fresh.accepting, fresh.stopping_at_ms) = (self.accepting, self.stopping_at_ms);
        fresh.waiting_listeners = std::mem::take(&mut self.waiting_listeners);
        fresh.phases = self.phases;
        *self = fresh;
        self.tell_peers();
        self.resume_own(resumed);
    }

    fn tick(&mut self, events: &mut Events) {
        let (asked, timeout) = (Instant::now(), self.timeout());
        let polled = self.poll.poll(events, timeout);
        let began = Instant::now();
        let late = timeout.map(|at_most| (began - asked).saturating_sub(at_most)).unwrap_or_default();
        if let Err(error) = polled {
            if error.kind() != std::io::ErrorKind::Interrupted {
                self.shared.events.lane_failed(self.number, &error.to_string());
                self.ended = true;
            }
            return self.stats.note_tick(self.now_ms, late, Duration::ZERO);
        }
        self.now_ms = self.shared.clock.now_ms();
        for event in events.iter() {
            self.on_event(event);
        }
        self.receive_mail();
        self.read_ready();
        self.work();
        self.fire_timers();
        self.work();
        self.tend_fleet();
        self.tend_moves();
        self.write_log();
        self.append_shared();
        self.flush_dirty();
        self.send_mail();
        self.hang_up();
        self.stats.note_tick(self.now_ms, late, began.elapsed());
    }

    fn groups(&self) -> i64 {
        let n: usize = self.partitions.iter().flatten().map(|p| p.groups()).sum();
        i64::try_from(n).unwrap_or(i64::MAX)
    }

    fn timeout(&self) -> Option<Duration> {
        if !(self.ready.is_empty() && self.todo.is_empty() && self.inbox.is_empty()) || self.sends_parts() {
            return Some(if self.held_up() { Duration::from_millis(1) } else { Duration::ZERO });
        }
        let due = [self.timers.next_ms(), self.partitions_due_ms, self.stopping_at_ms];
        let next = due.into_iter().flatten().min();
        let next = next.map(|ms| Duration::from_millis(ms.saturating_sub(self.shared.clock.now_ms())));
        let look = if self.fleet_waits() { FLEET_WAIT } else { FLEET_LOOK };
        let fleet = self.fleet.is_some().then_some(look);
        [next, fleet, self.log_wants_in()].into_iter().flatten().min()
    }

    fn on_event(&mut self, event: &mio::event::Event) {
        let place = event.token().0;
        if place == WAKER.0 {
            return;
        }
        if place >= LINGERING {
            return self.drain_lingering(place - LINGERING);
        }
        if place < CONNECTIONS {
            return self.accept(place - LISTENERS);
        }
        let key = place - CONNECTIONS;
        if event.is_writable() {
            self.mark_dirty(key);
        }
        if event.is_readable() || event.is_read_closed() || event.is_error() {
            self.mark_ready(key);
        }
    }

    fn mark_dirty(&mut self, key: usize) {
        if let Some(c) = self.connections.get_mut(key).filter(|c| !c.dirty) {
            c.dirty = true;
            self.dirty.push(u32::try_from(key).unwrap_or(u32::MAX));
        }
    }

    fn mark_ready(&mut self, key: usize) {
        if let Some(c) = self.connections.get_mut(key).filter(|c| !c.ready) {
            c.ready = true;
            self.ready.push(u32::try_from(key).unwrap_or(u32::MAX));
        }
    }

    /// The connection that a name means, if it is still that one.
    fn connection(&mut self, id: ConnectionId) -> Option<&mut Connection> {
        self.connections
            .get_mut(id.key as usize)
            .map(Box::as_mut)
            .filter(|c| c.generation == id.generation && id.lane == self.number)
    }

    fn id_of(&self, key: usize) -> ConnectionId {
        let generation = self.connections.get(key).map_or(0, |c| c.generation);
        ConnectionId { lane: self.number, key: u32::try_from(key).unwrap_or(u32::MAX), generation }
    }

    fn partition(&mut self, number: u16) -> Option<&mut Partition> {
        self.partitions.get_mut(usize::from(number))?.as_deref_mut()
    }

    /// Does what the lane has set aside for itself.
    fn work(&mut self) {
        while let Some(todo) = self.todo.pop_front() {
            self.do_one(todo);
        }
    }

    fn fire_timers(&mut self) {
        if self.partitions_due_ms.is_some_and(|at| at <= self.now_ms) {
            for number in 0..self.shared.ring.partitions() {
                if self.partition(number).and_then(|p| p.next_ms()).is_some_and(|at| at <= self.now_ms) {
                    self.step(number, crate::partition::Input::Tick, None);
                }
            }
            self.note_partition_timers();
        }
        while let Some(timer) = self.timers.due(self.now_ms) {
            match timer {
                Timer::Connection { key, generation } => self.connection_due(key, generation),
                Timer::Linger { key } => self.end_lingering(key as usize),
                Timer::Accept => self.resume_accepting(),
            }
        }
        if self.stopping_at_ms.is_some_and(|at| at <= self.now_ms) {
            self.ended = true;
        }
    }

    fn note_partition_timers(&mut self) {
        self.partitions_due_ms = self.partitions.iter().flatten().filter_map(|p| p.next_ms()).min();
    }

    /// Writes every connection that has output, once.
    fn flush_dirty(&mut self) {
        let dirty = std::mem::take(&mut self.dirty);
        for &key in &dirty {
            self.flush(key as usize);
        }
        let mut spare = dirty;
        spare.clear();
        if self.dirty.is_empty() {
            self.dirty = spare;
        }
    }

    fn flush(&mut self, key: usize) {
        let now_ms = self.now_ms;
        let Some(c) = self.connections.get_mut(key) else { return };
        c.dirty = false;
        if c.rare.as_ref().is_some_and(|r| r.hold_ms > now_ms) {
            return;
        }
        let mut written = 0;
        let result = c.out.flush(&mut c.transport, &mut written);
        self.stats.add(Counter::bytes_sent, written);
        match result {
            Ok(true) => {
                if let Some(buf) = c.out.give_back() {
                    if self.spare_buffers.len() < SPARE_BUFFERS && buf.capacity() <= READ_BYTES {
                        self.spare_buffers.push(buf);
                    }
                }
            }
            Ok(false) => {}
            Err(error) => return self.lost(key, error.text()),
        }
        let Some(c) = self.connections.get_mut(key) else { return };
        if c.congested && c.out.len() < self.config.limits.pending_output_bytes_max / 2 {
            c.congested = false;
            let session = c.session;
            self.todo.push_back(Todo::Congested { session, congested: false });
        }
    }
}
