//! Reads message bodies for sessions whose client has come, on a thread of its own, so that no lane waits for a disk.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;

use super::frame::{offset_of, segment_of};
use super::storage::{File, Storage};
use super::{LogEvent, Notify, Wanted};
use crate::channel::SessionRef;
use crate::message::Stored;
use crate::record::{read_record, record_len};

/// Bytes read beyond the body at first: the record's other fields.
const HEAD_BYTES: usize = 256;
const FILES_MAX: usize = 64;

#[derive(Debug)]
struct Request {
    lane: u16,
    session: SessionRef,
    wanted: Vec<Wanted>,
}

#[derive(Debug, Default)]
struct Inbox {
    requests: Vec<Request>,
    closing: bool,
}

/// The reading thread.
#[derive(Debug)]
pub struct LogReader {
    inbox: Arc<(Mutex<Inbox>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

impl LogReader {
    /// Starts the thread.
    ///
    /// # Errors
    /// The operating system refuses a thread.
    pub fn start(storage: Arc<dyn Storage>, notify: Notify) -> std::io::Result<Self> {
        let inbox = Arc::new((Mutex::new(Inbox::default()), Condvar::new()));
        let mine = Arc::clone(&inbox);
        let thread = std::thread::Builder::new().name("log-reader".to_owned()).spawn(move || {
            let mut files: HashMap<u32, Box<dyn File>> = HashMap::new();
            while let Some(requests) = next(&mine) {
                for r in requests {
                    let bodies = r.wanted.iter().map(|w| (w.index, w.at, read(&*storage, &mut files, w))).collect();
                    notify(r.lane, LogEvent::Fetched { session: r.session, bodies });
                }
                // segments come and go; a file that was given back must not be kept open for ever
                files.clear();
            }
        })?;
        Ok(Self { inbox, thread: Some(thread) })
    }

    /// Asks for bodies; the answer comes as an event.
    pub fn fetch(&self, lane: u16, session: SessionRef, wanted: Vec<Wanted>) {
        if let Ok(mut inbox) = self.inbox.0.lock() {
            inbox.requests.push(Request { lane, session, wanted });
        }
        self.inbox.1.notify_one();
    }
}

impl Drop for LogReader {
    fn drop(&mut self) {
        if let Ok(mut inbox) = self.inbox.0.lock() {
            inbox.closing = true;
        }
        self.inbox.1.notify_one();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn next(inbox: &(Mutex<Inbox>, Condvar)) -> Option<Vec<Request>> {
    let mut guard = inbox.0.lock().ok()?;
    while guard.requests.is_empty() {
        if guard.closing {
            return None;
        }
        guard = inbox.1.wait(guard).ok()?;
    }
    Some(std::mem::take(&mut guard.requests))
}

/// Topics of the messages with these bodies, as far as they can be read.
#[must_use]
pub fn topics_at(storage: &dyn Storage, wanted: &[Wanted]) -> Vec<Box<str>> {
    let mut files = HashMap::new();
    let bodies = wanted.iter().filter_map(|w| read(storage, &mut files, w));
    bodies.map(|body| body.view().topic.into()).collect()
}

fn read(storage: &dyn Storage, files: &mut HashMap<u32, Box<dyn File>>, w: &Wanted) -> Option<Stored> {
    let number = segment_of(w.at);
    if !files.contains_key(&number) {
        if files.len() >= FILES_MAX {
            files.clear();
        }
        files.insert(number, storage.open(&super::writer::file_name(number), false).ok()?);
    }
    let file = files.get(&number)?;
    let mut bytes = file.read_at(w.len as usize + HEAD_BYTES, offset_of(w.at).into()).ok()?;
    let whole = record_len(&bytes)?;
    if whole > bytes.len() {
        bytes = file.read_at(whole, offset_of(w.at).into()).ok()?;
    }
    read_record(&bytes).ok().map(|m| Stored::new(&m))
}
