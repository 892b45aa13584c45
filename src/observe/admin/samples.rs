//! The plots of the page: one point a second for the last ten minutes.
//!
//! A point is the difference between two readings of the totals, so that events pay nothing for it.
//! The ring has a fixed size.

use std::{collections::VecDeque, time::Duration};

use parking_lot::Mutex;
use serde::Serialize;
use tokio::time::Instant;
use trunkline_proto::kinds;

use super::Sources;
use crate::{
    bus::unix_ms,
    leave::LeaveReason,
    observe::{
        counters::Counters,
        histogram::{BUCKETS, Histogram},
    },
};

/// The time between two points.
pub const INTERVAL: Duration = Duration::from_secs(1);

/// Points that are kept: ten minutes of them.
pub const MAX_POINTS: usize = 600;

/// Buckets of a histogram, the one without an upper bound included.
const BUCKET_COUNT: usize = BUCKETS.len() + 1;

/// The points, and the totals of the last reading.
#[derive(Default)]
pub struct Samples(Mutex<State>);

#[derive(Default)]
struct State {
    points: VecDeque<Point>,
    last: Option<(Instant, Totals)>,
    /// Points since the start.
    count: u64,
}

/// One second. Rates are events a second, times are milliseconds.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Point {
    /// Counts up from 1; the page asks for the points after the last one that it has.
    pub number: u64,
    /// The time of the reading, in milliseconds since 1970.
    pub at: u64,
    /// Events accepted by this gateway, for each of the [`kinds`].
    pub published: Vec<f64>,
    /// Events that came over the bus, of all gateways.
    pub received: f64,
    /// Events delivered, counted for each stream.
    pub delivered: f64,
    /// Durations of accepted publish requests; `None` without requests.
    pub publish: Option<Spread>,
    /// Ages of the oldest frame of each delivered batch.
    pub lag: Option<Spread>,
    /// Gaps reported to streams.
    pub gaps: f64,
    /// Streams that were asked to go on elsewhere.
    pub moved: f64,
}

/// Two percentiles of durations, as exact as the buckets of the histogram allow.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// The median.
    pub p50: f64,
    /// The 99th percentile.
    pub p99: f64,
}

/// One reading of the totals.
#[derive(Clone, Default)]
struct Totals {
    published: Vec<u64>,
    received: u64,
    delivered: u64,
    gaps: u64,
    moved: u64,
    publish: [u64; BUCKET_COUNT],
    lag: [u64; BUCKET_COUNT],
}

impl Samples {
    /// Reads the totals and adds the next point.
    pub fn take(&self, sources: &Sources) {
        self.add(Instant::now(), unix_ms(), Totals::read(sources));
    }

    fn add(&self, now: Instant, at: u64, totals: Totals) {
        let mut state = self.0.lock();
        let Some((then, before)) = state.last.take() else {
            state.last = Some((now, totals));
            return;
        };
        let span = now.duration_since(then).as_secs_f64();
        if span <= 0.0 {
            state.last = Some((then, before));
            return;
        }
        state.count += 1;
        let point = totals.since(&before, span, state.count, at);
        state.last = Some((now, totals));
        if state.points.len() == MAX_POINTS {
            state.points.pop_front();
        }
        state.points.push_back(point);
    }

    /// The points after `number`; all of them if this process has not got that far.
    pub fn after(&self, number: u64) -> Vec<Point> {
        let state = self.0.lock();
        let from = if number > state.count { 0 } else { number };
        state.points.iter().filter(|point| point.number > from).cloned().collect()
    }
}

impl Totals {
    fn read(sources: &Sources) -> Totals {
        let counters = &sources.records.counters;
        let logs = sources.gateway.hub.get().map(|hub| hub.logs());
        Totals {
            published: by_kind(counters),
            received: logs.map_or(0, |logs| logs.iter().map(|log| log.extent().total).sum()),
            delivered: counters.delivered_events(),
            gaps: counters.gaps_of_all_reasons().gaps,
            moved: LeaveReason::ALL.map(|reason| sources.nodes.moves.asked(reason)).iter().sum(),
            publish: cumulative(counters.publish_times()),
            lag: cumulative(counters.lags()),
        }
    }

    #[allow(clippy::cast_precision_loss)]
    fn since(&self, before: &Totals, span: f64, number: u64, at: u64) -> Point {
        // One decimal is enough for a plot.
        let rate =
            |now: u64, then: u64| (now.saturating_sub(then) as f64 / span * 10.0).round() / 10.0;
        Point {
            number,
            at,
            published: {
                let both = self.published.iter().zip(&before.published);
                both.map(|(now, then)| rate(*now, *then)).collect()
            },
            received: rate(self.received, before.received),
            delivered: rate(self.delivered, before.delivered),
            publish: spread(&self.publish, &before.publish),
            lag: spread(&self.lag, &before.lag),
            gaps: rate(self.gaps, before.gaps),
            moved: rate(self.moved, before.moved),
        }
    }
}

