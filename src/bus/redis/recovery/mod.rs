//! Recovery of a shard that Redis lost a part of: the gateways are the replicas of the bus.
//!
//! State machines without I/O. A gateway remembers, for each shard, the frames that it has seen
//! ([`held`]), which positions it has heard of ([`heard`]), and what the shard's script said last
//! ([`Memory`]); from that follows what it appends again, and what it tells as lost.

pub mod heard;
pub mod held;
mod memory;

pub use self::{
    heard::Heard,
    held::{Held, HeldFrame, MAX_HELD},
    memory::{Memory, Offer, Task},
};
pub use super::{ranges::Ranges, view::ShardView};
