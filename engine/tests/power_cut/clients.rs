// Clients and what they were told; part of `main.rs`.

/// What clients do and what they are told.
impl World {
    fn step(&mut self, p: usize, input: Input<'_>, current: Option<u64>) {
        let mut out = Effects::new();
        self.partitions[p].step(self.now_ms, input, &mut out);
        for effect in out {
            self.effect(p, effect, current);
        }
    }

    fn effect(&mut self, p: usize, effect: Effect, current: Option<u64>) {
        match effect {
            // nobody is told any more on a connection that has ended
            Effect::Pubrel { connection, .. } | Effect::Pubcomp { connection, .. }
                if self.clients[connection.key as usize].connection != Some(connection) => {}
            Effect::Attached { connection, session, present } => {
                let c = &mut self.clients[connection.key as usize];
                assert!(c.uid == 0 || present && c.uid == session.uid, "its session was there");
                (c.uid, c.session, c.connection) = (session.uid, Some(session), Some(connection));
                (c.attaching, c.forgot) = (false, false);
                assert!(present || self.used.insert(session.uid), "uid {:?} again", uid_parts(session.uid));
                self.sessions.insert(session.uid);
                self.step(p, Input::Opened { session }, None);
            }
            Effect::Deliver(d) => {
                let c = &mut self.clients[d.connection.key as usize];
                assert_eq!(Some(d.connection), c.connection, "to a connection that is there");
                let body = match &d.body {
                    Body::Current => current.unwrap(),
                    Body::Stored(m) => body_of(m.view().payload),
                };
                let key = (c.uid, body);
                assert!(!self.released.contains(&key), "delivered again: {key:?}");
                let queue = self.partitions[p].state().session(c.session.unwrap().slot).map(|s| &s.queue);
                let index = queue.and_then(|q| q.index_of(d.id)).unwrap();
                self.delivered.entry((c.uid, d.id)).and_modify(|i| *i = index.max(*i)).or_insert(index);
                if d.qos == QoS::ExactlyOnce && !self.given.contains(&key) {
                    self.must.insert(key);
                }
                c.inbox.push((d.id, d.qos, body));
            }
            Effect::Pubrel { connection, id, .. } => {
                let c = &mut self.clients[connection.key as usize];
                self.released.extend(c.received.get(&id).map(|body| (c.uid, *body)));
                c.releases.push(id);
            }
            Effect::Pubcomp { connection, id, .. } => {
                let c = &mut self.clients[connection.key as usize];
                c.outgoing.remove(&id);
                c.releasing.remove(&id);
                c.pubrels.remove(&id);
            }
            Effect::Held { token, origin } => self.fan_out(token, origin),
            Effect::Answer { token, outcome } if !outcome.disk_failed => self.answered(token.number as usize),
            Effect::Fenced { question } => self.answered(question),
            Effect::Fetch { session, wanted } => self.fetches.push((p, session, wanted)),
            Effect::Again { session } => self.step(p, Input::Resume { session }, None),
            Effect::Dropped { reason, .. } => {
                assert!(matches!(reason, DropReason::SessionEnded | DropReason::Disk), "{reason:?}");
            }
            Effect::Close { reason, .. } => panic!("closed: {reason:?}"),
            _ => {}
        }
    }

    fn answered(&mut self, number: usize) {
        match &mut self.asked[number] {
            Asked::Publish { parts, to, publisher, body } => {
                *parts -= 1;
                if *parts > 0 {
                    return;
                }
                for key in to.iter().filter(|key| !self.given.contains(key) && !self.ended.contains(&key.0)) {
                    self.must.insert(*key);
                }
                let held = publisher.and_then(|(i, id)| self.clients[i].outgoing.get_mut(&id));
                // the answer to a repeat may come when the identifier means another message
                held.into_iter().filter(|held| held.0 == *body).for_each(|held| held.2 = true);
            }
            Asked::Retain { topic, version } => {
                let register = &mut self.retained[*topic];
                register.acked = register.acked.max(*version);
            }
            Asked::Subscribe { uid, topic, version } => {
                if let Some(register) = self.subscriptions.get_mut(&(*uid, *topic)) {
                    register.acked = register.acked.max(*version);
                }
            }
        }
    }

    /// An online client, if the one that was drawn is.
    fn online(&mut self) -> Option<(usize, SessionRef, ConnectionId)> {
        let i = self.r.below(CLIENTS);
        self.clients[i].session.zip(self.clients[i].connection).map(|(s, c)| (i, s, c))
    }

    fn attach(&mut self) {
        let i = self.r.below(CLIENTS);
        let clean = self.r.one_in(8) || self.clients[i].forgot;
        let c = &mut self.clients[i];
        if c.attaching || c.connection.is_some() {
            return;
        }
        c.attaching = true;
        if clean {
            self.sessions.remove(&c.uid);
            self.ended.insert(c.uid);
            self.must.retain(|key| key.0 != c.uid);
            *c = Client { attaching: true, forgot: true, ..Client::default() };
        }
        let connection = ConnectionId { lane: 0, key: i as u32, generation: self.asked.len() as u32 };
        let attach = Attach {
            connection,
            client_id: format!("c{i}").into(),
            clean,
            expiry_s: NEVER,
            receive_maximum: 1 + self.r.below(8) as u16,
            will: None,
            rules: roostmq_engine::access::Rules::default(),
            username: None,
            maker: 0,
        };
        self.step(i % PARTITIONS, Input::Attach(Box::new(attach)), None);
    }

