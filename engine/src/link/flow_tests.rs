//! Property tests of [`super::flow`].

use std::collections::VecDeque;

use proptest::prelude::*;

use super::flow::*;

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
    Confirm(bool, bool),
    Reconnect,
    Forget(bool),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let one = prop_oneof![
        6 => any::<bool>().prop_map(Step::Say),
        6 => any::<bool>().prop_map(Step::Take),
        3 => any::<(bool, bool)>().prop_map(|(first, behind)| Step::Confirm(first, behind)),
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
                Step::Confirm(first, behind) => {
                    let (from, to) = if first { (&mut a, &mut b) } else { (&mut b, &mut a) };
                    from.flow.confirm(to.flow.confirm_to_peer(behind));
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

/// Two ends that know each other; the first may speak.
fn met() -> (Flow, Flow) {
    let (mut a, mut b) = (Flow::new(1), Flow::new(2));
    let (hello, answer) = (a.hello(), b.hello());
    b.welcome(&answer, &hello).unwrap();
    let first = a.welcome(&hello, &answer).unwrap().first;
    b.begin(first).unwrap();
    (a, b)
}

/// A peer that is behind gets a window and no more; when it has caught up it gets all the rest, each frame once.
#[test]
fn who_is_behind_gets_no_more_than_a_window() {
    let (mut a, mut b) = met();
    let frame = WINDOW as usize / 64;
    for _ in 0..1_000 {
        a.send(vec![0; frame]);
    }
    let mut came = 0;
    for (behind, most) in [(true, 64), (true, 64), (false, 128), (true, 128), (false, 192)] {
        while let Some((n, bytes)) = a.after(came) {
            assert!(b.receive(n, bytes.len()).unwrap());
            came = n;
        }
        a.confirm(b.confirm_to_peer(behind));
        assert_eq!(came, if behind { most } else { most - 64 });
    }
    while a.unconfirmed_bytes() > 0 {
        while let Some((n, bytes)) = a.after(came) {
            assert!(b.receive(n, bytes.len()).unwrap());
            came = n;
        }
        a.confirm(b.confirm_to_peer(false));
    }
    assert_eq!(came, 1_000);
}

/// Who only sends has a bounded part of it unconfirmed, though nothing goes the other way.
#[test]
fn one_way_traffic_is_confirmed() {
    let (mut a, mut b) = met();
    for _ in 0..1_000 {
        let n = a.send(vec![0; 10_000]);
        assert!(b.receive(n, 10_000).unwrap());
        if b.owes_confirmation() {
            a.confirm(b.confirm_to_peer(false));
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
            let behind = self.said[end].len().is_multiple_of(3);
            let received = self.flows[end].confirm_to_peer(behind);
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
        let received = self.flows[end].confirm_to_peer(false);
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
