//! A checkpoint: the partition's state as ordinary records, some at a time, between live ones.
//!
//! A session with its queue replaces what was known of it; everything else is absolute. On the way every wanted body is
//! counted by segment, and those in segments that shall be emptied are written again (`Moved`); so are those that have no address,
//! each once for all queues that have it. In a cluster they come last, in slices: a queue may be long.

use std::collections::{BTreeMap, VecDeque};

use foldhash::fast::RandomState;
use hashbrown::HashMap;

use super::Partition;
use crate::log::{Batch, Emptied, Walked};
use crate::message::Stored;
use crate::queue::IN_MEMORY;
use crate::record::{Moves, Record, encode_moved, encode_origin, encode_queue, encode_session, read_record};

/// How far a checkpoint of one partition is.
#[derive(Debug, Default)]
pub struct Walk {
    begun: bool,
    retained: VecDeque<Stored>,
    origins: VecDeque<u64>,
    next_slot: u32,
    /// Bodies to be written again: address to the entries that have it.
    moves: BTreeMap<u64, Moves>,
    /// The same for those without an address: in a cluster all, else those on their way to the disk.
    homeless: VecDeque<(Stored, Moves)>,
    /// Where each is in that list, by where it is in memory.
    homes: HashMap<usize, usize, RandomState>,
}

impl Walk {
    fn add_homeless(&mut self, body: Option<&Stored>, named: (u32, u64, u64)) {
        let Some(body) = body else { return };
        let place = *self.homes.entry(std::ptr::from_ref(body.head()) as usize).or_insert(self.homeless.len());
        match self.homeless.get_mut(place) {
            Some((_, moves)) => moves.push(named),
            None => self.homeless.push_back((body.clone(), vec![named])),
        }
    }
}

impl Partition {
    /// Writes about `budget` bytes of the checkpoint; true when it is complete.
    pub fn walk(&mut self, walk: &mut Walk, emptied: &Emptied, walked: &mut Walked, budget: usize) -> bool {
        if !walk.begun {
            walk.begun = true;
            let kept = self.state.retained.each().filter(|m| !crate::topic::reserved(m.view().topic));
            walk.retained = kept.cloned().collect();
            walk.origins = self.state.origins().map(|(uid, _)| uid).collect();
            let groups: Vec<u64> = self.state.groups().map(|g| g.uid).collect();
            groups.into_iter().for_each(|uid| self.log_group(uid));
        }
        let full = self.journal.bytes() + budget;
        while self.journal.bytes() < full {
            let more = self.walk_retained(walk)
                || self.walk_origin(walk)
                || self.walk_session(walk, emptied, walked)
                || self.walk_move(walk, emptied)
                || self.walk_homeless(walk);
            if !more {
                return true;
            }
        }
        false
    }

    /// About so much more of the checkpoint, for the log, and whether that is all. The end is written even if nothing is left to say:
    /// a checkpoint counts when its last slice is safe.
    pub fn walk_slice(&mut self, walk: &mut Walk, budget: usize) -> Option<(Batch, bool)> {
        let complete = self.walk(walk, &Emptied::default(), &mut Walked::default(), budget);
        if self.journal.bytes() == 0 {
            self.write_nothing();
        }
        self.take_batch().map(|batch| (batch, complete))
    }

    fn walk_retained(&mut self, walk: &mut Walk) -> bool {
        let Some(message) = walk.retained.pop_front() else { return false };
        // one that was replaced or cleared meanwhile has a record of its own
        if self.state.retained.get(message.view().topic).is_some_and(|m| m.is(&message)) {
            self.commit(true, Record::RetainedSet { message: &message });
        }
        true
    }

    fn walk_origin(&mut self, walk: &mut Walk) -> bool {
        let Some(uid) = walk.origins.pop_front() else { return false };
        if let Some((_, window)) = self.state.origin(uid) {
            let (records, _) = self.journal.begin();
            encode_origin(uid, window, records);
        }
        true
    }

    fn walk_session(&mut self, walk: &mut Walk, emptied: &Emptied, walked: &mut Walked) -> bool {
        let (slots, number) = (self.state.slots(), self.number);
        while walk.next_slot < slots {
            let slot = walk.next_slot;
            walk.next_slot += 1;
            let Some(s) = self.state.session(slot).filter(|s| s.logged) else { continue };
            let (records, _) = self.journal.begin();
            encode_session(number, s, records);
            if !s.durable() {
                return true;
            }
            let parts = encode_queue(number, s, records);
            self.journal.count_more(parts);
            for (index, e) in s.queue.iter().filter(|(_, e)| e.needs_body()) {
                let segment = (e.at >> 32) as u32;
                if e.at <= IN_MEMORY {
                    walk.add_homeless(e.body.as_ref(), (slot, s.uid, index));
                } else if emptied.contains_key(&segment) {
                    walk.moves.entry(e.at).or_default().push((slot, s.uid, index));
                } else {
                    *walked.live.entry(segment).or_default() += u64::from(e.len) + RECORD_OVERHEAD;
                }
            }
            // where single messages are read from the log, a queue that was cut off here would lack their addresses
            while !self.rules.many_logs && self.walk_homeless(walk) {}
            return true;
        }
        false
    }

