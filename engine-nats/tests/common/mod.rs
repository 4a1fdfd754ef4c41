//! Real nats-servers on the loopback, ended with their value, and a listener for what a log tells.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, dead_code)]

use std::collections::HashMap;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use roostmq_engine::log::{Batch, ClusterLogEvent, ClusterLogNotify, ClusterLogState};
use roostmq_engine_nats::ask::Names;
use roostmq_engine_nats::connect::Access;
use roostmq_engine_nats::log::Options;
use roostmq_engine_nats::stream::{Needs, SyncNeed};

/// Bound of every wait: reached only where something is broken.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// The binary, from `ROOST_NATS_SERVER` or PATH. Without one a test ends with a word; `tests/cluster/test_nats_log.py` finds
/// one, runs these tests with it, and fails where there is none and `ROOST_REQUIRE_NATS=1`.
pub fn binary() -> Option<PathBuf> {
    let named = std::env::var_os("ROOST_NATS_SERVER").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = named.or_else(|| std::env::split_paths(&path).map(|d| d.join("nats-server")).find(|f| f.exists()));
    if found.is_none() {
        eprintln!("not run: no nats-server (ROOST_NATS_SERVER or PATH)");
    }
    found
}

pub struct Server {
    child: Option<Child>,
    pub port: u16,
    config: PathBuf,
}

pub struct Servers {
    binary: PathBuf,
    pub dir: PathBuf,
    pub all: Vec<Server>,
}

fn ports(n: usize) -> Vec<u16> {
    let held: Vec<_> = (0..n).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    held.iter().map(|l| l.local_addr().unwrap().port()).collect()
}

