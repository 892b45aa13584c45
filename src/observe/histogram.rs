//! Totals that only rise: by number, and of durations by bucket.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// Upper bounds of the buckets in microseconds: from an embedded bus to a failover.
pub const BUCKETS: [u64; 15] = [
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000,
    1_000_000, 2_500_000, 10_000_000,
];

/// Totals by number.
#[derive(Debug)]
pub(super) struct Totals<const N: usize>([AtomicU64; N]);

/// A distribution of durations.
#[derive(Debug, Default)]
pub struct Histogram {
    /// By bucket; the last one has no upper bound.
    counts: Totals<{ BUCKETS.len() + 1 }>,
    microseconds: AtomicU64,
}

/// The number of the bucket of a duration.
pub fn bucket_of(duration: Duration) -> usize {
    let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
    BUCKETS.partition_point(|bound| *bound < micros)
}

impl Histogram {
    /// Counts one duration.
    pub fn observe(&self, duration: Duration) {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        self.counts.add(bucket_of(duration), 1);
        self.microseconds.fetch_add(micros, Ordering::Relaxed);
    }

    /// For each bucket, the number of durations up to its bound; then the number of all.
    pub fn cumulative(&self) -> Vec<u64> {
        let mut sum = 0;
        let add = |count: u64| {
            sum += count;
            sum
        };
        self.counts.all().map(add).collect()
    }

    /// The sum of all durations.
    pub fn sum(&self) -> Duration {
        Duration::from_micros(self.microseconds.load(Ordering::Relaxed))
    }
}

impl<const N: usize> Default for Totals<N> {
    fn default() -> Totals<N> {
        Totals(std::array::from_fn(|_| AtomicU64::new(0)))
    }
}

impl<const N: usize> Totals<N> {
    pub fn add(&self, index: usize, count: u64) {
        self.0[index].fetch_add(count, Ordering::Relaxed);
    }

    pub fn get(&self, index: usize) -> u64 {
        self.0[index].load(Ordering::Relaxed)
    }

    pub fn all(&self) -> impl Iterator<Item = u64> {
        self.0.iter().map(|total| total.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_counts_in_the_first_bucket_whose_bound_it_does_not_exceed() {
        let histogram = Histogram::default();
        for micros in [0, 100, 101, 10_000_000, 10_000_001] {
            histogram.observe(Duration::from_micros(micros));
        }
        let counts = histogram.cumulative();
        assert_eq!((counts[0], counts[1]), (2, 3));
        assert_eq!(counts[BUCKETS.len() - 1..], [4, 5]);
        assert_eq!(histogram.sum(), Duration::from_micros(20_000_202));
    }
}
