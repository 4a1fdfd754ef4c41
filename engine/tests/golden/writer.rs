// Writes a data directory with everything in it, at fixed times; part of `golden.rs`.

const PARTITIONS: u16 = 2;
const KEY: &str = "000102030405060708090a0b0c0d0e0f";
const SEGMENT_BYTES: u32 = 4096;
const UNIX_MS: u64 = 1_700_000_000_000;

fn ring() -> Ring {
    let key = u128::from_str_radix(KEY, 16).unwrap();
    Ring::new(((key >> 64) as u64, key as u64), PARTITIONS.into(), 1)
}

/// A name that belongs to a partition.
fn name_in(partition: u16, prefix: &str) -> String {
    (0..).map(|i| format!("{prefix}{i}")).find(|n| ring().partition(n) == partition).unwrap()
}

/// Two partitions in one lane, their log, and what became of what they were told.
struct Broker {
    partitions: Vec<Partition>,
    writer: Writer,
    directory: Directory,
    identity: Identity,
    now_ms: u64,
    connections: u32,
    /// Deliveries not yet acknowledged, by connection.
    delivered: BTreeMap<u32, VecDeque<u16>>,
    groups: BTreeMap<String, (u16, u32)>,
    origin: Origin,
    todo: VecDeque<Effect>,
    working: bool,
}

/// A client that is connected.
#[derive(Clone)]
struct Client {
    name: String,
    session: SessionRef,
    connection: ConnectionId,
}

fn rules() -> Rules {
    Rules { cache: Arc::new(BodyCache::new(1 << 20)), ..Rules::default() }
}

fn storage(directory: &Directory) -> Arc<dyn Storage> {
    Arc::new(Disk { path: directory.log() })
}

/// Partitions and check of the key, as segments have them.
fn check() -> (u32, u64) {
    (PARTITIONS.into(), siphash(ring().key(), b"roostmq"))
}

impl Broker {
    /// The first start, or another one on what is there.
    fn start(path: &Path) -> Self {
        let directory = Directory::open(path).unwrap();
        let before = directory.identity().unwrap();
        let mut identity = before.unwrap_or_else(|| Identity::new(PARTITIONS.into(), KEY.to_owned()));
        identity.incarnation += 1;
        let writer = Writer::settled(&storage(&directory), check(), SEGMENT_BYTES, identity.newest).unwrap();
        let mut all: Vec<(Replay, u64)> = (0..PARTITIONS).map(|p| (Replay::new(p), 0)).collect();
        let found = scan(&*storage(&directory), identity.checkpoint, Some(check()), &mut |head, body, at| {
            let (replay, last) = &mut all[usize::from(head.partition)];
            *last = (*last).max(head.first + u64::from(head.count) - 1);
            replay.record(body, at).map(drop).map_err(|e| e.0)
        });
        let ended_ms = found.unwrap().now_ms.max(5_000);
        let resumed = Resumed { incarnation: identity.incarnation, last: 0, ended_ms, now_ms: ended_ms + 1_000 };
        let recover = |(p, (replay, last))| Partition::recovered(p, rules(), replay, Resumed { last, ..resumed });
        let mut broker = Self {
            partitions: (0..).zip(all).map(recover).collect(),
            writer,
            directory,
            identity,
            now_ms: resumed.now_ms,
            connections: 0,
            delivered: BTreeMap::new(),
            groups: BTreeMap::new(),
            origin: Origin::default(),
            todo: VecDeque::new(),
            working: false,
        };
        for p in 0..usize::from(PARTITIONS) {
            let mut out = Effects::new();
            broker.partitions[p].resume_all(resumed, &mut out);
            broker.carry_out(out);
        }
        (0..PARTITIONS).for_each(|p| broker.step(p, Input::GroupsSettled { found: true }));
        broker.name();
        broker.write();
        broker
    }

    fn name(&mut self) {
        self.identity.newest = self.writer.newest();
        self.directory.set_identity(&self.identity).unwrap();
    }

    fn step(&mut self, partition: u16, input: Input<'_>) {
        let mut out = Effects::new();
        self.partitions[usize::from(partition)].step(self.now_ms, input, &mut out);
        self.carry_out(out);
    }

