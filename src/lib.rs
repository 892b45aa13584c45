#![forbid(unsafe_code)]
//! Trunkline: a gRPC gateway that keeps the servers of a cluster in step.
//!
//! Nodes publish typed events and hold one stream of everybody's; gateways carry all of those streams over a few shared
//! Redis connections. See `ARCHITECTURE.md` for the way of the data.

mod access;
pub mod bus;
pub mod config;
mod errors;
pub mod gateway;
pub mod hub;
mod lifecycle;
mod observe;
mod port;
mod presence;
pub mod proto;
mod rpc;
mod throttle;
pub mod trace_context;
