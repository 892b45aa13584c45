#![forbid(unsafe_code)]
//! Trunkline: a gRPC gateway that keeps the servers of a cluster in step.
//!
//! Nodes publish typed events and hold one stream of everybody's; gateways carry all of those streams over a few shared
//! Redis connections. See `ARCHITECTURE.md` for the way of the data.

pub mod bus;
pub mod config;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzz;
pub mod hub;
pub mod proto;
pub mod server;
mod throttle;
pub mod trace;
