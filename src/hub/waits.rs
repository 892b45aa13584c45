//! Events that a publisher waits for: which streams of this gateway have read them.
//!
//! An event that is waited for says so in a field that its gateway stamps ([`WaitStamp`]). When it
//! comes into a log, the streams that it may concern are noted; a cursor notes when it takes it for
//! its stream. Who has passed the event without taking it is not concerned.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{
    event::{WaitName, WaitStamp},
    router::Interest,
};

/// Waits that are followed, and streams in all of them together. More are not followed: their
/// publishers are answered that nothing is known of this gateway.
const MAX_WAITS: usize = 4096;
const MAX_STREAMS: usize = 1 << 20;

/// A stream, for as long as one of its entries here is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamKey(usize);

impl StreamKey {
    pub(super) fn of(interest: &Arc<Interest>) -> StreamKey {
        StreamKey(Arc::as_ptr(interest) as usize)
    }
}

/// The waits for events that this gateway received.
#[derive(Default)]
pub struct Waits {
    waits: Mutex<BTreeMap<WaitName, Wait>>,
    /// Notified when an event of a new wait comes.
    begun: Notify,
}

struct Wait {
    stamp: WaitStamp,
    begun: Instant,
    /// The events of it that came, by their places.
    parts: HashMap<u16, Part>,
    /// The streams that took one of them.
    taken: HashSet<StreamKey>,
    /// Of all streams that are noted, so that no other one gets their key.
    streams: HashMap<StreamKey, Weak<Interest>>,
}

/// An event of a wait, as it came.
struct Part {
    shard: usize,
    number: u64,
    /// The streams that may be concerned and have not passed it, as was last seen.
    pending: Vec<StreamKey>,
}

/// What is known of a wait.
#[derive(Debug)]
pub struct Looked {
    /// The wait.
    pub stamp: WaitStamp,
    /// The time since its first event came.
    pub age: Duration,
    /// True if all of its events have come.
    pub whole: bool,
    /// The streams that took one of its events.
    pub taken: HashSet<StreamKey>,
    /// The streams that may be concerned by one of them and have not read it, and whether they are
    /// still there.
    pub pending: BTreeMap<StreamKey, bool>,
}

impl Waits {
    /// Notes an event that came into a log: the stamp, the log's shard, the number of its entry,
    /// and the streams that the entry may concern.
    pub(super) fn arrived(
        &self,
        stamp: WaitStamp,
        (shard, number): (usize, u64),
        concerned: &[Arc<Interest>],
    ) {
        let mut waits = self.waits.lock();
        let streams: usize = waits.values().map(|wait| wait.streams.len()).sum();
        let is_new = !waits.contains_key(&stamp.name);
        if is_new && waits.len() >= MAX_WAITS || streams + concerned.len() > MAX_STREAMS {
            waits.remove(&stamp.name);
            return;
        }
        let wait = waits.entry(stamp.name).or_insert_with(|| Wait {
            stamp,
            begun: Instant::now(),
            parts: HashMap::new(),
            taken: HashSet::new(),
            streams: HashMap::new(),
        });
        let pending = concerned.iter().map(StreamKey::of).collect();
        let known = concerned.iter().map(|stream| (StreamKey::of(stream), Arc::downgrade(stream)));
        wait.streams.extend(known);
        // A copy that comes later says nothing new.
        wait.parts.entry(stamp.index).or_insert(Part { shard, number, pending });
        drop(waits);
        if is_new {
            self.begun.notify_one();
        }
    }

    /// Notes that a cursor takes an event for its stream; before it reports that it has read it.
    pub(super) fn taken(&self, stamp: &WaitStamp, interest: &Arc<Interest>) {
        if let Some(wait) = self.waits.lock().get_mut(&stamp.name) {
            let key = StreamKey::of(interest);
            wait.streams.entry(key).or_insert_with(|| Arc::downgrade(interest));
            wait.taken.insert(key);
        }
    }

    /// True if no wait is followed.
    pub fn is_empty(&self) -> bool {
        self.waits.lock().is_empty()
    }

    /// Ready when an event of a new wait has come since the last call.
    pub async fn begun(&self) {
        self.begun.notified().await;
    }

    /// What is known of each wait now.
    pub fn look(&self) -> Vec<Looked> {
        self.waits.lock().values_mut().map(Wait::look).collect()
    }

    /// Forgets a wait.
    pub fn forget(&self, name: WaitName) {
        self.waits.lock().remove(&name);
    }
}

impl Wait {
    fn look(&mut self) -> Looked {
        let mut pending = BTreeMap::new();
        for Part { shard, number, pending: of_part } in self.parts.values_mut() {
            of_part.retain(|key| match self.streams.get(key).map(Weak::upgrade) {
                Some(Some(stream)) if stream.has_passed(*shard, *number) => false,
                Some(Some(_)) => {
                    pending.insert(*key, true);
                    true
                }
                Some(None) => {
                    pending.entry(*key).or_insert(false);
                    true
                }
                None => false,
            });
        }
        Looked {
            stamp: self.stamp,
            age: self.begun.elapsed(),
            whole: self.parts.len() == usize::from(self.stamp.count),
            taken: self.taken.clone(),
            pending,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        hub::{event::waiter::stamp, filter::Filter},
        proto::v1,
    };

    fn interest() -> Arc<Interest> {
        Arc::new(Interest::new(&Filter::new(&v1::Filter::default(), "n", &[], false), 2))
    }

    #[test]
    fn a_stream_is_pending_until_its_cursor_has_read_past_the_event() {
        let waits = Waits::default();
        let [reads, skips, leaves] = [interest(), interest(), interest()];
        let concerned = [reads.clone(), skips.clone(), leaves.clone()];
        for stream in &concerned {
            let _ = stream.set_pending(1, 9);
        }
        waits.arrived(stamp(0, 2), (1, 9), &concerned);
        drop(concerned);
        let look = || waits.look().pop().unwrap();
        assert_eq!((look().pending.len(), look().whole), (3, false));

        // While a cursor reads, what it has passed is not known.
        reads.begin_read();
        reads.take_pending(1);
        assert_eq!(look().pending.len(), 3);
        waits.taken(&stamp(0, 2), &reads);
        reads.end_read();
        skips.begin_read();
        skips.take_pending(1);
        skips.end_read();
        let gone = StreamKey::of(&leaves);
        drop(leaves);
        let looked = look();
        assert_eq!(looked.taken, HashSet::from([StreamKey::of(&reads)]));
        assert_eq!(looked.pending, BTreeMap::from([(gone, false)]));

        // The second event, and a copy of the first, which says nothing.
        let _ = reads.set_pending(0, 4);
        waits.arrived(stamp(1, 2), (0, 4), std::slice::from_ref(&reads));
        waits.arrived(stamp(0, 2), (1, 12), std::slice::from_ref(&skips));
        let looked = look();
        assert!(looked.whole);
        let pending = BTreeMap::from([(StreamKey::of(&reads), true), (gone, false)]);
        assert_eq!(looked.pending, pending);
        waits.forget(stamp(0, 2).name);
        assert!(waits.is_empty());
    }

    #[test]
    fn more_waits_than_may_be_are_not_followed() {
        let waits = Waits::default();
        for number in 0..MAX_WAITS as u64 + 10 {
            let name = WaitName { number, ..stamp(0, 1).name };
            waits.arrived(WaitStamp { name, ..stamp(0, 1) }, (0, number), &[]);
        }
        assert_eq!(waits.look().len(), MAX_WAITS);
    }
}
