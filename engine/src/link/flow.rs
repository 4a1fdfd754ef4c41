//! One direction and its answer: numbers, acknowledgements, what is sent again, what is not taken twice. No I/O, no clock.
//!
//! Each end has a *name* for as long as it remembers what it sent. When a connection breaks, both keep what is not
//! confirmed and go on where the other stopped. An end that is not what it was (a new process) has another name: then the other
//! end forgets too, and both say so upwards (`Welcome::new`). Only a name that is not known is new: connections overlap, and who
//! says that it does not know this end may have met it meanwhile. Explored completely by `tests/cluster/model_link.py`; drawn in
//! `docs/formats/link.md`.

use std::collections::VecDeque;

/// Bytes after which a confirmation goes out by itself: far less than what a sender may have unconfirmed.
const OWED_MAX: usize = 1 << 18;

/// The first thing that an end says on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Hello {
    /// Name of the sender.
    pub name: u64,
    /// Name of the receiver as the sender knows it; 0 is none.
    pub peer: u64,
    /// Everything up to here has come from `peer`.
    pub received: u64,
}

/// What a hello has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Welcome {
    /// The peer is another one than before, or has forgotten: nothing that was said to it counts.
    pub new: bool,
    /// The number of the first frame that follows.
    pub first: u64,
}

/// The other end broke the rules; the connection must end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Broken(pub &'static str);

/// What one end knows of a link.
#[derive(Debug)]
pub struct Flow {
    name: u64,
    peer: u64,
    /// Number of the next frame; the first is 1.
    next: u64,
    /// Sent and not confirmed, oldest first.
    unconfirmed: VecDeque<(u64, Vec<u8>)>,
    bytes: usize,
    received: u64,
    /// Bytes that have come since the peer was told how far it has come.
    owed: usize,
    /// The peer is new, and where it begins was not heard yet, on whatever connection that comes.
    fresh: bool,
}

impl Flow {
    /// An end that has said nothing yet.
    #[must_use]
    pub const fn new(name: u64) -> Self {
        Self { name, peer: 0, next: 1, unconfirmed: VecDeque::new(), bytes: 0, received: 0, owed: 0, fresh: false }
    }

    /// What to say first on a new connection.
    #[must_use]
    pub const fn hello(&self) -> Hello {
        Hello { name: self.name, peer: self.peer, received: self.received }
    }

    /// The peer's hello, on a connection on which this end has said `said`. What follows from here begins with the frame `first`,
    /// what was not confirmed before all else.
    ///
    /// # Errors
    /// This end has met the peer on another connection since it said so: what the peer makes of it is out of date.
    pub fn welcome(&mut self, said: &Hello, hello: &Hello) -> Result<Welcome, Broken> {
        if (said.name, said.peer) != (self.name, self.peer) {
            return Err(Broken("they have met on another connection"));
        }
        let new = hello.name != self.peer;
        if new {
            self.unconfirmed.clear();
            (self.bytes, self.received, self.fresh) = (0, 0, true);
        } else if hello.peer == self.name {
            self.confirm(hello.received); // otherwise it counts what somebody else has said
        }
        self.peer = hello.name;
        Ok(Welcome { new, first: self.unconfirmed.front().map_or(self.next, |(n, _)| *n) })
    }

    /// The peer says with which number it begins.
    ///
    /// # Errors
    /// Something between the last frame and this one is lost, though the peer has not forgotten.
    pub fn begin(&mut self, first: u64) -> Result<(), Broken> {
        if std::mem::take(&mut self.fresh) {
            self.received = first.saturating_sub(1);
        } else if first > self.received + 1 {
            return Err(Broken("frames are missing"));
        }
        Ok(())
    }

    /// The first frame behind the one with this number that the peer has not confirmed.
    #[must_use]
    pub fn after(&self, n: u64) -> Option<(u64, &[u8])> {
        let first = self.unconfirmed.front()?.0;
        let at = usize::try_from((n + 1).saturating_sub(first)).ok()?;
        self.unconfirmed.get(at).map(|(n, bytes)| (*n, bytes.as_slice()))
    }

