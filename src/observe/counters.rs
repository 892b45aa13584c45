//! Totals of requests and streams since the start. An event costs nothing here: they rise once per
//! request and once per batch.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use trunkline_proto::kinds;

use super::histogram::{Histogram, Totals};
use crate::{
    bus::{GapCount, GapReason, unix_ms},
    errors::{Error, Limit, LimitCounters, REASONS},
    proto::v1::SERVICE,
};

/// One more than the highest number of a kind.
const KIND_NUMBERS: usize = *kinds::NUMBERS.end() as usize + 1;

/// The method of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// `Publish`.
    Publish,
    /// `PublishStream`.
    PublishStream,
    /// `Subscribe`.
    Subscribe,
    /// `Watch`.
    Watch,
    /// `ListNodes`.
    ListNodes,
    /// `GetStatus`.
    GetStatus,
    /// Reflection, and methods that do not exist.
    Other,
}

/// The number of events of each kind in one request.
pub struct KindCounts([u32; KIND_NUMBERS]);

/// Totals of the gRPC service.
#[derive(Debug, Default)]
pub struct Counters {
    /// Accepted events, by the number of their kind.
    published: Totals<KIND_NUMBERS>,
    /// Durations of accepted `Publish` requests, and of groups of a stream's events.
    publish: Histogram,
    /// Open `PublishStream` streams.
    publish_streams: AtomicU64,
    /// Events sent, counted once per stream, and the batches that they were sent in.
    delivered: AtomicU64,
    batches: AtomicU64,
    /// The age of the oldest frame of each batch.
    lag: Histogram,
    /// Gaps that were sent on streams, and their events, by reason.
    gaps: Totals<{ GapReason::ALL.len() }>,
    missed: Totals<{ GapReason::ALL.len() }>,
    /// Requests and streams that were refused or ended because of a limit.
    limits: LimitCounters,
    /// Errors, by method and reason.
    errors: [Totals<{ REASONS.len() }>; Method::ALL.len()],
}

impl Method {
    /// All methods, in the order of their numbers.
    pub const ALL: [Method; 7] = [
        Method::Publish,
        Method::PublishStream,
        Method::Subscribe,
        Method::Watch,
        Method::ListNodes,
        Method::GetStatus,
        Method::Other,
    ];

    /// The method with the path of a request.
    pub fn of(path: &str) -> Method {
        let name = path.strip_prefix('/').and_then(|path| path.strip_prefix(SERVICE));
        match name {
            Some("/Publish") => Method::Publish,
            Some("/PublishStream") => Method::PublishStream,
            Some("/Subscribe") => Method::Subscribe,
            Some("/Watch") => Method::Watch,
            Some("/ListNodes") => Method::ListNodes,
            Some("/GetStatus") => Method::GetStatus,
            _ => Method::Other,
        }
    }

    /// The name in the wire API, or `other`.
    pub fn name(self) -> &'static str {
        match self {
            Method::Publish => "Publish",
            Method::PublishStream => "PublishStream",
            Method::Subscribe => "Subscribe",
            Method::Watch => "Watch",
            Method::ListNodes => "ListNodes",
            Method::GetStatus => "GetStatus",
            Method::Other => "other",
        }
    }
}

impl Default for KindCounts {
    fn default() -> KindCounts {
        KindCounts([0; KIND_NUMBERS])
    }
}

impl KindCounts {
    /// Counts one event.
    pub fn add(&mut self, kind: u8) {
        // Events have passed validation: the number is one of a kind.
        if let Some(count) = self.0.get_mut(usize::from(kind)) {
            *count += 1;
        }
    }
}

impl Counters {
    /// A `Publish` request was accepted after `duration`.
    pub fn published(&self, kinds: &KindCounts, duration: Duration) {
        for (kind, count) in kinds.0.iter().enumerate().filter(|(_, count)| **count > 0) {
            self.published.add(kind, u64::from(*count));
        }
        self.publish.observe(duration);
    }

    /// A `PublishStream` was opened.
    pub fn publish_stream_opened(&self) {
        self.publish_streams.fetch_add(1, Ordering::Relaxed);
    }

    /// A `PublishStream` has ended.
    pub fn publish_stream_ended(&self) {
        self.publish_streams.fetch_sub(1, Ordering::Relaxed);
    }

    /// The number of open `PublishStream` streams.
    pub fn publish_streams(&self) -> u64 {
        self.publish_streams.load(Ordering::Relaxed)
    }

