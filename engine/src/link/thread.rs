//! The thread that owns the sockets of all links of a node. Of two nodes the one with the lower number dials.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};

use super::desk::{Desk, Event, Inbox, Letter, Member, Site, Tell};
use super::flow::Flow;
use super::frame::{BEAT, BEGIN, GREETING, Greeting, HEAD, Head, beat_body, beat_of};
use super::pulse::Pulse;

pub(super) const WAKER: Token = Token(0);
const LISTENER: Token = Token(1);
const SOCKETS: usize = 2;
/// Ends say that they are there so often.
const HEARTBEAT: Duration = Duration::from_millis(250);
/// A connection on which nothing has come for so long is given up.
const SILENCE: Duration = Duration::from_millis(1_500);
/// Between two attempts to dial.
const REDIAL: Duration = Duration::from_millis(100);
const READ_BYTES: usize = 256 * 1024;

/// A node as this one sees it.
struct Peer {
    incarnation: u64,
    address: SocketAddr,
    flow: Flow,
    /// Its connection, once both have greeted.
    token: Option<Token>,
    dialled: Instant,
    /// A connection of ours is in the making.
    dialling: Option<Token>,
}

impl Peer {
    fn new(member: &Member, now: Instant) -> Self {
        let Member { incarnation, address, .. } = *member;
        Self { incarnation, address, flow: Flow::new(fresh_name()), token: None, dialled: now - REDIAL, dialling: None }
    }
}

/// One TCP connection.
struct Socket {
    stream: TcpStream,
    /// The node, once it has greeted.
    peer: Option<u16>,
    /// What its greeting meant, until its beginning has come.
    welcome: Option<bool>,
    input: Vec<u8>,
    out: Vec<u8>,
    out_at: usize,
    heard: Instant,
}

pub(super) struct Work {
    site: Site,
    tell: Tell,
    poll: Poll,
    listener: TcpListener,
    desk: Arc<Desk>,
    peers: HashMap<u16, Peer>,
    sockets: HashMap<Token, Socket>,
    next_token: usize,
    pulse: Pulse,
    /// Of the members.
    version: u64,
    /// When this node told its time last.
    beaten: Instant,
}

