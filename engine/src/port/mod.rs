//! The door to Python: an engine that starts, takes orders, reports events, and stops. Nothing crosses it per message.
//!
//! The engine never waits for whoever is on the other side: events go into a bounded queue and are counted when it is
//! full. Texts are JSON, drawn in `docs/formats/door.md`.

mod clock;
mod cluster;
mod data;
mod data_build;
mod data_check;
mod data_cluster;
mod data_export;
mod data_format;
mod data_import;
mod event;
mod order;
mod recovery;
mod shared;

pub use clock::Clock;
pub use cluster::OpenLog;
pub use data::{inspect, verify};
pub use data_cluster::import_cluster;
pub use data_export::export;
pub use data_import::import;
pub use event::Events;
pub use order::{Fault, MemberOrder, Order};
pub use shared::{Config, Shared};

use recovery::Opened;
pub use recovery::reread;

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use mio::Poll;

use crate::lane::{Lane, LaneMessage, Mailbox, Recovered};
use crate::net::Listener;
use crate::partition::Resumed;
use crate::ring::{PARTITIONS_MAX, Ring};
use crate::settings::Settings;

/// A running engine: lanes, listeners, and the queue of events.
#[derive(Debug)]
pub struct Engine {
    shared: Arc<Shared>,
    lanes: Vec<JoinHandle<()>>,
}

impl Engine {
    /// Binds every listener and starts the lanes.
    ///
    /// # Errors
    /// A text that says what was wrong, where, and what to do.
    pub fn start(settings: &str) -> Result<Self, String> {
        Self::start_with(settings, None)
    }

