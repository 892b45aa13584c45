//! Counts who was turned away, and says so in the log, but not more often than somebody reads.

use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use crate::access::rules::Rule;

/// One line at the most in this time.
const BETWEEN_LINES: Duration = Duration::from_secs(1);

/// Those who were turned away, by rule.
#[derive(Default)]
pub struct Refusals {
    counts: [AtomicU64; Rule::ALL.len()],
    last: Mutex<Said>,
}

#[derive(Default)]
struct Said {
    when: Option<Instant>,
    since: u64,
}

impl Refusals {
    /// Somebody was turned away. Nothing that he sent is told.
    pub fn note(&self, rule: Rule, who: &dyn fmt::Display, why: &str) {
        self.counts[rule as usize].fetch_add(1, Ordering::Relaxed);
        let mut last = self.last.lock();
        if last.when.is_some_and(|when| when.elapsed() < BETWEEN_LINES) {
            last.since += 1;
            return;
        }
        let unsaid = std::mem::take(&mut last.since);
        last.when = Some(Instant::now());
        drop(last);
        tracing::warn!(rule = rule.name(), %who, why, unsaid, "refused");
    }

    /// How many there were.
    pub fn count(&self, rule: Rule) -> u64 {
        self.counts[rule as usize].load(Ordering::Relaxed)
    }
}
