//! The writer of one partition's log: fence, chain, unknown outcomes (`30-cluster.md` section 3, `log_fence` in its models).
//!
//! Pure: what happened in, what to do out; no clock, no I/O. At most one request is under way at a time.
//! - A new owner appends `EPOCH` without a condition, then reads up to it: what an older owner sends later is refused or,
//!   if it was on its way before, adopted (its sequence is the one to expect) and ignored.
//! - An append names the last sequence of the subject. Its outcome is unknown until it is answered or found; before
//!   anything else everything behind the own last position is read. A retry has the same bytes.
//! - A higher epoch anywhere: resign. What lies at the own last position must be what was written there.
//! - What is missing is asked for again, several times, before it is called lost; a log that lost something stops.

use bytes::Bytes;
use roostmq_engine::log::{Anchor, At, Batch, ClusterLogEvent, Fence, Header, Position};

use crate::frame::{Kind, Mark, encode};
use crate::queue::{Queue, Taken};
use crate::replay::{Found, Replay};

/// So often what is missing is asked for before it is called lost.
pub const MISSES_MAX: u32 = 8;

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Append these bytes, on the condition that the last sequence is this one.
    Append {
        /// The bytes.
        bytes: Bytes,
        /// The condition.
        expect: Option<At>,
    },
    /// Read from the leader: what lies at `known`, and behind it.
    Look {
        /// Address; 0 to begin with what is there.
        known: At,
        /// Not the first try: wait longer with each.
        tries: u32,
    },
    /// Give back everything before this address.
    Trim(At),
    /// This is stored at this address for good: the node may keep it too.
    Keep(At, Bytes),
    /// Tell the user.
    Tell(ClusterLogEvent),
}

/// What became of an append.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It is stored at this address.
    Stored(At),
    /// The condition was not met.
    WrongLast,
    /// There is no room.
    Full,
    /// Nobody knows.
    Unknown,
}

/// What a look has found, from the leader.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// What lies at the known address; `None` if nothing does.
    pub known: Option<Found>,
    /// What lies behind it, in order.
    pub found: Vec<Found>,
    /// Everything up to this address was looked at; at the end, the last sequence of the subject.
    pub upto: At,
    /// Whether that was everything.
    pub end: bool,
}

#[derive(Debug)]
enum State {
    /// `EPOCH` is sent, or it is read up to it.
    Fencing(Box<Fencing>),
    Serving,
    Gone,
}

#[derive(Debug)]
struct Fencing {
    replay: Replay,
    at_least: At,
    /// Epoch that the log is known to have obeyed, and the highest one that was seen before the new one.
    served: u32,
    seen: u32,
    /// Address that an answer has named.
    answered: Option<At>,
    /// Everything up to here was read.
    upto: At,
    /// The beginning of what is known was seen to be there.
    checked: bool,
    /// It was read again from the front, because nothing followed this address: then the front lies behind it.
    front_behind: At,
}

#[derive(Debug)]
struct Flight {
    bytes: Bytes,
    mark: Mark,
    taken: Taken,
}

/// The writer of one partition in one epoch.
#[derive(Debug)]
pub struct Chain {
    partition: u16,
    epoch: u32,
    state: State,
    queue: Queue,
    /// Index of the next record that may be pushed.
    pushed: Position,
    /// Address and mark of the last append of the chain that is known to be there.
    head: (At, Option<Mark>),
    /// Last sequence of the subject.
    expect: At,
    /// A look goes on behind this address, as one window has not shown all; 0: it begins at the head.
    looked: At,
    flight: Option<Flight>,
    /// A request is under way.
    busy: bool,
    misses: u32,
    tries: u32,
    full: bool,
    checkpoint: At,
    trim: At,
}

impl Chain {
    /// A new owner: sends its `EPOCH`.
    #[must_use]
    pub fn fence(fence: Fence) -> (Self, Vec<Action>) {
        let Fence { partition, epoch, known, at_least, served } = fence;
        let replay = Replay::new(partition, known);
        let fencing = Fencing {
            replay,
            at_least,
            served,
            seen: known.epoch,
            answered: None,
            upto: known.at,
            checked: known.at == 0,
            front_behind: 0,
        };
        let mut chain = Self {
            partition,
            epoch,
            state: State::Fencing(Box::new(fencing)),
            queue: Queue::default(),
            pushed: 0,
            head: (0, None),
            expect: 0,
            looked: 0,
            flight: None,
            busy: true,
            misses: 0,
            tries: 0,
            full: false,
            checkpoint: known.checkpoint,
            trim: 0,
        };
        let act = if known.epoch >= epoch { chain.resign(known.epoch) } else { chain.send_epoch() };
        (chain, act)
    }

