//! One direction and its answer: numbers, acknowledgements, what is sent again, what is not taken twice. No I/O, no clock.
//!
//! Each end has a *name* for as long as it remembers what it sent. When a connection breaks, both keep what is not
//! confirmed and go on where the other stopped. When an end has forgotten (a new process, or it was told to forget), its name
//! is another one: then the other end forgets too, and both say so upwards (`Welcome::new`). Drawn in `docs/formats/link.md`.

use std::collections::VecDeque;

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
    /// What of it the peer was told.
    told: u64,
}

impl Flow {
    /// An end that has said nothing yet.
    #[must_use]
    pub const fn new(name: u64) -> Self {
        Self { name, peer: 0, next: 1, unconfirmed: VecDeque::new(), bytes: 0, received: 0, told: 0 }
    }

    /// Forgets the peer, for good: it was voted out. Under another name the same two may begin again.
    pub fn forget(&mut self, name: u64) {
        *self = Self { next: self.next, ..Self::new(name) };
    }

    /// What to say first on a new connection.
    #[must_use]
    pub const fn hello(&self) -> Hello {
        Hello { name: self.name, peer: self.peer, received: self.received }
    }

    /// The peer's hello. What follows from here begins with the frame `first`, and [`Self::again`] is to be sent.
    pub fn welcome(&mut self, hello: &Hello) -> Welcome {
        let new = hello.name != self.peer || hello.peer != self.name;
        if new {
            self.unconfirmed.clear();
            self.bytes = 0;
            self.received = 0;
        } else {
            self.confirm(hello.received);
        }
        self.peer = hello.name;
        Welcome { new, first: self.unconfirmed.front().map_or(self.next, |(n, _)| *n) }
    }

    /// The peer says with which number it begins; `new` as [`Self::welcome`] has found.
    ///
    /// # Errors
    /// Something between the last frame and this one is lost, though the peer has not forgotten.
    pub fn begin(&mut self, first: u64, new: bool) -> Result<(), Broken> {
        if new {
            self.received = first.saturating_sub(1);
        } else if first > self.received + 1 {
            return Err(Broken("frames are missing"));
        }
        Ok(())
    }

    /// Everything that the peer has not confirmed, oldest first.
    pub fn again(&self) -> impl Iterator<Item = (u64, &[u8])> {
        self.unconfirmed.iter().map(|(n, bytes)| (*n, bytes.as_slice()))
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

    /// A frame has come. True: it is new, and counts as taken. False: it came before.
    ///
    /// # Errors
    /// One before it is missing.
    pub fn receive(&mut self, n: u64) -> Result<bool, Broken> {
        if n <= self.received {
            return Ok(false);
        }
        if n != self.received + 1 {
            return Err(Broken("a frame is missing"));
        }
        self.received = n;
        Ok(true)
    }

    /// Everything up to here was taken: what to confirm.
    #[must_use]
    pub const fn received(&self) -> u64 {
        self.received
    }

    /// Has anything come since the last confirmation?
    #[must_use]
    pub const fn owes_confirmation(&self) -> bool {
        self.received != self.told
    }

    /// The peer is told how far it has come.
    pub const fn confirmed_to_peer(&mut self) {
        self.told = self.received;
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

    fn connect(a: &mut End, b: &mut End) {
        a.wire.clear();
        b.wire.clear();
        // the dialling end speaks first, the other answers when it has heard it
        let hello = a.flow.hello();
        let answer = b.flow.hello();
        let (at_b, at_a) = (b.flow.welcome(&hello), a.flow.welcome(&answer));
        assert_eq!(at_a.new, at_b.new, "both see the same");
        if at_a.new {
            for end in [&mut *a, &mut *b] {
                end.took.clear();
                end.said.clear();
            }
        }
        b.flow.begin(at_a.first, at_b.new).unwrap();
        a.flow.begin(at_b.first, at_a.new).unwrap();
        b.wire.extend(a.flow.again().map(|(n, x)| (n, x.to_vec())));
        a.wire.extend(b.flow.again().map(|(n, x)| (n, x.to_vec())));
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
                            if to.flow.receive(n).unwrap() {
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
                        end.flow.forget(names);
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
                    if end.flow.receive(n).unwrap() {
                        end.took.push(words);
                    }
                }
            }
            prop_assert_eq!(&b.took, &a.said);
            prop_assert_eq!(&a.took, &b.said);
        }
    }
}
