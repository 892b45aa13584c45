//! Hostile and slow clients do not affect other clients.
//!
//! Hostile clients write raw HTTP/2 frames from 127.0.0.2. During each attack a node from 127.0.0.1
//! publishes and another receives: every event, in order, in time. Afterwards the gateway has freed
//! everything that it held for the attackers.

#![allow(clippy::unwrap_used)]

#[path = "../api/error_details.rs"]
mod error_details;
#[path = "../support/mod.rs"]
mod support;

mod target;
mod wire;

mod bodies;
mod connections;
mod floods;
mod histories;
mod lists;
mod probes;
mod producers;
mod quotas;
mod readers;
mod shared;
