//! Node to node: batches of one lane for one lane of another node, in order, once, also when the connection between the
//! nodes breaks and comes back. It knows nothing of MQTT and nothing of what the bytes mean.
//!
//! `flow` is the state machine, `frame` the bytes, `thread` the sockets. Which node is a member, and when one has to be
//! forgotten, is decided elsewhere.

mod flow;
mod frame;
mod thread;

pub use flow::{Broken, Flow, Hello, Welcome};
pub use frame::{Greeting, Head};
pub use thread::{Event, Links, Node, Site};
