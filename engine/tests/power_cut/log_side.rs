// The log and its checkpoints; part of `main.rs`.

/// The log's side.
impl World {
    /// Each partition is a lane: it hands over a piece, the last one of its walk with what the walk found.
    fn collect(&mut self) {
        for (lane, p) in (0..).zip(&mut self.partitions) {
            let done = self.walking.as_mut().filter(|w| w.walks[usize::from(lane)].1);
            let walked = done.and_then(|w| w.walked[usize::from(lane)].take());
            let batches: Vec<_> = p.take_batch().into_iter().collect();
            if walked.is_some() || !batches.is_empty() {
                self.waiting.push(Piece { lane, now_ms: self.now_ms, epoch: self.incarnation, batches, walked });
            }
        }
    }

    fn write(&mut self) {
        if self.writing.is_empty() {
            self.writing = std::mem::take(&mut self.waiting);
        }
        if self.writing.is_empty() {
            return;
        }
        let result = self.writer.write(&self.writing, self.now_ms, true);
        self.rules.disk_failing.store(result.is_err(), Ordering::Relaxed);
        let Ok(located) = result else { return };
        let walks: Vec<Walked> = self.writing.drain(..).filter_map(|piece| piece.walked).collect();
        for l in located {
            let input = Input::Safe { number: l.number, up_to: l.up_to, address: l.address };
            self.step(usize::from(l.partition), input, None);
        }
        for walked in walks {
            let Some(complete) = self.checkpoints.walked(&walked, self.writer.closed()) else { continue };
            self.walking = None;
            self.checkpoint = Some(complete.begin);
            self.checkpoints_done += 1;
            if self.frees && !complete.free.is_empty() {
                self.freed = true;
                let _ = self.writer.give_back(&complete.free);
            }
        }
    }

    fn walk(&mut self) {
        let budget = 1 + self.r.below(400);
        if self.walking.is_none() {
            if self.writer.end() == 0 {
                return; // nothing was written yet: there is no address to begin at
            }
            let mut emptying = Emptying::new(self.checkpoints.to_empty());
            while !emptying.read_some(&self.writer) {}
            let emptied = emptying.done();
            let number = self.checkpoints.begin(self.writer.end(), emptied.keys().copied().collect());
            let walked = (0..PARTITIONS).map(|_| Some(Walked { number, ..Walked::default() })).collect();
            let walks = (0..PARTITIONS).map(|_| (Walk::default(), false)).collect();
            self.walking = Some(Walking { walks, emptied, walked });
        }
        let (Some(w), first) = (&mut self.walking, self.r.below(PARTITIONS)) else { return };
        let order = (0..PARTITIONS).map(|i| (first + i) % PARTITIONS);
        if let Some((p, walked)) = order.filter(|p| !w.walks[*p].1).find_map(|p| Some((p, w.walked[p].take()?))) {
            let walked = w.walked[p].insert(walked);
            w.walks[p].1 = self.partitions[p].walk(&mut w.walks[p].0, &w.emptied, walked, budget);
        }
        self.collect();
    }

    fn act(&mut self) {
        self.now_ms += self.r.below(3) as u64;
        match self.r.below(24) {
            0 | 1 => self.attach(),
            2 if self.r.one_in(2) => self.detach(),
            3..=6 => self.publish_once(),
            7 | 8 => self.hold(),
            9 => self.release(),
            10..=13 => self.acknowledge(),
            14 | 15 => self.subscribe(),
            16 => self.retain(),
            17 => self.fetched(),
            18 => self.walk(),
            19 => self.collect(),
            n => {
                // the log takes what was handed over, whether more is about to come or not
                if n > 20 {
                    self.collect();
                }
                self.write();
            }
        }
    }

    fn dead(&self) -> bool {
        self.disk.0.lock().unwrap().dead
    }

    /// Everything is written: the partitions are what their log says, from its beginning and from the checkpoint.
    fn quiesce(&mut self) {
        for _ in 0..500 {
            self.collect();
            self.write();
            if self.dead() {
                return;
            }
            if self.writing.is_empty() && self.waiting.is_empty() {
                break;
            }
        }
        let live: Vec<_> = self.partitions.iter().map(|p| sum(p.state())).collect();
        let (scan, all) = replayed(&self.disk, self.checkpoint);
        assert!(scan.damaged.is_empty(), "nothing was damaged: {:?}", scan.damaged);
        assert_eq!(live, sums(&all), "as the log says from {:x?}", self.checkpoint);
        if !self.freed {
            assert_eq!(live, sums(&replayed(&self.disk, None).1), "as the whole log says");
        }
    }
}
