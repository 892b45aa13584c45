//! Runs the scenarios round by round within the time limit. A run that fails does not end the
//! others.

use std::{
    collections::HashMap,
    io::Write,
    panic::AssertUnwindSafe,
    time::{Duration, Instant},
};

use futures_util::FutureExt;
use serde_json::{Value, json};
use tokio::{runtime::Runtime, time::timeout};

use crate::{
    Options,
    contestant::{Batch, Contestant, SharedCluster, System, nats_server},
    document, machine,
    report::{Metrics, Report, short},
    scenario::Scenario,
};

/// Time limit of a run, after which it counts as failed.
const LIMIT: Duration = Duration::from_secs(90);

/// Time that is reserved for the report.
const RESERVE: Duration = Duration::from_secs(5);

/// The outcome of a run.
enum Outcome {
    Measured(Metrics),
    Missing,
    Failed(String),
}

/// Runs the scenarios that the options select. False if a run failed.
pub fn all(options: &Options, runtime: &Runtime) -> Result<bool, String> {
    let quick = options.quick;
    let length = Duration::from_secs_f64(if quick { 0.2 } else { options.seconds });
    let rounds = if quick { 1 } else { options.rounds };
    let wanted = |name: &str, words: &[String]| {
        words.is_empty() || words.iter().any(|word| name.contains(word.as_str()))
    };
    let plan: Vec<(Scenario, Vec<Contestant>)> = Scenario::all(quick)
        .into_iter()
        .filter(|scenario| wanted(&scenario.name(), &options.only))
        .map(|scenario| {
            let mut contestants = scenario.contestants();
            contestants.retain(|contestant| wanted(&contestant.name(), &options.contestant));
            (scenario, contestants)
        })
        .filter(|(_, contestants)| !contestants.is_empty())
        .collect();
    if plan.is_empty() {
        return Err("no scenario and contestant has such a name; see --list".into());
    }
    let mut bench = Bench {
        options,
        length,
        rounds,
        plan,
        start: Instant::now(),
        took: HashMap::new(),
        report: Report::default(),
        cluster: SharedCluster::default(),
    };
    if options.list {
        bench.list();
        return Ok(true);
    }
    if let Err(problem) = machine::allow_files() {
        println!("note: {problem}: scenarios with many connections will fail");
    }
    // The failure of a run is reported with it; the backtrace is not needed.
    std::panic::set_hook(Box::new(|panic| eprintln!("({panic})")));
    bench.report.conditions = machine::describe(nats_server().as_deref());
    bench.condition("command", arguments(std::env::args().skip(1)).into());
    bench.condition("rounds", rounds.into());
    bench.condition("seconds", length.as_secs_f64().into());
    if nats_server().is_none() {
        println!(
            "nats core is skipped: put nats-server in PATH, or set TRUNKLINE_BENCH_NATS_SERVER to \
             its path"
        );
    }
    let unfinished = runtime.block_on(bench.run());
    bench.condition("load_after", machine::load().into());
    bench.condition("took_seconds", json!(bench.start.elapsed().as_secs()));
    bench.condition("unfinished", unfinished.clone().into());
    bench.save()?;
    let succeeded = document::write(&bench.report, options)?;
    println!("\nall figures of all rounds: {}", options.json.display());
    if !unfinished.is_empty() {
        println!("not run, since the time was up: {}", unfinished.join("; "));
    }
    Ok(succeeded)
}

struct Bench<'a> {
    options: &'a Options,
    length: Duration,
    rounds: usize,
    plan: Vec<(Scenario, Vec<Contestant>)>,
    start: Instant,
    // Seconds that each run took the last time.
    took: HashMap<(String, String), f64>,
    report: Report,
    cluster: SharedCluster,
}

