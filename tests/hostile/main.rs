//! Clients that mean harm, or are merely slow: what each of them costs the others is nothing.
//!
//! They are sockets of their own that speak HTTP/2 by the byte, from 127.0.0.2. Beside each of them a node of 127.0.0.1 publishes
//! and another receives: in order, in time, and all of it. Afterwards the gateway has freed what it held.

#![allow(clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;
#[path = "../api/told.rs"]
mod told;

mod scene;
mod wire;

mod bodies;
mod connections;
mod floods;
mod quotas;
mod readers;
