//! A token bucket, kept as the one time at which it would be full again.

use std::time::Duration;

use tokio::time::Instant;

/// How fast something may go, and how much of it at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// So many a second; not 0.
    pub per_second: usize,
    /// So many at once after a pause.
    pub burst: usize,
}

/// What one identity has used of its rate.
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    full_at: Instant,
}

impl Rate {
    /// How long it takes until `count` more may go.
    fn time_of(self, count: usize) -> Duration {
        let nanos = count as u128 * 1_000_000_000 / self.per_second.max(1) as u128;
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

impl Bucket {
    /// A full one.
    pub fn full(now: Instant) -> Bucket {
        Bucket { full_at: now }
    }

    /// Takes `count`, not more than the burst; if that is too much now, says how long to wait and takes nothing.
    pub fn take(&mut self, count: usize, rate: Rate, now: Instant) -> Result<(), Duration> {
        let after = self.full_at.max(now) + rate.time_of(count);
        let latest = now + rate.time_of(rate.burst);
        if after > latest {
            return Err(after - latest);
        }
        self.full_at = after;
        Ok(())
    }

    /// Whether nothing is missing: then nothing has to be remembered either.
    pub fn is_full(&self, now: Instant) -> bool {
        self.full_at <= now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate { per_second: 10, burst: 5 };

    #[test]
    fn a_burst_goes_at_once_and_then_the_rate_holds() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut bucket = Bucket::full(start);
        assert_eq!(bucket.take(3, RATE, start), Ok(()));
        assert_eq!(bucket.take(2, RATE, start), Ok(()));
        assert_eq!(bucket.take(1, RATE, start), Err(Duration::from_millis(100)));
        assert_eq!(bucket.take(5, RATE, start), Err(Duration::from_millis(500)));
        // What it said is enough, and less is not.
        assert_eq!(bucket.take(1, RATE, at(99)), Err(Duration::from_millis(1)));
        assert_eq!(bucket.take(1, RATE, at(100)), Ok(()));
        assert!(!bucket.is_full(at(599)) && bucket.is_full(at(600)));
        // A long pause saves up no more than one burst.
        assert_eq!(bucket.take(5, RATE, at(60_000)), Ok(()));
        assert!(bucket.take(1, RATE, at(60_000)).is_err());
    }

    #[test]
    fn over_a_long_time_no_more_than_the_rate_passes() {
        let rate = Rate { per_second: 1000, burst: 50 };
        let start = Instant::now();
        let mut bucket = Bucket::full(start);
        let mut passed = 0;
        for micros in (0..3_000_000).step_by(37) {
            let now = start + Duration::from_micros(micros);
            if bucket.take(7, rate, now).is_ok() {
                passed += 7;
            }
        }
        assert!((3000..=3050).contains(&passed), "{passed}");
    }
}
