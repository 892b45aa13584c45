//! How often, how long and after what waits something is tried.

use std::time::{Duration, Instant};

use rand::Rng;

use super::settings::Settings;
use crate::bus::AppendError;

/// What is sent in the last moment is waited for this long, beyond the deadline: its outcome would be in doubt for nothing.
/// Shorter than the grace that callers give the writer's answer.
const MIN_ANSWER_TIME: Duration = Duration::from_millis(150);

/// How often a call follows a slot that is moving.
const MAX_REDIRECTS: u32 = 16;

/// How often and how long something may be tried.
pub(super) struct Attempts {
    /// When the first of the callers gives up. Nobody is told wrongly that nothing was done if no attempt follows.
    first_deadline: Instant,
    /// When the last of them does: until then, what is in doubt is asked again.
    last_deadline: Instant,
    resends_left: u32,
    redirects_left: u32,
    wait: Duration,
    most_wait: Duration,
    once: bool,
    /// Whether anything was sent whose answer did not come.
    in_doubt: bool,
}

impl Attempts {
    pub(super) fn new(
        settings: &Settings,
        first_deadline: Instant,
        last_deadline: Instant,
    ) -> Attempts {
        Attempts {
            first_deadline,
            last_deadline,
            resends_left: settings.max_retries,
            redirects_left: MAX_REDIRECTS,
            wait: settings.retry_wait.0,
            most_wait: settings.retry_wait.1,
            once: false,
            in_doubt: false,
        }
    }

    pub(super) fn once(settings: &Settings, deadline: Instant) -> Attempts {
        Attempts { once: true, ..Attempts::new(settings, deadline, deadline) }
    }

    /// How long one call may take.
    pub(super) fn limit(&self, response_timeout: Duration) -> Duration {
        response_timeout.min(self.left().max(MIN_ANSWER_TIME))
    }

    fn left(&self) -> Duration {
        let deadline = if self.in_doubt { self.last_deadline } else { self.first_deadline };
        deadline.saturating_duration_since(Instant::now())
    }

    /// Whether there is time for another attempt at once.
    pub(super) fn may_go_on(&self) -> bool {
        !self.once && !self.left().is_zero()
    }

    /// Notes a call without an answer, and says whether it may be sent again.
    pub(super) fn resend(&mut self) -> bool {
        self.in_doubt = true;
        let left = self.resends_left.checked_sub(1);
        self.resends_left = left.unwrap_or(0);
        left.is_some()
    }

    pub(super) fn redirect(&mut self) -> bool {
        let left = self.redirects_left.checked_sub(1);
        self.redirects_left = left.unwrap_or(0);
        left.is_some()
    }

    /// Waits before the next attempt; false: there is none.
    pub(super) async fn wait(&mut self) -> bool {
        // Full jitter, so that gateways do not come back in step; a tenth of the wait at the least.
        let wait = self.wait.mul_f64(rand::rng().random_range(0.1..=1.0));
        if self.once {
            return false;
        }
        tokio::time::sleep(wait.min(self.left())).await;
        self.wait = (self.wait * 2).min(self.most_wait);
        !self.left().is_zero()
    }

    pub(super) fn error(&self, why: &str) -> AppendError {
        if self.in_doubt {
            AppendError::OutcomeUnknown(why.to_owned())
        } else {
            AppendError::Unavailable(why.to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempts(max_retries: u32, wait: (u64, u64), first: u64, last: u64) -> Attempts {
        let after = |ms| Instant::now() + Duration::from_millis(ms);
        Attempts {
            first_deadline: after(first),
            last_deadline: after(last),
            resends_left: max_retries,
            redirects_left: MAX_REDIRECTS,
            wait: Duration::from_millis(wait.0),
            most_wait: Duration::from_millis(wait.1),
            once: false,
            in_doubt: false,
        }
    }

    #[test]
    fn what_was_not_answered_is_sent_again_max_retries_times() {
        let mut attempts = attempts(3, (1, 1), 60_000, 60_000);
        assert!(matches!(attempts.error(""), AppendError::Unavailable(_)));
        let again = (0..10).filter(|_| attempts.resend()).count();
        assert_eq!(again, 3);
        assert!(matches!(attempts.error(""), AppendError::OutcomeUnknown(_)));
    }

    #[tokio::test(start_paused = true)]
    async fn waits_double_from_the_least_to_the_most_with_jitter() {
        let mut attempts = attempts(3, (500, 1000), 3_600_000, 3_600_000);
        for most in [500, 1000, 1000, 1000] {
            let start = tokio::time::Instant::now();
            assert!(attempts.wait().await);
            let waited = start.elapsed();
            let most = Duration::from_millis(most);
            // The timer counts in whole milliseconds.
            assert!(waited >= most / 10 && waited <= most + Duration::from_millis(1), "{waited:?}");
        }
    }

    #[tokio::test]
    async fn who_is_first_to_give_up_ends_what_nobody_took_and_the_last_what_is_in_doubt() {
        let mut nothing_sent = attempts(3, (10_000, 10_000), 20, 60_000);
        assert!(!nothing_sent.wait().await, "it waits for no longer than the first caller");
        let mut in_doubt = attempts(3, (1, 1), 0, 60_000);
        assert!(in_doubt.resend());
        assert!(in_doubt.wait().await, "somebody still waits for the answer");
        assert!(in_doubt.limit(Duration::from_secs(1)) == Duration::from_secs(1));
    }
}