    /// What a lane does with effects, as far as another partition learns of it.
    fn carry_out(&mut self, effects: Effects) {
        self.todo.extend(effects);
        if std::mem::replace(&mut self.working, true) {
            return; // what follows from an effect waits behind what came before it
        }
        while let Some(effect) = self.todo.pop_front() {
            match effect {
                Effect::Attached { session, .. } => self.step(session.partition, Input::Opened { session }),
                Effect::Deliver(d) => self.delivered.entry(d.connection.key).or_default().push_back(d.id),
                Effect::Held { origin, .. } => self.origin = origin,
                Effect::Subscribe { filter, subscriber } if subscriber.group => {
                    self.groups.insert(filter.into(), (subscriber.partition, subscriber.slot));
                }
                Effect::GroupJoin { group, member, again } => {
                    self.step(ring().partition(&group), Input::GroupJoin { group: &group, member, again });
                }
                Effect::GroupLeave { group, session } => {
                    self.step(ring().partition(&group), Input::GroupLeave { group: &group, session });
                }
                Effect::GroupOnline { group, session, online, window } => {
                    let input = Input::GroupOnline { group: &group, session, online, window };
                    self.step(ring().partition(&group), input);
                }
                Effect::GroupDone { place, session } => {
                    self.step(place.partition, Input::GroupDone { place, session });
                }
                Effect::GroupReturn { place, session } => {
                    self.step(place.partition, Input::GroupReturn { place, session });
                }
                Effect::Dispatch(d) => self.step(d.to.partition, Input::Dispatch(d)),
                Effect::ForgetOrigin { uid } => (0..PARTITIONS).for_each(|p| self.step(p, Input::ForgetOrigin { uid })),
                _ => {}
            }
        }
        self.working = false;
    }

    /// A group of what all partitions wrote, synced.
    fn write(&mut self) {
        let batches: Vec<_> = self.partitions.iter_mut().filter_map(Partition::take_batch).collect();
        if batches.is_empty() {
            return;
        }
        self.now_ms += 10;
        let piece = Piece { now_ms: self.now_ms, epoch: self.identity.incarnation, batches, ..Piece::default() };
        for l in self.writer.write(&[piece], UNIX_MS + self.now_ms, true).unwrap() {
            self.step(l.partition, Input::Safe { number: l.number, up_to: l.up_to, address: l.address });
        }
    }

    fn attach(&mut self, name: &str, expiry_s: u32, will: bool, receive_maximum: u16) -> Client {
        let partition = ring().partition(name);
        self.connections += 1;
        let connection = ConnectionId { lane: 0, key: self.connections, generation: 1 };
        let text: Box<[u8]> = b"gone".as_slice().into();
        let props: Box<[u8]> = [1, 1].into();
        let will = will.then(|| {
            let (topic, qos, retain, expiry_s) = (format!("will/{name}").into(), QoS::ExactlyOnce, true, Some(86_400));
            Box::new(Will { topic, payload: text, props, qos, retain, expiry_s, delay_s: 40, outlives: false })
        });
        let rules = roostmq_engine::access::Rules::default();
        let (client_id, clean, username) = (name.into(), false, None);
        let attach = Attach { connection, client_id, clean, expiry_s, receive_maximum, will, rules, username, maker: 0 };
        self.step(partition, Input::Attach(Box::new(attach)));
        self.write();
        let state = self.partitions[usize::from(partition)].state();
        let slot = state.find(name).unwrap();
        let session = SessionRef { partition, slot, uid: state.session(slot).unwrap().uid };
        Client { name: name.to_owned(), session, connection }
    }

    fn detach(&mut self, c: &Client, will: bool, expiry_s: Option<u32>) {
        let ending = Ending { will, expiry_s };
        let (session, client_id, connection) = (Some(c.session), &*c.name, c.connection);
        self.step(c.session.partition, Input::Detach { session, client_id, connection, ending });
        self.write();
    }

    fn subscribe(&mut self, c: &Client, filter: &str, qos: QoS, id: u32) {
        let no_local = id % 2 == 1 && !filter.starts_with("$share");
        let ask = Ask { filter, subscription: Subscription { qos, id, no_local, retain_as_published: id > 2 } };
        let mut out = Effects::new();
        self.partitions[usize::from(c.session.partition)].subscribe(self.now_ms, c.session, &ask, &mut out);
        self.carry_out(out);
        self.write();
    }

