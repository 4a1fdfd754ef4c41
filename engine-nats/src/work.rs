//! The thread of the log: takes commands, carries out what the chains ask for, tells what comes of it. Everything is one
//! loop over commands, finished requests and a clock; nothing in it waits for a single partition.

use std::collections::{HashMap, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use async_nats::{Client, Event};
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use roostmq_engine::log::{At, Batch, ClusterLogEvent, ClusterLogState, Fence};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::ask::Asker;
use crate::cache::Cache;
use crate::chain::{Action, Answer, Chain, Seen};
use crate::log::{BATCH_BYTES, Command, NatsStats, Options};
use crate::read::{WIDTH, next_width};
use crate::stream::{Suits, SyncNeed};
use crate::{read, stream, sync};

/// How soon a place that does not suit is looked at again.
const AGAIN: Duration = Duration::from_secs(1);
/// How often one that suits is looked at.
const SUITS_CHECK: Duration = Duration::from_secs(60);
/// First and longest wait before something is asked again.
const PAUSE: Duration = Duration::from_millis(25);
const PAUSE_MAX: Duration = Duration::from_secs(1);

type Doing = Pin<Box<dyn Future<Output = Done> + Send>>;

/// What a finished request brings; chains by partition and number, so that one that was replaced hears nothing.
enum Done {
    Appended(u16, u64, Answer, Sent),
    Looked(u16, u64, Option<Seen>),
    Trimmed(u16, u64, At, bool),
    /// Number of the check; an older one is not looked at.
    Checked(u64, Suits),
    Told(Vec<ClusterLogEvent>),
}

/// Bytes of an append and when it was sent.
type Sent = (usize, Instant);

struct Writer {
    chain: Chain,
    number: u64,
    /// Batches that are not safe, with the bytes counted for them.
    owed: VecDeque<usize>,
    width: u64,
}

pub(crate) struct Work {
    options: Options,
    inbox: UnboundedReceiver<Command>,
    waiting: Arc<AtomicUsize>,
    stats: Arc<NatsStats>,
    writers: HashMap<u16, Writer>,
    doing: FuturesUnordered<Doing>,
    numbers: u64,
    checks: u64,
    state: Option<ClusterLogState>,
    /// What a server refused last, a missing right for instance: says more than the silence that follows.
    refused: Option<String>,
    /// The place was found to suit: from then on the chains look after themselves.
    open: bool,
    /// Commands that came before that.
    held: Vec<Command>,
    cache: Option<Cache>,
}

impl Work {
    pub(crate) fn new(
        options: Options,
        inbox: UnboundedReceiver<Command>,
        waiting: Arc<AtomicUsize>,
        stats: Arc<NatsStats>,
    ) -> Self {
        let doing = FuturesUnordered::new();
        let (writers, held) = (HashMap::new(), Vec::new());
        Self {
            options,
            inbox,
            waiting,
            stats,
            writers,
            doing,
            numbers: 0,
            checks: 0,
            state: None,
            refused: None,
            open: false,
            held,
            cache: None,
        }
    }

    pub(crate) async fn run(mut self) {
        self.say(ClusterLogState::Away(format!("not connected yet: {:?}", self.options.access.urls)));
        let (heard, mut events) = unbounded_channel();
        self.open_cache();
        let Some(ask) = self.connect(heard).await else { return };
        let system = self.system().await;
        self.check(&ask, system.as_ref(), Duration::ZERO);
        let mut idle = tokio::time::interval(self.options.idle);
        idle.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                command = self.inbox.recv() => match command {
                    Some(command) if self.open => self.command(&ask, command),
                    Some(command) => self.held.push(command),
                    None => break,
                },
                Some(done) = self.doing.next(), if !self.doing.is_empty() => self.done(&ask, system.as_ref(), done),
                Some(event) = events.recv() => self.heard(&ask, system.as_ref(), &event),
                _ = idle.tick() => self.idle(&ask),
            }
        }
    }

    /// `None` if the broker ended before there was anything to connect to.
    async fn connect(&mut self, heard: UnboundedSender<Event>) -> Option<Asker> {
        loop {
            let heard = heard.clone();
            match self.options.access.connect(move |event| drop(heard.send(event))).await {
                Ok(client) => {
                    let (names, patience) = (self.options.names.clone(), self.options.patience);
                    return Some(Asker { client, names, patience });
                }
                Err(why) => self.say(ClusterLogState::Unsuitable(vec![why])),
            }
            let pause = tokio::time::sleep(AGAIN);
            tokio::pin!(pause);
            loop {
                tokio::select! {
                    () = &mut pause => break,
                    command = self.inbox.recv() => self.held.push(command?),
                }
            }
        }
    }

    /// A node whose own files fail goes on without them, and says so.
    fn open_cache(&mut self) {
        match self.options.cache.take().map(Cache::open).transpose() {
            Ok(cache) => self.cache = cache,
            Err(why) => (self.options.notify)(ClusterLogEvent::NotKept(why.to_string())),
        }
    }

    async fn system(&self) -> Option<Client> {
        match (&self.options.system, self.options.needs.sync) {
            (Some(access), SyncNeed::Always) => access.connect(|_| ()).await.ok(),
            _ => None,
        }
    }

    /// What becomes of the connection; `Ready` only comes from a look at the streams.
    fn heard(&mut self, ask: &Asker, system: Option<&Client>, event: &Event) {
        match event {
            Event::Connected => self.check(ask, system, Duration::ZERO),
            Event::Disconnected | Event::Closed | Event::ServerError(_) | Event::ClientError(_) => {
                if matches!(event, Event::ServerError(_)) {
                    self.refused = Some(event.to_string());
                }
                self.say(ClusterLogState::Away(format!("NATS: {event}")));
                self.check(ask, system, AGAIN);
            }
            _ => {}
        }
    }

    /// Looks at the place after a while, instead of the look that is due.
    fn check(&mut self, ask: &Asker, system: Option<&Client>, after: Duration) {
        self.checks += 1;
        self.doing.push(check(self.checks, ask.clone(), self.options.clone(), system.cloned(), after));
    }

    fn say(&mut self, state: ClusterLogState) {
        if self.state.as_ref() != Some(&state) {
            self.state = Some(state.clone());
            (self.options.notify)(ClusterLogEvent::State(state));
        }
    }

    fn command(&mut self, ask: &Asker, command: Command) {
        match command {
            Command::Append(batch) => self.append(ask, batch),
            Command::Fence(fence) => self.fence(ask, fence),
            Command::Release(p) => self.forget(p),
            Command::Read(partition, known) => {
                let (ask, notify) = (ask.clone(), Arc::clone(&self.options.notify));
                self.doing.push(Box::pin(async move { Done::Told(read::read(&ask, partition, known, &notify).await) }));
            }
            Command::Checkpoint(p, at) => {
                if let Some(writer) = self.writers.get_mut(&p) {
                    writer.chain.checkpoint(at);
                }
            }
            Command::Trim(p, before) => self.with(ask, p, |chain| chain.trim(before)),
        }
    }

    fn append(&mut self, ask: &Asker, batch: Batch) {
        let (partition, bytes) = (batch.partition, batch.records.len() + BATCH_BYTES);
        match self.writers.get_mut(&partition) {
            Some(writer) if !writer.chain.gone() => writer.owed.push_back(bytes),
            _ => {
                self.waiting.fetch_sub(bytes, Ordering::Relaxed);
                return;
            }
        }
        self.with(ask, partition, |chain| chain.push(batch));
    }

    fn fence(&mut self, ask: &Asker, fence: Fence) {
        self.forget(fence.partition);
        self.numbers += 1;
        let (chain, actions) = Chain::fence(fence);
        let writer = Writer { chain, number: self.numbers, owed: VecDeque::new(), width: WIDTH };
        self.writers.insert(fence.partition, writer);
        self.stats.partitions.store(self.writers.len() as u64, Ordering::Relaxed);
        self.act(ask, fence.partition, actions);
    }

    /// A partition is written no more from here.
    fn forget(&mut self, partition: u16) {
        if let Some(writer) = self.writers.remove(&partition) {
            self.waiting.fetch_sub(writer.owed.iter().sum(), Ordering::Relaxed);
        }
        self.stats.partitions.store(self.writers.len() as u64, Ordering::Relaxed);
    }

    fn with(&mut self, ask: &Asker, partition: u16, step: impl FnOnce(&mut Chain) -> Vec<Action>) {
        if let Some(writer) = self.writers.get_mut(&partition) {
            let actions = step(&mut writer.chain);
            self.act(ask, partition, actions);
        }
    }

    fn idle(&mut self, ask: &Asker) {
        if self.open {
            let all: Vec<u16> = self.writers.keys().copied().collect();
            all.into_iter().for_each(|p| self.with(ask, p, Chain::idle));
        }
    }

    fn act(&mut self, ask: &Asker, p: u16, actions: Vec<Action>) {
        let Some(writer) = self.writers.get_mut(&p) else { return };
        let (number, width) = (writer.number, writer.width);
        for action in actions {
            match action {
                Action::Append { bytes, expect } => self.doing.push(append(ask.clone(), p, number, bytes, expect)),
                Action::Look { known, tries } => self.doing.push(look(ask.clone(), p, number, (known, width, tries))),
                Action::Trim(before) => self.doing.push(trim(ask.clone(), p, number, before)),
                Action::Keep(at, bytes) => {
                    if let Some(Err(why)) = self.cache.as_mut().map(|cache| cache.keep(at, &bytes)) {
                        self.cache = None;
                        (self.options.notify)(ClusterLogEvent::NotKept(why.to_string()));
                    }
                }
                Action::Tell(event) => {
                    match event {
                        ClusterLogEvent::Safe { .. } => {
                            let bytes = writer.owed.pop_front().unwrap_or(0);
                            self.waiting.fetch_sub(bytes, Ordering::Relaxed);
                        }
                        ClusterLogEvent::Resigned { .. } | ClusterLogEvent::Damaged { .. } => {
                            self.waiting.fetch_sub(writer.owed.drain(..).sum(), Ordering::Relaxed);
                        }
                        _ => {}
                    }
                    (self.options.notify)(event);
                }
            }
        }
    }

    /// The writer that a request was for, if it is still the one.
    fn current(&mut self, p: u16, number: u64) -> Option<&mut Writer> {
        self.writers.get_mut(&p).filter(|w| w.number == number)
    }

    fn done(&mut self, ask: &Asker, system: Option<&Client>, done: Done) {
        match done {
            Done::Appended(p, number, answer, sent) => {
                self.count(&answer, sent);
                if self.current(p, number).is_some() {
                    self.with(ask, p, |chain| chain.answered(&answer));
                }
            }
            Done::Looked(p, number, seen) => {
                if let Some(writer) = self.current(p, number) {
                    writer.width = seen.as_ref().map_or(writer.width, |seen| next_width(writer.width, seen));
                    self.with(ask, p, |chain| chain.looked(seen));
                }
            }
            Done::Trimmed(p, number, before, done) => {
                if done {
                    (self.options.notify)(ClusterLogEvent::Trimmed { partition: p, before });
                } else if self.current(p, number).is_some() {
                    self.with(ask, p, |chain| chain.trim(before));
                }
            }
            Done::Told(events) => events.into_iter().for_each(|event| (self.options.notify)(event)),
            Done::Checked(number, suits) if number == self.checks => self.checked(ask, system, suits),
            Done::Checked(..) => {}
        }
    }

    fn count(&self, answer: &Answer, (bytes, sent): Sent) {
        let add = |counter: &AtomicU64, n: u64| {
            counter.fetch_add(n, Ordering::Relaxed);
        };
        match answer {
            Answer::Stored(_) => {
                add(&self.stats.appends, 1);
                add(&self.stats.bytes, bytes as u64);
                add(&self.stats.append_us, sent.elapsed().as_micros() as u64);
            }
            Answer::WrongLast => add(&self.stats.refused, 1),
            Answer::Full | Answer::Unknown => add(&self.stats.unknown, 1),
        }
    }

    fn checked(&mut self, ask: &Asker, system: Option<&Client>, suits: Suits) {
        let mut after = AGAIN;
        match suits {
            Suits::Yes => {
                after = SUITS_CHECK;
                // a stream that was there once is never made again by this process
                self.options.needs.create = false;
                self.open = true;
                self.refused = None;
                self.say(ClusterLogState::Ready);
                let held = std::mem::take(&mut self.held);
                held.into_iter().for_each(|command| self.command(ask, command));
            }
            Suits::Away(why) => {
                let refused = self.refused.as_ref().map_or_else(String::new, |r| format!(" ({r})"));
                self.say(ClusterLogState::Away(format!("{why}{refused}")));
            }
            Suits::No(wrong) => self.say(ClusterLogState::Unsuitable(wrong)),
        }
        self.check(ask, system, after);
    }
}

