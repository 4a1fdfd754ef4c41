//! Messages apart from what names them: each once, by number, so that they can go ahead of a partition that moves (`30-cluster.md`,
//! section 6, *warm*). What is left for the moment in which it stands still is small then.
//!
//! Contract: the owner numbers bodies in the order in which it packs them, and the target in the order in which they come; a body has
//! the same number at both, or the target says that it lacks some.

use foldhash::fast::RandomState;
use hashbrown::HashMap;

use super::Partition;
use crate::message::Stored;

/// So many messages are looked at in one turn, whether they are packed or not.
const LOOKS: usize = 16_384;
/// A round that has packed no more than this is the last: the rest goes with the partition.
const ENOUGH: usize = 512 * 1024;
/// And so is this one, if more comes in all the time than goes out.
const ROUNDS_MAX: u32 = 4;

/// Tells bytes from those that were damaged, at the speed of memory: a partition stands still while it is counted.
pub(super) fn print_of(bytes: &[u8]) -> u64 {
    u64::from(crc32c::crc32c(bytes)) << 32 | bytes.len() as u64 & 0xffff_ffff
}

/// Bodies by number, and what tells each from one that was damaged.
#[derive(Debug, Clone, Default)]
pub struct Bodies {
    all: Vec<Stored>,
    prints: Vec<u64>,
    bytes: usize,
}

impl Bodies {
    /// How many there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.all.len()
    }

    /// True without any.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Bytes that were packed or read.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn get(&self, number: u32) -> Option<Stored> {
        self.all.get(number as usize).cloned()
    }

    pub(super) fn print(&self, number: u32) -> Option<u64> {
        self.prints.get(number as usize).copied()
    }

    fn add(&mut self, body: Stored, packed: &[u8]) {
        self.all.push(body);
        self.prints.push(print_of(packed));
        self.bytes += packed.len();
    }

    /// Takes what [`Ahead::take`] has given.
    ///
    /// # Errors
    /// It is not that.
    pub fn read(&mut self, mut rest: &[u8]) -> Result<(), String> {
        // deadlines are absolute ones, and must come out as they went in
        crate::message::translate_deadlines(0);
        while !rest.is_empty() {
            let (body, behind) =
                postcard::take_from_bytes(rest).map_err(|e| format!("a message cannot be read: {e}"))?;
            self.add(body, rest.get(..rest.len() - behind.len()).unwrap_or_default());
            rest = behind;
        }
        Ok(())
    }
}

/// What the target of a move has of a partition's messages, or is sent next.
#[derive(Debug, Default)]
pub struct Ahead {
    /// By address: `bodies` keeps each where it is.
    numbers: HashMap<usize, u32, RandomState>,
    bodies: Bodies,
    /// Packed and not taken yet.
    packed: Vec<u8>,
    /// So many were taken.
    taken: usize,
    /// It goes nowhere: bodies are shared, not copied.
    stays: bool,
    /// Where the next turn begins: a session, a message of its queue, a place among retained messages.
    slot: u32,
    index: u64,
    retained: usize,
    round: u32,
    round_bytes: usize,
}

impl Ahead {
    /// For a partition that does not leave this process.
    #[must_use]
    pub fn staying() -> Self {
        Self { stays: true, ..Self::default() }
    }

    /// Every body so far.
    #[must_use]
    pub const fn bodies(&self) -> &Bodies {
        &self.bodies
    }

    /// The same, when nothing more goes.
    #[must_use]
    pub fn into_bodies(self) -> Bodies {
        self.bodies
    }

    /// So many do not have to come with the rest.
    pub(super) const fn elsewhere(&self) -> usize {
        if self.stays { self.bodies.len() } else { self.taken }
    }

    /// The number of a body, which is packed if it has none yet.
    pub(super) fn number(&mut self, body: &Stored) -> Result<u32, String> {
        let address = std::ptr::from_ref(body.head()) as usize;
        if let Some(number) = self.numbers.get(&address) {
            return Ok(*number);
        }
        let number = u32::try_from(self.bodies.len()).map_err(|e| e.to_string())?;
        let at = self.packed.len();
        if !self.stays {
            self.packed = postcard::to_extend(body, std::mem::take(&mut self.packed)).map_err(|e| e.to_string())?;
        }
        self.round_bytes += self.packed.len() - at;
        self.bodies.add(body.clone(), self.packed.get(at..).unwrap_or_default());
        self.numbers.insert(address, number);
        Ok(number)
    }

    /// What was packed since it was asked last, and the number of the first body in it.
    pub fn take(&mut self) -> (u32, Vec<u8>) {
        let first = u32::try_from(self.taken).unwrap_or(u32::MAX);
        self.taken = self.bodies.len();
        (first, std::mem::take(&mut self.packed))
    }

    const fn is_full(&self, budget: usize, looks: &mut usize) -> bool {
        *looks -= 1;
        *looks == 0 || self.packed.len() >= budget
    }
}

impl Partition {
    /// Packs about `budget` bytes of messages that its target has not got. True if what is left is little.
    ///
    /// # Errors
    /// It has more messages than the format can number.
    pub fn pack_ahead(&self, ahead: &mut Ahead, budget: usize) -> Result<bool, String> {
        if !self.pack_some(ahead, budget)? {
            return Ok(false);
        }
        (ahead.slot, ahead.index, ahead.retained, ahead.round) = (0, 0, 0, ahead.round + 1);
        Ok(std::mem::take(&mut ahead.round_bytes) <= ENOUGH || ahead.round >= ROUNDS_MAX)
    }