impl Bench<'_> {
    /// Runs all rounds. Returns the scenarios that there was no time for.
    async fn run(&mut self) -> Vec<String> {
        let end = Duration::from_secs_f64(self.options.minutes * 60.0).saturating_sub(RESERVE);
        let mut unfinished = vec![];
        for round in 1..=self.rounds {
            let mut loads = vec![machine::load()];
            for (index, (scenario, contestants)) in self.plan.clone().into_iter().enumerate() {
                if round > scenario.rounds(self.rounds) {
                    continue;
                }
                // In a round, either all contestants of a scenario are run or none.
                let takes: f64 =
                    contestants.iter().map(|contestant| self.takes(scenario, *contestant)).sum();
                if self.start.elapsed() + Duration::from_secs_f64(takes) > end {
                    unfinished.push(format!("{}, round {round}", scenario.name()));
                    continue;
                }
                for (position, contestant) in contestants.iter().enumerate() {
                    self.progress(round, index, position, scenario, *contestant);
                    let outcome = self.run_one(scenario, *contestant, round).await;
                    self.record(scenario, *contestant, outcome);
                }
            }
            loads.push(machine::load());
            self.condition(&format!("load_round_{round}"), json!(loads));
            if let Err(problem) = self.save() {
                println!("note: {problem}");
            }
        }
        unfinished
    }

    /// Does one run with a time limit. A panic fails this run only.
    async fn run_one(
        &mut self,
        scenario: Scenario,
        contestant: Contestant,
        round: usize,
    ) -> Outcome {
        let begun = Instant::now();
        let batch = self.batch(scenario, contestant, round);
        let run = async {
            let Some(mut system) = System::start(contestant, &self.cluster).await else {
                return Outcome::Missing;
            };
            system.batch = batch;
            let metrics = scenario.run(&system, self.length).await;
            system.end().await;
            Outcome::Measured(metrics)
        };
        let outcome = match timeout(LIMIT, AssertUnwindSafe(run).catch_unwind()).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(panic)) => {
                let message = panic.downcast_ref::<String>().cloned();
                let message =
                    message.or_else(|| panic.downcast_ref::<&str>().map(|&s| s.to_owned()));
                Outcome::Failed(message.unwrap_or_else(|| "it panicked".into()))
            }
            Err(_) => Outcome::Failed(format!("not within {LIMIT:?}")),
        };
        let took = begun.elapsed().as_secs_f64();
        self.took.insert((scenario.name(), contestant.name()), took);
        outcome
    }

    /// Events in a message of the floor: as many as Trunkline on Redis delivered in one in this
    /// round.
    fn batch(&self, scenario: Scenario, contestant: Contestant, round: usize) -> u32 {
        let delivered = || {
            let name = Contestant::Redis(1).name();
            self.report.figure(&scenario.name(), &name, round - 1, "events_per_message")
        };
        match contestant {
            Contestant::Stream(Batch::Of(count)) => count,
            Contestant::Stream(Batch::AsDelivered) => {
                #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
                // 1 to some thousands
                delivered().map_or(1, |events| events.round().clamp(1.0, 10_000.0) as u32)
            }
            Contestant::Relay => scenario.batch(),
            _ => 1,
        }
    }

    fn record(&mut self, scenario: Scenario, contestant: Contestant, outcome: Outcome) {
        match outcome {
            Outcome::Measured(mut metrics) => {
                if let Contestant::Stream(_) = contestant {
                    // Nothing is published to it.
                    metrics.remove("published_per_second");
                }
                println!("{}", line(&metrics));
                self.report.add(&scenario.name(), &contestant.name(), metrics);
            }
            Outcome::Missing => println!("skipped: its server is not on this machine"),
            Outcome::Failed(why) => {
                let why = why.lines().next().unwrap_or_default().to_owned();
                println!("FAILED: {why}");
                let failure = format!("{}: {}: {why}", scenario.name(), contestant.name());
                self.report.failures.push(failure);
            }
        }
    }

    fn progress(
        &self,
        round: usize,
        index: usize,
        position: usize,
        scenario: Scenario,
        contestant: Contestant,
    ) {
        let end = self.options.minutes * 60.0;
        let gone = self.start.elapsed().as_secs_f64();
        let left = self.left(round, index, position).min((end - gone).max(0.0));
        print!(
            "[{} gone, about {} left] round {round} of {}, {}: {} ... ",
            clock(gone),
            clock(left),
            self.rounds,
            scenario.name(),
            contestant.name(),
        );
        let _ = std::io::stdout().flush();
    }

    /// Estimated seconds of the runs that are left.
    fn left(&self, round: usize, index: usize, position: usize) -> f64 {
        let mut seconds = 0.0;
        for later in round..=self.rounds {
            for (at, (scenario, contestants)) in self.plan.iter().enumerate() {
                let gone = match at.cmp(&index) {
                    _ if later > round => 0,
                    std::cmp::Ordering::Less => contestants.len(),
                    std::cmp::Ordering::Equal => position,
                    std::cmp::Ordering::Greater => 0,
                };
                if later <= scenario.rounds(self.rounds) {
                    let takes = |contestant: &Contestant| self.takes(*scenario, *contestant);
                    seconds += contestants.iter().skip(gone).map(takes).sum::<f64>();
                }
            }
        }
        seconds
    }

    fn takes(&self, scenario: Scenario, contestant: Contestant) -> f64 {
        let seen = self.took.get(&(scenario.name(), contestant.name()));
        seen.copied().unwrap_or_else(|| scenario.guess(self.length))
    }

    fn list(&self) {
        for (scenario, contestants) in &self.plan {
            let names: Vec<_> = contestants.iter().map(|contestant| contestant.name()).collect();
            println!("{}\n    {}", scenario.name(), names.join("\n    "));
        }
        let runs: usize = self.plan.iter().map(|(_, contestants)| contestants.len()).sum();
        println!("{runs} runs a round; about {} for all", clock(self.left(1, 0, 0)));
    }

    fn condition(&mut self, name: &str, value: Value) {
        if let Some(conditions) = self.report.conditions.as_object_mut() {
            conditions.insert(name.to_owned(), value);
        }
    }

    fn save(&self) -> Result<(), String> {
        self.report.write(&self.options.json)
    }
}