    /// Whether it will never do anything again.
    #[must_use]
    pub const fn gone(&self) -> bool {
        matches!(self.state, State::Gone)
    }

    /// The partition wants this to be written.
    pub fn push(&mut self, batch: Batch) -> Vec<Action> {
        if self.gone() {
            return Vec::new();
        }
        let (first, next) = (batch.first, batch.first + u64::from(batch.count));
        if !matches!(self.state, State::Serving) || first != self.pushed {
            return self.damaged(format!("the broker wrote record {first} where {} was due; report this", self.pushed));
        }
        match self.queue.push(batch) {
            Ok(()) => self.pushed = next,
            Err(why) => return self.damaged(why),
        }
        self.send()
    }

    /// The last complete checkpoint begins here.
    pub fn checkpoint(&mut self, at: At) {
        self.checkpoint = self.checkpoint.max(at);
    }

    /// What lies before this address is wanted no more.
    pub fn trim(&mut self, before: At) -> Vec<Action> {
        self.trim = self.trim.max(before);
        self.trim_named()
    }

    /// Only once a safe append names the checkpoint: a missing front is noticed by it.
    fn trim_named(&mut self) -> Vec<Action> {
        let named = self.head.1.map_or(0, |mark| mark.header.checkpoint);
        if !matches!(self.state, State::Serving) || self.trim < 2 || named < self.trim {
            return Vec::new();
        }
        vec![Action::Trim(std::mem::take(&mut self.trim))]
    }

    /// Nothing was written for a while: is everything still there?
    pub fn idle(&mut self) -> Vec<Action> {
        if self.busy || !matches!(self.state, State::Serving) { Vec::new() } else { self.look(false) }
    }

    /// An append was answered, or not.
    pub fn answered(&mut self, answer: &Answer) -> Vec<Action> {
        let mut out = self.room(answer);
        match (&mut self.state, answer) {
            (State::Gone, _) => {}
            (State::Fencing(f), Answer::Stored(at)) => {
                f.answered = Some(*at);
                out.extend(self.look(false));
            }
            (State::Serving, Answer::Stored(at)) if *at <= self.expect => {
                out.extend(self.damaged(format!("an append was stored at {at}, behind {}", self.expect)));
            }
            (State::Serving, Answer::Stored(at)) => out.extend(self.landed(*at, *at)),
            (_, Answer::WrongLast) if self.tries == 0 => {
                // also said of the right one, when the append before is not forgotten yet (seen on 2.15): no time is lost
                out.extend(self.look(false));
                self.tries = 1;
            }
            (_, Answer::WrongLast | Answer::Full | Answer::Unknown) => out.extend(self.look(true)),
        }
        out
    }

    fn room(&mut self, answer: &Answer) -> Vec<Action> {
        let full = *answer == Answer::Full;
        if self.full == full || (!full && !matches!(answer, Answer::Stored(_))) {
            return Vec::new();
        }
        self.full = full;
        vec![Action::Tell(ClusterLogEvent::Full { partition: self.partition, full })]
    }

    /// A look was answered, or not (`None`).
    pub fn looked(&mut self, seen: Option<Seen>) -> Vec<Action> {
        match (&self.state, seen) {
            (State::Gone, _) => Vec::new(),
            (_, None) => self.look(true),
            (State::Fencing(_), Some(seen)) => self.read_up_to_epoch(seen),
            (State::Serving, Some(seen)) => self.compare(&seen),
        }
    }