    fn detach(&mut self) {
        let Some((i, session, connection)) = self.online() else { return };
        let c = &mut self.clients[i];
        (c.session, c.connection, c.inbox, c.releases) = (None, None, Vec::new(), Vec::new());
        c.pubrels.clear();
        c.outgoing.values_mut().for_each(|o| o.3 = true);
        let (client_id, ending) = (&*format!("c{i}"), Ending::default());
        self.step(i % PARTITIONS, Input::Detach { session: Some(session), client_id, connection, ending }, None);
    }

    /// Which message this is, in memory or on the disk.
    fn body_in(&self, e: &Entry) -> Option<u64> {
        let body = e.body.clone().or_else(|| fetch(&self.disk, e.at, e.len));
        body.map(|m| body_of(m.view().payload))
    }

    fn publish(&mut self, body: u64, topic: usize, token: Token, origin: Origin, publisher: Option<(usize, u16)>) {
        let mut payload = body.to_be_bytes().to_vec();
        payload.resize(8 + (body as usize * 37) % self.padding, 1);
        let qos = if publisher.is_some() { QoS::ExactlyOnce } else { QoS::AtLeastOnce };
        let mut head = Head::default();
        (head.qos, head.origin, head.publisher) = (qos, origin, 99);
        let message = Inbound::new(Message { head, topic: TOPICS[topic], props: &[], payload: &payload });
        let (mut to, mut fan) = (Vec::new(), Vec::new());
        for (number, p) in (0..).zip(&self.partitions) {
            let mut targets = Vec::new();
            for (slot, s) in p.state().each() {
                let Some(sub) = s.subscriptions.get(TOPICS[topic]) else { continue };
                let m = Match { qos: sub.qos, no_local: false, retain_as_published: false, id: sub.id };
                let matches = std::iter::once(m).collect();
                targets.push(Target { partition: number, slot, group: false, matches });
                // a repeated publish is not for those who have subscribed since, but for those who have it
                let has = |e: &Entry| e.needs_body() && self.body_in(e) == Some(body);
                let wanted = !p.state().taken(origin) || s.queue.iter().any(|(_, e)| has(e));
                to.extend(wanted.then_some((s.uid, body)));
            }
            fan.push(targets);
        }
        let parts = fan.iter().filter(|t| !t.is_empty()).count() + usize::from(publisher.is_some());
        self.asked[token.number as usize] = Asked::Publish { parts, to, publisher, body };
        for (p, targets) in fan.iter().enumerate().filter(|(_, t)| !t.is_empty()) {
            let input = Input::Publish { message: &message, targets, token: Some(token) };
            self.step(p, input, Some(body));
        }
    }

    fn ask(&mut self, publisher: Option<(usize, u16)>) -> usize {
        self.asked.push(Asked::Publish { parts: usize::MAX, to: Vec::new(), publisher, body: 0 });
        self.asked.len() - 1
    }

    fn publish_once(&mut self) {
        let Some((_, _, connection)) = self.online() else { return };
        let (number, topic) = (self.ask(None), self.r.below(TOPICS.len()));
        let token = Token { connection, number: number as u64, ask: 0 };
        self.publish(number as u64, topic, token, Origin::default(), None);
    }

    /// QoS 2: a new identifier, or one again that has no PUBREC: on a new connection it must come, on the same one it may.
    fn hold(&mut self) {
        let Some((i, ..)) = self.online() else { return };
        let (id, topic) = (1 + self.r.below(6) as u16, self.r.below(TOPICS.len()));
        let held = self.clients[i].outgoing.get_mut(&id);
        if held.is_none_or(|h| !h.2 && (std::mem::take(&mut h.3) || self.r.one_in(3))) {
            self.hold_as(i, id, topic);
        }
    }

    fn hold_as(&mut self, i: usize, id: u16, topic: usize) {
        let c = &mut self.clients[i];
        let (session, connection) = (c.session.unwrap(), c.connection.unwrap());
        c.outgoing.entry(id).or_insert((self.asked.len() as u64, topic, false, false));
        let token = Token { connection, number: self.ask(Some((i, id))) as u64, ask: 0 };
        self.step(i % PARTITIONS, Input::Hold { session, id, token }, None);
    }

    fn fan_out(&mut self, token: Token, origin: Origin) {
        self.collect(); // the record of the identifier lies before everything that the fan-out writes
        let number = token.number as usize;
        let Asked::Publish { publisher: Some((i, id)), .. } = self.asked[number] else { panic!() };
        let (body, topic, ..) = self.clients[i].outgoing[&id];
        let before = self.origins.insert((origin.uid, origin.n), body);
        assert!(before.is_none_or(|b| b == body), "number {} of an origin is {before:?} and {body}", origin.n);
        self.publish(body, topic, token, origin, Some((i, id)));
        self.step(i % PARTITIONS, Input::Fence { question: number }, None);
    }

