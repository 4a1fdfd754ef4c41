//! Node to node: batches of one lane for one lane of another node, in order, once, also when the connection between the
//! nodes breaks and comes back. It knows nothing of MQTT and nothing of what the bytes mean.
//!
//! `flow` is the state machine of a connection, `pulse` says who has answered, `frame` the bytes,
//! `desk` the door, `thread` the sockets, `wire` one of them, `around` what is
//! carried by a third node. Which node is a member, and when one has to be
//! forgotten, is decided elsewhere.

mod around;
mod desk;
mod flow;
#[cfg(test)]
mod flow_tests;
mod frame;
mod pulse;
mod thread;
mod wire;

pub use desk::{Event, Links, Member, Site};
pub use flow::{Broken, Flow, Hello, Welcome};
pub use frame::{Greeting, Head};
pub use pulse::{ALONE, ANSWER_MS, Beat, Pulse};
pub use wire::Trust;
