//! Tests of the test harness itself, of the instructions that the paths of events cost, and of the
//! report of the benchmark.

#[path = "../support/mod.rs"]
mod support;

mod bench_report;
mod instructions;
mod rooms;
mod self_test;