    /// The number that the next frame will have.
    #[must_use]
    pub const fn next(&self) -> u64 {
        self.next
    }

    /// Numbers a frame and keeps it until it is confirmed.
    pub fn send(&mut self, bytes: Vec<u8>) -> u64 {
        let n = self.next;
        self.next += 1;
        self.bytes += bytes.len();
        self.unconfirmed.push_back((n, bytes));
        n
    }

    /// The peer has everything up to here.
    pub fn confirm(&mut self, up_to: u64) {
        while self.unconfirmed.front().is_some_and(|(n, _)| *n <= up_to) {
            if let Some((_, bytes)) = self.unconfirmed.pop_front() {
                self.bytes -= bytes.len();
            }
        }
    }

    /// A frame of so many bytes has come. True: it is new, and counts as taken. False: it came before.
    ///
    /// # Errors
    /// One before it is missing.
    pub fn receive(&mut self, n: u64, len: usize) -> Result<bool, Broken> {
        if n <= self.received {
            return Ok(false);
        }
        if n != self.received + 1 {
            return Err(Broken("a frame is missing"));
        }
        self.received = n;
        self.owed += len;
        Ok(true)
    }

    /// Everything up to here was taken: what to confirm.
    #[must_use]
    pub const fn received(&self) -> u64 {
        self.received
    }

    /// Has so much come since the peer was told that it has to be told by itself? Frames and beats tell it in passing.
    #[must_use]
    pub const fn owes_confirmation(&self) -> bool {
        self.owed >= OWED_MAX
    }

    /// The peer is told how far it has come.
    pub const fn confirmed_to_peer(&mut self) {
        self.owed = 0;
    }

