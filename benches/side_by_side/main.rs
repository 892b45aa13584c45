#![forbid(unsafe_code)]
//! Trunkline side by side with what one would take instead, and with floors that nothing over gRPC or Redis can beat.
//!
//! `cargo bench --bench side_by_side -- [--rounds N] [--seconds N] [--only WORD] [--json FILE]`
//!
//! Real processes on loopback. The clients run in this process, on the runtime that they all share, and count events alike:
//! messages stay bytes, of which the lengths are looked at, and in latency runs the id of each event. `docs/benchmarks.md`
//! says what was measured and on what.

mod contestant;
mod floor;
mod load;
mod raw;
mod report;
#[path = "../../tests/support/mod.rs"]
mod support;
mod targets;

use std::{io::Write, path::PathBuf, time::Duration};

use clap::Parser;
use contestant::{Contestant, System};
use report::{Metrics, Report};
use serde_json::json;

/// Nanoseconds since the bench began.
mod clock {
    use std::{sync::LazyLock, time::Instant};

    static START: LazyLock<Instant> = LazyLock::new(Instant::now);

    /// Now. The first call starts the clock.
    pub fn now() -> u64 {
        u64::try_from(START.elapsed().as_nanos()).expect("584 years")
    }
}

/// Compares Trunkline with plain Redis pub/sub, NATS core, and floors.
#[derive(Debug, Parser)]
struct Options {
    /// How often everything is run, in turn.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// How long each run is measured.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Only scenarios whose name holds this: `fan-out`, `latency`, `idle`, `to 100,`.
    #[arg(long, default_value = "")]
    only: String,
    /// Where the figures go.
    #[arg(long, default_value = "target/side_by_side.json")]
    json: PathBuf,
    /// Be the floor's server on this port, and nothing else.
    #[arg(long, hide = true)]
    floor: Option<u16>,
    /// What cargo says to every bench.
    #[arg(long, hide = true)]
    bench: bool,
}

/// What is run.
#[derive(Clone, Copy, Debug)]
enum Scenario {
    FanOut { subscribers: usize, batch: usize },
    Latency { subscribers: usize, rate: u64 },
    Idle { streams: usize, per_connection: usize },
}

impl Scenario {
    fn all() -> Vec<Scenario> {
        let mut all = vec![];
        for batch in [1, 100] {
            all.extend([1, 10, 100].map(|subscribers| Scenario::FanOut { subscribers, batch }));
        }
        for rate in [1_000, 10_000] {
            all.extend([1, 100].map(|subscribers| Scenario::Latency { subscribers, rate }));
        }
        all.push(Scenario::Idle { streams: 10_000, per_connection: 100 });
        all.push(Scenario::Idle { streams: 2_000, per_connection: 1 });
        all
    }

    fn name(self) -> String {
        match self {
            Scenario::FanOut { subscribers, batch } => {
                format!("fan-out, 1 to {subscribers}, {batch} a request")
            }
            Scenario::Latency { subscribers, rate } => {
                format!("latency, {rate}/s, 1 to {subscribers}, open loop")
            }
            Scenario::Idle { streams, per_connection } => {
                format!("idle, {streams} streams, {per_connection} a connection")
            }
        }
    }

    fn contestants(self) -> Vec<Contestant> {
        use Contestant::{Echo, Embedded, Floor, Nats, PlainRedis, Redis};
        let real = [Embedded, Redis { gateways: 1 }, Redis { gateways: 2 }, PlainRedis, Nats];
        let floors: &[Contestant] = match self {
            Scenario::FanOut { batch: 1, .. } => &[Floor { batch: 1 }, Floor { batch: 16 }],
            Scenario::FanOut { .. } => &[Floor { batch: 100 }],
            Scenario::Latency { subscribers: 1, .. } => &[Echo],
            Scenario::Latency { .. } => &[],
            Scenario::Idle { .. } => return vec![Embedded],
        };
        real.iter().chain(floors).copied().collect()
    }

    async fn run(self, system: &System, contestant: Contestant, length: Duration) -> Metrics {
        match self {
            Scenario::FanOut { subscribers, batch } => {
                load::fan_out(system, subscribers, batch, length).await
            }
            Scenario::Latency { subscribers, rate } => {
                load::latency(system, contestant, subscribers, rate, length).await
            }
            Scenario::Idle { streams, per_connection } => {
                load::idle(system, streams, per_connection).await
            }
        }
    }
}

fn main() {
    let options = Options::parse();
    clock::now();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    match options.floor {
        Some(port) => runtime.block_on(floor::serve(port)),
        None => runtime.block_on(compare(&options)),
    }
}

async fn compare(options: &Options) {
    let length = Duration::from_secs_f64(options.seconds);
    let scenarios: Vec<_> = Scenario::all()
        .into_iter()
        .filter(|scenario| scenario.name().contains(&options.only))
        .collect();
    let mut report = Report::default();
    let mut missing = false;
    for scenario in &scenarios {
        for round in 1..=options.rounds {
            for contestant in scenario.contestants() {
                let (scenario_name, name) = (scenario.name(), contestant.name());
                print!("{scenario_name}: {name}, round {round} of {} ... ", options.rounds);
                let _ = std::io::stdout().flush();
                let Some(system) = System::start(contestant).await else {
                    println!("skipped: its server is not on this machine");
                    missing = true;
                    continue;
                };
                let metrics = scenario.run(&system, contestant, length).await;
                println!("{}", line(&metrics));
                report.add(&scenario_name, &name, metrics);
            }
        }
    }
    println!("{}", report.tables());
    println!("{}", targets::table(&report));
    if missing {
        println!(
            "nats core was skipped: put nats-server in PATH, or its path in TRUNKLINE_BENCH_NATS_SERVER."
        );
    }
    let conditions = json!({
        "rounds": options.rounds,
        "seconds": options.seconds,
        "cores": std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
        "nats": !missing,
    });
    report.write_json(&options.json, &conditions).expect("the file is written");
    println!("every figure of every round: {}", options.json.display());
}

fn line(metrics: &Metrics) -> String {
    let figures = metrics.iter().map(|(name, value)| format!("{name} {}", report::short(*value)));
    figures.collect::<Vec<_>>().join(", ")
}