    /// A batch was handed to the connection. `oldest_ms`: when its oldest frame was made.
    pub fn delivered(&self, events: u64, oldest_ms: Option<u64>) {
        self.delivered.fetch_add(events, Ordering::Relaxed);
        self.batches.fetch_add(1, Ordering::Relaxed);
        if let Some(oldest) = oldest_ms {
            // A clock that is behind that of the frame's gateway counts as zero.
            self.lag.observe(Duration::from_millis(unix_ms().saturating_sub(oldest)));
        }
    }

    /// A gap was sent on a stream.
    pub fn gap(&self, reason: GapReason, missed: Option<u64>) {
        self.gaps.add(reason.index(), 1);
        self.missed.add(reason.index(), missed.unwrap_or(0));
    }

    /// A request was answered with an error, or a stream ended with one.
    pub fn failed(&self, method: Method, error: &Error) {
        if let Error::Limit { limit, .. } = error {
            self.limits.refused(*limit);
        }
        if let Some(reason) = REASONS.iter().position(|reason| *reason == error.reason()) {
            self.errors[method as usize].add(reason, 1);
        }
    }

    /// The number of requests and streams that were refused or ended because of a limit.
    pub fn refused(&self, limit: Limit) -> u64 {
        self.limits.count(limit)
    }

    /// The number of accepted events.
    pub fn published_events(&self) -> u64 {
        self.published.all().sum()
    }

    /// The number of accepted events of each kind, with the number of the kind.
    pub fn published_by_kind(&self) -> impl Iterator<Item = (i32, u64)> {
        (0..).zip(self.published.all())
    }

    /// Durations of accepted `Publish` requests.
    pub fn publish_times(&self) -> &Histogram {
        &self.publish
    }

    /// The number of events sent, counted once per stream.
    pub fn delivered_events(&self) -> u64 {
        self.delivered.load(Ordering::Relaxed)
    }

    /// The number of batches sent.
    pub fn delivered_batches(&self) -> u64 {
        self.batches.load(Ordering::Relaxed)
    }

    /// The age of the oldest frame of each batch.
    pub fn lags(&self) -> &Histogram {
        &self.lag
    }

    /// Gaps that were sent on streams, for one reason.
    pub fn stream_gaps(&self, reason: GapReason) -> GapCount {
        let index = reason.index();
        GapCount { gaps: self.gaps.get(index), missed_events: self.missed.get(index) }
    }

    /// Gaps that were sent on streams, for any reason.
    pub fn gaps_of_all_reasons(&self) -> GapCount {
        GapCount { gaps: self.gaps.all().sum(), missed_events: self.missed.all().sum() }
    }

    /// The number of errors of all methods, for any reason.
    pub fn errors_of_all_methods(&self) -> u64 {
        self.errors.iter().flat_map(Totals::all).sum()
    }

    /// The number of errors of a method for each reason.
    pub fn errors(&self, method: Method) -> impl Iterator<Item = (&'static str, u64)> {
        REASONS.into_iter().zip(self.errors[method as usize].all())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::errors::{AcceptedEvents, CredentialError};

    #[test]
    fn every_limit_has_its_own_counter() {
        let counters = Counters::default();
        for limit in Limit::ALL {
            counters.limits.refused(limit);
        }
        counters.failed(Method::Publish, &Error::limit(Limit::EventsPerSecond, 1));
        for limit in Limit::ALL {
            let expected = if limit == Limit::EventsPerSecond { 2 } else { 1 };
            assert_eq!(counters.refused(limit), expected, "{}", limit.key());
        }
    }

    #[test]
    fn every_error_has_a_reason_that_is_counted() {
        let counters = Counters::default();
        let errors = [
            Error::field("f", "is wrong"),
            Error::TokenMalformed(String::new()),
            Error::PayloadTooLarge { what: String::new(), limit: 1, actual: 2 },
            Error::BusUnavailable("down".into()),
            Error::OutcomeUnknown(String::new()),
            Error::DeadlineExceeded { may_be_done: false },
            Error::PartlyAccepted {
                accepted: AcceptedEvents(vec![true, false]),
                cause: Box::new(Error::BusUnavailable("down".into())),
            },
            Error::limit(Limit::Streams, 1),
            Error::SubscriberTooSlow { missed: None },
            Error::Unauthenticated(CredentialError::Missing),
            Error::Unauthenticated(CredentialError::Wrong),
            Error::Unauthenticated(CredentialError::Revoked),
            Error::NotAllowed { rule: "publish", violations: vec![] },
            Error::NotEnabled { what: "current_nodes", key: "nodeEvents" },
            Error::TakenOver,
            Error::Draining { retry_after: Duration::ZERO },
        ];
        for error in &errors {
            counters.failed(Method::Subscribe, error);
        }
        assert!(counters.errors(Method::Subscribe).all(|(_, count)| count == 1));
        assert!(counters.errors(Method::Publish).all(|(_, count)| count == 0));
    }
}