    /// True at the end of a round.
    fn pack_some(&self, ahead: &mut Ahead, budget: usize) -> Result<bool, String> {
        let (mut looks, slots) = (LOOKS, self.state.slots());
        while ahead.slot < slots {
            let (queue, from) = (self.state.session(ahead.slot).map(|s| &s.queue), ahead.index);
            for (index, entry) in queue.into_iter().flat_map(|q| q.iter_from(from)) {
                if let Some(body) = &entry.body {
                    ahead.number(body)?;
                }
                ahead.index = index + 1;
                if ahead.is_full(budget, &mut looks) {
                    return Ok(false);
                }
            }
            (ahead.slot, ahead.index) = (ahead.slot + 1, 0);
            if ahead.is_full(budget, &mut looks) {
                return Ok(false);
            }
        }
        for (place, message) in self.state.retained.each_from(ahead.retained) {
            ahead.number(message)?;
            ahead.retained = place + 1;
            if ahead.is_full(budget, &mut looks) {
                return Ok(false);
            }
        }
        for group in self.state.groups() {
            for (_, message, _) in group.unfinished() {
                ahead.number(message)?;
                if ahead.packed.len() >= budget {
                    return Ok(false); // groups begin again: what has a number is passed over
                }
            }
        }
        Ok(true)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::super::carry::tests::{CONNECTION, lived_in, say};
    use super::*;
    use crate::channel::{ConnectionId, SessionRef};
    use crate::codec::{AckKind, Reason};
    use crate::partition::{Effects, Input, Rules};
    use crate::record::digest;

    /// The client of this slot has done with its oldest message, if that was sent.
    pub(in crate::partition) fn answer(p: &mut Partition, slot: u32) {
        let Some((uid, index)) = p.state.session(slot).map(|s| (s.uid, s.queue.base())) else { return };
        let (session, id) = (SessionRef { partition: 5, slot, uid }, crate::queue::Queue::identifier(index));
        let connection = ConnectionId { key: slot, ..CONNECTION };
        for kind in [AckKind::Pubrec, AckKind::Pubcomp] {
            p.step(1_000, Input::Ack { session, connection, kind, id, reason: Reason::SUCCESS }, &mut Effects::new());
        }
    }

    #[derive(Debug, Clone)]
    enum Step {
        Ahead(usize),
        Say(u32, u8),
        Answer(u32),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let one = prop_oneof![
            (1..200usize).prop_map(Step::Ahead),
            (0..6u32, any::<u8>()).prop_map(|(slot, size)| Step::Say(slot, size)),
            (0..6u32).prop_map(Step::Answer),
        ];
        prop::collection::vec(one, 0..60)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]
        /// Whatever happens while messages go ahead, what arrives is what left; one byte that was changed in any of them is found, and so
        /// is a part that is missing.
        #[test]
        fn what_went_ahead_and_what_changed_are_the_whole(
            steps in steps(),
            damage in prop::option::of((any::<prop::sample::Index>(), any::<prop::sample::Index>(), 1..=255u8)),
        ) {
            let (mut p, mut ahead, mut parts) = (lived_in(), Ahead::default(), Vec::new());
            for step in steps {
                match step {
                    Step::Ahead(budget) => {
                        p.pack_ahead(&mut ahead, budget).unwrap();
                        let (first, part) = ahead.take();
                        prop_assert_eq!(first as usize, parts.iter().map(|(_, n)| n).sum::<usize>());
                        parts.push((part, ahead.bodies().len() - first as usize));
                    }
                    Step::Say(slot, size) => say(&mut p, slot, &vec![size; usize::from(size)]),
                    Step::Answer(slot) => answer(&mut p, slot),
                }
            }
            parts.retain(|(part, _)| !part.is_empty());
            let luggage = p.pack(&mut ahead).unwrap();
            let mut here = Bodies::default();
            for (part, count) in &parts {
                here.read(part).unwrap();
                prop_assert!(*count > 0);
            }
            let arrived = Partition::unpack(5, Rules::default(), here.clone(), &luggage).unwrap();
            prop_assert_eq!(digest(&arrived.state), digest(&p.state));
            let whole = |p: &Partition| p.pack(&mut Ahead::default()).unwrap().len();
            prop_assert_eq!(whole(&arrived), whole(&p));
            let Some((which, at, by)) = damage.filter(|_| !parts.is_empty()) else { return Ok(()) };
            let which = which.index(parts.len());
            let (mut lacks, mut damaged) = (Bodies::default(), Bodies::default());
            parts.iter().enumerate().filter(|(n, _)| *n != which).for_each(|(_, (part, _))| lacks.read(part).unwrap());
            prop_assert!(Partition::unpack(5, Rules::default(), lacks, &luggage).is_err());
            let (part, at) = (&mut parts[which].0, at.index(1 << 20));
            let at = at % part.len();
            part[at] ^= by;
            let read = parts.iter().try_for_each(|(part, _)| damaged.read(part));
            let found = read.and_then(|()| Partition::unpack(5, Rules::default(), damaged, &luggage));
            // what nobody has any more may be anything
            prop_assert!(found.is_err() || found.is_ok_and(|found| digest(&found.state) == digest(&p.state)));
        }
    }
}
