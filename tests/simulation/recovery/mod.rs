//! Gateways and their Redis under random combinations of faults, one seed after the other.
//!
//! The state machines are those of the gateway (writer, reader, memory of recovery), and the model
//! of Redis executes the real script. Which faults a seed has is drawn too. At the end of a seed
//! all faults end, everything comes to rest, and the judge holds the promises against what was
//! seen.

mod bus;
mod event;
mod judge;
mod line;
mod node;
mod rng;
mod world;

use self::{
    judge::judge,
    rng::Rng,
    world::{ACTS, Act, FAULTS, Setting, World},
};

/// Runs one seed. The error says which promise was broken.
fn run(seed: u64, setting: &Setting, trace: bool) -> (World, Result<(), String>) {
    let mut draw = Rng(seed.wrapping_mul(0x2545_f491_4f6c_dd1d) ^ 0x5bd1_e995);
    let gateways = 2 + draw.below(3);
    let steps = 150 + draw.below(500);
    let level = 20 + draw.below(60);
    let faults: Vec<Act> = FAULTS.iter().copied().filter(|_| draw.percent(level)).collect();
    let weight = |(act, weight): &(Act, usize)| {
        let is_fault = FAULTS.contains(act);
        if is_fault && !faults.contains(act) { 0 } else { *weight }
    };
    let weights: Vec<usize> = ACTS.iter().map(weight).collect();
    let total: usize = weights.iter().sum();
    let mut world = World::new(draw.next(), setting, gateways, trace);
    for _ in 0..steps {
        let mut at = draw.below(total);
        let mut chosen = 0;
        for (index, weight) in weights.iter().enumerate() {
            chosen = index;
            if at < *weight {
                break;
            }
            at -= weight;
        }
        world.act(ACTS[chosen].0);
    }
    let result = world.heal().and_then(|()| judge(&mut world));
    (world, result)
}

fn seeds(from: u64, count: u64) {
    let setting = Setting::new();
    let runtime = setting.runtime();
    let _entered = runtime.enter();
    let mut failing = Vec::new();
    let mut happened = std::collections::BTreeMap::new();
    for seed in from..from + count {
        let (world, result) = run(seed, &setting, false);
        for (what, count) in world.happened {
            *happened.entry(what).or_insert(0) += count;
        }
        if let Err(why) = result {
            failing.push((seed, why));
            if failing.len() >= 10 {
                break;
            }
        }
    }
    eprintln!("{count} seeds from {from}: {happened:?}");
    if let Some((seed, why)) = failing.first() {
        let (world, _) = run(*seed, &setting, true);
        for line in &world.history {
            eprintln!("{line}");
        }
        let all: Vec<String> = failing.iter().map(|(seed, why)| format!("{seed}: {why}")).collect();
        panic!("seed {seed}: {why}\nall failing: {all:#?}");
    }
}

/// `SEED=7 SEEDS=1 cargo test --test simulation promises_hold` replays seed 7.
#[test]
fn promises_hold_under_random_combinations_of_faults() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    seeds(number("SEED").unwrap_or(1), number("SEEDS").unwrap_or(2000));
}
