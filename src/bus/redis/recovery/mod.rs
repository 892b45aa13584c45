//! Recovery of a shard that Redis lost a part of: the gateways are the replicas of the bus.
//!
//! State machines without I/O. A gateway remembers, for each shard, the frames that it has seen
//! ([`held`]), which positions it knows to have existed ([`reported`]), and what the shard's script
//! said last ([`Memory`]); from that follows what it appends again, and what it reports as lost.

pub mod held;
mod memory;
pub mod reported;

pub use self::{
    held::{Held, HeldFrame, MAX_HELD},
    memory::{Memory, Offer, Task},
    reported::Reported,
};
pub use super::view::ShardView;
pub use crate::bus::ranges::Ranges;
