//! Decides how many streams this gateway asks to go on elsewhere: how streams even out over the
//! gateways after one has joined or restarted.
//!
//! A state machine without clocks and tasks. What it gets is what this gateway knows: its own
//! streams, exactly, and those of the others, seconds late. From that follow its rules:
//!
//! - Nothing is moved before the same gateways have served for a time, since nodes that a restart
//!   sent away find their places by themselves first.
//! - A *batch* begins where this gateway has many more streams than the mean, and moves the
//!   difference to the mean, at most half of its streams, at a pace. Its aim never falls: streams
//!   that have left one gateway and are not counted at the next make the mean look lower than it
//!   is.
//! - After a batch nothing is moved until its streams have left, and the figures of the others are
//!   later than that. So no figure is acted on twice, and several gateways that act at one time,
//!   each on its own surplus, move no more than all their surpluses.
//! - Where the streams come back, more is not tried: a batch that took less than half of its
//!   streams away is followed by a pause, twice as long each time.

use std::time::Duration;

use tokio::time::Instant;

use crate::bus::MemberId;

/// A gateway has many more streams than the mean if it has this part of the mean more, and as many
/// more as the least surplus.
const SURPLUS: u64 = 10;
const MIN_SURPLUS: u64 = 5;

/// The same where another gateway has less than half of the mean: with ten gateways and more, one
/// that is empty does not lift the others above the first limit.
const SURPLUS_BESIDE_AN_EMPTY_ONE: u64 = 50;

/// No gateway has more streams: a record that says so is a lie, which this bounds.
const MAX_STREAMS: u64 = 10_000_000;

/// Figures of others that are older are not acted on: the store does not answer.
const FRESH: Duration = Duration::from_secs(6);

/// The time in which a stream that has left is open elsewhere and counted there: its node waits for
/// up to two seconds and connects, and gateways exchange their figures every two seconds.
pub const SETTLE: Duration = Duration::from_secs(8);

/// The pause after a batch whose streams came back; it doubles up to the longest.
const PAUSE: Duration = Duration::from_mins(1);
const MAX_PAUSE: Duration = Duration::from_hours(1);

/// What a gateway knows at one time.
#[derive(Clone, Copy, Debug)]
pub struct Figures<'a> {
    /// The time.
    pub now: Instant,
    /// True while this gateway serves: it has started, and does not drain.
    pub serves: bool,
    /// Its open streams.
    pub own: u64,
    /// Those of them that were asked to leave.
    pub leaving: u64,
    /// When the last stream that was asked has ended.
    pub left: Option<Instant>,
    /// When the exchange began that the figures of the others are from.
    pub exchanged: Option<Instant>,
    /// The other gateways that serve, in the order of their ids, with the streams that they say
    /// they have.
    pub others: &'a [(MemberId, u64)],
}

impl Figures<'_> {
    /// The mean over the gateways that serve, rounded up.
    pub fn mean(&self) -> u64 {
        let of_others = self.others.iter().map(|(_, streams)| (*streams).min(MAX_STREAMS));
        let all = self.own.min(MAX_STREAMS) + of_others.sum::<u64>();
        all.div_ceil(self.others.len() as u64 + 1)
    }
}

/// What changed, for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// A batch begins.
    Begins {
        /// Open streams.
        own: u64,
        /// Streams to be asked to leave.
        surplus: u64,
        /// Gateways that serve.
        gateways: usize,
    },
    /// A batch is over, and its effect is known.
    Ended {
        /// Streams that were asked to leave.
        asked: u64,
        /// Open streams, now.
        own: u64,
        /// The pause before the next one, where streams came back.
        pause: Option<Duration>,
    },
}

/// The decisions of one gateway.
#[derive(Debug)]
pub struct Balance {
    /// Streams that may be asked to leave in a second.
    per_second: u32,
    /// How long the gateways must have been the same.
    after: Duration,
    phase: Phase,
    /// The other gateways that serve, and since when they are the same.
    others: Vec<MemberId>,
    same_since: Option<Instant>,
    /// Batches in a row whose streams came back.
    failures: u32,
    not_before: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    Watching,
    Moving(Batch),
    /// The batch is over, since a time; its effect is awaited.
    Settling(Batch, Instant),
}

#[derive(Clone, Copy, Debug)]
struct Batch {
    /// Streams that were open when it began.
    before: u64,
    /// Streams that it leaves.
    aim: u64,
    asked: u64,
    /// Streams that may be asked now, in parts, and when that was computed.
    credit: f64,
    at: Instant,
}

impl Balance {
    /// Nothing is known yet.
    pub fn new(per_second: u32, after: Duration) -> Balance {
        Balance {
            per_second,
            after,
            phase: Phase::Watching,
            others: vec![],
            same_since: None,
            failures: 0,
            not_before: None,
        }
    }

