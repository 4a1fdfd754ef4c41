//! A checkpoint: the partition's state as ordinary records, some at a time, between live ones.
//!
//! A session with its queue replaces what was known of it; everything else is absolute. On the way every wanted body is
//! counted by segment, and those in segments that shall be emptied are written again (`Moved`).

use std::collections::{BTreeMap, VecDeque};

use super::Partition;
use crate::log::{Emptied, Walked};
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
                || self.walk_move(walk, emptied);
            if !more {
                return true;
            }
        }
        false
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
            let mut homeless = Vec::new();
            for (index, e) in s.queue.iter().filter(|(_, e)| e.needs_body()) {
                let segment = (e.at >> 32) as u32;
                if e.at <= IN_MEMORY {
                    homeless.push((index, e.body.clone()));
                } else if emptied.contains_key(&segment) {
                    walk.moves.entry(e.at).or_default().push((slot, s.uid, index));
                } else {
                    *walked.live.entry(segment).or_default() += u64::from(e.len) + RECORD_OVERHEAD;
                }
            }
            // bodies on their way to the disk: their address is not known yet, so they are written again
            let uid = s.uid;
            for (index, body) in homeless.into_iter().filter_map(|(i, b)| Some((i, b?))) {
                self.write_moved(&body, &[(slot, uid, index)]);
            }
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
