//! Waits between attempts: exponential, with full jitter, so that nodes do not come back in step.

use std::time::Duration;

use rand::Rng;
use tonic::Status;
use tonic_types::StatusExt;

const FIRST: Duration = Duration::from_millis(50);
const MOST: Duration = Duration::from_secs(2);

/// The wait before the next attempt.
#[derive(Clone, Copy, Debug)]
pub(super) struct Backoff {
    bound: Duration,
}

impl Backoff {
    pub(super) fn new() -> Backoff {
        Backoff { bound: FIRST }
    }

    /// A random part of the bound, which doubles up to 2 s; and not less than the gateway asked for.
    pub(super) fn next(&mut self, status: Option<&Status>) -> Duration {
        let wait = self.bound.mul_f64(rand::rng().random_range(0.0..=1.0));
        self.bound = (self.bound * 2).min(MOST);
        let asked =
            status.and_then(StatusExt::get_details_retry_info).and_then(|info| info.retry_delay);
        wait.max(asked.unwrap_or_default().min(MOST))
    }
}
