//! What keeps the house in order: the harness of the tests, what the paths of events cost, the report of the bench.

#[path = "../support/mod.rs"]
mod support;

mod bench_report;
mod harness;
mod instructions;
mod rooms;
