//! What was done since the start: totals that only rise, counted once a request and once a batch.

use std::{
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
    time::Duration,
};

use crate::rpc::{
    error::{Error, REASONS},
    limit::Limit,
};
use crate::{
    bus::{GapCount, GapReason, unix_ms},
    hub::event::KINDS,
    proto::v1::SERVICE,
};

/// One more than the highest number of a kind.
const KIND_NUMBERS: usize = *KINDS.end() as usize + 1;

/// Upper ends of the buckets in which times are counted, in microseconds: from an embedded bus to a failover.
pub const BUCKETS: [u64; 15] = [
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000,
    1_000_000, 2_500_000, 10_000_000,
];

/// A method that may fail.
#[derive(Clone, Copy, Debug)]
pub enum Method {
    /// `Publish`.
    Publish,
    /// `Subscribe`: refused, or ended.
    Subscribe,
    /// `ListNodes`.
    ListNodes,
    /// `GetStatus`.
    GetStatus,
    /// Reflection, and what there is not.
    Other,
}

/// How many events of each kind a request has.
pub struct Kinds([u32; KIND_NUMBERS]);

/// All totals.
#[derive(Debug, Default)]
pub struct Counters {
    /// Events accepted, by the number of their kind.
    published: Numbers<KIND_NUMBERS>,
    /// How long accepted requests took.
    publish: Histogram,
    /// Events sent, once a stream, and the batches that they went in.
    delivered: AtomicU64,
    batches: AtomicU64,
    /// For each batch: how old its oldest frame was.
    lag: Histogram,
    /// Gaps that streams were told, and their events, by reason.
    gaps: Numbers<{ GapReason::ALL.len() }>,
    missed: Numbers<{ GapReason::ALL.len() }>,
    /// What was refused or ended because of a limit, by limit.
    refused: Numbers<{ Limit::ALL.len() }>,
    /// Connections that were let in.
    connections: AtomicU64,
    /// Requests that are not wholly answered.
    under_way: AtomicUsize,
    /// Errors, by method and reason.
    errors: [Numbers<{ REASONS.len() }>; Method::ALL.len()],
}

/// How often something took how long.
#[derive(Debug, Default)]
pub struct Histogram {
    /// By bucket; the last one has no upper end.
    counts: Numbers<{ BUCKETS.len() + 1 }>,
    microseconds: AtomicU64,
}

/// Totals by number.
#[derive(Debug)]
struct Numbers<const N: usize>([AtomicU64; N]);

impl Method {
    /// All of them.
    pub const ALL: [Method; 5] =
        [Method::Publish, Method::Subscribe, Method::ListNodes, Method::GetStatus, Method::Other];

    /// The method of a request's path.
    pub fn of(path: &str) -> Method {
        let name = path.strip_prefix('/').and_then(|path| path.strip_prefix(SERVICE));
        match name {
            Some("/Publish") => Method::Publish,
            Some("/Subscribe") => Method::Subscribe,
            Some("/ListNodes") => Method::ListNodes,
            Some("/GetStatus") => Method::GetStatus,
            _ => Method::Other,
        }
    }

    /// Its name in the wire API; `other` is none of it.
    pub fn name(self) -> &'static str {
        match self {
            Method::Publish => "Publish",
            Method::Subscribe => "Subscribe",
            Method::ListNodes => "ListNodes",
            Method::GetStatus => "GetStatus",
            Method::Other => "other",
        }
    }
}

impl Default for Kinds {
    fn default() -> Kinds {
        Kinds([0; KIND_NUMBERS])
    }
}

impl Kinds {
    /// One more event of this kind.
    pub fn add(&mut self, kind: u8) {
        // What is no kind is not published.
        if let Some(count) = self.0.get_mut(usize::from(kind)) {
            *count += 1;
        }
    }
}

impl Counters {
    /// A request was accepted.
    pub fn published(&self, kinds: &Kinds, took: Duration) {
        for (kind, count) in kinds.0.iter().enumerate().filter(|(_, count)| **count > 0) {
            self.published.add(kind, u64::from(*count));
        }
        self.publish.observe(took);
    }

    /// A batch was handed to the connection. `oldest_ms`: when its oldest frame was made.
    pub fn delivered(&self, events: u64, oldest_ms: Option<u64>) {
        self.delivered.fetch_add(events, Ordering::Relaxed);
        self.batches.fetch_add(1, Ordering::Relaxed);
        if let Some(oldest) = oldest_ms {
            // A clock that is behind that of the frame's gateway says zero.
            self.lag.observe(Duration::from_millis(unix_ms().saturating_sub(oldest)));
        }
    }

    /// A stream was told a gap.
    pub fn gap(&self, reason: GapReason, missed: Option<u64>) {
        self.gaps.add(reason.index(), 1);
        self.missed.add(reason.index(), missed.unwrap_or(0));
    }

    /// A request was answered with an error, or a stream ended with one.
    pub fn failed(&self, method: Method, error: &Error) {
        if let Error::Limit { limit, .. } = error {
            self.refused(*limit);
        }
        if let Some(reason) = REASONS.iter().position(|reason| *reason == error.reason()) {
            self.errors[method as usize].add(reason, 1);
        }
    }

    /// Something was refused or ended because of a limit.
    pub fn refused(&self, limit: Limit) {
        self.refused.add(limit as usize, 1);
    }

    /// A connection was let in.
    pub fn connected(&self) {
        self.connections.fetch_add(1, Ordering::Relaxed);
    }

