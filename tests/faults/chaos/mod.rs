//! Faults in combination, drawn by seed, on three gateways and under load: `./test --chaos
//! MINUTES --seed S`.
//!
//! A run is a number of legs, each with servers of its own, of each kind in turn. A leg
//! is a number of rounds: load, combinations of faults, and then the validators check what was
//! recorded, which is forgotten after that. So the memory that a run takes does not depend on how
//! long it is. A seed gives the same faults at the same times; what the processes do meanwhile is
//! not the same twice.

mod figures;
mod plan;
mod stage;

use std::time::{Duration, Instant};

use futures_util::future::join_all;

use self::{
    figures::Figures,
    plan::{Kind, Plan, Round},
    stage::Stage,
};
use crate::load::{Load, Shape};

/// The longest leg.
const LEG: Duration = Duration::from_mins(5);

/// The time between two lines of progress.
const PROGRESS: Duration = Duration::from_secs(10);

/// Events that are acknowledged after each combination, before the next one.
const BETWEEN: usize = 5_000;

/// The load: up to 8,000 events a second, so that a whole run has at least 3,000, faults included.
const SHAPE: Shape = Shape {
    publishers: 6,
    subscribers: 7,
    watchers: 2,
    changes: 20,
    accounts: 40,
    pace: Duration::from_millis(10),
    batch: 32,
    watchful: true,
    oldest: 1,
    slow: 2,
    clients: true,
    streams: 2,
};

/// What is run.
struct Run {
    duration: Duration,
    seed: u64,
    kinds: Vec<Kind>,
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_drawn_by_seed_lose_and_repeat_nothing() {
    let run = Run { duration: Duration::from_secs(1), seed: 1, kinds: vec![Kind::Standalone] };
    run.run().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_drawn_by_seed_lose_and_repeat_nothing_behind_sentinels() {
    let run = Run { duration: Duration::from_secs(1), seed: 1, kinds: vec![Kind::Sentinel] };
    run.run().await;
}

/// `./test --chaos MINUTES --seed S --kind KIND`
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a long run"]
async fn chaos_of_each_kind_of_redis_loses_and_repeats_nothing() {
    let number = |name: &str, default: u64| {
        let value = std::env::var(name).ok().filter(|value| !value.is_empty());
        value.map_or(default, |value| value.parse().unwrap_or_else(|_| panic!("{name}={value}")))
    };
    let wanted = std::env::var("CHAOS_KIND").unwrap_or_default();
    let is_wanted = |kind: &Kind| wanted.is_empty() || wanted == kind.name();
    let kinds: Vec<Kind> = Kind::ALL.into_iter().filter(is_wanted).collect();
    assert!(!kinds.is_empty(), "--kind {wanted}: standalone, cluster or sentinel");
    let duration = Duration::from_mins(number("CHAOS_MINUTES", 10));
    Run { duration, seed: number("CHAOS_SEED", 1), kinds }.run().await;
}

impl Run {
    /// Runs legs until the time is over; each leg ends with a whole round.
    ///
    /// # Panics
    ///
    /// If a promise is broken, at the end.
    async fn run(&self) {
        let share = self.duration / u32::try_from(self.kinds.len()).expect("few");
        let leg_time = share.min(LEG);
        let mut figures = Figures::new();
        let kinds = self.kinds.iter().copied().cycle();
        for (leg, kind) in (0_u64..).zip(kinds) {
            if figures.elapsed() >= self.duration {
                break;
            }
            // Any leg can be repeated alone: as the first of a run with its seed.
            let seed = self.seed + leg;
            println!("--- leg {leg}: {kind:?}, replay: {}", replay(kind, seed, leg_time));
            let stage = Stage::start(kind).await;
            let mut plan = Plan::new(kind, seed);
            let end = Instant::now() + leg_time;
            while Instant::now() < end {
                round(&stage, &plan.round(), &mut figures).await;
            }
        }
        figures.close();
    }
}

fn replay(kind: Kind, seed: u64, time: Duration) -> String {
    let minutes = time.as_secs().div_ceil(60);
    format!("./test --chaos {minutes} --seed {seed} --kind {}", kind.name())
}

/// Injects the faults of a round under load, and checks what was recorded.
async fn round(stage: &Stage, round: &Round, figures: &mut Figures) {
    stage.serving().await;
    stage.save().await;
    let [one, two, three] = &stage.gateways[..] else { panic!("three gateways") };
    let load = Load::start(&[one, two, three], SHAPE).await;
    let faults = async {
        for combination in round {
            let inject = combination.iter().map(async |(at, fault)| {
                tokio::time::sleep(*at).await;
                println!("{} {fault}", figures.clock());
                stage.inject(*fault).await;
                println!("{} healed: {fault}", figures.clock());
            });
            join_all(inject).await;
            stage.serving().await;
            load.publishes(BETWEEN).await;
        }
    };
    let progress = async {
        loop {
            tokio::time::sleep(PROGRESS).await;
            println!("{}", figures.progress(load.acknowledged(), load.delivered()));
        }
    };
    tokio::select! {
        () = faults => {}
        () = progress => {}
    }
    let history = load.finish().await;
    figures.take(&history);
}
