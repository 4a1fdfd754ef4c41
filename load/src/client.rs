//! One client of the load: what it has under way, what it owes, what it must send. No sockets, no clock.

use std::collections::VecDeque;

use crate::codec::{Hello, Packet, Publish, Template, subscribe};
use crate::stamp::{Stamp, Stamper};

/// What a client has to tell.
#[derive(Debug)]
pub enum Event<'a> {
    /// The server has accepted it.
    Ready {
        present: bool,
    },
    /// The codes of a SUBACK, as many as filters were asked for.
    Subscribed(&'a [u8]),
    Message(&'a Publish<'a>),
    /// Messages that the server has taken over since the last event.
    Acked(u32),
    /// The socket takes more again.
    Room,
    /// The answer to a ping: what was sent before it has been taken.
    Pong,
    /// The server or the network ended it, or it broke a rule.
    Closed(&'a str),
}

/// A client.
pub struct Client {
    pub hello: Hello,
    pub out: Vec<u8>,
    pub out_at: usize,
    pub ready: bool,
    pub dirty: bool,
    /// The socket takes no more for now.
    pub stuck: bool,
    pub receive_maximum: u16,
    /// The server may ask for another than the client did.
    pub keep_alive_s: u16,
    /// Bytes of the largest packet that the server takes.
    pub packet_max: u32,
    window: Window,
    /// QoS 2: identifiers that were received and not released.
    held: Option<Box<Held>>,
    /// SUBSCRIBEs that wait for their answer: identifier and number of filters.
    asked: Vec<(u16, usize)>,
    pub counts: Counts,
}

/// What a client finds by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub acks_out_of_order: u64,
    /// Messages that the server refused by their acknowledgement.
    pub refused: u64,
    /// The same QoS 2 message again before its release, and not marked as that: not given on.
    pub repeated: u64,
    /// Messages at QoS 1 and 2 that the server has not answered for to the end.
    pub unacknowledged: u64,
}

impl Counts {
    /// Adds those of another client.
    pub fn add(&mut self, o: &Self) {
        self.acks_out_of_order += o.acks_out_of_order;
        self.refused += o.refused;
        self.repeated += o.repeated;
        self.unacknowledged += o.unacknowledged;
    }
}

type Held = [u64; 1024];

impl Client {
    /// A client that has not said anything yet.
    #[must_use]
    pub fn new(hello: Hello) -> Self {
        let out = hello.packet();
        Self {
            keep_alive_s: hello.keep_alive_s,
            hello,
            out,
            out_at: 0,
            ready: false,
            dirty: false,
            stuck: false,
            receive_maximum: u16::MAX,
            packet_max: u32::MAX,
            window: Window::default(),
            held: None,
            asked: Vec::new(),
            counts: Counts::default(),
        }
    }

    /// The next connection of the same client: what was under way is sent again by the caller.
    pub fn again(&mut self) {
        self.out = self.hello.packet();
        self.out_at = 0;
        self.ready = false;
        self.stuck = false;
        self.asked.clear();
        self.counts.unacknowledged += self.window.open();
        self.window = Window { first: self.window.next(), states: VecDeque::new() };
    }

    /// Messages that are sent and not acknowledged.
    #[must_use]
    pub fn under_way(&self) -> usize {
        self.window.states.len()
    }

    /// What it has found until now.
    #[must_use]
    pub fn found(&self) -> Counts {
        let mut counts = self.counts;
        counts.unacknowledged += self.window.open();
        counts
    }

    /// Appends a SUBSCRIBE.
    pub fn subscribe(&mut self, id: u16, filters: &[Vec<u8>], qos: u8) {
        self.asked.push((id, filters.len()));
        self.out.extend(subscribe(id, filters.iter().map(Vec::as_slice), qos, self.hello.v5));
    }

    /// Appends a message.
    pub fn publish(&mut self, template: &Template, stamp: Stamp, stamper: &Stamper) {
        let mut id = 0;
        if template.qos > 0 {
            id = identifier(self.window.next());
            self.window.states.push_back(if template.qos == 1 { Due::Puback } else { Due::Pubrec });
        }
        template.begin(&mut self.out, id);
        // an empty payload clears a retained message
        if template.size > 0 {
            stamper.write(&mut self.out, stamp, template.size);
        }
    }

