// A disk that forgets, tears and refuses; part of `main.rs`.

/// A small generator of our own, so that a seed says everything.
#[derive(Clone)]
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((self.0 >> 11) % n.max(1) as u64) as usize
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

#[derive(Default)]
struct Inode {
    safe: Vec<u8>,
    now: Vec<u8>,
    unsynced: Vec<(usize, Vec<u8>)>,
}

/// A disk that forgets, tears and refuses.
struct Platter {
    inodes: Vec<Inode>,
    names: BTreeMap<String, usize>,
    safe_names: BTreeMap<String, usize>,
    unsynced_names: Vec<Vec<(String, Option<usize>)>>,
    /// Changes until the power goes.
    left: usize,
    dead: bool,
    /// One operation in so many fails; 0 is none.
    fault_rate: usize,
    r: Random,
}

#[derive(Clone)]
struct Cut(Arc<Mutex<Platter>>);

struct CutFile(Cut, usize);

fn put(into: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    if into.len() < at + bytes.len() {
        into.resize(at + bytes.len(), 0);
    }
    into[at..at + bytes.len()].copy_from_slice(bytes);
}

fn rename(names: &mut BTreeMap<String, usize>, change: &[(String, Option<usize>)]) {
    for (name, inode) in change {
        match inode {
            Some(inode) => drop(names.insert(name.clone(), *inode)),
            None => drop(names.remove(name)),
        }
    }
}

impl Platter {
    /// True if this operation fails. The power may go in it.
    fn fails(&mut self) -> bool {
        self.left = self.left.saturating_sub(1);
        self.dead |= self.left == 0;
        self.dead || self.fault_rate > 0 && self.r.one_in(self.fault_rate)
    }

    fn change_names(&mut self, change: Vec<(String, Option<usize>)>) -> io::Result<()> {
        let (before, fails) = (self.dead, self.fails());
        if before || fails && !self.dead {
            return Err(io::Error::other("names"));
        }
        rename(&mut self.names, &change);
        self.unsynced_names.push(change);
        if self.dead { Err(io::Error::other("dead")) } else { Ok(()) }
    }

    /// Of every unsynced write all, nothing, the beginning or the end has reached the disk.
    fn settle_writes(r: &mut Random, inode: &mut Inode) {
        for (at, bytes) in std::mem::take(&mut inode.unsynced) {
            let torn = r.below(bytes.len() + 1);
            match r.below(4) {
                0 => {}
                1 => put(&mut inode.safe, at, &bytes),
                2 => put(&mut inode.safe, at, &bytes[..torn]),
                _ => put(&mut inode.safe, at + torn, &bytes[torn..]),
            }
        }
    }

    fn power_cut(&mut self) {
        for inode in &mut self.inodes {
            Self::settle_writes(&mut self.r, inode);
            inode.now.clone_from(&inode.safe);
        }
        for change in std::mem::take(&mut self.unsynced_names) {
            if self.r.one_in(2) {
                rename(&mut self.safe_names, &change);
            }
        }
        self.names.clone_from(&self.safe_names);
        (self.dead, self.left) = (false, usize::MAX);
    }
}

impl File for CutFile {
    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        let mut p = self.0.0.lock().unwrap();
        if p.dead {
            return Err(io::Error::other("dead"));
        }
        let fails = p.fails();
        let len = if fails && !p.dead { p.r.below(bytes.len()) } else { bytes.len() };
        let inode = &mut p.inodes[self.1];
        put(&mut inode.now, at as usize, &bytes[..len]);
        inode.unsynced.push((at as usize, bytes[..len].to_vec()));
        if fails { Err(io::Error::other("no space")) } else { Ok(()) }
    }

    fn read_at(&self, len: usize, at: u64) -> io::Result<Vec<u8>> {
        let p = self.0.0.lock().unwrap();
        let bytes = p.inodes[self.1].now.get(at as usize..).unwrap_or(&[]);
        Ok(bytes[..len.min(bytes.len())].to_vec())
    }

    fn sync(&self) -> io::Result<()> {
        let mut p = self.0.0.lock().unwrap();
        if p.dead {
            return Err(io::Error::other("dead"));
        }
        let (fails, mut r) = (p.fails(), p.r.clone());
        p.r.below(2);
        let dead = p.dead;
        let inode = &mut p.inodes[self.1];
        if fails {
            // pages count as clean after a failed sync: what is not on the disk now will never be
            if !dead {
                Platter::settle_writes(&mut r, inode);
            }
            return Err(io::Error::other("sync"));
        }
        for (at, bytes) in std::mem::take(&mut inode.unsynced) {
            put(&mut inode.safe, at, &bytes);
        }
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.0.lock().unwrap().inodes[self.1].now.len() as u64)
    }
}

impl Storage for Cut {
    fn open(&self, name: &str, create: bool) -> io::Result<Box<dyn File>> {
        let mut p = self.0.lock().unwrap();
        if let Some(&inode) = p.names.get(name) {
            return Ok(Box::new(CutFile(self.clone(), inode)));
        }
        if !create {
            return Err(io::ErrorKind::NotFound.into());
        }
        let inode = p.inodes.len();
        p.inodes.push(Inode::default());
        p.change_names(vec![(name.to_owned(), Some(inode))])?;
        Ok(Box::new(CutFile(self.clone(), inode)))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.0.lock().unwrap().names.keys().cloned().collect())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut p = self.0.lock().unwrap();
        let inode = *p.names.get(from).ok_or(io::ErrorKind::NotFound)?;
        p.change_names(vec![(from.to_owned(), None), (to.to_owned(), Some(inode))])
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.0.lock().unwrap().change_names(vec![(name.to_owned(), None)])
    }

    fn sync_names(&self) -> io::Result<()> {
        let mut p = self.0.lock().unwrap();
        if p.dead || p.fails() {
            return Err(io::Error::other("sync of names"));
        }
        for change in std::mem::take(&mut p.unsynced_names) {
            rename(&mut p.safe_names, &change);
        }
        Ok(())
    }
}
