//! Two nodes that do not hear each other talk through a third one that hears both.
//!
//! What goes around is the whole stream of a connection: greeting, beginning, frames. So numbers, confirmations and beats are
//! those of the two ends, and a vote or a majority means the same as on a direct one; the third node passes bytes on and keeps
//! nothing. A gap in the stream ends it. The direct way is tried all the while, and taken as soon as both ends hear each other on it.

use std::time::{Duration, Instant};

use mio::Token;

use super::frame::{CARRIED, CARRY, Head};
use super::thread::{Path, Peer, SILENCE, Socket, Work, fresh_name};

/// Nothing has come for so long: a way around is looked for, well before anybody is reported silent.
const DOUBT: Duration = Duration::from_millis(700);
/// So long one may take until both ends have met.
const ATTEMPT: Duration = Duration::from_millis(400);
/// Most bytes of a piece.
const PIECE: usize = 4 << 20;

/// A connection through somebody else.
pub(super) struct Around {
    /// Who passes it on.
    carrier: u16,
    /// The other end.
    other: u16,
    stream: u64,
    sent: u64,
    taken: u64,
}

impl Work {
    pub(super) fn is_direct(&self, token: Token) -> bool {
        self.sockets.get(&token).is_some_and(|s| matches!(s.path, Path::Direct(_)))
    }

    /// The direct connection of a node.
    fn direct(&mut self, slot: u16) -> Option<&mut Socket> {
        let token = self.peers.get(&slot)?.token?;
        self.sockets.get_mut(&token).filter(|s| matches!(s.path, Path::Direct(_)))
    }

    /// Who is reached through whom.
    pub(super) fn carriers(&self) -> Vec<(u16, u16)> {
        let through = |(slot, p): (&u16, &Peer)| match &self.sockets.get(&p.token?)?.path {
            Path::Around(around) => Some((*slot, around.carrier)),
            Path::Direct(_) => None,
        };
        self.peers.iter().filter_map(through).collect()
    }

    /// Looks for a way around to those that this node has to dial and does not hear.
    pub(super) fn dial_around(&mut self) {
        let now = Instant::now();
        let late: Vec<Token> = self.peers.values().filter_map(|p| p.around).collect();
        let late = late.into_iter().filter(|t| self.sockets.get(t).is_none_or(|s| now > s.heard + ATTEMPT));
        late.collect::<Vec<_>>().into_iter().for_each(|token| self.drop_socket(token));
        let heard = |p: &Peer| match p.token.and_then(|t| self.sockets.get(&t)) {
            Some(socket) => now < socket.heard + DOUBT,
            None => now < p.missed + DOUBT,
        };
        let is_lost = |(slot, p): &(&u16, &Peer)| **slot > self.site.me.slot && p.around.is_none() && !heard(p);
        let lost: Vec<u16> = self.peers.iter().filter(is_lost).map(|(slot, _)| *slot).collect();
        if lost.is_empty() {
            return;
        }
        let carries = |p: &Peer| p.token.is_some_and(|t| self.is_direct(t)) && heard(p);
        let mut carriers: Vec<u16> = self.peers.iter().filter(|(_, p)| carries(p)).map(|(slot, _)| *slot).collect();
        carriers.sort_unstable();
        for other in lost {
            let Some(peer) = self.peers.get_mut(&other) else { continue };
            peer.detours += 1;
            let Some(carrier) = carriers.get(peer.detours % carriers.len().max(1)).copied() else { continue };
            let token = self.open(Path::Around(Around { carrier, other, stream: fresh_name(), sent: 0, taken: 0 }));
            self.greet(token, other);
            if let Some(peer) = self.peers.get_mut(&other) {
                peer.around = Some(token);
            }
        }
    }

    /// What is to go around goes to who carries it, as far as that one has room. True: something went.
    pub(super) fn wrap(&mut self) -> bool {
        let is_around = |s: &Socket| matches!(s.path, Path::Around(_));
        let tokens: Vec<Token> = self.sockets.iter().filter(|(_, s)| is_around(s)).map(|(t, _)| *t).collect();
        let mut went = false;
        for token in tokens {
            let Some(socket) = self.sockets.get_mut(&token) else { continue };
            let peer = socket.peer.and_then(|slot| self.peers.get(&slot)).filter(|p| p.token == Some(token));
            peer.iter().for_each(|p| socket.refill(&p.flow));
            let Path::Around(Around { carrier, .. }) = socket.path else { continue };
            let empty = socket.out.is_empty();
            match self.direct(carrier).map(|through| through.has_room()) {
                Some(true) if !empty => went |= self.wrap_one(token, carrier),
                None if !empty => self.drop_socket(token),
                _ => {}
            }
        }
        went
    }

    fn wrap_one(&mut self, token: Token, carrier: u16) -> bool {
        let Some(Socket { path: Path::Around(a), out, .. }) = self.sockets.get_mut(&token) else { return false };
        let bytes = std::mem::take(out);
        let (to, stream, mut at) = (a.other, a.stream, a.sent);
        a.sent += bytes.len() as u64;
        let Some(through) = self.direct(carrier) else { return false };
        for piece in bytes.chunks(PIECE) {
            let len = u32::try_from(piece.len()).unwrap_or(0);
            Head { len, n: 0, received: at, now_ms: stream, from: CARRY, to }.encode(&mut through.out);
            through.out.extend_from_slice(piece);
            at += piece.len() as u64;
        }
        true
    }

    /// Bytes that are for another node, or were passed on to this one by the node `hop`.
    pub(super) fn pass_on(&mut self, hop: u16, head: &Head, body: &[u8]) -> Result<(), &'static str> {
        if head.from == CARRY {
            if let Some(next) = self.direct(head.to) {
                Head { from: CARRIED, to: hop, ..*head }.encode(&mut next.out);
                next.out.extend_from_slice(body);
            }
            return Ok(());
        }
        let (source, stream) = (head.to, head.now_ms);
        let is_it = |s: &Socket| match &s.path {
            Path::Around(a) => (a.carrier, a.other, a.stream) == (hop, source, stream),
            Path::Direct(_) => false,
        };
        let known = self.sockets.iter().find(|(_, s)| is_it(s)).map(|(token, _)| *token);
        let is_new = known.is_none() && head.received == 0 && self.peers.contains_key(&source);
        let token = match known {
            Some(token) => token,
            None if is_new && source < self.site.me.slot => {
                self.open(Path::Around(Around { carrier: hop, other: source, stream, sent: 0, taken: 0 }))
            }
            None => return Ok(()),
        };
        let Some(socket) = self.sockets.get_mut(&token) else { return Ok(()) };
        let Path::Around(around) = &mut socket.path else { return Ok(()) };
        let in_order = around.taken == head.received;
        around.taken += body.len() as u64;
        socket.heard = Instant::now();
        socket.input.extend_from_slice(body);
        if !in_order || self.digest(token).is_err() {
            self.drop_socket(token);
        }
        Ok(())
    }
}

const _: () = assert!(DOUBT.as_millis() + ATTEMPT.as_millis() < SILENCE.as_millis());
