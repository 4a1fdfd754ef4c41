// The log and its checkpoints; part of `main.rs`.

/// The log's side.
impl World {
    fn collect(&mut self) {
        let batches: Vec<_> = self.partitions.iter_mut().filter_map(Partition::take_batch).collect();
        if !batches.is_empty() {
            let (now_ms, epoch) = (self.now_ms, self.incarnation);
            self.waiting.push(Piece { now_ms, epoch, batches, ..Piece::default() });
        }
        if let Some(walking) = &mut self.walking {
            walking.handed = walking.walks.iter().all(|(_, done)| *done);
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
        self.writing.clear();
        for l in located {
            let input = Input::Safe { number: l.number, up_to: l.up_to, address: l.address };
            self.step(usize::from(l.partition), input, None);
        }
        if self.waiting.is_empty() && self.walking.as_ref().is_some_and(|w| w.handed) {
            let walked = self.walking.take().unwrap().walked;
            let complete = self.checkpoints.walked(&walked, self.writer.closed()).unwrap();
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
            self.begin = self.writer.end();
            let number = self.checkpoints.begin(self.begin, emptied.keys().copied().collect());
            let walked = Walked { number, ..Walked::default() };
            let walks = (0..PARTITIONS).map(|_| (Walk::default(), false)).collect();
            self.walking = Some(Walking { walks, emptied, walked, handed: false });
        }
        let Some(w) = &mut self.walking else { return };
        if let Some(p) = w.walks.iter().position(|(_, done)| !done) {
            w.walks[p].1 = self.partitions[p].walk(&mut w.walks[p].0, &w.emptied, &mut w.walked, budget);
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
            _ => {
                self.collect();
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
        let live: Vec<u64> = self.partitions.iter().map(|p| digest(p.state())).collect();
        let (scan, all) = replayed(&self.disk, self.checkpoint);
        assert!(scan.damaged.is_empty(), "nothing was damaged: {:?}", scan.damaged);
        assert_eq!(live, digests(&all), "as the log says from {:x?}", self.checkpoint);
        if !self.freed {
            assert_eq!(live, digests(&replayed(&self.disk, None).1), "as the whole log says");
        }
    }
}