    /// The same, with a way to open the log of a cluster.
    ///
    /// # Errors
    /// A text that says what was wrong, where, and what to do.
    pub fn start_with(settings: &str, open: Option<OpenLog<'_>>) -> Result<Self, String> {
        let settings: Settings = serde_json::from_str(settings).map_err(|e| format!("settings: {e}"))?;
        let lanes = match settings.lanes {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            n => n,
        };
        let partitions = if settings.partitions == 0 { 64 } else { settings.partitions.next_power_of_two() };
        let began = std::time::Instant::now();
        let data = settings.data.clone();
        let mut opened = match &data {
            Some(data) => Some(recovery::open(data, partitions, settings.key.as_deref())?),
            None => None,
        };
        let key = opened.as_ref().map(|o| o.key.clone()).or_else(|| settings.key.clone());
        let ring = cluster::ring(Ring::new(shared::key(key.as_deref())?, partitions, lanes), &settings)?;
        let config = Arc::new(Config::load(settings)?);
        let mut listeners = Vec::new();
        for (index, listener) in config.settings.listeners.iter().enumerate() {
            let bound = Listener::bind(listener).map_err(|e| e.to_string())?;
            listeners.push((u16::try_from(index).unwrap_or(0), bound));
        }
        let mut polls = Vec::new();
        let mut mailboxes = Vec::new();
        for _ in 0..ring.lanes() {
            let poll = Poll::new().map_err(|e| format!("no event queue: {e}"))?;
            mailboxes.push(Mailbox::new(&poll).map_err(|e| format!("no waker: {e}"))?);
            polls.push(poll);
        }
        let mut shared = Shared::new(ring, mailboxes, &config).map_err(|e| format!("no event pipe: {e}"))?;
        let resumed = opened.as_ref().map(Opened::resumed).unwrap_or_default();
        let mut recovered: Vec<Recovered> = polls.iter().map(|_| Recovered::new()).collect();
        if let (Some(mut opened), Some(data)) = (opened.take(), &data) {
            shared.clock = Arc::new(opened.clock());
            opened.report(&shared, u64::try_from(began.elapsed().as_millis()).unwrap_or(0));
            recovered = opened.deal(&shared);
            opened.start(data, &mut shared)?;
        }
        if config.settings.cluster.is_some() {
            // deadlines stand in logs that other nodes read
            shared.clock = Arc::new(Clock::resumed(clock::unix_ms(), None));
        }
        let shared = Arc::new(shared);
        for (index, listener) in &listeners {
            let name = config.settings.listeners.get(usize::from(*index)).map_or("", |l| &l.name);
            shared.events.listening(name, listener.kind(), &listener.local_address());
        }
        let mut engine = Self { shared, lanes: Vec::new() };
        cluster::link(&engine.shared, &config, open)?;
        engine.start_lanes(&config, polls, listeners, recovered, resumed)?;
        while !engine.shared.all_ready() {
            if engine.lanes.iter().any(JoinHandle::is_finished) {
                return Err(
                    "a lane failed while the data was recovered; `roost data verify DIR` may say why".to_owned()
                );
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        Ok(engine)
    }

    fn start_lanes(
        &mut self,
        config: &Arc<Config>,
        polls: Vec<Poll>,
        listeners: Vec<(u16, Listener)>,
        recovered: Vec<Recovered>,
        resumed: Resumed,
    ) -> Result<(), String> {
        let mut dealt: Vec<Vec<(u16, Listener)>> = polls.iter().map(|_| Vec::new()).collect();
        for (i, listener) in listeners.into_iter().enumerate() {
            let at = i % dealt.len().max(1);
            if let Some(own) = dealt.get_mut(at) {
                own.push(listener);
            }
        }
        for (((lane, poll), own), recovered) in (0..).zip(polls).zip(dealt).zip(recovered) {
            let (shared, config) = (Arc::clone(&self.shared), Arc::clone(config));
            let number = shared.ring.place(lane);
            let run = move || {
                let mut lane = Lane::new(number, shared, config, poll, recovered);
                lane.wait_with(own);
                lane.resume_sessions(resumed);
                lane.run();
            };
            let builder = std::thread::Builder::new().name(format!("lane-{lane}"));
            self.lanes.push(builder.spawn(run).map_err(|e| format!("no thread: {e}"))?);
        }
        Ok(())
    }

    /// Hands over a JSON array of commands.
    ///
    /// # Errors
    /// The text is not what `docs/formats/door.md` says; nothing of it is done.
    pub fn submit(&self, commands: &str) -> Result<(), String> {
        let orders: Vec<Order> = serde_json::from_str(commands).map_err(|e| format!("command: {e}"))?;
        for order in orders {
            self.give(order)?;
        }
        Ok(())
    }

    fn give(&self, order: Order) -> Result<(), String> {
        match order {
            Order::Stats { id, .. } => {
                self.shared.begin_stats(id);
                self.broadcast(&order);
            }
            Order::Advance { ms } => {
                self.shared.clock.advance(ms);
                self.broadcast(&Order::Wake);
            }
            Order::Reload { settings } => match Config::load(*settings) {
                Ok(config) => {
                    let order = Order::Apply { config: Arc::new(config) };
                    self.broadcast(&order);
                    self.shared.events.reloaded(None);
                }
                Err(error) => self.shared.events.reloaded(Some(&error)),
            },
            Order::Members { version, ref nodes } => {
                self.broadcast(&order);
                cluster::set_members(&self.shared, version, nodes);
            }
            Order::Table { ref partitions, .. } => {
                let count = usize::from(self.shared.ring.partitions());
                if partitions.len() < count || partitions.len() > usize::from(PARTITIONS_MAX) {
                    return Err(format!("table: {count} to {PARTITIONS_MAX} partitions are needed"));
                }
                cluster::set_homes(&self.shared, partitions);
                self.broadcast(&order);
            }
            Order::Bind { slots } => self.shared.links.get().into_iter().for_each(|l| l.bind(slots.clone())),
            Order::Publish { .. } => self.post(self.shared.ring.place(0), order),
            Order::Disconnect { ref client_id, .. } => {
                let lane = self.shared.ring.home(self.shared.ring.partition(client_id));
                match self.shared.ring.here(lane) {
                    Some(_) => self.post(lane, order),
                    None => self.broadcast(&order), // its connection may be here
                }
            }
            Order::Why { ref client_id, .. } => {
                let lane = self.shared.ring.home(self.shared.ring.partition(client_id));
                let here = self.shared.ring.here(lane).is_some();
                self.post(if here { lane } else { self.shared.ring.place(0) }, order);
            }
            Order::Export { id, file } => self.export(id, file),
            Order::Drops { .. } => {
                self.shared.begin_drops(&order);
                self.broadcast(&order);
            }
            other => self.broadcast(&other),
        }
        Ok(())
    }

    /// Writes an export beside the running lanes: what the log holds at this moment. Answers by the event `exported`.
    fn export(&self, id: u64, file: String) {
        let shared = Arc::clone(&self.shared);
        let run = move || {
            let result = match (&shared.log, shared.data.as_ref().and_then(|(log, _)| log.parent())) {
                (Some(log), Some(dir)) => {
                    log.hold(true);
                    std::thread::sleep(Duration::from_millis(100)); // a segment may be on its way out
                    let result = data_export::export(&dir.to_string_lossy(), &file, false);
                    log.hold(false);
                    result
                }
                _ => Err("this broker keeps everything in memory: start it with --data DIR".to_owned()),
            };
            let mut event = serde_json::json!({"event": "exported", "id": id, "ok": result.is_ok(),
                "error": result.as_ref().err(), "sessions": 0, "subscriptions": 0, "messages": 0, "retained": 0});
            let counts = result.ok().and_then(|text| serde_json::from_str::<serde_json::Value>(&text).ok());
            if let (Some(event), Some(serde_json::Value::Object(counts))) = (event.as_object_mut(), counts) {
                event.extend(counts);
            }
            shared.events.push(event);
        };
        drop(std::thread::Builder::new().name("export".to_owned()).spawn(run));
    }

    fn broadcast(&self, order: &Order) {
        for lane in 0..self.shared.ring.lanes() {
            self.post(self.shared.ring.place(lane), order.clone());
        }
    }

    fn post(&self, lane: u16, order: Order) {
        self.shared.post(lane, lane, LaneMessage::Order(order));
    }

    /// What all lanes share.
    #[cfg(test)]
    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// Takes the events since the last call, at most 1,024, as a JSON array.
    #[must_use]
    pub fn poll(&self) -> String {
        self.shared.events.take(1024)
    }

    /// A descriptor that is readable while there are events.
    #[must_use]
    pub fn fd(&self) -> i32 {
        self.shared.events.fd()
    }

    /// Ends every lane at once. A graceful end is the command `stop` before it.
    pub fn stop(&mut self) {
        self.broadcast(&Order::End);
        if let Some(links) = self.shared.links.get() {
            links.close();
        }
        if let Some(log) = &self.shared.log {
            log.end_waiting();
        }
        let me = std::thread::current().id();
        for handle in self.lanes.drain(..) {
            if handle.thread().id() != me {
                let _ = handle.join();
            }
        }
        if let Some(log) = &self.shared.log {
            log.close();
        }
    }

    /// Waits until every lane has ended by itself after the command `stop`.
    #[must_use]
    pub fn wait(&self, at_most: Duration) -> bool {
        let until = std::time::Instant::now() + at_most;
        while std::time::Instant::now() < until {
            if self.lanes.iter().all(JoinHandle::is_finished) {
                return true;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        false
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A name that nobody else has: 128 random bits as text.
#[must_use]
pub fn random_name() -> String {
    let mut bytes = [0u8; 16];
    if getrandom::fill(&mut bytes).is_err() {
        let nanos = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_nanos());
        bytes = nanos.to_le_bytes();
    }
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// The same in the usual form of a UUID, for assigned client ids.
#[must_use]
pub fn random_uuid() -> String {
    let mut name = random_name();
    for at in [20, 16, 12, 8] {
        name.insert(at, '-');
    }
    name
}
