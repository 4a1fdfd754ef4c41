//! Work that must not stall a lane, on a few threads with a bounded queue: a storm of connects waits here or is told
//! that the server is busy.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
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

struct Task {
    job: Job,
    answer: Answer,
}

/// The threads. When this is dropped they refuse what still waits, without looking at it, and end.
pub struct Workers {
    queue: SyncSender<Task>,
    ending: Arc<AtomicBool>,
}

impl fmt::Debug for Workers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Workers")
    }
}

impl Workers {
    /// Starts threads that share a queue of at most `queue_max` jobs.
    #[must_use]
    pub fn start(threads: usize, queue_max: usize) -> Self {
        let (queue, tasks) = sync_channel(queue_max.max(1));
        let (tasks, ending) = (Arc::new(Mutex::new(tasks)), Arc::new(AtomicBool::new(false)));
        for i in 0..threads.max(1) {
            let (tasks, ending) = (Arc::clone(&tasks), Arc::clone(&ending));
            // without any thread the queue has no reader, and `submit` says Busy
            let _ = std::thread::Builder::new().name(format!("access-{i}")).spawn(move || work(&tasks, &ending));
        }
        Self { queue, ending }
    }

    /// Queues a job; never waits.
    ///
    /// # Errors
    /// The queue is full.
    pub fn submit(&self, job: Job, answer: Answer) -> Result<(), Busy> {
        self.queue.try_send(Task { job, answer }).map_err(|_| Busy)
    }
}

impl Drop for Workers {
    /// Does not wait for the threads: the last owner may be one of them.
    fn drop(&mut self) {
        self.ending.store(true, Ordering::Relaxed);
    }
}

fn work(tasks: &Mutex<Receiver<Task>>, ending: &AtomicBool) {
    loop {
        let next = match tasks.lock() {
            Ok(tasks) => tasks.recv(),
            Err(_) => return,
        };
        let Ok(Task { job, answer }) = next else { return };
        let refused = Err(Refusal::NotAuthorized);
        let result = if ending.load(Ordering::Relaxed) {
            refused
        } else {
            catch_unwind(AssertUnwindSafe(|| job.run())).unwrap_or(refused)
        };
        // whoever gets the answer may fail over it; the next client must not suffer for that
        let _ = catch_unwind(AssertUnwindSafe(|| answer(result)));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Sender, channel};
    use std::time::Duration;

    use super::*;

    fn tell(to: &Sender<bool>) -> Answer {
        let to = to.clone();
        Box::new(move |r| to.send(r.is_ok()).unwrap())
    }

    fn good() -> Job {
        Job::new(|| Ok(Grant::default()))
    }

    /// A job that waits to be told; the second half of the pair tells it.
    fn held() -> (Job, Sender<()>) {
        let (begin, wait) = channel();
        let job = Job::new(move || {
            let _ = wait.recv();
            Ok(Grant::default())
        });
        (job, begin)
    }

    fn heard(told: &Receiver<bool>) -> bool {
        told.recv_timeout(Duration::from_secs(10)).unwrap()
    }

    /// Neither a job nor an answer that panics takes the worker with it; the client of such a job is refused.
    #[test]
    fn panics_are_contained() {
        let workers = Workers::start(1, 4);
        let (to, told) = channel();
        workers.submit(Job::new(|| panic!("on purpose")), tell(&to)).unwrap();
        assert!(!heard(&told));
        workers.submit(good(), Box::new(|_| panic!("on purpose"))).unwrap();
        workers.submit(good(), tell(&to)).unwrap();
        assert!(heard(&told));
    }

    /// A full queue says so at once, and serves what it took.
    #[test]
    fn full_queues_say_so() {
        let workers = Workers::start(1, 2);
        let (to, told) = channel();
        let (job, begin) = held();
        workers.submit(job, tell(&to)).unwrap();
        let mut taken = 1;
        while workers.submit(good(), tell(&to)).is_ok() {
            taken += 1;
            assert!(taken <= 4);
        }
        begin.send(()).unwrap();
        for _ in 0..taken {
            assert!(heard(&told));
        }
    }

    /// The threads end with their owner; who still waits is refused.
    #[test]
    fn threads_end() {
        let workers = Workers::start(2, 8);
        let (to, told) = channel();
        let holds: Vec<_> = (0..2).map(|_| held()).collect();
        let begins: Vec<_> = holds
            .into_iter()
            .map(|(job, begin)| {
                workers.submit(job, tell(&to)).unwrap();
                begin
            })
            .collect();
        workers.submit(good(), tell(&to)).unwrap();
        std::thread::sleep(Duration::from_millis(50)); // both held jobs are being run
        drop(workers);
        drop(begins);
        let mut answers: Vec<bool> = (0..3).map(|_| heard(&told)).collect();
        answers.sort_unstable();
        assert_eq!(answers, [false, true, true]);
        drop(to);
        assert!(told.recv_timeout(Duration::from_secs(10)).is_err(), "no thread holds an answer any more");
    }
}
