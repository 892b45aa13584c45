//! Tests of the test harness itself, of the instructions that the paths of events cost, of the
//! report of the benchmark, and of the document of the wire API.

#[path = "../support/mod.rs"]
mod support;

mod api_document;
mod bench_report;
mod instructions;
mod rooms;
mod self_test;
