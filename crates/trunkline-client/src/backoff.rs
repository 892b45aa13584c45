//! The waits between attempts: exponential backoff with full jitter, so that nodes do not reconnect
//! at the same time.

use std::time::Duration;

use rand::Rng;
use tonic::Status;
use tonic_types::StatusExt;

const FIRST: Duration = Duration::from_millis(50);

/// The bound of the waits, unless set.
pub(super) const MAX: Duration = Duration::from_secs(2);

/// The limit of the wait that a gateway may ask for.
const MAX_REQUESTED: Duration = Duration::from_mins(1);

/// The wait before the next attempt.
#[derive(Clone, Copy, Debug)]
pub(super) struct Backoff {
    bound: Duration,
    max: Duration,
}

impl Backoff {
    /// No wait is longer than `max`.
    pub(super) fn new(max: Duration) -> Backoff {
        Backoff { bound: FIRST.min(max), max }
    }

    /// The next loss starts a new series of attempts.
    pub(super) fn reset(&mut self) {
        *self = Backoff::new(self.max);
    }

    /// A random part of the bound, which doubles up to the longest, but not less than the gateway
    /// asked for, up to a minute.
    pub(super) fn next(&mut self, requested: Option<Duration>) -> Duration {
        let wait = self.bound.mul_f64(rand::rng().random_range(0.0..=1.0));
        self.bound = (self.bound * 2).min(self.max);
        wait.max(requested.unwrap_or_default().min(MAX_REQUESTED))
    }
}

/// The retry delay of a status.
pub(super) fn retry_delay(status: &Status) -> Option<Duration> {
    status.get_details_retry_info()?.retry_delay
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_random_and_bounded() {
        let mut backoff = Backoff::new(MAX);
        let waits: Vec<Duration> = (0..200).map(|_| backoff.next(None)).collect();
        assert!(waits[0] <= FIRST);
        assert!(waits.iter().all(|wait| *wait <= MAX), "{waits:?}");
        // Full jitter: all of the range is used.
        let late = &waits[10..];
        assert!(late.iter().any(|wait| *wait < MAX / 4), "{late:?}");
        assert!(late.iter().any(|wait| *wait > MAX / 4 * 3), "{late:?}");
    }

    #[test]
    fn the_requested_wait_is_kept_up_to_a_limit() {
        let mut backoff = Backoff::new(MAX);
        assert_eq!(backoff.next(Some(Duration::from_secs(5))), Duration::from_secs(5));
        assert_eq!(backoff.next(Some(Duration::from_hours(24))), MAX_REQUESTED);
    }
}
