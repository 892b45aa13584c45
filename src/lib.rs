#![forbid(unsafe_code)]
//! Trunkline: a gRPC gateway that keeps the servers of a cluster in step.
//!
//! Nodes publish typed events, and each receives those of all others on one stream. Gateways carry
//! all streams over a few shared Redis connections. `ARCHITECTURE.md` describes the path of an
//! event.

mod access;
pub mod admin_port;
pub mod agent;
pub mod bus;
pub mod config;
mod errors;
pub mod gateway;
pub mod hub;
pub mod json;
mod leave;
mod lifecycle;
pub mod link;
pub mod log;
mod observe;
mod port;
mod presence;
mod process;
pub mod proto;
mod rpc;
mod throttle;
pub mod trace_context;
mod web;
