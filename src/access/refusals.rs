//! Counts what access refuses, and logs it at a pace that a person can read.

use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use crate::access::rules::Rule;

/// One line in this time; further refusals are only counted.
const LINE_INTERVAL: Duration = Duration::from_secs(1);

/// The refused connections, requests and streams, by rule.
#[derive(Default)]
pub struct Refusals {
    counts: [AtomicU64; Rule::ALL.len()],
    log: Mutex<Log>,
}

#[derive(Default)]
struct Log {
    last_line: Option<Instant>,
    left_out: u64,
}

impl Refusals {
    /// Counts a refusal, and logs it unless a line was just written. `caller` is an identity or an
    /// address; nothing that the caller sent may be in `why`.
    pub fn record(&self, rule: Rule, caller: &dyn fmt::Display, why: &str) {
        self.counts[rule as usize].fetch_add(1, Ordering::Relaxed);
        let mut log = self.log.lock();
        if log.last_line.is_some_and(|at| at.elapsed() < LINE_INTERVAL) {
            log.left_out += 1;
            return;
        }
        let left_out = std::mem::take(&mut log.left_out);
        log.last_line = Some(Instant::now());
        drop(log);
        tracing::warn!(rule = rule.name(), %caller, why, left_out, "access refused");
    }

    /// The number of refusals by this rule since the start.
    pub fn count(&self, rule: Rule) -> u64 {
        self.counts[rule as usize].load(Ordering::Relaxed)
    }
}
