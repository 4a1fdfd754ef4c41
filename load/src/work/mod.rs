//! The loads.

mod batch;
mod connect;
mod feed;
mod inbox;
mod offline;
mod pub_sub;
mod retained;
mod soak;
mod subscriptions;

use crate::driver::Driver;
use crate::plan::{Plan, Work};
use crate::report::Report;
use crate::shared::Shared;
use crate::stream::Connector;
use crate::usage;

/// Threads that the work uses: only traffic is spread over several.
#[must_use]
pub fn threads(plan: &Plan) -> usize {
    if plan.work == Work::PubSub { plan.threads } else { 1 }
}

/// Senders, sessions, topics: whatever the work counts messages of.
///
/// # Errors
/// The file that should say it does not.
pub fn flows(plan: &Plan) -> Result<usize, String> {
    let counted = if plan.work == Work::Offline { offline::sessions(plan)? } else { plan.count };
    Ok(plan.publishers.max(counted))
}

/// Runs the load of the plan.
///
/// # Errors
/// It cannot be run: no process of that number, no broker, a refused connection, a wrong file.
pub fn run(plan: &Plan, shared: &Shared) -> Result<Report, String> {
    usage::of(&plan.pids)?;
    match plan.work {
        Work::PubSub => pub_sub::run(plan, shared),
        Work::Connect => connect::run(plan, shared),
        Work::Retained => retained::run(plan, shared),
        Work::Subscriptions => subscriptions::run(plan, shared),
        Work::Offline => offline::run(plan, shared),
        Work::Soak => soak::run(plan, shared),
    }
}

fn driver(plan: &Plan, shared: &Shared) -> Result<Driver, String> {
    Driver::new(Connector::new(plan)?, shared.begun).map_err(|e| format!("no poll: {e}"))
}
