//! The thread that owns the sockets of all links of a node. Of two nodes the one with the lower number dials; what cannot go
//! straight goes around (`around.rs`).

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use mio::net::TcpListener;
use mio::{Events, Interest, Poll, Token};

use super::around::Around;
use super::desk::{Desk, Event, Inbox, Letter, Member, Site, Tell};
use super::flow::{Flow, Hello};
use super::frame::{BEAT, BEGIN, BeatBody, CARRIED, CARRY, GREETING, Greeting, HEAD, Head};
use super::pulse::Pulse;
use super::wire::{Wire, is_later};

pub(super) const WAKER: Token = Token(0);
const LISTENER: Token = Token(1);
const SOCKETS: usize = 2;
/// Ends say that they are there so often.
const HEARTBEAT: Duration = Duration::from_millis(250);
/// A connection on which nothing has come for so long is given up.
pub(super) const SILENCE: Duration = Duration::from_millis(1_500);
/// Between two attempts to dial.
const REDIAL: Duration = Duration::from_millis(100);
const READ_BYTES: usize = 256 * 1024;
/// Frames are handed on so much at a time, and the system keeps no more unsent: what comes between them, a beat above all, does
/// not wait behind everything that lanes have left for a slow link. A node that cannot answer in time acknowledges nothing.
const OUT_MAX: usize = 64 * 1024;

/// A node as this one sees it.
pub(super) struct Peer {
    incarnation: u64,
    address: SocketAddr,
    pub flow: Flow,
    /// Its connection, once both have greeted.
    pub token: Option<Token>,
    dialled: Instant,
    /// A connection of ours is in the making.
    dialling: Option<Token>,
    /// One around, in the making.
    pub around: Option<Token>,
    /// How many of these there were, and since when there is no direct connection.
    pub detours: usize,
    pub missed: Instant,
}

impl Peer {
    fn new(member: &Member, now: Instant) -> Self {
        let Member { incarnation, address, .. } = *member;
        let (flow, dialled) = (Flow::new(fresh_name()), now - REDIAL);
        Self { incarnation, address, flow, token: None, dialled, dialling: None, around: None, detours: 0, missed: now }
    }
}

/// Where bytes go.
pub(super) enum Path {
    Direct(Wire),
    Around(Around),
}

/// How far two nodes are with each other on a connection.
enum Stage {
    /// Nothing has come.
    Strange,
    /// Somebody has dialled and was answered: what comes next shows that the answer has come.
    Answered(Hello),
    /// Both know each other.
    Met,
}

/// One connection.
pub(super) struct Socket {
    pub path: Path,
    /// The node, once it has greeted.
    pub peer: Option<u16>,
    stage: Stage,
    /// What this end has said in its greeting.
    pub said: Hello,
    pub input: Vec<u8>,
    pub out: Vec<u8>,
    out_at: usize,
    /// Number of the last frame that was put there.
    handed: u64,
    pub heard: Instant,
}

impl Socket {
    /// May more be put there?
    pub(super) fn has_room(&self) -> bool {
        self.out.len() - self.out_at < OUT_MAX
    }

    /// Puts frames there that were not yet, as long as there is room.
    pub(super) fn refill(&mut self, flow: &Flow) {
        if self.out_at > OUT_MAX {
            self.out.drain(..self.out_at);
            self.out_at = 0;
        }
        while let Some((n, frame)) = flow.after(self.handed).filter(|_| self.has_room()) {
            self.out.extend_from_slice(frame);
            self.handed = n;
        }
    }

    /// Writes what there is. True: all of it has gone.
    fn write(&mut self) -> io::Result<bool> {
        let Path::Direct(wire) = &mut self.path else { return Ok(false) };
        while self.out_at < self.out.len() {
            match wire.write(self.out.get(self.out_at..).unwrap_or_default()) {
                Ok(n) => self.out_at += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if is_later(&e) => return Ok(false),
                Err(e) => return Err(e),
            }
        }
        self.out.clear();
        self.out_at = 0;
        Ok(true)
    }
}