    fn read_up_to_epoch(&mut self, seen: Seen) -> Vec<Action> {
        let (partition, epoch) = (self.partition, self.epoch);
        let State::Fencing(f) = &mut self.state else { return Vec::new() };
        let known = f.replay.known();
        if !f.checked {
            if seen.known.is_none() && seen.upto > known.at && self.misses + 1 >= MISSES_MAX {
                return self.read_again(format!("nothing lies at {}, up to where the log is known here", known.at));
            }
            let same =
                |h: &Header| h.epoch == known.epoch && (h.count == 0 || h.first + u64::from(h.count) == known.next);
            let there = matches!(&seen.known, Some((_, Some((mark, _)))) if same(&mark.header));
            if !there {
                let what =
                    format!("nothing of epoch {} lies at {}, up to where the log is known here", known.epoch, known.at);
                return self.missed(what);
            }
            f.checked = true;
        }
        let mut appends = Vec::new();
        for found in seen.found {
            let own = matches!(&found.1, Some((m, _)) if m.kind == Kind::Batch && m.header.epoch == epoch);
            let higher = found.1.as_ref().map_or(0, |(m, _)| m.header.epoch);
            if higher > epoch {
                return self.resign(higher);
            }
            if own {
                return self.damaged(format!("epoch {epoch} was used before; a new one is needed"));
            }
            f.seen = f.seen.max(if higher < epoch { higher } else { 0 });
            match f.replay.take(found) {
                Ok(append) => appends.extend(append),
                Err(why) => return self.read_again(why),
            }
        }
        f.upto = f.upto.max(seen.upto);
        let mut out = Vec::new();
        if !appends.is_empty() {
            out.push(Action::Tell(ClusterLogEvent::Read { partition, appends }));
        }
        out.extend(if seen.end { self.fenced() } else { self.look(false) });
        out
    }

    /// An older owner that does not know yet may have given back what was to be read: the front says so.
    fn read_again(&mut self, why: String) -> Vec<Action> {
        let State::Fencing(f) = &mut self.state else { return Vec::new() };
        let (at, behind) = (f.replay.known().at, f.front_behind);
        if at <= behind {
            return self.begin_again(why, behind);
        }
        self.reread(at)
    }

    /// No further than the last time: a leader that is none any more, which still has what was given back, may have answered.
    fn begin_again(&mut self, why: String, behind: At) -> Vec<Action> {
        self.misses += 1;
        if self.misses < MISSES_MAX { self.reread(behind) } else { self.damaged(why) }
    }

    /// Reads everything once more; the front must lie behind `behind` then.
    fn reread(&mut self, behind: At) -> Vec<Action> {
        let State::Fencing(f) = &mut self.state else { return Vec::new() };
        let replay = Replay::new(self.partition, Anchor::default());
        **f = Fencing { replay, upto: 0, checked: true, front_behind: behind, ..**f };
        let mut out = vec![Action::Tell(ClusterLogEvent::Again { partition: self.partition })];
        out.extend(self.look(true));
        out
    }

    /// Everything was read: is the own `EPOCH` in it, and all that must be?
    fn fenced(&mut self) -> Vec<Action> {
        let State::Fencing(f) = &self.state else { return Vec::new() };
        let (known, head, upto) = (f.replay.known(), f.replay.head(), f.upto);
        let must = f.answered.unwrap_or(0).max(f.at_least).max(f.front_behind);
        if upto < must {
            return self.missed(format!("the log ends at {upto}, but reached to {must}"));
        }
        if f.seen < f.served {
            let (seen, served) = (f.seen, f.served);
            return self.missed(format!(
                "the log knows epoch {seen} at most, but has obeyed {served}; it is not the log that it was"
            ));
        }
        if known.epoch != self.epoch {
            if f.answered.is_some() {
                return self.missed(format!("EPOCH {} was stored and is not there", self.epoch));
            }
            return self.send_epoch();
        }
        let behind = f.front_behind;
        if behind > 0 && f.replay.front() <= behind {
            let why = format!("the log has lost what lay at {behind} or behind it; see `restore`");
            return self.begin_again(why, behind);
        }
        if let Err(why) = f.replay.check_front() {
            return self.damaged(why);
        }
        (self.head, self.expect, self.pushed) = ((known.at, head), upto, known.next);
        self.checkpoint = self.checkpoint.max(known.checkpoint);
        (self.state, self.misses, self.tries, self.busy) = (State::Serving, 0, 0, false);
        let (partition, epoch, checkpoint) = (self.partition, self.epoch, self.checkpoint);
        let (at, next) = (known.at, known.next);
        let fenced = ClusterLogEvent::Fenced { partition, epoch, at, next, checkpoint };
        vec![Action::Keep(at, self.epoch_bytes()), Action::Tell(fenced)]
    }

