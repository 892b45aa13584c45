//! Counters, recent trouble, log lines, and the admin port with its page.

pub mod admin;
pub mod counters;
pub mod lines;
pub mod recent;
