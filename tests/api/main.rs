//! The wire API as a client sees it: every message and every error over a real connection to a real gateway.

// What a test expects, it unwraps, its helpers too.
#![allow(clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

mod bench;
mod raw;
mod told;

mod bad_publish;
mod bad_subscribe;
mod drain;
mod filters;
mod health;
mod limits;
mod passthrough;
mod publishing;
mod status;
mod streams;
mod too_large;
mod unavailable;
