//! The streams of gateways that are gone, for which others publish `node_left`.
//!
//! The gateways that are there have an order for each one that is gone. The first publishes at
//! once; each other one after a time of its own, what it has not seen published until then. All of
//! them give an event the same name, so that two who publish at once publish it once.
//!
//! Pure: no clocks, tasks and bus. `S` is what the caller knows of a stream.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use ring::digest::{SHA256, digest};

use super::StreamId;
use crate::bus::MemberId;

/// The time that each gateway leaves to the one before it.
const STEP: Duration = Duration::from_secs(3);

/// Gateways in the order that take part.
const MAX_RANKS: usize = 8;

/// Streams that are kept.
const MAX_STREAMS: usize = 131_072;

/// The streams of gateways that are gone.
pub struct LostStreams<S> {
    gateways: Vec<(Instant, HashMap<StreamId, S>)>,
    count: usize,
}

impl<S> Default for LostStreams<S> {
    fn default() -> LostStreams<S> {
        LostStreams { gateways: vec![], count: 0 }
    }
}

/// When `own` publishes for a gateway that was found to be gone now, among those that are `alive`;
/// none if enough others do.
pub fn due(
    lost: MemberId,
    own: MemberId,
    alive: impl Iterator<Item = MemberId>,
    now: Instant,
) -> Option<Instant> {
    let place = |member: MemberId| {
        let both: Vec<u8> = [lost.0, member.0].iter().flat_map(|id| id.to_be_bytes()).collect();
        digest(&SHA256, &both).as_ref().to_vec()
    };
    let own_place = place(own);
    let before = alive.filter(|member| *member != own && place(*member) < own_place).count();
    let steps = u32::try_from(before).ok().filter(|_| before < MAX_RANKS)?;
    Some(now + STEP * steps)
}

impl<S: Clone> LostStreams<S> {
    /// Adds streams of one gateway. False if there are too many, and some were left out.
    pub fn add(&mut self, due: Instant, streams: impl Iterator<Item = (StreamId, S)>) -> bool {
        let mut streams = streams;
        let room = MAX_STREAMS - self.count;
        let added: HashMap<StreamId, S> = streams.by_ref().take(room).collect();
        self.count += added.len();
        if !added.is_empty() {
            self.gateways.push((due, added));
        }
        streams.next().is_none()
    }

    /// A `node_left` of this stream is published.
    pub fn left(&mut self, id: StreamId) {
        for (_, streams) in &mut self.gateways {
            self.count -= usize::from(streams.remove(&id).is_some());
        }
        self.gateways.retain(|(_, streams)| !streams.is_empty());
    }

    /// Streams for which it is time, at most `max`.
    pub fn due(&self, max: usize, now: Instant) -> Vec<(StreamId, S)> {
        let due = self.gateways.iter().filter(|(due, _)| *due <= now);
        let streams = due.flat_map(|(_, streams)| streams);
        streams.take(max).map(|(id, stream)| (*id, stream.clone())).collect()
    }

    /// When it is time for the next ones.
    pub fn next_due(&self) -> Option<Instant> {
        self.gateways.iter().map(|(due, _)| *due).min()
    }

    /// The number of streams.
    pub fn count(&self) -> usize {
        self.count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_gateway_has_a_time_of_its_own_and_one_of_them_begins_at_once() {
        let now = Instant::now();
        let all = || (1..=20).map(MemberId);
        let mut first = [0; 21];
        for lost in 100..1100 {
            let mut due: Vec<_> = all()
                .filter_map(|own| Some((due(MemberId(lost), own, all(), now)?, own)))
                .collect();
            due.sort();
            let steps: Vec<u64> = due.iter().map(|(at, _)| (*at - now).as_secs()).collect();
            assert_eq!(steps, [0, 3, 6, 9, 12, 15, 18, 21]);
            first[usize::try_from(due[0].1.0).unwrap()] += 1;
        }
        // Each with a probability of 1/20: none is first in 1,000 cases once in 10^22.
        assert!(first[1..].iter().all(|count| *count > 0), "{first:?}");
        // One that knows no other begins at once.
        assert_eq!(due(MemberId(1), MemberId(2), std::iter::empty(), now), Some(now));
    }

    #[test]
    fn what_others_publish_is_not_published_again() {
        let mut lost = LostStreams::default();
        let now = Instant::now();
        assert!(lost.add(now + STEP, (0..10).map(|n| (StreamId(n), n))));
        assert!(lost.due(5, now).is_empty());
        assert_eq!((lost.due(5, now + STEP).len(), lost.next_due()), (5, Some(now + STEP)));
        (0..9).for_each(|n| lost.left(StreamId(n)));
        assert_eq!(lost.due(5, now + STEP), [(StreamId(9), 9)]);
        lost.left(StreamId(9));
        assert_eq!((lost.count(), lost.next_due()), (0, None));
    }

    #[test]
    fn memory_is_bounded() {
        let mut lost = LostStreams::default();
        let (now, max) = (Instant::now(), MAX_STREAMS as u128);
        assert!(!lost.add(now, (0..=max).map(|n| (StreamId(n), ()))));
        assert!(!lost.add(now, [(StreamId(max + 7), ())].into_iter()));
        assert_eq!(lost.count(), MAX_STREAMS);
    }
}
