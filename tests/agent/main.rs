//! The agent: what mail servers that do not know Trunkline say, and what becomes of it.

#[path = "../support/mod.rs"]
mod support;

mod command;
mod doctor;
mod payloads;
mod relay;
mod seen;
