//! Asks streams of this gateway to go on at others that have fewer. [`super::balance`] decides how
//! many; here is which ones, and what became of them.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use rand::{Rng, seq::SliceRandom};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::{
    NodeEntry, Nodes,
    balance::{Balance, Change, Figures},
};
use crate::{
    config,
    leave::{Leave, LeaveReason},
    proto::v1::GatewayState,
};

/// The interval at which the figures are looked at.
const TICK: Duration = Duration::from_millis(250);

/// A node that was asked to go elsewhere and came back is not asked again for this time.
const NODE_INTERVAL: Duration = Duration::from_mins(10);

/// Nodes of which that is remembered.
const MAX_REMEMBERED: usize = 65_536;

/// A node that is asked connects again after a random part of this: a few are asked at a time.
const MAX_DELAY: Duration = Duration::from_millis(100);

/// What this gateway knows of the streams that it asked to leave, for whatever reason.
#[derive(Debug, Default)]
pub struct Moves {
    /// Streams that were asked, by reason, and those of them that have ended.
    asked: [AtomicU64; LeaveReason::ALL.len()],
    ended: [AtomicU64; LeaveReason::ALL.len()],
    /// Streams that were asked by [`run`] and are open.
    leaving: AtomicU64,
    is_moving: AtomicBool,
    times: Mutex<Times>,
}

#[derive(Debug, Default)]
struct Times {
    /// When the last stream ended that was asked by [`run`].
    left: Option<Instant>,
    /// When the last exchange with the other gateways began that succeeded.
    exchanged: Option<Instant>,
}

/// Whether a stream was asked to leave.
#[derive(Debug, Default)]
pub(super) struct Asked {
    /// By [`run`], whether it knows yet or not.
    to_move: AtomicBool,
    /// One more than the number of the reason, once it knows; zero before.
    reason: AtomicU8,
}

impl Moves {
    /// The number of streams that were asked to leave, for a reason.
    pub fn asked(&self, reason: LeaveReason) -> u64 {
        self.asked[reason as usize].load(Ordering::Relaxed)
    }

    /// The number of those that have ended.
    pub fn ended_after(&self, reason: LeaveReason) -> u64 {
        self.ended[reason as usize].load(Ordering::Relaxed)
    }

    /// True while streams are asked to leave because others have fewer, until the effect is known.
    pub fn is_moving(&self) -> bool {
        self.is_moving.load(Ordering::Relaxed)
    }

    /// A stream begins to leave.
    pub(super) fn leaves(&self, stream: &Asked, reason: LeaveReason) {
        let number = reason as u8 + 1;
        let first = stream.reason.compare_exchange(0, number, Ordering::Relaxed, Ordering::Relaxed);
        if first.is_ok() {
            self.asked[reason as usize].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A stream has ended.
    pub(super) fn ended(&self, stream: &Asked) {
        let reason = usize::from(stream.reason.load(Ordering::Relaxed));
        if let Some(ended) = reason.checked_sub(1).and_then(|reason| self.ended.get(reason)) {
            ended.fetch_add(1, Ordering::Relaxed);
        }
        if stream.to_move.swap(false, Ordering::AcqRel) {
            self.leaving.fetch_sub(1, Ordering::AcqRel);
            self.times.lock().left = Some(Instant::now());
        }
    }

    /// An exchange that began at this time has succeeded.
    pub(super) fn exchanged(&self, began: std::time::Instant) {
        self.times.lock().exchanged = Some(began.into());
    }
}

/// The task that evens out streams.
struct Mover {
    nodes: Arc<Nodes>,
    balance: Balance,
    min_age: Duration,
    /// The streams of a batch that may be asked, the first one last.
    candidates: Option<Vec<Arc<NodeEntry>>>,
    /// When nodes were asked that may come back.
    remembered: HashMap<String, Instant>,
}

/// Evens out the streams until `stop`.
pub async fn run(nodes: Arc<Nodes>, rebalance: config::Rebalance, stop: CancellationToken) {
    if !rebalance.enabled {
        return;
    }
    let mut mover = Mover {
        balance: Balance::new(rebalance.streams_per_second, rebalance.after),
        min_age: rebalance.min_age,
        nodes,
        candidates: None,
        remembered: HashMap::new(),
    };
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => mover.look(Instant::now()),
            () = stop.cancelled() => return,
        }
    }
}

impl Mover {
    fn look(&mut self, now: Instant) {
        let moves = &self.nodes.moves;
        let (left, exchanged) = {
            let times = moves.times.lock();
            (times.left, times.exchanged)
        };
        let others = self.nodes.others.serving();
        let figures = Figures {
            now,
            serves: self.nodes.gateway.state() == GatewayState::Serving,
            own: self.nodes.count() as u64,
            leaving: moves.leaving.load(Ordering::Acquire),
            left,
            exchanged,
            others: &others,
        };
        let (ask, change) = self.balance.next(&figures);
        let begins = match change {
            Some(Change::Ended { asked, own, pause }) => {
                log_end(asked, own, pause);
                None
            }
            begins => begins,
        };
        if ask > 0 {
            let asked = self.ask(ask, &figures);
            self.balance.asked(ask, asked, now);
            // Where no stream can be asked yet, nothing begins.
            if asked > 0
                && let Some(Change::Begins { own, surplus, gateways }) = begins
            {
                tracing::info!(
                    streams = own,
                    surplus,
                    gateways,
                    "rebalancing: other gateways have fewer streams"
                );
            }
        }
        if !self.balance.is_moving() {
            self.candidates = None;
        }
        self.nodes.moves.is_moving.store(self.balance.is_busy(), Ordering::Relaxed);
    }