pub(super) struct Work {
    pub site: Site,
    tell: Tell,
    poll: Poll,
    listener: TcpListener,
    desk: Arc<Desk>,
    pub peers: HashMap<u16, Peer>,
    pub sockets: HashMap<Token, Socket>,
    next_token: usize,
    pulse: Pulse,
    /// Of the members.
    version: u64,
    /// When this node told its time last.
    beaten: Instant,
}

pub(super) fn fresh_name() -> u64 {
    let mut bytes = [0u8; 8];
    let _ = getrandom::fill(&mut bytes);
    u64::from_le_bytes(bytes) | 1
}

impl Work {
    pub(super) fn new(site: Site, tell: Tell, poll: Poll, desk: Arc<Desk>) -> io::Result<Self> {
        let mut listener = TcpListener::bind(site.me.address)?;
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
        let (peers, sockets, pulse) = (HashMap::new(), HashMap::new(), Pulse::default());
        let (version, beaten, next_token) = (0, Instant::now(), SOCKETS);
        Ok(Self { site, tell, poll, listener, desk, peers, sockets, next_token, pulse, version, beaten })
    }

    pub(super) fn run(&mut self) {
        let mut events = Events::with_capacity(256);
        let mut buffer = vec![0; READ_BYTES];
        loop {
            self.dial();
            self.dial_around();
            if let Err(e) = self.poll.poll(&mut events, Some(REDIAL)) {
                if e.kind() != io::ErrorKind::Interrupted {
                    return;
                }
            }
            let ready: Vec<(Token, bool)> = events.iter().map(|e| (e.token(), e.is_readable())).collect();
            for (token, readable) in ready {
                match token {
                    WAKER => {}
                    LISTENER => self.accept(),
                    _ if readable => self.read(token, &mut buffer),
                    _ => {}
                }
            }
            if self.take_letters() {
                return;
            }
            self.beat();
            self.flush();
            while self.wrap() {
                self.flush();
            }
        }
    }

    // ---- connections

    fn adopt(&mut self, mut wire: Wire) -> io::Result<Token> {
        wire.stream.set_nodelay(true)?;
        #[cfg(target_os = "linux")]
        socket2::SockRef::from(&wire.stream).set_tcp_notsent_lowat(OUT_MAX as u32)?;
        let token = Token(self.next_token);
        self.poll.registry().register(&mut wire.stream, token, Interest::READABLE | Interest::WRITABLE)?;
        Ok(self.open(Path::Direct(wire)))
    }

    pub(super) fn open(&mut self, path: Path) -> Token {
        let token = Token(self.next_token);
        self.next_token += 1;
        let (input, out, heard) = (Vec::new(), Vec::new(), Instant::now());
        let (peer, stage, said) = (None, Stage::Strange, Hello::default());
        self.sockets.insert(token, Socket { path, peer, stage, said, input, out, out_at: 0, handed: 0, heard });
        token
    }

    fn accept(&mut self) {
        while let Ok((stream, from)) = self.listener.accept() {
            let _ = Wire::accept(stream, from, self.site.trust.as_ref()).and_then(|wire| self.adopt(wire));
        }
    }

    fn dial(&mut self) {
        let now = Instant::now();
        let is_direct = |p: &Peer| p.token.is_some_and(|t| self.is_direct(t));
        let due = |(slot, p): &(&u16, &Peer)| {
            **slot > self.site.me.slot && !is_direct(p) && p.dialling.is_none() && now >= p.dialled + REDIAL
        };
        let due: Vec<(u16, SocketAddr)> = self.peers.iter().filter(due).map(|(s, p)| (*s, p.address)).collect();
        for (slot, address) in due {
            if let Some(peer) = self.peers.get_mut(&slot) {
                peer.dialled = now;
            }
            let dialled = Wire::dial(address, self.site.trust.as_ref());
            let Ok(token) = dialled.and_then(|wire| self.adopt(wire)) else { continue };
            self.greet(token, slot);
            if let Some(peer) = self.peers.get_mut(&slot) {
                peer.dialling = Some(token);
            }
        }
    }