/// The names of the kinds. The last one stands for all kinds that this gateway does not know.
pub fn kinds() -> Vec<String> {
    let names = kinds::TABLE.iter().map(|row| row.name);
    names.chain(["unknown"]).map(str::to_owned).collect()
}

/// Events accepted, in the order of [`kinds`].
fn by_kind(counters: &Counters) -> Vec<u64> {
    let mut counts = Vec::new();
    let mut unknown = 0;
    for (kind, count) in counters.published_by_kind() {
        if kinds::name(kind).is_some() { counts.push(count) } else { unknown += count }
    }
    counts.push(unknown);
    counts
}

fn filled<const N: usize>(values: impl IntoIterator<Item = u64>) -> [u64; N] {
    let mut filled = [0; N];
    for (slot, value) in filled.iter_mut().zip(values) {
        *slot = value;
    }
    filled
}

fn cumulative(histogram: &Histogram) -> [u64; BUCKET_COUNT] {
    filled(histogram.cumulative())
}

/// The percentiles of the durations counted between two readings.
fn spread(now: &[u64; BUCKET_COUNT], before: &[u64; BUCKET_COUNT]) -> Option<Spread> {
    let counts: [u64; BUCKET_COUNT] =
        std::array::from_fn(|end| now[end].saturating_sub(before[end]));
    if counts[BUCKET_COUNT - 1] == 0 {
        return None;
    }
    Some(Spread { p50: quantile(&counts, 0.5), p99: quantile(&counts, 0.99) })
}

/// A quantile of cumulative counts, in milliseconds, interpolated within its bucket. Past the last
/// upper bound it is that bound.
#[allow(clippy::cast_precision_loss)]
fn quantile(counts: &[u64; BUCKET_COUNT], part: f64) -> f64 {
    let rank = counts[BUCKET_COUNT - 1] as f64 * part;
    let bucket = counts.iter().position(|count| *count as f64 >= rank).unwrap_or(BUCKET_COUNT - 1);
    let Some(end) = BUCKETS.get(bucket).map(|end| *end as f64) else {
        return BUCKETS[BUCKETS.len() - 1] as f64 / 1000.0;
    };
    let (start, below) = match bucket.checked_sub(1) {
        Some(before) => (BUCKETS[before] as f64, counts[before] as f64),
        None => (0.0, 0.0),
    };
    let within = (rank - below) / (counts[bucket] as f64 - below);
    // Rounded to microseconds.
    (start + (end - start) * within).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn totals(published: u64, delivered: u64) -> Totals {
        Totals {
            published: vec![0, published, 0],
            delivered,
            received: published,
            ..Totals::default()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_point_holds_the_rates_between_two_readings() {
        let samples = Samples::default();
        let begun = Instant::now();
        samples.add(begun, 1000, totals(100, 200));
        assert_eq!(samples.after(0), [], "one reading gives no rate");
        samples.add(begun + Duration::from_secs(2), 3000, totals(105, 260));
        let points = samples.after(0);
        assert_eq!(points.len(), 1);
        let point = &points[0];
        assert_eq!((point.number, point.at, point.published[1]), (1, 3000, 2.5));
        assert_eq!((point.received, point.delivered, point.published[2]), (2.5, 30.0, 0.0));
        assert_eq!((point.publish, point.lag), (None, None));
    }

    #[tokio::test(start_paused = true)]
    async fn ten_minutes_are_kept_and_only_newer_points_are_returned() {
        let samples = Samples::default();
        let begun = Instant::now();
        for second in 0..MAX_POINTS as u64 + 11 {
            samples.add(
                begun + INTERVAL * u32::try_from(second).unwrap(),
                second,
                totals(second, 0),
            );
        }
        let all = samples.after(0);
        assert_eq!((all.len(), all[0].number, all[MAX_POINTS - 1].number), (MAX_POINTS, 11, 610));
        assert_eq!(samples.after(608).len(), 2);
        assert_eq!(samples.after(610), []);
        // A number from before a restart.
        assert_eq!(samples.after(9999).len(), MAX_POINTS);
    }

    #[test]
    fn quantiles_are_interpolated_in_the_bucket_of_their_rank() {
        let none = [0; BUCKET_COUNT];
        assert_eq!(spread(&none, &none), None);
        // A hundred between 250 and 500 us.
        let counts = std::array::from_fn(|end| if end >= 2 { 100 } else { 0 });
        let seen = spread(&counts, &none).unwrap();
        assert_eq!((seen.p50, seen.p99), (0.375, 0.498));
        // The same, read again: nothing new.
        assert_eq!(spread(&counts, &counts), None);
        // Past the last bound.
        let late = std::array::from_fn(|end| u64::from(end == BUCKET_COUNT - 1));
        assert_eq!(spread(&late, &none), Some(Spread { p50: 10_000.0, p99: 10_000.0 }));
    }
}
