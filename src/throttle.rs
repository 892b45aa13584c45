//! Keeps lines that repeat themselves few: a fault that lasts, or a flood of nodes, must not fill the log.

use std::time::{Duration, Instant};

use parking_lot::{Mutex, const_mutex};

/// Lets a number of lines pass in each period, and counts what it leaves out.
#[derive(Debug)]
pub(crate) struct Throttle {
    most: u32,
    period: Duration,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    began: Option<Instant>,
    passed: u32,
    left_out: u64,
}

impl Throttle {
    /// Lets `most` lines pass in each period.
    pub(crate) const fn new(most: u32, period: Duration) -> Throttle {
        let state = State { began: None, passed: 0, left_out: 0 };
        Throttle { most, period, state: const_mutex(state) }
    }

    /// One line in ten seconds: for what is tried again and again.
    pub(crate) const fn repeated() -> Throttle {
        Throttle::new(1, Duration::from_secs(10))
    }

    /// Whether a line may be written now: then how many were left out since the last one.
    pub(crate) fn pass(&self) -> Option<u64> {
        self.pass_at(Instant::now())
    }

    fn pass_at(&self, now: Instant) -> Option<u64> {
        let mut state = self.state.lock();
        if state.began.is_none_or(|began| now.saturating_duration_since(began) >= self.period) {
            (state.began, state.passed) = (Some(now), 0);
        }
        if state.passed == self.most {
            state.left_out += 1;
            return None;
        }
        state.passed += 1;
        Some(std::mem::take(&mut state.left_out))
    }

    /// How many were left out since that was last told.
    pub(crate) fn take_left_out(&self) -> u64 {
        std::mem::take(&mut self.state.lock().left_out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_is_counted() {
        let throttle = Throttle::new(2, Duration::from_secs(10));
        let start = Instant::now();
        let at = |seconds| throttle.pass_at(start + Duration::from_secs(seconds));
        assert_eq!([at(0), at(1), at(2), at(9)], [Some(0), Some(0), None, None]);
        assert_eq!([at(10), at(11), at(12)], [Some(2), Some(0), None]);
        assert_eq!((throttle.take_left_out(), throttle.take_left_out()), (1, 0));
        assert_eq!(at(30), Some(0));
    }
}