    fn release(&mut self) {
        let Some((i, session, connection)) = self.online() else { return };
        let c = &mut self.clients[i];
        let due = c.outgoing.iter().find(|(id, o)| o.2 && !c.pubrels.contains(id));
        let Some(id) = due.map(|(id, _)| *id) else { return };
        c.releasing.insert(id);
        c.pubrels.insert(id);
        self.step(i % PARTITIONS, Input::Release { session, connection, id, answer: true }, None);
    }

    fn acknowledge(&mut self) {
        let release = self.r.one_in(2);
        let Some((i, session, connection)) = self.online() else { return };
        let c = &mut self.clients[i];
        let (kind, id) = if release && !c.releases.is_empty() {
            (AckKind::Pubcomp, c.releases.remove(0))
        } else if !c.inbox.is_empty() {
            let (id, qos, body) = c.inbox.remove(0);
            self.given.insert((c.uid, body));
            self.must.remove(&(c.uid, body));
            if qos == QoS::ExactlyOnce {
                c.received.insert(id, body);
            }
            (if qos == QoS::ExactlyOnce { AckKind::Pubrec } else { AckKind::Puback }, id)
        } else {
            return;
        };
        self.step(i % PARTITIONS, Input::Ack { session, connection, kind, id, reason: Reason::SUCCESS }, None);
    }

    fn subscribe(&mut self) {
        let Some((i, session, _)) = self.online() else { return };
        let (p, topic, number) = (i % PARTITIONS, self.r.below(TOPICS.len()), self.ask(None));
        let qos = [QoS::AtLeastOnce, QoS::ExactlyOnce][self.r.below(2)];
        let (mut out, id) = (Effects::new(), number as u32 + 1);
        let register = self.subscriptions.entry((session.uid, topic)).or_default();
        let version = if self.r.one_in(5) {
            self.partitions[p].unsubscribe(self.now_ms, session, TOPICS[topic], &mut out);
            register.write(None)
        } else {
            let subscription = Subscription { qos, id, ..Subscription::default() };
            let ask = Ask { filter: TOPICS[topic], subscription };
            self.partitions[p].subscribe(self.now_ms, session, &ask, &mut out);
            register.write(Some(u64::from(id)))
        };
        self.asked[number] = Asked::Subscribe { uid: session.uid, topic, version };
        self.step(p, Input::Fence { question: number }, None);
    }

    fn retain(&mut self) {
        let Some((_, _, connection)) = self.online() else { return };
        let (topic, number, clear) = (self.r.below(TOPICS.len()), self.ask(None), self.r.one_in(3));
        if self.rules.disk_failing.load(Ordering::Relaxed) {
            return;
        }
        let version = self.retained[topic].write((!clear).then_some(number as u64));
        self.asked[number] = Asked::Retain { topic, version };
        let payload = if clear { Vec::new() } else { (number as u64).to_be_bytes().to_vec() };
        let mut head = Head::default();
        (head.qos, head.retain, head.publisher) = (QoS::AtLeastOnce, true, 99);
        let message = Inbound::new(Message { head, topic: TOPICS[topic], props: &[], payload: &payload });
        let token = Some(Token { connection, number: number as u64, ask: 0 });
        self.step(topic % PARTITIONS, Input::Retain { message: &message, token }, None);
    }

    fn fetched(&mut self) {
        if self.fetches.is_empty() {
            return;
        }
        let (p, session, wanted) = self.fetches.remove(0);
        let bodies = wanted.iter().map(|w| (w.index, w.at, fetch(&self.disk, w.at, w.len))).collect();
        self.step(p, Input::Fetched { session, bodies }, None);
    }

    fn bring_online(&mut self, i: usize) {
        while self.clients[i].connection.is_none() {
            self.attach();
            self.quiesce();
        }
    }

    /// The first client is online, with a subscription at QoS 1 that is safe.
    fn one_subscriber(&mut self) {
        self.bring_online(0);
        let session = self.clients[0].session.unwrap();
        let subscription = Subscription { qos: QoS::AtLeastOnce, ..Subscription::default() };
        let ask = Ask { filter: TOPICS[0], subscription };
        self.partitions[0].subscribe(self.now_ms, session, &ask, &mut Effects::new());
        self.quiesce();
    }

    /// Messages for the first client, which acknowledges each that it gets; `safe`: they are, their ends are not.
    fn publish_and_acknowledge(&mut self, n: usize, safe: bool) {
        for _ in 0..n {
            let number = self.ask(None);
            let connection = self.clients[0].connection.unwrap();
            let token = Token { connection, number: number as u64, ask: 0 };
            self.publish(number as u64, 0, token, Origin::default(), None);
            if safe {
                self.quiesce();
            }
            self.fetched();
            while !self.clients[0].inbox.is_empty() {
                self.acknowledge();
            }
        }
    }
}