    /// Bytes that the peer has not confirmed.
    #[must_use]
    pub const fn unconfirmed_bytes(&self) -> usize {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    /// One end with the wire towards it; a connection is two hellos, two beginnings, then frames.
    struct End {
        flow: Flow,
        wire: VecDeque<(u64, Vec<u8>)>,
        took: Vec<Vec<u8>>,
        said: Vec<Vec<u8>>,
    }

    /// Everything that the peer has not confirmed, oldest first.
    fn again(flow: &Flow) -> Vec<(u64, Vec<u8>)> {
        let mut found: Vec<(u64, Vec<u8>)> = Vec::new();
        while let Some((n, frame)) = flow.after(found.last().map_or(0, |(n, _)| *n)) {
            found.push((n, frame.to_vec()));
        }
        found
    }

    fn connect(a: &mut End, b: &mut End) {
        a.wire.clear();
        b.wire.clear();
        // the dialling end speaks first, the other answers when it has heard it
        let hello = a.flow.hello();
        let answer = b.flow.hello();
        let (at_b, at_a) = (b.flow.welcome(&answer, &hello).unwrap(), a.flow.welcome(&hello, &answer).unwrap());
        assert_eq!(at_a.new, at_b.new, "both see the same");
        if at_a.new {
            for end in [&mut *a, &mut *b] {
                end.took.clear();
                end.said.clear();
            }
        }
        b.flow.begin(at_a.first).unwrap();
        a.flow.begin(at_b.first).unwrap();
        b.wire.extend(again(&a.flow));
        a.wire.extend(again(&b.flow));
    }

    #[derive(Debug, Clone)]
    enum Step {
        Say(bool),
        Take(bool),
        Confirm(bool),
        Reconnect,
        Forget(bool),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let one = prop_oneof![
            6 => any::<bool>().prop_map(Step::Say),
            6 => any::<bool>().prop_map(Step::Take),
            3 => any::<bool>().prop_map(Step::Confirm),
            2 => Just(Step::Reconnect),
            1 => any::<bool>().prop_map(Step::Forget),
        ];
        proptest::collection::vec(one, 1..200)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1_000))]
        /// Each end takes what the other said since they last met as strangers: once, in order, and after a calm end all.
        #[test]
        fn once_in_order_and_all(steps in steps()) {
            let end = |name| End { flow: Flow::new(name), wire: VecDeque::new(), took: Vec::new(), said: Vec::new() };
            let (mut a, mut b) = (end(1), end(2));
            let mut names = 3;
            connect(&mut a, &mut b);
            for (i, step) in steps.into_iter().enumerate() {
                match step {
                    Step::Say(first) => {
                        let (from, to) = if first { (&mut a, &mut b) } else { (&mut b, &mut a) };
                        let words = vec![i as u8, (i >> 8) as u8];
                        let n = from.flow.send(words.clone());
                        from.said.push(words.clone());
                        to.wire.push_back((n, words));
                    }
                    Step::Take(first) => {
                        let to = if first { &mut a } else { &mut b };
                        if let Some((n, words)) = to.wire.pop_front() {
                            if to.flow.receive(n, 1).unwrap() {
                                to.took.push(words);
                            }
                        }
                    }
                    Step::Confirm(first) => {
                        let (from, to) = if first { (&mut a, &mut b) } else { (&mut b, &mut a) };
                        from.flow.confirm(to.flow.received());
                    }
                    Step::Reconnect => connect(&mut a, &mut b),
                    Step::Forget(first) => {
                        let end = if first { &mut a } else { &mut b };
                        end.flow = Flow::new(names);
                        names += 1;
                        connect(&mut a, &mut b);
                    }
                }
                prop_assert!(b.took.len() <= a.said.len() && b.took[..] == a.said[..b.took.len()]);
                prop_assert!(a.took.len() <= b.said.len() && a.took[..] == b.said[..a.took.len()]);
            }
            connect(&mut a, &mut b);
            for end in [&mut a, &mut b] {
                while let Some((n, words)) = end.wire.pop_front() {
                    if end.flow.receive(n, 1).unwrap() {
                        end.took.push(words);
                    }
                }
            }
            prop_assert_eq!(&b.took, &a.said);
            prop_assert_eq!(&a.took, &b.said);
        }

        /// Connections overlap, break at any moment, and ends begin anew: each start of an end is new to the other once at most, and after
        /// a calm end everything that was said since then was taken.
        #[test]
        fn overlapping_greetings(steps in proptest::collection::vec((0..7u8, any::<prop::sample::Index>(), any::<bool>()), 1..80)) {
            let mut pair = Pair::new();
            for (what, which, dialler) in steps {
                let count = pair.lines.len();
                match what {
                    0 => pair.dial(),
                    1 if count > 0 => pair.lines[which.index(count)].cut(),
                    2 => pair.say(usize::from(dialler)),
                    3 if which.index(4) == 0 => pair.replace(usize::from(dialler)),
                    _ if count > 0 => pair.read(which.index(count), usize::from(dialler)),
                    _ => {}
                }
            }
            for _ in 0..4 {
                pair.lines.iter_mut().for_each(Line::cut);
                pair.dial();
                let line = pair.lines.len() - 1;
                for _ in 0..400 {
                    pair.read(line, 0);
                    pair.read(line, 1);
                }
            }
            for (end, other) in [(0, 1), (1, 0)] {
                prop_assert!((1..=pair.starts[other]).contains(&pair.ups[end]));
                prop_assert_eq!(&pair.said[end], &pair.took[other]);
            }
        }
    }

    /// Who only sends has a bounded part of it unconfirmed, though nothing goes the other way.
    #[test]
    fn one_way_traffic_is_confirmed() {
        let (mut a, mut b) = (Flow::new(1), Flow::new(2));
        let (hello, answer) = (a.hello(), b.hello());
        b.welcome(&answer, &hello).unwrap();
        let first = a.welcome(&hello, &answer).unwrap().first;
        b.begin(first).unwrap();
        for _ in 0..1_000 {
            let n = a.send(vec![0; 10_000]);
            assert!(b.receive(n, 10_000).unwrap());
            if b.owes_confirmation() {
                a.confirm(b.received());
                b.confirmed_to_peer();
            }
            assert!(a.unconfirmed_bytes() <= OWED_MAX + 10_000);
        }
    }

    #[derive(Debug, Clone, Copy)]
    enum Piece {
        Hello(Hello),
        Begin(u64),
        Frame(u64, u64),
    }

    /// A connection: what is on its way to each end, what each end has said first, and what the answering one has heard.
    #[derive(Debug, Default)]
    struct Line {
        wires: [VecDeque<Piece>; 2],
        said: [Option<Hello>; 2],
        heard: Option<Hello>,
        /// Which ends are not there any more; what they had sent may still come.
        gone: [bool; 2],
    }

    impl Line {
        fn cut(&mut self) {
            *self = Self { gone: [true; 2], ..Self::default() };
        }

        fn send(&mut self, to: usize, piece: Piece) {
            if self.gone == [false; 2] {
                self.wires[to].push_back(piece);
            }
        }
    }

    /// The end 0 dials.
    struct Pair {
        flows: [Flow; 2],
        lines: Vec<Line>,
        /// The connection that counts.
        tokens: [Option<usize>; 2],
        ups: [usize; 2],
        starts: [usize; 2],
        said: [Vec<u64>; 2],
        took: [Vec<u64>; 2],
    }

    impl Pair {
        fn new() -> Self {
            Self {
                flows: [Flow::new(1), Flow::new(2)],
                lines: Vec::new(),
                tokens: [None; 2],
                ups: [0; 2],
                starts: [1; 2],
                said: Default::default(),
                took: Default::default(),
            }
        }

        /// A new process: it knows nothing, and has another name.
        fn replace(&mut self, end: usize) {
            self.lines.iter_mut().for_each(|line| line.gone[end] = true);
            self.starts[end] += 1;
            self.flows[end] = Flow::new((2 * self.starts[end] + end) as u64 + 1);
            (self.ups[end], self.tokens[end]) = (0, None);
            self.said[end].clear();
            self.took[end].clear();
        }

        fn dial(&mut self) {
            let mut line = Line::default();
            let hello = self.flows[0].hello();
            line.said[0] = Some(hello);
            line.wires[1].push_back(Piece::Hello(hello));
            self.lines.push(line);
        }

        fn say(&mut self, end: usize) {
            if self.ups[end] > 0 {
                let received = self.flows[end].received();
                let n = self.flows[end].send(vec![1]);
                self.said[end].push(n);
                if let Some(token) = self.tokens[end] {
                    self.lines[token].send(1 - end, Piece::Frame(n, received));
                }
            }
        }

        fn meet(&mut self, line: usize, end: usize, hello: Hello) {
            let Some(said) = self.lines[line].said[end] else { return };
            let Ok(welcome) = self.flows[end].welcome(&said, &hello) else { return self.lines[line].cut() };
            if welcome.new {
                self.ups[end] += 1;
                self.said[end].clear();
                self.took[end].clear();
            }
            let received = self.flows[end].received();
            let again = again(&self.flows[end]).into_iter().map(|(n, _)| Piece::Frame(n, received));
            self.lines[line].wires[1 - end].extend(std::iter::once(Piece::Begin(welcome.first)).chain(again));
            self.tokens[end] = Some(line);
        }

        fn read(&mut self, line: usize, end: usize) {
            let Some(piece) = self.lines[line].wires[end].pop_front().filter(|_| !self.lines[line].gone[end]) else {
                return;
            };
            match piece {
                Piece::Hello(hello) if end == 0 => self.meet(line, 0, hello),
                Piece::Hello(hello) => {
                    let answer = self.flows[1].hello();
                    let it = &mut self.lines[line];
                    (it.said[1], it.heard) = (Some(answer), Some(hello));
                    it.wires[0].push_back(Piece::Hello(answer));
                }
                Piece::Begin(first) => {
                    if let Some(hello) = self.lines[line].heard.take() {
                        self.meet(line, 1, hello);
                    }
                    if self.tokens[end] == Some(line) && self.lines[line].said[end].is_some() {
                        self.flows[end].begin(first).unwrap();
                    }
                }
                Piece::Frame(n, received) if self.tokens[end] == Some(line) => {
                    self.flows[end].confirm(received);
                    if self.flows[end].receive(n, 1).unwrap() {
                        self.took[end].push(n);
                    }
                }
                Piece::Frame(..) => {}
            }
        }
    }
}
