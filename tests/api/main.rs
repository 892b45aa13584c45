//! The wire API as a client sees it: every message and every error, over a real connection to a
//! real gateway.

// Tests and their helpers state expectations by unwrapping; publishers and subscribers have similar
// names.
#![allow(clippy::unwrap_used, clippy::similar_names)]

#[path = "../support/mod.rs"]
mod support;

mod deployment;
mod error_details;
mod raw;

mod bad_publish;
mod bad_subscribe;
mod bad_watch;
mod drain;
mod explain;
mod filters;
mod garbage;
mod health;
mod last_value;
mod limits;
mod missed_events;
mod not_grpc;
mod orca;
mod passthrough;
mod protocol;
mod publish_stream;
mod publishing;
mod status;
mod streams;
mod too_large;
mod trace_context;
mod unavailable;
mod watch;
