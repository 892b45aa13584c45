//! Limits log lines that repeat: a fault that lasts, or many nodes at once, must not fill the log.

use std::time::{Duration, Instant};

use parking_lot::{Mutex, const_mutex};

/// Lets a number of lines pass in each period, and counts those that it suppresses.
#[derive(Debug)]
pub(crate) struct Throttle {
    max: u32,
    period: Duration,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    began: Option<Instant>,
    passed: u32,
    suppressed: u64,
}

impl Throttle {
    /// Lets `max` lines pass in each period.
    pub(crate) const fn new(max: u32, period: Duration) -> Throttle {
        let state = State { began: None, passed: 0, suppressed: 0 };
        Throttle { max, period, state: const_mutex(state) }
    }

    /// One line in ten seconds: for operations that are retried.
    pub(crate) const fn repeated() -> Throttle {
        Throttle::new(1, Duration::from_secs(10))
    }

    /// If a line may be written now: the number of lines suppressed since the last one.
    pub(crate) fn pass(&self) -> Option<u64> {
        self.pass_at(Instant::now())
    }

    fn pass_at(&self, now: Instant) -> Option<u64> {
        let mut state = self.state.lock();
        if state.began.is_none_or(|began| now.saturating_duration_since(began) >= self.period) {
            (state.began, state.passed) = (Some(now), 0);
        }
        if state.passed == self.max {
            state.suppressed += 1;
            return None;
        }
        state.passed += 1;
        Some(std::mem::take(&mut state.suppressed))
    }

    /// The number of lines suppressed since this was last asked.
    pub(crate) fn take_suppressed(&self) -> u64 {
        std::mem::take(&mut self.state.lock().suppressed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suppressed_lines_are_counted() {
        let throttle = Throttle::new(2, Duration::from_secs(10));
        let start = Instant::now();
        let at = |seconds| throttle.pass_at(start + Duration::from_secs(seconds));
        assert_eq!([at(0), at(1), at(2), at(9)], [Some(0), Some(0), None, None]);
        assert_eq!([at(10), at(11), at(12)], [Some(2), Some(0), None]);
        assert_eq!((throttle.take_suppressed(), throttle.take_suppressed()), (1, 0));
        assert_eq!(at(30), Some(0));
    }
}
