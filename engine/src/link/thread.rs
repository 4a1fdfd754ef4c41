//! The thread that owns the sockets of all links of a node. Of two nodes the one with the lower number dials.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token, Waker};

use super::flow::Flow;
use super::frame::{BEGIN, GREETING, Greeting, HEAD, Head};

const WAKER: Token = Token(0);
const LISTENER: Token = Token(1);
const SOCKETS: usize = 2;
/// Ends say that they are there so often.
const HEARTBEAT: Duration = Duration::from_millis(250);
/// A connection on which nothing has come for so long is given up.
const SILENCE: Duration = Duration::from_millis(1_500);
/// Between two attempts to dial.
const REDIAL: Duration = Duration::from_millis(100);
const READ_BYTES: usize = 256 * 1024;

/// A node that others can reach.
#[derive(Debug, Clone)]
pub struct Node {
    /// Where it listens for links.
    pub address: SocketAddr,
}

/// What a node is told of the others.
#[derive(Debug, Clone)]
pub struct Site {
    /// All nodes; a node's number is its position.
    pub nodes: Vec<Node>,
    /// This one.
    pub me: u16,
    /// Fingerprint of the cluster: nodes with another one are refused.
    pub cluster: u64,
    /// A node that is not heard for so long is forgotten, milliseconds.
    pub forget_after_ms: u64,
}

/// What happens on the links.
#[derive(Debug)]
pub enum Event {
    /// The node is there, and remembers nothing of what was said before; how often it has come.
    Up(u16, u32),
    /// It is forgotten: what was said to it and not confirmed never counts.
    Down(u16),
    /// A batch, with the sender's engine time.
    Batch {
        /// The sending lane's place.
        from: u16,
        /// The receiving one's.
        to: u16,
        /// Engine time of the sender, milliseconds.
        now_ms: u64,
        /// What it said.
        bytes: Vec<u8>,
    },
}

type Tell = Box<dyn Fn(Event) + Send>;

struct Letter {
    node: u16,
    turn: u32,
    from: u16,
    to: u16,
    now_ms: u64,
    bytes: Vec<u8>,
}

#[derive(Default)]
struct Inbox {
    letters: Vec<Letter>,
    ending: bool,
}