fn fresh_name() -> u64 {
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
        }
    }

    // ---- connections

    fn adopt(&mut self, mut stream: TcpStream) -> io::Result<Token> {
        stream.set_nodelay(true)?;
        let token = Token(self.next_token);
        self.next_token += 1;
        self.poll.registry().register(&mut stream, token, Interest::READABLE | Interest::WRITABLE)?;
        let now = Instant::now();
        let (input, out) = (Vec::new(), Vec::new());
        let socket = Socket { stream, peer: None, welcome: None, input, out, out_at: 0, heard: now };
        self.sockets.insert(token, socket);
        Ok(token)
    }

    fn accept(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            let _ = self.adopt(stream);
        }
    }

    fn dial(&mut self) {
        let now = Instant::now();
        let due = |(slot, p): &(&u16, &Peer)| {
            **slot > self.site.me.slot && p.token.is_none() && p.dialling.is_none() && now >= p.dialled + REDIAL
        };
        let due: Vec<(u16, SocketAddr)> = self.peers.iter().filter(due).map(|(s, p)| (*s, p.address)).collect();
        for (slot, address) in due {
            if let Some(peer) = self.peers.get_mut(&slot) {
                peer.dialled = now;
            }
            let Ok(token) = TcpStream::connect(address).and_then(|stream| self.adopt(stream)) else { continue };
            let greeting = self.greeting(slot);
            if let Some(socket) = self.sockets.get_mut(&token) {
                socket.out = greeting;
                socket.peer = Some(slot);
            }
            if let Some(peer) = self.peers.get_mut(&slot) {
                peer.dialling = Some(token);
            }
        }
    }

    fn greeting(&self, slot: u16) -> Vec<u8> {
        let hello = self.peers.get(&slot).map(|p| p.flow.hello()).unwrap_or_default();
        let Member { slot, incarnation, .. } = self.site.me;
        Greeting { slot, incarnation, cluster: self.site.cluster, hello }.encode()
    }

    fn drop_socket(&mut self, token: Token) {
        let Some(mut socket) = self.sockets.remove(&token) else { return };
        let _ = self.poll.registry().deregister(&mut socket.stream);
        if let Some(peer) = socket.peer.and_then(|slot| self.peers.get_mut(&slot)) {
            peer.token.take_if(|t| *t == token);
            peer.dialling.take_if(|t| *t == token);
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
            match socket.stream.read(buffer) {
                Ok(0) => return self.drop_socket(token),
                Ok(n) => {
                    socket.heard = Instant::now();
                    socket.input.extend_from_slice(buffer.get(..n).unwrap_or_default());
                    if self.digest(token).is_err() {
                        return self.drop_socket(token);
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return self.drop_socket(token),
            }
        }
    }

    /// Takes every whole piece of what has come.
    fn digest(&mut self, token: Token) -> Result<(), &'static str> {
        let Some(socket) = self.sockets.get_mut(&token) else { return Ok(()) };
        let input = std::mem::take(&mut socket.input);
        let mut at = 0;
        if socket.welcome.is_none() {
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
        let answer = self.greeting(slot);
        let Some(peer) = self.peers.get_mut(&slot).filter(|p| p.incarnation == greeting.incarnation) else {
            return Err("not a member");
        };
        let older = peer.token.replace(token).filter(|t| *t != token);
        let dialled = peer.dialling.take_if(|t| *t == token).is_some();
        let welcome = peer.flow.welcome(&greeting.hello);
        if let Some(socket) = self.sockets.get_mut(&token) {
            if !dialled {
                socket.out.extend(answer);
            }
            socket.peer = Some(slot);
            socket.welcome = Some(welcome.new);
            Head { n: welcome.first, from: BEGIN, to: BEGIN, ..Head::default() }.encode(&mut socket.out);
            for (_, bytes) in peer.flow.again() {
                socket.out.extend_from_slice(bytes);
            }
        }
        if let Some(older) = older {
            self.drop_socket(older);
        }
        self.beaten = Instant::now() - HEARTBEAT;
        if welcome.new {
            (self.tell)(Event::Up(slot, greeting.incarnation));
        }
        Ok(())
    }

    fn frame(&mut self, token: Token, head: &Head, body: &[u8]) -> Result<(), &'static str> {
        let Some(socket) = self.sockets.get_mut(&token) else { return Ok(()) };
        let Some(slot) = socket.peer else { return Err("a frame before the greeting") };
        let Some(peer) = self.peers.get_mut(&slot) else { return Err("not a member") };
        if peer.token != Some(token) {
            return Err("an older connection");
        }
        self.pulse.heard(slot, (self.site.now_ms)());
        if head.from == BEGIN {
            let new = socket.welcome.replace(false).unwrap_or(false);
            return peer.flow.begin(head.n, new).map_err(|b| b.0);
        }
        peer.flow.confirm(head.received);
        if head.from == BEAT {
            let (ours_ms, version) = beat_of(body).ok_or("a short beat")?;
            self.pulse.beat(slot, head.now_ms, ours_ms, version);
            self.note_majority();
        } else if head.n > 0 && peer.flow.receive(head.n).map_err(|b| b.0)? {
            let (Head { from, to, now_ms, .. }, incarnation) = (*head, peer.incarnation);
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
        for letter in letters {
            let Some(peer) = self.peers.get_mut(&letter.slot) else { continue };
            if letter.incarnation != peer.incarnation {
                continue;
            }
            let (n, received) = (peer.flow.next(), peer.flow.received());
            let len = u32::try_from(letter.bytes.len()).unwrap_or(0);
            let Letter { from, to, now_ms, bytes, .. } = letter;
            let mut frame = Vec::with_capacity(HEAD + bytes.len());
            Head { len, n, received, now_ms, from, to }.encode(&mut frame);
            frame.extend_from_slice(&bytes);
            if let Some(socket) = peer.token.and_then(|t| self.sockets.get_mut(&t)) {
                socket.out.extend_from_slice(&frame);
            }
            peer.flow.send(frame);
        }
        let most = self.peers.values().map(|p| p.flow.unconfirmed_bytes()).max().unwrap_or(0);
        self.desk.backlog.store(most, Ordering::Relaxed);
        ending
    }

    /// Tells its time, confirms, and gives up connections that are silent.
    fn beat(&mut self) {
        let now = Instant::now();
        let silent: Vec<Token> =
            self.sockets.iter().filter(|(_, s)| now > s.heard + SILENCE).map(|(t, _)| *t).collect();
        silent.into_iter().for_each(|token| self.drop_socket(token));
        let due = now >= self.beaten + HEARTBEAT;
        let now_ms = (self.site.now_ms)();
        for (slot, peer) in &mut self.peers {
            let received = peer.flow.received();
            let Some(socket) = peer.token.and_then(|t| self.sockets.get_mut(&t)) else { continue };
            if due {
                let body = beat_body(self.pulse.answer(*slot), self.version);
                let len = u32::try_from(body.len()).unwrap_or(0);
                Head { len, received, now_ms, from: BEAT, to: BEAT, ..Head::default() }.encode(&mut socket.out);
                socket.out.extend_from_slice(&body);
                peer.flow.confirmed_to_peer();
            } else if peer.flow.owes_confirmation() {
                peer.flow.confirmed_to_peer();
                Head { received, ..Head::default() }.encode(&mut socket.out);
            }
        }
        if due {
            self.beaten = now;
            (self.tell)(Event::Beats(self.version, self.pulse.beats(now_ms)));
        }
    }

    fn flush(&mut self) {
        let mut broken = Vec::new();
        for (token, socket) in &mut self.sockets {
            while socket.out_at < socket.out.len() {
                match socket.stream.write(socket.out.get(socket.out_at..).unwrap_or_default()) {
                    Ok(n) => socket.out_at += n,
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::NotConnected) => break,
                    Err(_) => {
                        broken.push(*token);
                        break;
                    }
                }
            }
            if socket.out_at == socket.out.len() {
                socket.out.clear();
                socket.out_at = 0;
            }
        }
        broken.into_iter().for_each(|token| self.drop_socket(token));
    }
}