    /// The number of streams to ask now, and what changed. [`Balance::asked`] must follow where it
    /// is not zero.
    pub fn next(&mut self, figures: &Figures<'_>) -> (u64, Option<Change>) {
        let now = figures.now;
        let changed = !figures.others.iter().map(|(id, _)| id).eq(&self.others);
        if changed {
            self.others = figures.others.iter().map(|(id, _)| *id).collect();
            // Others may take what came back before.
            self.failures /= 2;
            let longest = now + pause(self.failures);
            self.not_before = self.not_before.map(|until| until.min(longest));
        }
        if changed || self.same_since.is_none() {
            self.same_since = Some(now);
        }
        if !figures.serves || figures.others.is_empty() {
            (self.phase, self.same_since) = (Phase::Watching, None);
            return (0, None);
        }
        let is_fresh = figures.exchanged.is_some_and(|at| now.duration_since(at) <= FRESH);
        match self.phase {
            Phase::Watching if is_fresh => self.begin(figures),
            Phase::Moving(batch) if changed => {
                self.phase = Phase::Settling(batch, now);
                (0, None)
            }
            Phase::Moving(batch) if is_fresh => (self.go_on(batch, figures), None),
            Phase::Settling(batch, since) => (0, self.settle(batch, since, figures)),
            Phase::Watching | Phase::Moving(_) => (0, None),
        }
    }

    /// True while streams are asked to leave.
    pub fn is_moving(&self) -> bool {
        matches!(self.phase, Phase::Moving(_))
    }

    /// The same, until the effect is known.
    pub fn is_busy(&self) -> bool {
        !matches!(self.phase, Phase::Watching)
    }

    /// So many of the streams that [`Balance::next`] named were asked. Fewer: there are no others
    /// that can be asked.
    pub fn asked(&mut self, wanted: u64, asked: u64, now: Instant) {
        let Phase::Moving(batch) = &mut self.phase else { return };
        batch.asked += asked;
        // Both are far below the numbers that are not exact.
        #[allow(clippy::cast_precision_loss)]
        let spent = asked as f64;
        batch.credit -= spent;
        let batch = *batch;
        if asked >= wanted {
            return;
        }
        if batch.asked > 0 {
            self.phase = Phase::Settling(batch, now);
        } else {
            self.phase = Phase::Watching;
            self.not_before = Some(now + SETTLE);
        }
    }

    fn begin(&mut self, figures: &Figures<'_>) -> (u64, Option<Change>) {
        let now = figures.now;
        let is_calm = self.same_since.is_some_and(|since| now >= since + self.after);
        if !is_calm || self.not_before.is_some_and(|until| now < until) {
            return (0, None);
        }
        let mean = figures.mean();
        let least = figures.others.iter().map(|(_, streams)| *streams).min().unwrap_or_default();
        // Where streams came back, a smaller reason is none.
        let part = if self.failures == 0 && least < mean / 2 {
            SURPLUS_BESIDE_AN_EMPTY_ONE
        } else {
            SURPLUS
        };
        if figures.own <= mean + (mean / part).max(MIN_SURPLUS) {
            return (0, None);
        }
        let surplus = (figures.own - mean).min(figures.own / 2);
        let batch = Batch {
            before: figures.own,
            aim: figures.own - surplus,
            asked: 0,
            credit: 1.0,
            at: now,
        };
        self.phase = Phase::Moving(batch);
        let begins =
            Change::Begins { own: figures.own, surplus, gateways: figures.others.len() + 1 };
        (self.go_on(batch, figures), Some(begins))
    }

    /// The number of streams to ask now.
    fn go_on(&mut self, mut batch: Batch, figures: &Figures<'_>) -> u64 {
        let per_second = f64::from(self.per_second);
        let earned = figures.now.duration_since(batch.at).as_secs_f64() * per_second;
        // A task that was held up does not ask all at once.
        batch.credit = (batch.credit + earned).min(per_second.max(1.0));
        batch.at = figures.now;
        let aim = batch.aim.max(figures.mean());
        let above = (figures.own - figures.leaving.min(figures.own)).saturating_sub(aim);
        let left = above.min((batch.before - batch.aim).saturating_sub(batch.asked));
        if left == 0 {
            self.phase = Phase::Settling(batch, figures.now);
            return 0;
        }
        self.phase = Phase::Moving(batch);
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let credit = batch.credit.max(0.0) as u64;
        left.min(credit)
    }

    fn settle(&mut self, batch: Batch, since: Instant, figures: &Figures<'_>) -> Option<Change> {
        let now = figures.now;
        let has_left = figures.leaving == 0 || now >= since + crate::leave::LEAVE_TIMEOUT;
        let quiet = figures.left.map_or(since, |left| left.max(since)) + SETTLE;
        // A call that began then has read what the others wrote before.
        if !has_left || figures.exchanged.is_none_or(|at| at < quiet) {
            return None;
        }
        self.phase = Phase::Watching;
        let away = batch.before.saturating_sub(figures.own);
        let came_back = batch.asked > 0 && 2 * away < batch.asked;
        self.failures = if came_back { self.failures.saturating_add(1) } else { 0 };
        let pause = came_back.then(|| pause(self.failures));
        self.not_before = pause.map(|pause| now + pause);
        Some(Change::Ended { asked: batch.asked, own: figures.own, pause })
    }
}

/// The pause after so many batches in a row whose streams came back.
fn pause(failures: u32) -> Duration {
    let doubled = failures.saturating_sub(1).min(10);
    if failures == 0 { Duration::ZERO } else { (PAUSE * (1 << doubled)).min(MAX_PAUSE) }
}

#[cfg(test)]
mod tests;
