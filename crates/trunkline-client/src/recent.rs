//! The events that were handed on last.

use std::{
    collections::{HashSet, VecDeque, hash_map::RandomState},
    hash::BuildHasher,
};

use trunkline_proto::v1::Event;

/// The number of events that are remembered.
const CAPACITY: usize = 1024;

/// The last 1,024 events that a node handed on, by source and id.
///
/// A gateway delivers an event twice only if it cannot know that the node had it: gateways that
/// had it died or were cut off, the publisher repeated its request meanwhile, and the node moved.
/// Every event has an id, which stays the same over all attempts of its request, so a node that
/// remembers the last ids does not hand on such an event again. [`Client::subscribe`] does so;
/// this is for programs that read streams by themselves.
///
/// [`Client::subscribe`]: super::Client::subscribe
#[derive(Clone, Debug, Default)]
pub struct RecentEvents {
    // Two keys of the process: a publisher cannot make two ids that look the same.
    hashers: [RandomState; 2],
    order: VecDeque<[u64; 2]>,
    known: HashSet<[u64; 2]>,
}

impl RecentEvents {
    /// Remembers no event yet.
    pub fn new() -> RecentEvents {
        RecentEvents::default()
    }

    /// Remembers an event that is about to be handed on; false if it was handed on before. An event
    /// without an id, and one that stands for several (`merged_events`), is always new.
    pub fn is_new(&mut self, event: &Event) -> bool {
        if event.event_id.is_empty() {
            return true;
        }
        let id = (&event.source, &event.event_id);
        let key = [0, 1].map(|nth: usize| self.hashers[nth].hash_one(id));
        if !self.known.insert(key) {
            return event.merged_events > 1;
        }
        self.order.push_back(key);
        if self.order.len() > CAPACITY
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(source: &str, id: &str) -> Event {
        Event { source: source.to_owned(), event_id: id.to_owned(), ..Event::default() }
    }

    #[test]
    fn an_event_is_new_once_for_each_source() {
        let mut recent = RecentEvents::new();
        assert!(recent.is_new(&event("a", "1")));
        assert!(recent.is_new(&event("b", "1")));
        assert!(recent.is_new(&event("a", "2")));
        assert!(!recent.is_new(&event("a", "1")));
        assert!(!recent.is_new(&event("b", "1")));
    }

    #[test]
    fn an_event_without_an_id_and_one_that_stands_for_several_are_always_new() {
        let mut recent = RecentEvents::new();
        assert!(recent.is_new(&event("a", "")) && recent.is_new(&event("a", "")));
        assert!(recent.is_new(&event("a", "1")));
        let merged = Event { merged_events: 2, ..event("a", "1") };
        assert!(recent.is_new(&merged), "it stands for others too");
        let alone = Event { merged_events: 1, ..event("a", "1") };
        assert!(!recent.is_new(&alone));
    }

    #[test]
    fn the_last_events_are_remembered_and_no_more() {
        let mut recent = RecentEvents::new();
        for number in 0..=CAPACITY {
            assert!(recent.is_new(&event("a", &number.to_string())));
        }
        assert!(!recent.is_new(&event("a", "1")));
        assert!(!recent.is_new(&event("a", &CAPACITY.to_string())));
        assert!(recent.is_new(&event("a", "0")), "the oldest is forgotten");
        assert!(recent.known.len() == CAPACITY && recent.order.len() == CAPACITY);
    }
}