    fn unsubscribe(&mut self, c: &Client, filter: &str) {
        let mut out = Effects::new();
        self.partitions[usize::from(c.session.partition)].unsubscribe(self.now_ms, c.session, filter, &mut out);
        self.carry_out(out);
        self.write();
    }

    /// A message of some age, some with properties.
    fn head(&self, payload: &[u8], qos: QoS, origin: Origin) -> (Head, &'static [u8]) {
        let mut head = Head::default();
        (head.qos, head.origin, head.publisher, head.retain) = (qos, origin, origin.uid.max(9), payload.len().is_multiple_of(5));
        head.deadline_ms = if payload.len() % 2 == 1 { self.now_ms + 86_400_000 } else { 0 };
        (head, if payload.len().is_multiple_of(3) { &[1, 1] } else { &[] })
    }

    /// A message for the places of one partition: sessions, or a group.
    fn publish(&mut self, partition: u16, to: &[(u32, bool)], topic: &str, payload: &[u8], origin: Origin) {
        let qos = if origin.n > 0 { QoS::ExactlyOnce } else { QoS::AtLeastOnce };
        let (head, props) = self.head(payload, qos, origin);
        let message = Inbound::new(Message { head, topic, props, payload });
        let m = Match { qos: QoS::ExactlyOnce, no_local: false, retain_as_published: true, id: 3 };
        let target = |&(slot, group)| Target { partition, slot, group, matches: std::iter::once(m).collect() };
        let targets: Vec<Target> = to.iter().map(target).collect();
        self.step(partition, Input::Publish { message: &message, targets: &targets, token: None });
    }

    fn publish_to(&mut self, c: &Client, topic: &str, payload: &[u8], origin: Origin) {
        self.publish(c.session.partition, &[(c.session.slot, false)], topic, payload, origin);
    }

    fn publish_to_group(&mut self, group: &str, payload: &[u8], origin: Origin) {
        let (_, filter) = group.split_once('/').unwrap();
        let (partition, slot) = self.groups[filter];
        self.publish(partition, &[(slot, true)], &filter.replace('#', "x"), payload, origin);
    }

    /// A group's message for somebody who has just gone.
    fn dispatch_late(&mut self, c: &Client, group: u64) {
        let (head, props) = self.head(b"late", QoS::ExactlyOnce, Origin::default());
        let message = Stored::new(&Message { head, topic: "t", props, payload: b"late" });
        let (origin, place) = (Origin { uid: group, n: 9, answered: 0 }, GroupPlace { partition: 0, uid: group, index: 9, n: 9 });
        let d = Dispatched { to: c.session, place: Some(place), origin, message, qos: QoS::ExactlyOnce, id: 0 };
        self.step(c.session.partition, Input::Dispatch(d));
    }

    fn retain(&mut self, topic: &str, payload: &[u8]) {
        let (head, props) = self.head(payload, QoS::AtLeastOnce, Origin::default());
        let message = Inbound::new(Message { head, topic, props, payload });
        self.step(ring().partition(topic), Input::Retain { message: &message, token: None });
        self.write();
    }

    /// The client answers the oldest delivery that it has not answered.
    fn acknowledge(&mut self, c: &Client, kinds: &[AckKind]) {
        let Some(id) = self.delivered.get_mut(&c.connection.key).and_then(VecDeque::pop_front) else { return };
        for &kind in kinds {
            let (session, connection, reason) = (c.session, c.connection, Reason::SUCCESS);
            self.step(session.partition, Input::Ack { session, connection, kind, id, reason });
            self.write();
        }
    }

    /// The number under which a publisher's QoS 2 message goes out.
    fn hold(&mut self, c: &Client, id: u16) -> Origin {
        let token = Token { connection: c.connection, number: id.into(), ask: 0 };
        self.step(c.session.partition, Input::Hold { session: c.session, id, token });
        self.origin
    }

    fn release(&mut self, c: &Client, id: u16) {
        let (session, connection) = (c.session, c.connection);
        self.step(session.partition, Input::Release { session, connection, id, answer: true });
        self.write();
    }