struct Desk {
    inbox: Mutex<Inbox>,
    waker: Waker,
    /// Bytes that wait or are not confirmed, of the worst link.
    backlog: AtomicUsize,
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
        let desk = Arc::new(Desk { inbox: Mutex::default(), waker, backlog: AtomicUsize::new(0) });
        let address = site.nodes.get(usize::from(site.me)).map(|n| n.address);
        let address = address.ok_or_else(|| io::Error::other("this node is not among the nodes"))?;
        let mut listener = TcpListener::bind(address)?;
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
        let now = Instant::now();
        let peers = site.nodes.iter().map(|_| Peer::new(now)).collect();
        let sockets = HashMap::new();
        let mut work =
            Work { site, tell, poll, listener, desk: Arc::clone(&desk), peers, sockets, next_token: SOCKETS };
        let thread = std::thread::Builder::new().name("links".to_owned()).spawn(move || work.run())?;
        Ok(Self { desk, thread: Mutex::new(Some(thread)) })
    }

    /// Leaves a batch for a lane of a node. `turn` is that of the last `Up`: what was meant for an earlier one is forgotten.
    pub fn post(&self, node: u16, turn: u32, from: u16, to: u16, now_ms: u64, bytes: Vec<u8>) {
        let first = self.desk.inbox.lock().is_ok_and(|mut inbox| {
            inbox.letters.push(Letter { node, turn, from, to, now_ms, bytes });
            inbox.letters.len() == 1
        });
        if first {
            let _ = self.desk.waker.wake();
        }
    }

    /// Bytes that the slowest of the nodes has not confirmed.
    #[must_use]
    pub fn backlog(&self) -> usize {
        self.desk.backlog.load(Ordering::Relaxed)
    }

    /// Ends the thread and every connection.
    pub fn close(&self) {
        if let Ok(mut inbox) = self.desk.inbox.lock() {
            inbox.ending = true;
        }
        let _ = self.desk.waker.wake();
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

/// A node as this one sees it.
struct Peer {
    flow: Flow,
    /// Its connection, once both have greeted.
    token: Option<Token>,
    up: bool,
    /// How often it has come.
    turn: u32,
    heard: Instant,
    dialled: Instant,
    /// A connection of ours is in the making.
    dialling: Option<Token>,
}

impl Peer {
    fn new(now: Instant) -> Self {
        let flow = Flow::new(fresh_name());
        Self { flow, token: None, up: false, turn: 0, heard: now, dialled: now - REDIAL, dialling: None }
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
    spoke: Instant,
}

struct Work {
    site: Site,
    tell: Tell,
    poll: Poll,
    listener: TcpListener,
    desk: Arc<Desk>,
    peers: Vec<Peer>,
    sockets: HashMap<Token, Socket>,
    next_token: usize,
}

fn fresh_name() -> u64 {
    let mut bytes = [0u8; 8];
    let _ = getrandom::fill(&mut bytes);
    u64::from_le_bytes(bytes) | 1
}

impl Work {
    fn run(&mut self) {
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
        let socket = Socket { stream, peer: None, welcome: None, input, out, out_at: 0, heard: now, spoke: now };
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
        for number in self.site.me + 1..u16::try_from(self.site.nodes.len()).unwrap_or(0) {
            let at = usize::from(number);
            let (Some(peer), Some(node)) = (self.peers.get(at), self.site.nodes.get(at)) else { continue };
            if peer.token.is_some() || peer.dialling.is_some() || now < peer.dialled + REDIAL {
                continue;
            }
            let Ok(token) = TcpStream::connect(node.address).and_then(|stream| self.adopt(stream)) else { continue };
            let greeting = self.greeting(number);
            if let Some(socket) = self.sockets.get_mut(&token) {
                socket.out = greeting;
                socket.peer = Some(number);
            }
            if let Some(peer) = self.peers.get_mut(at) {
                peer.dialling = Some(token);
                peer.dialled = now;
            }
        }
    }

    fn greeting(&self, number: u16) -> Vec<u8> {
        let hello = self.peers.get(usize::from(number)).map(|p| p.flow.hello()).unwrap_or_default();
        Greeting { node: self.site.me, cluster: self.site.cluster, hello }.encode()
    }

    fn drop_socket(&mut self, token: Token) {
        let Some(mut socket) = self.sockets.remove(&token) else { return };
        let _ = self.poll.registry().deregister(&mut socket.stream);
        if let Some(peer) = socket.peer.and_then(|n| self.peers.get_mut(usize::from(n))) {
            if peer.token == Some(token) {
                peer.token = None;
            }
            if peer.dialling == Some(token) {
                peer.dialling = None;
            }
        }
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
        let (number, at) = (greeting.node, usize::from(greeting.node));
        if number == self.site.me || self.sockets.get(&token).is_some_and(|s| s.peer.is_some_and(|p| p != number)) {
            return Err("not the node that was meant");
        }
        let answer = self.greeting(number);
        let Some(peer) = self.peers.get_mut(at) else { return Err("an unknown node") };
        let older = peer.token.replace(token).filter(|t| *t != token);
        let dialled = peer.dialling.take_if(|t| *t == token).is_some();
        let welcome = peer.flow.welcome(&greeting.hello);
        peer.heard = Instant::now();
        let was_up = std::mem::replace(&mut peer.up, true);
        peer.turn += u32::from(welcome.new);
        let turn = peer.turn;
        if let Some(socket) = self.sockets.get_mut(&token) {
            if !dialled {
                socket.out.extend(answer);
            }
            socket.peer = Some(number);
            socket.welcome = Some(welcome.new);
            Head { n: welcome.first, from: BEGIN, to: BEGIN, ..Head::default() }.encode(&mut socket.out);
            for (_, bytes) in peer.flow.again() {
                socket.out.extend_from_slice(bytes);
            }
        }
        if let Some(older) = older {
            self.drop_socket(older);
        }
        if welcome.new {
            if was_up {
                (self.tell)(Event::Down(number));
            }
            (self.tell)(Event::Up(number, turn));
        }
        Ok(())
    }

    fn frame(&mut self, token: Token, head: &Head, body: &[u8]) -> Result<(), &'static str> {
        let Some(socket) = self.sockets.get_mut(&token) else { return Ok(()) };
        let Some(number) = socket.peer else { return Err("a frame before the greeting") };
        let Some(peer) = self.peers.get_mut(usize::from(number)) else { return Err("an unknown node") };
        if peer.token != Some(token) {
            return Err("an older connection");
        }
        peer.heard = Instant::now();
        if head.from == BEGIN {
            let new = socket.welcome.replace(false).unwrap_or(false);
            return peer.flow.begin(head.n, new).map_err(|b| b.0);
        }
        peer.flow.confirm(head.received);
        if head.n > 0 && peer.flow.receive(head.n).map_err(|b| b.0)? {
            let Head { from, to, now_ms, .. } = *head;
            (self.tell)(Event::Batch { from, to, now_ms, bytes: body.to_vec() });
        }
        Ok(())
    }

    // ---- writing

    /// Numbers what lanes have left. True: the end.
    fn take_letters(&mut self) -> bool {
        let (letters, ending) = match self.desk.inbox.lock() {
            Ok(mut inbox) => (std::mem::take(&mut inbox.letters), inbox.ending),
            Err(_) => return true,
        };
        for letter in letters {
            let Some(peer) = self.peers.get_mut(usize::from(letter.node)).filter(|p| p.up) else { continue };
            if letter.turn != peer.turn {
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
        let most = self.peers.iter().map(|p| p.flow.unconfirmed_bytes()).max().unwrap_or(0);
        self.desk.backlog.store(most, Ordering::Relaxed);
        ending
    }

    /// Says that this node is there, gives up who is silent, forgets who is gone.
    fn beat(&mut self) {
        let now = Instant::now();
        let silent: Vec<Token> =
            self.sockets.iter().filter(|(_, s)| now > s.heard + SILENCE).map(|(t, _)| *t).collect();
        silent.into_iter().for_each(|token| self.drop_socket(token));
        for (number, peer) in (0..).zip(&mut self.peers) {
            let received = peer.flow.received();
            if let Some(socket) = peer.token.and_then(|t| self.sockets.get_mut(&t)) {
                let owes = peer.flow.owes_confirmation();
                if owes || now > socket.spoke + HEARTBEAT {
                    socket.spoke = now;
                    peer.flow.confirmed_to_peer();
                    Head { received, ..Head::default() }.encode(&mut socket.out);
                }
            } else if peer.up && now > peer.heard + Duration::from_millis(self.site.forget_after_ms) {
                peer.up = false;
                peer.flow.forget(fresh_name());
                (self.tell)(Event::Down(number));
            }
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