fn pause(tries: u32) -> Duration {
    if tries == 0 { Duration::ZERO } else { PAUSE_MAX.min(PAUSE * (1 << tries.min(6))) }
}

fn append(ask: Asker, p: u16, number: u64, bytes: Bytes, expect: Option<At>) -> Doing {
    Box::pin(async move {
        let sent = (bytes.len(), Instant::now());
        Done::Appended(p, number, ask.append(p, bytes, expect).await, sent)
    })
}

fn look(ask: Asker, p: u16, number: u64, (known, width, tries): (At, u64, u32)) -> Doing {
    Box::pin(async move {
        tokio::time::sleep(pause(tries)).await;
        Done::Looked(p, number, ask.look(p, known, width).await)
    })
}

fn trim(ask: Asker, p: u16, number: u64, before: At) -> Doing {
    Box::pin(async move {
        let done = ask.trim(p, before).await;
        if !done {
            tokio::time::sleep(PAUSE_MAX).await;
        }
        Done::Trimmed(p, number, before, done)
    })
}

fn check(number: u64, ask: Asker, options: Options, system: Option<Client>, after: Duration) -> Doing {
    Box::pin(async move {
        tokio::time::sleep(after).await;
        if ask.client.connection_state() != async_nats::connection::State::Connected {
            let away = format!("no server of {:?} can be reached", options.access.urls);
            return Done::Checked(number, Suits::Away(away));
        }
        let sync = match &system {
            Some(system) => Some(sync::read(system).await),
            None => None,
        };
        Done::Checked(number, stream::check(&ask, &options.needs, sync.as_ref()).await)
    })
}