    /// A checkpoint that empties every second closed segment and gives back what it can.
    fn checkpoint(&mut self) {
        let begin = self.writer.end();
        let segments: Vec<u32> = self.writer.closed().keys().copied().filter(|n| u64::from(*n) < begin >> 32).collect();
        let mut emptying = Emptying::new(segments.iter().step_by(2).copied().collect());
        while !emptying.read_some(&self.writer) {}
        let emptied = emptying.done();
        let mut walked = Walked::default();
        for p in &mut self.partitions {
            assert!(p.walk(&mut Walk::default(), &emptied, &mut walked, 1 << 20), "in one go");
        }
        self.write();
        self.identity.checkpoint = Some(begin);
        self.name();
        let free: Vec<u32> = segments.into_iter().filter(|n| !walked.live.contains_key(n)).collect();
        self.writer.give_back(&free).unwrap();
    }

    /// Clients come, publish, answer and go: every kind of record that a partition writes.
    fn day(&mut self, day: u32) {
        let name = |partition, what: &str| name_in(partition, &format!("{what}-{day}-"));
        let (reader, other) = (name(0, "reader"), name(1, "other"));
        let (publisher, keeper) = (name(1, "publisher"), name(0, "keeper"));
        let (reader, other) = (self.attach(&reader, NEVER, false, 2), self.attach(&other, 86_400, false, 10));
        let (publisher, keeper) = (self.attach(&publisher, NEVER, false, 10), self.attach(&keeper, NEVER, true, 10));
        let (group, closed) = (format!("g/shared/{day}/#"), format!("h/other/{day}/#"));
        for (client, filter, id) in [(&reader, "t/#", 3), (&reader, "a/+", 0), (&other, "t/\u{e9}", 4)] {
            self.subscribe(client, filter, QoS::ExactlyOnce, id);
        }
        for (client, group) in [(&reader, &group), (&other, &group), (&keeper, &closed)] {
            self.subscribe(client, &format!("$share/{group}"), QoS::ExactlyOnce, 0);
        }
        self.unsubscribe(&reader, "a/+");
        for n in 1..9 {
            let origin = self.hold(&publisher, n);
            self.publish_to(&reader, "t/2", &vec![n as u8; 40 + usize::from(n)], origin);
            self.publish_to(&other, "t/\u{e9}", &vec![n as u8; 90 + usize::from(n)], Origin::default());
            self.write();
            if n % 2 == 0 {
                self.release(&publisher, n);
            }
        }
        self.acknowledge(&reader, &[AckKind::Pubrec, AckKind::Pubcomp]);
        self.acknowledge(&reader, &[AckKind::Pubrec]);
        (0..4).for_each(|_| self.acknowledge(&other, &[AckKind::Puback]));
        for n in 1..9 {
            if n == 5 {
                self.write();
                (0..12).for_each(|_| self.acknowledge(&other, &[AckKind::Pubrec, AckKind::Puback, AckKind::Pubcomp]));
            }
            self.publish_to_group(&group, &[n; 30], Origin { uid: keeper.session.uid, n: n.into(), answered: 0 });
        }
        self.detach(&other, false, None);
        self.publish_to_group(&group, b"one more", Origin::default());
        self.dispatch_late(&other, publisher.session.uid);
        self.write();
        let again = self.attach(&other.name, 7_200, true, 1);
        self.detach(&again, true, None);
        self.unsubscribe(&keeper, &format!("$share/{closed}"));
        for (topic, payload) in [("r/1", &b"first"[..]), ("r/2", b"second"), ("r/1", b"third"), ("r/2", b"")] {
            self.retain(&format!("{topic}/{day}"), payload);
        }
        self.detach(&keeper, true, None);
        let mortal = self.attach(&format!("mortal-{day}"), 60, true, 10);
        self.detach(&mortal, false, Some(0));
        let origin = Origin { uid: mortal.session.uid, n: 1, answered: 0 };
        self.publish_to(&publisher, "t", b"of one that is gone", origin);
        (0..PARTITIONS).for_each(|p| self.step(p, Input::ForgetOrigin { uid: origin.uid }));
        self.write();
    }
}

/// Four days, a checkpoint after the second one, and a start before the last one.
fn write_directory(path: &Path) {
    let mut broker = Broker::start(path);
    (1..3).for_each(|day| broker.day(day));
    broker.checkpoint();
    broker.day(3);
    drop(broker);
    let mut broker = Broker::start(path);
    broker.day(4);
    let now_ms = broker.now_ms;
    broker.writer.end_cleanly(now_ms, UNIX_MS + now_ms).unwrap();
    broker.name();
}
