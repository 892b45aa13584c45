//! A token bucket, kept as one number: the time at which it will be full again (the generic cell
//! rate algorithm).

use std::time::Duration;

use tokio::time::Instant;

/// A rate limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Tokens a second; not 0.
    pub per_second: usize,
    /// The size of the bucket: tokens that may be taken at once after a pause.
    pub burst: usize,
}

/// The token bucket of one identity.
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    full_at: Instant,
}

impl Rate {
    /// The time in which the bucket gets `count` tokens.
    fn time_of(self, count: usize) -> Duration {
        let nanos = count as u128 * 1_000_000_000 / self.per_second.max(1) as u128;
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

impl Bucket {
    /// A full bucket.
    pub fn full(now: Instant) -> Bucket {
        Bucket { full_at: now }
    }

    /// Takes `count` tokens, which must not be more than the burst. Takes none if there are fewer;
    /// the error is the time after which there will be enough.
    pub fn take(&mut self, count: usize, rate: Rate, now: Instant) -> Result<(), Duration> {
        let after = self.full_at.max(now) + rate.time_of(count);
        let latest = now + rate.time_of(rate.burst);
        if after > latest {
            return Err(after - latest);
        }
        self.full_at = after;
        Ok(())
    }

    /// True if the bucket is full: it need not be remembered then.
    pub fn is_full(&self, now: Instant) -> bool {
        self.full_at <= now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate { per_second: 10, burst: 5 };

    #[test]
    fn a_burst_passes_at_once_and_then_the_rate_holds() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut bucket = Bucket::full(start);
        assert_eq!(bucket.take(3, RATE, start), Ok(()));
        assert_eq!(bucket.take(2, RATE, start), Ok(()));
        assert_eq!(bucket.take(1, RATE, start), Err(Duration::from_millis(100)));
        assert_eq!(bucket.take(5, RATE, start), Err(Duration::from_millis(500)));
        // The time in the error is enough, and one millisecond less is not.
        assert_eq!(bucket.take(1, RATE, at(99)), Err(Duration::from_millis(1)));
        assert_eq!(bucket.take(1, RATE, at(100)), Ok(()));
        assert!(!bucket.is_full(at(599)) && bucket.is_full(at(600)));
        // A long pause fills the bucket, and no more.
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
