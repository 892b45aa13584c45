//! The events that a subscriber of a benchmark has received, and their latencies.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use hdrhistogram::Histogram;
use parking_lot::Mutex;

use super::clock;

/// Latencies are recorded from one microsecond to one minute, with three significant digits.
const MIN_NANOS: u64 = 1_000;
const MAX_NANOS: u64 = 60_000_000_000;
const DIGITS: u8 = 3;

/// A histogram of nanoseconds.
pub fn histogram() -> Histogram<u64> {
    // Refused are only a minimum of 0, a maximum below twice the minimum, and more than 5 digits.
    Histogram::new_with_bounds(MIN_NANOS, MAX_NANOS, DIGITS).expect("good bounds")
}

/// The event id that encodes a time of the [`clock`].
pub fn id(at: u64) -> String {
    format!("{at:016x}")
}

/// The time that an event id encodes.
pub fn time(id: &str) -> Option<u64> {
    u64::from_str_radix(id, 16).ok()
}

/// Counts of one subscriber.
#[derive(Default)]
pub struct Received {
    events: AtomicU64,
    messages: AtomicU64,
    gaps: AtomicU64,
    // Nanoseconds from the time in an event's id to its arrival. Allocated with the first one: a
    // histogram takes far more memory than the rest, and some benchmarks measure no latency.
    latency: Mutex<Option<Histogram<u64>>>,
}

impl Received {
    /// Nothing received yet.
    pub fn new() -> Arc<Received> {
        Arc::default()
    }

    /// Records the latency of an event that was due at this time and arrives now.
    pub fn record_latency(&self, due: u64) {
        let latency = clock::now().saturating_sub(due);
        self.latency.lock().get_or_insert_with(histogram).saturating_record(latency);
    }

    /// Counts a message with this number of events.
    pub fn count_message(&self, events: u64) {
        self.events.fetch_add(events, Ordering::Relaxed);
        self.messages.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a gap.
    pub fn count_gap(&self) {
        self.gaps.fetch_add(1, Ordering::Relaxed);
    }

    /// Events received.
    pub fn events(&self) -> u64 {
        self.events.load(Ordering::Relaxed)
    }

    /// Messages received.
    pub fn messages(&self) -> u64 {
        self.messages.load(Ordering::Relaxed)
    }

    /// Gaps received.
    pub fn gaps(&self) -> u64 {
        self.gaps.load(Ordering::Relaxed)
    }

    /// The latencies since the last call, if there were any.
    pub fn take_latency(&self) -> Option<Histogram<u64>> {
        self.latency.lock().take()
    }
}

/// The latencies of all subscribers together since they were last taken.
pub fn take_latencies(subscribers: &[Arc<Received>]) -> Histogram<u64> {
    let mut all = histogram();
    for latency in subscribers.iter().filter_map(|received| received.take_latency()) {
        // The bounds are the same.
        let _ = all.add(latency);
    }
    all
}