    /// Compares what is there with what was written.
    fn compare(&mut self, seen: &Seen) -> Vec<Action> {
        // first of all: a newer owner may have given back what lies at the own end
        let epochs = seen.found.iter().filter_map(|(_, what)| what.as_ref()).map(|(mark, _)| mark.header.epoch);
        if let Some(higher) = epochs.max().filter(|e| *e > self.epoch) {
            return self.resign(higher);
        }
        let (at, written) = self.head;
        let from = std::mem::take(&mut self.looked);
        let there = seen.known.as_ref().and_then(|(_, what)| what.as_ref()).map(|(mark, _)| *mark);
        if from == 0 && there != written {
            let what = if there.is_none() { "is not there any more" } else { "is not what was written" };
            return self.missed(format!("the append at {at} {what}"));
        }
        self.misses = 0;
        let mut mine = None;
        for (at, what) in &seen.found {
            let Some((mark, _)) = what else {
                return self.damaged(format!("what lies at {at} is not a sound append"));
            };
            let pending = self.flight.as_ref().is_some_and(|f| f.mark == *mark);
            if pending && mine.is_none() {
                mine = Some(*at);
            } else if mark.header.epoch == self.epoch && mark.kind == Kind::Batch {
                return self.damaged(format!("another process writes in epoch {} at {at}", self.epoch));
            }
        }
        let last = seen.found.last().map_or(at.max(from), |(at, _)| *at);
        match mine {
            Some(mine) => self.landed(mine, last),
            None if !seen.end => {
                self.looked = last.max(seen.upto);
                self.look(false)
            }
            None => {
                self.expect = last;
                self.busy = false;
                self.send()
            }
        }
    }

    /// What was under way is at this address, the end of the log at `last`.
    fn landed(&mut self, at: At, last: At) -> Vec<Action> {
        (self.expect, self.busy, self.misses, self.tries) = (last, false, 0, 0);
        let Some(flight) = self.flight.take() else { return Vec::new() };
        self.head = (at, Some(flight.mark));
        let partition = self.partition;
        let tell = |(number, parts)| Action::Tell(ClusterLogEvent::Safe { partition, number, parts });
        let mut out = vec![Action::Keep(at, flight.bytes)];
        out.extend(self.queue.landed(flight.taken, at).into_iter().map(tell));
        out.extend(self.trim_named());
        out.extend(self.send());
        out
    }

    fn send_epoch(&mut self) -> Vec<Action> {
        vec![Action::Append { bytes: self.epoch_bytes(), expect: None }]
    }

    fn epoch_bytes(&self) -> Bytes {
        let header = Header { partition: self.partition, epoch: self.epoch, ..Header::default() };
        encode(Kind::Epoch, &header, &[]).0.into()
    }

    /// Sends what is under way again, or all that waits.
    fn send(&mut self) -> Vec<Action> {
        if self.busy {
            return Vec::new();
        }
        if self.flight.is_none() {
            self.flight = self.queue.take().map(|mut taken| {
                let header = Header {
                    partition: self.partition,
                    epoch: self.epoch,
                    first: taken.first,
                    count: taken.count,
                    before: self.head.0,
                    checkpoint: self.checkpoint,
                };
                let (bytes, mark) = encode(Kind::Batch, &header, &taken.records);
                taken.records = Vec::new();
                Flight { bytes: bytes.into(), mark, taken }
            });
        }
        let Some(flight) = &self.flight else { return Vec::new() };
        self.busy = true;
        vec![Action::Append { bytes: flight.bytes.clone(), expect: Some(self.expect) }]
    }

    fn look(&mut self, again: bool) -> Vec<Action> {
        self.busy = true;
        self.tries = if again { self.tries + 1 } else { 0 };
        let known = if let State::Fencing(f) = &self.state {
            if f.checked { f.upto } else { f.replay.known().at }
        } else {
            self.head.0.max(self.looked)
        };
        vec![Action::Look { known, tries: self.tries }]
    }

    fn missed(&mut self, what: String) -> Vec<Action> {
        self.misses += 1;
        if self.misses < MISSES_MAX {
            return self.look(true);
        }
        self.damaged(format!("{what}; the stream has lost data: see `restore`"))
    }

    fn resign(&mut self, epoch: u32) -> Vec<Action> {
        self.state = State::Gone;
        vec![Action::Tell(ClusterLogEvent::Resigned { partition: self.partition, epoch })]
    }

    fn damaged(&mut self, why: String) -> Vec<Action> {
        self.state = State::Gone;
        let why = format!("log of partition {}: {why}", self.partition);
        vec![Action::Tell(ClusterLogEvent::Damaged { partition: self.partition, why })]
    }
}
