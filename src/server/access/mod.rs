//! Who may connect, and what they may do.

mod identity;
mod layer;

pub use self::{
    identity::{Caller, ConnectionId, Identity},
    layer::AccessLayer,
};