    /// Takes a packet: answers what it must and tells what the caller wants to know.
    ///
    /// # Errors
    /// The server broke the protocol.
    pub fn take<'a>(&mut self, packet: &'a Packet<'a>, mut tell: impl FnMut(Event<'_>)) -> Result<(), String> {
        let out_of_turn = self.ready == matches!(packet, Packet::Connack { .. });
        if out_of_turn && !matches!(packet, Packet::Disconnect { .. }) {
            return Err(if self.ready { "a second CONNACK" } else { "no CONNACK at the beginning" }.to_owned());
        }
        match packet {
            Packet::Publish(p) => {
                if self.received(p) {
                    tell(Event::Message(p));
                }
            }
            Packet::Ack { kind: 6, id, .. } => {
                if let Some(held) = &mut self.held {
                    mark(held, *id, false);
                }
                self.answer(0x70, *id);
            }
            Packet::Ack { kind, id, code } => {
                self.counts.refused += u64::from(*code >= 0x80);
                let acked = self.acked(*kind, *id, *code)?;
                if acked > 0 {
                    tell(Event::Acked(acked));
                }
            }
            Packet::Connack { code, .. } if *code != 0 => return Err(format!("CONNACK with code {code:#04x}")),
            Packet::Connack { present, receive_maximum, keep_alive_s, packet_max, .. } => {
                (self.ready, self.receive_maximum, self.packet_max) = (true, *receive_maximum, *packet_max);
                // [MQTT-3.1.2-21]
                self.keep_alive_s = keep_alive_s.unwrap_or(self.hello.keep_alive_s);
                tell(Event::Ready { present: *present });
            }
            Packet::Suback { id, codes } => {
                self.answered(*id, codes.len())?;
                tell(Event::Subscribed(codes));
            }
            Packet::Disconnect { code } => return Err(format!("DISCONNECT with code {code:#04x}")),
            Packet::Pong => tell(Event::Pong),
            Packet::Unsuback => {}
        }
        Ok(())
    }

    fn answered(&mut self, id: u16, codes: usize) -> Result<(), String> {
        let place = self.asked.iter().position(|(asked, _)| *asked == id);
        let place = place.ok_or_else(|| format!("a SUBACK for {id}, which is not out"))?;
        let (_, filters) = self.asked.swap_remove(place);
        if codes == filters { Ok(()) } else { Err(format!("a SUBACK with {codes} codes for {filters} filters")) }
    }

    fn received(&mut self, p: &Publish<'_>) -> bool {
        match p.qos {
            0 => true,
            1 => {
                self.answer(0x40, p.id);
                true
            }
            _ => {
                self.answer(0x50, p.id);
                let held = self.held.get_or_insert_with(|| Box::new([0; 1024]));
                let new = mark(held, p.id, true);
                self.counts.repeated += u64::from(!new && !p.dup);
                new
            }
        }
    }

    fn answer(&mut self, first: u8, id: u16) {
        let [high, low] = id.to_be_bytes();
        self.out.extend_from_slice(&[first, 2, high, low]);
    }

    fn acked(&mut self, kind: u8, id: u16, code: u8) -> Result<u32, String> {
        let (place, due) =
            self.window.find(id).ok_or_else(|| format!("an acknowledgement for {id}, which is not out"))?;
        let next = match (*due, kind) {
            (Due::Puback, 4) | (Due::Pubcomp, 7) => Due::Nothing,
            (Due::Pubrec, 5) if code >= 0x80 => Due::Nothing,
            (Due::Pubrec, 5) => Due::Pubcomp,
            (due, kind) => return Err(format!("an acknowledgement of type {kind} for {id} while {due:?} is due")),
        };
        *due = next;
        // [MQTT-4.6.0-2], [MQTT-4.6.0-3]: in the order of the messages
        self.counts.acks_out_of_order += u64::from(self.window.older_waits(place, kind));
        if next == Due::Pubcomp {
            let [high, low] = id.to_be_bytes();
            self.out.extend_from_slice(&[0x62, 2, high, low]);
        }
        Ok(self.window.clear())
    }
}