/// Minutes and seconds.
fn clock(seconds: f64) -> String {
    format!("{:.0}:{:02.0}", (seconds / 60.0).floor(), (seconds % 60.0).floor())
}

/// The figures of a run that are printed at once.
fn line(metrics: &Metrics) -> String {
    const SHOWN: [&str; 15] = [
        "delivered_per_second",
        "published_per_second",
        "events_per_message",
        "server_cpu_seconds_per_million",
        "redis_cpu_seconds_per_million",
        "p50_us",
        "p99_us",
        "updated_per_second",
        "event_p50_us",
        "event_p99_us",
        "rss_bytes_per_stream",
        "redis_connections",
        "lost",
        "gaps",
        "latency_lost",
    ];
    let quiet = |name: &str| matches!(name, "lost" | "gaps" | "latency_lost");
    let figures = SHOWN.iter().filter_map(|name| {
        let value = *metrics.get(*name)?;
        let shown = value != 0.0 || !quiet(name);
        shown.then(|| format!("{} {}", name.replace('_', " "), short(value)))
    });
    figures.collect::<Vec<_>>().join(", ")
}

/// The arguments without the paths of the output, which do not matter and may be private.
fn arguments(mut all: impl Iterator<Item = String>) -> String {
    const PATHS: [&str; 3] = ["--json", "--plots", "--into"];
    let mut kept = vec![];
    while let Some(argument) = all.next() {
        let name = argument.split('=').next().unwrap_or_default();
        if !PATHS.contains(&name) {
            kept.push(argument);
        } else if name == argument {
            // The path is an argument of its own.
            all.next();
        }
    }
    kept.join(" ")
}
