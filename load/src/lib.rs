//! The load generator: many MQTT clients in few threads, every message verified.
//!
//! | file | what it knows |
//! |---|---|
//! | `plan` | what to do |
//! | `stamp` | what a payload carries, `tally`: what was wrong with those that came |
//! | `codec` | the packets, `client`: what one client has under way |
//! | `stream`, `driver` | sockets and turns |
//! | `fleet` | many clients at once |
//! | `work/*` | the loads |
//! | `shared`, `usage`, `report` | progress, costs, results |
#![forbid(unsafe_code)]
#![allow(missing_docs)] // fields say what they are

pub mod client;
pub mod codec;
pub mod driver;
mod fleet;
pub mod plan;
mod report;
mod shared;
pub mod stamp;
mod stream;
pub mod tally;
mod usage;
mod work;

use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use plan::Plan;
use shared::Shared;

/// A load that runs on threads of its own.
pub struct Load {
    shared: Arc<Shared>,
    state: Mutex<State>,
}

/// The result stays: whoever was interrupted while it was handed over asks again.
enum State {
    Running(JoinHandle<Result<String, String>>),
    Ended(Result<String, String>),
}

impl Load {
    /// Begins what the plan (JSON) says.
    ///
    /// # Errors
    /// The plan is wrong; the text names the option.
    pub fn start(plan: &str) -> Result<Self, String> {
        let plan = Plan::parse(plan)?;
        raise_file_limit();
        let shared = Arc::new(Shared::new(work::threads(&plan), work::flows(&plan)?));
        let for_thread = Arc::clone(&shared);
        let builder = std::thread::Builder::new().name("load".to_owned());
        let thread = builder.spawn(move || {
            let report = work::run(&plan, &for_thread)?;
            serde_json::to_string(&report).map_err(|e| e.to_string())
        });
        let thread = thread.map_err(|e| format!("no thread: {e}"))?;
        Ok(Self { shared, state: Mutex::new(State::Running(thread)) })
    }

    /// How far it is, as JSON.
    #[must_use]
    pub fn progress(&self) -> String {
        serde_json::to_string(&self.shared.progress()).unwrap_or_default()
    }

    /// Asks it to end soon: nothing more is sent, what is under way is waited for. The second time: to end at once.
    pub fn stop(&self) {
        self.shared.stop();
    }

    /// Waits for the result, JSON; None if it is not there in time. Once it is there it can be taken again.
    ///
    /// # Errors
    /// The load could not be run; the text says why.
    pub fn result(&self, at_most: Duration) -> Option<Result<String, String>> {
        let until = Instant::now() + at_most;
        let mut state = self.state.lock().ok()?;
        while matches!(&*state, State::Running(thread) if !thread.is_finished()) {
            if Instant::now() >= until {
                return None;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let failed = || Err("the load has failed: a bug of the generator".to_owned());
        let result = match std::mem::replace(&mut *state, State::Ended(failed())) {
            State::Running(thread) => thread.join().unwrap_or_else(|_| failed()),
            State::Ended(result) => result,
        };
        *state = State::Ended(result.clone());
        Some(result)
    }
}

/// A client is an open file: as many as the system lets this process have.
fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    // without it the connection that is one too many says so
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

impl Drop for Load {
    fn drop(&mut self) {
        self.shared.end();
        let ended = State::Ended(Err(String::new()));
        if let Ok(State::Running(thread)) = self.state.get_mut().map(|state| std::mem::replace(state, ended)) {
            let _ = thread.join();
        }
    }
}
