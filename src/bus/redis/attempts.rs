//! Limits of retries: how often, until when, and with what waits between.

use std::time::{Duration, Instant};

use rand::Rng;

use super::settings::Settings;
use crate::bus::AppendError;

/// The time that an answer is waited for even if the deadline is nearer: without it the outcome of
/// what is sent in the last moment would be unknown for nothing. Shorter than the grace that
/// callers give the writer's answer.
const MIN_ANSWER_TIME: Duration = Duration::from_millis(150);

/// The number of times that a call follows a slot that is moving.
const MAX_REDIRECTS: u32 = 16;

/// The attempts that are left for one frame or probe.
pub(super) struct Attempts {
    /// The deadline of the first caller. While nothing was sent, attempts end here, so that the
    /// caller gets the certain answer that nothing was appended.
    first_deadline: Instant,
    /// The deadline of the last caller. While the outcome is unknown, attempts go on until here.
    last_deadline: Instant,
    resends_left: u32,
    redirects_left: u32,
    wait: Duration,
    max_wait: Duration,
    once: bool,
    /// True if something was sent and not answered.
    outcome_unknown: bool,
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
            max_wait: settings.retry_wait.1,
            once: false,
            outcome_unknown: false,
        }
    }

    pub(super) fn once(settings: &Settings, deadline: Instant) -> Attempts {
        Attempts { once: true, ..Attempts::new(settings, deadline, deadline) }
    }

    /// The time limit of one call.
    pub(super) fn limit(&self, response_timeout: Duration) -> Duration {
        response_timeout.min(self.left().max(MIN_ANSWER_TIME))
    }

    fn left(&self) -> Duration {
        let deadline = if self.outcome_unknown { self.last_deadline } else { self.first_deadline };
        deadline.saturating_duration_since(Instant::now())
    }

    /// True if there is time for another attempt at once.
    pub(super) fn may_go_on(&self) -> bool {
        !self.once && !self.left().is_zero()
    }

    /// Records a call without an answer. True if it may be sent again.
    pub(super) fn resend(&mut self) -> bool {
        self.outcome_unknown = true;
        let left = self.resends_left.checked_sub(1);
        self.resends_left = left.unwrap_or(0);
        left.is_some()
    }

    /// Records that a call is redirected. True if it may follow.
    pub(super) fn redirect(&mut self) -> bool {
        let left = self.redirects_left.checked_sub(1);
        self.redirects_left = left.unwrap_or(0);
        left.is_some()
    }

    /// Waits before the next attempt. False if there is none.
    pub(super) async fn wait(&mut self) -> bool {
        // Full jitter, so that gateways do not come back in step; at least a tenth of the wait.
        let wait = self.wait.mul_f64(rand::rng().random_range(0.1..=1.0));
        if self.once {
            return false;
        }
        tokio::time::sleep(wait.min(self.left())).await;
        self.wait = (self.wait * 2).min(self.max_wait);
        !self.left().is_zero()
    }

    /// The error of the append after the last attempt failed.
    pub(super) fn error(&self, why: &str) -> AppendError {
        if self.outcome_unknown {
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
            max_wait: Duration::from_millis(wait.1),
            once: false,
            outcome_unknown: false,
        }
    }

    #[test]
    fn a_call_without_an_answer_is_resent_max_retries_times() {
        let mut attempts = attempts(3, (1, 1), 60_000, 60_000);
        assert!(matches!(attempts.error(""), AppendError::Unavailable(_)));
        let resent = (0..10).filter(|_| attempts.resend()).count();
        assert_eq!(resent, 3);
        assert!(matches!(attempts.error(""), AppendError::OutcomeUnknown(_)));
    }

    #[tokio::test(start_paused = true)]
    async fn waits_double_from_the_minimum_to_the_maximum_with_jitter() {
        let mut attempts = attempts(3, (500, 1000), 3_600_000, 3_600_000);
        for max in [500, 1000, 1000, 1000] {
            let start = tokio::time::Instant::now();
            assert!(attempts.wait().await);
            let waited = start.elapsed();
            let max = Duration::from_millis(max);
            // The timer counts in whole milliseconds.
            assert!(waited >= max / 10 && waited <= max + Duration::from_millis(1), "{waited:?}");
        }
    }

    #[tokio::test]
    async fn the_first_deadline_ends_what_was_not_sent_and_the_last_what_may_have_been_appended() {
        let mut nothing_sent = attempts(3, (10_000, 10_000), 20, 60_000);
        assert!(!nothing_sent.wait().await, "it waits for no longer than the first caller");
        let mut unanswered = attempts(3, (1, 1), 0, 60_000);
        assert!(unanswered.resend());
        assert!(unanswered.wait().await, "somebody still waits for the answer");
        assert!(unanswered.limit(Duration::from_secs(1)) == Duration::from_secs(1));
    }
}
