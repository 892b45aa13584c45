//! The figures of a run: what was acknowledged and delivered, and what the validators found.

use std::{
    collections::{BTreeMap, HashSet},
    time::{Duration, Instant},
};

use crate::{
    history::History,
    promises::{all_acknowledged, false_gaps, in_gap, violations},
};

/// Violations of one promise in one round that are shown.
const SHOWN: usize = 10;

/// The figures of all rounds so far.
pub struct Figures {
    started: Instant,
    rounds: usize,
    acknowledged: usize,
    delivered: usize,
    in_gaps: usize,
    /// The number of violations of each promise.
    found: BTreeMap<String, usize>,
    /// The longest time in which nothing was acknowledged.
    silence: Duration,
}

impl Figures {
    pub fn new() -> Figures {
        Figures {
            started: Instant::now(),
            rounds: 0,
            acknowledged: 0,
            delivered: 0,
            in_gaps: 0,
            found: BTreeMap::new(),
            silence: Duration::ZERO,
        }
    }

    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// The time since the start, for a line of the log.
    pub fn clock(&self) -> String {
        let seconds = self.elapsed().as_secs_f64();
        format!("{:3.0}:{:06.3}", (seconds / 60.0).floor(), seconds % 60.0)
    }

    /// A line of progress, with what a round has done so far.
    pub fn progress(&self, acknowledged: usize, delivered: usize) -> String {
        let (all, delivered) = (self.acknowledged + acknowledged, self.delivered + delivered);
        format!("{} {}", self.clock(), self.line(all, delivered))
    }

    /// Takes a finished round: counts, and checks every promise.
    pub fn take(&mut self, history: &History) {
        self.rounds += 1;
        let mut times: Vec<Duration> = Vec::new();
        for (_, acknowledged) in all_acknowledged(history) {
            times.push(acknowledged.at);
        }
        self.acknowledged += times.len();
        times.sort_unstable();
        let pauses = times.windows(2).map(|pair| pair[1].saturating_sub(pair[0]));
        self.silence = self.silence.max(pauses.max().unwrap_or_default());
        for node in &history.nodes {
            let had: HashSet<&str> = node.events().collect();
            let gaps: HashSet<&str> = node.gaps().flat_map(|gap| in_gap(history, gap)).collect();
            self.delivered += had.len();
            self.in_gaps += gaps.difference(&had).count();
            for gap in node.gaps() {
                println!("{} {} was notified of {gap:?}", self.clock(), node.node_id);
            }
        }
        let mut shown: BTreeMap<String, usize> = BTreeMap::new();
        let false_gaps = false_gaps(history).into_iter().map(|how| format!("NoFalseGap: {how}"));
        for how in violations(history).into_iter().chain(false_gaps) {
            let promise = how.split(':').next().unwrap_or_default().to_owned();
            *self.found.entry(promise.clone()).or_default() += 1;
            let count = shown.entry(promise).or_default();
            *count += 1;
            if *count <= SHOWN {
                println!("{} VIOLATION {how}", self.clock());
            }
        }
        println!(
            "{} round {}: {}",
            self.clock(),
            self.rounds,
            self.line(self.acknowledged, self.delivered)
        );
    }

    /// Prints the closing figures.
    ///
    /// # Panics
    ///
    /// If a promise was broken.
    pub fn close(&self) {
        println!(
            "{} {} rounds: {}",
            self.clock(),
            self.rounds,
            self.line(self.acknowledged, self.delivered)
        );
        assert!(self.found.is_empty(), "promises broken: {:?}; the log above has more", self.found);
    }

    fn line(&self, acknowledged: usize, delivered: usize) -> String {
        let count = |promise: &str| self.found.get(promise).copied().unwrap_or_default();
        let other: usize = self.found.values().sum::<usize>()
            - ["NoSilentLoss", "Unique", "NoFalseGap"].into_iter().map(count).sum::<usize>();
        #[allow(clippy::cast_precision_loss)] // for people
        let rate = acknowledged as f64 / self.elapsed().as_secs_f64();
        format!(
            "{acknowledged} acknowledged ({rate:.0}/s), {delivered} delivered, {} in gaps, {} \
             lost, {} repeated, {} false gaps, {other} other violations, longest without OK \
             {:.1} s",
            self.in_gaps,
            count("NoSilentLoss"),
            count("Unique"),
            count("NoFalseGap"),
            self.silence.as_secs_f64(),
        )
    }
}