    /// Asks up to `count` streams to leave; returns how many were asked.
    fn ask(&mut self, count: u64, figures: &Figures<'_>) -> u64 {
        let now = figures.now;
        if self.candidates.is_none() {
            self.candidates = Some(self.choose(now));
        }
        let mut asked = 0;
        while asked < count
            && let Some(entry) = self.candidates.as_mut().and_then(Vec::pop)
        {
            let node_id = &entry.node.node_id;
            if self.was_asked(node_id, now) {
                continue;
            }
            let delay = MAX_DELAY.mul_f64(rand::rng().random_range(0.0..1.0));
            let to = below_the_mean(figures, &mut rand::rng());
            let leave = Leave { to, ..Leave::now(LeaveReason::Rebalance, delay) };
            let asked_now = self.nodes.ask(&entry, leave);
            if asked_now == 0 {
                continue;
            }
            asked += asked_now;
            if self.remembered.len() >= MAX_REMEMBERED {
                self.remembered.retain(|_, at| now.duration_since(*at) < NODE_INTERVAL);
            }
            if self.remembered.len() < MAX_REMEMBERED {
                self.remembered.insert(node_id.clone(), now);
            }
        }
        asked
    }

    /// The streams that may be asked, those last that are to be asked first: which have read
    /// everything, in a random order, so that nodes, connections and accounts take turns.
    fn choose(&self, now: Instant) -> Vec<Arc<NodeEntry>> {
        let is_old_enough = |entry: &Arc<NodeEntry>| entry.since.elapsed() >= self.min_age;
        let mut entries: Vec<_> = self.nodes.all().into_iter().filter(is_old_enough).collect();
        entries.retain(|entry| !self.was_asked(&entry.node.node_id, now));
        entries.shuffle(&mut rand::rng());
        entries.sort_by_cached_key(|entry| std::cmp::Reverse(entry.behind()));
        entries
    }

    fn was_asked(&self, node_id: &str, now: Instant) -> bool {
        let asked = self.remembered.get(node_id);
        asked.is_some_and(|at| now.duration_since(*at) < NODE_INTERVAL)
    }
}

/// A gateway below the mean: a random one, the more often the more it lacks.
fn below_the_mean(figures: &Figures<'_>, rng: &mut impl Rng) -> Option<u64> {
    let mean = figures.mean();
    let lacks = |streams: u64| mean.saturating_sub(streams);
    let all: u64 = figures.others.iter().map(|(_, streams)| lacks(*streams)).sum();
    let mut left = if all > 0 { rng.random_range(0..all) } else { return None };
    for (id, streams) in figures.others {
        match left.checked_sub(lacks(*streams)) {
            Some(rest) => left = rest,
            None => return Some(id.0),
        }
    }
    None
}

fn log_end(asked: u64, streams: u64, pause: Option<Duration>) {
    match pause {
        None => tracing::info!(asked, streams, "rebalanced"),
        Some(pause) => tracing::warn!(
            asked,
            streams,
            ?pause,
            "rebalanced, but most of the streams came back, or others came: waiting before the \
             next attempt"
        ),
    }
}

impl Moves {
    /// Asks a stream to leave, once. False: it was asked before, or has ended.
    pub(super) fn ask(&self, entry: &NodeEntry, leave: Leave) -> bool {
        if entry.asked.reason.load(Ordering::Relaxed) != 0 {
            return false;
        }
        // Counted before it can end.
        self.leaving.fetch_add(1, Ordering::AcqRel);
        if entry.asked.to_move.swap(true, Ordering::AcqRel) {
            self.leaving.fetch_sub(1, Ordering::AcqRel);
            return false;
        }
        entry.notifications.leave(leave);
        true
    }
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;
    use crate::bus::MemberId;

    #[test]
    fn streams_are_sent_where_they_lack() {
        let named = |own, others: &[(MemberId, u64)], rng: &mut StdRng| {
            let now = Instant::now();
            let figures = Figures {
                now,
                serves: true,
                own,
                leaving: 0,
                left: None,
                exchanged: Some(now),
                others,
            };
            below_the_mean(&figures, rng)
        };
        let mut rng = StdRng::seed_from_u64(1);
        // The mean is 100: one lacks 75, one 25, and one nothing.
        let others = [(MemberId(7), 25), (MemberId(8), 100), (MemberId(9), 75)];
        let mut counts = HashMap::new();
        for _ in 0..1000 {
            *counts.entry(named(200, &others, &mut rng)).or_insert(0) += 1;
        }
        assert_eq!(counts.len(), 2, "{counts:?}");
        assert!((650..850).contains(&counts[&Some(7)]), "{counts:?}");
        assert_eq!(named(100, &[(MemberId(7), 100)], &mut rng), None);
    }
}