impl Servers {
    /// Makes their files; `more` is put into each configuration. None runs yet.
    pub fn new(name: &str, count: usize, sync: &str, more: &str) -> Option<Self> {
        let binary = binary()?;
        let dir = std::env::temp_dir().join(format!("roost-nats-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).unwrap();
        let (clients, routes) = (ports(count), ports(count));
        let urls: Vec<_> = routes.iter().map(|r| format!("nats-route://127.0.0.1:{r}")).collect();
        let all = (0..count)
            .map(|n| {
                let config = dir.join(format!("n{n}.conf"));
                let cluster = format!("cluster {{ name: c, listen: 127.0.0.1:{}, routes: [{}] }}", routes[n], urls.join(", "));
                let text = format!(
                    "server_name: n{n}\nlisten: 127.0.0.1:{}\njetstream {{ store_dir: \"{}/n{n}\"\n {sync} }}\n{}\n{more}\n",
                    clients[n],
                    dir.display(),
                    if count > 1 { &cluster } else { "" }
                );
                std::fs::write(&config, text).unwrap();
                Server { child: None, port: clients[n], config }
            })
            .collect();
        Some(Self { binary, dir, all })
    }

    pub fn start(&mut self, n: usize) {
        let out = std::fs::File::options().create(true).append(true).open(self.dir.join(format!("n{n}.log"))).unwrap();
        let mut command = Command::new(&self.binary);
        command.arg("-c").arg(&self.all[n].config).stdout(Stdio::null()).stderr(out);
        self.all[n].child = Some(command.spawn().unwrap());
    }

    pub fn start_all(&mut self) {
        (0..self.all.len()).for_each(|n| self.start(n));
    }

    /// kill -9.
    pub fn kill(&mut self, n: usize) {
        if let Some(mut child) = self.all[n].child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    pub fn kill_all(&mut self) {
        (0..self.all.len()).for_each(|n| self.kill(n));
    }

    /// Stops or continues a process.
    pub fn signal(&self, n: usize, signal: &str) {
        if let Some(child) = &self.all[n].child {
            Command::new("kill").arg(format!("-{signal}")).arg(child.id().to_string()).status().unwrap();
        }
    }

    pub fn urls(&self) -> Vec<String> {
        self.all.iter().map(|s| format!("nats://127.0.0.1:{}", s.port)).collect()
    }

    pub fn access(&self) -> Access {
        Access { urls: self.urls(), name: "test".to_owned(), ..Access::default() }
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.kill_all();
        if !std::thread::panicking() {
            let _ = std::fs::remove_dir_all(&self.dir);
        }
    }
}

pub fn names(streams: u16) -> Names {
    Names { cluster: "t".to_owned(), streams, api: "$JS.API".to_owned() }
}

pub fn options(access: Access, streams: u16, notify: ClusterLogNotify) -> Options {
    let servers = access.urls.len();
    Options {
        access,
        system: None,
        names: names(streams),
        needs: Needs { replicas: None, servers, max_bytes: 1 << 30, create: true, sync: SyncNeed::Asserted },
        patience: Duration::from_secs(2),
        idle: Duration::from_millis(500),
        cache: None,
        notify,
    }
}

/// Everything that a log has told.
#[derive(Default)]
pub struct Heard {
    events: Mutex<Vec<ClusterLogEvent>>,
    bell: Condvar,
}

impl Heard {
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    pub fn notify(self: &Arc<Self>) -> ClusterLogNotify {
        let this = Arc::clone(self);
        Arc::new(move |event| {
            this.events.lock().unwrap().push(event);
            this.bell.notify_all();
        })
    }

    pub fn all(&self) -> Vec<ClusterLogEvent> {
        self.events.lock().unwrap().clone()
    }

    /// Waits until something is true of what was told, and returns what it says.
    pub fn wait<T>(&self, what: &str, mut find: impl FnMut(&[ClusterLogEvent]) -> Option<T>) -> T {
        let end = Instant::now() + PATIENCE;
        let mut events = self.events.lock().unwrap();
        loop {
            if let Some(found) = find(&events) {
                return found;
            }
            let left = end.saturating_duration_since(Instant::now());
            assert!(
                !left.is_zero(),
                "waited in vain for {what}; last: {:?}",
                events.iter().rev().take(5).collect::<Vec<_>>()
            );
            events = self.bell.wait_timeout(events, left).unwrap().0;
        }
    }

    pub fn event(&self, what: &str, is: impl Fn(&ClusterLogEvent) -> bool) -> ClusterLogEvent {
        self.wait(what, |events| events.iter().find(|e| is(e)).cloned())
    }

    pub fn ready(&self) {
        self.wait("ready", |events| {
            let last = events.iter().rev().find(|e| matches!(e, ClusterLogEvent::State(_)));
            (last == Some(&ClusterLogEvent::State(ClusterLogState::Ready))).then_some(())
        });
    }

    /// Index of the next record, once a partition is fenced.
    pub fn fenced(&self, p: u16) -> u64 {
        self.wait("fenced", |events| {
            events.iter().find_map(|e| match e {
                ClusterLogEvent::Fenced { partition, next, .. } if *partition == p => Some(*next),
                ClusterLogEvent::Damaged { why, .. } => panic!("{why}"),
                _ => None,
            })
        })
    }

    /// Records that were read of a partition, in order.
    pub fn read(&self, p: u16) -> Vec<u64> {
        let events = self.events.lock().unwrap();
        let appends = events.iter().filter_map(|e| match e {
            ClusterLogEvent::Read { partition, appends } if *partition == p => Some(appends),
            _ => None,
        });
        appends.flatten().flat_map(|a| ids(&a.records)).collect()
    }

    /// Batches of a partition that are safe.
    pub fn safe(&self, p: u16) -> Vec<u64> {
        let events = self.events.lock().unwrap();
        let safe = events.iter().filter_map(|e| match e {
            ClusterLogEvent::Safe { partition, number, .. } if *partition == p => Some(*number),
            _ => None,
        });
        safe.collect()
    }
}

pub fn ids(records: &[u8]) -> Vec<u64> {
    records.chunks(8).map(|b| u64::from_le_bytes(b.try_into().unwrap())).collect()
}

/// A batch of one record that says who wrote it.
pub fn batch(partition: u16, number: u64, first: u64, id: u64) -> Batch {
    Batch { partition, number, first, count: 1, records: id.to_le_bytes().to_vec() }
}

/// What each stream's leader is called, as one of the servers says.
pub fn leaders(servers: &Servers, streams: u16) -> HashMap<u16, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut found = HashMap::new();
        let Ok(client) = async_nats::connect(servers.urls()).await else { return found };
        for s in 0..streams {
            let subject = format!("$JS.API.STREAM.INFO.{}", names(streams).stream(s));
            let asked = tokio::time::timeout(Duration::from_secs(1), client.request(subject, "".into()));
            let Ok(Ok(answer)) = asked.await else { continue };
            let info: serde_json::Value = serde_json::from_slice(&answer.payload).unwrap();
            if let Some(leader) = info.pointer("/cluster/leader").and_then(|l| l.as_str()) {
                found.insert(s, leader.to_owned());
            }
        }
        found
    })
}

/// One request to JetStream.
pub fn api(servers: &Servers, what: &str, body: &serde_json::Value) -> serde_json::Value {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let client = async_nats::connect(servers.urls()).await.unwrap();
        let answer = client.request(format!("$JS.API.{what}"), body.to_string().into()).await.unwrap();
        serde_json::from_slice(&answer.payload).unwrap()
    })
}
