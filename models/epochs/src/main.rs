//! Checks every state that a few gateways, events and failovers can reach: see README.md.

mod gateway;
mod model;
mod script;

use std::time::{Duration, Instant};

use model::Epochs;
use script::Broken;
use stateright::{Checker, HasDiscoveries, Model};

/// Attempts of a walk to take a step.
const MAX_STEPS: u32 = 400;

const HELP: &str = "cargo run --release -- [--events N] [--failovers N] [--crashes N] [--walks \
                    SECONDS [--seed N]] [--without \
                    identity|numbers|settle|notes|copies|stated|order|view|writers]";

fn main() {
    let mut model = Epochs { events: 3, failovers: 2, crashes: 0, broken: None };
    let (mut walks, mut seed) = (None, 1);
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let value = words.next().unwrap_or_default();
        let (number, long) = (value.parse(), value.parse());
        match (word.as_str(), number) {
            ("--events", Ok(number)) => model.events = number,
            ("--failovers", Ok(number)) => model.failovers = number,
            ("--crashes", Ok(number)) => model.crashes = number,
            ("--walks", _) if long.is_ok() => walks = long.ok(),
            ("--seed", _) if long.is_ok() => seed = long.unwrap_or(seed),
            ("--without", Err(_)) if rule(&value).is_some() => model.broken = rule(&value),
            _ => {
                eprintln!("{HELP}");
                std::process::exit(2);
            }
        }
    }
    let failed = match walks {
        None => {
            let builder = model.checker().threads(2).finish_when(HasDiscoveries::AnyFailures);
            report(&builder.spawn_bfs())
        }
        Some(seconds) => walk(&model, Duration::from_secs(seconds), seed),
    };
    std::process::exit(i32::from(failed));
}

/// Takes random steps, from the beginning again and again, for bounds that are too large to visit
/// every state. True if a promise is broken.
fn walk(model: &Epochs, time: Duration, seed: u64) -> bool {
    let started = Instant::now();
    let (mut walks, mut steps) = (0u64, 0u64);
    let promises = model.properties().into_iter().filter(|one| one.name.starts_with("always"));
    let promises: Vec<_> = promises.collect();
    while started.elapsed() < time {
        // Each walk can be repeated alone: its number is the seed.
        let mut random = Random(seed + walks);
        let mut world = model.init_states().remove(0);
        let mut taken = Vec::new();
        for _ in 0..MAX_STEPS {
            let mut actions = Vec::new();
            model.actions(&world, &mut actions);
            let Some(action) = random.choose(&actions) else { break };
            let Some(next) = model.next_state(&world, action) else { continue };
            (world, steps) = (next, steps + 1);
            taken.push(action);
            for promise in &promises {
                if !(promise.condition)(model, &world) {
                    println!("seed {}: {}: BROKEN", seed + walks, promise.name);
                    println!("{}", world.summary());
                    taken.iter().for_each(|action| println!("    {action:?}"));
                    return true;
                }
            }
        }
        walks += 1;
    }
    println!("{walks} walks of {steps} steps from seed {seed} on: all promises hold");
    false
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn choose<T: Copy>(&mut self, from: &[T]) -> Option<T> {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let index = (bits ^ (bits >> 31)) % (from.len() as u64).max(1);
        from.get(usize::try_from(index).ok()?).copied()
    }
}

/// Waits for the checker, and prints what it found. True if a promise is broken, or something that
/// must happen was never seen.
fn report(checker: &impl Checker<Epochs>) -> bool {
    let started = Instant::now();
    while !checker.is_done() {
        std::thread::sleep(Duration::from_millis(100));
    }
    println!(
        "{} states, {} of them different, depth {}, {:.0} s",
        checker.state_count(),
        checker.unique_state_count(),
        checker.max_depth(),
        started.elapsed().as_secs_f64()
    );
    let mut failed = false;
    for (name, path) in checker.discoveries() {
        let wrong = name.starts_with("always");
        failed |= wrong;
        println!(
            "{name}: {} in {} steps",
            if wrong { "BROKEN" } else { "seen" },
            path.clone().into_actions().len()
        );
        if wrong {
            println!("{}", path.last_state().summary());
            path.into_actions().iter().for_each(|action| println!("    {action:?}"));
        }
    }
    let missing = model::properties().filter(|name| checker.discovery(name).is_none());
    for name in missing {
        let never_seen = name.starts_with("sometimes");
        failed |= never_seen;
        println!("{name}: {}", if never_seen { "NEVER SEEN" } else { "holds" });
    }
    failed
}

fn rule(name: &str) -> Option<Broken> {
    Some(match name {
        "identity" => Broken::Identity,
        "numbers" => Broken::Numbers,
        "settle" => Broken::Settle,
        "notes" => Broken::Notes,
        "copies" => Broken::Copies,
        "stated" => Broken::Stated,
        "order" => Broken::Order,
        "view" => Broken::View,
        "writers" => Broken::Writers,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The promises that a model breaks.
    fn broken(events: u8, failovers: u8, broken: Option<Broken>) -> Vec<&'static str> {
        let model = Epochs { events, failovers, crashes: 0, broken };
        let checker = model.checker().finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
        checker.discoveries().into_keys().filter(|name| name.starts_with("always")).collect()
    }

    #[test]
    fn every_state_of_small_bounds_keeps_the_promises() {
        for (events, failovers) in [(1, 1), (2, 1), (1, 2)] {
            assert!(broken(events, failovers, None).is_empty(), "{events}, {failovers}");
        }
    }

    #[test]
    fn every_rule_that_is_left_out_breaks_a_promise() {
        for (rule, events, failovers) in [
            (Broken::Identity, 2, 1),
            (Broken::Numbers, 1, 2),
            (Broken::Settle, 1, 1),
            (Broken::Notes, 1, 1),
            (Broken::Copies, 1, 2),
            (Broken::Stated, 1, 1),
            (Broken::Order, 2, 1),
            (Broken::View, 1, 1),
            (Broken::Writers, 1, 1),
        ] {
            assert!(!broken(events, failovers, Some(rule)).is_empty(), "{rule:?}");
        }
    }
}