    /// A request came.
    pub fn begun(&self) {
        self.under_way.fetch_add(1, Ordering::Relaxed);
    }

    /// A request is wholly answered, or gone.
    pub fn over(&self) {
        self.under_way.fetch_sub(1, Ordering::Relaxed);
    }

    /// Requests that are not wholly answered.
    pub fn under_way(&self) -> usize {
        self.under_way.load(Ordering::Relaxed)
    }

    /// Connections that were let in.
    pub fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }

    /// What was refused or ended, by limit.
    pub fn refusals(&self) -> impl Iterator<Item = (Limit, u64)> {
        Limit::ALL.into_iter().zip(self.refused.all())
    }

    /// Events accepted.
    pub fn published_events(&self) -> u64 {
        self.published.all().sum()
    }

    /// Events accepted, for the number of each kind.
    pub fn published_by_kind(&self) -> impl Iterator<Item = (i32, u64)> {
        (0..).zip(self.published.all())
    }

    /// How long accepted requests took.
    pub fn publish_times(&self) -> &Histogram {
        &self.publish
    }

    /// Events sent, once a stream.
    pub fn delivered_events(&self) -> u64 {
        self.delivered.load(Ordering::Relaxed)
    }

    /// Batches sent.
    pub fn delivered_batches(&self) -> u64 {
        self.batches.load(Ordering::Relaxed)
    }

    /// How old the oldest frame of each batch was.
    pub fn lags(&self) -> &Histogram {
        &self.lag
    }

    /// Gaps that streams were told.
    pub fn stream_gaps(&self, reason: GapReason) -> GapCount {
        let index = reason.index();
        GapCount { gaps: self.gaps.get(index), missed_events: self.missed.get(index) }
    }

    /// Gaps that streams were told, whatever the reason.
    pub fn gaps_of_all_reasons(&self) -> GapCount {
        GapCount { gaps: self.gaps.all().sum(), missed_events: self.missed.all().sum() }
    }

    /// Errors of all methods, whatever the reason.
    pub fn errors_of_all_methods(&self) -> u64 {
        self.errors.iter().flat_map(Numbers::all).sum()
    }

    /// Errors of a method, with their reasons.
    pub fn errors(&self, method: Method) -> impl Iterator<Item = (&'static str, u64)> {
        REASONS.into_iter().zip(self.errors[method as usize].all())
    }
}

impl Histogram {
    fn observe(&self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.counts.add(BUCKETS.partition_point(|end| *end < micros), 1);
        self.microseconds.fetch_add(micros, Ordering::Relaxed);
    }

    /// How many took no longer than each bucket's end, then how many there were.
    pub fn cumulative(&self) -> Vec<u64> {
        let mut sum = 0;
        let add = |count: u64| {
            sum += count;
            sum
        };
        self.counts.all().map(add).collect()
    }

    /// The sum of all times.
    pub fn sum(&self) -> Duration {
        Duration::from_micros(self.microseconds.load(Ordering::Relaxed))
    }
}

impl<const N: usize> Default for Numbers<N> {
    fn default() -> Numbers<N> {
        Numbers(std::array::from_fn(|_| AtomicU64::new(0)))
    }
}

impl<const N: usize> Numbers<N> {
    fn add(&self, index: usize, count: u64) {
        self.0[index].fetch_add(count, Ordering::Relaxed);
    }

    fn get(&self, index: usize) -> u64 {
        self.0[index].load(Ordering::Relaxed)
    }

    fn all(&self) -> impl Iterator<Item = u64> {
        self.0.iter().map(|number| number.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::error::Unproven;

    #[test]
    fn times_are_counted_in_the_bucket_whose_end_they_do_not_pass() {
        let histogram = Histogram::default();
        for micros in [0, 100, 101, 10_000_000, 10_000_001] {
            histogram.observe(Duration::from_micros(micros));
        }
        let counts = histogram.cumulative();
        assert_eq!((counts[0], counts[1]), (2, 3));
        assert_eq!(counts[BUCKETS.len() - 1..], [4, 5]);
        assert_eq!(histogram.sum(), Duration::from_micros(20_000_202));
    }

    #[test]
    fn every_limit_is_counted_by_itself() {
        let counters = Counters::default();
        for limit in Limit::ALL {
            counters.refused(limit);
        }
        counters.failed(Method::Publish, &Error::limit(Limit::EventsPerSecond, 1));
        for (limit, count) in counters.refusals() {
            let expected = if limit == Limit::EventsPerSecond { 2 } else { 1 };
            assert_eq!(count, expected, "{}", limit.key());
        }
    }

    #[test]
    fn every_error_has_a_reason_that_is_counted() {
        let counters = Counters::default();
        let errors = [
            Error::field("f", "is wrong"),
            Error::TokenMalformed(String::new()),
            Error::PayloadTooLarge { what: String::new(), limit: 1, actual: 2 },
            Error::bus_unavailable("down"),
            Error::OutcomeUnknown(String::new()),
            Error::limit(Limit::Streams, 1),
            Error::too_slow(None),
            Error::Unproven(Unproven::Missing),
            Error::Unproven(Unproven::Wrong),
            Error::Unproven(Unproven::Revoked),
            Error::NotAllowed { rule: "publish", violations: vec![] },
            Error::draining(Duration::ZERO),
        ];
        for error in &errors {
            counters.failed(Method::Subscribe, error);
        }
        assert!(counters.errors(Method::Subscribe).all(|(_, count)| count == 1));
        assert!(counters.errors(Method::Publish).all(|(_, count)| count == 0));
    }
}
