//! Work that must not stall a lane, on a few threads with a bounded queue: a storm of connects waits here or is told
//! that the server is busy.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};

use super::{Grant, Refusal};

/// The check of one client's credentials.
pub struct Job(Box<dyn FnOnce() -> Result<Grant, Refusal> + Send>);

impl Job {
    pub(super) fn new(work: impl FnOnce() -> Result<Grant, Refusal> + Send + 'static) -> Self {
        Self(Box::new(work))
    }

    /// Does the work, here.
    ///
    /// # Errors
    /// The client may not connect.
    pub fn run(self) -> Result<Grant, Refusal> {
        (self.0)()
    }
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Job")
    }
}

/// The queue is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Busy;

/// Who gets the result.
type Answer = Box<dyn FnOnce(Result<Grant, Refusal>) + Send>;

/// The threads. They end when this is dropped and the queue is empty.
#[derive(Debug)]
pub struct Workers {
    queue: SyncSender<(Job, Box<Delivery>)>,
}

struct Delivery(Answer);

impl fmt::Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Delivery")
    }
}

impl Workers {
    /// Starts threads that share a queue of at most `queue_max` jobs.
    #[must_use]
    pub fn start(threads: usize, queue_max: usize) -> Self {
        let (queue, jobs) = sync_channel(queue_max.max(1));
        let jobs = Arc::new(Mutex::new(jobs));
        for i in 0..threads.max(1) {
            let jobs = Arc::clone(&jobs);
            let _ = std::thread::Builder::new().name(format!("access-{i}")).spawn(move || work(&jobs));
        }
        Self { queue }
    }

    /// Queues a job; never waits.
    ///
    /// # Errors
    /// The queue is full.
    pub fn submit(&self, job: Job, answer: Answer) -> Result<(), Busy> {
        self.queue.try_send((job, Box::new(Delivery(answer)))).map_err(|_| Busy)
    }
}

fn work(jobs: &Mutex<Receiver<(Job, Box<Delivery>)>>) {
    loop {
        let next = match jobs.lock() {
            Ok(jobs) => jobs.recv(),
            Err(_) => return,
        };
        let Ok((job, answer)) = next else { return };
        let result = catch_unwind(AssertUnwindSafe(|| job.run())).unwrap_or(Err(Refusal::NotAuthorized));
        (answer.0)(result);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A job that panics refuses its client and leaves the worker alive; a full queue says so at once.
    #[test]
    fn panics_and_full_queues() {
        let workers = Workers::start(1, 1);
        let (tell, told) = std::sync::mpsc::channel();
        let (begin, wait) = std::sync::mpsc::channel::<()>();
        let answer = |tell: std::sync::mpsc::Sender<bool>| -> Answer {
            Box::new(move |r| tell.send(r.is_ok()).unwrap())
        };
        workers.submit(Job::new(|| panic!("on purpose")), answer(tell.clone())).unwrap();
        assert!(!told.recv().unwrap());
        let job = Job::new(move || {
            wait.recv().unwrap();
            Ok(Grant::default())
        });
        workers.submit(job, answer(tell.clone())).unwrap();
        let mut full = false;
        for _ in 0..3 {
            full |= workers.submit(Job::new(|| Ok(Grant::default())), answer(tell.clone())).is_err();
        }
        assert!(full);
        begin.send(()).unwrap();
        assert!(told.recv().unwrap());
    }
}
