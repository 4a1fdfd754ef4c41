//! Events on their way to Python: a bounded queue with a descriptor that wakes the reader.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Value, json};

use crate::codec::{Connect, Reason};

/// Events kept until they are taken.
const EVENTS_MAX: usize = 65_536;

/// The queue.
#[derive(Debug)]
pub struct Events {
    queue: Mutex<VecDeque<Value>>,
    suppressed: AtomicU64,
    /// Written when the queue was empty; one byte at most is on its way.
    bell: UnixStream,
    ear: UnixStream,
}

impl Events {
    /// An empty queue.
    ///
    /// # Errors
    /// The operating system refuses the pair of sockets.
    pub fn new() -> std::io::Result<Self> {
        let (bell, ear) = UnixStream::pair()?;
        bell.set_nonblocking(true)?;
        ear.set_nonblocking(true)?;
        Ok(Self { queue: Mutex::default(), suppressed: AtomicU64::new(0), bell, ear })
    }

    /// Readable while there are events.
    #[must_use]
    pub fn fd(&self) -> i32 {
        self.ear.as_raw_fd()
    }

    /// Adds an event, or counts it when nobody listens.
    pub fn push(&self, event: Value) {
        let Ok(mut queue) = self.queue.lock() else { return };
        if queue.len() >= EVENTS_MAX {
            self.suppressed.fetch_add(1, Ordering::Relaxed);
            return;
        }
        queue.push_back(event);
        if queue.len() == 1 {
            let _ = (&self.bell).write(&[1]);
        }
    }

    /// The oldest events as a JSON array.
    #[must_use]
    pub fn take(&self, at_most: usize) -> String {
        let Ok(mut queue) = self.queue.lock() else { return "[]".to_owned() };
        let n = queue.len().min(at_most);
        let mut events: Vec<Value> = queue.drain(..n).collect();
        if queue.is_empty() {
            let mut bytes = [0; 64];
            let _ = (&self.ear).read(&mut bytes);
        }
        drop(queue);
        let suppressed = self.suppressed.swap(0, Ordering::Relaxed);
        if suppressed > 0 {
            events.push(json!({"event": "suppressed", "count": suppressed}));
        }
        Value::Array(events).to_string()
    }

    pub(crate) fn listening(&self, name: &str, kind: &str, address: &str) {
        self.push(json!({"event": "listening", "name": name, "kind": kind, "address": address}));
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of one event")]
    pub(crate) fn connected(
        &self,
        client_id: &str,
        address: &str,
        connect: &Connect<'_>,
        username: Option<&str>,
        present: bool,
        keep_alive_s: u16,
        listener: u16,
    ) {
        self.push(json!({
            "event": "connected", "client_id": client_id, "address": address, "version": connect.version as u8,
            "username": username, "clean": connect.clean, "present": present, "keep_alive_s": keep_alive_s,
            "listener": listener,
        }));
    }

    pub(crate) fn disconnected(&self, client_id: &str, address: &str, text: &str, code: Option<Reason>, by: &str) {
        self.push(json!({
            "event": "disconnected", "client_id": client_id, "address": address, "reason": text,
            "code": code.map(|c| c.0), "by": by,
        }));
    }

    pub(crate) fn refused(&self, client_id: &str, address: &str, reason: Reason) {
        self.push(json!({
            "event": "refused", "client_id": client_id, "address": address, "reason": reason.name(), "code": reason.0,
        }));
    }

    pub(crate) fn socket_closed(&self, address: &str, text: &str) {
        self.push(json!({"event": "socket_closed", "address": address, "reason": text}));
    }

    pub(crate) fn expired(&self, client_id: &str) {
        self.push(json!({"event": "expired", "client_id": client_id}));
    }

    pub(crate) fn reloaded(&self, error: Option<&str>) {
        self.push(json!({"event": "reloaded", "ok": error.is_none(), "error": error}));
    }

    pub(crate) fn lane_failed(&self, lane: u16, error: &str) {
        self.push(json!({"event": "lane_failed", "lane": lane, "error": error}));
    }

    pub(crate) fn damaged(&self, place: &str, what: &str) {
        self.push(json!({"event": "damaged", "where": place, "what": what}));
    }

    pub(crate) fn disk(&self, error: Option<&str>) {
        self.push(json!({"event": "disk", "ok": error.is_none(), "error": error}));
    }

    pub(crate) fn stopped(&self) {
        self.push(json!({"event": "stopped"}));
    }
}
