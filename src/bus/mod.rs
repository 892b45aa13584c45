//! What carries frames between gateways.

mod position;

pub use position::{Epoch, Offset, Place, ShardId};
