#![forbid(unsafe_code)]
//! Trunkline side by side with what one would take instead, and with floors that nothing over gRPC or Redis can beat.
//!
//!     cargo bench --bench side_by_side                       all of it, within 22 minutes
//!     cargo bench --bench side_by_side -- --only 'to 100,'   a part
//!     cargo bench --bench side_by_side -- --quick            whether it works; the figures mean nothing
//!     cargo bench --bench side_by_side -- --report FILE      tables and plots of a former run
//!
//! Real processes on loopback. The clients run in this process, on the runtime that they all share, and count events alike:
//! messages stay bytes, of which the lengths are looked at, and in latency runs the id of each event. `docs/benchmarks.md`
//! says what was measured and on what.

#[path = "../../src/cli/bench/clock.rs"]
mod clock;
mod contestant;
mod counts;
mod document;
mod floor;
#[path = "../../src/cli/bench/heard.rs"]
mod heard;
mod load;
mod machine;
mod node;
#[path = "../../src/cli/bench/pace.rs"]
mod pace;
mod payload;
mod plots;
mod raw;
mod report;
mod run;
mod scenario;
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
    /// How often everything is run, in turn; memory and growth twice at the most.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// How long each run is measured; latency, filters and growth are measured longer.
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// Nothing new is begun that would not end within so many minutes.
    #[arg(long, default_value_t = 22.0)]
    minutes: f64,
    /// Only scenarios whose name holds this: `fan-out`, `latency`, `idle`, `to 100,`. Several: any of them.
    #[arg(long, value_name = "TEXT")]
    only: Vec<String>,
    /// Only contestants whose name holds this: `redis`, `floor`. Several: any of them.
    #[arg(long, value_name = "TEXT")]
    contestant: Vec<String>,
    /// One round of a fifth of a second and small numbers: whether all of it works.
    #[arg(long)]
    quick: bool,
    /// Say what would be run, and how long it would take, and end.
    #[arg(long)]
    list: bool,
    /// Where the figures go; written anew after each round.
    #[arg(long, default_value = "target/side_by_side/figures.json")]
    json: PathBuf,
    /// Where the plots go.
    #[arg(long, default_value = "target/side_by_side")]
    plots: PathBuf,
    /// Run nothing: tables and plots of the figures in this file.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Put the tables into this document, between its marks, rather than on standard output.
    #[arg(long, value_name = "FILE")]
    into: Option<PathBuf>,
    /// Be the floor's server on this port, and nothing else.
    #[arg(long, hide = true)]
    floor: Option<u16>,
    /// What cargo says to every bench.
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