    fn walk_move(&mut self, walk: &mut Walk, emptied: &Emptied) -> bool {
        let Some((at, mut moves)) = walk.moves.pop_first() else { return false };
        moves.retain(|&(slot, uid, index)| {
            let session = self.state.session_mut(slot).filter(|s| s.uid == uid);
            session.and_then(|s| s.queue.get_mut(index)).is_some_and(|e| e.needs_body() && e.at == at)
        });
        if moves.is_empty() {
            return true;
        }
        let bytes = emptied.get(&((at >> 32) as u32)).and_then(|b| b.get((at & 0xffff_ffff) as usize..));
        // a damaged body stays where it is: whoever reads it learns of the damage
        if let Some(m) = bytes.and_then(|b| read_record(b).ok()) {
            let message = Stored::new(&m);
            self.write_moved(&message, &moves);
        }
        true
    }

    fn walk_homeless(&mut self, walk: &mut Walk) -> bool {
        let Some((body, mut moves)) = walk.homeless.pop_front() else { return false };
        if walk.homeless.is_empty() {
            walk.homes.clear();
        }
        moves.retain(|&(slot, uid, index)| {
            let session = self.state.session_mut(slot).filter(|s| s.uid == uid);
            session.and_then(|s| s.queue.get_mut(index)).is_some_and(|e| e.needs_body())
        });
        if !moves.is_empty() {
            self.write_moved(&body, &moves);
        }
        true
    }

    fn write_moved(&mut self, message: &Stored, moves: &[(u32, u64, u64)]) {
        let (records, offset) = self.journal.begin();
        encode_moved(self.number, &message.view(), moves, records);
        let len = u32::try_from(message.len()).unwrap_or(u32::MAX);
        for &(slot, uid, index) in moves {
            self.journal.note(offset, len, slot, uid, index);
        }
    }
}

/// What a record has beside the message, about.
const RECORD_OVERHEAD: u64 = 32;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::bodies::tests::answer;
    use super::super::carry::tests::{live_in, say};
    use super::*;
    use crate::partition::{Effects, Input, Rules};
    use crate::record::{Replay, State, digest, next_record};

    #[derive(Debug, Clone)]
    enum Step {
        Say(u32, u8),
        Answer(u32),
        Walk(usize),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let one = prop_oneof![
            2 => (0..6u32, any::<u8>()).prop_map(|(slot, size)| Step::Say(slot, size)),
            1 => (0..6u32).prop_map(Step::Answer),
            3 => (1..300usize).prop_map(Step::Walk),
        ];
        prop::collection::vec(one, 0..120)
    }

    /// What the log has to know: the durable state, and the body of each message that may still be wanted.
    type Known = (u64, Vec<(u64, u64, Option<Vec<u8>>)>);

    fn known(state: &State) -> Known {
        let mut bodies = Vec::new();
        for (_, s) in state.each().filter(|(_, s)| s.durable()) {
            let wanted = s.queue.iter().filter(|(_, e)| e.needs_body());
            let body = |e: &crate::queue::Entry| e.body.as_ref().map(|b| b.view().payload.to_vec());
            bodies.extend(wanted.map(|(index, e)| (s.uid, index, body(e))));
        }
        bodies.sort();
        (digest(state), bodies)
    }

    /// A log of which single messages cannot be read: what was written, and after each batch what that has to say.
    struct Log {
        p: Partition,
        batches: Vec<(Vec<u8>, Known)>,
        /// Complete checkpoints: first batch, and how many there were at the end.
        checkpoints: Vec<(usize, usize)>,
    }

    impl Log {
        fn take(&mut self) {
            let Some(batch) = self.p.take_batch() else { return };
            let (number, up_to) = (batch.number, batch.first + u64::from(batch.count));
            self.batches.push((batch.records, known(&self.p.state)));
            self.p.step(1_000, Input::Safe { number, up_to, address: IN_MEMORY }, &mut Effects::new());
        }

        /// Whoever reads the first batches begins with the last checkpoint that is complete in them.
        fn read(&self, count: usize) -> Known {
            let from = self.checkpoints.iter().filter(|(_, end)| *end <= count).map(|(first, _)| *first).max();
            let mut replay = Replay::with_bodies(5);
            for (records, _) in &self.batches[from.unwrap_or(0)..count] {
                let mut records = records.as_slice();
                while let Some((body, _)) = next_record(&mut records).unwrap() {
                    replay.record(body, 0).unwrap();
                }
            }
            known(&replay.state)
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]
        /// A checkpoint is written in slices while messages come and go, and may be cut off anywhere: what is read has every message.
        #[test]
        fn wherever_the_log_ends_every_body_is_there(steps in steps()) {
            let mut log = Log {
                p: live_in(Partition::new(5, Rules { many_logs: true, ..Rules::default() }, 1)),
                batches: Vec::new(),
                checkpoints: Vec::new(),
            };
            log.take();
            let mut walking: Option<(usize, Walk)> = None;
            for step in steps {
                match step {
                    Step::Say(slot, size) => say(&mut log.p, slot, &vec![size; usize::from(size)]),
                    Step::Answer(slot) => answer(&mut log.p, slot),
                    Step::Walk(budget) => {
                        let (first, mut walk) = walking.take().unwrap_or((log.batches.len(), Walk::default()));
                        let complete = log.p.walk(&mut walk, &Emptied::default(), &mut Walked::default(), budget);
                        log.take();
                        if complete {
                            log.checkpoints.push((first, log.batches.len()));
                        } else {
                            walking = Some((first, walk));
                        }
                    }
                }
                log.take();
            }
            for count in 1..=log.batches.len() {
                let (read, wanted) = (log.read(count), &log.batches[count - 1].1);
                prop_assert_eq!(&read, wanted, "after {} of {} batches, {:?}", count, log.batches.len(), log.checkpoints);
            }
        }
    }
}
