//! The last ten minutes, one point a second, for the plots of the page.
//!
//! A point is the difference of two readings of the totals: it costs events nothing. The ring is as large when nothing
//! happens as when everything does.

use std::{collections::VecDeque, time::Duration};

use parking_lot::Mutex;
use serde::Serialize;
use tokio::time::Instant;

use crate::observe::admin::metrics::kind_name;
use crate::{
    bus::unix_ms,
    observe::counters::{BUCKETS, Counters, Histogram},
    rpc::service::Shared,
};

/// How far points are apart.
pub const EVERY: Duration = Duration::from_secs(1);

/// How many points are kept: ten minutes.
pub const KEPT: usize = 600;

/// Buckets of a histogram, the one without an end included.
const ENDS: usize = BUCKETS.len() + 1;

/// The points, and the totals at the last one.
#[derive(Default)]
pub struct Samples(Mutex<State>);

#[derive(Default)]
struct State {
    points: VecDeque<Point>,
    last: Option<(Instant, Totals)>,
    /// Points ever made.
    count: u64,
}

/// One second. Rates are events a second, times are milliseconds.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Point {
    /// Counts on from 1; tells which points somebody has already.
    pub number: u64,
    /// When it was made, since 1970.
    pub at: u64,
    /// Events accepted by this gateway, of each of the [`kinds`].
    pub published: Vec<f64>,
    /// Events that came over the bus, of all gateways.
    pub received: f64,
    /// Events sent, once a stream.
    pub delivered: f64,
    /// How long accepted requests took; none where there were none.
    pub publish: Option<Spread>,
    /// How old the oldest frame of each batch was.
    pub lag: Option<Spread>,
    /// Gaps that streams were told.
    pub gaps: f64,
}

/// The middle and the slow end of times, as far as the buckets in which they are counted tell.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// Half of them took no longer.
    pub p50: f64,
    /// All but one in a hundred took no longer.
    pub p99: f64,
}

/// What is read once a second.
#[derive(Clone, Default)]
struct Totals {
    published: Vec<u64>,
    received: u64,
    delivered: u64,
    gaps: u64,
    publish: [u64; ENDS],
    lag: [u64; ENDS],
}

impl Samples {
    /// Makes the next point.
    pub fn take(&self, shared: &Shared) {
        self.add(Instant::now(), unix_ms(), Totals::read(shared));
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
        if state.points.len() == KEPT {
            state.points.pop_front();
        }
        state.points.push_back(point);
    }

    /// The points after the one with this number; all where that is none of this gateway's.
    pub fn after(&self, number: u64) -> Vec<Point> {
        let state = self.0.lock();
        let from = if number > state.count { 0 } else { number };
        state.points.iter().filter(|point| point.number > from).cloned().collect()
    }
}

impl Totals {
    fn read(shared: &Shared) -> Totals {
        let counters = &shared.counters;
        let logs = shared.hub.get().map(|hub| hub.logs());
        Totals {
            published: by_kind(counters),
            received: logs.map_or(0, |logs| logs.iter().map(|log| log.extent().total).sum()),
            delivered: counters.delivered_events(),
            gaps: counters.gaps_of_all_reasons().gaps,
            publish: cumulative(counters.publish_times()),
            lag: cumulative(counters.lags()),
        }
    }

    #[allow(clippy::cast_precision_loss)]
    fn since(&self, before: &Totals, span: f64, number: u64, at: u64) -> Point {
        // One decimal is more than anybody can see.
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
        }
    }
}

/// The names of the kinds that are told apart. The last one is for all that this gateway does not know.
pub fn kinds() -> Vec<String> {
    let known = Counters::default();
    let names = known.published_by_kind().filter_map(|(kind, _)| kind_name(kind));
    names.chain(["unknown".to_owned()]).collect()
}

/// Events accepted, in the order of [`kinds`].
fn by_kind(counters: &Counters) -> Vec<u64> {
    let mut counts = Vec::new();
    let mut unknown = 0;
    for (kind, count) in counters.published_by_kind() {
        if kind_name(kind).is_some() { counts.push(count) } else { unknown += count }
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

fn cumulative(histogram: &Histogram) -> [u64; ENDS] {
    filled(histogram.cumulative())
}

/// The spread of what was counted between two readings.
fn spread(now: &[u64; ENDS], before: &[u64; ENDS]) -> Option<Spread> {
    let counts: [u64; ENDS] = std::array::from_fn(|end| now[end].saturating_sub(before[end]));
    if counts[ENDS - 1] == 0 {
        return None;
    }
    Some(Spread { p50: quantile(&counts, 0.5), p99: quantile(&counts, 0.99) })
}

/// A quantile of cumulative counts in milliseconds, on a straight line within its bucket. What lies past the last end is
/// said to lie at it.
#[allow(clippy::cast_precision_loss)]
fn quantile(counts: &[u64; ENDS], part: f64) -> f64 {
    let rank = counts[ENDS - 1] as f64 * part;
    let bucket = counts.iter().position(|count| *count as f64 >= rank).unwrap_or(ENDS - 1);
    let Some(end) = BUCKETS.get(bucket).map(|end| *end as f64) else {
        return BUCKETS[BUCKETS.len() - 1] as f64 / 1000.0;
    };
    let (start, below) = match bucket.checked_sub(1) {
        Some(before) => (BUCKETS[before] as f64, counts[before] as f64),
        None => (0.0, 0.0),
    };
    let within = (rank - below) / (counts[bucket] as f64 - below);
    // Microseconds are exact enough.
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
    async fn a_point_is_the_rate_between_two_readings() {
        let samples = Samples::default();
        let begun = Instant::now();
        samples.add(begun, 1000, totals(100, 200));
        assert_eq!(samples.after(0), [], "one reading is no rate");
        samples.add(begun + Duration::from_secs(2), 3000, totals(105, 260));
        let points = samples.after(0);
        assert_eq!(points.len(), 1);
        let point = &points[0];
        assert_eq!((point.number, point.at, point.published[1]), (1, 3000, 2.5));
        assert_eq!((point.received, point.delivered, point.published[2]), (2.5, 30.0, 0.0));
        assert_eq!((point.publish, point.lag), (None, None));
    }

    #[tokio::test(start_paused = true)]
    async fn ten_minutes_are_kept_and_only_what_is_new_is_handed_out() {
        let samples = Samples::default();
        let begun = Instant::now();
        for second in 0..KEPT as u64 + 11 {
            samples.add(begun + EVERY * u32::try_from(second).unwrap(), second, totals(second, 0));
        }
        let all = samples.after(0);
        assert_eq!((all.len(), all[0].number, all[KEPT - 1].number), (KEPT, 11, 610));
        assert_eq!(samples.after(608).len(), 2);
        assert_eq!(samples.after(610), []);
        // A number of a gateway that was there before a restart.
        assert_eq!(samples.after(9999).len(), KEPT);
    }

    #[test]
    fn quantiles_lie_in_the_bucket_of_their_rank() {
        let none = [0; ENDS];
        assert_eq!(spread(&none, &none), None);
        // A hundred between 250 and 500 us.
        let counts = std::array::from_fn(|end| if end >= 2 { 100 } else { 0 });
        let seen = spread(&counts, &none).unwrap();
        assert_eq!((seen.p50, seen.p99), (0.375, 0.498));
        // The same, read again: nothing new.
        assert_eq!(spread(&counts, &counts), None);
        // Past the last end.
        let late = std::array::from_fn(|end| u64::from(end == ENDS - 1));
        assert_eq!(spread(&late, &none), Some(Spread { p50: 10_000.0, p99: 10_000.0 }));
    }
}
