//! The streams of which `node_left` was published lately: a list of nodes leaves them out, though
//! the records of their gateways may still have them.
//!
//! Pure: no clocks and tasks.

use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant},
};

use super::StreamId;

/// For how long a stream that left may be in a record: that is there for ten seconds after its
/// gateway has renewed it for the last time, and is written anew within seconds.
const LINGERS: Duration = Duration::from_secs(15);

/// For how long it is known.
const KEPT: Duration = Duration::from_mins(1);

/// Streams that are kept.
const MAX_STREAMS: usize = 131_072;

/// The streams that left lately.
#[derive(Default)]
pub struct Departed {
    left: HashMap<StreamId, Instant>,
    order: VecDeque<(Instant, StreamId)>,
    /// Until then some may be unknown.
    uncertain_until: Option<Instant>,
}

impl Departed {
    /// A stream has left.
    pub fn left(&mut self, id: StreamId, now: Instant) {
        while let Some(&(at, oldest)) = self.order.front()
            && (now.duration_since(at) >= KEPT || self.order.len() >= MAX_STREAMS)
        {
            if now.duration_since(at) < LINGERS {
                self.are_uncertain(now);
            }
            self.order.pop_front();
            if self.left.get(&oldest) == Some(&at) {
                self.left.remove(&oldest);
            }
        }
        self.left.insert(id, now);
        self.order.push_back((now, id));
    }

    /// A stream has joined, perhaps anew.
    pub fn joined(&mut self, id: StreamId) {
        self.left.remove(&id);
    }

    /// True if the stream has left.
    pub fn have(&self, id: StreamId) -> bool {
        self.left.contains_key(&id)
    }

    /// Some that left may be unknown.
    pub fn are_uncertain(&mut self, now: Instant) {
        self.uncertain_until = Some(now + LINGERS);
    }

    /// The time until which some that left may be unknown; none if all are known.
    pub fn uncertain_for(&self, now: Instant) -> Option<Duration> {
        let until = self.uncertain_until?;
        until.checked_duration_since(now).filter(|left| !left.is_zero())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_left_out_from_when_it_leaves_until_it_joins_anew() {
        let (mut departed, now) = (Departed::default(), Instant::now());
        departed.left(StreamId(1), now);
        departed.left(StreamId(2), now);
        assert!(departed.have(StreamId(1)) && !departed.have(StreamId(3)));
        departed.joined(StreamId(1));
        assert!(!departed.have(StreamId(1)) && departed.have(StreamId(2)));
        departed.left(StreamId(1), now + KEPT / 2);
        departed.left(StreamId(3), now + KEPT);
        assert!(departed.have(StreamId(1)) && !departed.have(StreamId(2)));
        assert_eq!(departed.uncertain_for(now), None);
    }

    #[test]
    fn memory_is_bounded_and_what_is_forgotten_early_is_noted() {
        let (mut departed, now) = (Departed::default(), Instant::now());
        (0..MAX_STREAMS as u128).for_each(|n| departed.left(StreamId(n), now));
        assert_eq!(departed.uncertain_for(now), None);
        departed.left(StreamId(u128::MAX), now);
        assert_eq!(departed.left.len(), MAX_STREAMS);
        assert_eq!(departed.uncertain_for(now), Some(LINGERS));
        assert_eq!(departed.uncertain_for(now + LINGERS), None);
    }
}
