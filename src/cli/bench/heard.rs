//! What a subscriber of a bench has heard, and how late: counted alike for everybody.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use hdrhistogram::Histogram;
use parking_lot::Mutex;

use super::clock;

/// Latencies are told apart from a microsecond to a minute, with three digits.
const MIN: u64 = 1_000;
const MAX: u64 = 60_000_000_000;
const DIGITS: u8 = 3;

/// A histogram of nanoseconds.
pub fn histogram() -> Histogram<u64> {
    // It refuses no bounds but a least of 0, a most of less than twice the least, and more than 5 digits.
    Histogram::new_with_bounds(MIN, MAX, DIGITS).expect("good bounds")
}

/// An event id that is a time.
pub fn id(at: u64) -> String {
    format!("{at:016x}")
}

/// The time that an event id is.
pub fn time(id: &str) -> Option<u64> {
    u64::from_str_radix(id, 16).ok()
}

/// What one subscriber has heard.
pub struct Heard {
    events: AtomicU64,
    messages: AtomicU64,
    gaps: AtomicU64,
    // Nanoseconds from the time that an event bears to its arrival. None: times are not looked at.
    latency: Option<Mutex<Histogram<u64>>>,
}

impl Heard {
    /// Nothing so far. `latency`: whether times are looked at.
    pub fn new(latency: bool) -> Arc<Heard> {
        Arc::new(Heard {
            events: AtomicU64::new(0),
            messages: AtomicU64::new(0),
            gaps: AtomicU64::new(0),
            latency: latency.then(|| Mutex::new(histogram())),
        })
    }

    /// An event has come that was to be sent at this time.
    pub fn late(&self, at: u64) {
        if let Some(latency) = &self.latency {
            latency.lock().saturating_record(clock::now().saturating_sub(at));
        }
    }

    /// Whether times are looked at.
    pub fn looks_at_times(&self) -> bool {
        self.latency.is_some()
    }

    /// A message with so many events has come.
    pub fn message(&self, events: u64) {
        self.events.fetch_add(events, Ordering::Relaxed);
        self.messages.fetch_add(1, Ordering::Relaxed);
    }

    /// A gap was told.
    pub fn gap(&self) {
        self.gaps.fetch_add(1, Ordering::Relaxed);
    }

    /// How many events have come.
    pub fn events(&self) -> u64 {
        self.events.load(Ordering::Relaxed)
    }

    /// In how many messages.
    pub fn messages(&self) -> u64 {
        self.messages.load(Ordering::Relaxed)
    }

    /// How many gaps were told.
    pub fn gaps(&self) -> u64 {
        self.gaps.load(Ordering::Relaxed)
    }

    /// Forgets the latencies so far: the warm-up is over.
    pub fn forget_latency(&self) {
        if let Some(latency) = &self.latency {
            latency.lock().reset();
        }
    }

    /// Adds its latencies to `all`.
    pub fn add_latency(&self, all: &mut Histogram<u64>) {
        if let Some(latency) = &self.latency {
            // The bounds are the same.
            let _ = all.add(&*latency.lock());
        }
    }
}
