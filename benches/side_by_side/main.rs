#![forbid(unsafe_code)]
//! Trunkline side by side with its alternatives, and with floors: lower bounds of what anything
//! over gRPC or Redis costs.
//!
//!     cargo bench --bench side_by_side                       all of it, within 22 minutes
//!     cargo bench --bench side_by_side -- --only 'to 100,'   a part
//!     cargo bench --bench side_by_side -- --quick            a smoke test without useful figures
//!     cargo bench --bench side_by_side -- --report FILE      tables and plots of a former run
//!
//! Real processes on loopback. All clients share one runtime in this process, and events are
//! counted alike for every contestant: messages are not decoded; only lengths are read, and in
//! latency runs the id of each event. `docs/benchmarks.md` has the method and the results.

#[path = "../../src/cli/bench/clock.rs"]
mod clock;
mod connections;
mod contestant;
mod counts;
mod document;
mod floor;
mod load;
mod machine;
#[path = "../../src/cli/bench/pace.rs"]
mod pace;
mod payload;
mod plots;
mod publisher;
mod raw;
#[path = "../../src/cli/bench/received.rs"]
mod received;
mod recorder;
mod report;
mod run;
mod scenario;
mod subscriber;
#[path = "../../tests/support/mod.rs"]
mod support;
mod svg;
mod tables;
mod targets;

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;

/// Compares Trunkline with plain Redis pub/sub, NATS core, and floors.
#[derive(Debug, Parser)]
struct Options {
    /// Rounds, each of all scenarios; memory and growth take part in two at most.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Seconds for which each run is measured; latency, filters and growth are measured longer.
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// Limit in minutes; no run is started that would exceed it.
    #[arg(long, default_value_t = 22.0)]
    minutes: f64,
    /// Only scenarios whose name contains this: fan-out, latency, idle, 'to 100,'; may be given
    /// several times.
    #[arg(long, value_name = "TEXT")]
    only: Vec<String>,
    /// Only contestants whose name contains this: redis, floor; may be given several times.
    #[arg(long, value_name = "TEXT")]
    contestant: Vec<String>,
    /// A smoke test: one round of a fifth of a second with small numbers.
    #[arg(long)]
    quick: bool,
    /// List the runs and the estimated time, without running anything.
    #[arg(long)]
    list: bool,
    /// File for the figures; rewritten after each round.
    #[arg(long, default_value = "target/side_by_side/figures.json")]
    json: PathBuf,
    /// Folder for the plots.
    #[arg(long, default_value = "target/side_by_side")]
    plots: PathBuf,
    /// Run nothing; write tables and plots of the figures in this file.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Write the tables into this document, between its markers, instead of to standard output.
    #[arg(long, value_name = "FILE")]
    into: Option<PathBuf>,
    /// Run only the floor's server, on this port.
    #[arg(long, hide = true)]
    floor: Option<u16>,
    /// Passed by cargo to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let options = Options::parse();
    clock::now();
    let result = match (&options.report, options.floor) {
        (Some(file), _) => {
            report::Report::read(file).and_then(|report| document::write(&report, &options))
        }
        (None, Some(port)) => {
            runtime().block_on(floor::serve(port));
            Ok(true)
        }
        (None, None) => run::all(&options, &runtime()),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(problem) => {
            eprintln!("side_by_side: {problem}");
            ExitCode::FAILURE
        }
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Runtime::new().expect("a runtime")
}