    /// The first thing that is said on a connection.
    pub(super) fn greet(&mut self, token: Token, slot: u16) {
        let hello = self.peers.get(&slot).map(|p| p.flow.hello()).unwrap_or_default();
        let Member { slot: me, incarnation, .. } = self.site.me;
        if let Some(socket) = self.sockets.get_mut(&token) {
            socket.out.extend(Greeting { slot: me, incarnation, cluster: self.site.cluster, hello }.encode());
            (socket.peer, socket.said) = (Some(slot), hello);
        }
    }

    pub(super) fn drop_socket(&mut self, token: Token) {
        let Some(mut socket) = self.sockets.remove(&token) else { return };
        if let Path::Direct(wire) = &mut socket.path {
            let _ = self.poll.registry().deregister(&mut wire.stream);
        }
        if let Some(peer) = socket.peer.and_then(|slot| self.peers.get_mut(&slot)) {
            if peer.token.take_if(|t| *t == token).is_some() {
                peer.missed = Instant::now();
            }
            peer.dialling.take_if(|t| *t == token);
            peer.around.take_if(|t| *t == token);
        }
    }

    /// Who left, or was replaced by another start of itself, is forgotten with everything that was said.
    fn set_members(&mut self, version: u64, members: &[Member]) {
        let now = Instant::now();
        let me = self.site.me;
        self.version = version;
        let others = || members.iter().filter(|m| m.slot != me.slot);
        let stays = |slot: u16, p: &Peer| others().any(|m| m.slot == slot && m.incarnation == p.incarnation);
        let gone: Vec<u16> = self.peers.iter().filter(|(slot, p)| !stays(**slot, p)).map(|(slot, _)| *slot).collect();
        for slot in &gone {
            let tokens: Vec<Token> =
                self.sockets.iter().filter(|(_, s)| s.peer == Some(*slot)).map(|(t, _)| *t).collect();
            tokens.into_iter().for_each(|token| self.drop_socket(token));
            self.peers.remove(slot);
        }
        let fresh: Vec<(u16, bool)> = others().map(|m| (m.slot, !self.peers.contains_key(&m.slot))).collect();
        for member in others() {
            self.peers.entry(member.slot).or_insert_with(|| Peer::new(member, now)).address = member.address;
        }
        let counted = members.iter().any(|m| m.slot == me.slot && m.incarnation == me.incarnation);
        self.pulse.set_members(counted, fresh.into_iter(), (self.site.now_ms)());
        self.note_majority();
    }

    fn note_majority(&self) {
        self.desk.majority_ms.store(self.pulse.majority_ms(), Ordering::Release);
    }

    // ---- reading

    fn read(&mut self, token: Token, buffer: &mut [u8]) {
        loop {
            let Some(socket) = self.sockets.get_mut(&token) else { return };
            let Path::Direct(wire) = &mut socket.path else { return };
            match wire.read(buffer) {
                Ok(0) => return self.drop_socket(token),
                Ok(n) => {
                    socket.heard = Instant::now();
                    socket.input.extend_from_slice(buffer.get(..n).unwrap_or_default());
                    if self.digest(token).is_err() {
                        return self.drop_socket(token);
                    }
                }
                Err(e) if is_later(&e) => return,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return self.drop_socket(token),
            }
        }
    }