/// Sets or clears a bit; was it the other way?
fn mark(held: &mut Held, id: u16, to: bool) -> bool {
    let Some(word) = held.get_mut(usize::from(id >> 6)) else { return false };
    let bit = 1 << (id & 63);
    let was = *word & bit != 0;
    *word = if to { *word | bit } else { *word & !bit };
    was != to
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Due {
    Puback,
    Pubrec,
    Pubcomp,
    Nothing,
}

/// Messages under way, in order; their identifiers follow from their number.
#[derive(Default)]
struct Window {
    first: u64,
    states: VecDeque<Due>,
}

const fn identifier(number: u64) -> u16 {
    (number % 65_535) as u16 + 1
}

impl Window {
    fn next(&self) -> u64 {
        self.first + self.states.len() as u64
    }

    /// Messages that are not done, though some that were sent later may be.
    fn open(&self) -> u64 {
        self.states.iter().filter(|due| **due != Due::Nothing).count() as u64
    }

    fn find(&mut self, id: u16) -> Option<(usize, &mut Due)> {
        if id == 0 {
            return None;
        }
        let place = (65_535 + u64::from(id) - u64::from(identifier(self.first))) % 65_535;
        let place = usize::try_from(place).ok()?;
        self.states.get_mut(place).map(|due| (place, due))
    }

    fn older_waits(&self, place: usize, kind: u8) -> bool {
        let waits = |due: &Due| match kind {
            7 => *due == Due::Pubcomp,
            _ => matches!(due, Due::Puback | Due::Pubrec),
        };
        // the one before is enough: what is out of order shows at some pair of neighbours
        place > 0 && self.states.get(place - 1).is_some_and(waits)
    }

    /// Takes what is done off the front; how many.
    fn clear(&mut self) -> u32 {
        let mut count = 0;
        while self.states.front() == Some(&Due::Nothing) {
            self.states.pop_front();
            count += 1;
        }
        self.first += u64::from(count);
        count
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn client(qos: u8, messages: usize) -> Client {
        let mut c = Client::new(Hello::default());
        let (template, stamper) = (Template::new(b"t", qos, false, 24, false), Stamper::new());
        for sequence in 0..messages as u64 {
            c.publish(&template, Stamp { run: 1, publisher: 0, sequence, due_ns: 0 }, &stamper);
        }
        c.out.clear();
        c.ready = true;
        c
    }

    fn ack(c: &mut Client, kind: u8, id: u16) -> Result<u32, String> {
        let mut count = 0;
        c.take(&Packet::Ack { kind, id, code: 0 }, |event| {
            if let Event::Acked(n) = event {
                count += n;
            }
        })?;
        Ok(count)
    }

    #[test]
    fn acknowledgements_in_order_and_out_of_it() {
        let mut c = client(1, 3);
        assert_eq!(ack(&mut c, 4, 1), Ok(1));
        assert_eq!((ack(&mut c, 4, 3), c.counts.acks_out_of_order), (Ok(0), 1));
        assert_eq!((ack(&mut c, 4, 2), c.under_way()), (Ok(2), 0));
        assert!(ack(&mut c, 4, 2).is_err(), "it is not out any more");
    }

    #[test]
    fn one_that_is_not_acknowledged_is_one_though_others_wait_behind_it() {
        let mut c = client(1, 4);
        assert_eq!((ack(&mut c, 4, 2), ack(&mut c, 4, 3)), (Ok(0), Ok(0)));
        assert_eq!((c.under_way(), c.found().unacknowledged), (4, 2));
    }

    #[test]
    fn identifier_0_is_never_out() {
        let mut c = client(1, 65_535);
        for id in 1..=65_534 {
            assert_eq!(ack(&mut c, 4, id), Ok(1));
        }
        assert!(ack(&mut c, 4, 0).is_err());
        assert_eq!(ack(&mut c, 4, 65_535), Ok(1));
    }

    #[test]
    fn qos_2_takes_two_answers() {
        let mut c = client(2, 2);
        assert!(ack(&mut c, 7, 1).is_err());
        assert_eq!((ack(&mut c, 5, 1), c.out.as_slice()), (Ok(0), [0x62, 2, 0, 1].as_slice()));
        assert_eq!(ack(&mut c, 7, 1), Ok(1));
    }

    #[test]
    fn answers_that_nobody_asked_for_are_errors() {
        let mut c = Client::new(Hello::default());
        let (receive_maximum, keep_alive_s, packet_max) = (9, None, 1000);
        let connack = Packet::Connack { present: false, code: 0, receive_maximum, keep_alive_s, packet_max };
        assert!(c.take(&Packet::Pong, |_| ()).is_err(), "before the CONNACK");
        assert_eq!((c.take(&connack, |_| ()), c.take(&connack, |_| ()).is_err()), (Ok(()), true));
        let suback = |codes| Packet::Suback { id: 7, codes };
        assert!(c.take(&suback(&[0]), |_| ()).is_err());
        c.subscribe(7, &[b"a".to_vec(), b"b".to_vec()], 1);
        assert!(c.take(&suback(&[0]), |_| ()).is_err(), "two filters");
        c.subscribe(7, &[b"a".to_vec(), b"b".to_vec()], 1);
        assert_eq!(c.take(&suback(&[0, 0x80]), |_| ()), Ok(()));
        assert!(c.take(&suback(&[0, 0]), |_| ()).is_err(), "it is answered");
    }

    #[test]
    fn a_qos_2_message_that_comes_again_is_not_given_on() {
        let mut c = client(0, 0);
        let publish = Publish { qos: 2, dup: false, retain: false, topic: b"t", id: 9, payload: b"" };
        let mut given = 0;
        for _ in 0..2 {
            c.take(&Packet::Publish(publish), |_| given += 1).unwrap();
        }
        c.take(&Packet::Ack { kind: 6, id: 9, code: 0 }, |_| ()).unwrap();
        c.take(&Packet::Publish(publish), |_| given += 1).unwrap();
        assert_eq!((given, c.counts.repeated), (2, 1));
    }
}
