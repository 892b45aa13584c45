//! The wire API as a client sees it: every message and every error over a real connection to a real gateway.

#[path = "../support/mod.rs"]
mod support;

mod bench;
mod raw;
mod told;

mod bad_publish;
mod bad_subscribe;
mod drain;
mod filters;
mod garbage;
mod health;
mod limits;
mod passthrough;
mod publishing;
mod status;
mod strangers;
mod streams;
mod too_large;
mod unavailable;