    /// Takes every whole piece of what has come.
    pub(super) fn digest(&mut self, token: Token) -> Result<(), &'static str> {
        let Some(socket) = self.sockets.get_mut(&token) else { return Ok(()) };
        let input = std::mem::take(&mut socket.input);
        let mut at = 0;
        if matches!(socket.stage, Stage::Strange) {
            let Some(bytes) = input.get(..GREETING) else {
                socket.input = input;
                return Ok(());
            };
            let greeting = Greeting::decode(bytes)?;
            self.greeted(token, &greeting)?;
            at = GREETING;
        }
        while let Some(head) = Head::decode(input.get(at..).unwrap_or_default())? {
            let Some(body) = input.get(at + HEAD..at + HEAD + head.len as usize) else { break };
            self.frame(token, &head, body)?;
            at += HEAD + body.len();
        }
        if let Some(socket) = self.sockets.get_mut(&token) {
            socket.input = input.get(at..).unwrap_or_default().to_vec();
        }
        Ok(())
    }

    fn greeted(&mut self, token: Token, greeting: &Greeting) -> Result<(), &'static str> {
        if greeting.cluster != self.site.cluster {
            return Err("a node of another cluster");
        }
        let slot = greeting.slot;
        if self.sockets.get(&token).is_some_and(|s| s.peer.is_some_and(|p| p != slot)) {
            return Err("not the node that was meant");
        }
        let Some(peer) = self.peers.get(&slot).filter(|p| p.incarnation == greeting.incarnation) else {
            return Err("not a member");
        };
        if peer.dialling == Some(token) || peer.around == Some(token) {
            return self.meet(token, slot, &greeting.hello);
        }
        self.greet(token, slot);
        self.sockets.get_mut(&token).into_iter().for_each(|s| s.stage = Stage::Answered(greeting.hello));
        Ok(())
    }

    /// Both ends can hear each other: this is their connection from now on, if this end is still what it said to be.
    fn meet(&mut self, token: Token, slot: u16, hello: &Hello) -> Result<(), &'static str> {
        let Some(peer) = self.peers.get_mut(&slot) else { return Err("not a member") };
        let said = self.sockets.get(&token).map(|s| s.said).unwrap_or_default();
        let welcome = peer.flow.welcome(&said, hello).map_err(|b| b.0)?;
        let older = peer.token.replace(token).filter(|t| *t != token);
        peer.dialling.take_if(|t| *t == token);
        peer.around.take_if(|t| *t == token);
        let incarnation = peer.incarnation;
        if let Some(socket) = self.sockets.get_mut(&token) {
            socket.stage = Stage::Met;
            Head { n: welcome.first, from: BEGIN, to: BEGIN, ..Head::default() }.encode(&mut socket.out);
            socket.handed = welcome.first - 1;
        }
        if let Some(older) = older {
            self.drop_socket(older);
        }
        self.beaten = Instant::now() - HEARTBEAT;
        if welcome.new {
            (self.tell)(Event::Up(slot, incarnation));
        }
        Ok(())
    }

    fn frame(&mut self, token: Token, head: &Head, body: &[u8]) -> Result<(), &'static str> {
        let Some(socket) = self.sockets.get_mut(&token) else { return Ok(()) };
        let Some(slot) = socket.peer else { return Err("a frame before the greeting") };
        if let Stage::Answered(hello) = socket.stage {
            if head.from != BEGIN {
                return Err("no beginning");
            }
            self.meet(token, slot, &hello)?;
        }
        let Some(peer) = self.peers.get_mut(&slot) else { return Err("not a member") };
        if peer.token != Some(token) {
            return Err("an older connection");
        }
        self.pulse.heard(slot, (self.site.now_ms)());
        if head.from == BEGIN {
            return peer.flow.begin(head.n).map_err(|b| b.0);
        }
        if matches!(head.from, CARRY | CARRIED) {
            return self.pass_on(slot, head, body);
        }
        peer.flow.confirm(head.received);
        if head.from == BEAT {
            let said = BeatBody::decode(body).ok_or("a short beat")?;
            self.pulse.beat(slot, head.now_ms, said, (self.site.now_ms)());
            self.note_majority();
        } else if head.n > 0 && peer.flow.receive(head.n, body.len()).map_err(|b| b.0)? {
            let (Head { from, to, now_ms, .. }, incarnation) = (*head, peer.incarnation);
            self.desk.waiting.fetch_add(body.len(), Ordering::Relaxed);
            (self.tell)(Event::Batch { incarnation, from, to, now_ms, bytes: body.to_vec() });
        }
        Ok(())
    }

    // ---- writing

    /// Does what it was told, and numbers what lanes have left. True: the end.
    fn take_letters(&mut self) -> bool {
        let Inbox { letters, members, bound, ending } = match self.desk.inbox.lock() {
            Ok(mut inbox) => std::mem::take(&mut *inbox),
            Err(_) => return true,
        };
        if let Some((version, members)) = members {
            self.set_members(version, &members);
        }
        if let Some(bound) = bound {
            self.pulse.bind(&bound);
        }
        let behind = self.desk.is_behind();
        for letter in letters {
            let Some(peer) = self.peers.get_mut(&letter.slot) else { continue };
            if letter.incarnation != peer.incarnation {
                continue;
            }
            let (n, received) = (peer.flow.next(), peer.flow.confirm_to_peer(behind));
            let len = u32::try_from(letter.bytes.len()).unwrap_or(0);
            let Letter { from, to, now_ms, bytes, .. } = letter;
            let mut frame = Vec::with_capacity(HEAD + bytes.len());
            Head { len, n, received, now_ms, from, to }.encode(&mut frame);
            frame.extend_from_slice(&bytes);
            peer.flow.send(frame);
        }
        let backlogs = self.peers.iter().map(|(slot, p)| (*slot, p.flow.unconfirmed_bytes()));
        let (slow, eased) = self.desk.note_backlogs(backlogs);
        if self.site.slow.swap(slow, Ordering::Relaxed) & !slow != 0 || eased {
            (self.tell)(Event::Eased);
        }
        ending
    }

    /// Tells its time, confirms, and gives up connections that are silent.
    fn beat(&mut self) {
        let now = Instant::now();
        let silent: Vec<Token> =
            self.sockets.iter().filter(|(_, s)| now > s.heard + SILENCE).map(|(t, _)| *t).collect();
        silent.into_iter().for_each(|token| self.drop_socket(token));
        let due = now >= self.beaten + HEARTBEAT;
        let (now_ms, behind) = ((self.site.now_ms)(), self.desk.is_behind());
        for (slot, peer) in &mut self.peers {
            let Some(socket) = peer.token.and_then(|t| self.sockets.get_mut(&t)) else { continue };
            if due {
                let received = peer.flow.confirm_to_peer(behind);
                let (yours_ms, held_ms) = self.pulse.answer(*slot, now_ms);
                let body = BeatBody { yours_ms, version: self.version, held_ms }.encode();
                let len = u32::try_from(body.len()).unwrap_or(0);
                Head { len, received, now_ms, from: BEAT, to: BEAT, ..Head::default() }.encode(&mut socket.out);
                socket.out.extend_from_slice(&body);
            } else if peer.flow.owes_confirmation() && !behind {
                let received = peer.flow.confirm_to_peer(behind);
                Head { received, ..Head::default() }.encode(&mut socket.out);
            }
        }
        if due {
            self.beaten = now;
            (self.tell)(Event::Beats(self.version, self.pulse.beats(now_ms), self.carriers()));
        }
    }

    fn flush(&mut self) {
        let mut broken = Vec::new();
        for (token, socket) in &mut self.sockets {
            let Path::Direct(wire) = &mut socket.path else { continue };
            if wire.push().is_err_and(|e| !is_later(&e)) {
                broken.push(*token);
                continue;
            }
            let peer = socket.peer.and_then(|slot| self.peers.get(&slot)).filter(|p| p.token == Some(*token));
            loop {
                peer.iter().for_each(|p| socket.refill(&p.flow));
                if socket.out.is_empty() {
                    break;
                }
                match socket.write() {
                    Ok(true) => {}
                    Ok(false) => break,
                    Err(_) => {
                        broken.push(*token);
                        break;
                    }
                }
            }
        }
        broken.into_iter().for_each(|token| self.drop_socket(token));
    }
}
