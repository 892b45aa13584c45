//! The wire API as a client sees it: every message and every error over a real connection to a real gateway.

// A test says what it expects by unwrapping it, and its helpers do; who publishes and who subscribes have similar names.
#![allow(clippy::unwrap_used, clippy::similar_names)]

#[path = "../support/mod.rs"]
mod support;

mod bench;
mod raw;
mod told;

mod bad_publish;
mod bad_subscribe;
mod drain;
mod explain;
mod filters;
mod garbage;
mod health;
mod last_value;
mod limits;
mod passthrough;
mod publishing;
mod status;
mod strangers;
mod streams;
mod too_large;
mod trace_context;
mod unavailable;
