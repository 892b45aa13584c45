//! The agent: what mail servers that do not know Trunkline say, and what becomes of it.

#[path = "../support/mod.rs"]
mod support;

mod channels;
mod command;
mod doctor;
mod hostile;
mod joined;
mod payloads;
mod relay;
mod restart;
mod seen;
mod tls;
